"""MuJoCo's own renderer, on the host: for videos, and as what the ray caster is held against.

    with Renderer(model, 480, 640) as renderer:
        frame = renderer.render(mj_data, "front")

Draws whatever MuJoCo draws, meshes and shadows included. Needs an OpenGL library: the one that MUJOCO_GL
named when mujoco was imported, else EGL, which needs no display, or OSMesa. Always close a renderer: OSMesa
complains at exit about one that was left open.
"""

import importlib
from typing import Any

import mujoco
import numpy as np

from jaxrl.config import ConfigError
from jaxrl.envs.mjx.render.scene import camera_id

BACKENDS = ("egl", "osmesa", "glfw", "cgl")
REMEDY = (
    "no OpenGL library could be loaded ({reason}); install one (apt install libegl1 libgl1-mesa-dri) and set "
    "MUJOCO_GL=egl, or draw with env.renderer=raycast"
)
# What a driver, PyOpenGL or mujoco raise where a library or a display is missing.
FAILURES = (ImportError, AttributeError, OSError, RuntimeError, TypeError)


class Renderer:
    """Pictures of one model at one resolution; holds an OpenGL context until `close`.

    Raises:
      ConfigError: no OpenGL library can be loaded here.
    """

    def __init__(self, model: mujoco.MjModel, height: int, width: int, *, shadows: bool = True):
        self._model = model
        self._context = None
        self._gl = _open(width, height)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150.value)
        mujoco.mjr_resizeOffscreen(width, height, self._context)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._scene = mujoco.MjvScene(model, maxgeom=2_000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = shadows
        self._option = mujoco.MjvOption()
        self._rect = mujoco.MjrRect(0, 0, width, height)

    def render(self, mj_data: mujoco.MjData, camera: str | mujoco.MjvCamera) -> np.ndarray:
        """[height, width, 3] u8. `camera` is a name of the model, or a virtual camera."""
        return self._draw(mj_data, camera, as_ids=False)[0]

    def depth(self, mj_data: mujoco.MjData, camera: str | mujoco.MjvCamera) -> np.ndarray:
        """[height, width] f32, metres along the view axis; the far limit where nothing is."""
        stored = self._draw(mj_data, camera, as_ids=True)[1].astype(np.float64)
        extent = self._model.stat.extent
        near, far = self._model.vis.map.znear * extent, self._model.vis.map.zfar * extent
        return (near * far / (near + stored * (far - near))).astype(np.float32)  # 0 is far, 1 near

    def segmentation(self, mj_data: mujoco.MjData, camera: str | mujoco.MjvCamera) -> np.ndarray:
        """[height, width] i32: id of the geom that is seen, -1 for none or for what is not a geom."""
        codes = self._draw(mj_data, camera, as_ids=True)[0].astype(np.int32) @ np.array([1, 256, 65_536])
        ids = np.full(self._scene.ngeom + 1, -1, np.int32)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM and geom.segid >= 0:
                ids[geom.segid + 1] = geom.objid
        return ids[codes]

    def close(self) -> None:
        """Frees the context. A second call does nothing."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._context = None

    def __enter__(self) -> "Renderer":
        return self

    def __exit__(self, *ended: object) -> None:
        self.close()

    def _draw(self, mj_data: mujoco.MjData, camera: Any, *, as_ids: bool) -> tuple[np.ndarray, np.ndarray]:
        if self._context is None:
            raise RuntimeError("this renderer was closed")
        flags = self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = as_ids
        view = named_camera(self._model, camera) if isinstance(camera, str) else camera
        mujoco.mjv_updateScene(
            self._model, mj_data, self._option, None, view, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )
        shape = self._rect.height, self._rect.width
        picture, stored = np.empty((*shape, 3), np.uint8), np.empty(shape, np.float32)
        self._gl.make_current()
        mujoco.mjr_render(self._rect, self._scene, self._context)
        mujoco.mjr_readPixels(picture, stored, self._rect, self._context)
        return picture[::-1], stored[::-1]


def render(
    mj_model: mujoco.MjModel, mj_data: mujoco.MjData, camera: str, height: int, width: int
) -> np.ndarray:
    """[height, width, 3] u8: one picture, with a renderer of its own. Keep a `Renderer` for more."""
    with Renderer(mj_model, height, width) as renderer:
        return renderer.render(mj_data, camera)


def named_camera(model: mujoco.MjModel, name: str) -> mujoco.MjvCamera:
    """A camera of the model. Raises ConfigError with near matches."""
    camera = mujoco.MjvCamera()
    camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera_id(model, name)
    return camera


def _open(width: int, height: int) -> Any:
    """An OpenGL context, of the first library that works."""
    chosen = getattr(getattr(mujoco, "GLContext", None), "__module__", "").rpartition(".")[2]
    given = [chosen] if chosen in ("egl", "osmesa", "cgl") else []  # glfw is what mujoco takes if not told
    reasons = []
    for name in given or BACKENDS:
        try:
            return importlib.import_module(f"mujoco.{name}").GLContext(width, height)
        except FAILURES as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            reasons.append(f"{name}: {said[0]}")
    raise ConfigError("renderer=opengl: " + REMEDY.format(reason=reasons[0]))
