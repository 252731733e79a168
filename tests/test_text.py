"""Pictures of clean text, and pictures that are no drawings."""

from itertools import product

import numpy as np
import pytest
from PIL import Image

from imp_kit.experiments.captcha.codes import CHARSET, SIZE, STRIP
from imp_kit.nano.training import text
from imp_kit.nano.training.outside import PHOTOGRAPHS, in_front_of_sky, photograph, sample_outside
from imp_kit.nano.training.text import LEAST_CONTRAST, LONGEST, PLAIN_EM, WORDS, Style, sample_page, sample_text
from imp_kit.system.extras import EXTRAS

PAGES = [sample_page(np.random.default_rng(seed)) for seed in range(300)]


def test_a_page_is_a_function_of_its_seed():
    again = [sample_page(np.random.default_rng(seed)) for seed in range(20)]
    assert [(page, picture.tobytes()) for page, picture in again] == [
        (page, picture.tobytes()) for page, picture in PAGES[:20]
    ]


def test_lines_lie_in_the_picture_from_top_to_bottom():
    for page, picture in PAGES:
        assert 1 <= len(page.lines) <= 2
        tops = [line.box[1] for line in page.lines]
        assert tops == sorted(tops)
        for line in page.lines:
            x0, y0, x1, y1 = line.box
            assert 0 <= x0 < x1 <= 1
            assert 0 <= y0 < y1 <= 1
            assert len(line.edges) == len(line.text) + 1
            assert list(line.edges) == sorted(line.edges)
            assert (line.edges[0], line.edges[-1]) == (x0, x1)
        assert picture.size == page.scene.size


def test_ink_is_where_the_line_is_and_stands_out():
    """Each character's own columns have both a ground and an ink, far apart in lightness."""
    for page, picture in PAGES:
        tones = np.asarray(picture.convert("L"), int)
        for line in page.lines:
            top, bottom = (round(line.box[i] * picture.height) for i in (1, 3))
            for character, left, right in zip(line.text, line.edges, line.edges[1:], strict=False):
                if character.isupper() or character.isdigit():
                    glyph = tones[top : bottom + 1, round(left * picture.width) : round(right * picture.width) + 1]
                    assert np.ptp(glyph) > 0.5 * LEAST_CONTRAST, line.text


def test_texts_can_be_read_at_the_resolution_of_imp_nano():
    """The least mean width of a character and height of a capital, in pixels of 192."""
    widths = [(line.box[2] - line.box[0]) / len(line.text) * 192 for page, _ in PAGES for line in page.lines]
    heights = [(line.box[3] - line.box[1]) * 192 for page, _ in PAGES for line in page.lines]
    assert min(widths) > 4.5
    assert min(heights) > 11


def test_the_canvas_of_the_probe_is_among_them():
    on_canvas = [page for page, picture in PAGES if picture.size == SIZE and not page.scene.things]
    assert len(on_canvas) > 100
    strip = 1 - STRIP / SIZE[1]
    for page in on_canvas:
        if len(page.lines) == 2 and page.lines[1].sentence:
            assert page.lines[0].box[3] < strip < page.lines[1].box[1] + 0.02


def test_every_length_and_kind_of_text_comes():
    rng = np.random.default_rng(0)
    texts = [sample_text(rng, Style()) for _ in range(3000)]
    assert {len(text) for text in texts} == set(range(1, LONGEST + 1))
    assert any(text.lower() in WORDS and len(text) > 3 for text in texts)
    assert any(len(text) == 8 and set(text) <= set(CHARSET) for text in texts)
    assert {len(sample_text(rng, Style(5, exactly=True))) for _ in range(200)} == {5}
    assert {len(sample_text(rng, Style(2))) for _ in range(200)} == {1, 2}
    assert not any(set(text) & set("01") for text in texts)


def test_no_caption_of_the_probe_is_taught(monkeypatch):
    """Where chance would put its words together, another sentence comes."""
    monkeypatch.setattr(text, "SENTENCES", ("The n contains d p.", "This picture is new."))
    monkeypatch.setattr(text, "NOUNS", ("picture",))
    monkeypatch.setattr(text, "PLURALS", ("characters",))
    pages = [sample_page(np.random.default_rng(seed), kind="two")[0] for seed in range(50)]
    assert {page.lines[1].text for page in pages if page.lines[1].sentence} == {"This picture is new."}


