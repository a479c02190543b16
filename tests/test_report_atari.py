"""The Atari-100k tables: published numbers to the printed digit, and what becomes of runs in a report."""

import csv
import gzip
import json
import pathlib
import subprocess
import sys
import tracemalloc
import zipfile

import pytest

from jaxrl import reading
from jaxrl.config import ConfigError
from jaxrl.envs.games import ATARI100K
from jaxrl.report import atari, foreign, protocol
from jaxrl.report.published import FILE, published
from jaxrl.report.table import Table, lines

ROOT = pathlib.Path(__file__).parents[1]
RULES = {"env.action_repeat": 4, "env.sticky": 0.0, "env.full_actions": False, "env.noops": 30}
UP_N_DOWN = "atari_up_n_down"
EVALUATED, TRAINED = (x.name for x in protocol.PROTOCOLS)

# Printed with the scores, or computed from them by others: mean, median, games at human level, IQM over game
# means, optimality gap.
AGGREGATES = {
    "DreamerV3 2023": ("1.124", "0.485", "9", "0.590", "0.465"),
    "DreamerV3 Nature": ("1.247", "0.494", "7", "0.542", "0.469"),
    "Hieros (recalled)": ("1.203", "0.564", "8", "0.583", "0.470"),
    "STORM": ("1.222", "0.425", "9", "0.606", "0.455"),
    "IRIS": ("1.046", "0.289", "10", "0.543", "0.482"),
    "TWM": ("0.956", "0.505", "8", "0.530", "0.478"),
    "DIAMOND": ("1.459", "0.373", "11", "0.757", "0.470"),
    "Simulus": ("1.645", "0.982", "13", "1.091", "0.386"),
    "EfficientZero": ("1.943", "1.090", "14", "1.047", "0.367"),
    "TWISTER (recalled)": ("1.621", "0.773", "12", "0.746", "0.421"),
    "BBF (recalled)": ("2.248", "0.917", "12", "1.139", "0.311"),  # its paper prints a mean of 2.247
}
SAME_25 = {  # without Up'n Down: mean, median
    "DreamerV3 2023": ("1.144", "0.340"),
    "DreamerV3 Nature": ("1.131", "0.473"),
    "Hieros (recalled)": ("1.203", "0.564"),
    "STORM": ("1.244", "0.356"),
    "TWISTER (recalled)": ("1.662", "0.960"),
    "Simulus": ("1.676", "1.078"),
}


def write_lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_run(folder, task, seed, *, trained=(), evaluated=(), steps=400_000, reached=None, **settings):
    """A run directory. trained: (step, score) of episodes. evaluated: (step, scores) of evaluations."""
    path = folder / f"{task}-{seed}"
    path.mkdir(parents=True)
    config = {"task": task, "seed": seed, "steps": steps, "agent": "dreamer", **RULES, **settings}
    (path / "config.json").write_text(json.dumps(config))
    (path / "run.json").write_text(json.dumps({"id": "x", "config": "atari100k", "exit": "done"}))
    write_lines(path / "metrics.jsonl", [{"step": 0}, {"step": steps if reached is None else reached}])
    scores = [{"step": step, "episode/score": score, "length": 9} for step, score in trained]
    scores += [{"step": at, "eval_episode/score": x, "env": 0} for at, values in evaluated for x in values]
    write_lines(path / "scores.jsonl", scores)
    return reading.open_past(path)


def add_trial(past, step, scores, task=None, name="20260101-000000"):
    """What python -m jaxrl.evaluate leaves in the run."""
    (past.path / "evaluations").mkdir(exist_ok=True)
    games = [{"env": 0, "episode": i, "score": x, "length": 9} for i, x in enumerate(scores)]
    record = {"step": step, "task": task or past.task, "episodes": games}
    (past.path / "evaluations" / f"{step}-{name}.json").write_text(json.dumps(record))


def only(tables, *words) -> Table:
    (found,) = [x for x in tables if all(word in x.title for word in words)]
    return found


def row(table, name) -> dict[str, str]:
    """{column: cell} of a row; of columns that are there twice, the first."""
    (cells,) = [x for x in table.rows if x[0] == name]
    return dict(reversed(list(zip(table.columns, cells, strict=True))))


