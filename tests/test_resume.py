"""Runs that are cut and continued: nothing missing, nothing doubled, nothing different."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
import small
from small import assert_same_arrays, assert_same_rows, run

from jaxrl import learners, stores
from jaxrl.programs import Programs

LENGTH = ("--steps=120", "--log_every=40", "--eval_every=80")
TERMINATED, INTERRUPTED = 143, 130


@pytest.fixture(autouse=True)
def small_learner(monkeypatch):
    monkeypatch.setitem(learners.LEARNERS, "dreamer", small.make_learner)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that is not cut, with all its checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(learners.LEARNERS, "dreamer", small.make_learner)
        folder = tmp_path_factory.mktemp("straight") / "run"
        return run(folder, *LENGTH, "--save_every=40", "--checkpoint.keep=100")


@pytest.fixture
def cut_after(monkeypatch):
    """cut_after(n): this process gets a SIGTERM at the n-th call of `Programs.<name>` from now on."""

    def cut(calls, name="act", number=signal.SIGTERM):
        method, count = getattr(Programs, name), [0]

        def counted(self, *args):
            count[0] += 1
            if count[0] == calls:
                os.kill(os.getpid(), number)
            return method(self, *args)

        monkeypatch.setattr(Programs, name, counted)

    return cut


@pytest.mark.parametrize("cuts", [[80], [57], [3], [30, 40]])
def test_a_cut_run_is_the_same_run(straight, tmp_path, cut_after, cuts):
    """At a row, between rows, before the first update, twice: state, rows and scores are the same bits."""
    for calls in cuts:
        cut_after(calls)
        cut = run(tmp_path / "run", *LENGTH, code=TERMINATED)
    assert cut.note["exit"] == "stopped" and cut.note["env_steps"] == sum(cuts)
    whole = run(tmp_path / "run", *LENGTH)
    assert whole.note["exit"] == "done" and whole.note["id"] == cut.note["id"]
    assert [x["step"] for x in whole.note["starts"]] == [0, *np.cumsum(cuts)]
    assert_same_rows(straight, whole)
    assert straight.scores == whole.scores
    assert_same_arrays(straight.arrays(), whole.arrays())


@pytest.mark.parametrize("flags", [["--overlap"], ["--replay.holdout=0.3", "--env.num_envs=2"]])
def test_the_same_with_options(tmp_path, cut_after, flags):
    whole = run(tmp_path / "whole", *LENGTH, *flags)
    cut_after(37)
    run(tmp_path / "cut", *LENGTH, *flags, code=TERMINATED)
    cut = run(tmp_path / "cut", *LENGTH, *flags)
    assert_same_rows(whole, cut)
    assert whole.scores == cut.scores
    assert_same_arrays(whole.arrays(), cut.arrays())


@pytest.mark.parametrize("at", [80, 120])
def test_an_evaluation_that_was_cut_is_made_again(straight, tmp_path, cut_after, at):
    """Also the last one: without it the run is not done."""
    before = [
        x["eval_episode/length"] for x in straight.scores if x["step"] < at and "eval_episode/score" in x
    ]
    cut_after(max(before, default=0) + 5, "eval_act", signal.SIGINT)
    cut = run(tmp_path / "run", *LENGTH, code=INTERRUPTED)
    assert cut.note["env_steps"] == at and cut.note["exit"] == "stopped"
    assert cut.steps() == [x for x in (0, 40, 80) if x < at]
    for _ in range(2):
        whole = run(tmp_path / "run", *LENGTH)
        assert whole.note["exit"] == "done"
        assert_same_rows(straight, whole)
        assert straight.scores == whole.scores


def test_continues_from_an_older_checkpoint(straight, tmp_path):
    """As after a power cut: rows and scores beyond the checkpoint, and half a line, are made again."""
    shutil.copytree(straight.path, tmp_path / "run")
    for step in ("80", "120"):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "latest" / step)
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 160, "upda')
    again = run(tmp_path / "run", *LENGTH, "--save_every=40", "--checkpoint.keep=100")
    assert_same_rows(straight, again)
    assert straight.scores == again.scores
    for step in (80, 120):
        assert_same_arrays(straight.arrays(step), again.arrays(step))


def test_a_longer_run_goes_on_where_the_shorter_ended(tmp_path):
    """The ring grows with the run, and keeps what it holds."""
    flags = ("--log_every=40", "--eval_every=40", "--replay.capacity=1000")
    whole = run(tmp_path / "whole", "--steps=120", *flags)
    short = run(tmp_path / "short", "--steps=80", *flags)
    assert short.arrays()["ring.rows.reward"].shape == (80, 1)
    longer = run(tmp_path / "short", "--steps=120", *flags)
    assert_same_rows(whole, longer, "replay/ram_gb")
    assert whole.scores == longer.scores
    assert_same_arrays(whole.arrays(), longer.arrays())


def test_a_held_out_ring_that_has_wrapped_goes_on(tmp_path):
    """Half of a short run's episodes may be more than half of its rows: that ring does not grow."""
    flags = ("--log_every=40", "--eval_every=0", "--replay.capacity=1000", "--replay.holdout=0.5")
    short = run(tmp_path / "run", "--steps=40", *flags, "--seed=1")
    size = short.arrays()["held.rows.reward"].shape
    longer = run(tmp_path / "run", "--steps=80", *flags, "--seed=1")
    arrays = longer.arrays()
    assert arrays["held.rows.reward"].shape == size and arrays["ring.rows.reward"].shape == (80, 1)
    assert arrays["held.cursor"][0] + arrays["ring.cursor"][0] == 80


