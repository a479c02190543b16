"""Recurrent states to predicted observations."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.nets.blocks import MLP, BlockDense, Dense, DType, NormAct, variance_scaled
from jaxrl.nets.encoder import KERNEL, MULTIPLIERS, split_keys
from jaxrl.ops.conv import unfold, upsample_conv_phases
from jaxrl.ops.lead import apart, joined
from jaxrl.types import ArraySpec


class UpsampleConv(nn.Module):
    """Nearest x2 upsampling and a 5x5 convolution, folded: [n, h, w, i] -> [n, h, w, 4 features]."""

    features: int
    dtype: DType

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (KERNEL, KERNEL, x.shape[-1], self.features)
        kernel = self.param("kernel", variance_scaled(KERNEL * KERNEL * x.shape[-1]), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = upsample_conv_phases(x, kernel)
        return y + jnp.tile(bias.astype(self.dtype), 4)


class Decoder(nn.Module):
    """Predictions from deter [..., D] and stoch [..., S C].

    Returns a dict by observation key: vectors as symlog predictions f32 [..., d]; all images together
    under "folded" as probabilities f32 [..., h/2, w/2, 4 c], folded as in `jaxrl.ops.conv.fold`,
    channels in sorted key order.
    """

    obs: dict[str, ArraySpec]
    depth: int
    units: int
    blocks: int
    dtype: DType

    @nn.compact
    def __call__(self, deter: jax.Array, stoch: jax.Array) -> dict[str, jax.Array]:
        images, vectors = split_keys(self.obs)
        out = {}
        if vectors:
            x = MLP(3, self.units, self.dtype, name="vector")(jnp.concatenate([stoch, deter], -1))
            for key in vectors:
                width = self.obs[key].shape[0]
                out[key] = Dense(width, self.dtype, name=f"out_{key}")(x).astype(jnp.float32)
        if images:
            out["folded"] = self.image(deter, stoch, images)
        return out

    def image(self, deter: jax.Array, stoch: jax.Array, images: list[str]) -> jax.Array:
        lead, side = deter.shape[:-1], self.obs[images[0]].shape[0] // 16
        channels, g = MULTIPLIERS[-1] * self.depth, self.blocks
        deter, stoch = joined(deter, len(lead)), joined(stoch, len(lead))
        x = BlockDense(side * side * channels, g, self.dtype, name="from_deter")(deter)
        x = x.reshape(-1, g, side, side, channels // g)
        x = x.transpose(0, 2, 3, 1, 4).reshape(-1, side, side, channels)
        y = NormAct(self.dtype, name="act_stoch")(Dense(2 * self.units, self.dtype, name="stoch0")(stoch))
        y = Dense(side * side * channels, self.dtype, name="stoch1")(y)
        x = NormAct(self.dtype, name="act")(x + y.reshape(x.shape))
        for i, multiplier in enumerate(MULTIPLIERS[2::-1]):
            features = multiplier * self.depth
            y = UpsampleConv(features, self.dtype, name=f"conv{i}")(x)
            y = NormAct(self.dtype, name=f"act{i}")(y.reshape(*y.shape[:-1], 4, features))
            x = unfold(y.reshape(*y.shape[:-2], 4 * features))
        total = sum(self.obs[k].shape[-1] for k in images)
        y = UpsampleConv(total, self.dtype, name="conv3")(x)
        y = jax.nn.sigmoid(y.astype(jnp.float32))
        return apart(y, lead)
