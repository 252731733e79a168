"""imp_kit.notebook, samples and exercises: what the cells of the notebooks call."""

import csv
import io
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from IPython.display import Image as Shown
from matplotlib.figure import Figure
from PIL import Image

import imp_kit
from imp_kit.exercises import NotYet, exercise, expect, list_of, result_of
from imp_kit.exercises import setup as setup_exercises
from imp_kit.experiments.transformers_matrix.measure import draw, read_table
from imp_kit.imp import choose_checkpoint
from imp_kit.samples import NAMES
from imp_kit.tools import notebook

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def nano():
    return imp_kit.load("imp-nano", device="cpu")


@pytest.fixture
def shown(monkeypatch):
    """What a cell would show, as images."""
    images = []

    def display(what):
        assert isinstance(what, Shown)
        images.append(Image.open(io.BytesIO(what.data)).convert("RGB"))

    monkeypatch.setattr("IPython.display.display", display)
    return images


# Samples and packaging ---------------------------------------------------------------------------------------


def test_samples_are_the_images_of_the_repository_and_of_the_wheel():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    assert project["package-dir"] == {"imp_kit.sample_images": "images"}
    patterns = project["package-data"]["imp_kit.sample_images"]
    packed = {path.name for pattern in patterns for path in (ROOT / "images").glob(pattern)}
    assert packed == {*NAMES, "SOURCES.md"}
    for name in NAMES:
        assert imp_kit.sample(name).read_bytes() == (ROOT / "images" / name).read_bytes()


def test_another_name_is_refused_with_those_that_there_are():
    with pytest.raises(imp_kit.ImageError, match=r"no sample image 'tram.png'. There are astronaut.jpg, bus.png, "):
        imp_kit.sample("tram.png")


def test_every_package_but_the_training_is_in_the_wheel():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "imp_kit").rglob("__init__.py")}
    assert set(project["packages"]) == (folders | {"imp_kit.sample_images"}) - {"imp_kit.nano.training"}


# The first cell's second half --------------------------------------------------------------------------------


def test_start_says_the_versions_and_imports_no_torch():
    code = "import sys, imp_kit\nimp_kit.notebook.start()\nprint({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    line, loaded = done.stdout.splitlines()
    assert re.fullmatch(r"imp-kit \S+, Python 3\.\d+\.\d+, torch \S+, transformers \S+", line)
    assert loaded == "set()"


def test_start_names_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(imp_kit.SettingError, match=r"^This notebook needs pandas: pip install pandas\.$"):
        notebook.start()


def test_a_kernel_that_uses_another_version_than_the_installed_one_must_be_restarted(monkeypatch):
    old = types.ModuleType("tokenizers")
    old.__version__ = "0.0.1"
    monkeypatch.setitem(sys.modules, "tokenizers", old)
    with pytest.raises(imp_kit.SettingError, match=r"tokenizers \S+ is installed, but .* still uses 0\.0\.1\. Restart"):
        notebook.start()


# The reader's image ------------------------------------------------------------------------------------------


def test_a_path_is_the_readers_image():
    assert notebook.choose_image(str(imp_kit.sample("bus.png"))) == imp_kit.sample("bus.png")


def test_what_is_no_image_is_refused_where_it_is_chosen(tmp_path):
    (tmp_path / "a.png").write_text("<html>not found</html>")
    with pytest.raises(imp_kit.ImageError, match="web page"):
        notebook.choose_image(tmp_path / "a.png")
    with pytest.raises(imp_kit.ImageError, match="no such file"):
        notebook.choose_image(tmp_path / "b.png")


def test_upload_outside_of_colab_says_what_to_do_instead():
    with pytest.raises(imp_kit.SettingError, match="in Colab alone; elsewhere give the path"):
        notebook.choose_image("upload")


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """Colab's dialog, which saves the chosen files in the working directory; `colab` holds them."""
    chosen = {}

    def upload():
        for name, content in chosen.items():
            Path(name).write_bytes(content)
        return chosen

    package, files = types.ModuleType("google.colab"), types.ModuleType("google.colab.files")
    files.upload = upload
    package.files = files
    monkeypatch.setitem(sys.modules, "google.colab", package)
    monkeypatch.chdir(tmp_path)
    return chosen


def test_upload_gives_the_file_that_was_chosen(colab):
    colab["my bus.png"] = imp_kit.sample("bus.png").read_bytes()
    assert notebook.choose_image("upload") == Path("my bus.png")


def test_an_upload_that_is_nothing_or_no_image_says_so(colab):
    with pytest.raises(imp_kit.SettingError, match="No file was uploaded; run this cell again"):
        notebook.choose_image("upload")
    colab["my.pdf"] = b"%PDF-1.7"
    with pytest.raises(imp_kit.ImageError, match="PDF"):
        notebook.choose_image("upload")


# Pictures ----------------------------------------------------------------------------------------------------


