"""The SO-101 arm: its scripted grasp in MJX and in C, start states, actions, rewards, what a policy sees."""

import functools
import types

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from jaxrl.config import EnvConfig
from jaxrl.envs.mjx import arm, make_task
from jaxrl.envs.mjx.so101 import lift_reward
from jaxrl.envs.mjx.starts import COUNT, STAGES, starts
from jaxrl.runtime import compiler_options

N = 16
LIFTED, TABLE = 1, 2  # stages


@functools.cache
def lift():
    """The task as a policy with cameras sees it, its compiled functions for N environments, and the rest of
    the truth: `truth(state)` is the privileged vector."""
    task = make_task("so101_lift", EnvConfig())
    all_seeing = make_task("so101_lift", EnvConfig(observe="state"))

    def truth(state):
        return all_seeing.everything(state.data, task.engine.poses(state.data.physics.qpos))

    options = compiler_options("cpu")
    functions = {"reset": task.reset, "step": task.step, "truth": truth}
    compiled = {k: jax.jit(jax.vmap(f), compiler_options=options) for k, f in functions.items()}
    return types.SimpleNamespace(task=task, all_seeing=all_seeing, **compiled)


@functools.cache
def begun(stage):
    """First rows of a stage."""
    task = make_task("so101_lift", EnvConfig(stage=stage))
    reset = jax.jit(jax.vmap(task.reset), compiler_options=compiler_options("cpu"))
    return reset(jax.random.split(jax.random.key(stage), N))


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, jax.typeof(x).weak_type), tree)


def still(jaw=-1.0):
    """Actions that hold the tool where it is."""
    return np.tile(np.array([0, 0, 0, jaw], np.float32), (N, 1))


def cube(state):
    return np.asarray(state.data.physics.qpos[:, 6:9])


def tool(state):
    return np.asarray(state.obs["proprioception"][:, 12:15])


@functools.cache
def grasped():
    """States of the script: go down over the cube, close, lift to 10 cm, hold."""
    runs = lift()
    states = [begun(3)]
    for step in range(200):
        apart = cube(states[-1]) - tool(states[-1])
        action = still(0.5 if step < 60 else -1.0)
        if step < 60:
            action[:, :3] = np.clip(apart / 0.02 * [0.6, 0.6, 0.3], -0.4, 0.4)
        elif step >= 120:
            action[:, 2] = np.clip((0.103 - tool(states[-1])[:, 2]) / 0.02 * 0.5, -0.3, 0.3)
        states.append(runs.step(states[-1], action))
    return states


def test_the_scripted_grasp_lifts_the_cube_and_succeeds():
    states = grasped()
    height = np.stack([cube(s)[:, 2] for s in states])
    np.testing.assert_allclose(height[-1], 0.10, atol=0.008)
    success = np.stack([s.info["success"] for s in states]) > 0
    holding = np.stack([s.data.memo.grasped for s in states]) & (height > 0.08)
    for i in range(N):
        first = int(success[:, i].argmax())
        assert success[first, i] and holding[first - 9 : first + 1, i].all() and not holding[first - 10, i]
        ended = states[first]
        assert ended.done[i] == 1 and ended.info["truncation"][i] == 0
        assert ended.reward[i] > states[first - 1].reward[i] + 9, "the bonus of a success"
        before = [float(s.done[i]) for s in states[:first]]
        assert not any(before)
    assert lift().step._cache_size() == 1 and shapes(states[-1]) == shapes(states[0])


def test_the_same_grasp_in_c():
    states, model = grasped(), lift().task.engine.model
    for i in range(N):
        host = mujoco.MjData(model)
        host.qpos[:] = states[0].data.physics.qpos[i]
        for state in states[1:]:
            host.ctrl[:] = state.data.memo.ctrl[i]
            mujoco.mj_step(model, host, arm.SUBSTEPS)
        ours = np.asarray(states[-1].data.physics.qpos[i])
        np.testing.assert_allclose(host.qpos[8], ours[8], atol=6e-3)  # it slips a little, by rounding too
        np.testing.assert_allclose(host.qpos[:5], ours[:5], atol=1e-2)


def test_reward_grows_on_the_way():
    reward = np.stack([s.reward for s in grasped()]).mean(1)
    above, closed, up = reward[1:10].mean(), reward[110:120].mean(), reward[150:].mean()
    assert 0 < above < 1 < closed < 3.5 < 8 < up


