"""Contrastive learning, small enough for a lesson: an image tower and a text tower, trained on the kit's own drawings.

The idea is CLIP's (arXiv 2103.00020): in a batch of images with their captions, each image should be more similar to
its own caption than to the others, and each caption to its own image. SigLIP's loss (arXiv 2303.15343) asks of every
pair of the batch alone whether the two belong together.
"""

import io
import math
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from imp_kit.errors import CheckpointError, ImageError, PromptError, SettingError
from imp_kit.experiments.drawings import ASPECTS, COLORS, KINDS, Scene, Thing, draw
from imp_kit.experiments.stats import share_of
from imp_kit.images import open_image, to_pixels
from imp_kit.prompts import check_answers
from imp_kit.system.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

CANVAS = 96  # pixels of a drawing's side,
SIDE = 48  # and of the square that the image tower gets
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
    steps: int  # of training,
    batch_size: int  # each with so many pairs
    compared: int  # pairs that each training of `batch_sizes` sees


SIZES = {"lesson": Size(5000, 500, 600, 64, 4800), "smoke": Size(150, 24, 4, 16, 128)}


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

    @cached_property
    def pixels(self) -> Tensor:
        """What the image tower gets of them, as of `pixels_of`: made once for many trainings."""
        return pixels_of(self.images)

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

    def different(self, count: int) -> "Pairs":
        """At most `count` of them, the first in which no kind and no color repeats."""
        chosen: dict[str, int] = {}  # by kind
        colors: set[str] = set()
        for number, (kind, color) in enumerate(zip(self.kinds, self.colors, strict=True)):
            if kind not in chosen and color not in colors and len(chosen) < count:
                chosen[kind] = number
                colors.add(color)
        return Pairs(
            tuple(self.images[number] for number in chosen.values()),
            tuple(self.things[number] for number in chosen.values()),
            tuple(self.captions[number] for number in chosen.values()),
        )


def draw_pairs(count: int, seed: int = 0, of: Sequence[tuple[str, str]] = SEEN_PAIRS) -> Pairs:
    """Draw `count` things, each of a (color, kind) that is chosen by chance from `of`, and write a caption for each.

    The same arguments give the same pairs. Raises SettingError for a count below 1.
    """
    if count < 1:
        raise SettingError(f"{count} drawings cannot be drawn; ask for at least one.")
    rng = np.random.default_rng(seed)
    images: list[Image.Image] = []
    things: list[Thing] = []
    captions: list[str] = []
    for _ in tqdm(range(count), "drawing", leave=False, disable=count < 100):
        color, kind = of[int(rng.integers(len(of)))]
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


FILLERS = {"a": "an", "color": " ".join(COLORS), "kind": " ".join(KINDS), "place": " ".join(sum(PLACES, ()))}
WORDS = sorted({"a", *" ".join(template.format(**FILLERS) for template in CAPTIONS).split()})
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


