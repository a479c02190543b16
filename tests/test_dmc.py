"""The DeepMind Control Suite through EnvPool: rewards of held actions, pictures, bounds, what is missing."""

import os
import subprocess
import sys

import envpool
import numpy as np
import pytest

from jaxrl.config import ConfigError, EnvConfig
from jaxrl.envs import dmc, egl, make
from jaxrl.envs.names import dmc_tasks
from jaxrl.envs.pool import open_pool

# Tassa et al. 2018 and Yarats et al. 2021: the tasks that DrQ-v2 was published on.
PUBLISHED = (
    *("acrobot_swingup", "ball_in_cup_catch", "cartpole_balance", "cartpole_balance_sparse"),
    *("cartpole_swingup", "cartpole_swingup_sparse", "cheetah_run", "finger_spin", "finger_turn_easy"),
    *("finger_turn_hard", "hopper_hop", "hopper_stand", "humanoid_run", "humanoid_stand", "humanoid_walk"),
    *("pendulum_swingup", "quadruped_run", "quadruped_walk", "reacher_easy", "reacher_hard"),
    *("walker_run", "walker_stand", "walker_walk"),
)


@pytest.fixture
def opengl():
    try:
        egl.load_egl()
    except ConfigError as error:
        pytest.skip(str(error))


def build(task, num_envs=2, seed=0, **options):
    config = EnvConfig(**({"action_repeat": 2, "observe": "state"} | options))
    return make(f"dmc_{task}", config, num_envs=num_envs, seed=seed)


def play(env, actions):
    """All rows, the first too. actions: [T, N, A]."""
    rows = [env.reset()]
    for action in actions:
        env.send(action.astype(np.float32))
        rows.append(env.recv())
    env.close()
    return rows


def some_actions(env, steps, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (steps, env.num_envs, env.spaces.action.size))


def raw(task_id, actions, seed=0, **options):
    """EnvPool's rewards [T, N] and last rows, control step by control step. actions: [T, N, A], unscaled."""
    n = actions.shape[1]
    pool = open_pool(task_id, num_envs=n, seed=seed, threads=1, options=options)
    ids, at = np.arange(n, dtype=np.int32), {name: i for i, name in enumerate(pool._state_keys)}
    pool._reset(ids)
    rows, rewards = pool._recv(), []
    for action in actions:
        pool._send([ids, ids, action.astype(np.float64)])
        rows = pool._recv()
        rewards.append(rows[at["reward"]])
    return np.array(rewards), {name: rows[i] for name, i in at.items()}


def test_the_published_tasks_have_names():
    assert set(PUBLISHED) <= set(dmc_tasks())
    known = set(envpool.list_all_envs())
    for name, task_id in dmc_tasks().items():
        assert task_id in known
        assert name == name.lower() and not name.startswith("lqr")
    assert dmc_tasks()["humanoid_cmu_run"] == "HumanoidCMURun-v1"