def test_an_episode_is_cut_after_200_steps_unless_it_succeeds_then():
    for hold, success in ((0, 0), (9, 1)):
        state = begun(LIFTED)
        episode = state.data.replace(
            count=jnp.full(N, 199, jnp.int32),
            memo=state.data.memo.replace(hold=jnp.full(N, hold, jnp.int32)),
        )
        high = episode.physics.qpos.at[:, 1].add(-0.15).at[:, 8].add(0.03)  # arm and cube a little higher
        episode = episode.replace(
            physics=episode.physics.replace(qpos=high if success else begun(3).data.physics.qpos)
        )
        after = lift().step(state.replace(data=episode), still())
        np.testing.assert_array_equal(after.done, 1)
        if not success:
            np.testing.assert_array_equal(after.info["truncation"], 1)
        np.testing.assert_array_equal(after.info["truncation"], 1 - np.asarray(after.info["success"]))


@pytest.mark.parametrize("stage", range(len(STAGES)))
def test_start_states(stage):
    task, table = lift().task, starts(stage)
    model = task.engine.model
    apart, height = [], table.qpos[:, 8]
    fingers = set(arm.parts().pads), set(arm.parts().jaws)
    for qpos, ctrl in zip(table.qpos, table.ctrl, strict=True):
        host = mujoco.MjData(model)
        host.qpos[:], host.ctrl[:] = qpos, ctrl
        mujoco.mj_forward(model, host)
        apart.append(host.site("tool").xpos - host.body("cube").xpos)
        touching = {g for c in host.contact for g in c.geom}
        held = all(touching & finger for finger in fingers)
        assert held == (stage in (1, 2)), "in the gripper, or not touched by it"
        assert held or not touching & (fingers[0] | fingers[1])
    apart = np.array(apart)
    distance = np.linalg.norm(apart, axis=1)
    assert len(np.unique(table.qpos, axis=0)) == COUNT
    lifted = (0.06 < height) & (height < 0.105)
    assert lifted.all() if stage == LIFTED else (np.abs(height - 0.015) < 2e-3).all()
    if stage == 3:
        assert (np.abs(apart[:, 2] - 0.03) < 3e-3).all() and (np.abs(apart[:, :2]) < 8e-3).all()
    if stage == 4:
        assert (0.075 < distance).all() and (distance < 0.125).all()
    if stage in (0, 3, 4):
        assert (table.qpos[:, 5] > 0.45).all(), "the gripper is open"
    assert (np.abs(table.qpos[:, 6:8] - [0.25, 0]) < 0.035).all()


@pytest.mark.parametrize("stage", [LIFTED, TABLE])
def test_a_held_cube_stays_held(stage):
    state = begun(stage)
    assert state.data.memo.grasped.all()
    place = cube(state)
    for _ in range(50):
        state = lift().step(state, still())
    assert state.data.memo.grasped.all()
    np.testing.assert_allclose(cube(state), place, atol=3e-3)
    for _ in range(60):
        state = lift().step(state, still(1.0))
    assert not state.data.memo.grasped.any() and (np.abs(cube(state)[:, 2] - 0.015) < 2e-3).all()


def test_what_the_policy_sees_does_not_know_the_cube():
    runs = lift()
    assert set(runs.task.spaces.obs) == {"wrist", "front", "proprioception"}
    a = begun(0)  # nothing touches the cube
    moved = a.data.physics.qpos.at[:, 6:13].set(jnp.array([0.30, 0.15, 0.015, 0.6, 0, 0, 0.8]))
    b = a.replace(data=a.data.replace(physics=a.data.physics.replace(qpos=moved)))
    hints = jax.jit(jax.vmap(lambda e: runs.task.hints(e, runs.task.engine.poses(e.physics.qpos))))
    np.testing.assert_array_equal(hints(a.data)["proprioception"], hints(b.data)["proprioception"])
    assert (np.abs(runs.truth(a) - runs.truth(b)).max(1) > 0.05).all(), "the privileged vector does know it"
    for step in range(10):
        move = np.random.default_rng(step).uniform(-0.3, 0.3, (N, 4)).astype(np.float32)
        a, b = runs.step(a, move), runs.step(b, move)
        assert set(a.obs) == set(b.obs) == {"proprioception"} and a.obs["proprioception"].shape == (N, 18)
        # One solver moves arm and cube together: equal but for rounding.
        np.testing.assert_allclose(a.obs["proprioception"], b.obs["proprioception"], atol=1e-6)


