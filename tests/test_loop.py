"""The loop alone, with light stand-ins for programs, environments, files and clock: what happens when."""

import contextlib
import dataclasses
import pathlib
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl import evaluation, exits, loop, saver
from jaxrl.config import Config, replace
from jaxrl.envs.base import Outcome
from jaxrl.plan import Plan
from jaxrl.profiling import Profiler
from jaxrl.state import Counters, RunState
from jaxrl.stopwatch import Stopwatch
from jaxrl.stores import Outcome as Saved
from jaxrl.stores import Rank, rank_of
from jaxrl.tracker import TALLY, Finished, Tracker
from jaxrl.types import ActOutput, Discrete, Learner, Spaces, Step

LENGTH = 7  # agent_steps of an episode of the stand-in environment


class Env:
    """N environments whose episodes all last LENGTH steps, with reward 1 a step."""

    def __init__(self, n):
        self.num_envs, self.first, self.at = n, 0, 0

    def row(self):
        first, last = self.at == 0, self.at == LENGTH
        flag = np.ones(self.num_envs, bool)
        reward = np.full(self.num_envs, 0.0 if first else 1.0, np.float32)
        self.outcome = Outcome(reward, flag & last)
        self.bad = None
        return Step(
            obs={}, reward=reward, is_first=flag & first, is_last=flag & last, is_terminal=flag & last
        )

    def send(self, action):
        assert action.shape == (self.num_envs,)
        self.at = (self.at + 1) % (LENGTH + 1)

    def recv(self):
        return self.row()

    def snapshot(self):
        return self.at


class Programs:
    """Counts what it is asked to do. The learner's state is the number of updates; so is a policy."""

    kinds: dict[str, type] = {}
    held_kinds: dict[str, type] = {}

    def __init__(self, n):
        self.n = n
        self.acted = []  # policy of each vector step

    def put(self, tree):
        return tree

    put_step = put_rows = put_named = put
    groups = 1

    def policy(self, state):
        return state

    def act(self, policy, carry, counter, step):
        self.acted.append(policy)
        return ActOutput(np.zeros(self.n, np.int32), carry, ()), counter + 1

    def insert(self, rings, step, out, held):
        return rings[0] + 1, rings[1]

    def learn(self, state, ring, totals, evidence, due):
        assert state == due.done
        new = state + due.updates
        return new, ring, totals, evidence, new

    def empty(self, before=None):
        return np.zeros((2, 0), np.float32)


class Sinks:
    def __init__(self):
        self.rows, self.scores, self.notes, self.works = [], [], [], True

    def write(self, row):
        self.rows.append(row)

    def post(self, event):
        self.scores.append(event)

    def note(self, text):
        self.notes.append(text)

    def progress(self, step, steps, extra=None):
        assert 0 <= step <= steps

    def flush(self):
        return self.works


class Stores:
    """Keeps the states that it is given. `failures` says of how many saves to come the writing fails."""

    pending = 0

    def __init__(self, failures=0, refusals=0):
        self.saved, self.bests, self.lasting, self.reasons = [], [], [], []
        self.refusals = refusals  # of how many saves to come the beginning fails
        self.failures, self.outcomes, self.best = failures, [], None

    def save(self, store, step, arrays, facts, finite):
        home = {"latest": self.saved, "best": self.bests, "periodic": self.lasting}[store]
        if any(x.counters.env_steps == step for x in home):
            return False
        if self.refusals:
            self.refusals -= 1
            raise OSError(28, "No space left on device")
        failure = "no room" if self.failures else None
        if failure:
            self.failures -= 1
        else:
            home.append(arrays[0])
            self.reasons.append(facts["reason"])
            self.best = rank_of(facts) if store == "best" else self.best
        self.outcomes.append(Saved(store, step, failure))
        return True

    def poll(self, seconds=0.0):
        found, self.outcomes = self.outcomes, []
        return found


