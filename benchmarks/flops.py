"""Floating-point operations of a traced program: 2 per multiply-add of every matrix product and convolution.

Counted by walking the jaxpr, what stands in a scan as often as the scan is long; XLA's own cost analysis
counts the body of a loop once. Elementwise work is left out: it is bound by memory, not by arithmetic.
"""

import math
from collections.abc import Iterator
from typing import Any

from jax.interpreters import partial_eval


def count(closed: Any) -> dict[str, float]:
    """{"dot": FLOPs of matrix products, "conv": of convolutions} of a ClosedJaxpr.

    What no result needs is left out, as the compiler leaves it out. Of a branch the dearest side counts. The
    body of a `while` counts once, since its length is not known while tracing: of a program that makes k
    updates in such a loop this is one update.
    """
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return walk(jaxpr)


def walk(jaxpr: Any) -> dict[str, float]:
    """The same of a jaxpr all of which is needed."""
    total = {"dot": 0.0, "conv": 0.0}
    for eqn in jaxpr.eqns:
        name, times = eqn.primitive.name, 1
        if name == "dot_general":
            total["dot"] += dot_flops(eqn)
        elif name == "conv_general_dilated":
            total["conv"] += conv_flops(eqn)
        parts = [walk(inner) for inner in inner_jaxprs(eqn)]
        if name == "scan":
            times = eqn.params["length"]
        elif name == "cond":
            parts = [max(parts, key=lambda part: sum(part.values()))]
        for part in parts:
            total = {kind: total[kind] + times * part[kind] for kind in total}
    return total


def dot_flops(eqn: Any) -> float:
    """2 x size of the result x length of the contraction."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def conv_flops(eqn: Any) -> float:
    """2 x size of the result x size of one filter; zeros that dilation puts into the input are no work."""
    filters, spec = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec
    one = filters[spec[1]] * math.prod(filters[i] for i in spec[2:])  # input channels of a group, window
    zeros = math.prod(eqn.params["lhs_dilation"] or (1,))
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * one / zeros


def inner_jaxprs(eqn: Any) -> Iterator[Any]:
    """The jaxprs that an equation calls: bodies, branches, checkpointed and custom-gradient functions."""
    for value in eqn.params.values():
        for item in value if isinstance(value, list | tuple) else [value]:
            if hasattr(item, "eqns"):
                yield item
