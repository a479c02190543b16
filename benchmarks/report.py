"""Records of benchmarks as README's table, as a plot, and two of them compared.

    python -m benchmarks.report benchmarks/results
    python -m benchmarks.report RECORD.json FOLDER --all --plot=speed.png
    python -m benchmarks.report --compare BEFORE.json AFTER.json

A row of the table is what stands for a benchmark, or for each of its cases; --all shows every figure. Of
several values it gives the median, and the least and greatest. A comparison divides the second record's
figures by the first's, with the least and greatest ratio that their values allow; the exit code is 1 if
the records are of other settings or devices, and not to be compared.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks import figures
from benchmarks.figures import Figure
from jaxrl import commands, exits, rundir
from jaxrl.config import ConfigError
from jaxrl.reading import is_number

COLUMNS = ("what", "figure", "unit", "device", "versions", "commit", "run")
SHOWN = ("jax", "jaxrl")  # versions in the table
NOT_COMPARABLE = 1
LONGEST = 160  # characters of settings


@dataclasses.dataclass(frozen=True)
class Record:
    """A record that has figures."""

    path: pathlib.Path
    found: dict[str, Any]
    figures: tuple[Figure, ...]

    @property
    def kind(self) -> str:
        """Of records of another one nothing can be compared."""
        suite = self.found.get("suite") if self.found["benchmark"] == figures.SUITE else None
        return f"suite {suite}" if suite else self.found["benchmark"]

    @property
    def what(self) -> str:
        """What it is about, in a word or some."""
        known = figures.KINDS.get(self.kind)
        return known.what if known else self.kind.removeprefix("suite ")

    @property
    def device(self) -> str:
        """What it was measured on: an accelerator's name, else the processor."""
        found = device_of(self.found)
        kind, count = found.get("kind"), found.get("count")
        if isinstance(kind, str) and kind != "cpu":
            return f"{count} x {kind}" if is_number(count) and count != 1 else kind
        machine = self.found.get("machine")
        machine = machine if isinstance(machine, dict) else {}
        cores = machine.get("cores", "?")
        return f"{machine.get('cpu', 'unknown')}, {cores} core{'s' * (cores != 1)}"

    @property
    def commit(self) -> str:
        """The first digits, with a + if the checkout had other changes."""
        git = self.found.get("git")
        git = git if isinstance(git, dict) else {}
        return f"{git.get('commit', '')!s:.10}" + "+" * bool(git.get("dirty"))

    @property
    def versions(self) -> dict[str, str]:
        found = self.found.get("versions")
        return found if isinstance(found, dict) else {}


def parser() -> commands.Parser:
    made = commands.Parser("benchmarks.report", __doc__ or "")
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("records", nargs="*", metavar="RECORD", help="JSON file, or a folder of them")
    made.add_argument("--all", action="store_true", help="every figure, not only those that stand for a case")
    made.add_argument("--plot", metavar="PNG", help="also draw them, to this file")
    made.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two records of one benchmark")
    return made


def main(argv: Sequence[str]) -> int:
    return commands.ended(lambda: run(argv))


def run(argv: Sequence[str]) -> int:
    given = parser().parsed(argv)
    if given.compare:
        if given.records or given.plot:
            raise ConfigError("--compare: takes its two records and nothing else")
        return compare(*(read(pathlib.Path(text)) for text in given.compare))
    if not given.records:
        raise ConfigError("no record is named; for example benchmarks/results")
    records = [one for text in given.records for one in gathered(pathlib.Path(text))]
    commands.say(table(records, given.all))
    if given.plot:
        draw(records, given.all, rundir.located("plot", given.plot))
    return exits.DONE


def gathered(path: pathlib.Path) -> list[Record]:
    """The record of a file, or those of a folder; others in it are told and left out. Raises ConfigError."""
    if not path.is_dir():
        return [read(path)]
    records, others = [], []
    for file in sorted(path.glob("*.json")):
        try:
            records.append(read(file))
        except ConfigError:
            others.append(file.name)
    if not records:
        raise ConfigError(f"{path}: holds no record with figures of speed or memory")
    if others:
        print(f"benchmarks.report: without figures, left out: {', '.join(others)}", file=sys.stderr)
    return records


