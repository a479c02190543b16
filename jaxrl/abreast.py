"""Collecting for all members of a population at once: one program acts for all, one learns for all."""

import collections
import dataclasses
import time
from typing import Any

import jax
import numpy as np

from jaxrl import onboard
from jaxrl.chunk import LONGEST, Moving
from jaxrl.collect import Run, count_episodes, ticked
from jaxrl.envs.batch import Told
from jaxrl.envs.hosted import Hosted
from jaxrl.exits import Diverged
from jaxrl.lockstep import Gather, Population, Together
from jaxrl.onboard import Sent
from jaxrl.parts import Due
from jaxrl.state import RunState


def gather_of(p: Population) -> Gather:
    """What steps the environments of this population, and learns."""
    return on_device if p.lead.parts.batched else on_host


def on_host(p: Population, them: Together, until: int, deadline: float) -> Together:
    """As jaxrl.collect.collect, for all members."""
    while them.going and them.counters.env_steps < until and not p.stop() and time.monotonic() < deadline:
        assert p.members is not None and them.joint is not None
        p.lead.faults.at("act")
        joint, action = p.members.act(them.joint, them.steps)
        actions = p.fetch(action)
        for m in them.going:
            r = p.runs[m]
            r.env.send(actions[m])
            if r.episodes:
                r.episodes.add(them.steps[m], actions[m], them.states[m].counters.env_steps)
        them, due = ticked_all(p, dataclasses.replace(them, joint=joint))
        if due.updates:
            them = learn(p, them, due)
        for m in them.going:
            them = received(p, them, m)
    return them


def ticked_all(p: Population, them: Together) -> tuple[Together, Due]:
    """After one more row of every environment of every member; updates are due for all or for none."""
    before, due = them.counters, 0
    for m in them.going:
        r = p.runs[m]
        state, due = ticked(r, them.states[m], np.zeros(r.env.num_envs, bool))
        counters = state.counters.replace(updates=state.counters.updates + due)
        them = them.changed(m, state.replace(counters=counters))
    agent_steps = them.counters.env_steps // p.lead.parts.config.env.action_repeat
    return them, Due(due, before.updates, agent_steps)


def learn(p: Population, them: Together, due: Due) -> Together:
    """The updates, only enqueued; as jaxrl.collect.learn, for all members."""
    assert p.members is not None and them.joint is not None
    p.lead.faults.at("learn")
    p.lead.profiler.begin(due.done, due.updates)
    joint, policy = p.members.learn(them.joint, due)
    p.lead.profiler.end(due.done + due.updates, policy)
    for r in p.runs:
        r.watch.learning()
    acts = them.newest if p.lead.parts.config.overlap else policy
    return dataclasses.replace(them, joint=joint.replace(policy=acts), newest=policy)


def received(p: Population, them: Together, number: int) -> Together:
    """The next row of a member's environments."""
    r, state = p.runs[number], them.states[number]
    try:
        with r.reports.border(state.counters):
            step = p.wait("env", r.env.recv)
    except Diverged as error:
        return p.without(them, number, error)
    state = count_episodes(r, state, step, r.env.outcome, state.counters.env_steps)
    tell(r, state)
    return them.changed(number, state, step)


def on_device(p: Population, them: Together, until: int, deadline: float) -> Together:
    """As jaxrl.onboard.collect: many vector steps of all members in one program, and one such chunk ahead."""
    assert p.members is not None
    at = p.members.stacked([hosted(r).current for r in p.runs])
    waiting: collections.deque[Sent] = collections.deque()
    pace, clock = p.lead.pace, p.lead.plan.clock
    while them.going and them.counters.env_steps < until and not p.stop() and time.monotonic() < deadline:
        p.lead.faults.at("act")
        before = them.counters
        rows = min(pace.rows, (until - before.env_steps) // clock.stride)
        them, at, told = chunk(p, them, at, rows)
        waiting.append(Sent(told, rows, before.env_steps))
        if len(waiting) > 1:
            began = time.monotonic()
            them = heard(p, them, waiting.popleft())
            pace.rows = onboard.adjusted(pace.rows, time.monotonic() - began)
    while waiting:
        them = heard(p, them, waiting.popleft())
    for m, r in enumerate(p.runs):  # for whoever saves or shows them
        hosted(r).replace(*p.members.one(at, m))
    return dataclasses.replace(them, steps=tuple(hosted(r).current[1] for r in p.runs))


def chunk(p: Population, them: Together, at: Any, rows: int) -> tuple[Together, Any, Told]:
    """Many vector steps of all members, only enqueued. at: state and newest rows of their environments."""
    assert p.members is not None and them.joint is not None
    joint, before, due = them.joint, them.counters, np.zeros(LONGEST, np.int32)
    for i in range(rows):
        them, one = ticked_all(p, them)
        due[i] = one.updates
    if due.any():
        p.lead.faults.at("learn")
    moving = Moving(**{name: getattr(joint, name) for name in onboard.MOVING}, env=at[0], step=at[1])
    p.lead.profiler.begin(before.updates, int(due.sum()))
    moving, told = p.members.run_chunk(moving, onboard.planned(p.lead, before, rows, due))
    p.lead.profiler.end(them.counters.updates, told)
    # All that was in `joint` is donated, the policy too, which `newest` names.
    joint = joint.replace(**{name: getattr(moving, name) for name in onboard.MOVING})
    return dataclasses.replace(them, joint=joint, newest=joint.policy), moving.newest, told


def heard(p: Population, them: Together, sent: Sent) -> Together:
    """Counts the episodes of enqueued rows, once the device has come so far."""
    told = p.wait("device", lambda: jax.device_get(sent.told))
    for m in them.going:
        reward, flags = told.reward[: sent.rows, m], told.flags[: sent.rows, m]
        state = onboard.counted(p.runs[m], them.states[m], reward, flags, sent.env_steps)
        tell(p.runs[m], state)
        them = them.changed(m, state)
    return them


def hosted(r: Run) -> Hosted:
    assert isinstance(r.env, Hosted)
    return r.env


def tell(r: Run, state: RunState) -> None:
    r.sinks.progress(state.counters.env_steps, r.plan.clock.steps, {"updates": state.counters.updates})
