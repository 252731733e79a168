"""Boxes: read strictly, and turned to the picture that the user gave."""

import io

import numpy as np
import pytest
from PIL import Image

import imp_kit
from imp_kit.boxes import Box, read_box, region

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
