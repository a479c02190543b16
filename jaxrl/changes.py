"""What a command may change of a run that it goes on with: the saved config wins.

Only settings that the command names can differ from it. Each setting is in one of three classes:

    free      moves no result, or only extends it
    warned    what is learned from here on is another thing, but all that was saved still means the same
    refused   makes it another run; --allow_config_change tries it all the same
"""

import dataclasses
import pathlib
from collections.abc import Mapping

from jaxrl.config import Config, ConfigError, Value, difference, leaves, replace, show

CLASSES = {  # of settings by name, or by section where the name itself is in none
    "free": (
        *("steps", "log_every", "eval_every", "eval_eps", "eval_initial", "save_every", "save_seconds"),
        *("video_every", "live", "profile", "logdir", "device", "allow_config_change", "env.threads"),
        *("seeds", "tasks"),  # a member's config has its own seed and task
        *("benchmark_at_end", "replay.budget_gb", "replay.placement", "replay.save_episodes"),
        *("eval.", "terminal.", "tensorboard.", "plot.", "wandb.", "checkpoint.", "runtime.", "debug."),
        "distributed.",
    ),
    "warned": (
        *("batch_size", "train_ratio", "warmup", "overlap", "runtime.matmul_precision"),
        *("loss.", "opt.", "drq."),
    ),
    "refused": (
        *("agent", "task", "seed", "batch_length"),  # the online queue counts in sequences of that length
        *("resume_from", "init_from", "init_filter"),
        *("env.", "model.", "replay."),
    ),
}
BIRTH = ("resume_from", "init_from", "init_filter")  # how a run began cannot be changed, whatever is allowed
# These hold for one start of the process; what is saved of them is of no use to the next.
PLACE = tuple(f"distributed.{x}" for x in ("coordinator", "processes", "process", "timeout_s", "heartbeat_s"))
OF_COMMAND = ("logdir", "allow_config_change", "profile", "debug.fault", "seeds", "tasks", *PLACE)
CONSEQUENCES = {"free": "", "warned": ", from here on", "refused": ", which makes it another run"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """What a command's flags are put on: a preset, or the saved config of the run that it goes on with."""

    config: Config
    given: Mapping[str, Value]  # settings to put on it
    preset: str  # its name
    path: pathlib.Path | None = None  # of the run or checkpoint whose config it is; None for a preset
    saved: Mapping[str, Value] | None = None  # config.json of the run that is continued; None for a new run
    notes: tuple[str, ...] = ()  # what a human should know about the saved config


def class_of(name: str) -> str:
    """The class of a setting: "free", "warned" or "refused"."""
    for entry in (name, name.partition(".")[0] + "."):
        for kind, entries in CLASSES.items():
            if entry in entries:
                return kind
    raise KeyError(f"{name} is in none of the classes of changes.py")


def changed(origin: Origin, config: Config) -> dict[str, tuple[Value, Value]]:
    """{name: (saved, asked for)} where a command differs from the run that it goes on with."""
    found = difference(origin.config, config) if origin.path else {}
    return {name: values for name, values in found.items() if name not in OF_COMMAND}


def lines(origin: Origin, config: Config) -> list[str]:
    """One line for each setting that differs.

    Raises:
      ConfigError: if one of them makes it another run and that is not allowed.
    """
    found = changed(origin, config)
    forbidden = [
        name
        for name in found
        if name in BIRTH or (class_of(name) == "refused" and not config.allow_config_change)
    ]
    if forbidden:
        diff = ", ".join(f"{name}: {arrow(found[name])}" for name in forbidden)
        others = [] if set(forbidden) & set(BIRTH) else ["try --allow_config_change"]
        remedy = ", or ".join(["leave it out" if len(forbidden) == 1 else "leave them out", *others])
        raise ConfigError(f"{origin.path}: holds another run ({diff}); choose another logdir, {remedy}")
    shown = []
    for kind, consequence in CONSEQUENCES.items():
        names = [name for name in found if class_of(name) == kind]
        shown += [f"changed ({kind}): {name}: {arrow(found[name])}{consequence}" for name in names]
    return shown


def arrow(values: tuple[Value, Value]) -> str:
    return f"{show(values[0])} -> {show(values[1])}"


def saved_config(values: Mapping[str, Value]) -> tuple[Config, list[str]]:
    """The config that an earlier start has saved, and lines about what this version knows otherwise.

    Raises:
      ConfigError: if a value breaks a rule.
    """
    known = leaves(Config())
    gone = [ascii(name)[1:-1][:80] for name in values if name not in known]
    new = [f"{n}={show(x.default)}" for n, x in known.items() if n not in values and n not in OF_COMMAND]
    kept = {name: value for name, value in values.items() if name in known and name not in OF_COMMAND}
    notes = []
    if gone:
        notes.append(f"saved settings that no longer exist are left out: {some(gone)}")
    if new:
        notes.append(f"settings that the saved config does not have are at their defaults: {some(new)}")
    return replace(Config(), kept), notes


def some(names: list[str], most: int = 10) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
