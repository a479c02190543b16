"""What the world model expects to see: halves of sequences, and what comes of actions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.config import Config, replace
from jaxrl.learners import make
from jaxrl.learners.dreamer import losses as L
from jaxrl.learners.dreamer.model import Latent, Model
from jaxrl.types import ArraySpec, Batch, Continuous, Discrete, Spaces

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

T, B, H = 7, 8, 3
SHOWN, SEEN = 6, T // 2
TINY = {
    "batch_length": T,
    "batch_size": B,
    "model.size": "debug",
    "model.compute_dtype": "float32",
    "model.deter": 16,
    "model.blocks": 2,
    "model.stoch": 3,
    "loss.discount_horizon": 10.0,
}
SPACES = {
    "images": Spaces(
        obs={
            "wrist": ArraySpec((48, 48, 3), np.dtype(np.uint8)),
            "front": ArraySpec((48, 48, 1), np.dtype(np.uint8)),
            "joints": ArraySpec((2,), np.dtype(np.float32)),
        },
        action=Continuous(2),
    ),
    "gray": Spaces(obs={"image": ArraySpec((48, 48, 1), np.dtype(np.uint8))}, action=Discrete(4)),
    "vector": Spaces(obs={"joints": ArraySpec((2,), np.dtype(np.float32))}, action=Discrete(4)),
    "reach": Spaces(obs={"joints": ArraySpec((2,), np.dtype(np.float32))}, action=Continuous(2)),
}


def drawn(draw, path, x) -> np.ndarray:
    name, fan_in = path[-1].key, np.prod(x.shape[:-1])
    deviation = 2 * fan_in**-0.5 if name == "kernel" else 0.3
    return np.float32((name == "scale") + deviation * draw.normal(size=x.shape))


class World:
    """A learner with random parameters, and a batch of random rows."""

    def __init__(self, name: str, **options):
        self.config, self.spaces = replace(Config(), TINY | options), SPACES[name]
        self.model, self.learner = Model(self.config, self.spaces), make(self.config, self.spaces)
        draw = np.random.default_rng(1)
        state = jax.eval_shape(self.learner.init, jax.random.key(0))
        # Fresh heads say 0 and noise decides; these say something, and depend on what they see.
        params = jax.tree_util.tree_map_with_path(functools.partial(drawn, draw), state.params)
        self.state = state.replace(params=params)
        self.params = self.learner.policy_params(self.state) | self.learner.imagine_params(self.state)
        self.batch = self.batch_of(draw)

    def batch_of(self, draw) -> Batch:
        lead = (T + int(self.config.replay.context), B)
        s, c = self.model.stoch_shape
        latent = Latent(
            deter=jnp.tanh(draw.normal(size=(*lead, 16)).astype(np.float32)),
            stoch=jax.nn.one_hot(draw.integers(0, c, size=(*lead, s)), c).reshape(*lead, s * c),
        )
        is_first = draw.random(lead) < 0.2
        return Batch(
            obs={k: self.obs_of(draw, lead, spec) for k, spec in self.spaces.obs.items()},
            action=self.actions(draw, lead),
            reward=np.float32(draw.normal(size=lead)),
            is_first=is_first,
            is_last=np.roll(is_first, -1, 0),
            is_terminal=np.zeros(lead, bool),
            latents=jax.tree.map(np.asarray, self.model.store(latent)),
        )

    @staticmethod
    def obs_of(draw, lead, spec: ArraySpec):
        if spec.is_image:
            return draw.integers(0, 256, size=(*lead, *spec.shape), dtype=np.uint8)
        return np.float32(9 * draw.normal(size=(*lead, *spec.shape)))

    def actions(self, draw, lead):
        space = self.spaces.action
        if isinstance(space, Discrete):
            return draw.integers(0, space.n, size=lead).astype(np.int32)
        return np.float32(draw.uniform(-1, 1, size=(*lead, space.size)))

    @functools.cached_property
    def program(self):
        return quick(self.learner.report)

    def report(self, batch=None):
        batch = self.batch if batch is None else batch
        return jax.device_get(self.program(self.state, batch, jax.random.key(3)))


@functools.cache
def world(name: str, context: bool = True) -> World:
    return World(name, **{"replay.context": context})


def pixels(world: World, latent: Latent) -> dict[str, np.ndarray]:
    """Images of states [T, B], put together from the decoder's four phases one pixel at a time."""
    folded = np.asarray(world.model.run(world.state.params, "dec", latent.deter, latent.stoch)["folded"])
    lead, (h, w) = folded.shape[:2], folded.shape[2:4]
    phases = folded.reshape(*lead, h, w, 2, 2, -1)
    whole = np.zeros((*lead, 2 * h, 2 * w, phases.shape[-1]))
    for row in range(2):
        for column in range(2):
            whole[:, :, row::2, column::2] = phases[..., row, column, :]
    found, start = {}, 0
    for key in sorted(k for k, spec in world.spaces.obs.items() if spec.is_image):
        c = world.spaces.obs[key].shape[-1]
        found[key] = np.rint(255 * whole[..., start : start + c]).astype(np.uint8)
        start += c
    return found


