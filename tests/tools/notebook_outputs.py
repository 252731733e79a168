"""The outputs that the notebooks keep, so that a reader sees results before running anything.

    python tests/tools/notebook_outputs.py [--check] [NOTEBOOK ...]

runs the English notebooks with imp-nano, on the CPU and without a network, each in an empty folder, as in Colab. It
writes what they show into their files; --check writes nothing and says cell by cell where texts differ. A notebook
keeps the outputs of one run: they are written anew as a whole, and only if some cell shows another text or another
number of pictures. Times, memory, versions and paths may differ; in a cell tagged `measured` all numbers may.

The same run does the exercises: a cell `exercise-...` has to print "Not yet"; then the block of Python in the next
cell, `solution-...`, is run with the check, and has to print "Right". So that a solution changes no later result, no
other cell reads a name that an exercise binds, and no solution changes an object that it did not make.
"""

import argparse
import ast
import base64
import html
import io
import math
import os
import re
import sys
import tempfile
import time
from copy import deepcopy
from difflib import SequenceMatcher
from pathlib import Path

import nbformat
from first_cell import NOTEBOOKS
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from PIL import Image

ROOT = NOTEBOOKS.parent
CELL_SECONDS = 1800  # a busy machine takes many times as long as a quiet one
MAX_PICTURE = 60_000  # bytes of a PNG
MAX_NOTEBOOK = 400_000  # bytes of a file
KEPT = ("image/png", "text/html", "text/markdown", "text/plain")  # of several forms of one output the first
OFFLINE = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PIP_NO_INDEX": "1", "PYTHONPATH": str(ROOT)}
# What a run says beside its progress bar: how long it will take, and that other programs slow it down.
PROGRESS = re.compile(r"^(?:.*This machine is busy: .*|\d+\.\d+ s a sample, about .*)\n?", re.M)
COLORS = re.compile(r"\x1b\[[0-9;]*m")
# At least one folder: /home/me/a.png, C:\Users\a.png; but no address on the web, and no "and/or".
PATH = re.compile(r"(?<![\w.:/~\\-])(?:~|…|[A-Za-z]:)?[\\/](?:[\w.+@ -]*[\w.+@-][\\/])+([\w.+@-]*)")

NUMBER = r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"
MASKS = [
    (re.compile(pattern), mask)
    for pattern, mask in (
        (r"[ \t]+", " "),
        (r" \(CUDA_VISIBLE_DEVICES is '' and hides it\)", ""),  # on a machine with a GPU
        (r"0x[0-9a-fA-F]{6,}", "<address>"),
        (r"\b\d+(?:\.\d+){2,}[\w.+-]*", "<version>"),
        (rf"{NUMBER} ?(?:ns|[µu]s|ms|s|sec|seconds?|min|minutes?|hours?)\b", "<time>"),
        (rf"{NUMBER} ?(?:[kKMGT]i?B|bytes)(?:/s)?\b", "<size>"),
        (rf"{NUMBER} ?(?:[GT]?FLOP/s|(?:tokens|questions|pictures|images)(?:/s| a second))", "<rate>"),
        (rf"{NUMBER} ?(?:CPU )?(?:threads?|cores?|CPUs?)\b", "<cpus>"),
        (r"\b(?:fp32|fp16|bf16)\b", "<dtype>"),
        (r"[-─]{3,}", "---"),  # as long as the columns of a table are wide
    )
]


# Running ---------------------------------------------------------------------------------------------------


