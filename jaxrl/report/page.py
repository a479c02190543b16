"""The page: sections put together, one file that needs no other."""

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence

from jaxrl import __version__
from jaxrl.charts.panel import Bars
from jaxrl.report import films, overview, pictures
from jaxrl.report import groups as grouping
from jaxrl.report.curves import Charts, beside, tasks_of
from jaxrl.report.groups import Group
from jaxrl.report.look import style_sheet
from jaxrl.report.markup import Markup, folded, grid, joined, notes, section, tag
from jaxrl.report.shapes import plural
from jaxrl.report.table import Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """Everything that the page shows."""

    title: str
    groups: Sequence[Group]
    names: Mapping[pathlib.Path, str]
    runs: Table
    tables: Sequence[Table]  # of benchmarks
    learning: Charts
    success: Charts
    by_time: Charts
    losses: Charts
    speed: Charts
    bars: Bars | None
    remarks: Sequence[str]
    out: pathlib.Path  # folder of the page

    @property
    def pasts(self):
        return [x.past for group in self.groups for x in group.records]


def page(content: Content) -> str:
    """The whole file."""
    sections = [(name, title, body) for name, title, body in parts(content) if body]
    links = [tag("a", title, href=f"#{name}") for name, title, _ in sections]
    body = tag(
        "main",
        head(content),
        tag("nav", *links, aria_label="Sections"),
        *(section(name, title, body) for name, title, body in sections),
        foot(content),
    )
    metas = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"jaxrl {__version__}"),
    ]
    style = tag("style", Markup(style_sheet()))
    whole = tag("html", tag("head", *metas, tag("title", content.title), style), tag("body", body), lang="en")
    return f"<!doctype html>\n{whole}\n"


def parts(content: Content) -> list[tuple[str, str, Markup]]:
    """(anchor, title, body) of each section; those with an empty body are left out."""
    return [
        ("runs", "Run" if len(content.pasts) == 1 else "Runs", runs(content)),
        ("curves", "Learning curves", learning(content)),
        ("scores", "Benchmark scores", joined(map(benchmark, content.tables))),
        ("losses", "Losses", drawn(content.losses, "No update is made yet.")),
        ("speed", "Speed and memory", speed(content)),
        ("videos", "Videos", films.films(content.pasts, content.names, content.out)),
        ("checkpoints", "Checkpoints", checkpoints(content)),
        ("settings", "Settings", settings(content)),
        ("details", "Details", overview.cards(content.groups, content.names)),
    ]


def head(content: Content) -> Markup:
    """Title, one line of what it is, and what should be known before anything is believed."""
    pasts, tasks = content.pasts, tasks_of(content.groups)
    seeds = sorted({str(x.seed) for x in pasts if x.seed is not None}, key=lambda x: (len(x), x))
    if len(pasts) == 1:
        what = [f"{grouping.preset(pasts[0])} on {pasts[0].task}", f"seed {', '.join(seeds) or '?'}"]
    else:
        what = [plural(len(pasts), "run"), plural(len(tasks), "task"), f"seeds {', '.join(seeds) or '?'}"]
        what += [plural(len(content.groups), "group") + " of settings"] if len(content.groups) > 1 else []
    what += sorted({grouping.device(x) for x in pasts} - {""})
    parts = [tag("h1", content.title), tag("p", " · ".join(what), class_="lead")]
    if content.remarks:
        parts.append(
            tag("div", *(tag("p", x) for x in content.remarks), class_="card alert", style="margin-top:16px")
        )
    return tag("header", *parts)


def foot(content: Content) -> Markup:
    when = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return tag("footer", f"Made by jaxrl {__version__}, {when}, from {plural(len(content.pasts), 'run')}.")


def runs(content: Content) -> Markup:
    """Key figures of a single run, a table of several."""
    if len(content.pasts) == 1:
        return overview.key_figures(content.groups[0].records[0])
    table = tag("div", overview.as_html(content.runs), class_="card")
    if len(content.groups) == 1:
        return table
    members = [
        (group.label, str(len(group.records)), ", ".join(content.names[x.past.path] for x in group.records))
        for group in content.groups
    ]
    listed = grid(
        ("group of the same settings", "runs", "which"),
        [(a, b, tag("span", c, class_="prose")) for a, b, c in members],
    )
    return joined([table, tag("div", listed, class_="card")])


def learning(content: Content) -> Markup:
    """Scores over env_steps, over time, and success rates where there are any."""
    others = (("Success", content.success), ("Over time", content.by_time))
    if len(content.learning.panels) == 1:  # they have room beside each other
        return pictures.charts(beside([content.learning, *(charts for _, charts in others)]))
    found = [drawn(content.learning, "No episode is finished yet.")]
    for title, charts in others:
        if charts.panels:
            found += [tag("h3", title), pictures.charts(charts)]
    return joined(found)


def drawn(found: Charts, otherwise: str) -> Markup:
    if found.panels:
        return pictures.charts(found)
    return tag("p", otherwise, class_="note") if otherwise else Markup("")


def benchmark(table: Table) -> Markup:
    """A table of scores with its notes."""
    return tag("div", tag("h3", table.title), overview.as_html(table), notes(table.notes), class_="card")


def speed(content: Content) -> Markup:
    found = [drawn(content.speed, "No row tells of speed yet.")]
    if content.bars is not None:
        found += [tag("h3", "Where the time went"), pictures.bars(content.bars)]
    return joined(found)


def checkpoints(content: Content) -> Markup:
    """One table of each run that has saved any, folded where there are several."""
    records = [x for group in content.groups for x in group.records if x.past.saved]
    if len(records) == 1 and len(content.pasts) == 1:
        return tag("div", overview.checkpoints(records[0]), class_="card")
    return joined(
        folded(
            f"{content.names[x.past.path]} ({plural(len(x.past.saved), 'checkpoint')})",
            overview.checkpoints(x),
            class_="card",
        )
        for x in records
    )


def settings(content: Content) -> Markup:
    """What the runs were told differently."""
    if len(content.pasts) < 2:
        return Markup("")
    found = grouping.differing(content.pasts)
    if not found:
        return tag("p", "The settings are the same in all runs.", class_="note")
    columns = ["setting", *(content.names[x.path] for x in content.pasts)]
    rows = [(name, *values) for name, values in found.items()]
    table = grid(columns, rows, text=range(1, len(columns)))
    return tag(
        "div", tag("p", "Those that are not the same in all runs.", class_="note"), table, class_="card"
    )
