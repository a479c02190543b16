"""A run: who works in it, and whether it can be continued. Nothing in it is changed."""

import pathlib
import platform
import re
import shlex
from collections.abc import Iterator
from typing import Any

from jaxrl import changes, manifest, reading, rundir, runtime
from jaxrl.checks import disk
from jaxrl.checks.finding import FAULT, OK, WARN, Finding, Wish, first_line, halves, plural, size
from jaxrl.config import ConfigError
from jaxrl.reading import Past

STORES = ("latest", "best", "periodic")  # as in jaxrl.stores, which imports jax
HOLDER = re.compile(r"pid (\d+) on (\S+) since (\S+)")
NAME = re.compile(r"(\d{1,15})(?:\.(\d{1,6}))?")


def lock(wish: Wish) -> Iterator[Finding]:
    """Whether another process works in it."""
    file = of(wish) / "run.lock"
    text = file.read_text(errors="replace")[:200].strip() if file.is_file() else ""
    if not reading.is_locked(of(wish)):
        yield Finding(OK, "run: lock", f"free; last held by {text}" if text else "free")
        return
    remedy = f"fuser -v {shlex.quote(str(file))} shows who holds it"
    if found := HOLDER.match(text):
        pid, host = found[1], found[2]
        if host != platform.node():
            remedy = f"wait for it, or end it, which saves first: ssh {host} kill {pid}"
        elif pathlib.Path("/proc", pid).exists():
            remedy = f"wait for it, or end it, which saves first: kill {pid}"
        else:
            text += " (that one has ended, another has inherited its lock)"
    yield Finding(WARN, "run: lock", f"in use by {text or 'a process that left no name'}", remedy)


def config(wish: Wish) -> Iterator[Finding]:
    """Whether the saved settings can be read, and mean something to this version."""
    file = of(wish) / "config.json"
    try:
        values = rundir.read_json(file)
    except (OSError, ValueError) as error:
        what = f"{file}: cannot be read ({first_line(error)})"
        yield Finding(FAULT, "run: config", what, config_from_manifest(wish))
        return
    try:
        known, notes = changes.saved_config(values)
    except ConfigError as error:
        remedy = f"correct that line of {file}, or use the version of jaxrl that run.json names"
        yield Finding(FAULT, "run: config", str(error), remedy)
        return
    preset = rundir.preset_of(of(wish)) or "?"
    what = f"{preset}, {known.task}, {known.agent}, seed {known.seed}, {known.steps:,} env_steps"
    yield Finding(OK, "run: config", "; ".join([what, *notes]))


def config_from_manifest(wish: Wish) -> str:
    """How to put config.json back: every checkpoint has a copy."""
    for store in STORES:
        for folder in newest(of(wish), store):
            script = (
                "import json, sys; _, a, b = sys.argv; json.dump(json.load(open(a))['config'], open(b, 'w'))"
            )
            paths = (folder / manifest.NAME, of(wish) / "config.json")
            return f'python -c "{script}" {" ".join(shlex.quote(str(x)) for x in paths)}'
    return "put it back from a copy, or choose another logdir"


def checkpoints(wish: Wish) -> Iterator[Finding]:
    """The newest of each store, every byte of it; with `fast` the sizes of its files."""
    for store in STORES:
        damage = {}
        for folder in newest(of(wish), store):
            try:
                told = verified(folder, wish.fast)
            except manifest.Damaged as error:
                damage[folder] = str(error)
                continue
            except manifest.TooNew as error:
                yield Finding(FAULT, f"run: {store}", *halves(str(error), "pip install -U jaxrl"))
                break
            yield of_store(folder, told, damage, wish.fast)
            if store == "latest":
                yield room(wish, told)
            break
        else:
            if damage:
                yield none_left(store, damage)
            elif store == "latest":
                yield nothing_saved(wish)


def of_store(
    folder: pathlib.Path, told: dict[str, Any], damage: dict[pathlib.Path, str], fast: bool
) -> Finding:
    """Of a store that has an intact checkpoint.

    Args:
      folder: that checkpoint.
      told: its manifest.
      damage: newer ones that are not intact, and why.
    """
    store = folder.parent.name
    what = f"step {told['step']:,}, {size(total(told))}, {'sizes' if fast else 'digests'} right"
    if not damage:
        return Finding(OK, f"run: {store}", what)
    (bad, why), *_ = damage.items()
    remedy = "start the run again: it sets the damaged one aside. Twice in a row: have the disk tested"
    return Finding(WARN, f"run: {store}", f"{store}/{bad.name} is damaged: {why}; intact is {what}", remedy)


def none_left(store: str, damage: dict[pathlib.Path, str]) -> Finding:
    """Of a store in which all are damaged."""
    (bad, why), *_ = damage.items()
    what = f"{plural(len(damage), 'checkpoint')}, none intact; {store}/{bad.name}: {why}"
    remedy = f"put {bad} back from a copy"
    if store == "latest":
        return Finding(
            FAULT, f"run: {store}", what, f"{remedy}; else what is in best is used, without replay"
        )
    return Finding(WARN, f"run: {store}", what, f"{remedy}; going on with the run does not need it")


