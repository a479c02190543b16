"""Videos: pictures with names and captions drawn in, as mp4 (H.264) or, without PyAV, as WebP or GIF."""

import contextlib
import importlib.util
import itertools
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

LEAST = 240  # pixels of an edge of a picture, at least; smaller ones are enlarged by a whole number
GAP, BAR = 4, 24  # pixels between pictures, and of the line of text above them
NARROWEST = 320  # pixels, so that the line of text fits
PAPER, INK, FAINT = (24, 24, 27), (244, 244, 245), (161, 161, 170)
EXTRA = "PyAV is not installed; pip install 'jaxrl[video]' writes mp4"


def sheet(pictures: Mapping[str, np.ndarray], caption: str) -> np.ndarray:
    """One frame: pictures in a grid, each with its name, under a line of text.

    Args:
      pictures: u8 [h, w, 3] each, by what is seen; two columns from two on, three from five on.

    Returns:
      u8 [H, W, 3], H and W even, as H.264 wants.
    """
    tiles = {name: enlarged(x) for name, x in pictures.items()}
    columns = 1 if len(tiles) == 1 else 2 if len(tiles) <= 4 else 3
    rows = math.ceil(len(tiles) / columns)
    high, wide = (max(x.shape[axis] for x in tiles.values()) for axis in (0, 1))
    width = max(columns * (wide + GAP) + GAP, NARROWEST)
    height = BAR + rows * (high + GAP) + GAP
    left = (width - columns * (wide + GAP) - GAP) // 2 + GAP
    page = Image.new("RGB", (width + width % 2, height + height % 2), PAPER)
    draw = ImageDraw.Draw(page)
    for i, (name, tile) in enumerate(tiles.items()):
        x, y = left + i % columns * (wide + GAP), BAR + GAP + i // columns * (high + GAP)
        page.paste(Image.fromarray(tile), (x, y))
        if name:
            draw.text((x + 5, y + 3), name, INK, font(12), stroke_width=2, stroke_fill=PAPER)
    draw.text((GAP + 4, BAR // 2), caption, INK, font(13), anchor="lm")
    return np.asarray(page)


def enlarged(picture: np.ndarray) -> np.ndarray:
    times = math.ceil(LEAST / max(picture.shape[:2]))
    return picture.repeat(times, 0).repeat(times, 1)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own."""
    return ImageFont.load_default(size if features.check("freetype2") else None)


def write(path: pathlib.Path, frames: Iterator[np.ndarray], rate: float) -> tuple[pathlib.Path, str]:
    """Writes a video; nobody ever sees half of it.

    Args:
      path: without suffix; the folder is made.
      frames: u8 [H, W, 3], at least one, all of one size, H and W even.
      rate: frames per second.

    Returns:
      The file, and why it is not an mp4, or "".

    Raises:
      OSError: the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    why, form = no_mp4(), ".mp4"
    if why:
        form = ".webp" if features.check("webp") else ".gif"
    write_to = write_animation if why else write_mp4
    return whole(path.with_name(path.name + form), lambda x: write_to(x, frames, rate)), why


def no_mp4() -> str:
    """Why mp4 cannot be written here; "" if it can."""
    if not importlib.util.find_spec("av"):
        return EXTRA
    try:
        import av

        av.Codec("h264", "w")
    except (ImportError, ValueError) as error:  # a library that is missing, an encoder that is
        return f"PyAV cannot write H.264 here ({str(error).splitlines()[0]})"
    return ""


def whole(path: pathlib.Path, write_to: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Writes a file under another name and renames it."""
    fresh = path.with_name(f".{path.name}.new{path.suffix}")
    try:
        write_to(fresh)
        os.replace(fresh, path)
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
    return path


def write_mp4(path: pathlib.Path, frames: Iterator[np.ndarray], rate: float) -> None:
    """H.264, 4:2:0, which every browser plays."""
    import av

    with av.open(str(path), "w", options={"movflags": "faststart"}) as file:
        stream = file.add_stream("h264", rate=Fraction(rate).limit_denominator(1000), options={"crf": "20"})
        first = next(frames)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in itertools.chain([first], frames):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))


def write_animation(path: pathlib.Path, frames: Iterator[np.ndarray], rate: float) -> None:
    """Animated WebP or GIF, by the suffix. A frame lasts whole milliseconds, in a GIF whole hundredths."""
    tick = 10 if path.suffix == ".gif" else 1
    first, *others = (Image.fromarray(x) for x in frames)
    at = [round(i * 1000 / rate / tick) * tick for i in range(len(others) + 2)]
    lasts = [max(b - a, tick) for a, b in itertools.pairwise(at)]
    options: dict[str, Any] = {"quality": 80, "method": 2} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=others, duration=lasts, loop=0, **options)
