"""Plots of published tables. Each names its sources at its foot, and says that nothing was measured here."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from imp_kit.experiments.claims import tables
from imp_kit.experiments.stats import Share
from imp_kit.system.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series

WIDTH, DPI = 8.0, 90  # inches, dots an inch
FOOT = 125  # characters of a line at the foot
PLAIN, GREY = "#1f77b4", "#bbbbbb"
READ = {"at the source": "", "in a copy": ", in a copy", "second hand": ", second hand"}
SEEN, UNSEEN = "#d95f02", "#1b9e77"  # training images of the benchmark were learned, or nothing says so
SWAPPED = ("#d95f02", "#7570b3")
HEIGHT = 0.28  # inches of a row


def _figure(frames: "Sequence[DataFrame]", height: float, columns: int = 1, **options):
    """A figure with the sources of its tables at the foot, and its axes in a row."""
    require("measure", "matplotlib", what="A plot")
    from matplotlib.figure import Figure

    named = [f"{tables.sources(rows)}{READ[how]}" for frame in frames for how, rows in frame.groupby("read", sort=False)]
    text = f"Published, not measured here. Source: {'; '.join(dict.fromkeys(named))}"
    foot = "\n".join(textwrap.wrap(text, FOOT, break_long_words=False, break_on_hyphens=False))
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    figure.supxlabel(foot, x=0.01, ha="left", fontsize=7, color="#555555")
    return figure, figure.subplots(1, columns, squeeze=False, **options)[0]


def _names(axes, names: Sequence[str], size: float = 9) -> None:
    """Names down the left side, the first at the top."""
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.spines[["top", "right"]].set_visible(False)


def heat(frame: "DataFrame", columns: Sequence[str], title: str) -> "Figure":
    """A table as it was published: the darker, the nearer to the best of its column; grey where there is no number."""
    figure, (axes,) = _figure([frame], 1.1 + HEIGHT * len(frame))
    values = frame[list(columns)].to_numpy(float)
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    shade = np.ma.masked_invalid((values - low) / np.where(high > low, high - low, 1))
    axes.set_facecolor("#dddddd")
    axes.pcolormesh(shade, cmap="Blues", vmin=-0.1, vmax=1.6, edgecolors="white", linewidth=1)
    for (row, column), value in np.ndenumerate(values):
        text = "" if np.isnan(value) else f"{value:.10g}"
        best = value == high[column]
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, weight="bold" if best else None)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns, fontsize=8)
    axes.set_yticks(np.arange(len(frame)) + 0.5, frame.model, fontsize=9)
    axes.set_ylim(len(frame), 0)
    axes.tick_params(length=0, labelbottom=False, labeltop=True)
    axes.set_title(title, fontsize=11)
    return figure


def dropped(frame: "DataFrame", columns: Sequence[str]) -> "Figure":
    """Ranks by the mean, a line a model, with one column left out at a time; models whose rank changes are colored."""
    ranks = tables.dropped(frame, columns)
    figure, (axes,) = _figure([frame], 1.6 + HEIGHT * len(ranks))
    colors = iter(SWAPPED * len(ranks))
    for model, row in ranks.iterrows():
        moves = row.nunique() > 1
        style = {"color": next(colors), "zorder": 3, "linewidth": 2} if moves else {"color": GREY}
        axes.plot(range(len(row)), row, "o-", **style)
        axes.text(len(row) - 0.8, row.iloc[-1], model, va="center", fontsize=9)
    axes.set_xticks(range(len(ranks.columns)), ranks.columns, fontsize=8)
    axes.set_yticks(range(1, len(ranks) + 1))
    axes.set(ylim=(len(ranks) + 0.4, 0.6), xlabel="the column that is left out", ylabel="rank by the mean")
    axes.set_title("One column less", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def wins(frame: "DataFrame", columns: Sequence[str]) -> "Figure":
    """How many of all choices of columns make each model the best, of those that have all columns."""
    shares = tables.wins(frame, columns).sort_values(ascending=False, kind="stable")
    figure, (axes,) = _figure([frame], 1.3 + HEIGHT * len(shares))
    bars = axes.barh(range(len(shares)), shares, color=PLAIN)
    axes.bar_label(bars, [f"{share:.0%}" for share in shares], padding=3, fontsize=8)
    _names(axes, list(shares.index))
    axes.set(xlim=(0, 1.1), xticks=[])
    axes.set_title(f"Best mean, of all {2 ** len(columns) - 1} choices of columns", fontsize=11)
    return figure


def same_cells(frame: "DataFrame", columns: Sequence[str], reference: str) -> "Figure":
    """Each model's mean over the cells that it has, beside the reference's mean over the same cells."""
    figure, (axes,) = _figure([frame], 1.5 + HEIGHT * len(frame))
    values = frame.set_index("model")[list(columns)]
    other = values.loc[reference]
    for place, (_, row) in enumerate(values.iterrows()):
        own, same = row.mean(), other[row.notna()].mean()
        axes.plot([own, same], [place, place], color=GREY, zorder=1)
        axes.scatter([own], [place], color=PLAIN, label="its own mean" if not place else None)
        axes.scatter([same], [place], marker="|", s=140, color="black", label=reference if not place else None)
    _names(axes, [f"{model} ({row.notna().sum()} cells)" for model, row in values.iterrows()])
    axes.set_xlabel("mean over the cells that the model has, percent", fontsize=9)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set_title(f"Beside {reference} on the same cells", fontsize=11)
    return figure


def scales(frame: "DataFrame", columns: Sequence[str]) -> "Figure":
    """Means over the same columns: with MME-P in points of 2,000, and in percent as the others are."""
    rows = tables.complete(frame, columns)
    figure, panels = _figure([frame, _benchmarks("MME-P")], 1.7 + HEIGHT * len(rows), 2)
    both = (("MME-P in points of 2,000", rows), ("MME-P in percent", tables.percent(rows)))
    order = list(tables.means(rows, columns).sort_values(ascending=False).index)
    before = {model: place for place, model in enumerate(order)}
    for axes, (title, scaled) in zip(panels, both, strict=True):
        means = tables.means(scaled, columns).sort_values(ascending=False)
        moved = [before[model] != place for place, model in enumerate(means.index)]
        bars = axes.barh(range(len(means)), means, color=[SEEN if each else PLAIN for each in moved])
        axes.bar_label(bars, [f"{mean:.1f}" for mean in means], padding=3, fontsize=8)
        _names(axes, list(means.index), 8)
        axes.set(xlim=(0, 1.25 * means.max()), xticks=[])
        axes.set_title(title, fontsize=10)
    return figure


def intervals(frame: "DataFrame", benchmark: str, split: str) -> "Figure":
    """The scores of one column with their 95 % intervals by the number of questions, best first."""
    number = tables.questions(benchmark, split)
    rows = tables.complete(frame, [benchmark]).sort_values(benchmark, ascending=False, kind="stable")
    figure, (axes,) = _figure([frame, _benchmarks(benchmark, split)], 1.5 + HEIGHT * len(rows))
    _points(axes, [tables.interval(value, number) for value in rows[benchmark]])
    _names(axes, list(rows.model))
    axes.set_xlabel("percent, with 95 % intervals", fontsize=9)
    axes.set_title(f"{benchmark} {split}: {number:,} questions", fontsize=11)
    axes.grid(axis="x", alpha=0.3)
    return figure


def _points(axes, shares: Sequence[Share], **style) -> None:
    middle = [100 * each.share for each in shares]
    errors = [[100 * (each.share - each.low) for each in shares], [100 * (each.high - each.share) for each in shares]]
    axes.errorbar(middle, range(len(shares)), xerr=errors, fmt="o", capsize=3, color=PLAIN, **style)


def widths(points: float = 50) -> "Figure":
    """Half the width of a 95 % interval around a score, by the number of questions, with the benchmarks on the line."""
    frame = tables.table("benchmarks")
    frame = frame[frame.questions > 0].sort_values("questions")
    figure, (axes,) = _figure([frame], 4.0)

    def half(number: float) -> float:
        share = tables.interval(points, int(number))
        return 50 * (share.high - share.low)

    numbers = np.geomspace(60, 4e5, 60)
    axes.plot(numbers, [half(number) for number in numbers], color=GREY)
    for place, row in enumerate(frame.itertuples()):
        axes.plot([row.questions], [half(row.questions)], "o", color=PLAIN)
        shift, side = ((6, 4), "left") if place % 2 else ((-6, -9), "right")
        text = f"{row.benchmark} {row.split}".removesuffix(" all").removesuffix(" three sets of 3,000")
        axes.annotate(text, (row.questions, half(row.questions)), shift, textcoords="offset points", fontsize=7, ha=side)
    axes.set(xscale="log", yscale="log", xlabel="questions", ylabel="± points of percent")
    axes.set_yticks([0.2, 0.5, 1, 2, 5, 10], ["0.2", "0.5", "1", "2", "5", "10"])
    axes.set_title(f"How far chance moves a score of {points:g} %, 19 times of 20", fontsize=11)
    axes.grid(alpha=0.3)
    return figure


def same_name(benchmarks: Sequence[str]) -> "Figure":
    """Numbers that were published for one model under one benchmark's name, a bar each with who says it and how."""
    frame = tables.table("same_name")
    rows = frame[frame.benchmark.isin(list(benchmarks))]
    figure, (axes,) = _figure([rows], 1.2 + HEIGHT * len(rows) + 0.1 * rows.source.nunique())
    groups = dict.fromkeys(zip(rows.benchmark, rows.model, strict=True))
    color = {group: f"C{number % 10}" for number, group in enumerate(groups)}
    shades = [color[pair] for pair in zip(rows.benchmark, rows.model, strict=True)]
    bars = axes.barh(range(len(rows)), rows.value, color=shades)
    axes.bar_label(bars, [f"{value:g}" for value in rows.value], padding=3, fontsize=8)
    _names(axes, [f"{row.model}, {row.benchmark}: {row[4]}" for row in rows.itertuples()], 8)
    axes.set(xlim=(0, 1.15 * rows.value.max()), xticks=[])
    axes.set_title("One model, one benchmark's name, percent", fontsize=11)
    return figure


