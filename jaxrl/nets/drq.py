"""Networks of DrQ: encoder, twin critic and actor of DrQ-v2, dueling Q network for discrete actions.

Parameters f32; products in `dtype`, norms and outputs in f32. Sources: Yarats et al. 2021 (DrQ-v2) and
facebookresearch/drqv2 for continuous actions; Kostrikov et al. 2020 (DrQ) in the form of dopamine
jax/networks.py, FullRainbowNetwork, for discrete ones. Several cameras, and vectors beside images, are ours
after robobase: a convolution network for each camera, a bottleneck of their own for vectors.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.config import ConfigError
from jaxrl.nets.blocks import DType
from jaxrl.ops.conv import DIMENSIONS
from jaxrl.ops.conv_valid import SMALLEST, Layer, encode
from jaxrl.ops.product import product
from jaxrl.types import ArraySpec, Key, Params

Features = dict[str, jax.Array]  # "image" [B, f] and "vector" [B, d], those that there are

NATURE = ((1, 8, 4), (2, 4, 2), (2, 3, 1))  # convolutions of DQN: width in `channels`, kernel, stride
ORTHOGONAL = nn.initializers.orthogonal
XAVIER = nn.initializers.xavier_uniform


def split_keys(obs: dict[str, ArraySpec]) -> tuple[list[str], list[str]]:
    """Image keys and vector keys of an observation space, each sorted.

    Raises:
      ValueError: for an observation that is neither, or for none at all.
      ConfigError: for images that are too small.
    """
    images = sorted(k for k, spec in obs.items() if spec.is_image)
    vectors = sorted(k for k, spec in obs.items() if not spec.is_image)
    for key in vectors:
        if len(obs[key].shape) != 1 or obs[key].dtype.kind != "f":
            raise ValueError(f"observation {key!r} is {obs[key]}; expected uint8 [h, w, c] or f32 [d]")
    if small := [k for k in images if min(obs[k].shape[:2]) < SMALLEST]:
        side = min(obs[small[0]].shape[:2])
        rule = f"must be at least {SMALLEST} with agent=drq"
        raise ConfigError(f"env.size={side}: {rule}; for example env.size=84")
    if not obs:
        raise ValueError("no observation to learn from")
    return images, vectors


def run(net: nn.Module, params: Params, *args: Any) -> Any:
    """Applies a network to its own parameters."""
    return net.apply({"params": params}, *args)


def initial(net: nn.Module, key: Key, *args: Any) -> Params:
    """A network's parameters at the start, {} if it has none."""
    return net.init(key, *args).get("params", {})


class Linear(nn.Module):
    """[..., i] -> [..., features] f32, the product in `dtype`, summed in f32."""

    features: int
    dtype: DType
    init_kernel: nn.initializers.Initializer = ORTHOGONAL()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.init_kernel, (x.shape[-1], self.features)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return product(x.astype(self.dtype), kernel) + bias


class Conv(nn.Module):
    """Weights of a convolution of `side` x `side`, in `dtype`."""

    channels: tuple[int, int]  # in, out
    side: int
    dtype: DType
    init_kernel: nn.initializers.Initializer

    @nn.compact
    def __call__(self) -> Layer:
        kernel = self.param("kernel", self.init_kernel, (self.side, self.side, *self.channels))
        bias = self.param("bias", nn.initializers.zeros, self.channels[1:])
        return Layer(kernel.astype(self.dtype), bias.astype(self.dtype))


class Camera(nn.Module):
    """Pixels of one camera, [n, h, w, c] of any dtype, 0..255 -> [n, f] in `dtype`."""

    channels: int
    dtype: DType
    nature: bool  # the three large convolutions of DQN instead of the four small ones of DrQ-v2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.dqn(x) if self.nature else self.v2(x)
        return x.reshape(x.shape[0], -1)

    def v2(self, x: jax.Array) -> jax.Array:
        ins, init = (x.shape[-1], *[self.channels] * 3), ORTHOGONAL(2**0.5)
        names = [((i, self.channels), f"conv{n}") for n, i in enumerate(ins)]
        return encode(x, [Conv(channels, 3, self.dtype, init, name=name)() for channels, name in names])

    def dqn(self, x: jax.Array) -> jax.Array:
        x = (x.astype(jnp.float32) / 255).astype(self.dtype)
        for i, (width, side, stride) in enumerate(NATURE):
            channels = x.shape[-1], width * self.channels
            kernel, bias = Conv(channels, side, self.dtype, XAVIER(), name=f"conv{i}")()
            strides = (stride, stride)
            x = jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=DIMENSIONS)
            x = nn.relu(x + bias)
        return x