def after(table, name, label) -> tuple[str, str, str]:
    """Score, runs and HNS of a system in a row."""
    (cells,) = [x for x in table.rows if x[0] == name]
    return cells[(i := table.columns.index(label)) : i + 3]


def note(table, *words) -> str:
    (found,) = [x for x in table.notes if all(word in x for word in words)]
    return found


def every_game(folder):
    """One run of each game that scores as the human does."""
    return [
        make_run(folder, task, 0, trained=[(399_000, human)], evaluated=[(400_000, [human])])
        for task, human in published().human.items()
    ]


def test_published_statistics_to_the_printed_digit(tmp_path):
    tables = atari.tables({"ours": every_game(tmp_path)})
    for name in (EVALUATED, TRAINED):
        whole = only(tables, "over 26 games", name)
        for system, (mean, median, human, iqm, gap) in AGGREGATES.items():
            cells = row(whole, system)
            assert (cells["mean"], cells["median"], cells["games at human level"]) == (mean, median, human), (
                system
            )
            assert cells["IQM over game means"] == iqm and cells["optimality gap over game means"] == gap
            assert cells["IQM over runs"] == cells["optimality gap over runs"] == cells["runs"] == "-"
        assert [x[0] for x in whole.rows] == ["ours", *AGGREGATES]
        ours = row(whole, "ours")
        assert ours["mean"] == ours["IQM over runs"] == "1.000" and ours["games at human level"] == "26"
        assert ours["optimality gap over runs"] == "0.000" and ours["runs"] == "26"
        assert note(whole, "No intervals")


def test_the_same_25_games_for_everybody(tmp_path):
    tables = atari.tables({"ours": every_game(tmp_path)})
    same = only(tables, "over 25 of 26 games", TRAINED)
    assert {name: (row(same, name)["mean"], row(same, name)["median"]) for name in SAME_25} == SAME_25
    assert {x[1] for x in same.rows} == {"25"} and note(same, "without up_n_down")
    whole = only(tables, "over 26 games", TRAINED)
    assert row(whole, "Hieros (recalled)")["games"] == "25 of 26"
    assert note(whole, "Hieros (recalled) has no score of up_n_down")
    assert note(whole, "one episode of one seed") and note(whole, "(recalled): ")


def test_the_file_of_published_scores():
    known = published()
    assert tuple(known.random) == tuple(known.human) == ATARI100K
    with open(ROOT / "benchmarks" / "atari100k_random.csv") as file:
        rows = list(csv.DictReader(line for line in file if line[0] != "#"))
    assert {x["task"]: float(x["random"]) for x in rows} == known.random
    assert {name: set(ATARI100K) - set(scores) for name, scores in known.systems.items()} == {
        **dict.fromkeys(known.systems, set()),
        "Hieros (recalled)": {UP_N_DOWN},
    }
    assert known.normalised("atari_pong", 18.4) == pytest.approx((18.4 + 20.7) / (14.6 + 20.7))


