"""plots/live.png: score and losses of the run so far, drawn anew after rows."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jaxrl.sinks.row import Event, Row, ScoreRow, Sink

if TYPE_CHECKING:
    from jaxrl.charts.live import LivePlot

SHARE = 0.01  # of the time that drawing may take
SCORE, EVALUATION = "episode/score", "eval_episode/score"


class LiveSink(Sink):
    """Draws after a row, but so seldom that drawing takes a hundredth of the time; and in the end.

    Args:
      run_dir: gets plots/live.png.
      resume_step: env_steps up to which the run's own files tell of what was before; None: a new run.
      scores_step: the same of training episodes.
      window: whether to show the picture in a window that follows it.
    """

    name = "plot"
    takes: ClassVar[tuple[type, ...]] = (Row, ScoreRow)
    tick_s = 0.5
    slow_s = 5.0

    def __init__(self, run_dir: Path, resume_step: int | None, scores_step: int | None, window: bool) -> None:
        self._run_dir, self._window = run_dir, window
        self._resume_step, self._scores_step = resume_step, scores_step
        self._plot: LivePlot | None = None
        self._is_new = False  # something is not drawn yet
        self._not_before = 0.0  # time.monotonic

    def take(self, event: Event) -> None:
        plot = self._plot or self._begin()
        if isinstance(event, Row):
            plot.add_row(event.step, event.scalars)
            self._is_new = True
        elif isinstance(event, ScoreRow):
            add = plot.add_episode if event.kind == "episode" else plot.add_evaluation
            add(event.step, event.score)
        self.tick()

    def tick(self) -> None:
        if self._is_new and time.monotonic() >= self._not_before:
            self._draw()

    def close(self) -> None:
        if self._is_new:
            self._draw()

    def _draw(self) -> None:
        assert self._plot is not None
        began = time.thread_time()
        self._plot.draw()
        self._is_new = False
        self._not_before = time.monotonic() + (time.thread_time() - began) / SHARE

    def _begin(self) -> LivePlot:
        """Here and not before, since the drawing library takes a second to import."""
        from jaxrl.charts.live import LivePlot

        file = self._run_dir / "plots" / "live.png"
        file.parent.mkdir(exist_ok=True)
        self._plot = plot = LivePlot(file, self._run_dir.name)
        if self._resume_step is not None:
            for row in earlier(self._run_dir / "metrics.jsonl", self._resume_step):
                plot.add_row(row["step"], row)
            for row in earlier(self._run_dir / "scores.jsonl", self._scores_step or self._resume_step):
                if SCORE in row:
                    plot.add_episode(row["step"], number(row[SCORE]))
                elif EVALUATION in row and row["step"] <= self._resume_step:
                    plot.add_evaluation(row["step"], number(row[EVALUATION]))
        if self._window:
            self.say(plot.show())
        return plot


def earlier(file: Path, last_step: int) -> Iterator[dict[str, Any]]:
    """Rows of a file of JSON lines up to a step, one by one; a torn line is passed over."""
    if not file.exists():
        return
    with open(file, "rb") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if row["step"] <= last_step:
                yield row


def number(value: float | None) -> float:
    return math.nan if value is None else value
