"""Contrastive learning, small enough for a lesson: an image tower and a text tower, trained on the kit's own drawings.

The idea is CLIP's (arXiv 2103.00020): in a batch of images with their captions, each image should be more similar to
its own caption than to the others, and each caption to its own image. SigLIP's loss (arXiv 2303.15343) asks of every
pair of the batch alone whether the two belong together.
"""

import math
import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from imp_kit.errors import CheckpointError, PromptError, SettingError
from imp_kit.experiments.drawings import ASPECTS, COLORS, KINDS, Scene, Thing, draw
from imp_kit.experiments.stats import Share, share_of
from imp_kit.images import open_image, to_pixels
from imp_kit.system.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

CANVAS = 96  # pixels of a drawing's side,
SIDE = 64  # and of the square that the image tower gets
WIDTH = 64  # numbers of a text token, and of what both towers give
CHANNELS = 16  # of the image tower's first layer
LONGEST = 12  # words of a text
UNSEEN_KIND = "star"  # no training drawing shows one
SEEN_KINDS = tuple(kind for kind in KINDS if kind != UNSEEN_KIND)
# A color for each kind that training never shows it in, though it shows the kind and the color.
UNSEEN_PAIRS = tuple((COLORS[(3 * index + 1) % len(COLORS)], kind) for index, kind in enumerate(SEEN_KINDS))
SEEN_PAIRS = tuple((color, kind) for kind in SEEN_KINDS for color in COLORS if (color, kind) not in UNSEEN_PAIRS)
PLACES = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the center", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
CAPTIONS = (
    "{a} {color} {kind}",
    "a drawing of {a} {color} {kind}",
    "the {kind} is {color}",
    "a {kind}",
    "there is a {kind} {place}",
    "{a} {color} {kind} {place}",
)


@dataclass(frozen=True)
class Size:
    """How much a lesson computes: "lesson" for its results, "smoke" to see in seconds that everything runs."""

    drawings: int  # to learn from
    held_out: int  # to test with
    steps: int  # of training
    batch_size: int = 64


SIZES = {"lesson": Size(4000, 500, 600), "smoke": Size(200, 24, 6, 16)}


def size_of(name: str) -> Size:
    """The size by its name. Raises SettingError for another one."""
    if name not in SIZES:
        raise SettingError(f"There is no size {name!r}; choose from {', '.join(map(repr, SIZES))}.")
    return SIZES[name]


# Drawings and captions -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Drawings of one thing each, CANVAS pixels wide and high, with a caption for each."""

    images: tuple[Image.Image, ...]
    things: tuple[Thing, ...]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> "Pairs":
        return Pairs(self.images[part], self.things[part], self.captions[part])

    @property
    def kinds(self) -> list[str]:
        return [thing.kind for thing in self.things]

    @property
    def colors(self) -> list[str]:
        return [thing.colors[0] for thing in self.things]

    @property
    def names(self) -> list[str]:
        """Color and kind of each: "red bus"."""
        return [f"{color} {kind}" for color, kind in zip(self.colors, self.kinds, strict=True)]


def draw_pairs(count: int, seed: int = 0, of: Sequence[tuple[str, str]] = SEEN_PAIRS) -> Pairs:
    """Draw `count` things, each of a (color, kind) that is chosen by chance from `of`, and write a caption for each.

    The same arguments give the same pairs. Raises SettingError for a count below 1.
    """
    if count < 1:
        raise SettingError(f"{count} drawings cannot be drawn; ask for at least one.")
    rng = np.random.default_rng(seed)
    images, things, captions = [], [], []
    for _ in tqdm(range(count), "drawing", leave=False, disable=count < 100):
        color, kind = of[rng.integers(len(of))]
        image, scene = draw(Scene((_place(kind, color, rng),), (CANVAS, CANVAS)), rng)
        images.append(image)
        things += scene.things
        captions.append(caption(scene.things[0], str(rng.choice(CAPTIONS))))
    return Pairs(tuple(images), tuple(things), tuple(captions))


def _place(kind: str, color: str, rng: np.random.Generator) -> Thing:
    """A thing in one of nine places, so large that its centre can be in each of them."""
    side, aspect = rng.uniform(0.5, 0.72), rng.uniform(*ASPECTS[kind])
    width, height = side * min(1, aspect), side * min(1, 1 / aspect)
    column, row = (int(number) for number in rng.integers(3, size=2))
    x, y = (
        float(np.clip((2 * third + 1) / 6 + rng.uniform(-0.05, 0.05), extent / 2 + 0.005, 0.995 - extent / 2))
        for third, extent in ((column, width), (row, height))
    )
    return Thing(kind, (color,), column, row, (x - width / 2, y - height / 2, x + width / 2, y + height / 2))


