"""The learner as the loop uses it: acting, stored latents, updates that are carries, bad batches, dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.errors import KeyReuseError

from jaxrl.config import Config, replace
from jaxrl.envs import Clock, Hosted
from jaxrl.feeds.replay import Replay
from jaxrl.feeds.ring import row_of
from jaxrl.learners import make
from jaxrl.learners.dreamer.learner import Dreamer
from jaxrl.learners.dreamer.model import Model
from jaxrl.types import ArraySpec, Batch, Continuous, Spaces, Step

# Fast to compile; the graph is optimised as always, only the code for the processor is not.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

T, B, N = 6, 3, 2
TINY = {
    "batch_length": T,
    "batch_size": B,
    "model.size": "debug",
    "model.compute_dtype": "float32",
    "model.stoch": 2,
    "loss.horizon": 4,
    "opt.lr": 2e-3,
    "opt.warmup": 0,
}
LN255 = float(np.log(255))


def tree_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


class World:
    """A tiny learner that has acted in the clock for a while, its ring, and one batch of it."""

    def __init__(self):
        self.env = Hosted(Clock(size=48, min_length=4, max_length=7), num_envs=N, seed=0)
        self.config = replace(Config(), TINY)
        self.model = Model(self.config, self.env.spaces)
        self.learner = make(self.config, self.env.spaces)
        self.init, self.update = quick(self.learner.init), quick(self.learner.update)
        self.act = quick(self.learner.act, static_argnums=4)
        self.state = self.init(jax.random.key(0))
        self.replay = Replay(
            spaces=self.env.spaces,
            latents=jax.eval_shape(self.learner.latent_zeros),
            streams=N,
            rows=16,
            batch=B,
            length=T,
            context=self.learner.context,
            online=True,
        )
        self.insert, self.sample = jax.jit(self.replay.insert), jax.jit(self.replay.sample)
        self.ring, self.history = self.replay.init(), []
        carry, step = self.learner.initial_carry(N), self.env.reset()
        params = self.learner.policy_params(self.state)
        for i in range(24):  # wraps the ring
            out = self.act(params, carry, step, jax.random.key(i), "train")
            self.history.append((carry, step, out))
            self.ring, carry = self.insert(self.ring, row_of(step, out.action, out.latents)), out.carry
            self.env.send(np.asarray(out.action))
            step = self.env.recv()
        self.ring, self.batch, self.window = self.sample(self.ring, jax.random.key(99))
        self.out = self.update(self.state, self.batch, jax.random.key(5))

    def scalars(self, out=None):
        out = self.out if out is None else out
        return {k.removeprefix("train/"): float(m.total / m.count) for k, m in out.metrics.items()}


@pytest.fixture(scope="module")
def world():
    return World()


# Acting


def test_policy_parameters_are_enough_to_act(world):
    assert set(world.learner.policy_params(world.state)) == {"enc", "dyn", "pol"}
    assert world.learner.policy_params(world.state)["dyn"] is world.state.params["dyn"]


def test_latents_of_acting_land_in_the_ring(world):
    """Row by row: what `act` returned lies beside the row it acted on."""
    for age in range(1, 17):
        _, step, out = world.history[-age]
        slot = (24 - age) % 16
        np.testing.assert_array_equal(world.ring.rows.latents.deter[slot], out.latents.deter)
        np.testing.assert_array_equal(world.ring.rows.latents.index[slot], out.latents.index)
        np.testing.assert_array_equal(world.ring.rows.action[slot], out.action)
        np.testing.assert_array_equal(world.ring.rows.obs["count"][slot], step.obs["count"])
    latents = world.history[-1][2].latents
    assert latents.deter.dtype == jnp.uint16 and latents.index.dtype == jnp.uint8
    zeros = world.learner.latent_zeros()
    assert jax.tree.map(jnp.shape, latents) == jax.tree.map(lambda x: (N, *x.shape), zeros)


def test_stored_latents_are_the_state_but_for_rounding(world):
    carry, _, out = world.history[-1]
    latent, back = out.carry.latent, world.model.restore(out.latents)
    np.testing.assert_array_equal(back.stoch, latent.stoch)
    np.testing.assert_allclose(back.deter, latent.deter, rtol=2**-8)
    assert tree_equal(world.model.store(back), out.latents)  # storing it again changes nothing
    zeros = world.model.restore(world.learner.latent_zeros())
    assert not zeros.deter.any()


def test_acting_forgets_where_an_episode_begins(world):
    params, key = world.learner.policy_params(world.state), jax.random.key(3)
    carry, step, _ = world.history[10]
    first = step.replace(is_first=np.array([True, False]))
    got = world.act(params, carry, first, key, "train")
    fresh = world.act(params, world.learner.initial_carry(N), first, key, "train")
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(fresh), strict=True):
        np.testing.assert_array_equal(a[0], b[0])
    assert not np.array_equal(got.carry.latent.deter[1], fresh.carry.latent.deter[1])
    # the action of the row before is forgotten as well
    other = world.act(params, carry.replace(action=1 - carry.action), first, key, "train")
    np.testing.assert_array_equal(got.carry.latent.deter[0], other.carry.latent.deter[0])
    assert not np.array_equal(got.carry.latent.deter[1], other.carry.latent.deter[1])


def test_acting_is_a_function_of_its_key(world):
    params = world.learner.policy_params(world.state)
    carry, step, _ = world.history[10]
    outs = [world.act(params, carry, step, jax.random.key(i), "train") for i in (0, 0, 1, 2, 3)]
    assert tree_equal(outs[0], outs[1])
    assert len({out.latents.index.tobytes() for out in map(jax.device_get, outs)}) > 1
    np.testing.assert_array_equal(outs[0].carry.action, np.eye(3)[np.asarray(outs[0].action)])


def test_modes_of_acting(world):
    """The mode is the likeliest action in the state that was drawn; in the others actions are drawn."""
    params = jax.tree.map(lambda x: x, world.learner.policy_params(world.state))
    bias = jnp.array([0.0, 1.0, 0.5])
    params["pol"] = {**params["pol"], "out": {**params["pol"]["out"], "bias": bias}}
    carry, step, _ = world.history[10]
    drawn = {mode: [] for mode in ("mode", "train")}
    for i in range(200):
        for mode, found in drawn.items():
            out = world.act(params, carry, step, jax.random.key(i), mode)
            found += np.asarray(out.action).tolist()
            logits = world.model.run(params, "pol", out.carry.latent.feature) if i < 3 else None
            if logits is not None and mode == "mode":
                np.testing.assert_array_equal(out.action, logits.argmax(-1))
    assert set(drawn["mode"]) == {1}
    probs = np.exp(bias) / np.exp(bias).sum()
    shares = np.bincount(drawn["train"], minlength=3) / 400
    assert (np.abs(shares - probs) < 4 * np.sqrt(probs * (1 - probs) / 400) + 0.01).all()
    text = [
        str(
            jax.make_jaxpr(functools.partial(world.learner.act, mode=mode))(
                params, carry, step, jax.random.key(0)
            )
        )
        for mode in ("train", "sample")
    ]
    assert text[0] == text[1]  # evaluation by sampling is the training policy


@pytest.mark.parametrize("discrete", [True, False])
def test_noise_is_gumbel_or_normal(world, discrete):
    spaces = world.env.spaces if discrete else SPACES
    model = Model(world.config, spaces)
    noise = quick(model.step_noise, static_argnums=1)(jax.random.key(0), (100_000,))
    assert noise.stoch.shape == (100_000, 2, 4) and noise.action.shape == (100_000, model.action_width)
    assert np.isfinite(noise.stoch).all() and np.isfinite(noise.action).all()
    shares = np.array([1e-3, 0.1, 0.5, 0.9, 0.999])
    gumbel = -np.log(-np.log(shares))
    normal = np.array([-3.0902, -1.2816, 0, 1.2816, 3.0902])
    for drawn, want in ((noise.stoch, gumbel), (noise.action, gumbel if discrete else normal)):
        drawn = np.asarray(drawn).ravel()
        below = (drawn[:, None] < want).mean(0)
        assert (np.abs(below - shares) < 5 * np.sqrt(shares * (1 - shares) / len(drawn))).all()
        assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.01
    both = np.stack([noise.stoch[:, 0, 0], noise.action[:, 0]])
    assert abs(np.corrcoef(both)[0, 1]) < 0.02  # a latent and an action have nothing to do with each other


def test_two_seeds_are_two_models(world):
    other = world.init(jax.random.key(1))
    assert tree_equal(world.init(jax.random.key(0)), world.state)
    kernels = [
        (a, b)
        for a, b in zip(*(jax.tree.leaves(x.params) for x in (world.state, other)), strict=True)
        if a.ndim > 1 and np.asarray(a).any()
    ]
    assert len(kernels) > 30 and not any(np.array_equal(a, b) for a, b in kernels)
    flat = [np.asarray(a).ravel()[:8].tobytes() for a, _ in kernels]
    assert len(set(flat)) == len(flat)  # no two layers from one key


@pytest.mark.parametrize("discrete", [True, False])
def test_the_random_agent(world, discrete):
    spaces = world.env.spaces if discrete else SPACES
    agent = make(replace(world.config, {"agent": "random"}), spaces)
    assert agent.update is None and not jax.tree.leaves(agent.init(None)) and agent.latent_zeros() == ()
    step = Step(**dict.fromkeys(["reward", "is_first", "is_last", "is_terminal"], np.zeros(3000)), obs={})
    outs = [agent.act({}, (), step, jax.random.key(i), "train") for i in (0, 0, 1)]
    action = np.asarray(outs[0].action)
    np.testing.assert_array_equal(action, outs[1].action)
    assert not np.array_equal(action, outs[2].action)
    if discrete:
        assert action.dtype == np.int32
        assert (np.abs(np.bincount(action, minlength=3) / 3000 - 1 / 3) < 0.04).all()
    else:
        assert action.shape == (3000, 2) and action.dtype == np.float32
        np.testing.assert_allclose([action.min(), action.mean(), action.max()], [-1, 0, 1], atol=0.05)


# Observing


class Fixed(Model):
    """A model with given sampling noise, aligned at the end of the sequence."""

    def noise(self, key, lead):
        noise = np.random.default_rng(0).gumbel(size=(20, *lead[1:], *self.stoch_shape))
        return jnp.float32(noise[20 - lead[0] :])


def test_an_episode_is_observed_alike_whatever_came_before(world):
    model, draw = Fixed(world.config, world.env.spaces), np.random.default_rng(1)
    params = world.state.params
    tokens = jnp.float32(draw.normal(size=(9, B, model.nets["dyn"].tokens)))
    action = jax.nn.one_hot(draw.integers(0, 3, size=(9, B)), 3)
    is_first = np.zeros((9, B), bool)
    is_first[4] = True
    observe = quick(model.observe)
    before = model.zeros((B,)).replace(deter=jnp.ones((B, 64)))
    both, log_probs = observe(params, before, tokens, action, is_first, None)
    alone, _ = observe(params, model.zeros((B,)), tokens[4:], action[4:], is_first[4:], None)
    np.testing.assert_array_equal(both.stoch[4:], alone.stoch)
    np.testing.assert_allclose(both.deter[4:], alone.deter, rtol=1e-6, atol=1e-7)
    without, _ = observe(params, before, tokens, action, np.zeros_like(is_first), None)
    assert np.abs(np.asarray(without.deter[4] - both.deter[4])).max() > 1e-3  # the mask matters
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, rtol=1e-5)


# One update


def test_golden_values_at_initialisation(world):
    """Whatever the batch: heads with zero kernels are uniform, imagined rewards and values are 0."""
    got = world.scalars()
    weight = got["weight"]
    assert 0.05 < weight < 0.6
    is_last = np.asarray(world.batch.is_last)[1:-1]
    assert 0 < is_last.mean() < 1
    want = {
        "loss/rew": LN255,
        "loss/repval": 2 * LN255 * (1 - is_last.mean()),
        "loss/value": 2 * LN255 * weight,
        "loss/dyn": 1.0,  # free nats
        "loss/rep": 1.0,
        "opt/skipped": 0.0,
        "ret_scale": 1.0,
    }
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=0, err_msg=name)
    np.testing.assert_allclose(got["loss/policy"], -3e-4 * np.log(3) * weight, rtol=1e-3)
    np.testing.assert_allclose(got["ent/action"], np.log(3), rtol=1e-3)
    for name in ("rew", "val", "tar", "ret", "slowval", "adv", "adv_mag"):
        assert got[name] == 0, name  # exactly
    assert float(world.out.state.returns.low) == float(world.out.state.returns.high) == 0


def test_the_initial_carry_is_the_stored_latent_of_row_0(world):
    """And of no other row; nothing resets the state at row 1."""
    base = world.out
    assert not np.asarray(world.batch.is_first)[:2].all()

    def with_latents(change):
        return world.batch.replace(latents=jax.tree.map(change, world.batch.latents))

    later = world.update(world.state, with_latents(lambda x: x.at[1:].set(0)), jax.random.key(5))
    assert tree_equal(later, base)
    first = world.update(world.state, with_latents(lambda x: x.at[0].set(0)), jax.random.key(5))
    changed = (np.asarray(first.latents.deter) != np.asarray(base.latents.deter)).any(-1)  # [T, B]
    carried = ~np.asarray(world.batch.is_first)[1]
    np.testing.assert_array_equal(changed[0], carried)
    assert carried.any()


def test_latents_are_refreshed_in_place(world):
    """After an update, exactly the rows behind the context hold the new posterior."""
    assert jax.tree.map(jnp.shape, world.out.latents) == jax.tree.map(
        lambda x: (T, B, *x.shape[2:]), world.batch.latents
    )
    ring = jax.jit(world.replay.write_latents)(world.ring, world.window, world.out.latents)
    changed = (np.asarray(ring.rows.latents.deter) != np.asarray(world.ring.rows.latents.deter)).any(-1)
    touched = np.zeros_like(changed)
    touched[np.asarray(world.window.slot)[1:], np.asarray(world.window.stream)] = True
    # what a reset leads to depends on nothing that was stored
    np.testing.assert_array_equal(changed, touched & ~np.asarray(ring.rows.is_first))


def test_update_is_a_scan_carry(world):
    shapes = jax.eval_shape(world.learner.update, world.state, world.batch, jax.random.key(1))
    assert jax.tree.structure(shapes.state) == jax.tree.structure(world.state)
    for a, b in zip(jax.tree.leaves(shapes.state), jax.tree.leaves(world.state), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.aval.weak_type)
    assert set(world.out.metrics) == {f"train/{name}" for name in METRICS}


METRICS = {
    *(
        f"loss/{x}"
        for x in ("rec/count", "rec/image", "rew", "con", "dyn", "rep", "policy", "value", "repval")
    ),
    *("adv", "adv_std", "adv_mag", "rew", "con", "ret", "ret_min", "ret_max", "ret_rate", "ret_scale"),
    *("val", "tar", "slowval", "weight", "ent/action", "rand/action", "dyn_ent", "rep_ent"),
    *(f"opt/{x}" for x in ("loss", "grad_norm", "grad_rms", "update_rms", "param_rms", "lr", "skipped")),
}


def test_an_update_changes_everything_and_repeats_itself(world):
    same = world.update(world.state, world.batch, jax.random.key(5))
    assert tree_equal(same, world.out)
    other = world.update(world.state, world.batch, jax.random.key(6))
    assert not tree_equal(other.latents, world.out.latents)
    for name, before in world.state.params.items():
        assert not tree_equal(before, world.out.state.params[name]), name


def test_the_slow_critic_follows(world):
    one = world.out.state
    two = world.update(one, world.batch, jax.random.key(6)).state
    assert tree_equal(world.state.slow, world.state.params["val"])  # begins as a copy
    for before, after in ((world.state, one), (one, two)):
        want = jax.tree.map(lambda s, v: 0.98 * s + 0.02 * v, before.slow, after.params["val"])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), after.slow, want)
    assert not tree_equal(two.slow, two.params["val"])


@pytest.mark.parametrize("field", ["reward", "count"])
def test_a_bad_batch_is_skipped_and_counted(world, field):
    """Nothing of it stays: not in the state, not in replay, from where other sequences would start."""
    if field == "reward":
        bad = world.batch.replace(reward=world.batch.reward.at[3, 1].set(jnp.nan))
    else:
        obs = world.batch.obs
        bad = world.batch.replace(obs={**obs, "count": obs["count"].at[3, 1].set(jnp.nan)})
    out = world.update(world.out.state, bad, jax.random.key(5))
    assert tree_equal(out.state, world.out.state)
    assert float(out.metrics["train/opt/skipped"].total) == 1
    assert not np.isfinite(float(out.metrics["train/opt/loss"].total))
    assert tree_equal(out.latents, jax.tree.map(lambda x: x[1:], bad.latents))
    good = world.update(out.state, world.batch, jax.random.key(6))
    assert float(good.metrics["train/opt/skipped"].total) == 0
    assert tree_equal(good, world.update(world.out.state, world.batch, jax.random.key(6)))


def test_an_update_is_explained_by_name(world):
    """The losses, gradients and parameters of `update`, and latents whose bits say that they are NaN."""

    @quick
    def finite(state, batch):
        numbers = world.learner.explain(state, batch, jax.random.key(5))
        return {name: jnp.isfinite(x).all() for name, x in numbers.items()}

    def bad(state, batch):
        return {name for name, good in finite(state, batch).items() if not good}

    state, batch = world.out.state, world.batch
    assert bad(state, batch) == set()
    leaves = jax.tree_util.tree_flatten_with_path(state.params)[0]
    paths = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves}
    losses = {name for name in METRICS if name.startswith("loss/")}
    tensors = {f"{kind}/{path}" for kind in ("grad", "param") for path in paths}
    assert set(finite(state, batch)) == losses | tensors | {"batch.latents.deter"}
    found = bad(state, batch.replace(reward=batch.reward.at[3, 1].set(jnp.nan)))
    assert {name for name in found if "loss/" in name} == {"loss/rew", "loss/repval"}
    assert {name.split("/")[0] for name in found} == {"loss", "grad"}
    stored = batch.latents.replace(deter=batch.latents.deter.at[0, 0, 5].set(0x7FC0))
    assert {"batch.latents.deter"} <= bad(state, batch.replace(latents=stored))
    params = jax.tree.map(jnp.copy, state.params)
    params["con"]["out"]["bias"] += jnp.inf
    found = bad(state.replace(params=params), batch)
    assert {name for name in found if name.startswith("param/")} == {"param/con/out/bias"}
    assert "loss/con" in found and "loss/rew" not in found


def test_a_fixed_batch_is_learned_by_heart(world):
    state, curve = world.state, []
    for i in range(150):
        out = world.update(state, world.batch, jax.random.key(i))
        state = out.state
        curve.append(world.scalars(out))
    first, last = curve[0], {k: np.mean([x[k] for x in curve[-10:]]) for k in curve[0]}
    assert all(np.isfinite(v) for x in curve for v in x.values())
    assert last["opt/loss"] < 0.5 * first["opt/loss"]
    assert last["loss/rec/image"] < 0.3 * first["loss/rec/image"]
    assert last["loss/rew"] < 0.5 * first["loss/rew"]
    assert last["loss/con"] < first["loss/con"]
    assert last["loss/repval"] < 0.7 * first["loss/repval"]


def test_held_out_losses_are_those_of_training(world):
    """`validate` is the world model's half of the loss: same names, same values for the same noise."""
    names = {f"holdout/loss/{x}" for x in ("rec/count", "rec/image", "rew", "con", "dyn", "rep")}
    key_observe, _ = jax.random.split(jax.random.key(5))  # as in Dreamer.loss
    got = quick(world.learner.validate)(world.state, world.batch, key_observe)
    assert set(got) == names
    for name, metric in got.items():
        want = world.scalars()[name.removeprefix("holdout/")]
        np.testing.assert_allclose(metric.total / metric.count, want, rtol=1e-4)


