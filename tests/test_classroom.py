"""tests/tools/classroom.py and the start.py that it leaves: with pip itself, and tiny wheels in two local indexes."""

import os
import platform
import shutil
import subprocess
import sys

import classroom
import pytest
from test_first_cell import write_wheel

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
CPYTHON = f"cp{PYTHON.replace('.', '')}"
EVERYWHERE = {"imp_kit", "jupyterlab", "ipywidgets", "torch", "server", "drawing", "formats", "web"}
PLATFORMS = {"linux": "manylinux_2_28_x86_64", "windows": "win_amd64", "macos": "macosx_14_0_arm64"}


def publish(index, *wheels):
    """Add wheels to an index in a folder, one folder with one page for a package."""
    for wheel in wheels:
        package = index / wheel.name.partition("-")[0].replace("_", "-")
        package.mkdir(parents=True, exist_ok=True)
        wheel.rename(package / wheel.name)
        links = "".join(f'<a href="{file.name}">{file.name}</a>' for file in package.glob("*.whl"))
        (package / "index.html").write_text(links)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Two indexes, the only ones that pip knows: `simple` with all packages, and `cpu` with torch without CUDA."""
    shelf = tmp_path_factory.mktemp("shelf")

    def wheel(*arguments, **settings):
        return write_wheel(shelf, *arguments, **settings)

    tags = {name: f"{CPYTHON}-{CPYTHON}-{end}" for name, end in PLATFORMS.items()}
    publish(
        shelf / "simple",
        wheel("imp-kit", "0.1.0", "torch>=2", "drawing; extra == 'notebooks'", extras=["notebooks"]),
        wheel("jupyterlab", "4.6", "server>=2"),
        wheel("ipywidgets", "8.1"),
        wheel(
            "server",
            "2.1",
            "console>=3,!=3.9; os_name == 'nt'",
            "nap; platform_system == 'Darwin'",
            "ancient; python_version < '3'",
            "formats[net]",
        ),
        wheel("formats", "1.0", "web; extra == 'net'", "absent; extra == 'other'", extras=["net", "other"]),
        wheel("web", "1.0"),
        wheel("drawing", "1.0"),
        wheel("drawing", "2.0"),
        *(wheel("console", version, tag="py3-none-win_amd64") for version in ("2.0", "3.0", "3.1", "3.9")),
        wheel("nap", "1.0"),
        wheel("torch", "2.13.0", "cuda-part", tag=tags["linux"]),
        wheel("cuda-part", "1.0"),
        wheel("torch", "2.13.0", tag=tags["windows"]),
        wheel("torch", "2.13.0", tag=tags["macos"]),
    )
    publish(shelf / "cpu", wheel("torch", "2.13.0+cpu", tag=tags["linux"]))
    (shelf / "constraints.txt").write_text("# comment\ntorch==2.13.0\nDrawing==1.0\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classroom, "KIT", "imp-kit")
        patch.setattr(classroom, "CONSTRAINTS", {PYTHON: str(shelf / "constraints.txt")})
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_INDEX_URL", (shelf / "simple").as_uri())
        for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
            patch.delenv(name, raising=False)
        yield shelf


def fill(shelf, folder, *systems):
    """Run the program; returns its exit code."""
    cpu = (shelf / "cpu").as_uri()
    return classroom.main([str(folder), "--systems", *systems, "--pythons", PYTHON, "--torch-cpu", cpu])


def names(folder):
    return sorted(path.name for path in (folder / "wheels").glob("*"))


@pytest.fixture(scope="module")
def whole(shelf, tmp_path_factory):
    """The folder for all systems, made once."""
    folder = tmp_path_factory.mktemp("class") / "whole"
    assert fill(shelf, folder, *PLATFORMS) == 0
    return folder


def test_each_system_gets_what_it_needs_there(whole):
    pure = ["drawing-1.0", "formats-1.0", "imp_kit-0.1.0", "ipywidgets-8.1", "jupyterlab-4.6", "nap-1.0", "server-2.1"]
    expected = [f"{name}-py3-none-any.whl" for name in (*pure, "web-1.0")] + ["console-3.1-py3-none-win_amd64.whl"]
    expected += [f"torch-2.13.0+cpu-{CPYTHON}-{CPYTHON}-{PLATFORMS['linux']}.whl"]
    expected += [f"torch-2.13.0-{CPYTHON}-{CPYTHON}-{PLATFORMS[system]}.whl" for system in ("windows", "macos")]
    assert names(whole) == sorted(expected)


@pytest.mark.parametrize(("system", "own"), [("linux", set()), ("windows", {"console"}), ("macos", {"nap"})])
def test_a_system_alone_has_no_package_of_another(shelf, whole, system, own):
    """From the full folder, so that nothing is fetched."""
    target = classroom.Target(classroom.SYSTEMS[system], PYTHON)
    found = classroom.collect(target, whole / "wheels", "nowhere:")
    assert {wheel.name.partition("-")[0] for wheel in found} == EVERYWHERE | own
    assert all(PLATFORMS[system] in wheel.name for wheel in found if wheel.name.startswith("torch-"))


def test_the_folder_says_what_it_holds_and_how_to_install(whole):
    text = (whole / "INSTALL.txt").read_text("utf-8")
    assert text.isascii()
    assert all(f"{system.title}, Python {PYTHON}" in text for system in classroom.SYSTEMS.values())
    assert 'pip install --no-index --find-links wheels "imp-kit[notebooks]" "jupyterlab" "ipywidgets"\n' in text
    originals = classroom.ROOT / "notebooks"
    copied = {path.relative_to(whole / "notebooks") for path in (whole / "notebooks").rglob("*.ipynb")}
    assert copied == {path.relative_to(originals) for path in originals.rglob("*.ipynb") if "." not in path.parts[0]}
    assert len(copied) >= 5


def test_a_second_run_fetches_only_what_is_missing_or_broken(shelf, whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / "class")
    before = {path.name: path.stat().st_ino for path in (folder / "wheels").glob("*") if "imp_kit" not in path.name}
    broken, lost = (next((folder / "wheels").glob(f"{name}-*")) for name in ("web", "server"))
    broken.write_bytes(broken.read_bytes()[:100])
    lost.unlink()
    assert fill(shelf, folder, "linux", "windows") == 0
    printed = capsys.readouterr().out
    assert f"removed {broken.name}: it is incomplete" in printed
    assert "removed 2 wheels of an earlier run" in printed  # of macOS
    assert f"{folder}: " in printed
    assert " MB" in printed
    assert names(folder) == [name for name in names(whole) if "macosx" not in name and "nap" not in name]
    after = {path.name: path.stat().st_ino for path in (folder / "wheels").glob("*")}
    same = after.keys() & before.keys() - {broken.name, lost.name}
    assert len(same) == 7
    assert all(after[name] == before[name] for name in same)


def test_a_package_without_a_wheel_is_named_with_its_system(shelf, whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / "class")
    next((folder / "wheels").glob("nap-*")).unlink()
    (shelf / "simple" / "nap").rename(shelf / "nap")
    try:
        assert fill(shelf, folder, "linux", "macos") == 1
    finally:
        (shelf / "nap").rename(shelf / "simple" / "nap")
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"macOS 14 or newer (Apple silicon), Python {PYTHON}: no wheel of nap was found."
    assert second == f"The same command goes on with what is in {folder}."


def test_without_a_network_that_is_said(shelf, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens there
    monkeypatch.setenv("PIP_RETRIES", "1")
    assert fill(shelf, tmp_path, "linux") == 1
    assert "The kit's own wheel: no wheel of imp-kit was found. pip could not reach" in capsys.readouterr().err


def test_versions_that_contradict_are_named(shelf, tmp_path, capsys, monkeypatch):
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\ndrawing==1.0\nserver==2.1\njupyterlab==4.6\nweb==1.0\n")
    monkeypatch.setattr(classroom, "NEEDS", (*classroom.NEEDS, "web>=3"))
    monkeypatch.setattr(classroom, "CONSTRAINTS", {PYTHON: str(tmp_path / "constraints.txt")})
    assert fill(shelf, tmp_path / "class", "windows") == 1
    assert "The class needs web>=3, but 1.0 was chosen" in capsys.readouterr().err


def test_a_folder_with_other_files_is_left_alone(shelf, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert fill(shelf, tmp_path, "linux") == 1
    assert f"{tmp_path} holds other files" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_place_of_the_folder_is_left_alone(shelf, tmp_path, capsys):
    file = tmp_path / "thesis.txt"
    file.write_text("mine")
    assert fill(shelf, file, "linux") == 1
    assert f"{file} is a file: choose a new folder." in capsys.readouterr().err


def start(folder, home):
    """Run the folder's start.py as somebody whose home is another folder, with no index."""
    settings = {**os.environ, "HOME": str(home), "USERPROFILE": str(home), "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    command = [sys.executable, folder / "start.py"]
    return subprocess.run(command, env=settings, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="the tiny torch of this test is for Linux"
)
def test_start_installs_once_and_keeps_the_readers_notebooks(whole, tmp_path):
    done = start(whole, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    home = tmp_path / "imp-kit-classroom"
    code = "import imp_kit, torch, drawing; print(imp_kit.__file__, torch.__version__, drawing.__version__)"
    python = home / "environment" / "bin" / "python"
    printed = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert str(home) in printed
    assert printed.split()[1:] == ["2.13.0+cpu", "1.0"]
    mine = home / "notebooks" / "00_setup.ipynb"
    assert mine.read_bytes() == (whole / "notebooks" / "00_setup.ipynb").read_bytes()
    mine.write_text("my answers")
    assert "Installing" in done.stdout
    again = start(whole, tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    assert "Installing" not in again.stdout
    assert mine.read_text() == "my answers"


def test_start_says_what_the_folder_is_not_for(whole, tmp_path):
    for name in names(whole):
        if name.startswith("torch-"):
            (whole / "wheels" / name).rename(tmp_path / name)
    try:
        done = start(whole, tmp_path)
    finally:
        for torch in tmp_path.glob("torch-*"):
            torch.rename(whole / "wheels" / torch.name)
    assert done.returncode == 1
    assert f"no packages for Python {PYTHON} on {platform.system()}" in done.stderr
    assert not (tmp_path / "imp-kit-classroom").exists()


def test_make_passes_its_choices():
    choices = ["CLASSROOM=stick", "SYSTEMS=linux macos", "PYTHONS=3.12 3.13"]
    command = ["make", "--dry-run", "classroom", "VENV=/nowhere/venv", *choices]
    done = subprocess.run(command, cwd=classroom.ROOT, capture_output=True, text=True, check=True)
    (line,) = (line for line in done.stdout.splitlines() if "classroom.py" in line)
    assert " stick --systems linux macos --pythons 3.12 3.13 --torch-cpu https://" in line
