"""A shape that imp-nano never saw, in scenes of the kit: what it is asked about it, and about what it knew before."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from imp_kit.errors import SettingError
from imp_kit.experiments.drawings import COLORS, FIGURES, KINDS, SHAPES, Pen, Scene, Thing, draw, sample_scene
from imp_kit.experiments.stats import Share, share_of
from imp_kit.finetuning.run import finetune
from imp_kit.imp import Imp, load
from imp_kit.system.extras import require

if TYPE_CHECKING:
    from pandas import DataFrame

Points = Sequence[tuple[float, float]]
PLACES = {  # where a thing is, by (column, row), in the words that imp-nano learned
    (0, 0): "at the top left", (1, 0): "at the top", (2, 0): "at the top right",
    (0, 1): "on the left", (1, 1): "in the center", (2, 1): "on the right",
    (0, 2): "at the bottom left", (1, 2): "at the bottom", (2, 2): "at the bottom right",
}  # fmt: skip
SPOTS = ((0, 0), (2, 0), (0, 2), (2, 2), (1, 1))  # places that no side of the image holds, too
ABOUT = ("what", "color", "place", "exists", "absent", "describe")
# Words of the questions and their answers, beside the kinds.
SENTENCES = "what is this it the thing a an color where there any image yes no describe picture shows and"
KNOWN = {*COLORS, *" ".join([SENTENCES, *PLACES.values()]).split()}
LESSONS, EXAM = 1, 2  # streams of random numbers: no drawing of the exam was learned
RATE = 3e-3  # of learning; large models take a tenth of it


@dataclass(frozen=True)
class Size:
    """Drawings of the new shape to learn from and to ask about, and the grid's, with its ranks and epochs."""

    learned: int
    asked: int
    grid_learned: int
    grid_asked: int
    ranks: tuple[int, ...]
    epochs: tuple[int, ...]


SIZES = {
    "lesson": Size(50, 50, 24, 25, ranks=(4, 16, 64, 256), epochs=(1, 2, 3)),
    "smoke": Size(2, 2, 1, 1, ranks=(4, 16), epochs=(1,)),
}


def size_named(name: str) -> Size:
    """One of SIZES. Raises SettingError for another name."""
    if name not in SIZES:
        raise SettingError(f"size is {name!r:.60}; choose one of {', '.join(map(repr, SIZES))}.")
    return SIZES[name]


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
            raise SettingError(
                f"The shape's name is {self.name!r:.60}; give one word of small letters, such as 'kite'."
            )
        if self.name in KINDS:
            raise SettingError(f"imp-nano knows a {self.name} already; choose a name other than {', '.join(KINDS)}.")
        if self.name in KNOWN:
            raise SettingError(
                f"{self.name!r} is a word of the questions already; choose a name of its own for the shape."
            )
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
    for _ in range(drawings):
        image, scene = sample_drawing(shape, rng)
        if shape is None:
            found += _asked(image, scene, each, rng)
        else:
            found += _asked(image, scene, each, rng, shape.name, [about for about in ABOUT if about != "absent"])
    return found


def _asked(
    image: Image.Image,
    scene: Scene,
    most: int,
    rng: np.random.Generator,
    kind: str | None = None,
    abouts: Sequence[str] = ABOUT,
) -> list[Question]:
    asked = (ask(scene, about, rng, kind) for about in rng.permutation(abouts))
    return [Question(image, *pair) for pair in asked if pair][:most]


def lessons(shape: NewShape, size: str, *, replay: bool, seed: int = 0) -> list[Question]:
    """What teaches a new shape: drawings of it, each with up to two questions. `size` is a key of SIZES.

    With `replay` as many drawings without it come along, with as many questions about what imp-nano knows; every
    fourth of these asks whether the new shape is there. Raises SettingError.
    """
    return _lessons(shape, size_named(size).learned, 2, replay, seed)


def _lessons(shape: NewShape, drawings: int, each: int, replay: bool, seed: int) -> list[Question]:
    rng = np.random.default_rng([LESSONS, seed])
    found = questions(shape, drawings, each, rng)
    for number in range(drawings if replay else 0):
        image, scene = sample_drawing(None, rng)
        old = _asked(image, scene, each, rng)
        if number % 2:
            old[-1:] = _asked(image, scene, 1, rng, shape.name, ("absent",))
        found += old
    return found


@dataclass(frozen=True)
class Exam:
    """What a checkpoint answered right on drawings that it never learned from."""

    new: Share  # questions about the new shape
    old: Share  # questions about drawings without it
    confused: Share  # answers that name the new shape on these
    asked: tuple[Question, ...]
    answers: tuple[str, ...]


def exam(imp: Imp, shape: NewShape, size: str, seed: int = 0) -> Exam:
    """Ask two questions about each drawing, with the new shape and, as often, without. Raises SettingError."""
    return _exam(imp, shape, size_named(size).asked, seed, progress=True)


def _exam(imp: Imp, shape: NewShape, drawings: int, seed: int, progress: bool) -> Exam:
    rng = np.random.default_rng([EXAM, seed])
    new, old = (questions(each, drawings, 2, rng) for each in (shape, None))
    asked = [*new, *old]
    replies = imp.ask_many(
        [(each.image, each.question) for each in asked], batch_size=16, progress=progress, max_new_tokens=60
    )
    answers = [str(reply) for reply in replies]
    right = [answer == each.answer for answer, each in zip(answers, asked, strict=True)]
    named = [shape.name in re.findall(r"\w+", answer) for answer in answers[len(new) :]]
    old_right, new_right = right[len(new) :], right[: len(new)]
    return Exam(share_of(new_right), share_of(old_right), share_of(named), tuple(asked), tuple(answers))


def grid(shape: NewShape, size: str, seed: int = 0) -> dict[tuple[int, int], Exam]:
    """The exams after fine-tuning imp-nano with replay, by rank and epochs: a run of its own for each."""
    chosen = size_named(size)
    examples = _lessons(shape, chosen.grid_learned, 1, True, seed)
    settings: dict[str, Any] = {"batch_size": 4, "seed": seed, "progress": False}  # of 8 there would be too few steps
    exams = {}
    for rank, epochs in tqdm(list(product(chosen.ranks, chosen.epochs)), unit="run", desc="rank and epochs"):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "tuned"
            finetune("imp-nano", examples, out, rank=rank, epochs=epochs, learning_rate=RATE, **settings)
            exams[rank, epochs] = _exam(load(out), shape, chosen.grid_asked, seed, progress=False)
    return exams


def table(exams: Mapping[str, Exam]) -> "DataFrame":
    """The shares of exams with their 95 % Wilson intervals, a row for each."""
    require("notebooks", "pandas", what="The table of exams")
    from pandas import DataFrame

    columns = {"new": "new shape right", "old": "old skills right", "confused": "named where it is not"}
    rows = {name: {title: str(getattr(exam, key)) for key, title in columns.items()} for name, exam in exams.items()}
    return DataFrame(rows).T


def new_folder(name: str) -> Path:
    """A path of this name, not there yet, in a temporary folder of its own."""
    return Path(tempfile.mkdtemp()) / name
