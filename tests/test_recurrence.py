"""The recurrent scan's own gradient against plain differentiation of the same cell; what its loops hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.config import Config, replace
from jaxrl.learners.dreamer.model import Model
from jaxrl.ops import recurrence
from jaxrl.types import ArraySpec, Discrete, Spaces

T, B, D = 7, 3, 5
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def cell(p, state, x):
    """Two arrays of state; a weight that is only used changed."""
    h = jnp.tanh(state["h"] @ p["w"].T + x["x"] @ p["u"] + p["b"])
    return {"h": h * jax.nn.sigmoid(state["c"]), "c": 0.5 * state["c"] + h}


def plain(step, params, start, inputs, reset):
    """What `recurrence.states` computes, as jax differentiates it."""

    def forward(state, x):
        x, reset = x
        state = step(params, jax.tree.map(lambda s: jnp.where(reset[:, None], 0, s), state), x)
        return state, state

    return jax.lax.scan(forward, start, (inputs, reset))[1]


@functools.cache
def case(length: int = T):
    draw = np.random.default_rng(0)

    def normal(*shape):
        return np.float32(draw.normal(size=shape))

    params = {"w": normal(D, D), "u": normal(2, D), "b": normal(D)}
    reset = draw.random((length, B)) < 0.3
    reset[-1, 0], reset[0] = True, [True, False, False]
    start = {"h": normal(B, D), "c": normal(B, D)}
    weights = {"h": normal(length, B, D), "c": normal(length, B, D)}
    return params, start, {"x": normal(length, B, 2)}, reset, weights


def gradients(states, reset, weights):
    def loss(params, start, inputs):
        found = states(cell, params, start, inputs, reset)
        return sum((found[name] * weights[name]).sum() for name in found)

    return jax.grad(loss, (0, 1, 2))


def assert_close(got, want, relative=1e-5):
    """Relative to the largest number of each array."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=relative * np.abs(b).max())
        assert np.abs(b).max() > 0


@pytest.mark.parametrize("length", [1, 2, T])
def test_states_and_gradients_are_those_of_the_plain_scan(length):
    params, start, inputs, reset, weights = case(length)
    got = recurrence.states(cell, params, start, inputs, reset)
    assert_close(got, plain(cell, params, start, inputs, reset), 1e-6)
    arguments = params, start, inputs
    got = gradients(recurrence.states, reset, weights)(*arguments)
    assert_close(got, gradients(plain, reset, weights)(*arguments))


def test_a_state_that_is_forgotten_has_no_gradient():
    params, start, inputs, reset, weights = case()
    got = gradients(recurrence.states, reset, weights)(params, start, inputs)[1]["h"]
    assert (np.asarray(got)[0] == 0).all() and (np.asarray(got)[1:] != 0).all()


def test_several_models_at_once():
    params, start, inputs, reset, weights = case()
    many = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x, -x]), (params, start, inputs))
    got = jax.vmap(gradients(recurrence.states, reset, weights))(*many)
    assert_close(got, jax.vmap(gradients(plain, reset, weights))(*many))


