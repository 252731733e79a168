"""Plots of published tables. Each names its sources at its foot, and says that nothing was measured here."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from imp_kit.experiments.claims import tables
from imp_kit.experiments.stats import Share
from imp_kit.system.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

WIDTH, DPI = 8.0, 90  # inches, dots an inch
FOOT = 135  # characters of a line at the foot
PLAIN, GREY = "#1f77b4", "#bbbbbb"
READ = {"at the source": "", "in a copy": ", in a copy", "second hand": ", second hand"}
SEEN, UNSEEN = "#d95f02", "#1b9e77"  # training images of the benchmark were learned, or nothing says so
SWAPPED = ("#d95f02", "#7570b3")
HEIGHT = 0.28  # inches of a row


def _figure(frames: "Sequence[DataFrame]", height: float, columns: int = 1, **options):
    """A figure with the sources of its tables at the foot, and its axes in a row."""
    require("measure", "matplotlib", what="A plot")
    from matplotlib.figure import Figure

    named = [
        f"{tables.sources(rows)}{READ[how]}" for frame in frames for how, rows in frame.groupby("read", sort=False)
    ]
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
    axes.set_title(
        f"Best mean, of all {2 ** len(columns) - 1} choices of columns ({len(shares)} models with all cells)",
        fontsize=11,
    )
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
    both = (("MME-P in its points", rows), ("in percent; orange: other rank", tables.percent(rows)))
    order = list(tables.means(rows, columns).sort_values(ascending=False).index)
    before = {model: place for place, model in enumerate(order)}
    for axes, (title, scaled) in zip(panels, both, strict=True):
        means = tables.means(scaled, columns).sort_values(ascending=False)
        moved = [before[model] != place for place, model in enumerate(means.index)]
        bars = axes.barh(range(len(means)), means, color=[SEEN if each else PLAIN for each in moved])
        axes.bar_label(bars, [f"{mean:.1f}" for mean in means], padding=3, fontsize=8)
        _names(axes, list(means.index), 8)
        axes.set(xlim=(0, 1.25 * means.max()), xticks=[])
        axes.set_xlabel(f"mean of {len(columns)} columns", fontsize=9)
        axes.set_title(title, fontsize=10)
    return figure


def intervals(frame: "DataFrame", column: str, test: tuple[str, str]) -> "Figure":
    """The scores of one column with their 95 % intervals, best first; `test` is such as ("MMB", "dev")."""
    number = tables.questions(*test)
    rows = tables.complete(frame, [column]).sort_values(column, ascending=False, kind="stable")
    figure, (axes,) = _figure([frame, _benchmarks(*test)], 1.5 + HEIGHT * len(rows))
    _points(axes, [tables.interval(value, number) for value in rows[column]])
    _names(axes, list(rows.model))
    axes.set_xlabel("percent, with 95 % intervals", fontsize=9)
    axes.set_title(f"{' '.join(test)}: {number:,} questions", fontsize=11)
    axes.grid(axis="x", alpha=0.3)
    return figure


def _points(axes, shares: Sequence[Share], **style) -> None:
    middle = [100 * each.share for each in shares]
    errors = [[100 * (each.share - each.low) for each in shares], [100 * (each.high - each.share) for each in shares]]
    axes.errorbar(middle, range(len(shares)), xerr=errors, fmt="o", capsize=3, color=PLAIN, **style)


def widths(points: float = 50) -> "Figure":
    """Half the width of the 95 % interval around a score, for each benchmark whose number of questions is recorded."""
    frame = tables.table("benchmarks")
    frame = frame[frame.questions > 0].sort_values("questions")
    figure, (axes,) = _figure([frame], 2.0 + HEIGHT * len(frame))
    shares = [tables.interval(points, int(number)) for number in frame.questions]
    halves = [50 * (share.high - share.low) for share in shares]
    axes.hlines(range(len(halves)), 0, halves, color=GREY)
    axes.plot(halves, range(len(halves)), "o", color=PLAIN)
    for place, half in enumerate(halves):
        axes.annotate(f"± {half:.1f}", (half, place), (7, 0), textcoords="offset points", fontsize=8, va="center")
    _names(axes, [f"{row.benchmark} {row.split}: {row.questions:,.0f}" for row in frame.itertuples()], 8)
    axes.set(xlim=(0, 1.15 * max(halves)), xlabel="points of percent")
    axes.set_title(f"Half the 95 % interval of a score of {points:g} %, by questions", fontsize=11)
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


def training() -> "Figure":
    """Imp-3B by its training data, from the report's roadmap: TextVQA, and the mean of six benchmarks."""
    road = tables.table("imp_roadmap")
    road = road[road.section.str.startswith("3.")].drop_duplicates(["TextVQA", "mean"])
    figure, panels = _figure([road], 1.4 + HEIGHT * len(road), 2, sharey=True)
    for axes, column, color in zip(panels, ("TextVQA", "mean"), (SEEN, PLAIN), strict=True):
        bars = axes.barh(range(len(road)), road[column], color=color)
        axes.bar_label(bars, [f"{value:g}" for value in road[column]], padding=3, fontsize=8)
        _names(axes, list(road.step), 8)
        axes.set(xlim=(0, 1.2 * road[column].max()), xticks=[])
        axes.set_title(f"{column}, percent" if column == "TextVQA" else "mean of six benchmarks", fontsize=10)
    return figure


