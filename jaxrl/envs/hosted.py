"""A device environment as a HostEnv: one compiled step of N environments, reset automatically.

The whole state is one pytree of arrays, so that `snapshot` and `restore` continue exactly, bit for bit.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl.envs.base import CheckedEnv, DeviceEnv, Outcome, State, env_seeds
from jaxrl.types import Key, Step


@struct.dataclass(kw_only=True)
class HostedCarry:
    """State of N environments."""

    state: State  # leaves [N, ...]
    seed: jax.Array  # [N] u32, constant; with `episode` it gives the key of a reset
    episode: jax.Array  # [N] u32, episodes begun, less one
    elapsed: jax.Array  # [N] i32, env_steps of this episode
    is_last: jax.Array  # [N] bool, of the newest row: the next row is a reset


class Hosted(CheckedEnv):
    """N copies of one device environment on one device, by default the CPU.

    Environment i of seed s lives the same life whatever N is; its k-th episode starts from a key of
    (s, i, k). Transfers are explicit, so it works under `jax.transfer_guard("disallow")`.

    Args:
      env: hashable; equal environments share the compiled step.
      action_repeat: steps for which an action is held; rewards are summed, an end cuts it short.
      time_limit: env_steps after which an episode is cut, last but not terminal; 0 = none.
    """

    def __init__(
        self,
        env: DeviceEnv,
        *,
        num_envs: int,
        seed: int,
        action_repeat: int = 1,
        time_limit: int = 0,
        device: jax.Device | None = None,  # pyright: ignore[reportInvalidTypeForm]
    ):
        super().__init__(env.spaces, num_envs=num_envs, action_repeat=action_repeat)
        self._env = env
        self._time_limit = time_limit
        self._device = device or jax.local_devices(backend="cpu")[0]
        self._seeds = env_seeds(seed, num_envs)
        self._carry: HostedCarry | None = None
        self._step: Step | None = None  # of the newest row, on the device

    def _start(self) -> Step:
        self._carry, self._step = _begin(self._env, self._put(self._seeds))
        return self._fetch()

    def _launch(self, action: np.ndarray) -> None:
        self._carry, self._step = _advance(
            self._env, self.action_repeat, self._time_limit, self._carry, self._put(action)
        )

    def _collect(self) -> Step:
        return self._fetch()

    def _stop(self) -> None:
        self._carry = self._step = None

    def snapshot(self) -> Any:
        """Pytree of numpy arrays; take it between `recv` and `send`."""
        self._check_open()
        if self._pending or self._carry is None:
            raise RuntimeError("snapshot() needs a received row: call it after reset() or recv()")
        return jax.device_get(_keys_to_numbers((self._carry, self._step)))

    def restore(self, snapshot: Any) -> Step:
        """Continues from `snapshot`; returns its newest row again.

        Raises:
          ValueError: the snapshot is not of this environment and number of environments.
        """
        self._check_open()
        if self._pending:
            self.recv()
        expected = jax.eval_shape(functools.partial(_begin, self._env), self._seeds)
        numbers = jax.eval_shape(_keys_to_numbers, expected)
        if _shapes(snapshot) != _shapes(numbers):
            raise ValueError("snapshot of another environment, number of environments or version")
        restored = _numbers_to_keys(self._put(snapshot), expected)
        self._carry, self._step = restored
        return self._fetch()

    def _put(self, tree: Any) -> Any:
        return jax.device_put(tree, self._device)

    def _fetch(self) -> Step:
        step = jax.device_get(self._step)
        self._outcome = Outcome(step.reward, step.is_last)
        return step


@functools.partial(jax.jit, static_argnums=0)
def _begin(env: DeviceEnv, seed: jax.Array) -> tuple[HostedCarry, Step]:
    """First rows of N environments. seed: [N] u32."""
    episode = jnp.zeros_like(seed)
    state = _strong(jax.vmap(env.reset)(jax.vmap(_reset_key)(seed, episode)))
    no = jnp.zeros(seed.shape, bool)
    elapsed = jnp.zeros(seed.shape, jnp.int32)
    carry = HostedCarry(state=state, seed=seed, episode=episode, elapsed=elapsed, is_last=no)
    reward = jnp.zeros(seed.shape, jnp.float32)
    return carry, Step(obs=state.obs, reward=reward, is_first=~no, is_last=no, is_terminal=no)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _advance(
    env: DeviceEnv, action_repeat: int, time_limit: int, carry: HostedCarry, action: jax.Array
) -> tuple[HostedCarry, Step]:
    """The next row of N environments: a step, or a reset where the row before was the last."""
    is_first = carry.is_last
    episode = carry.episode + is_first.astype(carry.episode.dtype)
    fresh = jax.vmap(env.reset)(jax.vmap(_reset_key)(carry.seed, episode))

    def one(state, action, elapsed):
        reward, over = jnp.float32(0), jnp.bool_(False)
        for _ in range(action_repeat):  # few; unrolled
            moved = env.step(state, action)
            state = _select(over, state, moved)
            reward += jnp.where(over, 0, moved.reward)
            elapsed += jnp.where(over, 0, 1)
            over |= state.done > 0
            if time_limit:
                over |= elapsed >= time_limit
        is_terminal = (state.done > 0) & ~(state.info["truncation"] > 0)
        return state, reward, elapsed, over, is_terminal

    moved, reward, elapsed, over, is_terminal = jax.vmap(one)(carry.state, action, carry.elapsed)
    state = _strong(jax.vmap(_select)(is_first, fresh, moved))
    reward = jnp.where(is_first, 0, reward)
    is_last = over & ~is_first
    carry = HostedCarry(
        state=state,
        seed=carry.seed,
        episode=episode,
        elapsed=jnp.where(is_first, 0, elapsed),
        is_last=is_last,
    )
    is_terminal &= is_last
    return carry, Step(
        obs=state.obs, reward=reward, is_first=is_first, is_last=is_last, is_terminal=is_terminal
    )


def _reset_key(seed: jax.Array, episode: jax.Array) -> Key:
    return jax.random.fold_in(jax.random.key(seed), episode)


def _select(condition: jax.Array, yes: Any, no: Any) -> Any:
    """Leaf by leaf, for one environment; works for typed keys too."""
    return jax.tree.map(lambda a, b: jax.lax.select_n(condition, b, jnp.asarray(a, b.dtype)), yes, no)


def _strong(tree: Any) -> Any:
    """Without weak types, which would compile the step a second time."""
    return jax.tree.map(lambda x: x if _is_key(x) else jax.lax.convert_element_type(x, x.dtype), tree)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _keys_to_numbers(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def _numbers_to_keys(tree: Any, like: Any) -> Any:
    return jax.tree.map(lambda x, y: jax.random.wrap_key_data(x) if _is_key(y) else x, tree, like)


def _shapes(tree: Any) -> tuple[Any, list[tuple[tuple[int, ...], np.dtype]]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(tuple(x.shape), np.dtype(x.dtype)) for x in leaves]
