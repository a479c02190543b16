"""The loop of a population: members that differ in seed or task, at the same step at every moment.

Each has its own environments, state, files and checkpoints, as a run of its own would have them. Either one
program acts and learns for all of them at once (members.py, abreast.py), or each runs the programs of a
single run in turn.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np

from jaxrl import collect, loop, metrics, onboard
from jaxrl.collect import Run
from jaxrl.evaluation import Game, Interrupted, Report, playing, summary
from jaxrl.exits import Diverged, WriteFailed
from jaxrl.keys import EVAL, env_seed
from jaxrl.loop import Events
from jaxrl.members import ON_DEVICE, Members
from jaxrl.parts import loops
from jaxrl.state import Counters, RunState
from jaxrl.types import Params, Step

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Population:
    """The machinery; all that changes is in Together."""

    runs: tuple[Run, ...]  # of each member
    members: Members | None  # None: one after another
    stop: Callable[[], bool]  # True once all are asked to end
    ended: Callable[[int, Diverged], None]  # notes that a member has diverged

    @property
    def lead(self) -> Run:
        """Whose clock and pace are those of all."""
        return self.runs[0]

    @functools.cached_property
    def steady(self) -> tuple[Run, ...]:
        """Of each member, for a vector step: nobody stops where the others have not come to."""
        return tuple(dataclasses.replace(r, stop=lambda: False) for r in self.runs)

    def without(self, them: "Together", number: int, error: Diverged) -> "Together":
        """With one member less."""
        self.ended(number, error)
        return dataclasses.replace(them, over=them.over | {number: error})

    def wait(self, phase: str, call: Callable[[], T]) -> T:
        """Calls, and counts the time in a phase of every member: all of them wait."""
        began = time.monotonic()
        result = call()
        for r in self.runs:
            r.watch.spent(phase, time.monotonic() - began)
        return result

    def fetch(self, actions: jax.Array) -> np.ndarray:
        """Actions of all members on the host."""
        phase = [r.watch.awaited() for r in self.runs][0]
        return self.wait(phase, lambda: jax.device_get(actions))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Together:
    """The members' states."""

    states: tuple[RunState, ...]  # what lies on devices is in `joint`, if that is there
    steps: tuple[Step, ...]  # the environments' newest rows, not yet acted on
    newest: Params  # of all with `joint`, else a sequence of each one's
    joint: RunState | None  # arrays [M, ...] of all members
    over: dict[int, Diverged]  # members that have ended, and why

    @property
    def going(self) -> list[int]:
        return [m for m in range(len(self.states)) if m not in self.over]

    @property
    def counters(self) -> Counters:
        """Of any member that goes on: they differ in episodes and seconds only."""
        return self.states[(self.going or [0])[0]].counters

    @property
    def unsettled(self) -> list[int]:
        """Members whose events of this step are not done."""
        both = ((m, self.states[m].counters) for m in self.going)
        return [m for m, c in both if c.settled < c.env_steps]

    def changed(self, number: int, state: RunState, step: Step | None = None) -> "Together":
        """With another state of a member, and another newest row if one is given."""
        states = (*self.states[:number], state, *self.states[number + 1 :])
        steps = self.steps if step is None else (*self.steps[:number], step, *self.steps[number + 1 :])
        return dataclasses.replace(self, states=states, steps=steps)


Gather = Callable[[Population, Together, int, float], Together]


def run(p: Population, them: Together, gather: Gather) -> Together:
    """Trains until the last step or until asked to stop, and saves; as `loop.run`.

    A member that diverges ends alone; the others go on.
    """
    clock, config = p.lead.plan.clock, p.lead.parts.config
    saved_at = time.monotonic()
    while them.going and not p.stop():
        now = them.counters.env_steps
        if them.unsettled:
            them = settle(p, them)
            if them.unsettled:
                break  # interrupted
        late = config.save_seconds and time.monotonic() - saved_at > config.save_seconds
        if now == clock.steps:
            break
        if clock.saves(now) or late:
            them = for_each(p, them, save)
            saved_at = time.monotonic()
        deadline = saved_at + config.save_seconds if config.save_seconds else float("inf")
        with jax.transfer_guard("disallow" if config.runtime.transfer_guard else "allow"):
            them = gather(p, them, clock.next_stop(now), deadline)
    them = for_each(p, them, begin_to_end)
    return for_each(p, them, loop.end)


def for_each(p: Population, them: Together, act: Callable[[Run, RunState, Step], None]) -> Together:
    """Does something with every member's whole state, which may end with it.

    Raises:
      WriteFailed: of the first for which something could not be written, once all have had their turn.
    """
    failure = None
    for m in them.going:
        began = time.monotonic()
        try:
            act(p.runs[m], view(p, them, m, True), them.steps[m])
        except Diverged as error:
            them = p.without(them, m, error)
        except WriteFailed as error:
            failure = failure or error
        for other, r in enumerate(p.runs):  # whose rates it must not slow down
            r.watch.spent("save", time.monotonic() - began if other != m else 0.0)
    if failure:
        raise failure
    return them


def save(r: Run, state: RunState, step: Step) -> None:
    del step
    loop.look_for_skips(r, state)
    if r.saver:
        r.saver.save(state, "interval")


def begin_to_end(r: Run, state: RunState, step: Step) -> None:
    """Begins the last save of a member: all of them are on their way before anybody waits for one."""
    del step
    loop.look_for_skips(r, state)
    if r.saver:
        r.saver.begin(state, "signal" if r.stop() else "final")


