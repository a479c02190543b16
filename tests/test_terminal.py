"""What the human sees: table, bar, plain lines; and that nothing the human does to them hurts."""

import dataclasses
import fcntl
import io
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading

import pytest
from rich.console import Console

from jaxrl.sinks import Row, ScoreRow, make_sinks
from jaxrl.sinks.row import Banner, Note
from jaxrl.sinks.table import DEFAULT_FILTER, Chooser, Table, clock, format_value, sb3_name
from jaxrl.sinks.terminal import Pace, PlainTerminal, RichTerminal, make_terminal

FLUSH = {
    "fps/env_steps": 85.34,
    "fps/updates": 5.13,
    "replay/items": 104.0,
    "episode/score": -3.0,
    "train/opt/lr": 4e-5,
    "train/opt/loss": 1234.5678,
    "train/opt/grad_norm": 12.7,
    "train/loss/image": 850.1,
    "train/loss/policy": -0.00493,
    "train/ent/action": 1.79,
    "train/adv_mag": 0.1,
    "usage/psutil/proc_ram_gb": 0.7,
}
EVALUATION = {"eval_episode/avg_score": -20.25, "eval_episode/length": 901.0}

TABLE = """\
---------------------------------
| eval/              |          |
|    mean_ep_length  | 901      |
|    mean_reward     | -20.2    |
| rollout/           |          |
|    ep_len_mean     | 780      |
|    ep_rew_mean     | -20.5    |
| time/              |          |
|    agent_steps     | 5000     |
|    buffer_size     | 104      |
|    episodes        | 3        |
|    fps             | 85       |
|    time_elapsed    | 235      |
|    total_timesteps | 20000    |
|    updates_per_s   | 5.13     |
| train/             |          |
|    ent_action      | 1.79     |
|    grad_norm       | 12.7     |
|    image_loss      | 850      |
|    learning_rate   | 4e-05    |
|    loss            | 1.23e+03 |
|    n_updates       | 1250     |
|    policy_loss     | -0.00493 |
---------------------------------
"""


