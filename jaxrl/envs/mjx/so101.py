"""An SO-101 arm that learns to lift a cube, and the easier task of holding its tool above the cube."""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl.envs.base import State
from jaxrl.envs.mjx import arm
from jaxrl.envs.mjx.engine import Physics, Poses
from jaxrl.envs.mjx.rewards import ramp
from jaxrl.envs.mjx.starts import COUNT, HELD, STAGES, starts
from jaxrl.envs.mjx.task import Episode, PhysicsTask, Verdict
from jaxrl.types import Key

JITTER = 0.003  # of the cube at a reset, where it is not held, metres
REACH = 0.02  # most that a tool or its target move in a step of env.control=tool, metres
LOWEST = 0.012  # of the tool above the table: its fingertips touch it then, metres
TURN = 0.05  # most that a joint's target moves in a step of env.control=joints, radians
LEAD = 0.06  # most that a joint's target is ahead of the joint, radians
WINDOW = 10  # episodes, of the success rate that promotes
HOLD = 10  # control steps in a row that make a success
HEIGHT = 0.08  # of the cube's middle that counts as lifted, metres
HOVER = 0.04  # of the target above the middle of the cube, in the task of reaching, metres
NEAR = 0.02  # distance to the target that counts as reached, metres


@struct.dataclass(kw_only=True)
class Memo:
    """What an SO-101 task remembers from step to step."""

    ctrl: jax.Array  # [6] f32, what the servos hold, radians
    action: jax.Array  # [A] f32, the one before
    grasped: jax.Array  # [] bool
    hold: jax.Array  # [] i32, control steps in a row that what is asked for holds
    stage: jax.Array  # [] i32, which of starts.STAGES the episode began in
    rate: jax.Array  # [] f32, running share of this environment's episodes in that stage that succeeded


