"""Drawings of other origins than the kit's own code, for tests/tools/origins.py: plain shapes, icons, matplotlib.

No image here was drawn by `imp_kit.experiments.drawings`, and none is for training. Each is made of a fixed seed, and
is never changed to suit a result. Colors are those that a person would name so, on a ground that they stand out from.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import skimage.draw
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Circle, Ellipse, PathPatch, Polygon, Rectangle, RegularPolygon, Wedge
from matplotlib.path import Path as Curve
from matplotlib.transforms import Affine2D
from PIL import Image, ImageColor, ImageDraw, ImageFont

from imp_kit.errors import ImpKitError

SEED = 1118
SHAPES = ("circle", "square", "triangle", "star")
OBJECTS = ("bus", "house", "tree", "person", "cat", "cup", "box", "door")
MOST = 5  # equal things in an image
NUMBER = 117  # drawings of an origin: nine times the groups of `_groups`
LEAST_CONTRAST = 50  # of the lightness of a thing's color and of its ground, 0 to 255
LEAST_ON_WHITE = 25  # where even yellow shows

Color = tuple[int, int, int]
Spot = tuple[float, float, float]  # a thing's centre and its longer side, in pixels


class OriginError(ImpKitError):
    """An origin's images cannot be made; the text says what is missing and what to do."""


@dataclass(frozen=True)
class Thing:
    """One thing of a drawing. A person's color is that of the shirt, or of the whole figure."""

    kind: str
    color: str


@dataclass(frozen=True)
class Drawing:
    """An RGB image and all that it shows; `drawn_as` is for the eyes of who checks the truth."""

    image: Image.Image
    things: tuple[Thing, ...]
    drawn_as: str


# ------------------------------------------------------------------------------------------------ where things are


