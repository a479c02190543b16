"""A short run as a user starts it, from the command line to the last file: Pong, 481 updates, 4 evaluations.

    python -m benchmarks.smoke
    python -m benchmarks.smoke --caches cold --set seed=1 --out smoke.json
    python -m benchmarks.smoke --config=debug --updates 98 --set seed=1

Runs `python -m jaxrl.train` in a process of its own, first with an empty folder of compiled programs
("cold"), then with the one that this has filled ("warm"), and checks what it wrote. Prints one JSON record:

  wall_s         of the process, start to end
  setup_s        until its first row of metrics: imports, environments, compilation
  train_s        the rest, without evaluations
  eval_s         in evaluations
  phases_s       the run's own split of the time after set-up
  cpu_s          of all its threads
  peak_rss_mib   of the process
  run            its id, and what it wrote: rows, evaluations, updates
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import record
from jaxrl import flags
from jaxrl.config import Config, Value, replace

PONG: dict[str, Value] = {
    "task": "atari_pong",
    "steps": 1_600,
    "warmup": 160,
    "eval_every": 400,
    "eval_eps": 1,
    "batch_size": 4,
    "batch_length": 32,
    "log_every": 400,
    "model.size": "1m",
}
UPDATES = 481  # of the settings above: one at agent_step 160, then two each


def main() -> None:
    args = arguments()
    changes: dict[str, Value] = dict(PONG) if args.config == "atari100k" else {}
    pairs = (text.partition("=") for text in args.set)
    changes |= {name: flags.parse_override(name, value) for name, _, value in pairs}
    config = replace(flags.load_preset(args.config), changes)
    found = record.start("smoke") | {"config": args.config, "settings": changes}
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        if args.caches == ["warm"]:
            run(args.config, changes, root / "unmeasured", root / "cache", args.timeout)
        for name in args.caches:
            found[name] = run(args.config, changes, root / name, root / "cache", args.timeout)
            check(root / name, config, args.updates)
    record.finish(found, args.out)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="atari100k", help="preset; another one runs as it is")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the trainer")
    parser.add_argument("--caches", nargs="+", default=["cold", "warm"], choices=["cold", "warm"])
    parser.add_argument("--updates", type=int, default=UPDATES, help="that the run must make; 0 = any number")
    parser.add_argument("--timeout", type=float, default=3_600, help="seconds of one run")
    parser.add_argument("--out", type=pathlib.Path, help="also write the record to this file")
    return parser.parse_args()


def run(
    preset: str, changes: dict[str, Value], logdir: pathlib.Path, cache: pathlib.Path, timeout: float
) -> dict[str, Any]:
    """One run of the trainer, in a session of its own so that nothing of it is left behind."""
    words = [f"--config={preset}", *(f"--{name}={value}" for name, value in changes.items())]
    words += [f"--logdir={logdir}", f"--runtime.compile_cache={cache}"]
    began, load = time.monotonic(), record.load()
    log = logdir.with_suffix(".log")
    with open(log, "wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "jaxrl.train", *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code, setup_s, usage = watch(child, logdir / "metrics.jsonl", began, timeout)
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        raise
    wall_s = time.monotonic() - began
    if code:
        how = (
            f"did not end within {timeout:g} s" if code == -signal.SIGKILL else f"ended with exit code {code}"
        )
        sys.exit(f"smoke: the run {how}:\n{log.read_text(errors='replace')[-4000:]}")
    rows = read(logdir / "metrics.jsonl")
    phases = {
        name: round(sum(row.get(f"time/{name}_s", 0.0) for row in rows), 3)
        for name in ("env", "policy", "update", "eval", "save", "other")
    }
    return {
        "wall_s": round(wall_s, 2),
        "setup_s": round(setup_s, 2),
        "train_s": round(wall_s - setup_s - phases["eval"], 2),
        "eval_s": round(phases["eval"], 2),
        "phases_s": phases,
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_rss_mib": round(usage.ru_maxrss / (1024 if sys.platform != "darwin" else 2**20), 1),
        "load": load,
        "run": wrote(logdir),
    }


def watch(
    child: subprocess.Popen[bytes], file: pathlib.Path, began: float, timeout: float
) -> tuple[int, float, Any]:
    """Waits for the child, and kills it if it takes too long.

    Returns:
      Its exit code, the seconds until `file` had a row, and its use of resources.
    """
    setup_s = None
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if setup_s is None and file.exists() and file.stat().st_size:
            setup_s = time.monotonic() - began
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode, setup_s or time.monotonic() - began, usage
        if time.monotonic() - began > timeout:
            os.killpg(child.pid, signal.SIGKILL)
        time.sleep(0.02)


def read(file: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def wrote(logdir: pathlib.Path) -> dict[str, Any]:
    """What a run left in its directory."""
    rows, scores = read(logdir / "metrics.jsonl"), read(logdir / "scores.jsonl")
    about = json.loads((logdir / "run.json").read_text(encoding="utf-8"))
    return {
        "id": about["id"],
        "device": about.get("device"),
        "rows": [row["step"] for row in rows],
        "evaluations": [row["step"] for row in rows if "eval_episode/avg_score" in row],
        "eval_episodes": sum("eval_episode/score" in row for row in scores),
        "updates": rows[-1]["updates"],
        "not_finite": sorted({name for row in rows for name in row.get("nan_keys", [])}),
    }


def check(logdir: pathlib.Path, config: Config, updates: int) -> None:
    """Ends the program unless the run wrote every row and made every update that it should have."""
    found = wrote(logdir)
    logs, evals = multiples(config.log_every, config.steps), multiples(config.eval_every, config.steps)
    wanted = {
        "rows": sorted({0, *logs, *evals}) if logs else evals,
        "evaluations": evals,
        "eval_episodes": len(evals) * config.eval_eps,
        "updates": updates or found["updates"],
        "not_finite": [],
    }
    for name, value in wanted.items():
        if found[name] != value:
            sys.exit(f"smoke: {name} are {found[name]}, should be {value}")


def multiples(every: int, steps: int) -> list[int]:
    """Steps at which an event is due: the multiples and the last one; none if never."""
    return [*range(every, steps, every), steps] if every else []


if __name__ == "__main__":
    main()
