"""One Markdown file with its pictures from the records of runs: tables, plots, answers in full, and how to repeat them.

Nothing is asked and no model is loaded; a run's folder is all that is needed.
"""

import csv
import io
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING

from imp_kit.checkpoints.hub import NANO
from imp_kit.errors import RunError
from imp_kit.experiments import plots, scores
from imp_kit.experiments.captcha import probe as reading
from imp_kit.experiments.documents import probe as documents
from imp_kit.experiments.files import disk_errors, write_whole
from imp_kit.experiments.frames import complete, frame_of
from imp_kit.experiments.japanese import probe as japanese
from imp_kit.experiments.markdown import block, plain, quoted, table
from imp_kit.experiments.pope import probe as pope
from imp_kit.experiments.runs import HEAD, command, read, read_head
from imp_kit.experiments.side_by_side import Run, differences, figures, labels, same_design
from imp_kit.experiments.stats import (
    UNLIKE,
    bootstrap,
    bounded_difference,
    bounded_mean,
    difference,
    holm,
    mcnemar,
    share_of,
)
from imp_kit.system import interrupts
from imp_kit.system.extras import has, require

if TYPE_CHECKING:
    from pandas import DataFrame

REPORT = "report.md"
NOT_IMP = (
    "imp-nano is the kit's own small checkpoint, taught drawings and clean text. Its results show that the instrument "
    "works; they say nothing about Imp."
)
INTERVALS = (
    "All intervals are of 95 %: after Wilson for shares, after Tango for differences between shares of the same items; "
    "both with the effective number of items for other means and differences within a range, and for several answers "
    "about one picture. For CER and figures a character a bootstrap draws whole pictures; it gives no interval "
    f"where fewer than {UNLIKE} pictures are unlike the commonest. Unless it is said otherwise, decoding is greedy: "
    "intervals are over the samples, not over repeated runs."
)
PUBLISHED = "Not measured here. Rows of one source and one kind are comparable, others show the range only."
CHANCE = "by chance: replies scored against the answers of the other questions of the same kind."
COUNTED = ("tokens", "seconds")  # of a sample
TOLD = ("input_tokens", "output_tokens", "cost")  # by some servers, with an answer
ANSWERS = 10  # given in full
UNKNOWN = "not recorded"


def write(folders: Sequence[str | os.PathLike], out: str | os.PathLike | None = None) -> Path:
    """Write report.md and its pictures into `out`, the first run's folder by default; return the file.

    Raises RunError for a folder that holds no run, or a run of an experiment that has no report.
    """
    require("measure", "matplotlib", "pandas", "rapidfuzz", "scipy", what="A report")
    for module in (
        "matplotlib.figure",
        "pandas",
        "rapidfuzz.distance",
        "scipy.stats",
    ):  # before the work, see interrupts.py
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
    subjects = []
    for folder, head in runs:
        records = complete(read(folder), folder, head["experiment"])
        subjects.append(Run(folder, head, records, frame_of(records, head, folder)))
    parts = [part for group in same_design(subjects) for part in _side_by_side(group)]
    given = [Path(folder) for folder in folders], target if out else None
    names = {name: iter(labels([run for run in subjects if run.head["experiment"] == name])) for name in SECTIONS}
    for number, run in enumerate(subjects, 1):
        experiment = run.head["experiment"]
        page = _Page(target, f"{experiment}-{number}", run.head, run.folder, *given)
        parts += [page.heading(run.records, next(names[experiment])), *SECTIONS[experiment](page, run.frame)]
    file = target / REPORT
    write_whole(file, "\n\n".join(parts) + "\n")
    return file


def published(experiment: str) -> str:
    """What others published about the question of an experiment, as a table with its sources."""
    file = resources.files(f"imp_kit.experiments.{experiment}").joinpath("published.csv")
    head, *rows = csv.reader(file.read_text("utf-8").splitlines())
    return table(head, rows)


def _side_by_side(runs: Sequence[Run]) -> list[str]:
    """Subjects that were asked the same."""
    head = runs[0].head
    title = f"# {TITLES[head['experiment']]}: {len(runs)} subjects side by side"
    design = ", ".join(f"{name} {head[name]}" for name in ("size", "seed") if name in head)
    note = [NOT_IMP] if any(_is_nano(run.head, run.records) for run in runs) else []
    return [title, *note, f"{INTERVALS} Asked: {design or UNKNOWN}.", figures(runs), differences(runs)]


