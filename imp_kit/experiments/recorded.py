"""Results that come with the kit: an OCR engine's readings of the ladder, for those who have no engine installed."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from imp_kit.experiments.captcha import probe as reading
from imp_kit.experiments.frames import frame_of

if TYPE_CHECKING:
    from pandas import DataFrame

OCR = Path(__file__).with_name("captcha") / "ocr.csv"
SQUARES = (192, 384)  # the image sizes of imp-nano and of the published checkpoints
DIGITS = 16  # of a picture's hash
FACTS = ("level", "seed", "picture")  # the columns before those of the readers


def rows() -> list[dict[str, str]]:
    """The file's lines: level, seed, first digits of the picture's SHA-256 as in a run's file, a column a reader."""
    lines = OCR.read_text("utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def ocr(square: int) -> "dict[str, DataFrame]":
    """What the OCR engine read of the ladder of size standard, seed 1: a table of samples for each way to use it.

    The ways: both parts of the engine, or the second alone, which takes the picture as one line; each on the pixels as
    they are, and after the squash to a square of so many pixels, if that was recorded (192 and 384).
    """
    lines = rows()
    names = [name for name in lines[0] if name not in FACTS and (f"after {square} x" in name or "after" not in name)]
    cases = [reading.case(reading.Cell(level=int(line["level"])), int(line["seed"])) for line in lines]
    return {name: frame_of(_records(name, cases, lines), {"experiment": reading.NAME}) for name in names}


def _records(name: str, cases: list, lines: list[dict[str, str]]) -> list[dict]:
    return [
        {
            "sample_id": case.id,
            "factors": case.factors,
            "truth": case.truth,
            "seed": case.seed,
            "question": case.question,
            "status": "ok",
            "answer": line[name],
        }
        for case, line in zip(cases, lines, strict=True)
    ]
