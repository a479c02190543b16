"""Whether it pays to train several members at once: updates jointly and in turn, against one alone.

    python -m benchmarks.population
    python -m benchmarks.population --size=12m --batch=16 --length=64 --members 1 8

Members have replays of random rows. "joint" is one program that updates all of them (`jax.vmap`), "turns"
calls the program of one for each, all enqueued before anything is waited for. Window by window both take
turns with a single learner, so that what others do on the machine weighs on all alike; a window is a round of
updates, one for each member, and a wait for its end. Prints one JSON record; of every number of members and
layout:

  compile_s         of the update
  scratch_mib       temporary memory of that program, as the compiler states it
  round_s           a round: median over windows; `round_s_each` has them all
  updates_per_s     of all members together
  gain              their sum over that of one alone, of neighbours in time: median over windows
"""

import argparse
import pathlib
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import record, rings
from jaxrl import flags, metrics, runtime, sources
from jaxrl.axis import Axis
from jaxrl.config import replace, to_dict
from jaxrl.layout import Layout
from jaxrl.parts import Parts, metric_shapes
from jaxrl.types import Discrete

ACTIONS = 18
LAYOUTS = "joint", "turns"


def main() -> None:
    args = arguments()
    config = replace(
        flags.load_preset("atari100k"),
        {
            "model.size": args.size,
            "batch_size": args.batch,
            "batch_length": args.length,
            "replay.capacity": max(args.rows, args.length + 8),
            "runtime.compile_cache": "off",
        },
    )
    runtime.prepare(config)
    found = record.start("population")
    machine = runtime.start(config)
    config = runtime.resolve(config, machine)
    parts = rings.assemble(config, machine, rings.pictures(config, Discrete(ACTIONS)))
    rows = [row for count in args.members for row in measure(parts, count, args)]
    facts = {name: getattr(args, name) for name in ("size", "batch", "length", "windows")}
    found |= {"device": record.device(), "config_hash": record.config_hash(to_dict(config))}
    record.finish(found | facts | {"dtype": config.model.compute_dtype, "rows": rows}, args.out)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--size", default="1m", help="model.size")
    parser.add_argument("--batch", type=int, default=4, help="sequences")
    parser.add_argument("--length", type=int, default=32, help="rows of a sequence")
    parser.add_argument("--rows", type=int, default=1_000, help="of each member's replay")
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=LAYOUTS)
    parser.add_argument("--out", type=pathlib.Path, help="also write the record to this file")
    return parser.parse_args()


class Round:
    """Updates of some members; a call makes one for each of them and waits for its end."""

    def __init__(self, parts: Parts, count: int, jointly: bool):
        """`jointly`: in one program."""
        source = sources.programs(parts, metrics.empty(metrics.kinds_of(metric_shapes(parts))))["learn"]
        began = time.monotonic()
        axis = Axis(count, Layout(parts.machine.layout.devices[:1]))
        source = axis.lifted(source) if jointly else source
        self._learn = sources.compile_all({"learn": source}, parts.machine.platform)["learn"]
        self.compile_s = time.monotonic() - began
        self.scratch = self._learn.demand.scratch
        keys = [jax.random.key(seed) for seed in range(count)]
        members = [first_state(parts, key) for key in keys]
        self._states, self._keys = members, keys
        if jointly:
            self._states = [jax.tree.map(lambda *x: jnp.stack(x), *members)]
            self._keys = [jnp.stack(keys)]
        self._done = 0

    def __call__(self) -> float:
        """Seconds that it took."""
        began = time.monotonic()
        plan = jax.device_put(np.array([1, self._done, 0], np.int32))
        for number, (state, key) in enumerate(zip(self._states, self._keys, strict=True)):
            self._states[number] = self._learn.call(*state, plan, key)[:4]
        jax.block_until_ready(self._states)
        self._done += 1
        return time.monotonic() - began


def first_state(parts: Parts, key: jax.Array) -> tuple[Any, ...]:
    """Learner, ring, metrics and evidence of a member."""
    shapes = sources.programs(parts, metrics.empty(metrics.kinds_of(metric_shapes(parts))))["learn"].shapes
    ring = rings.filled(parts.replay, parts.machine.learner)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[2:4])
    return jax.jit(parts.learner.init)(key), ring, nothing[0], nothing[1].replace(number=jnp.int32(-1))


def measure(parts: Parts, count: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each layout."""
    one = Round(parts, 1, jointly=False)
    rounds = {name: Round(parts, count, jointly=name == "joint") for name in args.layouts}
    for each in (one, *rounds.values()):
        each()  # warm
    seconds: dict[str, list[float]] = {name: [] for name in ("one", *rounds)}
    for _ in range(args.windows):
        for name, each in {"one": one, **rounds}.items():
            seconds[name].append(each())
    return [
        {
            "members": count,
            "layout": name,
            "compile_s": round(each.compile_s, 2),
            "scratch_mib": round(each.scratch / 2**20, 1),
            "round_s": round(statistics.median(seconds[name]), 4),
            "round_s_each": [round(x, 4) for x in seconds[name]],
            "updates_per_s": round(count / statistics.median(seconds[name]), 3),
            "gain": round(
                statistics.median(count * a / b for a, b in zip(seconds["one"], seconds[name], strict=True)),
                3,
            ),
        }
        for name, each in rounds.items()
    ]


if __name__ == "__main__":
    runtime.ask_for_huge_pages()
    main()
