"""More figures for each kind of thing, as others draw: icons with holes, coloured lines, a child, picture books."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from imp_kit.experiments.drawings import (
    ARC,
    FIGURES,
    KINDS,
    Pen,
    any_of,
    color_distance,
    color_lightness,
    mix_colors,
    shade_of,
)

STYLES = ("flat", "flat", "icon", "line", "child")
SOLID = ("flat", "flat", "icon", "child")  # for what would be doubtful in lines, as the colour of a shirt
LEAST_LINED = 100  # half pixels, for line art
LEAST_STRIPED = 130  # half pixels: narrower stripes blend with the ground into another colour
PALE = (250, 250, 245)


# ---------------------------------------------------------------------------------------------- styles


class StyledPen(Pen):
    """A pen with a style: flat, an icon of one colour with holes, line art in colour, or a child's unsteady hand."""

    def __init__(self, pen: Pen, style: str, aspect: float):
        self.__dict__.update(pen.__dict__)
        # Lines show one colour alone, black ones look like a white thing's outline, and small ones are hard to see.
        unfit = pen.two or color_lightness(pen.main) < 60 or min(pen.size) < LEAST_LINED
        self.style = "icon" if style == "line" and unfit else style
        share = aspect / pen.aspect  # the figure keeps its proportions, in the middle of the box
        across, down = min(1.0, share), min(1.0, 1 / share)
        inset = np.array(((across, 0, (1 - across) / 2), (0, down, (1 - down) / 2), (0, 0, 1.0)))
        self.matrix, self.size = pen.matrix @ inset, (pen.size[0] * across, pen.size[1] * down)
        self.aspect = aspect
        self.stroke = self.u(0.06, 0.1) if style == "line" else self.u(0.025, 0.045)
        self.ink = (20, 20, 20) if color_lightness(self.main) > 60 else mix_colors(self.main, PALE, 0.45)
        if style == "flat" and self.chance(0.25):  # as other programs draw it: a thick black outline
            self.edge, self.edge_width = self.ink, self.u(0.03, 0.06)
        corners = np.array(self._map(((0, 0), (1, 0), (1, 1), (0, 1))))
        low, high = corners.min(0) - 0.25 * max(self.size), corners.max(0) + 0.25 * max(self.size)
        self.corner = (int(low[0]), int(low[1]))
        self.under = self.image.crop((*self.corner, int(high[0]) + 1, int(high[1]) + 1))

    def poly(self, points, fill, edge=True, seam=False):
        if self.style == "flat":
            return super().poly(points, fill, edge, seam)
        body = any(fill is color for color in (self.main, self.other, self.dark, self.wood, self.skin))
        tone = fill if fill is self.main or (fill is self.other and self.two) else self.main
        points = self._map(points)
        if self.style == "child":
            points = self._unsteady(points)
            self.canvas.polygon(points, fill)
            if edge:
                self._outline(points, self.ink)
            self._mark(points)
        elif self.style == "line":
            self._restore(points)
            self._outline(points, tone)
        elif body:
            if seam or fill is self.other:
                self._restore(points, self._wide(0.07))
            self.canvas.polygon(points, tone)
            self._mark(points)
        else:
            self._restore(points)

    def line(self, points, width, color):
        if self.style in ("icon", "line"):
            hole = not any(color is own for own in (self.main, self.other, self.dark, self.wood, self.skin))
            if hole and self.style == "icon":
                return self._restore(self._map(points), self._wide(width), closed=False)
            color, width = self.main, max(width, 0.05) if self.style == "icon" else min(width, self.stroke)
        super().line(points, width, color)

    def cut(self, points):
        """A hole that shows what is behind the thing."""
        if self.style != "flat":
            return self.poly(points, PALE)
        points = self._map(points)
        self._restore(points)
        if self.edge_width:
            self._outline(points, self.edge, self._wide(self.edge_width))

    def stripes(self, points, share, count):
        """Slanted holes inside a polygon."""
        points = np.array(self._map(points))
        low, high = points.min(0), points.max(0)
        gaps = Image.new("L", self.under.size)
        canvas, height = ImageDraw.Draw(gaps), high[1] - low[1]
        step = (high[0] - low[0] + height) / count
        for x in np.arange(low[0] - height, high[0], step) - self.corner[0]:
            base = low[1] - self.corner[1]
            canvas.line((x, base + height, x + height, base), 255, max(2, round(step * (1 - share) / 1.4)))
        self.image.paste(self.under, self.corner, ImageChops.darker(gaps, self._mask(points)))
        self._outline([tuple(p) for p in points], self.main, self._wide(0.06))

    def _mask(self, points, width=0, closed=True):
        points = [(x - self.corner[0], y - self.corner[1]) for x, y in points]
        mask = Image.new("L", self.under.size)
        if width:
            ImageDraw.Draw(mask).line([*points, *points[:2]] if closed else points, 255, width, joint="curve")
        else:
            ImageDraw.Draw(mask).polygon(points, 255)
        return mask

    def _restore(self, points, width=0, closed=True):
        self.image.paste(self.under, self.corner, self._mask(points, width, closed))

    def _outline(self, points, color, width=0):
        width = width or max(self._wide(self.stroke), 7 if self.style == "line" else 2)
        self.canvas.line([*points, *points[:2]], color, width, joint="curve")
        self._mark(points, width)

    def _unsteady(self, points):
        """More points along the outline, each a little beside its place."""
        points = np.array(points)
        ends = np.roll(points, -1, 0)
        lengths = np.linalg.norm(ends - points, axis=1)
        along = np.concatenate(([0], np.cumsum(lengths)))
        t = np.linspace(0, along[-1], 48, endpoint=False)
        dense = np.stack([np.interp(t, along, np.append(points[:, i], points[0, i])) for i in (0, 1)], 1)
        turns = 2 * np.pi * t[:, None] / along[-1]
        size = self.u(0.006, 0.012) * min(self.size)
        for waves in (2, 3, 5):
            dense = dense + size * np.sin(waves * turns + self.rng.uniform(0, 6, 2))
        return [tuple(p) for p in dense]