@pytest.mark.parametrize("repeat", [1, 2, 8])
def test_a_score_does_not_depend_on_how_long_actions_are_held(repeat):
    env = build("cartpole_balance", action_repeat=repeat)
    rows = play(env, np.zeros((1000 // repeat, 2, 1)))
    rewards, _ = raw("CartpoleBalance-v1", np.zeros((1000, 2, 1)))
    score = np.sum([row.reward for row in rows], axis=0, dtype=np.float64)
    np.testing.assert_allclose(score, rewards.sum(0, dtype=np.float64), rtol=1e-6)
    assert (650 < score).all() and (score < 850).all()  # the pole falls half-way down an episode
    assert rows[-1].is_last.all() and not rows[-1].is_terminal.any()
    assert not any(row.is_last.any() for row in rows[:-1])


@pytest.mark.parametrize("task", ["walker_walk", "finger_spin"])
def test_each_control_step_of_a_held_action_is_rewarded(task):
    env = build(task, action_repeat=4)
    actions = some_actions(env, 10)
    rows = play(env, actions)
    rewards, _ = raw(dmc_tasks()[task], np.repeat(actions.astype(np.float32), 4, axis=0))
    summed = rewards.reshape(10, 4, 2).sum(1)
    np.testing.assert_allclose([row.reward for row in rows[1:]], summed, rtol=1e-5)


def test_a_new_episode_starts_without_the_last_reward():
    env = build("cartpole_balance", time_limit=20)
    rows = play(env, np.zeros((23, 2, 1)))
    assert [row.is_last.all() for row in rows] == [i % 11 == 10 for i in range(24)]
    assert [row.is_first.all() for row in rows] == [i % 11 == 0 for i in range(24)]
    for row in rows:
        assert not row.is_terminal.any()  # a time limit
        assert (row.reward == (0 if row.is_first.all() else row.reward)).all()
        assert (row.reward[~row.is_first] > 1.5).all()  # two control steps, upright


def test_actions_fill_the_bounds_of_the_task():
    task_id = dmc_tasks()["quadruped_walk"]
    bounds = envpool.make_spec(task_id).action_array_spec["action"]
    low, high = np.asarray(bounds.minimum), np.asarray(bounds.maximum)
    assert (low != -1).any() and (high != 1).any(), "these bounds need no rescaling"
    for action, own in ((-1, low), (1, high), (0, (low + high) / 2)):
        env = build("quadruped_walk", action_repeat=1)
        row = play(env, np.full((5, 2, 12), action))[-1]
        _, last = raw(task_id, np.broadcast_to(own, (5, 2, 12)))
        parts = [last[key].reshape(2, -1) for key in last if key.startswith("obs:")]
        np.testing.assert_array_equal(row.obs["state"], np.concatenate(parts, axis=1).astype(np.float32))


def test_the_state_is_all_that_the_task_shows():
    widths = {
        "cartpole_swingup": 5,
        "walker_run": 24,
        "cheetah_run": 17,
        "reacher_hard": 6,
        "finger_spin": 12,
    }
    for task, width in widths.items():
        env = build(task, num_envs=1)
        assert env.spaces.obs["state"].shape == (width,)
        assert np.isfinite(play(env, some_actions(env, 2))[-1].obs["state"]).all()


def test_seeds_decide_the_starts():
    starts = {seed: build("reacher_easy", num_envs=3, seed=seed).reset().obs["state"] for seed in (0, 1)}
    again = build("reacher_easy", num_envs=2, seed=1).reset().obs["state"]
    np.testing.assert_array_equal(again, starts[1][:2])  # and no environment depends on how many there are
    both = np.concatenate([starts[0], starts[1]])
    assert len(np.unique(both, axis=0)) == 6


@pytest.mark.parametrize("task", ["walker_walk", "cartpole_swingup"])
def test_pictures_show_the_state_that_rewards_were_counted_to(opengl, task):
    """Walker has 10 physics steps in a control step, cartpole 1; both cross the end of an episode."""
    options = dict(num_envs=1, size=32, time_limit=6)
    held, single, blind = (
        build(task, observe="pixels", **options),
        build(task, observe="pixels", action_repeat=1, **options),
        build(task, **options),
    )
    actions = some_actions(held, 5)
    rows = play(held, actions)
    fine = np.concatenate(
        [np.repeat(actions[:3], 2, axis=0), actions[3:4], np.repeat(actions[4:], 2, axis=0)]
    )
    shown = play(single, fine)
    assert [row.is_last.all() for row in rows] == [False, False, False, True, False, False]
    for row, number in zip(rows, [0, 2, 4, 6, 7, 9], strict=True):
        np.testing.assert_array_equal(row.obs["image"], shown[number].obs["image"])
    for row, other in zip(rows, play(blind, actions), strict=True):
        np.testing.assert_array_equal(row.reward, other.reward)
    images = np.stack([row.obs["image"] for row in rows])
    assert (images[1:] != images[:-1]).any(axis=(1, 2, 3, 4)).all(), "nothing moves"


@pytest.mark.parametrize(("task", "camera"), [("cartpole_swingup", 0), ("quadruped_run", 2)])
def test_pictures_are_those_of_the_published_camera(opengl, task, camera):
    env = build(task, num_envs=1, observe="pixels", size=48, action_repeat=1)
    (row,) = play(env, [])
    assert env.spaces.obs["image"].shape == (48, 48, 3) and row.obs["image"].dtype == np.uint8
    options = dict(from_pixels=True, render_width=48, render_height=48, render_camera_id=camera)
    _, last = raw(dmc_tasks()[task], np.zeros((0, 1, env.spaces.action.size)), **options)
    np.testing.assert_array_equal(row.obs["image"], np.moveaxis(last["obs:pixels"], 1, -1))
    sky, floor = row.obs["image"][0, :8].astype(int), row.obs["image"][0, -8:].astype(int)
    assert abs(sky.mean() - floor.mean()) > 2  # upright pictures, not one colour


def test_pictures_that_are_out_of_step_are_an_error(opengl):
    env = build("cartpole_swingup", num_envs=1, observe="pixels", size=16)
    env.reset()
    env._pictures._send([env._ids, env._ids, np.ones((1, 1))])
    env._pictures._recv()
    env.send(np.ones((1, 1), np.float32))
    with pytest.raises(RuntimeError, match="of different states"):
        env.recv()
    env.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(action_repeat=3), "env.action_repeat=3: must divide the 1000 env_steps .*action_repeat=2"),
        (dict(action_repeat=4, time_limit=10), "env.action_repeat=4: must divide the 10 env_steps"),
    ],
)
def test_an_action_may_not_be_held_beyond_the_end(options, words):
    with pytest.raises(ConfigError, match=words):
        build("walker_walk", **options)


