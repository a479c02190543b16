"""DrQ-v2: networks of the published size, losses, targets and the order of an update, acting, bad batches."""

import functools
import math

import drq_in_numpy as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.errors import KeyReuseError

from jaxrl.config import Config, ConfigError, replace
from jaxrl.learners import make
from jaxrl.learners.drq import shared
from jaxrl.learners.drq.continuous import DrqV2, clamp
from jaxrl.ops import conv_valid
from jaxrl.ops.product import product
from jaxrl.types import ArraySpec, Continuous, Horizon, Spaces, Step, Transitions

# Fast to compile; the graph is optimised as always, only the code for the processor is not.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

B, N, A = 5, 3, 2
IMAGES, VECTORS = ["front", "wrist"], ["joints", "touch"]
KEYS = (IMAGES, VECTORS)
SPACES = Spaces(
    obs={
        "wrist": ArraySpec((16, 15, 3), np.dtype(np.uint8)),
        "touch": ArraySpec((1,), np.dtype(np.float32)),
        "front": ArraySpec((17, 17, 1), np.dtype(np.uint8)),
        "joints": ArraySpec((4,), np.dtype(np.float32)),
    },
    action=Continuous(A),
)
PIXELS = Spaces(obs={"image": ArraySpec((84, 84, 3), np.dtype(np.uint8))}, action=Continuous(6))
STATE = Spaces(obs={"state": ArraySpec((7,), np.dtype(np.float32))}, action=Continuous(A))
ADAM = {"opt.name": "adam", "opt.lr": 1e-2, "opt.eps": 1e-8, "opt.agc": 0.0, "opt.warmup": 0}
PUBLISHED = {"agent": "drq", "model.compute_dtype": "float32", **ADAM}
TINY = PUBLISHED | {
    "drq.stack": 2,
    "drq.channels": 4,
    "drq.features": 6,
    "drq.hidden": 8,
    "drq.shift": 0,
    "drq.random_steps": 12,
    "drq.noise_steps": 1_000,
    "drq.tau": 0.25,
}


def config_of(**changes):
    return replace(Config(), TINY | {k.replace("__", "."): v for k, v in changes.items()})


def random_batch(spaces, seed=0, stack=2, b=B):
    draw = np.random.default_rng(seed)

    def obs():
        found = {}
        for name, spec in spaces.obs.items():
            if spec.is_image:
                h, w, c = spec.shape
                found[name] = draw.integers(0, 256, (b, h, w, stack * c), np.uint8)
            else:
                found[name] = draw.standard_normal((b, *spec.shape), np.float32)
        return found

    continuous = isinstance(spaces.action, Continuous)
    action = draw.uniform(-1, 1, (b, A)) if continuous else draw.integers(0, spaces.action.n, b)
    return Transitions(
        obs=obs(),
        action=np.asarray(action, np.float32 if continuous else np.int32),
        reward=draw.standard_normal(b, np.float32),
        discount=np.where(np.arange(b) == 1, 0, 0.97).astype(np.float32),  # one is terminal
        next_obs=obs(),
        agent_steps=np.int32(500),
    )


class World:
    """A tiny learner on two cameras and two vectors, shaken so that no bias is zero, and one update of it."""

    def __init__(self):
        self.config = config_of()
        self.parts = DrqV2(self.config, SPACES)
        self.learner = make(self.config, SPACES)
        self.state = shaken(quick(self.learner.init)(jax.random.key(0)))
        self.update, self.explain = quick(self.learner.update), quick(self.learner.explain)
        self.act = quick(self.learner.act, static_argnums=4)
        self.batch, self.key = random_batch(SPACES), jax.random.key(5)
        self.out = self.update(self.state, self.batch, self.key)
        self.explained = self.explain(self.state, self.batch, self.key)

    def scalars(self, out=None):
        return scalars(self.out if out is None else out)

    def noise(self):
        """What an update at 500 agent steps adds to actions: for the target, for the actor's loss."""
        keys = jax.random.split(self.key, 4)[2:]
        sigma = 1.0 + (0.1 - 1.0) * 500 / 1_000
        draws = [np.asarray(jax.random.normal(k, (B, A)), np.float64) for k in keys]
        assert max(np.abs(sigma * x).max() for x in draws) > 0.3  # some is clipped
        return [np.clip(sigma * x, -0.3, 0.3) for x in draws]


