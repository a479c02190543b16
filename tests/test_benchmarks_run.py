"""Suites of benchmarks: their records, what is made of records, and the measurement at the end of a run."""

import json
import os
import pathlib
import signal
import struct
import sys
import threading
import time
from typing import Any

import jax
import pytest
import small

from benchmarks import figures, record, report, suites
from benchmarks import run as program
from jaxrl import flags, learners, measuring
from jaxrl.config import ConfigError, replace, to_dict

ROOT = pathlib.Path(__file__).parents[1]
HEAD = {"id", "run", "time", "machine", "versions", "git", "device", "config_hash", "settings", "figures"}
CPU = {"platform": "cpu", "kind": "cpu", "count": 1, "memory_gib": 8.0}
RUN_ID = "feedfacebeef"


def raw(name: str, **fields: Any) -> dict[str, Any]:
    """A record as a benchmark makes it on a machine that always is the same."""
    head = {
        "benchmark": name,
        "id": "0123456789ab",
        "time": "2026-01-02T03:04:05Z",
        "machine": {"cpu": "Abacus", "cores": 2, "memory_gib": 8.0},
        "versions": {"python": "3.11", "jax": "0.10.2"},
        "git": {"commit": "c0ffee" * 6, "dirty": False},
        "device": CPU,
    }
    return head | fields


