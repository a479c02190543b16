"""How the processes of a run find each other: all others come to process 0, which waits for them."""

import contextlib
import json
import os
import platform
import re
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from jaxrl.config import ConfigError, DistributedConfig, show
from jaxrl.exits import PEER_LOST, PeerLost
from jaxrl.hosts.team import Me, Team
from jaxrl.hosts.wire import END, HELLO, VALUE, Peer, received

SMALL = 2**16  # bytes of a message from who is not known yet
RETRY_S = 0.2


def join(wanted: DistributedConfig, facts: dict[str, Any], leave: Callable[[int, str], Any]) -> Team:
    """Finds the other processes of the run.

    Args:
      wanted: with the address of process 0, the number of processes, and that of this one.
      facts: must be the same in all of them; short.
      leave: as for `Team`.

    Raises:
      ConfigError: if the settings cannot be meant, or those of two processes do not go together.
      PeerLost: if not all were there in time.
    """
    host, port = checked(wanted)
    mine = {"process": wanted.process, "processes": wanted.processes, "facts": facts, "pid": os.getpid()}
    mine["host"] = platform.node()
    end = time.monotonic() + wanted.timeout_s
    if wanted.process:
        peers = [asked(host, port, mine, end, wanted)]
    else:
        with listening(host, port, end, wanted) as server:
            peers = expected(server, mine, end, wanted)
    me = Me(wanted.process, wanted.processes, f"process {wanted.process} ({named(mine)})")
    return Team(me, peers, wanted.heartbeat_s, leave).start()


def named(told: Mapping[str, Any]) -> str:
    """Where a process is."""
    return f"pid {told['pid']} on {told['host']}"


def checked(wanted: DistributedConfig) -> tuple[str, int]:
    """Host and port of process 0. Raises ConfigError."""
    found = re.fullmatch(r"\[?([^\[\]\s]+?)\]?:(\d{1,5})", wanted.coordinator)
    if not found or not 0 < int(found[2]) < 65_536:
        raise ConfigError(
            f"distributed.coordinator={show(wanted.coordinator)}: must be HOST:PORT of process 0, or auto; "
            "for example distributed.coordinator=10.0.0.1:7654"
        )
    if not wanted.processes:
        raise ConfigError(
            "distributed.processes=0: their number must be given with distributed.coordinator; for example "
            "distributed.processes=2"
        )
    if not 0 <= wanted.process < wanted.processes:
        raise ConfigError(
            f"distributed.process={wanted.process}: must be 0 to {wanted.processes - 1}, another one in "
            f"each of the {wanted.processes} processes"
        )
    return found[1], int(found[2])


def asked(host: str, port: int, mine: dict[str, Any], end: float, wanted: DistributedConfig) -> Peer:
    """Process 0, once it has taken this one in."""
    why = "no answer"
    while (left := end - time.monotonic()) > 0:
        try:
            link = socket.create_connection((host, port), timeout=max(0.1, left))
        except OSError as error:
            why = error.strerror or str(error)
            time.sleep(min(RETRY_S, left))
            continue
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = Peer(link, 0, host)
        try:
            peer.send(HELLO, json.dumps(mine).encode())
            kind, payload = received(link, SMALL)
        except TimeoutError:
            link.close()
            raise missing_others(wanted) from None
        except (OSError, EOFError) as error:
            why = f"the connection was closed ({error})" if str(error) else "the connection was closed"
            link.close()
            time.sleep(RETRY_S)
            continue
        told = json.loads(payload)
        if kind == END:
            raise refusal(told["code"], told["words"])
        peer.name = told["name"]
        return peer
    raise PeerLost(
        f"distributed.coordinator={wanted.coordinator}: process 0 was not reached within "
        f"{wanted.timeout_s:g} s ({why}); see that it was started, that the address is its own, "
        "and that no firewall is between"
    )


