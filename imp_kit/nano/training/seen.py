"""What happens to a drawing until somebody shows it to a model: slides, photographs, light, noise, compression."""

from dataclasses import replace
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from imp_kit.experiments.drawings import SHAPES, Scene, any_of, mix_colors

LEAST_SHAPE, LEAST_OBJECT = 0.07, 0.12  # of the image, for a shorter side: a thing with parts needs more pixels
LEAST_CLEAR = 0.02  # of the image, between a centre and the border of a third, so that its place is beyond dispute
PAPER = (250, 250, 245)


def placed(scene: Scene) -> Scene:
    """The scene with columns and rows as its boxes say, in order: by column, row, then from left to right."""
    things = []
    for thing in scene.things:
        x, y = _center(thing.box)
        things.append(replace(thing, column=min(2, int(3 * x)), row=min(2, int(3 * y))))
    return replace(scene, things=tuple(sorted(things, key=lambda t: (t.column, t.row, *_center(t.box)))))


def is_clear(scene: Scene) -> bool:
    """Whether each thing is big enough to be named and no centre lies close to the border of a third."""
    for thing in scene.things:
        x0, y0, x1, y1 = thing.box
        if min(x1 - x0, y1 - y0) < 0.8 * least_side(thing.kind) or not off_borders(thing.box):
            return False
    return True


def _center(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def off_borders(box, least=LEAST_CLEAR):
    return all(abs(value - third / 3) > least for value in _center(box) for third in (1, 2))


def least_side(kind):
    return LEAST_SHAPE if kind in SHAPES else LEAST_OBJECT


def as_seen(image: Image.Image, scene: Scene, rng: np.random.Generator) -> tuple[Image.Image, Scene]:
    """The drawing as somebody gets to see it: on a slide, photographed, lit, scanned, compressed.

    Boxes and places are those in the new image. Colours change so little that they keep their names.
    """
    moved = rng.random()
    if moved < 0.4:
        for _ in range(4):  # where a thing would become too small or its place doubtful, once more
            other, boxes = (_on_slide if moved < 0.18 else _photographed)(image, scene, rng)
            things = tuple(replace(t, box=box) for t, box in zip(scene.things, boxes, strict=True))
            seen = placed(Scene(things, other.size))
            if is_clear(seen):
                image, scene = other, seen
                break
    smallest = min((min((t.box[2] - t.box[0]) * image.width, (t.box[3] - t.box[1]) * image.height)
                    for t in scene.things), default=min(image.size))  # fmt: skip
    steps = [_lit, _textured, _blurred, _noisy, _rescaled, _compressed]
    chosen = rng.choice(len(steps), int(rng.integers(1, 4)) if moved >= 0.4 else int(rng.integers(0, 3)), replace=False)
    for index in sorted(chosen):  # in the order in which light, lens, sensor and file change an image
        image = steps[index](image, smallest, rng)
    return image, scene


def _on_slide(image, scene, rng):
    """The drawing with margins, and strips above or below as a slide or a window has them."""
    width, height = image.size
    left, top, right, bottom = (round(rng.uniform(0.02, 0.18) * side) for side in (width, height) * 2)
    ground = image.getpixel((0, 0)) if rng.random() < 0.4 else any_of(((255, 255, 255), PAPER, (225, 228, 232)), rng)
    if rng.random() < 0.2:
        ground = (40, 42, 48)
    canvas = Image.new("RGB", (width + left + right, height + top + bottom), ground)
    canvas.paste(image, (left, top))
    pen = ImageDraw.Draw(canvas)
    strip = any_of(((60, 64, 72), (200, 204, 210), (40, 70, 120), (120, 125, 130)), rng)
    if rng.random() < 0.7:
        pen.rectangle((0, 0, canvas.width, round(top * rng.uniform(0.4, 0.9))), strip)
    if rng.random() < 0.4:
        pen.rectangle((0, canvas.height - round(bottom * rng.uniform(0.3, 0.8)), canvas.width, canvas.height), strip)
    if rng.random() < 0.3:
        pen.rectangle((left - 1, top - 1, left + width, top + height), outline=mix_colors(strip, (128, 128, 128), 0.5))
    boxes = []
    for thing in scene.things:
        x0, y0, x1, y1 = thing.box
        boxes.append(((left + x0 * width) / canvas.width, (top + y0 * height) / canvas.height,
                      (left + x1 * width) / canvas.width, (top + y1 * height) / canvas.height))  # fmt: skip
    return canvas, boxes


def _photographed(image, scene, rng):
    """A sheet of paper on a desk: turned a little, in mild perspective, in uneven light."""
    width, height = image.size
    desk = any_of(((150, 120, 92), (96, 74, 58), (120, 122, 126), (188, 182, 172), (58, 60, 66)), rng)
    angle = np.deg2rad(rng.uniform(-7, 7))
    turn = np.array(((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))))
    square = np.array(((-1, -1), (1, -1), (1, 1), (-1, 1))) / 2
    corners = (square * (width, height)) @ turn.T + rng.uniform(-0.05, 0.05, (4, 2)) * (width, height)
    margin = rng.uniform(-0.02, 0.12)
    low, high = corners.min(0) - margin * min(width, height), corners.max(0) + margin * min(width, height)
    corners, size = corners - low, tuple(int(v) for v in high - low)
    back, forth = _homography(corners, square + 0.5), _homography(square + 0.5, corners)
    scale = np.diag((width, height, 1.0)) @ back
    seen = image.transform(
        size, Image.Transform.PERSPECTIVE, (scale / scale[2, 2]).flatten()[:8], Image.Resampling.BICUBIC
    )
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).polygon([tuple(c) for c in corners], 255)
    grain = rng.normal(0, 5, (size[1], size[0] // 8 + 1)).repeat(8, 1)[:, : size[0], None]
    table = Image.fromarray(np.clip(np.array(desk) + grain, 0, 255).astype(np.uint8))
    table.paste(seen, (0, 0), mask.filter(ImageFilter.GaussianBlur(0.7)))
    boxes = []
    for thing in scene.things:
        x0, y0, x1, y1 = thing.box
        points = np.array(((x0, y0, 1), (x1, y0, 1), (x1, y1, 1), (x0, y1, 1))) @ forth.T
        points = points[:, :2] / points[:, 2:] / size
        boxes.append(tuple(float(v) for v in np.clip((*points.min(0), *points.max(0)), 0, 1)))
    return _lit(table, 0, rng), boxes


def _homography(points, others):
    """The 3x3 matrix that maps four points to four others."""
    rows, values = [], []
    for (x, y), (u, v) in zip(points, others, strict=True):
        rows += [(x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y)]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(values)), 1).reshape(3, 3)


