"""Charts: curves made small, numbers on axes, PNGs and SVGs, and the picture that follows a run."""

import math
import re
import struct
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from jaxrl.charts import series, sheets, style, vector, window
from jaxrl.charts.live import DRAWN, LivePlot, Track
from jaxrl.charts.panel import GREY, Band, Bars, Key, Marks, Panel, Sheet, line, linear_below


def size_of(file) -> tuple[int, int]:
    """Width and height of a PNG, whose every chunk is whole."""
    content = file.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and content[-8:-4] == b"IEND"
    return struct.unpack(">II", content[16:24])


def pixels(file) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def has_colour(file, index: int) -> bool:
    """Whether a PNG shows a group's colour, without anything mixed in."""
    hue = style.LIGHT[style.name_of(index)]
    wanted = [int(hue[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((pixels(file) == wanted).all(-1).sum() > 20)


def panel(**more) -> Panel:
    x = np.arange(0, 5_000, 100.0)
    lines = [line(x, np.sin(x / 500), 0), line(x, np.cos(x / 500), 1, "points")]
    return Panel("atari_pong", "return", tuple(lines), **more)


@pytest.mark.parametrize("count", [5, 1_000, 1_001, 50_000])
def test_thinning_keeps_first_last_and_extremes(count):
    x = np.cumsum(np.random.default_rng(0).exponential(size=count))
    y = np.random.default_rng(1).normal(size=count)
    y[count // 3], y[count // 2] = 99.0, -99.0
    xs, ys = series.thin(x, y, 1_000)
    assert len(xs) <= 1_000 and (np.diff(xs) > 0).all()
    assert xs[0] == x[0] and xs[-1] == x[-1] and ys[0] == y[0] and ys[-1] == y[-1]
    assert ys.max() == 99.0 and ys.min() == -99.0
    assert set(zip(xs, ys, strict=True)) <= set(zip(x, y, strict=True))


def test_a_rolling_mean_is_over_the_last_values():
    y = np.array([3.0, 5.0, 10.0, -2.0, 7.0])
    np.testing.assert_allclose(series.rolling(y, 3), [3, 4, 6, 13 / 3, 5], rtol=1e-12)
    np.testing.assert_allclose(series.rolling(y, 1), y, rtol=1e-12)
    assert len(series.rolling(np.empty(0), 3)) == 0


def test_means_over_stretches_keep_the_sum():
    x, y = np.linspace(0, 10, 1_001), np.random.default_rng(0).normal(size=1_001)
    xs, ys, weight = series.binned(x, y, np.ones(1_001), 10)
    assert len(xs) == 10 and weight.sum() == 1_001
    np.testing.assert_allclose((ys * weight).sum(), y.sum(), rtol=1e-9)
    np.testing.assert_allclose(ys[0], y[:100].mean(), rtol=1e-9)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (-0.0, "0"), (950, "950"), (100_000, "100k"), (1_500_000, "1.5M"), (2e8, "200M")]
    + [(-21, "−21"), (0.05, "0.05"), (1e-5, "1e−5"), (-1_250, "−1.25k"), (math.nan, "")],
)
def test_numbers_of_an_axis(value, text):
    assert series.short(value) == text


def test_what_is_not_finite_is_left_out():
    drawn = line([3, 1, 2, 4], [1.0, math.nan, math.inf, -2.0], 0)
    assert drawn is not None and drawn.x.tolist() == [3, 4] and drawn.y.tolist() == [1, -2]
    assert line([1, 2], [math.nan, math.inf], 0) is None
    assert Panel("t", "y").extent == (0.0, 1.0)


def test_a_wide_span_of_positive_values_is_logarithmic():
    assert Panel("t", "y", (line([1, 2], [1.0, 500.0], 0),), scale="auto").resolved_scale == "log"
    assert Panel("t", "y", (line([1, 2], [1.0, 5.0], 0),), scale="auto").resolved_scale == "linear"
    assert Panel("t", "y", (line([1, 2], [0.0, 500.0], 0),), scale="auto").resolved_scale == "linear"
    assert linear_below(np.array([-0.01, 0.02, 1_000.0])) == 0.01
    assert linear_below(np.zeros(3)) == 1.0


def test_colours_differ_and_dashes_go_on_where_they_end():
    for theme in (style.LIGHT, style.DARK):
        assert len(set(theme.values())) == len(theme)
    looks = {(style.name_of(i), str(style.dash_of(i))) for i in range(4 * style.HUES)}
    assert len(looks) == 4 * style.HUES


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (4, 2), (7, 3)])
def test_a_sheet_has_the_size_of_its_panels(tmp_path, count, columns):
    file = tmp_path / "sheet.png"
    keys = Key("atari100k", 0), Key("best", GREY, "best")
    sheets.save_sheet(Sheet("two groups", (panel(),) * count, keys), file)
    rows = -(-count // columns)
    inches = rows * sheets.PANEL[1] + sheets.TITLE + sheets.ROW + 0.1
    wanted = max(columns * sheets.PANEL[0], 6.4) * sheets.DPI, inches * sheets.DPI
    assert size_of(file) == pytest.approx(wanted, abs=1)
    assert has_colour(file, 0) and has_colour(file, 1) and not has_colour(file, 2)
    assert [x.name for x in tmp_path.iterdir()] == ["sheet.png"]


def test_names_of_others_are_drawn_as_they_are(tmp_path):
    """Formulas, missing letters and underscores would raise, warn or vanish."""
    odd = "_$x_{$ <script> 日本\n" + "long" * 50
    keys = tuple(
        Key(odd, i, kind) for i, kind in enumerate(("main", "seed", "area", "dashed", "points", "saved"))
    )
    point = np.array([1.0])
    marks = (Marks(point, point, 2, "best"), Marks(point, point, 3, "saved"))
    drawn = Panel(odd, odd, (line(point, point, 0),), (Band(point, point, point + 1, 0, "bars"),), marks)
    sheets.save_sheet(Sheet(odd, (drawn,), keys), tmp_path / "odd.png")
    assert size_of(tmp_path / "odd.png")
    ET.fromstring(vector.panel_svg(drawn))
    assert style.plain("a$b") == r"a\$b" and len(style.plain(odd).replace(chr(92), "")) <= 61


def test_an_svg_brings_nothing_and_takes_the_page_s_colours():
    text = vector.panel_svg(panel(bands=(Band(np.array([0.0, 9]), np.zeros(2), np.ones(2), 0),)))
    root = ET.fromstring(text)
    assert root.get("viewBox")
    assert "http" not in text and "font-family" not in text and "<style" not in text
    assert "var(--c0)" in text and "var(--muted)" in text
    assert not re.search(r"#[0-9a-f]{6}\b", text.replace("url(#", ""))
    words = [x.text for x in root.iter("text")]
    assert {"atari_pong", "return", "env_steps", "4k"} <= set(words)
    ids = [x.get("id") for x in root.iter() if x.get("id")]
    assert ids and len(ids) == len(set(ids))
    other = vector.panel_svg(panel())
    assert not set(ids) & set(re.findall(r' id="([^"]+)"', other))


def test_bars_say_how_large_their_parts_are(tmp_path):
    values = np.array([[30.0, 60.0, 10.0], [0.0, 1.0, 0.0]])
    bars = Bars("time", ("a", "b"), ("env", "update", "save"), ("c2", "c0", "c4"), values, ("1 min", "1 s"))
    np.testing.assert_allclose(bars.shares, [[0.3, 0.6, 0.1], [0, 1, 0]])
    words = [x.text for x in ET.fromstring(vector.bars_svg(bars)).iter("text")]
    assert {"30 %", "60 %", "10 %", "a", "b", "1 min", "1 s"} <= set(words)
    sheets.save_bars(bars, tmp_path / "time.png")
    assert size_of(tmp_path / "time.png")[0] == pytest.approx(9.2 * sheets.DPI, abs=1)
    nothing = Bars("time", ("a",), ("env",), ("c2",), np.zeros((1, 1)), ("",))
    assert nothing.shares.tolist() == [[0.0]]


def test_a_picture_is_replaced_as_a_whole(tmp_path, monkeypatch):
    file = tmp_path / "live.png"
    file.write_bytes(b"before")
    (tmp_path / ".live.png.new").mkdir()  # in the way of what is written
    with pytest.raises(OSError):
        LivePlot(file, "run").draw()
    assert file.read_bytes() == b"before"


def test_the_live_picture(tmp_path):
    file = tmp_path / "live.png"
    plot = LivePlot(file, "pong-$0")
    plot.draw()
    assert size_of(file) == (900, 400)
    assert not has_colour(file, 0)
    for step in range(0, 2_000, 100):
        row = {
            "train/loss/dyn": 3.0,
            "train/loss/policy": -0.01,
            "train/adv": 9.0,
            "train/loss/rew": math.nan,
        }
        plot.add_row(step, row | {"train/loss/con": None})
        plot.add_episode(step, step / 100)
    plot.add_row(2_000, {"eval_episode/avg_score": 7.0, "eval_episode/min_score": 5.0})
    plot.draw()
    assert size_of(file) == (900, 400)
    assert has_colour(file, 0) and has_colour(file, 1)
    assert [x.name for x in tmp_path.iterdir()] == ["live.png"]


def test_the_live_picture_sums_up_evaluations():
    plot = LivePlot(None, "")
    for score in (4.0, math.nan, 8.0):
        plot.add_evaluation(100, score)
    assert plot._evaluations[100][:3] == (6.0, 4.0, 8.0)
    names = ("eval_episode/avg_score", "eval_episode/min_score", "eval_episode/max_score")
    plot.add_row(100, dict(zip(names, (5.0, 1.0, 9.0), strict=True)))
    plot.add_evaluation(100, 70.0)  # the row knew of it
    assert plot._evaluations[100][:3] == (5.0, 1.0, 9.0)


def test_the_live_picture_smooths_over_twenty_episodes():
    plot = LivePlot(None, "")
    for i in range(60):
        plot.add_episode(i, float(i))
    plot.add_episode(60, math.nan)
    x, y = plot._training.points()
    assert x[-1] == 59 and y[0] == 0 and y[-1] == np.arange(40, 60).mean()


def test_memory_of_the_live_picture_is_bounded():
    track = Track()
    for i in range(30_000):
        track.add(i, i % 10)
    assert len(track.x) < 2 * series.MOST
    x, y = track.points()
    assert len(x) <= DRAWN and x[0] < 100 and x[-1] > 29_800
    np.testing.assert_allclose(y.mean(), 4.5, atol=0.1)
    plot = LivePlot(None, "")
    for i in range(5_000):
        plot.add_evaluation(i, 1.0)
    assert len(plot._evaluations) < 2 * series.MOST and max(plot._evaluations) == 4_999


def test_pictures_are_drawn_in_any_thread(tmp_path, monkeypatch):
    """By the thread of a sink, without a display and without matplotlib's shared state."""
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # others may have imported it
    plots = [LivePlot(tmp_path / f"{i}.png", "") for i in range(3)]
    threads = [threading.Thread(target=plot.draw) for plot in plots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [size_of(plot.path) for plot in plots] == [(900, 400)] * 3
    assert "matplotlib.pyplot" not in sys.modules


def test_without_a_display_there_is_no_window(tmp_path, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if sys.platform != "linux":
        pytest.skip("a display is always there")
    assert window.obstacle()
    said = LivePlot(tmp_path / "live.png", "").show()
    assert said.startswith("no window: ") and str(tmp_path / "live.png") in said
    command = [sys.executable, "-m", "jaxrl.charts.window"]
    alone = subprocess.run(command, capture_output=True, text=True, check=False)
    assert alone.returncode == 2 and len(alone.stderr.splitlines()) == 1
