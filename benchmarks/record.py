"""What every benchmark's record says beside its numbers: when, where, on which versions, beside what load.

    python -m benchmarks.record    the same about this machine, with its device, and no numbers

Imports neither jax nor numpy before `device` is called: a process that only starts others must stay small,
because the kernel counts the parent's memory into a child's peak.
"""

import hashlib
import json
import math
import os
import pathlib
import platform
import shlex
import statistics
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxrl import runtime
from jaxrl.changes import OF_COMMAND
from jaxrl.rundir import git_state
from jaxrl.runtime import versions


def start(benchmark: str, argv: Sequence[str] | None = None, run: str | None = None) -> dict[str, Any]:
    """The head of a record, made before the measurement.

    Args:
      argv: the command line; None: this process's.
      run: id of the training run that the record belongs to.
    """
    return {
        "benchmark": benchmark,
        "id": uuid.uuid4().hex[:12],
        "run": run,
        "argv": portable(sys.argv[1:] if argv is None else argv),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "versions": versions(),
        "git": git_state(),
        "load_before": load(),
    }


def finish(record: dict[str, Any], out: pathlib.Path | None = None) -> dict[str, Any]:
    """Prints the record as the last line of stdout, and writes it to a file if one is given."""
    record = strict(record | {"load_after": load()})
    if out:
        write(out, record)
    print(json.dumps(record, allow_nan=False), flush=True)
    return record


def write(file: pathlib.Path, record: dict[str, Any]) -> None:
    """Writes a JSON file, and the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(strict(record), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def last_record(text: str) -> dict[str, Any] | None:
    """The last line of a program's output that is a JSON object; None if there is none."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None


def config_hash(settings: Mapping[str, Any]) -> str:
    """The same for the same settings, in any order; those that hold for one command only do not count."""
    kept = {name: value for name, value in settings.items() if name not in OF_COMMAND}
    return hashlib.sha256(json.dumps(strict(kept), sort_keys=True).encode()).hexdigest()[:12]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest of at least one number."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def device() -> dict[str, Any]:
    """What this process computes on: platform, kind, number, GiB of each. Imports jax.

    Of an accelerator that is what XLA may take, which is less than what it has; of a CPU, the host's memory.
    """
    import jax

    found = jax.local_devices()
    return {
        "platform": found[0].platform,
        "kind": found[0].device_kind,
        "count": len(found),
        "memory_gib": round(runtime.device_memory(found[0]) / 2**30, 1),
    }


def machine() -> dict[str, Any]:
    """The host; accelerators are told by `device`."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
    }


def load() -> float:
    """Mean number of runnable processes over the last minute, this one included."""
    return round(os.getloadavg()[0], 2)


def peak_rss_mib() -> float:
    """Largest resident memory of this process so far.

    Not `ru_maxrss`, which starts from that of the process that started this one.
    """
    with open("/proc/self/status") as file:
        kib = next(line.split()[1] for line in file if line.startswith("VmHWM"))
    return round(int(kib) / 1024, 1)


def portable(words: Iterable[str]) -> list[str]:
    """A command line whose absolute paths are cut to their last part: a record says nothing of the disk."""

    def cut(word: str) -> str:
        name, equals, value = word.rpartition("=")
        return name + equals + (value.rstrip("/").rpartition("/")[2] if value.startswith("/") else value)

    return [shlex.join(cut(x) for x in shlex.split(w)) if " " in w else cut(w) for w in words]


def strict(tree: Any) -> Any:
    """The tree as JSON knows it: numbers that are not finite become null."""
    if isinstance(tree, dict):
        return {str(name): strict(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [strict(value) for value in tree]
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else None
    return tree


if __name__ == "__main__":
    finish(start("nothing") | {"device": device()})
