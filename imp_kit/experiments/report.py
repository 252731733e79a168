"""One Markdown file with its pictures from the records of runs: tables, plots, answers in full, and how to repeat them.

Nothing is asked and no model is loaded; a run's folder is all that is needed.
"""

import csv
import io
import os
import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields, replace
from importlib import import_module, resources
from pathlib import Path

from imp_kit.errors import RunError
from imp_kit.experiments import plots, scores
from imp_kit.experiments.captcha import probe as reading
from imp_kit.experiments.files import disk_errors, write_whole
from imp_kit.experiments.japanese import probe as japanese
from imp_kit.experiments.markdown import block, plain, quoted, table
from imp_kit.experiments.runs import HEAD, command, read, read_head
from imp_kit.experiments.stats import (
    UNLIKE,
    bootstrap,
    bounded_difference,
    bounded_mean,
    difference,
    holm,
    mcnemar,
    wilson,
)
from imp_kit.system import interrupts
from imp_kit.system.extras import has, require

REPORT = "report.md"
NOT_IMP = (
    "imp-nano is the kit's own small checkpoint, taught drawings and clean text. Its results show that the instrument "
    "works; they say nothing about Imp."
)
INTERVALS = (
    "All intervals are of 95 %: after Wilson for shares, after Tango for differences between shares of the same items; "
    "both with the effective number of items for other means and differences within a range, and for several answers "
    "about one picture. For CER and figures a character a bootstrap draws whole pictures; it gives no interval "
    f"where fewer than {UNLIKE} pictures are unlike the commonest. Decoding is greedy: intervals are over the samples, "
    "not over repeated runs."
)
PUBLISHED = "Not measured here. Rows of one source and one kind are comparable, others show the range only."
CHANCE = "by chance: replies scored against the answers of the other questions of the same kind."
COUNTED = ("tokens", "seconds")  # of a sample
ANSWERS = 10  # given in full
UNKNOWN = "not recorded"


def write(folders: Sequence[str | os.PathLike], out: str | os.PathLike | None = None) -> Path:
    """Write report.md and its pictures into `out`, the first run's folder by default; return the file.

    Raises RunError for a folder that holds no run, or a run of an experiment that has no report.
    """
    require("measure", "matplotlib", "rapidfuzz", "scipy", what="A report")
    for module in ("matplotlib.figure", "rapidfuzz.distance", "scipy.stats"):  # before the work, see interrupts.py
        import_module(module)
    interrupts.work()
    if not folders:
        raise RunError("There is no run to report; name the folders of one run or more.")
    runs = [(Path(folder), read_head(folder)) for folder in folders]
    for folder, head in runs:
        if head["experiment"] not in SECTIONS:
            known = ", ".join(SECTIONS)
            raise RunError(f"{folder} holds a run of {head['experiment']!r}; there are reports of {known}.")
        if "checkpoint" not in head:
            raise RunError(f"{folder / HEAD} does not say which checkpoint was asked; name another folder.")
    target = Path(out) if out else runs[0][0]
    with disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, (folder, head) in enumerate(runs, 1):
        records = _complete(read(folder), folder, head["experiment"])
        prefix = f"{head['experiment']}-{number}"
        page = _Page(target, prefix, head, folder, [Path(each) for each in folders], target if out else None)
        parts += [page.heading(records), *SECTIONS[head["experiment"]](page, records)]
    file = target / REPORT
    write_whole(file, "\n\n".join(parts) + "\n")
    return file


def _complete(records: list[dict], folder: Path, experiment: str) -> list[dict]:
    """The records, once each answered one is known to hold what scores need. Raises RunError."""
    cell, truth = NEEDED[experiment]
    factors = {field.name: field.default is MISSING for field in fields(cell)}
    answered = [record for record in records if record["status"] == "ok"]
    for record in answered:
        lacking = {"factors", "truth", "seed", "question", "answer"} - record.keys()
        if not lacking:
            lacking = {name for name, needed in factors.items() if needed and name not in record["factors"]}
            lacking |= (truth - record["truth"].keys()) | (record["factors"].keys() - factors)
        if lacking:
            raise RunError(
                f"{folder}: the record of {record['sample_id']!r} has not what this version of the kit reads "
                f"({', '.join(sorted(lacking))}); make the report with the version that made the run, or run it anew."
            )
    if not answered:
        raise RunError(f"{folder} holds no answered sample; run the probe again first.")
    return records


def published(experiment: str) -> str:
    """What others published about the question of an experiment, as a table with its sources."""
    file = resources.files(f"imp_kit.experiments.{experiment}").joinpath("published.csv")
    head, *rows = csv.reader(file.read_text("utf-8").splitlines())
    return table(head, rows)