class ImageTower(nn.Module):
    """Images, float (n, 3, SIDE, SIDE) in -1..1 -> vectors (n, WIDTH).

    Four convolutions, each halving the sides; then each number is the largest that any place of the image gives.
    """

    def __init__(self) -> None:
        super().__init__()
        channels = (3, *(CHANNELS * 2**layer for layer in range(4)))
        layers: list[nn.Module] = []
        for before, after in zip(channels[:-1], channels[1:], strict=True):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.places = nn.Parameter(0.02 * torch.randn(channels[-1], SIDE // 16, SIDE // 16))
        self.mix = nn.Conv2d(channels[-1], 4 * WIDTH, 1)
        self.out = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.out(F.relu(self.mix(self.layers(pixels) + self.places)).amax(dim=(2, 3)))


class TextTower(nn.Module):
    """Numbers of words, int64 (n, LONGEST) -> vectors (n, WIDTH): a transformer's layer, then the mean of the words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS) + 1, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(LONGEST, WIDTH))
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0, batch_first=True, norm_first=True)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        empty = tokens == 0
        x = self.layer(self.words(tokens) + self.places, src_key_padding_mask=empty)
        return self.out(x.masked_fill(empty[..., None], 0).sum(dim=1) / (~empty).sum(dim=1, keepdim=True))


class Match(NamedTuple):
    """A label, and how well it fits an image."""

    answer: str
    probability: float  # among the given labels, which make up 1
    similarity: float  # cosine of the two vectors, from -1 to 1


class Moment(NamedTuple):
    """What a model said at a step of its training."""

    step: int
    similarities: Tensor  # of the images and captions that were watched


class TwoTowers:
    """What models with an image tower and a text tower can do, however they are made."""

    def similarities(self, images: Iterable[Any], texts: Sequence[str]) -> Tensor:
        """Cosines between images, as `open_image` takes them, and texts: float (images, texts), from -1 to 1.

        Raises ImageError and PromptError.
        """
        raise NotImplementedError

    def logits(self, similarities: Tensor) -> Tensor:
        """Similarities times the learned factor, plus the learned number of SigLIP's loss."""
        raise NotImplementedError

    def classify(self, images: Iterable[Any], labels: Iterable[str], template: str = "a {}") -> list[list[Match]]:
        """For each image the labels, the best one first; each is put into `template` and becomes a text.

        This is zero-shot classification (arXiv 2103.00020, section 3.1). Raises ImageError and PromptError.
        """
        labels = check_answers(labels, "label")
        if template.count("{}") != 1:
            raise PromptError(f"template is {template!r}; give a text with one {{}} where the label goes.")
        similarities = self.similarities(images, [template.replace("{}", label) for label in labels])
        shares = self.logits(similarities).softmax(dim=1)
        rows = zip(shares.tolist(), similarities.tolist(), strict=True)
        return [sorted(map(Match, labels, *row), key=lambda match: -match.similarity) for row in rows]

    def search(self, images: Sequence[Any], sentence: str, count: int = 8) -> list[int]:
        """The numbers of the images that fit a sentence best, the best one first. Raises ImageError and PromptError."""
        order = self.similarities(images, [sentence])[:, 0].argsort(descending=True, stable=True)
        return order[:count].tolist()


class TinyClip(nn.Module, TwoTowers):
    """Two towers that `train` has trained with the loss `loss`, one of LOSSES."""

    def __init__(self, loss: str = "softmax"):
        super().__init__()
        if loss not in LOSSES:
            raise SettingError(f"There is no loss {loss!r}; choose from {', '.join(map(repr, LOSSES))}.")
        self.name = loss
        self.loss, scale, bias = LOSSES[loss]
        self.image_tower, self.text_tower = ImageTower(), TextTower()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(bias), requires_grad=loss == "sigmoid")  # softmax would not see it
        self.history: list[Moment] = []

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Cosines: pixels as of ImageTower (n, ...) and tokens as of TextTower (m, ...) -> float (n, m)."""
        return F.normalize(self.image_tower(pixels)) @ F.normalize(self.text_tower(tokens)).T

    @torch.no_grad()
    def similarities(self, images: Iterable[Any], texts: Sequence[str]) -> Tensor:
        pixels, tokens, training = pixels_of(images), tokenize(texts), self.training
        self.eval()
        found = torch.cat([self(part, tokens) for part in pixels.split(256)])
        self.train(training)
        return found

    def logits(self, similarities: Tensor) -> Tensor:
        return similarities * self.log_scale.exp().clamp(max=100) + self.bias  # CLIP's limit of the factor


def pixels_of(images: Iterable[Any]) -> Tensor:
    """Images, as `open_image` takes them -> float (n, 3, SIDE, SIDE) in -1..1. Raises ImageError, also for none."""
    pixels = [to_pixels(open_image(image), SIDE) for image in images]
    if not pixels:
        raise ImageError("There are no images; give at least one.")
    return torch.stack(pixels)


def train(
    pairs: Pairs,
    loss: str = "softmax",
    *,
    size: str = "lesson",
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float = 3e-3,
    seed: int = 0,
    watch: Pairs | None = None,
) -> TinyClip:
    """Train both towers from nothing on pairs, with CLIP's "softmax" loss or SigLIP's "sigmoid" loss.

    `steps` and `batch_size` are those of the size if they are not given. The model's `history` holds the similarities
    of the pairs to `watch` at the beginning, at the end, and more and more seldom between. Raises SettingError, also
    where the loss is no number any more.
    """
    steps = size_of(size).steps if steps is None else steps
    batch_size = size_of(size).batch_size if batch_size is None else batch_size
    if steps < 1:
        raise SettingError(f"{steps} steps are no training; give at least one.")
    if not 2 <= batch_size <= len(pairs):
        raise SettingError(f"A batch of {batch_size} cannot be taken from {len(pairs)} pairs; choose from 2 on.")
    torch.manual_seed(seed)
    model = TinyClip(loss)
    pixels, tokens = pairs.pixels, tokenize(pairs.captions)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(steps, 2), pct_start=0.1)
    moments = {0, *(steps // 2**power for power in range(5))} if watch else set()
    order = torch.empty(0, dtype=torch.int64)
    for step in tqdm(range(steps + 1), f"{loss}, batches of {batch_size}", leave=False):
        if watch and step in moments:
            model.history.append(Moment(step, model.similarities(watch.images, watch.captions)))
        if step == steps:
            break
        if len(order) < batch_size:
            order = torch.randperm(len(pairs))
        batch, order = order[:batch_size], order[batch_size:]
        value = model.loss(model.logits(model(pixels[batch], tokens[batch])))
        if not value.isfinite():
            raise SettingError(
                f"The loss is {value.item()} at step {step}; give a learning_rate below {learning_rate}."
            )
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


class Published(TwoTowers):
    """A published model of transformers' CLIP or SigLIP classes."""

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model, processor

    @torch.no_grad()
    def similarities(self, images: Iterable[Any], texts: Sequence[str]) -> Tensor:
        opened = [open_image(image) for image in images]
        if not opened:
            raise ImageError("There are no images; give at least one.")
        # SigLIP learned from texts that were filled up to its full length.
        padding = "max_length" if "siglip" in self.model.config.model_type else True
        found = []
        for start in range(0, len(opened), 64):
            part = opened[start : start + 64]
            inputs = self.processor(
                text=list(texts), images=part, padding=padding, truncation=True, return_tensors="pt"
            )
            output = self.model(**inputs)  # whose vectors have length 1
            found.append(output.image_embeds @ output.text_embeds.T)
        return torch.cat(found)

    def logits(self, similarities: Tensor) -> Tensor:
        with torch.no_grad():
            return similarities * self.model.logit_scale.exp() + getattr(self.model, "logit_bias", 0.0)


def published(name: str | os.PathLike, download: bool = False) -> Published:
    """A CLIP or SigLIP model by its name on the hub, such as "openai/clip-vit-base-patch32", or by its folder.

    Only with `download` is anything fetched. Raises CheckpointError where it cannot be loaded or is of another kind.
    """
    require("official", "transformers", what="A published model")
    if "://" in str(name):  # of which some versions of transformers download without being told to
        raise CheckpointError(f"{name} is an address; give a name on the hub or a folder.")
    from transformers import AutoConfig, AutoModel, AutoProcessor

    try:
        config = AutoConfig.from_pretrained(name, local_files_only=not download)
        if config.model_type not in ("clip", "siglip"):
            raise CheckpointError(f"{name} is of the kind {config.model_type!r}; give a CLIP or SigLIP model.")
        model = AutoModel.from_pretrained(name, local_files_only=not download, use_safetensors=True)
        processor = AutoProcessor.from_pretrained(name, local_files_only=not download)
    except (OSError, ValueError, ImportError) as error:
        advice = "is it there, and complete?" if download else "give a folder that holds it, or download=True."
        raise CheckpointError(f"{name} cannot be loaded ({str(error).splitlines()[0]:.200}); {advice}") from error
    return Published(model.eval(), processor)


# Results -------------------------------------------------------------------------------------------------


def score(name: str, ranked: Sequence[Any], truths: Sequence[str]) -> dict[str, Any]:
    """A row for `table`: how often the first of the ranked labels, as `classify` gives them, is the true one.

    An image that could not be read is wrong. Raises SettingError for other numbers of images and truths, and where no
    image was ranked.
    """
    if len(ranked) != len(truths):
        raise SettingError(f"{len(ranked)} images and {len(truths)} true labels do not fit; give one for each.")
    labels = max((len(row) for row in ranked if isinstance(row, list)), default=0)
    if not labels:
        raise SettingError(
            f"No image was ranked, so there is nothing to count; the first gave {next(iter(ranked), None)}."
        )
    right = share_of(
        [isinstance(row, list) and row[0].answer == true for row, true in zip(ranked, truths, strict=True)]
    )
    return {"": name, "images": right.total, "labels": labels, "by chance": f"{1 / labels:.1%}", "right": str(right)}


def table(rows: Sequence[dict[str, Any]]) -> "DataFrame":
    """Rows of `score`, or others with the same keys, as a table."""
    require("notebooks", "pandas", what="A table")
    from pandas import DataFrame

    return DataFrame(rows).set_index("")


def zero_shot(models: Sequence[TinyClip], pairs: Pairs) -> "DataFrame":
    """How often each model gets kind, color and both of them right; only what training drawings show is a label."""
    both = [f"{color} {kind}" for color, kind in SEEN_PAIRS]
    tasks = {"kind": (SEEN_KINDS, pairs.kinds), "color": (COLORS, pairs.colors), "color and kind": (both, pairs.names)}
    return table(
        [
            score(f"{task}, {model.name}", model.classify(pairs.images, labels), truths)
            for task, (labels, truths) in tasks.items()
            for model in models
        ]
    )


def batch_sizes(
    pairs: Pairs, held_out: Pairs, batches: Sequence[int] = (8, 32, 128), size: str = "lesson"
) -> "DataFrame":
    """How often color and kind of held-out drawings are right after training with each loss and size of batches.

    Each training sees the same number of pairs, so a small batch makes more steps.
    """
    labels = [f"{color} {kind}" for color, kind in SEEN_PAIRS]
    rows = []
    for batch_size in batches:
        steps = max(1, size_of(size).compared // batch_size)
        row = {"": f"batches of {batch_size}", "steps": steps}
        for loss in LOSSES:
            model = train(pairs, loss, steps=steps, batch_size=batch_size)
            row[loss] = score("", model.classify(held_out.images, labels), held_out.names)["right"]
        rows.append(row)
    return table(rows)


# Pictures ------------------------------------------------------------------------------------------------


def sheet(images: Sequence[Image.Image], titles: Sequence[str], columns: int = 6, side: int = CANVAS) -> Image.Image:
    """Images in a grid, each with its title in up to two lines below it."""
    gap, below = 8, 30
    width, height = side + gap, side + below + gap
    rows = -(-len(images) // columns)
    paper = Image.new("RGB", (gap + columns * width, gap + rows * height), "white")
    pen = ImageDraw.Draw(paper)
    for number, (image, title) in enumerate(zip(images, titles, strict=True)):
        x, y = gap + number % columns * width, gap + number // columns * height
        paper.paste(image.resize((side, side)), (x, y))
        pen.multiline_text((x, y + side + 2), "\n".join(textwrap.wrap(title, side // 5)[:2]), "black", font_size=10)
    return paper


def strip(history: Sequence[Moment]) -> "Figure":
    """The similarities of the watched pairs at each moment: images are rows, their captions columns."""
    figure, every = _figure(len(history), 1.9 * len(history), 2.3)
    for axes, moment in zip(every, history, strict=True):
        drawn = axes.imshow(moment.similarities.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set_title(f"step {moment.step}", fontsize=9)
        axes.set(xticks=[], yticks=[])
    every[0].set(xlabel="captions", ylabel="images")
    figure.colorbar(drawn, ax=list(every), label="similarity", fraction=0.02)
    return figure


def matrix(similarities: Tensor, images: Sequence[Image.Image], texts: Sequence[str]) -> Image.Image:
    """The similarities of images, shown at the left, and texts, with numbers."""
    side = 0.62  # inches of a cell
    figure, (axes,) = _figure(1, 2.4 + side * len(texts), 2.2 + side * len(images))
    axes.imshow(similarities.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
    for row, values in enumerate(similarities.tolist()):
        for column, value in enumerate(values):
            color = "white" if abs(value) > 0.6 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(texts)), [textwrap.fill(text, 22) for text in texts], rotation=60, ha="right", fontsize=8)
    axes.set_yticks([])
    for row, image in enumerate(images):
        inset = axes.inset_axes((-1.45, row - 0.45, 0.9, 0.9), transform=axes.transData)
        inset.imshow(image)
        inset.axis("off")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file).convert("RGB")


def _figure(columns: int, width: float, height: float) -> Any:
    require("notebooks", "matplotlib", what="A plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=80, layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]
