"""Where a run begins: at its own newest checkpoint, at one of another run, or at step 0."""

import dataclasses
import pathlib
from typing import Any

from jaxrl import changes, plan, rundir, saving
from jaxrl.changes import BIRTH, OF_COMMAND, Origin
from jaxrl.config import Config, ConfigError, replace, to_dict
from jaxrl.exits import NoCheckpoint
from jaxrl.saving import Saved
from jaxrl.state import Counters
from jaxrl.stores import Checkpoint, find


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """What a run goes on with."""

    saved: Saved | None = None  # checkpoint whose state and counters it takes over; None: it begins at step 0
    own: bool = False  # that checkpoint is its own, so its files go on, too
    source: Checkpoint | None = None  # parameters come from there
    identity: dict[str, Any]  # lineage, and of a checkpoint of its own also the run's id
    remarks: tuple[
        str, ...
    ] = ()  # what a human should know: settings that differ, damaged checkpoints passed over

    @property
    def files(self) -> Saved | None:
        """The checkpoint that the files of the run directory belong to; None: they begin anew."""
        return self.saved if self.own else None

    @property
    def step(self) -> int:
        """env_steps."""
        return self.saved.step if self.saved else 0

    @property
    def counters(self) -> Counters:
        return self.saved.counters if self.saved else Counters()

    @property
    def words(self) -> str:
        """For the banner; "" at step 0."""
        if not self.saved:
            return ""
        where = "" if self.own else f" of {self.saved.checkpoint.folder}"
        return f" (continued from step {self.step:,}{where})"


def start_of(config: Config, found: Checkpoint | None = None) -> Start:
    """Finds and checks what a run goes on with; loads nothing large.

    Args:
      config: what it is to run with.
      found: its own newest checkpoint, if it has one.

    Raises:
      ConfigError: if the checkpoint does not fit the config.
      NoCheckpoint: if none is intact where resume_from or init_from point.
    """
    if found is None and config.init_from:
        source = found_at("init_from", config)
        entry = ancestor(source) | {"filter": config.init_filter}
        return Start(source=source, identity={"lineage": [*lineage(source), entry]}, remarks=source.remarks)
    if found is None and not config.resume_from:
        return Start(identity={"lineage": []})
    chosen = found or found_at("resume_from", config)
    before = config_in(chosen, config)
    changed = changes.lines(Origin(config=before, given={}, preset="", path=chosen.folder), config)
    saved = saving.known(chosen)
    check_end(config, saved)
    check_ring(before, config, saved)
    saved = dataclasses.replace(saved, counters=paced(saved.counters, before, config))
    whose = {"run": chosen.manifest["run"], "lineage": lineage(chosen)}
    if not found:
        whose = {"lineage": [*lineage(chosen), ancestor(chosen)]}
    remarks = (*chosen.remarks, *changed)
    return Start(saved=saved, own=found is not None, identity=whose, remarks=remarks)


def found_at(name: str, config: Config) -> Checkpoint:
    """The checkpoint that a setting names, or of those the one that the run has begun with before.

    A run that has died before its first own checkpoint begins again; what it began with may not be the newest
    any more.

    Raises:
      NoCheckpoint: if there is none.
    """
    remark, path = "", pathlib.Path(getattr(config, name))
    if config.logdir and (before := rundir.ancestor_of(pathlib.Path(config.logdir))):
        try:
            return find(pathlib.Path(before))
        except NoCheckpoint:
            remark = f"{name}: {before}, which this run began with, is not there any more"
    try:
        found = find(path)
    except NoCheckpoint as error:
        raise NoCheckpoint(f"{name}={error}") from error
    if remark:
        remark += f"; it begins again with {found.folder}"
    return dataclasses.replace(found, remarks=(*found.remarks, remark) if remark else found.remarks)


def lineage(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """The runs that the checkpoint's run came from, the oldest first."""
    return checkpoint.manifest.get("lineage") or []


def ancestor(checkpoint: Checkpoint) -> dict[str, Any]:
    """Its entry in the lineage of a run that goes on from it."""
    return {"run": checkpoint.manifest["run"], "path": str(checkpoint.folder), "step": checkpoint.step}


def config_in(checkpoint: Checkpoint, config: Config) -> Config:
    """What the checkpoint was made with. Settings that say nothing about it are those of `config`."""
    before, _ = changes.saved_config(checkpoint.manifest["config"])
    values = to_dict(config)
    return replace(before, {name: values[name] for name in (*BIRTH, *OF_COMMAND)})


def check_end(config: Config, saved: Saved) -> None:
    """Raises ConfigError if the run is beyond the end that it is given now."""
    if saved.step > plan.clock_of(config).steps:
        raise ConfigError(
            f"steps={config.steps}: the run of {saved.checkpoint.folder} has made {saved.step} already; "
            f"use --steps={saved.step} or more, or another logdir"
        )


def check_ring(before: Config, config: Config, saved: Saved) -> None:
    """Raises ConfigError if a larger ring is asked for than the saved one, which has wrapped."""
    written = saved.step // plan.clock_of(before).stride  # of each stream, at most
    larger = plan.ring_rows(config) > saved.rows and config.replay.capacity != before.replay.capacity
    if saved.rows and larger and written > saved.rows:
        raise ConfigError(
            f"replay.capacity={config.replay.capacity}: the saved replay has wrapped around at "
            f"{before.replay.capacity}, so it cannot grow; leave it out"
        )


def paced(c: Counters, before: Config, config: Config) -> Counters:
    """Counters with which a new pace of updates holds from here on; nothing is made up for.

    Updates owed are a function of counters: with another pace the same counters would owe a burst of updates,
    or none for long.
    """

    def pace(x: Config) -> tuple[float, int]:
        return x.train_ratio, plan.rows_of_update(x) * x.env.action_repeat

    if c.first_at < 0 or pace(before) == pace(config):
        return c
    return c.replace(first_at=c.env_steps // config.env.action_repeat, first_updates=c.updates - 1)