def test_no_key_is_used_twice(world):
    params, key = world.learner.policy_params(world.state), jax.random.key(0)
    carry, step, _ = world.history[10]
    with jax.debug_key_reuse(True):
        with pytest.raises(KeyReuseError):
            jax.jit(lambda key: jax.random.normal(key) + jax.random.normal(key)).trace(key)
        jax.jit(world.learner.init).trace(key)
        jax.jit(functools.partial(world.learner.act, mode="train")).trace(params, carry, step, key)
        jax.jit(world.learner.update).trace(world.state, world.batch, key)
        jax.jit(world.replay.sample).trace(world.ring, key)


# Precision


SPACES = Spaces(obs={"vector": ArraySpec((6,), np.dtype(np.float32))}, action=Continuous(2))
BF16 = {**TINY, "model.compute_dtype": "bfloat16"}


def shapes_of_batch(learner, spaces):
    def s(shape, dtype):
        return jax.ShapeDtypeStruct((T + learner.context, B, *shape), dtype)

    flag = s((), jnp.bool_)
    return Batch(
        obs={k: s(x.shape, x.dtype) for k, x in spaces.obs.items()},
        action=s(spaces.action.shape, spaces.action.dtype),
        reward=s((), jnp.float32),
        is_first=flag,
        is_last=flag,
        is_terminal=flag,
        latents=jax.tree.map(lambda x: s(x.shape, x.dtype), jax.eval_shape(learner.latent_zeros)),
    )


