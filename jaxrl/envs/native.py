"""Atari in its own colours and 210x160 pixels, for films.

EnvPool gives a game's pictures in one size. So a second console is started with the same seed, gets the same
actions, and plays the same game, frame by frame; should it ever not, the film shows what the policy sees.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxrl.config import EnvConfig
from jaxrl.envs.atari import NOOP, channels_last, pool_options
from jaxrl.envs.base import CheckedEnv
from jaxrl.envs.film import ATARI_HZ, Pictures, coloured
from jaxrl.envs.games import envpool_id
from jaxrl.envs.pool import open_pool
from jaxrl.types import Step

HEIGHT, WIDTH = 210, 160


class Shot(NamedTuple):
    own: np.ndarray  # [HEIGHT, WIDTH, 3] u8
    seen: np.ndarray  # [size, size, stack * c] u8, by the policy


class NativeReel:
    """A console beside environment 0."""

    def __init__(self, game: str, env: EnvConfig, seed: int):
        self.seconds: float | None = env.action_repeat / ATARI_HZ
        self.remark = ""
        self._channels = 1 if env.gray else 3
        self._holds = env.lives == "terminal"
        options = pool_options(env) | {"img_height": HEIGHT, "img_width": WIDTH, "gray_scale": False}
        self._pool = open_pool(envpool_id(game), num_envs=1, seed=seed, threads=1, options=options)
        self._at = {name: i for i, name in enumerate(self._pool._state_keys)}
        self._one = np.zeros(1, np.int32)
        self._is_last = False
        self._pool._reset(self._one)

    def take(self, env: CheckedEnv, step: Step) -> Shot:
        rows, at, outcome = self._pool._recv(), self._at, env.outcome
        same = rows[at["info:reward"]][0] == outcome.reward[0] and rows[at["done"]][0] == outcome.is_over[0]
        if not same:
            self.remark = "the second console has played another game: shown is what the policy sees"
        self._is_last = bool(step.is_last[0])
        # Copied: a view would keep the pictures of all environments.
        return Shot(channels_last(rows[at["obs"]])[0].copy(), step.obs["image"][0].copy())

    def acts(self, action: np.ndarray) -> None:
        own = np.array(action[:1], np.int32)
        if self._holds and self._is_last:
            own[0] = NOOP  # as the adapter does after a lost life
        self._pool._send([self._one, self._one, own])

    def draw(self, shots: Sequence[Shot]) -> Iterator[Pictures]:
        if self.remark:
            return ({"image": coloured(x.seen, self._channels)} for x in shots)
        return ({"": x.own} for x in shots)

    def close(self) -> None:
        del self._pool
