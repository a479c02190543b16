"""What panels are made of: curves of single runs, and of several seeds with a band around their mean."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from jaxrl import aggregate
from jaxrl.charts.panel import GREY, Band, Key, Line, Marks, Panel, line
from jaxrl.charts.series import MOST, binned, rolling
from jaxrl.report.groups import Group
from jaxrl.report.record import LARGEST_STEP, Curve, Record, curve, usable

GRID = 200  # points of a mean over seeds
WIDEST = 100  # training episodes that a rolling mean is over, at most; a tenth of a run's otherwise
PALE = 10  # seeds that are drawn one by one, at most
FULL = 4  # tasks that all is drawn of
KINDS = ("main", "seed", "area", "dashed", "points", "best", "saved")  # as legends order them
MEAN, DEVIATION, RATE = "eval_episode/avg_score", "eval_episode/std_score", "eval_episode/success_rate"


@dataclasses.dataclass(frozen=True)
class Charts:
    """Panels under one legend."""

    panels: tuple[Panel, ...]
    keys: tuple[Key, ...]
    notes: tuple[str, ...] = ()


@dataclasses.dataclass
class Parts:
    """What a panel is made of, while it is being collected."""

    lines: list[Line | None] = dataclasses.field(default_factory=list)
    bands: list[Band] = dataclasses.field(default_factory=list)
    marks: list[Marks] = dataclasses.field(default_factory=list)
    kinds: set[tuple[str, str]] = dataclasses.field(default_factory=set)  # (kind of a key, its words)

    def panel(self, title: str, y: str, **more: str) -> Panel | None:
        """None if there is nothing to see."""
        lines = tuple(x for x in self.lines if x is not None)
        marks, bands = tuple(self.marks), tuple(self.bands)
        return Panel(title, y, lines, bands, marks, **more) if lines else None

    def add_spread(self, curves: Sequence[Curve], colour: int, kind: str = "main") -> None:
        """One curve as it is; several in pale, and their mean with a band where all of them have values."""
        curves = [x for x in curves if len(x)]
        is_dense = any(len(x) > MOST for x in curves)
        if len(curves) <= PALE and (is_dense or len(curves) > 1):
            self.lines += [line(x.steps, x.values, colour, "seed") for x in curves]
        if is_dense:
            self.kinds.add(("seed", f"pale: single values; else means over a {GRID}th of the steps"))
        curves = [calm(x) for x in curves]
        if len(curves) < 2:
            self.lines += [line(x.steps, x.values, colour, kind) for x in curves]
            return
        begin, end = max(x.steps[0] for x in curves), min(x.steps[-1] for x in curves)
        if begin > end:
            return
        grid = np.linspace(begin, end, GRID) if begin < end else np.array([begin])
        found = aggregate.band([np.interp(grid, x.steps, x.values) for x in curves])
        self.lines.append(line(grid, found.middle, colour, kind))
        self.bands.append(Band(grid, found.low, found.high, colour))
        self.kinds.add(("area", found.kind))

    def add_points(self, curves: Sequence[Curve], spreads: Sequence[Curve], colour: int) -> None:
        """Evaluations: of one run with its own spread, of several their mean at steps of all."""
        pairs = [(x, y) for x, y in zip(curves, spreads, strict=True) if len(x)]
        if not pairs:
            return
        if len(pairs) == 1:
            ((curve, spread),) = pairs
            self.lines.append(line(curve.steps, curve.values, colour, "points"))
            around = dict(zip(spread.steps.tolist(), spread.values.tolist(), strict=True))
            size = np.array([around.get(step, 0.0) for step in curve.steps.tolist()])
            self.bands.append(Band(curve.steps, curve.values - size, curve.values + size, colour, "bars"))
            self.kinds.add(("points", "deviation over a run's episodes" if len(spread) else ""))
            return
        steps = pairs[0][0].steps
        for curve, _ in pairs[1:]:
            steps = np.intersect1d(steps, curve.steps)
        if not len(steps):
            for curve, _ in pairs:
                self.lines.append(line(curve.steps, curve.values, colour, "points"))
            self.kinds.add(("points", ""))
            return
        # Of a run that came further, or evaluated more often, the rest is not hidden.
        alone = [x for x, _ in pairs if len(x) > len(steps)]
        self.lines += [line(x.steps, x.values, colour, "seed") for x in alone[:PALE]]
        found = aggregate.band([curve.values[np.isin(curve.steps, steps)] for curve, _ in pairs])
        self.lines.append(line(steps, found.middle, colour, "points"))
        self.bands.append(Band(steps, found.low, found.high, colour, "bars"))
        self.kinds.add(("points", found.kind))

    def add_saved(self, record: Record, colour: int) -> None:
        """The best checkpoint, and ticks at the periodic ones."""
        scores = {float(x): float(y) for x, y in zip(*both(record.of(MEAN)), strict=True)}
        saved = [x for x in record.past.saved if usable(x.get("step"), LARGEST_STEP) is not None]
        best = [x["step"] for x in saved if x.get("store") == "best" and x["step"] in scores]
        if best:
            self.marks.append(Marks(np.array(best[-1:], float), np.array([scores[best[-1]]]), colour, "best"))
            self.kinds.add(("best", "best checkpoint"))
        steps = np.array(sorted({x["step"] for x in saved if x.get("store") == "periodic"}), float)
        if len(steps):
            self.marks.append(Marks(steps, np.zeros(len(steps)), colour, "saved"))
            self.kinds.add(("saved", "periodic checkpoint"))


def both(found: Curve) -> tuple[np.ndarray, np.ndarray]:
    return found.steps, found.values


def calm(found: Curve) -> Curve:
    """A curve of more points than can be seen as means over equal stretches."""
    if len(found) <= MOST:
        return found
    steps, values, _ = binned(found.steps, found.values, np.ones(len(found)), GRID)
    return Curve(steps, values)


def tasks_of(groups: Sequence[Group]) -> list[str]:
    return sorted({record.past.task for group in groups for record in group.records})


def colour_keys(groups: Sequence[Group], peers: Sequence[str] = ()) -> list[Key]:
    keys = [Key(group.label, group.colour) for group in groups]
    theirs = [f"{name} (peer, smoothed alike)" for name in peers]
    return [*keys, *(Key(label, len(groups) + i, "dashed") for i, label in enumerate(theirs))]


def kind_keys(kinds: Iterable[tuple[str, str]]) -> list[Key]:
    """Entries of the kinds of lines and marks, in a fixed order."""
    words: dict[str, list[str]] = {}
    for kind, word in sorted(kinds):
        words.setdefault(kind, []).append(word)
    keys = []
    for kind in KINDS:
        label = "; ".join(x for x in words.get(kind, []) if x)
        if kind == "points" and kind in words:
            label = f"evaluation (bars: {label})" if label else "evaluation"
        elif kind == "area" and label:
            label = f"band: {label}"
        if label:
            keys.append(Key(label, GREY, kind))
    return keys


def there(panels: Iterable[Panel | None]) -> tuple[Panel, ...]:
    return tuple(panel for panel in panels if panel is not None)


def beside(found: Sequence[Charts]) -> Charts:
    """Charts of different things as one, under a legend of all their entries."""
    panels = tuple(panel for charts in found for panel in charts.panels)
    keys: dict[tuple[str, int], Key] = {}
    for key in (key for charts in found for key in charts.keys):
        keys.setdefault((key.kind, key.colour), key)  # what is told of the first holds for the others
    return Charts(panels, tuple(keys.values()), tuple(note for charts in found for note in charts.notes))


def window(curves: Iterable[Curve]) -> int:
    """Training episodes that the rolling mean of a panel is over.

    A tenth of what a run has, but no fewer than end at the same step, where environments run together; at
    most 100; 0 if there are none.
    """
    counts = [(len(x), len(np.unique(x.steps))) for x in curves if len(x)]
    if not counts:
        return 0
    tenth = np.median([episodes // 10 for episodes, _ in counts])
    together = max(math.ceil(episodes / steps) for episodes, steps in counts)
    return int(np.clip(max(tenth, together), 1, WIDEST))


def smoothed(found: Curve, width: int) -> Curve:
    """The rolling mean, once for each step at which episodes ended."""
    return curve(found.steps, rolling(found.values, max(1, width)))


def axis(name: str, width: int) -> str:
    """The x axis of scores, and how training episodes were smoothed; 0: there are none."""
    how = "every training episode" if width == 1 else f"training: mean of the last {width} episodes"
    return f"{name}  ({how})" if width else name
