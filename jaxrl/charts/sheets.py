"""Panels and bars as PNG files, with a title and a legend above them."""

import contextlib
import io
import math
import os
import pathlib
from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from jaxrl.charts import style
from jaxrl.charts.figures import GAUGE_LABEL, LABEL, draw_bars, draw_gauges, draw_panel, handle
from jaxrl.charts.panel import Bars, Gauges, Sheet

DPI = 144  # of a PNG
# In inches: a panel with its labels; what is left of its axes, right, below, above; the lines of the head.
PANEL, EDGES = (4.6, 2.95), (style.LEFT, 0.14, 0.52, 0.34)
TITLE, ROW, HANDLE, LETTER = 0.5, 0.24, 0.55, 0.062
GAUGE, GAUGE_EDGES = 0.3, 0.92  # a row of gauges; title and axis of a group


def save_sheet(sheet: Sheet, path: pathlib.Path) -> None:
    """Writes panels as one PNG, at most three beside each other. Raises OSError."""
    count = len(sheet.panels)
    columns = 2 if count == 4 else min(count, 3)
    wide = max(PANEL[0], 6.4 / columns)
    most = int((columns * wide - 0.3 - HANDLE) / LETTER)
    labels = [style.plain(key.label, most) for key in sheet.keys]
    figure = headed(
        sheet.title, labels, [handle(key) for key in sheet.keys], columns * wide, grid(count, columns)
    )
    for place, panel in enumerate(sheet.panels):
        row, column = divmod(place, columns)
        bottom = (grid(count, columns) / PANEL[1] - 1 - row) * PANEL[1]
        draw_panel(figure.add_axes(box(figure, column * wide, bottom, wide)), panel)
    save(figure, path)


def grid(count: int, columns: int) -> float:
    """Inches that the rows of so many panels take."""
    return math.ceil(count / columns) * PANEL[1]


def box(figure: Figure, left: float, bottom: float, wide: float) -> tuple[float, float, float, float]:
    """The axes of a panel whose lower left corner lies there, in inches, as shares of the figure."""
    width, height = figure.get_size_inches()
    x, y = left + EDGES[0], bottom + EDGES[2]
    inner = wide - EDGES[0] - EDGES[1], PANEL[1] - EDGES[2] - EDGES[3]
    return x / width, y / height, inner[0] / width, inner[1] / height


def save_bars(bars: Bars, path: pathlib.Path) -> None:
    """Writes bars as a PNG. Raises OSError."""
    patches = [Patch(color=style.LIGHT[name]) for name in bars.colours]
    figure = headed(bars.title, bars.parts, patches, 9.2, bars_height(bars))
    add_bars(figure, bars)
    save(figure, path)


def bars_height(bars: Bars) -> float:
    """Inches that bars and their axis take."""
    return 0.66 + 0.36 * len(bars.rows)


def add_bars(figure: Figure, bars: Bars) -> None:
    """Draws bars at the foot of a figure, as wide as labels and notes let them."""
    width, height = figure.get_size_inches()
    left = 0.25 + 0.07 * min(max(map(len, bars.rows), default=0), LABEL)
    right = 0.25 + 0.07 * max(map(len, bars.notes), default=0)
    tall = bars_height(bars) - 0.6
    draw_bars(figure.add_axes((left / width, 0.5 / height, 1 - (left + right) / width, tall / height)), bars)


def save_gauges(title: str, groups: Sequence[Gauges], path: pathlib.Path) -> None:
    """Writes gauges below each other as one PNG. Raises OSError."""
    heights = [GAUGE_EDGES + GAUGE * len(group.rows) for group in groups]
    width = 9.2
    figure = headed(title, [], [], width, sum(heights))
    whole = figure.get_size_inches()[1]
    names = [len(row) for group in groups for row in group.rows]
    left = 0.3 + 0.07 * min(max(names, default=0), GAUGE_LABEL)
    below = sum(heights)
    for index, (group, tall) in enumerate(zip(groups, heights, strict=True)):
        below -= tall
        inner = GAUGE * len(group.rows)
        place = left / width, (below + 0.5) / whole, 1 - (left + 0.3) / width, inner / whole
        draw_gauges(figure.add_axes(place), group, index)
    save(figure, path)


def headed(
    title: str, labels: Sequence[str], handles: Sequence[Artist], width: float, height: float
) -> Figure:
    """A figure with a title and a legend above `height` inches that are left free.

    The entries of the legend follow each other in lines, as words of a text do.
    """
    lines = broken(labels, width)
    whole = height + TITLE + ROW * len(lines) + 0.1
    figure = style.sheet(width, whole)
    words = style.plain(title, int((width - 0.4) / 0.105))
    figure.text(
        0.14 / width,
        1 - 0.14 / whole,
        words,
        va="top",
        fontsize=11.5,
        fontweight="bold",
        color=style.INK,
    )
    for number, line in enumerate(lines):
        figure.legend(
            [handles[i] for i in line],
            [labels[i] for i in line],
            loc="upper left",
            bbox_to_anchor=(0.14 / width, 1 - (TITLE + ROW * number) / whole),
            ncols=len(line),
            frameon=False,
            fontsize=style.SMALL,
            labelcolor=style.MUTED,
            handlelength=1.8,
            columnspacing=1.6,
            borderpad=0,
            borderaxespad=0,
        )
    return figure


def broken(labels: Sequence[str], width: float) -> list[list[int]]:
    """Indices of the entries of each line of a legend of so many inches."""
    lines: list[list[int]] = []
    room = 0.0
    for i, label in enumerate(labels):
        need = HANDLE + LETTER * len(label)
        if not lines or need > room:
            lines.append([])
            room = width - 0.3
        lines[-1].append(i)
        room -= need
    return lines


def save(figure: Figure, path: pathlib.Path, dpi: int = DPI) -> None:
    """Writes a PNG. Raises OSError."""
    picture = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(picture, format="png", dpi=dpi, metadata={"Software": None})
    replace(path, picture.getvalue())


def replace(path: pathlib.Path, content: bytes) -> None:
    """Writes a file under another name and renames it: nobody ever sees half of it. Raises OSError."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.write_bytes(content)
        os.replace(fresh, path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
