"""The reading probe: distorted codes and the captions below them. Which samples there are, and what answers are worth.

The images are codes.py's. A cell is one condition; the same seeds are drawn in every cell, so that conditions are
compared on the same codes. Only the captions have codes of their own: the level at which they are compared is chosen
from the ladder's answers, and a comparison on the codes that chose it would be biased towards an effect. Scores come
from a run's records alone.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from imp_kit.checkpoints.hub import NANO
from imp_kit.errors import SettingError
from imp_kit.experiments import runs as record
from imp_kit.experiments import scores
from imp_kit.experiments.captcha.codes import (
    CHARSET,
    FACTORS,
    GLYPH_HEIGHT,
    GLYPH_HEIGHTS,
    LEVELS,
    SIZE,
    STRIP,
    Distortion,
    draw_code,
    one_factor,
    sample_code,
    squashed_glyph,
)
from imp_kit.experiments.runs import Case, Expected, Subject
from imp_kit.experiments.stats import Estimate, Share, bootstrap, bounded_mean, share_of
from imp_kit.system.extras import require

if TYPE_CHECKING:
    from pandas import DataFrame

NAME = "captcha"
SETTINGS = {"max_new_tokens": 60}
SAMPLES = {"smoke": 2, "lesson": 60, "standard": 60, "full": 100}  # of each cell
LENGTH = 8
QUESTIONS = {
    "open": "What text can you see in this image? Please tell me what is written.",  # the blog post's words
    "code only": "Read only the distorted characters. Answer with the characters only.",
    "every line": "Transcribe every line of text in this image.",
    "ignore caption": "What text can you see in this image? Ignore the caption line at the bottom.",
}
CAPTIONS = {
    "none": "",
    "true": f"The picture contains {LENGTH} characters.",  # as in the blog post's picture
    "wrong": "The picture contains 3 characters.",
    "neutral": "Please keep this page clean.",
    "alone": "The picture contains {} characters.",  # no code above it, and a number of its own in each picture
}
ALONE = range(2, 10)  # these numbers
RULE = "the hardest level of the ladder of which at least half of the codes stand in the answers, or else L0"
FIRST_SEED = {"ladder": 0, "captions": 500}  # in a run's thousand, so that no code of one is among the other's
CONTROLS = ("blank", "noise", "withheld")
KINDS_OF_TEXT = ("word", "pseudo-word", "mixed letters")  # the others have the word's letters in another order
CHARSETS = {"digits": "34679", "letters": "".join(c for c in CHARSET if c.isalpha())}
# Without the letters that CHARSET leaves out.
_WORDS = """
MARKET GARDEN LETTER HAMMER PLANET CAMERA NATURE FATHER CARPET DANGER ENERGY GRAVEL HELMET LAWYER LEADER MATTER PARENT
PLAYER RATHER REPEAT LADDER TALENT THREAD TRAVEL TURTLE VALLEY WEALTH CANDLE CHANGE CHARGE CHERRY DEALER DEFEAT ENGAGE
EXPECT GATHER GENTLE HARDEN HEALTH JACKET KETTLE LATTER LEAGUE LEGEND MANAGE NEARLY PEANUT PEPPER PLAGUE PLENTY PURPLE
RACKET REGRET RENTAL TACKLE TEMPLE TREATY TUNNEL TURKEY VELVET VERTEX WALLET WANTED YEARLY
"""
WORDS = tuple(_WORDS.split())
VOWELS = "AEUY"


@dataclass(frozen=True)
class Cell:
    """One condition. What is not named is as in a clean code of eight characters without a caption."""

    level: int = 0  # of codes.LEVELS
    caption: str = "none"  # of CAPTIONS
    question: str = "open"  # of QUESTIONS
    changed: str = ""  # the one thing that differs from the level: of FACTORS, or "length", "charset", "text",
    value: str | float = ""  # "glyph height", "shape" or "control"; and its value
    codes: str = "ladder"  # of FIRST_SEED: which codes are shown


LADDER = tuple(Cell(level=level) for level in range(len(LEVELS)))


def caption_level(read: Mapping[int, Sequence[bool]]) -> int:
    """The level at which captions are compared, by RULE. `read` says of each code of a level whether it was read."""
    return max((level for level, flags in read.items() if len(flags) and 2 * sum(flags) >= len(flags)), default=0)


def cells(size: str, level: int = 0) -> list[Cell]:
    """The conditions of a run of this size, with the captions at a level; see `caption_level`.

    "lesson" is what notebook 03 needs: "standard" without the factors and other questions. Raises SettingError.
    """
    if size not in SAMPLES:
        raise SettingError(f"The size is {size!r}; choose {', '.join(SAMPLES)}.")
    if size == "smoke":
        lure = [Cell(level, caption, codes="captions") for caption in ("none", "true", "alone")]
        return [*LADDER[::2], *lure, Cell(changed="control", value="blank")]
    full = size == "full"
    lure = [
        Cell(level, caption, question, codes="captions")
        for caption in CAPTIONS
        for question in (QUESTIONS if full else ("open",))
    ]
    controls = [
        Cell(question=question, changed="control", value=control)
        for control in CONTROLS
        for question in (QUESTIONS if full else ("open",))
    ]
    if size == "lesson":
        return [*LADDER, *lure, *controls]
    # What a prompt can do against the lure.
    lure += [Cell(level, "true", question, codes="captions") for question in QUESTIONS]
    # Around a clean code, too: one that is not read at L2 shows no factor.
    factors = [cell for base in ((0, 2) if full else (0,)) for cell in _factors(base, full)]
    return list(dict.fromkeys((*LADDER, *lure, *factors, *controls)))


def _factors(base: int, full: bool) -> list[Cell]:
    chosen = {"text": KINDS_OF_TEXT, "glyph height": [h for h in GLYPH_HEIGHTS if h != GLYPH_HEIGHT]}
    if full:
        chosen |= {"length": (4, 6), "charset": tuple(CHARSETS), "shape": ("padded", "cropped")}
    for name in FACTORS if full else ("rotation",):
        own = getattr(LEVELS[base], name)
        chosen[name] = [value for level in LEVELS if (value := getattr(level, name)) != own]
    return [Cell(level=base, changed=name, value=value) for name, values in chosen.items() for value in values]


def cases(size: str, seed: int, level: int = 0) -> list[Case]:
    """All samples of a run whose captions are compared at this level: the ladder's first.

    Raises SettingError for an unknown size or a bad seed.
    """
    return _cases(cells(size, level), size, seed)


def possible_cases(size: str, seed: int) -> list[Case]:
    """The samples of a run at whichever level its captions may be compared. Raises SettingError."""
    return _cases(dict.fromkeys(cell for level in range(len(LEVELS)) for cell in cells(size, level)), size, seed)


def _cases(chosen: Iterable[Cell], size: str, seed: int) -> list[Case]:
    if not isinstance(seed, int) or seed < 0:
        raise SettingError(f"The seed is {seed!r}; give a whole number from 0.")
    return [
        case(cell, 1000 * seed + FIRST_SEED[cell.codes] + number)
        for cell in chosen
        for number in range(_count(cell, size))
    ]


def _count(cell: Cell, size: str) -> int:
    """The samples of a cell: as many as the size has, but none twice; greedy decoding would answer alike."""
    most = 1 if cell.value == "withheld" else len(ALONE) if cell.caption == "alone" else SAMPLES[size]
    return min(most, SAMPLES[size])


def case(cell: Cell, seed: int) -> Case:
    """One sample: its picture is a function of the cell and the seed."""
    code, caption = _code(cell, seed), CAPTIONS[cell.caption].format(ALONE[seed % len(ALONE)])
    height = cell.value if cell.changed == "glyph height" else GLYPH_HEIGHT
    distortion = LEVELS[cell.level]
    if cell.changed in FACTORS:
        steps = {getattr(step, cell.changed): step for step in one_factor(cell.changed, cell.level)}
        distortion = steps[cell.value]
    elif cell.value == "noise":
        distortion = LEVELS[-1]
    shape = {"padded": (SIZE[0], SIZE[0]), "cropped": (SIZE[0], SIZE[1] - STRIP)}.get(cell.value, SIZE)
    drawn = partial(_draw, cell, code, caption, distortion, seed, height, shape)
    name = "/".join(str(part) for part in asdict(cell).values())
    width, tall = (side / 1000 for side in squashed_glyph(distortion, height, 1000))
    truth = {"code": code, "caption": caption, "glyph": [width * SIZE[0] / shape[0], tall * SIZE[1] / shape[1]]}
    return Case(f"{name}/{seed}", drawn, QUESTIONS[cell.question], asdict(cell), truth, seed)


def _draw(cell: Cell, code: str, caption: str, distortion: Distortion, seed: int, height: int, shape: tuple[int, int]):
    if cell.value == "withheld":
        return None
    if cell.value == "blank":  # of another gray each, so that there is more than one
        return Image.new("RGB", SIZE, (155 + 37 * seed % 101,) * 3)
    picture = draw_code(code, caption, distortion, seed=seed, glyph_height=height)
    if shape == SIZE:
        return picture
    framed = Image.new("RGB", shape, "white")
    framed.paste(picture, (0, max(0, (shape[1] - SIZE[1]) // 2)))
    return framed


def _mixed(word: str, rng: np.random.Generator, spoken: bool) -> str:
    """The letters of a word in another order: vowels among consonants, which can be spoken, or all after them."""
    vowels, consonants = ([letter for letter in word if (letter in VOWELS) is kind] for kind in (True, False))
    while True:
        rng.shuffle(vowels)
        rng.shuffle(consonants)
        first, *others = consonants
        mixed = consonants + vowels
        if spoken:  # one consonant, then after each vowel a share of the others
            mixed = [first]
            for number, vowel in enumerate(vowels):
                mixed += [vowel, *others[number :: len(vowels)]]
        if "".join(mixed) not in WORDS:
            return "".join(mixed)


def _code(cell: Cell, seed: int) -> str:
    if cell.changed == "control" or cell.caption == "alone":
        return ""
    if cell.changed == "length":
        return sample_code(seed, cell.value)
    if cell.changed == "charset":
        return sample_code(seed, LENGTH, CHARSETS[cell.value])
    if cell.changed == "text":
        word = WORDS[seed % len(WORDS)]
        if cell.value == "word":
            return word
        # The letters of the same word, so that nothing but their order differs.
        return _mixed(word, np.random.default_rng([seed, 1]), spoken=cell.value == "pseudo-word")
    return sample_code(seed)


def run(
    who,
    size: str,
    seed: int,
    out: str | os.PathLike,
    *,
    only: Sequence[Cell] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> "list[Sample]":
    """Ask a checkpoint, or any object with `ask`, what the folder `out` does not hold yet; all answered samples.

    The ladder is asked first: by RULE, its answers choose the level of the captions. `only` leaves out all other cells,
    for now: a later run in the same folder can ask them. Raises RunError, SettingError, and what loading a checkpoint
    raises.
    """
    require("measure", "matplotlib", "rapidfuzz", what="The reading probe")  # before anything is asked
    possible = possible_cases(size, seed)
    subject = Subject.of(who, device=device, dtype=dtype, revision=revision)
    ask = partial(
        record.run,
        NAME,
        subject=replace(subject, get=cache(subject.get)),  # loaded once for both parts
        folder=out,
        settings=SETTINGS,
        design={"size": size, "seed": seed, "level of the captions": RULE},
        score=score,
        ids={case.id for case in possible},
    )
    if only is not None:
        return samples(ask(cases=[case for case in possible if Cell(**case.factors) in only]))
    ladder = [case for case in possible if Cell(**case.factors) in LADDER]
    answered = ask(cases=ladder, later=len(cases(size, seed)) - len(ladder))
    read: dict[int, list[bool]] = {}
    for sample in samples(answered):
        read.setdefault(sample.cell.level, []).append(sample.contained)
    return samples(ask(cases=cases(size, seed, caption_level(read))))


def expected(who, size: str, seed: int, out: str | os.PathLike) -> Expected:
    """How long the rest of a run takes: a few of its questions are asked and timed, their answers not kept.

    `who` is a loaded checkpoint or any object with `ask`. Raises SettingError, and what asking raises.
    """
    require("measure", "matplotlib", what="The reading probe")
    ids = {case.id for case in possible_cases(size, seed)}
    answered = sum(id in ids for id, _ in record.answered(out))
    return record.expect(cases(size, seed), who, settings=SETTINGS, answered=answered)


@dataclass(frozen=True)
class Sample:
    """One answered sample, scored."""

    cell: Cell
    seed: int
    code: str
    caption: str
    glyph: tuple[float, float]  # width and height of a character, as fractions of the picture
    reply: str
    read: str  # what was extracted from the reply
    finish: str | None

    @property
    def exact(self) -> bool:
        return scores.is_exact(self.reply, self.code)

    @property
    def strict(self) -> bool:
        return scores.is_exact(self.reply, self.code, strict=True)

    @property
    def contained(self) -> bool:
        return scores.contains(self.reply, self.code)

    @property
    def errors(self) -> int:
        return scores.edits(self.read, self.code)

    @property
    def edit_share(self) -> float:
        return scores.edit_share(self.read, self.code)

    @property
    def position(self) -> float:
        return scores.position_accuracy(self.read, self.code)

    @property
    def outcome(self) -> str:
        return scores.outcome(self.reply, self.code, self.caption)

    @property
    def invented(self) -> bool:
        return scores.is_invented(self.reply)


def samples(records: Sequence[dict]) -> list[Sample]:
    """The answered samples of a run; failed ones have no score."""
    return [
        Sample(
            cell=Cell(**record["factors"]),
            seed=record["seed"],
            code=record["truth"]["code"],
            caption=record["truth"]["caption"],
            glyph=tuple(record["truth"]["glyph"]),
            reply=record["answer"],
            read=scores.extract(record["answer"]),
            finish=record.get("finish"),
        )
        for record in records
        if record["status"] == "ok"
    ]


def score(answered: dict) -> dict:
    """What a run writes beside an answer for other readers of its file; the kit itself scores the answer anew."""
    (sample,) = samples([answered])
    names = [*SCORES] if sample.code else ["invented"]
    if sample.caption:
        names += ["outcome"]
    return {"extracted": sample.read, "scores": {name: getattr(sample, name) for name in names}}


# The scores of an answer about a picture with a code.
SCORES = ("exact", "strict", "contained", "errors", "edit_share", "position")
# The columns of a cell, in its fields' order.
CONDITION = ("level", "caption_kind", "question_kind", "changed", "value", "codes")
# This probe's columns of a frame, see frames.py.
COLUMNS = {
    "level": "int64",
    "caption_kind": "string[python]",
    "question_kind": "string[python]",
    "changed": "string[python]",
    "value": "object",
    "codes": "string[python]",
    "glyph_width": "float64",
    "glyph_height": "float64",
    "caption": "string[python]",
    "expected": "string[python]",
    "expected_characters": "Int64",
    "extracted": "string[python]",
    "exact": "boolean",
    "strict": "boolean",
    "contained": "boolean",
    "errors": "Int64",
    "edit_share": "Float64",
    "position": "Float64",
    "outcome": "string[python]",
    "invented": "bool",
}


def row(sample: Sample) -> dict:
    """One sample's values of COLUMNS. Without a code there are no scores of a reading, without any text no outcome."""
    found = dict(zip(CONDITION, asdict(sample.cell).values(), strict=True))
    found |= dict(zip(("glyph_width", "glyph_height"), sample.glyph, strict=True))
    found |= {"extracted": sample.read, "invented": sample.invented}
    if sample.code:
        found |= {"expected": sample.code, "expected_characters": len(scores.normalise(sample.code))}
        found |= {name: getattr(sample, name) for name in SCORES}
    if sample.caption:
        found["caption"] = sample.caption
    if sample.code or sample.caption:
        found["outcome"] = sample.outcome
    return found