@dataclass(frozen=True)
class Figure:
    """A way to draw a kind of thing: what its parts are, width / height, and in which style."""

    plan: Callable[[StyledPen], None]
    aspect: float
    style: str
    holds: bool = False  # whether it has a hand free

    def __call__(self, pen: Pen) -> None:
        if pen.held and not self.holds:
            return any_of((*FIGURES["person"], HOLDER, HOLDER), pen.rng)(pen)
        self.plan(StyledPen(pen, self.style, self.aspect))


NEW_FIGURES: dict[str, list[Figure]] = {kind: [] for kind in KINDS}


def plan(kind, aspect, styles=STYLES):
    def add(function):
        NEW_FIGURES[kind] += [Figure(function, aspect, style) for style in styles]
        return function

    return add


# ---------------------------------------------------------------------------------------------- shapes


def _add_shape(kind, aspect, outline):
    """Whole, a frame, with stripes, or with a smaller one inside in another tone."""

    def inside(points, share):
        return points.mean(0) + (points - points.mean(0)) * share

    @plan(kind, aspect)
    @plan(kind, aspect)
    def whole(p):
        p.poly(outline(), p.main)

    @plan(kind, aspect, ("flat", "icon"))  # two outlines inside each other could be taken for two things
    def frame(p):
        p.poly(outline(), p.main)
        p.cut(inside(outline(), p.u(0.5, 0.66)))

    @plan(kind, aspect, ("flat", "icon"))
    def striped(p):
        p.poly(outline(), p.main)
        if min(p.size) > LEAST_STRIPED:
            p.stripes(outline(), 0.62, int(p.rng.integers(6, 10)))

    @plan(kind, aspect, ("flat",))
    def doubled(p):
        p.poly(outline(), p.main)
        p.poly(inside(outline(), p.u(0.6, 0.8)), shade_of(p.main, 0.1), edge=False)


def _tips(count, depth):
    angles = np.arange(2 * count) * np.pi / count
    points = np.stack((np.sin(angles), -np.cos(angles)), 1) * np.where(np.arange(2 * count) % 2, depth, 1)[:, None]
    return (points - points.min(0)) / (points.max(0) - points.min(0))


_add_shape("circle", 1.0, lambda: 0.5 + ARC / 2)
_add_shape("square", 1.0, lambda: np.array(((0, 0), (1, 0), (1, 1), (0, 1.0))))
_add_shape("triangle", 1.15, lambda: np.array(((0.5, 0), (1, 1), (0, 1.0))))
_add_shape("triangle", 0.75, lambda: np.array(((0.5, 0), (1, 1), (0, 1.0))))
_add_shape("triangle", 1.0, lambda: np.array(((0, 0), (1, 1), (0, 1.0))))
_add_shape("star", 1.05, lambda: _tips(5, 0.382))
_add_shape("star", 1.05, lambda: _tips(5, 0.5))
_add_shape("star", 0.87, lambda: _tips(6, 0.577))


# ---------------------------------------------------------------------------------------------- objects


def _tyres(p, xs, radius):
    for x in xs:
        p.disc(x, 1 - radius, radius, p.dark, seam=True)


def _panes(p, x0, x1, y0, y1, count):
    step = (x1 - x0) / count
    for i in range(count):
        p.rect(x0 + step * (i + 0.12), y0, x0 + step * (i + 0.88), y1, p.glass, edge=False)


