"""The contract of a HostEnv, held by every environment; and the door `make`."""

import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxrl.config import ConfigError, EnvConfig
from jaxrl.envs import ATARI100K, check_action, list_tasks, make
from jaxrl.envs.base import env_seeds
from jaxrl.types import Continuous, Discrete

N = 3
SMALL = dict(size=16)
CASES = {
    "pong": ("atari_pong", EnvConfig(**SMALL, time_limit=120)),
    "pong_gray_stack": ("atari_pong", EnvConfig(**SMALL, time_limit=120, gray=True, stack=3, sticky=0.25)),
    "breakout": ("atari_breakout", EnvConfig(**SMALL)),
    "breakout_terminal": ("atari_breakout", EnvConfig(**SMALL, lives="terminal", clip_reward=True)),
    "breakout_discount": ("atari_breakout", EnvConfig(**SMALL, lives="discount", full_actions=True)),
    "catch": ("toy_catch", EnvConfig(action_repeat=1)),
    "clock": ("toy_clock", EnvConfig(**SMALL, action_repeat=1)),
    "clock_repeat": ("toy_clock", EnvConfig(**SMALL, action_repeat=3, gray=True)),
    "clock_limit": ("toy_clock", EnvConfig(**SMALL, action_repeat=1, time_limit=12)),
    "reach": ("toy_reach", EnvConfig(action_repeat=1)),
    "dmc": ("dmc_cartpole_swingup", EnvConfig(observe="state", action_repeat=4, time_limit=80)),
}


def build(case, num_envs=N, seed=0):
    task, config = CASES[case]
    return make(task, config, num_envs=num_envs, seed=seed)


def draw(rng, env):
    """A random action of all environments."""
    if isinstance(env.spaces.action, Discrete):
        return rng.integers(0, env.spaces.action.n, env.num_envs)
    return rng.uniform(-1, 1, (env.num_envs, env.spaces.action.size)).astype(np.float32)


def play(env, steps, seed=0):
    """Steps (with the first row) and outcomes of a random policy."""
    rng = np.random.default_rng(seed)
    rows, outcomes = [env.reset()], [env.outcome]
    for _ in range(steps):
        env.send(draw(rng, env))
        rows.append(env.recv())
        outcomes.append(env.outcome)
    return rows, outcomes


@pytest.mark.parametrize("case", CASES)
def test_rows_follow_the_time_convention(case):
    env = build(case)
    rows, outcomes = play(env, 260)
    env.close()
    previous = np.ones(N, bool)  # before the first row
    for row, outcome in zip(rows, outcomes, strict=True):
        np.testing.assert_array_equal(row.is_first, previous)
        assert (row.reward[row.is_first] == 0).all()
        assert np.isfinite(row.reward).all()
        if "discount" in case:
            assert not (row.is_last & ~row.is_terminal).any()  # no time limit here
        else:
            assert not (row.is_terminal & ~row.is_last).any()
        assert not (row.is_first & row.is_last).any()
        assert not (outcome.is_over & ~row.is_last).any()
        previous = row.is_last
    assert sum(row.is_last.sum() for row in rows) >= N, "too few episodes to test anything"


@pytest.mark.parametrize("case", CASES)
def test_arrays_match_the_spaces(case):
    env = build(case)
    rows, outcomes = play(env, 3)
    env.close()
    for row, outcome in zip(rows, outcomes, strict=True):
        assert set(row.obs) == set(env.spaces.obs)
        for key, spec in env.spaces.obs.items():
            assert row.obs[key].shape == (N, *spec.shape)
            assert row.obs[key].dtype == spec.dtype
        for flag in (row.is_first, row.is_last, row.is_terminal, outcome.is_over):
            assert flag.shape == (N,) and flag.dtype == np.bool_
        for reward in (row.reward, outcome.reward):
            assert reward.shape == (N,) and reward.dtype == np.float32
        for leaf in jax.tree.leaves(row):
            assert isinstance(leaf, np.ndarray) and leaf.flags.c_contiguous


@pytest.mark.parametrize("case", CASES)
def test_arrays_are_never_written_again(case):
    env = build(case)
    rng = np.random.default_rng(0)
    rows = [env.reset()]
    copies = [jax.tree.map(np.copy, rows[0])]
    for _ in range(40):
        action = draw(rng, env)
        env.send(action)
        action[:] = 0  # the environment must have its own
        rows.append(env.recv())
        copies.append(jax.tree.map(np.copy, rows[-1]))
        for leaf in jax.tree.leaves(rows[-2]):
            if leaf.flags.writeable:
                leaf[...] = 0  # nor may it read what it has handed out
    env.close()
    untouched, _ = play(build(case), 40)
    for copy, row in zip(copies, untouched, strict=True):
        jax.tree.map(np.testing.assert_array_equal, copy, row)
    leaves = [leaf for row in rows for leaf in jax.tree.leaves(row)]
    addresses = [leaf.__array_interface__["data"][0] for leaf in leaves]
    assert len(set(addresses)) == len(addresses)


