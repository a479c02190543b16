"""The sinks as a whole: strict files, repaired on resume, unharmed by any sink that misbehaves."""

import dataclasses
import json
import math
import os
import threading
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxrl.sinks import Limits, Row, ScoreRow, Sink, Sinks, jsonl, make_sinks
from jaxrl.sinks.row import Banner, Note
from jaxrl.sinks.tensorboard import TensorBoard

HASTY = Limits(waiting=8, spill=64, block_s=0.2, patience_s=0.1, close_s=1.0, retry_s=0.01)


def make_row(step, **scalars):
    return Row(step, step // 4, step // 16, step // 100, step / 85, scalars or {"train/loss/rew": 0.5})


def make_score(step, kind="episode", score=-21.0):
    return ScoreRow(step=step, kind=kind, score=score, length=760, env=0, episode=step // 100)


def strict(constant):
    raise AssertionError(f"{constant} is not JSON")


def read(path):
    return [json.loads(line, parse_constant=strict) for line in path.read_text().splitlines()]


def steps_of(path):
    return [row["step"] for row in read(path)]


def quiet(run_dir, **options):
    return make_sinks(run_dir, **{"steps": 400, "terminal_style": "off", "tensorboard": False, **options})


class Recorder(Sink):
    """Keeps what it is given; may raise or block first."""

    takes = (Row, ScoreRow, Note, Banner)

    def __init__(self, name, error=None, gate=None):
        self.name = name
        self.events = []
        self.error = error
        self.gate = gate
        self.closed = False

    def take(self, event):
        if self.gate is not None:
            self.gate.wait(timeout=20)
        if self.error is not None:
            raise self.error
        self.events.append(event)

    def close(self):
        self.closed = True

    def rows(self):
        return [event.step for event in self.events if isinstance(event, Row)]

    def notes(self):
        return [event.text for event in self.events if isinstance(event, Note)]


class FailingDisk(jsonl.JsonlFile):
    """A metrics.jsonl whose disk is full for the first `failures` writes, each torn in the middle."""

    def __init__(self, path, failures):
        super().__init__(path, Row, jsonl.encode_row)
        self.failures = failures

    def take(self, event):
        if self.failures <= 0:
            return super().take(event)
        self.failures -= 1
        whole, torn = os.write, []

        def write(fd, line):
            if torn:
                raise OSError(28, "No space left on device")
            torn.append(True)
            return whole(fd, line[: len(line) // 2])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jsonl.os, "write", write)
            return super().take(event)


# The files of record.


def test_rows_are_strict_json_with_ordered_keys(tmp_path):
    scalars = {"train/loss/rew": 0.1, "fps/env_steps": np.float32(0.1), "a": np.int64(3), "b": 1e-300}
    with quiet(tmp_path) as sinks:
        sinks.write(make_row(100, **scalars))
    [row] = read(tmp_path / "metrics.jsonl")
    assert list(row) == ["step", "agent_steps", "updates", "episodes", "wall_s", *sorted(scalars)]
    assert row == {"step": 100, "agent_steps": 25, "updates": 6, "episodes": 1, "wall_s": 100 / 85, **scalars}


def test_non_finite_values_become_null_and_are_named(tmp_path):
    with quiet(tmp_path) as sinks:
        sinks.write(make_row(0, b=math.nan, a=math.inf, c=np.float32("-inf"), d=1.0, e="text"))
        sinks.post(make_score(0, score=math.nan))
        sinks.write(make_row(100))
    row, clean = read(tmp_path / "metrics.jsonl")
    assert row["nan_keys"] == ["a", "b", "c", "e"] and list(row)[-1] == "nan_keys"
    assert [row[key] for key in "abcde"] == [None, None, None, 1.0, None]
    assert "nan_keys" not in clean
    assert read(tmp_path / "scores.jsonl")[0]["nan_keys"] == ["episode/score"]


def test_score_rows_have_searchable_names(tmp_path):
    with quiet(tmp_path) as sinks:
        sinks.post(make_score(100))
        sinks.post(make_score(200, kind="eval_episode", score=3.0))
    train, evaluation = read(tmp_path / "scores.jsonl")
    assert train == {"step": 100, "episode/score": -21.0, "episode/length": 760, "env": 0, "episode": 1}
    assert list(evaluation) == ["step", "eval_episode/score", "eval_episode/length", "env", "episode"]
    assert (tmp_path / "scores.jsonl").read_text().count("episode/score") == 2


def test_each_row_is_on_disk_after_flush(tmp_path):
    with quiet(tmp_path) as sinks:
        for step in range(0, 500, 100):
            sinks.write(make_row(step))
            assert sinks.flush()
            assert steps_of(tmp_path / "metrics.jsonl")[-1] == step


def test_the_caller_may_reuse_its_dictionary(tmp_path):
    scalars = {"x": 1.0}
    with quiet(tmp_path) as sinks:
        sinks.write(make_row(0, **scalars))
        row = Row(100, 25, 6, 1, 1.0, scalars)
        sinks.write(row)
        scalars["x"] = 2.0
    assert [row["x"] for row in read(tmp_path / "metrics.jsonl")] == [1.0, 1.0]


# Continuing a run.


@pytest.mark.parametrize("tail", ["", '{"step": 400, "agent_', '{"step": 40', "\x00\x00\x00", "{}\n"])
def test_resume_drops_a_torn_tail_and_rows_beyond(tmp_path, tail):
    with quiet(tmp_path) as sinks:
        for step in range(0, 400, 100):
            sinks.write(make_row(step))
            sinks.post(make_score(step))
    whole = {name: (tmp_path / name).read_text() for name in ("metrics.jsonl", "scores.jsonl")}
    for name, text in whole.items():
        (tmp_path / name).write_text(text + tail)
    with quiet(tmp_path, resume_step=200) as sinks:
        sinks.write(make_row(300))
        sinks.post(make_score(300))
    assert steps_of(tmp_path / "metrics.jsonl") == [0, 100, 200, 300]
    assert steps_of(tmp_path / "scores.jsonl") == [0, 100, 200, 300]
    assert (tmp_path / "metrics.jsonl").read_text() == whole["metrics.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "scores.jsonl", "tables"]


def test_resume_with_nothing_to_repair_leaves_the_file_alone(tmp_path):
    with quiet(tmp_path) as sinks:
        sinks.write(make_row(0))
    before = os.stat(tmp_path / "metrics.jsonl")
    assert jsonl.cut(tmp_path / "metrics.jsonl", 0) == jsonl.Cut(kept=1)
    assert os.stat(tmp_path / "metrics.jsonl").st_ino == before.st_ino
    assert jsonl.cut(tmp_path / "absent.jsonl", 0) == jsonl.Cut()


def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 100}')
    with quiet(tmp_path, resume_step=100) as sinks:
        sinks.write(make_row(200))
    assert steps_of(path) == [0, 100, 200]


def test_every_truncation_of_a_file_is_repaired(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = "".join(jsonl.encode_row(make_row(step)) + "\n" for step in (0, 100, 200)).encode()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        jsonl.cut(path, 100)
        steps = steps_of(path)
        assert steps == [0, 100][: len(steps)]
        assert len(steps) >= min(2, whole[:size].count(b"\n"))


def test_a_new_run_sets_older_files_aside(tmp_path):
    for _ in range(3):
        with quiet(tmp_path) as sinks:
            sinks.write(make_row(0))
    assert steps_of(tmp_path / "metrics.jsonl") == [0]
    assert steps_of(tmp_path / "metrics.jsonl.1") == steps_of(tmp_path / "metrics.jsonl.2") == [0]


def test_an_unusable_directory_is_an_error_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        quiet(tmp_path / "file" / "run")
    (tmp_path / "tb").write_text("")
    with pytest.raises(OSError):
        quiet(tmp_path, tensorboard=True)


# TensorBoard, read by its own reader.


def read_tensorboard(path):
    reader = EventAccumulator(str(path), size_guidance={"scalars": 0}, purge_orphaned_data=True)
    reader.Reload()
    return {tag: reader.Scalars(tag) for tag in reader.Tags()["scalars"]}


def test_tensorboard_holds_the_same_steps_values_and_times(tmp_path):
    start = time.time()
    with quiet(tmp_path, tensorboard=True) as sinks:
        for step in range(0, 500, 100):
            sinks.write(make_row(step, **{"train/loss/rew": step / 7, "train/ent/action": math.nan}))
    rows = read(tmp_path / "metrics.jsonl")
    tags = read_tensorboard(tmp_path / "tb")
    names = ["agent_steps", "episodes", "train/ent/action", "train/loss/rew", "updates", "wall_s"]
    assert sorted(tags) == names
    for tag, events in tags.items():
        assert [event.step for event in events] == [row["step"] for row in rows]
        values = [math.nan if row[tag] is None else row[tag] for row in rows]
        np.testing.assert_array_equal([e.value for e in events], np.float32(values))
        times = np.array([event.wall_time for event in events])
        np.testing.assert_allclose(times - times[0], [row["wall_s"] for row in rows], atol=1e-5)
        assert start - 1 <= times[0] <= time.time() + 1


def test_tensorboard_resume_purges_what_lies_beyond(tmp_path):
    with quiet(tmp_path, tensorboard=True) as sinks:
        for step in range(0, 500, 100):
            sinks.write(make_row(step, loss=1.0))
    with quiet(tmp_path, tensorboard=True, resume_step=200) as sinks:
        sinks.write(make_row(300, loss=2.0))
    events = read_tensorboard(tmp_path / "tb")["loss"]
    assert [(e.step, e.value) for e in events] == [(0, 1), (100, 1), (200, 1), (300, 2)]
    assert [e.step for e in events] == steps_of(tmp_path / "metrics.jsonl")


def test_tensorboard_resumes_after_a_torn_file_and_within_one_second(tmp_path):
    for attempt in range(3):
        sink = TensorBoard(tmp_path, resume_step=100 * attempt if attempt else None)
        sink.take(make_row(100 * attempt, loss=float(attempt)))
        sink.take(make_row(100 * attempt + 100, loss=-1.0))
        sink.close()
        newest = max(tmp_path.iterdir())
        newest.write_bytes(newest.read_bytes()[:-9])  # torn inside the record of the last row
    assert len(list(tmp_path.iterdir())) == 3
    events = read_tensorboard(tmp_path)["loss"]
    assert [(e.step, e.value) for e in events] == [(0, 0), (100, 1), (200, 2)]


def test_tensorboard_flushes_while_running(tmp_path):
    with quiet(tmp_path, tensorboard=True) as sinks:
        for step in (0, 100, 200):
            sinks.write(make_row(step, loss=1.0))
        wait_until(lambda: len(read_tensorboard(tmp_path / "tb").get("loss", [])) == 3)


# Sinks that misbehave.


def wait_until(reached, timeout_s=5.0):
    end = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < end, "not reached in time"
        time.sleep(0.01)


@pytest.mark.parametrize("error", [ValueError("bad tag"), OSError(28, "No space left"), SystemExit(1)])
def test_a_sink_that_raises_is_switched_off_and_named(tmp_path, error):
    broken, screen = Recorder("broken", error), Recorder("screen")
    sinks = Sinks([jsonl.metrics_file(tmp_path)], [broken, screen], HASTY)
    for step in range(0, 500, 100):
        sinks.write(make_row(step))
        wait_until(lambda step=step: step in screen.rows())
    sinks.close()
    rows = read(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == screen.rows() == [0, 100, 200, 300, 400]
    assert [row.get("sinks/broken_dropped") for row in rows] == [None, 1, 2, 3, 4]
    [note] = screen.notes()
    assert "broken is off" in note and str(error) in note
    assert broken.closed and sinks.lost == {}


def test_a_hanging_sink_delays_nobody(tmp_path):
    gate = threading.Event()
    hanging, screen = Recorder("hanging", gate=gate), Recorder("screen")
    sinks = Sinks([jsonl.metrics_file(tmp_path), jsonl.scores_file(tmp_path)], [hanging, screen], HASTY)
    slowest = 0.0
    for step in range(0, 2000, 100):
        begin = time.perf_counter()
        sinks.write(make_row(step))
        sinks.post(make_score(step))
        slowest = max(slowest, time.perf_counter() - begin)
        time.sleep(0.02)
    assert sinks.flush(timeout_s=1)
    assert (
        steps_of(tmp_path / "metrics.jsonl") == steps_of(tmp_path / "scores.jsonl") == [*range(0, 2000, 100)]
    )
    wait_until(lambda: screen.rows()[-1:] == [1900])
    assert slowest < 0.1
    assert any("hanging hangs" in note for note in screen.notes())
    assert sum(thread.name == "sinks" for thread in threading.enumerate()) == 2  # one of them hangs
    gate.set()  # it answers again, and goes on with the newest events
    wait_until(lambda: hanging.rows()[-1:] == [1900])
    sinks.write(make_row(2000))
    sinks.close()
    assert hanging.rows()[-1] == 2000 and hanging.closed
    assert read(tmp_path / "metrics.jsonl")[-1]["sinks/hanging_dropped"] > 0
    assert sum(thread.name == "sinks" for thread in threading.enumerate()) == 0


def test_close_is_bounded_while_sinks_hang_for_ever(tmp_path, capfd):
    gate = threading.Event()
    hanging = [Recorder(name, gate=gate) for name in ("first", "second")]
    screen = Recorder("screen")
    sinks = Sinks([jsonl.metrics_file(tmp_path)], [*hanging, screen], HASTY)
    for step in range(0, 500, 100):
        sinks.write(make_row(step))
    begin = time.monotonic()
    sinks.close()
    assert time.monotonic() - begin < HASTY.close_s * 1.5
    gate.set()
    assert steps_of(tmp_path / "metrics.jsonl") == screen.rows() == [0, 100, 200, 300, 400]
    assert "first dropped 5 events, steps 0 to 400" in capfd.readouterr().err


def test_a_full_disk_loses_nothing_once_there_is_room(tmp_path):
    screen = Recorder("screen")
    disk = FailingDisk(tmp_path / "metrics.jsonl", failures=3)
    sinks = Sinks([disk], [screen], HASTY)
    sinks.write(make_row(0))
    wait_until(lambda: sinks.failure is not None or disk.failures == 0)
    for step in range(100, 500, 100):
        sinks.write(make_row(step))
    wait_until(lambda: sinks.failure is None and sinks.flush())
    sinks.write(make_row(500))
    sinks.close()
    rows = read(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 100, 200, 300, 400, 500]
    assert rows[-1]["sinks/metrics_errors"] == 3
    trouble, relief = screen.notes()
    assert "No space left" in trouble and "nothing lost" in relief


def test_a_disk_that_stays_full_never_stops_the_caller_for_long_and_the_loss_is_named(tmp_path, capfd):
    sinks = Sinks([FailingDisk(tmp_path / "metrics.jsonl", failures=10**9)], [], HASTY)
    begin = time.monotonic()
    for step in range(0, 4000, 100):
        sinks.write(make_row(step))
    assert time.monotonic() - begin < 2 * HASTY.block_s  # waits once, then keeps rows in memory
    assert not sinks.flush(timeout_s=5) and "No space left" in (sinks.failure or "")
    sinks.close()
    assert read(tmp_path / "metrics.jsonl") == []
    assert sinks.lost == {"metrics": 40}
    words = capfd.readouterr().err
    assert "metrics lacks 40 events, steps 0 to 3900" in words and "No space left" in words


def test_more_than_memory_should_hold_is_counted_and_named(tmp_path, capfd):
    sinks = Sinks([FailingDisk(tmp_path / "metrics.jsonl", failures=10**9)], [], HASTY)
    for step in range(100):
        sinks.write(make_row(step))
    sinks.close()
    assert sinks.lost == {"metrics": 100}
    assert "metrics lacks 100 events, steps 0 to 99" in capfd.readouterr().err


def test_a_slow_file_of_record_makes_the_caller_wait_instead_of_losing(tmp_path):
    class Slow(jsonl.JsonlFile):
        def take(self, event):
            time.sleep(0.005)
            super().take(event)

    sinks = Sinks([Slow(tmp_path / "metrics.jsonl", Row, jsonl.encode_row)], [], HASTY)
    for step in range(100):
        sinks.write(make_row(step))
    sinks.close()
    assert steps_of(tmp_path / "metrics.jsonl") == [*range(100)]


# The contract of Sinks.


def test_close_delivers_everything_in_order(tmp_path):
    screen = Recorder("screen")
    sinks = Sinks([jsonl.metrics_file(tmp_path), jsonl.scores_file(tmp_path)], [screen], Limits(waiting=3000))
    for step in range(1000):
        sinks.write(make_row(step))
        sinks.post(make_score(step))
    sinks.close()
    sinks.close()
    assert steps_of(tmp_path / "metrics.jsonl") == steps_of(tmp_path / "scores.jsonl") == [*range(1000)]
    assert [type(event) for event in screen.events] == [Row, ScoreRow] * 1000
    assert screen.closed


def test_the_files_are_closed_when_the_training_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), quiet(tmp_path) as sinks:
        sinks.write(make_row(0))
        sinks.write(make_row(1 // 0))
    assert steps_of(tmp_path / "metrics.jsonl") == [0]
    sinks.write(make_row(100))  # too late, but never an exception in the training
    assert sinks.lost == {"metrics": 1}


def test_write_costs_microseconds(tmp_path):
    row = make_row(100, **{f"train/metric_{i}": i / 7 for i in range(60)})
    costs = []
    with quiet(tmp_path, tensorboard=True) as sinks:
        for _ in range(300):
            begin = time.perf_counter()
            sinks.write(row)
            costs.append(time.perf_counter() - begin)
            time.sleep(0.001)
    assert np.median(costs) < 50e-6, f"median {np.median(costs) * 1e6:.0f} us"


def test_progress_costs_microseconds(tmp_path):
    with quiet(tmp_path) as sinks:
        begin = time.perf_counter()
        for step in range(10_000):
            sinks.progress(step, 10_000, {"updates": step})
        assert (time.perf_counter() - begin) / 10_000 < 20e-6


def test_one_thread_however_many_sinks(tmp_path):
    others = set(threading.enumerate())
    with quiet(tmp_path, tensorboard=True, terminal_style="plain") as sinks:
        sinks.write(make_row(0))
        assert sinks.flush()
        assert [thread.name for thread in set(threading.enumerate()) - others] == ["sinks"]


def test_success_stands_in_rows_of_tasks_that_define_it(tmp_path):
    rows = [dataclasses.replace(make_score(100), success=x) for x in (True, False, None)]
    rows.append(dataclasses.replace(make_score(200, kind="eval_episode"), success=True))
    path = tmp_path / "scores.jsonl"
    path.write_text("".join(jsonl.encode_score(x) + "\n" for x in rows))
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [x.get("episode/success") for x in found] == [1, 0, None, None]
    assert found[3]["eval_episode/success"] == 1 and "episode/success" not in found[2]
    assert jsonl.last_episodes(path, 10) == rows[:3]


class Patient(Recorder):
    """A sink that takes its time."""

    slow_s = 0.2


def test_a_slow_sink_delays_nobody(tmp_path):
    gate, screen = threading.Event(), Recorder("screen")
    slow = Patient("slow", gate=gate)
    with make_sinks(
        tmp_path, steps=400, tensorboard=False, terminal_style="off", more=[slow, screen]
    ) as sinks:
        for step in range(0, 400, 100):
            sinks.write(make_row(step))
        assert sinks.flush()
        assert screen.rows() == steps_of(tmp_path / "metrics.jsonl") == [0, 100, 200, 300]
        assert slow.rows() == []
        slow.say("offline, since nobody answers")
        gate.set()
    assert slow.rows() == [0, 100, 200, 300] and slow.closed
    assert screen.notes() == ["offline, since nobody answers"]


@pytest.mark.parametrize("hurried", [False, True])
def test_a_slow_sink_that_does_not_end_is_left_with_a_line(tmp_path, hurried):
    gate, screen = threading.Event(), Recorder("screen")
    sinks = Sinks([jsonl.metrics_file(tmp_path)], [Patient("slow", gate=gate), screen], HASTY)
    sinks.write(make_row(0))
    begin = time.monotonic()
    sinks.close(hurried)
    assert time.monotonic() - begin < 4
    gate.set()
    assert steps_of(tmp_path / "metrics.jsonl") == [0]
    assert any("slow was left before it had finished" in x for x in screen.notes())


def test_a_slow_sink_that_raises_is_off_and_counted(tmp_path):
    screen = Recorder("screen")
    sinks = Sinks([jsonl.metrics_file(tmp_path)], [Patient("slow", RuntimeError("no")), screen], HASTY)
    sinks.write(make_row(0))
    for _ in range(100):
        time.sleep(0.01)
        if screen.notes():
            break
    sinks.write(make_row(100))
    sinks.close()
    assert screen.notes()[0] == "slow is off for the rest of this run (RuntimeError: no)"
    assert read(tmp_path / "metrics.jsonl")[1]["sinks/slow_errors"] == 1
