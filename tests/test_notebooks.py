"""Static gates on every notebook, before any is executed, and notebooks broken on purpose that the gates must refuse.

A notebook fails its readers in dull ways: a badge that opens another notebook, a link to a file that moved, a cell
that no longer parses, outputs of another machine, widget state that keeps GitHub from rendering the page, an import
of torch before the cell that finds the kit. None of these needs a kernel to be found.
"""

import ast
import base64
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from urllib.parse import unquote

import nbformat
import pytest
from first_cell import NOTEBOOKS, copy_first_cell, first_code_cell
from IPython.core.inputtransformer2 import TransformerManager
from notebook_outputs import KEPT, MAX_NOTEBOOK, MAX_PICTURE, is_exercise, leftovers, solved, text_of
from set_repository import ROOT, repository
from translate import LANGUAGES, without_badges

from imp_kit.samples import NAMES as SAMPLES

MAX_BYTES = 100_000  # of a notebook without its outputs
MAX_TEXT = 10_000  # characters of all that one cell shows in words
MAX_WORDS = 900  # of prose in a notebook
MAX_LINES = 6  # of code, as the median of a notebook's cells
EXERCISES = 3  # of a notebook, at least
TAGS = {"measured", "parameters", "raises-exception", "skip-execution"}
COLAB = f"https://colab.research.google.com/github/{repository()}/blob/main/"
KAGGLE = f"https://kaggle.com/kernels/welcome?src=https://github.com/{repository()}/blob/main/"
GITHUB = re.compile(rf"https://github\.com/{re.escape(repository())}/(?:blob|tree)/main/")
LINK = re.compile(r"\]\(\s*([^)\s]+)")  # the target of a Markdown link or picture
SOLUTION = re.compile(
    # Without the empty lines GitHub and Colab show the Markdown within as raw text.
    r"<details>\n<summary>[^<]+</summary>\n\n```python\n[^`]+\n```\n\n.+\n\n</details>$",
    re.DOTALL,
)
ATTRIBUTE = re.compile(r"""(?:src|href)=["']([^"']+)["']""")
PIN = re.compile(r"([A-Za-z][\w.-]*)(?:\[[\w,]+\])?==([\w.*+!-]*\w)")
README = (ROOT / "README.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Book:
    """A notebook as its file holds it, `name` without the folder, which is relative to the repository."""

    name: str
    text: str
    folder: str = "notebooks"

    @cached_property
    def raw(self) -> dict:
        return json.loads(self.text)

    @cached_property
    def cells(self) -> list[nbformat.NotebookNode]:
        return nbformat.reads(self.text, as_version=4).cells

    def sources(self, kind: str) -> list[str]:
        """The sources of the cells of one kind, in order."""
        return [cell.source for cell in self.cells if cell.cell_type == kind]


SWITCHED = ("01_captioning.ipynb", "02_v1_5_loading_failure.ipynb")  # may run the code beside Imp's weights
BOOKS = [Book(path.name, path.read_text(encoding="utf-8")) for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
TRANSLATED = [
    Book(path.name, path.read_text(encoding="utf-8"), f"notebooks/{language}")
    for language in LANGUAGES
    for path in sorted((NOTEBOOKS / language).glob("*.ipynb"))
]
(SWITCH,) = (cell.source for cell in BOOKS[2].cells if cell.id == "pin-transformers")


def parsed(source: str) -> ast.Module:
    """A cell's syntax tree; IPython turns its own `%magic` and `!command` into calls."""
    return ast.parse(TransformerManager().transform_cell(source))


def imported(source: str) -> set[str]:
    """The top-level names of the packages that a cell imports, by a statement or by a call."""
    names: set[str] = set()
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names |= {arg.value if isinstance(arg, ast.Constant) else ast.unparse(arg) for arg in node.args[:1]}
    return {name.partition(".")[0] for name in names}


def pins() -> dict[str, str]:
    """Each pinned package and its version, as requirements.txt and constraints.txt have them."""
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in ("requirements.txt", "constraints.txt"))
    return {name.lower().replace("_", "-"): version for name, version in PIN.findall(text)}


# Gates of one notebook: each raises AssertionError for a notebook that it refuses --------------------------


def name_says_order_and_topic(book: Book):
    assert re.fullmatch(r"\d\d_[a-z0-9]+(_[a-z0-9]+)*\.ipynb", book.name)


def is_a_valid_notebook_of_format_4_5(book: Book):
    try:
        raw = book.raw
    except ValueError as error:
        raise AssertionError(f"not JSON: {error}") from None
    assert (raw["nbformat"], raw["nbformat_minor"]) == (4, 5)
    ids = [cell.get("id") for cell in raw["cells"]]  # before validate, which mends missing and double ones silently
    assert all(ids)
    assert len(set(ids)) == len(ids)
    try:
        nbformat.validate(raw)
    except nbformat.ValidationError as error:
        raise AssertionError(error) from None
    assert raw["metadata"]["kernelspec"]["name"] == "python3"


def is_written_as_nbformat_writes_it(book: Book):
    """Else the next tool that saves it changes every line."""
    assert nbformat.writes(nbformat.reads(book.text, as_version=4)) + "\n" == book.text


def is_small(book: Book):
    kept = sum(len(json.dumps(cell.get("outputs", []))) for cell in book.raw["cells"])
    assert len(book.text.encode()) - kept < MAX_BYTES


def the_file_is_small(book: Book):
    assert len(book.text.encode()) <= MAX_NOTEBOOK


def outputs_are_small_and_anybodys(book: Book):
    """Text, tables and pictures; no warnings and counts, which are another machine's; an error where it is meant."""
    for cell in book.raw["cells"]:
        name, text = cell["id"], ""
        assert cell.get("execution_count") is None, name
        assert not cell.get("attachments"), name
        for output in cell.get("outputs", []):
            error = output["output_type"] == "error"
            assert not error or "raises-exception" in cell["metadata"].get("tags", []), name
            assert output.get("execution_count") is None, name
            assert output.get("name", "stdout") == "stdout", f"{name}: a warning"
            (kind, content), *others = output.get("data", {"text/plain": output.get("text", "")}).items()
            assert kind in KEPT, f"{name}: {kind}"
            assert not others, f"{name}: one form of an output is enough"
            if kind == "image/png":
                assert len(base64.b64decode("".join(content))) <= MAX_PICTURE, name
            else:
                text += "".join(content)
        assert len(text) <= MAX_TEXT, f"{name}: {len(text)} characters"
        assert not re.match(r"<(Figure|Axes|matplotlib)", text), f"{name}: a figure that is shown as words"


def results_are_visible(book: Book):
    """On GitHub, to whoever runs nothing: pictures among them, and what the checks say before an exercise is done."""
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    for cell in [code[0], *filter(is_exercise, code)]:
        assert text_of(cell.outputs), f"{cell.id} shows nothing; run: python tests/tools/notebook_outputs.py"
        assert not is_exercise(cell) or text_of(cell.outputs).startswith("Not yet"), cell.id


def prose(text: str) -> str:
    """What is read of a cell of Markdown: no blocks of code, no tags, of a link its words."""
    text = re.sub(r"^```.*?^```$|<[^>]+>", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"!?\[([^][]*)\]\([^)]*\)", r"\1", text)


def prose_is_short(book: Book):
    words = sum(len(re.findall(r"\S*\w\S*", prose(without_badges(text)))) for text in book.sources("markdown"))
    assert words <= MAX_WORDS


def code_cells_are_short(book: Book):
    """And what draws is in the package, where it is tested."""
    sources = book.sources("code")
    assert median(sum(bool(line.strip()) for line in source.splitlines()) for source in sources) <= MAX_LINES
    assert not {"matplotlib", "seaborn"} & set().union(*map(imported, sources))


def ids_are_readable(book: Book):
    """They are the keys of the translations, and what an editor makes up says nothing."""
    for cell in book.cells:
        assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", cell.id), cell.id
        assert len(cell.id) <= 24, cell.id
        assert not re.fullmatch(r"[0-9a-f]{8}", cell.id), cell.id


def asks_for_a_guess(book: Book):
    assert re.search(r"\*\*Guess\b", "\n".join(book.sources("markdown")))


def solutions_unfold(book: Book):
    solutions = [cell for cell in book.cells if cell.id.startswith("solution-")]
    assert len(solutions) == sum(map(is_exercise, book.cells)) >= EXERCISES
    assert [cell.id for cell in solutions if not SOLUTION.search(cell.source)] == []


def exercises_check_themselves(book: Book):
    """A task, the reader's cell with its check, a solution to unfold; at least one is code, not a number."""
    places = [place for place, cell in enumerate(book.cells) if is_exercise(cell)]
    functions = 0
    for number, place in enumerate(places, 1):
        task, cell, solution = book.cells[place - 1 : place + 2]
        assert task.cell_type == solution.cell_type == "markdown", cell.id
        assert re.match(rf"## .*\b{number}\b", task.source), f"{cell.id}: the heading above has not number {number}"
        assert solution.id.startswith("solution-"), cell.id
        try:
            tree = parsed(solved(cell.source, solution.source))
        except (SyntaxError, ValueError) as error:
            raise AssertionError(f"{cell.id}: {error}") from None
        functions += any(isinstance(node, ast.FunctionDef) for node in tree.body)
    assert functions, "no exercise asks for code"
    assert leftovers(book.cells, parsed) == []


def has_no_widgets_and_known_tags(book: Book):
    """Beside tags, editors store the state of widgets, cells folded on one machine, Colab even the user's name."""
    assert book.raw["metadata"].keys() == {"kernelspec", "language_info"}
    assert book.raw["metadata"]["language_info"] == {"name": "python"}, "the version is one machine's"
    for cell in book.raw["cells"]:
        assert cell["metadata"].keys() <= {"tags"}, cell["id"]
        assert set(cell["metadata"].get("tags", [])) <= TAGS, cell["id"]


def every_code_cell_parses(book: Book):
    assert book.sources("code")
    for source in book.sources("code"):
        try:
            parsed(source)
        except SyntaxError as error:
            raise AssertionError(f"{error}: {source}") from None


def first_code_cell_imports_nothing_heavy(book: Book):
    """It may install packages, and none that Python has imported already can be replaced under it."""
    names = imported(book.sources("code")[0])
    assert "imp_kit" in names
    assert names <= {*sys.stdlib_module_names, "imp_kit"}


def only_the_first_cell_and_the_switch_install(book: Book):
    """Later, torch and transformers are imported; and `make resolve` knows only what these two install."""
    first, *others = [cell for cell in book.cells if cell.cell_type == "code"]
    assert re.search(r"^\s*%pip install ", first.source, flags=re.MULTILINE)
    others = [cell.source for cell in others if cell.source != SWITCH]
    assert [source for source in others if re.search(r"^\s*[%!].*\binstall\b", source, flags=re.MULTILINE)] == []


def no_cell_replaces_what_the_kernel_has_loaded(book: Book):
    """Colab loads numpy, pillow and torch before the first cell, and fixes ipython; changing them there breaks it."""
    fixed = r"(?:numpy|pillow|torch|torchvision|jupyter|ipython)"
    for source in book.sources("code"):
        assert not re.search(rf"\binstall\b.*\b{fixed}\b|--force-reinstall", source, flags=re.IGNORECASE)


def pins_are_those_of_the_requirements(book: Book):
    known = pins()
    for source in book.sources("code") + book.sources("markdown"):
        for name, version in PIN.findall(source):
            assert known.get(name.lower().replace("_", "-")) == version, f"{name}=={version}"


def first_cell_has_the_badges_of_this_notebook(book: Book):
    first = book.cells[0]
    assert first.cell_type == "markdown"
    for site in (COLAB, KAGGLE):
        assert f"]({site}{book.folder}/{book.name})" in first.source
    assert re.search(r"^# \S", first.source, flags=re.MULTILINE), "a notebook begins with its title"


def links_into_the_repository_point_at_files(book: Book):
    inside = []
    for target in [t for text in book.sources("markdown") for t in (*LINK.findall(text), *ATTRIBUTE.findall(text))]:
        address = GITHUB.sub("", target.removeprefix(COLAB).removeprefix("https://kaggle.com/kernels/welcome?src="))
        if address != target:
            inside.append(ROOT / unquote(address.partition("#")[0]))
        elif not re.match(r"[a-z]+:|#", target):
            inside.append(ROOT / book.folder / unquote(target.partition("#")[0]))
    assert inside, "not even the badge was found"
    assert [str(file) for file in inside if not file.exists()] == []


def samples(book: Book) -> set[str]:
    return set(re.findall(r"\bsample\(\s*[\"']([^\"']+)", "\n".join(book.sources("code"))))


def samples_are_those_of_the_kit(book: Book):
    assert samples(book) <= set(SAMPLES)
    assert "IMAGES" not in "\n".join(book.sources("code")), "a notebook may stand alone, without the repository"


def no_path_of_one_machine(book: Book):
    shown = [cell.source + text_of(cell.get("outputs", [])) for cell in book.cells]
    assert not re.search(r"(?<![\w.])/(home|root|work|tmp|opt|usr|Users|content)/|[A-Z]:\\+\w", "\n".join(shown))


def is_named_in_the_readme(book: Book):
    assert f"(notebooks/{book.name})" in README
    for site in (COLAB, KAGGLE):
        assert f"({site}notebooks/{book.name})" in README


# The gates that a translation can break; its code cells and outputs are the English ones.
GATES_OF_TRANSLATIONS = (
    is_a_valid_notebook_of_format_4_5,
    is_written_as_nbformat_writes_it,
    the_file_is_small,
    pins_are_those_of_the_requirements,
    first_cell_has_the_badges_of_this_notebook,
    links_into_the_repository_point_at_files,
    solutions_unfold,
)
GATES = (
    *GATES_OF_TRANSLATIONS,
    name_says_order_and_topic,
    is_small,
    outputs_are_small_and_anybodys,
    results_are_visible,
    exercises_check_themselves,
    has_no_widgets_and_known_tags,
    every_code_cell_parses,
    first_code_cell_imports_nothing_heavy,
    only_the_first_cell_and_the_switch_install,
    no_cell_replaces_what_the_kernel_has_loaded,
    samples_are_those_of_the_kit,
    no_path_of_one_machine,
    prose_is_short,
    code_cells_are_short,
    ids_are_readable,
    asks_for_a_guess,
    is_named_in_the_readme,
)


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.__name__)
@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.name)
def test_gate(book, gate):
    gate(book)