class _Page:
    """Where a run's part of a report goes, and the commands that make it again."""

    def __init__(self, target: Path, prefix: str, head: dict, folder: Path, folders: Iterable[Path], out: Path | None):
        self.target, self.prefix, self.head = target, prefix, head
        self.name = head["checkpoint"]
        self.ask = command(head, folder)
        self.draw = f"python -m imp_kit report {shlex.join(str(each.absolute()) for each in folders)}"
        self.draw += f" --out {shlex.quote(str(out.absolute()))}" if out else ""

    def heading(self, records: Sequence[dict]) -> str:
        answered = [record for record in records if record["status"] == "ok"]
        failed = len(records) - len(answered)
        versions = ", ".join(f"{name} {number}" for name, number in answered[0].get("versions", {}).items() if number)
        head = defaultdict(lambda: UNKNOWN, self.head)  # a run of an earlier version may know less
        settings = ", ".join(f"{name} {value}" for name, value in self.head.get("settings", {}).items())
        shown = {
            "checkpoint": self.name,
            "revision": head["revision"] or "none (a bundled or local folder)",
            "SHA-256 of its files": head["files"] or "",
            "dtype, device": f"{head['dtype']}, {head['device']}",
            "size, seed": f"{head['size']}, {head['seed']}",
            "settings": settings or ("the defaults" if "settings" in head else UNKNOWN),
            "samples": f"{len(answered)} answered, {failed} failed (failed ones are in no score)",
            "versions": versions or UNKNOWN,
        }
        lines = [f"# {TITLES[self.head['experiment']]}: {plain(self.name)}", ""]
        lines += [NOT_IMP, ""] if self.name == "imp-nano" else []
        lines += [INTERVALS, ""]
        lines += [table(["what", ""], [[key, plain(str(value))] for key, value in shown.items()])]
        return "\n".join([*lines, "", self.again()])

    def figure(self, kind: str, what: str, drawn) -> str:
        """Save a figure; the lines that show it and say what it is."""
        name = f"{self.prefix}-{kind}.png"
        picture = io.BytesIO()
        drawn.savefig(picture, format="png")
        write_whole(self.target / name, picture.getvalue())
        return f"![{what}]({name})\n\nFigure `{name}`: {what}."

    def again(self) -> str:
        """How the samples are asked, and the report is made, once more."""
        if self.ask is None:
            return f"{plain(self.name)} was asked by code of its own. The report is made by\n\n{block([self.draw])}"
        return f"The samples are asked, and the report is made, by\n\n{block([self.ask, self.draw])}"


def _captcha(page: _Page, records: Sequence[dict]) -> list[str]:
    samples = reading.samples(records)
    rows = reading.ladder(samples)
    parts = []
    if rows:
        parts += ["## By distortion", _reading_table([f"L{row[0].cell.level}" for row in rows], rows)]
        what = "codes that stand in the answer, by level of distortion"
        parts += [page.figure("ladder", what, plots.ladder({page.name: samples}))]
        what = "characters shown, in rows, and read, in columns"
        drawn = plots.confusion(samples, page.name)
        parts += ["## Which character was read as which", page.figure("confusion", what, drawn)]
    if any(sample.cell.caption not in ("none", "alone") for sample in samples):
        parts += ["## The caption below the code", _lure_table(reading.lure(samples)), _primary(samples)]
        what = "what answers give: the code, the caption below it, both or neither"
        parts += [page.figure("lure", what, plots.lure(samples, page.name))]
    for base in sorted({s.cell.level for s in samples}):
        changed = {s.cell.changed for s in samples if s.cell.level == base} - {"", "control"}
        for name in sorted(changed):
            found = reading.factor(samples, name, base)
            parts += [f"## {name.capitalize()}, all else as in L{base}"]
            parts += [_reading_table([str(value) for value in found], list(found.values()), name)]
            what, drawn = f"codes that stand in the answer, by {name}", plots.factors(samples, [name], base, page.name)
            parts += [page.figure(f"{name.replace(' ', '-')}-L{base}", what, drawn)]
    parts += _controls(samples)
    parts += ["## Some answers in full", _answers([s for s in samples if s.code])]
    return [*parts, "## What others published", PUBLISHED, published(reading.NAME)]


