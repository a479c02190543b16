"""A ray caster in plain JAX: one ray per sample of a pixel, every shape tried, the nearest one lit.

Two passes over the rays. The first finds the nearest shape: an unrolled minimum over shapes of a *key*,
the distance with its lowest mantissa bits replaced by the shape's number, so that one number per ray carries
both. The second computes normal, colour and light of that shape alone. Each pass is a loop over two halves of
the rays because XLA fuses across anything else: it would compute the whole first pass again in every fusion
of the second one (2 to 8 times slower, 10 times the memory on a CPU). Inside, all is elementwise on arrays of
rays, without gathers.

Directions are not normalised: their component along the view axis is 1, so that distances are depths.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl.envs.mjx.render import shapes
from jaxrl.envs.mjx.render.place import View, views
from jaxrl.envs.mjx.render.scene import Look, Scene
from jaxrl.envs.mjx.render.shapes import Vec

HALVES = 2  # a loop of one turn is unrolled, and then fused
LANES = 8  # rays are padded to a multiple, of what a vector instruction takes
FARTHEST = 3e38
TINY = 1e-20
GL_SHININESS = 128  # MuJoCo's shininess 1 as OpenGL's exponent


@struct.dataclass(kw_only=True)
class Pictures:
    """Of K cameras. Only what is read of it is computed."""

    rgb: jax.Array  # [K, h, w, 3] u8
    depth: jax.Array  # [K, h, w] f32, m along the view axis, of a pixel's first sample; inf where nothing is
    segmentation: jax.Array  # [K, h, w] i32 geom id of a pixel's first sample, -1 for none and for sites


def render(scene: Scene, look: Look, xpos: jax.Array, xmat: jax.Array) -> Pictures:
    """Pictures of one state, from each of the scene's cameras. For a batch, `render_batch` or vmap.

    Args:
      scene: static.
      look: colours, lights and lenses; `scene.look()` or a variation of it.
      xpos: [nbody, 3] f32, positions of the bodies, m.
      xmat: [nbody, 3, 3] f32, their orientations, columns are the bodies' axes.
    """
    return jax.vmap(lambda view: _picture(scene, look, view))(views(scene, look, xpos, xmat))


def render_batch(
    scene: Scene,
    look: Look,
    xpos: jax.Array,
    xmat: jax.Array,
    *,
    chunk: int,
    pick: Callable[[Pictures], Any] = lambda pictures: pictures,
) -> Any:
    """Pictures of N states, `chunk` of them at a time: memory in use is that of a chunk.

    Args:
      look: of all, or with leaves [N, ...].
      xpos, xmat: [N, nbody, 3] and [N, nbody, 3, 3] f32.
      pick: what to keep of the Pictures, e.g. `lambda p: p.rgb`; what is not kept is not computed.

    Returns:
      What `pick` chose, leaves [N, K, ...].
    """
    shared = look.rgba.ndim == 2
    if shared:
        return jax.lax.map(
            lambda x: pick(render(scene, look, *x)), (xpos, xmat), batch_size=min(chunk, len(xpos))
        )
    return jax.lax.map(
        lambda x: pick(render(scene, *x)), (look, xpos, xmat), batch_size=min(chunk, len(xpos))
    )


def _picture(scene: Scene, look: Look, view: View) -> Pictures:
    """Leaves without K."""
    plane = _rays(scene)
    keys = jax.lax.map(lambda at: _nearest(scene, look, view, _direction(view, at)), plane)
    packed = jax.lax.map(lambda x: _lit(scene, look, view, _direction(view, x[0]), x[1]), (plane, keys))
    pixels = scene.size * scene.size
    packed = packed.reshape(-1)[: pixels * scene.samples**2]
    if scene.samples == 1:
        rgb = jax.lax.bitcast_convert_type(packed, jnp.uint8)[:, :3]
    else:
        channels = [(packed >> shift) & 255 for shift in (0, 8, 16)]
        means = [c.reshape(-1, pixels).astype(jnp.float32).mean(0) for c in channels]
        rgb = jnp.stack([jnp.floor(x + 0.5).astype(jnp.uint8) for x in means], -1)
    first = keys.reshape(-1)[:pixels]
    return Pictures(
        rgb=rgb.reshape(scene.size, scene.size, 3),
        depth=_depth(scene, first).reshape(scene.size, scene.size),
        segmentation=_geoms(scene, first).reshape(scene.size, scene.size),
    )


def _rays(scene: Scene) -> jax.Array:
    """[HALVES, 2, rays] f32: where rays cross the image plane, in units of half its height.

    All pixels' first samples come first, row by row from the top, then all second ones.
    """
    n, s = scene.size, scene.samples
    places = (np.arange(n)[None] + (np.arange(s)[:, None] + 0.5) / s) / n * 2 - 1  # [s, n]
    x = np.broadcast_to(places[None, :, None, :], (s, s, n, n)).ravel()
    y = np.broadcast_to(-places[:, None, :, None], (s, s, n, n)).ravel()
    short = -len(x) % (HALVES * LANES)
    table = np.pad(np.stack([x, y]).astype(np.float32), ((0, 0), (0, short)), mode="edge")
    return jnp.asarray(table.reshape(2, HALVES, -1).swapaxes(0, 1))


def _direction(view: View, at: jax.Array) -> Vec:
    return at[0] * view.scale, at[1] * view.scale, jnp.float32(-1)


def _bits(scene: Scene) -> int:
    """Mask of the bits of a key that hold the shape's number; all set for none."""
    return (1 << len(scene.shapes).bit_length()) - 1


