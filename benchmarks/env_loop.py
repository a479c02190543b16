"""What the trainer's loop costs around physics and pixels, where nothing is learned.

    python -m benchmarks.env_loop
    python -m benchmarks.env_loop --tasks mjx_so101_lift --num_envs 64 --out benchmarks/results/env_loop.json

Alternates, in one process, the bare compiled step and pictures of N environments, called over and over with
the same actions, and a training run of the random agent through the command line, with metrics and scores
written as always. Rates are env_steps/s on the wall clock; `cost` is how much of the bare rate the loop
loses. Prints one JSON record.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np

from benchmarks import record
from jaxrl import envs, train
from jaxrl.config import EnvConfig


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=["mjx_cartpole_balance", "mjx_so101_lift"])
    parser.add_argument("--num_envs", type=int, default=64)
    parser.add_argument("--size", type=int, default=84, help="pixels, height and width")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a measurement, about")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, help="also write the record to this file")
    args = parser.parse_args()
    head, rows = record.start("env_loop"), []
    for task in args.tasks:
        env = envs.make(task, EnvConfig(action_repeat=1, size=args.size), num_envs=args.num_envs, seed=0)
        env.reset()
        steps = max(10, int(args.seconds * bare(env, 10) / args.num_envs))  # vector steps of a measurement
        found = {"bare": [], "loop": []}
        for _ in range(args.rounds):
            found["bare"].append(bare(env, steps))
            found["loop"].append(loop(task, args, steps))
        rates = {name: round(statistics.median(x)) for name, x in found.items()}
        cost = 1 - rates["loop"] / rates["bare"]
        rows.append(
            {"task": task, "vector_steps": steps, **rates, "cost": round(cost, 4), "load": record.load()}
        )
    settings = {"num_envs": args.num_envs, "size": args.size, "rounds": args.rounds}
    record.finish(head | settings | {"device": record.device(), "rows": rows}, args.out)


def bare(env: envs.Hosted, steps: int) -> float:
    """env_steps/s of `steps` vector steps with constant actions, none of which comes to the host."""
    space = env.spaces.action
    action = jax.device_put(np.zeros((env.num_envs, *space.shape), space.dtype))
    told = jax.block_until_ready(env.advance(action))
    began = time.perf_counter()
    for _ in range(steps):
        told = env.advance(action)
    jax.block_until_ready((told, env.current))
    return steps * env.num_envs / (time.perf_counter() - began)


def loop(task: str, args: argparse.Namespace, steps: int) -> float:
    """env_steps/s of a run of the random agent, start-up apart: that of its rows, but for the first."""
    stride = args.num_envs
    with tempfile.TemporaryDirectory() as folder:
        words = ["--config=debug", f"--task={task}", "--agent=random", f"--logdir={folder}/run"]
        words += [f"--replay.capacity={100 * stride}"]
        words += [f"--env.num_envs={stride}", "--env.action_repeat=1", f"--env.size={args.size}"]
        words += [f"--steps={2 * steps * stride}", f"--log_every={steps * stride}", "--eval_every=0"]
        words += ["--terminal.style=off", "--checkpoint.enabled=false"]
        if code := train.main(words):
            raise SystemExit(code)
        rows = [json.loads(x) for x in pathlib.Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    return rows[-1]["fps/env_steps"]


if __name__ == "__main__":
    main()