def test_a_finished_run_is_left_as_it_is(straight, tmp_path):
    shutil.copytree(straight.path, tmp_path / "run")
    again = run(tmp_path / "run", *LENGTH)
    for name in ("metrics.jsonl", "scores.jsonl"):
        assert (again.path / name).read_bytes() == (straight.path / name).read_bytes()
    assert again.note["exit"] == "done"
    assert_same_arrays(straight.arrays(), again.arrays())


def test_a_run_cannot_end_before_where_it_is(straight, tmp_path, capsys):
    shutil.copytree(straight.path, tmp_path / "run")
    before = {x: x.read_bytes() for x in (tmp_path / "run").glob("*.json*")}
    run(tmp_path / "run", *LENGTH, "--steps=80", code=2)
    lines = capsys.readouterr().err.splitlines()
    assert (
        len(lines) == 1
        and "steps=80" in lines[0]
        and "has made 120" in lines[0]
        and "--steps=120" in lines[0]
    )
    assert {x: x.read_bytes() for x in before} == before


def test_without_its_replay_a_run_fills_it_anew(tmp_path):
    """Updates begin again at the first sequence, at their usual pace: no burst to catch up."""
    flags = ("--log_every=10", "--eval_every=0", "--checkpoint.replay=false")
    first = run(tmp_path / "run", "--steps=60", *flags)
    assert not [name for name in first.arrays() if name.startswith("ring")]
    again = run(tmp_path / "run", "--steps=120", *flags)
    updates = {row["step"]: row["updates"] for row in again.rows}
    assert updates[60] == 1 + (60 - 5) // 4
    assert [updates[x] - updates[60] for x in range(70, 121, 10)] == [
        1 + (x - 65) // 4 for x in range(70, 121, 10)
    ]
    assert again.rows[-1]["replay/items"] == 48
    assert np.isfinite(again.rows[-1]["train/opt/loss"])


def test_without_checkpoints_a_run_starts_anew(straight, tmp_path, capsys):
    flags = ("--log_every=20", "--eval_every=0", "--checkpoint.enabled=false", "--replay.save_episodes")
    first = run(tmp_path / "run", "--steps=40", *flags)
    rows = (first.path / "metrics.jsonl").read_bytes()
    assert not (first.path / "checkpoints").exists()
    again = run(tmp_path / "run", "--steps=40", *flags)
    assert again.steps() == [0, 20, 40]
    assert (first.path / "metrics.jsonl.1").read_bytes() == rows
    assert (
        len(list((first.path / "episodes.1").iterdir())) == len(list((first.path / "episodes").iterdir())) > 0
    )
    run(
        straight.path, *LENGTH, "--checkpoint.enabled=false", code=2
    )  # its checkpoints would be of another run
    assert "checkpoint.enabled=false" in capsys.readouterr().err


