"""Entry: python -m jaxrl.train --config=NAME [--setting=value ...]"""

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Sequence

from jaxrl import exits, flags, runtime
from jaxrl.config import ConfigError


class StopRequest:
    """Set by the first SIGINT or SIGTERM inside the `with`; the second one ends the process at once."""

    def __init__(self):
        self.signal: int | None = None
        self._before = {}

    def __call__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        if runtime.on_main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        del frame
        if self.signal is not None:
            runtime.leave_at_once(128 + number)
        self.signal = number
        words = f"\njaxrl: {signal.Signals(number).name}: stopping and saving; once more to leave at once\n"
        runtime.say_at_once(words)

    @property
    def code(self) -> int:
        return exits.DONE if self.signal is None else 128 + self.signal


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit code."""
    try:
        command = flags.parse(argv)
        if command.action in ("train", "dry_run"):
            return train(command, list(argv))
        with contextlib.suppress(BrokenPipeError):
            print(command.text, flush=True)
        return exits.DONE
    except (ConfigError, exits.RunError) as error:
        print(f"jaxrl: {error}", file=sys.stderr)
        return getattr(error, "code", exits.BAD_CONFIG)
    except KeyboardInterrupt:
        return exits.INTERRUPTED


def train(command: flags.Command, argv: list[str]) -> int:
    """Sets a run up and runs it; with dry_run only one step of each phase, and nothing is written."""
    with contextlib.suppress(BrokenPipeError):
        print(f"jaxrl: starting {command.preset} on {command.config.task} ...", flush=True)
    runtime.prepare(command.config)
    with StopRequest() if command.action == "train" else contextlib.nullcontext() as stop:
        from jaxrl import session  # imports jax, which takes seconds

        machine = runtime.start(command.config)
        command = dataclasses.replace(command, config=runtime.resolve(command.config, machine))
        if stop is None:
            session.dry_run(command.config, machine, lambda line: print(line, flush=True))
            return exits.DONE
        finished = session.train(command, machine, argv, stop)
    return exits.DONE if finished else stop.code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    runtime.leave_at_once(code)  # after a failed save, threads of Orbax would stay for minutes
