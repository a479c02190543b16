"""Optimisers: LaProp with adaptive gradient clipping (the default), and Adam.

All tensors are packed into one matrix, and everything works on that: a model has over a hundred tensors, and
as many kernels per operation and per norm would cost more to compile and to launch than to run.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl.config import OptConfig

WIDTH = 64  # columns of the packed matrix; tensors begin on new rows


class LaPropState(NamedTuple):
    count: jax.Array  # [] i32, updates so far
    rms: optax.Params  # second moments of the gradient, f32
    momentum: optax.Params  # first moments of the normalised gradient, f32


class OptState(NamedTuple):
    count: jax.Array  # [] i32, updates so far
    inner: optax.OptState  # of LaProp or Adam, on the packed matrix
    grad_norm: jax.Array  # [] f32, of the newest gradient, before clipping
    grad_rms: jax.Array  # [] f32
    update_rms: jax.Array  # [] f32, of the newest step
    param_rms: jax.Array  # [] f32, before it


class Packing:
    """A tree of tensors as one matrix [rows, WIDTH], each tensor padded with zeros to whole rows."""

    def __init__(self, tree: optax.Params):
        self.leaves, self.structure = jax.tree.flatten(tree)
        self.rows = [-(-leaf.size // WIDTH) for leaf in self.leaves]
        self.ends = np.cumsum(self.rows)
        self.size = sum(leaf.size for leaf in self.leaves)

    def pack(self, tree: optax.Params) -> jax.Array:
        parts = []
        for leaf, rows in zip(jax.tree.leaves(tree), self.rows, strict=True):
            parts.append(leaf.reshape(-1))
            if rest := rows * WIDTH - leaf.size:
                parts.append(jnp.zeros(rest, leaf.dtype))
        return jnp.concatenate(parts).reshape(-1, WIDTH)

    def unpack(self, matrix: jax.Array) -> optax.Params:
        vector, parts = matrix.reshape(-1), []
        for leaf, rows, end in zip(self.leaves, self.rows, self.ends.tolist(), strict=True):
            start = (end - rows) * WIDTH
            parts.append(vector[start : start + leaf.size].reshape(leaf.shape))
        return jax.tree.unflatten(self.structure, parts)

    def members(self) -> jax.Array:
        """[tensors, rows] bool: which rows are whose. Computed, not stored: it fuses into its use."""
        row, ends = jnp.arange(self.ends[-1]), jnp.asarray(self.ends)[:, None]
        return (row < ends) & (row >= ends - jnp.asarray(self.rows)[:, None])

    def squares(self, matrix: jax.Array) -> jax.Array:
        """[tensors] sum of squares of each tensor."""
        return jnp.where(self.members(), jnp.square(matrix).sum(-1), 0).sum(1)

    def by_row(self, factor: jax.Array) -> jax.Array:
        """[tensors] -> [rows, 1]: each row gets its tensor's number."""
        return jnp.where(self.members(), factor[:, None], 0).sum(0)[:, None]


def clip_by_tensor(grad_squares: jax.Array, param_squares: jax.Array, clip: float, smallest: float):
    """Factors of adaptive gradient clipping with whole-tensor norms.

        g <- g / max(1, |g| / (clip max(smallest, |p|)))

    Source: Brock et al. 2021, with one norm per tensor instead of one per unit, as in dreamerv3 opt.py.
    """
    limit = jnp.maximum(clip * jnp.maximum(smallest, jnp.sqrt(param_squares)), 1e-30)  # no 0 / 0
    return 1 / jnp.maximum(1, jnp.sqrt(grad_squares) / limit)


