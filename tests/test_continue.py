"""Runs that go on: the saved config wins, another run's checkpoint, another run's parameters, the record."""

import json
import os
import re
import shutil

import jax
import numpy as np
import pytest
import small
from small import TINY, assert_same_arrays, run, timeless

from jaxrl import changes, checkpoint, flags, learners, rundir, saving, session, start, stores
from jaxrl.config import Config, leaves, replace, to_dict
from jaxrl.state import Counters

LENGTH = ("--steps=80", "--log_every=20", "--eval_every=40")
SAVES = ("--save_every=20", "--checkpoint.keep=100")


@pytest.fixture(autouse=True)
def small_learner(monkeypatch):
    monkeypatch.setitem(learners.LEARNERS, "dreamer", small.make_learner)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A finished run with all its checkpoints; tests work on copies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(learners.LEARNERS, "dreamer", small.make_learner)
        return run(tmp_path_factory.mktemp("parent") / "run", *LENGTH, *SAVES, "--seed=3")


@pytest.fixture
def copied(parent, tmp_path):
    return small.Run(shutil.copytree(parent.path, tmp_path / "run"))


def train(*flags):
    """The exit code of a command line as it stands."""
    return small.train.main(list(flags))


def refused(capsys, *flags, code=2):
    """The one line that a command line is refused with."""
    capsys.readouterr()
    assert train(*flags) == code
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("jaxrl: "), (out, err)
    return lines[0]


def contents(folder):
    return {x: x.read_bytes() for x in folder.rglob("*") if x.is_file() and x.name != "run.lock"}


# Classes of settings.


def test_every_setting_is_in_exactly_one_class():
    names = set(leaves(Config()))
    sections = {name.partition(".")[0] + "." for name in names if "." in name}
    entries = [entry for kind in changes.CLASSES.values() for entry in kind]
    assert len(entries) == len(set(entries))
    assert not [entry for entry in entries if entry not in names | sections]
    classes = {name: changes.class_of(name) for name in names}  # raises for one that was forgotten
    assert set(classes.values()) == {"free", "warned", "refused"}
    assert {*changes.BIRTH, *changes.OF_COMMAND} <= names
    with pytest.raises(KeyError):
        changes.class_of("new_setting")


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("free", "steps log_every eval_every save_every device env.threads replay.placement eval.mode"),
        ("free", "terminal.style tensorboard.enabled checkpoint.keep runtime.compile_cache debug.fault"),
        ("warned", "opt.lr loss.rec train_ratio batch_size"),
        ("refused", "task agent seed env.num_envs env.size model.size model.compute_dtype"),
        ("refused", "replay.capacity replay.context batch_length"),
    ],
)
def test_classes(kind, names):
    assert {changes.class_of(name) for name in names.split()} == {kind}


# The saved config wins.


def test_the_directory_alone_is_enough(copied, capsys):
    """No preset, no settings: the run goes on as it was, and says what is new."""
    before = json.loads((copied.path / "config.json").read_text())
    assert train(f"--logdir={copied.path}", "--steps=120", "--log_every=40") == 0
    out = capsys.readouterr().out.splitlines()
    assert "jaxrl: changed (free): steps: 80 -> 120" in out
    assert "jaxrl: changed (free): log_every: 20 -> 40" in out
    assert not [line for line in out if "warned" in line or "refused" in line]
    after = json.loads((copied.path / "config.json").read_text())
    assert after == before | {"steps": 120, "log_every": 40, "logdir": str(copied.path)}
    assert copied.steps() == [0, 20, 40, 60, 80, 120]
    assert copied.note["config"] == "debug"
    assert copied.note["starts"][1]["changed"] == {"steps": [80, 120], "log_every": [20, 40]}


def test_a_longer_start_by_itself_differs_in_nothing_else(copied, tmp_path):
    """The same command with other free settings makes the rows that a straight run makes."""
    whole = run(tmp_path / "whole", *LENGTH, "--steps=120", "--seed=3")
    train(f"--logdir={copied.path}", "--steps=120")
    assert [timeless(x) for x in whole.rows] == [timeless(x) for x in copied.rows]
    assert_same_arrays(whole.arrays(), copied.arrays())


