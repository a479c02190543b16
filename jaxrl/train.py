"""Entry: python -m jaxrl.train --config=NAME [--setting=value ...]"""

import contextlib
import dataclasses
import math
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

from jaxrl import exits, flags, measuring, rundir, runtime, siblings, supervise
from jaxrl.config import ConfigError
from jaxrl.faults import Faults
from jaxrl.hosts import ALONE, Alone, checked, join

TWICE_S = 0.1  # two of the same signal within it are one
UNKNOWN = 1  # exit code of an error that nobody has thought of
PATIENCE_S = 1.0  # for the main thread to come to a signal


class StopRequest:
    """Set by the first SIGINT or SIGTERM inside the `with`; the second one ends the process at once.

    So does the first until somebody has asked, which the loop does before anything else: there is nothing to
    save yet, and nobody to react while things are imported, compiled or loaded.

    Where jax connects several processes it watches SIGTERM itself, and what it has noticed counts as one.
    """

    def __init__(self):
        self.signal: int | None = None
        self._at = -math.inf  # time.monotonic of that signal
        self._asked = 0  # times
        self._connected = False
        self._passed_on: int | None = None  # a signal that jax was told of, for all to stop together
        self.run_dirs: list[rundir.RunDir] = []  # once they are this command's
        self._before = {}
        self._wakeup = (-1, -1)  # a pipe with the numbers of signals that the handler has not seen yet
        self._old_wakeup = -1
        self._over = threading.Event()

    def __call__(self) -> bool:
        if not self._asked:
            self._connected = runtime.jax_watches_sigterm()
        self._asked += 1
        if self._connected and self.signal is None and runtime.preempted(self._asked):
            self._note(self._passed_on or signal.SIGTERM)
        return self.signal is not None

    @property
    def writes(self) -> list[rundir.RunDir]:
        """The run directories, several of a population, if this process is the one that writes into them."""
        return [x for x in self.run_dirs if x.lock >= 0]

    def opened(self, run_dir: rundir.RunDir) -> None:
        """Where to note it if the process ends before the loop has begun."""
        self.run_dirs.append(run_dir)

    def __enter__(self) -> "StopRequest":
        if runtime.on_main_thread():
            self._wakeup = os.pipe()
            for end in self._wakeup:
                os.set_blocking(end, False)
            self._old_wakeup = signal.set_wakeup_fd(self._wakeup[1], warn_on_full_buffer=False)
            threading.Thread(target=self._watch, name="signals", daemon=True).start()
            # jax's own handler of SIGTERM, once it is there, must stay.
            also = () if runtime.jax_watches_sigterm() else (signal.SIGTERM,)
            for number in (signal.SIGINT, *also):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._old_wakeup)
            self._over.set()
            os.close(self._wakeup[1])  # which ends the thread

    def _receive(self, number: int, frame: object) -> None:
        del frame
        self._unseen()
        asked = self.signal is not None or self._passed_on is not None
        if not self._asked or (asked and not self._is_same(number)):
            self._leave(number)
        if self._connected and not asked:
            self._passed_on, self._at = number, time.monotonic()
            os.kill(os.getpid(), signal.SIGTERM)
        elif not asked:
            self._note(number)

    def _is_same(self, number: int) -> bool:
        """A group of processes got it, and one of them passed it on to this one."""
        return number in (self.signal, self._passed_on) and time.monotonic() - self._at < TWICE_S

    def _note(self, number: int) -> None:
        self.signal, self._at = number, time.monotonic()
        words = f"\njaxrl: {signal.Signals(number).name}: stopping and saving; once more to leave at once\n"
        runtime.say_at_once(words)

    def _leave(self, number: int) -> NoReturn:
        if not self._asked:
            runtime.say_at_once(f"\njaxrl: {signal.Signals(number).name}: stopped before the run began\n")
            for run_dir in self.run_dirs:
                with contextlib.suppress(exits.WriteFailed):
                    run_dir.note(exit="stopped before it began", ended=rundir.now())
        runtime.leave_at_once(128 + number)

    def _unseen(self) -> bytes:
        try:
            numbers = os.read(self._wakeup[0], 1000)
        except BlockingIOError:
            return b""
        return bytes(number for number in numbers if number in self._before)  # others are not for us

    def _watch(self) -> None:
        """In a thread: leaves where the handler cannot, because a library holds the main thread up."""
        presses = 0
        while not self._over.is_set():
            select.select([self._wakeup[0]], [], [])
            self._over.wait(PATIENCE_S)  # for the handler, which would take them
            if numbers := self._unseen():
                presses += 1
                if not self._asked or self.signal is not None or presses > 1:
                    self._leave(numbers[-1])
        os.close(self._wakeup[0])

    @property
    def code(self) -> int:
        return exits.DONE if self.signal is None else 128 + self.signal


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit code."""
    try:
        command = flags.parse(argv, siblings.origin_of)
        if command.action == "supervise":
            return supervise.run(command, argv)
        if command.action in ("train", "dry_run"):
            with StopRequest() as stop:
                code = train(command, flags.redacted(argv), stop)
            if code == exits.DONE and command.config.benchmark_at_end and stop.writes:
                measuring.after(stop.writes[0].path, say)  # one stands for all of a population
            return code
        say(command.text, head="")
        return exits.DONE
    except (ConfigError, exits.RunError) as error:
        print(f"jaxrl: {error}", file=sys.stderr)
        return getattr(error, "code", exits.BAD_CONFIG)
    except KeyboardInterrupt:
        return exits.INTERRUPTED


def say(line: str, head: str = "jaxrl: ") -> None:
    """Prints a line; that nobody reads it any more is no reason to stop."""
    with contextlib.suppress(BrokenPipeError):
        print(f"{head}{line}", flush=True)


def train(command: flags.Command, argv: list[str], stop: StopRequest) -> int:
    """Runs it, alone or with the other processes of the run. Raises ConfigError and RunError."""
    if command.action == "train" and not command.config.distributed.coordinator:
        rundir.check_free(command.config.logdir)
    tasks = command.config.tasks or command.config.task
    for line in (f"starting {command.preset} on {tasks} ...", *command.notes):
        say(line)
    runtime.prepare(command.config)
    command, hosts = joined(command)
    try:
        code = train_with(hosts, command, argv, stop)
    except BaseException as error:
        hosts.verdict(error)
        hosts.end(*told(error))
        if hosts.count == 1 or isinstance(error, ConfigError | exits.RunError):
            raise
        traceback.print_exc()
        return UNKNOWN
    hosts.end(exits.DONE)
    return code


def told(error: BaseException) -> tuple[int, str]:
    """Exit code and words of a process that ends with an error."""
    if isinstance(error, ConfigError | exits.RunError):
        return getattr(error, "code", exits.BAD_CONFIG), str(error)
    return UNKNOWN, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def joined(command: flags.Command) -> tuple[flags.Command, Alone]:
    """The command as this process of the run has it, and the processes."""
    wanted = command.config.distributed
    if not wanted.coordinator:
        if wanted.processes > 1:
            raise ConfigError(
                f"distributed.processes={wanted.processes}: they meet at an address; for example "
                "distributed.coordinator=10.0.0.1:7654"
            )
        return command, ALONE
    wanted = runtime.with_cluster(wanted)
    versions = {name: x for name, x in runtime.versions().items() if name in ("jaxrl", "jax", "jaxlib")}
    checked(wanted)
    say(f"process {wanted.process} of {wanted.processes} meets the others at {wanted.coordinator} ...")
    hosts = join(wanted, versions, leave)
    return dataclasses.replace(command, config=dataclasses.replace(command.config, distributed=wanted)), hosts


def leave(code: int, words: str) -> NoReturn:
    """Ends this process because of another one."""
    runtime.say_at_once(f"jaxrl: {words}\n")
    runtime.leave_at_once(code)


def train_with(hosts: Alone, command: flags.Command, argv: list[str], stop: StopRequest) -> int:
    """Sets a run up and runs it; with dry_run only one step of each phase, and nothing is written."""
    faults = Faults(command.config.debug.fault)
    if command.action == "train" and hosts.count > 1 and hosts.leads:
        rundir.check_free(command.config.logdir)
    from jaxrl import joint, population, session  # imports jax, which takes seconds

    command = joint.agreed(command, hosts)
    hosts.opened(joint.farewell(lambda: next(iter(stop.run_dirs), None)))
    what = population if command.config.seeds or command.config.tasks else session
    machine = runtime.start(command.config, hosts)
    command = dataclasses.replace(command, config=runtime.resolve(command.config, machine))
    if command.action == "dry_run":
        what.dry_run(command, machine, lambda line: print(line, flush=True) if hosts.leads else None)
        runtime.disconnect(hosts)
        return exits.DONE
    finished = what.train(command, machine, argv, session.Control(stop, stop.opened, faults))
    runtime.disconnect(hosts)
    return exits.DONE if finished else stop.code


if __name__ == "__main__":
    runtime.ask_for_huge_pages()
    code = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    runtime.leave_at_once(code)  # after a failed save, threads of Orbax would stay for minutes
