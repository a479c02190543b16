"""Physics tasks whose steps and pictures are JAX programs. MuJoCo is imported only where a task is made."""

from jaxrl.config import ConfigError, EnvConfig
from jaxrl.envs.base import DeviceEnv
from jaxrl.schema import nearest

__all__ = ["make_task", "names"]

NAMES = ("cartpole_balance", "cartpole_swingup", "cheetah_run", "reacher", "so101_lift", "so101_reach")


def names() -> tuple[str, ...]:
    """Tasks that `make_task` knows, without the prefix of their suite."""
    return NAMES


def make_task(name: str, env: EnvConfig) -> DeviceEnv:
    """A task by its name. Equal settings give equal tasks, which share their compiled steps.

    Args:
      name: one of `names()`.
      env: what is shown of it, and how it starts; what a batch of any task has (`num_envs`,
        `action_repeat`, `time_limit`, ...) is not the task's.

    Raises:
      ConfigError: unknown task or camera, or settings that do not go together.
    """
    if name not in NAMES:
        near = nearest(name, NAMES, "mjx_", f"there are {', '.join(NAMES)}")
        raise ConfigError(f"task=mjx_{name[:80]}: unknown task; {near}")
    if env.promote and env.stage in (0, 4):
        rule = f"0 with env.stage={env.stage}, which no stage comes after"
        raise ConfigError(f"env.promote={env.promote}: must be {rule}; for example env.stage=1")
    kind, settings = _kind(name, env)
    return kind(view=_view(name, kind, env), **settings)


def _kind(name: str, env: EnvConfig):
    """Class of a task and its settings."""
    if name.startswith("so101"):
        from jaxrl.envs.mjx.so101 import Hover, Lift

        if name == "so101_lift":
            return Lift, {name: getattr(env, name) for name in ("control", "stage", "promote", "bonus")}
        return Hover, {"control": env.control}
    if name == "cheetah_run":
        from jaxrl.envs.mjx.cheetah import Cheetah

        return Cheetah, {}
    if name == "reacher":
        from jaxrl.envs.mjx.reacher import Reacher

        return Reacher, {}
    from jaxrl.envs.mjx.cartpole import Cartpole

    return Cartpole, {"swingup": name == "cartpole_swingup"}


def _view(name: str, kind, env: EnvConfig):
    from jaxrl.envs.mjx.engine import load
    from jaxrl.envs.mjx.task import View

    model = load(kind.asset, kind.substeps).model
    known = [model.camera(i).name for i in range(model.ncam)]
    wanted = kind.cameras if env.cameras == "auto" else tuple(x.strip() for x in env.cameras.split(","))
    for camera in wanted:
        if camera not in known:
            near = nearest(camera, known, otherwise=f"it has {', '.join(known)}")
            raise ConfigError(f"env.cameras={camera[:80]}: mjx_{name} has no such camera; {near}")
    if len(set(wanted)) < len(wanted):
        raise ConfigError(f"env.cameras={env.cameras}: must name a camera once; for example {wanted[0]}")
    if env.renderer == "warp":
        if env.randomize:
            raise ConfigError(f"env.randomize={env.randomize}: must be 0 with env.renderer=warp")
        if env.observe == "pixels":
            from jaxrl.envs.mjx.render.warp import Warp

            Warp(model, wanted, num_envs=1, size=8)  # says at once what is missing
    return View(
        observe=env.observe,
        cameras=wanted,
        size=env.size,
        samples=env.samples,
        gray=env.gray,
        randomize=env.randomize,
        renderer=env.renderer,
    )
