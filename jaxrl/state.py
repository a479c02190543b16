"""Everything that changes during a run, as one value. What is not in here does not exist after a resume."""

from typing import Any

import jax
import numpy as np
from flax import struct

from jaxrl.feeds.ring import Ring
from jaxrl.tracker import Tracker
from jaxrl.types import Carry, Evidence, Params


class Counters(struct.PyTreeNode, kw_only=True):
    """Where the run is; Python numbers."""

    env_steps: int = 0  # THE clock
    updates: int = 0
    episodes: int = 0  # finished training episodes
    first_at: int = -1  # agent_steps at which updates began (again, with an empty replay); -1 before
    first_updates: int = 0  # updates made before that
    settled: int = -1  # env_steps whose events (flush, evaluation) are done
    flushed: int = 0  # updates at the last flush
    wall_s: float = 0.0  # seconds of training, summed over resumes


class RunState(struct.PyTreeNode, kw_only=True):
    learner: Any
    ring: Ring
    held: Ring | None  # ring of held-out episodes
    policy: Params  # parameters that act; with overlap older than the learner's
    carry: Carry  # recurrent state of acting, leaves [N, ...]
    counter: jax.Array  # [] i32, vector steps so far; seeds acting
    totals: jax.Array  # packed metrics accumulated since the last flush (jaxrl.metrics)
    evidence: Evidence | None  # of this process, in no checkpoint; None where nothing is learned
    scores: np.ndarray  # f64 [5]: sums over the episodes that ended since the last flush (tracker.tallied)
    tracker: Tracker
    env: Any  # snapshot of the environments; None where they have none
    counters: Counters
