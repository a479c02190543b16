"""Numbers that go bad: what is skipped, when a run ends, what is told and kept, and what reaches no disk."""

import dataclasses
import functools
import json
import math
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from small import Fault, run

from jaxrl import checkpoint, glossary, keys, learners, metrics, parts, runtime, sources
from jaxrl.config import Config, replace
from jaxrl.envs import Clock, Hosted, make
from jaxrl.envs.base import BadRow
from jaxrl.envs.hosted import Outcome
from jaxrl.feeds.replay import Replay
from jaxrl.feeds.ring import row_of
from jaxrl.hosts import ALONE
from jaxrl.nans import Reports, summary
from jaxrl.ops.finite import all_finite, named_floats
from jaxrl.parts import Parts
from jaxrl.programs import Programs
from jaxrl.state import Counters
from jaxrl.types import Discrete, Evidence

NAN, INF = float("nan"), float("inf")
FLAGS = ("--steps=60", "--log_every=20", "--save_every=20", "--eval_every=0", "--checkpoint.keep=100")


@dataclasses.dataclass(frozen=True)
class Case:
    """One injection, and what the run must make of it."""

    fault: Fault
    limit: int  # opt.max_skipped
    end: tuple[int, int]  # (exit code, step of the last row)
    first_bad: str | None
    cut: int = 0  # vector steps after which the process is asked to end; the same command continues

    def bad(self) -> set[int]:
        return {i for i in range(made(60)) if self.fault.first <= i <= self.fault.last}


def made(step: int) -> int:
    """Updates made at a step of FLAGS: 4, 9 and 14 at its rows."""
    return 1 + (step - 5) // 4 if step >= 5 else 0


def longest(bad: set[int], step: int) -> int:
    """The longest run of bad updates up to a step."""
    line = "".join("x" if i in bad else " " for i in range(made(step)))
    return max(len(part) for part in line.split(" "))


CASES = {
    "loss, the first": Case(Fault("loss", NAN, 0, 0), 3, (0, 60), None),
    "loss, all": Case(Fault("loss", NAN), 3, (70, 20), "loss/reward"),
    "loss, from the middle on": Case(Fault("loss", INF, 6), 5, (70, 60), "loss/reward"),
    "loss, over a flush": Case(Fault("loss", -INF, 2, 6), 5, (70, 40), "loss/reward"),
    "loss, over a flush, spared": Case(Fault("loss", NAN, 2, 6), 6, (0, 60), "loss/reward"),
    "loss, over a resume": Case(Fault("loss", NAN, 5, 10), 6, (70, 60), "loss/reward", cut=32),
    "gradient, the first": Case(Fault("grad", INF, 0, 0), 1, (70, 20), None),
    "gradient, once": Case(Fault("grad", INF, 7, 7), 2, (0, 60), None),
    "gradient, from the middle on": Case(Fault("grad", NAN, 8), 6, (70, 60), "grad/out"),
    "gradient, over two flushes": Case(Fault("grad", -INF, 3, 9), 7, (70, 60), "grad/out"),
    "gradient, over a resume, spared": Case(Fault("grad", NAN, 5, 10), 7, (0, 60), "grad/out", cut=32),
}


@pytest.fixture
def with_fault(monkeypatch):
    """with_fault(fault): runs have the small learner with that fault."""

    def use(fault=None):
        monkeypatch.setitem(learners.LEARNERS, "dreamer", functools.partial(small.make_learner, fault=fault))

    use()
    return use


def report(done):
    """nan_report.json, which must be strict JSON."""
    return json.loads((done.path / "nan_report.json").read_text(), parse_constant=pytest.fail)


def kept(done):
    with np.load(done.path / "nan_batch.npz") as file:
        return dict(file)


def check(done):
    """What holds after every run: nothing that is not finite was committed, rows are strict JSON."""
    for line in (done.path / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line, parse_constant=pytest.fail)
        assert not [key for key in row if glossary.find(key) is None]
    folders = [path.parent for path in done.path.glob("checkpoints/latest/*/manifest.json")]
    for folder in folders:
        arrays = done.arrays(int(folder.name))
        assert all(np.isfinite(x).all() for x in arrays.values() if x.dtype.kind == "f"), folder
    return {int(folder.name) for folder in folders}


