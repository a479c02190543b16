"""Panels and bars drawn on axes."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from jaxrl.charts import style
from jaxrl.charts.panel import GREY, Band, Bars, Gauges, Key, Line, Marks, Panel
from jaxrl.charts.series import short

LABEL, GAUGE_LABEL = 36, 52  # characters of the name of a bar
THIN, BOLD = 0.8, 1.9  # points
STAR, DOT, TICK = 10.0, 4.2, 7.0


def colour(index: int) -> str:
    return style.MUTED if index == GREY else style.LIGHT[style.name_of(index)]


def line_style(index: int, kind: str) -> dict:
    """How a line of a group is drawn."""
    found = {"color": colour(index), "linewidth": BOLD, "linestyle": style.dash_of(max(index, 0))}
    if kind == "seed":
        return found | {"linewidth": THIN, "alpha": 0.45}
    if kind == "dashed":
        return found | {"linewidth": 1.4, "linestyle": (0, (3, 2))}
    if kind == "points":
        marks = {"marker": "o", "markersize": DOT, "markeredgecolor": style.PAPER, "markeredgewidth": 0.7}
        return found | marks | {"linewidth": 1.0}
    return found


def draw_line(axes: Axes, line: Line) -> None:
    look = line_style(line.colour, line.kind)
    if len(line.x) == 1 and "marker" not in look:  # of a line of one point nothing would be seen
        look |= {"marker": "o", "markersize": 3.0}
    axes.plot(line.x, line.y, solid_joinstyle="round", zorder=3 if line.kind == "points" else 2, **look)


def draw_band(axes: Axes, band: Band) -> None:
    if band.kind == "bars":
        axes.vlines(band.x, band.low, band.high, color=colour(band.colour), linewidth=1.1, alpha=0.6)
    else:
        axes.fill_between(
            band.x, band.low, band.high, color=colour(band.colour), alpha=0.16, linewidth=0, zorder=1
        )


def draw_marks(axes: Axes, marks: Marks) -> None:
    look = {"color": colour(marks.colour), "linestyle": "none", "clip_on": False}
    if marks.kind == "saved":
        edge = axes.get_xaxis_transform()
        axes.plot(marks.x, np.full(len(marks.x), 0.02), "|", markersize=TICK, transform=edge, **look)
    else:
        look |= {"markersize": STAR, "markeredgecolor": style.PAPER, "markeredgewidth": 0.8}
        axes.plot(marks.x, marks.y, "*", zorder=4, **look)


def draw_panel(axes: Axes, panel: Panel) -> None:
    style.dress(axes, panel.title, panel.x, panel.y)
    for band in panel.bands:
        draw_band(axes, band)
    for line in panel.lines:
        draw_line(axes, line)
    for marks in panel.marks:
        draw_marks(axes, marks)
    end = panel.last or 1.0
    axes.set_xlim(-0.015 * end, 1.03 * end)
    style.scale(axes, panel.resolved_scale, *panel.extent)


def draw_bars(axes: Axes, bars: Bars) -> None:
    """Bars from the top downwards; a part that is wide enough says how much of its row it is."""
    style.dress(axes, "", "share of the run's time", "")
    shares = bars.shares
    places = list(range(len(bars.rows)))
    left = np.zeros(len(bars.rows))
    for part, name in enumerate(bars.colours):
        wide = shares[:, part]
        hue = style.LIGHT[name]
        axes.barh(places, wide, left=left, height=0.62, color=hue, edgecolor=style.PAPER, linewidth=0.8)
        for place, share, begin in zip(places, wide, left, strict=True):
            if share >= 0.07:
                text, ink = f"{100 * share:.0f} %", readable_on(hue)
                axes.text(
                    begin + share / 2, place, text, ha="center", va="center", fontsize=style.SMALL, color=ink
                )
        left = left + wide
    for place, note in zip(places, bars.notes, strict=True):
        axes.text(1.012, place, style.plain(note), va="center", fontsize=style.SMALL, color=style.MUTED)
    axes.set_yticks(places, [style.plain(row, LABEL) for row in bars.rows])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(bars.rows) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def draw_gauges(axes: Axes, gauges: Gauges, index: int) -> None:
    """Bars from the top downwards, in a group's colour; the number stands behind each."""
    style.dress(axes, gauges.title, gauges.unit, "")
    places = list(range(len(gauges.rows)))
    axes.barh(places, gauges.middle, height=0.58, color=colour(index), alpha=0.55)
    wide = gauges.high > gauges.low
    axes.hlines(np.flatnonzero(wide), gauges.low[wide], gauges.high[wide], color=style.INK, linewidth=BOLD)
    end = float(gauges.high.max(initial=0.0)) or 1.0
    for place, middle, high in zip(places, gauges.middle, gauges.high, strict=True):
        text = short(float(f"{middle:.4g}"))
        axes.text(high + 0.012 * end, place, text, va="center", fontsize=style.SMALL, color=style.MUTED)
    axes.set_yticks(places, [style.plain(row, GAUGE_LABEL) for row in gauges.rows])
    axes.grid(visible=False)
    axes.set_xlim(0, 1.15 * end)
    axes.set_ylim(len(gauges.rows) - 0.4, -0.6)


def readable_on(hue: str) -> str:
    """Deep or paper, whichever is further. On dark pages paper is dark, and every colour pale."""
    red, green, blue = (int(hue[i : i + 2], 16) for i in (1, 3, 5))
    return style.DEEP if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else style.PAPER


def handle(key: Key) -> Line2D | Patch:
    """What stands before an entry of a legend."""
    if key.kind == "area":
        return Patch(color=colour(key.colour), alpha=0.25, linewidth=0)
    if key.kind in ("best", "saved"):
        shape, size = ("*", STAR) if key.kind == "best" else ("|", TICK)
        return Line2D([], [], color=colour(key.colour), linestyle="none", marker=shape, markersize=size)
    look = line_style(key.colour, key.kind)
    return Line2D([], [], **look)
