"""Observations to tokens: four convolution stages for images, an MLP for vectors."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.nets.blocks import MLP, DType, NormAct, variance_scaled
from jaxrl.ops.conv import conv_pool
from jaxrl.ops.lead import apart, joined
from jaxrl.ops.scaling import symlog
from jaxrl.types import ArraySpec

MULTIPLIERS = (2, 3, 4, 4)  # channels of the four stages, times depth
KERNEL = 5


def split_keys(obs: dict[str, ArraySpec]) -> tuple[list[str], list[str]]:
    """Image keys and vector keys of an observation space, each sorted.

    Raises:
      ValueError: for an observation that is neither, or images of different or unusable sizes.
    """
    images = sorted(k for k, spec in obs.items() if spec.is_image)
    vectors = sorted(k for k, spec in obs.items() if not spec.is_image)
    for key in vectors:
        if len(obs[key].shape) != 1 or obs[key].dtype.kind != "f":
            raise ValueError(f"observation {key!r} is {obs[key]}; expected uint8 [h, w, c] or f32 [d]")
    for key in images:
        h, w, _ = obs[key].shape
        if h != w or h % 16 or not 3 <= h // 16 <= 16:
            raise ValueError(f"image {key!r} is {h}x{w}; expected a square with a side of 48, 64, ..., 256")
    if len({obs[k].shape[:2] for k in images}) > 1:
        raise ValueError(f"images must share one size, got { {k: obs[k].shape for k in images} }")
    return images, vectors


class ConvStage(nn.Module):
    """5x5 convolution, 2x2 max pooling, RMS norm, SiLU: [n, h, w, i] -> [n, h/2, w/2, features]."""

    features: int
    dtype: DType

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (KERNEL, KERNEL, x.shape[-1], self.features)
        kernel = self.param("kernel", variance_scaled(KERNEL * KERNEL * x.shape[-1]), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = conv_pool(x, kernel.astype(self.dtype), bias.astype(self.dtype))
        return NormAct(self.dtype, name="act")(x)


class Encoder(nn.Module):
    """Tokens of observations: obs leaves [..., shape] -> [..., tokens] in `dtype`."""

    obs: dict[str, ArraySpec]
    depth: int
    units: int
    dtype: DType

    @nn.compact
    def __call__(self, obs: dict[str, jax.Array]) -> jax.Array:
        images, vectors = split_keys(self.obs)
        tokens = []
        if vectors:
            x = symlog(jnp.concatenate([obs[k] for k in vectors], -1))
            tokens.append(MLP(3, self.units, self.dtype, name="vector")(x))
        if images:
            x = jnp.concatenate([obs[k] for k in images], -1)
            lead = x.shape[:-3]
            x = (joined(x, len(lead)).astype(jnp.float32) / 255 - 0.5).astype(self.dtype)
            for i, multiplier in enumerate(MULTIPLIERS):
                x = ConvStage(multiplier * self.depth, self.dtype, name=f"conv{i}")(x)
            tokens.append(apart(x.reshape(x.shape[0], -1), lead))
        return jnp.concatenate(tokens, -1)


def token_width(obs: dict[str, ArraySpec], depth: int, units: int) -> int:
    """Width of the encoder's output."""
    images, vectors = split_keys(obs)
    image = (obs[images[0]].shape[0] // 16) ** 2 * MULTIPLIERS[-1] * depth if images else 0
    return image + (units if vectors else 0)
