"""Several runs in one process: each is the run of its own seed, whatever happens to the others."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import small
from small import TINY, assert_same_arrays, assert_same_rows, make_learner, run

from jaxrl import config, learners, roster, runtime, siblings, train
from jaxrl.changes import Origin
from jaxrl.config import ConfigError
from jaxrl.learners import dreamer
from jaxrl.runtime import SEVERAL

FLAGS = ("--env.num_envs=2", "--steps=160", "--log_every=40", "--eval_every=80", "--train_ratio=4")
SAVES = ("--save_every=40", "--checkpoint.keep=100", "--checkpoint.periodic_every=80")
SEEDS = (0, 3, 4)
DRQ = ("--env.size=36", "--drq.channels=2", "--drq.features=4", "--drq.hidden=8", "--drq.random_steps=8")
JOINT = "--runtime.population=joint"


@pytest.fixture(autouse=True)
def small_learner(monkeypatch):
    monkeypatch.setitem(learners.LEARNERS, "dreamer", make_learner)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of each seed."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(learners.LEARNERS, "dreamer", make_learner)
        return {seed: run(folder / str(seed), *FLAGS, *SAVES, f"--seed={seed}") for seed in SEEDS}


def population(folder, *flags, code=0, seeds="0,3-4"):
    """The members of a population by seed, once the command has ended with a code."""
    assert train.main([*TINY, f"--logdir={folder}", f"--seeds={seeds}", *FLAGS, *SAVES, *flags]) == code
    return {seed: small.Run(folder / f"toy_clock-{seed}") for seed in SEEDS}


def assert_same(found, alone, exact=True):
    """Each member has left what the run of its seed leaves."""
    for seed, member in found.items():
        assert member.scores == alone[seed].scores and member.scores
        here, there = member.arrays(), alone[seed].arrays()
        if exact:
            assert_same_rows(member, alone[seed])
            assert_same_arrays(here, there)
            continue
        assert here.keys() == there.keys()
        for name, x in here.items():
            np.testing.assert_allclose(x.astype(float), there[name].astype(float), rtol=1e-4, atol=1e-5)
        for row, other in zip(member.rows, alone[seed].rows, strict=True):
            assert small.timeless(row) == pytest.approx(small.timeless(other), rel=1e-4, abs=1e-6)


def test_each_member_is_the_run_of_its_seed(tmp_path, alone):
    """Bit for bit: rows, scores, parameters, replay, and what is kept of checkpoints."""
    found = population(tmp_path / "all")
    assert_same(found, alone)
    for seed, member in found.items():
        assert member.note["exit"] == "done"
        assert json.loads((member.path / "config.json").read_text())["seed"] == seed
        folders = [
            {str(x.relative_to(r.path)) for x in r.path.glob("checkpoints/*/*")}
            for r in (member, alone[seed])
        ]
        assert folders[0] == folders[1]


def test_one_program_for_all_members(tmp_path, alone):
    """Within the rounding that a batched product may differ by from single ones."""
    found = population(tmp_path / "all", JOINT)
    assert_same(found, alone, exact=False)
    assert "learn" in found[0].note["compile_s_jointly"]
    assert "learn" not in found[0].note["compile_s_each"]  # the single program was not even compiled


@pytest.mark.parametrize("layout", ["turns", "joint"])
def test_cut_and_continued(tmp_path, layout):
    """By signals between saves, and by a kill between the saves of two members."""
    flags = (f"--runtime.population={layout}", "--save_seconds=0")
    straight = population(tmp_path / "straight", *flags)
    for moment in ("term@act:7", "term@eval:9"):
        cut = population(tmp_path / "cut", *flags, f"--debug.fault={moment}", code=143)
        steps = {member.note["env_steps"] for member in cut.values()}
        assert len(steps) == 1 and {member.note["exit"] for member in cut.values()} == {"stopped"}
    members = population(tmp_path / "cut", *flags)
    assert_same(members, straight)
    assert len(members[0].note["starts"]) == 3


def test_killed_while_members_are_saved(tmp_path, alone):
    """kill -9 in the midst of it, and one member that is ahead of the others: all go on from the newest step
    that every one of them has."""
    words = [*TINY, f"--logdir={tmp_path}", "--seeds=0,3-4", *FLAGS, *SAVES, "--debug.fault=kill@commit:11"]
    code = subprocess.run([sys.executable, "-c", small.ENTRY, *words], cwd=small.ROOT, check=False).returncode
    assert code == -9
    assert train.main([f"--logdir={tmp_path / 'toy_clock-3'}", *FLAGS, *SAVES]) == 0
    found = population(tmp_path)
    assert {member.note["starts"][-1]["step"] for member in found.values()} <= {40, 80}
    assert len({member.note["starts"][-1]["step"] for member in found.values()}) == 1
    assert_same(found, alone)


def test_a_member_goes_on_alone(tmp_path, alone):
    """Its folder is that of a run."""
    population(tmp_path / "all", "--debug.fault=term@act:20", code=143)
    assert train.main([f"--logdir={tmp_path / 'all' / 'toy_clock-3'}", *FLAGS]) == 0
    assert_same({3: small.Run(tmp_path / "all" / "toy_clock-3")}, alone)


def test_members_share_a_set_of_actions(tmp_path):
    """Pong has 6, Breakout 4: each keeps to its own."""
    flags = ("--tasks=atari_pong,atari_breakout", "--env.action_repeat=4", "--steps=240", "--log_every=120")
    flags = (*flags, "--eval_every=0", "--env.size=64", JOINT)
    assert train.main([*TINY, f"--logdir={tmp_path}", "--agent=random", *flags]) == 0
    for task, legal in {"atari_pong": 6, "atari_breakout": 4}.items():
        member = small.Run(tmp_path / f"{task}-0")
        settings = json.loads((member.path / "config.json").read_text())
        assert settings["task"] == task and settings["env.actions"] == 6
        assert member.arrays()["learner.allowed"].tolist() == [i < legal for i in range(6)]


def test_one_diverges_and_the_others_go_on(tmp_path, alone, capsys):
    found = population(tmp_path, "--debug.fault=nan@reward:50", code=70)
    ended = {seed: member.note["exit"] for seed, member in found.items()}
    (bad,) = (seed for seed, text in ended.items() if text.startswith("Diverged"))
    rest = {seed: member for seed, member in found.items() if seed != bad}
    assert_same(rest, alone)
    assert f"1 of 3 members have diverged (toy_clock-{bad})" in capsys.readouterr().err
    assert population(tmp_path, "--steps=200")[bad].note["starts"][-1]["step"] == 0  # it was left out
    assert all(member.rows[-1]["step"] == 200 for member in rest.values())


@pytest.mark.parametrize("layout", ["turns", "joint"])
def test_environments_on_the_device(tmp_path, alone, layout):
    """Jointly as one program for many vector steps of all members."""
    flags = ("--env.placement=device", f"--runtime.population={layout}")
    assert_same(population(tmp_path, *flags), alone, exact=layout == "turns")


@pytest.mark.parametrize("placement", ["auto", "device"])
def test_members_are_divided_over_devices(tmp_path, alone, placement):
    """Three members on three of four devices, which a line tells."""
    env = os.environ | {"XLA_FLAGS": f"{SEVERAL}=4", "JAX_PLATFORMS": "cpu"}
    words = [*TINY, f"--logdir={tmp_path}", "--seeds=0,3-4", JOINT, "--runtime.devices=4", *FLAGS, *SAVES]
    words += [f"--env.placement={placement}"]
    words = [sys.executable, "-c", small.ENTRY, *words, "--terminal.style=plain"]
    done = subprocess.run(words, cwd=small.ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "in one program on 3 devices (4 do not divide 3 members)" in done.stdout
    assert_same({seed: small.Run(tmp_path / f"toy_clock-{seed}") for seed in SEEDS}, alone, exact=False)


def test_too_many_for_the_memory(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runtime, "device_memory", lambda _: 2_000_000)
    population(tmp_path, "--replay.budget_gb=1", seeds="0-63", code=2)
    line = capsys.readouterr().err
    assert "64 members need" in line and " fit: name fewer" in line and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--seeds=0,1,0"], "one is named twice"),
        (["--seeds=4-1"], "4-1 is no range of seeds"),
        (["--seeds=x"], "for example seeds=0-4"),
        (["--tasks=toy_clock,toy_reach"], "differ in what is seen or done"),
        (["--tasks=toy_clock,toy_cloc"], "did you mean toy_clock"),
        (["--tasks=atari_pong,toy_catch"], "atari_pong-0 and toy_catch-0 differ in what is seen or done"),
        (["--seeds=0,1", JOINT, "--replay.holdout=0.1"], "replay.holdout needs each member alone"),
        (["--seeds=0-2000"], "more than 1024"),
        (
            ["--tasks=mjx_cartpole_balance,mjx_cartpole_swingup", "--agent=drq", "--env.placement=device"],
            "all of one task",
        ),
    ],
)
def test_bad_input(tmp_path, capsys, flags, words):
    assert train.main([*TINY, f"--logdir={tmp_path}", *flags]) == 2
    line = capsys.readouterr().err
    assert words in line and line.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_folder_of_a_single_run(alone, capsys):
    assert train.main([f"--logdir={alone[0].path}", "--seeds=0,1"]) == 2
    assert "holds a run of its own" in capsys.readouterr().err
    assert train.main([f"--resume_from={alone[0].path}", "--seeds=0,1"]) == 2
    assert "with --seeds and --tasks take its parameters, --init_from" in capsys.readouterr().err


def test_folder_of_a_population_without_its_members(tmp_path, capsys):
    (tmp_path / "toy_clock-0").mkdir()
    (tmp_path / "toy_clock-0" / "config.json").write_text("{}")
    assert train.main([*TINY, f"--logdir={tmp_path}"]) == 2
    assert "holds several runs; name one, or all --seeds and --tasks" in capsys.readouterr().err


def test_saved_settings_go_on(tmp_path):
    """As those of a single run do: the members' preset and tasks need not be named again."""
    flags = ("--tasks=toy_clock,toy_catch", "--env.action_repeat=1", "--agent=random", "--eval_every=0")
    words = [*TINY, *flags, "--seeds=1,2", f"--logdir={tmp_path}"]
    for task, size in (("toy_clock", 48), ("toy_catch", 64)):
        alone = [x for x in words if not x.startswith("--tasks")]
        assert train.main([*alone, f"--tasks={task}", f"--env.size={size}", "--steps=8"]) == 0
    names = {x.name for x in tmp_path.iterdir()}
    again = ["--seeds=1,2", f"--logdir={tmp_path}", "--steps=16", "--terminal.style=off"]
    assert train.main([*again, "--task=toy_catch"]) == 0
    assert train.main([*again, "--task=toy_clock"]) == 0
    assert {x.name for x in tmp_path.iterdir()} == names and len(names) == 4
    for name in names:
        member = small.Run(tmp_path / name)
        settings = json.loads((member.path / "config.json").read_text())
        assert member.note["config"] == "debug" and [x["step"] for x in member.note["starts"]] == [0, 8]
        assert settings["env.size"] == (64 if "catch" in name else 48)
    (tmp_path / "toy_reach-20260101-120000-0").mkdir()  # a single run beside them
    (tmp_path / "toy_reach-20260101-120000-0" / "config.json").write_text("{}")
    given = {"seeds": "1", "logdir": str(tmp_path)}
    origin = siblings.origin_of(Origin(config=config.Config(), given=given, preset="atari100k"), False)
    assert origin.given["tasks"] == "toy_catch,toy_clock" and origin.preset == "debug"