@dataclasses.dataclass(frozen=True, kw_only=True)
class So101(PhysicsTask):
    """What the tasks of this arm share. Actions, by `control`:

    "tool" [4]: displacement of the tool, 2 cm at 1, of which a step makes half, by damped least squares
    while the tool goes on to point down; and the jaw, from shut (-1) to open by 1 rad (1).
    "joints" [6]: displacements of what the servos hold, 0.05 rad at 1.

    Pictures come with `proprioception`, 18 numbers that a real arm knows of itself. The cube's pose is only
    in the vector of observe="state" [36], which is for learning with privileged knowledge: those 18; the
    cube's middle [3] in m, its quaternion [4], its velocity [3] in m/s and angular velocity [3] in rad/s;
    from the tool to the cube [3] and the gaps of the fingers [2] in dm.
    """

    control: str = "tool"
    asset: ClassVar[str] = arm.ASSET
    substeps: ClassVar[int] = arm.SUBSTEPS
    length: ClassVar[int] = 200
    cameras: ClassVar[tuple[str, ...]] = ("wrist", "front")
    has_success: ClassVar[bool] = True

    @property
    def action_size(self) -> int:
        return 4 if self.control == "tool" else arm.JOINTS

    @property
    @abc.abstractmethod
    def stages(self) -> tuple[int, ...]:
        """Which of starts.STAGES episodes begin in: the first of them, until it was promoted."""

    def start(self, key: Key) -> tuple[Physics, Any]:
        return self.start_in(key, jnp.int32(self.stages[0]), jnp.float32(0))

    def start_in(self, key: Key, stage: jax.Array, rate: jax.Array) -> tuple[Physics, Any]:
        """A start state of one of `stages`. stage: [] i32; rate: as in the memo."""
        key_index, key_cube = jax.random.split(key)
        tables = [starts(i) for i in self.stages]
        index = stage - self.stages[0], jax.random.randint(key_index, (), 0, COUNT)
        qpos, ctrl = (jnp.asarray(np.stack(x))[index] for x in zip(*tables, strict=True))
        held = jnp.isin(stage, jnp.array(HELD))
        memo = Memo(
            ctrl=ctrl,
            action=jnp.zeros(self.action_size, jnp.float32),
            grasped=held,
            hold=jnp.int32(0),
            stage=stage,
            rate=rate,
        )
        return self.engine.at_rest(jnp.where(held, qpos, self.move_cube(qpos, key_cube))), memo

    def move_cube(self, qpos: jax.Array, key: Key) -> jax.Array:
        """A start state [13] whose cube is not held, with the cube moved a little."""
        shift = jax.random.uniform(key, (2,), jnp.float32, -JITTER, JITTER)
        return qpos.at[arm.JOINTS : arm.JOINTS + 2].add(shift)

    def drive(self, episode: Episode, action: jax.Array) -> tuple[jax.Array, Any]:
        known, memo, qpos = arm.parts(), episode.memo, episode.physics.qpos
        if self.control == "tool":
            poses = self.engine.poses(qpos)
            tool = poses.sites[known.tool]
            move = action[:3] * REACH
            move = arm.GAIN * move.at[2].max(LOWEST - tool[2])
            angles = arm.step_joints(jnp, poses.anchors, poses.axes, tool, memo.ctrl[:5], move)
            jaw = known.low[5] + (action[3] + 1) / 2 * (arm.OPEN - known.low[5])
            ctrl = jnp.append(angles, jaw)
        else:
            ctrl = memo.ctrl + TURN * action
        held = jnp.clip(ctrl[:5], qpos[:5] - LEAD, qpos[:5] + LEAD)  # not far ahead of an arm that is stuck
        ctrl = jnp.clip(jnp.append(held, ctrl[5]), known.low, known.high)
        return ctrl, memo.replace(ctrl=ctrl)

    def hints(self, episode: Episode, poses: Poses) -> dict[str, jax.Array]:
        physics = episode.physics
        return {"proprioception": arm.proprioception(physics.qpos, physics.qvel, poses)}

    def everything(self, episode: Episode, poses: Poses) -> jax.Array:
        known, physics = arm.parts(), episode.physics
        touch = arm.touch(physics.qpos, poses)
        to_cube = poses.bodies[known.cube] - poses.sites[known.tool]
        own = arm.proprioception(physics.qpos, physics.qvel, poses)
        cube = physics.qpos[arm.JOINTS :], physics.qvel[arm.JOINTS :]
        return jnp.concatenate([own, *cube, 10 * to_cube, 10 * touch.gaps])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lift(So101):
    """Lift the cube: it succeeds, and ends, when the cube was grasped and its middle higher than 8 cm for
    10 control steps in a row. Otherwise an episode is truncated after 200 control steps, 4 s.

    Grasped: the jaw is closed and both fingers touch the cube. The reward is `lift_reward`, and `bonus` for a
    success. With pick-101's 10 it pays to linger: just below the height each control step is worth about 9.5,
    with a discount of 0.99 for every two of them 1,900 altogether, more than to succeed and end.
    Source: the project ggand0/pick-101, whose shaping "v19" was the first of many that worked.
    """

    stage: int = 3
    bonus: float = 10.0
    promote: float = 0.0  # success rate at which an environment goes on to the next stage; 0 = never

    @property
    def stages(self) -> tuple[int, ...]:
        return tuple(range(self.stage, len(STAGES))) if self.promote else (self.stage,)

    def reset_after(self, key: Key, ended: State) -> State:
        """The first row of the next episode, a stage higher where the last ones went well."""
        memo = ended.data.memo
        rate = memo.rate + (ended.info["success"] - memo.rate) / WINDOW
        up = (rate >= self.promote) & (memo.stage < self.stages[-1])
        stage, rate = memo.stage + up, jnp.where(up, 0, rate)
        return self.begin(key, lambda key: self.start_in(key, stage, rate))

    def judge(self, episode: Episode, poses: Poses, action: jax.Array) -> Verdict:
        memo, qpos = episode.memo, episode.physics.qpos
        touch, height = arm.touch(qpos, poses), poses.bodies[arm.parts().cube, 2]
        lifted = touch.grasped & (height > HEIGHT)
        hold = jnp.where(lifted, memo.hold + 1, 0)
        success = hold >= HOLD
        reward = lift_reward(touch, height, qpos[arm.JOINTS - 1], hold)
        reward -= jnp.where(lifted, 0.02 * jnp.square(action - memo.action).sum(), 0)
        reward -= jnp.where(memo.grasped & ~touch.grasped, 2, 0)
        reward += jnp.where(success, self.bonus, 0)
        memo = memo.replace(action=action, grasped=touch.grasped, hold=hold)
        return Verdict(reward, memo, success)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hover(So101):
    """Bring the tool to within 2 cm of the point 4 cm above the cube, and keep it there for 10 control steps
    in a row: that succeeds, and ends. Otherwise an episode is truncated after 200 control steps, 4 s.

        reward = -tanh(10 d) + 10 at success,    d: distance to that point in metres

    Never positive before success, so that to stay near without it does not pay. Random actions score about
    -140 and succeed in 5 of 100 episodes; going straight there scores about 4.
    """

    @property
    def stages(self) -> tuple[int, ...]:
        return (4,)

    def move_cube(self, qpos: jax.Array, key: Key) -> jax.Array:
        low, high = jnp.array([0.20, -0.08], jnp.float32), jnp.array([0.28, 0.08], jnp.float32)
        place = low + (high - low) * jax.random.uniform(key, (2,), jnp.float32)
        return qpos.at[arm.JOINTS : arm.JOINTS + 2].set(place)

    def judge(self, episode: Episode, poses: Poses, action: jax.Array) -> Verdict:
        known, memo = arm.parts(), episode.memo
        target = poses.bodies[known.cube] + np.array([0, 0, HOVER], np.float32)
        distance = jnp.linalg.norm(poses.sites[known.tool] - target)
        hold = jnp.where(distance < NEAR, memo.hold + 1, 0)
        success = hold >= HOLD
        reward = jnp.where(success, 10, 0) - jnp.tanh(10 * distance)
        return Verdict(reward, memo.replace(action=action, hold=hold), success)


