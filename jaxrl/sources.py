"""The programs of a run before compilation: what each computes, from which shapes, and what it donates."""

import concurrent.futures
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import keys, metrics
from jaxrl.demand import Demand
from jaxrl.feeds.replay import Replay
from jaxrl.feeds.ring import row_of
from jaxrl.ops.finite import all_finite, named_floats
from jaxrl.parts import SKIPPED, Parts, batch_shapes, loops, shaped, step_shapes, with_streak
from jaxrl.placement import AnyFeed, Placement
from jaxrl.runtime import compiler_options
from jaxrl.types import Array, Evidence, Key, Learner

REPORTED = 6  # sequences of which is shown what the world model imagines


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program: `call(*args)` runs it."""

    call: Callable[..., Any]
    seconds: float  # that its compilation took
    demand: Demand  # of memory
    flops: float  # by the compiler's count, loop bodies once


@dataclasses.dataclass(frozen=True)
class Source:
    """A program before compilation: function, shapes of its arguments, which of them are donated."""

    function: Callable[..., Any]
    shapes: tuple[Any, ...]
    donate: tuple[int, ...] = ()
    out: Any = None  # shardings of what comes out, a prefix tree; None: as the compiler likes
    shared: tuple[int, ...] = ()  # arguments that are the same for all members of a population


def programs(parts: Parts, totals: Array) -> dict[str, Source]:
    """All programs that the parts need; the slowest to compile first."""
    learner, replay, config = parts.learner, parts.replay, parts.config
    place = Placement(parts)
    home, store, shared = place.whole, place.store, place.batch(replay)
    key = shaped(jax.eval_shape(lambda: parts.key), home)
    key_store = shaped(key, store)
    state = shaped(jax.eval_shape(learner.init, key), home)
    policy = shaped(jax.eval_shape(learner.policy_params, state), home)
    totals = shaped(totals, home)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    here, there = shaped(number, home), shaped(number, store)
    ring = shaped(jax.eval_shape(replay.init), place.ring)
    batch = shaped(batch_shapes(replay, key), shared)
    evidence = Evidence(number=here, batch=batch)
    found = {}
    if learner.update is not None and not place.split:
        plan = shaped(jax.ShapeDtypeStruct((3,), jnp.int32), home)
        arguments = state, ring, totals, evidence, plan, key
        out = home, place.ring, home, place.evidence, home
        function = learn_program(learner, place.feed(replay), loops(parts))
        found["learn"] = Source(function, arguments, (0, 1, 2, 3), out, shared=(4,))
    if learner.update is not None and place.split:
        window = shaped(jax.eval_shape(replay.sample, ring, key, number)[2], store)
        latents = shaped(jax.eval_shape(learner.update, state, batch, key).latents, store)
        arguments = state, batch, totals, evidence, here, key
        out = home, home, place.evidence, home
        found["update"] = Source(update_program(learner), arguments, (0, 2, 3), out)
        found["sample"] = Source(sample_program(replay, keys.LEARN), (ring, there, there, key_store), (0,))
        found["refresh"] = Source(replay.write_latents, (ring, window, latents), (0,))
    for name, n, rows, mode, purpose in (
        ("act", replay.streams, place.rows, "train", keys.ACT),
        ("eval_act", parts.eval_envs, place.judges, config.eval.mode, keys.EVAL),
    ):
        step = shaped(step_shapes(replay.spaces, n), rows)
        carry = shaped(jax.eval_shape(lambda n=n: learner.initial_carry(n)), rows)
        arguments = policy, carry, here, step, key
        found[name] = Source(act_program(learner, mode, purpose), arguments, (1, 2), (rows, home))
    if learner.update is not None:
        found |= insert_programs(place, state)
    found["init"] = Source(lambda key: learner.init(keys.key_for(key, keys.INIT, 0)), (key,), (), home)
    found["carry"] = Source(lambda: learner.initial_carry(replay.streams), (), (), place.rows)
    found["eval_carry"] = Source(lambda: learner.initial_carry(parts.eval_envs), (), (), place.judges)
    found["policy"] = Source(learner.policy_params, (state,), (), home)
    carry = shaped(jax.eval_shape(lambda: learner.initial_carry(replay.streams)), place.rows)
    held = shaped(jax.eval_shape(parts.held.init), place.ring) if parts.held else None
    rest = named_floats({"learner": state, "policy": policy, "carry": carry})
    return found | finite_programs(place, rest, named_floats({"ring": ring, "held": held}))


def insert_programs(place: Placement, state: Any) -> dict[str, Source]:
    """What writes rows into the rings, and what is asked of held-out ones. state: shapes of the learner's."""
    parts, replay, learner = place.parts, place.parts.replay, place.parts.learner
    home, store, clip = place.whole, place.store, parts.config.env.clip_reward
    number, key = jax.ShapeDtypeStruct((), jnp.int32), jax.eval_shape(lambda: parts.key)
    step = step_shapes(replay.spaces, replay.streams)
    carry = jax.eval_shape(lambda: learner.initial_carry(replay.streams))
    policy = jax.eval_shape(learner.policy_params, state)
    out = jax.eval_shape(lambda *a: learner.act(*a, "train"), policy, carry, step, key)
    row = shaped((step, out.action, out.latents), place.stored_rows)
    ring = shaped(jax.eval_shape(replay.init), place.ring)
    if not parts.held:
        return {"insert": Source(insert_program(place.feed(replay), clip), (ring, *row), (0,), place.ring)}
    mask = shaped(jax.ShapeDtypeStruct((replay.streams,), jnp.bool_), place.stored_rows)
    held = shaped(jax.eval_shape(parts.held.init), place.ring)
    batch = shaped(batch_shapes(parts.held, key), place.batch(parts.held))
    peek, drawn = (
        peek_program(place.feed(parts.held), keys.HOLDOUT),
        store if place.split else place.batch(parts.held),
    )
    return {
        "insert": Source(insert_program(place.feed(replay), clip), (ring, *row, mask), (0,), place.ring),
        "insert_held": Source(
            insert_program(place.feed(parts.held), clip), (held, *row, mask), (0,), place.ring
        ),
        "held_batch": Source(peek, (held, *shaped((number, key), store)), (), drawn),
        "validate": Source(validate_program(learner), (state, batch, *shaped((number, key), home)), (), home),
    }


