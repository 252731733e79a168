"""Several subjects that were asked the same: the main figures of each, and how every two of them differ."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from imp_kit.experiments.captcha import probe as captcha
from imp_kit.experiments.documents import probe as documents
from imp_kit.experiments.documents.pages import SKILLS
from imp_kit.experiments.japanese import probe as japanese
from imp_kit.experiments.markdown import plain, table
from imp_kit.experiments.pope import probe as pope
from imp_kit.experiments.stats import Estimate, bounded_difference, bounded_mean, holm, mcnemar

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Run:
    """One subject's run: its folder, what run.json holds, its records, and its answered samples as a frame."""

    folder: Path
    head: dict
    records: Sequence[dict]
    frame: "DataFrame"

    @property
    def design(self) -> tuple:
        """What two runs have to share to be put side by side."""
        settings = json.dumps(self.head.get("settings"), sort_keys=True)
        return (self.head["experiment"], self.head.get("size"), self.head.get("seed"), settings)


@dataclass(frozen=True)
class Measure:
    """A share of right answers, or of yes: which samples count, and which column says what they are worth.

    Samples with the same values in `about` are no independent evidence. The subjects are compared by a `main` one.
    """

    name: str
    rows: "Callable[[DataFrame], DataFrame]"
    score: str
    about: tuple[str, ...]
    main: bool = False


def _ladder(frame: "DataFrame") -> "DataFrame":
    return frame.loc[[index for rows in captcha.ladder(frame).values() for index in rows.index]]


def _level(number: int) -> Measure:
    return Measure(f"L{number}", lambda frame: _ladder(frame).query(f"level == {number}"), "contained", ("seed",))


def _scene(name: str, language: str, score: str, main: bool = False) -> Measure:
    def rows(frame: "DataFrame") -> "DataFrame":
        return frame[(frame.part == "scene") & (frame.language == language)]

    return Measure(name, rows, score, ("shown",), main)


def _kind(name: str) -> Measure:
    return Measure(name, lambda frame: _own(frame).query(f"kind == {name!r}"), "right", ("kind", "seed"))


def _own(frame: "DataFrame") -> "DataFrame":
    """The questions about documents or images that are no control."""
    return frame[frame.control == "none"]


ENGLISH, JAPANESE, _ = japanese.LANGUAGES
MEASURES = {
    captcha.NAME: (
        Measure("code in reply, all levels", _ladder, "contained", ("seed",), main=True),
        *map(_level, range(len(captcha.LEVELS))),
    ),
    japanese.NAME: (
        _scene("right and in Japanese, asked in Japanese", JAPANESE, "both", main=True),
        _scene("right in any language, asked in Japanese", JAPANESE, "right"),
        _scene("right, asked in English", ENGLISH, "right", main=True),
    ),
    documents.NAME: (
        Measure("right, all documents", _own, "right", ("kind", "seed"), main=True),
        *map(_kind, dict.fromkeys(kind for kind, _ in SKILLS)),
        Measure(
            "with another document", lambda frame: frame[frame.control == "other image"], "right", ("kind", "seed")
        ),
    ),
    pope.NAME: (
        Measure("right", _own, "right", ("seed",), main=True),
        Measure("yes", _own, "yes", ("seed",)),
        Measure("yes though it is not there", lambda frame: _own(frame)[~_own(frame).present], "yes", ("seed",)),
    ),
}
NOTE = (
    "stopped by a filter: of the answered, those that a server marked as refused or filtered; they are scored as any "
    "answer, and so are answers that decline in words, which are not counted there. Failed samples are in no score. "
    "What is right by chance and the controls stand in each subject's own part below."
)
PAIRED = (
    "Only samples that both subjects answered, about the same picture, count. difference: the first subject's share "
    "less that of the second. p: exact McNemar, after Holm over the rows; where several samples are about one picture "
    "or code, it is counted once, for the subject that has more of it right."
)


