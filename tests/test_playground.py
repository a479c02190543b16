"""MuJoCo Playground's tasks as device environments, where it is installed; what is said where it is not."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.config import ConfigError, EnvConfig
from jaxrl.envs import device_env, list_tasks, make, names

STATE = EnvConfig(observe="state", action_repeat=1)
OPTIONS = {"xla_cpu_use_fusion_emitters": False}  # as physics is compiled on a CPU
installed = pytest.mark.skipif(not names.has_playground(), reason="needs the package playground")


def compiled(env):
    """Its reset and step, and the state after a reset."""
    reset, step = (jax.jit(f, compiler_options=OPTIONS) for f in (env.reset, env.step))
    return step, reset(jax.random.key(0))


def test_a_missing_package_gives_one_line_with_the_remedy(monkeypatch):
    monkeypatch.setattr("jaxrl.envs.has_playground", lambda: False)
    assert not any(task.startswith("playground_") for task in list_tasks())
    with pytest.raises(ConfigError, match=r"playground_cartpole_balance.*pip install 'jaxrl\[playground\]'"):
        make("playground_cartpole_balance", STATE, num_envs=1, seed=0)


def test_names_are_read_without_importing_anything(monkeypatch, tmp_path):
    package = tmp_path / "mujoco_playground"
    for suite, envs in (("dm_control_suite", "CartpoleBalance"), ("manipulation", "LeapCubeRotateZAxis")):
        (package / "_src" / suite).mkdir(parents=True)
        text = f"raise SystemExit\n_envs = {{'{envs}': f(x=1), 'Go1Getup': g}}\n"
        (package / "_src" / suite / "__init__.py").write_text(text)
    (package / "__init__.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mujoco_playground", raising=False)
    found = names.playground_tasks.__wrapped__()
    assert found == {
        "cartpole_balance": "CartpoleBalance",
        "leap_cube_rotate_z_axis": "LeapCubeRotateZAxis",
        "go1_getup": "Go1Getup",
    }


@installed
def test_every_task_of_the_registry_has_a_name():
    from mujoco_playground import registry

    assert set(names.playground_tasks().values()) == set(registry.ALL_ENVS)
    for task in names.playground_tasks():
        assert re.fullmatch("[a-z0-9]+_[a-z0-9_]+", f"playground_{task}"), "the rule of the setting `task`"


@installed
def test_an_episode_of_cartpole():
    env = make("playground_cartpole_balance", STATE, num_envs=8, seed=0)
    rows = [env.reset()]
    while not rows[-1].is_last.any():
        env.send(np.zeros((8, 1), np.float32))
        rows.append(env.recv())
    assert len(rows) == 1001 and rows[-1].is_last.all() and not rows[-1].is_terminal.any()
    score = np.sum([row.reward for row in rows], axis=0)
    # The pole falls without a force; dm_control's own gives such a policy 737 to 774.
    assert (650 < score).all() and (score < 850).all()
    env.send(np.ones((8, 1), np.float32))
    again = env.recv()
    assert again.is_first.all() and (again.reward == 0).all()
    assert (again.obs["state"] != rows[0].obs["state"]).any()
    env.close()


@installed
@pytest.mark.parametrize(("task", "width", "size"), [("reacher_easy", 6, 2), ("panda_pick_cube", 66, 8)])
def test_steps_keep_the_structure_and_compile_once(task, width, size):
    env = device_env(f"playground_{task}", STATE)
    assert env.is_physics and env.spaces.action.size == size
    assert env.spaces.obs["state"].shape == (width,)
    step, state = compiled(env)
    for _ in range(3):
        state = step(state, jnp.zeros(size, jnp.float32))
    assert step._cache_size() == 1
    assert state.obs["state"].shape == (width,) and np.isfinite(state.obs["state"]).all()
    assert not env.pictures(state)


@installed
def test_a_step_leaves_the_state_before_it_alone():
    """Playground writes to the dicts of the state that it is given."""
    env = device_env("playground_cartpole_balance", STATE)

    def both(state, action):
        env.step(state, action)
        return state.data.theirs.metrics

    step, state = compiled(env)
    state = step(state, jnp.ones(1))
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.jit(both, compiler_options=OPTIONS)(state, jnp.ones(1)),
        state.data.theirs.metrics,
    )


@installed
def test_equal_settings_share_what_is_compiled():
    one, two = (device_env("playground_reacher_easy", EnvConfig(size=32)) for _ in range(2))
    assert one == two and hash(one) == hash(two)
    assert one != device_env("playground_reacher_easy", EnvConfig(size=48))


@installed
def test_pictures_follow_the_body():
    env = device_env("playground_reacher_easy", EnvConfig(size=32, cameras="fixed,hand"))
    step, state = compiled(env)
    draw = jax.jit(env.pictures)
    first = jax.device_get(draw(state))
    for _ in range(20):
        state = step(state, jnp.ones(2, jnp.float32))
    second = jax.device_get(draw(state))
    assert set(first) == {"fixed", "hand"} == set(env.spaces.obs) and not state.obs
    for camera, image in first.items():
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8 and image.std() > 2
        assert (image != second[camera]).any()


@installed
@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("cartpole_balance", dict(cameras="fixd"), "env.cameras=fixd: .*did you mean fixed"),
        ("cartpole_balance", dict(cameras="fixed,fixed"), "must name a camera once"),
        ("cartpole_balance", dict(sticky=0.5), "env.sticky=0.5: only Atari has it"),
        ("panda_pick_cube", {}, "no camera; add --env.observe=state"),
        ("panda_pick_cube_cartesian", {}, "mesh.*; add --env.observe=state"),
        ("cartpole_balanc", {}, "did you mean playground_cartpole_balance"),
        ("CartpoleBalance", {}, "did you mean playground_cartpole_balance"),
    ],
)
def test_what_cannot_be_followed_is_refused(task, options, words):
    with pytest.raises(ConfigError, match=words) as caught:
        device_env(f"playground_{task}", EnvConfig(**options))
    assert "\n" not in str(caught.value)


@installed
def test_nothing_is_downloaded(monkeypatch):
    """Without the robots' files there is one line, and no git clone."""
    from mujoco_playground._src import mjx_env

    from jaxrl.envs import playground

    def clone(*_):
        raise AssertionError("a download")

    monkeypatch.setattr(mjx_env, "_clone_with_progress", clone)
    monkeypatch.setattr(playground, "ENVPOOL_ASSETS", ())
    if mjx_env.MENAGERIE_PATH.exists():
        pytest.skip("Playground has its own copy of the robots here")
    playground._load.cache_clear()
    with pytest.raises(ConfigError, match="Go1Getup needs files of its robot.*git clone .*mujoco_menagerie"):
        device_env("playground_go1_getup", STATE)
    monkeypatch.undo()
    assert device_env("playground_go1_handstand", STATE).spaces.obs["state"].shape == (45,)


@installed
def test_a_task_that_does_not_run_with_this_jax_is_refused(monkeypatch):
    from jaxrl.envs import playground

    loaded = playground._load("PendulumSwingup")

    def step(state, action):
        raise TypeError("clip() got an unexpected keyword argument 'a_max'")

    monkeypatch.setattr(loaded.env, "step", step)
    playground._shapes.cache_clear()
    with pytest.raises(ConfigError, match="PendulumSwingup does not run with jax .* 'a_max'.*another task"):
        device_env("playground_pendulum_swingup", STATE)
