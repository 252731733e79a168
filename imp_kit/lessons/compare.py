"""The same images and the same words for every system, and which of their differences chance alone would make."""

import io
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from imp_kit.errors import PromptError, SettingError
from imp_kit.experiments import runs
from imp_kit.experiments.captcha import probe as captcha
from imp_kit.experiments.drawings import COLORS, KINDS
from imp_kit.experiments.japanese import probe as japanese
from imp_kit.experiments.runs import Case, Subject
from imp_kit.experiments.stats import bounded_difference, holm, mcnemar, share_of
from imp_kit.images import open_image
from imp_kit.lessons import contrastive
from imp_kit.samples import sample
from imp_kit.system.extras import require
from imp_kit.system.faces import families

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

NAME = "compare"
SIZES = {"smoke": 12, "lesson": 100, "standard": 400}  # questions
LIMIT = 60  # tokens of an answer, many more than any of the questions needs
SKILLS = {"color": "color", "shape": "kind", "count": "count", "yes_no": "yes or no"}  # of japanese's scenes
SHORT = "\nAnswer the question using a single word or phrase."  # as LLaVA-1.5's training data ask for it
REFUSAL = re.compile(
    r"\bi only know\b|\bsorry\b|\b(?:can ?not|can['’]t|unable to|won['’]t) (?:help|assist|answer|comply|provide)\b",
    re.I,
)
CANNOT = "(nothing to choose from)"  # the reply of a system that cannot write
# What an answer can be, with the color of its cell. NOT_ASKED are in no share: they say nothing about the answer.
OUTCOMES = {
    "right": "#d8f0d8",
    "wrong": "#f8d9d4",
    "refused": "#fff0bd",
    "cut off": "#fde0b8",
    "cannot be asked": "#e8e8e8",
    "failed": "#e8e8e8",
    "": "#ffffff",  # there is no rule for what is right
}
ENDED = {"length": "cut off", "refusal": "refused"}  # by how an answer ended
NOT_ASKED = ("cannot be asked", "failed")
PUBLISHED = "#e3def3"


# Questions -----------------------------------------------------------------------------------------------


