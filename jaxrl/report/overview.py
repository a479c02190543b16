"""The head of the page: what was run, how far it came, what it scored; and everything known of each run."""

import pathlib
import shlex
from collections.abc import Mapping, Sequence

from jaxrl import changes, rundir
from jaxrl.config import Config, leaves, show
from jaxrl.report import shapes
from jaxrl.report.curves import MEAN, RATE
from jaxrl.report.groups import Group, device, preset, told, written
from jaxrl.report.markup import Markup, facts, folded, grid, joined, tag
from jaxrl.report.record import RECENT, Record, usable
from jaxrl.report.table import Table

STATES = {"failed": "ended with an error", "died": "ended without a word"}
CHECKPOINTS = 200  # lines of checkpoints on the page, at most


def results(groups: Sequence[Group], names: Mapping[pathlib.Path, str]) -> Table:
    """One row for each run."""
    columns = ["run", "task", "seed", "state", "env_steps", "updates", "episodes", "wall time"]
    columns += [
        "env_steps/s",
        f"training, last {RECENT} episodes",
        "last evaluation",
        "best evaluation",
        "at",
    ]
    has_success = any(len(x.of(RATE)) for group in groups for x in group.records)
    columns += ["success"] if has_success else []
    rows = []
    for group in groups:
        for x in group.records:
            best, at = best_of(x)
            cells = [
                names[x.past.path],
                x.past.task,
                shapes.NONE if x.past.seed is None else str(x.past.seed),
            ]
            cells += [x.past.state, progress(x), *counters(x)]
            cells += [shapes.figure(x.recent), shapes.figure(last_of(x, MEAN)), shapes.figure(best)]
            cells += [shapes.count(at), *([shapes.share(last_of(x, RATE))] if has_success else [])]
            rows.append(tuple(cells))
    return Table("Runs", tuple(columns), rows, [])


def counters(record: Record) -> list[str]:
    found = [shapes.count(record.counter(name)) for name in ("updates", "episodes")]
    return [*found, shapes.duration(record.counter("wall_s")), shapes.figure(record.speed)]


def progress(record: Record) -> str:
    """env_steps so far, and of how many where that is not all."""
    steps = usable(record.past.config.get("steps"))
    done = shapes.count(record.step)
    return done if steps in (None, record.step) else f"{done} of {shapes.count(steps)}"


def last_of(record: Record, metric: str) -> float | None:
    found = record.of(metric)
    return float(found.values[-1]) if len(found) else None


def best_of(record: Record) -> tuple[float | None, float | None]:
    """The highest evaluation and its step, the later of equal ones."""
    found = record.of(MEAN)
    if not len(found):
        return None, None
    at = len(found) - 1 - int(found.values[::-1].argmax())
    return float(found.values[at]), float(found.steps[at])


def as_html(table: Table) -> Markup:
    """A table of texts; states in their colours."""
    if not table.rows:
        return Markup("")
    rows = []
    for row in table.rows:
        cells = [badge(x) if name == "state" else x for name, x in zip(table.columns, row, strict=True)]
        rows.append(cells)
    return grid(table.columns, rows)


def badge(state: str) -> Markup:
    return tag("span", state, class_=f"state {state}", title=STATES.get(state, state))


def key_figures(record: Record) -> Markup:
    """What one looks for first, of a single run."""
    best, at = best_of(record)
    found = [
        ("state", badge(record.past.state)),
        ("env_steps", progress(record)),
        ("updates", shapes.count(record.counter("updates"))),
        ("wall time", shapes.duration(record.counter("wall_s"))),
        ("env_steps/s", shapes.figure(record.speed)),
        (f"training, last {RECENT} episodes", shapes.figure(record.recent)),
        ("best evaluation", shapes.NONE if at is None else f"{shapes.figure(best)} at {shapes.count(at)}"),
    ]
    if len(record.of(RATE)):
        found.append(("success, last evaluation", shapes.share(last_of(record, RATE))))
    return tag("div", facts(found), class_="card key")


def particulars(record: Record) -> Markup:
    """Where a run comes from: machine, versions, commit, ancestors."""
    note, past = record.past.note, record.past
    git, compilation = told(note.get("git")), note.get("compile_s")
    commit = str(git.get("commit", ""))[:12]
    versions = ", ".join(f"{name} {version}" for name, version in told(note.get("versions")).items())
    pairs = [
        ("preset", preset(past)),
        ("agent", str(past.config.get("agent", "?"))),
        ("model size", str(past.config.get("model.size", "?"))),
        ("id", str(note.get("id", shapes.NONE))),
        ("hardware", " on ".join(x for x in (device(past), str(note.get("host", ""))) if x) or shapes.NONE),
        ("began", shapes.moment(note.get("started"))),
        ("ended", shapes.moment(note.get("ended"))),
        ("how it ended", str(note.get("exit") or past.state)),
        ("commit", (commit + (" with changes" if git.get("dirty") else "")) or shapes.NONE),
        ("compilation", shapes.duration(usable(compilation))),
        ("rows", shapes.count(record.rows)),
        ("memory of replay", gigabytes(last_of(record, "replay/ram_gb"))),
    ]
    more = [("versions", versions), ("folder", str(past.path))]
    return joined([facts(pairs), tag("div", facts((k, v) for k, v in more if v), class_="lines")])


