"""python -m jaxrl.evaluate: which checkpoint, what is played, what is told, what is written."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import small

from jaxrl import actor, evaluate, learners, trial
from jaxrl.config import Config
from jaxrl.stores import find


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the small learner with checkpoints of several steps."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(learners.LEARNERS, "dreamer", small.make_learner)
        yield small.run(folder, "--steps=120", "--eval_every=40", "--checkpoint.periodic_every=40")


def told(capsys, *words: str, code: int = 0) -> str:
    """What a command that ends with an exit code has said."""
    assert evaluate.main([str(x) for x in words]) == code
    output = capsys.readouterr()
    return output.err if code else output.out


def record(folder: pathlib.Path) -> dict:
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text())


def test_plays_exactly_the_episodes_and_keeps_each(run, tmp_path, capsys):
    text = told(capsys, run.path, "--episodes=11", f"--out={tmp_path}")
    found = record(tmp_path)
    scores = [x["score"] for x in found["episodes"]]
    assert len(scores) == 11
    assert {(x["env"], x["episode"]) for x in found["episodes"]} >= {(i, 0) for i in range(8)}
    summary = found["summary"]["score"]
    np.testing.assert_allclose(summary["mean"], np.mean(scores), rtol=1e-12)
    np.testing.assert_allclose(summary["sd"], np.std(scores), rtol=1e-12)
    assert [summary[k] for k in ("median", "min", "max")] == [np.median(scores), min(scores), max(scores)]
    assert "success" not in found["summary"], "the task defines none"
    row = next(line for line in text.splitlines() if line.startswith("score")).split()
    assert row[1] == f"{np.mean(scores):.2f}"


def test_the_same_seed_plays_the_same_episodes(run, tmp_path, capsys):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        told(capsys, run.path, "--episodes=4", f"--seed={seed}", f"--out={tmp_path / name}")
    a, b, c = (record(tmp_path / name)["episodes"] for name in "abc")
    assert a == b != c


def test_writes_into_the_run_by_default(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    told(capsys, copy, "--episodes=2")
    assert record(copy / "evaluations")["run"] == run.note["id"]


@pytest.mark.parametrize(
    ("which", "store"), [("best", "best"), ("latest", "latest"), ("80", "periodic"), ("", "best")]
)
def test_picks_the_checkpoint_that_is_named(run, which, store):
    found = actor.chosen(str(run.path), which)
    assert found.store == store
    assert which != "80" or found.step == 80


def test_a_damaged_best_checkpoint_falls_back_unless_it_was_asked_for(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    (best,) = (copy / "checkpoints" / "best").iterdir()
    file = best / "manifest.json"
    file.write_text(file.read_text().replace('"updates": ', '"updates": 1', 1))
    text = told(capsys, copy, "--episodes=2")
    assert f"best/{best.name}: manifest.json" in text and "using latest/120 instead" in text
    assert record(copy / "evaluations")["step"] == 120
    text = told(capsys, copy, "--episodes=2", "--which=best", code=66)
    assert f"best/{best.name}: manifest.json" in text and text.count("\n") == 1


def test_the_number_of_filmed_episodes_asks_for_a_video(run, tmp_path, capsys):
    text = told(capsys, run.path, "--episodes=2", "--video_episodes=1", f"--out={tmp_path}")
    assert "video" in text and [x.suffix for x in tmp_path.iterdir() if x.suffix != ".json"]


def test_a_task_that_is_gone_is_told_with_the_checkpoint(run, monkeypatch, capsys):
    monkeypatch.setattr(trial, "config_of", lambda found, wish: (Config(task="toy_gone"), []))
    text = told(capsys, run.path, code=2)
    assert "cannot be played here: task='toy_gone': unknown task" in text and "gopher" not in text


def test_takes_a_store_or_a_checkpoint(run):
    home = run.path / "checkpoints" / "periodic"
    assert actor.chosen(str(home), "").step == 120
    assert actor.chosen(str(home / "40"), "").step == 40


def test_acts_with_the_parameters_of_the_checkpoint_and_reads_nothing_else(run, tmp_path, monkeypatch):
    monkeypatch.setitem(learners.LEARNERS, "dreamer", small.make_learner)
    loaded = {}
    real = trial.Actor.load

    def load(self, found):
        loaded["params"] = real(self, found)
        return loaded["params"]

    asked = []
    read = trial.Actor.load.__globals__["checkpoint"].load
    monkeypatch.setattr("jaxrl.checkpoint.load", lambda *a, **k: asked.append(a[1]) or read(*a, **k))
    monkeypatch.setattr(trial.Actor, "load", load)
    trial.hold(trial.Wish(path=str(run.path), which="40", episodes=1, out=str(tmp_path)), lambda _: None)
    monkeypatch.undo()
    stored = small.arrays_of(find(run.path / "checkpoints" / "periodic" / "40"))
    assert {name.partition(".")[0] for name in asked[0]} == {"policy"}
    for name, x in loaded["params"].params.items():
        np.testing.assert_array_equal(x, stored[f"policy.params.{name}"])


def test_a_random_agent_has_no_parameters_and_plays(tmp_path, capsys):
    small.run(tmp_path / "run", "--agent=random", "--task=toy_reach", "--steps=60", "--env.time_limit=20")
    told(capsys, tmp_path / "run", "--episodes=3")
    assert [x["length"] for x in record(tmp_path / "run" / "evaluations")["episodes"]] == [20, 20, 20]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nowhere"], 2, "no such folder"),
        (["{run}", "--which=70"], 66, "the nearest are at 40, 80, 120"),
        (["{run}", "--which=worst"], 2, "must be best, latest or a step"),
        (["{run}/checkpoints/best", "--which=latest"], 2, "leave it out"),
        (["{empty}"], 66, "has no checkpoint yet"),
        (["{run}", "--episodes=none"], 2, "must be a whole number"),
        (["{run}", "--episodes=0"], 2, "must be a whole number"),
        (["{run}", "--epsiodes=5"], 2, "did you mean --episodes?"),
        (["{run}", "--cameras=top"], 2, "toy_clock has none to choose"),
        (["{run}", "--device=abacus"], 2, "abacus"),
        ([], 2, "RUN_OR_CHECKPOINT"),
    ],
)
def test_bad_input_is_one_clear_line(run, tmp_path, capsys, words, code, says):
    text = told(capsys, *(x.format(run=run.path, empty=tmp_path) for x in words), code=code)
    assert text.startswith("jaxrl: ") and text.count("\n") == 1
    assert says in text


def test_a_task_that_is_gone_is_named(run, tmp_path, capsys, monkeypatch):
    def gone(*args):
        config, notes = real(*args)
        return Config(task="toy_cluck", model=config.model), notes

    real = trial.config_of
    monkeypatch.setattr(trial, "config_of", gone)
    text = told(capsys, run.path, f"--out={tmp_path}", code=2)
    assert "toy_cluck" in text and "toy_clock" in text and text.count("\n") == 1


def test_a_damaged_checkpoint_is_told(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    file = max((copy / "checkpoints" / "best").glob("*/device/d/*"), key=lambda x: x.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert "intact" in told(capsys, copy, "--which=best", code=66)


def test_help_imports_no_jax():
    words = "import sys; from jaxrl import evaluate; evaluate.main(['--help']); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert "--episodes" in done.stdout and done.stdout.endswith("False\n")


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (1, 1, 0.2065, 1.0)],
)
def test_wilson_interval(successes, trials, low, high):
    """81 of 263 is the example of Newcombe 1998, table I."""
    np.testing.assert_allclose(trial.wilson(successes, trials), (low, high), atol=1e-4)
