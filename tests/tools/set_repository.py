"""Where the kit is published: `python tests/tools/set_repository.py OWNER/NAME` writes another place into every file.

The one source is `Repository` in pyproject.toml. Badges, links and clone commands repeat it, because readers and Colab
need it in full; this command changes them all at once.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
ADDRESS = re.compile(rb"((?:github\.com|raw\.githubusercontent\.com|google\.com/github)/)([\w.-]+/[\w-]+)")


def repository(root: Path = ROOT) -> str:
    """OWNER/NAME, from pyproject.toml."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    return project["urls"]["Repository"].removeprefix("https://github.com/")


def project_files(root: Path = ROOT) -> list[Path]:
    """The files of a git checkout: those not yet added, too, but not the ignored ones."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
    return [root / name for name in sorted(set(names)) if (root / name).is_file()]


def set_repository(name: str, root: Path = ROOT) -> list[str]:
    """Write OWNER/NAME wherever the present one stands in an address; return the names of the changed files.

    Raises ValueError for what is no OWNER/NAME, and for a repository that some file links to already: its links could
    not be told from the kit's own afterwards.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w-]+", name):
        raise ValueError(f"{name!r} is not of the form OWNER/NAME, of letters, digits, - and _.")
    old, new = repository(root).encode(), name.encode()
    changed = {}
    for path in project_files(root):
        content = path.read_bytes()
        if old != new and any(found == new for _, found in ADDRESS.findall(content)):
            raise ValueError(f"{path.relative_to(root)} links to {name}: the kit cannot be told from it.")
        swapped = ADDRESS.sub(lambda match: match[1] + (new if match[2] == old else match[2]), content)
        if swapped != content:
            changed[path] = swapped
    for path, content in changed.items():
        path.write_bytes(content)
    return [str(path.relative_to(root)) for path in changed]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/tools/set_repository.py OWNER/NAME")
    try:
        print("changed:", ", ".join(set_repository(sys.argv[1])) or "none")
    except ValueError as error:
        sys.exit(str(error))
