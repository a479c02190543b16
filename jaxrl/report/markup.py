"""HTML from Python: whatever is not made here is text, and is escaped."""

import html
import re
from collections.abc import Iterable

VOID = ("br", "col", "hr", "img", "link", "meta", "source")
NUMBER = re.compile(r"[+−-]?[\d(±]|[–-]?$")  # what a cell of a column of numbers begins with


class Markup(str):
    """HTML; any other string is text."""

    __slots__ = ()


def escaped(child: str) -> str:
    return child if isinstance(child, Markup) else html.escape(child)


def tag(name: str, /, *children: str, **attributes: str | bool) -> Markup:
    """An element. An attribute's name may end in `_`; other underscores are hyphens. True has no value, False
    is not there."""
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is not False:
            words.append(key if value is True else f'{key}="{html.escape(str(value))}"')
    start = f"<{' '.join(words)}>"
    return Markup(start if name in VOID else f"{start}{''.join(map(escaped, children))}</{name}>")


def joined(parts: Iterable[str]) -> Markup:
    return Markup("\n".join(map(escaped, parts)))


def facts(pairs: Iterable[tuple[str, str]]) -> Markup:
    """Names with what they are."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs))


def grid(columns: Iterable[str], rows: Iterable[Iterable[str]], text: Iterable[int] = ()) -> Markup:
    """A table that scrolls by itself on a narrow page. The first cell of a row is its head.

    Args:
      text: columns that are text whatever their cells look like; others with numbers only are aligned right.
    """
    heads, cells, text = list(columns), [list(row) for row in rows], set(text)
    is_number = [
        i > 0 and i not in text and all(NUMBER.match(row[i]) for row in cells) for i in range(len(heads))
    ]

    def look(i: int) -> dict[str, str]:
        return {"class_": "num"} if is_number[i] else {}

    head = tag("tr", *(tag("th", name, scope="col", **look(i)) for i, name in enumerate(heads)))
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row", **kept(row[0])),
            *(tag("td", x, **look(i)) for i, x in enumerate(row) if i),
        )
        for row in cells
    ]
    table = tag("table", tag("thead", head), tag("tbody", *body))
    return tag("div", table, class_="scroll", tabindex="0")


def kept(name: str) -> dict[str, str]:
    """Names are not broken up unless they are long."""
    return {"class_": "kept"} if len(name) <= 28 else {}


def folded(title: str, *children: str, is_open: bool = False, class_: str = "") -> Markup:
    """What is seen once it is asked for, and in print where the browser can."""
    return tag(
        "details", tag("summary", title), *children, open=is_open, **({"class_": class_} if class_ else {})
    )


def section(name: str, title: str, *children: str) -> Markup:
    """A part of the page with an anchor."""
    return tag("section", tag("h2", title), *children, id=name)


def notes(lines: Iterable[str]) -> Markup:
    """Small print; nothing if there is none."""
    found = [tag("p", line, class_="note") for line in lines]
    return joined(found)