def seen(benchmark: str = "GQA") -> "Figure":
    """What training data that is near a test does: in Imp's roadmap, and in a survey that marks it."""
    road, survey = tables.table("imp_roadmap"), tables.table("survey")
    road = road[road.section.str.startswith("3.")].drop_duplicates("step").drop(index=16, errors="ignore")
    survey = tables.complete(survey, [benchmark]).sort_values(benchmark, ascending=False, kind="stable")
    figure, (left, right) = _figure([road, survey], 4.4, 2)
    for title, style in (("TextVQA", {"color": SEEN}), ("mean", {"color": GREY})):
        label = title if title == "TextVQA" else "mean of six"
        left.plot(range(len(road)), road[title], "o-", label=label, **style)
        for place, value in enumerate(road[title]):
            left.annotate(f"{value:g}", (place, value), (0, 6), textcoords="offset points", fontsize=8, ha="center")
    left.set_xticks(range(len(road)), [textwrap.fill(step, 13) for step in road.step], fontsize=7)
    left.set(ylim=(50, 77), ylabel="percent")
    left.legend(fontsize=8, loc="center right")
    left.set_title("Imp-3B by its training data", fontsize=10)
    marked = [benchmark in names.split("; ") for names in survey["training images seen"]]
    right.barh(range(len(survey)), survey[benchmark], color=[SEEN if each else UNSEEN for each in marked])
    _names(right, [f"{model} ({base})" for model, base in zip(survey.model, survey["language model"], strict=True)], 7)
    right.set_title(f"{benchmark}; orange: its training images were learned", fontsize=10)
    return figure


def pairs(frame: "DataFrame", x: str, y: str, names: Mapping[str, str] | None = None) -> "Figure":
    """Two benchmarks of one table against each other, a point a model."""
    rows = tables.complete(frame, [x, y])
    figure, (axes,) = _figure([frame], 4.4)
    axes.scatter(rows[x], rows[y], color=PLAIN)
    for model, a, b in zip(rows.model, rows[x], rows[y], strict=True):
        text = (names or {}).get(model, model.rpartition("/")[2])
        axes.annotate(text, (a, b), (4, 3), textcoords="offset points", fontsize=7)
    axes.set(xlabel=f"{x}, percent", ylabel=f"{y}, points of 100")
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)
    axes.set_title(f"{len(rows)} models, two benchmarks", fontsize=11)
    return figure


def _benchmarks(benchmark: str, split: str | None = None) -> "DataFrame":
    frame = tables.table("benchmarks")
    chosen = frame.benchmark == benchmark
    return frame[chosen if split is None else chosen & (frame.split == split)]