def shaken(state):
    leaves, tree = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    leaves = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, leaves)
    if "actor" in params:
        params["actor"]["head"]["out"]["bias"] += jnp.array([1.5, -1.5])  # near the bounds, beyond with noise
    slow = {k: params[k] for k in state.slow}
    slow = jax.tree.map(lambda x: x + 0.1 * jnp.sin(37 * x), slow)  # targets that lag behind
    return state.replace(params=params, slow=slow)


def scalars(out):
    return {k.removeprefix("train/"): float(m.total / m.count) for k, m in out.metrics.items()}


def tree_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def sizes(tree):
    return {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in tree.items()}


@pytest.fixture(scope="module")
def world():
    return World()


# Networks


def test_networks_have_the_published_sizes():
    """84x84, three RGB frames, six actions, as in DrQ-v2's program."""
    learner = make(replace(Config(), PUBLISHED), PIXELS)
    state = jax.eval_shape(learner.init, jax.random.key(0))
    assert learner.horizon == Horizon(stack=3, nstep=3, discount=0.99)
    flat = 35 * 35 * 32
    assert state.params["actor"]["trunk"]["image"]["linear"]["kernel"].shape == (flat, 50) == (39_200, 50)
    trunk = flat * 50 + 50 + 2 * 50
    head = [(n + 1) * 1024 + 1025 * 1024 for n in (56, 50)]
    assert sizes(state.params) == {
        "encoder": 9 * 9 * 32 + 3 * (9 * 32 * 32) + 4 * 32,
        "critic": trunk + 2 * (head[0] + 1025),
        "actor": trunk + head[1] + 1025 * 6,
    }
    assert sizes(state.params) == {"encoder": 30_368, "critic": 4_178_136, "actor": 3_068_124}
    assert jax.tree.structure(state.slow) == jax.tree.structure({"critic": state.params["critic"]})


def test_cameras_have_encoders_and_vectors_a_bottleneck_of_their_own():
    one = ArraySpec((84, 84, 3), np.dtype(np.uint8))
    joints = ArraySpec((18,), np.dtype(np.float32))
    found = {}
    for name, obs in {
        "one": {"a": one},
        "two": {"a": one, "b": one},
        "more": {"a": one, "q": joints},
    }.items():
        learner = make(replace(Config(), PUBLISHED), Spaces(obs=obs, action=Continuous(6)))
        found[name] = sizes(jax.eval_shape(learner.init, jax.random.key(0)).params)
    assert found["two"]["encoder"] == 2 * found["one"]["encoder"]
    assert found["two"]["actor"] - found["one"]["actor"] == 39_200 * 50
    own = 18 * 50 + 50 + 100
    assert found["more"]["actor"] - found["one"]["actor"] == own + 50 * 1024
    assert found["more"]["critic"] - found["one"]["critic"] == own + 2 * 50 * 1024


def test_weights_start_orthogonal():
    learner = make(config_of(), SPACES)
    state = quick(learner.init)(jax.random.key(0))
    for path, x in jax.tree_util.tree_flatten_with_path(state.params)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("bias"):
            assert not np.asarray(x).any(), name
        elif name.endswith("kernel"):
            gain = 2 if name.startswith("encoder") else 1
            x = np.asarray(x).reshape(-1, x.shape[-1])
            x = x if x.shape[0] >= x.shape[1] else x.T
            np.testing.assert_allclose(x.T @ x, gain * np.eye(x.shape[1]), atol=1e-5, err_msg=name)
        else:
            assert name.endswith("scale") and (np.asarray(x) == 1).all(), name
    assert tree_equal(state.slow, {"critic": state.params["critic"]})
    other = quick(learner.init)(jax.random.key(1))
    a, b = (x.params["actor"]["head"]["out"]["kernel"] for x in (state, other))
    assert not np.array_equal(a, b)


