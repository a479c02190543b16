"""Faults on purpose: how they are asked for, when they happen, and that a run loses nothing by them."""

import ast
import pathlib
import shutil
import threading
import time

import pytest
import small
from small import assert_same_arrays, assert_same_rows, run

from jaxrl import learners
from jaxrl.config import ConfigError
from jaxrl.faults import KINDS, PLACES, Faults, parse

ROOT = pathlib.Path(__file__).parents[1]
SINKS = {"metrics", "scores", "episodes", "tensorboard", "terminal", "plot", "wandb"}
LENGTH = ("--steps=120", "--log_every=40", "--eval_every=80", "--save_every=40")
BOARD = "--tensorboard.enabled"
SHOWN = ("--terminal.style=plain", "--plot.enabled")


@pytest.fixture(autouse=True)
def small_learner(monkeypatch):
    monkeypatch.setitem(learners.LEARNERS, "dreamer", small.make_learner)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run without faults."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(learners.LEARNERS, "dreamer", small.make_learner)
        return run(tmp_path_factory.mktemp("straight") / "run", *LENGTH, "--checkpoint.keep=100")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("kil@learn", ["debug.fault=kil@learn", "unknown kind kil", "did you mean kill?"]),
        ("kill@lern:3", ["debug.fault=kill@lern:3", "unknown place lern", "did you mean learn?"]),
        ("kill@learn,term@moon", ["debug.fault=term@moon", "unknown place moon", "one of start, compile"]),
        ("kill", ["KIND@PLACE", "for example debug.fault=kill@learn:3"]),
        ("kill@act:0", ["number of a visit", "1 or more"]),
        ("kill@act:-1", ["number of a visit"]),
        ("kill@act:1e3", ["number of a visit"]),
        ("kill=3@act", ["only hang=SECONDS"]),
        ("hang=x@act", ["only hang=SECONDS"]),
        ("nan@save", ["nan is for the places reward and obs"]),
        ("raise@obs", ["nan is for the places reward and obs"]),
        (",", ["KIND@PLACE"]),
    ],
)
def test_what_cannot_be_understood_is_refused(spec, words, capsys, tmp_path):
    """Before anything is made, by the program too."""
    with pytest.raises(ConfigError) as error:
        Faults(spec)
    for word in words:
        assert word in str(error.value), error.value
    run(tmp_path / "run", f"--debug.fault={spec}", code=2)
    run(tmp_path / "run", f"--debug.fault={spec}", "--dry_run", code=2)
    assert capsys.readouterr().err.count("\n") == 2 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_understood_at_its_places(kind):
    for place in PLACES:
        if (kind == "nan") == (place in ("reward", "obs")):
            assert parse(f"{kind}@{place}:12")[:4] == (kind, place, 12, False)
            assert parse(f" {kind}@{place}+".replace("+", ":7+"))[:4] == (kind, place, 7, True)
    assert parse("hang=0.5@act").seconds == 0.5 and parse("hang@act").seconds == 60


def test_a_fault_happens_at_its_visits():
    faults = Faults("raise@learn:2,full@learn:4+,exit@act")
    happened = []
    for _ in range(5):
        try:
            happened.append(faults.at("learn"))
        except (RuntimeError, OSError) as error:
            happened.append(type(error))
    assert happened == [None, RuntimeError, None, OSError, OSError]
    with pytest.raises(SystemExit, match="at act"):
        faults.at("act")
    faults.at("act")
    faults.at("flush")
    values = Faults("nan@reward:3")
    assert [values.bad("reward") for _ in range(4)] == [False, False, True, False]
    assert not values.bad("obs")


def test_without_faults_nothing_is_counted_or_locked():
    faults = Faults()
    del faults._lock, faults._visits, faults._faults
    for place in PLACES:
        faults.at(place)
        assert not faults.bad(place)
    start = time.perf_counter()
    for _ in range(100_000):
        faults.at("act")
    assert time.perf_counter() - start < 0.5  # 5 us each; some 0.03 us on an idle machine