def test_a_warned_setting_is_told_and_holds(copied, capsys):
    assert train(f"--logdir={copied.path}", "--steps=120", "--opt.lr=1e-4") == 0
    assert "jaxrl: changed (warned): opt.lr: 4e-05 -> 0.0001" in capsys.readouterr().out
    assert train(f"--logdir={copied.path}", "--steps=120") == 0  # saved now, so nothing differs
    assert "changed" not in capsys.readouterr().out
    assert json.loads((copied.path / "config.json").read_text())["opt.lr"] == 1e-4
    assert [x.get("changed", {}).keys() for x in copied.note["starts"][1:]] == [{"steps", "opt.lr"}, set()]


def test_another_run_is_refused(copied, capsys):
    before = contents(copied.path)
    line = refused(capsys, *TINY, f"--logdir={copied.path}", *LENGTH, "--seed=5", "--batch_length=3")
    assert str(copied.path) in line and "--allow_config_change" in line and "another logdir" in line
    assert "seed: 3 -> 5" in line and "batch_length: 4 -> 3" in line and "steps" not in line
    assert contents(copied.path) == before


def test_another_run_is_tried_if_that_is_allowed(copied, capsys):
    flags = (f"--logdir={copied.path}", "--steps=100", "--seed=5")
    assert train(*flags, "--allow_config_change") == 0
    assert "changed (refused): seed: 3 -> 5, which makes it another run" in capsys.readouterr().out
    assert copied.steps() == [0, 20, 40, 60, 80, 100]
    # The permission is not saved.
    line = refused(capsys, f"--logdir={copied.path}", "--steps=120", "--seed=6")
    assert "seed: 5 -> 6" in line


def test_shapes_that_do_not_fit_are_named(copied, capsys):
    before = contents(copied.path / "checkpoints")
    flags = (f"--logdir={copied.path}", "--steps=100", "--env.size=64", "--allow_config_change")
    line = refused(capsys, *flags, code=66)
    assert "ring.rows.obs.image" in line and "48" in line and "64" in line
    assert contents(copied.path / "checkpoints") == before


def test_a_ring_that_has_wrapped_cannot_grow(copied, capsys):
    flags = (f"--logdir={copied.path}", "--steps=100", "--replay.capacity=60", "--allow_config_change")
    line = refused(capsys, *flags)
    assert "replay.capacity=60" in line and "48" in line


def test_another_preset_is_refused(copied, capsys):
    line = refused(capsys, "--config=catch", f"--logdir={copied.path}")
    assert "--config=catch" in line and "--config=debug" in line and str(copied.path) in line
    # If it is allowed, all of the preset counts as given.
    command = flags.parse(
        ["--config=catch", f"--logdir={copied.path}", "--allow_config_change", "--seed=7"], rundir.origin_of
    )
    of_command = {"logdir": str(copied.path), "allow_config_change": True, "seed": 7}
    resolved = {"model.compute_dtype": "float32"}  # auto in the preset
    assert command.config == replace(flags.load_preset("catch"), of_command | resolved)
    assert command.preset == "catch"
    assert any("(refused): task: toy_clock -> toy_catch" in line for line in command.notes)


@pytest.mark.parametrize("text", ["--model.size=auto", "--model.compute_dtype=auto", "--device=auto"])
def test_auto_was_resolved_when_the_run_began(copied, text):
    command = flags.parse(["--config=debug", f"--logdir={copied.path}", text], rundir.origin_of)
    assert command.config.model.size == "debug" and command.config.model.compute_dtype == "float32"
    assert command.notes == ()


def test_rules_between_settings_are_those_of_the_saved_config(copied, capsys):
    """opt.anneal=500 breaks a rule of the preset (warmup 1,000), but not of this run (warmup 10)."""
    command = flags.parse([f"--logdir={copied.path}", "--opt.anneal=500"], rundir.origin_of)
    assert (command.config.opt.anneal, command.config.opt.warmup) == (500, 10)
    assert "opt.anneal=5" in refused(capsys, f"--logdir={copied.path}", "--opt.anneal=5")


def test_questions_are_answered_with_the_saved_config(copied, capsys):
    assert train(f"--logdir={copied.path}", "--print_config", "--steps=90") == 0
    lines = {x.partition(" = ")[0]: x for x in capsys.readouterr().out.splitlines()}
    assert lines["seed"].startswith("seed = 3 ") and lines["seed"].endswith(f"saved in {copied.path}")
    assert lines["steps"].endswith("command line")


