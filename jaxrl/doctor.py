"""Entry: python -m jaxrl.doctor [RUN] [--device=gpu] [--logdir=FOLDER] [--json] [--fast]"""

import collections
import json
import platform
import sys
import time
from collections.abc import Iterable, Sequence

from jaxrl import __version__, checks, commands, exits, reading, rundir, runtime
from jaxrl.checks import FAULT, MARKS, OK, WARN, Finding, Wish
from jaxrl.commands import say

WIDTHS = (max(map(len, MARKS)), 13)  # of mark and name


def parser() -> commands.Parser:
    made = commands.Parser(
        "jaxrl.doctor",
        "Looks whether this machine, and a run, are fit for training. One line a check: ok, warn (it works, "
        "with a drawback) or fault (it does not), and below it what to do. Exit code 0, or 2 with a fault.",
    )
    made.add_argument("run", metavar="RUN", nargs="?", default="", help="run directory to look at, too")
    made.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "gpu", "tpu"), help="must be there [auto]"
    )
    made.add_argument("--logdir", default="", metavar="FOLDER", help="where runs are to be made [./runs]")
    made.add_argument("--json", action="store_true", help="print one JSON object instead")
    made.add_argument("--fast", action="store_true", help="without what imports jax or EnvPool")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit code."""
    return commands.ended(lambda: run(argv))


def run(argv: Sequence[str]) -> int:
    given = parser().parsed(argv)
    path = rundir.located("RUN", given.run) if given.run else None
    if path and not any(rundir.holds(path, name) for name in ("run.json", "checkpoints")):
        path = reading.open_past(path, "RUN").path  # says what is wrong with it
    wish = Wish(run=path, device=given.device, logdir=given.logdir, fast=given.fast)
    began = time.monotonic()
    if given.json:
        findings = list(checks.examine(wish))
        say(json.dumps(record(wish, findings, time.monotonic() - began), allow_nan=False))
    else:
        of_run = f", run {path}" if path else ""
        say(f"jaxrl {__version__}, Python {platform.python_version()}, {platform.platform()}{of_run}")
        findings = []
        for finding in checks.examine(wish):
            findings.append(finding)
            say("\n".join(lines(finding)))
        say(summary(wish, findings, time.monotonic() - began))
    return exits.BAD_CONFIG if any(x.mark == FAULT for x in findings) else exits.DONE


def lines(finding: Finding) -> list[str]:
    """A finding for a human, its remedy on a line of its own."""
    first = f"{finding.mark:<{WIDTHS[0]}}  {finding.name:<{WIDTHS[1]}}  {finding.found}"
    return [first, *([f"{'':{WIDTHS[0]}}  -> {finding.remedy}"] if finding.remedy else [])]


def counts(findings: Iterable[Finding]) -> dict[str, int]:
    """How many have each mark."""
    found = collections.Counter(x.mark for x in findings)
    return {mark: found[mark] for mark in MARKS}


def summary(wish: Wish, findings: Sequence[Finding], seconds: float) -> str:
    """The last line."""
    found = counts(findings)
    words = [f"{found[OK]} ok", f"{found[WARN]} warn", f"{found[FAULT]} fault"]
    without = f"; left out with --fast: {x}" if (x := checks.left_out(wish)) else ""
    return f"{', '.join(words)}, {seconds:.0f} s{without}"


def record(wish: Wish, findings: Sequence[Finding], seconds: float) -> dict[str, object]:
    """The same for a program."""
    found = [{"mark": x.mark, "name": x.name, "found": x.found, "remedy": x.remedy or None} for x in findings]
    return {
        "jaxrl": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "run": str(wish.run) if wish.run else None,
        "device": wish.device,
        "fast": wish.fast,
        "counts": counts(findings),
        "seconds": round(seconds, 3),
        "checks": found,
    }


if __name__ == "__main__":
    runtime.leave_at_once(commands.flushed(main(sys.argv[1:])))