def products(jaxpr):
    """Equations of matrix products and convolutions, also of inner functions."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "jaxpr"):
                inner = inner.jaxpr
            if hasattr(inner, "eqns"):
                yield from products(inner)


def test_bf16_is_used_for_products_and_nothing_else():
    config, spaces = replace(Config(), BF16), Hosted(Clock(size=48), num_envs=1, seed=0).spaces
    dreamer = Dreamer(Model(config, spaces))
    learner, key = make(config, spaces), jax.random.key(0)
    state = jax.eval_shape(learner.init, key)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((state.params, state.slow, state.returns)))
    batch = shapes_of_batch(learner, spaces)
    total, (observed, behaved, losses) = jax.eval_shape(dreamer.loss, state.params, state, batch, key)
    assert {x.dtype.name for x in (observed.latent.deter, observed.latent.stoch)} == {"bfloat16"}
    assert jax.eval_shape(lambda x: x.feature, observed.latent).dtype == jnp.bfloat16
    assert total.dtype == jnp.float32
    assert {x.dtype.name for x in jax.tree.leaves((losses, behaved))} == {"float32"}
    tokens = jax.eval_shape(lambda p, o: dreamer.model.run(p, "enc", o), state.params, batch.obs)
    assert tokens.dtype == jnp.bfloat16
    found = list(
        products(jax.make_jaxpr(jax.grad(dreamer.loss, has_aux=True))(state.params, state, batch, key).jaxpr)
    )
    assert len(found) > 100
    wide = [e for e in found if {x.aval.dtype.name for x in e.invars} != {"bfloat16"}]
    # only sums of taps of the decoder's kernels, parameters among themselves
    assert {e.primitive.name for e in wide} <= {"dot_general"}
    assert all("HIGHEST" in str(e.params["precision"]) for e in wide), wide


def test_bf16_with_continuous_actions():
    """A few updates: parameters stay f32 and finite, actions in bounds."""
    config = replace(Config(), BF16)
    learner = make(config, SPACES)
    state = quick(learner.init)(jax.random.key(0))
    draw = np.random.default_rng(0)
    batch = jax.tree.map(
        lambda x: (
            draw.normal(size=x.shape).astype(x.dtype)
            if x.dtype == jnp.float32
            else np.zeros(x.shape, x.dtype)
        ),
        shapes_of_batch(learner, SPACES),
    )
    update = quick(learner.update)
    for i in range(4):
        out = update(state, batch, jax.random.key(i))
        assert jax.tree.map(lambda x: x.dtype, out.state) == jax.tree.map(lambda x: x.dtype, state)
        assert all(np.isfinite(float(m.total)) for m in out.metrics.values())
        assert float(out.metrics["train/opt/skipped"].total) == 0
        state = out.state
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.params))
    step = Step(
        obs={"vector": np.zeros((500, 6), np.float32)},
        reward=np.zeros(500, np.float32),
        is_first=np.ones(500, bool),
        is_last=np.zeros(500, bool),
        is_terminal=np.zeros(500, bool),
    )
    act = quick(learner.act, static_argnums=4)
    out = act(learner.policy_params(state), learner.initial_carry(500), step, jax.random.key(0), "sample")
    action = np.asarray(out.action)
    assert action.shape == (500, 2) and action.dtype == np.float32
    assert np.abs(action).max() == 1 and action.std() > 0.3  # clipped to the bounds
    np.testing.assert_array_equal(out.carry.action, action)
    assert out.carry.latent.deter.dtype == jnp.bfloat16
    assert tree_equal(jax.tree.map(jnp.shape, learner.initial_carry(500)), jax.tree.map(jnp.shape, out.carry))
