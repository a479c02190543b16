"""Where metrics, scores and words go: files of JSON lines, TensorBoard, the terminal, plots, W&B.

The training thread only leaves what it has; one background thread writes it (courier.py), and one more for
each sink that takes its time.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from jaxrl.faults import OFF, Faults
from jaxrl.sinks import jsonl, tables
from jaxrl.sinks.courier import Courier, Limits
from jaxrl.sinks.row import Banner, Event, Note, Row, Samples, Saved, ScoreRow, Sink, Video
from jaxrl.sinks.terminal import WINDOW, make_terminal

__all__ = ["Limits", "Row", "Samples", "Saved", "ScoreRow", "Sink", "Sinks", "Video", "make_sinks"]

PATIENCE_S = 120.0  # after which a call into a slow sink counts as hanging
HURRIED_S = 5.0  # close_s of a slow sink where somebody waits for the process to end


class Sinks:
    """All sinks of a run, as one place to write to. Nothing here raises, prints or waits for a disk.

    `write` costs the caller microseconds. Only when a file of record is 4,096 events behind does it
    wait, at most 5 s and once, before the events pile up in memory.
    """

    def __init__(
        self,
        journals: Sequence[Sink],
        others: Sequence[Sink] = (),
        limits: Limits | None = None,
        faults: Faults = OFF,
    ) -> None:
        """`journals` lose nothing and are written first; `others` may drop, and may break.

        The name of a sink is the place of its faults.
        """
        self._courier = Courier(journals, [x for x in others if x.slow_s is None], limits, faults)
        self._couriers = [self._courier]
        for sink in others:
            if (slow_s := sink.slow_s) is not None:
                sink.say = self.note
                patient = Limits(patience_s=PATIENCE_S, close_s=slow_s / 0.4, hurry_s=slow_s)
                self._couriers.append(Courier([], [sink], patient, faults, self.note))

    def write(self, row: Row) -> None:
        """One row per event step. Sinks that broke or dropped are counted in it as `sinks/...`."""
        scalars = dict(row.scalars)  # a copy: the caller may go on with its own
        for courier in self._couriers:
            scalars |= courier.faults()
        self.post(dataclasses.replace(row, scalars=scalars))

    def post(self, event: Event) -> None:
        """Anything else that happened: a finished episode, a checkpoint on disk, a video."""
        for courier in self._couriers:
            courier.post(event)

    def note(self, text: str) -> None:
        """One line for the human."""
        self._courier.post(Note(text))

    def banner(self, lines: Sequence[str]) -> None:
        """What this run is; at the start."""
        self._courier.post(Banner(tuple(lines)))

    def progress(self, step: int, steps: int, extra: Mapping[str, float | str] | None = None) -> None:
        """Moves the progress bar; as often as you like.

        Args:
          step: env_steps so far.
          steps: env_steps of the whole run.
          extra: "updates" feeds updates/s; texts (such as {"phase": "evaluating"}) are shown.
        """
        self._courier.progress(step, steps, dict(extra or {}))

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Waits until metrics.jsonl and scores.jsonl hold everything written so far.

        To be called before a checkpoint is committed: it must not know of steps whose rows are missing.
        """
        return self._courier.flush(timeout_s)

    @property
    def failure(self) -> str | None:
        """Why metrics.jsonl or scores.jsonl cannot be written at this moment; None if all is well."""
        return self._courier.failure()

    @property
    def lost(self) -> dict[str, int]:
        """Events lost for good by file of record; empty in every run that had a disk to write to."""
        return self._courier.lost()

    def close(self, hurried: bool = False) -> None:
        """Writes what waits and closes everything, within about 6 s whatever hangs. Idempotent.

        Args:
          hurried: 2 s are enough for a slow sink, which otherwise has as long as it says (W&B half a minute).
        """
        for courier in reversed(self._couriers):  # the slow ones first: what they say is shown by the others
            courier.close(HURRIED_S if hurried and courier is not self._courier else None)

    def __enter__(self) -> Sinks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def make_sinks(
    run_dir: Path,
    *,
    steps: int,
    resume_step: int | None = None,
    scores_step: int | None = None,
    tensorboard: bool = True,
    terminal_filter: str = "",
    terminal_style: str = "auto",
    label: str = "",
    more: Sequence[Sink] = (),
    faults: Faults = OFF,
) -> Sinks:
    """Opens the sinks of a run.

    Args:
      run_dir: gets metrics.jsonl, scores.jsonl, tables/ and tb/.
      steps: env_steps of the whole run.
      resume_step: env_steps of the checkpoint that the run continues from: rows beyond are dropped, as
        is a torn last line. None: a new run; files that an earlier attempt has left are set aside.
      scores_step: the same for training episodes in scores.jsonl, if the checkpoint lies beyond the last
        row; evaluation episodes are cut at `resume_step`.
      tensorboard: whether to write event files.
      terminal_filter: regular expression, searched in a metric's own and its Stable-Baselines3 name;
        "" = the usual ones, ".*" = all.
      terminal_style: "auto" (rich on a terminal, else plain), "rich", "plain" or "off".
      label: of the run, where several share the terminal.
      more: other sinks.
      faults: to happen in sinks, by their names.

    Raises:
      ValueError: a bad filter or style, before any file is touched.
      OSError: the files cannot be opened. After the start, such errors are handled inside.
    """
    terminal = make_terminal(
        sys.stdout, style=terminal_style, steps=steps, pattern=terminal_filter, label=label
    )
    (run_dir / tables.FOLDER).mkdir(parents=True, exist_ok=True)
    of_episodes = resume_step if scores_step is None else scores_step
    last_of = {"metrics.jsonl": resume_step, "scores.jsonl": of_episodes}
    last_of[f"{tables.FOLDER}/{tables.EPISODES}"] = of_episodes
    done = (_prepare(run_dir, name, last, resume_step) for name, last in last_of.items())
    notes = [line for line in done if line]
    others: list[Sink] = [tables.CheckpointTable(run_dir)]
    if terminal is not None:
        terminal.remember(jsonl.last_episodes(run_dir / "scores.jsonl", WINDOW))
        others.append(terminal)
    if tensorboard:
        from jaxrl.sinks.tensorboard import TensorBoard  # imports torch where it is installed: seconds

        others.append(TensorBoard(run_dir / "tb", resume_step))
    journals = [jsonl.metrics_file(run_dir), jsonl.scores_file(run_dir), tables.episodes_file(run_dir)]
    sinks = Sinks(journals, [*others, *more], faults=faults)
    for line in notes:
        sinks.note(line)
    return sinks


def _prepare(run_dir: Path, name: str, resume_step: int | None, eval_step: int | None) -> str | None:
    """Makes a file ready to be appended to; returns what was changed in it, if anything."""
    if resume_step is None:
        old = jsonl.set_aside(run_dir / name)
        return f"{name} of an earlier attempt is now {old.name}" if old else None
    done = jsonl.cut(run_dir / name, resume_step, eval_step)
    changes = {f"beyond step {resume_step}": done.beyond, "torn or unreadable": done.broken}
    dropped = ", ".join(f"{count} {what}" for what, count in changes.items() if count)
    return f"{name}: kept {done.kept} lines, dropped {dropped}" if dropped else None