def questions(size: str, seed: int) -> list[Case]:
    """Questions about drawings, one about each, with their exact answers: color, kind, count, yes or no in turn.

    Raises SettingError for an unknown size or a bad seed.
    """
    if size not in SIZES:
        raise SettingError(f"The size is {size!r}; choose {', '.join(SIZES)}.")
    if not isinstance(seed, int) or seed < 0:
        raise SettingError(f"The seed is {seed!r}; give a whole number from 0.")
    names = tuple(SKILLS)
    # The English ones of notebook 04, where five seeds in a row have the same answer to yes or no.
    drawn = ((names[i % len(names)], 1000 * seed + 5 * (i // len(names))) for i in range(SIZES[size]))
    return [japanese.scene_cases(name, number)[0] for name, number in drawn]


@dataclass(frozen=True)
class Published:
    """An answer that somebody published: about an image of their own, so it belongs to no comparison."""

    answer: str
    system: str
    image: str  # what it shows, in words
    source: str


POST = "a blog post of 2025 in Japanese, see notebooks 03 and 04"
MAN = "a photograph of a man at a door"
PUBLISHED_ANSWERS = {
    "person": Published(
        "The person in the image is a young man, possibly a boy, who is standing in front of a door. He is holding a "
        "brown box in his hands, and he appears to be bending over to get into the room.",
        "imp-v1-3b",
        MAN,
        POST,
    ),
    "code": Published(
        'The text in the image reads "The picture contains 8 characters."', "imp-v1-3b", "another distorted code", POST
    ),
    "Japanese": Published("この男は何を財いません。ねらについてです。", "imp-v1-3b", MAN, POST),
}


def posts(seed: int = 1) -> list[Case]:
    """The cases of posts about Imp: their questions, or close to them, and images of the kit; without a true answer."""
    code = captcha.case(captcha.Cell(level=2, caption="true"), seed)
    shown = {
        "bus": ("bus.png", "What are the colors of the bus in the image?"),
        "person": ("door.png", "Describe the person in the image."),
        "held": ("door.png", "What is the person holding?"),
        "code": (code.picture, code.question),
        "Japanese": ("door.png", japanese.data()["blog"]["ja"]),
        "diagram": ("diagram.png", "Describe the image in detail."),
    }
    return [
        Case(name, open_image(sample(image) if isinstance(image, str) else image), question, {}, {}, seed)
        for name, (image, question) in shown.items()
    ]


# Systems -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """A form of question whose possible answers are known; `caption` has {word}, and {} for an answer."""

    pattern: str  # its group is the word
    options: tuple[str, ...]
    caption: str


FORMS = (
    Form(r"What (?:color is|are the colors of) the (\w+)", COLORS, "a {} {word}"),
    Form(r"What is the (\w+) thing\?", tuple(kind for kind in KINDS if kind != "person"), "a {word} {}"),
    Form(r"How many (\w+) are there\?", ("one", "two", "three"), "{} {word}"),
    Form(r"Is there an? (\w+)", ("yes", "no"), "there is a {word}"),
    Form(r"What is the (person) holding\?", ("box", "cup"), "a {}"),
)


def form_of(question: str) -> tuple[Form, str]:
    """The form of a question and its word. Raises PromptError for a question whose possible answers are not known."""
    for form in FORMS:
        if found := re.match(form.pattern, question):
            return form, found[1]
    raise PromptError(f"The possible answers to {question!r:.80} are not known; choose another question.")


class Clip:
    """The two towers of notebook 06 as a subject, trained when it is asked first. It cannot write.

    It knows drawings of one large thing. Each possible answer becomes a caption, and the one that fits best wins. With
    SigLIP's loss it also says of one caption alone if it fits, so it can say no.
    """

    name = "tiny CLIP"

    def __init__(self, size: str = "lesson"):
        self.size = size if size in contrastive.SIZES else "lesson"
        self.drawings = contrastive.size_of(self.size).drawings

    @property
    def identity(self) -> dict[str, Any]:
        return {"checkpoint": self.name, "trained with": self.drawings}

    @cached_property
    def model(self) -> contrastive.TinyClip:
        return contrastive.train(contrastive.draw_pairs(self.drawings, seed=1), "sigmoid", size=self.size)

    def ask(self, image: Any, question: str, **settings: Any) -> str:
        """One of the possible answers, or CANNOT where they are not known or have words that it never saw."""
        try:
            return self._choose(image, *form_of(question))
        except PromptError:
            return CANNOT

    def _choose(self, image: Any, form: Form, word: str) -> str:
        caption = form.caption.replace("{word}", word)
        if "{}" in caption:
            return self.model.classify([image], form.options, template=caption)[0][0].answer
        fits = self.model.logits(self.model.similarities([image], [caption])) > 0
        return form.options[0] if fits else form.options[1]


class Choosing:
    """A checkpoint of the kit that does not write, but takes the likeliest of the possible answers."""

    def __init__(self, imp: Any, words: str = "{}"):
        self.imp, self.words = imp, _with_a_place(words)

    @property
    def identity(self) -> dict[str, Any]:
        return {**Subject.of(self.imp).identity, "chooses": True, "words": self.words}

    def ask(self, image: Any, question: str, **settings: Any) -> str:
        """One of the possible answers, or CANNOT where they are not known. Raises as `rank`."""
        try:
            form, _ = form_of(question)
        except PromptError:
            return CANNOT
        return self.imp.rank(image, self.words.replace("{}", question), form.options)[0].answer


class Asked:
    """A subject that is asked in other words, `words` with the question in place of {}, or without the image."""

    def __init__(self, subject: Any, words: str = "{}", *, image: bool = True):
        self.subject, self.words, self.image = subject, _with_a_place(words), image

    @property
    def identity(self) -> dict[str, Any]:
        return {**Subject.of(self.subject).identity, "words": self.words, "image": self.image}

    def ask(self, image: Any, question: str, **settings: Any) -> Any:
        """What the subject answers. Raises what it raises."""
        return self.subject.ask(*self._pair(image, question), **settings)

    def ask_many(self, pairs: Sequence[tuple[Any, str]], **settings: Any) -> list:
        """The same for several, as the subject does it; where it does not, a run asks one by one."""
        return self.subject.ask_many([self._pair(*pair) for pair in pairs], **settings)

    def _pair(self, image: Any, question: str) -> tuple[Any, str]:
        return (image if self.image else None), self.words.replace("{}", question)


def _with_a_place(words: str) -> str:
    if not isinstance(words, str) or words.count("{}") != 1:
        raise SettingError(f"words is {words!r}; give a text with one {{}} where the question goes.")
    return words


# Asking --------------------------------------------------------------------------------------------------


def run(
    subjects: Mapping[str, Any], cases: Sequence[Case], folder: str | Path, *, max_new_tokens: int = LIMIT
) -> "DataFrame":
    """Ask each subject each question that its folder below `folder` does not hold yet; a row for each answer.

    The columns: subject, id, skill, question, expected, answer, outcome (one of OUTCOMES), right (False where there is
    no rule). The answer is the error's text where asking failed; what failed is asked again by the next run. Raises
    SettingError, and RunError as `runs.run`.
    """
    require("notebooks", "pandas", what="A table of answers")
    from pandas import DataFrame

    folders = {name: re.sub(r"[^\w.-]+", "-", name).strip("-.") for name in subjects}
    if not subjects or "" in folders.values() or len(set(folders.values())) < len(folders):
        raise SettingError(f"The subjects are named {list(subjects)}; give each a name of its own, with letters in it.")
    rows = []
    for name, who in subjects.items():
        settings = {"max_new_tokens": max_new_tokens}
        records = runs.run(NAME, cases, Subject.of(who), Path(folder) / folders[name], settings=settings)
        rows += [{"subject": name, **_row(record)} for record in records]
    return DataFrame(rows)


def _row(record: dict) -> dict[str, Any]:
    found = outcome(record)
    return {
        "id": record["sample_id"],
        "skill": SKILLS.get(record["factors"].get("skill"), ""),
        "question": record["question"],
        "expected": record["truth"].get("answer", ""),
        "answer": record.get("answer", record.get("error", "")),
        "outcome": found,
        "right": found == "right",
    }


def outcome(record: dict) -> str:
    """What the answer of a record is, one of OUTCOMES; the rules were there before the first answer.

    An answer that the limit of tokens ended is cut off, and one that a server ended is refused, whatever they say so
    far. One that names the true answer and no other of its kind is right. Of the others those that decline to answer
    are refused.
    """
    if record["status"] != "ok":
        return "failed"
    if record["answer"] == CANNOT:
        return "cannot be asked"
    if record.get("finish") in ENDED:
        return ENDED[record["finish"]]
    answer, truth = record["answer"], record["truth"]
    if truth and japanese.is_right(answer, truth["set"], truth["answer"], record["question"]):
        return "right"
    if REFUSAL.search(answer):
        return "refused"
    return "wrong" if truth else ""


# Results -------------------------------------------------------------------------------------------------


def table(frame: "DataFrame") -> "DataFrame":
    """A row for each subject: how many questions it was asked, how many answers are what, and the share of right ones.

    A refusal, or an answer that was cut off, was asked, and is not right.
    """
    from pandas import DataFrame

    others = [each for each in list(OUTCOMES)[1:-1] if each != "failed" or (frame.outcome == each).any()]
    rows = []
    for name, answers in frame.groupby("subject", sort=False):
        counts, asked = Counter(answers.outcome), _asked(answers)
        right = str(share_of(asked.right)) if len(asked) else "–"
        rows.append({"": name, "asked": len(asked), "right": right, **{each: counts[each] for each in others}})
    return DataFrame(rows).set_index("").rename_axis(None)


def _asked(frame: "DataFrame") -> "DataFrame":
    return frame[~frame.outcome.isin(NOT_ASKED)]


def pairs(frame: "DataFrame", one: str, other: str) -> "DataFrame":
    """The questions that both subjects could be asked: columns `id`, `one` and `other`, True where it is right.

    Raises SettingError where there is none, or no such subject.
    """
    asked = _asked(frame)
    first, second = (asked.loc[asked.subject == name, ["id", "right"]] for name in (one, other))
    found = first.rename(columns={"right": "one"}).merge(second.rename(columns={"right": "other"}), on="id")
    if found.empty:
        raise SettingError(f"There is no question that both {one!r} and {other!r} could be asked.")
    return found


def differences(frame: "DataFrame") -> "DataFrame":
    """The first subject beside each other one: how many questions both could be asked, and only one has right.

    `difference` is what the first has more, with its 95 % interval; `p` is the exact McNemar test's, after Holm where
    there are several. Raises SettingError for less than two subjects.
    """
    from pandas import DataFrame

    first, *others = frame.subject.unique()
    if not others:
        raise SettingError(f"{first!r} is the only subject; a difference needs two.")
    rows, p_values = [], []
    for name in others:
        both = pairs(frame, first, name)
        p_values.append(mcnemar(both.one, both.other))
        rows.append(
            {
                "": f"{first} – {name}",
                "shared": len(both),
                "only the first": int((both.one & ~both.other).sum()),
                "only the second": int((both.other & ~both.one).sum()),
                "difference": f"{bounded_difference(both.one.astype(int) - both.other.astype(int), both.id):+.1%}",
            }
        )
    shown = [f"{p:.2g}" if p >= 0.0001 else "< 0.0001" for p in holm(p_values)]
    return DataFrame([{**row, "p": p} for row, p in zip(rows, shown, strict=True)]).set_index("").rename_axis(None)


def chance_to_tell(count: int, only_one: float, only_other: float) -> float:
    """How likely the exact McNemar test of `count` questions gives p < 0.05.

    In a share `only_one` of all such questions one system alone is right, in a share `only_other` the other. Raises
    SettingError for shares that are none.
    """
    require("notebooks", "scipy", what="A test's power")
    from scipy.stats import binom

    unlike = only_one + only_other
    if count < 1 or min(only_one, only_other) < 0 or not 0 < unlike <= 1:
        raise SettingError(
            f"{count} questions, and shares of {only_one} and {only_other}: give at least one question, and shares "
            "that are together above 0 and at most 1."
        )
    total = np.arange(count + 1)  # questions on which they differ
    # The largest number of the rarer kind with a p below 0.05; -1 where there is none.
    least = binom.ppf(0.025, total, 0.5)
    least = np.where(2 * binom.cdf(least, total, 0.5) < 0.05, least, least - 1)
    found = sum(binom.cdf(least, total, share / unlike) for share in (only_one, only_other))
    return float((binom.pmf(total, count, unlike) * found).sum())


# Pictures ------------------------------------------------------------------------------------------------


def examples(cases: Sequence[Case], columns: int = 4) -> Image.Image:
    """Images with their questions and true answers."""
    side = 170
    images = [ImageOps.pad(_image(case), (side, side), color="#eeeeee") for case in cases]
    titles = [f"{case.question} ({case.truth['answer']})" for case in cases]
    return contrastive.sheet(images, titles, columns, side)


def disputed(frame: "DataFrame", cases: Sequence[Case], count: int = 4) -> list[Case]:
    """The first of the cases that some subject has right and another one not."""
    shares = frame.groupby("id").right.mean()
    return [case for case in cases if 0 < shares[case.id] < 1][:count]


LETTERS, LETTER, LINE, GAP = 28, 0.072, 0.165, 0.08  # of a line of the grid; their sizes, in inches
IMAGE = 1.25  # inches, the longer side of an image in the grid


def grid(frame: "DataFrame", cases: Sequence[Case]) -> Image.Image:
    """A row for each case: its question, its image, and each subject's answer in the color of its outcome.

    What somebody published about a case stands in a column of its own, which says that it was not asked here.
    """
    require("notebooks", "matplotlib", what="A grid of answers")
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    names = list(frame.subject.unique())
    published = any(case.id in PUBLISHED_ANSWERS for case in cases)
    heads = [*names, *(["published, not asked here"] if published else [])]
    answers = {(row.subject, row.id): (row.answer, row.outcome) for row in frame.itertuples()}
    rows = [[_cell(*answers[name, case.id]) for name in names] + [_published(case)] * published for case in cases]
    shapes = [ImageOps.contain(_image(case), (300, 300)).size for case in cases]
    heights = [
        max(IMAGE * tall / 300, *(LINE * len(lines) for lines, _ in row)) + 2 * GAP + LINE + GAP
        for (_, tall), row in zip(shapes, rows, strict=True)
    ]
    left, column = IMAGE + 2 * GAP, LETTERS * LETTER + 2 * GAP
    width, height = left + column * len(heads), LINE + 2 * GAP + sum(heights)
    figure = Figure(figsize=(width, height), dpi=80)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    style: dict[str, Any] = {"va": "top", "fontsize": 9, "family": families(), "linespacing": 1.25}
    for number, head in enumerate(heads):
        axes.text(left + number * column + GAP, GAP, _plain(head), weight="bold", **style)
    top = LINE + 2 * GAP
    for case, row, (wide, tall), high in zip(cases, rows, shapes, heights, strict=True):
        axes.axhline(top, color="#999999", linewidth=0.8)
        axes.text(GAP, top + GAP / 2, _plain(case.question), color="#555555", **style)
        below, half, middle = top + LINE + GAP, IMAGE * wide / 600, left / 2
        extent = (middle - half, middle + half, below + GAP + IMAGE * tall / 300, below + GAP)
        axes.imshow(_image(case), extent=extent, aspect="auto")
        for number, (lines, color) in enumerate(row):
            x = left + number * column
            box = Rectangle((x, below), column, high - LINE - GAP, facecolor=color, edgecolor="white", linewidth=2)
            axes.add_patch(box)
            axes.text(x + GAP, below + GAP, _plain("\n".join(lines)), **style).set_clip_path(box)
        top += high
    axes.set(xlim=(0, width), ylim=(height, 0))
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file).convert("RGB").quantize(256, Image.Quantize.MEDIANCUT)  # a PNG with a third of the bytes


def _cell(answer: str, found: str) -> tuple[list[str], str]:
    """The lines and the color of a cell."""
    if found in NOT_ASKED:
        return [found], OUTCOMES[found]
    return [*([f"{found}:"] if found else []), *_wrap(answer)], OUTCOMES[found]


def _published(case: Case) -> tuple[list[str], str]:
    said = PUBLISHED_ANSWERS.get(case.id)
    if not said:
        return [], OUTCOMES[""]
    return [*_wrap(f"{said.system}, about {said.image}:"), *_wrap(said.answer)], PUBLISHED


def _wrap(text: str) -> list[str]:
    """Lines of LETTERS letters, or of half as many Japanese ones, which are twice as wide."""
    return textwrap.wrap(text, LETTERS // 2 if any(letter >= "⺀" for letter in text) else LETTERS)


def _image(case: Case) -> Image.Image:
    image = case.picture
    assert image is not None  # a question without an image is in none of these sets
    return image


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # a dollar would begin a formula


def chart(frame: "DataFrame") -> "Figure":
    """The share of right answers of each subject, by skill and of all, with 95 % intervals.

    The dashed line is a coin toss between yes and no.
    """
    require("notebooks", "matplotlib", what="A chart")
    from matplotlib.figure import Figure

    skills = [skill for skill in SKILLS.values() if (frame.skill == skill).any()]
    names = list(frame.subject.unique())
    figure = Figure(figsize=(8.5, 0.9 + 0.3 * len(names)), dpi=80, layout="constrained")
    every = figure.subplots(1, len(skills) + 1, sharey=True, squeeze=False)[0]
    asked = _asked(frame)
    for axes, skill in zip(every, [*skills, "all"], strict=True):
        for y, name in enumerate(names):
            rows = asked[(asked.subject == name) & ((asked.skill == skill) | (skill == "all"))]
            if len(rows):
                share = share_of(rows.right)
                error = [[share.share - share.low], [share.high - share.share]]
                axes.errorbar(share.share, y, xerr=error, fmt="o", capsize=3, color=f"C{y}")
            else:
                axes.text(0.5, y, "cannot be asked", ha="center", va="center", fontsize=8, color="#777777")
        if skill == SKILLS["yes_no"]:
            axes.axvline(0.5, color="#777777", linestyle="--", linewidth=1)
        axes.set(xlim=(-0.04, 1.04), ylim=(len(names) - 0.5, -0.5), title=skill, xticks=(0, 0.5, 1))
        axes.set_yticks(range(len(names)), [_plain(name) for name in names])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.grid(axis="x", alpha=0.3)
    return figure


def agreement(frame: "DataFrame", one: str, other: str) -> "Figure":
    """A square for each question that both were asked: who is right."""
    require("notebooks", "matplotlib", what="A chart")
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    both = pairs(frame, one, other)
    kinds = {
        (True, True): ("both right", "#d9d9d9"),
        (True, False): (f"only {one}", "#1f77b4"),
        (False, True): (f"only {other}", "#d95f02"),
        (False, False): ("both wrong", "#f4f4f4"),
    }
    found = [(bool(a), bool(b)) for a, b in zip(both.one, both.other, strict=True)]
    columns = 50
    height = -(-len(found) // columns)
    figure = Figure(figsize=(8.5, 0.75 + 0.17 * height), dpi=80, layout="constrained")
    axes = figure.subplots()
    for number, key in enumerate(sorted(found, key=list(kinds).index)):
        square = ((number % columns) + 0.06, number // columns + 0.06)
        axes.add_patch(Rectangle(square, 0.88, 0.88, facecolor=kinds[key][1], edgecolor="#bbbbbb", linewidth=0.5))
    axes.set(xlim=(0, columns), ylim=(height, 0), aspect="equal")
    axes.axis("off")
    counts = Counter(found)
    labels = [
        Patch(facecolor=color, edgecolor="#bbbbbb", label=f"{_plain(label)}: {counts[key]}")
        for key, (label, color) in kinds.items()
    ]
    figure.legend(handles=labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def lead(frame: "DataFrame", one: str, other: str) -> "Figure":
    """What `one` has more right than `other` after 5, 6, ... of their questions, with 95 % intervals."""
    require("notebooks", "matplotlib", what="A chart")
    from matplotlib.figure import Figure

    both = pairs(frame, one, other)
    more = (both.one.astype(int) - both.other.astype(int)).tolist()
    counts = list(range(min(5, len(more)), len(more) + 1))
    found = [bounded_difference(more[:count], range(count)) for count in counts]
    figure = Figure(figsize=(8.5, 2.6), dpi=80, layout="constrained")
    axes = figure.subplots()
    low, middle, high = np.array([(each.low, each.value, each.high) for each in found], float).T
    axes.fill_between(counts, low, high, alpha=0.25)
    axes.plot(counts, middle)
    axes.axhline(0, color="#777777", linewidth=1)
    axes.set(xlabel="questions", ylabel="difference (points)", xlim=(counts[0], counts[-1]))
    axes.set_title(f"{_plain(one)} – {_plain(other)}", fontsize=10)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:+.0f}")
    axes.grid(alpha=0.3)
    return figure
