"""Aligned text: columns that fit a terminal, numbers and times in few characters."""

import datetime
import math
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from jaxrl import runtime
from jaxrl.reading import is_number

NONE = "-"  # of a cell without a value, so that every line has the same number of words
GAP = "  "
WIDE = 100_000  # characters of a line where nothing bounds it: pipes and files get all of it
COLORS = {"running": 36, "done": 32, "stopped": 33, "failed": 31, "died": 31}  # of states; ANSI
UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))  # seconds each


class Column(NamedTuple):
    title: str
    right: bool = True  # aligned, as numbers are
    least: int = 0  # characters that its cells may be shortened to; 0: they are not
    goes: int = 0  # where there is no room, the highest goes first; 0: it stays
    optional: bool = False  # goes if it is empty
    is_prose: bool = False  # shortened at its end


def width() -> int:
    """Characters of a line of standard output."""
    return shutil.get_terminal_size((WIDE, 24)).columns


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], room: int
) -> tuple[list[list[str]], list[str]]:
    """Titles and rows as cells of equal width, and the titles of those columns that had no room."""
    filled = [i for i, x in enumerate(columns) if not x.optional or any(row[i] != NONE for row in rows)]
    full = {i: max(len(columns[i].title), *(len(row[i]) for row in rows), 0) for i in filled}
    least = {i: min(full[i], columns[i].least or full[i]) for i in filled}
    kept = filled
    while (needed(least[i] for i in kept) > room) and any(columns[i].goes for i in kept):
        gone = max(kept, key=lambda i: columns[i].goes)
        kept = [i for i in kept if i != gone]
    widths = {i: full[i] for i in kept}
    while needed(widths.values()) > room:
        widest = max(kept, key=lambda i: widths[i] - least[i])
        if widths[widest] == least[widest]:
            break
        widths[widest] -= 1
    lines = [
        [fitted(row[i], widths[i], columns[i]) for i in kept] for row in [[x.title for x in columns], *rows]
    ]
    return lines, [columns[i].title for i in filled if i not in kept]


def needed(widths: Iterable[int]) -> int:
    """Characters of a line with cells of these widths."""
    return sum(x + len(GAP) for x in widths) - len(GAP)


def fitted(cell: str, size: int, column: Column) -> str:
    """The cell with exactly so many characters."""
    if column.is_prose and len(cell) > size:
        cell = f"{cell[: size - 2].rstrip()}.."
    cell = shortened(cell, size)
    return cell.rjust(size) if column.right else cell.ljust(size)


def shortened(cell: str, size: int) -> str:
    """With its middle left out where it is longer; both ends of a name tell runs apart."""
    if len(cell) <= size:
        return cell
    if size < 6:
        return cell[:size]
    tail = (size - 1) // 2
    return f"{cell[: size - 2 - tail]}..{cell[-tail:]}"


def line(cells: Sequence[str]) -> str:
    return GAP.join(cells).rstrip()


def painted(cell: str) -> str:
    """A state in its colour, where the output is a terminal that may have colours."""
    code = COLORS.get(cell.strip())
    return f"\033[{code}m{cell}\033[0m" if code and runtime.has_colors(sys.stdout) else cell


def clean(value: object) -> str:
    """On one line, whatever was in a file."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value)) or NONE


def warn(lines: Iterable[str]) -> None:
    """Tells on standard error what a reader should know about what is on standard output."""
    for text in lines:
        print(f"jaxrl: {text}", file=sys.stderr)


def finite(value: Any) -> int | float | None:
    """The number; None if it is none."""
    return value if is_number(value) and math.isfinite(value) else None


def number(value: float | None) -> str:
    """Four significant digits, and all of those before the point."""
    if value is None:
        return NONE
    if abs(value) >= 1000 and abs(value) < 1e12:
        return f"{value:.0f}"
    return f"{value:.4g}"


def score(value: float | None) -> str:
    """With one digit behind the point, as most games need; small ones with more."""
    if value is None or not 0.01 <= abs(value) < 1000:
        return number(value)
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def whole(value: float | None) -> str:
    return NONE if value is None else f"{int(value):,}"


def count(value: float | None) -> str:
    """399,999 is 399.9k: rounded down, since a run that is not done has not made all steps."""
    if value is None:
        return NONE
    for name, unit in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= 10 * unit:
            return f"{int(value) * 10 // unit / 10:.1f}".removesuffix(".0") + name
    return str(int(value))


def percent(part: float | None, of: float | None) -> str:
    if part is None or not of or of < 0:
        return NONE
    return f"{min(100, int(100 * part // of))}%"


def span(seconds: float | None) -> str:
    """161 s are 2m41s: the two largest units."""
    if seconds is None:
        return NONE
    left, found = max(0, int(seconds)), []
    for name, unit in UNITS:
        amount, left = divmod(left, unit)
        if amount or found or name == "s":
            found.append(f"{amount:02d}{name}" if found else f"{amount}{name}")
    return "".join(found[:2])


def moment(value: Any) -> datetime.datetime | None:
    """A time as run.json has them; None if it is none."""
    try:
        time = datetime.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return time if time.tzinfo else None
