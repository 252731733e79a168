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
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import resources
from importlib.util import find_spec
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
from imp_kit.experiments.runs import Case, Subject
from imp_kit.experiments.stats import Estimate, Share, bootstrap, bounded_mean, share_of
from imp_kit.system.extras import require

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
            truth = {"accept": entry["accept"], "references": entry["references"], "picture": name}
            made += _in_each_language("photograph", name, entry["en"], entry["ja"], picture, truth, number)
    return made


def written_cases() -> list[Case]:
    """Japanese words in black on white, in the face IPAexGothic. Raises SettingError where its package is missing."""
    require("measure", "matplotlib-fontja", what="A picture of Japanese text")
    # Found, not imported: importing it would change the face of every later plot.
    (file,) = Path(find_spec("matplotlib_fontja").origin).parent.rglob("ipaexg.ttf")
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


def named(reply: str, topic: str) -> set[str]:
    """Which members of a closed set of questions.json a reply names, in English or Japanese."""
    if topic == "truth":
        return _yes_or_no(_plain(reply))
    terms = data()["terms"]
    # What a thing is like or made of is not the thing; and the 三 of 三角, which was asked about, is no number.
    aside = ["四角い", "丸い", "木の"]
    if topic != "kinds":
        aside = [term for forms in terms["kinds"].values() for term in forms["ja"]]
    return mentioned(reply, terms[topic], aside)


def mentioned(reply: str, names: dict[str, dict], aside: Sequence[str] = ()) -> set[str]:
    """Which names have one of their terms in a reply, in English or Japanese, once what is `aside` is taken out.

    Longer terms are looked for first and taken out, so that "top left" names no "left" and 左上 no 左.
    """
    text, found = _plain(reply), set()
    for term in sorted(aside, key=len, reverse=True):
        text = text.replace(term, " " * len(term))
    terms = [(term, name) for name, forms in names.items() for key in ("en", "ja") for term in forms[key]]
    for term, name in sorted(terms, key=lambda pair: -len(pair[0])):
        at = _find(text, term)
        while at >= 0:
            found.add(name)
            text = text[:at] + " " * len(term) + text[at + len(term) :]
            at = _find(text, term)
    return found


def _plain(reply: str) -> str:
    return f" {unicodedata.normalize('NFKC', reply).lower().replace('-', ' ')} "


YES = re.compile(r"^\W*(?:yes\b|はい(?:\W|$))")
NO = re.compile(r"^\W*(?:no\b|いいえ(?:\W|$))")
# Without such a word: that something is there or is as asked, or that it is not.
IS = re.compile(r"\b(?:is|are)\b(?! no\b| not\b|n't)|[がはも] ?(?:あります|います|ある|いる)|て(?:います|いる)")
IS_NOT = re.compile(
    r"\b(?:is|are|do|does|can) ?(?:no|not)\b|\b(?:is|are|do|does|ca)n['’]t\b|\bcannot\b"
    r"|[がはもて] ?(?:ありません|いません|いない|ない|見えません|写っていません|写っていない)"
)


def _yes_or_no(text: str) -> set[str]:
    """What a reply to a yes-or-no question says: by its first word, or else by what it says of being there."""
    for word, pattern in (("yes", YES), ("no", NO)):
        if pattern.search(text):
            return {word}
    if IS_NOT.search(text):
        return {"no"}
    return {"yes"} if IS.search(text) else set()


def _find(text: str, term: str) -> int:
    """Where a term stands; one in Latin letters or digits must be a word, with an English plural allowed."""
    at = text.find(term)
    while at >= 0 and term.isascii():
        before, after = text[at - 1], text[at + len(term) :]
        if not (before.isascii() and before.isalnum()):
            for ending in ("", "s", "es"):
                rest = after[len(ending) : len(ending) + 1]
                if after.startswith(ending) and not (rest.isascii() and rest.isalnum()):
                    return at
        at = text.find(term, at + 1)
    return at


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

    imp-nano is asked about drawings only. Raises RunError, SettingError, and what loading a checkpoint raises.
    """
    subject = Subject.of(who, device=device, dtype=dtype, revision=revision)
    chosen = cases(size, seed, real=subject.identity["checkpoint"] != NANO)
    design = {"size": size, "seed": seed}
    return samples(record.run(NAME, chosen, subject, out, settings=SETTINGS, design=design, score=score))


def is_right(reply: str, answer_kind: str, expected: str) -> bool:
    """Whether a reply gives the expected answer: that of a closed set and no other, or one that is accepted."""
    if answer_kind == "written":
        return scores.contains(reply, expected)
    if answer_kind == "accepted":
        return bool(mentioned(reply, {"right": {"en": expected.split(ALTERNATIVE), "ja": []}}))
    return named(reply, answer_kind) == {expected}


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
        if self.cell.part == "photograph":
            return "truth" if isinstance(self.truth["accept"], str) else "accepted"
        return {"scene": self.truth.get("set"), "written": "written"}.get(self.cell.part)

    @property
    def expected(self) -> str | None:
        """The true answer, or those that are accepted; None where there is none."""
        accept = self.truth.get("accept", self.truth.get("answer", self.truth.get("text")))
        return ALTERNATIVE.join((*accept["en"], *accept["ja"])) if isinstance(accept, dict) else accept

    @property
    def right(self) -> bool | None:
        """Whether the answer is right, in whichever language; None where there is no true one."""
        return None if self.answer_kind is None else is_right(self.reply, self.answer_kind, self.expected)

    @property
    def japanese(self) -> bool:
        """Whether the reply is in Japanese; a bare accepted word counts, kana or not."""
        accepted = data()["accept_general"]
        if self.cell.part == "scene":
            accepted = [term for forms in data()["terms"][self.truth["set"]].values() for term in forms["ja"]]
        elif self.cell.part == "photograph" and not isinstance(self.truth["accept"], str):
            accepted = self.truth["accept"]["ja"]
        elif self.cell.part == "written":
            accepted = [self.truth["text"]]
        if self.cell.language == "English":  # a number alone is in no language; it is in the one that was asked
            accepted = [word for word in accepted if not word.isascii()]
        return scores.is_japanese(self.reply, [word + ending for word in accepted for ending in ("", "側", "部", "色")])

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
        names, found = data()["terms"][self.truth["set"]], named(self.reply, self.truth["set"])
        return names[found.pop()]["ja"][0] if len(found) == 1 else None


def score(answered: dict) -> dict:
    """What a run writes beside an answer for other readers of its file; the kit itself scores the answer anew."""
    (sample,) = samples([answered])
    at_end, inside = scores.replacements(sample.reply)
    found = {"right": sample.right, "japanese": sample.japanese, "repetition": sample.repetition}
    found |= {"replaced_at_end": at_end, "replaced_inside": inside}
    extracted = sorted(named(sample.reply, sample.truth["set"])) if sample.cell.part == "scene" else sample.reply
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
        is_right(answer, kind, expected)
        for (_, kind), alike in rows.groupby(["part", "answer_kind"])
        for one, answer in enumerate(alike.answer)
        for other, expected in enumerate(alike.expected)
        if one != other
    ]
    return float(np.mean(hits)) if hits else None
