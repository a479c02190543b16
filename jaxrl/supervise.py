"""--supervise: runs the command in a process of its own, and again whenever that one dies of a signal.

So it does where one of several processes was lost: each of them has its own supervisor.

Nothing in a process can catch the end of it by the kernel (no memory left) or by a fault in a library. The
same command goes on from the last checkpoint, so starting it again is all that is needed. Imports no jax.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Sequence

from jaxrl import exits, rundir, runtime
from jaxrl.config import ConfigError
from jaxrl.flags import Command

DEATHS = 3  # one after another without progress: the next one would be no different
ENDED = (signal.SIGINT, signal.SIGTERM)  # somebody wanted it to end


class Child:
    """The process of the run; it gets the signals that this one gets."""

    def __init__(self, words: Sequence[str]):
        self._words = words
        self._process: subprocess.Popen[bytes] | None = None
        self.asked: int | None = None  # to end, by this signal

    def run(self) -> int:
        """Starts it and waits for its end; returns its exit code, negative if a signal ended it."""
        # In a group of its own, so that Ctrl-C reaches it once: from here.
        self._process = subprocess.Popen(
            self._words,
            process_group=0,
            preexec_fn=runtime.end_with_parent,  # noqa: PLW1509  there are no threads here
        )
        if self.asked is not None:  # while it was started
            self._process.send_signal(self.asked)
        return self._process.wait()

    def pass_on(self, number: int, frame: object) -> None:
        del frame
        self.asked = number
        if self._process is not None:
            self._process.send_signal(number)


def run(command: Command, argv: Sequence[str]) -> int:
    """Runs a command line that names --supervise, without it; returns the exit code of its last process."""
    if command.config.distributed.coordinator and not command.config.logdir:
        raise ConfigError(
            "logdir=: must be named with --supervise and several processes, the same in all of them"
        )
    logdir = command.config.logdir or str(rundir.default_path(command.config, command.preset))
    path = pathlib.Path(logdir).expanduser().resolve()
    words = [*program(argv), *unsupervised(argv)]
    child = Child(words if command.config.logdir else [*words, f"--logdir={path}"])
    before = {number: signal.signal(number, child.pass_on) for number in ENDED}
    try:
        return until_it_ends(child, path)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def until_it_ends(child: Child, path: pathlib.Path) -> int:
    deaths, farthest = 0, progress(path)
    while True:
        code = child.run()
        number = signal_of(code)
        if number is None and (code != exits.PEER_LOST or child.asked is not None):
            return code
        if number is not None and (number in ENDED or child.asked is not None):
            return 128 + number
        reached = progress(path)
        moved = any(now > then for now, then in zip(reached, farthest, strict=True))
        farthest = max(reached[0], farthest[0]), max(reached[1], farthest[1])
        deaths = 0 if moved else deaths + 1
        where = f"after the row of step {reached[1]:,}" if reached[1] >= 0 else "before its first row"
        cause = f"died of {name_of(number)}" if number else "lost a process"
        what = f"jaxrl: the run {cause} {where}"
        if deaths == DEATHS:
            runtime.say_at_once(f"{what}; giving up after {DEATHS} deaths without progress\n")
            return 128 + number if number else code
        runtime.say_at_once(f"{what}; starting it again from its last checkpoint\n")


def progress(path: pathlib.Path) -> tuple[int, int]:
    """Steps (env_steps) of a run's newest checkpoint and of its last row; -1 where there is none.

    Of a population, whose members lie in folders of the path, the farthest.
    """
    runs = [path, *(file.parent for file in path.glob("*/config.json"))]
    saved = [
        int(file.parent.name.partition(".")[0])
        for run in runs
        for file in (run / "checkpoints" / "latest").glob("*/manifest.json")
        if re.fullmatch(r"\d+(\.\d+)?", file.parent.name)
    ]
    return max(saved, default=-1), max(last_step(run / "metrics.jsonl") for run in runs)


def last_step(file: pathlib.Path) -> int:
    """The step of the last complete row; -1 if there is none."""
    try:
        with open(file, "rb") as rows:
            rows.seek(max(0, rows.seek(0, os.SEEK_END) - 2**20))
            lines = rows.read().splitlines()
    except OSError:
        return -1
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue  # torn
    return -1


def signal_of(code: int) -> int | None:
    """The signal that a process died of, by its exit code; shells and containers tell it as 128 + signal."""
    number = -code if code < 0 else code - 128
    return number if 0 < number < signal.NSIG else None


def name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def program(argv: Sequence[str]) -> list[str]:
    """What was called with `argv`: the interpreter, its options, the module."""
    words = sys.orig_argv[: -len(argv)]
    called = [*words, *argv] == sys.orig_argv
    return [sys.executable, *(words[1:] if called else ("-m", "jaxrl.train"))]


def unsupervised(argv: Sequence[str]) -> list[str]:
    """The command line without the flag, which may also stand in a flagfile."""
    words = [word for word in argv if not re.fullmatch("--?supervise(=.*)?", word)]
    return [*words, "--nosupervise"] if any(re.match("--?flagfile", word) for word in words) else words
