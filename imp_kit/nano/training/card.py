"""The card of imp-nano: what `evaluate` measured as tables, and the log of the training as a plot."""

import csv
import io
import json
from itertools import islice
from pathlib import Path
from textwrap import fill

from PIL import Image

from imp_kit.errors import SettingError
from imp_kit.nano.training.evaluation import OVERLAP, VARIED, WORDINGS, exam
from imp_kit.nano.training.lessons import ONLY_DRAWINGS, SKILLS
from imp_kit.nano.training.text import LONGEST

SMALLEST_PART = 0.1  # of a cell's pictures; fewer say too little for a line of their own


def _cell(entry: dict) -> str:
    return f"{entry['share']:.1%} ({entry['wilson_95'][0]:.1%} – {entry['wilson_95'][1]:.1%})"


def table(figures: dict) -> str:
    """The scores as Markdown: share of right answers with its interval, then what is counted by part."""
    skills = figures["skills"]
    lines = ["| skill | trained wordings | unseen wordings | other drawings |", "| --- | --- | --- | --- |"]
    for skill, entry in skills.items():
        cells = (_cell(entry[column]) if column in entry else "" for column in (*WORDINGS, VARIED))
        lines.append(f"| {skill.replace('_', ' ')} | {' | '.join(cells)} |")
    refused = figures["drawings_refused"]
    lines += [
        "",
        f"To {refused['right']} of the {refused['samples']} questions about drawings and texts it answered "
        f"“{ONLY_DRAWINGS}”, which is wrong there.",
        "",
        "Boxes of things that are there overlap the true ones by "
        f"{_overlap(skills, 'trained')} in trained wordings, {_overlap(skills, 'unseen')} in unseen ones, and "
        f"{_overlap(skills, VARIED)} in other drawings (mean intersection over union); “locate” counts a box as right "
        f"from {OVERLAP}.",
        "",
        "| part (trained wordings) | pictures | right |",
        "| --- | --- | --- |",
    ]
    for skill in skills:
        entry = skills[skill]["trained"]
        lines += [
            f"| {skill.replace('_', ' ')}: {part} | {counted['samples']} | {_cell(counted)} |"
            for part, counted in entry.get("parts", {}).items()
            if counted["samples"] >= SMALLEST_PART * entry["samples"]
        ]
    lines += [
        f"| a question asked as the {place} in a chat | {entry['samples']} | {_cell(entry)} |"
        for place, entry in figures["chat"].items()
    ]
    lines += [
        "",
        "The reading probe shows codes of eight characters in one plain style, clean (L0) to strongly distorted (L4):",
        "",
        "| reading probe | pictures | exactly read |",
        "| --- | --- | --- |",
    ]
    lines += [f"| L{level} | {entry['samples']} | {_cell(entry)} |" for level, entry in enumerate(figures["probe"])]
    return "\n".join(lines)


def _overlap(skills: dict, wording: str) -> str:
    share = skills["locate"][wording].get("mean_overlap")
    return "not measured" if share is None else f"{share:.3f}"


def check_target(file: Path) -> None:
    """Make the folder of a file of figures; asked before the work, too, for nothing of that may be lost.

    Raises SettingError where this cannot be, or the card would replace a README.md that is none.
    """
    if file.is_dir():
        raise SettingError(f"--json is {file}, which is a folder; name a file in it.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"--json is {file}, whose folder cannot be made ({error.strerror}).") from None
    card = file.with_name("README.md")
    if card.exists() and "\n# imp-nano\n" not in "\n" + card.read_text("utf-8", "replace"):
        raise SettingError(f"{card} is no card of imp-nano and would be replaced; choose another folder for --json.")


def write(figures: dict, file: Path) -> None:
    """Write the figures as JSON, and beside them README.md: the text of CARD.md with their table filled in."""
    check_target(file)
    file.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    card = (Path(__file__).parent / "CARD.md").read_text("utf-8")
    samples = figures["skills"][SKILLS[0]][WORDINGS[0]]["samples"]
    card = card.replace("{table}", table(figures)).replace("{seed}", str(figures["seed"]))
    card = card.replace("{samples}", f"{samples}").replace("{date}", figures["date"])
    log = file.with_name("log.csv")
    if log.exists():
        plot(log, log.with_name("training.png"))
    sheet(figures, file.with_name("mistakes.png"))
    file.with_name("README.md").write_text(card, "utf-8")


def sheet(figures: dict, target: Path) -> None:
    """Draw the first wrong answer of each skill in each column as a PNG: image, question, true answer, answer."""
    from matplotlib.figure import Figure

    wrong = [
        (skill, column, entry["mistakes"][0])
        for skill, entries in figures["skills"].items()
        for column, entry in entries.items()
        if entry["mistakes"]
    ]
    across = 6
    rows = max(1, -(-len(wrong) // across))
    figure = Figure(figsize=(2.2 * across, 3.1 * rows + 0.6), dpi=80, layout="constrained")
    figure.suptitle(f"{figures['checkpoint']}, {figures['date']}: the first wrong answer of each cell", fontsize=9)
    for number, (skill, column, mistake) in enumerate(wrong):
        case = next(islice(exam(skill, column, figures["seed"], mistake["number"] + 1), mistake["number"], None))
        axes = figure.add_subplot(rows, across, number + 1)
        axes.imshow(case.image)
        axes.set_axis_off()
        asked = " / ".join(turn.question for turn in case.turns)
        text = "\n".join(fill(part, 36) for part in (asked, f"true: {mistake['truth']}", f"said: {mistake['answer']}"))
        axes.set_title(text, fontsize=6.5, loc="left")
    _save(figure, target)


def plot(log: Path, target: Path) -> None:
    """Draw a training's log.csv as a PNG: losses, and the shares of right answers by skill and by length of text."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(10, 9), dpi=80, layout="constrained")
    columns = 4
    grid = figure.add_gridspec(2 - (-len(SKILLS) // columns), columns)
    loss, reading = (figure.add_subplot(grid[:2, part]) for part in (slice(0, 2), slice(2, 4)))

    def line(axes, column: str, label: str | None = None, **style) -> None:
        points = [(int(row["samples"]) / 1000, float(row[column])) for row in rows if row[column]]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1.2, **style)

    line(loss, "loss", "answers (cross-entropy per token)")
    line(loss, "patch_loss", "what each patch shows (summed losses)")
    loss.set(title="loss", yscale="log")
    reading.set_prop_cycle(color=colormaps["viridis_r"].resampled(LONGEST + 1).colors[1:])
    for length in range(1, LONGEST + 1):
        line(reading, f"read_{length}", str(length))
    reading.set(title="read exactly in training, by the number of characters")
    loss.legend(fontsize="small")
    reading.legend(fontsize="small", ncols=2)
    panels = [loss, reading]
    for number, skill in enumerate(SKILLS):
        panels.append(figure.add_subplot(grid[2 + number // columns, number % columns]))
        line(panels[-1], skill, color="#1f77b4")
        panels[-1].set_title("read several lines" if skill == "read" else skill.replace("_", " "), fontsize=10)
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.set(xlim=(0, max(int(row["samples"]) for row in rows) / 1000))
        if axes is not loss:
            axes.set_ylim(0, 1.03)
    figure.supxlabel("samples, thousands")
    figure.supylabel("right in training")
    _save(figure, target)


def _save(figure, target: Path) -> None:
    png = io.BytesIO()
    figure.savefig(png)
    # A palette makes the file a third as large; with fewer colors than 256 some would be taken for others.
    Image.open(png).convert("RGB").quantize(256).save(target, optimize=True)
