"""The three stores of a run's checkpoints, and the thread that makes checkpoints of written arrays.

    checkpoints/latest/<step>     the whole state; the newest `checkpoint.keep`
    checkpoints/best/<step>       without replay; the one with the highest score
    checkpoints/periodic/<step>   without replay; every `checkpoint.periodic_every` env_steps

Arrays are written in the background into a folder that is renamed when it is complete. The keeper, a thread,
then refuses numbers that are not finite, adds the manifest (only now it is a checkpoint), logs it, and
removes what is not kept any longer: in this order, so that the process may die anywhere and nothing is lost.
A step that is saved again, by a run that went on from an older one, gets the name <step>.2 and so on.

A run that goes back to an older step takes back what it did after it. Checkpoints of those steps are renamed
to <step>.undone, for they are of another history; each is removed when this one has come by its step, or has
a best that is as good.
"""

import contextlib
import dataclasses
import pathlib
import queue
import shutil
import threading
import time
from collections.abc import Container, Iterator
from typing import Any

import jax
import numpy as np

from jaxrl import checkpoint, manifest
from jaxrl.exits import NoCheckpoint, WriteFailed
from jaxrl.faults import Faults
from jaxrl.hosts import ALONE, Alone
from jaxrl.rundir import unused
from jaxrl.stores.log import Log, entry, place
from jaxrl.stores.shelf import (
    BEST,
    LATEST,
    PERIODIC,
    STORES,
    Checkpoint,
    Rank,
    by_worth,
    checkpoints,
    find,
    folders,
    intact,
    is_outdone,
    numbers,
    rank_of,
    search,
    set_aside,
    shown,
    told,
    undone,
)

