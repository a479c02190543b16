"""What a checkpoint costs: how long the training waits, how long it takes to the disk and back, its memory.

    python -m benchmarks.saves
    python -m benchmarks.saves --mb 50 1200 --repeats 5 --out benchmarks/results/saves.json

A state of random numbers (nothing compresses) of each size is saved through the trainer's own stores, digests
and manifest included, and loaded again. "blocked" is what the training thread waits; the 50 MB rule is what
is asked of it. Memory is the peak of the process over what it held before, as a multiple of the state; a
process of its own measures the load. Prints one JSON record.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import record

PARAMETERS_MB = 10  # the rest is replay: bytes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=float, nargs="+", default=[50, 1200], help="sizes of the state")
    parser.add_argument("--repeats", type=int, default=5, help="saves of each size")
    parser.add_argument("--folder", type=pathlib.Path, help="where to write; default: a temporary one")
    parser.add_argument("--out", type=pathlib.Path, help="also write the record to this file")
    parser.add_argument("--stage", nargs=3, help=argparse.SUPPRESS)  # what a child does, a size, a folder
    args = parser.parse_args()
    if args.stage:
        what, mb, folder = args.stage
        stage = {"save": save, "load": load}[what]
        print(json.dumps(stage(float(mb), pathlib.Path(folder), args.repeats)))
        return
    found = record.start("saves")
    rows = []
    for mb in args.mb:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            rows.append(
                {"mb": mb, "save": child("save", mb, folder, args), "load": child("load", mb, folder, args)}
            )
    record.finish(found | {"repeats": args.repeats, "rows": rows}, args.out)


def child(what: str, mb: float, folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """A stage in a process of its own, whose peak of memory is nobody else's."""
    words = ["--repeats", str(args.repeats), "--stage", what, str(mb), folder]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.saves", *words], stdout=subprocess.PIPE, text=True, check=True
    )
    return record.last_record(done.stdout) or {}


def save(mb: float, folder: pathlib.Path, repeats: int) -> dict[str, Any]:
    """Saves a state a few times, each time after the one before is on disk."""
    import jax
    import numpy as np

    from jaxrl.faults import Faults
    from jaxrl.stores import LATEST, Stores

    draw = np.random.default_rng(0)
    rows = int((mb - PARAMETERS_MB) * 1e6) // (64 * 12_288) * 64  # Orbax cuts where a number divides them
    ring = jax.device_put(draw.integers(0, 256, (rows, 1, 64, 64, 3), np.uint8))
    params = jax.device_put(draw.normal(size=(PARAMETERS_MB, 250_000)).astype(np.float32))
    state = {f"learner.{i}": params[i] for i in range(PARAMETERS_MB)} | {"ring": ring}
    jax.block_until_ready(state)
    stores = Stores(folder, 2, 0, Faults(""))
    stores.recover()
    counters = {"updates": 0, "episodes": 0, "wall_s": 0.0}
    facts = {"counters": counters, "agent_steps": 0, "time": "", "reason": "interval", "score": None}
    before, blocked, committed, peak = rss_mib(), [], [], 0.0
    for step in range(1, repeats + 1):
        start = time.monotonic()
        stores.save(LATEST, step, (state, {"scores": np.zeros(3)}), facts)
        blocked.append(time.monotonic() - start)
        (outcome,) = stores.poll(600)
        committed.append(time.monotonic() - start)
        if outcome.failure:
            sys.exit(f"saves: {outcome.failure}")
    peak = record.peak_rss_mib()
    stores.close()
    return {
        "blocked_s": [round(x, 4) for x in blocked],
        "blocked_ms_per_50mb": round(statistics.median(blocked) * 1e3 * 50 / max(mb, 50), 2),
        "on_disk_s": [round(x, 3) for x in committed],
        "state_mib": round(mb * 1e6 / 2**20, 1),
        "extra_mib": round(peak - before, 1),
        "extra_per_state": round((peak - before) * 2**20 / (mb * 1e6), 2),
    }


def load(mb: float, folder: pathlib.Path, repeats: int) -> dict[str, Any]:
    """Verifies and loads the newest."""
    del repeats
    import jax

    from jaxrl import checkpoint
    from jaxrl.stores import find

    before, start = rss_mib(), time.monotonic()
    found = find(folder)
    verified = time.monotonic() - start
    shapes, _ = checkpoint.shapes(found.folder)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    asked = {k: jax.ShapeDtypeStruct(tuple(x.shape), x.dtype, sharding=place) for k, x in shapes.items()}
    jax.block_until_ready(checkpoint.load(found.folder, asked)[0])
    peak = record.peak_rss_mib()
    return {
        "verified_s": round(verified, 3),
        "loaded_s": round(time.monotonic() - start - verified, 3),
        "peak_mib": round(peak - before, 1),
        "peak_per_state": round((peak - before) * 2**20 / (mb * 1e6), 2),
    }


def rss_mib() -> float:
    """Resident memory of this process now."""
    with open("/proc/self/status") as file:
        kib = next(line.split()[1] for line in file if line.startswith("VmRSS"))
    return int(kib) / 1024


if __name__ == "__main__":
    main()
