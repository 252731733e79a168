"""Scenes in which things come together by habit, and which things to ask for that are not there.

POPE (Li and others, Evaluating Object Hallucination in Large Vision-Language Models, arXiv 2305.10355) asks "Is there a
... in the image?" as often about a thing that is there as about one that is not. What is not there is chosen in three
ways: at random, among the most frequent things (popular), or among those that come most often with the things in the
image (adversarial). Frequencies are counted over other drawings of the same kind, CORPUS of them.
"""

from collections import Counter
from collections.abc import Collection
from functools import lru_cache
from itertools import combinations

import numpy as np
from PIL import Image

from imp_kit.errors import SettingError
from imp_kit.experiments.drawings import ASPECTS, COLORS, Scene, Thing, draw

SIDE = 336  # pixels
# No circles, squares and triangles: wheels, windows and roofs are such, so that nobody could say that there is none.
KINDS = ("house", "tree", "bus", "person", "door", "cat", "cup", "box", "star")
WITH_DOORS = {"house", "bus"}  # where one of these is, a door is neither drawn nor asked for, nor the other way round
PLACES = {  # what one sees there, and how often one is there
    "street": (("house", "tree", "bus", "person"), 0.5),
    "home": (("door", "cat", "cup", "box"), 0.35),
    "wrapping": (("star", "box", "person", "tree"), 0.15),
}
HABIT = 0.85  # the share of things that belong to the place
THINGS = 3  # in an image
CORPUS = 2000
SAMPLINGS = ("random", "popular", "adversarial")
# Of the most frequent things one is drawn: the first alone would nearly always be the same for "popular".
TOP = {"popular": 2, "adversarial": 1}


def sample_kinds(rng: np.random.Generator) -> tuple[str, ...]:
    """THINGS different kinds that come together by habit, in the order of KINDS."""
    usual, _ = list(PLACES.values())[rng.choice(len(PLACES), p=[share for _, share in PLACES.values()])]
    chosen: set[str] = set()
    while len(chosen) < THINGS:
        kind = str(rng.choice(usual if rng.random() < HABIT else KINDS))
        if _is_clear(kind, chosen):
            chosen.add(kind)
    return tuple(kind for kind in KINDS if kind in chosen)


def _is_clear(kind: str, others: Collection[str]) -> bool:
    """Whether everybody can say if there is one beside these others."""
    return not (kind == "door" and WITH_DOORS & {*others} or kind in WITH_DOORS and "door" in others)


@lru_cache(maxsize=1)
def statistics() -> tuple[Counter[str], Counter[frozenset[str]]]:
    """How many of the CORPUS drawings hold each kind, and each pair of kinds."""
    rng = np.random.default_rng(2305_10355)
    corpus = [sample_kinds(rng) for _ in range(CORPUS)]
    single = Counter(kind for kinds in corpus for kind in kinds)
    return single, Counter(frozenset(pair) for kinds in corpus for pair in combinations(kinds, 2))


def absent(kinds: tuple[str, ...], sampling: str, rng: np.random.Generator) -> str:
    """A kind that an image with `kinds` has not, chosen in one of SAMPLINGS. Raises SettingError for another."""
    if sampling not in SAMPLINGS:
        raise SettingError(f"The sampling is {sampling!r}; choose {', '.join(SAMPLINGS)}.")
    options = [kind for kind in KINDS if kind not in kinds and _is_clear(kind, kinds)]
    if sampling != "random":
        single, pairs = statistics()
        together = {kind: sum(pairs[frozenset((kind, other))] for other in kinds) for kind in options}
        frequency = single if sampling == "popular" else together
        options = sorted(options, key=lambda kind: -frequency[kind])[: TOP[sampling]]
    return options[rng.integers(len(options))]


def draw_scene(kinds: tuple[str, ...], rng: np.random.Generator) -> Image.Image:
    """An image with one thing of each kind, in cells of a 3 x 3 grid: RGB, SIDE x SIDE."""
    things = []
    for kind, cell in zip(kinds, rng.permutation(9), strict=False):
        column, row = int(cell) % 3, int(cell) // 3
        aspect, long_side = rng.uniform(*ASPECTS[kind]), rng.uniform(0.29, 0.33)
        width, height = long_side * min(1, aspect), long_side * min(1, 1 / aspect)
        x, y = ((2 * index + 1) / 6 for index in (column, row))
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        things.append(Thing(kind, (str(rng.choice(COLORS)),), column, row, box))
    return draw(Scene(tuple(things), (SIDE, SIDE)), rng)[0]
