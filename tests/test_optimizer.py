"""LaProp, adaptive clipping, Adam and the learning rate against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.config import OptConfig
from jaxrl.learners.optimizer import learning_rate, make_optimizer

SHAPES = {  # in part longer than a row of the packing, none a multiple of one
    "conv": {"kernel": (5, 5, 3, 4), "bias": (4,)},
    "out": {"kernel": (7, 13), "bias": (13,)},
    "norm": {"scale": (70,)},
}
STEPS = 25


def leaves_of(draw, size):
    return {a: {b: draw.normal(size=s) * size for b, s in inner.items()} for a, inner in SHAPES.items()}


def toy(seed=0):
    """Parameters and the gradient function of a badly scaled quadratic: gradients from 1e-9 to 1e3."""
    draw = np.random.default_rng(seed)
    params, target = leaves_of(draw, 1.0), leaves_of(draw, 1.0)
    params["out"]["kernel"] = np.zeros((7, 13))  # as in heads with outscale 0: its norm is 0
    params["out"]["bias"] = np.zeros(13)
    scales = {"conv": 1e3, "out": 1e-3, "norm": 1e-9}

    def gradient(p, i, lib=np):
        wave = 1 + 0.5 * lib.cos(i)
        return {
            a: {b: scales[a] * wave * (x - lib.asarray(target[a][b], x.dtype)) for b, x in inner.items()}
            for a, inner in p.items()
        }

    return params, gradient


def rate_at(c, i):
    rate = c.lr * (min(1.0, i / c.warmup) if c.warmup else 1.0)
    if c.anneal:
        share = min(max((i - c.warmup) / (c.anneal - c.warmup), 0), 1)
        rate *= 0.1 + 0.9 * (1 + np.cos(np.pi * share)) / 2
    return rate


def in_numpy(c, params, gradient):
    """Update by update, tensor by tensor."""
    params = {a: {b: x.copy() for b, x in inner.items()} for a, inner in params.items()}
    v = {(a, b): np.zeros_like(x) for a, inner in params.items() for b, x in inner.items()}
    m = {k: x.copy() for k, x in v.items()}
    for i in range(STEPS):
        grads = gradient(params, i)
        if c.agc:
            for a, b in v:
                g, p = grads[a][b], params[a][b]
                limit = c.agc * max(c.agc_min, np.sqrt((p**2).sum()))
                grads[a][b] = g / max(1.0, np.sqrt((g**2).sum()) / limit)
        if c.clip:
            norm = np.sqrt(sum((grads[a][b] ** 2).sum() for a, b in v))
            grads = {
                a: {b: g * min(1.0, c.clip / norm) for b, g in inner.items()} for a, inner in grads.items()
            }
        for (a, b), square in v.items():
            g, mean = grads[a][b], m[a, b]
            square[...] = c.beta2 * square + (1 - c.beta2) * g**2
            root = np.sqrt(square / (1 - c.beta2 ** (i + 1))) + c.eps
            mean[...] = c.beta1 * mean + (1 - c.beta1) * (g / root if c.name == "laprop" else g)
            step = mean / (1 - c.beta1 ** (i + 1)) / (1 if c.name == "laprop" else root)
            decay = c.weight_decay * params[a][b] if b == "kernel" else 0
            params[a][b] = params[a][b] - rate_at(c, i) * (step + decay)
    return params


CONFIGS = {
    "laprop": OptConfig(lr=0.03, warmup=10),
    "laprop with decay and annealing": OptConfig(lr=0.03, warmup=5, anneal=20, weight_decay=0.5),
    "laprop without clipping": OptConfig(lr=0.03, warmup=0, agc=0.0, beta1=0.8, beta2=0.99),
    "adam with global clipping": OptConfig(name="adam", lr=0.03, warmup=0, agc=0.0, clip=10.0, eps=1e-8),
    "adam with both": OptConfig(name="adam", lr=0.03, warmup=3, clip=0.5, eps=1e-12, weight_decay=0.1),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_many_steps(name):
    config = CONFIGS[name]
    start, gradient = toy()
    optimizer = make_optimizer(config)

    @jax.jit
    def descend(params):
        def one(carry, i):
            params, state = carry
            step = optimizer.descend(gradient(params, i, jnp), state, params, True)
            return (step.params, step.state), step.state.count

        return jax.lax.scan(one, (params, optimizer.init(params)), jnp.arange(STEPS))

    first = jax.tree.map(jnp.float32, start)
    (got, _), counts = descend(first)
    np.testing.assert_array_equal(counts, np.arange(1, STEPS + 1))
    want = in_numpy(config, start, gradient)
    for a, inner in SHAPES.items():
        for b in inner:
            moved = np.abs(want[a][b] - start[a][b]).max()
            assert moved > (1e-3 if config.eps < 1e-9 else 0) and got[a][b].dtype == jnp.float32
            np.testing.assert_allclose(
                np.asarray(got[a][b], np.float64) - np.asarray(first[a][b], np.float64),
                want[a][b] - start[a][b],
                rtol=1e-3,
                atol=2e-4 * moved + 1e-6,  # parameters near 1 are rounded to 6e-8 at each step
                err_msg=f"{a}/{b}",
            )


def test_the_first_step_is_the_sign_of_the_gradient():
    """LaProp's normalisation: whatever the size of a gradient, and so after clipping."""
    params, gradient = toy()
    params = jax.tree.map(jnp.float32, params)
    optimizer = make_optimizer(OptConfig(lr=0.01, warmup=0))
    grads = gradient(params, 0, jnp)
    step = jax.jit(optimizer.descend)(grads, optimizer.init(params), params, True)
    jax.tree.map(
        lambda new, old, g: np.testing.assert_allclose(new - old, -0.01 * np.sign(g), rtol=1e-3, atol=1e-6),
        *(step.params, params, grads),
    )
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(grads)]).astype(np.float64)
    np.testing.assert_allclose(step.stats.grad_norm, np.sqrt((flat**2).sum()), rtol=1e-5)
    np.testing.assert_allclose(step.stats.grad_rms, np.sqrt((flat**2).mean()), rtol=1e-5)
    np.testing.assert_allclose(step.stats.update_rms, 0.01, rtol=1e-3)
    assert step.made and tuple(step.stats) == step.state[2:]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_size_of_the_parameters(name):
    """Before the step where they are packed for it, else after."""
    start, gradient = toy()
    params, optimizer = jax.tree.map(jnp.float32, start), make_optimizer(CONFIGS[name])
    grads = gradient(params, 0, jnp)
    step = jax.jit(optimizer.descend)(grads, optimizer.init(params), params, True)
    packed = CONFIGS[name].agc or CONFIGS[name].weight_decay
    tensors = jax.tree.leaves(params if packed else step.params)
    weights = np.concatenate([np.ravel(x) for x in tensors]).astype(np.float64)
    np.testing.assert_allclose(step.stats.param_rms, np.sqrt((weights**2).mean()), rtol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("why", ["gradient", "loss"])
def test_a_step_that_may_not_be_made_leaves_every_bit(name, why):
    """And the next one is made as if it had never been tried."""
    start, gradient = toy()
    optimizer = make_optimizer(CONFIGS[name])
    descend = jax.jit(optimizer.descend)
    params = jax.tree.map(jnp.float32, start)
    before = descend(gradient(params, 0, jnp), optimizer.init(params), params, True)
    grads = gradient(before.params, 1, jnp)
    bad = jax.tree.map(jnp.copy, grads)
    if why == "gradient":
        bad["conv"]["kernel"] = bad["conv"]["kernel"].at[0, 0, 0, 0].set(jnp.inf)
    step = descend(bad, before.state, before.params, why == "gradient")
    assert not step.made and np.isfinite(step.stats.grad_norm) == (why == "loss")
    assert np.isnan(step.stats.update_rms) and step.state.count == 1
    for a, b in zip(jax.tree.leaves(step[:2]), jax.tree.leaves(before[:2]), strict=True):
        np.testing.assert_array_equal(np.asarray(a).tobytes(), np.asarray(b).tobytes())
    again, straight = (descend(grads, x.state, x.params, True) for x in (step, before))
    assert again.made and int(again.state.inner.count) == 2
    jax.tree.map(np.testing.assert_array_equal, again[:2], straight[:2])


@pytest.mark.parametrize("agc_min", [1e-3, 1e-8])
def test_no_gradient_is_no_step(agc_min):
    params = jax.tree.map(jnp.float32, toy()[0])
    optimizer = make_optimizer(OptConfig(lr=0.01, warmup=0, agc_min=agc_min))
    grads = jax.tree.map(jnp.zeros_like, params)
    step = jax.jit(optimizer.descend)(grads, optimizer.init(params), params, True)
    assert step.made and step.state.count == 1
    jax.tree.map(np.testing.assert_array_equal, step.params, params)


def test_clipping_is_by_tensor():
    """With momentum and normalisation as good as off, steps show the clipped gradient."""
    config = OptConfig(lr=1.0, warmup=0, name="adam", beta1=0.0, beta2=0.0, eps=1e3)
    params = {"a": {"kernel": jnp.ones((3, 3))}, "b": {"kernel": jnp.zeros(2)}, "c": {"kernel": jnp.ones(4)}}
    grads = {
        "a": {"kernel": jnp.full((3, 3), 5.0)},
        "b": {"kernel": jnp.ones(2)},
        "c": {"kernel": jnp.ones(4) / 10},
    }
    optimizer = make_optimizer(config)
    step = jax.jit(optimizer.descend)(grads, optimizer.init(params), params, True)
    norms = {k: 1e3 * float(jnp.linalg.norm(step.params[k]["kernel"] - params[k]["kernel"])) for k in params}
    # 0.3 |p|, 0.3 times the smallest norm, untouched
    np.testing.assert_allclose([norms["a"], norms["b"], norms["c"]], [0.9, 3e-4, 0.2], rtol=1e-3)


@pytest.mark.parametrize(
    "config", [OptConfig(), OptConfig(anneal=5_000), OptConfig(warmup=0), OptConfig(lr=0.0)]
)
def test_learning_rate(config):
    counts = np.array([0, 1, 500, 999, 1000, 1001, 3000, 5000, 10**6])
    got = [learning_rate(config)(jnp.int32(i)) for i in counts]
    np.testing.assert_allclose(got, [rate_at(config, i) for i in counts], rtol=1e-5, atol=1e-12)
    if config.warmup:
        assert got[0] == 0
    if config.anneal:
        np.testing.assert_allclose(got[-1], 0.1 * config.lr, rtol=1e-5)
