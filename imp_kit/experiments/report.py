"""One Markdown file with its pictures from the records of runs: tables, plots, answers in full, and how to repeat them.

Nothing is asked and no model is loaded; a run's folder is all that is needed.
"""

import os
import shlex
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from imp_kit.errors import RunError
from imp_kit.experiments import japanese, plots, reading
from imp_kit.experiments.record import read, read_head
from imp_kit.experiments.stats import bootstrap, holm, mcnemar, wilson

REPORT = "report.md"
NOT_IMP = (
    "imp-nano is the kit's own small checkpoint, taught drawings and clean text. Its results show that the instrument "
    "works; they say nothing about Imp."
)
ANSWERS = 10  # given in full


def write(folders: Sequence[str | os.PathLike], out: str | os.PathLike | None = None) -> Path:
    """Write report.md and its pictures into `out`, the first run's folder by default; return the file.

    Raises RunError for a folder that holds no run, or a run of an experiment that has no report.
    """
    if not folders:
        raise RunError("There is no run to report; name the folders of one run or more.")
    runs = [(Path(folder), read_head(folder)) for folder in folders]
    for folder, head in runs:
        if head.get("experiment") not in SECTIONS:
            known = ", ".join(SECTIONS)
            raise RunError(f"{folder} holds a run of {head.get('experiment')!r}; there are reports of {known}.")
    target = Path(out) if out else runs[0][0]
    target.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, (folder, head) in enumerate(runs, 1):
        records = read(folder)
        prefix = f"{head['experiment']}-{number}"
        page = _Page(target, prefix, head, folder, [Path(each) for each in folders], target if out else None)
        parts += [page.heading(records), *SECTIONS[head["experiment"]](page, records)]
    file = target / REPORT
    file.write_text("\n\n".join(parts) + "\n", "utf-8")
    return file


