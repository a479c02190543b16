"""Replay of transitions: frames stored once, stacked and summed over n decisions when they are drawn."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxrl.feeds.ring import Ring, Storage
from jaxrl.types import Horizon, Key, Transitions

CANDIDATES = 8  # rows drawn for each transition, of which the first that can begin one is taken


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransitionReplay(Storage):
    """Storage, and how transitions are drawn from it: uniformly over all rows that can begin one.

    A transition begins at any row but an episode's last, once n rows follow it in its stream. It ends n rows
    later, or with its episode; then fewer rewards are summed, so that the last decisions of an episode
    are learned from too. (DrQ-v2 never draws the last n - 1 of them, which hides the ends of tasks that
    terminate.)
    """

    batch: int  # B
    horizon: Horizon

    # Axis of the transitions in what is drawn; -1 where there is none.
    batch_axes: ClassVar[Any] = Transitions(obs=0, action=0, reward=0, discount=0, next_obs=0, agent_steps=-1)
    window_axes: ClassVar[Any] = ()
    latents_axes: ClassVar[Any] = ()

    @property
    def window(self) -> int:
        """Rows that a stream must hold before anything can be drawn."""
        return self.horizon.nstep + 1

    def sample(self, ring: Ring, key: Key, agent_steps: jax.Array) -> tuple[Ring, Transitions, tuple[()]]:
        """B transitions. At least one stream must hold a window (the caller counts rows).

        Args:
          agent_steps: [] i32, clock of the run.
        """
        stack, n = self.horizon.stack, self.horizon.nstep
        stream, start = self.choose(ring, key)
        oldest = jnp.maximum(ring.cursor - self.rows, 0)[stream]
        number = jnp.maximum(start + jnp.arange(1 - stack, n + 1)[:, None], oldest)  # [stack + n, B]
        slot = number % self.rows
        rows = ring.rows
        small = rows.is_first, rows.is_last, rows.is_terminal, rows.reward
        first, last, terminal, reward = (x[slot, stream] for x in small)
        # Positions in the window: the transition begins at `at`, its episode not before `begin`.
        at = stack - 1
        place = jnp.arange(stack)[:, None]
        begin = jnp.where(first[:stack], place, 0).max(0)
        over = last[at:-1] | first[at + 1 :] | (terminal[at:-1] & (jnp.arange(n) > 0)[:, None])
        alive = jnp.cumprod(~over, 0)  # [n, B]: the i-th reward belongs to this transition
        steps = alive.sum(0)
        gamma = jnp.float32(self.horizon.discount)
        summed = (alive * gamma ** jnp.arange(n, dtype=jnp.float32)[:, None] * reward[at + 1 :]).sum(0)
        ends = jnp.take_along_axis(terminal, (at + steps)[None], 0)[0]
        batch = Transitions(
            obs=self._shown(ring, slot, stream, jnp.maximum(place, begin)),
            action=rows.action[slot[at], stream],
            reward=summed,
            discount=jnp.where(ends, 0, gamma ** steps.astype(jnp.float32)),
            next_obs=self._shown(ring, slot, stream, jnp.maximum(place + steps, begin)),
            agent_steps=jnp.asarray(agent_steps, jnp.int32),
        )
        return ring, batch, ()

    def choose(self, ring: Ring, key: Key) -> tuple[jax.Array, jax.Array]:
        """Stream and first row [B] of each transition; rows counted as the cursor counts."""
        oldest = jnp.maximum(ring.cursor - self.rows, 0)
        # Once the ring has wrapped, the frames in front of its oldest rows are gone.
        low = oldest + jnp.where(oldest > 0, self.horizon.stack - 1, 0)
        starts = jnp.maximum(ring.cursor - self.horizon.nstep - low, 0)
        end = jnp.cumsum(starts)
        bits = jax.random.bits(key, (CANDIDATES, self.batch))
        draw = (bits % jnp.maximum(end[-1], 1).astype(jnp.uint32)).astype(jnp.int32)
        stream = jnp.searchsorted(end, draw, side="right", method="compare_all").astype(jnp.int32)
        start = low[stream] + draw - (end - starts)[stream]
        over = ring.rows.is_last[start % self.rows, stream]
        over |= ring.rows.is_first[(start + 1) % self.rows, stream]  # the episode was abandoned
        # With episodes of 2 rows, one batch of 256 would hold one row that no transition begins at: its
        # target is its own value, and its reward 0.
        chosen = jnp.argmax(~over, 0)[None]
        return jnp.take_along_axis(stream, chosen, 0)[0], jnp.take_along_axis(start, chosen, 0)[0]

    def _shown(
        self, ring: Ring, slot: jax.Array, stream: jax.Array, place: jax.Array
    ) -> dict[str, jax.Array]:
        """Images of the rows at `place` [stack, B] in windows `slot` [L, B], vectors of the newest."""
        rows = jnp.take_along_axis(slot, place, 0)
        found = {}
        for name, spec in self.spaces.obs.items():
            buffer = ring.rows.obs[name]
            if spec.is_image:
                frames = buffer[rows, stream]  # [stack, B, h, w, c]
                found[name] = jnp.concatenate(jnp.unstack(frames), -1)
            else:
                found[name] = buffer[rows[-1], stream]
        return found

    def write_latents(self, ring: Ring, window: tuple[()], latents: tuple[()]) -> Ring:
        """The same ring: transitions carry no latents."""
        del window, latents
        return ring
