"""Which runs belong together: those that differ in nothing but seed and task, by what they were told."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from jaxrl import changes
from jaxrl.charts.series import clipped
from jaxrl.config import Config, show, to_dict
from jaxrl.reading import Past
from jaxrl.report.record import Record

APART = ("seed", "task")  # what runs of one group may differ in, beside settings that move no result
TOLD = 3  # settings that a label names at most
LONGEST = 60  # characters of a run's name


@dataclasses.dataclass(frozen=True)
class Group:
    label: str
    colour: int  # index of its colour
    records: tuple[Record, ...]

    def of(self, task: str) -> list[Record]:
        return [x for x in self.records if x.past.task == task]


def told(value: Any) -> dict[str, Any]:
    """An object of run.json, which may hold anything if it was edited."""
    return value if isinstance(value, dict) else {}


def preset(past: Past) -> str:
    """The preset of a run, by its run.json."""
    name = past.note.get("config")
    return name if isinstance(name, str) and name else "no preset"


def filled(past: Past) -> dict[str, Any]:
    """All settings of a run; one that an older version did not save has today's default."""
    return {**to_dict(Config()), **past.config}


def settings(past: Past) -> dict[str, str]:
    """The same, as JSON."""
    return {name: written(value) for name, value in filled(past).items()}


def written(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def makes_another(name: str) -> bool:
    """Whether runs that differ in a setting are different things."""
    try:
        return name not in APART and changes.class_of(name) != "free"
    except KeyError:  # of another version
        return True


def grouped(records: Sequence[Record]) -> list[Group]:
    """Groups in the order of their first runs."""
    found: dict[tuple, list[Record]] = {}
    for record in records:
        known = settings(record.past)
        key = preset(record.past), *sorted((k, v) for k, v in known.items() if makes_another(k))
        found.setdefault(key, []).append(record)
    members = list(found.values())
    return [Group(label, i, tuple(members[i])) for i, label in enumerate(labels(members))]


def labels(members: Sequence[Sequence[Record]]) -> list[str]:
    """A label for each group: its preset, and in what it differs from the other groups of that preset."""
    firsts = [records[0].past for records in members]
    known = [(preset(past), settings(past)) for past in firsts]
    made = []
    for past in firsts:
        own = filled(past)
        peers = [values for name, values in known if name == preset(past)]
        names = [name for name in own if makes_another(name) and len({x.get(name) for x in peers}) > 1]
        words = [f"{name}={show(own[name])}" for name in names[:TOLD]]
        words += [f"{len(names) - TOLD} more"] if len(names) > TOLD else []
        made.append(", ".join([preset(past), *words]))
    return [label if made.count(label) == 1 else f"{label} #{i + 1}" for i, label in enumerate(made)]


def names_of(pasts: Sequence[Past]) -> dict[pathlib.Path, str]:
    """{path: name} that tells the runs apart: what is below the folder that holds them all, not too long."""
    root = os.path.commonpath([past.path.parent for past in pasts])
    found: dict[pathlib.Path, str] = {}
    for past in pasts:
        name = clipped(str(past.path.relative_to(root)), LONGEST)
        found[past.path] = name if name not in found.values() else f"{name} #{len(found) + 1}"
    return found


def differing(pasts: Sequence[Past]) -> dict[str, list[str]]:
    """{setting: its value in each run} of those that are not the same everywhere, but for the directory."""
    known = [filled(past) for past in pasts]
    names = dict.fromkeys(name for values in known for name in values)
    return {
        name: [show(values[name]) if name in values else "" for values in known]
        for name in names
        if name not in changes.OF_COMMAND and len({written(values.get(name)) for values in known}) > 1
    }


def cautions(groups: Sequence[Group]) -> list[str]:
    """What should not be compared without a thought."""
    found = []
    tasks = {x.past.task for group in groups for x in group.records}
    if len(tasks) > 1:
        found.append(f"{len(tasks)} tasks: their scores have different scales, and are never averaged here.")
    for group in groups:
        for task in sorted({x.past.task for x in group.records}):
            seeds = [x.past.seed for x in group.of(task)]
            if again := sorted({str(seed) for seed in seeds if seeds.count(seed) > 1}):
                word = "seed" if len(again) == 1 else "seeds"
                where = f"{group.label}, {task}"
                found.append(f"{where}: {word} {', '.join(again)} more than once; every run counts.")
        found += changed_under_way(group)
    kinds = {device(x.past) for group in groups for x in group.records} - {""}
    if len(kinds) > 1:
        found.append(f"different hardware ({', '.join(sorted(kinds))}): speeds say nothing about each other.")
    return found


def changed_under_way(group: Group) -> list[str]:
    """Lines about runs of one group that are not the same program throughout."""
    found = []
    commits = {str(told(x.past.note.get("git")).get("commit", ""))[:10] for x in group.records} - {""}
    if len(commits) > 1:
        found.append(f"{group.label}: its runs come from {len(commits)} commits of the program.")
    return found


def device(past: Past) -> str:
    """The hardware that a run computes on, as run.json tells it."""
    found = told(past.note.get("device"))
    kind, count = str(found.get("kind", "")), found.get("count", 1)
    return kind if count == 1 else f"{count} x {kind}"
