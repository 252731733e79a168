"""Boxes: read strictly, and turned to the picture that the user gave."""

import io
import math
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import imp_kit
from imp_kit import boxes
from imp_kit.boxes import INK, Box, read_box, region

WIDE, TALL, SQUARE = (400, 200), (200, 400), (300, 300)


@pytest.fixture(scope="module")
def imp():
    return imp_kit.load("imp-nano", device="cpu", dtype="fp32")


@pytest.mark.parametrize("reply", ["[0.10, 0.20, 0.50, 1.00]", "[0.1,0.2,0.5,1]", "It is at [.1, .2, .5, 1.0]."])
def test_a_box_is_read(reply):
    assert read_box(reply, WIDE, pad=False) == (0.1, 0.2, 0.5, 1.0)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "There is no red cup.",
        "[0.1, 0.2, 0.5]",
        "[0.1, 0.2, 0.5, 0.9, 0.9]",
        "[0.1, 0.2, 0.5, 1.1]",
        "[-0.1, 0.2, 0.5, 0.9]",
        "[0.5, 0.2, 0.1, 0.9]",
        "[0.1, 0.9, 0.5, 0.2]",
        "[0.1, 0.2, 0.1, 0.9]",
        "[10, 20, 50, 90]",
        "[a, b, c, d]",
        "0.1, 0.2, 0.5, 0.9",
        "(0.1, 0.2, 0.5, 0.9)",
        "[0.1, 0.2, 0.5, 0.9] and [0.2, 0.3, 0.4, 0.5]",
        "[nan, 0.2, 0.5, 0.9]",
        "[0.1, 0.2, 0.5, 1e9]",
        "[" + "9" * 5000 + ", 0, 1, 1]",
    ],
)
def test_what_is_no_box_was_not_found(reply):
    assert read_box(reply, WIDE, pad=False) is None


def test_padding_is_undone():
    """400 x 200 in a square of 400: the picture fills the rows from a quarter to three quarters."""
    assert read_box("[0.25, 0.25, 0.5, 0.75]", WIDE, pad=True) == (0.25, 0.0, 0.5, 1.0)
    assert read_box("[0.25, 0.25, 0.75, 0.5]", TALL, pad=True) == (0.0, 0.25, 1.0, 0.5)
    assert read_box("[0.2, 0.3, 0.4, 0.5]", SQUARE, pad=True) == pytest.approx((0.2, 0.3, 0.4, 0.5))
    assert read_box("[0.0, 0.0, 1.0, 1.0]", WIDE, pad=True) == (0, 0, 1, 1), "what reaches into the padding is cut"
    assert read_box("[0.1, 0.05, 0.9, 0.2]", WIDE, pad=True) is None, "nothing but padding"


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("size", [WIDE, TALL, SQUARE, (333, 200)])
def test_there_and_back(size, pad):
    corners = (0.12, 0.2, 0.6, 0.84)
    back = read_box(region(corners, size, pad), size, pad)
    assert np.abs(np.subtract(back, corners)).max() <= 0.005 * max(size) / min(size) + 1e-9


@pytest.mark.parametrize(
    ("corners", "pad", "expected"),
    [
        ((0.501, 0.5, 0.504, 0.6), False, "[0.50, 0.50, 0.51, 0.60]"),
        ((0.497, 0.5, 0.499, 0.6), False, "[0.49, 0.50, 0.50, 0.60]"),
        ((0.498, 0.5, 0.502, 0.6), False, "[0.49, 0.50, 0.51, 0.60]"),
        ((0.29, 0.1, 0.291, 0.101), False, "[0.29, 0.10, 0.30, 0.11]"),
        ((0.996, 0.996, 0.999, 0.999), False, "[0.99, 0.99, 1.00, 1.00]"),
        ((0.0, 0.0, 0.004, 0.004), False, "[0.00, 0.00, 0.01, 0.01]"),
        ((0.5, 0.502, 0.6, 0.507), True, "[0.50, 0.50, 0.60, 0.51]"),  # 0.501 to 0.5035 of the square
        ((0.0, 0.996, 1.0, 0.999), True, "[0.00, 0.74, 1.00, 0.75]"),  # 0.748 to 0.7495
    ],
)
def test_a_region_thinner_than_a_hundredth_keeps_an_area(corners, pad, expected):
    assert region(corners, WIDE, pad) == expected


