"""Notebook 08: the published tables as data, what is computed from them, the plots, and the exercises."""

import importlib.util
import io
import itertools
import math
import re
from datetime import date
from pathlib import Path

import nbformat
import numpy as np
import pytest
from first_cell import NOTEBOOKS
from packaging.version import Version
from pandas import DataFrame
from PIL import Image

import imp_kit
from imp_kit.errors import SettingError
from imp_kit.exercises import claims as check
from imp_kit.experiments import claims
from imp_kit.experiments.claims import plots

SOLUTIONS = [
    (1, "With all benchmarks: Your function returns None", "def winner(scores, left_out):\n    pass"),
    (1, "C lacks a score", "def winner(scores, left_out):\n    return 'C'"),
    (1, "Without reading: B has", "def winner(scores, left_out):\n    return 'A'"),
    (1, "Without counting and charts: C has", "def winner(scores, out):\n    return 'B' if 'reading' in out else 'A'"),
    (2, "± 3.09 points", "answer = 1000"),
    (2, "whole number", "answer = 96.04"),
    (2, "Give a number alone", "answer = 'many'"),
    (3, "For another model on the same test", "def comparable(one, other):\n    return one == other"),
    (3, "For another benchmark", "def comparable(one, other):\n    return True"),
    (3, "For another split", "def comparable(a, b):\n    return all(a[k] == b[k] for k in list(a)[1::2] + ['hints'])"),
    (3, "For another scale", "def comparable(a, b):\n    return all(a[k] == b[k] for k in list(a)[1:4])"),
]


# The data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", claims.NAMES)
def test_each_row_says_where_it_stands_and_how_it_was_read(name):
    frame = claims.table(name)
    assert list(frame)[-5:] == list(claims.SOURCE)
    assert len(frame) > 4
    for row in frame.to_dict("records"):
        if row["read"] == "not found":
            assert row["source"] == "not found"
            continue
        assert re.match(r"https://[\w.-]+(/|$)", row["source"])
        assert row["read"] in plots.READ
        assert row["place"].strip()
        assert row["version"].strip()
        assert date(2026, 1, 1) < date.fromisoformat(row["read on"])


def test_cells_of_imps_readme_are_those_that_notebook_01_quotes():
    """Typed there by hand, in another month."""
    text = (NOTEBOOKS / "01_captioning.ipynb").read_text("utf-8")
    names = {"Imp-v1-3B": "Imp-v1-3B", "LLaVA-1.5-lora 7B": "LLaVA-v1.5-lora"}
    frame = claims.table("imp_readme").set_index("model")
    compared = 0
    for line in re.findall(r"\| ((?:Imp-v1|LLaVA-1.5)[^|]*) \|((?: [\d.*]+ \|){6})", text):
        cells = [float(cell.strip(" *")) for cell in line[1].split("|")[:-1]]
        columns = ["VQAv2", "GQA", "TextVQA", "POPE", "MMB", "MM-Vet"]
        assert list(frame.loc[names.get(line[0], line[0]), columns]) == cells
        compared += len(cells)
    assert compared == 30


def test_the_means_of_the_roadmap_are_those_of_its_rows():
    frame = claims.table("imp_roadmap")
    own = frame[["VQAv2", "GQA", "TextVQA", "SQA-I", "POPE", "MMB"]].mean(axis=1)
    assert len(frame) == 19
    assert (own - frame["mean"]).abs().max() < 0.051  # rounded to one digit


