"""Two hosts that lose one and go on: two network namespaces of this machine, joined by a virtual cable.

    python -m benchmarks.two_hosts --out=benchmarks/results/two_hosts.json

Each namespace has an address and a hosts file of its own, so nothing reaches the other one but through the
cable. Runs, in turn: one process with two devices; the two hosts; the two hosts, of which one is killed with
-9, and once more to the end; the two hosts, whose cable is cut. Needs root and iproute2. Where namespaces are
not allowed, two addresses of the loopback device take their place, and no cable is cut.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import record
from jaxrl import exits, glossary
from jaxrl.stores import find

NAMES = ("jaxrl-a", "jaxrl-b")
CABLE = ("jaxrl-va", "jaxrl-vb")
ADDRESSES, LOOPBACK = ("10.77.0.1", "10.77.0.2"), ("127.0.0.2", "127.0.0.3")
PORT = 7654
SILENCE_S = 20.0  # --distributed.heartbeat_s
WORDS = ("--config=debug", "--task=toy_clock", "--env.num_envs=4", "--steps=240")
WORDS += (
    "--env.size=48",
    "--batch_size=4",
    "--batch_length=8",
    "--train_ratio=4",
    "--log_every=40",
    "--eval_every=80",
)
WORDS += ("--eval_eps=4", "--save_every=40", "--device=cpu", "--plot.enabled=false", "--terminal.style=plain")


class Hosts:
    """Two hosts, and the commands that run on them."""

    def __init__(self, prefixes: Sequence[Sequence[str]], addresses: Sequence[str], apart: bool):
        self._prefixes, self.addresses, self.apart = prefixes, addresses, apart

    def start(self, logdir: pathlib.Path, *more: str, alone: bool = False) -> list[subprocess.Popen[str]]:
        """The processes of one command."""
        env = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={2 if alone else 1}"}
        words = [
            sys.executable,
            "-m",
            "jaxrl.train",
            *WORDS,
            f"--logdir={logdir}",
            "--runtime.devices=2",
            *more,
        ]
        children = []
        for i in range(1 if alone else 2):
            flags = {
                "coordinator": f"{self.addresses[0]}:{PORT}",
                "processes": 2,
                "process": i,
                "timeout_s": 120,
            }
            flags["heartbeat_s"] = SILENCE_S
            mine = [] if alone else [f"--distributed.{name}={value}" for name, value in flags.items()]
            prefix = [] if alone else self._prefixes[i]
            children.append(
                subprocess.Popen(
                    [*prefix, *words, *mine],
                    env=env,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
            )
        return children

    def cut(self) -> None:
        call("ip", "-n", NAMES[0], "link", "set", CABLE[0], "down")

    def mend(self) -> None:
        call("ip", "-n", NAMES[0], "link", "set", CABLE[0], "up")


@contextlib.contextmanager
def hosts() -> Iterator[Hosts]:
    """Two namespaces, gone afterwards; or two loopback addresses."""
    files = [pathlib.Path("/etc/netns") / name for name in NAMES]
    try:
        try:
            for name, folder, address in zip(NAMES, files, ADDRESSES, strict=True):
                call("ip", "netns", "add", name)
                folder.mkdir(parents=True)
                (folder / "hosts").write_text(f"127.0.0.1 localhost\n{address} {os.uname().nodename}\n")
            call(
                "ip",
                "link",
                "add",
                CABLE[0],
                "netns",
                NAMES[0],
                "type",
                "veth",
                "peer",
                CABLE[1],
                "netns",
                NAMES[1],
            )
            for name, end, address in zip(NAMES, CABLE, ADDRESSES, strict=True):
                call("ip", "-n", name, "addr", "add", f"{address}/24", "dev", end)
                for device in ("lo", end):
                    call("ip", "-n", name, "link", "set", device, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            sys.stderr.write(f"two_hosts: no namespaces ({error}); loopback addresses instead\n")
            yield Hosts([[], []], LOOPBACK, apart=False)
            return
        yield Hosts([["ip", "netns", "exec", name] for name in NAMES], ADDRESSES, apart=True)
    finally:
        for name, folder in zip(NAMES, files, strict=True):
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)
            shutil.rmtree(folder, ignore_errors=True)


def call(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def finish(children: Sequence[subprocess.Popen[str]], seconds: float = 600.0) -> list[dict[str, Any]]:
    """Exit code and last words of each process, once all have ended."""
    found = []
    for child in children:
        out, _ = child.communicate(timeout=seconds)
        lines = [line for line in out.splitlines() if line.startswith("jaxrl: ") and "meets" not in line]
        found.append({"code": child.returncode, "line": lines[-1] if lines else "", "out": out})
    return found


def whole(children: Sequence[subprocess.Popen[str]]) -> float:
    """Seconds that a run takes to its end. Raises SystemExit if it does not come there."""
    began = time.monotonic()
    for process in finish(children):
        if process["code"]:
            raise SystemExit(f"two_hosts: ended with {process['code']}:\n{process['out'][-3000:]}")
    return time.monotonic() - began


def wait_for(logdir: pathlib.Path, step: int, children: Sequence[subprocess.Popen[str]]) -> None:
    """Until a checkpoint of that step or a later one is there."""
    store = logdir / "checkpoints" / "latest"
    while not any(int(x.parent.name.partition(".")[0]) >= step for x in store.glob("*/manifest.json")):
        if any(child.poll() is not None for child in children):
            raise SystemExit(f"two_hosts: ended too early: {finish(children)}")
        time.sleep(0.02)


def traces(logdir: pathlib.Path) -> dict[str, str]:
    """Digests of the rows without times, of the episodes, and of the last checkpoint's arrays."""
    rows = [strip(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]
    games = [strip(line) for line in (logdir / "scores.jsonl").read_text().splitlines()]
    return {"rows": digest(rows), "episodes": digest(games), "arrays": arrays(logdir)}


def strip(line: str) -> str:
    """A row without seconds and what comes of them."""
    row = {k: x for k, x in json.loads(line).items() if not k.startswith((*glossary.TIME_KEYS, "wall_s"))}
    return json.dumps(row, sort_keys=True)


def arrays(logdir: pathlib.Path) -> str:
    import jax
    import numpy as np

    from jaxrl import checkpoint

    found = find(logdir)
    place = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    shapes, _ = checkpoint.shapes(found.folder)
    asked = {k: jax.ShapeDtypeStruct(tuple(x.shape), x.dtype, sharding=place) for k, x in shapes.items()}
    parts = {k: x for some in checkpoint.load(found.folder, asked) for k, x in some.items()}
    return digest(
        [f"{k} {hashlib.sha256(np.asarray(x).tobytes()).hexdigest()}" for k, x in sorted(parts.items())]
    )


def digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def lost(pair: Hosts, logdir: pathlib.Path, victim: int) -> dict[str, Any]:
    """Kills one of the two hosts' processes, and lets the same command go on."""
    children = pair.start(logdir)
    wait_for(logdir, 120, children)
    children[victim].send_signal(signal.SIGKILL)  # `ip netns exec` has become the process
    began = time.monotonic()
    children[1 - victim].wait(timeout=120)
    seconds = time.monotonic() - began
    ended = finish(children)
    took = whole(pair.start(logdir))
    other = ended[1 - victim]
    return {
        "killed": victim,
        "code": other["code"],
        "line": other["line"].replace(str(logdir), "LOGDIR"),
        "seconds": round(seconds, 3),
        "lines_of_errors": len(
            [x for x in other["out"].splitlines() if re.match(r"[EF]\d{4} |Traceback|\*\*\*", x)]
        ),
        "resumed_s": round(took, 1),
        **traces(logdir),
    }


def cut_off(pair: Hosts, logdir: pathlib.Path) -> list[dict[str, Any]]:
    """Cuts the cable: each host goes on alone until it has heard nothing for long enough."""
    children = pair.start(logdir)
    wait_for(logdir, 120, children)
    pair.cut()
    began, found = time.monotonic(), []
    for child in children:
        child.wait(timeout=120)
        found.append({"code": child.returncode, "seconds": round(time.monotonic() - began, 2)})
    pair.mend()
    for process, ended in zip(found, finish(children), strict=True):
        process["line"] = ended["line"].replace(str(logdir), "LOGDIR")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path)
    out = parser.parse_args().out
    told = record.start("two_hosts")
    with tempfile.TemporaryDirectory() as folder, hosts() as pair:
        home = pathlib.Path(folder)
        told |= {
            "hosts": "namespaces" if pair.apart else "loopback",
            "words": list(WORDS),
            "silence_s": SILENCE_S,
        }
        alone_s = whole(pair.start(home / "alone", alone=True))
        told["alone"] = {"seconds": round(alone_s, 1), **traces(home / "alone")}
        told["together"] = {"seconds": round(whole(pair.start(home / "pair")), 1), **traces(home / "pair")}
        told["lost"] = [lost(pair, home / f"lost{i}", i) for i in (1, 0)]
        told["cut"] = cut_off(pair, home / "cut") if pair.apart else None
    wanted = {k: told["alone"][k] for k in ("rows", "episodes", "arrays")}
    told["same"] = all(x[k] == wanted[k] for x in (told["together"], *told["lost"]) for k in wanted)
    good = told["same"] and all(x["code"] == exits.PEER_LOST for x in (*told["lost"], *(told["cut"] or ())))
    record.finish(told, out)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
