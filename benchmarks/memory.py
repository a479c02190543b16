"""Whether a run takes the memory that its dry run states, preset by preset.

    python -m benchmarks.memory --out benchmarks/results/memory.json
    python -m benchmarks.memory atari100k mjx_cartpole --only_stated

Of each preset, in a size that fills its replay within a minute or two: `--dry_run`, and a run that collects
until replay is full, learns, evaluates, saves it all and goes on learning while that is written. Each begins
with an empty compile cache. The measured peak is that of the process (ru_maxrss), on an accelerator also that
of the device (peak_bytes_in_use). Prints one JSON record; the exit code is 1 if a stated peak is further from
the measured one than --tolerance.
"""

import argparse
import concurrent.futures
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import record, smoke

LINE = re.compile(r"^memory +(.*?) +([\d,]+) B$", re.M)
UPDATES = 12  # at least, after the save
DREAMER = {"model.size": "1m", "batch_size": 4, "batch_length": 32, "replay.capacity": 24_000}
DRQ = {"batch_size": 64, "replay.capacity": 16_000}
PONG = {"task": "atari_pong", "env.time_limit": 4_000, "eval_eps": 1}
# What differs from the preset; the rest follows from capacity and action repeat.
PRESETS: dict[str, dict[str, Any]] = {
    "atari100k": DREAMER | PONG,
    "atari100k_drq": DRQ | PONG | {"replay.capacity": 24_000},
    "atari": DREAMER | PONG | {"env.num_envs": 8},
    "dmc_vision": DRQ | {"replay.capacity": 12_000, "env.time_limit": 200, "eval_eps": 2},
    "mjx_cartpole": DRQ | {"env.size": 84, "env.gray": "false", "env.time_limit": 200, "eval_eps": 2},
    "so101_lift": DRQ | {"replay.capacity": 8_000, "env.num_envs": 16, "env.time_limit": 60, "eval_eps": 2},
    "catch": {"replay.capacity": 20_000, "eval_eps": 10},
}


def main() -> int:
    args = arguments()
    found: dict[str, Any] = record.start("memory") | {"tolerance": args.tolerance}
    with concurrent.futures.ThreadPoolExecutor(args.together) as pool:
        found["rows"] = list(pool.map(lambda preset: in_folder(preset, args), args.presets))
    found["within"] = all(x.get("within", True) for x in found["rows"])
    record.finish(found, args.out)
    return 0 if found["within"] else 1


def in_folder(preset: str, args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        return measured(preset, pathlib.Path(folder), args)


def measured(preset: str, root: pathlib.Path, args: argparse.Namespace) -> dict[str, Any]:
    """What one preset's dry run states and its run takes, in MiB."""
    chosen = settings(preset)
    words = [sys.executable, "-m", "jaxrl.train", *(f"--{k}={x}" for k, x in chosen.items())]
    text = subprocess.run(
        [*words, f"--runtime.compile_cache={root / 'dry'}", "--dry_run"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    stated = {k: mib(int(x.replace(",", ""))) for k, x in LINE.findall(text)}
    found: dict[str, Any] = {"preset": preset, "settings": chosen, "stated_mib": stated}
    if args.only_stated:
        return found
    words += [f"--logdir={root / 'run'}", f"--runtime.compile_cache={root / 'cache'}"]
    found |= ran(words, root, args.timeout)
    pairs = {"peak": "host_mib", "peak (host)": "host_mib", "peak (device)": "device_mib"}
    ratios = {k: round(stated[k] / found[x], 3) for k, x in pairs.items() if k in stated}
    return found | {"ratios": ratios, "within": all(abs(x - 1) <= args.tolerance for x in ratios.values())}


def settings(preset: str) -> dict[str, Any]:
    """Flags of a run that fills its replay before it learns, and saves it in the middle of learning."""
    from jaxrl import flags
    from jaxrl.config import replace
    from jaxrl.plan import rows_of_update

    chosen = {"config": preset, **PRESETS[preset]}
    values = {k: flags.parse_override(k, str(x)) for k, x in chosen.items() if k != "config"}
    config = replace(flags.load_preset(preset), values)
    stride = config.env.num_envs * config.env.action_repeat
    full = -(-config.replay.capacity * config.env.action_repeat // stride) * stride
    per_update = rows_of_update(config) / config.train_ratio * config.env.action_repeat  # env_steps
    more = -(-int(UPDATES * per_update) // stride) * stride
    return chosen | {
        "warmup": full // config.env.action_repeat,
        "steps": full + 2 * more,
        "save_every": full + more,
        "eval_every": full + more,
        "log_every": full + more,
        "train_ratio": config.train_ratio,
    }


def ran(words: list[str], root: pathlib.Path, timeout: float) -> dict[str, Any]:
    """Peaks of a run that comes to its end; of a device None on a CPU."""
    began = time.monotonic()
    with open(root / "log", "wb") as output:
        child = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    code, _, usage = smoke.watch(child, root / "run" / "metrics.jsonl", began, timeout)
    if code:
        said = (root / "log").read_text(errors="replace")[-4000:]
        raise RuntimeError(f"the run ended with {code}:\n{said}")
    rows = smoke.read(root / "run" / "metrics.jsonl")
    checkpoint = root / "run" / "checkpoints" / "latest"
    size = max(sum(x.stat().st_size for x in made.rglob("*") if x.is_file()) for made in checkpoint.iterdir())
    device = max((row["usage/device_peak_gb"] for row in rows if "usage/device_peak_gb" in row), default=None)
    return {
        "host_mib": round(usage.ru_maxrss / 1024, 1),
        "device_mib": None if device is None else mib(int(device * 1e9)),
        "checkpoint_mib": mib(size),
        "updates": rows[-1]["updates"],
        "wall_s": round(time.monotonic() - began, 1),
        "run": json.loads((root / "run" / "run.json").read_text(encoding="utf-8"))["id"],
    }


def mib(size: int) -> float:
    return round(size / 2**20, 1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("presets", nargs="*", default=list(PRESETS), help="of configs/; default: all")
    parser.add_argument("--only_stated", action="store_true", help="measure nothing")
    parser.add_argument("--tolerance", type=float, default=0.1, help="of the measured peak")
    parser.add_argument("--timeout", type=float, default=1_800, help="seconds of one run")
    parser.add_argument("--together", type=int, default=1, help="presets at the same time, on a CPU")
    parser.add_argument("--folder", type=pathlib.Path, help="where to write; default: a temporary one")
    parser.add_argument("--out", type=pathlib.Path, help="also write the record to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
