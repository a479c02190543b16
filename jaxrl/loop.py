"""The loop: collect, insert, update, log, evaluate, save."""

import dataclasses
import time
from collections.abc import Callable

import jax
import numpy as np

from jaxrl import metrics
from jaxrl.envs.base import CheckedEnv
from jaxrl.evaluation import Interrupted, evaluate
from jaxrl.exits import Diverged
from jaxrl.faults import OFF, Faults
from jaxrl.feeds.episodes import EpisodeFiles
from jaxrl.feeds.replay import trainable_rows
from jaxrl.nans import Reports
from jaxrl.plan import Plan
from jaxrl.programs import IN_A_ROW, SKIPPED, Parts, Programs
from jaxrl.runtime import memory_use
from jaxrl.saver import Saver
from jaxrl.schedule import updates_due
from jaxrl.sinks import Row, ScoreRow, Sinks
from jaxrl.state import RunState
from jaxrl.stopwatch import Stopwatch
from jaxrl.types import Params, Step


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
    faults: Faults = OFF

    def stop_evaluating(self) -> bool:
        """What an evaluation asks at each of its steps."""
        self.faults.at("eval")
        return self.stop()


def run(r: Run, state: RunState, step: Step) -> RunState:
    """Trains until the last step or until asked to stop, and saves.

    Args:
      state: fresh or restored; its buffers are donated.
      step: the environments' newest row, not yet acted on.

    Returns:
      The final state: `counters.env_steps` tells how far it came.

    Raises:
      Diverged: too many updates in a row were not finite, or what an environment gave.
      WriteFailed: too many saves failed.
    """
    clock, newest = r.plan.clock, r.programs.policy(state.learner)
    saved_at = time.monotonic()
    while not r.stop():
        now = state.counters.env_steps
        if state.counters.settled < now:
            state = settle(r, state)
            if state.counters.settled < now:
                break  # interrupted; the events of this step are done after the resume
        late = r.parts.config.save_seconds and time.monotonic() - saved_at > r.parts.config.save_seconds
        if now == clock.steps:
            break
        if r.saver and (clock.saves(now) or late):
            look_for_skips(r, state)
            r.saver.save(state, "interval")
            saved_at = time.monotonic()
        deadline = saved_at + r.parts.config.save_seconds if r.parts.config.save_seconds else float("inf")
        with jax.transfer_guard("disallow" if r.parts.config.runtime.transfer_guard else "allow"):
            state, step, newest = collect(r, state, step, newest, clock.next_stop(now), deadline)
    if r.episodes:  # of episodes that end here the last row is complete; nobody acts on it any more
        action = r.parts.replay.spaces.action
        r.episodes.add(
            step, np.zeros((r.env.num_envs, *action.shape), action.dtype), state.counters.env_steps
        )
    look_for_skips(r, state)
    if r.saver:
        r.saver.save(state, "signal" if r.stop() else "final")
    return state


