"""A trained policy alone: its checkpoint, its parameters, the programs of acting; no replay, no optimiser."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import checkpoint, envs, keys, learners, manifest, rundir
from jaxrl.config import Config, ConfigError
from jaxrl.exits import NoCheckpoint
from jaxrl.parts import shaped, step_shapes
from jaxrl.runtime import Machine
from jaxrl.sources import Source, act_program, compile_all
from jaxrl.stores import BEST, STORES, Checkpoint, find
from jaxrl.stores.shelf import Check, folders, intact, is_name, is_store, numbers
from jaxrl.types import (
    ActOutput,
    ArraySpec,
    Carry,
    Continuous,
    Discrete,
    Key,
    Learner,
    Params,
    Spaces,
    Step,
)

POLICY = "policy."  # how the names of a policy's arrays begin
NETWORKS = (POLICY, "learner.params.")  # the same of all parameters


class Actor:
    """The policy of a checkpoint, compiled for N environments (an evaluation.Actor).

    Args:
      config: of the run, without "auto".
      spaces: of its task.
      n: environments.
      donate: carry and counter are used up by a call; else they stay what they are.
    """

    def __init__(self, config: Config, spaces: Spaces, n: int, machine: Machine, *, donate: bool = True):
        learner = learners.make(config, spaces)
        self._device = machine.learner
        self._policy = shaped(jax.eval_shape(learner.policy_params, state_of(learner)), self._device)
        key = shaped(jax.eval_shape(lambda: jax.random.key(0)), self._device)
        carry = shaped(jax.eval_shape(lambda: learner.initial_carry(n)), self._device)
        number = shaped(jax.ShapeDtypeStruct((), jnp.int32), self._device)
        step = shaped(step_shapes(spaces, n), self._device)
        act, used = act_program(learner, config.eval.mode, keys.EVAL), (1, 2) if donate else ()
        sources = {
            "eval_act": Source(act, (self._policy, carry, number, step, key), used),
            "eval_carry": Source(lambda: learner.initial_carry(n), ()),
        }
        self._compiled = compile_all(sources, machine.platform)

    def load(self, found: Checkpoint) -> Params:
        """The parameters that acted in the run when the checkpoint was made; see `policy_of`."""
        return policy_of(found, self._policy)

    def put(self, tree: Any) -> Any:
        """Explicit transfer to the device."""
        return jax.device_put(tree, self._device)

    def put_rows(self, step: Step) -> Step:
        """The same of a row of each environment."""
        return self.put(step)

    def eval_carry(self) -> Carry:
        """Recurrent state before the first row."""
        return self._compiled["eval_carry"].call()

    def eval_act(
        self, policy: Params, carry: Carry, counter: jax.Array, step: Step, key: Key
    ) -> tuple[ActOutput, jax.Array]:
        """Actions of a row of all environments; the counter comes back + 1."""
        return self._compiled["eval_act"].call(policy, carry, counter, step, key)


def state_of(learner: Learner) -> Any:
    """Shapes of a learner's state."""
    return jax.eval_shape(learner.init, jax.eval_shape(lambda: jax.random.key(0)))


def policy_of(found: Checkpoint, like: Params) -> Params:
    """The parameters that acted in the run when the checkpoint was made; nothing else is read.

    Args:
      like: their shapes, dtypes and shardings.

    Raises:
      NoCheckpoint: they are not those of this model, or cannot be read.
    """
    blank = {"policy": like}
    return checkpoint.unflatten(blank, taken(found, checkpoint.flatten(blank), POLICY))["policy"]


def imagining_of(found: Checkpoint, learner: Learner, device: Any) -> Params:
    """What `learner.imagine` needs beside the policy's parameters; see `policy_of`."""
    assert learner.imagine_params is not None
    state = state_of(learner)
    blank = {"learner": state}
    names = checkpoint.unflatten(blank, {name: name for name in checkpoint.flatten(blank)})["learner"]
    like = shaped(learner.imagine_params(state), device)
    chosen = jax.tree.leaves(learner.imagine_params(names))  # it selects, so it can be asked for the names
    arrays = taken(found, dict(zip(chosen, jax.tree.leaves(like), strict=True)))
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in chosen])


