"""The SO-101 arm of assets/so101.xml: which number is which joint, how its tool moves, what it holds."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.mjx import engine as engines
from jaxrl.envs.mjx.engine import Engine, Poses

ASSET = "so101.xml"
SUBSTEPS = 4  # of 5 ms: 50 control steps a second
JOINTS = 6  # pan, lift, elbow, flex, roll, jaw: the first of qpos, qvel and ctrl
CUBE = 0.015  # half an edge, metres
PAD = 0.006  # radius of a finger's spheres, metres
TOUCH = 5e-4  # largest gap between a pad and what it touches, metres
OPEN = 1.0  # angle of the jaw that the gripper's action 1 asks for, radians; -1 asks for shut
CLOSED = 0.3  # angle of the jaw up to which it counts as closed; the cube is held at 0.16 to 0.24
GAIN = 0.5  # share of an asked displacement that a step makes
DAMPING = 0.02  # of the inverse kinematics, metres per radian
SWING = 0.1  # most that the wrist turns in a step to point down again, radians


class Parts(NamedTuple):
    """Indices into poses."""

    tool: int  # site
    gripper: int  # body
    cube: int  # body
    pads: tuple[int, ...]  # geoms of the fixed finger
    jaws: tuple[int, ...]  # geoms of the moving finger
    low: np.ndarray  # [6] f32, ranges of the joints
    high: np.ndarray  # [6] f32


class Touch(NamedTuple):
    """How the fingers stand to the cube."""

    distance: jax.Array  # [] f32, from the tool's point to the middle of the cube, metres
    gaps: jax.Array  # [2] f32, from the fixed and the moving finger to the cube, metres; < 0 presses in
    grasped: jax.Array  # [] bool, the jaw is closed and both fingers touch


def engine() -> Engine:
    """The arm's physics."""
    return engines.load(ASSET, SUBSTEPS)


@functools.cache
def parts() -> Parts:
    """Where the arm's parts are in poses."""
    model = engine().model
    return Parts(
        tool=model.site("tool").id,
        gripper=model.body("gripper").id,
        cube=model.body("cube").id,
        pads=tuple(model.geom(f"pad_{i}").id for i in range(3)),
        jaws=tuple(model.geom(f"jaw_{i}").id for i in range(3)),
        low=model.jnt_range[:JOINTS, 0].astype(np.float32),
        high=model.jnt_range[:JOINTS, 1].astype(np.float32),
    )


def step_joints(xp: Any, anchors: Any, axes: Any, tool: Any, angles: Any, move: Any) -> Any:
    """Angles that bring the tool nearer to where it shall go, while it points down where the wrist can.

    Damped least squares for pan, lift and elbow; the wrist follows, so that the tool's pitch stays.

    Args:
      xp: numpy or jax.numpy; everything else is its arrays.
      anchors, axes: [njnt, 3], of the joints in the world.
      tool: [3], the tool's point.
      angles: [5], of pan, lift, elbow, flex and roll.
      move: [3], displacement that is asked for, metres.

    Returns:
      [5] angles within their ranges. Roll stays.
    """
    low, high = parts().low[:5], parts().high[:5]
    columns = xp.cross(axes[:4], tool - anchors[:4])
    level = np.pi / 2 - angles[1] - angles[2]  # angle of the wrist that points the tool down
    follows = xp.where((level > low[3]) & (level < high[3]), columns[3], 0)
    jacobian = xp.stack([columns[0], columns[1] - follows, columns[2] - follows], 1)
    square = jacobian @ jacobian.T + DAMPING**2 * xp.eye(3, dtype=angles.dtype)
    a, b, c = square  # symmetric and positive: its inverse is that of cross products, cheap in a batch
    ab, bc, ca = xp.cross(a, b), xp.cross(b, c), xp.cross(c, a)
    change = jacobian.T @ (xp.stack([bc, ca, ab], 1) @ move / (a * bc).sum())
    turned = xp.clip(angles[:3] + change, low[:3], high[:3])
    level = np.pi / 2 - turned[1] - turned[2]
    flex = xp.clip(angles[3] + xp.clip(level - angles[3], -SWING, SWING), low[3], high[3])
    return xp.concatenate([turned, xp.stack([flex, angles[4]])])


def touch(qpos: jax.Array, poses: Poses) -> Touch:
    """Of a state: qpos [13] and its poses."""
    known = parts()
    centre, frame = poses.bodies[known.cube], poses.frames[known.cube]
    balls = poses.geoms[np.array(known.pads + known.jaws)]
    gaps = (to_box((balls - centre) @ frame) - PAD).reshape(2, 3).min(1)
    distance = jnp.linalg.norm(poses.sites[known.tool] - centre)
    grasped = (qpos[JOINTS - 1] < CLOSED) & (gaps < TOUCH).all()
    return Touch(distance=distance, gaps=gaps, grasped=grasped)


def to_box(points: jax.Array) -> jax.Array:
    """[n] distances of points [n, 3] in the cube's frame to its surface, negative inside."""
    beyond = jnp.abs(points) - CUBE
    outside = jnp.linalg.norm(jnp.maximum(beyond, 0), axis=-1)
    return outside + jnp.minimum(beyond.max(-1), 0)


def proprioception(qpos: jax.Array, qvel: jax.Array, poses: Poses) -> jax.Array:
    """[18] f32: six angles, six angular velocities, the tool's position and its Euler angles.

    Euler angles are about fixed x, y, z, of the rotation from a tool that points straight down, so that
    they are far from their singularity.
    """
    known = parts()
    x, y, z = poses.frames[known.gripper].T  # the tool's axes in the world
    rows = jnp.stack([z, y, -x], 1)  # 1 if x points down and z forward
    euler = jnp.stack(
        [
            jnp.arctan2(rows[2, 1], rows[2, 2]),
            -jnp.arcsin(jnp.clip(rows[2, 0], -1, 1)),
            jnp.arctan2(rows[1, 0], rows[0, 0]),
        ]
    )
    return jnp.concatenate([qpos[:JOINTS], qvel[:JOINTS], poses.sites[known.tool], euler])