def collect(
    r: Run, state: RunState, step: Step, newest: Params, until: int, deadline: float
) -> tuple[RunState, Step, Params]:
    """Steps the environments and learns, up to `until` env_steps, or less if stopped or at the deadline."""
    config, programs, watch = r.parts.config, r.programs, r.watch
    rows, repeat = config.batch_size * config.batch_length, config.env.action_repeat
    learns = r.parts.learner.update is not None
    while state.counters.env_steps < until and not r.stop() and time.monotonic() < deadline:
        r.faults.at("act")
        c = state.counters.replace(env_steps=state.counters.env_steps + r.plan.clock.stride)
        placed = programs.put(step)
        out, counter = programs.act(state.policy, state.carry, state.counter, placed)
        held = state.tracker.held(config.replay.holdout) if r.parts.held else None
        ring, held_ring = programs.insert((state.ring, state.held), placed, out, held)
        action = watch.fetch(out.action)
        r.env.send(action)
        if r.episodes:
            r.episodes.add(step, action, state.counters.env_steps)
        tracker = state.tracker.wrote(np.zeros_like(step.is_first) if held is None else held)
        state = state.replace(
            carry=out.carry, counter=counter, ring=ring, held=held_ring, tracker=tracker, counters=c
        )
        if learns and c.first_at < 0 and ready(r, state):
            c = c.replace(first_at=c.env_steps // repeat)
        due = updates_due(
            c.env_steps // repeat,
            c.first_at,
            c.updates - c.first_updates,
            train_ratio=config.train_ratio,
            rows=rows,
        )
        state = state.replace(counters=c)
        if learns and due:
            state, newest = learn(r, state, newest, due)
        with r.reports.border(state.counters):
            step = watch.wait("env", r.env.recv)
        state = count_episodes(r, state, step)
        r.sinks.progress(state.counters.env_steps, r.plan.clock.steps, {"updates": state.counters.updates})
    return state, step, newest


def learn(r: Run, state: RunState, newest: Params, k: int) -> tuple[RunState, Params]:
    """k updates, only enqueued. With `overlap`, acting goes on with the parameters from before them."""
    r.faults.at("learn")
    c = state.counters
    learner, ring, totals, evidence, policy = r.programs.learn(
        state.learner, state.ring, state.totals, state.evidence, k, c.updates
    )
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
    return enough and trainable_rows(state.tracker.written, replay.rows, replay.window)


def count_episodes(r: Run, state: RunState, step: Step) -> RunState:
    """Counts a received row, and reports the games that ended with it."""
    tracker, finished = state.tracker.advanced(step, *r.env.outcome)
    if not finished:
        return state.replace(tracker=tracker)
    c, scores = state.counters, state.scores
    for game in finished:
        r.sinks.score(ScoreRow(c.env_steps, "episode", game.score, game.length, game.env, game.episode))
        scores = scores + (1, game.score, game.length)
    return state.replace(
        tracker=tracker, scores=scores, counters=c.replace(episodes=c.episodes + len(finished))
    )


def settle(r: Run, state: RunState) -> RunState:
    """The events of this step: flush, evaluate, one row for both. Unchanged state if interrupted."""
    c, clock, config = state.counters, r.plan.clock, r.parts.config
    logs, evaluates = clock.logs(c.env_steps), clock.evaluates(c.env_steps, config.eval_initial)
    (scalars, packed), episodes = flush(r, state) if logs else ({}, None), []
    if evaluates:
        r.sinks.progress(c.env_steps, clock.steps, {"updates": c.updates, "phase": "evaluating"})
        try:
            with r.watch.phase("eval"), r.reports.border(c, "evaluation "):
                report = evaluate(
                    config, r.programs, state.policy, r.parts.key, c.env_steps, r.stop_evaluating
                )
        except Interrupted:
            return state
        scalars, episodes = scalars | report.scalars, report.episodes
        r.sinks.progress(c.env_steps, clock.steps, {"updates": c.updates})  # evaluating no longer
    if logs or evaluates:
        for number, game in enumerate(episodes):
            r.sinks.score(ScoreRow(c.env_steps, "eval_episode", game.score, game.length, game.env, number))
        c = c.replace(wall_s=r.watch.total())
        scalars |= r.watch.lap(c.env_steps, c.updates) if logs else {}
        agent_steps = c.env_steps // config.env.action_repeat
        r.sinks.write(Row(c.env_steps, agent_steps, c.updates, c.episodes, c.wall_s, scalars))
    if logs:
        check_finite(r, state, scalars)
        c = c.replace(flushed=c.updates)
        state = state.replace(totals=r.programs.empty(packed), scores=np.zeros(3))
    state = state.replace(counters=c.replace(settled=c.env_steps))
    if r.saver:
        r.saver.events(state, scalars)
    return state


def look_for_skips(r: Run, state: RunState) -> None:
    """Where no rows are written, somebody else must see that a run has diverged: who saves it."""
    if not r.plan.clock.log_every and r.parts.learner.update is not None:
        check_finite(r, state, metrics.unpack(r.programs.kinds, r.watch.fetch(state.totals)))


def check_finite(r: Run, state: RunState, scalars: dict[str, float]) -> None:
    """Tells of updates skipped since the last flush. Raises Diverged if too many of them came in a row."""
    c, skipped, in_a_row = state.counters, int(scalars.get(SKIPPED, 0)), int(scalars.get(IN_A_ROW, 0))
    where, made = "", c.updates - c.flushed
    if skipped:
        where = r.reports.skipped(state, skipped, made, in_a_row)
        r.sinks.note(f"{skipped:,} of {made:,} updates were not finite and were skipped{where}")
    if in_a_row >= r.parts.config.opt.max_skipped:
        raise Diverged(
            f"diverged at step {c.env_steps:,}: {in_a_row:,} updates in a row were not finite and were "
            f"skipped{where}; start again with a lower --opt.lr in another --logdir"
        )


def flush(r: Run, state: RunState) -> tuple[dict[str, float], np.ndarray]:
    """Scalars since the last flush, and their packed sums: one transfer, two with held-out episodes."""
    r.faults.at("flush")
    programs, replay, config = r.programs, r.parts.replay, r.parts.config
    count, score, length = state.scores
    scalars = {"episode/score": score / count, "episode/length": length / count} if count else {}
    totals = r.watch.fetch(state.totals)
    scalars |= metrics.unpack(programs.kinds, totals)
    held = r.parts.held
    if held and state.held is not None and trainable_rows(state.tracker.held_written, held.rows, held.window):
        packed = r.watch.fetch(programs.validate(state.learner, state.held, state.counters.env_steps))
        scalars |= metrics.unpack(programs.held_kinds, packed)
    if r.parts.learner.update is not None:
        items = int(np.minimum(state.tracker.written, replay.rows).sum())
        scalars |= {"replay/items": items, "replay/ram_gb": replay.nbytes / 1e9}
        scalars["replay/replay_ratio"] = (
            state.counters.updates
            * config.batch_size
            * config.batch_length
            / max(1, state.counters.env_steps // config.env.action_repeat)
        )
    return scalars | memory_use(r.parts.machine.learner), totals
