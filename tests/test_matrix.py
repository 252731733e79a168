"""The table of the stacks, made from a project of two tests, one of which stands for a notebook."""

import platform
import sys

import matrix
import pytest


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(
        "import os\ndef test_offline(): assert os.environ['HF_HUB_OFFLINE'] == '1'\n"
    )

    def write_notebook(code):
        (tmp_path / "tests" / "test_notebook_outputs.py").write_text(
            f"import pytest\n@pytest.mark.parametrize('name', ['00_it.ipynb'])\ndef test_outputs(name): {code}\n"
        )

    return write_notebook


@pytest.mark.slow
def test_a_column_for_each_stack(project, capsys):
    project("1 + 1")
    assert matrix.main([sys.executable, sys.executable]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in (line.split("|") for line in table)}
    assert rows["python"] == [platform.python_version()] * 2
    assert rows["00_it.ipynb"][0].endswith(" minutes")
    assert rows["pytest"][0].startswith("2 passed in ")
    assert rows["all passed"] == ["yes", "yes"]


@pytest.mark.parametrize("code", ["1 / 0", None], ids=["a notebook fails", "no notebook"])
@pytest.mark.slow
def test_it_fails(project, capsys, code):
    if code:
        project(code)
    assert matrix.main([sys.executable]) == 1
    assert "| all passed | NO |" in capsys.readouterr().out
