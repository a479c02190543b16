"""Atari through EnvPool: the Atari-100k protocol, lives, frames."""

import numpy as np
import pytest

from jaxrl.config import EnvConfig
from jaxrl.envs import ATARI100K, make
from jaxrl.envs import atari as atari_module
from jaxrl.envs.atari import AtariEnv, FrameStack, channels_last, pool_options
from jaxrl.envs.games import envpool_id, installed_games
from jaxrl.envs.pool import open_pool
from jaxrl.types import Discrete

MINIMAL_ACTIONS = {
    "atari_pong": 6,
    "atari_breakout": 4,
    "atari_freeway": 3,
    "atari_ms_pacman": 9,
    "atari_alien": 18,
}


@pytest.mark.parametrize("task", ATARI100K)
def test_every_game_of_the_benchmark_runs(task):
    env = make(task, EnvConfig(size=16), num_envs=1, seed=0)
    env.reset()
    for _ in range(2):
        env.send(np.array([env.spaces.action.n - 1]))
        row = env.recv()
    assert row.obs["image"].any() and not row.is_last.any()
    assert env.spaces.action.n == MINIMAL_ACTIONS.get(task, env.spaces.action.n)
    env.close()


def test_every_installed_game_has_a_name_in_envpool():
    import envpool

    known = set(envpool.list_all_envs())
    assert {envpool_id(game) for game in installed_games()} <= known


def test_no_option_of_envpool_is_left_to_its_default():
    pool = open_pool("Pong-v5", num_envs=1, seed=0, threads=0, options=pool_options(EnvConfig()))
    common = {
        *("num_envs", "batch_size", "num_threads", "max_num_players", "thread_affinity_offset"),
        *("seed", "env_seed", "gym_reset_return_info"),
        *("base_path", "task"),  # from EnvPool's registry
    }
    assert set(pool_options(EnvConfig())) | common == set(pool.config)


def test_options_reach_envpool():
    config = EnvConfig(
        size=48,
        gray=True,
        action_repeat=3,
        sticky=0.25,
        full_actions=True,
        noops=7,
        fire_reset=True,
        clip_reward=True,
        time_limit=100,
        threads=2,
    )
    env = make("atari_pong", config, num_envs=4, seed=0)
    expected = dict(
        img_height=48,
        img_width=48,
        gray_scale=True,
        frame_skip=3,
        full_action_space=True,
        noop_max=7,
        use_fire_reset=True,
        reward_clip=True,
        max_episode_steps=34,
        num_threads=2,
        num_envs=4,
        batch_size=4,
        stack_num=1,
        episodic_life=False,
        zero_discount_on_life_loss=False,
        use_inter_area_resize=True,
        thread_affinity_offset=-1,
        mode=-1,
        difficulty=-1,
        repeat_action_probability=0.25,
    )
    assert {name: env._pool.config[name] for name in expected} == expected
    assert env.spaces.action == Discrete(18)
    env.close()


def test_the_defaults_are_the_benchmark():
    options = pool_options(EnvConfig())
    assert options["max_episode_steps"] == 27_000
    assert (options["frame_skip"], options["noop_max"], options["use_fire_reset"]) == (4, 30, False)
    assert (options["repeat_action_probability"], options["full_action_space"]) == (0.0, False)
    assert not options["reward_clip"] and not options["gray_scale"]


@pytest.mark.parametrize(
    ("limit", "steps"), [(40, 10), (41, 11), (1, 1), (0, 2**31 - 2), (10**12, 2**31 - 2)]
)
def test_time_limit_in_env_steps_becomes_whole_steps(limit, steps):
    assert pool_options(EnvConfig(time_limit=limit))["max_episode_steps"] == steps


@pytest.mark.parametrize("lives", ["unused", "discount", "terminal"])
def test_a_time_limit_is_last_but_not_terminal(lives):
    env = make("atari_pong", EnvConfig(size=16, time_limit=40, lives=lives), num_envs=3, seed=0)
    env.reset()
    ends = []
    for step in range(1, 34):
        env.send(np.zeros(3, int))
        row = env.recv()
        assert not row.is_terminal.any()
        assert row.is_last.all() == row.is_last.any()
        ends += [step] if row.is_last.all() else []
        assert row.is_first.all() == (step in (11, 22, 33))
    assert ends == [10, 21, 32]  # ten steps, then a row of the reset
    env.close()


def test_no_time_limit():
    env = make("atari_pong", EnvConfig(size=16, time_limit=0), num_envs=1, seed=0)
    env.reset()
    for _ in range(50):
        env.send(np.zeros(1, int))
        assert not env.recv().is_last.any()
    env.close()


def play_breakout(config, steps=700, seed=3):
    """Rows and outcomes of one game after the other; a fixed pattern of FIRE and moves."""
    env = make("atari_breakout", config, num_envs=1, seed=seed)
    rows, outcomes = [env.reset()], [env.outcome]
    for step in range(steps):
        env.send(np.array([(1, 2, 1, 3)[step % 4]]))
        rows.append(env.recv())
        outcomes.append(env.outcome)
    env.close()
    return rows, outcomes


