"""The random agent: uniform actions, nothing learned. The baseline of every score table."""

import jax
import jax.numpy as jnp

from jaxrl.config import Config
from jaxrl.types import ActOutput, Carry, Discrete, Key, Learner, Params, Spaces, Step


def make(config: Config, spaces: Spaces) -> Learner:
    """The bundle; nothing of the config matters."""
    del config

    def act(params: Params, carry: Carry, step: Step, key: Key, mode: str) -> ActOutput:
        del params, mode
        n = step.reward.shape[0]
        if isinstance(spaces.action, Discrete):
            action = jax.random.randint(key, (n,), 0, spaces.action.n, jnp.int32)
        else:
            action = jax.random.uniform(key, (n, spaces.action.size), jnp.float32, -1, 1)
        return ActOutput(action, carry, ())

    return Learner(
        init=lambda _: {},
        initial_carry=lambda _: (),
        act=act,
        policy_params=lambda _: {},
        latent_zeros=lambda: (),
    )