def encoder_layers(draw, c_in: int, dtype=jnp.float32) -> list[conv_valid.Layer]:
    return [
        conv_valid.Layer(
            jnp.asarray(draw.normal(size=(3, 3, i, 8)) / np.sqrt(4.5 * i), dtype),
            jnp.asarray(draw.normal(size=8) / 10, dtype),
        )
        for i in (c_in, 8, 8, 8)
    ]


@pytest.mark.parametrize("cache", [0, 1 << 30])  # a few images at a time, and all of them
@pytest.mark.parametrize("shape", [(3, 84, 84, 9), (16, 33, 40, 4), (4, 15, 16, 1)])
def test_the_fast_encoder_is_the_plain_one(shape, cache, monkeypatch):
    """Outputs and gradients, for odd and even sides and numbers of images."""
    monkeypatch.setattr(conv_valid, "CACHE", cache)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, shape, np.uint8)
    layers = encoder_layers(draw, shape[-1])
    h, w = ((x - 1) // 2 - 6 for x in shape[1:3])
    weight = draw.normal(size=(shape[0], h, w, 8))
    forms = (conv_valid.plain, conv_valid._encode)

    @quick
    def both(layers):
        gradients = [jax.grad(lambda p, f=f: (f(images, p) * weight).sum())(layers) for f in forms]
        return gradients, [f(images, layers) for f in forms]

    grads, outputs = both(layers)
    assert outputs[0].shape == weight.shape
    params = {"image": {f"conv{i}": {"kernel": x.kernel, "bias": x.bias} for i, x in enumerate(layers)}}
    want = reference.features(reference.as_float64(params), {"image": images}, ["image"], [])["image"]
    for grad, output in zip(grads, outputs, strict=True):
        np.testing.assert_allclose(output.reshape(shape[0], -1), want, atol=2e-5)
        for a, b in zip(jax.tree.leaves(grad), jax.tree.leaves(grads[0]), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-3 * np.abs(b).max())  # a ReLU may tip at rounding


@pytest.mark.parametrize(
    ("shape", "dtype", "shared"),  # rows, terms, columns; whether it is a convolution
    [
        ((16, 4_096, 50), jnp.float32, True),
        ((64, 4_098, 64), jnp.float32, True),
        ((15, 4_096, 50), jnp.float32, False),
        ((65, 4_096, 50), jnp.float32, False),
        ((64, 4_096, 65), jnp.float32, False),
        ((64, 4_094, 50), jnp.float32, False),
        ((64, 4_097, 50), jnp.float32, False),
        ((64, 4_096, 50), jnp.bfloat16, False),
    ],
)
def test_products_are_the_same_shared_or_not(shape, dtype, shared):
    """With their gradients, as NumPy's in float64."""
    rows, terms, columns = shape
    draw = np.random.default_rng(0)
    x, kernel, dy = (draw.normal(size=s) for s in ((rows, terms), (terms, columns), (rows, columns)))
    x, kernel, dy = jnp.asarray(x, dtype), jnp.asarray(kernel, dtype), jnp.asarray(dy, dtype)
    run = quick(lambda x, w: (product(x, w), jax.grad(lambda x, w: (product(x, w) * dy).sum(), (0, 1))(x, w)))
    assert ("convolution" in run.lower(x, kernel).compile().as_text()) == shared
    y, grads = run(x, kernel)
    assert y.dtype == jnp.float32 and all(g.dtype == dtype for g in grads)
    a, b, c = (np.asarray(v, np.float64) for v in (x, kernel, dy))
    np.testing.assert_allclose(y, a @ b, rtol=1e-5, atol=1e-3)
    near = {"rtol": 1e-5, "atol": 1e-4} if dtype == jnp.float32 else {"rtol": 0.01, "atol": 1e-4}
    for grad, want in zip(grads, (c @ b.T, a.T @ c), strict=True):
        np.testing.assert_allclose(np.asarray(grad, np.float64), want, **near)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_fast_encoder_in_bfloat16(dtype):
    """Its gradients are sums in f32: near those of f32, for pixels of either kind; none flow to these."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (16, 21, 24, 3), np.uint8).astype(dtype)
    layers = encoder_layers(draw, 3)
    coarse = jax.tree.map(lambda x: x.astype(jnp.bfloat16), layers)
    run = quick(jax.grad(lambda p, x: conv_valid._encode(x, p).astype(jnp.float32).sum()))
    for a, b in zip(jax.tree.leaves(run(coarse, images)), jax.tree.leaves(run(layers, images)), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(a), b, atol=0.05 * np.abs(b).max())
    if dtype == np.float32:
        still = quick(jax.grad(lambda x: conv_valid._encode(x, layers).sum()))(images)
        assert not np.any(still)


def test_images_that_are_too_small_are_refused():
    spaces = Spaces(obs={"image": ArraySpec((14, 14, 3), np.dtype(np.uint8))}, action=Continuous(1))
    with pytest.raises(ConfigError, match=r"env\.size=14: must be at least 15 with agent=drq"):
        make(config_of(), spaces)
    spaces = Spaces(obs={"image": ArraySpec((14, 14, 3), np.dtype(np.int32))}, action=Continuous(1))
    with pytest.raises(ValueError, match="expected uint8"):
        make(config_of(), spaces)


# One update, against float64


def test_targets_and_losses(world):
    """The actor's loss is that of the features from before, judged by the critic from after the update."""
    p, slow = reference.as_float64(world.state.params), reference.as_float64(world.state.slow["critic"])
    after = reference.as_float64(world.out.state.params)
    noise_target, noise_actor = world.noise()
    y = reference.target_v2(p, slow, world.batch, noise_target, KEYS)
    assert y[1] == world.batch.reward[1]  # nothing comes after a terminal state
    seen = reference.features(p["encoder"], world.batch.obs, *KEYS)
    action = reference.actor(p["actor"], seen) + noise_actor
    beyond = action - np.clip(action, -reference.LIMIT, reference.LIMIT)
    assert beyond.any()
    want = {
        "target": y.mean(),
        "q": reference.critic(p["critic"], seen, world.batch.action).mean(),
        "loss/critic": reference.critic_loss_v2(p, world.batch, y, KEYS),
        "loss/actor": reference.actor_loss_v2(p["actor"], after["critic"], seen, noise_actor, beyond),
        "noise": 0.55,
        "opt/skipped": 0,
        "opt/lr": 1e-2,
    }
    got = world.scalars()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, err_msg=name)
    # and of no other network: each of these gives another number
    moved = reference.features(after["encoder"], world.batch.obs, *KEYS)
    for critic, eyes in ((p, seen), (after, moved)):
        other = reference.actor_loss_v2(p["actor"], critic["critic"], eyes, noise_actor, beyond)
        assert abs(other - want["loss/actor"]) > 1e-3 * abs(want["loss/actor"])


