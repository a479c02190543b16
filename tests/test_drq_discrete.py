"""DrQ for discrete actions: network, double targets, Huber loss, epsilon-greedy acting."""

import functools

import drq_in_numpy as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_drq import (
    ADAM,
    config_of,
    quick,
    random_batch,
    scalars,
    shaken,
    sizes,
    step_of,
    tree_equal,
    wiggled,
)

from jaxrl.config import Config, replace
from jaxrl.learners import make
from jaxrl.learners.drq.discrete import DrqEps
from jaxrl.types import ArraySpec, Discrete, Horizon, Spaces

B, A = 5, 4
KEYS = (["image"], ["lives"])
SPACES = Spaces(
    obs={"image": ArraySpec((21, 18, 1), np.dtype(np.uint8)), "lives": ArraySpec((3,), np.dtype(np.float32))},
    action=Discrete(A),
)
SMALL = {"drq__channels": 2, "drq__random_steps": 100, "drq__noise_end": 0.1, "drq__eval_noise": 0.05}
METRICS = {"loss/critic", "q", "target", "noise"}
METRICS |= {f"opt/{x}" for x in ("grad_norm", "update_rms", "param_rms", "lr", "skipped")}


class World:
    """A tiny learner, shaken, and one update of it."""

    def __init__(self, tau):
        config = config_of(drq__tau=tau, **SMALL)
        self.parts, self.learner = DrqEps(config, SPACES), make(config, SPACES)
        self.state = shaken(quick(self.learner.init)(jax.random.key(0)))
        slow = jax.tree.map(jnp.copy, self.state.params if tau == 1 else self.state.slow)
        if tau < 1:  # a target network of quite another opinion about what is best
            slow["critic"]["advantage"] = jax.tree.map(jnp.negative, slow["critic"]["advantage"])
        self.state = self.state.replace(slow=slow)
        self.update, self.explain = quick(self.learner.update), quick(self.learner.explain)
        self.act = quick(self.learner.act, static_argnums=4)
        reward = np.array([-1, -1.4, 3, 0.2, -4], np.float32)  # errors on both sides of 1
        self.batch = random_batch(SPACES).replace(reward=reward)
        self.out = self.update(self.state, self.batch, jax.random.key(5))


@pytest.fixture(scope="module")
def world():
    return World(tau=0.25)


def test_network_has_the_published_size():
    """Dopamine's network for 84x84, four grey frames and 6 actions."""
    changes = {"agent": "drq", "model.compute_dtype": "float32", **ADAM, "drq.stack": 4, "drq.nstep": 10}
    spaces = Spaces(obs={"image": ArraySpec((84, 84, 1), np.dtype(np.uint8))}, action=Discrete(6))
    learner = make(replace(Config(), changes | {"drq.hidden": 512}), spaces)
    assert learner.horizon == Horizon(stack=4, nstep=10, discount=0.99)
    state = jax.eval_shape(learner.init, jax.random.key(0))
    assert sizes(state.params) == {
        "encoder": 8 * 8 * 4 * 32 + 32 + 4 * 4 * 32 * 64 + 64 + 3 * 3 * 64 * 64 + 64,
        "critic": (11 * 11 * 64 + 1) * 512 + 513 * 6 + 513,
    }


@pytest.mark.parametrize("tau", [0.25, 1.0])
def test_double_targets_and_huber_loss(tau, world):
    """The online network chooses, the target network judges; with tau = 1 they are one."""
    w = world if tau < 1 else World(tau)
    p, slow = reference.as_float64(w.state.params), reference.as_float64(w.state.slow)
    y = reference.target_eps(p, slow, w.batch, KEYS)
    want = {"target": y.mean(), "loss/critic": reference.loss_eps(p, w.batch, y, KEYS), "opt/skipped": 0}
    q = reference.dueling(p["critic"], reference.features(p["encoder"], w.batch.obs, *KEYS, nature=True))
    chosen = q[np.arange(B), w.batch.action]
    want["q"] = chosen.mean()
    assert 0 < (np.abs(chosen - y) < 1).sum() < B
    got = scalars(w.out)
    assert set(got) == METRICS
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, err_msg=name)
    if tau < 1:  # other choices and judges give other numbers
        for pair in ((slow, slow), (p, p), (slow, p)):
            assert abs(reference.target_eps(*pair, w.batch, KEYS).mean() - want["target"]) > 1e-3
    target = reference.as_float64(w.out.state.slow)
    after = reference.as_float64(w.out.state.params)
    mixed = jax.tree.map(lambda t, x: (1 - tau) * t + tau * x, slow, after)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), target, mixed)


