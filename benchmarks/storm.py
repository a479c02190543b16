"""Processes of a run that are ended at random moments, and what must hold after each of them."""

import collections
import dataclasses
import pathlib
import random
import signal
import subprocess
import time
from typing import Any

from benchmarks.victims import FIRST_WORDS, Evidence, Victim, complaints, ended, look, unfinished, wait_until
from jaxrl.config import Config

PLACES = {  # of debug.fault, and the largest visit that is drawn
    "start": 1,
    "compile": 1,
    "act": 40,
    "learn": 20,
    "flush": 3,
    "eval": 30,
    "save": 3,
    "commit": 3,
    "manifest": 3,
    "metrics": 3,
    "scores": 8,
}
LIMIT_S = 10.0  # from a signal to the end of the process


@dataclasses.dataclass
class Storm:
    """What the suites share."""

    words: list[str]  # the command
    config: Config  # that it gives
    folder: pathlib.Path  # of all runs
    dice: random.Random
    window: float  # seconds after the start-up in which processes are ended
    timeout: float  # seconds of one undisturbed process
    startup_s: float = 0.0
    victims: list[Victim] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)

    def victim(self) -> Victim:
        """A new run."""
        self.victims.append(Victim(self.words, self.folder / f"run{len(self.victims)}"))
        return self.victims[-1]

    def fail(self, victim: Victim, *why: str) -> None:
        self.failures += [f"{victim.logdir.name}, start {victim.starts}: {text}" for text in why]

    def warm_up(self) -> dict[str, Any]:
        """An undisturbed run, which fills the cache of compiled programs; then a start is timed."""
        straight = Victim(self.words, self.folder / "straight")
        if code := straight.finish(self.timeout):
            raise SystemExit(f"faults: the undisturbed run ended with {code}:\n{tail(straight)}")
        again = Victim(self.words, self.folder / "again")
        began = time.monotonic()
        process = again.start()
        rows = again.logdir / "metrics.jsonl"
        wait_until(lambda: rows.exists() and rows.stat().st_size, process, self.timeout)
        self.startup_s = time.monotonic() - began
        process.kill()
        process.wait()
        self.fail(straight, *unfinished(straight, self.config))
        return {"startup_s": round(self.startup_s, 2), "straight": straight.digest()}

    def finish(self, victim: Victim) -> None:
        """Lets a run come to its end, and looks at what it leaves."""
        before = look(victim)
        if code := victim.finish(self.timeout):
            self.fail(victim, f"ended with {code}: {tail(victim)}")
        self.fail(victim, *complaints(before, look(victim)), *unfinished(victim, self.config))


def tail(victim: Victim) -> str:
    return victim.said().decode(errors="replace")[-2000:]


def kill(storm: Storm, count: int) -> dict[str, Any]:
    """`kill -9`: half of them by the clock, half at places of debug.fault; always the same command again."""
    about = storm.warm_up()
    by: collections.Counter[str] = collections.Counter()
    redone, torn = [], 0
    while by.total() < count:
        victim = storm.victim()
        before = look(victim)
        while by.total() < count:
            place = storm.dice.choice(list(PLACES)) if storm.dice.random() < 0.5 else None
            how = life(storm, victim, place)
            if how is None:
                break  # the run has come to its end
            now = look(victim)
            by[how] += 1
            torn += now.torn
            storm.fail(victim, *complaints(before, now))
            redone += steps_redone(before, now)
            before = now
        storm.finish(victim)
    bound = storm.config.save_every + storm.config.log_every
    if redone and max(redone) > bound:
        storm.failures.append(f"{max(redone)} env_steps were made again, more than {bound}")
    return about | {
        "kills": by.total(),
        "by": dict(sorted(by.items())),
        "runs": len(storm.victims),
        "starts": sum(victim.starts for victim in storm.victims),
        "began": sum(len(look(victim).starts) for victim in storm.victims),
        "torn_last_lines": torn,  # of files at the moment of a kill; mended by the next start
        "redone_env_steps": {"bound": bound, **spread(redone)},
        "digests_equal": equal(storm, about["straight"]),
    }