def test_show_draws_the_image_and_the_text_beside_it(shown):
    bus = imp_kit.sample("bus.png")
    notebook.show(bus)
    notebook.show(bus, [("What does it cost?", "$5 or $6, " * 30)])  # no formula
    alone, beside = shown
    assert beside.width > 2 * alone.width - 20
    for image in shown:
        colors = {color for _, color in image.resize((200, 100)).getcolors(20_000)}
        assert any(red > 180 and green < 70 for red, green, _ in colors), "the red of the bus is there"
    text = beside.crop((beside.width // 2, 0, beside.width, beside.height)).convert("L")
    assert min(text.tobytes()) < 40, "the answer is written in black"


def test_more_text_makes_a_higher_picture(shown):
    bus = imp_kit.sample("bus.png")
    notebook.show(bus, [("Why?", "word " * 20)])
    notebook.show(bus, [("Why?", "word " * 300)])
    assert shown[1].height > 2 * shown[0].height


def test_a_chart_is_shown_as_drawn_in_half_the_bytes_or_less(monkeypatch):
    pngs = []
    monkeypatch.setattr("IPython.display.display", lambda shown: pngs.append(shown.data))
    figure, whole = draw(read_table()), io.BytesIO()
    figure.savefig(whole, format="png")
    notebook.plot(figure)
    before, after = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int) for png in (whole.getvalue(), *pngs))
    assert np.abs(before - after).mean() < 0.5  # of 255
    assert len(pngs[0]) < len(whole.getvalue()) / 2


def test_the_colors_of_a_small_heat_map_stay_what_its_scale_says(monkeypatch):
    """A palette of the most frequent colors made the dark red and blue ends of the scale black."""
    pngs = []
    monkeypatch.setattr("IPython.display.display", lambda shown: pngs.append(shown.data))
    figure, whole = Figure(figsize=(11, 2.3), dpi=80), io.BytesIO()
    axes = figure.subplots(1, 6)
    for each, strength in zip(axes, np.linspace(0, 1, 6), strict=True):
        drawn = each.imshow(np.linspace(-strength, strength, 64).reshape(8, 8), cmap="RdBu_r", vmin=-1, vmax=1)
    figure.colorbar(drawn, ax=list(axes))
    figure.savefig(whole, format="png")
    notebook.plot(figure)
    before, after = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int) for png in (whole.getvalue(), *pngs))
    assert np.abs(before - after).max() <= 32  # of 255, in each pixel


# The model of a lesson ---------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_a_lesson_about_a_large_checkpoint_has_imp_nano_and_says_why(capsys):
    assert notebook.load_or_nano("imp-v1.5-3b-phi2").name == "imp-nano"
    assert capsys.readouterr().out == "imp-kit: imp-nano, because there is no GPU here for imp-v1.5-3b-phi2.\n"


@pytest.mark.parametrize(
    ("free", "reachable", "chosen", "why"),
    [
        (16e9, True, "imp-v1.5-4b-phi3", "there is a GPU and the hub has it"),
        (8e9, True, "imp-nano", "imp-v1.5-4b-phi3 needs 9.6 GB of the GPU's memory and 8.0 GB are free"),
        (16e9, False, "imp-nano", "the hub cannot be reached for imp-v1.5-4b-phi3"),
    ],
)
def test_a_lesson_has_its_large_checkpoint_where_it_fits_and_can_be_had(monkeypatch, free, reachable, chosen, why):
    asked = []
    monkeypatch.setattr("imp_kit.imp.free_memory", lambda device: free)
    monkeypatch.setattr("imp_kit.imp.is_available", lambda hub_id: asked.append(hub_id) or reachable)
    assert choose_checkpoint(torch.device("cuda"), "imp-v1.5-4b-phi3") == (chosen, why)
    assert asked in ([], ["MILVLG/Imp-v1.5-4B-Phi3"])


def test_the_installed_version_is_the_one_on_the_disk():
    assert notebook.installed("pip-that-nobody-has") is None
    assert notebook.installed("torch") == torch.__version__


# Costs -------------------------------------------------------------------------------------------------------


def test_costs_show_this_machine_first_and_then_the_measured_ones(nano):
    view = nano.look(imp_kit.sample("bus.png"))
    answers = [view.ask(question) for question in ("What is this?", "Is there a cat?", "Describe the image.")]
    table = notebook.costs(answers)
    here = table.iloc[0]
    assert here["checkpoint"] == "imp-nano fp32"
    assert here["look (s)"] == pytest.approx(answers[0].seconds.look, abs=5e-4)
    assert here["read a question (s)"] == pytest.approx(sorted(a.seconds.prefill for a in answers)[1], abs=5e-4)
    assert here["tokens a second"] == pytest.approx(sorted(a.tokens_per_second for a in answers)[1], abs=5e-4)
    assert 0.1 < here["memory (GB)"] < 64
    assert len(table) > 2
    with pytest.raises(imp_kit.SettingError, match="no answer"):
        notebook.costs([])


