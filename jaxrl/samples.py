"""Episodes of evaluations with every action and reward: few, small, to be read one by one."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrl.envs.base import CheckedEnv
from jaxrl.tracker import Finished
from jaxrl.types import Step


@dataclasses.dataclass
class Track:
    """The game that one environment plays now."""

    episode: int  # index within the environment
    is_wanted: bool
    is_over: bool = False
    actions: list[Any] = dataclasses.field(default_factory=list)
    rewards: list[float] = dataclasses.field(default_factory=list)


class Sampler:
    """A watcher of `evaluation.play`: keeps the first episodes, in the order of (episode, environment).

    Args:
      count: episodes that are kept.
      n: environments.
    """

    def __init__(self, count: int, n: int):
        self._count = count
        self._tracks = [Track(-1, False, is_over=True) for _ in range(n)]
        self._kept: dict[int, dict[str, Any]] = {}  # by place in that order

    def row(self, env: CheckedEnv, step: Step, found: Sequence[Finished]) -> None:
        del step
        reward, is_over = env.outcome.reward, env.outcome.is_over
        for n, track in enumerate(self._tracks):
            if track.is_over:  # this row begins the next game
                self._tracks[n] = track = self._next(n, track.episode + 1)
            elif track.is_wanted:
                track.rewards.append(float(reward[n]))
            track.is_over = bool(is_over[n])
            if track.is_over and track.is_wanted:
                self._keep(track, next((x for x in reversed(found) if x.env == n), None))

    def acts(self, action: np.ndarray) -> None:
        for track, chosen in zip(self._tracks, action, strict=True):
            if track.is_wanted and not track.is_over:
                track.actions.append(chosen.tolist())

    @property
    def episodes(self) -> tuple[dict[str, Any], ...]:
        """The kept ones: env, episode, score, length, success where defined, actions, rewards.

        `rewards[i]` came of `actions[i]`; both are as long as the episode.
        """
        return tuple(self._kept[place] for place in sorted(self._kept))

    def _next(self, n: int, episode: int) -> Track:
        return Track(episode, episode * len(self._tracks) + n < self._count)

    def _keep(self, track: Track, game: Finished | None) -> None:
        if game is not None and game.episode == track.episode:  # not one beyond the environment's share
            facts = {k: v for k, v in dataclasses.asdict(game).items() if v is not None}
            place = game.episode * len(self._tracks) + game.env
            self._kept[place] = facts | {"actions": track.actions, "rewards": track.rewards}
