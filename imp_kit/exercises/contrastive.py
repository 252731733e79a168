"""Exercises of notebook 06."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from imp_kit.exercises import exercise, expect, number_of, result_of

# Logits of images (rows) and captions (columns): two that are not symmetric, and one that knows nothing.
NOTHING = torch.zeros(4, 4)
SMALL = torch.tensor([[2.0, 1.0], [-1.0, 0.5]])
LARGE = torch.tensor([[3.0, -1.0, 0.5], [2.0, 4.0, -2.0], [0.0, 1.0, 1.5]])
MATRICES = (LARGE, SMALL, NOTHING)
# Similarities of four images with three labels, and the number of the true label of each image.
LABELLED = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.2, 0.8], [0.1, 0.4, 0.3], [0.5, 0.6, 0.1]])
TRUTHS = (((0, 2, 1, 1), 1.0), ((0, 2, 1, 0), 0.75), ((1, 0, 0, 2), 0.0))


@exercise
def softmax_loss(function: Callable[[Tensor], Any]) -> str:
    """A function of a matrix of logits (images, captions): CLIP's loss."""
    for logits in MATRICES:
        found, size = number_of(result_of(function, logits.clone())), len(logits)
        rows, columns = _choices(logits.tolist()), _choices(logits.T.tolist())
        wanted, case = (rows + columns) / 2, f"For {_written(logits)} it is {(rows + columns) / 2:.4f}"
        expect(not _near(found, -wanted), f"{case}; yours is {found:.4f}. A logarithm of a probability is negative.")
        expect(not _near(found, size * wanted), f"{case}; yours is {size} times that: take means, not sums.")
        expect(not _near(found, rows + columns), f"{case}; yours is twice that: take the mean of both directions.")
        only_one = _near(found, rows) or _near(found, columns)
        expect(
            _near(found, wanted) or not only_one,
            f"{case}; yours is {found:.4f}, which is one direction alone. Rows choose a caption, columns an image.",
        )
        expect(_near(found, wanted), f"{case}; yours is {found:.4f}.")
    return "4 equal logits give log(4) = 1.386: a choice among 4 by chance. Training brings the loss below that."


@exercise
def sigmoid_loss(function: Callable[[Tensor], Any]) -> str:
    """A function of a matrix of logits (images, captions): SigLIP's loss."""
    for logits in MATRICES:
        found, values = number_of(result_of(function, logits.clone())), logits.tolist()
        size = len(values)
        diagonal = sum(_surprise(row[place]) for place, row in enumerate(values))
        rest = sum(_surprise(-value) for i, row in enumerate(values) for j, value in enumerate(row) if i != j)
        wanted = (diagonal + rest) / size
        case = f"For {_written(logits)} it is {wanted:.4f}"
        expect(not _near(found, -wanted), f"{case}; yours is {found:.4f}. A logarithm of a probability is negative.")
        expect(
            not _near(found, wanted / size),
            f"{case}; yours is that divided by {size}: divide the sum by the number of images, not of pairs.",
        )
        expect(not _near(found, wanted * size), f"{case}; yours is the whole sum: divide it by the number of images.")
        expect(
            not _near(found, diagonal / size),
            f"{case}; yours is {found:.4f}: the diagonal alone. The other pairs have an answer, too: no.",
        )
        expect(_near(found, wanted), f"{case}; yours is {found:.4f}.")
    return "each pair is a question of its own, so no pair has to wait for the others: large batches are easy to split."


@exercise
def top1(function: Callable[[Tensor, Tensor], Any]) -> str:
    """A function of similarities (images, labels) and numbers of the true labels, int64: the share that is right."""
    for truth, wanted in TRUTHS:
        found = number_of(result_of(function, LABELLED.clone(), torch.tensor(truth)))
        case = f"For {_written(LABELLED)} and the true labels {list(truth)}"
        expect(not _near(found, wanted * len(truth)) or not wanted, f"{case} you count {found:.0f}: give their share.")
        expect(_near(found, wanted), f"{case} it is {wanted}; yours is {found:.4g}. The largest of each row is chosen.")
    return "by chance it would be 1 / labels: 1/3 here, and below 1 in 100 for each color of each kind."


def _choices(rows: list[list[float]]) -> float:
    """The mean over the rows of -log(softmax) on the diagonal."""
    return sum(math.log(sum(map(math.exp, row))) - row[place] for place, row in enumerate(rows)) / len(rows)


def _surprise(logit: float) -> float:
    """-log(sigmoid)."""
    return math.log1p(math.exp(-logit))


def _near(found: float, wanted: float) -> bool:
    return math.isclose(found, wanted, rel_tol=1e-3, abs_tol=1e-6)


def _written(matrix: Tensor) -> str:
    return str([[round(value, 2) for value in row] for row in matrix.tolist()])