def same_design(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs of one experiment with one design, wherever there are several."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.design, []).append(run)
    return [group for group in groups.values() if len(group) > 1]


def labels(runs: Sequence[Run]) -> list[str]:
    """A name for each subject, with its folder where two have the same."""
    names = [run.head["checkpoint"] for run in runs]
    count = Counter(names)
    return [
        f"{name} ({run.folder.absolute().name})" if count[name] > 1 else name
        for name, run in zip(names, runs, strict=True)
    ]


def figures(runs: Sequence[Run]) -> str:
    """A line for each subject with the experiment's main figures."""
    measures = MEASURES[runs[0].head["experiment"]]
    found = [[(measure, measure.rows(run.frame)) for measure in measures] for run in runs]
    shown = [i for i in range(len(measures)) if any(len(line[i][1]) for line in found)]
    lines = []
    for name, run, line in zip(labels(runs), runs, found, strict=True):
        refused = sum(record.get("finish") == "refusal" for record in run.records)
        counts = [len(run.frame), refused, len(run.records) - len(run.frame)]
        shares = [f"{_mean(*line[i]):.1%}" if len(line[i][1]) else "" for i in shown]
        lines.append([plain(name), *map(str, counts), *shares])
    head = ["subject", "answered", "stopped by a filter", "failed", *(measures[i].name for i in shown)]
    return f"{table(head, lines)}\n\n{NOTE}"


def differences(runs: Sequence[Run]) -> str:
    """A line for every two subjects and each main figure: how they differ on the same samples."""
    lines, p_values = [], []
    for measure in (each for each in MEASURES[runs[0].head["experiment"]] if each.main):
        for (one, first), (other, second) in combinations(zip(labels(runs), runs, strict=True), 2):
            paired = pairs(measure, first, second)
            if len(paired):
                p_values.append(p_value(measure, paired))
                shares = [f"{paired[name].astype(float).mean():.1%}" for name in ("first", "second")]
                difference = f"{_difference(measure, paired):+.1%}"
                lines.append([plain(one), plain(other), measure.name, str(len(paired)), *shares, difference])
    if not lines:
        return "No two subjects have answered the same sample about the same picture."
    lines = [[*line, f"{p:.3g}"] for line, p in zip(lines, holm(p_values), strict=True)]
    head = ["subject", "compared with", "what", "samples", "the first", "the second", "difference", "p"]
    return f"{table(head, lines)}\n\n{PAIRED}"


def pairs(measure: Measure, one: Run, other: Run) -> "DataFrame":
    """The samples that two subjects answered, about the same picture: columns `first` and `second`, and `about`."""
    keys, (first, second) = ["sample_id", "picture_sha256", "question"], (_with_picture(run) for run in (one, other))
    score = measure.score
    first = measure.rows(first).rename(columns={score: "first"})[[*keys, *measure.about, "first"]]
    second = measure.rows(second).rename(columns={score: "second"})[[*keys, "second"]]
    return first.merge(second, on=keys)


def _with_picture(run: Run) -> "DataFrame":
    answered = (record for record in run.records if record["status"] == "ok")
    return run.frame.assign(picture_sha256=[str(record.get("picture_sha256")) for record in answered])


def p_value(measure: Measure, paired: "DataFrame") -> float:
    """That two subjects differ by chance: a sign test over what the samples are about; McNemar's with one for each."""
    more = (paired["first"].astype(int) - paired["second"].astype(int)).groupby(_about(measure, paired)).sum()
    return mcnemar(more > 0, more < 0)


def _difference(measure: Measure, paired: "DataFrame") -> Estimate:
    more = paired["first"].astype(int) - paired["second"].astype(int)
    return bounded_difference(more, _about(measure, paired))


def _mean(measure: Measure, rows: "DataFrame") -> Estimate:
    return bounded_mean(rows[measure.score].astype(float), _about(measure, rows))


def _about(measure: Measure, rows: "DataFrame"):
    """A text for each row, the same for those that are no independent evidence."""
    return rows[list(measure.about)].astype(str).agg(" ".join, axis=1)