def make_row(step, **scalars):
    return Row(step, step // 4, step // 16, 3, step / 85, scalars)


def make_score(score, length, kind="episode"):
    return ScoreRow(step=150, kind=kind, score=score, length=length, env=0, episode=1)


def rich_terminal(width, *, pattern="", color=False, steps=40_000):
    out = io.StringIO()
    colors = {"force_terminal": True, "color_system": "truecolor"} if color else {}
    console = Console(file=out, width=width, highlight=False, **colors)
    return RichTerminal(out, steps=steps, pattern=pattern, console=console), out


def keys_of(text):
    return re.findall(r"^\|    (\S+)", text, flags=re.MULTILINE)


# Names.


@pytest.mark.parametrize(
    "name, shown",
    {
        "step": "time/total_timesteps",
        "episodes": "time/episodes",
        "wall_s": "time/time_elapsed",
        "updates": "train/n_updates",
        "fps/env_steps": "time/fps",
        "fps/updates": "time/updates_per_s",
        "replay/items": "time/buffer_size",
        "replay/ram_gb": "replay/ram_gb",
        "episode/score": "rollout/ep_rew_mean",
        "episode/length": "rollout/ep_len_mean",
        "episode/success": "rollout/success_rate",
        "eval_episode/avg_score": "eval/mean_reward",
        "eval_episode/length": "eval/mean_ep_length",
        "eval_episode/success_rate": "eval/success_rate",
        "eval_episode/max_score": "eval/max_score",
        "train/opt/lr": "train/learning_rate",
        "train/opt/grad_norm": "train/grad_norm",
        "train/loss/value": "train/value_loss",
        "train/ent/action": "train/ent_action",
        "train/adv_mag": "train/adv_mag",
        "holdout/loss/image": "holdout/image_loss",
        "lonely": "other/lonely",
    }.items(),
)
def test_sb3_names(name, shown):
    assert sb3_name(name) == shown


@pytest.mark.parametrize(
    "value, text",
    [(0.123456, "0.123"), (12345.6, "1.23e+04"), (104.0, "104"), (400_000, "400000"), (math.nan, "nan")]
    + [(-math.inf, "-inf"), (0.0, "0"), (1e300, "1e+300"), (-20.25, "-20.2")],
)
def test_values_as_sb3_prints_them(value, text):
    assert format_value(value) == text


def test_clock():
    assert [clock(s) for s in (0, 12.4, 75, 3725, -3)] == ["0:00", "0:12", "1:15", "1:02:05", "0:00"]


# The table.


@pytest.mark.parametrize("width", [80, 120])
def test_table_has_the_layout_of_sb3(width):
    terminal, out = rich_terminal(width)
    for score in (make_score(-21, 760), make_score(-20, 800), make_score(99, 1, kind="eval_episode")):
        terminal.take(score)
    terminal.take(make_row(20_000, **FLUSH, **EVALUATION))
    assert out.getvalue() == TABLE


def test_table_on_a_narrow_terminal_is_cut_not_wrapped():
    terminal, out = rich_terminal(24)
    terminal.take(make_row(20_000, **FLUSH))
    lines = out.getvalue().splitlines()
    assert all(len(line) <= 24 for line in lines)
    assert lines[1].startswith("| rollout/")


def test_groups_are_coloured_on_a_terminal():
    terminal, out = rich_terminal(80, color=True)
    terminal.take(make_row(20_000, **FLUSH, **EVALUATION))
    colours = dict(re.findall(r"\x1b\[1;(3\d)m\| (\w+)/", out.getvalue()))
    assert sorted(colours.values()) == ["eval", "rollout", "time", "train"]
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert len({len(line) for line in plain.splitlines()}) == 1


def test_successive_tables_line_up():
    terminal, out = rich_terminal(120, pattern=".*")
    terminal.take(make_row(0, **{"train/a_rather_long_name_of_a_metric": 1.0}))
    terminal.take(make_row(100, x=1.0))
    assert len({len(line) for line in out.getvalue().splitlines()}) == 1


def test_rolling_means_cover_the_last_hundred_training_episodes():
    terminal, _ = rich_terminal(80)
    for score in range(150):
        terminal.take(make_score(float(score), 10))
    assert terminal.values(make_row(0))["episode/score"] == sum(range(50, 150)) / 100
    assert "episode/score" not in rich_terminal(80)[0].values(make_row(0))
    assert "episode/success" not in terminal.values(make_row(0))
    for success in (True, False, True, True):
        terminal.take(dataclasses.replace(make_score(0.0, 10), success=success))
    assert terminal.values(make_row(0))["episode/success"] == 0.75


def test_rolling_means_outlive_a_resume(tmp_path, capsys):
    with make_sinks(tmp_path, steps=400, tensorboard=False, terminal_style="off") as sinks:
        for step, score in ((100, 2.0), (150, 4.0), (300, 99.0)):
            sinks.post(ScoreRow(step, "episode", score, 10, 0, 0))
            sinks.post(ScoreRow(step, "eval_episode", -9.0, 10, 0, 0))
    with make_sinks(tmp_path, steps=400, resume_step=200, tensorboard=False) as sinks:
        sinks.write(make_row(300))
    assert "score 3.0" in capsys.readouterr().out


def test_two_metrics_of_one_name_are_both_shown():
    values = {"train/opt/loss": 1.0, "train/loss": 2.0}
    text = "\n".join(line for _, line in Table().lines(values, Chooser(".*")))
    assert re.search(r"loss +\| 1 ", text) and re.search(r"train/loss +\| 2 ", text)


def test_nothing_chosen_prints_nothing():
    terminal, out = rich_terminal(80, pattern="no_such_metric")
    terminal.take(make_row(100, **FLUSH))
    assert out.getvalue() == ""


# The filter.


@pytest.mark.parametrize(
    "pattern, keys",
    [
        ("train/loss/", ["image_loss", "policy_loss"]),  # the metric's own name
        ("_loss$", ["image_loss", "policy_loss"]),  # its name in the table
        ("^time/fps$|mean_reward", ["mean_reward", "fps"]),
        ("usage", ["psutil_proc_ram_gb"]),
    ],
)
def test_filter_matches_either_name(pattern, keys):
    terminal, out = rich_terminal(80, pattern=pattern)
    terminal.take(make_row(20_000, **FLUSH, **EVALUATION))
    assert keys_of(out.getvalue()) == keys


def test_filter_of_everything_shows_everything():
    terminal, out = rich_terminal(80, pattern=".*")
    terminal.take(make_row(20_000, **FLUSH, **EVALUATION))
    assert len(keys_of(out.getvalue())) == len(FLUSH) + len(EVALUATION) + 5


def test_the_default_hides_the_rest():
    assert not any(map(Chooser(""), ["train/adv_mag", "usage/psutil/proc_ram_gb", "replay/ram_gb"]))
    assert all(map(Chooser(""), ["sinks/tensorboard_dropped", "train/loss/dyn", "episode/score"]))
    assert Chooser(DEFAULT_FILTER).chosen is Chooser(".*").chosen is False


@pytest.mark.parametrize("options", [{"terminal_filter": "("}, {"terminal_style": "pretty"}])
def test_a_bad_option_is_named_before_any_file_is_touched(tmp_path, options):
    with pytest.raises(ValueError, match=r"terminal\.(filter='\('|style='pretty') must be") as caught:
        make_sinks(tmp_path / "run", steps=400, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


# Plain lines.


def plain_lines(pattern=""):
    out = io.StringIO()
    terminal = PlainTerminal(out, steps=400, pattern=pattern)
    terminal.take(Banner(("jaxrl atari_pong", "1 update per 16 env_steps")))
    terminal.take(Note("compiling update [1/2] ..."))
    terminal.take(make_row(0))
    terminal.take(make_row(100, **{"fps/env_steps": 85.34, "train/opt/loss": 1234.5678}))
    terminal.take(make_score(-21, 760))
    terminal.take(make_row(200, **{"fps/env_steps": 85.34, "train/opt/loss": 0.5}, **EVALUATION))
    terminal.take(make_row(400, **EVALUATION))
    return out.getvalue().splitlines()


def test_plain_lines():
    assert plain_lines() == [
        "jaxrl atari_pong",
        "1 update per 16 env_steps",
        "compiling update [1/2] ...",
        "step   0/400   0%  updates 0",
        "step 100/400  25%  updates 6  fps 85  loss 1.23e+03  eta 0:04",
        "step 200/400  50%  updates 12  fps 85  score -21.0 (eval -20.2)  loss 0.5  eta 0:02",
        "step 400/400 100%  updates 25  score -21.0 (eval -20.2)  eta 0:00",
    ]


def test_plain_lines_show_what_was_asked_for():
    lines = plain_lines("loss|mean_reward")
    assert lines[3:] == [
        "step   0/400   0%",
        "step 100/400  25%  train/opt/loss 1.23e+03  eta 0:04",
        "step 200/400  50%  eval_episode/avg_score -20.2  train/opt/loss 0.5  eta 0:02",
        "step 400/400 100%  eval_episode/avg_score -20.2  eta 0:00",
    ]


def test_evaluation_alone_is_shown_too():
    out = io.StringIO()
    PlainTerminal(out, steps=400).take(make_row(0, **EVALUATION))
    assert out.getvalue() == "step   0/400   0%  updates 0  eval -20.2\n"


def test_a_run_without_steps_or_time_does_not_divide_by_zero():
    out = io.StringIO()
    terminal = PlainTerminal(out, steps=0)
    for _ in range(3):
        terminal.take(Row(0, 0, 0, 0, 0.0, {}))
    assert out.getvalue() == "step 0/0   0%  updates 0\n" * 3


def test_pace_forgets_the_interval_that_compiled():
    pace = Pace(window=10, gap_s=0.1)
    pace.add(0.0, 0, 0)
    assert math.isnan(pace.eta_s(400))
    pace.add(60.0, 100, 10)
    assert pace.eta_s(300) == pytest.approx(180)
    pace.add(61.0, 200, 20)
    assert pace.rates() == pytest.approx((100, 10))
    assert pace.eta_s(200) == pytest.approx(2)


# Which of them.


class Tty(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    "stream, style, term, kind",
    [
        (Tty(), "auto", "xterm", RichTerminal),
        (Tty(), "auto", "dumb", PlainTerminal),
        (Tty(), "plain", "xterm", PlainTerminal),
        (io.StringIO(), "auto", "xterm", PlainTerminal),
        (io.StringIO(), "rich", "xterm", RichTerminal),
        (Tty(), "off", "xterm", type(None)),
        (None, "auto", "xterm", type(None)),
    ],
)
def test_style(monkeypatch, stream, style, term, kind):
    monkeypatch.setenv("TERM", term)
    assert type(make_terminal(stream, style=style, steps=400)) is kind


def test_rich_without_a_terminal_prints_tables_and_no_bar(tmp_path, capsys):
    with make_sinks(tmp_path, steps=400, tensorboard=False, terminal_style="rich") as sinks:
        sinks.progress(100, 400)
        sinks.write(make_row(100, **FLUSH))
    out = capsys.readouterr().out
    assert "|    total_timesteps | 100" in out
    assert "eta" not in out and "\x1b" not in out


@pytest.mark.parametrize(
    "width, shown", [(120, "200/400"), (80, "evaluating the policy"), (56, "env_steps/s"), (30, "50%")]
)
def test_the_bar_keeps_its_room(width, shown):
    terminal, out = rich_terminal(width)
    terminal._bar_pace.add(0.0, 0, 0)
    terminal._bar_pace.add(1.0, 199, 10)
    terminal.progress(200, 400, {"updates": 10, "phase": "evaluating the policy"})
    terminal._console.print(terminal.bar())
    [line] = out.getvalue().splitlines()
    assert shown in line and "eta 0:01" in line
    assert line.count("━") + line.count("╸") + line.count("╺") >= 8


# A real terminal, a closed pipe, no output at all.

CHILD = """
import pathlib, sys, time
from jaxrl.sinks import Row, make_sinks
with make_sinks(pathlib.Path(sys.argv[1]), steps=400, tensorboard=False) as sinks:
    sinks.banner(["jaxrl atari_pong"])
    sinks.progress(0, 400, {"updates": 0, "phase": "compiling"})
    for step in (100, 200, 300, 400):
        time.sleep(0.3)
        sinks.progress(step, 400, {"updates": step // 16, "phase": "training"})
        sinks.write(Row(step, step // 4, step // 16, 0, step / 85, {"train/opt/loss": 1.23}))
        if step == 200:
            print("words of another library", file=sys.stderr)
sys.exit(7)
"""


def child(tmp_path, **options):
    env = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": os.getcwd(), "COLUMNS": "", "LINES": ""}
    return subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], env=env, **options)


