"""Bad input and busy directories through the program's entry: one line, the right code, nothing written."""

import json
import pathlib
import random
import re
import shutil
import subprocess
import sys
import time

import pytest
import small

from jaxrl import assembly, exits, faults, flags, learners, rundir, runtime, session, start, stores
from jaxrl.config import Config, ConfigError, leaves, show, to_dict

ROOT = pathlib.Path(__file__).parents[1]
LEAVES = leaves(Config())


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


@pytest.mark.parametrize(
    "path", ["~nobody_at_all/run", "x" * 300, "a/" * 3_000, "\x00", "a\nb", "/dev/null", "/dev/null/run"]
)
def test_paths_that_cannot_be_one(path, capsys, tmp_path):
    for name in ("logdir", "resume_from", "init_from"):
        line = refused(capsys, "--agent=random", f"--{name}={path}")
        assert name in line and len(line) < 7_000
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "task",
    ["../toy_clock", "toy_../clock", "toy_clock/../../x", "/toy_clock", "toy_clock\x00", "x_" + "y" * 99],
)
def test_names_cannot_leave_their_directory(task, capsys, tmp_path):
    """A task's name becomes part of a path, and so does a preset's."""
    assert "task=" in refused(capsys, f"--task={task}")
    assert "--config=" in refused(capsys, f"--config={task}")
    assert not list(tmp_path.iterdir())


def test_a_record_cannot_name_a_directory(tmp_path):
    """A new run is put below runs/ whatever the record of the one that it goes on from says."""
    first = small.run(tmp_path / "run", "--steps=8", "--agent=random")
    record = first.note
    for preset in ("../../evil", "/evil", 5, "ok"):
        (first.path / "run.json").write_text(json.dumps(record | {"config": preset}))
        assert small.train.main([f"--resume_from={first.path}", "--steps=16"]) == 0
    assert {x.name for x in tmp_path.iterdir()} == {"run", "runs"}
    assert {x.name for x in (tmp_path / "runs").iterdir()} == {"resumed", "ok"}


def test_updates_beyond_the_memory(capsys, tmp_path, monkeypatch):
    """Found when the programs are compiled; the process would be killed at the first update."""
    monkeypatch.setattr(runtime, "device_memory", lambda device: 3_000_000)
    line = refused(capsys, "--replay.budget_gb=1", "--batch_size=100", "--logdir=run", "--dry_run")
    assert "batch_size=100" in line and "learn needs" in line and "lower" in line
    assert not list(tmp_path.iterdir())


def test_environments_beyond_the_memory(capsys, tmp_path, monkeypatch):
    """The line names the largest number of them that fits, and that one does fit."""
    monkeypatch.setattr(runtime, "device_memory", lambda device: 3_000_000)
    flags = ("--agent=random", "--env.size=96", "--replay.budget_gb=1", "--replay.placement=host")
    flags += ("--replay.capacity=10_000", "--logdir=run", "--dry_run")
    line = refused(capsys, *flags, "--env.num_envs=200")
    assert "env.num_envs=200" in line and "use --env.num_envs=" in line
    fits = int(line.rpartition("--env.num_envs=")[2].split()[0])
    assert 20 < fits < 200
    assert small.train.main(["--config=debug", *flags, f"--env.num_envs={fits}"]) == 0
    assert not list(tmp_path.iterdir())


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
    other = [*small.TINY, "--steps=8", "--agent=random", "--logdir=run", "--seed=5", "--env.num_envs=2"]
    line = refused(capsys, *other)
    assert "seed: 0 -> 5" in line and "env.num_envs: 1 -> 2" in line and "another logdir" in line
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


# Whatever is typed, and whatever has become of the files: a run, or one line and a code that README knows.

GIVEN = {
    bool: ("true", "false", "maybe"),
    str: ("", "x", "../..", "\x00", "atari_pongg", "toy_catch", "l\u00e4ufe"),
}
GIVEN |= {int: ("1", "2", "3", "8", "64", "0", "-1", "1e3", "1.5", "many", "9" * 30, "1_0_")}
GIVEN |= {float: ("0", "0.5", "1", "1e-4", "-1", "2", "nan", "1e999", "x", "0,1")}
REMEDIES = (
    "did you mean",
    "for example",
    "use ",
    "choose",
    "leave",
    "name ",
    "write",
    "must be",
    "--help",
    "remove",
)


def typed(dice):
    """A command line as somebody might type it: settings good and bad, misspelt names, stray words."""
    words = ["--config=debug"]
    for name in dice.sample(sorted(LEAVES), dice.randint(1, 4)):
        item = LEAVES[name]
        values = (*GIVEN[item.type], *item.choices, show(item.default))
        i = dice.randrange(len(name))
        typo = name[:i] + dice.choice("aeqx._") + name[i + dice.randint(0, 1) :]
        words.append(f"--{typo if dice.random() < 0.1 else name}={dice.choice(values)}")
    if dice.random() < 0.05:
        words.append(dice.choice(["stray", "--", "--config=atari100", "-x", "--dry_run=perhaps", "--noseed"]))
    return words


