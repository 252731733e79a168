"""Exercises of notebook 09."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from imp_kit.exercises import exercise, expect, number_of, result_of
from imp_kit.experiments.documents.answers import iou as true_iou

# Answers about a chart, the true value, and whether the answer is right: the number, 5 % more or less, and no other.
NUMBERS = (
    ("45", 45, True),
    ("The value is 45.", 45, True),
    ("about 46 %", 45, True),
    ("48", 45, False),
    ("30, 45 or 60", 45, False),
    ("1,234", 1234, True),
    ("12.5", 12.5, True),
    ("I cannot read it.", 45, False),
)
# Pairs of boxes x0, y0, x1, y1, and what is special about them.
BOXES = (
    ((0, 0, 2, 2), (0, 0, 2, 2), "the same box"),
    ((0, 0, 2, 2), (1, 0, 3, 2), "moved by half"),
    ((0, 0, 4, 4), (1, 1, 3, 3), "one inside the other"),
    ((0, 0, 1, 1), (2, 2, 3, 3), "apart, in both directions"),
    ((0, 0, 1, 4), (2, 0, 3, 4), "apart, side by side"),
    ((0.1, 0.2, 0.5, 0.6), (0.3, 0.1, 0.6, 0.4), "any two"),
)
ALWAYS_YES = 2 / 3


@exercise
def is_right(function: Callable[[str, float], bool]) -> str:
    """A function of an answer and a true value: is there one number in it, within 5 % of the truth?"""
    for text, truth, wanted in NUMBERS:
        found = bool(result_of(function, text, truth, case=f"For {text!r}: "))
        expect(found == wanted, f"If {truth} is true, the answer {text!r} is {'right' if wanted else 'wrong'}.")
    return "one rule for every answer: an answer that lists all numbers of a chart has read none."


@exercise
def iou(function: Callable[[Sequence[float], Sequence[float]], float]) -> str:
    """A function of two boxes: the area that they share, over the area that one or the other covers."""
    for one, other, what in BOXES:
        wanted = true_iou(one, other)
        found = number_of(result_of(function, one, other, case=f"For {one} and {other}: "))
        expect(
            math.isclose(found, wanted, abs_tol=1e-3),
            f"For {one} and {other} ({what}) it is {wanted:.3f}; yours says {found:.3f}."
            + " A width below 0 is no width." * ("apart" in what and not math.isclose(found, wanted)),
        )
    return "0 for boxes apart, 1 for the same box; from 0.5 on a box counts as found."


@exercise
def always_yes(answer: Any) -> str:
    """The F1 of a model that always says yes, where half of the things are there."""
    answer = number_of(answer)
    share = answer / 100 if answer > 1 else answer
    expect(share != 0.5, "That is its accuracy, and its precision. What is its recall, and what do both make?")
    expect(share < 1, "Its recall is 1: it misses nothing. But what is its precision?")
    expect(
        math.isclose(share, ALWAYS_YES, abs_tol=0.005),
        "F1 = 2 x precision x recall / (precision + recall). What are the two, if the answer is always yes?",
    )
    return "precision 1/2, recall 1, so F1 = 2/3: a bias to yes is paid with points. So look at the share of yes, too."
