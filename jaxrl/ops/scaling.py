"""symlog, symexp, and the two-hot code of a scalar over exponentially spaced bins."""

import jax
import jax.numpy as jnp
import numpy as np


def symlog(x: jax.Array) -> jax.Array:
    """sign(x) ln(1 + |x|)."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: jax.Array) -> jax.Array:
    """sign(x) (exp|x| - 1), the inverse of `symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


def symexp_bins(count: int) -> np.ndarray:
    """[count] f32: symexp of [-20, 20] equally spaced, an exact 0 in the middle, exactly antisymmetric.

    Raises:
      ValueError: if `count` is even or below 3.
    """
    if count % 2 == 0 or count < 3:
        raise ValueError(f"bins={count} must be odd and at least 3, so that one bin is exactly 0")
    half = np.linspace(-20, 0, count // 2 + 1, dtype=np.float32)
    half = np.sign(half) * np.expm1(np.abs(half))
    return np.concatenate([half, -half[:-1][::-1]])


def twohot(x: jax.Array, bins: jax.Array) -> jax.Array:
    """Weights on the two bins around x, such that their mean is x; x is clipped to the outer bins.

        w_k = (b_{k+1} - x) / (b_{k+1} - b_k),  w_{k+1} = 1 - w_k,  b_k <= x <= b_{k+1}

    Args:
      x: [...] f32, in raw (unsquashed) units.
      bins: [K] f32, increasing.

    Returns:
      [..., K] f32, non-negative, sums to 1.
    """
    bins = jnp.asarray(bins)
    x = jnp.clip(x, bins[0], bins[-1])
    low = jnp.clip((bins <= x[..., None]).sum(-1) - 1, 0, len(bins) - 2)
    share = (x - bins[low]) / (bins[low + 1] - bins[low])
    index = jnp.arange(len(bins))
    at_low = (index == low[..., None]) * (1 - share)[..., None]
    return at_low + (index == low[..., None] + 1) * share[..., None]


def twohot_mean(logits: jax.Array, bins: jax.Array) -> jax.Array:
    """Expected value of softmax(logits) over antisymmetric bins.

    Each bin is added to its mirror image before the sum, so that equal logits give exactly 0.

    Args:
      logits: [..., K] f32, K odd. bins: [K] f32, b_k = -b_{K-1-k}.

    Returns:
      [...] f32.
    """
    half = logits.shape[-1] // 2
    probs = jax.nn.softmax(logits)
    pairs = probs[..., half + 1 :] - probs[..., :half][..., ::-1]
    return (pairs * bins[half + 1 :]).sum(-1)
