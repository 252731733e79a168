"""A POPE of drawings: which samples there are, what counts as yes, and the figures of a run.

Of each image six questions are asked, two for each sampling (see scenes.py): one about a thing that is there and one
about a thing that is not. So half of the true answers are yes, in each sampling, and a model that always says yes is
right in half. Controls: the same questions about a plain gray image, and without one; nothing is there.

The rule for yes and no was there before the first answer. An answer that begins with yes or no says so. Else its first
sentence decides: one that denies ("there is no bus", "I don't see one") is no, one that says that the thing is there is
yes. An answer that does neither, that is unsure, or speaks of other things only, is no answer: it is not right, and no
yes.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from imp_kit.errors import SettingError
from imp_kit.experiments import runs as record
from imp_kit.experiments.pope.scenes import KINDS, SAMPLINGS, SIDE, absent, draw_scene, sample_kinds
from imp_kit.experiments.runs import Case, Expected, Subject
from imp_kit.experiments.stats import Estimate, bounded_difference, bounded_mean
from imp_kit.system.extras import require

if TYPE_CHECKING:
    from pandas import DataFrame

NAME = "pope"
SETTINGS = {"max_new_tokens": 30}
IMAGES = {"smoke": 2, "lesson": 40, "standard": 100, "full": 500}  # six questions about each
GRAYS = {"smoke": 1, "lesson": 1, "standard": 3, "full": 6}  # plain images as a control
QUESTION = "Is there {} in the image?"

BEGINS = re.compile(r"\W*(?:(?P<yes>yes|yeah|yep|correct|true)|(?:no|nope|false|incorrect))\b(?! doubt| one\b)")
DENIES = re.compile(r"\b(?:no|not|none|never|without|neither|nothing|nowhere)\b(?! only\b| doubt\b)|n't\b")
CLAIMS = re.compile(r"\byes\b|\bthere(?:'s| is| are)\b|\bsee\b|\b(?:shows?|contains?|has|have|includes?|depicts?)\b")
UNSURE = re.compile(
    r"\b(?:can ?not|can't|could not|couldn't|unable to|not able to) (?:say|tell|answer|determine|know)\b|"
    r"\b(?:not sure|not certain|unsure|unclear|don't know|do not know|yes or no|yes and no)\b"
)
WORDS = {"person": "person|people|man|woman|human|someone|boy|girl|child", "cup": "cup|mug", "cat": "cat|kitten"}


def yes_or_no(reply: str, kind: str) -> str:
    """Whether an answer says that there is a thing of KINDS: "yes", "no", or ""; see the top of this file."""
    text = " ".join(reply.lower().replace("’", "'").split())
    if UNSURE.search(text):
        return ""
    if begins := BEGINS.match(text):
        return "yes" if begins["yes"] else "no"
    first = re.split(r"[.;!?]|, but ", text)[0]
    named = {each for each in KINDS if re.search(rf"\b(?:{WORDS.get(each, each)})(?:s|es)?\b", first)}
    if named and kind not in named:
        return ""
    if DENIES.search(first):
        return "no"
    return "yes" if CLAIMS.search(first) and (named or re.search(r"\bone\b", first)) else ""


@dataclass(frozen=True)
class Cell:
    """One condition: how the absent things are chosen, whether the thing is there, and the control."""

    sampling: str  # of SAMPLINGS; "" for a control
    present: bool
    control: str = "none"  # or "gray image" or "no image"


def cases(size: str, seed: int) -> list[Case]:
    """All samples of a run. Raises SettingError for an unknown size or a bad seed."""
    if size not in IMAGES:
        raise SettingError(f"The size is {size!r}; choose {', '.join(IMAGES)}.")
    if not isinstance(seed, int) or seed < 0:
        raise SettingError(f"The seed is {seed!r}; give a whole number from 0.")
    made = [each for number in range(IMAGES[size]) for each in image_cases(1000 * seed + number)]
    for kind in KINDS:
        made += [_control("gray image", kind, 1000 * seed + number) for number in range(GRAYS[size])]
        made += [_control("no image", kind, 1000 * seed)]  # the same for each seed: greedy decoding answers alike
    return made


def image_cases(seed: int) -> list[Case]:
    """The six questions about one image."""
    rng = np.random.default_rng([seed, 0])
    kinds = sample_kinds(rng)
    # Each thing that is there once, in turn with the samplings.
    there = [kinds[i] for i in rng.permutation(len(kinds))]
    made = []
    for sampling, kind in zip(SAMPLINGS, there, strict=True):
        for present, asked in ((True, kind), (False, absent(kinds, sampling, rng))):
            cell = Cell(sampling, present)
            name = f"{sampling}/{'there' if present else 'not there'}/{seed}"
            made.append(_case(name, partial(image, seed), asked, cell, kinds, seed))
    return made


def image(seed: int) -> Image.Image:
    """The image of a seed."""
    rng = np.random.default_rng([seed, 0])
    return draw_scene(sample_kinds(rng), np.random.default_rng([seed, 1]))


def _control(control: str, kind: str, seed: int) -> Case:
    gray = 60 + 37 * (seed % 1000) % 150
    shown = Image.new("RGB", (SIDE, SIDE), (gray,) * 3) if control == "gray image" else None
    return _case(f"{control}/{kind}/{seed}", shown, kind, Cell("", False, control), (), seed)


def _case(name: str, drawn, kind: str, cell: Cell, kinds: Sequence[str], seed: int) -> Case:
    truth = {"answer": "yes" if cell.present else "no", "kind": kind, "there": list(kinds)}
    return Case(name, drawn, QUESTION.format(f"a {kind}"), asdict(cell), truth, seed)


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
    subject = Subject.of(who, device=device, dtype=dtype, revision=revision)
    design = {"size": size, "seed": seed}
    return samples(record.run(NAME, cases(size, seed), subject, out, settings=SETTINGS, design=design, score=score))


def expected(who, size: str, seed: int, out: str | os.PathLike) -> Expected:
    """How long the rest of a run takes: a few of its questions are asked and timed, their answers not kept.

    `who` is a loaded checkpoint or any object with `ask`. Raises SettingError, and what asking raises.
    """
    asked = cases(size, seed)
    ids = {each.id for each in asked}
    answered = sum(id in ids for id, _ in record.answered(out))
    return record.expect(asked, who, settings=SETTINGS, answered=answered)


@dataclass(frozen=True)
class Sample:
    """One answered sample."""

    cell: Cell
    seed: int
    kind: str
    reply: str

    @property
    def said(self) -> str:
        return yes_or_no(self.reply, self.kind)

    @property
    def right(self) -> bool:
        return self.said == ("yes" if self.cell.present else "no")


def samples(records: Sequence[dict]) -> list[Sample]:
    """The answered samples of a run; failed ones have no score."""
    return [
        Sample(Cell(**each["factors"]), each["seed"], each["truth"]["kind"], each["answer"])
        for each in records
        if each["status"] == "ok"
    ]


def score(answered: dict) -> dict:
    """What a run writes beside an answer for other readers of its file; the kit itself scores the answer anew."""
    (sample,) = samples([answered])
    return {"extracted": sample.said, "scores": {"right": sample.right, "yes": sample.said == "yes"}}


# This probe's columns of a frame, see frames.py.
COLUMNS = {
    "sampling": "string[python]",
    "present": "bool",
    "control": "string[python]",
    "kind": "string[python]",
    "expected": "string[python]",
    "extracted": "string[python]",
    "right": "bool",
    "yes": "bool",
}


def row(sample: Sample) -> dict:
    """One sample's values of COLUMNS."""
    found = {"kind": sample.kind, "expected": "yes" if sample.cell.present else "no", "extracted": sample.said}
    return asdict(sample.cell) | found | {"right": sample.right, "yes": sample.said == "yes"}


