"""Which folders of a run are checkpoints, and which of them is the one to go on from."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxrl import manifest
from jaxrl.exits import NoCheckpoint
from jaxrl.rundir import unused

LATEST, BEST, PERIODIC = STORES = ("latest", "best", "periodic")
NAME = re.compile(r"(\d{1,15})(?:\.(\d{1,6}))?")
UNDONE = re.compile(r"\.undone\d*$")  # behind the name of one whose step the run has taken back


@dataclasses.dataclass(frozen=True)
class Rank:
    """How good an evaluation was: of two, the first value that differs decides."""

    names: tuple[str, ...]  # of the metrics
    values: tuple[float, ...]  # minus infinity for what is no number

    @classmethod
    def of(cls, scalars: Mapping[str, float], names: Sequence[str]) -> "Rank":
        values = [float(scalars[name]) for name in names]
        return cls(tuple(names), tuple(-math.inf if math.isnan(x) else x for x in values))

    def beats(self, other: "Rank | None") -> bool:
        """Of two equal ones the newer is the better; what other metrics say is not compared with."""
        return other is None or self.names != other.names or self.values >= other.values

    def plain(self) -> list[tuple[str, float | None]]:
        """For a manifest."""
        found = zip(self.names, self.values, strict=True)
        return [(name, x if math.isfinite(x) else None) for name, x in found]


def rank_of(facts: Mapping[str, Any]) -> Rank:
    """What a manifest says of the evaluation at its step; minus infinity if there was none."""
    pairs = facts.get("rank")
    if pairs is None:  # an earlier version kept one number
        pairs = [(facts.get("config", {}).get("checkpoint.best_metric", ""), facts["score"])]
    return Rank(tuple(k for k, _ in pairs), tuple(-math.inf if x is None else x for _, x in pairs))


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A folder with a manifest."""

    folder: pathlib.Path
    manifest: dict[str, Any]
    remarks: tuple[str, ...] = ()  # newer ones that were passed over, a line each

    @property
    def step(self) -> int:
        return self.manifest["step"]

    @property
    def store(self) -> str:
        return self.manifest["store"]

    @property
    def score(self) -> float:
        """Of the evaluation at its step; minus infinity if there was none, or it was no number."""
        score = self.manifest["score"]
        return -math.inf if score is None else score

    @property
    def rank(self) -> Rank:
        return rank_of(self.manifest)


Check = Callable[[pathlib.Path], Checkpoint]  # of a folder; raises manifest.Damaged or TooNew


