"""Every compiled function of a run, with its donation and its device, in one place."""

from typing import Any

import jax
import numpy as np

from jaxrl import chunk, metrics
from jaxrl.chunk import ChunkPlan, Moving
from jaxrl.envs.batch import Told
from jaxrl.feeds.ring import Ring
from jaxrl.parts import Due, Parts, batch_shapes, held_metric_shapes, loops, metric_shapes
from jaxrl.runtime import give_back_memory
from jaxrl.sources import Source, compile_all, explain_program, programs, report_programs
from jaxrl.types import ActOutput, Carry, Evidence, Key, OpenLoop, Params, Step

RINGS = ("ring.", "held.")  # how the names of arrays in rings begin


class Programs:
    """The functions of the loop. Arguments marked "donated" must not be used afterwards.

    All of them only enqueue work; nothing here waits for a device.
    """

    def __init__(self, parts: Parts):
        self._parts = parts
        self._split = parts.machine.replay != parts.machine.learner
        self.kinds = metrics.kinds_of(metric_shapes(parts))
        self.held_kinds = metrics.kinds_of(held_metric_shapes(parts))
        sources = chunk.sources(parts) | programs(parts, metrics.empty(self.kinds), self._split)
        sources |= report_programs(parts)
        self.compiled = compile_all(sources, parts.machine.platform)
        give_back_memory()
        self._key_at_replay = jax.device_put(parts.key, parts.machine.replay)

    def put(self, tree: Any) -> Any:
        """Explicit transfer to the learner's device."""
        return jax.device_put(tree, self._parts.machine.learner)

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
            row = jax.device_put(row, self._parts.machine.replay)
        if held is None:
            return self.compiled["insert"].call(ring, *row), None
        masks = jax.device_put((~held, held), self._parts.machine.replay)
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
        now = jax.device_put(np.int32(due.agent_steps), self._parts.machine.replay)
        for number in numbers:
            at = jax.device_put(np.int32(number), self._parts.machine.replay)
            ring, batch, window = self.compiled["sample"].call(ring, at, now, self._key_at_replay)
            number = self.put(np.int32(number))
            state, totals, evidence, latents = self.compiled["update"].call(
                state, self.put(batch), totals, evidence, number, self._parts.key
            )
            latents = jax.device_put(latents, self._parts.machine.replay)
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
        at = jax.device_put(np.int32(env_steps), self._parts.machine.replay)
        batch = self.compiled["held_batch"].call(held_ring, at, self._key_at_replay)
        return self.compiled["validate"].call(
            state, self.put(batch), self.put(np.int32(env_steps)), self._parts.key
        )

    @property
    def reports(self) -> bool:
        """Whether there is anything to `report`: a world model of pictures, in a run that is filmed."""
        return "report" in self.compiled

    def report(self, state: Any, ring: Ring, env_steps: int) -> tuple[OpenLoop, jax.Array]:
        """What the world model imagines of sequences from replay, and is_first [T, B] of their rows."""
        at = jax.device_put(np.int32(env_steps), self._parts.machine.replay)
        batch = self.compiled["report_batch"].call(ring, at, self._key_at_replay)
        return self.compiled["report"].call(
            state, self.put(batch), self.put(np.int32(env_steps)), self._parts.key
        )

    def init(self) -> Any:
        """A new learner state, from the run's key."""
        return self.compiled["init"].call(self._parts.key)

    def empty_rings(self) -> tuple[Ring, Ring | None]:
        held = self._parts.held
        with jax.default_device(self._parts.machine.replay):
            return self._parts.replay.init(), held.init() if held else None

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
        return self.put(Evidence(number=np.array(-1, np.int32), batch=zeros))

    def policy(self, state: Any) -> Params:
        """Parameters for acting, copied, so that they survive the donation of `state`."""
        return self.compiled["policy"].call(state)