def test_tables_that_quote_each_other_agree():
    zoo, survey = claims.table("llava_zoo"), claims.table("survey")
    shared = ["VQAv2", "GQA", "VizWiz", "TextVQA", "POPE", "MME-P", "MMB", "MMB-CN"]
    for size in ("7B", "13B"):
        own = zoo[(zoo["language model or size"] == size) & (zoo.schedule == "full_ft-1e")][shared]
        quoted = survey[(survey.model == "LLaVA-1.5") & (survey["language model"] == f"Vicuna-1.5-{size}")][shared]
        assert own.to_numpy().tolist() == quoted.to_numpy().tolist()
    lora = zoo[(zoo["language model or size"] == "7B") & (zoo.schedule == "lora-1e")].iloc[0]
    readme = claims.table("imp_readme").iloc[0]
    assert all(lora[column] == readme[column] for column in [*shared[:-1], "MM-Vet"])
    report = claims.table("imp_report").set_index("model")
    last = claims.table("imp_roadmap").iloc[-1]
    same = ["VQAv2", "GQA", "TextVQA", "SQA-I", "MMB"]
    assert list(report.loc["Imp-3B", same]) == list(last[same])


def test_numbers_under_one_name_are_those_of_the_tables():
    """Of the pairs that can be looked up in another file of the kit, each is there."""
    frame = claims.table("same_name")
    wanted = {
        ("Imp-v1.5-2B", "its authors' README"): ("imp_readme", "Imp-v1.5-2B-Qwen1.5"),
        ("Imp-v1.5-3B", "its authors' README"): ("imp_readme", "Imp-v1.5-3B-Phi2"),
        ("Imp-v1.5-2B", "its authors' report"): ("imp_report", "Imp-2B"),
        ("Imp-v1.5-3B", "its authors' report"): ("imp_report", "Imp-3B"),
        ("Qwen2.5-VL-3B", "llm-jp-eval-mm"): ("japanese", "Qwen/Qwen2.5-VL-3B-Instruct"),
        ("Gemma 3-4B", "llm-jp-eval-mm"): ("japanese", "google/gemma-3-4b-it"),
        ("LLaVA CALM2", "llm-jp-eval-mm"): ("japanese", "cyberagent/llava-calm2-siglip"),
        ("EvoVLM-JP v2", "llm-jp-eval-mm"): ("japanese", "SakanaAI/Llama-3-EvoVLM-JP-v2"),
    }
    looked_up = 0
    for row in frame.to_dict("records"):
        if place := wanted.get((row["model"], row["who and how"])):
            there = claims.table(place[0]).set_index("model").loc[place[1]]
            assert there[row["benchmark"]] == row["value"]
            looked_up += 1
    assert looked_up == 11
    assert (frame.groupby(["model", "benchmark"]).size() >= 2).all()
    jmmmu = claims.table("jmmmu").set_index("model")["all"]
    assert {34.9, 38.1} == {jmmmu["LLaVA CALM2"], jmmmu["EvoVLM-JP v2"]}


def test_the_classes_are_those_of_transformers():
    """Of the installed version: a folder of models for each; the versions of the two stacks know different ones."""
    spec = importlib.util.find_spec("transformers")
    folder = Path(spec.submodule_search_locations[0]) / "models"
    version = Version(imp_kit.notebook.installed("transformers"))
    named = set(claims.table("doors").transformers) - {""}
    assert named == {"llava", "llava_next", "blip_2", "instructblip", "idefics", "idefics2"}
    later = {"llava_next", "idefics2"} if version < Version("4.40") else set()
    assert {name for name in named if (folder / name).is_dir()} == named - later
    for name in ("qwen_vl", "cogvlm", "minigpt4", "open_flamingo", "imp"):
        assert not (folder / name).exists()


def test_doors_that_are_shut_say_since_when():
    doors = claims.table("doors")
    ended = doors[doors.state.isin(["shut down", "end announced"])]
    assert set(ended.kind) == {"API"}
    for row in ended.to_dict("records"):
        assert date(2024, 1, 1) < date.fromisoformat(row["until"])
        assert (date.fromisoformat(row["until"]) < date.fromisoformat(row["read on"])) == (row["state"] == "shut down")
    assert set(doors[doors.state == "open"].kind) == {"weights"}
    assert set(doors.state) == {"open", "shut down", "end announced", "not found"}