def by_worth(store: str, there: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Checkpoints of a store, the one that is kept longest last.

    Of the best, those that were judged by the metrics that are in use now, as the newest one tells.
    """
    there = sorted(there, key=lambda x: numbers(x.folder))
    if store != BEST or not there:
        return there
    names = there[-1].rank.names
    return sorted(there, key=lambda x: (x.rank.names == names, x.rank.values, numbers(x.folder)))


def numbers(folder: pathlib.Path) -> tuple[int, int]:
    """(step, how many times it was saved) of a checkpoint's name."""
    found = NAME.fullmatch(UNDONE.sub("", folder.name))
    assert found
    return int(found[1]), int(found[2] or 1)


def is_name(name: str) -> bool:
    """Whether a folder in a store is a checkpoint, or was one until its step was undone."""
    return bool(NAME.fullmatch(UNDONE.sub("", name)))


def folders(store: pathlib.Path) -> Iterator[pathlib.Path]:
    """Folders with the name of a checkpoint."""
    if store.is_dir():
        yield from (path for path in store.iterdir() if NAME.fullmatch(path.name) and path.is_dir())


def is_store(path: pathlib.Path) -> bool:
    return path.name in STORES and path.parent.name == "checkpoints"


def shown(folder: pathlib.Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def told(damaged: dict[pathlib.Path, str], found: Checkpoint | None) -> list[str]:
    """Lines about checkpoints that are damaged, and what is used instead."""
    instead = f"; using {shown(found.folder)}" if found else ""
    if found and found.store != LATEST:
        instead += ", which has no replay"
    return [f"checkpoint {x.parent.name}/{x.name} is damaged: {why}{instead}" for x, why in damaged.items()]


def checkpoints(store: pathlib.Path) -> Iterator[Checkpoint]:
    """Those of a store whose manifest is intact; the other files are not looked at."""
    for folder in folders(store):
        try:
            yield Checkpoint(folder, manifest.read(folder))
        except (manifest.Damaged, manifest.TooNew):
            continue


def undone(store: pathlib.Path) -> Iterator[Checkpoint]:
    """Those of a store that belong to no history any more."""
    for folder in store.glob("*.undone*"):
        try:
            if is_name(folder.name):
                yield Checkpoint(folder, manifest.read(folder))
        except (manifest.Damaged, manifest.TooNew):
            continue


def is_outdone(old: Checkpoint, there: Iterable[Checkpoint], others: Iterable[Checkpoint]) -> bool:
    """Whether nobody can want an undone checkpoint any more.

    The run has come by again, or of the best has done as well again; or another undone best was better.

    Args:
      there: of its store, of this history.
      others: of its store, undone.
    """
    if old.store != BEST:
        return any(x.step == old.step for x in there)
    rivals = [*there, *(x for x in others if (x.rank.values, x.folder) > (old.rank.values, old.folder))]
    return any(x.rank.names == old.rank.names and x.rank.beats(old.rank) for x in rivals)


def intact(folder: pathlib.Path, but: Container[str] = ()) -> Checkpoint:
    """The checkpoint of a folder, every byte of it compared, but for some files. Raises Damaged or TooNew."""
    told = manifest.verify(folder, but)
    if told.get("step") != numbers(folder)[0]:
        raise manifest.Damaged(f"{manifest.NAME} is that of step {told.get('step')}")
    return Checkpoint(folder, told)


def set_aside(folder: pathlib.Path, why: str) -> pathlib.Path:
    """Renames a checkpoint that is "damaged" or "undone", so that nothing takes it for one."""
    return folder.rename(unused(folder.with_name(f"{folder.name}.{why}"), ""))


def search(
    run: pathlib.Path, stores: Sequence[str] = STORES, check: Check = intact, limit: int | None = None
) -> tuple[Checkpoint | None, dict[pathlib.Path, str]]:
    """The newest intact checkpoint of a run, and those before it in line that are damaged, with why.

    With `limit`, of at most so many env_steps. First those with the whole state; only if none of them is
    left, the newest of the others.

    Raises:
      NoCheckpoint: if one has a newer format.
    """
    root = run / "checkpoints"
    found = [folder for store in stores for folder in folders(root / store)]
    found = [folder for folder in found if limit is None or numbers(folder)[0] <= limit]
    damaged = {}
    for folder in sorted(found, key=lambda x: (x.parent.name == LATEST, numbers(x)), reverse=True):
        if not (folder / manifest.NAME).exists():
            continue  # not finished, or logged and then found missing by whoever keeps the log
        try:
            return check(folder), damaged
        except manifest.Damaged as error:
            damaged[folder] = str(error)
        except manifest.TooNew as error:
            raise NoCheckpoint(str(error)) from error
    return None, damaged


def find(path: pathlib.Path, check: Check = intact) -> Checkpoint:
    """The newest intact checkpoint of a run directory or of one of its stores, or the checkpoint itself.

    Nothing is touched: the run may be that of another process. `check` may look at less than every byte.

    Raises:
      NoCheckpoint: if there is none, or the one that is named is damaged.
    """
    path = path.expanduser().resolve()
    if is_name(path.name) and is_store(path.parent) and path.is_dir():
        try:
            return check(path)
        except (manifest.Damaged, manifest.TooNew, OSError) as error:
            raise NoCheckpoint(f"{path}: {error}; name another checkpoint, or the run directory") from error
    run, stores = (path.parent.parent, [path.name]) if is_store(path) else (path, STORES)
    found, damaged = search(run, stores, check)
    if found is None and damaged:
        folder, why = next(iter(damaged.items()))
        raise NoCheckpoint(f"{folder}: {why}; {path} holds no intact checkpoint; name another one, or a run")
    if found is None:
        what = "has no checkpoint yet" if path.exists() else "does not exist"
        raise NoCheckpoint(f"{path}: {what}; name a run directory or a folder in its checkpoints/")
    return dataclasses.replace(found, remarks=tuple(told(damaged, found)))
