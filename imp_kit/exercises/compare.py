"""Exercises of notebook 10."""

import math
from collections.abc import Callable
from typing import Any

from imp_kit.exercises import exercise, expect, number_of, result_of
from imp_kit.experiments.stats import mcnemar
from imp_kit.lessons.compare import chance_to_tell

CUT, REFUSED, ANSWERED = "cut off", "refused", "answered"
ANSWERS = (
    ("The bus is red.", "stop", ANSWERED),
    ("The picture shows a red and", "length", CUT),
    ("The bus is red. It is", "length", CUT),  # what is right so far counts as little
    ("I only know drawings.", "stop", REFUSED),
    ("I'm sorry, but I can't help with that.", "stop", REFUSED),
    ("Sorry, I cannot help with this request.", "stop", REFUSED),
    ("", "refusal", REFUSED),  # a server's filter leaves no text
    ("No, there is no cat.", "stop", ANSWERED),
    ("I cannot see a cat in the image.", "stop", ANSWERED),
)
SPLITS = ((16, 2), (2, 16), (5, 0), (0, 6), (11, 4), (1, 0), (3, 3), (0, 0))
SHARES = (0.12, 0.05)  # of the questions that only the one, and only the other system has right
POWER = 0.8


@exercise
def outcome(function: Callable[[str, str], str]) -> str:
    """A function of an answer's text and its finish: "cut off", "refused" or "answered"."""
    for text, finish, wanted in ANSWERS:
        found = result_of(function, text, finish, case=f"For {text!r} with finish {finish!r}: ")
        expect(found == wanted, f"{text!r} with finish {finish!r} is {wanted!r}; yours is {found!r}.")
    return "a refusal says nothing about the picture, a cut answer only that the limit was low. Neither is right."


@exercise
def p_value(function: Callable[[int, int], Any]) -> str:
    """A function of how many questions only the one, and only the other system has right: the exact McNemar test."""
    for one, other in SPLITS:
        case = f"For {one} and {other}"
        found = number_of(result_of(function, one, other, case=f"{case}: "))
        wanted = mcnemar([True] * one + [False] * other, [False] * one + [True] * other)
        expect(found <= 1.0001, f"{case} yours is {found:.4g}; a p-value is at most 1.")
        hint = "both directions count, so take the tail twice" if _near(2 * found, wanted) else f"yours is {found:.4g}"
        expect(_near(found, wanted), f"{case} p is {wanted:.4g}; {hint}.")
    return "the questions on which both agree say nothing about who is better, so they are not in the formula."


@exercise
def questions_needed(answer: Any) -> str:
    """How many questions tell two systems apart in 80 % of all tries, with SHARES of questions that only one knows?"""
    answer = number_of(answer)
    expect(answer >= 1 and answer == round(answer), "Give a whole number of questions.")
    power = chance_to_tell(min(int(answer), 2000), *SHARES)
    more = "Take more." if power < POWER else "Fewer are enough."
    expect(
        0.78 <= power <= 0.83, f"With {int(answer):,} questions the chance to tell them apart is {power:.0%}. {more}"
    )
    return "about 290. Half the difference, with as much disagreement, would need about four times as many."


def _near(found: float, wanted: float) -> bool:
    return math.isclose(found, wanted, rel_tol=1e-3, abs_tol=1e-9)