def wiggled(tree, path, direction, size):
    """A copy of nested dicts with one tensor moved."""
    head, _, rest = path.partition("/")
    moved = wiggled(tree[head], rest, direction, size) if rest else tree[head] + size * direction
    return tree | {head: moved}


def test_gradients(world):
    """Along random directions in each tensor, against differences of the float64 losses."""
    p, slow = reference.as_float64(world.state.params), reference.as_float64(world.state.slow["critic"])
    after, draw = reference.as_float64(world.out.state.params), np.random.default_rng(0)
    noise_target, noise_actor = world.noise()
    y = reference.target_v2(p, slow, world.batch, noise_target, KEYS)
    seen = reference.features(p["encoder"], world.batch.obs, *KEYS)
    action = reference.actor(p["actor"], seen) + noise_actor
    beyond = action - np.clip(action, -reference.LIMIT, reference.LIMIT)

    def loss(q, network):
        if network == "actor":
            return reference.actor_loss_v2(q["actor"], after["critic"], seen, noise_actor, beyond)
        return reference.critic_loss_v2(q, world.batch, y, KEYS)

    names = [k.removeprefix("grad/") for k in world.explained if k.startswith("grad/")]
    assert len(names) == len(jax.tree.leaves(world.state.params))
    for name in names:
        got = np.asarray(world.explained[f"grad/{name}"], np.float64)
        direction, network = draw.standard_normal(got.shape), name.split("/")[0]
        size = 1e-6
        ends = [loss(wiggled(p, name, direction, s), network) for s in (size, -size)]
        want = (ends[0] - ends[1]) / (2 * size)
        scale = np.linalg.norm(got) * np.linalg.norm(direction)
        np.testing.assert_allclose((got * direction).sum(), want, atol=1e-4 * scale + 1e-7, err_msg=name)


