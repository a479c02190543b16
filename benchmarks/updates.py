"""The update program as the trainer compiles it: seconds to compile, updates per second, FLOP/s, memory.

    python -m benchmarks.updates --size=1m --batch=16 --length=64 --dtype=float32
    python -m benchmarks.updates --size=12m --set loss.horizon=10 replay.online=false --warm
    python -m benchmarks.updates --run=RUN

One update samples a filled replay, learns, and writes latents back; parameters, ring and metrics are donated.
The replay holds random frames, actions and rewards. One size per process, so that the peak memory is its own.
With --run it is the update of that run, whatever its learner, by its saved settings, with its cache of
compiled programs; replay is cut to --rows. Prints one JSON record:

  compile_s            tracing, lowering and compiling the update alone; `cache`: cold or warm for XLA's part
  programs_s           all programs of the trainer, the update taken from the cache
  warm_compile_s       (--warm) compile_s of a second process with the same cache
  updates_per_s        median over `repeats` blocks of `block` updates; `spread` is (most - least) / median
  cpu_s_per_update     of all threads: steadier than wall time beside other work
  flops_per_update     matrix products and convolutions, counted on the jaxpr; null for agent=drq, which on a
                       CPU makes more than its algorithm asks for (python -m benchmarks.updates_drq counts)
  config_hash          of the settings measured, without "auto"
  share_of_peak        of the best rate of a large matrix product in this process
  temp_mib             scratch memory of the update, as the compiler states it
  policy_ms            a decision for 1 environment, numpy to numpy: median of `policy_calls`
  setup_rss_mib        largest memory of the process before the first update: imports, compilation, replay
  peak_rss_mib         the same after the last one, before the policy and the matrix product are timed
"""

import argparse
import contextlib
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks import flops, record
from jaxrl import changes, exits, flags, plan, reading, runtime
from jaxrl.config import Config, ConfigError, Value, replace, to_dict

if TYPE_CHECKING:
    from jaxrl.parts import Parts
    from jaxrl.programs import Programs
    from jaxrl.state import RunState
    from jaxrl.types import Spaces

UPDATE = ("learn", "update", "sample", "refresh")  # one program, or three where replay lies elsewhere


def main() -> int:
    args = arguments()
    if args.warm and args.run:
        print("updates: --warm compiles what --size and the like name, not a run", file=sys.stderr)
        return exits.BAD_CONFIG
    try:
        measured(args)
    except ConfigError as error:
        print(f"updates: {error}", file=sys.stderr)
        return exits.BAD_CONFIG
    return exits.DONE


def measured(args: argparse.Namespace) -> None:
    """Prints the record, and writes it."""
    with tempfile.TemporaryDirectory() as folder:
        past = reading.open_past(args.run, "run") if args.run else None
        config = settings(args, args.cache or pathlib.Path(folder), past)
        found = measure(args, config, past)
        if args.warm:
            cache = pathlib.Path(config.runtime.compile_cache)
            found["warm_compile_s"] = second_process(args, cache)["compile_s"]
    record.finish(found, args.out)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="auto", help="model.size")
    parser.add_argument("--batch", type=int, default=16, help="sequences")
    parser.add_argument("--length", type=int, default=64, help="rows of a sequence")
    parser.add_argument("--dtype", default="auto", help="model.compute_dtype")
    parser.add_argument("--actions", type=int, default=18)
    parser.add_argument("--run", help="run directory, instead of the five above")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the trainer")
    parser.add_argument("--repeats", type=int, default=5, help="blocks; 0 only compiles")
    parser.add_argument("--block", type=int, default=2, help="updates")
    parser.add_argument("--policy_calls", type=int, default=100)
    parser.add_argument("--rows", type=int, default=2_000, help="of replay")
    parser.add_argument("--cache", type=pathlib.Path, help="folder of compiled programs; default: a new one")
    parser.add_argument("--warm", action="store_true", help="compile once more in a second process")
    parser.add_argument("--out", type=pathlib.Path, help="also write the record to this file")
    return parser.parse_args()


def settings(args: argparse.Namespace, cache: pathlib.Path, past: reading.Past | None) -> Config:
    """What is measured: the settings of a run, or the preset atari100k with those of the command line.

    Raises:
      ConfigError: one of them cannot be used, or the run learns nothing.
    """
    pairs = (text.partition("=") for text in args.set)
    given = {name: flags.parse_override(name, value) for name, _, value in pairs}
    if past is None:
        changed: dict[str, Value] = {
            "model.size": args.size,
            "model.compute_dtype": args.dtype,
            "batch_size": args.batch,
            "batch_length": args.length,
            "replay.capacity": max(args.rows, args.length + 1),
            "runtime.compile_cache": str(cache),
        }
        return replace(flags.load_preset("atari100k"), changed | given)
    config = replace(changes.saved_config(past.config)[0], given)
    if config.agent == "random":
        raise ConfigError(f"{past.path}: agent=random learns nothing, so there are no updates to measure")
    few = max(args.rows, (max(plan.window_of(config), config.drq.stack) + 8) * config.env.num_envs)
    changed = {"replay.capacity": min(config.replay.capacity, few), "replay.holdout": 0.0, "video_every": 0}
    return replace(config, changed | ({"runtime.compile_cache": str(cache)} if args.cache else {}))


