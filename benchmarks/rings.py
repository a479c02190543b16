"""The trainer's replay without environments: its parts on spaces alone, and a ring full of random rows."""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxrl import assembly, runtime
from jaxrl.config import Config
from jaxrl.types import ArraySpec, Continuous, Discrete, Spaces

if TYPE_CHECKING:
    from jaxrl.feeds.ring import Ring, Row
    from jaxrl.parts import Feed, Parts


@dataclasses.dataclass(frozen=True)
class Frames:
    """All that the parts of a run need of an environment."""

    spaces: Spaces


def assemble(config: Config, machine: runtime.Machine, spaces: Spaces) -> "Parts":
    """The parts of a run whose environments show and take these."""
    env: Any = Frames(spaces)
    return assembly.assemble(config, machine, env)


def pictures(config: Config, action: Discrete | Continuous) -> Spaces:
    """One image as the config's environments show it, and actions."""
    env = config.env
    shape = (env.size, env.size, env.stack * (1 if env.gray else 3))
    return Spaces(obs={"image": ArraySpec(shape, np.dtype(np.uint8))}, action=action)


def filled(replay: "Feed", place: Any) -> "Ring":
    """A ring of random frames, actions and rewards, in a few episodes, on a device; latents are zeros."""
    ring = jax.eval_shape(replay.init)
    count = np.full(replay.streams, replay.rows, np.int32)
    rows = random_rows(replay.spaces, ring.rows)
    return jax.device_put(ring.replace(rows=rows, cursor=count, taken=np.zeros_like(count)), place)


def random_rows(spaces: Spaces, shapes: "Row") -> "Row":
    """Rows of these shapes, in numpy."""
    draw = np.random.default_rng(0)
    flag = draw.random(shapes.reward.shape) < 0.01
    if isinstance(spaces.action, Discrete):
        action = draw.integers(0, spaces.action.n, shapes.action.shape, np.int32)
    else:
        action = draw.uniform(-1, 1, shapes.action.shape).astype(np.float32)

    def observed(shape: Any) -> np.ndarray:
        if shape.dtype == np.uint8:
            return draw.integers(0, 256, shape.shape, np.uint8)
        return draw.standard_normal(shape.shape, np.float32).astype(shape.dtype)

    return shapes.replace(
        obs={name: observed(x) for name, x in shapes.obs.items()},
        action=action,
        reward=draw.standard_normal(shapes.reward.shape, np.float32) / 10,
        is_first=flag,
        is_last=np.roll(flag, -1, axis=0),
        is_terminal=np.roll(flag, -1, axis=0),
        latents=jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes.latents),
    )
