"""python -m jaxrl.runs: what a user sees of runs, on run directories that are made by hand."""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import pty
import queue
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxrl import runs
from jaxrl.config import Config, to_dict
from jaxrl.runs import glance, tailing

ROOT = pathlib.Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "jaxrl.runs"]
ENDED = {"exit": "done"}
# Of tests that run in the background Ctrl-C is ignored, and so it would be of what they start.
INTERRUPTIBLE = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('jaxrl.runs', run_name='__main__', alter_sys=True)"
)


@pytest.fixture(autouse=True)
def unbounded(monkeypatch):
    """Width comes from a terminal, of which there is none."""
    monkeypatch.delenv("COLUMNS", raising=False)


def began(minutes: float) -> str:
    """The moment so long ago, as run.json has it."""
    time = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=minutes)
    return time.strftime("%Y-%m-%dT%H:%M:%S+0000")


def row(step: int, **more) -> dict:
    counters = {"step": step, "agent_steps": step // 4, "updates": step // 2, "episodes": step // 100}
    return counters | {"wall_s": step / 10, "fps/env_steps": 10.0} | more


def evaluated(step: int, score: float, **more) -> dict:
    return row(step, **{"eval_episode/avg_score": score, "eval_episode/std_score": 1.0}, **more)


def lines_of(rows: list[dict]) -> str:
    return "".join(json.dumps(x) + "\n" for x in rows)


def make_run(folder: pathlib.Path, rows=(), scores=(), note=None, **settings) -> pathlib.Path:
    """A run directory. `scores`: of training episodes; `note`: in run.json; `settings`: __ is their dot."""
    folder.mkdir(parents=True)
    config = to_dict(Config()) | {"steps": 400, "model.size": "1m", "logdir": str(folder)}
    config |= {name.replace("__", "."): value for name, value in settings.items()}
    (folder / "config.json").write_text(json.dumps(config))
    record = {"id": folder.name, "config": "atari100k", "started": began(60), "lineage": [], "exit": None}
    record |= {"starts": [{"time": began(60), "step": 0, "host": "box"}]} | (note or {})
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "run.lock").write_text("")
    (folder / "metrics.jsonl").write_text(lines_of(list(rows)))
    episodes = [
        {"step": 10 * i, "episode/score": x, "episode/length": 9, "env": 0} for i, x in enumerate(scores)
    ]
    (folder / "scores.jsonl").write_text(lines_of(episodes))
    return folder


