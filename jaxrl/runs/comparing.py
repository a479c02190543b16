"""compare: runs beside each other: what they were told, what came of it, where they begin to differ."""

import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrl import commands, exits, rundir
from jaxrl.changes import OF_COMMAND
from jaxrl.config import Config, ConfigError, show, to_dict
from jaxrl.reading import Past, open_past
from jaxrl.runs import text
from jaxrl.runs.glance import SCORE, SUCCESS, Glance, glance, integer, name_below, words
from jaxrl.runs.history import histories
from jaxrl.runs.text import NONE, Column

EVALUATIONS = 5  # the last ones, of which a mean is told
LEAST = 14  # characters of a run's column
LOSSES = ("train/loss", "train/opt/loss", "holdout/loss")


def parser() -> commands.Parser:
    made = commands.Parser(
        "jaxrl.runs compare",
        "Settings that differ, results, and for runs of the same settings and seed the step up to which they "
        "are identical.",
    )
    made.add_argument("runs", metavar="RUN", nargs="*", help="run directories, two or more")
    return made


def run(argv: Sequence[str]) -> int:
    given = parser().parsed(argv)
    if len(given.runs) < 2:
        raise ConfigError("compare: takes two runs or more; name their directories")
    pasts = [open_past(x) for x in given.runs]
    if again := [x.path for i, x in enumerate(pasts) if x.path in {y.path for y in pasts[:i]}]:
        raise ConfigError(f"{again[0]}: is named twice; name different runs")
    names = names_of([x.path for x in pasts])
    glances = [glance(past, name) for past, name in zip(pasts, names, strict=True)]
    told = settings(pasts)
    lines = [tasks(glances), ""]
    lines += sheet("settings that differ", names, differing(told)) or ["settings: all the same"]
    lines += ["", *sheet("results", names, results(pasts, glances)), ""]
    lines += histories(pasts, names, told)
    print("\n".join(lines))
    text.warn(remark for past in pasts for remark in past.remarks)
    return exits.DONE


def names_of(paths: Sequence[pathlib.Path]) -> list[str]:
    """What tells the runs apart: their paths below the folder that all are in."""
    root = pathlib.Path(os.path.commonpath(paths))
    return [text.clean(name_below(path, root)) for path in paths]


def tasks(glances: Sequence[Glance]) -> str:
    found = list(dict.fromkeys(x.task for x in glances))
    if len(found) == 1:
        return f"the same task: {found[0]}"
    return f"different tasks, whose scores say nothing about each other: {', '.join(found)}"


def settings(pasts: Sequence[Past]) -> list[dict[str, Any]]:
    """Of each run, without what holds for one command only. One that an older version has not saved has the
    default of this version, as it has when the run is continued."""
    known = {name for past in pasts for name in past.config} - set(OF_COMMAND)
    defaults = {name: value for name, value in to_dict(Config()).items() if name in known}
    return [defaults | {k: v for k, v in past.config.items() if k in known} for past in pasts]