@pytest.mark.parametrize("case", CASES)
def test_the_seed_decides_everything(case):
    first, _ = play(build(case, seed=1), 60)
    again, _ = play(build(case, seed=1), 60)
    other, _ = play(build(case, seed=2), 60)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    key = max(first[0].obs)  # board, image, vector
    runs = [np.stack([row.obs[key] for row in rows]) for rows in (first, other)]
    assert (runs[0] != runs[1]).any(), "two seeds are alike"
    assert (runs[0][:, 0] != runs[0][:, 1]).any(), "two environments of one run are alike"


@pytest.mark.parametrize("case", ["pong", "catch", "clock", "reach", "dmc"])
def test_an_environment_does_not_depend_on_its_neighbours(case):
    alone, three = build(case, num_envs=1, seed=5), build(case, num_envs=3, seed=5)
    rng = np.random.default_rng(0)
    a, b = alone.reset(), three.reset()
    for _ in range(50):
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[0], y[0]), a, b)
        action = draw(rng, three)
        alone.send(action[:1])
        three.send(action)
        a, b = alone.recv(), three.recv()


@pytest.mark.parametrize("case", ["pong", "breakout_terminal", "catch", "clock", "reach", "dmc"])
def test_turns_are_kept(case):
    env = build(case)
    action = draw(np.random.default_rng(0), env)
    with pytest.raises(RuntimeError, match="before reset"):
        env.send(action)
    env.reset()
    with pytest.raises(RuntimeError, match="without send"):
        env.recv()
    env.send(action)
    with pytest.raises(RuntimeError, match="twice"):
        env.send(action)
    assert env.reset().is_first.all()  # a step under way is dropped
    env.send(action)
    assert not env.recv().is_first.any()
    env.send(action)
    env.close()  # in the middle of a step
    env.close()
    for use in (env.reset, env.recv, lambda: env.send(action)):
        with pytest.raises(RuntimeError, match="closed"):
            use()


def random_bad_action(rng, space, num_envs):
    """Something that no environment may step with."""
    good = (num_envs, *space.shape)
    wrong_shape = [(), (0,), (num_envs + 1, *space.shape), (num_envs, 7), (1, *good), (num_envs * 40,)]
    huge = [-1, -5, 2**31 - 1, -(2**31), 2**62, 99, 100_000]
    kind = rng.integers(0, 5)
    if kind == 0:
        shape = wrong_shape[rng.integers(len(wrong_shape))]
        return rng.integers(0, 2, shape) if isinstance(space, Discrete) else rng.uniform(-1, 1, shape)
    if kind == 1:
        dtypes = [
            bool,
            "U4",
            object,
            complex,
            "M8[s]",
            np.float16 if isinstance(space, Discrete) else np.int8,
        ]
        return np.zeros(good, dtypes[rng.integers(len(dtypes))])
    if kind == 2:
        return [None, [0] * num_envs, 0, "noop", {"action": 0}, np.int32(0)][rng.integers(6)]
    if isinstance(space, Discrete):
        if kind == 3:
            return rng.choice([np.nan, np.inf, -np.inf, 0.5, 1.0], good)
        action = rng.integers(0, space.n, good)
        action[rng.integers(num_envs)] = rng.choice([*huge, space.n])
        return action
    action = rng.uniform(-1, 1, good).astype(rng.choice([np.float16, np.float32, np.float64]))
    action.flat[rng.integers(action.size)] = rng.choice([np.nan, np.inf, -np.inf, 1.01, -3, 6e4])
    return action


@pytest.mark.parametrize("case", ["pong", "catch", "reach"])
def test_bad_actions_never_reach_the_environment(case):
    env, untouched = build(case), build(case)
    rng, good = np.random.default_rng(0), np.random.default_rng(1)
    env.reset()
    untouched.reset()
    for i in range(10_000):
        bad = random_bad_action(rng, env.spaces.action, N)
        with pytest.raises(ValueError, match="action"):
            env.send(bad)
        if i % 500 == 0:
            action = draw(good, env)
            env.send(action)
            untouched.send(action)
            jax.tree.map(np.testing.assert_array_equal, env.recv(), untouched.recv())


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (np.array([0, 6, 1]), r"action\[1\]=6 is outside \[0, 6\)"),
        (np.array([0, 1, -2]), r"action\[2\]=-2"),
        (np.zeros(3), r"integers \[3\], got float64 \[3\]"),
        (np.zeros(2, int), r"integers \[3\], got int64 \[2\]"),
        ([0, 0, 0], "numpy array .* got list"),
    ],
)
def test_a_bad_action_is_named(action, words):
    with pytest.raises(ValueError, match=words):
        check_action(action, Discrete(6), 3)


