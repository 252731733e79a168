"""Measures a checkpoint on images that training never saw.

python -m imp_kit.nano evaluate --seed 1 --samples 500 --json imp_kit/nano/checkpoint/evaluation.json
"""

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from imp_kit import __version__
from imp_kit.boxes import Corners, read_box
from imp_kit.engine import Conversation
from imp_kit.errors import SettingError
from imp_kit.experiments.captcha.codes import LEVELS, draw_code, sample_code
from imp_kit.experiments.drawings import draw, sample_scene
from imp_kit.experiments.stats import wilson
from imp_kit.imp import Imp
from imp_kit.model.sampling import Sampling
from imp_kit.nano.training.lessons import (
    LESSONS,
    ONLY_DRAWINGS,
    OUTSIDE,
    READING,
    SKILLS,
    WHICH_ONE,
    Turn,
    outside_branches,
    page_question,
    question,
    score,
)
from imp_kit.nano.training.outside import sample_outside
from imp_kit.nano.training.text import LONGEST, Style, sample_page
from imp_kit.nano.training.variety import sample_varied

EVALUATION = 3  # stream of random numbers; train.py has its own, so no drawing here was ever trained on
WORDINGS = ("trained", "unseen")
VARIED = "varied"  # trained wordings about drawings in the styles of variety.py
BATCH = 32
LONGEST_ANSWER = 110  # tokens; the longest true one has about 80
OVERLAP = 0.5  # intersection over union from which a box counts as right
PROBE_QUESTION = "What text can you see in this image? Please tell me what is written."
PROBE_SAMPLES = 100


@dataclass(frozen=True)
class Case:
    """One image of the exam with a conversation, whose last turn is scored."""

    image: Image.Image
    turns: list[Turn]
    part: str  # what the score is also counted by: a code's length, whether the thing is there, the kind of image


def columns(skill: str) -> tuple[str, ...]:
    """How a skill is examined: in both wordings, and about varied drawings where it is about drawings."""
    return WORDINGS if skill in (*READING, OUTSIDE) else (*WORDINGS, VARIED)


def exam(skill: str, column: str, seed: int, samples: int) -> Iterator[Case]:
    """Cases that test `skill` in a column of `columns`; scenes that allow no such question are skipped."""
    index = made = 0
    wording = "trained" if column == VARIED else column
    while made < samples:
        rng = np.random.default_rng([EVALUATION, seed, SKILLS.index(skill), columns(skill).index(column), index])
        index += 1
        if skill == OUTSIDE:
            kind = ("photograph", "noise", "smooth", "texture")[min(3, max(0, made % 6 - 2))]  # photographs: half
            case = Case(sample_outside(rng, kind, "unseen"), outside_branches(rng, 1, wording)[0], kind)
        elif skill in READING:
            length = 1 + made % LONGEST
            page, image = sample_page(rng, Style(length, exactly=True), "two" if skill == "line" else "one")
            turns = page_question(page, skill, rng, wording)
            case = Case(image, turns, "caption below" if page.lines[-1].sentence else f"{length} characters")
        else:
            image, scene = sample_varied(rng) if column == VARIED else draw(sample_scene(rng), rng)
            turns = question(scene, skill, rng, wording)
            if not turns:
                continue
            there = "there" if turns[-1].answer.startswith("[") else "not there"
            case = Case(image, turns, there if skill == "locate" else "")
        made += 1
        yield case


def chats(seed: int, samples: int) -> Iterator[Case]:
    """Drawings of several things, each with questions of two skills, of which neither needs the other.

    The first is no caption, which would answer many a question that follows.
    """
    index = made = 0
    while made < samples:
        rng = np.random.default_rng([EVALUATION, seed, len(SKILLS), index])
        index += 1
        image, scene = draw(sample_scene(rng), rng)
        skills = rng.choice(tuple(LESSONS), 2, replace=False).tolist()
        asked = [question(scene, skill, rng, first=number == 0) for number, skill in enumerate(skills)]
        turns = [turn for one in asked if one for turn in one]
        answers = {turn.answer for turn in turns}
        if len(scene.things) < 2 or len(answers) < 2 or WHICH_ONE in answers or skills[0] == "describe":
            continue
        made += 1
        yield Case(image, turns, "")


def overlap(one: Corners, other: Corners) -> float:
    """Intersection over union of two boxes, 0 to 1."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return both / (sum(areas) - both)


def mark(case: Case, reply: str) -> tuple[bool, float | None]:
    """Whether a reply is right, and a box's overlap with the true one: 0 where the reply gives no box."""
    truth = case.turns[-1]
    if truth.skill != "locate":
        return score(reply, truth.answer), None
    expected, given = (read_box(text, case.image.size, pad=False) for text in (truth.answer, reply))
    if expected is None:
        return given is None, None
    share = overlap(expected, given) if given else 0.0
    return share >= OVERLAP, share