@pytest.mark.parametrize("name", CASES)
def test_updates_that_are_not_finite(name, tmp_path, with_fault, monkeypatch, capsys):
    case = CASES[name]
    with_fault(case.fault)
    flags = (*FLAGS, f"--opt.max_skipped={case.limit}", "--terminal.style=plain")
    code, end = case.end
    if case.cut:
        stop_after(monkeypatch, case.cut)
        assert check(run(tmp_path / "run", *flags, code=143)) == {20, case.cut}
    done = run(tmp_path / "run", *flags, code=code)
    bad = case.bad()
    # By the definition: the first row at which the limit is reached is the last.
    assert end == next((s for s in (20, 40, 60) if longest(bad, s) >= case.limit), 60)
    assert done.steps() == [x for x in (0, 20, 40, 60) if x <= end]
    assert check(done) == {x for x in (20, 40, 60) if x < end or code == 0} | ({case.cut} - {0})
    text = "".join(capsys.readouterr())
    for before, row in zip(done.rows, done.rows[1:], strict=False):
        new = set(range(made(before["step"]), made(row["step"])))
        now = bad & new
        assert row["train/opt/skipped"] == len(now) and "nan_keys" not in row
        assert ("train/opt/loss" in row) == (case.fault.place == "grad" or now < new)
        told = f"{len(now)} of {len(new)} updates were not finite and were skipped"
        assert (f"{told}; nan_report.json says where" in text) == bool(now)
    assert (done.note["exit"] == "done") == (code == 0)
    assert done.note["exit"].startswith("Diverged: ") == (code == 70)
    found, first = report(done), min(i for i in bad if not case.cut or i >= made(case.cut))
    assert (found["update"], found["first_bad"]) == (first, case.first_bad)
    assert found["bad"] == ([case.first_bad] if case.first_bad else [])
    assert ("not reproduced" in found["how"]) == (case.first_bad is None)
    assert f"parameters after {found['updates']} updates" in found["how"]
    assert found["updates"] == made(found["step"]) and made(found["step"] - 20) <= first < made(found["step"])
    assert_is_the_clocks(kept(done))


def stop_after(monkeypatch, steps):
    """This process gets a SIGTERM at that vector step from now on."""
    act, count = Programs.act, [0]

    def counted(self, *args):
        count[0] += 1
        if count[0] == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return act(self, *args)

    monkeypatch.setattr(Programs, "act", counted)


def assert_is_the_clocks(batch):
    """Sequences as the clock gives them: every number tells what the others must be."""
    count, image = batch["obs.count"][..., 0], batch["obs.image"]
    assert batch["latents.h"].shape == (*count.shape, small.WIDTH) and count.shape == (5, 2)
    np.testing.assert_array_equal(image[..., 0, 0, 0], count)
    follows = ~batch["is_first"][1:]
    np.testing.assert_array_equal(np.diff(count, axis=0)[follows], 1)
    np.testing.assert_array_equal(batch["reward"], np.where(batch["is_first"], 0, count % 5 - 2))


def test_a_learner_that_skips_without_a_reason(tmp_path, with_fault):
    done = run(tmp_path / "run", *FLAGS, "--opt.lr=1", "--opt.max_skipped=9", code=70)
    assert done.steps() == [0, 20, 40] and check(done) == {20}
    found = report(done)
    assert found["update"] == 0 and found["first_bad"] is None and "not reproduced" in found["how"]
    assert found["skipped"] == {"step": 40, "updates": 5, "of": 5, "in_a_row": 9, "limit": 9}
    assert any("--opt.lr" in line for line in found["try"])


