"""Runs of the trainer that things are done to, and what they leave: the machinery of benchmarks.faults.

`python -m benchmarks.victims RUN` prints digests of the arrays of a run's newest checkpoint.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import Any

from benchmarks import record
from benchmarks.smoke import multiples
from jaxrl.config import Config

STORES = ("latest", "best", "periodic")
FOLDER = re.compile(r"(\d+)(\.\d+)?")  # of a checkpoint
FIRST_WORDS = b"jaxrl: starting"  # of the trainer, once it takes signals


class Victim:
    """One run: the same command each time, in the same directory."""

    def __init__(self, words: list[str], logdir: pathlib.Path):
        self.words, self.logdir = [*words, f"--logdir={logdir}"], logdir
        self.log = logdir.with_name(logdir.name + ".log")
        self.starts = 0
        self._offset = 0  # of the log, where the output of the newest process begins

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """A process of the run, in a session of its own so that nothing of it is left behind."""
        self.starts += 1
        self._offset = self.log.stat().st_size if self.log.exists() else 0
        with open(self.log, "ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "jaxrl.train", *self.words, *more],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> bytes:
        """What the newest process has written so far."""
        with open(self.log, "rb") as file:
            file.seek(self._offset)
            return file.read()

    def finish(self, timeout: float, *more: str) -> int:
        """One process, up to its end; returns its exit code."""
        return ended(self.start(*more), timeout)

    def note(self) -> dict[str, Any]:
        """run.json; empty if it is not there yet."""
        file = self.logdir / "run.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def digest(self) -> dict[str, Any]:
        """Of the arrays of the newest checkpoint, by a process of its own, since it imports jax."""
        words = [sys.executable, "-m", "benchmarks.victims", str(self.logdir)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        return record.last_record(done.stdout) or {}


def ended(process: subprocess.Popen[bytes], timeout: float) -> int:
    """The exit code; of a process that takes too long, which is killed, -SIGKILL."""
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        return process.wait()
    except BaseException:
        process.send_signal(signal.SIGKILL)
        raise


def wait_until(reached: Any, process: subprocess.Popen[bytes], timeout: float) -> bool:
    """Waits until `reached` answers True; False if the process has ended before, or it takes too long."""
    end = time.monotonic() + timeout
    while not reached():
        if process.poll() is not None or time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@dataclasses.dataclass(frozen=True)
class Lines:
    """A file of JSON lines as a process that may have been killed has left it."""

    rows: list[dict[str, Any]]
    malformed: int  # lines that are no JSON object, but for the last one
    torn: bool  # the last one is not complete


def lines_of(file: pathlib.Path) -> Lines:
    whole = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    torn = bool(whole) and not whole[-1].endswith(b"\n")
    rows = []
    for line in whole[: len(whole) - torn]:
        try:
            row = json.loads(line, parse_constant=refuse)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return Lines(rows, len(whole) - torn - len(rows), torn)


def refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is in a run directory while no process works there."""

    committed: frozenset[str]  # "store/name" of every checkpoint
    removed: frozenset[str]  # what the log says was removed, or set aside since the run went back
    quarantined: tuple[str, ...]
    saved: frozenset[int]  # steps of checkpoints of the whole state
    reached: int  # largest step of a row or an episode; -1: none
    starts: tuple[int, ...]  # steps that processes have gone on from
    malformed: int
    torn: int  # files whose last line is not complete
    lost: tuple[str, ...]  # what the log says was saved and is not there
    out_of_order: tuple[str, ...]


