"""Videos: what is shown of an episode, how fast, in which format, and that a run does not mind."""

import io
import os
import pathlib

import numpy as np
import pytest
import small
from PIL import Image

from jaxrl import envs, filming, learners, videos
from jaxrl.config import ConfigError, EnvConfig
from jaxrl.envs.film import Shown, reel_of
from jaxrl.filming import Film, Projector


def film_of(task: str, env: EnvConfig, rows: int, **options) -> tuple[Film, list]:
    """A film of random actions in two environments, and the rows of the first."""
    reel = reel_of(task, env, 7, options.pop("cameras", ()))
    film, made, rows_of = Film(reel, **options), envs.make(task, env, num_envs=2, seed=7), []
    chance = np.random.default_rng(1)
    step, space = made.reset(), made.spaces.action
    for _ in range(rows):
        film.row(made, step, [])
        rows_of.append(step)
        draw = (
            chance.integers(0, space.n, 2)
            if hasattr(space, "n")
            else chance.uniform(-1, 1, (2, space.size)).astype(np.float32)
        )
        film.acts(draw)
        made.send(draw)
        step = made.recv()
    made.close()
    return film, rows_of


def frames_of(path: pathlib.Path) -> list[np.ndarray]:
    with Image.open(path) as file:
        found = []
        for i in range(getattr(file, "n_frames", 1)):
            file.seek(i)
            found.append(np.asarray(file.convert("RGB")))
        return found


@pytest.fixture
def without_av(monkeypatch):
    monkeypatch.setattr(videos, "no_mp4", lambda: videos.EXTRA)


def test_shows_the_pictures_of_the_first_episode_with_its_return(tmp_path, without_av):
    film, rows = film_of("toy_clock", EnvConfig(action_repeat=1, size=48), 40)
    file, line = film.develop(tmp_path / "clock")
    assert file == tmp_path / "clock.webp" and str(file) in line and "jaxrl[video]" in line
    length = next(i for i, x in enumerate(rows) if x.is_last[0])
    with Image.open(tmp_path / "clock.webp") as file:
        assert file.n_frames in (length + 1, length + 2), "the last ones are alike and may be one"
    shown = film._reel.draw([shot for _, shot, _ in film._shots])
    for picture, row in zip(shown, rows, strict=False):
        np.testing.assert_array_equal(picture["image"], row.obs["image"][0])
    captions = [caption for _, _, caption in film._shots]
    assert [x.step for x in captions] == list(range(length + 1))
    total = sum(row.reward[0] for row in rows[: length + 1])
    np.testing.assert_allclose(captions[-1].score, total, rtol=1e-6)
    assert captions[-1].text(1) == f"episode 1   step {length}   return {total:.2f}   end"


def test_a_gif_where_there_is_no_webp(tmp_path, without_av, monkeypatch):
    monkeypatch.setattr(videos.features, "check", lambda name: name != "webp" and name == "freetype2")
    frames = [np.full((32, 48, 3), i * 40, np.uint8) for i in range(6)]
    written, why = videos.write(tmp_path / "x", iter(frames), 25.0)
    assert written.name == "x.gif" and why == videos.EXTRA
    assert [round(float(x.mean()) / 40) for x in frames_of(written)] == list(range(6))
    with Image.open(written) as file:
        assert file.info["duration"] == 40


def test_mp4_where_pyav_is_installed(tmp_path):
    av = pytest.importorskip("av")
    frames = [np.full((32, 48, 3), i * 40, np.uint8) for i in range(6)]
    written, why = videos.write(tmp_path / "x", iter(frames), 25.0)
    assert (written.name, why) == ("x.mp4", "")
    with av.open(str(written)) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 25)
        found = [x.to_ndarray(format="rgb24").mean() for x in file.decode(video=0)]
    np.testing.assert_allclose(found, [i * 40 for i in range(6)], atol=6)
    assert [x.name for x in tmp_path.iterdir()] == ["x.mp4"]


def test_a_write_that_fails_leaves_nothing(tmp_path, without_av):
    def broken():
        yield np.zeros((32, 32, 3), np.uint8)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        videos.write(tmp_path / "x", broken(), 10)
    assert not list(tmp_path.iterdir())