def rows_written(tmp_path):
    return (tmp_path / "metrics.jsonl").read_text().count("\n")


def screen_of(output, width):
    """What a terminal shows after `output`: enough of one for carriage returns and erased lines."""
    lines, column = [""], 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x1b]", output):
        if token == "\n":
            lines.append("")
        elif token == "\r":
            column = 0
        elif token == "\x1b[2K":
            lines[-1] = ""
        elif token == "\x1b[1A":
            raise AssertionError("the bar wrapped")
        elif not token.startswith("\x1b"):
            assert column < width
            lines[-1] = lines[-1][:column].ljust(column) + token + lines[-1][column + 1 :]
            column += 1
    return lines


def test_tables_and_foreign_words_do_not_disturb_the_bar(tmp_path):
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    process = child(tmp_path, stdin=there, stdout=there, stderr=there)
    os.close(there)
    output = b""
    while True:
        try:
            output += os.read(here, 65536)
        except OSError:  # Linux says EIO when the other side is closed
            break
    os.close(here)
    assert process.wait() == 7
    lines = screen_of(output.decode(), 80)
    assert "jaxrl atari_pong" in lines[1]
    assert lines.count("words of another library") == 1
    assert sum(line.startswith("|    total_timesteps | ") for line in lines) == 4
    bars = [line for line in lines if "eta" in line]
    assert bars == [line for line in lines[-3:] if "eta" in line]  # one, at the end
    assert "100%" in bars[0] and "eta 0:00" in bars[0] and "━━━" in bars[0]
    assert output.decode().rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path):
    process = child(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"jaxrl atari_pong\n"
    process.stdout.close()
    complaint = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 7
    assert rows_written(tmp_path) == 4
    assert "terminal is off" in complaint and "BrokenPipeError" in complaint
    assert "Traceback" not in complaint and "Exception ignored" not in complaint


def test_a_terminal_that_vanishes_does_not_end_the_run(tmp_path):
    here, there = pty.openpty()
    process = child(tmp_path, stdout=there, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    os.close(there)
    os.read(here, 65536)
    os.close(here)
    assert process.wait() == 7
    assert rows_written(tmp_path) == 4


def test_a_blocked_terminal_does_not_stop_the_run(tmp_path):
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"x" * 4096)  # full: the next write blocks until somebody reads
    process = child(tmp_path, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert process.wait(timeout=15) == 7
    assert rows_written(tmp_path) == 4
    assert "terminal hangs" in process.stderr.read().decode()
    process.stderr.close()
    os.close(reader)


@pytest.mark.parametrize("stream", ["closed", "none"])
def test_no_output_at_all(tmp_path, monkeypatch, stream):
    gone = io.StringIO()
    gone.close()
    monkeypatch.setattr(sys, "stdout", gone if stream == "closed" else None)
    with make_sinks(tmp_path, steps=400, tensorboard=False) as sinks:
        sinks.banner(["jaxrl"])
        sinks.write(make_row(0))
    assert rows_written(tmp_path) == 1
    assert not any(thread.name == "sinks" for thread in threading.enumerate())