# What is computed ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def readme():
    return claims.table("imp_readme")


def test_cells_that_are_missing_are_no_zeros(readme):
    assert math.isnan(readme.set_index("model").loc["TinyGPT-V", "VQAv2"])
    assert claims.means(readme, ["VQAv2", "GQA"])["TinyGPT-V"] == 33.6
    assert list(claims.complete(readme, ["VQAv2", "GQA"]).model)[:2] == ["LLaVA-v1.5-lora", "MC-LLaVA"]


def test_percent_is_of_the_best_possible_points(readme):
    scaled = claims.percent(readme)
    assert scaled["MME-P"].tolist()[0] == pytest.approx(1476.9 / 20)
    assert scaled["VQAv2"].equals(readme["VQAv2"])
    assert readme["MME-P"].iloc[0] == 1476.9, "the table itself stays"


def by_hand(rows, columns):
    """Ranks of the models by their means, plainly."""
    means = {row["model"]: round(sum(row[column] for column in columns) / len(columns), 6) for row in rows}
    return {model: 1 + sum(other > mean for other in means.values()) for model, mean in means.items()}


def test_ranks_with_a_column_less_and_the_share_of_wins():
    frame = claims.percent(claims.table("imp_report"))
    columns = claims.scores(frame)
    rows = [row for row in frame.to_dict("records") if not any(math.isnan(row[column]) for column in columns)]
    ranks = claims.dropped(frame, columns)
    assert ranks["none"].to_dict() == by_hand(rows, columns)
    for out in columns:
        assert ranks[out].to_dict() == by_hand(rows, [column for column in columns if column != out])
    best = dict.fromkeys((row["model"] for row in rows), 0)
    for size in range(1, len(columns) + 1):
        for chosen in itertools.combinations(columns, size):
            sums = [round(sum(row[column] for column in chosen), 6) for row in rows]
            best[rows[sums.index(max(sums))]["model"]] += 1
    shares = claims.wins(frame, columns)
    assert shares.to_dict() == pytest.approx({model: count / 1023 for model, count in best.items()})
    assert ranks.loc["Imp-3B", "none"] == 3
    assert ranks.loc["Imp-3B", "MMB-CN"] == 2


def wilson_by_hand(right, total, z=1.959964):
    share = right / total
    middle = (share + z * z / 2 / total) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / 4 / total**2)
    return middle - half, middle + half


def test_intervals_and_differences_are_their_formulas():
    share = claims.interval(49.9, 1000)
    assert (share.low, share.high) == pytest.approx(wilson_by_hand(499, 1000), abs=1e-5)
    found = claims.difference(60, 55, 1000)
    (a, b), (c, d) = wilson_by_hand(600, 1000), wilson_by_hand(550, 1000)
    low, high = 0.05 - math.hypot(0.6 - a, d - 0.55), 0.05 + math.hypot(b - 0.6, 0.55 - c)
    assert (found.value, found.low, found.high) == pytest.approx((5, 100 * low, 100 * high), abs=1e-3)
    assert found.low > 0 > claims.difference(60, 56, 1000).low


def test_the_interval_of_a_difference_covers_the_true_one():
    """Of 500 pairs of models that are right in 62 % and 58 % on other questions each, about 95 %."""
    rng = np.random.default_rng(0)
    rights = rng.binomial(400, [[0.62], [0.58]], (2, 500))
    pairs, counts = np.unique(rights, axis=1, return_counts=True)
    covered = 0
    for (one, other), count in zip(pairs.T, counts, strict=True):
        found = claims.difference(one / 4, other / 4, 400)
        covered += count * (found.low <= 4 <= found.high)
    assert 0.92 < covered / 500 < 0.98


