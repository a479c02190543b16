"""What every replay is made of: a ring of rows on the device, as pure functions.

Each of N streams (environments) has its own write cursor, so that rows can be left out (held-out episodes)
without a gap. Frames are stored once, as they came. How batches are drawn from the rows is what sequences
(jaxrl/feeds/replay.py) and transitions (jaxrl/feeds/transitions.py) differ in.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl.config import ConfigError
from jaxrl.types import Spaces, Step


@struct.dataclass(kw_only=True)
class Row:
    """One row of N streams, leaves [N, ...]; in the ring [C, N, ...]."""

    obs: dict[str, jax.Array]
    action: jax.Array
    reward: jax.Array
    is_first: jax.Array
    is_last: jax.Array
    is_terminal: jax.Array
    latents: Any


@struct.dataclass(kw_only=True)
class Ring:
    rows: Row  # leaves [C, N, ...], dtypes as stored (images uint8)
    cursor: jax.Array  # [N] i32, rows written to each stream since the start of the run (never wrapped)
    taken: jax.Array  # [N] i32, sequences of each stream that the online queue has handed out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Storage:
    """Sizes of a ring; the functions below are pure."""

    spaces: Spaces
    latents: Any  # pytree of one row's latents, arrays or ShapeDtypeStructs, no env axis
    streams: int  # N
    rows: int  # C, per stream

    @property
    def window(self) -> int:
        """Rows that a stream must hold before anything can be drawn."""
        raise NotImplementedError

    def row_shapes(self) -> Row:
        """One row of one stream as ShapeDtypeStructs."""
        s = jax.ShapeDtypeStruct
        flag = s((), jnp.bool_)
        return Row(
            obs={k: s(spec.shape, spec.dtype) for k, spec in self.spaces.obs.items()},
            action=s(self.spaces.action.shape, self.spaces.action.dtype),
            reward=s((), jnp.float32),
            is_first=flag,
            is_last=flag,
            is_terminal=flag,
            latents=jax.tree.map(lambda x: s(x.shape, x.dtype), self.latents),
        )

    @property
    def row_bytes(self) -> int:
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(self.row_shapes()))

    @property
    def nbytes(self) -> int:
        return self.row_bytes * self.rows * self.streams

    def init(self) -> Ring:
        """An empty ring."""

        def empty(x):
            return jnp.zeros((self.rows, self.streams, *x.shape), x.dtype)

        # Two arrays, not one twice: a donated buffer may stand only once in a tree.
        count = [jnp.zeros(self.streams, jnp.int32) for _ in range(2)]
        return Ring(rows=jax.tree.map(empty, self.row_shapes()), cursor=count[0], taken=count[1])

    def insert(self, ring: Ring, row: Row, where: jax.Array | None = None) -> Ring:
        """Writes one row over the oldest of each stream. Jit with `ring` donated.

        Args:
          row: leaves [N, ...].
          where: [N] bool, streams that are written; all if None.
        """
        if where is None:  # streams advance together: one contiguous write
            slot = ring.cursor[0] % self.rows

            def write(buffer, x):
                return jax.lax.dynamic_update_index_in_dim(buffer, x.astype(buffer.dtype), slot, 0)

            rows = jax.tree.map(write, ring.rows, row)
            return ring.replace(rows=rows, cursor=ring.cursor + 1)

        def write_stream(n, rows):
            slot = ring.cursor[n] % self.rows

            def write(buffer, x):
                new = jnp.where(where[n], x[n].astype(buffer.dtype), buffer[slot, n])
                return jax.lax.dynamic_update_slice(buffer, new[None, None], (slot, n) + (0,) * (x.ndim - 1))

            return jax.tree.map(write, rows, row)

        rows = jax.lax.fori_loop(0, self.streams, write_stream, ring.rows)
        return ring.replace(rows=rows, cursor=ring.cursor + where.astype(jnp.int32))

    def grown(self, ring: Ring, rows: int) -> Ring:
        """The ring with room for `rows` per stream; only for a ring that has not wrapped."""
        extra = rows - self.rows

        def pad(buffer):
            return jnp.concatenate([buffer, jnp.zeros((extra, *buffer.shape[1:]), buffer.dtype)])

        return ring.replace(rows=jax.tree.map(pad, ring.rows)) if extra > 0 else ring


def row_of(step: Step, action: jax.Array, latents: Any) -> Row:
    """The row of a step, with the action chosen there and the learner's latents."""
    return Row(
        obs=step.obs,
        action=action,
        reward=step.reward,
        is_first=step.is_first,
        is_last=step.is_last,
        is_terminal=step.is_terminal,
        latents=latents,
    )


def check_budget(replay: Storage, other: int, budget: int, where: str) -> None:
    """Raises ConfigError if the ring, and `other` bytes beside it, need more than `budget` bytes."""
    need = replay.nbytes + other
    if need <= budget:
        return
    fits = max(0, budget - other) // (replay.row_bytes * replay.streams) * replay.streams
    remedies = [] if where == "host" else ["--replay.placement=host"]
    if fits >= replay.window * replay.streams:
        remedies.insert(0, f"--replay.capacity={fits}")
    raise ConfigError(
        f"replay.capacity={replay.rows * replay.streams}: needs {need / 1e9:.2f} GB "
        f"({replay.row_bytes / 1e3:.1f} kB a row) but the budget of the {where} is {budget / 1e9:.2f} GB; "
        f"use {' or '.join([*remedies, 'a larger --replay.budget_gb'])}"
    )


def trainable_rows(rows: np.ndarray, capacity: int, window: int, groups: int = 1) -> bool:
    """True once in each of so many equal groups of streams one with `rows` [N] written holds a window."""
    return bool((np.minimum(rows, capacity) >= window).reshape(groups, -1).any(1).all())
