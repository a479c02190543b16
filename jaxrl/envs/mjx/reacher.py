"""Reacher: bring the tip of a two-link arm into a ball."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxrl.envs.mjx.engine import Physics, Poses
from jaxrl.envs.mjx.task import Episode, PhysicsTask, Verdict
from jaxrl.types import Key

WRIST = 2.7925  # most that the wrist bends, 160 degrees, radians
RADII = 0.05 + 0.01  # of ball and fingertip, metres


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reacher(PhysicsTask):
    """1000 control steps of 0.02 s. Reward 1 while tip and ball touch, else 0. Never terminates.

    Action [2]: torques of shoulder and wrist, 0.05 Nm at 1. State [6]: their angles, from the tip to the
    middle of the ball (x, y) in m, their angular velocities. The ball has the size of "easy".
    Source: Tassa et al. 2018, reacher easy.
    """

    asset: ClassVar[str] = "reacher.xml"
    substeps: ClassVar[int] = 1
    length: ClassVar[int] = 1000
    cameras: ClassVar[tuple[str, ...]] = ("fixed",)

    def start(self, key: Key) -> tuple[Physics, Any]:
        key_joints, key_target = jax.random.split(key)
        bends = jnp.array([jnp.pi, WRIST], jnp.float32)
        joints = bends * jax.random.uniform(key_joints, (2,), jnp.float32, -1, 1)
        turn, radius = jax.random.uniform(key_target, (2,), jnp.float32)
        turn, radius = 2 * jnp.pi * turn, 0.05 + 0.15 * radius
        target = radius * jnp.stack([jnp.sin(turn), jnp.cos(turn)])
        return self.engine.at_rest(jnp.concatenate([joints, target])), None

    def drive(self, episode: Episode, action: jax.Array) -> tuple[jax.Array, Any]:
        return action, episode.memo

    def judge(self, episode: Episode, poses: Poses, action: jax.Array) -> Verdict:
        del action
        reached = jnp.linalg.norm(self._to_target(poses)) <= RADII
        return Verdict(reached.astype(jnp.float32), episode.memo)

    def everything(self, episode: Episode, poses: Poses) -> jax.Array:
        physics = episode.physics
        return jnp.concatenate([physics.qpos[:2], self._to_target(poses), physics.qvel[:2]])

    def _to_target(self, poses: Poses) -> jax.Array:
        """[2], from the tip to the middle of the ball, metres."""
        model = self.engine.model
        return (poses.bodies[model.body("target").id] - poses.bodies[model.body("finger").id])[:2]
