"""Rays against MuJoCo's primitive shapes: where a ray enters one, and the surface normal there.

A ray is `origin + t * direction`; its direction need not have length 1, and t is in units of it. Vectors are
tuples of three arrays, which broadcast against each other: the scalars of a shape against a picture's pixels.
Only entries from outside count, as in MuJoCo's pictures, where back faces are not drawn: a camera inside a
shape looks through it. Sizes are MuJoCo's: half lengths, along z for capsules and cylinders.

Everything is float32 arithmetic on whole arrays, without gathers, loops or branches. Squared distances
between lines are taken from cross products: b^2 - ac loses a 6 mm sphere 2 m away in rounding.
"""

import jax
import jax.numpy as jnp

Vec = tuple[jax.Array, ...]  # of three
PLANE, SPHERE, CAPSULE, ELLIPSOID, CYLINDER, BOX = 0, 2, 3, 4, 5, 6  # mujoco.mjtGeom
NAMES = {0: "plane", 2: "sphere", 3: "capsule", 4: "ellipsoid", 5: "cylinder", 6: "box"}
MISS = float("inf")
TINY = 1e-12  # keeps a division finite where a ray is parallel to a face or an axis
EDGE = 1e-4  # of a cylinder's half length: nearer to its end than that is the cap


def dot(a: Vec, b: Vec) -> jax.Array:
    """Scalar product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def sub(a: Vec, b: Vec) -> Vec:
    """a - b."""
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def cross(a: Vec, b: Vec) -> Vec:
    """Vector product."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def scaled(a: Vec, s: jax.Array) -> Vec:
    """s * a."""
    return a[0] * s, a[1] * s, a[2] * s


def along(a: Vec, b: Vec, s: jax.Array) -> Vec:
    """a + s * b."""
    return a[0] + s * b[0], a[1] + s * b[1], a[2] + s * b[2]


def entry(kind: int, size: Vec, origin: Vec, direction: Vec) -> jax.Array:
    """t at which each ray enters the shape, `MISS` where it does not or began inside; may be negative.

    Args:
      kind: a shape, `PLANE` to `BOX`.
      size: in metres, as in MuJoCo. Of a plane: half lengths, 0 = infinite.
      origin, direction: of the rays in the shape's frame.
    """
    enter = {
        PLANE: _plane,
        SPHERE: _sphere,
        CAPSULE: _capsule,
        ELLIPSOID: _ellipsoid,
        CYLINDER: _cylinder,
        BOX: _box,
    }
    return enter[kind](size, origin, direction)


def _plane(size: Vec, o: Vec, d: Vec) -> jax.Array:
    t = -o[2] / jnp.minimum(d[2], -TINY)
    inside = (d[2] < 0) & (o[2] > 0)
    for axis in range(2):
        within = jnp.abs(o[axis] + t * d[axis]) <= size[axis]
        inside &= within | (size[axis] <= 0)
    return jnp.where(inside, t, MISS)


def _sphere(size: Vec, o: Vec, d: Vec) -> jax.Array:
    off = cross(d, o)
    a = dot(d, d)
    rest = a * (size[0] * size[0]) - dot(off, off)
    t = -(dot(d, o) + jnp.sqrt(jnp.maximum(rest, 0))) / a
    return jnp.where(rest > 0, t, MISS)


def _ellipsoid(size: Vec, o: Vec, d: Vec) -> jax.Array:
    inverse = (1 / size[0], 1 / size[1], 1 / size[2])
    one = jnp.ones_like(size[0])
    stretched = [tuple(x * y for x, y in zip(vector, inverse, strict=True)) for vector in (o, d)]
    return _sphere((one, one, one), *stretched)


def _tube(radius: jax.Array, o: Vec, d: Vec) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(t in, t out, hit) of an endless cylinder along z."""
    a = jnp.maximum(d[0] * d[0] + d[1] * d[1], TINY)
    off = d[0] * o[1] - d[1] * o[0]
    rest = a * (radius * radius) - off * off
    inverse = 1 / a
    middle = -(d[0] * o[0] + d[1] * o[1]) * inverse
    half = jnp.sqrt(jnp.maximum(rest, 0)) * inverse
    return middle - half, middle + half, rest > 0


def _capsule(size: Vec, o: Vec, d: Vec) -> jax.Array:
    radius, half = size[0], size[1]
    t, _, hit = _tube(radius, o, d)
    z = o[2] + t * d[2]
    end = jnp.where(z < 0, -half, half)
    ball = _sphere(size, (o[0], o[1], o[2] - end), d)
    return jnp.where(hit, jnp.where(jnp.abs(z) <= half, t, ball), MISS)


def _cylinder(size: Vec, o: Vec, d: Vec) -> jax.Array:
    first, last, hit = _tube(size[0], o, d)
    low, high = _slab(size[1], o[2], d[2])
    t = jnp.maximum(first, low)
    return jnp.where(hit & (t <= jnp.minimum(last, high)), t, MISS)


def _box(size: Vec, o: Vec, d: Vec) -> jax.Array:
    slabs = [_slab(size[axis], o[axis], d[axis]) for axis in range(3)]
    low, high = (jnp.maximum(slabs[0][0], slabs[1][0]), jnp.minimum(slabs[0][1], slabs[1][1]))
    low, high = jnp.maximum(low, slabs[2][0]), jnp.minimum(high, slabs[2][1])
    return jnp.where(low <= high, low, MISS)


def _slab(half: jax.Array, o: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(t in, t out) of the space between two planes."""
    inverse = 1 / jnp.where(jnp.abs(d) < TINY, TINY, d)
    middle, reach = -o * inverse, half * jnp.abs(inverse)
    return middle - reach, middle + reach


def normal(kind: int, size: Vec, axes: tuple[Vec, Vec, Vec], point: Vec) -> Vec:
    """Outward normal at a surface point, of any length.

    Args:
      axes: the shape's x, y and z axis, in the frame of `point`.
      point: from the shape's centre.
    """
    if kind == PLANE:
        return axes[2]
    if kind == SPHERE:
        return point
    if kind in (CAPSULE, CYLINDER):
        z = dot(point, axes[2])
        if kind == CAPSULE:
            return along(point, axes[2], -jnp.clip(z, -size[1], size[1]))
        cap = jnp.abs(z) > size[1] * (1 - EDGE)
        side = along(point, axes[2], -z)
        flat = scaled(axes[2], jnp.sign(z))
        return tuple(jnp.where(cap, f, s) for f, s in zip(flat, side, strict=True))
    places = [dot(point, axis) for axis in axes]
    if kind == ELLIPSOID:
        pulls = [place / (s * s) for place, s in zip(places, size, strict=True)]
        return along(along(scaled(axes[0], pulls[0]), axes[1], pulls[1]), axes[2], pulls[2])
    depth = [jnp.abs(place) - s for place, s in zip(places, size, strict=True)]  # 0 on the face that was hit
    signs = [jnp.sign(place) for place in places]
    on_x = (depth[0] >= depth[1]) & (depth[0] >= depth[2])
    on_y = depth[1] >= depth[2]
    faces = [scaled(axis, sign) for axis, sign in zip(axes, signs, strict=True)]
    return tuple(jnp.where(on_x, x, jnp.where(on_y, y, z)) for x, y, z in zip(*faces, strict=True))