def test_the_step_is_adams_and_the_target_follows_the_new_critic(world):
    """The first step of Adam is lr * g / (|g| + eps); every network makes one."""
    after = reference.as_float64(world.out.state.params)
    for path, before in jax.tree_util.tree_flatten_with_path(world.state.params)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        grad = np.asarray(world.explained[f"grad/{name}"], np.float64)
        got = functools.reduce(dict.__getitem__, name.split("/"), after)
        want = np.asarray(before, np.float64) - 1e-2 * grad / (np.abs(grad) + 1e-8)
        np.testing.assert_allclose(got, want, atol=1e-4, err_msg=name)
        assert np.abs(got - before).max() > 5e-3, name
    slow, target = (reference.as_float64(x.slow["critic"]) for x in (world.state, world.out.state))
    want = jax.tree.map(lambda t, q: 0.75 * t + 0.25 * q, slow, after["critic"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), target, want)


def test_clamping_keeps_the_gradient():
    action = jnp.array([-3.0, -0.5, 0.0, 0.999, 1.0, 7.0])
    value, grad = jax.value_and_grad(lambda x: (clamp(x) * jnp.arange(6.0)).sum())(action)
    np.testing.assert_array_equal(grad, np.arange(6))
    np.testing.assert_allclose(clamp(action), np.clip(action, -1 + 1e-6, 1 - 1e-6), rtol=1e-7)
    assert np.abs(clamp(action)).max() < 1 and np.isfinite(value)


def test_noise_falls_linearly_in_agent_steps(world):
    steps = jnp.array([0, 250, 500, 1_000, 10**9], jnp.int32)
    np.testing.assert_allclose(world.parts.noise(steps), [1.0, 0.775, 0.55, 0.1, 0.1], rtol=1e-6)
    late = world.update(world.state, world.batch.replace(agent_steps=np.int32(10**9)), world.key)
    np.testing.assert_allclose(scalars(late)["noise"], 0.1, rtol=1e-6)


def test_images_are_augmented_each_by_itself():
    """Independent shifts of obs and next_obs, of cameras, of images; vectors stay."""
    drq = replace(Config(), {"drq.shift": 4}).drq
    draw = np.random.default_rng(0)
    image = np.broadcast_to(draw.integers(0, 256, (1, 40, 40, 6), np.uint8), (64, 40, 40, 6))
    obs = {"a": image, "b": image, "v": np.ones((64, 3), np.float32)}
    one = shared.augmented(obs, jax.random.key(0), drq)
    two = shared.augmented(obs, jax.random.key(1), drq)
    assert one["a"].dtype == jnp.uint8 and one["v"] is obs["v"]

    def same(x, y):
        return (np.asarray(x) == np.asarray(y)).all((1, 2, 3)).mean()

    # of 81 shifts a few meet by chance
    assert max(same(one["a"], one["b"]), same(one["a"], two["a"]), same(one["a"][1:], one["a"][:-1])) < 0.15
    bright = shared.augmented(obs, jax.random.key(0), replace(Config(), {"drq.intensity": 0.05}).drq)
    ratio = np.asarray(bright["a"])[:, 20, 20, 0] / np.asarray(one["a"])[:, 20, 20, 0]
    assert 0.9 - 1e-5 < ratio.min() < 1 < ratio.max() < 1.1 + 1e-5