def test_environments_without_a_state_begin_new_episodes(tmp_path, cut_after):
    """Not with those that the run has seen already; rows, scores and episodes go on without a gap."""
    flags = ("--task=toy_catch", "--steps=200", "--log_every=50", "--eval_every=100", "--agent=random")
    flags += ("--replay.save_episodes",)
    whole = run(tmp_path / "whole", *flags)
    cut_after(104)
    run(tmp_path / "run", *flags, code=TERMINATED)
    cut = run(tmp_path / "run", *flags)
    assert cut.steps() == whole.steps() and cut.steps("eval_episode/avg_score") == [100, 200]
    games = [x for x in cut.scores if "episode/score" in x]
    assert [x["episode"] for x in games] == list(range(len(games)))
    assert {x["episode/length"] for x in games} == {9}
    assert [x["step"] for x in games][:10] == list(range(9, 100, 10)) and games[10]["step"] == 104 + 9
    begins = [np.load(x)["board"][0].argmax() for x in sorted((cut.path / "episodes").iterdir())]
    assert len(begins) == len(games) and begins[:8] != begins[10:18]


def test_two_resumes_of_one_checkpoint_are_the_same(tmp_path):
    """Also where the environments cannot be saved: their new episodes are seeded by the step."""
    flags = ("--task=toy_catch", "--log_every=50", "--eval_every=100")
    run(tmp_path / "a", "--steps=100", *flags)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    a, b = (run(tmp_path / name, "--steps=200", *flags) for name in "ab")
    assert_same_rows(a, b)
    assert a.scores == b.scores and a.steps() == [0, 50, 100, 150, 200]
    assert_same_arrays(a.arrays(), b.arrays())