def lift_reward(touch: arm.Touch, height: jax.Array, jaw: jax.Array, hold: jax.Array) -> jax.Array:
    """What a state is worth on the way to lifting the cube, [] f32.

    With d the distance from the tool to the cube and m the gap of the moving finger in metres, z the height
    of the cube's middle, H = 0.08 m:

        near   = 1 - tanh(10 d);  finger = 1 if the jaw is closed, else 1 - tanh(10 m)
        reward = near, or the mean of near and finger where near >= 0.7
               + 1.5 + 4 max(0, (z - 0.015) / (H - 0.015)) + [z > 0.02] + 2 ramp(z; 0.04, H)   if grasped
               + [z > H] + 0.5 hold
               - 50 max(0, 0.01 - z)

    Lifting pays only in a grasp, or the cube is tipped up with one finger; without `hold` the best is to
    swing about the threshold, which never succeeds.

    Args:
      jaw: angle in radians. hold: [] i32, control steps in a row that the cube is grasped above H.
    """
    near = 1 - jnp.tanh(10 * touch.distance)
    finger = jnp.where(jaw < arm.CLOSED, 1, 1 - jnp.tanh(10 * jnp.maximum(touch.gaps[1], 0)))
    reward = jnp.where(near < 0.7, near, (near + finger) / 2)
    lift = 4 * jnp.maximum((height - arm.CUBE) / (HEIGHT - arm.CUBE), 0)
    grasp = 1.5 + lift + (height > 0.02) + 2 * ramp(height, 0.04, HEIGHT)
    reward += jnp.where(touch.grasped, grasp, 0)
    reward += (height > HEIGHT) + 0.5 * hold
    return reward - 50 * jnp.maximum(0.01 - height, 0)
