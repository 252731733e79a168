"""Handwriting, drawn stroke by stroke: no package of the kit brings a face that looks handwritten.

Each small letter is a few strokes; their points are moved at random, slanted, and joined by smooth curves. So a hand is
a seed: its slant, its size and the width of its pen are the same in all that it writes.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from imp_kit.errors import SettingError

Points = list[tuple[float, float]]

# x from the left, y up from the baseline; a letter like x is 1 high. The last x of a letter is about its width.
_BOWL: Points = [(0.1, 0.6), (0.4, 1), (0.8, 0.75), (0.8, 0.25), (0.45, 0), (0.1, 0.25)]
_HOOK: Points = [(0.8, 0.75), (0.5, 1), (0.15, 0.75), (0.15, 0.25), (0.45, 0), (0.8, 0.35)]
_ARCH: Points = [(0.1, 0.6), (0.45, 1), (0.75, 0.75), (0.75, 0)]
LETTERS: dict[str, list[Points]] = {
    "a": [_HOOK, [(0.8, 1), (0.8, 0.25), (0.95, 0)]],
    "b": [[(0.1, 1.9), (0.1, 0)], _BOWL],
    "c": [[(0.8, 0.85), (0.5, 1), (0.15, 0.75), (0.15, 0.25), (0.5, 0), (0.8, 0.15)]],
    "d": [_HOOK, [(0.8, 1.9), (0.8, 0.3), (0.95, 0)]],
    "e": [[(0.15, 0.5), (0.8, 0.55), (0.75, 0.9), (0.45, 1), (0.15, 0.7), (0.18, 0.2), (0.5, 0), (0.85, 0.2)]],
    "f": [[(0.75, 1.75), (0.5, 1.9), (0.35, 1.5), (0.35, 0)], [(0.1, 1), (0.65, 1)]],
    "g": [_HOOK, [(0.8, 1), (0.8, -0.4), (0.5, -0.8), (0.15, -0.6)]],
    "h": [[(0.1, 1.9), (0.1, 0)], _ARCH],
    "i": [[(0.2, 1), (0.2, 0.15), (0.35, 0)], [(0.2, 1.4), (0.22, 1.46)]],
    "j": [[(0.35, 1), (0.35, -0.5), (0.1, -0.8)], [(0.35, 1.4), (0.37, 1.46)]],
    "k": [[(0.1, 1.9), (0.1, 0)], [(0.7, 1), (0.12, 0.45)], [(0.3, 0.6), (0.75, 0)]],
    "l": [[(0.2, 1.9), (0.2, 0.15), (0.4, 0)]],
    "m": [
        [(0.1, 1), (0.1, 0)],
        [(0.1, 0.7), (0.35, 1), (0.55, 0.75), (0.55, 0)],
        [(0.55, 0.7), (0.85, 1), (1.05, 0.75), (1.05, 0)],
    ],
    "n": [[(0.1, 1), (0.1, 0)], _ARCH],
    "o": [[(0.5, 1), (0.15, 0.7), (0.15, 0.3), (0.5, 0), (0.85, 0.3), (0.85, 0.7), (0.5, 1)]],
    "p": [[(0.1, 1), (0.1, -0.8)], _BOWL],
    "q": [_HOOK, [(0.8, 1), (0.8, -0.8), (0.95, -0.6)]],
    "r": [[(0.1, 1), (0.1, 0)], [(0.1, 0.6), (0.35, 0.95), (0.65, 0.95)]],
    "s": [[(0.75, 0.85), (0.45, 1), (0.15, 0.8), (0.3, 0.55), (0.65, 0.45), (0.75, 0.2), (0.45, 0), (0.1, 0.12)]],
    "t": [[(0.35, 1.6), (0.35, 0.2), (0.5, 0), (0.7, 0.1)], [(0.1, 1.05), (0.65, 1.05)]],
    "u": [[(0.1, 1), (0.1, 0.3), (0.4, 0), (0.75, 0.35)], [(0.75, 1), (0.75, 0.2), (0.9, 0)]],
    "v": [[(0.1, 1), (0.4, 0)], [(0.4, 0), (0.75, 1)]],
    "w": [[(0.1, 1), (0.3, 0)], [(0.3, 0), (0.58, 0.8)], [(0.58, 0.8), (0.85, 0)], [(0.85, 0), (1.05, 1)]],
    "x": [[(0.1, 1), (0.75, 0)], [(0.75, 1), (0.1, 0)]],
    "y": [[(0.1, 1), (0.4, 0.1)], [(0.75, 1), (0.4, 0.1), (0.15, -0.75)]],
    "z": [[(0.1, 1), (0.75, 1)], [(0.75, 1), (0.1, 0)], [(0.1, 0), (0.8, 0)]],
}
SPACE, GAP = 0.7, 0.22  # between words and between letters
STEPS = 8  # of a curve between two points


@dataclass(frozen=True)
class Hand:
    """How somebody writes, in heights of a small letter: slant (x a y), jitter of each point, width of the pen."""

    slant: float
    jitter: float
    pen: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Hand":
        return cls(rng.uniform(-0.05, 0.35), rng.uniform(0.02, 0.06), rng.uniform(0.1, 0.17))


def width_of(text: str) -> float:
    """The width of a text before it is slanted, in heights of a small letter. Raises SettingError."""
    return sum(_advance(letter) for letter in text)


def _advance(letter: str) -> float:
    if letter == " ":
        return SPACE
    if letter not in LETTERS:
        raise SettingError(f"There are no strokes for {letter!r}; write with the small letters a to z and blanks.")
    return max(x for stroke in LETTERS[letter] for x, _ in stroke) + GAP


def write(
    image: Image.Image,
    text: str,
    place: tuple[float, float],
    size: float,
    hand: Hand,
    rng: np.random.Generator,
    ink: tuple[int, int, int] = (30, 35, 70),
) -> None:
    """Write a text from `place`, the left end of its baseline in pixels; `size` is the height of x in pixels.

    Raises SettingError for what is no small letter.
    """
    width_of(text)
    canvas = ImageDraw.Draw(image)
    at = 0.0
    for letter in text:
        drift = rng.normal(0, hand.jitter)  # a letter stands a little above or below the line
        for stroke in LETTERS.get(letter, ()):
            points = np.asarray(stroke, float) + rng.normal(0, hand.jitter, (len(stroke), 2)) + (at, drift)
            points[:, 0] += hand.slant * points[:, 1]
            curve(canvas, [(place[0] + size * x, place[1] - size * y) for x, y in points], size * hand.pen, ink)
        at += _advance(letter)


def curve(canvas: ImageDraw.ImageDraw, points: Points, width: float, ink: tuple[int, int, int]) -> None:
    """A line with round ends through points in pixels, smooth (Catmull and Rom, 1974)."""
    p = np.asarray([points[0], *points, points[-1]], float)
    t = np.linspace(0, 1, STEPS, endpoint=False)[:, None]
    parts = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    smooth = [tuple(point) for point in np.concatenate([*parts, p[-1:]])]
    canvas.line(smooth, ink, max(1, round(width)), joint="curve")
    for x, y in (smooth[0], smooth[-1]):
        canvas.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), ink)