@dataclasses.dataclass
class World:
    """Everything that a loop needs, and what it did."""

    config: Config
    store: Stores = dataclasses.field(default_factory=Stores)
    stop_after: int = 10**9  # vector steps
    evaluations: list[int] = dataclasses.field(default_factory=list)
    sinks: Sinks = dataclasses.field(default_factory=Sinks)
    evaluation_is_cut: bool = False
    patience: list[float] = dataclasses.field(default_factory=list)  # seconds that videos had in the end
    scores: dict[int, float] = dataclasses.field(default_factory=dict)  # of evaluations, by env_steps
    successes: dict[int, float] = dataclasses.field(default_factory=dict)  # the same, of rates

    def run(self, monkeypatch, state=None):
        n = self.config.env.num_envs
        self.programs, env = Programs(n), Env(n)
        replay = types.SimpleNamespace(
            streams=n,
            rows=10**6,
            window=self.config.batch_length + 1,
            nbytes=1,
            spaces=Spaces(obs={}, action=Discrete(1)),
        )
        nothing = dict(init=None, initial_carry=None, act=None, policy_params=None, latent_zeros=None)
        parts = types.SimpleNamespace(
            config=self.config,
            learner=Learner(**nothing, update=lambda: None),
            replay=replay,
            held=None,
            batched=None,
            key=None,
            machine=types.SimpleNamespace(learner=types.SimpleNamespace(platform="cpu")),
        )
        plan, watch = Plan.of(self.config), Stopwatch()
        monkeypatch.setattr(saver.saving, "arrays", lambda state, with_replay, joined: (state, {}))
        monkeypatch.setattr(saver.saving, "facts", lambda *given: {})
        monkeypatch.setattr(saver.Saver, "_finite", lambda self, arrays: None)
        saves = saver.Saver(
            stores=self.store,
            config=self.config,
            clock=plan.clock,
            identity={},
            programs=self.programs,
            sinks=self.sinks,
            watch=watch,
            snapshot=env.snapshot,
        )
        machinery = loop.Run(
            parts=parts,
            programs=self.programs,
            plan=plan,
            env=env,
            sinks=self.sinks,
            saver=saves,
            reports=types.SimpleNamespace(border=lambda *where: contextlib.nullcontext()),
            episodes=None,
            watch=watch,
            stop=lambda: len(self.programs.acted) >= self.stop_after or self.cut_now,
            projector=types.SimpleNamespace(show=lambda *films: None, close=self.patience.append),
            profiler=Profiler(pathlib.Path(), "", print),
        )
        self.cut_now = False
        monkeypatch.setattr(loop, "evaluate", self.evaluate)
        if state is None:
            state, step = fresh(n), env.row()
            tracker, _ = state.tracker.advanced(step, *env.outcome)
            state = state.replace(tracker=tracker)
        else:
            env.at = state.env
            step = env.row()
        return loop.run(machinery, state, step)

    def evaluate(self, config, programs, policy, key, env_steps, stop, **options):
        if self.evaluation_is_cut:
            self.cut_now = True
            raise evaluation.Interrupted
        self.evaluations.append(env_steps)
        score = self.scores.get(env_steps, 1.0)
        scalars = {"eval_episode/avg_score": score}
        if env_steps in self.successes:
            scalars["eval_episode/success_rate"] = self.successes[env_steps]
        return evaluation.Report(scalars, [Finished(0, score, 1, 0)])


def fresh(n):
    return RunState(
        learner=0,
        ring=0,
        held=None,
        policy=0,
        carry=(),
        counter=0,
        totals=np.zeros((2, 0), np.float32),
        evidence=None,
        scores=np.zeros(TALLY),
        tracker=Tracker.zero(n),
        env=None,
        counters=Counters(),
    )


def make(**changes):
    names = {"num_envs": "env.num_envs", "action_repeat": "env.action_repeat"}
    defaults = {"batch_size": 2, "batch_length": 4, "train_ratio": 3.0, "save_seconds": 0.0}
    defaults["env.action_repeat"] = 1
    return replace(Config(task="toy_clock"), defaults | {names.get(k, k): v for k, v in changes.items()})


