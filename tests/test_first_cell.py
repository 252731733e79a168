"""The first cell of every notebook and the switch that pins transformers, run by a real kernel: what they install.

The kernel has an environment of its own on top of the present one, in which the kit itself is missing, so that pip may
write; pip is given a folder of tiny wheels instead of the network, and git a repository on this machine instead of the
published one.
"""

import json
import os
import re
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
from set_repository import ROOT, project_files, repository

import imp_kit

SOURCE = first_code_cell(nbformat.read(NOTEBOOKS / "00_setup.ipynb", as_version=4)).source


def write_wheel(folder, name, version, *requires, extras=(), tag="py3-none-any"):
    """A wheel with one module that holds only its version; returns its path."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {need}\n" for need in requires)
    needs += "".join(f"Provides-Extra: {extra}\n" for extra in extras)
    files = {
        f"{module}.py": f"__version__ = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    file = folder / f"{module}-{version}-{tag}.whl"
    with zipfile.ZipFile(file, "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return file


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
        "PIP_NO_BUILD_ISOLATION": "false",  # pip takes it for the value of its opposite
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{(tmp_path / 'published').as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{repository()}",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))

    def execute(folder, *, before=(), source=SOURCE, after=()):
        cells = [nbformat.v4.new_code_cell(text) for text in (*before, source, *after)]
        notebook = nbformat.v4.new_notebook(cells=cells)
        try:
            NotebookClient(
                notebook,
                timeout=600,
                startup_timeout=600,
                kernel_name="fresh",
                resources={"metadata": {"path": folder}},
            ).execute()
        finally:
            execute.printed = "".join(
                output.get("text", "").replace("\r\n", "\n") for cell in cells for output in cell.outputs
            )
        return execute.printed

    execute.wheels = wheels
    return execute


ASIDE = "import sys\nprint('imported:', sorted({'torch', 'transformers'} & set(sys.modules)))"


def test_it_is_short():
    assert len(SOURCE.splitlines()) <= 8


def test_where_the_kit_is_it_installs_nothing_and_imports_nothing_heavy(run, tmp_path):
    printed = run(tmp_path, before=[f"import sys\nsys.path.insert(0, {str(ROOT)!r})"], after=[ASIDE])
    line, imported = printed.splitlines()
    assert line.startswith(f"imp-kit {imp_kit.__version__}, Python {sys.version.split()[0]}, torch ")
    assert imported == "imported: []"


@pytest.mark.slow
def test_where_it_is_missing_it_says_so_and_installs_it_with_its_samples(run, tmp_path):
    published = tmp_path / "published"
    for path in project_files(ROOT):
        copied = published / path.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(path.read_bytes())
    git = ["git", "-c", "user.name=kit", "-c", "user.email=kit@example.org", "-C", published]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "kit"]):
        subprocess.run([*git, *command], check=True)
    asked = "print(imp_kit.load('imp-nano').ask(imp_kit.sample('bus.png'), 'What is this?'))\nprint(imp_kit.__file__)"
    printed = run(tmp_path, after=[ASIDE, asked])
    assert printed.startswith("This Python has no imp-kit. pip installs it now")
    assert f"Successfully installed imp-kit-{imp_kit.__version__}\n" in printed
    assert "imported: []" in printed
    assert "bus" in printed.splitlines()[-2]
    assert str(tmp_path / "environment") in printed.splitlines()[-1]
    assert run(tmp_path).startswith("imp-kit ")  # a second time, as after a restart


def test_without_kit_and_network_the_reason_is_seen(run, tmp_path):
    with pytest.raises(CellExecutionError, match="No module named 'imp_kit'"):
        run(tmp_path)
    assert "pip installs it now" in run.printed
    assert "git clone" in run.printed


# The switch of 01 and 02 ---------------------------------------------------------------------------------------

(PIN,) = (
    cell.source
    for cell in nbformat.read(NOTEBOOKS / "02_v1_5_loading_failure.ipynb", as_version=4).cells
    if cell.id == "pin-transformers"
)
# Another version than either stack has.
SWITCHED = PIN.replace("PIN_TRANSFORMERS = False", "PIN_TRANSFORMERS = True").replace("4.37.2", "9.9.9")
KIT = f"import sys\nsys.path.insert(0, {str(ROOT)!r})"


@pytest.fixture
def wanted(run):
    """Wheels of a transformers that is not here, and of the hub client that it wants."""
    write_wheel(run.wheels, "transformers", "9.9.9", "huggingface_hub==999.0")
    write_wheel(run.wheels, "huggingface_hub", "999.0")


def test_the_switch_is_off_and_short(run, wanted, tmp_path):
    assert len(PIN.splitlines()) <= 8
    assert (SWITCHED.count("= True"), SWITCHED.count("9.9.9"), SWITCHED.count("4.37.2")) == (1, 2, 0)
    (line,) = run(tmp_path, before=[KIT], after=[PIN]).splitlines()
    assert line.startswith("imp-kit ")


@pytest.mark.slow
def test_the_switch_installs_the_pinned_transformers_before_it_is_imported(run, wanted, tmp_path):
    imported = "import transformers\nprint('imported', transformers.__version__)"
    printed = run(tmp_path, before=[KIT], after=[SWITCHED, imported])
    assert re.search(r"Successfully installed huggingface.hub-999\.0 transformers-9\.9\.9\n", printed)
    assert "imported 9.9.9\n" in printed
    again = run(tmp_path, before=[KIT], after=[SWITCHED, SWITCHED])  # run all, after a restart
    assert "transformers 9.9.9\n" in again
    assert "Successfully" not in again


@pytest.mark.slow
def test_the_switch_asks_for_a_restart_where_another_version_is_loaded(run, wanted, tmp_path):
    loaded = [KIT, "import huggingface_hub"]
    asked = "SettingError.*huggingface_hub 999.0 is installed, but this kernel still uses .*Restart"
    with pytest.raises(CellExecutionError, match=asked):
        run(tmp_path, before=loaded, after=[SWITCHED])
    assert "transformers 9.9.9\n" in run(tmp_path, before=[KIT], after=[SWITCHED])


@pytest.mark.slow
def test_the_switch_is_content_with_what_is_loaded_where_that_is_installed(run, tmp_path):
    run(tmp_path, before=[KIT, "import huggingface_hub, tokenizers, transformers"], after=[PIN])


@pytest.mark.slow
def test_a_pip_that_fails_is_seen(run, tmp_path):
    printed = run(tmp_path, before=[KIT], after=[SWITCHED])
    assert "No matching distribution found for transformers==9.9.9" in printed
