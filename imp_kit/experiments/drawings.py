"""Seeded drawings: a scene is sampled as data first, then drawn, so that the truth about it is exact."""

from collections.abc import Callable, Mapping, Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")
SHAPES = ("circle", "square", "triangle", "star")
OBJECTS = ("bus", "house", "tree", "person", "cat", "cup", "box", "door")
HELD = ("box", "cup")  # what a person may hold
KINDS = SHAPES + OBJECTS
TWO_COLORED = ("bus", "house", "cup", "box")  # kinds that may carry a second colour


@dataclass(frozen=True)
class Thing:
    """One drawn object. A person's colour is the shirt's."""

    kind: str
    colors: tuple[str, ...]  # one, or two in the order of COLORS
    column: int  # 0 left, 1 middle, 2 right: the third of the picture that holds its centre
    row: int  # 0 top, 1 middle, 2 bottom
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 as fractions of the picture
    holding: tuple[str, str] | None = None  # a person may hold (colour, kind): a box or a cup


@dataclass(frozen=True)
class Scene:
    """What a drawing shows: things ordered by column, then row, so "from left to right" is unambiguous."""

    things: tuple[Thing, ...]
    size: tuple[int, int]  # width, height in pixels of the canvas


# Hue in degrees, saturation, value: inclusive ranges per name, with gaps wide enough for a person
# to agree on every sample. TRUE_COLORS adds well-known values of CSS and matplotlib, some at a range's edge.
RANGES = {
    "red": ((-10, 7, 0.82, 1.0, 0.78, 1.0),),
    "orange": ((26, 38, 0.82, 1.0, 0.94, 1.0),),
    "yellow": ((51, 61, 0.65, 1.0, 0.92, 1.0),),
    "green": ((98, 148, 0.5, 1.0, 0.4, 0.9), (85, 130, 0.55, 1.0, 0.55, 0.85)),
    "blue": ((203, 226, 0.55, 1.0, 0.55, 1.0), (226, 240, 0.85, 1.0, 0.5, 1.0)),
    "purple": ((270, 286, 0.5, 0.95, 0.5, 0.85), (286, 300, 0.65, 1.0, 0.42, 0.62)),
    "pink": ((322, 350, 0.25, 0.55, 0.95, 1.0), (322, 334, 0.55, 0.8, 0.96, 1.0)),
    "brown": ((14, 30, 0.5, 0.85, 0.35, 0.58),),
    "black": ((0, 360, 0.0, 0.25, 0.0, 0.13),),
    "white": ((0, 360, 0.0, 0.02, 0.97, 1.0),),
    "gray": ((0, 360, 0.0, 0.06, 0.42, 0.72),),
}
TRUE_COLORS = {
    "red": ((255, 0, 0), (214, 39, 40), (220, 20, 60)),
    "orange": ((255, 165, 0), (255, 127, 14), (255, 140, 0)),
    "yellow": ((255, 255, 0), (255, 215, 0), (250, 220, 60)),
    "green": ((0, 128, 0), (0, 255, 0), (44, 160, 44), (50, 205, 50), (34, 139, 34)),
    "blue": ((0, 0, 255), (31, 119, 180), (30, 144, 255), (0, 0, 139), (65, 105, 225)),
    "purple": ((128, 0, 128), (148, 103, 189), (148, 0, 211), (75, 0, 130)),
    "pink": ((255, 192, 203), (255, 105, 180), (227, 119, 194)),
    "brown": ((165, 42, 42), (140, 86, 75), (139, 69, 19), (101, 67, 33)),
    "black": ((0, 0, 0), (20, 20, 20)),
    "white": ((255, 255, 255), (250, 250, 250)),
    "gray": ((128, 128, 128), (127, 127, 127), (169, 169, 169), (105, 105, 105)),
}
ASPECTS = {  # width / height on the canvas
    "circle": (0.92, 1.08),
    "square": (0.94, 1.06),
    "triangle": (0.8, 1.25),
    "star": (0.95, 1.08),
    "bus": (1.6, 2.4),
    "house": (0.8, 1.25),
    "tree": (0.5, 0.9),
    "person": (0.42, 0.6),
    "cat": (0.8, 1.25),
    "cup": (0.8, 1.2),
    "box": (0.9, 1.4),
    "door": (0.4, 0.6),
}
LEAST_SIDE = 0.15  # of the picture, for a thing's shorter side: 21 pixels once squashed to 140, so that its shape shows
LEAST_HOLDER = 0.37  # of the picture's height, for a person with something in hand
SKINS = ((255, 219, 184), (241, 194, 150), (198, 134, 88), (141, 85, 54), (92, 58, 40))


# ---------------------------------------------------------------------------------------------- scenes


def sample_scene(rng: np.random.Generator) -> Scene:
    """One to three things in cells of a 3x3 grid, on a canvas of any shape between 1:2 and 2.5:1."""
    kinds = [str(rng.choice(KINDS)) for _ in range(rng.integers(1, 4))]
    repeated = len(kinds) > 1 and rng.random() < 0.3
    if repeated:
        kinds[1] = kinds[0]
    colors = [_sample_colors(kind, rng) for kind in kinds]
    if repeated and rng.random() < 0.5:
        colors[1] = colors[0]
    held = [_sample_held(rng) if kind == "person" and rng.random() < 0.4 else None for kind in kinds]
    named = list(zip(kinds, colors, held, strict=True))
    while True:  # kinds stay as drawn, so that awkward ones are as frequent as the others
        size = sample_canvas(rng)
        things = _position(named, size, rng)
        if things is not None:
            return Scene(tuple(sorted(things, key=lambda t: (t.column, t.row))), size)


