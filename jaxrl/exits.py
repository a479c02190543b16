"""How a run can end: exit codes, and the errors that carry them."""

DONE = 0
BAD_CONFIG = 2  # ConfigError
NO_CHECKPOINT = 66
PEER_LOST = 69
DIVERGED = 70
IO = 74
LOCKED = 75
INTERRUPTED = 130  # 128 + the signal's number; terminated: 143; both after saving


class RunError(RuntimeError):
    """Ends a run with one line and an exit code."""

    code = 1


class NoCheckpoint(RunError):
    """A checkpoint is there but cannot be used."""

    code = NO_CHECKPOINT


class PeerLost(RunError):
    """Another process of the run was not found, or is gone."""

    code = PEER_LOST


class Diverged(RunError):
    """The learner's numbers are no longer finite."""

    code = DIVERGED


class WriteFailed(RunError):
    """Something that must be kept could not be written."""

    code = IO


class Locked(RunError):
    """Another process works in the run directory."""

    code = LOCKED