def test_measured_figures_are_those_of_the_page_about_speed():
    page = (ROOT / "docs" / "speed.md").read_text("utf-8")
    with notebook.MEASURED.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        for name in ("look", "question", "tokens_per_second"):
            value = float(row[name])
            texts = {row[name].removesuffix(".0"), row[name], f"{value * 1000:.1f} ms"}
            assert any(re.search(rf"(?<![\d.]){re.escape(text)}(?![\d.]\d)", page) for text in texts), (row, name)


# Exercises ---------------------------------------------------------------------------------------------------


@exercise
def seven(answer):
    """The number seven."""
    expect(answer + 0 == 7, "It is one more than six.")
    return "as many as a week has days."


@pytest.mark.parametrize(
    ("answer", "printed"),
    [
        (7, "Right: as many as a week has days.\n"),
        (6, "Not yet: It is one more than six.\n"),
        (..., "Not yet: put your answer in place of `...` and run this cell again.\n"),
        (None, "Not yet: put your answer in place of `...` and run this cell again.\n"),
    ],
)
def test_a_check_says_right_or_not_yet_and_why(capsys, answer, printed):
    assert seven(answer) is None
    assert capsys.readouterr().out == printed


def test_an_answer_of_another_type_ends_no_notebook(capsys):
    seven("seven")
    assert re.fullmatch(r"Not yet: with this answer the check ended in TypeError: .+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (4, "The answer is a function here, not int."),
        (lambda x: ..., "still returns `...`"),
        (lambda x: None, "returns None: each way"),
        (lambda x: x / 0, "Your function ended in ZeroDivisionError: division by zero"),
        (lambda: 1, "Your function ended in TypeError"),
    ],
)
def test_a_function_of_the_reader_that_fails_is_a_hint(function, hint):
    with pytest.raises(NotYet) as caught:
        result_of(function, 1)
    assert hint in str(caught.value)


def test_what_a_function_of_the_reader_yields_is_a_list_and_a_failure_meanwhile_is_a_hint():
    assert list_of(lambda n: (1 / k for k in range(1, n)), 3) == [1, 0.5]
    with pytest.raises(NotYet, match="Your function ended in ZeroDivisionError"):
        list_of(lambda n: (1 / k for k in range(n)), 3)


def says(capsys, check, answer):
    check(answer)
    return capsys.readouterr().out


def test_exercise_gigabytes(capsys):
    check = setup_exercises.gigabytes
    assert says(capsys, check, 6.4).startswith("Right")
    assert "billion bytes" in says(capsys, check, 6.4e9)
    assert "two bytes" in says(capsys, check, 3.2)
    assert "how many billion" in says(capsys, check, 12.8)
    assert "how many billion" in says(capsys, check, 6)
    assert "not 1024**3" in says(capsys, check, 3.2e9 * 2 / 1024**3)
    assert says(capsys, check, "6.4").startswith("Right")
    assert says(capsys, check, "6.4 GB") == "Not yet: Give a number alone, such as 5 or 0.5, not '6.4 GB'.\n"
    assert says(capsys, check, 12.8).startswith("Not yet")


def test_exercise_bits(capsys):
    check = setup_exercises.bits
    assert says(capsys, check, 4.5).startswith("Right")
    assert "without the scale" in says(capsys, check, 4)
    assert "not for each" in says(capsys, check, 20)
    assert "divide by 32" in says(capsys, check, 144)


def test_exercise_area(capsys):
    check = setup_exercises.area

    def right(box):
        x0, y0, x1, y1 = box.fractions or (0, 0, 0, 0)
        return (x1 - x0) * (y1 - y0)

    assert says(capsys, check, right).startswith("Right")
    assert "covers 0.25" in says(capsys, check, lambda box: 0.1)
    assert "covers 0.45" in says(capsys, check, lambda box: (box.fractions[2] - box.fractions[0]) ** 2)
    forgotten = "Your function ended in TypeError"
    assert forgotten in says(capsys, check, lambda box: right(box) if box.fractions[0] < 2 else 0)
    assert "the share is 0. Your function returns None" in says(capsys, check, lambda box: right(box) if box else None)


def test_exercise_ask_all(capsys):
    check = setup_exercises.ask_all

    def right(imp, picture, questions):
        view = imp.look(picture)
        return [view.ask(question) for question in questions]

    assert says(capsys, check, right).startswith("Right")

    def lazily(imp, picture, questions):
        view = imp.look(picture)
        while questions:
            yield view.ask(questions.pop(0))

    assert says(capsys, check, lazily).startswith("Right")
    assert "Return a list, not 5" in says(capsys, check, lambda imp, image, asked: 5)
    assert "looked 3 times" in says(capsys, check, lambda imp, image, asked: [imp.look(image).ask(q) for q in asked])
    assert "in the order" in says(capsys, check, lambda imp, image, asked: right(imp, image, asked)[::-1])
    assert "Return a list, not Answer" in says(capsys, check, lambda imp, image, asked: imp.look(image).ask(asked[0]))
    assert "Call `imp.look" in says(capsys, check, lambda imp, image, asked: ["yes"] * 3)
