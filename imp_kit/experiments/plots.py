"""Plots of the experiments' results, with 95 % Wilson intervals and the checkpoint's name on each.

They show frames of samples, see frames.py.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from imp_kit.experiments import scores
from imp_kit.experiments.captcha import probe as reading
from imp_kit.experiments.documents import probe as documents
from imp_kit.experiments.documents.pages import page
from imp_kit.experiments.japanese import probe as japanese
from imp_kit.experiments.japanese import tokenized
from imp_kit.experiments.pope import probe as pope
from imp_kit.experiments.pope.scenes import KINDS, statistics
from imp_kit.experiments.stats import Share, share_of
from imp_kit.system.extras import require
from imp_kit.system.faces import families

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

WIDTH = 8.0  # inches
DPI = 100
OUTCOMES = {"code": "#1b9e77", "both": "#7570b3", "caption only": "#d95f02", "neither": "#bbbbbb"}
UNITS = {"glyph height": " (pixels)", "rotation": " (degrees)", "warp": " (pixels)"}
CHAIN = {"right": "#7570b3", "japanese": "#d95f02", "both": "#1b9e77"}
CHAIN_LABELS = {"right": "right, in any language", "japanese": "in Japanese", "both": "right and in Japanese"}
WHOLE, PART = "#9ecae1", "#fdae6b"  # tokens that are text, and that hold a part of a character
ENGLISH, JAPANESE = "#1f77b4", "#d62728"
CONTROLS = {
    "none": ("its own document", "#1f77b4"),
    "other image": ("another document", "#d95f02"),
    "no image": ("no image", "#999999"),
}
TRUE, FOUND = (0, 150, 60), (255, 0, 80)


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


def grid(chosen: Sequence[tuple[str, Image.Image]], columns: int = 2) -> Image.Image:
    """Images of one size in a grid, each with a line of text above it."""
    width, height = chosen[0][1].size
    title_height, gap = 24, 8
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + title_height + gap) + gap), "#dddddd")
    pen = ImageDraw.Draw(sheet)
    for number, (title, image) in enumerate(chosen):
        x, y = gap + number % columns * (width + gap), gap + number // columns * (height + title_height + gap)
        pen.text((x, y + 2), title, "black", font_size=16)
        sheet.paste(image, (x, y + title_height))
    return sheet


def ladder(runs: "Mapping[str, DataFrame]", guess: Sequence[float] = ()) -> "Figure":
    """Codes that stand in the answer, by level of distortion, a line for each checkpoint or reader.

    `guess` is what the viewer expected, in percent from L0 on, as a dashed line.
    """
    figure, (axes,) = _figure()
    if guess:
        axes.plot(range(len(guess)), [share / 100 for share in guess], "s--", color="#999999", label="your guess")
    for offset, (name, frame) in enumerate(runs.items()):
        by_level = reading.ladder(frame)
        shares = [share_of(rows.contained) for rows in by_level.values()]
        _points(axes, [level + 0.04 * offset for level in by_level], shares, _label(name))
    axes.set_xticks(range(5), [f"L{level}" for level in range(5)])
    axes.set(xlabel="distortion: L0 clean, L4 the hardest", title="Codes of eight characters")
    _percent(axes, "the code stands in the answer")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def lure(frame: "DataFrame", name: str) -> "Figure":
    """What answers give, the code or the caption below it, as bars; a bar for each caption and question."""
    groups = {key: rows for key, rows in reading.lure(frame).items() if key[2] != "alone"}
    figure, (axes,) = _figure(height=1.2 + 0.34 * len(groups))
    labels = [f"L{level}, caption {caption}, “{question}”" for level, question, caption in groups]
    for number, rows in enumerate(groups.values()):
        left = 0.0
        for outcome, color in OUTCOMES.items():
            share = (rows.outcome == outcome).mean()
            axes.barh(number, share, left=left, color=color, label=outcome if not number else None)
            left += share
    axes.set_yticks(range(len(groups)), labels)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set(xlim=(0, 1), title=f"{_label(name)}: what the answer gives")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def factors(frame: "DataFrame", names: Sequence[str], base: int, name: str) -> "Figure":
    """Codes that stand in the answer against one factor each, all others as in the level `base`."""
    figure, every = _figure(len(names), height=3.2)
    for axes, factor in zip(every, names, strict=True):
        found = reading.factor(frame, factor, base)
        numbers = all(isinstance(value, int | float) for value in found)
        xs = list(found) if numbers else range(len(found))
        _points(axes, xs, [share_of(rows.contained) for rows in found.values()], linestyle="-" if numbers else "")
        if not numbers:
            axes.set_xticks(xs, [str(value).replace(" ", "\n").replace("-", "-\n") for value in found])
            axes.margins(x=0.2)
        axes.set(xlabel=factor + UNITS.get(factor, ""))
        _percent(axes, "the code stands in the answer" if axes is every[0] else "")
    figure.suptitle(f"{_label(name)}: one factor at a time around L{base}")
    return figure


def confusion(frame: "DataFrame", name: str) -> "Figure":
    """Which character was read as which, over the codes of the ladder; rows are the truth and add up to 1."""
    every = reading.ladder(frame).values()
    counts = scores.confusion(pair for rows in every for pair in zip(rows.extracted, rows.expected, strict=True))
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


def chain(frame: "DataFrame", name: str, part: str = "scene") -> "Figure":
    """The chain of scores by language: right in any language, in Japanese, both."""
    figure, (axes,) = _figure()
    by_language = japanese.by_language(frame[frame.part == part])
    for number, key in enumerate(CHAIN):
        if all(rows[key].notna().all() for rows in by_language.values()):
            shares = [share_of(rows[key]) for rows in by_language.values()]
            xs = [index + 0.25 * (number - 1) for index in range(len(shares))]
            axes.bar(xs, [s.share for s in shares], 0.22, color=CHAIN[key], label=CHAIN_LABELS[key])
            _points(axes, xs, shares, color="black", linestyle="", markersize=0)
    axes.set_xticks(range(len(by_language)), [f"asked in\n{language}" for language in by_language])
    axes.set(title=f"{_label(name)}: the same questions about the same {part}s")
    _percent(axes, "share of answers")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def fidelity(frame: "DataFrame", name: str) -> "Figure":
    """Share of replies in Japanese to questions that need no picture, with a picture and without."""
    figure, (axes,) = _figure(height=3.2)
    groups = {
        (language, shown): rows[rows.picture == shown]
        for language, rows in japanese.by_language(frame[frame.part == "general"]).items()
        for shown in (True, False)
    }
    groups = {key: rows for key, rows in groups.items() if len(rows)}
    shares = [share_of(rows.japanese) for rows in groups.values()]
    colors = ["#9ecae1" if shown else "#dddddd" for _, shown in groups]
    axes.bar(range(len(groups)), [s.share for s in shares], 0.6, color=colors)
    _points(axes, range(len(groups)), shares, color="black", linestyle="", markersize=0)
    labels = [f"asked in {language},\n{'a picture' if shown else 'no picture'}" for language, shown in groups]
    axes.set_xticks(range(len(groups)), labels)
    axes.set(title=f"{_label(name)}: replies in Japanese")
    _percent(axes, "in Japanese")
    return figure


def skills(runs: "Mapping[str, DataFrame]") -> "Figure":
    """Right answers by kind of document and question, a panel for each run; with the document and with the controls."""
    figure, every = _figure(len(runs), height=4.6)
    names = [*(f"{kind}: {skill}" for kind, skill in documents.SKILLS), "all"]
    for axes, (name, frame) in zip(every, runs.items(), strict=True):
        for offset, (control, (label, color)) in enumerate(CONTROLS.items()):
            found = {
                f"{kind}: {skill}": share_of(rows.right) for kind, skill, rows in documents.by_skill(frame, control)
            }
            if found:
                found["all"] = share_of(frame[frame.control == control].right)
                ys = [names.index(each) + 0.25 * (offset - 0.5) for each in found]
                middle = [share.share for share in found.values()]
                errors = [[s.share - s.low for s in found.values()], [s.high - s.share for s in found.values()]]
                axes.errorbar(middle, ys, xerr=errors, fmt="o", capsize=2, markersize=4, color=color, label=label)
        axes.set_yticks(range(len(names)), names if axes is every[0] else [""] * len(names))
        axes.set(xlim=(-0.03, 1.03), ylim=(len(names) - 0.4, -0.6), xlabel="right", title=_label(name))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.grid(alpha=0.3)
    figure.legend(*every[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def boxes(frame: "DataFrame", count: int = 6, side: int = 180) -> Image.Image:
    """Drawn scenes with the true box (green), the box of the answer (red), if it has one, and their IoU."""
    shown = []
    for row in frame[(frame.rule == "box") & (frame.control == "none")].head(count).itertuples():
        image = page(row.kind, row.skill, row.seed).image.resize((side, side))
        found = [float(value) for value in row.extracted.split(", ")] if row.extracted else None
        for corners, color in ((json.loads(row.truth)["answer"], TRUE), (found, FOUND)):
            if corners:
                ImageDraw.Draw(image).rectangle([round(side * value) for value in corners], outline=color, width=4)
        shown.append((f"{json.loads(row.truth)['phrase']}: IoU {row.score:.2f}" if found else "no box", image))
    return grid(shown, columns=3).quantize(160, Image.Quantize.FASTOCTREE)  # a PNG with a third of the bytes


def together() -> "Figure":
    """How many of POPE's drawings hold both of two things, and on the diagonal how many hold the one."""
    single, pairs = statistics()
    table = [[single[one] if one == other else pairs[frozenset((one, other))] for other in KINDS] for one in KINDS]
    figure, (axes,) = _figure(height=4.4)
    axes.imshow(table, cmap="Blues")
    for y, line in enumerate(table):
        for x, value in enumerate(line):
            axes.text(x, y, value, ha="center", va="center", color="white" if value > 500 else "black", fontsize=8)
    axes.set_xticks(range(len(KINDS)), KINDS, fontsize=9)
    axes.set_yticks(range(len(KINDS)), KINDS)
    axes.set(title=f"of {single.total() // 3:,} drawings, how many hold both")
    return figure