def test_an_update_shifts_its_images():
    """Those of obs and those of next_obs: with one colour everywhere a shift changes nothing."""
    spaces = Spaces(obs={"image": SPACES.obs["front"]}, action=Continuous(A))
    batch, key = random_batch(spaces), jax.random.key(0)
    flat = jax.tree.map(lambda x: np.full_like(x, 7), (batch.obs, batch.next_obs))
    states = {}
    for shift in (0, 3):
        learner = make(config_of(drq__shift=shift), spaces)
        state = quick(learner.init)(key)
        update = quick(learner.update)
        plain = batch.replace(obs=flat[0], next_obs=flat[1])
        batches = plain, plain.replace(obs=batch.obs), plain.replace(next_obs=batch.next_obs)
        states[shift] = [update(state, b, key).state.params for b in batches]
    assert [tree_equal(a, b) for a, b in zip(states[0], states[3], strict=True)] == [True, False, False]


# Updates as the loop sees them


METRICS = {"loss/critic", "loss/actor", "q", "target", "noise"}
METRICS |= {f"opt/{x}" for x in ("grad_norm", "actor_grad_norm", "update_rms", "param_rms", "lr", "skipped")}


def test_update_is_a_scan_carry(world):
    assert set(world.scalars()) == METRICS and world.out.latents == ()
    assert jax.tree.structure(world.out.state) == jax.tree.structure(world.state)
    for a, b in zip(jax.tree.leaves(world.out.state), jax.tree.leaves(world.state), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    shapes = jax.eval_shape(world.learner.update, world.state, world.batch, world.key).state
    assert not any(x.weak_type for x in jax.tree.leaves(shapes))
    same = world.update(world.state, world.batch, world.key)
    assert tree_equal(same, world.out)
    assert not tree_equal(world.update(world.state, world.batch, jax.random.key(6)).state, same.state)


@pytest.mark.parametrize("field", ["reward", "joints"])
def test_a_bad_batch_is_skipped_and_counted(world, field):
    batch = world.batch
    if field == "reward":
        bad = batch.replace(reward=np.where(np.arange(B) == 2, np.nan, batch.reward))
    else:
        bad = batch.replace(obs=batch.obs | {"joints": batch.obs["joints"] * np.float32(np.inf)})
    out = world.update(world.out.state, bad, world.key)
    assert tree_equal(out.state, world.out.state)
    assert scalars(out)["opt/skipped"] == 1 and not np.isfinite(scalars(out)["loss/critic"])
    good = world.update(out.state, batch, world.key)
    assert scalars(good)["opt/skipped"] == 0 and not tree_equal(good.state, out.state)


def test_an_actor_that_alone_is_not_finite_keeps_the_critic_back(world):
    """Its gradient overflows, when the critic's step has been computed already; means are 0, and finite."""
    params = jax.tree.map(jnp.asarray, world.out.state.params)
    head = params["actor"]["head"]
    head["hidden1"]["kernel"] *= 1e25
    head["out"]["kernel"] *= 0
    state = world.out.state.replace(params=params)
    out = world.update(state, world.batch, world.key)
    numbers = scalars(out)
    assert numbers["opt/skipped"] == 1 and not np.isfinite(numbers["opt/actor_grad_norm"])
    assert all(np.isfinite(numbers[k]) for k in ("loss/critic", "loss/actor", "opt/grad_norm"))
    assert tree_equal(out.state, state)


def test_an_update_is_explained_by_name(world):
    paths = jax.tree_util.tree_flatten_with_path(world.state.params)[0]
    paths = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths}
    tensors = {f"{kind}/{path}" for kind in ("grad", "param") for path in paths}
    assert set(world.explained) == tensors | {"loss/critic", "loss/actor"}
    np.testing.assert_allclose(world.explained["loss/critic"], world.scalars()["loss/critic"], rtol=1e-6)
    reward = np.where(np.arange(B) == 2, np.nan, world.batch.reward)
    found = world.explain(world.state, world.batch.replace(reward=reward), world.key)
    assert not np.isfinite(found["loss/critic"])
    assert all(np.isfinite(x).all() for k, x in found.items() if k.startswith("param/"))