@plan("bus", 0.85)
def front_bus(p):
    for x in (0.12, 0.7):
        p.rect(x, 0.82, x + 0.18, 1, p.dark)
    for x in (0, 0.92):
        p.rect(x, 0.3, x + 0.08, 0.5, p.dark)
    p.rect(0.06, 0, 0.94, 0.9, p.main, round_by=0.12)
    if p.two:
        p.rect(0.07, 0.6, 0.93, 0.82, p.other, edge=False)
    p.rect(0.15, 0.2, 0.85, 0.55, p.glass, edge=False)
    p.rect(0.28, 0.06, 0.72, 0.14, p.detail, edge=False)
    for x in (0.22, 0.78):
        p.disc(x, 0.72, 0.055, (255, 245, 190), edge=False)


@plan("bus", 2.6)
def coach(p):
    p.poly(((0, 0.05), (0.9, 0.05), (0.98, 0.45), (1, 0.85), (0, 0.85)), p.main)
    if p.two:
        p.rect(0.01, 0.52, 0.99, 0.74, p.other, edge=False)
    p.poly(((0.04, 0.15), (0.86, 0.15), (0.92, 0.45), (0.04, 0.45)), p.glass, edge=False)
    for x in (0.24, 0.44, 0.64):
        p.line(((x, 0.15), (x, 0.45)), 0.04, p.main)
    _tyres(p, (0.2, 0.78), 0.16)


@plan("bus", 1.5)
def toy_bus(p):
    p.rect(0, 0, 1, 0.88, p.main, round_by=0.22)
    if p.two:
        p.rect(0.01, 0.5, 0.99, 0.72, p.other, edge=False)
    _panes(p, 0.06, 0.94, 0.14, 0.44, 3)
    _tyres(p, (0.24, 0.76), 0.17)


@plan("bus", 1.3)
def two_floors(p):
    p.rect(0, 0, 1, 0.9, p.main, round_by=0.08)
    if p.two:
        p.rect(0.005, 0.62, 0.995, 0.82, p.other, edge=False)
    _panes(p, 0.04, 0.96, 0.08, 0.24, 5)
    _panes(p, 0.04, 0.74, 0.38, 0.56, 4)
    p.rect(0.78, 0.38, 0.93, 0.84, p.glass, edge=False)
    _tyres(p, (0.22, 0.68), 0.12)


@plan("bus", 2.0)
def icon_bus(p):
    p.rect(0, 0, 1, 0.84, p.main, round_by=0.1)
    if p.two:
        p.rect(0.01, 0.54, 0.99, 0.74, p.other, edge=False)
    _panes(p, 0.03, 0.82, 0.14, 0.46, 4)
    p.rect(0.85, 0.14, 0.95, 0.76, p.glass, edge=False)
    _tyres(p, (0.2, 0.72), 0.17)


@plan("house", 1.25, ("flat", "line", "child"))
def flat_roof(p):
    p.rect(0.05, 0.15, 0.95, 1, p.main)
    p.rect(0, 0.02, 1, 0.15, p.other, seam=True)
    p.rect(0.42, 0.55, 0.58, 1, p.detail, edge=False)
    for x in (0.14, 0.66):
        p.rect(x, 0.32, x + 0.2, 0.58, p.glass, edge=False)


@plan("house", 1.05)
def chimney_house(p):
    p.rect(0.72, 0.05, 0.84, 0.45, p.other)
    p.rect(0.12, 0.42, 0.88, 1, p.main, seam=True)
    p.poly(((0, 0.48), (0.5, 0), (1, 0.48)), p.other, seam=True)
    p.rect(0.4, 0.64, 0.6, 1, p.detail, edge=False)


@plan("house", 1.0)
def home(p):
    p.poly(((0.5, 0), (1, 0.46), (0.88, 0.46), (0.88, 1), (0.12, 1), (0.12, 0.46), (0, 0.46)), p.main)
    if p.two:
        p.poly(((0.5, 0), (1, 0.46), (0, 0.46)), p.other)
    p.rect(0.4, 0.62, 0.6, 1, p.detail, edge=False)


@plan("house", 0.75)
def tall_house(p):
    p.rect(0.06, 0.26, 0.94, 1, p.main, seam=True)
    p.poly(((0, 0.28), (0.5, 0), (1, 0.28)), p.other, seam=True)
    for x, y in ((0.16, 0.36), (0.6, 0.36), (0.16, 0.6), (0.6, 0.6)):
        p.rect(x, y, x + 0.24, y + 0.14, p.glass, edge=False)
    p.rect(0.4, 0.82, 0.6, 1, p.detail, edge=False)


@plan("house", 1.5)
def wide_house(p):
    p.poly(((0, 0.42), (0.16, 0.04), (0.84, 0.04), (1, 0.42)), p.other, seam=True)
    p.rect(0.06, 0.42, 0.94, 1, p.main, seam=True)
    p.rect(0.16, 0.54, 0.36, 0.76, p.glass, edge=False)
    p.rect(0.64, 0.54, 0.84, 0.76, p.glass, edge=False)
    p.rect(0.43, 0.58, 0.57, 1, p.detail, edge=False)


