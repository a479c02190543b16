"""What both learners have in common: state, frames shown together, augmentation, schedule, averages, skips.

A decision sees the newest `drq.stack` frames of an environment; acting remembers them, replay puts them
together anew. Steps of schedules are agent_steps of all environments together.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.config import Config, DrqConfig
from jaxrl.learners.optimizer import OptState, Stats, by_path, learning_rate
from jaxrl.metrics import Last, Mean, Sum
from jaxrl.ops.augment import random_intensity, random_shift
from jaxrl.types import Array, Key, Metrics, Params, Spaces, Step, Transitions, UpdateOutput


@struct.dataclass(kw_only=True)
class DrqState:
    params: Params  # f32, by network
    slow: Params  # averages of those networks of `params` that targets are made with, by the same names
    opt: dict[str, OptState]  # by what each of them minimises
    allowed: Array | None = None  # [A] bool, see Spaces; constant


@struct.dataclass(kw_only=True)
class DrqCarry:
    frames: dict[str, jax.Array]  # of each camera [N, h, w, stack * c] u8, oldest first
    agent_steps: jax.Array  # [N] i32, decisions of each environment so far; episodes do not reset it


@struct.dataclass(kw_only=True)
class Learned:
    """All that one update made; the state as it was, if a loss or gradient is not finite."""

    state: DrqState
    finite: jax.Array  # [] bool
    losses: dict[str, jax.Array]  # scalars
    grads: Params  # by network
    stats: Stats  # of the critic
    scalars: dict[str, jax.Array]  # means for metrics, by name
    noise: jax.Array  # [] f32, exploration at this time


Learn = Callable[[DrqState, Transitions, Key], Learned]


def initial_carry(spaces: Spaces, stack: int, n: int) -> DrqCarry:
    """The carry of n environments before their first row."""
    shapes = {k: spec.shape for k, spec in spaces.obs.items() if spec.is_image}
    frames = {k: jnp.zeros((n, h, w, stack * c), jnp.uint8) for k, (h, w, c) in shapes.items()}
    return DrqCarry(frames=frames, agent_steps=jnp.zeros(n, jnp.int32))


def see(carry: DrqCarry, step: Step) -> tuple[dict[str, jax.Array], DrqCarry]:
    """What a decision sees, and the carry after it.

    Args:
      step: leaves [N, ...]; images are single frames. An episode's first frame stands for those before it.

    Returns:
      obs: images [N, h, w, stack * c], oldest first; vectors as they are.
      carry: with these frames, one decision further on.
    """
    frames = {}
    for name, old in carry.frames.items():
        new = jnp.asarray(step.obs[name])
        c = new.shape[-1]
        first = jnp.asarray(step.is_first)[:, None, None, None]
        past = jnp.where(first, jnp.tile(new, old.shape[-1] // c - 1), old[..., c:])
        frames[name] = jnp.concatenate([past, new], -1)
    obs = {k: jnp.asarray(x) for k, x in step.obs.items()} | frames
    return obs, DrqCarry(frames=frames, agent_steps=carry.agent_steps + 1)


def decided(carry: DrqCarry) -> jax.Array:
    """[N] i32, agent_steps of all environments together before this decision."""
    return carry.agent_steps * carry.agent_steps.shape[0]


def linear(start: float, end: float, length: int, steps: jax.Array) -> jax.Array:
    """From `start` at 0 steps to `end` at `length` and ever after, f32."""
    share = jnp.clip(steps.astype(jnp.float32) / length, 0, 1)
    return start + (end - start) * share


def augmented(obs: dict[str, jax.Array], key: Key, drq: DrqConfig) -> dict[str, jax.Array]:
    """Shifts images as bytes, then changes their brightness as floats if asked; each camera by itself."""
    images = sorted(k for k, x in obs.items() if x.ndim == 4)
    keys, found = jax.random.split(key, (max(1, len(images)), 2)), dict(obs)
    for name, (key_shift, key_intensity) in zip(images, keys, strict=False):
        x = random_shift(obs[name], key_shift, drq.shift)
        if drq.intensity:
            x = random_intensity(x.astype(jnp.float32), key_intensity, drq.intensity)
        found[name] = x
    return found


def polyak(slow: Params, params: Params, tau: float, finite: jax.Array) -> Params:
    """slow + tau (params - slow), or slow as it is if not `finite`."""
    return jax.tree.map(lambda s, p: s + jnp.where(finite, tau, 0) * (p - s), slow, params)


def update(learn: Learn, config: Config, state: DrqState, batch: Transitions, key: Key) -> UpdateOutput:
    """What `learn` makes of a batch, and its metrics; counted where a loss or gradient is not finite."""
    learned = learn(state, batch, key)
    means = {f"loss/{k}": x for k, x in learned.losses.items()} | learned.scalars
    means |= {"opt/grad_norm": learned.stats.grad_norm, "opt/update_rms": learned.stats.update_rms}
    metrics: Metrics = {f"train/{k}": Mean.of(x) for k, x in means.items()}
    metrics["train/noise"] = Last.of(learned.noise)
    metrics["train/opt/param_rms"] = Last.of(learned.stats.param_rms)
    metrics["train/opt/lr"] = Last.of(learning_rate(config.opt)(state.opt["critic"].count))
    metrics["train/opt/skipped"] = Sum.of(1 - learned.finite)
    return UpdateOutput(state=learned.state, metrics=metrics, latents=())


def explain(learn: Learn, state: DrqState, batch: Transitions, key: Key) -> dict[str, jax.Array]:
    """The numbers of an update by name, among them those that it would be skipped for."""
    learned = learn(state, batch, key)
    numbers = {f"loss/{name}": x for name, x in learned.losses.items()}
    numbers |= {f"grad/{name}": x for name, x in by_path(learned.grads).items()}
    return numbers | {f"param/{name}": x for name, x in by_path(state.params).items()}