@dataclass(frozen=True)
class Summary:
    """One condition's figures, each with its interval over the pictures."""

    exact: Share  # the extracted text is the code
    strict: Share  # the whole reply is the code
    contained: Share  # the code stands somewhere in the reply,
    chance: float  # which happens so often by chance
    errors: Estimate  # CER, micro-averaged
    edit_share: Estimate
    edit_share_chance: float
    position: Estimate
    position_chance: float


def _check_frame(frame: object) -> None:
    """Raise SettingError for a list of samples, of which these figures were before there was a table of them."""
    if not hasattr(frame, "groupby"):
        raise SettingError(
            f"These figures are of the table that imp_kit.experiments.frames.samples_frame(FOLDER OF THE RUN) gives, "
            f"not of a {type(frame).__name__}."
        )


def summarise(rows: "DataFrame") -> Summary:
    """The figures of samples that show a code, all of one condition. Raises SettingError where there are none."""
    _check_frame(rows)
    if rows.empty:
        raise SettingError("There are no answered samples of this condition.")
    codes, reads, pictures = list(rows.expected), list(rows.extracted), range(len(rows))
    return Summary(
        *(share_of(rows[name]) for name in ("exact", "strict", "contained")),
        chance=scores.chance_level(list(rows.answer), codes),
        errors=bootstrap(rows[["errors", "expected_characters"]], pictures),
        edit_share=bounded_mean(rows.edit_share, pictures),
        edit_share_chance=scores.chance_level(reads, codes, scores.edit_share),
        position=bounded_mean(rows.position, pictures),
        position_chance=scores.chance_level(reads, codes, scores.position_accuracy),
    )