def test_the_file_of_published_scores_is_in_the_wheel(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("jaxrl-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("jaxrl/report/atari100k.csv") == FILE.read_bytes()


def test_runs_of_two_games(tmp_path):
    """Pong -20.7 random, 14.6 human; Boxing 0.1 and 12.1."""
    pong = [
        make_run(tmp_path, "atari_pong", i, trained=[(395_000, x)], evaluated=[(400_000, [x] * 100)])
        for i, x in enumerate((14.6, 14.6, -20.7, -20.7, -3.05))
    ]
    boxing = [
        make_run(tmp_path, "atari_boxing", i, trained=[(395_000, x)], evaluated=[(400_000, [x] * 100)])
        for i, x in enumerate((24.1, 12.1))
    ]
    tables = atari.tables({"ours": [*pong, *boxing]})
    for name in (EVALUATED, TRAINED):
        games = only(tables, f"Atari-100k: {name}")
        assert [x[0] for x in games.rows] == ["boxing", "pong"]
        assert after(games, "boxing", "ours") == ("18.1", "2", "1.500")
        assert after(games, "pong", "ours") == ("-3.0", "5", "0.500")
        assert row(games, "pong")["DreamerV3 Nature"] == "-4.0" and row(games, "pong")["human"] == "14.6"
        assert not [x for x in games.notes if x.startswith("ours")]
        over = only(tables, "over 2 of 26 games", name)
        ours = row(over, "ours")
        assert (ours["games"], ours["runs"], ours["games at human level"]) == ("2", "7", "1")
        assert ours["mean"].startswith("1.000 (") and ours["median"].startswith("1.000 (")
        assert ours["IQM over runs"].startswith("0.700 (")  # 0 | 0 0.5 1 1 1 | 2
        assert ours["IQM over game means"].startswith("1.000 (")
        assert ours["optimality gap over runs"].startswith("0.250 (")
        assert ours["optimality gap over game means"].startswith("0.250 (")
        low, high = ours["mean"].removeprefix("1.000 (").removesuffix(")").split(" to ")
        assert 0.5 <= float(low) < 0.9 and 1.1 < float(high) <= 1.5
        assert row(over, "DreamerV3 Nature")["mean"] == f"{((82.1 - 0.1) / 12 + (-4 + 20.7) / 35.3) / 2:.3f}"
        assert note(over, "those played: boxing, pong") and note(over, "95 % intervals of a bootstrap")
        assert note(over, "too narrow", "2 to 5 runs") and note(over, "every run counts alike")


def test_the_window_of_training_episodes(tmp_path):
    outside = [(389_999, 1000.0), (400_001, 1000.0)]
    runs = [
        make_run(tmp_path, "atari_pong", 0, trained=[*outside, (390_000, 1.0), (400_000, 3.0)]),
        make_run(tmp_path, "atari_pong", 1, trained=outside),
        make_run(tmp_path, "atari_pong", 2, trained=[*outside, (399_996, 7.0)]),
    ]
    games = only(atari.tables({"ours": runs}), f"Atari-100k: {TRAINED}")
    assert after(games, "pong", "ours")[:2] == ("4.5", "2 of 3")  # (2 + 7) / 2
    assert note(games, "1 of 3 runs left out of the mean", "last 10,000 env_steps (atari_pong-1)")
    none = only(atari.tables({"ours": runs}), f"Atari-100k: {EVALUATED}")
    assert none.rows == [] and note(none, "3 of 3 runs without an evaluation", "--which=latest")


def test_which_evaluation_counts(tmp_path):
    def scored(past):
        found = protocol.evaluated(past)
        return found.score, found.episodes, found.is_last

    past = make_run(tmp_path, "atari_pong", 0, evaluated=[(300_000, [20.0] * 9), (400_000, [1.0, 3.0])])
    assert scored(past) == (2.0, 2, True)
    add_trial(past, 300_000, [21.0] * 100)  # of the best policy
    assert scored(past) == (2.0, 2, True)
    add_trial(past, 400_000, [5.0] * 100, name="20260101-000001")
    add_trial(past, 400_000, [6.0] * 50, name="20260101-000002")
    add_trial(past, 400_000, [7.0] * 200, task="atari_boxing", name="20260101-000003")
    assert scored(past) == (5.0, 100, True)
    own = make_run(tmp_path, "atari_pong", 2, evaluated=[(400_000, [8.0] * 300)])
    add_trial(own, 400_000, [5.0] * 100)
    assert scored(own) == (8.0, 300, True)  # the most episodes, whoever made them
    add_trial(own, 400_000, [6.0] * 300, name="20260101-000001")
    add_trial(own, 400_000, [7.0] * 300, name="20260101-000002")
    assert scored(own) == (7.0, 300, True)  # the newest of equals
    (past.path / "evaluations" / "400000-20260101-000004.json").write_text("{")
    (past.path / "evaluations" / "notes.json").write_text("{")
    assert scored(past) == (5.0, 100, True)
    assert [x for x in past.remarks if "000004.json: cannot be read" in x] and len(past.remarks) == 1
    early = make_run(tmp_path, "atari_pong", 1, evaluated=[(380_000, [4.0] * 10)])
    assert scored(early) == (4.0, 10, False)
    games = only(atari.tables({"ours": [past, early]}), f"Atari-100k: {EVALUATED}")
    assert after(games, "pong", "ours")[:2] == ("4.5", "2")
    assert note(games, "1 of 2 runs evaluated with fewer than 100 episodes (10)")
    assert note(games, "1 of 2 runs evaluated before the end only (atari_pong-1 at 380,000)")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"steps": 600}, "steps=600"),
        ({"env.action_repeat": 1}, "env.action_repeat=1"),
        ({"env.sticky": 0.25, "env.full_actions": True}, "env.sticky=0.25, env.full_actions=true"),
        ({"env.noops": 0}, "env.noops=0"),
        ({"init_from": "runs/other"}, "begun with trained parameters"),
        ({"reached": 100_000}, "unfinished"),
        ({"steps": "many", "reached": 400_000}, "steps unknown"),
    ],
)
def test_what_is_not_the_benchmark_is_never_mixed_with_it(tmp_path, settings, told):
    good = make_run(tmp_path, "atari_pong", 0, trained=[(395_000, 1.0)], evaluated=[(400_000, [1.0])])
    at = settings.get("reached", settings.get("steps", 400_000))
    bad = make_run(tmp_path, "atari_pong", 1, trained=[(at, 9.0)], evaluated=[(at, [9.0])], **settings)
    tables, label = atari.tables({"ours": [bad, good]}), f"ours (not the benchmark: {told})"
    for name in (EVALUATED, TRAINED):
        games = only(tables, f"Atari-100k: {name}")
        assert after(games, "pong", "ours")[:2] == ("1.0", "1")
        assert after(games, "pong", label)[:2] == ("9.0", "1")
        over = only(tables, "over 1 of 26", name)
        assert [x[0] for x in over.rows[:2]] == [label, "ours"]
        assert row(over, "ours")["mean"] == f"{(1 + 20.7) / 35.3:.3f}"
        assert row(only(tables, "who beats whom", name), f"{label} over ours")["chance"] == "1.000"