def updates(seconds: list[float], **fields: Any) -> dict[str, Any]:
    """Of a world model whose updates took so long."""
    middle = sorted(seconds)[len(seconds) // 2]
    sizes = {"size": "1m", "batch": 4, "length": 32, "peak_rss_mib": 1000.0}
    return raw("updates", **{"updates_per_s": 1 / middle, "update_s": seconds, **sizes, **fields})


def saved(path: pathlib.Path, found: dict[str, Any]) -> str:
    path.write_text(json.dumps(found))
    return str(path)


def a_run(path: pathlib.Path, *settings: str) -> pathlib.Path:
    """The directory of a run, with nothing in it but what it is."""
    path.mkdir()
    config = flags.parse(["--config=debug", *settings]).config
    config = replace(config, {"model.compute_dtype": "float32", "logdir": str(path)})
    saved(path / "config.json", to_dict(config))
    saved(path / "run.json", {"id": RUN_ID})
    return path


@pytest.fixture
def quick(monkeypatch):
    """XLA takes little care, since only the records matter."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


@pytest.fixture
def fake(monkeypatch):
    """Benchmarks that cost nothing: they give these records, one after the other. Returns what was asked."""

    def prepare(*records: dict[str, Any] | Exception) -> list[list[str]]:
        left, asked = list(records), []

        def child(module: str, words: list[str], timeout: float) -> dict[str, Any]:
            if module == "benchmarks.record":
                return {"device": CPU}
            asked.append([module, *words])
            found = left.pop(0)
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(program, "child", child)
        return asked

    return prepare


def only(monkeypatch, **cases: suites.Case) -> None:
    """The suites that there are: one for each case, of the same name."""
    found = {name: suites.Suite(name, {name: case}) for name, case in cases.items()}
    monkeypatch.setattr(suites, "SUITES", found)


def printed(capsys) -> tuple[list[dict[str, Any]], list[str]]:
    """Records of stdout, lines of stderr."""
    said = capsys.readouterr()
    return [json.loads(line) for line in said.out.splitlines()], said.err.splitlines()


def test_a_suite_measures_replay_in_processes_of_its_own(tmp_path, capsys, monkeypatch, quick):
    words = "--kinds transitions --streams 2 --capacity 200 --batch 4 --windows 2 --seconds 0.01"
    only(monkeypatch, ring=suites.Case("benchmarks.replay", words))
    assert program.main(["--rounds=2", f"--out={tmp_path / 'deep' / 'out'}"]) == 0
    (found,), _ = printed(capsys)
    (file,) = (tmp_path / "deep" / "out").glob("ring-*.json")
    assert json.loads(file.read_text()) == found
    assert found.keys() >= HEAD and found["run"] is None and found["suite"] == "ring"
    assert found["versions"]["jax"] == jax.__version__
    assert found["device"]["platform"] == "cpu" and found["device"]["memory_gib"] > 0
    assert found["machine"]["memory_gib"] > 0
    assert found["settings"]["ring"]["capacity"] == 200
    insert, sample = found["rounds"]["ring"][0]["rows"]
    for row in (insert, sample):
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["us"] / 1e3, rel=0.01)
        assert min(row["us_each"]) <= row["us"] <= max(row["us_each"]) and row["share"] > 0
    # A row of DrQ on Atari: a grey frame of 84x84, an action (i32), a reward (f32), three flags; 2 streams.
    assert insert["bytes"] == 2 * (84 * 84 + 4 + 4 + 3)
    assert sample["bytes"] > 4 * 2 * 4 * 84 * 84  # 4 transitions, two times 4 frames each
    figure = next(x for x in found["figures"] if x["name"] == "us" and " insert " in f" {x['case']} ")
    rounds = [one["rows"][0]["us"] for one in found["rounds"]["ring"]]
    assert figure["values"] == pytest.approx(rounds, rel=1e-3) and len(rounds) == 2
    assert figure["min"] == min(figure["values"]) and figure["max"] == max(figure["values"])
    assert figure["median"] == pytest.approx(sum(rounds) / 2, rel=1e-3)
    assert str(tmp_path) not in file.read_text()
    assert report.main(["--compare", str(file), str(file)]) == 0
    assert "| within the spread |" in capsys.readouterr().out


def test_updates_are_those_of_the_run(tmp_path, capsys, monkeypatch, quick):
    """Of a learner without a world model, of an observation that is no image, of continuous actions."""
    small_ones = ["--drq.channels=4", "--drq.hidden=8", "--drq.features=8", "--model.size=1m"]
    path = a_run(
        tmp_path / "run", "--agent=drq", "--task=toy_reach", "--env.num_envs=2", "--batch_size=3", *small_ones
    )
    # The words of the suite, but for the time that it takes.
    words = suites.cases("updates", "small", "cpu", str(path))["run"][1]
    found = program.child("benchmarks.updates", [*words, "--repeats=2", "--block=1", "--policy_calls=2"], 300)
    assert found["run"] == RUN_ID
    told = {name: found[name] for name in ("agent", "batch", "num_envs", "observations", "actions", "length")}
    assert told == {
        "agent": "drq",
        "batch": 3,
        "num_envs": 2,
        "observations": {"vector": [6]},
        "actions": 2,
        "length": None,
    }
    assert len(found["update_s"]) == 2 and min(found["update_s"]) > 0
    assert found["replayed_steps_per_s"] == pytest.approx(3 * found["updates_per_s"], rel=1e-3)


def test_a_record_belongs_to_its_run(tmp_path, capsys, fake):
    one, other = (a_run(tmp_path / name, "--agent=drq") for name in ("one", "other"))
    third = a_run(tmp_path / "third", "--agent=drq", "--batch_size=7")
    asked = fake(*[updates([0.1]) for _ in range(4)])
    hashes = []
    for path in (one, other, third):
        assert program.main([f"--run={path}", "--rounds=1"]) == 0
        (found,), _ = printed(capsys)
        assert (found["run"], found["suite"], found["settings"]["run"]["batch"]) == (RUN_ID, "updates", 4)
        hashes.append(found["config_hash"])
    assert asked == [["benchmarks.updates", f"--run={path}"] for path in (one, other, third)]
    assert hashes[0] == hashes[1] != hashes[2]  # where a run lies changes nothing, what it does changes it
    assert program.main(["--suite=render", f"--run={one}", "--rounds=1"]) == 0  # of its own settings
    assert asked[-1][0] == "benchmarks.render" and printed(capsys)[0][0]["run"] == RUN_ID


def test_a_record_has_medians_and_spread_over_rounds(capsys, monkeypatch, fake):
    only(monkeypatch, a=suites.Case("benchmarks.a", "--x"))
    # Each round counts with its own median: 10, 5 and 4 updates/s. The first one has compiled.
    fake(
        updates([0.1, 0.1, 9.0], cache="cold", compile_s=20.0),
        updates([0.2, 0.2, 0.2], cache="warm", compile_s=3.0),
        updates([0.25], cache="warm", compile_s=2.0),
    )
    assert program.main([]) == 0
    (found,), lines = printed(capsys)
    figures_of = {x["name"]: x for x in found["figures"]}
    rate = figures_of["updates_per_s"]
    assert rate["values"] == pytest.approx([10, 5, 4])
    assert [rate[x] for x in ("median", "min", "max")] == pytest.approx([5, 4, 10])
    assert (rate["unit"], rate["better"], rate["leads"], rate["case"]) == ("updates/s", "more", True, "a")
    assert figures_of["compile_s, cold"]["values"] == [20.0]
    assert figures_of["compile_s, warm"]["values"] == [3.0, 2.0]
    assert len(lines) == 3 and "round 3 of 3" in lines[2]


def test_cases_take_turns(capsys, monkeypatch, fake):
    cases = {name: suites.Case(f"benchmarks.{name}", "") for name in "ab"}
    monkeypatch.setattr(suites, "SUITES", {"both": suites.Suite("", cases)})
    asked = fake(*[updates([0.1]) for _ in range(4)])
    assert program.main(["--rounds=2"]) == 0
    assert [words[0][-1] for words in asked] == ["a", "b", "a", "b"]
    assert [x["case"] for x in printed(capsys)[0][0]["figures"] if x["leads"]] == ["a", "b"]


def test_a_suite_that_fails_is_one_line_and_the_others_go_on(capsys, monkeypatch, tmp_path):
    """Real processes: one that fails, one without a record, one that takes too long, one that is good."""
    good = tmp_path / "good.py"
    good.write_text(f"print({json.dumps(json.dumps(updates([0.1])))})")
    device = json.dumps({"device": CPU})
    (tmp_path / "jaxrl_device.py").write_text(f"print({json.dumps(device)})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    real = program.child
    monkeypatch.setattr(
        program, "child", lambda m, *a: real("jaxrl_device" if m == "benchmarks.record" else m, *a)
    )
    only(
        monkeypatch,
        bad=suites.Case("benchmarks.versus", "--ours false --peer false --field x"),
        mute=suites.Case("timeit", "-n 1 pass"),
        slow=suites.Case("timeit", "-n 1 __import__('time').sleep(60)"),
        good=suites.Case("good", ""),
    )
    began = time.monotonic()
    assert program.main(["--rounds=1", "--timeout=2"]) == 1
    assert time.monotonic() - began < 30
    (found,), lines = printed(capsys)
    assert found["suite"] == "good"
    failures = [line for line in lines if "failed" in line]
    assert len(lines) == 4 and len(failures) == 3
    assert "bad failed: benchmarks.versus: " in failures[0] and "code 1" in failures[0]
    assert failures[1].endswith("mute failed: timeit: gave no record")
    assert failures[2].endswith("slow failed: timeit: did not end within 2 s")


def test_a_benchmark_that_is_ended_can_end_its_own(tmp_path, monkeypatch):
    """Also where a shell has made SIGINT be ignored, as it does for programs in the background."""
    (tmp_path / "sleeper.py").write_text(
        "import pathlib, sys, time\n"
        "try: time.sleep(60)\n"
        "except KeyboardInterrupt: pathlib.Path(sys.argv[1]).touch()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(program.Failed, match="did not end within 2 s"):
            program.child("sleeper", [str(tmp_path / "ended")], 2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "ended").exists()


def test_without_a_device_nothing_is_measured(capsys, monkeypatch, fake):
    asked = fake(updates([0.1]))

    def child(*args):
        raise program.Failed("benchmarks.record: no device")

    monkeypatch.setattr(program, "child", child)
    assert program.main([]) == 1
    assert printed(capsys)[1] == ["benchmarks.run: no device to measure: benchmarks.record: no device"]
    assert not asked


def test_the_list_has_every_suite_and_its_modules_are_there(capsys):
    assert program.main(["--list"]) == 0
    said = capsys.readouterr().out
    for name, suite in suites.SUITES.items():
        assert suite.what in said and name in said
        for case in suite.cases.values():
            assert (ROOT / f"{case.module.replace('.', '/')}.py").is_file()
            assert figures.KINDS[case.module.partition(".")[2]].measures


@pytest.mark.parametrize(
    ("platform", "wanted"), [("cpu", ["1m", "drq"]), ("gpu", ["12m", "50m", "200m", "drq"])]
)
def test_full_size_fits_the_device(platform, wanted):
    found = suites.cases("updates", "full", platform, None)
    assert list(found) == wanted
    assert f"--size={wanted[0]}" in found[wanted[0]][1]
    assert list(suites.cases("updates", "small", platform, None)) == ["1m", "drq"]


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--suite=rendr"], "did you mean render?"),
        (["--suite=nothing_like_it"], "there are envs, render"),
        (["--rounds=0"], "--rounds=0: must be a whole number"),
        (["--suit=envs"], "did you mean --suite?"),
        (["--run=/nowhere/at/all"], "no such folder"),
        (["--out=/proc/nothing"], "choose another folder"),
        (["--scale=huge"], "--help lists"),
    ],
)
def test_a_wrong_order_is_one_line(words, fault, capsys):
    assert program.main(words) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1 and fault in said.err


def test_a_random_agent_has_nothing_to_measure(tmp_path, capsys):
    path = a_run(tmp_path / "run", "--agent=random")
    assert program.main([f"--run={path}"]) == 2
    assert "learns nothing" in capsys.readouterr().err


def test_the_table_has_a_row_for_each_benchmark(tmp_path, capsys):
    found = updates([0.25, 0.2, 0.16], run=RUN_ID, git={"commit": "c0ffee" * 6, "dirty": True})
    frames = raw(
        "render", rows=[{"camera": x, "num_envs": 4, "raycast_ms": y} for x, y in (("a|b", 1234.5),)]
    )
    saved(tmp_path / "1.json", found)
    saved(tmp_path / "2.json", frames)
    saved(tmp_path / "3.json", raw("learning", runs=[]))  # has no figures of speed
    assert report.main([str(tmp_path)]) == 0
    said = capsys.readouterr()
    machine = "Abacus, 2 cores | jax 0.10.2"
    assert said.out.splitlines() == [
        "| what | figure | unit | device | versions | commit | run |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| update, updates_per_s (1m batch=4 length=32) | 5 (4 to 6.25) | updates/s "
        f"| {machine} | c0ffeec0ff+ | {RUN_ID} |",
        f"| picture of the arm: a\\|b num_envs=4, raycast_ms | 1,234 | CPU ms | {machine} | c0ffeec0ff |  |",
    ]
    assert said.err == "benchmarks.report: without figures, left out: 3.json\n"
    assert report.main([str(tmp_path / "1.json"), "--all"]) == 0
    assert "peak_rss_mib (1m batch=4 length=32) | 1,000 | MiB" in capsys.readouterr().out


def test_an_accelerator_is_named_by_its_kind(tmp_path, capsys):
    gpu = {"platform": "gpu", "kind": "NVIDIA H200", "count": 2, "memory_gib": 105.0}
    assert report.main([saved(tmp_path / "1.json", updates([0.2], device=gpu))]) == 0
    assert "| 2 x NVIDIA H200 |" in capsys.readouterr().out


def test_the_plot_is_a_picture_that_grows_with_its_rows(tmp_path):
    def height(count: int) -> int:
        rows = [{"camera": f"{i}", "raycast_ms": 1.0 + i} for i in range(count)]
        file = saved(tmp_path / "record.json", raw("render", rows=rows))
        assert report.main([file, f"--plot={tmp_path / 'folder' / 'x.png'}"]) == 0
        content = (tmp_path / "folder" / "x.png").read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        return struct.unpack(">II", content[16:24])[1]

    assert height(8) > height(2) > 100


def compared(tmp_path, capsys, a: dict[str, Any], b: dict[str, Any], code: int = 0) -> str:
    files = saved(tmp_path / "a.json", a), saved(tmp_path / "b.json", b)
    assert report.main(["--compare", *files]) == code
    return capsys.readouterr().out


def test_a_comparison_divides_and_keeps_the_spread(tmp_path, capsys):
    """Rates of 2 and 4 against 8: 8 / 3, at least 8 / 4, at most 8 / 2."""
    said = compared(tmp_path, capsys, updates([0.5, 0.25]), updates([0.125, 0.125], peak_rss_mib=1500.0))
    assert "| updates_per_s | updates/s | 3 (2 to 4) | 8 (8 to 8) | 2.667 (2 to 4) | better |" in said
    assert "| peak_rss_mib | MiB | 1,000 | 1,500 | 1.5 | one value each |" in said
    assert "not comparable" not in said


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        ([0.5, 0.4], [0.2, 0.1], "better"),
        ([0.2, 0.1], [0.5, 0.4], "worse"),
        ([0.5, 0.1], [0.2, 0.4], "within the spread"),
    ],
)
def test_a_comparison_says_what_the_spread_allows(tmp_path, capsys, a, b, says):
    (line,) = [x for x in compared(tmp_path, capsys, updates(a), updates(b)).splitlines() if "updates/s" in x]
    assert line.endswith(f"| {says} |")
    # Of memory, less is better.
    figure = {
        name: figures.Figure("", "m", "MiB", figures.LESS, tuple(x)) for name, x in (("a", a), ("b", b))
    }
    other = {"better": "better", "worse": "worse", "within the spread": "within the spread"}[says]
    assert report.verdict(figure["a"], figure["b"]) == other  # here fewer seconds


def test_what_is_not_comparable_is_named(tmp_path, capsys):
    gpu = {"platform": "gpu", "kind": "NVIDIA H200", "count": 1}
    versions = {"python": "3.11", "jax": "0.11.0"}
    other = updates([0.1], device=gpu, size="12m", versions=versions)
    said = compared(tmp_path, capsys, updates([0.2]), other, code=report.NOT_COMPARABLE).splitlines()
    assert "not comparable: device: Abacus, 2 cores | NVIDIA H200" in said
    assert "not comparable: size: 1m | 12m" in said
    assert sum(line.startswith("not comparable") for line in said) == 2
    assert "other versions: jax 0.10.2 | 0.11.0" in said


def test_figures_that_one_record_has_are_told(tmp_path, capsys):
    a = updates([0.1], policy_ms=1.0, share_of_peak=0.0)
    said = compared(tmp_path, capsys, a, updates([0.1], temp_mib=3.0, share_of_peak=0.5))
    assert "| share_of_peak | of peak FLOP/s | 0 | 0.5 |  |  |" in said  # nothing can be divided by it
    assert "| policy_ms | ms | 1 |  |  | only in A |" in said
    assert "| temp_mib | MiB |  | 3 |  | only in B |" in said


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "no such file"),
        ("{torn", "cannot be read"),
        ("[1]", "no JSON object"),
        ('{"a": 1}', "is no record of a benchmark"),
        (json.dumps(raw("learning")), "has no figures"),
        (json.dumps(raw("updates")), "holds none of its figures"),
        (json.dumps(raw("run", suite="a", figures=[{"case": "x"}])), "figures cannot be read"),
        (json.dumps(raw("run", suite="a", figures=[])), "holds no figure"),
    ],
)
def test_what_is_no_record_is_one_line(tmp_path, capsys, content, fault):
    file = tmp_path / "x.json"
    if content is not None:
        file.write_text(content)
    good = saved(tmp_path / "good.json", updates([0.1]))
    for words in ([str(file)], ["--compare", good, str(file)]):
        assert report.main(words) == 2
        said = capsys.readouterr()
        assert said.out == "" and len(said.err.splitlines()) == 1
        assert fault in said.err and str(file) in said.err


def test_different_benchmarks_and_empty_folders_are_refused(tmp_path, capsys):
    a = saved(tmp_path / "a.json", updates([0.1]))
    b = saved(tmp_path / "b.json", raw("memory", rows=[{"preset": "atari", "host_mib": 1.0}]))
    (tmp_path / "empty").mkdir()
    for words, fault in (
        (["--compare", a, b], "compare two of one kind"),
        ([str(tmp_path / "empty")], "holds no record"),
        ([], "no record is named"),
        (["--compare", a, a, "--plot=x.png"], "nothing else"),
        ([a, "--plot=/proc/nothing/x.png"], "choose another file"),
    ):
        assert report.main(words) == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1 and fault in err


def test_every_committed_record_of_speed_is_read():
    """And gives the numbers of its own file."""
    without = {"learning", "faults", "random_scores", "two_hosts"}
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        found = json.loads(file.read_text())
        if found["benchmark"] not in without:
            assert report.read(file).figures, file
    peer = report.read(ROOT / "benchmarks" / "results" / "versus_1m_4x32.json")
    text = json.loads(peer.path.read_text())["fields"][0]
    assert (text["field"], list(peer.figures[0].values)) == ("updates_per_s", text["round_ratios"])
    assert report.shown(peer.figures[0]) == "1.593 (1.333 to 1.853)"
    sides = {x.key: report.shown(x) for x in peer.figures}
    assert (sides["ours", "cpu_s_per_update"], sides["peer", "cpu_s_per_step"]) == ("0.3955", "0.75")
    assert (sides["ours", "peak_rss_mib"], sides["peer", "peak_rss_mib"]) == ("798", "1,938")


def test_a_hash_knows_settings_and_nothing_else():
    one = record.config_hash({"a": 1, "b": 2.0, "logdir": "x"})
    assert one == record.config_hash({"b": 2.0, "a": 1, "logdir": "y"})
    assert one != record.config_hash({"a": 1, "b": 3.0}) and len(one) == 12


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A checkout whose benchmarks are a program that the test writes; None: it has none."""

    def put(text: str | None) -> None:
        (tmp_path / "checkout" / "benchmarks").mkdir(parents=True)
        monkeypatch.setattr(measuring, "__file__", str(tmp_path / "checkout" / "jaxrl" / "measuring.py"))
        if text is not None:
            (tmp_path / "checkout" / "benchmarks" / "__init__.py").touch()
            (tmp_path / "checkout" / "benchmarks" / "run.py").write_text(text)

    return put


WRITES = """
import json, pathlib, sys
run, out = (pathlib.Path(word.partition("=")[2]) for word in sys.argv[1:])
out.mkdir()
note = json.loads((run / "run.json").read_text())
(out / "updates-1.json").write_text(json.dumps({"run": note["id"], "exit": note["exit"]}))
"""


def at_end(tmp_path, monkeypatch, capsys, *more: str) -> tuple[small.Run, list[str]]:
    """A run with --benchmark_at_end, and what it has said of that."""
    monkeypatch.setitem(learners.LEARNERS, "dreamer", small.make_learner)
    made = small.run(tmp_path / "run", "--steps=20", "--eval_every=0", "--benchmark_at_end", *more)
    return made, [line for line in capsys.readouterr().out.splitlines() if "benchmark_at_end" in line]


def test_a_run_is_measured_once_it_is_done(tmp_path, monkeypatch, capsys, place):
    place(WRITES)
    made, lines = at_end(tmp_path, monkeypatch, capsys)
    found = json.loads((made.path / "benchmarks" / "updates-1.json").read_text())
    assert found == {"run": made.note["id"], "exit": "done"}  # all was written before
    assert lines[-1] == f"jaxrl: benchmark_at_end: 1 record in {made.path}/benchmarks"


@pytest.mark.slow
def test_a_real_run_is_measured_by_the_real_benchmarks(tmp_path):
    process = small.start(tmp_path / "run", "--steps=20", "--eval_every=0", "--benchmark_at_end", real=True)
    said, _ = process.communicate(timeout=250)
    assert process.returncode == 0 and "1 record in" in said
    (file,) = (tmp_path / "run" / "benchmarks").glob("updates-*.json")
    found = json.loads(file.read_text())
    assert found["run"] == small.Run(tmp_path / "run").note["id"]
    assert found["settings"]["run"]["batch"] == 2 and found["settings"]["run"]["size"] == "debug"
    assert all(len(x["values"]) == 3 for x in found["figures"] if x["leads"])
    assert report.main([str(file)]) == 0


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            None,
            "benchmarks/ is in checkouts only, nothing is measured; in one: python -m benchmarks.run --run=",
        ),
        ("import sys; sys.exit('boom')", "failed (exit code 1): boom"),
        ("import os; os.abort()", "failed (exit code -6): "),
        ("import time; time.sleep(60)", "did not end within 1 s"),
    ],
)
def test_what_fails_at_the_end_fails_nothing(tmp_path, monkeypatch, capsys, place, text, fault):
    place(text)
    monkeypatch.setattr(measuring, "LIMIT_S", 1.0)
    made, lines = at_end(tmp_path, monkeypatch, capsys)
    assert made.note["exit"] == "done" and fault in lines[-1]
    assert len(lines) == (1 if text is None else 2)


