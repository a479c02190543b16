"""Frames of what a world model imagines: what happened, what it predicted and the error, moving in step.

Of each sequence the model has seen the first rows; of the others it was told the actions alone. A column
is a sequence, a frame is a row of all of them.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from jaxrl import videos
from jaxrl.videos import BAR, FAINT, PAPER, Colour

RATE = 10.0  # rows per second, whatever the task: slow enough to compare
HOLD = 8  # frames for which the last row stays
OBSERVED: Colour = (56, 189, 248)
IMAGINED: Colour = (251, 146, 60)
NAMES = ("truth", "model", "error")  # from above
EDGE, LINE = 3, 8  # pixels of the frame around the pictures, of the line of time below them
TITLE = 160  # pixels that its words need


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dream:
    """Of one image key, on the host. T rows, of which the first were seen, of B sequences."""

    name: str  # of the key
    step: int  # env_steps of the run
    truth: np.ndarray  # u8 [T, B, h, w, stack * c], oldest frame first
    model: np.ndarray  # the same
    is_first: np.ndarray  # [T, B] bool, an episode begins
    observed: int  # rows that the model has seen
    channels: int  # c: 1 (grey) or 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How large a frame is to be, in pixels."""

    tile: int  # of a picture's longer edge, at least
    widest: int  # that sequences are left out for, but for the first
    margin: int  # of the names on the left
    gap: int  # between pictures
    letters: int


LARGE = Size(tile=128, widest=1280, margin=52, gap=4, letters=15)
SMALL = Size(tile=1, widest=videos.SMALL, margin=44, gap=2, letters=12)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Where things are on a frame."""

    size: Size
    high: int  # pixels of a picture
    wide: int
    columns: int

    @classmethod
    def of(cls, dream: Dream, size: Size) -> "Layout":
        high, wide = videos.enlarged(dream.truth[0, 0], size.tile).shape[:2]
        room = (size.widest - size.margin - 2 * EDGE - 2 * size.gap) // (wide + size.gap)
        columns = max(1, min(dream.truth.shape[1], room))
        return cls(size=size, high=high, wide=wide, columns=columns)

    @property
    def inner(self) -> tuple[int, int, int, int]:
        """Left, top, width and height of the area of the pictures, inside their frame."""
        gap = self.size.gap
        width = max(self.columns * (self.wide + gap) + gap, TITLE)
        return self.size.margin + EDGE, BAR + EDGE, width, len(NAMES) * (self.high + gap) + gap

    def corner(self, row: int, column: int) -> tuple[int, int]:
        left, top, _, _ = self.inner
        gap = self.size.gap
        return left + gap + column * (self.wide + gap), top + gap + row * (self.high + gap)


def frames(dream: Dream, size: Size = LARGE) -> Iterator[np.ndarray]:
    """u8 [H, W, 3] each, H and W even: one for each row, and the last row again until it was looked at."""
    layout, meant, rows = Layout.of(dream, size), meaningful(dream), len(dream.truth)
    for t in range(rows):
        frame = drawn(dream, layout, t, meant[t])
        yield from [frame] * (HOLD if t == rows - 1 else 1)


def triple(dream: Dream, t: int, columns: int) -> np.ndarray:
    """Row t of the first sequences, newest frame: u8 [3, columns, h, w, 3], in the order of NAMES.

    The error is (model - truth + 1) / 2 of pictures in [0, 1]: grey where there is none.
    """
    newest = (..., slice(-dream.channels, None))
    truth, model = (x[t, :columns][newest].astype(np.int16) for x in (dream.truth, dream.model))
    three = np.stack([truth, model, (model - truth + 255) // 2]).astype(np.uint8)
    return np.broadcast_to(three, (*three.shape[:-1], 3)).copy()


def meaningful(dream: Dream) -> np.ndarray:
    """[T, B] bool: no new episode has begun since the model was last shown anything.

    It is not told of one and goes on with the old one, so there is nothing to compare any more.
    """
    unseen = np.arange(len(dream.is_first))[:, None] >= dream.observed
    return ~np.logical_or.accumulate(dream.is_first & unseen, 0)


def drawn(dream: Dream, layout: Layout, t: int, meant: np.ndarray) -> np.ndarray:
    """The frame of row t. `meant`: [B] bool, where the model knows which episode it is in."""
    seen, size = t < dream.observed, layout.size
    colour = OBSERVED if seen else IMAGINED
    left, top, width, height = layout.inner
    below = top + height + EDGE + size.gap
    page = videos.Page(left + width + EDGE + size.gap, below + LINE + size.gap)
    page.box(left - EDGE, 0, width + 2 * EDGE, top + height + EDGE, colour)
    page.box(left, top, width, height, PAPER)
    title = f"{'observed' if seen else 'imagined'} {t + 1}/{len(dream.truth)}"
    page.words(left + 5, (BAR + EDGE) // 2, title, PAPER, size.letters)
    if width >= 3 * TITLE:
        page.words(left + 2 * TITLE, (BAR + EDGE) // 2, f"{dream.name}, step {dream.step:,}", PAPER)
    for row, (name, pictures) in enumerate(zip(NAMES, triple(dream, t, layout.columns), strict=True)):
        page.words(5, layout.corner(row, 0)[1] + layout.high // 2, name, FAINT, size.letters - 1)
        for column, picture in enumerate(pictures):
            x, y = layout.corner(row, column)
            shown = picture if meant[column] or not row else picture // 4 + 24
            page.picture(x, y, videos.enlarged(shown, size.tile))
            if not (row or meant[column]):
                page.label(x + 4, y + 2, "new episode" if layout.wide > 90 else "new")
    timeline(page, dream, t, (left - EDGE, below, width + 2 * EDGE))
    return page.frame()


def timeline(page: videos.Page, dream: Dream, t: int, place: tuple[int, int, int]) -> None:
    """All rows as a line in two colours, bright as far as they were played. `place`: left, top, width."""
    (left, top, width), total = place, len(dream.truth)
    for start, end, colour in ((0, dream.observed, OBSERVED), (dream.observed, total, IMAGINED)):
        dim = (colour[0] // 3, colour[1] // 3, colour[2] // 3)
        now = min(max(t + 1, start), end)
        for first, last, shade in ((start, now, colour), (now, end, dim)):
            x = left + width * first // total
            page.box(x, top, left + width * last // total - x, LINE, shade)