def test_settings_that_are_no_rules_change_nothing(tmp_path):
    free = {
        "env.size": 84,
        "env.gray": True,
        "env.stack": 4,
        "env.lives": "terminal",
        "env.clip_reward": True,
    }
    past = make_run(tmp_path, "atari_pong", 0, **free)
    assert [protocol.departures(past, x) for x in protocol.PROTOCOLS] == [(), ()]


def test_a_longer_run_counts_by_its_first_400k(tmp_path):
    trained = [(395_000, 1.0), (435_000, 9.0)]
    past = make_run(tmp_path, "atari_pong", 0, trained=trained, evaluated=[(440_000, [9.0])], steps=440_000)
    tables = atari.tables({"ours": [past]})
    assert after(only(tables, f"Atari-100k: {TRAINED}"), "pong", "ours")[0] == "1.0"
    label = "ours (not the benchmark: steps=440_000)"
    assert after(only(tables, f"Atari-100k: {EVALUATED}"), "pong", label)[0] == "9.0"


def test_groups_with_other_games_are_compared_where_they_meet(tmp_path):
    def runs(name, task, scores):
        return [
            make_run(tmp_path / name, task, i, evaluated=[(400_000, [x])], trained=[(400_000, x)])
            for i, x in enumerate(scores)
        ]

    one = [*runs("one", "atari_pong", (5.0, 6.0)), *runs("one", UP_N_DOWN, (9e3, 9e3))]
    tables = atari.tables({"one": one, "other": runs("other", "atari_pong", (4.0, 6.0))})
    assert [x[0] for x in only(tables, "over 2 of 26", TRAINED).rows[:2]] == ["one", "DreamerV3 2023"]
    assert row(only(tables, "over 2 of 26", TRAINED), "Hieros (recalled)")["games"] == "1 of 2"
    pong = only(tables, "over 1 of 26", TRAINED)
    assert [x[0] for x in pong.rows[:3]] == ["one", "other", "DreamerV3 2023"]
    assert (row(pong, "one")["runs"], row(pong, "Hieros (recalled)")["games"]) == ("2", "1")
    chance = row(only(tables, "who beats whom", TRAINED), "one over other")
    assert chance["games"] == "1" and chance["chance"].startswith("0.625 (")  # 5>4, 5<6, 6>4, 6=6