def spots(rng: np.random.Generator, size: tuple[int, int], count: int) -> list[Spot]:
    """Where `count` things of equal size are: near the center, or in a row, or from four on at times in two rows."""
    width, height = size
    if count == 1:
        side = min(size) * rng.uniform(0.4, 0.8)
        return [(width * rng.uniform(0.42, 0.58), height * rng.uniform(0.44, 0.56), side)]
    rows = [count] if count < 4 or rng.random() < 0.5 else [count - count // 2, count // 2]
    pitch, fall = width * 0.94 / max(rows), height * 0.94 / len(rows)
    side = min(pitch, fall) * rng.uniform(0.66, 0.82)
    found = []
    for row, number in enumerate(rows):
        y = height / 2 + (row - (len(rows) - 1) / 2) * fall
        found += [(width / 2 + (column - (number - 1) / 2) * pitch, y, side) for column in range(number)]
    return found


def _pick(rng: np.random.Generator, options: Sequence):
    return options[int(rng.integers(len(options)))]


def _size(rng: np.random.Generator, count: int) -> tuple[int, int]:
    sizes = ((300, 300), (400, 300), (320, 240), (512, 512)) if count == 1 else ((400, 300), (480, 300), (600, 360))
    return _pick(rng, sizes)


def _groups(number: int, kinds: Sequence[str], rng: np.random.Generator) -> list[str]:
    """The kinds of drawing `number`: of each 13, six show one thing, two show two, five show one to five equal ones."""
    turn, place = divmod(number, 13)
    kind = kinds[(7 * turn + place) % len(kinds)]
    if place < 6:
        return [kind]
    if place < 8:
        return [kind, _pick(rng, [other for other in kinds if other != kind])]
    return [kind] * (place - 7)


Draw = Callable[[np.random.Generator, Sequence[str]], Drawing]


def _drawings(stream: int, kinds: Sequence[str], number: int, draw: Draw) -> list[Drawing]:
    """Drawing i depends on the seed, the origin's stream and i alone."""
    made = []
    for index in range(number):
        rng = np.random.default_rng([SEED, stream, index])
        made.append(draw(rng, _groups(index, kinds, rng)))
    return made


def _colors(rng: np.random.Generator, palette: dict, kinds: Sequence[str], barred: dict) -> list[str]:
    """A color for each of two kinds, or one for all that are equal."""
    chosen: list[str] = []
    for kind in dict.fromkeys(kinds):
        chosen.append(_pick(rng, [name for name in palette if name not in (*chosen, *barred.get(kind, ()))]))
    return chosen if len(set(kinds)) > 1 else chosen * len(kinds)


# ------------------------------------------------------------------------------------------------ plain shapes

PLAIN = {  # the colors of Material Design, and well-known ones of CSS
    "red": ("#f44336", "#ff0000", "#c62828"),
    "orange": ("#ff9800", "#ffa500", "#fb8c00"),
    "yellow": ("#ffeb3b", "#ffff00", "#fdd835"),
    "green": ("#4caf50", "#008000", "#2e7d32"),
    "blue": ("#2196f3", "#0000ff", "#1565c0"),
    "purple": ("#9c27b0", "#800080", "#7b1fa2"),
    "pink": ("#f48fb1", "#ffc0cb", "#ff69b4"),
    "brown": ("#795548", "#8b4513", "#6d4c41"),
    "black": ("#000000", "#212121"),
    "white": ("#ffffff",),
    "gray": ("#808080", "#757575"),
}
GROUNDS = ("#ffffff", "#ffffff", "#ffffff", "#fff8e1", "#e3f2fd", "#263238", "#1b5e20", "#311b92", "#cfd8dc", "#80cbc4")


def _lightness(color: Color) -> float:
    red, green, blue = color
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _ground(rng: np.random.Generator, paints: Sequence[Color], grounds: Sequence[str]) -> Color:
    """One on which each paint stands out."""

    def is_clear(ground: Color) -> bool:
        least = LEAST_ON_WHITE if ground == (255, 255, 255) else LEAST_CONTRAST
        return all(abs(_lightness(ground) - _lightness(paint)) >= least for paint in paints)

    return _pick(rng, [ground for ground in map(ImageColor.getrgb, grounds) if is_clear(ground)])


def corners(kind: str, spot: Spot, turn: float, inner: float) -> np.ndarray:
    """The corners (n, 2) of a triangle, square or star with its point up; `turn` in degrees, `inner` a star's waist."""
    x, y, side = spot
    number = {"triangle": 3, "square": 4, "star": 10}[kind]
    radius = side / (2 if kind != "square" else 2**0.5)
    radii = np.where(np.arange(number) % 2, inner, 1) * radius if kind == "star" else np.full(number, radius)
    angles = np.deg2rad(turn - 90 + (45 if kind == "square" else 0)) + 2 * np.pi * np.arange(number) / number
    return np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1)


Marks = list[tuple[str, Spot, Color]]  # what to draw: kind, place, color
FINE = 4  # smooth images are drawn so much larger, and reduced


def _by_skimage(rng: np.random.Generator, size: tuple[int, int], ground: Color, marks: Marks) -> Image.Image:
    """Filled, with the hard edges of skimage.draw."""
    pixels = np.full((size[1], size[0], 3), ground, np.uint8)
    turn, inner = rng.uniform(-6, 6), rng.uniform(0.36, 0.52)
    for kind, (x, y, side), paint in marks:
        if kind == "circle":
            area = skimage.draw.disk((y, x), side / 2, shape=pixels.shape[:2])
        elif kind == "square":
            area = skimage.draw.rectangle((round(y - side / 2), round(x - side / 2)), extent=[round(side)] * 2)
        else:
            points = corners(kind, (x, y, side), turn, inner)
            area = skimage.draw.polygon(points[:, 1], points[:, 0], pixels.shape[:2])
        pixels[tuple(area)] = paint
    return Image.fromarray(pixels)


