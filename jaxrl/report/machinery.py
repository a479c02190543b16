"""Charts of losses, throughput and memory."""

from collections.abc import Sequence

from jaxrl import glossary
from jaxrl.charts.panel import line
from jaxrl.report.curves import FULL, PALE, Charts, Parts, colour_keys, kind_keys, tasks_of, there
from jaxrl.report.groups import Group
from jaxrl.report.record import Record

LOSS, SUM, HELD_OUT = "train/loss/", "train/opt/loss", "holdout/loss/"
LOSSES = 12  # panels of losses of a task, at most
MACHINE = (  # title, axis, metric, another one that is dashed, scale
    ("env_steps/s", "env_steps/s", "fps/env_steps", "", "auto"),
    ("updates/s", "updates/s", "fps/updates", "", "auto"),
    ("memory", "resident, GB", "usage/rss_gb", "", "zero"),
    ("device memory", "in use, GB", "usage/device_gb", "usage/device_peak_gb", "zero"),
)


def losses(groups: Sequence[Group]) -> Charts:
    """Training losses, each with that of held-out episodes where there are any."""
    tasks = tasks_of(groups)
    panels, kinds, notes = [], set(), []
    for task in tasks:
        records = [x for group in groups for x in group.of(task)]
        names = loss_names(records)
        names = names if len(tasks) <= FULL else names[:1]
        if len(names) > LOSSES:
            notes.append(f"{task}: {len(names) - LOSSES} more losses are not drawn.")
        for name in names[:LOSSES]:
            parts = loss(groups, task, name)
            title = "total loss" if name == SUM else name.removeprefix(LOSS)
            entry = glossary.find(name)
            panel = parts.panel(
                f"{task}: {title}" if len(tasks) > 1 else title,
                f"loss, {entry.unit}" if entry and entry.unit else "loss",
                scale="auto",
                note=entry.meaning if entry else "",
            )
            panels.append(panel)
            kinds |= parts.kinds
    if len(tasks) > FULL:
        notes.append(f"Of more than {FULL} tasks only one loss is drawn, their sum where there is one.")
    return Charts(there(panels), (*colour_keys(groups), *kind_keys(kinds)), tuple(notes))


def loss(groups: Sequence[Group], task: str, name: str) -> Parts:
    """One of the losses."""
    parts = Parts()
    for group in groups:
        members = group.of(task)
        parts.add_spread([x.of(name) for x in members], group.colour)
        held_out = [x.of(name.replace(LOSS, HELD_OUT)) for x in members if name.startswith(LOSS)]
        if any(map(len, held_out)):
            parts.add_spread(held_out, group.colour, "dashed")
            parts.kinds.add(("dashed", "held-out episodes"))
    return parts


def loss_names(records: Sequence[Record]) -> list[str]:
    """Names of the losses that runs have: their sum, then in the glossary's order."""
    order = [entry.name for entry in glossary.ENTRIES]
    found = {name for x in records for name in x.metrics if name.startswith(LOSS) or name == SUM}

    def place(name: str) -> tuple[bool, int, str]:
        entry = glossary.find(name)
        return name != SUM, order.index(entry.name) if entry else len(order), name

    return sorted(found, key=place)


def speed(groups: Sequence[Group]) -> Charts:
    """Throughput and memory of every run, by task unless there are many."""
    tasks = tasks_of(groups)
    each = [(task,) for task in tasks] if len(tasks) <= FULL else [tasks]
    panels, kinds = [], set()
    for chosen in each:
        for title, y, name, most, scale in MACHINE:
            parts = Parts()
            for group in groups:
                for record in [x for task in chosen for x in group.of(task)]:
                    found, peak = record.of(name), record.of(most)
                    kind = "main" if len(group.records) < PALE else "seed"
                    parts.lines.append(line(found.steps, found.values, group.colour, kind))
                    parts.lines.append(line(peak.steps, peak.values, group.colour, "dashed"))
                    if len(peak):
                        parts.kinds.add(("dashed", "the most so far"))
            title = f"{chosen[0]}: {title}" if len(each) > 1 else title
            panels.append(parts.panel(title, y, scale=scale))
            kinds |= parts.kinds
    return Charts(there(panels), (*colour_keys(groups), *kind_keys(kinds)))