@plan("tree", 0.9)
def palm(p):
    p.line(((0.42, 0.98), (0.46, 0.6), (0.54, 0.25)), 0.09, p.wood)
    for dx, dy in ((-0.5, 0.12), (-0.42, -0.14), (-0.05, -0.25), (0.36, -0.16), (0.46, 0.12), (0.3, 0.26), (-0.3, 0.3)):
        tip, side = np.array((0.54 + dx, 0.25 + dy)), np.array((-dy, dx)) * 0.17
        middle = np.array((0.54 + dx * 0.5, 0.25 + dy * 0.5 - 0.06))
        p.poly(((0.54, 0.25), middle + side, tip, middle - side), p.main)


@plan("tree", 0.65)
def triangles(p):
    p.rect(0.42, 0.8, 0.58, 1, p.wood)
    for top, bottom, half in ((0.46, 0.84, 0.5), (0.22, 0.6, 0.4), (0, 0.36, 0.28)):
        p.poly(((0.5, top), (0.5 + half, bottom), (0.5 - half, bottom)), p.main, seam=True)


@plan("tree", 0.55, SOLID)
def lollipop(p):
    p.rect(0.44, 0.5, 0.56, 1, p.wood)
    p.oval(0.02, 0, 0.98, 0.54, p.main)


@plan("tree", 0.9)
def apple_tree(p):
    p.poly(((0.43, 0.5), (0.57, 0.5), (0.62, 1), (0.38, 1)), p.wood)
    flowers = 0.5 + ARC * 0.46 * (1 + 0.1 * np.cos(9 * np.linspace(0, 2 * np.pi, 40, endpoint=False)))[:, None]
    p.poly(flowers * (1, 0.72), p.main)


@plan("tree", 0.4, ("flat", "child"))
def poplar(p):
    p.rect(0.4, 0.75, 0.6, 1, p.wood)
    p.poly((0.5, 0.4) + ARC * (0.46, 0.4), p.main)


@plan("person", 0.42, SOLID)
def pictogram(p):
    p.disc(0.5, 0.1, 0.095, p.main)
    p.rect(0.02, 0.23, 0.17, 0.6, p.main, round_by=0.06)
    p.rect(0.83, 0.23, 0.98, 0.6, p.main, round_by=0.06)
    p.rect(0.24, 0.58, 0.47, 1, p.main, round_by=0.05)
    p.rect(0.53, 0.58, 0.76, 1, p.main, round_by=0.05)
    p.rect(0.2, 0.22, 0.8, 0.64, p.main, round_by=0.08)


@plan("person", 0.5, SOLID)
def person_with_hat(p):
    for x in (0.36, 0.64):
        p.line(((x, 0.6), (x, 0.96)), 0.14, p.dark)
    for x, hand in ((0.24, 0.08), (0.76, 0.92)):
        p.line(((x, 0.34), (hand, 0.58)), 0.12, p.main)
    p.rect(0.25, 0.28, 0.75, 0.66, p.main, round_by=0.06)
    p.disc(0.5, 0.18, 0.1, p.skin)
    p.rect(0.34, 0, 0.66, 0.1, p.dark)
    p.rect(0.22, 0.09, 0.78, 0.125, p.dark)


@plan("person", 0.9, SOLID)
def bust(p):
    shoulders = (0.5, 1) + ARC[20:] * (0.5, 0.5)
    p.poly([*shoulders, (1, 1)], p.main)
    p.disc(0.5, 0.25, 0.25, p.skin)


@plan("person", 0.55, SOLID)
def child_person(p):
    for x in (0.4, 0.6):
        p.line(((x, 0.7), (x, 0.96)), 0.06, p.dark)
    for x in (0.04, 0.96):
        p.line(((0.5, 0.42), (x, p.u(0.36, 0.56))), 0.06, p.skin)
    p.poly(((0.5, 0.28), (0.84, 0.76), (0.16, 0.76)), p.main)
    p.disc(0.5, 0.18, 0.17, p.skin)
    for x in (0.4, 0.6):
        p.disc(x, 0.15, 0.02, p.detail, edge=False)
    p.line(((0.4, 0.23), (0.5, 0.26), (0.6, 0.23)), 0.03, p.detail)


@plan("person", 0.55, SOLID)
def walker(p):
    for foot in ((0.16, 0.96), (0.84, 0.96)):
        p.line(((0.5, 0.62), foot), 0.13, p.dark)
    for hand in ((0.1, 0.54), (0.92, 0.5)):
        p.line(((0.5, 0.33), hand), 0.1, p.main)
    p.rect(0.36, 0.25, 0.64, 0.65, p.main, round_by=0.08)
    p.disc(0.5, 0.12, 0.11, p.skin)


def _whiskers(p, x, y, half):
    for side in (-1, 1):
        for dy in (-0.03, 0.05):
            p.line(((x + side * half * 0.35, y), (x + side * half * 1.05, y + dy)), 0.015, p.detail)


