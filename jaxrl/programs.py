"""Every compiled function of a run, with its donation and its device, in one place."""

import concurrent.futures
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import keys, metrics
from jaxrl.config import Config
from jaxrl.feeds.replay import Replay, Ring, row_of
from jaxrl.ops.finite import all_finite, named_floats
from jaxrl.runtime import Machine, compiler_options, give_back_memory
from jaxrl.types import ActOutput, Array, Batch, Carry, Evidence, Key, Learner, Metrics, Params, Spaces, Step

SKIPPED, IN_A_ROW = "train/opt/skipped", "train/opt/skipped_in_a_row"
RINGS = ("ring.", "held.")  # how the names of arrays in rings begin


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run is made of, before anything is compiled."""

    config: Config  # no "auto" left
    learner: Learner
    replay: Replay
    held: Replay | None  # the ring of held-out episodes
    machine: Machine
    eval_envs: int
    key: Key  # of the run, on the learner's device


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program: `call(*args)` runs it."""

    call: Callable[..., Any]
    seconds: float  # that its compilation took
    temp_bytes: int  # its scratch memory, as the compiler states it
    flops: float  # by the compiler's count, loop bodies once


class Programs:
    """The functions of the loop. Arguments marked "donated" must not be used afterwards.

    All of them only enqueue work; nothing here waits for a device.
    """

    def __init__(self, parts: Parts):
        self._parts = parts
        self._split = parts.machine.replay != parts.machine.learner
        self.kinds = metrics.kinds_of(metric_shapes(parts))
        self.held_kinds = metrics.kinds_of(held_metric_shapes(parts))
        sources = programs(parts, metrics.empty(self.kinds), self._split)
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
        self, state: Any, ring: Ring, totals: jax.Array, evidence: Evidence | None, k: int, done: int
    ) -> tuple[Any, Ring, jax.Array, Evidence | None, Params]:
        """k updates, numbered from `done`; all but the numbers is donated. Returns the new policy too."""
        if not self._split:
            policy, each = None, k if loops(self._parts) else 1
            for number in range(done, done + k, each):
                plan = self.put(np.array([each, number], np.int32))
                state, ring, totals, evidence, policy = self.compiled["learn"].call(
                    state, ring, totals, evidence, plan, self._parts.key
                )
            return state, ring, totals, evidence, policy
        for number in range(done, done + k):
            at = jax.device_put(np.int32(number), self._parts.machine.replay)
            ring, batch, window = self.compiled["sample"].call(ring, at, self._key_at_replay)
            number = self.put(np.int32(number))
            state, totals, evidence, latents = self.compiled["update"].call(
                state, self.put(batch), totals, evidence, number, self._parts.key
            )
            latents = jax.device_put(latents, self._parts.machine.replay)
            ring = self.compiled["refresh"].call(ring, window, latents)
        return state, ring, totals, evidence, self.compiled["policy"].call(state)

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


def metric_shapes(parts: Parts) -> Metrics:
    if (update := parts.learner.update) is None:
        return {}
    state = jax.eval_shape(parts.learner.init, parts.key)
    batch = batch_shapes(parts.replay, parts.key)
    return jax.eval_shape(lambda *a: with_streak(update(*a).metrics), state, batch, parts.key)


def with_streak(found: Metrics) -> Metrics:
    """The metrics of an update, and where skipped ones are counted, how many of them came in a row."""
    return found | {IN_A_ROW: metrics.Streak.of(found[SKIPPED].total)} if SKIPPED in found else found


def held_metric_shapes(parts: Parts) -> Metrics:
    if parts.held is None or parts.learner.validate is None:
        return {}
    state = jax.eval_shape(parts.learner.init, parts.key)
    return jax.eval_shape(parts.learner.validate, state, batch_shapes(parts.held, parts.key), parts.key)


def batch_shapes(replay: Replay, key: Key) -> Batch:
    return jax.eval_shape(replay.sample, jax.eval_shape(replay.init), key)[1]


def step_shapes(spaces: Spaces, n: int) -> Step:
    """A Step of n environments as ShapeDtypeStructs."""
    s: Any = jax.ShapeDtypeStruct
    obs = {k: s((n, *spec.shape), spec.dtype) for k, spec in spaces.obs.items()}
    flag = s((n,), jnp.bool_)
    return Step(obs=obs, reward=s((n,), jnp.float32), is_first=flag, is_last=flag, is_terminal=flag)