def column(rows, name):
    return np.array([getattr(row, name)[0] for row in rows])


def test_lives_of_breakout():
    unused, _ = play_breakout(EnvConfig(size=16))
    discount, _ = play_breakout(EnvConfig(size=16, lives="discount"))
    terminal, outcomes = play_breakout(EnvConfig(size=16, lives="terminal"))

    games = column(unused, "is_last").sum()
    assert games >= 2
    np.testing.assert_array_equal(column(unused, "is_terminal"), column(unused, "is_last"))
    # "discount" only adds `is_terminal` rows, four in each whole game of five lives
    for name in ("reward", "is_first", "is_last"):
        np.testing.assert_array_equal(column(unused, name), column(discount, name))
    ends = np.flatnonzero(column(discount, "is_last"))
    assert column(discount, "is_terminal")[: ends[-1] + 1].sum() == 5 * games
    # "terminal" makes five episodes of a game
    over = column(outcomes, "is_over")
    last = column(terminal, "is_last")
    assert last[: np.flatnonzero(over)[-1] + 1].sum() == 5 * over.sum()
    np.testing.assert_array_equal(column(terminal, "is_terminal"), last)
    np.testing.assert_array_equal(column(terminal, "is_first")[1:], last[:-1])


def test_a_clipped_reward_leaves_the_score():
    """Space Invaders pays 5 to 30 a shot."""
    totals = {}
    for clip in (False, True):
        env = make("atari_space_invaders", EnvConfig(size=16, clip_reward=clip), num_envs=2, seed=0)
        env.reset()
        rewards, scores = [], []
        for step in range(150):
            env.send(np.full(2, 1 + step % 5))
            rewards.append(env.recv().reward)
            scores.append(env.outcome.reward)
        totals[clip] = np.array(rewards), np.array(scores)
        env.close()
    raw, scores = totals[False]
    np.testing.assert_array_equal(raw, scores)
    assert raw.max() >= 5
    np.testing.assert_array_equal(totals[True][0], np.sign(raw))
    np.testing.assert_array_equal(totals[True][1], raw)


class ScriptedPool:
    """Plays back rows of one environment: (lives, reward, done, game over)."""

    _state_keys = ("obs", "reward", "info:reward", "done", "info:terminated", "info:lives")

    def __init__(self, script):
        self.script = list(script)
        self.actions = []
        self.action_space = type("Space", (), {"n": 4})

    def _reset(self, ids):
        pass

    def _send(self, arrays):
        self.actions.append(int(arrays[2][0]))

    def _recv(self):
        lives, reward, done, over = self.script.pop(0)
        return [
            np.zeros((1, 3, 8, 8), np.uint8),
            np.float32([reward]),
            np.float32([reward]),
            np.array([done]),
            np.int32([over]),
            np.int32([lives]),
        ]


SCRIPT = [
    (3, 0, False, 0),  # reset
    (3, 1, False, 0),
    (2, 1, False, 0),  # a life lost
    (2, 7, False, 0),  # the game goes on
    (3, 1, False, 0),  # a life won is no loss
    (0, 1, False, 0),  # no lives shown, the game not yet over
    (0, 5, True, 1),
    (3, 0, False, 0),  # reset: more lives than before, nothing lost
    (2, 2, True, 0),  # a life lost as the time limit falls
    (3, 0, False, 0),
]


@pytest.mark.parametrize(
    ("lives", "is_last", "is_terminal", "reward"),
    [
        ("unused", "0000001010", "0000001000", [0, 1, 1, 7, 1, 1, 5, 0, 2, 0]),
        ("discount", "0000001010", "0010001010", [0, 1, 1, 7, 1, 1, 5, 0, 2, 0]),
        ("terminal", "0010001010", "0010001010", [0, 1, 1, 0, 1, 1, 5, 0, 2, 0]),
    ],
)
def test_lives_row_by_row(monkeypatch, lives, is_last, is_terminal, reward):
    pool = ScriptedPool(SCRIPT)
    monkeypatch.setattr(atari_module, "open_pool", lambda *args, **kwargs: pool)
    env = AtariEnv("pong", EnvConfig(size=8, lives=lives), num_envs=1, seed=0)
    rows, outcomes = [env.reset()], [env.outcome]
    for _ in SCRIPT[1:]:
        env.send(np.array([2]))
        rows.append(env.recv())
        outcomes.append(env.outcome)

    def text(flags):
        return "".join(str(int(flag)) for flag in flags)

    assert text(column(rows, "is_last")) == is_last
    assert text(column(rows, "is_terminal")) == is_terminal
    assert text(column(rows, "is_first")) == "1" + is_last[:-1]
    np.testing.assert_array_equal(column(rows, "reward"), reward)
    # the score is that of the whole game in every mode
    np.testing.assert_array_equal(column(outcomes, "reward"), [0, 1, 1, 7, 1, 1, 5, 0, 2, 0])
    assert text(column(outcomes, "is_over")) == "0000001010"
    # after an `is_last` row the learner's action is not played
    ignored = [is_last[i] == "1" and lives == "terminal" for i in range(len(SCRIPT) - 1)]
    assert pool.actions == [0 if skip else 2 for skip in ignored]