def _face(p, x, y, half, tall, eyes=True, seam=False):
    for side in (-1, 1):
        p.poly(
            ((x + side * half * 0.98, y - tall * 0.2), (x + side * half * 0.85, y - tall * 1.5),
             (x + side * half * 0.2, y - tall * 0.85)), p.main
        )  # fmt: skip
    p.oval(x - half, y - tall, x + half, y + tall, p.main, seam=seam)
    if eyes:
        for side in (-1, 1):
            ex = x + side * half * 0.4
            p.oval(ex - half * 0.13, y - tall * 0.3, ex + half * 0.13, y + tall * 0.1, p.detail, edge=False)
        nose = ((x - half * 0.12, y + tall * 0.25), (x + half * 0.12, y + tall * 0.25), (x, y + tall * 0.45))
        p.poly(nose, p.detail, edge=False)


@plan("cat", 1.1)
def cat_face(p):
    _face(p, 0.5, 0.58, 0.5, 0.4)
    if p.style != "line":
        _whiskers(p, 0.5, 0.74, 0.45)


@plan("cat", 0.65)
def cat_from_behind(p):
    p.line(((0.6, 0.93), (0.88, 0.95), (0.95, 0.75), (0.84, 0.6)), 0.1, p.main)
    p.poly((0.45, 0.66) + ARC * (0.36, 0.34), p.main)
    _face(p, 0.45, 0.27, 0.27, 0.17, eyes=False, seam=True)


@plan("cat", 1.4)
def walking_cat(p):
    p.line(((0.12, 0.5), (0.05, 0.25), (0.12, 0.06)), 0.08, p.main)
    for x in (0.12, 0.24, 0.56, 0.68):
        p.rect(x, 0.6, x + 0.08, 1, p.main)
    p.rect(0.08, 0.4, 0.8, 0.74, p.main, round_by=0.15)
    _face(p, 0.82, 0.36, 0.17, 0.22, seam=True)


@plan("cat", 1.7)
def lying_cat(p):
    p.line(((0.12, 0.88), (0.02, 0.7), (0.08, 0.5)), 0.1, p.main)
    p.poly((0.45, 0.98) + ARC[20:] * (0.42, 0.55), p.main)
    _face(p, 0.8, 0.55, 0.2, 0.3, seam=True)


@plan("cat", 0.75)
def round_cat(p):
    p.line(((0.72, 0.9), (0.95, 0.8), (0.92, 0.55)), 0.08, p.main)
    p.oval(0.14, 0.44, 0.82, 1, p.main)
    _face(p, 0.48, 0.32, 0.36, 0.23)
    _whiskers(p, 0.48, 0.4, 0.38)


@plan("cup", 0.72)
def paper_cup(p):
    p.poly(((0.08, 0.12), (0.92, 0.12), (0.78, 1), (0.22, 1)), p.main)
    if p.two:
        p.poly(((0.13, 0.4), (0.87, 0.4), (0.82, 0.74), (0.18, 0.74)), p.other)
    p.rect(0.02, 0.06, 0.98, 0.16, shade_of(p.main, 0.2) if p.style == "child" else p.main, seam=True)
    p.rect(0.12, 0, 0.88, 0.06, p.main)


def _ear(p, x, y, radius):
    """A round handle with a hole."""
    p.disc(x, y, radius, p.main)
    p.cut((x, y) + ARC * (radius * 0.55 / p.aspect, radius * 0.55))


@plan("cup", 1.2)
def coffee_icon(p):
    _ear(p, 0.78, 0.52, 0.24)
    p.rect(0, 0.24, 0.78, 1, p.main, round_by=0.16)
    if p.two:
        p.rect(0.005, 0.46, 0.775, 0.74, p.other, edge=False)
    else:
        for x in (0.24, 0.4, 0.56):
            p.line(((x, 0.16), (x + 0.03, 0.1), (x - 0.02, 0.03)), 0.04, p.main)


@plan("cup", 1.5)
def teacup(p):
    _ear(p, 0.8, 0.32, 0.22)
    p.oval(0.06, 0.86, 0.86, 1, shade_of(p.main, 0.12) if p.style != "icon" else p.main)
    bowl = (0.44, 0.08) + ARC[:21] * (0.4, 0.82)
    p.poly(bowl, p.main)
    if p.two:
        p.poly(((0.05, 0.12), (0.83, 0.12), (0.8, 0.36), (0.08, 0.36)), p.other)


@plan("cup", 1.1)
def barrel_mug(p):
    _ear(p, 0.8, 0.5, 0.24)
    bulge = 0.04 * np.sin(np.linspace(0, np.pi, 9))
    heights = np.linspace(0, 1, 9)
    p.poly([*zip(0.76 + bulge, heights, strict=True), *zip(0.04 - bulge[::-1], heights[::-1], strict=True)], p.main)
    if p.two:
        p.rect(0.01, 0.34, 0.79, 0.66, p.other, edge=False)
    else:
        p.line(((0.05, 0.12), (0.75, 0.12)), 0.03, shade_of(p.main, 0.35))