def _by_pillow(rng: np.random.Generator, size: tuple[int, int], ground: Color, marks: Marks) -> Image.Image:
    """Smooth, every second image with a dark outline."""
    image = Image.new("RGB", (size[0] * FINE, size[1] * FINE), ground)
    canvas = ImageDraw.Draw(image)
    turn, inner, outline = rng.uniform(-15, 15), rng.uniform(0.36, 0.52), rng.random() < 0.5
    for kind, spot, paint in marks:
        x, y, side = (FINE * value for value in spot)
        edge, width = (40, 40, 40) if outline and max(paint) > 100 else paint, round(side * 0.025)
        if kind == "circle":
            canvas.ellipse((x - side / 2, y - side / 2, x + side / 2, y + side / 2), paint, edge, width)
        else:
            points = [tuple(point) for point in corners(kind, (x, y, side), turn, inner)]
            canvas.polygon(points, paint)
            canvas.line([*points, *points[:2]], edge, width, "curve")
    return image.reduce(FINE)


TURTLE = {"circle": (36, 10), "square": (4, 90), "triangle": (3, 120), "star": (5, 144)}  # steps, degrees after each


def _by_turtle(rng: np.random.Generator, size: tuple[int, int], ground: Color, marks: Marks) -> Image.Image:
    """Forward and turn, as a turtle draws: the line of its pen, every second image filled."""
    image = Image.new("RGB", (size[0] * FINE, size[1] * FINE), ground)
    canvas = ImageDraw.Draw(image)
    filled, pen = rng.random() < 0.5, rng.uniform(0.05, 0.09)
    for kind, spot, paint in marks:
        x, y, side = (FINE * value for value in spot)
        steps, degrees = TURTLE[kind]
        angles = np.deg2rad(degrees * np.arange(steps) + (180 if kind == "triangle" else 0))
        path = np.cumsum(np.stack([np.cos(angles), np.sin(angles)], axis=1), axis=0)
        path = (path - (path.min(axis=0) + path.max(axis=0)) / 2) / np.ptp(path, axis=0).max()
        if kind == "star":
            path[:, 1] *= -1  # with a point up
        points = [(x + side * right, y + side * down) for right, down in path]
        if filled:
            canvas.polygon(points, paint)
        canvas.line([*points, *points[:2]], paint, round(side * pen), "curve")
    return image.reduce(FINE)


PAINTERS = {"skimage": _by_skimage, "Pillow": _by_pillow, "turtle": _by_turtle}


def _draw_shapes(rng: np.random.Generator, kinds: Sequence[str]) -> Drawing:
    size, painter = _size(rng, len(kinds)), _pick(rng, tuple(PAINTERS))
    names = _colors(rng, PLAIN, kinds, {})
    shades = {name: ImageColor.getrgb(_pick(rng, PLAIN[name])) for name in dict.fromkeys(names)}
    paints = [shades[name] for name in names]
    ground = _ground(rng, paints, GROUNDS)
    marks = list(zip(kinds, spots(rng, size, len(kinds)), paints, strict=True))
    return Drawing(PAINTERS[painter](rng, size, ground, marks), tuple(map(Thing, kinds, names)), painter)


def shapes(number: int = NUMBER) -> list[Drawing]:
    """Circles, squares, triangles and stars, drawn with skimage.draw, Pillow, and as a turtle does."""
    return _drawings(1, SHAPES, number, _draw_shapes)


# ------------------------------------------------------------------------------------------------ icons