def read(path: pathlib.Path) -> Record:
    """Raises ConfigError if a file is no record, or one without figures."""
    try:
        found = rundir.read_json(path)
    except (OSError, ValueError) as error:
        missing = not path.exists()
        what = "no such file" if missing else f"cannot be read ({getattr(error, 'strerror', '') or error})"
        raise ConfigError(f"{path}: {what}; name a record of a benchmark") from error
    if not isinstance(found.get("benchmark"), str) or not isinstance(found.get("id"), str):
        raise ConfigError(f"{path}: is no record of a benchmark (it has no benchmark and id)")
    try:
        return Record(path, found, tuple(figures.of(found)))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def device_of(found: dict[str, Any]) -> dict[str, Any]:
    """Platform, kind and count, as far as a record tells; older ones have the kind alone, or none."""
    places = ("device", "last.ours.device", "warm.run.device", "cold.run.device")
    for device in (figures.at(found, place) for place in places):
        if isinstance(device, dict):
            return device
        if isinstance(device, str):
            return {"kind": device}
    return {}


def table(records: Iterable[Record], everything: bool) -> str:
    """Markdown."""
    lines = [row(COLUMNS), row(["---"] * len(COLUMNS))]
    for one in records:
        versions = ", ".join(f"{name} {one.versions[name]}" for name in SHOWN if name in one.versions)
        belongs = one.found.get("run") or ""
        lines += [
            row([title(one, x), shown(x), x.unit, one.device, versions, one.commit, belongs])
            for x in one.figures
            if everything or x.leads
        ]
    return "\n".join(lines)


def row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def title(one: Record, figure: Figure) -> str:
    """What a figure is of."""
    words = f"{': '.join(filter(None, (one.what, figure.case)))}, {figure.name}"
    settings = settings_words(one, figure)
    return f"{words} ({settings})" if settings else words


def settings_words(one: Record, figure: Figure) -> str:
    """The settings of a figure, if they are short enough for a line."""
    settings = figures.settings_of(one.found)
    ours = figures.at(one.found, "last.ours")
    if one.kind not in figures.KINDS:  # of a suite: those of the case
        only = next(iter(settings.values())) if len(settings) == 1 else {}
        settings = settings.get(figure.case.partition(":")[0], only)
    elif isinstance(ours, dict):
        settings = figures.settings_of(ours) if ours.get("benchmark") in figures.KINDS else {}
    words = " ".join(
        figures.worded(k, v) for k, v in settings.items() if is_number(v) or (v and isinstance(v, str))
    )
    return words if len(words) <= LONGEST else ""


def shown(figure: Figure) -> str:
    """The middle of a figure's values, and how far they spread."""
    spread = figure.spread
    middle = number(spread["median"])
    if len(figure.values) == 1:
        return middle
    return f"{middle} ({number(spread['min'])} to {number(spread['max'])})"


