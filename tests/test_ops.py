"""The mathematics against float64 NumPy, and the rewritten convolutions against the plain ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl.ops import conv, distributions, norm, returns, scaling

SEEDS = st.integers(0, 2**32 - 1)
LAMBDAS = st.one_of(st.sampled_from([0.0, 1.0, 0.95]), st.floats(0, 1))
RARE = settings(max_examples=40, deadline=None)


# Returns


def lambda_return_loop(reward, discount, value, lam):
    """[H, N] each, rows 1..H."""
    horizon = len(reward)
    out, g = np.zeros_like(reward), value[-1]
    for t in reversed(range(horizon)):
        g = reward[t] + discount[t] * ((1 - lam) * value[t] + lam * g)
        out[t] = g
    return out


def replay_return_loop(reward, last, terminal, boot, gamma, lam):
    """[T, B] each, rows 0..T-1; one sequence and one step at a time."""
    length, width = reward.shape
    out = np.zeros((length - 1, width))
    for b in range(width):
        g = boot[-1, b]
        for t in reversed(range(length - 1)):
            if terminal[t + 1, b]:
                g = reward[t + 1, b]
            elif last[t + 1, b]:
                g = reward[t + 1, b] + gamma * boot[t + 1, b]
            else:
                g = reward[t + 1, b] + gamma * ((1 - lam) * boot[t + 1, b] + lam * g)
            out[t, b] = g
    return out


@RARE
@given(seed=SEEDS, lam=LAMBDAS)
def test_lambda_return_is_the_loop(seed, lam):
    draw = np.random.default_rng(seed)
    reward, value = draw.normal(size=(2, 7, 3)) * 5
    discount = draw.uniform(size=(7, 3)) * (draw.uniform(size=(7, 3)) > 0.2)  # with terminals
    got = jax.jit(returns.lambda_return)(*map(jnp.float32, (reward, discount, value)), lam)
    want = lambda_return_loop(reward, discount, value, lam)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_lambda_return_by_hand():
    reward, value = jnp.array([[1.0], [2.0], [4.0]]), jnp.array([[10.0], [20.0], [30.0]])
    half = jnp.full((3, 1), 0.5)
    # lam=1 is the discounted sum with one bootstrap at the end, lam=0 one step
    np.testing.assert_allclose(
        returns.lambda_return(reward, half, value, 1.0)[0], [1 + 1 + 1 + 30 / 8], rtol=1e-6
    )
    np.testing.assert_allclose(returns.lambda_return(reward, half, value, 0.0)[:, 0], [6, 12, 19], rtol=1e-6)
    ends = half.at[1].set(0)
    np.testing.assert_allclose(returns.lambda_return(reward, ends, value, 1.0)[:, 0], [2, 2, 19], rtol=1e-6)


@RARE
@given(seed=SEEDS, lam=LAMBDAS)
def test_replay_return_is_the_loop(seed, lam):
    draw = np.random.default_rng(seed)
    reward, boot = draw.normal(size=(2, 9, 4)) * 5
    last = draw.uniform(size=(9, 4)) < 0.3
    terminal = draw.uniform(size=(9, 4)) < 0.2  # also where not last: a lost life
    args = jnp.float32(reward), last, terminal, jnp.float32(boot)
    got = jax.jit(returns.replay_return)(*args, 0.9, lam)
    want = replay_return_loop(reward, last, terminal, boot, 0.9, lam)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_time_limit_bootstraps_and_a_terminal_does_not():
    reward, boot = jnp.ones((4, 3)), jnp.full((4, 3), 100.0)
    last = jnp.zeros((4, 3), bool).at[2, 1:].set(True)
    terminal = jnp.zeros((4, 3), bool).at[2, 2].set(True)
    got = returns.replay_return(reward, last, terminal, boot, 0.5, 1.0)
    np.testing.assert_allclose(got[:, 0], [1 + 0.5 * 1 + 0.25 * 51, 1 + 0.5 * 51, 51], rtol=1e-6)
    np.testing.assert_allclose(got[:2, 1], [1 + 0.5 * 51, 51], rtol=1e-6)  # the bootstrap of the row itself
    np.testing.assert_allclose(got[:2, 2], [1.5, 1], rtol=1e-6)


def test_discount_weights_include_the_start():
    got = returns.discount_weights(jnp.array([[0.5], [0.5], [0.0], [1.0]]))
    np.testing.assert_allclose(got[:, 0], [0.5, 0.25, 0, 0], rtol=0)


# Scalars as two-hot codes


def test_symlog_and_symexp():
    x = np.concatenate([-np.logspace(-6, 8, 50), [0.0], np.logspace(-6, 8, 50)])
    np.testing.assert_allclose(scaling.symlog(jnp.float32(x)), np.sign(x) * np.log1p(abs(x)), rtol=1e-5)
    np.testing.assert_allclose(scaling.symexp(scaling.symlog(jnp.float32(x))), x, rtol=2e-5)


def test_bins_are_antisymmetric_around_an_exact_zero():
    bins = scaling.symexp_bins(255)
    assert bins.shape == (255,) and bins.dtype == np.float32 and bins[127] == 0
    np.testing.assert_array_equal(bins, -bins[::-1])
    want = np.expm1(np.linspace(0, 20, 128))
    np.testing.assert_allclose(bins[127:], want, rtol=1e-5)
    assert (np.diff(bins) > 0).all()
    for count in (254, 1):
        with pytest.raises(ValueError, match=f"bins={count} must be odd"):
            scaling.symexp_bins(count)


BINS = scaling.symexp_bins(255)
encode = jax.jit(scaling.twohot)
decode = jax.jit(scaling.twohot_mean)


@RARE
@given(seed=SEEDS)
def test_twohot_round_trip(seed):
    draw = np.random.default_rng(seed)
    x = np.sign(draw.normal(size=64)) * np.expm1(draw.uniform(0, 20, size=64))
    weights = np.asarray(encode(jnp.float32(x), BINS))
    assert (weights >= 0).all() and ((weights > 0).sum(-1) <= 2).all()
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(weights @ BINS.astype(np.float64), x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(decode(jnp.log(weights + 1e-30), BINS), x, rtol=1e-3, atol=1e-6)
    low = weights.argmax(-1)  # the two bins are neighbours, around x
    assert (
        np.abs(BINS[low] - x) <= np.maximum(np.diff(BINS)[np.clip(low, 0, 253)], np.diff(BINS)[low - 1])
    ).all()


def test_twohot_on_bins_and_beyond():
    np.testing.assert_array_equal(encode(jnp.asarray(BINS), BINS), np.eye(255, dtype=np.float32))
    edge = float(BINS[-1])
    np.testing.assert_allclose(edge, np.expm1(20), rtol=1e-6)
    got = encode(jnp.array([1e10, -1e10, np.inf, -np.inf]), BINS)
    np.testing.assert_array_equal(got @ BINS, np.float32([edge, -edge, edge, -edge]))
    assert np.isnan(np.asarray(encode(jnp.float32(np.nan), BINS))).any()  # so that the update is skipped


def test_equal_logits_mean_exactly_zero():
    for level in (0.0, 3.3, -7.1):
        assert (np.asarray(decode(jnp.full((5, 255), jnp.float32(level)), BINS)) == 0).all()


def test_twohot_mean_is_the_expectation():
    logits = np.random.default_rng(0).normal(size=(16, 255)) * 3
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    got = decode(jnp.float32(logits), BINS)
    np.testing.assert_allclose(got, probs @ BINS.astype(np.float64), rtol=1e-4, atol=1e-4 * abs(BINS).max())
    small = np.abs(BINS) < 10  # the mass of a trained head lies on a few bins
    logits[:, ~small] = -np.inf
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    got = decode(jnp.float32(logits), BINS)
    np.testing.assert_allclose(got, probs @ BINS.astype(np.float64), rtol=1e-5, atol=1e-6)


# Distributions


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5])
def test_mix_uniform(share):
    logits = np.random.default_rng(0).normal(size=(6, 5)) * 4
    got = distributions.mix_uniform(jnp.float32(logits), share)
    np.testing.assert_allclose(got, np.log((1 - share) * softmax(logits) + share / 5), rtol=1e-5, atol=1e-6)
    far = distributions.mix_uniform(jnp.array([0.0, -1000.0, 0.0, 0.0, 0.0]), share)
    assert share == 0 or abs(float(jnp.exp(far[1])) - share / 5) < 1e-7


def test_categorical_terms():
    draw = np.random.default_rng(0)
    p, q = (np.log(0.99 * softmax(draw.normal(size=(3, 2, 4, 5)) * 3) + 0.01 / 5) for _ in range(2))
    p32, q32 = jnp.float32(p), jnp.float32(q)
    kl = (np.exp(p) * (p - q)).sum((-2, -1))
    np.testing.assert_allclose(distributions.categorical_kl(p32, q32), kl, rtol=1e-5)
    np.testing.assert_allclose(distributions.categorical_kl(p32, p32), np.zeros((3, 2)), rtol=0)
    entropy = -(np.exp(p) * p).sum(-1)
    np.testing.assert_allclose(distributions.categorical_entropy(p32), entropy, rtol=1e-5)
    action = draw.integers(0, 5, size=(3, 2, 4))
    want = np.take_along_axis(p, action[..., None], -1)[..., 0]
    np.testing.assert_allclose(distributions.log_prob_of(p32, jnp.int32(action)), want, rtol=1e-5)


def test_bounded_normal():
    raw = np.random.default_rng(0).normal(size=(8, 6)) * 5
    mean, std = distributions.bounded_normal(jnp.float32(raw))
    np.testing.assert_allclose(mean, np.tanh(raw[:, :3]), rtol=1e-5)
    want = 0.1 + 0.9 / (1 + np.exp(-(raw[:, 3:] + 2)))
    np.testing.assert_allclose(std, want, rtol=1e-5)
    x = np.random.default_rng(1).normal(size=(8, 3))
    density = np.exp(-0.5 * ((x - np.tanh(raw[:, :3])) / want) ** 2) / (want * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(
        distributions.normal_log_prob(mean, std, jnp.float32(x)), np.log(density).sum(-1), rtol=1e-4
    )
    entropy = 0.5 * np.log(2 * np.pi * np.e * want**2)
    np.testing.assert_allclose(distributions.normal_entropy(std), entropy.sum(-1), rtol=1e-5)


def test_binary_cross_entropy():
    logit, target = np.meshgrid(np.linspace(-30, 30, 25), [0.0, 0.3, 1 - 1 / 333, 1.0])
    p = 1 / (1 + np.exp(-logit))
    with np.errstate(divide="ignore", invalid="ignore"):
        want = -np.where(target > 0, target * np.log(p), 0) - np.where(
            target < 1, (1 - target) * np.log(1 - p), 0
        )
    got = distributions.binary_cross_entropy(jnp.float32(logit), jnp.float32(target))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_straight_through_is_the_sample_with_the_gradient_of_the_probabilities():
    logits = jnp.float32(np.random.default_rng(0).normal(size=(50, 5)))
    weights = jnp.float32(np.random.default_rng(1).normal(size=(50, 5)))
    onehot = jax.nn.one_hot(jnp.arange(50) % 5, 5)

    def through(logits):
        return distributions.straight_through(onehot, jax.nn.log_softmax(logits))

    np.testing.assert_array_equal(jax.jit(through)(logits), onehot)  # exactly
    got = jax.grad(lambda x: (through(x) * weights).sum())(logits)
    want = jax.grad(lambda x: (jax.nn.softmax(x) * weights).sum())(logits)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_gumbel_samples_follow_the_probabilities():
    probs, count = np.array([0.5, 0.3, 0.15, 0.05]), 20_000
    noise = jax.random.gumbel(jax.random.key(0), (count, 4))
    drawn = distributions.gumbel_onehot(jnp.log(jnp.float32(probs)), noise)
    assert (np.asarray(drawn).sum(-1) == 1).all()
    deviation = np.sqrt(probs * (1 - probs) / count)
    assert (np.abs(np.asarray(drawn).mean(0) - probs) < 4 * deviation).all()


def test_a_sample_is_the_first_of_the_largest():
    scores = np.float32(np.random.default_rng(0).integers(0, 4, size=(200, 6)))  # most rows have several
    for dtype in (None, jnp.dtype("bfloat16")):
        drawn = distributions.gumbel_onehot(jnp.float32(scores), jnp.zeros((200, 6)), dtype)
        assert drawn.dtype == (dtype or jnp.float32)
        np.testing.assert_array_equal(np.float32(drawn), np.eye(6)[scores.argmax(-1)])


# Convolutions

# Fast to compile; the graph is optimised as always, only the code for the processor is not.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def plain_conv(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def plain_conv_pool(x, kernel, bias):
    y = plain_conv(x, kernel) + bias
    return jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def plain_upsample_conv(x, kernel):
    return plain_conv(x.repeat(2, 1).repeat(2, 2), kernel)


def assert_same_function(f, reference, *inputs):
    """Outputs and gradients in every input agree to 1e-5 of the largest number."""

    def both(function, *inputs):
        out, pull = jax.vjp(function, *inputs)
        weights = jnp.float32(np.random.default_rng(9).normal(size=out.shape))
        return (out, *pull(weights))

    got = compiled(functools.partial(both, f))(*inputs)
    want = compiled(functools.partial(both, reference))(*inputs)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(np.abs(b).max()))


def normal(seed, *shape):
    return jnp.float32(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("side", [12, 32])  # on both sides of PATCHES_FROM
@pytest.mark.parametrize("k", [3, 5])
def test_conv_same(side, k):
    assert (side**2 < conv.PATCHES_FROM) == (side == 12)
    assert_same_function(conv.conv_same, plain_conv, normal(0, 6, side, side, 3), normal(1, k, k, 3, 4))


def test_kernel_gradient_in_parts():
    x, dy = normal(0, 6, 32, 32, 3), normal(1, 6, 32, 32, 4)
    assert 6 * 32 * 32 > conv.PATCH_ROWS  # more than one part
    want = jax.vjp(lambda k: plain_conv(x, k), jnp.zeros((5, 5, 3, 4)))[1](dy)[0]
    np.testing.assert_allclose(conv.kernel_gradient(x, dy, 5), want, rtol=1e-4, atol=1e-3)
    coarse = conv.kernel_gradient(x.astype(jnp.bfloat16), dy.astype(jnp.bfloat16), 5)
    assert coarse.dtype == jnp.bfloat16  # summed in f32, though
    np.testing.assert_allclose(np.float32(coarse), want, rtol=0.02, atol=0.01 * float(np.abs(want).max()))


def test_only_the_cpu_has_its_own_gradient():
    gradient = jax.jit(jax.grad(lambda k, x: conv.conv_same(x, k).sum()))
    traced = gradient.trace(normal(1, 3, 3, 3, 4), normal(0, 6, 32, 32, 3))
    assert "stablehlo.while" in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.while" not in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(("side", "c_in"), [(16, 3), (64, 3), (16, 4), (12, 8), (32, 8)])
def test_conv_pool(side, c_in):
    assert conv.folds(c_in) == (c_in < 8)
    inputs = normal(0, 2, side, side, c_in), normal(1, 5, 5, c_in, 4), normal(2, 4)
    assert_same_function(conv.conv_pool, plain_conv_pool, *inputs)


@pytest.mark.parametrize("axes", [(3,), (2, 4)])
def test_the_gradient_of_pooling_is_shared_by_equals(axes):
    shape = (3, 4, 2, 4, 2, 5) if axes == (2, 4) else (3, 4, 4, 4, 5)
    y = jnp.round(normal(0, *shape))  # small integers: many are equal
    want, pull = jax.vjp(lambda y: y.max(axes), y)
    got, own = jax.vjp(lambda y: conv.largest(y, axes), y)
    dy = normal(1, *want.shape)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_allclose(own(dy)[0], pull(dy)[0], rtol=1e-6)
    assert len(np.unique(np.float32(own(jnp.ones_like(dy))[0]))) >= 4  # 0, 1, 1/2, 1/3 or 1/4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rms_normalize(dtype):
    def plain(x):
        x = x.astype(jnp.float32)
        return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-4)

    # Rows of ordinary size, of the size of epsilon, and of zeros.
    x = (normal(0, 6, 7) * jnp.array([3, 1, 1, 0.01, 0.01, 0])[:, None]).astype(dtype)
    dy = normal(1, 6, 7)
    (want, pull), (got, own) = jax.vjp(plain, x), jax.vjp(norm.rms_normalize, x)
    assert got.dtype == jnp.float32 and own(dy)[0].dtype == x.dtype
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    tolerance = 1e-5 if dtype == "float32" else 0.02
    for a, b in zip(np.float32(own(dy)[0]), np.float32(pull(dy)[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize(("side", "c_in", "c_out"), [(3, 8, 4), (16, 4, 3), (32, 4, 3)])
def test_upsample_conv(side, c_in, c_out):
    def folded(x, kernel):
        return conv.unfold(conv.upsample_conv_phases(x, kernel))

    inputs = normal(0, 2, side, side, c_in), normal(1, 5, 5, c_in, c_out)
    assert_same_function(folded, plain_upsample_conv, *inputs)


def test_fold_and_unfold():
    x = normal(0, 2, 6, 8, 3)
    folded = conv.fold(x)
    assert folded.shape == (2, 3, 4, 12)
    np.testing.assert_array_equal(conv.unfold(folded), x)
    for row in range(2):
        for column in range(2):
            phase = 2 * row + column
            np.testing.assert_array_equal(
                folded[..., 3 * phase : 3 * phase + 3], x[:, row::2, column::2], strict=True
            )
