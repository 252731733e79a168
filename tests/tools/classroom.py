"""A folder for a class without a network: `make classroom`, or python tests/tools/classroom.py --help; online.

The folder holds wheels for several systems, the notebooks, how to install (INSTALL.txt), and start.py, which does it.
Each system's packages are found here from what the wheels themselves require, because `pip download` judges markers
such as `sys_platform == "win32"` by the system it runs on. Versions are those that the tests ran with; a package that
they lack, because only another system needs it, comes in the newest one. A wheel that is there is not fetched again.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email import message_from_bytes
from functools import cached_property
from pathlib import Path

from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version
from set_repository import ROOT, project_files

NEEDS = ("imp-kit[notebooks]", "jupyterlab", "ipywidgets")  # without the last, a bar of progress warns in red
KIT = ""  # what pip is given to build the kit; without it the files of this checkout
# The exact versions for each Python: tokenizers 0.15.2, for one, has no wheel for Windows with Python 3.13.
CONSTRAINTS = {"3.11": "constraints.txt", "3.12": "constraints.txt", "3.13": "constraints-newest.txt"}
MB = 1e6


class ClassroomError(Exception):
    """The folder could not be made; the text says what is missing and what to do."""


@dataclass(frozen=True)
class System:
    """What pip calls a system in a wheel's name, and Python in a marker."""

    title: str
    platforms: tuple[str, ...]
    markers: dict[str, str]


