"""Signals at every moment: what is begun is finished and saved, what has not begun is not waited for."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
import small
from small import assert_same_arrays, assert_same_rows, run

from jaxrl import learners, runtime, train

ROOT = pathlib.Path(__file__).parents[1]
LENGTH = ("--steps=120", "--log_every=40", "--eval_every=80")
ENDLESS = ("--steps=1000000", "--log_every=40", "--eval_every=0")
TERMINATED, INTERRUPTED = 143, 130
CODES = [(signal.SIGTERM, TERMINATED), (signal.SIGINT, INTERRUPTED)]
# Deadlocks inside C, like a driver that does not answer, where Python's own handlers never run.
STUCK = "import ctypes; lock = ctypes.create_string_buffer(64); call = ctypes.CDLL(None).pthread_mutex_lock; "


@pytest.fixture(autouse=True)
def small_learner(monkeypatch):
    monkeypatch.setitem(learners.LEARNERS, "dreamer", small.make_learner)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(learners.LEARNERS, "dreamer", small.make_learner)
        return run(tmp_path_factory.mktemp("straight") / "run", *LENGTH)


def popen(words):
    return subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(what, process, seconds=60):
    """Until `what` answers something, which is returned."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            if found := what():
                return found
        time.sleep(0.01)
    raise AssertionError(process.communicate(timeout=5))


def is_saved(cut):
    """There is a checkpoint of the step at which the run says that it has stopped."""
    return (cut.path / "checkpoints" / "latest" / str(cut.note["env_steps"]) / "manifest.json").exists()


def ended(process, seconds):
    """(exit code, stderr, seconds until its end) of a process that must end soon."""
    start = time.monotonic()
    _, err = process.communicate(timeout=seconds + 20)
    assert time.monotonic() - start < seconds
    return process.returncode, err, time.monotonic() - start


@pytest.mark.parametrize(("number", "code"), CODES)
def test_while_things_are_imported(tmp_path, number, code):
    process = small.start(tmp_path / "run", *ENDLESS, real=True)
    line = process.stdout.readline()
    assert "starting debug on toy_clock" in line
    time.sleep(0.3)
    process.send_signal(number)
    found, err, _ = ended(process, 2)
    assert found == code and err == f"\njaxrl: {number.name}: stopped before the run began\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("number", "code"), CODES)
def test_while_programs_are_compiled(tmp_path, number, code):
    """The run directory says so; the lock is free, and the same command begins."""
    folder = tmp_path / "run"
    process = small.start(folder, *ENDLESS, "--terminal.style=plain", "--debug.fault=hang@compile")
    wait_for(lambda: "compiling" in process.stdout.readline(), process)
    time.sleep(0.1)
    process.send_signal(number)
    found, err, _ = ended(process, 2)
    assert found == code and err == f"\njaxrl: {number.name}: stopped before the run began\n"
    note = json.loads((folder / "run.json").read_text())
    assert note["exit"] == "stopped before it began" and note["ended"]
    assert run(folder, "--steps=8", "--log_every=0", "--eval_every=0").note["exit"] == "done"


def test_a_compilation_is_not_waited_for(tmp_path):
    """Of the real learner, without a cache: some ten seconds in which XLA holds two threads."""
    folder = tmp_path / "run"
    flags = ("--config=debug", f"--logdir={folder}", "--runtime.compile_cache=off", "--model.size=1m")
    words = [sys.executable, "-m", "jaxrl.train", *flags, "--batch_length=32"]
    with popen(words) as process:
        wait_for(lambda: "compiling" in process.stdout.readline(), process)
        time.sleep(3)  # tracing takes one or two
        process.terminate()
        found, err, _ = ended(process, 2)
    assert found == TERMINATED and "stopped before the run began" in err
    assert not (folder / "metrics.jsonl").read_bytes()


def test_a_dry_run_is_not_waited_for(tmp_path):
    process = small.start(tmp_path / "run", *ENDLESS, "--dry_run", "--runtime.compile_cache=off")
    wait_for(process.stdout.readline, process)
    process.send_signal(signal.SIGINT)
    assert ended(process, 2)[0] == INTERRUPTED


