"""What Japanese costs an answer: paired questions in two languages about the same pictures. Samples and scores.

The sentences are data, questions.json. Scores are a chain: right in any language, in Japanese, and both. They come from
a run's records alone.
"""

import csv
import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imp_kit.checkpoints.hub import NANO
from imp_kit.errors import SettingError
from imp_kit.experiments import runs as record
from imp_kit.experiments import scores
from imp_kit.experiments.drawings import KINDS, Scene, draw, sample_scene
from imp_kit.experiments.files import write_whole
from imp_kit.experiments.japanese.words import mentioned, need_analyser, numbers, yes_or_no
from imp_kit.experiments.runs import Case, Subject
from imp_kit.experiments.stats import Estimate, Share, bootstrap, bounded_mean, share_of
from imp_kit.system.extras import require
from imp_kit.system.faces import japanese_face

if TYPE_CHECKING:
    from pandas import DataFrame

NAME = "japanese"
# One limit for both languages, wide enough for Japanese: its sentences take about three times as many tokens as
# English ones, and a limit that cuts one language only would be the result.
SETTINGS = {"max_new_tokens": 180}
SCENES = {"smoke": 3, "standard": 60, "full": 300}  # drawn scenes, each with one question
GENERAL = {"smoke": 1, "standard": 20, "full": 20}  # questions that need no picture
LANGUAGES = ("English", "Japanese", "Japanese + request")
ALTERNATIVE = " | "  # between accepted answers, or references, in a frame
FONT_SIZE = 64  # pixels, of Japanese text in a picture
CANVAS = (512, 256)
NUMBER = re.compile("[0-9一二三四五六七八九十]+[一-鿿]|[一二三四五六七八九十]+")  # without kana: 一個, 2匹, 三
NUMBER_OR_DIGITS = re.compile(f"{NUMBER.pattern}|[0-9]+")
WOODEN = re.compile("木の(?!上|下|左|右|横|隣|そば|前|後ろ)")  # 木の箱 is a box of wood


@lru_cache(maxsize=1)
def data() -> dict:
    """The questions and accepted answers of questions.json."""
    return json.loads(resources.files(__package__).joinpath("questions.json").read_text("utf-8"))


@dataclass(frozen=True)
class Cell:
    """One condition: the part of the experiment, what is asked for, in which language, with a picture or without."""

    part: str  # "scene", "general", "photograph" or "written"
    skill: str  # of a scene: color, shape, count, position, yes_no; of a photograph its name; else ""
    language: str  # of LANGUAGES
    picture: bool = True


def cases(size: str, seed: int, real: bool = False) -> list[Case]:
    """All samples of a run; `real` adds photographs and Japanese text in pictures, which only Imp's own weights know.

    What needs a package that is missing is left out, with a warning. Raises SettingError.
    """
    if size not in SCENES:
        raise SettingError(f"The size is {size!r}; choose {', '.join(SCENES)}.")
    if not isinstance(seed, int) or seed < 0:
        raise SettingError(f"The seed is {seed!r}; give a whole number from 0.")
    made = []
    for number in range(SCENES[size]):
        made += scene_cases(tuple(data()["scenes"])[number % len(data()["scenes"])], 1000 * seed + number)
    for number in range(GENERAL[size]):
        made += general_cases(number, 1000 * seed + number)
    for more in (photograph_cases, written_cases) if real else ():
        try:
            made += more()
        except SettingError as error:
            warnings.warn(f"Left out for now: {error}", stacklevel=2)
    return made


def scene_cases(skill: str, seed: int) -> list[Case]:
    """One question about one drawn scene, in each language."""
    scene, picture, words = _asked(skill, seed)
    form, terms = data()["scenes"][skill], data()["terms"]
    kind = words["kind"]
    plural = f"{kind}es" if kind in ("box", "bus") else f"{kind}s"
    english = form["en"].format(kind=kind, kinds=plural, color=words["color"])
    japanese = form.get(f"ja_{kind}", form["ja"]).format(
        kind=terms["kinds"][kind]["ja"][0], color=terms["colors"].get(words["color"], {}).get("before")
    )
    truth = {"answer": words["answer"], "set": form["set"]}
    return _in_each_language("scene", skill, english, japanese, picture, truth, seed)


