"""Entry: python -m jaxrl.runs list|compare|tail ... looks at runs from outside; nothing is written.

Costs no import of jax, and works beside runs that are going on.
"""

from collections.abc import Sequence

from jaxrl import commands
from jaxrl.config import ConfigError
from jaxrl.runs import comparing, listing, tailing
from jaxrl.schema import nearest

COMMANDS = {"list": listing, "compare": comparing, "tail": tailing}
ASKS_HELP = ("-h", "--help")
EXAMPLE = "for example python -m jaxrl.runs list"


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit code."""
    return commands.ended(lambda: run(argv))


def run(argv: Sequence[str]) -> int:
    words = "list, compare or tail"
    if not argv:
        raise ConfigError(f"name a command: {words}; {EXAMPLE}")
    name, *rest = argv
    if name in ASKS_HELP:
        parser = commands.Parser(
            "jaxrl.runs",
            "list shows the runs below a folder, compare sets some side by side, tail shows the last rows "
            "of one. COMMAND --help says more.",
        )
        parser.add_argument("command", metavar="COMMAND", help=words)
        parser.parsed([name])
    if name.startswith("-"):
        raise ConfigError(f"{name[:80]}: comes before the command ({words}); {EXAMPLE}")
    if name not in COMMANDS:
        raise ConfigError(f"{name[:80]}: no such command; {nearest(name, COMMANDS, otherwise=EXAMPLE)}")
    return COMMANDS[name].run(rest)
