"""Every loss of the learner against float64 NumPy, and where its gradient goes."""

import functools
import types

import dreamer_in_numpy as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.config import Config, replace
from jaxrl.learners.dreamer import losses as L
from jaxrl.learners.dreamer.learner import Dreamer, DreamerState
from jaxrl.learners.dreamer.model import Model
from jaxrl.types import ArraySpec, Batch, Continuous, Discrete, Spaces

T, B, H = 5, 3, 3
NETWORKS = {"enc", "dyn", "dec", "rew", "con", "pol", "val"}
SMALL = {
    "batch_length": T,
    "batch_size": B,
    "model.size": "debug",
    "model.compute_dtype": "float32",
    "model.deter": 32,
    "model.blocks": 4,
    "model.stoch": 3,
    "loss.horizon": H,
    "loss.discount_horizon": 10.0,
    "loss.lam": 0.8,
    "loss.entropy": 0.1,
    "loss.rep": 0.3,
    "loss.policy": 0.7,
    "loss.rew": 1.5,
}
CASES = {
    "discrete": {
        "loss.free_nats": 0.9,  # between the divergences of the rows
        "model.actor_unimix": 0.05,
    },
    "continuous": {
        "loss.free_nats": 2.7,
        "loss.contdisc": False,
        "loss.slow_target": True,
        "loss.reward_grad": False,
        "loss.repval_grad": False,
        "loss.slow_reg": 0.5,
        "replay.context": False,
    },
}


def dreamer_of(case):
    config = replace(Config(), {**SMALL, **CASES[case]})
    vector = {name: ArraySpec((width,), np.dtype(np.float32)) for name, width in (("b", 2), ("a", 3))}
    action = Discrete(4) if case == "discrete" else Continuous(2)
    return Dreamer(Model(config, Spaces(obs=vector, action=action)))


def trained_looking(params, seed):
    """Parameters that are nowhere zero or one; reward and value near what such heads learn: a narrow peak."""
    draw = np.random.default_rng(seed)

    def change(path, x):
        noise = draw.normal(size=x.shape)
        names = [key.key for key in path]
        if names[-2:] == ["out", "bias"] and x.shape == (255,):
            return np.float32(-0.5 * ((np.arange(255) - 127 - 4 * draw.normal()) / 4) ** 2 + 0.1 * noise)
        return np.float32(
            x + (0.5 if names[-1] != "kernel" else 0.3) * noise * (0.3 if names[0] == "val" else 1)
        )

    return jax.tree_util.tree_map_with_path(change, params)


def batch_of(dreamer, seed):
    """Random rows; episodes end in every way at least once."""
    draw, model = np.random.default_rng(seed), dreamer.model
    lead = (T + int(model.config.replay.context), B)
    is_last = np.zeros(lead, bool)
    is_last[1, 0] = is_last[2, 1] = is_last[3, 2] = True
    is_terminal = is_last & (np.arange(B) == 1)
    is_terminal[2, 2] = True  # a lost life: the episode goes on
    is_first = np.zeros(lead, bool)
    is_first[2, 0] = is_first[3, 1] = is_first[4, 2] = True
    action = model.spaces.action
    if isinstance(action, Discrete):
        actions = draw.integers(0, action.n, size=lead).astype(np.int32)
    else:
        actions = draw.normal(size=(*lead, action.size)).astype(np.float32)  # also beyond [-1, 1]
    s, c = model.stoch_shape
    latent = model.zeros(lead).replace(
        deter=jnp.tanh(draw.normal(size=(*lead, 32)).astype(np.float32)),
        stoch=jax.nn.one_hot(draw.integers(0, c, size=(*lead, s)), c).reshape(*lead, s * c),
    )
    return Batch(
        obs={k: np.float32(draw.normal(size=(*lead, *v.shape)) * 3) for k, v in model.spaces.obs.items()},
        action=actions,
        reward=np.float32(draw.normal(size=lead) * 2),
        is_first=is_first,
        is_last=is_last,
        is_terminal=is_terminal,
        latents=jax.tree.map(np.asarray, model.store(latent)),
    )