def _sample_colors(kind, rng):
    count = 2 if kind in TWO_COLORED and rng.random() < 0.5 else 1
    return tuple(COLORS[i] for i in sorted(rng.choice(len(COLORS), count, replace=False)))


def _sample_held(rng):
    return str(rng.choice(COLORS)), str(rng.choice(HELD))


def sample_canvas(rng):
    if rng.random() < 0.25:
        return (int(rng.integers(140, 421)),) * 2
    while True:
        width, height = (int(v) for v in rng.integers(140, 421, 2))
        if 0.5 <= width / height <= 2.5:
            return width, height


def _position(named, size, rng):
    """Things with their boxes, or None where chance left too little space."""
    things, short = [], min(size)
    for kind, colors, holding in named:
        if len(named) > 1:
            long_side = rng.uniform(0.26, 0.5)
        else:  # only small ones fit beside the centre, so every second one is small
            long_side = rng.uniform(0.26, 0.4) if rng.random() < 0.5 else rng.uniform(0.4, 0.95)
        aspect = rng.uniform(0.62, 0.85) if holding else rng.uniform(*ASPECTS[kind])
        width = long_side * short * min(1, aspect) / size[0]
        height = long_side * short * min(1, 1 / aspect) / size[1]
        if min(width, height) < LEAST_SIDE or (holding and height < LEAST_HOLDER):
            return None
        columns, rows = _spans(width), _spans(height)
        for _ in range(12):
            column, row = (int(rng.choice(list(spans))) for spans in (columns, rows))
            x, y = rng.uniform(*columns[column]), rng.uniform(*rows[row])
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            if not any(_overlap(box, other.box) for other in things):
                things.append(Thing(kind, colors, column, row, box, holding))
                break
        else:
            return None
    return things


def _spans(extent):
    """For each third of an axis: where a centre may lie, so that the thing stays inside the picture."""
    spans = {}
    for index in range(3):
        middle = (2 * index + 1) / 6
        low, high = max(middle - 0.07, extent / 2 + 0.005), min(middle + 0.07, 0.995 - extent / 2)
        if low <= high:
            spans[index] = (low, high)
    return spans


def _overlap(a, b, gap=0.02):
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


# ---------------------------------------------------------------------------------------------- colours


def sample_color(name: str, rng: np.random.Generator, true_colors=TRUE_COLORS) -> tuple[int, int, int]:
    """An RGB value everybody calls by this name."""
    if rng.random() < 0.4:
        known = true_colors[name]
        return known[rng.integers(len(known))]
    h0, h1, s0, s1, v0, v1 = RANGES[name][rng.integers(len(RANGES[name]))]
    return _rgb(rng.uniform(h0, h1), rng.uniform(s0, s1), rng.uniform(v0, v1))


def _rgb(hue, saturation, value):
    return tuple(round(255 * c) for c in hsv_to_rgb(hue % 360 / 360, saturation, value))


def _lab(colors):
    """CIE Lab, where the straight distance is about how different two colours look."""
    rgb = np.asarray(colors, float).reshape(-1, 3) / 255
    rgb = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = rgb @ np.array(to_xyz).T / (0.9505, 1.0, 1.089)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack((116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])), 1)


def color_distance(colors, others):
    """The least distance between a colour of one list and one of the other."""
    return np.linalg.norm(_lab(colors)[:, None] - _lab(others)[None], axis=2).min()


def color_lightness(color):
    """From 0, black, to 255, white."""
    return 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2]


def mix_colors(color, other, share):
    """An RGB value between two, `share` of the way to the other."""
    return tuple(round(a + (b - a) * share) for a, b in zip(color, other, strict=True))


def shade_of(color, share=0.25):
    """A visibly different tone of the same colour: darker, or for near-black ones lighter."""
    return (
        mix_colors(color, (0, 0, 0), share)
        if color_lightness(color) > 25
        else mix_colors(color, (255, 255, 255), share * 0.7)
    )


def sample_paints(names, rng, true_colors=TRUE_COLORS):
    """Drawn colours for a thing's names, clearly apart from each other."""
    while True:
        paints = [sample_color(name, rng, true_colors) for name in names]
        if len(set(names)) == 1 or len(paints) < 2 or color_distance(paints[:1], paints[1:]) > 28:
            return paints


# ---------------------------------------------------------------------------------------------- the pen


