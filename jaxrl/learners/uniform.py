"""The random agent: uniform actions, nothing learned. The baseline of every score table."""

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.config import Config
from jaxrl.types import ActOutput, Array, Carry, Discrete, Key, Learner, Params, Spaces, Step


@struct.dataclass(kw_only=True)
class Uniform:
    """Nothing but what it may do."""

    allowed: Array | None = None  # [A] bool, see Spaces


def make(config: Config, spaces: Spaces) -> Learner:
    """The bundle; nothing of the config matters."""
    del config

    def act(params: Params, carry: Carry, step: Step, key: Key, mode: str) -> ActOutput:
        del mode
        n = step.reward.shape[0]
        if isinstance(spaces.action, Discrete):
            legal = params["allowed"].sum() if params else spaces.action.n
            action = jax.random.randint(key, (n,), 0, legal, jnp.int32)
        else:
            action = jax.random.uniform(key, (n, spaces.action.size), jnp.float32, -1, 1)
        return ActOutput(action, carry, ())

    known = {} if spaces.allowed is None else {"allowed": spaces.allowed}
    return Learner(
        init=lambda _: Uniform(**known),
        initial_carry=lambda _: (),
        act=act,
        policy_params=lambda state: {} if state.allowed is None else {"allowed": state.allowed},
        latent_zeros=lambda: (),
    )
