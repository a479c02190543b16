"""What a ray caster needs to know of a MuJoCo model: `Scene` is fixed while compiling, `Look` is an argument.

    scene = Scene.of(model, ("front", "wrist"), size=84)
    look = scene.look()                              # as in the model; an array each, to be changed at will
    pictures = render(scene, look, xpos, xmat)

Drawn are the geoms and sites of groups 0 to 2, as MuJoCo does by default; not drawn are tendons, shadows and
reflections. What cannot be drawn (meshes, height fields, half transparent shapes) is refused here.
"""

import dataclasses
import difflib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct

from jaxrl.config import ConfigError
from jaxrl.envs.mjx.render import shapes, surface

GROUPS = 3  # geoms and sites of groups below this one are visible
MOST_SHAPES = 255  # the cost is linear in them, and a pixel keeps its shape's number in 8 bits
Numbers = tuple  # nested tuples of floats: hashable, as a static argument must be


class Mount(NamedTuple):
    """How a camera or light is carried, as mujoco.mjtCamLight says."""

    mode: int
    body: int
    target: int  # body that it looks at; -1 if none
    weights: Numbers  # (body, share of mass, x, y, z of its centre) each


class Shape(NamedTuple):
    """One visible geom or site."""

    kind: int  # of shapes.py
    name: str
    geom: int  # its id; -1 for a site
    body: int
    size: Numbers  # [3] m
    position: Numbers  # [3] m, in the body's frame
    rotation: Numbers  # [3][3], to the body's frame
    material: surface.Material


class Camera(NamedTuple):
    name: str
    mount: Mount


class Light(NamedTuple):
    mount: Mount
    is_directional: bool
    cutoff: float  # degrees; 180 for a lamp that shines everywhere
    exponent: float
    attenuation: tuple[float, float, float]


@struct.dataclass(kw_only=True)
class Look:
    """What a picture looks like, for G shapes, C checkered ones among them, K cameras and L lights. All f32.

    Change any of it without a new compilation, for each environment apart if there is a batch axis.
    """

    rgba: jax.Array  # [G, 4] in [0, 1]; a shape with alpha below 0.5 is not drawn
    size: jax.Array  # [G, 3] m, as MuJoCo's geom sizes
    checker: jax.Array  # [C, 2, 3] in [0, 1], multiplied with rgba
    camera_position: jax.Array  # [K, 3] m, where the camera is carried
    camera_rotation: jax.Array  # [K, 3, 3], columns: right, up, backwards
    fovy: jax.Array  # [K] degrees, of the whole height
    light_position: jax.Array  # [L, 3] m
    light_direction: jax.Array  # [L, 3] unit vectors
    light: jax.Array  # [L, 3, 3] ambient, diffuse and specular colours
    headlight: jax.Array  # [3, 3] the same, of the lamp at the camera
    sky: jax.Array  # [2, 3] colours above and below; black where the model has no skybox


@dataclasses.dataclass(frozen=True)
class Scene:
    """The part of a picture that a compiled program depends on. Hashable, equal if all of it is equal."""

    shapes: tuple[Shape, ...]
    cameras: tuple[Camera, ...]
    lights: tuple[Light, ...]
    size: int  # pixels of an edge
    samples: int  # rays per pixel are samples x samples
    near: float  # m along the view axis: what is nearer or farther is not drawn
    far: float
    has_sky: bool
    defaults: tuple[tuple[str, Numbers], ...]  # of Look

    @classmethod
    def of(cls, model: mujoco.MjModel, cameras: tuple[str, ...], size: int, samples: int = 1) -> "Scene":
        """The scene of a model.

        Args:
          model: compiled; read once, later changes do not count.
          cameras: names, in the order of the pictures.
          size: pixels of a picture's edge.
          samples: rays along each edge of a pixel.

        Raises:
          ConfigError: unknown camera, or something visible that cannot be drawn.
        """
        if size < 1 or samples < 1 or not cameras:
            raise ConfigError(
                f"render: size={size}, samples={samples}, cameras={cameras}: at least 1 of each"
            )
        drawn = visible_shapes(model)
        if len(drawn) > MOST_SHAPES:
            raise ConfigError(
                f"render: {len(drawn)} visible geoms, must be at most {MOST_SHAPES}; put some into group 3"
            )
        ids = [camera_id(model, name) for name in cameras]
        for camera, name in zip(ids, cameras, strict=True):
            _check_lens(model, camera, name)
        lamps = [i for i in range(model.nlight) if model.light_active[i] and _is_lamp(model, i)]
        bodies = {i: Camera(name, _mount(model, "cam", i)) for i, name in zip(ids, cameras, strict=True)}
        look = _look(model, drawn, ids, lamps)
        return cls(
            shapes=drawn,
            cameras=tuple(bodies[i] for i in ids),
            lights=tuple(_light(model, i) for i in lamps),
            size=size,
            samples=samples,
            near=float(model.vis.map.znear * model.stat.extent),
            far=float(model.vis.map.zfar * model.stat.extent),
            has_sky=surface.skybox(model) is not None,
            defaults=tuple((name, _numbers(x)) for name, x in look.items()),
        )

    def look(self) -> Look:
        """As in the model."""
        values = {name: np.array(x, np.float32) for name, x in self.defaults}
        for name, tail in (("rgba", 4), ("size", 3), ("light_position", 3), ("light_direction", 3)):
            values[name] = values[name].reshape(-1, tail)  # a list without elements has lost its shape
        for name, rows in (("checker", 2), ("light", 3)):
            values[name] = values[name].reshape(-1, rows, 3)
        return Look(**{name: jnp.asarray(x) for name, x in values.items()})

    @property
    def is_shiny(self) -> bool:
        """Some light is mirrored by some shape."""
        lights = dict(self.defaults)
        glints = [lights["headlight"][2], *(light[2] for light in lights["light"])]
        return any(s.material.specular for s in self.shapes) and any(any(glint) for glint in glints)


