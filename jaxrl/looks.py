"""Sections of the configuration about where a run is shown. Standard library only, as config.py."""

import dataclasses

from jaxrl.schema import DREAMER, Section, leaf


@dataclasses.dataclass(frozen=True, kw_only=True)
class TerminalConfig(Section):
    prefix = "terminal."
    filter: str = leaf(".*", "regular expression; metrics in which it is found are shown", source=DREAMER)
    style: str = leaf("auto", "auto = rich or, in a file, plain", choices=("auto", "rich", "plain", "off"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorboardConfig(Section):
    prefix = "tensorboard."
    enabled: bool = leaf(True, "write TensorBoard files to tb/")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlotConfig(Section):
    prefix = "plot."
    enabled: bool = leaf(True, "draw plots/live.png anew after a row, at most 1 % of the time")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WandbConfig(Section):
    prefix = "wandb."
    enabled: bool = leaf(False, "send metrics, videos, tables and checkpoints to Weights & Biases too")
    project: str = leaf("jaxrl", "project there")
    entity: str = leaf("", "team or user there; empty = your own")
    name: str = leaf("", "name of the run there; empty = that of its directory")
    mode: str = leaf("online", "offline keeps it all in wandb/ of the run", choices=("online", "offline"))