def number(value: float) -> str:
    """To four digits, with commas."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{float(f'{value:.4g}'):g}"


def compare(a: Record, b: Record) -> int:
    """Prints the ratios of two records. Raises ConfigError if they are of different benchmarks."""
    if a.kind != b.kind:
        raise ConfigError(f"{a.path} is a record of {a.kind}, {b.path} of {b.kind}; compare two of one kind")
    for name, one in (("A", a), ("B", b)):
        belongs = f", run {one.found['run']}" if one.found.get("run") else ""
        when = one.found.get("time", "?")
        commands.say(f"{name}: {one.path} ({one.found['id']}, {when}, commit {one.commit or '?'}{belongs})")
    faults = differences(a, b)
    for line in faults:
        commands.say(f"not comparable: {line}")
    others = [
        f"{name} {a.versions.get(name, 'none')} | {b.versions.get(name, 'none')}"
        for name in sorted({*a.versions, *b.versions})
        if a.versions.get(name) != b.versions.get(name)
    ]
    if others:
        commands.say(f"other versions: {', '.join(others)}")
    commands.say("")
    commands.say(ratios(a, b))
    return NOT_COMPARABLE if faults else exits.DONE


def differences(a: Record, b: Record) -> list[str]:
    """Why two records of one kind are not comparable, one line for each reason."""
    found = []
    if a.device != b.device:
        found.append(f"device: {a.device} | {b.device}")
    scale = [one.found.get("scale") for one in (a, b)]
    if scale[0] != scale[1]:
        found.append(f"scale: {scale[0]} | {scale[1]}")
    one, other = (flat(figures.settings_of(x.found)) for x in (a, b))
    return found + [
        f"{name}: {one.get(name, 'none')} | {other.get(name, 'none')}"
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    ]


def flat(settings: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found = {}
    for name, value in settings.items():
        inner = flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + str(name): value}
        found |= inner
    return found


def ratios(a: Record, b: Record) -> str:
    """Markdown: each figure of both, and B / A."""
    others = {x.key: x for x in b.figures}
    lines = [row(["what", "unit", "A", "B", "B / A", ""]), row(["---"] * 6)]
    for x in a.figures:
        if (y := others.pop(x.key, None)) is None:
            lines.append(row([label(x), x.unit, shown(x), "", "", "only in A"]))
            continue
        low, middle, high = ratio(x, y)
        spread = f" ({low:.3g} to {high:.3g})" if low != high else ""
        text = f"{middle:.4g}{spread}" if middle is not None else ""
        lines.append(row([label(x), x.unit, shown(x), shown(y), text, verdict(x, y)]))
    lines += [row([label(y), y.unit, "", shown(y), "", "only in B"]) for y in others.values()]
    return "\n".join(lines)


def label(figure: Figure) -> str:
    return f"{figure.case}, {figure.name}" if figure.case else figure.name


def ratio(a: Figure, b: Figure) -> tuple[float | None, float | None, float | None]:
    """Least, middle and greatest b / a that their values allow; None where an `a` is not positive."""
    one, other = a.spread, b.spread
    if one["min"] <= 0:
        return None, None, None
    return other["min"] / one["max"], other["median"] / one["median"], other["max"] / one["min"]


def verdict(a: Figure, b: Figure) -> str:
    """What a ratio says."""
    low, _, high = ratio(a, b)
    if low is None or high is None or not a.better:
        return ""
    if len(a.values) == len(b.values) == 1:
        return "one value each"
    if low <= 1 <= high:
        return "within the spread"
    return "better" if (low > 1) == (a.better == figures.MORE) else "worse"


def draw(records: Sequence[Record], everything: bool, path: pathlib.Path) -> None:
    """Writes the plot: one group of bars for each number on each device. Raises ConfigError."""
    import numpy as np

    from jaxrl.charts.panel import Gauges
    from jaxrl.charts.sheets import save_gauges

    groups: dict[tuple[str, ...], list[tuple[Record, Figure]]] = {}
    for one in records:
        for x in one.figures:
            if (everything or x.leads) and min(x.values) >= 0:
                groups.setdefault((one.what, x.name, x.unit, one.device), []).append((one, x))
    gauges = []
    for (what, name, unit, device), rows in groups.items():
        cases = [x.case for _, x in rows]
        alike = len(set(cases)) < len(cases)
        labels = [settings_words(one, x) if alike or not x.case else x.case for one, x in rows]
        low, middle, high = (np.array([x.spread[k] for _, x in rows]) for k in ("min", "median", "max"))
        gauges.append(Gauges(f"{what}: {name}, {device}", unit, tuple(labels), middle, low, high))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_gauges("Benchmarks", gauges, path)
    except OSError as error:
        raise ConfigError(f"--plot={path}: {error.strerror or error}; choose another file") from error


if __name__ == "__main__":
    sys.exit(commands.flushed(main(sys.argv[1:])))
