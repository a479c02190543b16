"""The benchmark of faults sees what must not be; and a run that it kills survives it."""

import dataclasses
import json
import pathlib
import random
import signal

import pytest
from test_benchmarks import run as benchmark

from benchmarks import storm, victims
from benchmarks.victims import Victim, complaints, look, unfinished
from jaxrl.config import Config

CONFIG = Config(steps=40, log_every=20, eval_every=40, eval_eps=1)
ROWS = ['{"step": 0}', '{"step": 20}', '{"step": 40, "eval_episode/avg_score": 1.0}']
SCORES = [
    '{"step": 9, "episode/score": 1, "episode": 0}',
    '{"step": 40, "eval_episode/score": 1, "episode": 0}',
]


@pytest.fixture
def victim(tmp_path):
    """A run that has ended as it should."""
    folder = tmp_path / "run"
    for name in ("latest/20", "latest/40", "best/40"):
        (folder / "checkpoints" / name).mkdir(parents=True)
        (folder / "checkpoints" / name / "manifest.json").write_text("{}")
    names = (("latest", "20"), ("best", "40"), ("latest", "40"))
    log = [{"event": "saved", "store": store, "name": name} for store, name in names]
    write(folder / "checkpoint_log.jsonl", *map(json.dumps, log))
    write(folder / "metrics.jsonl", *ROWS)
    write(folder / "scores.jsonl", *SCORES)
    (folder / "run.json").write_text(json.dumps({"exit": "done", "starts": [{"step": 0}, {"step": 20}]}))
    return Victim([], folder)


def write(file, *lines, end="\n"):
    file.write_text("\n".join(lines) + end)


def found(victim, before=None):
    now = look(victim)
    return complaints(before or now, now) + unfinished(victim, CONFIG)


def test_a_run_that_is_whole_gives_no_cause_for_complaint(victim):
    assert found(victim) == []
    assert look(victim).saved == {20, 40} and look(victim).reached == 40 and look(victim).starts == (0, 20)
    (victim.logdir / "checkpoints" / "latest" / "60").mkdir()  # begun
    (victim.logdir / "checkpoints" / "latest" / "20.damaged").mkdir()
    assert found(victim) == [] and look(victim).saved == {20, 40}


def test_what_is_removed_after_the_log_says_so_is_not_lost(victim):
    before = look(victim)
    gone = victim.logdir / "checkpoints" / "latest" / "20"
    gone.rename(gone.with_name("20.removed"))
    assert found(victim, before) == ["lost latest/20, which the log says was saved", "lost latest/20"]
    with open(victim.logdir / "checkpoint_log.jsonl", "a") as log:
        log.write('{"event": "removed", "store": "latest", "name": "20"}\n')
    assert found(victim, before) == []


@pytest.mark.parametrize(
    ("name", "lines", "end", "fault"),
    [
        ("metrics.jsonl", [ROWS[0], ROWS[2], ROWS[1]], "\n", "row 20 after 40"),
        ("metrics.jsonl", [*ROWS, ROWS[2]], "\n", "row 40 after 40"),
        ("metrics.jsonl", [ROWS[0], ROWS[2]], "\n", "rows at [0, 40] instead of [0, 20, 40]"),
        ("metrics.jsonl", [ROWS[0], '{"step": 20, "lo', ROWS[2]], "\n", "1 malformed lines"),
        ("metrics.jsonl", [ROWS[0], '{"step": 20, "x": NaN}', ROWS[2]], "\n", "1 malformed lines"),
        ("metrics.jsonl", [*ROWS, '{"step": 60, "los'], "", "a line is malformed or torn"),
        ("metrics.jsonl", ROWS[:2] + ['{"step": 40}'], "\n", "evaluations are missing"),
        (
            "scores.jsonl",
            [SCORES[0].replace("0}", "1}"), SCORES[1]],
            "\n",
            "not numbered",
        ),
        ("scores.jsonl", [*SCORES, SCORES[1]], "\n", "evaluation episodes are doubled"),
        ("scores.jsonl", SCORES[:1], "\n", "0 evaluation episodes instead of 1"),
        ("checkpoint_log.jsonl", ["[]"], "\n", "1 malformed lines"),
        ("run.json", ['{"exit": "stopped", "starts": []}'], "\n", "run.json says stopped"),
    ],
)
def test_everything_that_is_wrong_is_seen(victim, name, lines, end, fault):
    write(victim.logdir / name, *lines, end=end)
    assert any(fault in text for text in found(victim)), found(victim)


def test_going_on_from_too_far_back_is_seen(victim):
    before = dataclasses.replace(look(victim), starts=(0,), saved=frozenset({10, 30}), reached=39)
    assert complaints(before, look(victim)) == ["went on from step 20, though 30 was saved"]
    assert storm.steps_redone(before, look(victim)) == [19]


@pytest.mark.parametrize(
    ("code", "seconds", "note", "fault"),
    [
        (143, 1.0, {"exit": "stopped", "env_steps": 40}, None),
        (0, 1.0, {"exit": "stopped", "env_steps": 40}, "SIGTERM ended with 0"),
        (-9, 60.0, {"exit": "stopped", "env_steps": 40}, "SIGTERM took 60.0 s"),
        (143, 1.0, {"exit": "stopped", "env_steps": 30}, "stopped at step 30, but checkpoints are [20, 40]"),
        (143, 1.0, {"exit": None}, "run.json says None"),
    ],
)
def test_a_signal_that_went_wrong_is_seen(victim, code, seconds, note, fault):
    (victim.logdir / "run.json").write_text(json.dumps(note))
    victim.log.write_text("jaxrl: starting debug\n")
    wrong = storm.unsaved(victim, signal.SIGTERM, code, seconds)
    assert wrong == [] if fault is None else any(fault in text for text in wrong), wrong


def test_every_place_of_the_storm_exists():
    from jaxrl.faults import PLACES, VALUES

    assert set(storm.PLACES) < set(PLACES) - set(VALUES)


def test_a_start_that_fails_is_a_failure(tmp_path):
    """A command that is refused cannot pass for one that was killed."""
    weather = storm.Storm(["--steps=0"], Config(), tmp_path, random.Random(0), window=20, timeout=20)
    victim = weather.victim()
    storm.life(weather, victim, "act")
    assert any("failed with 2" in text and "steps=0" in text for text in weather.failures)


@pytest.mark.parametrize("suite", ["kill", "signals"])
def test_a_small_storm(tmp_path, suite):
    settings = ["agent=random", "steps=4000", "log_every=1000", "eval_every=2000", "save_every=1000"]
    words = [f"--suite={suite}", "--count=2", "--window=2", "--seed=1", "--timeout=60", "--set", *settings]
    record = benchmark("benchmarks.faults", *words)
    assert record["failures"] == []
    done = record[suite]
    assert done["kills" if suite == "kill" else "signals"] == (2 if suite == "kill" else 4)
    assert done["digests_equal"] is True and done["straight"]["step"] == 4000
    assert str(pathlib.Path(tmp_path).parent) not in json.dumps(record)


def test_digests_differ_where_a_number_differs():
    import numpy as np

    arrays = {"a": np.arange(3), "b": np.zeros(2)}
    digest = victims.sha256(arrays)
    assert digest == victims.sha256({k: x.copy() for k, x in arrays.items()})
    others = [{"a": np.arange(3), "b": np.array([0, 5e-324])}, {"a": np.arange(3), "c": np.zeros(2)}]
    others.append({"a": np.arange(3), "b": np.zeros((2, 1))})
    assert digest not in [victims.sha256(x) for x in others]
