"""A shape that imp-nano never saw, in scenes of the kit: what it is asked about it, and about what it knew before."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from imp_kit.errors import SettingError
from imp_kit.experiments.drawings import FIGURES, KINDS, SHAPES, Pen, Scene, Thing, draw, sample_scene
from imp_kit.experiments.stats import Share, share_of
from imp_kit.imp import Imp

Points = Sequence[tuple[float, float]]
PLACES = {  # where a thing is, by (column, row), in the words that imp-nano learned
    (0, 0): "at the top left", (1, 0): "at the top", (2, 0): "at the top right",
    (0, 1): "on the left", (1, 1): "in the center", (2, 1): "on the right",
    (0, 2): "at the bottom left", (1, 2): "at the bottom", (2, 2): "at the bottom right",
}  # fmt: skip
SPOTS = ((0, 0), (2, 0), (0, 2), (2, 2), (1, 1))  # places that no side of the image holds, too
ABOUT = ("what", "color", "place", "exists", "absent", "describe")
LESSONS, EXAM = 1, 2  # streams of random numbers: no drawing of the exam was learned


class Question(NamedTuple):
    """A drawing, a question about it, and its only right answer."""

    image: Image.Image
    question: str
    answer: str


@dataclass(frozen=True)
class NewShape:
    """A name of one word, and the corners of the shape in a square of side 1, (0, 0) at the upper left."""

    name: str
    points: Points

    def __post_init__(self):
        if not (isinstance(self.name, str) and self.name.isascii() and self.name.isalpha() and self.name.islower()):
            raise SettingError(f"The shape's name is {self.name!r:.60}; give one word of small letters, such as 'kite'.")
        if self.name in KINDS:
            raise SettingError(f"imp-nano knows a {self.name} already; choose a name other than {', '.join(KINDS)}.")
        if not self._is_drawn():
            raise SettingError(
                f"The corners of the {self.name} are {self.points!r:.80}; give at least three pairs of numbers from 0 "
                "to 1, which are no straight line."
            )

    def _is_drawn(self) -> bool:
        try:
            points = np.asarray(self.points, float)
        except (TypeError, ValueError):
            return False
        if points.ndim != 2 or points.shape[0] < 3 or points.shape[1] != 2:
            return False
        return bool(((points >= 0) & (points <= 1)).all()) and np.linalg.matrix_rank(points - points[0], tol=0.05) == 2

    def draw(self, pen: Pen) -> None:
        pen.poly(self.points, pen.main)


def sample_drawing(shape: NewShape | None, rng: np.random.Generator) -> tuple[Image.Image, Scene]:
    """A drawing without people, in which one thing is of the new shape, or none where `shape` is None."""
    while True:
        scene = sample_scene(rng)
        plain = [index for index, thing in enumerate(scene.things) if thing.kind in SHAPES]
        if any(thing.kind == "person" for thing in scene.things) or (shape and not plain):
            continue
        if shape is None:
            return draw(scene, rng)
        things = list(scene.things)
        chosen = plain[rng.integers(len(plain))]
        things[chosen] = replace(things[chosen], kind=shape.name)
        return draw(replace(scene, things=tuple(things)), rng, {**FIGURES, shape.name: (shape.draw,)})


def ask(scene: Scene, about: str, rng: np.random.Generator, kind: str | None = None) -> tuple[str, str] | None:
    """A question of one of ABOUT, of the thing of this kind, else of any; None where the scene allows none."""
    things = [thing for thing in scene.things if kind in (None, thing.kind)]
    kinds = [thing.kind for thing in scene.things]
    if about == "absent":
        absent = kind or str(rng.choice([each for each in KINDS if each not in kinds]))
        return None if absent in kinds else (f"Is there {_a(absent)} in the image?", f"No, there is no {absent}.")
    if about == "describe":
        if len(set(kinds)) < len(kinds):
            return None
        return "Describe the image.", f"The picture shows {_listed([_a(_named(thing)) for thing in scene.things])}."
    thing = things[rng.integers(len(things))]
    if kinds.count(thing.kind) > 1:
        return None
    if about == "what":
        return _what(scene, thing)
    if about == "color":
        return f"What color is the {thing.kind}?", f"The {thing.kind} is {' and '.join(thing.colors)}."
    if about == "place":
        return f"Where is the {thing.kind}?", f"The {thing.kind} is {PLACES[thing.column, thing.row]}."
    return f"Is there {_a(thing.kind)} in the image?", f"Yes, there is {_a(thing.kind)}."


def _what(scene: Scene, thing: Thing) -> tuple[str, str] | None:
    """What a thing is, by its color or its place where no other thing shares it."""
    answer = f"It is {_a(thing.kind)}."
    if len(scene.things) == 1:
        return "What is this?", answer
    others = [other for other in scene.things if other is not thing]
    if len(thing.colors) == 1 and not any(thing.colors[0] in other.colors for other in others):
        return f"What is the {thing.colors[0]} thing?", answer
    spot = (thing.column, thing.row)
    if spot in SPOTS and not any((other.column, other.row) == spot for other in others):
        return f"What is {PLACES[spot]}?", answer
    return None


def _named(thing: Thing) -> str:
    return f"{' and '.join(thing.colors)} {thing.kind}"


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def questions(shape: NewShape | None, drawings: int, each: int, rng: np.random.Generator) -> list[Question]:
    """Drawings with up to `each` different questions: about the new shape, or where it is None about anything."""
    found = []
    abouts = [about for about in ABOUT if shape is None or about != "absent"]
    for _ in range(drawings):
        image, scene = sample_drawing(shape, rng)
        asked = [ask(scene, about, rng, shape.name if shape else None) for about in rng.permutation(abouts)]
        found += [Question(image, *pair) for pair in asked if pair][:each]
    return found


def lessons(shape: NewShape, drawings: int, *, replay: bool, seed: int = 0) -> list[Question]:
    """What teaches a new shape: drawings of it, each with three questions.

    With `replay` as many drawings without it come along, each with two questions about what imp-nano knows, and one
    whether the new shape is there.
    """
    rng = np.random.default_rng([LESSONS, seed])
    found = questions(shape, drawings, 3, rng)
    for _ in range(drawings if replay else 0):
        old = questions(None, 1, 2, rng)
        found += [*old, Question(old[0].image, f"Is there {_a(shape.name)} in the image?", f"No, there is no {shape.name}.")]
    return found


@dataclass(frozen=True)
class Exam:
    """What a checkpoint answered right on drawings that it never learned from."""

    new: Share  # questions about the new shape
    old: Share  # questions about drawings without it
    confused: Share  # answers that name the new shape on these
    asked: tuple[Question, ...]
    answers: tuple[str, ...]


def exam(imp: Imp, shape: NewShape, drawings: int, seed: int = 0) -> Exam:
    """Ask two questions about each of `drawings` drawings with the new shape, and of as many without it."""
    rng = np.random.default_rng([EXAM, seed])
    groups = [questions(each, drawings, 2, rng) for each in (shape, None)]
    asked = [question for group in groups for question in group]
    answers = [str(answer) for answer in imp.ask_many([each[:2] for each in asked], batch_size=16, max_new_tokens=60)]
    right = [answer == question.answer for answer, question in zip(answers, asked, strict=True)]
    old = answers[len(groups[0]) :]
    return Exam(
        share_of(right[: len(groups[0])]),
        share_of(right[len(groups[0]) :]),
        share_of([shape.name in answer for answer in old]),
        tuple(asked),
        tuple(answers),
    )