def _asked(skill: str, seed: int) -> tuple[Scene, Image.Image, dict]:
    """A scene without people that allows the question, its picture, and the words of question and answer."""
    rng = np.random.default_rng([seed, tuple(data()["scenes"]).index(skill)])
    while True:
        scene = sample_scene(rng)
        kinds = [thing.kind for thing in scene.things]
        if "person" in kinds:
            continue
        single = [thing for thing in scene.things if kinds.count(thing.kind) == 1]
        colors = [color for thing in scene.things for color in thing.colors]
        words = {"color": ""}
        if skill == "count":
            kind = str(rng.choice(kinds))
            words |= {"kind": kind, "answer": str(kinds.count(kind))}
        elif skill == "yes_no":
            absent = [kind for kind in KINDS if kind not in kinds and kind != "person"]
            answer = ("yes", "no")[seed // 5 % 2]
            words |= {"kind": str(rng.choice(kinds if answer == "yes" else absent)), "answer": answer}
        elif skill == "position" and single:
            thing = single[rng.integers(len(single))]
            names = tuple(data()["terms"]["places"])
            words |= {"kind": thing.kind, "answer": names[3 * thing.row + thing.column]}
        elif skill in ("color", "shape"):
            fit = [t for t in single if len(t.colors) == 1 and colors.count(t.colors[0]) == 1]
            if not fit:
                continue
            thing = fit[rng.integers(len(fit))]
            words = {"kind": thing.kind, "color": thing.colors[0]}
            words["answer"] = words["color"] if skill == "color" else thing.kind
        if "answer" in words:
            return scene, draw(scene, rng)[0], words


def general_cases(number: int, seed: int) -> list[Case]:
    """One question that needs no picture, in English and Japanese, with a drawing and without."""
    pair = data()["general"][number]
    rng = np.random.default_rng([seed, 99])
    picture = draw(sample_scene(rng), rng)[0]
    return [
        made
        for shown in (picture, None)
        for made in _in_each_language("general", "", pair["en"], pair["ja"], shown, {}, seed)
        if made.factors["language"] in LANGUAGES[:2]
    ]


def photograph_cases() -> list[Case]:
    """Questions about photographs of scikit-image, with accepted answers and references.

    questions.json has the licence of each. Raises SettingError where the package is missing.
    """
    require("measure", "scikit-image", what="A question about photographs")
    from skimage import data as photographs

    made = []
    for name, questions in data()["photographs"].items():
        picture = Image.fromarray(getattr(photographs, name)()).convert("RGB")
        for number, entry in enumerate(questions):
            answer = {key: entry[key] for key in ("accept", "set", "answer") if key in entry}
            truth = answer | {"references": entry["references"], "picture": name}
            made += _in_each_language("photograph", name, entry["en"], entry["ja"], picture, truth, number)
    return made


def written_cases() -> list[Case]:
    """Japanese words in black on white, in the face IPAexGothic. Raises SettingError where its package is missing."""
    file = japanese_face("A picture of Japanese text")
    font = ImageFont.truetype(str(file), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
    made, ask = [], data()["ask_written"]
    for number, word in enumerate(data()["written"]):
        picture = Image.new("RGB", CANVAS, "white")
        ImageDraw.Draw(picture).text((CANVAS[0] // 2, CANVAS[1] // 2), word, "black", font, anchor="mm")
        made += _in_each_language("written", "", ask["en"], ask["ja"], picture, {"text": word}, number)
    return made


def _in_each_language(part, skill, english: str, japanese: str, picture, truth: dict, seed: int) -> list[Case]:
    questions = dict(zip(LANGUAGES, (english, japanese, japanese + data()["in_japanese"]), strict=True))
    made = []
    for language, question in questions.items():
        cell = Cell(part, skill, language, picture is not None)
        name = "/".join(str(value) for value in (*asdict(cell).values(), seed))
        made.append(Case(name, picture, question, asdict(cell), truth, seed))
    return made


def named(reply: str, topic: str, question: str = "") -> set[str]:
    """Which members of a closed set of questions.json a reply gives, in English or Japanese, and does not deny.

    Of numbers, any. "truth" is yes or no, and needs the question, whose subject a reply without such a word repeats.
    Raises SettingError where the analyser of Japanese is missing.
    """
    return set(_named(reply, topic, question))


@lru_cache(maxsize=20_000)  # a chance level compares each answer with every other truth
def _named(reply: str, topic: str, question: str) -> frozenset[str]:
    terms = data()["terms"]
    if topic == "truth":
        return frozenset(yes_or_no(reply, question, terms["kinds"] | terms["others"]))
    if topic == "numbers":
        return frozenset(numbers(reply))
    # Other things come along, so that お茶 (tea) is not taken for 茶 (brown).
    found = mentioned(reply, terms["others"] | terms[topic], beside=terms["kinds"] if topic == "places" else None)
    found &= terms[topic].keys()
    if topic == "kinds" and len(found) > 1 and WOODEN.search(reply):
        found -= {"tree"}
    return frozenset(found)


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

    imp-nano is asked about drawings only. Raises RunError, SettingError (also where the analyser of Japanese is
    missing), and what loading a checkpoint raises.
    """
    need_analyser()  # before the model is asked
    subject = Subject.of(who, device=device, dtype=dtype, revision=revision)
    chosen = cases(size, seed, real=subject.identity["checkpoint"] != NANO)
    design = {"size": size, "seed": seed}
    return samples(record.run(NAME, chosen, subject, out, settings=SETTINGS, design=design, score=score))


def is_right(reply: str, answer_kind: str, expected: str, question: str = "") -> bool:
    """Whether a reply gives the expected answer: that of a closed set and no other, or one that is accepted."""
    if answer_kind == "written":
        return scores.contains(reply, expected)
    if answer_kind == "accepted":
        terms = expected.split(ALTERNATIVE)
        latin = [term for term in terms if term.isascii()]
        return bool(mentioned(reply, {"right": {"en": latin, "ja": [term for term in terms if term not in latin]}}))
    return _named(reply, answer_kind, question) == {expected}


@lru_cache(maxsize=100)
def _alone(terms: tuple[str, ...]) -> frozenset[str]:
    """What is a Japanese answer without kana: one of the terms alone, or 色 and the like after it."""
    return frozenset(scores.normalise(term + ending) for term in terms for ending in ("", "側", "部", "色"))


@dataclass(frozen=True)
class Sample:
    """One answered sample, scored."""

    id: str
    cell: Cell
    seed: int
    question: str
    truth: dict
    reply: str
    finish: str | None
    tokens: int | None
    seconds: float | None

    @property
    def answer_kind(self) -> str | None:
        """What the true answer is: a member of a closed set, named by it, "written" or "accepted"; None without one."""
        if "set" in self.truth:
            return self.truth["set"]
        if "accept" in self.truth:  # early runs have yes or no there, too
            return "truth" if isinstance(self.truth["accept"], str) else "accepted"
        return "written" if self.cell.part == "written" else None

    @property
    def expected(self) -> str | None:
        """The true answer, or those that are accepted; None where there is none."""
        accept = self.truth.get("accept", self.truth.get("answer", self.truth.get("text")))
        return ALTERNATIVE.join((*accept["en"], *accept["ja"])) if isinstance(accept, dict) else accept

    @property
    def right(self) -> bool | None:
        """Whether the answer is right, in whichever language; None where there is no true one."""
        if self.answer_kind is None:
            return None
        return is_right(self.reply, self.answer_kind, self.expected, self.question)

    @property
    def japanese(self) -> bool:
        """Whether the reply is in Japanese; a bare accepted word counts, kana or not."""
        plain = scores.normalise(self.reply)
        if self.answer_kind == "numbers":  # digits alone are in no language; they are in the one that was asked
            alone = (NUMBER if self.cell.language == "English" else NUMBER_OR_DIGITS).fullmatch(plain) is not None
        elif self.answer_kind == "accepted":
            alone = plain in _alone(tuple(self.truth["accept"]["ja"]))
        elif self.answer_kind == "written":
            alone = plain == scores.normalise(self.truth["text"])
        elif self.answer_kind:
            alone = plain in _alone(tuple(t for each in data()["terms"][self.answer_kind].values() for t in each["ja"]))
        else:
            alone = plain in _alone(tuple(data()["accept_general"]))
        return alone or scores.is_japanese(self.reply)

    @property
    def shown(self) -> str:
        """What the sample is about: questions with the same name share a picture, in whichever language."""
        return self.cell.skill if self.cell.part == "photograph" else f"{self.cell.part} {self.cell.skill} {self.seed}"

    @property
    def repetition(self) -> float:
        return scores.repetition(self.reply)

    @property
    def bridged(self) -> str | None:
        """The Japanese word for the closed-set answer that an English reply gives, by dictionary; None if not one."""
        if self.cell.part != "scene" or self.cell.language != "English":
            return None
        names, found = data()["terms"][self.truth["set"]], named(self.reply, self.truth["set"], self.question)
        return names[found.pop()]["ja"][0] if len(found) == 1 and found <= names.keys() else None


def score(answered: dict) -> dict:
    """What a run writes beside an answer for other readers of its file; the kit itself scores the answer anew."""
    (sample,) = samples([answered])
    at_end, inside = scores.replacements(sample.reply)
    found = {"right": sample.right, "japanese": sample.japanese, "repetition": sample.repetition}
    found |= {"replaced_at_end": at_end, "replaced_inside": inside}
    extracted = sample.reply
    if sample.cell.part == "scene":
        extracted = sorted(named(sample.reply, sample.truth["set"], sample.question))
    return {"extracted": extracted, "scores": found}


def samples(records: Sequence[dict]) -> list[Sample]:
    """The answered samples of a run; failed ones have no score."""
    return [
        Sample(
            id=record["sample_id"],
            cell=Cell(**record["factors"]),
            seed=record["seed"],
            question=record["question"],
            truth=record["truth"],
            reply=record["answer"],
            finish=record.get("finish"),
            tokens=record.get("tokens"),
            seconds=record.get("seconds"),
        )
        for record in records
        if record["status"] == "ok"
    ]


# This probe's columns of a frame, see frames.py.
COLUMNS = {
    "part": "string[python]",
    "skill": "string[python]",
    "language": "string[python]",
    "picture": "bool",
    "shown": "string[python]",
    "answer_kind": "string[python]",
    "expected": "string[python]",
    "references": "string[python]",
    "right": "boolean",
    "japanese": "bool",
    "both": "boolean",
    "bridged": "string[python]",
    "characters": "int64",
    "repetition": "float64",
    "replaced_inside": "int64",
    "replaced_at_end": "int64",
}


def row(sample: Sample) -> dict:
    """One sample's values of COLUMNS."""
    at_end, inside = scores.replacements(sample.reply)
    right, japanese = sample.right, sample.japanese
    return asdict(sample.cell) | {
        "shown": sample.shown,
        "answer_kind": sample.answer_kind,
        "expected": sample.expected,
        "references": ALTERNATIVE.join(sample.truth.get("references", ())) or None,
        "right": right,
        "japanese": japanese,
        "both": None if right is None else right and japanese,
        "bridged": sample.bridged,
        "characters": len(sample.reply),
        "repetition": sample.repetition,
        "replaced_inside": inside,
        "replaced_at_end": at_end,
    }


def by_language(frame: "DataFrame") -> "dict[str, DataFrame]":
    """The rows of each language that has any, in the order of LANGUAGES."""
    return {language: rows for language in LANGUAGES if len(rows := frame[frame.language == language])}


def pairs(frame: "DataFrame", language: str = LANGUAGES[1]) -> "DataFrame":
    """What was asked in English beside the same in another language, whose columns end with "_other"."""
    english, other = (frame[frame.language == each] for each in (LANGUAGES[0], language))
    return english.merge(other, on=["part", "skill", "picture", "shown", "seed"], suffixes=("", "_other"))


RATING_COLUMNS = ("reply_id", "question", "reply", "rating")


def _reply_id(sample: Sample) -> str:
    """A name for a rater's table that does not reveal the condition, as the sample's own does."""
    return hashlib.sha256(sample.id.encode()).hexdigest()[:12]


def write_form(chosen: Sequence[Sample], file: str | os.PathLike, seed: int = 0) -> None:
    """Write a table for people who rate replies to Japanese questions, 0 to 3, without knowing what was asked how.

    The request to answer in Japanese is left out of the questions, and the rows are shuffled. An existing file is left
    as it is, with whatever was rated in it.
    """
    asked = [s for s in chosen if s.cell.language != "English"]
    rows = [[_reply_id(s), s.question.removesuffix(data()["in_japanese"]), s.reply, ""] for s in asked]
    np.random.default_rng(seed).shuffle(rows)
    if not Path(file).exists():
        table = io.StringIO()
        csv.writer(table).writerows([RATING_COLUMNS, *rows])
        write_whole(file, table.getvalue())


def read_ratings(chosen: Sequence[Sample], file: str | os.PathLike) -> list[tuple[Sample, int]]:
    """The samples that have a rating in the table, with it. Raises SettingError for one that is not 0 to 3."""
    by_id, rated = {_reply_id(s): s for s in chosen}, []
    with open(file, newline="", encoding="utf-8-sig") as table:  # Excel puts a mark before the text
        rows = csv.DictReader(table)
        if not {"reply_id", "rating"} <= set(rows.fieldnames or ()):
            raise SettingError(f"{file} has no columns reply_id and rating; delete it for a new form.")
        for row in rows:
            rating = (row["rating"] or "").strip()
            if rating and rating not in ("0", "1", "2", "3"):
                raise SettingError(f"{file}: the rating of {row['reply_id']} is {rating!r}; give 0, 1, 2 or 3.")
            if rating and row["reply_id"] in by_id:
                rated.append((by_id[row["reply_id"]], int(rating)))
    return rated


@dataclass(frozen=True)
class Chain:
    """The chain of scores of one condition, and how the replies look."""

    right: Share | None  # in any language
    japanese: Share
    both: Share | None
    cut: Share | None  # stopped by the limit of tokens; None where nothing says so
    replaced_inside: int  # replies with U+FFFD inside,
    replaced_at_end: int  # and at the end, where the limit cut a character
    repetition: Estimate  # mean
    tokens_a_character: Estimate | None  # None where nothing was counted
    seconds_a_character: Estimate | None


def chain(rows: "DataFrame") -> Chain:
    """The figures of samples of one condition. Raises SettingError where there are none."""
    if rows.empty:
        raise SettingError("There are no answered samples of this condition.")
    judged, ended = rows[rows.right.notna()], rows[rows.finish.notna()]
    return Chain(
        right=share_of(judged.right) if len(judged) else None,
        japanese=share_of(rows.japanese),
        both=share_of(judged.both) if len(judged) else None,
        cut=share_of(ended.finish == "length") if len(ended) else None,
        replaced_inside=int((rows.replaced_inside > 0).sum()),
        replaced_at_end=int((rows.replaced_at_end > 0).sum()),
        repetition=bounded_mean(rows.repetition, rows.shown),
        tokens_a_character=_a_character(rows, "tokens"),
        seconds_a_character=_a_character(rows, "seconds"),
    )


def _a_character(rows: "DataFrame", name: str) -> Estimate | None:
    """Tokens or seconds over the characters of the replies that have them."""
    counted = rows[rows[name].notna()]
    return bootstrap(counted[[name, "characters"]], counted.shown) if counted.characters.any() else None


def chance(rows: "DataFrame") -> float | None:
    """How often replies are right of other items with the same kind of answer: what "right" gives for nothing.

    None where there are no two such items.
    """
    hits = [
        is_right(answer, kind, expected, question)
        for (_, kind), alike in rows.groupby(["part", "answer_kind"])
        for one, (answer, question) in enumerate(zip(alike.answer, alike.question, strict=True))
        for other, expected in enumerate(alike.expected)
        if one != other
    ]
    return float(np.mean(hits)) if hits else None
