"""Replay of sequences.

A sequence never crosses the write head. Beside each row lie the learner's latents of it, refreshed at every
update that uses the row.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.feeds.ring import Ring, Storage
from jaxrl.types import Batch, Key


@struct.dataclass(kw_only=True)
class Window:
    """Where a batch came from, for writing latents back."""

    slot: jax.Array  # [L, B] i32
    stream: jax.Array  # [B] i32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay(Storage):
    """Storage, and how sequences are drawn from it."""

    batch: int  # B
    length: int  # T, rows that a loss covers
    context: int  # rows in front of them
    online: bool  # hand out each newest sequence once before drawing at random

    # Axis of the sequences in what is drawn, and in what is written back.
    batch_axes: ClassVar[Any] = 1
    window_axes: ClassVar[Any] = Window(slot=1, stream=0)
    latents_axes: ClassVar[Any] = 1

    @property
    def window(self) -> int:
        """L, rows of a sampled sequence."""
        return self.length + self.context

    def sample(
        self, ring: Ring, key: Key, agent_steps: jax.Array | None = None
    ) -> tuple[Ring, Batch, Window]:
        """B sequences: first those of the online queue, then uniform over all start rows.

        At least one stream must hold a whole window (the caller counts rows). The row before an `is_first`
        is marked `is_last` even if the environment never said so: its episode was abandoned.
        """
        del agent_steps  # sequences know no schedule
        ring, stream, start = self.choose(ring, key)
        slot = (start + jnp.arange(self.window)[:, None]) % self.rows  # [L, B]
        rows = jax.tree.map(lambda buffer: buffer[slot, stream], ring.rows)
        is_last = rows.is_last.at[:-1].set(rows.is_last[:-1] | rows.is_first[1:])
        batch = Batch(**{f.name: getattr(rows, f.name) for f in dataclasses.fields(rows)})
        return ring, batch.replace(is_last=is_last), Window(slot=slot, stream=stream)

    def choose(self, ring: Ring, key: Key) -> tuple[Ring, jax.Array, jax.Array]:
        """Stream and first row [B] of each sequence of the next batch; rows counted as the cursor counts."""
        oldest = jnp.maximum(ring.cursor - self.rows, 0)
        starts = jnp.maximum(ring.cursor - oldest - self.window + 1, 0)  # [N] possible first rows
        end = jnp.cumsum(starts)
        bits = jax.random.bits(key, (self.batch,))
        draw = (bits % jnp.maximum(end[-1], 1).astype(jnp.uint32)).astype(jnp.int32)
        stream = jnp.searchsorted(end, draw, side="right", method="compare_all").astype(jnp.int32)
        start = oldest[stream] + draw - (end - starts)[stream]
        if not self.online:
            return ring, stream, start
        # Sequence j of a stream covers rows [jT, jT + L): a loss sees every row but the very first once.
        taken = jnp.maximum(ring.taken, -(-oldest // self.length))
        pending = jnp.maximum((ring.cursor - self.context) // self.length - taken, 0)
        # Who is served first is drawn: where updates are rare, the first would leave nothing to the rest.
        order = (jnp.arange(self.streams) + (bits[0] % self.streams).astype(jnp.int32)) % self.streams
        pending = pending[order]
        end = jnp.cumsum(pending)
        place = jnp.arange(self.batch)
        queued = place < end[-1]
        source = jnp.searchsorted(end, place, side="right", method="compare_all").astype(jnp.int32)
        source = jnp.minimum(source, self.streams - 1)
        number = taken[order][source] + place - (end - pending)[source]
        taken = taken.at[order].add(jnp.clip(self.batch - (end - pending), 0, pending))
        stream = jnp.where(queued, order[source], stream)
        start = jnp.where(queued, number * self.length, start)
        return ring.replace(taken=taken), stream, start

    def write_latents(self, ring: Ring, window: Window, latents: Any) -> Ring:
        """Replaces the latents of a sampled window's rows after the context; leaves [T, B, ...]."""
        slot = window.slot[self.context :]

        def write(buffer, x):
            return buffer.at[slot, window.stream].set(x)

        rows = ring.rows.replace(latents=jax.tree.map(write, ring.rows.latents, latents))
        return ring.replace(rows=rows)