def _markers(os_name: str, sys_platform: str, platform_system: str, machine: str) -> dict[str, str]:
    names = {"os_name": os_name, "sys_platform": sys_platform, "platform_system": platform_system}
    fixed = {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    return {**names, **fixed, "platform_machine": machine, "platform_release": "", "platform_version": ""}


MANYLINUX = (*(f"manylinux_2_{minor}" for minor in range(28, 4, -1)), "manylinux2014", "manylinux2010", "manylinux1")
SYSTEMS = {
    "linux": System(
        "Linux (x86_64, glibc 2.28 or newer)",
        tuple(f"{name}_x86_64" for name in MANYLINUX),
        _markers("posix", "linux", "Linux", "x86_64"),
    ),
    "windows": System("Windows (x86_64)", ("win_amd64",), _markers("nt", "win32", "Windows", "AMD64")),
    "macos": System(
        "macOS 14 or newer (Apple silicon)",
        tuple(mac_platforms((14, 0), "arm64")),
        _markers("posix", "darwin", "Darwin", "arm64"),
    ),
}


@dataclass(frozen=True)
class Target:
    """A system with a Python version, such as 3.11."""

    system: System
    python: str

    def __str__(self) -> str:
        return f"{self.system.title}, Python {self.python}"

    @cached_property
    def tags(self) -> frozenset[Tag]:
        """The tags of the wheels that can be installed there."""
        version, abi = tuple(map(int, self.python.split("."))), f"cp{self.python.replace('.', '')}"
        platforms = self.system.platforms
        return frozenset(
            [*cpython_tags(version, [abi], platforms), *compatible_tags(version, abi, platforms)],
        )

    @cached_property
    def markers(self) -> dict[str, str]:
        full = f"{self.python}.0"
        versions = {"python_version": self.python, "python_full_version": full, "implementation_version": full}
        return {**self.system.markers, **versions}


def pins(python: str) -> dict[str, Version]:
    """The exact versions for a Python, by name."""
    lines = (ROOT / CONSTRAINTS[python]).read_text("utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def pip(arguments: Iterable[str | Path], what: str) -> None:
    """Run pip, show what it downloads, and raise ClassroomError where it fails; `what` is what it looks for."""
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check", "--progress-bar", "off"]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace")
        for line in process.stdout:
            if line.strip().startswith("Downloading"):
                print(line.rstrip(), flush=True)
        if process.wait():
            errors.seek(0)
            raise ClassroomError(explained(errors.read(), what))


def explained(errors: str, what: str) -> str:
    """What pip's error messages mean here."""
    _, absent, package = errors.partition("No matching distribution found for ")
    reason = f"no wheel of {package.split()[0]} was found" if absent else errors.strip().rpartition("\n")[2]
    network = " pip could not reach its package index: is there a network?" if "Retrying" in errors else ""
    return f"{what}: {reason}.{network}"


def build_kit(wheels: Path) -> None:
    """Write the kit's own wheel, built from the files that git knows or would add, in a copy: a build leaves files."""
    for old in wheels.glob("imp_kit-*.whl"):
        old.unlink()
    with tempfile.TemporaryDirectory() as folder:
        for path in () if KIT else project_files():
            copy = Path(folder) / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        pip(["wheel", "--no-deps", "--wheel-dir", wheels, KIT or folder], "The kit's own wheel")


def held(need: Requirement, target: Target, wheels: Path) -> tuple[Version, Path] | None:
    """The newest wheel there that fulfils a requirement on a system."""
    found = []
    for path in wheels.glob("*.whl"):
        name, version, _, tags = parse_wheel_filename(path.name)
        fits = name == canonicalize_name(need.name) and need.specifier.contains(version, prereleases=True)
        if fits and tags & target.tags:
            found.append((version, path))
    return max(found, default=None)


def required(wheel: Path, extras: Iterable[str], target: Target) -> Iterator[Requirement]:
    """What a wheel requires on a system, with these extras."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])
    for need in map(Requirement, lines):
        if need.marker is None or any(need.marker.evaluate({**target.markers, "extra": extra}) for extra in extras):
            yield need


def download(needs: Iterable[Requirement], target: Target, wheels: Path, torch_cpu: str) -> None:
    """Fetch the wheels that are missing; torch for Linux from the index that has it without CUDA."""
    missing = {str(need) for need in needs if not held(need, target, wheels)}
    torch = {text for text in missing if Requirement(text).name == "torch" and target.system is SYSTEMS["linux"]}
    options = ["--no-deps", "--only-binary", ":all:", "--python-version", target.python, "--dest", wheels]
    options += [part for name in target.system.platforms for part in ("--platform", name)]
    for names, index in ((missing - torch, []), (torch, ["--index-url", torch_cpu])):
        if names:
            pip(["download", *options, *index, *sorted(names)], str(target))


def wanted(need: Requirement, versions: dict[str, Version]) -> Requirement:
    """What to look for: the exact version, else any that the requirement allows.

    Without the marker, which holds for the system that the wheel is for: pip would judge it by this one.
    """
    version = versions.get(canonicalize_name(need.name))
    return Requirement(f"{need.name}=={version}" if version else f"{need.name}{need.specifier}")


def collect(target: Target, wheels: Path, torch_cpu: str) -> set[Path]:
    """Fetch all that NEEDS require on a system, in one version each; returns the wheels.

    Raises ClassroomError where a wheel is not to be had, or where two packages want different versions of a third.
    """
    versions, chosen, known = pins(target.python), {}, set()
    waiting = [("The class", need) for need in map(Requirement, NEEDS)]
    while waiting:
        new = {name: need for _, need in waiting if (name := canonicalize_name(need.name)) not in chosen}
        looked_for = {name: wanted(need, versions) for name, need in new.items()}
        download(looked_for.values(), target, wheels, torch_cpu)
        for name, need in looked_for.items():
            chosen[name] = held(need, target, wheels)
            if not chosen[name]:
                raise ClassroomError(f"{target}: no wheel of {need} was found.")
        following = []
        for asking, need in waiting:
            version, wheel = chosen[canonicalize_name(need.name)]
            if not need.specifier.contains(version, prereleases=True):
                raise ClassroomError(
                    f"{target}: {asking} needs {need.name}{need.specifier}, but {version} was chosen; write a "
                    f"version that suits all into {CONSTRAINTS[target.python]}."
                )
            if (wheel, extras := ("", *sorted(need.extras))) not in known:
                known.add((wheel, extras))
                following += [(wheel.name, asked) for asked in required(wheel, extras, target)]
        waiting = following
    return {wheel for _, wheel in chosen.values()}


def install_text(targets: Iterable[Target]) -> str:
    """INSTALL.txt."""
    listed = "\n".join(f"  {target}" for target in targets)
    needs = " ".join(f'"{need}"' for need in NEEDS)
    return f"""imp-kit: install without a network

The packages in this folder are for
{listed}

Python itself is not in this folder. "python --version" says which version you have.

1. Copy this folder to your computer. (From a stick it works too, but slowly.)
2. Open a terminal in the folder and type

     python start.py

   On Linux and macOS the command may be called python3, on Windows py. It makes a folder imp-kit-classroom in your
   home folder, installs the packages there, copies the notebooks there, and opens them in your browser. Later the
   same command only opens them. To remove everything, or to install it anew, delete the folder imp-kit-classroom.

In a Python environment of your own, one line is enough:

     python -m pip install --no-index --find-links wheels {needs}
"""


def prepare(folder: Path) -> Path:
    """Make the folder, or take it where an earlier run made it; returns the place for wheels, without broken ones."""
    if folder.exists() and not folder.is_dir():
        raise ClassroomError(f"{folder} is a file: choose a new folder.")
    if folder.exists() and any(folder.iterdir()) and not (folder / "start.py").exists():
        raise ClassroomError(f"{folder} holds other files: choose a new folder.")
    wheels = folder / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(__file__).with_name("classroom_start.py"), folder / "start.py")
    for wheel in wheels.glob("*.whl"):
        if not zipfile.is_zipfile(wheel):
            print(f"removed {wheel.name}: it is incomplete")
            wheel.unlink()
    return wheels


def make(folder: Path, targets: list[Target], torch_cpu: str) -> None:
    """Fill the folder; raises ClassroomError."""
    wheels = prepare(folder)
    (folder / "INSTALL.txt").write_text(install_text(targets), "utf-8")
    ignored = shutil.ignore_patterns(".*", "runs", "*.md")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", dirs_exist_ok=True, ignore=ignored)
    print("building the kit's own wheel", flush=True)
    build_kit(wheels)
    used: set[Path] = set()
    for target in targets:
        print(target, flush=True)
        found = collect(target, wheels, torch_cpu)
        print(f"  {len(found)} wheels, {sum(wheel.stat().st_size for wheel in found) / MB:.0f} MB", flush=True)
        used |= found
    unused = set(wheels.glob("*.whl")) - used
    for wheel in unused:
        wheel.unlink()
    if unused:
        print(f"removed {len(unused)} wheels of an earlier run, which nothing needs now")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / MB:.0f} MB. Copy it to a stick; INSTALL.txt in it says how to install.")


def main(arguments: list[str] | None = None) -> int:
    """Returns 1 where the folder could not be made."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="the folder to make, or to complete")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--pythons", nargs="+", choices=CONSTRAINTS, default=["3.11"])
    parser.add_argument("--torch-cpu", required=True, help="address of the index with torch for Linux without CUDA")
    options = parser.parse_args(arguments)
    targets = [Target(SYSTEMS[system], python) for system in options.systems for python in options.pythons]
    try:
        make(options.folder, targets, options.torch_cpu)
    except ClassroomError as error:
        print(f"{error}\nThe same command goes on with what is in {options.folder}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
