"""Whole runs in small through the command line: rows, scores, evaluations, options of the one loop."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import small
from small import assert_same_arrays, assert_same_rows, run, timeless

from jaxrl import learners, loop, runtime
from jaxrl.programs import Programs

LENGTH = ("--steps=120", "--log_every=40", "--eval_every=80")
EVAL_KEYS = {
    f"eval_episode/{x}" for x in ("avg_score", "std_score", "min_score", "max_score", "length", "episodes")
}


@pytest.fixture(autouse=True)
def small_learner(monkeypatch):
    monkeypatch.setitem(learners.LEARNERS, "dreamer", small.make_learner)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that others are compared with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(learners.LEARNERS, "dreamer", small.make_learner)
        return run(tmp_path_factory.mktemp("straight") / "run", *LENGTH, "--tensorboard.enabled")


def test_rows_are_at_the_multiples(straight):
    assert straight.steps() == [0, 40, 80, 120]
    assert straight.steps("eval_episode/avg_score") == [80, 120]
    assert straight.steps("fps/env_steps") == straight.steps("train/opt/loss") == [40, 80, 120]
    for row in straight.rows:
        assert row["agent_steps"] == row["step"]
        assert row["updates"] == (1 + (row["step"] - 5) * 2 // 8 if row["step"] else 0)
        assert set(row) >= EVAL_KEYS or not set(row) & EVAL_KEYS
        assert "nan_keys" not in row
    assert "time/compile_s" in straight.rows[0] and "time/compile_s" not in straight.rows[1]


def test_scores_are_those_of_the_episodes(straight):
    """One row per finished episode; the averages of a row are those since the row before."""
    games = [x for x in straight.scores if "episode/score" in x]
    assert [x["episode"] for x in games] == list(range(len(games)))
    assert straight.rows[-1]["episodes"] == len(games) > 5
    for before, row in zip(straight.rows, straight.rows[1:], strict=False):
        new = [x for x in games if before["step"] < x["step"] <= row["step"]]
        assert row["episode/score"] == pytest.approx(np.mean([x["episode/score"] for x in new]))
        assert row["episode/length"] == pytest.approx(np.mean([x["episode/length"] for x in new]))
    # A clock pays count % 5 - 2 at each count, and takes one more step to begin anew.
    for game in games:
        assert game["episode/score"] == sum(n % 5 - 2 for n in range(1, game["episode/length"] + 1))
    assert np.cumsum([x["episode/length"] + 1 for x in games]).tolist() == [x["step"] + 1 for x in games]


def test_evaluations_play_the_episodes_that_were_asked_for(straight):
    games = [x for x in straight.scores if "eval_episode/score" in x]
    assert [x["step"] for x in games] == [80, 80, 120, 120]
    for row in straight.rows:
        if row["step"] in (80, 120):
            scores = [x["eval_episode/score"] for x in games if x["step"] == row["step"]]
            assert row["eval_episode/avg_score"] == pytest.approx(np.mean(scores))
            assert row["eval_episode/episodes"] == 2


def test_each_environment_plays_its_share_of_an_evaluation(tmp_path, monkeypatch):
    """The first episodes to finish would be short ones. And no two evaluations draw the same noise."""
    drawn, act = [], Programs.eval_act

    def noted(self, policy, carry, counter, step, key):
        drawn.append(int(counter))
        return act(self, policy, carry, counter, step, key)

    monkeypatch.setattr(Programs, "eval_act", noted)
    flags = ("--steps=40", "--log_every=0", "--eval_every=20", "--eval_eps=7", "--eval.num_envs=2")
    done = run(tmp_path / "run", *flags)
    for step in (20, 40):
        games = [x for x in done.scores if x["step"] == step and "eval_episode/score" in x]
        assert sorted(x["env"] for x in games) == [0] * 4 + [1] * 3
        assert [x["episode"] for x in games] == list(range(7))
    assert len(drawn) == len(set(drawn)) > 100


def test_tensorboard_shows_the_same(straight):
    """Read with TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(straight.path / "tb"), size_guidance={"scalars": 0}).Reload()
    tags = board.Tags()["scalars"]
    assert set(tags) == {key for row in straight.rows for key in row} - {"step"}
    for tag in tags:
        shown = [(event.step, event.value) for event in board.Scalars(tag)]
        written = [(row["step"], np.float32(row[tag])) for row in straight.rows if tag in row]
        assert shown == written, tag


def test_the_note_says_how_it_went(straight):
    note = straight.note
    assert (note["exit"], note["env_steps"], note["updates"]) == ("done", 120, 29)
    (start,) = note["starts"]
    assert note["config"] == "debug" and "--steps=120" in start["argv"] and note["versions"]["jax"]
    assert json.loads((straight.path / "config.json").read_text())["steps"] == 120


