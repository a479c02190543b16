"""Videos of runs on the page: the newest, inside it as long as there is room, else as links."""

import base64
import os
import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence

from jaxrl.reading import Past
from jaxrl.report.markup import Markup, joined, notes, tag
from jaxrl.report.shapes import plural, size

KINDS = {".mp4": "video/mp4", ".webp": "image/webp", ".gif": "image/gif"}
FOLDERS = {"videos": 3, "evaluations": 2}  # where a run keeps videos, and how many of its newest are shown
MOST = 24 * 10**6  # bytes of videos inside the page


def newest(past: Past) -> list[pathlib.Path]:
    """The newest videos of a run, of each folder the last ones."""
    found = []
    for folder, most in FOLDERS.items():
        try:
            files = [x for x in (past.path / folder).iterdir() if x.suffix in KINDS and x.is_file()]
            files = sorted(((x.stat().st_mtime, x.name), x) for x in files if x.name[0] != ".")
        except OSError:  # no such folder, or a file that went in this moment
            continue
        found += [x for _, x in reversed(files[-most:])]
    return found


def films(pasts: Sequence[Past], names: Mapping[pathlib.Path, str], out: pathlib.Path) -> Markup:
    """All of them, those of a run together; "" if there is none.

    Args:
      out: folder of the page, which links lead from.
    """
    left, shown, linked = MOST, [], 0
    for past in pasts:
        for file in newest(past):
            label = f"{names[past.path]}: {file.parent.name}/{file.name}" if len(pasts) > 1 else file.name
            try:
                content = file.read_bytes() if file.stat().st_size <= left else b""
            except OSError:
                continue
            left -= len(content)
            linked += not content
            shown.append(film(file, content, label, out))
    if not shown:
        return Markup("")
    words = f"{plural(linked, 'video')} beyond {size(MOST)} in all: linked, not inside this page."
    return joined([tag("div", *shown, class_="films"), notes([words] if linked else [])])


def film(file: pathlib.Path, content: bytes, label: str, out: pathlib.Path) -> Markup:
    """One video; a link to it where it has no content here."""
    kind = KINDS[file.suffix]
    if not content:
        link = urllib.parse.quote(os.fsencode(os.path.relpath(file, out)))
        return tag("figure", tag("a", label, href=link), class_="card")
    address = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    if kind.startswith("video"):
        shape = tag(
            "video", src=address, controls=True, loop=True, muted=True, playsinline=True, preload="metadata"
        )
    else:
        shape = tag("img", src=address, alt=label, loading="lazy")
    return tag("figure", shape, tag("figcaption", label), class_="card")
