"""Notebook 01: its exercises, with right and wrong answers, and its plots."""

import base64
import io
import math

import nbformat
import numpy as np
import pytest
from first_cell import NOTEBOOKS
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from PIL import Image

import imp_kit
from imp_kit.exercises import captioning as check

CELLS = {cell.id: cell.source for cell in nbformat.read(NOTEBOOKS / "01_captioning.ipynb", as_version=4).cells}
BLUE = (31, 119, 180)  # of a bar
MAX_BYTES = 60_000  # of a figure


# Exercises -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_solution_is_right_and_an_empty_cell_is_not_yet(number, capsys):
    """As the reader has them: the task's cell, and the solution in its place before the same check."""
    task = CELLS[f"exercise-{number}"]
    solution = CELLS[f"solution-{number}"].partition("```python\n")[2].partition("```")[0]
    last = task.splitlines()[-1]
    exec(task, {})
    assert capsys.readouterr().out.startswith("Not yet: ")
    exec(f"from imp_kit.exercises import captioning as check\n{solution}\n{last}", {})
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (sum, "yours says 1. Two coins"),
        (min, "yours says 0.5. Two coins"),
        (lambda shares: sum(shares) / len(shares), "yours says 0.5. Two coins"),
        (lambda shares: round(math.prod(shares), 3), "it is 0.121577; yours says 0.122."),
        (lambda shares: shares[0] * shares[1] if len(shares) > 1 else shares[0], "For 3 tokens with 1.0, 0.9, 0.1"),
        (
            lambda shares: math.prod(shares[:3]),
            "For 20 tokens with 0.9, 0.9, 0.9, ... it is 0.121577; yours says 0.729",
        ),
        (lambda shares: "a lot", "Give a number alone"),
        (0.25, "a function"),
    ],
)
def test_a_wrong_chance(answer, hint, capsys):
    check.chance(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("Not yet: ")
    assert hint in printed


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda shares, heat: [share ** (1 / heat) for share in shares], "The sum must be 1; yours is 0.375"),
        (
            lambda shares, heat: [share**1 / heat / sum(s**1 / heat for s in shares) for share in shares],
            "`(p ** 1) / t`",
        ),
        (lambda shares, heat: [s**heat / sum(t**heat for t in shares) for s in shares], "At temperature 0.5"),
        (lambda shares, heat: shares, "Nothing changed"),
        (
            lambda shares, heat: shares[::-1],
            "0.500, 0.250, 0.250 become 0.500, 0.250, 0.250; yours: 0.250, 0.250, 0.500",
        ),
        (lambda shares, heat: [1.0], "Return 3 numbers"),
        (lambda shares, heat: 1.0, "Return a list, not"),
        (lambda shares: shares, "TypeError"),
    ],
)
def test_a_wrong_temperature(answer, hint, capsys):
    check.with_temperature(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("Not yet: ")
    assert hint in printed


def test_temperature_as_an_array_is_right(capsys):
    def softmax(shares, heat):
        powers = np.exp(np.log(shares) / heat)
        return powers / powers.sum()

    check.with_temperature(softmax)
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (14, "one row"),
        (196**2, "These are pixels"),
        (729, "196 / 14"),
        ("many", "a number alone"),
        ([196], "a number alone"),
    ],
)
def test_a_wrong_number_of_tokens(answer, hint, capsys):
    check.image_tokens(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("Not yet: ")
    assert hint in printed


@pytest.mark.parametrize("answer", [196, 196.0, np.int64(196), "196"])
def test_a_right_number_of_tokens(answer, capsys):
    check.image_tokens(answer)
    assert capsys.readouterr().out.startswith("Right: ")


# Plots -----------------------------------------------------------------------------------------------------


@pytest.fixture
def shown():
    """Calls a function of the kit's and returns the one picture that it shows, as an array (height, width, 3)."""
    InteractiveShell.instance()

    def show(function, *arguments):
        with capture_output() as captured:
            function(*arguments)
        (output,) = captured.outputs
        png = base64.b64decode(output.data["image/png"])
        assert len(png) < MAX_BYTES
        return np.array(Image.open(io.BytesIO(png)).convert("RGB"))

    return show


def bars(picture):
    """Lengths in pixels of the bars, from the top; one below the other."""
    rows = (np.abs(picture.astype(int) - BLUE).sum(-1) < 20).sum(1)
    inside = np.flatnonzero(rows)
    return [int(np.median(rows[part])) for part in np.split(inside, np.flatnonzero(np.diff(inside) > 1) + 1)]


def test_bars_are_as_long_as_the_probabilities(shown):
    tokens = [(" green", 0.8), (" red", 0.4), ("\n", 0.1), ("$x$", 0.05)]
    lengths = bars(shown(imp_kit.notebook.next_tokens_plot, [("The door is ...", tokens)]))
    assert [length / lengths[0] for length in lengths] == pytest.approx([1, 0.5, 0.125, 0.0625], abs=0.02)


def test_panels_have_one_scale(shown):
    """Side by side, the same bar in the same row is twice as many pixels as alone in a figure of two panels."""
    tokens = [(" a", 0.9), (" b", 0.3)]
    picture = shown(imp_kit.notebook.next_tokens_plot, [("one", tokens), ("other", [(" c", 0.45), (" d", 0.3)])])
    middle = picture.shape[1] // 2
    left, right = bars(picture[:, :middle]), bars(picture[:, middle:])
    assert right[0] / left[0] == pytest.approx(0.5, abs=0.05)
    assert right[1] / left[1] == pytest.approx(1, abs=0.1)


def test_a_long_answer_makes_a_higher_figure(shown):
    few = shown(imp_kit.notebook.next_tokens_plot, [("a", [("x", 0.5)] * 3)])
    many = shown(imp_kit.notebook.next_tokens_plot, [("a", [("x", 0.5)] * 30)])
    assert len(bars(many)) == 30
    assert many.shape[0] > 3 * few.shape[0]


def test_the_patches_are_those_of_the_tower(shown):
    """On a white picture only the lines are dark: 13 between and around 12 patches, in each direction."""
    imp = imp_kit.load("imp-nano", device="cpu")
    picture = shown(imp_kit.notebook.patches_plot, imp, Image.new("RGB", (300, 200), "white"))
    grid = picture[14:, -int(picture.shape[1] / 3.5) :].min(-1) < 200  # below the title; widths are 1.5, 1 and 1
    for direction in (0, 1):
        lines = np.flatnonzero(grid.mean(direction) > 0.6)
        assert (np.diff(lines) > 2).sum() + 1 == 13
