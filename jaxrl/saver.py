"""When the state is saved, where, and what happens if that fails."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import glossary, saving
from jaxrl.config import Config, ConfigError, nearest, show
from jaxrl.exits import Diverged, RunError, WriteFailed
from jaxrl.faults import Faults
from jaxrl.hosts import ALONE, Alone
from jaxrl.layout import fetched
from jaxrl.nans import Reports
from jaxrl.programs import Programs
from jaxrl.rundir import RunDir
from jaxrl.schedule import Clock
from jaxrl.sinks import Saved, Sinks
from jaxrl.state import RunState
from jaxrl.stopwatch import Stopwatch
from jaxrl.stores import BEST, LATEST, PERIODIC, Checkpoint, Rank, Stores, rank_of

SLOW_S, HUNG_S = 60.0, 600.0  # longest waits for saves on their way: before the next one, at the end
EVALUATION = "eval_episode/"
SCORE, SUCCESS = EVALUATION + "avg_score", EVALUATION + "success_rate"


@dataclasses.dataclass(frozen=True)
class Draft:
    """What is to become a checkpoint."""

    store: str
    step: int  # env_steps
    on_device: dict[str, Any]  # arrays by name; copies on the host where it is to be tried again
    on_host: dict[str, np.ndarray]
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.store}/{self.step}"


@dataclasses.dataclass(kw_only=True)
class Saver:
    """Saves of one run. The training waits only for the copy of its arrays, and at the end for the disk.

    A whole state that cannot be saved is replaced by the next one. The best and the lasting checkpoints
    belong to their step: a copy of their arrays is kept until they are on the disk.
    """

    stores: Stores
    config: Config
    clock: Clock
    identity: dict[str, Any]  # for every manifest: id and lineage of the run
    programs: Programs
    sinks: Sinks
    watch: Stopwatch
    snapshot: Callable[[], Any]  # of the environments
    hosts: Alone = ALONE  # the processes of the run
    joined: saving.Join = dict  # makes arrays of this process's environments those of all
    reports: Reports | None = None  # of numbers that are not finite
    failures: int = 0  # in a row
    drafts: dict[str, Draft] = dataclasses.field(default_factory=dict)  # by store, but for the latest
    waiting: set[str] = dataclasses.field(default_factory=set)  # stores whose draft is to be tried again
    warned: bool = False  # of a metric that no evaluation has

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
                if not any(self._begin(state, reason) and self.heed(HUNG_S) for _ in range(2)):
                    raise WriteFailed(f"the last checkpoint, at step {at}, is not on disk; free disk space")
                self._last_try()
            elif self.stores.pending:
                self._failed(f"checkpoint at step {at}: skipped, since the one before is still being written")
            elif not self._rows_are_safe():
                self._failed(f"checkpoint at step {at}: put off, since rows before it are not on disk")
            else:
                self._begin(state, reason)
                self._try_again()

    def begin(self, state: RunState, reason: str) -> None:
        """Begins the last save, which `save` then waits for: several runs of a process save side by side."""
        with self.watch.phase("save"):
            self.heed(SLOW_S)
            self.sinks.flush()
            self._begin(state, reason)

    def events(self, state: RunState, scalars: dict[str, float]) -> None:
        """Checkpoints that belong to a step: of the best evaluation so far, and those that stay.

        Args:
          state: the events of its step are settled.
          scalars: the row of this step.
        """
        self.heed()
        rank = self._rank(scalars)
        periodic = self.clock.lasting(state.counters.env_steps)
        best = rank is not None and self._is_best(rank)
        if not (periodic or best):
            return
        with self.watch.phase("save"):
            self.heed(SLOW_S)
            why = "" if self._rows_are_safe() else "rows before it are not on disk"
            why = "the one before is still being written" if self.stores.pending else why
            for store in [BEST] * best + [PERIODIC] * periodic:
                draft = self._draft(store, state, "best" if store == BEST else "interval", rank)
                self._keep(draft)
                if why:
                    self.waiting.add(store)
                    self._failed(f"checkpoint {draft.name}: put off, since {why}", "it")
                else:
                    self._write(draft)
            if not why:
                self._try_again()

    def heed(self, seconds: float = 0.0) -> bool:
        """Tells what became of saves, waiting so long for those on their way. True if all are on disk."""
        outcomes = self.stores.poll(seconds)
        for outcome in outcomes:
            what = f"checkpoint {outcome.store}/{outcome.step}"
            if outcome.not_finite:
                raise self._refused(what, outcome.step, list(outcome.not_finite))
            draft = self.drafts.get(outcome.store)
            mine = draft is not None and draft.step == outcome.step
            if outcome.failure:
                self.waiting |= {outcome.store} if mine else set()
                self._failed(f"{what}: {outcome.failure}", "it" if mine else "the next one")
            else:
                self.failures = 0
                if mine:
                    del self.drafts[outcome.store]
                if outcome.folder:
                    self.sinks.post(Saved(outcome.folder, outcome.entry))
            if outcome.remark:
                self.sinks.note(f"{what} is there, but {outcome.remark}")
        return not self.stores.pending and not any(outcome.failure for outcome in outcomes)

    def _rows_are_safe(self) -> bool:
        return self.hosts.share(self.sinks.flush())

    def close(self) -> None:
        """Waits for saves that are on their way."""
        self.stores.close()

    def _rank(self, scalars: Mapping[str, float]) -> Rank | None:
        """What the best checkpoint is judged by: success first, where the score is what counts."""
        metric = self.config.checkpoint.best_metric
        if metric in scalars:
            return Rank.of(scalars, [SUCCESS, SCORE] if metric == SCORE and SUCCESS in scalars else [metric])
        may_come = glossary.find(metric) is not None and not metric.startswith(EVALUATION)
        if not (self.warned or may_come) and any(name.startswith(EVALUATION) for name in scalars):
            self.warned = True
            remedy = nearest(metric, scalars, otherwise=f"for example {SCORE}")
            self.sinks.note(
                f"checkpoint.best_metric={show(metric)}: this evaluation does not have it, so no best "
                f"checkpoint is kept; {remedy}"
            )
        return None

    def _is_best(self, rank: Rank) -> bool:
        draft = self.drafts.get(BEST)
        best = rank_of(draft.facts) if draft else self.stores.best
        if best and best.names != rank.names:
            old, new = " and ".join(best.names), " and ".join(rank.names)
            self.sinks.note(
                f"the best checkpoint was the best by {old}; from here on it is the best by {new}"
            )
        return rank.beats(best)

    def _begin(self, state: RunState, reason: str) -> bool:
        """Of the whole state. False if it could not be begun."""
        return self._write(self._draft(LATEST, state, reason))

    def _draft(self, store: str, state: RunState, reason: str, rank: Rank | None = None) -> Draft:
        """Raises Diverged if an array on the host is not finite."""
        state = state.replace(counters=state.counters.replace(wall_s=self.watch.total()), env=self.snapshot())
        with_replay = store == LATEST and self.config.checkpoint.replay
        arrays = saving.arrays(state, with_replay, self.joined)
        facts = saving.facts(self.config, self.identity, state, arrays)
        score = rank.values[-1] if rank else -math.inf
        facts |= {"reason": reason, "score": score if math.isfinite(score) else None}
        facts["rank"] = rank.plain() if rank else []
        at = state.counters.env_steps
        if bad := [k for k, x in arrays[1].items() if x.dtype.kind == "f" and not np.isfinite(x).all()]:
            raise self._refused(f"checkpoint {store}/{at}", at, bad)
        return Draft(store, at, *arrays, facts)

    def _keep(self, draft: Draft) -> None:
        """For another try. On a CPU the copy is made by whoever overwrites the arrays."""
        old = self.drafts.get(draft.store)
        if old and draft.store == PERIODIC:
            self.sinks.note(f"checkpoint {old.name} will not be tried again: {draft.name} is due")
        self.drafts[draft.store] = dataclasses.replace(draft, on_device=fetched(draft.on_device))
        self.waiting.discard(draft.store)

    def _write(self, draft: Draft) -> bool:
        """False if it could not be begun."""
        finite = self._finite(draft.on_device)
        try:
            arrays = (draft.on_device, draft.on_host)
            if not self.stores.save(draft.store, draft.step, arrays, draft.facts, finite):
                self.drafts.pop(draft.store, None)  # it is there already
        except RunError:
            raise
        except Exception as error:  # whatever Orbax or the disk has against it
            kept = draft.store in self.drafts
            self.waiting |= {draft.store} if kept else set()
            what = f"checkpoint {draft.name}: {type(error).__name__}: {error}"
            self._failed(what, "it" if kept else "the next one")
            return False
        return True

    def _try_again(self) -> None:
        """Whenever something is saved: the best and the lasting checkpoint that have failed before."""
        for store in sorted(self.waiting):
            self.waiting.discard(store)
            draft = self.drafts[store]
            self._write(dataclasses.replace(draft, on_device=self.programs.put_named(draft.on_device)))

    def _last_try(self) -> None:
        """Raises WriteFailed if one of them cannot be written."""
        if self.waiting:
            self._try_again()
            self.heed(HUNG_S)
        if self.waiting:
            lost = " and ".join(self.drafts[store].name for store in sorted(self.waiting))
            raise WriteFailed(f"checkpoint {lost} is not on disk, only the last state is; free disk space")

    def _refused(self, what: str, step: int, bad: list[str]) -> Diverged:
        """What to raise for a save with numbers that are not finite, once it is written down."""
        where = self.reports.refused(what, step, bad) if self.reports else ""
        text = f"{what}: {bad[0]} is not finite, so it was not kept{where}"
        return Diverged(f"{text}; start again from an older one with a lower --opt.lr")

    def _finite(self, arrays: dict[str, jax.Array]) -> tuple[list[str], jax.Array]:
        """Names, and on the device whether their numbers are finite. Sums of metrics may be anything."""
        judged = {
            k: x
            for k, x in sorted(arrays.items())
            if jnp.issubdtype(x.dtype, jnp.floating) and not k.startswith("totals")
        }
        return list(judged), self.programs.finite(judged)

    def _failed(self, why: str, remedy: str = "the next one") -> None:
        self.failures += 1
        self.sinks.note(f"{why}; {remedy} will be tried" + " again" * (remedy == "it"))
        if self.failures >= self.config.checkpoint.failures:
            raise WriteFailed(f"{why}; {self.failures} saves in a row have failed; free disk space")


@contextlib.contextmanager
def opened_stores(run_dir: RunDir, config: Config, faults: Faults, hosts: Alone) -> Iterator[Stores | None]:
    """The stores of a run; None if nothing is to be saved. Raises ConfigError where something was."""
    if not config.checkpoint.enabled:
        folder = run_dir.path / "checkpoints"
        if folder.is_dir() and any(folder.glob("*/*")):
            raise ConfigError(
                f"checkpoint.enabled=false: {run_dir.path} has checkpoints that a run there continues from; "
                "choose another logdir"
            )
        yield None
        return
    settings = config.checkpoint
    stores = Stores(run_dir.path, settings.keep, settings.periodic_keep, faults, hosts)
    with contextlib.closing(stores):
        yield stores


def recovered(stores: Stores, limit: int | None = None) -> tuple[Checkpoint | None, list[str]]:
    """As `Stores.recover`. Raises WriteFailed where the disk has something against it."""
    try:
        return stores.recover(limit)
    except OSError as error:
        raise WriteFailed(f"{error.filename or 'checkpoints/'}: {error.strerror or error}") from error
