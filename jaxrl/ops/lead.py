"""Leading axes as one, for what works on rows one by one.

Sequence after sequence, [T, B, ...] -> [B T, ...]: so what is divided over devices along B stays divided, and
no row has to go from one device to another.
"""

import math

import jax


def joined(x: jax.Array, axes: int) -> jax.Array:
    """The first `axes` axes as one, the last of them outermost. `apart` undoes it."""
    lead, rest = x.shape[:axes], x.shape[axes:]
    order = (*range(axes - 1, -1, -1), *range(axes, x.ndim))
    return x.transpose(order).reshape(math.prod(lead), *rest)


def apart(x: jax.Array, lead: tuple[int, ...]) -> jax.Array:
    """[prod(lead), ...] of `joined` -> [*lead, ...]."""
    axes = len(lead)
    x = x.reshape(*lead[::-1], *x.shape[1:])
    return x.transpose((*range(axes - 1, -1, -1), *range(axes, x.ndim)))
