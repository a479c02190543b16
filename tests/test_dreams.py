"""What a world model imagines, as pictures: what is where on a frame, and that a run does not mind."""

import dataclasses
import io
import threading

import jax.numpy as jnp
import numpy as np
import pytest
import small
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxrl import dreams, filming, learners, videos
from jaxrl.config import Config
from jaxrl.dreams import IMAGINED, OBSERVED, Dream, Layout
from jaxrl.filming import Projector
from jaxrl.programs import Programs
from jaxrl.types import OpenLoop


def dream_of(truth: np.ndarray, model: np.ndarray, observed: int, **changes) -> Dream:
    given = dict(name="image", step=1000, is_first=np.zeros(truth.shape[:2], bool), channels=3)
    return Dream(truth=truth, model=model, observed=observed, **given | changes)


def colours(rows: int, sequences: int, shape=(16, 16, 3)) -> np.ndarray:
    """Pictures of one shade each: 10 * row + sequence."""
    shade = 10 * np.arange(rows)[:, None] + np.arange(sequences)
    return np.broadcast_to(shade[..., None, None, None], (rows, sequences, *shape)).astype(np.uint8)


def middle(frame: np.ndarray, dream: Dream, row: int, column: int, size=dreams.LARGE) -> list[int]:
    """The colour in the middle of a picture; row 0 is truth, 1 model, 2 error."""
    layout = Layout.of(dream, size)
    x, y = layout.corner(row, column)
    return frame[y + layout.high // 2, x + layout.wide // 2].tolist()


def test_truth_model_and_error_lie_one_above_the_other_and_move_in_step():
    truth = colours(8, 3)
    dream = dream_of(truth, truth + 50, observed=4)
    frames = list(dreams.frames(dream))
    assert len(frames) == 8 - 1 + dreams.HOLD and np.array_equal(frames[7], frames[-1])
    assert frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0
    for t in range(8):
        for column in range(3):
            shade = 10 * t + column
            assert middle(frames[t], dream, 0, column) == [shade] * 3
            assert middle(frames[t], dream, 1, column) == [shade + 50] * 3
            assert middle(frames[t], dream, 2, column) == [(50 + 255) // 2] * 3


def test_the_error_is_grey_where_there_is_none_and_never_wraps():
    truth = np.array([0, 0, 255, 255, 77], np.uint8).reshape(1, 5, 1, 1, 1) * np.ones(
        (1, 1, 8, 8, 3), np.uint8
    )
    model = np.array([0, 255, 0, 255, 77], np.uint8).reshape(1, 5, 1, 1, 1) * np.ones(
        (1, 1, 8, 8, 3), np.uint8
    )
    three = dreams.triple(dream_of(truth, model, 1), 0, 5)
    assert three[2, :, 0, 0, 0].tolist() == [127, 255, 0, 127, 127]


def test_what_was_observed_and_what_was_imagined_are_told_apart(monkeypatch):
    words = []
    write = videos.Page.words
    monkeypatch.setattr(
        videos.Page, "words", lambda self, x, y, text, *a: (words.append(text), write(self, x, y, text, *a))
    )
    dream = dream_of(colours(32, 6), colours(32, 6), observed=12)
    frames = list(dreams.frames(dream))
    layout = Layout.of(dream, dreams.LARGE)
    left, top, width, height = layout.inner
    line = top + height + dreams.EDGE + dreams.LARGE.gap + 2
    for t, frame in enumerate(frames[:32]):
        colour, phase = (OBSERVED, "observed") if t < 12 else (IMAGINED, "imagined")
        frame_of_pictures = (
            frame[top + 40, left - 1],
            frame[top + 40, left + width],
            frame[top + height, left + 40],
        )
        assert all(tuple(x) == colour for x in frame_of_pictures)
        assert f"{phase} {t + 1}/32" in words
        bright = (frame[line] == OBSERVED).all(-1).sum(), (frame[line] == IMAGINED).all(-1).sum()
        total = width + 2 * dreams.EDGE
        np.testing.assert_allclose(bright, (total * min(t + 1, 12) / 32, total * max(t - 11, 0) / 32), atol=2)
    assert "image, step 1,000" in words and {"truth", "model", "error"} <= set(words)


@pytest.mark.parametrize(("gray", "stack"), [(True, 1), (True, 4), (False, 1), (False, 4)])
def test_of_stacked_frames_the_newest_is_shown(gray, stack):
    channels = 1 if gray else 3
    one = colours(4, 2, (8, 8, channels))
    older = np.full((4, 2, 8, 8, channels * (stack - 1)), 255, np.uint8)
    truth = np.concatenate([older, one], -1)
    dream = dream_of(truth, truth, 2, channels=channels)
    frames = list(dreams.frames(dream))
    assert [middle(frame, dream, 0, 1)[0] for frame in frames[:4]] == [1, 11, 21, 31]


def test_after_a_new_episode_that_it_is_not_told_of_the_model_is_dimmed():
    truth = np.full((8, 2, 16, 16, 3), 200, np.uint8)
    is_first = np.zeros((8, 2), bool)
    is_first[2, 0] = is_first[5, 1] = True  # one while the model sees everything, one while it does not
    dream = dream_of(truth, truth, 4, is_first=is_first)
    seen = np.array([[middle(f, dream, 1, b)[0] for b in (0, 1)] for f in dreams.frames(dream)])[:8]
    assert (seen[:, 0] == 200).all() and (seen[:5, 1] == 200).all() and (seen[5:, 1] < 100).all()
    assert [middle(f, dream, 0, 1)[0] for f in dreams.frames(dream)][:8] == [200] * 8


@pytest.mark.parametrize(("edge", "columns"), [(16, 6), (64, 4), (96, 2), (400, 1)])
def test_small_ones_show_as_many_sequences_as_fit(edge, columns):
    dream = dream_of(colours(2, 6, (edge, edge, 3)), colours(2, 6, (edge, edge, 3)), 1)
    frame = next(dreams.frames(dream, dreams.SMALL))
    assert Layout.of(dream, dreams.SMALL).columns == columns
    assert frame.shape[1] <= videos.SMALL or columns == 1
    assert middle(frame, dream, 0, columns - 1, dreams.SMALL) == [columns - 1] * 3
    large = next(dreams.frames(dream))
    assert large.shape[1] <= 1280 and Layout.of(dream, dreams.LARGE).high >= 128


SHADE = 12  # of a step of the clock, in the pictures of the learner below


def with_report(config, spaces):
    """The small learner; its world model sees the negative of what happened."""
    learner = small.make_learner(config, spaces)

    def report(state, batch, key):
        del state, key
        truth = {"image": batch.obs["image"][learner.context :] * jnp.uint8(SHADE)}
        return OpenLoop(truth=truth, model={"image": 255 - truth["image"]}, observed=2)

    return dataclasses.replace(learner, report=report)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(learners.LEARNERS, "dreamer", with_report)
    monkeypatch.setattr(videos, "no_mp4", lambda: videos.EXTRA)


@pytest.mark.parametrize("placement", ["device", "host"])
def test_a_run_shows_what_its_world_model_imagines_and_is_the_same_run(tiny, tmp_path, placement):
    flags = ("--steps=60", "--eval_every=40", "--log_every=20", f"--replay.placement={placement}")
    plain = small.run(tmp_path / "plain", *flags)
    filmed = small.run(tmp_path / "filmed", *flags, "--video_every=30", "--tensorboard.enabled=true")
    found = sorted(x.name for x in (filmed.path / "videos").iterdir())
    assert found == ["30-openloop.webp", "30.webp", "60-openloop.webp", "60.webp"]
    small.assert_same_rows(plain, filmed)
    small.assert_same_arrays(plain.arrays(), filmed.arrays())
    programs = [set(run.note["compile_s_each"]) for run in (plain, filmed)]
    assert programs[1] - programs[0] == {"report", "report_batch"}, "compiled only where there are films"
    board = EventAccumulator(str(filmed.path / "tb")).Reload()
    assert set(board.Tags()["images"]) == {"eval_episode/video", "openloop/image"}
    assert [x.step for x in board.Images("eval_episode/video")] == [30, 60]
    shown = board.Images("openloop/image")
    assert [x.step for x in shown] == [30, 60]
    sequences = [clocks(event) for event in shown]
    for counts in sequences:
        following = np.diff(counts, axis=0) == 1
        assert (following | (counts[1:] == 0)).all(), "rows of replay, one after the other"
    assert not np.array_equal(*sequences), "drawn anew"


def clocks(event) -> np.ndarray:
    """[T, B] what the clock says in each picture of an animated GIF, whose size the event must know."""
    with Image.open(io.BytesIO(event.encoded_image_string)) as file:
        assert file.format == "GIF" and file.size == (event.width, event.height)
        assert file.n_frames == 4, "as many as the batch has rows"
        frames = []
        for i in range(file.n_frames):
            file.seek(i)
            assert file.info["duration"] == (100 if i < 3 else 100 * dreams.HOLD)
            frames.append(np.asarray(file.convert("RGB")))
    pictures = colours(4, 2, (48, 48, 3))
    dream = dream_of(pictures, pictures, 2)
    red = np.array([[middle(f, dream, 0, b, dreams.SMALL)[0] for b in range(2)] for f in frames])
    model = np.array([[middle(f, dream, 1, b, dreams.SMALL)[0] for b in range(2)] for f in frames])
    counts = np.round(red / SHADE).astype(int)
    unseen = np.arange(4)[:, None] >= 2
    is_new = np.logical_or.accumulate((counts == 0) & unseen)
    assert (np.abs(255 - model - red) < SHADE)[~is_new].all(), "the negative below the picture"
    return counts


@pytest.mark.parametrize(
    ("owner", "name"), [(Programs, "report"), (filming.Imagination, "fetched"), (dreams, "frames")]
)
def test_what_breaks_does_not_break_the_run(tiny, tmp_path, monkeypatch, owner, name, capfd):
    def broken(*args):
        raise ZeroDivisionError("a nightmare")

    monkeypatch.setattr(owner, name, broken)
    run = small.run(tmp_path, "--steps=40", "--video_every=20", "--terminal.style=plain")
    assert run.note["exit"] == "done"
    out = capfd.readouterr().out
    assert out.count("ZeroDivisionError: a nightmare") == 2
    assert sorted(x.name for x in (run.path / "videos").iterdir()) == ["20.webp", "40.webp"]


def test_before_a_sequence_is_there_nothing_is_imagined(tiny, tmp_path):
    run = small.run(tmp_path, "--steps=8", "--video_every=4", "--eval_every=0")
    assert sorted(x.name for x in (run.path / "videos").iterdir()) == ["4.webp", "8-openloop.webp", "8.webp"]


def test_several_images_get_a_file_each(tmp_path, monkeypatch):
    monkeypatch.setattr(videos, "no_mp4", lambda: videos.EXTRA)
    pictures = {"wrist": colours(4, 2), "view/top": colours(4, 2)}
    said, posted = [], []
    projector = Projector(tmp_path, said.append, posted.append)
    look = OpenLoop(truth=pictures, model=pictures, observed=2), np.zeros((4, 2), bool)
    imagination = projector.imagine(Config(task="toy_clock"), lambda: look, 7)
    projector.show([], imagination, 7)
    projector.close()
    assert {(x.name, x.step): x.file.name for x in posted} == {
        ("openloop/wrist", 7): "7-openloop-wrist.webp",
        ("openloop/view/top", 7): "7-openloop-view-top.webp",
    }
    assert all(x.file.is_file() for x in posted) and "2 of 4 rows observed" in said[0]


def test_who_cannot_keep_up_leaves_a_step_out_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(videos, "no_mp4", lambda: videos.EXTRA)
    gate, began = threading.Event(), threading.Event()

    def slow(self, step):
        began.set()
        gate.wait(20)
        return []

    monkeypatch.setattr(filming.Imagination, "fetched", slow)
    said = []
    projector = Projector(tmp_path, said.append)
    look = filming.Imagination(None, None, 3)
    projector.show([], look, 1)
    assert began.wait(20) and projector.is_free(2) and not said
    projector.show([], look, 2)
    assert not projector.is_free(3)
    assert said == ["no video at step 3: two are not written yet; raise --video_every"]
    gate.set()
    projector.close()
