"""What a run takes of memory, worked out before it begins: what stays, what comes and goes, and the peak.

XLA states what its programs take, shapes say what the state takes, and the process is measured: what it holds
once everything has been called and the state is gone again. On a CPU all of it is one memory; an accelerator
has its own, and its host holds the process and what is on its way to the disk.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxrl import metrics
from jaxrl.envs.base import CheckedEnv
from jaxrl.envs.hosted import Hosted
from jaxrl.parts import Feed, Parts, batch_shapes
from jaxrl.placement import Placement
from jaxrl.programs import Programs

MIB = 2**20
SAVING = 64 * MIB  # of the host, that a save takes beside what it copies: libraries, threads, buffers
SINKS = 24 * MIB  # of the host, that files of rows take, and the loop's own threads
DRAWING = 64 * MIB  # the same of plots/live.png: matplotlib, and a picture
# What zstd leaves of rows: pictures of games and simulations keep some 5 %, everything else nearly all.
PICTURES = 0.05
LEAST = 100_000  # bytes of a program that gets a row of its own


@dataclasses.dataclass(frozen=True)
class Process:
    """Bytes of host memory that the process holds; measured."""

    resident: int  # after every program has run once; no state is there any more
    highest: int  # so far, which is while programs were compiled


@dataclasses.dataclass(frozen=True)
class Needs:
    """Bytes by name."""

    stays: dict[str, int]  # on each device, as long as the run lasts
    calls: dict[str, int]  # on a device, one after another
    copied: int  # on the host, while a checkpoint is written: what the run changes meanwhile
    encoded: int  # on the host, at the same time: what waits for the disk

    @property
    def saving(self) -> int:
        """Of the host, while a checkpoint is written; 0 if none ever is."""
        return self.copied + self.encoded + SAVING if self.encoded else 0

    def times(self, members: int, calls: dict[str, int] | None) -> "Needs":
        """Of a population: all of it for each member, but for what is called in turn.

        Args:
          calls: of programs that all members run at once; None: they run those of a single run.
        """
        stays = {name: x if name == "programs" else x * members for name, x in self.stays.items()}
        return Needs(stays, self.calls | (calls or {}), self.copied * members, self.encoded * members)

    @property
    def device(self) -> int:
        """Peak of each device."""
        return sum(self.stays.values()) + max(self.calls.values(), default=0)


def table(
    parts: Parts,
    programs: Programs,
    env: CheckedEnv,
    process: Process,
    members: int = 1,
    jointly: dict[str, int] | None = None,
) -> list[str]:
    """Lines of what a run takes; the peak is the last, on accelerators the device's and the host's.

    Args:
      env: the training environments.
      members: of a population, on each device. jointly: see `Needs.times`.
    """
    needs = needed(parts, programs, env).times(members, jointly)
    rows = {"process (host)": process.resident} | needs.stays
    if needs.saving:
        rows["checkpoint (temporary)"] = needs.saving
    large = {name: size for name, size in needs.calls.items() if size > LEAST}
    rows |= {f"{name} (temporary)": size for name, size in large.items()}
    rows |= peaks(parts, needs, process)
    width = max(len(name) for name in rows)
    return [f"memory     {name:{width}} {size:>16,} B" for name, size in rows.items()]


def peaks(parts: Parts, needs: Needs, process: Process) -> dict[str, int]:
    """The largest sum of what is there at the same time. Compiling is over before the state is made."""
    config, machine = parts.config, parts.machine
    looks = SINKS + DRAWING * (config.plot.enabled or config.live)
    host = process.resident + looks + needs.saving
    if machine.platform == "cpu":
        return {"peak": max(process.highest, host + machine.count * needs.device)}
    replay = needs.stays["replay"] if config.replay.placement == "host" else 0
    return {"peak (device)": needs.device - replay, "peak (host)": max(process.highest, host + replay)}


def needed(parts: Parts, programs: Programs, env: CheckedEnv) -> Needs:
    """What the run takes, but for the process."""
    config, machine, place = parts.config, parts.machine, Placement(parts)
    learner, rings = parts.learner, [x for x in (parts.replay, parts.held) if x]
    state = jax.eval_shape(learner.init, parts.key)
    policy = nbytes(jax.eval_shape(learner.policy_params, state))
    carry = nbytes(jax.eval_shape(lambda: learner.initial_carry(parts.replay.streams)))
    rest = carry + nbytes(metrics.empty(programs.kinds))
    stays = {"learner": nbytes(state), "policy": policy * (1 + config.overlap), "replay": 0, "rest": rest}
    if learner.update is not None:  # of the first update that is not finite, one batch is kept
        stays["replay"] = sum(x.nbytes for x in rings) // place.groups
        stays["evidence"] = nbytes(batch_shapes(parts.replay, parts.key)) // machine.count
    calls = {name: x.demand.fresh for name, x in programs.compiled.items()}
    if isinstance(env, Hosted) and (machine.platform == "cpu" or env.batched.env.is_physics):
        demands = env.programs.demands
        stays["environments"] = demands["advance"].arguments + demands["show"].outputs
        calls["environments"] = max(x.fresh for x in demands.values())
    if machine.platform != "cpu":
        stays["programs"] = sum(x.demand.code for x in programs.compiled.values())
    if not config.checkpoint.enabled:
        return Needs(stays, calls, 0, 0)
    small = stays["learner"] + policy + rest
    kept = rings if config.checkpoint.replay and learner.update is not None else []
    copied = small + sum(x.nbytes for x in kept)
    if machine.platform == "cpu" and not (config.save_every or config.save_seconds):
        copied = small  # what is saved at the end is not changed any more
    return Needs(stays, calls, copied, small + sum(map(encoded, kept)))


def encoded(feed: Feed) -> int:
    """Bytes of a full ring once it is compressed."""
    obs = jax.tree.leaves(feed.row_shapes().obs)
    row = nbytes([x for x in obs if x.dtype == np.uint8 and len(x.shape) == 3])
    pictures = row * feed.rows * feed.streams
    return feed.nbytes - int(pictures * (1 - PICTURES))


def nbytes(tree: Any) -> int:
    """Bytes of arrays, or of their shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