class Pen:
    """Draws in a unit square that an affine map lays on the canvas: turned, mirrored, stretched to a box."""

    def __init__(self, image, matrix, size, paints, two, rng, dark):
        self.image, self.canvas, self.matrix, self.size = image, ImageDraw.Draw(image), matrix, size
        self.rng, self.two, self.dark, self.held = rng, two, dark, None
        self.reach: list[np.ndarray] = []  # corners of all that was drawn, in pixels of the canvas
        self.aspect = size[0] / size[1]
        self.main = paints[0]
        # The second colour; in a one-coloured thing a tone of the first, to tell a roof from a wall.
        self.other = paints[1] if two else shade_of(self.main, rng.uniform(0.08, 0.18))
        self.detail = (25, 25, 30) if color_lightness(self.main) > 70 else (235, 235, 225)
        ground = (250, 250, 250) if rng.random() < 0.15 else (20, 20, 20)
        self.edge = shade_of(self.main, 0.5) if rng.random() < 0.35 else ground
        self.edge_width = 0.0 if rng.random() < 0.35 else rng.uniform(0.01, 0.04)
        self.shaded = rng.random() < 0.25
        skins = [skin for skin in SKINS if color_distance([skin], paints[:1]) > 20]
        self.skin = skins[rng.integers(len(skins))]
        self.glass = mix_colors((190, 220, 235), (120, 140, 155), rng.random())
        self.wood = mix_colors((110, 72, 40), (60, 42, 30), rng.random())

    def u(self, low, high):
        return self.rng.uniform(low, high)

    def chance(self, share):
        return self.rng.random() < share

    def _map(self, points):
        return [tuple(p) for p in (np.asarray(points, float) @ self.matrix[:, :2].T + self.matrix[:, 2])]

    def _wide(self, width):
        return max(2, round(width * min(self.size)))

    def _mark(self, points, width=0):
        """Remember how far a shape reaches, with half of its outline's width."""
        self.reach += [np.min(points, axis=0) - width / 2, np.max(points, axis=0) + width / 2]

    def poly(self, points, fill, edge=True, seam=False):
        """A filled polygon; seam: outlined in any case, to part it from a neighbour of the same colour."""
        points = self._map(points)
        if self.shaded and fill in (self.main, self.other):
            self._gradient(points, fill)
        else:
            self.canvas.polygon(points, fill)
        if edge and (self.edge_width or seam):
            color = self.edge if self.edge_width else shade_of(fill, 0.35)
            width = self._wide(self.edge_width or 0.015)
            self.canvas.line([*points, *points[:2]], color, width, joint="curve")
            self._mark(points, width)
        self._mark(points)

    def _gradient(self, points, fill):
        """The fill from a little lighter to a little darker, mild enough to keep the colour's name."""
        xs, ys = zip(*points, strict=True)
        x, y = int(min(xs)), int(min(ys))
        size = (int(max(xs)) - x + 2, int(max(ys)) - y + 2)
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).polygon([(px - x, py - y) for px, py in points], 255)
        ramp = Image.linear_gradient("L").resize(size)
        bands = [ramp.point([round(c + (min(255, 0.95 * c + 16) - c * 0.9) * (0.5 - i / 255)) if c < 245 else
                             round(c - i / 20) for i in range(256)]) for c in fill]  # fmt: skip
        self.image.paste(Image.merge("RGB", bands), (x, y), mask)

    def rect(self, x0, y0, x1, y1, fill, round_by=0.0, **more):
        if not round_by:
            return self.poly(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), fill, **more)
        rx, ry = round_by * min(1, 1 / self.aspect), round_by * min(1, self.aspect)
        corners = ((x1 - rx, y1 - ry), (x0 + rx, y1 - ry), (x0 + rx, y0 + ry), (x1 - rx, y0 + ry))
        quarter = ARC.reshape(4, -1, 2)
        self.poly(np.concatenate([c + q * (rx, ry) for c, q in zip(corners, quarter, strict=True)]), fill, **more)

    def oval(self, x0, y0, x1, y1, fill, **more):
        self.poly(((x0 + x1) / 2, (y0 + y1) / 2) + ARC * ((x1 - x0) / 2, (y1 - y0) / 2), fill, **more)

    def disc(self, x, y, radius, fill, **more):
        """A circle on the canvas, too; the radius in parts of the box's height."""
        rx = radius / self.aspect
        self.oval(x - rx, y - radius, x + rx, y + radius, fill, **more)

    def line(self, points, width, color):
        """A stroke with round ends; its width in parts of the box's shorter side."""
        points, width = self._map(points), self._wide(width)
        self.canvas.line(points, color, width, joint="curve")
        self._mark(points, width)
        for x, y in (points[0], points[-1]):
            r = width / 2 - 0.5
            self.canvas.ellipse((x - r, y - r, x + r, y + r), color)

    def part(self, x0, y0, x1, y1, paint):
        """A pen for something drawn inside this one's square."""
        scale = np.array(((x1 - x0, 0, x0), (0, y1 - y0, y0), (0, 0, 1.0)))
        size = (self.size[0] * (x1 - x0), self.size[1] * (y1 - y0))
        pen = Pen(self.image, self.matrix @ scale, size, [paint], False, self.rng, self.dark)
        pen.reach = self.reach
        return pen


ARC = np.stack([f(np.linspace(0, 2 * np.pi, 40, endpoint=False)) for f in (np.cos, np.sin)], 1)


# ---------------------------------------------------------------------------------------------- shapes


def _shape(p, points):
    """Filled, filled with a smaller copy in another tone, or only a broad outline."""
    points = np.asarray(points, float)
    style, middle = p.rng.random(), points.mean(0)
    if style < 0.08:
        inner = middle + (points - middle) * 0.86
        p.line([*inner, inner[0], inner[1]], p.u(0.11, 0.16), p.main)
        return
    p.poly(points, p.main)
    if style > 0.9:
        p.poly(middle + (points - middle) * p.u(0.5, 0.8), shade_of(p.main, 0.12), edge=False)


