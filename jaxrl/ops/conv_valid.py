"""The encoder of DrQ-v2, four 3x3 convolutions without padding, and a gradient that XLA:CPU runs fast.

XLA's own kernel gradients turn the whole batch around, to [h, w, n, c], which no cache holds. Here they are
matrix products of a few images at a time, while these are in the cache. That of stride 1,

    dK[i, j] = sum over p, q of x[p + i, q + j]^T dy[p, q],

is one product for all i and j, of x at three shifts in columns, [.., 3 c_in], and dy at three in rows,
[.., 3 c_out]: but for two rows of zeros, the multiplications of patches, [.., 9 c_in], and a third of the
memory to write. GFLOP/s of XLA's / ours on two cores, 32 channels at 41x41: 64 images 85 / 94, 256 images
48 / 91.

Nothing here changes a parameter, an output or a gradient but by rounding. Other backends keep XLA's form.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.ops.conv import DIMENSIONS

STRIDES = (2, 1, 1, 1)
SMALLEST = 15  # side of the smallest image that they leave something of
TOGETHER = 8  # images whose products are made side by side: for each core or device some
CACHE = 1 << 20  # bytes; of so many, all images are


class Layer(NamedTuple):
    """Weights of one convolution."""

    kernel: jax.Array  # [3, 3, c_in, c_out]
    bias: jax.Array  # [c_out]


def encode(images: jax.Array, layers: list[Layer]) -> jax.Array:
    """Pixels x to x / 255 - 1/2, then four convolutions, each with ReLU, the first of stride 2.

    Args:
      images: [n, h, w, c], any dtype, 0..255. No gradient flows to them.
      layers: weights, all of the dtype to compute in.

    Returns:
      [n, h', w', c_out], dtype of the weights; h' = (h - 1) // 2 - 6.
    """
    return jax.lax.platform_dependent(images, layers, cpu=_encode, default=plain)


def plain(images: jax.Array, layers: list[Layer]) -> jax.Array:
    """`encode` as its definition says it."""
    return _outputs(jax.lax.stop_gradient(images), layers)[-1]


def _outputs(images: jax.Array, layers: list[Layer]) -> list[jax.Array]:
    """Of all layers."""
    x, outputs = _scaled(images, layers[0].kernel.dtype), []
    for stride, (kernel, bias) in zip(STRIDES, layers, strict=True):
        steps = (stride, stride)
        x = jax.lax.conv_general_dilated(x, kernel, steps, "VALID", dimension_numbers=DIMENSIONS)
        x = jax.nn.relu(x + bias)
        outputs.append(x)
    return outputs


def _scaled(images: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return (images.astype(jnp.float32) / 255 - 0.5).astype(dtype)


@jax.custom_vjp
def _encode(images: jax.Array, layers: list[Layer]) -> jax.Array:
    return plain(images, layers)


def _encode_forward(images, layers):
    outputs = _outputs(images, layers)
    return outputs[-1], (images, layers, outputs)


def _encode_backward(residuals, dy):
    images, layers, outputs = residuals
    grads = []
    for i in reversed(range(len(layers))):
        dy = jnp.where(outputs[i] > 0, dy, 0)
        kernel = _kernel_gradient(outputs[i - 1], dy) if i else _first_kernel_gradient(images, dy)
        bias = dy.astype(jnp.float32).sum((0, 1, 2))
        grads.append(Layer(kernel.astype(dy.dtype), bias.astype(dy.dtype)))
        if i:
            dy = _input_gradient(dy, layers[i].kernel)
    if jnp.issubdtype(images.dtype, jnp.floating):
        return jnp.zeros_like(images), grads[::-1]
    return np.zeros(images.shape, jax.dtypes.float0), grads[::-1]


_encode.defvjp(_encode_forward, _encode_backward)


def _input_gradient(dy: jax.Array, kernel: jax.Array) -> jax.Array:
    """Of a convolution of stride 1: one of the gradient, padded, with the kernel turned around."""
    flipped = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
    return jax.lax.conv_general_dilated(dy, flipped, (1, 1), ((2, 2), (2, 2)), dimension_numbers=DIMENSIONS)


def _kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """[3, 3, c_in, c_out] f32 of stride 1, from x [n, h + 2, w + 2, c_in] and dy [n, h, w, c_out]."""
    w, c_in, c_out = dy.shape[2], x.shape[-1], dy.shape[-1]

    def factors(x, dy):
        rows = [jnp.pad(dy, ((0, 0), (i, 2 - i), (0, 0), (0, 0))) for i in range(3)]
        return [x[:, :, j : j + w] for j in range(3)], rows

    return (
        _sum_of_products(factors, x, dy, (3 * c_in, 3 * c_out))
        .reshape(3, c_in, 3, c_out)
        .transpose(2, 0, 1, 3)
    )


def _first_kernel_gradient(images: jax.Array, dy: jax.Array) -> jax.Array:
    """[3, 3, c_in, c_out] f32 of stride 2, from pixels [n, h, w, c_in]; by patches, as channels are few."""
    _, h, w, c_out = dy.shape
    c_in = images.shape[-1]

    def factors(x, dy):
        x = _scaled(x, dy.dtype)
        patches = [x[:, i : i + 2 * h - 1 : 2, j : j + 2 * w - 1 : 2] for i in range(3) for j in range(3)]
        return patches, [dy]

    return _sum_of_products(factors, images, dy, (9 * c_in, c_out)).reshape(3, 3, c_in, c_out)


def _sum_of_products(factors: Callable, x: jax.Array, dy: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Sum over images and pixels of a^T b, `shape` f32, where a, b = factors(x, dy).

    `factors` makes of some images, [m, ...] each, two lists of arrays [m, h, w, c], to be put side by side.
    """
    few = len(x) if x.nbytes + dy.nbytes <= CACHE else math.gcd(len(x), TOGETHER)
    # The images of a step are far apart: where devices divide the batch, each has its share of every step.
    x, dy = (x.reshape(few, -1, *x.shape[1:]) for x in (x, dy))

    def add(total, i):
        ones = (jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False) for x in (x, dy))
        a, b = (jnp.concatenate(parts, -1) for parts in factors(*ones))
        a, b = (x.reshape(few, -1, x.shape[-1]) for x in (a, b))
        return total + jnp.einsum("npi,npj->nij", a, b, preferred_element_type=jnp.float32), None

    return jax.lax.scan(add, jnp.zeros((few, *shape), jnp.float32), jnp.arange(x.shape[1]))[0].sum(0)