def test_a_metric_that_is_not_finite_is_no_reason_to_skip(tmp_path, with_fault):
    with_fault(Fault("metric", NAN, 6, 6))
    done = run(tmp_path / "run", *FLAGS)
    assert [row.get("nan_keys") for row in done.rows] == [None, None, ["train/opt/grad_norm"], None]
    assert all(row["train/opt/skipped"] == 0 for row in done.rows[1:])
    assert not list(done.path.glob("nan_*"))


BATCHES = {  # leaf, value, rows that get it, exit code, what else is bad: tanh makes a 1 of infinity
    "reward, one row": ("reward", NAN, range(30, 31), 0, {"loss/reward", "grad/in", "grad/reward"}),
    "observation, from the middle on": ("obs.count", -INF, range(24, 60), 70, {"grad/in"}),
    "latents, all rows": ("latents.h", NAN, range(60), 70, {"loss/reward", "grad/in", "grad/reward"}),
}


@pytest.mark.parametrize("name", BATCHES)
def test_bad_rows_in_replay(name, tmp_path, with_fault, monkeypatch):
    """They cannot come there from an environment; if they do, updates that draw them are skipped."""
    leaf, value, rows, code, others = BATCHES[name]
    poison_replay(monkeypatch, leaf, value, rows)
    done = run(tmp_path / "run", *FLAGS, "--opt.max_skipped=6", "--checkpoint.replay=false", code=code)
    check(done)
    found, batch = report(done), kept(done)
    assert found["bad"] == [f"batch.{leaf}", *sorted(others, key=lambda x: (x[0] == "g", x))]
    assert found["first_bad"] == f"batch.{leaf}"
    assert not np.isfinite(batch[leaf]).all() and found["batch"][leaf]["not_finite"] >= 1
    healthy = {k: x for k, x in batch.items() if k != leaf}
    assert all(np.isfinite(x).all() for x in healthy.values())
    if leaf == "reward":
        assert np.isnan(batch["reward"]).sum() == found["batch"]["reward"]["not_finite"] == 1
        count = batch["obs.count"][..., 0]
        want = np.where(batch["is_first"], 0, count % 5 - 2)
        np.testing.assert_array_equal(batch["reward"], np.where(np.isnan(batch["reward"]), NAN, want))


def poison_replay(monkeypatch, leaf, value, rows):
    insert, count = Programs.insert, [0]

    def poisoned(self, rings, step, out, held):
        if count[0] in rows:
            bad = functools.partial(jax.tree.map, lambda x: self.put(np.full(x.shape, value, x.dtype)))
            if leaf == "reward":
                step = step.replace(reward=bad(step.reward))
            elif leaf == "latents.h":
                out = out._replace(latents=out.latents | {"h": bad(out.latents["h"])})
            else:
                step = step.replace(obs=step.obs | {"count": bad(step.obs["count"])})
        count[0] += 1
        return insert(self, rings, step, out, held)

    monkeypatch.setattr(Programs, "insert", poisoned)


