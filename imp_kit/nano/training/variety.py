"""Scenes as other hands draw them: groups, things alone, overlaps, what the edge cuts off, people who carry something.

`imp_kit.experiments.drawings` has the scenes and figures that exams and notebooks use, and they stay as they are; these
are for training beside them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from imp_kit.experiments.drawings import (
    ASPECTS,
    COLORS,
    FIGURES,
    HELD,
    KINDS,
    SHAPES,
    TRUE_COLORS,
    TWO_COLORED,
    Pen,
    Scene,
    Thing,
    any_of,
    background,
    color_distance,
    color_lightness,
    draw,
    lay_out,
    mix_colors,
    sample_canvas,
    sample_ground_color,
    sample_paints,
    sample_scene,
)
from imp_kit.nano.training.figures import HOLDER, NEW_FIGURES, Figure
from imp_kit.nano.training.seen import LEAST_CLEAR, as_seen, is_clear, least_side, off_borders, placed

Box = tuple[float, float, float, float]
MOST_THINGS = 5
MOST_COVERED, LEAST_VISIBLE = 0.3, 0.76  # of a thing's box: under another one, and inside of the image
MOST_HIDDEN = 0.3  # of a person's width, by what is in front: about half of what HOLDER holds, or more, then shows
# Most boxes are of cardboard, and its browns are lighter: CSS's sienna, and "light brown" of the xkcd color survey.
CARDBOARD = ((160, 82, 45), (173, 129, 80))
VARIED_COLORS = TRUE_COLORS | {"brown": (*TRUE_COLORS["brown"], *CARDBOARD * 2)}
BROWN_BOXES = 0.4  # at least this share of them
HOLDING = 0.5  # of the scenes that are laid out as exams have them: somebody who holds something
VARIED = {kind: (*new, *FIGURES[kind] * (len(new) // 8)) for kind, new in NEW_FIGURES.items()}


@dataclass(frozen=True)
class _Plan:
    """A thing before it is drawn: its box may reach over the image's edge."""

    thing: Thing
    figure: Callable[[Pen], None]
    seed: int  # of what chance decides in the figure: the same for copies


def sample_varied(rng: np.random.Generator) -> tuple[Image.Image, Scene]:
    """An RGB image and what it shows: one to five things, their boxes as fractions of this image."""
    while True:
        kind = rng.random()
        if kind < 0.3:
            scene, rare = sample_scene(rng), rng.random() < HOLDING
            while rare and not any(thing.holding for thing in scene.things):
                scene = sample_scene(rng)
            things = tuple(_with_brown_box(thing, rng) for thing in scene.things)
            image, scene = draw(replace(scene, things=things), rng, VARIED, VARIED_COLORS)
        else:
            sample = _group if kind < 0.51 else _few if kind < 0.73 else _crowded if kind < 0.82 else _carrying
            image, scene = _drawn(*sample(rng), rng)
        scene = placed(scene)
        if is_clear(scene):
            return as_seen(image, scene, rng) if rng.random() < 0.5 else (image, scene)


def _side(rng, low, high):
    """A length between both, and often a small one, but seldom the smallest."""
    return low + (high - low) * rng.random() ** 1.3


def _with_brown_box(thing, rng):
    """The thing, and what it holds brown where that is a box, in some cases."""
    brown = thing.holding and thing.holding[1] == "box" and rng.random() < BROWN_BOXES
    return replace(thing, holding=("brown", "box")) if brown else thing


def _some_colors(kind, rng, share=0.35):
    if kind == "box" and rng.random() < BROWN_BOXES:
        return ("brown",)
    count = 2 if kind in TWO_COLORED and rng.random() < share else 1
    return tuple(COLORS[i] for i in sorted(rng.choice(len(COLORS), count, replace=False)))


def _extent(kind, figure, long_side, size, rng):
    """Width and height as fractions of the image, or None where too small to be named."""
    aspect = figure.aspect * rng.uniform(0.95, 1.05) if isinstance(figure, Figure) else rng.uniform(*ASPECTS[kind])
    short = min(size)
    width, height = long_side * short * min(1, aspect) / size[0], long_side * short * min(1, 1 / aspect) / size[1]
    return (width, height) if min(width, height) >= least_side(kind) else None


def _around(x, y, extent):
    return (x - extent[0] / 2, y - extent[1] / 2, x + extent[0] / 2, y + extent[1] / 2)


def _shared(a, b):
    """How much of the smaller box the other one covers."""
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return max(0, across) * max(0, down) / min(areas)


