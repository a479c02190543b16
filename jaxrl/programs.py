"""Every compiled function of a run, with its donation and its device, in one place."""

import copy
from collections.abc import Container
from typing import Any

import jax
import numpy as np

from jaxrl import chunk, metrics
from jaxrl.chunk import ChunkPlan, Moving
from jaxrl.envs.batch import Told
from jaxrl.feeds.ring import Ring
from jaxrl.parts import Due, Feed, Parts, batch_shapes, held_metric_shapes, loops, metric_shapes
from jaxrl.placement import Placement
from jaxrl.runtime import give_back_memory
from jaxrl.sources import Source, compile_all, explain_program, programs, report_programs
from jaxrl.types import ActOutput, Carry, Evidence, Key, OpenLoop, Params, Step

RINGS = ("ring.", "held.")  # how the names of arrays in rings begin


class Programs:
    """The functions of the loop. Arguments marked "donated" must not be used afterwards.

    All of them only enqueue work; nothing here waits for a device.
    """

    def __init__(self, parts: Parts, without: Container[str] = ()):
        """`without`: names of programs that nobody will call."""
        self._parts, self._place = parts, Placement(parts)
        self._split = self._place.split
        self.kinds = metrics.kinds_of(metric_shapes(parts))
        self.held_kinds = metrics.kinds_of(held_metric_shapes(parts))
        sources = chunk.sources(parts) | programs(parts, metrics.empty(self.kinds))
        sources |= report_programs(parts)
        sources = {name: source for name, source in sources.items() if name not in without}
        self.compiled = compile_all(sources, parts.machine.platform)
        give_back_memory()
        self._key_at_replay = jax.device_put(parts.key, self._place.store) if self._split else parts.key

    def of(self, parts: Parts) -> "Programs":
        """The same of a run that differs in its key only; nothing is compiled again."""
        other = copy.copy(self)
        other._parts, other._place = parts, Placement(parts)
        other._key_at_replay = jax.device_put(parts.key, other._place.store)
        return other

    def put(self, tree: Any) -> Any:
        """Explicit transfer to the learner's devices, a copy to each."""
        return self._place.layout.put(tree)

    def _put_store(self, number: int) -> jax.Array:
        """The same of a number, to beside replay."""
        found = np.int32(number)
        return jax.device_put(found, self._place.store) if self._split else self.put(found)

    @property
    def groups(self) -> int:
        """Of this process's training environments: there must be something to learn from in each of them."""
        place = self._place
        return place.groups // place.layout.processes if place.shares else place.groups

    @property
    def shares(self) -> bool:
        """Whether each process has training environments of its own."""
        return self._place.shares

    def put_step(self, step: Step) -> Step:
        """The same of a row of each training environment of this process: to where they belong."""
        return self._place.layout.put_rows(step, self._parts.replay.streams)

    def put_rows(self, step: Step) -> Step:
        """The same of an evaluation's environments."""
        return self._place.layout.put_rows(step, self._parts.eval_envs)

    def put_named(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """The same of arrays of a RunState by dotted name, none of a ring."""
        return {
            name: self._place.layout.put_rows(x, self._parts.replay.streams)
            if name.startswith("carry.")
            else self.put(x)
            for name, x in arrays.items()
        }

    def whole(self, tree: Any) -> Any:
        """Arrays that may be divided over processes, on the host."""
        if self._place.layout.processes > 1:
            tree = jax.jit(lambda x: x, out_shardings=self._place.whole)(tree)
        return jax.device_get(tree)

    def act(
        self, policy: Params, carry: Carry, counter: jax.Array, step: Step
    ) -> tuple[ActOutput, jax.Array]:
        """Actions of the training environments; carry and counter are donated, the latter comes back + 1."""
        return self.compiled["act"].call(policy, carry, counter, step, self._parts.key)

    def eval_act(self, policy: Params, carry: Carry, counter: jax.Array, step: Step, key: Key):
        """The same for the evaluation environments."""
        return self.compiled["eval_act"].call(policy, carry, counter, step, key)

    def insert(
        self, rings: tuple[Ring, Ring | None], step: Step, out: ActOutput, held: np.ndarray | None
    ) -> tuple[Ring, Ring | None]:
        """Writes one row; rings (training, held out) are donated. `held` [N] says which gets which stream."""
        ring, held_ring = rings
        if "insert" not in self.compiled:
            return rings
        row = step, out.action, out.latents
        if self._split:
            row = jax.device_put(row, self._place.stored_rows)
        if held is None:
            return self.compiled["insert"].call(ring, *row), None
        masks = jax.device_put((~held, held), self._place.stored_rows)
        ring = self.compiled["insert"].call(ring, *row, masks[0])
        return ring, self.compiled["insert_held"].call(held_ring, *row, masks[1])

    def learn(
        self, state: Any, ring: Ring, totals: jax.Array, evidence: Evidence | None, due: Due
    ) -> tuple[Any, Ring, jax.Array, Evidence | None, Params]:
        """The updates that are due; all arrays are donated. Returns the new policy too."""
        numbers = range(due.done, due.done + due.updates)
        if not self._split:
            policy, each = None, due.updates if loops(self._parts) else 1
            for number in numbers[::each]:
                plan = self.put(np.array([each, number, due.agent_steps], np.int32))
                state, ring, totals, evidence, policy = self.compiled["learn"].call(
                    state, ring, totals, evidence, plan, self._parts.key
                )
            return state, ring, totals, evidence, policy
        now = jax.device_put(np.int32(due.agent_steps), self._place.store)
        for number in numbers:
            at = jax.device_put(np.int32(number), self._place.store)
            ring, batch, window = self.compiled["sample"].call(ring, at, now, self._key_at_replay)
            number = self.put(np.int32(number))
            state, totals, evidence, latents = self.compiled["update"].call(
                state, self._learned(batch, self._parts.replay), totals, evidence, number, self._parts.key
            )
            latents = jax.device_put(latents, self._place.store)
            ring = self.compiled["refresh"].call(ring, window, latents)
        return state, ring, totals, evidence, self.compiled["policy"].call(state)

    def run_chunk(self, moving: Moving, plan: ChunkPlan) -> tuple[Moving, Told]:
        """Many vector steps with their updates; `moving` is donated. Told: [LONGEST, N]."""
        return self.compiled["chunk"].call(moving, self.put(plan), self._parts.key)

    def explain(self, state: Any, evidence: Evidence) -> dict[str, jax.Array]:
        """Which numbers of the kept update are finite, by name, with the state of now. Compiles."""
        assert self._parts.learner.explain is not None
        source = Source(explain_program(self._parts.learner.explain), (state, evidence, self._parts.key))
        return compile_all({"explain": source}, self._parts.machine.platform)["explain"].call(*source.shapes)

    def finite(self, arrays: dict[str, jax.Array]) -> jax.Array:
        """[L] bool, in sorted order of their names whether the elements of L arrays are all finite.

        Args:
          arrays: the floating ones of the learner, policy and carry, and of the rings or not, by dotted
            name as in a RunState; none of size 0.
        """
        names = sorted(arrays)
        found = self.compiled["finite"].call(*(arrays[k] for k in names if not k.startswith(RINGS)))
        if rings := [arrays[k] for k in names if k.startswith(RINGS)]:
            there = self.compiled["finite_rings"].call(*rings)
            return self.compiled["finite_joined"].call(found, self.put(there))
        return found

    def validate(self, state: Any, held_ring: Ring, env_steps: int) -> jax.Array:
        """Packed world-model losses of a batch from the held-out ring."""
        assert self._parts.held is not None
        at = self._put_store(env_steps)
        batch = self.compiled["held_batch"].call(held_ring, at, self._key_at_replay)
        batch = self._learned(batch, self._parts.held)
        return self.compiled["validate"].call(state, batch, self.put(np.int32(env_steps)), self._parts.key)

    @property
    def reports(self) -> bool:
        """Whether there is anything to `report`: a world model of pictures, in a run that is filmed."""
        return "report" in self.compiled

    def report(self, state: Any, ring: Ring, env_steps: int) -> tuple[OpenLoop, jax.Array]:
        """What the world model imagines of sequences from replay, and is_first [T, B] of their rows."""
        at = self._put_store(env_steps)
        batch = self.compiled["report_batch"].call(ring, at, self._key_at_replay)
        batch = self.put(batch) if self._split else batch
        return self.compiled["report"].call(state, batch, self.put(np.int32(env_steps)), self._parts.key)

    def _learned(self, batch: Any, feed: Feed) -> Any:
        """A batch where the learner takes it; from another device it must be moved."""
        if not self._split:
            return batch
        return jax.device_put(batch, jax.tree.broadcast(self._place.batch(feed), batch))

    def init(self) -> Any:
        """A new learner state, from the run's key."""
        state = self.compiled["init"].call(self._parts.key)
        allowed = self._parts.replay.spaces.allowed  # in a population, it is another game that was compiled
        return state if allowed is None else state.replace(allowed=self.put(allowed))

    def empty_rings(self) -> tuple[Ring, Ring | None]:
        feeds, places = (self._parts.replay, self._parts.held), self._place.ring
        if self._place.layout.count == 1 or self._split:
            with jax.default_device(self._parts.machine.replay):
                ring, held = (x.init() if x else None for x in feeds)
        else:  # no device need have room for all of it
            ring, held = (jax.jit(x.init, out_shardings=places)() if x else None for x in feeds)
        assert ring is not None
        return ring, held

    def carry(self) -> Carry:
        """Recurrent state of the training environments before their first row."""
        return self.compiled["carry"].call()

    def eval_carry(self) -> Carry:
        return self.compiled["eval_carry"].call()

    def empty(self, before: np.ndarray | None = None) -> jax.Array:
        """Packed metrics without values, to follow those of `before`, if any."""
        return self.put(metrics.empty(self.kinds) if before is None else metrics.flushed(self.kinds, before))

    def no_evidence(self) -> Evidence | None:
        """No update was bad so far; None where nothing is learned."""
        if self._parts.learner.update is None:
            return None
        batch = batch_shapes(self._parts.replay, self._parts.key)
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), batch)
        nothing = Evidence(number=np.array(-1, np.int32), batch=zeros)
        places = jax.tree.broadcast(self._place.evidence, nothing)
        if self._place.layout.processes == 1:
            return jax.device_put(nothing, places)
        return jax.tree.map(
            lambda x, place: jax.make_array_from_callback(x.shape, place, x.__getitem__), nothing, places
        )

    def policy(self, state: Any) -> Params:
        """Parameters for acting, copied, so that they survive the donation of `state`."""
        return self.compiled["policy"].call(state)