def _served(records: Iterable[dict]) -> Counter[str]:
    """How many answers each model gave, as a server names it."""
    return Counter(record["served_model"] for record in records if record.get("served_model"))


def _is_nano(head: dict, records: Iterable[dict]) -> bool:
    """Whether imp-nano answered, also behind an endpoint."""
    return head["checkpoint"] == NANO or NANO in _served(records)


class _Page:
    """Where a run's part of a report goes, and the commands that make it again."""

    def __init__(self, target: Path, prefix: str, head: dict, folder: Path, folders: Iterable[Path], out: Path | None):
        self.target, self.prefix, self.head = target, prefix, head
        self.name = head["checkpoint"]
        self.ask = command(head, folder)
        self.draw = f"python -m imp_kit report {shlex.join(str(each.absolute()) for each in folders)}"
        self.draw += f" --out {shlex.quote(str(out.absolute()))}" if out else ""

    def heading(self, records: Sequence[dict], label: str) -> str:
        """What is known of the run, under its name: `label` is the subject's among the runs of the report."""
        answered = [record for record in records if record["status"] == "ok"]
        failed = len(records) - len(answered)
        versions = ", ".join(f"{name} {number}" for name, number in answered[0].get("versions", {}).items() if number)
        head = defaultdict(lambda: UNKNOWN, self.head)  # a run of an earlier version may know less
        settings = ", ".join(f"{name} {value}" for name, value in self.head.get("settings", {}).items())
        here = {
            "revision": head["revision"] or "none (a bundled or local folder)",
            "SHA-256 of its files": head["files"] or "",
            "dtype, device": f"{head['dtype']}, {head['device']}",
        }
        refused = sum(record.get("finish") == "refusal" for record in answered)
        refusals = f"{refused} of them with a refusal (scored as any answer), " if refused else ""
        shown = {
            "checkpoint": self.name,
            **(_behind_endpoint(head["endpoint"], answered) if "endpoint" in head else here),
            "size, seed": f"{head['size']}, {head['seed']}",
            "settings": settings or ("the defaults" if "settings" in head else UNKNOWN),
            "samples": f"{len(answered)} answered, {refusals}{failed} failed (failed ones are in no score)",
            "versions": versions or UNKNOWN,
        }
        lines = [f"# {TITLES[self.head['experiment']]}: {plain(label)}", ""]
        lines += [NOT_IMP, ""] if _is_nano(self.head, records) else []
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


def _behind_endpoint(address: str, answered: Sequence[dict]) -> dict[str, str]:
    """What is known of a subject that a server answered for."""
    served = ", ".join(f"{name} ({count:,} answers)" for name, count in _served(answered).items())
    told = {name: [each[name] for each in answered if each.get(name) is not None] for name in TOLD}
    tokens = [f"{sum(told[f'{way}_tokens']):,} {way}" for way in ("input", "output") if told[f"{way}_tokens"]]
    taken = not any("temperature" in each.get("left_out", ()) for each in answered)
    return {
        "endpoint": address,
        "model, as the server names it": served or "not told",
        "decoding": "as the server does it; it was asked for temperature 0"
        if taken
        else "not greedy: the server takes no temperature, and answers may differ from run to run",
        "tokens": ", ".join(tokens) or "not told",
        "cost": f"{sum(told['cost']):.4f} (as the server counts it)" if told["cost"] else "not told",
    }


def _captcha(page: _Page, frame: "DataFrame") -> list[str]:
    by_level = reading.ladder(frame)
    parts = []
    if by_level:
        parts += ["## By distortion", _reading_table({f"L{level}": rows for level, rows in by_level.items()})]
        what = "codes that stand in the answer, by level of distortion"
        parts += [page.figure("ladder", what, plots.ladder({page.name: frame}))]
        what = "characters shown, in rows, and read, in columns"
        drawn = plots.confusion(frame, page.name)
        parts += ["## Which character was read as which", page.figure("confusion", what, drawn)]
    if not frame.caption_kind.isin(["none", "alone"]).all():
        parts += ["## The caption below the code", _lure_table(reading.lure(frame)), _primary(frame, page.head)]
        what = "what answers give: the code, the caption below it, both or neither"
        parts += [page.figure("lure", what, plots.lure(frame, page.name))]
    changed = frame[~frame.changed.isin(["", "control"])]
    for base, name in sorted(set(zip(changed.level, changed.changed, strict=True))):
        found = reading.factor(frame, name, base)
        parts += [f"## {name.capitalize()}, all else as in L{base}"]
        parts += [_reading_table({str(value): rows for value, rows in found.items()}, name)]
        what, drawn = f"codes that stand in the answer, by {name}", plots.factors(frame, [name], base, page.name)
        parts += [page.figure(f"{name.replace(' ', '-')}-L{base}", what, drawn)]
    parts += _controls(frame[frame.changed == "control"])
    parts += ["## Some answers in full", _answers(frame[frame.expected.notna()])]
    return [*parts, "## What others published", PUBLISHED, published(reading.NAME)]