def _apart(boxes, gap=0.02):
    """Whether boxes lie inside the image, do not touch, and have clear places."""
    inside = all(min(box) > 0.005 and max(box) < 0.995 and off_borders(box, LEAST_CLEAR + 0.01) for box in boxes)
    wide = [np.add(box, (-gap / 2, -gap / 2, gap / 2, gap / 2)) for box in boxes]
    return inside and not any(_shared(a, b) for a, b in combinations(wide, 2))


def _group(rng):
    """Two to five things of one kind, in a row, a column, two rows or anywhere; sometimes with another thing."""
    kind, count = str(any_of(KINDS, rng)), int(rng.choice((2, 3, 4, 5), p=(0.25, 0.3, 0.25, 0.2)))
    odd = count < MOST_THINGS and rng.random() < 0.25
    figure, colors = any_of(VARIED[kind], rng), _some_colors(kind, rng, 0.15)
    several = rng.random() < 0.25
    boxes: list[Box] | None = None
    while boxes is None:
        size = sample_canvas(rng)
        boxes = _lined_up(rng, kind, figure, count, size)
    plans, seed, alike = [], int(rng.integers(2**32)), rng.random() < 0.75
    for box in boxes:
        own = _some_colors(kind, rng, 0) if several and rng.random() < 0.6 else colors
        plans.append(_Plan(Thing(kind, own, 0, 0, box), figure, seed if alike else int(rng.integers(2**32))))
    for _ in range(30 if odd else 0):
        other = str(any_of([k for k in KINDS if k != kind], rng))
        drawn = any_of(VARIED[other], rng)
        extent = _extent(other, drawn, _side(rng, 0.12, 0.5), size, rng)
        box = extent and _around(*rng.uniform(0.05, 0.95, 2), extent)
        if box and _apart([*boxes, box]):
            plans.append(_Plan(Thing(other, _some_colors(other, rng), 0, 0, box), drawn, int(rng.integers(2**32))))
            break
    return plans, size


