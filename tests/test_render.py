"""The ray caster against MuJoCo: its ray functions shape by shape, its own pictures, and its refusals."""

import importlib

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from jaxrl.config import ConfigError
from jaxrl.envs.mjx.render import Look, Scene, opengl, randomized, render, render_batch, shapes, warp

KINDS = sorted(shapes.NAMES)

# Every shape, two lamps, a checkered floor, a sky, and cameras of four kinds.
ZOO = """
<mujoco><visual><headlight ambient=".3 .3 .3" diffuse=".5 .5 .5"/></visual>
<asset>
  <texture name="sky" type="skybox" builtin="gradient" rgb1=".4 .6 .8" rgb2="0 0 0" width="64" height="64"/>
  <texture name="grid" type="2d" builtin="checker" rgb1=".1 .2 .3" rgb2=".5 .6 .7" width="300" height="300"/>
  <material name="grid" texture="grid" texuniform="true" texrepeat="3 2" specular="0"/>
  <material name="glow" rgba=".2 .9 .3 1" emission=".3" specular=".8" shininess=".2"/>
</asset>
<worldbody>
  <light name="sun" pos="0 -1 3" dir="0.1 .3 -1" directional="true" diffuse=".4 .3 .4"/>
  <light name="spot" pos="1 0 2" dir="-.5 0 -1" cutoff="50" exponent="4" diffuse=".5 .4 .1"/>
  <camera name="corner" pos="1.6 -1.6 1.4" xyaxes="1 1 0 -.4 .4 1" fovy="45"/>
  <camera name="watching" mode="targetbody" target="b" pos="-1.5 -1 .6" fovy="50"/>
  <geom name="floor" type="plane" size="1.3 1.05 .1" material="grid"/>
  <body pos="-.5 0 .3"><freejoint/>
    <camera name="following" mode="trackcom" pos="0 -1.5 .5" xyaxes="1 0 0 0 .3 1"/>
    <camera name="carried" pos="0 .2 .5" xyaxes="1 0 0 0 .5 .8" fovy="70"/>
    <geom name="box" type="box" size=".2 .1 .15" rgba=".8 .2 .2 1"/>
    <geom type="capsule" fromto="0 0 .2 .3 .1 .4" size=".07" rgba=".2 .4 .9 1"/>
  </body>
  <body name="b" pos=".3 0 .3"><freejoint/>
    <geom type="cylinder" size=".12 .2" material="glow"/>
    <geom type="ellipsoid" pos=".35 .2 .1" size=".1 .2 .07" rgba=".9 .8 .1 1"/>
  </body>
  <body pos="0 .5 .2"><freejoint/>
    <geom type="sphere" size=".18" rgba=".6 .3 .7 1"/>
    <site name="mark" pos="0 -.3 0" size=".05" rgba="1 1 1 1"/>
    <geom name="hidden" type="box" size="1 1 1" rgba="1 0 0 0"/>
    <geom name="collision" type="box" size="1 1 1" group="3"/>
  </body>
</worldbody></mujoco>"""
CAMERAS = ("corner", "watching", "following", "carried")

# A floor without end, no sky.
ENDLESS = """
<mujoco><statistic extent="1" center="0 0 0"/>
<asset>
  <texture name="grid" type="2d" builtin="checker" rgb1=".2 .2 .2" rgb2=".7 .6 .5" width="300" height="300"/>
  <material name="grid" texture="grid" texuniform="true" texrepeat="4 4"/>
</asset>
<worldbody>
  <light pos="0 0 1.5" dir=".3 0 -1" directional="true" diffuse=".6 .6 .6"/>
  <camera name="down" pos=".13 -.07 1.2" xyaxes="1 0 0 0 1 0"/>
  <geom type="plane" size="0 0 1" material="grid"/>
  <body pos="0 0 .1"><freejoint/><geom type="box" size=".1 .1 .1" rgba=".9 .5 .1 1"/></body>
</worldbody></mujoco>"""


def model_of(xml: str) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(xml)