def test_a_config_of_another_version(copied, capsys):
    """A setting that is gone and one that is new are told in a line each; the run goes on."""
    file = copied.path / "config.json"
    saved = json.loads(file.read_text())
    del saved["opt.max_skipped"]
    file.write_text(json.dumps(saved | {"model.gone\x1b": 5}))
    assert train(f"--logdir={copied.path}") == 0
    out = capsys.readouterr().out
    assert "no longer exist are left out: model.gone\\x1b" in out
    assert "at their defaults: opt.max_skipped=20" in out
    assert json.loads(file.read_text()).keys() == to_dict(Config()).keys()


def test_a_config_that_was_edited_does_not_fit_its_checkpoints(copied, capsys):
    file = copied.path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seed": 4}))
    line = refused(capsys, f"--logdir={copied.path}")
    assert "seed: 3 -> 4" in line and "checkpoints/latest/80" in line


def test_a_new_pace_makes_no_burst(copied):
    """Twice the train_ratio: updates come twice as often from here on; nothing is made up for."""
    done = copied.rows[-1]["updates"]
    assert train(f"--logdir={copied.path}", "--steps=120", "--train_ratio=4", "--log_every=10") == 0
    updates = {row["step"]: row["updates"] - done for row in copied.rows}
    assert [updates[x] for x in (90, 100, 110, 120)] == [5, 10, 15, 20]


@pytest.mark.parametrize("change", [{"train_ratio": 3.0}, {"batch_size": 3}, {"batch_length": 7}])
def test_counters_of_a_new_pace(change):
    before = Config(task="toy_clock")
    c = Counters(env_steps=4_000, updates=50, first_at=100, first_updates=2)
    after = start.paced(c, before, replace(before, change))
    assert (after.first_at, after.first_updates) == (1_000, 49)
    assert start.paced(c, before, before) == c
    fresh = Counters(env_steps=40)
    assert start.paced(fresh, before, replace(before, change)) == fresh


# A new run from another run's checkpoint.


def test_a_new_run_goes_on_from_another(parent, tmp_path):
    """Bit for bit as the run itself would, in a directory of its own; the other one is not touched."""
    before = contents(parent.path)
    whole = run(tmp_path / "whole", *LENGTH, "--steps=120", "--seed=3")
    child = tmp_path / "child"
    command = (f"--resume_from={parent.path}", "--steps=120", f"--logdir={child}", "--save_every=20")
    assert train(*command) == 0
    child = small.Run(child)
    assert [timeless(x) for x in child.rows] == [timeless(x) for x in whole.rows if x["step"] > 80]
    assert child.steps() == [100, 120]
    assert [x for x in whole.scores if x["step"] > 80] == child.scores
    assert_same_arrays(whole.arrays(), child.arrays())
    assert child.rows[0]["wall_s"] > parent.rows[-1]["wall_s"]
    checkpoint = parent.path / "checkpoints" / "latest" / "80"
    assert child.note["lineage"] == [{"run": parent.note["id"], "path": str(checkpoint), "step": 80}]
    assert child.note["id"] != parent.note["id"] and child.note["config"] == "debug"
    assert child.note["starts"][0]["step"] == 80
    config = json.loads((child.path / "config.json").read_text())
    assert (config["resume_from"], config["seed"]) == (str(parent.path), 3)
    assert contents(parent.path) == before
    # The same command continues the new run: nothing is left to do.
    rows = (child.path / "metrics.jsonl").read_bytes()
    assert train(*command) == 0
    assert (child.path / "metrics.jsonl").read_bytes() == rows
    assert [x["step"] for x in child.note["starts"]] == [80, 120] and len(child.note["lineage"]) == 1
    # Its own checkpoints know where they come from, and so does a grandchild.
    assert train(f"--resume_from={child.path}", "--steps=140", f"--logdir={tmp_path / 'grandchild'}") == 0
    grandchild = small.Run(tmp_path / "grandchild")
    assert [x["run"] for x in grandchild.note["lineage"]] == [parent.note["id"], child.note["id"]]
    assert [x["step"] for x in grandchild.note["lineage"]] == [80, 120]
    assert grandchild.steps() == [120 + 20]


def test_from_an_older_checkpoint_with_other_settings(parent, tmp_path, monkeypatch, capsys):
    """A relative path, a folder of its own by name; between two rows the next multiple is the first."""
    monkeypatch.chdir(tmp_path)
    os.symlink(parent.path, "p")
    flags = ("--resume_from=p/checkpoints/latest/40", "--log_every=30", "--eval_every=0", "--steps=100")
    assert train(*flags, "--opt.lr=1e-4") == 0
    (path,) = (tmp_path / "runs" / "debug").iterdir()
    child = small.Run(path)
    assert child.steps() == [60, 90, 100]
    assert "changed (warned): opt.lr: 4e-05 -> 0.0001" in capsys.readouterr().out
    assert child.note["lineage"][0]["step"] == 40
    saved = json.loads((path / "config.json").read_text())["resume_from"]
    assert saved == str(parent.path / "checkpoints" / "latest" / "40")