def view(p: Population, them: Together, number: int, with_ring: bool = False) -> RunState:
    """One member's state, as a run of its own would have it; without the ring if it is not asked for."""
    if p.members is None or them.joint is None:
        return them.states[number]
    return them.states[number].replace(**p.members.member(them.joint, number, with_ring))


def settle(p: Population, them: Together) -> Together:
    """The events of this step. Members whose evaluation was interrupted stay as they are."""
    if p.members is not None:
        return settle_jointly(p, them)
    for m in them.unsettled:
        began = time.monotonic()
        try:
            them = them.changed(m, loop.settle(p.runs[m], them.states[m]))
        except Diverged as error:
            them = p.without(them, m, error)
        for other, r in enumerate(p.runs):  # whose rates it must not slow down
            r.watch.spent("eval", time.monotonic() - began if other != m else 0.0)
        if m in them.unsettled:
            break  # interrupted, and so would be the others
    return them


def settle_jointly(p: Population, them: Together) -> Together:
    """For all at once. Of what lies on devices, no more than one member's copy is there at a time."""
    with_ring = p.lead.plan.clock.films(them.counters.env_steps)
    events = {m: loop.begun(p.runs[m], view(p, them, m, with_ring)) for m in them.unsettled}
    try:
        reports = evaluated(p, them, {m: x for m, x in events.items() if x.plays})
    except Interrupted:
        return them
    for m, x in events.items():
        report = reports.get(m)
        try:
            if isinstance(report, Diverged):
                raise report
            state = loop.done(p.runs[m], view(p, them, m), x, report)
        except Diverged as error:
            them = p.without(them, m, error)
        else:
            them = them.changed(m, state.replace(**dict.fromkeys(ON_DEVICE)))
    return flushed(p, them, {m: x.packed for m, x in events.items() if x.packed is not None})


def flushed(p: Population, them: Together, packed: dict[int, np.ndarray]) -> Together:
    """With metrics that begin anew. packed: what was fetched of each member whose row is written."""
    if not packed or p.members is None or them.joint is None:
        return them
    kinds, before = p.lead.programs.kinds, jax.device_get(them.joint.totals)
    fresh = [metrics.flushed(kinds, packed[m]) if m in packed else x for m, x in enumerate(before)]
    return dataclasses.replace(them, joint=them.joint.replace(totals=p.members.stacked(fresh)))


def evaluated(p: Population, them: Together, events: dict[int, Events]) -> dict[int, Report | Diverged]:
    """The evaluation of all members at once, each in environments of its own; as `evaluation.evaluate`.

    Raises:
      Interrupted: as soon as all are asked to end.
    """
    if not events or p.members is None or them.joint is None:
        return {}
    began, at = time.monotonic(), them.counters.env_steps
    seeds = [env_seed(r.parts.config.seed, EVAL, at) for r in p.runs]
    games = {m: game_of(p.runs[m], x, seeds[m], p.stop) for m, x in events.items()}
    carry, counter = p.members.eval_carry(), p.members.stacked([np.int32(x) for x in seeds])
    rows: dict[int, Step] = {}
    found: dict[int, Report | Diverged] = {}
    try:
        while True:
            for m in games.keys() - found:
                outcome = played(p.runs[m], games[m], them.counters)
                if isinstance(outcome, Step):
                    rows[m] = outcome
                else:
                    found[m] = outcome
            if len(found) == len(games):
                return found
            shown = [rows.get(m, next(iter(rows.values()))) for m in range(len(p.runs))]
            out, counter = p.members.eval_act(them.joint.policy, carry, counter, shown)
            carry, action = out.carry, jax.device_get(out.action)
            for m in games.keys() - found:
                games[m].send(action[m])
    finally:
        for game in games.values():
            game.close()
        for m in events:
            p.runs[m].watch.spent("eval", time.monotonic() - began)


def game_of(r: Run, events: Events, seed: int, stop: Callable[[], bool]) -> Game:
    config = r.parts.config

    def asked() -> bool:
        r.faults.at("eval")
        return stop()

    return playing(config, seed, asked, quota=events.quota(config), watchers=events.watchers)


def played(r: Run, game: Game, counters: Counters) -> Step | Report | Diverged:
    """The newest row of a member's evaluation, or what came of it."""
    try:
        with r.reports.border(counters, "evaluation "):
            step = next(game)
        assert step is not None
        return step
    except StopIteration as end:
        return Report(summary(end.value), end.value)
    except Diverged as error:
        return error


def in_turn(p: Population, them: Together, until: int, deadline: float) -> Together:
    """Each member makes a vector step of its own, or a chunk of them at once, then the next one does."""
    batched, stride = p.lead.parts.batched, p.lead.plan.clock.stride
    gather, newest = onboard.collect if batched else collect.collect, list(them.newest)
    while them.going and them.counters.env_steps < until and not p.stop() and time.monotonic() < deadline:
        rows = p.lead.pace.rows if batched and loops(p.lead.parts) else 1
        after = min(until, them.counters.env_steps + rows * stride)
        for m in them.going:
            try:
                state, step, newest[m] = gather(
                    p.steady[m], them.states[m], them.steps[m], newest[m], after, float("inf")
                )
            except Diverged as error:
                them = p.without(them, m, error)
            else:
                them = them.changed(m, state, step)
    return dataclasses.replace(them, newest=tuple(newest))