def measure(args: argparse.Namespace, config: Config, past: reading.Past | None) -> dict[str, Any]:
    """The record of this process."""
    runtime.prepare(config)
    began = time.monotonic()
    found = record.start("updates", run=past.id if past else None)
    import jax

    from benchmarks import rings

    machine = runtime.start(config)
    config = runtime.resolve(config, machine)
    parts = rings.assemble(config, machine, spaces_of(config, args))
    found |= describe(parts, args) | {"init_s": round(time.monotonic() - began, 2)}
    found |= compile_update(parts)
    if not args.repeats:
        return found
    from jaxrl.programs import Programs

    began = time.monotonic()
    programs = Programs(parts)
    found["programs_s"] = round(time.monotonic() - began, 2)
    state = filled_state(parts, programs)
    found["setup_rss_mib"] = record.peak_rss_mib()
    state, updates = time_updates(programs, state, args)
    found |= updates | {"peak_rss_mib": record.peak_rss_mib()}
    if memory := machine.learner.memory_stats() if machine.platform != "cpu" else None:
        found["device_peak_mib"] = round(memory.get("peak_bytes_in_use", 0) / 2**20, 1)
    found["replayed_steps_per_s"] = round(plan.rows_of_update(config) * updates["updates_per_s"], 2)
    found |= time_policy(parts, programs, state, args.policy_calls)
    del state
    found |= time_peak(jax, machine)
    if found["flops_per_update"] is not None:
        found["flops_per_s"] = found["flops_per_update"] * updates["updates_per_s"]
        found["share_of_peak"] = round(found["flops_per_s"] / found["peak_flops_per_s"], 4)
    return found


def spaces_of(config: Config, args: argparse.Namespace) -> "Spaces":
    """What the environments of a run show and take; without one, an image and `args.actions` actions."""
    from benchmarks import rings
    from jaxrl import envs
    from jaxrl.types import Discrete

    if not args.run:
        return rings.pictures(config, Discrete(args.actions))
    with contextlib.closing(envs.make(config.task, config.env, num_envs=1, seed=0)) as env:
        return env.spaces


def second_process(args: argparse.Namespace, cache: pathlib.Path) -> dict[str, Any]:
    """The record of a process that only compiles, with the cache that this one has filled."""
    words = [
        f"--{name}={getattr(args, name)}" for name in ("size", "batch", "length", "dtype", "actions", "rows")
    ]
    words += [f"--cache={cache}", "--repeats=0", *(["--set", *args.set] if args.set else [])]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.updates", *words], stdout=subprocess.PIPE, text=True, check=True
    )
    found = record.last_record(done.stdout)
    assert found and found["cache"] == "warm"
    return found


def describe(parts: "Parts", args: argparse.Namespace) -> dict[str, Any]:
    """What is measured, with "auto" resolved, and how large it is."""
    import jax

    from jaxrl.types import Discrete

    config, spaces = parts.config, parts.replay.spaces
    state = jax.eval_shape(parts.learner.init, parts.key)
    params = jax.tree.leaves(state.params)
    return {
        "device": record.device(),
        "config_hash": record.config_hash(to_dict(replace(config, {"runtime.compile_cache": "off"}))),
        "agent": config.agent,
        "size": config.model.size if config.agent == "dreamer" else None,
        "batch": config.batch_size,
        "length": config.batch_length if config.agent == "dreamer" else None,
        "dtype": config.model.compute_dtype,
        "num_envs": config.env.num_envs,
        "observations": {name: list(x.shape) for name, x in spaces.obs.items()},
        "actions": spaces.action.n if isinstance(spaces.action, Discrete) else spaces.action.size,
        "settings": args.set,
        "repeats": args.repeats,
        "block": args.block,
        "parameters": sum(x.size for x in params),
        "state_mib": mib(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))),
        "replay_mib": mib(parts.replay.nbytes),
    }