def test_from_a_store_without_replay(parent, tmp_path):
    """The best checkpoint has none: the new run fills its replay before it learns again."""
    home = parent.path / "checkpoints" / "best"
    at = stores.find(home).step
    flags = (f"--resume_from={home}", f"--steps={at + 40}", f"--logdir={tmp_path / 'child'}")
    assert train(*flags, "--log_every=20", "--eval_every=0") == 0
    child = small.Run(tmp_path / "child")
    assert child.steps() == [at + 20, at + 40]
    updates = [row["updates"] for row in child.rows]
    assert child.rows[0]["replay/items"] < 48 and updates[1] > updates[0]


def test_a_new_run_that_was_killed_before_its_first_checkpoint_begins_again(parent, tmp_path):
    flags = (f"--resume_from={parent.path}", "--steps=120", f"--logdir={tmp_path / 'child'}")
    assert train(*flags) == 0
    child = small.Run(tmp_path / "child")
    rows, state = child.rows, child.arrays()
    shutil.rmtree(child.path / "checkpoints")
    (child.path / "checkpoint_log.jsonl").unlink()
    assert train(*flags) == 0
    assert list(map(timeless, child.rows)) == list(map(timeless, rows))
    assert_same_arrays(child.arrays(), state)
    assert (child.path / "metrics.jsonl.1").exists()  # nothing is thrown away


def test_a_new_run_begins_again_with_what_it_began_with(copied, tmp_path, capfd):
    """Though its parent has gone on; if that is not there any more, a line says with what instead."""
    child = tmp_path / "child"
    flags = (f"--resume_from={copied.path}", "--steps=90", f"--logdir={child}", "--terminal.style=plain")
    for parents_end, starts in ((100, [80]), (120, [80, 80])):
        assert train(*flags) == 0
        shutil.rmtree(child / "checkpoints")  # it has died before its first checkpoint
        (child / "checkpoint_log.jsonl").unlink()
        assert [x["step"] for x in small.Run(child).note["starts"]] == starts
        assert train(f"--logdir={copied.path}", f"--steps={parents_end}") == 0
    capfd.readouterr()
    shutil.rmtree(copied.path / "checkpoints" / "latest" / "80")
    assert train(*flags, "--steps=130") == 0
    (told,) = [x for x in capfd.readouterr().out.splitlines() if "is not there any more" in x]
    assert "latest/80, which this run began with" in told and told.endswith("latest/120")
    again = small.Run(child)
    assert [x["step"] for x in again.note["starts"]] == [80, 80, 120]
    assert [x["step"] for x in again.note["lineage"]] == [120] and again.note["exit"] == "done"


WRONG_SOURCES = [  # setting, what it names, exit code, words
    ("resume_from", "nowhere", 2, ["resume_from=", "nowhere", "no such folder"]),
    ("init_from", "nowhere", 2, ["init_from=", "nowhere", "no such folder"]),
    ("resume_from", ".", 2, ["resume_from=", "neither a run nor a checkpoint"]),
    ("init_from", ".", 2, ["init_from=", "neither a run nor a checkpoint"]),
    ("resume_from", "~nobody_at_all/run", 2, ["resume_from="]),
]


@pytest.mark.parametrize(("name", "path", "code", "words"), WRONG_SOURCES)
def test_a_source_that_is_none(tmp_path, monkeypatch, capsys, name, path, code, words):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, "--config=debug", f"--{name}={path}", "--logdir=run", code=code)
    for word in words:
        assert word in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["resume_from", "init_from"])