PACKAGE, VERSION = "qtawesome", "1.4.2"
INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"
# Fonts of that package, with their licences: name of the file, with {} where the table of names has "charmap-".
FONTS = {
    "fa5": "fontawesome5-solid-webfont-{}5.15.4",  # SIL OFL 1.1
    "fa6": "fontawesome6-solid-webfont-{}6.7.2",  # SIL OFL 1.1
    "line": "fontawesome6-regular-webfont-{}6.7.2",  # SIL OFL 1.1
    "mdi": "materialdesignicons6-webfont-{}6.9.96",  # Apache-2.0
    "ph": "phosphor-{}1.3.0",  # MIT
    "ri": "remixicon-{}2.5.0",  # Apache-2.0
    "ei": "elusiveicons-webfont-{}2.0",  # SIL OFL 1.1
}
# Those that a person names so at once, chosen by looking at them. Left out were vans, pentagons without a door, busts,
# heads of tigers, cubes, glasses, doors that are only a square with a dot, and squares that are nearly round.
ICONS = {
    "bus": "fa5:bus fa5:bus-alt fa6:bus fa6:bus-simple mdi:bus mdi:bus-side mdi:bus-double-decker ph:bus ph:bus-fill "
    "ri:bus-fill ri:bus-2-fill ri:bus-2-line",
    "house": "fa5:home fa6:house fa6:house-chimney fa6:house-chimney-window mdi:home mdi:home-outline mdi:home-variant "
    "ph:house ph:house-fill ph:house-line-fill ri:home-4-fill ri:home-4-line ri:home-8-fill ei:home",
    "tree": "fa5:tree fa6:tree mdi:pine-tree mdi:pine-tree-variant mdi:tree ph:tree ph:tree-fill ph:tree-bold "
    "ph:tree-evergreen ph:tree-evergreen-fill",
    "person": "fa5:male fa5:female fa5:child fa6:person fa6:person-dress fa6:child fa6:child-reaching "
    "fa6:person-walking mdi:human mdi:human-male mdi:human-female mdi:human-handsup mdi:human-handsdown "
    "mdi:human-greeting mdi:walk ph:person ph:person-fill ph:person-simple-bold ri:walk-fill ei:person",
    "cat": "fa5:cat fa6:cat mdi:cat",
    "cup": "fa5:mug-hot fa5:coffee fa6:mug-hot fa6:mug-saucer mdi:coffee mdi:coffee-outline ph:coffee ph:coffee-fill "
    "ph:coffee-bold ri:cup-fill ri:cup-line",
    "box": "fa5:box fa5:box-open fa5:archive fa6:box fa6:box-open fa6:box-archive mdi:package-variant "
    "mdi:package-variant-closed mdi:archive ph:package ph:package-fill ph:archive ph:archive-fill ri:archive-fill "
    "ri:archive-line",
    "door": "fa5:door-closed fa5:door-open fa6:door-closed fa6:door-open mdi:door mdi:door-closed ph:door ph:door-fill "
    "ph:door-bold ri:door-closed-fill ri:door-closed-line ri:door-open-fill ri:door-open-line",
    "star": "fa5:star fa6:star line:star mdi:star mdi:star-outline ph:star ph:star-fill ph:star-bold ri:star-fill "
    "ri:star-line ei:star ei:star-empty",
    "circle": "fa5:circle fa6:circle line:circle mdi:circle mdi:circle-outline ph:circle ph:circle-fill ph:circle-bold "
    "ri:checkbox-blank-circle-fill ri:checkbox-blank-circle-line",
    "square": "fa6:square fa6:square-full line:square mdi:square mdi:square-outline ph:square ph:square-fill "
    "ph:square-bold ri:checkbox-blank-fill ri:checkbox-blank-line",
    "triangle": "mdi:triangle mdi:triangle-outline mdi:triangle-down ph:triangle ph:triangle-fill ph:triangle-bold",
}
ICON_COLORS = {  # names of CSS; yellow is too pale on white for a thin line
    "red": "red",
    "orange": "darkorange",
    "green": "green",
    "blue": "blue",
    "purple": "purple",
    "pink": "hotpink",
    "brown": "saddlebrown",
    "black": "black",
    "gray": "gray",
}


@cache
def _names(file: Path) -> dict[str, str]:
    """Each icon's code point, in hexadecimal digits."""
    return json.loads(file.read_text("utf-8"))