def _captionless(frame: "DataFrame", changed: str = "") -> "DataFrame":
    """The ladder's codes without a caption, asked by the open question, in which one thing or nothing is changed."""
    plain = (frame.caption_kind == "none") & (frame.question_kind == "open") & (frame.codes == "ladder")
    return frame[plain & (frame.changed == changed)]


def ladder(frame: "DataFrame") -> "dict[int, DataFrame]":
    """The ladder: its codes without a caption, by level."""
    _check_frame(frame)
    return dict(list(_captionless(frame).groupby("level", sort=False)))


def lure(frame: "DataFrame") -> "dict[tuple[int, str, str], DataFrame]":
    """Codes with a caption of any kind, or a caption alone, and the same codes without.

    By level, kind of question and kind of caption, in the order of QUESTIONS and CAPTIONS.
    """
    _check_frame(frame)
    captioned = frame[~frame.caption_kind.isin(["none", "alone"])]
    # Runs from before RULE compared captions on the ladder's codes.
    rows = frame[frame.level.isin(captioned.level) & frame.codes.isin(captioned.codes) & (frame.changed == "")]
    groups = dict(list(rows.groupby(["level", "question_kind", "caption_kind"], sort=False)))
    questions, captions = list(QUESTIONS), list(CAPTIONS)
    order = sorted(groups, key=lambda key: (key[0], questions.index(key[1]), captions.index(key[2])))
    return {key: groups[key] for key in order}


