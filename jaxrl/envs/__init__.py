"""Environments by task name. `make` is the door; envpool is imported only where a task needs it."""

import difflib

from jaxrl.config import ConfigError, EnvConfig
from jaxrl.envs.base import CheckedEnv, DeviceEnv, Outcome, State, check_action
from jaxrl.envs.games import ATARI100K, installed_games
from jaxrl.envs.hosted import Hosted
from jaxrl.envs.toys import Clock, Reach

__all__ = [
    "ATARI100K",
    "CheckedEnv",
    "Clock",
    "DeviceEnv",
    "Hosted",
    "Outcome",
    "Reach",
    "State",
    "check_action",
    "list_tasks",
    "make",
]

TOYS = ("toy_catch", "toy_clock", "toy_reach")
HOW_TO_LIST = "all: python -c 'import jaxrl.envs as e; print(*e.list_tasks())'"
ATARI_ONLY = ("sticky", "full_actions", "fire_reset", "lives", "clip_reward", "stack")


def list_tasks() -> tuple[str, ...]:
    """Names of every task that `make` knows here: the toys and the Atari games whose ROM is installed."""
    return (*TOYS, *(f"atari_{game}" for game in installed_games()))


def make(task: str, env: EnvConfig, *, num_envs: int, seed: int) -> CheckedEnv:
    """N environments of a task, a HostEnv.

    Args:
      task: "suite_task", one of `list_tasks()`.
      env: everything but its `num_envs`.
      num_envs: N; evaluation has another one than training.
      seed: at least 0; the same seed gives the same episodes for the same actions, and environment i
        the same ones whatever N is.

    Raises:
      ConfigError: unknown task, or an option that this task cannot follow.
    """
    if task not in list_tasks():
        raise ConfigError(_unknown(task))
    if task.startswith("atari_"):
        from jaxrl.envs.atari import AtariEnv  # imports envpool, which takes seconds

        return AtariEnv(task.removeprefix("atari_"), env, num_envs=num_envs, seed=seed)
    for name in ATARI_ONLY:
        if getattr(env, name) != getattr(EnvConfig(), name):
            raise ConfigError(f"env.{name}={getattr(env, name)}: only Atari has it, not {task}; leave it out")
    if task == "toy_catch":
        from jaxrl.envs.catch import CatchEnv

        return CatchEnv(env, num_envs=num_envs, seed=seed)
    device_env = Clock(size=env.size, gray=env.gray) if task == "toy_clock" else Reach()
    return Hosted(
        device_env,
        num_envs=num_envs,
        seed=seed,
        action_repeat=env.action_repeat,
        time_limit=env.time_limit,
    )


def _unknown(task: str) -> str:
    """One line: what is wrong, near matches, how to see them all."""
    suite, _, game = task.partition("_")
    if suite == "atari" and not installed_games():
        return f"task={task[:80]!r}: no Atari ROMs are installed; reinstall the package envpool-assets"
    if f"{suite}_{game}" in ATARI100K:
        return f"task={task!r}: its ROM is missing; reinstall the package envpool-assets"
    names = {name.partition("_")[2].replace("_", ""): name for name in list_tasks()}
    word = game if suite in ("atari", "toy") else task.rpartition("/")[2].partition("-")[0]  # "ALE/Pong-v5"
    word = "".join(c for c in word.lower() if c.isalnum())
    near = [names[name] for name in difflib.get_close_matches(word, list(names), n=3, cutoff=0.6)]
    kind = "game" if suite == "atari" else "task"
    guess = f"did you mean {', '.join(near)}?" if near else "tasks are named suite_task, e.g. atari_pong."
    return f"task={task[:80]!r}: unknown {kind}; {guess} ({HOW_TO_LIST})"