def execute(notebook: NotebookNode) -> None:
    """Run the cells in place. Raises CellExecutionError where one fails that is not tagged `raises-exception`."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "notebooks"  # a name that is the same in every run
        folder.mkdir()
        client = NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            startup_timeout=CELL_SECONDS,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": str(folder)}},
        )
        client.execute(env={**os.environ, **OFFLINE})


def with_size(notebook: NotebookNode, size: str) -> int:
    """Set SIZE in the cells tagged `parameters`; returns how many have it."""
    count = 0
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source, found = re.subn(r'^SIZE = "\w+"', f'SIZE = "{size}"', cell.source, flags=re.M)
            count += found
    return count


def is_exercise(cell: NotebookNode) -> bool:
    return cell.cell_type == "code" and cell.id.startswith("exercise-")


def solved(exercise: str, solution: str) -> str:
    """The exercise's check, called on the solution: the one block of Python in a cell of Markdown.

    Raises ValueError where there is not exactly one of each.
    """
    blocks = re.findall(r"^```python\n(.*?)\n```$", solution, re.M | re.S)
    calls = [ast.unparse(node) for node in ast.parse(exercise).body if _is_check(node)]
    if (len(blocks), len(calls)) != (1, 1):
        raise ValueError(
            f"{len(blocks)} blocks of Python in the solution and {len(calls)} checks; one of each is needed."
        )
    return f"{blocks[0]}\n\n{calls[0]}"


def _is_check(node: ast.stmt) -> bool:
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and ast.unparse(call.func).startswith("check.")


def run(path: Path, size: str | None = None) -> tuple[NotebookNode, list[str]]:
    """A notebook with the outputs of a run as they are kept, and what is wrong with its exercises.

    `size` is that of the run where the notebook has sizes; else it is as the notebook says.
    """
    notebook = nbformat.read(path, as_version=4)
    if size:
        with_size(notebook, size)
    cells, metadata, solutions = notebook.cells, deepcopy(notebook.metadata), {}
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        if is_exercise(cell):
            solutions[cell.id] = nbformat.v4.new_code_cell(solved(cell.source, following.source if following else ""))
    notebook.cells = [each for cell in cells for each in (cell, solutions.get(cell.id)) if each]
    execute(notebook)
    notebook.cells, notebook.metadata = cells, metadata  # a kernel writes its version there, and the state of widgets
    for cell in cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = kept(cell.outputs), None
    wrong = []
    for cell in filter(is_exercise, cells):
        for each, start in ((cell, "Not yet"), (solutions[cell.id], "Right")):
            said = text_of(each.outputs).strip()
            if not said.startswith(start):
                wrong.append(f"{cell.id}: {start!r} was expected of the check, which said: {said or 'nothing'}")
    return notebook, wrong


# What is kept ----------------------------------------------------------------------------------------------


def kept(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs without progress, warnings, paths of this machine and what no page shows; pictures made small."""
    result: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream":
            text = PROGRESS.sub("", plain(output.text)) if output.name == "stdout" else ""
            if text and result and result[-1].output_type == "stream":
                result[-1].text += text
            elif text:
                result.append(nbformat.v4.new_output("stream", name="stdout", text=text))
        elif output.output_type == "error":
            lines = [plain(line) for line in output.traceback]
            error = {"ename": output.ename, "evalue": plain(output.evalue), "traceback": lines}
            result.append(nbformat.v4.new_output("error", **error))
        elif not any("widget" in kind for kind in output.data):  # a bar of tqdm
            kind = next(kind for kind in KEPT if kind in output.data)
            content = output.data[kind]
            data = {kind: _small_png(content) if kind == "image/png" else plain(content)}
            result.append(nbformat.v4.new_output(output.output_type, data=data))
    return result


def plain(text: str) -> str:
    """Text as a terminal shows it at the end, without colors; of a path only its last name."""
    lines = [line.rpartition("\r")[2] for line in COLORS.sub("", text).replace("\r\n", "\n").split("\n")]
    return PATH.sub(r"…/\1", "\n".join(lines))


def _small_png(encoded: str) -> str:
    return base64.b64encode(small_png(base64.b64decode(encoded))).decode()  # one line of the file


def small_png(content: bytes) -> bytes:
    """A PNG of at most MAX_PICTURE bytes: as it is, or else with 256 colors, or else also smaller; says so."""
    if len(content) <= MAX_PICTURE:
        return content
    with Image.open(io.BytesIO(content)) as opened:
        image = opened.convert("RGBA")
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=image)
    reduced, scale = content, 1.0
    while len(reduced) > MAX_PICTURE:
        size = [max(1, round(scale * length)) for length in page.size]
        file = io.BytesIO()
        page.resize(size, Image.Resampling.LANCZOS).quantize(256).save(file, format="png", optimize=True)
        reduced, shown = file.getvalue(), " x ".join(map(str, size))
        scale *= min(0.9, math.sqrt(MAX_PICTURE / len(reduced)))
    print(f"  a picture of {len(content):,} bytes is kept with 256 colors and {shown} pixels: {len(reduced):,} bytes")
    return reduced


# Comparing -------------------------------------------------------------------------------------------------


def text_of(outputs: list[NotebookNode]) -> str:
    """All text of a cell's outputs; a picture counts as one line, whatever it shows."""
    texts = []
    for output in outputs:
        if output.output_type == "stream":
            texts.append(output.text)
        elif output.output_type == "error":
            texts.append(f"{output.ename}: {output.evalue}")
        elif "image/png" in output.data:
            texts.append("<picture>")
        elif "text/html" in output.data:
            texts.append(text_of_html(output.data["text/html"]))
        else:
            texts.append(next(output.data[kind] for kind in KEPT if kind in output.data))
    return "".join(text if text.endswith("\n") else text + "\n" for text in texts)


