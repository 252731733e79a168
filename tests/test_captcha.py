"""The reading probe's pictures: seeded, of one size, and each factor on its own."""

from dataclasses import fields, replace

import numpy as np
import pytest

import imp_kit
from imp_kit.experiments.captcha.codes import (
    CHARSET,
    GLYPH_HEIGHTS,
    LEVELS,
    SIZE,
    STRIP,
    Distortion,
    draw_code,
    one_factor,
    sample_code,
    squashed_glyph,
)

CAPTION = "The picture contains 8 characters."


def pixels(*args, **settings):
    return np.asarray(draw_code(*args, **settings).convert("L"), int)


def test_the_same_seed_gives_the_same_bytes():
    for level in LEVELS:
        one, other = (draw_code(sample_code(7), CAPTION, level, seed=7) for _ in range(2))
        assert one.tobytes() == other.tobytes()
        assert (one.size, one.mode) == (SIZE, "RGB")
    pictures = {draw_code(sample_code(seed), "", LEVELS[2], seed=seed).tobytes() for seed in range(30)}
    assert len(pictures) == 30


def test_codes_have_no_characters_that_look_alike():
    codes = [sample_code(seed) for seed in range(200)]
    assert {len(code) for code in codes} == {8}
    assert set("".join(codes)) == set(CHARSET)
    assert not set(CHARSET) & set("0O1lI5S2Z8B")
    assert len(set(codes)) == 200
    assert sample_code(3, length=4, charset="7") == "7777"


def test_the_strip_is_blank_without_a_caption_and_the_code_is_the_same_with_one():
    top = SIZE[1] - STRIP
    for level in LEVELS:
        without, with_caption = (pixels(sample_code(1), caption, level, seed=1) for caption in ("", CAPTION))
        assert (without[top:] == 255).all()
        assert (with_caption[top:] < 128).any()
        assert np.array_equal(without[:top], with_caption[:top])
    only = pixels("", CAPTION, seed=1)
    assert (only[:top] == 255).all()
    assert np.array_equal(only[top:], with_caption[top:])


def test_a_blank_picture_and_one_of_noise_alone():
    assert (pixels("", seed=5) == 255).all()
    assert (pixels("", "", Distortion(dots=300), seed=5) == 0).any()


def test_the_first_level_is_clean_and_the_last_as_hard_as_said():
    assert LEVELS[0] == Distortion()
    assert LEVELS[4] == Distortion(rotation=30, warp=8, lines=4, dots=300, overlap=0.2, contrast=0.5)
    for field in fields(Distortion):
        values = [getattr(level, field.name) for level in LEVELS]
        assert values == sorted(values, reverse=field.name == "contrast")
        assert len(set(values)) == 5


@pytest.mark.parametrize("base", [0, 2])
@pytest.mark.parametrize("name", [field.name for field in fields(Distortion)])
def test_a_factor_changes_the_picture_and_nothing_else_of_the_distortion(name, base):
    steps = one_factor(name, base)
    assert steps[base] == LEVELS[base]
    for step in steps:
        assert replace(step, **{name: getattr(LEVELS[base], name)}) == LEVELS[base]
    drawn = {draw_code(sample_code(3), "", step, seed=3).tobytes() for step in steps}
    assert len(drawn) == 5


def test_dots_lie_where_they_lay_whatever_else_changes():
    """A factor draws from its own stream: the dots alone are the difference, at the same places in each case."""

    def dots(distortion):
        with_dots, without = (pixels("K7", "", replace(distortion, dots=n), seed=9) for n in (200, 0))
        return with_dots != without

    clean, turned = dots(Distortion()), dots(Distortion(rotation=30, lines=4))
    free = (pixels("K7", "", Distortion(rotation=30, lines=4), seed=9) == 255) & (pixels("K7", "", seed=9) == 255)
    assert clean.sum() > 400
    assert np.array_equal(clean & free, turned & free)


def test_contrast_is_the_tone_of_the_ink():
    for contrast, tone in ((1.0, 0), (0.5, 128), (0.2, 204)):
        assert abs(pixels("H", "", Distortion(contrast=contrast), seed=0).min() - tone) <= 1


def test_glyphs_are_as_high_as_asked():
    for height in GLYPH_HEIGHTS:
        rows = (pixels("H", "", seed=0, glyph_height=height) < 128).any(axis=1)
        assert abs(rows.sum() - height) <= 1
        width, squashed = squashed_glyph(LEVELS[0], height, 384)
        assert squashed == height * 384 / 160
        assert 0.7 * height < width < 0.9 * height


def test_no_pixel_moves_further_than_the_warp():
    flat, bent = (pixels("H", "", Distortion(warp=warp), seed=4) < 128 for warp in (0, 8))
    for axis in (0, 1):
        ends = [np.flatnonzero(ink.any(axis=axis))[[0, -1]] for ink in (flat, bent)]
        assert np.abs(ends[0] - ends[1]).max() <= 9
    assert not np.array_equal(flat, bent)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"code": "ABCDEFGHIJKLMNOPQ"}, "pixels wide"),
        ({"code": "AB", "caption": "word " * 20}, "caption"),
        ({"code": "日本"}, "ASCII"),
        ({"code": "A\nB"}, "ASCII"),
        ({"code": "AB", "seed": -1}, "seed is -1"),
        ({"code": "AB", "glyph_height": 7}, "glyph_height is 7"),
        ({"code": "AB", "glyph_height": 49}, "glyph_height is 49"),
    ],
)
def test_a_picture_that_cannot_be_drawn(arguments, message):
    with pytest.raises(imp_kit.SettingError, match=message):
        draw_code(**{"seed": 0, **arguments})


@pytest.mark.parametrize(
    ("name", "value"),
    [("rotation", -1), ("warp", 21), ("lines", 21), ("dots", -1), ("overlap", 0.6), ("contrast", 0), ("contrast", 2)],
)
def test_a_distortion_out_of_range(name, value):
    with pytest.raises(imp_kit.SettingError, match=f"{name} is {value}"):
        Distortion(**{name: value})


@pytest.mark.parametrize(("settings", "message"), [({"length": 0}, "length"), ({"length": 13}, "length"),
                                                ({"charset": ""}, "charset"), ({"seed": -2}, "seed")])  # fmt: skip
def test_a_code_that_cannot_be_made(settings, message):
    with pytest.raises(imp_kit.SettingError, match=message):
        sample_code(**{"seed": 0, **settings})
