"""Runs that earlier versions have left go on. tests/fixtures/format_<n>.tar.gz holds one of each format.

Made, in a folder of its own, by:  python -m jaxrl.train <FLAGS> --steps=40 --logdir=format_1
and packed without checkpoints/best.
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest
import small

from jaxrl import manifest, train
from jaxrl.stores import find

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
FLAGS = (
    *("--config=debug", "--task=toy_reach", "--model.size=debug", "--model.deter=16", "--model.hidden=8"),
    *("--model.classes=4", "--model.stoch=4", "--model.units=8", "--model.bins=15", "--model.blocks=1"),
    *("--batch_size=2", "--batch_length=4", "--replay.capacity=48", "--log_every=20", "--eval_every=40"),
    *("--eval_eps=1", "--tensorboard.enabled=false", "--checkpoint.keep=1"),
)


@pytest.fixture
def run(tmp_path):
    with tarfile.open(FIXTURES / f"format_{manifest.FORMAT}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return small.Run(tmp_path / f"format_{manifest.FORMAT}")


def test_there_is_one_of_each_format():
    numbers = range(1, manifest.FORMAT + 1)
    assert {x.name for x in FIXTURES.glob("format_*")} == {f"format_{n}.tar.gz" for n in numbers}


def test_its_numbers_are_the_ones_that_were_saved(run):
    found = find(run.path)
    assert (found.step, found.store) == (40, "latest") and found.manifest["counters"]["updates"] == 36
    arrays = run.arrays()
    assert arrays["learner.params.dyn.gates.kernel"].shape == (1, 16, 48)
    assert arrays["ring.rows.reward"].shape == (40, 1) and np.isfinite(arrays["ring.rows.reward"]).all()
    leaves = {k: f"{x.dtype}{list(x.shape)}" for k, x in arrays.items() if not k.startswith("counters")}
    assert leaves == found.manifest["leaves"]


def test_it_goes_on(run):
    before = [json.dumps(row) for row in run.rows]
    assert train.main([*FLAGS, "--steps=60", f"--logdir={run.path}", "--terminal.style=off"]) == 0
    assert [json.dumps(row) for row in run.rows][: len(before)] == before
    assert run.steps() == [0, 20, 40, 60] and run.note["exit"] == "done"
    assert run.rows[-1]["updates"] == 56 and "nan_keys" not in run.rows[-1]
