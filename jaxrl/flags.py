"""The command line: a preset, one absl flag per setting, and questions that are answered without training.

    --config=atari100k --task=atari_pong --replay.capacity=100_000 --noeval_initial

Everything is generated from the schema in config.py. Whatever is wrong (type, range, unknown or
misspelt name, stray word, unreadable file) ends in one ConfigError. Imports no jax.
`python -m jaxrl.flags --markdown` writes docs/flags.md.
"""

import ast
import dataclasses
import importlib.util
import json
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags as absl_flags

from jaxrl import changes
from jaxrl.changes import Origin
from jaxrl.config import Config, ConfigError, Leaf, Value, leaves, nearest, replace, show
from jaxrl.schema import converted

PRESET = "atari100k"  # what runs when no --config is given
QUESTIONS = {  # flags that are no settings; the first that is given decides what happens
    "help": "print this text",
    "list_configs": "print the presets",
    "print_config": "print the resolved settings (TOML), each with its unit and where it comes from",
    "dry_run": "set everything up, do one step of each phase, print sizes and units, and stop",
    "supervise": "start the run again, from its last checkpoint, whenever it dies of a signal; gives up "
    "after 3 deaths without progress",
}
SECRET = re.compile("key|token|password|passwd|secret|credential", re.IGNORECASE)
URL_PASSWORD = re.compile(r"(\w://[^/\s:@]*:)[^/\s@]+@")
KINDS = {bool: "switch", str: "text", int: "whole number", float: "number"}
WIDTH = 110


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What a command line asks for."""

    action: str  # "train" or one of QUESTIONS
    config: Config
    preset: str
    given: dict[str, Value]  # settings named on the command line or in a flagfile
    text: str  # to print if the action is a question; "" otherwise
    origin: Origin  # what the flags were put on
    notes: tuple[str, ...] = ()  # how the config differs from that of the run that the command goes on with
    named: bool = False  # whether it names the preset


def preset_alone(origin: Origin, named: bool) -> Origin:
    """The flags are put on the preset, whatever run the command names."""
    del named
    return origin


def parse(argv: Sequence[str], origin_of: Callable[[Origin, bool], Origin] = preset_alone) -> Command:
    """Reads a command line, without the program's name.

    Args:
      origin_of: given the preset, and whether the command names it: what the flags are put on.

    Raises:
      ConfigError: and what `origin_of` raises.
    """
    given, action = _read(argv)
    named, preset = "config" in given, str(given.pop("config", PRESET))
    if action == "list_configs":
        rows = [f"{name:20} {title}" for name, title in list_presets().items()]
        return _question(action, Config(), preset, "\n".join(rows))
    config = load_preset(preset)
    if action == "help":
        return _question(action, config, preset, _help(config, preset))
    origin = origin_of(Origin(config=config, given=given, preset=preset), named)
    config = replace(origin.config, origin.given)
    notes = (*origin.notes, *changes.lines(origin, config))
    given = {name: item.value for name, item in leaves(config).items() if name in given}
    text = _listing(config, origin, given) if action == "print_config" else ""
    return Command(
        action=action,
        config=config,
        preset=origin.preset,
        given=given,
        text=text,
        origin=origin,
        notes=notes,
        named=named,
    )


def _question(action: str, config: Config, preset: str, text: str) -> Command:
    origin = Origin(config=config, given={}, preset=preset)
    return Command(action=action, config=config, preset=preset, given={}, text=text, origin=origin)


def parse_override(name: str, text: str) -> Value:
    """The value of setting `name` from its text; text that is no such value comes back unchanged."""
    item = leaves(Config()).get(name)
    return text if item is None else converted(item.type, text)


def list_presets() -> dict[str, str]:
    """{name: first line of its docstring} of the files in configs/, which are not executed."""
    presets = {}
    for path in sorted(_folder().glob("*.py")):
        if re.fullmatch("[a-z0-9][a-z0-9_]{0,63}", path.stem):
            try:
                text = ast.get_docstring(ast.parse(path.read_bytes())) or ""
            except (SyntaxError, ValueError) as error:
                text = f"(cannot be read: {error})"
            presets[path.stem] = text.partition("\n")[0]
    return presets


def load_preset(name: str) -> Config:
    """The `config` that configs/<name>.py defines."""
    known = list_presets()
    if name not in known:
        raise ConfigError(f"--config={show(name)}: unknown preset; {_near_preset(name, known)}")
    path = _folder() / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"jaxrl.configs.{name}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the file raises, one line names the file
        raise ConfigError(f"--config={name}: {type(error).__name__}: {error}; mend {path}") from error
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise ConfigError(f"--config={name}: has no `config = Config(...)`; add it to {path}")
    return config


def markdown() -> str:
    """docs/flags.md."""
    lines = ["# Flags", "", "Generated by `python -m jaxrl.flags --markdown`; do not edit.", ""]
    lines += ["Whole numbers may be written `100_000` or `1e5`. A switch `--x` is also `--x=true`, and its"]
    lines += ["opposite `--nox` (`--noenv.gray`). `--flagfile=PATH` reads flags from a file, one a line.", ""]
    lines += ["Last column, of a setting that is changed when a run is continued: *free* moves no result,"]
    lines += ["*warned* changes what is learned from here on, *refused* needs `--allow_config_change`.", ""]
    lines += ["| flag | meaning |", "|---|---|", f"| `--config={PRESET}` | preset, see below |"]
    lines += [f"| `--{name}` | {doc} |" for name, doc in QUESTIONS.items()]
    for title, items in _grouped(Config()):
        lines += [
            "",
            f"## {title}",
            "",
            "| flag | range | unit | meaning | source | change |",
            "|---|---|---|---|---|---|",
        ]
        for name, item in items.items():
            cells = (f"`--{name}={show(item.value)}`", item.rule or KINDS[item.type], item.unit, item.doc)
            cells += item.source, changes.class_of(name)
            lines.append("| " + " | ".join(cells).replace("<", "\\<") + " |")
    lines += ["", "## presets", "", "| `--config=` | |", "|---|---|"]
    lines += [f"| `{name}` | {title} |" for name, title in list_presets().items()]
    return "\n".join(lines) + "\n"


def redacted(argv: Sequence[str]) -> list[str]:
    """A command line as it may be stored and shown: without the values of flags named like secrets."""
    words, hidden = [], False
    for word in argv:
        name, equals, _ = word.partition("=")
        secret = word.startswith("-") and SECRET.search(name) is not None
        shown = f"{name}=***" if secret and equals else word
        words.append("***" if hidden and not word.startswith("-") else URL_PASSWORD.sub(r"\1***@", shown))
        hidden = secret and not equals
    return words


class _Parser(absl_flags.ArgumentParser):
    """Turns the text of a flag into a value; what cannot be turned stays text, and the schema objects."""

    def __init__(self, kind: type):
        self.kind = kind

    def parse(self, argument: str) -> Value:
        return converted(self.kind, argument)

    def flag_type(self) -> str:
        return self.kind.__name__


def _define() -> absl_flags.FlagValues:
    """A flag for each setting, for the preset and for each question; none has a default of its own."""
    defined = absl_flags.FlagValues()
    defined.set_gnu_getopt(True)
    kinds = {name: (item.type, item.doc) for name, item in leaves(Config()).items()}
    kinds |= {"config": (str, "preset")} | {name: (bool, doc) for name, doc in QUESTIONS.items()}
    for name, (kind, doc) in kinds.items():
        short = "h" if name == "help" else None
        flag = absl_flags.Flag(_Parser(kind), None, name, None, doc, short_name=short, boolean=kind is bool)
        absl_flags.DEFINE_flag(flag, defined)
    return defined


def _read(argv: Sequence[str]) -> tuple[dict[str, Value], str]:
    """({name: value} of all flags given, the action asked for)."""
    defined = _define()
    try:
        if any(re.fullmatch("--?flagfile=", word) for word in argv):
            raise absl_flags.Error("no path")
        words = defined.read_flags_from_files(list(argv))
    except (absl_flags.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"--flagfile: cannot be read ({error}); name a text file of flags") from error
    _inspect(words, defined)
    defined(["jaxrl", *words])
    given: dict[str, Any] = {n: defined[n].value for n in defined if n != "h" and defined[n].present}
    asked = {name: given.pop(name) for name in QUESTIONS if name in given}
    for name, value in asked.items():
        if not isinstance(value, bool):
            raise ConfigError(f"--{name}={show(value)}: must be true or false; for example --{name}")
    return given, next((name for name, wanted in asked.items() if wanted), "train")


def _inspect(words: list[str], defined: absl_flags.FlagValues) -> None:
    """Refuses, with a remedy, every word that absl would refuse, misread or pass over."""
    rest = iter(words)
    for word in rest:
        name, equals, value = word[2 if word.startswith("--") else 1 :].partition("=")
        opposite = name[2:] if name.startswith("no") else ""
        if not word.startswith("-") or not name:
            remedy = nearest(word.partition("=")[0], defined, "--", "write --name=value")
            raise ConfigError(f"{show(word)}: not a flag; {remedy}")
        if name in ("undefok", "flagfile"):
            raise ConfigError(
                f"--{name}={show(value)}: not accepted here, unknown flags are errors; remove it"
            )
        if name in defined:
            if not equals and not defined[name].boolean and re.match("--|-[a-zA-Z]", next(rest, "--")):
                raise ConfigError(f"--{name}: has no value; write --{name}=VALUE")
        elif opposite not in defined or not defined[opposite].boolean:
            raise ConfigError(_unknown(name, word, defined))
        elif equals:
            raise ConfigError(f"{show(word)}: --{name} takes no value; write --{opposite}=false")


def _unknown(name: str, word: str, defined: absl_flags.FlagValues) -> str:
    if " " in name:
        return f"{show(word)}: unknown flag; write --name=value without spaces"
    (word,) = redacted([word])
    opposites = ["no" + n for n in defined if defined[n].boolean] if name.startswith("no") else []
    return f"{show(word)}: unknown flag; {nearest(name, [*defined, *opposites], '--')}"


def _near_preset(name: str, known: dict[str, str]) -> str:
    return nearest(name, known, "--config=", "--list_configs shows all")


def _folder() -> pathlib.Path:
    """configs/: inside the package where it was installed from a wheel, beside it in a checkout."""
    package = pathlib.Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def _grouped(config: Config) -> Iterator[tuple[str, dict[str, Leaf]]]:
    """(title, settings) of the top level and of each section."""
    groups: dict[str, dict[str, Leaf]] = {}
    for name, item in leaves(config).items():
        groups.setdefault(name.partition(".")[0] if "." in name else "run", {})[name] = item
    yield from groups.items()


def _help(config: Config, preset: str) -> str:
    """All flags in groups, with the defaults of the preset."""
    lines = ["usage: python -m jaxrl.train [--config=PRESET] [--NAME=VALUE ...]", "", "preset and questions"]
    lines += _entry(f"config={preset}", "preset: " + ", ".join(list_presets()))
    for name, doc in QUESTIONS.items():
        lines += _entry(name, doc)
    lines += _entry("flagfile=PATH", "read flags from a file, one a line; later flags win")
    for title, items in _grouped(config):
        lines += ["", title]
        for name, item in items.items():
            facts = "; ".join(
                fact for fact in (item.unit, item.rule or KINDS[item.type], item.source) if fact
            )
            lines += _entry(f"{name}={show(item.value)}", f"{item.doc} [{facts}]")
    lines += [
        "",
        f"Values shown are those of --config={preset}. 1e5 and 100_000 are whole numbers; --x, --x=true",
    ]
    lines += ["and --nox, --x=false turn a switch on and off."]
    return "\n".join(lines)


def _entry(flag: str, text: str) -> list[str]:
    head = f"  --{flag}".ljust(34)
    return textwrap.wrap(head + " " + text, WIDTH, subsequent_indent=" " * 35, break_on_hyphens=False)


def _listing(config: Config, origin: Origin, given: dict[str, Value]) -> str:
    """TOML: one `name = value  # unit; origin` a line."""
    lines = []
    base = f"preset {origin.preset}" if origin.path is None else f"saved in {origin.path}"
    for name, item in leaves(config).items():
        source = f"default, {item.source}" if item.value == item.default else base
        source = "command line" if name in given else source
        value = json.dumps(item.value, ensure_ascii=False) if item.type is str else show(item.value)
        lines.append(f"{name} = {value}".ljust(42) + f" # {item.unit + '; ' if item.unit else ''}{source}")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:] != ["--markdown"]:
        sys.exit("usage: python -m jaxrl.flags --markdown")
    sys.stdout.write(markdown())