@pytest.mark.parametrize(
    ("fault", "code", "step"),
    [
        ("term@act:58", TERMINATED, 58),
        ("int@learn:9", INTERRUPTED, None),
        ("term@eval:4", TERMINATED, 80),
        ("term@eval:20", TERMINATED, 120),  # the last one
        ("int@flush:2", INTERRUPTED, 40),
        ("term@save:1", TERMINATED, None),
        ("term@metrics:3", TERMINATED, None),
    ],
)
def test_at_a_place_of_the_loop(straight, tmp_path, capfd, fault, code, step):
    """The step that it is at is saved, and the run that goes on from there is the same run."""
    save = ("--save_every=40",)
    cut = run(tmp_path / "run", *LENGTH, *save, f"--debug.fault={fault}", code=code)
    assert "stopping and saving" in capfd.readouterr().err
    assert cut.note["exit"] == "stopped" and step in (None, cut.note["env_steps"])
    assert is_saved(cut)
    whole = run(tmp_path / "run", *LENGTH, *save)
    assert_same_rows(straight, whole)
    assert straight.scores == whole.scores
    assert_same_arrays(straight.arrays(), whole.arrays())


def test_a_long_evaluation_and_a_slow_disk_are_not_in_the_way(tmp_path):
    """From the signal to the end of the process; the checkpoint is complete."""
    flags = ("--eval_eps=100000", "--eval_every=40", "--steps=1000000", "--log_every=40")
    process = small.start(tmp_path / "run", *flags, "--debug.fault=hang=1@commit", "--save_every=40")
    wait_for((tmp_path / "run" / "metrics.jsonl").read_bytes, process)
    time.sleep(0.5)
    process.terminate()
    assert ended(process, 10)[0] == TERMINATED
    cut = small.Run(tmp_path / "run")
    assert cut.note["env_steps"] == 40 and cut.steps() == [0] and is_saved(cut)


@pytest.mark.parametrize("asked", [True, False], ids=["in the loop", "before it"])
def test_a_main_thread_that_is_held_up_in_a_library(asked):
    """The first signal in the loop waits for it, since there is something to save; the second does not."""
    script = "from jaxrl.train import StopRequest\nwith StopRequest() as stop:\n"
    script += f" {STUCK}call(lock); {'stop(); ' if asked else ''}print('ready', flush=True); call(lock)"
    process = popen([sys.executable, "-c", script])
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    if asked:
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
    assert ended(process, 3)[0] == (INTERRUPTED if asked else TERMINATED)


@pytest.mark.parametrize(
    ("gap_s", "numbers", "left"),
    [
        (0, [signal.SIGTERM, signal.SIGTERM], []),  # sent to a group, and passed on by its first process
        (0, [signal.SIGTERM, signal.SIGINT], [INTERRUPTED]),
        (0.2, [signal.SIGTERM, signal.SIGTERM], [TERMINATED]),
        (0.2, [signal.SIGINT, signal.SIGTERM], [TERMINATED]),
    ],
)
def test_a_second_signal(monkeypatch, capfd, gap_s, numbers, left):
    codes = []
    monkeypatch.setattr(runtime, "leave_at_once", codes.append)
    with train.StopRequest() as stop:
        assert not stop() and stop.code == 0
        for number in numbers:
            os.kill(os.getpid(), number)
            assert stop() and stop.code == 128 + numbers[0]
            time.sleep(gap_s)
    assert codes == left
    assert capfd.readouterr().err.count("stopping and saving") == 1


def test_other_handlers_are_left_alone(monkeypatch):
    """And woken up as before: a signal of somebody else is none of ours."""
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *args: seen.append(args[0]))
    monkeypatch.setattr(train, "PATIENCE_S", 0.05)
    try:
        with train.StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.2)
            assert seen == [signal.SIGUSR1] and not stop()
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_preemption_notice_of_connected_processes(tmp_path):
    """jax.distributed catches SIGTERM itself; the run hears of it there, and does not take it away."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = f"import jax, sys; jax.distributed.initialize('127.0.0.1:{port}', 1, 0); "
    script += "sys.path.append('tests'); import small; sys.exit(small.entry())"
    words = [sys.executable, "-c", script, *small.TINY, f"--logdir={tmp_path / 'run'}", *ENDLESS]
    with popen(words) as process:
        wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").read_bytes().count(b"\n") > 2, process)
        process.terminate()
        code, err, _ = ended(process, 10)
    assert code == TERMINATED and "SIGTERM: stopping and saving" in err
    assert "SIGTERM caught" in err  # by jax
    cut = small.Run(tmp_path / "run")
    assert cut.note["exit"] == "stopped" and is_saved(cut)