def report_programs(parts: Parts) -> dict[str, Source]:
    """What a world model imagines of sequences from replay, if that is to be seen; else nothing."""
    learner, replay = parts.learner, parts.replay
    if not (parts.config.video_every and learner.report and isinstance(replay, Replay)):
        return {}
    feed = dataclasses.replace(replay, batch=min(replay.batch, REPORTED), online=False)
    place = Placement(parts)
    home, store = place.whole, place.store
    number, key = jax.ShapeDtypeStruct((), jnp.int32), jax.eval_shape(lambda: parts.key)
    ring = shaped(jax.eval_shape(feed.init), place.ring)
    state = shaped(jax.eval_shape(learner.init, key), home)
    batch, drawn = (
        shaped(batch_shapes(feed, key), place.batch(feed)),
        store if place.split else place.batch(feed),
    )
    there, here = (shaped((number, key), device) for device in (store, home))
    return {
        "report_batch": Source(peek_program(place.feed(feed), keys.REPORT), (ring, *there), (), drawn),
        "report": Source(report_program(learner, feed.context), (state, batch, *here), (), home),
    }


def finite_programs(place: Placement, rest: dict[str, Any], rings: dict[str, Any]) -> dict[str, Source]:
    """For arrays and for those in rings, which may lie elsewhere, and for both, sorted by name."""
    home, order = place.whole, np.argsort([*rest, *rings])
    flags = shaped([jax.ShapeDtypeStruct((len(x),), jnp.bool_) for x in (rest, rings)], home)
    joined = Source(lambda *x: jnp.concatenate(x)[order], tuple(flags), (), home)
    one = Source(all_finite, tuple(rest.values()), (), home)
    other = Source(all_finite, tuple(rings.values()), (), place.store)
    return {"finite": one, "finite_rings": other, "finite_joined": joined}


def act_program(learner: Learner, mode: str, purpose: int) -> Callable[..., Any]:
    def act(policy, carry, counter, step, key):
        return learner.act(policy, carry, step, keys.key_for(key, purpose, counter), mode), counter + 1

    return act


def insert_program(feed: AnyFeed, clip_reward: bool) -> Callable[..., Any]:
    def insert(ring, step, action, latents, where=None):
        if clip_reward:
            step = step.replace(reward=jnp.sign(step.reward))
        return feed.insert(ring, row_of(step, action, latents), where)

    return insert


def learn_program(learner: Learner, feed: AnyFeed, many: bool) -> Callable[..., Any]:
    """plan is i32 [3]: updates to make (if `many`, else one), updates made before, agent_steps."""
    sample, update = sample_program(feed, keys.LEARN), update_program(learner)

    def learn(state, ring, totals, evidence, plan, key):
        def one(i, carry):
            state, ring, totals, evidence = carry
            ring, batch, window = sample(ring, plan[1] + i, plan[2], key)
            state, totals, evidence, latents = update(state, batch, totals, evidence, plan[1] + i, key)
            return state, feed.write_latents(ring, window, latents), totals, evidence

        carry = state, ring, totals, evidence
        carry = jax.lax.fori_loop(0, plan[0], one, carry) if many else one(0, carry)
        return *carry, learner.policy_params(carry[0])

    return learn


def sample_program(feed: AnyFeed, purpose: int) -> Callable[..., Any]:
    def sample(ring, counter, agent_steps, key):
        return feed.sample(ring, jax.random.fold_in(keys.key_for(key, purpose, counter), 0), agent_steps)

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


def peek_program(feed: AnyFeed, purpose: int) -> Callable[..., Any]:
    """A batch that is only looked at: the ring stays as it is."""
    sample = sample_program(feed, purpose)
    return lambda ring, counter, key: sample(ring, counter, jnp.int32(0), key)[1]


def validate_program(learner: Learner) -> Callable[..., Any]:
    assert learner.validate is not None
    validate = learner.validate

    def run(state, batch, counter, key):
        return metrics.pack(validate(state, batch, learner_key(key, keys.HOLDOUT, counter)))

    return run


def report_program(learner: Learner, context: int) -> Callable[..., Any]:
    """OpenLoop, and is_first [T, B] of its rows."""
    assert learner.report is not None
    report = learner.report

    def run(state, batch, counter, key):
        return report(state, batch, learner_key(key, keys.REPORT, counter)), batch.is_first[context:]

    return run


def compile_all(sources: dict[str, Source], platform: str) -> dict[str, Compiled]:
    """Traces the programs one after another and compiles them side by side."""
    options = compiler_options(platform)

    def compile_one(lowered):
        start = time.monotonic()
        program = lowered.compile(compiler_options=options)
        seconds = time.monotonic() - start
        cost = program.cost_analysis() or {}
        return Compiled(program, seconds, Demand.of(program), cost.get("flops", 0.0))

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = {}
        for name, source in sources.items():
            lowered = jax.jit(source.function, donate_argnums=source.donate, out_shardings=source.out).lower(
                *source.shapes
            )
            jobs[name] = pool.submit(compile_one, lowered)
        return {name: job.result() for name, job in jobs.items()}
