"""How fast the physics tasks step, per batch size.

    python -m benchmarks.env_steps
    python -m benchmarks.env_steps --tasks so101_lift --num_envs 256 --out benchmarks/results/env_steps.json

Parts, each a compiled scan over control steps with random actions:

  mujoco   MuJoCo in C, one simulation in one thread, for scale
  physics  MJX alone, N simulations
  step     the task's step: what moves the motors, physics, rewards, observations, time limit

A physics step advances the simulation by its time step, a control step by some of them, with one action.
Rates are per core: steps over the CPU time of all threads, the fastest of the windows, since what else runs
on a machine only ever slows one down. Prints one JSON record.
"""

import argparse
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from benchmarks import record
from jaxrl.config import EnvConfig
from jaxrl.envs.mjx import make_task, names
from jaxrl.runtime import compiler_options

LENGTH = 20  # control steps of a call
Rates = dict[str, float | int]


def mujoco_in_c(task: Any, _: int, seconds: float, windows: int) -> Rates:
    """One simulation, a new random ctrl at each control step."""
    model, state = task.engine.model, mujoco.MjData(task.engine.model)
    state.qpos[:] = jax.jit(task.reset)(jax.random.key(0)).data.physics.qpos
    low, high = model.actuator_ctrlrange.T
    moves = np.random.default_rng(0).uniform(low, high, (1000, model.nu))

    def call() -> None:
        for ctrl in moves:
            state.ctrl[:] = ctrl
            mujoco.mj_step(model, state, task.substeps)

    return rates(call, len(moves), task.substeps, seconds, windows)


def physics(task: Any, n: int, seconds: float, windows: int) -> Rates:
    """MJX without the task around it, from the task's start states."""
    engine = task.engine
    low, high = jnp.asarray(engine.model.actuator_ctrlrange.T, jnp.float32)

    def advance(carry: Any, key: jax.Array) -> tuple[Any, None]:
        ctrl = jax.random.uniform(key, (n, engine.model.nu), jnp.float32, low, high)
        return jax.vmap(engine.advance)(carry, ctrl), None

    return compiled(task, advance, started(task, n).data.physics, n, seconds, windows)


def step(task: Any, n: int, seconds: float, windows: int) -> Rates:
    """The task's step."""

    def advance(state: Any, key: jax.Array) -> tuple[Any, None]:
        action = jax.random.uniform(key, (n, task.action_size), jnp.float32, -1, 1)
        return jax.vmap(task.step)(state, action), None

    return compiled(task, advance, started(task, n), n, seconds, windows)


PARTS: dict[str, Callable[[Any, int, float, int], Rates]] = {
    "mujoco": mujoco_in_c,
    "physics": physics,
    "step": step,
}


def options() -> dict[str, bool]:
    return compiler_options(jax.devices()[0].platform)


def started(task: Any, n: int) -> Any:
    """N first rows."""
    return jax.jit(jax.vmap(task.reset), compiler_options=options())(jax.random.split(jax.random.key(0), n))


def compiled(task: Any, advance: Callable, carry: Any, n: int, seconds: float, windows: int) -> Rates:
    """Rates of LENGTH control steps in one program. The carry goes on from call to call."""

    def many(carry: Any, key: jax.Array) -> Any:
        return jax.lax.scan(advance, carry, jax.random.split(key, LENGTH))[0]

    begun = time.perf_counter()
    program = jax.jit(many, compiler_options=options()).lower(carry, jax.random.key(0)).compile()
    compile_s = time.perf_counter() - begun
    kept = [carry]

    def call() -> None:
        kept[0] = jax.block_until_ready(program(kept[0], jax.random.key(len(kept))))

    found = rates(call, n * LENGTH, task.substeps, seconds, windows)
    finite = all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(kept) if x.dtype == jnp.float32)
    memory = program.memory_analysis()
    return found | {
        "compile_s": round(compile_s, 1),
        "temp_mib": round(memory.temp_size_in_bytes / 2**20, 1),
        "carry_bytes": sum(x.nbytes for x in jax.tree.leaves(carry)) // n,
        "finite": finite,
    }


def rates(call: Callable[[], None], steps: int, substeps: int, seconds: float, windows: int) -> Rates:
    """Of a call that makes so many control steps."""
    call()
    per_call, wall_per_call = [], []
    for _ in range(windows):
        calls, wall, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < seconds:
            call()
            calls += 1
        per_call.append((time.process_time() - cpu) / calls)
        wall_per_call.append((time.perf_counter() - wall) / calls)
    return {
        "control_steps_per_s_core": round(steps / min(per_call)),
        "physics_steps_per_s_core": round(steps * substeps / min(per_call)),
        "median_physics_steps_per_s_core": round(steps * substeps / float(np.median(per_call))),
        "control_steps_per_s_wall": round(steps / float(np.median(wall_per_call))),
        "load": record.load(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=["cartpole_balance", "so101_lift"], choices=names())
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--num_envs", nargs="+", type=int, default=[64, 256, 1024])
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a window")
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, help="also write the record to this file")
    args = parser.parse_args()
    head = record.start("env_steps")
    rows = []
    for name in args.tasks:
        task = make_task(name, EnvConfig(observe="state"))
        for part in args.parts:
            for n in [1] if part == "mujoco" else args.num_envs:
                found = PARTS[part](task, n, args.seconds, args.windows)
                rows.append({"task": name, "part": part, "num_envs": n, "substeps": task.substeps, **found})
    found = {"device": record.device(), "seconds": args.seconds, "windows": args.windows, "rows": rows}
    record.finish(head | found, args.out)


if __name__ == "__main__":
    main()
