"""The command line: what a user types, and what the user is told."""

import ast
import pathlib
import random
import re
import string
import subprocess
import sys
import time
import tokenize
import tomllib
import zipfile

import hypothesis
import pytest
from hypothesis import strategies as st

from jaxrl import flags
from jaxrl.config import Config, ConfigError, leaves, replace, show, to_dict

ROOT = pathlib.Path(flags.__file__).parents[1]
LEAVES = leaves(Config())
SWITCHES = [name for name, item in LEAVES.items() if item.type is bool]
PRESETS = [
    "atari",
    "atari100k",
    "atari100k_drq",
    "atari100k_v1",
    "catch",
    "debug",
    "dmc_vision",
    "mjx_cartpole",
]
PRESETS += ["reach", "so101_lift"]


def refusal(*argv):
    with pytest.raises(ConfigError) as error:
        flags.parse(list(argv))
    text = str(error.value)
    assert "\n" not in text and len(text) < 500
    return text


def another(name):
    """A value of the leaf that is not its default and breaks no rule."""
    fitting = {
        "task": "toy_catch",
        "model.bins": 63,
        "model.deter": 64,
        "model.depth": 16,
        "model.blocks": 4,
        "env.size": 96,
        "loss.return_low": 6.0,
        "loss.return_high": 94.0,
        "opt.anneal": 5_000,
        "terminal.filter": "loss|score (a b)",
        "runtime.compile_cache": "some/folder",
        "logdir": "läufe/a=b",
        "profile": "3:7",
        "seeds": "0-4",
    }
    item = LEAVES[name]
    if name in fitting:
        return fitting[name]
    if item.type is bool:
        return not item.default
    if item.choices:
        return next(choice for choice in item.choices if choice != item.default)
    if item.type is str:
        return item.default + "x"
    return item.default + 1 if item.type is int else item.default / 2 + 0.25


@pytest.mark.parametrize("name", LEAVES)
def test_every_leaf_is_a_flag(name):
    value = another(name)
    text = value if isinstance(value, str) else show(value)
    command = flags.parse([f"--{name}={text}"])
    assert command.given == {name: value}
    assert command.config == replace(flags.load_preset("atari100k"), {name: value})
    assert (command.action, command.preset, command.text) == ("train", "atari100k", "")
    if LEAVES[name].type is not bool:
        assert flags.parse([f"--{name}", text]).given == {name: value}


def test_nothing_given_is_the_preset_itself():
    command = flags.parse([])
    assert command.config == flags.load_preset("atari100k") and command.given == {}


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize(
    ("form", "value"),
    [("--{}", True), ("--{}=True", True), ("--{}=true", True), ("--{}=1", True), ("--{}=false", False)]
    + [("--no{}", False), ("--{}=False", False), ("--{}=0", False)],
)
def test_switches(name, form, value):
    assert flags.parse([form.format(name)]).given == {name: value}


@pytest.mark.parametrize(
    ("text", "value"),
    [("100_000", 100_000), ("1e5", 100_000), ("1E5", 100_000), ("4e+5", 400_000), ("1.5e3", 1_500), ("+7", 7)]
    + [("70.0", 70), ("200", 200), ("1_0", 10)],
)
def test_whole_numbers(text, value):
    given = flags.parse([f"--steps={text}"]).given["steps"]
    assert given == value and type(given) is int
    assert flags.parse_override("steps", text) == value


@pytest.mark.parametrize(
    "text",
    [
        "012",
        "1.5",
        "nan",
        "inf",
        "",
        " 5",
        "5 ",
        "1__0",
        "_1",
        "1_",
        "0x10",
        "1e-3",
        "1e400",
        "abc",
        "1,000",
        "١",
    ]
    + ["--5", "9" * 5_000, "1e999999999", "True", "None"],
)
def test_refused_whole_numbers(text):
    assert re.match(r"steps=.*: must be a whole number", refusal(f"--steps={text}"))