__all__ = [
    "BEST",
    "LATEST",
    "PERIODIC",
    "STORES",
    "Checkpoint",
    "Outcome",
    "Rank",
    "Stores",
    "find",
    "rank_of",
]
LOG, ROWS = "checkpoint_log.jsonl", ("metrics.jsonl", "scores.jsonl")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a save."""

    store: str
    step: int
    failure: str | None = None  # one line; None if it is a checkpoint now
    not_finite: tuple[str, ...] = ()  # the arrays that were not, which is why it is none
    remark: str | None = None  # it is a checkpoint, but this went wrong after that
    folder: pathlib.Path | None = None  # of the checkpoint
    entry: dict[str, Any] = dataclasses.field(default_factory=dict)  # its line of the log, once it is there


@dataclasses.dataclass(frozen=True)
class Save:
    """A save on its way."""

    folder: pathlib.Path
    response: checkpoint.Response
    facts: dict[str, Any]
    finite: tuple[list[str], jax.Array] | None
    began: float  # time.monotonic


class Stores:
    """The stores of one run, for the process that has locked its directory. One thread calls the methods.

    Where several processes share the run, each has one, and all of them call its methods at the same time.
    Each writes its part of the arrays; all else is done by process 0, which tells the others what it finds.
    """

    def __init__(
        self, run: pathlib.Path, keep: int, periodic_keep: int, faults: Faults, hosts: Alone = ALONE
    ):
        self._run, self._faults, self._hosts = run, faults, hosts
        self._parts: list[checkpoint.Response] = []  # that another process than process 0 is writing
        self._keep = {LATEST: keep, BEST: 1, PERIODIC: periodic_keep}
        self._log = Log(run / LOG)
        self._saves: queue.SimpleQueue[Save | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._pending = 0  # saves whose outcome was not taken yet
        self._newest: dict[str, int] = {}  # step that was begun last, by store
        self._thread: threading.Thread | None = None
        self.best: Rank | None = None  # of the best; None: there is none

    def recover(self, limit: int | None = None) -> tuple[Checkpoint | None, list[str]]:
        """The checkpoint to go on from, None in a new run; and lines about what was set aside.

        With `limit` one of at most that many env_steps: what came after it is undone.

        Half-written folders are removed, damaged and undone checkpoints renamed, the log completed.

        Raises:
          NoCheckpoint: if there were checkpoints and none of them is intact. Nothing is touched then.
        """
        if not self._hosts.leads:
            at, told, remarks = self._hosts.share()
            self._tell()
            return Checkpoint(pathlib.Path(at), told) if at else None, remarks
        found, remarks = self._recovered(limit)
        self._hosts.share([str(found.folder), found.manifest, remarks] if found else ["", {}, remarks])
        self._tell()
        return found, remarks

    def _tell(self) -> None:
        """What everybody must know of the stores: saves on their way, the rank of the best."""
        best = dataclasses.asdict(self.best) if self.best else None
        self._pending, best = self._hosts.share([self._pending, best])
        if not self._hosts.leads:
            self.best = Rank(tuple(best["names"]), tuple(best["values"])) if best else None

    def _recovered(self, limit: int | None) -> tuple[Checkpoint | None, list[str]]:
        root, saved = self._run / "checkpoints", self._log.saved()
        self._newest.clear()
        found, damaged = search(self._run, limit=limit)
        missing = [root / name for name in sorted(saved) if not (root / name / manifest.NAME).exists()]
        damaged |= dict.fromkeys(missing, "its manifest is missing")
        damaged |= dict(self._damaged_others(damaged))
        if found is None and damaged:
            folder, why = next(iter(damaged.items()))
            raise NoCheckpoint(
                f"{folder}: {why}; no intact checkpoint is left in {self._run}; restore one from a copy, or "
                "choose another logdir"
            )
        for folder, why in damaged.items():
            if folder.exists():
                set_aside(folder, "damaged")
            self._log.add({"event": "quarantined", **place(folder), "why": why})
        remarks = told(damaged, found) + (self._undo(found.step) if found else [])
        self._tidy(self._log.saved())
        if found and found.manifest["counters"].get("settled", found.step) == found.step:
            self._newest[found.store] = found.step  # nothing that it lacks can happen at its step
        self.best = self._stored_best()
        return found, remarks

    def steps(self, limit: int | None = None) -> set[int]:
        """Steps of which there is a whole state; with `limit`, of at most so many env_steps."""
        there = (x.step for x in checkpoints(self._run / "checkpoints" / LATEST))
        return {step for step in there if limit is None or step <= limit}

    def _undo(self, step: int) -> list[str]:
        """Sets aside the checkpoints of a future that does not come: those beyond where the run goes on."""
        gone = []
        for store in STORES:
            home = self._run / "checkpoints" / store
            beyond = (x.folder for x in checkpoints(home) if x.step > step)
            for folder in sorted(beyond, key=numbers):
                self._log.add({"event": "undone", **place(folder), "why": f"the run went back to {step}"})
                set_aside(folder, "undone")
                gone.append(shown(folder))
        what = f"{', '.join(gone)}: beyond step {step:,}, which the run goes back to, so renamed to .undone"
        return [what] if gone else []

    def _damaged_others(self, known: Container[pathlib.Path]) -> Iterator[tuple[pathlib.Path, str]]:
        """The best and the newest lasting checkpoint, if damaged: nobody else looks before they are used."""
        for store in (BEST, PERIODIC):
            for made in by_worth(store, checkpoints(self._run / "checkpoints" / store))[-1:]:
                if made.folder not in known:
                    try:
                        intact(made.folder)
                    except manifest.Damaged as error:
                        yield made.folder, str(error)

    def _tidy(self, logged: set[str]) -> None:
        """Removes what a dead process has left half done, and logs what it had no time to log."""
        for store in STORES:
            home = self._run / "checkpoints" / store
            for path in [*home.glob(f"*{checkpoint.UNFINISHED}*"), *home.glob("*.removed")]:
                shutil.rmtree(path, ignore_errors=True)
            for path in list(folders(home)):
                if not (path / manifest.NAME).exists():
                    shutil.rmtree(path, ignore_errors=True)
            for made in checkpoints(home):
                if f"{store}/{made.folder.name}" not in logged:
                    self._log.add(entry(made, None))
            self._prune(store)

    def save(
        self,
        store: str,
        step: int,
        arrays: tuple[dict[str, jax.Array], dict[str, np.ndarray]],
        facts: dict[str, Any],
        finite: tuple[list[str], jax.Array] | None = None,
    ) -> bool:
        """Begins to save; the arrays may be donated as soon as this returns.

        Args:
          step: env_steps, its name.
          arrays: by name, on devices and on the host.
          facts: for the manifest; its rank decides which is best.
          finite: names, and on a device for each of them whether all of its numbers are finite.

        Returns:
          False if this step is the last that was saved in this store.

        Raises:
          OSError and whatever else keeps Orbax from beginning.
        """
        began, at = time.monotonic(), self._hosts.led(lambda: self._room(store, step))
        if not at:
            return False
        folder = pathlib.Path(at)
        response = self._begun(folder, arrays)
        if not self._hosts.leads:
            self._parts = [*self._parts[-len(STORES) :], response]
            self._tell()
            return True
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="keeper", daemon=True)
            self._thread.start()
        self._newest[store] = step
        if store == BEST:
            self.best = rank_of(facts)
        self._pending += 1
        self._saves.put(Save(folder, response, facts | {"store": store, "step": step}, finite, began))
        self._tell()
        return True

    def _room(self, store: str, step: int) -> str:
        """The folder of a new checkpoint; "" if this step is the last that was saved in this store."""
        if self._newest.get(store) == step:
            return ""
        folder = unused(self._run / "checkpoints" / store / str(step), ".")
        folder.parent.mkdir(parents=True, exist_ok=True)
        return str(folder)

    def _begun(
        self, folder: pathlib.Path, arrays: tuple[dict[str, jax.Array], dict[str, np.ndarray]]
    ) -> checkpoint.Response:
        """Begins to write the arrays.

        Raises:
          WriteFailed: one of several processes cannot, and the others wait for it inside of Orbax.
        """
        try:
            self._faults.at("save")
            return checkpoint.begin(folder, *arrays)
        except BaseException as error:
            checkpoint.discard(folder)
            if self._hosts.count == 1:
                raise
            why = checkpoint.reason(error)
            raise WriteFailed(f"{folder}: process {self._hosts.index} cannot write: {why}") from error

    @property
    def pending(self) -> int:
        """Saves on their way."""
        return self._pending

    def poll(self, seconds: float = 0.0) -> list[Outcome]:
        """What became of saves since the last call, waiting at most so long for those on their way."""
        if not self._hosts.leads:
            found = [Outcome(**told) for told in self._hosts.share()]
            self._tell()
            return found
        found = self._taken(seconds)
        self._hosts.share([dataclasses.asdict(x) | {"folder": None, "entry": {}} for x in found])
        self._tell()
        return found

    def _taken(self, seconds: float) -> list[Outcome]:
        found, end = [], time.monotonic() + seconds
        while self._pending:
            try:
                left = end - time.monotonic()
                outcome = self._outcomes.get(left > 0, left if left > 0 else None)
            except queue.Empty:
                break
            self._pending -= 1
            if outcome.failure and self._newest.get(outcome.store) == outcome.step:
                del self._newest[outcome.store]
            if outcome.failure and outcome.store == BEST:
                self.best = self._stored_best()
            found.append(outcome)
        return found

    def close(self, seconds: float = 600.0) -> None:
        """Waits for what was begun, at most so long: a disk may hang."""
        for part in self._parts:
            with contextlib.suppress(Exception):  # process 0 tells what became of it
                part.result()
        if self._thread is not None:
            self._saves.put(None)
            self._thread.join(seconds)
            self._thread = None

    def _stored_best(self) -> Rank | None:
        kept = by_worth(BEST, checkpoints(self._run / "checkpoints" / BEST))
        return kept[-1].rank if kept else None

    # The keeper.

    def _work(self) -> None:
        while (save := self._saves.get()) is not None:
            store, step = save.facts["store"], save.facts["step"]
            made = None
            try:
                made = self._commit(save)
                line = self._record(made, round(time.monotonic() - save.began, 3))
                outcome = Outcome(store, step, folder=made.folder, entry=line)
            except Refused as error:
                outcome = Outcome(store, step, f"{error.args[0]} is not finite", not_finite=error.args)
            except BaseException as error:  # SystemExit too: nobody would hear of a keeper that has ended
                why = checkpoint.reason(error)
                # From its manifest on it is a checkpoint; the next start does what was left undone.
                outcome = Outcome(store, step, remark=why) if made else Outcome(store, step, why)
            if outcome.failure:
                checkpoint.discard(save.folder)
            self._outcomes.put(outcome)

    def _commit(self, save: Save) -> Checkpoint:
        save.response.result()
        if save.finite:
            names, finite = save.finite
            if bad := [name for name, good in zip(names, np.asarray(finite), strict=True) if not good]:
                raise Refused(*bad)
        self._faults.at("commit")
        for name in ROWS:  # which it counts on, after a power cut, too
            if (self._run / name).exists():
                manifest.sync(self._run / name)
        return Checkpoint(save.folder, manifest.write(save.folder, save.facts))

    def _record(self, made: Checkpoint, seconds: float) -> dict[str, Any]:
        """Logs a new checkpoint, and removes what it replaces. Returns the line."""
        self._faults.at("manifest")
        line = entry(made, seconds)
        self._log.add(line)
        self._prune(made.store, made)
        return line

    def _prune(self, store: str, made: Checkpoint | None = None) -> None:
        """Removes checkpoints that are not kept. The log says so first, the manifest goes next.

        Args:
          made: has just been saved. It goes only where a better one is there.
        """
        home = self._run / "checkpoints" / store
        there = by_worth(store, checkpoints(home))
        again = {x.step: x for x in sorted(there, key=lambda x: numbers(x.folder))}
        kept = [x for x in there if again[x.step] is x]  # of a step that was saved again, the newer one
        kept = kept[-self._keep[store] :]  # all, if it is 0
        if made and store != BEST:
            kept += [x for x in there if x.folder == made.folder and x not in kept]
        others = list(undone(home))
        outdone = [x for x in others if is_outdone(x, kept, others)]
        for old in (*(x for x in there if x not in kept), *outdone):
            self._log.add({"event": "removed", **place(old.folder)})
            gone = old.folder.with_name(old.folder.name + ".removed")
            old.folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


class Refused(Exception):
    """A save that must not become a checkpoint; the names of the arrays that are why."""
