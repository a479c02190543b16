"""The figures of speed and memory in a record: which numbers of each benchmark count, in which unit.

Imports neither jax nor numpy.
"""

import dataclasses
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks import record
from jaxrl.config import ConfigError
from jaxrl.reading import is_number

MORE, LESS = "more", "less"  # which is better
SUITE = "run"  # the benchmark whose records hold figures that are made already


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number of a record."""

    field: str  # dotted if it lies deeper
    unit: str
    better: str
    each: str = ""  # field of the list of values that it is the middle of
    inverse: bool = False  # those are seconds, and it is a rate
    state: str = ""  # field whose value is a part of the name: numbers with another one are not the same


@dataclasses.dataclass(frozen=True)
class Kind:
    """What there is in the records of a benchmark; the first measure that a row has stands for it."""

    what: str
    measures: tuple[Measure, ...]
    settings: tuple[str, ...] = ()  # fields that say what is measured
    rows: str = ""  # field of the list of rows; "": the record is the only one
    labels: tuple[str, ...] = ()  # fields that tell rows apart
    parts: tuple[str, ...] = ()  # fields that are rows


@dataclasses.dataclass(frozen=True)
class Figure:
    case: str  # the row; "" if the record has but one
    name: str
    unit: str
    better: str  # MORE or LESS; "" if that depends
    values: tuple[float, ...]  # at least one; more of them show how far it spreads
    leads: bool = False  # stands for its row

    @property
    def spread(self) -> dict[str, float]:
        return record.spread(self.values)

    @property
    def key(self) -> tuple[str, str]:
        return self.case, self.name


UPDATE = (
    Measure("updates_per_s", "updates/s", MORE, "update_s", inverse=True),
    Measure("cpu_s_per_update", "CPU s/update", LESS),
    Measure("policy_ms", "ms", LESS),
    Measure("compile_s", "s", LESS, state="cache"),
    Measure("temp_mib", "MiB", LESS),
    Measure("peak_rss_mib", "MiB", LESS),
    Measure("device_peak_mib", "MiB", LESS),
    Measure("share_of_peak", "of peak FLOP/s", MORE),
)
PEER = (  # as the driver of dreamerv3 names what the same measures of ours are
    Measure("train_steps_per_s", "updates/s", MORE),
    Measure("cpu_s_per_step", "CPU s/update", LESS),
    *(Measure(x.field, x.unit, x.better) for x in UPDATE[2:6]),
)
RUN = (
    Measure("wall_s", "s", LESS),
    Measure("setup_s", "s", LESS),
    Measure("train_s", "s", LESS),
    *(
        Measure(f"phases_s.{name}", "s", LESS)
        for name in ("env", "policy", "update", "eval", "save", "other")
    ),
    Measure("cpu_s", "CPU s", LESS),
    Measure("peak_rss_mib", "MiB", LESS),
)
KINDS: Mapping[str, Kind] = {
    "updates": Kind(
        "update",
        UPDATE,
        ("agent", "size", "batch", "length", "dtype", "num_envs", "observations", "actions", "settings"),
    ),
    "updates_drq": Kind(
        "DrQ update",
        UPDATE,
        ("batch", "size", "frames", "channels", "hidden", "actions", "discrete", "dtype"),
    ),
    "env_steps": Kind(
        "physics",
        (
            Measure("physics_steps_per_s_core", "steps/s a core", MORE),
            Measure("control_steps_per_s_wall", "control steps/s", MORE),
            Measure("compile_s", "s", LESS),
            Measure("temp_mib", "MiB", LESS),
        ),
        rows="rows",
        labels=("task", "part", "num_envs"),
    ),
    "env_loop": Kind(
        "loop around physics and pixels",
        (Measure("loop", "env_steps/s", MORE), Measure("bare", "env_steps/s", MORE)),
        ("num_envs", "size"),
        rows="rows",
        labels=("task",),
    ),
    "envs": Kind(
        "Atari",
        (
            Measure("ours_steps_per_s", "steps/s", MORE),
            Measure("ours_cpu_us", "CPU us/step", LESS),
            Measure("raw_steps_per_s", "steps/s", MORE),
        ),
        ("game",),
        rows="rows",
        labels=("case", "num_envs"),
    ),
    "render": Kind(
        "picture of the arm",
        (
            Measure("raycast_ms", "CPU ms", LESS),
            Measure("raycast_frames_per_s", "pictures/s", MORE),
            Measure("speedup", "x OpenGL", MORE),
            Measure("temp_mb", "MB", LESS),
        ),
        ("size",),
        rows="rows",
        labels=("camera", "num_envs", "samples"),
    ),
    "population": Kind(
        "population's updates",
        (
            Measure("updates_per_s", "updates/s", MORE),
            Measure("gain", "x one alone", MORE),
            Measure("compile_s", "s", LESS),
            Measure("scratch_mib", "MiB", LESS),
        ),
        ("size", "batch", "length", "dtype"),
        rows="rows",
        labels=("members", "layout"),
    ),
    "devices": Kind(
        "update on several devices",
        (
            Measure("efficiency", "of one device's work", MORE),
            Measure("updates_per_s", "updates/s", MORE, "update_s", inverse=True),
            Measure("scratch_mib", "MiB", LESS),
        ),
        ("size", "batch", "length"),
        rows="rows",
        labels=("devices",),
    ),
    "replay": Kind(
        "replay",
        (
            Measure("us", "us", LESS, "us_each"),
            Measure("gb_per_s", "GB/s", MORE),
            Measure("share", "of a copy", MORE),
        ),
        ("length", "capacity"),
        rows="rows",
        labels=("kind", "what", "streams", "batch"),
    ),
    "kernels": Kind(
        "program for an H200",
        (
            Measure("kernels", "kernels", LESS),
            Measure("temp_mib", "MiB", LESS),
            Measure("arguments_mib", "MiB", LESS),
            Measure("host_transfers", "transfers", LESS),
        ),
        ("target", "program", "size", "batch", "length", "dtype", "actions", "members", "settings"),
    ),
    "smoke": Kind("run", RUN, ("config", "settings"), parts=("cold", "warm")),
    "saves": Kind(
        "checkpoint",
        (
            Measure("save.blocked_s", "s", LESS, "save.blocked_s"),
            Measure("save.on_disk_s", "s", LESS, "save.on_disk_s"),
            Measure("save.extra_mib", "MiB", LESS),
            Measure("load.verified_s", "s", LESS),
            Measure("load.loaded_s", "s", LESS),
            Measure("load.peak_mib", "MiB", LESS),
        ),
        rows="rows",
        labels=("mb",),
    ),
    "memory": Kind(
        "memory of a run",
        (
            Measure("host_mib", "MiB", LESS),
            Measure("device_mib", "MiB", LESS),
            Measure("ratios.peak", "x measured", ""),
        ),
        rows="rows",
        labels=("preset",),
    ),
    "memory_h200": Kind(
        "memory worked out for an accelerator",
        (Measure("peak_device_mib", "MiB", LESS), Measure("saving_host_mib", "MiB", LESS)),
        ("flags",),
    ),
    "sinks": Kind(
        "every sink against none",
        (
            Measure("median_ratio", "x the time", LESS, "ratio"),
            Measure("ratio_cpu", "x the CPU time", LESS, "ratio_cpu"),
        ),
        ("settings",),
    ),
    "versus": Kind(
        "against a peer",
        (Measure("ratio", "x the peer", "", "round_ratios"),),
        ("ours", "peer"),
        rows="fields",
        labels=("field",),
    ),
}


def has_any(found: Mapping[str, Any]) -> bool:
    """Whether a record is of a benchmark that measures speed or memory."""
    return found.get("benchmark") == SUITE or found.get("benchmark") in KINDS


def of(found: Mapping[str, Any]) -> list[Figure]:
    """The figures of a record, in its own order.

    Raises:
      ConfigError: it is of a benchmark that has none, or is no such record.
    """
    name = found.get("benchmark")
    if name == SUITE:
        if made := list(stored(found)):
            return made
        raise ConfigError("the record of a suite holds no figure")
    if not isinstance(name, str) or name not in KINDS:
        raise ConfigError(f"benchmark={name!r:.80}: has no figures of speed or memory")
    kind = KINDS[name]
    figures = [x for case, row in rows_of(kind, found) for x in measured(kind.measures, case, row)]
    # Of the two programs that "versus" has run.
    ours, peer = (at(found, f"last.{side}") for side in ("ours", "peer"))
    if isinstance(ours, dict) and ours.get("benchmark") in KINDS:
        figures += [dataclasses.replace(x, case=f"ours {x.case}".strip(), leads=False) for x in of(ours)]
    if isinstance(peer, dict):
        figures += [dataclasses.replace(x, leads=False) for x in measured(PEER, "peer", peer)]
    if not figures:
        raise ConfigError(f"benchmark={name}: the record holds none of its figures")
    return figures


def measured(measures: tuple[Measure, ...], case: str, row: Mapping[str, Any]) -> Iterator[Figure]:
    """The figures of a row; the first of them stands for it."""
    leads = True
    for measure in measures:
        if values := values_of(measure, row):
            state = row.get(measure.state) if measure.state else None
            title = f"{measure.field}, {state}" if state else measure.field
            yield Figure(case, title, measure.unit, measure.better, values, leads)
            leads = False


def stored(found: Mapping[str, Any]) -> Iterator[Figure]:
    """The figures that a suite's record holds. Raises ConfigError."""
    try:
        for one in found["figures"]:
            values = tuple(map(float, one["values"]))
            record.spread(values)  # which must not be empty
            words = [str(one[name]) for name in ("case", "name", "unit", "better")]
            yield Figure(*words, values=values, leads=bool(one["leads"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"its figures cannot be read ({type(error).__name__}: {error})") from error


def rows_of(kind: Kind, found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(label, row) of a record's rows."""
    if kind.parts:
        yield from ((name, found[name]) for name in kind.parts if isinstance(found.get(name), dict))
    elif kind.rows:
        rows = found.get(kind.rows)
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, dict):
                words = [worded(name, row[name]) for name in kind.labels if row.get(name) is not None]
                yield " ".join(words), row
    else:
        yield "", found


def worded(name: str, value: Any) -> str:
    """A field in a label: words speak for themselves, numbers do not."""
    return value if isinstance(value, str) else f"{name}={value:g}" if is_number(value) else f"{name}={value}"


def at(found: Mapping[str, Any], field: str) -> Any:
    """The value of a dotted field; None if there is none."""
    value: Any = found
    for name in field.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def values_of(measure: Measure, row: Mapping[str, Any]) -> tuple[float, ...]:
    """The values of a measure in a row; none if it is not there."""
    each = at(row, measure.each) if measure.each else None
    if isinstance(each, list) and each and all(map(is_number, each)):
        return tuple(1 / x if measure.inverse else float(x) for x in each if x or not measure.inverse)
    value = at(row, measure.field)
    return (float(value),) if is_number(value) else ()


def settings_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a record's figures are of; of a suite case by case."""
    if found.get("benchmark") == SUITE:
        settings = found.get("settings")
        return settings if isinstance(settings, dict) else {}
    kind = KINDS[found["benchmark"]]
    return {name: found[name] for name in kind.settings if name in found}


def over_rounds(cases: Mapping[str, list[dict[str, Any]]]) -> list[Figure]:
    """The figures of several rounds, each the median of its round, case by case."""
    found: dict[tuple[str, str], list[Figure]] = {}
    for case, rounds in cases.items():
        for one in rounds:
            for figure in of(one):
                words = [figure.case] if len(cases) == 1 else [case, figure.case]
                named = dataclasses.replace(figure, case=": ".join(filter(None, words)) or case)
                found.setdefault(named.key, []).append(named)
    return [
        dataclasses.replace(same[0], values=tuple(statistics.median(x.values) for x in same))
        for same in found.values()
    ]
