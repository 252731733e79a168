"""Exercises of notebook 03."""

import math
from collections.abc import Callable
from typing import Any

from imp_kit.exercises import exercise, expect, number_of, result_of
from imp_kit.experiments.captcha.probe import caption_level
from imp_kit.experiments.scores import contains
from imp_kit.experiments.stats import wilson

CODE = "K7XW4RPA"
ANSWERS = (
    f'The text reads "{CODE}".',
    CODE.lower(),
    "It says K7XW 4RPA!",
    "K-7-X-W-4-R-P-A",
    f"{CODE} is the code.",
    'The text reads "K7XW4RPE".',
    "First K7XW, below it 4RPA.",  # all the characters in their order, but with others between them
    "",
)
PICTURES = 60  # of each level
LADDERS = (
    (58, 40, 31, 12, 3),
    (60, 60, 30, 0, 0),  # exactly half is enough
    (60, 20, 40, 0, 0),  # the hardest counts, also after a level that was not read
    (20, 3, 0, 0, 0),
    (60, 60, 60, 60, 60),
)


@exercise
def is_read(function: Callable[[str, str], bool]) -> str:
    """A function of an answer and a code: does the code stand in it, whatever its case, blanks and punctuation?"""
    for answer in ANSWERS:
        found, wanted = bool(result_of(function, answer, CODE)), contains(answer, CODE)
        expect(found == wanted, f"In the answer {answer!r} the code {CODE} is {'' if wanted else 'not '}read.")
    return "the same rule for every answer, fixed before the first one was seen."


@exercise
def level(function: Callable[[list[int]], int]) -> str:
    """A function of how many of 60 codes were read at L0, L1, ...: the hardest level with at least half, else 0."""
    for ladder in LADDERS:
        found = result_of(function, list(ladder), case=f"For {list(ladder)}: ")
        wanted = caption_level({step: [True] * n + [False] * (PICTURES - n) for step, n in enumerate(ladder)})
        expect(found == wanted, f"For {list(ladder)} the level is {wanted}; yours is {found!r}.")
    return "nobody can choose the level whose result they like: the rule was there first."


@exercise
def most(answer: Any) -> str:
    """None of 20 codes was read: up to how many percent can the true share be (upper end of the interval)?"""
    answer, end = number_of(answer), 100 * wilson(0, 20).high
    expect(answer > 0, "None of 20 is also what you often see when a model reads 1 code in 30.")
    expect(answer >= 1, "Give percent, not a fraction.")
    hint = "Use `from imp_kit.experiments.stats import wilson`, and make percent of `wilson(0, 20).high`."
    expect(not 13 < answer < end - 0.5, f"Some rules, such as 3 / n, say so. Take the interval of the charts. {hint}")
    expect(end - 0.5 < answer <= math.ceil(end), hint)
    return f'{end:.0f}%. So write "none of 20, at most about {end:.0f}%", not "it reads 0%".'
