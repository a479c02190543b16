"""The update of DrQ: updates per second, FLOP/s, memory, a decision, on batches that already are in memory.

    python -m benchmarks.updates_drq
    python -m benchmarks.updates_drq --batch=64 --size=48 --channels=16 --hidden=256
    python -m benchmarks.updates_drq --discrete --batch=32 --channels=32 --hidden=512

The learner alone, as drivers of other programs time it: augmentation, encoder, losses, optimisers, target;
drawing a batch from replay is not in it. Pixels, actions and rewards are random. Prints one JSON record:

  compile_s            tracing, lowering and compiling the update
  updates_per_s        median over `repeats` blocks of `block` updates; `spread` is (most - least) / median
  cpu_s_per_update     of all threads
  flops_per_update     matrix products and convolutions of the algorithm, counted on the jaxpr; what the form
                       of them on a CPU makes more (see jaxrl/ops/conv_valid.py) counts for nothing here
  share_of_peak        of the best rate of a large matrix product in this process
  temp_mib             scratch memory of the update, as the compiler states it
  policy_ms            a decision of 1 environment, numpy to numpy: median of `policy_calls`
  peak_rss_mib         largest memory of the process after the updates
"""

import argparse
import pathlib
import statistics
import time
from typing import Any
from unittest import mock

from benchmarks import flops, record
from benchmarks.updates import mib, time_peak
from jaxrl import runtime
from jaxrl.config import Config, replace