def test_only_up_n_down_leaves_hieros_out(tmp_path):
    past = make_run(tmp_path, UP_N_DOWN, 0, trained=[(400_000, 533.4)])
    over = only(atari.tables({"ours": [past]}), "over 1 of 26", TRAINED)
    assert "Hieros (recalled)" not in [x[0] for x in over.rows] and note(over, "it is left out")


def test_a_seed_twice_is_told(tmp_path):
    runs = [make_run(tmp_path / name, "atari_pong", 7, trained=[(400_000, 1.0)]) for name in "ab"]
    assert note(only(atari.tables({"ours": runs}), f"Atari-100k: {TRAINED}"), "a seed more than once (pong)")


def test_other_tasks_have_no_table(tmp_path):
    runs = [make_run(tmp_path, task, 0, trained=[(400_000, 1.0)]) for task in ("toy_catch", "atari_tetris")]
    assert atari.tables({"ours": runs}) == [] and atari.tables({}) == []


def test_rows_that_make_no_sense_do_no_harm(tmp_path):
    past = make_run(tmp_path, "atari_pong", 0)
    odd = [{"step": 400_000, "episode/score": x, "eval_episode/score": x} for x in (None, "x", 10**400, True)]
    write_lines(past.path / "scores.jsonl", [*odd, {"step": 10**400, "episode/score": 1.0}])
    (past.path / "metrics.jsonl").write_text('{"step": NaN}\n')
    assert [x.rows for x in atari.tables({"ours": [past]})] == [[], []]


def test_tables_in_a_terminal(tmp_path):
    tables = atari.tables({"ours": every_game(tmp_path), "more": every_game(tmp_path / "more")})
    for table in tables:
        for width in (80, 200):
            text = lines(table, width)
            assert text[0] == table.title and max(map(len, text[1:])) <= width
            words = " ".join(text)
            assert all(cell in words for cells in table.rows for cell in cells)
    small = Table(
        "Title", ("name", "one number", "n"), [("a", "1.0", "3"), ("bbb", "-20.5", "10")], ["Note."]
    )
    assert lines(small) == [
        "Title",
        "name  one number   n",
        "----  ----------  --",
        "a            1.0   3",
        "bbb        -20.5  10",
        "- Note.",
    ]
    assert lines(small, 16) == [
        "Title",
        "name  one number",
        "----  ----------",
        "a            1.0",
        "bbb        -20.5",
        "",
        "name   n",
        "----  --",
        "a      3",
        "bbb   10",
        "- Note.",
    ]
    assert lines(Table("Empty", ("a",), [], ["Why."])) == ["Empty", "- Why."]


# Curves of other programs.

RUN = {"task": "atari_pong", "method": "dreamerv3", "seed": 3, "xs": [8, 4, 400_000], "ys": [2, 1.5, 3.0]}


def published_file(folder, runs, name="scores.json.gz"):
    content = json.dumps(runs).encode()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder / name


@pytest.mark.parametrize("name", ["scores.json.gz", "scores.json"])
def test_published_scores_of_dreamerv3(tmp_path, name):
    bins = {**RUN, "task": "dmc_walker_walk", "seed": 0, "ys": [float("nan"), None, 4]}
    first, second = foreign.load(published_file(tmp_path, [RUN, bins], name))
    assert first == foreign.Curve("dreamerv3", "atari_pong", 3, [4, 8, 400_000], [1.5, 2.0, 3.0])
    assert second == foreign.Curve(
        "dreamerv3", "dmc_walker_walk", 0, [400_000], [4.0]
    )  # bins without episodes


