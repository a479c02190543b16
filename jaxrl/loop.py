"""The loop: collect, insert, update, log, evaluate, save."""

import dataclasses
import time

import jax
import numpy as np

from jaxrl import metrics, onboard
from jaxrl.collect import Run, collect, score_row, together
from jaxrl.config import Config
from jaxrl.evaluation import Interrupted, Report, Watcher, evaluate, one_episode
from jaxrl.exits import Diverged
from jaxrl.feeds.ring import trainable_rows
from jaxrl.filming import Guarded, Imagination
from jaxrl.parts import IN_A_ROW, SKIPPED
from jaxrl.plan import rows_of_update
from jaxrl.runtime import memory_use
from jaxrl.samples import Sampler
from jaxrl.sinks import Row, Samples
from jaxrl.state import RunState
from jaxrl.tracker import TALLY, Finished, episode_means
from jaxrl.types import Step

LOOK = 256  # vector steps after which several processes look at process 0's clock
HURRIED_S = 2.0  # that the last video has where somebody waits for the process to end


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
        period = r.parts.config.save_seconds or float("inf")
        late = r.hosts.share(time.monotonic() - saved_at > period)
        if now == clock.steps:
            break
        if r.saver and (clock.saves(now) or late):
            look_for_skips(r, state)
            r.saver.save(state, "interval")
            saved_at = time.monotonic()
        until, deadline = clock.next_stop(now), saved_at + period
        if r.hosts.count > 1:  # clocks differ: all look at one, every so often
            until, deadline = min(until, now + LOOK * clock.stride), float("inf")
        with jax.transfer_guard("disallow" if r.parts.config.runtime.transfer_guard else "allow"):
            gather = onboard.collect if r.parts.batched else collect
            state, step, newest = gather(r, state, step, newest, until, deadline)
        state = together(r, state)
    end(r, state, step)
    return state