def look(victim: Victim) -> Evidence:
    """Reads a run directory; nothing is changed."""
    root = victim.logdir
    committed = {
        f"{store}/{file.parent.name}"
        for store in STORES
        for file in (root / "checkpoints" / store).glob("*/manifest.json")
        if FOLDER.fullmatch(file.parent.name)
    }
    log, rows = lines_of(root / "checkpoint_log.jsonl"), lines_of(root / "metrics.jsonl")
    scores = lines_of(root / "scores.jsonl")
    events: dict[str, str] = {f"{x.get('store')}/{x.get('name')}": x["event"] for x in log.rows}
    steps = [row["step"] for row in rows.rows]
    return Evidence(
        committed=frozenset(committed),
        removed=frozenset(name for name, event in events.items() if event in ("removed", "undone")),
        quarantined=tuple(name for name, event in events.items() if event == "quarantined"),
        saved=frozenset(int(x[7:].partition(".")[0]) for x in committed if x.startswith("latest/")),
        reached=max([*steps, *(x["step"] for x in scores.rows)], default=-1),
        starts=tuple(start["step"] for start in victim.note().get("starts", [])),
        malformed=sum(x.malformed for x in (log, rows, scores)),
        torn=sum(x.torn for x in (log, rows, scores)),
        lost=tuple(sorted(n for n, event in events.items() if event == "saved" and n not in committed)),
        out_of_order=tuple(disorder(steps, scores.rows)),
    )


def disorder(steps: list[int], scores: list[dict[str, Any]]) -> list[str]:
    """What is doubled, missing or out of order in the files of rows and of episodes."""
    wrong = [f"row {b} after {a}" for a, b in zip(steps, steps[1:], strict=False) if b <= a]
    games = [x["episode"] for x in scores if "episode/score" in x]
    if games != list(range(len(games))):
        wrong.append("training episodes are not numbered 0, 1, 2 ...")
    played = [(x["step"], x["episode"]) for x in scores if "eval_episode/score" in x]
    if played != sorted(set(played)):
        wrong.append("evaluation episodes are doubled or out of order")
    return wrong


def complaints(before: Evidence, now: Evidence) -> list[str]:
    """What must not be, after a process was ended in whatever way. `before`: at the end before that."""
    found = [f"lost {name}, which the log says was saved" for name in now.lost]
    found += [f"lost {name}" for name in sorted(before.committed - now.committed - now.removed)]
    found += [f"quarantined {name}" for name in now.quarantined]
    found += [f"{now.malformed} malformed lines"] if now.malformed else []
    found += now.out_of_order
    newest = max(before.saved, default=0)
    later = [step for step in now.starts[len(before.starts) :] if step < newest]
    found += [f"went on from step {step}, though {newest} was saved" for step in later]
    return found


def unfinished(victim: Victim, config: Config) -> list[str]:
    """What a run that has ended as it should lacks."""
    rows, scores = lines_of(victim.logdir / "metrics.jsonl"), lines_of(victim.logdir / "scores.jsonl")
    logs, evals = multiples(config.log_every, config.steps), multiples(config.eval_every, config.steps)
    wanted = sorted({0, *logs, *evals}) if logs else evals
    steps = [row["step"] for row in rows.rows]
    found = [] if steps == wanted else [f"rows at {steps} instead of {wanted}"]
    if [row["step"] for row in rows.rows if "eval_episode/avg_score" in row] != evals:
        found.append("evaluations are missing")
    played = sum("eval_episode/score" in row for row in scores.rows)
    if played != len(evals) * config.eval_eps:
        found.append(f"{played} evaluation episodes instead of {len(evals) * config.eval_eps}")
    found += disorder(steps, scores.rows)
    found += ["a line is malformed or torn"] * any(x.malformed or x.torn for x in (rows, scores))
    if victim.note().get("exit") != "done":
        found.append(f"run.json says {victim.note().get('exit')}")
    return found


def digests(logdir: pathlib.Path) -> dict[str, Any]:
    """sha256 of the newest checkpoint's parameters, and of everything in it."""
    import jax
    import numpy as np

    from jaxrl import checkpoint, stores

    found = stores.find(logdir)
    shapes, _ = checkpoint.shapes(found.folder)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    asked = {k: jax.ShapeDtypeStruct(tuple(x.shape), x.dtype, sharding=place) for k, x in shapes.items()}
    on_device, on_host = checkpoint.load(found.folder, asked)
    arrays = {k: np.asarray(x) for k, x in sorted({**on_device, **on_host}.items())}
    learned = {k: x for k, x in arrays.items() if k.startswith("learner")}
    return {"step": found.step, "parameters": sha256(learned), "everything": sha256(arrays)}


def sha256(arrays: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    print(json.dumps(digests(pathlib.Path(sys.argv[1]))))