def test_unclear_pairs_are_those_whose_interval_holds_zero(readme):
    pairs = {(one, other) for one, other, _ in claims.unclear(readme, "MMB", ("MMB", "dev"))}
    assert ("Imp-v1-3B", "LLaVA-v1.5-lora") in pairs
    assert ("Imp-v1.5-3B-Phi2", "LLaVA-v1.5-lora") not in pairs
    assert len(pairs) == 5
    assert len(claims.unclear(readme, "MMB", ("VQAv2", "test-dev"))) < 5, "with more questions fewer are unclear"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: claims.table("imp"), "no table 'imp'; take one of: benchmarks, doors, imp_readme"),
        (lambda: claims.questions("MMB", "all"), "MMB all, only for: VQAv2 val, VQAv2 test-dev"),
        (lambda: claims.questions("MME-P", "ten subtasks"), "No number of questions is recorded for MME-P"),
        (lambda: claims.interval(1476.9, 1000), "1476.9 is no percentage"),
        (lambda: claims.interval(50, 0), "is no proportion"),
        (
            lambda: claims.means(claims.table("imp_readme"), ["MMBench"]),
            "The columns to compare are 'MMBench'; give a list",
        ),
        (lambda: claims.complete(claims.table("imp_readme"), "MMB"), "The columns to compare are 'MMB'; give a list"),
        (lambda: claims.wins(claims.table("imp_readme"), ["model"]), "The columns to compare are 'model'; give a list"),
        (lambda: claims.wins(claims.table("imp_readme"), []), "The columns to compare are none; give a list"),
        (lambda: claims.dropped(claims.table("imp_readme"), ["MMB"]), "none can be left out; give at least two"),
        (lambda: claims.wins(claims.table("imp_readme")[:0], ["MMB"]), "No model has all of the columns MMB"),
    ],
)
def test_one_clear_error(call, says):
    with pytest.raises(SettingError, match=re.escape(says)):
        call()


# Plots -----------------------------------------------------------------------------------------------------

REPORT_COLUMNS = ["VQAv2", "GQA", "VizWiz", "SQA-I", "TextVQA", "POPE", "MME-P", "MMB", "MMB-CN", "MM-Vet"]
README_COLUMNS = [each for each in REPORT_COLUMNS if each != "MMB-CN"]
FIGURES = {
    "heat": lambda: plots.heat(claims.table("imp_readme"), README_COLUMNS, "a title"),
    "same_cells": lambda: plots.same_cells(claims.table("imp_readme"), README_COLUMNS[:6], "LLaVA-v1.5-lora"),
    "dropped": lambda: plots.dropped(claims.percent(claims.table("imp_report")), REPORT_COLUMNS),
    "wins": lambda: plots.wins(claims.percent(claims.table("imp_report")), REPORT_COLUMNS),
    "intervals": lambda: plots.intervals(claims.table("imp_readme"), "MMB", ("MMB", "dev")),
    "widths": plots.widths,
    "same_name": lambda: plots.same_name(["TextVQA"]),
    "scales": lambda: plots.scales(claims.table("imp_readme"), README_COLUMNS),
    "training": plots.training,
    "seen": lambda: plots.seen("GQA"),
    "pairs": lambda: plots.pairs(claims.table("japanese"), "JMMMU", "Heron-Bench"),
}
FROM = {
    "heat": ["github.com/MILVLG/imp (README.md, Evaluation)"],
    "dropped": ["arxiv.org/abs/2405.12107 (Table 3), in a copy"],
    "intervals": ["github.com/MILVLG/imp", "github.com/open-compass/MMBench"],
    "widths": ["github.com/turingmotors/heron", "arxiv.org/abs/2210.08773 (section 4.1), second hand"],
    "same_name": ["github.com/haotian-liu/LLaVA", "github.com/bzluan/TextCoT/issues/1 (discussion), second hand"],
    "scales": ["github.com/MILVLG/imp", "github.com/InternLM/opencompass/pull/197"],
    "seen": ["arxiv.org/abs/2401.13601 (Table 2), in a copy"],
}