def test_time_limits_only_shorten_episodes():
    for limit in (0, 1000, 108_000):
        assert dmc._limit(EnvConfig(action_repeat=2, time_limit=limit)) == 1000
    assert dmc._limit(EnvConfig(action_repeat=2, time_limit=500)) == 500


def test_a_state_cannot_be_saved():
    env = build("cartpole_balance")
    env.reset()
    assert env.snapshot() is None
    with pytest.raises(RuntimeError, match="cannot restore"):
        env.restore(None)
    env.close()


def test_a_missing_library_gives_one_line_with_the_remedy(monkeypatch):
    monkeypatch.setattr(egl, "_path", lambda: "libNoSuchEGL.so.1")
    egl.load_egl.cache_clear()
    with pytest.raises(
        ConfigError, match="no OpenGL .*libNoSuchEGL.*apt-get install .*observe=state"
    ) as caught:
        build("cartpole_balance", observe="pixels")
    egl.load_egl.cache_clear()
    assert "\n" not in str(caught.value)
    build("cartpole_balance", observe="state").close()  # needs none


def test_pictures_of_mujocos_own_renderer_are_not_in_the_way(opengl):
    """It loads another libEGL, which EnvPool would ask about a context of its own, and end the process."""
    code = (
        "from jaxrl.config import EnvConfig; from jaxrl.envs import make\n"
        "make('atari_pong', EnvConfig(), num_envs=1, seed=0).close()\n"
        "from jaxrl.envs.mjx.render.selftest import draw; assert draw()\n"
        "env = make('dmc_walker_walk', EnvConfig(), num_envs=1, seed=0)\n"
        "picture = env.reset().obs['image']; env.close()\n"
        "print(picture.std() > 10, bool(draw()))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True True\n"), done.stderr


def test_a_missing_driver_gives_one_line_instead_of_an_abort():
    code = (
        "from jaxrl.config import EnvConfig; from jaxrl.envs import make\n"
        "make('dmc_cartpole_balance', EnvConfig(), num_envs=1, seed=0)"
    )
    environment = {**os.environ, "__EGL_VENDOR_LIBRARY_FILENAMES": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "ConfigError: env.observe=pixels: no OpenGL, since EGL finds no driver; apt-get" in done.stderr
