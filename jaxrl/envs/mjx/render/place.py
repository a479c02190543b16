"""Where shapes and lights are as a camera sees them: x right, y up, z backwards, from its centre."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct

from jaxrl.envs.mjx.render.scene import Look, Mount, Scene

MODES = mujoco.mjtCamLight


@struct.dataclass(kw_only=True)
class View:
    """What one camera sees, G shapes and L lights. All f32, metres."""

    centre: jax.Array  # [G, 3]
    axes: jax.Array  # [G, 3, 3], [g, i] is axis i of shape g
    eye: jax.Array  # [G, 3] the camera in each shape's frame
    light_position: jax.Array  # [L, 3]
    light_direction: jax.Array  # [L, 3]
    up: jax.Array  # [3] the world's z axis
    scale: jax.Array  # [] tangent of half the field of view


def views(scene: Scene, look: Look, xpos: jax.Array, xmat: jax.Array) -> View:
    """Leaves [K, ...], of all cameras.

    Args:
      xpos, xmat: [nbody, 3] and [nbody, 3, 3] f32, frames of the bodies in the world.
    """
    bodies = np.array([s.body for s in scene.shapes], int)
    local = jnp.asarray(np.array([s.position for s in scene.shapes], np.float32).reshape(-1, 3))
    turned = jnp.asarray(np.array([s.rotation for s in scene.shapes], np.float32).reshape(-1, 3, 3))
    centres = xpos[bodies] + times(xmat[bodies], local)
    rotations = product(xmat[bodies], turned)
    lamps = [_lamp(light.mount, look, i, xpos, xmat) for i, light in enumerate(scene.lights)]
    lamp_positions = jnp.stack([p for p, _ in lamps]) if lamps else jnp.zeros((0, 3))
    lamp_directions = jnp.stack([d for _, d in lamps]) if lamps else jnp.zeros((0, 3))
    seen = []
    for k, camera in enumerate(scene.cameras):
        eye, frame = _camera(camera.mount, look, k, xpos, xmat)
        seen.append(
            View(
                centre=times(frame.T, centres - eye),
                axes=jnp.swapaxes(product(frame.T, rotations), -1, -2),
                eye=times(jnp.swapaxes(rotations, -1, -2), eye - centres),
                light_position=times(frame.T, lamp_positions - eye),
                light_direction=times(frame.T, lamp_directions),
                up=frame[2],
                scale=jnp.tan(jnp.deg2rad(look.fovy[k]) / 2),
            )
        )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *seen)


def times(rotation: jax.Array, vector: jax.Array) -> jax.Array:
    """[..., 3, 3] times [..., 3]. Written out: matrix products may be rounded to bfloat16, or TF32."""
    return (rotation * vector[..., None, :]).sum(-1)


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """[..., 3, 3] times [..., 3, 3], in float32 everywhere."""
    return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)


def unit(x: jax.Array) -> jax.Array:
    """[..., 3] with length 1; 0 stays 0."""
    return x / jnp.maximum(jnp.sqrt((x * x).sum(-1, keepdims=True)), 1e-12)


def _carried(mount: Mount, position: jax.Array, xpos: jax.Array, xmat: jax.Array) -> jax.Array:
    """[3] where something is that a body carries."""
    if mount.mode == MODES.mjCAMLIGHT_TRACK:
        return xpos[mount.body] + position
    if mount.mode == MODES.mjCAMLIGHT_TRACKCOM:
        return _centre(mount, xpos, xmat) + position
    return xpos[mount.body] + times(xmat[mount.body], position)


def _centre(mount: Mount, xpos: jax.Array, xmat: jax.Array) -> jax.Array:
    """[3] centre of mass of what is followed or looked at."""
    table = np.array(mount.weights, np.float32)
    bodies, weights = table[:, 0].astype(int), jnp.asarray(table[:, 1:2])
    return (weights * (xpos[bodies] + times(xmat[bodies], jnp.asarray(table[:, 2:])))).sum(0)


def _target(mount: Mount, xpos: jax.Array, xmat: jax.Array) -> jax.Array:
    return _centre(mount, xpos, xmat) if mount.weights else xpos[mount.target]


def _camera(
    mount: Mount, look: Look, k: int, xpos: jax.Array, xmat: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """([3] position, [3, 3] rotation) in the world, as mj_camlight computes them."""
    position = _carried(mount, look.camera_position[k], xpos, xmat)
    if mount.mode in (MODES.mjCAMLIGHT_TRACK, MODES.mjCAMLIGHT_TRACKCOM):
        return position, look.camera_rotation[k]
    if mount.mode == MODES.mjCAMLIGHT_FIXED:
        return position, product(xmat[mount.body], look.camera_rotation[k])
    back = unit(position - _target(mount, xpos, xmat))
    right = unit(jnp.stack([-back[1], back[0], jnp.zeros_like(back[0])]))
    return position, jnp.stack([right, jnp.cross(back, right), back], -1)


def _lamp(mount: Mount, look: Look, i: int, xpos: jax.Array, xmat: jax.Array) -> tuple[jax.Array, jax.Array]:
    """([3] position, [3] direction) in the world."""
    position = _carried(mount, look.light_position[i], xpos, xmat)
    if mount.mode in (MODES.mjCAMLIGHT_TRACK, MODES.mjCAMLIGHT_TRACKCOM):
        return position, unit(look.light_direction[i])
    if mount.mode == MODES.mjCAMLIGHT_FIXED:
        return position, unit(times(xmat[mount.body], look.light_direction[i]))
    return position, unit(_target(mount, xpos, xmat) - position)
