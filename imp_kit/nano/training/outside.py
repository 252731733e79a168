"""Images that are no drawings of the kit: noise, smooth colors, textures, and crops of free photographs.

The photographs come inside the wheels of well-known packages. Those of scikit-image are each in the public domain,
under CC0, or without known copyright restrictions (see images/SOURCES.md for those that the kit also shows). "ascent"
of PyWavelets is from public-domain-image.com; matplotlib's "grace_hopper.jpg" is the US Navy's portrait, in the public
domain. scikit-learn's "china.jpg" (flickr.com/photos/danielbuechele/6061409035) and "flower.jpg"
(flickr.com/photos/vultilion/6056698931) are under CC BY 2.0 (creativecommons.org/licenses/by/2.0).
"""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SKIMAGE = "scikit-image"  # skimage.data has a function for each
PHOTOGRAPHS = {  # name and package
    "trained": {
        **dict.fromkeys(
            ("astronaut", "coffee", "chelsea", "clock", "coins", "hubble_deep_field", "brick", "grass", "gravel",
             "retina", "immunohistochemistry", "cell", "microaneurysms"),
            SKIMAGE,
        ),
        "ascent": "pywavelets",
        "grace_hopper.jpg": "matplotlib",
        "china.jpg": "scikit-learn",
        "flower.jpg": "scikit-learn",
    },
    "unseen": {"camera": SKIMAGE, "rocket": SKIMAGE},
}  # fmt: skip
PACKAGES = tuple(sorted(set(PHOTOGRAPHS["trained"].values())))  # without which training cannot begin


def sample_outside(rng: np.random.Generator, kind: str | None = None, photographs: str = "trained") -> Image.Image:
    """An image of a `kind`, "noise", "smooth", "texture" or "photograph" (chance decides if None)."""
    kind = kind or str(rng.choice(("noise", "smooth", "texture", "photograph"), p=(0.15, 0.15, 0.15, 0.55)))
    if kind == "photograph":
        image = _crop(rng, photographs)
        return _augment(image, rng) if photographs == "trained" else image
    size = tuple(int(v) for v in rng.integers(140, 401, 2))
    if kind == "noise":
        channels = 3 if rng.random() < 0.6 else 1
        grain = int(rng.integers(1, 9))
        field = rng.normal(rng.uniform(60, 195), rng.uniform(25, 80), (size[1] // grain, size[0] // grain, channels))
        return _to_image(np.repeat(field, 3 // channels, axis=2), size)
    if kind == "smooth":
        cells = int(rng.integers(2, 6))
        return _to_image(rng.uniform(0, 255, (cells, cells, 3)), size)
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
    return _to_image(low + (high - low) * share, size)


def _to_image(field, size):
    return Image.fromarray(np.clip(field, 0, 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


@cache
def photograph(name: str, package: str) -> Image.Image:
    """A photograph of PHOTOGRAPHS, as RGB."""
    if package == "matplotlib":
        from matplotlib.cbook import get_sample_data

        with Image.open(get_sample_data(name, asfileobj=False)) as image:
            return image.convert("RGB")
    if package == "scikit-learn":
        from sklearn.datasets import load_sample_image

        return Image.fromarray(load_sample_image(name))
    if package == "pywavelets":
        from pywt import data
    else:
        from skimage import data
    return Image.fromarray(np.asarray(getattr(data, name)(), np.uint8)).convert("RGB")


def _crop(rng, photographs):
    """A part of a photograph, mirrored at times, in its own colors or with other ones."""
    options = tuple(PHOTOGRAPHS[photographs].items())
    image = photograph(*options[rng.integers(len(options))])
    share = rng.uniform(0.35, 1.0, 2)
    width, height = round(image.width * share[0]), round(image.height * share[1])
    x, y = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    image = image.crop((x, y, x + width, y + height)).resize((max(140, width // 2), max(140, height // 2)))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.4:
        pixels = np.asarray(image, float)[..., rng.permutation(3)]
        image = _to_image((pixels - 128) * rng.uniform(0.6, 1.3) + rng.uniform(98, 158), image.size)
    return image


def _augment(image, rng):
    """A changed copy of a training photograph: a model would memorize so few photographs if they never changed.

    Each change comes by chance: a smaller part, turned, gray, mixed with or set beside another part, cut out and put in
    front of a sky, blurred, grainy.
    """
    width, height = image.size
    if rng.random() < 0.4:
        share = rng.uniform(0.35, 1.0, 2)
        x, y = rng.uniform(0, 1 - share) * image.size
        box = (x, y, x + share[0] * width, y + share[1] * height)
        image = image.resize(image.size, Image.Resampling.BICUBIC, box)
    if rng.random() < 0.3:
        turn = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM)
        image = image.transpose(turn[rng.integers(3)])
    if rng.random() < 0.35:
        other = _crop(rng, "trained").resize(image.size)
        if rng.random() < 0.5:
            image = Image.blend(image, other, rng.uniform(0.25, 0.75))
        else:
            image.paste(other, (round(image.width * rng.uniform(0.25, 0.75)), 0))
    elif rng.random() < 0.3:
        image = in_front_of_sky(image, rng)
    if rng.random() < 0.45:
        image = image.convert("L").convert("RGB")
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3.0)))
    if rng.random() < 0.4:
        pixels = np.asarray(image, float) / 255
        pixels = pixels ** rng.uniform(0.5, 2.0) * 255 + rng.normal(0, rng.uniform(0, 12), pixels.shape)
        image = _to_image(pixels, image.size)
    return image


def in_front_of_sky(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Some parts of a photograph on a smooth ground: that things stand alone on one does not make it a drawing."""
    width, height = image.size
    sky = _to_image(rng.uniform(0, 255, 3) + rng.normal(0, 25, (int(rng.integers(2, 4)), 1, 3)), image.size)
    mask = Image.new("L", image.size)
    for _ in range(int(rng.integers(1, 4))):
        half_width, part_height = rng.uniform(0.03, 0.2) * width, rng.uniform(0.2, 0.7) * height
        x, top = rng.uniform(0.1, 0.9) * width, rng.uniform(0, 0.6) * height
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(5, 12))))
        corners = zip(x + half_width * np.cos(angles), top + part_height * (1 + np.sin(angles)) / 2, strict=True)
        ImageDraw.Draw(mask).polygon(list(corners), 255)
    return Image.composite(image, sky, mask.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2.0))))