def _reading_table(labels: Sequence[str], rows: Sequence[Sequence[reading.Sample]], first: str = "") -> str:
    lines = []
    for label, row in zip(labels, rows, strict=True):
        f = reading.summarise(row)
        lines += [[plain(label), str(len(row)), str(f.exact), str(f.strict), str(f.contained), f"{f.chance:.1%}",
                   str(f.errors), str(f.edit_share), f"{f.edit_share_chance:.2f}", str(f.position),
                   f"{f.position_chance:.2f}"]]  # fmt: skip
    head = [first, "pictures", "read exactly", "whole reply", "code in reply", "by chance", "CER", "edits", "by chance",
            "place", "by chance"]  # fmt: skip
    return (
        table(head, lines)
        + "\n\nwhole reply: it is the code and nothing else. CER: edits over all true characters, can exceed 1. edits: "
        "edits over the longer text, mean. place: share of characters at the right place, mean. by chance: replies "
        "scored against the codes of the other pictures, as if the pictures had been shuffled."
    )


def _lure_table(rows: Sequence[Sequence[reading.Sample]]) -> str:
    by_cell = {row[0].cell: row for row in rows}
    lines = []
    for cell, row in by_cell.items():
        counts = {outcome: sum(sample.outcome == outcome for sample in row) for outcome in plots.OUTCOMES}
        share = "" if cell.caption == "alone" else str(wilson(sum(sample.contained for sample in row), len(row)))
        copied = chance = ""
        if cell.caption != "none":
            copied = str(wilson(counts["both"] + counts["caption only"], len(row)))
            without = by_cell.get(replace(cell, caption="none"), [])
            hits = sum(scores.is_copied(row[0].caption, sample.reply) for sample in without)
            chance = f"{hits / len(without):.1%}" if without else ""
        figures = [share, copied, chance, *map(str, counts.values())]
        lines.append([f"L{cell.level}", cell.caption, plain(cell.question), str(len(row)), *figures])
    head = ["level", "caption", "question", "pictures", "code in reply", "caption copied", "by chance", *plots.OUTCOMES]
    return (
        table(head, lines)
        + "\n\nby chance: the caption found in replies to the same question where the picture has none."
    )


def _primary(samples: Sequence[reading.Sample]) -> str:
    """Codes that stand in the answer without a caption against with the true one, on the same codes.

    Not the extracted text: an answer that gives the caption first, or unquoted, would count as not read for its form.
    """
    lines, p_values, differences = [], [], []
    for level in reading.LURE_LEVELS:
        conditions = [
            [s for s in samples if s.cell == reading.Cell(level=level, caption=caption)] for caption in ("none", "true")
        ]
        one, other = reading.pairs(*conditions)
        if one:
            right = [[s.contained for s in row] for row in (one, other)]
            p_values.append(mcnemar(*right))
            lines.append([f"L{level}", str(len(one)), *(f"{sum(row) / len(row):.1%}" for row in right)])
            differences.append(_reading_differences(one, other))
    found = zip(lines, p_values, holm(p_values), differences, strict=True)
    rows = [[*line, f"{p:.3g}", f"{adjusted:.3g}", *more] for line, p, adjusted, more in found]
    head = ["level", "pairs", "without", "with", "p (exact McNemar)", "p after Holm", "difference", "in CER",
            "in edits", "in place"]  # fmt: skip
    return (
        "The main question, at L0: does a true caption keep the code out of the answer?\n\n"
        + table(head, rows)
        + "\n\ndifference: what a caption adds, on the same codes."
    )


def _reading_differences(one: Sequence[reading.Sample], other: Sequence[reading.Sample]) -> list[str]:
    """How `other` differs from `one` about the same codes, with intervals over the pairs."""
    paired = list(zip(one, other, strict=True))
    codes = range(len(paired))
    more = {
        name: bounded_difference([float(getattr(b, name)) - float(getattr(a, name)) for a, b in paired], codes)
        for name in ("contained", "edit_share", "position")
    }
    lengths = [len(scores.normalise(a.code)) for a, _ in paired]
    errors = bootstrap([(b.errors - a.errors, n) for (a, b), n in zip(paired, lengths, strict=True)], codes)
    return [f"{more['contained']:+.1%}", *(f"{each:+.2f}" for each in (errors, more["edit_share"], more["position"]))]


def _controls(samples: Sequence[reading.Sample]) -> list[str]:
    chosen = reading.select(samples, lambda cell: cell.changed == "control")
    if not chosen:
        return []
    rows = [
        [str(cell.value), plain(cell.question), str(len(row)), str(wilson(sum(s.invented for s in row), len(row))),
         quoted(row[0].reply)]
        for cell, row in chosen.items()
    ]  # fmt: skip
    head = ["picture", "question", "samples", "text invented", "for example"]
    return ["## Pictures without text", table(head, rows)]


