"""What pip would install, without installing it: `make resolve`, or python tests/tools/resolve.py PYTHON; online.

Two proofs, both by pip's own resolver. The project's requirements resolve to wheels alone on each supported Python.
And in Google Colab neither the first cell of a notebook nor installing the kit replaces a package that the running
kernel has loaded. PYTHON is a Python of Colab's version; the environment made with it holds no package, only the
metadata of those in tests/colab_stock.txt and of all that these require.

pip judges markers such as `python_version < "3.12"` by the Python it runs on, even when it looks for wheels of another.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import nbformat
from first_cell import NOTEBOOKS, first_code_cell
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
KIT = str(ROOT)  # what pip is given to install the kit
STOCK = Path(__file__).parents[1] / "colab_stock.txt"
PYTHONS = ("3.11", "3.12", "3.13")
# Colab's kernel has them loaded before the first cell; a pinned transformers may move only itself and its two helpers.
LOADED = {"numpy", "torch", "pillow", "ipython"}
PINNED = {"transformers", "huggingface-hub", "tokenizers"}
QUIET = ("--disable-pip-version-check", "--no-color", "--progress-bar", "off")


Packages = Mapping[str, dict]  # name -> metadata as in pip's report: version, requires_dist and so on


class ResolutionError(Exception):
    """pip found no set of packages; the text is its own."""


def plan(python: str | Path, *arguments: str) -> Packages:
    """What `pip install` would install in the environment of a Python. Raises ResolutionError."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [python, "-m", "pip", "install", "--dry-run", "--report", report, *QUIET, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            message = done.stdout.partition("The conflict is caused by:")[2].partition("\n\n")[0]
            raise ResolutionError(message.strip() or done.stderr.strip().splitlines()[-1])
        installs = json.loads(report.read_text("utf-8"))["install"]
    return {canonicalize_name(item["metadata"]["name"]): item["metadata"] for item in installs}


def wheels(version: str, *arguments: str, python: str = sys.executable) -> Packages:
    """What it would install in an empty environment of some Python version, from wheels alone."""
    with tempfile.TemporaryDirectory() as target:
        options = ("--ignore-installed", "--target", target, "--python-version", version, "--only-binary", ":all:")
        return plan(python, *options, *arguments)


def pinned_requirements() -> list[str]:
    """The lines of requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def kit_requirements(*extras: str) -> list[str]:
    """What the kit requires, with these extras and those that they name in their turn."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needs, chosen = list(project["dependencies"]), list(extras)
    for extra in chosen:  # grows on the way
        for need in map(Requirement, project["optional-dependencies"][extra]):
            if need.name == project["name"]:
                chosen += need.extras
            else:
                needs.append(str(need))
    return needs


# Colab -----------------------------------------------------------------------------------------------------


