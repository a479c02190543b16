"""python -m jaxrl.report: the page and its pictures, from run directories made of a few JSON lines."""

import base64
import gzip
import html.parser
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from jaxrl import exits, reading
from jaxrl.charts.series import MOST
from jaxrl.config import Config, to_dict
from jaxrl.report import films, groups, machinery, record, scoring, shapes, times
from jaxrl.report.__main__ import main
from jaxrl.report.foreign import Curve as Foreign

VOID = {"br", "hr", "img", "link", "meta", "source"}
EVIL = '" onload="y" <script>alert("x")</script>'


class Page(html.parser.HTMLParser):
    """A page that was read: raises where an element is closed that is not open."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def write_run(
    path: pathlib.Path, task="toy_catch", seed=0, preset="catch", config=None, **note
) -> pathlib.Path:
    """A run of 1,000 env_steps with rows every 100, two evaluations and 40 episodes."""
    path.mkdir(parents=True)
    settings = to_dict(Config()) | {"task": task, "seed": seed, "steps": 1_000, "logdir": str(path)}
    (path / "config.json").write_text(json.dumps(settings | (config or {})))
    start = {"time": "2026-01-02T03:04:05+0000", "step": 0, "argv": [f"--config={preset}", f"--seed={seed}"]}
    facts = {
        "id": "abc",
        "config": preset,
        "exit": "done",
        "starts": [start],
        "git": {"commit": "0123456789abcdef"},
    }
    facts |= {"device": {"kind": "NVIDIA H200", "count": 1}, "versions": {"jax": "0.10.2"}}
    (path / "run.json").write_text(json.dumps(facts | note))
    rows = []
    for step in range(0, 1_001, 100):
        row = {"step": step, "updates": 20 * step, "episodes": step // 25, "wall_s": 10 + step / 10}
        row |= {"train/loss/dyn": 5.0 - step / 500 + seed, "train/opt/loss": 7.0 + seed, "usage/rss_gb": 1.5}
        if step:
            row |= {"fps/env_steps": 10.0 if step <= 500 else 20.0, "time/env_s": 2.0, "time/update_s": 6.0}
        if step in (500, 1_000):
            row |= {"eval_episode/avg_score": step / 100 + 2 * seed, "eval_episode/std_score": 0.5}
        rows.append(row)
    write_lines(path / "metrics.jsonl", rows)
    episodes = [{"step": 25 * i, "episode/score": float(i) + 10 * seed, "env": 0} for i in range(1, 41)]
    write_lines(path / "scores.jsonl", episodes)
    saved = {"event": "saved", "bytes": 9_134_582, "seconds": 0.25, "run_s": 60, "reason": "interval"}
    log = [saved | {"store": "periodic", "name": "400", "step": 400, "score": None}]
    log.append(saved | {"store": "best", "name": "500", "step": 500, "score": 5.0, "reason": "best"})
    write_lines(path / "checkpoint_log.jsonl", log)
    return path


def write_lines(file: pathlib.Path, rows) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def records(*paths: pathlib.Path) -> list[record.Record]:
    return [record.read(reading.open_past(path)) for path in paths]


def row_of(page: str, name: str) -> list[str]:
    """The cells of the first row of a table whose head is `name`."""
    found = re.search(rf"<tr><th scope=\"row\"[^>]*>{re.escape(name)}</th>(.*?)</tr>", page)
    assert found, name
    return [re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", found[1])]


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures without anything in them, which are made at once."""
    for name in ("save_sheet", "save_bars"):
        monkeypatch.setattr(f"jaxrl.charts.sheets.{name}", lambda _, path: path.write_bytes(b"PNG"))
    for name in ("panel_svg", "bars_svg"):
        monkeypatch.setattr(f"jaxrl.charts.vector.{name}", lambda *_: '<svg viewBox="0 0 1 1"></svg>')


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two seeds of one preset and a run of another task: (page, folder, lines that were printed)."""
    root = tmp_path_factory.mktemp("made")
    write_run(root / "runs" / "catch0")
    write_run(root / "runs" / "catch1", seed=1)
    write_run(
        root / "runs" / "reach", task="toy_reach", preset="reach", config={"opt.lr": 3e-3}, exit="stopped"
    )
    (root / "runs" / "catch0" / "checkpoints" / "best" / "500").mkdir(parents=True)
    (root / "runs" / "catch0" / "checkpoints" / "best" / "500" / "manifest.json").write_text("{}")
    command = [
        sys.executable,
        "-m",
        "jaxrl.report",
        str(root / "runs"),
        f"--out={root / 'out'}",
        "--title=Two & more",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=pathlib.Path(__file__).parents[1]
    )
    assert not done.stderr
    return (root / "out" / "report.html").read_text(), root / "out", done.stdout


def test_the_page_is_whole_and_needs_no_other_file(made):
    text, _, _ = made
    page = Page(text)
    assert text.startswith("<!doctype html>") and {"html", "head", "body", "main"} <= {
        tag for tag, _ in page.tags
    }
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    for attrs in (attrs for _, attrs in page.tags):
        assert not any(name.startswith("on") for name in attrs)
        assert attrs.get("src", "data:").startswith("data:")
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs["href"] for attrs in page.all("a")]
    assert len(links) >= 6 and all(link[0] == "#" and link[1:] in ids for link in links)
    used = set(re.findall(r"var\((--[\w-]+)\)", text))
    assert used and used <= set(re.findall(r"(--[\w-]+):", text))


def test_the_page_says_what_was_run_and_what_came_of_it(made):
    text, _, _ = made
    page = Page(text)
    assert (
        "Two & more" in page.text
        and "3 runs · 2 tasks · seeds 0, 1 · 2 groups of settings · NVIDIA H200" in page.text
    )
    speed = 1_000 / (500 / 10 + 500 / 20)
    cells = ["toy_catch", "1", "done", "1,000", "20,000", "40", "1 min 50 s", shapes.figure(speed)]
    cells += [shapes.figure(np.arange(1, 41).mean() + 10), "12", "12", "1,000"]
    assert row_of(text, "catch1") == cells
    assert row_of(text, "reach")[2] == "stopped"
    for words in ("NVIDIA H200", "0123456789ab", "jax 0.10.2", "--config=reach", "2026-01-02 03:04:05 UTC"):
        assert words in page.text
    assert "2 tasks: their scores have different scales, and are never averaged here." in page.text
    assert "KL(posterior || prior)" in page.text  # the glossary's words about train/loss/dyn


def test_settings_and_checkpoints_are_told(made):
    text, _, _ = made
    assert row_of(text, "task") == ["toy_catch", "toy_catch", "toy_reach"]
    assert row_of(text, "opt.lr") == ["4e-05", "4e-05", "0.003"]
    assert "train_ratio" not in Page(text).text  # is the same everywhere, and the default
    assert row_of(text, "500") == ["best", "best", "5", "9.1 MB", "0.25", "1 min", "yes"]
    assert row_of(text, "400") == ["periodic", "interval", "–", "9.1 MB", "0.25", "1 min", "no"]


def test_pictures_lie_beside_the_page_and_all_files_are_told(made):
    _, out, printed = made
    names = ["curves.png", "losses.png", "speed.png", "time.png", "report.html"]
    assert [line for line in printed.splitlines() if str(out) in line] == [
        f"jaxrl: {out / name}" for name in names
    ]
    assert sorted(x.name for x in out.iterdir()) == sorted(names)
    for name in names[:-1]:
        content = (out / name).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 5_000
    assert re.search(r"catch1 +toy_catch +1 +done +1,000 +20,000", printed)


def test_panels_have_the_numbers_of_the_rows(tmp_path):
    found = groups.grouped(records(write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1)))
    assert [(group.label, len(group.records)) for group in found] == [("catch", 2)]
    (panel,) = scoring.learning(found, []).panels
    assert panel.title == "toy_catch" and "mean of the last 4 episodes" in panel.x
    main_line, points = (next(x for x in panel.lines if x.kind == kind) for kind in ("main", "points"))
    np.testing.assert_allclose([main_line.x[-1], main_line.y[-1]], [1_000, np.mean([37, 38, 39, 40]) + 5])
    assert sum(x.kind == "seed" for x in panel.lines) == 2
    area, bars = panel.bands
    np.testing.assert_allclose([area.low[-1], area.high[-1]], [38.5, 48.5])
    assert points.x.tolist() == [500, 1_000] and points.y.tolist() == [6, 11]
    assert bars.low.tolist() == [5, 10] and bars.high.tolist() == [7, 12]
    stars = [(x.x.tolist(), x.y.tolist()) for x in panel.marks if x.kind == "best"]
    assert stars == [([500], [5]), ([500], [7])]
    assert [x.x.tolist() for x in panel.marks if x.kind == "saved"] == [[400], [400]]
    titles = {x.title: x for x in machinery.losses(found).panels}
    assert list(titles) == ["total loss", "dyn"] and titles["dyn"].y == "loss, nats"
    np.testing.assert_allclose(next(x for x in titles["dyn"].lines if x.kind == "main").y[-1], 3.5)
    (over_time,) = scoring.by_time(found).panels
    assert "wall time, s" in over_time.x and over_time.last == pytest.approx(110)


def test_scores_over_time_have_a_unit_that_fits(tmp_path):
    path = write_run(tmp_path / "a")
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    write_lines(path / "metrics.jsonl", [row | {"wall_s": 18 * row["step"]} for row in rows])
    (panel,) = scoring.by_time(groups.grouped(records(path))).panels
    assert "wall time, h" in panel.x
    points = next(x for x in panel.lines if x.kind == "points")
    np.testing.assert_allclose(points.x, [2.5, 5.0])


def test_a_single_run_shows_its_evaluations_deviation(tmp_path):
    (panel,) = scoring.learning(groups.grouped(records(write_run(tmp_path / "a"))), []).panels
    assert [x.kind for x in panel.lines] == ["main", "points"] and len(panel.bands) == 1
    np.testing.assert_allclose(panel.bands[0].high - panel.bands[0].low, 1.0)


def test_success_where_it_is_defined(undrawn, tmp_path):
    path = write_run(tmp_path / "a")
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    write_lines(path / "metrics.jsonl", [x | {"eval_episode/success_rate": 0.75} for x in rows])
    (panel,) = scoring.success(groups.grouped(records(path))).panels
    assert panel.scale == "percent" and set(panel.lines[0].y) == {0.75}
    assert not scoring.success(groups.grouped(records(write_run(tmp_path / "b")))).panels
    assert main([str(path), f"--out={tmp_path / 'out'}"]) == 0
    assert (tmp_path / "out" / "success.png").exists() and "75 %" in (
        tmp_path / "out" / "report.html"
    ).read_text()


def test_what_makes_a_group(tmp_path):
    paths = [write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=5, task="toy_reach")]
    paths.append(write_run(tmp_path / "c", config={"opt.lr": 0.1, "eval_eps": 99}))
    paths.append(write_run(tmp_path / "d", config={"eval_eps": 7, "from_the_future": [1]}))
    paths.append(write_run(tmp_path / "e", preset="reach"))
    found = groups.grouped(records(*paths))
    assert [[x.past.name for x in group.records] for group in found] == [["a", "b"], ["c"], ["d"], ["e"]]
    own = ["catch, opt.lr=4e-05", "catch, opt.lr=0.1", "catch, opt.lr=4e-05, from_the_future=[1]", "reach"]
    assert [group.label for group in found] == own and len({group.colour for group in found}) == 4


def test_of_many_tasks_only_one_loss_is_drawn(tmp_path):
    paths = [write_run(tmp_path / str(i), task=f"toy_{i}") for i in range(5)]
    found = groups.grouped(records(*paths))
    charts = machinery.losses(found)
    assert [x.title for x in charts.panels] == [f"toy_{i}: total loss" for i in range(5)] and charts.notes
    assert [x.title for x in scoring.learning(found, []).panels] == [f"toy_{i}" for i in range(5)]
    assert not scoring.by_time(found).panels and len(machinery.speed(found).panels) == 2


def test_what_should_not_be_compared_is_said(tmp_path):
    paths = [write_run(tmp_path / "a"), write_run(tmp_path / "b", git={"commit": "ffff"})]
    paths.append(write_run(tmp_path / "c", seed=1, device={"kind": "cpu", "count": 4}))
    said = groups.cautions(groups.grouped(records(*paths)))
    assert any("seed 0 more than once" in x for x in said)
    assert any("2 commits" in x for x in said) and any("4 x cpu, NVIDIA H200" in x for x in said)
    assert not groups.cautions(groups.grouped(records(paths[0])))


def test_time_is_split_by_phases(tmp_path):
    (found,) = records(write_run(tmp_path / "a"))
    parts = times.split(found)
    assert parts["environment"] == 20 and parts["update"] == 60 and parts["set-up"] == 30
    bars = times.bars(groups.grouped([found]), {found.past.path: "a"})
    assert (
        bars is not None
        and bars.parts == ("set-up", "environment", "update")
        and bars.notes == ("1 min 50 s",)
    )


def test_nothing_of_a_run_becomes_markup(tmp_path):
    argv = ['--task="><img src=x onerror=alert(1)>', "--opt.lr=&amp;<b>"]
    path = write_run(
        tmp_path / EVIL.replace("/", "_"),
        preset=EVIL,
        task=EVIL,
        config={EVIL: EVIL},
        starts=[{"argv": argv, "changed": {EVIL: EVIL}, "time": EVIL, "step": EVIL}],
        lineage=[{"path": EVIL}],
        versions={EVIL: EVIL},
        host=EVIL,
    )
    (path / "videos").mkdir()
    (path / "videos" / '"><img src=x>.gif').write_bytes(b"GIF89a")
    write_run(tmp_path / "other", preset=EVIL)
    write_lines(path / "checkpoint_log.jsonl", [{"event": "saved", "step": 5, "store": EVIL, "name": EVIL}])
    assert main([str(tmp_path), f"--out={tmp_path / 'out'}", f"--title={EVIL}"]) == 0
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    assert not page.all("script") and not page.all("b")
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert [x["src"][:10] for x in page.all("img")] == ["data:image"]
    assert page.text.count('alert("x")') > 5 and "&amp;<b>" in page.text


def test_lines_that_cannot_be_read_are_told(undrawn, tmp_path, capsys):
    path = write_run(tmp_path / "a")
    lines = (path / "metrics.jsonl").read_text().splitlines()
    huge = json.dumps({"step": 10**400, "train/loss/dyn": 1})
    odd = '{"step": 650, "train/loss/dyn": 1' + "0" * 400 + ', "wall_s": null, "fps/env_steps": NaN}'
    (path / "metrics.jsonl").write_text(
        "\n".join([*lines[:5], "{torn", *lines[5:7], huge, odd, *lines[7:]]) + "\n"
    )
    assert main([str(path), f"--out={tmp_path / 'out'}"]) == 0
    told = f"{path / 'metrics.jsonl'}: 1 line cannot be read and was left out"
    assert (
        told in capsys.readouterr().out and told in Page((tmp_path / "out" / "report.html").read_text()).text
    )
    (found,) = records(path)
    assert found.step == 1_000 and found.of("train/loss/dyn").values.max() == 5


@pytest.mark.parametrize("rows", [0, 1])
def test_a_run_that_has_hardly_begun(undrawn, tmp_path, rows, capsys):
    path = write_run(tmp_path / "a", exit=None)
    for name in ("metrics.jsonl", "scores.jsonl", "checkpoint_log.jsonl"):
        lines = (path / name).read_text().splitlines(keepends=True)
        (path / name).write_text("".join(lines[:rows]) if name == "metrics.jsonl" else "")
    assert main([str(path)]) == 0
    text = Page((path / "plots" / "report.html").read_text()).text
    assert "0 of 1,000" in text and "No episode is finished yet." in text and "died" in text
    assert ("a: has no rows yet" in capsys.readouterr().out) == (not rows)


def test_files_that_hold_anything(undrawn, tmp_path):
    """run.json and the log of checkpoints may have been edited."""
    path = write_run(
        tmp_path / "a", git=[1], device="x", versions=3, starts={"a": 1}, lineage=[1, {"run": None}]
    )
    note = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(
        json.dumps(note | {"id": {}, "host": None, "compile_s": "x", "started": 5})
    )
    log = [
        {"event": "saved", "step": step, "store": store}
        for step in (5, 10**400)
        for store in ([], "periodic")
    ]
    write_lines(
        path / "checkpoint_log.jsonl", [*log, {"event": "saved", "step": 5, "score": "x", "bytes": []}]
    )
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(
        json.dumps(config | {"steps": "x", "seed": None, "task": ["t"], "opt.lr": {}})
    )
    assert main([str(path)]) == 0
    assert Page((path / "plots" / "report.html").read_text())
    (path / "run.json").write_text("{")
    assert main([str(path)]) == 0
    assert "run.json: cannot be read" in Page((path / "plots" / "report.html").read_text()).text


def test_where_the_page_goes(undrawn, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, second = write_run(tmp_path / "runs" / "a"), write_run(tmp_path / "runs" / "b", seed=1)
    assert main([str(first), str(first)]) == 0 and (first / "plots" / "report.html").exists()
    assert main([str(tmp_path / "runs"), str(second)]) == 0 and (tmp_path / "report" / "report.html").exists()
    assert "2 runs · 1 task" in (tmp_path / "report" / "report.html").read_text()
    assert main([str(first), f"--out={first / 'config.json'}"]) == exits.BAD_CONFIG
    assert "--out=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{}/none"], "no such folder"),
        (["{}/empty"], "holds no run"),
        (["{}/run", "{}/bad.json.gz"], "bad.json.gz: is no JSON"),
        (["{}/run", "{}/run/metrics.jsonl"], "metrics.jsonl: is no JSON"),
        (["{}/peer.json.gz"], "no run is named beside the peers"),
        (["{}/run", "--tittle=x"], "--tittle=x: unknown option; did you mean --title?"),
        ([], "required: RUN"),
    ],
)
def test_what_cannot_be_used_ends_with_one_line(tmp_path, capsys, words, said):
    write_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json.gz").write_bytes(gzip.compress(b"{"))
    (tmp_path / "peer.json.gz").write_bytes(gzip.compress(json.dumps([peer()]).encode()))
    assert main([word.format(tmp_path) for word in words]) == exits.BAD_CONFIG
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


def test_a_damaged_run_among_others_is_passed_over(undrawn, tmp_path, capsys):
    write_run(tmp_path / "runs" / "a")
    (write_run(tmp_path / "runs" / "b") / "config.json").write_text("{")
    assert main([str(tmp_path / "runs"), f"--out={tmp_path / 'out'}"]) == 0
    assert "config.json cannot be read" in capsys.readouterr().out
    assert main([str(tmp_path / "runs" / "b")]) == exits.BAD_CONFIG


def test_a_full_disk_ends_with_one_line(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxrl.charts.sheets.replace", full)
    assert main([str(write_run(tmp_path / "a"))]) == exits.IO
    assert capsys.readouterr().err.endswith("No space left on device\n")


def peer(task="toy_catch", seed=0) -> dict:
    return {
        "task": task,
        "method": "theirs",
        "seed": seed,
        "xs": [0, 500, 1_000],
        "ys": [0.0, 2.0, 4.0 + seed],
    }


def test_curves_of_peers_lie_beside_ours(undrawn, tmp_path, capsys):
    found = groups.grouped(records(write_run(tmp_path / "a")))
    theirs = [
        Foreign("theirs", "toy_catch", seed, [0, 500, 1_000], [0.0, 2.0, 4.0 + seed]) for seed in (0, 1)
    ]
    charts = scoring.learning(found, theirs)
    (dashed,) = [x for x in charts.panels[0].lines if x.kind == "dashed"]
    np.testing.assert_allclose(dashed.y[[0, -1]], [0, 4.5])
    assert dashed.colour not in {group.colour for group in found}
    assert any("theirs" in key.label and key.kind == "dashed" for key in charts.keys)
    runs = [peer(), peer(seed=1), peer("atari_pong")]
    (tmp_path / "peer.json.gz").write_bytes(gzip.compress(json.dumps(runs).encode()))
    assert main([str(tmp_path / "a"), str(tmp_path / "peer.json.gz")]) == 0
    assert "theirs (peer" in Page((tmp_path / "a" / "plots" / "report.html").read_text()).text
    assert "curves of peers on 1 task that no run has are not drawn" in capsys.readouterr().out


def test_long_runs_are_thinned(tmp_path):
    path = write_run(tmp_path / "a")
    count = 5_000
    values = np.random.default_rng(0).uniform(1, 2, count)
    values[1_234] = 17.0
    write_lines(
        path / "metrics.jsonl", ({"step": i, "train/loss/dyn": x} for i, x in enumerate(values.tolist()))
    )
    write_lines(
        path / "scores.jsonl", ({"step": i, "episode/score": x} for i, x in enumerate(values.tolist()))
    )
    found = groups.grouped(records(path))
    (panel,) = machinery.losses(found).panels
    pale, means = panel.lines
    assert (pale.kind, means.kind) == ("seed", "main") and len(pale.x) <= MOST and len(means.x) <= 200
    assert pale.y.max() == 17 and pale.x[0] == 0 and pale.x[-1] == count - 1
    np.testing.assert_allclose(means.y.mean(), values.mean(), rtol=1e-3)
    assert main([str(path)]) == 0
    assert (path / "plots" / "report.html").stat().st_size < 300_000


def test_videos_are_inside_as_long_as_there_is_room(undrawn, tmp_path, monkeypatch):
    path = write_run(tmp_path / "a b")
    for folder, names in (
        ("videos", ("1.mp4", "2.mp4", "3.gif", "4.webp", ".5.mp4", "x.txt")),
        ("evaluations", ("9.gif",)),
    ):
        (path / folder).mkdir()
        for i, name in enumerate(names):
            (path / folder / name).write_bytes(bytes([i]) * 100)
    assert [x.name for x in films.newest(reading.open_past(path))] == ["4.webp", "3.gif", "2.mp4", "9.gif"]
    monkeypatch.setattr(films, "MOST", 250)
    assert main([str(path)]) == 0
    page = Page((path / "plots" / "report.html").read_text())
    sources = [x["src"] for tag in ("video", "img") for x in page.all(tag)]
    assert sources == [
        f"data:image/{kind};base64," + base64.b64encode(bytes([i]) * 100).decode()
        for kind, i in (("webp", 3), ("gif", 2))
    ]
    links = [x["href"] for x in page.all("a") if x["href"][0] != "#"]
    assert links == ["../videos/2.mp4", "../evaluations/9.gif"] and "2 videos beyond" in page.text
    monkeypatch.undo()
    assert main([str(path), f"--out={tmp_path / 'out'}"]) == 0
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert [x["src"][:22] for x in page.all("video")] == ["data:video/mp4;base64,"]


def test_an_atari_run_has_the_tables_of_its_benchmark(undrawn, tmp_path, capsys):
    path = write_run(tmp_path / "a", task="atari_pong", preset="atari100k")
    assert main([str(path)]) == 0
    assert "Atari-100k" in capsys.readouterr().out
    assert "Benchmark scores" in Page((path / "plots" / "report.html").read_text()).text


def test_it_costs_no_import_of_jax():
    heavy = "{'jax', 'flax', 'envpool', 'matplotlib.pyplot'}"
    script = f"import sys, jaxrl.report.making; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (1_234_567.8, "1,234,568"),
        (-20.5, "−20.5"),
        (0.12345, "0.1235"),
        (12.3456, "12.35"),
    ]
    + [(float("nan"), "–"), (1e-7, "1e-07"), (100.0, "100")],
)
def test_figures(value, text):
    assert shapes.figure(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.25, "0.25 s"), (59.4, "59 s"), (161, "2 min 41 s"), (7_200, "2 h"), (93_600, "1 d 2 h")],
)
def test_durations(seconds, text):
    assert shapes.duration(seconds) == text
