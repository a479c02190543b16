"""What our Atari adapter costs over raw EnvPool, and how fast both are.

    python -m benchmarks.envs
    python -m benchmarks.envs --num_envs 1 8 32 --windows 101 --out benchmarks/results/envs.json

Three loops with the same options, game and random actions take turns (A B C A B C ...), window by window:
"raw" is EnvPool's public send and recv, "private" its unwrapped `_send` and `_recv`, "ours" the adapter.
Overhead is the median over windows of 1 - ours / raw, neighbours in time compared, so that what others do
on the machine weighs on both alike; `overhead_cpu` compares CPU time (all threads) instead of wall time.
A step is one decision of one environment. Prints one JSON record.
"""

import argparse
import pathlib
import statistics
import time
from collections.abc import Callable

import numpy as np

from benchmarks import record
from jaxrl.config import EnvConfig
from jaxrl.envs import make
from jaxrl.envs.atari import pool_options
from jaxrl.envs.games import envpool_id
from jaxrl.envs.pool import open_pool

CASES = {
    "rgb64": EnvConfig(),  # Atari-100k
    "gray84x4": EnvConfig(size=84, gray=True, stack=4),
}


def loops(game: str, env: EnvConfig, num_envs: int) -> dict[str, Callable[[int], None]]:
    """Name -> function that takes step i of all environments."""
    options = {**pool_options(env), "stack_num": env.stack}  # what the adapter does itself, EnvPool does too
    pools = [
        open_pool(envpool_id(game), num_envs=num_envs, seed=0, threads=env.threads, options=options)
        for _ in range(2)
    ]
    adapter = make(f"atari_{game}", env, num_envs=num_envs, seed=0)
    ids = np.arange(num_envs, dtype=np.int32)
    actions = np.random.default_rng(0).integers(0, adapter.spaces.action.n, (257, num_envs), np.int32)
    for env_or_pool in (*pools, adapter):
        env_or_pool.reset()

    def raw(i: int) -> None:
        pools[0].send(actions[i % 257])
        pools[0].recv()

    def private(i: int) -> None:
        pools[1]._send([ids, ids, actions[i % 257]])
        pools[1]._recv()

    def ours(i: int) -> None:
        adapter.send(actions[i % 257])
        adapter.recv()

    return {"raw": raw, "private": private, "ours": ours}


def window(step: Callable[[int], None], seconds: float) -> tuple[float, float]:
    """Wall and CPU seconds of one call, over about `seconds`."""
    calls, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        for _ in range(8):
            step(calls)
            calls += 1
    return (time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls


def measure(
    game: str, env: EnvConfig, num_envs: int, *, seconds: float, windows: int
) -> dict[str, float | int]:
    """One row of the record."""
    steps = loops(game, env, num_envs)
    for step in steps.values():
        window(step, seconds / 4)
    wall: dict[str, list[float]] = {name: [] for name in steps}
    cpu: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(windows):
        order = list(steps)[turn % 3 :] + list(steps)[: turn % 3]  # nobody is always first
        for name in order:
            w, c = window(steps[name], seconds)
            wall[name].append(w)
            cpu[name].append(c)

    def overhead(taken: dict[str, list[float]], name: str, base: str) -> float:
        return round(statistics.median(1 - b / a for a, b in zip(taken[name], taken[base], strict=True)), 4)

    return {
        "num_envs": num_envs,
        **{f"{name}_steps_per_s": round(num_envs / statistics.median(wall[name]), 1) for name in steps},
        **{f"{name}_cpu_us": round(statistics.median(cpu[name]) / num_envs * 1e6, 1) for name in steps},
        "overhead": overhead(wall, "ours", "raw"),
        "overhead_cpu": overhead(cpu, "ours", "raw"),
        "overhead_over_private": overhead(wall, "ours", "private"),
        "overhead_over_private_cpu": overhead(cpu, "ours", "private"),
        "load": record.load(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--game", default="pong")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--num_envs", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--seconds", type=float, default=0.1, help="length of a window")
    parser.add_argument("--windows", type=int, default=41, help="windows of each loop")
    parser.add_argument("--out", type=pathlib.Path, help="also write the record to this file")
    args = parser.parse_args()
    head = record.start("envs")
    rows = [
        {"case": case, **measure(args.game, CASES[case], n, seconds=args.seconds, windows=args.windows)}
        for case in args.cases
        for n in args.num_envs
    ]
    found = {"game": args.game, "seconds": args.seconds, "windows": args.windows, "rows": rows}
    record.finish(head | found, args.out)


if __name__ == "__main__":
    main()
