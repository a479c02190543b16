"""N device environments as pure functions: physics, action repeat, time limit, resets, then pictures.

The whole state is one pytree of arrays. Environment i of a seed lives the same life whatever N is; its k-th
episode starts from a key of (seed, i, k).
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.envs.base import DeviceEnv, State
from jaxrl.layout import Layout
from jaxrl.types import Key, Step

FRAMES = 256  # environments whose pictures are drawn at once; a ray caster needs some 1.5 MB for each


@struct.dataclass(kw_only=True)
class EnvCarry:
    """State of N environments."""

    state: State  # leaves [N, ...]
    seed: jax.Array  # [N] u32, constant; with `episode` it gives the key of a reset
    episode: jax.Array  # [N] u32, episodes begun, less one
    elapsed: jax.Array  # [N] i32, env_steps of this episode
    is_last: jax.Array  # [N] bool, of the newest row: the next row is a reset
    bad: jax.Array  # [N] i32, episodes given up since their state was not finite


@struct.dataclass(kw_only=True)
class Told:
    """What the host is told of rows that stay on the device; leaves [N], or [M, N] of M rows."""

    reward: jax.Array  # f32
    flags: jax.Array  # u8: 1 is_first, 2 is_last, 4 success


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batched:
    """A device environment with the rules of its rows; hashable, and equal ones share what is compiled.

    The row after an `is_last` row ignores its action and is a reset. A state that is not finite does not
    reach anybody: the episode is cut at the row before, as a time limit would, and counted.
    """

    env: DeviceEnv
    action_repeat: int = 1  # steps for which an action is held; rewards are summed, an end cuts it short
    time_limit: int = 0  # env_steps after which an episode is cut, last but not terminal; 0 = none

    @property
    def defines_success(self) -> bool:
        return _defines_success(self.env)

    def on(self, layout: Layout, n: int) -> "Batched | Spread":
        """The same for n of them on these devices."""
        return Spread(self, layout) if layout.divides(n) else self

    def begin(self, seed: jax.Array) -> tuple[EnvCarry, Step]:
        """First rows of N environments, without pictures. seed: [N] u32."""
        episode = jnp.zeros_like(seed)
        state = strong(jax.vmap(self.env.reset)(jax.vmap(_reset_key)(seed, episode)))
        no, zero = jnp.zeros(seed.shape, bool), jnp.zeros(seed.shape, jnp.int32)
        carry = EnvCarry(state=state, seed=seed, episode=episode, elapsed=zero, is_last=no, bad=zero)
        reward = jnp.zeros(seed.shape, jnp.float32)
        return carry, Step(obs=state.obs, reward=reward, is_first=~no, is_last=no, is_terminal=no)

    def advance(self, carry: EnvCarry, action: jax.Array) -> tuple[EnvCarry, Step]:
        """The next rows, without pictures: a step, or a reset where the row before was the last."""
        is_first = carry.is_last
        episode = carry.episode + is_first.astype(carry.episode.dtype)
        fresh = jax.lax.cond(  # some simulate hundreds of steps to begin with
            is_first.any(),
            lambda: strong(jax.vmap(self._again)(jax.vmap(_reset_key)(carry.seed, episode), carry.state)),
            lambda: carry.state,
        )
        moved, reward, elapsed, over, is_terminal, bad = jax.vmap(self._held)(
            carry.state, action, carry.elapsed
        )
        state = strong(jax.vmap(_select)(is_first, fresh, moved))
        is_last = over & ~is_first
        carry = EnvCarry(
            state=state,
            seed=carry.seed,
            episode=episode,
            elapsed=jnp.where(is_first, 0, elapsed),
            is_last=is_last,
            bad=carry.bad + (bad & ~is_first),
        )
        return carry, Step(
            obs=state.obs,
            reward=jnp.where(is_first, 0, reward),
            is_first=is_first,
            is_last=is_last,
            is_terminal=is_terminal & is_last,
        )

    def _again(self, key: Key, ended: State) -> State:
        """The first row of the next episode."""
        reset_after = getattr(self.env, "reset_after", None)  # of those that learn from how the last one went
        return reset_after(key, ended) if reset_after else self.env.reset(key)

    def _held(self, state: State, action: jax.Array, elapsed: jax.Array) -> tuple[Any, ...]:
        """One environment, its action held: state, reward, elapsed, over, terminal, whether it went bad."""

        def one(x: tuple[Any, ...], _: None) -> tuple[tuple[Any, ...], None]:
            state, reward, elapsed, over, is_terminal, bad = x
            moved = self.env.step(state, action)
            broken = ~over & ~_finite((moved.data, moved.obs, moved.reward))
            goes = ~over & ~broken
            state = _select(goes, moved, state)
            reward += jnp.where(goes, moved.reward, 0)
            elapsed += goes
            is_terminal |= goes & (moved.done > 0) & ~(moved.info["truncation"] > 0)
            over |= broken | (goes & (moved.done > 0))
            if self.time_limit:
                over |= elapsed >= self.time_limit
            return (state, reward, elapsed, over, is_terminal, bad | broken), None

        no = jnp.bool_(False)
        begin = state, jnp.float32(0), elapsed, no, no, no
        if self.action_repeat == 1:
            return one(begin, None)[0]
        return jax.lax.scan(one, begin, None, length=self.action_repeat)[0]  # physics compiles for long

    def shown(self, carry: EnvCarry, step: Step) -> Step:
        """The rows with their pictures."""
        draw, n = self.env.pictures, step.reward.shape[0]
        chunk = math.gcd(n, FRAMES)
        drawn = (
            jax.vmap(draw)(carry.state)
            if n <= FRAMES or chunk < 8
            else jax.lax.map(draw, carry.state, batch_size=chunk)
        )
        return step.replace(obs={**step.obs, **drawn})

    def told(self, carry: EnvCarry, step: Step) -> Told:
        """Of the newest rows."""
        success = self.success(carry)
        flags = step.is_first + 2 * step.is_last + (0 if success is None else 4 * success)
        return Told(reward=step.reward, flags=flags.astype(jnp.uint8))

    def success(self, carry: EnvCarry) -> jax.Array | None:
        """[N] bool, of the newest row; None where the task does not define it."""
        success = carry.state.info.get("success")
        return None if success is None else success > 0


@dataclasses.dataclass(frozen=True)
class Spread:
    """The functions of Batched, where the environments are divided over devices: each steps its own."""

    batched: Batched
    layout: Layout

    def begin(self, seed: jax.Array) -> tuple[EnvCarry, Step]:
        return self.layout.spread(self.batched.begin, (0,), 0)(seed)

    def advance(self, carry: EnvCarry, action: jax.Array) -> tuple[EnvCarry, Step]:
        return self.layout.spread(self.batched.advance, (0, 0), 0)(carry, action)

    def shown(self, carry: EnvCarry, step: Step) -> Step:
        return self.layout.spread(self.batched.shown, (0, 0), 0)(carry, step)

    def told(self, carry: EnvCarry, step: Step) -> Told:
        return self.layout.spread(self.batched.told, (0, 0), 0)(carry, step)


@functools.cache
def _defines_success(env: DeviceEnv) -> bool:
    return "success" in jax.eval_shape(env.reset, jax.eval_shape(jax.random.key, 0)).info


def _reset_key(seed: jax.Array, episode: jax.Array) -> Key:
    return jax.random.fold_in(jax.random.key(seed), episode)


def _finite(tree: Any) -> jax.Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in floats]).all() if floats else jnp.bool_(True)


def _select(condition: jax.Array, yes: Any, no: Any) -> Any:
    """Leaf by leaf, for one environment; works for typed keys too."""
    return jax.tree.map(lambda a, b: jax.lax.select_n(condition, b, jnp.asarray(a, b.dtype)), yes, no)


def strong(tree: Any) -> Any:
    """Without weak types, which would compile the step a second time."""
    return jax.tree.map(lambda x: x if is_key(x) else jax.lax.convert_element_type(x, x.dtype), tree)


def is_key(x: Any) -> bool:
    """Whether it is an array of typed random keys."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