def hallucination(frame: "DataFrame", name: str) -> "Figure":
    """How often the answer is yes, about what is there and about what is not, by sampling, and in the controls."""
    figure, (axes,) = _figure()
    labels = [sampling for sampling, _ in pope.by_sampling(frame)]
    for present, label, color in ((True, "it is there", "#1b9e77"), (False, "it is not there", "#d62728")):
        shares = [share_of(rows[rows.present == present].yes) for _, rows in pope.by_sampling(frame)]
        _points(axes, range(len(shares)), shares, label, color=color, linestyle="", markersize=8)
    for control, rows in frame[frame.control != "none"].groupby("control", sort=False):
        labels.append(control)
        _points(axes, [len(labels) - 1], [share_of(rows.yes)], color="#d62728", linestyle="", markersize=8)
    axes.axhline(0.5, color="#999999", linestyle="--", linewidth=1)
    axes.set_xticks(range(len(labels)), labels)
    axes.set(title=f"{_label(name)}: “Is there a … in the image?”", xlim=(-0.5, len(labels) - 0.5))
    _percent(axes, "answered with yes")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def pieces(cutter: tokenized.Cutter, texts: Sequence[str]) -> "Figure":
    """Texts above the tokens that each falls into, as wide as their bytes; those that cut a character are orange.

    A token that is no text shows its bytes as hexadecimal numbers.
    """
    figure, every = _figure(height=1.3 * len(texts))
    every[0].remove()
    longest = max(len(text.encode()) for text in texts)
    for row, text in enumerate(texts):
        axes = figure.add_subplot(len(texts), 1, row + 1)
        axes.set(xlim=(0, longest), ylim=(0, 2.3))
        axes.axis("off")
        cut, at = cutter(text), 0
        axes.set_title(f"{len(text)} characters, {len(text.encode())} bytes, {len(cut)} tokens", fontsize=9, loc="left")
        for character in text:
            width = len(character.encode())
            axes.text(at + width / 2, 1.6, character, ha="center", va="center", family=families(), fontsize=11)
            at += width
        at = 0
        for piece in cut:
            shown, color = _shown(piece)
            axes.broken_barh([(at + 0.06, len(piece) - 0.12)], (0.1, 1), color=color)
            small = 11 if color == WHOLE else 6.5
            axes.text(at + len(piece) / 2, 0.6, shown, ha="center", va="center", family=families(), fontsize=small)
            at += len(piece)
    return figure


