"""Accumulators: what adds up over many updates, and that it leaves the device as one array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.metrics import Last, Mean, Sum, add, empty, kinds_of, pack, unpack


def values(kinds, *batches):
    """Scalars of a flush after several additions, in compiled code."""
    packed = jnp.asarray(empty(kinds))
    for batch in batches:
        packed = jax.jit(add)(packed, batch)
    return unpack(kinds, np.asarray(packed))


def test_a_mean_is_over_all_elements_of_all_additions():
    kinds = {"m": Mean}
    got = values(kinds, {"m": Mean.of(jnp.array([1.0, 2.0, 3.0]))}, {"m": Mean.of(jnp.array([[10.0]]))})
    assert got == {"m": 4.0}
    assert values(kinds, {"m": Mean.of(jnp.int32(7))}) == {"m": 7.0}
    assert values(kinds, {"m": Mean.of(jnp.array([True, False]))}) == {"m": 0.5}


def test_a_masked_mean_sees_only_the_mask():
    x, where = jnp.array([[1.0, jnp.nan], [3.0, jnp.inf]]), jnp.array([[True, False], [True, False]])
    nothing = {"m": Mean.of(x, where=jnp.zeros_like(where))}
    assert values({"m": Mean}, {"m": Mean.of(x, where=where)}) == {"m": 2.0}
    assert values({"m": Mean}, nothing, {"m": Mean.of(x, where=where)}, nothing) == {"m": 2.0}
    assert values({"m": Mean}, nothing) == {}


def test_sums_and_newest_values():
    batches = [{"s": Sum.of(jnp.array([1, i])), "l": Last.of(jnp.float32(i))} for i in range(4)]
    kinds = kinds_of(batches[0])
    assert values(kinds, *batches) == {"s": 10.0, "l": 3.0}
    assert values(kinds) == {}  # nothing yet
    assert values({"s": Sum}, {"s": Sum.of(jnp.zeros(3))}) == {"s": 0.0}  # a zero is a value
    assert values({"l": Last}, {"l": Last.of(jnp.float32(0))}) == {"l": 0.0}


def test_what_is_not_finite_stays_so():
    got = values({"l": Last, "m": Mean}, {"m": Mean.of(jnp.array([1.0, jnp.nan])), "l": Last.of(jnp.inf)})
    assert np.isnan(got["m"]) and np.isinf(got["l"])
    recovered = values({"l": Last}, {"l": Last.of(jnp.float32(jnp.nan))}, {"l": Last.of(jnp.float32(1))})
    assert recovered == {"l": 1.0}


def test_one_array_whatever_the_order_and_number_of_names():
    new = {"b": Mean.of(jnp.array([2.0, 4.0])), "a": Last.of(jnp.float32(5)), "c": Sum.of(jnp.ones(3))}
    kinds = kinds_of(new)
    assert list(kinds) == ["a", "b", "c"]
    packed = jax.jit(pack)(new)
    assert packed.shape == empty(kinds).shape == (2, 3) and packed.dtype == empty(kinds).dtype == np.float32
    assert unpack(kinds, np.asarray(packed)) == {"a": 5.0, "b": 3.0, "c": 3.0}
    assert pack({}).shape == (2, 0) and unpack({}, np.asarray(pack({}))) == {}
    shapes = jax.eval_shape(add, packed, new)
    assert (shapes.shape, shapes.dtype) == (packed.shape, packed.dtype)  # a loop may carry it


def test_names_must_not_change():
    packed = pack({"a": Mean.of(jnp.ones(1)), "b": Sum.of(jnp.ones(1))})
    with pytest.raises(ValueError, match="metric names must be constant: 2 before, 1 now"):
        add(packed, {"a": Mean.of(jnp.ones(1))})
