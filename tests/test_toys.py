"""The toys and the adapter that hosts device environments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.config import EnvConfig
from jaxrl.envs import Clock, Hosted, Reach, make
from jaxrl.envs.base import Plain, State
from jaxrl.envs.toys import clock_reward
from jaxrl.types import ArraySpec, Discrete, Spaces


def roll(env, policy, steps):
    """Rows [1 + steps] of `policy(step) -> action`."""
    rows = [env.reset()]
    for _ in range(steps):
        env.send(policy(rows[-1]))
        rows.append(env.recv())
    return rows


def noop(row):
    return np.zeros(len(row.reward), int)


def stack(rows):
    """Leaves [T, N, ...]."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def test_the_clock_tells_its_row():
    rows = stack(roll(Hosted(Clock(size=4), num_envs=6, seed=0), noop, 300))
    count = rows.obs["count"][..., 0]
    step = np.diff(count, axis=0)
    assert ((step == 1) | rows.is_first[1:]).all()
    assert (count[rows.is_first] == 0).all() and (count[~rows.is_first] > 0).all()
    image = rows.obs["image"].astype(int)
    assert (image == image[:, :, :1, :1]).all()
    red, green, tag = np.moveaxis(image[:, :, 0, 0], -1, 0)
    np.testing.assert_array_equal(red + 256 * green, count)
    assert ((tag[1:] == tag[:-1]) | rows.is_first[1:]).all()
    expected = np.where(rows.is_first, 0, clock_reward(count.astype(int)))
    np.testing.assert_array_equal(rows.reward, expected)
    lengths = count[rows.is_last]
    assert set(lengths) == set(range(10, 21))
    share = rows.is_terminal[rows.is_last].mean()
    assert 0.3 < share < 0.7


def test_a_clock_of_fixed_length():
    clock = Clock(min_length=300, max_length=300, terminal_share=1, size=2)
    rows = stack(roll(Hosted(clock, num_envs=2, seed=0), noop, 310))
    assert rows.is_last[300].all() and rows.is_terminal[300].all() and rows.is_last.sum() == 2
    np.testing.assert_array_equal(rows.obs["image"][299, 0, 0, 0, :2], [43, 1])  # 256 + 43
    gray = Hosted(Clock(size=2, gray=True), num_envs=1, seed=0)
    assert gray.reset().obs["image"].shape == (1, 2, 2, 1)


def test_repeated_actions_sum_rewards_and_stop_at_the_end():
    clock = Clock(min_length=8, max_length=8, terminal_share=1, size=2)
    rows = stack(roll(Hosted(clock, num_envs=2, seed=0, action_repeat=3), noop, 8))
    np.testing.assert_array_equal(rows.obs["count"][:, 0, 0], [0, 3, 6, 8, 0, 3, 6, 8, 0])
    every = np.asarray(clock_reward(np.arange(9)))
    sums = [0, every[1:4].sum(), every[4:7].sum(), every[7:9].sum()]
    np.testing.assert_array_equal(rows.reward[:, 0], [*sums, *sums, 0])
    assert rows.is_terminal[[3, 7]].all() and rows.is_last.sum() == 4


def test_a_time_limit_cuts_but_does_not_terminate():
    clock = Clock(min_length=8, max_length=8, terminal_share=1, size=2)
    rows = stack(roll(Hosted(clock, num_envs=1, seed=0, action_repeat=3, time_limit=5), noop, 6))
    np.testing.assert_array_equal(rows.obs["count"][:, 0, 0], [0, 3, 5, 0, 3, 5, 0])
    assert rows.is_last[[2, 5]].all() and not rows.is_terminal.any()
    at_the_end = stack(roll(Hosted(clock, num_envs=1, seed=0, time_limit=8), noop, 9))
    assert at_the_end.is_terminal[8].all()  # an end in its own right, on the last step allowed


def controller(row):
    position, velocity, goal = np.split(row.obs["vector"], 3, axis=1)
    return np.clip(8 * (goal - position) - 0.8 * velocity, -1, 1)


def test_reach_separates_policies():
    rng = np.random.default_rng(0)
    env = Hosted(Reach(), num_envs=64, seed=0)
    scores = {}
    for name, policy in {
        "random": lambda row: rng.uniform(-1, 1, (64, 2)).astype(np.float32),
        "controller": controller,
    }.items():
        rows = stack(roll(env, policy, 50))
        assert rows.is_last[50].all() and rows.is_last.sum() == 64
        assert not rows.is_terminal.any()
        assert rows.reward.min() >= 0 and rows.reward.max() <= 1
        assert np.abs(rows.obs["vector"]).max() <= 1 + 1e-6
        scores[name] = rows.reward.sum(0)
    assert scores["random"].mean() < 5
    assert scores["controller"].mean() > 45 and scores["controller"].min() > 40


