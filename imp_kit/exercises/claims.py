"""Exercises of notebook 08."""

from collections.abc import Callable, Mapping
from typing import Any

from imp_kit.exercises import exercise, expect, number_of, result_of
from imp_kit.experiments import claims

Scores = Mapping[str, Mapping[str, float | None]]
SMALL: Scores = {
    "A": {"reading": 90.0, "counting": 40.0, "charts": 50.0},
    "B": {"reading": 55.0, "counting": 60.0, "charts": 62.0},
    "C": {"reading": 99.0, "counting": None, "charts": None},
}
WINNERS = (
    ((), "A"),
    (("reading",), "B"),
    (("counting",), "A"),
    (("reading", "counting"), "B"),
    (("counting", "charts"), "C"),
)
MMB = {"benchmark": "MMB", "split": "dev", "hints": False, "scale": 100}
OTHERS = (
    ({"model": "another"}, True, "another model on the same test"),
    ({"benchmark": "GQA"}, False, "another benchmark"),
    ({"split": "test"}, False, "another split, so other questions"),
    ({"hints": True}, False, "hints in the prompt, so another task"),
    ({"scale": 2000}, False, "another scale"),
)


@exercise
def winner(function: Callable[[Scores, tuple[str, ...]], str]) -> str:
    """A function of scores (model, benchmark, points or None) and of what to leave out: who has the best mean.

    Only models that have every benchmark that is left.
    """
    for left_out, wanted in WINNERS:
        without = f"Without {' and '.join(left_out)}: " if left_out else "With all benchmarks: "
        found = result_of(function, {model: dict(row) for model, row in SMALL.items()}, left_out, case=without)
        expect(found != "C" or wanted == "C", f"{without}C lacks a score, so it cannot be compared with the others.")
        expect(found == wanted, f"{without}{wanted} has the highest mean, not {found!r}.")
    return "A wins as long as reading counts. Who chooses the columns, chooses the winner."


@exercise
def questions_needed(answer: Any) -> str:
    """How many questions make the 95 % interval of a score of 50 % reach from 49 % to 51 %?"""
    answer = number_of(answer)
    expect(answer >= 1 and answer == round(answer), "Give a whole number of questions.")
    share = claims.interval(50, min(int(answer), 10**7))
    half = 50 * (share.high - share.low)
    expect(
        0.97 <= half <= 1.03,
        f"With {int(answer):,} questions it is ± {half:.2f} points. Four times as many halve it.",
    )
    return "about 9,600. A lead of one point on 1,000 questions is well inside what chance does."


@exercise
def comparable(function: Callable[[dict, dict], bool]) -> str:
    """A function of two published results (benchmark, split, hints, scale, and more): whether they may be compared."""
    for change, wanted, why in OTHERS:
        found = result_of(function, {"model": "one", **MMB}, {"model": "one", **MMB, **change}, case=f"For {why}: ")
        verdict = "can" if wanted else "cannot"
        expect(bool(found) == wanted, f"For {why}: these two {verdict} be compared; yours returned {found!r}.")
    return "same benchmark, split, task and scale. A table's one word, such as TextVQA, names none of the last three."