def states(model: mujoco.MjModel, count: int) -> list[mujoco.MjData]:
    """Random poses of the free bodies, about where they begin."""
    draw, found = np.random.default_rng(0), []
    for _ in range(count):
        state = mujoco.MjData(model)
        for start in model.jnt_qposadr:
            turn = draw.normal(size=4)
            state.qpos[start : start + 3] += draw.uniform(-0.05, 0.05, 3)
            state.qpos[start + 3 : start + 7] = turn / np.linalg.norm(turn)
        mujoco.mj_forward(model, state)
        found.append(state)
    return found


def bodies(state: mujoco.MjData) -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(state.xpos, jnp.float32), jnp.asarray(state.xmat.reshape(-1, 3, 3), jnp.float32)


def drawn(scene: Scene, state: mujoco.MjData, look: Look | None = None):
    return jax.jit(lambda *x: render(scene, *x))(look or scene.look(), *bodies(state))


@pytest.fixture(scope="module")
def zoo():
    return model_of(ZOO)


@pytest.fixture
def open_gl():
    """Opens OpenGL renderers, and closes them."""
    opened = []

    def start(model: mujoco.MjModel, size: int) -> opengl.Renderer:
        try:
            opened.append(opengl.Renderer(model, size, size, shadows=False))
        except ConfigError as error:
            pytest.skip(str(error))
        return opened[-1]

    yield start
    for renderer in opened:
        renderer.close()


def bounds(kind: int, size: np.ndarray) -> np.ndarray:
    """Half lengths of the box around a shape."""
    radius, half = size[:2]
    return {
        shapes.SPHERE: np.full(3, radius),
        shapes.CAPSULE: np.array([radius, radius, half + radius]),
        shapes.CYLINDER: np.array([radius, radius, half]),
    }.get(kind, size)


@pytest.mark.parametrize("kind", KINDS, ids=shapes.NAMES.get)
@pytest.mark.parametrize("size", [(0.3, 0.2, 0.25), (0.006, 0.03, 0.01)], ids=["large", "small"])
def test_rays_enter_shapes_where_mujoco_says(kind, size):
    """500 rays from 1 to 2 m away, most of them at the shape, against MuJoCo's double precision."""
    draw = np.random.default_rng(kind)
    size = np.array(size)
    origin = draw.normal(size=(500, 3))
    origin *= draw.uniform(1, 2, (500, 1)) / np.linalg.norm(origin, axis=1, keepdims=True)
    aim = draw.uniform(-1.1, 1.1, (500, 3)) * bounds(kind, size) - origin
    aim *= draw.uniform(0.5, 1.5, (500, 1)) / np.linalg.norm(aim, axis=1, keepdims=True)
    origin, aim = origin.astype(np.float32), aim.astype(np.float32)
    wanted = np.array(
        [
            mujoco.mju_rayGeom(np.zeros(3), np.eye(3).ravel(), size, o, d, kind, None)
            for o, d in zip(origin.astype(float), aim.astype(float), strict=True)
        ]
    )
    vectors = [tuple(jnp.asarray(x[:, i]) for i in range(3)) for x in (origin, aim)]
    found = jax.jit(lambda o, d: shapes.entry(kind, tuple(jnp.float32(s) for s in size), o, d))(*vectors)
    found = np.where(np.isfinite(found), np.asarray(found), -1)
    length = np.linalg.norm(aim, axis=1)
    assert 100 < (wanted >= 0).sum() < 500
    np.testing.assert_array_equal(found >= 0, wanted >= 0)
    np.testing.assert_allclose(found * length, wanted * length, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=shapes.NAMES.get)
def test_a_camera_inside_a_shape_looks_through_it(kind):
    if kind == shapes.PLANE:
        origin = (0.0, 0.0, -0.1)  # behind it
    else:
        origin = (0.05, 0.0, 0.0)
    size = tuple(jnp.float32(0.3) for _ in range(3))
    direction = tuple(jnp.asarray(x, jnp.float32) for x in np.random.default_rng(0).normal(size=(3, 64)))
    t = shapes.entry(kind, size, tuple(map(jnp.float32, origin)), direction)
    assert not ((t > 0) & (t < shapes.MISS)).any()


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


SCENES = {"zoo_corner": (ZOO, "corner"), "zoo_watching": (ZOO, "watching"), "endless": (ENDLESS, "down")}