def end(r: Run, state: RunState, step: Step) -> None:
    """Saves the last state of a run that is done or asked to stop. step: the environments' newest row."""
    if r.episodes:  # of episodes that end here the last row is complete; nobody acts on it any more
        action = r.parts.replay.spaces.action
        r.episodes.add(
            step, np.zeros((r.env.num_envs, *action.shape), action.dtype), state.counters.env_steps
        )
    look_for_skips(r, state)
    if r.saver:
        r.saver.save(state, "signal" if r.stop() else "final")
    r.profiler.close()
    r.projector.close(HURRIED_S if r.stop() else 60.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Events:
    """What is due at a step."""

    logs: bool
    evaluates: bool
    scalars: dict[str, float]  # since the last flush
    packed: np.ndarray | None  # the sums that they come from
    films: list[Guarded]
    imagination: Imagination | None
    filmed: bool  # by this process or another one
    sampler: Sampler | None

    @property
    def plays(self) -> bool:
        """Whether episodes are to be played."""
        return self.evaluates or self.filmed

    def quota(self, config: Config) -> np.ndarray | None:
        """Episodes of each environment; None: as many as an evaluation has."""
        return None if self.evaluates else one_episode(config)

    @property
    def watchers(self) -> list[Watcher]:
        return [*self.films, *([self.sampler] if self.sampler else [])]


def settle(r: Run, state: RunState) -> RunState:
    """The events of this step: flush, evaluate, one row for both. Unchanged state if interrupted."""
    c, config = state.counters, r.parts.config
    events, report = begun(r, state), None
    if events.plays:
        try:
            with r.watch.phase("eval"), r.reports.border(c, "evaluation "):
                report = evaluate(
                    config,
                    r.programs,
                    state.policy,
                    r.parts.key,
                    c.env_steps,
                    r.stop_evaluating,
                    quota=events.quota(config),
                    watchers=events.watchers,
                    share=r.share,
                )
        except Interrupted:
            return state
    return done(r, state, events, report)


def begun(r: Run, state: RunState) -> Events:
    """The events of this step, up to the episodes that are to be played for them."""
    c, clock, config = state.counters, r.plan.clock, r.parts.config
    logs, evaluates = clock.logs(c.env_steps), clock.evaluates(c.env_steps, config.eval_initial)
    (scalars, packed) = flush(r, state) if logs else ({}, None)
    films, imagination = looks(r, state) if clock.films(c.env_steps) else ([], None)
    filmed = clock.films(c.env_steps) and r.hosts.share(bool(films))
    sampler = Sampler(config.eval.samples, r.parts.eval_envs) if evaluates and config.eval.samples else None
    if evaluates or filmed:
        r.sinks.progress(c.env_steps, clock.steps, {"updates": c.updates, "phase": "evaluating"})
    return Events(
        logs=logs,
        evaluates=evaluates,
        scalars=scalars,
        packed=packed,
        films=films,
        imagination=imagination,
        filmed=filmed,
        sampler=sampler,
    )


def done(r: Run, state: RunState, events: Events, report: Report | None) -> RunState:
    """The rest of them: what was found becomes a row, and checkpoints."""
    c, clock, config, scalars = state.counters, r.plan.clock, r.parts.config, events.scalars
    episodes: list[Finished] = []
    if report is not None:
        if events.evaluates:
            scalars, episodes = scalars | report.scalars, report.episodes
        r.sinks.progress(c.env_steps, clock.steps, {"updates": c.updates})  # evaluating no longer
    r.projector.show(events.films, events.imagination, c.env_steps)
    if events.logs or events.evaluates:
        for number, game in enumerate(episodes):
            r.sinks.post(score_row(c.env_steps, "eval_episode", game, number))
        if events.sampler:
            r.sinks.post(Samples(c.env_steps, events.sampler.episodes))
        c = c.replace(wall_s=r.watch.total())
        scalars |= r.watch.lap(c.env_steps, c.updates) if events.logs else {}
        scalars = r.hosts.share(scalars)  # seconds differ
        agent_steps = c.env_steps // config.env.action_repeat
        r.sinks.write(Row(c.env_steps, agent_steps, c.updates, c.episodes, c.wall_s, scalars))
    if events.logs:
        check_finite(r, state, scalars)
        c = c.replace(flushed=c.updates)
        state = state.replace(totals=r.programs.empty(events.packed), scores=np.zeros(TALLY))
    state = state.replace(counters=c.replace(settled=c.env_steps))
    if r.saver:
        r.saver.events(state, scalars)
    return state


def looks(r: Run, state: RunState) -> tuple[list[Guarded], Imagination | None]:
    """Who is to film the evaluation at this step, and what the world model imagines, only enqueued."""
    c, replay, config = state.counters, r.parts.replay, r.parts.config
    if not r.hosts.share(r.projector.is_free(c.env_steps)):
        return [], None
    imagination = None
    groups = r.programs.groups
    if r.programs.reports and trainable_rows(state.tracker.written, replay.rows, replay.window, groups):
        with r.watch.phase("eval"):
            imagination = r.projector.imagine(
                config, lambda: r.programs.report(state.learner, state.ring, c.env_steps), c.env_steps
            )
    films = r.projector.begin(config, c.env_steps) if r.hosts.leads else []
    return films, imagination


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
    scalars = episode_means(state.scores)
    totals = r.watch.fetch(state.totals)
    scalars |= metrics.unpack(programs.kinds, totals)
    held = r.parts.held
    written = state.tracker.held_written
    if held and state.held is not None and trainable_rows(written, held.rows, held.window, programs.groups):
        packed = r.watch.fetch(programs.validate(state.learner, state.held, state.counters.env_steps))
        scalars |= metrics.unpack(programs.held_kinds, packed)
    if r.parts.learner.update is not None:
        each = np.minimum(state.tracker.written, replay.rows)
        items = int(each.sum()) * (replay.streams // len(each))  # streams of all processes grow together
        scalars |= {"replay/items": items, "replay/ram_gb": replay.nbytes / 1e9}
        scalars["replay/replay_ratio"] = (
            state.counters.updates
            * rows_of_update(config)
            / max(1, state.counters.env_steps // config.env.action_repeat)
        )
    if (bad := r.env.bad) is not None:
        scalars["env/bad_states"] = bad if r.waiting is None else sum(r.hosts.gather(bad))
    return scalars | memory_use(r.parts.machine.learner), totals