def test_visits_of_many_threads_are_all_counted():
    faults, raised = Faults("raise@act:4000"), []

    def visit():
        for _ in range(1000):
            try:
                faults.at("act")
            except RuntimeError as error:
                raised.append(error)

    threads = [threading.Thread(target=visit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(raised) == 1 and faults._visits["act"] == 8000


def test_every_place_is_somewhere_and_only_once():
    """`faults.at("...")` and `faults.bad("...")` in the package; sinks are visited by their names."""
    found = []
    for path in (ROOT / "jaxrl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                named = node.args and isinstance(node.args[0], ast.Constant)
                if node.func.attr in ("at", "bad") and named:
                    found.append(node.args[0].value)
    more = ["act", "learn"]  # with environments on the host, and on the device
    more += [*more, *more, "eval", "compile"]  # and both of a population
    assert sorted(found) == sorted([*set(PLACES) - SINKS, *more])


def test_a_run_that_is_killed_everywhere_is_the_same_run(straight, tmp_path, capfd):
    """The same command each time, in a process of its own; nothing is lost, doubled or different."""
    folder = tmp_path / "run"
    places = ("start", "metrics:2", "commit:1", "eval:5", "manifest:1", "act:30", "save:1")
    for number, place in enumerate(places):
        process = small.start(folder, *LENGTH, "--checkpoint.keep=100", f"--debug.fault=kill@{place}")
        _, err = process.communicate(timeout=60)
        assert process.returncode == -9, (place, err)
        if number == 2:  # until here only the metrics of steps 0 to 40 were made
            assert not list(folder.glob("checkpoints/latest/*/manifest.json"))
    whole = run(folder, *LENGTH, "--checkpoint.keep=100")
    assert_same_rows(straight, whole)
    assert straight.scores == whole.scores
    assert_same_arrays(straight.arrays(), whole.arrays())


@pytest.mark.parametrize(
    ("fault", "error"),
    [("raise@act:50", RuntimeError), ("exit@learn:20", SystemExit), ("full@flush:3", OSError)],
)
def test_an_error_in_the_loop_keeps_the_save_that_is_on_its_way(straight, tmp_path, fault, error):
    with pytest.raises(error, match="injected by debug.fault"):
        run(tmp_path / "run", *LENGTH, f"--debug.fault={fault}")
    cut = small.Run(tmp_path / "run")
    assert (cut.path / "checkpoints" / "latest" / "40" / "manifest.json").exists()
    assert "injected by debug.fault" in cut.note["exit"]
    whole = run(cut.path, *LENGTH)  # the fault was that of one start
    assert whole.note["exit"] == "done"
    assert_same_rows(straight, whole)
    assert straight.scores == whole.scores
    assert_same_arrays(straight.arrays(), whole.arrays())


@pytest.mark.parametrize(
    "fault",
    [
        "raise@terminal:2,raise@tensorboard:2,raise@plot:2",
        "exit@terminal:1,exit@tensorboard:1,exit@plot:1",
        "full@tensorboard:2+,full@metrics:2,full@scores:4,full@episodes:2,full@plot:3",
        "hang=2.5@terminal:3,hang=60@tensorboard:2,hang=60@plot:2",
    ],
)
def test_sinks_do_not_touch_the_training(straight, tmp_path, fault):
    """Raising, ending their thread, finding no room, hanging; files of record are complete."""
    done, code, _ = with_sinks(tmp_path / "run", fault)
    assert code == 0 and done.note["exit"] == "done"
    assert_same_arrays(straight.arrays(), done.arrays())
    rows = [{k: x for k, x in row.items() if not k.startswith("sinks/")} for row in done.rows]
    assert [row.keys() for row in rows] == [row.keys() for row in straight.rows]
    assert [row["train/opt/loss"] for row in rows[1:]] == [r["train/opt/loss"] for r in straight.rows[1:]]
    assert straight.scores == done.scores
    table = [(x["env_steps"], x["score"]) for x in done.lines("tables/episodes.jsonl")]
    assert table == [(x["step"], x["episode/score"]) for x in done.scores if "episode/score" in x]


@pytest.mark.parametrize(("kind", "left"), [("raise", [0, 80, 120]), ("exit", [0, 80, 120]), ("hang", [0])])
def test_rows_that_are_lost_are_told(straight, tmp_path, kind, left):
    """A file of record fails for another reason than want of room, or hangs: the run ends with 74."""
    done, code, err = with_sinks(tmp_path / "run", f"{kind}@metrics:2")
    assert code == 74 and done.steps() == left
    assert_same_arrays(straight.arrays(), done.arrays())
    assert "metrics were lost" in err


def with_sinks(folder, fault):
    """A run that shows its rows everywhere, in a process of its own, since what hangs stays; and its end."""
    process = small.start(folder, *LENGTH, BOARD, *SHOWN, f"--debug.fault={fault}")
    _, err = process.communicate(timeout=25)  # a minute of hanging is not waited for
    return small.Run(folder), process.returncode, err


def test_a_disk_that_is_full_for_a_while(straight, tmp_path, capfd):
    """The save that finds no room is told once and made again; the one before it stays."""
    flags = (*LENGTH, "--terminal.style=plain", "--checkpoint.keep=100")
    done = run(tmp_path / "run", *flags, "--debug.fault=full@save:2,full@commit:2")
    text = capfd.readouterr().out
    assert text.count("No space left on device") == 2, text
    assert done.note["exit"] == "done"
    assert_same_arrays(straight.arrays(), done.arrays())
    assert_same_arrays(straight.arrays(40), done.arrays(40))
    shutil.rmtree(done.path)
