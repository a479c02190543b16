"""What can be drawn: curves over env_steps, and bars of parts. Plain data, without matplotlib."""

import dataclasses
import math

import numpy as np

from jaxrl.charts.series import finite, thin

GREY = -1  # a colour index: ink of no group
LOG_FROM = 30.0  # a panel of positive values that span more than this is drawn on a logarithmic axis


@dataclasses.dataclass(frozen=True)
class Line:
    """kind: "main"; "seed", one of several in pale; "dashed"; "points", marks on a thin line."""

    x: np.ndarray  # [points], sorted, finite
    y: np.ndarray  # [points], finite
    colour: int
    kind: str = "main"


@dataclasses.dataclass(frozen=True)
class Band:
    """What lies between two curves. kind: "area", or "bars" at each of the points."""

    x: np.ndarray  # [points]
    low: np.ndarray
    high: np.ndarray
    colour: int
    kind: str = "area"


@dataclasses.dataclass(frozen=True)
class Marks:
    """Single points. kind: "best", a star; "saved", a tick on the lower edge, whatever its y."""

    x: np.ndarray  # [points]
    y: np.ndarray
    colour: int
    kind: str


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes. scale: "auto" is "log" or "linear", "zero" begins at 0, "percent" is of shares."""

    title: str
    y: str  # what is drawn, with its unit
    lines: tuple[Line, ...] = ()
    bands: tuple[Band, ...] = ()
    marks: tuple[Marks, ...] = ()
    scale: str = "linear"
    x: str = "env_steps"
    note: str = ""  # more about it, for a caption

    @property
    def extent(self) -> tuple[float, float]:
        """Least and greatest value of what is drawn; (0, 1) if there is nothing."""
        parts = [line.y for line in self.lines] + [y for band in self.bands for y in (band.low, band.high)]
        parts += [mark.y for mark in self.marks if mark.kind != "saved"]
        values = np.concatenate([np.asarray(x, float) for x in parts]) if parts else np.empty(0)
        values = values[np.isfinite(values)]
        return (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)

    @property
    def last(self) -> float:
        """The greatest x of what is drawn."""
        ends = [part.x[-1] for part in (*self.lines, *self.bands, *self.marks) if len(part.x)]
        return float(max(ends, default=0.0))

    @property
    def resolved_scale(self) -> str:
        if self.scale != "auto":
            return self.scale
        low, high = self.extent
        return "log" if low > 0 and high / low > LOG_FROM else "linear"


@dataclasses.dataclass(frozen=True)
class Key:
    """An entry of a legend. kind: of a Line, Band or Marks."""

    label: str
    colour: int
    kind: str = "main"


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A picture of several panels under one legend."""

    title: str
    panels: tuple[Panel, ...]
    keys: tuple[Key, ...]


@dataclasses.dataclass(frozen=True)
class Bars:
    """One horizontal bar for each row, of parts that sum up to its whole."""

    title: str
    rows: tuple[str, ...]  # labels
    parts: tuple[str, ...]  # their names
    colours: tuple[str, ...]  # of the parts, by name in style.LIGHT
    values: np.ndarray  # [rows, parts], >= 0
    notes: tuple[str, ...]  # of each row, written behind its bar

    @property
    def shares(self) -> np.ndarray:
        """[rows, parts], of each row's whole."""
        whole = self.values.sum(1, keepdims=True)
        return np.divide(self.values, whole, out=np.zeros_like(self.values, float), where=whole > 0)


@dataclasses.dataclass(frozen=True)
class Gauges:
    """One horizontal bar from 0 for each row, with a whisker from its least to its greatest value."""

    title: str  # what the numbers are
    unit: str
    rows: tuple[str, ...]  # labels
    middle: np.ndarray  # [rows], finite, >= 0
    low: np.ndarray  # [rows]
    high: np.ndarray  # [rows]


def line(x, y, colour: int, kind: str = "main") -> Line | None:
    """A line of what is finite, thinned; None if nothing is."""
    xs, ys = thin(*finite(x, y))
    return Line(xs, ys, colour, kind) if len(xs) else None


def linear_below(values: np.ndarray) -> float:
    """Where an axis of positive and negative values turns from linear to logarithmic: a power of ten."""
    sizes = np.abs(values[values != 0])
    if not sizes.size:
        return 1.0
    return 10.0 ** math.floor(math.log10(max(float(np.quantile(sizes, 0.1)), float(sizes.max()) * 1e-5)))
