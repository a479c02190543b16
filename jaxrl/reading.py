"""What a run has left behind, for whoever looks at it: nothing is written, or taken on trust.

Costs no import of jax. A line that cannot be read is passed over and counted, since a page with most of a run
is worth more than none.
"""

import dataclasses
import fcntl
import functools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from jaxrl import rundir
from jaxrl.config import ConfigError, Value

DEEPEST = 4  # folders below that in which runs are looked for: runs/<config>/<run> and some more
LARGEST_LINE = 2**20  # bytes of a line of JSON; whatever is longer was not written here
ROWS, SCORES, LOG = "metrics.jsonl", "scores.jsonl", "checkpoint_log.jsonl"


@dataclasses.dataclass(frozen=True)
class Past:
    """A run directory as it is now; its process may be at work."""

    path: pathlib.Path
    config: dict[str, Value]  # as saved: flat, by dotted name; may lack or have settings of other versions
    note: dict[str, Any]  # run.json; empty if it cannot be read
    remarks: list[str]  # lines about what could not be read; grows as files are read

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def id(self) -> str | None:
        """By run.json, if that can be read."""
        found = self.note.get("id")
        return found if isinstance(found, str) else None

    @property
    def task(self) -> str:
        return str(self.config.get("task", "?"))

    @property
    def seed(self) -> int | None:
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else None

    @functools.cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl that have a step, in order; of a step that is there twice, the last."""
        return list({row["step"]: row for row in self._lines(ROWS)}.values())

    def stream(self) -> Iterator[dict[str, Any]]:
        """The same one by one as the file has them; none is kept, whatever its size."""
        return self._lines(ROWS)

    @functools.cached_property
    def scores(self) -> list[dict[str, Any]]:
        """Rows of scores.jsonl."""
        return list(self._lines(SCORES))

    @functools.cached_property
    def saved(self) -> list[dict[str, Any]]:
        """Lines of checkpoint_log.jsonl about checkpoints that were made, whether or not they are kept."""
        return [x for x in self._lines(LOG) if x.get("event") == "saved"]

    def last_row(self) -> dict[str, Any]:
        """The last whole row of metrics.jsonl, without reading the others; empty if there is none."""
        for line in last_lines(self.path / ROWS):
            if (row := parsed(line)) is not None:
                return row
        return {}

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """(env_steps, values) of a metric wherever it is there and finite."""
        found = [(row["step"], row[key]) for row in self.rows if is_number(row.get(key))]
        return [step for step, _ in found], [value for _, value in found]

    @property
    def state(self) -> str:
        """Which is "running", "done", "stopped", "failed" (with an error) or "died" (without a word)."""
        if is_locked(self.path):
            return "running"
        reason = self.note.get("exit")
        for end in ("done", "stopped"):
            if isinstance(reason, str) and reason.split(" ")[0] == end:  # "stopped before it began", too
                return end
        return "died" if reason is None else "failed"

    def _lines(self, name: str) -> Iterator[dict[str, Any]]:
        """Objects with a step of a file of JSON lines. What else is in it is told, but for a torn end."""
        file, bad, torn = self.path / name, 0, False
        if not file.is_file():
            return
        with open(file, "rb") as stream:
            for line in stream:
                torn = not line.endswith(b"\n")
                row = parsed(line)
                if row is None:
                    bad += 1
                else:
                    yield row
                    torn = False
        if bad := bad - torn:
            self.remarks.append(f"{file}: {bad} line{'s' * (bad > 1)} cannot be read and {was(bad)} left out")


def was(count: int) -> str:
    return "was" if count == 1 else "were"


def open_past(text: str | pathlib.Path, name: str = "RUN") -> Past:
    """The run in a directory.

    Args:
      text: its path.
      name: of the argument that says so.

    Raises:
      ConfigError: there is no run.
    """
    path = rundir.located(name, str(text))
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder; name a run directory")
    if not (path / "config.json").is_file():
        inside = runs_in(path)
        more = f"; it holds {len(inside)} of them, the newest is {inside[-1]}" if inside else ""
        raise ConfigError(f"{path}: is no run directory (it has no config.json){more}")
    config, remarks, note = rundir.read_config(path / "config.json"), [], {}
    try:
        note = rundir.read_json(path / "run.json")
    except (OSError, ValueError) as error:
        remarks.append(f"{path / 'run.json'}: cannot be read ({error})")
    return Past(path, config, note, remarks)


def runs_in(root: pathlib.Path) -> list[pathlib.Path]:
    """Run directories below a folder (or the folder itself), the one that began or ended last at the end."""
    found: list[pathlib.Path] = []

    def look(folder: pathlib.Path, depth: int) -> None:
        try:
            if (folder / "config.json").is_file() and (folder / "run.json").is_file():
                found.append(folder)
            elif depth:
                for inner in folder.iterdir():
                    if inner.is_dir() and not inner.name.startswith(".") and not inner.is_symlink():
                        look(inner, depth - 1)
        except OSError:
            return  # a folder of somebody else

    look(root, DEEPEST)
    return sorted(found, key=lambda x: ((x / "run.json").stat().st_mtime, str(x)))


def is_locked(path: pathlib.Path) -> bool:
    """Whether a process works in a run directory now."""
    try:
        with open(path / "run.lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def parsed(line: bytes) -> dict[str, Any] | None:
    """A JSON object with a step; None if the line holds none."""
    if len(line) > LARGEST_LINE:
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and is_number(row.get("step")) else None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def last_lines(file: pathlib.Path, most: int = 65_536) -> list[bytes]:
    """The whole lines among the last bytes of a file, the last one first."""
    try:
        with open(file, "rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - most))
            lines = stream.read().split(b"\n")
    except OSError:
        return []
    return [line for line in reversed(lines[1 if size > most else 0 :]) if line]