def visible_shapes(model: mujoco.MjModel) -> tuple[Shape, ...]:
    """What is drawn, planes first. Raises ConfigError at what cannot be drawn."""
    found = []
    for what, count, objtype in (
        ("geom", model.ngeom, mujoco.mjtObj.mjOBJ_GEOM),
        ("site", model.nsite, mujoco.mjtObj.mjOBJ_SITE),
    ):
        keys = ("type", "group", "bodyid", "size", "pos", "quat")
        table = {key: getattr(model, f"{what}_{key}") for key in keys}
        for i in range(count):
            material = surface.material(model, what, i)
            if table["group"][i] >= GROUPS or material.rgba[3] == 0:
                continue
            name = mujoco.mj_id2name(model, objtype, i) or f"{what} {i}"
            kind = int(table["type"][i])
            _check_drawable(what, name, kind, material.rgba[3])
            found.append(
                Shape(
                    kind=kind,
                    name=name,
                    geom=i if what == "geom" else -1,
                    body=int(table["bodyid"][i]),
                    size=_numbers(table["size"][i]),
                    position=_numbers(table["pos"][i]),
                    rotation=_numbers(matrix(table["quat"][i])),
                    material=material,
                )
            )
    for what, count in (("flex", model.nflex), ("skin", model.nskin)):
        if count:
            raise ConfigError(
                f"render: the ray caster cannot draw the model's {what}; use primitives or env.renderer=warp"
            )
    return tuple(sorted(found, key=lambda shape: shape.kind != shapes.PLANE))


def camera_id(model: mujoco.MjModel, name: str) -> int:
    """Raises ConfigError with near matches if the model has no such camera."""
    found = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
    if found < 0:
        names = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_CAMERA, i) or "" for i in range(model.ncam)]
        near = difflib.get_close_matches(name, names, 3, 0.5)
        remedy = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(names) or 'none'}"
        raise ConfigError(f"camera={name[:80]!r}: the model has no such camera; {remedy}")
    return found


def matrix(quaternion: np.ndarray) -> np.ndarray:
    """[3, 3] f64 rotation of a unit quaternion (w, x, y, z)."""
    flat = np.zeros(9)
    mujoco.mju_quat2Mat(flat, np.asarray(quaternion, np.float64))
    return flat.reshape(3, 3)


def _check_drawable(what: str, name: str, kind: int, alpha: float) -> None:
    label = f"render: {what} {name!r}"
    if kind not in shapes.NAMES:
        word = mujoco.mjtGeom(kind).name.removeprefix("mjGEOM_").lower()
        raise ConfigError(
            f"{label} is a {word}, which the ray caster cannot draw; use primitives, put it into group 3, or "
            "set env.renderer=warp"
        )
    if alpha < 1:
        raise ConfigError(
            f"{label} has alpha {alpha:g}, but the ray caster draws nothing half transparent; set alpha 1, "
            "or 0 to hide it, or env.renderer=warp"
        )


