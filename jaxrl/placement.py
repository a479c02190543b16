"""Where the arrays of a run lie, and how a replay that is divided over devices is used.

Each device holds the streams of its own environments and draws its share of a batch from them, so that no row
of replay goes from one device to another. Where the devices do not divide the environments, each holds all
streams and gathers its share of one batch for all. What learns is told nothing of this: it is given a batch
that is divided, and computes means over all of it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxrl.config import ConfigError
from jaxrl.feeds.ring import Ring, Row
from jaxrl.layout import WHOLE, Layout, own_key
from jaxrl.parts import Feed, Parts
from jaxrl.types import Evidence

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
    def groups(self) -> int:
        """Groups of streams from each of which a share of a batch is drawn."""
        return 1 if self.split or self.ring_axes == WHOLE else self.layout.count

    def batch(self, feed: Feed) -> Any:
        """Of what is drawn from it, for the learner."""
        return self.layout.tree(feed.batch_axes if self.layout.divides(feed.batch) else WHOLE)

    @property
    def evidence(self) -> Any:
        return Evidence(number=self.whole, batch=self.batch(self.parts.replay))

    def sample(self, feed: Feed) -> Callable[..., Any]:
        """`feed.sample`, each device from its own streams."""
        if self.split or not self.layout.divides(feed.batch):
            return feed.sample
        if self.groups == 1:
            return self._shared(feed)
        own = self._own(feed)

        def sample(ring, key, agent_steps):
            return own.sample(ring, own_key(key), agent_steps)

        outside = RING, feed.batch_axes, feed.window_axes
        return self.layout.spread(sample, (RING, WHOLE, WHOLE), outside)

    def insert(self, feed: Feed) -> Callable[..., Any]:
        """`feed.insert`, each device into its own streams."""
        if self.groups == 1:
            return feed.insert
        own = self._own(feed)

        def insert(ring: Ring, row: Row, where: jax.Array | None = None) -> Ring:
            given = (row,) if where is None else (row, where)
            return self.layout.spread(own.insert, (RING, *[0 for _ in given]), RING)(ring, *given)

        return insert

    def write_latents(self, feed: Feed) -> Callable[..., Any]:
        """`feed.write_latents`, each device into its own streams."""
        if self.groups == 1 or not self.layout.divides(feed.batch):
            return feed.write_latents
        inside = RING, feed.window_axes, feed.latents_axes
        return self.layout.spread(self._own(feed).write_latents, inside, RING)

    def _own(self, feed: Feed) -> Feed:
        """One device's share."""
        n = self.layout.count
        return dataclasses.replace(feed, streams=feed.streams // n, batch=max(1, feed.batch // n))

    def _shared(self, feed: Feed) -> Callable[..., Any]:
        """Each device gathers its share of one batch from streams that all of them hold."""
        places = self.batch(feed)

        def sample(ring, key, agent_steps):
            ring, batch, window = feed.sample(ring, key, agent_steps)
            batch = jax.tree.map(jax.lax.with_sharding_constraint, batch, jax.tree.broadcast(places, batch))
            return ring, batch, window

        return sample


def check_devices(layout: Layout, batch_size: int) -> None:
    """Raises ConfigError if a batch cannot be divided over the devices."""
    n = layout.count
    if batch_size % n == 0:
        return
    more, fewer = -(-batch_size // n) * n, max(k for k in range(1, n) if batch_size % k == 0)
    raise ConfigError(
        f"batch_size={batch_size}: cannot be divided over {n} devices; use --batch_size={more} or "
        f"--runtime.devices={fewer}"
    )
