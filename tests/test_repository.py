"""The kit's address stands in many files and has one source; tests/tools/set_repository.py changes it everywhere."""

import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from set_repository import ADDRESS, ROOT, project_files, repository

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
# What can only be the kit: a page opened in Colab, something to clone or install, the project's name.
OURS = re.compile(rb"google\.com/github/([\w.-]+/[\w-]+)|(?:clone|git\+)[^\n]*?github\.com/([\w.-]+/[\w-]+)")
NAMED = re.compile(rb"github\.com/([\w.-]+/%s)(?![\w-])" % PROJECT["name"].encode())


def command(root, *arguments):
    return subprocess.run(
        [sys.executable, "tests/tools/set_repository.py", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in project_files(root)}


def addresses(files):
    return [found.decode() for content in files.values() for _, found in ADDRESS.findall(content)]


@pytest.fixture
def copy(tmp_path):
    """The whole project once more, as a git checkout."""
    for path, content in contents(ROOT).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    return tmp_path


def test_every_address_of_the_kit_is_that_of_pyproject():
    found = {}
    for path, content in contents(ROOT).items():
        names = [a or b for a, b in OURS.findall(content)] + NAMED.findall(content)
        if names:
            found[str(path)] = {name.decode() for name in names}
    assert {
        "README.md",
        "CITATION.cff",
        "docs/workshop.md",
        "pyproject.toml",
        "notebooks/00_setup.ipynb",
    } <= found.keys()
    assert {path: names for path, names in found.items() if names != {repository()}} == {}


def test_the_citation_agrees_with_the_project():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert [cited[key] for key in ("title", "license")] == [PROJECT["name"], PROJECT["license"]]
    assert str(cited["version"]) == PROJECT["version"]
    assert cited["abstract"].rstrip(".") == PROJECT["description"]
    assert cited["repository-code"] == PROJECT["urls"]["Repository"]


def test_one_command_changes_every_place_and_changes_it_back(copy):
    before, old, new = contents(copy), repository(), "someone-else/another_kit"
    done = command(copy, new)
    assert done.returncode == 0, done.stderr
    after = contents(copy)
    assert addresses(after) == [new if name == old else name for name in addresses(before)]
    assert [str(path) for path, content in after.items() if old.encode() in content] == []
    for path in after:
        assert (str(path) in done.stdout) == (after[path] != before[path]), path
    assert command(copy, old).returncode == 0
    assert contents(copy) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage"),
        (["one/two", "three"], "usage"),
        (["imp-kit"], "OWNER/NAME"),
        (["https://github.com/someone/kit"], "OWNER/NAME"),
        (["some one/kit"], "OWNER/NAME"),
        (["someone/kit.git"], "OWNER/NAME"),
        (["MILVLG/imp"], "links to MILVLG/imp"),
    ],
)
def test_what_is_no_name_or_anothers_changes_nothing(copy, arguments, message):
    before = contents(copy)
    done = command(copy, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert contents(copy) == before
