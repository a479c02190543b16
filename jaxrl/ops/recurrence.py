"""The states of a recurrent model over time, with a gradient that is cheap where kernels are small.

Plain reverse-mode differentiation of a scan saves every intermediate result of every step and adds up every
weight's gradient step by step: of 140 kernels that a step of the recurrent model launches there and back, 100
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
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

Tree = Any  # pytree of arrays


def states(
    step: Callable[[Tree, Tree, Tree], Tree],
    params: Tree,
    start: Tree,
    inputs: Tree,
    reset: jax.Array | None = None,
) -> Tree:
    """States s_0..s_{T-1} of s_t = step(params, 0 if reset_t else s_{t-1}, x_t), s_{-1} = start.

    Args:
      step: pure; must not close over anything that is being traced.
      params: floating arrays, the same for every step.
      start: leaves [B, ...], the structure, shapes and types that `step` gives.
      inputs: leaves [T, ...].
      reset: [T, B] bool; None for never.

    Returns:
      Leaves [T, B, ...]. Differentiable in params, start and inputs.
    """
    found: Tree = _states(step, params, start, inputs, reset)
    return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _states(step, params, start, inputs, reset):
    first = masked(start, _at(reset, 0))
    ahead = hoisted(step, params, first, inputs)

    def forward(ready, x):
        # Sliced first, for all turns in one kernel each: as part of another kernel it could not be Triton's.
        x, following = jax.lax.optimization_barrier(x)
        state = ahead(ready, x)
        # Masked for the next step here, in the kernel that makes it.
        return masked(state, following), _joined(state)

    return _parted(scan(forward, first, (inputs, _following(reset)))[1], start)


def scan(f: Callable[[Tree, Tree], tuple[Tree, Tree]], start: Tree, inputs: Tree, reverse: bool = False):
    """jax.lax.scan, several turns at a time except on a CPU, whose compiler takes longer for it.

    To save a state, to slice the inputs and to count are a kernel each: of several turns instead of one.
    """
    one = functools.partial(jax.lax.scan, f, reverse=reverse)
    turns = together(jax.tree.leaves(inputs)[0].shape[0])
    if turns == 1:
        return one(start, inputs)
    return jax.lax.platform_dependent(start, inputs, cpu=one, default=functools.partial(one, unroll=turns))


def together(length: int) -> int:
    """The most turns, at most 5, that divide a loop of `length`, which stays a loop."""
    return max(n for n in range(1, 6) if length % n == 0 and (n < length or n == 1))


def masked(state: Tree, reset: jax.Array | None) -> Tree:
    """Zeros where reset [...] is true; leaves [..., width]."""
    if reset is None:
        return state
    return jax.tree.map(lambda x: jnp.where(reset[..., None], 0, x), state)


def _joined(state):
    """The arrays of a state side by side, if they are alike: each that a loop saves is a kernel a turn."""
    leaves = jax.tree.leaves(state)
    return jnp.concatenate(leaves, -1) if _are_alike(leaves) else state


def _parted(joined, like):
    leaves, structure = jax.tree.flatten(like)
    if not _are_alike(leaves):
        return joined
    ends = np.cumsum([x.shape[-1] for x in leaves])
    return jax.tree.unflatten(structure, jnp.split(joined, ends[:-1], -1))


def _are_alike(leaves):
    return len({(x.dtype, x.shape[:-1]) for x in leaves}) == 1


def _at(reset, t):
    return None if reset is None else reset[t]


def _following(reset):
    return None if reset is None else jnp.concatenate([reset[1:], jnp.zeros_like(reset[:1])])


def _forward(step, params, start, inputs, reset):
    found = _states(step, params, start, inputs, reset)
    return found, (params, start, inputs, reset, found)


def _backward(step, residuals, gradient):
    params, start, inputs, reset, found = residuals
    # Not before it is needed: the linearisations are larger than all that was saved.
    found, gradient = jax.lax.optimization_barrier((found, gradient))
    before = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]), start, found)
    before = masked(before, reset)
    pull, linear = _pullbacks(step, params, before, inputs)

    def back(later, x):
        linear, following, own = x
        total = jax.tree.map(jnp.add, masked(later, following), own)
        return pull(linear, total), _joined(total)

    zeros = jax.tree.map(jnp.zeros_like, start)
    later, total = scan(back, zeros, (linear, _following(reset), gradient), reverse=True)
    total = _parted(total, start)

    again = jax.checkpoint(step, policy=_is_costly, prevent_cse=False)

    def every(params, inputs):
        return jax.vmap(again, (None, 0, 0))(params, before, inputs)

    to_params, to_inputs = jax.vjp(every, params, inputs)[1](total)
    return to_params, masked(later, _at(reset, 0)), to_inputs, None


_states.defvjp(_forward, _backward)


def _is_costly(primitive, *_, **__):
    return primitive.name in ("dot_general", "argmax", "reduce_max")


def _pullbacks(step, params, states, inputs):
    """What brings the gradient of each step's result to its state.

    Returns:
      Function of what varies by step and of that gradient; what varies, of all steps: leaves [T, ...].
    """
    structures = []
    first = jax.tree.map(lambda x: x[0], (states, inputs))
    # Between products all is cheap: it is computed again where it is used, in the same kernel.
    step = jax.checkpoint(hoisted(step, params, first[0], inputs), policy=_is_costly, prevent_cse=False)

    def linearise(state, x):
        leaves, structure = jax.tree.flatten(jax.vjp(lambda state: step(state, x), state)[1])
        structures.append(structure)
        return leaves

    traced = jax.make_jaxpr(linearise)(*first).jaxpr
    moving, _ = _split(traced, traced.invars)
    varies = [_is_in(x, moving) for x in traced.outvars]
    fixed = linearise(*first)  # of these only what does not vary is used
    linear = jax.vmap(lambda *x: [leaf for leaf, moves in zip(linearise(*x), varies, strict=True) if moves])

    def pull(linear, gradient):
        own = iter(linear)
        leaves = [next(own) if moves else leaf for leaf, moves in zip(fixed, varies, strict=True)]
        return jax.tree.unflatten(structures[0], leaves)(gradient)[0]

    return pull, linear(states, inputs)


def hoisted(step: Callable[[Tree, Tree, Tree], Tree], params: Tree, state: Tree, inputs: Tree) -> Callable:
    """The function (state, x) -> step(params, state, x), with all that depends on params alone computed here.

    XLA leaves conversions, slices and transpositions of weights in a loop, where each is a kernel a turn.

    Args:
      state, inputs: of the loop, inputs [T, ...]; only shapes and types matter.
    """
    x = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), inputs)
    closed, shape = jax.make_jaxpr(step, return_shape=True)(params, state, x)
    traced, structure = closed.jaxpr, jax.tree.structure(shape)
    fixed = jax.tree.leaves(params)
    given, arguments = [*traced.constvars, *traced.invars[: len(fixed)]], traced.invars[len(fixed) :]
    moving, (ahead, inside) = _split(traced, arguments)
    used = [x for equation in inside for x in equation.invars] + traced.outvars
    kept = list(dict.fromkeys(x for x in used if not isinstance(x, Literal) and x not in moving))
    ahead = traced.replace(constvars=[], invars=given, outvars=kept, eqns=ahead)
    inside = traced.replace(constvars=[], invars=[*kept, *arguments], eqns=inside)
    found = jaxpr_as_fun(ClosedJaxpr(ahead, []))(*closed.consts, *fixed)

    def rest(state, x):
        leaves = jaxpr_as_fun(ClosedJaxpr(inside, []))(*found, *jax.tree.leaves((state, x)))
        return jax.tree.unflatten(structure, leaves)

    return rest


def _split(traced, moving):
    """Variables that depend on those given; the equations that do not, and that do."""
    moving, parts = set(moving), ([], [])
    for equation in traced.eqns:
        moves = any(_is_in(x, moving) for x in equation.invars)
        parts[moves].append(equation)
        if moves:
            moving.update(equation.outvars)
    return moving, parts


def _is_in(x, variables):
    return not isinstance(x, Literal) and x in variables