def test_a_log_directory_of_dreamerv3(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "logdir: /x\nrun: {seed: 9}\nenv:\n  task: no\nseed: 5\ntask: atari_pong\n"
    )
    rows = [
        {"step": 4, "episode/score": -21.0, "episode/length": 3},
        {"step": 8},
        {"step": 12, "episode/score": 2},
    ]
    write_lines(tmp_path / "scores.jsonl", rows)
    with open(tmp_path / "scores.jsonl", "a") as file:
        file.write('{"step": 16, "episode/sc')
    known = [foreign.Curve("dreamerv3", "atari_pong", 5, [4, 12], [-21.0, 2.0])]
    assert foreign.load(tmp_path) == foreign.load(tmp_path / "scores.jsonl") == known
    (tmp_path / "config.yaml").write_text("logdir: /x\n")
    with pytest.raises(ConfigError, match="has no task and seed"):
        foreign.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is no JSON"),
        (b"{}", "must be a list of runs"),
        (b"[]", "must be a list of runs"),
        (b"[1]", "run 0: lacks task, method, seed, xs, ys"),
        (b"[" * 100_000, "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"\x1f\x8bgarbage", "cannot be read"),
        (gzip.compress(b"[]", mtime=0)[:-6], "cannot be read"),
        (gzip.compress(b"[]" * 50, mtime=0)[:-20] + b"x" * 20, "cannot be read"),
        *(
            (json.dumps([RUN, {**RUN, **change}]).encode(), f"run 1: {told}")
            for change, told in [
                ({"task": 3}, "task and method must be text"),
                ({"method": ""}, "task and method must be text"),
                ({"seed": "0"}, "seed must be a whole number"),
                ({"seed": True}, "seed must be a whole number"),
                ({"xs": [1]}, "xs and ys must be lists of one length"),
                ({"ys": "abc"}, "xs and ys must be lists of one length"),
                ({"xs": [1, 2, -3]}, "xs must be env_steps"),
                ({"xs": [1, 2, float("nan")]}, "xs must be env_steps"),
                ({"xs": [1, 2, 10**400]}, "xs must be env_steps"),
                ({"ys": [1, 2, "3"]}, "ys must be numbers"),
                ({"ys": [1, 2, 10**400]}, "ys must be numbers"),
            ]
        ),
        (json.dumps([{k: v for k, v in RUN.items() if k != "xs"}]).encode(), "run 0: lacks xs"),
    ],
)
def test_what_are_no_scores_is_told_in_one_line(tmp_path, content, told):
    file = tmp_path / "x.json.gz"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        foreign.load(file)
    assert str(caught.value).startswith(str(file)) and told in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_file_that_is_not_there(tmp_path):
    for missing in (tmp_path / "x.json.gz", tmp_path):  # a folder without config.yaml
        with pytest.raises(ConfigError, match="no such file"):
            foreign.load(missing)


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    file = tmp_path / "bomb.json.gz"
    with gzip.open(file, "wb", compresslevel=1) as stream:
        for _ in range(16):
            stream.write(b"[" + b" " * 2**24)
    tracemalloc.start()
    with pytest.raises(ConfigError, match="more than 16,777,216 bytes unpacked"):
        foreign.load(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * foreign.LARGEST


def test_peers_are_scored_by_their_training_returns(tmp_path):
    """Seed 0 has episodes in the window, seed 1 none; both are of whole runs."""
    peers = [
        foreign.Curve("dreamerv3", "atari_pong", 0, [389_000, 391_000, 399_000], [21.0, 1.0, 3.0]),
        foreign.Curve("dreamerv3", "atari_pong", 1, [389_000], [21.0]),
        foreign.Curve("short", "atari_pong", 0, [5_000, 95_000, 100_000], [21.0, 0.0, 1.0]),
        foreign.Curve("dreamerv3", "dmc_walker_walk", 0, [100], [900.0]),
    ]
    past = make_run(tmp_path, "atari_pong", 0, trained=[(400_000, 1.0)])
    tables = atari.tables({"ours": [past]}, peers)
    games = only(tables, f"Atari-100k: {TRAINED}")
    assert after(games, "pong", "dreamerv3")[:2] == ("2.0", "1 of 2")
    assert after(games, "pong", "short (not the benchmark: steps=100_000)")[:2] == ("0.5", "1")
    assert note(games, "dreamerv3: 1 of 2 runs left out", "atari_pong seed 1")
    assert "dreamerv3" not in only(tables, f"Atari-100k: {EVALUATED}").columns