def _lit(image, smallest, rng):
    """Light from one side or from above one spot."""
    width, height = image.size
    x, y = np.meshgrid(np.linspace(-1, 1, 16), np.linspace(-1, 1, 16))
    if rng.random() < 0.6:
        angle = rng.uniform(0, 2 * np.pi)
        field = (x * np.cos(angle) + y * np.sin(angle)) / 1.4
    else:
        field = 1 - np.hypot(x - rng.uniform(-0.6, 0.6), y - rng.uniform(-0.6, 0.6))
    low = rng.uniform(0.82, 0.95)
    field = low + (rng.uniform(1.0, 1.06) - low) * (field - field.min()) / (field.max() - field.min())
    ramp = Image.fromarray(field.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return _from_array(np.asarray(image, np.float32) * np.asarray(ramp)[..., None])


def _textured(image, smallest, rng):
    """Paper: fibres and stains that change the lightness a little."""
    width, height = image.size
    coarse = Image.fromarray(rng.normal(0, rng.uniform(2, 5), (24, 24)).astype(np.float32))
    fine = rng.normal(0, rng.uniform(2, 6), (height // 2 + 1, width // 2 + 1)).astype(np.float32)
    field = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    field = field + np.asarray(Image.fromarray(fine).resize((width, height), Image.Resampling.BILINEAR))
    return _from_array(np.asarray(image, np.float32) + field[..., None])


def _blurred(image, smallest, rng):
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, max(0.5, min(1.8, smallest / 40)))))


def _noisy(image, smallest, rng):
    """A sensor's noise: much of it in lightness, some in colour."""
    shape, size = (image.height, image.width, 1), rng.uniform(2, 9)
    noise = rng.standard_normal(shape, np.float32) * size
    if rng.random() < 0.5:
        noise = noise + rng.standard_normal((*shape[:2], 3), np.float32) * size * 0.6
    return _from_array(np.asarray(image, np.float32) + noise)


def _rescaled(image, smallest, rng):
    """Made smaller and larger again; a thing keeps at least a dozen pixels."""
    share = max(rng.uniform(0.35, 0.8), min(1.0, 12 / smallest))
    small = image.resize([max(1, round(side * share)) for side in image.size], Image.Resampling.BILINEAR)
    return small.resize(image.size, any_of((Image.Resampling.BILINEAR, Image.Resampling.NEAREST), rng))


def _compressed(image, smallest, rng):
    """As JPEG; tiny things are spared the lowest qualities, which would take their colour."""
    file = BytesIO()
    image.save(file, "JPEG", quality=int(rng.integers(15 if smallest > 40 else 35, 61)))
    return Image.open(file).convert("RGB")


def _from_array(values):
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
