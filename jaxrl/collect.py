"""Collecting with the environments on the host: act, insert, step, learn."""

import dataclasses
import time
from collections.abc import Callable
from typing import Literal

import numpy as np

from jaxrl.envs.base import CheckedEnv, Outcome
from jaxrl.evaluation import Share
from jaxrl.faults import OFF, Faults
from jaxrl.feeds.episodes import EpisodeFiles
from jaxrl.feeds.ring import trainable_rows
from jaxrl.filming import Projector
from jaxrl.hosts import ALONE, Alone
from jaxrl.nans import Reports
from jaxrl.parts import Due, Parts
from jaxrl.plan import Plan, rows_of_update
from jaxrl.profiling import Profiler
from jaxrl.programs import Programs
from jaxrl.saver import Saver
from jaxrl.schedule import updates_due
from jaxrl.sinks import ScoreRow, Sinks
from jaxrl.state import RunState
from jaxrl.stopwatch import Stopwatch
from jaxrl.tracker import Finished, tallied
from jaxrl.types import Params, Step


@dataclasses.dataclass
class Pace:
    """How many vector steps the next chunk is to have, where the loop is on an accelerator."""

    rows: int = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The machinery of a run; all that changes is in the RunState."""

    parts: Parts
    programs: Programs
    plan: Plan
    env: CheckedEnv
    sinks: Sinks
    saver: Saver | None  # None: nothing is saved
    reports: Reports
    episodes: EpisodeFiles | None
    watch: Stopwatch
    stop: Callable[[], bool]  # True once the run is asked to end
    projector: Projector
    profiler: Profiler
    faults: Faults = OFF
    pace: Pace = dataclasses.field(default_factory=Pace)
    hosts: Alone = ALONE  # the processes of the run
    share: Share = Share()  # of the environments of evaluations
    waiting: list[tuple[int, Finished]] | None = None  # see `count_episodes`; None: nothing waits

    def stop_evaluating(self) -> bool:
        """What an evaluation asks at each of its steps."""
        self.faults.at("eval")
        return self.stop()


def collect(
    r: Run, state: RunState, step: Step, newest: Params, until: int, deadline: float
) -> tuple[RunState, Step, Params]:
    """Steps the environments and learns, up to `until` env_steps, or less if stopped or at the deadline."""
    config, programs, watch = r.parts.config, r.programs, r.watch
    while state.counters.env_steps < until and not r.stop() and time.monotonic() < deadline:
        r.faults.at("act")
        placed = programs.put_step(step)
        out, counter = programs.act(state.policy, state.carry, state.counter, placed)
        held = state.tracker.held(config.replay.holdout) if r.parts.held else None
        ring, held_ring = programs.insert((state.ring, state.held), placed, out, held)
        action = watch.fetch(out.action)
        r.env.send(action)
        if r.episodes:
            r.episodes.add(step, action, state.counters.env_steps)
        state = state.replace(carry=out.carry, counter=counter, ring=ring, held=held_ring)
        state, due = ticked(r, state, np.zeros_like(step.is_first) if held is None else held)
        if due:
            state, newest = learn(r, state, newest, due)
        with r.reports.border(state.counters):
            step = watch.wait("env", r.env.recv)
        state = count_episodes(r, state, step, r.env.outcome, state.counters.env_steps)
        r.sinks.progress(state.counters.env_steps, r.plan.clock.steps, {"updates": state.counters.updates})
    return state, step, newest


def ticked(r: Run, state: RunState, held: np.ndarray) -> tuple[RunState, int]:
    """The clock after one more row of every environment, and how many updates are due then.

    Args:
      held: [N] bool, which rows went to the held-out ring.
    """
    config = r.parts.config
    c = state.counters.replace(env_steps=state.counters.env_steps + r.plan.clock.stride)
    state = state.replace(tracker=state.tracker.wrote(held), counters=c)
    if r.parts.learner.update is None:
        return state, 0
    agent_steps = c.env_steps // config.env.action_repeat
    if c.first_at < 0 and ready(r, state):
        c = c.replace(first_at=agent_steps)
    due = updates_due(
        agent_steps,
        c.first_at,
        c.updates - c.first_updates,
        train_ratio=config.train_ratio,
        rows=rows_of_update(config),
    )
    return state.replace(counters=c), due


def learn(r: Run, state: RunState, newest: Params, k: int) -> tuple[RunState, Params]:
    """k updates, only enqueued. With `overlap`, acting goes on with the parameters from before them."""
    r.faults.at("learn")
    c = state.counters
    due = Due(k, c.updates, c.env_steps // r.parts.config.env.action_repeat)
    r.profiler.begin(c.updates, k)
    learner, ring, totals, evidence, policy = r.programs.learn(
        state.learner, state.ring, state.totals, state.evidence, due
    )
    r.profiler.end(c.updates + k, policy)
    r.watch.learning()
    return state.replace(
        learner=learner,
        ring=ring,
        totals=totals,
        evidence=evidence,
        policy=newest if r.parts.config.overlap else policy,
        counters=c.replace(updates=c.updates + k),
    ), policy


def ready(r: Run, state: RunState) -> bool:
    """Enough was collected for the first update."""
    replay = r.parts.replay
    agent_steps = state.counters.env_steps // r.parts.config.env.action_repeat
    enough = agent_steps >= r.parts.config.warmup
    return enough and trainable_rows(state.tracker.written, replay.rows, replay.window, r.programs.groups)


def count_episodes(r: Run, state: RunState, step: Step, outcome: Outcome, env_steps: int) -> RunState:
    """Counts a row received at a clock, and reports the games that ended with it.

    Where each process has environments of its own, the games wait for those of the others.
    """
    tracker, finished = state.tracker.advanced(step, *outcome)
    games = [(env_steps, dataclasses.replace(x, env=x.env + r.env.first)) for x in finished]
    state = state.replace(tracker=tracker)
    if r.waiting is None:
        return reported(r, state, games)
    r.waiting.extend(games)
    return state


def together(r: Run, state: RunState) -> RunState:
    """Reports the games that have ended in all processes since the last call, as one process would have."""
    if r.waiting is None:
        return state
    mine = [[at, dataclasses.asdict(game)] for at, game in r.waiting]
    r.waiting.clear()
    games = [(at, Finished(**game)) for part in r.hosts.gather(mine) for at, game in part]
    return reported(r, state, sorted(games, key=lambda pair: (pair[0], pair[1].env)))


def reported(r: Run, state: RunState, games: list[tuple[int, Finished]]) -> RunState:
    """Counts games that have ended, each with the clock of its last row, and writes them down."""
    if not games:
        return state
    before, wall_s = state.counters.episodes, r.watch.total()
    for number, (env_steps, game) in enumerate(games, before + 1):
        row = score_row(env_steps, "episode", game, game.episode)
        r.sinks.post(dataclasses.replace(row, number=number, wall_s=wall_s))
    return state.replace(
        scores=tallied(state.scores, (game for _, game in games)),
        counters=state.counters.replace(episodes=before + len(games)),
    )


def score_row(step: int, kind: Literal["episode", "eval_episode"], game: Finished, number: int) -> ScoreRow:
    return ScoreRow(step, kind, game.score, game.length, game.env, number, game.success)
