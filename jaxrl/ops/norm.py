"""RMS normalisation, with a gradient in closed form.

Differentiated as it comes, the gradient is three passes with two full-size f32 results between them. In
closed form it is one, which XLA compiles to one GPU kernel; of the forward pass it needs the input as it was
and one number per row.
"""

import jax
import jax.numpy as jnp

EPSILON = 1e-4  # added to the mean square


@jax.custom_vjp
def rms_normalize(x: jax.Array) -> jax.Array:
    """x / sqrt(mean(x²) + 1e-4) over the last axis: [..., C] of any floating type -> [..., C] f32."""
    x = x.astype(jnp.float32)
    return x * _inverse(x)


def _inverse(x):
    return jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPSILON)


def _forward(x):
    wide = x.astype(jnp.float32)
    inverse = _inverse(wide)
    return wide * inverse, (x, inverse)


def _backward(residuals, gradient):
    x, inverse = residuals
    y = x.astype(jnp.float32) * inverse
    both = y * gradient
    # A row and its mean meet in one operation: the pattern that XLA:GPU makes one kernel of.
    mean = 0 * both + both.mean(-1, keepdims=True)
    return (((gradient - y * mean) * inverse).astype(x.dtype),)


rms_normalize.defvjp(_forward, _backward)
