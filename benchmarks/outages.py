"""Sinks that fail and disks that are full: the training must not notice, and nothing kept may be lost."""

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.storm import Storm, tail
from benchmarks.victims import Victim, complaints, ended, look, unfinished, wait_until

JOURNALS = ("metrics", "scores", "episodes")
SINKS = (*JOURNALS, "tensorboard", "terminal", "plot", "wandb")
KINDS = ("raise", "exit", "full", "hang=60")
SIZE = 64 * 2**20  # bytes of the small disk
HELD_S = 3.0  # that it is full
SLOWER_S = 45.0  # that a run with a hanging sink may take longer: closing it is waited for
SHOWN = ("--tensorboard.enabled=true", "--terminal.style=plain", "--plot.enabled=true")
SENT = ("--wandb.enabled=true", "--wandb.mode=offline")  # only where it is to fail: it takes seconds


def sinks(storm: Storm, count: int) -> dict[str, Any]:
    """Every sink fails in every way; the arrays at the end are those of the run that has none."""
    del count
    silent = Victim(
        [*storm.words, "--tensorboard.enabled=false", "--terminal.style=off", "--plot.enabled=false"],
        storm.folder / "straight",
    )
    if code := silent.finish(storm.timeout):
        raise SystemExit(f"faults: the undisturbed run ended with {code}:\n{tail(silent)}")
    warm = Victim([*storm.words, *SHOWN], storm.folder / "warm")
    began = time.monotonic()
    storm.fail(warm, *[f"ended with {code}" for code in [warm.finish(storm.timeout)] if code])
    straight, seconds = silent.digest(), time.monotonic() - began
    cases = {}
    for number, (sink, kind) in enumerate((sink, kind) for sink in SINKS for kind in KINDS):
        words = [*storm.words, *SHOWN, *(SENT if sink == "wandb" else ())]
        victim = Victim(words, storm.folder / f"run{number}")
        began = time.monotonic()
        code = victim.finish(storm.timeout, f"--debug.fault={kind}@{sink}:2")
        took, digest = time.monotonic() - began, victim.digest()
        cases[f"{kind} {sink}"] = found = {
            "code": code,
            "seconds": round(took, 2),
            "parameters_equal": digest["parameters"] == straight["parameters"],
            "everything_equal": digest == straight,
            "complete": not unfinished(victim, storm.config),
            "told": any(word in victim.said() for word in (b"lost", b"lacks")),
        }
        if not found["everything_equal"]:
            storm.fail(victim, f"{kind} in {sink} has changed the training")
        # What no disk is to blame for costs a file of record one line, and the run says so.
        if not (found["complete"] and code == 0) and not (
            sink in JOURNALS and kind != "full" and code == 74 and found["told"]
        ):
            storm.fail(victim, f"{kind} in {sink}: {found}: {unfinished(victim, storm.config)}")
        if took > seconds + SLOWER_S:
            storm.fail(victim, f"{kind} in {sink} took {took:.1f} instead of {seconds:.1f} s")
    return {"straight_s": round(seconds, 2), "straight": straight, "cases": cases}


@dataclasses.dataclass(frozen=True)
class Disk:
    """A case: what lies on the small disk, and whether it is freed again while the run goes on."""

    small: str  # folder in the run directory, "." for the directory itself
    large: tuple[str, ...] = ()  # folders in it that lie elsewhere
    freed: bool = True


DISKS = {
    "checkpoints": Disk("checkpoints"),
    "tensorboard": Disk("tb"),
    "episodes": Disk("episodes"),
    "records": Disk(".", ("checkpoints", "tb")),
    "everything": Disk("."),
    "checkpoints, for good": Disk("checkpoints", freed=False),
    "everything, for good": Disk(".", freed=False),
}


def disk(storm: Storm, count: int) -> dict[str, Any]:
    """A disk that is full for some seconds, or for good, under each writer."""
    del count
    if sys.platform != "linux" or os.geteuid():
        raise SystemExit("faults: --suite=disk mounts small disks; run it as root on Linux")
    about, cases = storm.warm_up(), {}
    words = [*storm.words, *SHOWN, "--replay.save_episodes=true"]
    for number, (name, case) in enumerate(DISKS.items()):
        victim = Victim(words, storm.folder / f"run{number}")
        with contextlib.ExitStack() as stack:
            cases[name] = full(storm, victim, case, about["straight"], stack)
    return about | {"cases": cases}


def full(
    storm: Storm, victim: Victim, case: Disk, straight: dict[str, Any], stack: contextlib.ExitStack
) -> dict[str, Any]:
    """One case; mounts stay until the stack is closed."""
    if case.small == ".":
        stack.enter_context(mounted(victim.logdir))
    # It waits at its first place, so that folders can be put elsewhere before anything is opened in them.
    process = victim.start("--debug.fault=hang=3@start")
    wait_until(lambda: victim.note().get("starts"), process, storm.timeout)
    if case.small == "episodes":  # a new run takes its folder away
        wait_until((victim.logdir / case.small).exists, process, storm.timeout)
    for name in case.large if case.small == "." else (case.small,):
        stack.enter_context(mounted(victim.logdir / name))
    saved = victim.logdir / "checkpoints" / "latest"
    wait_until(lambda: any(saved.glob("*/manifest.json")), process, storm.timeout)
    before = look(victim)
    with filled(victim.logdir / case.small) as filler:
        time.sleep(HELD_S)
        if case.freed:
            filler.unlink()
        code = ended(process, storm.timeout)
    now = look(victim)
    found = {
        "code": code,
        "lines_about_it": sum(b"No space left" in line for line in victim.said().splitlines()),
        "kept": sorted(before.committed & now.committed),
    }
    if code != (0 if case.freed else 74):
        storm.fail(victim, f"{case} ended with {code}: {tail(victim)}")
    storm.fail(victim, *complaints(before, now))
    if not case.freed:
        found["code_after"] = victim.finish(storm.timeout)
        storm.fail(victim, *complaints(now, look(victim)))
    found["equal"] = victim.digest() == straight
    if not found["equal"]:
        storm.fail(victim, f"{case} has changed the training")
    storm.fail(victim, *unfinished(victim, storm.config))
    return found


@contextlib.contextmanager
def mounted(folder: pathlib.Path) -> Iterator[None]:
    """A small disk in memory at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def filled(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Takes all room that is left on the disk of `folder`, by a file that is given."""
    filler = folder / ".filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    try:
        yield filler
    finally:
        filler.unlink(missing_ok=True)
