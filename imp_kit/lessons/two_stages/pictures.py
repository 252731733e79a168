"""What the tiny Imp looks at and is asked: one to three shapes side by side, drawn by the kit, with exact truth."""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imp_kit.experiments.drawings import SHAPES, Scene, Thing, draw

CANVAS, SIZE = (192, 96), (96, 48)  # width and height in pixels: as drawn, and as the tower gets it
COLORS = ("red", "yellow", "green", "blue", "black", "pink")
PLACES = ("on the left", "in the middle", "on the right")
NUMBERS = ("no", "one", "two", "three")
START, STOP, DOT = "<start>", "<stop>", "."
QUESTIONS = ("color", "place", "what", "count", "exists", "describe")


class Pair(NamedTuple):
    """A question, empty where none is asked, and its only right answer."""

    question: str
    answer: str


def sample_scene(rng: np.random.Generator) -> Scene:
    """One to three things, at most one in each third of the image's width."""
    things = []
    for column in sorted(rng.permutation(3)[: rng.integers(1, 4)]):
        width, height = rng.uniform(0.22, 0.29), rng.uniform(0.46, 0.58)
        x, y = (2 * column + 1) / 6 + rng.uniform(-0.02, 0.02), rng.uniform(0.32, 0.68)
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        kind, color = str(rng.choice(SHAPES)), str(rng.choice(COLORS))
        things.append(Thing(kind, (color,), int(column), int(3 * y), box))
    return Scene(tuple(things), CANVAS)


def sample_drawing(rng: np.random.Generator) -> tuple[Scene, Tensor]:
    """A scene, and its drawing as the tower's pixels, (3, height, width) in -1..1."""
    scene = sample_scene(rng)
    image = np.asarray(draw(scene, rng)[0].resize(SIZE, Image.Resampling.BOX), np.float32)
    return scene, torch.from_numpy(image / 127.5 - 1).permute(2, 0, 1)


def caption(scene: Scene) -> str:
    return " and ".join(f"a {thing.colors[0]} {thing.kind} {PLACES[thing.column]}" for thing in scene.things)


def ask(scene: Scene, about: str, rng: np.random.Generator) -> Pair | None:
    """A question of one of QUESTIONS, or None where the scene allows none."""
    if about == "describe":
        return Pair("describe the image", caption(scene))
    if about == "count":
        return Pair("how many things are there", NUMBERS[len(scene.things)])
    kinds = [thing.kind for thing in scene.things]
    if about == "exists":
        kind = str(rng.choice(kinds if rng.random() < 0.5 else [kind for kind in SHAPES if kind not in kinds]))
        return Pair(f"is there a {kind}", "yes" if kind in kinds else "no")
    thing = scene.things[rng.integers(len(scene.things))]
    if about == "what":
        return Pair(f"what is {PLACES[thing.column]}", f"a {thing.colors[0]} {thing.kind}")
    if kinds.count(thing.kind) > 1:
        return None
    if about == "color":
        return Pair(f"what color is the {thing.kind}", thing.colors[0])
    return Pair(f"where is the {thing.kind}", PLACES[thing.column])


def told(scene: Scene, rng: np.random.Generator, length: int) -> str:
    """The scene in `length` words: what stands where, in three words each, somewhere between dots."""
    words = [DOT] * length
    starts = sorted(rng.choice(length // 3, len(scene.things), replace=False) * 3)
    for start, thing in zip(starts, rng.permutation(len(scene.things)), strict=True):
        one = scene.things[thing]
        fact = [one.colors[0], one.kind, PLACES[one.column].split()[-1]]
        words[start : start + 3] = [fact[i] for i in rng.permutation(3)]
    return " ".join(words)
