"""Entry: python -m jaxrl.train --config=NAME [--setting=value ...]"""

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Sequence

from jaxrl import exits, flags, runtime
from jaxrl.config import ConfigError


class StopRequest:
    """Set by the first SIGINT or SIGTERM; the second one ends the process at once."""

    def __init__(self):
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None

    def install(self) -> None:
        if runtime.on_main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: object) -> None:
        del frame
        if self.signal is not None:
            runtime.leave_at_once(128 + number)
        self.signal = number

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


def train(command: flags.Command, argv: list[str]) -> int:
    """Sets a run up and runs it; with dry_run only one step of each phase, and nothing is written."""
    stop = StopRequest()
    stop.install()
    with contextlib.suppress(BrokenPipeError):
        print(f"jaxrl: starting {command.preset} on {command.config.task} ...", flush=True)
    runtime.prepare(command.config)
    from jaxrl import session  # imports jax, which takes seconds

    machine = runtime.start(command.config)
    command = dataclasses.replace(command, config=runtime.resolve(command.config, machine))
    if command.action == "dry_run":
        session.dry_run(command.config, machine, lambda line: print(line, flush=True))
        return exits.DONE
    finished = session.train(command, machine, argv, stop)
    return exits.DONE if finished else stop.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