def circle(p):
    _shape(p, 0.5 + ARC / 2)


def ball(p):
    p.oval(0, 0, 1, 1, p.main)
    if color_lightness(p.main) < 240:
        p.oval(0.2, 0.15, 0.42, 0.35, mix_colors(p.main, (255, 255, 255), 0.4), edge=False)


def square(p):
    _shape(p, ((0, 0), (1, 0), (1, 1), (0, 1)))


def soft_square(p):
    p.rect(0, 0, 1, 1, p.main, round_by=p.u(0.06, 0.14))


def triangle(p):
    points = np.array(((0.5, 0), (1, 1), (0, 1)))
    _shape(p, points if p.chance(0.9) else 1 - points)


def slanted_triangle(p):
    _shape(p, ((p.u(0.0, 1.0), 0), (1, 1), (0, 1)))


def star(p, tips=5):
    inner = p.u(0.36, 0.5) if tips == 5 else p.u(0.42, 0.58)
    angles = np.arange(2 * tips) * np.pi / tips
    points = np.stack((np.sin(angles), -np.cos(angles)), 1) * np.where(np.arange(2 * tips) % 2, inner, 1)[:, None]
    low, high = points.min(0), points.max(0)
    _shape(p, (points - low) / (high - low))


def other_star(p):
    star(p, int(p.rng.choice((4, 5, 6, 6, 7, 8))))


# ---------------------------------------------------------------------------------------------- objects


def _wheels(p, xs, radius):
    hubs = p.chance(0.6)
    for x in xs:
        p.disc(x, 1 - radius, radius, p.dark, edge=False)
        if hubs:
            p.disc(x, 1 - radius, radius * 0.45, (170, 170, 175), edge=False)


def _bus_body(p, x0, y0, x1, y1, round_by):
    """The body in one or two colours: halves, a stripe, or a roof in the other colour."""
    p.rect(x0, y0, x1, y1, p.main, round_by=round_by)
    if not p.two:
        return
    cut = y0 + (y1 - y0) * p.u(0.48, 0.56)
    lower, upper = (cut, y1 - 0.01), (cut + 0.02, cut + 0.22)
    top, bottom = lower if p.chance(0.6) else upper
    p.rect(x0 + 0.005, top, x1 - 0.005, bottom, p.other, edge=False)


def _windows(p, x0, x1, y0, y1, count):
    step = (x1 - x0) / count
    for i in range(count):
        p.rect(x0 + step * (i + 0.1), y0, x0 + step * (i + 0.9), y1, p.glass)


def city_bus(p):
    _bus_body(p, 0, 0, 1, 0.88, p.u(0.05, 0.2))
    _windows(p, 0.05, 0.78, 0.14, 0.4, int(p.rng.integers(3, 6)))
    p.rect(0.82, 0.14, 0.95, p.u(0.4, 0.78), p.glass)
    p.disc(0.965, 0.7, 0.04, (255, 245, 190), edge=False)
    _wheels(p, (0.22, 0.72), p.u(0.13, 0.17))


def plain_bus(p):
    """As simple as a child draws it: a bare block on wheels."""
    _bus_body(p, 0, 0, 1, p.u(0.78, 0.9), 0)
    count = int(p.rng.integers(3, 6))
    _windows(p, 0.03, 0.97, p.u(0.08, 0.18), p.u(0.36, 0.46), count)
    _wheels(p, (p.u(0.18, 0.26), p.u(0.74, 0.82)), p.u(0.12, 0.2))


def school_bus(p):
    p.rect(0.7, 0.42, 1, 0.86, p.main, round_by=0.1)
    _bus_body(p, 0, 0, 0.82, 0.86, 0.08)
    _windows(p, 0.04, 0.78, 0.12, 0.38, int(p.rng.integers(3, 6)))
    p.disc(0.97, 0.58, 0.045, (255, 245, 190), edge=False)
    _wheels(p, (0.2, 0.8), p.u(0.14, 0.19))


def double_decker(p):
    _bus_body(p, 0, 0, 1, 0.9, 0.07)
    count = int(p.rng.integers(4, 7))
    _windows(p, 0.04, 0.96, 0.1, 0.27, count)
    _windows(p, 0.04, 0.8, 0.5, 0.66, max(3, count - 1))
    p.rect(0.84, 0.48, 0.94, 0.84, p.glass)
    _wheels(p, (0.2, 0.72), 0.12)


def _front(p, x0, y0, x1, y1):
    """A door and windows on a wall."""
    w, h = x1 - x0, y1 - y0
    at = p.u(0.1, 0.65)
    p.rect(x0 + w * at, y0 + h * 0.42, x0 + w * (at + 0.22), y1, p.wood if p.chance(0.6) else p.dark)
    spot = 0.12 if at > 0.4 else 0.66
    p.rect(x0 + w * spot, y0 + h * 0.22, x0 + w * (spot + 0.22), y0 + h * 0.55, p.glass)