@dataclass(frozen=True)
class IconFonts:
    """The folder with the fonts of the icons."""

    folder: Path

    def glyph(self, icon: str, side: float) -> tuple[str, ImageFont.FreeTypeFont]:
        """The character of an icon such as "fa6:bus", and its font, scaled so that the longer side is `side` pixels."""
        font, name = icon.split(":")
        letter, file = chr(int(_names(self._file(font, "charmap-", "json"))[name], 16)), self._file(font, "", "ttf")
        left, top, right, bottom = ImageFont.truetype(file, 1000).getbbox(letter)
        return letter, ImageFont.truetype(file, round(1000 * side / max(right - left, bottom - top)))

    def _file(self, font: str, part: str, end: str) -> Path:
        file = self.folder / f"{FONTS[font].format(part)}.{end}"
        if not file.is_file():
            raise OriginError(f"{file.name} is not in {PACKAGE}, which has to be version {VERSION}: {INSTALL}.")
        return file


def icon_fonts(package: str = PACKAGE) -> IconFonts:
    """The fonts of the installed package, which is not imported. Raises OriginError where it is missing."""
    found = find_spec(package)
    if found is None:
        raise OriginError(f"The icons are glyphs of fonts that {package} brings (2.6 MB); it is missing: {INSTALL}.")
    return IconFonts(Path(found.submodule_search_locations[0]) / "fonts")


def _draw_icons(fonts: IconFonts, rng: np.random.Generator, kinds: Sequence[str]) -> Drawing:
    size = _size(rng, len(kinds))
    names = _colors(rng, ICON_COLORS, kinds, {})
    icons = {kind: _pick(rng, ICONS[kind].split()) for kind in dict.fromkeys(kinds)}
    image = Image.new("RGB", size, "white")
    canvas = ImageDraw.Draw(image)
    for kind, name, (x, y, side) in zip(kinds, names, spots(rng, size, len(kinds)), strict=True):
        letter, font = fonts.glyph(icons[kind], side)
        left, top, right, bottom = font.getbbox(letter)
        canvas.text((x - (left + right) / 2, y - (top + bottom) / 2), letter, ICON_COLORS[name], font)
    return Drawing(image, tuple(map(Thing, kinds, names)), " ".join(icons.values()))


def icons(number: int = NUMBER) -> list[Drawing]:
    """Free icons of several fonts, each in one color on white. Raises OriginError where the fonts are missing."""
    fonts = icon_fonts()
    return _drawings(2, (*OBJECTS, *SHAPES), number, lambda rng, kinds: _draw_icons(fonts, rng, kinds))


# ------------------------------------------------------------------------------------------------ matplotlib

CHART_COLORS = {  # matplotlib's own cycle, and names of its own that a person would call so
    "red": ("tab:red", "red", "crimson"),
    "orange": ("tab:orange", "darkorange"),
    "yellow": ("gold", "yellow"),
    "green": ("tab:green", "g", "forestgreen"),
    "blue": ("tab:blue", "b", "royalblue"),
    "purple": ("tab:purple", "purple"),
    "pink": ("tab:pink", "hotpink"),
    "brown": ("tab:brown", "saddlebrown"),
    "black": ("k",),
    "gray": ("tab:gray", "gray"),
}
FACES = ("white", "white", "white", "aliceblue", "ivory", "lavender")
# A brown tree is a trunk, and on a black thing its own lines do not show.
BARRED = {"tree": ("brown", "black"), "cat": ("pink",), "box": ("black",), "door": ("black",)}


def _mix(color: str, other: str, share: float) -> tuple[float, ...]:
    return tuple((1 - share) * a + share * b for a, b in zip(to_rgb(color), to_rgb(other), strict=True))


def _star(c: str) -> list:
    star = Curve.unit_regular_star(5, 0.42).transformed(Affine2D().scale(0.5).translate(0.5, 0.5))
    return [PathPatch(star, fc=c, ec="k")]


def _bus(c: str) -> list:
    windows = [Rectangle((x, 0.5), 0.15, 0.14, fc="lightcyan", ec="k") for x in (0.06, 0.25, 0.44)]
    wheels = [
        Circle((x, 0.25), radius, fc=fill) for x in (0.24, 0.76) for radius, fill in ((0.1, "0.1"), (0.04, "0.8"))
    ]
    door = Rectangle((0.65, 0.3), 0.12, 0.34, fc="lightcyan", ec="k")
    front = Rectangle((0.84, 0.47), 0.16, 0.17, fc="lightcyan", ec="k")
    return [Rectangle((0, 0.25), 1, 0.47, fc=c, ec="k"), *windows, door, front, *wheels]


