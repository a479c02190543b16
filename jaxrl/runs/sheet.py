"""Rows as lines of aligned text that are printed while they come."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxrl.reading import is_number
from jaxrl.runs import text
from jaxrl.runs.glance import SCORE, SUCCESS, TRAINED

NARROW = 6  # characters of a column at least
SHORT = 16  # characters of a title where there is no room
COUNTERS = ("step", "agent_steps", "updates", "episodes", "wall_s")  # the first in a row


class Shown(NamedTuple):
    """A column."""

    title: str
    names: tuple[str, ...]  # of a metric; the first of them that a row has is shown
    words: Callable[[float], str] = text.number
    optional: bool = False  # only if some row has it


STEP = Shown("step", ("step",), lambda x: str(int(x)))
USUAL = (
    STEP,
    Shown("updates", ("updates",), lambda x: str(int(x))),
    Shown("score", (TRAINED,), text.score),
    Shown("success", ("episode/success",), optional=True),
    Shown("eval", (SCORE,), text.score),
    Shown("eval success", (SUCCESS,), optional=True),
    Shown("loss", ("train/opt/loss", "train/loss", "train/loss/critic")),
    Shown("env_steps/s", ("fps/env_steps",)),
    Shown("wall", ("wall_s",), text.span),
)


class Sheet:
    """Columns only join and widths only grow, so that what is printed later lines up with what was before."""

    def __init__(self, pattern: re.Pattern[str] | None, room: int):
        """`pattern`: of the metrics that are shown, by either name; None: the usual. `room`: characters."""
        self._pattern = pattern
        self._room = room
        self._matches: dict[str, bool] = {}  # of every metric seen
        self._titles: list[str] = []  # as printed last
        self._widths: dict[str, int] = {}
        self.hidden: list[str] = []  # columns that have no room

    @property
    def names(self) -> list[str]:
        """Of all metrics seen."""
        return list(self._matches)

    def wants(self, row: Mapping[str, Any]) -> bool:
        """Whether it has something to show beside its step."""
        self._see(row)
        return self._pattern is None or any(self._matches.get(name) and name != "step" for name in row)

    def lines(self, rows: list[dict[str, Any]]) -> list[str]:
        """The rows that have something to show, after a line of titles if these have changed."""
        rows = [row for row in rows if self.wants(row)]
        if not rows:
            return []
        columns = self._columns()
        for x in columns:
            before = self._widths.get(x.title, NARROW)
            self._widths[x.title] = max(before, *(len(cell(row, x)) for row in rows))
        sizes = self._sizes(columns)
        fitting = columns[: len(sizes)]
        self.hidden = [x.title for x in columns[len(sizes) :]]
        titles = [end_of(x.title, size) for x, size in zip(fitting, sizes, strict=True)]
        table = [titles] if titles != self._titles else []
        self._titles = titles
        table += [[cell(row, x) for x in fitting] for row in rows]
        return [text.line([c.rjust(n) for c, n in zip(cells, sizes, strict=True)]) for cells in table]

    def _sizes(self, columns: list[Shown]) -> list[int]:
        """Of as many columns as there is room for. Where it is scarce, titles are shortened first."""
        sizes: list[int] = []
        for longest in range(max(SHORT, *(len(x.title) for x in columns)), SHORT - 1, -1):
            sizes = [max(self._widths[x.title], min(len(x.title), longest)) for x in columns]
            if text.needed(sizes) <= self._room:
                return sizes
        while len(sizes) > 1 and text.needed(sizes) > self._room:
            sizes.pop()
        return sizes

    def _columns(self) -> list[Shown]:
        if self._pattern is None:
            return [x for x in USUAL if not x.optional or any(name in self._matches for name in x.names)]
        chosen = sorted((name for name, is_chosen in self._matches.items() if is_chosen), key=order)
        return [STEP, *(Shown(text.clean(name), (name,)) for name in chosen if name != "step")]

    def _see(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if name not in self._matches and (value is None or is_number(value)):
                self._matches[name] = bool(self._pattern and matches(self._pattern, name))


def end_of(title: str, size: int) -> str:
    """The title, or its last parts, which tell metrics of a group apart."""
    if len(title) <= size:
        return title
    end = title[len(title) + 2 - size :]
    return ".." + (end[end.index("/") :] if "/" in end else end)


def matches(pattern: re.Pattern[str], name: str) -> bool:
    """Whether it is found in a metric's own name or in that of Stable-Baselines3."""
    from jaxrl.sinks.table import sb3_name  # imports rich

    return bool(pattern.search(name) or pattern.search(sb3_name(name)))


def order(name: str) -> tuple[int, str]:
    """Counters first, as in a row."""
    return (COUNTERS.index(name) if name in COUNTERS else len(COUNTERS), name)


def cell(row: Mapping[str, Any], column: Shown) -> str:
    name = next((name for name in column.names if name in row), None)
    if name is None:
        return text.NONE
    value = text.finite(row[name])
    return "nan" if value is None else column.words(value)
