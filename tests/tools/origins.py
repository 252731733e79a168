"""How well imp-nano does on drawings of other origins: `python tests/tools/origins.py [--checkpoint FOLDER]`.

Four origins, none of them drawn by the kit's own code or used in training: plain shapes of other programs, free icons,
matplotlib's patches, and the sample images. Prints a Markdown table of right answers by origin and skill, with Wilson's
intervals; a few minutes of one core. An answer is right if it means exactly what is true: in the form that imp-nano is
taught, or short. The icons are glyphs of fonts that a package brings (pip install --no-deps qtawesome==1.4.2).
"""

import argparse
import hashlib
import json
import platform
import re
import sys
import textwrap
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from origin_questions import KIT, SKILLS, Asked, Question, origins
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

import imp_kit
from imp_kit.boxes import read_box
from imp_kit.errors import ImpKitError
from imp_kit.experiments.files import write_whole
from imp_kit.experiments.stats import Share, share_of
from imp_kit.imp import Imp
from imp_kit.nano.training.evaluation import BATCH, OVERLAP, converse, overlap
from imp_kit.nano.training.lessons import score

PACKAGES = ("pillow", "numpy", "matplotlib", "scikit-image")  # what can change a pixel of the images
COLUMNS, CELL, LINES = 5, 260, 5  # of a sheet of wrong answers: images in a row, pixels of one, lines of text below it
MOST_SHOWN = 60


@dataclass(frozen=True)
class Reply:
    """A question about an image of an origin, with the answer and whether it is right."""

    origin: str
    name: str
    shows: str
    question: Question
    answer: str
    right: bool


def is_right(question: Question, answer: str, size: tuple[int, int]) -> bool:
    """Whether an answer means exactly what is true; `size` is the image's width and height in pixels."""
    if question.boxes:
        box = read_box(answer, size, pad=False)
        return box is not None and any(overlap(box, true) >= OVERLAP for true in question.boxes)
    spelled = re.sub("grey", "gray", answer, flags=re.IGNORECASE)
    return any(score(spelled, right) for right in question.right)


def ask_all(imp: Imp, asked: dict[str, list[Asked]]) -> list[Reply]:
    """The answers to all questions, greedy, by origin and image."""
    cases = [(origin, each, question) for origin, some in asked.items() for each in some for question in each.questions]
    replies: dict[int, Reply] = {}
    with tqdm(total=len(cases), unit="answer") as bar:
        for turns in sorted({len(question.before) for *_, question in cases}):  # a batch has equally many
            numbers = [number for number, (*_, question) in enumerate(cases) if len(question.before) == turns]
            for start in range(0, len(numbers), BATCH):
                batch = numbers[start : start + BATCH]
                images = [cases[number][1].image for number in batch]
                texts = [(*cases[number][2].before, cases[number][2].text) for number in batch]
                for number, answer in zip(batch, converse(imp, images, texts), strict=True):
                    origin, each, question = cases[number]
                    right = is_right(question, answer, each.image.size)
                    replies[number] = Reply(origin, each.name, each.shows, question, answer, right)
                bar.update(len(batch))
    return [replies[number] for number in range(len(cases))]


def shares(replies: list[Reply]) -> dict[str, dict[str, Share]]:
    """By origin and skill, the share of right answers with its interval."""
    flags: dict[str, dict[str, list[bool]]] = {}
    for reply in replies:
        flags.setdefault(reply.origin, {}).setdefault(reply.question.skill, []).append(reply.right)
    return {
        origin: {skill: share_of(skills[skill]) for skill in (*SKILLS, KIT) if skill in skills}
        for origin, skills in flags.items()
    }


def table(replies: list[Reply]) -> str:
    """The shares as Markdown, a row for each origin and skill."""
    rows = ["| origin | skill | right | of | share (95 % interval) |", "| --- | --- | --- | --- | --- |"]
    for origin, skills in shares(replies).items():
        rows += [f"| {origin} | {skill} | {found.right} | {found.total} | {found} |" for skill, found in skills.items()]
    return "\n".join(rows)


def digest(asked: list[Asked]) -> str:
    """SHA-256 of the pixels of an origin's images and of its questions: equal where two runs can be compared."""
    found = hashlib.sha256()
    for each in asked:
        found.update(each.image.tobytes())
        found.update(repr(each.questions).encode())
    return found.hexdigest()


def record(imp: Imp, asked: dict[str, list[Asked]], replies: list[Reply]) -> dict:
    """All that was measured, fit for JSON: the shares, and each question with its answer."""
    return {
        "checkpoint": imp.name,
        "files_sha256": imp.snapshot.digest(),
        "dtype": imp.dtype,
        "device": str(imp.model.device),
        "date": date.today().isoformat(),
        "versions": {
            "imp-kit": imp_kit.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
        "sets_sha256": {origin: digest(some) for origin, some in asked.items()},
        "shares": {
            origin: {skill: {**asdict(found), "share": found.share} for skill, found in skills.items()}
            for origin, skills in shares(replies).items()
        },
        "replies": [
            {
                "origin": reply.origin,
                "image": reply.name,
                "shows": reply.shows,
                "skill": reply.question.skill,
                "before": reply.question.before,
                "question": reply.question.text,
                "truth": truth(reply.question),
                "answer": reply.answer,
                "right": reply.right,
            }
            for reply in replies
        ],
    }


def truth(question: Question) -> str:
    """One right answer in words."""
    return question.right[0] if question.right else f"a box close to {list(question.boxes[0])}"


def sheet(asked: list[Asked], wrong: list[Reply]) -> Image.Image:
    """Images of one origin that got a wrong answer, the first MOST_SHOWN, with question, answer and truth."""
    images = {each.name: each.image for each in asked}
    shown, line = wrong[:MOST_SHOWN], 16
    height = CELL + LINES * line
    page = Image.new("RGB", (COLUMNS * CELL, max(1, -(-len(shown) // COLUMNS)) * height), "#e8e8e8")
    canvas, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for number, reply in enumerate(shown):
        x, y = number % COLUMNS * CELL, number // COLUMNS * height
        small = images[reply.name].copy()
        small.thumbnail((CELL - 10, CELL - 10))
        page.paste(small, (x + 5, y + 5))
        lines = [*textwrap.wrap(reply.question.text, 40)[:2], *textwrap.wrap(f"answer: {reply.answer}", 40)[:2]]
        for place, text in enumerate([*lines, f"truth: {truth(reply.question)}"[:44]]):
            color = "#b00020" if text.startswith("answer:") else "black"
            canvas.text((x + 5, y + CELL - 4 + place * line), text, color, font)
    return page


def measure(checkpoint: str, folder: Path | None, file: Path | None) -> None:
    """Ask all, print the table, write what was asked for. Raises what `origins`, `load` and `write_whole` raise."""
    asked = origins()
    imp = imp_kit.load(checkpoint, device="cpu", dtype="fp32")
    replies = ask_all(imp, asked)
    print(table(replies))
    if file:
        write_whole(file, json.dumps(record(imp, asked, replies), indent=1) + "\n")
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        for origin, some in asked.items():
            wrong = [reply for reply in replies if reply.origin == origin and not reply.right]
            sheet(some, wrong).save(folder / f"{re.sub('[^a-z]+', '_', origin)}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--checkpoint", default="imp-nano", metavar="FOLDER", help="default: the bundled imp-nano")
    parser.add_argument("--sheet", type=Path, metavar="FOLDER", help="draw the wrong answers of each origin there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the shares and every answer")
    chosen = parser.parse_args()
    try:
        measure(chosen.checkpoint, chosen.sheet, chosen.json)
    except ImpKitError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
