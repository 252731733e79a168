"""The reading probe: distorted codes and the captions below them. Which samples there are, and what answers are worth.

The pictures are captcha.py's. A cell is one condition; the same seeds are drawn in every cell, so that conditions are
compared on the same codes. Scores come from a run's records alone.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from PIL import Image

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
from imp_kit.experiments.runs import Case, Subject
from imp_kit.experiments.stats import Estimate, Share, bootstrap, bounded_mean, wilson
from imp_kit.system.extras import require

NAME = "captcha"
SETTINGS = {"max_new_tokens": 60}
SAMPLES = {"smoke": 2, "standard": 60, "full": 100}  # of each cell
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
LURE_LEVELS = (0, 2)
CONTROLS = ("blank", "noise", "withheld")
KINDS_OF_TEXT = ("word", "pseudo-word", "mixed letters")  # the others have the word's letters in another order
CHARSETS = {"digits": "34679", "letters": "".join(c for c in CHARSET if c.isalpha())}
WORD_LENGTH = 6
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

    level: int = 0  # of captcha.LEVELS
    caption: str = "none"  # of CAPTIONS
    question: str = "open"  # of QUESTIONS
    changed: str = ""  # the one thing that differs from the level: of FACTORS, or "length", "charset", "text",
    value: str | float = ""  # "glyph height", "shape" or "control"; and its value


def cells(size: str) -> list[Cell]:
    """The conditions of a run of this size: smoke, standard or full. Raises SettingError."""
    if size not in SAMPLES:
        raise SettingError(f"The size is {size!r}; choose {', '.join(SAMPLES)}.")
    if size == "smoke":
        lure = [Cell(caption="true"), Cell(caption="alone")]
        return [Cell(), Cell(level=2), Cell(level=4), *lure, Cell(changed="control", value="blank")]
    full = size == "full"
    ladder = [Cell(level=level) for level in range(len(LEVELS))]
    lure = [
        Cell(level=level, caption=caption, question=question)
        for level in LURE_LEVELS
        for caption in CAPTIONS
        for question in (QUESTIONS if full else ("open",))
    ]
    # What a prompt can do against the lure, where the code can be read.
    lure += [Cell(caption="true", question=question) for question in QUESTIONS]
    controls = [
        Cell(question=question, changed="control", value=control)
        for control in CONTROLS
        for question in (QUESTIONS if full else ("open",))
    ]
    # Around a clean code, too: one that is not read at L2 shows no factor.
    factors = [cell for base in ((0, 2) if full else (0,)) for cell in _factors(base, full)]
    return list(dict.fromkeys((*ladder, *lure, *factors, *controls)))


def _factors(base: int, full: bool) -> list[Cell]:
    chosen = {"text": KINDS_OF_TEXT, "glyph height": [h for h in GLYPH_HEIGHTS if h != GLYPH_HEIGHT]}
    if full:
        chosen |= {"length": (4, 6), "charset": tuple(CHARSETS), "shape": ("padded", "cropped")}
    for name in FACTORS if full else ("rotation",):
        own = getattr(LEVELS[base], name)
        chosen[name] = [value for level in LEVELS if (value := getattr(level, name)) != own]
    return [Cell(level=base, changed=name, value=value) for name, values in chosen.items() for value in values]


def cases(size: str, seed: int, only: Sequence[Cell] | None = None) -> list[Case]:
    """All samples of a run, or those of `only` some cells. Raises SettingError for an unknown size or a bad seed."""
    if not isinstance(seed, int) or seed < 0:
        raise SettingError(f"The seed is {seed!r}; give a whole number from 0.")
    chosen = [cell for cell in cells(size) if only is None or cell in only]
    return [case(cell, 1000 * seed + number) for cell in chosen for number in range(_count(cell, size))]


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
    """The letters of a word in another order: vowels among consonants, which can be spoken, or all behind them."""
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

    `only` leaves out all other cells, for now: a later run in the same folder can ask them. Raises RunError,
    SettingError, and what loading a checkpoint raises.
    """
    require("measure", "matplotlib", "rapidfuzz", what="The reading probe")  # before anything is asked
    chosen = cases(size, seed, only)
    subject = Subject.of(who, device=device, dtype=dtype, revision=revision)
    design = {"size": size, "seed": seed}
    return samples(record.run(NAME, chosen, subject, out, settings=SETTINGS, design=design, score=score))


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
    names = ["invented"]
    if sample.code:
        names = ["exact", "strict", "contained", "errors", "edit_share", "position"]
    if sample.caption:
        names += ["outcome"]
    return {"extracted": sample.read, "scores": {name: getattr(sample, name) for name in names}}