def thumbnail(count: int, rate: float, edges=(32, 48)) -> Image.Image:
    """A GIF of frames that become brighter, from black to white."""
    small_one = videos.Thumbnail()
    frames = (np.full((*edges, 3), i * 255 // max(1, count - 1), np.uint8) for i in range(count))
    passed = [x[0, 0, 0] for x in small_one.watching(frames)]
    assert len(passed) == count, "whoever else wants them gets them all"
    return Image.open(io.BytesIO(small_one.gif(rate)))


def played(file: Image.Image) -> tuple[list[int], list[int]]:
    """Brightness and milliseconds of each frame."""
    shades, lasts = [], []
    for i in range(file.n_frames):
        file.seek(i)
        shades.append(int(np.asarray(file.convert("L")).mean()))
        lasts.append(file.info["duration"])
    return shades, lasts


@pytest.mark.parametrize(("count", "rate"), [(2, 15), (100, 15), (150, 30), (3, 2)])
def test_a_thumbnail_shows_every_frame_at_true_speed(count, rate):
    shades, lasts = played(thumbnail(count, rate))
    assert len(shades) == count and shades[0] == 0 and shades[-1] == 255 and (np.diff(shades) > 0).all()
    np.testing.assert_allclose(sum(lasts) / 1000, count / rate, atol=0.006)
    assert max(lasts) - min(lasts) <= 10


@pytest.mark.parametrize(("count", "rate", "seconds"), [(250, 10, 25), (1000, 30, 1000 / 32)])
def test_a_thumbnail_of_a_long_video_leaves_frames_out_evenly(count, rate, seconds):
    """True speed while four frames a second are left; faster then."""
    shades, lasts = played(thumbnail(count, rate))
    assert 75 <= len(shades) <= videos.FEW + 1 and shades[0] == 0 and shades[-1] == 255, "the end is there"
    assert np.ptp(np.diff(shades)[:-1]) <= 1 and np.ptp(lasts[:-2]) <= 10
    np.testing.assert_allclose(sum(lasts) / 1000, seconds, atol=0.02)


def test_a_thumbnail_is_narrow_and_of_bounded_size(monkeypatch):
    assert thumbnail(2, 10, (100, 960)).size == (320, 33)
    assert thumbnail(2, 10, (100, 200)).size == (200, 100)
    monkeypatch.setattr(videos, "MAX_BYTES", 200_000)
    noise, small_one = (
        np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3)).astype(np.uint8),
        videos.Thumbnail(),
    )
    for frame in noise:
        small_one.add(frame)
    gif = small_one.gif(20)
    file = Image.open(io.BytesIO(gif))
    assert len(gif) <= 200_000 and 10 <= file.n_frames <= 21, "every second or fourth"
    np.testing.assert_allclose(sum(played(file)[1]), 2000, atol=20)


@pytest.mark.parametrize("count", range(1, 7))
def test_pictures_lie_in_a_grid_and_do_not_overlap(count):
    colours = {f"camera {i}": np.full((60, 60, 3), 30 * i + 60, np.uint8) for i in range(count)}
    page = videos.sheet(colours, "episode 1")
    assert page.shape[0] % 2 == page.shape[1] % 2 == 0
    for i in range(count):
        area = (page == 30 * i + 60).all(-1)
        assert area.sum() > 0.9 * 240 * 240, "whole, but for its name"
        assert area.any(1).sum() == area.any(0).sum() == 240


class Endless:
    """A reel that is asked for little."""

    seconds, remark = 0.01, ""

    def take(self, env, step):
        return int(step.obs["count"][0, 0])

    def acts(self, action):
        pass

    def draw(self, shots):
        return ({"": np.full((8, 8, 3), x % 256, np.uint8)} for x in shots)

    def close(self):
        pass