def gigabytes(value: float | None) -> str:
    return shapes.NONE if value is None else shapes.size(value * 1e9)


def history(record: Record) -> Markup:
    """Its ancestors and every start, with command lines."""
    parts = []
    for entry in rundir.list_of_dicts(record.past.note.get("lineage")):
        words = ", ".join(f"{k} {v}" for k, v in entry.items() if v is not None)
        parts.append(tag("p", f"goes on from: {words}"))
    starts = rundir.list_of_dicts(record.past.note.get("starts"))
    for number, start in enumerate(starts, 1):
        argv = start.get("argv")
        argv = [str(x) for x in argv] if isinstance(argv, list) else []
        when = f"start {number} of {len(starts)}, {shapes.moment(start.get('time'))}"
        changed = told(start.get("changed"))
        words = f"; changed: {', '.join(f'{k}={show(v)}' for k, v in changed.items())}" if changed else ""
        step = shapes.count(usable(start.get("step")))
        parts.append(tag("p", f"{when}, at step {step}{words}", class_="note"))
        parts.append(tag("pre", command(argv)))
    return joined(parts)


def command(argv: Sequence[str]) -> str:
    """A command line as one would type it, with a line for each word if there are many."""
    words = [shlex.quote(x) for x in argv]
    gap = " \\\n    " if len(words) > 3 else " "
    return gap.join(["python -m jaxrl.train", *words])


def own_settings(record: Record) -> Markup:
    """What a run was told that is not the default."""
    known, rows = leaves(Config()), []
    own = {name: x for name, x in record.past.config.items() if name not in changes.OF_COMMAND}
    for name, value in own.items():
        leaf = known.get(name)
        if leaf is None:
            words = tag("span", "unknown to this version", class_="prose")
            rows.append((name, show(value), shapes.NONE, words))
        elif written(value) != written(leaf.default):
            words = leaf.doc + (f", {leaf.unit}" if leaf.unit else "")
            rows.append((name, show(value), show(leaf.default), tag("span", words, class_="prose")))
    if not rows:
        return tag("p", "every setting has its default", class_="note")
    return grid(("setting", "value", "default", "what it is"), rows, text=(1, 2, 3))


def checkpoints(record: Record) -> Markup:
    """What was saved, the newest first, and whether it is still there."""
    saved = record.past.saved
    rows = []
    for x in reversed(saved[-CHECKPOINTS:]):
        store, name = str(x.get("store", "?")), str(x.get("name", x.get("step", "?")))
        kept = is_kept(record.past.path, store, name)
        score, seconds = usable(x.get("score")), usable(x.get("seconds"))
        rows.append(
            (
                shapes.count(usable(x.get("step"))),
                store,
                str(x.get("reason", shapes.NONE)),
                shapes.figure(score),
                shapes.size(x.get("bytes")),
                f"{seconds:.2f}" if seconds is not None else shapes.NONE,
                shapes.duration(usable(x.get("run_s"))),
                "yes" if kept else "no",
            )
        )
    columns = ("step", "store", "reason", "score", "size", "seconds", "wall time", "still there")
    left = len(saved) - len(rows)
    lines = [tag("p", f"{shapes.plural(left, 'earlier one')} left out", class_="note")] if left else []
    return joined([grid(columns, rows), *lines])


def is_kept(run: pathlib.Path, store: str, name: str) -> bool:
    try:
        return (run / "checkpoints" / store / name / "manifest.json").is_file()
    except (OSError, ValueError):
        return False


def cards(groups: Sequence[Group], names: Mapping[pathlib.Path, str]) -> Markup:
    """All that is known of each run, folded where there are several."""
    records = [x for group in groups for x in group.records]
    found = []
    for record in records:
        own = folded("Settings that are not the default", own_settings(record), is_open=len(records) == 1)
        body = joined([particulars(record), tag("h3", "How it was run"), history(record), own])
        if len(records) == 1:
            return tag("div", body, class_="card")
        found.append(folded(names[record.past.path], body, class_="card"))
    return joined(found)
