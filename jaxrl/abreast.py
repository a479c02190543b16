"""Collecting for all members of a population at once: one program acts for all, one learns for all."""

import dataclasses
import time

import jax
import numpy as np

from jaxrl import onboard
from jaxrl.chunk import LONGEST, Moving
from jaxrl.collect import Run, count_episodes, ticked
from jaxrl.envs.hosted import Hosted
from jaxrl.exits import Diverged
from jaxrl.lockstep import Gather, Population, Together
from jaxrl.parts import Due
from jaxrl.state import RunState


def gather_of(p: Population) -> Gather:
    """What steps the environments of this population, and learns."""
    return on_device if p.lead.parts.batched else on_host


def on_host(p: Population, all: Together, until: int, deadline: float) -> Together:
    """As jaxrl.collect.collect, for all members."""
    while all.going and all.counters.env_steps < until and not p.stop() and time.monotonic() < deadline:
        assert p.members is not None and all.joint is not None
        p.lead.faults.at("act")
        joint, action = p.members.act(all.joint, all.steps)
        actions = p.wait("policy", lambda action=action: jax.device_get(action))
        for m in all.going:
            r = p.runs[m]
            r.env.send(actions[m])
            if r.episodes:
                r.episodes.add(all.steps[m], actions[m], all.states[m].counters.env_steps)
        all, due = ticked_all(p, dataclasses.replace(all, joint=joint))
        if due.updates:
            all = learn(p, all, due)
        for m in all.going:
            all = received(p, all, m)
    return all


def ticked_all(p: Population, all: Together) -> tuple[Together, Due]:
    """After one more row of every environment of every member; updates are due for all or for none."""
    before, due = all.counters, 0
    for m in all.going:
        r = p.runs[m]
        state, due = ticked(r, all.states[m], np.zeros(r.env.num_envs, bool))
        counters = state.counters.replace(updates=state.counters.updates + due)
        all = all.changed(m, state.replace(counters=counters))
    agent_steps = all.counters.env_steps // p.lead.parts.config.env.action_repeat
    return all, Due(due, before.updates, agent_steps)


def learn(p: Population, all: Together, due: Due) -> Together:
    """The updates, only enqueued; as jaxrl.collect.learn, for all members."""
    assert p.members is not None and all.joint is not None
    p.lead.faults.at("learn")
    p.lead.profiler.begin(due.done, due.updates)
    joint, policy = p.members.learn(all.joint, due)
    p.lead.profiler.end(due.done + due.updates, policy)
    acts = all.newest if p.lead.parts.config.overlap else policy
    return dataclasses.replace(all, joint=joint.replace(policy=acts), newest=policy)


def received(p: Population, all: Together, number: int) -> Together:
    """The next row of a member's environments."""
    r, state = p.runs[number], all.states[number]
    try:
        with r.reports.border(state.counters):
            step = p.wait("env", r.env.recv)
    except Diverged as error:
        return all.without(number, error)
    state = count_episodes(r, state, step, r.env.outcome, state.counters.env_steps)
    tell(r, state)
    return all.changed(number, state, step)


def on_device(p: Population, all: Together, until: int, deadline: float) -> Together:
    """As jaxrl.onboard.collect: many vector steps of all members in one program."""
    assert p.members is not None
    env, step = p.members.stacked([hosted(r).current for r in p.runs])
    clock, pace = p.lead.plan.clock, p.lead.pace
    while all.going and all.counters.env_steps < until and not p.stop() and time.monotonic() < deadline:
        assert all.joint is not None
        p.lead.faults.at("act")
        began, before, joint = time.monotonic(), all.counters, all.joint
        rows, due = min(pace.rows, (until - before.env_steps) // clock.stride), np.zeros(LONGEST, np.int32)
        for i in range(rows):
            all, one = ticked_all(p, all)
            due[i] = one.updates
        moving = Moving(**{name: getattr(joint, name) for name in onboard.MOVING}, env=env, step=step)
        moving, told = p.members.run_chunk(moving, onboard.planned(p.lead, before, rows, due))
        (env, step), joint = (
            moving.newest,
            joint.replace(**{name: getattr(moving, name) for name in onboard.MOVING}),
        )
        all = dataclasses.replace(all, joint=joint, newest=joint.policy)
        told = p.wait("device", lambda told=told: jax.device_get(told))
        for m in all.going:
            reward, flags = told.reward[:rows, m], told.flags[:rows, m]
            state = onboard.counted(p.runs[m], all.states[m], reward, flags, before.env_steps)
            tell(p.runs[m], state)
            all = all.changed(m, state)
        pace.rows = onboard.adjusted(rows, time.monotonic() - began)
    for m, r in enumerate(p.runs):  # for whoever saves or shows them
        hosted(r).replace(*p.members.one((env, step), m))
    return dataclasses.replace(all, steps=tuple(hosted(r).current[1] for r in p.runs))


def hosted(r: Run) -> Hosted:
    assert isinstance(r.env, Hosted)
    return r.env


def tell(r: Run, state: RunState) -> None:
    r.sinks.progress(state.counters.env_steps, r.plan.clock.steps, {"updates": state.counters.updates})