def up(interval, stride):
    """By the words of the design: rounded up to the next multiple; 0 stays 0."""
    return (interval + stride - 1) // stride * stride


def multiples(every, end):
    return set(range(every, end + 1, every)) if every else set()


intervals = st.one_of(st.just(0), st.integers(1, 200))


@settings(max_examples=150, deadline=None)
@given(
    num_envs=st.integers(1, 5),
    action_repeat=st.integers(1, 5),
    steps=st.integers(1, 400),
    log_every=intervals,
    eval_every=intervals,
    save_every=intervals,
    eval_initial=st.booleans(),
    overlap=st.booleans(),
    warmup=st.integers(0, 60),
    cuts=st.lists(st.integers(0, 80), max_size=3),
)
def test_schedule(num_envs, action_repeat, steps, cuts, **other):
    """Rows, evaluations, checkpoints and updates are where the design says, however often a run is cut."""
    config = make(num_envs=num_envs, action_repeat=action_repeat, steps=steps, **other)
    stride = num_envs * action_repeat
    end, log, evaluate, save = (up(getattr(config, x), stride) for x in ("steps", *other) if x in PERIODS)
    rows, evaluations, saves, acted, scores, state = [], [], [], [], [], None
    with pytest.MonkeyPatch.context() as patch:
        for stop_after in [*cuts, 10**9]:
            world = World(config, stop_after=stop_after)
            end_state = world.run(patch, state)
            state = world.store.saved[-1]
            rows += world.sinks.rows
            scores += world.sinks.scores
            evaluations += world.evaluations
            acted += world.programs.acted
            # Every part of the run ends with a checkpoint; the others lie on the multiples.
            assert state.counters.replace(wall_s=0) == end_state.counters.replace(wall_s=0)
            saves += [x.counters.env_steps for x in world.store.saved[: -1 if stop_after < 10**9 else None]]
    assert state.counters.env_steps == state.counters.settled == end
    due = ({0, end} | multiples(log, end)) if log else set()
    evaluated = ({end} | multiples(evaluate, end)) if evaluate else set()
    evaluated |= {0} if evaluate and config.eval_initial else set()
    assert evaluations == sorted(evaluated)
    assert [row.step for row in rows] == sorted(due | evaluated)
    for row in rows:
        assert ("eval_episode/avg_score" in row.scalars) == (row.step in evaluated)
        assert ("time/env_s" in row.scalars) == (row.step in due)
        assert row.agent_steps == row.step // action_repeat
        assert row.updates == updates_by(config, row.agent_steps)
    assert set(saves) >= multiples(save, end) and set(saves) <= multiples(save, end) | {0, end}
    assert len(acted) == end // stride == state.counter
    last = [updates_by(config, n * num_envs) for n in range(len(acted))]
    before = [
        0,
        *(next((x for x in reversed(last[:i]) if x != last[i]), last[i]) for i in range(1, len(acted))),
    ]
    assert acted == (before if config.overlap else last)
    games = [x for x in scores if x.kind == "episode"]
    assert len(games) == num_envs * ((end // stride + 1) // (LENGTH + 1)) == state.counters.episodes
    assert all(x.score == x.length == LENGTH for x in games)


PERIODS = ("steps", "log_every", "eval_every", "save_every")


def updates_by(config, agent_steps):
    """Updates made once so many decisions were; streams fill together."""
    rows = config.batch_size * config.batch_length
    n = config.env.num_envs
    first = next(x for x in range(n, 10**6, n) if x // n > config.batch_length and x >= config.warmup)
    return 0 if agent_steps < first else 1 + int((agent_steps - first) * config.train_ratio / rows)


def test_a_cut_evaluation_is_made_after_the_resume(monkeypatch):
    config = make(steps=40, log_every=20, eval_every=20)
    world = World(config, evaluation_is_cut=True)
    state = world.run(monkeypatch)
    assert (state.counters.env_steps, state.counters.settled) == (20, 0)
    assert [row.step for row in world.sinks.rows] == [0]
    again = World(config)
    state = again.run(monkeypatch, world.store.saved[-1])
    assert [row.step for row in again.sinks.rows] == again.evaluations == [20, 40]
    assert state.counters.settled == 40


@pytest.mark.parametrize(("stop_after", "seconds"), [(10**9, 60.0), (3, 2.0)])
def test_a_run_that_is_stopped_does_not_wait_for_videos(monkeypatch, stop_after, seconds):
    world = World(make(steps=40, log_every=20, eval_every=0), stop_after=stop_after)
    world.run(monkeypatch)
    assert world.patience == [seconds]


def test_a_run_cut_in_its_last_evaluation_is_not_finished(monkeypatch):
    config = make(steps=20, log_every=20, eval_every=20)
    state = World(config, evaluation_is_cut=True).run(monkeypatch)
    assert (state.counters.env_steps, state.counters.settled) == (20, 0)


def test_saves_by_the_clock(monkeypatch):
    """A chunk ends when save_seconds are over, and rows stay where they are."""
    world = World(make(steps=12, log_every=6, save_seconds=0.02, eval_every=0))
    ticks = iter(range(10**6))
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(ticks) * 1e-3)
    state = world.run(monkeypatch)
    saves = [x.counters.env_steps for x in world.store.saved]
    assert state.counters.env_steps == 12 and saves[-1] == 12
    assert any(step % 6 for step in saves), saves
    assert [row.step for row in world.sinks.rows] == [0, 6, 12]


def test_no_checkpoint_knows_of_rows_that_are_not_on_disk(monkeypatch):
    world = World(make(steps=20, log_every=10, save_every=5, eval_every=0))
    world.sinks.works = False
    world.run(monkeypatch)
    assert [x.counters.env_steps for x in world.store.saved] == [20]  # the last: better than to lose it all
    assert len(world.sinks.notes) == 3 and "step 5" in world.sinks.notes[0]


def test_a_failed_save_is_told_and_tried_again(monkeypatch):
    world = World(make(steps=15, log_every=0, save_every=5, eval_every=0), store=Stores(failures=1))
    world.run(monkeypatch)
    assert [x.counters.env_steps for x in world.store.saved] == [10, 15]
    assert world.sinks.notes == ["checkpoint latest/5: no room; the next one will be tried"]


def test_the_last_save_is_tried_twice(monkeypatch):
    world = World(make(steps=5, log_every=0, eval_every=0), store=Stores(failures=1))
    world.run(monkeypatch)
    assert [x.counters.env_steps for x in world.store.saved] == [5]
    for broken in (Stores(failures=2), Stores(refusals=2), Stores(failures=1, refusals=1)):
        with pytest.raises(exits.WriteFailed, match="step 5, is not on disk; free disk space"):
            World(make(steps=5, log_every=0, eval_every=0), store=broken).run(monkeypatch)
    world = World(make(steps=5, log_every=0, eval_every=0), store=Stores(refusals=1))
    world.run(monkeypatch)
    assert [x.counters.env_steps for x in world.store.saved] == [5]


def test_a_save_does_not_begin_while_the_one_before_is_on_its_way(monkeypatch):
    """However slow the disk is, one copy of the state is on its way."""
    world = World(make(steps=10, log_every=0, eval_every=0, save_every=5))
    world.store.pending = 1
    monkeypatch.setattr(saver, "SLOW_S", 0.0)
    with pytest.raises(exits.WriteFailed, match="is not on disk"):
        world.run(monkeypatch)
    assert world.sinks.notes[0].startswith("checkpoint at step 5: skipped, since the one before is still")


def test_rows_that_cannot_be_written_end_a_run_like_saves_that_fail(monkeypatch):
    world = World(make(steps=100, log_every=10, eval_every=0, save_every=10, **{"checkpoint.failures": 3}))
    world.sinks.works = False
    with pytest.raises(exits.WriteFailed, match="step 30: put off.*3 saves in a row"):
        world.run(monkeypatch)


def test_a_run_whose_saves_all_fail_ends(monkeypatch):
    changes = {"steps": 100, "log_every": 0, "eval_every": 0, "save_every": 5, "checkpoint.failures": 3}
    world = World(make(**changes), store=Stores(failures=100))
    with pytest.raises(exits.WriteFailed, match="3 saves in a row"):
        world.run(monkeypatch)
    assert len(world.programs.acted) == 20  # at 20 it hears of the third failure, that of step 15
    few = World(make(**changes), store=Stores(failures=2))
    few.run(monkeypatch)
    assert [x.counters.env_steps for x in few.store.saved] == list(range(15, 101, 5))


def test_the_best_is_the_newest_of_the_highest_scores(monkeypatch):
    """What is no number is below every number, but better than nothing."""
    scores = {10: float("nan"), 20: 1.0, 30: 0.5, 40: 1.0, 50: float("nan"), 60: 2.0}
    world = World(make(steps=60, log_every=0, eval_every=10), scores=scores)
    world.run(monkeypatch)
    assert [x.counters.env_steps for x in world.store.bests] == [10, 20, 40, 60]
    assert all(x.counters.settled == x.counters.env_steps for x in world.store.bests)
    other = make(steps=60, log_every=0, eval_every=10, **{"checkpoint.best_metric": "eval_episode/length"})
    world = World(other, scores=scores)
    world.run(monkeypatch)
    assert world.store.bests == []  # this stand-in reports no length
    (line,) = world.sinks.notes
    assert "checkpoint.best_metric=eval_episode/length: this evaluation does not have it" in line


def test_lasting_checkpoints_are_at_the_multiples(monkeypatch):
    changes = {"steps": 33, "log_every": 7, "eval_every": 0, "checkpoint.periodic_every": 10}
    world = World(make(**changes))
    world.run(monkeypatch)
    assert [x.counters.env_steps for x in world.store.lasting] == [10, 20, 30]
    assert [x.counters.env_steps for x in world.store.saved] == [33]
    assert world.store.reasons == ["interval"] * 3 + ["final"]


def test_skipped_updates_are_told_and_too_many_in_a_row_end_the_run():
    r = types.SimpleNamespace(
        parts=types.SimpleNamespace(config=make(**{"opt.max_skipped": 5})),
        reports=types.SimpleNamespace(skipped=lambda *counts: f"; report of {counts[1:]}"),
        sinks=Sinks(),
    )
    state = fresh(1).replace(counters=Counters(env_steps=40, updates=60, flushed=10))
    loop.check_finite(r, state, {"train/opt/skipped": 0.0})
    assert r.sinks.notes == []
    loop.check_finite(r, state, {"train/opt/skipped": 3.0, "train/opt/skipped_in_a_row": 4.0})
    assert r.sinks.notes == ["3 of 50 updates were not finite and were skipped; report of (3, 50, 4)"]
    with pytest.raises(exits.Diverged, match="at step 40: 5 updates in a row were not finite.*--opt.lr"):
        loop.check_finite(r, state, {"train/opt/skipped": 1.0, "train/opt/skipped_in_a_row": 5.0})


def test_success_comes_before_the_score(monkeypatch):
    """Where evaluations tell it; ties go to the later. Another metric that is asked for counts alone."""
    scores = {10: 1.0, 20: 9.0, 30: 5.0, 40: 5.0, 50: 9.0}
    successes = {10: 0.5, 20: 0.25, 30: 0.5, 40: 0.5, 50: 0.25}
    changes = {"steps": 50, "log_every": 0, "eval_every": 10}
    world = World(make(**changes), scores=scores, successes=successes)
    world.run(monkeypatch)
    assert [x.counters.env_steps for x in world.store.bests] == [10, 30, 40]
    assert world.store.best.names == ("eval_episode/success_rate", "eval_episode/avg_score")
    alone = {"checkpoint.best_metric": "eval_episode/success_rate"}
    world = World(make(**changes, **alone), scores=scores, successes=successes)
    world.run(monkeypatch)
    assert [x.counters.env_steps for x in world.store.bests] == [10, 30, 40]


def test_a_best_by_another_metric_is_replaced_by_the_next_evaluation(monkeypatch):
    world = World(make(steps=30, log_every=0, eval_every=10), scores={10: 1.0, 20: 0.5, 30: 2.0})
    world.store.best = Rank(("eval_episode/length",), (500.0,))
    world.run(monkeypatch)
    assert [x.counters.env_steps for x in world.store.bests] == [10, 30]
    (line,) = world.sinks.notes
    assert "the best by eval_episode/length; from here on it is the best by eval_episode/avg_score" in line


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("eval_episode/avg_scor", "did you mean eval_episode/avg_score?"),
        ("eval_episode/success_rate", "did you mean eval_episode/avg_score?"),
        ("accuracy", "for example eval_episode/avg_score"),
        ("train/opt/loss", None),  # that may come in another row
    ],
)
def test_a_metric_that_no_evaluation_has_is_told_once(monkeypatch, metric, told):
    changes = {"steps": 30, "log_every": 0, "eval_every": 10, "checkpoint.best_metric": metric}
    world = World(make(**changes))
    world.run(monkeypatch)
    assert world.store.bests == [] and len(world.sinks.notes) == (told is not None)
    if told:
        assert metric in world.sinks.notes[0] and world.sinks.notes[0].endswith(told)


