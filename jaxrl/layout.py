"""How arrays lie on the devices of a run: whole on each of them, or divided along one axis.

There is one mesh with one axis. With a single device there is none, everything is whole there, and functions
are left as they are.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

AXIS = "data"
WHOLE = -1  # instead of an axis: a copy on each device

Device = Any  # jax.Device, of which jax says nothing to type checkers
Axes = Any  # the axis that is divided, or WHOLE; or a tree of them, a prefix of the arrays' tree


@dataclasses.dataclass(frozen=True)
class Layout:
    """The devices over which environments, replay and batches are divided."""

    devices: tuple[Device, ...]

    @functools.cached_property
    def mesh(self) -> Mesh:
        return jax.make_mesh(
            (len(self.devices),), (AXIS,), (jax.sharding.AxisType.Auto,), devices=self.devices
        )

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
