"""One process per run directory, and one that starts it again."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
import small
from small import assert_same_arrays, assert_same_rows, run

from jaxrl import learners, rundir, supervise
from jaxrl.exits import Locked

ROOT = pathlib.Path(__file__).parents[1]
LENGTH = ("--steps=120", "--log_every=40", "--eval_every=80", "--save_every=40")
ENDLESS = ("--steps=1000000", "--log_every=40", "--eval_every=0", "--agent=random")


@pytest.fixture(autouse=True)
def small_learner(monkeypatch):
    monkeypatch.setitem(learners.LEARNERS, "dreamer", small.make_learner)


def rows_of(folder, count, process, seconds=60):
    """Waits until a run has so many rows."""
    end, file = time.monotonic() + seconds, folder / "metrics.jsonl"
    while not (file.exists() and file.read_bytes().count(b"\n") >= count):
        assert time.monotonic() < end and process.poll() is None, process.communicate(timeout=5)
        time.sleep(0.02)


def holder(folder):
    """The process that has the lock, by what it wrote there."""
    return int(re.search(r"pid (\d+) on \S+ since \d{4}-\d\d-\d\dT", (folder / "run.lock").read_text())[1])


def test_the_second_process_leaves_before_it_imports_jax(tmp_path):
    folder = tmp_path / "run"
    first = small.start(folder, *ENDLESS, real=True)
    try:
        rows_of(folder, 2, first)
        start = time.monotonic()
        script = "import sys; from jaxrl import train; code = train.main(sys.argv[1:]); "
        script += "sys.exit(100 if 'jax' in sys.modules else code)"
        words = [sys.executable, "-c", script, *small.TINY, *ENDLESS, f"--logdir={folder}"]
        second = subprocess.run(words, check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert time.monotonic() - start < 2
        assert second.returncode == 75, second
        assert second.stdout == "" and second.stderr.count("\n") == 1
        assert f"in use by pid {first.pid} on " in second.stderr and " since 20" in second.stderr
        assert first.poll() is None and holder(folder) == first.pid
        first.kill()
        first.communicate()
        rundir.check_free(str(folder))  # a lock dies with its process
    finally:
        first.kill()
        first.communicate()
    assert run(folder, *ENDLESS, "--steps=200").note["exit"] == "done"


def test_looking_does_not_keep_the_run_out(tmp_path):
    """A process that only looks has the lock for an instant, which another one may hit."""
    folder = tmp_path / "run"
    folder.mkdir()
    lock = rundir.take_lock(folder)
    with pytest.raises(Locked, match="in use by pid"):
        rundir.check_free(str(folder))
    with pytest.raises(Locked, match="in use by pid"):
        rundir.take_lock(folder)
    script = "import fcntl, sys, time; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_SH); "
    script += "print('ready', flush=True); time.sleep(0.05)"
    os.close(lock)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(folder / "run.lock")], stdout=subprocess.PIPE, text=True
    ) as looker:
        assert looker.stdout.readline() == "ready\n"
        os.close(rundir.take_lock(folder))


def test_a_run_that_dies_is_started_again(tmp_path):
    """Each process makes 59 steps and dies; what they make together is the run that nobody killed."""
    straight = run(tmp_path / "straight", *LENGTH)
    # The pause is for the checkpoint that is on its way: these steps are faster than any disk.
    flags = (*LENGTH, "--supervise", "--debug.fault=hang=1@act:59,kill@act:60")
    process = small.start(tmp_path / "run", *flags)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    lines = [line for line in err.splitlines() if "died" in line]
    assert len(lines) == len(err.splitlines()) == 2
    assert all("SIGKILL" in x and "starting it again from its last checkpoint" in x for x in lines)
    whole = small.Run(tmp_path / "run")
    assert whole.note["exit"] == "done" and len(whole.note["starts"]) == len(lines) + 1
    assert_same_rows(straight, whole)
    assert straight.scores == whole.scores
    assert_same_arrays(straight.arrays(), whole.arrays())


def test_a_run_that_gets_nowhere_is_given_up(tmp_path):
    """Three deaths without progress; the code tells the signal. The default directory stays the same."""
    words = [sys.executable, "-m", "jaxrl.train", "--config=debug", "--agent=random", "--terminal.style=off"]
    words += ["--tensorboard.enabled=false", "--debug.fault=kill@start", "--supervise"]
    done = subprocess.run(
        words,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 128 + signal.SIGKILL and len(lines) == 3, lines
    assert "SIGKILL before its first row; starting it again" in lines[0]
    assert "giving up after 3 deaths without progress" in lines[2]
    (folder,) = (tmp_path / "runs" / "debug").iterdir()
    note = json.loads((folder / "run.json").read_text())
    assert len(note["starts"]) == 3 and "--supervise" not in note["starts"][0]["argv"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_are_passed_on(tmp_path, number, code):
    """The run saves and ends; it is not started again."""
    process = small.start(tmp_path / "run", *ENDLESS, "--supervise", real=True)
    rows_of(tmp_path / "run", 2, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code and "stopping and saving" in err and "died" not in err
    cut = small.Run(tmp_path / "run")
    assert cut.note["exit"] == "stopped"
    assert (cut.path / "checkpoints" / "latest" / str(cut.note["env_steps"]) / "manifest.json").exists()


def test_a_run_does_not_outlive_its_supervisor(tmp_path):
    """It would hold the directory, and nobody would know of it; so it saves and ends."""
    folder = tmp_path / "run"
    process = small.start(folder, *ENDLESS, "--supervise", real=True)
    rows_of(folder, 2, process)
    assert holder(folder) != process.pid
    process.kill()
    process.communicate(timeout=20)
    end = time.monotonic() + 10
    while small.Run(folder).note["exit"] != "stopped":
        assert time.monotonic() < end
        time.sleep(0.05)


def test_other_ends_are_passed_on(tmp_path, capfd):
    """Exit codes of errors are no deaths; wrong settings are told by the supervisor itself."""
    process = small.start(tmp_path / "run", *LENGTH, "--supervise", "--opt.lr=1", "--opt.max_skipped=5")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 70 and "died" not in err
    assert small.train.main(["--config=debug", "--supervise", "--steps=0"]) == 2
    assert "steps=0" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("code", "number"),
    [(-9, 9), (137, 9), (-11, 11), (139, 11), (134, 6), (143, 15), (130, 2), (0, None), (1, None)]
    + [(code, None) for code in (2, 66, 70, 74, 75, 127, 128, 255)],
)
def test_what_counts_as_a_death(code, number):
    assert supervise.signal_of(code) == number


@pytest.mark.parametrize(
    ("codes", "steps", "asked", "code", "starts"),
    [
        ([-9, -9, -9], [0, 0, 0], None, 137, 3),
        ([-9, -9, -9, -9, 0], [0, 0, 20, 20, 20], None, 0, 5),  # progress begins the count anew
        ([-9, 134, -11, -6], [20, 20, 20, 20], None, 134, 4),
        ([-15], [0], None, 143, 1),
        ([130], [0], None, 130, 1),
        ([-9], [0], signal.SIGTERM, 137, 1),
        ([75], [0], None, 75, 1),
    ],
)
def test_when_it_is_started_again(tmp_path, monkeypatch, capfd, codes, steps, asked, code, starts):
    """The child is played: its exit codes, and the step of the checkpoint that it leaves."""
    child = supervise.Child([])
    child.asked, made = asked, iter(zip(codes, steps, strict=True))
    begun = []

    def play():
        ended, step = next(made)
        begun.append(step)
        if step:
            folder = tmp_path / "checkpoints" / "latest" / str(step)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "manifest.json").touch()
        return ended

    monkeypatch.setattr(child, "run", play)
    assert supervise.until_it_ends(child, tmp_path) == code
    assert len(begun) == starts
    assert capfd.readouterr().err.count("starting it again") == starts - 1


def test_progress_is_a_checkpoint_or_a_row(tmp_path):
    assert supervise.progress(tmp_path) == (-1, -1)
    for name in ("40", "100.2", "200", "300.damaged", "best"):
        (tmp_path / "checkpoints" / "latest" / name).mkdir(parents=True)
        if name != "200":  # begun, not committed
            (tmp_path / "checkpoints" / "latest" / name / "manifest.json").touch()
    assert supervise.progress(tmp_path) == (100, -1)
    (tmp_path / "metrics.jsonl").write_text('{"step": 40}\n{"step": 80, "a": 1}\n{"step": 120, "upd')
    assert supervise.progress(tmp_path) == (100, 80)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--supervise", "--steps=5"], ["--steps=5"]),
        (["--steps=5", "-supervise=true"], ["--steps=5"]),
        (["--flagfile=x", "--supervise"], ["--flagfile=x", "--nosupervise"]),
    ],
)
def test_the_command_without_the_flag(argv, words):
    assert supervise.unsupervised(argv) == words


def test_the_supervisor_stays_small():
    script = "import sys; import jaxrl.supervise, jaxrl.train; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
