"""Learning curves of dreamerv3, to be laid beside ours: its published scores and its log directories.

Published are lists of runs, JSON, gzipped: {"task": "atari_pong", "method": "dreamerv3", "seed": 0,
"xs": [...], "ys": [...]}; xs are env_steps with the action repeat counted, as here, and ys scores of single
episodes or of bins; a bin without an episode is NaN. A log directory has config.yaml and scores.jsonl, whose
steps are env_steps, too; with its script train_eval the scores of evaluations are in it unmarked.

Source: danijar/dreamerv3 of May 2026, scores/ and plot.py; make_logger of dreamerv3/main.py.
"""

import dataclasses
import gzip
import json
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from jaxrl import reading, rundir
from jaxrl.config import ConfigError

LARGEST = 2**24  # bytes of published scores, unpacked; the largest of dreamerv3 have 3.7 million
LARGEST_LOG = 2**27
LARGEST_STEP, LARGEST_SCORE = 10**15, 1e30
FIELDS = ("task", "method", "seed", "xs", "ys")
PUBLISHED = "a list of runs with task, method, seed, xs and ys, as in scores/ of dreamerv3"
WANTED = f"name {PUBLISHED}, or a log directory of it"
SETTING = re.compile(r"^(task|seed): *['\"]?([^'\"#\n]*?)['\"]? *$", re.MULTILINE)  # top level of its YAML


@dataclasses.dataclass(frozen=True)
class Curve:
    """Scores of one run of another program, in order."""

    group: str  # method
    task: str  # named as here
    seed: int
    steps: list[int]  # env_steps
    scores: list[float]  # finite; of an episode, or the mean of a bin


def load(path: str | pathlib.Path) -> list[Curve]:
    """The curves of a file of scores, gzipped or not, or the one of a log directory or its scores.jsonl.

    Raises:
      ConfigError: it is neither, cannot be read, or unpacks to more than is read.
    """
    file = rundir.located("FILE", str(path))
    if file.name == reading.SCORES:
        file = file.parent
    try:
        if file.is_dir():
            return [_logged(file)]
        return _published(file)
    except FileNotFoundError as error:
        raise ConfigError(f"{error.filename}: no such file; {WANTED}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _published(file: pathlib.Path) -> list[Curve]:
    content = _unpacked(file)
    try:
        runs = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: is no JSON ({str(error)[:80]}); {WANTED}") from error
    if not isinstance(runs, list) or not runs:
        raise ConfigError(f"{file}: must be {PUBLISHED}")
    return [_curve(file, number, run) for number, run in enumerate(runs)]


def _unpacked(file: pathlib.Path, largest: int = LARGEST) -> bytes:
    """The bytes of a file, unpacked if it is gzipped, never more than `largest`."""
    with open(file, "rb") as raw:
        is_packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with gzip.GzipFile(fileobj=raw) if is_packed else raw as stream:
            content = stream.read(largest + 1)
    if len(content) > largest:
        unpacked = " unpacked" * is_packed
        raise ConfigError(f"{file}: has more than {largest:,} bytes{unpacked}, too many for scores; {WANTED}")
    return content


def _curve(file: pathlib.Path, number: int, run: Any) -> Curve:
    """A run of the list. Raises ConfigError that names its number and what is wrong."""

    def refuse(why: str) -> ConfigError:
        return ConfigError(f"{file}: run {number}: {why}; it must be {PUBLISHED}")

    if not isinstance(run, dict) or not all(key in run for key in FIELDS):
        lacking = [key for key in FIELDS if key not in run] if isinstance(run, dict) else FIELDS
        raise refuse(f"lacks {', '.join(lacking)}")
    task, method, seed, xs, ys = (run[key] for key in FIELDS)
    if not (isinstance(task, str) and task and isinstance(method, str) and method):
        raise refuse("task and method must be text")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise refuse("seed must be a whole number")
    if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
        raise refuse("xs and ys must be lists of one length")
    if not all(is_step(x) for x in xs):
        raise refuse("xs must be env_steps")
    if not all(y is None or is_score(y) or y != y for y in ys):
        raise refuse("ys must be numbers")
    return _ordered(method, task, seed, zip(xs, ys, strict=True))


def is_step(value: Any) -> bool:
    return reading.is_number(value) and 0 <= value <= LARGEST_STEP


def is_score(value: Any) -> bool:
    """Whether it is a finite number; JSON has whole ones that no float can hold."""
    return reading.is_number(value) and abs(value) <= LARGEST_SCORE


def _ordered(group: str, task: str, seed: int, points: Iterable[tuple[float, Any]]) -> Curve:
    """A curve of (step, score), in order, without those that have no score."""
    kept = sorted(((round(x), float(y)) for x, y in points if is_score(y)), key=lambda point: point[0])
    return Curve(group, task, seed, [x for x, _ in kept], [y for _, y in kept])


def _logged(folder: pathlib.Path) -> Curve:
    """The curve of a log directory of dreamerv3."""
    found = dict(SETTING.findall(_unpacked(folder / "config.yaml").decode("utf-8", "replace")))
    if not found.get("task") or not re.fullmatch(r"[0-9]{1,10}", found.get("seed", "")):
        raise ConfigError(f"{folder}: its config.yaml has no task and seed; {WANTED}")
    points = _episodes(_unpacked(folder / reading.SCORES, LARGEST_LOG))
    return _ordered("dreamerv3", found["task"], int(found["seed"]), points)


def _episodes(content: bytes) -> Iterator[tuple[float, Any]]:
    """(step, score) of the lines that have both; a torn line is passed over, as its own plot.py does."""
    for line in content.splitlines():
        row = reading.parsed(line)
        if row and is_step(row["step"]):
            yield row["step"], row.get("episode/score")
