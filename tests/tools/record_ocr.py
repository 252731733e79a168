"""Records what an OCR engine reads of the reading probe's ladder, for those who have no engine.

    python tests/tools/record_ocr.py

takes about half an hour and writes imp_kit/experiments/captcha/ocr.csv, a row a picture. It needs the extra "ocr".
"""

import csv
import io
from importlib.metadata import version

from tqdm import tqdm

from imp_kit.experiments.captcha import probe as reading
from imp_kit.experiments.files import write_whole
from imp_kit.experiments.ocr import OcrReader
from imp_kit.experiments.recorded import DIGITS, FACTS, OCR, SQUARES
from imp_kit.experiments.runs import Case, _digest

SIZE, SEED = "standard", 1
# What can change a picture, or what is read of it.
PACKAGES = ("rapidocr", "onnxruntime", "opencv-python-headless", "pillow", "numpy", "matplotlib")


def readers() -> list[OcrReader]:
    """Both parts of the engine or the second alone, on the pixels as they are or after each square."""
    return [OcrReader(squash, detect) for detect in (True, False) for squash in (None, *SQUARES)]


def ladder() -> list[Case]:
    """The pictures of a run's ladder."""
    return [case for case in reading.cases(SIZE, SEED) if reading.Cell(**case.factors) in reading.LADDER]


def digest(case: Case) -> str:
    """The first digits of a picture's SHA-256, as a run's file has it."""
    return _digest(case.picture)[:DIGITS]


def row(case: Case, chosen: list[OcrReader]) -> list[str]:
    """A picture's line of the file: level, seed, the beginning of its hash, and what each reader says."""
    answers = [reader.ask(case.picture, case.question) for reader in chosen]
    return [str(case.factors["level"]), str(case.seed), digest(case), *answers]


def main() -> None:
    """Read all and write the file."""
    chosen, out = readers(), io.StringIO()
    out.write(f"# Made by python tests/tools/record_ocr.py: size {SIZE}, seed {SEED}.\n")
    out.write(f"# Versions: {', '.join(f'{name} {version(name)}' for name in PACKAGES)}.\n")
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow([*FACTS, *(reader.name for reader in chosen)])
    lines.writerows(row(case, chosen) for case in tqdm(ladder(), unit="picture"))
    write_whole(OCR, out.getvalue())


if __name__ == "__main__":
    main()
