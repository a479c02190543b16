"""What a dry run states of memory, against what runs take; and that what is donated is used again."""

import re

import jax
import numpy as np
import pytest
import small

from benchmarks import memory as benchmark
from jaxrl import chunk, config, envs, flags, learners, memory, metrics, parts, plan, runtime, sources
from jaxrl.assembly import assemble
from jaxrl.memory import MIB, Needs, Process

TINY_DRQ = ("--drq.channels=2", "--drq.features=4", "--drq.hidden=8", "--batch_size=4", "--warmup=64")
CASES = {
    "dreamer": ("--config=debug", "--loss.horizon=2", "--replay.holdout=0.2", "--video_every=100"),
    "drq": ("--config=mjx_cartpole", *TINY_DRQ, "--env.size=36", "--env.num_envs=2", "--steps=4000"),
    "drq of games": ("--config=atari100k_drq", *TINY_DRQ, "--task=atari_pong", "--steps=4000"),
}


def nbytes(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def put_together(*words):
    """Parts of a run, and its environments."""
    chosen = flags.parse([*words]).config
    machine = runtime.start(chosen)
    chosen = runtime.resolve(chosen, machine)
    env = envs.make(chosen.task, chosen.env, num_envs=chosen.env.num_envs, seed=0)
    return assemble(chosen, machine, env), env


def sources_of(made):
    found = chunk.sources(made) | sources.report_programs(made)
    return found | sources.programs(made, metrics.empty(metrics.kinds_of(parts.metric_shapes(made))))


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_what_is_donated_lies_where_it_lay(name, chunked, monkeypatch):
    """Every byte of it; XLA's warning of arrays donated for nothing is an error in every test."""
    if chunked:
        for module in (parts, chunk, sources):
            monkeypatch.setattr(module, "loops", lambda _: True)
    made, env = put_together(*CASES[name])
    found = {k: x for k, x in sources_of(made).items() if x.donate}
    assert {"learn", "insert", "act", "eval_act"} <= found.keys()
    assert ("chunk" in found) == (chunked and name == "drq")
    for which, program in sources.compile_all(found, "cpu").items():
        donated = nbytes([found[which].shapes[i] for i in found[which].donate])
        assert program.demand.aliased == donated > 0, which
        # What is new beside it is no second copy of the state.
        assert program.demand.outputs - program.demand.aliased < donated / 2 + 100_000, which
    env.close()


def test_environments_hand_their_state_on():
    """Of the two programs of a step each keeps what it gets where it lies."""
    made, env = put_together(*CASES["drq"])
    demands = env.programs_of(3).demands
    carry, step = jax.eval_shape(made.batched.begin, jax.ShapeDtypeStruct((3,), np.uint32))
    assert 0 < demands["advance"].aliased >= 0.9 * nbytes(carry) - 64
    rewards_and_flags = 3 * (4 + 3)
    assert demands["show"].aliased >= rewards_and_flags
    env.reset()
    before, _ = env.current
    env.send(np.zeros((2, *env.spaces.action.shape), np.float32))
    env.recv()
    assert all(x.is_deleted() for x in jax.tree.leaves(before.state.data))
    env.close()


NEEDS = Needs(
    stays={"learner": 30 * MIB, "replay": 100 * MIB},
    calls={"learn": 20 * MIB, "act": 5 * MIB},
    copied=130 * MIB,
    encoded=40 * MIB,
)


@pytest.mark.parametrize(
    ("platform", "placement", "expected"),
    [
        ("cpu", "device", {"peak": 500 + 130 + 20 + 170}),
        ("gpu", "device", {"peak (device)": 130 + 20, "peak (host)": 500 + 170}),
        ("gpu", "host", {"peak (device)": 30 + 20, "peak (host)": 500 + 170 + 100}),
    ],
)
def test_peaks_are_sums_of_what_is_there_at_once(platform, placement, expected):
    """Programs run one after another; a checkpoint is written while they do; compiling was before."""
    made, env = put_together("--config=debug")
    env.close()
    chosen = config.replace(made.config, {"replay.placement": placement, "plot.enabled": False})
    machine = runtime.Machine(made.machine.layout, made.machine.replay, platform, platform)
    made = parts.Parts(**{**made.__dict__, "config": chosen, "machine": machine})
    found = memory.peaks(made, NEEDS, Process(500 * MIB, 600 * MIB))
    more = memory.SINKS + memory.SAVING
    on_host = {name for name in expected if name != "peak (device)"}
    assert found == {name: size * MIB + more * (name in on_host) for name, size in expected.items()}
    highest = memory.peaks(made, NEEDS, Process(500 * MIB, 5_000 * MIB))
    assert {highest[name] for name in on_host} == {5_000 * MIB}


def test_the_state_is_counted_as_it_is(tmp_path, capsys, monkeypatch):
    """The rows of a dry run against the arrays of a checkpoint; none, no copies of them."""
    monkeypatch.setitem(learners.LEARNERS, "dreamer", small.make_learner)
    small.run(tmp_path / "run", "--steps=60", "--eval_every=0")
    saved = small.Run(tmp_path / "run").arrays()
    capsys.readouterr()
    small.run(tmp_path / "other", "--steps=60", "--eval_every=0", "--dry_run")
    found = stated(capsys.readouterr().out)
    rows = {"learner": "learner.", "policy": "policy.", "replay": "ring.rows."}
    for name, start in rows.items():
        assert found[name] == nbytes([x for k, x in saved.items() if k.startswith(start)]), name
    small.run(tmp_path / "other", "--steps=60", "--dry_run", "--checkpoint.enabled=false")
    unsaved = stated(capsys.readouterr().out)
    assert "checkpoint (temporary)" in found and "checkpoint (temporary)" not in unsaved
    assert list(found)[-1] == list(unsaved)[-1] == "peak"
    assert found["peak"] >= sum(found[name] for name in ("process (host)", "learner", "policy", "replay"))


def stated(text):
    """Bytes by name, of the output of a dry run."""
    found = re.findall(r"^memory +(.*?) +([\d,]+) B$", text, re.MULTILINE)
    return {name: int(size.replace(",", "")) for name, size in found}


@pytest.mark.parametrize("preset", benchmark.PRESETS)
def test_what_is_measured_of_a_preset_fills_its_replay(preset):
    """All of it is saved while there is still something to learn."""
    settings = benchmark.settings(preset)
    chosen = flags.parse([f"--{name}={value}" for name, value in settings.items()]).config
    clock = plan.clock_of(chosen)
    assert clock.saves(chosen.save_every) and chosen.save_every < clock.steps == chosen.steps
    assert chosen.warmup >= chosen.replay.capacity == plan.ring_rows(chosen) * chosen.env.num_envs
    after = (clock.steps - chosen.save_every) / chosen.env.action_repeat
    assert after * chosen.train_ratio / plan.rows_of_update(chosen) >= benchmark.UPDATES


BIG = ("--steps=60_200", "--replay.capacity=60_000", "--warmup=60_000", "--env.num_envs=50", "--eval_every=0")
BIG += (
    "--log_every=60_000",
    "--batch_size=40",
    "--batch_length=50",
    "--train_ratio=400",
    "--save_every=60_100",
)


# What the system tells of a child when it is gone (ru_maxrss) counts the process that has started it, too.
TELLING = """
import sys
sys.path.append("tests")
import small
code = small.entry()
print(open("/proc/self/status").read(), file=sys.stderr)
sys.exit(code)
"""


def test_a_run_takes_what_its_dry_run_states(tmp_path):
    """A replay of 416 MB that is saved while learning goes on."""
    dry = small.start(tmp_path / "run", *BIG, "--dry_run")
    text, error = dry.communicate(timeout=120)
    assert dry.returncode == 0, error
    found = stated(text)
    process = small.start(tmp_path / "run", *BIG, code_of=TELLING)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    assert found["replay"] > 400e6
    np.testing.assert_allclose(
        found["peak"], 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", error)[0]), rtol=0.1
    )