def random_side(rng):
    ends = [rng.choice((rng.random(), rng.randint(0, 100) / 100, rng.random() ** 30)) for _ in range(2)]
    if rng.random() < 0.3:  # as near as two numbers can be
        ends[1] = math.nextafter(ends[0], 0 if ends[0] == 1 else 1)
    return sorted(ends) if ends[0] != ends[1] else (0.0, 1.0)


def test_rounding_keeps_every_area_and_changes_no_other_value():
    """The oracle for what may not change is Python's own format."""
    rng = random.Random(0)
    for _ in range(10_000):
        size = rng.randint(1, 400), rng.randint(1, 400)
        (x0, x1), (y0, y1) = random_side(rng), random_side(rng)
        corners = x0, y0, x1, y1
        for pad in (False, True):
            written = region(corners, size, pad)
            assert read_box(written, size, pad=False), (corners, size, written)
        plain, written = [f"{value:.2f}" for value in corners], region(corners, size, False)[1:-1].split(", ")
        for low, high in ((0, 2), (1, 3)):
            if plain[low] != plain[high]:
                assert (written[low], written[high]) == (plain[low], plain[high])
        left, top, right, bottom = Box("", corners, Image.new("1", size), None).pixels
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        for low, high, first, last, length in ((x0, x1, left, right, size[0]), (y0, y1, top, bottom, size[1])):
            if round(low * length) < round(high * length):
                assert (first, last) == (round(low * length), round(high * length))


@pytest.mark.parametrize(
    "box",
    [
        None,
        "bus",
        (0.1, 0.2, 0.3),
        (0.5, 0.2, 0.1, 0.3),
        (0, 0, 2, 1),
        (0, 0, float("nan"), 1),
        ("a", "b", "c", "d"),
        (1, 2, 30, 40),
    ],
)
def test_a_region_that_is_none(imp, box):
    with pytest.raises(imp_kit.PromptError, match="fractions"):
        imp.describe("images/bus.png", box)


@pytest.mark.parametrize("phrase", ["", "  ", None, 3])
def test_a_phrase_that_names_nothing(imp, phrase):
    with pytest.raises(imp_kit.PromptError, match="name what to look for"):
        imp.locate("images/bus.png", phrase)


def box(picture, fractions):
    return Box("the bus", fractions, picture, None)


def test_a_box_in_pixels_and_drawn():
    picture = Image.new("RGB", WIDE, "white")
    found = box(picture, (0.1, 0.25, 0.5, 1.0))
    assert found
    assert found.pixels == (40, 50, 200, 200)
    drawn = np.asarray(found.draw())
    assert (drawn[50, 40:200] != 255).any(axis=1).all(), "the upper edge"
    assert (drawn[199, 40:200] != 255).any(axis=1).all(), "the lower edge"
    assert (drawn[100, 210:] == 255).all()
    assert np.asarray(picture).min() == 255, "the picture itself stays as it was"
    assert Image.open(io.BytesIO(found._repr_png_())).size == WIDE
    assert str(found) == "the bus: 0.10, 0.25, 0.50, 1.00"


def test_not_found_is_a_box_that_is_false(imp):
    picture = Image.new("RGB", SQUARE, "white")
    found = imp.locate(picture, "the bus", max_new_tokens=1)
    assert not found
    assert found.fractions is None
    assert found.pixels is None
    assert "not found" in str(found)
    assert np.array_equal(np.asarray(found.draw()), np.asarray(picture))
    with pytest.raises(imp_kit.PromptError, match="fractions"):
        imp.describe(picture, found)


def test_locate_asks_as_llava_was_taught(imp):
    found = imp.locate("images/bus.png", "the bus.")
    assert "region this sentence describes: the bus. ASSISTANT:" in found.answer.prompt
    assert found.phrase == "the bus"
    described = imp.describe("images/bus.png", (0.1, 0.2, 0.3, 0.4))
    assert "description for this region: [0.10, 0.20, 0.30, 0.40]. ASSISTANT:" in described.prompt


def test_a_box_thinner_than_a_pixel_is_drawn():
    picture = Image.new("RGB", (1, 240))
    box = Box("a line", (0.1, 0.1, 0.2, 0.9), picture, None)
    assert box.draw().size == (1, 240)


def test_numbers_beyond_all_floats_are_no_box():
    with pytest.raises(imp_kit.PromptError, match="give x0, y0, x1, y1 as fractions"):
        region((0, 0, 10**400, 1), (10, 10), False)


