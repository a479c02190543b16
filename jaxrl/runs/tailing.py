"""tail: the last rows of a run as a table, and those to come."""

import contextlib
import pathlib
import re
import time
from collections.abc import Sequence

from jaxrl import changes, commands, exits
from jaxrl.config import ConfigError, show
from jaxrl.reading import ROWS, is_locked, open_past
from jaxrl.runs import text
from jaxrl.runs.glance import Glance, glance
from jaxrl.runs.journal import Journal, News, words_of_bad
from jaxrl.runs.sheet import Sheet
from jaxrl.schema import nearest

POLL_S = 0.5
PATIENCE_S = 30.0  # for a run that has died to be started again, as --supervise does
MOST = 1_000_000  # rows


def parser() -> commands.Parser:
    made = commands.Parser(
        "jaxrl.runs tail",
        "The last rows of a run: counters, scores, loss, speed, or metrics that a regular expression finds.",
    )
    made.add_argument("run", metavar="RUN", help="run directory")
    made.add_argument("--rows", default="10", help="how many [10]")
    made.add_argument("--follow", action="store_true", help="go on with new rows until the run ends")
    made.add_argument(
        "--filter",
        default="",
        metavar="REGEX",
        help="metrics in whose name it is found, their own or that of Stable-Baselines3; .* shows all",
    )
    return made


def run(argv: Sequence[str]) -> int:
    given = parser().parsed(argv)
    most = commands.whole("rows", given.rows, 1, MOST)
    sheet = Sheet(compiled(given.filter) if given.filter else None, text.width())
    past = open_past(given.run)
    text.warn(past.remarks)
    tail = Tail(past.path, sheet)
    tail.begin(most)
    if given.follow:
        tail.follow()
    elif tail.is_empty:
        names = sheet.names
        if not names:
            text.warn([f"{past.path}: has no rows yet"])
        else:
            raise ConfigError(
                f"--filter={show(given.filter)}: is found in none of the {len(names)} metrics of the run; "
                f"{nearest(given.filter, names, otherwise='.* shows all')}"
            )
    return exits.DONE


def compiled(pattern: str) -> re.Pattern[str]:
    """Raises ConfigError."""
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(
            f"--filter={show(pattern)}: must be a regular expression ({error}); .* shows all"
        ) from error


class Tail:
    """A run whose rows are printed."""

    def __init__(self, path: pathlib.Path, sheet: Sheet):
        self._path = path
        self._journal = Journal(path / ROWS)
        self._sheet = sheet
        self._hidden: list[str] = []  # columns of which it was told that they have no room
        self._seen = self._touched()  # when the run was at work; s since 1970
        self._waits = False  # for the run to be started again
        self.is_empty = True

    def begin(self, most: int) -> None:
        """Prints the last rows."""
        self._tell(self._journal.first(most, self._sheet.wants))

    def follow(self) -> None:
        """Prints rows as they come, until the run has ended, and then how."""
        while True:
            is_running = is_locked(self._path)  # asked first: what it has written until then is read now
            self._tell(self._journal.news())
            if is_running:
                self._seen, self._waits = time.time(), False
            elif words := self._ending():
                print(words, flush=True)
                return
            time.sleep(POLL_S)

    def _tell(self, news: News) -> None:
        text.warn(words_of_bad(self._path / ROWS, news.bad))
        if news.back_to is not None:
            where = f"went back to step {news.back_to:,}" if news.back_to >= 0 else "begins anew"
            text.warn([f"the run {where}; what follows replaces the rows from there on"])
        for line in self._sheet.lines(news.rows):
            self.is_empty = False
            print(line, flush=True)
        if (hidden := self._sheet.hidden) != self._hidden:
            self._hidden = hidden
            text.warn([f"no room for {len(hidden)} more: {changes.some(hidden)}"] if hidden else [])

    def _touched(self) -> float:
        """When the run has last written something that is looked at; s since 1970."""
        times = [0.0]
        for name in (ROWS, "run.json", "run.lock"):
            with contextlib.suppress(OSError):
                times.append((self._path / name).stat().st_mtime)
        return max(times)

    def _ending(self) -> str | None:
        """How the run has ended, in words; None if it goes on, or may do so."""
        x = glance(open_past(self._path), self._path.name)
        if x.state == "running":
            return None
        left = PATIENCE_S - (time.time() - max(self._seen, self._touched()))
        if x.state == "died" and left > 0:
            if not self._waits:
                text.warn([f"its process is gone; waiting {left:.0f} s for the run to be started again"])
            self._waits = True
            return None
        return ending(x)


def ending(x: Glance) -> str:
    """How a run has ended, in words."""
    where = "before its first row"
    if x.step is not None:
        where = f"at step {x.step:,}{f' of {x.steps:,}' if x.steps else ''} after {text.span(x.wall_s)}"
    remedy = f"to continue: python -m jaxrl.train --logdir={x.path}"
    more = {
        "stopped": f"; {remedy}",
        "failed": f": {x.reason}",
        "died": f": its process is gone and has noted no end; {remedy}",
    }
    return f"{x.state} {where}{more.get(x.state, '')}"
