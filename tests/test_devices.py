"""Several devices share the work of a run: the same numbers, a share of the work, little between them."""

import json
import os
import subprocess
import sys

import pytest
import small
from small import assert_same_arrays, assert_same_rows

QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
SEVERAL = "--xla_force_host_platform_device_count="
RETURNS = 4 * 4 * 8 * 6  # bytes of the imagined returns of divided.py, whose percentiles are of all of them
COUNTS = ("2", "4", "8")

pytestmark = pytest.mark.timeout(600)  # the first of them waits for 20 programs to be compiled


@pytest.fixture(scope="module")
def facts():
    """What divided.py says, from a process where the CPU poses as eight devices."""
    env = os.environ | {"XLA_FLAGS": f"{QUICK} {SEVERAL}8", "JAX_PLATFORMS": "cpu"}
    env |= {"PYTHONPATH": str(small.ROOT)}
    words = [sys.executable, small.ROOT / "tests" / "divided.py"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("learner", ["dreamer", "drq"])
@pytest.mark.parametrize("count", COUNTS)
def test_updates_agree_with_one_device(facts, learner, count):
    """Losses, gradients and metrics of three updates with the same batches and keys."""
    differences = facts[learner]["update"][count]
    assert len(differences) > 100 and any("grad/" in name for name in differences)
    assert max(differences.values()) < 1e-4, max(differences, key=differences.get)


@pytest.mark.parametrize("learner", ["dreamer", "drq"])
@pytest.mark.parametrize("count", COUNTS)
def test_only_gradients_and_statistics_go_between_devices(facts, learner, count):
    """In one update. No picture, activation, latent, or row of replay.

    Weights that are used in two places (the posterior's) have two gradients.
    """
    program = facts[learner]["program"][count]
    between = dict(program["sent"])
    assert set(between) <= {"all-reduce", "all-gather"}
    assert between.pop("all-gather", 0) <= RETURNS
    assert program["parameters"] < between["all-reduce"] < 1.5 * program["parameters"]
    assert facts[learner]["rings"][count]["sent"] == {}


@pytest.mark.parametrize("learner", ["dreamer", "drq"])
@pytest.mark.parametrize("count", COUNTS)
def test_each_device_has_its_share_of_the_work(facts, learner, count):
    """As the compiler counts it; what does not depend on the batch (the optimiser) each does for itself."""
    mine, alone = facts[learner]["program"][count], facts[learner]["program"]["1"]
    fixed = facts[learner]["fixed"]
    assert fixed < 0.1 * alone["flops"]
    assert mine["flops"] < 1.03 * ((alone["flops"] - fixed) / int(count) + fixed)


@pytest.mark.parametrize("learner", ["dreamer", "drq"])
@pytest.mark.parametrize("count", COUNTS)
def test_each_device_draws_from_its_own_streams(facts, learner, count):
    """A ring over several devices holds what one would, and a batch is what each draws from its share."""
    found = facts[learner]["rings"][count]
    assert found["inserted"] and found["drawn"] and found.get("written", learner == "drq")


CHUNKS = """
import sys
sys.path.append("tests")
import small
from jaxrl import chunk, onboard, parts, programs, sources
for module in (parts, chunk, onboard, programs, sources):
    module.loops = lambda parts: True
sys.exit(small.entry())
"""


def process(folder, *flags, devices=2, code=0, **options):
    env = os.environ | {"XLA_FLAGS": f"{QUICK} {SEVERAL}4", "JAX_PLATFORMS": "cpu"}
    words = (f"--runtime.devices={devices}", "--steps=80", "--log_every=20", "--eval_every=40", *flags)
    child = small.start(folder, *words, env=env, **options)
    out, err = child.communicate(timeout=200)
    assert child.returncode == code and "Traceback" not in err, out + err
    return small.Run(folder)


RUNS = {  # how environments, replay and learner share the devices
    "rows from the host": ("--env.num_envs=4", "--overlap=true"),
    "rows on the devices": ("--env.num_envs=4", "--env.placement=device"),
    "one environment": ("--env.num_envs=1",),
    "held-out episodes": ("--env.num_envs=4", "--replay.holdout=0.3", "--env.time_limit=6"),
    "replay on the host": ("--env.num_envs=4", "--replay.placement=host"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_cut_run_on_two_devices_is_the_straight_run(tmp_path, name):
    straight = process(tmp_path / "straight", *RUNS[name])
    assert straight.note["device"]["count"] == 2 and straight.note["updates"] > 5
    process(tmp_path / "cut", *RUNS[name], "--debug.fault=term@act:9", code=143)
    whole = process(tmp_path / "cut", *RUNS[name])
    assert len(whole.note["starts"]) == 2 and whole.steps() == [0, 20, 40, 60, 80]
    assert_same_rows(straight, whole)
    assert_same_arrays(straight.arrays(), whole.arrays())


def test_chunks_on_two_devices_are_the_same_run(tmp_path):
    """As on accelerators: the loop with its environments is one program over both."""
    steps = process(tmp_path / "steps", *RUNS["rows on the devices"])
    chunks = process(tmp_path / "chunks", *RUNS["rows on the devices"], code_of=CHUNKS)
    assert "chunk" in chunks.note["compile_s_each"] and "chunk" not in steps.note["compile_s_each"]
    assert_same_rows(steps, chunks, "train/opt/grad_norm")  # whose sum is rounded otherwise, once
    assert_same_arrays(steps.arrays(), chunks.arrays())


def test_a_run_goes_on_with_another_number_of_devices(tmp_path):
    flags = ("--env.num_envs=4",)
    process(tmp_path / "run", *flags, "--debug.fault=term@act:9", code=143)
    before = small.Run(tmp_path / "run").arrays()
    done = process(tmp_path / "run", *flags, devices=1)
    assert done.steps() == [0, 20, 40, 60, 80] and done.note["exit"] == "done"
    assert done.arrays().keys() == before.keys()


def test_what_devices_cannot_do_is_one_line(tmp_path):
    env = os.environ | {"XLA_FLAGS": SEVERAL + "4", "JAX_PLATFORMS": "cpu"}
    for flags, words in (
        (
            ("--runtime.devices=4", "--batch_size=6"),
            "batch_size=6: cannot be divided over 4 devices; use --batch_size=8 or --runtime.devices=3",
        ),
        (("--runtime.devices=5",), "runtime.devices=5: there are 4 (cpu); use --runtime.devices=4"),
        (("--runtime.devices=-1",), "runtime.devices=-1"),
    ):
        child = small.start(tmp_path / "run", *flags, env=env)
        _, err = child.communicate(timeout=100)
        assert child.returncode == 2 and len(err.splitlines()) == 1 and words in err
    assert not (tmp_path / "run").exists()
