"""Static gates on every notebook, before any is executed, and notebooks broken on purpose that the gates must refuse.

A notebook fails its readers in dull ways: a badge that opens another notebook, a link to a file that moved, a cell
that no longer parses, outputs of another machine, widget state that keeps GitHub from rendering the page, an import
of torch before the cell that finds the kit. None of these needs a kernel to be found.
"""

import ast
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from urllib.parse import unquote

import nbformat
import pytest
from first_cell import NOTEBOOKS, copy_first_cell, first_code_cell
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from set_repository import ROOT, repository

MAX_BYTES = 100_000  # of a notebook without kept outputs
MAX_TEXT, MAX_PICTURE = 5_000, 80_000  # characters of a kept output, the picture's as base64
TAGS = {"keep-output", "parameters", "raises-exception", "skip-execution"}
COLAB = f"https://colab.research.google.com/github/{repository()}/blob/main/"
GITHUB = re.compile(rf"https://github\.com/{re.escape(repository())}/(?:blob|tree)/main/")
LINK = re.compile(r"\]\(\s*([^)\s]+)")  # the target of a Markdown link or picture
ATTRIBUTE = re.compile(r"""(?:src|href)=["']([^"']+)["']""")
PIN = re.compile(r"([A-Za-z][\w.-]*)(?:\[[\w,]+\])?==([\w.*+!-]*\w)")
README = (ROOT / "README.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Book:
    """A notebook as its file holds it, `name` without the folder."""

    name: str
    text: str

    @cached_property
    def raw(self) -> dict:
        return json.loads(self.text)

    @cached_property
    def cells(self) -> list[nbformat.NotebookNode]:
        return nbformat.reads(self.text, as_version=4).cells

    def sources(self, kind: str) -> list[str]:
        """The sources of the cells of one kind, in order."""
        return [cell.source for cell in self.cells if cell.cell_type == kind]


BOOKS = [Book(path.name, path.read_text(encoding="utf-8")) for path in sorted(NOTEBOOKS.glob("*.ipynb"))]


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


def keeps_outputs_only_where_tagged(book: Book):
    """A kept output is small, text or one picture, and the same whoever runs the cell; an error is none."""
    for cell in book.raw["cells"]:
        outputs, tagged = cell.get("outputs", []), "keep-output" in cell["metadata"].get("tags", [])
        assert bool(outputs) == tagged, f"{cell['id']}: outputs are kept exactly where a cell is tagged keep-output"
        assert cell.get("execution_count") is None, cell["id"]
        assert not cell.get("attachments"), cell["id"]
        pictures, text = [], ""
        for output in outputs:
            assert output["output_type"] != "error", f"{cell['id']}: print the traceback that is the lesson"
            assert output.get("execution_count") is None, cell["id"]
            assert output.get("name", "stdout") == "stdout", f"{cell['id']}: warnings are another machine's"
            data = output.get("data", {"text/plain": output.get("text", "")})
            assert data.keys() <= {"text/plain", "image/png"}, f"{cell['id']}: {sorted(data)}"
            pictures += ["".join(data["image/png"])] if "image/png" in data else []
            text += "".join(data.get("text/plain", ""))
        assert len(pictures) <= 1, cell["id"]
        assert len(text) <= MAX_TEXT, f"{cell['id']}: {len(text)} characters"
        assert len("".join(pictures)) <= MAX_PICTURE, cell["id"]


def has_no_widgets_and_known_tags(book: Book):
    """Beside tags, editors store the state of widgets, cells folded on one machine, Colab even the user's name."""
    assert book.raw["metadata"].keys() <= {"kernelspec", "language_info"}
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


def only_the_first_cell_installs(book: Book):
    """And the switch that pins transformers. Later, torch and transformers are imported."""
    first, *others = (cell for cell in book.cells if cell.cell_type == "code")
    assert re.search(r"^\s*%pip install ", first.source, flags=re.MULTILINE)
    installing = [cell.id for cell in others if re.search(r"^\s*[%!].*\binstall\b", cell.source, flags=re.MULTILINE)]
    assert installing in ([], ["pin-transformers"])


def no_cell_replaces_what_the_kernel_has_loaded(book: Book):
    """Colab loads numpy, pillow and torch before the first cell, and fixes ipython; changing them there breaks it."""
    fixed = r"(?:numpy|pillow|torch|torchvision|jupyter|ipython)"
    for source in book.sources("code"):
        assert not re.search(rf"\binstall\b.*\b{fixed}\b|--force-reinstall", source, flags=re.IGNORECASE)


def plots_of_the_kit_are_shown(book: Book):
    """Without this line a kernel shows a figure that no pyplot made as words."""
    code = "\n".join(book.sources("code"))
    assert "plots." not in code or "%matplotlib inline" in code.partition("plots.")[0]


def pins_are_those_of_the_requirements(book: Book):
    known = pins()
    for source in book.sources("code") + book.sources("markdown"):
        for name, version in PIN.findall(source):
            assert known.get(name.lower().replace("_", "-")) == version, f"{name}=={version}"


def first_cell_has_the_badge_of_this_notebook(book: Book):
    first = book.cells[0]
    assert first.cell_type == "markdown"
    assert f"]({COLAB}notebooks/{book.name})" in first.source
    assert re.search(r"^# \S", first.source, flags=re.MULTILINE), "a notebook begins with its title"


def links_into_the_repository_point_at_files(book: Book):
    inside = []
    for target in [t for text in book.sources("markdown") for t in (*LINK.findall(text), *ATTRIBUTE.findall(text))]:
        address = GITHUB.sub("", target.removeprefix(COLAB))
        if address != target:
            inside.append(ROOT / unquote(address.partition("#")[0]))
        elif not re.match(r"[a-z]+:|#", target):
            inside.append(NOTEBOOKS / unquote(target.partition("#")[0]))
    assert inside, "not even the badge was found"
    assert [str(file) for file in inside if not file.exists()] == []


def pictures(book: Book) -> set[str]:
    """Names such as `IMAGES / "bus.png"`; a file that a cell is meant not to find is called buss.png."""
    return set(re.findall(r'"(?:images/)?([\w-]+\.(?:png|jpg))"', "\n".join(book.sources("code")))) - {"buss.png"}


def pictures_that_cells_open_are_there(book: Book):
    assert [name for name in pictures(book) if not (ROOT / "images" / name).is_file()] == []


def no_path_of_one_machine(book: Book):
    assert not re.search(r"(?<![\w.])/(home|root|work|tmp|opt|usr|Users|content)/|[A-Z]:\\\\+\w", book.text)


def ends_with_a_question_and_its_answer_to_unfold(book: Book):
    last = book.cells[-1]
    assert last.cell_type == "markdown"
    assert "?" in last.source.partition("<details>")[0]
    # Without the empty lines GitHub and Colab show the answer's Markdown as raw text.
    assert re.search(r"\n\n<details>\n<summary>Answer</summary>\n\n.+\n\n</details>$", last.source, flags=re.DOTALL)


def is_named_in_the_readme(book: Book):
    assert f"(notebooks/{book.name})" in README
    assert f"({COLAB}notebooks/{book.name})" in README


GATES = (
    name_says_order_and_topic,
    is_a_valid_notebook_of_format_4_5,
    is_written_as_nbformat_writes_it,
    is_small,
    keeps_outputs_only_where_tagged,
    has_no_widgets_and_known_tags,
    every_code_cell_parses,
    first_code_cell_imports_nothing_heavy,
    only_the_first_cell_installs,
    no_cell_replaces_what_the_kernel_has_loaded,
    plots_of_the_kit_are_shown,
    pins_are_those_of_the_requirements,
    first_cell_has_the_badge_of_this_notebook,
    links_into_the_repository_point_at_files,
    pictures_that_cells_open_are_there,
    no_path_of_one_machine,
    ends_with_a_question_and_its_answer_to_unfold,
    is_named_in_the_readme,
)


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.__name__)
@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.name)
def test_gate(book, gate):
    gate(book)


