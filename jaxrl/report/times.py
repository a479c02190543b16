"""Where the time of runs went: one bar for each, of the phases that its rows sum up."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from jaxrl.charts.panel import Bars
from jaxrl.report.groups import Group
from jaxrl.report.record import Record
from jaxrl.report.shapes import duration, plural

PHASES = (  # name, metric, colour; in the order of a decision
    ("environment", "time/env_s", "c2"),
    ("policy", "time/policy_s", "c3"),
    ("update", "time/update_s", "c0"),
    ("device", "time/device_s", "c6"),
    ("evaluation", "time/eval_s", "c1"),
    ("saving", "time/save_s", "c4"),
    ("other", "time/other_s", "g0"),
)
COMPILATION, SET_UP = ("compilation", "c5"), ("set-up", "g1")
MOST = 24  # runs with a bar each, at most


def split(record: Record) -> dict[str, float]:
    """{phase: seconds}. What the rows' phases leave of the run's time is its set-up; compilation is the part
    of that which its first rows tell."""
    found = {name: record.total(metric) for name, metric, _ in PHASES}
    rest = max(0.0, (record.counter("wall_s") or 0.0) - sum(found.values()))
    compilation = min(rest, record.total("time/compile_s"))
    return {COMPILATION[0]: compilation, SET_UP[0]: rest - compilation} | found


def bars(groups: Sequence[Group], names: Mapping[pathlib.Path, str]) -> Bars | None:
    """A bar for each run, or for each group where there are many; None if no run has spent any time."""
    records = [x for group in groups for x in group.records]
    if len(records) <= MOST:
        rows = [(names[x.past.path], [split(x)]) for x in records]
    else:
        rows = [(f"{x.label} ({plural(len(x.records), 'run')})", [*map(split, x.records)]) for x in groups]
    rows = [(label, found) for label, found in rows if any(sum(x.values()) for x in found)][:MOST]
    if not rows:
        return None
    parts = [COMPILATION, SET_UP, *((name, colour) for name, _, colour in PHASES)]
    values = np.array([[sum(x[name] for x in found) for name, _ in parts] for _, found in rows])
    there = [i for i in range(len(parts)) if values[:, i].any()]
    return Bars(
        "Where the time went",
        tuple(label for label, _ in rows),
        tuple(parts[i][0] for i in there),
        tuple(parts[i][1] for i in there),
        values[:, there],
        tuple(duration(float(x)) for x in values.sum(1)),
    )