def test_tensorboard_forgets_what_is_made_again(straight, tmp_path):
    """And the seconds of a run go on where they stood."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = (*LENGTH, "--tensorboard.enabled", "--save_every=40", "--checkpoint.keep=100")
    first = run(tmp_path / "run", *flags)
    for step in ("80", "120"):
        shutil.rmtree(first.path / "checkpoints" / "latest" / step)
    again = run(tmp_path / "run", *flags)
    board = EventAccumulator(str(again.path / "tb"), size_guidance={"scalars": 0}).Reload()
    for tag in ("train/opt/loss", "eval_episode/avg_score", "wall_s"):
        shown = [(event.step, event.value) for event in board.Scalars(tag)]
        assert shown == [(row["step"], np.float32(row[tag])) for row in again.rows if tag in row]
    seconds = [row["wall_s"] for row in again.rows]
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert "time/compile_s" in again.rows[2] and "time/compile_s" not in again.rows[3]


def test_episodes_beyond_the_checkpoint_are_written_again(straight, tmp_path):
    flags = (*LENGTH, "--replay.save_episodes", "--save_every=40", "--checkpoint.keep=100")
    first = run(tmp_path / "run", *flags)
    names = sorted(x.name for x in (first.path / "episodes").iterdir())
    for step in ("80", "120"):
        shutil.rmtree(first.path / "checkpoints" / "latest" / step)
    again = run(tmp_path / "run", *flags)
    left = sorted(x.name for x in (again.path / "episodes").iterdir())
    in_progress = next(x for x in names if int(x[:12]) > 40)  # its beginning is not known any more
    assert left == [x for x in names if x != in_progress]


def test_checkpoints_by_the_clock(tmp_path):
    flags = ("--agent=random", "--steps=3000", "--log_every=1000", "--eval_every=0", "--save_seconds=0.1")
    done = run(tmp_path / "run", *flags, "--checkpoint.keep=1000")
    steps = sorted(int(x.name) for x in (done.path / "checkpoints" / "latest").iterdir() if x.name.isdigit())
    assert steps[-1] == 3000 and len(steps) > 2
    assert any(step % 1000 for step in steps) and done.steps() == [0, 1000, 2000, 3000]


def test_a_damaged_checkpoint_is_set_aside(straight, tmp_path, capfd):
    """The run goes on from the one before it, and is the same run."""
    shutil.copytree(straight.path, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "latest" / "120"
    (newest / "device" / "manifest.ocdbt").unlink()
    again = run(
        tmp_path / "run", *LENGTH, "--save_every=40", "--checkpoint.keep=100", "--terminal.style=plain"
    )
    (told,) = [x for x in capfd.readouterr().out.splitlines() if "is damaged" in x]
    assert "latest/120 is damaged: device/manifest.ocdbt: No such file or directory; using latest/80" in told
    assert_same_rows(straight, again)
    assert_same_arrays(straight.arrays(), again.arrays())
    assert (newest.parent / "120.damaged" / "manifest.json").exists()
    events = [(x["event"], x["name"]) for x in again.lines("checkpoint_log.jsonl") if x["store"] == "latest"]
    assert events[-2:] == [("quarantined", "120"), ("saved", "120")]


def test_a_process_that_died_at_birth_is_no_obstacle(tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("run.lock", "config.json.new"):
        (tmp_path / "run" / name).write_text('{"ste')
    assert run(tmp_path / "run", "--steps=40", "--log_every=20", "--eval_every=0").steps() == [0, 20, 40]


def test_without_an_intact_checkpoint_nothing_is_touched(straight, tmp_path, capsys):
    shutil.copytree(straight.path, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("*/*/manifest.json"):
        path.write_text("{}")
    before = {x: x.read_bytes() for x in (tmp_path / "run").rglob("*") if x.is_file()}
    run(tmp_path / "run", *LENGTH, code=66)
    (line,) = capsys.readouterr().err.splitlines()
    assert "latest/120: manifest.json cannot be read; no intact checkpoint is left" in line
    after = {x: x.read_bytes() for x in (tmp_path / "run").rglob("*") if x.is_file()}
    assert {k.name for k in after if after[k] != before.get(k)} <= {"run.lock"}


def test_the_three_stores_of_a_run(tmp_path):
    flags = ("--steps=120", "--log_every=40", "--eval_every=40", "--save_every=20", "--checkpoint.keep=2")
    done = run(tmp_path / "run", *flags, "--checkpoint.periodic_every=30", "--checkpoint.periodic_keep=3")
    names = {x: sorted(int(y.name) for y in (done.path / "checkpoints" / x).iterdir()) for x in stores.STORES}
    scores = {x["step"]: x["eval_episode/avg_score"] for x in done.rows if "eval_episode/avg_score" in x}
    best = max(scores, key=lambda step: (scores[step], step))
    assert names == {"latest": [100, 120], "periodic": [60, 90, 120], "best": [best]}
    kept = stores.find(done.path / "checkpoints" / "best")
    assert kept.score == scores[best] and not any("ring" in name for name in kept.manifest["leaves"])
    assert kept.manifest["run"] == done.note["id"] and kept.manifest["config"]["steps"] == 120
    log = done.lines("checkpoint_log.jsonl")
    reasons = {(x["store"], x["reason"]) for x in log if x["event"] == "saved"}
    assert reasons == {
        ("latest", "interval"),
        ("latest", "final"),
        ("periodic", "interval"),
        ("best", "best"),
    }
    there = {(x["store"], x["name"]) for x in log if x["event"] == "saved"}
    there -= {(x["store"], x["name"]) for x in log if x["event"] == "removed"}
    assert there == {(store, str(step)) for store in names for step in names[store]}
    times = [x["run_s"] for x in log if x["event"] == "saved"]
    assert times == sorted(times) and times[0] > 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, TERMINATED), (signal.SIGINT, INTERRUPTED)])
def test_signals_end_a_process_that_saves(tmp_path, number, code):
    """At a moment that nobody chose; the same command goes on, and no row is missing or doubled."""
    flags = ("--log_every=40", "--eval_every=80")
    process = small.start(tmp_path / "run", "--steps=1000000", *flags)
    wait_for_rows(process, tmp_path / "run", 4)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, out + err
    assert f"{number.name}: stopping and saving" in err and "Traceback" not in err
    cut = small.Run(tmp_path / "run")
    assert cut.note["exit"] == "stopped"
    end = cut.note["env_steps"] // 80 * 80 + 160
    whole = run(tmp_path / "run", f"--steps={end}", *flags)
    assert whole.steps() == list(range(0, end + 1, 40))
    assert whole.steps("eval_episode/avg_score") == list(range(80, end + 1, 80))
    games = [x for x in whole.scores if "episode/score" in x]
    assert [x["episode"] for x in games] == list(range(len(games)))
    assert np.cumsum([x["episode/length"] + 1 for x in games]).tolist() == [x["step"] + 1 for x in games]
    assert len([x for x in whole.scores if "eval_episode/score" in x]) == 2 * end // 80


def test_a_second_signal_does_not_wait(tmp_path):
    """Through the program's own entry."""
    flags = ("--steps=1000000", "--log_every=100", "--eval_every=0", "--agent=random")
    process = small.start(tmp_path / "run", *flags, real=True)
    wait_for_rows(process, tmp_path / "run", 3)
    process.send_signal(signal.SIGSTOP)  # so that both arrive together
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=20)
    assert process.returncode == TERMINATED
    assert json.loads((tmp_path / "run" / "run.json").read_text())["exit"] is None