def _nearest(scene: Scene, look: Look, view: View, ray: Vec) -> jax.Array:
    """[rays] i32 keys of what each ray meets first."""
    mask = _bits(scene)
    best = jnp.full(ray[0].shape, FARTHEST, jnp.float32).view(jnp.int32) | mask
    for g, shape in enumerate(scene.shapes):
        size = _vec(look.size[g])
        direction = tuple(shapes.dot(_vec(axis), ray) for axis in view.axes[g])
        t = shapes.entry(shape.kind, size, _vec(view.eye[g]), direction)
        near = jnp.where(look.rgba[g, 3] < 0.5, FARTHEST, scene.near)
        t = jnp.where((t > near) & (t < scene.far), t, FARTHEST)
        # Positive floats are ordered as their bits are.
        best = jnp.minimum(best, (t.view(jnp.int32) & ~mask) | g)
    return jnp.where(best.view(jnp.float32) < scene.far, best, best | mask)


def _depth(scene: Scene, keys: jax.Array) -> jax.Array:
    mask = _bits(scene)
    return jnp.where((keys & mask) == mask, jnp.inf, (keys & ~mask).view(jnp.float32))


def _geoms(scene: Scene, keys: jax.Array) -> jax.Array:
    number = keys & _bits(scene)
    found = jnp.full(keys.shape, -1, jnp.int32)
    for g, shape in enumerate(scene.shapes):
        found = jnp.where(number == g, shape.geom, found)
    return found


def _lit(scene: Scene, look: Look, view: View, ray: Vec, keys: jax.Array) -> jax.Array:
    """[rays] i32 colours, red in the lowest byte."""
    mask = _bits(scene)
    number = keys & mask
    is_sky = number == mask
    depth = jnp.where(is_sky, 1, (keys & ~mask).view(jnp.float32))
    point = shapes.scaled(ray, depth)
    zero = jnp.zeros_like(depth)
    normal, colour, texture = (zero, zero, zero), (zero, zero, zero), (zero + 1, zero + 1, zero + 1)
    checkered = 0
    for g, shape in enumerate(scene.shapes):
        here = number == g
        axes = tuple(_vec(axis) for axis in view.axes[g])
        offset = shapes.sub(point, _vec(view.centre[g]))
        normal = _choose(here, shapes.normal(shape.kind, _vec(look.size[g]), axes, offset), normal)
        colour = _choose(here, _vec(look.rgba[g]), colour)
        if shape.material.checker:
            squares = _checker(shape.material.squares, look.size[g], axes, offset, look.checker[checkered])
            texture = _choose(here, squares, texture)
            checkered += 1
    normal = shapes.scaled(normal, jax.lax.rsqrt(jnp.maximum(shapes.dot(normal, normal), TINY)))
    light = _light(scene, look, view, point, normal, number)
    sky = _sky(scene, look, view, ray)
    packed = jnp.zeros_like(keys)
    for channel in range(3):
        lit = jnp.clip(colour[channel] * light[0][channel] + light[1][channel], 0, 1) * texture[channel]
        value = jnp.where(is_sky, sky[channel], lit)
        packed |= (jnp.clip(value, 0, 1) * 255 + 0.5).astype(jnp.int32) << (8 * channel)
    return packed


