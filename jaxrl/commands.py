"""What the smaller entries share: a parser whose errors are one line, and how a command ends.

`python -m jaxrl.commands` writes docs/commands.md from their parsers.
"""

import argparse
import contextlib
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from jaxrl import exits
from jaxrl.config import ConfigError
from jaxrl.schema import converted, nearest

# Of docs/commands.md. Loaded by name, since entries are above this room.
PARSERS = ("evaluate", "report.__main__", "runs.listing", "runs.comparing", "runs.tailing", "doctor")


class Parser(argparse.ArgumentParser):
    """Whose errors are one line, with the nearest option that there is."""

    def __init__(self, module: str, description: str):
        """`module`: of the entry, as in python -m."""
        super().__init__(prog=f"python -m {module}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].lower()}{message[1:]}; --help lists what there is")

    def parsed(self, argv: Sequence[str]) -> argparse.Namespace:
        """The options of a command line. Raises ConfigError."""
        given, unknown = self.parse_known_args(argv)
        options = [x.dest for x in self._actions if x.option_strings]
        for word in unknown:
            if not word.startswith("-"):
                raise ConfigError(f"{word[:80]}: one word too many; --help says what there may be")
            near = nearest(word.lstrip("-").partition("=")[0], options, "--")
            raise ConfigError(f"{word[:80]}: unknown option; {near}")
        return given


def whole(name: str, text: str, low: int, high: int) -> int:
    """A whole number of the command line. Raises ConfigError."""
    value = converted(int, text)
    if not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"--{name}={text[:80]}: must be a whole number from {low} to {high:_}")
    return value


def say(text: str) -> None:
    """Prints a line; that nobody reads it any more is no reason to stop."""
    with contextlib.suppress(BrokenPipeError):
        print(text, flush=True)


def ended(work: Callable[[], int]) -> int:
    """The exit code of a command: what it returns, or that of what it raises, which is told in one line."""
    try:
        with contextlib.suppress(BrokenPipeError):
            return work()
        return exits.DONE  # nobody reads it any more
    except SystemExit:  # of --help
        return exits.DONE
    except (ConfigError, exits.RunError) as error:
        print(f"jaxrl: {error}", file=sys.stderr)
        return getattr(error, "code", exits.BAD_CONFIG)
    except KeyboardInterrupt:
        return exits.INTERRUPTED


def flushed(code: int) -> int:
    """The same code, once what was printed is out."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    return code


def markdown() -> str:
    """The page of docs/commands.md."""
    lines = [
        "# Commands",
        "",
        "Made by `python -m jaxrl.commands`. Training has its own page, [flags.md](flags.md); what each",
        "command writes is in [files.md](files.md). Exit codes are those of the trainer.",
    ]
    for name in PARSERS:
        made: Parser = importlib.import_module(f"jaxrl.{name}").parser()
        lines += ["", f"## {made.prog}", "", escaped(made.description or ""), ""]
        lines += ["| argument | meaning |", "|---|---|"]
        lines += [row(action) for action in made._actions if action.dest != "help"]
    return "\n".join(lines) + "\n"


def row(action: argparse.Action) -> str:
    """An argument, in the table."""
    value = str(action.metavar or action.dest.upper())
    shown = f"{action.option_strings[0]}={value}" if action.option_strings else value
    shown = action.option_strings[0] if action.nargs == 0 else shown  # a switch
    choices = f" ({', '.join(map(str, action.choices))})" if action.choices else ""
    return f"| `{shown}` | {escaped(action.help or '')}{choices} |"


def escaped(text: str) -> str:
    return text.replace("<", "\\<").replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(markdown())
