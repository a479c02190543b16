"""The settings of a population that goes on: those of its members, unless the command names a preset."""

import dataclasses
import pathlib
import re

from jaxrl import rundir
from jaxrl.changes import Origin

# Of a member's folder: task and seed. Runs that were given no folder have a time between them.
NAME = re.compile(r"(\w+)-(\d{1,10})")


def origin_of(origin: Origin, named: bool) -> Origin:
    """As `rundir.origin_of`; with --seeds or --tasks, what members in the folder have been trained with.

    Args:
      origin: the preset, and the settings that the command gives.
      named: whether it names the preset.
    """
    found, given = rundir.origin_of(origin, named), origin.given
    if named or found.path or not (given.get("logdir") and (given.get("seeds") or given.get("tasks"))):
        return found
    members = members_of(rundir.located("logdir", str(given["logdir"])))
    if not members:
        return found
    (_, _, first), *_ = members
    found = rundir.on_saved(found, named, rundir.read_config(first / "config.json"), first, first)
    tasks = sorted({task for task, _, _ in members})
    if len(tasks) > 1 and not {"task", "tasks"} & given.keys():
        found = dataclasses.replace(found, given=dict(found.given) | {"tasks": ",".join(tasks)})
    return dataclasses.replace(found, path=None, saved=None, notes=())


def members_of(home: pathlib.Path) -> list[tuple[str, int, pathlib.Path]]:
    """Task, seed and run directory of each, in this order."""
    paths = [file.parent for file in home.glob("*/config.json")]
    return sorted((name[1], int(name[2]), path) for path in paths if (name := NAME.fullmatch(path.name)))
