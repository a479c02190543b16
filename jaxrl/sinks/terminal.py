"""What the human sees: a bar and tables on a terminal, plain lines anywhere else."""

from __future__ import annotations

import collections
import contextlib
import io
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping
from typing import ClassVar, TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table as Grid
from rich.text import Text

from jaxrl.sinks.row import Banner, Event, Note, Row, ScoreRow, Sink
from jaxrl.sinks.table import Chooser, Table, clock, format_value

STYLES = ("auto", "rich", "plain", "off")
WINDOW = 100  # training episodes averaged in the rollout group, as in Stable-Baselines3
COLORS = {"rollout": "cyan", "time": "blue", "train": "magenta", "eval": "green"}
MIN_BAR = 16  # characters of the bar that texts beside it leave
LOSSES = ("train/opt/loss", "train/loss")  # the first of these is "loss" in a plain line


class Pace:
    """Steps per second over the latest samples; the first interval, which compiles, soon drops out."""

    def __init__(self, window: int, gap_s: float) -> None:
        self._samples: collections.deque[tuple[float, int, int]] = collections.deque(maxlen=window)
        self._gap_s = gap_s
        self._compiled = False

    def add(self, at_s: float, step: int, updates: int) -> None:
        samples = self._samples
        if samples and (step <= samples[-1][1] or at_s - samples[-1][0] < self._gap_s):
            return
        samples.append((at_s, step, updates))
        if len(samples) == 3 and not self._compiled:
            samples.popleft()
            self._compiled = True

    def rates(self) -> tuple[float, float]:
        """env_steps/s and updates/s, NaN before the second sample."""
        if len(self._samples) < 2:
            return math.nan, math.nan
        (at, step, updates), (to_at, to_step, to_updates) = self._samples[0], self._samples[-1]
        return (to_step - step) / (to_at - at), (to_updates - updates) / (to_at - at)

    def eta_s(self, steps: int) -> float:
        """Seconds that `steps` more env_steps take, NaN if unknown."""
        rate, _ = self.rates()
        return steps / rate if rate > 0 else math.nan