def test_only_a_run_that_is_done_is_measured(tmp_path, monkeypatch, capsys, place):
    place(WRITES)
    monkeypatch.setitem(learners.LEARNERS, "dreamer", small.make_learner)
    small.run(tmp_path / "dry", "--dry_run", "--benchmark_at_end")
    small.run(tmp_path / "run", "--benchmark_at_end", "--debug.fault=term@act:9", "--steps=60", code=143)
    assert "benchmark_at_end:" not in capsys.readouterr().out
    assert not (tmp_path / "run" / "benchmarks").exists() and not (tmp_path / "dry").exists()


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals need it")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_measurement_and_not_the_run(tmp_path, place, number):
    place(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "time.sleep(60)"
    )
    said, handler = [], signal.getsignal(signal.SIGTERM)
    # A shell that has started the tests in the background has made them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def send() -> None:
        until = time.monotonic() + 20
        while not (tmp_path / "pid").exists() and time.monotonic() < until:
            time.sleep(0.02)
        if (tmp_path / "pid").exists():  # else the signal would be for the tests
            os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    try:
        measuring.after(tmp_path, said.append)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted; the run is done; later: python -m benchmarks.run" in said[-1]
    assert signal.getsignal(signal.SIGTERM) is handler
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_failure_that_nobody_thought_of_is_one_line(tmp_path, monkeypatch, place):
    place(WRITES)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no_python"))
    said = []
    measuring.after(tmp_path, said.append)
    assert "failed (FileNotFoundError" in said[-1]


def test_figures_of_an_unknown_benchmark_are_refused():
    with pytest.raises(ConfigError, match="has no figures"):
        figures.of({"benchmark": ["updates"]})