@contextlib.contextmanager
def at_work(folder: pathlib.Path):
    """While a process holds the run directory."""
    with open(folder / "run.lock", "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def told(capsys, *words, code: int = 0) -> tuple[list[str], list[str]]:
    """Lines of standard output and of standard error of a command."""
    assert runs.main([str(x) for x in words]) == code
    output = capsys.readouterr()
    return output.out.splitlines(), output.err.splitlines()


def listed(capsys, *words) -> list[dict[str, str]]:
    """The lines of a list by title; the last column may have several words."""
    lines, _ = told(capsys, "list", *words)
    titles = lines[0].split()
    return [dict(zip(titles, line.split(maxsplit=len(titles) - 1), strict=True)) for line in lines[1:]]


@pytest.fixture
def folder(tmp_path):
    """Five runs, one in each state; the name says when it began."""
    training = [row(0), evaluated(100, 3.0), evaluated(200, 12.345), row(300, **{"train/opt/loss": 2.5})]
    make_run(
        tmp_path / "atari100k" / "b2",
        [*training, evaluated(400, 7.0)],
        [1.0, 2.0, 6.0],
        {"exit": "done", "started": began(50), "env_steps": 400, "wall_s": 75.0, "updates": 200},
        seed=3,
    )
    make_run(
        tmp_path / "atari100k" / "d4",
        training,
        (),
        {"exit": "Diverged: 20 updates in a row were not finite", "started": began(30)},
    )
    make_run(tmp_path / "c3", training[:3], (), {"exit": "stopped", "started": began(40), "env_steps": 240})
    make_run(
        tmp_path / "e5", [row(0), row(100)], [5.0], {"started": began(20)}, task="toy_catch", agent="drq"
    )
    make_run(tmp_path / "a1", [], (), {"started": began(60 * 25)}, task="mjx_so101_lift", steps=1_234_567)
    return tmp_path


def test_list_shows_each_run_on_a_line_the_newest_last(folder, capsys):
    with at_work(folder / "e5"):
        found = listed(capsys, folder)
    assert [x["run"] for x in found] == ["a1", "atari100k/b2", "c3", "atari100k/d4", "e5"]
    assert [x["state"] for x in found] == ["died", "done", "stopped", "failed", "running"]
    assert [x["step"] for x in found] == ["-", "400", "240", "300", "100"], "a stop lies between rows"
    assert [x["of"] for x in found] == ["1234.5k", "400", "400", "400", "400"]
    assert [x["%"] for x in found] == ["-", "100%", "60%", "75%", "25%"]
    assert [x["eval"] for x in found] == ["-", "7.00", "12.3", "12.3", "-"], "the last, wherever it is"
    assert [x["best"] for x in found] == ["-", "12.3", "12.3", "12.3", "-"]
    assert [x["score"] for x in found] == ["-", "3.00", "-", "-", "5.00"]
    assert [x["wall"] for x in found] == ["-", "1m15s", "20s", "30s", "10s"]
    assert [x["age"][:3] for x in found] == ["1d0", "50m", "40m", "30m", "20m"]
    assert [x["seed"] for x in found] == ["0", "3", "0", "0", "0"]
    assert [x["size"] for x in found] == ["1m", "1m", "1m", "1m", "-"], "drq has none"
    assert (
        found[4]["task"] == "toy_catch" and found[4]["agent"] == "drq" and found[0]["preset"] == "atari100k"
    )
    reasons = [x["reason"] for x in found]
    assert reasons == ["-", "-", "-", "Diverged: 20 updates in a row were not finite", "-"]


def test_list_aligns_numbers_to_the_right(folder, capsys):
    lines, _ = told(capsys, "list", folder)
    for title in ("step", "of", "%", "eval"):
        end = lines[0].index(f" {title} ") + len(title) + 1
        assert {line[end - 1] for line in lines[1:]} & set("0123456789%")
        assert all(line[end - 1] != " " and line[end] == " " for line in lines)


def test_a_run_that_goes_on_is_where_its_rows_are(tmp_path, capsys):
    """run.json still has the counters of an earlier end; and not all steps are not 100 %."""
    earlier = {"exit": None, "env_steps": 300, "wall_s": 999.0, "updates": 1}
    path = make_run(tmp_path / "a", [row(399_999)], (), earlier, steps=400_000)
    with at_work(path):
        (found,) = listed(capsys, tmp_path)
    assert [found[x] for x in ("state", "step", "of", "%")] == ["running", "399.9k", "400k", "99%"]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--task=atari_pong"], ["b2", "c3", "d4"]),
        (["--task=toy_*,mjx_so101_lift"], ["a1", "e5"]),
        (["--state=done,failed"], ["b2", "d4"]),
        (["--state=died", "--task=toy_catch"], ["e5"]),
        (["--sort=name"], ["a1", "b2", "d4", "c3", "e5"]),
        (["--sort=step"], ["a1", "e5", "c3", "d4", "b2"]),
        (["--sort=score", "--state=done,died"], ["a1", "e5", "b2"]),
    ],
)
def test_list_chooses_and_orders(folder, capsys, words, names):
    found = listed(capsys, *words, folder)
    assert [x["run"].split("/")[-1] for x in found] == names


def test_list_says_what_there_is_if_nothing_was_chosen(folder, capsys):
    lines, remarks = told(capsys, "list", folder, "--task=atari_pog")
    assert lines == []
    assert remarks == [
        "jaxrl: none of --task=atari_pog among 5 runs; there are atari_pong, mjx_so101_lift, toy_catch "
        "(died, done, failed, stopped)"
    ]