class Learned:
    """One compiled pass: losses, states, imagination, and the gradient of any weighted sum of mean losses."""

    def __init__(self, case):
        self.dreamer = dreamer_of(case)
        self.model, self.config = self.dreamer.model, self.dreamer.config
        quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
        fresh = quick(self.model.init)(jax.random.key(0))
        self.params, self.slow = trained_looking(fresh, 1), trained_looking(fresh["val"], 2)
        self.returns = (-0.2, 1.8)
        self.key = jax.random.key(7)
        self.compiled = quick(self.one_pass)

    def one_pass(self, params, batch, weights):
        returns = L.ReturnRange(low=jnp.float32(self.returns[0]), high=jnp.float32(self.returns[1]))
        state = DreamerState(params=params, slow=self.slow, opt=(), returns=returns)

        def means(params):
            total, aux = self.dreamer.loss(params, state, batch, self.key)
            return ({k: v.mean() for k, v in aux[2].items()}, total), aux

        (_, total), pull, (observed, behaved, losses) = jax.vjp(means, params, has_aux=True)
        start = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, x.shape[-1]), observed.latent)
        _, key_imagine = jax.random.split(self.key)  # as in Dreamer.loss
        imagined = self.model.imagine(params, start, key_imagine, H)
        gradient = pull((weights, jnp.zeros(())))[0]
        return total, observed, behaved, losses, imagined, gradient

    def run(self, batch=None, **weights):
        """With the gradient of Σ weight · mean loss."""
        batch = batch_of(self.dreamer, 3) if batch is None else batch
        names = ["rec/a", "rec/b", "rew", "con", "dyn", "rep", "policy", "value", "repval"]
        weights = {name: jnp.float32(weights.get(name.split("/")[0], 0)) for name in names}
        return self.compiled(self.params, batch, weights)

    def squares(self, batch=None, **weights):
        """Sum of squares of the gradient in each network."""
        gradient = jax.tree.map(np.asarray, self.run(batch, **weights)[-1])
        return {k: sum(float((x**2).sum()) for x in jax.tree.leaves(gradient[k])) for k in NETWORKS}, gradient

    def options(self):
        """What the NumPy twin needs to know."""
        loss, model = self.config.loss, self.config.model
        return types.SimpleNamespace(
            discrete=isinstance(self.model.spaces.action, Discrete),
            stoch=model.stoch,
            unimix=model.unimix,
            actor_unimix=model.actor_unimix,
            gamma=1 - 1 / loss.discount_horizon,
            contdisc=loss.contdisc,
            free_nats=loss.free_nats,
            lam=loss.lam,
            entropy=loss.entropy,
            slow_reg=loss.slow_reg,
            slow_target=loss.slow_target,
            rate=loss.return_rate,
            limit=loss.return_limit,
        )


@functools.cache
def learned(case):
    return Learned(case)


@pytest.fixture(params=list(CASES))
def case(request):
    return learned(request.param)


def doubles(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def rows_of(case):
    return jax.tree.map(lambda x: x[int(case.config.replay.context) :], batch_of(case.dreamer, 3))


def close(got, want, name=""):
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4 * max(1, np.abs(want).max()), err_msg=name)


def test_posterior_states_follow_from_the_rows_before(case):
    """Carry, resets and the action of the row before: state t is the core of state t-1."""
    batch, p = batch_of(case.dreamer, 3), doubles(case.params)["dyn"]
    latent = doubles(case.run()[1].latent)
    context = int(case.config.replay.context)
    stored = case.model.restore(batch.latents)
    action = np.asarray(case.model.encode_action(batch.action), np.float64)
    for t in range(T):
        if t or context:
            before = latent if t else doubles(stored)  # the first state comes from row 0 of the replay
            deter, stoch = (x[t - 1 if t else 0] for x in (before.deter, before.stoch))
            chosen = action[t - 1 + context]
        else:
            deter, stoch, chosen = (np.zeros_like(x[0]) for x in (latent.deter, latent.stoch, action))
        reset = batch.is_first[t + context][:, None]
        deter, stoch, chosen = (np.where(reset, 0, x) for x in (deter, stoch, chosen))
        close(latent.deter[t], reference.core(p, deter, stoch, chosen, 4), f"row {t}")
    stoch = latent.stoch.reshape(T, B, 3, -1)
    assert ((stoch == 0) | (stoch == 1)).all() and (stoch.sum(-1) == 1).all()


def test_imagined_states_follow_from_the_actions(case):
    latent, action = case.run()[4]
    assert latent.deter.shape == (H + 1, T * B, 32) and action.shape[:2] == (H, T * B)
    chosen = np.asarray(case.model.encode_action(action), np.float64)
    p, latent = doubles(case.params)["dyn"], doubles(latent)
    observed = case.run()[1].latent
    for name in ("deter", "stoch"):  # sequence after sequence
        states = getattr(observed, name).swapaxes(0, 1).reshape(T * B, -1)
        np.testing.assert_array_equal(getattr(latent, name)[0], states)
    for t in range(H):
        want = reference.core(p, latent.deter[t], latent.stoch[t], chosen[t], 4)
        close(latent.deter[t + 1], want, f"imagined step {t}")
    stoch = latent.stoch.reshape(H + 1, T * B, 3, -1)
    assert ((stoch == 0) | (stoch == 1)).all() and (stoch.sum(-1) == 1).all()


def test_losses_of_the_world_model(case):
    _, observed, _, losses, _, _ = case.run()
    latent, options = doubles(observed.latent), case.options()
    want, metrics = reference.world_model(
        options, doubles(case.params), rows_of(case), latent.deter, latent.stoch
    )
    for name, loss in want.items():
        close(losses[name], loss, name)
    clipped = want["dyn"] <= options.free_nats
    assert clipped.any() and not clipped.all()
    close(observed.prior_entropy.mean(), metrics["dyn_ent"])
    close(observed.posterior_entropy.mean(), metrics["rep_ent"])