def seen(benchmark: str) -> "Figure":
    """A column of the survey that marks whose training had images of the benchmark's training set."""
    frame = tables.complete(tables.table("survey"), [benchmark]).sort_values(benchmark, ascending=False, kind="stable")
    figure, (axes,) = _figure([frame], 1.2 + HEIGHT * len(frame))
    marked = [benchmark in names.split("; ") for names in frame["training images seen"]]
    for is_seen, color, label in ((True, SEEN, "its training images were learned"), (False, UNSEEN, "not marked so")):
        places = [place for place, mark in enumerate(marked) if mark == is_seen]
        bars = axes.barh(places, frame[benchmark].iloc[places], color=color, label=label)
        axes.bar_label(bars, [f"{value:g}" for value in frame[benchmark].iloc[places]], padding=3, fontsize=8)
    _names(axes, [f"{model} ({base})" for model, base in zip(frame.model, frame["language model"], strict=True)], 8)
    axes.set(xlim=(0, 1.5 * frame[benchmark].max()), xticks=[])
    axes.legend(fontsize=8, loc="lower right", frameon=False)
    axes.set_title(f"{benchmark}, percent", fontsize=11)
    return figure


def pairs(frame: "DataFrame", x: str, y: str) -> "Figure":
    """Two columns of a table against each other, a point a model."""
    rows = tables.complete(frame, [x, y]).sort_values(y, kind="stable")
    figure, (axes,) = _figure([frame], 4.6)
    axes.scatter(rows[x], rows[y], color=PLAIN)
    for place, (model, a, b) in enumerate(zip(rows.model, rows[x], rows[y], strict=True)):
        shift, side = ((5, -6), "left") if place % 2 else ((-5, 4), "right")  # neighbors on different sides
        text = model.rpartition("/")[2]
        axes.annotate(text, (a, b), shift, textcoords="offset points", fontsize=7, ha=side)
    axes.set(xlabel=x, ylabel=y)
    axes.margins(x=0.2)
    axes.grid(alpha=0.3)
    axes.set_title(f"{len(rows)} models, two benchmarks", fontsize=11)
    return figure


def _benchmarks(benchmark: str, split: str | None = None) -> "DataFrame":
    frame = tables.table("benchmarks")
    chosen = frame.benchmark == benchmark
    return frame[chosen if split is None else chosen & (frame.split == split)]
