"""The schema: every leaf is documented, every bad value is refused in one line that helps."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest

from jaxrl import config as schema
from jaxrl.config import Config, ConfigError, EnvConfig, ModelConfig, Widths, leaves, model_widths, replace

LEAVES = leaves(Config())
NUMBERS = {name: item for name, item in LEAVES.items() if item.type in (int, float)}


def refusal(changes):
    with pytest.raises(ConfigError) as error:
        replace(Config(), changes)
    text = str(error.value)
    assert "\n" not in text and len(text) < 400
    return text


@pytest.mark.parametrize("name", LEAVES)
def test_every_leaf_says_what_it_is(name):
    item = LEAVES[name]
    assert item.doc and item.source, "a leaf needs a sentence and the source of its default"
    assert item.value == item.default and type(item.default) is item.type
    section = Config if "." not in name else type(getattr(Config(), name.partition(".")[0]))
    annotated = {field.name: field.type for field in dataclasses.fields(section)}
    assert annotated[name.rpartition(".")[2]] is item.type
    if item.type is int:
        assert item.low is not None, "a whole number needs a lowest value"
        assert item.unit or name in ("seed", "env.threads"), "a whole number counts something"


@pytest.mark.parametrize("name", NUMBERS)
def test_bounds_are_inclusive_and_held(name):
    item = NUMBERS[name]
    assert item.low is not None
    step = 1 if item.type is int else max(1e-9, abs(item.low) * 0.01)
    text = refusal({name: item.type(item.low - step)})
    assert text.startswith(f"{name}=") and f"for example {name}=" in text
    if item.high is not None:
        assert text != (above := refusal({name: item.type(item.high + 1)}))
        assert above.startswith(f"{name}=") and item.rule in above


@pytest.mark.parametrize("name", [n for n, item in LEAVES.items() if item.choices])
def test_every_choice_is_taken_and_a_misspelt_one_is_corrected(name):
    for choice in LEAVES[name].choices:
        assert leaves(replace(Config(), {name: choice}))[name].value == choice
        near = refusal({name: choice + "x"})
        assert near.startswith(f"{name}={choice}x: must be one of ") and f"did you mean {choice}?" in near


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"steps": -1}, ["steps=-1: must be at least 1", "length of the run", "for example steps=400_000"]),
        ({"log_every": -100}, ["log_every=-100: must be at least 0", "0 = never"]),
        ({"batch_size": 1.5}, ["batch_size=1.5: must be a whole number"]),
        ({"batch_size": 4.0}, ["batch_size=4.0: must be a whole number"]),
        ({"batch_size": True}, ["batch_size=true: must be a whole number"]),
        ({"batch_size": "16"}, ["batch_size=16: must be a whole number"]),
        ({"train_ratio": float("nan")}, ["train_ratio=nan: must be a finite number"]),
        ({"train_ratio": float("inf")}, ["train_ratio=inf: must be a finite number"]),
        ({"loss.rec": 10**400}, ["loss.rec=", "must be a finite number"]),
        ({"steps": 10**13}, ["steps=10_000_000_000_000: must be at most 1_000_000_000_000"]),
        ({"env.gray": 1}, ["env.gray=1: must be true or false"]),
        ({"logdir": "a\nb"}, ["logdir=a\\nb: must be printable text"]),
        ({"seed": "x" * 500}, ["seed='xxx", "must be a whole number"]),
        ({"env.sticky": 1.1}, ["env.sticky=1.1: must be 0.0 to 1.0"]),
        ({"replay.holdout": 0.6}, ["replay.holdout=0.6: must be 0.0 to 0.5"]),
        ({"bach_size": 4}, ["bach_size=4: unknown setting", "did you mean batch_size?"]),
        ({"replay.capcity": 4}, ["replay.capcity=4: unknown", "did you mean replay.capacity?"]),
        ({"capacity": 4}, ["capacity=4: unknown", "did you mean replay.capacity?"]),
        ({"replay": 4}, ["replay=4: unknown"]),
        ({"task": "Pong"}, ["task=Pong: must be suite_task", "task=atari_pong"]),
        ({"task": "pong"}, ["task=pong: must be suite_task"]),
        ({"task": "atari_pong/../x"}, ["must be suite_task"]),
        ({"task": "atari_" + "x" * 60}, ["must be suite_task", "at most 64"]),
        ({"model.bins": 254}, ["model.bins=254: must be odd", "model.bins=255"]),
        ({"model.size": "1m", "model.deter": 100}, ["model.blocks=8: must divide the recurrent width = 100"]),
        ({"model.deter": 100}, ["model.blocks=8: must divide the recurrent width = 100"]),
        ({"model.depth": 3}, ["model.blocks=8: must divide 4 * the image depth = 12"]),
        ({"env.size": 84}, ["env.size=84: must be a multiple of 16", "agent=dreamer", "env.size=64"]),
        ({"env.time_limit": 3}, ["env.time_limit=3: must be 0 or at least env.action_repeat=4"]),
        ({"loss.return_low": 95.0}, ["loss.return_low=95.0: must be below loss.return_high=95.0"]),
        ({"opt.anneal": 1000}, ["opt.anneal=1_000: must be 0 or above opt.warmup=1000", "opt.anneal=0"]),
        ({"terminal.filter": "("}, ["terminal.filter=(: must be a regular expression", "terminal.filter=.*"]),
        ({"terminal.filter": "a{99999999999}"}, ["terminal.filter=", "must be a regular expression"]),
        ({"runtime.compile_cache": ""}, ["runtime.compile_cache='': must be auto, off or a folder"]),
    ],
)
def test_a_refusal_names_value_rule_and_remedy(changes, parts):
    text = refusal(changes)
    for part in parts:
        assert part in text


def test_a_sequence_must_fit_into_replay_and_the_remedy_works():
    changes = {"batch_length": 64, "replay.capacity": 200, "env.num_envs": 4}
    text = refusal(changes)
    assert text.startswith("batch_length=64: must be less than the 50 rows of each environment")
    remedy = re.search(r"for example replay\.capacity=(\d+)$", text)
    assert remedy
    assert replace(Config(), changes | {"replay.capacity": int(remedy[1])}).replay.capacity == 260
    assert "batch_length" in refusal(changes | {"replay.capacity": 259})


def test_a_run_too_short_to_learn_is_no_error():
    assert replace(Config(), {"steps": 1, "train_ratio": 0.0}).steps == 1


def test_image_size_is_free_without_a_world_model():
    assert replace(Config(), {"env.size": 84, "agent": "random"}).env.size == 84


def test_config_is_frozen_and_sections_are_typed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().steps = 3  # type: ignore[misc]
    with pytest.raises(ConfigError, match=r"^env: must be a section; write EnvConfig\(\.\.\.\)$"):
        Config(env={"num_envs": 2})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^env\.num_envs=0: must be 1 to 65_536"):
        EnvConfig(num_envs=0)


def test_whole_numbers_become_floats_where_a_float_is_meant():
    value = Config(train_ratio=32).train_ratio
    assert value == 32.0 and type(value) is float


def test_replace_changes_exactly_what_it_is_told():
    changes = {"replay.capacity": 5_000, "replay.context": False, "steps": 7, "env.num_envs": 2}
    changed = replace(Config(), changes)
    assert schema.difference(Config(), changed) == {
        "steps": (400_000, 7),
        "env.num_envs": (1, 2),
        "replay.capacity": (1_000_000, 5_000),
        "replay.context": (True, False),
    }
    assert schema.difference(changed, changed) == {}
    assert Config() == Config() != changed


def test_config_json_round_trip():
    config = replace(Config(), {"opt.eps": 1e-8, "logdir": "läufe/ü", "terminal.filter": "loss|score"})
    stored = json.loads(json.dumps(schema.to_dict(config)))
    assert schema.from_dict(stored) == config
    assert list(stored) == list(LEAVES)
    assert schema.from_dict({"steps": 5}) == Config(steps=5)
    with pytest.raises(
        ConfigError, match="replay.capasity=3: unknown setting; did you mean replay.capacity?"
    ):
        schema.from_dict({**stored, "replay.capasity": 3})
    with pytest.raises(ConfigError, match=r"config=\[1\]: must be a mapping"):
        schema.from_dict([1])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "widths"),
    [  # the table of dreamerv3's configs.yaml: deter, hidden, classes, depth, units
        ("1m", (512, 64, 4, 4, 64)),
        ("12m", (2048, 256, 16, 16, 256)),
        ("25m", (3072, 384, 24, 24, 384)),
        ("50m", (4096, 512, 32, 32, 512)),
        ("100m", (6144, 768, 48, 48, 768)),
        ("200m", (8192, 1024, 64, 64, 1024)),
        ("400m", (12288, 1536, 96, 96, 1536)),
        ("debug", (64, 16, 4, 2, 16)),
    ],
)
def test_model_widths(size, widths):
    assert model_widths(ModelConfig(size=size)) == widths
    assert model_widths(ModelConfig(size=size, units=7)) == Widths(*widths[:4], 7)


def test_model_widths_need_a_resolved_size():
    with pytest.raises(ConfigError, match=r"model\.size=auto: has no widths yet"):
        model_widths(ModelConfig())


def test_importing_the_schema_imports_nothing_heavy():
    heavy = "{'jax', 'numpy', 'flax', 'absl'}"
    code = f"import sys, jaxrl.config; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