@plan("cup", 1.0)
def mug_from_above(p):
    _ear(p, 0.78, 0.52, 0.22)
    p.poly([*((0.4, 0.82) + ARC[:21] * (0.36, 0.17)), (0.02, 0.16), (0.78, 0.16)], p.main)
    if p.two:
        p.rect(0.03, 0.48, 0.77, 0.74, p.other, edge=False)
    p.oval(0.02, 0, 0.78, 0.34, p.main, seam=True)
    p.oval(0.08, 0.05, 0.72, 0.29, mix_colors(p.main, (60, 40, 30), 0.6), edge=False)


@plan("box", 1.0)
def gift(p):
    for side in (-1, 1):
        p.oval(0.5 + min(0, side * 0.3), 0.02, 0.5 + max(0, side * 0.3), 0.22, p.other)
    p.rect(0.06, 0.4, 0.94, 1, p.main, seam=True)
    p.rect(0, 0.2, 1, 0.42, p.main, seam=True)
    p.rect(0.41, 0.2, 0.59, 1, p.other if p.two else shade_of(p.main, 0.3), edge=False)


@plan("box", 1.35)
def open_box(p):
    p.poly(((0.14, 0.3), (0.86, 0.3), (0.8, 0.1), (0.2, 0.1)), shade_of(p.main, 0.45))
    p.poly(((0.14, 0.3), (0.2, 0.1), (0.06, 0), (0, 0.16)), p.main, seam=True)
    p.poly(((0.86, 0.3), (0.8, 0.1), (0.94, 0), (1, 0.16)), p.main, seam=True)
    p.rect(0.14, 0.3, 0.86, 1, p.main, seam=True)
    if p.two:
        p.rect(0.38, 0.3, 0.62, 1, p.other, edge=False)


@plan("box", 1.1)
def isometric(p):
    top, left, right = mix_colors(p.main, (255, 255, 255), 0.22), p.main, shade_of(p.main, 0.2)
    if p.style != "flat":
        top = right = p.main
    p.poly(((0.5, 0), (1, 0.25), (0.5, 0.5), (0, 0.25)), top, seam=True)
    p.poly(((0, 0.25), (0.5, 0.5), (0.5, 1), (0, 0.75)), left, seam=True)
    p.poly(((1, 0.25), (0.5, 0.5), (0.5, 1), (1, 0.75)), right, seam=True)
    if p.two:
        p.poly(((0.17, 0.335), (0.33, 0.415), (0.33, 0.915), (0.17, 0.835)), p.other, edge=False)
        p.poly(((0.67, 0.085), (0.83, 0.165), (0.33, 0.415), (0.17, 0.335)), p.other, edge=False)


@plan("box", 1.3)
def parcel(p):
    p.rect(0, 0, 1, 1, p.main, seam=True)
    if p.two:
        p.rect(0.36, 0.005, 0.64, 0.995, p.other, edge=False)
    else:
        p.rect(0.42, 0.01, 0.58, 0.4, shade_of(p.main, 0.25), edge=False)
    p.rect(0, 0, 1, 0.22, p.main, seam=True)
    p.rect(0.7, 0.75, 0.92, 0.9, PALE if color_lightness(p.main) < 200 else p.detail, edge=False)


@plan("box", 1.2)
def with_lid(p):
    p.rect(0.07, 0.26, 0.93, 1, p.main, seam=True)
    p.rect(0, 0, 1, 0.28, p.other, seam=True)
    p.rect(0.38, 0.5, 0.62, 0.62, p.detail, edge=False)


def _handle(p, x, y=0.52):
    p.disc(x, y, 0.035, p.detail, edge=False)


@plan("door", 0.72, ("flat",))  # leaves with a gap between them could be taken for two doors
def double_door(p):
    p.rect(0, 0, 1, 1, p.wood, seam=True)
    for x0, x1 in ((0.1, 0.5), (0.5, 0.9)):
        p.rect(x0, 0.08, x1, 1, p.main, seam=True)
    for x in (0.43, 0.57):
        _handle(p, x)


@plan("door", 0.5)
def arched_door(p):
    p.poly([*((0.5, 0.3) + ARC[20:] * (0.5, 0.3)), (1, 0.3), (1, 1), (0, 1)], p.main)
    p.line(((0.35, 0.3), (0.35, 0.92)), 0.03, shade_of(p.main, 0.4))
    p.line(((0.65, 0.3), (0.65, 0.92)), 0.03, shade_of(p.main, 0.4))
    _handle(p, 0.82, 0.58)


@plan("door", 0.52)
def framed_door(p):
    p.rect(0, 0, 1, 1, p.main)
    p.cut(((0.1, 0.05), (0.9, 0.05), (0.9, 1), (0.1, 1)))
    p.rect(0.16, 0.09, 0.84, 1, p.main)
    _handle(p, 0.72)


