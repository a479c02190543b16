"""A metrics.jsonl that is read while it grows, and that may be cut or replaced when its run goes on."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

from jaxrl.reading import parsed, was

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class News:
    """What has come since the last look."""

    rows: list[Row]
    back_to: int | None = None  # step whose row is the last that is still there; -1: none is
    bad: int = 0  # lines that cannot be read


class Journal:
    """The rows of a file, each given out once; again if it was written anew by a run that went back."""

    def __init__(self, file: pathlib.Path):
        self._file = file
        self._inode = -1
        self._end = 0  # bytes read, all of them whole lines
        self._tail = b""  # the last line of these
        self._known: dict[int, int] = {}  # hash of the line of each step that was read
        self.last = -1  # step of the last row read

    def first(self, most: int, wanted: Callable[[Row], bool]) -> News:
        """The last rows that are wanted, at most so many; those before them are not parsed."""
        lines, _ = self._lines()
        rows, bad = [], 0
        for line in reversed(lines):
            row = parsed(line)
            if row is None:
                bad += 1
            elif row["step"] not in self._known:  # of a step that is there twice the last counts
                self._remember(row, line)
                rows += [row] if wanted(row) else []
                if len(rows) == most:
                    break
        return News(rows[::-1], bad=bad)

    def news(self) -> News:
        """All rows that came since the last look."""
        lines, is_anew = self._lines()
        oldest, last = min(self._known, default=-1), self.last
        rows, bad, kept = [], 0, -1
        for line in lines:
            row = parsed(line)
            if row is None:
                bad += 1
                continue
            if is_anew and not rows and self._is_known(row["step"], line, oldest):
                kept = row["step"]
                continue
            rows.append(row)
            if is_anew and len(rows) == 1:
                self._forget_after(kept)
            self._remember(row, line)
        if not is_anew:
            return News(rows, bad=bad)
        if not rows:
            self._forget_after(kept)
        return News(rows, kept if kept < last else None)  # its bad lines were told of

    def _is_known(self, step: int, line: bytes, oldest: int) -> bool:
        """Rows before the first that was parsed count as known."""
        return self._known.get(step) == hash(line) or (step not in self._known and step < oldest)

    def _remember(self, row: Row, line: bytes) -> None:
        self._known[row["step"]] = hash(line)
        self.last = max(self.last, row["step"])

    def _forget_after(self, step: int) -> None:
        self._known = {k: v for k, v in self._known.items() if k <= step}
        self.last = step

    def _lines(self) -> tuple[list[bytes], bool]:
        """Whole lines that were not read yet; all there are, and True, if the file was cut or replaced."""
        try:
            with open(self._file, "rb") as stream:
                is_anew = not self._is_grown(stream)
                start = 0 if is_anew else self._end
                stream.seek(start)
                block = stream.read()
                inode = os.fstat(stream.fileno()).st_ino
        except OSError:  # not yet there, or renamed in this moment
            return [], False
        whole = block[: block.rfind(b"\n") + 1]  # what is behind it is being written
        lines = whole.splitlines()
        is_anew, self._inode, self._end = is_anew and self._inode != -1, inode, start + len(whole)
        if lines or is_anew:
            self._tail = lines[-1] + b"\n" if lines else b""
        return lines, is_anew

    def _is_grown(self, stream: BinaryIO) -> bool:
        """Whether it is the file that was read, with everything in place."""
        now = os.fstat(stream.fileno())
        if now.st_ino != self._inode or now.st_size < self._end:
            return False
        stream.seek(self._end - len(self._tail))
        return stream.read(len(self._tail)) == self._tail


def words_of_bad(file: pathlib.Path, bad: int) -> Iterable[str]:
    """A line about lines that cannot be read, if there are any."""
    if bad:
        yield f"{file}: {bad} line{'s' * (bad > 1)} cannot be read and {was(bad)} left out"
