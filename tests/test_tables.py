"""What is kept beside the rows: tables of episodes and checkpoints, sampled episodes, a trace of updates."""

import json

import jax
import numpy as np
import pytest
import small
from small import assert_same_arrays, run

from jaxrl import learners
from jaxrl.samples import Sampler
from jaxrl.sinks import Samples, ScoreRow, make_sinks, tables
from jaxrl.sinks.samples import SampleFiles
from jaxrl.tracker import Finished

LENGTH = ("--steps=80", "--log_every=20", "--eval_every=40", "--save_every=20", "--checkpoint.keep=2")


@pytest.fixture(autouse=True)
def small_learner(monkeypatch):
    monkeypatch.setitem(learners.LEARNERS, "dreamer", small.make_learner)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run with tables and samples, cut at step 50 and continued."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(learners.LEARNERS, "dreamer", small.make_learner)
        folder = tmp_path_factory.mktemp("tables") / "run"
        run(folder, *LENGTH, "--eval.samples=3", "--steps=50")
        return run(folder, *LENGTH, "--eval.samples=3", "--profile=14:17")


def test_the_table_of_episodes_tells_what_scores_tell(done):
    rows = done.lines("tables/episodes.jsonl")
    scores = [x for x in done.scores if "episode/score" in x]
    assert len(rows) == len(scores) > 3
    assert [x["episode"] for x in rows] == list(range(1, len(rows) + 1))
    for row, score in zip(rows, scores, strict=True):
        assert row["env_steps"] == score["step"] and row["env"] == score["env"]
        assert (row["score"], row["length"]) == (score["episode/score"], score["episode/length"])
    seconds = [x["seconds"] for x in rows]
    assert seconds == sorted(seconds) and 0 < seconds[-1] <= done.rows[-1]["wall_s"]


def test_the_table_of_checkpoints_tells_which_are_there(done):
    rows = done.lines("tables/checkpoints.jsonl")
    saved = [x for x in done.lines("checkpoint_log.jsonl") if x["event"] == "saved"]
    assert [x["file"] for x in rows] == [f"checkpoints/{x['store']}/{x['name']}" for x in saved]
    for row in rows:
        assert (done.path / row["file"] / "manifest.json").exists() == row["there"]
        assert row["run_seconds"] > 0 and row["bytes"] > 0 and row["env_steps"] % 10 == 0
    assert {x["env_steps"] for x in rows if x["there"] and "latest" in x["file"]} == {60, 80}
    best = [x for x in rows if "best" in x["file"]]
    assert [x["score"] for x in best] == sorted(x["score"] for x in best)


def test_a_name_that_was_given_twice_is_there_once(tmp_path):
    log = [
        {"event": "saved", "store": "latest", "name": "20", "step": 20},
        {"event": "removed", "store": "latest", "name": "20"},
        {"event": "saved", "store": "latest", "name": "20", "step": 20},
        {"event": "quarantined", "store": "best", "name": "9", "why": "its manifest is missing"},
    ]
    (tmp_path / "checkpoint_log.jsonl").write_text("".join(json.dumps(x) + "\n" for x in log) + '{"torn')
    assert [x["there"] for x in tables.checkpoint_rows(tmp_path)] == [False, True]


def test_a_continued_run_drops_the_episodes_that_it_plays_again(tmp_path):
    with make_sinks(tmp_path, steps=400, tensorboard=False, terminal_style="off") as sinks:
        for number, step in enumerate((40, 80, 120, 160), 1):
            sinks.post(ScoreRow(step, "episode", float(step), 10, 0, number - 1, None, number, step / 8))
            sinks.post(ScoreRow(step, "eval_episode", -9.0, 10, 0, 0))
    with make_sinks(tmp_path, steps=400, resume_step=80, scores_step=100, tensorboard=False) as sinks:
        sinks.post(ScoreRow(120, "episode", 7.0, 11, 0, 2, True, 3, 15.0))
    rows = [json.loads(x) for x in (tmp_path / "tables/episodes.jsonl").read_text().splitlines()]
    assert [(x["episode"], x["env_steps"], x["score"]) for x in rows] == [
        (1, 40, 40),
        (2, 80, 80),
        (3, 120, 7),
    ]
    assert rows[-1] == {
        "episode": 3,
        "env_steps": 120,
        "score": 7.0,
        "length": 11,
        "success": 1,
        "seconds": 15.0,
        "env": 0,
    }


