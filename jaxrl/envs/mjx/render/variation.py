"""Domain randomisation: another look of the same scene."""

import jax
import jax.numpy as jnp

from jaxrl.envs.mjx.render.scene import Look
from jaxrl.types import Key

# Largest change at strength 1, each uniform in both directions.
COLOUR = 0.25  # added to each channel of a shape's colour, in [0, 1]
BRIGHTNESS = 0.4  # share of a light's or the headlight's colours
LIGHT_SHIFT = 0.3  # m, along each axis
LIGHT_TURN = 0.4  # added to each component of a unit vector
CAMERA_SHIFT = 0.02  # m, along each axis
CAMERA_TURN = 0.06  # radians, about each axis
FOVY = 0.06  # share of the field of view


def randomized(look: Look, key: Key, strength: float | jax.Array) -> Look:
    """A look with other colours, lights and camera poses.

    Args:
      strength: in [0, 1]; 0 changes nothing. Amounts at 1 are this module's constants, about what
        mounting a camera by hand and moving a lamp does to a real set-up.
    """
    keys = iter(jax.random.split(key, 10))

    def jitter(shape: tuple[int, ...], most: float) -> jax.Array:
        return jax.random.uniform(next(keys), shape, jnp.float32, -most, most) * strength

    colours = look.rgba[:, :3] + jitter((*look.rgba.shape[:1], 3), COLOUR)
    aims = look.light_direction + jitter(look.light_direction.shape, LIGHT_TURN)
    lengths = jnp.sqrt((aims * aims).sum(-1, keepdims=True))
    turn = jax.vmap(_rotation)(jitter(look.camera_position.shape, CAMERA_TURN))
    return look.replace(
        rgba=jnp.concatenate([jnp.clip(colours, 0, 1), look.rgba[:, 3:]], -1),
        checker=jnp.clip(look.checker * (1 + jitter((*look.checker.shape[:1], 1, 3), COLOUR)), 0, 1),
        light=look.light * (1 + jitter((*look.light.shape[:1], 1, 1), BRIGHTNESS)),
        headlight=look.headlight * (1 + jitter((), BRIGHTNESS)),
        light_position=look.light_position + jitter(look.light_position.shape, LIGHT_SHIFT),
        light_direction=jnp.where(strength > 0, aims / jnp.maximum(lengths, 1e-6), look.light_direction),
        camera_position=look.camera_position + jitter(look.camera_position.shape, CAMERA_SHIFT),
        camera_rotation=(look.camera_rotation[..., None] * turn[:, None]).sum(-2),
        fovy=look.fovy * (1 + jitter(look.fovy.shape, FOVY)),
    )


def _rotation(turn: jax.Array) -> jax.Array:
    """[3, 3] rotation about the axis `turn` [3] by its length, radians (Rodrigues)."""
    angle = jnp.sqrt((turn * turn).sum() + 1e-20)
    x, y, z = turn / angle
    zero = jnp.zeros_like(x)
    cross = jnp.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)
    square = (cross[:, :, None] * cross[None]).sum(1)
    return jnp.eye(3) + jnp.sin(angle) * cross + (1 - jnp.cos(angle)) * square
