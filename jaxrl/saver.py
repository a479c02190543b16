"""When the state is saved, where, and what happens if that fails."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import saving
from jaxrl.config import Config
from jaxrl.exits import Diverged, WriteFailed
from jaxrl.programs import Programs
from jaxrl.schedule import Clock
from jaxrl.sinks import Sinks
from jaxrl.state import RunState
from jaxrl.stopwatch import Stopwatch
from jaxrl.stores import BEST, LATEST, PERIODIC, Stores


@dataclasses.dataclass(kw_only=True)
class Saver:
    """Saves of one run. The training waits only for the copy of its arrays, and at the end for the disk."""

    stores: Stores
    config: Config
    clock: Clock
    identity: dict[str, Any]  # for every manifest: id and lineage of the run
    programs: Programs
    sinks: Sinks
    watch: Stopwatch
    snapshot: Callable[[], Any]  # of the environments
    failures: int = 0  # in a row

    def save(self, state: RunState, reason: str) -> None:
        """The whole state, where the same command goes on. A save that fails is tried again at the next one.

        Args:
          reason: "interval", or at the end of the process "final" or "signal".

        Raises:
          WriteFailed: too many have failed in a row, or the last one twice.
          Diverged: an array is not finite. It does not become a checkpoint.
        """
        last = reason != "interval"
        with self.watch.phase("save"):
            self.heed()
            if self._rows_are_on_disk(state, tell=not last) or last:  # at the end, better than to lose it all
                self._begin(LATEST, state, reason)
            if last and not self.heed(wait=True):
                self._begin(LATEST, state, reason)
                if not self.heed(wait=True):
                    at = f"{state.counters.env_steps:,}"
                    raise WriteFailed(f"the last checkpoint, at step {at}, is not on disk; free disk space")

    def events(self, state: RunState, scalars: dict[str, float]) -> None:
        """Checkpoints that belong to a step: of the best evaluation so far, and those that stay.

        Args:
          state: the events of its step are settled.
          scalars: the row of this step.
        """
        score = scalars.get(self.config.checkpoint.best_metric)
        periodic = self.clock.lasting(state.counters.env_steps)
        best = score is not None and self._is_best(score)
        if not (periodic or best):
            return
        with self.watch.phase("save"):
            self.heed()
            if self._rows_are_on_disk(state):
                for store in [BEST] * best + [PERIODIC] * periodic:
                    self._begin(store, state, "best" if store == BEST else "interval", score)

    def heed(self, wait: bool = False) -> bool:
        """Tells what became of saves; with `wait`, of all that were begun. True if none has failed."""
        outcomes = self.stores.poll(wait)
        for outcome in outcomes:
            what = f"checkpoint {outcome.store}/{outcome.step}"
            if outcome.not_finite:
                raise Diverged(
                    f"{what}: {outcome.failure}, so it was not kept; start again from an older one with a "
                    "lower --opt.lr"
                )
            if outcome.failure:
                self._failed(f"{what}: {outcome.failure}")
            else:
                self.failures = 0
        return not any(outcome.failure for outcome in outcomes)

    def close(self) -> None:
        """Waits for saves that are on their way."""
        self.stores.close()

    def _is_best(self, score: float) -> bool:
        """Of two equal ones the newer is kept; what is no number is below every number."""
        best = self.stores.best_score
        return best is None or (-math.inf if math.isnan(score) else score) >= best

    def _rows_are_on_disk(self, state: RunState, tell: bool = True) -> bool:
        """A checkpoint must not know of rows that are not on disk."""
        there = self.sinks.flush()
        if tell and not there:
            at = f"{state.counters.env_steps:,}"
            self.sinks.note(f"checkpoint at step {at}: put off, since rows before it are not on disk")
        return there

    def _begin(self, store: str, state: RunState, reason: str, score: float | None = None) -> None:
        state = state.replace(counters=state.counters.replace(wall_s=self.watch.total()), env=self.snapshot())
        arrays = saving.arrays(state, with_replay=store == LATEST and self.config.checkpoint.replay)
        facts = saving.facts(self.config, self.identity, state, arrays)
        facts |= {"reason": reason, "score": score if score is not None and math.isfinite(score) else None}
        finite = self._finite(arrays[0])
        try:
            self.stores.save(store, state.counters.env_steps, arrays, facts, finite)
        except Exception as error:  # whatever Orbax or the disk has against it
            self._failed(f"checkpoint {store}/{state.counters.env_steps}: {type(error).__name__}: {error}")

    def _finite(self, arrays: dict[str, jax.Array]) -> tuple[list[str], jax.Array]:
        """Names, and on the device whether their numbers are finite. Sums of metrics may be anything."""
        judged = {
            k: x
            for k, x in sorted(arrays.items())
            if jnp.issubdtype(x.dtype, jnp.floating) and not k.startswith("totals")
        }
        return list(judged), self.programs.finite(judged)

    def _failed(self, why: str) -> None:
        self.failures += 1
        self.sinks.note(f"{why}; will try again")
        if self.failures >= self.config.checkpoint.failures:
            raise WriteFailed(f"{why}; {self.failures} saves in a row have failed; free disk space")