def test_catch_can_be_won():
    env = make("toy_catch", EnvConfig(action_repeat=1), num_envs=8, seed=0)

    def follow(row):
        board = row.obs["board"].reshape(-1, 10, 5)
        ball = board[:, :9].sum(1).argmax(-1)
        return 1 + np.sign(ball - board[:, 9].argmax(-1))

    best = stack(roll(env, follow, 99))
    rng = np.random.default_rng(0)
    random = stack(roll(env, lambda row: rng.integers(0, 3, 8), 999))
    env.close()
    assert best.is_last[9::10].all() and best.is_last.sum() == 80  # ten rows an episode
    np.testing.assert_array_equal(best.is_terminal, best.is_last)
    np.testing.assert_array_equal(best.reward, best.is_last)
    assert set(np.unique(random.reward)) == {-1, 0, 1}
    assert -0.75 < random.reward[random.is_last].mean() < -0.45
    assert (best.obs["board"].sum(-1) == 2 - (best.reward == 1)).all()


@pytest.mark.parametrize("task", ["toy_clock", "toy_reach"])
def test_a_snapshot_continues_bit_for_bit(task):
    config = EnvConfig(size=8, action_repeat=2)

    def begin(seed):
        return make(task, config, num_envs=3, seed=seed)

    rng = np.random.default_rng(0)
    space = begin(0).spaces.action
    actions = (
        rng.integers(0, space.n, (60, 3))
        if task == "toy_clock"
        else rng.uniform(-1, 1, (60, 3, 2)).astype("f")
    )

    def go(env, chosen):
        rows = []
        for action in chosen:
            env.send(action)
            rows.append(env.recv())
        return rows

    env = begin(7)
    env.reset()
    newest = go(env, actions[:23])[-1]
    snapshot = env.snapshot()
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(snapshot))
    snapshot = jax.tree.map(np.copy, snapshot)
    straight = go(env, actions[23:])
    other = begin(99)
    jax.tree.map(np.testing.assert_array_equal, other.restore(snapshot), newest)
    jax.tree.map(np.testing.assert_array_equal, go(other, actions[23:]), straight)
    jax.tree.map(np.testing.assert_array_equal, env.restore(snapshot), newest)
    assert any(row.is_first.any() for row in straight)


def test_a_wrong_snapshot_is_refused():
    env = Hosted(Reach(), num_envs=2, seed=0)
    with pytest.raises(RuntimeError, match="after reset"):
        env.snapshot()
    other = Hosted(Reach(), num_envs=3, seed=0)
    other.reset()
    with pytest.raises(ValueError, match="snapshot of another"):
        env.restore(other.snapshot())
    with pytest.raises(ValueError, match="snapshot of another"):
        env.restore(None)


class Keyed(Plain):
    """A device environment with a typed key and weakly typed numbers in its state."""

    spaces = Spaces(obs={"x": ArraySpec((1,), np.dtype(np.float32))}, action=Discrete(2))

    def reset(self, key):
        return self._state(key, 0.0)

    def step(self, state, action):
        return self._state(jax.random.split(state.info["key"])[0], 1.0)

    def _state(self, key, reward):
        x = jax.random.uniform(key, (1,))
        return State(
            data=(),
            obs={"x": x},
            reward=jnp.asarray(reward),
            done=(x[0] > 0.8) * 1.0,
            metrics={},
            info={"truncation": jnp.asarray(0.0), "key": key},
        )


def test_keys_in_the_state_survive_a_snapshot():
    env = Hosted(Keyed(), num_envs=2, seed=0)
    env.reset()
    snapshot = env.snapshot()
    rows = roll_on(env, 20)
    env.restore(snapshot)
    jax.tree.map(np.testing.assert_array_equal, roll_on(env, 20), rows)
    assert any(row.is_last.any() for row in rows)


def roll_on(env, steps):
    rows = []
    for _ in range(steps):
        env.send(np.zeros(env.num_envs, int))
        rows.append(env.recv())
    return rows


def test_every_transfer_is_explicit():
    with jax.transfer_guard("disallow"):
        env = Hosted(Reach(length=7), num_envs=2, seed=0)
        env.reset()
        for _ in range(9):
            env.send(np.zeros((2, 2), np.float32))
            env.recv()
        env.restore(env.snapshot())
        env.reset()


def test_one_compilation_serves_equal_environments():
    from jaxrl.envs.hosted import compiled

    def run():
        env = Hosted(Clock(size=3, min_length=3, max_length=4), num_envs=2, seed=0)
        roll(env, noop, 9)
        env.restore(env.snapshot())
        roll_on(env, 2)

    run()
    before = compiled.cache_info().misses
    run()
    assert compiled.cache_info().misses == before and compiled.cache_info().hits > 20


def test_episodes_differ_and_keys_are_not_reused():
    rows = stack(
        roll(Hosted(Reach(length=2), num_envs=4, seed=0), lambda row: np.zeros((4, 2), np.float32), 30)
    )
    starts = rows.obs["vector"][rows.is_first]
    assert len(np.unique(starts, axis=0)) == len(starts) == 44
    with jax.debug_key_reuse(True):
        for env in (Clock(), Reach()):
            jax.jit(env.reset)(jax.random.key(0))
