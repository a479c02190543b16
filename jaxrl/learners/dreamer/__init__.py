"""DreamerV3: a world model from replay, an actor and a critic from its imagination.

Source: Hafner et al. 2025, "Mastering diverse control tasks through world models", and the dreamerv3
program of May 2026 where the two differ.
"""

from jaxrl.learners.dreamer.learner import make

__all__ = ["make"]
