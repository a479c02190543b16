"""Small device environments for tests and first experiments. Pure JAX, one environment, no batch axis.

`Clock` shows its own step count, so that a test of stored rows can tell which row it sees. `Reach` is
the smallest continuous-control task with a right answer.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl.envs.base import Plain, State
from jaxrl.types import ArraySpec, Continuous, Discrete, Key, Spaces


@struct.dataclass(kw_only=True)
class ClockState:
    count: jax.Array  # [] i32, steps since the reset
    length: jax.Array  # [] i32, count at which the episode ends
    terminates: jax.Array  # [] bool, whether it ends in a terminal state or is truncated
    tag: jax.Array  # [] i32 in [0, 256), drawn per episode


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clock(Plain):
    """An observation that is its own clock. Three actions, all without effect.

    obs: {"count": f32 [1], "image": u8 [size, size, channels]}. The picture is one colour: red is
    count % 256, green count // 256, blue the tag of the episode; a grey one is count % 256.
    Reward: `clock_reward(count)`. Row t of an episode has count t; it ends at a count drawn from
    [min_length, max_length], in a terminal state with probability `terminal_share`, else truncated.
    """

    min_length: int = 10
    max_length: int = 20
    terminal_share: float = 0.5
    size: int = 16
    gray: bool = False

    @property
    def spaces(self) -> Spaces:
        image = ArraySpec((self.size, self.size, 1 if self.gray else 3), np.dtype(np.uint8))
        count = ArraySpec((1,), np.dtype(np.float32))
        return Spaces(obs={"count": count, "image": image}, action=Discrete(3))

    def reset(self, key: Key) -> State:
        key_length, key_end, key_tag = jax.random.split(key, 3)
        state = ClockState(
            count=jnp.int32(0),
            length=jax.random.randint(key_length, (), self.min_length, self.max_length + 1),
            terminates=jax.random.uniform(key_end) < self.terminal_share,
            tag=jax.random.randint(key_tag, (), 0, 256),
        )
        return self._show(state, jnp.float32(0))

    def step(self, state: State, action: jax.Array) -> State:
        del action
        clock = state.data.replace(count=state.data.count + 1)
        return self._show(clock, clock_reward(clock.count))

    def _show(self, clock: ClockState, reward: jax.Array) -> State:
        done = clock.count >= clock.length
        return State(
            data=clock,
            obs={"count": clock.count[None].astype(jnp.float32)},
            reward=reward,
            done=done.astype(jnp.float32),
            metrics={},
            info={"truncation": (done & ~clock.terminates).astype(jnp.float32)},
        )

    def pictures(self, state: State) -> dict[str, jax.Array]:
        clock = state.data
        red = clock.count % 256
        colour = red[None] if self.gray else jnp.stack([red, clock.count // 256, clock.tag])
        return {"image": jnp.broadcast_to(colour.astype(jnp.uint8), (self.size, self.size, colour.size))}


def clock_reward(count: jax.Array) -> jax.Array:
    """Reward that arrives with a count >= 1: count % 5 - 2, so -2 to 2. f32, the shape of `count`."""
    return (count % 5 - 2).astype(jnp.float32)


@struct.dataclass(kw_only=True)
class ReachState:
    position: jax.Array  # [2] f32 in [-1, 1]
    velocity: jax.Array  # [2] f32, length units per step
    goal: jax.Array  # [2] f32 in [-0.8, 0.8]
    count: jax.Array  # [] i32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reach(Plain):
    """A point with mass and friction in a box, pushed to a goal that it sees.

        v' = 0.5 v + 0.1 a,   x' = clip(x + v', -1, 1),   reward = exp(-|x' - goal| / 0.2)

    obs: {"vector": f32 [6]}: position, velocity * 5 (so that all are in [-1, 1]), goal. Action: force a
    in [-1, 1]^2. Every episode is truncated after `length` steps; it never terminates, so a value
    must bootstrap there. Random actions score about 2 of 50, a proportional controller about 47.
    """

    length: int = 50

    @property
    def spaces(self) -> Spaces:
        return Spaces(obs={"vector": ArraySpec((6,), np.dtype(np.float32))}, action=Continuous(2))

    def reset(self, key: Key) -> State:
        key_position, key_goal = jax.random.split(key)
        state = ReachState(
            position=jax.random.uniform(key_position, (2,), jnp.float32, -0.8, 0.8),
            velocity=jnp.zeros(2, jnp.float32),
            goal=jax.random.uniform(key_goal, (2,), jnp.float32, -0.8, 0.8),
            count=jnp.int32(0),
        )
        return self._show(state, jnp.float32(0))

    def step(self, state: State, action: jax.Array) -> State:
        body = state.data
        velocity = 0.5 * body.velocity + 0.1 * action
        position = jnp.clip(body.position + velocity, -1, 1)
        body = body.replace(position=position, velocity=velocity, count=body.count + 1)
        return self._show(body, jnp.exp(-jnp.linalg.norm(position - body.goal) / 0.2))

    def _show(self, body: ReachState, reward: jax.Array) -> State:
        done = (body.count >= self.length).astype(jnp.float32)
        return State(
            data=body,
            obs={"vector": jnp.concatenate([body.position, body.velocity * 5, body.goal])},
            reward=reward,
            done=done,
            metrics={},
            info={"truncation": done},
        )
