"""Networks: exact parameter counts, initial deviations, and the image layers against plain ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.config import Config, ModelConfig, OptConfig, model_widths, replace
from jaxrl.learners.dreamer.model import Model
from jaxrl.learners.optimizer import kernels
from jaxrl.nets.blocks import BlockDense, Dense, Head, RMSNorm
from jaxrl.nets.decoder import Decoder
from jaxrl.nets.encoder import Encoder, split_keys, token_width
from jaxrl.ops.conv import unfold
from jaxrl.types import ArraySpec, Continuous, Discrete, Spaces

F32 = jnp.dtype("float32")
# Fast to compile; the graph is optimised as always, only the code for the processor is not.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
NAMES = ("dyn", "enc", "dec", "rew", "con", "pol", "val")
# 64x64x3 images, 6 discrete actions; without slow critic and optimizer; from the reference program
COUNTS = {
    "1m": (376_704, 14_304, 80_595, 57_663, 41_153, 49_926, 66_111),
    "12m": (5_979_648, 220_416, 1_272_003, 721_407, 656_129, 789_510, 853_503),
    "25m": (13_442_304, 493_824, 2_857_635, 1_573_503, 1_475_713, 1_774_086, 1_869_951),
    "50m": (23_886_848, 876_032, 5_076_355, 2_753_279, 2_622_977, 3_151_878, 3_279_615),
    "100m": (53_721_600, 1_966_848, 11_413_059, 6_095_871, 5_900_545, 7_087_110, 7_278_591),
    "200m": (95_483_904, 3_492_864, 20_282_115, 10_749_183, 10_488_833, 12_595_206, 12_850_431),
    "400m": (214_791_168, 7_850_496, 45_617_283, 23_987_967, 23_597_569, 28_329_990, 28_712_703),
}
TOTALS = {
    "1m": 686_456,
    "12m": 10_492_616,
    "25m": 23_487_016,
    "50m": 41_646_984,
    "100m": 93_463_624,
    "200m": 165_942_536,
    "400m": 372_887_176,
}


def image(side=64, channels=3):
    return ArraySpec((side, side, channels), np.dtype(np.uint8))


def vector(width):
    return ArraySpec((width,), np.dtype(np.float32))


def shapes_of(size, obs, action):
    changes = {"model.size": size, "model.compute_dtype": "float32"}
    model = Model(replace(Config(), changes), Spaces(obs=obs, action=action))
    return jax.eval_shape(model.init, jax.random.key(0))  # nothing is allocated


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def dyn_count(size, actions, tokens):
    """The closed form: products, biases, norm scales."""
    d, h, c, _, _ = model_widths(ModelConfig(size=size))
    inputs = (d * h + 2 * h) + (32 * c * h + 2 * h) + (actions * h + 2 * h)
    gru = (d // 8 + 3 * h) * d + 2 * d + 3 * d * d // 8 + 3 * d
    post = (d + tokens) * h + 2 * h + 32 * c * h + 32 * c
    prior = (d * h + 2 * h) + (h * h + 2 * h) + 32 * c * h + 32 * c
    return inputs + gru + post + prior


@pytest.mark.parametrize("size", COUNTS)
def test_parameter_counts(size):
    shapes = shapes_of(size, {"image": image()}, Discrete(6))
    assert tuple(count(shapes[name]) for name in NAMES) == COUNTS[size]
    assert count(shapes) == TOTALS[size] and set(shapes) == set(NAMES)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(shapes))
    depth = model_widths(ModelConfig(size=size)).depth
    assert count(shapes["dyn"]) == dyn_count(size, 6, 64 * depth)


def test_parameter_counts_of_other_spaces():
    d, h, c, depth, units = model_widths(ModelConfig(size="1m"))
    assert (d, h, c, depth, units) == (512, 64, 4, 4, 64)
    shapes = shapes_of("1m", {"vector": vector(6), "more": vector(2)}, Continuous(2))
    feature = d + 32 * c
    hidden = feature * units + 2 * units + 2 * (units * units + 2 * units)
    assert count(shapes["dyn"]) == dyn_count("1m", 2, units)
    assert count(shapes["pol"]) == hidden + units * 4 + 4  # mean and deviation of each action
    assert count(shapes["enc"]) == 8 * units + 2 * units + 2 * (units * units + 2 * units)
    assert count(shapes["dec"]) == hidden + (units * 6 + 6) + (units * 2 + 2)
    both = shapes_of("1m", {"vector": vector(6), "image": image(), "gray": image(64, 1)}, Discrete(6))
    assert count(both["dyn"]) == dyn_count("1m", 6, 64 * depth + units)
    plain = shapes_of("1m", {"image": image()}, Discrete(6))
    assert count(both["enc"]["conv0"]) - count(plain["enc"]["conv0"]) == 25 * 1 * 2 * depth
    large = shapes_of("1m", {"image": image(96)}, Discrete(6))
    assert count(large["dyn"]) == dyn_count("1m", 6, 144 * depth)
    assert token_width({"image": image(96)}, depth, units) == 144 * depth


def test_initial_deviations():
    """1 / sqrt(fan-in), truncation at two deviations made up for; a block layer counts its whole width."""
    x, key = jnp.zeros((1, 512)), jax.random.key(0)

    def kernel(net, *inputs):
        p = quick(net.init)(key, *inputs)["params"]
        assert not p["bias"].any()
        return np.asarray(p["kernel"], np.float64)

    for got, fan_in in (
        (kernel(Dense(300, F32), x), 512),
        (kernel(BlockDense(1024, 8, F32), x), 512),
        (kernel(BlockDense(512, 8, F32, 96), x, jnp.zeros((1, 96))), 512 + 8 * 96),
    ):
        np.testing.assert_allclose(got.std(), fan_in**-0.5, rtol=0.01)
        np.testing.assert_allclose(np.abs(got).max(), 2 * 1.1368 * fan_in**-0.5, rtol=0.01)
        assert abs(got.mean()) < 0.02 * fan_in**-0.5
    small = kernel(Dense(300, F32, 0.01), x)
    np.testing.assert_allclose(small.std(), 0.01 * 512**-0.5, rtol=0.01)
    zero = quick(Head(1, 16, 255, F32, 0.0).init)(key, x)["params"]
    assert not zero["out"]["kernel"].any() and zero["mlp"]["dense0"]["kernel"].any()


@pytest.mark.parametrize("rows", [1, 7])
def test_block_dense_is_a_product_per_block(rows):
    draw = np.random.default_rng(0)
    layer = BlockDense(6, 2, F32, shared=3)
    kernel, bias = draw.normal(size=(2, 5, 3)), draw.normal(size=6)
    x, shared = draw.normal(size=(rows, 4)), draw.normal(size=(rows, 3))
    params = {"params": {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}}
    got = layer.apply(params, jnp.float32(x), jnp.float32(shared))
    parts = [np.concatenate([x[:, 2 * b : 2 * b + 2], shared], -1) @ kernel[b] for b in range(2)]
    np.testing.assert_allclose(got, np.concatenate(parts, -1) + bias, rtol=1e-5, atol=1e-5)


def test_rms_norm_is_computed_in_f32():
    x = np.random.default_rng(0).normal(size=(5, 64)) * 1e-2
    params = {"params": {"scale": jnp.linspace(0.5, 2, 64)}}
    want = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4) * np.linspace(0.5, 2, 64)
    np.testing.assert_allclose(RMSNorm(F32).apply(params, jnp.float32(x)), want, rtol=1e-5)
    low = RMSNorm(jnp.dtype("bfloat16")).apply(params, jnp.bfloat16(x))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(low), want, rtol=0.02, atol=1e-3)


def randomised(params, seed):
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + jnp.float32(0.3 * draw.normal(size=x.shape)), params)


def plain_conv(p, x):
    kernel = p["kernel"]
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y + p["bias"]


def plain_norm_silu(p, x):
    return jax.nn.silu(x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-4) * p["norm"]["scale"])


def compare(f, reference, params):
    """Outputs and gradients in the parameters."""

    def both(function, params):
        out, pull = jax.vjp(function, params)
        return out, pull(jnp.float32(np.random.default_rng(5).normal(size=out.shape)))[0]

    got, want = (quick(functools.partial(both, function))(params) for function in (f, reference))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * float(jnp.abs(b).max()))


def test_encoder_is_four_plain_stages():
    """Five channels of two images, then 4, 6 and 8: both forms of the convolution."""
    obs = {"b": image(48, 2), "a": image(48, 3)}
    draw = np.random.default_rng(0)
    shown = {k: draw.integers(0, 256, size=(2, 3, *s.shape), dtype=np.uint8) for k, s in obs.items()}
    net = Encoder(obs, 2, 8, F32)

    def plain(p):
        x = jnp.concatenate([shown["a"], shown["b"]], -1).reshape(6, 48, 48, 5) / 255 - 0.5
        for i in range(4):
            x = plain_conv(p[f"conv{i}"], x)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
            x = plain_norm_silu(p[f"conv{i}"]["act"], x)
        return x.reshape(2, 3, -1)

    shapes = jax.eval_shape(net.init, jax.random.key(0), shown)["params"]
    assert [shapes[f"conv{i}"]["bias"].size for i in range(4)] == [4, 6, 8, 8]
    params = randomised(jax.tree.map(lambda x: jnp.zeros(x.shape), shapes), 1)
    compare(lambda p: net.apply({"params": p}, shown), plain, params)


def test_decoder_is_upsampling_and_plain_convolutions():
    obs, depth, blocks = {"b": image(48, 2), "a": image(48, 1)}, 2, 4
    draw = np.random.default_rng(0)
    deter, stoch = (jnp.float32(draw.normal(size=(2, 3, n))) for n in (16, 12))
    net = Decoder(obs, depth, 8, blocks, F32)

    def folded(p):
        out = net.apply({"params": p}, deter, stoch)["folded"]
        return unfold(out.reshape(6, *out.shape[2:]))

    def plain(p):
        parts = [
            part @ p["from_deter"]["kernel"][b]
            for b, part in enumerate(jnp.split(deter.reshape(6, -1), blocks, -1))
        ]
        x = jnp.concatenate(parts, -1) + p["from_deter"]["bias"]
        x = x.reshape(6, blocks, 3, 3, 4 * depth // blocks)  # (g, h, w, c) -> h w (g c)
        x = jnp.concatenate([x[:, b] for b in range(blocks)], -1)
        y = stoch.reshape(6, -1) @ p["stoch0"]["kernel"] + p["stoch0"]["bias"]
        y = plain_norm_silu(p["act_stoch"], y) @ p["stoch1"]["kernel"] + p["stoch1"]["bias"]
        x = plain_norm_silu(p["act"], x + y.reshape(6, 3, 3, 4 * depth))
        for i in range(4):
            x = plain_conv(p[f"conv{i}"], x.repeat(2, 1).repeat(2, 2))
            x = plain_norm_silu(p[f"act{i}"], x) if i < 3 else jax.nn.sigmoid(x)
        return x

    shapes = jax.eval_shape(net.init, jax.random.key(0), deter, stoch)["params"]
    assert [shapes[f"conv{i}"]["bias"].size for i in range(4)] == [8, 6, 4, 3]
    assert shapes["stoch0"]["bias"].size == 16  # 2 U
    params = randomised(jax.tree.map(lambda x: jnp.zeros(x.shape), shapes), 1)
    compare(folded, plain, params)


def test_weight_decay_sees_every_kernel():
    shapes = shapes_of("debug", {"image": image(48), "v": vector(3)}, Discrete(3))
    assert OptConfig().weight_decay == 0
    marked = kernels(shapes)
    assert [x.ndim >= 2 for x in jax.tree.leaves(shapes)] == marked and any(marked)


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        ({"image": image(40)}, "expected a square with a side of 48, 64"),
        ({"image": image(32)}, "expected a square"),
        ({"a": image(64), "b": image(80)}, "images must share one size"),
        ({"v": ArraySpec((3,), np.dtype(np.int32))}, r"expected uint8 \[h, w, c\] or f32 \[d\]"),
        ({"v": ArraySpec((3, 3), np.dtype(np.float32))}, "expected uint8"),
    ],
)
def test_observations_that_no_network_can_see(obs, message):
    with pytest.raises(ValueError, match=message):
        split_keys(obs)
