"""EnvPool: a synchronous pool behind the turns and checks of CheckedEnv.

Imported lazily by `envs.make`, because importing envpool takes seconds.

Findings about envpool 1.2.5 that the adapters rest on (each held by a test):
  * With batch_size == num_envs, rows come in the order of the env ids that were sent.
  * Every received batch has buffers of its own; they are never written again.
  * `_send` keeps a reference to the action array and its threads read it later: writing to it after
    the send changes the step. So the pool is only given copies.
  * Reset is "next step": the step after `done` ignores the action and returns the first observation
    of the next episode with reward 0.
  * Env i is seeded with `seed + i`; per-env seeds (`env_seed`) are given instead, see base.env_seeds.
"""

import envpool
import numpy as np

from jaxrl.envs import egl
from jaxrl.envs.base import CheckedEnv, Seed, env_seeds
from jaxrl.types import Spaces

egl.claim()


def open_pool(
    task_id: str, *, num_envs: int, seed: Seed, threads: int, options: dict[str, int | float | bool]
):
    """An EnvPool with its common options set; `options` are those of its suite.

    Synchronous (batch_size = num_envs). `threads=0` lets EnvPool take min(num_envs, cores). Threads are
    not pinned to cores: pinned ones of two runs on one host would share the same cores.
    """
    return envpool.make(
        task_id,
        env_type="gymnasium",
        num_envs=num_envs,
        batch_size=num_envs,
        num_threads=threads,
        max_num_players=1,
        thread_affinity_offset=-1,
        seed=0,  # unused, env_seed goes first
        env_seed=env_seeds(seed, num_envs).tolist(),
        gym_reset_return_info=True,
        **options,
    )


class PoolEnv(CheckedEnv):
    """Moves rows between numpy and the pool; subclasses say what the received arrays mean.

    It calls the pool's own `_send`, `_recv` and `_reset` (the functions that the public methods wrap),
    which saves the building of nested dicts, some 10 us a step.
    """

    def __init__(self, pool, spaces: Spaces, *, num_envs: int, action_repeat: int):
        super().__init__(spaces, num_envs=num_envs, action_repeat=action_repeat)
        self._pool = pool
        self._ids = np.arange(num_envs, dtype=np.int32)
        self._at = {name: i for i, name in enumerate(pool._state_keys)}  # position in what `_recv` returns

    def _request_reset(self) -> None:
        self._pool._reset(self._ids)

    def _launch(self, action: np.ndarray) -> None:
        self._pool._send([self._ids, self._ids, action])

    def _stop(self) -> None:
        del self._pool  # its destructor joins the threads
