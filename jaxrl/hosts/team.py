"""What the processes of a run do together on the host: agree, and end."""

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from jaxrl.config import ConfigError
from jaxrl.exits import PEER_LOST, RunError
from jaxrl.hosts.wire import END, PING, VALUE, Peer, decoded, encoded, received

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")
VERDICT_S = 2.0  # for the news of another process's end, after an error that may have come of it
FAREWELL_S = 60.0  # that process 0 waits for the others when all is done


class Alone:
    """One process: nobody to ask, nobody to lose. Also says what `Team` does."""

    index = 0
    count = 1
    service: Any = None  # jax's own, a process that process 0 has started

    @property
    def leads(self) -> bool:
        """Whether this is process 0, which writes what a run leaves behind."""
        return self.index == 0

    def share(self, value: Any = None) -> Any:
        """What process 0 gives, in all of them. All must call it at the same place.

        Args:
          value: JSON with numpy arrays in it; of process 0. Tuples come out as lists elsewhere.
        """
        return value

    def gather(self, value: Any) -> list[Any]:
        """What each gives, in order of processes, in all of them."""
        return [value]

    def led(self, call: Callable[[], T]) -> T:
        """What `call` returns in process 0, in all of them; what it raises there is raised in all of them."""
        return call()

    def joined(self, arrays: "Mapping[str, np.ndarray]") -> "dict[str, np.ndarray]":
        """Arrays of which each has its rows, with the rows of all."""
        return dict(arrays)

    def end(self, code: int, words: str = "") -> None:
        """Tells the others that this process ends, and with code 0 waits until they do, too."""

    def verdict(self, error: BaseException) -> None:
        """To be called before an error is told: if it came of another process's end, that ends this one here.

        What all of them have come upon is told by process 0.
        """

    def opened(self, ended: Callable[[int, str], str]) -> None:
        """Whom to tell before this process ends because of another: exit code, words; what it adds."""


ALONE = Alone()


@dataclasses.dataclass(frozen=True)
class Me:
    """This process among the others."""

    index: int
    count: int  # of all
    name: str  # where it is, for humans


class Team(Alone):
    """This process and the others; made by `join`.

    Args:
      me: this process.
      peers: of process 0 all others in their order, of another process 0 alone.
      silence_s: after which one is lost.
      leave: ends this process at once, with an exit code and a line.
    """

    def __init__(self, me: Me, peers: list[Peer], silence_s: float, leave: Callable[[int, str], Any]):
        self.index, self.count, self._name = me.index, me.count, me.name
        self._peers, self._silence_s, self._leave = peers, silence_s, leave
        self._ended: Callable[[int, str], str] | None = None
        self._waited = False
        self._ending = threading.Lock()  # held for ever by who ends this process

    def start(self) -> "Team":
        """From now on the others are listened to."""
        for peer in self._peers:
            peer.link.settimeout(self._silence_s)
            threading.Thread(target=self._listen, args=(peer,), name="peer", daemon=True).start()
        if self.leads:
            threading.Thread(target=self._ping, name="pings", daemon=True).start()
        return self

    def share(self, value: Any = None) -> Any:
        if not self.leads:
            return decoded(self._peers[0].values.get())
        payload = encoded(value)
        for peer in self._peers:
            self._send(peer, payload)
        return value

    def gather(self, value: Any) -> list[Any]:
        if not self.leads:
            self._send(self._peers[0], encoded(value))
            return self.share()
        return self.share([value, *(decoded(peer.values.get()) for peer in self._peers)])

    def led(self, call: Callable[[], T]) -> T:
        if not self.leads:
            found = self.share()
            if "raised" in found:
                raise LedError(found["raised"])
            return found["returned"]
        try:
            result = call()
        except OSError as error:
            self.share({"raised": f"{type(error).__name__}: {error}"})
            raise
        self.share({"returned": result})
        return result

    def joined(self, arrays: "Mapping[str, np.ndarray]") -> "dict[str, np.ndarray]":
        import numpy as np  # the command line is read without it

        all_of_them = self.gather({k: np.asarray(x) for k, x in arrays.items()})
        return {k: np.concatenate([x[k] for x in all_of_them]) for k in arrays}

    def opened(self, ended: Callable[[int, str], str]) -> None:
        self._ended = ended

    def verdict(self, error: BaseException) -> None:
        known = isinstance(error, ConfigError) or (self.leads and isinstance(error, RunError))
        if not (known or self._waited):
            time.sleep(VERDICT_S)
            self._waited = True

    def end(self, code: int, words: str = "") -> None:
        """Returns only if no other process has ended this one before."""
        self._ending.acquire()
        self._tell(code, has_ended(self._name, code, words) if self.leads else words)
        if code == 0 and self.leads:
            deadline = time.monotonic() + FAREWELL_S
            for peer in self._peers:
                peer.gone.wait(max(0.0, deadline - time.monotonic()))

    def _tell(self, code: int, words: str) -> None:
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.link.settimeout(5.0)
                peer.send(END, json.dumps({"code": code, "words": words}).encode())

    def _send(self, peer: Peer, payload: bytes) -> None:
        try:
            peer.send(VALUE, payload)
        except OSError as error:
            self._lost(peer, error)
            threading.Event().wait()  # until this process is ended

    def _ping(self) -> None:
        while True:
            time.sleep(self._silence_s / 4)
            for peer in self._peers:
                with contextlib.suppress(OSError):  # whoever listens to it finds out
                    peer.send(PING)

    def _listen(self, peer: Peer) -> None:
        """In a thread: takes what one other process sends, until it is gone."""
        try:
            while True:
                kind, payload = received(peer.link)
                if kind == VALUE:
                    peer.values.put(payload)
                elif kind == PING and not self.leads:
                    peer.send(PING)
                elif kind == END:
                    self._told_of_end(peer, **json.loads(payload))
        except (OSError, EOFError) as error:
            peer.gone.set()
            if not peer.is_done:
                self._lost(peer, error)

    def _told_of_end(self, peer: Peer, code: int, words: str) -> None:
        if code == 0:
            peer.is_done = True
            return
        self._give_up(code, has_ended(peer.words, code, words) if self.leads else words)

    def _lost(self, peer: Peer, error: Exception) -> None:
        silent = isinstance(error, TimeoutError)
        how = f"nothing was heard of it for {self._silence_s:g} s" if silent else "its connection was closed"
        self._give_up(PEER_LOST, f"{peer.words} is lost: {how}")

    def _give_up(self, code: int, words: str) -> None:
        """Ends this process, and through process 0 all others. Returns only if it is ending already."""
        if not self._ending.acquire(blocking=False):
            return
        if self.leads:
            self._tell(code, words)
        more = ""
        with contextlib.suppress(Exception):  # nothing must keep this process
            more = self._ended(code, words) if self._ended else ""
        self._leave(code, words + more)


class LedError(OSError):
    """What has gone wrong in process 0."""


def has_ended(who: str, code: int, words: str) -> str:
    return f"{who} has ended with exit code {code}" + (f": {words}" if words else "")
