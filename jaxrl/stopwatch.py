"""Where the time goes, without waiting for anything that would not be waited for anyway."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

from jaxrl.layout import fetched

T = TypeVar("T")


class Stopwatch:
    """Seconds by phase on the host's clock.

    Work on a device is only enqueued, so its time shows where the loop next needs a result: the wait for
    an action counts as "update" if updates were enqueued before it, else as "policy". Where the environments
    are on the device, too, all of it is one wait, "device".
    """

    def __init__(self, before_s: float = 0.0):
        """`before_s`: seconds of training before a resume."""
        self._start = time.monotonic() - before_s
        self._phases: dict[str, float] = {}
        self._lap = time.monotonic()
        self._at = (0, 0)
        self._learning = False
        self._once: dict[str, float] = {}

    def begin(self, env_steps: int, updates: int, compile_s: float) -> None:
        """Starts the first lap; the seconds of compilation are told once, apart from the rates."""
        self._lap, self._at = time.monotonic(), (env_steps, updates)
        self._once = {"time/compile_s": compile_s}

    def total(self) -> float:
        return time.monotonic() - self._start

    def learning(self) -> None:
        """Updates were enqueued."""
        self._learning = True

    def fetch(self, array: jax.Array) -> Any:
        """The array on the host; of one that is divided over processes, this one's part."""
        return self.wait(self.awaited(), lambda: fetched(array))

    def awaited(self) -> str:
        """The phase that the wait for the next actions counts as."""
        name = "update" if self._learning else "policy"
        self._learning = False
        return name

    def wait(self, name: str, call: Callable[[], T]) -> T:
        """Calls, and counts the time as that of a phase."""
        start = time.monotonic()
        result = call()
        self.spent(name, time.monotonic() - start)
        return result

    def spent(self, name: str, seconds: float) -> None:
        """Counts time that somebody else has measured."""
        self._phases[name] = self._phases.get(name, 0.0) + seconds

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.spent(name, time.monotonic() - start)

    def lap(self, env_steps: int, updates: int) -> dict[str, float]:
        """Seconds by phase and rates since the last lap; evaluation and saving do not slow a rate down."""
        seconds = time.monotonic() - self._lap
        phases = dict.fromkeys(("env", "policy", "update", "eval", "save"), 0.0) | self._phases
        train = max(1e-9, seconds - phases["eval"] - phases["save"])
        scalars = self._once | {f"time/{name}_s": spent for name, spent in phases.items()}
        scalars["time/other_s"] = max(0.0, seconds - sum(phases.values()))
        if env_steps > self._at[0]:
            scalars["fps/env_steps"] = (env_steps - self._at[0]) / train
            scalars["fps/updates"] = (updates - self._at[1]) / train
        self._phases, self._once = {}, {}
        self._lap, self._at = time.monotonic(), (env_steps, updates)
        return scalars
