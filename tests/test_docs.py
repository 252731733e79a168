"""README.md and docs/: links lead somewhere, examples run, commands exist."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from imp_kit.tools.cli import parser

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("README*.md")), ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
LINES = re.compile(r"^    (?:\w+=\S+ )*(?:python -m imp_kit|imp-kit) (.+)", re.M)
INLINE = re.compile(r"`(?:\w+=\S+ )*(?:python -m imp_kit|imp-kit) (\w[^`]*)`")
EXAMPLES = [
    pytest.param(page, code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.+?)```", page.read_text("utf-8"), re.S))
]


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    links = LINK.findall(page.read_text("utf-8"))
    for target, anchor in links:
        file = page.parent / target if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"
    assert links or page.stem in ("CHANGELOG", "python")


@pytest.mark.parametrize(("page", "code"), EXAMPLES)
def test_examples_run(page, code, tmp_path, monkeypatch):
    """Each in a folder of its own, which holds the kit's pictures and one of a reader."""
    shutil.copytree(ROOT / "images", tmp_path / "images")
    Image.open(ROOT / "images" / "bus.png").save(tmp_path / "my_picture.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, page.name, "exec"), {})


def test_every_page_of_docs_is_linked_from_the_readme():
    linked = {target for target, _ in LINK.findall((ROOT / "README.md").read_text("utf-8"))}
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_exist(page):
    """Each line to copy is one that the kit's parser takes; what stands within a sentence may leave something out."""
    verbs = re.findall(r"[a-z][a-z-]*", parser().format_usage().split("...")[0] + parser().format_help())
    for command in INLINE.findall(page.read_text("utf-8")):
        assert command.split()[0] in verbs
    for command in LINES.findall(page.read_text("utf-8")):
        try:
            parser().parse_args(shlex.split(re.sub(r"\s+#.*", "", command)))
        except SystemExit:
            pytest.fail(f"{page.name}: the kit does not take {command}")


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    named = {name for page in PAGES for name in re.findall(r"(?:^    |`)make ([a-z-]+)", page.read_text("utf-8"), re.M)}
    assert named
    assert named <= targets


def test_the_build_without_cuda_is_installed_first_if_asked_for():
    """Else pip would take the build with CUDA, which the kit's own requirements also allow."""
    for setting in ("CPU=1", "CPU="):
        command = ["make", "--dry-run", "run", setting, "VENV=/nowhere/venv"]
        steps = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        installs = [line for line in steps if "pip install" in line]
        assert ["--index-url" in line for line in installs] == ([True, False] if setting == "CPU=1" else [False])
        assert all("--constraint constraints.txt" in line for line in installs)
