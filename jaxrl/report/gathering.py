"""What the words of a command line name: runs, folders of runs, curves of other programs."""

import dataclasses
import pathlib
from collections.abc import Sequence

from jaxrl import rundir
from jaxrl.config import ConfigError
from jaxrl.reading import Past, open_past, runs_in
from jaxrl.report import foreign

MOST = 1_000  # runs of one page
LOG = "config.yaml"  # which tells a log directory of another program


@dataclasses.dataclass(frozen=True)
class Gathered:
    pasts: list[Past]
    peers: list[foreign.Curve]
    remarks: list[str]


def gather(words: Sequence[str]) -> Gathered:
    """Opens everything that is named, each run once.

    Raises:
      ConfigError: a word names nothing that can be read, or none of them a run.
    """
    pasts: dict[pathlib.Path, Past] = {}
    peers: list[foreign.Curve] = []
    remarks: list[str] = []
    for word in words:
        path = rundir.located("RUN", word)
        if path.is_file() or is_foreign(path):
            peers += foreign.load(path)
            continue
        for past in opened(path, remarks):
            pasts.setdefault(past.path, past)
    if not pasts:
        raise ConfigError(
            "no run is named beside the peers; name a run directory or a folder that holds some"
        )
    if len(pasts) > MOST:
        raise ConfigError(f"{len(pasts):,} runs are too many for a page; name at most {MOST:,}")
    return Gathered(list(pasts.values()), peers, remarks)


def is_foreign(path: pathlib.Path) -> bool:
    return (path / LOG).is_file() and not (path / "config.json").is_file()


def opened(path: pathlib.Path, remarks: list[str]) -> list[Past]:
    """The run in a folder, or all runs below it; of these one that cannot be read is remarked upon."""
    if not path.is_dir() or (path / "config.json").is_file():
        return [open_past(path)]
    found = []
    for inner in runs_in(path):
        try:
            found.append(open_past(inner))
        except ConfigError as error:
            remarks.append(str(error))
    if not found:
        raise ConfigError(
            f"{path}: holds no run (no folder with config.json and run.json); name a run directory"
        )
    return sorted(found, key=lambda x: (x.task, str(x.path.parent), x.seed if x.seed is not None else -1))