@pytest.mark.parametrize("text", ["nan", "-inf", "1e999", "", "0,1", "1/2", "007", "x", "9" * 400])
def test_refused_numbers(text):
    assert re.match(r"opt\.lr=.*: must be a finite number", refusal(f"--opt.lr={text}"))


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), (".5", 0.5), ("1", 1.0), ("0.000_1", 1e-4), ("0", 0)]
)
def test_numbers(text, value):
    given = flags.parse([f"--opt.lr={text}"]).given["opt.lr"]
    assert given == value and type(given) is float


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--batch_sise=4"], ["--batch_sise=4: unknown flag", "did you mean --batch_size?"]),
        (["--batch_sise", "4"], ["--batch_sise: unknown flag", "did you mean --batch_size?"]),
        (["--batch-size=4"], ["--batch-size=4: unknown flag", "did you mean --batch_size?"]),
        (["--Batch_Size=4"], ["did you mean --batch_size?"]),
        (["--replay.capasity=4"], ["--replay.capasity=4: unknown flag", "did you mean --replay.capacity?"]),
        (["--capacity=4"], ["--capacity=4: unknown flag", "did you mean --replay.capacity?"]),
        (["--num_envs=4"], ["did you mean --env.num_envs or --eval.num_envs?"]),
        (["--noreplay.onlin"], ["did you mean --noreplay.online?"]),
        (["--norepaly.online"], ["did you mean --noreplay.online?"]),
        (["--replay=3"], ["--replay=3: unknown flag"]),
        (["--zzzzzzzz=3"], ["--zzzzzzzz=3: unknown flag; --help lists all"]),
        (["--print_confg"], ["did you mean --print_config?"]),
        (["--confg=debug"], ["did you mean --config?"]),
        (["--batch_size=many"], ["batch_size=many: must be a whole number", "for example batch_size=16"]),
        (["--opt.lr=fast"], ["opt.lr=fast: must be a finite number", "for example opt.lr=4e-05"]),
        (["--env.gray=maybe"], ["env.gray=maybe: must be true or false"]),
        (["--eval_initial=yes"], ["eval_initial=yes: must be true or false"]),
        (["--help=perhaps"], ["--help=perhaps: must be true or false"]),
        (["--noeval_initial=True"], ["--noeval_initial takes no value", "--eval_initial=false"]),
        (["--nobatch_size"], ["--nobatch_size: unknown flag", "did you mean --batch_size?"]),
        (["--log_every=-5"], ["log_every=-5: must be at least 0 (period of metrics; 0 = never)"]),
        (["--log_every", "-5"], ["log_every=-5: must be at least 0"]),
        (["--device=gpuu"], ["device=gpuu: must be one of auto, cpu, gpu, tpu", "did you mean gpu?"]),
        (["--batch_length=1e6"], ["batch_length=1_000_000: must be 2 to 65_536"]),
        (["--replay.capacity=30"], ["batch_length=64: must be less than the 30 rows", "replay.capacity=65"]),
        (["--batch_size"], ["--batch_size: has no value", "--batch_size=VALUE"]),
        (["--logdir", "--steps=5"], ["--logdir: has no value"]),
        (["--logdir", "--", "--steps=5"], ["--logdir: has no value"]),
        (["--" + "x" * 5_000], ["unknown flag; --help lists all"]),
        (["---steps=5"], ["---steps=5: unknown flag", "did you mean --steps?"]),
        (["--config"], ["--config: has no value"]),
        (["atari_pong"], ["atari_pong: not a flag; write --name=value"]),
        (["task=atari_pong"], ["task=atari_pong: not a flag; did you mean --task?"]),
        (["--eval_initial", "True"], ["True: not a flag"]),
        (["--", "--steps=5"], ["--: not a flag"]),
        (["-"], ["-: not a flag"]),
        (["--task atari_pong"], ["--task atari_pong: unknown flag; write --name=value without spaces"]),
        (["--config=atari100"], ["--config=atari100: unknown preset", "did you mean --config=atari100k?"]),
        (["--config=zzz"], ["--config=zzz: unknown preset; --list_configs shows all"]),
        (["--config="], ["--config='': unknown preset"]),
        (["--undefok=bach", "--bach=3"], ["--undefok=bach: not accepted"]),
        (["--undefok", "bach", "--bach=3"], ["--undefok", "not accepted"]),
        (["-undefok=bach", "-bach=3"], ["--undefok=bach: not accepted"]),
        (["--flagfile=/nowhere/at/all"], ["--flagfile: cannot be read", "/nowhere/at/all"]),
        (["--flagfile=/"], ["--flagfile: cannot be read"]),
        (["--flagfile="], ["--flagfile: cannot be read (no path)"]),
        (["--flagfile"], ["--flagfile: cannot be read"]),
        (["--logdir=a\nb"], ["logdir=a\\nb: must be printable text"]),
        (["--x\ny=3"], ["--x\\ny=3: unknown flag"]),
    ],
)
def test_what_a_wrong_command_line_is_told(argv, parts):
    text = refusal(*argv)
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    "name", ["../configs/debug", "/etc/passwd", "debug.py", "configs/debug", "Debug", "__init__"]
)
def test_a_preset_is_a_name_and_never_a_path(name):
    assert f"--config={name}: unknown preset" in refusal(f"--config={name}")