def test_list_as_json_is_strict_and_whole(folder, capsys):
    (folder / "c3" / "metrics.jsonl").write_text('{"step": 100, "wall_s": NaN, "updates": Infinity}\n')
    lines, _ = told(capsys, "list", folder, "--json", "--sort=name")

    def never(text):
        raise AssertionError(f"{text} is no JSON")

    found = {x["name"]: x for x in (json.loads(line, parse_constant=never) for line in lines)}
    done = found["atari100k/b2"]
    assert done["path"] == str(folder / "atari100k" / "b2") and done["id"] == "b2" and done["host"] == "box"
    assert (done["step"], done["steps"], done["agent_steps"], done["updates"]) == (400, 400, 100, 200)
    assert (done["best_score"], done["best_step"], done["eval_score"], done["eval_step"]) == (
        12.345,
        200,
        7.0,
        400,
    )
    assert (done["score"], done["score_episodes"]) == (3.0, 3)
    assert found["atari100k/d4"]["reason"] == "Diverged: 20 updates in a row were not finite"
    assert found["a1"]["steps"] == 1_234_567 and found["a1"]["best_score"] is None
    assert found["c3"]["wall_s"] is None and found["c3"]["updates"] is None
    assert 59 * 60 < found["a1"]["age_s"] - 24 * 3600 < 61 * 60


def test_list_fits_the_terminal(folder, capsys, monkeypatch):
    long = "atari_pong-20261128-174654-with-a-long-remark-17"
    make_run(folder / "atari100k" / long, [evaluated(100, -20.0)], (), {"started": began(1)})
    whole, _ = told(capsys, "list", folder)
    assert f"atari100k/{long}" in whole[-1], "pipes get all of it"
    for room in (60, 80, 120, 160):
        monkeypatch.setenv("COLUMNS", str(room))
        lines, remarks = told(capsys, "list", folder)
        assert max(map(len, lines)) <= room
        name = lines[-1].split()[0]
        assert name == f"atari100k/{long}" or re.fullmatch(r"atari\S*\.\.\S*-17", name)
        assert lines[0].split()[0] == "run" and {"state", "step", "eval"} <= set(lines[0].split())
        assert "failed" in lines[4] and "Diverg" in lines[4]
        gone = set(whole[0].split()) - set(lines[0].split())
        assert (
            remarks == []
            if not gone
            else re.fullmatch(rf"jaxrl: {room} columns have no room for .*", remarks[0])
        )
        assert all(re.search(rf"\b{re.escape(x)}", remarks[0]) or x == "%" for x in gone)


def test_list_reads_few_lines_of_a_long_run(tmp_path, capsys, monkeypatch):
    many = [evaluated(i, float(i % 700)) for i in range(2000)]
    make_run(tmp_path / "long", many, [0.0] * 1000 + [1.0] * 99 + [2.0])
    (tmp_path / "long" / "metrics.jsonl").open("a").write('{"step": 2000, "eval_episode/avg_score": 9999')
    calls = []
    monkeypatch.setattr(
        glance, "parsed", lambda line, parsed=glance.parsed: calls.append(line) or parsed(line)
    )
    (found,) = listed(capsys, tmp_path)
    assert (found["step"], found["best"], found["eval"]) == ("1999", "699.0", "599.0"), "and no torn line"
    assert found["score"] == "1.01", "of the last 100 episodes"
    assert len(calls) <= 103


def test_list_passes_over_what_is_damaged(folder, capsys):
    (folder / "c3" / "config.json").write_text("{")
    (folder / "e5" / "run.json").write_text("[]")
    (folder / "atari100k" / "b2" / "metrics.jsonl").unlink()
    lines, remarks = told(capsys, "list", folder, "--sort=name")
    assert [line.split()[0] for line in lines[1:]] == ["a1", "atari100k/b2", "atari100k/d4", "e5"]
    assert len(remarks) == 2 and "c3: its config.json cannot be read" in "".join(remarks)


def test_a_name_with_a_line_break_is_on_one_line(tmp_path, capsys):
    make_run(tmp_path / "a\nb", [row(0)])
    lines, _ = told(capsys, "list", tmp_path)
    assert len(lines) == 2 and lines[1].startswith(r"a\nb ")


