"""Categorical and bounded normal distributions as functions of their parameters. All in float32."""

import jax
import jax.numpy as jnp
import numpy as np

STD_BOUNDS = (0.1, 1.0)  # of `bounded_normal`
NEVER = -1e9  # logit of what must not be drawn; 0 * NEVER is 0, as in an entropy


def mix_uniform(logits: jax.Array, share: float, allowed: jax.Array | None = None) -> jax.Array:
    """Log-probabilities of (1 - share) softmax(logits) + share / C, over the last axis.

    Args:
      allowed: [C] bool; others have a probability of 0 (and a finite logarithm), and C does not count them.
    """
    if allowed is not None:
        logits = jnp.where(allowed, logits, NEVER)
    if share == 0:
        return jax.nn.log_softmax(logits)
    uniform = 1 / logits.shape[-1] if allowed is None else allowed / allowed.sum()
    probs = (1 - share) * jax.nn.softmax(logits) + share * uniform
    return jnp.log(probs if allowed is None else jnp.maximum(probs, jnp.finfo(probs.dtype).tiny))


def gumbel_onehot(log_probs: jax.Array, gumbel: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """Sample of a categorical as one-hot, [..., C]; `gumbel` is standard Gumbel noise of that shape.

    In `dtype`, or that of log_probs.
    """
    score, index = log_probs + gumbel, jnp.arange(log_probs.shape[-1])
    # The first of the largest, as argmax; in rows and their reductions, which XLA:GPU makes one kernel of.
    first = jnp.where(score == score.max(-1, keepdims=True), index, index.size).min(-1, keepdims=True)
    # Made once, whatever it goes into: XLA would rather write the index, and read that in a kernel more.
    return jax.lax.optimization_barrier((index == first).astype(dtype or log_probs.dtype))


@jax.custom_jvp
def straight_through(onehot: jax.Array, log_probs: jax.Array) -> jax.Array:
    """onehot, exactly, with the gradient of the probabilities."""
    del log_probs
    return onehot


@straight_through.defjvp
def _straight_through_jvp(primals, tangents):
    return primals[0], (jnp.exp(primals[1]) * tangents[1]).astype(primals[0].dtype)


def categorical_kl(p: jax.Array, q: jax.Array) -> jax.Array:
    """KL(p || q) of log-probabilities [..., S, C], summed over S variables: [...]."""
    return (jnp.exp(p) * (p - q)).sum((-2, -1))


def categorical_entropy(log_probs: jax.Array) -> jax.Array:
    """Entropy in nats over the last axis."""
    return -(jnp.exp(log_probs) * log_probs).sum(-1)


def log_prob_of(log_probs: jax.Array, action: jax.Array) -> jax.Array:
    """log p(action), [...], of log-probabilities [..., A] and i32 actions [...]."""
    chosen = jnp.arange(log_probs.shape[-1]) == action[..., None]
    return jnp.where(chosen, log_probs, 0).sum(-1)


def bounded_normal(raw: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of a normal from raw outputs.

        mean = tanh(m),  std = 0.1 + 0.9 sigmoid(s + 2)

    Args:
      raw: [..., 2A], m first.

    Returns:
      mean [..., A] in (-1, 1) and std [..., A] in (0.1, 1).

    Source: dreamerv3 embodied/jax/heads.py, `bounded_normal`.
    """
    mean, std = jnp.split(raw, 2, -1)
    low, high = STD_BOUNDS
    return jnp.tanh(mean), low + (high - low) * jax.nn.sigmoid(std + 2)


def normal_log_prob(mean: jax.Array, std: jax.Array, x: jax.Array) -> jax.Array:
    """log p(x), summed over the last axis."""
    z = (x - mean) / std
    return (-0.5 * z**2 - jnp.log(std) - 0.5 * np.log(2 * np.pi)).sum(-1)


def normal_entropy(std: jax.Array) -> jax.Array:
    """Entropy in nats, summed over the last axis."""
    return (jnp.log(std) + 0.5 * np.log(2 * np.pi * np.e)).sum(-1)


def binary_cross_entropy(logit: jax.Array, target: jax.Array) -> jax.Array:
    """-t ln σ(l) - (1 - t) ln σ(-l), for targets in [0, 1]."""
    return jax.nn.softplus(logit) - target * logit
