"""The generated pages are current, and README's commands and names exist."""

import importlib.util
import inspect
import pathlib
import re

import pytest

import jaxrl
from jaxrl import assembly, commands, flags, glossary, programs, runtime, session

ROOT = pathlib.Path(__file__).parents[1]


def test_pages_are_current():
    assert (ROOT / "docs" / "metrics.md").read_text() == glossary.markdown()
    assert (ROOT / "docs" / "flags.md").read_text() == flags.markdown()
    assert (ROOT / "docs" / "commands.md").read_text() == commands.markdown()


def test_glossary_finds_names_and_patterns():
    assert glossary.find("train/loss/rec/image").unit == ""
    assert glossary.find("holdout/loss/dyn") is not None
    assert glossary.find("train/loss/nonsense/deep/name") is None


@pytest.mark.parametrize("task", ["toy_clock", "toy_reach"])
def test_every_metric_of_a_learner_is_in_the_glossary(task):
    config = flags.parse(["--config=debug", f"--task={task}", "--replay.holdout=0.2"]).config
    machine = runtime.start(config)
    config = runtime.resolve(config, machine)
    with session.training_env(config, 0) as env:
        parts = assembly.assemble(config, machine, env)
    names = {*programs.metric_shapes(parts), *programs.held_metric_shapes(parts)}
    assert {"train/loss/dyn", "train/opt/skipped", "holdout/loss/dyn"} <= names
    assert not [name for name in sorted(names) if glossary.find(name) is None]


def test_readme_commands_parse():
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"python -m jaxrl\.train ([^\n`]*)", text)
    assert commands
    for command in commands:
        words = [word for word in command.split(" && ")[0].split() if word.startswith("--")]
        assert flags.parse([word for word in words if "{" not in word]).action


def test_what_readme_names_is_there():
    text = (ROOT / "README.md").read_text()
    modules = set(re.findall(r"python -m ((?:jaxrl|benchmarks)\.\w+)", text))
    assert {"jaxrl.report", "jaxrl.doctor", "benchmarks.sinks"} <= modules
    assert not [name for name in modules if importlib.util.find_spec(name) is None]
    links = re.findall(r"\]\(((?:docs|configs)/[^)]*|\w+\.md)\)", text)
    assert len(links) > 5 and not [link for link in links if not (ROOT / link).exists()]


def test_readme_plays_a_policy_as_the_docstring_does():
    """The lines of which tests/test_inference.py runs those of the docstring."""
    block = re.search(r"## Use a policy\n\n((?:    .*\n|\n)+)", (ROOT / "README.md").read_text())
    assert block
    lines = [line.strip() for line in block[1].splitlines() if line.strip() and "jaxrl.load(" not in line]
    example = [line.strip() for line in (inspect.getdoc(jaxrl.load) or "").splitlines()]
    assert len(lines) > 8 and not [line for line in lines if line not in example]