def test_a_fixed_batch_is_learned_by_heart(world):
    """With targets that stand still (all states are terminal) the critic's error falls to nothing."""
    last = world.batch.replace(discount=np.zeros(B, np.float32))
    state, curve = world.state, []
    for i in range(150):
        out = world.update(state, last, jax.random.key(i))
        state = out.state
        curve.append(scalars(out))
    assert curve[-1]["loss/critic"] < 0.01 * curve[0]["loss/critic"]
    assert curve[-1]["loss/actor"] < curve[0]["loss/actor"]  # actions of higher value


def test_bfloat16_is_near_float32(world):
    """Parameters, targets and losses stay f32."""
    learner = make(config_of(model__compute_dtype="bfloat16"), SPACES)
    out = quick(learner.update)(world.state, world.batch, world.key)
    assert all(x.dtype != jnp.bfloat16 for x in jax.tree.leaves(out.state))
    for name in ("loss/critic", "loss/actor", "target", "q"):
        assert abs(scalars(out)[name] - world.scalars()[name]) < 0.05 * (1 + abs(world.scalars()[name])), name


@pytest.mark.parametrize("stack", [1, 3])
def test_state_without_pixels(stack):
    learner = make(config_of(drq__stack=stack), STATE)
    state = quick(learner.init)(jax.random.key(0))
    assert state.params["encoder"] == {} and learner.initial_carry(4).frames == {}
    out = quick(learner.update)(state, random_batch(STATE), jax.random.key(1))
    assert scalars(out)["opt/skipped"] == 0 and not tree_equal(out.state.params, state.params)
    step = step_of({"state": np.ones((4, 7), np.float32)})
    acted = learner.act(
        learner.policy_params(state), learner.initial_carry(4), step, jax.random.key(0), "mode"
    )
    assert acted.action.shape == (4, A) and np.abs(acted.action).max() <= 1


# Acting


def step_of(obs, first=None):
    n = len(next(iter(obs.values())))
    no = np.zeros(n, bool)
    flags = {"is_last": no, "is_terminal": no, "is_first": no if first is None else np.array(first)}
    return Step(obs=obs, reward=np.zeros(n, np.float32), **flags)


def observed(draw, n=N):
    return {
        k: draw.integers(0, 256, (n, *x.shape), np.uint8)
        if x.is_image
        else draw.standard_normal((n, *x.shape), np.float32)
        for k, x in SPACES.obs.items()
    }


def test_acting_sees_the_newest_frames_and_none_of_another_episode():
    """Three frames together, oldest first, of two streams whose episodes begin at different times."""
    spaces = Spaces(obs={"image": ArraySpec((15, 15, 1), np.dtype(np.uint8))}, action=Continuous(A))
    learner = make(config_of(drq__stack=3), spaces)
    params = learner.policy_params(quick(learner.init)(jax.random.key(0)))
    assert set(params) == {"encoder", "actor"}
    act, carry, shown = quick(learner.act, static_argnums=4), learner.initial_carry(2), []
    for t in range(6):
        number = np.array([t, 10 + t], np.uint8)[:, None, None, None]
        first = [t == 0, t in (0, 3)]
        obs = {"image": np.broadcast_to(number, (2, 15, 15, 1))}
        carry = act(params, carry, step_of(obs, first), jax.random.key(t), "mode").carry
        shown.append(np.asarray(carry.frames["image"])[:, 0, 0].tolist())
        assert (np.asarray(carry.agent_steps) == t + 1).all()  # episodes do not reset it
    one = [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]
    two = [[10, 10, 10], [10, 10, 11], [10, 11, 12], [13, 13, 13], [13, 13, 14], [13, 14, 15]]
    assert [x[0] for x in shown] == one and [x[1] for x in shown] == two


