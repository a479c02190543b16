"""Soft indicators that rewards are products and means of, each in [0, 1].

Source: Tassa et al. 2018, "DeepMind Control Suite", section 2.2: how far a number is from an interval,
measured in margins, through a function that falls from 1 to a given value at one margin.
"""

import math

import jax
import jax.numpy as jnp


def gaussian(x: jax.Array, margin: float, at_margin: float = 0.1) -> jax.Array:
    """1 at x = 0, `at_margin` at |x| = margin, the bell curve between and beyond."""
    return jnp.exp(math.log(at_margin) * jnp.square(x / margin))


def quadratic(x: jax.Array, margin: float) -> jax.Array:
    """1 at x = 0, 0 from |x| = margin, a parabola between."""
    return jnp.maximum(1 - jnp.square(x / margin), 0)


def ramp(x: jax.Array, low: float, high: float) -> jax.Array:
    """0 up to `low`, 1 from `high`, a straight line between."""
    return jnp.clip((x - low) / (high - low), 0, 1)
