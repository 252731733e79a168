"""Static gates on every notebook, before any is executed.

A notebook fails its readers in dull ways: a badge that opens another notebook, a link to a file that moved, a cell
that no longer parses, outputs of another machine, widget state that keeps GitHub from rendering the page, an import
of torch before the cell that finds the kit. None of these needs a kernel to be found.
"""

import ast
import json
import re
import sys
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_BYTES = 100_000
COLAB = "https://colab.research.google.com/github/imp-kit/imp-kit/blob/main/"
GITHUB = re.compile(r"https://github\.com/imp-kit/imp-kit/(?:blob|tree)/main/")
LINK = re.compile(r"\]\(\s*([^)\s]+)")  # the target of a Markdown link or picture
ATTRIBUTE = re.compile(r"""(?:src|href)=["']([^"']+)["']""")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def cells(path: Path, kind: str) -> list[str]:
    """The sources of a notebook's cells of one kind, in order."""
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def plain_python(source: str) -> str:
    """A cell without what only IPython understands: `%magic`, `!command`, and cells that begin with `%%`."""
    if source.lstrip().startswith("%%"):
        return ""
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)


def imported(source: str) -> set[str]:
    """The top-level names of the packages that a cell imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(plain_python(source))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names


def links(path: Path) -> list[str]:
    return [target for text in cells(path, "markdown") for target in (*LINK.findall(text), *ATTRIBUTE.findall(text))]


def test_there_are_notebooks_to_look_at():
    assert len(NOTEBOOKS) >= 2


@each_notebook
def test_name_says_order_and_topic(path):
    assert re.fullmatch(r"\d\d_[a-z0-9]+(_[a-z0-9]+)*", path.stem)


@each_notebook
def test_is_a_valid_notebook_of_format_4_5(path):
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert (raw["nbformat"], raw["nbformat_minor"]) == (4, 5)
    ids = [cell.get("id") for cell in raw["cells"]]  # before validate, which mends missing and double ones silently
    assert all(ids)
    assert len(set(ids)) == len(ids)
    nbformat.validate(raw)
    assert raw["metadata"]["kernelspec"]["name"] == "python3"


@each_notebook
def test_is_small(path):
    assert path.stat().st_size < MAX_BYTES


@each_notebook
def test_stores_no_outputs_and_no_widget_state(path):
    notebook = nbformat.read(path, as_version=4)
    assert "widgets" not in notebook.metadata
    for cell in notebook.cells:
        assert not cell.get("outputs"), cell.id
        assert cell.get("execution_count") is None, cell.id
        assert "widgets" not in cell.metadata, cell.id
        assert not cell.get("attachments"), cell.id


@each_notebook
def test_every_code_cell_parses(path):
    sources = cells(path, "code")
    assert sources
    for source in sources:
        ast.parse(plain_python(source))


def test_first_code_cell_is_the_same_everywhere():
    assert len({cells(path, "code")[0] for path in NOTEBOOKS}) == 1


@each_notebook
def test_first_code_cell_imports_nothing_heavy(path):
    """In Colab a kit that is not there yet has to be fetched before anything may import it, or torch."""
    names = imported(cells(path, "code")[0])
    assert "imp_kit" in names
    assert names <= {*sys.stdlib_module_names, "imp_kit"}


@each_notebook
def test_no_cell_replaces_what_the_kernel_has_loaded(path):
    """Colab loads numpy, pillow and torch before the first cell, and fixes ipython; changing them there breaks it."""
    fixed = r"(?:numpy|pillow|torch|torchvision|jupyter|ipython)"
    for source in cells(path, "code"):
        assert not re.search(rf"\binstall\b.*\b{fixed}\b|--force-reinstall", source, flags=re.IGNORECASE)


@each_notebook
def test_first_cell_has_the_badge_of_this_notebook(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown"
    assert f"]({COLAB}notebooks/{path.name})" in first.source
    assert re.search(r"^# \S", first.source, flags=re.MULTILINE), "a notebook begins with its title"


@each_notebook
def test_links_into_the_repository_point_at_files(path):
    inside = []
    for target in links(path):
        address = GITHUB.sub("", target.removeprefix(COLAB))
        if address != target:
            inside.append(ROOT / unquote(address.partition("#")[0]))
        elif not re.match(r"[a-z]+:|#", target):
            inside.append(path.parent / unquote(target.partition("#")[0]))
    assert inside, "not even the badge was found"
    assert [str(file) for file in inside if not file.exists()] == []


@each_notebook
def test_pictures_that_cells_open_are_there(path):
    """Names such as `IMAGES / "bus.png"`; files that a cell is meant not to find say so with "buss"."""
    code = "\n".join(cells(path, "code"))
    names = set(re.findall(r'"(?:images/)?([\w-]+\.(?:png|jpg))"', code)) - {"buss.png"}
    assert names
    assert [name for name in names if not (ROOT / "images" / name).is_file()] == []


@each_notebook
def test_no_path_of_one_machine(path):
    assert not re.search(r"(?<![\w.])/(home|root|work|tmp|Users|content)/", path.read_text(encoding="utf-8"))


@each_notebook
def test_ends_with_a_question_and_its_answer_to_unfold(path):
    last = nbformat.read(path, as_version=4).cells[-1]
    assert last.cell_type == "markdown"
    assert "?" in last.source.partition("<details>")[0]
    # Without the empty lines GitHub and Colab show the answer's Markdown as raw text.
    assert re.search(r"\n\n<details>\n<summary>Answer</summary>\n\n.+\n\n</details>$", last.source, flags=re.DOTALL)


@each_notebook
def test_is_named_in_the_readme(path):
    assert f"notebooks/{path.name}" in (ROOT / "README.md").read_text(encoding="utf-8")