def nothing_saved(wish: Wish) -> Finding:
    """Of a run without the whole state of any step."""
    told = [x for x in Past(of(wish), {}, {}, []).saved if x.get("store") == "latest"]
    if told:
        what = f"checkpoint_log.jsonl tells of {plural(len(told), 'checkpoint')}, but none is there"
        return Finding(FAULT, "run: latest", what, f"put {of(wish) / 'checkpoints'} back from a copy")
    return Finding(OK, "run: latest", "no checkpoint yet, so the run would begin at step 0")


def room(wish: Wish, told: dict[str, Any]) -> Finding:
    """Whether another checkpoint fits beside those that are there."""
    free, need = disk.free_bytes(of(wish)), total(told)
    what = f"{size(free)} free, the next checkpoint takes about {size(need)}"
    if free > 2 * need:
        return Finding(OK, "run: disk", what)
    remedy = f"{disk.largest(of(wish).parent)}; or --checkpoint.replay=false makes them small"
    return Finding(FAULT if free < need else WARN, "run: disk", what, remedy)


def rows(wish: Wish) -> Iterator[Finding]:
    """Whether every line of the metrics and scores can be read."""
    past = Past(of(wish), {}, {}, [])
    count, episodes = len(past.rows), len(past.scores)
    for remark in past.remarks:
        remedy = "none is needed: readers pass over them, and a run that goes on keeps whole lines only"
        yield Finding(WARN, "run: rows", remark, remedy)
    if not past.remarks:
        last = f", the last at step {past.rows[-1]['step']:,}" if count else ""
        yield Finding(OK, "run: rows", f"{plural(count, 'row')}{last}; {plural(episodes, 'episode')}")


def ending(wish: Wish) -> Iterator[Finding]:
    """How its last process ended."""
    run = shlex.quote(str(of(wish)))
    again = f"python -m jaxrl.train --logdir={run}"
    try:
        note = rundir.read_json(of(wish) / "run.json")
    except (OSError, ValueError) as error:
        what = f"run.json cannot be read ({first_line(error)}): id and lineage come from the checkpoint"
        yield Finding(WARN, "run: ending", what, f"{again} writes a new one")
        return
    state, when = Past(of(wish), {}, note, []).state, note.get("ended") or "an unknown time"
    if state == "running":
        yield Finding(OK, "run: ending", "running")
    elif state in ("done", "stopped"):
        yield Finding(OK, "run: ending", f"{state} at {when}" + f"; {again} goes on" * (state == "stopped"))
    elif state == "died":
        what = "ended without a word: killed, out of memory, or a power cut"
        remedy = f"{again} goes on; sudo dmesg -T | grep -i 'killed process' tells if memory ran out"
        yield Finding(WARN, "run: ending", what, remedy)
    else:
        why = first_line(str(note.get("exit")))
        report = of(wish) / "nan_report.json"
        remedy = f"{again} goes on"
        if why.startswith("Diverged") and report.is_file():
            remedy = f"{report} says where it began; {again} --opt.lr=1e-5 goes on with smaller steps"
        yield Finding(WARN, "run: ending", f"failed at {when}: {why}", remedy)
    yield from versions(note)


def versions(note: dict[str, Any]) -> Iterator[Finding]:
    """Packages that are others than those of the run's last start."""
    then, now = note.get("versions"), runtime.versions()
    if isinstance(then, dict):
        moved = [f"{x} {then[x]} -> {now[x]}" for x in now if x in then and then[x] != now[x]]
        if moved:
            what = f"changed since its last start: {', '.join(moved)}; it goes on, but not bit for bit"
            yield Finding(OK, "run: versions", what)


def newest(run: pathlib.Path, store: str) -> list[pathlib.Path]:
    """Checkpoints of a store, the newest first; without their manifest they are none."""
    home = run / "checkpoints" / store
    found = [(x, NAME.fullmatch(x.name)) for x in home.iterdir()] if home.is_dir() else []
    named = [(int(m[1]), int(m[2] or 1), x) for x, m in found if m and (x / manifest.NAME).exists()]
    return [x for _, _, x in sorted(named, reverse=True)]


def verified(folder: pathlib.Path, fast: bool) -> dict[str, Any]:
    """The manifest of an intact checkpoint. Raises Damaged or TooNew."""
    told = manifest.read(folder) if fast else manifest.verify(folder)
    if told.get("step") != int(folder.name.partition(".")[0]):
        raise manifest.Damaged(f"{manifest.NAME} is that of step {told.get('step')}")
    for name, facts in told["files"].items() if fast else ():
        there = (folder / name).stat().st_size if (folder / name).is_file() else -1
        if there != facts["bytes"]:
            raise manifest.Damaged(f"{name} is missing or has another size")
    return told


def total(told: dict[str, Any]) -> int:
    return sum(facts["bytes"] for facts in told["files"].values())


def of(wish: Wish) -> pathlib.Path:
    """The run that is looked at; these checks are made only where there is one."""
    assert wish.run is not None
    return wish.run
