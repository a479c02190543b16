"""What a run will do, worked out before anything is compiled: units, counts, memory."""

import dataclasses

from jaxrl.config import Config
from jaxrl.feeds.ring import Storage
from jaxrl.schedule import Clock, updates_due

PERIODS = ("log_every", "eval_every", "save_every", "video_every", "steps")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Counts of a whole run."""

    clock: Clock
    first_update: int  # agent_steps
    updates: int
    evaluations: int

    @classmethod
    def of(cls, config: Config) -> "Plan":
        clock = clock_of(config)
        window = window_of(config)
        n = config.env.num_envs
        # Streams fill together: after `window` rows each, rounded up to a whole vector step.
        first = -(-max(config.warmup, window * n) // n) * n
        agent_steps = clock.steps // config.env.action_repeat
        learns = config.agent != "random" and config.train_ratio > 0 and agent_steps >= first
        rows = rows_of_update(config)
        updates = (
            updates_due(agent_steps, first, 0, train_ratio=config.train_ratio, rows=rows) if learns else 0
        )
        times = -(-clock.steps // clock.eval_every) if clock.eval_every else 0
        return cls(clock, first, updates, times + int(config.eval_initial and times > 0))


def clock_of(config: Config) -> Clock:
    return Clock.of(
        config.env.num_envs * config.env.action_repeat,
        steps=config.steps,
        log_every=config.log_every,
        eval_every=config.eval_every,
        save_every=config.save_every,
        periodic_every=config.checkpoint.periodic_every,
        video_every=config.video_every,
    )


def window_of(config: Config) -> int:
    """Rows of one environment that an update needs at least."""
    if config.agent == "drq":
        return config.drq.nstep + 1
    return config.batch_length + int(config.replay.context)


def rows_of_update(config: Config) -> int:
    """Replayed agent_steps of an update: rows of its sequences, or transitions."""
    return config.batch_size * (1 if config.agent == "drq" else config.batch_length)


def ring_rows(config: Config) -> int:
    """Rows per stream: the capacity, but no more than the run can fill and no less than a sequence."""
    clock = clock_of(config)
    fill = clock.steps // clock.stride
    return max(window_of(config), min(config.replay.capacity // config.env.num_envs, fill))


def rounding_notes(config: Config) -> list[str]:
    """One line for each period that was rounded up to whole vector steps."""
    clock = clock_of(config)
    return [
        f"{name}={getattr(config, name)} is rounded up to {getattr(clock, name)}: one step of "
        f"{counted(config.env.num_envs, 'environment')} is {clock.stride} env_steps"
        for name in PERIODS
        if getattr(clock, name) != getattr(config, name)
    ]


def banner(config: Config, plan: Plan, replay: Storage, facts: dict[str, str]) -> list[str]:
    """Lines for the start of a run."""
    repeat, clock = config.env.action_repeat, plan.clock
    rows = rows_of_update(config)
    lines = [f"{name:11}{text}" for name, text in facts.items()]
    envs = counted(config.env.num_envs, "environment")
    lines.append(f"{'task':11}{config.task}, {envs}, action repeat {repeat}, seed {config.seed}")
    lines.append(f"{'length':11}{clock.steps:,} env_steps = {clock.steps // repeat:,} agent_steps")
    if config.agent != "random":
        if plan.updates:
            sequences = f"{config.batch_size}x{config.batch_length} rows"
            batch = f"{rows} transitions" if config.agent == "drq" else sequences
            each = rows / config.train_ratio * repeat
            pace = f"1 per {each:g} env_steps" if each >= 1 else f"{1 / each:g} per env_step"
            lines.append(
                f"{'learning':11}{plan.updates:,} updates of {batch}: "
                f"{pace}, the first at {plan.first_update * repeat:,} env_steps"
            )
        elif config.train_ratio:
            lines.append(
                f"{'learning':11}NO updates: the first needs {plan.first_update * repeat:,} env_steps "
                f"({'--warmup' if config.agent == 'drq' else '--batch_length, --warmup'}), the run is shorter"
            )
        else:
            lines.append(f"{'learning':11}NO updates: train_ratio=0")
        lines.append(
            f"{'replay':11}{replay.rows * replay.streams:,} rows x {replay.row_bytes:,} B = "
            f"{replay.nbytes / 1e6:,.1f} MB on the {config.replay.placement}"
        )
    per = counted(config.eval_eps, "episode")
    lines.append(
        f"{'evaluation':11}"
        + (
            f"{plan.evaluations}, each of {per}, every {clock.eval_every:,} env_steps"
            if plan.evaluations
            else "never"
        )
    )
    return lines + rounding_notes(config)


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)