def missing_others(wanted: DistributedConfig) -> PeerLost:
    return PeerLost(
        f"distributed.processes={wanted.processes}: process 0 at {wanted.coordinator} is there, but others "
        f"were not within {wanted.timeout_s:g} s; start all of them"
    )


def listening(host: str, port: int, end: float, wanted: DistributedConfig) -> socket.socket:
    """The socket of process 0. Where its address is another network's name of it, it listens everywhere."""
    why = OSError()
    while True:
        for address in (host, ""):
            try:
                return served(address, port)
            except OSError as error:
                why = error
        if end - time.monotonic() < RETRY_S:
            raise PeerLost(
                f"distributed.coordinator={wanted.coordinator}: process 0 cannot listen there "
                f"({why.strerror or why}); choose another port"
            )
        time.sleep(RETRY_S)


def served(host: str, port: int) -> socket.socket:
    """A socket that listens at an address of this machine, or with "" at all of them. Raises OSError."""
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1_024)


def free_port(host: str) -> int:
    """A port of an address of this machine on which nobody listens. Raises OSError."""
    with served(host, 0) as server:
        return server.getsockname()[1]


def expected(
    server: socket.socket, mine: dict[str, Any], end: float, wanted: DistributedConfig
) -> list[Peer]:
    """All other processes, as they come."""
    found: dict[int, Peer] = {}
    while len(found) < wanted.processes - 1:
        server.settimeout(max(0.01, end - time.monotonic()))
        try:
            link, address = server.accept()
        except TimeoutError:
            gone = sorted({*range(1, wanted.processes)} - found.keys())
            words = f"process {', '.join(map(str, gone[:8]))}{' and others' * (len(gone) > 8)}"
            raise refuse(
                found,
                PeerLost(
                    f"distributed.processes={wanted.processes}: {words} did not come to {wanted.coordinator} "
                    f"within {wanted.timeout_s:g} s; start all of them, and see that no firewall is between"
                ),
            ) from None
        try:
            link.settimeout(5.0)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            kind, payload = received(link, SMALL)
            told = json.loads(payload) if kind == HELLO else {}
            peer = Peer(link, told["process"], named(told))
        except (OSError, EOFError, ValueError, KeyError):
            link.close()  # somebody else's, or it has died
            continue
        if fault := misfit(mine, told, found):
            found[-1] = peer
            raise refuse(found, ConfigError(fault))
        found[peer.index] = peer
    peers = [found[i] for i in sorted(found)]
    for peer in peers:
        try:
            peer.send(VALUE, json.dumps({"name": named(mine)}).encode())
        except OSError:
            raise refuse(found, PeerLost(f"{peer.words} is lost: it came, and went")) from None
    return peers


def misfit(mine: dict[str, Any], told: dict[str, Any], found: Mapping[int, Peer]) -> str:
    """What is wrong with a process that has come; "" if nothing."""
    index, whose = told["process"], f"process {told['process']} on {told['host']}"
    if told.get("processes") != mine["processes"]:
        other = told.get("processes")
        return f"distributed.processes={mine['processes']}: {whose} has {other}; give all of them the same"
    if index in found or not 0 < index < mine["processes"]:
        return f"distributed.process={index}: is there twice; give each process a number of its own"
    for name, value in mine["facts"].items():
        if (other := told["facts"].get(name)) != value:
            return f"{name}: {show(value)} in process 0, {show(other)} in {whose}; make them the same"
    return ""


def refuse(found: Mapping[int, Peer], error: Exception) -> Exception:
    """The error, once those that have come know of it."""
    code = getattr(error, "code", 2)
    for peer in found.values():
        with contextlib.suppress(OSError):
            peer.send(END, json.dumps({"code": code, "words": str(error)}).encode())
    return error


def refusal(code: int, words: str) -> Exception:
    """What process 0 has refused this process for."""
    return PeerLost(words) if code == PEER_LOST else ConfigError(words)
