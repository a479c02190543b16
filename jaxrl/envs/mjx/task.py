"""What the physics tasks share: episodes, time limits, cameras. A task adds how it starts and is judged."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl.envs.base import State
from jaxrl.envs.mjx import engine as engines
from jaxrl.envs.mjx.engine import Engine, Physics, Poses
from jaxrl.types import ArraySpec, Continuous, Key, Spaces

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def precise(function: Callable[..., Any]) -> Callable[..., Any]:
    """With full products: tensor cores' short floats derail a simulation."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*args)

    return run


@struct.dataclass(kw_only=True)
class Episode:
    """State of one environment between steps: what cannot be computed from the rest."""

    physics: Physics
    count: jax.Array  # [] i32, control steps since the reset
    memo: Any  # pytree, the task's own
    look: Any  # colours, lights and cameras of this episode; None where they do not change


class Verdict(NamedTuple):
    """What a task says of a control step."""

    reward: jax.Array  # [] f32
    memo: Any
    success: jax.Array | None = None  # [] bool, which ends the episode in a terminal state


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """What is shown of a task."""

    observe: str = "pixels"  # or "state"
    cameras: tuple[str, ...] = ()
    size: int = 64  # pixels, height and width
    samples: int = 1  # rays of a pixel along each edge
    gray: bool = False
    randomize: float = 0.0  # strength of random colours, lights and cameras, drawn per episode
    renderer: str = "raycast"  # or "warp"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhysicsTask(abc.ABC):
    """A DeviceEnv on MuJoCo's physics. Every episode is truncated after `length` control steps.

    With view.observe="pixels" a row has one picture per camera, by the camera's name, and `hints`; with
    "state" it has no pictures, and obs["state"], which knows everything.
    """

    view: View
    asset: ClassVar[str]  # file in assets/
    substeps: ClassVar[int]  # physics steps of a control step
    length: ClassVar[int]  # control steps of an episode
    cameras: ClassVar[tuple[str, ...]]  # default
    has_success: ClassVar[bool] = False

    @property
    def is_physics(self) -> bool:
        return True

    @property
    def engine(self) -> Engine:
        return engines.load(self.asset, self.substeps)

    @property
    def action_size(self) -> int:
        return self.engine.model.nu

    @property
    def spaces(self) -> Spaces:
        return _spaces(self)

    def reset(self, key: Key) -> State:
        return self.begin(key, self.start)

    def reset_after(self, key: Key, ended: State) -> State:
        """The same, knowing how the environment's last episode ended."""
        del ended
        return self.reset(key)

    @precise
    def begin(self, key: Key, start: Callable[[Key], tuple[Physics, Any]]) -> State:
        """The first row of an episode that `start` starts."""
        key_start, key_look = jax.random.split(key)
        physics, memo = start(key_start)
        look = None
        if self.view.randomize and self.view.observe == "pixels":
            from jaxrl.envs.mjx.render import randomized

            look = randomized(_scene(self).look(), key_look, self.view.randomize)
        episode = Episode(physics=physics, count=jnp.int32(0), memo=memo, look=look)
        no = jnp.bool_(False) if self.has_success else None
        return self._row(episode, self.engine.poses(physics.qpos), Verdict(jnp.float32(0), memo, no))

    @precise
    def step(self, state: State, action: jax.Array) -> State:
        before = state.data
        ctrl, memo = self.drive(before, action)
        physics = self.engine.advance(before.physics, ctrl)
        after = before.replace(physics=physics, count=before.count + 1, memo=memo)
        poses = self.engine.poses(physics.qpos)
        return self._row(after, poses, self.judge(after, poses, action))

    @precise
    def pictures(self, state: State) -> dict[str, jax.Array]:
        """{camera: [size, size, 3 or 1] u8}."""
        if self.view.observe == "state":
            return {}
        poses = self.engine.poses(state.data.physics.qpos)
        if self.view.renderer == "warp":
            images = _drawn_by_warp(self, poses)
        else:
            from jaxrl.envs.mjx.render import render

            scene = _scene(self)
            look = scene.look() if state.data.look is None else state.data.look
            images = render(scene, look, poses.bodies, poses.frames).rgb
        if self.view.gray:
            images = jnp.round(images @ jnp.array(LUMA, jnp.float32)).astype(jnp.uint8)[..., None]
        return {name: images[i] for i, name in enumerate(self.view.cameras)}

    def hints(self, episode: Episode, poses: Poses) -> dict[str, jax.Array]:
        """Vectors that are shown beside the pictures: what a real robot would know of itself."""
        del episode, poses
        return {}

    def _row(self, episode: Episode, poses: Poses, verdict: Verdict) -> State:
        everything = self.view.observe == "state"
        obs = {"state": self.everything(episode, poses)} if everything else self.hints(episode, poses)
        cut = episode.count >= self.length
        success = jnp.bool_(False) if verdict.success is None else verdict.success
        told = {"truncation": (cut & ~success).astype(jnp.float32)}
        if self.has_success:
            told["success"] = success.astype(jnp.float32)
        return State(
            data=episode.replace(memo=verdict.memo),
            obs=obs,
            reward=jax.lax.convert_element_type(verdict.reward, jnp.float32),
            done=(cut | success).astype(jnp.float32),
            metrics={},
            info=told,
        )

    @abc.abstractmethod
    def start(self, key: Key) -> tuple[Physics, Any]:
        """The first state of an episode, and the memo."""

    @abc.abstractmethod
    def drive(self, episode: Episode, action: jax.Array) -> tuple[jax.Array, Any]:
        """What the motors are told, [nu] f32, for an action in [-1, 1]^A, and the memo."""

    @abc.abstractmethod
    def judge(self, episode: Episode, poses: Poses, action: jax.Array) -> Verdict:
        """Of the state that the action led to."""

    @abc.abstractmethod
    def everything(self, episode: Episode, poses: Poses) -> jax.Array:
        """[d] f32: the whole state, as a vector to learn from."""