def _answers(samples: Sequence[reading.Sample]) -> str:
    step = max(1, len(samples) // ANSWERS)
    return table(
        ["shown", "caption", "level", "question", "answer", "extracted"],
        (
            [
                plain(s.code),
                plain(s.caption),
                f"L{s.cell.level}",
                plain(s.cell.question),
                quoted(s.reply),
                quoted(s.read),
            ]
            for s in samples[::step][:ANSWERS]
        ),
    )


def _japanese(page: _Page, records: Sequence[dict]) -> list[str]:
    samples = japanese.samples(records)
    parts = []
    for part in ("scene", "photograph", "written"):
        chosen = [s for s in samples if s.cell.part == part]
        if chosen:
            parts += [f"## {PARTS[part]}", _chain_table(chosen)]
            if part == "scene":
                parts += [_by_skill(chosen), _contrast(chosen)]
            parts += [_differences(chosen)]
            if part == "photograph":
                parts += [_by_photograph(chosen), _similarity(chosen)]
            what = "answers that are right, that are in Japanese, and both, by the language of the question"
            parts += [page.figure(f"chain-{part}", what, plots.chain(samples, page.name, part))]
    general = [s for s in samples if s.cell.part == "general"]
    if {s.cell.picture for s in general} == {True, False}:
        parts += ["## Questions that need no picture, with one and without", _chain_table(general)]
        parts += [_differences([s for s in general if s.cell.picture])]
        what = "replies in Japanese, with a picture and without"
        parts += [page.figure("fidelity", what, plots.fidelity(samples, page.name))]
    asked = [s for s in samples if s.cell.language != "English"]
    step = max(1, len(asked) // ANSWERS)
    rows = [[plain(s.question), quoted(s.reply), str(s.finish)] for s in asked[::step][:ANSWERS]]
    parts += ["## Some answers in full", table(["question", "answer", "finish"], rows)]
    return [*parts, "## What others published", PUBLISHED, published(japanese.NAME)]


def _chain_table(samples: Sequence[japanese.Sample]) -> str:
    lines = []
    for language in japanese.LANGUAGES:
        for shown in (True, False):
            row = [s for s in samples if (s.cell.language, s.cell.picture) == (language, shown)]
            if not row:
                continue
            c, chance = japanese.chain(row), japanese.chance(row)
            seconds = "" if c.seconds_a_character is None else f"{c.seconds_a_character:.3f}"
            right = [c.right, "" if chance is None else f"{chance:.1%}", c.japanese, c.both]
            looks = [c.cut, f"{c.replaced_inside} / {c.replaced_at_end}", c.repetition, c.tokens_a_character, seconds]
            lines.append([language, "yes" if shown else "no", str(len(row)), *(str(f or "") for f in right + looks)])
    bridge = [s for s in samples if s.cell.part == "scene" and s.cell.language == "English"]
    if bridge:
        names = japanese.data()["terms"]
        right = sum(
            s.bridged is not None and s.bridged == names[s.truth["set"]][s.truth["answer"]]["ja"][0] for s in bridge
        )
        share = str(wilson(right, len(bridge)))
        lines += [["bridge", "yes", str(len(bridge)), share, "", "by dictionary", share, "", "", "", "", ""]]
    head = ["asked in", "picture", "samples", "right", "by chance", "in Japanese", "right and in Japanese",
            "cut by the limit", "U+FFFD inside / at the end", "repetition", "tokens a character",
            "seconds a character"]  # fmt: skip
    text = table(head, lines)
    if samples[0].right is not None:
        text += f"\n\n{CHANCE}"
    if bridge:
        text += (
            " bridge: the English question by hand, the answer turned into Japanese by a dictionary: an upper bound "
            "for translating before and after."
        )
    return text


def _differences(samples: Sequence[japanese.Sample]) -> str:
    """What each other language changes against English, over the same questions, with intervals over the pictures."""
    by_language = {
        language: {(s.shown, s.seed): s for s in samples if s.cell.language == language}
        for language in japanese.LANGUAGES
    }
    english, lines = by_language.pop(japanese.LANGUAGES[0]), []
    for language, asked in by_language.items():
        both = [(english[key], asked[key]) for key in english if key in asked]
        if both:
            shown = [a.shown for a, _ in both]
            repeated = bounded_difference([b.repetition - a.repetition for a, b in both], shown)
            right = ""
            if both[0][0].right is not None:
                right = f"{bounded_difference([float(b.right) - float(a.right) for a, b in both], shown):+.1%}"
            counted = [_more_a_character(both, name) for name in COUNTED]
            lines.append([language, str(len(both)), right, f"{repeated:+.2f}", *counted])
    head = ["more than in English", "pairs", "right", "repetition", *(f"{name} a character" for name in COUNTED)]
    return table(head, lines) if lines else "No question was answered in two languages."


def _more_a_character(both: Sequence[tuple[japanese.Sample, japanese.Sample]], name: str) -> str:
    counted = [pair for pair in both if all(getattr(s, name) is not None for s in pair)]
    if not all(any(pair[side].reply for pair in counted) for side in (0, 1)):
        return ""
    columns = [(getattr(b, name), len(b.reply), getattr(a, name), len(a.reply)) for a, b in counted]
    return f"{bootstrap(columns, [a.shown for a, _ in counted], difference):+.3f}"


def _by_skill(samples: Sequence[japanese.Sample]) -> str:
    rows = []
    for skill in dict.fromkeys(s.cell.skill for s in samples):
        each = [[s for s in samples if (s.cell.skill, s.cell.language) == (skill, lang)] for lang in japanese.LANGUAGES]
        rows.append([skill])
        for row in each:
            chance = japanese.chance(row)
            rows[-1] += [str(japanese.chain(row).right) if row else "–", "–" if chance is None else f"{chance:.1%}"]
    head = [name for language in japanese.LANGUAGES for name in (language, "by chance")]
    return table(["right, in any language", *head], rows)


def _by_photograph(samples: Sequence[japanese.Sample]) -> str:
    """Scores with intervals over the photographs: questions about one are no independent evidence."""
    rows = []
    for language in japanese.LANGUAGES:
        row = [s for s in samples if s.cell.language == language]
        if row:
            shown = [s.shown for s in row]
            chain = [[s.right for s in row], [s.japanese for s in row], [s.right and s.japanese for s in row]]
            found = [bounded_mean(each, shown) for each in chain]
            rows.append([language, str(len(set(shown))), *(f"{each:.1%}" for each in found)])
    head = ["asked in", "photographs", "right", "in Japanese", "right and in Japanese"]
    text = "With intervals over the photographs, since answers about one hang together:"
    return f"{text}\n\n{table(head, rows)}"


def _contrast(samples: Sequence[japanese.Sample]) -> str:
    """Right in any language: English against Japanese about the same pictures."""
    one, other = japanese.pairs(samples)
    if not one:
        return "No picture was asked about in both languages."
    more = bounded_difference([int(a) - int(b) for a, b in zip(one, other, strict=True)], range(len(one)))
    return (
        f"The main question: is an answer more often right when asked in English? {sum(one) / len(one):.1%} against "
        f"{sum(other) / len(other):.1%} of {len(one)} pairs, difference {more:+.1%}, exact McNemar "
        f"p = {mcnemar(one, other):.3g}."
    )


def _similarity(samples: Sequence[japanese.Sample]) -> str:
    """chrF against the references, of each language that is asked to give Japanese, and how they differ."""
    if not has("sacrebleu"):
        return "chrF is left out: it needs sacrebleu (pip install sacrebleu)."
    lines, each = [], {}
    for language in japanese.LANGUAGES[1:]:
        row = [s for s in samples if s.cell.language == language]
        if not row:
            continue
        replies, references = [s.reply for s in row], [s.truth["references"] for s in row]
        corpus, signature = scores.chrf(replies, references)
        found = scores.chrf_each(replies, references)
        each[language] = {(s.shown, s.seed): score for s, score in zip(row, found, strict=True)}
        mean = bounded_mean(found, [s.shown for s in row], most=100)
        lines += [f"{language}: chrF {corpus:.1f} over {len(row)} answers ({signature}); answer by answer {mean:.1f}."]
    one, other = (each.get(language, {}) for language in japanese.LANGUAGES[1:])
    if both := [key for key in one if key in other]:
        more = bounded_difference([other[key] - one[key] for key in both], [shown for shown, _ in both], most=100)
        lines += [f"{japanese.LANGUAGES[2]}, more than {japanese.LANGUAGES[1]}: {more:+.1f}, answer by answer."]
    return "\n\n".join(lines)


TITLES = {reading.NAME: "Reading probe", japanese.NAME: "Japanese limits"}
PARTS = {
    "scene": "Drawn scenes with exact truth",
    "photograph": "Photographs",
    "written": "Japanese text in the picture",
}
SECTIONS = {reading.NAME: _captcha, japanese.NAME: _japanese}
NEEDED = {reading.NAME: (reading.Cell, {"code", "caption", "glyph"}), japanese.NAME: (japanese.Cell, set())}