def test_a_source_that_is_damaged(copied, tmp_path, capsys, name):
    """The newest intact one is taken, and the line says so; one that is named itself is refused."""
    newest = copied.path / "checkpoints" / "latest" / "80"
    (newest / "manifest.json").write_text("{}")
    before = contents(copied.path)
    flags = (*TINY, "--steps=100", "--seed=3", f"--logdir={tmp_path / 'new'}")
    line = refused(capsys, *flags, f"--{name}={newest}", code=66)
    assert f"{name}={newest}" in line and "manifest.json" in line and not (tmp_path / "new").exists()
    assert train(*flags, f"--{name}={copied.path}", "--terminal.style=plain") == 0
    assert "checkpoint latest/80 is damaged" in capsys.readouterr().out
    assert small.Run(tmp_path / "new").note["lineage"][0]["step"] == 60
    assert contents(copied.path) == before
    for folder in (copied.path / "checkpoints").glob("*/*"):
        (folder / "manifest.json").write_text("{}")
    flags = (*TINY, "--steps=100", f"--logdir={tmp_path / 'other'}")
    for path in (copied.path, newest.parent):
        line = refused(capsys, *flags, "--seed=3", f"--{name}={path}", code=66)
        assert f"{name}={path}" in line and not (tmp_path / "other").exists()


def test_a_new_run_needs_a_directory_of_its_own(parent, copied, tmp_path, capsys):
    line = refused(capsys, f"--resume_from={parent.path}", f"--logdir={copied.path}")
    assert "resume_from: '' -> " in line and "another logdir" in line and "allow" not in line
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("hello")
    line = refused(capsys, f"--resume_from={parent.path}", f"--logdir={tmp_path / 'thesis'}")
    assert "no run" in line
    line = refused(capsys, f"--resume_from={parent.path}", f"--init_from={parent.path}")
    assert "init_from" in line and "resume_from" in line
    line = refused(capsys, f"--resume_from={parent.path}", "--steps=60", f"--logdir={tmp_path / 'new'}")
    assert "steps=60" in line and "has made 80" in line and not (tmp_path / "new").exists()
    assert refused(capsys, f"--resume_from={parent.path}", "--steps=60", "--dry_run") == line
    line = refused(capsys, f"--resume_from={parent.path}", "--seed=4", f"--logdir={tmp_path / 'new'}")
    assert "seed: 3 -> 4" in line and not (tmp_path / "new").exists()
    line = refused(capsys, "--config=catch", f"--resume_from={parent.path}", f"--logdir={tmp_path / 'new'}")
    assert "--config=debug" in line


# A new run with another run's parameters.


def test_parameters_of_another_run(parent, tmp_path, capsys):
    """Those in whose name the expression is found; the run begins at step 0, with another seed."""
    flags = ("--steps=20", "--log_every=10", "--eval_every=0", "--train_ratio=0", "--seed=9")
    plain = run(tmp_path / "plain", *flags)
    taken = run(
        tmp_path / "taken",
        *flags,
        f"--init_from={parent.path}",
        "--init_filter=^params.(out|rew)",
        "--terminal.style=plain",
    )
    assert "2 of 3 tensors of parameters come from" in capsys.readouterr().out
    theirs, mine, fresh = parent.arrays(), taken.arrays(), plain.arrays()
    for name in ("out", "reward"):
        np.testing.assert_array_equal(mine[f"learner.params.{name}"], theirs[f"learner.params.{name}"])
        np.testing.assert_array_equal(mine[f"policy.params.{name}"], theirs[f"learner.params.{name}"])
    np.testing.assert_array_equal(mine["learner.params.in"], fresh["learner.params.in"])
    assert mine["learner.version"] == 0 < theirs["learner.version"]
    assert taken.steps() == [0, 10, 20]
    (entry,) = taken.note["lineage"]
    assert (entry["run"], entry["step"]) == (parent.note["id"], 80)
    assert entry["filter"] == "^params.(out|rew)"


def test_parameters_are_taken_once(parent, tmp_path):
    """A run that goes on has parameters of its own."""
    flags = ("--log_every=10", "--eval_every=0", f"--init_from={parent.path}")
    whole = run(tmp_path / "whole", *flags, "--steps=40")
    run(tmp_path / "run", *flags, "--steps=20")
    cut = run(tmp_path / "run", *flags, "--steps=40")
    assert_same_arrays(whole.arrays(), cut.arrays())
    assert len(cut.note["lineage"]) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--init_filter=nothing"], ["init_filter=nothing", "no parameter", "params."]),
        (["--task=toy_reach"], ["init_from=", "params.in", "there", "here"]),
        (["--init_filter=("], ["init_filter=(", "regular expression"]),
    ],
)
def test_parameters_that_do_not_fit(parent, tmp_path, capsys, flags, words):
    new = tmp_path / "new"
    for question in ((), ("--dry_run",)):
        line = refused(capsys, *TINY, f"--init_from={parent.path}", f"--logdir={new}", *flags, *question)
        for word in words:
            assert word in line
        assert not new.exists()