@dataclass(frozen=True)
class Summary:
    """One condition's figures, each with its interval over the pictures."""

    cell: Cell
    exact: Share  # the extracted text is the code
    strict: Share  # the whole reply is the code
    contained: Share  # the code stands somewhere in the reply,
    chance: float  # which happens so often by chance
    errors: Estimate  # CER, micro-averaged
    edit_share: Estimate
    edit_share_chance: float
    position: Estimate
    position_chance: float


def summarise(chosen: Sequence[Sample]) -> Summary:
    """The figures of samples that show a code, all of one condition. Raises SettingError where there are none."""
    if not chosen:
        raise SettingError("There are no answered samples of this condition.")
    count = len(chosen)
    shares = (wilson(sum(getattr(s, name) for s in chosen), count) for name in ("exact", "strict", "contained"))
    codes, reads = [s.code for s in chosen], [s.read for s in chosen]
    return Summary(
        chosen[0].cell,
        *shares,
        chance=scores.chance_level([s.reply for s in chosen], codes),
        errors=bootstrap(scores.error_counts(zip(reads, codes, strict=True)), range(count)),
        edit_share=bounded_mean([s.edit_share for s in chosen], range(count)),
        edit_share_chance=scores.chance_level(reads, codes, scores.edit_share),
        position=bounded_mean([s.position for s in chosen], range(count)),
        position_chance=scores.chance_level(reads, codes, scores.position_accuracy),
    )


def select(all_samples: Sequence[Sample], wanted: Callable[[Cell], bool]) -> dict[Cell, list[Sample]]:
    """The samples of the cells that are wanted, by cell, in the run's order."""
    found: dict[Cell, list[Sample]] = {}
    for sample in all_samples:
        if wanted(sample.cell):
            found.setdefault(sample.cell, []).append(sample)
    return found


def ladder(all_samples: Sequence[Sample]) -> list[list[Sample]]:
    """Codes without a caption, by level."""
    return list(select(all_samples, lambda c: (c.caption, c.question, c.changed) == ("none", "open", "")).values())


def lure(all_samples: Sequence[Sample]) -> list[list[Sample]]:
    """Codes with a caption of any kind, or a caption alone, by cell; and the same codes without."""
    levels = {s.cell.level for s in all_samples if s.cell.caption not in ("none", "alone")}
    rows = select(all_samples, lambda c: c.level in levels and not c.changed).values()
    questions, captions = list(QUESTIONS), list(CAPTIONS)

    def place(row: list[Sample]) -> tuple[int, int, int]:
        cell = row[0].cell
        return cell.level, questions.index(cell.question), captions.index(cell.caption)

    return sorted(rows, key=place)


def factor(all_samples: Sequence[Sample], name: str, base: int) -> dict[str | float, list[Sample]]:
    """Samples by the value of one factor around a level, the level's own value among them where it has one."""
    plain = lambda c: (c.level, c.caption, c.question) == (base, "none", "open")  # noqa: E731
    found = {c.value: rows for c, rows in select(all_samples, lambda c: plain(c) and c.changed == name).items()}
    own = {
        **{name: getattr(LEVELS[base], name) for name in FACTORS},
        "glyph height": GLYPH_HEIGHT,
        "length": LENGTH,
        "charset": "both",
        "shape": "squashed",
    }
    if found and name in own:
        found[own[name]] = next(iter(select(all_samples, lambda c: plain(c) and not c.changed).values()), [])
    if all(isinstance(value, int | float) for value in found):
        found = dict(sorted(found.items()))
    return {value: rows for value, rows in found.items() if rows}


def pairs(one: Sequence[Sample], other: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The samples of two conditions that have the same seed, in the same order."""
    by_seed = {sample.seed: sample for sample in other}
    both = [sample for sample in one if sample.seed in by_seed]
    return both, [by_seed[sample.seed] for sample in both]