@dataclasses.dataclass(frozen=True)
class Source:
    """A program before compilation: function, shapes of its arguments, which of them are donated."""

    function: Callable[..., Any]
    shapes: tuple[Any, ...]
    donate: tuple[int, ...] = ()


def programs(parts: Parts, totals: Array, split: bool) -> dict[str, Source]:
    """All programs that the parts need; the slowest to compile first."""
    learner, replay, config = parts.learner, parts.replay, parts.config
    home, store = parts.machine.learner, parts.machine.replay
    key = shaped(jax.eval_shape(lambda: parts.key), home)
    key_store = shaped(key, store)
    state = shaped(jax.eval_shape(learner.init, key), home)
    policy = shaped(jax.eval_shape(learner.policy_params, state), home)
    totals = shaped(totals, home)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    here, there = shaped(number, home), shaped(number, store)
    ring = shaped(jax.eval_shape(replay.init), store)
    batch = shaped(batch_shapes(replay, key), home)
    evidence = Evidence(number=here, batch=batch)
    found = {}
    if learner.update is not None and not split:
        plan = shaped(jax.ShapeDtypeStruct((2,), jnp.int32), home)
        arguments = state, ring, totals, evidence, plan, key
        found["learn"] = Source(learn_program(learner, replay, loops(parts)), arguments, (0, 1, 2, 3))
    if learner.update is not None and split:
        window = shaped(jax.eval_shape(replay.sample, ring, key)[2], store)
        latents = shaped(jax.eval_shape(learner.update, state, batch, key).latents, store)
        arguments = state, batch, totals, evidence, here, key
        found["update"] = Source(update_program(learner), arguments, (0, 2, 3))
        found["sample"] = Source(sample_program(replay, keys.LEARN), (ring, there, key_store), (0,))
        found["refresh"] = Source(replay.write_latents, (ring, window, latents), (0,))
    for name, n, mode, purpose in (
        ("act", replay.streams, "train", keys.ACT),
        ("eval_act", parts.eval_envs, config.eval.mode, keys.EVAL),
    ):
        step = shaped(step_shapes(replay.spaces, n), home)
        carry = shaped(jax.eval_shape(lambda n=n: learner.initial_carry(n)), home)
        found[name] = Source(act_program(learner, mode, purpose), (policy, carry, here, step, key), (1, 2))
    carry = shaped(jax.eval_shape(lambda: learner.initial_carry(replay.streams)), home)
    held = shaped(jax.eval_shape(parts.held.init), store) if parts.held else None
    if learner.update is not None:
        step = step_shapes(replay.spaces, replay.streams)
        out = jax.eval_shape(lambda *a: learner.act(*a, "train"), policy, carry, step, key)
        row = shaped((step, out.action, out.latents), store)
        mask = (shaped(jax.ShapeDtypeStruct((replay.streams,), jnp.bool_), store),) if parts.held else ()
        clip = config.env.clip_reward
        found["insert"] = Source(insert_program(replay, clip), (ring, *row, *mask), (0,))
        if parts.held:
            found["insert_held"] = Source(insert_program(parts.held, clip), (held, *row, *mask), (0,))
            found["held_batch"] = Source(held_program(parts.held), (held, there, key_store))
            batch = shaped(batch_shapes(parts.held, key), home)
            found["validate"] = Source(validate_program(learner), (state, batch, here, key))
    found["init"] = Source(lambda key: learner.init(keys.key_for(key, keys.INIT, 0)), (key,))
    found["carry"] = Source(lambda: learner.initial_carry(replay.streams), ())
    found["eval_carry"] = Source(lambda: learner.initial_carry(parts.eval_envs), ())
    found["policy"] = Source(learner.policy_params, (state,))
    rest = named_floats({"learner": state, "policy": policy, "carry": carry})
    return found | finite_programs(home, rest, named_floats({"ring": ring, "held": held}))


def finite_programs(home: Any, rest: dict[str, Any], rings: dict[str, Any]) -> dict[str, Source]:
    """For arrays and for those in rings, which may lie elsewhere, and for both, sorted by name."""
    order = np.argsort([*rest, *rings])
    flags = shaped([jax.ShapeDtypeStruct((len(x),), jnp.bool_) for x in (rest, rings)], home)
    joined = Source(lambda *x: jnp.concatenate(x)[order], tuple(flags))
    one, other = (Source(all_finite, tuple(x.values())) for x in (rest, rings))
    return {"finite": one, "finite_rings": other, "finite_joined": joined}