def scale_by_laprop(beta1: float, beta2: float, eps: float) -> optax.GradientTransformation:
    """Momentum of the normalised gradient (Adam with the two steps in the other order).

        v <- β2 v + (1 - β2) g²,       u = g / (sqrt(v / (1 - β2^t)) + eps)
        m <- β1 m + (1 - β1) u,        output m / (1 - β1^t)

    Source: Ziyin et al. 2020, "LaProp".
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return LaPropState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None):
        del params
        count = state.count + 1
        rms = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.rms, updates)
        unbias = 1 - beta2 ** count.astype(jnp.float32)
        scaled = jax.tree.map(lambda g, v: g / (jnp.sqrt(v / unbias) + eps), updates, rms)
        momentum = jax.tree.map(lambda m, u: beta1 * m + (1 - beta1) * u, state.momentum, scaled)
        unbias = 1 - beta1 ** count.astype(jnp.float32)
        return jax.tree.map(lambda m: m / unbias, momentum), LaPropState(count, rms, momentum)

    return optax.GradientTransformation(init, update)


def learning_rate(config: OptConfig) -> optax.Schedule:
    """lr by update count: linear warmup from 0, then constant or a cosine down to 10 %."""

    def schedule(count):
        rate = config.lr * jnp.minimum(1.0, count / config.warmup if config.warmup else 1.0)
        if config.anneal:
            share = jnp.clip((count - config.warmup) / max(1, config.anneal - config.warmup), 0, 1)
            rate = rate * (0.1 + 0.45 * (1 + jnp.cos(jnp.pi * share)))
        return rate

    return schedule


def make_optimizer(config: OptConfig) -> optax.GradientTransformation:
    """Clipping, LaProp or Adam, decoupled weight decay on kernels, learning rate; state: OptState."""
    rate = learning_rate(config)
    scale = scale_by_laprop if config.name == "laprop" else optax.scale_by_adam
    scale = scale(config.beta1, config.beta2, config.eps)

    def init(params):
        packing, zeros = Packing(params), [jnp.zeros(()) for _ in range(4)]
        return OptState(jnp.zeros((), jnp.int32), scale.init(packing.pack(params)), *zeros)

    def update(updates, state, params=None):
        assert params is not None
        packing = Packing(params)
        grads, weights = packing.pack(updates), packing.pack(params)
        # Of each tensor where clipping asks for it, else of all together, which is less work.
        squares = packing.squares if config.agc else sum_of_squares
        grad_squares, param_squares = squares(grads), squares(weights)
        norm = jnp.sqrt(grad_squares.sum())
        if config.agc:
            factors = clip_by_tensor(grad_squares, param_squares, config.agc, config.agc_min)
            grads = grads * packing.by_row(factors)
        if config.clip:
            left = jnp.sqrt(sum_of_squares(grads)) if config.agc else norm
            grads = grads * jnp.minimum(1, config.clip / jnp.maximum(left, 1e-20))
        step, inner = scale.update(grads, state.inner)
        step, lr = jnp.asarray(step), jnp.asarray(rate(state.count))
        if config.weight_decay:
            decayed = packing.by_row(jnp.asarray(kernels(params), jnp.float32))
            step = step + config.weight_decay * decayed * weights
        step = -lr * step
        stats = norm, rms(norm, packing), rms(jnp.linalg.norm(step), packing)
        stats = *stats, rms(jnp.sqrt(param_squares.sum()), packing)
        return packing.unpack(step), OptState(state.count + 1, inner, *stats)

    return optax.GradientTransformation(init, update)


def sum_of_squares(matrix: jax.Array) -> jax.Array:
    """[] of all elements."""
    return jnp.square(matrix).sum()


def rms(norm: jax.Array, packing: Packing) -> jax.Array:
    """Root mean square from a norm."""
    return norm / np.sqrt(packing.size)


def kernels(params: optax.Params) -> list[bool]:
    """For each tensor, whether it is a kernel (and not a bias or a scale)."""
    return [path[-1].key == "kernel" for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]


def by_path(tree: optax.Params) -> dict[str, jax.Array]:
    """Tensors by the path to them, such as dyn/core/kernel."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}
