"""Two programs in turn (A B A B ...) on one machine, compared by numbers that each prints.

    python -m benchmarks.versus --ours "python -m benchmarks.updates --size=1m" --peer "COMMAND" \
        --field updates_per_s peak_rss_mib --peer_field train_steps_per_s peak_rss_mib --rounds 3

The last line of each that is a JSON object is its record; a field may be dotted (cold.wall_s). What else
the machine does weighs on both alike, so ratios are worth more than either side's numbers. Commands are run
without a shell; `env NAME=VALUE command` sets an environment variable. Prints one JSON record: for every
pair of fields all values, medians, and the ratio of ours to the peer's, of medians and of each round.
"""

import argparse
import pathlib
import shlex
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks import record


def main() -> None:
    args = arguments()
    fields = list(zip(args.field, args.peer_field or args.field, strict=True))
    found = record.start("versus", []) | {
        "ours": shlex.join(record.portable(shlex.split(args.ours))),
        "peer": shlex.join(record.portable(shlex.split(args.peer))),
        "rounds": args.rounds,
    }
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for _ in range(args.rounds):
        for side, done in runs.items():
            done.append(run(getattr(args, side), args.timeout))
            tell(side, done[-1], fields)
    compared = [compare(runs, ours, peer) for ours, peer in fields]
    found |= {"fields": compared, "loads": {side: [x["load"] for x in done] for side, done in runs.items()}}
    found["last"] = {side: done[-1]["record"] for side, done in runs.items()}
    record.finish(found, args.out)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ours", required=True, metavar="COMMAND")
    parser.add_argument("--peer", required=True, metavar="COMMAND")
    parser.add_argument("--field", nargs="+", required=True, help="of our record")
    parser.add_argument("--peer_field", nargs="+", help="of the peer's, in the same order; default: the same")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=3_600, help="seconds of one run")
    parser.add_argument("--out", type=pathlib.Path, help="also write the record to this file")
    args = parser.parse_args()
    if args.peer_field and len(args.peer_field) != len(args.field):
        parser.error("--peer_field must name as many fields as --field")
    return args


def run(command: str, timeout: float) -> dict[str, Any]:
    """Runs a command once; its record, the load before, and its seconds."""
    load, began = record.load(), time.monotonic()
    done = subprocess.run(
        shlex.split(command), capture_output=True, text=True, errors="replace", timeout=timeout, check=False
    )
    found = record.last_record(done.stdout)
    if done.returncode or found is None:
        what = f"exit code {done.returncode}, {'no' if found is None else 'a'} record: {command}"
        sys.exit(f"versus: {what}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return {"record": found, "load": load, "wall_s": round(time.monotonic() - began, 2)}


def number(found: dict[str, Any], field: str) -> float:
    """The value of a field, dotted if it lies deeper."""
    value: Any = found
    for name in field.split("."):
        if not isinstance(value, dict) or name not in value:
            sys.exit(f"versus: a record has no field {field}; it has {', '.join(map(str, found))}")
        value = value[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        sys.exit(f"versus: {field} is {value!r}, not a number")
    return value


def tell(side: str, done: dict[str, Any], fields: list[tuple[str, str]]) -> None:
    names = [pair[side == "peer"] for pair in fields]
    values = ", ".join(f"{name} {number(done['record'], name):g}" for name in names)
    print(f"{side}: {values} ({done['wall_s']} s, load {done['load']})", file=sys.stderr, flush=True)


def compare(runs: dict[str, list[dict[str, Any]]], ours: str, peer: str) -> dict[str, Any]:
    """One pair of fields: values, medians, ratios."""
    a = [number(x["record"], ours) for x in runs["ours"]]
    b = [number(x["record"], peer) for x in runs["peer"]]
    middle = statistics.median(a), statistics.median(b)
    return {
        "field": ours,
        "peer_field": peer,
        "ours": a,
        "peer": b,
        "median": middle[0],
        "peer_median": middle[1],
        "ratio": ratio(*middle),
        "round_ratios": [ratio(x, y) for x, y in zip(a, b, strict=True)],
    }


def ratio(a: float, b: float) -> float | None:
    return round(a / b, 4) if b else None


if __name__ == "__main__":
    main()
