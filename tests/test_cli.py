"""Bad input and busy directories through the program's entry: one line, the right code, nothing written."""

import json
import pathlib
import re
import subprocess
import sys
import time

import pytest
import small

from jaxrl import learners

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def small_learner(monkeypatch, tmp_path):
    monkeypatch.setitem(learners.LEARNERS, "dreamer", small.make_learner)
    monkeypatch.chdir(tmp_path)


def refused(capsys, *flags):
    """The one line that a command line is refused with."""
    assert small.train.main(["--config=debug", *flags]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("jaxrl: ")
    return lines[0]


WRONG = [  # flags, and what the line must name: the key, the value, the rule, the remedy
    (["--batchsize=4"], ["--batchsize=4", "unknown flag", "--batch_size"]),
    (["--replay.capcity=4"], ["--replay.capcity=4", "unknown flag", "--replay.capacity"]),
    (["--config=atari100"], ["--config=atari100", "unknown preset", "atari100k"]),
    (["--task=atari_pongg"], ["atari_pongg", "unknown game", "atari_pong"]),
    (["--task=toy_clok"], ["toy_clok", "unknown task", "toy_clock"]),
    (["--steps=many"], ["steps=many", "whole number"]),
    (["--steps=0"], ["steps=0", "at least 1"]),
    (["--eval_initial=maybe"], ["eval_initial=maybe", "true or false"]),
    (["--log_every=-100"], ["log_every=-100", "at least 0"]),
    (["--eval_every=-1"], ["eval_every=-1", "at least 0"]),
    (["--save_seconds=-1"], ["save_seconds=-1", "at least 0"]),
    (["--batch_length=1000"], ["batch_length=1_000", "replay.capacity", "replay.capacity=1001"]),
    (["--env.num_envs=200"], ["batch_length=8", "replay.capacity / env.num_envs", "replay.capacity=1800"]),
    (["--env.stack=4"], ["env.stack=4", "only Atari"]),
    (["--task=toy_catch", "--env.action_repeat=2"], ["env.action_repeat=2", "toy_catch needs 1"]),
    (["--env.size=40"], ["env.size=40", "multiple of 16", "env.size=64"]),
    (["--model.size=13m"], ["model.size=13m", "12m"]),
    (["--device=tpu"], ["device=tpu"]),
    (["--terminal.filter=("], ["terminal.filter=(", "regular expression"]),
    (["stray"], ["stray", "not a flag"]),
]


@pytest.mark.parametrize(("flags", "words"), WRONG, ids=[" ".join(flags) for flags, _ in WRONG])
def test_bad_settings(flags, words, capsys, tmp_path):
    line = refused(capsys, *flags, "--logdir=run")
    for word in words:
        assert word in line, (word, line)
    assert not list(tmp_path.iterdir())


def test_replay_beyond_its_budget(capsys, tmp_path):
    """The line names the largest capacity that fits, and that one is accepted."""
    flags = ("--replay.budget_gb=0.005", "--steps=10000", "--env.num_envs=2", "--logdir=run")
    line = refused(capsys, *flags, "--replay.capacity=10000")
    assert "replay.capacity=10000" in line and "--replay.budget_gb" in line
    fits = int(re.search(r"--replay\.capacity=(\d+)", line)[1])
    assert fits % 2 == 0 and not list(tmp_path.iterdir())
    assert small.train.main(["--config=debug", *flags, f"--replay.capacity={fits}", "--dry_run"]) == 0
    assert refused(capsys, *flags, f"--replay.capacity={fits + 2}")


def test_a_file_in_the_way(capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in ("file", "file/run"):
        line = refused(capsys, f"--logdir={path}")
        assert f"{tmp_path}/{path}" in line and "choose" in line
    assert (tmp_path / "file").read_text() == "mine"
    assert [x.name for x in tmp_path.iterdir()] == ["file"]


def test_a_directory_that_cannot_be_made(capsys):
    line = refused(capsys, "--logdir=/proc/nowhere/run")
    assert "logdir=/proc/nowhere/run" in line


def test_a_directory_of_others(capsys, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("hello")
    line = refused(capsys, "--logdir=thesis")
    assert "thesis" in line and "no run" in line and "another" in line
    assert [x.name for x in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


def test_a_directory_of_another_run(capsys, tmp_path):
    first = small.run(tmp_path / "run", "--steps=8", "--agent=random")
    before = {x: x.read_bytes() for x in first.path.rglob("*") if x.is_file() and x.name != "run.lock"}
    capsys.readouterr()
    other = [*small.TINY, "--steps=8", "--agent=random", "--logdir=run", "--seed=5", "--batch_size=3"]
    line = refused(capsys, *other)
    assert (
        "seed: 0 there, 5 now" in line and "batch_size: 2 there, 3 now" in line and "another logdir" in line
    )
    assert {x: x.read_bytes() for x in before} == before
    # What moves no result may differ.
    free = (
        "--log_every=4",
        "--terminal.style=off",
        "--save_every=4",
        "--replay.placement=host",
        "--eval_eps=1",
    )
    small.run(tmp_path / "run", "--steps=16", "--agent=random", *free)


def test_a_directory_with_an_unreadable_config(capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"steps": ')
    line = refused(capsys, "--logdir=run")
    assert "config.json cannot be read" in line
    assert [x.name for x in (tmp_path / "run").iterdir()] == ["config.json"]


def test_a_directory_in_use(capsys, tmp_path):
    """The second process says whose it is and leaves the run alone."""
    flags = ("--steps=1000000", "--log_every=200", "--eval_every=0", "--agent=random")
    process = small.start(tmp_path / "run", *flags, real=True)
    try:
        end = time.monotonic() + 60
        while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < end:
            time.sleep(0.05)
        started = time.monotonic()
        assert small.train.main([*small.TINY, "--logdir=run", *flags]) == 75
        assert time.monotonic() - started < 10
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and f"in use by pid {process.pid}" in lines[0]
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    # A lock dies with its process.
    small.run(tmp_path / "run", "--steps=1000", *flags[1:])


def test_the_process_prints_one_line_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "jaxrl.train", "--task=atari_pongg", f"--logdir={tmp_path / 'run'}"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "did you mean atari_pong" in done.stderr and not (tmp_path / "run").exists()


def test_a_default_directory_is_named_after_the_run(tmp_path):
    flags = ("--config=debug", "--agent=random", "--steps=8", "--seed=3", "--terminal.style=off")
    assert small.train.main(list(flags)) == 0
    (path,) = (tmp_path / "runs" / "debug").iterdir()
    assert re.fullmatch(r"toy_clock-\d{8}-\d{6}-3", path.name)
    assert {x.name for x in path.iterdir()} >= {
        "run.json",
        "config.json",
        "metrics.jsonl",
        "scores.jsonl",
        "tb",
    }
    assert json.loads((path / "run.json").read_text())["exit"] == "done"