def test_states_have_colors_on_a_terminal_only(folder):
    def seen(**more) -> str:
        ours, theirs = pty.openpty()
        environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm"} | more
        words = [*COMMAND, "list", str(folder)]
        subprocess.run(words, stdout=theirs, cwd=ROOT, env=environment, check=True, timeout=60)
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError), open(ours, "rb", buffering=0) as stream:
            while block := stream.read(4096):
                text += block
        return text.decode()

    assert re.findall(r"\033\[(\d+)m(\w+) *\033\[0m", seen()) == [
        ("31", "died"),
        ("32", "done"),
        ("33", "stopped"),
        ("31", "failed"),
        ("31", "died"),
    ]
    assert "\033" not in seen(NO_COLOR="1")


def test_costs_no_import_of_jax(folder):
    script = (
        "import sys; from jaxrl import runs; code = runs.main(['list', sys.argv[1]]);"
        "print(sorted({'jax', 'rich', 'numpy', 'flax'} & set(sys.modules)), code)"
    )
    words = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[] 0"


# compare


def sheet(lines: list[str], title: str) -> dict[str, list[str]]:
    """{name: cells} of the table with that title; cells are two spaces apart."""
    start = next(i for i, line in enumerate(lines) if line.startswith(title))
    end = next(i for i, line in enumerate([*lines, ""]) if i > start and not line)
    return {cells[0]: cells[1:] for cells in (re.split(r" {2,}", line) for line in lines[start:end])}


def test_compare_shows_settings_that_differ_and_results(tmp_path, capsys):
    device = {"platform": "gpu", "kind": "NVIDIA H200", "count": 2}
    a = make_run(
        tmp_path / "seeds" / "a",
        [
            row(0, **{"usage/rss_gb": 1.5, "fps/env_steps": 1000.0}),
            evaluated(200, 4.0, **{"train/loss/rew": 5.0, "fps/updates": 2.0, "usage/rss_gb": 2.5}),
            evaluated(400, 3.0, **{"train/loss/rew": 4.0, "fps/updates": 2.0, "fps/env_steps": 8.0}),
        ],
        [1.0, 2.0],
        {
            "exit": "done",
            "device": device,
            "versions": {"python": "3.11.7", "jax": "0.10.2"},
            "git": {"commit": "0123456789abcdef", "dirty": True},
        },
    )
    b = make_run(
        tmp_path / "seeds" / "b",
        [row(0), row(200, **{"eval_episode/success_rate": 0.25})],
        (),
        {
            "exit": "WriteFailed: the disk is full",
            "versions": {"python": "3.11.7", "jax": "0.11.0"},
            "lineage": [{"run": "x", "path": "/runs/old/checkpoints/best/800", "step": 800}],
        },
        seed=1,
        opt__lr=0.001,
    )
    config = json.loads((b / "config.json").read_text())
    del config["replay.capacity"]  # as of an older version: it has the default
    del config["opt.beta1"]
    (b / "config.json").write_text(json.dumps(config | {"opt.beta1": 0.8, "old.setting": 5}))
    lines, remarks = told(capsys, "compare", a, b)
    assert remarks == []
    assert lines[0] == "the same task: atari_pong"
    assert sheet(lines, "settings that differ") == {
        "settings that differ": ["a", "b"],
        "seed": ["0", "1"],
        "opt.lr": ["4e-05", "0.001"],
        "opt.beta1": ["0.9", "0.8"],
        "old.setting": ["-", "5"],
    }
    found = sheet(lines, "results")
    assert found.pop("began")[0].count(":") == 1
    assert found == {
        "results": ["a", "b"],
        "state": ["done", "failed"],
        "reason": ["-", "WriteFailed: the disk is full"],
        "starts": ["1", "1"],
        "env_steps": ["400", "200"],
        "of its length": ["100%", "50%"],
        "updates": ["200", "100"],
        "episodes": ["4", "2"],
        "wall time": ["40s", "20s"],
        "env_steps/s, median": ["9", "10"],
        "updates/s, median": ["2", "-"],
        "last evaluation": ["3.00 at 400", "-"],
        "best evaluation": ["4.00 at 200", "-"],
        "last 5 evaluations, mean": ["3.50 of 2", "-"],
        "last success rate": ["-", "0.25"],
        "best success rate": ["-", "0.25"],
        "last 100 episodes, mean score": ["1.50 of 2", "-"],
        "train/loss/rew": ["4", "-"],
        "peak memory": ["2.50 GB", "-"],
        "device": ["2 x NVIDIA H200", "-"],
        "host": ["box", "box"],
        "git commit": ["012345678", "-"],
        "changes not committed": ["yes", "-"],
        "jax": ["0.10.2", "0.11.0"],
        "came from": ["-", "old at 800"],
    }
    assert (
        lines[-1] == "no two have the same settings and seed, so their metrics are not compared step by step"
    )


