"""Names of the tasks of EnvPool's DeepMind Control Suite and of MuJoCo Playground, without importing them.

Both take seconds to import; their lists are literals in their source, which is read instead.
"""

import ast
import functools
import importlib.util
import pathlib
import re

PLAYGROUND = "mujoco_playground"  # installed by the package `playground`
PLAYGROUND_SUITES = ("dm_control_suite", "locomotion", "manipulation")
UNBOUNDED = ("lqr",)  # domains whose actions have no bounds that [-1, 1] could stand for


@functools.cache
def dmc_tasks() -> dict[str, str]:
    """{"walker_walk": EnvPool's "WalkerWalk-v1"}; {} if EnvPool does not have the suite."""
    listed = _literal("envpool", "mujoco/dmc/registration.py", "dmc_mujoco_envs")
    pairs = ast.literal_eval(listed) if listed else []
    return {
        f"{domain}_{task}".lower(): f"{_joined(domain)}{_joined(task)}-v1"
        for domain, task, *_ in pairs
        if domain not in UNBOUNDED
    }


@functools.cache
def playground_tasks() -> dict[str, str]:
    """{"cartpole_balance": Playground's "CartpoleBalance"}; {} if it is not installed."""
    found = []
    for suite in PLAYGROUND_SUITES:
        listed = _literal(PLAYGROUND, f"_src/{suite}/__init__.py", "_envs")
        keys = listed.keys if isinstance(listed, ast.Dict) else []
        found += [key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
    return {re.sub("(?<!^)(?=[A-Z])", "_", name).lower(): name for name in found}


def has_playground() -> bool:
    """Whether the optional package is installed."""
    return importlib.util.find_spec(PLAYGROUND) is not None


def _joined(words: str) -> str:
    """EnvPool's way: "ball_in_cup" -> "BallInCup", "humanoid_CMU" -> "HumanoidCMU"."""
    return "".join(word[:1].upper() + word[1:] for word in words.split("_"))


def _literal(package: str, path: str, name: str) -> ast.expr | None:
    """What is assigned to `name` in a file of an installed package."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        file = pathlib.Path(folder, path)
        if not file.is_file():
            continue
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return node.value
    return None
