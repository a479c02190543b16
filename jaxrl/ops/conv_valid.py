"""The encoder of DrQ-v2, four 3x3 convolutions without padding, and the form of it that XLA:CPU runs fast.

Nothing here changes a parameter, an output or a gradient but by rounding. On a CPU (jax 0.10.2, one core,
32 channels at 41x41, GFLOP/s plain / ours; `benchmarks.updates_drq` times the whole update):

* *Padding.* Convolutions without padding are slow, 29 / 160: the image gets a border of zeros, and the
  outputs that saw it are cut off, a tenth more products. The first one, of stride 2, becomes a 2x2
  convolution of the image folded to [h/2, w/2, 4c], 18 / 51: 1.8 times the products.
* *One image at a time*, unless all are small: 256 images make 50 MB per layer, memory that is asked of the
  system anew in each update, for more time than the products take. So each goes through all layers while it
  is in the cache; for the gradient its way is computed again, which costs less than to remember it.
* *Kernel gradient by patches*, 25 / 60, as in `jaxrl.ops.conv`.

Other backends keep the plain form.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.ops.conv import DIMENSIONS, fold

STRIDES = (2, 1, 1, 1)
SMALLEST = 15  # side of the smallest image that they leave something of
TOGETHER = 3 << 20  # bytes of the first layer's output up to which all images go through the layers at once


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
    n, h, w, _ = images.shape
    size = n * ((h - 1) // 2) * ((w - 1) // 2) * layers[0].bias.nbytes
    cpu = _encode_together if size <= TOGETHER else _encode_apart
    return jax.lax.platform_dependent(images, layers, cpu=cpu, default=plain)


def plain(images: jax.Array, layers: list[Layer]) -> jax.Array:
    """`encode` as its definition says it."""
    x = _scaled(jax.lax.stop_gradient(images), layers[0].kernel.dtype)
    for stride, (kernel, bias) in zip(STRIDES, layers, strict=True):
        steps = (stride, stride)
        x = jax.lax.conv_general_dilated(x, kernel, steps, "VALID", dimension_numbers=DIMENSIONS)
        x = jax.nn.relu(x + bias)
    return x


def _scaled(images: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return (images.astype(jnp.float32) / 255 - 0.5).astype(dtype)


def _encode_together(images: jax.Array, layers: list[Layer]) -> jax.Array:
    return _forward(jax.lax.stop_gradient(images), layers)[-1]


@jax.custom_vjp
def _encode_apart(images: jax.Array, layers: list[Layer]) -> jax.Array:
    return jax.lax.map(lambda image: _forward(image[None], layers)[-1][0], images)


def _encode_apart_forward(images, layers):
    return _encode_apart(images, layers), (images, layers)


def _encode_apart_backward(residuals, dy):
    images, layers = residuals

    def add(total, one):
        image, dy = one[0][None], one[1][None]
        outputs = _forward(image, layers)
        inputs = [_scaled(image, dy.dtype), *outputs[:-1]]
        grads = []
        for i in reversed(range(len(layers))):
            dy = jnp.where(outputs[i] > 0, dy, 0)
            bias = dy.astype(jnp.float32).sum((0, 1, 2))
            grads.append(Layer(_kernel_gradient(inputs[i][0], dy[0], STRIDES[i]), bias))
            if i:
                dy = _input_gradient(dy, layers[i].kernel)
        return jax.tree.map(jnp.add, total, grads[::-1]), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), layers)
    grads, _ = jax.lax.scan(add, zeros, (images, dy))
    grads = jax.tree.map(lambda g, x: g.astype(x.dtype), grads, layers)
    if jnp.issubdtype(images.dtype, jnp.floating):
        return jnp.zeros_like(images), grads
    return np.zeros(images.shape, jax.dtypes.float0), grads


_encode_apart.defvjp(_encode_apart_forward, _encode_apart_backward)


def _forward(images: jax.Array, layers: list[Layer]) -> list[jax.Array]:
    """The outputs of all layers."""
    first, *rest = layers
    outputs = [jax.nn.relu(_folded(images, first.kernel) + first.bias)]
    for kernel, bias in rest:
        x = jax.lax.conv_general_dilated(outputs[-1], kernel, (1, 1), "SAME", dimension_numbers=DIMENSIONS)
        outputs.append(jax.nn.relu(x[:, 1:-1, 1:-1] + bias))
    return outputs


def _folded(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """The first convolution, of pixels; its fourth row and column of taps are zeros."""
    n, h, w, c = images.shape
    x = fold(jnp.pad(images, ((0, 0), (0, h % 2), (0, w % 2), (0, 0))))  # as bytes: a quarter to move
    taps = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0))).reshape(2, 2, 2, 2, c, -1)
    taps = taps.transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, 4 * c, -1)
    x = jax.lax.conv_general_dilated(
        _scaled(x, kernel.dtype), taps, (1, 1), ((0, 1), (0, 1)), dimension_numbers=DIMENSIONS
    )
    return x[:, : (h - 1) // 2, : (w - 1) // 2]


def _input_gradient(dy: jax.Array, kernel: jax.Array) -> jax.Array:
    """Of a convolution of stride 1: one of the gradient, padded, with the kernel turned around."""
    flipped = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
    return jax.lax.conv_general_dilated(dy, flipped, (1, 1), ((2, 2), (2, 2)), dimension_numbers=DIMENSIONS)


def _kernel_gradient(x: jax.Array, dy: jax.Array, stride: int) -> jax.Array:
    """[3, 3, c_in, c_out] f32, of one image [h, w, c_in]: patches times gradients [h', w', c_out]."""
    h, w, c_out = dy.shape
    rows, columns, c_in = stride * (h - 1) + 1, stride * (w - 1) + 1, x.shape[-1]
    views = [x[i : i + rows : stride, j : j + columns : stride] for i in range(3) for j in range(3)]
    patches = jnp.concatenate(views, -1).reshape(-1, 9 * c_in)
    total = jnp.matmul(patches.T, dy.reshape(-1, c_out), preferred_element_type=jnp.float32)
    return total.reshape(3, 3, c_in, c_out)
