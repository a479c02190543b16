"""The physics tasks that are DeepMind's: cartpole, reacher, cheetah. MuJoCo in C is the judge."""

import dataclasses
import functools
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from jaxrl.config import ConfigError, EnvConfig
from jaxrl.envs.mjx import make_task, names
from jaxrl.envs.mjx.render import warp
from jaxrl.runtime import compiler_options
from jaxrl.types import ArraySpec

SUITE = ("cartpole_balance", "cartpole_swingup", "reacher", "cheetah_run")
N = 8


@dataclasses.dataclass(frozen=True)
class Batch:
    """N environments of a task, compiled once."""

    task: Any
    reset: Any
    step: Any

    def start(self, seed=0):
        return self.reset(jax.random.split(jax.random.key(seed), N))


@functools.cache
def batch(name):
    task = make_task(name, EnvConfig(observe="state"))
    options = compiler_options("cpu")
    return Batch(
        task,
        jax.jit(jax.vmap(task.reset), compiler_options=options),
        jax.jit(jax.vmap(task.step), compiler_options=options),
    )


def actions(steps, size, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (steps, N, size)).astype(np.float32)


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, jax.typeof(x).weak_type), tree)


def c_state(task, qpos, qvel):
    """MuJoCo's own data at a state, forward."""
    model = task.engine.model
    state = mujoco.MjData(model)
    state.qpos[:], state.qvel[:] = qpos, qvel
    mujoco.mj_forward(model, state)
    return model, state


def test_names_cost_no_import_of_mujoco_and_nothing_is_printed():
    program = "import sys, jaxrl.envs.mjx as m; m.names(); assert 'mujoco' not in sys.modules;"
    program += "import jaxrl.envs.mjx.engine; assert 'mujoco.mjx' in sys.modules; print('end')"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "end\n"), found.stderr


@pytest.mark.parametrize("name", SUITE)
def test_rows_keep_their_shapes_and_one_program_serves_them_all(name):
    b = batch(name)
    state = b.start()
    spec = ArraySpec(state.obs["state"].shape[1:], np.dtype(np.float32))
    assert b.task.spaces.obs == {"state": spec} and b.task.spaces.action.size == b.task.engine.model.nu
    before = shapes(state)
    for action in actions(100, b.task.action_size):
        state = b.step(state, action)
        reward = np.asarray(state.reward)
        assert ((reward >= 0) & (reward <= 1)).all() and not state.done.any()
    assert shapes(state) == before and b.step._cache_size() == 1
    assert np.isfinite(state.obs["state"]).all() and "success" not in state.info
    assert len(np.unique(np.asarray(state.obs["state"]), axis=0)) == N


@pytest.mark.parametrize("name", SUITE)
def test_the_thousandth_step_is_cut_and_not_terminal(name):
    b = batch(name)
    state = b.start()
    for count, over in ((998, 0), (999, 1)):
        late = state.replace(data=state.data.replace(count=jnp.full(N, count, jnp.int32)))
        late = b.step(late, actions(1, b.task.action_size)[0])
        assert (late.done == over).all() and (late.info["truncation"] == over).all()


@pytest.mark.parametrize(
    ("name", "steps", "within"),
    [
        ("cartpole_balance", 100, 1e-3),
        ("cartpole_swingup", 300, 5e-3),
        ("reacher", 100, 1e-3),
        ("cheetah_run", 40, 2e-3),
    ],
)
def test_motion_is_that_of_mujoco_in_c(name, steps, within):
    b = batch(name)
    first = state = b.start(3)
    moves = actions(steps, b.task.action_size, 1)
    for action in moves:
        state = b.step(state, action)
    for i in range(N):
        model, host = c_state(b.task, first.data.physics.qpos[i], first.data.physics.qvel[i])
        for action in moves[:, i]:
            host.ctrl[:] = action
            mujoco.mj_step(model, host, b.task.substeps)
        np.testing.assert_allclose(state.data.physics.qpos[i], host.qpos, atol=within)
        assert np.abs(host.qpos - np.asarray(first.data.physics.qpos[i])).max() > 10 * within  # it moved


def bell(x, margin):
    """0.1 at the margin."""
    return np.exp(-0.5 * (x / margin * np.sqrt(-2 * np.log(0.1))) ** 2)


def cartpole_reward(task, qpos, qvel, action):
    """As the paper defines it, from MuJoCo's numbers."""
    _, host = c_state(task, qpos, qvel)
    cosine = host.xmat[task.engine.model.body("pole").id].reshape(3, 3)[2, 2]
    cart = host.xpos[task.engine.model.body("cart").id][0]
    small = max(0.0, 1 - float(action[0]) ** 2)
    return (cosine + 1) / 2 * (1 + bell(cart, 2)) / 2 * (4 + small) / 5 * (1 + bell(qvel[1], 5)) / 2


