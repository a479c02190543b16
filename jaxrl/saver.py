"""When the state is saved, where, and what happens if that fails."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import saving
from jaxrl.config import Config
from jaxrl.exits import Diverged, WriteFailed
from jaxrl.programs import Programs
from jaxrl.schedule import Clock
from jaxrl.sinks import Sinks
from jaxrl.state import RunState
from jaxrl.stopwatch import Stopwatch
from jaxrl.stores import BEST, LATEST, PERIODIC, Stores

SLOW_S, HUNG_S = 60.0, 600.0  # longest waits for saves on their way: before the next one, at the end


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
            at = f"{state.counters.env_steps:,}"
            self.heed(SLOW_S)
            if last:  # even without its rows: better than to lose it all
                self.sinks.flush()
                if not any(self._begin(LATEST, state, reason) and self.heed(HUNG_S) for _ in range(2)):
                    raise WriteFailed(f"the last checkpoint, at step {at}, is not on disk; free disk space")
            elif self.stores.pending:
                self._failed(f"checkpoint at step {at}: skipped, since the one before is still being written")
            elif not self.sinks.flush():
                self._failed(f"checkpoint at step {at}: put off, since rows before it are not on disk")
            else:
                self._begin(LATEST, state, reason)

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
            self.heed(SLOW_S)
            self.sinks.flush()
            for store in [BEST] * best + [PERIODIC] * periodic:
                self._begin(store, state, "best" if store == BEST else "interval", score)

    def heed(self, seconds: float = 0.0) -> bool:
        """Tells what became of saves, waiting so long for those on their way. True if all are on disk."""
        outcomes = self.stores.poll(seconds)
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
            if outcome.remark:
                self.sinks.note(f"{what} is there, but {outcome.remark}")
        return not self.stores.pending and not any(outcome.failure for outcome in outcomes)

    def close(self) -> None:
        """Waits for saves that are on their way."""
        self.stores.close()

    def _is_best(self, score: float) -> bool:
        """Of two equal ones the newer is kept; what is no number is below every number."""
        best = self.stores.best_score
        return best is None or (-math.inf if math.isnan(score) else score) >= best

    def _begin(self, store: str, state: RunState, reason: str, score: float | None = None) -> bool:
        """False if it could not be begun."""
        state = state.replace(counters=state.counters.replace(wall_s=self.watch.total()), env=self.snapshot())
        arrays = saving.arrays(state, with_replay=store == LATEST and self.config.checkpoint.replay)
        facts = saving.facts(self.config, self.identity, state, arrays)
        facts |= {"reason": reason, "score": score if score is not None and math.isfinite(score) else None}
        if bad := [k for k, x in arrays[1].items() if x.dtype.kind == "f" and not np.isfinite(x).all()]:
            raise Diverged(f"step {state.counters.env_steps:,}: {bad[0]} is not finite, so it is not saved")
        finite = self._finite(arrays[0])
        try:
            self.stores.save(store, state.counters.env_steps, arrays, facts, finite)
        except Exception as error:  # whatever Orbax or the disk has against it
            self._failed(f"checkpoint {store}/{state.counters.env_steps}: {type(error).__name__}: {error}")
            return False
        return True

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
        self.sinks.note(f"{why}; the next one will be tried")
        if self.failures >= self.config.checkpoint.failures:
            raise WriteFailed(f"{why}; {self.failures} saves in a row have failed; free disk space")
