"""Checkpoints on a disk: what is one, what is damaged, which is used, what is kept, what is logged."""

import json
import math
import os
import random
import shutil
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import checkpoint, manifest, stores
from jaxrl.exits import NoCheckpoint
from jaxrl.faults import Faults
from jaxrl.stores import BEST, LATEST, PERIODIC, STORES, Stores, find
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
    fill(folder, [15, 25], PERIODIC)
    fill(folder, [12], BEST, scores=[3.0])
    (folder / "checkpoints" / BEST / "12").rename(folder / "spare")
    fill(folder, [22], BEST, scores=[3.0])
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
    assert made.best_score == 7.0
    fill(tmp_path, [40], BEST, scores=[7.0])
    assert names(tmp_path, BEST) == ["40"]
    fill(tmp_path, [50], BEST, scores=[None])  # no number
    assert names(tmp_path, BEST) == ["40"] and opened(tmp_path)[0].best_score == 7.0


def test_the_score_of_a_store_without_numbers(tmp_path):
    assert opened(tmp_path)[0].best_score is None
    fill(tmp_path, [10], BEST, scores=[None])
    assert opened(tmp_path)[0].best_score == -math.inf


def test_a_step_is_saved_once_but_again_after_going_back(tmp_path):
    fill(tmp_path, [10])
    fill(tmp_path, [10, 20], PERIODIC)
    made, _ = opened(tmp_path)
    assert made.save(LATEST, 20, arrays(0), facts(20))
    assert not made.save(LATEST, 20, arrays(0), facts(20))
    assert made.save(PERIODIC, 20, arrays(7), facts(20))
    assert [x.failure for x in made.poll(60)] == [None, None]
    made.close()
    assert names(tmp_path, PERIODIC) == ["10", "20.2"]
    assert find(tmp_path / "checkpoints" / PERIODIC).folder.name == "20.2"


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
    assert found and (found.store, found.step) == (PERIODIC, 25)


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
    assert outcome.not_finite == "learner.w" and outcome.failure == "learner.w is not finite"
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
    assert made.save(BEST, 20, arrays(20), facts(20, 9.0)) and made.best_score == 9.0
    assert made.poll(60)[0].failure and made.best_score == 5.0
    made.close()


@pytest.mark.parametrize("store", [BEST, PERIODIC])
def test_damage_is_found_where_nobody_goes_on_from(filled, tmp_path, store):
    run = tmp_path / "run"
    shutil.copytree(filled, run)
    newest = run / "checkpoints" / store / {BEST: "22", PERIODIC: "25"}[store]
    flip(largest(newest / "device"))
    made, (found, (note,)) = opened(run)
    assert found.step == 20 and f"{store}/{newest.name} is damaged" in note and not newest.exists()
    assert made.best_score == 3.0  # of the one before it, where it is the best that was damaged


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
    for path, what in ((tmp_path / "no", "does not exist"), (tmp_path, "holds no intact checkpoint")):
        with pytest.raises(NoCheckpoint, match=f"{what}; name a run directory"):
            find(path)
    assert find(filled / "checkpoints" / BEST / "22").score == 3.0
    assert find(filled / "checkpoints" / PERIODIC).step == 25
    assert find(filled).step == 20


def test_a_torn_line_of_the_log_goes_with_the_next(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b'{"event": "saved", "store": "latest", "name": "1"}\n{"event": "sa')
    made = Log(path)
    assert made.saved() == {"latest/1"}
    made.add({"event": "removed", "store": "latest", "name": "1"})
    assert [x["event"] for x in made.lines()] == ["saved", "removed"] and made.saved() == set()
    assert path.read_bytes().count(b"\n") == 2
