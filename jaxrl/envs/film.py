"""Films of environment 0: little is taken at each row, pictures are drawn when the episode is over.

Nothing that the episode depends on is touched. A film is, of the first that is possible:

    physics       drawn anew by the ray caster, large, from any camera
    Atari         a second console with the same seed, which gets the same actions and shows its own colours
    other images  what the policy sees
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from jaxrl.config import ConfigError, EnvConfig
from jaxrl.envs.base import CheckedEnv
from jaxrl.types import ArraySpec, Step

Pictures = dict[str, np.ndarray]  # u8 [h, w, 3] each, of one row, by the name of what is seen
DMC_LIMITS = {  # seconds of an episode of 1000 control steps, by domain; dm_control's _DEFAULT_TIME_LIMIT
    **dict.fromkeys(("acrobot", "cartpole", "cheetah", "manipulator", "stacker"), 10),
    **{"dog": 15, "fish": 40, "humanoid": 25, "swimmer": 30, "walker": 25},
}
DMC_LIMIT = 20  # of the other domains
ATARI_HZ = 60


class Reel(Protocol):
    """Where pictures come from."""

    seconds: float | None  # between two rows; None: the task does not say
    remark: str  # how its pictures come about where one would not expect it, else ""

    def take(self, env: CheckedEnv, step: Step) -> Any:
        """What the picture of the newest row needs."""
        ...

    def acts(self, action: np.ndarray) -> None:
        """What all environments do next, [N, ...]."""
        ...

    def draw(self, shots: Sequence[Any]) -> Iterator[Pictures]:
        """The pictures of each row, from what was taken of it."""
        ...

    def close(self) -> None: ...


def reel_of(task: str, env: EnvConfig, seed: int, cameras: Sequence[str] = ()) -> Reel:
    """How environment 0 of `envs.make(task, env, seed=seed)` is filmed.

    Args:
      cameras: of a physics task, its own or virtual ones (top, front, side, iso); by default its own, and
        virtual ones up to four.

    Raises:
      ConfigError: unknown camera, cameras of a task that has none, or nothing can be shown of it.
    """
    suite, _, name = task.partition("_")
    if suite in ("mjx", "playground"):
        from jaxrl.envs.mjx.film import PhysicsReel, stage_of

        return PhysicsReel(stage_of(task, env), cameras, env.action_repeat)
    if cameras:
        raise ConfigError(f"cameras={','.join(cameras)[:80]}: {task} has none to choose; leave --cameras out")
    if suite == "atari":
        from jaxrl.envs.native import NativeReel

        return NativeReel(name, env, seed)
    if task == "toy_clock" or (suite == "dmc" and env.observe == "pixels"):
        limit = DMC_LIMITS.get(name.partition("_")[0], DMC_LIMIT) * env.action_repeat / 1000
        return Shown(gray=env.gray, seconds=limit if suite == "dmc" else None)
    why = "env.observe=state" if suite == "dmc" else "it is played on vectors"
    raise ConfigError(f"task={task}: has no pictures ({why}), so there is no video")


class Shown:
    """The images that the policy sees."""

    def __init__(self, *, gray: bool, seconds: float | None):
        self.seconds = seconds
        self.remark = "shown is what the policy sees, enlarged"
        self._channels = 1 if gray else 3

    def take(self, env: CheckedEnv, step: Step) -> dict[str, np.ndarray]:
        images = {key for key, spec in env.spaces.obs.items() if is_image(spec)}
        return {key: np.array(step.obs[key][0]) for key in sorted(images)}  # no views of all environments

    def acts(self, action: np.ndarray) -> None:
        del action

    def draw(self, shots: Sequence[dict[str, np.ndarray]]) -> Iterator[Pictures]:
        return ({key: coloured(x, self._channels) for key, x in shot.items()} for shot in shots)

    def close(self) -> None:
        pass


def is_image(spec: ArraySpec) -> bool:
    """Whether an observation is a picture."""
    return spec.is_image


def coloured(image: np.ndarray, channels: int) -> np.ndarray:
    """[h, w, 3] u8, the newest frame of [h, w, stack * channels] u8."""
    newest = image[..., -channels:]
    return np.ascontiguousarray(np.broadcast_to(newest, (*newest.shape[:2], 3)))


def first_of(tree: Any) -> Any:
    """Environment 0 of a pytree with leaves [N, ...], as numpy arrays."""
    return jax.tree.map(lambda x: np.asarray(x)[0], jax.device_get(tree))