def count(right: list[bool]) -> dict:
    """How many are right, of how many, and the Wilson interval of the share (95 %)."""
    found = wilson(sum(right), len(right))
    return {"right": found.right, "samples": found.total, "share": found.share, "wilson_95": [found.low, found.high]}


def converse(imp: Imp, images: Sequence[Image.Image], questions: Sequence[Sequence[str]]) -> list[str]:
    """The last replies of conversations of equally many questions, one about each RGB image, answered together."""
    conversations = [Conversation(imp.engine, image) for image in images]
    for number in range(len(questions[0])):
        turns = [conversation.ask(each[number]) for conversation, each in zip(conversations, questions, strict=True)]
        imp.engine.answer(turns, Sampling(LONGEST_ANSWER), range(len(turns)))
    return [conversation.answers[-1].text for conversation in conversations]


def evaluate(imp: Imp, seed: int, samples: int) -> dict:
    """Score every skill on `samples` images in each of its columns, and read the probe's five levels.

    Returns a dictionary fit for JSON: per skill and column what `count` gives, also by part, the mean overlap of
    boxes, and the first mistakes in full with their number in the exam; and how many questions are answered right as
    the first and as the second one of a chat. Raises SettingError.
    """
    if seed < 0 or samples < 1:
        raise SettingError(f"seed is {seed} and samples {samples}; give a seed from 0 and at least one sample.")
    skills: dict[str, dict] = {}
    drawings: list[bool] = []  # whether a drawing was answered as if it were no drawing
    probe = min(samples, PROBE_SAMPLES)
    cells = sum(len(columns(skill)) for skill in SKILLS)
    with tqdm(total=(cells + 2) * samples + len(LEVELS) * probe, unit="answer") as bar:
        for skill in SKILLS:
            skills[skill] = {}
            for column in columns(skill):
                cases = list(exam(skill, column, seed, samples))
                replies = _replies(imp, [(case.image, [turn.question for turn in case.turns]) for case in cases], bar)
                marks = [mark(case, reply) for case, reply in zip(cases, replies, strict=True)]
                right, shares = [good for good, _ in marks], [share for _, share in marks if share is not None]
                parts = sorted({case.part for case in cases} - {""})
                entry = count(right)
                if parts:
                    entry["parts"] = {
                        part: count([good for case, good in zip(cases, right, strict=True) if case.part == part])
                        for part in parts
                    }
                if shares:
                    entry["mean_overlap"] = float(np.mean(shares))
                entry["mistakes"] = [
                    {"number": n, "question": case.turns[-1].question, "truth": case.turns[-1].answer, "answer": reply}
                    for n, (case, reply, good) in enumerate(zip(cases, replies, right, strict=True))
                    if not good
                ][:6]
                skills[skill][column] = entry
                if skill != OUTSIDE:
                    drawings += [score(reply, ONLY_DRAWINGS) for reply in replies]
        cases, chat = list(chats(seed, samples)), {}
        for place, start in (("first", 1), ("second", 0)):  # without the question before, and with it
            asked = [(case.image, [turn.question for turn in case.turns[start:]]) for case in cases]
            replies = _replies(imp, asked, bar)
            chat[place] = count([mark(case, reply)[0] for case, reply in zip(cases, replies, strict=True)])
        levels = [_read_probe(imp, level, seed, probe, bar) for level in range(len(LEVELS))]
    return {
        "checkpoint": imp.name,
        "dtype": imp.dtype,
        "device": str(imp.model.device),
        "seed": seed,
        "date": date.today().isoformat(),
        "versions": {"imp-kit": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "skills": skills,
        "chat": chat,
        "drawings_refused": count(drawings),
        "probe": levels,
    }


def _replies(imp: Imp, asked: list[tuple[Image.Image, list[str]]], bar: tqdm) -> list[str]:
    replies: list[str] = []
    for start in range(0, len(asked), BATCH):
        images, questions = zip(*asked[start : start + BATCH], strict=True)
        replies += converse(imp, images, questions)
        bar.update(len(images))
    return replies


def _read_probe(imp: Imp, level: int, seed: int, samples: int, bar: tqdm) -> dict:
    """The reading probe's images of one level, codes of eight characters without a caption: exactly read or not."""
    seeds = [1_000_000 * (seed + 1) + index for index in range(samples)]
    codes = [sample_code(each) for each in seeds]
    images = [draw_code(code, "", LEVELS[level], seed=each) for code, each in zip(codes, seeds, strict=True)]
    replies = _replies(imp, [(image, [PROBE_QUESTION]) for image in images], bar)
    return count([f'"{code}"' in reply for code, reply in zip(codes, replies, strict=True)])
