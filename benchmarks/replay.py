"""How fast rows go into replay and batches come out, against a plain copy of as many bytes.

    python -m benchmarks.replay
    python -m benchmarks.replay --kinds sequences --streams 1 16 --capacity 20000 --out replay.json

Sequences are those of the world model (preset atari100k), transitions those of DrQ (atari100k_drq), each with
the shapes of its preset, in a ring full of random rows. "insert" writes one row of every stream, the ring
donated; "sample" draws one batch, which is written out. Window by window the program and a copy of the same
number of bytes take turns, so that what others do on the machine weighs on both alike; a call is a dispatch
and a wait for its end, as many one after the other as fill a window. Prints one JSON record; of every row:

  bytes         that are written: the row of all streams, or the batch
  us            microseconds of a call: median over windows; `us_each` has them all
  gb_per_s      bytes over that
  copy_us       of the copy
  share         copy_us / us of neighbours in time: median over windows; 1 is as fast as a copy
"""

import argparse
import math
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import record, rings
from jaxrl import flags, runtime
from jaxrl.config import Config, replace
from jaxrl.types import Discrete

PRESETS = {"sequences": "atari100k", "transitions": "atari100k_drq"}
ACTIONS = 18


def main() -> None:
    args = arguments()
    runtime.prepare(Config())
    found, rows = record.start("replay"), []
    for kind in args.kinds:
        for streams in args.streams:
            rows += measure(kind, streams, args)
    facts = {name: getattr(args, name) for name in ("batch", "length", "capacity", "seconds", "windows")}
    record.finish(found | {"device": record.device(), **facts, "rows": rows}, args.out)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 16], help="environments")
    parser.add_argument("--capacity", type=int, default=4_000, help="rows of replay, over all streams")
    parser.add_argument("--batch", type=int, default=0, help="sequences or transitions; 0 = of the preset")
    parser.add_argument("--length", type=int, default=0, help="rows of a sequence; 0 = of the preset")
    parser.add_argument("--seconds", type=float, default=0.2, help="length of a window")
    parser.add_argument("--windows", type=int, default=11)
    parser.add_argument("--out", type=pathlib.Path, help="also write the record to this file")
    return parser.parse_args()


def measure(kind: str, streams: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Inserting and sampling of one kind of replay."""
    config = flags.load_preset(PRESETS[kind])
    config = replace(
        config,
        {
            "batch_size": args.batch or config.batch_size,
            "batch_length": args.length or config.batch_length,
            "env.num_envs": streams,
            "replay.capacity": max(args.capacity, streams * ((args.length or config.batch_length) + 8)),
            "model.size": "1m",
            "runtime.compile_cache": "off",
        },
    )
    machine = runtime.start(config)
    config = runtime.resolve(config, machine)
    replay = rings.assemble(config, machine, rings.pictures(config, Discrete(ACTIONS))).replay
    ring = rings.filled(replay, machine.replay)
    options = runtime.compiler_options(machine.platform)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), ring.rows)
    first = rings.random_rows(replay.spaces, shapes)
    row = jax.tree.map(lambda x: jax.device_put(x[0], machine.replay), first)
    key, clock = jax.device_put((jax.random.key(0), np.int32(0)), machine.replay)
    draw = jax.jit(lambda *x: replay.sample(*x)[:2], compiler_options=options, donate_argnums=0)
    insert = jax.jit(replay.insert, compiler_options=options, donate_argnums=0)
    held = [ring]

    def one_insert() -> Any:
        held[0] = insert(held[0], row)
        return held[0].cursor

    def one_sample() -> Any:
        held[0], batch = draw(held[0], key, clock)
        return batch

    found = []
    for what, call in (("insert", one_insert), ("sample", one_sample)):
        size = sum(x.nbytes for x in jax.tree.leaves(row if what == "insert" else one_sample()))
        told = {"kind": kind, "what": what, "streams": streams, "batch": config.batch_size, "bytes": size}
        found.append(told | against_copy(call, size, machine.replay, args))
    return found


def against_copy(call: Callable[[], Any], size: int, place: Any, args: argparse.Namespace) -> dict[str, Any]:
    """The numbers of a call that writes so many bytes, and of the copy."""
    source = jax.device_put(np.random.default_rng(0).integers(0, 256, size, np.uint8), place)
    copied = jax.jit(jnp.copy)

    def copy() -> Any:
        return copied(source)

    ours, copies = [], []
    for turn in range(args.windows + 1):
        pair = [(call, ours), (copy, copies)]
        for each, taken in pair if turn % 2 else reversed(pair):
            taken.append(window(each, args.seconds if turn else args.seconds / 4))
    ours, copies = ours[1:], copies[1:]  # the first ones warm up
    middle = statistics.median(ours)
    return {
        "us": rounded(1e6 * middle),
        "us_each": [rounded(1e6 * x) for x in ours],
        "gb_per_s": rounded(size / middle / 1e9),
        "copy_us": rounded(1e6 * statistics.median(copies)),
        "share": rounded(statistics.median(c / x for c, x in zip(copies, ours, strict=True))),
        "load": record.load(),
    }


def window(call: Callable[[], Any], seconds: float) -> float:
    """Seconds of a call, over about `seconds`."""
    calls, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(4):
            jax.block_until_ready(call())
        calls += 4
    return (time.perf_counter() - began) / calls


def rounded(value: float) -> float:
    """To four digits."""
    return float(f"{value:.4g}") if math.isfinite(value) else value


if __name__ == "__main__":
    main()