@pytest.mark.parametrize("gate", GATES_OF_TRANSLATIONS, ids=lambda gate: gate.__name__)
@pytest.mark.parametrize("book", TRANSLATED, ids=lambda book: f"{book.folder[-2:]}-{book.name}")
def test_gate_of_a_translation(book, gate):
    gate(book)


# Gates of all notebooks together ---------------------------------------------------------------------------


def numbers_have_no_gap(books: list[Book]):
    assert [book.name[:3] for book in books] == [f"{number:02}_" for number in range(len(books))]


def first_code_cell_is_the_same_everywhere(books: list[Book]):
    cells = [first_code_cell(nbformat.reads(book.text, as_version=4)) for book in books]
    assert len({(cell.id, cell.source, json.dumps(cell.metadata)) for cell in cells}) == 1


def the_switch_of_transformers_stands_once_in_two_of_them(books: list[Book]):
    for book in books:
        switches = [source for source in book.sources("code") if "PIN_TRANSFORMERS" in source]
        assert switches == ([SWITCH] if book.name in SWITCHED else []), book.name


GATES_OF_ALL = (
    numbers_have_no_gap,
    first_code_cell_is_the_same_everywhere,
    the_switch_of_transformers_stands_once_in_two_of_them,
)


def test_there_is_something_to_look_at():
    assert len(BOOKS) >= 2
    assert len(TRANSLATED) == len(LANGUAGES) * len(BOOKS)
    assert set().union(*map(samples, BOOKS)) >= {"bus.png", "door.png"}
    assert pins().keys() >= {"transformers", "torch", "numpy", "huggingface-hub"}


