"""Pictures of the experiments' results, with 95 % Wilson intervals and the checkpoint's name on each."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from imp_kit.experiments import scores
from imp_kit.experiments.captcha import probe as reading
from imp_kit.experiments.japanese import probe as japanese
from imp_kit.experiments.stats import Share, wilson
from imp_kit.system.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 8.0  # inches
DPI = 100
OUTCOMES = {"code": "#1b9e77", "both": "#7570b3", "caption only": "#d95f02", "neither": "#bbbbbb"}
UNITS = {"glyph height": " (pixels)", "rotation": " (degrees)", "warp": " (pixels)"}
CHAIN = {"right": "#7570b3", "japanese": "#d95f02", "both": "#1b9e77"}
CHAIN_LABELS = {"right": "right, in any language", "japanese": "in Japanese", "both": "right and in Japanese"}


def _figure(columns: int = 1, height: float = 3.6):
    require("measure", "matplotlib", what="A plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _label(name: str) -> str:
    """A name as it is: dollars would begin a formula, and an underscore keep it out of a legend."""
    return (f" {name}" if name.startswith("_") else name).replace("$", "\\$")


def _points(axes, xs: Sequence, shares: Sequence[Share], label: str | None = None, **style) -> None:
    """Shares with their intervals, at numbers or at names."""
    middle = [share.share for share in shares]
    errors = [[s.share - s.low for s in shares], [s.high - s.share for s in shares]]
    axes.errorbar(xs, middle, errors, label=label, marker="o", capsize=3, **style)


def _percent(axes, label: str) -> None:
    axes.set(ylim=(-0.03, 1.03), ylabel=label)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="y", alpha=0.3)


def _contained(row: Sequence[reading.Sample]) -> Share:
    return wilson(sum(sample.contained for sample in row), len(row))


def pictures(chosen: Sequence[tuple[str, Image.Image]], columns: int = 2) -> Image.Image:
    """Pictures of one size in a grid, each with a line of text above it."""
    width, height = chosen[0][1].size
    room, gap = 24, 8
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + room + gap) + gap), "#dddddd")
    pen = ImageDraw.Draw(sheet)
    for number, (title, picture) in enumerate(chosen):
        x, y = gap + number % columns * (width + gap), gap + number // columns * (height + room + gap)
        pen.text((x, y + 2), title, "black", font_size=16)
        sheet.paste(picture, (x, y + room))
    return sheet


def ladder(runs: Mapping[str, Sequence[reading.Sample]]) -> "Figure":
    """Codes that stand in the answer, by level of distortion, a line for each checkpoint or reader."""
    figure, (axes,) = _figure()
    for offset, (name, samples) in enumerate(runs.items()):
        rows = reading.ladder(samples)
        levels = [row[0].cell.level + 0.04 * offset for row in rows]
        _points(axes, levels, [_contained(row) for row in rows], _label(name))
    axes.set_xticks(range(5), [f"L{level}" for level in range(5)])
    axes.set(xlabel="distortion: L0 clean, L4 the hardest", title="Codes of eight characters")
    _percent(axes, "the code stands in the answer")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def lure(samples: Sequence[reading.Sample], name: str) -> "Figure":
    """What answers give, the code or the caption below it, as bars; a bar for each caption and question."""
    rows = [row for row in reading.lure(samples) if row[0].cell.caption != "alone"]
    figure, (axes,) = _figure(height=1.2 + 0.34 * len(rows))
    labels = [f"L{c.level}, caption {c.caption}, “{c.question}”" for c in (row[0].cell for row in rows)]
    for number, row in enumerate(rows):
        left = 0.0
        for outcome, color in OUTCOMES.items():
            share = sum(sample.outcome == outcome for sample in row) / len(row)
            axes.barh(number, share, left=left, color=color, label=outcome if not number else None)
            left += share
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set(xlim=(0, 1), title=f"{_label(name)}: what the answer gives")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def factors(samples: Sequence[reading.Sample], names: Sequence[str], base: int, name: str) -> "Figure":
    """Codes that stand in the answer against one factor each, all others as in the level `base`."""
    figure, every = _figure(len(names), height=3.2)
    for axes, factor in zip(every, names, strict=True):
        found = reading.factor(samples, factor, base)
        numbers = all(isinstance(value, int | float) for value in found)
        xs = list(found) if numbers else range(len(found))
        _points(axes, xs, [_contained(rows) for rows in found.values()], linestyle="-" if numbers else "")
        if not numbers:
            axes.set_xticks(xs, [str(value).replace(" ", "\n").replace("-", "-\n") for value in found])
            axes.margins(x=0.2)
        axes.set(xlabel=factor + UNITS.get(factor, ""))
        _percent(axes, "the code stands in the answer" if axes is every[0] else "")
    figure.suptitle(f"{_label(name)}: one factor at a time around L{base}")
    return figure


def confusion(samples: Sequence[reading.Sample], name: str) -> "Figure":
    """Which character was read as which, over the codes of the ladder; rows are the truth and add up to 1."""
    counts = scores.confusion((s.read, s.code) for row in reading.ladder(samples) for s in row)
    truths = sorted({true for true, _ in counts if true})
    reads = sorted({read for _, read in counts if read in truths}) + ["other", "missing"]
    table = [[0.0] * len(reads) for _ in truths]
    for (true, read), count in counts.items():
        if true:
            column = read if read in reads else "other" if read else "missing"
            table[truths.index(true)][reads.index(column)] += count
    table = [[count / sum(row) for count in row] for row in table]
    figure, (axes,) = _figure(height=6.6)
    drawn = axes.imshow(table, cmap="magma_r", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(reads)), reads, fontsize=8)
    axes.set_yticks(range(len(truths)), truths, fontsize=8)
    axes.tick_params(axis="x", rotation=90)
    axes.set(xlabel="read", ylabel="shown", title=f"{_label(name)}: characters of the ladder, all levels")
    figure.colorbar(drawn, label="share of the character shown")
    return figure


def chain(samples: Sequence[japanese.Sample], name: str, part: str = "scene") -> "Figure":
    """The chain of scores by language: right in any language, in Japanese, both."""
    figure, (axes,) = _figure()
    present = [language for language in japanese.LANGUAGES if _of(samples, part, language)]
    chains = [japanese.chain(_of(samples, part, language)) for language in present]
    for number, key in enumerate(CHAIN):
        shares = [getattr(each, key) for each in chains]
        if all(shares):
            xs = [place + 0.25 * (number - 1) for place in range(len(present))]
            axes.bar(xs, [s.share for s in shares], 0.22, color=CHAIN[key], label=CHAIN_LABELS[key])
            _points(axes, xs, shares, color="black", linestyle="", markersize=0)
    axes.set_xticks(range(len(present)), [f"asked in\n{language}" for language in present])
    axes.set(title=f"{_label(name)}: the same questions about the same {part}s")
    _percent(axes, "share of answers")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def fidelity(samples: Sequence[japanese.Sample], name: str) -> "Figure":
    """Share of replies in Japanese to questions that need no picture, with a picture and without."""
    figure, (axes,) = _figure(height=3.2)
    every = [(language, shown) for language in japanese.LANGUAGES[:2] for shown in (True, False)]
    found = {
        cell: [s for s in samples if (s.cell.part, s.cell.language, s.cell.picture) == ("general", *cell)]
        for cell in every
    }
    cells = [cell for cell, row in found.items() if row]
    rows = [found[cell] for cell in cells]
    shares = [wilson(sum(s.japanese for s in row), len(row)) for row in rows]
    axes.bar(
        range(len(cells)),
        [s.share for s in shares],
        0.6,
        color=["#9ecae1" if shown else "#dddddd" for _, shown in cells],
    )
    _points(axes, range(len(cells)), shares, color="black", linestyle="", markersize=0)
    axes.set_xticks(
        range(len(cells)), [f"asked in {lang},\n{'a picture' if shown else 'no picture'}" for lang, shown in cells]
    )
    axes.set(title=f"{_label(name)}: replies in Japanese")
    _percent(axes, "in Japanese")
    return figure


def _of(samples: Sequence[japanese.Sample], part: str, language: str) -> list[japanese.Sample]:
    return [s for s in samples if (s.cell.part, s.cell.language) == (part, language)]
