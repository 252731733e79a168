"""Install imp-kit from this folder without a network, and open its notebooks: python start.py"""

import importlib.util
import platform
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOME = Path.home() / "imp-kit-classroom"
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
# How the names of wheels end that were made for this system.
ENDS = {("Linux", "x86_64"): "linux*_x86_64", ("Windows", "AMD64"): "win_amd64", ("Darwin", "arm64"): "macosx*_arm64"}


def check() -> None:
    """End with one sentence where the packages of this folder are for other systems or another Python."""
    system = (platform.system(), platform.machine())
    names = f"torch-*-cp{VERSION.replace('.', '')}-*{ENDS.get(system, 'none')}.whl"
    if not list((HERE / "wheels").glob(names)):
        sys.exit(
            f"This folder has no packages for Python {VERSION} on {' '.join(system)}; INSTALL.txt says what it has."
        )
    if not importlib.util.find_spec("ensurepip"):
        sys.exit(f"This Python cannot make environments. On Debian and Ubuntu: sudo apt install python{VERSION}-venv")


def install() -> Path:
    """Make the environment, install the packages, copy the notebooks that are not there; returns its Python."""
    environment = HOME / "environment"
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        print(f"Installing into {HOME}: this takes some minutes.", flush=True)
        venv.create(environment, with_pip=True)
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--find-links", HERE / "wheels", "imp-kit[notebooks]", "jupyterlab", "ipywidgets"]
    if subprocess.run(command, check=False).returncode:
        sys.exit("pip could not install the packages; its message above says why.")
    for notebook in (HERE / "notebooks").rglob("*.ipynb"):
        copy = HOME / "notebooks" / notebook.relative_to(HERE / "notebooks")
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(notebook, copy)
    return python


def main() -> None:
    """Check, install, open Jupyter."""
    check()
    python = install()
    print("Opening the notebooks. Ctrl-C here ends Jupyter.", flush=True)
    sys.exit(subprocess.run([python, "-m", "jupyterlab"], cwd=HOME / "notebooks", check=False).returncode)


if __name__ == "__main__":
    main()
