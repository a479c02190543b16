"""Accumulators: what adds up over many updates, and that it leaves the device as one array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.metrics import Last, Mean, Streak, Sum, add, empty, flushed, kinds_of, pack, unpack


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


def test_a_skipped_update_leaves_the_means_of_its_row_alone():
    """Of it, what is finite counts, and what is not is left out; sums and newest values are as always."""
    good = {"l": Last.of(jnp.float32(1)), "m": Mean.of(jnp.float32(2)), "n": Mean.of(jnp.float32(3))}
    good["s"] = Sum.of(jnp.float32(0))
    bad = good | {"m": Mean.of(jnp.float32(jnp.nan)), "n": Mean.of(jnp.float32(5)), "s": Sum.of(jnp.inf)}
    packed = jnp.asarray(empty(kinds_of(good)))
    for new, skipped in ((good, False), (bad, True), (good, False)):
        packed = jax.jit(add)(packed, new, jnp.bool_(skipped))
    assert unpack(kinds_of(good), np.asarray(packed)) == {"l": 1.0, "m": 2.0, "n": 11 / 3, "s": np.inf}
    only = jax.jit(add)(jnp.asarray(empty(kinds_of(bad))), bad, jnp.bool_(True))
    assert "m" not in unpack(kinds_of(bad), np.asarray(only))
    kept = jax.jit(add)(jnp.asarray(empty(kinds_of(bad))), bad, jnp.bool_(False))
    assert np.isnan(
        unpack(kinds_of(bad), np.asarray(kept))["m"]
    )  # of an update that counts, nothing is hidden


def test_a_streak_is_the_longest_run_and_outlives_a_flush():
    kinds = {"m": Mean, "r": Streak}
    packed, rows = jnp.asarray(empty(kinds)), []
    for interval in ("0110", "0111", "1", "", "10", "0", "11"):
        for happened in interval:
            new = {"m": Mean.of(jnp.float32(1)), "r": Streak.of(jnp.bool_(happened == "1"))}
            packed = jax.jit(add)(packed, new)
        rows.append(unpack(kinds, np.asarray(packed)))
        packed = jnp.asarray(flushed(kinds, np.asarray(packed)))
    assert [row.get("r") for row in rows] == [2, 3, 4, 4, 5, None, 2]
    assert [row.get("m") for row in rows] == [1, 1, 1, None, 1, 1, 1]
    assert packed.dtype == np.float32 and flushed({}, empty({})).shape == (2, 0)


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