def test_gradients_and_step(world):
    """Along random directions, against differences of the float64 loss; the step is Adam's first."""
    p, slow = reference.as_float64(world.state.params), reference.as_float64(world.state.slow)
    y, draw = reference.target_eps(p, slow, world.batch, KEYS), np.random.default_rng(0)
    found = world.explain(world.state, world.batch, jax.random.key(5))
    after = reference.as_float64(world.out.state.params)
    for name in (k.removeprefix("grad/") for k in found if k.startswith("grad/")):
        got = np.asarray(found[f"grad/{name}"], np.float64)
        direction, size = draw.standard_normal(got.shape), 1e-6
        moved = [wiggled(p, name, direction, s) for s in (size, -size)]
        ends = [reference.loss_eps(q, world.batch, y, KEYS) for q in moved]
        scale = np.linalg.norm(got) * np.linalg.norm(direction)
        want = (ends[0] - ends[1]) / (2 * size)
        np.testing.assert_allclose((got * direction).sum(), want, atol=1e-4 * scale + 1e-7, err_msg=name)
        before, now = (functools.reduce(dict.__getitem__, name.split("/"), x) for x in (p, after))
        np.testing.assert_allclose(now, before - 1e-2 * got / (np.abs(got) + 1e-8), atol=2e-4, err_msg=name)


def test_update_is_a_scan_carry_and_skips_what_is_bad(world):
    assert world.out.latents == ()
    for a, b in zip(jax.tree.leaves(world.out.state), jax.tree.leaves(world.state), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert not tree_equal(world.out.state.params, world.state.params)
    bad = world.batch.replace(reward=np.float32([0, 0, np.inf, 0, 0]))
    out = world.update(world.out.state, bad, jax.random.key(5))
    assert tree_equal(out.state, world.out.state) and scalars(out)["opt/skipped"] == 1


def test_epsilon_falls_after_the_random_phase(world):
    """Certain for 100 agent_steps, then from 1 to 0.1 in 1,000, as in dopamine's schedule."""
    steps = jnp.array([0, 99, 100, 600, 1_100, 10**9], jnp.int32)
    np.testing.assert_allclose(world.parts.noise(steps), [1, 1, 1, 0.55, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize(
    ("mode", "steps", "epsilon"),
    [("train", 0, 1.0), ("train", 150, 0.55), ("mode", 0, 0.05), ("sample", 0, 0.1)],
)
def test_acting_is_greedy_but_for_epsilon(world, mode, steps, epsilon):
    """4 environments: 150 decisions of each are 600 agent_steps. A random action may be the best one."""
    n, draws = 4, 500
    images = np.random.default_rng(1).integers(0, 256, (n, 21, 18, 1), np.uint8)
    obs = {"image": images, "lives": np.ones((n, 3), np.float32)}
    carry = world.learner.initial_carry(n).replace(agent_steps=jnp.full(n, steps, jnp.int32))
    step, params = step_of(obs, [True] * n), world.learner.policy_params(world.state)
    p = reference.as_float64(params)
    stacked = obs | {"image": np.concatenate([images, images], -1)}
    seen = reference.features(p["encoder"], stacked, *KEYS, nature=True)
    best = reference.dueling(p["critic"], seen).argmax(-1)
    outs = [world.act(params, carry, step, jax.random.key(i), mode) for i in range(draws)]
    actions = np.array([x.action for x in outs])
    assert actions.dtype == np.int32 and actions.min() >= 0 and actions.max() < A
    share = (actions != best).mean()
    want = epsilon * (1 - 1 / A)
    assert abs(share - want) < 5 * np.sqrt(want * (1 - want) / (n * draws)) + 1e-3
    np.testing.assert_array_equal(outs[0].carry.frames["image"], stacked["image"])


def test_vectors_alone_are_enough():
    spaces = Spaces(obs={"state": ArraySpec((7,), np.dtype(np.float32))}, action=Discrete(3))
    learner = make(config_of(**SMALL), spaces)
    state = quick(learner.init)(jax.random.key(0))
    out = quick(learner.update)(state, random_batch(spaces), jax.random.key(1))
    assert scalars(out)["opt/skipped"] == 0 and not tree_equal(out.state.params, state.params)
