"""Figures of lesson 07. Words that a trained model wrote stand here alone: another machine's model writes others."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from imp_kit.experiments.claims.tables import sources, table
from imp_kit.experiments.stats import Share
from imp_kit.lessons.two_stages.new_shape import Exam, NewShape, sample_drawing
from imp_kit.lessons.two_stages.pictures import caption
from imp_kit.lessons.two_stages.stages import CHECKS, NAMES, Course
from imp_kit.system.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, DPI = 8.5, 80  # inches, dots per inch
RIGHT, WRONG = "#1b7837", "#b2182b"
SMOOTHED = 10  # steps, of which a loss curve shows the mean


def _figure(height: float, rows: int = 1, columns: int = 1, **more: Any) -> Any:
    require("notebooks", "matplotlib", what="A plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


def _show(axes: Any, image: Any, title: str = "") -> None:
    axes.imshow(image)
    axes.set_title(title, fontsize=8.5)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#cccccc")


def _plain(text: str) -> str:
    """A text as it is: dollars would begin a formula."""
    return text.replace("$", "\\$")


def _image(course: Course, number: int) -> np.ndarray:
    return ((course.pixels[number] + 1) / 2).permute(1, 2, 0).numpy()


def lessons_plot(course: Course) -> "Figure":
    """Six of the drawings that a course learns from, each with its caption."""
    figure, panels = _figure(2.9, 2, 3)
    for number, axes in enumerate(panels.flat):
        _show(axes, _image(course, number), "\n".join(textwrap.wrap(caption(course.scenes[number]), 42)))
    return figure


def losses_plot(course: Course) -> "Figure":
    """The loss of each step, a panel for each of the course's four parts."""
    figure, (panels,) = _figure(2.3, 1, len(NAMES), sharey=True)
    for axes, name in zip(panels, NAMES, strict=True):
        losses = np.array(course.losses.get(name, []))
        if len(losses):
            width = min(SMOOTHED, len(losses))
            smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
            axes.plot(np.arange(width, len(losses) + 1), smooth, color="#1f77b4")
        axes.set(title=name, xlabel="steps", yscale="log")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"loss (nats), mean of {SMOOTHED} steps")
    return figure


def answers_plot(course: Course, stage: str) -> "Figure":
    """What is answered about three unseen drawings while a stage goes on; the right answer stands in green."""
    checks = [check for check in course.checks if check.stage == stage]
    watched = course.watched(stage)
    figure, panels = _figure(1.35 * len(watched), len(watched), 2, width_ratios=(1, 2.4))
    for row, (number, pair) in enumerate(watched):
        _show(panels[row, 0], _image(course, number), pair.question or "(no question)")
        axes = panels[row, 1]
        axes.axis("off")
        axes.set(xlim=(0, 1), ylim=(CHECKS + 0.6, -0.6))
        for line, check in enumerate(checks):
            answer = check.answers[row]
            color = RIGHT if answer == pair.answer else "#555555"
            axes.text(0, line, f"{check.step:4d}", fontsize=7.5, color="#999999", va="center")
            axes.text(0.07, line, answer or "(nothing)", fontsize=7.5, color=color, va="center")
    panels[0, 1].set_title(f"{stage}: step, and the answer then", fontsize=8.5)
    return figure


def shape_plot(shape: NewShape, count: int = 5, seed: int = 0) -> "Figure":
    """Drawings of the kit with the new shape."""
    rng = np.random.default_rng([3, seed])
    figure, (panels,) = _figure(1.9, 1, count)
    for axes in panels:
        _show(axes, sample_drawing(shape, rng)[0])
    panels[0].set_title(f"drawings with a {shape.name}", fontsize=9, loc="left")
    return figure


