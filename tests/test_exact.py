"""A run that is cut at moments nobody chose, each time continued by a new process, is the straight run."""

import os
import random

import pytest
import small
from small import assert_same_arrays, assert_same_rows

QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
REAL = ("--model.size=debug", "--loss.horizon=3", "--batch_length=8", "--log_every=20", "--eval_every=40")
STEPS = 120
DREAMER = ("--agent=dreamer",)
DRQ = ("--agent=drq", "--env.size=36", "--drq.channels=2", "--drq.features=4", "--drq.hidden=8")
LEARNER = {
    "toy_clock": DREAMER,
    "toy_reach": DREAMER,
    "mjx_cartpole_balance": (*DRQ, "--env.time_limit=30", "--drq.random_steps=20"),
}
OFTEN = pytest.mark.slow  # each start compiles or loads, and traces, all programs


def process(folder, *flags, code=0):
    env = os.environ | {"XLA_FLAGS": QUICK, "JAX_PLATFORMS": "cpu"}
    child = small.start(folder, f"--steps={STEPS}", *REAL, *flags, real=True, env=env)
    out, err = child.communicate(timeout=120)
    assert child.returncode == code and "Traceback" not in err, out + err
    return small.Run(folder)


@pytest.mark.parametrize(
    ("task", "cuts"),
    [
        ("toy_clock", 5),
        ("toy_reach", 1),
        ("mjx_cartpole_balance", 1),
        pytest.param("toy_reach", 5, marks=OFTEN),
        pytest.param("mjx_cartpole_balance", 5, marks=OFTEN),
    ],
)
def test_cuts_change_no_bit(tmp_path, task, cuts):
    """Parameters, optimiser, replay, environments, counters, rows and scores; the real learners."""
    flags = (f"--task={task}", *LEARNER[task])
    straight = process(tmp_path / "straight", *flags)
    moments = sorted(random.Random(task).sample(range(2, STEPS), cuts))
    for before, at in zip([0, *moments], moments, strict=False):
        cut = process(tmp_path / "cut", *flags, f"--debug.fault=term@act:{at - before}", code=143)
        assert cut.note["exit"] == "stopped"
    whole = process(tmp_path / "cut", *flags)
    starts = [x["step"] for x in whole.note["starts"]]
    assert len(starts) == cuts + 1 and starts[1:] == moments
    assert_same_rows(straight, whole)
    assert straight.scores == whole.scores
    assert_same_arrays(straight.arrays(), whole.arrays())
