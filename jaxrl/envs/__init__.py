"""Environments by task name. `make` is the door; what is heavy is imported only where a task needs it."""

import dataclasses
import difflib
import re

from jaxrl.config import ConfigError, EnvConfig
from jaxrl.envs import mjx
from jaxrl.envs.base import CheckedEnv, DeviceEnv, From, Outcome, State, check_action
from jaxrl.envs.games import ATARI100K, installed_games
from jaxrl.envs.hosted import Hosted
from jaxrl.envs.names import dmc_tasks, has_playground, playground_tasks
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
    "device_env",
    "judged",
    "list_tasks",
    "make",
]

TOYS = ("toy_catch", "toy_clock", "toy_reach")
LAST_STAGE = 4  # of mjx_so101_lift
SUITES = ("atari", "dmc", "mjx", "playground", "toy")
HOST_ONLY = ("atari_", "dmc_", "toy_catch")
HOW_TO_LIST = "all: python -c 'import jaxrl.envs as e; print(*e.list_tasks())'"
EXTRA = "needs the optional package playground; pip install 'jaxrl[playground]'"

ATARI = ("Atari has", "atari_")
PHYSICS = ("physics tasks have", "dmc_", "mjx_", "playground_")
DRAWN = ("tasks drawn by the ray caster have", "mjx_", "playground_")
OURS = ("mjx tasks have", "mjx_")
LIFT = ("mjx_so101_lift has", "mjx_so101_lift")
# Option of env -> who follows it, and how the names of such tasks begin. Options that are not here are
# followed by all, or mean nothing to some without changing what they do.
FOLLOWED_BY = {
    **dict.fromkeys(
        ("sticky", "full_actions", "actions", "fire_reset", "lives", "clip_reward", "stack"), ATARI
    ),
    "gray": ("Atari, toy and mjx tasks have", "atari_", "toy_", "mjx_"),
    "observe": PHYSICS,
    **dict.fromkeys(("cameras", "samples"), DRAWN),
    **dict.fromkeys(("renderer", "randomize"), OURS),
    **dict.fromkeys(("stage", "promote"), LIFT),
    **dict.fromkeys(("control", "bonus"), ("mjx_so101 tasks have", "mjx_so101")),
}


def judged(env: EnvConfig) -> EnvConfig:
    """Settings of environments that a policy is judged in: at the last stage, where training goes from one to
    the next."""
    return dataclasses.replace(env, stage=LAST_STAGE, promote=0.0) if env.promote else env


def list_tasks() -> tuple[str, ...]:
    """Names of every task that `make` knows here: what is installed decides on Atari and Playground."""
    suites = {"atari": installed_games(), "dmc": dmc_tasks(), "mjx": mjx.names()}
    if has_playground():
        suites["playground"] = playground_tasks()
    return (*TOYS, *(f"{suite}_{name}" for suite, names in suites.items() for name in names))


def make(task: str, env: EnvConfig, *, num_envs: int, seed: int, first: int = 0) -> CheckedEnv:
    """N environments of a task, a HostEnv.

    Args:
      task: "suite_task", one of `list_tasks()`.
      env: everything but its `num_envs`.
      num_envs: N; evaluation has another one than training.
      seed: at least 0; the same seed gives the same episodes for the same actions, and environment i
        the same ones whatever N is.
      first: number of environment 0 among those of the seed; those before are in other processes.

    Raises:
      ConfigError: unknown task, or an option that this task cannot follow.
    """
    made = _made(task, env, num_envs, From(seed, first))
    made.first = first
    return made


