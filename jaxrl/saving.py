"""RunState to checkpoint and back."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxrl import checkpoint, runtime
from jaxrl.checkpoint import Shapes, flatten, unflatten
from jaxrl.config import Config, ConfigError, show, to_dict
from jaxrl.envs.base import CheckedEnv
from jaxrl.exits import NoCheckpoint
from jaxrl.programs import Programs
from jaxrl.rundir import now
from jaxrl.state import Counters, RunState
from jaxrl.stores import Checkpoint
from jaxrl.tracker import TALLY, Tracker

ON_DEVICE = ("learner", "policy", "carry", "counter", "totals")
RINGS = ("ring", "held")
PARAMETERS = ("learner.params.", "learner.slow.")
Join = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Saved:
    """What must be known of a checkpoint before the state that it will fill is made."""

    checkpoint: Checkpoint
    counters: Counters
    rows: int  # per stream of its ring; 0 if replay was not stored
    held_rows: int  # the same of held-out episodes

    @property
    def step(self) -> int:
        """env_steps."""
        return self.checkpoint.step


def arrays(
    state: RunState, with_replay: bool, joined: Join = dict
) -> tuple[dict[str, jax.Array], dict[str, np.ndarray]]:
    """The whole state by name: on devices, on the host.

    Args:
      joined: makes arrays [n, ...] of this process's environments those of all.
    """
    names = ON_DEVICE + (RINGS if with_replay else ())
    on_device = flatten({name: getattr(state, name) for name in names})
    on_device = {k: x for k, x in on_device.items() if x.size}  # Orbax refuses empty arrays
    return on_device, host_leaves(state, joined)


def host_leaves(state: RunState, joined: Join = dict) -> dict[str, np.ndarray]:
    env = {f"env.{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state.env))}
    return flatten({"scores": state.scores}) | joined(flatten({"tracker": state.tracker}) | env)


def with_own(state: RunState, own: slice) -> RunState:
    """The state with what is on the host of these environments alone, those of this process."""
    env = None if state.env is None else [x[own] for x in state.env]
    return state.replace(tracker=jax.tree.map(lambda x: x[own], state.tracker), env=env)


def facts(
    config: Config, identity: dict[str, Any], state: RunState, named: tuple[dict[str, Any], dict[str, Any]]
) -> dict[str, Any]:
    """What a manifest says beside the digests.

    Args:
      identity: id and lineage of the run.
      named: the arrays that are saved.
    """
    leaves = {k: f"{x.dtype}{list(x.shape)}" for part in named for k, x in sorted(part.items())}
    return {
        **identity,
        "time": now(),
        "counters": dataclasses.asdict(state.counters),
        "agent_steps": state.counters.env_steps // config.env.action_repeat,
        "config": to_dict(config),
        "versions": runtime.versions(),
        "leaves": leaves,
    }


def known(found: Checkpoint) -> Saved:
    """What a checkpoint is, without loading anything large. Raises NoCheckpoint if it is not one of ours."""
    counters = found.manifest["counters"]
    names = {f.name for f in dataclasses.fields(Counters)}
    stored, _ = checkpoint.shapes(found.folder)
    rows = [stored[f"{x}.rows.reward"].shape[0] if f"{x}.rows.reward" in stored else 0 for x in RINGS]
    # A counter that is no longer kept is passed over, one that was not kept then has its default.
    return Saved(found, Counters(**{k: x for k, x in counters.items() if k in names}), *rows)


def restore(saved: Saved, fresh: RunState) -> RunState:
    """The state of a checkpoint; `fresh`, a new run's state, says what it must look like and is used up.

    A ring that was smaller (a shorter run, so that it has not wrapped) grows; one that was not stored
    starts empty, and updates begin again once it can be sampled. The environment's snapshot comes back as
    a list of arrays.

    Raises:
      NoCheckpoint: if the checkpoint is of another model, naming the first array that differs.
    """
    folder = saved.checkpoint.folder
    names = ON_DEVICE + (RINGS if saved.rows else ())
    blank = {name: getattr(fresh, name) for name in names}
    full = {k: x for k, x in flatten(blank).items() if x.size}
    wanted = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for k, x in full.items()}
    check_shapes(folder, checkpoint.shapes(folder)[0], wanted)
    for array in full.values():
        array.delete()  # there may not be room for two rings
    on_device, on_host = checkpoint.load(folder, wanted)
    on_host["scores"] = longer(on_host.get("scores", np.zeros(0)))
    leaves = flatten(blank) | on_device
    check_host(folder, on_host, host_leaves(fresh))
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


def check_shapes(folder: Any, stored: dict[str, Any], wanted: Shapes) -> None:
    """Raises NoCheckpoint where what is stored is not what a run of this kind has; a ring may grow."""
    stored = {k: x for k, x in stored.items() if k in wanted or k.partition(".")[0] not in RINGS}
    if missing := sorted(wanted.keys() - stored.keys()):
        raise NoCheckpoint(f"{folder}: lacks {missing[0]} and {len(missing) - 1} others that this run needs")
    if extra := sorted(stored.keys() - wanted.keys()):
        raise NoCheckpoint(f"{folder}: holds {extra[0]}, which this run does not have")
    for name, like in wanted.items():
        shape, dtype = tuple(stored[name].shape), stored[name].dtype
        grows = name.startswith("ring.rows.") and shape[:1] <= like.shape[:1]
        if dtype != like.dtype or (shape[1:] if grows else shape) != like.shape[grows:]:
            raise NoCheckpoint(
                f"{folder}: {name} is {dtype}{list(shape)}, this run needs {like.dtype}{list(like.shape)}"
            )


def take_parameters(found: Checkpoint, fresh: RunState, pattern: str) -> tuple[RunState, list[str]]:
    """`fresh` with the parameters of a checkpoint in whose name `pattern` is found; their names.

    The optimiser starts anew. Raises ConfigError as `chosen_parameters` does.
    """
    chosen = chosen_parameters(found, fresh.learner, pattern)
    asked = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for k, x in chosen.items()}
    on_device, _ = checkpoint.load(found.folder, asked, part=True)
    learner = unflatten({"learner": fresh.learner}, flatten({"learner": fresh.learner}) | on_device)
    return fresh.replace(**learner), list(chosen)


def chosen_parameters(found: Checkpoint, learner: Any, pattern: str) -> dict[str, Any]:
    """The parameters of `learner`, arrays or their shapes, that are to come from a checkpoint, by name.

    A slow critic goes with the critic whose average it is.

    Raises:
      ConfigError: if the pattern fits none, or one has another shape here, naming it.
    """

    def fits(name: str) -> bool:
        name = name.removeprefix("learner.")
        known = (re.sub(r"^slow\.", of, name) for of in ("slow.", "params.val.", "params."))
        return any(re.search(pattern, x) for x in known)

    stored, _ = checkpoint.shapes(found.folder)
    here, there = parameters({"learner": learner}), [k for k in stored if k.startswith(PARAMETERS)]
    names = [name for name in there if fits(name)]
    if not names:
        example = f"; one of them is {there[0].removeprefix('learner.')}" if there else ", it has none"
        raise ConfigError(f"init_filter={show(pattern)}: is found in no parameter of {found.folder}{example}")
    for name in names:
        told = f"{stored[name].dtype}{list(stored[name].shape)}"
        mine = f"{here[name].dtype}{list(here[name].shape)}" if name in here else "missing"
        if told != mine:
            raise ConfigError(
                f"init_from={found.folder}: {name.removeprefix('learner.')} is {told} there and {mine} here; "
                "leave it out by --init_filter, or choose the same --model.size"
            )
    return {name: here[name] for name in names}


def check_host(folder: Any, stored: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Raises NoCheckpoint where what is stored of the host is not what a run of this kind has.

    The environments' own leaves are judged by who restores them.
    """
    there = {k: f"{x.dtype}{list(x.shape)}" for k, x in stored.items() if not k.startswith("env.")}
    here = {k: f"{x.dtype}{list(x.shape)}" for k, x in wanted.items() if not k.startswith("env.")}
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            found, needed = there.get(name, "missing"), here.get(name, "nothing")
            raise NoCheckpoint(f"{folder}: {name} is {found}, this run needs {needed}")


def parameters(tree: Any) -> dict[str, Any]:
    """Arrays of {"learner": ...} that are parameters, those of a slow critic too, by name."""
    return {k: x for k, x in flatten(tree).items() if k.startswith(PARAMETERS) and x.size}


def longer(scores: np.ndarray) -> np.ndarray:
    """Sums of episodes as they are kept now: an earlier version has not counted successes."""
    return np.pad(scores, (0, max(0, TALLY - scores.size)))


def fitting(env: CheckedEnv, state: RunState, note: Callable[[str], None]) -> RunState:
    """The state, without the environments' own if an earlier version knew them otherwise; a line says so."""

    def shapes(tree: Any) -> list[tuple[tuple[int, ...], np.dtype]]:
        return [(x.shape, x.dtype) for x in map(np.asarray, jax.tree.leaves(tree))]

    if state.env is None:
        return state
    env.reset()  # before which there is nothing to compare with
    if shapes(env.snapshot()) == shapes(state.env):
        return state
    note("the environments' state was saved by another version: their episodes begin anew")
    return state.replace(env=None)


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
        evidence=programs.no_evidence(),
        scores=np.zeros(TALLY),
        tracker=Tracker.zero(num_envs),
        env=None,
        counters=Counters(),
    )
