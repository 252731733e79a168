"""The varied drawings that imp-nano is trained on: the image shows what its scene says, whatever happens to it."""

from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from imp_kit.experiments.drawings import COLORS, FIGURES, KINDS, TRUE_COLORS, TWO_COLORED, Pen, Scene, Thing
from imp_kit.nano.training import variety
from imp_kit.nano.training.figures import NEW_FIGURES
from imp_kit.nano.training.lessons import branches
from imp_kit.nano.training.seen import as_seen, is_clear, placed
from imp_kit.nano.training.variety import sample_varied

SEEDS = 90


@pytest.fixture(scope="module")
def samples():
    return [sample_varied(np.random.default_rng(seed)) for seed in range(SEEDS)]


def center(thing):
    return (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2


def test_a_scene_says_what_its_image_shows(samples):
    for image, scene in samples:
        assert image.mode == "RGB"
        assert image.size == scene.size
        assert 1 <= len(scene.things) <= 5
        for thing in scene.things:
            x0, y0, x1, y1 = thing.box
            assert 0 <= x0 < x1 <= 1
            assert 0 <= y0 < y1 <= 1
            assert thing.kind in KINDS
            assert set(thing.colors) <= set(COLORS)
            assert len(thing.colors) == 1 or (len(thing.colors) == 2 and thing.kind in TWO_COLORED)
            assert (thing.column, thing.row) == tuple(int(3 * value) for value in center(thing))
        places = [(thing.column, thing.row, *center(thing)) for thing in scene.things]
        assert places == sorted(places)


def test_no_place_is_doubtful_and_nothing_too_small(samples):
    for _, scene in samples:
        for thing in scene.things:
            assert all(abs(value - third / 3) > 0.02 for value in center(thing) for third in (1, 2))
            assert min(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]) > 0.05


def test_every_kind_of_scene_comes_up(samples):
    scenes = [scene for _, scene in samples]
    counts = {len(scene.things) for scene in scenes}
    groups = {sum(t.kind == kind for t in scene.things) for scene in scenes for kind in KINDS}
    pairs = [(a.box, b.box) for scene in scenes for a, b in combinations(scene.things, 2)]
    assert counts == {1, 2, 3, 4, 5}
    assert groups >= {1, 2, 3, 4, 5}
    assert any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for a, b in pairs)
    assert any(0 in t.box or 1 in t.box for scene in scenes for t in scene.things)
    assert {t.kind for scene in scenes for t in scene.things} == set(KINDS)
    assert any(t.holding for scene in scenes for t in scene.things)


def test_what_is_carried_shows_beside_what_is_behind_or_in_front(monkeypatch):
    monkeypatch.setattr(variety, "sample_paints", lambda names, *_: [TRUE_COLORS[name][0] for name in names])
    monkeypatch.setattr(variety, "_ground", lambda size, *_: (Image.new("RGB", size, (0, 90, 90)), 35))
    overlaps, front = 0, 0
    for seed in range(48):
        rng = np.random.default_rng(seed)
        plans, size = variety._carrying(rng)
        (x0, y0, x1, y1), (left, top, right, bottom) = (plan.thing.box for plan in plans)
        assert min(x1, right) > max(x0, left)
        in_front = plans[1].thing.kind != "person"
        if in_front:
            assert min(x1, right) - max(x0, left) < 0.3001 * (x1 - x0)
        assert min(y1, bottom) > max(y0, top)
        image, scene = variety._drawn(plans, size, rng)
        other, person = sorted(scene.things, key=lambda thing: thing.kind == "person")
        assert other.kind != "person"
        front += in_front
        assert len({other.colors[0], person.colors[0], person.holding[0]}) == 3
        paint = np.array(TRUE_COLORS[person.holding[0]][0])
        near = np.abs(np.asarray(image, int) - paint).max(axis=2) < 40  # some are shaded
        x0, y0, x1, y1 = (round(v * side) for v, side in zip(person.box, image.size * 2, strict=True))
        assert near[y0:y1, x0:x1].mean() > 0.01, seed
        overlaps += min(other.box[2], person.box[2]) > max(other.box[0], person.box[0])
    assert overlaps >= 32  # less is drawn than the planned boxes hold
    assert 12 <= front <= 36


