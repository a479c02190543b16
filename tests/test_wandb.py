"""Weights & Biases: what is sent, read back from an offline run; and that nothing it does reaches a run."""

import base64
import dataclasses
import json
import math
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import types

import pytest
import small

from jaxrl import learners
from jaxrl.config import Config, WandbConfig, to_dict
from jaxrl.sinks import Row, Samples, Saved, Sinks, Video, jsonl, wandb_process
from jaxrl.sinks import wandb as sink_of_wandb
from jaxrl.sinks.link import Broken
from jaxrl.sinks.row import Note, Sink
from jaxrl.sinks.wandb import COLUMNS, NEWEST, Patience, WandB, artifact_of, nested
from jaxrl.sinks.wandb_process import LINGER_S, OLD_ROWS, WAITING, Uplink, reason

KEY = "0123456789abcdef" * 2 + "01234567"  # as W&B's look like
OFFLINE = WandbConfig(enabled=True, mode="offline")
CONFIG = {"task": "atari_pong", "agent": "dreamer", "env.size": 64, "device": "auto"}
GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///ywAAAAAAQABAAACAUwAOw==")
HASTY = Patience(server=1.0, start=5.0, offline=10.0, stall=1.0, finish=1.0)
MARK = re.compile(r"wandb sync (\S+)")


