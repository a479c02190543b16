"""Films of physics tasks: any camera, drawn by the ray caster from recorded positions.

Virtual cameras (top, front, side, iso) look at whatever moves: at the middle of the box that it fills during
the film or, if it leaves the place where it began, at where it is in each frame.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import mujoco
import numpy as np

from jaxrl.config import ConfigError, EnvConfig
from jaxrl.envs.base import CheckedEnv
from jaxrl.envs.film import Pictures, first_of
from jaxrl.envs.mjx.render import Look, Scene, render_batch
from jaxrl.envs.mjx.render.scene import Camera, Mount
from jaxrl.schema import nearest
from jaxrl.types import Step

VIRTUAL = {  # from what is looked at towards the camera, and what is up in the picture
    "top": ((0, 0, 1), (0, 1, 0)),
    "front": ((1, 0, 0.25), (0, 0, 1)),
    "side": ((0, -1, 0.25), (0, 0, 1)),
    "iso": ((1, -1, 0.8), (0, 0, 1)),
}
MOST = 4  # cameras of a film that names none
SIZE, SAMPLES = 240, 2  # pixels of a picture's edge, rays of a pixel along each edge
FOVY = 45.0  # of virtual cameras, degrees
ROOM = 1.05  # radius of what is in view over that of what is looked at
STAYS = 1.6  # radius of the box of a film over that of its frames, up to which cameras stand still
BLOCK = 16  # frames of one call


@dataclasses.dataclass(frozen=True)
class Stage:
    """A task as a film sees it."""

    model: mujoco.MjModel
    cameras: tuple[str, ...]  # of the policy
    seconds: float  # of a control step
    positions: Callable[[Any], Any]  # of the task's own state: what mj_kinematics needs, and a Look or None


def stage_of(task: str, env: EnvConfig) -> Stage:
    """The stage of an mjx or playground task. Raises ConfigError as `envs.make` does."""
    from jaxrl.envs import device_env

    made: Any = device_env(task, env)
    if task.startswith("mjx_"):
        model = made.engine.model
        seconds = model.opt.timestep * made.substeps
        return Stage(model, made.view.cameras, seconds, lambda x: ({"qpos": x.physics.qpos}, x.look))
    from jaxrl.envs.playground import _load

    theirs = _load(made.name).env

    def positions(state: Any) -> Any:
        found = state.theirs.data
        return {"qpos": found.qpos, "mocap_pos": found.mocap_pos, "mocap_quat": found.mocap_quat}, None

    return Stage(theirs.mj_model, made.cameras, float(theirs.dt), positions)


class PhysicsReel:
    """Films one environment from several cameras."""

    def __init__(self, stage: Stage, wanted: Sequence[str], action_repeat: int):
        self.seconds: float | None = stage.seconds * action_repeat
        self.remark = ""
        self._stage = stage
        self._names = chosen(stage, wanted)
        self._virtual = [k for k, name in enumerate(self._names) if name not in known(stage.model)]
        self._scene = scene_of(stage.model, self._names)

    def take(self, env: CheckedEnv, step: Step) -> Any:
        del step
        carry, _ = env.current
        return first_of(self._stage.positions(carry.state.data))

    def acts(self, action: np.ndarray) -> None:
        del action

    def draw(self, shots: Sequence[Any]) -> Iterator[Pictures]:
        xpos, xmat, boxes = kinematics(self._stage.model, [where for where, _ in shots])
        look = self._looks([look for _, look in shots], *aims(boxes))
        for pictures in drawn(self._scene, look, xpos, xmat):
            yield dict(zip(self._names, pictures, strict=True))

    def close(self) -> None:
        pass

    def _looks(self, recorded: list[Look | None], middles: np.ndarray, radius: float) -> Look:
        """Leaves [F, ...]: colours and lights as they were, cameras as the film has them."""
        default = jax.tree.map(np.asarray, self._scene.look())
        looks = jax.tree.map(lambda *x: np.stack(x), *[x or default for x in recorded])
        each = {
            key: np.repeat(getattr(default, key)[None], len(recorded), 0)
            for key in ("camera_position", "camera_rotation", "fovy")
        }
        for k in self._virtual:
            towards, up = (np.array(x, float) for x in VIRTUAL[self._names[k]])
            back = towards / np.linalg.norm(towards)
            right = np.cross(up, back)
            right /= np.linalg.norm(right)
            each["camera_position"][:, k] = middles + back * ROOM * radius / np.sin(np.deg2rad(FOVY / 2))
            each["camera_rotation"][:, k] = np.stack([right, np.cross(back, right), back], -1)
            each["fovy"][:, k] = FOVY
        return looks.replace(**each)


def known(model: mujoco.MjModel) -> list[str]:
    """The named cameras of a model."""
    return [name for i in range(model.ncam) if (name := model.camera(i).name)]


def chosen(stage: Stage, wanted: Sequence[str]) -> tuple[str, ...]:
    """The cameras of a film. Raises ConfigError for an unknown one."""
    own = known(stage.model)
    for name in wanted:
        if name not in own and name not in VIRTUAL:
            there = [*own, *(x for x in VIRTUAL if x not in own)]
            near = nearest(name, there, otherwise=f"there are {', '.join(there)}")
            raise ConfigError(f"cameras={name[:80]}: there is no such camera; {near}")
    if wanted:
        return tuple(dict.fromkeys(wanted))
    return tuple(dict.fromkeys([*stage.cameras, *own, "iso", "top", "side", "front"]))[:MOST]


def scene_of(model: mujoco.MjModel, names: tuple[str, ...]) -> Scene:
    """The scene with cameras of the model and virtual ones, in this order.

    Raises:
      ConfigError: the model has no camera, or something that the ray caster cannot draw.
    """
    own = known(model)
    if not own:
        raise ConfigError("there is no video of a model without a camera")
    scene = Scene.of(model, tuple(name if name in own else own[0] for name in names), SIZE, SAMPLES)
    free = Mount(int(mujoco.mjtCamLight.mjCAMLIGHT_FIXED), 0, -1, ())  # in the world
    cameras = [
        camera if name in own else Camera(name, free)
        for name, camera in zip(names, scene.cameras, strict=True)
    ]
    return dataclasses.replace(scene, cameras=tuple(cameras))


def kinematics(
    model: mujoco.MjModel, rows: Sequence[dict[str, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where everything is in each of F rows.

    Returns:
      Positions of the bodies [F, nbody, 3] f32 in m, their orientations [F, nbody, 3, 3] f32, and the box
      [F, 2, 3] f64 that the moving geoms fill.
    """
    simulation, rigid = mujoco.MjData(model), model.body_weldid[model.geom_bodyid] == 0
    solid = model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE
    seen = (moving if (moving := solid & ~rigid & (model.geom_group < 3)).any() else solid)[:, None]
    reach = model.geom_rbound[:, None]
    found = []
    for row in rows:
        for name, value in row.items():
            getattr(simulation, name)[:] = value
        mujoco.mj_kinematics(model, simulation)
        low = np.where(seen, simulation.geom_xpos - reach, np.inf).min(0)
        high = np.where(seen, simulation.geom_xpos + reach, -np.inf).max(0)
        xmat = simulation.xmat.reshape(-1, 3, 3).copy()
        found.append((simulation.xpos.copy(), xmat, np.stack([low, high])))
    xpos, xmat, boxes = (np.stack(x) for x in zip(*found, strict=True))
    return xpos.astype(np.float32), xmat.astype(np.float32), boxes


