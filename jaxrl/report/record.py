"""A run as curves: its files read once, row by row, into arrays of what the page shows."""

import array
import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxrl.reading import Past, is_number

# Metrics of which curves or sums are drawn, by the beginning of their names.
KEPT = ("episode/", "eval_episode/", "train/loss/", "train/opt/loss", "holdout/loss/", "fps/", "time/")
KEPT += ("usage/", "replay/ram_gb", "wall_s")
LARGEST_STEP, LARGEST = 10**15, 1e100  # whatever is beyond was not written here, and could not be drawn
RECENT = 100  # training episodes whose mean is the score of a run


@dataclasses.dataclass(frozen=True)
class Curve:
    """Values wherever there are any, sorted by step."""

    steps: np.ndarray  # [points] f64, env_steps
    values: np.ndarray  # [points] f64, finite

    def __len__(self) -> int:
        return len(self.steps)


NOTHING = Curve(np.empty(0), np.empty(0))


@dataclasses.dataclass(frozen=True)
class Record:
    past: Past
    rows: int  # of metrics.jsonl
    last: dict[str, Any]  # the last of them; empty if there is none
    metrics: dict[str, Curve]
    episodes: Curve  # scores of training episodes, at the steps where they ended
    successes: Curve  # of the same, 0 or 1, where the task defines it

    def of(self, metric: str) -> Curve:
        return self.metrics.get(metric, NOTHING)

    @property
    def step(self) -> int:
        """env_steps so far."""
        return int(self.last.get("step", 0))

    def counter(self, name: str) -> float | None:
        """`updates`, `episodes`, `wall_s` ... of the last row."""
        return usable(self.last.get(name))

    @property
    def recent(self) -> float | None:
        """Mean score of the last training episodes; None before the first."""
        found = self.episodes.values[-RECENT:]
        return float(found.mean()) if len(found) else None

    @property
    def speed(self) -> float | None:
        """env_steps/s over the whole run, without evaluations and saving; None if no row tells."""
        curve = self.of("fps/env_steps")
        steps = np.diff(curve.steps, prepend=0.0)
        good = (curve.values > 0) & (steps > 0)
        seconds = float((steps[good] / curve.values[good]).sum())
        return float(steps[good].sum()) / seconds if seconds else None

    def total(self, metric: str) -> float:
        """Sum over the rows."""
        return float(self.of(metric).values.sum())


def read(past: Past) -> Record:
    """Reads a run's files. What cannot be read goes into its remarks."""
    columns: dict[str, tuple[array.array, array.array]] = {}
    last: dict[str, Any] = {}
    rows = 0
    for row in past.stream():
        step = row["step"]
        if usable(step, LARGEST_STEP) is None:
            continue
        rows, last = rows + 1, row
        for name, value in row.items():
            if name.startswith(KEPT) and usable(value) is not None:
                if name not in columns:
                    columns[name] = array.array("d"), array.array("d")
                steps, values = columns[name]
                steps.append(step)
                values.append(value)
    metrics = {name: curve(*column) for name, column in columns.items()}
    episodes, successes = (training(past, f"episode/{name}") for name in ("score", "success"))
    return Record(
        past,
        rows,
        last,
        metrics,
        # A run without scores.jsonl still has the means of its rows.
        episodes if len(episodes) else metrics.get("episode/score", NOTHING),
        successes if len(successes) else metrics.get("episode/success", NOTHING),
    )


def training(past: Past, name: str) -> Curve:
    """A field of the training episodes."""
    found = [(usable(row["step"], LARGEST_STEP), usable(row.get(name))) for row in past.scores]
    known = [(step, value) for step, value in found if step is not None and value is not None]
    return curve([step for step, _ in known], [value for _, value in known], many=True)


def usable(value: Any, largest: float = LARGEST) -> float | None:
    """A number of a file; None if it is something else, not finite or beyond all measure."""
    return value if is_number(value) and abs(value) <= largest else None


def curve(steps: Iterable[float], values: Iterable[float], many: bool = False) -> Curve:
    """Sorted, without what is not finite; of a step that is there twice the last, unless all are wanted."""
    xs, ys = np.array(steps, float), np.array(values, float)
    good = np.isfinite(xs) & np.isfinite(ys)
    xs, ys = xs[good], ys[good]
    order = np.argsort(xs, kind="stable")
    xs, ys = xs[order], ys[order]
    if not many and len(xs):
        kept = np.append(xs[1:] != xs[:-1], True)
        xs, ys = xs[kept], ys[kept]
    return Curve(xs, ys)