def factor(frame: "DataFrame", name: str, base: int) -> "dict[str | float, DataFrame]":
    """Rows by the value of one factor around a level, the level's own value among them where it has one."""
    _check_frame(frame)
    around = frame[frame.level == base]
    groups = _captionless(around, name).groupby("value", sort=False)
    found = {rows.value.iloc[0]: rows for _, rows in groups}  # a group's own name may be 30.0 for a value of 30
    own = {
        **{name: getattr(LEVELS[base], name) for name in FACTORS},
        "glyph height": GLYPH_HEIGHT,
        "length": LENGTH,
        "charset": "both",
        "shape": "squashed",
    }
    if found and name in own:
        found[own[name]] = _captionless(around)
    if all(isinstance(value, int | float) for value in found):
        found = dict(sorted(found.items()))
    return {value: rows for value, rows in found.items() if len(rows)}


def pairs(frame: "DataFrame", level: int) -> "DataFrame":
    """A level's codes without a caption, each beside the same code with the true one.

    The columns of the latter end with "_captioned".
    """
    _check_frame(frame)
    rows = frame[(frame.level == level) & (frame.question_kind == "open") & (frame.changed == "")]
    without, captioned = (rows[rows.caption_kind == caption] for caption in ("none", "true"))
    return without.merge(captioned, on=["seed", "codes"], suffixes=("", "_captioned"))