def gable_house(p):
    eaves, over = p.u(0.38, 0.5), p.u(0.0, 0.1)
    wall, roof = (p.main, p.other) if p.chance(0.5) or not p.two else (p.other, p.main)
    if p.chance(0.4):
        p.rect(0.72, 0.06, 0.83, eaves, roof)
    p.rect(over, eaves, 1 - over, 1, wall, seam=True)
    p.poly(((0, eaves), (0.5, 0), (1, eaves)), roof, seam=True)
    _front(p, over, eaves, 1 - over, 1)


def plain_house(p):
    eaves = p.u(0.35, 0.48)
    wall, roof = (p.main, p.other) if p.two else (p.main, p.main)
    p.poly(((0, 1), (0, eaves), (0.5, 0), (1, eaves), (1, 1)), wall)
    if p.two:
        p.poly(((0, eaves), (0.5, 0), (1, eaves)), roof)
    p.rect(0.38, 0.66, 0.62, 1, p.wood if p.chance(0.5) else p.dark)


def long_house(p):
    eaves, inset = p.u(0.38, 0.48), p.u(0.1, 0.2)
    p.rect(0.68, 0, 0.8, 0.3, shade_of(p.main, 0.15))
    p.rect(0.05, eaves, 0.95, 1, p.main, seam=True)
    p.poly(((0, eaves), (inset, 0.1), (1 - inset, 0.1), (1, eaves)), p.other, seam=True)
    _front(p, 0.05, eaves, 0.95, 1)


def _trunk(p, top, width):
    near = color_distance([p.wood], [p.main]) < 22
    color = p.wood if not near else (45, 35, 30) if color_lightness(p.main) > 60 else (150, 110, 75)
    p.poly(
        ((0.5 - width / 2, top), (0.5 + width / 2, top), (0.5 + width * 0.6, 1), (0.5 - width * 0.6, 1)),
        color,
    )


def round_tree(p):
    bottom = p.u(0.6, 0.75)
    _trunk(p, bottom - 0.15, p.u(0.12, 0.2))
    p.oval(0, 0, 1, bottom, p.main)


def fir_tree(p):
    _trunk(p, 0.75, p.u(0.12, 0.2))
    tiers = int(p.rng.integers(1, 5))
    for i in reversed(range(tiers)):
        bottom, half = 0.86 * (i + 1) / tiers, 0.5 * (0.55 + 0.45 * (i + 1) / tiers)
        top = max(0.0, 0.86 * i / tiers - 0.12)
        p.poly(((0.5, top), (0.5 + half, bottom), (0.5 - half, bottom)), p.main)


def cloud_tree(p):
    _trunk(p, 0.5, p.u(0.12, 0.2))
    blobs = ((0, 0.28, 0.55, 0.66), (0.45, 0.28, 1, 0.66), (0.18, 0, 0.82, 0.5), (0.22, 0.32, 0.78, 0.72))
    for index, blob in enumerate(blobs):
        p.oval(*blob, p.main, edge=index < 3)


def _legs(p, x, top, width, color):
    """Standing, legs apart, or one leg raised."""
    pose = p.rng.integers(3)
    left, right = (x - 0.09, 0.95), (x + 0.09, 0.95)
    if pose:
        left, right = (x - 0.2, 0.95), (x + 0.2, 0.95)
    if pose == 2:
        right = (x + 0.27, p.u(0.7, 0.85))
    for side, foot in ((-0.07, left), (0.07, right)):
        p.line(((x + side, top), foot), width, color)


def _hold(p, x, shoulder, width, color):
    """Both arms and what the hand holds: in front of the body, or out at the side."""
    paint, kind = p.held
    draw_held = any_of(FIGURES[kind], p.rng)
    if x == 0.5:
        box = (0.3, shoulder + 0.11, 0.7, shoulder + 0.36)
        for side in (-1, 1):
            hand = (x + side * 0.16, shoulder + 0.27)
            p.line(((x + side * 0.15, shoulder), (x + side * 0.3, shoulder + 0.17), hand), width, color)
    else:
        y = p.u(0.2, 0.5)
        box = (0.6, y, 1, y + 0.3)
        p.line(((x - 0.14, shoulder), (x - 0.25, shoulder + 0.26)), width, color)
        p.line(((x + 0.1, shoulder), (0.66, y + 0.2)), width, color)
    item = p.part(*box, paint)
    item.edge = (20, 20, 20) if color_lightness(paint) > 60 else (240, 240, 240)
    item.edge_width = max(item.edge_width, 0.05)  # so that a red cup shows before a red shirt
    draw_held(item)


def _person(p, shirt, sleeves, hair, thick):
    front = p.chance(0.35)
    x = 0.5 if p.held is None or front else 0.31
    head, shoulder, hip = p.u(0.1, 0.13), 0.29, p.u(0.58, 0.64)
    trousers = p.dark if p.chance(0.6) else mix_colors(p.dark, (120, 120, 130), 0.5)
    _legs(p, x, hip - 0.02, thick, trousers)
    p.disc(x, head, head - 0.005, p.skin)
    if hair:
        p.oval(x - 0.95 * head / p.aspect, 0, x + 0.95 * head / p.aspect, head * 0.9, p.wood, edge=False)
    shirt(x, shoulder - 0.05, hip)
    arm = p.main if sleeves else p.skin
    if p.held:
        _hold(p, x, shoulder + 0.02, thick * 0.75, shade_of(arm, 0.12) if sleeves else arm)
        return
    for side in (-1, 1):
        hand = (x + side * p.u(0.3, 0.42), p.u(0.12, 0.56))
        p.line(((x + side * 0.15, shoulder + 0.01), hand), thick * 0.75, arm)
        if sleeves:
            p.disc(*hand, 0.025, p.skin, edge=False)


