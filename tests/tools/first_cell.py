"""All notebooks begin with the same code cell: this program copies the first notebook's to the others.

    python tests/tools/first_cell.py

It is edited in the first notebook, where Jupyter and ruff know what a cell is.
"""

from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def first_code_cell(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return next(cell for cell in notebook.cells if cell.cell_type == "code")


def copy_first_cell(folder: Path = NOTEBOOKS) -> list[str]:
    """Write the first notebook's first code cell into the others; return the names of those that changed."""
    first, *others = sorted(folder.glob("*.ipynb"))
    source = first_code_cell(nbformat.read(first, as_version=4)).source
    changed = []
    for path in others:
        notebook = nbformat.read(path, as_version=4)
        cell = first_code_cell(notebook)
        if cell.source != source:
            cell.source = source
            path.write_text(nbformat.writes(notebook) + "\n", "utf-8")
            changed.append(path.name)
    return changed


if __name__ == "__main__":
    print("changed:", ", ".join(copy_first_cell()) or "none")
