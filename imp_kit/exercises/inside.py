"""Exercises of notebook 05."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from imp_kit.exercises import exercise, expect, number_of, result_of
from imp_kit.imp import load
from imp_kit.lessons.inside.projectors import any_resolution_tokens
from imp_kit.model.imp import ImpModel

SAME = 1e-3  # of logits, whose order is 10
TILE, PATCHES = 384, 729  # of Imp's tower
SIZES = ((400, 700), (1200, 500), (800, 800), (384, 384), (3000, 900), (600, 2400), (640, 480))


@exercise
def splice(function: Callable[[nn.Module, list[int], Tensor, list[int]], Tensor]) -> str:
    """A function of the embedding layer, token ids, image tokens and token ids: one row of embeddings for the decoder.

    The logits that it leads to are compared with those of the kit's own splice, in imp-nano.
    """
    model = _nano().model
    for before, image, after in _prompts(model):
        wanted = model.splice([before, image, after])
        found = result_of(function, model.decoder.embed_tokens, before, image, after)
        expect(isinstance(found, Tensor), f"Return a tensor, not {type(found).__name__}.")
        rows, width = wanted.shape[1:]
        found = found[0] if found.ndim == 3 and len(found) == 1 else found
        expect(
            found.ndim == 2 and found.shape[1] == width,
            f"Return one row of {width} numbers for each token; the shape of yours is {tuple(found.shape)}.",
        )
        parts = f"{len(before)} tokens before the picture, {len(image)} of the picture and {len(after)} after it"
        expect(len(found) == rows, f"There are {parts}; yours has {len(found)} rows.")
        logits = [_logits(model, embeddings) for embeddings in (wanted, found[None])]
        difference = (logits[0] - logits[1]).abs().max().item()
        expect(
            difference <= SAME,
            f"There are {rows} rows, but the scores of the next word differ by {difference:.2g} from the kit's. In "
            "which order does the decoder have to read them?",
        )
    return "the scores of the next word are the kit's. To the decoder a picture is a row of vectors, like words."


@exercise
def tokens_seen(answer: Any) -> str:
    """How many tokens of the question does an image token see in the decoder?"""
    answer = number_of(answer)
    expect(answer == 0, "A position sees itself and those before it. Does the question stand before the picture?")
    return "none: the question comes after. So the image tokens are the same for each question, and are computed once."


@exercise
def any_resolution(function: Callable[[int, int], int]) -> str:
    """A function of a picture's width and height: how many image tokens it has in the best grid, with the overview."""
    for width, height in SIZES:
        wanted = any_resolution_tokens((width, height), TILE, PATCHES)
        found = number_of(result_of(function, width, height, case=f"For {width} x {height}: "))
        tiles = wanted // PATCHES - 1
        expect(
            found != tiles * PATCHES,
            f"For {width} x {height}, yours counts {tiles} tiles. Do not forget the overview.",
        )
        expect(
            found == wanted,
            f"For {width} x {height} it is {tiles} tiles and an overview, {wanted} tokens; yours says {found:g}.",
        )
    return "up to five times the tokens of one square: more pixels are seen, and each question reads more."


@functools.cache
def _nano():
    return load("imp-nano", device="cpu", dtype="fp32")


def _prompts(model: ImpModel) -> list[tuple[list[int], Tensor, list[int]]]:
    """Two prompts of made-up words, with noise for image tokens: their order counts."""
    generator = torch.Generator().manual_seed(0)
    size = model.config.decoder
    made = []
    for before, patches, after in ((5, 12, 9), (1, 30, 3)):
        ids = torch.randint(size.vocab_size, (before + after,), generator=generator).tolist()
        image = torch.randn(patches, size.hidden_size, generator=generator)
        made.append((ids[:before], image, ids[before:]))
    return made


@torch.inference_mode()
def _logits(model: ImpModel, embeddings: Tensor) -> Tensor:
    return model.decoder.logits(model.decoder(embeddings)[0, -1])