def test_a_long_episode_is_thinned_and_says_how_fast_it_is(monkeypatch):
    monkeypatch.setattr(filming, "MOST", 10)
    film = Film(Endless())
    made = envs.make("toy_clock", EnvConfig(action_repeat=1, size=48), num_envs=1, seed=0)
    step = made.reset()
    for count in range(100):
        film.row(made, step.replace(obs={"count": np.array([[count]])}), [])
        monkeypatch.setattr(made, "_outcome", made.outcome._replace(is_over=np.array([count == 98])))
    made.close()
    at = [shot for _, shot, _ in film._shots]
    assert len(at) <= 11 and at[-1] == 99, "the end is there"
    assert set(np.diff(at[:-1])) == {16}, "100 rows a second: every 4th is shown, then every 16th"
    assert film._shots[-1][2].text(film._stride // film._every).endswith("4x speed")


def test_atari_is_shown_in_its_own_colours():
    pytest.importorskip("envpool")
    if "atari_breakout" not in envs.list_tasks():
        pytest.skip("no ROMs")
    film, rows = film_of("atari_breakout", EnvConfig(gray=True, stack=4, sticky=0.25), 30)
    pictures = list(film._reel.draw([shot for _, shot, _ in film._shots]))
    assert film._reel.remark == "" and pictures[0][""].shape == (210, 160, 3)
    assert any(np.ptp(x[""], axis=-1).max() > 50 for x in pictures), "coloured"
    for picture, row in zip(pictures, rows, strict=False):
        gray = picture[""] @ np.array([0.299, 0.587, 0.114])
        small_one = np.asarray(
            Image.fromarray(gray.astype(np.float32)).resize((64, 64), Image.Resampling.BOX)
        )
        assert np.abs(small_one - row.obs["image"][0, ..., -1]).mean() < 3, "the same game"
    film.close()


@pytest.mark.parametrize(
    ("task", "env", "says"),
    [
        ("toy_reach", EnvConfig(), "has no pictures"),
        ("dmc_walker_walk", EnvConfig(observe="state"), "env.observe=state"),
    ],
)
def test_a_task_without_pictures_says_so(task, env, says):
    with pytest.raises(ConfigError, match=says):
        reel_of(task, env, 0)


def test_cartpole_from_its_own_and_virtual_cameras():
    from jaxrl.envs.mjx import film as physics

    env = EnvConfig(action_repeat=1, size=48, samples=2)
    film, rows = film_of("mjx_cartpole_balance", env, 20, cameras=("fixed", "top", "iso"))
    pictures = list(film._reel.draw([shot for _, shot, _ in film._shots]))
    assert [x.shape for x in pictures[0].values()] == [(240, 240, 3)] * 3
    assert film._reel.seconds == 0.01 and len(pictures) == 5, "100 steps a second are too many: every 4th"
    seen = rows[8].obs["fixed"][0].astype(float)
    large = pictures[2]["fixed"].reshape(48, 5, 48, 5, 3).mean((1, 3))
    assert np.abs(seen - large).mean() < 4, "what the policy sees"
    assert physics.chosen(film._reel._stage, ()) == ("fixed", "near", "iso", "top")
    with pytest.raises(ConfigError, match="did you mean fixed"):
        reel_of("mjx_cartpole_balance", env, 0, ("fixd",))


def test_virtual_cameras_have_all_that_moves_in_view():
    """The bounding box's corners, seen from each camera, are inside its field of view."""
    from jaxrl.envs.mjx import film as physics

    stage = physics.stage_of("mjx_cartpole_swingup", EnvConfig(action_repeat=1))
    reel = physics.PhysicsReel(stage, tuple(physics.VIRTUAL), 1)
    slides = [({"qpos": np.array([x, 0.5])}, None) for x in np.linspace(-1.5, 1.5, 5)]
    _, _, boxes = physics.kinematics(stage.model, [where for where, _ in slides])
    look = reel._looks([None] * 5, *physics.aims(boxes))
    for k in range(4):
        for box, place, turn in zip(
            boxes, look.camera_position[:, k], look.camera_rotation[:, k], strict=True
        ):
            corners = np.array([[box[i, 0], box[j, 1], box[m, 2]] for i, j, m in np.ndindex(2, 2, 2)])
            x, y, z = ((corners - place) @ turn).T
            limit = np.tan(np.deg2rad(physics.FOVY / 2))
            assert (z < 0).all() and (np.abs([x / -z, y / -z]) < limit).all()


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(learners.LEARNERS, "dreamer", small.make_learner)


def test_a_run_films_itself_and_is_the_same_run(tiny, tmp_path, without_av):
    plain = small.run(tmp_path / "plain", "--steps=60", "--eval_every=40")
    filmed = small.run(tmp_path / "filmed", "--steps=60", "--eval_every=40", "--video_every=30")
    assert sorted(x.name for x in (filmed.path / "videos").iterdir()) == ["30.webp", "60.webp"]
    small.assert_same_rows(plain, filmed)
    small.assert_same_arrays(plain.arrays(), filmed.arrays())
    assert not (plain.path / "videos").exists()


@pytest.mark.parametrize("place", ["take", "draw"])
def test_a_film_that_breaks_does_not_break_the_run(tiny, tmp_path, monkeypatch, place, capfd):
    def broken(*args):
        raise ZeroDivisionError("the lens cap was on")

    monkeypatch.setattr(Shown, place, broken)
    run = small.run(tmp_path, "--steps=40", "--video_every=20", "--terminal.style=plain")
    assert run.note["exit"] == "done"
    assert capfd.readouterr().out.count("ZeroDivisionError: the lens cap was on") >= 1


def test_a_task_without_pictures_trains_and_says_once_why(tiny, tmp_path, capfd):
    small.run(tmp_path, "--task=toy_reach", "--steps=40", "--video_every=20", "--terminal.style=plain")
    assert capfd.readouterr().out.count("no video: task=toy_reach: has no pictures") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    said = []
    tmp_path.chmod(0o500)
    projector = Projector(tmp_path / "videos", said.append)
    film, _ = film_of("toy_clock", EnvConfig(action_repeat=1, size=48), 30)
    projector.show([filming.Guarded(film, said.append)], None, 5)
    projector.close()
    assert "PermissionError" in said[0]