def _checker(
    squares: tuple[float, float], size: jax.Array, axes: Any, offset: Vec, colours: jax.Array
) -> Vec:
    """Colours of a checkered plane; squares count from its corner of least x and largest y, if it has one."""
    x = jnp.floor((shapes.dot(offset, axes[0]) + size[0]) * squares[0])
    y = jnp.floor((size[1] - shapes.dot(offset, axes[1])) * squares[1])
    half = (x + y) / 2
    return _choose(half == jnp.floor(half), _vec(colours[0]), _vec(colours[1]))


def _light(
    scene: Scene, look: Look, view: View, point: Vec, normal: Vec, number: jax.Array
) -> tuple[Vec, Vec]:
    """(what multiplies a shape's colour, what is added to it): OpenGL's fixed pipeline, per pixel."""
    glow = _per_shape(scene, number, lambda material: material.emission)
    facing = jnp.maximum(normal[2], 0)
    total = [look.headlight[0, c] + look.headlight[1, c] * facing + glow for c in range(3)]
    glint: list[Any] = [0.0, 0.0, 0.0]
    strength = _per_shape(scene, number, lambda material: material.specular)
    power = _per_shape(scene, number, lambda material: material.shininess * GL_SHININESS)

    def mirrored(half: jax.Array) -> jax.Array:
        return strength * jnp.exp(power * jnp.log(jnp.maximum(half, TINY)))

    if scene.is_shiny:
        glint = [look.headlight[2, c] * mirrored(facing) for c in range(3)]
    for i, lamp in enumerate(scene.lights):
        towards, reach = _towards(lamp, view, i, point)
        falling = jnp.maximum(shapes.dot(normal, towards), 0)
        shine = [look.light[i, 0, c] + look.light[i, 1, c] * falling for c in range(3)]
        total = [x + reach * y for x, y in zip(total, shine, strict=True)]
        if scene.is_shiny:
            half = (towards[0], towards[1], towards[2] + 1)  # OpenGL's viewer is far away
            size = jax.lax.rsqrt(jnp.maximum(shapes.dot(half, half), TINY))
            bright = jnp.where(falling > 0, reach * mirrored(shapes.dot(normal, half) * size), 0)
            glint = [x + look.light[i, 2, c] * bright for c, x in enumerate(glint)]
    return tuple(total), tuple(glint)


def _towards(lamp: Any, view: View, i: int, point: Vec) -> tuple[Vec, Any]:
    """(unit vector to a lamp, how much of its light arrives)."""
    beam = _vec(view.light_direction[i])
    if lamp.is_directional:
        return shapes.scaled(beam, -1), 1.0
    away = shapes.sub(_vec(view.light_position[i]), point)
    square = jnp.maximum(shapes.dot(away, away), TINY)
    inverse = jax.lax.rsqrt(square)
    towards = shapes.scaled(away, inverse)
    constant, linear, quadratic = lamp.attenuation
    reach = 1 / (constant + linear * square * inverse + quadratic * square)
    if lamp.cutoff < 180:
        along = -shapes.dot(towards, beam)
        edge = float(np.cos(np.deg2rad(lamp.cutoff)))
        cone = jnp.exp(lamp.exponent * jnp.log(jnp.maximum(along, TINY)))
        reach = reach * jnp.where(along > edge, cone, 0)
    return towards, reach


def _sky(scene: Scene, look: Look, view: View, ray: Vec) -> Vec:
    """Colour of the background: MuJoCo's gradient from above to below."""
    if not scene.has_sky:
        return tuple(jnp.zeros_like(ray[0]) for _ in range(3))
    rise = shapes.dot(_vec(view.up), ray) * jax.lax.rsqrt(shapes.dot(ray, ray))
    height = jnp.arcsin(jnp.clip(rise, -1, 1)) * (2 / np.pi)
    above = 0.5 + height * jax.lax.rsqrt(2 * (1 + height * height))
    return tuple(look.sky[0, c] * above + look.sky[1, c] * (1 - above) for c in range(3))


def _per_shape(scene: Scene, number: jax.Array, of: Callable[[Any], float]) -> Any:
    """A constant of the shape that each ray met; a plain number if it is the same for all."""
    values = [of(shape.material) for shape in scene.shapes]
    if len(set(values)) <= 1:
        return values[0] if values else 0.0
    found = jnp.zeros(number.shape, jnp.float32)
    for g, value in enumerate(values):
        found = jnp.where(number == g, value, found)
    return found


def _choose(where: jax.Array, a: Vec, b: Vec) -> Vec:
    return tuple(jnp.where(where, x, y) for x, y in zip(a, b, strict=True))


def _vec(x: jax.Array) -> Vec:
    return x[0], x[1], x[2]
