"""The states of a recurrent model over time, with a gradient that is cheap where kernels are small.

Plain reverse-mode differentiation of a scan saves every intermediate result of every step and adds up every
weight's gradient step by step: of 150 kernels that a step of the recurrent model launches there and back, 100
do only that. Here the forward loop saves the states and nothing else. Given those, nothing but the states'
own gradient is sequential:

* all steps are computed again and linearised at once, with time as one more batch axis;
* a loop backward carries the gradient of the state through those linearisations;
* the gradients of all steps' results being known then, one ordinary backward pass over all of them at once
  gives those of parameters and inputs: each weight's is one product over T * B rows.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

Tree = Any  # pytree of arrays


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def states(step: Callable[[Tree, Tree, Tree], Tree], params: Tree, start: Tree, inputs: Tree) -> Tree:
    """States s_0..s_{T-1} of s_t = step(params, s_{t-1}, x_t), s_{-1} = start.

    Args:
      step: pure; must not close over anything that is being traced.
      params: floating arrays, the same for every step.
      start: leaves [...], the structure, shapes and types that `step` gives.
      inputs: leaves [T, ...].

    Returns:
      Leaves [T, ...]. Differentiable in params, start and inputs.
    """

    def forward(state, x):
        state = step(params, state, x)
        return state, state

    return jax.lax.scan(forward, start, inputs)[1]


def _forward(step, params, start, inputs):
    found = states(step, params, start, inputs)
    return found, (params, start, inputs, found)


def _backward(step, residuals, gradient):
    params, start, inputs, found = residuals
    before = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]), start, found)
    first, structure, varies = _linearised(step, params, *jax.tree.map(lambda x: x[0], (before, inputs)))

    def varying(state, x):
        leaves = jax.tree.leaves(jax.vjp(lambda state: step(params, state, x), state)[1])
        return [leaf for leaf, moves in zip(leaves, varies, strict=True) if moves]

    def back(later, x):
        leaves, own = x
        moving = iter(leaves)
        leaves = [next(moving) if moves else leaf for leaf, moves in zip(first, varies, strict=True)]
        total = jax.tree.map(jnp.add, later, own)
        return jax.tree.unflatten(structure, leaves)(total)[0], total

    zeros = jax.tree.map(jnp.zeros_like, start)
    linear = jax.vmap(varying)(before, inputs)
    to_start, total = jax.lax.scan(back, zeros, (linear, gradient), reverse=True)

    def every(params, inputs):
        return jax.vmap(step, (None, 0, 0))(params, before, inputs)

    to_params, to_inputs = jax.vjp(every, params, inputs)[1](total)
    return to_params, to_start, to_inputs


def _linearised(step, params, state, x):
    """The gradient function of one step in its state: its arrays, its structure, which arrays vary by step."""
    structures = []

    def linearise(state, x):
        leaves, structure = jax.tree.flatten(jax.vjp(lambda state: step(params, state, x), state)[1])
        structures.append(structure)
        return leaves

    traced = jax.make_jaxpr(linearise)(state, x).jaxpr
    moving = set(traced.invars)

    def moves(x):
        return not isinstance(x, Literal) and x in moving

    for equation in traced.eqns:
        if any(moves(x) for x in equation.invars):
            moving.update(equation.outvars)
    leaves = linearise(state, x)
    return leaves, structures[-1], [moves(x) for x in traced.outvars]


states.defvjp(_forward, _backward)
