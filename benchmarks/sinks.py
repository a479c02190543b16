"""What it costs to be seen: the Pong run of benchmarks.smoke with every sink on, against none.

    python -m benchmarks.sinks --rounds 3 --out benchmarks/results/sinks.json

Each round runs both, one after the other, in changing order, with a warm cache of compiled programs. The
files of record (metrics.jsonl, scores.jsonl, tables/) are written by both, and what is measured is read from
them. "every sink" is TensorBoard, the terminal (plain lines into a file), plots/live.png, Weights & Biases
(offline, the real package). Both film and sample evaluations, which the sinks then take. Prints one JSON
record:

  loop_s     seconds of the loop: waits for environments, actions and updates, and everything else on the
             host, without evaluations and saves
  cpu_s      of all threads of the process
  ratio      loop_s with all sinks over that with none, round by round; the claim is their median
  same       the arrays of the last checkpoints have the same bits
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
from typing import Any

from benchmarks import record, smoke
from benchmarks.victims import Victim
from jaxrl import flags
from jaxrl.config import Value

NONE: dict[str, Value] = {"tensorboard.enabled": False, "terminal.style": "off", "plot.enabled": False}
ALL: dict[str, Value] = {"wandb.enabled": True, "wandb.mode": "offline"}
BOTH: dict[str, Value] = {"eval.samples": 2, "video_every": 800}  # asked for by both: they are no sinks
LOOP = ("env", "policy", "update", "other")  # phases


def main() -> int:
    args = arguments()
    pairs = (text.partition("=") for text in args.set)
    changes = {**smoke.PONG, **BOTH, "log_every": 100}
    changes |= {name: flags.parse_override(name, value) for name, _, value in pairs}
    found: dict[str, Any] = record.start("sinks") | {"settings": changes, "none": [], "all": [], "same": []}
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        smoke.run("atari100k", changes | ALL, root / "unmeasured", root / "cache", args.timeout)
        for i in range(args.rounds):
            digests = {}
            for name in ("none", "all") if i % 2 else ("all", "none"):
                home, settings = root / f"{name}{i}", changes | (ALL if name == "all" else NONE)
                made = smoke.run("atari100k", settings, home, root / "cache", args.timeout)
                made["loop_s"] = round(sum(made["phases_s"][phase] for phase in LOOP), 2)
                found[name].append(made)
                digests[name] = Victim([], home).digest()
            found["same"].append(digests["none"] == digests["all"])
    both = list(zip(found["all"], found["none"], strict=True))
    found["ratio"] = [round(a["loop_s"] / b["loop_s"], 4) for a, b in both]
    found["ratio_cpu"] = [round(a["cpu_s"] / b["cpu_s"], 4) for a, b in both]
    found["median_ratio"] = statistics.median(found["ratio"])
    record.finish(found, args.out)
    return 0 if all(found["same"]) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the trainer")
    parser.add_argument("--timeout", type=float, default=3_600, help="seconds of one run")
    parser.add_argument("--out", type=pathlib.Path, help="also write the record to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
