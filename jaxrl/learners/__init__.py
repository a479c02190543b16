"""Algorithms: bundles of pure functions (jaxrl.types.Learner), by name."""

from jaxrl.config import Config
from jaxrl.learners import dreamer, drq, uniform
from jaxrl.types import Learner, Spaces

LEARNERS = {"dreamer": dreamer.make, "drq": drq.make, "random": uniform.make}


def make(config: Config, spaces: Spaces) -> Learner:
    """The learner named by `config.agent`; the config's "auto" values must be resolved."""
    return LEARNERS[config.agent](config, spaces)
