"""What a picture of the arm costs: our ray caster against MuJoCo's own OpenGL renderer.

    python -m benchmarks.render
    python -m benchmarks.render --num_envs 16 256 --samples 1 2 --out benchmarks/results/render.json

Both draw the same random poses of the SO-101 scene (18 visible geoms), 84x84 pixels, without shadows, and
take turns window by window; the ray caster a batch per call, OpenGL (EGL, or OSMesa) a picture per call.
`_ms` is CPU time, all threads, per picture, so a run pinned to one core gives ms per core; `speedup` is
the median ratio of neighbours in time. `temp_mb` is what the compiled program needs beside its arguments
and results, per picture. Where no OpenGL library can be loaded its numbers are null. Prints one JSON
record.
"""

import argparse
import pathlib
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from benchmarks import record
from jaxrl.config import ConfigError
from jaxrl.envs.mjx import engine
from jaxrl.envs.mjx.render import Scene, opengl, render_batch

SIZE = 84
POSES = 16  # of OpenGL, in turn


def poses(model: mujoco.MjModel, count: int) -> list[mujoco.MjData]:
    """States with random joint angles in the middle half of their ranges."""
    draw, found = np.random.default_rng(0), []
    for _ in range(count):
        state = mujoco.MjData(model)
        for joint in np.flatnonzero(model.jnt_limited):
            low, high = model.jnt_range[joint]
            state.qpos[model.jnt_qposadr[joint]] = draw.uniform(
                0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high
            )
        mujoco.mj_forward(model, state)
        found.append(state)
    return found


def caster(scene: Scene, states: list[mujoco.MjData]) -> tuple[Callable[[], object], dict[str, float]]:
    """(a call that draws all states once, what compiling it showed)."""
    xpos = jnp.asarray(np.stack([s.xpos for s in states]), jnp.float32)
    xmat = jnp.asarray(np.stack([s.xmat.reshape(-1, 3, 3) for s in states]), jnp.float32)
    look = scene.look()
    draw = jax.jit(lambda *x: render_batch(scene, *x, chunk=len(states), pick=lambda p: p.rgb))
    began = time.perf_counter()
    compiled = draw.lower(look, xpos, xmat).compile()
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    count = len(states) * len(scene.cameras)
    facts = {"compile_s": round(seconds, 2), "temp_mb": round(memory.temp_size_in_bytes / count / 1e6, 3)}
    return lambda: jax.block_until_ready(compiled(look, xpos, xmat)), facts


def window(call: Callable[[], object], seconds: float, pictures: int) -> tuple[float, float]:
    """(CPU ms, wall ms) per picture, over at least `seconds`."""
    calls, cpu, wall = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - wall < seconds:
        call()
        calls += 1
    done = calls * pictures / 1e3
    return (time.process_time() - cpu) / done, (time.perf_counter() - wall) / done


def measure(
    model: mujoco.MjModel, camera: str, num_envs: int, samples: int, args: argparse.Namespace
) -> dict[str, object]:
    """One row of the record."""
    scene = Scene.of(model, (camera,), SIZE, samples)
    ours, facts = caster(scene, poses(model, num_envs))
    few = poses(model, POSES)
    try:
        renderer = opengl.Renderer(model, SIZE, SIZE, shadows=False)
    except ConfigError:
        renderer = None
    calls: dict[str, tuple[Callable[[], object], int]] = {"raycast": (ours, num_envs)}
    if renderer:
        calls["opengl"] = (lambda: [renderer.render(state, camera) for state in few], POSES)
    taken: dict[str, list[tuple[float, float]]] = {"raycast": [], "opengl": []}
    for call, _ in calls.values():  # the first one is slower
        call()
    for _ in range(args.windows):
        for name, (call, pictures) in calls.items():
            taken[name].append(window(call, args.seconds, pictures))
    if renderer:
        renderer.close()
    cpu = {name: [c for c, _ in times] for name, times in taken.items()}
    ratios = [b / a for a, b in zip(cpu["raycast"], cpu["opengl"], strict=False)]
    middle = {name: round(statistics.median(times), 3) if times else None for name, times in cpu.items()}
    return {
        "camera": camera,
        "num_envs": num_envs,
        "samples": samples,
        "geoms": len(scene.shapes),
        "raycast_ms": middle["raycast"],
        "raycast_frames_per_s": round(1e3 / statistics.median(w for _, w in taken["raycast"])),
        "opengl_ms": middle["opengl"],
        "speedup": round(statistics.median(ratios), 2) if ratios else None,
        **facts,
        "load": record.load(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cameras", nargs="+", default=["wrist", "front", "side", "top"])
    parser.add_argument("--num_envs", nargs="+", type=int, default=[16])
    parser.add_argument("--samples", nargs="+", type=int, default=[1])
    parser.add_argument("--seconds", type=float, default=0.2, help="length of a window")
    parser.add_argument("--windows", type=int, default=15, help="windows of each renderer")
    parser.add_argument("--out", type=pathlib.Path, help="also write the record to this file")
    args = parser.parse_args()
    head = record.start("render")
    model = engine.load("so101.xml", 1).model
    rows = [
        measure(model, camera, num_envs, samples, args)
        for samples in args.samples
        for num_envs in args.num_envs
        for camera in args.cameras
    ]
    found = {"size": SIZE, "seconds": args.seconds, "windows": args.windows, "device": record.device()}
    record.finish(head | found | {"rows": rows}, args.out)


if __name__ == "__main__":
    main()