def test_proprioception_is_what_mujoco_says():
    state = grasped()[140]
    for i in range(4):
        host = mujoco.MjData(lift().task.engine.model)
        host.qpos[:], host.qvel[:] = state.data.physics.qpos[i], state.data.physics.qvel[i]
        mujoco.mj_forward(lift().task.engine.model, host)
        got = np.asarray(state.obs["proprioception"][i])
        np.testing.assert_allclose(got[:6], host.qpos[:6], atol=1e-6)
        np.testing.assert_allclose(got[6:12], host.qvel[:6], atol=1e-5)
        np.testing.assert_allclose(got[12:15], host.site("tool").xpos, atol=1e-5)
        x, y, z = got[15:]
        turn = [np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])]
        turn += [np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])]
        turn += [np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])]
        down = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
        frame = host.body("gripper").xmat.reshape(3, 3)
        np.testing.assert_allclose(turn[2] @ turn[1] @ turn[0] @ down, frame, atol=1e-5)
        truth = np.asarray(lift().truth(state)[i])
        assert truth.shape == lift().all_seeing.spaces.obs["state"].shape
        np.testing.assert_allclose(truth[18:31], [*host.qpos[6:], *host.qvel[6:]], atol=1e-5)
        np.testing.assert_allclose(
            truth[31:34], 10 * (host.body("cube").xpos - host.site("tool").xpos), atol=1e-4
        )


@pytest.mark.parametrize(("axis", "sign"), [(0, 1), (0, -1), (1, 1), (1, -1), (2, 1)])
def test_an_action_moves_the_tool_along_its_axis(axis, sign):
    state = begun(3)
    start, action = tool(state), still(1.0)
    action[:, axis] = 0.3 * sign  # 6 mm asked for, 3 mm a step
    for _ in range(10):
        state = lift().step(state, action)
    for _ in range(10):
        state = lift().step(state, still(1.0))
    moved = tool(state) - start
    np.testing.assert_allclose(moved[:, axis], 0.03 * sign, atol=0.008)
    assert (np.abs(np.delete(moved, axis, 1)) < 0.008).all()
    assert (np.abs(state.obs["proprioception"][:, 16]) < 0.15).all(), "it still points down"


def test_the_tool_is_not_pressed_through_the_table():
    state, action = begun(3), still(1.0)
    action[:, 2] = -1
    for _ in range(40):
        state = lift().step(state, action)
    assert ((tool(state)[:, 2] > 0.005) & (tool(state)[:, 2] < 0.025)).all()


