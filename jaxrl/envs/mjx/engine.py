"""MuJoCo's physics in JAX: the one place that imports mujoco.mjx.

    engine = load("cartpole.xml", substeps=1)
    physics = engine.advance(physics, ctrl)      # one control step
    poses = engine.poses(physics.qpos)           # where everything is then

What an environment carries from step to step is `Physics`, a few dozen numbers; an mjx.Data, which has
thousands, is made anew inside each step from a constant template, and XLA removes what nobody reads.
Everything here is for one environment, without a batch axis.
"""

import contextlib
import functools
import importlib.resources
import io
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct

with contextlib.redirect_stdout(io.StringIO()):  # it prints which optional packages are missing
    from mujoco import mjx

__all__ = ["Engine", "Physics", "Poses", "load", "mjx"]


@struct.dataclass(kw_only=True)
class Physics:
    """State of a simulation without actuator dynamics, plugins and mocap bodies."""

    qpos: jax.Array  # [nq] f32, metres, radians and unit quaternions
    qvel: jax.Array  # [nv] f32, per second
    warmstart: jax.Array  # [nv] f32, accelerations that the constraint solver starts from


@struct.dataclass(kw_only=True)
class Poses:
    """Where things are in the world, metres."""

    bodies: jax.Array  # [nbody, 3] f32
    frames: jax.Array  # [nbody, 3, 3] f32, columns are a body's axes
    inertia: jax.Array  # [nbody, 3] f32, centres of mass
    geoms: jax.Array  # [ngeom, 3] f32
    sites: jax.Array  # [nsite, 3] f32
    anchors: jax.Array  # [njnt, 3] f32, of joints
    axes: jax.Array  # [njnt, 3] f32, of joints


class Engine:
    """One model. Use `load`, which keeps one per file.

    Args:
      model: of MuJoCo; `model` keeps it for names, host simulation and pictures.
      substeps: physics steps of a control step.
    """

    def __init__(self, model: mujoco.MjModel, substeps: int):
        self.model = model
        self.substeps = substeps
        # May be called while something is traced, or where implicit transfers are errors. Kept as numpy
        # arrays, which belong to no device and no trace.
        with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"):
            here = jax.local_devices()[0]  # MJX would take the first of all processes
            on_device = mjx.put_model(model, here, impl="jax")
            blank = mjx.make_data(on_device, here, impl="jax")
            self._constants, self._template = _numpy((on_device, blank))

    def at_rest(self, qpos: jax.Array, qvel: jax.Array | None = None) -> Physics:
        """A state with these positions [nq] and velocities [nv], which are 0 by default."""
        zeros = jnp.zeros(self.model.nv, jnp.float32)
        return Physics(qpos=qpos, qvel=zeros if qvel is None else qvel, warmstart=zeros)

    def advance(self, physics: Physics, ctrl: jax.Array) -> Physics:
        """One control step, `substeps` physics steps with the same ctrl [nu] f32."""

        def substep(physics: Physics, _: None) -> tuple[Physics, None]:
            constants, before = jax.tree.map(jnp.asarray, (self._constants, self._template))
            qpos, qvel, warmstart = physics.qpos, physics.qvel, physics.warmstart
            after = mjx.step(
                constants, before.replace(qpos=qpos, qvel=qvel, qacc_warmstart=warmstart, ctrl=ctrl)
            )
            physics = Physics(qpos=after.qpos, qvel=after.qvel, warmstart=after.qacc_warmstart)
            return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.float32), physics), None

        with jax.default_matmul_precision("highest"):  # tensor cores' short floats derail a simulation
            return jax.lax.scan(substep, physics, None, length=self.substeps)[0]

    def poses(self, qpos: jax.Array) -> Poses:
        """Forward kinematics of positions [nq]."""
        constants, blank = jax.tree.map(jnp.asarray, (self._constants, self._template))
        with jax.default_matmul_precision("highest"):
            found = mjx.kinematics(constants, blank.replace(qpos=qpos))
        return Poses(
            bodies=found.xpos,
            frames=found.xmat.reshape(-1, 3, 3),
            inertia=found.xipos,
            geoms=found.geom_xpos,
            sites=found.site_xpos,
            anchors=found.xanchor,
            axes=found.xaxis,
        )


@functools.cache
def load(asset: str, substeps: int) -> Engine:
    """The engine of a file in assets/."""
    return Engine(mujoco.MjModel.from_xml_string(read(asset)), substeps)


def read(asset: str) -> str:
    """Text of a file in assets/."""
    return (importlib.resources.files(__package__) / "assets" / asset).read_text(encoding="utf-8")


def _numpy(tree: Any) -> Any:
    """The tree with its arrays on the host; numpy arrays have no weak types, which would compile twice."""
    return jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, tree)
