"""Panels and bars as SVG for a page that defines its colours: light, dark, in print."""

import io
import re

import matplotlib
from matplotlib.figure import Figure

from jaxrl.charts import style
from jaxrl.charts.figures import draw_panel
from jaxrl.charts.panel import Bars, Panel
from jaxrl.charts.series import clipped, short
from jaxrl.charts.sheets import EDGES, add_bars, bars_height

WIDE, NARROW = (4.3, 2.75), (3.7, 2.55)  # inches of a panel


def panel_svg(panel: Panel, size: tuple[float, float] = NARROW) -> str:
    """An <svg> of one panel, for a page that defines its colours; the legend is the page's."""
    width, height = size
    figure = style.sheet(width, height)
    left, right, bottom, top = EDGES
    place = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    draw_panel(figure.add_axes(place), panel)
    return svg(figure)


def bars_svg(bars: Bars) -> str:
    """An <svg> of bars; title and legend are the page's."""
    figure = style.sheet(11.2, bars_height(bars))
    add_bars(figure, bars)
    return svg(figure)


def svg(figure: Figure) -> str:
    """A figure as an <svg> element: text as text, colours as var(--c0), no fonts, no addresses, no ids but
    its own."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    found = text.getvalue()
    found = found[found.index("<svg") :]
    found = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", found, count=1, flags=re.S)
    found = re.sub(r"<metadata>.*?</metadata>\s*", "", found, flags=re.S)
    found = re.sub(r"^<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r"<svg \1>", found)
    found = found.replace("xlink:href", "href")
    used = set(re.findall(r"(?:url\(#|href=\"#)([\w.-]+)", found))
    found = re.sub(r' id="([\w.-]+)"', lambda x: x[0] if x[1] in used else "", found)
    found = re.sub(r"font-family: [^;\"]*(;\s*)?", "", found)
    found = re.sub(r' d="[^"]*"', lambda x: re.sub(r"(\.\d\d)\d+", r"\1", x[0]), found)
    found = re.sub(r"\s*\n\s*", "\n", found)
    for name, hue in style.LIGHT.items():
        found = found.replace(hue, f"var(--{name})")
    return found.strip()


def alternative(panel: Panel) -> str:
    """What a panel shows, in words."""
    low, high = panel.extent
    if not panel.lines:
        return f"{panel.title}: {panel.y}, nothing yet"
    span = f"from {short(low)} to {short(high)}"
    return clipped(f"{panel.title}: {panel.y} {span}, up to {short(panel.last)} {panel.x}", 200)
