"""Seeded pictures of codes in the style of a CAPTCHA, made here and for measuring only: the reading probe's pictures.

Every picture has the same canvas, whatever it shows: Imp squashes any picture to a square, so that a canvas that grew
with a caption would also change the code's shape. The code stands in the upper part; a strip below is kept for a
caption and stays blank without one. The same arguments give the same bytes on one version of numpy and pillow.
"""

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imp_kit.errors import SettingError
from imp_kit.system.extras import require

SIZE = (400, 160)  # width, height of every picture
STRIP = 40  # pixels at the bottom for the caption
MARGIN = 8  # pixels that codes and captions keep from the left and right edges
CHARSET = "34679ACDEFGHJKLMNPQRTUVWXY"  # upper case and digits without those that fonts draw alike: 0O 1I 5S 2Z 8B
GLYPH_HEIGHT = 40  # pixels of a capital letter
LONGEST = 12
CODE_FACE, CAPTION_FACE, CAPTION_EM = "DejaVuSansMono-Bold.ttf", "DejaVuSans.ttf", 21
GROUND = 255
# Factors draw from random streams of their own, so that changing one leaves all that the others do as it was.
_CODE, _POSITION, _ROTATION, _WARP, _LINES, _DOTS = range(6)


@dataclass(frozen=True)
class Distortion:
    """What is done to a code: nothing, by default."""

    rotation: float = 0.0  # degrees, 0 to 90: each character is turned by up to so much, either way
    warp: float = 0.0  # pixels, 0 to 20: the code is shifted along two waves by up to so much
    lines: int = 0  # 0 to 20 strokes across the code, in its own ink
    dots: int = 0  # 0 to 5,000 dots
    overlap: float = 0.0  # 0 to 0.5: the share of its width by which a character moves into the one before
    contrast: float = 1.0  # 0.05 to 1: ink against the white ground; 1 is black

    def __post_init__(self):
        bounds = {"rotation": (0, 90), "warp": (0, 20), "lines": (0, 20), "dots": (0, 5000), "overlap": (0, 0.5),
                  "contrast": (0.05, 1)}  # fmt: skip
        for field in fields(self):
            value, (low, high) = getattr(self, field.name), bounds[field.name]
            if not low <= value <= high:
                raise SettingError(f"{field.name} is {value}; give a value from {low} to {high}.")


# L0, clean, to L4, the hardest, in equal steps.
LEVELS = tuple(
    Distortion(
        rotation=30 * share,
        warp=8 * share,
        lines=round(4 * share),
        dots=round(300 * share),
        overlap=0.2 * share,
        contrast=1 - 0.5 * share,
    )
    for share in (0, 0.25, 0.5, 0.75, 1)
)
FACTORS = tuple(field.name for field in fields(Distortion))
GLYPH_HEIGHTS = (8, 12, 16, 24, 32, 40, 48)  # pixels, for the factor "size"


def one_factor(name: str, base: int) -> tuple[Distortion, ...]:
    """The five steps of one factor, all others as in LEVELS[base]."""
    return tuple(replace(LEVELS[base], **{name: getattr(level, name)}) for level in LEVELS)


def sample_code(seed: int, length: int = 8, charset: str = CHARSET) -> str:
    """A random code; the same for the same seed. Raises SettingError."""
    if not 1 <= length <= LONGEST:
        raise SettingError(f"The length is {length}; give 1 to {LONGEST} characters.")
    if not charset:
        raise SettingError("The charset is empty; give the characters to choose from.")
    return "".join(_random(seed, _CODE).choice(list(charset), length))


