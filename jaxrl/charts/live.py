"""The picture that follows a run: scores and losses so far, from numbers that come one by one."""

import collections
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes

from jaxrl.charts import figures, sheets, style, window
from jaxrl.charts.panel import linear_below
from jaxrl.charts.series import MOST, binned

SIZE, DPI = (9.0, 4.0), 100  # inches, pixels an inch
DRAWN = 400  # points of a curve: one for each pixel
ROLL = 20  # training episodes whose mean is drawn
LOSSES = 8  # at most so many are drawn
LOSS = "train/loss/"
# Drawn only if there is nothing else: the first has the value of `dyn`, the second is like `value`.
SECOND = ("train/loss/rep", "train/loss/repval")
MEAN, LOW, HIGH = (f"eval_episode/{name}_score" for name in ("avg", "min", "max"))


class Evaluation(NamedTuple):
    mean: float
    low: float
    high: float
    episodes: int  # 0: told by a row, which knows it all


class Track:
    """A curve that grows: of twice as many points as are kept, means over equal stretches are."""

    def __init__(self) -> None:
        self.x: list[float] = []
        self._y: list[float] = []
        self._weight: list[float] = []  # how many points each stands for

    def add(self, x: float, y: float) -> None:
        if math.isfinite(y):
            self.x.append(x)
            self._y.append(y)
            self._weight.append(1.0)
            if len(self.x) >= 2 * MOST:
                self.x, self._y, self._weight = (part.tolist() for part in self._means(MOST))

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """f64, at most `DRAWN` points, about one for each pixel."""
        if len(self.x) <= DRAWN:
            return np.asarray(self.x, float), np.asarray(self._y, float)
        x, y, _ = self._means(DRAWN)
        return x, y

    def _means(self, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        order = np.argsort(self.x, kind="stable")
        x, y, weight = (np.asarray(part, float)[order] for part in (self.x, self._y, self._weight))
        return binned(x, y, weight, bins)


class LivePlot:
    """Two panels, 900 x 400 pixels. Memory is bounded: a curve keeps at most 2,000 points.

    Args:
      path: of the PNG, which is replaced as a whole; its folder is there.
      title: such as the name of the run.
    """

    def __init__(self, path: pathlib.Path, title: str):
        self.path, self.title = path, title
        self._recent: collections.deque[float] = collections.deque(maxlen=ROLL)
        self._training = Track()
        self._evaluations: dict[float, Evaluation] = {}
        self._losses: dict[str, Track] = {}
        self._window: Any = None  # its process; it ends with this one

    def add_row(self, step: float, scalars: Mapping[str, float | None]) -> None:
        """Takes the losses of a row, and its evaluation if it has one. What is not finite is left out."""
        for name, value in scalars.items():
            if name.startswith(LOSS) and isinstance(value, int | float):
                self._losses.setdefault(name, Track()).add(step, value)
        mean = number(scalars.get(MEAN))
        if math.isfinite(mean):
            low, high = (number(scalars.get(name)) for name in (LOW, HIGH))
            low, high = (x if math.isfinite(x) else mean for x in (low, high))
            self._keep(step, Evaluation(mean, low, high, 0))

    def add_episode(self, step: float, score: float) -> None:
        """Takes a training episode."""
        if math.isfinite(score):
            self._recent.append(score)
            self._training.add(step, math.fsum(self._recent) / len(self._recent))

    def add_evaluation(self, step: float, score: float) -> None:
        """Takes an episode of the evaluation at a step, which a row of that step may sum up."""
        if not math.isfinite(score):
            return
        mean, low, high, count = self._evaluations.get(step, Evaluation(0.0, score, score, -1))
        if count:  # else a row has told of all of them
            count = max(count, 0)
            mean = (mean * count + score) / (count + 1)
            self._keep(step, Evaluation(mean, min(low, score), max(high, score), count + 1))

    def _keep(self, step: float, evaluation: Evaluation) -> None:
        self._evaluations[step] = evaluation
        if len(self._evaluations) >= 2 * MOST:
            self._evaluations = dict(list(self._evaluations.items())[:-1:2]) | {step: evaluation}

    def draw(self) -> None:
        """Replaces the picture. Raises OSError."""
        figure = style.sheet(*SIZE)
        title = style.plain(self.title, 100)
        figure.text(0.012, 0.972, title, va="top", fontsize=10.5, fontweight="bold", color=style.INK)
        left = figure.add_axes((0.0935, 0.12, 0.385, 0.69))
        right = figure.add_axes((0.5935, 0.12, 0.385, 0.69))
        ends = [*self._training.x[-1:], *self._evaluations, *(t.x[-1] for t in self._losses.values() if t.x)]
        self._draw_scores(left)
        self._draw_losses(right)
        for axes in (left, right):
            end = max(ends, default=0.0) or 1.0
            axes.set_xlim(-0.015 * end, 1.03 * end)
        sheets.save(figure, self.path, DPI)

    def show(self) -> str:
        """Opens a window that follows the picture until this process ends. Returns a line that says so,
        or why there is none."""
        why = window.obstacle()
        if not why:
            self._window = window.open_on(self.path)
        return f"no window: {why}; the picture is {self.path}" if why else f"a window shows {self.path}"

    def _draw_scores(self, axes: Axes) -> None:
        style.dress(axes, "", "env_steps", "return")
        x, y = self._training.points()
        extent = [*y]
        if len(x):
            axes.plot(x, y, label=f"training, mean of {ROLL} episodes", **one_point(x, 0))
        if self._evaluations:
            steps = sorted(self._evaluations)
            found = [self._evaluations[step] for step in steps]
            hue = figures.colour(1)
            axes.vlines(steps, [e.low for e in found], [e.high for e in found], color=hue, alpha=0.5)
            look = figures.line_style(1, "points")
            axes.plot(steps, [e.mean for e in found], label="evaluation, lowest to highest", **look)
            extent += [e.low for e in found] + [e.high for e in found]
        finish(axes, "linear", extent, "no episode is finished yet")

    def _draw_losses(self, axes: Axes) -> None:
        style.dress(axes, "", "env_steps", "loss")
        names = [name for name in self._losses if name not in SECOND] or list(self._losses)
        extent: list[float] = []
        for index, name in enumerate(names[:LOSSES]):
            x, y = self._losses[name].points()
            if len(x):
                axes.plot(x, y, label=style.plain(name.removeprefix(LOSS), 16), **one_point(x, index))
                extent += [*y]
        how = "linear" if not extent else "log" if min(extent) > 0 else "symlog"
        finish(axes, how, extent, "no update is made yet")


def one_point(x: np.ndarray, colour: int) -> dict:
    """The look of a line, with a dot if it has but one point."""
    look = figures.line_style(colour, "main") | {"linewidth": 1.5}
    return look | ({"marker": "o", "markersize": 4.0} if len(x) == 1 else {})


def finish(axes: Axes, how: str, extent: list[float], otherwise: str) -> None:
    """Scale and legend of axes; a word instead where nothing is drawn."""
    if not extent:
        axes.text(0.5, 0.5, otherwise, ha="center", transform=axes.transAxes, color=style.MUTED, fontsize=9)
        axes.yaxis.set_major_locator(ticker.NullLocator())
        return
    style.scale(axes, how, min(extent), max(extent), linear_below(np.asarray(extent)))
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=2 if len(axes.get_lines()) <= 2 else 4,
        frameon=False,
        fontsize=8,
        labelcolor=style.MUTED,
        handlelength=1.4,
        columnspacing=1.2,
        borderaxespad=0.2,
    )


def number(value: float | None) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