@dataclass(frozen=True)
class Figures:
    """POPE's figures of one sampling, yes as the positive class, with their intervals over the images."""

    accuracy: Estimate
    precision: Estimate | None  # of those answered with yes, the share that is there; None where nothing was
    recall: Estimate  # of those that are there, the share answered with yes
    f1: Estimate
    yes: Estimate  # the share of yes
    bias: Estimate  # yes more often than it is true, as a share of all questions: 0 without a bias
    false_yes: Estimate  # of those that are not there, the share answered with yes
    neither: Estimate  # answers that are neither yes nor no


def figures(rows: "DataFrame") -> Figures:
    """The figures of answers about images, half of them about what is there. Raises SettingError where there are none.

    All but F1 are means, see `stats.bounded_mean`; for `f1` see there.
    """
    if rows.empty or rows.present.all() or not rows.present.any():
        raise SettingError("There are no answers both about things that are there and about things that are not.")
    there, absent_ones, said = rows[rows.present], rows[~rows.present], rows[rows.yes]
    return Figures(
        accuracy=bounded_mean(rows.right, rows.seed),
        precision=bounded_mean(said.present, said.seed) if len(said) else None,
        recall=bounded_mean(there.yes, there.seed),
        f1=f1(rows),
        yes=bounded_mean(rows.yes, rows.seed),
        bias=bounded_difference(rows.yes.astype(int) - rows.present.astype(int), rows.seed),
        false_yes=bounded_mean(absent_ones.yes, absent_ones.seed),
        neither=bounded_mean(rows.extracted == "", rows.seed),
    )


def f1(rows: "DataFrame") -> Estimate:
    """F1 = 2 TP / (2 TP + FP + FN) with its 95 % interval over the images.

    With J = TP / (TP + FP + FN), the share of hits among all that is there or was said to be, F1 = 2 J / (1 + J). It
    grows with J, so the bounds of J, which is a mean, give its own.
    """
    counted = rows[rows.present | rows.yes]
    hits = bounded_mean(counted.present & counted.yes, counted.seed)
    return Estimate(*(2 * share / (1 + share) for share in (hits.value, hits.low, hits.high)))


def by_sampling(frame: "DataFrame") -> "Iterator[tuple[str, DataFrame]]":
    """The rows of each sampling that has any, in the order of SAMPLINGS."""
    for sampling in SAMPLINGS:
        rows = frame[(frame.control == "none") & (frame.sampling == sampling)]
        if len(rows):
            yield sampling, rows


def table(frame: "DataFrame") -> "DataFrame":
    """The figures of each sampling as text with intervals, a row each. Raises SettingError where there are none."""
    require("measure", "pandas", what="A table of figures")
    from pandas import DataFrame

    lines = []
    for sampling, rows in by_sampling(frame):
        f = figures(rows)
        shown = {
            "accuracy": f.accuracy,
            "precision": f.precision,
            "recall": f.recall,
            "F1": f.f1,
            "yes": f.yes,
            "yes though it is not there": f.false_yes,
            "neither yes nor no": f.neither,
        }
        shares = {name: "none said yes" if each is None else f"{each:.1%}" for name, each in shown.items()}
        lines.append({"absent things": sampling, "questions": str(len(rows)), **shares, "yes-bias": f"{f.bias:+.1%}"})
    return DataFrame(lines)


def pairs(frame: "DataFrame", sampling: str = "adversarial") -> "DataFrame":
    """Absent things: those chosen at random beside those of another sampling about the same image ("_other")."""
    rows = frame[(frame.control == "none") & ~frame.present]
    one, other = (rows[rows.sampling == each] for each in ("random", sampling))
    return one.merge(other, on="seed", suffixes=("", "_other"))
