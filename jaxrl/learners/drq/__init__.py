"""DrQ: Q-learning from augmented pixels, DrQ-v2 for continuous actions, DrQ(eps) for discrete ones."""

from jaxrl.config import Config
from jaxrl.learners.drq import continuous, discrete
from jaxrl.types import Continuous, Learner, Spaces

__all__ = ["make"]


def make(config: Config, spaces: Spaces) -> Learner:
    """The bundle for a resolved config and the spaces of a task; its batches are `Transitions`."""
    kind = continuous if isinstance(spaces.action, Continuous) else discrete
    return kind.make(config, spaces)
