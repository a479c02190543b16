"""Films an evaluation's environment 0 and what a world model imagines; writes the videos.

At once, or, for a run, in a thread beside it.
"""

import contextlib
import dataclasses
import math
import pathlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxrl import dreams, videos
from jaxrl.config import Config, ConfigError
from jaxrl.envs import judged
from jaxrl.envs.base import CheckedEnv
from jaxrl.envs.film import Reel, reel_of
from jaxrl.keys import EVAL, env_seed
from jaxrl.sinks import Video
from jaxrl.tracker import Finished
from jaxrl.types import OpenLoop, Step

MOST = 1_000  # frames of a video
FASTEST = 30  # frames per second; of faster steps some are left out
UNKNOWN = 0.1  # seconds of a step of which the task does not say how long it is
HOLD_S = 0.7  # for which the last frame of an episode stays


@dataclasses.dataclass(frozen=True)
class Caption:
    """What is told of a row."""

    episode: int
    step: int  # agent_steps since its start
    score: float
    is_over: bool
    success: bool | None  # of an episode that is over

    def text(self, speed: int) -> str:
        parts = [f"episode {self.episode + 1}", f"step {self.step}", f"return {self.score:.2f}"]
        if self.is_over:
            parts.append({None: "end", True: "SUCCESS", False: "no success"}[self.success])
        return "   ".join([*parts, *([f"{speed}x speed"] if speed > 1 else [])])


class Film:
    """A watcher of `evaluation.play`: keeps what the video of the first episodes of environment 0 needs."""

    def __init__(self, reel: Reel, episodes: int = 1):
        self._reel, self._left = reel, episodes
        self._seconds = reel.seconds or UNKNOWN
        self._every = max(1, math.ceil(1 / self._seconds / FASTEST))  # rows of a frame, at true speed
        self._stride = self._every
        self._rows = self._step = self._episode = 0
        self._score = 0.0
        self._shots: list[tuple[int, Any, Caption]] = []

    def row(self, env: CheckedEnv, step: Step, found: Sequence[Finished]) -> None:
        del found
        if not self._left:
            return
        outcome = env.outcome
        is_over, success = bool(outcome.is_over[0]), outcome.success
        self._score += float(outcome.reward[0])
        caption = Caption(
            episode=self._episode,
            step=self._step,
            score=self._score,
            is_over=is_over,
            success=None if success is None else bool(success[0]),
        )
        shot = self._reel.take(env, step)
        if self._rows % self._stride == 0 or is_over:
            self._shots.append((self._rows, shot, caption))
        if len(self._shots) > MOST:
            self._stride *= 2
            self._shots = [x for x in self._shots if x[0] % self._stride == 0 or x[2].is_over]
        self._rows += 1
        self._step += 1
        if is_over:
            self._left -= 1
            self._episode, self._step, self._score = self._episode + 1, 0, 0.0

    def acts(self, action: np.ndarray) -> None:
        if self._left:
            self._reel.acts(action)

    @property
    def rate(self) -> float:
        """Frames per second."""
        return 1 / (self._seconds * self._every)

    def develop(self, path: pathlib.Path, small: videos.Thumbnail | None = None) -> tuple[pathlib.Path, str]:
        """Draws and writes the video; the file, and a line about it.

        Args:
          path: without suffix.
          small: sees the frames, too.

        Raises:
          OSError: the disk.
        """
        speed = self._stride // self._every
        frames = self._frames(speed, self.rate)
        written, why = videos.write(path, small.watching(frames) if small else frames, self.rate)
        remarks = [why, self._reel.remark] + ([f"{speed} times as fast as it was"] if speed > 1 else [])
        if self._reel.seconds is None:
            remarks.append(f"{1 / UNKNOWN:g} steps a second: the task does not say how long one is")
        told = "; ".join(x for x in remarks if x)
        return written, f"video {written}" + (f" ({told})" if told else "")

    def _frames(self, speed: int, rate: float) -> Iterator[np.ndarray]:
        pictures = self._reel.draw([shot for _, shot, _ in self._shots])
        for shown, (_, _, caption) in zip(pictures, self._shots, strict=True):
            frame = videos.sheet(shown, caption.text(speed))
            yield from [frame] * (1 + round(HOLD_S * rate) * caption.is_over)

    def close(self) -> None:
        self._reel.close()


class Guarded:
    """A film that never fails who is filmed: if it breaks there is none, and a line that says so."""

    def __init__(self, film: Film, say: Callable[[str], None]):
        self.film: Film | None = film
        self._say = say

    def row(self, env: CheckedEnv, step: Step, found: Sequence[Finished]) -> None:
        self._guard(lambda film: film.row(env, step, found))

    def acts(self, action: np.ndarray) -> None:
        self._guard(lambda film: film.acts(action))

    def _guard(self, use: Callable[[Film], None]) -> None:
        if self.film is not None:
            try:
                use(self.film)
            except Exception as error:  # whatever it is, the run goes on
                self._say(f"no video: {in_a_line(error)}")
                self.film = None


