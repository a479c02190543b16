"""Published scores of Atari-100k: atari100k.csv beside this file, which says where each comes from."""

import csv
import dataclasses
import functools
import pathlib
from collections.abc import Mapping

from jaxrl.aggregate import normalised

FILE = pathlib.Path(__file__).with_name("atari100k.csv")
RECALLED = "(recalled)"  # ends the name of a system whose scores were not copied from a file


@dataclasses.dataclass(frozen=True)
class Published:
    """Scores by task name, such as "atari_up_n_down"."""

    random: Mapping[str, float]
    human: Mapping[str, float]
    systems: Mapping[str, Mapping[str, float]]  # means over seeds; a game may be missing

    def normalised(self, task: str, score: float) -> float:
        """Human-normalised score."""
        return normalised(score, self.random[task], self.human[task])


@functools.cache
def published() -> Published:
    """What the file holds."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    names = [name for name in rows[0] if name != "task"]
    columns = {name: {row["task"]: float(row[name]) for row in rows if row[name]} for name in names}
    return Published(columns.pop("random"), columns.pop("human"), columns)
