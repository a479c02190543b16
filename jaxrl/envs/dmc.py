"""The DeepMind Control Suite through EnvPool, from pixels or from the state.

An episode has 1000 control steps (env_steps) whose rewards are in [0, 1]; its end is a time limit, not a
terminal state. Actions are rescaled to [-1, 1].

An action is held for `action_repeat` control steps and their rewards are summed. EnvPool cannot do that:
its `frame_skip` counts physics steps (walker: 10 are one control step), and the reward is that of the last
state alone. So the control steps are taken one by one in a pool without pictures. A picture costs 12 to 40
ms on a CPU and a control step 0.05 to 5, so the pictures come from a second pool with the same seeds,
which takes the repeated steps as one long one and draws only its end. Both are the same simulation, bit by
bit; rows where they differ are an error.

Findings about envpool 1.2.5, each held by a test:
  * The row of a reset repeats the last reward of the episode before.
  * A step of some of the environments gives rows of these only, in the order of the ids.
"""

from typing import Any

import envpool
import numpy as np

from jaxrl.config import ConfigError, EnvConfig
from jaxrl.envs.atari import channels_last
from jaxrl.envs.base import Outcome, Seed
from jaxrl.envs.egl import load_egl
from jaxrl.envs.names import dmc_tasks
from jaxrl.envs.pool import PoolEnv, open_pool
from jaxrl.types import ArraySpec, Continuous, Spaces, Step

LENGTH = 1_000  # control steps of an episode, in all tasks
CAMERAS = {"quadruped": 2}  # by domain; 0 in all others: as DrQ-v2


class DmcEnv(PoolEnv):
    """N copies of one task. obs: {"image": u8 [N, size, size, 3]} or {"state": f32 [N, d]}.

    The state is the task's own observation, its parts one after another.
    """

    def __init__(self, task: str, env: EnvConfig, *, num_envs: int, seed: Seed):
        """Args: task: key of `dmc_tasks()`; the others as `envs.make`."""
        limit = _limit(env)
        task_id = dmc_tasks()[task]
        spec = envpool.make_spec(task_id)
        low, high = _bounds(spec.action_array_spec["action"])
        has_pictures = env.observe == "pixels"
        if has_pictures:
            load_egl()

        def pool(**options: Any):
            return open_pool(task_id, num_envs=num_envs, seed=seed, threads=env.threads, options=options)

        steps = pool(max_episode_steps=limit)
        parts = [key for key in steps._state_keys if key.startswith("obs:")]
        self._width = sum(int(np.prod(spec.state_array_spec[key].shape)) for key in parts)
        obs = {"state": ArraySpec((self._width,), np.dtype(np.float32))}
        if has_pictures:
            obs = {"image": ArraySpec((env.size, env.size, 3), np.dtype(np.uint8))}
        spaces = Spaces(obs=obs, action=Continuous(len(low)))
        super().__init__(steps, spaces, num_envs=num_envs, action_repeat=env.action_repeat)
        self._parts, self._low, self._high = parts, low, high
        self._action = np.zeros((num_envs, len(low)))
        self._is_last = np.zeros(num_envs, bool)
        self._pictures: Any = None
        if has_pictures:
            self._pictures = pool(
                from_pixels=True,
                frame_skip=spec.config.frame_skip * env.action_repeat,
                max_episode_steps=limit // env.action_repeat,
                render_width=env.size,
                render_height=env.size,
                render_camera_id=CAMERAS.get(task.partition("_")[0], 0),
            )
            self._seen = {name: i for i, name in enumerate(self._pictures._state_keys)}

    def _start(self) -> Step:
        self._request_reset()
        if self._pictures is not None:
            self._pictures._reset(self._ids)
        self._is_last = np.ones(self.num_envs, bool)
        return self._collect()

    def _launch(self, action: np.ndarray) -> None:
        # EnvPool's threads read this array until the row is received; the next one is another.
        self._action = self._low + (action.astype(np.float64) + 1) / 2 * (self._high - self._low)
        if self._pictures is not None:
            self._pictures._send([self._ids, self._ids, self._action])
        super()._launch(self._action)

    def _collect(self) -> Step:
        is_first, n = self._is_last, self.num_envs
        reward, newest = np.zeros(n, np.float32), np.zeros(n, np.float32)
        is_last, is_terminal = np.zeros(n, bool), np.zeros(n, bool)
        vectors = np.empty((n, self._width), np.float32)
        ids, at = self._ids, self._at
        for left in reversed(range(self.action_repeat)):
            rows = self._pool._recv()
            newest[ids] = np.where(is_first[ids], 0, rows[at["reward"]])  # of a reset: see above
            reward[ids] += newest[ids]
            is_last[ids] = rows[at["done"]]
            is_terminal[ids] = rows[at["done"]] & (rows[at["discount"]] == 0)
            parts = [rows[at[key]].reshape(len(ids), -1) for key in self._parts]
            vectors[ids] = np.concatenate(parts, axis=1)
            ids = self._ids[~is_first & ~is_last]
            if not left or not len(ids):
                break
            self._pool._send([ids, ids, self._action[ids]])
        obs = {"state": vectors}
        if self._pictures is not None:
            obs = {"image": self._images(newest, is_first, is_last)}
        self._is_last = is_last.copy()
        self._outcome = Outcome(reward, is_last)
        return Step(obs=obs, reward=reward, is_first=is_first, is_last=is_last, is_terminal=is_terminal)

    def _images(self, reward: np.ndarray, is_first: np.ndarray, is_last: np.ndarray) -> np.ndarray:
        """[N, h, w, 3] u8. Arguments: [N], of the last control step, which the pictures must show."""
        rows, at = self._pictures._recv(), self._seen
        same = np.array_equal(np.where(is_first, 0, rows[at["reward"]]), reward, equal_nan=True)
        if not same or not np.array_equal(rows[at["done"]], is_last):
            raise RuntimeError("EnvPool's pictures and its rewards are of different states")
        return channels_last(rows[at["obs:pixels"]])

    def _stop(self) -> None:
        super()._stop()
        del self._pictures


def _limit(env: EnvConfig) -> int:
    """env_steps of an episode."""
    limit = min(env.time_limit or LENGTH, LENGTH)
    if limit % env.action_repeat:
        raise ConfigError(
            f"env.action_repeat={env.action_repeat}: must divide the {limit} env_steps of an episode of dmc "
            "tasks; for example --env.action_repeat=2"
        )
    return limit


def _bounds(spec: Any) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest action, [A] f64."""
    size = spec.shape[-1]
    low, high = (np.broadcast_to(np.asarray(x, np.float64), (size,)) for x in (spec.minimum, spec.maximum))
    return low, high
