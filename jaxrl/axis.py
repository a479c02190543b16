"""The axis of members of a population, in front of every array, and the devices that it is divided over."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxrl.layout import WHOLE, Layout
from jaxrl.sources import Source


@dataclasses.dataclass(frozen=True)
class Axis:
    """The axis of members, and the devices that it is divided over."""

    members: int
    layout: Layout

    def each(self, function: Callable[..., Any], shared: tuple[int, ...] = ()) -> Callable[..., Any]:
        """The function for each member; arguments at the positions `shared` are the same for all."""

        def run(*args: Any) -> Any:
            axes = tuple(None if i in shared else 0 for i in range(len(args)))
            return jax.vmap(function, in_axes=axes)(*args)

        return run

    def flat(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of N environments, for those of all members at once: [M, N, ...] are [M N, ...] in it.

        Resets are so made only at steps where an episode of any of them ended.
        """

        def run(*args: Any) -> Any:
            first = jax.tree.leaves(args[0])[0]
            members, n = first.shape[:2]  # on several devices, those of one of them
            flat = jax.tree.map(lambda x: x.reshape(members * n, *x.shape[2:]), args)
            return jax.tree.map(lambda x: x.reshape(members, n, *x.shape[1:]), function(*flat))

        return run

    def shapes(self, tree: Any) -> Any:
        """Shapes with the axis in front."""

        def shape(x: Any) -> Any:
            return jax.ShapeDtypeStruct((self.members, *x.shape), x.dtype, sharding=self.layout.of(0))

        return jax.tree.map(shape, tree)

    def whole(self, tree: Any) -> Any:
        """Shapes of what is the same for all members."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.layout.whole), tree
        )

    def lifted(self, source: Source) -> Source:
        """A program of a single run, for all members."""
        shared = source.shared
        shapes = [self.whole(x) if i in shared else self.shapes(x) for i, x in enumerate(source.shapes)]
        inside = tuple(WHOLE if i in shared else 0 for i in range(len(shapes)))
        function = self.divided(self.each(source.function, shared), inside, 0)
        return Source(function, tuple(shapes), source.donate, self.layout.of(0))

    def divided(self, function: Callable[..., Any], inside: Any, outside: Any) -> Callable[..., Any]:
        """A function of all members, each device with its own."""
        return self.layout.spread(function, inside, outside) if self.layout.count > 1 else function
