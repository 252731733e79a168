"""Exercises of notebook 00."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from imp_kit.boxes import Box
from imp_kit.exercises import exercise, expect, list_of, number_of, result_of
from imp_kit.imp import Imp, View, load
from imp_kit.samples import sample

PARAMETERS = 3.2e9  # of imp-v1-3b, rounded
BOXES = ((0.0, 0.0, 0.5, 0.5), (0.25, 0.1, 0.75, 1.0), (0.9, 0.9, 1.0, 1.0))


@exercise
def gigabytes(answer: Any) -> str:
    """How many GB do the weights of imp-v1-3b take with two bytes each?"""
    answer = number_of(answer)
    expect(answer < 1e6, "One GB is a billion bytes (1e9): divide by it.")
    expect(answer > 3.3, "Each of the 3.2 billion numbers takes two bytes.")
    expect(
        not math.isclose(answer, 2 * PARAMETERS / 2**30, rel_tol=0.002), "Almost: here a GB is 1e9 bytes, not 1024**3."
    )
    expect(math.isclose(answer, 2 * PARAMETERS / 1e9, rel_tol=0.05), "3.2 billion times two bytes: how many billion?")
    return "6.4 GB, before the model has worked at all. So a GPU with 6 GB is too small, and one with 8 GB is not."


@exercise
def area(function: Callable[[Box], float]) -> str:
    """A function of a Box: which share of the image it covers; 0 where nothing was found."""
    image, answer = _nothing_found()
    for corners in BOXES:
        left, top, right, bottom = corners
        found = number_of(result_of(function, Box("a thing", corners, image, answer)))
        wanted = (right - left) * (bottom - top)
        expect(
            math.isclose(found, wanted, abs_tol=1e-6), f"The box {corners} covers {wanted:.2f}; yours says {found:.2f}."
        )
    nothing = Box("a thing", None, image, answer)
    share = number_of(result_of(function, nothing, case="Where nothing was found, the share is 0. "))
    expect(share == 0, "Where nothing was found, the share is 0.")
    return "width times height, both as fractions; and a box that is not there covers nothing."


def _nothing_found() -> tuple[Any, Any]:
    """The image and the answer that a Box carries; no area depends on them."""
    box = load("imp-nano", device="cpu").locate(sample("bus.png"), "the bus")
    return box.image, box.answer


@exercise
def ask_all(function: Callable[[Imp, Any, list[str]], Iterable]) -> str:
    """A function of an Imp, an image and questions, which looks at the image once and returns the answers in order."""
    imp, door = load("imp-nano", device="cpu"), sample("door.png")
    looks: list[View] = []

    class Counting(Imp):
        def look(self, image: Any) -> View:
            looks.append(super().look(image))
            return looks[-1]

    imp.__class__ = Counting
    questions = ["What color is the door?", "Where is the door?", "Is there a cat?"]
    found = list_of(function, imp, door, list(questions))
    wanted = [str(looks[0].ask(question)) for question in questions] if looks else []
    expect(looks, "Call `imp.look(picture)`, and ask the view that it returns.")
    expect(len(looks) == 1, f"Your function looked {len(looks)} times; call `imp.look` before the loop.")
    expect([str(each) for each in found] == wanted, "Return the answers as a list, in the order of the questions.")
    return "one look, and every question costs only its reading and its answer."


@exercise
def bits(answer: Any) -> str:
    """How many bits does a number take where 32 of 4 bits share a scale of 16?"""
    answer = number_of(answer)
    expect(answer != 4, "That is without the scale.")
    expect(answer != 20, "The scale is there once for 32 numbers, not for each.")
    expect(math.isclose(answer, 4.5), "Add up the bits of 32 numbers and their scale, and divide by 32.")
    return "4.5 bits. Smaller groups would follow the numbers more closely, and take more space."