def wait_for_rows(process, folder, count, seconds=120):
    end = time.monotonic() + seconds
    file = folder / "metrics.jsonl"
    while time.monotonic() < end and process.poll() is None:
        if file.exists() and file.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {count} rows: {process.communicate(timeout=5)}")


@pytest.mark.parametrize("place", ["save", "commit"])
def test_a_best_and_a_lasting_checkpoint_that_failed_are_made_up_for(tmp_path, capfd, place):
    """With the arrays of their own step, though training has gone on."""
    flags = ("--steps=100", "--log_every=20", "--eval_every=40", "--checkpoint.periodic_every=60")
    flags += ("--checkpoint.failures=10",)
    whole = run(tmp_path / "whole", *flags)
    faults = ",".join(f"full@{place}:{number}" for number in (1, 3))
    broken = run(tmp_path / "broken", *flags, f"--debug.fault={faults}", "--terminal.style=plain")
    told = [x for x in capfd.readouterr().out.splitlines() if "No space left" in x]
    assert len(told) == 2 and all(x.endswith("it will be tried again") for x in told)
    for store in ("best", "periodic"):
        homes = [x.path / "checkpoints" / store for x in (whole, broken)]
        assert [sorted(y.name for y in x.iterdir()) for x in homes[:1]] == [
            sorted(y.name for y in x.iterdir()) for x in homes[1:]
        ]
        found = [stores.find(x) for x in homes]
        assert found[0].manifest["counters"]["updates"] == found[1].manifest["counters"]["updates"] > 0
        assert_same_arrays(*(small.arrays_of(x) for x in found))
    assert_same_rows(whole, broken)


def test_a_future_that_was_undone(straight, tmp_path, capfd):
    """As after a kill: what lies beyond is told, set aside, and made again."""
    shutil.copytree(straight.path, tmp_path / "run")
    for step in ("80", "120"):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "latest" / step)
    home = tmp_path / "run" / "checkpoints" / "best"
    (name,) = (x.name for x in home.iterdir())
    seen = []
    flags = (*LENGTH, "--save_every=40", "--checkpoint.keep=100", "--terminal.style=plain")
    again = run(tmp_path / "run", *flags)
    seen = [x for x in capfd.readouterr().out.splitlines() if ".undone" in x]
    assert len(seen) == 1 and f"best/{name}: beyond step 40, which the run goes back to" in seen[0]
    assert [x.name for x in home.iterdir()] == [name]
    assert_same_rows(straight, again)