class _Page:
    """Where a run's part of a report goes, and the commands that make it again."""

    def __init__(self, target: Path, prefix: str, head: dict, folder: Path, folders: Iterable[Path], out: Path | None):
        self.target, self.prefix, self.head = target, prefix, head
        self.name = head["checkpoint"]
        self.ask = None  # an object was asked, by code that a report does not know
        if head.get("place"):
            options = {"checkpoint": head["place"], "out": folder}
            options |= {key: head.get(key) for key in ("revision", "size", "seed", "dtype", "device")}
            chosen = (f" --{key} {shlex.quote(str(value))}" for key, value in options.items() if value is not None)
            self.ask = f"python -m imp_kit probe {head['experiment']}{''.join(chosen)}"
        self.draw = f"python -m imp_kit report {shlex.join(map(str, folders))}"
        self.draw += f" --out {shlex.quote(str(out))}" if out else ""

    def heading(self, records: Sequence[dict]) -> str:
        failed = sum(record["status"] == "error" for record in records)
        first = next((record for record in records if record["status"] == "ok"), None)
        if first is None:
            raise RunError(f"The run of {self.name} holds no answered sample; run the probe again first.")
        versions = ", ".join(f"{name} {number}" for name, number in first["versions"].items() if number)
        shown = {
            "checkpoint": self.name,
            "revision": self.head["revision"] or "none (a bundled or local folder)",
            "SHA-256 of its files": self.head["files"] or "",
            "dtype, device": f"{self.head['dtype']}, {self.head['device']}",
            "size, seed": f"{self.head.get('size')}, {self.head.get('seed')}",
            "settings": ", ".join(f"{name} {value}" for name, value in self.head["settings"].items()) or "the defaults",
            "samples": f"{len(records) - failed} answered, {failed} failed (failed ones are in no score)",
            "versions": versions,
        }
        lines = [f"# {TITLES[self.head['experiment']]}: {self.name}", ""]
        lines += [NOT_IMP, ""] if self.name == "imp-nano" else []
        lines += ["Greedy decoding: the 95 % intervals are over the samples, not over repeated runs.", ""]
        lines += [_table(["what", ""], [[key, str(value)] for key, value in shown.items()])]
        return "\n".join(lines)

    def figure(self, kind: str, drawn) -> str:
        """Save a figure; the line that shows it, and the commands that make it again."""
        name = f"{self.prefix}-{kind}.png"
        drawn.savefig(self.target / name)
        return f"![{kind} of {self.name}]({name})\n\n{self.again()}"

    def again(self) -> str:
        if self.ask is None:
            return f"Drawn again by `{self.draw}`; {self.name} was asked by code of its own."
        return f"Made again by `{self.ask}` and `{self.draw}`."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _told(text: str) -> str:
    """A model's words within a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _captcha(page: _Page, records: Sequence[dict]) -> list[str]:
    samples = reading.samples(records)
    rows = reading.ladder(samples)
    parts = []
    if rows:
        parts += ["## By distortion", _reading_table([f"L{row[0].cell.level}" for row in rows], rows)]
        parts += [page.figure("ladder", plots.ladder({page.name: samples}))]
        parts += ["## Which character was read as which", page.figure("confusion", plots.confusion(samples, page.name))]
    if any(sample.cell.caption not in ("none", "alone") for sample in samples):
        parts += ["## The caption below the code", _lure_table(reading.lure(samples)), _primary(samples)]
        parts += [page.figure("lure", plots.lure(samples, page.name))]
    for base in sorted({s.cell.level for s in samples}):
        changed = {s.cell.changed for s in samples if s.cell.level == base} - {"", "control"}
        for name in sorted(changed):
            found = reading.factor(samples, name, base)
            parts += [f"## {name.capitalize()}, all else as in L{base}"]
            parts += [_reading_table([str(value) for value in found], list(found.values()), name)]
            parts += [page.figure(f"{name.replace(' ', '-')}-L{base}", plots.factors(samples, [name], base, page.name))]
    parts += _controls(samples)
    parts += ["## Ten answers in full", _answers([s for s in samples if s.code]), page.again()]
    return parts


def _reading_table(labels: Sequence[str], rows: Sequence[Sequence[reading.Sample]], first: str = "") -> str:
    figures = [(label, len(row), reading.summarise(row)) for label, row in zip(labels, rows, strict=True)]
    head = [
        first,
        "pictures",
        "read exactly",
        "whole reply",
        "code in reply",
        "by chance",
        "CER",
        "edits",
        "place",
    ]
    return (
        _table(
            head,
            (
                [
                    name,
                    str(n),
                    str(f.exact),
                    str(f.strict),
                    str(f.contained),
                    f"{f.chance:.1%}",
                    f"{f.errors:.2f} ({f.errors_low:.2f} – {f.errors_high:.2f})",
                    f"{f.edit_share:.2f}",
                    f"{f.position:.2f}",
                ]
                for name, n, f in figures
            ),
        )
        + "\n\nwhole reply: it is the code and nothing else. CER: edits over all true characters, can exceed 1. edits: "
        "edits over the longer text, mean. place: share of characters at the right place."
    )


def _lure_table(rows: Sequence) -> str:
    lines = []
    for row in rows:
        cell = row[0].cell
        counts = {outcome: sum(sample.outcome == outcome for sample in row) for outcome in plots.OUTCOMES}
        share = "" if cell.caption == "alone" else str(wilson(sum(sample.contained for sample in row), len(row)))
        copied = wilson(counts["both"] + counts["caption only"], len(row)) if cell.caption != "none" else None
        lines += [[f"L{cell.level}", cell.caption, cell.question, str(len(row)), share, str(copied or ""),
                   *(str(count) for count in counts.values())]]  # fmt: skip
    head = ["level", "caption", "question", "pictures", "code in reply", "caption copied", *plots.OUTCOMES]
    return _table(head, lines)


def _primary(samples: Sequence[reading.Sample]) -> str:
    """Codes that stand in the answer without a caption against with the true one, on the same codes.

    Not the extracted text: an answer that gives the caption first, or unquoted, would count as not read for its form.
    """
    lines, p_values = [], []
    for level in reading.LURE_LEVELS:
        conditions = [
            [s for s in samples if s.cell == reading.Cell(level=level, caption=caption)] for caption in ("none", "true")
        ]
        one, other = reading.pairs(*conditions)
        if one:
            right = [[s.contained for s in row] for row in (one, other)]
            p_values.append(mcnemar(*right))
            lines.append([f"L{level}", str(len(one)), *(f"{sum(row) / len(row):.1%}" for row in right)])
    adjusted = holm(p_values)
    rows = [[*line, f"{p:.3g}", f"{a:.3g}"] for line, p, a in zip(lines, p_values, adjusted, strict=True)]
    return "The main question, at L0: does a true caption keep the code out of the answer?\n\n" + _table(
        ["level", "pairs", "without", "with", "p (exact McNemar)", "p after Holm"], rows
    )


def _controls(samples: Sequence[reading.Sample]) -> list[str]:
    chosen = reading.select(samples, lambda cell: cell.changed == "control")
    if not chosen:
        return []
    rows = [
        [str(cell.value), cell.question, str(len(row)), str(wilson(sum(s.invented for s in row), len(row))),
         _told(row[0].reply)]
        for cell, row in chosen.items()
    ]  # fmt: skip
    head = ["picture", "question", "samples", "text invented", "for example"]
    return ["## Pictures without text", _table(head, rows)]


def _answers(samples: Sequence[reading.Sample]) -> str:
    step = max(1, len(samples) // ANSWERS)
    return _table(
        ["shown", "caption", "level", "question", "answer", "extracted"],
        (
            [s.code, s.caption, f"L{s.cell.level}", s.cell.question, _told(s.reply), _told(s.read)]
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
            if part == "photograph":
                parts += [_by_photograph(chosen), _similarity(chosen)]
            parts += [page.figure(f"chain-{part}", plots.chain(samples, page.name, part))]
    general = [s for s in samples if s.cell.part == "general"]
    if {s.cell.picture for s in general} == {True, False}:
        parts += ["## Questions that need no picture, with one and without", _chain_table(general)]
        parts += [page.figure("fidelity", plots.fidelity(samples, page.name))]
    asked = [s for s in samples if s.cell.language != "English"]
    step = max(1, len(asked) // ANSWERS)
    rows = [[s.question, _told(s.reply), str(s.finish)] for s in asked[::step][:ANSWERS]]
    parts += ["## Ten answers in full", _table(["question", "answer", "finish"], rows), page.again()]
    return parts


def _chain_table(samples: Sequence[japanese.Sample]) -> str:
    lines = []
    for language in japanese.LANGUAGES:
        for shown in (True, False):
            row = [s for s in samples if (s.cell.language, s.cell.picture) == (language, shown)]
            if not row:
                continue
            c = japanese.chain(row)
            per = "" if c.tokens_per_character is None else f"{c.tokens_per_character:.2f}"
            lines += [[language, "yes" if shown else "no", str(len(row)), str(c.right or ""), str(c.japanese),
                       str(c.both or ""), str(c.cut or ""), f"{c.replaced_inside} / {c.replaced_at_end}",
                       f"{c.repetition:.2f}", per]]  # fmt: skip
    bridge = [s for s in samples if s.cell.part == "scene" and s.cell.language == "English"]
    if bridge:
        names = japanese.data()["terms"]
        right = sum(
            s.bridged is not None and s.bridged == names[s.truth["set"]][s.truth["answer"]]["ja"][0] for s in bridge
        )
        share = str(wilson(right, len(bridge)))
        lines += [["bridge", "yes", str(len(bridge)), share, "by dictionary", share, "", "", "", ""]]
    head = ["asked in", "picture", "samples", "right", "in Japanese", "right and in Japanese", "cut by the limit",
            "U+FFFD inside / at the end", "repetition", "tokens a character"]  # fmt: skip
    text = _table(head, lines)
    if bridge:
        text += (
            "\n\nbridge: the English question by hand, the answer turned into Japanese by a dictionary: an upper bound "
            "for translating before and after."
        )
    return text


def _by_skill(samples: Sequence[japanese.Sample]) -> str:
    skills = dict.fromkeys(s.cell.skill for s in samples)
    rows = []
    for skill in skills:
        each = [[s for s in samples if (s.cell.skill, s.cell.language) == (skill, lang)] for lang in japanese.LANGUAGES]
        rows.append([skill, *(str(japanese.chain(row).right) if row else "–" for row in each)])
    return _table(["right, in any language", *japanese.LANGUAGES], rows)


def _by_photograph(samples: Sequence[japanese.Sample]) -> str:
    """Right answers with intervals that draw whole photographs: questions about one are no independent evidence."""
    lines = []
    for language in japanese.LANGUAGES:
        row = [s for s in samples if s.cell.language == language]
        if row:
            right, pictures = [s.right for s in row], [s.truth["picture"] for s in row]
            low, high = bootstrap(right, pictures)
            share, count = sum(right) / len(row), len(set(pictures))
            lines += [f"{language}: {share:.1%} right ({low:.1%} – {high:.1%}, drawing whole photographs, of {count})."]
    return "\n".join(lines)


def _contrast(samples: Sequence[japanese.Sample]) -> str:
    """Right in any language: English against Japanese about the same pictures."""
    one, other = japanese.pairs(samples)
    if not one:
        return "No picture was asked about in both languages."
    difference = [int(a) - int(b) for a, b in zip(one, other, strict=True)]
    low, high = bootstrap(difference, range(len(difference)))
    return (
        f"The main question: is an answer more often right when asked in English? {sum(one) / len(one):.1%} against "
        f"{sum(other) / len(other):.1%} of {len(one)} pairs, difference {sum(difference) / len(one):+.1%} "
        f"({low:+.1%} to {high:+.1%}, bootstrap over pictures), exact McNemar p = {mcnemar(one, other):.3g}."
    )


def _similarity(samples: Sequence[japanese.Sample]) -> str:
    if find_spec("sacrebleu") is None:
        return "chrF is left out: it needs sacrebleu (pip install sacrebleu)."
    from imp_kit.experiments.scores import chrf

    lines = []
    for language in japanese.LANGUAGES[1:]:
        row = [s for s in samples if s.cell.language == language]
        if not row:
            continue
        score, signature = chrf([s.reply for s in row], [s.truth["references"] for s in row])
        lines += [f"{language}: chrF {score:.1f} over {len(row)} answers ({signature})."]
    return "\n".join(lines)


TITLES = {reading.NAME: "Reading probe", japanese.NAME: "Japanese limits"}
PARTS = {
    "scene": "Drawn scenes with exact truth",
    "photograph": "Photographs",
    "written": "Japanese text in the picture",
}
SECTIONS = {reading.NAME: _captcha, japanese.NAME: _japanese}
