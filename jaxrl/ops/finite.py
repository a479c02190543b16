"""Which arrays hold numbers that are not finite."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WIDTH = 64  # columns of the matrix that small arrays are packed into
LARGE = 1 << 20  # elements from which on an array has a reduction of its own


def named_floats(tree: Any) -> dict[str, Any]:
    """The floating leaves of a tree, those of size 0 left out, by dotted name and sorted by it."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}
    return {k: x for k, x in sorted(named.items()) if jnp.issubdtype(x.dtype, jnp.floating) and x.size}


def all_finite(*arrays: jax.Array) -> jax.Array:
    """[L] bool, for each of L floating arrays of any shape whether all of its elements are finite.

    Small ones are judged together, in a matrix where each has rows of its own: a reduction for each of the
    hundreds of tensors of a model would take six times as long to compile.
    """
    alone = [i for i, x in enumerate(arrays) if x.size >= LARGE]
    order, found = [*alone], [jnp.isfinite(arrays[i]).all()[None] for i in alone]
    for dtype in dict.fromkeys(x.dtype for x in arrays):
        together = [i for i, x in enumerate(arrays) if x.size < LARGE and x.dtype == dtype]
        if together:
            order += together
            found.append(rows_are_finite([arrays[i] for i in together]))
    return jnp.concatenate([jnp.zeros(0, bool), *found])[np.argsort(order).astype(int)]


def rows_are_finite(arrays: Sequence[jax.Array]) -> jax.Array:
    """The same for arrays of one dtype, of which there is at least one."""
    parts = []
    for x in arrays:
        parts.append(x.reshape(-1))
        if rest := -x.size % WIDTH:
            parts.append(jnp.zeros(rest, x.dtype))
    rows = jnp.isfinite(jnp.concatenate(parts).reshape(-1, WIDTH)).all(1)
    ends = np.cumsum([-(-x.size // WIDTH) for x in arrays])
    bad = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(~rows)])[np.concatenate([[0], ends])]
    return bad[1:] == bad[:-1]
