"""Additive metrics: they accumulate on the device as one small array and leave it once per flush."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl.types import Metrics


@struct.dataclass(kw_only=True)
class Mean:
    """Weighted mean of everything seen since the last flush."""

    total: jax.Array  # [] f32
    count: jax.Array  # [] f32

    @classmethod
    def of(cls, x: jax.Array, where: jax.Array | None = None) -> "Mean":
        """Mean over all elements of x, or those where the mask (same shape) is true."""
        x = jnp.asarray(x, jnp.float32)
        if where is None:
            return cls(total=x.sum(), count=jnp.float32(x.size))
        return cls(total=jnp.where(where, x, 0).sum(), count=where.astype(jnp.float32).sum())


@struct.dataclass(kw_only=True)
class Sum:
    """Sum of everything seen since the last flush; reported even if it is zero."""

    total: jax.Array  # [] f32
    count: jax.Array  # [] f32, above 0 once anything was added

    @classmethod
    def of(cls, x: jax.Array) -> "Sum":
        return cls(total=jnp.asarray(x, jnp.float32).sum(), count=jnp.float32(1))


@struct.dataclass(kw_only=True)
class Last:
    """The newest value."""

    total: jax.Array  # [] f32
    count: jax.Array  # [] f32

    @classmethod
    def of(cls, x: jax.Array) -> "Last":
        return cls(total=jnp.asarray(x, jnp.float32).reshape(()), count=jnp.float32(1))


@struct.dataclass(kw_only=True)
class Streak:
    """The longest run, one after another, since the last flush; a run in progress outlives flushes."""

    total: jax.Array  # [] f32, the longest
    count: jax.Array  # [] f32, the one in progress

    @classmethod
    def of(cls, happened: jax.Array) -> "Streak":
        """One more of a run if `happened` ([] bool), else its end."""
        one = jnp.asarray(happened, jnp.float32).reshape(())
        return cls(total=one, count=one)


def kinds_of(metrics: Metrics) -> dict[str, type]:
    """The accumulator of each name, in sorted order."""
    return {name: type(metrics[name]) for name in sorted(metrics)}


def empty(kinds: dict[str, type]) -> np.ndarray:
    """Accumulators without values, [2, names]."""
    return np.zeros((2, len(kinds)), np.float32)


def flushed(kinds: dict[str, type], packed: np.ndarray) -> np.ndarray:
    """What the next interval starts from, [2, names]: nothing but the runs that are still in progress."""
    running = np.array([kind is Streak for kind in kinds.values()], bool)
    return np.where(running, packed[1:], np.float32(0)).repeat(2, axis=0)


def pack(metrics: Metrics) -> jax.Array:
    """Accumulators as one array [2, names] f32: totals and counts in sorted order of names."""
    leaves = [metrics[name] for name in sorted(metrics)]
    if not leaves:
        return jnp.zeros((2, 0), jnp.float32)
    return jnp.stack([x.total for x in leaves] + [x.count for x in leaves]).reshape(2, -1)


def add(packed: jax.Array, new: Metrics, skipped: jax.Array | None = None) -> jax.Array:
    """Adds metrics to packed ones of the same names.

    Args:
      skipped: [] bool, the update that they are of had no effect: what is not finite of it stays out of
        means, which would be lost by it.

    Raises:
      ValueError: while tracing, if the number of names differs.
    """
    if packed.shape != (2, len(new)):
        raise ValueError(f"metric names must be constant: {packed.shape[1]} before, {len(new)} now")
    means, newest, streaks = (
        np.array([kind is wanted for kind in kinds_of(new).values()], bool) for wanted in (Mean, Last, Streak)
    )
    values = pack(new)
    if skipped is not None:
        values = jnp.where(means & skipped & ~jnp.isfinite(values[0]), 0, values)
    running = (packed[1] + 1) * values[1]
    streak = jnp.stack([jnp.maximum(packed[0], running), running])
    return jnp.where(newest, values, jnp.where(streaks, streak, packed + values))


def unpack(kinds: dict[str, type], packed: np.ndarray) -> dict[str, float]:
    """Scalars by name from a fetched array; names that nothing was added to, and runs of none, are left."""
    out = {}
    for (name, kind), total, count in zip(kinds.items(), *packed.tolist(), strict=True):
        if total if kind is Streak else count:  # NaN too
            out[name] = total / count if kind is Mean else total
    return out