def make_row(step, episodes=0, **scalars):
    return Row(step, step // 4, step // 16, episodes, step / 85, scalars or {"train/loss/rew": 0.5 + step})


def make_run(folder, episodes=0):
    """A run directory as a trainer leaves it, without arrays."""
    for name in ("tables", "checkpoints/best/600", "checkpoints/latest/700"):
        (folder / name).mkdir(parents=True)
    versions = {"jax": "0.10.2"}
    record = {
        "id": "b69f48847239",
        "config": "atari100k",
        "exit": "done",
        "versions": versions,
        "lineage": [],
    }
    (folder / "run.json").write_text(json.dumps(record))
    lines = [episode_line(n, 10 * n) for n in range(1, episodes + 1)]
    (folder / "tables/episodes.jsonl").write_text("".join(lines))
    saved = [save_entry(folder, "best", 600, -19.0), save_entry(folder, "latest", 700, None)]
    (folder / "checkpoint_log.jsonl").write_text("".join(json.dumps(x) + "\n" for x in saved))
    return saved


def episode_line(number, step):
    row = {"episode": number, "env_steps": step, "score": number / 2, "length": 9, "seconds": step / 10}
    return json.dumps(row | {"env": 0}) + "\n"


def save_entry(folder, store, step, score):
    place = folder / "checkpoints" / store / str(step)
    (place / "arrays").mkdir()
    (place / "arrays" / "0").write_bytes(bytes(1000))
    (place / "manifest.json").write_text("{}")
    counters = {"step": step, "agent_steps": step // 4, "updates": step // 16, "episodes": 3}
    told = {"event": "saved", "store": store, "name": str(step), "reason": "best", "score": score}
    return (
        told | counters | {"run_s": 161.5, "seconds": 0.25, "bytes": 1002, "time": "2026-01-01T00:00:00+0000"}
    )


class Console(Sink):
    """Keeps what a human would see."""

    takes = (Note,)

    def __init__(self):
        self.lines = []

    def take(self, event):
        self.lines.append(event.text)


def make_sink(folder, settings=OFFLINE, resume_step=None, patience=None, said=None):
    sink = WandB(folder, settings, CONFIG, {}, resume_step, patience)
    sink.say = (said if said is not None else []).append
    return sink


# Reading an offline run: a log of protocol buffers in blocks of 32 KiB, as LevelDB writes it.


def records(folder):
    from wandb.proto import wandb_internal_pb2

    [file] = folder.glob("*.wandb")
    raw, at, whole, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(raw):
        if (left := 32_768 - at % 32_768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", raw[at : at + 7])
        whole += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the only or the last part
            found.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return found


def kinds(folder, kind):
    return [getattr(x, kind) for x in records(folder) if x.WhichOneof("record_type") == kind]


def history(folder):
    """What was logged, call by call."""
    rows = []
    for record in kinds(folder, "history"):
        row = {}
        for item in record.item:
            place, (*outer, name) = row, item.nested_key or [item.key]
            for level in outer:
                place = place.setdefault(level, {})
            place[name] = json.loads(item.value_json)
        rows.append(row)
    return rows


def rows_of(folder):
    return [row for row in history(folder) if "agent_steps" in row]


def table_of(folder, name):
    """The newest version."""
    logged = [row[f"tables/{name}"] for row in history(folder) if f"tables/{name}" in row]
    return json.loads((folder / "files" / logged[-1]["path"]).read_text())


def offline_folder(said):
    [line] = [line for line in said if "wandb sync" in line]
    return pathlib.Path(MARK.search(line)[1])


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """An offline run that was given everything once: (its folder, run directory, lines)."""
    folder, said = tmp_path_factory.mktemp("sent") / "pong-1", []
    best, latest = make_run(folder, episodes=NEWEST + 500)
    sink = make_sink(folder, said=said)
    sink.take(make_row(0))
    sink.take(make_row(400, 1500, **{"train/loss/rew": math.nan, "train/opt/loss": math.inf, "fine": 1.5}))
    for entry in (best, latest):
        sink.take(Saved(folder / "checkpoints" / entry["store"] / entry["name"], entry))
    (folder / "one.gif").write_bytes(GIF)
    (folder / "two.webp").write_bytes(b"not shown by W&B")
    sink.take(Video(400, "eval_episode/video", folder / "one.gif", b""))
    sink.take(Video(400, "report/openloop", folder / "two.webp", GIF))
    game = {
        "env": 0,
        "episode": 0,
        "score": -20.0,
        "length": 60,
        "actions": [5] * 60,
        "rewards": [1 / 3] * 60,
    }
    sink.take(Samples(400, tuple(game | {"episode": n} for n in range(12))))
    sink.take(make_row(800, 1500))
    sink.close()
    return offline_folder(said), folder, said


def test_rows_arrive_over_env_steps(sent):
    first, second, third = rows_of(sent[0])
    assert [row["env_steps"] for row in (first, second, third)] == [0, 400, 800]
    assert (third["agent_steps"], third["updates"], third["wall_s"]) == (200, 50, 800 / 85)
    assert (second["episodes"], third["train/loss/rew"]) == (1500, 800.5)
    globs = [x for x in kinds(sent[0], "metric") if x.glob_name == "*"]
    assert [x.step_metric for x in globs] == ["env_steps"]


def test_numbers_that_are_not_finite_are_left_out_and_counted(sent):
    first, second, _ = rows_of(sent[0])
    assert "nan_keys" not in first
    assert second["nan_keys"] == 2 and second["fine"] == 1.5
    assert not {"train/loss/rew", "train/opt/loss"} & second.keys()


def test_the_table_of_episodes_has_the_newest(sent):
    table = table_of(sent[0], "episodes")
    assert table["columns"] == COLUMNS["episodes"].split()
    assert [row[0] for row in table["data"]] == list(range(501, NEWEST + 501))
    assert table["data"][0] == [501, 5010, 250.5, 9, None, 501]


def test_the_table_of_checkpoints_has_all(sent):
    table = table_of(sent[0], "checkpoints")
    assert table["columns"] == COLUMNS["checkpoints"].split()
    assert table["data"] == [
        [3, 600, 161.5, 0.25, -19.0, "best", "checkpoints/best/600", 1002],
        [3, 700, 161.5, 0.25, None, "best", "checkpoints/latest/700", 1002],
    ]


def test_samples_are_few_and_short(sent):
    table = table_of(sent[0], "samples")
    assert table["columns"] == COLUMNS["samples"].split() and len(table["data"]) == 10
    step, episode, env, score, length, success, actions, rewards = table["data"][1]
    assert (step, episode, env, score, length, success) == (400, 1, 0, -20.0, 60, None)
    assert actions.startswith("[5, 5, 5,") and actions.endswith("...] (60)") and len(actions) < 200
    assert rewards.startswith("[0.3333, 0.3333,")


def test_videos_arrive_as_they_are(sent):
    for name in ("eval_episode/video", "report/openloop"):
        [row] = [row for row in history(sent[0]) if name in row]
        assert row["env_steps"] == 400 and row[name]["path"].endswith(".gif")
        assert (sent[0] / "files" / row[name]["path"]).read_bytes() == GIF


def test_the_best_checkpoint_is_a_version_of_the_model(sent):
    [model] = [x for x in kinds(sent[0], "artifact") if x.type == "model"]
    assert model.name == "model-b69f48847239" and {"best", "step-600"} <= set(model.aliases)
    told = json.loads(model.metadata)
    assert (told["step"], told["updates"], told["episodes"], told["score"]) == (600, 37, 3, -19.0)
    assert (told["run_seconds"], told["save_seconds"], told["store"]) == (161.5, 0.25, "best")
    assert {x.path for x in model.manifest.contents} == {"manifest.json", "arrays/0"}
    copies = {pathlib.Path(x.local_path) for x in model.manifest.contents}
    assert all(
        copy.exists() and sent[1] / "wandb" in copy.parents for copy in copies
    )  # in the run, nowhere else


def test_the_run_says_what_it_is(sent):
    run = kinds(sent[0], "run")[0]
    assert (run.run_id, run.project, run.display_name, run.run_group) == (
        "b69f48847239", "jaxrl", "pong-1", "atari100k",
    )  # fmt: skip
    assert list(run.tags) == ["atari_pong", "dreamer"] and not run.entity
    config = {x.key: json.loads(x.value_json) for x in run.config.update}
    assert config["env"] == {"size": 64} and config["device"] == "auto"
    assert config["run"]["versions"]["jax"] == "0.10.2" and config["run"]["lineage"] == []
    assert kinds(sent[0], "exit")[0].exit_code == 0
    assert sent[0].parent == sent[1] / "wandb" and len(sent[2]) == 1


def test_every_setting_has_a_place():
    flat = to_dict(Config())
    tree = nested(flat)
    for name, value in flat.items():
        place = tree
        for word in name.split("."):
            place = place[word]
        assert place == value


# A run that goes on, and one that is cut off.


@pytest.fixture(scope="module")
def continued(tmp_path_factory):
    """The folder of an offline run that goes on from step 500, with names in the environment."""
    folder, said = tmp_path_factory.mktemp("continued") / "a", []
    make_run(folder)
    lines = [jsonl.encode_row(make_row(step)) for step in (0, 100, 200, 300, 400, 500, 100_000)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:2], "torn {", *lines[2:]]) + "\n")
    settings = WandbConfig(entity="mine", name="ours", mode="offline")
    sink = make_sink(folder, settings, resume_step=500, said=said)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"PROJECT": "theirs", "ENTITY": "lab", "NAME": "n", "TAGS": "x,y"}.items():
            patch.setenv(f"WANDB_{name}", value)
        sink.take(make_row(600))
    sink.take(make_row(700))
    sink.close()
    return offline_folder(said)