def test_acting_is_the_policy_that_updates_train(world):
    """The mean action, from the same frames in the same order, against float64."""
    draw, carry = np.random.default_rng(1), world.learner.initial_carry(N)
    params = world.learner.policy_params(world.state)
    steps = [observed(draw) for _ in range(2)]
    for i, obs in enumerate(steps):
        out = world.act(params, carry, step_of(obs, [i == 0] * N), jax.random.key(i), "mode")
        carry = out.carry
    stacked = {
        k: np.concatenate([s[k] for s in steps], -1) if k in IMAGES else steps[1][k] for k in SPACES.obs
    }
    p = reference.as_float64(params)
    want = reference.actor(p["actor"], reference.features(p["encoder"], stacked, *KEYS))
    np.testing.assert_allclose(out.action, want, atol=1e-5)


def test_the_first_decisions_are_uniform(world):
    """12 agent_steps of 3 environments are 4 decisions each; the policy matters from the fifth on."""
    params = world.learner.policy_params(world.state)
    other = jax.tree.map(lambda x: -x, params)
    step = step_of(observed(np.random.default_rng(1)), [False] * N)
    for count in range(6):
        carry = world.learner.initial_carry(N).replace(agent_steps=jnp.full(N, count, jnp.int32))
        a, b = (world.act(p, carry, step, jax.random.key(count), "train").action for p in (params, other))
        assert np.array_equal(a, b) == (count < 4), count
        for mode in ("sample", "mode"):  # an evaluation has no such phase
            a, b = (world.act(p, carry, step, jax.random.key(count), mode).action for p in (params, other))
            assert not np.array_equal(a, b)
    carry = world.learner.initial_carry(2_000)
    step = step_of(observed(np.random.default_rng(1), 2_000))
    action = np.asarray(world.learner.act(params, carry, step, jax.random.key(0), "train").action).ravel()
    np.testing.assert_allclose([action.min(), action.mean(), action.max()], [-1, 0, 1], atol=0.05)
    assert abs(action.std() - 3**-0.5) < 0.02


@pytest.mark.parametrize(
    ("mode", "steps", "sigma"), [("train", 100, 0.55), ("train", 10**6, 0.1), ("sample", 0, 0.1)]
)
def test_exploration_has_the_deviation_of_the_schedule(world, mode, steps, sigma):
    """5 environments: 100 decisions of each are 500 agent_steps. No noise is clipped, only the action."""
    params = jax.tree.map(lambda x: x, world.learner.policy_params(world.state))
    params["actor"]["head"]["out"] = jax.tree.map(jnp.zeros_like, params["actor"]["head"]["out"])  # mean 0
    step = step_of(observed(np.random.default_rng(1), 5))
    carry = world.learner.initial_carry(5).replace(agent_steps=jnp.full(5, steps, jnp.int32))
    draws = [world.act(params, carry, step, jax.random.key(i), mode).action for i in range(400)]
    noise = np.abs(np.ravel(draws))
    quartile = 0.67449 * sigma
    assert abs((noise < quartile).mean() - 0.5) < 0.04
    assert noise.max() < 1 and (noise > 0.3).any()
    assert abs((noise < 0.3).mean() - (1 - 2 * normal_above(0.3 / sigma))) < 0.04


def normal_above(x):
    return 0.5 * (1 - np.vectorize(math.erf)(x / 2**0.5))


def test_no_key_is_used_twice(world):
    step = step_of(observed(np.random.default_rng(1)), [False] * N)
    carry, params = world.learner.initial_carry(N), world.learner.policy_params(world.state)
    learner = make(config_of(drq__shift=2, drq__intensity=0.05), SPACES)
    key = jax.random.key(0)
    with jax.debug_key_reuse(True):
        with pytest.raises(KeyReuseError):
            jax.jit(lambda key: jax.random.normal(key) + jax.random.normal(key)).trace(key)
        jax.jit(learner.init).trace(key)
        jax.jit(functools.partial(learner.act, mode="train")).trace(params, carry, step, key)
        jax.jit(learner.update).trace(world.state, world.batch, key)