@plan("door", 0.5)
def paned_door(p):
    p.rect(0, 0, 1, 1, p.main)
    for x, y in ((0.16, 0.08), (0.54, 0.08), (0.16, 0.28), (0.54, 0.28)):
        p.rect(x, y, x + 0.3, y + 0.16, p.glass, edge=False)
    p.rect(0.8, 0.52, 0.88, 0.66, p.detail, edge=False)


@plan("door", 0.5, ("flat", "child"))
def panelled_door(p):
    p.rect(0, 0, 1, 1, p.main)
    for top, bottom in ((0.08, 0.44), (0.58, 0.92)):
        p.rect(0.18, top, 0.72, bottom, shade_of(p.main, 0.15), seam=True)
    _handle(p, 0.85)


# ---------------------------------------------------------------------------------------------- as in picture books

DETAILED = ("flat",) * 6 + ("child",)  # often, as each has many parts to learn


def _inked(p):
    """Outlined in ink, as picture books are; not always."""
    if p.style == "flat" and p.chance(0.8):
        p.edge, p.edge_width = p.ink, p.u(0.012, 0.04)


@plan("bus", 1.85, DETAILED)
def book_bus(p):
    """From the side, with a door, arches over the wheels, bumpers, lights and a mirror."""
    _inked(p)
    wide, corner, belt, low = p.u(0.9, 0.95), p.u(0.04, 0.16), p.u(0.42, 0.54), 0.86
    upper, lower = (p.other, p.main) if p.two else (p.main, p.main)
    p.rect(0.02, 0, wide, low, lower, round_by=corner)
    if p.two:
        middle = corner * min(1, 1 / p.aspect)
        p.rect(0.02, 0, wide, belt, upper, round_by=corner)
        p.poly(((0.02, middle + 0.06), (wide, middle + 0.06), (wide, belt), (0.02, belt)), upper, edge=False)
        if p.edge_width:
            p.line(((0.02, belt), (wide, belt)), p.edge_width, p.edge)
    door, count = p.u(0.7, 0.78), int(p.rng.integers(3, 6))
    step = (door - 0.08) / count
    for i in range(count):
        x0, x1 = 0.06 + step * i, 0.06 + step * (i + p.u(0.78, 0.86))
        p.rect(x0, 0.12, x1, belt - 0.08, p.glass, round_by=0.03)
        if p.chance(0.5):
            shine = mix_colors(p.glass, (255, 255, 255), 0.5)
            p.poly(((x0 + 0.03, belt - 0.1), (x0 + 0.06, belt - 0.1), (x1 - 0.02, 0.15), (x1 - 0.04, 0.15)), shine,
                   edge=False)  # fmt: skip
    for x in (door, door + 0.055):
        p.rect(x, 0.14, x + 0.05, low - 0.04, p.glass)
    p.rect(door + 0.13, 0.12, wide - 0.005, belt - 0.06, p.glass)
    radius = p.u(0.12, 0.15)
    for x in (p.u(0.18, 0.24), door - p.u(0.08, 0.14)):
        if p.chance(0.6):
            arch = (x, 1 - radius) + ARC[20:] * (radius / p.aspect, radius) * 1.25
            p.poly(arch, shade_of(lower, 0.5), edge=False)
        p.disc(x, 1 - radius, radius, p.dark)
        p.disc(x, 1 - radius, radius * 0.45, (200, 200, 208))
    p.disc(wide - 0.02, 0.66, 0.045, (250, 215, 90))
    for x in (0, wide - 0.05):
        p.rect(x, low - 0.09, x + 0.07, low - 0.04, (150, 150, 160))
    p.line(((wide, 0.2), (0.985, 0.2), (0.985, 0.26)), 0.02, p.ink)
    p.rect(0.97, 0.24, 1, 0.36, (150, 150, 160))