def test_lessons_can_be_asked(samples):
    for seed, (_, scene) in enumerate(samples):
        turns = [turn for turns in branches(scene, np.random.default_rng(seed), 5) for turn in turns]
        assert turns
        assert all(turn.answer for turn in turns)


def test_a_seed_gives_the_same_image():
    for seed in range(12):
        (one, scene), (other, again) = (sample_varied(np.random.default_rng(seed)) for _ in range(2))
        assert scene == again
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_new_figures_that_fill_their_boxes(kind):
    """On plain ground, without shadows, so that every other pixel belongs to the thing."""
    assert len({(figure.plan, figure.style) for figure in NEW_FIGURES[kind]}) >= 4
    assert not set(NEW_FIGURES[kind]) & set(FIGURES[kind])
    for figure in NEW_FIGURES[kind]:
        rng = np.random.default_rng(7)
        thing = Thing(kind, ("red",), 1, 1, (0.3, 0.3, 0.7, 0.7))
        while True:
            image, scene = variety._drawn([variety._Plan(thing, figure, 3)], (120, 120), rng)
            pixels = np.asarray(image, int)
            if (pixels[:20] == pixels[0, 0]).all() and (pixels[-20:] == pixels[0, 0]).all():
                break
        rows, columns = np.nonzero(np.abs(pixels - pixels[0, 0]).sum(2) > 20)
        reach = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(np.array(scene.things[0].box) * 120 - reach).max() < 6, (figure.plan.__name__, figure.style)


def test_what_a_hand_holds_is_drawn():
    for seed, figure in enumerate(NEW_FIGURES["person"]):
        rng = np.random.default_rng(seed)
        image = Image.new("RGB", (400, 400), "white")
        pen = Pen(image, np.array(((300.0, 0, 50), (0, 380, 10))), (300, 380), [(255, 0, 0)], False, rng, (35, 35, 42))
        pen.held = ((0, 255, 0), "box")
        figure(pen)
        red, green, _ = np.moveaxis(np.asarray(image, int), 2, 0)
        assert (green > red + 60).sum() > 400, figure.plan.__name__


def marker(size, box):
    """White, and a magenta rectangle where the box is."""
    image = Image.new("RGB", size, "white")
    x0, y0, x1, y1 = (value * size[i % 2] for i, value in enumerate(box))
    ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), (255, 0, 255))
    return image


def test_boxes_go_with_what_happens_to_the_image():
    moved = 0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        box = (0.1, 0.45, 0.28, 0.6) if seed % 2 else (0.7, 0.7, 0.95, 0.95)
        scene = placed(Scene((Thing("square", ("pink",), 0, 0, box),), (300, 200)))
        image, seen = as_seen(marker((300, 200), box), scene, rng)
        pixels = np.asarray(image, int)
        assert image.size == seen.size
        assert is_clear(seen)
        rows, columns = np.nonzero((pixels[..., 0] > pixels[..., 1] + 100) & (pixels[..., 2] > pixels[..., 1] + 100))
        reach = np.array((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), float)
        reach /= (*image.size, *image.size)
        assert np.abs(reach - seen.things[0].box).max() < 0.03, seed
        moved += seen.things[0].box != box
    assert 15 < moved < 50


def test_colors_keep_their_names_when_light_changes():
    for seed in range(60):
        image, _ = as_seen(
            Image.new("RGB", (200, 200), (255, 0, 0)), Scene((), (200, 200)), np.random.default_rng(seed)
        )
        middle = np.asarray(image, float)[80:120, 80:120].mean((0, 1))
        assert middle[0] > 190, seed
        assert middle[1:].max() < 30, seed
