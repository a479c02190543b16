"""How arrays lie on the devices of a run: whole on each of them, or divided along one axis.

There is one mesh with one axis. With a single device there is none, everything is whole there, and functions
are left as they are. Where several processes share a run, the mesh has the devices of all of them, in their
order, and each process gives and is given its own part of what is divided.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from jaxrl.config import Config, ConfigError
from jaxrl.hosts import ALONE, Alone
from jaxrl.runtime import SEVERAL

AXIS = "data"
WHOLE = -1  # instead of an axis: a copy on each device

Device = Any  # jax.Device, of which jax says nothing to type checkers
Axes = Any  # the axis that is divided, or WHOLE; or a tree of them, a prefix of the arrays' tree


@dataclasses.dataclass(frozen=True)
class Layout:
    """The devices over which environments, replay and batches are divided."""

    devices: tuple[Device, ...]  # as many of each process, one process after another

    @functools.cached_property
    def mesh(self) -> Mesh:
        kind = (jax.sharding.AxisType.Auto,)
        if self.processes > 1:  # make_mesh may order them otherwise
            return Mesh(np.array(self.devices), (AXIS,), axis_types=kind)
        return jax.make_mesh((len(self.devices),), (AXIS,), kind, devices=self.devices)

    @functools.cached_property
    def here(self) -> tuple[Device, ...]:
        """Those of this process."""
        mine = jax.process_index()
        return tuple(x for x in self.devices if x.process_index == mine)

    @functools.cached_property
    def processes(self) -> int:
        """That share them."""
        return len({x.process_index for x in self.devices})

    @property
    def count(self) -> int:
        return len(self.devices)

    @property
    def whole(self) -> Sharding:
        """A copy on each device."""
        return self.of(WHOLE)

    def of(self, axis: int) -> Sharding:
        """Divided along an axis, or WHOLE."""
        if self.count == 1:
            return SingleDeviceSharding(self.devices[0])
        return NamedSharding(self.mesh, spec(axis))

    def divides(self, n: int) -> bool:
        """Whether n rows can be divided evenly over several devices."""
        return self.count > 1 and n % self.count == 0

    def rows(self, n: int, axis: int = 0) -> Sharding:
        """Of n rows: divided if they can be, else whole."""
        return self.of(axis if self.divides(n) else WHOLE)

    def shares(self, n: int) -> bool:
        """Whether each process has a part of n rows for its own; else each has all of them."""
        return self.processes > 1 and self.divides(n)

    def own(self, n: int) -> slice:
        """Of n rows, those of this process."""
        if not self.shares(n):
            return slice(0, n)
        each, first = n // self.processes, self.devices.index(self.here[0]) // len(self.here)
        return slice(each * first, each * (first + 1))

    def put(self, tree: Any, axis: int = WHOLE) -> Any:
        """Explicit transfer of arrays of the host to where they belong; only enqueued.

        Args:
          tree: leaves divided along an axis, of which this process gives its own part, or WHOLE: the same in
            all processes, which is not checked (jax.device_put would, each time, by asking all).
        """
        if self.processes == 1:
            return jax.device_put(tree, self.of(axis))
        return jax.tree.map(lambda x: self._put(x, axis), tree)

    def _put(self, x: Any, axis: int) -> jax.Array:
        x, n = np.asarray(x), len(self.here)
        shape = list(x.shape)
        if axis != WHOLE:
            shape[axis] *= self.processes
        pieces = [x] * n if axis == WHOLE else np.split(x, n, axis)
        return jax.make_array_from_single_device_arrays(
            tuple(shape), self.of(axis), jax.device_put(pieces, list(self.here))
        )

    def put_rows(self, tree: Any, n: int) -> Any:
        """The same of leaves with rows of n environments, this process's own; or all, where whole."""
        return self.put(tree, 0 if self.divides(n) else WHOLE)

    def tree(self, axes: Axes) -> Any:
        """Shardings of arrays by their axes."""
        return jax.tree.map(self.of, axes)

    def spread(self, function: Callable[..., Any], inside: Axes, outside: Axes) -> Callable[..., Any]:
        """The function on each device's own part of its arguments.

        Args:
          inside: axes of the arguments, a tuple. outside: of what comes out.
        """
        specs = [jax.tree.map(spec, axes) for axes in (inside, outside)]
        return jax.shard_map(function, mesh=self.mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False)


def spec(axis: int) -> PartitionSpec:
    """Of an array that is divided along this axis, or WHOLE."""
    return PartitionSpec() if axis == WHOLE else PartitionSpec(*[None] * axis, AXIS)


def own_key(key: jax.Array) -> jax.Array:
    """Inside `spread`: another key on each device."""
    return jax.random.fold_in(key, jax.lax.axis_index(AXIS))


def fetched(tree: Any) -> Any:
    """Arrays on the host, waiting for them; of what is divided over processes, this one's part."""
    return jax.device_get(tree) if jax.process_count() == 1 else jax.tree.map(own_part, tree)


def own_part(x: jax.Array) -> np.ndarray:
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return jax.device_get(x)
    shards = x.addressable_shards
    starts = [[part.start or 0 for part in shard.index] for shard in shards]
    axis = next((i for i in range(x.ndim) if len({start[i] for start in starts}) > 1), None)
    if axis is None:  # one device here
        return jax.device_get(shards[0].data)
    pieces = jax.device_get([shards[i].data for i in sorted(range(len(shards)), key=starts.__getitem__)])
    return np.concatenate(pieces, axis)


def devices_wanted(config: Config, there: list[Any], hosts: Alone = ALONE) -> int:
    """How many of the devices of each process the run is to use. Raises ConfigError if there are fewer."""
    wanted, kind, n = config.runtime.devices, there[0].platform, hosts.count
    counts = hosts.gather(len(there))
    where = f" in {n} processes" if n > 1 else ""
    if wanted and wanted % n:
        raise ConfigError(
            f"runtime.devices={wanted}: cannot be divided over distributed.processes={n}; use "
            f"--runtime.devices={-(-wanted // n) * n}"
        )
    if not wanted and kind != "cpu" and min(counts) < max(counts):
        raise ConfigError(
            f"runtime.devices=0: the processes have {', '.join(map(str, counts))} devices; use "
            f"--runtime.devices={min(counts) * n}"
        )
    if wanted > min(counts) * n:
        more = f", or XLA_FLAGS={SEVERAL}={wanted // n} to try it" if kind == "cpu" else ""
        raise ConfigError(
            f"runtime.devices={wanted}: there are {min(counts) * n} ({kind}){where}; use "
            f"--runtime.devices={min(counts) * n}{more}"
        )
    # A CPU is one device; where it poses as several, that is a trial, which names their number.
    return wanted // n or (1 if kind == "cpu" else len(there))


def devices_of_all(there: list[Any], each: int) -> list[Any]:
    """So many devices of each process, in the order of the processes."""
    found: dict[int, list[Any]] = {}
    for device in sorted(there, key=lambda x: (x.process_index, x.id)):
        found.setdefault(device.process_index, []).append(device)
    return [device for owned in found.values() for device in owned[:each]]
