"""Additive metrics: they accumulate on the device and leave it once per flush, as one array."""

from collections.abc import Sequence

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

    @classmethod
    def zero(cls) -> "Mean":
        return cls(total=jnp.float32(0), count=jnp.float32(0))

    def add(self, other: "Mean") -> "Mean":
        return Mean(total=self.total + other.total, count=self.count + other.count)


@struct.dataclass(kw_only=True)
class Sum:
    """Sum of everything seen since the last flush; reported even if it is zero."""

    total: jax.Array  # [] f32
    count: jax.Array  # [] f32, always 1 once anything was added

    @classmethod
    def of(cls, x: jax.Array) -> "Sum":
        return cls(total=jnp.asarray(x, jnp.float32).sum(), count=jnp.float32(1))

    @classmethod
    def zero(cls) -> "Sum":
        return cls(total=jnp.float32(0), count=jnp.float32(0))

    def add(self, other: "Sum") -> "Sum":
        return Sum(total=self.total + other.total, count=jnp.maximum(self.count, other.count))


@struct.dataclass(kw_only=True)
class Last:
    """The newest value."""

    total: jax.Array  # [] f32
    count: jax.Array  # [] f32

    @classmethod
    def of(cls, x: jax.Array) -> "Last":
        return cls(total=jnp.asarray(x, jnp.float32).reshape(()), count=jnp.float32(1))

    @classmethod
    def zero(cls) -> "Last":
        return cls(total=jnp.float32(0), count=jnp.float32(0))

    def add(self, other: "Last") -> "Last":
        return other


def zeros_of(metrics: Metrics) -> Metrics:
    """Empty accumulators of the same keys and kinds."""
    return {name: type(metric).zero() for name, metric in metrics.items()}


def accumulate(metrics: Metrics, new: Metrics) -> Metrics:
    """Adds key by key.

    Raises:
      ValueError: while tracing, if the key sets differ.
    """
    if metrics.keys() != new.keys():
        raise ValueError(
            f"metric keys must be constant; they differ in {sorted(metrics.keys() ^ new.keys())}"
        )
    return {name: metrics[name].add(new[name]) for name in metrics}


def pack(metrics: Metrics) -> jax.Array:
    """All accumulators as one array [2, len(metrics)] f32, in sorted key order."""
    leaves = [metrics[name] for name in sorted(metrics)]
    if not leaves:
        return jnp.zeros((2, 0), jnp.float32)
    return jnp.stack([jnp.stack([x.total for x in leaves]), jnp.stack([x.count for x in leaves])])


def unpack(names: Sequence[str], kinds: dict[str, type], packed: np.ndarray) -> dict[str, float]:
    """Scalars by name from a fetched `pack`; names that nothing was added to are left out."""
    out = {}
    for name, total, count in zip(sorted(names), packed[0].tolist(), packed[1].tolist(), strict=True):
        if count or count != count:
            out[name] = total / count if kinds[name] is Mean else total
    return out
