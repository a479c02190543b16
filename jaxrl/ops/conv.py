"""Convolutions of the image encoder and decoder, rewritten exactly so that they run fast.

Three identities are used; none of them changes a parameter, a count or a gradient:

* *Phases, decoder.* Nearest x2 upsampling followed by a 5x5 SAME convolution equals, for each of the
  four output phases (even or odd row and column), a 3x3 convolution of the small image with
  summed taps: 9 instead of 25 products per output and no upsampled tensor in memory.
* *Phases, encoder.* A 5x5 SAME convolution followed by 2x2 pooling needs its output only
  phase by phase. On an image folded to [h/2, w/2, 4c] it is one 3x3 convolution to 4 phases
  (zero-padded taps, 1.44x the products), and the pooling is a maximum over four channel groups.
  It pays where the channels are few, which is where convolutions are least efficient.
* *Kernel gradient by patches.* For kernel gradients XLA:CPU turns the whole batch around in memory; as
  matrix products of patches that fit the cache those of 3x3 kernels are faster. Other backends keep their
  own convolution.
"""

import functools
import math

import jax
import jax.numpy as jnp

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
PATCHES_FROM = 1024  # pixels per image; smaller images are faster with XLA:CPU's own gradient
PATCHES_TO = 3  # side of the kernel; of a 5x5 one, patches are 25 times the image
PATCH_ROWS = 4096  # pixels per patch matrix: 1.7 MB at 108 columns, so that it stays in the cache


