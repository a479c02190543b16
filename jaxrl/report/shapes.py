"""Numbers as a reader wants them: thousands apart, units that fit, nothing where nothing is known."""

import math
from typing import Any

NONE = "–"


def count(value: float | None) -> str:
    """A whole number: 1,234,567."""
    return NONE if value is None or not math.isfinite(value) else f"{value:,.0f}"


def figure(value: float | None) -> str:
    """A number of any size, to four digits or to the unit."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    if abs(value) >= 1_000:
        text = f"{value:,.0f}"
    elif abs(value) >= 0.01:
        text = f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        text = f"{value:.3g}"
    return text.replace("-", "−", 1) if value < 0 else text


def share(value: float | None) -> str:
    return NONE if value is None or not math.isfinite(value) else f"{100 * value:.0f} %"


def duration(seconds: float | None) -> str:
    """Two units at most: 45 s, 12 min 5 s, 3 h 12 min, 2 d 4 h."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return NONE
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    whole = round(seconds)
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    first = next(i for i, (_, size) in enumerate(units) if whole >= size)
    (large, size), (small, part) = units[first], units[first + 1]
    rest = whole % size // part
    return f"{whole // size} {large}" + (f" {rest} {small}" if rest else "")


def size(count_of_bytes: Any) -> str:
    """9.3 MB."""
    if not isinstance(count_of_bytes, int | float):
        return NONE
    for unit, limit in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count_of_bytes >= limit:
            value = count_of_bytes / limit
            return f"{value:.{1 if value < 100 else 0}f} {unit}"
    return f"{count_of_bytes:.0f} B"


def moment(text: Any) -> str:
    """A time of run.json without its T and its zone's digits where that is UTC."""
    return NONE if not isinstance(text, str) else text.replace("T", " ").replace("+0000", " UTC")


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
