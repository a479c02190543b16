"""Environments: EnvPool and its ROMs, pictures of the DeepMind Control Suite, MuJoCo's OpenGL."""

from collections.abc import Iterator

from jaxrl import runtime
from jaxrl.checks.child import Answer, ask
from jaxrl.checks.finding import FAULT, OK, WARN, Finding, Wish, halves, plural
from jaxrl.config import ConfigError
from jaxrl.rundir import read_config

LIBRARIES = ("egl", "osmesa", "glfw")
GL_LIMIT_S = 30.0
INSTALL_GL = "apt-get install -y libegl1 libgl1-mesa-dri"  # NVIDIA's driver has its own
AGAIN = "pip install --force-reinstall --no-deps"
MOST_NAMES = 5  # of ROMs that are missing


def envpool(wish: Wish) -> Iterator[Finding]:
    """EnvPool in a process that it may end; what the task of a run is to it."""
    task = task_of(wish)
    answer = ask("envpool", task, JAX_PLATFORMS="cpu", MUJOCO_GL=None)
    if error := answer.error("step"):
        found = f"atari_ tasks do not work: {halves(error, '')[0]}"
        yield Finding(FAULT, "envpool", found, f"{AGAIN} envpool envpool-assets")
    else:
        facts = answer.stages["step"]
        size = "x".join(map(str, facts["shape"]))
        yield Finding(OK, "envpool", f"{facts['version']}: played a step of {facts['game']}, saw {size}")
    if not answer.error("games"):
        yield roms(answer)
    if "step" in answer.stages:  # else the process has ended there
        yield control_suite(answer)
    if task and "task" in answer.stages:
        yield registered(task, answer)


def roms(answer: Answer) -> Finding:
    """Which Atari games can be played."""
    facts = answer.stages["games"]
    if missing := facts["missing"]:
        names = ", ".join(f"{x}.bin" for x in missing[:MOST_NAMES]) + ", ..." * (len(missing) > MOST_NAMES)
        what = f"{len(missing)} of the 26 ROMs of Atari-100k are missing: {names}"
        return Finding(FAULT, "roms", what, f"{AGAIN} envpool-assets")
    return Finding(OK, "roms", f"{plural(facts['count'], 'Atari game')}, all 26 of Atari-100k among them")


def control_suite(answer: Answer) -> Finding:
    """EnvPool's own pictures of physics."""
    error = answer.error("picture") or ("" if answer.stages["picture"]["seen"] else "the picture is empty")
    if not error:
        return Finding(OK, "dmc pixels", "EnvPool draws DeepMind Control tasks")
    what, remedy = halves(error, f"{INSTALL_GL}, or use --env.observe=state")
    return Finding(WARN, "dmc pixels", f"dmc_ tasks cannot be drawn, all else works: {what}", remedy)


def registered(task: str, answer: Answer) -> Finding:
    """Whether the task of a run is still there."""
    facts = answer.stages["task"]
    if "error" in facts:
        return Finding(FAULT, "run: task", *halves(facts["error"], "install what it came from"))
    return Finding(OK, "run: task", f"{task} is one of the {facts['count']:,} tasks here")


def opengl(wish: Wish) -> Iterator[Finding]:
    """MuJoCo's own renderer. Nothing of ours depends on it: the ray caster draws tasks and videos."""
    given = runtime.variable("MUJOCO_GL") or ""
    if fault := runtime.gl_fault():
        remedy = "export MUJOCO_GL=egl (or osmesa, glfw), or unset MUJOCO_GL"
        yield Finding(FAULT, "opengl", f"{fault}, so no training starts", remedy)
        return
    if wish.fast:
        return
    answer, shown = drawn(None), f"MUJOCO_GL={given}" if given else "MUJOCO_GL is not set"
    if library := library_of(answer):
        yield Finding(OK, "opengl", f"MuJoCo's own renderer draws with {library} ({shown})")
        return
    others = [name for name in LIBRARIES if name != given.lower().strip()]
    good = next((name for name in others if library_of(drawn(name))), "")
    why = answer.error("load") or halves(answer.error("draw"), "")[0] or "its picture is empty"
    remedy = f"export MUJOCO_GL={good}" if good else f"{INSTALL_GL}; then export MUJOCO_GL=egl"
    if answer.error("load"):
        what = f"{shown}: mujoco cannot be imported, so no mjx_ or playground_ task starts ({why})"
        yield Finding(FAULT, "opengl", what, remedy if good else f"unset MUJOCO_GL; {INSTALL_GL}")
    else:
        what = f"{shown}: MuJoCo's own renderer does not draw ({why}); tasks and videos need only ours"
        yield Finding(WARN, "opengl", what, remedy)


def drawn(library: str | None) -> Answer:
    """What comes of drawing with a library; None: as the environment says."""
    chosen = {} if library is None else {"MUJOCO_GL": library}
    return ask("opengl", limit_s=GL_LIMIT_S, JAX_PLATFORMS="cpu", **chosen)


def library_of(answer: Answer) -> str:
    """With which it has drawn; "" if it has not."""
    return "" if answer.error("draw") else answer.stages["draw"]["library"]


def task_of(wish: Wish) -> str:
    """The task of the run that is looked at; "" if there is none."""
    if wish.run is None:
        return ""
    try:
        task = read_config(wish.run / "config.json").get("task")
    except ConfigError:  # is told by `past`
        return ""
    return task if isinstance(task, str) else ""