@pytest.mark.parametrize("name", SCENES)
def test_pictures_are_those_of_opengl(name, open_gl):
    xml, camera = SCENES[name]
    model, size = model_of(xml), 120
    scene, gl = Scene.of(model, (camera,), size), open_gl(model, size)
    for state in states(model, 2):
        ours = drawn(scene, state)
        colour = np.abs(np.asarray(ours.rgb[0], int) - gl.render(state, camera))
        assert colour.mean() < 6
        assert np.median(colour) <= 1  # surfaces agree; the mean comes from edges
        theirs, seen = gl.segmentation(state, camera), np.asarray(ours.segmentation[0])
        large = [i for i in range(model.ngeom) if (theirs == i).sum() >= 50]
        assert len(large) >= 2
        assert min(iou(theirs == i, seen == i) for i in large) > 0.97
        both = (theirs == seen) & (seen >= 0)
        assert np.median(np.abs(gl.depth(state, camera) - ours.depth[0])[both]) < 1e-3


def test_depth_and_segmentation_are_those_of_a_ray_through_each_pixel(zoo):
    """Also without OpenGL: what mj_ray meets through the middle of each pixel."""
    size, state = 24, states(zoo, 1)[0]
    scene = Scene.of(zoo, CAMERAS, size)
    ours = drawn(scene, state)
    middles = (np.arange(size) + 0.5) / size * 2 - 1
    groups = np.array([1, 1, 1, 0, 0, 0], np.uint8)
    wrong = 0
    for k, name in enumerate(CAMERAS):
        camera = zoo.camera(name).id
        scale = np.tan(np.deg2rad(zoo.cam_fovy[camera]) / 2)
        eye, frame = state.cam_xpos[camera], state.cam_xmat[camera].reshape(3, 3)
        for row in range(size):
            for column in range(size):
                ray = np.array([middles[column] * scale, -middles[row] * scale, -1])
                geom = np.zeros(1, np.int32)
                t = mujoco.mj_ray(zoo, state, eye, frame @ ray, groups, 1, -1, geom, None)
                seen = int(ours.segmentation[k, row, column])
                if seen < 0:  # nothing, or the site, which mj_ray does not know
                    wrong += t >= 0 and not np.isfinite(ours.depth[k, row, column])
                elif seen == geom[0]:
                    np.testing.assert_allclose(ours.depth[k, row, column], t, rtol=1e-4, atol=1e-4)
                else:
                    wrong += 1
    assert wrong <= 0.003 * size * size * len(CAMERAS)  # edges


def test_a_batch_is_a_loop_and_so_are_chunks(zoo):
    scene = Scene.of(zoo, ("corner", "carried"), 33)  # an odd number of rays
    look, found = scene.look(), states(zoo, 5)
    xpos, xmat = (jnp.stack(x) for x in zip(*map(bodies, found), strict=True))
    one = jax.jit(lambda *x: render(scene, look, *x))
    loop = jax.tree.map(lambda *x: np.stack(x), *[one(*bodies(state)) for state in found])
    batch = jax.jit(jax.vmap(lambda *x: render(scene, look, *x)))(xpos, xmat)
    looks = jax.tree.map(lambda x: jnp.broadcast_to(x, (5, *x.shape)), look)
    own = jax.jit(lambda *x: render_batch(scene, *x, chunk=2, pick=lambda p: p.rgb))(looks, xpos, xmat)
    assert (loop.segmentation == np.asarray(batch.segmentation)).mean() > 0.999
    finite = [np.where(np.isfinite(x), x, 0) for x in (loop.depth, np.asarray(batch.depth))]
    np.testing.assert_allclose(*finite, rtol=1e-3)
    for other in (batch.rgb, own):
        assert np.abs(loop.rgb.astype(int) - np.asarray(other)).mean() < 0.01
    assert own.shape == loop.rgb.shape and loop.rgb.std() > 10


def test_one_compilation_for_100_states_and_looks(zoo):
    scene = Scene.of(zoo, ("carried",), 16)
    traces = []

    @jax.jit
    def draw(look, xpos, xmat):
        traces.append(1)
        return render(scene, look, xpos, xmat).rgb

    vary = jax.jit(lambda key: randomized(scene.look(), key, 1.0))
    pictures = [
        np.asarray(draw(vary(jax.random.key(i)), *bodies(state))) for i, state in enumerate(states(zoo, 100))
    ]
    assert len(traces) == 1 and draw._cache_size() == 1
    assert len({picture.tobytes() for picture in pictures}) == 100


