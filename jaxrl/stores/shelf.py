"""Which folders of a run are checkpoints, and which of them is the one to go on from."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxrl import manifest
from jaxrl.exits import NoCheckpoint

LATEST, BEST, PERIODIC = STORES = ("latest", "best", "periodic")
NAME = re.compile(r"(\d{1,15})(?:\.(\d{1,6}))?")


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


def order(store: str) -> Callable[[Checkpoint], Any]:
    """What sorts the checkpoints of a store, the one that is kept longest last."""
    if store == BEST:
        return lambda x: (x.score, *numbers(x.folder))
    return lambda x: numbers(x.folder)


def numbers(folder: pathlib.Path) -> tuple[int, int]:
    """(step, how many times it was saved) of a checkpoint's name."""
    found = NAME.fullmatch(folder.name)
    assert found
    return int(found[1]), int(found[2] or 1)


def folders(store: pathlib.Path) -> Iterator[pathlib.Path]:
    """Folders with the name of a checkpoint."""
    if store.is_dir():
        yield from (path for path in store.iterdir() if NAME.fullmatch(path.name) and path.is_dir())


def is_store(path: pathlib.Path) -> bool:
    return path.name in STORES and path.parent.name == "checkpoints"


def told(damaged: dict[pathlib.Path, str], found: Checkpoint | None) -> list[str]:
    """Lines about checkpoints that are damaged, and what is used instead."""
    instead = f"; using {found.store}/{found.folder.name}" if found else ""
    return [f"checkpoint {x.parent.name}/{x.name} is damaged: {why}{instead}" for x, why in damaged.items()]


def checkpoints(store: pathlib.Path) -> Iterator[Checkpoint]:
    """Those of a store whose manifest is intact; the other files are not looked at."""
    for folder in folders(store):
        try:
            yield Checkpoint(folder, manifest.read(folder))
        except (manifest.Damaged, manifest.TooNew):
            continue


def intact(folder: pathlib.Path) -> Checkpoint:
    """The checkpoint of a folder, every byte of it compared. Raises Damaged or TooNew."""
    told = manifest.verify(folder)
    if told.get("step") != numbers(folder)[0]:
        raise manifest.Damaged(f"{manifest.NAME} is that of step {told.get('step')}")
    return Checkpoint(folder, told)


def unused(folder: pathlib.Path) -> pathlib.Path:
    """The first of folder, folder.2, folder.3 ... that does not exist."""
    path, number = folder, 1
    while path.exists():
        number += 1
        path = folder.with_name(f"{folder.name}.{number}")
    return path


def set_aside(folder: pathlib.Path) -> pathlib.Path:
    """Renames a damaged checkpoint, so that nothing takes it for one; it is never removed."""
    aside, number = folder.with_name(folder.name + ".damaged"), 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}.damaged{number}")
    folder.rename(aside)
    return aside


def search(
    run: pathlib.Path, stores: Sequence[str] = STORES
) -> tuple[Checkpoint | None, dict[pathlib.Path, str]]:
    """The newest intact checkpoint of a run, and those before it in line that are damaged, with why.

    First those with the whole state; only if none of them is left, the newest of the others.

    Raises:
      NoCheckpoint: if one has a newer format.
    """
    root = run / "checkpoints"
    found = [folder for store in stores for folder in folders(root / store)]
    damaged = {}
    for folder in sorted(found, key=lambda x: (x.parent.name == LATEST, numbers(x)), reverse=True):
        if not (folder / manifest.NAME).exists():
            continue  # not finished, or logged and then found missing by whoever keeps the log
        try:
            return intact(folder), damaged
        except manifest.Damaged as error:
            damaged[folder] = str(error)
        except manifest.TooNew as error:
            raise NoCheckpoint(str(error)) from error
    return None, damaged


def find(path: pathlib.Path) -> Checkpoint:
    """The newest intact checkpoint of a run directory or of one of its stores, or the checkpoint itself.

    Nothing is touched: the run may be that of another process.

    Raises:
      NoCheckpoint: if there is none, or the one that is named is damaged.
    """
    path = path.expanduser().resolve()
    if NAME.fullmatch(path.name) and is_store(path.parent) and path.is_dir():
        try:
            return intact(path)
        except (manifest.Damaged, manifest.TooNew, OSError) as error:
            raise NoCheckpoint(f"{path}: {error}; name another checkpoint, or the run directory") from error
    run, stores = (path.parent.parent, [path.name]) if is_store(path) else (path, STORES)
    found, damaged = search(run, stores)
    if found is None:
        what = "holds no intact checkpoint" if path.exists() else "does not exist"
        raise NoCheckpoint(f"{path}: {what}; name a run directory or a folder in its checkpoints/")
    return dataclasses.replace(found, remarks=tuple(told(damaged, found)))
