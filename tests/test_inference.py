"""jaxrl.load: a policy does in anybody's program what the run's evaluations do, and says what is wrong."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
import small

import jaxrl
from jaxrl import (
    actor,
    checkpoint,
    envs,
    evaluation,
    inference,
    keys,
    learners,
    manifest,
    runtime,
    trial,
)
from jaxrl.config import Config, ConfigError, replace, to_dict
from jaxrl.exits import NoCheckpoint
from jaxrl.learners.dreamer.model import Model
from jaxrl.stores import find
from jaxrl.types import ArraySpec, Continuous, Discrete, Spaces

TINY = {
    "agent": "dreamer",
    "model.size": "debug",
    "model.compute_dtype": "float32",
    "model.deter": 16,
    "model.blocks": 2,
    "model.stoch": 3,
    "env.size": 48,
    "env.action_repeat": 1,
    "env.time_limit": 9,
    "replay.capacity": 1_000,
}
RUNS = {
    "clock": {"task": "toy_clock"},
    "reach": {"task": "toy_reach"},
    "drq": {"task": "toy_clock", "agent": "drq", "drq.features": 8, "drq.hidden": 8, "drq.channels": 4},
}
LINES = textwrap.dedent(str(jaxrl.load.__doc__).partition("\n\n")[2].partition("    Args:")[0])


def write_run(path: pathlib.Path, name: str, *, step: int = 70, store: str = "best", spaces: bool = True):
    """What a run would leave that has learned nothing, but has random weights everywhere."""
    config = replace(Config(), TINY | RUNS[name])
    single = envs.device_env(config.task, config.env)
    assert single
    learner, draw = learners.make(config, single.spaces), np.random.default_rng(1)

    def drawn(path, x):
        deviation = np.prod(x.shape[:-1]) ** -0.5 if path[-1].key == "kernel" else 0.3
        return np.float32(deviation * draw.normal(size=x.shape) + (path[-1].key == "scale"))

    state = actor.state_of(learner)
    params = jax.tree_util.tree_map_with_path(drawn, state.params)
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state).replace(params=params)
    arrays = checkpoint.flatten({"learner": state, "policy": learner.policy_params(state)})
    if store == "latest":
        arrays |= {f"ring.rows.{k}": draw.integers(0, 256, (40, 10_000), np.uint8) for k in "abcdefgh"}
    folder = path / "checkpoints" / store / str(step)
    folder.parent.mkdir(parents=True, exist_ok=True)
    on_device = {k: jax.numpy.asarray(x) for k, x in arrays.items() if x.size}
    checkpoint.begin(folder, on_device, {"scores": np.zeros(5)}).result()
    facts = {"run": "x", "lineage": [], "step": step, "store": store, "score": 1.0, "config": to_dict(config)}
    facts |= {"counters": {}} | ({"spaces": actor.plain(single.spaces)} if spaces else {})
    manifest.write(folder, facts)
    return path


def write_bare(path: pathlib.Path, step: int, store: str):
    """A checkpoint of nothing, for who only looks for one."""
    folder = path / "checkpoints" / store / str(step)
    folder.mkdir(parents=True)
    (folder / "x").write_text("x")
    manifest.write(folder, {"step": step, "store": store, "score": 1.0, "config": {}})
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    return {name: write_run(home / name, name) for name in RUNS}


@pytest.fixture(scope="module")
def policies(folders):
    return {name: jaxrl.load(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def clock(policies):
    return policies["clock"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the small learner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(learners.LEARNERS, "dreamer", small.make_learner)
        return small.run(tmp_path_factory.mktemp("small") / "run", "--steps=80", "--eval_every=40")


@pytest.fixture
def run(trained, monkeypatch):
    monkeypatch.setitem(learners.LEARNERS, "dreamer", small.make_learner)
    return trained


def obs_of(policy, n: int | None, seed: int = 0):
    draw, lead = np.random.default_rng(seed), () if n is None else (n,)
    return {
        k: draw.integers(0, 256, (*lead, *s.shape), np.uint8)
        if s.is_image
        else np.float32(draw.normal(size=(*lead, *s.shape)))
        for k, s in policy.spaces.obs.items()
    }


def same(a, b):
    leaves = [jax.tree.leaves(x) for x in (a, b)]
    return all(np.array_equal(x, y) for x, y in zip(*leaves, strict=True))


# What evaluations do


class Seen:
    """A watcher that keeps what was done."""

    def __init__(self):
        self.actions = []

    def row(self, env, step, found):
        pass

    def acts(self, action):
        self.actions.append(action)


@pytest.mark.parametrize("name", RUNS)
def test_acts_as_in_an_evaluation_to_the_last_bit(policies, name):
    policy, n, seen = policies[name], 2, Seen()
    config = replace(policy.config, {"eval_eps": 3, "eval.num_envs": n})
    machine = inference.there("auto")
    chance = jax.random.key(0), keys.env_seed(0, keys.TRIAL, 0)
    act = actor.Actor(config, policy.spaces, n, machine)
    params = act.load(find(policy.checkpoint))
    found = evaluation.play(config, act, params, chance, watchers=[seen])
    assert len(found) == 3 and len(seen.actions) >= 9

    env, carry, actions = policy.make_env(n), None, []
    step = env.reset()
    while len(actions) < len(seen.actions):
        action, carry = policy(step.obs, policy.reset(carry, step.is_first))
        actions.append(action)
        env.send(action)
        step = env.recv()
    env.close()
    np.testing.assert_array_equal(actions, seen.actions)
    assert np.array(actions).std() > 0 and actions[0].dtype == policy.spaces.action.dtype


def test_plays_the_episodes_of_the_command(run, tmp_path):
    result = trial.hold(trial.Wish(path=str(run.path), episodes=4, seed=3, out=str(tmp_path)), lambda _: None)
    want = {x["env"]: x["score"] for x in json.loads(result.file.read_text())["episodes"]}
    policy = jaxrl.load(run.path, seed=3)
    env, carry, scores = policy.make_env(4, seed=3), None, {}
    step, sums = env.reset(), np.zeros(4)
    while len(scores) < 4:
        action, carry = policy(step.obs, policy.reset(carry, step.is_first))
        env.send(action)
        step = env.recv()
        sums = np.where(step.is_first, 0, sums) + step.reward
        scores |= {int(i): sums[i] for i in np.flatnonzero(step.is_last) if int(i) not in scores}
    assert scores == want and len(set(want.values())) > 1


def lines_for(path: pathlib.Path) -> str:
    code = LINES.replace("runs/catch/toy_catch-...", str(path))
    assert code != LINES and len(code.strip().splitlines()) <= 12
    return code


def test_the_lines_of_the_docstring_play_an_episode(run, capsys):
    exec(lines_for(run.path))
    task, step, score = capsys.readouterr().out.split()
    assert (task, step) == ("toy_clock", str(find(run.path / "checkpoints" / "best").step))
    assert float(score) > 0


def test_a_fresh_process_needs_no_more_than_these_lines(folders, policies, tmp_path):
    """The real learner; and the process around it stays as it was."""
    code = f"""
        import signal, sys
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        import jaxrl
        assert "jax" not in sys.modules
        try:
            jaxrl.load({str(tmp_path)!r}, device="typewriter")
        except Exception as error:
            assert type(error).__name__ == "ConfigError" and "jax" not in sys.modules, error
        LINES
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
        import jax
        print(*[x.platform for x in jax.local_devices()])
    """
    code = textwrap.dedent(code).replace("LINES", lines_for(folders["reach"]))
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    task, step, score = first.split()
    policy = policies["reach"]
    env, total = policy.make_env(), 0.0
    now, carry = env.reset(), None
    while not now.is_last.all():
        action, carry = policy(now.obs, carry)
        env.send(action)
        now = env.recv()
        total += float(now.reward[0])
    assert (task, step) == ("toy_reach", "70")
    np.testing.assert_allclose(float(score), total, rtol=1e-4)  # its XLA has other options
    assert set(second.split()) == {"cpu"}


# Values


def test_the_same_arguments_give_the_same(clock):
    obs = obs_of(clock, 2)
    _, carry = clock(obs)
    kept = jax.tree.map(np.array, carry)
    a, b = clock(obs, carry), clock(obs, carry)
    assert same(a, b) and same(carry, kept)
    assert same(clock(obs), clock(obs, None))
    drawn = []
    for _ in range(20):
        action, carry = clock(obs, clock.reset(carry))
        drawn.append(action.tolist())
    assert len({str(x) for x in drawn}) > 1, "noise goes on from episode to episode"


def test_seed_and_mode(folders, policies):
    reach, obs = policies["reach"], obs_of(policies["reach"], 2)
    other, mode = jaxrl.load(folders["reach"], seed=1), jaxrl.load(folders["reach"], mode="mode")
    assert not np.array_equal(reach(obs)[0], other(obs)[0])
    assert (reach.config.eval.mode, mode.config.eval.mode) == ("sample", "mode")
    action, carry = mode(obs)
    raw = Model(mode.config, mode.spaces).run(mode._params, "pol", carry.carry.latent.feature)
    np.testing.assert_allclose(action, np.tanh(np.split(raw, 2, -1)[0]), rtol=1e-4)
    assert not np.array_equal(action, reach(obs)[0])
    with pytest.raises(ConfigError, match=r"eval\.mode"):
        jaxrl.load(folders["reach"], mode="best")
    with pytest.raises(ConfigError, match="seed=-1"):
        jaxrl.load(folders["reach"], seed=-1)


def test_one_environment_needs_no_axis(policies):
    clock, reach = policies["clock"], policies["reach"]
    obs = obs_of(clock, 1)
    a, carry_a = clock(obs)
    b, carry_b = clock({k: x[0] for k, x in obs.items()})
    assert a.shape == (1,) and b.shape == () and a[0] == b and a.dtype == np.asarray(b).dtype == np.int32
    assert same(carry_a, carry_b)
    vector = obs_of(reach, 2)["vector"]
    action, _ = reach(vector)  # one key: the array will do
    assert action.shape == (2, 2) and action.dtype == np.float32 and (np.abs(action) <= 1).all()
    np.testing.assert_array_equal(action, reach({"vector": vector})[0])
    np.testing.assert_array_equal(action, reach(jax.numpy.asarray(vector))[0])
    np.testing.assert_array_equal(action, reach(vector.astype(np.float64))[0])
    assert reach(vector[0])[0].shape == (2,)


@pytest.mark.parametrize("name", ["clock", "drq"])
def test_some_of_a_batch_begin_anew(policies, name):
    """A reset environment remembers what a fresh one does; its neighbours go on."""
    policy = policies[name]
    carry = None
    for i in range(3):
        _, carry = policy(obs_of(policy, 2, i), carry)
    obs = obs_of(policy, 2, 9)
    fresh = dataclasses.replace(policy(obs)[1], counter=carry.counter)  # of the right shapes
    fresh = dataclasses.replace(fresh, carry=policy._learner.initial_carry(2), first=np.ones(2, bool))
    want, plain = policy(obs, fresh)[1], policy(obs, carry)[1]
    got = policy(obs, policy.reset(carry, np.array([True, False])))[1]
    kept = [x for x in zip(*map(jax.tree.leaves, (got.carry, want.carry, plain.carry)), strict=True)]
    kept = [x for x in kept if x[0].ndim > 1]  # drq counts decisions, whatever the episode
    assert kept
    for a, b, c in kept:
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], c[1])
    assert any(not np.array_equal(a[1], b[1]) for a, b, _ in kept)
    assert policy.reset(None, True) is None


def test_compiles_once_for_each_number_of_environments(folders, monkeypatch):
    calls, real = [], actor.compile_all
    monkeypatch.setattr(actor, "compile_all", lambda *a: calls.append(1) or real(*a))
    policy, carry = jaxrl.load(folders["drq"]), {2: None, 1: None}
    for i in range(6):
        for n in (1, 2):
            _, carry[n] = policy(obs_of(policy, n, i), policy.reset(carry[n], i == 3))
    policy(obs_of(policy, None))
    assert len(calls) == 2


def test_what_the_program_around_has_set_changes_nothing(folders, policies):
    obs = [obs_of(policies["reach"], 2, i) for i in range(4)]

    def played(policy):
        found, carry = [], None
        for x in obs:
            action, carry = policy(x, carry)
            found.append(action)
        out = policy.imagine(carry, np.zeros((4, 2, 2)))
        return np.array(found), out.reward, out.carry.carry

    want = played(policies["reach"])
    with jax.enable_x64(True), jax.default_matmul_precision("bfloat16"), jax.default_prng_impl("rbg"):
        got = played(jaxrl.load(folders["reach"]))
    assert same(got, want)
    assert [x.dtype for x in jax.tree.leaves(got)] == [x.dtype for x in jax.tree.leaves(want)]


# Imagination


def test_imagines_what_the_learner_does(policies):
    policy, n, h = policies["reach"], 2, 4
    _, carry = policy(obs_of(policy, n))
    actions = np.random.default_rng(2).uniform(-1, 1, (h, n, 2))
    out = policy.imagine(carry, actions)
    params, key = policy._params | policy._dreamers, jax.random.key(0)
    key = keys.key_for(key, keys.REPORT, carry.counter)
    want = jax.jit(policy._learner.imagine)(params, carry.carry, actions.astype(np.float32), key)
    np.testing.assert_array_equal(out.carry.carry.latent.stoch, want.carry.latent.stoch)
    np.testing.assert_allclose(out.continuation, want.continuation, rtol=1e-5)
    np.testing.assert_allclose(out.reward, want.reward, rtol=1e-4)
    np.testing.assert_allclose(out.obs["vector"], want.obs["vector"], rtol=1e-4)
    assert isinstance(out.obs["vector"], np.ndarray) and isinstance(out.reward, np.ndarray)
    assert same(out, policy.imagine(carry, actions))
    further = policy.imagine(out.carry, actions)
    assert further.reward.shape == (h, n) and not np.array_equal(further.reward, out.reward)


def test_imagines_for_one_environment(policies):
    policy = policies["reach"]
    _, carry = policy(obs_of(policy, None))
    plan = np.zeros((3, 2), np.float32)
    out = policy.imagine(carry, plan)
    assert out.obs["vector"].shape == (3, 6) and out.reward.shape == out.continuation.shape == (3,)
    assert policy.imagine(carry, plan[:, None]).reward.shape == (3, 1)


def test_what_cannot_be_imagined(policies):
    clock, plan = policies["clock"], np.zeros((3, 2), np.int32)
    _, carry = clock(obs_of(clock, 2))
    for actions, word in (
        (plan[:0], r"int32\[0, 2\], expected int32\[H, 2\]"),
        (plan[:, :1], r"int32\[3, 1\], expected int32\[H, 2\]"),
        (plan[..., None], r"int32\[3, 2, 1\], expected int32\[H, 2\]"),
        (plan + 3, r"is outside \[0, 3\)"),
        (plan + 0.5, r"must be integers"),
    ):
        with pytest.raises(ValueError, match=word):
            clock.imagine(carry, actions)
    with pytest.raises(ValueError, match="carry is a NoneType"):
        clock.imagine(None, plan)
    with pytest.raises(ValueError, match="was reset"):
        clock.imagine(clock.reset(carry, np.array([False, True])), plan)
    dreamt = clock.imagine(carry, plan)
    for key, spec in clock.spaces.obs.items():
        assert dreamt.obs[key].shape == (3, 2, *spec.shape) and dreamt.obs[key].dtype == spec.dtype
    with pytest.raises(ValueError, match="imagined"):
        clock(obs_of(clock, 2), dreamt.carry)
    drq = policies["drq"]
    with pytest.raises(ValueError, match="agent=drq has no world model"):
        drq.imagine(drq(obs_of(drq, 2))[1], plan)


# What is wrong is told


def test_mistakes_name_the_key_what_is_expected_and_what_was_given(clock):
    good = obs_of(clock, None)
    image, count = good["image"], good["count"]
    for obs, want in (
        (
            {**good, "image": image / 255},
            "['image'] is float64[48, 48, 3], expected uint8[48, 48, 3] or uint8[N,",
        ),
        ({**good, "image": image[:40]}, "['image'] is uint8[40, 48, 3], expected uint8[48, 48, 3]"),
        ({**good, "image": image[None, None]}, "['image'] is uint8[1, 1, 48, 48, 3], expected uint8[48, "),
        ({**good, "count": np.array([3])}, "['count'] is int64[1], expected float32[1] or float32[N, 1]"),
        ({k: x[None][:0] for k, x in good.items()}, "['count'] is float32[0, 1], expected"),
        ({"image": image}, "['count'] is missing, expected the keys count, image"),
        ({**good, "state": count}, "['state'] is unknown, expected the keys count, image"),
        (image, " is a ndarray, expected a dict with the keys count, image"),
        (
            {"image": image[None], "count": count},
            " has different axes of environments in front: obs['count'] []",
        ),
    ):
        with pytest.raises(ValueError) as caught:
            clock(obs)
        assert str(caught.value).startswith("obs" + want) and "\n" not in str(caught.value)


def test_a_carry_of_something_else(policies):
    clock, reach = policies["clock"], policies["reach"]
    with pytest.raises(ValueError, match="carry is not one of this policy"):
        clock(obs_of(clock, 2), reach(obs_of(reach, 2))[1])
    _, carry = clock(obs_of(clock, 2))
    with pytest.raises(ValueError, match="carry is of 2 environments, obs of 3"):
        clock(obs_of(clock, 3), carry)
    with pytest.raises(ValueError, match="carry is a dict, expected what policy"):
        clock(obs_of(clock, 3), {})
    for where in (np.zeros(3, bool), np.zeros(2)):
        with pytest.raises(ValueError, match=r"expected bool\[\] or bool\[2\]"):
            clock.reset(carry, where)


def test_no_such_run_and_no_checkpoint(folders, tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        jaxrl.load(tmp_path / "nothing")
    with pytest.raises(NoCheckpoint, match="has no checkpoint yet"):
        jaxrl.load(tmp_path)
    with pytest.raises(ConfigError, match="^which=newest: must be best, latest or a step"):
        jaxrl.load(folders["clock"], "newest")
    with pytest.raises(NoCheckpoint, match="which=40: .* the nearest are at 70"):
        jaxrl.load(folders["clock"], 40)
    with pytest.raises(ConfigError, match="which=best: .* says which already"):
        jaxrl.load(folders["clock"] / "checkpoints" / "best" / "70", "best")


def test_picks_the_checkpoint_that_is_named(tmp_path):
    for step, store in ((10, "periodic"), (30, "periodic"), (20, "best"), (40, "latest")):
        write_bare(tmp_path, step, store)
    for which, step in (("", 20), ("best", 20), ("latest", 40), (10, 10), ("30", 30)):
        found = actor.chosen(str(tmp_path), str(which))
        assert found.step == step
    assert actor.chosen(str(tmp_path / "checkpoints" / "periodic"), "").step == 30
    shutil.rmtree(tmp_path / "checkpoints" / "best")
    assert actor.chosen(str(tmp_path), "").step == 40


def test_a_device_that_jax_does_not_have(folders):
    with pytest.raises(ConfigError, match="device=tpu: jax was imported before, and has only cpu"):
        jaxrl.load(folders["clock"], device="tpu")
    with pytest.raises(ConfigError, match="device"):
        jaxrl.load(folders["clock"], device="abacus")


def test_a_task_that_is_gone_does_not_matter_until_it_is_made(folders, tmp_path, monkeypatch, policies):
    old = write_run(tmp_path, "reach", spaces=False)
    assert jaxrl.load(old).spaces == policies["reach"].spaces  # of an environment that is made
    monkeypatch.setattr(envs, "list_tasks", lambda: ())
    policy = jaxrl.load(folders["reach"])
    assert policy.spaces == policies["reach"].spaces and policy.task == "toy_reach"
    with pytest.raises(ConfigError, match="unknown task"):
        policy.make_env()
    with pytest.raises(ConfigError, match="does not say what it observes, and task='toy_reach': unknown"):
        jaxrl.load(old)


@pytest.mark.parametrize("action", [Discrete(4), Continuous(3)])
def test_spaces_in_a_manifest(action):
    obs = {"b": ArraySpec((8, 8, 3), np.dtype(np.uint8)), "a": ArraySpec((5,), np.dtype(np.float32))}
    said = json.loads(json.dumps({"spaces": actor.plain(Spaces(obs=obs, action=action))}))
    assert actor.spaces_of(said, Config()) == Spaces(obs=obs, action=action)


def test_runs_say_what_they_observe(run):
    env = envs.device_env("toy_clock", jaxrl.load(run.path).config.env)
    assert env and find(run.path).manifest["spaces"] == actor.plain(env.spaces)


# What is read


def test_reads_the_parameters_of_acting_and_later_those_of_imagining(folders, monkeypatch):
    asked, read = [], checkpoint.load
    monkeypatch.setattr("jaxrl.checkpoint.load", lambda *a, **k: asked.append((a[1], k)) or read(*a, **k))
    policy = jaxrl.load(folders["reach"])
    assert len(asked) == 1
    assert policy._dreamers is policy._dreamers and len(asked) == 2
    networks = [sorted({name.rpartition(".params.")[2] for name in names}) for names, _ in asked]
    networks = [sorted({name.removeprefix("policy.").split(".")[0] for name in names}) for names in networks]
    assert networks == [["dyn", "enc", "pol"], ["con", "dec", "rew"]]
    assert all(name.startswith("policy.") for name in asked[0][0])
    assert all(how == {"part": True} for _, how in asked)
    stored, host = checkpoint.shapes(policy.checkpoint)
    assert any(".opt." in name for name in stored) and host
    loaded = read(policy.checkpoint, asked[0][0], part=True)
    assert loaded[0].keys() == asked[0][0].keys() and loaded[1] == {}


def test_imagining_after_the_run_has_removed_the_checkpoint(folders, policies, tmp_path):
    shutil.copytree(folders["reach"], tmp_path / "run")
    policy = jaxrl.load(tmp_path / "run")
    shutil.rmtree(policy.checkpoint)
    _, carry = policies["reach"](obs_of(policy, 2))
    with pytest.raises(NoCheckpoint, match="was removed since it was loaded"):
        policy.imagine(carry, np.zeros((4, 2, 2)))


@pytest.fixture
def divided(tmp_path, monkeypatch):
    """A checkpoint with a replay of many files, as one of many gigabytes has them."""
    real = checkpoint.ocp.Context

    def context():
        made = real()
        made.array.saving.ocdbt_target_data_file_size = 50_000
        return made

    monkeypatch.setattr(checkpoint.ocp, "Context", context)
    return write_run(tmp_path / "run", "reach", store="latest")


def test_only_files_with_parameters_are_compared_with_their_digests(divided, monkeypatch):
    folder = divided / "checkpoints" / "latest" / "70"
    looked, digest = [], manifest.digest_of
    monkeypatch.setattr(manifest, "digest_of", lambda path, **k: looked.append(path) or digest(path, **k))
    found = actor.readable(folder)
    sizes = {x.relative_to(folder).as_posix(): x.stat().st_size for x in looked}
    skipped = found.manifest["files"].keys() - sizes.keys()
    assert skipped == checkpoint.unneeded(folder, actor.NETWORKS)
    assert sum(found.manifest["files"][x]["bytes"] for x in skipped) > 2_000_000 > 4 * sum(sizes.values())
    for name in skipped:  # whoever goes on with the run hears of it
        (folder / name).write_bytes(b"")
    assert jaxrl.load(divided).step == 70
    with pytest.raises(NoCheckpoint):
        find(divided)


def test_damage_of_anything_that_is_read_is_found(divided):
    folder = divided / "checkpoints" / "latest" / "70"
    needed = manifest.read(folder)["files"].keys() - checkpoint.unneeded(folder, actor.NETWORKS)
    assert len(needed) > 8
    for name in sorted(needed):
        before = (folder / name).read_bytes()
        for fault in (before[:-1], bytes([255 - x for x in before[:9]]) + before[9:], before + b"x"):
            if fault == before:
                continue
            (folder / name).write_bytes(fault)
            with pytest.raises(NoCheckpoint):
                actor.chosen(str(divided), "", actor.readable)
        (folder / name).write_bytes(before)
    assert actor.chosen(str(divided), "", actor.readable).step == 70


def test_values_are_found_in_an_index_of_several_floors(monkeypatch):
    """Keys of an inner node lack what all of them begin with."""
    ts = checkpoint.tensorstore
    spec = {"driver": "ocdbt", "base": "memory://", "config": {"max_inline_value_bytes": 1}}
    spec["config"]["max_decoded_node_bytes"] = 300
    store = ts.KvStore.open(spec).result()
    with ts.Transaction(atomic=False) as transaction:
        writer = store.with_transaction(transaction)
        for name in ("learner", "policy", "ring"):
            for i in range(12):
                writer[f"{name}.rows.x.{i:02d}/c/0"] = b"abcdef"
    assert ts.ocdbt.dump(store.base).result()["versions"][-1]["root_height"] > 1
    monkeypatch.setattr(checkpoint, "file_of", lambda place: place)  # each value a file of its own
    assert len(checkpoint.unneeded_in(store.base, (b"policy.", b"learner.rows.x.0"))) == 36 - 12 - 10


def test_damaged_checkpoints_are_warned_of(tmp_path):
    write_run(tmp_path, "reach", step=10, store="latest")
    (write_bare(tmp_path, 20, "latest") / "x").write_text("y")
    with pytest.warns(
        UserWarning, match="checkpoint latest/20 is damaged: x has changed .*; using latest/10"
    ):
        assert jaxrl.load(tmp_path).step == 10


def test_the_environment_variables_of_this_process_stay(folders, monkeypatch):
    """jax is here already: it is too late for them."""
    monkeypatch.setattr(runtime, "prepare", lambda config: pytest.fail("too late"))
    assert jaxrl.load(folders["reach"], device="cpu").step == 70