def shaped(tree: Any, device: Any) -> Any:
    """Shapes of a tree, placed on one device."""
    place = jax.sharding.SingleDeviceSharding(device)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def act_program(learner: Learner, mode: str, purpose: int) -> Callable[..., Any]:
    def act(policy, carry, counter, step, key):
        return learner.act(policy, carry, step, keys.key_for(key, purpose, counter), mode), counter + 1

    return act


def insert_program(replay: Replay, clip_reward: bool) -> Callable[..., Any]:
    def insert(ring, step, action, latents, where=None):
        if clip_reward:
            step = step.replace(reward=jnp.sign(step.reward))
        return replay.insert(ring, row_of(step, action, latents), where)

    return insert


def loops(parts: Parts) -> bool:
    """Whether one dispatch makes many updates.

    Not on a CPU: there a dispatch is nothing beside an update, and XLA runs the body of a loop on one core,
    four times slower.
    """
    return parts.machine.platform != "cpu"


def learn_program(learner: Learner, replay: Replay, many: bool) -> Callable[..., Any]:
    """plan is i32 [2]: updates to make (if `many`, else one), updates made before."""
    sample, update = sample_program(replay, keys.LEARN), update_program(learner)

    def learn(state, ring, totals, evidence, plan, key):
        def one(i, carry):
            state, ring, totals, evidence = carry
            ring, batch, window = sample(ring, plan[1] + i, key)
            state, totals, evidence, latents = update(state, batch, totals, evidence, plan[1] + i, key)
            return state, replay.write_latents(ring, window, latents), totals, evidence

        carry = state, ring, totals, evidence
        carry = jax.lax.fori_loop(0, plan[0], one, carry) if many else one(0, carry)
        return *carry, learner.policy_params(carry[0])

    return learn


def sample_program(replay: Replay, purpose: int) -> Callable[..., Any]:
    def sample(ring, counter, key):
        return replay.sample(ring, jax.random.fold_in(keys.key_for(key, purpose, counter), 0))

    return sample


def update_program(learner: Learner) -> Callable[..., Any]:
    assert learner.update is not None
    learn = learner.update

    def update(state, batch, totals, evidence, counter, key):
        out = learn(state, batch, learner_key(key, keys.LEARN, counter))
        skipped = out.metrics[SKIPPED].total > 0 if SKIPPED in out.metrics else None
        totals = metrics.add(totals, with_streak(out.metrics), skipped)
        if skipped is not None:
            new = Evidence(number=counter, batch=batch)
            first = skipped & (evidence.number < 0)
            evidence = jax.lax.cond(first, lambda: new, lambda: evidence)
        return out.state, totals, evidence, out.latents

    return update


def learner_key(key: Key, purpose: int, number: Array) -> Key:
    """For what the learner does with a batch; the batch was drawn with another."""
    return jax.random.fold_in(keys.key_for(key, purpose, number), 1)


def explain_program(explain: Callable[..., Any]) -> Callable[..., Any]:
    def run(state, evidence, key):
        numbers = explain(state, evidence.batch, learner_key(key, keys.LEARN, evidence.number))
        return dict(zip(numbers, jnp.unstack(all_finite(*numbers.values())), strict=True))

    return run


def held_program(held: Replay) -> Callable[..., Any]:
    sample = sample_program(held, keys.HOLDOUT)
    return lambda ring, counter, key: sample(ring, counter, key)[1]


def validate_program(learner: Learner) -> Callable[..., Any]:
    assert learner.validate is not None
    validate = learner.validate

    def run(state, batch, counter, key):
        return metrics.pack(validate(state, batch, learner_key(key, keys.HOLDOUT, counter)))

    return run


def compile_all(sources: dict[str, Source], platform: str) -> dict[str, Compiled]:
    """Traces the programs one after another and compiles them side by side."""
    options = compiler_options(platform)

    def compile_one(lowered):
        start = time.monotonic()
        program = lowered.compile(compiler_options=options)
        seconds = time.monotonic() - start
        cost, memory = program.cost_analysis(), program.memory_analysis()
        return Compiled(program, seconds, memory.temp_size_in_bytes, (cost or {}).get("flops", 0.0))

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = {}
        for name, source in sources.items():
            lowered = jax.jit(source.function, donate_argnums=source.donate).lower(*source.shapes)
            jobs[name] = pool.submit(compile_one, lowered)
        return {name: job.result() for name, job in jobs.items()}
