"""Charts on the page, and their legends."""

import html
from collections.abc import Iterable

from jaxrl.charts import style, vector
from jaxrl.charts.panel import GREY, Bars, Key, Panel
from jaxrl.report.curves import Charts
from jaxrl.report.markup import Markup, joined, notes, tag


def swatch(key: Key) -> Markup:
    """What stands before a legend's entry."""
    hue = "var(--muted)" if key.colour == GREY else f"var(--{style.name_of(key.colour)})"
    line = tag("line", x1="1", y1="7", x2="25", y2="7", stroke=hue, stroke_width="2.2")
    if key.kind == "area":
        shape = tag("rect", x="1", y="2", width="24", height="10", fill=hue, fill_opacity="0.25")
    elif key.kind == "best":
        star = "13,0.5 14.9,4.9 19.6,5.3 16,8.4 17.1,13 13,10.5 8.9,13 10,8.4 6.4,5.3 11.1,4.9"
        shape = tag("polygon", points=star, fill=hue)
    elif key.kind == "saved":
        shape = tag("line", x1="13", y1="2", x2="13", y2="12", stroke=hue, stroke_width="1.6")
    elif key.kind == "points":
        thin = tag("line", x1="1", y1="7", x2="25", y2="7", stroke=hue, stroke_width="1.2")
        shape = joined([thin, tag("circle", cx="13", cy="7", r="3.4", fill=hue)])
    else:
        dash = style.dash_of(max(key.colour, 0))
        dashes = "4 3" if key.kind == "dashed" else "" if dash == "-" else " ".join(map(str, dash[1]))
        shape = line if not dashes else Markup(line.replace("<line ", f'<line stroke-dasharray="{dashes}" '))
    return tag("svg", shape, width="26", height="14", viewBox="0 0 26 14", aria_hidden="true")


def legend(keys: Iterable[Key]) -> Markup:
    """Entries that follow each other in lines."""
    found = [tag("li", swatch(key), tag("span", key.label)) for key in keys]
    return tag("ul", *found, class_="legend") if found else Markup("")


def chart(panel: Panel, size: tuple[float, float]) -> Markup:
    """A panel as a figure, with what there is to say about it."""
    words = html.escape(vector.alternative(panel))
    drawn = vector.panel_svg(panel, size).replace("<svg ", f'<svg role="img" aria-label="{words}" ', 1)
    caption = [tag("figcaption", panel.note)] if panel.note else []
    return tag("figure", Markup(drawn), *caption, class_="card")


def charts(found: Charts) -> Markup:
    """Panels beside and below each other under their legend; two of them are larger."""
    is_wide = len(found.panels) <= 2
    drawn = [chart(panel, vector.WIDE if is_wide else vector.NARROW) for panel in found.panels]
    grid = tag("div", *drawn, class_="charts wide" if is_wide else "charts")
    return joined([legend(found.keys), grid, notes(found.notes)])


def bars(found: Bars) -> Markup:
    """Bars under the names of their parts."""
    entries = []
    for name, hue in zip(found.parts, found.colours, strict=True):
        square = tag("rect", width="12", height="12", rx="2", fill=f"var(--{hue})")
        entries.append(tag("li", tag("svg", square, width="12", height="12"), tag("span", name)))
    drawn = tag("figure", Markup(vector.bars_svg(found)), class_="card bars", style="margin:0")
    return joined([tag("ul", *entries, class_="legend"), drawn])