def life(storm: Storm, victim: Victim, place: str | None) -> str | None:
    """One process, up to its violent end; says what it died of, None if the run was done before."""
    seconds = storm.startup_s + storm.window
    if place is None:
        process, seconds = victim.start(), storm.dice.uniform(0, seconds)
    else:
        visit = storm.dice.randint(1, PLACES[place])
        process = victim.start(f"--debug.fault=kill@{place}:{visit}")
    began = time.monotonic()
    code = ended(process, seconds if place is None else 2 * seconds)
    if code == 0:
        return None
    if code != -signal.SIGKILL:
        storm.fail(victim, f"a start failed with {code}: {tail(victim)}")
    by_clock = place is None or time.monotonic() - began >= 2 * seconds
    return "clock" if by_clock else str(place)


def steps_redone(before: Evidence, now: Evidence) -> list[int]:
    """env_steps that the process between the two made again, of those that had reached a file."""
    return [max(0, before.reached - step) for step in now.starts[len(before.starts) :]]


def equal(storm: Storm, straight: dict[str, Any]) -> bool | None:
    """All runs have ended with the arrays of the undisturbed one; None where environments cannot be saved."""
    if storm.config.task.startswith("atari_"):
        return None
    same = all(victim.digest() == straight for victim in storm.victims)
    if not same:
        storm.failures.append("the arrays at the end are not those of the undisturbed run")
    return same


def spread(numbers: list[float]) -> dict[str, Any]:
    if not numbers:
        return {"max": None, "mean": None}
    return {"max": round(max(numbers), 3), "mean": round(sum(numbers) / len(numbers), 3)}


def signals(storm: Storm, count: int) -> dict[str, Any]:
    """`count` SIGTERM and as many SIGINT: the code, the time until the end, a checkpoint where it says."""
    about = storm.warm_up()
    wanted = [signal.SIGTERM, signal.SIGINT] * count
    codes: collections.Counter[str] = collections.Counter()
    ends: collections.Counter[str] = collections.Counter()
    seconds: list[float] = []
    while wanted:
        victim = storm.victim()
        while wanted:
            before, number = look(victim), wanted[-1]
            spent = interrupted(storm, victim, victim.start(), number)
            if spent is None:
                break  # the run has come to its end
            wanted.pop()
            code, took = spent
            seconds.append(took)
            codes[f"{number.name} {code}"] += 1
            ends[str(victim.note().get("exit"))] += 1
            storm.fail(victim, *complaints(before, look(victim)), *unsaved(victim, number, code, took))
        storm.finish(victim)
    return about | {
        "signals": len(seconds),
        "codes": dict(sorted(codes.items())),
        "exits": dict(sorted(ends.items())),
        "seconds": {"limit": LIMIT_S, **spread(seconds)},
        "runs": len(storm.victims),
        "digests_equal": equal(storm, about["straight"]),
    }


def interrupted(
    storm: Storm, victim: Victim, process: subprocess.Popen[bytes], number: signal.Signals
) -> tuple[int, float] | None:
    """(exit code, seconds until the end) after a signal at a random moment; None if the run was done."""
    wait_until(lambda: FIRST_WORDS in victim.said(), process, storm.timeout)
    time.sleep(storm.dice.uniform(0, storm.startup_s + storm.window))
    process.send_signal(number)
    sent = time.monotonic()
    code = ended(process, 6 * LIMIT_S)
    return None if code == 0 else (code, time.monotonic() - sent)


def unsaved(victim: Victim, number: signal.Signals, code: int, seconds: float) -> list[str]:
    """What is wrong with the end of a process that got a signal."""
    found = [] if code == 128 + number else [f"{number.name} ended with {code}: {tail(victim)}"]
    if seconds > LIMIT_S:
        found.append(f"{number.name} took {seconds:.1f} s")
    note = victim.note()
    if note.get("exit") == "stopped":
        steps = look(victim).saved
        if note["env_steps"] not in steps:
            found.append(f"stopped at step {note['env_steps']}, but checkpoints are {sorted(steps)}")
    elif b"stopped before the run began" not in victim.said():
        found.append(f"run.json says {note.get('exit')}: {tail(victim)}")
    return found
