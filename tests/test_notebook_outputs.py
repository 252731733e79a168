"""What the notebooks show is what a run shows today, and their exercises can be done."""

import base64
import io
import os
import re
import warnings
from importlib.metadata import version

import nbformat
import notebook_outputs
import numpy as np
import pytest
import torch
from first_cell import NOTEBOOKS
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_outputs import MAX_PICTURE, check, differences, kept, leftovers, masked, same, small_png, solved, update
from PIL import Image
from set_repository import ROOT

STACK = ("torch", "transformers", "numpy", "pandas", "matplotlib")
QUICK = "01_captioning.ipynb"
# Minutes of training or answers: run in small, so what they keep is not compared.
LONG = {
    "03_captcha_probe.ipynb",
    "06_contrastive.ipynb",
    "07_train_and_tune.ipynb",
    "09_documents.ipynb",
    "10_compare.ipynb",
}


def as_made() -> bool:
    """Whether the outputs were made so: with the packages of constraints.txt, on a CPU with these instructions.

    Others round in another order, and of a thousand answers one may then be another.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        return False
    pins = (ROOT / "constraints.txt").read_text("utf-8") + (ROOT / "requirements.txt").read_text("utf-8")
    return all(re.search(rf"^{name}=={re.escape(version(name).partition('+')[0])}\b", pins, re.M) for name in STACK)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.name, marks=() if path.name == QUICK else pytest.mark.slow)
        for path in sorted(NOTEBOOKS.glob("*.ipynb"))
    ],
)
def test_outputs(name):
    """The whole run. With other packages, or on another CPU, texts may differ, which is shown; exercises may not."""
    if name in LONG:  # in small; `make outputs` shows whether what they keep is what a whole run shows
        _, wrong = notebook_outputs.run(NOTEBOOKS / name, "smoke")
        assert wrong == []
        return
    found = check(NOTEBOOKS / name)
    wrong = [line for line in found if as_made() or "was expected of the check" in line]
    assert wrong == [], f"run: python tests/tools/notebook_outputs.py notebooks/{name}"
    if found:
        warnings.warn("\n".join(found), stacklevel=1)


def test_a_long_notebook_has_a_size():
    for name in LONG:
        assert notebook_outputs.with_size(nbformat.read(NOTEBOOKS / name, 4), "smoke") == 1, name


# Small notebooks -------------------------------------------------------------------------------------------

CHECK = new_code_cell(
    "class check:\n    def seven(answer): print('Right: it is' if answer == 7 else 'Not yet: count again')", id="check"
)
EXERCISE = new_code_cell("answer = ...  # your number\ncheck.seven(answer)", id="exercise-1")
SOLUTION = "<details>\n<summary>Solution</summary>\n\n```python\nanswer = {}\n```\n\nSo many.\n\n</details>"


@pytest.fixture
def written(tmp_path):
    def write(*cells):
        path = tmp_path / "00_small.ipynb"
        path.write_text(nbformat.writes(new_notebook(cells=list(cells))) + "\n", "utf-8")
        return path

    return write


def cell(*outputs, name="a", tags=()):
    return new_code_cell("pass", id=name, outputs=list(outputs), metadata={"tags": list(tags)} if tags else {})


def stdout(text):
    return new_output("stream", text=text)


def test_a_run_is_kept_and_found_the_same_and_a_change_is_named(written):
    path = written(
        new_code_cell("import os, sys, time\nprint('cwd', os.getcwd())\nprint('a warning', file=sys.stderr)", id="one"),
        new_code_cell("print(os.environ['HF_HUB_OFFLINE'], repr(os.environ['CUDA_VISIBLE_DEVICES']))", id="two"),
        new_code_cell("print(f'{time.time() / 3:.3f} s')\n27 * 27", id="three"),
        new_code_cell("1 / 0", id="four", metadata={"tags": ["raises-exception"]}),
        new_code_cell("from tqdm.notebook import tqdm\nlist(tqdm([1], leave=True))", id="five"),
    )
    assert "two: but now  1 ''" in update(path)
    text = path.read_text("utf-8")
    cells = nbformat.reads(text, 4).cells
    assert re.fullmatch(r"cwd …/\S+\n", cells[0].outputs[0].text)
    assert [each.output_type for each in cells[2].outputs] == ["stream", "execute_result"]
    assert cells[2].outputs[1].data == {"text/plain": "729"}
    assert cells[3].outputs[0].ename == "ZeroDivisionError"
    assert "\x1b" not in text
    assert "widget" not in text
    assert 'execution_count": 1' not in text
    assert os.path.expanduser("~") + "/" not in text
    assert nbformat.reads(text, 4).metadata == {}
    assert check(path) == []
    assert update(path) == []
    assert path.read_text("utf-8") == text  # the time of the first run stays: one run made all outputs
    path.write_text(text.replace("27 * 27", "26 * 27"), "utf-8")
    assert check(path) == ["three: kept     729", "three: but now  702"]


def test_exercises_are_done_once_unsolved_and_once_solved(written):
    path = written(CHECK, EXERCISE, new_markdown_cell(SOLUTION.format("3 + 4"), id="solution-1"))
    assert update(path) == ["exercise-1: but now  Not yet: count again"]
    assert check(path) == []
    assert len(nbformat.read(path, 4).cells) == 3


@pytest.mark.parametrize(
    ("exercise", "solution", "fault"),
    [
        ("answer = ...", "8", "exercise-1: 'Right' was expected of the check, which said: Not yet: count again"),
        ("answer = 7", "7", "exercise-1: 'Not yet' was expected of the check, which said: Right: it is"),
    ],
)
def test_an_exercise_that_cannot_be_done_or_is_done_already(written, exercise, solution, fault):
    given = new_code_cell(f"{exercise}\ncheck.seven(answer)", id="exercise-1")
    assert fault in check(written(CHECK, given, new_markdown_cell(SOLUTION.format(solution), id="solution-1")))


def test_the_size_of_a_run_is_set_where_it_is_a_parameter():
    cells = [cell(name="a"), cell(name="b", tags=["parameters"])]
    for each in cells:
        each.source = 'SIZE = "lesson"  # or "smoke"\nother = 1'
    notebook = new_notebook(cells=cells)
    assert notebook_outputs.with_size(notebook, "smoke") == 1
    assert [each.source.split()[2] for each in notebook.cells] == ['"lesson"', '"smoke"']


def test_a_solution_is_the_block_and_the_call_of_the_check():
    exercise = (
        "from imp_kit.exercises import setup as check\n\n\ndef answer(x):\n    return ...\n\n\ncheck.area(answer)"
    )
    block = "def answer(x):\n    return x"
    assert solved(exercise, f"a\n\n```python\n{block}\n```\n\nb") == f"{block}\n\ncheck.area(answer)"
    for wrong in ("no block", f"```python\n{block}\n```\n```python\n{block}\n```"):
        with pytest.raises(ValueError, match="blocks of Python"):
            solved(exercise, wrong)
    with pytest.raises(ValueError, match="0 checks"):
        solved("answer = ...", f"```python\n{block}\n```")


def test_no_cell_reads_what_an_exercise_binds():
    use, again = new_code_cell("print(answer)", id="use"), new_code_cell("answer = 3", id="again")
    assert leftovers([again, use, EXERCISE]) == []
    assert leftovers([EXERCISE, again, use]) == []
    assert leftovers([EXERCISE, new_code_cell("for answer in range(3):\n    print(answer)", id="own")]) == []
    assert leftovers([again, EXERCISE, use]) == ["use reads answer, which an exercise binds"]
    assert leftovers([new_code_cell("def f(): ...", id="exercise-2"), new_code_cell("f()", id="use")])


# What is kept ----------------------------------------------------------------------------------------------


def png(size, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, format="png")
    return file.getvalue()


def test_a_large_picture_is_made_small_and_a_small_one_stays(capsys):
    small = png((60, 40))
    assert small_png(small) == small
    assert capsys.readouterr().out == ""
    large = png((600, 400))
    reduced = small_png(large)
    assert len(reduced) <= MAX_PICTURE < len(large)
    with Image.open(io.BytesIO(reduced)) as image:
        assert image.mode == "P"
        assert image.size[0] / image.size[1] == pytest.approx(1.5, abs=0.02)
        assert f"{image.size[0]} x {image.size[1]} pixels" in capsys.readouterr().out


def test_a_picture_with_few_colors_keeps_its_size_and_its_ground_is_white(capsys):
    image = Image.new("RGBA", (900, 700))
    image.paste(Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (700, 1))), (700, 0))
    noisy = np.asarray(image).copy()
    noisy[:, :120, :3] = np.random.default_rng(0).integers(0, 255, (700, 120, 3))  # cannot be seen: alpha is 0
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, format="png")
    with Image.open(io.BytesIO(small_png(file.getvalue()))) as reduced:
        assert reduced.size == (900, 700)
        assert reduced.convert("RGB").getpixel((5, 5)) == (255, 255, 255)


def test_what_no_page_shows_is_dropped():
    encoded = base64.b64encode(png((5, 5))).decode()
    outputs = kept(
        [
            stdout("a\n"),
            new_output("stream", name="stderr", text="a warning"),
            stdout("  0%\r 50%\r100%\n\x1b[31mred\x1b[0m\n"),
            new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}, "text/plain": "0%"}),
            stdout("This machine is busy: other programs use 1.9 of 2 CPUs, so all takes longer.\n"),
            stdout("0.11 s a sample, about 72 s for 669\n"),
            new_output("display_data", data={"image/png": encoded, "image/jpeg": "x", "text/plain": "<Figure>"}),
            new_output("execute_result", data={"text/html": "<b>7</b>", "text/plain": "7"}, execution_count=3),
        ]
    )
    assert [output.output_type for output in outputs] == ["stream", "display_data", "execute_result"]
    assert outputs[0].text == "a\n100%\nred\n"
    assert outputs[1].data == {"image/png": encoded}
    assert outputs[2].data == {"text/html": "<b>7</b>"}
    assert outputs[2].execution_count is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/tmp/abc/runs/captcha-1", "…/captcha-1"),
        ("File '/home/me/x/y.py', line 3", "File '…/y.py', line 3"),
        (r"C:\Users\me\a.png", "…/a.png"),
        ("~/kit/images/bus.png:", "…/bus.png:"),
        ('File "…/lib/site-packages/a.py", line 3', 'File "…/a.py", line 3'),  # as the probe of transformers prints it
        ("https://github.com/a/b", "https://github.com/a/b"),
        ("File …/models/auto_factory.py", "File …/auto_factory.py"),
        ("runs/captcha-1, and/or, 24 km/h, 1/2", "runs/captcha-1, and/or, 24 km/h, 1/2"),
    ],
)
def test_of_a_path_the_last_name_is_kept(text, shown):
    assert notebook_outputs.plain(text) == shown


# What counts as a difference -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("12 ms  the look", "3.4  ms the look"),
        ("15 tokens in 0.47 s", "15 tokens in 1,200 s"),
        ("about 2 minutes", "about 3.5 minutes"),
        ("6.4 GB of 8 GiB free", "12 GB of 1.5 GiB free"),
        ("torch 2.13.0+cpu, Python 3.11.7", "torch 2.15.1, Python 3.13.0"),
        ("54.9 tokens a second, 3 GB/s", "9 tokens a second, 40.5 GB/s"),
        ("<f at 0x7f12ab34>", "<f at 0x55aa0011>"),
        ("on cpu fp32 with 2 threads", "on cpu bf16 with 16 threads"),
        ("| a |\n|-----|", "| a |\n|---|"),
        ("a\n\n", "a"),
    ],
)
def test_facts_of_a_machine_are_no_difference(text, other):
    assert masked(text) == masked(other)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("7 of 12 right", "8 of 12 right"),
        ("p = 0.25", "p = 0.3"),
        ("15 tokens in 0.47 s", "16 tokens in 0.47 s"),
        ("The bus is red.", "The bus is blue."),
        ("0.512", "0.514"),
        ("0.5", "0.50"),
        ("12", "13"),
        ("a\nb", "b\na"),
        ("", "a"),
    ],
)
def test_results_are_a_difference(text, other):
    assert differences(book(text), book(text)) == []
    assert differences(book(text), book(other)) != []


def test_one_in_the_last_place_is_no_difference():
    assert same("p = 0.512, 7 of 9", "p = 0.513, 7 of 9")
    assert differences(book("p = 0.512"), book("p = 0.511")) == []


def book(text, **kinds):
    return new_notebook(cells=[cell(stdout(text), **kinds)])


def test_in_a_measured_cell_only_words_count():
    tags = ("measured",)
    assert differences(book("look 0.02 None", tags=tags), book("look  13 4.5", tags=tags)) == []
    found = differences(book("look 0.02", tags=tags), book("read 0.02", tags=tags))
    assert found == ["a: kept     look <number>", "a: but now  read <number>"]


def test_a_page_counts_by_its_words_and_a_picture_by_being_there():
    def notebook(kind, content):
        return new_notebook(cells=[cell(new_output("display_data", data={kind: content}))])

    table = "<style>td {{}}</style><table><tr><td>a &amp; b</td><td>{}</td></tr>\n<tr><td>2</td></tr></table>"
    one, two = notebook("text/html", table.format(1)), notebook("text/html", table.format(3))
    assert differences(one, notebook("text/html", table.format("<b>1</b>"))) == []
    assert differences(one, two) == ["a: kept     a & b 1", "a: but now  a & b 3"]
    assert differences(notebook("image/png", "AA=="), notebook("image/png", "BB==")) == []
    assert differences(notebook("image/png", "AA=="), new_notebook(cells=[cell()])) == ["a: kept     <picture>"]


def test_a_notebook_that_would_be_too_large_is_not_written(written, monkeypatch):
    path = written(new_code_cell("print('x' * 3000)", id="a"))
    before = path.read_text("utf-8")
    monkeypatch.setattr(notebook_outputs, "MAX_NOTEBOOK", 2000)
    with pytest.raises(ValueError, match="more than 2,000"):
        update(path)
    assert path.read_text("utf-8") == before
