"""RunState to checkpoint and back."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.checkpoint import Shapes, Store, flatten, unflatten
from jaxrl.exits import NoCheckpoint
from jaxrl.programs import Programs
from jaxrl.state import Counters, RunState
from jaxrl.tracker import Tracker

ON_DEVICE = ("learner", "policy", "carry", "counter", "totals")
RINGS = ("ring", "held")


@dataclasses.dataclass(frozen=True)
class Saved:
    """What must be known of a checkpoint before the state that it will fill is made."""

    step: int  # its name, env_steps
    counters: Counters
    rows: int  # per stream of its ring; 0 if replay was not stored
    held_rows: int  # the same of held-out episodes


def save(store: Store, state: RunState, with_replay: bool) -> bool:
    """Begins to write the whole state; False if this step is on disk already."""
    names = ON_DEVICE + (RINGS if with_replay else ())
    on_device = flatten({name: getattr(state, name) for name in names})
    on_device = {k: x for k, x in on_device.items() if x.size}  # Orbax refuses empty arrays
    return store.save(state.counters.env_steps, on_device, host_leaves(state))


def host_leaves(state: RunState) -> dict[str, np.ndarray]:
    counters = {k: np.asarray(v) for k, v in dataclasses.asdict(state.counters).items()}
    env = {f"env.{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state.env))}
    return flatten({"counters": counters, "tracker": state.tracker, "scores": state.scores}) | env


def newest(store: Store) -> Saved | None:
    """What the newest checkpoint is, without loading anything large; None if there is none."""
    step = store.latest()
    if step is None:
        return None
    shapes, _ = store.shapes(step)
    _, on_host = store.load(step, None)
    counters = Counters(
        **{f.name: on_host[f"counters.{f.name}"].item() for f in dataclasses.fields(Counters)}
    )
    rows = [shapes[f"{x}.rows.reward"].shape[0] if f"{x}.rows.reward" in shapes else 0 for x in RINGS]
    return Saved(step, counters, *rows)


def restore(store: Store, saved: Saved, fresh: RunState) -> RunState:
    """The state of a checkpoint; `fresh`, a new run's state, says what it must look like and is used up.

    A ring that was smaller (a shorter run, so that it has not wrapped) grows; one that was not stored
    starts empty, and updates begin again once it can be sampled. The environment's snapshot comes back as
    a list of arrays.

    Raises:
      NoCheckpoint: if the checkpoint is damaged or of another model, naming the first array that differs.
    """
    names = ON_DEVICE + (RINGS if saved.rows else ())
    blank = {name: getattr(fresh, name) for name in names}
    full = {k: x for k, x in flatten(blank).items() if x.size}
    wanted = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for k, x in full.items()}
    asked = check_shapes(saved.step, store.shapes(saved.step)[0], wanted)
    for array in full.values():
        array.delete()  # there may not be room for two rings
    on_device, on_host = store.load(saved.step, asked)
    leaves = flatten(blank) | {k: grown(on_device[k], like.shape) for k, like in wanted.items()}
    tracker = unflatten(fresh.tracker, {k: on_host[f"tracker.{k}"] for k in flatten(fresh.tracker)})
    env = [on_host[f"env.{i}"] for i in range(sum(name.startswith("env.") for name in on_host))]
    state = fresh.replace(
        **unflatten(blank, leaves),
        counters=saved.counters,
        tracker=tracker,
        scores=on_host["scores"],
        env=env or None,
    )
    return state if saved.rows else without_replay(state)


def check_shapes(step: int, stored: dict[str, Any], wanted: Shapes) -> Shapes:
    """What to load: `wanted` with the shapes that are stored. Raises NoCheckpoint where they do not fit."""
    if missing := sorted(wanted.keys() - stored.keys()):
        raise NoCheckpoint(f"checkpoint at step {step}: lacks {missing[0]} and {len(missing) - 1} others")
    if extra := sorted(stored.keys() - wanted.keys()):
        raise NoCheckpoint(f"checkpoint at step {step}: holds {extra[0]}, which this run does not have")
    for name, like in wanted.items():
        shape, dtype = tuple(stored[name].shape), stored[name].dtype
        grows = name.startswith("ring.rows.") and shape[:1] <= like.shape[:1]
        if dtype != like.dtype or (shape[1:] if grows else shape) != like.shape[grows:]:
            raise NoCheckpoint(
                f"checkpoint at step {step}: {name} is {dtype}{list(shape)}, "
                f"this run needs {like.dtype}{list(like.shape)}"
            )
    return {name: x.update(shape=tuple(stored[name].shape)) for name, x in wanted.items()}


def grown(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The array with zeros behind its first axis, up to a shape."""
    if array.shape == shape:
        return array
    more = jnp.zeros((shape[0] - array.shape[0], *shape[1:]), array.dtype, device=array.sharding)
    return jnp.concatenate([array, more])


def without_replay(state: RunState) -> RunState:
    """With an empty ring: nothing is written yet, and updates begin anew."""
    tracker: Tracker = state.tracker
    zeros = np.zeros_like(tracker.written)
    counters = state.counters.replace(first_at=-1, first_updates=state.counters.updates)
    return state.replace(tracker=tracker.replace(written=zeros, held_written=zeros.copy()), counters=counters)


def fresh_state(programs: Programs, num_envs: int) -> RunState:
    """A new run's state; every array is where the programs expect it."""
    learner = programs.init()
    ring, held = programs.empty_rings()
    return RunState(
        learner=learner,
        ring=ring,
        held=held,
        policy=programs.policy(learner),
        carry=programs.carry(),
        counter=programs.put(np.int32(0)),
        totals=programs.empty(),
        scores=np.zeros(3),
        tracker=Tracker.zero(num_envs),
        env=None,
        counters=Counters(),
    )