def _house(c: str) -> list:
    roof = Polygon(((0, 0.55), (0.5, 0.98), (1, 0.55)), fc=_mix(c, "k", 0.25), ec="k")
    windows = [Rectangle((x, 0.27), 0.15, 0.15, fc="lightcyan", ec="k") for x in (0.2, 0.65)]
    return [
        Rectangle((0.1, 0), 0.8, 0.55, fc=c, ec="k"),
        roof,
        Rectangle((0.43, 0), 0.14, 0.3, fc="0.3", ec="k"),
        *windows,
    ]


def _round_tree(c: str) -> list:
    crown = [Circle(at, 0.24, fc=c) for at in ((0.3, 0.55), (0.7, 0.55), (0.5, 0.76), (0.5, 0.55))]
    return [Rectangle((0.43, 0), 0.14, 0.4, fc="saddlebrown"), *crown]


def _fir(c: str) -> list:
    steps = [RegularPolygon((0.5, y), 3, radius=radius, fc=c, ec=_mix(c, "k", 0.4)) for y, radius in
             ((0.34, 0.36), (0.54, 0.31), (0.74, 0.25))]  # fmt: skip
    return [Rectangle((0.44, 0), 0.12, 0.25, fc="saddlebrown"), *steps]


def _person(c: str) -> list:
    skin, dark = "burlywood", "0.25"
    legs = [Rectangle((x, 0), 0.09, 0.36, fc=dark) for x in (0.39, 0.52)]
    arms = [
        Polygon(((0.5 + s * 0.13, 0.68), (0.5 + s * 0.3, 0.42), (0.5 + s * 0.23, 0.38), (0.5 + s * 0.1, 0.55)), fc=c)
        for s in (-1, 1)
    ]
    hands = [Circle((0.5 + s * 0.27, 0.38), 0.045, fc=skin) for s in (-1, 1)]
    face = [Circle((x, 0.86), 0.015, fc="k") for x in (0.46, 0.54)]
    mouth = Arc((0.5, 0.82), 0.09, 0.06, theta1=190, theta2=350, ec="k")
    body = Rectangle((0.36, 0.33), 0.28, 0.37, fc=c)
    return [*legs, *hands, *arms, body, Circle((0.5, 0.83), 0.13, fc=skin, ec="0.3"), *face, mouth]


def _cat(c: str) -> list:
    line = "w" if to_rgb(c) == to_rgb("k") else "k"
    ears = [Polygon(((0.5 + s * 0.25, 0.64), (0.5 + s * 0.23, 0.97), (0.5 + s * 0.06, 0.84)), fc=c, ec=line)
            for s in (-1, 1)]  # fmt: skip
    eyes = [Ellipse((0.5 + s * 0.1, 0.71), *size, fc=fill) for s in (-1, 1) for size, fill in
            (((0.09, 0.09), "w"), ((0.03, 0.08), "k"))]  # fmt: skip
    whiskers = [Polygon(((0.5 + s * 0.07, 0.62), (0.5 + s * 0.34, y)), closed=False, ec=line)
                for s in (-1, 1) for y in (0.57, 0.63)]  # fmt: skip
    nose = RegularPolygon((0.5, 0.63), 3, radius=0.035, orientation=np.pi, fc="lightpink", ec=line)
    tail = Wedge((0.74, 0.2), 0.22, -100, 100, width=0.09, fc=c, ec=line)
    body = Ellipse((0.5, 0.27), 0.5, 0.54, fc=c, ec=line)
    return [tail, body, *ears, Ellipse((0.5, 0.68), 0.52, 0.42, fc=c, ec=line), *eyes, nose, *whiskers]


