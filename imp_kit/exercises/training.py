"""Exercises of notebook 07."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from imp_kit.exercises import exercise, expect, list_of, number_of, result_of

IGNORED = -100  # what torch's cross-entropy leaves out
# Ids of a question, and ids of its answer with the stop word at the end.
TEXTS = (([5, 6, 7], [8, 1]), ([3], [9, 9, 2]), ([4, 5, 6, 7, 8], [1]))
RANK, WIDTHS = 16, (256, 1024)
SHAPES = ((3, 2, 1), (6, 5, 4), (8, 8, 2))  # outputs, inputs, rank


@exercise
def labels(function: Callable[[Sequence[int], Sequence[int]], Sequence[int]]) -> str:
    """A function of a question's and an answer's ids: the labels of both, -100 for what is not to be learned."""
    for question, answer in TEXTS:
        found = [number_of(label) for label in list_of(function, list(question), list(answer))]
        case = f"For the question {question} and the answer {answer}"
        total = len(question) + len(answer)
        expect(len(found) == total, f"{case}, give {total} labels, one for each id of both; yours are {len(found)}.")
        expect(
            found[: len(question)] != question,
            f"{case}, the question would be learned, too. The reader asks; the model has only to answer.",
        )
        expect(
            found[-1] != IGNORED,
            f"{case}, the last id is not learned. It is the stop word: without it the model would never stop.",
        )
        wanted = [IGNORED] * len(question) + answer
        expect(found == wanted, f"{case}, the labels are {wanted}; yours are {[int(label) for label in found]}.")
    return "the question is given, and the answer is learned, with the stop word that ends it."


@exercise
def added_parameters(answer: Any) -> str:
    """How many numbers does LoRA of rank 16 add beside a layer of 256 inputs and 1024 outputs?"""
    inputs, outputs = WIDTHS
    answer = number_of(answer)
    expect(answer != inputs * outputs, "That is W itself. A has `rank` rows, and B has `rank` columns.")
    expect(answer != RANK * inputs * outputs, "A and B are two matrices; add their sizes, do not multiply them.")
    expect(
        answer not in (RANK * inputs, RANK * outputs),
        "That is one of the two matrices; the other has numbers, too.",
    )
    expect(answer == RANK * (inputs + outputs), "A is rank x inputs, and B is outputs x rank.")
    return f"16 x 256 + 1024 x 16 = {answer:,.0f}, a thirteenth of the {inputs * outputs:,} numbers of W."


@exercise
def merge(function: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> str:
    """A function of W, A, B and alpha: one weight that does what W and the adapter do together."""
    generator = torch.Generator().manual_seed(0)
    for outputs, inputs, rank in SHAPES:
        w, a, b, x = (
            torch.randn(*size, generator=generator)
            for size in ((outputs, inputs), (rank, inputs), (outputs, rank), (7, inputs))
        )
        alpha = 3.0 * rank
        before = w.clone()
        found = result_of(function, w, a, b, alpha)
        expect(isinstance(found, Tensor), f"Return a tensor, not {type(found).__name__}.")
        expect(torch.equal(w, before), "W itself was changed. Make a new tensor: `W + ...`, not `W += ...`.")
        expect(
            found.shape == w.shape,
            f"For W of {outputs} x {inputs} yours is {' x '.join(map(str, found.shape))}; both have the same shape.",
        )
        y = F.linear(x, found)
        expect(
            not torch.allclose(y, F.linear(x, w + b @ a), atol=1e-4),
            "Close: what is added has to be multiplied by alpha / rank.",
        )
        wanted = F.linear(x, w) + alpha / rank * F.linear(F.linear(x, a), b)
        expect(
            torch.allclose(y, wanted, atol=1e-4),
            "A layer with your weight gives another result than W x + alpha / rank * B (A x).",
        )
    return "W x + alpha / rank * B (A x) is (W + alpha / rank * B A) x: merged, LoRA costs nothing any more."
