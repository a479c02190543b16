"""Checkpoints on a disk: what is one, what is damaged, which is used, what is kept, what is logged."""

import json
import math
import os
import random
import shutil
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import checkpoint, manifest, stores
from jaxrl.exits import NoCheckpoint
from jaxrl.faults import Faults
from jaxrl.stores import BEST, LATEST, PERIODIC, STORES, Rank, Stores, find
from jaxrl.stores.log import Log


def arrays(number):
    return {"learner.w": jnp.arange(300.0) + number, "flag": jnp.array([True])}, {
        "scores": np.full(3, number)
    }


def facts(step, score=None, reason="interval"):
    counters = {"env_steps": step, "updates": step // 2, "episodes": 1, "wall_s": 1.5}
    return {"counters": counters, "agent_steps": step, "time": "now", "score": score, "reason": reason}


def opened(folder, keep=2, periodic_keep=0):
    made = Stores(folder, keep, periodic_keep, Faults(""))
    return made, made.recover()


def fill(folder, steps, store=LATEST, scores=(), **options):
    """Saves at each of the steps, one after another; what became of them."""
    made, _ = opened(folder, **options)
    outcomes = []
    for number, step in enumerate(steps):
        score = scores[number] if scores else None
        assert made.save(store, step, arrays(step), facts(step, score))
        outcomes += made.poll(60)
    made.close()
    return outcomes


def values(made):
    return made.best.values


def names(folder, store=LATEST):
    return sorted(x.name for x in (folder / "checkpoints" / store).iterdir())


def log(folder, *keys):
    lines = [json.loads(x) for x in (folder / "checkpoint_log.jsonl").read_text().splitlines()]
    return [tuple(line[k] for k in keys) for line in lines]


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A run with two checkpoints in each store."""
    folder = tmp_path_factory.mktemp("run")
    fill(folder, [10, 20])
    fill(folder, [15, 18], PERIODIC)
    fill(folder, [12], BEST, scores=[3.0])
    (folder / "checkpoints" / BEST / "12").rename(folder / "spare")
    fill(folder, [16], BEST, scores=[3.0])
    shutil.copytree(folder / "spare", folder / "checkpoints" / BEST / "12")
    return folder


def test_what_was_saved_comes_back(tmp_path):
    (outcome,) = fill(tmp_path, [10])
    assert outcome.failure is None and outcome.step == 10
    found = find(tmp_path)
    assert (found.step, found.store, found.folder.name) == (10, LATEST, "10")
    shapes, _ = checkpoint.shapes(found.folder)
    on_device, on_host = checkpoint.load(found.folder, {k: arrays(0)[0][k] for k in shapes})
    np.testing.assert_array_equal(on_device["learner.w"], np.arange(300.0) + 10)
    np.testing.assert_array_equal(on_host["scores"], [10, 10, 10])
    (line,) = log(
        tmp_path, "event", "store", "name", "step", "agent_steps", "updates", "episodes", "run_s", "reason"
    )
    assert line == ("saved", "latest", "10", 10, 10, 5, 1, 1.5, "interval")
    ((size, seconds),) = log(tmp_path, "bytes", "seconds")
    files = [x for x in found.folder.rglob("*") if x.is_file() and x.name != manifest.NAME]
    assert size == sum(x.stat().st_size for x in files) and 0 < seconds < 60


def test_the_newest_stay_and_the_log_says_what_went(tmp_path):
    fill(tmp_path, [10, 20, 30, 40], keep=2)
    assert names(tmp_path) == ["30", "40"]
    events = log(tmp_path, "event", "name")
    assert events == [
        ("saved", "10"),
        ("saved", "20"),
        ("saved", "30"),
        ("removed", "10"),
        ("saved", "40"),
        ("removed", "20"),
    ]
    fill(tmp_path, [10, 20, 30], PERIODIC)
    assert names(tmp_path, PERIODIC) == ["10", "20", "30"]
    fill(tmp_path, [40], PERIODIC, periodic_keep=2)
    assert names(tmp_path, PERIODIC) == ["30", "40"]


def test_the_best_is_the_one_with_the_highest_score(tmp_path):
    fill(tmp_path, [10], BEST, scores=[5.0])
    fill(tmp_path, [20], BEST, scores=[7.0])
    fill(tmp_path, [30], BEST, scores=[6.0])  # whoever saves it all the same does not replace the best
    assert names(tmp_path, BEST) == ["20"]
    made, _ = opened(tmp_path)
    assert values(made) == (7.0,)
    fill(tmp_path, [40], BEST, scores=[7.0])
    assert names(tmp_path, BEST) == ["40"]
    fill(tmp_path, [50], BEST, scores=[None])  # no number
    assert names(tmp_path, BEST) == ["40"] and values(opened(tmp_path)[0]) == (7.0,)


def test_the_score_of_a_store_without_numbers(tmp_path):
    assert opened(tmp_path)[0].best is None
    fill(tmp_path, [10], BEST, scores=[None])
    assert values(opened(tmp_path)[0]) == (-math.inf,)


def test_a_step_is_saved_once_but_again_after_going_back(tmp_path):
    fill(tmp_path, [10])
    fill(tmp_path, [10, 20], PERIODIC)
    made, _ = opened(tmp_path)
    assert made.save(LATEST, 20, arrays(0), facts(20))
    assert not made.save(LATEST, 20, arrays(0), facts(20))
    assert made.save(PERIODIC, 20, arrays(7), facts(20))
    assert [x.failure for x in made.poll(60)] == [None, None]
    made.close()
    assert names(tmp_path, PERIODIC) == ["10", "20"]
    assert made.save(PERIODIC, 10, arrays(7), facts(20))
    assert [x.failure for x in made.poll(60)] == [None]
    made.close()
    assert names(tmp_path, PERIODIC) == ["10.2", "20"]


DAMAGE = {
    "manifest gone": lambda f: (f / "manifest.json").unlink(),
    "manifest empty": lambda f: (f / "manifest.json").write_bytes(b""),
    "manifest cut": lambda f: cut(f / "manifest.json"),
    "manifest of another step": lambda f: edit(f / "manifest.json", '"step": ', '"step": 9'),
    "manifest no JSON": lambda f: (f / "manifest.json").write_bytes(b"\xff{"),
    "manifest a list": lambda f: (f / "manifest.json").write_text("[]"),
    "manifest of another checkpoint": lambda f: shutil.copy(f.parents[2] / "spare" / "manifest.json", f),
    "array flipped": lambda f: flip(largest(f / "device")),
    "array cut": lambda f: cut(largest(f / "device")),
    "array empty": lambda f: largest(f / "device").write_bytes(b""),
    "array gone": lambda f: largest(f / "device").unlink(),
    "array longer": lambda f: largest(f / "device").write_bytes(largest(f / "device").read_bytes() + b"\0"),
    "array a folder": lambda f: (largest(f / "device").unlink(), largest(f / "device", "gone").mkdir()),
    "index gone": lambda f: (f / "device" / "manifest.ocdbt").unlink(),
    "index cut": lambda f: cut(f / "device" / "manifest.ocdbt"),
    "names gone": lambda f: (f / "device" / "_METADATA").unlink(),
    "names cut": lambda f: cut(f / "device" / "_METADATA"),
    "shapes flipped": lambda f: flip(next((f / "device" / "array_metadatas").iterdir())),
    "host array flipped": lambda f: flip(largest(f / "host")),
    "host gone": lambda f: shutil.rmtree(f / "host"),
    "device gone": lambda f: shutil.rmtree(f / "device"),
    "empty folder": lambda f: (shutil.rmtree(f), f.mkdir()),
    "a file instead": lambda f: (shutil.rmtree(f), f.write_bytes(b"")),
}


def largest(folder, name=None):
    files = [x for x in folder.rglob("*") if x.is_file()]
    return folder / name if name else max(files, key=lambda x: x.stat().st_size)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path, at=None, bit=3):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1 << bit
    path.write_bytes(content)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("kind", DAMAGE)
def test_every_damage_is_found_and_the_checkpoint_before_is_used(filled, tmp_path, kind, store):
    run = tmp_path / "run"
    shutil.copytree(filled, run)
    for other in STORES:
        if other != store:
            shutil.rmtree(run / "checkpoints" / other)
    newest = max((run / "checkpoints" / store).iterdir(), key=lambda x: int(x.name))
    edit_log(run, lambda line: line["store"] == store)
    DAMAGE[kind](newest)
    before = content(run)
    with pytest.raises(NoCheckpoint):
        find(newest)
    assert find(run).folder.name < newest.name and content(run) == before  # it only looks
    made, (found, notes) = opened(run)
    made.close()
    assert found is not None and found.folder != newest and found.step < int(newest.name)
    assert len(notes) == 1 and f"{store}/{newest.name} is damaged" in notes[0], notes
    assert not newest.exists()
    assert opened(run)[1][1] == []  # told once


def edit_log(run, wanted):
    path = run / "checkpoint_log.jsonl"
    lines = [x for x in path.read_text().splitlines() if wanted(json.loads(x))]
    path.write_text("".join(x + "\n" for x in lines))


def content(folder):
    return {x.relative_to(folder): x.read_bytes() if x.is_file() else None for x in folder.rglob("*")}


def test_two_hundred_random_damages(filled, tmp_path):
    """Any byte of any file, any length: never a wrong number."""
    dice = random.Random(7)
    whole = filled / "checkpoints" / LATEST / "20"
    files = [x.relative_to(whole) for x in sorted(whole.rglob("*")) if x.is_file() and x.stat().st_size]
    for number in range(200):
        folder = tmp_path / "20"
        shutil.copytree(whole, folder)
        path = folder / dice.choice(files)
        size = path.stat().st_size
        if number % 2:
            flip(path, dice.randrange(size), dice.randrange(8))
        else:
            os.truncate(path, dice.randrange(size))
        with pytest.raises(manifest.Damaged):
            manifest.verify(folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["../../../notes", "/etc/hostname", "device/../../10/manifest.json"])
def test_a_manifest_names_only_its_own_files(filled, tmp_path, name):
    """Even a forged one has no other file read."""
    folder = tmp_path / "20"
    shutil.copytree(filled / "checkpoints" / LATEST / "20", folder)
    told = json.loads((folder / "manifest.json").read_text())
    told["files"] = {name: {"bytes": 1, "sha256": ""}} | told["files"]
    (folder / "manifest.json").write_text(json.dumps(told | {"sha256": manifest.own_digest(told)}))
    with pytest.raises(manifest.Damaged, match="names a file outside of its folder"):
        manifest.verify(folder)


def test_nothing_intact_is_refused_and_not_touched(filled, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(filled, run)
    for path in (run / "checkpoints").glob("*/*/manifest.json"):
        flip(path)
    before = content(run)
    made = Stores(run, 2, 0, Faults(""))
    with pytest.raises(NoCheckpoint, match="no intact checkpoint is left"):
        made.recover()
    assert content(run) == before
    shutil.rmtree(run / "checkpoints")  # even if all are gone: the log knows that there were some
    with pytest.raises(NoCheckpoint, match="its manifest is missing"):
        Stores(run, 2, 0, Faults("")).recover()


def test_without_an_intact_whole_state_the_newest_of_the_others_is_used(filled, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(filled, run)
    for name in ("10", "20"):
        flip(run / "checkpoints" / LATEST / name / "device" / "manifest.ocdbt")
    found = opened(run)[1][0]
    assert found and (found.store, found.step) == (PERIODIC, 18)


def test_a_newer_format_is_refused(filled, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(filled, run)
    path = run / "checkpoints" / LATEST / "20" / "manifest.json"
    told = json.loads(path.read_text()) | {"format": manifest.FORMAT + 1}
    path.write_text(json.dumps(told | {"sha256": manifest.own_digest(told)}))
    before = content(run)
    with pytest.raises(NoCheckpoint, match="has format 2, this program reads up to 1; update jaxrl"):
        Stores(run, 2, 0, Faults("")).recover()
    assert content(run) == before


def test_what_a_dead_process_left_is_cleared_up(tmp_path):
    """Half-written folders go, a checkpoint that was not logged is, one logged as removed is removed."""
    fill(tmp_path, [10, 20])
    home = tmp_path / "checkpoints" / LATEST
    shutil.copytree(home / "20", home / "30")
    (home / "30" / "manifest.json").unlink()
    shutil.copytree(home / "20", home / "40.orbax-checkpoint-tmp")
    shutil.copytree(home / "20", home / "5.removed")
    (home / "notes.txt").write_text("mine")
    lines = (tmp_path / "checkpoint_log.jsonl").read_text().splitlines()
    (tmp_path / "checkpoint_log.jsonl").write_text(lines[0] + "\n" + lines[1][:30])
    _, (found, notes) = opened(tmp_path)
    assert found and found.step == 20 and notes == []
    assert names(tmp_path) == ["10", "20", "notes.txt"]
    assert log(tmp_path, "event", "name", "seconds")[1] == ("saved", "20", None)


def test_numbers_that_are_not_finite_do_not_become_a_checkpoint(tmp_path):
    made, _ = opened(tmp_path)
    finite = ["learner.v", "learner.w"], jnp.array([True, False])
    assert made.save(LATEST, 10, arrays(0), facts(10), finite)
    (outcome,) = made.poll(60)
    assert outcome.not_finite == ("learner.w",) and outcome.failure == "learner.w is not finite"
    assert names(tmp_path) == []
    assert made.save(LATEST, 10, arrays(0), facts(10))  # it can be tried again
    assert made.poll(60)[0].failure is None
    made.close()


@pytest.mark.parametrize("kind", ["full", "raise", "exit"])
def test_a_save_that_fails_is_told_and_leaves_nothing(tmp_path, kind):
    before = threading.active_count()
    made = Stores(tmp_path, 2, 0, Faults(f"{kind}@commit:2"))
    made.recover()
    for step in (10, 20, 30):
        assert made.save(LATEST, step, arrays(step), facts(step))
    outcomes = made.poll(60)
    made.close()
    assert [(x.step, x.failure is None) for x in outcomes] == [(10, True), (20, False), (30, True)]
    assert names(tmp_path) == ["10", "30"]
    assert [x for x in log(tmp_path, "event", "name") if x[1] == "20"] == []
    assert threading.active_count() == before


@pytest.mark.parametrize("kind", ["full", "raise", "exit"])
def test_what_goes_wrong_after_the_manifest_takes_no_checkpoint_away(tmp_path, kind):
    made = Stores(tmp_path, 2, 0, Faults(f"{kind}@manifest:2"))
    made.recover()
    for step in (10, 20):
        assert made.save(LATEST, step, arrays(step), facts(step))
    first, second = made.poll(60)
    made.close()
    assert first.remark is None and second.failure is None and second.remark
    assert names(tmp_path) == ["10", "20"] and log(tmp_path, "name") == [("10",)]
    assert opened(tmp_path)[1][0].step == 20
    assert log(tmp_path, "name") == [("10",), ("20",)]  # the next start does what was left undone


def test_a_best_that_was_not_written_is_not_the_best(tmp_path):
    fill(tmp_path, [10], BEST, scores=[5.0])
    made = Stores(tmp_path, 2, 0, Faults("full@commit:1"))
    made.recover()
    assert made.save(BEST, 20, arrays(20), facts(20, 9.0)) and values(made) == (9.0,)
    assert made.poll(60)[0].failure and values(made) == (5.0,)
    made.close()


@pytest.mark.parametrize("store", [BEST, PERIODIC])
def test_damage_is_found_where_nobody_goes_on_from(filled, tmp_path, store):
    run = tmp_path / "run"
    shutil.copytree(filled, run)
    newest = run / "checkpoints" / store / {BEST: "16", PERIODIC: "18"}[store]
    flip(largest(newest / "device"))
    made, (found, (note,)) = opened(run)
    assert found.step == 20 and f"{store}/{newest.name} is damaged" in note and not newest.exists()
    assert values(made) == (3.0,)  # of the one before it, where it is the best that was damaged


def test_a_disk_that_does_not_answer_is_no_damage(filled, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(filled, run)

    def fails(*args, **kwargs):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(manifest, "digest_of", fails)
    before = content(run)
    with pytest.raises(OSError, match="Input/output"):
        opened(run)
    with pytest.raises(NoCheckpoint, match="Input/output"):
        find(run / "checkpoints" / LATEST / "20")
    assert content(run) == before


def test_a_save_that_cannot_begin_leaves_nothing(tmp_path, monkeypatch):
    made, _ = opened(tmp_path)

    def fails(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(stores.checkpoint, "begin", fails)
        with pytest.raises(OSError, match="No space left"):
            made.save(LATEST, 5, arrays(0), facts(5))
    assert made.save(LATEST, 5, arrays(0), facts(5))
    assert made.poll(60)[0].failure is None
    made.close()


def test_the_reason_of_an_error_is_short_and_keeps_its_end():
    error = RuntimeError("outer")
    error.__cause__ = ValueError(f"failed to write {'x' * 1_000}: No space left on device\nmore")
    text = checkpoint.reason(error)
    assert text.startswith("ValueError: failed to write x") and text.endswith("x: No space left on device")
    assert len(text) < 320


def test_looking_for_what_is_not_there(filled, tmp_path):
    for path, what in ((tmp_path / "no", "does not exist"), (tmp_path, "has no checkpoint yet")):
        with pytest.raises(NoCheckpoint, match=f"{what}; name a run directory"):
            find(path)
    assert find(filled / "checkpoints" / BEST / "16").score == 3.0
    assert find(filled / "checkpoints" / PERIODIC).step == 18
    assert find(filled).step == 20


def test_a_torn_line_of_the_log_goes_with_the_next(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b'{"event": "saved", "store": "latest", "name": "1"}\n{"event": "sa')
    made = Log(path)
    assert made.saved() == {"latest/1"}
    made.add({"event": "removed", "store": "latest", "name": "1"})
    assert [x["event"] for x in made.lines()] == ["saved", "removed"] and made.saved() == set()
    assert path.read_bytes().count(b"\n") == 2


# Going back.


def ranked(step, success, score, names=("eval_episode/success_rate", "eval_episode/avg_score")):
    return facts(step, score) | {"rank": list(zip(names, (success, score), strict=True))}


def put(made, store, step, told=None):
    assert made.save(store, step, arrays(step), told or facts(step))
    (outcome,) = made.poll(60)
    assert outcome.failure is None
    made.close()


def test_what_lies_beyond_the_step_that_a_run_goes_back_to_is_set_aside(tmp_path):
    made, _ = opened(tmp_path)
    put(made, LATEST, 20)
    for step, score in ((15, 1.0), (30, 5.0)):
        put(made, PERIODIC, step)
        put(made, BEST, step, facts(step, score))
    put(made, LATEST, 40)
    flip(largest(tmp_path / "checkpoints" / LATEST / "40" / "device"))
    made, (found, (damaged, note)) = opened(tmp_path)
    assert found.step == 20 and "latest/40 is damaged" in damaged
    assert note.startswith("best/30, periodic/30: beyond step 20") and ".undone" in note
    assert names(tmp_path, BEST) == ["30.undone"] and made.best is None
    assert names(tmp_path, PERIODIC) == ["15", "30.undone"]
    assert find(tmp_path).step == 20 and opened(tmp_path)[1][1] == []
    assert find(tmp_path / "checkpoints" / BEST / "30.undone").score == 5.0  # for who wants it by its name
    assert log(tmp_path, "event", "name")[-3:] == [("quarantined", "40"), ("undone", "30"), ("undone", "30")]
    with pytest.raises(NoCheckpoint):
        find(tmp_path / "checkpoints" / BEST)


def test_what_was_undone_goes_when_the_run_has_made_up_for_it(tmp_path):
    made, _ = opened(tmp_path)
    put(made, LATEST, 20)
    put(made, PERIODIC, 30)
    put(made, BEST, 30, facts(30, 5.0))
    made, _ = opened(tmp_path)
    put(made, BEST, 25, facts(25, 4.0))
    assert names(tmp_path, BEST) == ["25", "30.undone"]  # the better one, though of another history
    put(made, PERIODIC, 40)
    assert names(tmp_path, PERIODIC) == ["30.undone", "40"]
    put(made, PERIODIC, 30)
    assert names(tmp_path, PERIODIC) == ["30", "40"]
    put(made, BEST, 35, facts(35, 5.0))
    assert names(tmp_path, BEST) == ["35"]
    made, _ = opened(tmp_path)  # goes back to 20 once more
    assert names(tmp_path, BEST) == ["35.undone"] and made.best is None
    put(made, BEST, 35, facts(35, 3.0))
    opened(tmp_path)
    assert names(tmp_path, BEST) == ["35.undone"]  # of two undone ones the better
    assert find(tmp_path / "checkpoints" / BEST / "35.undone").score == 5.0


def test_without_an_intact_whole_state_nothing_undone_is_used(tmp_path):
    """The newest of this history, by a line that says what it lacks."""
    made, _ = opened(tmp_path)
    put(made, LATEST, 20)
    put(made, PERIODIC, 30)
    made, _ = opened(tmp_path)
    put(made, BEST, 22, facts(22, 1.0))
    flip(largest(tmp_path / "checkpoints" / LATEST / "20" / "device"))
    assert find(tmp_path).step == 22
    _, (found, (note,)) = opened(tmp_path)
    assert (found.store, found.step) == (BEST, 22) and note.endswith("using best/22, which has no replay")


def test_what_was_just_saved_is_not_pruned(tmp_path):
    """However old what else is there says that it is."""
    fill(tmp_path, [100], PERIODIC)
    made, _ = opened(tmp_path, periodic_keep=1)
    put(made, PERIODIC, 50)
    assert "50" in names(tmp_path, PERIODIC)
    put(made, PERIODIC, 150)
    assert names(tmp_path, PERIODIC) == ["150"]


def test_success_counts_before_the_score(tmp_path):
    made, _ = opened(tmp_path)
    put(made, BEST, 10, ranked(10, 0.5, 9.0))
    put(made, BEST, 20, ranked(20, 0.75, 1.0))
    assert names(tmp_path, BEST) == ["20"] and values(made) == (0.75, 1.0)
    put(made, BEST, 30, ranked(30, 0.75, 0.5))  # whoever saves it all the same
    assert names(tmp_path, BEST) == ["20"] and values(opened(tmp_path)[0]) == (0.75, 1.0)
    kept = find(tmp_path / "checkpoints" / BEST)
    assert kept.rank.names == ("eval_episode/success_rate", "eval_episode/avg_score")
    assert not Rank(kept.rank.names, (0.75, 0.5)).beats(kept.rank) and kept.rank.beats(kept.rank)


def test_what_other_metrics_say_is_not_compared(tmp_path):
    """The newest tells by what they are judged now; an earlier version has kept the name in the config."""
    made, _ = opened(tmp_path)
    put(made, BEST, 10, facts(10, 500.0) | {"config": {"checkpoint.best_metric": "eval_episode/length"}})
    old = find(tmp_path / "checkpoints" / BEST).rank
    assert old == Rank(("eval_episode/length",), (500.0,))
    assert Rank(("eval_episode/avg_score",), (1.0,)).beats(old)
    put(made, BEST, 20, facts(20, 1.0) | {"rank": [("eval_episode/avg_score", 1.0)]})
    assert names(tmp_path, BEST) == ["20"] and values(opened(tmp_path)[0]) == (1.0,)


# Large arrays.


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(checkpoint, "LARGE", 1_000)
    monkeypatch.setattr(checkpoint, "PIECE", 200)
    monkeypatch.setattr(checkpoint, "LEAST", 40)


LARGE = {  # shape, dtype, rows of a stored piece
    "many rows": ((60, 2, 10), np.uint8, 10),
    "no common divisor": ((60, 7, 3), np.uint8, 6),
    "a prime number of rows": ((61, 2, 10), np.uint8, 61),
    "large rows": ((30, 3, 4, 5), np.float32, 1),
    "long rows": ((60, 1, 39), np.uint8, 15),
    "half precision": ((80, 10), jnp.bfloat16, 10),
    "one axis": ((3_000,), np.float32, 3_000),
    "small": ((10, 2), np.uint8, 10),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("more", [0, 7])
def test_arrays_in_pieces_come_back(tmp_path, small_pieces, name, more):
    """The same bits, with rows of zeros behind them where more are asked for."""
    shape, dtype, rows = LARGE[name]
    draw = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    stored = {"ring.x": jnp.asarray(draw), "w": jnp.arange(3.0)}
    checkpoint.begin(tmp_path / "20", stored, {"scores": np.zeros(3)}).result()
    place = jnp.zeros(1).sharding
    asked = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for k, x in stored.items()}
    asked["ring.x"] = asked["ring.x"].update(shape=(shape[0] + more, *shape[1:]))
    found, host = checkpoint.load(tmp_path / "20", asked)
    assert list(found) == ["ring.x", "w"] and found["ring.x"].dtype == dtype
    np.testing.assert_array_equal(np.asarray(found["ring.x"])[: shape[0]], draw)
    assert not np.asarray(found["ring.x"], np.float32)[shape[0] :].any()
    np.testing.assert_array_equal(found["w"], np.arange(3.0))
    assert host["scores"].shape == (3,)
    pieces = dict(checkpoint.in_pieces(tmp_path / "20", asked))
    assert (checkpoint.piece_of(pieces["ring.x"])[0] if pieces else shape[0]) == rows
    only = checkpoint.load(tmp_path / "20", {"ring.x": asked["ring.x"]}, part=True)[0]
    np.testing.assert_array_equal(np.asarray(only["ring.x"]), np.asarray(found["ring.x"]))


def test_what_was_stored_as_a_whole_is_read(tmp_path, monkeypatch):
    """As earlier versions did."""
    monkeypatch.setattr(checkpoint, "divided", lambda key, array: None)
    stored = {"ring.x": jnp.arange(4_000.0).reshape(100, 40)}
    checkpoint.begin(tmp_path / "20", stored, {"scores": np.zeros(3)}).result()
    monkeypatch.setattr(checkpoint, "LARGE", 1_000)
    place = jnp.zeros(1).sharding
    asked = {"ring.x": jax.ShapeDtypeStruct((120, 40), np.float32, sharding=place)}
    assert dict(checkpoint.in_pieces(tmp_path / "20", asked)) == {}
    found, _ = checkpoint.load(tmp_path / "20", asked)
    np.testing.assert_array_equal(found["ring.x"][:100], stored["ring.x"])


LOADS = """
import pathlib, sys
import jax, jax.numpy as jnp, numpy as np
from jaxrl import checkpoint

def peak():
    return next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmHWM")) * 1024

place = jnp.zeros(1).sharding
for name in ("little", "much"):
    folder = pathlib.Path(sys.argv[1]) / name
    found = checkpoint.shapes(folder)[0]
    asked = {k: jax.ShapeDtypeStruct(tuple(x.shape), x.dtype, sharding=place) for k, x in found.items()}
    before = peak()
    jax.block_until_ready(checkpoint.load(folder, asked)[0])
print((peak() - before) / 300e6)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks Linux for the peak")
def test_a_load_needs_no_second_copy(tmp_path):
    """Of a ring of 300 MB, in a process that has loaded something before."""
    for name, rows in (("little", 20), ("much", 30_000)):
        ring = jnp.broadcast_to(jnp.arange(10_000, dtype=jnp.uint8), (rows, 1, 10_000)) + jnp.uint8(1)
        checkpoint.begin(tmp_path / name, {"ring.x": ring, "w": jnp.ones(9)}, {"s": np.zeros(3)}).result()
    done = subprocess.run([sys.executable, "-c", LOADS, tmp_path], capture_output=True, text=True, check=True)
    assert 0.9 < float(done.stdout) < 1.25, done.stdout