def _reading_table(groups: "dict[str, DataFrame]", first: str = "") -> str:
    lines = []
    for label, rows in groups.items():
        f = reading.summarise(rows)
        lines += [[plain(label), str(len(rows)), str(f.exact), str(f.strict), str(f.contained), f"{f.chance:.1%}",
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


def _lure_table(groups: "dict[tuple[int, str, str], DataFrame]") -> str:
    lines = []
    for (level, question, caption), rows in groups.items():
        contained = "" if caption == "alone" else str(share_of(rows.contained))
        copied = chance = ""
        if caption != "none":
            copied = str(share_of(rows.outcome.isin(["both", "caption only"])))
            without = groups.get((level, question, "none"))
            if without is not None:
                hits = [scores.is_copied(rows.caption.iloc[0], answer) for answer in without.answer]
                chance = f"{sum(hits) / len(hits):.1%}"
        counts = [str((rows.outcome == outcome).sum()) for outcome in plots.OUTCOMES]
        lines.append([f"L{level}", caption, plain(question), str(len(rows)), contained, copied, chance, *counts])
    head = ["level", "caption", "question", "pictures", "code in reply", "caption copied", "by chance", *plots.OUTCOMES]
    return (
        table(head, lines)
        + "\n\nby chance: the caption found in replies to the same question where the picture has none."
    )


def _primary(frame: "DataFrame", head: dict) -> str:
    """Codes that stand in the answer without a caption against with the true one, on the same codes.

    Not the extracted text: an answer that gives the caption first, or unquoted, would count as not read for its form.
    """
    by_level = reading.compared(frame)
    if not by_level:
        return "No code was asked with a true caption and without, at the level to compare; finish the run first."
    p_values = [mcnemar(paired.contained, paired.contained_captioned) for paired in by_level.values()]
    rows = [
        [f"L{level}", str(len(paired)), f"{paired.contained.mean():.1%}", f"{paired.contained_captioned.mean():.1%}",
         f"{p:.3g}", *_reading_differences(paired)]
        for (level, paired), p in zip(by_level.items(), holm(p_values), strict=True)
    ]  # fmt: skip
    columns = ["level", "pairs", "without", "with", "p (exact McNemar, Holm if several)", "difference", "in CER",
               "in edits", "in place"]  # fmt: skip
    levels = "at a level that was fixed beforehand"
    if (frame.codes == "captions").any():
        levels = f"at {reading.RULE} (a rule from before the run; the captions have other codes than the ladder)"
    return (
        f"The main question, {levels}: does a true caption keep the code out of the answer?\n\n"
        + table(columns, rows)
        + "\n\ndifference: what a caption adds, on the same codes. In one sentence:\n\n> "
        + plain(reading.sentence(frame, head))
    )


def _reading_differences(paired: "DataFrame") -> list[str]:
    """How answers with a caption differ from those without about the same codes, with intervals over the pairs."""
    codes = range(len(paired))
    contained, edit_share, position = (
        bounded_difference(_more(paired, name, "_captioned"), codes) for name in ("contained", "edit_share", "position")
    )
    more_errors = paired[["expected_characters"]].assign(errors=_more(paired, "errors", "_captioned"))
    errors = bootstrap(more_errors[["errors", "expected_characters"]], codes)
    return [f"{contained:+.1%}", *(f"{each:+.2f}" for each in (errors, edit_share, position))]


def _more(paired: "DataFrame", name: str, other: str):
    """What a score is more under the other condition, whose columns end so."""
    return paired[f"{name}{other}"].astype(float) - paired[name].astype(float)


def _controls(frame: "DataFrame") -> list[str]:
    rows = [
        [str(value), plain(question), str(len(rows)), str(share_of(rows.invented)), quoted(rows.answer.iloc[0])]
        for (value, question), rows in frame.groupby(["value", "question_kind"], sort=False)
    ]
    head = ["picture", "question", "samples", "text invented", "for example"]
    return ["## Pictures without text", table(head, rows)] if rows else []


def _some(frame: "DataFrame") -> "DataFrame":
    """ANSWERS rows from all over a frame."""
    return frame.iloc[:: max(1, len(frame) // ANSWERS)][:ANSWERS]


def _answers(frame: "DataFrame") -> str:
    return table(
        ["shown", "caption", "level", "question", "answer", "extracted"],
        (
            [plain(s.expected), plain(s.caption), f"L{s.level}", plain(s.question_kind), quoted(s.answer),
             quoted(s.extracted)]
            for s in _some(frame.fillna({"caption": ""})).itertuples()
        ),
    )  # fmt: skip


def _japanese(page: _Page, frame: "DataFrame") -> list[str]:
    parts = []
    for part, title in PARTS.items():
        chosen = frame[frame.part == part]
        if len(chosen):
            parts += [f"## {title}", _chain_table(chosen)]
            if part == "scene":
                parts += [_by_skill(chosen), _contrast(chosen)]
            parts += [_differences(chosen)]
            if part == "photograph":
                parts += [_by_photograph(chosen), _similarity(chosen)]
            what = "answers that are right, that are in Japanese, and both, by the language of the question"
            parts += [page.figure(f"chain-{part}", what, plots.chain(frame, page.name, part))]
    general = frame[frame.part == "general"]
    if general.picture.nunique() == 2:
        parts += ["## Questions that need no picture, with one and without", _chain_table(general)]
        parts += [_differences(general[general.picture])]
        what = "replies in Japanese, with a picture and without"
        parts += [page.figure("fidelity", what, plots.fidelity(frame, page.name))]
    asked = frame[frame.language != "English"].fillna({"finish": "None"})
    rows = [[plain(s.question), quoted(s.answer), s.finish] for s in _some(asked).itertuples()]
    parts += ["## Some answers in full", table(["question", "answer", "finish"], rows)]
    return [*parts, "## What others published", PUBLISHED, published(japanese.NAME)]


def _chain_table(frame: "DataFrame") -> str:
    lines = []
    for language, asked in japanese.by_language(frame).items():
        for shown, rows in sorted(asked.groupby("picture"), reverse=True, key=lambda group: group[0]):
            c, chance = japanese.chain(rows), japanese.chance(rows)
            seconds = "" if c.seconds_a_character is None else f"{c.seconds_a_character:.3f}"
            right = [c.right, "" if chance is None else f"{chance:.1%}", c.japanese, c.both]
            looks = [c.cut, f"{c.replaced_inside} / {c.replaced_at_end}", c.repetition, c.tokens_a_character, seconds]
            lines.append([language, "yes" if shown else "no", str(len(rows)), *(str(f or "") for f in right + looks)])
    bridge = frame[(frame.part == "scene") & (frame.language == "English")]
    if len(bridge):
        names = japanese.data()["terms"]
        pairs = zip(bridge.answer_kind, bridge.expected, strict=True)
        expected = [names[kind][answer]["ja"][0] for kind, answer in pairs]
        share = str(share_of(bridge.bridged.eq(expected).fillna(False)))
        lines += [["bridge", "yes", str(len(bridge)), share, "", "by dictionary", share, "", "", "", "", ""]]
    head = ["asked in", "picture", "samples", "right", "by chance", "in Japanese", "right and in Japanese",
            "cut by the limit", "U+FFFD inside / at the end", "repetition", "tokens a character",
            "seconds a character"]  # fmt: skip
    text = table(head, lines)
    if frame.right.notna().all():
        text += f"\n\n{CHANCE}"
    if len(bridge):
        text += (
            " bridge: the English question by hand, the answer turned into Japanese by a dictionary: an upper bound "
            "for translating before and after."
        )
    return text


def _differences(frame: "DataFrame") -> str:
    """What each other language changes against English, over the same questions, with intervals over the pictures."""
    lines = []
    for language in japanese.LANGUAGES[1:]:
        paired = japanese.pairs(frame, language)
        if len(paired):
            repeated = bounded_difference(_more(paired, "repetition", "_other"), paired.shown)
            right = ""
            if paired.right.notna().all():
                right = f"{bounded_difference(_more(paired, 'right', '_other'), paired.shown):+.1%}"
            counted = [_more_a_character(paired, name) for name in COUNTED]
            lines.append([language, str(len(paired)), right, f"{repeated:+.2f}", *counted])
    head = ["more than in English", "pairs", "right", "repetition", *(f"{name} a character" for name in COUNTED)]
    return table(head, lines) if lines else "No question was answered in two languages."


def _more_a_character(paired: "DataFrame", name: str) -> str:
    columns = [f"{name}_other", "characters_other", name, "characters"]
    counted = paired.dropna(subset=columns)
    if not (counted.characters.any() and counted.characters_other.any()):
        return ""
    return f"{bootstrap(counted[columns], counted.shown, difference):+.3f}"


def _by_skill(frame: "DataFrame") -> str:
    lines = []
    for skill, rows in frame.groupby("skill", sort=False):
        found = japanese.by_language(rows)
        lines.append([skill])
        for language in japanese.LANGUAGES:
            chance = japanese.chance(found[language]) if language in found else None
            lines[-1] += [str(share_of(found[language].right)) if language in found else "–"]
            lines[-1] += ["–" if chance is None else f"{chance:.1%}"]
    head = [name for language in japanese.LANGUAGES for name in (language, "by chance")]
    return table(["right, in any language", *head], lines)


def _by_photograph(frame: "DataFrame") -> str:
    """Scores with intervals over the photographs: questions about one are no independent evidence."""
    lines = []
    for language, rows in japanese.by_language(frame).items():
        found = [bounded_mean(rows[name], rows.shown) for name in ("right", "japanese", "both")]
        lines.append([language, str(rows.shown.nunique()), *(f"{each:.1%}" for each in found)])
    head = ["asked in", "photographs", "right", "in Japanese", "right and in Japanese"]
    text = "With intervals over the photographs, since answers about one hang together:"
    return f"{text}\n\n{table(head, lines)}"


def _contrast(frame: "DataFrame") -> str:
    """Right in any language: English against Japanese about the same pictures."""
    paired = japanese.pairs(frame)
    if paired.empty:
        return "No picture was asked about in both languages."
    less = bounded_difference(-_more(paired, "right", "_other"), range(len(paired)))
    return (
        f"The main question: is an answer more often right when asked in English? {paired.right.mean():.1%} against "
        f"{paired.right_other.mean():.1%} of {len(paired)} pairs, difference {less:+.1%}, exact McNemar "
        f"p = {mcnemar(paired.right, paired.right_other):.3g}."
    )


def _similarity(frame: "DataFrame") -> str:
    """chrF against the references, of each language that is asked to give Japanese, and how they differ."""
    if not has("sacrebleu"):
        return "chrF is left out: it needs sacrebleu (pip install sacrebleu)."
    frame = frame[frame.language != japanese.LANGUAGES[0]]
    lines, each = [], {}
    for language, rows in japanese.by_language(frame).items():
        replies, references = list(rows.answer), list(rows.references.str.split(japanese.ALTERNATIVE, regex=False))
        corpus, signature = scores.chrf(replies, references)
        found = scores.chrf_each(replies, references)
        each[language] = rows[["shown", "seed"]].assign(chrf=found)
        mean = bounded_mean(found, rows.shown, most=100)
        lines += [f"{language}: chrF {corpus:.1f} over {len(rows)} answers ({signature}); answer by answer {mean:.1f}."]
    if len(each) == 2:
        one, other = each.values()
        paired = one.merge(other, on=["shown", "seed"], suffixes=("", "_other"))
        more = bounded_difference(_more(paired, "chrf", "_other"), paired.shown, most=100)
        lines += [f"{japanese.LANGUAGES[2]}, more than {japanese.LANGUAGES[1]}: {more:+.1f}, answer by answer."]
    return "\n\n".join(lines)


def _documents(page: _Page, frame: "DataFrame") -> list[str]:
    lines = []
    for kind, skill, rows in documents.by_skill(frame):
        s = documents.summarise(rows)
        lines += [[kind, skill, rows.rule.iloc[0], str(len(rows)), str(s.right),
                   "" if s.chance is None else f"{s.chance:.1%}", str(s.score), str(s.refused)]]  # fmt: skip
    head = ["document", "question", "rule", "samples", "right", "by chance", "score", "says that it cannot"]
    note = (
        f"{CHANCE} score: of text ANLS, of HTML F1 over its elements, of boxes IoU (right from 0.5 on), else 1 or 0, "
        "mean. The rules are in imp_kit/experiments/documents/answers.py."
    )
    parts = ["## By document and question", f"{table(head, lines)}\n\n{note}"]
    what = "right answers with the document, with another one, and without image"
    parts += [page.figure("skills", what, plots.skills({page.name: frame}))]
    for control in documents.CONTROLS[1:]:
        if len(paired := documents.pairs(frame, control)):
            parts += [f"## The same questions with {_named(control)}", _against(paired)]
    shown = [
        [s.kind, plain(s.question.splitlines()[0]), plain(s.expected), quoted(s.answer), plain(s.extracted)]
        for s in _some(frame[frame.control == "none"]).itertuples()
    ]
    head = ["document", "question", "true", "answer", "extracted"]
    return [*parts, "## Some answers in full", table(head, shown)]


def _named(control: str) -> str:
    return {"other image": "another document of the same kind", "no image": "no image"}[control]


def _against(paired: "DataFrame") -> str:
    """What the document adds to right answers: of all questions, which is the main question, and of each skill."""
    groups = {"all": paired} | {
        f"{kind}: {skill}": rows for (kind, skill), rows in paired.groupby(["kind", "skill"], sort=False)
    }
    tests = [mcnemar(rows.right, rows.right_control) for rows in groups.values()]
    p_values = [tests[0], *holm(tests[1:])]
    lines = [
        [name, str(len(rows)), f"{rows.right.mean():.1%}", f"{rows.right_control.mean():.1%}",
         f"{bounded_difference(-_more(rows, 'right', '_control'), range(len(rows))):+.1%}", f"{p:.3g}"]
        for (name, rows), p in zip(groups.items(), p_values, strict=True)
    ]  # fmt: skip
    head = ["questions", "pairs", "with its document", "control", "difference", "p"]
    return table(head, lines) + "\n\np: exact McNemar; of the single questions after Holm."


def _pope(page: _Page, frame: "DataFrame") -> list[str]:
    figures = pope.table(frame)
    note = (
        "yes-bias: how much more often the answer is yes than it is true; half of the things are there. Always yes has "
        "an accuracy of 50 %, a recall of 100 % and an F1 of 66.7 %. After arXiv 2305.10355, with drawings."
    )
    parts = ["## By sampling of the absent things", f"{table(list(figures), figures.values.tolist())}\n\n{note}"]
    paired = pope.pairs(frame)
    if len(paired):
        more = bounded_difference(_more(paired, "yes", "_other"), range(len(paired)))
        p = mcnemar(paired.yes, paired.yes_other)
        parts += [
            "The main question: does a habit, a thing that often comes with those in the image, draw a yes? An absent "
            f"thing that was chosen at random was said to be in {paired.yes.mean():.1%} of {len(paired)} images, one "
            f"chosen by co-occurrence in {paired.yes_other.mean():.1%}: difference {more:+.1%}, exact McNemar p = "
            f"{p:.3g}."
        ]
    what = "answers of yes, about what is there and what is not"
    parts += [page.figure("yes", what, plots.hallucination(frame, page.name))]
    controls = [
        [control, str(len(rows)), str(share_of(rows.yes)), quoted(rows.answer.iloc[0])]
        for control, rows in frame[frame.control != "none"].groupby("control", sort=False)
    ]
    if controls:
        parts += ["## Where nothing is there", table(["image", "questions", "yes", "for example"], controls)]
    shown = [[plain(s.question), s.expected, quoted(s.answer), s.extracted] for s in _some(frame).itertuples()]
    parts += ["## Some answers in full", table(["question", "true", "answer", "read as"], shown)]
    return [*parts, "## What others published", PUBLISHED, published(pope.NAME)]


TITLES = {
    reading.NAME: "Reading probe",
    japanese.NAME: "Japanese limits",
    documents.NAME: "Documents",
    pope.NAME: "Things that are not there",
}
PARTS = {
    "scene": "Drawn scenes with exact truth",
    "photograph": "Photographs",
    "written": "Japanese text in the picture",
}
SECTIONS = {reading.NAME: _captcha, japanese.NAME: _japanese, documents.NAME: _documents, pope.NAME: _pope}
