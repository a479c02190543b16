"""Whether a run keeps to the memory that its dry run states, with the replay of a whole Atari-100k run.

    python -m benchmarks.memory --out benchmarks/results/memory.json

Three processes of one Pong run: `--dry_run`, whose lines are summed; a start that is terminated after some
updates and saves everything; and the start that loads it, goes on and is terminated again. Prints one JSON
record; peaks are those of the processes' resident memory. The exit code is 1 if one is above what was stated.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import record, smoke

SETTINGS = {
    **{"config": "atari100k", "task": "atari_pong", "steps": 400_000, "log_every": 100, "eval_every": 0},
    **{"batch_size": 4, "batch_length": 32, "model.size": "1m", "plot.enabled": "false"},
}
LINE = re.compile(r"^memory +(.*?) +([\d,]+) B$", re.M)
TERMINATED = 143


def main() -> int:
    args = arguments()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root = pathlib.Path(folder)
        words = [sys.executable, "-m", "jaxrl.train", *(f"--{k}={x}" for k, x in SETTINGS.items())]
        words += [f"--logdir={root / 'run'}", f"--runtime.compile_cache={root / 'cache'}"]
        found: dict[str, Any] = record.start("memory") | {"settings": SETTINGS}
        stated = subprocess.run([*words, "--dry_run"], capture_output=True, text=True, check=True).stdout
        found["stated_mib"] = {k: round(int(x.replace(",", "")) / 2**20, 1) for k, x in LINE.findall(stated)}
        total = sum(found["stated_mib"].values())
        found["sum_mib"] = round(total, 1)
        for what, learned in (("saved", args.updates), ("loaded", args.updates)):
            found[what] = peak([*words, f"--debug.fault=term@learn:{learned}"], root, args.timeout)
    found["within"] = all(found[x]["peak_rss_mib"] <= total for x in ("saved", "loaded"))
    record.finish(found, args.out)
    return 0 if found["within"] else 1


def peak(words: list[str], root: pathlib.Path, timeout: float) -> dict[str, Any]:
    """Runs one process up to its end by a signal of its own."""
    with open(root / "log", "wb") as output:
        child = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    code, _, usage = smoke.watch(child, root / "run" / "metrics.jsonl", time.monotonic(), timeout)
    if code != TERMINATED:
        sys.exit(f"memory: the run ended with {code}:\n{(root / 'log').read_text(errors='replace')[-4000:]}")
    size = sum(x.stat().st_size for x in (root / "run" / "checkpoints").rglob("*") if x.is_file())
    return {"peak_rss_mib": round(usage.ru_maxrss / 1024, 1), "checkpoints_mib": round(size / 2**20, 1)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=20, help="of each start")
    parser.add_argument("--timeout", type=float, default=900, help="seconds of one start")
    parser.add_argument("--folder", type=pathlib.Path, help="where to write; default: a temporary one")
    parser.add_argument("--out", type=pathlib.Path, help="also write the record to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