def typos(name, dice):
    letters = string.ascii_lowercase + "_."
    i, j, k = dice.randrange(len(name)), dice.randrange(len(name) + 1), dice.randrange(len(name) - 1)
    yield name[:i] + name[i + 1 :]
    yield name[:i] + dice.choice(letters) + name[i + 1 :]
    yield name[:j] + dice.choice(letters) + name[j:]
    yield name[:k] + name[k + 1] + name[k] + name[k + 2 :]


def test_one_letter_typos_are_corrected():
    dice, tried, wrong = random.Random(0), 0, []
    defined = {*LEAVES, *flags.QUESTIONS, "config"}
    negated = {"no" + name for name in [*SWITCHES, *flags.QUESTIONS]}
    for name in sorted(defined) * 4:
        for typo in typos(name, dice):
            if typo in defined | negated | {"h"} or typo.startswith("no"):
                continue
            tried += 1
            if f"--{name}" not in refusal(f"--{typo}=1").partition("did you mean ")[2].rstrip("?").split(
                " or "
            ):
                wrong.append((name, typo))
    assert tried > 1_500
    assert len(wrong) <= 0.05 * tried, wrong


WORDS = st.one_of(
    st.sampled_from([f"--{name}" for name in [*LEAVES, *flags.QUESTIONS, "config", "flagfile"]]),
    st.sampled_from(
        ["--config=debug", "--steps=5", "5", "-5", "--", "-", "true", "--noreplay.online", "--h"]
    ),
    st.tuples(st.sampled_from(list(LEAVES)), st.text(max_size=8)).map(lambda pair: f"--{pair[0]}={pair[1]}"),
    st.text(max_size=12).filter(lambda text: "flagfile" not in text),
)


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(st.lists(WORDS, max_size=4))
def test_any_words_end_in_a_command_or_in_one_line(argv):
    try:
        command = flags.parse(argv)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1
    else:
        listing = command.action == "list_configs"  # which reads no preset
        assert listing or replace(flags.load_preset(command.preset), command.given) == command.config


def test_flagfiles(tmp_path):
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    inner.write_text("# a comment\n\n--config=debug\n--noreplay.online\n--steps=1e3\n")
    outer.write_text(f"--flagfile={inner}\n--steps=2_000\n")
    command = flags.parse([f"--flagfile={outer}", "--seed=3"])
    assert command.preset == "debug" and command.config.task == "toy_clock"
    assert command.given == {"steps": 2_000, "seed": 3, "replay.online": False}
    assert flags.parse(["--flagfile", str(outer), "--steps=5"]).config.steps == 5

    inner.write_text("--bach_size=3\n")
    assert "did you mean --batch_size?" in refusal(f"--flagfile={outer}")
    inner.write_text("--undefok=bach\n--bach=3\n")
    assert "--undefok=bach: not accepted" in refusal(f"--flagfile={outer}")
    inner.write_bytes(bytes(range(256)))
    assert "--flagfile: cannot be read" in refusal(f"--flagfile={outer}")


def test_the_preset_may_stand_anywhere_and_the_last_one_wins():
    for argv in (["--steps=9", "--config=debug"], ["--steps", "9", "--config", "debug"]):
        command = flags.parse(argv)
        assert command.preset == "debug" and command.config == replace(
            flags.load_preset("debug"), {"steps": 9}
        )
    assert flags.parse(["--config=atari", "--config=debug"]).preset == "debug"


def test_help_shows_every_flag_once_in_groups_with_the_values_of_the_preset():
    text = flags.parse(["--help", "--config=debug"]).text
    for name, value in to_dict(flags.load_preset("debug")).items():
        assert text.count(f"  --{name}={show(value)} ") == 1, name
    for name in [*flags.QUESTIONS, "config=debug", "flagfile=PATH"]:
        assert text.count(f"  --{name} ") == 1, name
    assert [line for line in text.splitlines() if re.fullmatch(r"[a-z]+", line)] == (
        ["run", "env", "model", "loss", "opt", "drq", "replay", "eval", "terminal"]
        + ["tensorboard", "plot", "wandb", "checkpoint", "runtime", "distributed", "debug"]
    )
    assert max(map(len, text.splitlines())) <= 110
    assert flags.parse(["-h"]).text == flags.parse(["--help"]).text != text


def test_list_configs_shows_every_preset():
    text = flags.parse(["--list_configs"]).text
    assert [line.split()[0] for line in text.splitlines()] == PRESETS