def test_plain_pages_look_alike():
    for seed in range(50):
        page, picture = sample_page(np.random.default_rng(seed), Style(variety=0.0), "one")
        assert picture.size == SIZE
        assert picture.getpixel((0, 0)) == (255, 255, 255)
        assert (page.lines[0].box[3] - page.lines[0].box[1]) * SIZE[1] == pytest.approx(0.73 * PLAIN_EM, abs=1)


def test_full_pages_have_many_lines():
    counts = [len(sample_page(np.random.default_rng(seed), kind="full")[0].lines) for seed in range(50)]
    assert np.mean(counts) > 3


@pytest.mark.parametrize("kind", ["noise", "smooth", "texture", "photograph"])
def test_pictures_that_are_no_drawings(kind):
    pictures = [sample_outside(np.random.default_rng(seed), kind) for seed in range(8)]
    again = sample_outside(np.random.default_rng(0), kind)
    assert again.tobytes() == pictures[0].tobytes()
    assert len({picture.tobytes() for picture in pictures}) == 8
    for picture in pictures:
        assert picture.mode == "RGB"
        assert min(picture.size) >= 140
        assert np.ptp(np.asarray(picture, int)) > 30


def test_the_photographs_of_the_exam_were_never_trained_on():
    assert not set(PHOTOGRAPHS["trained"]) & set(PHOTOGRAPHS["unseen"])
    trained, unseen = (
        [np.asarray(photograph(*each).resize((32, 32)), float) for each in PHOTOGRAPHS[which].items()]
        for which in ("trained", "unseen")
    )
    for one, other in product(trained, unseen):  # nor under another name
        assert np.abs(one - other).mean() > 20


@pytest.mark.parametrize(("name", "package"), PHOTOGRAPHS["trained"].items())
def test_each_photograph_is_in_its_package(name, package):
    assert package in EXTRAS["measure"]
    image = photograph(name, package)
    assert image.mode == "RGB"
    assert min(image.size) > 100
    assert np.ptp(np.asarray(image, int)) > 60  # the palest one: 91


def test_parts_of_a_photograph_in_front_of_a_sky():
    """The ground changes from top to bottom alone, and from 1 % to 60 % of it is covered."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    for seed in range(10):
        pixels = np.asarray(in_front_of_sky(noise, np.random.default_rng(seed)), float)
        sky = np.median(pixels, axis=1, keepdims=True)
        covered = (np.abs(pixels - sky) > 8).any(axis=2).mean()
        assert 0.01 < covered < 0.6
        assert np.abs(np.diff(sky[:, 0], axis=0)).max() < 12
        assert np.ptp(sky, axis=0).max() > 2


def test_texts_of_all_lengths_are_learned_long_ones_more_often():
    """Half of the lengths are the longer of two: 1/8 is (1/8 + 1/64) / 2 = 7 % of the texts, 8/8 is 18 %."""
    rng = np.random.default_rng(0)
    lengths = np.bincount([len(sample_text(rng, Style())) for _ in range(4000)], minlength=LONGEST + 1) / 4000
    expected = [(1 / LONGEST + (2 * length - 1) / LONGEST**2) / 2 for length in range(1, LONGEST + 1)]
    assert lengths[1:] == pytest.approx(expected, abs=0.025)


def test_hard_texts_are_smaller_and_more_often_in_lower_case():
    """The shares are of texts of two characters and more; their bounds are four standard errors away."""
    rng = np.random.default_rng(0)
    shares = []
    for hard in (False, True):
        texts = [sample_text(rng, Style(hard=hard)) for _ in range(4000)]
        longer = [text for text in texts if len(text) > 1]
        shares.append(np.mean([text[1:].islower() for text in longer]))
    assert shares == pytest.approx([0.12, 0.3], abs=0.03)
    heights = [
        np.median([page.lines[0].box[3] - page.lines[0].box[1] for page in pages])
        for pages in (
            [sample_page(np.random.default_rng(seed), Style(hard=hard), "one")[0] for seed in range(400)]
            for hard in (False, True)
        )
    ]
    assert heights[1] < 0.9 * heights[0]
