"""Videos: pictures with names and captions drawn in, as mp4 (H.264) or, without PyAV, as WebP or GIF."""

import contextlib
import importlib.util
import io
import itertools
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

LEAST = 240  # pixels of an edge of a picture, at least; smaller ones are enlarged by a whole number
GAP, BAR = 4, 24  # pixels between pictures, and of the line of text above them
NARROWEST = 320  # pixels, so that the line of text fits
SMALL, FEW, MAX_BYTES = 320, 150, 3_000_000  # of a GIF: pixels of its width, frames, size
ANIMATED = 400  # frames of a WebP or GIF, at most; 0.5 MB each in memory
SLOWEST = 4  # frames per second of a GIF; one of a longer video runs faster than it
Colour = tuple[int, int, int]
PAPER, INK, FAINT = (24, 24, 27), (244, 244, 245), (161, 161, 170)
EXTRA = "PyAV is not installed; pip install 'jaxrl[video]' writes mp4"


class Page:
    """What a frame is drawn on, in pixels from the left and from the top; even edges, as H.264 wants."""

    def __init__(self, width: int, height: int):
        self._page = Image.new("RGB", (width + width % 2, height + height % 2), PAPER)
        self._draw = ImageDraw.Draw(self._page)

    @property
    def width(self) -> int:
        return self._page.width

    def box(self, left: int, top: int, width: int, height: int, colour: Colour) -> None:
        """A filled rectangle; none if it has no width or height."""
        if width > 0 and height > 0:
            self._draw.rectangle((left, top, left + width - 1, top + height - 1), colour)

    def picture(self, left: int, top: int, picture: np.ndarray) -> None:
        """u8 [h, w, 3]."""
        self._page.paste(Image.fromarray(picture), (left, top))

    def words(self, left: int, middle: int, text: str, colour: Colour = INK, size: int = 13) -> None:
        """A line of text whose middle is at a height."""
        self._draw.text((left, middle), text, colour, font(size), anchor="lm")

    def label(self, left: int, top: int, text: str) -> None:
        """Text that can be read on any picture."""
        self._draw.text((left, top), text, INK, font(12), stroke_width=2, stroke_fill=PAPER)

    def frame(self) -> np.ndarray:
        """u8 [H, W, 3]."""
        return np.array(self._page)


def sheet(pictures: Mapping[str, np.ndarray], caption: str) -> np.ndarray:
    """One frame: pictures in a grid, each with its name, under a line of text.

    Args:
      pictures: u8 [h, w, 3] each, by what is seen; two columns from two on, three from five on.

    Returns:
      u8 [H, W, 3], H and W even.
    """
    tiles = {name: enlarged(x) for name, x in pictures.items()}
    columns = 1 if len(tiles) == 1 else 2 if len(tiles) <= 4 else 3
    rows = math.ceil(len(tiles) / columns)
    high, wide = (max(x.shape[axis] for x in tiles.values()) for axis in (0, 1))
    width = max(columns * (wide + GAP) + GAP, NARROWEST)
    left = (width - columns * (wide + GAP) - GAP) // 2 + GAP
    page = Page(width, BAR + rows * (high + GAP) + GAP)
    for i, (name, tile) in enumerate(tiles.items()):
        x, y = left + i % columns * (wide + GAP), BAR + GAP + i // columns * (high + GAP)
        page.picture(x, y, tile)
        if name:
            page.label(x + 5, y + 3, name)
    page.words(GAP + 4, BAR // 2, caption)
    return page.frame()


def enlarged(picture: np.ndarray, least: int = LEAST) -> np.ndarray:
    """[h, w, ...] by a whole number, until the longer edge has `least` pixels."""
    times = math.ceil(least / max(picture.shape[:2]))
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
    """Animated WebP or GIF, by the suffix. A frame lasts whole milliseconds, in a GIF whole hundredths.

    Pillow wants all frames at once, so of long videos some are left out, evenly.
    """
    kept, stride, number, last = [], 1, -1, None
    for number, last in enumerate(frames):
        if number % stride == 0:
            kept.append((number, Image.fromarray(last)))
        if len(kept) > ANIMATED:
            stride *= 2
            kept = [x for x in kept if x[0] % stride == 0]
    if kept[-1][0] < number and last is not None:
        kept.append((number, Image.fromarray(last)))
    durations = lasting(
        [*(at / rate for at, _ in kept), (number + 1) / rate], 10 if path.suffix == ".gif" else 1
    )
    first, *others = (image for _, image in kept)
    options: dict[str, Any] = {"quality": 80, "method": 2} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0, **options)


def lasting(at: Sequence[float], tick: int) -> list[int]:
    """Milliseconds for which each frame stays, in whole ticks that add up.

    Args:
      at: seconds at which each frame begins, and the last one ends.
    """
    rounded = [round(x * 1000 / tick) * tick for x in at]
    return [max(b - a, tick) for a, b in itertools.pairwise(rounded)]


class Thumbnail:
    """The frames of a video as a small GIF: at most FEW + 1, evenly chosen, whatever the length of the video.

    At true speed, as long as that leaves SLOWEST frames a second.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[int, Image.Image]] = []
        self._stride, self._seen = 1, 0
        self._last: np.ndarray | None = None

    def watching(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same frames, u8 [H, W, 3], which are remembered as they pass."""
        for frame in frames:
            self.add(frame)
            yield frame

    def add(self, frame: np.ndarray) -> None:
        if self._seen % self._stride == 0:
            self._kept.append((self._seen, reduced(frame)))
        if len(self._kept) > FEW:
            self._thin()
        self._last, self._seen = frame, self._seen + 1

    def gif(self, rate: float) -> bytes:
        """What has passed at `rate` frames per second, in about MAX_BYTES at most."""
        assert self._last is not None, "no frame has passed"
        last = reduced(self._last)
        while True:
            kept = [x for x in self._kept if x[0] < self._seen - 1] + [(self._seen - 1, last)]
            pace = max(rate, min(rate, SLOWEST) * self._stride)
            durations = lasting([*(at / pace for at, _ in kept), self._seen / pace], 10)
            file = io.BytesIO()
            first, *others = (image for _, image in kept)
            first.save(file, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
            if file.tell() <= MAX_BYTES or len(kept) <= 2:
                return file.getvalue()
            self._thin()

    def _thin(self) -> None:
        self._stride *= 2
        self._kept = [x for x in self._kept if x[0] % self._stride == 0]


def reduced(frame: np.ndarray) -> Image.Image:
    """A frame in 256 colours of its own, at most SMALL pixels wide."""
    image = Image.fromarray(frame)
    if image.width > SMALL:
        height = max(1, round(image.height * SMALL / image.width))
        image = image.resize((SMALL, height), Image.Resampling.BOX)
    return image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
