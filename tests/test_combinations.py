"""Two learners on two kinds of environment, by the command line: both may be on the device or beside it."""

import re

import numpy as np
import pytest
from small import ROOT, Run, assert_same_arrays, assert_same_rows

from jaxrl import flags, train

SHORT = ("--steps=160", "--log_every=40", "--eval_every=80", "--eval_eps=2", "--eval.num_envs=2")
QUIET = ("--terminal.style=off", "--tensorboard.enabled=false", "--env.num_envs=2", "--replay.capacity=400")
DREAMER = ("--config=debug", "--env.size=48", "--loss.horizon=2", "--batch_size=2", "--train_ratio=8")
TINY = ("--drq.channels=2", "--drq.features=4", "--drq.hidden=8", "--batch_size=4", "--train_ratio=2")
DRQ = (*TINY, "--warmup=8", "--drq.random_steps=8", "--env.size=36")
BALANCE = ("--task=mjx_cartpole_balance", "--env.action_repeat=2", "--env.time_limit=30")
PONG = ("--task=atari_pong", "--env.action_repeat=4", "--env.time_limit=60")
CASES = {
    "dreamer on mjx": (*DREAMER, *BALANCE),
    "dreamer on atari": (*DREAMER, *PONG),
    "drq on mjx": ("--config=mjx_cartpole", *DRQ, *BALANCE, "--env.cameras=near,fixed"),
    "drq on atari": ("--config=atari100k_drq", *DRQ, *PONG),
}


def ran(folder, *words, code=0):
    assert train.main([*words, *SHORT, *QUIET, f"--logdir={folder}"]) == code
    return Run(folder)


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    name = request.param
    return name, ran(tmp_path_factory.mktemp("run") / "run", *CASES[name])


def test_rows_are_on_the_same_grid(case):
    name, run = case
    assert run.steps() == [0, 40, 80, 120, 160]
    assert run.steps("eval_episode/avg_score") == [80, 160]
    assert run.note["exit"] == "done"
    for row in run.rows:
        assert row["agent_steps"] == row["step"] // (2 if "mjx" in name else 4)
        assert all(np.isfinite(x) for x in row.values() if isinstance(x, float))
        assert ("env/bad_states" in row) == ("mjx" in name)
    assert run.rows[-1]["updates"] > 5
    assert any(key.startswith("train/loss/") for key in run.rows[-1])
    assert {x["step"] for x in run.scores if "eval_episode/score" in x} == {80, 160}
    assert len([x for x in run.scores if "eval_episode/score" in x]) == 4


@pytest.mark.parametrize("name", ["dreamer on mjx", "drq on mjx"])
def test_a_device_run_is_the_same_when_repeated(case, name, tmp_path):
    if case[0] != name:
        pytest.skip("another case")
    again = ran(tmp_path / "run", *CASES[name])
    assert_same_rows(case[1], again)
    assert case[1].scores == again.scores
    assert_same_arrays(case[1].arrays(), again.arrays())


@pytest.mark.parametrize("name", ["atari100k_drq", "dmc_vision", "so101_lift"])
def test_a_preset_has_a_small_size(name):
    """The flags that a preset's text names for two CPU cores are flags, and make it smaller."""
    text = (ROOT / "configs" / f"{name}.py").read_text()
    found = re.search(r"^Small: +((?:--\S+\s+)+)", text, re.MULTILINE)
    assert found, "no size for two CPU cores"
    full = flags.parse([f"--config={name}"]).config
    small = flags.parse([f"--config={name}", *found[1].split()]).config
    assert small.steps < full.steps and small.batch_size <= full.batch_size