def test_frames_are_rgb_channels_last():
    env = make("atari_pong", EnvConfig(), num_envs=2, seed=0)
    image = env.reset().obs["image"]
    env.close()
    assert image.shape == (2, 64, 64, 3)
    np.testing.assert_array_equal(image[:, 32, 10], [[144, 72, 17]] * 2)  # Pong's brown court


def test_channels_last_is_a_transpose():
    for c in (1, 3, 4):
        frames = np.random.default_rng(0).integers(0, 256, (2, c, 5, 7), np.uint8)
        images = channels_last(frames)
        np.testing.assert_array_equal(images, frames.transpose(0, 2, 3, 1))
        assert images.flags.c_contiguous


@pytest.mark.parametrize("gray", [True, False])
def test_the_stack_is_that_of_envpool(gray):
    config = EnvConfig(size=24, gray=gray, stack=3, time_limit=80)
    env = make("atari_pong", config, num_envs=2, seed=0)
    options = {**pool_options(config), "stack_num": 3}
    pool = open_pool("Pong-v5", num_envs=2, seed=0, threads=0, options=options)
    ours, (theirs, _) = env.reset().obs["image"], pool.reset()
    rng = np.random.default_rng(0)
    for _ in range(45):  # over two resets
        np.testing.assert_array_equal(ours, theirs.transpose(0, 2, 3, 1))
        action = rng.integers(0, 6, 2)
        env.send(action)
        pool.send(action.astype(np.int32))
        ours, theirs = env.recv().obs["image"], pool.recv()[0]
    env.close()


def test_a_stack_begins_anew_with_each_episode():
    stack = FrameStack((2, 1, 1, 3), 3)
    push = [stack.push(np.full((2, 1, 1, 1), t, np.uint8), np.array([t == 5, t == 7])) for t in range(5, 9)]
    assert [frame[0].ravel().tolist() for frame in push] == [[5, 5, 5], [5, 5, 6], [5, 6, 7], [6, 7, 8]]
    assert push[2][1].ravel().tolist() == [7, 7, 7]


def test_an_action_is_held_and_the_last_two_frames_are_pooled():
    """Against the same game played frame by frame."""
    repeat = make("atari_pong", EnvConfig(size=32, time_limit=0), num_envs=1, seed=0)
    single = make("atari_pong", EnvConfig(size=32, time_limit=0, action_repeat=1), num_envs=1, seed=0)
    np.testing.assert_array_equal(repeat.reset().obs["image"], single.reset().obs["image"])
    rng = np.random.default_rng(0)
    for _ in range(150):
        action = rng.integers(0, 6, 1)
        repeat.send(action)
        row = repeat.recv()
        frames, reward = [], 0
        for _ in range(4):
            single.send(action)
            part = single.recv()
            frames.append(part.obs["image"].astype(int))
            reward += part.reward
        np.testing.assert_array_equal(row.reward, reward)
        # The maximum is taken before shrinking: at least the larger of both shrunk frames, up to rounding.
        larger = np.maximum(frames[2], frames[3])
        assert (row.obs["image"] >= larger - 1).all()
        still = frames[2] == frames[3]
        assert np.mean(np.abs(row.obs["image"].astype(int) - larger)[still]) < 0.5
    repeat.close()
    single.close()


def test_sticky_actions_change_the_game():
    frames = {}
    for sticky in (0.0, 1.0):
        env = make("atari_pong", EnvConfig(size=32, sticky=sticky), num_envs=1, seed=0)
        env.reset()
        for _ in range(30):
            env.send(np.array([2]))
            frames[sticky] = env.recv().obs["image"]
        env.close()
    assert (frames[0.0] != frames[1.0]).any()


def test_first_frames_vary_with_the_noops():
    """1 to 30 frames of NOOP: the same seed without them shows one picture only."""

    def pictures(noops):
        env = make("atari_ms_pacman", EnvConfig(size=64, noops=noops), num_envs=8, seed=0)
        images = env.reset().obs["image"]
        env.close()
        return len({image.tobytes() for image in images})

    assert pictures(30) > 3
    assert pictures(0) == pictures(1) == 1


def test_atari_has_no_snapshot():
    env = make("atari_pong", EnvConfig(size=16), num_envs=1, seed=0)
    assert env.snapshot() is None
    with pytest.raises(RuntimeError, match="cannot restore"):
        env.restore(None)
    env.close()