def test_ranges_of_seeds():
    assert roster.numbers(config.replace(config.Config(), {"seeds": "7,0-2,5"})) == [7, 0, 1, 2, 5]
    assert roster.numbers(config.replace(config.Config(), {"seed": 9})) == [9]
    with pytest.raises(ConfigError):
        roster.numbers(config.replace(config.Config(), {"seeds": "3-1"}))


def test_dry_run_of_a_population(tmp_path, capsys):
    assert train.main([*TINY, "--seeds=0-2", "--dry_run", f"--logdir={tmp_path / 'run'}"]) == 0
    out = capsys.readouterr().out
    assert "population 3 members" in out and "nothing was written" in out and not (tmp_path / "run").exists()


@pytest.mark.parametrize("agent", ["dreamer", "drq"])
def test_real_learners_jointly(tmp_path, monkeypatch, agent):
    """An update of the whole learner for two members at once: each as in turn, within float tolerance.

    Of one update: later ones follow from draws, which the smallest difference can turn.
    """
    monkeypatch.setitem(learners.LEARNERS, "dreamer", dreamer.make)
    flags = (f"--agent={agent}", "--config=debug", "--steps=20", "--log_every=20", "--eval_every=0")
    flags = (*flags, "--train_ratio=0.01", "--batch_length=8", "--opt.warmup=0", "--terminal.style=off")
    flags = (*flags, *DRQ) if agent == "drq" else flags
    for layout in ("joint", "turns"):
        words = (f"--logdir={tmp_path / layout}", f"--runtime.population={layout}", "--seeds=1,2")
        assert train.main([*words, *flags]) == 0
    for seed in (1, 2):
        member, one = (small.Run(tmp_path / layout / f"toy_clock-{seed}") for layout in ("joint", "turns"))
        assert one.rows[-1]["updates"] == 1 and len(one.rows[-1]) > 10
        assert small.timeless(member.rows[-1]) == pytest.approx(
            small.timeless(one.rows[-1]), rel=1e-3, abs=1e-6
        )
        here, there = member.arrays(), one.arrays()
        for name in (x for x in here if x.startswith("learner.params.")):
            np.testing.assert_allclose(here[name], there[name], rtol=1e-3, atol=2e-5)
