"""list: one line for each run below a folder."""

import argparse
import dataclasses
import fnmatch
import json
import pathlib
from collections.abc import Callable, Sequence

from jaxrl import commands, exits, rundir
from jaxrl.config import ConfigError, show
from jaxrl.reading import open_past, runs_in
from jaxrl.runs import text
from jaxrl.runs.glance import Glance, glance, name_below
from jaxrl.runs.text import Column
from jaxrl.schema import nearest

STATES = ("running", "done", "stopped", "failed", "died")
LOWEST = float("-inf")
# What runs are ordered by, the largest at the end; those that have no such value come first.
ORDERS: dict[str, Callable[[Glance], float | str]] = {
    "started": lambda x: began.timestamp() if (began := text.moment(x.started)) else LOWEST,
    "step": lambda x: LOWEST if x.step is None else x.step,
    "score": lambda x: next((v for v in (x.best_score, x.score) if v is not None), LOWEST),
    "name": lambda x: x.name,
}
COLUMNS: tuple[tuple[Column, Callable[[Glance], str]], ...] = (
    (Column("run", right=False, least=18), lambda x: x.name),
    (Column("task", right=False, least=10, goes=1), lambda x: x.task),
    (Column("preset", right=False, goes=8), lambda x: x.preset or text.NONE),
    (Column("agent", right=False, goes=12), lambda x: x.agent),
    (Column("size", goes=11), lambda x: x.size or text.NONE),
    (Column("seed", goes=4), lambda x: text.NONE if x.seed is None else str(x.seed)),
    (Column("state", right=False), lambda x: x.state),
    (Column("step"), lambda x: text.count(x.step)),
    (Column("of", goes=7), lambda x: text.count(x.steps)),
    (Column("%", goes=3), lambda x: text.percent(x.step, x.steps)),
    (Column("eval"), lambda x: text.score(x.eval_score)),
    (Column("best", goes=2), lambda x: text.score(x.best_score)),
    (Column("success", goes=6, optional=True), lambda x: text.number(x.eval_success_rate)),
    (Column("score", goes=5), lambda x: text.score(x.score)),
    (Column("wall", goes=9), lambda x: text.span(x.wall_s)),
    (Column("age", goes=10), lambda x: text.span(x.age_s)),
    (Column("reason", right=False, least=12, optional=True, is_prose=True), lambda x: x.reason or text.NONE),
)


def parser() -> commands.Parser:
    made = commands.Parser(
        "jaxrl.runs list",
        "One line for each run below a folder: state, progress in env_steps, score of the last and the best "
        "evaluation, mean score of the last 100 training episodes, training time, time since it began.",
    )
    made.add_argument("folder", metavar="FOLDER", nargs="?", default="runs", help="[runs]")
    made.add_argument("--task", default="", help="only of these tasks, with commas; * stands for anything")
    made.add_argument("--state", default="", help=f"only in these states, with commas: {', '.join(STATES)}")
    made.add_argument(
        "--sort",
        default="started",
        help=f"{', '.join(ORDERS)}; the largest at the end; score is that of the best evaluation, or of "
        "training where there is none [started]",
    )
    made.add_argument("--json", action="store_true", help="one JSON object a line, with all there is")
    return made


def run(argv: Sequence[str]) -> int:
    given = parser().parsed(argv)
    order = ORDERS[one_of("sort", given.sort, tuple(ORDERS))]
    states = [one_of("state", x, STATES) for x in listed(given.state)] or STATES
    found = look(rundir.located("FOLDER", given.folder))
    runs = sorted((x for x in chosen(found, listed(given.task)) if x.state in states), key=order)
    if given.json:
        for x in runs:
            print(json.dumps(dataclasses.asdict(x), allow_nan=False))
    elif runs:
        show_table(runs)
    if found and not runs:
        text.warn([f"none of {commands_of(given)} among {len(found)} runs; {tasks_of(found)}"])
    return exits.DONE


def commands_of(given: argparse.Namespace) -> str:
    """The choice that a command makes, in its own words."""
    return " ".join(f"--{name}={show(x)}" for name in ("task", "state") if (x := getattr(given, name)))


def tasks_of(found: Sequence[Glance]) -> str:
    """What could have been chosen."""
    tasks, states = sorted({x.task for x in found}), sorted({x.state for x in found})
    return f"there are {', '.join(tasks[:10])} ({', '.join(states)})"


def look(folder: pathlib.Path) -> list[Glance]:
    """All runs below a folder, those that began or ended last at the end.

    Raises:
      ConfigError: there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; name one that holds runs")
    found, unread = [], []
    for path in runs_in(folder):
        try:
            past = open_past(path)
        except ConfigError as error:  # damaged, or gone in this moment
            unread.append(str(error))
            continue
        found.append(glance(past, name_below(path, folder)))
        unread += past.remarks
    text.warn(unread)
    if not found and not unread:
        raise ConfigError(f"{folder}: holds no runs; python -m jaxrl.train begins one in runs/")
    return found


def chosen(found: Sequence[Glance], tasks: Sequence[str]) -> list[Glance]:
    """Those of certain tasks; no pattern: all."""
    return [x for x in found if not tasks or any(fnmatch.fnmatchcase(x.task, task) for task in tasks)]


def listed(words: str) -> list[str]:
    return [x.strip() for x in words.split(",") if x.strip()]


def one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    """A choice of the command line. Raises ConfigError."""
    if value in allowed:
        return value
    remedy = nearest(value, allowed, otherwise="--help says more")
    raise ConfigError(f"--{name}={show(value)}: must be one of {', '.join(allowed)}; {remedy}")


def show_table(runs: Sequence[Glance]) -> None:
    room = text.width()
    columns = [column for column, _ in COLUMNS]
    lines, gone = text.table(columns, [[cell(x) for _, cell in COLUMNS] for x in runs], room)
    state = [cell.strip() for cell in lines[0]].index("state")
    for cells in lines:
        print(text.line([text.painted(cell) if i == state else cell for i, cell in enumerate(cells)]))
    if gone:
        text.warn([f"{room} columns have no room for {', '.join(gone)}; --json shows all"])