def text_of_html(page: str) -> str:
    """The words of a page, a row of a table or a paragraph on each line."""
    page = re.sub(r"<style.*?</style>|\n", " ", page, flags=re.S)
    page = re.sub(r"</(?:p|tr|li|h\d|div)>|<br */?>", "\n", page)
    return html.unescape(re.sub(r"<[^>]*>", " ", page))


def masked(text: str, numbers: bool = False) -> str:
    """Text without what differs from machine to machine and from run to run; with `numbers` without any number."""
    for pattern, mask in MASKS:
        text = pattern.sub(mask, text)
    text = re.sub(rf"{NUMBER}|\bnan\b|\bNone\b", "<number>", text, flags=re.I) if numbers else text
    return "\n".join(line for line in map(str.strip, text.splitlines()) if line)


def same(line: str, other: str) -> bool:
    """Whether two lines are equal, but for one in the last digit of a number with a decimal point."""
    decimal = re.compile(r"(\d+\.\d+)")
    parts, others = decimal.split(line), decimal.split(other)
    if parts[::2] != others[::2]:
        return False
    for a, b in zip(parts[1::2], others[1::2], strict=True):
        places = len(a.partition(".")[2])
        if len(b.partition(".")[2]) != places or abs(round((float(a) - float(b)) * 10**places)) > 1:
            return False
    return True


def differences(stored: NotebookNode, fresh: NotebookNode) -> list[str]:
    """Where the outputs of one notebook differ in two files, line by line."""
    found = []
    for before, after in zip(stored.cells, fresh.cells, strict=True):
        if before.cell_type == "code":
            numbers = "measured" in before.metadata.get("tags", [])
            old, new = (masked(text_of(cell.outputs), numbers).splitlines() for cell in (before, after))
            found += [f"{before.id}: {line}" for line in _differing(old, new)]
    return found


def _differing(old: list[str], new: list[str]) -> list[str]:
    found = []
    for change, i, j, k, m in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if change == "equal" or (j - i == m - k and all(map(same, old[i:j], new[k:m]))):
            continue
        found += [f"kept     {line}" for line in old[i:j]] + [f"but now  {line}" for line in new[k:m]]
    return found


# The exercises' rule -----------------------------------------------------------------------------------------


def leftovers(cells: list[NotebookNode], parse=ast.parse) -> list[str]:
    """Cells that read a name which an exercise before them bound, and no cell since; `parse` makes a syntax tree."""
    bound: set[str] = set()
    found = []
    for cell in cells:
        if cell.cell_type == "code":
            own, read = names(parse(cell.source))
            if is_exercise(cell):
                bound |= own
            else:
                found += [f"{cell.id} reads {name}, which an exercise binds" for name in sorted((read - own) & bound)]
                bound -= own
    return found


def names(tree: ast.Module) -> tuple[set[str], set[str]]:
    """The names that a cell binds and those that it reads."""
    bound, read = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
    return bound, read


# The command -------------------------------------------------------------------------------------------------


def check(path: Path) -> list[str]:
    """Run a notebook; return where it differs from what is kept, and what is wrong with its exercises."""
    fresh, wrong = run(path)
    return wrong + differences(nbformat.read(path, as_version=4), fresh)


def update(path: Path) -> list[str]:
    """Run a notebook and keep its outputs; return what differed before, and what is wrong with its exercises.

    Raises ValueError, and writes nothing, where the file would be too large.
    """
    fresh, wrong = run(path)
    changed = differences(nbformat.read(path, as_version=4), fresh)
    if changed:
        text = nbformat.writes(fresh) + "\n"
        if len(text.encode()) > MAX_NOTEBOOK:
            raise ValueError(f"{path.name} would have {len(text.encode()):,} bytes, more than {MAX_NOTEBOOK:,}.")
        path.write_text(text, "utf-8")
    return wrong + changed


def main() -> int:
    """Return 1 where a cell fails or an exercise is wrong, and with --check also where an output differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", type=Path, help="default: all English ones")
    parser.add_argument("--check", action="store_true", help="write nothing, say where texts differ")
    chosen = parser.parse_args()
    failed = False
    for path in chosen.notebooks or sorted(NOTEBOOKS.glob("*.ipynb")):
        start = time.perf_counter()
        print(path.name, flush=True)
        try:
            found = (check if chosen.check else update)(path)
        except CellExecutionError as error:
            print(f"  a cell ended in {error.ename}: {plain(error.evalue)}", flush=True)
            failed = True
            continue
        print("".join(f"  {line}\n" for line in found), end="")
        failed |= any(chosen.check or "was expected of the check" in line for line in found)
        print(f"  {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
