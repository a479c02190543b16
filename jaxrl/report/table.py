"""A table of texts, for a page or for a terminal."""

import dataclasses
import itertools
import textwrap
from collections.abc import Iterator, Sequence

NARROWEST = 10  # characters of a column's head before it goes on in the next line
GAP = "  "


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows are as long as `columns`; the first column names the row, the others hold numbers or "-"."""

    title: str
    columns: tuple[str, ...]  # a name may be there twice: it belongs to the column that it follows
    rows: list[tuple[str, ...]]  # may be empty, while the notes say why
    notes: list[str]  # sentences


def lines(table: Table, width: int = 110) -> list[str]:
    """The table for a terminal: title, aligned columns, notes.

    Args:
      width: characters of a line. Columns that find no room follow below, beside the first one again.
    """
    texts = [table.title]
    if table.rows:
        first, *others = columns_of(table)
        for number, block in enumerate(blocks(others, width - len(first[0]))):
            found = (GAP.join(cells).rstrip() for cells in zip(first, *block, strict=True))
            texts += [*[""] * (number > 0), *(text for text in found if text)]
    return [*texts, *(line for note in table.notes for line in noted(note, width))]


def columns_of(table: Table) -> list[list[str]]:
    """Each column as texts of one length, from top to bottom: its head, a rule, its cells."""
    cells = [[row[i] for row in table.rows] for i in range(len(table.columns))]
    sizes = [max(map(len, column)) for column in cells]
    heads = [
        textwrap.wrap(name, max(NARROWEST, size), break_long_words=False) or [""]
        for name, size in zip(table.columns, sizes, strict=True)
    ]
    tallest = max(map(len, heads))
    columns = []
    for head, column in zip(heads, cells, strict=True):
        texts = [*head, *[""] * (tallest - len(head)), *column]
        size = max(map(len, texts))
        texts = [text.rjust(size) if columns else text.ljust(size) for text in texts]
        columns.append([*texts[:tallest], "-" * size, *texts[tallest:]])
    return columns


def blocks(columns: Sequence[list[str]], room: int) -> Iterator[list[list[str]]]:
    """As many columns at a time as there is room for, at least one."""
    rest = list(columns)
    while rest:
        ends = itertools.accumulate(len(GAP) + len(column[0]) for column in rest)
        count = max(1, sum(end <= room for end in ends))
        yield rest[:count]
        rest = rest[count:]


def noted(note: str, width: int) -> list[str]:
    return textwrap.wrap(note, width, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