def test_the_best_and_the_lasting_are_made_up_for_with_the_state_of_their_step(monkeypatch):
    """A save that fails is told, and tried again with the next: nothing of them is skipped."""
    changes = {"steps": 40, "log_every": 0, "eval_every": 20, "checkpoint.periodic_every": 15}
    for broken in (Stores(failures=1), Stores(refusals=1)):
        world = World(make(**changes), scores={20: 2.0, 40: 1.0}, store=broken)
        world.run(monkeypatch)
        steps = [[x.counters.env_steps for x in y] for y in (world.store.lasting, world.store.bests)]
        assert steps == [[15, 30], [20]], world.sinks.notes
        assert [x.learner for x in world.store.lasting] == [x.counters.updates for x in world.store.lasting]
        (line,) = world.sinks.notes
        assert line.startswith("checkpoint periodic/15: ") and line.endswith("; it will be tried again")


def test_a_best_that_waits_is_not_replaced_by_a_lesser_one(monkeypatch):
    """It is the best until a better one comes, and is saved at the end at the latest."""
    changes = {"steps": 40, "log_every": 0, "eval_every": 10}
    world = World(make(**changes), scores={10: 5.0, 20: 3.0, 30: 4.0, 40: 1.0}, store=Stores(failures=1))
    world.run(monkeypatch)
    assert [x.counters.env_steps for x in world.store.bests] == [10]
    assert world.store.reasons == ["final", "best"]
    world = World(make(**changes), scores={10: 5.0, 20: 6.0}, store=Stores(failures=1))
    world.run(monkeypatch)
    assert [x.counters.env_steps for x in world.store.bests] == [20]


def test_a_best_that_cannot_be_saved_at_all_is_not_lost_in_silence(monkeypatch):
    class Full(Stores):
        def save(self, store, *given):
            self.failures = int(store == "best")
            return super().save(store, *given)

    world = World(make(steps=10, log_every=0, eval_every=10), store=Full())
    with pytest.raises(exits.WriteFailed, match="checkpoint best/10 is not on disk, only the last state is"):
        world.run(monkeypatch)
    assert [x.counters.env_steps for x in world.store.saved] == [10]


def test_a_best_whose_rows_are_not_on_disk_waits(monkeypatch):
    """As every checkpoint that a run may go on from; it is saved with the next one."""
    world = World(make(steps=30, log_every=10, eval_every=20, save_every=10), scores={20: 2.0, 30: 1.0})
    flushes = []
    monkeypatch.setattr(world.sinks, "flush", lambda: flushes.append(0) or len(flushes) != 2)
    world.run(monkeypatch)
    assert world.sinks.notes[0].startswith(
        "checkpoint best/20: put off, since rows before it are not on disk"
    )
    assert [x.counters.env_steps for x in world.store.bests] == [20]
    assert [x.counters.env_steps for x in world.store.saved] == [10, 20, 30]