def _lined_up(rng, kind, figure, count, size):
    layout = any_of(("row", "row", "column", "rows", "anywhere", "anywhere"), rng)
    varying = rng.random() < 0.35
    for _ in range(30):
        extent = _extent(kind, figure, _side(rng, 0.1, 0.85), size, rng)
        if extent is None:
            continue
        ranks = {"row": [count], "column": [1] * count, "rows": [count // 2, count - count // 2]}.get(layout)
        if ranks is None:
            centers = rng.uniform(0.05, 0.95, (count, 2))
        else:
            steps = [each * rng.uniform(1.12, 2.2) for each in extent]
            if layout == "rows" and rng.random() < 0.3:
                ranks.reverse()
            grid = [((i - (n - 1) / 2), j - (len(ranks) - 1) / 2) for j, n in enumerate(ranks) for i in range(n)]
            middle = [0.5 + rng.uniform(-0.5, 0.5) * rng.choice((0.1, 0.6)) for _ in range(2)]
            centers = np.multiply(grid, steps) + middle
            if rng.random() < 0.4:
                centers = centers + rng.uniform(-0.12, 0.12, centers.shape) * extent
        scales = rng.uniform(0.65, 1.15, count) if varying else np.ones(count)
        boxes = [_around(*c, np.multiply(extent, s)) for c, s in zip(centers, scales, strict=True)]
        small = min(min(box[2] - box[0], box[3] - box[1]) for box in boxes)
        if small >= least_side(kind) and _apart(boxes):
            return boxes
    return None


def _few(rng):
    """One thing of any size anywhere, or two or three."""
    count = int(rng.choice((1, 2, 3), p=(0.6, 0.25, 0.15)))
    if count == 1:
        return _scattered(rng, 1, *any_of(((0.1, 0.4), (0.3, 0.97)), rng), _apart)
    return _scattered(rng, count, 0.1, 0.55, _apart)


def _crowded(rng):
    """Two or three things of which one lies partly on another, or one or two that the image's edge cuts off."""
    if rng.random() < 0.6:
        return _scattered(rng, int(rng.integers(2, 4)), 0.28, 0.7, _overlapping)
    return _scattered(rng, int(rng.integers(1, 3)), 0.25, 0.9, _cut_off)


def _overlapping(boxes):
    shares = [_shared(a, b) for a, b in combinations(boxes, 2)]
    inside = all(min(box) > 0.005 and max(box) < 0.995 and off_borders(box, LEAST_CLEAR + 0.01) for box in boxes)
    return inside and max(shares) > 0.04 and sum(shares) <= MOST_COVERED


def _cut_off(boxes):
    frame = (0.0, 0.0, 1.0, 1.0)
    seen = [tuple(np.clip(box, 0, 1)) for box in boxes]
    if any((s[2] - s[0]) <= 0 or (s[3] - s[1]) <= 0 for s in seen):
        return False
    shares = [_shared(box, frame) if box[2] - box[0] < 1 and box[3] - box[1] < 1 else 0 for box in boxes]
    clear = all(off_borders(box, LEAST_CLEAR + 0.01) for box in seen)
    return clear and LEAST_VISIBLE <= min(shares) < 0.95 and not any(_shared(a, b) for a, b in combinations(seen, 2))


def _scattered(rng, count, low, high, fits):
    kinds = [str(any_of(KINDS, rng)) for _ in range(count)]
    figures = [any_of(VARIED[kind], rng) for kind in kinds]
    if fits is _overlapping:
        figures = [_solid(figure) for figure in figures]
    colors = [_some_colors(kind, rng) for kind in kinds]
    if fits is _overlapping:
        colors = [(COLORS[i],) for i in rng.choice(len(COLORS), count, replace=False)]
    while True:
        size = sample_canvas(rng)
        for _ in range(40):
            some = [_extent(k, f, _side(rng, low, high), size, rng) for k, f in zip(kinds, figures, strict=True)]
            if None in some:
                continue
            boxes = [_around(*rng.uniform(0.02, 0.98, 2), extent) for extent in some]
            # An object without its upper end has lost what it is told by: a head, a roof, a rim.
            headless = any(kind not in SHAPES and box[1] < 0 for kind, box in zip(kinds, boxes, strict=True))
            if fits(boxes) and not headless:
                seeds = rng.integers(2**32, size=count)
                named = zip(kinds, colors, boxes, figures, seeds, strict=True)
                return [_Plan(Thing(k, c, 0, 0, box), f, int(seed)) for k, c, box, f, seed in named], size


def _solid(figure):
    """The figure, filled if it is line art: what shines through lines would be disputed."""
    return replace(figure, style="child") if getattr(figure, "style", "flat") == "line" else figure


def _carrying(rng):
    """Somebody who carries something, and a thing that is partly behind them, or in front."""
    in_front = rng.random() < 0.5
    holder = HOLDER if in_front else any_of((*FIGURES["person"], HOLDER, HOLDER), rng)
    kind = str(any_of([kind for kind in KINDS if kind != "person"], rng))
    figure = _solid(any_of(VARIED[kind], rng)) if in_front else any_of(VARIED[kind], rng)
    shirt, held, color = (COLORS[i] for i in rng.choice(len(COLORS), 3, replace=False))
    person = Thing("person", (shirt,), 0, 0, (0, 0, 1, 1), (held, str(any_of(HELD, rng))))
    if "brown" not in (shirt, color):
        person = _with_brown_box(person, rng)
    while True:
        size = sample_canvas(rng)
        for _ in range(40):
            extents = (
                _extent(kind, figure, _side(rng, 0.3, 0.9), size, rng),
                _extent("person", HOLDER, rng.uniform(0.5, 0.95), size, rng),
            )
            if None in extents:
                continue
            box, around = (_around(*rng.uniform(0.1, 0.9, 2), extent) for extent in extents)
            hidden = (min(box[2], around[2]) - max(box[0], around[0])) / (around[2] - around[0])
            if _overlapping([box, around]) and not (in_front and hidden > MOST_HIDDEN):
                seeds = rng.integers(2**32, size=2).tolist()
                thing = _Plan(Thing(kind, (color,), 0, 0, box), figure, seeds[0])
                plans = [thing, _Plan(replace(person, box=around), holder, seeds[1])]
                return plans[::-1] if in_front else plans, size


def _drawn(plans: Sequence[_Plan], size, rng):
    """The image with its scene; the boxes are as far as the drawn things reach."""
    big = (2 * size[0], 2 * size[1])
    paints = _all_paints(plans, rng)
    ground, light = _ground(big, [color for some in paints for color in some], rng)
    image, dark = ground.copy(), (35, 35, 42) if light > 75 else (165, 165, 172)
    things, turned, swap = [], rng.random() < 0.4, rng.random() < 0.5
    for made, some in zip(plans, paints, strict=True):
        chance = np.random.default_rng(made.seed)
        matrix, span = lay_out(made.thing, big, chance) if turned else _upright(made.thing, big, chance)
        held = (some[-1], made.thing.holding[1]) if made.thing.holding else None
        some = some[: len(made.thing.colors)]
        pen = Pen(image, matrix, span, some[::-1] if swap else some, len(some) == 2, chance, dark)
        pen.held = held
        made.figure(pen)
        corners = np.concatenate((np.min(pen.reach, axis=0), np.max(pen.reach, axis=0))) / (big * 2)
        things.append(replace(made.thing, box=tuple(float(v) for v in np.clip(corners, 0, 1))))
    if rng.random() < 0.15:
        image = _shadowed(image, ground, rng)
    return image.reduce(2), Scene(tuple(things), size)


def _all_paints(plans, rng):
    """Drawn colours, the same for the same names in most images; where things overlap, apart from each other."""
    same = rng.random() < 0.85
    boxes = [made.thing.box for made in plans]
    touching = [(a, b) for a, b in combinations(range(len(plans)), 2) if _shared(boxes[a], boxes[b])]
    while True:
        known: dict[tuple[str, ...], list] = {}
        paints = []
        for made in plans:
            names = (*made.thing.colors, *(made.thing.holding or ())[:1])
            if not (same and names in known):
                known[names] = sample_paints(names, rng, VARIED_COLORS)
            paints.append(known[names])
        if all(color_distance(paints[a], paints[b]) > 22 for a, b in touching):
            return paints


def _upright(thing, big, rng):
    """The map from the unit square into the thing's box, mirrored at times."""
    x0, y0, x1, y1 = (v * big[i % 2] for i, v in enumerate(thing.box))
    width, height = (x1 - x0) * 0.965, (y1 - y0) * 0.965
    flip = -1 if rng.random() < 0.3 else 1
    x, y = (x0 + x1) / 2 - flip * width / 2, (y0 + y1) / 2 - height / 2
    return np.array(((flip * width, 0, x), (0, height, y))), (width, height)


def _ground(size, paints, rng):
    """Mostly plain: white, pale, dark or of any colour; sometimes a room or a road, or as in other drawings."""
    if rng.random() < 0.75:
        white = rng.random() < 0.6
        for _ in range(15):
            color = (255, 255, 255) if white else sample_ground_color(rng)
            if color_distance([color], paints) > (20 if white else 30):
                return Image.new("RGB", size, color), color_lightness(color)
            white = False
    return _scenery(size, paints, rng) if rng.random() < 0.6 else background(size, paints, rng)


def _scenery(size, paints, rng):
    """A wall above a floor, or a sky above a road, with a strip between them and at times a broken line below."""
    clearest, upper, lower = -1.0, None, None
    for _ in range(25):
        pair = [sample_ground_color(rng) for _ in range(2)]
        clear = color_distance(pair, paints)
        if clear > clearest:
            clearest, (upper, lower) = clear, pair
        if clear > 25:
            break
    image = Image.new("RGB", size, upper)
    canvas, (width, height) = ImageDraw.Draw(image), size
    level, thick = round(height * rng.uniform(0.6, 0.88)), round(height * rng.uniform(0.01, 0.03))
    canvas.rectangle((0, level, width, height), lower)
    canvas.rectangle((0, level, width, level + thick), mix_colors(lower, upper, rng.uniform(0.2, 0.7)))
    if rng.random() < 0.4:
        pale, step = mix_colors(lower, (255, 255, 255), 0.7), round(width * rng.uniform(0.12, 0.25))
        y = round((level + height) / 2 + height * 0.05)
        for x in range(-step // 2, width, step):
            canvas.line((x, y, x + step // 2, y), pale, max(2, thick))
    return image, color_lightness(lower)  # on which legs and tyres mostly stand


def _shadowed(image, ground, rng):
    """A soft shadow that falls on the ground from all that was drawn there."""
    drawn = ImageChops.difference(image, ground).convert("L").point(lambda v: 255 if v > 4 else 0)
    far = max(2, round(rng.uniform(0.01, 0.02) * min(image.size)))
    shadow = ImageChops.offset(drawn.filter(ImageFilter.BoxBlur(far * rng.uniform(0.3, 0.7))), far, far)
    shadow = ImageChops.multiply(shadow, ImageChops.invert(drawn)).point(lambda v: round(v * 0.35))
    return Image.composite(Image.new("RGB", image.size), image, shadow)