def _check_lens(model: mujoco.MjModel, camera: int, name: str) -> None:
    if model.cam_projection[camera] != mujoco.mjtProjection.mjPROJ_PERSPECTIVE:
        raise ConfigError(f"camera={name!r}: is orthographic, must be a perspective camera with a fovy")
    if model.cam_sensorsize[camera].any():
        raise ConfigError(f"camera={name!r}: has a sensor size, must have a fovy alone; remove sensorsize")


def _is_lamp(model: mujoco.MjModel, light: int) -> bool:
    return model.light_type[light] != mujoco.mjtLightType.mjLIGHT_IMAGE


def _light(model: mujoco.MjModel, light: int) -> Light:
    kind = model.light_type[light]
    is_spot = kind == mujoco.mjtLightType.mjLIGHT_SPOT
    return Light(
        mount=_mount(model, "light", light),
        is_directional=bool(kind == mujoco.mjtLightType.mjLIGHT_DIRECTIONAL),
        cutoff=float(model.light_cutoff[light]) if is_spot else 180.0,
        exponent=float(model.light_exponent[light]) if is_spot else 0.0,
        attenuation=tuple(float(x) for x in model.light_attenuation[light]),
    )


def _mount(model: mujoco.MjModel, what: str, i: int) -> Mount:
    mode, body, target = (
        int(getattr(model, f"{what}_{key}")[i]) for key in ("mode", "bodyid", "targetbodyid")
    )
    modes = mujoco.mjtCamLight
    if mode == modes.mjCAMLIGHT_TRACKCOM:
        return Mount(mode, body, -1, _centre(model, body))
    if mode == modes.mjCAMLIGHT_TARGETBODYCOM:
        return Mount(mode, body, target, _centre(model, target))
    return Mount(mode, body, target if mode == modes.mjCAMLIGHT_TARGETBODY else -1, ())


def _centre(model: mujoco.MjModel, root: int) -> Numbers:
    """Centre of mass of a body and all that hangs on it, as a weighted sum over bodies."""
    inside = {root}
    for body in range(root + 1, model.nbody):
        if model.body_parentid[body] in inside:
            inside.add(body)
    total = model.body_mass[sorted(inside)].sum()
    return tuple(
        (body, float(model.body_mass[body] / total), *(float(x) for x in model.body_ipos[body]))
        for body in sorted(inside)
        if model.body_mass[body]
    )


def _local(model: mujoco.MjModel, what: str, i: int) -> np.ndarray:
    """[3] position of a camera or light where it is carried."""
    modes, mode = mujoco.mjtCamLight, getattr(model, f"{what}_mode")[i]
    suffix = {modes.mjCAMLIGHT_TRACK: "pos0", modes.mjCAMLIGHT_TRACKCOM: "poscom0"}.get(modes(mode), "pos")
    return getattr(model, f"{what}_{suffix}")[i]


def _look(
    model: mujoco.MjModel, drawn: tuple[Shape, ...], cameras: list[int], lights: list[int]
) -> dict[str, np.ndarray]:
    """Name -> array, of Look."""
    tracking = (mujoco.mjtCamLight.mjCAMLIGHT_TRACK, mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM)
    turned = [
        model.cam_mat0[i].reshape(3, 3) if model.cam_mode[i] in tracking else matrix(model.cam_quat[i])
        for i in cameras
    ]
    head = surface.headlight(model)
    parts = ("ambient", "diffuse", "specular")
    shine = [np.stack([getattr(model, f"light_{part}")[i] for part in parts]) for i in lights]
    aims = [model.light_dir0[i] if model.light_mode[i] in tracking else model.light_dir[i] for i in lights]
    sky = surface.skybox(model)
    return {
        "rgba": np.array([s.material.rgba for s in drawn]).reshape(-1, 4),
        "size": np.array([s.size for s in drawn]).reshape(-1, 3),
        "checker": np.array([s.material.checker for s in drawn if s.material.checker]).reshape(-1, 2, 3),
        "camera_position": np.array([_local(model, "cam", i) for i in cameras]).reshape(-1, 3),
        "camera_rotation": np.array(turned).reshape(-1, 3, 3),
        "fovy": np.array([model.cam_fovy[i] for i in cameras]),
        "light_position": np.array([_local(model, "light", i) for i in lights]).reshape(-1, 3),
        "light_direction": np.array(aims).reshape(-1, 3),
        "light": np.array(shine).reshape(-1, 3, 3),
        "headlight": head,
        "sky": np.zeros((2, 3)) if sky is None else sky,
    }


def _numbers(x: np.ndarray) -> Numbers:
    """A nested tuple of floats."""
    return tuple(_numbers(row) for row in x) if x.ndim > 1 else tuple(float(v) for v in x)
