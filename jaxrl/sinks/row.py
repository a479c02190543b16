"""What flows to the sinks: rows, scores, lines of text; and what a sink is.

`step` is env_steps everywhere: simulator steps, action repeat counted, summed over environments.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal


@dataclasses.dataclass(frozen=True)
class Row:
    """Everything known at one event step: flush and evaluation merged, one row per step."""

    step: int  # env_steps, the x-axis
    agent_steps: int  # decisions
    updates: int  # gradient steps
    episodes: int  # finished training episodes
    wall_s: float  # seconds of training so far, summed over resumes
    scalars: Mapping[str, float]  # metric name -> value


@dataclasses.dataclass(frozen=True)
class ScoreRow:
    """One finished episode, of training or of evaluation."""

    step: int  # env_steps of the run when the episode was counted
    kind: Literal["episode", "eval_episode"]
    score: float  # sum of the unclipped rewards
    length: int  # agent_steps
    env: int  # index of the environment
    episode: int  # index within its environment, or within its evaluation
    success: bool | None = None  # None: the task does not define it
    number: int = 0  # of training episodes: of all so far, from 1
    wall_s: float = 0.0  # seconds of training when it was counted, summed over resumes


@dataclasses.dataclass(frozen=True)
class Note:
    """One line for the human, such as "compiling update ..."."""

    text: str


@dataclasses.dataclass(frozen=True)
class Banner:
    """What the run is and what it will do; shown once, at the start."""

    lines: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Video:
    """A video that was written."""

    step: int  # env_steps
    name: str  # tag, such as "eval_episode/video"
    file: pathlib.Path
    gif: bytes  # the same in small


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint that is on disk, verified by its manifest."""

    folder: pathlib.Path  # checkpoints/<store>/<name> of the run
    entry: Mapping[str, Any]  # its line of checkpoint_log.jsonl


@dataclasses.dataclass(frozen=True)
class Samples:
    """Episodes of one evaluation, with every action and reward, as episodes/ gets them."""

    step: int  # env_steps
    episodes: tuple[Mapping[str, Any], ...]


Event = Row | ScoreRow | Note | Banner | Video | Saved | Samples


class Sink:
    """Where events end. Only the sink thread calls `take`, `tick` and `close`, one at a time.

    A sink may raise and may block: `Sinks` keeps either away from the training and from other sinks.
    """

    name: str = "sink"
    takes: ClassVar[tuple[type, ...]] = ()  # event classes that are delivered to it
    tick_s: float | None = None  # seconds between calls of `tick`; None = never
    slow_s: float | None = None  # of a sink that takes its time: it has its own thread, and so long to close

    def say(self, text: str) -> None:
        """A line for the human; `Sinks` puts in what shows it."""

    def take(self, event: Event) -> None:
        """Writes one event."""
        raise NotImplementedError

    def tick(self) -> None:
        """Called about every `tick_s` seconds."""

    def progress(self, step: int, steps: int, extra: Mapping[str, float | str]) -> None:
        """Called by the training thread, often: may only store what it is given."""

    def close(self) -> None:
        """Writes what is left and lets go of the files."""
