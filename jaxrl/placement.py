"""Where the arrays of a run lie, and how a replay that is divided over devices is used.

Each device holds the streams of its own environments and draws its share of a batch from them, so that no row
of replay goes from one device to another. Where the devices do not divide the environments, each holds all
streams and gathers its share of one batch for all. What learns is told nothing of this: it is given a batch
that is divided, and computes means over all of it.
"""

import dataclasses
from typing import Any

import jax

from jaxrl.config import ConfigError
from jaxrl.feeds.ring import Ring, Row
from jaxrl.layout import WHOLE, Layout, own_key
from jaxrl.parts import Feed, Parts
from jaxrl.types import Evidence, Key

RING = Ring(rows=1, cursor=0, taken=0)  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True)
class Placement:
    """Shardings of a run's arrays; trees of them are prefixes of the arrays' trees."""

    parts: Parts

    @property
    def layout(self) -> Layout:
        return self.parts.machine.layout

    @property
    def split(self) -> bool:
        """Whether replay lies on another device than what learns from it."""
        return self.parts.machine.replay != self.parts.machine.learner

    @property
    def whole(self) -> Any:
        return self.layout.whole

    @property
    def rows(self) -> Any:
        """Of what the training environments have each: [N, ...]."""
        return self.layout.rows(self.parts.replay.streams)

    @property
    def judges(self) -> Any:
        """The same of those of an evaluation."""
        return self.layout.rows(self.parts.eval_envs)

    @property
    def store(self) -> Any:
        """Of numbers beside replay."""
        return jax.sharding.SingleDeviceSharding(self.parts.machine.replay) if self.split else self.whole

    @property
    def ring_axes(self) -> Any:
        return RING if self.layout.divides(self.parts.replay.streams) else WHOLE

    @property
    def ring(self) -> Any:
        return self.store if self.split else self.layout.tree(self.ring_axes)

    @property
    def stored_rows(self) -> Any:
        """Of rows [N, ...] on their way into a ring."""
        return self.store if self.split else self.rows

    @property
    def shares(self) -> bool:
        """Whether each process steps environments of its own; else each steps all of them."""
        return self.layout.shares(self.parts.replay.streams)

    @property
    def groups(self) -> int:
        """Groups of streams from each of which a share of a batch is drawn."""
        return 1 if self.split or self.ring_axes == WHOLE else self.layout.count

    def batch(self, feed: Feed) -> Any:
        """Of what is drawn from it, for the learner."""
        return self.layout.tree(feed.batch_axes if self.layout.divides(feed.batch) else WHOLE)

    @property
    def evidence(self) -> Any:
        return Evidence(number=self.whole, batch=self.batch(self.parts.replay))

    def feed(self, feed: Feed) -> "Feed | Divided | Shared":
        """The same, used by all devices at once."""
        if self.split or not self.layout.divides(feed.batch):
            return feed
        return Divided(feed, self.layout) if self.groups > 1 else Shared(feed, self.batch(feed))


@dataclasses.dataclass(frozen=True)
class Divided:
    """The functions of a feed, where each device has streams of its own and draws its share from them."""

    feed: Feed
    layout: Layout

    @property
    def own(self) -> Feed:
        """One device's share."""
        n = self.layout.count
        return dataclasses.replace(self.feed, streams=self.feed.streams // n, batch=self.feed.batch // n)

    def sample(self, ring: Ring, key: Key, agent_steps: jax.Array) -> tuple[Ring, Any, Any]:
        def own(ring, key, agent_steps):
            return self.own.sample(ring, own_key(key), agent_steps)

        outside = RING, self.feed.batch_axes, self.feed.window_axes
        return self.layout.spread(own, (RING, WHOLE, WHOLE), outside)(ring, key, agent_steps)

    def insert(self, ring: Ring, row: Row, where: jax.Array | None = None) -> Ring:
        given = (row,) if where is None else (row, where)
        return self.layout.spread(self.own.insert, (RING, *[0 for _ in given]), RING)(ring, *given)

    def write_latents(self, ring: Ring, window: Any, latents: Any) -> Ring:
        inside = RING, self.feed.window_axes, self.feed.latents_axes
        return self.layout.spread(self.own.write_latents, inside, RING)(ring, window, latents)


@dataclasses.dataclass(frozen=True)
class Shared:
    """The functions of a feed, where each device holds all streams and gathers its share of one batch."""

    feed: Feed
    places: Any  # of the batch

    def sample(self, ring: Ring, key: Key, agent_steps: jax.Array) -> tuple[Ring, Any, Any]:
        ring, batch, window = self.feed.sample(ring, key, agent_steps)
        places = jax.tree.broadcast(self.places, batch)
        return ring, jax.tree.map(jax.lax.with_sharding_constraint, batch, places), window

    def insert(self, ring: Ring, row: Row, where: jax.Array | None = None) -> Ring:
        return self.feed.insert(ring, row, where)

    def write_latents(self, ring: Ring, window: Any, latents: Any) -> Ring:
        return self.feed.write_latents(ring, window, latents)


AnyFeed = Feed | Divided | Shared


def check_devices(layout: Layout, batch_size: int) -> None:
    """Raises ConfigError if a batch cannot be divided over the devices."""
    n, each = layout.count, layout.processes
    if batch_size % n == 0:
        return
    remedies = [f"--batch_size={-(-batch_size // n) * n}"]
    if fewer := [k for k in range(each, n, each) if batch_size % k == 0]:
        remedies.append(f"--runtime.devices={fewer[-1]}")
    where = f" in {each} processes" if each > 1 else ""
    raise ConfigError(
        f"batch_size={batch_size}: cannot be divided over {n} devices{where}; use {' or '.join(remedies)}"
    )