def test_the_same_seed_gives_the_same_run(straight, tmp_path):
    again = run(tmp_path / "again", *LENGTH)
    assert_same_rows(straight, again)
    assert straight.scores == again.scores
    assert_same_arrays(straight.arrays(), again.arrays())


def test_another_seed_gives_another_run(straight, tmp_path):
    other = run(tmp_path / "other", *LENGTH, "--seed=1")
    assert other.steps() == straight.steps()
    for a, b in zip(straight.rows[1:], other.rows[1:], strict=True):
        assert a["train/opt/loss"] != b["train/opt/loss"]
    assert [x["step"] for x in straight.scores] != [x["step"] for x in other.scores]


@pytest.mark.parametrize(
    "flags", [["--eval_every=0"], ["--eval_initial", "--eval_eps=3", "--eval.num_envs=2"]]
)
def test_evaluation_leaves_training_as_it_is(straight, tmp_path, flags):
    other = run(tmp_path / "other", *LENGTH, *flags)
    for a, b in zip(straight.rows, other.rows, strict=True):
        a, b = ({k: v for k, v in timeless(x).items() if not k.startswith("eval")} for x in (a, b))
        assert a == b
    assert_same_arrays(straight.arrays(), other.arrays())
    if "--eval_initial" in flags:
        assert other.steps("eval_episode/avg_score") == [0, 80, 120]
        assert [x["step"] for x in other.scores if "eval_episode/score" in x] == [0] * 3 + [80] * 3 + [
            120
        ] * 3


def test_logging_more_often_than_evaluating(straight, tmp_path):
    other = run(tmp_path / "other", "--steps=120", "--log_every=12", "--eval_every=60")
    assert other.steps() == list(range(0, 121, 12))
    assert other.steps("eval_episode/avg_score") == [60, 120]
    learned = [
        {k: x for k, x in r.arrays().items() if k.startswith(("learner", "ring"))} for r in (straight, other)
    ]
    assert_same_arrays(*learned)


def test_evaluations_between_the_rows_have_rows_of_their_own(tmp_path):
    other = run(tmp_path / "other", "--steps=100", "--log_every=40", "--eval_every=50")
    assert other.steps() == [0, 40, 50, 80, 100]
    assert other.steps("eval_episode/avg_score") == [50, 100]
    assert other.steps("replay/items") == [0, 40, 80, 100]


@pytest.mark.parametrize("task", ["toy_clock", "atari_pong"])
def test_several_environments(tmp_path, capfd, task):
    """Intervals are rounded up to whole vector steps, with a line that says so; env_steps count all."""
    flags = (
        "--env.num_envs=3",
        "--env.action_repeat=4",
        "--eval_every=100",
        "--log_every=100",
        f"--task={task}",
    )
    done = run(tmp_path / "run", "--steps=400", *flags, "--terminal.style=plain", "--env.time_limit=60")
    text = capfd.readouterr().out
    for name, (asked, used) in {
        "steps": (400, 408),
        "log_every": (100, 108),
        "eval_every": (100, 108),
    }.items():
        assert f"{name}={asked} is rounded up to {used}: one step of 3 environments is 12 env_steps" in text
    assert done.steps() == [0, 108, 216, 324, 408]  # the last one is where the run ends
    assert done.steps("eval_episode/avg_score") == [108, 216, 324, 408]
    assert all(row["agent_steps"] == row["step"] / 4 for row in done.rows)
    games = [x for x in done.scores if "episode/score" in x]
    assert {x["env"] for x in games} == {0, 1, 2} and len(games) == done.rows[-1]["episodes"]
    assert all(x["step"] % 12 == 0 for x in games)


