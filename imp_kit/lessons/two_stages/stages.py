"""The tiny Imp's four lessons: looking and reading, in place of CLIP's and Phi-2's training, then Imp's two stages."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from imp_kit.errors import RunError, SettingError
from imp_kit.experiments.drawings import SHAPES
from imp_kit.experiments.stats import Share, share_of
from imp_kit.lessons.two_stages.network import TinyImp
from imp_kit.lessons.two_stages.pictures import (
    COLORS,
    DOT,
    NUMBERS,
    PLACES,
    QUESTIONS,
    START,
    STOP,
    Pair,
    ask,
    caption,
    sample_drawing,
    sample_scene,
    told,
)
from imp_kit.system.extras import require

if TYPE_CHECKING:
    from pandas import DataFrame

IGNORED = -100  # the label that torch's cross-entropy leaves out
PATCHES = 18
LONGEST_TEXT = 32  # words of a question and its answer
LONGEST_ANSWER = 21  # words: three things and the stop word
WARM_UP = 20  # steps
CHECKS = 6  # times that a stage is interrupted to ask questions
ASKED_IN_CHECKS = 40
CAPTION = "caption"  # no question: stage 1 learns captions alone
NAMES = ("the tower looks", "the decoder reads", "stage 1", "stage 2")


@dataclass(frozen=True)
class Size:
    """How much is drawn, how many steps of `batch` examples each lesson has, and how many drawings each exam."""

    drawings: int
    look: int
    read: int
    first: int
    second: int
    batch: int
    exam: int


SIZES = {
    "lesson": Size(2_500, look=800, read=400, first=250, second=500, batch=48, exam=100),
    "smoke": Size(24, look=2, read=2, first=6, second=6, batch=8, exam=8),
}


class Words:
    """A token is a whole word here: about thirty are enough."""

    def __init__(self) -> None:
        texts = [*COLORS, *SHAPES, *PLACES, *NUMBERS, DOT, "a and yes no describe the image how many things are there"]
        self.all = [START, STOP, *dict.fromkeys(" ".join([*texts, "is what color where"]).split())]
        self.number = {word: number for number, word in enumerate(self.all)}

    def ids(self, text: str) -> list[int]:
        return [self.number[word] for word in text.split()]

    def text(self, ids: Sequence[int]) -> str:
        return " ".join(self.all[id] for id in ids)


@dataclass(frozen=True)
class Check:
    """What was answered after a step of a stage: on fixed drawings, and how much was right on others."""

    stage: str
    step: int
    answers: tuple[str, ...]
    right: Share


class Course:
    """A tiny Imp with fresh weights, its drawings, and what it has learned so far.

    `size` is a key of SIZES: "smoke" is ready in seconds and learns nothing. Raises SettingError for another.
    """

    def __init__(self, size: str = "lesson", seed: int = 0):
        if size not in SIZES:
            raise SettingError(f"size is {size!r:.60}; choose one of {', '.join(map(repr, SIZES))}.")
        self.size, self.words = SIZES[size], Words()
        torch.manual_seed(seed)
        self.rng = np.random.default_rng([7, seed])
        self.model = TinyImp(len(self.words.all), longest=PATCHES + LONGEST_TEXT, patches=PATCHES)
        count = self.size.drawings + 2 * self.size.exam
        drawn = [sample_drawing(self.rng) for _ in tqdm(range(count), unit="drawing", desc="drawing")]
        self.scenes = [scene for scene, _ in drawn]
        self.pixels = torch.stack([pixels for _, pixels in drawn])
        self.features: Tensor | None = None  # of all drawings, once the tower is frozen
        self.losses: dict[str, list[float]] = {}
        self.checks: list[Check] = []
        self.exams: dict[str, dict[str, Share]] = {}

    def watched(self, stage: str) -> list[tuple[int, Pair]]:
        """Three drawings that it never learns from, and what is asked about each while it learns.

        The first is described, in stage 1 without a question, as that is learned there.
        """
        found: dict[int, Pair] = {}
        numbers = sorted(self._tests(0), key=lambda n: abs(len(self.scenes[n].things) - 2))
        for about in (CAPTION if stage == NAMES[2] else "describe", "color", "place"):
            number, pair = next(each for each in self._asked(about, numbers) if each[0] not in found)
            found[number] = pair
        return list(found.items())

    def _tests(self, part: int) -> range:
        """The drawings kept back: the first part for the checks, the second for the exams."""
        start = self.size.drawings + part * self.size.exam
        return range(start, start + self.size.exam)

    # ------------------------------------------------------------------------------- instead of CLIP and Phi-2

    def look(self) -> None:
        """Each patch learns to say which color and shape stands in its third; what says it is thrown away."""
        labels = torch.zeros(len(self.scenes), 3, 2, dtype=torch.long)  # 0 where nothing stands
        for number, scene in enumerate(self.scenes):
            for thing in scene.things:
                one = (1 + COLORS.index(thing.colors[0]), 1 + SHAPES.index(thing.kind))
                labels[number, thing.column] = torch.tensor(one)
        labels = labels.repeat_interleave(2, dim=1).repeat(1, 3, 1)  # two patches wide, in each of three rows
        width = self.model.decoder.embed.embedding_dim
        heads = nn.ModuleList(nn.Linear(width, 1 + len(names)) for names in (COLORS, SHAPES))

        def loss() -> Tensor:
            chosen = self._batch()
            patches = self.model.tower(self.pixels[chosen])
            parts = (F.cross_entropy(head(patches).mT, labels[chosen, :, i]) for i, head in enumerate(heads))
            return torch.stack(list(parts)).sum()

        self._train(NAMES[0], [self.model.tower, heads], loss, self.size.look, rate=1.5e-3)
        with torch.no_grad():
            self.features = torch.cat([self.model.tower(part) for part in self.pixels.split(100)])

    def read(self) -> None:
        """The decoder learns to sum up what texts say; it sees no image."""
        stop = self.words.ids(STOP)

        def loss() -> Tensor:
            rows = []
            for _ in range(self.size.batch):
                scene = sample_scene(self.rng)
                said = self.words.ids(f"{told(scene, self.rng, PATCHES)} {START}")
                rows.append((said, self.words.ids(caption(scene)) + stop))
            ids, labels = learned(rows)
            return next_word_loss(self.model.decoder(self.model.decoder.embed(ids)), labels)

        self._train(NAMES[1], [self.model.decoder], loss, self.size.read, rate=2e-3)

    # ------------------------------------------------------------------------------------------ Imp's two stages

    def stage_one(self) -> None:
        """The projector alone learns, from captions; the tower and the decoder stay as they are.

        Raises SettingError after stage 2, which changed the decoder.
        """
        if NAMES[3] in self.losses:
            raise SettingError("Stage 2 was here already; make a new Course, and run the cells from there on again.")
        self._train(NAMES[2], [self.model.projector], self._caption_loss, self.size.first, rate=1e-2)

    def stage_two(self) -> None:
        """The projector and the decoder learn from questions and answers."""
        modules = [self.model.projector, self.model.decoder]
        self._train(NAMES[3], modules, self._question_loss, self.size.second, rate=2e-3)

    def _caption_loss(self) -> Tensor:
        chosen = self._batch()
        return self._answers_loss([Pair("", caption(self.scenes[number])) for number in chosen], chosen)

    def _question_loss(self) -> Tensor:
        pairs, chosen = [], self._batch()
        for number in chosen:
            pair = None
            while pair is None:  # not every scene allows every question
                pair = ask(self.scenes[number], str(self.rng.choice(QUESTIONS)), self.rng)
            pairs.append(pair)
        return self._answers_loss(pairs, chosen)

    def _answers_loss(self, pairs: Sequence[Pair], drawings: Tensor) -> Tensor:
        rows = [(self._prompt(pair), self.words.ids(f"{pair.answer} {STOP}")) for pair in pairs]
        ids, labels = learned(rows)
        return next_word_loss(self.model(self._seen()[drawings], ids), labels)

    def _prompt(self, pair: Pair) -> list[int]:
        return self.words.ids(f"{START} {pair.question}")

    def _batch(self) -> Tensor:
        return torch.from_numpy(self.rng.integers(0, self.size.drawings, self.size.batch))

    def _seen(self) -> Tensor:
        if self.features is None:
            raise SettingError("The tower has learned nothing yet; run the cell with `course.look()` first.")
        return self.features

    def _train(
        self, name: str, modules: Sequence[nn.Module], loss_of: Callable[[], Tensor], steps: int, rate: float
    ) -> None:
        """AdamW (arXiv 1711.05101) on these modules alone; the rate rises, then falls as half a cosine."""
        self.model.requires_grad_(False)
        parameters = [parameter for module in modules for parameter in module.requires_grad_().parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
        losses = self.losses[name] = []
        self.checks = [check for check in self.checks if check.stage != name]
        checked = {round(steps * part / CHECKS) for part in range(CHECKS + 1)} if name.startswith("stage") else set()
        for step in tqdm(range(steps + 1), desc=name, unit="step"):
            if step in checked:
                self.checks.append(self._check(name, step))
            if step == steps:
                break
            for group in optimizer.param_groups:
                group["lr"] = rate * min((step + 1) / WARM_UP, 1.0) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
            loss = loss_of()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise RunError(f"{name} diverged: the loss of step {step + 1} is no number. Choose a smaller rate.")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()

    # ------------------------------------------------------------------------------------------------- questions

    def answer(self, asked: Sequence[tuple[int, Pair]]) -> list[str]:
        """Answers to questions about drawings, in their order."""
        answers = [""] * len(asked)
        prompts = [self._prompt(pair) for _, pair in asked]
        for length in {len(prompt) for prompt in prompts}:
            rows = [row for row, prompt in enumerate(prompts) if len(prompt) == length]
            features = self._seen()[[asked[row][0] for row in rows]]
            ids = torch.tensor([prompts[row] for row in rows])
            written = self.model.answer(features, ids, self.words.number[STOP], LONGEST_ANSWER)
            for row, words in zip(rows, written, strict=True):
                answers[row] = self.words.text(words)
        return answers

    def _asked(self, about: str, numbers: Sequence[int]) -> list[tuple[int, Pair]]:
        rng = np.random.default_rng(1)
        if about == CAPTION:
            return [(n, Pair("", caption(self.scenes[n]))) for n in numbers]
        return [(n, pair) for n in numbers if (pair := ask(self.scenes[n], about, rng))]

    def _check(self, stage: str, step: int) -> Check:
        numbers = self._tests(0)[:ASKED_IN_CHECKS]
        abouts = [CAPTION] if stage == NAMES[2] else list(QUESTIONS)
        asked = [pair for about in abouts for pair in self._asked(about, numbers[:: len(abouts)])]
        watched = self.watched(stage)
        answers = self.answer([*watched, *asked])
        return Check(stage, step, tuple(answers[: len(watched)]), right_share(asked, answers[len(watched) :]))

    def exam(self, when: str) -> None:
        """Ask every kind of question about drawings that it never learned from; `exams` keeps the shares right."""
        asked = {about: self._asked(about, self._tests(1)) for about in (CAPTION, *QUESTIONS)}
        self.exams[when] = {about: right_share(pairs, self.answer(pairs)) for about, pairs in asked.items()}


def right_share(asked: Sequence[tuple[int, Pair]], answers: Sequence[str]) -> Share:
    """How many of the answers are right in each word."""
    return share_of([answer == pair.answer for answer, (_, pair) in zip(answers, asked, strict=True)])


def learned(rows: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Rows of a question and an answer, as ids -> ids and labels (rows, longest), filled up at their ends.

    Labels are the ids of the answers, and IGNORED for all else: what is asked need not be learned.
    """
    longest = max(len(question) + len(answer) for question, answer in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    for row, (question, answer) in enumerate(rows):
        start, end = len(question), len(question) + len(answer)
        ids[row, :end] = torch.tensor(question + answer)
        labels[row, start:end] = ids[row, start:end]
    return ids, labels


def next_word_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy, in nats: scores (rows, n, words) after each word, against the word that follows it."""
    return F.cross_entropy(scores[:, :-1].mT, labels[:, 1:], ignore_index=IGNORED)


def table(course: Course) -> "DataFrame":
    """The shares of a course's exams with their 95 % Wilson intervals, a column for each exam."""
    require("notebooks", "pandas", what="The table of exams")
    from pandas import DataFrame

    return DataFrame(
        {when: {about: str(share) for about, share in shares.items()} for when, shares in course.exams.items()}
    )