# Gates of all notebooks together ---------------------------------------------------------------------------


def numbers_have_no_gap(books: list[Book]):
    assert [book.name[:3] for book in books] == [f"{number:02}_" for number in range(len(books))]


def first_code_cell_is_the_same_everywhere(books: list[Book]):
    assert len({json.dumps(first_code_cell(nbformat.reads(book.text, as_version=4))) for book in books}) == 1


GATES_OF_ALL = (numbers_have_no_gap, first_code_cell_is_the_same_everywhere)


def test_there_is_something_to_look_at():
    assert len(BOOKS) >= 2
    assert set().union(*map(pictures, BOOKS)) >= {"bus.png", "door.png"}
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


def shows(*outputs: dict, tags: tuple[str, ...] = ("keep-output",)) -> Slip:
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


def stream(text: str, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": [text]}


def display(**data: str) -> dict:
    names = {"text": "text/plain", "html": "text/html", "png": "image/png"}
    held = {names[kind]: value if kind == "png" else [value] for kind, value in data.items()}
    return {"output_type": "display_data", "metadata": {}, "data": held}


ERROR = {"output_type": "error", "ename": "KeyError", "evalue": "1", "traceback": ["KeyError: 1"]}
RESULT = {"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": {"text/plain": ["7"]}}
PNG = "iVBORw0KGgo="

SLIPS: tuple[tuple[Callable[[Book], None], Slip], ...] = (
    (is_a_valid_notebook_of_format_4_5, sets("nbformat_minor", to=4)),
    (is_a_valid_notebook_of_format_4_5, sets("cells", 1, "id", to="title")),
    (is_a_valid_notebook_of_format_4_5, sets("cells", 1, "id", to=None)),
    (is_a_valid_notebook_of_format_4_5, sets("cells", 1, "cell_type", to="picture")),
    (is_a_valid_notebook_of_format_4_5, sets("metadata", "kernelspec", "name", to="ir")),
    (is_written_as_nbformat_writes_it, sets("cells", 1, "source", to="import torch\nimport sys")),
    (is_small, adds("#" * MAX_BYTES)),
    (keeps_outputs_only_where_tagged, shows(stream("hello"), tags=())),
    (keeps_outputs_only_where_tagged, shows()),
    (keeps_outputs_only_where_tagged, shows(ERROR)),
    (keeps_outputs_only_where_tagged, shows(ERROR, tags=("keep-output", "raises-exception"))),
    (keeps_outputs_only_where_tagged, shows(stream("a warning", "stderr"))),
    (keeps_outputs_only_where_tagged, shows(stream("x" * (MAX_TEXT + 1)))),
    (keeps_outputs_only_where_tagged, shows(display(text="<Figure>", png=PNG), display(png=PNG))),
    (keeps_outputs_only_where_tagged, shows(display(png="A" * (MAX_PICTURE + 1)))),
    (keeps_outputs_only_where_tagged, shows(display(text="answer", html="<script>"))),
    (keeps_outputs_only_where_tagged, shows({**RESULT, "execution_count": 3})),
    (keeps_outputs_only_where_tagged, sets("cells", 1, "execution_count", to=1)),
    (keeps_outputs_only_where_tagged, sets("cells", 0, "attachments", to={"a.png": {"image/png": PNG}})),
    (plots_of_the_kit_are_shown, adds("plots.ladder({})")),
    (has_no_widgets_and_known_tags, sets("metadata", "widgets", to={})),
    (has_no_widgets_and_known_tags, sets("cells", 1, "metadata", to={"executionInfo": {"user": {"userId": "1"}}})),
    (has_no_widgets_and_known_tags, sets("cells", 1, "metadata", to={"tags": ["skip-exection"]})),
    (every_code_cell_parses, adds("print('it")),
    (every_code_cell_parses, lambda raw: raw.update(cells=[raw["cells"][0]])),
    (first_code_cell_imports_nothing_heavy, adds("import torch", place=0)),
    (first_code_cell_imports_nothing_heavy, adds("from transformers.utils import logging", place=0)),
    (first_code_cell_imports_nothing_heavy, adds('importlib.import_module("transformers")', place=0)),
    (first_code_cell_imports_nothing_heavy, swaps("import imp_kit", "pass")),
    (only_the_first_cell_installs, adds("!pip install tqdm")),
    (only_the_first_cell_installs, adds("    %pip install --quiet tqdm")),
    (only_the_first_cell_installs, swaps("%pip install", "print")),
    (no_cell_replaces_what_the_kernel_has_loaded, adds("!pip install -U numpy", place=0)),
    (no_cell_replaces_what_the_kernel_has_loaded, adds("%pip install --force-reinstall transformers", place=0)),
    (pins_are_those_of_the_requirements, adds("Run `pip install transformers==4.36.0` first.", kind="markdown")),
    (pins_are_those_of_the_requirements, adds('subprocess.run(["pip", "install", "timm==0.1"])')),
    (pins_are_those_of_the_requirements, adds("Run `pip install unheard-of==1.0` first.", kind="markdown")),
    (first_cell_has_the_badge_of_this_notebook, swaps(GOOD.name, BOOKS[1].name)),
    (first_cell_has_the_badge_of_this_notebook, swaps(COLAB, COLAB.replace("main", "master"))),
    (first_cell_has_the_badge_of_this_notebook, swaps("# What", "What")),
    (links_into_the_repository_point_at_files, swaps(GOOD.name, "00_moved.ipynb")),
    (links_into_the_repository_point_at_files, adds("[see](../images/gone.png)", kind="markdown")),
    (links_into_the_repository_point_at_files, adds('<img src="../images/gone.png">', kind="markdown")),
    (links_into_the_repository_point_at_files, swaps("](", "] (")),
    (pictures_that_cells_open_are_there, swaps('"bus.png"', '"tram.png"')),
    (no_path_of_one_machine, adds("open('/" + "home/me/x')")),
    (no_path_of_one_machine, adds("open('/" + "content/x')")),
    (no_path_of_one_machine, adds(r"open('C:\\Users')")),
    (ends_with_a_question_and_its_answer_to_unfold, lambda raw: raw["cells"].pop()),
    (ends_with_a_question_and_its_answer_to_unfold, swaps("?", ".")),
    (ends_with_a_question_and_its_answer_to_unfold, swaps("<summary>Answer</summary>", "<summary>Answer</summary>\n-")),
)
RENAMED: tuple[tuple[Callable[[Book], None], str], ...] = (
    (name_says_order_and_topic, "setup.ipynb"),
    (name_says_order_and_topic, "00_Set-up.ipynb"),
    (first_cell_has_the_badge_of_this_notebook, "00_start.ipynb"),
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
    "outputs", [(stream("a traceback\n"), RESULT), (display(text="<Figure>", png=PNG),)], ids=["text", "picture"]
)
def test_an_output_that_is_the_lesson_is_kept(outputs):
    kept = slipped(shows(*outputs))
    for gate in GATES:
        gate(kept)


def test_the_gates_of_all_can_fail():
    other = slipped(adds("# another", place=0))
    for gate, books in (
        (numbers_have_no_gap, [BOOKS[0], *BOOKS[2:], replace(BOOKS[1], name="09_far.ipynb")]),
        (numbers_have_no_gap, [*BOOKS[:2], *BOOKS[1:]]),
        (first_code_cell_is_the_same_everywhere, [other, *BOOKS[1:]]),
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


@pytest.mark.slow
def test_the_table_of_versions_is_shown_as_a_picture(tmp_path):
    """Its cell must switch figures on by itself: nbmake does not notice if only their name is printed."""
    book = nbformat.read(ROOT / "notebooks" / "02_v1_5_loading_failure.ipynb", as_version=4)
    (cell,) = (cell for cell in book.cells if cell.cell_type == "code" and "draw(rows)" in cell.source)
    imports = nbformat.v4.new_code_cell("from imp_kit.experiments.transformers_matrix.measure import read_table")
    small = nbformat.v4.new_notebook(cells=[imports, nbformat.v4.new_code_cell(cell.source)])
    NotebookClient(small, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any("image/png" in output.get("data", {}) for output in small.cells[1].outputs)
