"""A run that several processes share: who writes what, and what of a command all of them must have.

Process 0 reads the command, owns the run directory and everything in it; the others see what it tells them,
and write nothing but their part of checkpoints.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxrl import rundir
from jaxrl.changes import OF_COMMAND, PLACE, Origin
from jaxrl.config import Config, ConfigError, leaves, replace, show, to_dict
from jaxrl.evaluation import Share
from jaxrl.exits import PEER_LOST
from jaxrl.flags import Command
from jaxrl.hosts import Alone
from jaxrl.parts import Parts
from jaxrl.placement import Placement
from jaxrl.profiling import Profiler
from jaxrl.stores import LATEST
from jaxrl.stores.shelf import checkpoints

OWN = (*PLACE, "debug.fault")  # settings that each process has for itself


class Onlooker(rundir.RunDir):
    """The run directory in a process that does not write into it."""

    def close(self) -> None:
        pass

    def begin(
        self,
        config: Config,
        argv: list[str],
        step: int,
        changed: Mapping[str, Any],
        identity: Mapping[str, Any],
    ) -> None:
        pass

    def identity(self) -> dict[str, Any]:
        return {}

    def note(self, **fields: Any) -> None:
        pass


def agreed(command: Command, hosts: Alone) -> Command:
    """The command of process 0, with what each process has for itself.

    Raises:
      ConfigError: if this process was given another one, or the task is for one process alone.
    """
    if hosts.count == 1:
        return command
    if command.config.task.startswith("playground_"):  # its models go to the first device of process 0
        raise ConfigError(f"task={command.config.task}: cannot be shared by {hosts.count} processes; use one")
    given = {name: value for name, value in command.given.items() if name not in OF_COMMAND}
    mine = {"action": command.action, "preset": command.preset, "given": given}
    wanted = hosts.share(mine | {"config": to_dict(command.config), "saved": command.origin.saved})
    if hosts.leads:
        return command
    asked = {"action": wanted["action"], "config": wanted["preset"], **wanted["given"]}
    for name, value in {"action": command.action, "config": command.preset, **given}.items():
        if name not in asked or asked[name] != value:
            there = show(asked[name]) if name in asked else "not given"
            raise ConfigError(
                f"{name}={show(value)}: {there} in process 0; give all processes the same command"
            )
    if missing := sorted(asked.keys() - given.keys() - {"action", "config"}):
        raise ConfigError(
            f"{missing[0]}={show(asked[missing[0]])}: not given to process {hosts.index}; give all "
            "processes the same command"
        )
    own = {name: leaves(command.config)[name].value for name in OWN}
    config = replace(Config(), wanted["config"] | own)
    origin = dataclasses.replace(command.origin, saved=wanted["saved"])
    return dataclasses.replace(command, config=config, origin=origin)


@contextlib.contextmanager
def opened(config: Config, origin: Origin, hosts: Alone) -> Iterator[rundir.RunDir]:
    """The run directory: locked by process 0, seen by all.

    Raises:
      ConfigError: as `rundir.open_run`, or if a process does not see what process 0 has written there.
    """
    if hosts.leads:
        with contextlib.closing(rundir.open_run(config, origin)) as run_dir:
            hosts.share([str(run_dir.path), run_dir.continued])
            yield run_dir
        return
    text, continued = hosts.share()
    path = pathlib.Path(text)
    if not rundir.holds(path, "config.json"):
        raise ConfigError(
            f"logdir={show(text)}: process {hosts.index} does not see what process 0 has written there; "
            "choose a folder on a file system that all processes share"
        )
    yield Onlooker(path, continued, -1, origin.preset)


def saving(parts: Parts) -> dict[str, Any]:
    """What a Saver must know of the processes."""
    hosts = parts.machine.hosts
    return {"hosts": hosts, "joined": hosts.joined if Placement(parts).shares else dict}


def running(parts: Parts) -> dict[str, Any]:
    """What the loop must know of them."""
    hosts, layout, n = parts.machine.hosts, parts.machine.layout, parts.eval_envs
    own = layout.own(n)
    share = Share(hosts, own.start, own.stop) if layout.shares(n) else Share()
    return {"hosts": hosts, "share": share, "waiting": [] if Placement(parts).shares else None}


def profiler(parts: Parts, run_dir: rundir.RunDir, note: Callable[[str], None]) -> Profiler:
    """Of process 0 alone."""
    wanted = parts.config.profile if parts.machine.hosts.leads else ""
    return Profiler(run_dir.path / "profile", wanted, note)


def farewell(run_dir: Callable[[], rundir.RunDir | None]) -> Callable[[int, str], str]:
    """Notes why another process ends this one, and returns what is said beside it: where the run goes on."""

    def ended(code: int, words: str) -> str:
        found = run_dir()
        if found is not None:
            found.note(exit=f"exit code {code}: {words}", ended=rundir.now())
        if code != PEER_LOST:
            return ""
        if found is None:
            return "; the run had not begun"
        steps = [x.step for x in checkpoints(found.path / "checkpoints" / LATEST)]
        where = f"goes on from step {max(steps):,}" if steps else "begins again: nothing was saved yet"
        return f"; the same command with --logdir={found.path} in all processes {where}"

    return ended
