"""Suites of benchmarks, each round of each in a process of its own; one JSON record a suite.

    python -m benchmarks.run                                 every suite, at small size: some minutes
    python -m benchmarks.run --suite=replay,updates --scale=full --rounds=5 --out=results
    python -m benchmarks.run --run=RUN --out=RUN/benchmarks  the updates of a run, at its settings
    python -m benchmarks.run --list

Records are the lines of stdout; what is being done goes to stderr. A suite that fails is told in one line,
the others go on, and the exit code is 1. Cases take turns (A B A B): what else runs weighs on all alike.
`python -m benchmarks.report` makes tables, plots and comparisons of the records. Beside the common head (id,
time, machine, versions, git, load) a record has:

  run           id of the training run that it belongs to (--run); null without one
  device        platform, kind, number, memory
  config_hash   of the run's settings; without --run, of what was measured
  settings      what was measured, case by case
  figures       of each: case, name, unit, which way is better; median, min, max and `values`, one a round
  commands      of each case
  rounds        what the benchmarks themselves said
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import figures, record, suites
from jaxrl import commands, exits, reading, rundir, runtime
from jaxrl.checks.child import ending
from jaxrl.config import ConfigError
from jaxrl.measuring import stoppable
from jaxrl.schema import nearest

ROOT = pathlib.Path(__file__).resolve().parents[1]
HEAD = ("benchmark", "run", "machine", "versions", "git", "device")  # what rounds have in common
FAILED = 1


class Failed(Exception):
    """A benchmark that gave no record, in one line."""


def parser() -> commands.Parser:
    made = commands.Parser("benchmarks.run", __doc__ or "")
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--suite", nargs="+", action="extend", metavar="NAME", help="which; default: all")
    made.add_argument("--scale", choices=suites.SCALES, default=suites.SMALL, help="sizes; default: small")
    made.add_argument("--rounds", default="3", help="processes of each case; default: 3")
    made.add_argument("--run", metavar="RUN", help="directory of the training run that the records belong to")
    made.add_argument("--out", metavar="FOLDER", help="also write each record to a file there")
    made.add_argument("--timeout", default="3600", metavar="S", help="seconds of one process")
    made.add_argument("--list", action="store_true", help="say what suites there are, and end")
    return made


@dataclasses.dataclass(frozen=True)
class Order:
    """What is to be done, once it is understood."""

    names: tuple[str, ...]
    scale: str
    rounds: int
    past: reading.Past | None
    out: pathlib.Path | None
    timeout: int  # seconds


def main(argv: Sequence[str]) -> int:
    return commands.ended(lambda: run(argv))


def run(argv: Sequence[str]) -> int:
    given = parser().parsed(argv)
    if given.list:
        commands.say(suites.listing())
        return exits.DONE
    order = understood(given)
    with stoppable():
        try:
            head = child("benchmarks.record", [], order.timeout)
        except Failed as error:
            tell(f"no device to measure: {error}")
            return FAILED
        done = [measured(name, order, argv, head["device"]) for name in order.names]
    return exits.DONE if all(done) else FAILED


def understood(given: argparse.Namespace) -> Order:
    """Raises ConfigError."""
    names = [name for text in given.suite or () for name in text.split(",")]
    for name in names:
        if name not in suites.SUITES:
            raise ConfigError(f"--suite={name[:80]}: unknown; {nearest(name, suites.SUITES, '', ALL)}")
    past = reading.open_past(given.run, "run") if given.run else None
    if past and not names:
        if past.config.get("agent") == "random":
            raise ConfigError(f"{past.path}: agent=random learns nothing; name a suite")
        names = [suites.OF_RUN]
    rounds = commands.whole("rounds", given.rounds, 1, 1_000)
    timeout = commands.whole("timeout", given.timeout, 1, 1_000_000)
    out = rundir.located("out", given.out) if given.out else None
    if out:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out={given.out}: {error.strerror}; choose another folder") from error
    chosen = tuple(dict.fromkeys(names or suites.SUITES))
    return Order(chosen, given.scale, rounds, past, out, timeout)


ALL = f"there are {', '.join(suites.SUITES)}"


def measured(name: str, order: Order, argv: Sequence[str], device: dict[str, Any]) -> bool:
    """Measures one suite and gives its record; False, and a line, if that fails."""
    past = order.past
    head = record.start(figures.SUITE, record.portable(argv), past.id if past else None)
    path = str(past.path) if past else None
    cases = suites.cases(name, order.scale, device["platform"], path)
    made: dict[str, list[dict[str, Any]]] = {case: [] for case in cases}
    try:
        for turn in range(order.rounds):
            for case, (module, words) in cases.items():
                began = time.monotonic()
                made[case].append(child(module, words, order.timeout))
                what = f"{name}: {case}, round {turn + 1} of {order.rounds}"
                tell(f"{what}: {time.monotonic() - began:.1f} s")
        found = head | summary(name, order, cases, made) | {"device": device}
        file = rundir.unused(order.out / f"{name}-{stamp()}.json") if order.out else None
        record.finish(found, file)
    except (Failed, ConfigError) as error:
        tell(f"{name} failed: {error}")
        return False
    except BrokenPipeError:
        raise
    except OSError as error:
        tell(f"{name} failed: {error.filename or order.out}: {error.strerror or error}")
        return False
    return True


def summary(
    name: str,
    order: Order,
    cases: dict[str, tuple[str, list[str]]],
    made: dict[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """What a suite's record says beside the common fields."""
    settings = {case: figures.settings_of(rounds[0]) for case, rounds in made.items()}
    hashed = order.past.config if order.past else settings
    return {
        "suite": name,
        "scale": order.scale,
        "config_hash": record.config_hash(hashed),
        "settings": settings,
        "figures": [
            {
                **{"case": x.case, "name": x.name, "unit": x.unit, "better": x.better, "leads": x.leads},
                **x.spread,
                "values": list(x.values),
            }
            for x in figures.over_rounds(made)
        ],
        "commands": {
            case: " ".join(["python -m", module, *record.portable(words)])
            for case, (module, words) in cases.items()
        },
        "rounds": {
            case: [{k: v for k, v in one.items() if k not in HEAD} for one in rounds]
            for case, rounds in made.items()
        },
    }


def child(module: str, words: list[str], timeout: float) -> dict[str, Any]:
    """The record that a benchmark prints, in a process of its own. Raises Failed."""
    path = os.pathsep.join(filter(None, (str(ROOT), runtime.variable("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, "-m", module, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=runtime.environment({"PYTHONPATH": path}),
        start_new_session=True,
        preexec_fn=hears_ctrl_c,  # noqa: PLW1509  there are no threads here
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException as error:
        end(process)
        if isinstance(error, subprocess.TimeoutExpired):
            raise Failed(f"{module}: did not end within {timeout:g} s") from error
        raise
    if process.returncode:
        raise Failed(f"{module}: {ending(process.returncode, err.decode(errors='replace'))}")
    found = record.last_record(out.decode(errors="replace"))
    if found is None:
        raise Failed(f"{module}: gave no record")
    return found


def hears_ctrl_c() -> None:
    """Where a shell has started this program in the background, SIGINT would be ignored by its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a benchmark. First as Ctrl-C does: it may have started processes that only it knows."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=5)
            return


def stamp() -> str:
    return time.strftime("%Y%m%d-%H%M%S")


def tell(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(f"benchmarks.run: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(commands.flushed(main(sys.argv[1:])))
