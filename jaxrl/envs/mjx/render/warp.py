"""MuJoCo Warp's renderer through MJX: meshes, height fields and textures, on NVIDIA's GPUs.

    warp = Warp(model, ("front", "wrist"), num_envs=1024, size=84)
    rgb = warp.render(xpos, xmat)                     # inside jit; [1024, 2, 84, 84, 3] u8

An optional extra. The number of environments is fixed when it is made, so that training and evaluation need
one each, and a call must not be mapped over once more. Runs on a CPU too, for tests. It owns buffers that
its pictures are drawn into: keep it until they have arrived. Highlights are not quite those of OpenGL.
"""

import contextlib
import importlib
import io
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from jaxrl.config import ConfigError
from jaxrl.envs.mjx.render.place import product, times, unit
from jaxrl.envs.mjx.render.scene import GROUPS, camera_id, matrix


class Warp:
    """Pictures of `num_envs` states at once.

    Raises:
      ConfigError: warp-lang is missing, or an unknown camera.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        cameras: tuple[str, ...],
        *,
        num_envs: int,
        size: int,
        samples: int = 1,
    ):
        self._mjx = _import()
        ids = [camera_id(model, name) for name in cameras]
        _check_fixed(model, cameras, ids)
        active = sorted(set(ids))
        self._places = [active.index(i) for i in ids]
        self._host = model
        self.num_envs = num_envs
        here = jax.local_devices()[0]
        self._model = self._mjx.put_model(model, here, impl="warp")
        self._blank = self._mjx.make_data(model, here, impl="warp")
        self._context = self._mjx.create_render_context(
            mjm=model,
            nworld=num_envs,
            cam_res=(size, size),
            render_rgb=True,
            render_depth=False,
            cam_active=active,
            enabled_geom_groups=list(range(GROUPS)),
            render_skybox=bool((model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX).any()),
            samples_per_pixel=samples,
        )

    def render(self, xpos: jax.Array, xmat: jax.Array) -> jax.Array:
        """[N, K, h, w, 3] u8, cameras in the order given.

        Args:
          xpos, xmat: [N, nbody, 3] and [N, nbody, 3, 3] f32, frames of the bodies in the world.
        """
        if len(xpos) != self.num_envs:
            raise ValueError(f"xpos is of {len(xpos)} environments, this renderer of {self.num_envs}")
        mjx, handle = self._mjx, self._context.pytree()

        def draw(xpos: jax.Array, xmat: jax.Array) -> jax.Array:
            posed = mjx.refit_bvh(self._model, self._posed(xpos, xmat), handle)
            return mjx.render(self._model, posed, handle)[0]

        packed = jax.vmap(draw)(xpos, xmat)
        pictures = jnp.stack([mjx.get_rgb(handle, place, packed) for place in self._places], 1)
        return (pictures * 255 + 0.5).astype(jnp.uint8)

    def _posed(self, xpos: jax.Array, xmat: jax.Array) -> Any:
        """mjx.Data that has what the renderer reads: where geoms, cameras and lights are."""
        model = self._host
        places = {
            what: _placed(
                xpos,
                xmat,
                getattr(model, f"{what}_bodyid"),
                getattr(model, f"{what}_pos"),
                getattr(model, f"{what}_quat"),
            )
            for what in ("geom", "cam")
        }
        body = model.light_bodyid
        lamps = xpos[body] + times(xmat[body], jnp.asarray(model.light_pos, jnp.float32))
        beams = unit(times(xmat[body], jnp.asarray(model.light_dir, jnp.float32)))
        return self._blank.tree_replace(
            {
                "geom_xpos": places["geom"][0],
                "geom_xmat": places["geom"][1],
                "cam_xpos": places["cam"][0],
                "cam_xmat": places["cam"][1],
                "_impl.light_xpos": lamps,
                "_impl.light_xdir": beams,
            }
        )


def _placed(
    xpos: jax.Array, xmat: jax.Array, bodies: np.ndarray, positions: np.ndarray, quaternions: np.ndarray
) -> tuple[jax.Array, jax.Array]:
    """([n, 3], [n, 3, 3]) in the world, of things that bodies carry."""
    turned = np.array([matrix(q) for q in quaternions], np.float32).reshape(-1, 3, 3)
    at = xpos[bodies] + times(xmat[bodies], jnp.asarray(positions, jnp.float32))
    return at, product(xmat[bodies], jnp.asarray(turned))


def _check_fixed(model: mujoco.MjModel, cameras: tuple[str, ...], ids: list[int]) -> None:
    for name, i in zip(cameras, ids, strict=True):
        if model.cam_mode[i] != mujoco.mjtCamLight.mjCAMLIGHT_FIXED:
            raise ConfigError(
                f"camera={name!r}: follows a body without being carried by it, which env.renderer=warp does "
                "not draw; use mode=fixed, or env.renderer=raycast"
            )


def _import() -> Any:
    """mujoco.mjx, if warp is there for it."""
    try:
        package = importlib.import_module("warp")
    except ImportError as error:
        raise ConfigError(
            "env.renderer=warp: the package warp-lang is missing; pip install 'jaxrl[warp]', or use "
            "env.renderer=raycast"
        ) from error
    package.config.log_level = package.LOG_WARNING  # else it tells stdout what it finds and compiles
    with contextlib.redirect_stdout(io.StringIO()):  # it prints which optional packages are missing
        return importlib.import_module("mujoco.mjx")
