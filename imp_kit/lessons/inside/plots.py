"""Figures of notebook 05."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from imp_kit.lessons.inside.projectors import Projector
from imp_kit.system.extras import require
from imp_kit.system.faces import families

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

DPI = 80
TEXT, IMAGE, ANSWER = "#9ecae1", "#fdae6b", "#1b9e77"
WORDS = 14  # in a row over an image, at most
EQUAL = 1e-8  # where a difference of 0 is drawn on a scale that has no 0
TONES = 6
PALE = -2  # what is black of a gray image, so that words and dots over it stand out
DOTS = "#b2182b"
LARGEST = 144 * 130  # points squared: of the largest dot, times the number of patches
DOT = 0.08  # inches, between the dots of a drawing


def _figure(width: float, height: float) -> "Figure":
    require("notebooks", "matplotlib", what="A figure")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _panels(width: float, height: float, count: int) -> tuple["Figure", Any]:
    figure = _figure(width, height)
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _label(text: str) -> str:
    """A token's text as a figure can show it: a dollar would begin a formula, and a control character has no shape."""
    shown = text.strip()
    return (shown if shown and shown.isprintable() else repr(text)).replace("$", r"\$")


def picture(pixels: Tensor) -> np.ndarray:
    """Pixels (3, size, size) in -1..1 as matplotlib shows them."""
    return ((pixels.float().cpu() + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()


def colors(features: Tensor, side: int) -> np.ndarray:
    """Features (patches, width) as colors (side, side, 3) in 0..1: their three largest principal components.

    Patches with similar features have similar colors. The sign of a component is chosen, so that its largest value is
    positive: mathematics leaves it open.
    """
    values = features.float().cpu()
    centred = values - values.mean(dim=0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    parts = u[:, :3] * s[:3]
    parts = parts * parts.gather(0, parts.abs().argmax(dim=0, keepdim=True)).sign()
    low, high = parts.amin(dim=0), parts.amax(dim=0)
    return ((parts - low) / (high - low).clamp(min=1e-9)).view(side, side, 3).numpy()


def _gray(shown: np.ndarray) -> np.ndarray:
    """An image (size, size, 3) in a few tones of gray (size, size), which a small file holds."""
    return np.round(shown.mean(axis=-1) * TONES) / TONES


def patches(pixels: Tensor, patch_size: int) -> "Figure":
    """The tower's square (3, size, size), and its patches apart from each other."""
    side = pixels.shape[-1] // patch_size
    gap = max(1, patch_size // 5)
    sheet = np.ones((side * (patch_size + gap), side * (patch_size + gap), 3))
    square = picture(pixels)
    for row in range(side):
        for column in range(side):
            top, left = row * (patch_size + gap), column * (patch_size + gap)
            tile = square[row * patch_size :, column * patch_size :][:patch_size, :patch_size]
            sheet[top : top + patch_size, left : left + patch_size] = tile
    figure, axes = _panels(6.2, 3.3, 2)
    titles = (f"{pixels.shape[-1]} x {pixels.shape[-1]} pixels", f"{side} x {side} = {side * side} patches")
    for axis, shown, title in zip(axes, (square, sheet), titles, strict=True):
        axis.imshow(shown)
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    return figure


def features(steps: Mapping[str, Tensor]) -> "Figure":
    """Features (patches, width) of one image at several places, as colors; see `colors`."""
    figure, axes = _panels(2.3 * len(steps), 2.6, len(steps))
    for axis, (title, values) in zip(axes, steps.items(), strict=True):
        axis.imshow(colors(values, math.isqrt(len(values))))
        axis.set_title(f"{title}\n{len(values)} x {values.shape[1]}", fontsize=9)
        axis.axis("off")
    return figure


def splice(before: int, image: int, after: int, chosen: Sequence[tuple[str, float]]) -> "Figure":
    """The prompt as a strip of tokens, and the most probable next tokens with their probabilities."""
    figure = _figure(8.5, 2.6)
    strip, bars = figure.subplots(2, 1, height_ratios=(1, 2.2))
    start = 0
    for count, color, what in ((before, TEXT, "text"), (image, IMAGE, "image"), (after, TEXT, "text")):
        strip.broken_barh([(start, count)], (0, 1), color=color, edgecolor="white")
        wide = count / (before + image + after) > 0.08
        strip.text(start + count / 2, 0.5, f"{what}\n{count}" if wide else count, ha="center", va="center", fontsize=9)
        start += count
    strip.broken_barh([(start, 0.012 * start)], (0, 1), color=ANSWER)
    strip.set(xlim=(0, 1.02 * start), title=f"the prompt: {start} tokens, then the next word")
    strip.title.set_fontsize(10)
    strip.axis("off")
    _bars(bars, chosen)
    return figure


def _bars(axis: Any, chosen: Sequence[tuple[str, float]]) -> None:
    shares = [share for _, share in chosen]
    drawn = axis.barh(range(len(chosen)), shares, color=ANSWER)
    axis.bar_label(drawn, [f"{share:.1%}" for share in shares], padding=3, fontsize=8)
    axis.set_yticks(range(len(chosen)), [_label(text) for text, _ in chosen], fontsize=8, family=families())
    axis.set(xlim=(0, 1.25), xticks=[], ylim=(len(chosen) - 0.4, -0.6))
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


def words(pixels: Tensor, says: Mapping[str, Sequence[tuple[str, float]]]) -> "Figure":
    """The word of each image token over its patch, a panel for each depth; the surer, the darker.

    `says` has a text and a probability for each patch, row by row. Where there are many patches, some are left out.
    """
    figure, axes = _panels(5.6 * len(says), 5.8, len(says))
    size = pixels.shape[-1]
    for axis, (title, tokens) in zip(axes, says.items(), strict=True):
        side = math.isqrt(len(tokens))
        step, width = -(-side // WORDS), size // side
        axis.imshow(_gray(picture(pixels)), cmap="gray", vmin=2 * PALE, vmax=1, interpolation="nearest")
        for row in range(step // 2, side, step):
            for column in range(step // 2, side, step):
                text, share = tokens[row * side + column]
                place = (width * (column + 0.5), width * (row + 0.5))
                grey = 0.5 * (1 - share)
                word = _label(text)[:7]
                axis.text(*place, word, ha="center", va="center", fontsize=7.5, color=(grey,) * 3, family=families())
        axis.set_title(title, fontsize=11)
        axis.axis("off")
    return figure


def depths(says: Sequence[tuple[str, float]], title: str) -> "Figure":
    """The word of one position after each layer, from the embeddings on, and how probable it was there."""
    figure, (axis,) = _panels(6.2, 0.7 + 0.26 * len(says), 1)
    _bars(axis, says)
    names = ["embedding", *(f"layer {number}" for number in range(1, len(says)))]
    axis.set_yticks(range(len(says)), [f"{name}: {_label(text)}" for name, (text, _) in zip(names, says, strict=True)])
    axis.set_title(title.replace("$", r"\$"), fontsize=10)
    return figure


def dots(pixels: Tensor, maps: Mapping[str, Tensor]) -> "Figure":
    """Maps (side, side) as dots over an image (3, size, size): the larger the value, the larger the area.

    Each map has a scale of its own; a value of 0 or below has no dot.
    """
    figure, axes = _panels(2.4 * len(maps), 2.7, len(maps))
    shown = picture(pixels)
    for axis, (title, values) in zip(axes, maps.items(), strict=True):
        side = len(values)
        width = shown.shape[0] // side
        rows, columns = np.divmod(np.arange(side * side), side)
        shares = values.float().cpu().flatten().clamp(min=0)
        sizes = LARGEST / side**2 * shares / shares.max().clamp(min=1e-12)
        axis.imshow(_gray(shown), cmap="gray", vmin=PALE, vmax=1)
        axis.scatter(width * (columns + 0.5) - 0.5, width * (rows + 0.5) - 0.5, s=sizes, color=DOTS, linewidths=0)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    return figure


def orders(
    shown: Mapping[str, tuple[Tensor, Tensor]], answers: Mapping[str, Mapping[str, Sequence[tuple[str, float]]]]
) -> "Figure":
    """The images of `steps.variants` in a row, and below them the next tokens that each gets for each question."""
    figure = _figure(2.3 * len(shown), 2.3 + 1.3 * len(answers))
    axes = figure.subplots(1 + len(answers), len(shown), squeeze=False, height_ratios=(2, *[1] * len(answers)))
    for column, (name, (pixels, _)) in enumerate(shown.items()):
        axes[0][column].imshow(picture(pixels))
        axes[0][column].set_title(name, fontsize=9)
        axes[0][column].axis("off")
        for row, (question, tokens) in enumerate(answers.items(), 1):
            _bars(axes[row][column], tokens[name])
            if not column:
                axes[row][column].set_title(question.replace("$", r"\$"), fontsize=9, loc="left")
    return figure


def towers(table: "DataFrame", note: str | None) -> "Figure":
    """The differences of `towers.compare` by layer, and a sentence below them where timm is missing."""
    figure, (axis,) = _panels(7.0, 3.2, 1)
    for (name, values), style in zip(table.items(), ("o-", "x--", "s:"), strict=True):
        if values.notna().any():
            axis.plot(table.index, values.clip(lower=EQUAL), style, label=name, fillstyle="none")
    axis.set_yscale("log")
    axis.set(xlabel="layers" + (f"\n{note}" if note else ""), ylabel=f"difference, as a part ({EQUAL:g}: none)")
    axis.set_title("How far from the tower that the checkpoint was trained with", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=9)
    return figure


def projectors(kinds: Sequence[Projector], patch_count: int) -> "Figure":
    """What goes into each kind of projector and what comes out, a dot for each vector; and its parameters."""
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    figure = _figure(2.3 * len(kinds), 4.9)
    for axis, kind in zip(figure.subplots(1, len(kinds)), kinds, strict=True):
        for count, middle, color in ((patch_count, 4.0, TEXT), (kind.tokens, 0.0, IMAGE)):
            side = math.ceil(math.sqrt(count))
            places = np.arange(count)
            axis.scatter(DOT * (places % side - side / 2), middle - DOT * (places // side - side / 2), s=3, color=color)
        axis.add_patch(FancyBboxPatch((-1.1, 1.65), 2.2, 0.7, boxstyle="round,pad=0.08", color="#dddddd"))
        axis.text(
            0, 2.0, f"{kind.name}\n{kind.parameters / 1e6:.0f} M parameters", ha="center", va="center", fontsize=9
        )
        for start, end in ((2.85, 2.45), (1.55, 1.15)):
            axis.add_patch(FancyArrowPatch((0, start), (0, end), arrowstyle="-|>", mutation_scale=10, color="#555555"))
        axis.text(0, 5.3, f"{patch_count} patches", ha="center", fontsize=9)
        axis.text(0, -1.45, f"{kind.tokens} image tokens\n({kind.used_by})", ha="center", va="center", fontsize=9)
        axis.set(xlim=(-1.35, 1.35), ylim=(-1.8, 5.6), aspect="equal")
        axis.axis("off")
    return figure