def compared_plot(exams: Mapping[str, Exam], count: int = 4) -> "Figure":
    """The same questions about unseen drawings: the right answer, then each checkpoint's; what is wrong stands in red.

    Half of the `count` questions are about the new shape; no two of a half begin alike or are about one drawing. Those
    that the checkpoints answer differently come first, which the title says.
    """
    first = next(iter(exams.values()))
    drawings = [*_unlike(exams, range(first.new.total), count // 2)]
    drawings += _unlike(exams, range(first.new.total, len(first.asked)), count - len(drawings))
    figure, panels = _figure(1.75 * len(drawings), len(drawings), 2, width_ratios=(1, 2.6))
    if len(exams) > 1:
        panels[0, 1].set_title("examples; those that are answered differently come first", fontsize=8.5)
    for row, number in zip(panels, drawings, strict=True):
        question = first.asked[number]
        _show(row[0], question.image)
        row[1].axis("off")
        row[1].set(xlim=(0, 1), ylim=(len(exams) + 1.5, -0.6))
        row[1].text(0, 0, question.question, fontsize=9, color="#777777", va="center")
        lines = [(name, exam.answers[number]) for name, exam in exams.items()]
        for line, (name, answer) in enumerate([("right answer", question.answer), *lines], 1):
            color = RIGHT if answer == question.answer else WRONG
            row[1].text(0, line, name, fontsize=8, color="#777777", va="center")
            row[1].text(0.27, line, _plain(textwrap.shorten(answer, 62)), fontsize=8.5, color=color, va="center")
    return figure


def _unlike(exams: Mapping[str, Exam], numbers: Sequence[int], most: int) -> list[int]:
    """Questions that begin with different words and are about different drawings, differently answered ones first."""
    asked = next(iter(exams.values())).asked
    found: dict[str, int] = {}
    for number in sorted(numbers, key=lambda n: len({exam.answers[n] for exam in exams.values()}) == 1):
        begun = " ".join(asked[number].question.split()[:2])
        if all(asked[number].image is not asked[other].image for other in found.values()):
            found.setdefault(begun, number)
    return list(found.values())[:most]


def grid_plot(grid: Mapping[tuple[int, int], Exam]) -> "Figure":
    """New and old questions by rank and epochs, as measured here, beside the published means of six benchmarks."""
    figure, (panels,) = _figure(3.2, 1, 3, width_ratios=(1, 1, 1.1))
    for axes, group in zip(panels, ("new", "old"), strict=False):
        epochs = sorted({epochs for _, epochs in grid})
        for offset, many in enumerate(epochs):
            ranks = sorted(rank for rank, each in grid if each == many)
            shares: list[Share] = [getattr(grid[rank, many], group) for rank in ranks]
            middle = [share.share for share in shares]
            errors = [[s.share - s.low for s in shares], [s.high - s.share for s in shares]]
            places = np.arange(len(ranks)) + 0.12 * (offset - (len(epochs) - 1) / 2)
            axes.errorbar(places, middle, errors, marker="o", capsize=2, label=f"{many} epoch{'s' * (many > 1)}")
            axes.set_xticks(range(len(ranks)), ranks)
        axes.set(ylim=(-0.03, 1.03), xlabel="rank", title=f"measured here: {group}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("right")
    panels[0].legend(frameon=False, fontsize=8)
    _published(panels[2])
    return figure


def _published(axes: Any) -> None:
    """The means that Imp's authors published for the ranks and the numbers of epochs which they tried."""
    frame: Any = table("imp_roadmap")
    epochs = frame[(frame.section == "2.2 epochs") & (frame.step != "1 epoch")]  # which is "LoRA, rank 256"
    rows = [*frame[frame.section == "2.1 finetuning"].itertuples(), *epochs.itertuples()]
    names = [row.step if row.section.startswith("2.1") else f"rank 256, {row.step}" for row in rows]
    names = [name.replace("LoRA, rank 256", "rank 256, 1 epoch").removeprefix("LoRA, ") for name in names]
    axes.plot([row.mean for row in rows], range(len(rows)), "o", color="#555555")
    for place, row in enumerate(rows):
        axes.text(row.mean + 0.1, place, f"{row.mean:.1f}", fontsize=8, va="center")
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.set(xlim=(70.9, 72.6), xlabel="mean of six benchmarks", title="published for Imp")
    axes.text(1, -0.36, sources(frame), transform=axes.transAxes, fontsize=7, ha="right")