def _shown(piece: bytes) -> tuple[str, str]:
    """A token's text, or else its bytes, and the color for it."""
    try:
        return _label(piece.decode().strip()), WHOLE
    except UnicodeDecodeError:
        return piece.hex("\n").upper(), PART


def token_costs(cutters: Mapping[str, tokenized.Cutter], pairs: Sequence[Mapping[str, str]]) -> "Figure":
    """Tokens of the same questions in English ("en") and in Japanese ("ja"): a point for each, a color a tokenizer."""
    figure, (axes,) = _figure(height=4.2)
    most = 0
    for number, (name, cutter) in enumerate(cutters.items()):
        english, other = ([len(cutter(pair[key])) for pair in pairs] for key in ("en", "ja"))
        times = sum(other) / sum(english)
        axes.scatter(english, other, color=f"C{number}", alpha=0.7, label=f"{_label(name)}: {times:.1f} times as many")
        most = max(most, *english, *other)
    for times, style in ((1, "-"), (2, "--"), (3, ":")):
        label = f"{times} times as many" if times > 1 else "as many"
        axes.plot([0, most], [0, times * most], style, color="#999999", linewidth=1, label=label)
    axes.set_xticks(range(0, most, 5))
    axes.set(xlim=(0, most / 2), ylim=(0, most * 1.05), xlabel="tokens of the English question")
    axes.set(ylabel="tokens of the Japanese question", title=f"{len(pairs)} questions, each in two languages")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def languages(frame: "DataFrame", name: str) -> "Figure":
    """Right answers by skill, asked in English and in Japanese about the same drawings, each beside its chance."""
    figure, (axes,) = _figure()
    scenes = frame[frame.part == "scene"]
    skills = list(scenes.skill.unique())
    for offset, language, color in ((-0.12, japanese.LANGUAGES[0], ENGLISH), (0.12, japanese.LANGUAGES[1], JAPANESE)):
        asked = scenes[scenes.language == language]
        groups = {skills.index(skill) + offset: rows for skill, rows in asked.groupby("skill", sort=False)}
        shares = [share_of(rows.right) for rows in groups.values()]
        _points(axes, list(groups), shares, f"asked in {language}", color=color, linestyle="")
        chances = {x: japanese.chance(rows) for x, rows in groups.items()}
        known = {x: chance for x, chance in chances.items() if chance is not None}
        axes.scatter(list(known), list(known.values()), s=260, marker="_", color=color, alpha=0.5)
    axes.scatter([], [], s=260, marker="_", color="#777777", label="by chance")
    axes.set_xticks(range(len(skills)), [skill.replace("_", " or ") for skill in skills])
    axes.set(title=f"{_label(name)}: the same questions about the same drawings")
    _percent(axes, "right, in any language")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def in_japanese(frame: "DataFrame", name: str) -> "list[Figure]":
    """What there is to see of the answers' language: nothing where none is in Japanese.

    The chain of scores of each part that was asked, and the language of replies with an image and without.
    """
    if not frame.japanese.any():
        return []
    parts = [part for part in ("scene", "photograph", "written") if (frame.part == part).any()]
    figures = [chain(frame, name, part) for part in parts]
    return figures + ([fidelity(frame, name)] if (frame.part == "general").any() else [])


pictures = grid  # its earlier name
