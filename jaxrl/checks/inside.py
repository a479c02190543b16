"""The other end of `child`: python -m jaxrl.checks.inside PROBE [ARGUMENT]. One JSON line for each stage.

A probe uses the very functions that a training uses. A stage that raises is told, and the next one is tried.
"""

import functools
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import numpy as np

from jaxrl import commands, runtime
from jaxrl.checks.finding import first_line
from jaxrl.config import Config, EnvConfig, replace

SIDE = 256  # of the matrices that are multiplied

Facts = dict[str, Any]
Stages = Iterator[tuple[str, Callable[[], Facts]]]


def device(name: str) -> Stages:
    """What jax finds where a run asks for `device=name`; whether each multiplies; a step of physics."""
    there = []

    def find() -> Facts:
        config = replace(Config(), {"device": name})
        runtime.prepare(config)
        machine = runtime.start(config)
        there.append(machine)
        found = {"platform": machine.platform, "kind": machine.kind, "count": machine.count}
        return found | {"memory": runtime.device_memory(machine.learner)}

    yield "find", find
    if not there:
        return
    yield "multiply", multiply
    yield "simulate", simulate


def multiply() -> Facts:
    """Products of whole numbers that every precision in use gives exactly (bf16 factors, f32 sums)."""
    import jax

    began = time.monotonic()
    a = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 7
    b = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 5
    wrong = []
    for place in runtime.devices():
        x, y = (jax.device_put(np.asarray(m, np.float32), place) for m in (a, b))
        if not np.array_equal(jax.jit(lambda x, y: x @ y)(x, y), a @ b):
            wrong.append(str(place))
    return {"wrong": wrong, "seconds": time.monotonic() - began}


def simulate() -> Facts:
    """One step of a physics task, and its picture by the ray caster."""
    import jax
    import jax.numpy as jnp

    from jaxrl import envs

    began = time.monotonic()
    task: Any = envs.device_env("mjx_cartpole_balance", EnvConfig(size=48, action_repeat=1))
    compiled = functools.partial(
        jax.jit, compiler_options=runtime.compiler_options(runtime.devices()[0].platform)
    )
    state = compiled(task.step)(compiled(task.reset)(jax.random.key(0)), jnp.zeros(1))
    seen = np.asarray(compiled(task.pictures)(state)["fixed"])
    facts = {"reward": float(state.reward), "drawn": bool(seen.std() > 0)}
    return facts | {"seconds": time.monotonic() - began, "version": metadata.version("mujoco-mjx")}


def envpool(task: str) -> Stages:
    """ROMs, whether a task is there, a step of an Atari game, a picture of the DeepMind Control Suite."""
    from jaxrl import envs
    from jaxrl.envs.games import ATARI100K, installed_games

    def games() -> Facts:
        there = installed_games()
        listed = [task.removeprefix("atari_") for task in ATARI100K]
        return {"count": len(there), "missing": [game for game in listed if game not in there]}

    def known() -> Facts:
        if task and task not in envs.list_tasks():
            envs.make(task, EnvConfig(), num_envs=1, seed=0)  # says what is wrong with it, and near names
        return {"count": len(envs.list_tasks())}

    def step() -> Facts:
        there = installed_games()
        game = "pong" if "pong" in there or not there else there[0]
        made = envs.make(f"atari_{game}", EnvConfig(), num_envs=1, seed=0)
        made.reset()
        made.send(np.zeros(1, np.int32))
        row = made.recv()
        return {"game": game, "shape": row.obs["image"].shape[1:], "version": metadata.version("envpool")}

    def picture() -> Facts:
        made = envs.make("dmc_cartpole_balance", EnvConfig(action_repeat=2), num_envs=1, seed=0)
        seen = made.reset().obs["image"]
        return {"seen": bool(seen.std() > 0)}

    yield "games", games
    yield "task", known
    yield "step", step
    yield "picture", picture


def opengl() -> Stages:
    """A picture by MuJoCo's own renderer, with the library that MUJOCO_GL names, or the first that works."""

    def load() -> Facts:
        from jaxrl.envs.mjx.render import selftest  # imports mujoco, which loads that library

        del selftest
        return {}

    def draw() -> Facts:
        from jaxrl.envs.mjx.render import selftest

        return {"library": selftest.draw()}

    yield "load", load
    yield "draw", draw


def video() -> Stages:
    """Two frames as a video."""

    def write() -> Facts:
        from jaxrl import videos

        frames = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), np.uint8)
        with tempfile.TemporaryDirectory() as folder:
            file, why = videos.write(pathlib.Path(folder, "film"), iter(frames), 10)
            return {"form": file.suffix[1:], "bytes": file.stat().st_size, "why": why}

    yield "write", write


PROBES = {"device": device, "envpool": envpool, "opengl": opengl, "video": video}


def main(words: list[str]) -> None:
    runtime.end_with_parent()
    for stage, work in PROBES[words[0]](*words[1:]):
        try:
            facts = work()
        except Exception as error:  # is told; what ends the process is seen by who has started it
            facts = {"error": first_line(error), "kind": type(error).__name__}
        commands.say(json.dumps({"stage": stage, **facts}))
    commands.say(json.dumps({"stage": "end"}))


if __name__ == "__main__":
    main(sys.argv[1:])
    runtime.leave_at_once(0)  # threads of EnvPool and drivers may not end by themselves
