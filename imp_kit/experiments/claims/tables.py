"""Published benchmark tables as data, each row with its source, and how sure their differences are.

Nothing here was measured by the kit. A row's last columns say where it stands (SOURCE): the address, the place in it,
the version, whether it was read "at the source", "in a copy" of that very page or paper, or "second hand", as another
work quotes it; and the day of reading. A cell is empty where the source has none.
"""

import csv
import itertools
import math
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imp_kit.errors import SettingError
from imp_kit.experiments.stats import Estimate, Share, wilson
from imp_kit.system.extras import require

if TYPE_CHECKING:
    from pandas import DataFrame, Series

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(file.stem for file in FOLDER.glob("*.csv")))
SOURCE = ("source", "place", "version", "read", "read on")
PERCENT = 100.0
DIGITS = 9  # of a mean; what is beyond them is rounding, and would break ties


def table(name: str) -> "DataFrame":
    """One of the published tables, such as "imp_readme". Columns of numbers are floats, NaN where the source has none.

    Raises SettingError for another name.
    """
    if name not in NAMES:
        raise SettingError(f"There is no table {name!r}; take one of: {', '.join(NAMES)}.")
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    columns = {title: _numbers([row[place] for row in rows]) for place, title in enumerate(head)}
    return _pandas().DataFrame(columns)


def _numbers(texts: list[str]) -> list:
    """The texts as floats where all that are not empty are numbers, else as they are."""
    try:
        return [float(text) if text else math.nan for text in texts] if any(texts) else texts
    except ValueError:
        return texts


def scores(frame: "DataFrame") -> list[str]:
    """The titles of the columns that hold numbers."""
    return [title for title in frame if frame[title].dtype == float]


def sources(frame: "DataFrame") -> str:
    """The addresses of a table's rows in one line, each with the place in it, for the foot of a figure."""
    pairs = dict.fromkeys(zip(frame["source"], frame["place"], strict=True))
    places: dict[str, list[str]] = {}
    for address, place in pairs:
        places.setdefault(address.removeprefix("https://"), []).append(place)
    return "; ".join(f"{address} ({', '.join(each)})" for address, each in places.items())


def questions(benchmark: str, split: str) -> int:
    """How many questions a benchmark has, such as ("MMB", "dev"). Raises SettingError where that is not recorded."""
    frame = table("benchmarks")
    found = frame[(frame.benchmark == benchmark) & (frame.split == split)].questions
    if len(found) != 1 or math.isnan(found.iloc[0]):
        known = ", ".join(f"{row.benchmark} {row.split}" for row in frame.itertuples() if row.questions > 0)
        raise SettingError(f"No number of questions is recorded for {benchmark} {split}, only for: {known}.")
    return int(found.iloc[0])


def percent(frame: "DataFrame") -> "DataFrame":
    """A copy with each benchmark's points in percent of the best possible ones: MME-P, of 2,000, is divided by 20."""
    best = table("benchmarks").drop_duplicates("benchmark").set_index("benchmark").best
    scaled = frame.copy()
    for title in scores(frame):
        scaled[title] = frame[title] * PERCENT / best.get(title, PERCENT)
    return scaled


def complete(frame: "DataFrame", columns: Sequence[str]) -> "DataFrame":
    """The rows that have all of these columns. Raises SettingError for a column that is not there or has no numbers."""
    _check_columns(frame, columns)
    return frame[frame[list(columns)].notna().all(axis=1)]


def means(frame: "DataFrame", columns: Sequence[str]) -> "Series":
    """Each model's mean over the cells that it has in these columns; who lacks one is not comparable with the rest."""
    _check_columns(frame, columns)
    return frame.set_index("model")[list(columns)].mean(axis=1).round(DIGITS)


def dropped(frame: "DataFrame", columns: Sequence[str]) -> "DataFrame":
    """Ranks, 1 the best, by the mean over all columns but one: a row a model, a column for what is left out.

    Only models that have all of the columns, at least two of them. The first column is "none".
    """
    rows = _compared(frame, columns)
    if len(columns) < 2:
        raise SettingError(f"Of the columns {list(columns)} none can be left out; give at least two.")
    kept = {"none": list(columns)} | {out: [each for each in columns if each != out] for out in columns}
    ranks = {out: means(rows, left).rank(ascending=False, method="min").astype(int) for out, left in kept.items()}
    return _pandas().DataFrame(ranks)


def wins(frame: "DataFrame", columns: Sequence[str]) -> "Series":
    """Of all choices of columns (2^n - 1 of them), the share in which each model has the highest mean.

    Only models that have all of the columns; a tie counts for the first of the table.
    """
    rows = _compared(frame, columns)
    values = rows[list(columns)].to_numpy()
    choices = np.array(list(itertools.product((0, 1), repeat=len(columns)))[1:], float)
    best = np.round(values @ choices.T / choices.sum(axis=1), DIGITS).argmax(axis=0)
    shares = np.bincount(best, minlength=len(rows)) / len(choices)
    return _pandas().Series(shares, index=rows.model)


def _check_columns(frame: "DataFrame", columns: Sequence[str]) -> None:
    known = scores(frame)
    wrong = [columns] if isinstance(columns, str) else [each for each in columns if each not in known]
    if wrong or not len(columns):
        named = ", ".join(map(repr, wrong)) or "none"
        raise SettingError(f"The columns to compare are {named}; give a list of some of: {', '.join(known)}.")


def _compared(frame: "DataFrame", columns: Sequence[str]) -> "DataFrame":
    """The rows that have all of the columns. Raises SettingError where there are none."""
    rows = complete(frame, columns)
    if not len(rows):
        raise SettingError(f"No model has all of the columns {', '.join(columns)}; give fewer.")
    return rows


def interval(points: float, number: int) -> Share:
    """The 95 % interval (Wilson) of a score in percent on so many questions.

    For right or wrong it is exact to half a question. Where an answer can be right in part, as with the agreement of
    ten people, points vary less, and the true interval is narrower. It holds chance in the choice of questions only.
    """
    if not 0 <= points <= PERCENT:
        raise SettingError(f"{points} is no percentage; bring the score to the scale from 0 to 100 first.")
    return wilson(round(points / PERCENT * number), number)


def difference(one: float, other: float, number: int) -> Estimate:
    """How much more `one` is than `other`, in points of percent, with its 95 % interval.

    For two scores on different questions, so many for each (Newcombe, Statistics in Medicine 17, 1998, pages 873-890,
    method 10). On the same questions it is narrower, by how much only both models' single answers can tell.
    """
    first, second = interval(one, number), interval(other, number)
    value = first.share - second.share
    low = value - math.hypot(first.share - first.low, second.high - second.share)
    high = value + math.hypot(first.high - first.share, second.share - second.low)
    return Estimate(PERCENT * value, PERCENT * low, PERCENT * high)


def unclear(frame: "DataFrame", column: str, test: tuple[str, str]) -> list[tuple[str, str, Estimate]]:
    """The pairs of models whose scores in a column may differ by chance, the better one first.

    `test` is the column's benchmark and split, such as ("MMB", "dev").
    """
    number = questions(*test)
    known = complete(frame, [column]).sort_values(column, ascending=False, kind="stable")
    pairs = itertools.combinations(zip(known.model, known[column], strict=True), 2)
    found = [(one, other, difference(a, b, number)) for (one, a), (other, b) in pairs]
    return [pair for pair in found if pair[2].low <= 0]


def _pandas() -> Any:
    require("measure", "pandas", what="A published table")
    return import_module("pandas")