def reacher_reward(task, qpos, qvel, action):
    model, host = c_state(task, qpos, qvel)
    apart = host.geom("finger").xpos - host.geom("target").xpos
    return float(np.hypot(*apart[:2]) <= model.geom("finger").size[0] + model.geom("target").size[0])


def cheetah_reward(task, qpos, qvel, action):
    model, host = c_state(task, qpos, qvel)
    mujoco.mj_subtreeVel(model, host)
    return np.clip(host.subtree_linvel[model.body("torso").id][0] / 10, 0, 1)


REWARDS = {"cheetah_run": cheetah_reward, "reacher": reacher_reward}


@pytest.mark.parametrize("name", SUITE)
def test_rewards_against_the_formula(name):
    b = batch(name)
    state = b.start(5)
    seen = []
    for i, action in enumerate(actions(20, b.task.action_size, 2)):
        physics = state.data.physics
        draw = np.random.default_rng(i)
        spread = draw.normal(0, 6 if name == "cheetah_run" else 2, physics.qvel.shape).astype(np.float32)
        qpos = physics.qpos
        if name.startswith("cartpole"):
            qpos = qpos.at[:, 1].add(draw.uniform(-np.pi, np.pi, N))
        elif name == "reacher" and i % 2:  # the ball near the tip
            qpos = qpos.at[:, :4].set(jnp.array([0, 0, 0.22, 0]) + 0.04 * draw.normal(size=(N, 4)))
        physics = physics.replace(qpos=qpos.astype(jnp.float32), qvel=jnp.asarray(spread))
        state = b.step(state.replace(data=state.data.replace(physics=physics)), action)
        formula = REWARDS.get(name, cartpole_reward)
        for j in range(N):
            after = state.data.physics
            want = formula(b.task, after.qpos[j], np.asarray(after.qvel[j], np.float64), action[j])
            np.testing.assert_allclose(state.reward[j], want, atol=1e-4)
            seen.append(want)
    assert np.ptp(seen) > 0.2, "a formula that was never put to the test"


def test_a_pole_left_alone():
    """Balanced it falls, hanging it stays; gravity pulls down."""
    for name, low, high in (("cartpole_balance", 0.5, np.inf), ("cartpole_swingup", 0.0, 0.1)):
        b = batch(name)
        state = b.start(7)
        angle = np.asarray(state.data.physics.qpos[:, 1])
        state = state.replace(
            data=state.data.replace(
                physics=state.data.physics.replace(
                    qpos=state.data.physics.qpos.at[:, 1].add(jnp.sign(state.data.physics.qpos[:, 1]) * 0.02)
                )
            )
        )
        for _ in range(150):
            state = b.step(state, np.zeros((N, 1), np.float32))
        moved = np.abs(np.asarray(state.data.physics.qpos[:, 1]) - angle)
        assert (moved >= low).all() and (moved <= high).all()


def test_starts():
    balance, swingup = (np.asarray(batch(n).start().obs["state"]) for n in SUITE[:2])
    assert (balance[:, 1] > 0.999).all() and (swingup[:, 1] < -0.99).all()
    cheetah = batch("cheetah_run").start()
    assert (np.abs(cheetah.data.physics.qvel) < 5).all()
    high = np.asarray(cheetah.data.physics.qpos[:, 1]) + 0.7
    assert ((high > 0.03) & (high < 1)).all(), "lies or stands on the ground"
    target = np.asarray(batch("reacher").start().data.physics.qpos[:, 2:])
    radius = np.linalg.norm(target, axis=1)
    assert ((radius >= 0.05) & (radius <= 0.2)).all() and len(np.unique(radius)) == N


def test_one_program_for_a_state_made_under_a_transfer_guard():
    task = make_task("cartpole_balance", EnvConfig(observe="state"))
    key, action = jax.random.key(11), jnp.zeros(1)
    with jax.transfer_guard("disallow"):
        state = jax.jit(task.reset)(key)
        state = jax.jit(task.step)(state, action)
    assert np.isfinite(state.reward)


def test_equal_settings_give_equal_tasks():
    for name in names():
        a, b = (make_task(name, EnvConfig(size=32)) for _ in range(2))
        assert a == b and hash(a) == hash(b) and a.is_physics
        assert a != make_task(name, EnvConfig(size=40)) and a != make_task(name, EnvConfig(observe="state"))
    assert make_task("cartpole_balance", EnvConfig()) != make_task("cartpole_swingup", EnvConfig())


