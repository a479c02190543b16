"""Cheetah: run forwards with two legs in a plane."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from jaxrl.envs.mjx import engine as engines
from jaxrl.envs.mjx.engine import Physics, Poses
from jaxrl.envs.mjx.rewards import ramp
from jaxrl.envs.mjx.task import Episode, PhysicsTask, Verdict
from jaxrl.types import Key

SPEED = 10.0  # that earns the whole reward, metres per second
COUNT = 256  # start states
SETTLE = 200  # physics steps that a start state falls and comes to rest for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cheetah(PhysicsTask):
    """1000 control steps of 0.01 s; reward min(v / 10, 1), not below 0. Never terminates.

    v is the forward speed of the whole body's centre of mass, m/s. Action [6]: torques of the six joints.
    State [17]: every position but the distance run [8], every velocity [9].
    Source: Tassa et al. 2018, cheetah run; here its parts do not touch each other.
    """

    asset: ClassVar[str] = "cheetah.xml"
    substeps: ClassVar[int] = 1
    length: ClassVar[int] = 1000
    cameras: ClassVar[tuple[str, ...]] = ("side",)

    def start(self, key: Key) -> tuple[Physics, Any]:
        qpos, qvel = _settled()
        index = jax.random.randint(key, (), 0, COUNT)
        return self.engine.at_rest(jnp.asarray(qpos)[index], jnp.asarray(qvel)[index]), None

    def drive(self, episode: Episode, action: jax.Array) -> tuple[jax.Array, Any]:
        return action, episode.memo

    def judge(self, episode: Episode, poses: Poses, action: jax.Array) -> Verdict:
        del poses, action
        return Verdict(ramp(self.speed(episode.physics), 0, SPEED), episode.memo)

    def everything(self, episode: Episode, poses: Poses) -> jax.Array:
        del poses
        return jnp.concatenate([episode.physics.qpos[1:], episode.physics.qvel])

    def speed(self, physics: Physics) -> jax.Array:
        """Forward speed of the centre of mass, m/s; all joints are hinges and slides, so dq/dt = qvel."""
        mass = jnp.asarray(self.engine.model.body_mass, jnp.float32)

        def centre(qpos: jax.Array) -> jax.Array:
            return self.engine.poses(qpos).inertia[:, 0] @ mass / mass.sum()

        return jax.jvp(centre, (physics.qpos,), (physics.qvel,))[1]


@functools.cache
def _settled() -> tuple[np.ndarray, np.ndarray]:
    """Start states: joints bent at random within their limits, then left alone for a while.

    Returns:
      (qpos [COUNT, 9] f32, qvel [COUNT, 9] f32).
    """
    model = engines.load(Cheetah.asset, Cheetah.substeps).model
    draw, state = np.random.default_rng(17), mujoco.MjData(model)
    low, high = model.jnt_range[3:].T
    found = []
    for _ in range(COUNT):
        mujoco.mj_resetData(model, state)
        state.qpos[3:] = draw.uniform(low, high)
        mujoco.mj_step(model, state, SETTLE)
        found.append((state.qpos.copy(), state.qvel.copy()))
    qpos, qvel = (np.array(x, np.float32) for x in zip(*found, strict=True))
    return qpos, qvel
