"""Collecting with the environments on the device: nothing is waited for but what the host is told.

The same functions in the same order as with environments on the host, so the same numbers; but the rows stay
where they are, and what is told of them (reward, flags) comes to the host some rows later.
"""

import collections
import dataclasses
import time

import numpy as np

from jaxrl.chunk import LONGEST, ChunkPlan, Moving
from jaxrl.collect import Run, count_episodes, learn, ticked
from jaxrl.envs.base import CheckedEnv, Outcome
from jaxrl.envs.batch import Told
from jaxrl.envs.hosted import Hosted
from jaxrl.layout import fetched
from jaxrl.parts import Parts, loops
from jaxrl.programs import Programs
from jaxrl.state import Counters, RunState
from jaxrl.types import Params, Step

MOVING = "learner", "ring", "totals", "evidence", "policy", "carry", "counter"  # of the RunState, in a chunk
AHEAD = 8  # single vector steps that the host may be ahead of the device
CHUNK_S = 0.5  # seconds that a chunk should take: how long a stop may have to wait


@dataclasses.dataclass(frozen=True)
class Sent:
    """Vector steps that were enqueued."""

    told: Told  # leaves [M, N] of which the first `rows` count, or [N]
    rows: int
    env_steps: int  # clock before them


def collect(
    r: Run, state: RunState, step: Step, newest: Params, until: int, deadline: float
) -> tuple[RunState, Step, Params]:
    """As jaxrl.collect.collect; the row that comes back is on the device, as r.env has it."""
    assert isinstance(r.env, Hosted)
    del step  # the same as r.env.current
    many = loops(r.parts)
    waiting: collections.deque[Sent] = collections.deque()
    while state.counters.env_steps < until and not r.stop() and time.monotonic() < deadline:
        r.faults.at("act")
        before = state.counters.env_steps
        rows = min(r.pace.rows if many else 1, (until - before) // r.plan.clock.stride)
        state, told = chunk(r, state, rows) if many else single(r, state, newest)
        waiting.append(Sent(told, rows, before))
        if len(waiting) > (1 if many else AHEAD):
            began = time.monotonic()
            state = heard(r, state, waiting.popleft())
            if many:
                r.pace.rows = adjusted(r.pace.rows, r.hosts.share(time.monotonic() - began))
    while waiting:
        state = heard(r, state, waiting.popleft())
    return state, r.env.current[1], state.policy


def adjusted(length: int, seconds: float) -> int:
    """Rows of the next chunk, from how long the host waited for one."""
    if seconds < CHUNK_S / 2:
        return min(2 * length, LONGEST)
    return max(1, length // 2) if seconds > 2 * CHUNK_S else length


def single(r: Run, state: RunState, newest: Params) -> tuple[RunState, Told]:
    """One vector step, in the programs that environments on the host use too."""
    assert isinstance(r.env, Hosted)
    _, step = r.env.current
    with r.watch.phase("policy"):  # a CPU does much of what is enqueued at once
        out, counter = r.programs.act(state.policy, state.carry, state.counter, step)
        ring, _ = r.programs.insert((state.ring, None), step, out, None)
    state, due = ticked(r, state.replace(carry=out.carry, counter=counter, ring=ring), nobody(r))
    if due:
        with r.watch.phase("update"):
            state, _ = learn(r, state, newest, due)
    with r.watch.phase("env"):
        return state, r.env.advance(out.action)


def chunk(r: Run, state: RunState, rows: int) -> tuple[RunState, Told]:
    """Many vector steps, in one program."""
    assert isinstance(r.env, Hosted)
    env, step = r.env.current
    moving = Moving(**{name: getattr(state, name) for name in MOVING}, env=env, step=step)
    before, due = state.counters, np.zeros(LONGEST, np.int32)
    for i in range(rows):
        state, due[i] = ticked(r, state, nobody(r))
        updates = state.counters.updates + int(due[i])
        state = state.replace(counters=state.counters.replace(updates=updates))
    if due.any():
        r.faults.at("learn")
    r.profiler.begin(before.updates, int(due.sum()))
    moving, told = r.programs.run_chunk(moving, planned(r, before, rows, due))
    r.profiler.end(state.counters.updates, told)
    r.env.replace(*moving.newest)
    return state.replace(**{name: getattr(moving, name) for name in MOVING}), told


def planned(r: Run, before: Counters, rows: int, due: np.ndarray) -> ChunkPlan:
    """What a chunk of so many vector steps is to do. due: [LONGEST] i32, updates after each."""
    return ChunkPlan(
        rows=np.array(rows, np.int32),
        done=np.array(before.updates, np.int32),
        agent_steps=np.array(before.env_steps // r.parts.config.env.action_repeat, np.int32),
        due=due,
    )


def one_row(parts: Parts, programs: Programs, env: CheckedEnv, state: RunState) -> None:
    """A chunk of one vector step with one update, to see that it works; the state is used up."""
    assert isinstance(env, Hosted)
    env.place(parts.machine.layout, parts.replay.streams)
    due = np.zeros(LONGEST, np.int32)
    due[0] = parts.learner.update is not None
    zero = np.array(0, np.int32)
    plan = ChunkPlan(rows=np.array(1, np.int32), done=zero, agent_steps=zero, due=due)
    at, step = env.current
    moving = Moving(**{name: getattr(state, name) for name in MOVING}, env=at, step=step)
    env.replace(*programs.run_chunk(moving, plan)[0].newest)


def nobody(r: Run) -> np.ndarray:
    """No environment's rows are held out."""
    return np.zeros(r.env.num_envs, bool)


def heard(r: Run, state: RunState, sent: Sent) -> RunState:
    """Counts the episodes of enqueued rows, once the device has come so far."""
    assert isinstance(r.env, Hosted)
    told = r.watch.wait("device", lambda: fetched(sent.told))
    reward, flags = (np.atleast_2d(x)[: sent.rows] for x in (told.reward, told.flags))
    state = counted(r, state, reward, flags, sent.env_steps)
    done = sent.env_steps + sent.rows * r.plan.clock.stride
    r.sinks.progress(done, r.plan.clock.steps, {"updates": state.counters.updates})
    return state


def counted(r: Run, state: RunState, reward: np.ndarray, flags: np.ndarray, env_steps: int) -> RunState:
    """Counts the episodes in rows that the host was told of.

    Args:
      reward, flags: [M, N], see Told.
      env_steps: clock before them.
    """
    assert isinstance(r.env, Hosted)
    counts = r.env.batched.defines_success
    for i in range(len(reward)):
        first, last, success = (flags[i] & bit > 0 for bit in (1, 2, 4))
        never = np.zeros_like(last)  # scores do not ask for it
        step = Step(obs={}, reward=reward[i], is_first=first, is_last=last, is_terminal=never)
        outcome = Outcome(reward[i], last, success if counts else None)
        state = count_episodes(r, state, step, outcome, env_steps + (i + 1) * r.plan.clock.stride)
    return state