def differing(told: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """{setting: its value in each run}, in the order of the schema."""
    names = dict.fromkeys([*to_dict(Config()), *(name for values in told for name in values)])
    missing = object()
    return {
        text.clean(name): [text.clean(show(x[name])) if name in x else NONE for x in told]
        for name in names
        if any(x.get(name, missing) != told[0].get(name, missing) for x in told)
    }


def sheet(title: str, names: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """A table with a column for each run, in groups where there is no room for all; [] if it has no rows."""
    if not rows:
        return []
    room = text.width()
    first = max(len(x) for x in (title, *rows))
    size = max(1, (room - first) // (LEAST + len(text.GAP)))
    lines = []
    for at in range(0, len(names), size):
        columns = [Column(title, right=False), *(Column(name, least=LEAST) for name in names[at : at + size])]
        cells = [[name, *values[at : at + size]] for name, values in rows.items()]
        laid, _ = text.table(columns, cells, room)
        lines += [*([""] if at else []), *(text.line(x) for x in laid)]
    return lines


def results(pasts: Sequence[Past], glances: Sequence[Glance]) -> dict[str, list[str]]:
    """{fact: its words for each run}; what no run has is left out."""
    rows: dict[str, list[str]] = {}
    for kind in (progress, pace, scores, losses, surroundings):
        each = [kind(past, x) for past, x in zip(pasts, glances, strict=True)]
        for name in dict.fromkeys(name for facts in each for name in facts):
            rows[name] = [facts.get(name, NONE) for facts in each]
    rows = {name: cells for name, cells in rows.items() if any(cell != NONE for cell in cells)}
    return rows | versions(pasts) | origins(pasts)


def progress(_: Past, x: Glance) -> dict[str, str]:
    began = text.moment(x.started)
    return {
        "state": x.state,
        "reason": x.reason or NONE,
        "began": f"{began:%y-%m-%d %H:%M}" if began else NONE,
        "starts": str(x.starts),
        "env_steps": text.whole(x.step),
        "of its length": text.percent(x.step, x.steps),
        "updates": text.whole(x.updates),
        "episodes": text.whole(x.episodes),
        "wall time": text.span(x.wall_s),
    }


def pace(past: Past, _: Glance) -> dict[str, str]:
    """Medians over rows in which updates were made, where there are such: before them nothing is learned."""
    rows = [row for row in past.rows if (text.finite(row.get("fps/updates")) or 0) > 0] or past.rows
    return {
        f"{unit}/s, median": text.number(middle(rows, f"fps/{unit}")) for unit in ("env_steps", "updates")
    }


def middle(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    found = [x for row in rows if (x := text.finite(row.get(key))) is not None]
    return statistics.median(found) if found else None


def scores(past: Past, x: Glance) -> dict[str, str]:
    means = [value for row in past.rows if (value := text.finite(row.get(SCORE))) is not None]
    last = means[-EVALUATIONS:]
    rates = [value for row in past.rows if (value := text.finite(row.get(SUCCESS))) is not None]
    return {
        "last evaluation": at(x.eval_score, x.eval_step),
        "best evaluation": at(x.best_score, x.best_step),
        f"last {EVALUATIONS} evaluations, mean": of(statistics.fmean(last), len(last), 5) if last else NONE,
        "last success rate": text.number(rates[-1]) if rates else NONE,
        "best success rate": text.number(max(rates)) if rates else NONE,
        "last 100 episodes, mean score": NONE if x.score is None else of(x.score, x.score_episodes, 100),
    }


def at(value: float | None, step: int | None) -> str:
    return NONE if value is None else f"{text.score(value)} at {text.count(step)}"


def of(value: float, number: int, wanted: int) -> str:
    """A mean, with how many it is of where there are not as many as wanted."""
    return text.score(value) + (f" of {number}" if number < wanted else "")


def losses(past: Past, _: Glance) -> dict[str, str]:
    """The newest of each."""
    found = {}
    for row in past.rows:
        found |= {k: x for k, v in row.items() if k.startswith(LOSSES) and (x := text.finite(v)) is not None}
    return {text.clean(key): text.number(found[key]) for key in sorted(found)}


def surroundings(past: Past, x: Glance) -> dict[str, str]:
    device, git = past.note.get("device"), past.note.get("git")
    count = integer(device.get("count")) if isinstance(device, dict) else None
    many = f"{count} x " if count and count > 1 else ""
    return {
        "peak memory": peak(past, "usage/rss_gb"),
        "peak memory of the device": peak(past, "usage/device_peak_gb"),
        "device": f"{many}{x.device}" if x.device else NONE,
        "host": x.host or NONE,
        "git commit": x.commit[:9] if x.commit else NONE,
        "changes not committed": "yes" if isinstance(git, dict) and git.get("dirty") is True else NONE,
    }


def peak(past: Past, key: str) -> str:
    _, values = past.series(key)
    return f"{max(values):.2f} GB" if values else NONE


def versions(pasts: Sequence[Past]) -> dict[str, list[str]]:
    """Of packages, where they differ."""
    each = [x if isinstance(x := past.note.get("versions"), dict) else {} for past in pasts]
    names = dict.fromkeys(name for found in each for name in found)
    return {
        text.clean(name): [words(x.get(name)) or NONE for x in each]
        for name in names
        if any(x.get(name) != each[0].get(name) for x in each)
    }


def origins(pasts: Sequence[Past]) -> dict[str, list[str]]:
    """The runs that each came from, the oldest first; {} if none came from another."""
    each = []
    for past in pasts:
        entries = rundir.list_of_dicts(past.note.get("lineage"))
        each.append(" > ".join(ancestor(entry) for entry in entries) or NONE)
    return {"came from": each} if any(x != NONE for x in each) else {}


def ancestor(entry: Mapping[str, Any]) -> str:
    path = pathlib.PurePath(str(entry.get("path", "?")))  # RUN/checkpoints/<store>/<name>
    name = path.parents[2].name if len(path.parents) > 2 else path.name
    what = "parameters of " if "filter" in entry else ""
    return text.clean(f"{what}{name} at {text.whole(integer(entry.get('step')))}")