@pytest.mark.parametrize(("name", "context"), [("images", True), ("gray", False)])
def test_the_first_half_is_what_the_posterior_reconstructs(name, context):
    here = world(name, context)
    got, skipped = here.report(), int(context)
    assert got.observed == SEEN
    assert set(got.truth) == set(got.model) == {k for k, spec in here.spaces.obs.items() if spec.is_image}
    cut = jax.tree.map(lambda x: x[: SEEN + skipped, :SHOWN], here.batch)
    key, _ = jax.random.split(jax.random.key(3))
    observed = quick(lambda p, b, k: L.world_model(here.model, p, b, k).latent)(here.state.params, cut, key)
    for key, want in pixels(here, observed).items():
        np.testing.assert_array_equal(got.truth[key], here.batch.obs[key][skipped:, :SHOWN])
        assert got.model[key].shape == (T, SHOWN, *here.spaces.obs[key].shape)
        assert got.model[key].dtype == np.uint8 and want.std() > 3
        off = np.abs(got.model[key][:SEEN].astype(int) - want)
        assert off.max() <= 1 and off.mean() < 0.01  # two programs round 127.5 differently


def test_the_second_half_does_not_depend_on_its_pixels_or_flags():
    here = world("images")
    plain, cut = here.report(), SEEN + 1
    other = World.batch_of(here, np.random.default_rng(9))
    later = {k: np.concatenate([x[:cut], other.obs[k][cut:]]) for k, x in here.batch.obs.items()}
    first = here.batch.is_first.copy()
    first[cut:] = ~first[cut:]
    got = here.report(here.batch.replace(obs=later, is_first=first))
    for key in got.model:
        np.testing.assert_array_equal(got.model[key], plain.model[key])
        assert (got.truth[key][SEEN:] != plain.truth[key][SEEN:]).any()
        np.testing.assert_array_equal(got.truth[key][:SEEN], plain.truth[key][:SEEN])


def test_the_second_half_depends_on_what_was_seen_and_done():
    here = world("images")
    plain = here.report()
    action = here.batch.action.copy()
    action[SEEN + 2] = -action[SEEN + 2]  # the one that leads to row SEEN + 2, context apart
    got = here.report(here.batch.replace(action=action))
    for key in got.model:
        same = (got.model[key] == plain.model[key]).reshape(T, -1).all(1)
        assert same.tolist() == [True] * (SEEN + 2) + [False] * (T - SEEN - 2)
    obs = {k: x.copy() for k, x in here.batch.obs.items()}
    for x in obs.values():  # of the last row that is seen
        x[SEEN] = x[0]
    got = here.report(here.batch.replace(obs=obs))
    for key in got.model:
        same = (got.model[key] == plain.model[key]).reshape(T, -1).all(1)
        assert not same[SEEN - 1 :].any() and same[: SEEN - 1].all()


def test_reports_need_pictures():
    assert world("vector").learner.report is None
    assert world("gray", False).learner.report is not None
    for agent in ("drq", "random"):
        bundle = make(replace(Config(), {"agent": agent}), SPACES["gray"])
        assert bundle.report is None and bundle.imagine is None and bundle.imagine_params is None


