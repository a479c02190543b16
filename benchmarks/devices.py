"""How an update is divided over devices: arithmetic, scratch and speed of each, and what they send.

    python -m benchmarks.devices
    python -m benchmarks.devices --counts 1 2 4 8 --size=12m --batch=16 --length=64

On accelerators those that are there. A CPU poses as several devices, in a process of its own; they share its
cores, so its rates say nothing of several devices, while the compiled programs do. An update draws from a
replay of random rows, learns and writes back. Window by window all counts take turns. Prints one JSON record;
of every number of devices:

  updates_per_s     median over windows; `update_s` has them all
  share             of the arithmetic of one device's program that each device makes, by the compiler's count
  efficiency        1 / (share * devices): 1 if nothing is done twice
  sent_mib          results of exchanges in one update, by kind: all-reduce for gradients and sums; all-gather
                    on CPUs only, where kernel gradients by patches gather images (jaxrl/ops/conv.py)
  parameters_mib    all of which have one gradient that is exchanged
  scratch_mib       temporary memory of each device
"""

import argparse
import math
import pathlib
import re
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import record, rings
from jaxrl import flags, metrics, runtime, sources
from jaxrl.config import Config, ConfigError, replace, to_dict
from jaxrl.parts import Parts, metric_shapes
from jaxrl.types import Discrete

ACTIONS = 18
EXCHANGE = re.compile(r" = (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\(")
ARRAY = re.compile(r"\b([a-z]+)(\d+)[a-z0-9]*\[([\d,]*)\]")


def main() -> int:
    args = arguments()
    config = settings(args)
    if config.device == "cpu" and not args.posed:
        return in_several(max(args.counts))
    runtime.prepare(config)
    found = record.start("devices")
    try:
        updates = [Update(replace(config, {"runtime.devices": n})) for n in args.counts]
    except ConfigError as error:
        print(f"devices: {error}", file=sys.stderr)
        return 2
    for update in updates:
        update()  # warm
    for _ in range(args.windows):
        for update in updates:
            update.seconds.append(update())
    facts = {name: getattr(args, name) for name in ("size", "batch", "length", "windows")}
    found |= {"device": record.device(), "config_hash": record.config_hash(to_dict(config))}
    record.finish(found | facts | {"rows": [x.row(updates[0]) for x in updates]}, args.out)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 2, 4], help="devices, 1 first")
    parser.add_argument("--size", default="debug", help="model.size")
    parser.add_argument("--batch", type=int, default=8, help="sequences")
    parser.add_argument("--length", type=int, default=8, help="rows of a sequence")
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "gpu", "tpu"))
    parser.add_argument("--posed", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=pathlib.Path, help="also write the record to this file")
    return parser.parse_args()


def settings(args: argparse.Namespace) -> Config:
    platform = jax.default_backend() if args.device == "auto" else args.device
    return replace(
        flags.load_preset("atari100k"),
        {
            "model.size": args.size,
            "batch_size": args.batch,
            "batch_length": args.length,
            "env.num_envs": max(args.counts),
            "replay.capacity": 50 * max(args.counts) * max(1, args.length // 16),
            "runtime.compile_cache": "off",
            "device": "cpu" if platform == "cpu" else "auto",
        },
    )


def in_several(count: int) -> int:
    """The same in a process where the CPU poses as so many devices; its exit code."""
    given = runtime.variable("XLA_FLAGS") or ""
    env = runtime.environment(
        {"XLA_FLAGS": f"{given} {runtime.SEVERAL}={count}".strip(), "JAX_PLATFORMS": "cpu"}
    )
    words = [sys.executable, "-m", "benchmarks.devices", *sys.argv[1:], "--posed", "--device=cpu"]
    return subprocess.run(words, env=env, check=False).returncode


class Update:
    """An update on some devices; a call makes one and waits for its end."""

    def __init__(self, config: Config):
        machine = runtime.start(config)
        config = runtime.resolve(config, machine)
        self.devices, self.seconds = machine.count, []
        parts = rings.assemble(config, machine, rings.pictures(config, Discrete(ACTIONS)))
        totals = metrics.empty(metrics.kinds_of(metric_shapes(parts)))
        source = sources.programs(parts, totals)["learn"]
        jitted = jax.jit(source.function, donate_argnums=source.donate, out_shardings=source.out)
        self._program = jitted.lower(*source.shapes).compile(
            compiler_options=runtime.compiler_options(machine.platform)
        )
        self.flops = float((self._program.cost_analysis() or {}).get("flops", 0.0))
        self._state, self._plan, self._key = first_state(parts, source), source.shapes[4], parts.key
        self.parameters = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self._state[0].params))
        self._done = 0

    def __call__(self) -> float:
        """Seconds that it took."""
        plan = jax.device_put(np.array([1, self._done, 0], np.int32), self._plan.sharding)
        began = time.monotonic()
        self._state = self._program(*self._state, plan, self._key)[:4]
        jax.block_until_ready(self._state)
        self._done += 1
        return time.monotonic() - began

    def row(self, alone: "Update") -> dict[str, Any]:
        share = self.flops / alone.flops
        return {
            "devices": self.devices,
            "updates_per_s": round(1 / statistics.median(self.seconds), 3),
            "update_s": [round(x, 4) for x in self.seconds],
            "share": round(share, 4),
            "efficiency": round(1 / (share * self.devices), 4),
            "sent_mib": {kind: round(x / 2**20, 3) for kind, x in sent(self._program.as_text()).items()},
            "parameters_mib": round(self.parameters / 2**20, 3),
            "scratch_mib": round(self._program.memory_analysis().temp_size_in_bytes / 2**20, 1),
        }


def first_state(parts: Parts, source: sources.Source) -> tuple[Any, ...]:
    """Learner, ring, metrics and evidence, where they belong."""
    ring = rings.filled(parts.replay, jax.tree.map(lambda x: x.sharding, source.shapes[1]))
    learner = jax.jit(parts.learner.init, out_shardings=parts.machine.layout.whole)(parts.key)
    totals, evidence = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), source.shapes[2:4]
    )
    return learner, ring, totals, evidence


def sent(text: str) -> dict[str, int]:
    """Bytes of the results of exchanges in one run of a program, by kind."""
    found: dict[str, int] = {}
    for shape, kind in EXCHANGE.findall(text):
        for _, bits, dims in ARRAY.findall(shape):
            n = math.prod(int(n) for n in dims.split(",") if n)
            found[kind] = found.get(kind, 0) + n * int(bits) // 8
    return found


if __name__ == "__main__":
    runtime.ask_for_huge_pages()
    sys.exit(main())
