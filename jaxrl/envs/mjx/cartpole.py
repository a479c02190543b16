"""Cartpole: keep a pole upright on a cart (balance), or bring it there first (swing up)."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxrl.envs.mjx.engine import Physics, Poses
from jaxrl.envs.mjx.rewards import gaussian, quadratic
from jaxrl.envs.mjx.task import Episode, PhysicsTask, Verdict
from jaxrl.types import Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cartpole(PhysicsTask):
    """1000 control steps of 0.01 s; reward in [0, 1], so a score is at most 1000. Never terminates.

    Action [1]: the motor, 10 N at 1. State [5]: cart position, cosine and sine of the pole's angle (0 is
    up), cart velocity, angular velocity. Reward = upright * centred * small control * slow, with

        upright = (1 + cos) / 2,                 centred = (1 + gauss(position; 2)) / 2,
        small   = (4 + quadratic(action; 1)) / 5,    slow = (1 + gauss(angular velocity; 5)) / 2

    where gauss is 0.1 at the margin after the semicolon.
    Source: Tassa et al. 2018, cartpole balance and swingup, dense; Euler's rule instead of Runge-Kutta.
    """

    swingup: bool = False
    asset: ClassVar[str] = "cartpole.xml"
    substeps: ClassVar[int] = 1
    length: ClassVar[int] = 1000
    cameras: ClassVar[tuple[str, ...]] = ("fixed",)

    def start(self, key: Key) -> tuple[Physics, Any]:
        key_position, key_velocity = jax.random.split(key)
        if self.swingup:
            middle = jnp.array([0, jnp.pi], jnp.float32)
            qpos = middle + 0.01 * jax.random.normal(key_position, (2,), jnp.float32)
        else:
            spread = jnp.array([0.1, 0.034], jnp.float32)
            qpos = spread * jax.random.uniform(key_position, (2,), jnp.float32, -1, 1)
        qvel = 0.01 * jax.random.normal(key_velocity, (2,), jnp.float32)
        return self.engine.at_rest(qpos, qvel), None

    def drive(self, episode: Episode, action: jax.Array) -> tuple[jax.Array, Any]:
        return action, episode.memo

    def judge(self, episode: Episode, poses: Poses, action: jax.Array) -> Verdict:
        del poses
        (position, angle), velocity = episode.physics.qpos, episode.physics.qvel[1]
        upright = (1 + jnp.cos(angle)) / 2
        centred = (1 + gaussian(position, 2)) / 2
        small = (4 + quadratic(action[0], 1)) / 5
        slow = (1 + gaussian(velocity, 5)) / 2
        return Verdict(upright * centred * small * slow, episode.memo)

    def everything(self, episode: Episode, poses: Poses) -> jax.Array:
        del poses
        position, angle = episode.physics.qpos
        return jnp.concatenate([jnp.stack([position, jnp.cos(angle), jnp.sin(angle)]), episode.physics.qvel])
