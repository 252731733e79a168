"""Pictures that are no drawings of the kit: noise, smooth colors, textures, and crops of free photographs.

The photographs come inside scikit-image's wheel, each in the public domain or under CC0 (see images/SOURCES.md for
those that the kit also shows).
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

PHOTOGRAPHS = {  # by the function of skimage.data that gives them
    "trained": (
        "astronaut", "coffee", "chelsea", "clock", "coins", "hubble_deep_field",
        "brick", "grass", "gravel", "retina", "immunohistochemistry", "cell",
    ),
    "unseen": ("camera", "rocket"),
}  # fmt: skip


def sample_outside(rng: np.random.Generator, kind: str | None = None, photographs: str = "trained") -> Image.Image:
    """A picture of a `kind`, "noise", "smooth", "texture" or "photograph" (chance decides if None)."""
    kind = kind or str(rng.choice(("noise", "smooth", "texture", "photograph"), p=(0.2, 0.2, 0.2, 0.4)))
    if kind == "photograph":
        picture = _crop(rng, photographs)
        return _varied(picture, rng) if photographs == "trained" else picture
    size = tuple(int(v) for v in rng.integers(140, 401, 2))
    if kind == "noise":
        channels = 3 if rng.random() < 0.6 else 1
        grain = int(rng.integers(1, 9))
        field = rng.normal(rng.uniform(60, 195), rng.uniform(25, 80), (size[1] // grain, size[0] // grain, channels))
        return _picture(np.repeat(field, 3 // channels, axis=2), size)
    if kind == "smooth":
        cells = int(rng.integers(2, 6))
        return _picture(rng.uniform(0, 255, (cells, cells, 3)), size)
    return _texture(rng, size)


def _texture(rng, size):
    """Waves of several directions and lengths, or noise summed over scales."""
    y, x = np.mgrid[:128, :128] / 128
    if rng.random() < 0.5:
        waves = sum(
            np.sin(2 * np.pi * (rng.uniform(-20, 20) * x + rng.uniform(-20, 20) * y) + rng.uniform(0, 7))
            for _ in range(rng.integers(2, 6))
        )
    else:
        waves = sum(
            np.asarray(Image.fromarray(rng.normal(0, 1, (n, n)).astype(np.float32)).resize((128, 128))) * 8 / n
            for n in (4, 8, 16, 32, 64)
        )
    share = ((waves - waves.min()) / np.ptp(waves))[..., None]
    low, high = rng.uniform(0, 255, (2, 3))
    return _picture(low + (high - low) * share, size)


def _picture(field, size):
    return Image.fromarray(np.clip(field, 0, 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


@lru_cache(maxsize=len(PHOTOGRAPHS["trained"]))
def _photograph(name):
    from skimage import data

    return Image.fromarray(getattr(data, name)()).convert("RGB")


def _crop(rng, photographs):
    """A part of a photograph, mirrored at times, in its own colors or with other ones."""
    names = PHOTOGRAPHS[photographs]
    picture = _photograph(names[rng.integers(len(names))])
    share = rng.uniform(0.35, 1.0, 2)
    width, height = round(picture.width * share[0]), round(picture.height * share[1])
    x, y = int(rng.integers(picture.width - width + 1)), int(rng.integers(picture.height - height + 1))
    picture = picture.crop((x, y, x + width, y + height)).resize((max(140, width // 2), max(140, height // 2)))
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.4:
        pixels = np.asarray(picture, float)[..., rng.permutation(3)]
        picture = _picture((pixels - 128) * rng.uniform(0.6, 1.3) + rng.uniform(98, 158), picture.size)
    return picture


def _varied(picture, rng):
    """A training photograph made into one more: a dozen of them alone would be learned by heart.

    Each change comes by chance: a smaller part, turned, gray, mixed with or set beside another part, blurred, grainy.
    """
    width, height = picture.size
    if rng.random() < 0.4:
        share = rng.uniform(0.35, 1.0, 2)
        x, y = rng.uniform(0, 1 - share) * picture.size
        box = (x, y, x + share[0] * width, y + share[1] * height)
        picture = picture.resize(picture.size, Image.Resampling.BICUBIC, box)
    if rng.random() < 0.3:
        turn = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM)
        picture = picture.transpose(turn[rng.integers(3)])
    if rng.random() < 0.25:
        other = _crop(rng, "trained").resize(picture.size)
        if rng.random() < 0.5:
            picture = Image.blend(picture, other, rng.uniform(0.25, 0.75))
        else:
            picture.paste(other, (round(picture.width * rng.uniform(0.25, 0.75)), 0))
    if rng.random() < 0.3:
        picture = picture.convert("L").convert("RGB")
    if rng.random() < 0.2:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3.0)))
    if rng.random() < 0.4:
        pixels = np.asarray(picture, float) / 255
        pixels = pixels ** rng.uniform(0.5, 2.0) * 255 + rng.normal(0, rng.uniform(0, 12), pixels.shape)
        picture = _picture(pixels, picture.size)
    return picture
