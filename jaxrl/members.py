"""A population's programs: those of a run, for all of its members at once.

Every array has a leading axis of members, and each function is `jax.vmap` of that of a single run. Where
there are several devices, members are divided over them, and nothing is sent between them.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import chunk, metrics
from jaxrl.axis import Axis
from jaxrl.chunk import ChunkPlan, Moving
from jaxrl.envs.batch import Told
from jaxrl.layout import WHOLE, Layout
from jaxrl.parts import Due, Parts, loops, metric_shapes
from jaxrl.programs import Programs
from jaxrl.runtime import give_back_memory
from jaxrl.sources import Source, compile_all, programs
from jaxrl.state import RunState
from jaxrl.types import Carry, Params, Step

ON_DEVICE = "learner", "ring", "policy", "carry", "counter", "totals", "evidence"  # of a RunState
LIFTED = "act", "eval_act", "insert", "learn"  # programs that become those of all members


class Members:
    """The functions of the loop for all members. Arguments marked "donated" must not be used afterwards.

    Args:
      parts: of each member; they differ in seed and task only.
      layout: devices that the members are divided over.
    """

    def __init__(self, parts: Sequence[Parts], layout: Layout):
        first = parts[0]
        self.axis = Axis(len(parts), layout)
        self._parts, self._many = first, loops(first)
        sources = programs(first, metrics.empty(metrics.kinds_of(metric_shapes(first))))
        names = ("eval_act",) if first.batched else LIFTED
        lifted = {name: self.axis.lifted(sources[name]) for name in names if name in sources}
        if first.batched:
            lifted["chunk"] = self._chunk()
        self.compiled = compile_all(lifted, first.machine.platform)
        single = Programs(first, without=(*LIFTED, "chunk"))  # of one member's state: fresh, saved, looked at
        self.of = [single.of(x) for x in parts]
        give_back_memory()
        keys = jnp.stack([x.key for x in parts])
        self._keys = jax.device_put(keys, layout.of(0))

    def put(self, tree: Any) -> Any:
        """Explicit transfer of what is the same for all members."""
        return jax.device_put(tree, self.axis.layout.whole)

    def stacked(self, trees: Sequence[Any]) -> Any:
        """Trees of the members, on the host or on a device, as one on the devices."""
        if all(isinstance(x, np.ndarray | np.generic) for x in jax.tree.leaves(trees)):
            together = jax.tree.map(lambda *x: np.stack(x), *trees)
        else:
            together = stack(*trees)
        return jax.device_put(together, self.axis.layout.of(0))

    def joined(self, states: Iterable[RunState]) -> RunState:
        """One state of all members, of what lies on devices, from theirs, which are used up one by one."""
        whole: dict[str, Any] = {}
        for number, state in enumerate(states):
            one = {name: getattr(state, name) for name in ON_DEVICE}
            if not whole:
                shapes = self.axis.shapes(one)
                whole, first = zeros(shapes, self.axis.layout), state
            moved = jax.device_put(one, self.axis.layout.whole)
            whole = placed(whole, moved, self.put(np.int32(number)))
            jax.block_until_ready(whole)
            for x in jax.tree.leaves((one, moved)):
                x.delete()  # there may not be room for two rings of each
        return first.replace(**whole, held=None, env=None)

    def member(self, joint: RunState, number: int, with_ring: bool) -> dict[str, Any]:
        """What lies on devices of one member's state: copies."""
        names = [name for name in ON_DEVICE if with_ring or name != "ring"]
        return self.one({name: getattr(joint, name) for name in names}, number)

    def one(self, tree: Any, number: int) -> Any:
        """A copy of one member's part of a tree, on the first device."""
        each = self.axis.members // self.axis.layout.count
        home = self.axis.layout.devices[number // each]
        # From the device that has it: of an array that is divided, XLA would gather all members first.
        there = jax.tree.map(lambda x: part_on(x, home), tree)
        found = taken(there, jax.device_put(np.int32(number % each), home))
        return jax.device_put(found, self._parts.machine.layout.whole)

    def act(self, joint: RunState, steps: Sequence[Step]) -> tuple[RunState, jax.Array]:
        """Actions [M, N, ...] of all members' training environments, whose rows are written to replay.

        `joint` is donated, but for its learner and policy.
        """
        step = self.stacked(steps)
        out, counter = self.compiled["act"].call(joint.policy, joint.carry, joint.counter, step, self._keys)
        ring = joint.ring
        if "insert" in self.compiled:
            ring = self.compiled["insert"].call(ring, step, out.action, out.latents)
        return joint.replace(carry=out.carry, counter=counter, ring=ring), out.action

    def learn(self, joint: RunState, due: Due) -> tuple[RunState, Params]:
        """The updates that are due for each member; `joint` is donated. Returns the new policies too."""
        policy, each = None, due.updates if self._many else 1
        for number in range(due.done, due.done + due.updates)[::each]:
            plan = self.put(np.array([each, number, due.agent_steps], np.int32))
            learner, ring, totals, evidence, policy = self.compiled["learn"].call(
                joint.learner, joint.ring, joint.totals, joint.evidence, plan, self._keys
            )
            joint = joint.replace(learner=learner, ring=ring, totals=totals, evidence=evidence)
        return joint, policy

    def run_chunk(self, moving: Moving, plan: ChunkPlan) -> tuple[Moving, Told]:
        """Many vector steps of all members with their updates; `moving` is donated. Told: [LONGEST, M, N]."""
        return self.compiled["chunk"].call(moving, self.put(plan), self._keys)

    def eval_carry(self) -> Carry:
        """Recurrent state of all members' evaluation environments before their first row."""
        return self.stacked([one.eval_carry() for one in self.of])

    def eval_act(self, policy: Params, carry: Carry, counter: jax.Array, steps: Sequence[Step]):
        """Actions [M, N, ...] in them; carry and counter [M] are donated, the latter comes back + 1."""
        return self.compiled["eval_act"].call(policy, carry, counter, self.stacked(steps), self._keys)

    def _chunk(self) -> Source:
        """The chunk of all members; its environments step as one vector."""
        moving, plan, key = chunk.shapes(self._parts)
        shapes = self.axis.shapes(moving), self.axis.whole(plan), self.axis.shapes(key)
        function = chunk.chunk_program(self._parts, self.axis)
        function = self.axis.divided(function, (0, WHOLE, 0), (0, 1))
        return Source(function, shapes, (0,), (self.axis.layout.of(0), self.axis.layout.of(1)))


def zeros(shapes: Any, layout: Layout) -> Any:
    """Arrays of these shapes, made where they are to lie, divided along the members."""

    def make() -> Any:
        return jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), shapes)

    return jax.jit(make, out_shardings=layout.of(0))()


def part_on(x: jax.Array, device: Any) -> jax.Array:
    """What an array has on a device."""
    return next(shard.data for shard in x.addressable_shards if shard.device == device)


@jax.jit
def stack(*trees: Any) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


@jax.jit
def taken(tree: Any, number: jax.Array) -> Any:
    return jax.tree.map(lambda x: x[number], tree)


def _set(whole: Any, one: Any, number: jax.Array) -> Any:
    return jax.tree.map(lambda x, y: x.at[number].set(y), whole, one)


placed = jax.jit(_set, donate_argnums=0)