def caption(thing: Thing, template: str) -> str:
    """A caption by one of CAPTIONS."""
    (color,) = thing.colors
    place = PLACES[thing.row][thing.column]
    return template.format(a="an" if color[0] in "aeiou" else "a", color=color, kind=thing.kind, place=place)


WORDS = sorted({*" ".join((*CAPTIONS, *(place for row in PLACES for place in row))).split()} - {"{a}", "{color}", "{kind}", "{place}"} | {"a", "an", "it", *COLORS, *KINDS})
NUMBERS = {word: number for number, word in enumerate(WORDS, 1)}  # 0 fills up shorter texts


def tokenize(texts: Sequence[str]) -> Tensor:
    """The numbers of each text's words, int64 (texts, LONGEST); 0 where a text has no more words.

    Raises PromptError for an empty or too long text, and for a word that stands in no caption.
    """
    rows = torch.zeros(len(texts), LONGEST, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        words = re.findall(r"\w+", str(text).lower())
        unknown = sorted({word for word in words if word not in NUMBERS})
        if unknown:
            raise PromptError(
                f"The text tower never saw {', '.join(map(repr, unknown))}; it knows these words: {', '.join(WORDS)}."
            )
        if not 1 <= len(words) <= LONGEST:
            raise PromptError(f"{text!r:.80} has {len(words)} words; give 1 to {LONGEST}.")
        row[: len(words)] = torch.tensor([NUMBERS[word] for word in words])
    return rows


# The losses ----------------------------------------------------------------------------------------------


def softmax_loss(logits: Tensor) -> Tensor:
    """CLIP's loss of a matrix (n, n) with images as rows and their captions as columns, in the same order.

    Each row is a choice among n captions, each column one among n images; the right one is on the diagonal
    (arXiv 2103.00020, figure 3). In nats; log(n) for a matrix that says nothing.
    """
    right = torch.arange(len(logits))
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


def sigmoid_loss(logits: Tensor) -> Tensor:
    """SigLIP's loss of a matrix (n, n): each of its n * n pairs is a question with the answer yes or no.

    Yes on the diagonal, no elsewhere; the sum over all pairs, divided by n (arXiv 2303.15343, algorithm 1). In nats.
    """
    signs = 2 * torch.eye(len(logits)) - 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)


# At the start, a factor and a number to add that make logits of similarities: CLIP's and SigLIP's own.
LOSSES: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "softmax": (softmax_loss, 1 / 0.07, 0.0),
    "sigmoid": (sigmoid_loss, 10.0, -10.0),
}


# The model -----------------------------------------------------------------------------------------------


class ImageTower(nn.Sequential):
    """Images, float (n, 3, SIDE, SIDE) in -1..1 -> vectors (n, WIDTH). Four convolutions, each halves the sides."""

    def __init__(self) -> None:
        channels = (3, *(CHANNELS * 2**layer for layer in range(4)))
        layers: list[nn.Module] = []
        for before, after in zip(channels[:-1], channels[1:], strict=True):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers, nn.Flatten(), nn.Linear(channels[-1] * (SIDE // 16) ** 2, WIDTH))


class TextTower(nn.Module):
    """Numbers of words (n, LONGEST) -> vectors (n, WIDTH): one layer of a transformer, then the mean of the words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS) + 1, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(LONGEST, WIDTH))
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0, batch_first=True, norm_first=True)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        empty = tokens == 0
        x = self.layer(self.words(tokens) + self.positions, src_key_padding_mask=empty)
        x = x.masked_fill(empty[..., None], 0).sum(dim=1) / (~empty).sum(dim=1, keepdim=True)
        return self.out(x)


class TinyClip(nn.Module):
    def __init__(self, loss: str = "softmax"):
        super().__init__()
        self.loss, scale, bias = LOSSES[loss]
        self.images, self.texts = ImageTower(), TextTower()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(bias), requires_grad=loss == "sigmoid")

    def forward(self, pixels, tokens):
        images, texts = F.normalize(self.images(pixels)), F.normalize(self.texts(tokens))
        return images @ texts.T
    def logits(self, s):
        return s * self.log_scale.exp().clamp(max=100) + self.bias