@dataclasses.dataclass(frozen=True)
class Imagination:
    """What a world model imagines, still on the device."""

    pictures: OpenLoop
    is_first: jax.Array  # [T, B] bool
    channels: int  # of a frame

    def fetched(self, step: int) -> list[dreams.Dream]:
        """By image key, on the host. Waits for the device, and raises what went wrong there."""
        pictures, is_first = jax.device_get((self.pictures, self.is_first))
        return [
            dreams.Dream(
                name=name,
                step=step,
                truth=truth,
                model=pictures.model[name],
                is_first=is_first,
                observed=pictures.observed,
                channels=self.channels,
            )
            for name, truth in pictures.truth.items()
        ]


@dataclasses.dataclass(frozen=True)
class Job:
    """What there is to write of one step."""

    step: int  # env_steps
    films: tuple[Film, ...]
    imagination: Imagination | None


class Projector:
    """The videos of a run: written in a thread, one at a time. What goes wrong is said in a line.

    Args:
      folder: gets <step>.mp4, .webp or .gif, and <step>-openloop of what a world model imagines, of several
        images <step>-openloop-<key>.
      say: takes a line, from any thread.
      post: takes each video that was written, from any thread.
    """

    def __init__(
        self, folder: pathlib.Path, say: Callable[[str], None], post: Callable[[Video], None] | None = None
    ):
        self._folder, self._say, self._post = folder, say, post
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._hopeless = False  # there is nothing to be seen of the task
        self._left_out = 0  # steps without a video
        self._remarks: set[str] = set()  # those that were made
        self._thread: threading.Thread | None = None

    def is_free(self, env_steps: int) -> bool:
        """Whether there is time for the videos of this step. If not, a line says so, the first time."""
        if not self._jobs.qsize():  # beside the one that is being written, if any
            return True
        if not self._left_out:
            self._say(f"no video at step {env_steps:,}: two are not written yet; raise --video_every")
        self._left_out += 1
        return False

    def begin(self, config: Config, env_steps: int) -> list[Guarded]:
        """Who is to watch the evaluation at this step: one film, or nobody if there can be none."""
        if self._hopeless:
            return []
        try:
            reel = reel_of(config.task, judged(config.env), env_seed(config.seed, EVAL, env_steps))
        except Exception as error:  # whatever it is, the run goes on
            self._hopeless = isinstance(error, ConfigError)
            self._say(f"no video: {error if self._hopeless else in_a_line(error)}")
            return []
        return [Guarded(Film(reel), self._say)]

    def imagine(
        self, config: Config, look: Callable[[], tuple[OpenLoop, jax.Array]], env_steps: int
    ) -> Imagination | None:
        """Calls what begins to look at the world model, and waits for nothing; None if that fails."""
        try:
            return Imagination(*look(), channels=1 if config.env.gray else 3)
        except Exception as error:  # whatever it is, the run goes on
            self._say(f"no open-loop video at step {env_steps:,}: {in_a_line(error)}")
            return None

    def show(self, films: Sequence[Guarded], imagination: Imagination | None, env_steps: int) -> None:
        """Begins to write what was filmed, and what was imagined."""
        whole = tuple(x.film for x in films if x.film is not None)
        if not whole and imagination is None:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="projector", daemon=True)
            self._thread.start()
        self._jobs.put(Job(env_steps, whole, imagination))

    def close(self, seconds: float = 60.0) -> None:
        """Waits for the last video, at most so long."""
        if self._left_out > 1:
            self._say(f"videos of {self._left_out:,} steps were left out")
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(seconds)
            if self._thread.is_alive():
                self._say(f"the last video was given up: it was not written within {seconds:g} s")
            self._thread = None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._develop(job)
            del job  # and with it what it holds, on the device, too

    def _develop(self, job: Job) -> None:
        for film in job.films:
            path = self._folder / str(job.step)
            with self._told(path), contextlib.closing(film):
                self._film(film, path, job.step)
        if job.imagination:
            path = self._folder / f"{job.step}-openloop"
            with self._told(path):
                self._dreams(job.imagination.fetched(job.step), path)

    @contextlib.contextmanager
    def _told(self, path: pathlib.Path) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, the run goes on
            self._say(f"no video {path}: {in_a_line(error)}")

    def _film(self, film: Film, path: pathlib.Path, step: int) -> None:
        small = videos.Thumbnail() if self._post else None
        written, line = film.develop(path, small)
        told, _, remark = line.partition(" (")
        self._say(told if remark in self._remarks else line)
        self._remarks.add(remark)
        if self._post and small:
            self._post(Video(step, "eval_episode/video", written, small.gif(film.rate)))

    def _dreams(self, found: Sequence[dreams.Dream], path: pathlib.Path) -> None:
        for dream in found:
            name = f"{path.name}-{dream.name.replace('/', '-')}" if len(found) > 1 else path.name
            written, _ = videos.write(path.with_name(name), dreams.frames(dream), dreams.RATE)
            self._say(f"video {written} (open loop, {dream.observed} of {len(dream.truth)} rows observed)")
            if self._post:
                small = videos.Thumbnail()
                for frame in dreams.frames(dream, dreams.SMALL):
                    small.add(frame)
                self._post(Video(dream.step, f"openloop/{dream.name}", written, small.gif(dreams.RATE)))


def in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
