"""The first cell of every notebook, run by a real kernel: what it finds, fetches and installs.

The kernel has an environment of its own on top of the present one, so that pip may write; pip is given a folder of tiny
wheels instead of the network, and git a repository on this machine instead of the published one.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import nbformat
import pytest
from first_cell import NOTEBOOKS, first_code_cell
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from set_repository import ROOT, repository

import imp_kit

SOURCE = first_code_cell(nbformat.read(NOTEBOOKS / "00_setup.ipynb", as_version=4)).source
ASIDE = "import sys\nprint('imported:', sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))\nprint(ROOT)"


def write_kit(folder, *, dependencies=(), pin="4.37.2"):
    """What the first cell looks at of a kit; `dependencies` are added to the kit's own."""
    (folder / "imp_kit").mkdir(parents=True)
    for file in (ROOT / "imp_kit").glob("*.py"):
        shutil.copy(file, folder / "imp_kit")
    (folder / "images").mkdir()
    (folder / "images" / "a.txt").write_text("git keeps no empty folder")
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    added = "".join(f'    "{name}",\n' for name in dependencies)
    (folder / "pyproject.toml").write_text(
        project.replace("dependencies = [\n", f"dependencies = [\n{added}", 1), "utf-8"
    )
    (folder / "requirements.txt").write_text(f"torch\ntransformers=={pin}\naccelerate\n", "utf-8")
    return folder


def write_wheel(folder, name, version, *requires):
    """A wheel with one module that holds only its version."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {need}\n" for need in requires)
    files = {
        f"{module}.py": f"__version__ = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Executes the first cell (and cells before and after it) in a fresh kernel; returns all that it printed."""
    home = tmp_path / "environment"
    venv.create(home, symlinks=os.name != "nt")
    places = {name: sysconfig.get_path(name, "venv", {"base": str(home)}) for name in ("scripts", "purelib")}
    # The packages of the present environment, pip among them, as if they were the machine's own.
    with open(f"{places['purelib']}/present.pth", "w") as pth:
        pth.write(sysconfig.get_path("purelib") + "\n")
    kernel = tmp_path / "jupyter" / "kernels" / "fresh"
    kernel.mkdir(parents=True)
    python = f"{places['scripts']}/{os.path.basename(sys.executable)}"
    command = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "fresh", "language": "python"}))
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    settings = {
        "JUPYTER_PATH": kernel.parents[1],
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_FIND_LINKS": wheels,
        "PIP_NO_INDEX": "1",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{(tmp_path / 'published').as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{repository()}",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))

    def execute(folder, *, before=(), source=SOURCE, after=(ASIDE,)):
        cells = [nbformat.v4.new_code_cell(text) for text in (*before, source, *after)]
        notebook = nbformat.v4.new_notebook(cells=cells)
        try:
            NotebookClient(
                notebook, timeout=120, kernel_name="fresh", resources={"metadata": {"path": folder}}
            ).execute()
        finally:
            execute.printed = "".join(
                output.get("text", "").replace("\r\n", "\n") for cell in cells for output in cell.outputs
            )
        return execute.printed

    execute.wheels = wheels
    return execute


def test_it_finds_the_kit_above_and_imports_nothing_heavy(run, tmp_path):
    kit = write_kit(tmp_path / "somewhere")
    (kit / "notebooks").mkdir()
    printed = run(kit / "notebooks")
    assert f"imported: []\n{kit}" in printed
    assert [line.split()[0] for line in printed.splitlines()[:4]] == ["python", "torch", "transformers", "imp_kit"]
    assert f"imp_kit      {imp_kit.__version__}\n" in printed
    assert "pip" not in printed


@pytest.mark.slow
def test_it_clones_the_kit_once_also_over_a_restart(run, tmp_path):
    published, here = write_kit(tmp_path / "published"), tmp_path / "content"
    here.mkdir()
    git = ["git", "-c", "user.name=kit", "-c", "user.email=kit@example.org", "-C", published]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "kit"]):
        subprocess.run([*git, *command], check=True)
    assert f"{here / 'imp-kit'}\n" in run(here)
    shutil.rmtree(published)
    assert f"{here / 'imp-kit'}\n" in run(here)


def test_without_kit_and_network_it_ends_there(run, tmp_path):
    with pytest.raises(CellExecutionError, match="git"):
        run(tmp_path)


@pytest.mark.slow
def test_it_installs_only_what_is_missing(run, tmp_path):
    write_wheel(run.wheels, "missing_part", "1.2")
    for present in ("numpy", "pillow", "tokenizers"):
        write_wheel(run.wheels, present, "999.0")
    printed = run(write_kit(tmp_path / "kit", dependencies=["missing-part>=1.0"]), after=["import missing_part", ASIDE])
    assert re.search(r"Successfully installed missing.part-1\.2\n", printed)  # pip's own words: it is not silenced
    assert "imported: []" in printed


@pytest.fixture
def pinned(run, tmp_path):
    """A kit that pins a transformers which is not here, and which wants another hub client."""
    write_wheel(run.wheels, "transformers", "9.9.9", "huggingface_hub==999.0")
    write_wheel(run.wheels, "huggingface_hub", "999.0")
    return write_kit(tmp_path / "kit", pin="9.9.9")


SWITCHED = SOURCE.replace("PIN_TRANSFORMERS = False", "PIN_TRANSFORMERS = True")


def test_the_switch_is_off(run, pinned):
    assert SWITCHED != SOURCE
    assert "9.9.9" not in run(pinned)


@pytest.mark.slow
def test_the_switch_installs_the_pinned_transformers_before_it_is_imported(run, pinned):
    printed = run(pinned, source=SWITCHED, after=["import transformers\nprint('imported', transformers.__version__)"])
    assert re.search(r"Successfully installed huggingface.hub-999\.0 transformers-9\.9\.9\n", printed)
    assert "transformers 9.9.9\n" in printed
    assert "imported 9.9.9\n" in printed
    assert "Successfully" not in run(pinned, source=SWITCHED)  # run all, after a restart


@pytest.mark.slow
def test_it_asks_for_a_restart_where_another_version_is_loaded(run, pinned):
    loaded = "import huggingface_hub"
    with pytest.raises(
        CellExecutionError, match="huggingface_hub 999.0 is installed, but this kernel still uses .*Restart"
    ):
        run(pinned, before=[loaded], source=SWITCHED)
    assert "transformers 9.9.9\n" in run(pinned, source=SWITCHED)


@pytest.mark.slow
def test_it_is_content_with_what_is_loaded_where_that_is_installed(run, tmp_path):
    """Run a second time, when the kit and transformers are in use."""
    loaded = "import huggingface_hub, tokenizers, transformers"
    assert "imp_kit" in run(write_kit(tmp_path / "kit"), before=[loaded])


@pytest.mark.slow
def test_a_pip_that_fails_is_seen(run, tmp_path):
    printed = run(write_kit(tmp_path / "kit", dependencies=["missing-part"]))
    assert "No matching distribution found for missing-part" in printed
