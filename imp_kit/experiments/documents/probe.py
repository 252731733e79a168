"""The document probe: which samples there are, and what answers to them are worth (answers.py has the rules).

Each question is asked with its own document and, as controls, without any image and with another document of the same
kind. What is right there as well was not read. Scores come from a run's records alone.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np

from imp_kit.errors import SettingError
from imp_kit.experiments import runs as record
from imp_kit.experiments.documents.answers import Judged, judge
from imp_kit.experiments.documents.pages import SKILLS, page
from imp_kit.experiments.runs import Case, Expected, Subject
from imp_kit.experiments.stats import Estimate, Share, bounded_mean, share_of
from imp_kit.system.extras import require

if TYPE_CHECKING:
    from pandas import DataFrame
    from PIL.Image import Image

NAME = "documents"
SETTINGS = {"max_new_tokens": 300}  # as many as the HTML of a sketch may need
SAMPLES = {"smoke": 1, "lesson": 6, "standard": 60, "full": 200}  # of each skill
CONTROLS = ("none", "no image", "other image")
NOT_READ = "I cannot read it."
OTHER = 500  # seeds from a document to that of its control; the samples of a cell are fewer


@dataclass(frozen=True)
class Cell:
    """One condition: the kind of document, what is asked (see pages.SKILLS), and the control."""

    kind: str
    skill: str
    control: str = "none"  # of CONTROLS


def cells(size: str) -> list[Cell]:
    """The conditions of a run. "lesson" is what notebook 09 asks: no control without image. Raises SettingError."""
    if size not in SAMPLES:
        raise SettingError(f"The size is {size!r}; choose {', '.join(SAMPLES)}.")
    controls = {"smoke": ("none",), "lesson": ("none", "other image")}.get(size, CONTROLS)
    chosen = [Cell(*skill, control) for control in controls for skill in SKILLS]
    return [*chosen, *(Cell(*SKILLS[0], control) for control in CONTROLS[1:])] if size == "smoke" else chosen


def cases(size: str, seed: int) -> list[Case]:
    """All samples of a run. Raises SettingError for an unknown size or a bad seed."""
    if not isinstance(seed, int) or seed < 0:
        raise SettingError(f"The seed is {seed!r}; give a whole number from 0.")
    return [case(cell, 1000 * seed + number) for cell in cells(size) for number in range(SAMPLES[size])]


def case(cell: Cell, seed: int) -> Case:
    """One sample: question and truth are those of its own document, whatever image is shown."""
    question, truth = _asked(cell.kind, cell.skill, seed)
    name = "/".join(str(part) for part in (*asdict(cell).values(), seed))
    return Case(name, partial(_shown, cell, seed), question, asdict(cell), truth, seed)


@lru_cache(maxsize=10_000)  # a condition and its controls have the same
def _asked(kind: str, skill: str, seed: int) -> tuple[str, dict]:
    asked = page(kind, skill, seed)
    return asked.question, asked.truth


def _shown(cell: Cell, seed: int) -> "Image | None":
    if cell.control == "no image":
        return None
    return page(cell.kind, cell.skill, seed + OTHER * (cell.control == "other image")).image


def examples(seed: int, side: int = 200) -> "list[tuple[str, Image]]":
    """One document of each kind with its name, `side` pixels wide and high: what a grid shows."""
    first = {kind: page(kind, skill, seed) for kind, skill in reversed(SKILLS)}
    return [(kind, first[kind].image.resize((side, side))) for kind in dict.fromkeys(kind for kind, _ in SKILLS)]


class Known:
    """A reader whose skill is known: it gives the true answer to a share of the questions, chosen by a seed.

    The instrument is tried on it before it is believed. Any other object with `ask` can be asked as well.
    """

    def __init__(self, asked: Sequence[Case], share: float, seed: int = 0):
        if not 0 <= share <= 1:
            raise SettingError(f"The share is {share}; give the part of the questions that are answered, 0 to 1.")
        self.name, self.identity = f"a reader of {share:.0%}", {"share": share, "seed of the reader": seed}
        rng = np.random.default_rng(seed)
        plain = [each for each in asked if each.factors["control"] == "none"]
        self.answers = {
            _key(each.picture, each.question): in_words(each.truth) if rng.random() < share else NOT_READ
            for each in plain
        }

    def ask(self, picture, question: str, **settings) -> str:
        return self.answers.get(_key(picture, question), NOT_READ)


def _key(picture: "Image | None", question: str) -> tuple[bytes, str]:
    return hashlib.sha256(picture.tobytes()).digest() if picture else b"", question


def in_words(truth: dict) -> str:
    """The true answer as a reader would write it."""
    answer = truth["answer"]
    if truth["rule"] == "box":
        return f"[{', '.join(f'{value:.2f}' for value in answer)}]"
    if truth["rule"] == "html":
        forms = {"link": "<a>{}</a>", "heading": "<h1>{}</h1>", "image": "<img>", "field": "<input>"}
        return "\n".join(forms.get(role, "<button>{}</button>").format(text) for role, text in answer)
    return f"{answer:.10g}" if truth["rule"] == "number" else answer


def run(
    who,
    size: str,
    seed: int,
    out: str | os.PathLike,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> "list[Sample]":
    """Ask a checkpoint, or any object with `ask`, what the folder `out` does not hold yet; all answered samples.

    Raises RunError, SettingError, and what loading a checkpoint raises.
    """
    require("measure", "matplotlib", "rapidfuzz", what="The document probe")  # before anything is asked
    subject = Subject.of(who, device=device, dtype=dtype, revision=revision)
    design = {"size": size, "seed": seed}
    return samples(record.run(NAME, cases(size, seed), subject, out, settings=SETTINGS, design=design, score=score))


def expected(who, size: str, seed: int, out: str | os.PathLike) -> Expected:
    """How long the rest of a run takes: a few of its questions are asked and timed, their answers not kept.

    `who` is a loaded checkpoint or any object with `ask`. Raises SettingError, and what asking raises.
    """
    require("measure", "matplotlib", what="The document probe")
    asked = cases(size, seed)
    ids = {each.id for each in asked}
    answered = sum(id in ids for id, _ in record.answered(out))
    return record.expect(asked, who, settings=SETTINGS, answered=answered)


@dataclass(frozen=True)
class Sample:
    """One answered sample."""

    cell: Cell
    seed: int
    question: str
    truth: dict
    reply: str

    @property
    def judged(self) -> Judged:
        return judge(self.reply, self.truth, self.question)


def samples(records: Sequence[dict]) -> list[Sample]:
    """The answered samples of a run; failed ones have no score."""
    return [
        Sample(Cell(**each["factors"]), each["seed"], each["question"], each["truth"], each["answer"])
        for each in records
        if each["status"] == "ok"
    ]


def score(answered: dict) -> dict:
    """What a run writes beside an answer for other readers of its file; the kit itself scores the answer anew."""
    (sample,) = samples([answered])
    found = asdict(sample.judged)
    return {"extracted": found.pop("extracted"), "scores": found}


# This probe's columns of a frame, see frames.py.
COLUMNS = {
    "kind": "string[python]",
    "skill": "string[python]",
    "control": "string[python]",
    "rule": "string[python]",
    "expected": "string[python]",
    "truth": "string[python]",
    "extracted": "string[python]",
    "right": "bool",
    "score": "float64",
    "refused": "bool",
}


def row(sample: Sample) -> dict:
    """One sample's values of COLUMNS."""
    truth = {"rule": sample.truth["rule"], "expected": in_words(sample.truth), "truth": json.dumps(sample.truth)}
    return asdict(sample.cell) | truth | asdict(sample.judged)