def test_a_look_changes_what_it_names(zoo):
    scene, state = Scene.of(zoo, ("corner",), 48), states(zoo, 1)[0]
    draw = jax.jit(lambda look: render(scene, look, *bodies(state)))
    look, before = scene.look(), draw(scene.look())
    names = [shape.name for shape in scene.shapes]
    box = names.index("box")
    on_box = np.asarray(before.segmentation[0] == scene.shapes[box].geom)
    assert on_box.sum() > 20
    green = draw(look.replace(rgba=look.rgba.at[box].set(jnp.array([0, 1, 0, 1]))))
    rest = np.asarray(green.rgb != before.rgb)[0].any(-1) & ~on_box
    assert (np.asarray(green.rgb)[0, on_box][:, 0] == 0).all() and not rest.any()
    gone = draw(look.replace(rgba=look.rgba.at[box, 3].set(0)))
    assert not (gone.segmentation[0] == scene.shapes[box].geom).any()
    dark = draw(look.replace(headlight=look.headlight * 0, light=look.light * 0))
    floor = np.asarray(before.segmentation[0] == scene.shapes[0].geom)
    assert (np.asarray(dark.rgb)[0, floor] == 0).all()
    near = draw(look.replace(fovy=look.fovy / 2))
    assert (near.segmentation[0] == scene.shapes[box].geom).sum() != on_box.sum()


def test_randomized_looks(zoo):
    look = Scene.of(zoo, CAMERAS, 8).look()
    jax.tree.map(
        lambda *pair: np.testing.assert_allclose(*pair, atol=1e-6),
        look,
        randomized(look, jax.random.key(0), 0.0),
    )
    looks = jax.jit(jax.vmap(lambda key: randomized(look, key, 1.0)))(jax.random.split(jax.random.key(0), 64))
    same = ("size", "sky")
    for name in look.__dataclass_fields__:
        spread = np.asarray(getattr(looks, name)).std(0)
        assert (spread.max() < 1e-5) == (name in same), name
    np.testing.assert_allclose(looks.rgba[..., 3], 1)
    turned = np.asarray(looks.camera_rotation)
    np.testing.assert_allclose(turned @ turned.swapaxes(-1, -2), np.eye(3) + 0 * turned, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(looks.light_direction, axis=-1), 1, atol=1e-5)


def test_more_samples_smooth_edges(zoo, open_gl):
    model, state = zoo, states(zoo, 1)[0]
    theirs = open_gl(model, 60).render(state, "corner").astype(int)
    error = []
    for samples in (1, 2):
        ours = drawn(Scene.of(model, ("corner",), 60, samples), state).rgb[0]
        error.append(np.abs(np.asarray(ours, int) - theirs).mean())
    assert error[1] < 0.8 * error[0]


def scene_with(body: str, cameras: tuple[str, ...] = ("eye",)) -> Scene:
    assets = """<asset><mesh name="tetra" vertex="0 0 0  1 0 0  0 1 0  0 0 1"/>
      <hfield name="hill" nrow="2" ncol="2" size="1 1 1 1"/></asset>"""
    world = f'<worldbody><camera name="eye"/><camera name="top_view"/>{body}</worldbody>'
    return Scene.of(model_of(f"<mujoco>{assets}{world}</mujoco>"), cameras, 8)


@pytest.mark.parametrize(
    "body, says",
    [
        ('<geom name="claw" type="mesh" mesh="tetra"/>', ["'claw'", "mesh", "primitives", "renderer=warp"]),
        ('<geom name="land" type="hfield" hfield="hill"/>', ["'land'", "hfield", "env.renderer=warp"]),
        ('<geom type="mesh" mesh="tetra"/>', ["'geom 0'", "mesh"]),
        ('<geom name="glass" size="1" rgba="1 1 1 .3"/>', ["'glass'", "alpha 0.3", "alpha 1"]),
        ('<site name="zone" size="1" rgba="1 1 1 .3"/>', ["'zone'", "alpha 0.3"]),
        ("".join('<geom size=".1"/>' for _ in range(256)), ["256 visible geoms", "255"]),
    ],
)
def test_what_cannot_be_drawn_is_refused(body, says):
    with pytest.raises(ConfigError) as error:
        scene_with(body)
    assert "\n" not in str(error.value)
    for words in says:
        assert words in str(error.value)


