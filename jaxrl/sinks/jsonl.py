"""metrics.jsonl and scores.jsonl: strict JSON, one line per event, the truth of a run.

A line reaches the file in one write and is never rewritten while the run lasts. When a run is
continued, a torn last line and the rows beyond the resume point are dropped first, so that no row
is missing, doubled or out of order.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from jaxrl.sinks.row import Event, Row, ScoreRow, Sink


def encode_row(row: Row) -> str:
    """One line without its newline: the counters, then the scalars by name, then `nan_keys`."""
    head = {
        "step": row.step,
        "agent_steps": row.agent_steps,
        "updates": row.updates,
        "episodes": row.episodes,
        "wall_s": row.wall_s,
    }
    names = sorted(row.scalars.keys() - head.keys())
    return strict_line(head | {name: row.scalars[name] for name in names})


def encode_score(row: ScoreRow) -> str:
    """One line without its newline; the field names tell training and evaluation apart."""
    success = {} if row.success is None else {f"{row.kind}/success": row.success}
    return strict_line(
        {
            "step": row.step,
            f"{row.kind}/score": row.score,
            f"{row.kind}/length": row.length,
            **success,
            "env": row.env,
            "episode": row.episode,
        }
    )


def strict_line(values: Mapping[str, object]) -> str:
    """A JSON object; what is not finite, or no number at all, is null and named in `nan_keys`."""
    plain = {name: _number(value) for name, value in values.items()}
    bad = [name for name, number in plain.items() if number is None]
    return json.dumps(plain | ({"nan_keys": bad} if bad else {}), allow_nan=False)


def _number(value: object) -> int | float | None:
    """The value as JSON knows it; None if it is not finite, or no number at all."""
    if isinstance(value, (bool, int, np.integer, np.bool_)):
        return int(value)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None  # a row is never lost for the sake of one value: its key is named in nan_keys
    return number if math.isfinite(number) else None


@dataclasses.dataclass(frozen=True)
class Cut:
    """What `cut` did to a file, in lines."""

    kept: int = 0
    beyond: int = 0  # steps after the resume point
    broken: int = 0  # torn or unreadable


def cut(path: Path, last_step: int, last_eval: int | None = None) -> Cut:
    """Keeps the lines of `path` with step <= `last_step` (env_steps), byte for byte.

    Of evaluation episodes, those with step <= `last_eval` where it is given.
    """
    last = last_step, last_step if last_eval is None else last_eval
    if not path.exists():
        return Cut()
    count = {"kept": 0, "beyond": 0, "broken": 0}
    complete = True
    for line, fate in _judged(path, *last):
        count[fate] += 1
        complete = line.endswith(b"\n")
    if count["beyond"] or count["broken"] or not complete:
        fresh = path.with_name(path.name + ".new")
        with open(fresh, "wb") as file:
            for line, fate in _judged(path, *last):
                if fate == "kept":
                    file.write(line if line.endswith(b"\n") else line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    return Cut(**count)


def _judged(path: Path, last_step: int, last_eval: int) -> Iterator[tuple[bytes, str]]:
    with open(path, "rb") as file:
        for line in file:
            try:
                row = json.loads(line)
                last = last_eval if "eval_episode/score" in row else last_step
                step = row["step"] if "step" in row else row["env_steps"]  # the latter in tables/
                yield line, "kept" if step <= last else "beyond"
            except (ValueError, KeyError, TypeError):
                yield line, "broken"


def set_aside(path: Path) -> Path | None:
    """Renames a file that an earlier attempt has left, so that a new run starts its own."""
    if not path.exists() or path.stat().st_size == 0:
        return None
    number = 1
    while (old := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    path.rename(old)
    return old


class JsonlFile(Sink):
    """Appends lines to one file; a write that fails leaves no torn line behind and can be repeated."""

    takes: ClassVar[tuple[type, ...]] = (Row, ScoreRow)

    def __init__(
        self, path: Path, takes: type, encode: Callable[..., str | None], name: str | None = None
    ) -> None:
        """`encode` makes a line without its newline of an event, or None if it has none here."""
        self.name = name or path.stem
        self.takes = (takes,)  # type: ignore[misc]
        self._encode = encode
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._size = os.fstat(self._fd).st_size
        self._torn = False

    def take(self, event: Event) -> None:
        if (text := self._encode(event)) is None:
            return
        line = (text + "\n").encode()
        if self._torn:
            os.ftruncate(self._fd, self._size)
            self._torn = False
        try:
            written = os.write(self._fd, line)
            while written < len(line):  # a disk that fills up takes a part, then fails
                written += os.write(self._fd, line[written:])
        except OSError:
            self._torn = True
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
                self._torn = False
            raise
        self._size += len(line)

    def close(self) -> None:
        os.close(self._fd)


def metrics_file(run_dir: Path) -> JsonlFile:
    return JsonlFile(run_dir / "metrics.jsonl", Row, encode_row)


def scores_file(run_dir: Path) -> JsonlFile:
    return JsonlFile(run_dir / "scores.jsonl", ScoreRow, encode_score)


def last_episodes(path: Path, count: int) -> list[ScoreRow]:
    """The last `count` training episodes of a scores.jsonl, for averages that outlive a resume."""
    found: collections.deque[ScoreRow] = collections.deque(maxlen=count)
    if path.exists():
        with open(path, "rb") as file:
            for line in file:
                if b'"episode/score"' in line:
                    row = json.loads(line)
                    score, success = row["episode/score"], row.get("episode/success")
                    found.append(
                        ScoreRow(
                            step=row["step"],
                            kind="episode",
                            score=math.nan if score is None else score,
                            length=row["episode/length"],
                            env=row["env"],
                            episode=row["episode"],
                            success=None if success is None else bool(success),
                        )
                    )
    return list(found)