def test_nothing_is_thrown_by_random_actions():
    state = begun(3)
    for step in range(150):
        action = np.random.default_rng(step // 5).uniform(-1, 1, (N, 4)).astype(np.float32)
        state = lift().step(state, action)
    leaves = jax.tree.leaves((state.data, state.obs, state.reward))
    assert all(np.isfinite(x).all() for x in leaves)
    assert (np.linalg.norm(cube(state), axis=1) < 0.6).all() and (cube(state)[:, 2] > 0.005).all()
    turned = np.linalg.norm(np.asarray(state.data.physics.qpos[:, 9:]), axis=1)
    np.testing.assert_allclose(turned, 1, atol=1e-4)


def test_joint_actions_move_what_the_servos_hold():
    task = make_task("so101_lift", EnvConfig(control="joints"))
    assert task.action_size == task.spaces.action.size == 6
    episode = jax.jit(task.reset)(jax.random.key(0)).data
    drive = jax.jit(task.drive)
    for i in range(6):
        action = np.zeros(6, np.float32)
        action[i] = -0.5
        ctrl, memo = drive(episode, action)
        np.testing.assert_allclose(ctrl - episode.memo.ctrl, 0.05 * action, atol=1e-6)
        np.testing.assert_array_equal(memo.ctrl, ctrl)
    low, high = arm.parts().low, arm.parts().high
    for sign, bound in ((-1, low), (1, high)):
        at_bound = episode.replace(
            physics=episode.physics.replace(qpos=episode.physics.qpos.at[:6].set(bound)),
            memo=episode.memo.replace(ctrl=jnp.asarray(bound)),
        )
        np.testing.assert_allclose(drive(at_bound, np.full(6, sign, np.float32))[0], bound)


def by_hand(distance, gap, jaw, z, held, hold):
    """The shaping of the project it comes from, term by term."""
    reach = 1 - np.tanh(10 * distance)
    if reach >= 0.7:
        reach = (reach + (1 if jaw < arm.CLOSED else 1 - np.tanh(10 * max(gap, 0)))) / 2
    total = reach
    if held:
        total += 1.5 + max(0, 4 * (z - 0.015) / 0.065)
        total += 1 if z > 0.02 else 0
        total += 2 * min(max((z - 0.04) / 0.04, 0), 1)
    if z > 0.08:
        total += 1
    total += 0.5 * hold
    if z < 0.01:
        total -= 50 * (0.01 - z)
    return total


def test_the_reward_of_lifting():
    for distance in (0.005, 0.02, 0.04, 0.2):
        for gap, jaw in ((-1e-3, 0.2), (0.02, 0.5)):
            for z in (0.004, 0.015, 0.03, 0.05, 0.09, 0.2):
                for held in (False, True):
                    hold = 3 * (held and z > 0.08)
                    touch = arm.Touch(jnp.float32(distance), jnp.array([0, gap]), jnp.bool_(held))
                    got = lift_reward(touch, jnp.float32(z), jnp.float32(jaw), jnp.int32(hold))
                    np.testing.assert_allclose(got, by_hand(distance, gap, jaw, z, held, hold), rtol=1e-5)


def test_losing_the_cube_and_jerking_with_it_cost():
    state = begun(LIFTED)
    memo = state.data.memo.replace(hold=jnp.full(N, 1, jnp.int32))
    free = begun(3).data.replace(memo=memo)
    task = lift().task
    judge = jax.jit(jax.vmap(lambda e, a: task.judge(e, task.engine.poses(e.physics.qpos), a)))
    was_held = judge(free, still())
    never = judge(free.replace(memo=memo.replace(grasped=jnp.zeros(N, bool))), still())
    np.testing.assert_allclose(was_held.reward - never.reward, -2, atol=1e-5)
    high = grasped()[-1].data
    calm = judge(high, np.asarray(high.memo.action))
    jerk = judge(high, np.asarray(high.memo.action) + np.array([0.5, 0, 0, 0], np.float32))
    np.testing.assert_allclose(jerk.reward - calm.reward, -0.02 * 0.25, atol=2e-3)


def test_distance_to_a_box_is_that_to_the_nearest_of_its_points():
    grid = np.linspace(-arm.CUBE, arm.CUBE, 61)
    solid = np.stack(np.meshgrid(grid, grid, grid), -1).reshape(-1, 3)
    points = np.random.default_rng(0).uniform(-0.05, 0.05, (50, 3)).astype(np.float32)
    nearest = np.sqrt(((points[:, None] - solid) ** 2).sum(-1).min(1))
    outside = (np.abs(points) > arm.CUBE).any(1)
    found = np.asarray(arm.to_box(points))
    np.testing.assert_allclose(found[outside], nearest[outside], atol=5e-4)
    inside = np.random.default_rng(1).uniform(-arm.CUBE, arm.CUBE, (50, 3)).astype(np.float32)
    depth = (arm.CUBE - np.abs(inside)).min(1)
    np.testing.assert_allclose(arm.to_box(inside), -depth, atol=1e-6)


def test_reaching():
    task = make_task("so101_reach", EnvConfig(observe="state"))
    state = jax.jit(jax.vmap(task.reset))(jax.random.split(jax.random.key(0), 64))
    places = np.asarray(state.data.physics.qpos[:, 6:8])
    assert np.ptp(places[:, 0]) > 0.06 and np.ptp(places[:, 1]) > 0.12
    over_the_cube = jnp.asarray(starts(3).qpos[:64])
    above = state.data.replace(physics=state.data.physics.replace(qpos=over_the_cube))
    judge = jax.jit(jax.vmap(lambda e, a: task.judge(e, task.engine.poses(e.physics.qpos), a)))
    idle = jnp.zeros((64, 4))
    near, far = judge(above, idle), judge(state.data, idle)
    assert (near.memo.hold == 1).all() and not near.success.any()
    assert (near.reward <= 0).all() and near.reward.mean() > -0.2 > -0.4 > far.reward.mean()
    assert (far.memo.hold == 0).mean() > 0.9
    ready = above.replace(memo=above.memo.replace(hold=jnp.full(64, 9, jnp.int32)))
    done = judge(ready, idle)
    assert done.success.all() and np.allclose(done.reward, near.reward + 10, atol=1e-5)


def test_promotion_follows_success():
    task = make_task("so101_lift", EnvConfig(stage=1, promote=0.6))
    after = jax.jit(jax.vmap(task.reset_after))
    state = jax.jit(jax.vmap(task.reset))(jax.random.split(jax.random.key(0), 3))
    wins = np.array([1, 0, 1], np.float32)
    seen = [np.asarray(state.data.memo.stage)]
    for i in range(60):
        if i == 20:
            wins[2] = 0
        ended = state.replace(info={**state.info, "success": jnp.asarray(wins)})
        state = after(jax.random.split(jax.random.key(i), 3), ended)
        seen.append(np.asarray(state.data.memo.stage))
    seen = np.array(seen)
    np.testing.assert_array_equal(seen[0], 1)
    np.testing.assert_array_equal(seen[-1], [4, 1, 3])  # always, never, and 20 times in a row
    assert (np.diff(seen, axis=0) >= 0).all() and (np.diff(seen, axis=0) <= 1).all()
    np.testing.assert_array_equal(state.data.memo.grasped, seen[-1] <= 2)
    plain = make_task("so101_lift", EnvConfig(stage=1))
    ended = jax.jit(plain.reset)(jax.random.key(0))
    assert jax.jit(plain.reset_after)(jax.random.key(1), ended).data.memo.stage == 1