@pytest.mark.parametrize(("length", "dtype"), [(1, "float32"), (2, "float32"), (5, "bfloat16")])
def test_shapes_of_reports_of_any_length(length, dtype):
    here = World("images", **{"model.compute_dtype": dtype})
    batch = jax.tree.map(lambda x: x[: length + 1, :4], here.batch)
    got = jax.eval_shape(here.learner.report, here.state, batch, jax.random.key(0))
    assert got.observed == max(1, length // 2)
    for key, spec in (("wrist", (48, 48, 3)), ("front", (48, 48, 1))):
        for x in (got.truth[key], got.model[key]):
            assert x.shape == (length, 4, *spec) and x.dtype == jnp.uint8
    carry, action = here.learner.initial_carry(4), batch.action
    out = jax.eval_shape(here.learner.imagine, here.params, carry, action, jax.random.key(0))
    assert out.reward.shape == out.continuation.shape == action.shape[:2]
    assert out.reward.dtype == out.continuation.dtype == out.obs["joints"].dtype == jnp.float32
    assert jax.tree.map(lambda x: (x.shape, x.dtype), out.carry) == jax.tree.map(
        lambda x: (x.shape, x.dtype), carry
    )


def carry_of(here: World, n: int):
    draw = np.random.default_rng(4)
    s, c = here.model.stoch_shape
    stoch = jax.nn.one_hot(draw.integers(0, c, size=(n, s)), c).reshape(n, s * c)
    blank = here.learner.initial_carry(n)
    deter = jnp.tanh(draw.normal(size=(n, 16)).astype(np.float32))
    return blank.replace(latent=Latent(deter=deter, stoch=stoch), action=jnp.ones_like(blank.action))


@pytest.mark.parametrize("name", ["vector", "reach"])
def test_imagination_is_the_prior_step_by_step(name):
    here, n, key = world(name), 2, jax.random.key(8)
    p, model = here.params, here.model
    assert set(p) == {"enc", "dyn", "pol", "dec", "rew", "con"}
    carry, actions = carry_of(here, n), here.actions(np.random.default_rng(6), (H, n))
    got = quick(here.learner.imagine)(p, carry, actions, key)
    noise, latent = model.noise(key, (H, n)), carry.latent
    for i in range(H):
        action = np.eye(4, dtype=np.float32)[actions[i]] if name == "vector" else actions[i]
        embedded = model.run(p, "dyn", action, method="embed_action")
        deter = model.run(p, "dyn", latent.deter, latent.stoch, embedded, method="core")
        choice = (model.run(p, "dyn", deter, method="prior") + noise[i]).argmax(-1)
        stoch = jax.nn.one_hot(choice, model.stoch_shape[1]).reshape(n, -1)
        latent = Latent(deter=deter, stoch=stoch)
        reward = jax.nn.softmax(model.run(p, "rew", latent.feature)) @ L.bins(model)
        alive = jax.nn.sigmoid(model.run(p, "con", latent.feature)[..., 0]) / (1 - 1 / 10)
        np.testing.assert_allclose(
            got.reward[i], reward, rtol=1e-3, atol=1e-3 * float(L.bins(model)[-1]) / 1e6
        )
        np.testing.assert_allclose(got.continuation[i], np.minimum(alive, 1), rtol=1e-4)
        predicted = model.run(p, "dec", latent.deter, latent.stoch)
        squashed = np.sign(got.obs["joints"][i]) * np.log1p(np.abs(got.obs["joints"][i]))
        np.testing.assert_allclose(squashed, predicted["joints"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.carry.latent.deter, latent.deter, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got.carry.latent.stoch, latent.stoch)
    assert not np.asarray(got.carry.action).any()


def test_imagination_shows_what_the_spaces_say():
    here, n = world("images"), 2
    actions = here.actions(np.random.default_rng(6), (H, n))
    carry = carry_of(here, n)
    got = quick(here.learner.imagine)(here.params, carry, actions, jax.random.key(8))
    for key, spec in here.spaces.obs.items():
        assert got.obs[key].shape == (H, n, *spec.shape) and got.obs[key].dtype == spec.dtype
    assert got.reward.dtype == got.continuation.dtype == jnp.float32
    assert ((0 <= got.continuation) & (got.continuation <= 1)).all()
    last = jax.tree.map(lambda x: x[None], got.carry.latent)
    for key, want in pixels(here, last).items():
        assert np.abs(got.obs[key][-1:].astype(int) - want.astype(int)).max() <= 1
    blank = jax.eval_shape(lambda: here.learner.initial_carry(n))
    assert jax.tree.map(jnp.shape, got.carry) == jax.tree.map(lambda x: x.shape, blank)


def test_the_continuation_is_free_of_the_discount():
    """The head means the product where `loss.contdisc` is on, and the probability itself where it is off."""
    here = world("vector")
    plain = World("vector", **{"loss.contdisc": False})
    carry, actions = carry_of(here, 2), here.actions(np.random.default_rng(6), (H, 2))
    a, b = (
        quick(x.learner.imagine)(here.params, carry, actions, jax.random.key(8)).continuation
        for x in (here, plain)
    )
    assert (b < 0.9).any()
    np.testing.assert_allclose(a, np.minimum(np.asarray(b) / 0.9, 1), rtol=1e-5)
