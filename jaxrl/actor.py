"""A trained policy alone: its parameters and the programs of acting, without replay, optimiser and losses."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import checkpoint, keys, learners
from jaxrl.config import Config
from jaxrl.exits import NoCheckpoint
from jaxrl.parts import shaped, step_shapes
from jaxrl.runtime import Machine
from jaxrl.sources import Source, act_program, compile_all
from jaxrl.stores import Checkpoint
from jaxrl.types import ActOutput, Carry, Key, Params, Spaces, Step


class Actor:
    """The policy of a checkpoint, compiled for N environments (an evaluation.Actor).

    Args:
      config: of the run, without "auto".
      spaces: of its task.
      n: environments.
    """

    def __init__(self, config: Config, spaces: Spaces, n: int, machine: Machine):
        learner = learners.make(config, spaces)
        self._device = machine.learner
        key = shaped(jax.eval_shape(lambda: jax.random.key(0)), self._device)
        state = jax.eval_shape(learner.init, key)
        self._policy = shaped(jax.eval_shape(learner.policy_params, state), self._device)
        carry = shaped(jax.eval_shape(lambda: learner.initial_carry(n)), self._device)
        number = shaped(jax.ShapeDtypeStruct((), jnp.int32), self._device)
        step = shaped(step_shapes(spaces, n), self._device)
        act = act_program(learner, config.eval.mode, keys.EVAL)
        sources = {
            "eval_act": Source(act, (self._policy, carry, number, step, key), (1, 2)),
            "eval_carry": Source(lambda: learner.initial_carry(n), ()),
        }
        self._compiled = compile_all(sources, machine.platform)

    def load(self, found: Checkpoint) -> Params:
        """The parameters that acted in the run when the checkpoint was made; nothing else is read.

        Raises:
          NoCheckpoint: they are not those of this model, or cannot be read.
        """
        blank = {"policy": self._policy}
        wanted = {name: x for name, x in checkpoint.flatten(blank).items() if x.size}
        stored = {k: x for k, x in checkpoint.shapes(found.folder)[0].items() if k.startswith("policy.")}
        for name in sorted(stored.keys() | wanted.keys()):
            there, here = (told(x.get(name)) for x in (stored, wanted))
            if there != here:
                raise NoCheckpoint(f"{found.folder}: {name} is {there}, the config's model needs {here}")
        loaded, _ = checkpoint.load(found.folder, wanted, part=True)
        empty = {k: jnp.zeros(x.shape, x.dtype) for k, x in checkpoint.flatten(blank).items() if not x.size}
        return checkpoint.unflatten(blank, loaded | empty)["policy"]

    def put(self, tree: Any) -> Any:
        """Explicit transfer to the device."""
        return jax.device_put(tree, self._device)

    def eval_carry(self) -> Carry:
        """Recurrent state before the first row."""
        return self._compiled["eval_carry"].call()

    def eval_act(
        self, policy: Params, carry: Carry, counter: jax.Array, step: Step, key: Key
    ) -> tuple[ActOutput, jax.Array]:
        """Actions of a row of all environments; carry and counter are donated, the latter comes back + 1."""
        return self._compiled["eval_act"].call(policy, carry, counter, step, key)


def told(x: Any) -> str:
    return "missing" if x is None else f"{x.dtype}{list(x.shape)}"
