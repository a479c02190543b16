"""Looks whether a machine, and a run, are fit for training. Each check stands alone.

A check is a function that yields findings. It runs in a thread of its own; what may end a process or never
return runs in a child on top. So one that raises, crashes or hangs costs its own lines only.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from jaxrl import flags, runtime
from jaxrl.checks import device, disk, extras, past, software, system, worlds
from jaxrl.checks.finding import FAULT, MARKS, OK, WARN, Finding, Wish, first_line

__all__ = ["FAULT", "MARKS", "OK", "WARN", "Finding", "Wish", "examine", "left_out"]

AT_ONCE = 2  # checks that start children, each of which takes a core
QUICK_S, SLOW_S = 20.0, 150.0  # from when on a check has not answered
SHORTEST_SECRET = 6  # characters


class Check(NamedTuple):
    name: str
    look: Callable[[Wish], Iterator[Finding]]
    slow: bool = False  # starts children, or reads a lot
    skipped: bool = False  # where it is to be fast


CHECKS = (
    Check("python", software.python),
    Check("packages", software.packages),
    Check("accelerators", software.accelerators),
    Check("cores", system.cores),
    Check("memory", system.memory),
    Check("/dev/shm", system.shared_memory),
    Check("open files", system.open_files),
    Check("variables", system.variables),
    Check("device", device.device, slow=True),
    Check("envpool", worlds.envpool, slow=True, skipped=True),
    Check("opengl", worlds.opengl, slow=True),
    Check("video", extras.video, slow=True),
    Check("wandb", extras.wandb),
    Check("runs folder", disk.runs),
    Check("compile cache", disk.cache),
)
OF_RUN = (
    Check("run: lock", past.lock),
    Check("run: config", past.config),
    Check("run: checkpoints", past.checkpoints, slow=True),
    Check("run: rows", past.rows, slow=True),
    Check("run: ending", past.ending),
)


class Trial:
    """A check at work in a thread."""

    def __init__(self, check: Check, wish: Wish, turns: threading.BoundedSemaphore):
        self._check, self._wish, self._turns = check, wish, turns
        self._found: list[Finding] = []
        self._over = threading.Event()
        threading.Thread(target=self._work, name=check.name, daemon=True).start()

    def _work(self) -> None:
        try:
            with self._turns if self._check.slow else contextlib.nullcontext():
                for finding in self._check.look(self._wish):
                    self._found.append(finding)
        except Exception as error:  # of whatever kind: the other checks go on
            what = f"could not be looked at: {type(error).__name__}: {first_line(error)}"
            remedy = "look at what it names; if all is well there, report this line"
            self._found.append(Finding(WARN, self._check.name, what, remedy))
        finally:
            self._over.set()

    def result(self) -> list[Finding]:
        """What it has found, or that it does not answer."""
        limit = SLOW_S if self._check.slow else QUICK_S
        if self._over.wait(limit):
            return self._found
        what = f"no answer within {limit:g} s: a disk or a driver hangs"
        remedy = "sudo dmesg -T | tail, and df, which hangs at a network disk that does not answer"
        return [*self._found, Finding(FAULT, self._check.name, what, remedy)]


def left_out(wish: Wish) -> str:
    """What was not looked at; "" if nothing."""
    return "device and physics, envpool, opengl" if wish.fast else ""


def examine(wish: Wish) -> Iterator[Finding]:
    """Makes all checks at once; yields what they find in a fixed order, as soon as it is known."""
    turns, of_run = threading.BoundedSemaphore(AT_ONCE), []
    machine = [x for x in CHECKS if not (wish.fast and x.skipped)]
    trials = [Trial(check, wish, turns) for check in (*machine, *(OF_RUN if wish.run else ()))]
    for trial in trials[: len(machine)]:
        for finding in map(without_secrets, trial.result()):
            if finding.name.startswith("run: "):
                of_run.append(finding)
            else:
                yield finding
    yield from of_run
    for trial in trials[len(machine) :]:
        yield from map(without_secrets, trial.result())


def without_secrets(finding: Finding) -> Finding:
    """The finding with *** for the values of variables that are named like secrets, but for paths."""
    found, remedy = finding.found, finding.remedy
    for name, value in runtime.environment({}).items():
        if flags.SECRET.search(name) and len(value) >= SHORTEST_SECRET and not is_path(value):
            found, remedy = found.replace(value, "***"), remedy.replace(value, "***")
    return Finding(finding.mark, finding.name, found, remedy)


def is_path(value: str) -> bool:
    return os.path.isabs(value) and os.path.exists(value)
