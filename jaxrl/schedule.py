"""When things happen: pure functions of integers. No state, hence nothing to lose at a resume.

The clock is `env_steps`. Events lie on multiples of their interval; 0 means never. One vector step
advances the clock by `stride = num_envs * action_repeat`; intervals are rounded up to multiples of
it once, at start.
"""

import dataclasses


def round_up(interval: int, stride: int) -> int:
    """Smallest multiple of `stride` that is >= interval; 0 stays 0.

    Raises:
      ValueError: for a negative interval.
    """
    if interval < 0:
        raise ValueError(f"interval {interval} must be >= 0 (0 = never)")
    return -(-interval // stride) * stride


def due(now: int, every: int) -> bool:
    """True at the multiples of `every` above 0; `every=0` means never."""
    return every > 0 and now > 0 and now % every == 0


def next_event(now: int, steps: int, everies: tuple[int, ...]) -> int:
    """First env_step after `now` at which any of the intervals falls due, or the end of the run."""
    return min([steps, *((now // every + 1) * every for every in everies if every)])


def updates_due(agent_steps: int, first_at: int, updates_done: int, *, train_ratio: float, rows: int) -> int:
    """Updates owed: one at the first opportunity, then `train_ratio / rows` per agent step; never drifts.

    Args:
      agent_steps: decisions so far.
      first_at: agent_steps at which updates began; negative while they have not.
      updates_done: updates so far.
      train_ratio: replayed agent steps per collected one.
      rows: replayed agent steps per update (batch_size * batch_length).
    """
    if first_at < 0 or train_ratio == 0:
        return 0
    return max(0, 1 + int((agent_steps - first_at) * train_ratio / rows) - updates_done)


@dataclasses.dataclass(frozen=True)
class Clock:
    """Every interval of a run in env_steps, all multiples of `stride`."""

    stride: int  # env_steps per vector step
    steps: int
    log_every: int
    eval_every: int
    save_every: int
    periodic_every: int = 0
    video_every: int = 0

    @classmethod
    def of(
        cls,
        stride: int,
        *,
        steps: int,
        log_every: int,
        eval_every: int,
        save_every: int,
        periodic_every: int = 0,
        video_every: int = 0,
    ) -> "Clock":
        periods = (steps, log_every, eval_every, save_every, periodic_every, video_every)
        return cls(stride, *(round_up(x, stride) for x in periods))

    def next_stop(self, now: int) -> int:
        periods = (self.log_every, self.eval_every, self.save_every, self.periodic_every, self.video_every)
        return next_event(now, self.steps, periods)

    def logs(self, now: int) -> bool:
        """Rows are written at 0, at multiples of log_every and at the last step; 0 = never."""
        return self.log_every > 0 and (now in (0, self.steps) or due(now, self.log_every))

    def evaluates(self, now: int, initial: bool) -> bool:
        """Multiples of eval_every, the last step, and 0 only if `initial`."""
        if self.eval_every == 0:
            return False
        return initial if now == 0 else now == self.steps or due(now, self.eval_every)

    def films(self, now: int) -> bool:
        """A video is due: at multiples of video_every, not at 0."""
        return due(now, self.video_every)

    def lasting(self, now: int) -> bool:
        """A checkpoint that stays is due: at multiples of periodic_every, not at 0."""
        return now > 0 and due(now, self.periodic_every)

    def saves(self, now: int) -> bool:
        return due(now, self.save_every) or now == self.steps
