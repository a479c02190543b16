"""Whole runs with the real learner, in processes of their own that compile quickly rather than well."""

import math
import os
import pathlib
import subprocess
import sys

import small

from jaxrl import glossary

ROOT = pathlib.Path(__file__).parents[1]
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
SIZES = ("--model.size=debug", "--loss.horizon=3", "--batch_size=2", "--batch_length=8")


def run_all(folder, *commands):
    """Command lines one after another in one process, each (name of its directory, *flags)."""
    words = [[*flags, f"--logdir={folder / name}", "--terminal.style=plain"] for name, *flags in commands]
    script = f"import sys; from jaxrl.train import main; sys.exit(max(main(words) for words in {words!r}))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": QUICK},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return [small.Run(folder / name) for name, *_ in commands], done.stdout


def test_the_command_of_the_field_note(tmp_path):
    """Pong, in small: the rows, evaluations and scores that were missing there."""
    flags = ("--config=atari100k", "--task=atari_pong", "--steps=400", "--eval_every=100", "--eval_eps=1")
    small_ones = (*SIZES, "--train_ratio=4", "--env.time_limit=160")
    (done,), text = run_all(tmp_path, ("pong", *flags, "--log_every=100", *small_ones))
    assert done.steps() == [0, 100, 200, 300, 400]
    assert done.steps("eval_episode/avg_score") == done.steps("eval_episode/length") == [100, 200, 300, 400]
    assert [x["step"] for x in done.scores if "eval_episode/score" in x] == [100, 200, 300, 400]
    assert [x["step"] for x in done.scores if "episode/score" in x] == [160, 324]  # a reset takes a decision
    for row in done.rows[1:]:
        assert row["agent_steps"] == row["step"] / 4 and row["updates"] == 1 + (row["agent_steps"] - 9) // 4
        losses = {k: v for k, v in row.items() if k.startswith("train/loss/")}
        assert len(losses) == 8 and all(map(math.isfinite, losses.values()))
        assert row["train/opt/skipped"] == 0 and "nan_keys" not in row
        assert not [key for key in row if glossary.find(key) is None]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(done.path / "tb")).Reload()
    assert [x.step for x in board.Scalars("eval_episode/avg_score")] == [100, 200, 300, 400]
    assert "400 env_steps = 100 agent_steps" in text and "done at step 400" in text


def test_the_small_presets_learn_something(tmp_path):
    """They start, their updates change the losses, and their scores are those of the tasks."""
    flags = (
        "--steps=200",
        "--log_every=100",
        "--eval_every=200",
        "--eval_eps=2",
        "--train_ratio=4",
        "--batch_size=2",
    )
    (catch, reach), _ = run_all(
        tmp_path, ("catch", "--config=catch", *flags), ("reach", "--config=reach", *flags)
    )
    for done in (catch, reach):
        assert done.steps() == [0, 100, 200] and done.steps("eval_episode/avg_score") == [200]
        assert done.rows[-1]["updates"] >= 10
        assert all(math.isfinite(v) for row in done.rows for v in row.values())
        assert done.rows[2]["train/opt/loss"] < done.rows[1]["train/opt/loss"]
    assert {x.get("episode/score", x.get("eval_episode/score")) for x in catch.scores} <= {-1.0, 1.0}
    assert all(0 < x.get("episode/score", 1) < 50 for x in reach.scores)