def taken(found: Checkpoint, like: dict[str, Any], begins: str = "") -> dict[str, jax.Array]:
    """Arrays of a checkpoint by name, and of those that begin so all. Raises NoCheckpoint."""
    wanted = {name: x for name, x in like.items() if x.size}
    stored = checkpoint.shapes(found.folder)[0]
    stored = {k: x for k, x in stored.items() if k in wanted or (begins and k.startswith(begins))}
    for name in sorted(stored.keys() | wanted.keys()):
        there, here = (told(x.get(name)) for x in (stored, wanted))
        if there != here:
            raise NoCheckpoint(f"{found.folder}: {name} is {there}, the config's model needs {here}")
    loaded = checkpoint.load(found.folder, wanted, part=True)[0] if wanted else {}
    return loaded | {k: jnp.zeros(x.shape, x.dtype) for k, x in like.items() if not x.size}


def told(x: Any) -> str:
    return "missing" if x is None else f"{x.dtype}{list(x.shape)}"


def readable(folder: pathlib.Path) -> Checkpoint:
    """The checkpoint of a folder as far as its parameters go: files without any of them are not compared.

    A replay of hundreds of gigabytes would else be read for a policy of megabytes.

    Raises:
      manifest.Damaged, manifest.TooNew.
    """
    manifest.read(folder)
    try:
        rest = checkpoint.unneeded(folder, NETWORKS)
    except Exception:  # whatever is wrong with the index, the digests will tell
        rest = set()
    return intact(folder, rest)


def chosen(run: str, which: str, check: Check = intact, *, option: str = "which") -> Checkpoint:
    """The checkpoint that is asked for.

    Args:
      run: a run directory, one of its stores or a checkpoint.
      which: "best", "latest" or a step; "" is the best, if there is one, else the latest.
      check: how closely it is looked at.
      option: what `which` is called where it was given, for errors.

    Raises:
      ConfigError: there is no such folder, or `which` makes no sense there.
      NoCheckpoint: nothing intact is in it.
    """
    path = rundir.located("RUN", run)
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder; {rundir.NAMES}")
    if is_store(path) or (is_store(path.parent) and is_name(path.name)):
        if which:
            raise ConfigError(f"{option}={which[:80]}: {path} says which already; leave it out")
        return find(path, check)
    best = path / "checkpoints" / BEST
    if which == BEST:
        return find(best, check)
    if not which and any(folders(best)):
        try:
            return find(best, check)
        except NoCheckpoint as error:
            found = find(path, check)
            why = f"{str(error).partition(';')[0]}; using {found.store}/{found.folder.name} instead"
            return dataclasses.replace(found, remarks=(why, *found.remarks))
    if which in ("", "latest"):
        return find(path, check)
    if not re.fullmatch(r"[0-9]{1,15}", which):
        raise ConfigError(f"{option}={which[:80]}: must be best, latest or a step; for example {option}=best")
    there = sorted((x for store in STORES for x in folders(path / "checkpoints" / store)), key=numbers)
    of_step = [x for x in there if numbers(x)[0] == int(which)]
    if not of_step:
        steps = sorted({numbers(x)[0] for x in there}, key=lambda x: abs(x - int(which)))[:10]
        near = f"the nearest are at {', '.join(map(str, sorted(steps)))}" if steps else "there is none at all"
        raise NoCheckpoint(f"{option}={which}: {path} has no checkpoint of that step; {near}")
    return find(of_step[-1], check)


def plain(spaces: Spaces) -> dict[str, Any]:
    """Spaces for a manifest."""
    action = spaces.action
    return {
        "obs": {name: [str(spec.dtype), list(spec.shape)] for name, spec in spaces.obs.items()},
        "action": {"discrete": action.n, **({} if action.own is None else {"own": action.own})}
        if isinstance(action, Discrete)
        else {"continuous": action.size},
    }


def spaces_of(facts: Mapping[str, Any], config: Config) -> Spaces:
    """The spaces of a checkpoint's task, of which one environment is made if its manifest does not say.

    Raises:
      ConfigError: it does not say, as those of earlier versions, and the task cannot be made here.
    """
    if said := facts.get("spaces"):
        obs = {name: ArraySpec(tuple(shape), np.dtype(dtype)) for name, (dtype, shape) in said["obs"].items()}
        action = dict(said["action"])
        if "discrete" in action:
            return Spaces(obs=obs, action=Discrete(action["discrete"], action.get("own")))
        return Spaces(obs=obs, action=Continuous(action["continuous"]))
    try:
        if single := envs.device_env(config.task, envs.judged(config.env)):
            return single.spaces
        env = envs.make(config.task, envs.judged(config.env), num_envs=1, seed=0)
    except ConfigError as error:
        raise ConfigError(f"its checkpoint does not say what it observes, and {error}") from error
    env.close()
    return env.spaces
