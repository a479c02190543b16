"""Entry: python -m jaxrl.report RUN [RUN ...] [PEER.json.gz ...] [--out=FOLDER] [--title=TEXT]"""

import pathlib
import sys
from collections.abc import Sequence

from jaxrl import commands, exits, rundir
from jaxrl.config import ConfigError
from jaxrl.report.gathering import Gathered, gather


def parser() -> commands.Parser:
    made = commands.Parser(
        "jaxrl.report",
        "Makes a page of runs, report.html, that needs no other file, and PNGs: learning curves, losses, "
        "speed, settings, checkpoints, videos. Runs that differ in nothing but the seed are drawn as one, "
        "with a band.",
    )
    made.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="run directory, folder of runs (all are taken), or curves of dreamerv3 to compare with: "
        "a file of scores (.json.gz), a log directory",
    )
    made.add_argument(
        "--out", default="", help="folder of what is written [plots/ of a single run, else report/]"
    )
    made.add_argument("--title", default="", help="of the page [what was run]")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit code."""
    return commands.ended(lambda: run(argv))


def run(argv: Sequence[str]) -> int:
    given = parser().parsed(argv)
    found = gather(given.runs)
    out = folder(given.out, found)
    from jaxrl.report import making  # imports matplotlib, which takes half a second

    for line in making.make(found, out, given.title):
        commands.say(line)
    return exits.DONE


def folder(wish: str, found: Gathered) -> pathlib.Path:
    """Where the page goes; made. Raises ConfigError."""
    default = found.pasts[0].path / "plots" if len(found.pasts) == 1 else pathlib.Path("report")
    out = rundir.located("--out", wish or str(default))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out={out}: {error.strerror}; choose a folder that can be written") from error
    return out


if __name__ == "__main__":
    sys.exit(commands.flushed(main(sys.argv[1:])))