def scans(jaxpr):
    """Every scan of a program, at any depth."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
        for value in equation.params.values():
            for item in value if isinstance(value, list | tuple) else [value]:
                if hasattr(item, "eqns"):
                    yield from scans(item)
                elif hasattr(item, "jaxpr"):
                    yield from scans(item.jaxpr)


def primitives(jaxpr):
    return {equation.primitive.name for equation in jaxpr.eqns}


def test_loops_hold_states_and_no_gradient_of_a_weight():
    params, start, inputs, reset, weights = case()
    arguments = params, start, inputs
    own, as_it_comes = (
        list(scans(jax.make_jaxpr(gradients(states, reset, weights))(*arguments).jaxpr))
        for states in (recurrence.states, plain)
    )
    assert len(own) == len(as_it_comes) == 2
    results = [[x.aval.shape for x in scan.outvars] for scan in own]
    assert {(D, D), (2, D)} & {x.aval.shape for x in as_it_comes[1].outvars}  # what is not wanted
    assert not {(D, D), (2, D), (D,)} & set(sum(results, []))
    assert [x for x in results[0] if len(x) == 3] == [(T, B, 2 * D)]  # saved on the way: states, as one array


def test_what_depends_on_parameters_alone_is_done_before_the_loop():
    params, start, inputs, _, _ = case()
    first = jax.tree.map(lambda x: x[0], inputs)
    ready = recurrence.hoisted(cell, params, start, inputs)
    inside = primitives(jax.make_jaxpr(ready)(start, first).jaxpr)
    assert "transpose" not in inside and "dot_general" in inside
    assert "transpose" in primitives(jax.make_jaxpr(cell)(params, start, first).jaxpr)
    assert_close(ready(start, first), cell(params, start, first), 1e-6)


@pytest.mark.parametrize(("length", "turns"), [(1, 1), (2, 1), (5, 1), (7, 1), (15, 5), (16, 4), (64, 4)])
def test_a_gpu_takes_several_turns_at_a_time(length, turns):
    """As many as divide the loop and leave one; a CPU takes one."""

    def run(start, inputs):
        return recurrence.scan(lambda s, x: (jnp.tanh(s + x), s), start, inputs, reverse=True)

    arguments = np.float32(0.5), np.linspace(-1, 1, length, dtype=np.float32)
    saved = f"tensor<{length // turns}x{turns}xf32>"  # in one piece for so many turns
    for platform in "cuda", "cpu":
        lowered = jax.jit(run).trace(*arguments).lower(lowering_platforms=(platform,))
        assert (saved in lowered.as_text()) == (platform == "cuda" and turns > 1)
    plain = functools.partial(jax.lax.scan, lambda s, x: (jnp.tanh(s + x), s), reverse=True)
    several = jax.lax.scan(lambda s, x: (jnp.tanh(s + x), s), *arguments, reverse=True, unroll=turns)
    for got in jax.jit(run)(*arguments), several:
        assert_close(got, plain(*arguments), 1e-6)


# The recurrent model


class Steps(Model):
    """Given noise, so that two ways to compute it see the same."""

    def noise(self, key, lead):
        return jnp.float32(np.random.default_rng(0).gumbel(size=(*lead, *self.stoch_shape)))

    def observe_plainly(self, p, carry, tokens, action, reset):
        action = self.run(p, "dyn", jnp.where(reset[..., None], 0, action), method="embed_action")
        tokens = self.run(p, "dyn", tokens, method="embed_tokens")

        def step(carry, x):
            *x, reset = x
            carry = jax.tree.map(lambda s: jnp.where(reset[:, None], 0, s), carry)
            carry, log_probs = self.observe_step(p, carry, *x)
            return carry, (carry, log_probs)

        inputs = action, tokens, self.noise(None, reset.shape), reset
        return jax.lax.scan(step, carry, inputs)[1]


@pytest.mark.parametrize(("blocks", "deter", "stoch"), [(1, 16, 3), (2, 16, 4), (8, 32, 5)])
def test_the_gradient_of_observing_is_that_of_the_plain_scan(blocks, deter, stoch):
    sizes = {"model.size": "debug", "model.compute_dtype": "float32", "model.deter": deter}
    config = replace(Config(), sizes | {"model.blocks": blocks, "model.stoch": stoch})
    model = Steps(config, Spaces(obs={"x": ArraySpec((2,), np.dtype(np.float32))}, action=Discrete(3)))
    draw = np.random.default_rng(1)
    params = {"dyn": jax.eval_shape(model.init, jax.random.key(0))["dyn"]}
    # Biases and scales that differ, and kernels under which states matter.
    params = jax.tree.map(lambda x: np.float32(0.5 * draw.normal(size=x.shape) / x.shape[0] ** 0.4), params)
    params = jax.tree_util.tree_map_with_path(lambda k, x: x + (k[-1].key == "scale"), params)
    tokens = np.float32(draw.normal(size=(T, B, model.nets["dyn"].tokens)))
    action = jax.nn.one_hot(draw.integers(0, 3, size=(T, B)), 3)
    reset = draw.random((T, B)) < 0.25
    s, c = model.stoch_shape
    start = model.zeros((B,)).replace(deter=jnp.tanh(draw.normal(size=(B, deter)).astype(np.float32)))
    weights = [np.float32(draw.normal(size=(T, B, *shape))) for shape in ((deter,), (s * c,), (s, c))]

    def loss(observe, params, start, tokens):
        latent, log_probs = observe(params, start, tokens, action, reset)
        found = latent.deter, latent.stoch, log_probs
        return sum((x * w).sum() for x, w in zip(found, weights, strict=True))

    def both(params, start, tokens):
        ways = (lambda *a: model.observe(*a, None)), model.observe_plainly
        return [jax.grad(functools.partial(loss, way), (0, 1, 2))(params, start, tokens) for way in ways]

    got, want = quick(both)(params, start, tokens)
    used = [name for name in params["dyn"] if not name.startswith(("prior", "in_action"))]
    assert_close([got[0]["dyn"][name] for name in used], [want[0]["dyn"][name] for name in used])
    assert_close((got[1].deter, got[2]), (want[1].deter, want[2]))
    many = jax.tree.map(lambda x: jnp.stack([x, 0.9 * x]), (params, start, tokens))
    got, want = quick(jax.vmap(both))(*many)
    assert_close([got[0]["dyn"][name] for name in used], [want[0]["dyn"][name] for name in used])
