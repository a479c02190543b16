"""Curves made small: thinned, smoothed, averaged; and their numbers as one reads them on an axis."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

MOST = 1_000  # points of a curve that are drawn: more than its pixels
MARKS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def finite(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f64 [points] each, sorted by x, without the points that are not finite."""
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    good = np.isfinite(xs) & np.isfinite(ys)
    order = np.argsort(xs[good], kind="stable")
    return xs[good][order], ys[good][order]


def thin(x: np.ndarray, y: np.ndarray, most: int = MOST) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points of a curve: first and last, and least and greatest of equal stretches of x.

    Args:
      x: [points], sorted, finite.
      y: [points], finite.
      most: at least 4.
    """
    if len(x) <= most:
        return x, y
    edges = np.searchsorted(x, np.linspace(x[0], x[-1], (most - 2) // 2 + 1))
    edges[-1] = len(x)
    kept = {0, len(x) - 1}
    for low, high in itertools.pairwise(edges):
        if low < high:
            kept |= {int(low + np.argmin(y[low:high])), int(low + np.argmax(y[low:high]))}
    chosen = np.array(sorted(kept))
    return x[chosen], y[chosen]


def binned(
    x: np.ndarray, y: np.ndarray, weight: np.ndarray, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted means of x and y over equal stretches of x, and the sums of weights; of those that have any.

    Args:
      x: [points], sorted, finite.
      y, weight: [points], finite; weights are positive.
    """
    if not len(x):
        return x, y, weight
    edges = np.linspace(x[0], x[-1], bins + 1)
    place = np.clip(np.searchsorted(edges, x, "right") - 1, 0, bins - 1)
    total, sum_x, sum_y = (np.bincount(place, v, bins) for v in (weight, weight * x, weight * y))
    full = total > 0
    return sum_x[full] / total[full], sum_y[full] / total[full], total[full]


def rolling(y: np.ndarray, width: int) -> np.ndarray:
    """Mean of the last `width` values at every one of them; of as many as there are at the beginning."""
    if not len(y):
        return y
    total = np.concatenate([[0.0], np.cumsum(y, dtype=float)])
    ends = np.arange(1, len(y) + 1)
    begins = np.maximum(ends - width, 0)
    return (total[ends] - total[begins]) / (ends - begins)


def short(value: float, _position: object = None) -> str:
    """A number of an axis: 250k, 1.5M, −21, 0.05. Takes a second argument as matplotlib's formatters do."""
    if not math.isfinite(value):
        return ""
    size, mark = next((x for x in MARKS if abs(value) >= x[0]), (1.0, ""))
    text = f"{value / size:.6g}".replace("e-0", "e−")
    return ("0" if text == "-0" else text.replace("-", "−", 1) if value < 0 else text) + mark


def clipped(text: str, most: int) -> str:
    """A text of at most `most` characters: of a longer one the middle is left out."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"
