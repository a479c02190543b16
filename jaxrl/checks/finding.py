"""What a check is asked, and what it says."""

import dataclasses
import pathlib

OK, WARN, FAULT = MARKS = ("ok", "warn", "fault")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line about one thing."""

    mark: str  # of MARKS: as it should be; works, but not as one may wish; does not work
    name: str
    found: str
    remedy: str = ""  # what to do, to be pasted as far as it can; always there where the mark is not OK


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
    """What is to be looked at."""

    run: pathlib.Path | None = None  # absolute
    device: str = "auto"  # as the setting of a run
    logdir: str = ""  # folder for runs, as it was written; "" = that of `run`, else ./runs
    fast: bool = False  # nothing that imports jax or envpool


def size(count: float) -> str:
    """Bytes in a unit of their own: "1.3 GB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count < 1e3 * scale else f"{count / scale:,.0f} {unit}"
    return f"{count:.0f} bytes"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def halves(error: str, otherwise: str) -> tuple[str, str]:
    """(what, remedy) of one of this program's own lines, which have a semicolon between them."""
    what, _, remedy = error.partition("; ")
    return what, remedy or otherwise


def first_line(error: BaseException | str, most: int = 300) -> str:
    """An error in one line; its kind if it has no words."""
    said = str(error).strip().splitlines()
    return said[0][:most] if said else type(error).__name__
