"""The loop as one program, where the environments are on the device with the learner.

On an accelerator a chunk of many vector steps is one dispatch. A CPU runs the body of a loop on one core, so
there each vector step is a handful of dispatches (jaxrl/onboard.py) of the same functions.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import keys, metrics
from jaxrl.axis import Axis
from jaxrl.envs.batch import EnvCarry
from jaxrl.feeds.ring import Ring
from jaxrl.parts import Parts, batch_shapes, loops, metric_shapes, shaped
from jaxrl.placement import Placement
from jaxrl.sources import Source, act_program, insert_program, learn_program
from jaxrl.types import Array, Carry, Evidence, Key, Params, Step

LONGEST = 1_024  # vector steps of a chunk


@struct.dataclass(kw_only=True)
class Moving:
    """Everything that a chunk of the loop on the device changes."""

    learner: Any
    ring: Ring
    totals: jax.Array
    evidence: Evidence | None
    policy: Params
    carry: Carry
    counter: jax.Array
    env: EnvCarry
    step: Step

    @property
    def newest(self) -> tuple[EnvCarry, Step]:
        """State and newest rows of the environments."""
        return self.env, self.step


@struct.dataclass(kw_only=True)
class ChunkPlan:
    """What a chunk is to do."""

    rows: Array  # [] i32, vector steps
    done: Array  # [] i32, updates made before
    agent_steps: Array  # [] i32, before
    due: Array  # [LONGEST] i32, updates after each row was inserted


def chunk_program(parts: Parts, axis: Axis | None = None) -> Callable[..., Any]:
    """The loop itself: acts, inserts, learns and steps, `plan.rows` times; no row leaves the device.

    With `axis` for all members of a population.
    """
    learner, replay, place = parts.learner, parts.replay, Placement(parts)
    assert parts.batched is not None
    batched = parts.batched.on(place.layout, replay.streams)
    advance, shown, told = batched.advance, batched.shown, batched.told
    act, n = act_program(learner, "train", keys.ACT), replay.streams
    insert = insert_program(place.feed(replay), parts.config.env.clip_reward)
    learn = learn_program(learner, place.feed(replay), True) if learner.update else None
    if axis:
        advance, shown, told = axis.flat(advance), axis.flat(shown), axis.flat(told)
        act, insert, learn = axis.each(act), axis.each(insert), learn and axis.each(learn, shared=(4,))

    def chunk(moving: Moving, plan: ChunkPlan, key: Key):
        def one(i, x):
            m, log, done = x
            out, counter = act(m.policy, m.carry, m.counter, m.step, key)
            m = m.replace(carry=out.carry, counter=counter)
            if learn is not None:
                m = m.replace(ring=insert(m.ring, m.step, out.action, out.latents))
                numbers = jnp.stack([plan.due[i], done, plan.agent_steps + (i + 1) * n])
                before, updates = (m.learner, m.ring, m.totals, m.evidence), learn
                after = jax.lax.cond(
                    plan.due[i] > 0, lambda: updates(*before, numbers, key), lambda: (*before, m.policy)
                )
                names = "learner", "ring", "totals", "evidence", "policy"
                m = m.replace(**dict(zip(names, after, strict=True)))
            env, step = advance(m.env, out.action)
            step = shown(env, step)
            log = jax.tree.map(lambda buffer, x: buffer.at[i].set(x), log, told(env, step))
            return m.replace(env=env, step=step), log, done + plan.due[i]

        log = jax.eval_shape(told, moving.env, moving.step)
        log = jax.tree.map(lambda x: jnp.zeros((LONGEST, *x.shape), x.dtype), log)
        moving, log, _ = jax.lax.fori_loop(0, plan.rows, one, (moving, log, plan.done))
        return moving, log

    return chunk


def places(parts: Parts) -> Moving:
    """Shardings of a chunk's arrays, each of a whole subtree."""
    place = Placement(parts)
    return Moving(
        learner=place.whole,
        ring=place.ring,
        totals=place.whole,
        evidence=place.evidence if parts.learner.update else None,
        policy=place.whole,
        carry=place.rows,
        counter=place.whole,
        env=place.rows,
        step=place.rows,
    )


def shapes(parts: Parts) -> tuple[Moving, ChunkPlan, Key]:
    """Arguments of a chunk, as ShapeDtypeStructs."""
    learner, replay, batched = parts.learner, parts.replay, parts.batched
    assert batched is not None
    n = replay.streams
    s: Any = jax.ShapeDtypeStruct
    number, key = s((), jnp.int32), jax.eval_shape(lambda: parts.key)
    state = jax.eval_shape(learner.init, key)
    env, step = jax.eval_shape(batched.begin, s((n,), jnp.uint32))
    moving = Moving(
        learner=state,
        ring=jax.eval_shape(replay.init),
        totals=jax.eval_shape(lambda: metrics.empty(metrics.kinds_of(metric_shapes(parts)))),
        evidence=Evidence(number=number, batch=batch_shapes(replay, key)) if learner.update else None,
        policy=jax.eval_shape(learner.policy_params, state),
        carry=jax.eval_shape(lambda: learner.initial_carry(n)),
        counter=number,
        env=env,
        step=jax.eval_shape(batched.shown, env, step),
    )
    plan = ChunkPlan(rows=number, done=number, agent_steps=number, due=s((LONGEST,), jnp.int32))
    whole = Placement(parts).whole
    return shaped((moving, plan, key), (places(parts), whole, whole))


def sources(parts: Parts) -> dict[str, Source]:
    """The chunk, where there is one."""
    if parts.batched is None or not loops(parts):
        return {}
    place = Placement(parts)
    told = place.layout.rows(parts.replay.streams, axis=1)
    return {"chunk": Source(chunk_program(parts), shapes(parts), (0,), (places(parts), told))}