@pytest.mark.parametrize("gate", GATES_OF_ALL, ids=lambda gate: gate.__name__)
def test_gate_of_all(gate):
    gate(BOOKS)


# Gates must be able to fail: each break is one slip in a good notebook, and the gate's name ----------------

GOOD = BOOKS[0]
Slip = Callable[[dict], None]  # changes a notebook's JSON


def slipped(slip: Slip) -> Book:
    raw = json.loads(GOOD.text)
    slip(raw)
    return Book(GOOD.name, json.dumps(raw, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def cell(raw: dict, kind: str, place: int) -> dict:
    return [cell for cell in raw["cells"] if cell["cell_type"] == kind][place]


def adds(line: str, kind: str = "code", place: int = 1) -> Slip:
    """Puts a line on top of a cell; a code cell before the last is not the first, so it may import and show."""
    return lambda raw: cell(raw, kind, place)["source"].insert(0, line + "\n")


def shows(*outputs: dict, tags: tuple[str, ...] = ()) -> Slip:
    return lambda raw: cell(raw, "code", 1).update(outputs=list(outputs), metadata={"tags": list(tags)})


def sets(*path: str | int, to: object) -> Slip:
    def slip(raw: dict) -> None:
        *way, last = path
        for step in way:
            raw = raw[step]
        raw[last] = to

    return slip


def swaps(old: str, new: str) -> Slip:
    """Replaces a text wherever it stands in a source."""

    def slip(raw: dict) -> None:
        for each in raw["cells"]:
            each["source"] = [line.replace(old, new) for line in each["source"]]

    return slip


def renames(place: int, name: str) -> Slip:
    return lambda raw: raw["cells"][place].update(id=name)


def puts_last(source: str) -> Slip:
    return lambda raw: raw["cells"].append({**cell(raw, "code", 1), "id": "last", "source": [source]})


def drops(*names: str) -> Slip:
    return lambda raw: raw.update(cells=[each for each in raw["cells"] if each["id"] not in names])


def stream(text: str, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": [text]}


def display(**data: str) -> dict:
    names = {"text": "text/plain", "html": "text/html", "markdown": "text/markdown"}
    names |= {"png": "image/png", "svg": "image/svg+xml"}
    held = {names[kind]: value if kind == "png" else [value] for kind, value in data.items()}
    return {"output_type": "display_data", "metadata": {}, "data": held}


ERROR = {"output_type": "error", "ename": "KeyError", "evalue": "1", "traceback": ["KeyError: 1"]}
RESULT = {"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": {"text/plain": ["7"]}}
PNG = "iVBORw0KGgo="
LARGE = base64.b64encode(bytes(MAX_PICTURE + 1)).decode()

SLIPS: tuple[tuple[Callable[[Book], None], Slip], ...] = (
    (is_a_valid_notebook_of_format_4_5, sets("nbformat_minor", to=4)),
    (is_a_valid_notebook_of_format_4_5, sets("cells", 1, "id", to="title")),
    (is_a_valid_notebook_of_format_4_5, sets("cells", 1, "id", to=None)),
    (is_a_valid_notebook_of_format_4_5, sets("cells", 1, "cell_type", to="picture")),
    (is_a_valid_notebook_of_format_4_5, sets("metadata", "kernelspec", "name", to="ir")),
    (is_written_as_nbformat_writes_it, sets("cells", 1, "source", to="import torch\nimport sys")),
    (is_small, adds("#" * MAX_BYTES)),
    (the_file_is_small, shows(*[display(png=LARGE)] * 6)),
    (outputs_are_small_and_anybodys, shows(ERROR)),
    (outputs_are_small_and_anybodys, shows(stream("a warning", "stderr"))),
    (outputs_are_small_and_anybodys, shows(stream("x" * MAX_TEXT), stream("x"))),
    (outputs_are_small_and_anybodys, shows(display(png=LARGE))),
    (outputs_are_small_and_anybodys, shows(display(text="answer", html="<b>answer</b>"))),
    (outputs_are_small_and_anybodys, shows(display(svg="<svg/>"))),
    (outputs_are_small_and_anybodys, shows(display(text="<Figure size 640x480 with 1 Axes>"))),
    (outputs_are_small_and_anybodys, shows({**RESULT, "execution_count": 3})),
    (outputs_are_small_and_anybodys, sets("cells", 1, "execution_count", to=1)),
    (outputs_are_small_and_anybodys, sets("cells", 0, "attachments", to={"a.png": {"image/png": PNG}})),
    (results_are_visible, lambda raw: [each.update(outputs=[]) for each in raw["cells"] if "outputs" in each]),
    (results_are_visible, lambda raw: cell(raw, "code", 0).update(outputs=[])),
    (results_are_visible, lambda raw: cell(raw, "code", -1).update(outputs=[])),
    (results_are_visible, lambda raw: cell(raw, "code", -1).update(outputs=[stream("Right: so it is")])),
    (prose_is_short, adds("word " * MAX_WORDS, kind="markdown")),
    (code_cells_are_short, lambda raw: [each["source"].extend(["\n1"] * 9) for each in raw["cells"]]),
    (code_cells_are_short, adds("import matplotlib.pyplot as plt")),
    (ids_are_readable, renames(2, "3f2a9c1b")),
    (ids_are_readable, renames(2, "Load_text")),
    (ids_are_readable, renames(2, "what-a-model-says-about-an-image")),
    (asks_for_a_guess, swaps("**Guess", "**Think")),
    (solutions_unfold, drops("exercise-3")),
    (exercises_check_themselves, drops("turn-1")),
    (solutions_unfold, drops("solution-2")),
    (solutions_unfold, drops("turn-2", "exercise-2", "solution-2", "turn-3", "exercise-3", "solution-3")),
    (exercises_check_themselves, swaps("## Your turn 3", "## Your turn 4")),
    (solutions_unfold, swaps("<summary>Solution</summary>", "<summary>Solution</summary>\n-")),
    (solutions_unfold, swaps("```python", "```")),
    (exercises_check_themselves, renames(-1, "answer-3")),
    (exercises_check_themselves, swaps("def answer(", "answer = (")),
    (exercises_check_themselves, swaps("def answer(", "class Answer(")),
    (exercises_check_themselves, swaps("check.area(answer)", "check.area")),
    (exercises_check_themselves, puts_last("print(answer)")),
    (has_no_widgets_and_known_tags, sets("metadata", "widgets", to={})),
    (has_no_widgets_and_known_tags, sets("metadata", "language_info", "version", to="3.11.7")),
    (has_no_widgets_and_known_tags, sets("cells", 1, "metadata", to={"executionInfo": {"user": {"userId": "1"}}})),
    (has_no_widgets_and_known_tags, sets("cells", 1, "metadata", to={"tags": ["skip-exection"]})),
    (every_code_cell_parses, adds("print('it")),
    (every_code_cell_parses, lambda raw: raw.update(cells=[raw["cells"][0]])),
    (first_code_cell_imports_nothing_heavy, adds("import torch", place=0)),
    (first_code_cell_imports_nothing_heavy, adds("from transformers.utils import logging", place=0)),
    (first_code_cell_imports_nothing_heavy, adds('importlib.import_module("transformers")', place=0)),
    (first_code_cell_imports_nothing_heavy, swaps("import imp_kit", "pass")),
    (only_the_first_cell_and_the_switch_install, adds("!pip install tqdm")),
    (only_the_first_cell_and_the_switch_install, adds("    %pip install --quiet tqdm")),
    (only_the_first_cell_and_the_switch_install, swaps("%pip install", "print")),
    (no_cell_replaces_what_the_kernel_has_loaded, adds("!pip install -U numpy", place=0)),
    (no_cell_replaces_what_the_kernel_has_loaded, adds("%pip install --force-reinstall transformers", place=0)),
    (pins_are_those_of_the_requirements, adds("Run `pip install transformers==4.36.0` first.", kind="markdown")),
    (pins_are_those_of_the_requirements, adds('subprocess.run(["pip", "install", "timm==0.1"])')),
    (pins_are_those_of_the_requirements, adds("Run `pip install unheard-of==1.0` first.", kind="markdown")),
    (first_cell_has_the_badges_of_this_notebook, swaps(GOOD.name, BOOKS[1].name)),
    (first_cell_has_the_badges_of_this_notebook, swaps(COLAB, COLAB.replace("main", "master"))),
    (first_cell_has_the_badges_of_this_notebook, swaps(KAGGLE, KAGGLE.replace("main", "master"))),
    (first_cell_has_the_badges_of_this_notebook, swaps("# Your", "Your")),
    (links_into_the_repository_point_at_files, swaps(GOOD.name, "00_moved.ipynb")),
    (links_into_the_repository_point_at_files, adds("[see](../images/gone.png)", kind="markdown")),
    (links_into_the_repository_point_at_files, adds('<img src="../images/gone.png">', kind="markdown")),
    (links_into_the_repository_point_at_files, swaps("](", "] (")),
    (samples_are_those_of_the_kit, swaps('sample("bus.png")', 'sample("tram.png")')),
    (samples_are_those_of_the_kit, adds('IMAGES / "bus.png"')),
    (no_path_of_one_machine, adds("open('/" + "home/me/x')")),
    (no_path_of_one_machine, adds("open('/" + "content/x')")),
    (no_path_of_one_machine, adds(r"open('C:\\Users')")),
    (no_path_of_one_machine, shows(stream("in /" + "tmp/x/runs"))),
)
RENAMED: tuple[tuple[Callable[[Book], None], str], ...] = (
    (name_says_order_and_topic, "setup.ipynb"),
    (name_says_order_and_topic, "00_Set-up.ipynb"),
    (first_cell_has_the_badges_of_this_notebook, "00_start.ipynb"),
    (is_named_in_the_readme, "00_start.ipynb"),
)
ids = [f"{gate.__name__}-{number}" for number, (gate, _) in enumerate(SLIPS)]


@pytest.mark.parametrize(("gate", "slip"), SLIPS, ids=ids)
def test_a_slip_is_refused(gate, slip):
    broken = slipped(slip)
    assert broken.text != GOOD.text
    with pytest.raises(AssertionError):
        gate(broken)


@pytest.mark.parametrize(("gate", "name"), RENAMED)
def test_a_wrong_name_is_refused(gate, name):
    with pytest.raises(AssertionError):
        gate(replace(GOOD, name=name))


def test_what_is_no_json_is_refused():
    with pytest.raises(AssertionError):
        is_a_valid_notebook_of_format_4_5(replace(GOOD, text=GOOD.text[:-5]))


def test_every_gate_was_seen_to_fail():
    assert {gate for gate, _ in SLIPS + RENAMED} == set(GATES)


@pytest.mark.parametrize(
    "slip",
    [
        shows(stream("a traceback\n"), RESULT),
        shows(display(png=PNG), display(html="<table></table>"), display(markdown="**a**")),
        shows(ERROR, tags=("raises-exception",)),
        shows(stream("0.3 s"), tags=("measured",)),
    ],
)
def test_what_a_notebook_may_show(slip):
    kept = slipped(slip)
    for gate in GATES:
        gate(kept)


def test_the_gates_of_all_can_fail():
    other = slipped(adds("# another", place=0))
    for gate, books in (
        (numbers_have_no_gap, [BOOKS[0], *BOOKS[2:], replace(BOOKS[1], name="09_far.ipynb")]),
        (numbers_have_no_gap, [*BOOKS[:2], *BOOKS[1:]]),
        (first_code_cell_is_the_same_everywhere, [other, *BOOKS[1:]]),
        (the_switch_of_transformers_stands_once_in_two_of_them, [slipped(adds(SWITCH)), *BOOKS[1:]]),
        (the_switch_of_transformers_stands_once_in_two_of_them, [replace(GOOD, name=SWITCHED[1])]),
    ):
        with pytest.raises(AssertionError):
            gate(books)


def test_the_command_copies_the_first_cell(tmp_path):
    for book in (slipped(adds("# another", place=0)), *BOOKS[1:]):
        (tmp_path / book.name).write_text(book.text, encoding="utf-8")
    assert copy_first_cell(tmp_path) == [book.name for book in BOOKS[1:]]
    copies = [Book(path.name, path.read_text(encoding="utf-8")) for path in sorted(tmp_path.iterdir())]
    first_code_cell_is_the_same_everywhere(copies)
    for book, copy in zip(BOOKS[1:], copies[1:], strict=True):
        is_written_as_nbformat_writes_it(copy)
        assert copy.sources("code")[0].startswith("# another\n")
        assert (copy.sources("markdown"), copy.sources("code")[1:]) == (
            book.sources("markdown"),
            book.sources("code")[1:],
        )
    assert copy_first_cell(tmp_path) == []