def _made(task: str, env: EnvConfig, num_envs: int, seed: From) -> CheckedEnv:
    single = device_env(task, env)
    if single is not None:
        return Hosted(
            single,
            num_envs=num_envs,
            seed=seed,
            action_repeat=env.action_repeat,
            time_limit=env.time_limit,
        )
    suite, _, name = task.partition("_")
    if suite == "atari":
        from jaxrl.envs.atari import AtariEnv  # imports envpool, which takes seconds

        return AtariEnv(name, env, num_envs=num_envs, seed=seed)
    if suite == "dmc":
        from jaxrl.envs.dmc import DmcEnv

        return DmcEnv(name, env, num_envs=num_envs, seed=seed)
    from jaxrl.envs.catch import CatchEnv

    return CatchEnv(env, num_envs=num_envs, seed=seed)


def device_env(task: str, env: EnvConfig) -> DeviceEnv | None:
    """One environment of a task as a JAX program; None if the task steps on the host only.

    Args: as `make`. Equal arguments give equal environments, which share what is compiled.

    Raises:
      ConfigError: unknown task, or an option that this task cannot follow; host-only tasks are checked too.
    """
    if task not in list_tasks():
        raise ConfigError(_unknown(task))
    _check_options(task, env)
    suite, _, name = task.partition("_")
    if suite in ("mjx", "playground"):
        _check_mujoco(task)
    if suite == "mjx":
        return mjx.make_task(name, env)
    if suite == "playground":
        from jaxrl.envs.playground import make_task

        return make_task(name, env)
    if task == "toy_clock":
        return Clock(size=env.size, gray=env.gray)
    return Reach() if task == "toy_reach" else None


def _check_mujoco(task: str) -> None:
    """Its import opens OpenGL, and raises what comes of a MUJOCO_GL whose library is missing."""
    try:
        import mujoco  # noqa: F401
    except (AttributeError, ImportError, RuntimeError) as error:
        why = (str(error).splitlines() or [""])[0][:200]
        raise ConfigError(
            f"task={task}: mujoco cannot be imported ({why}); unset MUJOCO_GL, or see python -m jaxrl.doctor"
        ) from error


def _check_options(task: str, env: EnvConfig) -> None:
    defaults = EnvConfig()
    for option, (who, *starts) in FOLLOWED_BY.items():
        value = getattr(env, option)
        if value != getattr(defaults, option) and not task.startswith(tuple(starts)):
            raise ConfigError(f"env.{option}={value}: only {who} it, not {task}; leave it out")
    if env.placement == "device" and task.startswith(HOST_ONLY):
        raise ConfigError(f"env.placement=device: {task} steps on the host; add --env.placement=auto")


def _unknown(task: str) -> str:
    """One line: what is wrong, near matches, how to see them all."""
    suite, _, name = task.partition("_")
    shown = repr(task[:80])
    if suite == "atari" and not installed_games():
        return f"task={shown}: no Atari ROMs are installed; reinstall the package envpool-assets"
    if task in ATARI100K:
        return f"task={shown}: its ROM is missing; reinstall the package envpool-assets"
    if suite == "playground" and not has_playground():
        return f"task={shown}: {EXTRA}"
    kind = "game" if suite == "atari" else "task"
    near = _near(task, suite, name)
    guess = f"did you mean {', '.join(near)}?" if near else "tasks are named suite_task, e.g. atari_pong."
    return f"task={shown}: unknown {kind}; {guess} ({HOW_TO_LIST})"


def _near(task: str, suite: str, name: str) -> list[str]:
    """Up to three tasks with a name like this one, first those of its own suite."""
    tasks = list_tasks()
    word = name if suite in SUITES else task.rpartition("/")[2].partition("-")[0]  # "ALE/Pong-v5"
    word = re.sub("[^a-z0-9]", "", word.lower())[:80]
    for own in (True, False):
        names = {x: x.partition("_")[2].replace("_", "") for x in tasks if x.startswith(f"{suite}_") == own}
        cutoff = 0.6 if own else 0.8  # of another suite only what can hardly be anything else
        close = difflib.get_close_matches(word, sorted(set(names.values())), n=3, cutoff=cutoff)
        if found := [x for match in close for x in names if names[x] == match]:
            return found[:3]
    return []
