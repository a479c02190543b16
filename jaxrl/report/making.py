"""Makes a report: reads, draws, writes."""

import pathlib
from collections.abc import Iterator

from jaxrl.charts import sheets
from jaxrl.charts.panel import Sheet
from jaxrl.config import ConfigError
from jaxrl.exits import WriteFailed
from jaxrl.reading import Past
from jaxrl.report import atari, machinery, overview, scoring, table, times
from jaxrl.report.curves import Charts, tasks_of
from jaxrl.report.gathering import Gathered
from jaxrl.report.groups import Group, cautions, grouped, names_of, preset
from jaxrl.report.page import Content, page
from jaxrl.report.record import Record, read
from jaxrl.report.shapes import plural

PAGE = "report.html"


def make(found: Gathered, out: pathlib.Path, title: str) -> Iterator[str]:
    """Writes the page and its pictures; yields lines for a terminal: tables, then files.

    Raises:
      WriteFailed: the disk.
    """
    content = contents(found, out, title)
    for shown in (content.runs, *content.tables):
        yield from [*map(printable, table.lines(shown)), ""]
    yield from (printable(f"jaxrl: {remark}") for remark in content.remarks)
    try:
        for file in written(content):
            yield printable(f"jaxrl: {file}")
    except OSError as error:
        raise WriteFailed(f"{out}: {error.strerror or error}") from error


def printable(line: str) -> str:
    """What a terminal can show: names of files may hold anything."""
    return "".join(c if c.isprintable() else "?" for c in line)


def contents(found: Gathered, out: pathlib.Path, title: str) -> Content:
    groups = grouped([opened(past) for past in found.pasts])
    names = names_of(found.pasts)
    tasks = tasks_of(groups)
    tables = atari.tables({g.label: [x.past for x in g.records] for g in groups}, found.peers)
    remarks = [*found.remarks, *strangers(found, tasks)]
    remarks += [remark for past in found.pasts for remark in past.remarks]
    remarks += [f"{names[x.past.path]}: has no rows yet" for g in groups for x in g.records if not x.rows]
    return Content(
        title=title or titled(found.pasts, groups, tasks),
        groups=groups,
        names=names,
        runs=overview.results(groups, names),
        tables=tables,
        learning=scoring.learning(groups, found.peers),
        success=scoring.success(groups),
        by_time=scoring.by_time(groups),
        losses=machinery.losses(groups),
        speed=machinery.speed(groups),
        bars=times.bars(groups, names),
        remarks=list(dict.fromkeys([*remarks, *cautions(groups)])),
        out=out,
    )


def opened(past: Past) -> Record:
    """Raises ConfigError if a file of a run cannot be read at all."""
    try:
        return read(past)
    except OSError as error:
        raise ConfigError(f"{error.filename or past.path}: cannot be read ({error.strerror})") from error


def strangers(found: Gathered, tasks: list[str]) -> list[str]:
    """Lines about curves of peers whose tasks no run has."""
    left = {x.task for x in found.peers} - set(tasks)
    if not left:
        return []
    return [f"curves of peers on {plural(len(left), 'task')} that no run has are not drawn"]


def titled(pasts: list[Past], groups: list[Group], tasks: list[str]) -> str:
    """What the page is called if nobody says."""
    if len(pasts) == 1:
        return pasts[0].name
    names = list(dict.fromkeys(preset(g.records[0].past) for g in groups))
    what = " and ".join(names) if len(names) <= 2 else plural(len(pasts), "run")
    where = " and ".join(tasks) if len(tasks) <= 2 else plural(len(tasks), "task")
    return f"{what} on {where}"


def written(content: Content) -> Iterator[pathlib.Path]:
    """Writes every file; yields each once it is there."""
    for name, title, charts in (
        ("curves", "Learning curves", content.learning),
        ("success", "Success", content.success),
        ("losses", "Losses", content.losses),
        ("speed", "Speed and memory", content.speed),
    ):
        if charts.panels:
            yield drawn(charts, f"{title}: {content.title}", content.out / f"{name}.png")
    if content.bars is not None:
        file = content.out / "time.png"
        sheets.save_bars(content.bars, file)
        yield file
    file = content.out / PAGE
    sheets.replace(file, page(content).encode(errors="replace"))
    yield file


def drawn(charts: Charts, title: str, file: pathlib.Path) -> pathlib.Path:
    sheets.save_sheet(Sheet(title, charts.panels, charts.keys), file)
    return file