def test_a_bad_force_is_named():
    with pytest.raises(ValueError, match=r"action\[1, 0\]=nan is not finite or outside \[-1, 1\]"):
        check_action(np.array([[0, 0], [np.nan, 0]]), Continuous(2), 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, ">i4"])
def test_good_actions_become_int32(dtype):
    action = np.arange(12, dtype=dtype)[::2]
    checked = check_action(action, Discrete(11), 6)
    np.testing.assert_array_equal(checked, [0, 2, 4, 6, 8, 10])
    assert checked.dtype == np.int32 and checked.flags.c_contiguous and checked.base is None


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("atari_pnog", "did you mean atari_pong"),
        ("atari_ms_packman", "atari_ms_pacman"),
        ("atari_james_bond", "did you mean atari_jamesbond"),
        ("ALE/Pong-v5", "did you mean atari_pong"),
        ("pong", "did you mean atari_pong"),
        ("toy_cach", "did you mean toy_catch"),
        ("dmc_walker_wlak", "did you mean dmc_walker_walk"),
        ("mjx_cartpole_balanc", "did you mean mjx_cartpole_balance"),
        ("gym_zzz", "tasks are named suite_task"),
        ("../../etc/passwd\n", "unknown task"),
        ("", "unknown task"),
        ("z" * 5000, "unknown task"),
    ],
)
def test_an_unknown_task_names_its_near_matches(task, words):
    with pytest.raises(ConfigError, match=words) as caught:
        make(task, EnvConfig(), num_envs=1, seed=0)
    message = str(caught.value)
    assert "list_tasks" in message and "\n" not in message and len(message) < 300


def test_a_missing_rom_is_named(monkeypatch):
    monkeypatch.setattr("jaxrl.envs.installed_games", lambda: ("breakout",))
    with pytest.raises(ConfigError, match="'atari_pong': its ROM is missing; reinstall .* envpool-assets"):
        make("atari_pong", EnvConfig(), num_envs=1, seed=0)
    monkeypatch.setattr("jaxrl.envs.installed_games", lambda: ())
    with pytest.raises(ConfigError, match="no Atari ROMs are installed"):
        make("atari_pong", EnvConfig(), num_envs=1, seed=0)


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("toy_catch", {}, "env.action_repeat=4: toy_catch needs 1.*add --env.action_repeat=1"),
        ("toy_catch", dict(action_repeat=1, time_limit=5), "env.time_limit=5: toy_catch needs at least 9"),
        ("toy_reach", dict(sticky=0.25), "env.sticky=0.25: only Atari has it, not toy_reach"),
        ("toy_clock", dict(lives="terminal"), "env.lives=terminal: only Atari has it"),
        ("atari_pong", dict(observe="state"), "env.observe=state: only physics tasks have it"),
        ("dmc_walker_walk", dict(cameras="side"), "env.cameras=side: only tasks drawn by the ray"),
        ("dmc_walker_walk", dict(stack=3), "env.stack=3: only Atari has it"),
        ("dmc_walker_walk", dict(gray=True), "env.gray=True: only Atari, toy and mjx tasks have it"),
        ("mjx_cartpole_balance", dict(stage=1), "env.stage=1: only mjx_so101_lift has it"),
        ("toy_catch", dict(placement="device"), "env.placement=device: toy_catch steps on the host"),
    ],
)
def test_options_that_a_task_cannot_follow_are_refused(task, options, words):
    with pytest.raises(ConfigError, match=words):
        make(task, EnvConfig(**options), num_envs=1, seed=0)


def test_tasks_are_listed_without_envpool():
    code = (
        "import sys, jaxrl.envs as e; tasks = e.list_tasks();"
        "assert 'atari_pong' in tasks and 'toy_catch' in tasks, tasks;"
        "assert set(e.ATARI100K) <= set(tasks);"
        "assert 'dmc_ball_in_cup_catch' in tasks and 'mjx_cartpole_balance' in tasks, tasks;"
        "heavy = ('envpool', 'mujoco', 'mujoco_playground');"
        "assert not [m for m in sys.modules if m.partition('.')[0] in heavy]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert len(ATARI100K) == len(set(ATARI100K)) == 26
    assert len(set(list_tasks())) == len(list_tasks()) > 100


def test_seeds_are_distinct_and_stable():
    seeds = np.concatenate([env_seeds(seed, 50) for seed in range(20)])
    assert len(set(seeds.tolist())) == len(seeds)
    assert seeds.min() >= 0 and seeds.max() < 2**31
    np.testing.assert_array_equal(env_seeds(3, 2), env_seeds(3, 9)[:2])


def test_send_returns_before_the_environments_have_stepped():
    env = make("atari_pong", EnvConfig(action_repeat=1000), num_envs=4, seed=0)
    env.reset()
    start = time.perf_counter()
    env.send(np.zeros(4, int))
    sent = time.perf_counter() - start
    env.recv()
    assert sent < (time.perf_counter() - start) / 5
    env.close()
