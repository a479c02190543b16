"""Charts of scores and successes, one panel for each task, never averaged over tasks."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jaxrl.report.curves import (
    DEVIATION,
    FULL,
    MEAN,
    RATE,
    Charts,
    Parts,
    axis,
    colour_keys,
    kind_keys,
    smoothed,
    tasks_of,
    there,
    window,
)
from jaxrl.report.foreign import Curve as Foreign
from jaxrl.report.groups import Group
from jaxrl.report.record import Curve, Record, curve

CLOCKS = (("h", 3_600.0), ("min", 60.0), ("s", 1.0))


def learning(groups: Sequence[Group], peers: Sequence[Foreign]) -> Charts:
    """Scores of training episodes and of evaluations over env_steps."""
    names = sorted({x.group for x in peers})
    panels, kinds = [], set()
    for task in tasks_of(groups):
        width = window(x.episodes for group in groups for x in group.of(task))
        parts = scores(groups, task, width)
        for group in groups:
            for record in group.of(task):
                parts.add_saved(record, group.colour)
        for i, name in enumerate(names):
            theirs = [curve(x.steps, x.scores, True) for x in peers if x.group == name and x.task == task]
            found = [smoothed(x, window(theirs)) for x in theirs]
            parts.add_spread(found, len(groups) + i, "dashed")
        panels.append(parts.panel(task, "return", x=axis("env_steps", width)))
        kinds |= parts.kinds
    return Charts(there(panels), (*colour_keys(groups, names), *kind_keys(kinds)))


def scores(groups: Sequence[Group], task: str, width: int) -> Parts:
    """Training episodes and evaluations of a task."""
    parts = Parts()
    for group in groups:
        records = group.of(task)
        parts.add_spread([smoothed(x.episodes, width) for x in records], group.colour)
        parts.add_points([x.of(MEAN) for x in records], [x.of(DEVIATION) for x in records], group.colour)
        if any(len(x.episodes) for x in records):
            parts.kinds.add(("main", "training episodes, smoothed"))
    return parts


def by_time(groups: Sequence[Group]) -> Charts:
    """The same scores over the time that it took; nothing of many tasks."""
    panels, kinds = [], set()
    tasks = tasks_of(groups)
    for task in tasks if len(tasks) <= FULL else []:
        ends = [x.counter("wall_s") or 0.0 for group in groups for x in group.of(task)]
        unit, seconds = next((x for x in CLOCKS if max(ends) >= 2 * x[1]), CLOCKS[-1])
        timed = [replace(g, records=tuple(over_time(x, seconds) for x in g.of(task))) for g in groups]
        width = window(x.episodes for group in timed for x in group.records)
        parts = scores(timed, task, width)
        panels.append(parts.panel(f"{task}, over time", "return", x=axis(f"wall time, {unit}", width)))
        kinds |= parts.kinds
    return Charts(there(panels), (*colour_keys(groups), *kind_keys(kinds)))


def over_time(record: Record, seconds: float) -> Record:
    """A run whose scores lie over wall time, in units of so many seconds."""
    clock = record.of("wall_s")

    def moved(found: Curve) -> Curve:
        if not len(clock) or not len(found):
            return curve([], [])
        return Curve(np.interp(found.steps, clock.steps, clock.values) / seconds, found.values)

    metrics = {name: moved(record.of(name)) for name in (MEAN, DEVIATION)}
    return replace(record, metrics=metrics, episodes=moved(record.episodes))


def success(groups: Sequence[Group]) -> Charts:
    """Success rates where the task defines them."""
    panels, kinds = [], set()
    for task in tasks_of(groups):
        parts = Parts()
        width = window(x.successes for group in groups for x in group.of(task))
        for group in groups:
            records = group.of(task)
            parts.add_spread([smoothed(x.successes, width) for x in records], group.colour)
            parts.add_points([x.of(RATE) for x in records], [curve([], [])] * len(records), group.colour)
        panels.append(
            parts.panel(f"{task}, success", "success rate", scale="percent", x=axis("env_steps", width))
        )
        kinds |= parts.kinds
    return Charts(there(panels), (*colour_keys(groups), *kind_keys(kinds)))