def stand_in(folder: Path, python: str, *arguments: str) -> tuple[Path, Packages]:
    """An environment that pip takes for one with packages installed: `arguments`, and all that they require.

    Returns its Python, and the packages. They are metadata only, as their wheels have it.
    """
    subprocess.run([python, "-m", "venv", folder], check=True)
    inside = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    packages = plan(inside, "--only-binary", ":all:", *arguments)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    place = subprocess.run([inside, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    for name, metadata in packages.items():
        info = Path(place) / f"{name.replace('-', '_')}-{metadata['version']}.dist-info"
        info.mkdir()
        fields = {"Requires-Dist": "requires_dist", "Provides-Extra": "provides_extra"}
        lines = ["Metadata-Version: 2.1", f"Name: {metadata['name']}", f"Version: {metadata['version']}"]
        lines += [f"{field}: {value}" for field, key in fields.items() for value in metadata.get(key, ())]
        (info / "METADATA").write_text("\n".join(lines) + "\n", "utf-8")
        (info / "INSTALLER").write_text("pip\n")
        (info / "RECORD").write_text("")
    return inside, packages


def first_cell_installs() -> str:
    """What the first cell of the notebooks has pip install, from this checkout instead of the published kit."""
    source = first_code_cell(nbformat.read(NOTEBOOKS / "00_setup.ipynb", as_version=4)).source
    found = re.search(r'%pip install "imp-kit(\[\w+\]) @ git\+https:', source)
    if found is None:
        raise ValueError("The first cell does not install the kit.")
    return KIT + found[1]


def changes(stock: Packages, planned: Packages) -> dict[str, str]:
    """The packages that are there and would be replaced: name -> both versions."""
    both = {name: (stock[name]["version"], planned[name]["version"]) for name in sorted(stock.keys() & planned.keys())}
    return {name: f"{name} {old} -> {new}" for name, (old, new) in both.items()}


def left_behind(stock: Packages, planned: Packages) -> Iterator[str]:
    """Packages that are there and would not find what they require any more."""
    for name, metadata in stock.items():
        for need in map(Requirement, metadata.get("requires_dist", ())):
            other = planned.get(canonicalize_name(need.name))
            if name in planned or other is None or (need.marker and not need.marker.evaluate({"extra": ""})):
                continue
            if not need.specifier.contains(other["version"], prereleases=True):
                yield f"{name} wants {need.name}{need.specifier}"


# The tables ------------------------------------------------------------------------------------------------


def row(*cells: str, passed: bool) -> bool:
    """Print a line of a Markdown table; returns `passed`."""
    print("|", " | ".join(cell.replace("\n", " ") for cell in cells), "|", "ok" if passed else "FAILS", "|", flush=True)
    return passed


def head(*cells: str) -> None:
    print("\n|", " | ".join(cells), "| |\n" + "| --- " * (len(cells) + 1) + "|")


def requirements_table(newest: str = sys.executable) -> bool:
    """Whether the requirements resolve to wheels on each Python: in the tested versions, the kit's own in any.

    `newest` is the Python that resolves for the newest stack, whose packages an older Python's pip refuses.
    """
    head("requirements", "versions", "Python", "wheels")
    alone, whole = kit_requirements(), kit_requirements("test")
    kinds = [("of the set-up", pinned_requirements() + whole, "constraints.txt", version) for version in PYTHONS]
    kinds += [("of the set-up, newest", whole, "constraints-newest.txt", PYTHONS[-1])]
    kinds += [("of the kit alone", alone, None, version) for version in PYTHONS]
    passed = True
    for kind, needs, file, version in kinds:
        message = (kind, file or "any", version)
        try:
            python = newest if file == "constraints-newest.txt" else sys.executable
            found = wheels(version, *needs, *(("--constraint", str(ROOT / file)) if file else ()), python=python)
            complete = {canonicalize_name(Requirement(need).name) for need in needs} <= found.keys()
            passed &= row(*message, str(len(found)), passed=complete)
        except ResolutionError as error:
            passed &= row(*message, str(error), passed=False)
    return passed


def colab_table(python: str, also: Sequence[str] = ()) -> bool:
    """Whether in Colab only what may move is replaced; `also` are requirements added to each way of installing."""
    head("in Colab", "replaces", "leaves without what it wants", "adds")
    pin = next(line for line in pinned_requirements() if line.startswith("transformers=="))
    passed = True
    with tempfile.TemporaryDirectory() as folder:
        inside, stock = stand_in(Path(folder) / "colab", python, "--requirement", str(STOCK))
        if absent := LOADED - stock.keys():
            raise ValueError(f"{STOCK} lacks {', '.join(sorted(absent))}: that they stay would prove nothing.")
        ways = {
            "first cell": ([first_cell_installs()], set()),
            "first cell, PIN_TRANSFORMERS = True": ([first_cell_installs(), pin, "accelerate"], PINNED),
            "pip install imp-kit": ([KIT], set()),
            f"pip install imp-kit {pin}": ([KIT, pin], PINNED),
        }
        for way, (needs, may_move) in ways.items():
            try:
                planned = plan(inside, *needs, *also) if (*needs, *also) else {}
            except ResolutionError as error:
                passed &= row(way, str(error), "", "", passed=False)
                continue
            moved = changes(stock, planned)
            texts = (moved.values(), left_behind(stock, planned), sorted(planned.keys() - stock.keys()))
            passed &= row(way, *(", ".join(text) or "nothing" for text in texts), passed=moved.keys() <= may_move)
    return passed


def main() -> int:
    """Print both tables; returns 1 where a line of them fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("python", help="a Python of the version that Colab has")
    parser.add_argument("--also", default=[], action="append", help="a requirement more in Colab, such as 'numpy<2'")
    options = parser.parse_args()
    return int(not all([requirements_table(options.python), colab_table(options.python, options.also)]))


if __name__ == "__main__":
    sys.exit(main())
