"""Optimisers: LaProp with adaptive gradient clipping (the default), and Adam, as optax transformations."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl.config import OptConfig


class LaPropState(NamedTuple):
    count: jax.Array  # [] i32, updates so far
    rms: optax.Params  # second moments of the gradient, f32
    momentum: optax.Params  # first moments of the normalised gradient, f32


def clip_by_tensor(clip: float, smallest: float) -> optax.GradientTransformation:
    """Adaptive gradient clipping with whole-tensor norms.

        g <- g / max(1, |g| / (clip max(smallest, |p|)))

    Source: Brock et al. 2021, with one norm per tensor instead of one per unit, as in dreamerv3 opt.py.
    """

    def clip_one(g, p):
        limit = clip * jnp.maximum(smallest, jnp.linalg.norm(p.reshape(-1)))
        return g / jnp.maximum(1, jnp.linalg.norm(g.reshape(-1)) / limit)

    def update(updates, state, params=None):
        return jax.tree.map(clip_one, updates, params), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


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
    """Clipping, LaProp or Adam, decoupled weight decay on kernels, learning rate."""
    steps = []
    if config.agc:
        steps.append(clip_by_tensor(config.agc, config.agc_min))
    if config.clip:
        steps.append(optax.clip_by_global_norm(config.clip))
    if config.name == "laprop":
        steps.append(scale_by_laprop(config.beta1, config.beta2, config.eps))
    else:
        steps.append(optax.scale_by_adam(config.beta1, config.beta2, config.eps))
    if config.weight_decay:
        steps.append(optax.add_decayed_weights(config.weight_decay, mask=kernels))
    return optax.chain(*steps, optax.scale_by_learning_rate(learning_rate(config)))


def kernels(params: optax.Params) -> optax.Params:
    """Mask of the leaves named `kernel`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