@dataclass(frozen=True)
class Summary:
    """One condition's figures, with their intervals over the documents."""

    right: Share
    score: Estimate  # mean
    refused: Share
    chance: float | None  # how often replies are right of the other questions of this skill; None for one question


def summarise(rows: "DataFrame") -> Summary:
    """The figures of samples of one condition. Raises SettingError where there are none."""
    if rows.empty:
        raise SettingError("There are no answered samples of this condition.")
    return Summary(share_of(rows.right), bounded_mean(rows.score, rows.seed), share_of(rows.refused), chance(rows))


def chance(rows: "DataFrame") -> float | None:
    """How often replies are right of the truths of other documents: what "right" gives for nothing."""
    truths = [json.loads(truth) for truth in rows.truth]
    hits = [
        _is_right(answer, rows.truth.iloc[other], question)
        for one, (answer, question) in enumerate(zip(rows.answer, rows.question, strict=True))
        for other in range(len(truths))
        if one != other
    ]
    return float(np.mean(hits)) if hits else None


@lru_cache(maxsize=100_000)
def _is_right(reply: str, truth: str, question: str) -> bool:
    return judge(reply, json.loads(truth), question).right


def by_skill(frame: "DataFrame", control: str = "none") -> "Iterator[tuple[str, str, DataFrame]]":
    """Kind, skill and the rows of each, as far as there are any, in the order of SKILLS."""
    chosen = frame[frame.control == control]
    for kind, skill in SKILLS:
        rows = chosen[(chosen.kind == kind) & (chosen.skill == skill)]
        if len(rows):
            yield kind, skill, rows


def pairs(frame: "DataFrame", control: str = "other image") -> "DataFrame":
    """Each question with its own document beside the same one with a control, whose columns end with "_control"."""
    own, other = (frame[frame.control == each] for each in ("none", control))
    return own.merge(other, on=["kind", "skill", "seed"], suffixes=("", "_control"))