def draw_code(
    code: str,
    caption: str = "",
    distortion: Distortion = LEVELS[0],
    *,
    seed: int,
    glyph_height: int = GLYPH_HEIGHT,
) -> Image.Image:
    """Draw a code, and a clean caption in the strip below: RGB, 400 x 160.

    `glyph_height` is that of a capital letter, 8 to 48 pixels. Both texts may be empty, which leaves their area blank.
    Raises SettingError for a text that does not fit or characters that the face lacks, a height or seed out of range.
    """
    if not 8 <= glyph_height <= 48:
        raise SettingError(f"glyph_height is {glyph_height}; give 8 to 48 pixels.")
    for text in (code, caption):
        if strange := sorted({character for character in text if not " " <= character <= "~"}):
            raise SettingError(f"{text!r} has {strange[0]!r}; only the printable characters of ASCII can be drawn.")
    area = _draw_area(code, distortion, seed, glyph_height)
    image = Image.new("L", SIZE, GROUND)
    image.paste(area, (0, 0))
    if caption:
        font = face(CAPTION_FACE, CAPTION_EM)
        if font.getlength(caption) > SIZE[0] - 2 * MARGIN:
            raise SettingError(f"The caption {caption!r} does not fit into {SIZE[0] - 2 * MARGIN} pixels; shorten it.")
        ImageDraw.Draw(image).text((SIZE[0] // 2, SIZE[1] - STRIP // 2), caption, 0, font, anchor="mm")
    return image.convert("RGB")


def squashed_glyph(distortion: Distortion, glyph_height: int, image_size: int) -> tuple[float, float]:
    """Width and height in pixels that a checkpoint of this `image_size` sees of a character, after the squash."""
    advance = _em(glyph_height) * 0.602 * (1 - distortion.overlap)
    return advance * image_size / SIZE[0], glyph_height * image_size / SIZE[1]


@lru_cache(maxsize=256)
def face(name: str, em: int) -> ImageFont.FreeTypeFont:
    """A face of matplotlib's wheel, `em` pixels high; shaped by PIL itself, so that no other library changes it."""
    require("measure", "matplotlib", what="A picture of a code")
    import matplotlib

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", name)
    return ImageFont.truetype(str(path), em, layout_engine=ImageFont.Layout.BASIC)


def _random(seed: int, stream: int) -> np.random.Generator:
    if seed < 0:
        raise SettingError(f"The seed is {seed}; give a whole number from 0.")
    return np.random.default_rng([seed, stream])


def _em(glyph_height: int) -> int:
    """The size at which the code's face draws a capital of that height: 0.729 of an em."""
    return round(glyph_height / 0.729)


def _draw_area(code: str, distortion: Distortion, seed: int, glyph_height: int) -> Image.Image:
    """The upper part: L, 400 x 120."""
    width, height = SIZE[0], SIZE[1] - STRIP
    ink = round(GROUND * (1 - distortion.contrast))
    ground = Image.new("L", (width, height), GROUND)
    font = face(CODE_FACE, _em(glyph_height))
    glyph = font.getlength("M")
    advance = glyph * (1 - distortion.overlap)
    long = glyph + advance * (len(code) - 1) if code else 0
    if long > width - 2 * MARGIN:
        raise SettingError(f"{code!r} is {long:.0f} pixels wide at this glyph_height, over {width - 2 * MARGIN}.")
    position, rotation = _random(seed, _POSITION), _random(seed, _ROTATION)
    slack = (width - long) / 2 - MARGIN
    x = width / 2 - long / 2 + position.uniform(-1, 1) * min(slack, 16)
    side = 2 * glyph_height + 8
    for character in code:
        stencil = Image.new("L", (side, side))
        ImageDraw.Draw(stencil).text((side / 2, side / 2), character, 255, font, anchor="mm")
        turn = rotation.uniform(-1, 1) * distortion.rotation
        stencil = stencil.rotate(turn, Image.Resampling.BICUBIC)
        corner = (round(x + glyph / 2 - side / 2), round(height / 2 - side / 2))
        ground.paste(ink, corner, stencil)
        x += advance
    warped = _warp(ground, distortion.warp, _random(seed, _WARP))
    canvas = ImageDraw.Draw(warped)
    strokes, specks = _random(seed, _LINES), _random(seed, _DOTS)
    for _ in range(distortion.lines):
        ends = strokes.uniform(height * 0.15, height * 0.85, 2)
        canvas.line((0, ends[0], width, ends[1]), ink, 2)
    for _ in range(distortion.dots):
        x, y = specks.uniform(0, width), specks.uniform(0, height)
        canvas.ellipse((x - 1, y - 1, x + 1, y + 1), ink)
    return warped


def _warp(image: Image.Image, most: float, rng: np.random.Generator) -> Image.Image:
    """Each pixel fetched from up to `most` pixels away, along a wave down the columns and one along the rows."""
    phases, periods = rng.uniform(0, 2 * np.pi, 2), rng.uniform(70, 130, 2)
    if not most:
        return image
    pixels = np.asarray(image, float)
    height, width = pixels.shape
    y, x = np.mgrid[:height, :width].astype(float)
    from_x = np.clip(x + most * np.sin(2 * np.pi * y / periods[0] + phases[0]), 0, width - 1.001)
    from_y = np.clip(y + most * np.sin(2 * np.pi * x / periods[1] + phases[1]), 0, height - 1.001)
    left, top = from_x.astype(int), from_y.astype(int)
    across, down = from_x - left, from_y - top
    upper = pixels[top, left] * (1 - across) + pixels[top, left + 1] * across
    lower = pixels[top + 1, left] * (1 - across) + pixels[top + 1, left + 1] * across
    return Image.fromarray(np.round(upper * (1 - down) + lower * down).astype(np.uint8))
