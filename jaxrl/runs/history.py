"""Where the rows of runs of the same settings and seed begin to differ: whether a run can be repeated."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxrl import changes, glossary
from jaxrl.reading import Past
from jaxrl.runs import text

# Time, and what became of files, may differ between two runs of one seed.
APART = (*glossary.TIME_KEYS, "sinks/")
# These follow settings that move no result.
LOOSE = ("eval_episode/", "replay/ram_gb")
SHOWN = 3  # metrics that differ
MISSING = object()


def histories(pasts: Sequence[Past], names: Sequence[str], told: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each run that is to be the same as one before it.

    Args:
      names: of the runs.
      told: their settings.
    """
    lines = []
    for b in range(len(pasts)):
        pairs = [(a, free) for a in range(b) if (free := alike(told[a], told[b])) is not None]
        if pairs:
            a, free = min(pairs, key=lambda pair: len(pair[1]))
            but = f", but for {', '.join(free)}, which move no result" if free else ""
            apart = (*APART, *LOOSE) if free else APART
            found = verdict(
                {names[i]: {row["step"]: untimed(row, apart) for row in pasts[i].rows} for i in (a, b)},
                bool(free),
            )
            lines.append(f"{names[a]} and {names[b]}: the same settings and seed{but}; {found}")
    return lines or ["no two have the same settings and seed, so their metrics are not compared step by step"]


def untimed(row: Mapping[str, Any], apart: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith(apart)}


def verdict(rows: Mapping[str, Mapping[int, dict[str, Any]]], is_loose: bool) -> str:
    """Up to which step two runs are identical, in words.

    Args:
      rows: {name: {step: row without time}} of the two.
      is_loose: only steps that both have count, and metrics that both have.
    """
    (one, a), (two, b) = rows.items()
    if not a or not b:
        return f"{two if a else one} has no rows yet"
    ends = {name: max(x) for name, x in rows.items()}
    steps = a.keys() & b.keys() if is_loose else a.keys() | b.keys()
    same = None
    for step in sorted(step for step in steps if step <= min(ends.values())):
        if step not in a or step not in b:
            return told_of(same, f"step {step:,} is in {one if step in a else two} only")
        keys = [k for k in a[step] if k in b[step]] if is_loose else [*{**a[step], **b[step]}]
        if found := [k for k in keys if a[step].get(k, MISSING) != b[step].get(k, MISSING)]:
            several = f"{len(found)} of {len(keys)} metrics differ"
            return told_of(same, f"at step {step:,} {several}: {few(found, a[step], b[step])}")
        same = step
    if same is None:
        return "they have no step in common"
    shorter = next((name for name, end in ends.items() if end < max(ends.values())), None)
    return f"identical up to step {same:,}, the last row of {shorter or 'both'}"


def few(names: Sequence[str], a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """The first of the metrics that differ, with all of their digits."""
    shown = [f"{name} {a.get(name, text.NONE)} and {b.get(name, text.NONE)}" for name in names[:SHOWN]]
    return ", ".join(shown) + (" ..." if len(names) > SHOWN else "")


def told_of(same: int | None, difference: str) -> str:
    return difference if same is None else f"identical up to step {same:,}; {difference}"


def alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str] | None:
    """Settings that differ but move no result; None if others do, too, so that rows cannot be the same."""
    names = [name for name in {**a, **b} if a.get(name, MISSING) != b.get(name, MISSING)]
    for name in names:
        try:
            moves = changes.class_of(name) != "free"
        except KeyError:  # of another version
            moves = True
        if moves or name == "log_every":  # rows are means since the row before
            return None
    return names
