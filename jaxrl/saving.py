"""RunState to checkpoint and back."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxrl.checkpoint import Store, flatten, unflatten
from jaxrl.exits import NoCheckpoint
from jaxrl.programs import Programs
from jaxrl.state import Counters, RunState
from jaxrl.tracker import Tracker

ON_DEVICE = ("learner", "policy", "carry", "counter", "totals")
RINGS = ("ring", "held")


def save(store: Store, state: RunState, with_replay: bool) -> bool:
    """Begins to write the whole state; False if this step is on disk already."""
    names = ON_DEVICE + (RINGS if with_replay else ())
    on_device = flatten({name: getattr(state, name) for name in names})
    return store.save(state.counters.env_steps, on_device, host_leaves(state))


def host_leaves(state: RunState) -> dict[str, np.ndarray]:
    counters = {k: np.asarray(v) for k, v in dataclasses.asdict(state.counters).items()}
    env = {f"env.{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state.env))}
    return flatten({"counters": counters, "tracker": state.tracker, "scores": state.scores}) | env


def saved_rows(store: Store, step: int) -> int:
    """Rows per stream of the ring in a checkpoint; 0 if replay was not stored."""
    shapes = store.shapes(step)[0]
    return shapes["ring.rows.reward"].shape[0] if "ring.rows.reward" in shapes else 0


def load_counters(store: Store, step: int) -> Counters:
    """Where the run was, without loading anything large."""
    _, on_host = store.load(step, None)
    return Counters(**{f.name: on_host[f"counters.{f.name}"].item() for f in dataclasses.fields(Counters)})


def restore(store: Store, step: int, fresh: RunState) -> RunState:
    """The state of a checkpoint; `fresh`, a new run's state, says what it must look like.

    A ring that was smaller (a shorter run) grows; one that was not stored starts empty, and updates begin
    again once it can be sampled. The environment's snapshot comes back as a list of arrays.

    Raises:
      NoCheckpoint: if the checkpoint is damaged or of another model, naming the first array that differs.
    """
    wanted = flatten({name: getattr(fresh, name) for name in ON_DEVICE + RINGS})
    stored, _ = store.shapes(step)
    rings = any(name.startswith("ring.") for name in stored)
    if not rings:
        wanted = {k: v for k, v in wanted.items() if not k.startswith(("ring.", "held."))}
    check_names(step, stored, wanted)
    asked = {}
    for name, array in wanted.items():
        shape, rows = stored[name].shape, stored[name].shape[:1]
        grows = name.startswith(("ring.rows.", "held.rows.")) and rows <= array.shape[:1]
        if stored[name].dtype != array.dtype or (shape[1:] if grows else shape) != array.shape[grows:]:
            raise NoCheckpoint(
                f"checkpoint at step {step}: {name} is {stored[name].dtype}{list(shape)}, "
                f"this run needs {array.dtype}{list(array.shape)}"
            )
        asked[name] = jax.ShapeDtypeStruct(shape, array.dtype, sharding=array.sharding)
    on_device, on_host = store.load(step, asked)
    loaded = {name: grown(on_device[name], wanted[name]) for name in wanted}
    kept = flatten({name: getattr(fresh, name) for name in ON_DEVICE + RINGS}) | loaded
    tree = unflatten({name: getattr(fresh, name) for name in ON_DEVICE + RINGS}, kept)
    tracker = unflatten(fresh.tracker, {k: on_host[f"tracker.{k}"] for k in flatten(fresh.tracker)})
    env = [on_host[f"env.{i}"] for i in range(sum(name.startswith("env.") for name in on_host))]
    state = fresh.replace(
        **tree,
        counters=load_counters(store, step),
        tracker=tracker,
        scores=on_host["scores"],
        env=env or None,
    )
    return state if rings else without_replay(state)


def check_names(step: int, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    if missing := sorted(wanted.keys() - stored.keys()):
        raise NoCheckpoint(f"checkpoint at step {step}: lacks {missing[0]} and {len(missing) - 1} others")
    if extra := sorted(stored.keys() - wanted.keys()):
        raise NoCheckpoint(f"checkpoint at step {step}: holds {extra[0]}, which this run does not have")


def grown(array: jax.Array, like: jax.Array) -> jax.Array:
    """The array with zeros behind its first axis, as long as `like`."""
    if array.shape == like.shape:
        return array
    return jax.device_put(like, like.sharding).at[: len(array)].set(array)


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
