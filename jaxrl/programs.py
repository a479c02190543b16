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
from jaxrl.runtime import Machine, compiler_options, give_back_memory
from jaxrl.types import ActOutput, Array, Batch, Carry, Key, Learner, Metrics, Params, Spaces, Step


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
        self, state: Any, ring: Ring, totals: jax.Array, k: int, done: int
    ) -> tuple[Any, Ring, jax.Array, Params]:
        """k updates, numbered from `done`; state, ring and totals are donated. Returns the new policy too."""
        if not self._split:
            policy, each = None, k if loops(self._parts) else 1
            for number in range(done, done + k, each):
                plan = self.put(np.array([each, number], np.int32))
                state, ring, totals, policy = self.compiled["learn"].call(
                    state, ring, totals, plan, self._parts.key
                )
            return state, ring, totals, policy
        for number in range(done, done + k):
            at = jax.device_put(np.int32(number), self._parts.machine.replay)
            ring, batch, window = self.compiled["sample"].call(ring, at, self._key_at_replay)
            number = self.put(np.int32(number))
            state, totals, latents = self.compiled["update"].call(
                state, self.put(batch), totals, number, self._parts.key
            )
            latents = jax.device_put(latents, self._parts.machine.replay)
            ring = self.compiled["refresh"].call(ring, window, latents)
        return state, ring, totals, self.compiled["policy"].call(state)

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

    def empty(self) -> jax.Array:
        """Packed metrics without values."""
        return self.put(metrics.empty(self.kinds))

    def policy(self, state: Any) -> Params:
        """Parameters for acting, copied, so that they survive the donation of `state`."""
        return self.compiled["policy"].call(state)


def metric_shapes(parts: Parts) -> Metrics:
    if parts.learner.update is None:
        return {}
    state = jax.eval_shape(parts.learner.init, parts.key)
    return jax.eval_shape(
        parts.learner.update, state, batch_shapes(parts.replay, parts.key), parts.key
    ).metrics


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
    found = {}
    if learner.update is not None and not split:
        plan = shaped(jax.ShapeDtypeStruct((2,), jnp.int32), home)
        found["learn"] = Source(
            learn_program(learner, replay, loops(parts)), (state, ring, totals, plan, key), (0, 1, 2)
        )
    if learner.update is not None and split:
        batch = shaped(batch_shapes(replay, key), home)
        window = shaped(jax.eval_shape(replay.sample, ring, key)[2], store)
        latents = shaped(jax.eval_shape(learner.update, state, batch, key).latents, store)
        found["update"] = Source(update_program(learner), (state, batch, totals, here, key), (0, 2))
        found["sample"] = Source(sample_program(replay, keys.LEARN), (ring, there, key_store), (0,))
        found["refresh"] = Source(replay.write_latents, (ring, window, latents), (0,))
    for name, n, mode, purpose in (
        ("act", replay.streams, "train", keys.ACT),
        ("eval_act", parts.eval_envs, config.eval.mode, keys.EVAL),
    ):
        step = shaped(step_shapes(replay.spaces, n), home)
        carry = shaped(jax.eval_shape(lambda n=n: learner.initial_carry(n)), home)
        found[name] = Source(act_program(learner, mode, purpose), (policy, carry, here, step, key), (1, 2))
    if learner.update is not None:
        carry = jax.eval_shape(lambda: learner.initial_carry(replay.streams))
        step = step_shapes(replay.spaces, replay.streams)
        out = jax.eval_shape(lambda *a: learner.act(*a, "train"), policy, carry, step, key)
        row = shaped((step, out.action, out.latents), store)
        mask = (shaped(jax.ShapeDtypeStruct((replay.streams,), jnp.bool_), store),) if parts.held else ()
        clip = config.env.clip_reward
        found["insert"] = Source(insert_program(replay, clip), (ring, *row, *mask), (0,))
        if parts.held:
            held = shaped(jax.eval_shape(parts.held.init), store)
            found["insert_held"] = Source(insert_program(parts.held, clip), (held, *row, *mask), (0,))
            found["held_batch"] = Source(held_program(parts.held), (held, there, key_store))
            batch = shaped(batch_shapes(parts.held, key), home)
            found["validate"] = Source(validate_program(learner), (state, batch, here, key))
    found["init"] = Source(lambda key: learner.init(keys.key_for(key, keys.INIT, 0)), (key,))
    found["carry"] = Source(lambda: learner.initial_carry(replay.streams), ())
    found["eval_carry"] = Source(lambda: learner.initial_carry(parts.eval_envs), ())
    found["policy"] = Source(learner.policy_params, (state,))
    return found


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

    def learn(state, ring, totals, plan, key):
        def one(i, carry):
            state, ring, totals = carry
            ring, batch, window = sample(ring, plan[1] + i, key)
            state, totals, latents = update(state, batch, totals, plan[1] + i, key)
            return state, replay.write_latents(ring, window, latents), totals

        start = state, ring, totals
        state, ring, totals = jax.lax.fori_loop(0, plan[0], one, start) if many else one(0, start)
        return state, ring, totals, learner.policy_params(state)

    return learn


def sample_program(replay: Replay, purpose: int) -> Callable[..., Any]:
    def sample(ring, counter, key):
        return replay.sample(ring, jax.random.fold_in(keys.key_for(key, purpose, counter), 0))

    return sample


def update_program(learner: Learner) -> Callable[..., Any]:
    assert learner.update is not None
    learn = learner.update

    def update(state, batch, totals, counter, key):
        out = learn(state, batch, jax.random.fold_in(keys.key_for(key, keys.LEARN, counter), 1))
        return out.state, metrics.add(totals, out.metrics), out.latents

    return update


def held_program(held: Replay) -> Callable[..., Any]:
    sample = sample_program(held, keys.HOLDOUT)
    return lambda ring, counter, key: sample(ring, counter, key)[1]


def validate_program(learner: Learner) -> Callable[..., Any]:
    assert learner.validate is not None
    validate = learner.validate

    def run(state, batch, counter, key):
        return metrics.pack(
            validate(state, batch, jax.random.fold_in(keys.key_for(key, keys.HOLDOUT, counter), 1))
        )

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