def compile_update(parts: "Parts") -> dict[str, Any]:
    """Traces, lowers and compiles the update by itself, and counts its work."""
    import jax

    from jaxrl import metrics, sources
    from jaxrl.parts import metric_shapes

    totals = metrics.empty(metrics.kinds_of(metric_shapes(parts)))
    found = sources.programs(parts, totals)
    trace_s = xla_s = temp = 0.0
    cpu, before = time.process_time(), kept(parts.config)
    work = {"dot": 0.0, "conv": 0.0}
    for source in (found[name] for name in UPDATE if name in found):
        began = time.monotonic()
        traced = jax.jit(source.function, donate_argnums=source.donate).trace(*source.shapes)
        lowered = traced.lower()
        trace_s += time.monotonic() - began
        began = time.monotonic()
        compiled = lowered.compile(compiler_options=runtime.compiler_options(parts.machine.platform))
        xla_s += time.monotonic() - began
        temp += compiled.memory_analysis().temp_size_in_bytes
        counted = flops.count(traced.jaxpr)
        work = {kind: work[kind] + counted[kind] for kind in work}
    counts = parts.config.agent != "drq"
    return {
        "cache": "cold" if kept(parts.config) - before else "warm" if before else "off",
        "trace_s": round(trace_s, 2),
        "xla_s": round(xla_s, 2),
        "compile_s": round(trace_s + xla_s, 2),
        "compile_cpu_s": round(time.process_time() - cpu, 2),
        "temp_mib": mib(temp),
        "flops_per_update": sum(work.values()) if counts else None,
        "conv_flops_per_update": work["conv"] if counts else None,
    }


def kept(config: Config) -> set[pathlib.Path]:
    """Compiled programs in the cache."""
    folder = runtime.cache_folder(config.runtime.compile_cache)
    return set(pathlib.Path(folder).glob("*-cache")) if folder else set()


def filled_state(parts: "Parts", programs: "Programs") -> "RunState":
    """A fresh run's state with a full replay."""
    from benchmarks import rings
    from jaxrl import saving

    state = saving.fresh_state(programs, parts.config.env.num_envs)
    return state.replace(ring=rings.filled(parts.replay, parts.machine.replay))


def time_updates(
    programs: "Programs", state: "RunState", args: argparse.Namespace
) -> tuple["RunState", dict[str, Any]]:
    """Blocks of updates, each ended by waiting for everything that it made."""
    import jax

    from jaxrl.parts import Due

    learner, ring, totals, evidence, done = state.learner, state.ring, state.totals, state.evidence, 0
    wall, cpu = [], []
    for block in [2] + [args.block] * args.repeats:  # the first ones warm up
        began = time.perf_counter(), time.process_time()
        due = Due(updates=block, done=done, agent_steps=0)
        learner, ring, totals, evidence, policy = programs.learn(learner, ring, totals, evidence, due)
        jax.block_until_ready((learner, ring, totals, policy))
        wall.append((time.perf_counter() - began[0]) / block)
        cpu.append((time.process_time() - began[1]) / block)
        done += block
    rates = [1 / seconds for seconds in wall[1:]]
    rate = 1 / statistics.median(wall[1:])
    state = state.replace(learner=learner, ring=ring, totals=totals, evidence=evidence, policy=policy)
    return state, {
        "updates_per_s": round(rate, 4),
        "spread": round((max(rates) - min(rates)) / rate, 3),
        "update_s": [round(seconds, 4) for seconds in wall[1:]],
        "cpu_s_per_update": round(statistics.median(cpu[1:]), 4),
    }


def time_policy(parts: "Parts", programs: "Programs", state: "RunState", calls: int) -> dict[str, float]:
    """Milliseconds of a decision for the training environments, numpy in and numpy out."""
    import jax
    import numpy as np

    from jaxrl.parts import step_shapes

    step = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), step_shapes(parts.replay.spaces, parts.config.env.num_envs)
    )
    carry, counter, taken = state.carry, state.counter, []
    for _ in range(calls + 3):
        began = time.perf_counter()
        out, counter = programs.act(state.policy, carry, counter, programs.put(step))
        carry = out.carry
        jax.device_get(out.action)
        taken.append(1e3 * (time.perf_counter() - began))
    taken = sorted(taken[3:])
    return {
        "policy_ms": round(statistics.median(taken), 3),
        "policy_ms_p90": round(taken[int(0.9 * len(taken))], 3),
    }


def time_peak(jax: Any, machine: runtime.Machine) -> dict[str, Any]:
    """The best rate of a large matrix product: 2048^3 float32 on a CPU, 8192^3 bfloat16 elsewhere."""
    size, dtype = (2048, "float32") if machine.platform == "cpu" else (8192, "bfloat16")
    # Random numbers: a chip that multiplies constants draws less power, and runs faster than it ever will.
    matrix = jax.device_put(jax.random.normal(jax.random.key(0), (size, size), dtype), machine.learner)
    multiply: Callable[..., Any] = jax.jit(lambda x: x @ x)
    multiply(matrix).block_until_ready()
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(3):
            product = multiply(matrix)
        product.block_until_ready()
        best = min(best, (time.perf_counter() - began) / 3)
    return {"peak_flops_per_s": 2.0 * size**3 / best, "peak_measured_by": f"{size}^3 {dtype}"}


def mib(size: float) -> float:
    return round(size / 2**20, 2)


if __name__ == "__main__":
    runtime.ask_for_huge_pages()
    sys.exit(main())