def outcome(words, capsys):
    """What a command line asks for, with everything assembled that it needs; None if it is refused."""
    try:
        command = flags.parse(words, rundir.origin_of)
        config = runtime.resolve(command.config, machine := runtime.start(Config(device="cpu")))
        with session.training_env(config, 0) as env:
            assembly.assemble(config, machine, env)
    except (ConfigError, exits.NoCheckpoint) as error:
        assert len(str(error).splitlines()) == 1 and any(word in str(error) for word in REMEDIES), (
            words,
            error,
        )
        assert any(name in str(error) for name in named(words)), (words, str(error))
        return None
    return command


def named(words):
    """What the line may name: the flags that were given, or settings that a rule ties to them."""
    names = [word.strip("-").partition("=")[0] for word in words if word.strip("-")] + [words[-1]]
    return [*names, "batch_length", "replay.capacity", "model.", "env.", "loss.return_low", "opt.anneal"]


def test_fuzzed_command_lines(capsys, monkeypatch):
    """500 of them: refused in one line that names the key, or assembled with every setting that is given."""
    dice, accepted = random.Random(4), 0
    for _ in range(500):
        words = typed(dice)
        command = outcome(words, capsys)
        if command is None:
            continue
        accepted += 1
        values = to_dict(command.config)
        for word in words[1:]:  # nothing is ignored; of a flag that is given twice the last one holds
            name, _, text = word.removeprefix("--").partition("=")
            wanted = flags.parse_override(name, text)
            last = [w for w in words if w.startswith(f"--{name}=")][-1] == word
            assert not last or values[name] == wanted or name in ("init_from", "resume_from"), (words, name)
    assert 50 < accepted < 450


@pytest.mark.parametrize("seed", range(3))
def test_fuzzed_dry_runs(capsys, tmp_path, seed):
    """The same through the program's entry: steps of each phase, or exit code 2."""
    dice = random.Random(seed)
    while outcome(words := typed(dice), capsys) is None:
        assert small.train.main([*words, "--dry_run"]) in (exits.BAD_CONFIG, exits.NO_CHECKPOINT)
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert small.train.main([*words, "--batch_size=2", "--env.num_envs=1", "--dry_run"]) in (
        0,
        exits.BAD_CONFIG,
    )
    assert "Traceback" not in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def mutated(text, dice):
    """A file as a bad disk, an editor or a bad joke would leave it."""
    kind, i = dice.choice(["cut", "flip", "delete", "swap", "value", "empty"]), dice.randrange(len(text))
    if kind == "cut":
        return text[:i]
    if kind == "flip":
        return text[:i] + bytes([text[i] ^ 1 << dice.randrange(8)]) + text[i + 1 :]
    if kind == "delete":
        return text[:i] + text[i + dice.randint(1, 40) :]
    if kind == "swap":
        return text[i:] + text[:i]
    if kind == "empty":
        return dice.choice(
            [b"", b"null", b"[]", b"{}", b"[" * 50_000, b"\xff\xfe", b'{"config": {"steps": 1}}']
        )
    record = json.loads(text)
    worse = [None, -1, 10**30, 1e300, "", "x" * 5_000, [], {}, True, "../../..", "\x1b[2J\n"]
    record[dice.choice(sorted(record))] = dice.choice(worse)
    return json.dumps(record).encode()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    return small.run(
        folder, "--steps=8", "--agent=random", "--save_every=4", "--log_every=4", "--eval_every=0"
    )


@pytest.mark.parametrize("name", ["config.json", "run.json", "manifest.json"])
def test_mutated_files(finished, tmp_path, name, capsys):
    """100 of each: what a start reads is right, or refused in one line; the record never stops a run."""
    dice, fates = random.Random(name), []
    whole = (finished.path / "config.json").read_text()
    for number in range(100):
        run = shutil.copytree(finished.path, tmp_path / str(number))
        file = run / name if name != "manifest.json" else run / "checkpoints" / "latest" / "8" / name
        file.write_bytes(mutated(file.read_bytes(), dice))
        try:
            command = flags.parse([f"--logdir={run}"], rundir.origin_of)
            opened = rundir.open_run(command.config, command.origin)
            kept = stores.Stores(run, 2, 0, faults.OFF)
            found, remarks = kept.recover()
            began = start.start_of(command.config, found)
            opened.begin(command.config, [], began.step, {}, began.identity)
        except (ConfigError, exits.RunError) as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 1_500
            assert str(run) in str(error) and name == "config.json", error
            fates.append("refused")
        else:
            opened.close()
            fates.append("went on")
            json.loads((run / "run.json").read_text())
            if name == "config.json":  # whatever differs from what the checkpoints were made with is told
                differs = to_dict(start.config_in(found, command.config)) != to_dict(command.config)
                assert not differs or began.remarks or command.notes
            if name == "manifest.json" and file.exists() is False:
                assert began.step == 4 and remarks  # found damaged, and the one before is used
        shutil.rmtree(run)
    if name == "config.json":
        assert fates.count("refused") > 30 and fates.count("went on") > 5
    assert (finished.path / "config.json").read_text() == whole