def test_compare_says_that_tasks_differ(tmp_path, capsys):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", task="toy_catch")
    lines, _ = told(capsys, "compare", a, b)
    assert lines[0] == "different tasks, whose scores say nothing about each other: atari_pong, toy_catch"


def test_compare_fits_the_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    paths = [make_run(tmp_path / f"atari_pong-20261128-174654-{i}", [row(100)], seed=i) for i in range(7)]
    lines, _ = told(capsys, "compare", *paths)
    assert max(map(len, lines[:-1])) <= 80
    seeds = " ".join(line for line in lines if line.startswith("seed")).replace("seed", "").split()
    assert seeds == list("0123456"), "in groups, and each run once"
    assert sum(line.startswith("results") for line in lines) > 1


SAME = "a and b: the same settings and seed; "


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([(0, 1.0), (100, 2.0), (200, 3.0)], "identical up to step 200, the last row of both"),
        ([(0, 1.0), (100, 2.0)], "identical up to step 100, the last row of b"),
        (
            [(0, 1.0), (100, 2.0), (200, 3.0000000001)],
            "identical up to step 100; at step 200 1 of 6 metrics differ: "
            "train/opt/loss 3.0 and 3.0000000001",
        ),
        ([(0, 1.5), (100, 2.0)], "at step 0 1 of 6 metrics differ: train/opt/loss 1.0 and 1.5"),
        ([(0, 1.0), (200, 3.0)], "identical up to step 0; step 100 is in a only"),
        ([(0, 1.0), (50, 1.0), (100, 2.0)], "identical up to step 0; step 50 is in b only"),
        ([], "b has no rows yet"),
    ],
)
def test_compare_finds_where_runs_of_one_seed_begin_to_differ(tmp_path, capsys, rows, verdict):
    def lossy(pairs, speed):
        return [
            row(
                i,
                **{"train/opt/loss": x, "time/env_s": speed, "sinks/wandb_dropped": speed, "replay/items": 1},
            )
            | {"wall_s": speed, "fps/env_steps": speed, "usage/rss_gb": speed}
            for i, x in pairs
        ]

    a = make_run(tmp_path / "a", lossy([(0, 1.0), (100, 2.0), (200, 3.0)], 1.0), (), ENDED)
    b = make_run(tmp_path / "b", lossy(rows, 2.0), (), ENDED)
    lines, _ = told(capsys, "compare", a, b)
    assert "settings: all the same" in lines
    assert lines[-1] == SAME + verdict


def test_compare_of_lengths_and_paces(tmp_path, capsys):
    """Settings that move no result do not hide whether two runs are the same; the others do."""
    a = make_run(tmp_path / "a", [row(0, **{"replay/ram_gb": 1.0}), row(100)], steps=100)
    b = make_run(
        tmp_path / "b",
        [row(0, **{"replay/ram_gb": 2.0}), evaluated(100, 1.0), row(200)],
        eval_eps=2,
        steps=200,
    )
    c = make_run(tmp_path / "c", [row(0), row(100)], log_every=100)
    d = make_run(tmp_path / "d", [row(0), row(100)], opt__lr=1.0)
    lines, _ = told(capsys, "compare", a, b, c, d)
    assert lines[-1] == (
        "a and b: the same settings and seed, but for steps, eval_eps, which move no result; "
        "identical up to step 100, the last row of a"
    )
    assert not [line for line in lines if line.startswith(("a and c", "c and", "b and", "a and d"))]


