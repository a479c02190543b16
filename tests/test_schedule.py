"""When things happen: the schedule, the counts that the banner promises, and a loop that keeps both."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl.config import Config, replace
from jaxrl.plan import Plan, ring_rows, rounding_notes
from jaxrl.schedule import Clock, due, next_event, round_up, updates_due


def simulated(clock, *, initial=False, cuts=(), settled=-1, now=0):
    """(rows, evaluations, saves) by env_step, of a loop that is cut and continued at the steps `cuts`."""
    rows, evaluations, saves = [], [], []
    while True:
        if settled < now:  # a resume does not settle a step twice
            rows += [now] * clock.logs(now)
            evaluations += [now] * clock.evaluates(now, initial)
            settled = now
        if now == clock.steps:
            return rows, evaluations, [*saves, now]
        if now in cuts:
            return tuple(
                a + b
                for a, b in zip(
                    (rows, evaluations, [*saves, now]),
                    simulated(clock, initial=initial, cuts=set(cuts) - {now}, settled=settled, now=now),
                    strict=True,
                )
            )
        saves += [now] * clock.saves(now)
        stop = min([clock.next_stop(now), *(c for c in cuts if c > now)])
        assert now < stop <= clock.steps and stop % clock.stride == 0
        now = stop


def multiples(every, steps):
    return [*range(every, steps, every), steps] if every else []


def test_the_table_of_the_specification():
    """steps=400, every 100 env_steps, action repeat 4."""
    clock = Clock.of(4, steps=400, log_every=100, eval_every=100, save_every=200)
    rows, evaluations, saves = simulated(clock)
    assert rows == [0, 100, 200, 300, 400]
    assert evaluations == [100, 200, 300, 400]
    assert saves == [200, 400]
    assert simulated(clock, initial=True)[1] == [0, 100, 200, 300, 400]


def test_vector_steps_round_intervals_up_once():
    """Three environments: one step is 12 env_steps, and rows stay equally spaced."""
    clock = Clock.of(12, steps=400, log_every=100, eval_every=100, save_every=0)
    assert clock == Clock(12, 408, 108, 108, 0)
    rows, evaluations, saves = simulated(clock)
    assert rows == [0, 108, 216, 324, 408]
    assert evaluations == [108, 216, 324, 408]
    assert saves == [408]


def test_intervals_that_do_not_divide():
    clock = Clock.of(4, steps=400, log_every=40, eval_every=200, save_every=0)
    rows, evaluations, _ = simulated(clock)
    assert rows == list(range(0, 401, 40)) and evaluations == [200, 400]
    rows, evaluations, _ = simulated(Clock.of(4, steps=400, log_every=120, eval_every=300, save_every=0))
    assert rows == [0, 120, 240, 360, 400] and evaluations == [300, 400]
    assert simulated(Clock.of(4, steps=400, log_every=0, eval_every=0, save_every=0)) == ([], [], [400])
    assert simulated(Clock.of(4, steps=4, log_every=100, eval_every=100, save_every=0))[:2] == ([0, 4], [4])


@settings(max_examples=300, deadline=None)
@given(
    num_envs=st.integers(1, 9),
    repeat=st.integers(1, 8),
    steps=st.integers(1, 700),
    periods=st.tuples(*[st.integers(0, 300)] * 3),
    initial=st.booleans(),
    cut_shares=st.lists(st.floats(0, 1), max_size=3),
)
def test_the_schedule_holds_whatever_the_resume_points(num_envs, repeat, steps, periods, initial, cut_shares):
    log_every, eval_every, save_every = periods
    stride = num_envs * repeat
    clock = Clock.of(stride, steps=steps, log_every=log_every, eval_every=eval_every, save_every=save_every)
    assert 0 <= clock.steps - steps < stride and clock.steps % stride == 0
    for asked, got in zip(periods, (clock.log_every, clock.eval_every, clock.save_every), strict=True):
        assert 0 <= got - asked < stride and got % stride == 0 and (got == 0) == (asked == 0)
    cuts = {int(share * (clock.steps // stride - 1)) * stride for share in cut_shares}
    rows, evaluations, saves = simulated(clock, initial=initial, cuts=cuts)
    assert rows == ([0, *multiples(clock.log_every, clock.steps)] if log_every else [])
    assert evaluations == [0] * (initial and eval_every > 0) + multiples(clock.eval_every, clock.steps)
    planned = multiples(clock.save_every, clock.steps) or [clock.steps]
    assert set(saves) == {*planned, *cuts}


def test_due_and_round_up():
    assert [now for now in range(13) if due(now, 4)] == [4, 8, 12]
    assert not any(due(now, 0) for now in range(13))
    assert [round_up(x, 4) for x in (0, 1, 4, 5)] == [0, 4, 4, 8]
    with pytest.raises(ValueError, match=r"interval -1 must be >= 0"):
        round_up(-1, 4)
    assert next_event(0, 10, (0, 0)) == 10
    assert next_event(3, 10, (4, 0)) == 4 and next_event(4, 10, (4, 7)) == 7 and next_event(8, 10, (4,)) == 10


def test_updates_of_a_whole_benchmark_run():
    """110,000 decisions at ratio 256 from decision 1,088: 27,229 updates, as dreamerv3 makes."""
    owed = updates_due(110_000, 1_088, 0, train_ratio=256, rows=16 * 64)
    assert abs(owed - 27_229) <= 1
    done = 0
    for agent_steps in range(110_001):
        first = 1_088 if agent_steps >= 1_088 else -1
        due_now = updates_due(agent_steps, first, done, train_ratio=256, rows=16 * 64)
        assert due_now <= 1
        done += due_now
    assert done == owed


def test_updates_never_burst_and_never_drift():
    assert updates_due(50, -1, 0, train_ratio=256, rows=128) == 0  # not begun
    assert updates_due(50, 50, 0, train_ratio=0, rows=128) == 0  # learning is off
    assert updates_due(50, 50, 0, train_ratio=256, rows=128) == 1  # the first opportunity
    assert updates_due(51, 50, 3, train_ratio=256, rows=128) == 0
    for ratio, rows in ((0.3, 7), (1 / 3, 1), (1e-3, 64), (97.0, 96)):
        done = 0
        for agent_steps in range(10, 5_000, 3):
            done += updates_due(agent_steps, 10, done, train_ratio=ratio, rows=rows)
            exact = 1 + (agent_steps - 10) * ratio / rows
            assert exact - 1 - 1e-6 < done <= exact + 1e-6


def loop_counts(config):
    """(first update in agent_steps, updates, evaluations) of a loop that follows the rules one by one."""
    plan = Plan.of(config)
    n, repeat = config.env.num_envs, config.env.action_repeat
    window, rows = config.batch_length + int(config.replay.context), config.batch_size * config.batch_length
    first, updates, written, now = -1, 0, 0, 0
    while now < plan.clock.steps:
        now += n * repeat
        written += 1  # per environment
        agent_steps = now // repeat
        if first < 0 and agent_steps >= config.warmup and written >= window:
            first = agent_steps
        if config.agent != "random":
            updates += updates_due(agent_steps, first, updates, train_ratio=config.train_ratio, rows=rows)
    return first, updates, len(simulated(plan.clock, initial=config.eval_initial)[1])


SMOKE = {
    "task": "atari_pong",
    "steps": 1_600,
    "warmup": 160,
    "eval_every": 400,
    "eval_eps": 1,
    "batch_size": 4,
    "batch_length": 32,
}


def test_the_smoke_run_makes_481_updates():
    plan = Plan.of(replace(Config(), SMOKE))
    assert (plan.first_update, plan.updates, plan.evaluations) == (160, 481, 4)


def test_the_benchmark_makes_one_update_per_16_env_steps():
    plan = Plan.of(Config())
    assert plan.first_update == 65
    assert plan.updates == 1 + (100_000 - 65) // 4


@settings(max_examples=150, deadline=None)
@given(
    num_envs=st.integers(1, 7),
    repeat=st.integers(1, 5),
    steps=st.integers(1, 3_000),
    warmup=st.integers(0, 200),
    batch=st.tuples(st.integers(1, 5), st.integers(2, 20)),
    ratio=st.sampled_from([0.0, 0.5, 1.0, 3.3, 64.0]),
    eval_every=st.integers(0, 900),
    flags=st.tuples(st.booleans(), st.booleans(), st.sampled_from(["dreamer", "random"])),
)
def test_the_plan_counts_what_the_loop_does(num_envs, repeat, steps, warmup, batch, ratio, eval_every, flags):
    context, initial, agent = flags
    changes = {
        "env.num_envs": num_envs,
        "env.action_repeat": repeat,
        "steps": steps,
        "warmup": warmup,
        "batch_size": batch[0],
        "batch_length": batch[1],
        "train_ratio": ratio,
        "eval_every": eval_every,
        "eval_initial": initial,
        "replay.context": context,
        "agent": agent,
    }
    config = replace(Config(), changes)
    plan = Plan.of(config)
    first, updates, evaluations = loop_counts(config)
    assert (plan.updates, plan.evaluations) == (updates, evaluations)
    if first >= 0:
        assert plan.first_update == first
    else:
        assert plan.first_update > plan.clock.steps // repeat


def test_a_ring_is_no_larger_than_the_run_can_fill():
    assert ring_rows(Config()) == 100_000
    assert ring_rows(replace(Config(), {"replay.capacity": 5_000})) == 5_000
    many = {"env.num_envs": 4, "replay.capacity": 5_000}
    assert ring_rows(replace(Config(), many)) == 1_250
    assert ring_rows(replace(Config(), {"steps": 40})) == 65  # one sequence, even if it never fills


def test_rounding_is_told():
    config = replace(Config(), {**SMOKE, "env.num_envs": 3, "log_every": 100})
    notes = rounding_notes(config)
    assert [note.split(" ")[0] for note in notes] == ["log_every=100", "eval_every=400", "steps=1600"]
    assert "rounded up to 108" in notes[0] and "3 environments is 12 env_steps" in notes[0]
    assert not rounding_notes(replace(Config(), SMOKE))
