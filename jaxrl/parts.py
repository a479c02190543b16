"""What a run is made of before anything is compiled, and the shapes of what will flow through it."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import metrics
from jaxrl.config import Config
from jaxrl.envs.batch import Batched
from jaxrl.feeds.replay import Replay
from jaxrl.feeds.transitions import TransitionReplay
from jaxrl.runtime import Machine
from jaxrl.types import Batch, Key, Learner, Metrics, Spaces, Step, Transitions

SKIPPED, IN_A_ROW = "train/opt/skipped", "train/opt/skipped_in_a_row"

Feed = Replay | TransitionReplay


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run is made of, before anything is compiled."""

    config: Config  # no "auto" left
    learner: Learner
    replay: Feed
    held: Feed | None  # the ring of held-out episodes
    batched: Batched | None  # the environments, where the loop is on the device with them
    machine: Machine
    eval_envs: int
    key: Key  # of the run, on the learner's device


class Due(NamedTuple):
    """Updates to make now."""

    updates: int
    done: int  # made before
    agent_steps: int  # clock of the run


def metric_shapes(parts: Parts) -> Metrics:
    if (update := parts.learner.update) is None:
        return {}
    state = jax.eval_shape(parts.learner.init, parts.key)
    batch = batch_shapes(parts.replay, parts.key)
    return jax.eval_shape(lambda *a: with_streak(update(*a).metrics), state, batch, parts.key)


def with_streak(found: Metrics) -> Metrics:
    """The metrics of an update, and where skipped ones are counted, how many of them came in a row."""
    return found | {IN_A_ROW: metrics.Streak.of(found[SKIPPED].total)} if SKIPPED in found else found


def held_metric_shapes(parts: Parts) -> Metrics:
    if parts.held is None or parts.learner.validate is None:
        return {}
    state = jax.eval_shape(parts.learner.init, parts.key)
    return jax.eval_shape(parts.learner.validate, state, batch_shapes(parts.held, parts.key), parts.key)


def batch_shapes(replay: Feed, key: Key) -> Batch | Transitions:
    number = jax.ShapeDtypeStruct((), jnp.int32)
    return jax.eval_shape(replay.sample, jax.eval_shape(replay.init), key, number)[1]


def step_shapes(spaces: Spaces, n: int) -> Step:
    """A Step of n environments as ShapeDtypeStructs."""
    s: Any = jax.ShapeDtypeStruct
    obs = {k: s((n, *spec.shape), spec.dtype) for k, spec in spaces.obs.items()}
    flag = s((n,), jnp.bool_)
    return Step(obs=obs, reward=s((n,), jnp.float32), is_first=flag, is_last=flag, is_terminal=flag)


def shaped(tree: Any, place: Any) -> Any:
    """Shapes of a tree, placed on a device, or by a sharding or a tree of them that is a prefix."""
    if isinstance(place, jax.Device):
        place = jax.sharding.SingleDeviceSharding(place)
    places = jax.tree.broadcast(place, tree)
    return jax.tree.map(lambda x, p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=p), tree, places)


def loops(parts: Parts) -> bool:
    """Whether one dispatch makes many updates.

    Not on a CPU: there a dispatch is nothing beside an update, and XLA runs the body of a loop on one core,
    four times slower.
    """
    return parts.machine.platform != "cpu"