def test_hidden_meshes_are_no_matter():
    assert [s.name for s in scene_with('<geom name="a" type="mesh" mesh="tetra" group="3"/>').shapes] == []
    scene = scene_with('<geom name="a" type="mesh" mesh="tetra" rgba="1 1 1 0"/><geom name="b" size="1"/>')
    assert [s.name for s in scene.shapes] == ["b"]


def test_an_unknown_camera_names_its_neighbours():
    with pytest.raises(ConfigError, match="camera='topview'.*did you mean top_view"):
        scene_with("", ("topview",))
    with pytest.raises(ConfigError, match="camera='zzz'.*it has eye, top_view"):
        scene_with("", ("zzz",))
    with pytest.raises(ConfigError, match="at least 1"):
        scene_with("", ())


def test_scenes_are_equal_if_their_content_is(zoo):
    assert Scene.of(zoo, CAMERAS, 8) == Scene.of(model_of(ZOO), CAMERAS, 8)
    assert hash(Scene.of(zoo, CAMERAS, 8)) == hash(Scene.of(model_of(ZOO), CAMERAS, 8))
    assert Scene.of(zoo, CAMERAS, 8) != Scene.of(model_of(ZOO.replace('".18"', '".19"')), CAMERAS, 8)


def test_an_empty_scene_is_sky():
    scene = scene_with("")
    xpos, xmat = jnp.zeros((1, 3)), jnp.eye(3)[None]
    pictures = render(scene, scene.look(), xpos, xmat)
    assert (pictures.segmentation == -1).all() and np.isinf(pictures.depth).all()


def test_a_missing_opengl_library_is_one_line(zoo, monkeypatch):
    def missing(name):
        raise OSError(f"lib{name}.so: cannot open shared object file\nand more")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError) as error:
        opengl.Renderer(zoo, 8, 8)
    message = str(error.value)
    for words in ("renderer=opengl", "libegl1 libgl1-mesa-dri", "MUJOCO_GL=egl", "raycast"):
        assert words in message
    assert "\n" not in message


def test_an_opengl_renderer_is_closed_once_and_for_all(zoo, open_gl):
    renderer, state = open_gl(zoo, 8), states(zoo, 1)[0]
    assert renderer.render(state, "corner").shape == (8, 8, 3)
    with pytest.raises(ConfigError, match="did you mean corner"):
        renderer.render(state, "cornr")
    renderer.close()
    renderer.close()
    with pytest.raises(RuntimeError, match="closed"):
        renderer.render(state, "corner")
    assert opengl.render(zoo, state, "corner", 8, 12).shape == (8, 12, 3)


def test_warp_says_what_it_needs(zoo, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"env.renderer=warp.*pip install 'jaxrl\[warp\]'"):
        warp.Warp(zoo, ("corner",), num_envs=2, size=8)


def test_warp_draws_what_the_ray_caster_draws():
    """On a CPU, where warp is installed. Not of a checkered floor, which it begins to count elsewhere."""
    pytest.importorskip("warp", reason="warp-lang is not installed")
    plain = ENDLESS.replace('material="grid"', 'rgba=".4 .4 .5 1"').replace(
        "diffuse", 'specular="0 0 0" diffuse'
    )
    model = model_of(plain.replace("<asset>", '<visual><headlight specular="0 0 0"/></visual><asset>'))
    found = states(model, 3)
    xpos, xmat = (jnp.stack(x) for x in zip(*map(bodies, found), strict=True))
    scene = Scene.of(model, ("down",), 48)
    renderer = warp.Warp(model, ("down",), num_envs=3, size=48)
    theirs = np.asarray(jax.jit(renderer.render)(xpos, xmat))
    ours = render_batch(scene, scene.look(), xpos, xmat, chunk=3, pick=lambda pictures: pictures.rgb)
    assert theirs.shape == ours.shape and theirs.dtype == ours.dtype
    assert np.abs(theirs.astype(int) - np.asarray(ours)).mean() < 2
    assert len({picture.tobytes() for picture in theirs}) == 3
    with pytest.raises(ConfigError, match="'following'.*renderer=warp"):
        warp.Warp(model_of(ZOO), ("following",), num_envs=1, size=8)
