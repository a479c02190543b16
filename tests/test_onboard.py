"""The loop on the device against the loop on the host: the same rows, scores and states, bit for bit."""

import jax
import numpy as np
import pytest
from small import assert_same_arrays, assert_same_rows, make_learner, run

from jaxrl import chunk, learners, onboard, parts, programs, sources
from jaxrl.envs.base import Plain, State
from jaxrl.envs.hosted import Hosted
from jaxrl.types import ArraySpec, Continuous, Spaces

FLAGS = ("--env.num_envs=2", "--steps=200", "--log_every=40", "--eval_every=100", "--train_ratio=4")


@pytest.fixture(autouse=True)
def small_learner(monkeypatch):
    monkeypatch.setitem(learners.LEARNERS, "dreamer", make_learner)


@pytest.fixture
def chunks(monkeypatch):
    """The loop as one program, as on an accelerator."""
    for module in (parts, chunk, onboard, programs, sources):
        if hasattr(module, "loops"):
            monkeypatch.setattr(module, "loops", lambda _: True)


@pytest.fixture(scope="module")
def on_host(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(learners.LEARNERS, "dreamer", make_learner)
        return run(tmp_path_factory.mktemp("host") / "run", *FLAGS, "--env.placement=host")


def assert_same(run, other):
    assert_same_rows(run, other)
    assert run.scores == other.scores and run.scores
    arrays = run.arrays(), other.arrays()
    assert_same_arrays(*arrays)


def test_step_by_step(on_host, tmp_path):
    assert_same(run(tmp_path / "run", *FLAGS, "--env.placement=device"), on_host)


def test_in_chunks(on_host, tmp_path, chunks):
    found = run(tmp_path / "run", *FLAGS, "--env.placement=device")
    assert_same(found, on_host)
    assert "chunk" in found.note["compile_s_each"]


def test_a_run_cut_and_continued_is_the_straight_run(on_host, tmp_path, chunks):
    flags = (*FLAGS, "--env.placement=device")
    for cut in (2, 1, 3):  # dispatches of chunks
        run(tmp_path / "run", *flags, f"--debug.fault=term@act:{cut}", code=143)
    found = run(tmp_path / "run", *flags)
    starts = [x["step"] for x in found.note["starts"]]
    assert len(starts) == 4 and starts == sorted(starts) and any(step % 40 for step in starts)
    assert_same(found, on_host)


def test_a_dry_run_tries_the_chunk(tmp_path, capsys, chunks, monkeypatch):
    ran = []
    chunk_of = programs.Programs.run_chunk
    monkeypatch.setattr(programs.Programs, "run_chunk", lambda *a: ran.append(a[2].rows) or chunk_of(*a))
    run(tmp_path / "run", *FLAGS, "--env.placement=device", "--dry_run")
    assert ran == [1] and not (tmp_path / "run").exists()
    assert "chunk (temporary)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flag",
    ["--replay.holdout=0.2", "--replay.save_episodes=true", "--replay.placement=host", "--overlap=true"],
)
def test_what_needs_rows_on_the_host_is_refused_in_one_line(tmp_path, capsys, flag):
    run(tmp_path / "run", *FLAGS, "--env.placement=device", flag, code=2)
    lines = capsys.readouterr().err.splitlines()
    assert flag[2:].split("=")[0] in lines[-1] and "--env.placement=auto" in lines[-1]


class Brittle(Plain):
    """Its state doubles each step until it is no number any more; the reward is 1."""

    spaces = Spaces(obs={"x": ArraySpec((1,), np.dtype(np.float32))}, action=Continuous(1))
    is_physics = True

    def reset(self, key):
        return self._row(jax.random.uniform(key, (), np.float32, 1, 2), np.float32(0))

    def step(self, state, action):
        return self._row(state.data * np.float32(1e13) * (1 + action[0]), np.float32(1))

    def _row(self, x, reward):
        zero = np.float32(0)
        return State(
            data=x, obs={"x": x[None]}, reward=reward, done=zero, metrics={}, info={"truncation": zero}
        )


def test_a_state_that_is_not_finite_is_cut_off_counted_and_never_shown():
    env = Hosted(Brittle(), num_envs=3, seed=0)
    rows = [env.reset()]
    for _ in range(12):
        env.send(np.array([[0.0], [0.5], [-1.0]], np.float32))
        rows.append(env.recv())
    assert all(np.isfinite(row.obs["x"]).all() and np.isfinite(row.reward).all() for row in rows)
    last = np.array([row.is_last for row in rows])
    assert not last[:, 2].any()  # multiplied by 0, it lives for ever
    # 1e13 twice is below 3.4e38, three times is not: the third step fails, and its row repeats the second's.
    assert np.flatnonzero(last[:, 0]).tolist() == [3, 7, 11]
    assert [float(row.reward[0]) for row in rows[:5]] == [0, 1, 1, 0, 0]
    assert not any(row.is_terminal.any() for row in rows)
    assert env.bad == last.sum() == 6


class Won(Brittle):
    """Succeeds, and ends, when its state is above 1e25."""

    def _row(self, x, reward):
        state = super()._row(x, reward)
        won = jax.numpy.float32(x > 1e25)
        return state.replace(done=won, info=state.info | {"success": won})


def test_successes_come_with_the_rows_without_a_transfer_that_nobody_asked_for():
    env = Hosted(Won(), num_envs=2, seed=0)
    env.reset()
    with jax.transfer_guard("disallow"):
        for number in range(1, 7):
            env.send(np.array([[0.0], [-1.0]], np.float32))
            row = env.recv()
            assert row.is_last.tolist() == env.outcome.success.tolist() == [number in (2, 5), False]
    assert row.is_terminal.tolist() == [False, False]


def test_the_chunk_grows_until_it_takes_its_time():
    length = 8
    for _ in range(20):
        length = onboard.adjusted(length, length * 0.001)
    assert 0.25 <= length * 0.001 <= 1.0
    assert onboard.adjusted(1, 100.0) == 1 and onboard.adjusted(onboard.LONGEST, 0.0) == onboard.LONGEST


def test_the_same_environments_whatever_their_number():
    def first_column(n):
        env = Hosted(Brittle(), num_envs=n, seed=5)
        rows = [env.reset()]
        for _ in range(9):
            env.send(np.zeros((n, 1), np.float32))
            rows.append(env.recv())
        return np.array([row.obs["x"][0, 0] for row in rows])

    np.testing.assert_array_equal(first_column(1), first_column(4))