@plan("person", 0.62, DETAILED)
def book_person(p):
    """From the side, with a nose and hair: an arm or two in front, or one that carries something."""
    _inked(p)
    x, thick = (0.3, p.u(0.14, 0.19)) if p.held else (p.u(0.34, 0.46), p.u(0.14, 0.2))
    trousers = p.dark if p.chance(0.5) else mix_colors(p.dark, (110, 112, 135), 0.7)
    hip, shoe = p.u(0.58, 0.62), p.wood if p.chance(0.6) else p.dark
    legs = [(x, 0.95), (x + p.u(-0.02, 0.08), 0.95)]
    if p.chance(0.4):  # walking, or a foot against something
        legs[1] = (x + p.u(0.28, 0.42), p.u(0.66, 0.94))
    for foot in legs[::-1]:
        knee = ((x + foot[0]) / 2 + 0.04, min(hip + 0.02, foot[1]) * 0.5 + foot[1] * 0.5 - 0.05)
        p.line(((x, hip - 0.02), knee, foot), thick * 1.1, trousers)
        p.oval(foot[0] - 0.08, foot[1] - 0.02, foot[0] + 0.15, foot[1] + 0.05, shoe)
    radius = p.u(0.095, 0.115)
    across = radius / p.aspect
    p.rect(x - across * 0.4, 0.17, x + across * 0.4, 0.27, p.skin)
    half = across * p.u(0.8, 1.05)
    p.rect(x - half, 0.24, x + half, hip, p.main, round_by=p.u(0.03, 0.12))
    p.disc(x, 0.02 + radius, radius, p.skin)
    level = 0.02 + radius
    tip = (x + across * 1.4, level + 0.02)
    p.poly(((x + across * 0.9, level - 0.03), tip, (x + across * 0.85, level + 0.04)), p.skin)
    hair = ((x + across * 0.95, level - radius * 0.45), (x + across * 0.4, 0), (x - across * 0.5, 0),
            (x - across * 1.1, level - radius * 0.5), (x - across * 1.05, level + radius * 0.7),
            (x - across * 0.5, level + radius * 0.3), (x - across * 0.25, level - radius * 0.4))  # fmt: skip
    p.poly(hair, p.wood)
    p.oval(x + across * 0.45, level - 0.02, x + across * 0.65, level + 0.012, (25, 25, 30), edge=False)
    sleeve, wide = shade_of(p.main, p.u(0.02, 0.15)), thick * 0.75
    if not p.held:
        for _ in range(int(p.rng.integers(1, 3))):
            hand = (min(0.97, x + p.u(0.1, 0.5)), p.u(0.16, 0.56))
            p.line(((x, 0.31), ((x + hand[0]) / 2, max(0.42, hand[1])), hand), wide, sleeve)
            p.disc(*hand, 0.035, p.skin)
        return
    paint, kind = p.held
    level, size = p.u(0.3, 0.36), p.u(0.26, 0.3)
    item = p.part(x + half * 0.9, level, 1, level + size, paint)
    item.edge, item.edge_width = (p.ink if color_lightness(paint) > 45 else PALE), p.u(0.03, 0.06)
    reach = (x + half + (1 - x - half) * p.u(0.3, 0.6), level + size + 0.01)
    both = p.chance(0.5)
    if both:  # the other arm lies behind, and its hand holds the far side
        under = level + size + p.u(0.0, 0.03)
        p.line(((x, 0.34), (x + 0.06, under), (p.u(0.85, 0.95), under)), wide, shade_of(p.main, p.u(0.1, 0.25)))
    if p.chance(0.5):
        any_of(FIGURES[kind], p.rng)(item)
        p.line(((x, 0.31), (x + 0.02, level + size - 0.02), reach), wide, sleeve)
    else:
        p.line(((x, 0.31), (x + 0.02, level + size - 0.02), reach), wide, sleeve)
        any_of(FIGURES[kind], p.rng)(item)
    p.disc(*reach, 0.03, p.skin)
    if both:
        for finger in range(int(p.rng.integers(1, 5))):
            y = level + size * (0.4 + 0.11 * finger)
            p.line(((0.9, y + 0.01), (0.97, y)), 0.025, p.skin)


@plan("door", 0.52, DETAILED)
def book_door(p):
    """Open, in a frame, with what is outside behind it; the leaf is a trapezium with panels."""
    _inked(p)
    # Cream and not white, which would be asked about.
    frame = (238, 228, 204) if p.chance(0.6) else p.wood if p.chance(0.5) else shade_of(p.main, 0.4)
    p.rect(0, 0, 1, 1, frame, seam=True)
    outside = (196, 226, 244) if color_lightness(p.main) < 200 else (70, 76, 92)
    p.rect(0.08, 0.05, 0.92, 1, outside, edge=False)
    if p.chance(0.5):
        p.rect(0.08, p.u(0.6, 0.8), 0.92, 1, mix_colors(outside, (120, 150, 90), 0.6), edge=False)
    x, slant = p.u(0.2, 0.42), p.u(0.02, 0.06)
    leaf = np.array(((x, 0.06 + slant), (0.92, 0.06), (0.92, 0.98), (x, 0.98 - slant)))
    p.poly(leaf, p.main, seam=True)
    tone = p.main if p.chance(0.2) else shade_of(p.main, 0.15) if p.chance(0.6) else mix_colors(p.main, PALE, 0.12)
    for top, bottom in ((0.1, 0.45), (0.55, 0.9)):
        across = leaf[0] + (leaf[1] - leaf[0]) * ((0.2,), (0.85,))
        down = leaf[3] - leaf[0]
        p.poly((*(across + down * top), *(across + down * bottom)[::-1]), tone, seam=True)
    gold = (225, 190, 70)
    p.disc(x + 0.07, 0.53, 0.025, gold if color_distance([gold], [p.main]) > 35 else p.detail)


HOLDER = Figure(book_person, 0.72, "flat", holds=True)  # wider, for what is held