def test_pictures_show_the_state():
    env = EnvConfig(size=64, cameras="near, fixed")
    task = make_task("cartpole_swingup", env)
    state = jax.jit(task.reset)(jax.random.key(0))
    draw = jax.jit(task.pictures)
    down = draw(state)
    upright = state.data.physics.replace(qpos=jnp.zeros(2, jnp.float32))
    up = draw(state.replace(data=state.data.replace(physics=upright)))
    image = ArraySpec((64, 64, 3), np.dtype(np.uint8))
    assert task.spaces.obs == {"near": image, "fixed": image} and set(down) == {"near", "fixed"}
    for name in down:
        assert down[name].shape == (64, 64, 3) and down[name].dtype == jnp.uint8
        changed = np.abs(np.asarray(down[name], int) - np.asarray(up[name], int)).max(-1) > 20
        assert changed[:28].sum() > 10 and changed[40:].sum() > 10, "the pole is gone below and there above"
        assert not changed[:, :20].any()
    assert (np.asarray(down["near"]) != np.asarray(down["fixed"])).any() and draw._cache_size() == 1
    assert not state.obs, "pictures only"
    assert make_task("cartpole_balance", EnvConfig(observe="state")).pictures(state) == {}


def test_a_grey_picture_is_the_colours_weighed():
    views = []
    for gray in (False, True):
        task = make_task("cartpole_balance", EnvConfig(size=16, gray=gray))
        state = jax.jit(task.reset)(jax.random.key(0))
        views.append(np.asarray(jax.jit(task.pictures)(state)["fixed"]))
        assert task.spaces.obs["fixed"].shape == views[-1].shape
    np.testing.assert_allclose(views[1][..., 0], views[0] @ [0.299, 0.587, 0.114], atol=0.51)


def test_random_looks_are_of_an_episode():
    task = make_task("cartpole_balance", EnvConfig(size=16, randomize=1.0))
    reset, step, draw = (jax.jit(jax.vmap(f)) for f in (task.reset, task.step, task.pictures))
    state = reset(jax.random.split(jax.random.key(0), N))
    floors = np.asarray(draw(state)["fixed"])[:, -1].mean(1)
    assert (floors.std(0) > 2).any(), "every environment looks different"
    after = step(state, np.zeros((N, 1), np.float32))
    np.testing.assert_allclose(np.asarray(draw(after)["fixed"])[:, -1].mean(1), floors, atol=1)
    plain = make_task("cartpole_balance", EnvConfig(size=16))
    assert jax.eval_shape(plain.reset, jax.random.key(0)).data.look is None


def test_a_renderer_of_whole_batches_is_called_once_for_them_all(monkeypatch):
    """The interface of the optional warp renderer, which needs a package and a GPU that tests lack."""
    made = []

    class Fake:
        def __init__(self, model, cameras, *, num_envs, size, samples=1):
            made.append(num_envs)
            self.shape = (num_envs, len(cameras), size, size, 3)

        def render(self, xpos, xmat):
            assert xpos.shape == (self.shape[0], 3, 3) and xmat.shape == (self.shape[0], 3, 3, 3)
            colour = (100 * (1 + xpos[:, 1, 0])).astype(jnp.uint8)  # where the cart is
            return jnp.broadcast_to(colour[:, None, None, None, None], self.shape)

    monkeypatch.setattr(warp, "Warp", Fake)
    task = make_task("cartpole_balance", EnvConfig(size=9, renderer="warp", cameras="fixed,near"))
    state = batch("cartpole_balance").start()
    made.clear()
    pictures = jax.jit(jax.vmap(task.pictures))(state)
    assert set(made) == {1, N}, "one for a batch, one for the shapes of a single picture"
    assert set(pictures) == {"fixed", "near"}
    np.testing.assert_allclose(pictures["near"][:, 0, 0, 0], 100 * (1 + state.obs["state"][:, 0]), atol=1)
    one = jax.jit(task.pictures)(jax.tree.map(lambda x: x[2], state))
    np.testing.assert_array_equal(one["fixed"], pictures["fixed"][2])


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("cartpole_balanse", {}, "mjx_cartpole_balanse: unknown task; did you mean mjx_cartpole_balance?"),
        ("xyzzy", {}, "there are cartpole_balance"),
        (
            "so101_lift",
            {"cameras": "frnt"},
            "env.cameras=frnt: mjx_so101_lift has no such camera; did you mean front?",
        ),
        ("reacher", {"cameras": "wrist"}, "it has fixed, side"),
        ("reacher", {"cameras": "side,side"}, "must name a camera once"),
        ("reacher", {"renderer": "warp", "randomize": 0.5}, "must be 0 with env.renderer=warp"),
        ("so101_lift", {"promote": 0.5, "stage": 4}, "env.promote=0.5: must be 0 with env.stage=4"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(name, settings, words):
    with pytest.raises(ConfigError) as error:
        make_task(name, EnvConfig(**settings))
    assert words in str(error.value) and "\n" not in str(error.value)