def test_a_full_stop_names_nothing():
    with pytest.raises(imp_kit.PromptError, match="name what to look for"):
        imp_kit.load("imp-nano", device="cpu").locate(Image.new("RGB", (8, 8)), " ... ")


def test_a_box_thinner_than_a_pixel_holds_one():
    assert box(Image.new("RGB", (100, 100)), (0.501, 0.999, 0.504, 1.0)).pixels == (50, 99, 51, 100)
    assert box(Image.new("RGB", (100, 100)), (0.0, 0.998, 0.002, 0.999)).pixels == (0, 99, 1, 100)
    assert box(Image.new("RGB", (1, 1)), (0.4, 0.6, 0.45, 0.65)).pixels == (0, 0, 1, 1)


SKY = (120, 160, 190)
PLACES = {
    "upper left": (0.0, 0.0, 0.4, 0.4),
    "upper right": (0.8, 0.0, 1.0, 0.3),
    "lower left": (0.0, 0.7, 0.3, 1.0),
    "lower right": (0.9, 0.9, 1.0, 1.0),
    "middle": (0.3, 0.4, 0.6, 0.8),
}
LONG = "the small red bus with a description that goes on and on beyond every picture and does not end"


def label(size, fractions, phrase):
    """The corners of what a phrase adds to a picture with a box; None for nothing."""
    drawn = Box(phrase, fractions, Image.new("RGB", size, SKY), None).draw()
    frame = Box("", fractions, Image.new("RGB", size, SKY), None).draw()
    added = (np.asarray(drawn) != np.asarray(frame)).any(axis=2)
    if not added.any():
        return None
    rows, columns = np.flatnonzero(added.any(axis=1)), np.flatnonzero(added.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", [(60, 40), (400, 300), (1600, 1200)])
def test_the_whole_label_is_in_the_picture(size, place):
    """It has the same width and height as in the middle of a picture that is wide enough for it."""
    left, top, right, bottom = label(size, PLACES[place], "jet")
    x0, y0, x1, y1 = label((3 * size[0], size[1]), PLACES["middle"], "jet")
    assert (right - left, bottom - top) == (x1 - x0, y1 - y0)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", [(60, 40), (400, 300), (1600, 1200)])
def test_a_label_that_is_too_long_ends_in_an_ellipsis(monkeypatch, size, place):
    """As long as it can be, and as wide as the same words in a picture that is wide enough for them."""
    written = []
    write = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *args, **kw: (written.append(args[2]), write(*args, **kw)))
    left, top, right, bottom = label(size, PLACES[place], LONG)
    shown = written[0]
    assert shown.endswith("…")
    assert LONG.startswith(shown[:-1])
    x0, y0, x1, y1 = label((3 * size[0], size[1]), PLACES["middle"], shown)
    assert (right - left, bottom - top) == (x1 - x0, y1 - y0)
    x0, _, x1, _ = label((3 * size[0], size[1]), PLACES["middle"], LONG[: len(shown) + 1] + "…")
    assert x1 - x0 > size[0]


@pytest.mark.parametrize("size", [(1, 1), (1, 240), (240, 1), (20, 20)])
def test_a_picture_too_small_for_a_label_has_a_frame_alone(size):
    assert label(size, PLACES["middle"], "the bus") is None
    assert (np.asarray(Box("", PLACES["middle"], Image.new("RGB", size, SKY), None).draw()) == INK).all(axis=2).any()


@pytest.mark.parametrize("phrase", ["赤いバス", "버스", "الحافلة", "the bus 赤い", "café", "\U0010fffe"])
def test_letters_that_no_font_has_are_not_drawn_as_squares(monkeypatch, phrase):
    monkeypatch.setattr(boxes, "FONTS", ("no such file.ttf",))
    assert label((400, 300), PLACES["middle"], phrase) is None


def test_a_font_of_the_system_helps_out(monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    face = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    monkeypatch.setattr(boxes, "FONTS", ("no such file.ttf", str(face)))
    assert label((400, 300), PLACES["middle"], "café, кафе, cafe\u0301")
    assert label((400, 300), PLACES["middle"], "赤いバス") is None
    assert label((400, 300), PLACES["middle"], "مقهى")
    monkeypatch.setattr("PIL.features.check", lambda _: False)
    assert label((400, 300), PLACES["middle"], "مقهى") is None, "from left to right and unjoined it would be wrong"
