"""Random keys: one per use, from the run's seed, a purpose and a saved counter; a resume changes none."""

import jax
import numpy as np

from jaxrl.types import Array, Key

INIT, ACT, LEARN, EVAL, HOLDOUT, TRIAL, REPORT = range(7)


def key_for(run_key: Key, purpose: int, counter: Array | int) -> Key:
    """Key for one use. Pure; called inside jit."""
    return jax.random.fold_in(jax.random.fold_in(run_key, purpose), counter)


def env_seed(seed: int, purpose: int, counter: int) -> int:
    """Seed in [0, 2^31) for a host environment of the run."""
    return int(np.random.SeedSequence([seed, purpose, counter]).generate_state(1)[0] >> 1)