# tail

LOSS = "train/opt/loss"


def test_tail_shows_the_usual_columns_of_the_last_rows(folder, capsys):
    lines, remarks = told(capsys, "tail", folder / "atari100k" / "b2", "--rows=3")
    assert remarks == []
    assert [line.split() for line in lines] == [
        ["step", "updates", "score", "eval", "loss", "env_steps/s", "wall"],
        ["200", "100", "-", "12.3", "-", "10", "20s"],
        ["300", "150", "-", "-", "2.5", "10", "30s"],
        ["400", "200", "-", "7.00", "-", "10", "40s"],
    ]
    assert len({len(line) for line in lines}) == 1, "aligned to the right"


def test_tail_shows_success_where_the_task_has_it(tmp_path, capsys):
    make_run(
        tmp_path / "a", [row(0), row(100, **{"eval_episode/success_rate": 0.5, "episode/success": 0.25})]
    )
    lines, _ = told(capsys, "tail", tmp_path / "a")
    assert re.split(r" {2,}", lines[0].strip())[2:6] == ["score", "success", "eval", "eval success"]
    assert lines[2].split()[2:6] == ["-", "0.25", "-", "0.5"]


@pytest.mark.parametrize("pattern", ["eval_episode/(avg|std)", "^eval/(mean_reward|std)", r"eval.*(std|avg)"])
def test_tail_finds_metrics_by_either_name(folder, capsys, pattern):
    lines, _ = told(capsys, "tail", folder / "atari100k" / "b2", f"--filter={pattern}", "--rows=2")
    assert [line.split() for line in lines] == [
        ["step", "eval_episode/avg_score", "eval_episode/std_score"],
        ["200", "12.35", "1"],
        ["400", "7", "1"],
    ], "the last rows that have them"


def test_tail_shows_what_was_not_finite(tmp_path, capsys):
    make_run(tmp_path / "a", [row(0, **{LOSS: 1.0}), row(100, **{LOSS: None, "nan_keys": [LOSS]})])
    lines, _ = told(capsys, "tail", tmp_path / "a", "--filter=.*")
    assert lines[0].split() == ["step", "agent_steps", "updates", "episodes", "wall_s", "fps/env_steps", LOSS]
    assert lines[2].split()[-1] == "nan"


def test_tail_tells_of_lines_that_cannot_be_read(tmp_path, capsys):
    path = make_run(tmp_path / "a")
    text = [json.dumps(row(0)), '{"step": 100, "upd', "null", json.dumps(row(200)), '{"step": 300']
    (path / "metrics.jsonl").write_text("\n".join(text))
    lines, remarks = told(capsys, "tail", path)
    assert [line.split()[0] for line in lines] == ["step", "0", "200"]
    assert remarks == [f"jaxrl: {path}/metrics.jsonl: 2 lines cannot be read and were left out"]
    lines, remarks = told(capsys, "compare", path, make_run(tmp_path / "b"))
    assert remarks == [f"jaxrl: {path}/metrics.jsonl: 2 lines cannot be read and were left out"]


def test_tail_fits_the_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    many = {f"train/loss/rec/camera{i}": 1.25 for i in range(9)}
    make_run(tmp_path / "a", [row(0, **many)])
    lines, remarks = told(capsys, "tail", tmp_path / "a", "--filter=rec")
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["step", *(f"../rec/camera{i}" for i in range(4))]
    assert remarks == [
        "jaxrl: no room for 5 more: " + ", ".join(f"train/loss/rec/camera{i}" for i in range(4, 9))
    ]