def stick_person(p):
    def shirt(x, top, hip):
        slim = p.u(0.13, 0.2)
        p.poly(((x - 0.22, top), (x + 0.22, top), (x + slim, hip), (x - slim, hip)), p.main)

    _person(p, shirt, p.chance(0.5), p.chance(0.4), p.u(0.08, 0.13))


def dressed_person(p):
    def dress(x, top, hip):
        p.poly(((x - 0.08, top), (x + 0.08, top), (x + 0.3, hip + 0.06), (x - 0.3, hip + 0.06)), p.main)

    _person(p, dress, p.chance(0.3), p.chance(0.7), p.u(0.07, 0.13))


def round_person(p):
    def shirt(x, top, hip):
        p.rect(x - 0.25, top, x + 0.25, hip + 0.03, p.main, round_by=p.u(0.1, 0.24))

    _person(p, shirt, p.chance(0.7), p.chance(0.8), p.u(0.15, 0.22))


def _cat_head(p, x, y, half, tall, face=True):
    """Ears, head, eyes, nose and whiskers around a centre."""
    for side in (-1, 1):
        outer, inner = x + side * half, x + side * half * 0.15
        p.poly(
            ((outer, y - tall * 0.2), (x + side * half * 0.85, y - tall * 1.45), (inner, y - tall * 0.8)),
            p.main,
        )
    p.oval(x - half, y - tall, x + half, y + tall, p.main)
    if not face:
        return
    for side in (-1, 1):
        ex, r = x + side * half * 0.42, half * 0.14
        p.oval(ex - r, y - tall * 0.35, ex + r, y + tall * 0.05, p.detail, edge=False)
        for dy in (0.3, 0.5):
            start, end = (x + side * half * 0.3, y + tall * 0.35), (x + side * half * 0.95, y + tall * dy)
            p.line((start, end), 0.01, p.detail)
    p.poly(
        ((x - half * 0.12, y + tall * 0.2), (x + half * 0.12, y + tall * 0.2), (x, y + tall * 0.4)),
        p.detail,
        edge=False,
    )


def sitting_cat(p):
    p.line(((0.62, 0.92), (0.88, 0.9), (0.95, 0.72), (0.88, 0.55)), 0.09, p.main)
    p.oval(0.22, 0.38, 0.78, 1, p.main)
    _cat_head(p, 0.5, 0.3, 0.27, 0.2)
    for x in (0.42, 0.58):
        p.line(((x, 0.75), (x, 0.96)), 0.015, shade_of(p.main, 0.45))


def standing_cat(p):
    p.line(((0.15, 0.5), (0.06, 0.3), (0.1, 0.08)), 0.07, p.main)
    for x in (0.18, 0.3, 0.58, 0.7):
        p.rect(x - 0.04, 0.6, x + 0.04, 1, p.main)
    p.oval(0.1, 0.4, 0.8, 0.78, p.main)
    _cat_head(p, 0.78, 0.36, 0.21, 0.2)


def cat_head(p):
    _cat_head(p, 0.5, 0.6, 0.5, 0.4)


def _handle(p, x, top, bottom):
    y = (top + bottom) / 2
    points = [(x + 0.17 * c * (1 if c > 0 else 0.2), y + s * (bottom - top) / 2) for c, s in np.roll(ARC, 13, 0)[2:24]]
    if p.edge_width:
        p.line(points, 0.1 + 2 * p.edge_width, p.edge)
    p.line(points, 0.1, p.main)


def mug(p):
    _handle(p, 0.76, 0.2, 0.75)
    p.rect(0, 0, 0.78, 1, p.main, round_by=p.u(0, 0.12))
    if p.two:
        p.rect(0.005, 0.36, 0.775, 0.68, p.other)


def tapered_cup(p):
    """With a saucer and a handle, or a plain tumbler whose rim tells it from a mere trapezium."""
    tumbler = p.chance(0.35)
    if not tumbler:
        p.oval(0, 0.84, 1, 1, shade_of(p.main, 0.12))
        _handle(p, 0.72, 0.2, 0.6)
    p.poly(((0.1, 0.06), (0.86, 0.06), (0.68, 0.94), (0.28, 0.94)), p.main)
    if p.two:
        p.poly(((0.17, 0.36), (0.79, 0.36), (0.73, 0.66), (0.23, 0.66)), p.other)
    if tumbler:
        p.oval(0.1, 0, 0.86, 0.13, shade_of(p.main, 0.2), seam=True)


def deep_cup(p):
    """Seen a little from above: the rim is an ellipse, with a drink or a dark inside."""
    taper = p.u(0.0, 0.12)
    _handle(p, 0.76 - taper / 3, 0.28, 0.75)
    low = 0.39 + ARC[:20] * (0.39 - taper, 0.1) + (0, 0.5)
    p.poly([*low, (0, 0.12), (0.78, 0.12)], p.main)
    if p.two:
        x0, x1 = taper * 0.4, taper * 0.75
        p.poly(((x0, 0.42), (0.78 - x0, 0.42), (0.78 - x1, 0.72), (x1, 0.72)), p.other)
    p.oval(0, 0, 0.78, 0.24, shade_of(p.main, 0.12), seam=True)
    p.oval(0.05, 0.035, 0.73, 0.205, mix_colors(p.wood, p.main, 0.35), edge=False)


