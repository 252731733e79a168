"""What tests/resolve.py makes of pip's answers: with tiny wheels instead of the network, and pip itself."""

import json
import os
import subprocess
import sys

import pytest
import resolve
from packaging.requirements import Requirement
from test_first_cell import write_wheel

STOCK = {"torch": "2.0", "numpy": "2.0", "pillow": "11.0", "ipython": "7.34", "transformers": "5.0", "gradio": "6.0"}
PIN = next(need for need in resolve.pinned_requirements() if need.startswith("transformers=="))


def names(needs):
    return {Requirement(need).name for need in needs}


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder of wheels, the only place where pip looks: a Colab, a kit, and what the kit requires."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": wheels, "PIP_NO_INDEX": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    for name, version in STOCK.items():
        write_wheel(wheels, name, version, *(["transformers>=5.0"] if name == "gradio" else []))
    others = names(resolve.kit_requirements()) - STOCK.keys()
    for name in others:
        write_wheel(wheels, name, "99.0")
    write_wheel(wheels, "numpy", "1.26")
    write_wheel(wheels, "transformers", PIN.partition("==")[2])
    write_wheel(wheels, "imp-kit", "0.1.0", "numpy", "torch")
    (tmp_path / "stock.txt").write_text("\n".join([*(f"{name}=={STOCK[name]}" for name in STOCK), *others]))
    monkeypatch.setattr(resolve, "STOCK", tmp_path / "stock.txt")
    monkeypatch.setattr(resolve, "KIT", "imp-kit")
    return wheels


def test_a_stand_in_is_what_pip_takes_it_for(shelf, tmp_path):
    python, stock = resolve.stand_in(tmp_path / "colab", sys.executable, "gradio", "numpy==2.*")
    assert stock.keys() == {"gradio", "numpy", "transformers"}
    done = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    listed = {package["name"]: package["version"] for package in json.loads(done.stdout)}
    assert {name: STOCK[name] for name in stock}.items() <= listed.items()
    assert resolve.plan(python, "gradio", "numpy") == {}
    planned = resolve.plan(python, PIN, "pillow")
    assert planned.keys() == {"transformers", "pillow"}
    assert list(resolve.changes(stock, planned)) == ["transformers"]
    assert list(resolve.left_behind(stock, planned)) == ["gradio wants transformers>=5.0"]


def test_the_first_cell_is_asked_itself(shelf, tmp_path):
    bare, _ = resolve.stand_in(tmp_path / "bare", sys.executable, "gradio", "tqdm")
    missing = resolve.first_cell_installs(bare, pin=False)
    assert {"torch", "numpy", "pillow", "matplotlib"} <= set(missing)
    assert "tqdm" not in missing
    assert resolve.first_cell_installs(bare, pin=True) == [*missing, PIN, "accelerate"]


def table(capsys):
    """The cells of each line, its verdict last."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith(("| ok |", "| FAILS |"))]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_colab_keeps_what_its_kernel_has_loaded(shelf, capsys):
    assert resolve.colab_table(sys.executable)
    moved = f"transformers {STOCK['transformers']} -> {PIN.partition('==')[2]}"
    assert table(capsys) == [
        ["first cell", "nothing", "nothing", "nothing", "ok"],
        ["first cell, PIN_TRANSFORMERS = True", moved, "gradio wants transformers>=5.0", "nothing", "ok"],
        ["pip install imp-kit", "nothing", "nothing", "imp-kit", "ok"],
        [f"pip install imp-kit {PIN}", moved, "gradio wants transformers>=5.0", "imp-kit", "ok"],
    ]


def test_a_requirement_that_moves_numpy_fails(shelf, capsys):
    assert not resolve.colab_table(sys.executable, ["numpy<2"])
    rows = table(capsys)
    assert [verdict for *_, verdict in rows] == ["FAILS"] * 4
    assert all("numpy 2.0 -> 1.26" in replaced for _, replaced, *_ in rows)


def test_requirements_that_contradict_fail_and_are_named(shelf, capsys):
    write_wheel(shelf, "imp-kit", "0.2.0", "numpy<2", "numpy>=2")
    assert not resolve.colab_table(sys.executable, ["imp-kit==0.2.0"])
    assert "imp-kit 0.2.0 depends on numpy" in table(capsys)[0][1]


def test_a_colab_without_numpy_proves_nothing(shelf, tmp_path, capsys):
    lines = (tmp_path / "stock.txt").read_text().splitlines()
    (tmp_path / "stock.txt").write_text("\n".join(line for line in lines if not line.startswith("ipython")))
    assert not resolve.colab_table(sys.executable)


def test_requirements_resolve_to_wheels_or_the_table_fails(shelf, capsys, monkeypatch):
    monkeypatch.setattr(resolve, "PYTHONS", resolve.PYTHONS[-1:])
    for name in ("constraints.txt", "constraints-newest.txt"):
        for line in (resolve.ROOT / name).read_text("utf-8").splitlines():
            if not line.startswith("#"):
                write_wheel(shelf, *line.split("=="))
    assert resolve.requirements_table()
    rows = table(capsys)
    assert [row[1] for row in rows] == ["constraints.txt", "nothing", "constraints-newest.txt"]
    assert all(int(row[3]) > 10 for row in rows)
    for wheel in shelf.glob("einops-*"):
        wheel.rename(shelf / "einops-0.8.2.tar.gz")
    assert not resolve.requirements_table()
    assert all("einops" in row[3] and row[4] == "FAILS" for row in table(capsys))
