"""Exercises of notebook 01."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from imp_kit.exercises import exercise, expect, list_of, number_of, result_of

COINS = (0.5, 0.5)
CHANCES = ((COINS, 0.25), ((1.0, 0.9, 0.1), 0.09), ((0.8,), 0.8), ((0.9,) * 20, 0.9**20))
# Probabilities, a temperature, and what they become: the powers 1 / temperature, divided by their sum.
TEMPERATURES = (
    ((0.5, 0.25, 0.25), 1.0, (0.5, 0.25, 0.25)),
    ((0.5, 0.25, 0.25), 0.5, (2 / 3, 1 / 6, 1 / 6)),
    ((0.64, 0.36), 2.0, (4 / 7, 3 / 7)),
)


@exercise
def chance(function: Callable[[Sequence[float]], float]) -> str:
    """A function of the probabilities of an answer's tokens: how probable the whole answer is when it is drawn."""
    for probabilities, wanted in CHANCES:
        found = number_of(result_of(function, list(probabilities)))
        expect(
            probabilities != COINS or math.isclose(found, wanted, rel_tol=1e-3),
            f"For two tokens with 0.5 each, yours says {found:.3g}. Two coins both show heads in a quarter of all "
            "throws: what makes 1/4 of 1/2 and 1/2?",
        )
        shown = ", ".join(map(str, probabilities[:3])) + ", ..." * (len(probabilities) > 3)
        expect(
            math.isclose(found, wanted, rel_tol=1e-3),
            f"For {len(probabilities)} tokens with {shown} it is {wanted:.6g}; yours says {found:.6g}.",
        )
    return "each token is drawn after those before it, so the probabilities multiply; 20 tokens at 0.9 make 0.12."


@exercise
def with_temperature(function: Callable[[Sequence[float], float], Sequence[float]]) -> str:
    """A function of probabilities and a temperature: the list of probabilities at this temperature."""
    for probabilities, temperature, wanted in TEMPERATURES:
        found = [number_of(value) for value in list_of(function, list(probabilities), temperature)]
        expect(len(found) == len(wanted), f"Return {len(wanted)} numbers for {len(wanted)} probabilities.")
        total = sum(found)
        expect(
            math.isclose(total, 1, rel_tol=1e-3),
            f"The sum must be 1; yours is {total:.3g}. Divide by the new sum; do not round.",
        )
        expect(
            temperature == 1 or not all(map(math.isclose, found, probabilities)),
            "Nothing changed. Did you write `p ** 1 / t`? Python reads `(p ** 1) / t`: put `1 / t` in parentheses.",
        )
        expect(
            all(math.isclose(mine, right, abs_tol=1e-3) for mine, right in zip(found, wanted, strict=True)),
            f"At temperature {temperature}, {_written(probabilities)} become {_written(wanted)}; yours: "
            f"{_written(found)}.",
        )
    return "below 1 the likely tokens win even more often; above 1 the unlikely ones get a chance."


@exercise
def image_tokens(answer: Any) -> str:
    """How many image tokens does a square of 196 pixels make with patches of 14 x 14?"""
    answer = number_of(answer)
    expect(answer != 14, "That is one row of patches. How many rows are there?")
    expect(answer != 196 * 196, "These are pixels. A patch is 14 pixels wide: how many fit into a row?")
    expect(answer == 14 * 14, "196 / 14 patches fit into a row, and there are as many rows.")
    return "14 x 14 = 196, about a quarter of 729: quicker, but small things and printed text are lost more easily."


def _written(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)