@pytest.fixture(scope="module")
def figures():
    return {name: draw() for name, draw in FIGURES.items()}


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_names_its_sources_inside_its_edges(name, figures):
    figure = figures[name]
    png = io.BytesIO()
    figure.savefig(png, format="png")
    foot = figure._supxlabel
    text = " ".join(foot.get_text().split())
    assert text.startswith("Published, not measured here. Source: ")
    assert all(each in text for each in FROM.get(name, ["arxiv.org" if name in ("wins", "training") else "github.com"]))
    box = foot.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert box.y0 >= 0
    drawn = np.asarray(Image.open(png).convert("L"))
    assert (drawn[:, -1] > 250).all(), "something is cut off at the right"
    assert (drawn[0] > 250).all(), "something is cut off at the top"


def test_bars_and_points_are_the_data(figures, readme):
    texts = [text.get_text() for text in figures["heat"].axes[0].texts]
    assert texts.count("") == int(readme[README_COLUMNS].isna().sum().sum()) > 10
    assert {"81.46", "1507.7", "63"} <= set(texts)
    widths = [bar.get_width() for bar in figures["seen"].axes[0].patches]
    survey = claims.table("survey")
    assert sorted(widths) == sorted(survey.GQA.dropna())
    orange = [bar.get_width() for bar in figures["seen"].axes[0].containers[0]]
    assert sorted(orange) == sorted(survey[survey["training images seen"].str.contains("GQA")].GQA)
    (points,) = figures["pairs"].axes[0].collections
    assert len(points.get_offsets()) == 17
    assert [bar.get_width() for bar in figures["training"].axes[0].patches] == [59.4, 54.6, 57.6, 58.5, 59.8]
    named = claims.table("same_name")
    bars = [bar.get_width() for bar in figures["same_name"].axes[0].patches]
    assert bars == list(named[named.benchmark == "TextVQA"].value)


def test_the_scale_of_a_column_changes_the_order(figures):
    raw, scaled = ([label.get_text() for label in axes.get_yticklabels()] for axes in figures["scales"].axes)
    assert raw.index("LLaVA-v1.5-lora") < raw.index("Imp-v1-3B")
    assert scaled.index("LLaVA-v1.5-lora") > scaled.index("Imp-v1-3B")
    colors = [bar.get_facecolor() for bar in figures["scales"].axes[1].patches]
    assert [color != colors[0] for color in colors] == [False, False, True, True, False]


# Exercises -------------------------------------------------------------------------------------------------


def cells():
    return {cell.id: cell.source for cell in nbformat.read(NOTEBOOKS / "08_claims.ipynb", as_version=4).cells}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_solution_is_right_and_an_empty_cell_is_not_yet(number, capsys):
    task = cells()[f"exercise-{number}"]
    solution = cells()[f"solution-{number}"].partition("```python\n")[2].partition("```")[0]
    exec(task, {})
    assert capsys.readouterr().out.startswith("Not yet: ")
    exec(f"from imp_kit.exercises import claims as check\n{solution}\n{task.splitlines()[-1]}", {})
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(("number", "hint", "answer"), SOLUTIONS)
def test_a_wrong_answer_gets_a_hint(number, hint, answer, capsys):
    exec(
        f"from imp_kit.exercises import claims as check\n{answer}\n{cells()[f'exercise-{number}'].splitlines()[-1]}", {}
    )
    printed = capsys.readouterr().out
    assert printed.startswith("Not yet: ")
    assert hint in printed


def test_the_winners_of_the_exercise_are_those_of_the_package():
    """The same rule twice: complete rows only, and the mean over what is left."""
    rows = [{"model": model, **row} for model, row in check.SMALL.items()]
    frame = DataFrame(rows).astype({"counting": float, "charts": float})
    for left_out, wanted in check.WINNERS:
        kept = [column for column in claims.scores(frame) if column not in left_out]
        assert claims.means(claims.complete(frame, kept), kept).idxmax() == wanted
