"""Start states of the SO-101 tasks, computed once on the host: a reset draws one of them.

Each comes from inverse kinematics and, so that nothing moves when an episode starts, from MuJoCo in C, which
plays what has to have happened before: a grasp, a lift, a pause.
"""

import functools
from typing import NamedTuple

import mujoco
import numpy as np

from jaxrl.envs.mjx import arm

COUNT = 256  # states of a stage
SPREAD = 0.02  # the cube stands up to this far from (0.25, 0), in x and y, metres
STAGES = (
    "from the arm's rest, cube on the table",
    "cube in the gripper, lifted",
    "cube in the gripper, on the table",
    "open gripper 3 cm above the cube",
    "open gripper 8 to 12 cm from the cube",
)
HELD = (1, 2)  # stages that begin with the cube in the gripper


class Starts(NamedTuple):
    qpos: np.ndarray  # [COUNT, 13] f32
    ctrl: np.ndarray  # [COUNT, 6] f32, what the servos hold


@functools.cache
def starts(stage: int) -> Starts:
    """Of one of STAGES; always the same ones."""
    draw = np.random.default_rng([101, stage])
    scene = Scene()
    found = []
    for _ in range(20 * COUNT):
        if len(found) == COUNT:
            break
        if (state := _try(scene, stage, draw)) is not None:
            found.append(state)
    qpos, ctrl = (np.array(x, np.float32) for x in zip(*found, strict=True))
    assert len(qpos) == COUNT, f"only {len(qpos)} start states of stage {stage}"
    return Starts(qpos, ctrl)


class Scene:
    """The arm and the cube in C MuJoCo."""

    def __init__(self):
        self.model = arm.engine().model
        self.state = mujoco.MjData(self.model)

    def place(self, angles: np.ndarray, cube: np.ndarray) -> None:
        """Puts the arm at angles [6] and the cube at [3], at rest."""
        mujoco.mj_resetData(self.model, self.state)
        self.state.qpos[: arm.JOINTS] = self.state.ctrl[:] = angles
        self.state.qpos[arm.JOINTS : arm.JOINTS + 3] = cube

    def solve(self, angles: np.ndarray, target: np.ndarray) -> np.ndarray | None:
        """Angles [6] near `angles` with the tool at target [3]; None if it cannot get within 1 mm.

        The roll keeps the fingers along the world's y axis.
        """
        angles, state, tool = angles.copy(), mujoco.MjData(self.model), arm.parts().tool
        for _ in range(40):
            state.qpos[: arm.JOINTS] = angles
            mujoco.mj_kinematics(self.model, state)
            miss = target - state.site_xpos[tool]
            if np.linalg.norm(miss) < 1e-3:
                return angles
            angles[:5] = arm.step_joints(
                np, state.xanchor, state.xaxis, state.site_xpos[tool], angles[:5], miss
            )
            angles[4] = angles[0]
        return None

    def go(self, angles: np.ndarray, seconds: float) -> None:
        """Moves what the servos hold to angles [6] in a straight line."""
        before, chunks = self.state.ctrl.copy(), max(1, round(seconds / 0.02))
        for i in range(chunks):
            self.state.ctrl[:] = before + (angles - before) * (i + 1) / chunks
            mujoco.mj_step(self.model, self.state, arm.SUBSTEPS)

    @property
    def cube(self) -> np.ndarray:
        return self.state.qpos[arm.JOINTS : arm.JOINTS + 3]


REST = np.array([0, -0.5, 0.5, np.pi / 2, 0, 0.6])


def _try(scene: Scene, stage: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """One start state, (qpos, ctrl); None if it did not come about."""
    cube = np.array([0.25, 0, arm.CUBE]) + np.append(draw.uniform(-SPREAD, SPREAD, 2), 0)
    opened = REST.copy()
    opened[5] = draw.uniform(0.5, 0.8)
    target = cube.copy()
    if stage == 0:
        target = np.array([0.19, 0, 0.15]) + draw.uniform(-0.02, 0.02, 3)
    elif stage == 3:
        target += np.append(draw.uniform(-0.005, 0.005, 2), 0.03)
    elif stage == 4:
        around, above = draw.uniform(-np.pi, np.pi), draw.uniform(np.pi / 6, np.pi / 2)
        away = np.array([np.cos(around) * np.cos(above), np.sin(around) * np.cos(above), np.sin(above)])
        target += draw.uniform(0.08, 0.12) * away
    angles = scene.solve(opened, target)
    if angles is None:
        return None
    scene.place(angles, cube)
    if stage in HELD:
        angles = _grasp(scene, angles, draw.uniform(0.075, 0.10) if stage == 1 else 0.0)
        if angles is None:
            return None
    scene.go(angles, 0.3)
    return scene.state.qpos.copy(), scene.state.ctrl.copy()


def _grasp(scene: Scene, angles: np.ndarray, height: float) -> np.ndarray | None:
    """Closes the gripper and lifts the cube to a height in metres; 0 leaves it on the table."""
    angles = angles.copy()
    angles[5] = arm.parts().low[5]
    scene.go(angles, 0.6)
    if height:
        raised = scene.solve(angles, np.append(scene.cube[:2], height))
        if raised is None:
            return None
        angles = raised
        scene.go(angles, 1.0)
    scene.go(angles, 0.4)
    wanted = height or arm.CUBE
    return angles if abs(scene.cube[2] - wanted) < 0.015 else None