def test_an_offline_run_that_goes_on_is_whole(continued):
    """It has the rows up to the checkpoint once, then the new ones; so has the curve after `wandb sync`."""
    rows = rows_of(continued)
    assert [row["env_steps"] for row in rows] == [0, 100, 200, 300, 400, 500, 600, 700]
    assert rows[2]["train/loss/rew"] == 200.5 and rows[7]["wall_s"] == 700 / 85


def test_names_of_the_command_go_before_those_of_the_environment(continued):
    run = kinds(continued, "run")[0]
    assert (run.project, run.entity, run.display_name) == ("theirs", "mine", "ours")
    assert list(run.tags) == ["x", "y"] and run.run_id == "b69f48847239"


def test_a_run_that_is_killed_is_complete_on_disk(tmp_path):
    """kill -9: what was handed over arrives, and the run counts as failed."""
    make_run(tmp_path / "a")
    script = (
        "import os, pathlib, signal, sys; sys.path.append('tests')\n"
        "import test_wandb as t\n"
        "sink = t.make_sink(pathlib.Path(sys.argv[1])); sink.say = print\n"
        "for step in range(0, 2000, 100): sink.take(t.make_row(step))\n"
        "sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    words = [sys.executable, "-c", script, tmp_path / "a"]
    done = subprocess.run(words, check=False, cwd=small.ROOT, capture_output=True, text=True, timeout=60)
    folder = offline_folder(done.stdout.splitlines())
    wait_for(lambda: kinds(folder, "exit"))
    assert [row["env_steps"] for row in rows_of(folder)] == list(range(0, 2000, 100))
    assert kinds(folder, "exit")[0].exit_code == 1


def wait_for(holds, seconds=20.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


# Keys and servers.


def test_an_unreachable_server_makes_it_offline_and_no_key_is_kept(tmp_path, monkeypatch):
    make_run(tmp_path / "a")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    said = []
    sink = make_sink(tmp_path / "a", WandbConfig(mode="online"), patience=Patience(server=1.0), said=said)
    began = time.monotonic()
    sink.take(make_row(0))
    assert time.monotonic() - began < 25
    sink.close()
    [line] = said
    assert line.startswith("wandb: offline (")
    assert [row["env_steps"] for row in rows_of(offline_folder(said))] == [0]
    for file in (tmp_path / "a").rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    assert KEY not in line


def test_without_a_key_it_is_offline(tmp_path, monkeypatch):
    make_run(tmp_path / "a")
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    said = []
    sink = make_sink(tmp_path / "a", WandbConfig(mode="online"), said=said)
    sink.take(make_row(0))
    sink.close()
    [line] = said
    assert "wandb login" in line or "API key" in line, line
    assert offline_folder(said).is_dir()


@pytest.mark.parametrize("key", [KEY, f"local-{KEY}", "wandb_v1_" + "aB3_" * 19])
def test_keys_are_struck_out(key):
    assert key not in reason(ValueError(f"bad key {key}!\n second line")) and "***" in reason(ValueError(key))
    assert reason(ValueError("key hunter2"), "hunter2") == "ValueError: key ***"


# Packages that are missing, raise or hang: a fake in their place, in the other process.

FAKE = """
import json, pathlib, time, types
HERE = pathlib.Path(__file__).parent
FAULTS = json.loads((HERE / "faults.json").read_text())

def happen(call, **facts):
    with open(HERE / "calls.jsonl", "a") as file:
        file.write(json.dumps({"call": call, **facts}) + "\\n")
    kind = FAULTS.get(call)
    if kind == "raise": raise RuntimeError(call + " broke")
    if kind == "exit": raise SystemExit(3)
    if kind == "missing": raise ModuleNotFoundError("No module named 'wandb'")
    if kind == "die": import os; os._exit(9)
    if kind == "hang": time.sleep(600)
    if kind == "wait": time.sleep(0.5)
    if kind == "slow": time.sleep(3)

class Run:
    id, disabled, url = "b69f48847239", FAULTS.get("disabled", False), "https://wandb.ai/me/jaxrl/runs/b69f48847239"
    resumed, summary = FAULTS.get("resumed", False), {"agent_steps": 50}
    def __init__(self, offline):
        self.offline, self.dir = offline, str(HERE / "offline-run-1" / "files")
    def define_metric(self, *a, **k): happen("define_metric")
    def log(self, values): happen("log", keys=sorted(values), step=values["env_steps"])
    def log_artifact(self, artifact, aliases): happen("log_artifact", aliases=aliases)
    def finish(self, exit_code): happen("finish", exit_code=exit_code)

class Artifact:
    def __init__(self, *a, **k): happen("Artifact")
    def add_dir(self, folder, **k): happen("add_dir")

def init(mode=None, **k):
    happen("init " + str(mode))
    return Run(mode == "offline")

def setup(settings): return types.SimpleNamespace(settings=types.SimpleNamespace())
def Settings(**k): happen("Settings")
def Table(**k): happen("Table"); return 1
def Video(*a, **k): happen("Video"); return 1

happen("import")
"""


CALLS = ("define_metric", "Table", "Video", "Artifact", "add_dir", "log_artifact")


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Puts a package in the place of wandb whose calls go wrong as told; returns what tells it."""
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "wandb.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(folder))

    def told(**faults):
        (folder / "faults.json").write_text(
            json.dumps({k.replace("_offline", " offline"): x for k, x in faults.items()})
        )
        return lambda: [json.loads(x) for x in (folder / "calls.jsonl").read_text().splitlines()]

    return told


def whole_run(folder, mode="offline", patience=HASTY, until=""):
    """Rows, tables, videos and a checkpoint through all sinks; (lines, the longest wait of the training).

    Closes them at once, or once a line has been said that has `until` in it.
    """
    best, _ = make_run(folder, episodes=3)
    console, waits = Console(), []
    sink = make_sink(folder, WandbConfig(mode=mode), patience=patience)
    sink.slow_s = 8.0
    with Sinks([jsonl.metrics_file(folder)], [console, sink]) as sinks:
        for step in range(0, 600, 100):
            for event in (make_row(step, step), Video(step, "v", folder / "v.gif", b"")):
                began = time.perf_counter()
                sinks.write(event) if isinstance(event, Row) else sinks.post(event)
                waits.append(time.perf_counter() - began)
        sinks.post(Saved(folder / "checkpoints/best/600", best))
        wait_for(lambda: not until or any(until in line for line in console.lines))
    lines = [json.loads(x)["step"] for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(0, 600, 100))
    assert sorted(waits)[len(waits) // 2] < 0.01
    return [line for line in console.lines if "wandb dropped" not in line], max(waits)


@pytest.mark.parametrize("kind", ["raise", "exit"])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_fails_ends_nothing_else(tmp_path, fake, call, kind):
    calls = fake(**{call: kind})
    lines, wait = whole_run(tmp_path / "a")
    done = [x["call"] for x in calls()]
    told = [line for line in lines if "could not be sent" in line]
    assert len(told) == 1 and ("broke" if kind == "raise" else "SystemExit") in told[0]
    assert not any("is off" in line for line in lines)
    logged = [x for x in calls() if x["call"] == "log"]
    assert [x["step"] for x in logged if "updates" in x["keys"]] == [0, 100, 200, 300, 400, 500]
    assert done[-1] == "finish" and wait < 0.5
    if call == "Video":
        assert any("not sent: 6 x a video" in line for line in lines)


@pytest.mark.parametrize("until", ["is off", ""])
@pytest.mark.parametrize("kind", ["raise", "exit", "die"])
def test_logging_that_fails_ends_it(tmp_path, fake, kind, until):
    """One line tells the end of it, during the run or, where the run is faster, after it."""
    calls = fake(log=kind)
    lines, wait = whole_run(tmp_path / "a", until=until)
    [off] = [line for line in lines if "is off for the rest" in line or "wandb: not finished (" in line]
    assert ("3 calls in a row have failed, " in off) if kind != "die" else ("exit code 9" in off)
    assert sum(x["call"] == "log" for x in calls()) <= 3 and wait < 0.5


@pytest.mark.parametrize("kind", ["raise", "exit"])
def test_an_end_that_fails_is_said(tmp_path, fake, kind):
    fake(finish=kind)
    lines, _ = whole_run(tmp_path / "a")
    why = "RuntimeError: finish broke" if kind == "raise" else "SystemExit: 3"
    assert lines[1:] == [f"wandb: not finished ({why})"]


@pytest.mark.parametrize("call", ["init offline", "Settings", "import"])
def test_a_start_that_fails_ends_it_with_one_line(tmp_path, fake, call):
    fake(**{call: "raise"})
    lines, _ = whole_run(tmp_path / "a")
    assert [line for line in lines if "broke" in line] == lines and len(lines) == 1
    assert lines[0].startswith("wandb is off for the rest of this run (Broken: it cannot be started: ")


def test_a_missing_package_is_said_once(tmp_path, fake):
    fake(**{"import": "missing"})
    lines, _ = whole_run(tmp_path / "a", mode="online")
    [line] = lines
    assert "pip install 'jaxrl[wandb]'" in line and "No module named 'wandb'" in line
    assert "sinks/" not in (tmp_path / "a" / "metrics.jsonl").read_text()


def test_wandb_mode_disabled_is_said_once(tmp_path, fake):
    calls = fake(disabled=True)
    lines, _ = whole_run(tmp_path / "a", mode="online")
    assert lines == ["wandb: disabled by WANDB_MODE, nothing is sent"]
    assert [x["call"] for x in calls()] == ["import", "Settings", "init None"]


def test_signals_for_the_run_do_not_end_it(tmp_path, fake):
    """Batch systems send SIGTERM to all processes of a job; the training saves then, and may log."""
    calls = fake()
    make_run(tmp_path / "a")
    sink = make_sink(tmp_path / "a", patience=HASTY)
    sink.take(make_row(0))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(sink._link.pid, number)
    sink.take(make_row(100))
    sink.close()
    assert [x["step"] for x in calls() if "updates" in x.get("keys", ())] == [0, 100]
    assert calls()[-1] == {"call": "finish", "exit_code": 0}


@pytest.mark.parametrize("kind", ["raise", "hang"])
def test_a_server_that_does_not_answer_makes_it_offline(tmp_path, fake, kind):
    calls = fake(**{"init None": kind})
    patience = Patience(server=0.1, start=1.0, offline=10.0, stall=1.0, finish=2.0)
    lines, wait = whole_run(tmp_path / "a", mode="online", patience=patience)
    [line] = lines
    why = "init None broke" if kind == "raise" else "no answer within 1 s"
    assert line.startswith("wandb: offline (") and why in line and "wandb sync" in line
    assert [x["call"] for x in calls() if x["call"].startswith("init")] == ["init None", "init offline"]
    assert wait < 0.5


@pytest.mark.parametrize("call", ["log", "finish"])
def test_a_call_that_hangs_holds_nobody_up(tmp_path, fake, call):
    """The process is left alone after the time to finish; were the training over, it would end itself."""
    fake(**{call: "hang"})
    began = time.monotonic()
    lines, wait = whole_run(tmp_path / "a")
    [left] = [
        re.search(r"goes on alone .*\(process (\d+)\)", line) for line in lines if "goes on alone" in line
    ]
    os.kill(int(left[1]), signal.SIGKILL)
    assert wait < 0.5 and time.monotonic() - began < 8
    assert LINGER_S <= 600


def test_a_process_that_takes_nothing_more_is_given_up(tmp_path, fake):
    fake(log="hang")
    make_run(tmp_path / "a")
    sink = make_sink(tmp_path / "a", patience=HASTY)
    with pytest.raises(Broken, match="it has not answered for 1 s"):
        for step in range(100):
            sink.take(make_row(step, **{f"m/{n}": 0.1 + n for n in range(100)}))
    sink.close()


def test_rows_that_the_server_has_are_not_sent_again(tmp_path, fake):
    """A run that was killed at 200 goes on from 100: the row of 200 is there already."""
    calls = fake(resumed=True)
    make_run(tmp_path / "a")
    said = []
    sink = make_sink(tmp_path / "a", WandbConfig(mode="online"), resume_step=100, said=said, patience=HASTY)
    for step in (200, 300):
        sink.take(make_row(step))
    sink.close()
    rows = [x["step"] for x in calls() if x["call"] == "log" and "updates" in x["keys"]]
    assert rows == [300] and said == ["wandb: https://wandb.ai/me/jaxrl/runs/b69f48847239"]


def test_many_earlier_rows_are_thinned(tmp_path, fake):
    calls = fake()
    make_run(tmp_path / "a")
    count = OLD_ROWS + 1
    lines = (jsonl.encode_row(make_row(step)) for step in range(count))
    (tmp_path / "a" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    sink = make_sink(tmp_path / "a", resume_step=count, patience=dataclasses.replace(HASTY, finish=20.0))
    sink.take(make_row(count))
    sink.close()
    steps = [x["step"] for x in calls() if x["call"] == "log" and "updates" in x["keys"]]
    assert steps == [*range(0, count, 2), count]


def test_a_checkpoint_that_is_gone_is_left_out(tmp_path, fake):
    """Removed before, or while it is copied: half of one is never sent."""
    calls = fake()
    best, _ = make_run(tmp_path / "a")
    folder, said = tmp_path / "a" / "checkpoints/best/600", []
    (folder / "manifest.json").unlink()  # what is removed first
    sink = make_sink(tmp_path / "a", said=said, patience=HASTY)
    for _ in range(4):
        sink.take(Saved(folder, best))
    sink.take(make_row(0))
    sink.close()
    assert [line for line in said if "removed" in line] == [
        "wandb: checkpoints/best/600 was removed before it could be sent"
    ]
    done = [x["call"] for x in calls()]
    assert "log_artifact" not in done and "log" in done


def test_a_checkpoint_that_is_copied_slowly_holds_no_row_up(tmp_path, fake):
    """Rows of four times what the pipe holds are taken meanwhile, and the end waits for the checkpoint."""
    calls = fake(add_dir="slow")
    best, _ = make_run(tmp_path / "a")
    said = []
    sink = make_sink(tmp_path / "a", said=said, patience=dataclasses.replace(HASTY, finish=10.0))
    sink.take(Saved(tmp_path / "a" / "checkpoints/best/600", best))
    for step in range(100):
        sink.take(make_row(step, **{f"m/{n}": 0.1 + n for n in range(150)}))
    sink.close()
    rows = [x for x in calls() if "updates" in x.get("keys", ())]
    assert [x["step"] for x in rows] == list(range(100))
    assert [x["call"] for x in calls() if x["call"] in ("add_dir", "log_artifact", "finish")] == [
        "add_dir", "log_artifact", "finish",
    ]  # fmt: skip
    assert calls().index(rows[-1]) < [x["call"] for x in calls()].index("log_artifact")
    assert len(said) == 1 and "wandb sync" in said[0]


# Checkpoints: how much of the disk they take, and which are sent.


@pytest.fixture
def uplink(tmp_path):
    """Makes an Uplink whose wandb takes note of the checkpoints that are logged."""

    def make(offline=True, add_dir=lambda folder, skip_cache: None):
        sent, said = [], []
        run = types.SimpleNamespace(id="b69f48847239", offline=offline)
        run.log_artifact = lambda artifact, aliases: sent.append(aliases[-1])
        package = types.SimpleNamespace(Artifact=lambda *a, **k: types.SimpleNamespace(add_dir=add_dir))
        copies = tmp_path / "wandb" / "copies"
        return Uplink(package, run, lambda answer: said.append(answer["say"]), copies), sent, said

    return make


def save_all(uplink, folder, count):
    """Logs so many checkpoints of 1,002 bytes, one after the other."""
    for step in range(count):
        order = artifact_of(Saved(folder / "checkpoints/best" / str(step), save_entry_in(folder, step)))
        assert order.pop("do") == "artifact"
        uplink.artifact(**order)


def save_entry_in(folder, step):
    (folder / "checkpoints/best" / str(step)).mkdir(parents=True)
    return save_entry(folder, "best", step, 1.0)


@pytest.mark.parametrize(("offline", "left", "count"), [(True, 0, 2), (True, 1_000, 1), (False, 1_000, 4)])
def test_offline_copies_have_a_limit(tmp_path, uplink, monkeypatch, offline, left, count):
    """`left` bytes are there from an earlier start. Online there is no limit: copies go with the upload."""
    monkeypatch.setattr(wandb_process, "OFFLINE_BYTES", 2_500)
    staging = tmp_path / "wandb" / "copies" / "artifacts" / "staging"
    staging.mkdir(parents=True)
    (staging / "tmp1").write_bytes(bytes(left))
    up, sent, said = uplink(offline)
    save_all(up, tmp_path, 4)
    assert sent == [f"step-{step}" for step in range(count)]
    assert said == (
        ["wandb: offline, copies of checkpoints may take 2.5e-06 GB in all; others stay in checkpoints/ only"]
        if offline
        else []
    )


@pytest.mark.parametrize("offline", [True, False])
def test_a_disk_that_is_nearly_full_gets_no_copies(tmp_path, uplink, monkeypatch, offline):
    free = 10_019  # a byte too few

    def disk_usage(folder):
        assert folder.is_dir()
        return types.SimpleNamespace(free=free)

    monkeypatch.setattr(wandb_process.shutil, "disk_usage", disk_usage)
    up, sent, said = uplink(offline)
    save_all(up, tmp_path / "full", 3)
    [line] = said
    assert not sent and "10 times its size free; others stay in checkpoints/ only" in line
    free += 1
    save_all(up, tmp_path / "emptier", 1)
    assert sent == ["step-0"] and len(said) == 1


def test_of_checkpoints_that_wait_the_newest_are_sent(tmp_path, uplink):
    copying, go_on = threading.Event(), threading.Event()

    def add_dir(folder, skip_cache):
        copying.set()
        assert go_on.wait(10)

    up, sent, said = uplink(add_dir=add_dir)
    for step in range(WAITING + 4):
        entry = save_entry_in(tmp_path, step)
        up.obey(artifact_of(Saved(tmp_path / "checkpoints/best" / str(step), entry)))
        assert copying.wait(10)
    go_on.set()
    up.account()
    assert sent == [f"step-{step}" for step in (0, *range(4, WAITING + 4))]
    assert said == ["wandb: checkpoints come faster than they can be copied; some are left out"]


def test_the_end_waits_for_a_copy_so_long_only(tmp_path, uplink, monkeypatch):
    monkeypatch.setattr(wandb_process, "LINGER_S", 0.4)
    go_on = threading.Event()
    up, sent, said = uplink(add_dir=lambda folder, skip_cache: go_on.wait(10))
    up.obey(artifact_of(Saved(tmp_path / "checkpoints/best/0", save_entry_in(tmp_path, 0))))
    began = time.monotonic()
    up.account()
    assert 0.2 <= time.monotonic() - began < 2 and not sent
    assert said == ["wandb: the last checkpoints are left out: copying them takes too long"]
    go_on.set()


def test_a_file_that_cannot_be_read_ends_nothing(tmp_path, fake):
    calls = fake()
    make_run(tmp_path / "a")
    (tmp_path / "a/tables/episodes.jsonl").write_text('{"episode": 1\n{}\n')
    said = []
    sink = make_sink(tmp_path / "a", said=said, patience=HASTY)
    for step in range(0, 300, 100):
        sink.take(make_row(step, step))
    sink.close()
    assert len([line for line in said if "the table of episodes cannot be sent" in line]) == 1
    assert [x["step"] for x in calls() if "updates" in x.get("keys", ())] == [0, 100, 200]
    assert calls()[-1]["call"] == "finish"


def test_one_process_at_a_time_writes_to_a_run(tmp_path, fake):
    """The start after a kill waits for what the killed one has left to be sent."""
    calls = fake(finish="wait")
    make_run(tmp_path / "a")
    first, second = (make_sink(tmp_path / "a", patience=dataclasses.replace(HASTY, server=8.0)) for _ in "ab")
    first.take(make_row(0))
    first._link.end(0.0)  # as if its training had gone
    second.take(make_row(100))
    assert [x["call"] for x in calls() if x["call"][:4] in ("init", "fini")] == ["init offline", "finish"] + [
        "init offline"
    ]
    second.close()


# How much is sent again.


class Recorder:
    """In the place of the other process."""

    def __init__(self, script, environment, hear):
        self.orders, self.hear = [], hear
        hear({"state": "ready", "offline": False, "url": ""})

    def send(self, order, seconds):
        self.orders.append(order)
        if order.startswith('{"do": "finish"'):
            self.hear({"state": "finished"})

    def listen(self, *args, **options):
        return True

    def check(self):
        pass

    def end(self, seconds):
        return True

    def tables(self, name):
        return [x for x in self.orders if f'"name": "tables/{name}"' in x]


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """(run directory, a sink, what it sends, its clock)."""
    clock, made = Clock(), []
    monkeypatch.setattr(sink_of_wandb, "time", clock)
    monkeypatch.setattr(sink_of_wandb, "Link", lambda *a: made.append(Recorder(*a)) or made[-1])
    make_run(tmp_path / "a", episodes=NEWEST)
    sink = make_sink(tmp_path / "a")
    sink.take(make_row(0))
    return tmp_path / "a", sink, made[0], clock


def test_a_table_that_grows_costs_little(recorded):
    """A day of a row and an episode a minute: below 10 MB, and never older than ten minutes."""
    folder, sink, link, clock = recorded
    with open(folder / "tables/episodes.jsonl", "a") as file:
        for second in range(1, 86_400, 60):
            clock.now = float(second)
            file.write(episode_line(NEWEST + second, second))
            file.flush()
            sink.take(make_row(second, second))
    sent = link.tables("episodes")
    assert 150 < len(sent) < 400 and sum(map(len, sent)) < 9_500_000
    assert len(link.tables("checkpoints")) == 1  # which did not change


def test_a_table_is_sent_only_where_it_has_changed(recorded):
    folder, sink, link, clock = recorded
    for _ in range(3):
        clock.now += 1_000
        sink.take(make_row(100))
    assert len(link.tables("episodes")) == 1
    with open(folder / "tables/episodes.jsonl", "a") as file:
        file.write('{"episode": 1001, "env_steps": 1, "score": 0.0, "length": 1, "seconds": 1}\n')
    sink.close()  # an episode since the last row
    assert len(link.tables("episodes")) == 2 and "[1001, 1, 0.0, 1, null, 1]" in link.tables("episodes")[1]


def test_a_table_waits_its_time(recorded):
    folder, sink, link, clock = recorded
    games = tuple({"episode": n, "actions": [1], "rewards": [0.5]} for n in range(3))
    for second in range(1, 180):
        clock.now = float(second)
        sink.take(Samples(second, games))
        sink.take(make_row(second))
    assert len(link.tables("samples")) == 3


# The run itself.


def test_a_run_with_it_is_the_same_run(tmp_path, monkeypatch):
    """Every array and every row; and this process is left as it was."""
    monkeypatch.setitem(learners.LEARNERS, "dreamer", small.make_learner)
    before = sys.exit, sys.excepthook, set(sys.modules)
    flags = ("--steps=80", "--log_every=20", "--eval_every=40", "--save_every=40", "--eval.samples=2")
    without = small.run(tmp_path / "without", *flags)
    online = small.run(tmp_path / "with", *flags, "--wandb.enabled", "--wandb.mode=offline")
    small.assert_same_arrays(without.arrays(), online.arrays())
    small.assert_same_rows(without, online)
    assert (sys.exit, sys.excepthook) == before[:2] and "WANDB_SERVICE" not in os.environ
    assert not {"wandb", "wandb.sdk"} & (set(sys.modules) - before[2])
    [folder] = (tmp_path / "with" / "wandb").glob("offline-run-*")
    assert [row["env_steps"] for row in rows_of(folder)] == online.steps()
    scalars = {k: x for k, x in rows_of(folder)[-1].items() if k in online.rows[-1]}
    assert scalars == {k: online.rows[-1][k] for k in scalars} and len(scalars) > 15
    assert [x.type for x in kinds(folder, "artifact")].count("model") >= 1
    assert kinds(folder, "exit")[0].exit_code == 0
    assert [row[0] for row in table_of(folder, "episodes")["data"]] == [
        row["episode"] for row in online.lines("tables/episodes.jsonl")
    ]
