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
            updates, state = optimizer.update(gradient(params, i, jnp), state, params)
            return (jax.tree.map(jnp.add, params, updates), state), state.count

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
    updates, state = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -0.01 * np.sign(g), rtol=1e-3), updates, grads)
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(grads)]).astype(np.float64)
    np.testing.assert_allclose(state.grad_norm, np.sqrt((flat**2).sum()), rtol=1e-5)
    np.testing.assert_allclose(state.grad_rms, np.sqrt((flat**2).mean()), rtol=1e-5)
    np.testing.assert_allclose(state.update_rms, 0.01, rtol=1e-3)
    weights = np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)]).astype(np.float64)
    np.testing.assert_allclose(state.param_rms, np.sqrt((weights**2).mean()), rtol=1e-5)


@pytest.mark.parametrize("agc_min", [1e-3, 1e-8])
def test_no_gradient_is_no_step(agc_min):
    params = jax.tree.map(jnp.float32, toy()[0])
    optimizer = make_optimizer(OptConfig(lr=0.01, warmup=0, agc_min=agc_min))
    updates, _ = jax.jit(optimizer.update)(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(updates))


def test_clipping_is_by_tensor():
    """With momentum and normalisation as good as off, steps show the clipped gradient."""
    config = OptConfig(lr=1.0, warmup=0, name="adam", beta1=0.0, beta2=0.0, eps=1e6)
    params = {"a": {"kernel": jnp.ones((3, 3))}, "b": {"kernel": jnp.zeros(2)}, "c": {"kernel": jnp.ones(4)}}
    grads = {
        "a": {"kernel": jnp.full((3, 3), 5.0)},
        "b": {"kernel": jnp.ones(2)},
        "c": {"kernel": jnp.ones(4) / 10},
    }
    optimizer = make_optimizer(config)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    norms = {k: 1e6 * float(jnp.linalg.norm(x["kernel"])) for k, x in updates.items()}
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