def cuboid(p):
    """Cabinet projection: front, top and side; the tape runs over front and top."""
    d, e = p.u(0.2, 0.3), p.u(0.2, 0.3)
    top, side = mix_colors(p.main, (255, 255, 255), 0.25), shade_of(p.main, 0.22)
    p.rect(0, e, 1 - d, 1, p.main, seam=True)
    p.poly(((0, e), (d, 0), (1, 0), (1 - d, e)), top, seam=True)
    p.poly(((1 - d, e), (1, 0), (1, 1 - e), (1 - d, 1)), side, seam=True)
    if p.two or p.chance(0.4):
        w, x = (0.26 if p.two else 0.12), (1 - d) / 2
        p.rect(x - w / 2, e, x + w / 2, 1 if p.two else e + 0.25, p.other, edge=False)
        p.poly(((x - w / 2, e), (x + w / 2, e), (x + w / 2 + d, 0), (x - w / 2 + d, 0)), p.other, edge=False)


def carton(p):
    """From the front, with open flaps and tape."""
    y, flap = p.u(0.22, 0.32), p.u(0.0, 0.08)
    flaps = shade_of(p.main, 0.12)
    p.poly(((0.14, y), (0.5, y), (0.36, flap), (0, flap + 0.05)), flaps, seam=True)
    p.poly(((0.86, y), (0.5, y), (0.64, flap), (1, flap + 0.05)), flaps, seam=True)
    p.rect(0.1, y, 0.9, 1, p.main, seam=True)
    w = 0.15 if p.two else 0.06
    p.rect(0.5 - w, y, 0.5 + w, 1 if p.two else y + 0.35, p.other)


def lidded_box(p):
    lid = p.u(0.24, 0.34)
    p.rect(0.06, lid, 0.94, 1, p.main, seam=True)
    p.rect(0, 0, 1, lid, p.other, seam=True)
    if p.chance(0.4):
        p.rect(0.4, 0.55, 0.6, 0.66, p.detail, edge=False)


def _frame(p):
    color = p.wood if p.chance(0.4) else shade_of(p.main, 0.45) if p.chance(0.5) else (150, 150, 150)
    p.rect(0, 0, 1, 1, color)
    return 0.09, 0.05


def _knob(p, x, y):
    color = (225, 190, 70) if color_distance([(225, 190, 70)], [p.main]) > 35 else p.detail
    p.disc(x, y, 0.03, color)


def panel_door(p):
    x, y = _frame(p)
    p.rect(x, y, 1 - x, 1, p.main)
    columns = int(p.rng.integers(1, 3))
    tone, step = shade_of(p.main, 0.18), (0.66 - 0.1 * (columns - 1)) / columns
    for top, bottom in ((0.12, 0.46), (0.58, 0.92)):
        for i in range(columns):
            left = 0.17 + i * (step + 0.1)
            p.rect(left, top, left + step, bottom, tone, seam=True)
    _knob(p, 0.8, 0.52)


def glass_door(p):
    framed = p.chance(0.5)
    x, y = _frame(p) if framed else (0, 0)
    p.rect(x, y, 1 - x, 1, p.main)
    if p.chance(0.6 if framed else 0.8):  # with neither, only the knob tells a door from a square
        p.rect(0.28, 0.14, 0.72, 0.36, p.glass)
    _knob(p, 0.8, 0.55)


def open_door(p):
    """Ajar: the leaf is a trapezium, with the dark of the room beside it."""
    _frame(p)
    p.rect(0.1, 0.05, 0.9, 1, (40, 40, 45) if color_lightness(p.main) > 70 else (205, 205, 200), edge=False)
    p.poly(((0.1, 0.05), (0.74, 0.1), (0.74, 0.97), (0.1, 1)), p.main)
    _knob(p, 0.64, 0.53)


FIGURES = {
    "circle": (circle, circle, ball),
    "square": (square, square, soft_square),
    "triangle": (triangle, triangle, slanted_triangle),
    "star": (star, star, other_star),
    "bus": (city_bus, plain_bus, school_bus, double_decker),
    "house": (gable_house, plain_house, long_house),
    "tree": (round_tree, fir_tree, cloud_tree),
    "person": (stick_person, stick_person, round_person, round_person, dressed_person),
    "cat": (sitting_cat, standing_cat, cat_head),
    "cup": (mug, tapered_cup, deep_cup),
    "box": (cuboid, carton, lidded_box),
    "door": (panel_door, glass_door, open_door),
}


def any_of(options, rng):
    return options[rng.integers(len(options))]


# ---------------------------------------------------------------------------------------------- pictures


def sample_ground_color(rng):
    """Pale, grey, dark, or anything."""
    style = rng.random()
    if style < 0.4:
        return _rgb(rng.uniform(0, 360), rng.uniform(0.02, 0.25), rng.uniform(0.85, 1))
    if style < 0.55:
        return _rgb(rng.uniform(0, 360), rng.uniform(0, 0.06), rng.uniform(0.2, 0.9))
    if style < 0.7:
        return _rgb(rng.uniform(0, 360), rng.uniform(0, 0.6), rng.uniform(0.03, 0.3))
    return _rgb(rng.uniform(0, 360), rng.uniform(0.2, 0.9), rng.uniform(0.3, 1))