def test_print_config_is_toml_and_says_where_each_value_comes_from():
    command = flags.parse(["--print_config", "--config=debug", "--replay.capacity=500", "--logdir=a b"])
    nested = tomllib.loads(command.text)
    flat = {}
    for name, value in nested.items():
        flat |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    assert flat == to_dict(command.config)
    lines = {line.partition(" =")[0]: line for line in command.text.splitlines()}
    assert lines["replay.capacity"].endswith("# agent_steps; command line")
    assert lines["steps"].endswith("# env_steps; preset debug")
    assert lines["opt.lr"].endswith("# default, dreamerv3")


def test_questions_do_not_train():
    assert [flags.parse([f"--{name}"]).action for name in flags.QUESTIONS] == list(flags.QUESTIONS)
    assert flags.parse(["--nodry_run"]).action == "train"
    assert flags.parse(["--dry_run", "--steps=5"]).config.steps == 5


@pytest.mark.parametrize("argv", [["--help"], ["--list_configs"], ["--print_config"], ["--bach=1"]])
def test_answers_come_at_once_and_without_jax(argv):
    code = (
        "import sys\nfrom jaxrl import flags, config\n"
        f"try: flags.parse({argv!r})\nexcept config.ConfigError: pass\n"
        "sys.exit(bool({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    )
    start = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
    assert time.monotonic() - start < 1.0


def test_presets_list_differences_with_their_sources():
    assert list(flags.list_presets()) == PRESETS
    for name in PRESETS:
        path = ROOT / "configs" / f"{name}.py"
        tree = ast.parse(path.read_text())
        docstring = ast.get_docstring(tree) or ""
        assert f"\nRun:     python -m jaxrl.train --config={name}" in docstring
        assert "\nExpect:  " in docstring and docstring.partition("\n")[0].endswith(".")
        with tokenize.open(path) as file:
            comments = {
                t.start[0] for t in tokenize.generate_tokens(file.readline) if t.type == tokenize.COMMENT
            }
        stated = [
            k for k in ast.walk(tree) if isinstance(k, ast.keyword) and not isinstance(k.value, ast.Call)
        ]
        for keyword in stated:
            assert keyword.lineno in comments or keyword.arg == "task", (
                f"{path}:{keyword.lineno} has no source"
            )
        changed = [n for n, v in to_dict(flags.load_preset(name)).items() if v != LEAVES[n].default]
        pinned = name in ("atari100k", "atari100k_drq", "dmc_vision")  # a benchmark pins its rules
        stands_for_itself = ("batch_size",)
        if not pinned:
            assert {k.arg for k in stated} - set(stands_for_itself) <= {n.rpartition(".")[2] for n in changed}


def test_atari100k_is_the_benchmark():
    config = flags.load_preset("atari100k")
    env = config.env
    assert (config.steps, config.train_ratio, config.batch_size, config.batch_length) == (
        400_000,
        256.0,
        16,
        64,
    )
    assert (env.num_envs, env.action_repeat, env.size, env.noops, env.time_limit) == (1, 4, 64, 30, 108_000)
    assert (env.sticky, env.gray, env.full_actions, env.lives) == (0.0, False, False, "unused")
    assert (env.clip_reward, env.fire_reset, env.stack) == (False, False, 1)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("def", "SyntaxError"),
        ("x = 1", "has no `config = Config(...)`"),
        ("config = 3", "has no `config = Config(...)`"),
        ("from jaxrl.config import *\nconfig = Config(bach=3)", "unexpected keyword argument 'bach'"),
        ("from jaxrl.config import *\nconfig = Config(steps=0)", "steps=0: must be at least 1"),
        ("import nowhere_at_all", "No module named 'nowhere_at_all'"),
    ],
)
def test_a_broken_preset_is_named(tmp_path, monkeypatch, text, part):
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.setattr(flags, "_folder", lambda: tmp_path)
    message = refusal("--config=mine")
    assert message.startswith("--config=mine: ") and part in message and "mine.py" in message
    assert flags.parse(["--list_configs"]).text.startswith("mine ")


def test_docs_are_current():
    assert (ROOT / "docs" / "flags.md").read_text() == flags.markdown(), (
        "write it anew: python -m jaxrl.flags --markdown > docs/flags.md"
    )


def test_presets_are_in_the_wheel_and_found_there(tmp_path):
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, check=True, cwd=ROOT, capture_output=True)
    (wheel,) = tmp_path.glob("jaxrl-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {f"jaxrl/configs/{name}.py" for name in PRESETS} <= set(names)
    assert not [name for name in names if name.startswith(("configs/", "tests/"))]
    code = (
        "import sys; sys.path.insert(0, 'site'); from jaxrl import flags\n"
        "assert 'site' in flags.__file__, flags.__file__\n"
        "print(flags.parse(['--config=debug']).config.task, *flags.list_presets())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True, text=True
    )
    assert found.stdout.split() == ["toy_clock", *PRESETS]