# The record.


def test_a_record_of_every_start(copied):
    first = copied.note
    assert train(f"--logdir={copied.path}", "--steps=100") == 0
    note = copied.note
    assert note["id"] == first["id"] and note["lineage"] == [] and note["exit"] == "done"
    assert [x["step"] for x in note["starts"]] == [0, 80]
    for begun in note["starts"]:
        assert begun["pid"] == os.getpid() and begun["host"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d.*", begun["time"])
    assert note["starts"][0]["argv"][:2] == ["--config=debug", "--batch_size=2"]
    assert note["starts"][1]["argv"] == [f"--logdir={copied.path}", "--steps=100"]
    assert note["wall_s"] > first["wall_s"] > 0 and note["wall_s"] >= copied.rows[-1]["wall_s"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"id": 1, "starts": 5, "lineage": {"a": 1}}', "[" * 100_000]
)
def test_a_damaged_record_does_not_stop_a_run(copied, text):
    identity = copied.note["id"]
    (copied.path / "run.json").write_text(text)
    assert train(f"--logdir={copied.path}", "--steps=100") == 0
    assert copied.note["exit"] == "done" and [x["step"] for x in copied.note["starts"]] == [80]
    if not text.startswith('{"id'):
        assert copied.note["id"] == identity  # every checkpoint knows it
        assert (copied.path / "run.json.damaged").read_text() == text


def test_secrets_reach_no_file(tmp_path, monkeypatch, capfd):
    secret = "hunter2-e0c9f1"
    for name in ("WANDB_API_KEY", "MY_TOKEN", "DB_PASSWORD"):
        monkeypatch.setenv(name, secret)
    words = [
        f"--wandb.api_key={secret}",
        "--my_token",
        secret,
        f"--proxy=http://me:{secret}@host/",
        "--steps=8",
    ]
    assert flags.redacted(words) == [
        "--wandb.api_key=***",
        "--my_token",
        "***",
        "--proxy=http://me:***@host/",
        "--steps=8",
    ]
    assert train("--config=debug", f"--wandb_token={secret}") == 2
    parse = flags.parse  # as if those flags existed
    monkeypatch.setattr(flags, "parse", lambda argv, origin_of: parse(argv[: -len(words)], origin_of))
    done = run(tmp_path / "run", "--agent=random", "--steps=8", *words)
    assert done.note["starts"][0]["argv"][-5:-2] == ["--wandb.api_key=***", "--my_token", "***"]
    files = [x for x in done.path.rglob("*") if x.is_file()]
    assert len(files) > 8 and not [x for x in files if secret.encode() in x.read_bytes()]
    assert secret not in "".join(capfd.readouterr())
    assert not [name for name in leaves(Config()) if flags.SECRET.search(name)]  # config.json may be shown


@pytest.mark.parametrize(
    ("agent", "pattern", "parts"),
    [
        ("dreamer", "val", {"params.val", "slow"}),
        ("dreamer", "^params.(enc|dyn)", {"enc", "dyn"}),
        ("drq", "^params.critic", {"critic", "slow"}),
        ("drq", "^params.actor", {"actor"}),
    ],
)
def test_a_slow_critic_goes_with_its_critic(agent, pattern, parts, monkeypatch, tmp_path):
    """Of the real learners: whoever takes the critic does not want it pulled to another one's average."""
    monkeypatch.undo()
    task = "--task=toy_reach" if agent == "drq" else "--task=toy_clock"
    command = flags.parse(["--config=debug", f"--agent={agent}", task, "--model.compute_dtype=float32"])
    with session.training_env(command.config, 0) as env:
        made = learners.make(command.config, env.spaces)
    state = jax.eval_shape(made.init, jax.random.key(0))
    stored = checkpoint.flatten({"learner": state})
    monkeypatch.setattr(checkpoint, "shapes", lambda folder: (stored, {}))
    found = stores.Checkpoint(tmp_path, {})
    names = saving.chosen_parameters(found, state, pattern)
    all_names = saving.parameters({"learner": state})
    wanted = [
        n for n in all_names if any(n.startswith((f"learner.{p}", f"learner.params.{p}")) for p in parts)
    ]
    assert list(names) == wanted and 0 < len(wanted) < len(all_names)
    assert not [n for n in all_names if ".opt." in n or ".returns." in n]
    assert set(saving.chosen_parameters(found, state, ".*")) == set(all_names)