ROWS = {  # key, value, environment, row (0: that of the reset), environments of the training
    "reward in the middle": ("reward", NAN, 0, 30, 1),
    "reward of the third environment": ("reward", INF, 2, 9, 3),
    "observation at the reset": ("obs.count", NAN, 0, 0, 1),
    "observation of the second environment": ("obs.count", -INF, 1, 11, 2),
    "reward in the evaluation": ("reward", -INF, 1, 3, 1),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_from_environments(name, tmp_path, with_fault, monkeypatch, capsys):
    """Neither the policy nor replay nor a score sees them; the checkpoint before is kept."""
    key, value, env, row, num_envs = ROWS[name]
    evaluation = "evaluation" in name
    poison_env(monkeypatch, key, value, env, row, num_envs=2 if evaluation else num_envs)
    flags = [*FLAGS, f"--env.num_envs={num_envs}"] + ["--eval_every=40"] * evaluation
    done = run(tmp_path / "run", *flags, code=70)
    step = 40 if evaluation else row * num_envs
    every = -(-20 // num_envs) * num_envs
    assert check(done) == set(range(every, step, every))
    error = capsys.readouterr().err
    whose = "evaluation environment" if evaluation else "environment"
    words = f"diverged at step {step}: {key} of {whose} {env} is {value}, must be finite; nan_batch.npz holds"
    assert len(error.splitlines()) == 1 and words in error and words in done.note["exit"]
    found, batch = report(done), kept(done)
    assert (found["first_bad"], found["step"]) == (f"env.{key}", step)
    assert found["updates"] == made(step // num_envs) or num_envs > 1
    assert set(found["bad"]) == {f"env.{key}"} | ({"env.raw_reward"} if key == "reward" else set())
    assert np.argwhere(~np.isfinite(batch[key])).tolist() == [[env, 0] if key == "obs.count" else [env]]
    assert batch["obs.image"].shape == (2 if evaluation else num_envs, 48, 48, 3)
    if row and not evaluation:
        again = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
        assert again["step"] <= step


def poison_env(monkeypatch, key, value, env, row, num_envs):
    """A row, counted from the reset, of environments that are so many."""
    fetch, count = Hosted._fetch, [0]

    def poisoned(self):
        step = fetch(self)
        if self.num_envs != num_envs:
            return step
        count[0] += 1
        if count[0] == row + 1:
            reward, obs = step.reward.copy(), {k: x.copy() for k, x in step.obs.items()}
            (reward if key == "reward" else obs["count"])[env] = value
            step = step.replace(reward=reward, obs=obs)
            self._outcome = Outcome(reward, step.is_last)
        return step

    monkeypatch.setattr(Hosted, "_fetch", poisoned)


def test_the_raw_reward_is_looked_at_too():
    """With clipped rewards, or of a pool, it is another number."""
    env = make("toy_catch", replace(Config(), {"env.action_repeat": 1}).env, num_envs=2, seed=0)
    env.reset()
    collect = env._collect

    def poisoned():
        step = collect()
        env._outcome = Outcome(np.array([0, np.inf], np.float32), step.is_last)
        return step

    env._collect = poisoned
    env.send(np.zeros(2, np.int64))
    with pytest.raises(BadRow, match="raw_reward of environment 1 is inf") as caught:
        env.recv()
    assert caught.value.row["obs.board"].shape == (2, 50)
    env.close()


def test_faults_can_be_asked_for(tmp_path, with_fault, capsys):
    run(tmp_path / "run", *FLAGS, "--debug.fault=nan@obs:12", code=70)
    assert "obs.count of environment 0 is nan" in capsys.readouterr().err


def test_a_full_disk_is_told_once_and_ends_nothing(tmp_path):
    """No more than a note: the run goes on, and the report is tried again."""
    notes, folder = [], tmp_path / "gone"
    config = replace(Config(task="toy_clock"), {"model.size": "debug"})
    evidence = Evidence(number=jnp.int32(3), batch={"reward": jnp.array([1.0, jnp.nan])})
    parts = Parts(
        config=config,
        learner=small.make_learner(config, Clock().spaces),
        machine=SimpleNamespace(hosts=ALONE),
        **dict.fromkeys(("replay", "held", "batched", "eval_envs", "key")),
    )

    class Broken:
        def explain(self, state, evidence):
            raise MemoryError("out of memory")

        def whole(self, batch):
            return batch

    state = small_state(evidence)
    reports = Reports(folder, parts, Broken(), notes.append)
    for _ in range(2):
        assert reports.skipped(state, 1, 9, 1) == ""
    assert len(notes) == 1 and "nan_report.json could not be written: No such file" in notes[0]
    folder.mkdir()
    assert reports.skipped(state, 2, 9, 2) == "; nan_report.json says where"
    assert {x.name for x in folder.iterdir()} == {"nan_report.json", "nan_batch.npz"}
    found = json.loads((folder / "nan_report.json").read_text())
    assert found["first_bad"] == "batch.reward" and "could not be computed again: MemoryError" in found["how"]
    assert found["skipped"]["updates"] == 2 and len(notes) == 1


def small_state(evidence):
    """As much of a RunState as a report looks at."""
    return SimpleNamespace(learner=None, evidence=evidence, counters=Counters(env_steps=40, updates=9))


def test_nothing_is_kept_of_another_process(tmp_path):
    state = small_state(Evidence(number=jnp.int32(-1), batch={"reward": jnp.zeros(2)}))
    parts = SimpleNamespace(machine=SimpleNamespace(hosts=ALONE))
    reports = Reports(tmp_path, parts, None, pytest.fail)
    assert reports.skipped(state, 1, 9, 1) == "" and not list(tmp_path.iterdir())


def test_summaries():
    got = summary(np.array([[1.0, NAN], [INF, 3.0]], np.float32))
    assert got == {"dtype": "float32", "shape": [2, 2], "not_finite": 2, "min": 1.0, "max": 3.0, "mean": 2.0}
    assert summary(np.array([NAN]))["mean"] is None and summary(np.zeros((0, 3), np.uint8))["min"] is None
    assert summary(np.array([True, False]))["mean"] == 0.5


# Programs


@pytest.fixture(scope="module")
def world():
    """The small learner with a fault in its third and fourth update, and a ring to learn from."""
    config = replace(Config(task="toy_clock"), {"env.size": 48, "batch_size": 2, "batch_length": 4})
    env = Hosted(Clock(size=48), num_envs=2, seed=0)
    learner = small.make_learner(config, env.spaces, Fault("loss", NAN, 2, 3))
    replay = Replay(
        spaces=env.spaces,
        latents=jax.eval_shape(learner.latent_zeros),
        streams=2,
        rows=16,
        batch=2,
        length=4,
        context=1,
        online=True,
    )
    ring, step, insert = replay.init(), env.reset(), jax.jit(replay.insert)
    for i in range(12):
        latents = {"h": jnp.full((2, small.WIDTH), i / 10, jnp.bfloat16), "version": jnp.zeros(2, jnp.int32)}
        ring = insert(ring, row_of(step, jnp.zeros(2, jnp.int32), latents))
        env.send(np.zeros(2, np.int32))
        step = env.recv()
    assert isinstance(env.spaces.action, Discrete)
    return learner, replay, ring


@pytest.mark.parametrize("many", [False, True])
def test_the_kept_batch_is_the_one_that_was_drawn(world, many):
    """Also where one dispatch makes many updates: the first bad one of them, and no later one."""
    learner, replay, ring = world
    key, state = jax.random.key(3), learner.init(jax.random.key(0))
    drawn, want = [], (state, ring)
    for number in range(5):
        key_sample = jax.random.fold_in(keys.key_for(key, keys.LEARN, number), 0)
        old, batch, window = replay.sample(want[1], key_sample)
        drawn.append(batch)
        out = learner.update(want[0], batch, sources.learner_key(key, keys.LEARN, number))
        want = out.state, replay.write_latents(old, window, out.latents)
    found = parts.with_streak(out.metrics)
    kinds = metrics.kinds_of(found)
    empty = jax.tree.map(jnp.zeros_like, drawn[0])
    carry = state, ring, jnp.asarray(metrics.empty(kinds)), Evidence(number=jnp.int32(-1), batch=empty)
    learn = jax.jit(sources.learn_program(learner, replay, many))
    numbers = [(5, 0, 0)] if many else [(1, i, 0) for i in range(5)]
    for plan in numbers:
        *carry, _ = learn(*carry, jnp.array(plan, jnp.int32), key)
    got, _, totals, evidence = carry
    assert int(evidence.number) == 2
    small.assert_same_arrays(named(evidence.batch), named(drawn[2]))
    np.testing.assert_allclose(got.params["in"], want[0].params["in"], rtol=1e-5)
    row = metrics.unpack(kinds, np.asarray(totals))
    assert row["train/opt/skipped"] == row["train/opt/skipped_in_a_row"] == 2
    assert math.isfinite(row["train/opt/loss"])


def named(tree):
    return {k: np.asarray(x) for k, x in checkpoint.flatten(tree).items()}


def test_an_update_is_explained_with_its_own_key():
    key, want = jax.random.key(3), jax.random.key(3)
    for number in (keys.LEARN, 7, 1):
        want = jax.random.fold_in(want, number)

    def explain(state, batch, key):
        same = (jax.random.key_data(key) == jax.random.key_data(want)).all()
        return {"param/x": state, "loss/y": jnp.where(same, batch, NAN)}

    evidence = Evidence(number=jnp.int32(7), batch=jnp.ones(2))
    found = jax.jit(sources.explain_program(explain))(jnp.float32(INF), evidence, key)
    assert {name: bool(x) for name, x in found.items()} == {"param/x": False, "loss/y": True}


@pytest.mark.parametrize("many", [False, True])
def test_a_healthy_update_copies_no_batch(world, many):
    """In the compiled program only the branch of a bad update does."""
    learner, replay, ring = world
    key, state = jax.random.key(3), learner.init(jax.random.key(0))
    batch = jax.eval_shape(replay.sample, ring, key)[1]
    found = jax.eval_shape(lambda *a: parts.with_streak(learner.update(*a).metrics), state, batch, key)
    evidence = Evidence(number=jax.ShapeDtypeStruct((), jnp.int32), batch=batch)
    arguments = state, ring, metrics.empty(metrics.kinds_of(found)), evidence, np.zeros(3, np.int32), key
    learn = jax.jit(sources.learn_program(learner, replay, many), donate_argnums=(0, 1, 2, 3))
    text = learn.lower(*arguments).compile(compiler_options=runtime.compiler_options("cpu")).as_text()
    branches = re.search(r"branch_computations=\{\S+ (%\S+)\}|true_computation=(%\S+),", text)
    assert branches is not None
    taken = branches[1] or branches[2]
    copies = {
        part.split(" ", 1)[0]
        for part in text.split("\n\n")
        if re.search(r"= u8\[5,2,48,48,3\]\S* copy\(", part)
    }
    assert copies <= {taken}


def test_which_arrays_are_finite():
    draw = np.random.default_rng(0)
    shapes = [(3,), (), (64,), (65, 2), (1,), (1100, 1000), (7, 9, 5), (128,)]
    arrays = {f"a{i}": jnp.float32(draw.normal(size=shape)) for i, shape in enumerate(shapes)}
    arrays |= {"b": jnp.ones(70, jnp.bfloat16), "c": jnp.zeros((2, 3), jnp.bfloat16)}
    judge = jax.jit(all_finite)
    assert judge(*arrays.values()).tolist() == [True] * 10
    for name, x in arrays.items():
        for at, value in ((0, NAN), (x.size // 2, INF), (x.size - 1, -INF)):
            bad = arrays | {name: x.reshape(-1).at[at].set(value).reshape(x.shape)}
            assert judge(*bad.values()).tolist() == [other != name for other in arrays]
    assert all_finite().tolist() == []
    tree = {"y": {"z": np.ones(2), "n": np.ones(2, int)}, "x": [np.ones(1), np.ones(0)]}
    assert list(named_floats(tree | {"k": jax.random.key(0)})) == ["x.0", "y.z"]


def test_checkpoints_are_judged_by_name(tmp_path, with_fault, monkeypatch):
    """With rings and without, in sorted order of the names that a state has."""
    calls, finite = [], Programs.finite

    def noted(self, arrays):
        found = finite(self, arrays)
        calls.append((arrays.keys(), np.asarray(found)))
        name = "learner.params.out"
        worse = arrays | {name: jnp.full_like(arrays[name], NAN)}
        judged = dict(zip(sorted(arrays), finite(self, worse).tolist(), strict=True))
        assert [k for k, good in judged.items() if not good] == [name]
        return found

    monkeypatch.setattr(Programs, "finite", noted)
    run(tmp_path / "run", *FLAGS, "--checkpoint.periodic_every=20", "--replay.holdout=0.3")
    assert {len(names) for names, _ in calls} == {7, 13}
    assert all(found.shape == (len(names),) and found.all() for names, found in calls)


def test_replay_on_the_host_keeps_the_same(tmp_path):
    """In processes where the CPU poses as two devices, of which the last stands for the host."""
    environment = small.several(2)
    flags = (*FLAGS, "--opt.lr=1", "--opt.max_skipped=3")
    started = {
        place: small.start(tmp_path / place, *flags, f"--replay.placement={place}", env=environment)
        for place in ("device", "host")
    }
    for process in started.values():
        out, err = process.communicate(timeout=120)
        assert process.returncode == 70, out + err
    device, host = small.Run(tmp_path / "device"), small.Run(tmp_path / "host")
    small.assert_same_arrays(kept(device), kept(host))
    assert report(device) | {"time": ""} == report(host) | {"time": ""}
    assert report(host)["update"] == 0 and device.steps() == host.steps() == [0, 20]


# The real learner

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from jaxrl import programs, train
from jaxrl.learners.dreamer import losses
insert, total = programs.Programs.insert, losses.total

def poisoned(self, rings, step, out, held):
    if place == "reward":
        step = step.replace(reward=self.put(np.full(1, np.nan, np.float32)))
    return insert(self, rings, step, out, held)

def steep(model, found):
    x = found["con"].mean()
    return total(model, found) + (place == "gradient") * jnp.sqrt(x - jax.lax.stop_gradient(x))

programs.Programs.insert, losses.total = poisoned, steep
for place in ("reward", "gradient"):
    assert train.main([*{flags!r}, {folder!r} + place]) == 70
"""


def test_the_real_learner(tmp_path):
    """A reward that is no number; and a loss that is finite while its gradient is not."""
    sizes = ("--model.size=debug", "--loss.horizon=2", "--batch_size=2", "--batch_length=4")
    flags = ["--config=debug", "--task=toy_reach", *sizes, "--steps=20", "--log_every=10", "--save_every=4"]
    flags += ["--eval_every=0", "--opt.max_skipped=2", "--checkpoint.replay=false", "--terminal.style=off"]
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(flags=flags, folder=f"--logdir={tmp_path}/")],
        check=False,
        cwd=small.ROOT,
        env=os.environ | {"XLA_FLAGS": quick},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    runs = {place: small.Run(tmp_path / place) for place in ("reward", "gradient")}
    for result in runs.values():
        assert result.steps() == [0, 10] and check(result) == {4, 8}
        assert result.rows[-1]["train/opt/skipped"] == result.rows[-1]["updates"]
        assert report(result)["update"] == 0
    found = report(runs["reward"])
    assert found["first_bad"] == "batch.reward" and np.isnan(kept(runs["reward"])["reward"]).all()
    losses = [name for name in found["bad"] if name.startswith("loss/")]
    assert losses == ["loss/repval", "loss/rew"] == found["bad"][1:3]
    assert {name.split("/")[1] for name in found["bad"][3:]} >= {"dyn", "rew", "val"}
    found = report(runs["gradient"])
    assert found["first_bad"].startswith("grad/con/")
    assert all(name.startswith("grad/") for name in found["bad"])
    assert {name.split("/")[1] for name in found["bad"]} == {"con", "dyn", "enc"}
    assert math.isfinite(runs["gradient"].rows[-1]["train/opt/loss"])


def test_a_state_that_is_refused_is_written_down(tmp_path, with_fault, monkeypatch):
    """Nothing of it is kept, and nan_report.json names the arrays."""
    names = ("learner.params.out", "policy.params.out")
    monkeypatch.setattr(
        Programs, "finite", lambda self, arrays: jnp.array([k not in names for k in sorted(arrays)])
    )
    done = run(tmp_path / "run", *FLAGS, code=70)
    assert done.note["exit"].startswith("Diverged: checkpoint ")
    assert "learner.params.out is not finite" in done.note["exit"] and "nan_report.json" in done.note["exit"]
    found = report(done)
    assert found["first_bad"] == "learner.params.out" and found["bad"] == list(names)
    assert "was refused" in found["what"] and found["step"] > 0 and "--opt.lr" in found["try"][0]
    assert not list((done.path / "checkpoints").glob("*/*"))
