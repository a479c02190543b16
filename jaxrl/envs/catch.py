"""EnvPool's Catch (bsuite's): a ball falls through a 10x5 board, a paddle on the last row catches it.

Observation: {"board": f32 [N, 50]}, row by row, 1 where the ball and the paddle are, else 0. Actions:
0 left, 1 stay, 2 right. An episode has 10 rows (9 steps); the reward of the last is 1 if the ball was
caught, else -1, and the last row is terminal. A random policy scores about -0.6, the best one 1.
"""

import numpy as np

from jaxrl.config import ConfigError, EnvConfig
from jaxrl.envs.base import Outcome, Seed
from jaxrl.envs.pool import PoolEnv, open_pool
from jaxrl.types import ArraySpec, Discrete, Spaces, Step

HEIGHT, WIDTH = 10, 5


class CatchEnv(PoolEnv):
    """N boards. Neither repeated actions nor a time limit within an episode are possible in EnvPool's."""

    def __init__(self, env: EnvConfig, *, num_envs: int, seed: Seed):
        if env.action_repeat != 1:
            raise ConfigError(
                f"env.action_repeat={env.action_repeat}: toy_catch needs 1, its episodes last "
                f"{HEIGHT - 1} steps; add --env.action_repeat=1"
            )
        if 0 < env.time_limit < HEIGHT - 1:
            raise ConfigError(
                f"env.time_limit={env.time_limit}: toy_catch needs at least {HEIGHT - 1} env_steps, "
                "or 0 for none; leave --env.time_limit out"
            )
        limit = 2**31 - 1  # none: an episode never lasts so long
        pool = open_pool(
            "Catch-v0",
            num_envs=num_envs,
            seed=seed,
            threads=env.threads,
            options=dict(max_episode_steps=limit, height=HEIGHT, width=WIDTH),
        )
        board = ArraySpec((HEIGHT * WIDTH,), np.dtype(np.float32))
        spaces = Spaces(obs={"board": board}, action=Discrete(3))
        super().__init__(pool, spaces, num_envs=num_envs, action_repeat=1)
        self._is_last = np.zeros(num_envs, bool)

    def _start(self) -> Step:
        self._request_reset()
        self._is_last = np.ones(self.num_envs, bool)
        return self._collect()

    def _collect(self) -> Step:
        rows, at = self._pool._recv(), self._at
        is_first, is_last, reward = self._is_last, rows[at["done"]], rows[at["reward"]]
        self._is_last = is_last.copy()
        self._outcome = Outcome(reward, is_last)
        obs = {"board": rows[at["obs"]].reshape(self.num_envs, -1)}
        return Step(obs=obs, reward=reward, is_first=is_first, is_last=is_last, is_terminal=is_last.copy())