def main() -> None:
    args = arguments()
    record.finish(measure(args), args.out)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=256, help="transitions")
    parser.add_argument("--size", type=int, default=84, help="height and width of images")
    parser.add_argument("--frames", type=int, default=3, help="shown together: of RGB, grey if discrete")
    parser.add_argument("--channels", type=int, default=32, help="drq.channels")
    parser.add_argument("--hidden", type=int, default=1024, help="drq.hidden")
    parser.add_argument("--actions", type=int, default=6)
    parser.add_argument("--discrete", action="store_true", help="DrQ(eps) instead of DrQ-v2")
    parser.add_argument("--dtype", default="auto", help="model.compute_dtype")
    parser.add_argument("--repeats", type=int, default=5, help="blocks")
    parser.add_argument("--block", type=int, default=2, help="updates")
    parser.add_argument("--policy_calls", type=int, default=100)
    parser.add_argument("--out", type=pathlib.Path, help="also write the record to this file")
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The record of this process."""
    settings = {
        "agent": "drq",
        "env.size": args.size,
        "model.compute_dtype": args.dtype,
        "drq.stack": args.frames,
        "drq.channels": args.channels,
        "drq.hidden": args.hidden,
        "opt.name": "adam",
        "opt.lr": 1e-4,
        "opt.eps": 1e-8,
        "opt.agc": 0.0,
        "opt.warmup": 0,
        "runtime.compile_cache": "off",
    }
    config = replace(Config(), settings)
    runtime.prepare(config)
    found = record.start("updates_drq")
    import jax

    machine = runtime.start(config)
    config = runtime.resolve(config, machine)
    place = jax.default_device(machine.learner)
    with place:
        found |= time_learner(args, config, machine)
        found |= time_peak(jax, machine)
    found["flops_per_s"] = found["flops_per_update"] * found["updates_per_s"]
    found["share_of_peak"] = round(found["flops_per_s"] / found["peak_flops_per_s"], 4)
    return found


def time_learner(args: argparse.Namespace, config: Config, machine: runtime.Machine) -> dict[str, Any]:
    import jax
    import numpy as np

    from jaxrl.learners import make
    from jaxrl.types import ArraySpec, Continuous, Discrete, Spaces

    shape = (args.size, args.size, 1 if args.discrete else 3)
    action = Discrete(args.actions) if args.discrete else Continuous(args.actions)
    spaces = Spaces(obs={"image": ArraySpec(shape, np.dtype(np.uint8))}, action=action)
    learner = make(config, spaces)
    batches = [jax.device_put(transitions(args, spaces, seed)) for seed in range(4)]
    key, options = jax.random.key(0), runtime.compiler_options(machine.platform)
    state = jax.jit(learner.init)(key)
    found: dict[str, Any] = {
        "device": record.device(),
        **{
            k: getattr(args, k)
            for k in ("batch", "size", "frames", "channels", "hidden", "actions", "discrete")
        },
        "dtype": config.model.compute_dtype,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "flops_per_update": algorithm_flops(learner, state, batches[0], key),
    }
    began = time.monotonic()
    lowered = jax.jit(learner.update, donate_argnums=0).lower(state, batches[0], key)
    update = lowered.compile(compiler_options=options)
    found["compile_s"] = round(time.monotonic() - began, 2)
    found["temp_mib"] = mib(update.memory_analysis().temp_size_in_bytes)
    keys, made, wall, cpu = jax.random.split(key, 4), 0, [], []
    for block in [2] + [args.block] * args.repeats:  # the first ones warm up
        began, used = time.perf_counter(), time.process_time()
        for _ in range(block):
            out = update(state, batches[made % 4], keys[made % 4])
            state, made = out.state, made + 1
        jax.block_until_ready((state, out.metrics))
        wall.append((time.perf_counter() - began) / block)
        cpu.append((time.process_time() - used) / block)
    rates, rate = [1 / x for x in wall[1:]], 1 / statistics.median(wall[1:])
    return found | {
        "updates_per_s": round(rate, 4),
        "spread": round((max(rates) - min(rates)) / rate, 3),
        "update_s": [round(x, 4) for x in wall[1:]],
        "cpu_s_per_update": round(statistics.median(cpu[1:]), 4),
        "peak_rss_mib": record.peak_rss_mib(),
        "policy_ms": time_policy(learner, spaces, state, options, args.policy_calls),
    }


def transitions(args: argparse.Namespace, spaces: Any, seed: int) -> Any:
    """A random batch."""
    import numpy as np

    from jaxrl.types import Transitions

    draw, (h, w, c) = np.random.default_rng(seed), spaces.obs["image"].shape
    images = [draw.integers(0, 256, (args.batch, h, w, args.frames * c), np.uint8) for _ in range(2)]
    action = draw.uniform(-1, 1, (args.batch, args.actions)).astype(np.float32)
    return Transitions(
        obs={"image": images[0]},
        action=draw.integers(0, args.actions, args.batch, np.int32) if args.discrete else action,
        reward=draw.random(args.batch, np.float32),
        discount=np.full(args.batch, 0.97, np.float32),
        next_obs={"image": images[1]},
        agent_steps=np.int32(10_000),
    )


def algorithm_flops(learner: Any, state: Any, batch: Any, key: Any) -> float:
    """FLOPs of an update with the encoder in its plain form."""
    import jax

    from jaxrl.nets import drq
    from jaxrl.ops import conv_valid

    def update(*args):  # a function of its own: what was traced of another is not traced again
        return learner.update(*args)

    with mock.patch.object(drq, "encode", conv_valid.plain):
        traced = jax.jit(update).trace(state, batch, key)
    return sum(flops.count(traced.jaxpr).values())


def time_policy(learner: Any, spaces: Any, state: Any, options: dict[str, Any], calls: int) -> float:
    """Milliseconds of a decision of one environment, numpy in and numpy out."""
    import jax
    import numpy as np

    from jaxrl.types import Step

    obs = {k: np.zeros((1, *x.shape), x.dtype) for k, x in spaces.obs.items()}
    no, reward = np.zeros(1, bool), np.zeros(1, np.float32)
    step = Step(obs=obs, reward=reward, is_first=no, is_last=no, is_terminal=no)
    policy, carry, taken = learner.policy_params(state), learner.initial_carry(1), []
    act = jax.jit(learner.act, static_argnums=4, compiler_options=options)
    for _ in range(calls + 3):
        began = time.perf_counter()
        out = act(policy, carry, step, jax.random.key(0), "train")
        carry = out.carry
        jax.device_get(out.action)
        taken.append(1e3 * (time.perf_counter() - began))
    return round(statistics.median(taken[3:]), 3)


if __name__ == "__main__":
    runtime.ask_for_huge_pages()
    main()