class Following:
    """tail --follow in a process of its own."""

    def __init__(self, path: pathlib.Path, *words: str):
        self.process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTIBLE, "tail", str(path), "--follow", *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))

    def next(self) -> str:
        return self._lines.get(timeout=30)

    def rest(self) -> list[str]:
        """What comes until its end."""
        self.process.wait(timeout=30)
        self._reader.join(timeout=30)
        return list(self._lines.queue)


def append(path: pathlib.Path, text: str) -> None:
    with open(path / "metrics.jsonl", "a") as file:
        file.write(text)


def finish(path: pathlib.Path, **note) -> None:
    record = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(record | note))


def test_follow_survives_a_cut_and_ends_with_the_run(tmp_path):
    path = make_run(tmp_path / "a", [row(i) for i in (0, 100, 200, 300)])
    with at_work(path):
        tail = Following(path, "--rows=2")
        assert [tail.next().split()[0] for _ in range(3)] == ["step", "200", "300"]
        whole = json.dumps(row(400)) + "\n"
        append(path, whole[:20])  # a row is not shown before it is whole
        time.sleep(0.7)
        append(path, whole[20:])
        assert tail.next().split()[:2] == ["400", "200"]
        append(path, "not a row\n" + json.dumps(row(500)) + "\n")
        assert tail.next().endswith("metrics.jsonl: 1 line cannot be read and was left out")
        assert tail.next().split()[0] == "500"
        fresh = path / "metrics.jsonl.new"  # as a run does that goes on from an earlier checkpoint
        fresh.write_text(lines_of([row(i) for i in (0, 100, 200)]))
        os.replace(fresh, path / "metrics.jsonl")
        assert (
            tail.next()
            == "jaxrl: the run went back to step 200; what follows replaces the rows from there on"
        )
        append(path, lines_of([row(300, updates=7), evaluated(400, 1.5, updates=8)]))
        assert [tail.next().split()[:2] for _ in range(2)] == [["300", "7"], ["400", "8"]]
        finish(path, exit="done", env_steps=400, wall_s=3725.0)
        time.sleep(0.7)
        assert tail.process.poll() is None, "the lock is still held"
        append(path, lines_of([row(500)]))
    assert [tail.next().split()[0], *tail.rest()] == ["500", "done at step 400 of 400 after 1h02m"]
    assert tail.process.returncode == 0


def test_follow_shows_rows_that_are_written_anew_at_once(tmp_path, capsys, monkeypatch):
    """Cut in place, and longer than before by the time somebody looks."""
    path = make_run(tmp_path / "a", [row(0), row(100), row(200)], (), {"exit": "stopped", "env_steps": 300})
    script = iter([[row(0), row(100), row(200, updates=55), row(300), row(400)], None])

    def nap(_):
        if (rows := next(script)) is not None:
            (path / "metrics.jsonl").write_text(lines_of(rows))

    monkeypatch.setattr(tailing.time, "sleep", nap)
    asked = iter([True, True, False])
    monkeypatch.setattr(tailing, "is_locked", lambda _: next(asked))
    lines, remarks = told(capsys, "tail", path, "--follow")
    assert [line.split()[:2] for line in lines[1:-1]] == [
        ["0", "0"],
        ["100", "50"],
        ["200", "100"],
        ["200", "55"],
        ["300", "150"],
        ["400", "200"],
    ]
    assert remarks == ["jaxrl: the run went back to step 100; what follows replaces the rows from there on"]
    assert (
        lines[-1]
        == f"stopped at step 300 of 400 after 40s; to continue: python -m jaxrl.train --logdir={path}"
    )


@pytest.mark.parametrize(
    ("note", "words"),
    [
        ({"exit": "Diverged: not finite"}, "failed at step 100 of 400 after 10s: Diverged: not finite"),
        ({"exit": "stopped before it began"}, "stopped at step 100 of 400 after 10s; to continue: "),
        ({}, "died at step 100 of 400 after 10s: its process is gone and has noted no end; to continue: "),
    ],
)
def test_follow_says_how_a_run_has_ended(tmp_path, capsys, monkeypatch, note, words):
    path = make_run(tmp_path / "a", [row(0), row(100)], (), note)
    monkeypatch.setattr(tailing, "PATIENCE_S", -1.0)
    lines, _ = told(capsys, "tail", path, "--follow")
    assert lines[-1].startswith(words)
    assert words.endswith(": not finite") or lines[-1].endswith(f"python -m jaxrl.train --logdir={path}")