@functools.cache
def _spaces(task: PhysicsTask) -> Spaces:
    vectors = jax.eval_shape(task.reset, jax.random.key(0)).obs
    obs = {name: ArraySpec(x.shape, np.dtype(x.dtype)) for name, x in vectors.items()}
    if task.view.observe == "pixels":
        shape = (task.view.size, task.view.size, 1 if task.view.gray else 3)
        obs |= {name: ArraySpec(shape, np.dtype(np.uint8)) for name in task.view.cameras}
    return Spaces(obs=obs, action=Continuous(task.action_size))


def _scene(task: PhysicsTask) -> Any:
    return _scene_of(task.engine, task.view.cameras, task.view.size, task.view.samples)


@functools.cache
def _scene_of(engine: Engine, cameras: tuple[str, ...], size: int, samples: int) -> Any:
    from jaxrl.envs.mjx.render import Scene

    return Scene.of(engine.model, cameras, size, samples)


def _drawn_by_warp(task: PhysicsTask, poses: Poses) -> jax.Array:
    """[K, h, w, 3] u8. Mapped over N environments, it is one call that draws them all."""

    def drawn(bodies: jax.Array, frames: jax.Array) -> jax.Array:
        view = task.view
        renderer = _warp_of(task.engine, view.cameras, len(bodies), view.size, view.samples)
        return renderer.render(bodies, frames)

    @jax.custom_batching.custom_vmap
    def draw(bodies: jax.Array, frames: jax.Array) -> jax.Array:
        return drawn(bodies[None], frames[None])[0]

    @draw.def_vmap
    def draw_all(_: int, batched: list[bool], bodies: jax.Array, frames: jax.Array) -> tuple[jax.Array, bool]:
        assert all(batched)  # both come of the same positions
        return drawn(bodies, frames), True

    return draw(poses.bodies, poses.frames)


@functools.cache
def _warp_of(engine: Engine, cameras: tuple[str, ...], num_envs: int, size: int, samples: int) -> Any:
    from jaxrl.envs.mjx.render.warp import Warp

    with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"):  # made while something is traced
        return Warp(engine.model, cameras, num_envs=num_envs, size=size, samples=samples)
