"""Layers: dense, block-diagonal dense, RMS norm, MLP. Parameters f32, arithmetic in `dtype`.

Source of the definitions: dreamerv3 embodied/jax/nets.py.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.ops.norm import rms_normalize

DType = jnp.dtype
BLOCKWISE = ((2,), (1,)), ((0,), (0,))  # [g, B, i] by [g, i, o], as dimension numbers


def variance_scaled(fan_in: int, outscale: float = 1.0):
    """Normal truncated at two deviations, rescaled to deviation `outscale / sqrt(fan_in)`."""

    def init(key, shape, dtype=jnp.float32):
        scale = 1.1368 * outscale / fan_in**0.5  # 1.1368 undoes what the truncation takes
        return scale * jax.random.truncated_normal(key, -2, 2, shape, dtype)

    return init


class Dense(nn.Module):
    """[..., i] -> [..., features]."""

    features: int
    dtype: DType
    outscale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = self.weights(x.shape[-1])
        return x.astype(self.dtype) @ kernel + bias

    def weights(self, fan_in: int) -> tuple[jax.Array, jax.Array]:
        init = variance_scaled(fan_in, self.outscale)
        kernel = self.param("kernel", init, (fan_in, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return kernel.astype(self.dtype), bias.astype(self.dtype)


class SplitDense(nn.Module):
    """A dense layer on a concatenation, one product per part, so that parts can be done ahead of time.

    `part(i, x)` is the share of input i; the layer's output is the sum of the parts plus `bias()`.
    """

    sizes: tuple[int, ...]
    features: int
    dtype: DType

    def setup(self):
        init = variance_scaled(sum(self.sizes))
        self.kernel = self.param("kernel", init, (sum(self.sizes), self.features))
        self._bias = self.param("bias", nn.initializers.zeros, (self.features,))

    def part(self, i: int, x: jax.Array) -> jax.Array:
        start = sum(self.sizes[:i])
        return x.astype(self.dtype) @ self.kernel[start : start + self.sizes[i]].astype(self.dtype)

    def bias(self) -> jax.Array:
        return self._bias.astype(self.dtype)


class BlockDense(nn.Module):
    """Block-diagonal dense layer: [..., i] -> [..., features] in `blocks` groups of both axes.

    With `shared` inputs of width s, each block also sees those: its kernel is
    [blocks, i/blocks + s, features/blocks]. The shared part is one dense product. Where `product`, what the
    blocks make of x alone [..., features], is known already, x gives only the width.
    """

    features: int
    blocks: int
    dtype: DType
    shared: int = 0

    @nn.compact
    def __call__(
        self, x: jax.Array, shared: jax.Array | None = None, product: jax.Array | None = None
    ) -> jax.Array:
        g, width = self.blocks, x.shape[-1] // self.blocks
        out = self.features // g
        shape = (g, width + self.shared, out)
        # The reference counts the block axis as a spatial one: the fan-in is that of the whole width.
        kernel = self.param("kernel", variance_scaled(g * (width + self.shared)), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        x = x.astype(self.dtype).reshape(*x.shape[:-1], g, width)
        if shared is not None and product is None and x.size == g * width:
            # Acting in one environment: to rearrange the kernel would take longer than to use it as it lies.
            seen = jnp.broadcast_to(shared.astype(self.dtype)[..., None, :], (*x.shape[:-1], self.shared))
            x, width, shared = jnp.concatenate([x, seen], -1), width + self.shared, None
        if product is None:
            product = blockwise(x, kernel[:, :width]).reshape(*x.shape[:-2], self.features)
        y = product.astype(self.dtype)
        if shared is not None:
            dense = kernel[:, width:].transpose(1, 0, 2).reshape(self.shared, self.features)
            y = y + shared.astype(self.dtype) @ dense
        return y + bias


def blocked(x: jax.Array, blocks: int) -> jax.Array:
    """[..., B, D] -> [..., g, B, D/g]: blocks outermost, as their products want it. `flat` undoes it."""
    return x.reshape(*x.shape[:-1], blocks, -1).swapaxes(-3, -2)


def flat(x: jax.Array) -> jax.Array:
    """[..., g, B, D/g] of `blocked` -> [..., B, D]."""
    x = x.swapaxes(-3, -2)
    return x.reshape(*x.shape[:-2], -1)


def blockwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[..., g, i] by [g, i, o] -> [..., g, o]."""
    lead = x.shape[:-2]
    x = x.reshape(-1, *x.shape[-2:])
    # Blocks outermost: as jnp.einsum has it, rows would be innermost, and to move them takes a kernel.
    y = jax.lax.dot_general(x, kernel, (((2,), (1,)), ((1,), (0,))))
    return y.swapaxes(0, 1).reshape(*lead, *kernel.shape[::2])


@jax.custom_jvp
def wide_blockwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[g, B, i] by [g, i, o] -> [g, B, o] f32, for sums over blocks that are rounded once.

    Its gradient is made of products in the type of x all the same: what comes back to it was rounded there.
    """
    return jax.lax.dot_general(x, kernel, BLOCKWISE, preferred_element_type=jnp.float32)


@functools.partial(wide_blockwise.defjvp, symbolic_zeros=True)
def _wide_blockwise_jvp(primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    varies = [type(t) is not jax.custom_derivatives.SymbolicZero for t in tangents]
    terms = [(dx, kernel)] * varies[0] + [(x, dkernel)] * varies[1]
    y, (change, *more) = wide_blockwise(x, kernel), [jax.lax.dot_general(a, b, BLOCKWISE) for a, b in terms]
    return y, sum(more, change).astype(y.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + 1e-4) * scale over the last axis, in f32; output in `dtype`."""

    dtype: DType

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return (rms_normalize(x) * scale).astype(self.dtype)


class NormAct(nn.Module):
    """RMS norm, then SiLU."""

    dtype: DType

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.silu(RMSNorm(self.dtype, name="norm")(x))


class MLP(nn.Module):
    """`layers` times dense, RMS norm, SiLU: [..., i] -> [..., units]."""

    layers: int
    units: int
    dtype: DType

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.layers):
            x = Dense(self.units, self.dtype, name=f"dense{i}")(x)
            x = NormAct(self.dtype, name=f"act{i}")(x)
        return x


class Head(nn.Module):
    """MLP, then one dense layer; output in f32."""

    layers: int
    units: int
    outputs: int
    dtype: DType
    outscale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = MLP(self.layers, self.units, self.dtype, name="mlp")(x)
        return Dense(self.outputs, self.dtype, self.outscale, name="out")(x).astype(jnp.float32)