def test_follow_waits_for_a_run_that_died_to_be_started_again(tmp_path):
    path = make_run(tmp_path / "a", [row(0)])
    tail = Following(path)
    assert [tail.next().split()[0] for _ in range(2)] == ["step", "0"]
    assert re.fullmatch(
        r"jaxrl: its process is gone; waiting \d+ s for the run to be started again", tail.next()
    )
    with at_work(path):
        append(path, lines_of([row(100)]))
        assert tail.next().split()[0] == "100"
        finish(path, exit="done", env_steps=100)
    assert tail.rest() == ["done at step 100 of 400 after 10s"]


def test_follow_can_be_interrupted(tmp_path):
    path = make_run(tmp_path / "a", [row(0)])
    with at_work(path):
        tail = Following(path)
        assert tail.next().split()[0] == "step" and tail.next().split()[0] == "0"
        tail.process.send_signal(signal.SIGINT)
        assert tail.rest() == []
    assert tail.process.returncode == 130


def test_nobody_reads_it_any_more(folder):
    for words in (["list", str(folder)], ["compare", *map(str, sorted(folder.glob("?[35]")))]):
        process = subprocess.Popen(
            [*COMMAND, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=30) == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "name a command: list, compare or tail; for example python -m jaxrl.runs list"),
        (["lst"], "lst: no such command; did you mean list?"),
        (["--json", "list"], "--json: comes before the command (list, compare or tail); for example"),
        (["list", "{}/none"], "{}/none: no such folder; name one that holds runs"),
        (["list", "{}/empty"], "{}/empty: holds no runs; python -m jaxrl.train begins one in runs/"),
        (
            ["list", "{}", "--sort=scroe"],
            "--sort=scroe: must be one of started, step, score, name; did you mean score?",
        ),
        (["list", "{}", "--state=done,runing"], "--state=runing: must be one of running, done,"),
        (["list", "{}", "--jsn"], "--jsn: unknown option; did you mean --json?"),
        (["compare", "{}/a"], "compare: takes two runs or more; name their directories"),
        (["compare", "{}/a", "{}/a/"], "{}/a: is named twice; name different runs"),
        (["compare", "{}/a", "{}/none"], "{}/none: no such folder; name a run directory"),
        (["compare", "{}/a", "{}"], "{}: is no run directory (it has no config.json); it holds 1 of them,"),
        (["tail"], "the following arguments are required: RUN"),
        (["tail", "{}/a", "--filter=("], "--filter=(: must be a regular expression (missing )"),
        (
            ["tail", "{}/a", "--filter=updaes"],
            "--filter=updaes: is found in none of the 6 metrics of the run; did you",
        ),
        (["tail", "{}/a", "--rows=none"], "--rows=none: must be a whole number from 1 to 1_000_000"),
        (["tail", "{}/a", "--folow"], "--folow: unknown option; did you mean --follow?"),
    ],
)
def test_bad_input_ends_with_one_line(tmp_path, capsys, words, line):
    make_run(tmp_path / "a", [row(0)])
    (tmp_path / "empty").mkdir()
    lines, errors = told(capsys, *(x.format(tmp_path) for x in words), code=2)
    assert lines == [] and len(errors) == 1
    assert errors[0].startswith("jaxrl: " + line.format(tmp_path))


def test_a_run_without_rows(tmp_path, capsys):
    path = make_run(tmp_path / "a")
    assert told(capsys, "tail", path) == ([], [f"jaxrl: {path}: has no rows yet"])


def test_help_says_what_there_is(capsys):
    lines, _ = told(capsys, "--help")
    assert "list, compare or tail" in "\n".join(lines)
    for name, option in (("list", "--sort"), ("compare", "RUN"), ("tail", "--follow")):
        assert option in "\n".join(told(capsys, name, "--help")[0])