def test_overlap_acts_with_the_parameters_before_the_newest_update(straight, tmp_path):
    """Every row of the ring tells how many updates the parameters had that acted there."""
    flags = ("--steps=80", "--log_every=40", "--eval_every=0", "--replay.capacity=80", "--train_ratio=4")
    plain, late = run(tmp_path / "a", *flags), run(tmp_path / "b", *flags, "--overlap")
    again = run(tmp_path / "c", *flags, "--overlap")
    versions = [x.arrays()["ring.rows.latents.version"][:, 0] for x in (plain, late)]
    made = [1 + (n - 5) * 4 // 8 if n >= 5 else 0 for n in range(80)]  # updates before each action
    assert versions[0].tolist() == made
    changes = [n for n in range(1, 80) if made[n] != made[n - 1]]
    before = [made[max((x for x in changes if x <= n), default=1) - 1] for n in range(80)]
    assert versions[1].tolist() == before
    assert [x["updates"] for x in late.rows] == [x["updates"] for x in plain.rows]
    assert_same_rows(late, again)
    assert_same_arrays(late.arrays(), again.arrays())


def test_held_out_episodes_are_not_trained_on(tmp_path):
    """The two rings share no episode, and hold whole ones; no row is lost between them."""
    flags = ("--steps=200", "--log_every=50", "--eval_every=0", "--replay.capacity=200", "--env.num_envs=2")
    done = run(tmp_path / "run", *flags, "--replay.holdout=0.3")
    arrays = done.arrays()

    def rows(ring, key, n):
        """What a ring holds of one environment, oldest first."""
        array, cursor = arrays[f"{ring}.rows.{key}"], int(arrays[f"{ring}.cursor"][n])
        return array[np.arange(max(0, cursor - len(array)), cursor) % len(array), n]

    for n in range(2):
        assert arrays["held.cursor"][n] + arrays["ring.cursor"][n] == 100
        tags = [set(rows(ring, "obs.image", n)[:, 0, 0, 2].tolist()) for ring in ("ring", "held")]
        assert tags[0] and tags[1] and not tags[0] & tags[1]
        for ring in ("ring", "held"):  # a count goes on, or begins anew
            counts = rows(ring, "obs.count", n)[:, 0].astype(int).tolist()
            assert all(b in (a + 1, 0) for a, b in zip(counts, counts[1:], strict=False))
    assert 0.15 < arrays["held.cursor"].sum() / 200 < 0.45
    assert len(done.steps("holdout/loss/rew")) >= 2
    assert done.rows[-1]["replay/items"] == arrays["ring.cursor"].sum()


def test_episodes_are_written_as_they_were(tmp_path):
    flags = ("--steps=160", "--log_every=80", "--eval_every=0", "--env.num_envs=2", "--replay.save_episodes")
    done = run(tmp_path / "run", *flags)
    games = sorted((x["step"], x["env"], x["episode/length"] + 1, x["episode/score"]) for x in done.scores)
    found = []
    for file in sorted((done.path / "episodes").iterdir()):
        episode = dict(np.load(file))
        keys = {"count", "image", "action", "reward", "is_first", "is_last", "is_terminal"}
        assert set(episode) == keys
        rows = len(episode["count"])
        assert {len(x) for x in episode.values()} == {rows}
        assert episode["image"].dtype == np.uint8 and episode["action"].dtype == np.int32
        assert episode["count"][:, 0].tolist() == list(range(rows))
        assert episode["is_first"].tolist() == [True] + [False] * (rows - 1)
        assert episode["is_last"].tolist() == [False] * (rows - 1) + [True]
        step, env, length = map(int, file.stem.split("-"))
        found.append((step, env, length, float(episode["reward"].sum())))
        assert rows == length
    assert sorted(found) == games and len(games) > 8


def test_an_episode_that_ends_with_the_run_is_written(tmp_path):
    flags = ("--env.time_limit=9", "--log_every=0", "--eval_every=0", "--replay.save_episodes")
    done = run(tmp_path / "run", "--steps=9", *flags)
    assert [x.name for x in (done.path / "episodes").iterdir()] == ["000000000009-0-10.npz"]
    assert [x["step"] for x in done.scores] == [9]


@pytest.mark.parametrize("task", ["toy_clock", "toy_reach", "toy_catch", "atari_ms_pacman"])
def test_the_random_agent(tmp_path, task):
    flags = ("--agent=random", f"--task={task}", "--steps=160", "--log_every=80", "--eval_every=160")
    limits = ("--env.time_limit=120", "--env.action_repeat=4") if task == "atari_ms_pacman" else ()
    done = run(tmp_path / "run", *flags, *limits)
    assert done.steps() == [0, 80, 160] and done.steps("eval_episode/avg_score") == [160]
    assert any("episode/score" in x for x in done.scores) and any(
        "eval_episode/score" in x for x in done.scores
    )
    keys = {key for row in done.rows for key in row}
    assert not [key for key in keys if key.startswith(("train/", "replay/"))]
    assert all(row["updates"] == 0 for row in done.rows)


def test_clipped_rewards_are_trained_on_and_raw_ones_are_scored(tmp_path):
    """Ms. Pac-Man pays 10 a pellet."""
    flags = ("--task=atari_ms_pacman", "--env.clip_reward", "--env.action_repeat=4", "--env.time_limit=600")
    lengths = ("--steps=1208", "--log_every=604", "--eval_every=1208", "--replay.capacity=302")
    done = run(tmp_path / "run", *lengths, *flags, "--eval_eps=1")
    rewards = done.arrays()["ring.rows.reward"]  # of two episodes
    assert set(np.unique(rewards)) == {0.0, 1.0}
    games = [x["episode/score"] for x in done.scores if "episode/score" in x]
    evaluated = [x["eval_episode/score"] for x in done.scores if "eval_episode/score" in x]
    assert len(games) == 2 and len(evaluated) == 1
    assert all(x >= 10 and x % 10 == 0 for x in games + evaluated)
    assert sum(games) >= 10 * rewards.sum()


def test_one_transfer_a_flush(tmp_path, monkeypatch):
    """Per vector step: the row out, the action back. Per update: its number. Per flush: one array back."""
    counts = {}

    def counted(name, call):
        def wrapped(*args):
            counts[name] = counts.get(name, 0) + 1
            return call(*args)

        return wrapped

    before = []
    monkeypatch.setattr(Programs, "policy", counted("policy", Programs.policy))
    monkeypatch.setattr(Programs, "empty", counted("empty", Programs.empty))
    monkeypatch.setattr(
        loop, "run", lambda *args, call=loop.run: (before.append(dict(counts)), call(*args))[1]
    )
    for name in ("device_get", "device_put"):
        monkeypatch.setattr(jax, name, counted(name, getattr(jax, name)))
    flags = ("--task=toy_catch", "--log_every=20", "--eval_every=0", "--checkpoint.enabled=false")
    done = run(tmp_path / "run", "--steps=60", *flags)
    steps, updates, flushes = 60, done.note["updates"], 4
    made = {name: counts[name] - before[0].get(name, 0) for name in counts}
    assert made["device_get"] == steps + flushes
    assert made["device_put"] == steps + updates + flushes
    assert made["policy"] == 1 and made["empty"] == flushes


def test_the_guard_finds_transfers_that_nobody_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(Programs, "put", lambda self, tree: tree)
    with pytest.raises(Exception, match="[Dd]isallowed host-to-device transfer"):
        run(tmp_path / "run", "--steps=20", "--log_every=0", "--eval_every=0")
    note = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "isallowed host-to-device" in note["exit"]


def test_replay_on_the_host_is_the_same_run(tmp_path):
    """In a process where the CPU poses as two devices, of which the last stands for the host."""
    environment = small.several(2)
    flags = ("--steps=80", "--log_every=40", "--eval_every=40", "--replay.holdout=0.2")
    runs = {}
    for placement in ("device", "host"):
        process = small.start(
            tmp_path / placement, *flags, f"--replay.placement={placement}", env=environment
        )
        runs[placement] = process
    for placement, process in runs.items():
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
        runs[placement] = small.Run(tmp_path / placement)
    assert_same_rows(runs["device"], runs["host"])
    assert_same_arrays(runs["device"].arrays(), runs["host"].arrays())


def test_a_run_that_diverges_ends_with_its_code(tmp_path, capsys):
    flags = ("--opt.lr=1", "--steps=200", "--log_every=40", "--eval_every=0", "--save_every=20")
    done = run(tmp_path / "run", *flags, code=70)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    words = "diverged at step 120: 29 updates in a row were not finite.*nan_report.json.*--opt.lr"
    assert re.search(words, lines[0])
    assert done.steps() == [0, 40, 80, 120] and done.note["exit"].startswith("Diverged")
    assert done.arrays()["counters.env_steps"] == 100  # the checkpoint before is kept


def test_a_run_without_rows_diverges_all_the_same(tmp_path, capsys):
    """Whoever saves it looks."""
    flags = ("--log_every=0", "--eval_every=0", "--opt.lr=0.5", "--save_every=60", "--steps=1000")
    done = run(tmp_path / "run", *flags, code=70)
    assert "updates in a row were not finite" in capsys.readouterr().err
    assert done.arrays()["counters.env_steps"] == 60 and not done.rows


def test_dry_run_writes_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    flags = (
        "--config=debug",
        "--steps=4000",
        "--env.num_envs=3",
        "--env.action_repeat=4",
        "--replay.holdout=0.1",
    )
    assert small.train.main([*flags, "--dry_run", "--task=toy_clock"]) == 0
    text = capfd.readouterr().out
    assert not list(tmp_path.iterdir())
    assert "4,008 env_steps = 1,002 agent_steps" in text
    assert re.search(
        r"learning +\d+ updates of 4x8 rows: 1 per 16 env_steps, the first at \d+ env_steps", text
    )
    assert re.search(r"memory +replay +[\d,]+ B", text) and re.search(r"memory +learner +[\d,]+ B", text)


def test_an_update_is_traced_once(tmp_path, monkeypatch):
    """Its metrics' shapes are asked for before it is compiled; at a usable size each trace takes seconds."""
    traced = []

    def counted(*args):
        learner = small.make_learner(*args)
        update = learner.update
        return dataclasses.replace(learner, update=lambda *x: traced.append(len(x)) or update(*x))

    monkeypatch.setitem(learners.LEARNERS, "dreamer", counted)
    run(tmp_path / "run", "--steps=20", "--log_every=0", "--eval_every=0")
    assert traced == [3]


def test_handlers_of_signals_are_put_back(tmp_path):
    import signal

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run(tmp_path / "run", "--steps=5", "--log_every=0", "--eval_every=0", "--agent=random")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert runtime.on_main_thread()
