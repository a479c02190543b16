"""Colours of a MuJoCo model: materials, checkered textures, the skybox and the headlight.

The compiled model no longer says which builtin pattern made a texture, so its pixels are looked at. Of a
two-dimensional texture that is not a checker, and of one around a solid shape, only the mean colour is drawn.
"""

from typing import NamedTuple

import mujoco
import numpy as np

DEFAULT = (0.5, 0.5, 0.5, 1.0)  # rgba of a geom that names none: its material's counts then
SPECULAR, SHININESS = 0.5, 0.5  # of a geom without material, as in MuJoCo


class Material(NamedTuple):
    """How a shape answers to light."""

    rgba: tuple[float, float, float, float]
    checker: tuple[tuple[float, ...], ...]  # two colours, multiplied with rgba; () where there is none
    squares: tuple[float, float]  # per metre along x and y
    emission: float  # share of rgba that shines by itself
    specular: float
    shininess: float


def material(model: mujoco.MjModel, what: str, i: int) -> Material:
    """Of geom or site i, as mjv_updateScene would have it."""
    own = tuple(float(x) for x in getattr(model, f"{what}_rgba")[i])
    number = int(getattr(model, f"{what}_matid")[i])
    if number < 0:
        return Material(own, (), (0.0, 0.0), 0.0, SPECULAR, SHININESS)
    rgba = tuple(float(x) for x in model.mat_rgba[number]) if np.allclose(own, DEFAULT) else own
    colours, squares = np.ones((1, 3)), (0.0, 0.0)
    texture = int(model.mat_texid[number][mujoco.mjtTextureRole.mjTEXROLE_RGB])
    if texture >= 0:
        is_plane = what == "geom" and model.geom_type[i] == mujoco.mjtGeom.mjGEOM_PLANE
        colours = _pattern(pixels(model, texture), is_plane)
        if len(colours) == 2:
            squares = _squares(model, number, model.geom_size[i])
    if len(colours) == 1:
        rgba = (*(float(x) for x in colours[0] * rgba[:3]), rgba[3])
    return Material(
        rgba=rgba,
        checker=tuple(tuple(float(x) for x in colour) for colour in colours) if len(colours) == 2 else (),
        squares=squares,
        emission=float(model.mat_emission[number]),
        specular=float(model.mat_specular[number]),
        shininess=float(model.mat_shininess[number]),
    )


def pixels(model: mujoco.MjModel, texture: int) -> np.ndarray:
    """[h, w, 3] f32 in [0, 1]."""
    h, w, c = (int(getattr(model, f"tex_{key}")[texture]) for key in ("height", "width", "nchannel"))
    start = int(model.tex_adr[texture])
    image = model.tex_data[start : start + h * w * c].reshape(h, w, c).astype(np.float32) / 255
    return np.broadcast_to(image[..., :3], (h, w, 3)) if c in (1, 3, 4) else image[..., :1].repeat(3, -1)


def skybox(model: mujoco.MjModel) -> np.ndarray | None:
    """[2, 3] colours above and below, of a skybox that has a gradient or one colour; None without skybox."""
    found = np.flatnonzero(model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX)
    if not found.size:
        return None
    image = pixels(model, int(found[0]))
    size = image.shape[1]
    faces = image.reshape(-1, size, size, 3)
    middle = faces[:, size // 2, size // 2]
    return middle[2:4] if len(faces) == 6 else middle[[0, 0]]


def headlight(model: mujoco.MjModel) -> np.ndarray:
    """[3, 3] ambient, diffuse and specular colour; zeros if it is off."""
    lamp = model.vis.headlight
    return np.stack([lamp.ambient, lamp.diffuse, lamp.specular]) * bool(lamp.active)


def _pattern(image: np.ndarray, is_plane: bool) -> np.ndarray:
    """[2, 3] colours of a checker, else [1, 3] the mean."""
    h, w = image.shape[:2]
    corners = image[h // 4 :: h // 2, w // 4 :: w // 2][:2, :2]  # the middle of each quarter
    crossed = np.allclose(corners[0, 0], corners[1, 1]) and np.allclose(corners[0, 1], corners[1, 0])
    if is_plane and crossed and not np.allclose(corners[0, 0], corners[0, 1]):
        return np.stack([corners[0, 0], corners[0, 1]])
    return image.mean((0, 1))[None]


def _squares(model: mujoco.MjModel, number: int, size: np.ndarray) -> tuple[float, float]:
    """Squares per metre of a plane. A uniform texture repeats every 2 / texrepeat m, two squares each."""
    repeat, uniform = model.mat_texrepeat[number], model.mat_texuniform[number]
    x, y = (float(r) if uniform or s <= 0 else float(r / s) for r, s in zip(repeat, size[:2], strict=True))
    return x, y