def background(size, paints, rng):
    """A ground on which every paint stands out, and its mean lightness."""
    best = (-1.0, None, None)
    style = "white" if rng.random() < 0.3 else None
    for _ in range(25):
        if style == "white":
            colors = [(255, 255, 255)] * 2
        else:
            style = any_of(("plain", "plain", "across", "down", "horizon", "stripes", "dots"), rng)
            colors = [sample_ground_color(rng), sample_ground_color(rng)]
            if style == "plain":
                colors[1] = colors[0]
            elif style in ("stripes", "dots"):
                colors[1] = mix_colors(colors[0], colors[1], 0.15)
        clear = color_distance([*colors, mix_colors(*colors, 0.5)], paints)
        if clear > best[0]:
            best = (clear, style, colors)
        if clear > (20 if style == "white" else 30):
            break
        style = None
    _, style, colors = best
    image = Image.new("RGB", size, colors[0])
    canvas = ImageDraw.Draw(image)
    width, height = size
    if style in ("across", "down"):
        ramp = Image.linear_gradient("L")
        ramp = ramp.transpose(Image.Transpose.ROTATE_90) if style == "across" else ramp
        bands = [ramp.point([round(a + (b - a) * i / 255) for i in range(256)]) for a, b in zip(*colors, strict=True)]
        image = Image.merge("RGB", bands).resize(size)
    elif style == "horizon":
        canvas.rectangle((0, height * rng.uniform(0.45, 0.85), width, height), colors[1])
    elif style == "stripes":
        step, lean = int(rng.integers(16, 80)), int(rng.integers(-height, height))
        for x in range(-abs(lean), width + abs(lean), step):
            canvas.line((x, 0, x + lean, height), colors[1], max(2, step // 3))
    elif style == "dots":
        step = int(rng.integers(24, 80))
        for x in range(step // 2, width, step):
            for y in range(step // 2, height, step):
                canvas.ellipse((x - step // 6, y - step // 6, x + step // 6, y + step // 6), colors[1])
    return image, color_lightness(mix_colors(*colors, 0.5))


def draw(
    scene: Scene,
    rng: np.random.Generator,
    figures: Mapping[str, Sequence[Callable[[Pen], None]]] = FIGURES,
    true_colors: Mapping[str, Sequence[tuple[int, int, int]]] = TRUE_COLORS,
) -> tuple[Image.Image, Scene]:
    """The scene as a picture, and once more with the boxes as far as the drawn things reach.

    Everything the scene does not say is left to chance. `figures` has for each kind the functions that can draw it,
    `true_colors` for each color RGB values that stand for it beside those of RANGES.
    """
    drawn = []
    big = (2 * scene.size[0], 2 * scene.size[1])  # drawn at twice the size, for smooth edges
    paints = [sample_paints([*t.colors, *(t.holding or ())[:1]], rng, true_colors) for t in scene.things]
    image, light = background(big, [color for some in paints for color in some], rng)
    dark = (35, 35, 42) if light > 75 else (165, 165, 172)  # tyres and trousers must show as well
    for thing, some in zip(scene.things, paints, strict=True):
        held = (some.pop(), thing.holding[1]) if thing.holding else None
        if len(thing.colors) == 2 and rng.random() < 0.5:
            some.reverse()
        matrix, size = lay_out(thing, big, rng)
        pen = Pen(image, matrix, size, some, len(some) == 2, rng, dark)
        pen.held = held
        any_of(figures[thing.kind], rng)(pen)
        corners = np.concatenate((np.min(pen.reach, axis=0), np.max(pen.reach, axis=0))) / (big * 2)
        drawn.append(replace(thing, box=tuple(float(value) for value in np.clip(corners, 0, 1))))
    image = image.reduce(2)
    if rng.random() < 0.2:
        grain = rng.integers(-8, 9, (scene.size[1], scene.size[0], 1), dtype=np.int16)
        image = Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
    return image, replace(scene, things=tuple(drawn))


def lay_out(thing, big, rng):
    """The map from the unit square into the thing's box: mirrored at times, turned, shrunk to stay inside."""
    x0, y0, x1, y1 = (v * big[i % 2] for i, v in enumerate(thing.box))
    width, height = x1 - x0, y1 - y0
    most = 12 if thing.kind in SHAPES else 8
    angle = np.deg2rad(rng.uniform(-most, most)) if rng.random() < 0.5 else 0.0
    cos, sin = np.cos(angle), abs(np.sin(angle))
    if thing.kind != "circle":
        fit = min(width / (width * cos + height * sin), height / (width * sin + height * cos))
        width, height = width * fit, height * fit
    width, height = width * 0.965, height * 0.965  # room for the outline
    flip = -1 if rng.random() < 0.5 else 1
    turn = np.array(((cos, -np.sin(angle)), (np.sin(angle), cos))) @ np.diag((flip * width, height))
    offset = np.array(((x0 + x1) / 2, (y0 + y1) / 2)) - turn @ (0.5, 0.5)
    matrix = np.vstack((np.column_stack((turn, offset)), (0, 0, 1.0)))
    return matrix[:2], (width, height)
