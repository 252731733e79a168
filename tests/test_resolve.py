"""What tests/tools/resolve.py makes of pip's answers: with tiny wheels instead of the network, and pip itself."""

import json
import os
import subprocess
import sys

import pytest
import resolve
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_first_cell import write_wheel

STOCK = {"torch": "2.0", "numpy": "2.0", "pillow": "11.0", "ipython": "7.34", "transformers": "5.0", "gradio": "6.0"}
PIN = next(need for need in resolve.pinned_requirements() if need.startswith("transformers=="))
OTHERS = {canonicalize_name(Requirement(need).name) for need in resolve.kit_requirements("test")} - STOCK.keys()


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder of wheels, the only place where pip looks: a Colab, a kit, and what the kit requires."""
    wheels = tmp_path_factory.mktemp("wheels")
    for name, version in STOCK.items():
        write_wheel(wheels, name, version, *(["transformers>=5.0"] if name == "gradio" else []))
    for name in OTHERS:
        write_wheel(wheels, name, "99.0")
    write_wheel(wheels, "numpy", "1.26")
    write_wheel(wheels, "transformers", PIN.partition("==")[2])
    write_wheel(wheels, "imp-kit", "0.1.0", "numpy", "torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_FIND_LINKS", str(wheels))
        patch.setenv("PIP_NO_INDEX", "1")
        yield wheels


@pytest.fixture(scope="module")
def colab(shelf, tmp_path_factory):
    """A stand-in for Colab, made once: its Python and its packages."""
    folder = tmp_path_factory.mktemp("stand-in") / "colab"
    return resolve.stand_in(folder, sys.executable, *(f"{name}=={STOCK[name]}" for name in STOCK), *OTHERS)


@pytest.fixture
def in_colab(colab, monkeypatch, capsys):
    """The lines of the table for that Colab, whether it passed, and the kit as a wheel."""
    monkeypatch.setattr(resolve, "stand_in", lambda *_: colab)
    monkeypatch.setattr(resolve, "KIT", "imp-kit")

    def table(*also):
        return resolve.colab_table(sys.executable, also), lines(capsys)

    return table


def lines(capsys):
    """The cells of each line, its verdict last."""
    printed = [line for line in capsys.readouterr().out.splitlines() if line.endswith(("| ok |", "| FAILS |"))]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed]


@pytest.mark.slow
def test_a_stand_in_is_what_pip_takes_it_for(colab):
    python, stock = colab
    assert stock.keys() == STOCK.keys() | OTHERS
    done = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    listed = {package["name"]: package["version"] for package in json.loads(done.stdout)}
    assert listed.items() >= STOCK.items()
    planned = resolve.plan(python, PIN, "pillow", "imp-kit")
    assert planned.keys() == {"transformers", "imp-kit"}
    assert list(resolve.changes(stock, planned)) == ["transformers"]
    assert list(resolve.left_behind(stock, planned)) == ["gradio wants transformers>=5.0"]


@pytest.mark.slow
def test_colab_keeps_what_its_kernel_has_loaded(in_colab):
    moved = f"transformers {STOCK['transformers']} -> {PIN.partition('==')[2]}"
    assert in_colab() == (
        True,
        [
            ["first cell", "nothing", "nothing", "imp-kit", "ok"],
            ["first cell, PIN_TRANSFORMERS = True", moved, "gradio wants transformers>=5.0", "imp-kit", "ok"],
            ["pip install imp-kit", "nothing", "nothing", "imp-kit", "ok"],
            [f"pip install imp-kit {PIN}", moved, "gradio wants transformers>=5.0", "imp-kit", "ok"],
        ],
    )


@pytest.mark.slow
def test_a_requirement_that_moves_numpy_fails(in_colab):
    passed, rows = in_colab("numpy<2")
    assert not passed
    assert [verdict for *_, verdict in rows] == ["FAILS"] * 4
    assert all("numpy 2.0 -> 1.26" in replaced for _, replaced, *_ in rows)


def test_requirements_that_contradict_are_named(shelf, colab):
    write_wheel(shelf, "contradiction", "1.0", "numpy<2", "numpy>=2")
    with pytest.raises(resolve.ResolutionError, match="contradiction 1.0 depends on numpy"):
        resolve.plan(colab[0], "contradiction")


def test_a_colab_without_ipython_would_prove_nothing(colab, monkeypatch):
    python, stock = colab
    monkeypatch.setattr(
        resolve, "stand_in", lambda *_: (python, {name: stock[name] for name in stock.keys() - {"ipython"}})
    )
    with pytest.raises(ValueError, match=r"colab_stock\.txt lacks ipython"):
        resolve.colab_table(sys.executable)


def test_the_listed_colab_says_which_version_must_stay():
    listed = {line.partition("==")[0]: line for line in resolve.STOCK.read_text("utf-8").splitlines()}
    assert all("==" in listed[name] for name in resolve.LOADED)


@pytest.mark.slow
def test_requirements_resolve_to_wheels_or_the_table_fails(shelf, capsys, monkeypatch):
    monkeypatch.setattr(resolve, "PYTHONS", resolve.PYTHONS[-1:])
    for name in ("constraints.txt", "constraints-newest.txt"):
        for line in (resolve.ROOT / name).read_text("utf-8").splitlines():
            if not line.startswith("#"):
                write_wheel(shelf, *line.split("=="))
    assert resolve.requirements_table()
    rows = lines(capsys)
    assert [row[1] for row in rows] == ["constraints.txt", "constraints-newest.txt", "any"]
    assert all(int(row[3]) >= 8 for row in rows)
    for wheel in shelf.glob("einops-*"):
        wheel.unlink()
    (shelf / "einops-0.8.2.tar.gz").write_bytes(b"")
    assert not resolve.requirements_table()
    assert all("einops" in row[3] and row[4] == "FAILS" for row in lines(capsys))
