"""Where things are in an image: boxes as LLaVA writes them, and as fractions of the image that the user gave.

A box is written "[x0, y0, x1, y1]": the upper left and the lower right corner, as fractions of the square that the
model sees. For an image that was squashed, the fractions are the same; for one that was padded, they are others. (The
format of LLaVA-1.5's training data, arXiv 2310.03744.)
"""

import io
import math
import re
import unicodedata
from bisect import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageDraw, ImageFont, features

from imp_kit.answers import Answer
from imp_kit.errors import PromptError

Corners = tuple[float, float, float, float]
NUMBER = r"\s*(\d+(?:\.\d+)?|\.\d+)\s*"
WRITTEN = re.compile(rf"\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]")
INK = (255, 0, 80)
FONTS = (  # files that Linux, Windows or macOS come with; Pillow looks for them in the system's folders
    "DejaVuSans.ttf",
    "LiberationSans-Regular.ttf",
    "arial.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
    "msyh.ttc",
)


@dataclass(frozen=True)
class Box:
    """The box of what a phrase names; false as a condition if nothing was found.

    `fractions` are x0, y0, x1, y1 of the image as it was given, from its upper left corner; None if not found.
    """

    phrase: str
    fractions: Corners | None
    image: Image.Image = field(repr=False, compare=False)
    answer: Answer = field(repr=False, compare=False)

    def __bool__(self) -> bool:
        return self.fractions is not None

    @property
    def picture(self) -> Image.Image:
        """The older name of `image`."""
        return self.image

    @property
    def pixels(self) -> tuple[int, int, int, int] | None:
        """The same corners in pixels, as PIL's `crop` takes them, at least one pixel apart; None if not found."""
        if self.fractions is None:
            return None
        (left, top, right, bottom), (width, height) = self.fractions, self.image.size
        x0, x1 = _round_side(left * width, right * width, width)
        y0, y1 = _round_side(top * height, bottom * height, height)
        return int(x0), int(y0), int(x1), int(y1)

    def draw(self) -> Image.Image:
        """A copy of the image with the box and its phrase; without a box if nothing was found.

        The phrase is cut where the image is too narrow for it, and left out where the image is too small or no
        available font (Pillow's own, or one that systems come with) has its letters.
        """
        copy = self.image.copy()
        if self.pixels:
            x0, y0, x1, y1 = self.pixels
            width = max(2, min(copy.size) // 100)
            ImageDraw.Draw(copy).rectangle((x0, y0, x1 - 1, y1 - 1), outline=INK, width=width)
            _write_label(copy, self.phrase, (x0, y0), width)
        return copy

    def __str__(self) -> str:
        if self.fractions:
            return f"{self.phrase}: {_write_corners(self.fractions)}"
        return f'{self.phrase}: not found ({self.answer.checkpoint} said "{self.answer.text}")'

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.draw().save(file, "PNG")
        return file.getvalue()


def read_box(reply: str, size: tuple[int, int], pad: bool) -> Corners | None:
    """The one box that a reply holds, as fractions of a picture of this size (width, height) in pixels.

    None where the reply has no box, more than one, a number outside of 0..1, corners in the wrong order, or a box that
    lies wholly in the padding.
    """
    found = WRITTEN.findall(reply)
    if len(found) != 1:
        return None
    corners = _as_box(float(number) for number in found[0])
    if corners is None or not pad:
        return corners
    return _as_box(
        min(max((value * max(size) - before) / length, 0.0), 1.0)
        for value, (before, length) in zip(corners, _padding(size), strict=True)
    )


def region(box: Box | Corners, size: tuple[int, int], pad: bool) -> str:
    """A box as it is written in a question about an image of this size. Raises PromptError."""
    given: Any = box.fractions if isinstance(box, Box) else box
    try:
        corners = _as_box(float(value) for value in given)
    except (TypeError, ValueError, OverflowError):
        corners = None
    if corners is None:
        raise PromptError(
            f"The box is {box}; give x0, y0, x1, y1 as fractions of the picture, 0 <= x0 < x1 <= 1, 0 <= y0 < y1 <= 1."
        )
    if pad:
        x0, y0, x1, y1 = (
            (value * length + before) / max(size)
            for value, (before, length) in zip(corners, _padding(size), strict=True)
        )
        corners = x0, y0, x1, y1
    return f"[{_write_corners(corners)}]"


def _as_box(values: Iterable[float]) -> Corners | None:
    """Corners, if there are four of them and in order."""
    corners = tuple(values)
    if len(corners) != 4:
        return None
    x0, y0, x1, y1 = corners
    return (x0, y0, x1, y1) if 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 else None


def _write_corners(corners: Corners) -> str:
    (x0, x1), (y0, y1) = (_round_side(low, high, 1, 2) for low, high in zip(corners[:2], corners[2:], strict=True))
    return ", ".join(f"{value:.2f}" for value in (x0, y0, x1, y1))


def _round_side(low: float, high: float, end: int, digits: int | None = None) -> tuple[float, float]:
    """Both ends of a side within 0..end, rounded; outward, where nothing would be left between them."""
    first, last = round(low, digits), round(high, digits)
    if first == last:
        step = 1 if digits is None else 10**-digits
        first = min(first - step * (low < first), end - step)
        last = max(last + step * (high > last), first + step)
    return first, last


def _write_label(image: Image.Image, phrase: str, corner: tuple[int, int], margin: int) -> None:
    """Write a phrase above a box's upper left corner, or below it at the image's upper edge."""
    text = unicodedata.normalize("NFC", " ".join(phrase.split()))
    size = max(10, min(image.size) // 20)
    font = _find_font(text, size)
    if font is None:
        return
    pen = ImageDraw.Draw(image)
    halo = max(2, size // 12)

    def measure(text: str) -> tuple[int, int, int, int]:
        left, top, right, bottom = pen.textbbox((0, 0), text, font, stroke_width=halo)
        return math.floor(left), math.floor(top), math.ceil(right - left), math.ceil(bottom - top)

    if measure(text)[2] > image.width:
        lengths = range(len(text))
        text = text[: bisect(lengths, image.width, key=lambda length: measure(text[:length] + "…")[2]) - 1]
        text = text.rstrip() + "…"
    left, top, width, height = measure(text)
    if width > image.width or 2 * height > image.height:
        return
    x = min(corner[0], image.width - width)
    above, below = corner[1] - height - margin, corner[1] + 2 * margin
    y = above if above >= 0 else min(below, image.height - height)
    pen.text((x - left, y - top), text, INK, font, stroke_width=halo, stroke_fill="white")


def _find_font(text: str, size: int) -> ImageFont.FreeTypeFont | None:
    """The first font that has every letter of a text; None if there is none."""
    if not features.check("raqm") and any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in text):
        return None  # without Raqm, Pillow writes from left to right and joins no letters
    for name in (None, *FONTS):
        try:
            font = ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
        except (OSError, ImportError):  # no such file
            continue
        if not isinstance(font, ImageFont.FreeTypeFont):  # a Pillow without FreeType
            continue
        missing = _rendering(font, "\U0010ffff")  # which is no character
        if all(letter == " " or _rendering(font, letter) != missing for letter in text + "…"):
            return font
    return None


def _rendering(font: ImageFont.FreeTypeFont, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


def _padding(size: tuple[int, int]) -> list[tuple[int, int]]:
    """For each of x0, y0, x1, y1: pixels of padding before the image, and the image's own length."""
    return [((max(size) - length) // 2, length) for length in size] * 2
