"""What each patch of an image shows, known from how it was drawn: direct targets for the tower and for attention."""

import re
from string import ascii_letters, digits
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from imp_kit.checkpoints.tokenizer import TextTokenizer
from imp_kit.experiments.drawings import COLORS, HELD, KINDS, Scene, Thing
from imp_kit.nano.training.lessons import Turn, spans_of_things
from imp_kit.nano.training.text import Line, Page

THING = 1000  # content ids from here on are things, those below are characters
IGNORED = -100  # the label that torch's cross-entropy ignores
LOOKS = {  # what is known of the thing that a patch shows, and how many values it has; see `thing_looks`
    "kind": 1 + len(KINDS),
    "color": len(COLORS),
    "second color": 1 + len(COLORS),
    "column": 3,
    "row": 3,
    "held kind": 1 + len(HELD),
    "held color": 1 + len(COLORS),
}
NUMBERS = 4  # that a patch's thing has, each below MOST_COUNTED, see `thing_numbers`
MOST_COUNTED = 10
CHARACTERS = ascii_letters + digits + ".,?:"
ACROSS = 3  # characters that a patch may show side by side, as in a caption
ORDINALS = 12  # a character's index in its code, or its word's index in a sentence
COVERED = 0.3  # share of a patch from which it shows a thing


class Labels(NamedTuple):
    """What each of n patches shows, known from the scene; the tower learns to predict it."""

    looks: Tensor  # int (n, LOOKS): those of `thing_looks`; where no thing is, kind 0 and the others IGNORED; where
    # two are, all IGNORED, since the scene does not say which one is in front
    boxes: Tensor  # float (n, 4): the corners of the thing's box as fractions of the image
    numbers: Tensor  # int (n, NUMBERS): those of `thing_numbers`; IGNORED where no thing is, or two are
    characters: Tensor  # int (n, ACROSS): 1 + index in CHARACTERS, 0 where there is none
    content_ids: Tensor  # int (n, ACROSS): ORDINALS times the line's number plus the `ordinal` in it; or THING plus
    # the thing's number; IGNORED where there is neither, or two things and no character


def thing_numbers(scene: Scene) -> list[tuple[int, ...]]:
    """What an answer that goes through the things, or counts them, needs to know of each.

    Its index; the index of its group, things alike being one as in a caption; how many are alike; and how many are of
    its kind.
    """
    looks = [(thing.kind, thing.colors, thing.holding) for thing in scene.things]
    groups = list(dict.fromkeys(looks))
    kinds = [thing.kind for thing in scene.things]
    return [(index, groups.index(look), looks.count(look), kinds.count(look[0])) for index, look in enumerate(looks)]


def thing_looks(thing: Thing) -> list[int]:
    """The values of LOOKS: indices, but for the kind and what may be missing counted from 1, with 0 for none."""
    first, second = [COLORS.index(name) for name in thing.colors] + [-1] * (2 - len(thing.colors))
    held = [0, 0]
    if thing.holding:
        color, kind = thing.holding
        held = [1 + HELD.index(kind), 1 + COLORS.index(color)]
    return [1 + KINDS.index(thing.kind), first, 1 + second, thing.column, thing.row, *held]


def patch_labels(page: Page, side: int) -> Labels:
    """The labels of side x side patches.

    A patch shows a thing if the thing's box covers at least COVERED of it, and the characters at the middles of its
    ACROSS columns. Where two things do, it has the labels of neither.
    """
    looks, boxes = torch.full((side, side, len(LOOKS)), IGNORED), torch.zeros(side, side, 4)
    looks[..., 0] = 0
    numbers, numbered = torch.full((side, side, NUMBERS), IGNORED), thing_numbers(page.scene)
    characters = torch.zeros(side, side, ACROSS, dtype=torch.long)
    content_ids = torch.full((side, side, ACROSS), IGNORED)
    edges = np.arange(side + 1) / side
    things_there = torch.zeros(side, side, dtype=torch.long)
    for number, thing in enumerate(page.scene.things):
        x0, y0, x1, y1 = thing.box
        across = np.clip(np.minimum(edges[1:], x1) - np.maximum(edges[:-1], x0), 0, None) * side
        down = np.clip(np.minimum(edges[1:], y1) - np.maximum(edges[:-1], y0), 0, None) * side
        covered = torch.from_numpy(np.outer(down, across) >= COVERED)
        looks[covered] = torch.tensor(thing_looks(thing))
        boxes[covered] = torch.tensor(thing.box)
        numbers[covered] = torch.tensor(numbered[number])
        content_ids[covered] = THING + number
        things_there += covered
    for part in (looks, numbers, content_ids):
        part[things_there > 1] = IGNORED
    middles = (np.arange(side * ACROSS) + 0.5) / (side * ACROSS)
    for number, line in enumerate(page.lines):
        top, bottom = line.box[1], line.box[3]
        overlap = np.minimum(edges[1:], bottom) - np.maximum(edges[:-1], top)
        rows = torch.from_numpy(overlap >= 0.4 * min(1 / side, bottom - top))
        under = np.searchsorted(line.edges, middles, side="right") - 1
        for column, index in enumerate(under):
            if not 0 <= index < len(line.text) or line.text[index] == " ":
                continue
            cell = (rows, column // ACROSS, column % ACROSS)
            characters[cell] = 1 + CHARACTERS.index(line.text[index])
            content_ids[cell] = number * ORDINALS + ordinal(line, index)
    return Labels(*(part.flatten(0, 1) for part in (looks, boxes, numbers, characters, content_ids)))


def ordinal(line: Line, index: int) -> int:
    """The index of a character in its code, or of its word in a sentence; at most the last of ORDINALS."""
    return min(line.text[:index].count(" ") if line.sentence else index, ORDINALS - 1)


def named_things(tokenizer: TextTokenizer, question: list[int], turn: Turn, page: Page) -> list[int]:
    """For each token of a question the content id, as in Labels, of the thing that the words up to it name, or IGNORED.

    Each name counts at its end, where it is known.
    """
    text, ends = "", []
    for id in question:
        text += tokenizer.decode([id])
        ends.append(len(text))
    text = text.lower().replace("grey", "gray")  # whose tokens are others
    targets = [IGNORED] * len(question)
    for words, thing in turn.named:
        if found := re.search(rf"\b{re.escape(words)}\b", text):
            last = next(index for index, end in enumerate(ends) if end >= found.end())
            targets[last] = THING + page.scene.things.index(thing)
    return targets


def attention_targets(tokenizer: TextTokenizer, answer: list[int], turn: Turn, page: Page) -> list[int]:
    """For each token of an answer the content id, as in Labels, of what it spells or is about, or IGNORED."""
    text, targets = "", []
    pieces = [tokenizer.decode([id]) for id in answer]
    whole = "".join(pieces)
    spans, after = [], 0
    for number, line in enumerate(page.lines):
        start = 1 if whole.strip() == line.text else whole.find(f'"{line.text}"', after) + 1
        if start:
            spans.append((number, line, start))
            after = start + len(line.text)
    # Offsets of the turn's answer; the tokens begin with a space.
    about = [(thing, start + 1, end + 1) for thing, start, end in spans_of_things(turn)]
    for piece in pieces:
        begin, target = len(text) + len(piece) - len(piece.lstrip()), IGNORED
        text += piece
        for thing, start, end in about:
            if start <= begin < end:
                target = THING + page.scene.things.index(thing)
        for number, line, start in spans:
            if start <= begin < start + len(line.text):
                target = number * ORDINALS + ordinal(line, begin - start)
        targets.append(target)
    return targets
