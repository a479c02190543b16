"""Optimisers: LaProp with adaptive gradient clipping (the default), and Adam.

All tensors are packed into one matrix, and everything works on that: a model has over a hundred tensors, and
as many kernels per operation and per norm would cost more to compile and to launch than to run.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl.config import OptConfig
from jaxrl.types import Params

WIDTH = 64  # columns of the packed matrix; tensors begin on new rows


class LaPropState(NamedTuple):
    count: jax.Array  # [] i32, updates so far
    rms: jax.Array  # second moments of the gradient, f32, packed
    momentum: jax.Array  # first moments of the normalised gradient, f32, packed


Moments = LaPropState | optax.ScaleByAdamState


class OptState(NamedTuple):
    count: jax.Array  # [] i32, updates so far
    inner: Moments
    grad_norm: jax.Array  # [] f32, these four are the Stats of the newest step: checkpoints have them
    grad_rms: jax.Array
    update_rms: jax.Array
    param_rms: jax.Array


class Stats(NamedTuple):
    """Of one update, whether it was made or not; each [] f32."""

    grad_norm: jax.Array  # before clipping
    grad_rms: jax.Array
    update_rms: jax.Array  # of the step; NaN if there was none
    param_rms: jax.Array  # before it with clipping by tensor or decay, after it with neither


class Descent(NamedTuple):
    """What one update made."""

    params: Params
    state: OptState
    made: jax.Array  # [] bool, whether there was a step; if not, params and state are as they were
    stats: Stats


class Optimizer(NamedTuple):
    """Descends. Whether it may is decided inside, where it costs no pass over the state to hold still."""

    init: Callable[[Params], OptState]
    # (gradients, state, params, proceed [] bool) -> Descent; no step if gradients are not finite, either
    descend: Callable[[Params, OptState, Params, jax.Array], Descent]


class Scale(NamedTuple):
    """Makes directions of gradients; all are packed."""

    init: Callable[[jax.Array], Moments]
    # (gradients, moments, made [] bool) -> (direction, moments); if not made, gradients are 0
    scale: Callable[[jax.Array, Moments, jax.Array], tuple[jax.Array, Moments]]


class Packing:
    """A tree of tensors as one matrix [rows, WIDTH], each tensor padded with zeros to whole rows."""

    def __init__(self, tree: Params):
        self.leaves, self.structure = jax.tree.flatten(tree)
        self.rows = [-(-leaf.size // WIDTH) for leaf in self.leaves]
        self.ends = np.cumsum(self.rows)
        self.size = sum(leaf.size for leaf in self.leaves)

    def pack(self, tree: Params) -> jax.Array:
        parts = []
        for leaf, rows in zip(jax.tree.leaves(tree), self.rows, strict=True):
            parts.append(leaf.reshape(-1))
            if rest := rows * WIDTH - leaf.size:
                parts.append(jnp.zeros(rest, leaf.dtype))
        return jnp.concatenate(parts).reshape(-1, WIDTH)

    def unpack(self, matrix: jax.Array) -> Params:
        vector, parts = matrix.reshape(-1), []
        for leaf, rows, end in zip(self.leaves, self.rows, self.ends.tolist(), strict=True):
            start = (end - rows) * WIDTH
            parts.append(vector[start : start + leaf.size].reshape(leaf.shape))
        return jax.tree.unflatten(self.structure, parts)

    def members(self) -> jax.Array:
        """[tensors, rows] bool: which rows are whose. Computed, not stored: it fuses into its use."""
        row, ends = jnp.arange(self.ends[-1]), jnp.asarray(self.ends)[:, None]
        return (row < ends) & (row >= ends - jnp.asarray(self.rows)[:, None])

    def rms(self, norm: jax.Array) -> jax.Array:
        """Root mean square of a tree, from its norm."""
        return norm / np.sqrt(self.size)

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


def laprop(config: OptConfig) -> Scale:
    """Momentum of the normalised gradient (Adam with the two steps in the other order).

        v <- β2 v + (1 - β2) g²,       u = g / (sqrt(v / (1 - β2^t)) + eps)
        m <- β1 m + (1 - β1) u,        output m / (1 - β1^t)

    Source: Ziyin et al. 2020, "LaProp".
    """

    def init(matrix):
        return LaPropState(jnp.zeros((), jnp.int32), jnp.zeros_like(matrix), jnp.zeros_like(matrix))

    def scale(g, state, made):
        t = (state.count + 1).astype(jnp.float32)
        v = averaged(state.rms, jnp.square(g), config.beta2, made)
        u = g / (jnp.sqrt(v / (1 - config.beta2**t)) + config.eps)
        m = averaged(state.momentum, u, config.beta1, made)
        return m / (1 - config.beta1**t), LaPropState(state.count + made, v, m)

    return Scale(init, scale)


def adam(config: OptConfig) -> Scale:
    """First moment by the root of the second.

        m <- β1 m + (1 - β1) g,        v <- β2 v + (1 - β2) g²
        output m / (1 - β1^t) / (sqrt(v / (1 - β2^t)) + eps)

    Source: Kingma and Ba 2015, "Adam"; the state is that of optax.
    """

    def init(matrix):
        zeros = jnp.zeros_like(matrix), jnp.zeros_like(matrix)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), *zeros)

    def scale(g, state, made):
        t = (state.count + 1).astype(jnp.float32)
        m = averaged(state.mu, g, config.beta1, made)
        v = averaged(state.nu, jnp.square(g), config.beta2, made)
        direction = m / (1 - config.beta1**t) / (jnp.sqrt(v / (1 - config.beta2**t)) + config.eps)
        return direction, optax.ScaleByAdamState(state.count + made, m, v)

    return Scale(init, scale)


def averaged(mean: jax.Array, new: jax.Array, beta: float, made: jax.Array) -> jax.Array:
    """mean β + new (1 - β), or the mean as it is if not `made`; then `new` is 0."""
    return jnp.where(made, beta, 1) * mean + (1 - beta) * new


def learning_rate(config: OptConfig) -> optax.Schedule:
    """lr by update count: linear warmup from 0, then constant or a cosine down to 10 %."""

    def schedule(count):
        rate = config.lr * jnp.minimum(1.0, count / config.warmup if config.warmup else 1.0)
        if config.anneal:
            share = jnp.clip((count - config.warmup) / max(1, config.anneal - config.warmup), 0, 1)
            rate = rate * (0.1 + 0.45 * (1 + jnp.cos(jnp.pi * share)))
        return rate

    return schedule


def make_optimizer(config: OptConfig) -> Optimizer:
    """Clipping, LaProp or Adam, decoupled weight decay on kernels, learning rate."""
    rate = learning_rate(config)
    scale = (laprop if config.name == "laprop" else adam)(config)

    def init(params):
        packing, zeros = Packing(params), [jnp.zeros(()) for _ in range(4)]
        return OptState(jnp.zeros((), jnp.int32), scale.init(packing.pack(params)), *zeros)

    def descend(grads, state, params, proceed):
        packing = Packing(params)
        grads = packing.pack(grads)
        weights = packing.pack(params)  # which clipping by tensor and decay use
        # Of each tensor where clipping asks for it, else of all together, which is less work.
        squares = packing.squares if config.agc else sum_of_squares
        grad_squares = squares(grads)
        norm = jnp.sqrt(grad_squares.sum())
        made = proceed & jnp.isfinite(norm)
        if config.agc:
            factors = clip_by_tensor(grad_squares, squares(weights), config.agc, config.agc_min)
            grads = grads * packing.by_row(factors)
        if config.clip:
            left = jnp.sqrt(sum_of_squares(grads)) if config.agc else norm
            grads = grads * jnp.minimum(1, config.clip / jnp.maximum(left, 1e-20))
        direction, inner = scale.scale(jnp.where(made, grads, 0), state.inner, made)
        if config.weight_decay:
            decayed = packing.by_row(jnp.asarray(kernels(params), jnp.float32))
            direction = direction + config.weight_decay * decayed * weights
        lr = jnp.where(made, rate(state.count), 0)
        moved = jax.tree.map(lambda p, d: p - lr * d, params, packing.unpack(direction))
        # Where parameters are packed, their norm is that before: after, it would be a kernel for each tensor
        # on a GPU. Elsewhere it is that after: before, XLA:CPU would keep a copy of them.
        packed = config.agc > 0 or config.weight_decay > 0
        size = squares(weights).sum() if packed else sum(map(sum_of_squares, jax.tree.leaves(moved)))
        stats = Stats(
            grad_norm=norm,
            grad_rms=packing.rms(norm),
            # Of the direction: for the step itself XLA would write another array.
            update_rms=jnp.where(made, lr * packing.rms(jnp.sqrt(sum_of_squares(direction))), jnp.nan),
            param_rms=packing.rms(jnp.sqrt(size)),
        )
        kept = [jnp.where(made, a, b) for a, b in zip(stats, state[2:], strict=True)]
        return Descent(moved, OptState(state.count + made, inner, *kept), made, stats)

    return Optimizer(init, descend)


def sum_of_squares(matrix: jax.Array) -> jax.Array:
    """[] of all elements."""
    return jnp.square(matrix).sum()


def kernels(params: Params) -> list[bool]:
    """For each tensor, whether it is a kernel (and not a bias or a scale)."""
    return [path[-1].key == "kernel" for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]


def by_path(tree: Params) -> dict[str, jax.Array]:
    """Tensors by the path to them, such as dyn/core/kernel."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}
