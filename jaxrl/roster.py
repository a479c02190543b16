"""Who the members of a population are: the command, the folder and the environments of each."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Sequence

from jaxrl import changes, rundir, runtime
from jaxrl.changes import Origin
from jaxrl.config import Config, ConfigError, Value, replace, to_dict
from jaxrl.envs.base import CheckedEnv
from jaxrl.exits import Diverged
from jaxrl.flags import Command
from jaxrl.runtime import Machine
from jaxrl.session import training_env
from jaxrl.types import Discrete, Spaces

MOST = 1_024  # members


def commands_of(command: Command) -> dict[str, Command]:
    """The command of each member by its name, as if each were given alone.

    Raises:
      ConfigError: if there is no member or one twice, or the folder holds a run of its own.
    """
    config, origin = command.config, command.origin
    if config.distributed.coordinator:
        raise ConfigError(
            "seeds, tasks: a population is trained by one process; leave --distributed.coordinator out, and "
            "name a part of the members on each host"
        )
    if config.resume_from:
        raise ConfigError(
            f"resume_from={config.resume_from}: is one run of one seed; with --seeds and --tasks take its "
            "parameters, --init_from"
        )
    if origin.path is not None:
        raise ConfigError(
            f"logdir={config.logdir}: holds a run of its own; --seeds and --tasks make a folder for each "
            "member, so choose another"
        )
    tasks, seeds = config.tasks.split(",") if config.tasks else [config.task], numbers(config)
    found = {f"{task}-{seed}": {"task": task, "seed": seed} for task in tasks for seed in seeds}
    if len(found) < len(tasks) * len(seeds):
        raise ConfigError(f"seeds={config.seeds}, tasks={config.tasks}: one is named twice; name each once")
    if len(found) > MOST:
        raise ConfigError(f"seeds={config.seeds}: more than {MOST} members; name fewer")
    home = home_of(config, command.preset)
    given = {k: x for k, x in origin.given.items() if k not in ("seeds", "tasks")}
    return {
        name: alone(command, given | own | {"logdir": str(home / name)}, profiles=not number)
        for number, (name, own) in enumerate(found.items())
    }


def numbers(config: Config) -> list[int]:
    """The seeds: of 0,2,5-7 these are 0, 2, 5, 6, 7."""
    if not config.seeds:
        return [config.seed]
    found = []
    for part in config.seeds.split(","):
        first, _, last = part.partition("-")
        if int(last or first) < int(first):
            raise ConfigError(f"seeds={config.seeds}: {part} is no range of seeds; for example seeds=0-4")
        found += range(int(first), min(int(last or first), int(first) + MOST) + 1)
    return found


def home_of(config: Config, preset: str) -> pathlib.Path:
    """The folder of all members' run directories."""
    if config.logdir:
        return rundir.located("logdir", config.logdir)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return rundir.unused(pathlib.Path("runs").resolve() / preset / f"population-{stamp}")


def alone(command: Command, given: dict[str, Value], profiles: bool) -> Command:
    """The command of one member. Only one may trace a profile at a time."""
    given = given if profiles else given | {"profile": ""}
    origin = Origin(config=command.origin.config, given=given, preset=command.preset)
    origin = rundir.origin_of(origin, command.named)
    config = replace(origin.config, dict(origin.given) | {"seeds": "", "tasks": ""})
    notes = (*origin.notes, *changes.lines(origin, config))
    return dataclasses.replace(command, config=config, origin=origin, notes=notes, preset=origin.preset)


def present(members: dict[str, Command], machine: Machine) -> dict[str, Command]:
    """With resolved configs, and without those that have diverged before. Raises Diverged if all have."""
    left = {}
    for name, command in members.items():
        path = pathlib.Path(command.config.logdir)
        ended = rundir.ending_of(path) if command.origin.saved is not None else ""
        if not ended.startswith(Diverged.__name__):
            left[name] = dataclasses.replace(command, config=runtime.resolve(command.config, machine))
    if not left:
        raise Diverged(
            f"all {len(members)} members have diverged; start again with a lower --opt.lr elsewhere"
        )
    return left


def with_environments(
    stack: contextlib.ExitStack, members: dict[str, Command], machine: Machine
) -> tuple[dict[str, Command], list[CheckedEnv]]:
    """The training environments of each member, until `stack` closes. Games share the largest set of actions.

    Raises:
      ConfigError: if the members differ in more than seed and task.
    """

    def opened() -> list[CheckedEnv]:
        return [stack.enter_context(training_env(x.config, 0, machine)) for x in members.values()]

    env = opened()
    sets = [x.spaces.action for x in env]
    sizes = [x.n for x in sets if isinstance(x, Discrete) and x.own is None]
    games = all(x.config.task.startswith("atari_") for x in members.values())
    if games and len(sizes) == len(sets) and len(set(sizes)) > 1:
        shared = {"env.actions": max(sizes)}
        members = {
            name: dataclasses.replace(x, config=replace(x.config, shared)) for name, x in members.items()
        }
        for x in env:
            x.close()
        env = opened()
    check_alike(members, env)
    return members, env


def check_alike(members: dict[str, Command], env: Sequence[CheckedEnv]) -> None:
    """Raises ConfigError if the members' settings differ in more than seed and task, or their spaces do."""
    own = ("seed", "task", "logdir", "profile")
    (first, one), *others = ((name, to_dict(x.config)) for name, x in members.items())
    for (name, config), there in zip(others, env[1:], strict=True):
        if differ := [k for k in one if one[k] != config[k] and k not in own]:
            raise ConfigError(
                f"{differ[0]}: {first} has {one[differ[0]]} and {name} has {config[differ[0]]}; "
                f"continue them alone, each by its --logdir"
            )
        if shared_spaces(there) != shared_spaces(env[0]):
            raise ConfigError(f"tasks: {first} and {name} differ in what is seen or done there; name others")


def shared_spaces(env: CheckedEnv) -> Spaces:
    """What all members must have alike: not how many of the shared actions are a game's own."""
    action = env.spaces.action
    return Spaces(
        env.spaces.obs, dataclasses.replace(action, own=None) if isinstance(action, Discrete) else action
    )
