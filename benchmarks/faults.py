"""Runs that are killed, signalled, cut off from their disk and their sinks, and what they lose: nothing.

    python -m benchmarks.faults --suite=kill --count=100
    python -m benchmarks.faults --suite=signals --count=20 --real
    python -m benchmarks.faults --suite=sinks
    python -m benchmarks.faults --suite=disk            as root on Linux: it mounts small disks

Suites:

  kill      `kill -9` of a run that is always continued by the same command, `count` times: half of them at
            random seconds, half at random visits of the places of debug.fault (start, save, evaluation ...)
  signals   `count` SIGTERM and `count` SIGINT at random seconds
  sinks     each of the seven sinks raises, ends its thread, finds no room, hangs
  disk      a small disk that is full for some seconds, or for good, under each writer

The run is the debug preset on toy_clock; with --real it is the Pong run of benchmarks.smoke. Prints one JSON
record; `failures` lists everything that should not have been, and the exit code is 1 if there is any.
"""

import argparse
import pathlib
import random
import shutil
import sys
import tempfile

from benchmarks import outages, record, smoke, storm
from jaxrl import flags
from jaxrl.config import Value, replace

SUITES = {"kill": storm.kill, "signals": storm.signals, "sinks": outages.sinks, "disk": outages.disk}
SMALL: dict[str, Value] = {"steps": 1_200, "log_every": 100, "eval_every": 200, "save_every": 200}
REAL: dict[str, Value] = {**smoke.PONG, "log_every": 100, "save_every": 200}


def main() -> int:
    args = arguments()
    preset = "atari100k" if args.real else args.config
    pairs = (text.partition("=") for text in args.set)
    changes = REAL if args.real else SMALL if args.config == "debug" else {}
    changes = changes | {name: flags.parse_override(name, value) for name, _, value in pairs}
    found = record.start("faults") | {"suite": args.suite, "config": preset, "settings": changes}
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        words = [f"--config={preset}", *(f"--{name}={value}" for name, value in changes.items())]
        weather = storm.Storm(
            words=[*words, f"--runtime.compile_cache={args.cache or root / 'cache'}"],
            config=replace(flags.load_preset(preset), changes),
            folder=root,
            dice=random.Random(args.seed),
            window=args.window,
            timeout=args.timeout,
        )
        found[args.suite] = SUITES[args.suite](weather, args.count)
        found["failures"] = weather.failures
        if args.keep and weather.failures:
            shutil.copytree(root, args.keep)
    record.finish(found, args.out)
    return 1 if found["failures"] else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", required=True, choices=list(SUITES))
    parser.add_argument("--count", type=int, default=100, help="kills; signals of each kind")
    parser.add_argument("--real", action="store_true", help="the Pong run of benchmarks.smoke")
    parser.add_argument("--config", default="debug", help="preset; another one runs as it is")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the trainer")
    parser.add_argument("--window", type=float, default=6, help="seconds after a start in which it is ended")
    parser.add_argument("--timeout", type=float, default=900, help="seconds of one undisturbed process")
    parser.add_argument("--seed", type=int, default=0, help="of what is random here")
    parser.add_argument("--cache", help="folder of compiled programs; default: one for this benchmark")
    parser.add_argument("--keep", type=pathlib.Path, help="where the runs are left if something failed")
    parser.add_argument("--out", type=pathlib.Path, help="also write the record to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