class PlainTerminal(Sink):
    """One compact line per row: for pipes, log files, and terminals that cannot do more."""

    name = "terminal"
    takes: ClassVar[tuple[type, ...]] = (Row, ScoreRow, Note, Banner)

    def __init__(
        self, stream: TextIO, *, steps: int, pattern: str = "", owned: bool = False, label: str = ""
    ) -> None:
        """`steps`: env_steps of the whole run. `owned`: the stream is closed with the sink.

        `label`: stands before every line, where several runs share a terminal.
        """
        self._stream = stream
        self._label = f"{label}  " if label else ""
        self._steps = steps
        self._owned = owned
        self._chooser = Chooser(pattern)
        self._episodes: collections.deque[ScoreRow] = collections.deque(maxlen=WINDOW)
        self._pace = Pace(window=20, gap_s=1e-3)

    def remember(self, episodes: Iterable[ScoreRow]) -> None:
        """Training episodes from before a resume; called before the sink thread starts."""
        self._episodes.extend(episodes)

    def take(self, event: Event) -> None:
        match event:
            case ScoreRow(kind="episode"):
                self._episodes.append(event)
            case Row():
                self._show(event)
            case Note(text):
                self._print(self._label + text)
            case Banner(lines):
                self._print("\n".join(lines))

    def close(self) -> None:
        (self._stream.close if self._owned else self._stream.flush)()

    def values(self, row: Row) -> dict[str, float]:
        """Every number of a row under its own name, with the rolling means of recent episodes."""
        values = {
            "step": row.step,
            "agent_steps": row.agent_steps,
            "updates": row.updates,
            "episodes": row.episodes,
            "wall_s": row.wall_s,
            **row.scalars,
        }
        if self._episodes:
            count = len(self._episodes)
            values["episode/score"] = sum(x.score for x in self._episodes) / count
            values["episode/length"] = sum(x.length for x in self._episodes) / count
        if judged := [x.success for x in self._episodes if x.success is not None]:
            values["episode/success"] = sum(judged) / len(judged)
        return values

    def _show(self, row: Row) -> None:
        self._pace.add(row.wall_s, row.step, row.updates)
        self._print(self._label + self._line(self.values(row)))

    def _line(self, values: Mapping[str, float]) -> str:
        step, total = int(values["step"]), str(self._steps)
        percent = f"{100 * step / max(1, self._steps):.0f}%"
        parts = [f"step {step:>{len(total)}}/{total} {percent:>4}"]
        if self._chooser.chosen:
            names = sorted(name for name in values if name != "step" and self._chooser(name))
            parts += [f"{name} {format_value(values[name])}" for name in names]
        else:
            parts += self._usual(values)
        eta = self._pace.eta_s(self._steps - step)
        return "  ".join(parts if math.isnan(eta) else [*parts, f"eta {clock(eta)}"])

    def _usual(self, values: Mapping[str, float]) -> list[str]:
        parts = [f"updates {values['updates']}"]
        if "fps/env_steps" in values:
            parts.append(f"fps {format_value(values['fps/env_steps'], 'time/fps')}")
        score, evaluated = values.get("episode/score"), values.get("eval_episode/avg_score")
        if score is not None:
            parts.append(f"score {score:.1f}" + ("" if evaluated is None else f" (eval {evaluated:.1f})"))
        elif evaluated is not None:
            parts.append(f"eval {evaluated:.1f}")
        if loss := next((name for name in LOSSES if name in values), None):
            parts.append(f"loss {format_value(values[loss])}")
        return parts

    def _print(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class RichTerminal(PlainTerminal):
    """A table per row, printed above a progress bar; the bar only where the stream is a terminal."""

    tick_s = 0.25

    def __init__(
        self,
        stream: TextIO,
        *,
        steps: int,
        pattern: str = "",
        owned: bool = False,
        console: Console | None = None,
    ) -> None:
        super().__init__(stream, steps=steps, pattern=pattern, owned=owned)
        self._console = console or _Console(file=stream, highlight=False, markup=False, emoji=False)
        self._table = Table()
        self._bar_pace = Pace(window=240, gap_s=0.5)
        self._latest: tuple[int, int, Mapping[str, float | str]] | None = None
        self._live: Live | None = None

    def progress(self, step: int, steps: int, extra: Mapping[str, float | str]) -> None:
        self._latest = (step, steps, extra)

    def tick(self) -> None:
        if self._latest is None or not self._console.is_interactive:
            return
        step, _, extra = self._latest
        self._bar_pace.add(time.monotonic(), step, int(extra.get("updates", 0)))
        if self._live is None:
            # Prints of other code go above the bar, unless they are on their way elsewhere.
            self._live = Live(
                get_renderable=self.bar,
                console=self._console,
                auto_refresh=False,
                redirect_stdout=_is_terminal(sys.stdout),
                redirect_stderr=_is_terminal(sys.stderr),
            )
            self._live.start()
            self._console.show_cursor(True)  # a killed run must not leave a terminal without one
        self._live.refresh()

    def close(self) -> None:
        self.tick()
        if self._live is not None:
            self._live.stop()
        super().close()

    def bar(self) -> RenderableType:
        step, steps, extra = self._latest or (0, self._steps, {})
        rate, updates_rate = self._bar_pace.rates()
        eta = self._bar_pace.eta_s(steps - step)
        parts = {
            "count": f"{step}/{steps}",
            "percent": f"{100 * step / max(1, steps):.0f}%",
            "rate": f"{format_value(rate, 'time/fps')} env_steps/s",
            "updates": f"{format_value(updates_rate, 'time/fps')} updates/s",
            "eta": f"eta {'-:--' if math.isnan(eta) else clock(eta)}",
            "words": "  ".join(x for x in extra.values() if isinstance(x, str)),
        }
        unknown = {"rate", "updates"} if math.isnan(rate) else set()
        parts = {name: part for name, part in parts.items() if part and name not in unknown}
        for least in ("count", "updates", "words", "rate"):  # what a narrow terminal does without
            if len("  ".join(parts.values())) + MIN_BAR > self._console.width:
                parts.pop(least, None)
        grid = Grid.grid(padding=(0, 1, 0, 0), expand=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True, overflow="crop")
        grid.add_row(ProgressBar(total=max(1, steps), completed=step), Text("  ".join(parts.values())))
        return grid

    def _show(self, row: Row) -> None:
        text = Text()
        for group, line in self._table.lines(self.values(row), self._chooser):
            style = f"bold {COLORS.get(group, 'yellow')}" if group else ""
            text.append(line + "\n", style="dim" if line.startswith("-") else style)
        if text:
            text.rstrip()
            self._console.print(text, no_wrap=True, overflow="crop")

    def _print(self, text: str) -> None:
        self._console.print(Text(text))

    def take(self, event: Event) -> None:
        if isinstance(event, Banner):
            panel = Panel(Text("\n".join(event.lines)), expand=False, border_style="dim")
            self._console.print(panel)
        else:
            super().take(event)


def make_terminal(
    stream: TextIO | None, *, style: str = "auto", steps: int, pattern: str = "", label: str = ""
) -> PlainTerminal | None:
    """The terminal of a run; None where nothing is to be shown. ValueError names a bad option.

    Runs with a label share a terminal with others: theirs are plain lines.
    """
    if style not in STYLES:
        raise ValueError(f"terminal.style={style!r} must be one of {', '.join(STYLES)}")
    Chooser(pattern)
    if style == "off" or stream is None or stream.closed:
        return None
    pretty = style == "rich" or (
        style == "auto" and _is_terminal(stream) and not Console(file=stream).is_dumb_terminal
    )
    own = _own(stream)
    if label or not pretty:
        return PlainTerminal(own, steps=steps, pattern=pattern, owned=own is not stream, label=label)
    return RichTerminal(own, steps=steps, pattern=pattern, owned=own is not stream)


def _own(stream: TextIO) -> TextIO:
    """The same open file with a buffer of its own, where the stream is a real file.

    A thread that hangs in a blocked terminal while it holds the lock of sys.stdout's buffer would
    make the interpreter abort at its exit.
    """
    with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):
        stream.flush()
        return open(  # noqa: SIM115  lives as long as the run
            os.dup(stream.fileno()), "w", buffering=1, encoding=stream.encoding, errors="replace"
        )
    return stream


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # rich would leave the process here; a pipe that closes must not end a training.
        raise BrokenPipeError("nobody reads the terminal's output any more")
