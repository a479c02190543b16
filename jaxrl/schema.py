"""How a setting is declared and checked: a leaf of a section, with type, range, unit and source.

Standard library only: reading a configuration must not cost an import of jax.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable
from typing import ClassVar, NamedTuple, TypeVar

Value = int | float | bool | str
V = TypeVar("V", int, float, bool, str)

OWN = "own choice"
DREAMER = "dreamerv3"  # see jaxrl/config.py
LARGEST = 10**12  # of a whole number whose leaf names no bound
NUMBER = re.compile(
    r"[+-]?((0|[1-9](_?[0-9])*)(\.([0-9](_?[0-9])*)?)?|\.[0-9](_?[0-9])*)([eE][+-]?[0-9]{1,3})?"
)
KINDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "printable text"}


class ConfigError(ValueError):
    """A setting that cannot be used: one line with its name, value, rule and remedy."""

    def __init__(self, message: str):
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


class Leaf(NamedTuple):
    """One setting: its value in a config, and what the schema says about it."""

    value: Value
    default: Value
    doc: str
    unit: str
    source: str
    type: type
    choices: tuple[str, ...]  # allowed strings; () if free
    low: float | None  # inclusive bounds; None if free
    high: float | None

    @property
    def rule(self) -> str:
        """The range in words; "" where there is none."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.low is None or self.high is None:
            return "" if self.low is None else f"at least {self.low:g}"
        return f"{show(self.type(self.low))} to {show(self.type(self.high))}"


def leaf(default: V, doc: str, unit: str = "", source: str = "", *, low=None, high=None, choices=()) -> V:
    """Declares a setting. `low` and `high` are inclusive; `choices` are the allowed strings."""
    item = Leaf(default, default, doc, unit, source, type(default), tuple(choices), low, high)
    return dataclasses.field(default=default, metadata={"leaf": item})


def show(value: object) -> str:
    """A value as one would type it, cut if it is very long."""
    if isinstance(value, bool | float):
        return str(value).lower()
    text = f"{value:_}" if isinstance(value, int) else str(value)
    return text if 0 < len(text) <= 80 else repr(text[:80])


def converted(kind: type, text: str) -> Value:
    """A text of a command line as a value of that type; the text itself if it is none.

    1e5 and 100_000 are whole numbers.
    """
    if kind is bool:
        words = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
        return words.get(text.lower(), text)
    if kind is str or len(text) > 40 or not NUMBER.fullmatch(text):
        return text
    if kind is int and re.fullmatch("[+-]?[0-9_]+", text):
        return int(text)
    number = float(text)
    if kind is int:
        return int(number) if number.is_integer() and abs(number) < 2**53 else text
    return number


def nearest(name: str, names: Iterable[str], prefix: str = "", otherwise: str = "--help lists all") -> str:
    """The remedy for an unknown name: the one that was probably meant, or where to look."""
    name, names = name[:80].lower().replace("-", "_"), list(names)
    near = [n for n in names if n.endswith("." + name)] or difflib.get_close_matches(name, names, 1)
    return f"did you mean {' or '.join(prefix + n for n in near)}?" if near else otherwise


def leaves_of(section: "Section") -> dict[str, Leaf]:
    items = {}
    for field in dataclasses.fields(section):
        if item := field.metadata.get("leaf"):
            value, source = getattr(section, field.name), item.source or section.source
            items[section.prefix + field.name] = item._replace(value=value, source=source)
    return items


def checked(name: str, item: Leaf) -> Value:
    """The value of a setting as its own type; ConfigError unless type, range and choice are right."""
    value, rule, remedy = item.value, item.rule, f"for example {name}={show(item.default)}"
    if item.type is float and type(value) is int and abs(value) <= LARGEST:
        value = float(value)
    if type(value) is not item.type or (isinstance(value, float) and not math.isfinite(value)):
        rule = KINDS[item.type]
    elif isinstance(value, str):
        if value in item.choices or (not item.choices and value.isprintable()):
            return value
        rule, remedy = rule or KINDS[str], nearest(value, item.choices) if item.choices else remedy
    elif value > LARGEST:
        rule = f"at most {LARGEST:_}"
    elif (item.low is None or value >= item.low) and (item.high is None or value <= item.high):
        return value
    raise ConfigError(f"{name}={show(item.value)}: must be {rule} ({item.doc}); {remedy}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A group of settings; each is checked (type, range, choices) when the section is made."""

    prefix: ClassVar[str] = ""
    source: ClassVar[str] = OWN

    def __post_init__(self):
        for name, item in leaves_of(self).items():
            object.__setattr__(self, name.removeprefix(self.prefix), checked(name, item))
