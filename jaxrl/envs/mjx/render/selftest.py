"""Whether MuJoCo's own renderer draws here, and with which library."""

import mujoco

from jaxrl.envs.mjx.render.opengl import Renderer

BALL = """<mujoco><worldbody><light pos="0 0 3"/><geom size="1" rgba="1 0 0 1"/>
<camera name="eye" pos="0 -4 0" xyaxes="1 0 0 0 0 1"/></worldbody></mujoco>"""


def draw() -> str:
    """Draws a red ball: "egl", "osmesa" ... if it is there and red; "" if a driver only pretends to draw.

    Raises:
      ConfigError: there is no OpenGL library, or it does not start.
    """
    model = mujoco.MjModel.from_xml_string(BALL)
    scene = mujoco.MjData(model)
    mujoco.mj_forward(model, scene)
    with Renderer(model, 48, 48) as renderer:
        red, green, blue = renderer.render(scene, "eye")[24, 24].tolist()
        library = type(renderer._gl).__module__.rpartition(".")[2]
    return library if red > 2 * max(green, blue) else ""
