"""Colours and the bare axes that every chart begins with."""

import functools
import types
from collections.abc import Mapping

from matplotlib import font_manager, ft2font, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxrl.charts.series import clipped, short

# Colours of groups are Okabe and Ito's, which differ for colour-blind eyes too; the yellow, which is lost on
# paper, is an olive. On a dark page each is lightened. No two of a theme are alike: pages tell them by value.
# "deep" is for numbers on pale colours, which are pale in either theme.
LIGHT: Mapping[str, str] = types.MappingProxyType(
    {
        "paper": "#ffffff",
        "ink": "#1c2127",
        "deep": "#1c2128",
        "muted": "#5d6671",
        "grid": "#e4e7eb",
        "c0": "#0072b2",
        "c1": "#d55e00",
        "c2": "#009e73",
        "c3": "#b85c95",
        "c4": "#e69f00",
        "c5": "#56b4e9",
        "c6": "#7a7320",
        "g0": "#8b949e",
        "g1": "#c3c9d0",
    }
)
DARK: Mapping[str, str] = types.MappingProxyType(
    {
        "paper": "#1a1e24",
        "ink": "#e8eaed",
        "deep": "#14181d",
        "muted": "#a0a8b2",
        "grid": "#343a43",
        "c0": "#4aa8e0",
        "c1": "#f5874a",
        "c2": "#35c39b",
        "c3": "#dd93bf",
        "c4": "#f2b844",
        "c5": "#a3d8f8",
        "c6": "#c5bc55",
        "g0": "#7d8792",
        "g1": "#b9c0c8",
    }
)
HUES = 7  # colours of groups; further ones are told apart by their dashes
DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))
INK, DEEP, MUTED, GRID, PAPER = (LIGHT[name] for name in ("ink", "deep", "muted", "grid", "paper"))
SMALL, NORMAL = 8.5, 9.0  # points
LEFT = 0.84  # inches to the left of axes, for numbers and label
LETTER = 0.66  # width of a bold letter, in its size


def name_of(index: int) -> str:
    """The name of a group's colour."""
    return f"c{index % HUES}"


def dash_of(index: int) -> str | tuple:
    return DASHES[index // HUES % len(DASHES)]


@functools.cache
def drawable() -> frozenset[int]:
    """The characters that the font has."""
    return frozenset(ft2font.FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())


def plain(text: str, most: int = 60) -> str:
    """A text of somebody else as matplotlib draws it: no formulas, no missing letters, not too long."""
    known = drawable()
    text = "".join(c if ord(c) in known and c.isprintable() else "?" for c in text)
    text = clipped(text, most).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text  # which legends would leave out


def dress(axes: Axes, title: str, x: str, y: str) -> None:
    """Axes without a box, with a pale grid behind the curves and readable numbers."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.tick_params(length=0, colors=MUTED, labelsize=SMALL, pad=4)
    wide = axes.bbox.width * 72 / axes.figure.dpi  # points
    most = max(16, int(wide / (LETTER * NORMAL)))
    axes.set_title(
        plain(title, most), loc="left", fontsize=NORMAL, fontweight="bold", color=INK, y=1.0, pad=8
    )
    axes.set_xlabel(plain(x, 60), fontsize=SMALL, color=MUTED, labelpad=4)
    axes.set_ylabel(plain(y, 34), fontsize=SMALL, color=MUTED, labelpad=4)
    # The label at the edge, whatever the width of the numbers: axes below each other have it in one line.
    axes.yaxis.set_label_coords(-(LEFT - 0.24) * axes.figure.dpi / axes.bbox.width, 0.5)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], min_n_ticks=2))
    axes.xaxis.set_major_formatter(short)
    axes.patch.set_visible(False)


def scale(axes: Axes, how: str, low: float, high: float, small: float = 0.0) -> None:
    """Sets the y axis.

    Args:
      how: "linear", "percent" (0 to 1), "zero" (from 0 on), "log" or "symlog".
      low, high: of what is drawn; low > 0 with "log".
      small: with "symlog", the magnitude below which it is linear.
    """
    if how == "percent":
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_locator(ticker.FixedLocator([0, 0.25, 0.5, 0.75, 1]))
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        return
    if how in ("log", "symlog"):
        options = {"linthresh": small, "linscale": 0.5} if how == "symlog" else {}
        axes.set_yscale(how, **options)
        wide = how == "symlog" or high / low > 10**2.5
        if how == "log":
            subs = (1.0,) if wide else (1.0, 2.0, 5.0)
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=subs, numticks=6))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
    else:
        axes.margins(y=0.08)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
        if how == "zero":
            axes.set_ylim(0, 1.08 * high or 1.0)
        elif low == high:  # a flat line lies in the middle, and its axis has few numbers
            room = abs(low) / 10 or 1.0
            axes.set_ylim(low - room, high + room)
    axes.yaxis.set_major_formatter(short)


def sheet(width: float, height: float) -> Figure:
    """A white figure, in inches."""
    return Figure(figsize=(width, height), facecolor=PAPER, edgecolor="none")