def _cup(c: str) -> list:
    handle = Wedge((0.72, 0.48), 0.24, -90, 90, width=0.08, fc=c, ec="k")
    saucer = Ellipse((0.45, 0.1), 0.9, 0.13, fc=_mix(c, "w", 0.4), ec="k")
    body = Polygon(((0.1, 0.8), (0.76, 0.8), (0.66, 0.12), (0.2, 0.12)), fc=c, ec="k")
    return [handle, saucer, body, Ellipse((0.43, 0.8), 0.66, 0.12, fc=_mix(c, "k", 0.35), ec="k")]


def _box(c: str) -> list:
    front = Rectangle((0, 0.05), 0.7, 0.6, fc=c, ec="k")
    top = Polygon(((0, 0.65), (0.28, 0.9), (0.98, 0.9), (0.7, 0.65)), fc=_mix(c, "w", 0.3), ec="k")
    side = Polygon(((0.7, 0.05), (0.98, 0.3), (0.98, 0.9), (0.7, 0.65)), fc=_mix(c, "k", 0.25), ec="k")
    tape = [Rectangle((0.29, 0.47), 0.12, 0.18, fc="wheat"),
            Polygon(((0.29, 0.65), (0.57, 0.9), (0.69, 0.9), (0.41, 0.65)), fc="wheat")]  # fmt: skip
    return [front, top, side, *tape]


def _door(c: str) -> list:
    panels = [Rectangle((x, y), 0.11, 0.3, fc=_mix(c, "k", 0.15), ec="k") for x in (0.36, 0.53) for y in (0.12, 0.56)]
    frame = Rectangle((0.25, 0), 0.5, 1, fc="w", ec="k")
    return [
        frame,
        Rectangle((0.31, 0), 0.38, 0.95, fc=c, ec="k"),
        *panels,
        Circle((0.65, 0.48), 0.022, fc="gold", ec="k"),
    ]


PATCHES = {
    "circle": (lambda c: [Circle((0.5, 0.5), 0.5, fc=c)], lambda c: [Circle((0.5, 0.5), 0.48, fc=c, ec="k", lw=2)]),
    "square": (lambda c: [Rectangle((0.05, 0.05), 0.9, 0.9, fc=c)], lambda c: [Rectangle((0, 0), 1, 1, fc=c, ec="k")]),
    "triangle": (lambda c: [RegularPolygon((0.5, 0.4), 3, radius=0.55, fc=c)],
                 lambda c: [Polygon(((0, 0.05), (0.5, 0.95), (1, 0.05)), fc=c, ec="k")]),
    "star": (_star,),
    "bus": (_bus,),
    "house": (_house,),
    "tree": (_round_tree, _fir),
    "person": (_person,),
    "cat": (_cat,),
    "cup": (_cup,),
    "box": (_box,),
    "door": (_door,),
}  # fmt: skip
DPI = 100


def _draw_patches(rng: np.random.Generator, kinds: Sequence[str]) -> Drawing:
    width, height = size = _size(rng, len(kinds))
    names = _colors(rng, CHART_COLORS, kinds, BARRED)
    shades = {name: _pick(rng, CHART_COLORS[name]) for name in dict.fromkeys(names)}
    figure = Figure((width / DPI, height / DPI), dpi=DPI, facecolor=_pick(rng, FACES))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    ways = {kind: _pick(rng, PATCHES[kind]) for kind in dict.fromkeys(kinds)}
    for kind, name, (x, y, side) in zip(kinds, names, spots(rng, size, len(kinds)), strict=True):
        place = Affine2D().scale(side).translate(x - side / 2, height - y - side / 2)
        for patch in ways[kind](shades[name]):
            patch.set_transform(place + axes.transData)
            axes.add_patch(patch)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    return Drawing(image, tuple(map(Thing, kinds, names)), " ".join(shades.values()))


def patches(number: int = NUMBER) -> list[Drawing]:
    """Shapes and composed objects of matplotlib's patches, on figures without axes."""
    return _drawings(3, (*OBJECTS, *SHAPES), number, _draw_patches)