def aims(boxes: np.ndarray) -> tuple[np.ndarray, float]:
    """What virtual cameras look at: middles [F, 3] or [1, 3], and the radius in m of what is in view."""
    whole = np.stack([boxes[:, 0].min(0), boxes[:, 1].max(0)])[None]
    radii = [float(np.linalg.norm(x[:, 1] - x[:, 0], axis=-1).max() / 2) for x in (whole, boxes)]
    if radii[0] <= STAYS * radii[1]:
        return whole.mean(1), radii[0]
    return boxes.mean(1), radii[1]


def drawn(scene: Scene, look: Look, xpos: np.ndarray, xmat: np.ndarray) -> Iterator[np.ndarray]:
    """[K, h, w, 3] u8 of each of F rows; leaves of all arguments but the scene are [F, ...]."""
    short = -len(xpos) % BLOCK
    rows = jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], short, 0)]), (look, xpos, xmat))
    for i in range(0, len(xpos), BLOCK):
        block = jax.device_put(jax.tree.map(lambda x, i=i: x[i : i + BLOCK], rows))
        yield from jax.device_get(_block(scene, *block))[: len(xpos) - i]


@functools.partial(jax.jit, static_argnums=0)
def _block(scene: Scene, look: Look, xpos: jax.Array, xmat: jax.Array) -> jax.Array:
    return render_batch(scene, look, xpos, xmat, chunk=1, pick=lambda pictures: pictures.rgb)