def test_losses_of_actor_and_critic(case):
    _, _, behaved, losses, (latent, action), _ = case.run()
    latent, options = doubles(latent), case.options()
    assert options.discrete or (np.abs(action) > 1).any()
    imagined = latent.deter, latent.stoch, np.asarray(action)
    want, (low, high), metrics = reference.behavior(
        options, doubles(case.params), doubles(case.slow), case.returns, imagined, rows_of(case)
    )
    for name, loss in want.items():
        close(losses[name], loss, name)
    close(behaved.returns.low, low)
    close(behaved.returns.high, high)
    assert metrics["ret_scale"] > 1 and metrics["weight"] < 0.9
    for name, value in metrics.items():
        close(behaved.scalars[name], value, name)
    if options.discrete:
        close(behaved.scalars["rand/action"], metrics["ent/action"] / np.log(4))
    else:  # 0 at the smallest deviation, 1 at the largest
        span = np.log(10) * 2
        least = np.log(0.1 * np.sqrt(2 * np.pi * np.e)) * 2
        close(behaved.scalars["rand/action"], (metrics["ent/action"] - least) / span)


def test_the_total_is_the_scaled_sum(case):
    total, _, _, losses, _, _ = case.run()
    assert {k: v.shape for k, v in losses.items()} == {
        **dict.fromkeys(["rec/a", "rec/b", "rew", "con", "dyn", "rep"], (T, B)),
        **dict.fromkeys(["policy", "value"], (H, T * B)),
        "repval": (T - 1, B),
    }
    scale = {"rec": 1, "rew": 1.5, "con": 1, "dyn": 1, "rep": 0.3, "policy": 0.7, "value": 1, "repval": 0.3}
    want = sum(scale[k.split("/")[0]] * float(np.mean(v)) for k, v in losses.items())
    np.testing.assert_allclose(total, want, rtol=1e-5)


REACHED = {
    "rec": {"enc", "dyn", "dec"},
    "rew": {"enc", "dyn", "rew"},
    "con": {"enc", "dyn", "con"},
    "dyn": {"enc", "dyn"},
    "rep": {"enc", "dyn"},
    "policy": {"pol"},
    "value": {"val"},
    "repval": {"enc", "dyn", "val"},
}


@pytest.mark.parametrize("name", REACHED)
def test_gradients_reach_exactly_the_networks_they_should(case, name):
    reached = REACHED[name]
    if name == "rew" and not case.config.loss.reward_grad:
        reached = {"rew"}
    if name == "repval" and not case.config.loss.repval_grad:
        reached = {"val"}
    squares, gradient = case.squares(**{name: 1.0})
    assert {network for network, square in squares.items() if square > 0} == reached
    assert all(np.isfinite(square) for square in squares.values())
    if "dyn" in reached and name != "dyn":  # only the dyn loss trains the prior
        assert not any(
            x.any() for x in jax.tree.leaves([gradient["dyn"]["prior"], gradient["dyn"]["prior_out"]])
        )


def test_the_divergence_is_split_between_prior_and_posterior():
    """Where every row is a reset, no loss can reach the posterior of a row through the rows after it."""
    case = learned("discrete")
    batch = batch_of(case.dreamer, 3)
    batch = batch.replace(is_first=np.ones_like(batch.is_first))
    assert float(case.run(batch)[3]["dyn"].max()) > case.config.loss.free_nats
    _, gradient = case.squares(batch, dyn=1.0)
    assert gradient["dyn"]["prior_out"]["kernel"].any() and not gradient["dyn"]["post_out"]["kernel"].any()
    _, gradient = case.squares(batch, rep=1.0)
    assert gradient["dyn"]["post_out"]["kernel"].any() and not gradient["dyn"]["prior_out"]["kernel"].any()


def test_straight_through_gradients_reach_the_posterior():
    case = learned("discrete")
    _, gradient = case.squares(rec=1.0)
    assert gradient["dyn"]["post_out"]["kernel"].any()


def test_a_smaller_or_larger_return_range():
    """The scale is at least loss.return_limit; percentiles move at loss.return_rate."""
    model = learned("discrete").model
    ret = jnp.linspace(-1, 1, 101)[None].repeat(2, 0)
    for low, high in ((0.0, 0.0), (-3.0, 5.0)):
        returns, scale = L.scaled_range(
            model, L.ReturnRange(low=jnp.float32(low), high=jnp.float32(high)), ret
        )
        np.testing.assert_allclose(returns.low, low + 0.01 * (-0.9 - low), rtol=1e-5)
        np.testing.assert_allclose(returns.high, high + 0.01 * (0.9 - high), rtol=1e-5)
        np.testing.assert_allclose(scale, max(1.0, float(returns.high - returns.low)), rtol=1e-5)