def conv_same(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Stride-1 SAME convolution.

    Args:
      x: [n, h, w, c_in].
      kernel: [k, k, c_in, c_out], k odd, same dtype as x.

    Returns:
      [n, h, w, c_out], dtype of x.
    """
    return jax.lax.platform_dependent(x, kernel, cpu=_conv_cpu, default=_conv)


def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=DIMENSIONS)


@jax.custom_vjp
def _conv_cpu(x, kernel):
    return _conv(x, kernel)


def _conv_cpu_forward(x, kernel):
    return _conv(x, kernel), (x, kernel)


def _conv_cpu_backward(residuals, dy):
    x, kernel = residuals
    if x.shape[1] * x.shape[2] < PATCHES_FROM or kernel.shape[0] > PATCHES_TO:
        return jax.vjp(_conv, x, kernel)[1](dy)
    flipped = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
    return _conv(dy, flipped), kernel_gradient(x, dy, kernel.shape[0])


_conv_cpu.defvjp(_conv_cpu_forward, _conv_cpu_backward)


def kernel_gradient(x: jax.Array, dy: jax.Array, k: int) -> jax.Array:
    """Gradient of a SAME convolution in its kernel: patches times gradients, a few images at a time.

    Args:
      x: [n, h, w, c_in] input of the convolution.
      dy: [n, h, w, c_out] gradient of its output.
      k: kernel side, odd.

    Returns:
      [k, k, c_in, c_out].
    """
    n, h, w, c_in = x.shape
    c_out = dy.shape[-1]
    images = math.gcd(n, max(1, PATCH_ROWS // (h * w)))
    padded = jnp.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))

    def add(total, start):
        part = jax.lax.dynamic_slice_in_dim(padded, start, images)
        patches = [part[:, i : i + h, j : j + w] for i in range(k) for j in range(k)]
        patches = jnp.concatenate(patches, -1).reshape(-1, k * k * c_in)
        grads = jax.lax.dynamic_slice_in_dim(dy, start, images).reshape(-1, c_out)
        return total + jnp.matmul(patches.T, grads, preferred_element_type=jnp.float32), None

    zeros = jnp.zeros((k * k * c_in, c_out), jnp.float32)  # one rounding at the end, as XLA's own gradient
    total, _ = jax.lax.scan(add, zeros, jnp.arange(0, n, images))
    return total.astype(x.dtype).reshape(k, k, c_in, c_out)


def fold(x: jax.Array) -> jax.Array:
    """[n, h, w, c] -> [n, h/2, w/2, 4c]; channel order (row phase, column phase, c)."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // 2, 2, w // 2, 2, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h // 2, w // 2, 4 * c)


def unfold(x: jax.Array) -> jax.Array:
    """[n, h, w, 4c] -> [n, 2h, 2w, c], the inverse of `fold`."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, 2, 2, c // 4)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, c // 4)


def conv_pool(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """5x5 SAME convolution, bias, then 2x2 max pooling.

    Args:
      x: [n, h, w, c_in], h and w even.
      kernel: [5, 5, c_in, c_out]. bias: [c_out].

    Returns:
      [n, h/2, w/2, c_out].
    """
    c_out = kernel.shape[-1]
    if folds(x.shape[-1]):
        y = conv_same(fold(x), encoder_phases(kernel))
        return largest(y.reshape(*y.shape[:3], 4, c_out), (3,)) + bias
    y = conv_same(x, kernel)
    n, h, w, c_out = y.shape
    return largest(y.reshape(n, h // 2, 2, w // 2, 2, c_out), (2, 4)) + bias


def largest(y: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Maximum over at most 8 elements; its gradient goes to the largest, in equal parts if there are several.

    As jnp.max, but all that is kept of the input is one bit per element: the input of a pooling is by far the
    largest array of an update.
    """
    return jnp.asarray(_largest(y, axes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _largest(y, axes):
    return y.max(axes)


def _largest_forward(y, axes):
    found = y.max(axes, keepdims=True)
    bits = jnp.where(y == found, jnp.uint8(1) << _places(y.shape, axes), jnp.uint8(0))
    # Held together: else XLA computes the bits where they are used, and keeps all of y until then.
    found, bits = jax.lax.optimization_barrier((found.squeeze(axes), bits.sum(axes, dtype=jnp.uint8)))
    return found, (bits, y.shape)


def _largest_backward(axes, residuals, gradient):
    bits, shape = residuals
    share = gradient / jax.lax.population_count(bits).astype(gradient.dtype)
    bits, share = jnp.expand_dims(bits, axes), jnp.expand_dims(share, axes)
    return (jnp.where((bits >> _places(shape, axes)) & 1, share, jnp.zeros((), share.dtype)),)


def _places(shape, axes):
    """u8, a number for each of the elements that are compared; 1 along the other axes."""
    sizes = [shape[i] if i in axes else 1 for i in range(len(shape))]
    return jnp.arange(math.prod(sizes), dtype=jnp.uint8).reshape(sizes)


_largest.defvjp(_largest_forward, _largest_backward)


def folds(c_in: int) -> bool:
    """True where the folded form is the faster one (measured, see BUILD_NOTES)."""
    return c_in <= 4


def encoder_phases(kernel: jax.Array) -> jax.Array:
    """[5, 5, i, o] -> [3, 3, 4i, 4o]: the kernel on folded input, for all four output phases."""
    c_in, c_out = kernel.shape[2:]
    phases = []
    for row in range(2):
        for column in range(2):
            taps = jnp.pad(kernel, ((row, 1 - row), (column, 1 - column), (0, 0), (0, 0)))  # offsets -2..3
            taps = taps.reshape(3, 2, 3, 2, c_in, c_out).transpose(0, 2, 1, 3, 4, 5)
            phases.append(taps.reshape(3, 3, 4 * c_in, c_out))
    return jnp.concatenate(phases, -1)


def upsample_conv_phases(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Nearest x2 upsampling, then a 5x5 SAME convolution, left in folded form.

    Args:
      x: [n, h, w, c_in].
      kernel: [5, 5, c_in, c_out], f32: taps are summed before they are rounded to the dtype of x.

    Returns:
      [n, h, w, 4 c_out], dtype of x; `unfold` of it is the [n, 2h, 2w, c_out] image.
    """
    return conv_same(x, decoder_phases(kernel).astype(x.dtype))


def decoder_phases(kernel: jax.Array) -> jax.Array:
    """[5, 5, i, o] -> [3, 3, i, 4o]: summed taps of the four output phases.

    An even output sees the small image at offsets (-1, 0, 1) with weights (k0+k1, k2+k3, k4), an odd
    one with (k0, k1+k2, k3+k4), along each axis.
    """
    even = [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    odd = [[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]
    sums = jnp.array([even, odd], kernel.dtype)  # [phase, 3, 5]
    out = jnp.einsum("pax,qby,xyio->abipqo", sums, sums, kernel, precision="highest")
    return out.reshape(3, 3, kernel.shape[2], 4 * kernel.shape[3])
