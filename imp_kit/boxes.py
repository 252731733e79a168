"""Where things are in a picture: boxes as LLaVA writes them, and back to the picture that the user gave.

A box is written "[x0, y0, x1, y1]": the upper left and the lower right corner, as fractions of the square that the
model sees. A picture that was squashed has the same fractions; one that was padded has others. (The format of
LLaVA-1.5's training data, arXiv 2310.03744.)
"""

import io
import re
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from imp_kit.answers import Answer
from imp_kit.errors import PromptError

Corners = tuple[float, float, float, float]
NUMBER = r"\s*(\d+(?:\.\d+)?|\.\d+)\s*"
WRITTEN = re.compile(rf"\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]")
INK = (255, 0, 80)


@dataclass(frozen=True)
class Box:
    """The place of what a phrase names, or the news that it was not found; true if it was found.

    `fractions` are x0, y0, x1, y1 of the picture as it was given, from its upper left corner; None if not found.
    """

    phrase: str
    fractions: Corners | None
    picture: Image.Image = field(repr=False, compare=False)
    answer: Answer = field(repr=False, compare=False)

    def __bool__(self) -> bool:
        return self.fractions is not None

    @property
    def pixels(self) -> tuple[int, int, int, int] | None:
        """The same corners in pixels, as PIL's `crop` takes them; None if not found."""
        if self.fractions is None:
            return None
        return tuple(round(value * self.picture.size[i % 2]) for i, value in enumerate(self.fractions))

    def draw(self) -> Image.Image:
        """A copy of the picture with the box and its phrase; without a box if nothing was found."""
        copy = self.picture.copy()
        if self:
            x0, y0, x1, y1 = self.pixels
            pen = ImageDraw.Draw(copy)
            short = min(copy.size)
            pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=INK, width=max(2, short // 100))
            size = max(10, short // 20)
            pen.text(
                (x0 + 3, max(0, y0 - size - 6)), self.phrase, INK, font_size=size, stroke_width=2, stroke_fill="white"
            )
        return copy

    def __str__(self) -> str:
        if self:
            return f"{self.phrase}: {', '.join(f'{value:.2f}' for value in self.fractions)}"
        return f"{self.phrase}: not found ({self.answer.text})"

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
    corners = tuple(float(number) for number in found[0])
    if not _is_box(corners):
        return None
    if pad:
        corners = tuple(
            min(max((value * max(size) - before) / length, 0.0), 1.0)
            for value, (before, length) in zip(corners, _padding(size), strict=True)
        )
    return corners if _is_box(corners) else None


def region(box: Box | Corners, size: tuple[int, int], pad: bool) -> str:
    """A box as it is written in a question about a picture of this size. Raises PromptError."""
    corners = box.fractions if isinstance(box, Box) else box
    try:
        corners = tuple(float(value) for value in corners)
    except (TypeError, ValueError, OverflowError):
        corners = ()
    if not _is_box(corners):
        raise PromptError(
            f"The box is {box}; give x0, y0, x1, y1 as fractions of the picture, 0 <= x0 < x1 <= 1, 0 <= y0 < y1 <= 1."
        )
    if pad:
        corners = tuple(
            (value * length + before) / max(size)
            for value, (before, length) in zip(corners, _padding(size), strict=True)
        )
    return "[" + ", ".join(f"{value:.2f}" for value in corners) + "]"


def _is_box(corners: tuple[float, ...]) -> bool:
    if len(corners) != 4:
        return False
    x0, y0, x1, y1 = corners
    return 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1


def _padding(size: tuple[int, int]) -> list[tuple[int, int]]:
    """For each of x0, y0, x1, y1: pixels of padding before the picture, and the picture's own length."""
    return [((max(size) - length) // 2, length) for length in size] * 2