class Encoder(nn.Module):
    """Observations, leaves [n, ...] -> features; each camera has convolutions of its own.

    Images may have more channels than the spaces say, of frames shown together.
    """

    obs: dict[str, ArraySpec]
    channels: int
    dtype: DType
    nature: bool = False

    @nn.compact
    def __call__(self, obs: dict[str, jax.Array]) -> Features:
        images, vectors = split_keys(self.obs)
        found = {}
        if images:
            views = [Camera(self.channels, self.dtype, self.nature, name=k)(obs[k]) for k in images]
            found["image"] = jnp.concatenate(views, -1)
        if vectors:
            found["vector"] = jnp.concatenate([obs[k].astype(jnp.float32) for k in vectors], -1)
        return found


class Bottleneck(nn.Module):
    """Linear, layer norm, tanh: [n, i] -> [n, features] f32."""

    features: int
    dtype: DType

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Linear(self.features, self.dtype, name="linear")(x)
        norm = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, use_fast_variance=False, name="norm")
        return jnp.tanh(norm(x))


class Trunk(nn.Module):
    """Features -> [n, features for each kind of them] f32."""

    features: int
    dtype: DType

    @nn.compact
    def __call__(self, seen: Features) -> jax.Array:
        parts = [Bottleneck(self.features, self.dtype, name=k)(seen[k]) for k in sorted(seen)]
        return jnp.concatenate(parts, -1)


class Head(nn.Module):
    """Two hidden layers with ReLU: [n, i] -> [n, outputs] f32."""

    hidden: int
    outputs: int
    dtype: DType

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(2):
            x = nn.relu(Linear(self.hidden, self.dtype, name=f"hidden{i}")(x))
        return Linear(self.outputs, jnp.dtype(jnp.float32), name="out")(x)


class Critic(nn.Module):
    """Values by two heads on one trunk: features, actions [n, A] -> [2, n] f32."""

    features: int
    hidden: int
    dtype: DType

    @nn.compact
    def __call__(self, seen: Features, action: jax.Array) -> jax.Array:
        x = jnp.concatenate([Trunk(self.features, self.dtype, name="trunk")(seen), action], -1)
        return jnp.stack([Head(self.hidden, 1, self.dtype, name=k)(x)[:, 0] for k in ("q0", "q1")])


class Actor(nn.Module):
    """Features -> u, [n, actions] f32; tanh(u) are means of actions, which exploration strays from."""

    features: int
    hidden: int
    actions: int
    dtype: DType

    @nn.compact
    def __call__(self, seen: Features) -> jax.Array:
        x = Trunk(self.features, self.dtype, name="trunk")(seen)
        return Head(self.hidden, self.actions, self.dtype, name="head")(x)


class Dueling(nn.Module):
    """Values of discrete actions: features -> [n, actions] f32, value plus centred advantages.

    Images reach the hidden layer as they are; vectors through a bottleneck.
    """

    features: int
    hidden: int
    actions: int
    dtype: DType

    @nn.compact
    def __call__(self, seen: Features) -> jax.Array:
        parts = [seen["image"].astype(jnp.float32)] if "image" in seen else []
        if "vector" in seen:
            parts.append(Bottleneck(self.features, self.dtype, name="vector")(seen["vector"]))
        x = nn.relu(Linear(self.hidden, self.dtype, XAVIER(), name="hidden")(jnp.concatenate(parts, -1)))
        value = Linear(1, jnp.dtype(jnp.float32), XAVIER(), name="value")(x)
        advantage = Linear(self.actions, jnp.dtype(jnp.float32), XAVIER(), name="advantage")(x)
        return value + advantage - advantage.mean(-1, keepdims=True)