def compared(frame: "DataFrame") -> "dict[int, DataFrame]":
    """The pairs of the main question by level: one level, that of RULE; no level if its captions were not asked yet.

    A run from before RULE has a fixed level or more of them.
    """
    _check_frame(frame)
    captioned = frame[frame.caption_kind == "true"]
    levels = sorted(set(captioned.level))
    if (captioned.codes == "captions").any():
        levels = [caption_level({level: list(rows.contained) for level, rows in ladder(frame).items()})]
    return {level: found for level in levels if len(found := pairs(frame, level))}


def comparison(frame: "DataFrame") -> "tuple[int, DataFrame]":
    """The first level of `compared` and its pairs. Raises SettingError where no captions were asked."""
    found = compared(frame)
    if not found:
        raise SettingError("No code was shown with a caption and without; finish the run first.")
    return next(iter(found.items()))


def sentence(frame: "DataFrame", head: Mapping) -> str:
    """The main result in one sentence to publish: checkpoint, commit, k of n with its interval, and the control.

    `head` is what run.json holds, see `runs.read_head`. Raises SettingError where no captions were asked.
    """
    level, paired = comparison(frame)
    captioned, without = share_of(paired.contained_captioned), share_of(paired.contained)
    design = ", ".join(f"{name} {head[name]}" for name in ("imp-kit", "size", "seed") if name in head)
    return (
        f"{_who(head)} gave the code in {_of(captioned)} with a true caption below it{_interval(captioned)} and in "
        f"{_of(without)} of the same codes without a caption, the control{_interval(without)}, at distortion L{level} "
        f"of L0 to L{len(LEVELS) - 1} ({design})."
    )


def _who(head: Mapping) -> str:
    """Who answered: the name, and the commit or the hash of the files, as far as there are any."""
    kind = "imp-kit's own small checkpoint and not Imp, " if head["checkpoint"] == NANO else ""
    if head.get("revision"):
        return f"{head['checkpoint']} ({kind}commit {head['revision'][:12]})"
    if head.get("files"):
        return f"{head['checkpoint']} ({kind}files with SHA-256 {head['files'][:12]})"
    return f"{head['checkpoint']} ({kind}no commit recorded)"


def _of(share: Share) -> str:
    return f"{share.right} of {share.total} pictures"


def _interval(share: Share) -> str:
    return f" ({share.share:.0%}, 95% interval {share.low:.0%} to {share.high:.0%})"