def test_samples_hold_every_action_and_reward(done):
    """Of two episodes of each evaluation, as many as asked for and there are."""
    files = sorted(x.name for x in (done.path / "episodes").glob("eval-*.json"))
    assert files == [f"eval-{step:012}-{i}.json" for step in (40, 50, 80) for i in (0, 1)]
    scores = {(x["step"], x["env"]): x for x in done.scores if "eval_episode/score" in x}
    for name in files:
        sample = json.loads((done.path / "episodes" / name).read_text())
        score = scores[sample["step"], sample["env"]]
        assert sample["score"] == score["eval_episode/score"] == pytest.approx(sum(sample["rewards"]))
        assert len(sample["actions"]) == len(sample["rewards"]) == sample["length"] > 1
        assert set(np.unique(sample["actions"])) <= {0, 1, 2, 3}


class Played:
    """Rows of two environments that play games of given lengths; the action is the clock."""

    def __init__(self, *lengths):
        self.left = [list(x) for x in lengths]
        self.at = [0 for _ in lengths]
        self.played = [0 for _ in lengths]
        self.begins = [True for _ in lengths]
        self.found, self.clock = [], 0

    @property
    def outcome(self):
        return self

    def next(self):
        self.reward, self.is_over = np.zeros(2, np.float32), np.zeros(2, bool)
        for n in range(2):
            self.at[n] = 0 if self.begins[n] else self.at[n] + 1
            self.reward[n] = self.at[n]
            self.begins[n] = self.is_over[n] = self.at[n] == self.left[n][0]
            if self.is_over[n]:
                length = self.left[n].pop(0)
                self.found.append(Finished(n, length * (length + 1) / 2, length, self.played[n]))
                self.played[n] += 1


def test_a_sampler_keeps_the_first_episodes_however_they_end():
    env, sampler = Played([5, 2, 9], [1, 1, 9]), Sampler(3, 2)
    for clock in range(9):
        env.next()
        sampler.row(env, None, env.found)
        sampler.acts(np.array([clock, 100 + clock]))
    kept = sampler.episodes
    assert [(x["env"], x["episode"], x["length"]) for x in kept] == [(0, 0, 5), (1, 0, 1), (0, 1, 2)]
    assert [x["actions"] for x in kept] == [[0, 1, 2, 3, 4], [100], [6, 7]]
    assert [x["rewards"] for x in kept] == [[1, 2, 3, 4, 5], [1], [1, 2]]


def test_samples_of_evaluations_that_come_again_are_removed(tmp_path):
    files = SampleFiles(tmp_path, None)
    for step in (40, 80):
        files.take(Samples(step, ({"actions": [1]}, {"actions": [2]})))
    (tmp_path / "episodes" / "eval-notes.json").write_text("{}")
    SampleFiles(tmp_path, 40)
    left = sorted(x.name for x in (tmp_path / "episodes").iterdir())
    assert left == ["eval-000000000040-0.json", "eval-000000000040-1.json", "eval-notes.json"]


def test_a_profile_opens_and_holds_the_updates(done, tmp_path):
    (trace,) = (done.path / "profile").glob("plugins/profile/*/*.xplane.pb")
    found = jax.profiler.ProfileData.from_file(str(trace))
    events = [event.name for plane in found.planes for line in plane.lines for event in line.events]
    assert 3 <= events.count("PjitFunction(jit(learn))") <= 6  # some versions note a call twice
    plain = run(tmp_path / "plain", *LENGTH)
    assert_same_arrays(plain.arrays(), done.arrays())


@pytest.mark.parametrize("text", ["5", "a:b", "7:7", "9:3", ":4", "-1:4", "1:2:3"])
def test_a_profile_that_cannot_be_is_refused(text, capsys):
    assert small.train.main(["--config=debug", f"--profile={text}"]) == 2
    assert f"profile={text}" in capsys.readouterr().err


def test_a_profile_beyond_the_run_is_told(tmp_path, capsys):
    flags = ("--terminal.style=plain", "--profile=1000:1010")
    assert small.train.main([*small.TINY, f"--logdir={tmp_path / 'run'}", "--steps=40", *flags]) == 0
    assert "profile=1000:1010: nothing was traced, the run made" in capsys.readouterr().out
