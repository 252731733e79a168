"""docs/subjects.md: its table of systems says what doors.csv says, and its classes are those of transformers."""

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest
from packaging.version import Version

from imp_kit.checkpoints.registry import PUBLISHED
from imp_kit.experiments import claims
from imp_kit.tools.notebook import installed

PAGE = (Path(__file__).parent.parent / "docs" / "subjects.md").read_text("utf-8")
SYSTEMS = PAGE.partition("## Each system of the posts")[2]
MODELS = Path(importlib.util.find_spec("transformers").submodule_search_locations[0]) / "models"
PIN, NEWEST = "4.37.2", "5.24.0"


def rows(text):
    """The rows of all tables, each a dict from the heads of its columns to the cells."""
    found = []
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, re.M):
        head, _, *body = ([cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines())
        found += [dict(zip(head, cells, strict=True)) for cells in body]
    return found


def plain(cell):
    """A cell without code marks and without the address of its link."""
    return re.sub(r"\[(.+?)\]\(\S+\)", r"\1", cell).replace("`", "")


@cache
def folders():
    """Of each class in the installed transformers, the name of its folder; nothing is imported."""
    defined = re.compile(r"^class (\w+)\(", re.M)
    files = sorted(MODELS.glob("*/modeling_*.py"))
    return {name: file.parent.name for file in files for name in defined.findall(file.read_text("utf-8"))}


BY_NAME = {row["system"]: row for row in rows(SYSTEMS)}
WITH_CLASS = {name: row for name, row in BY_NAME.items() if "class" in row}


def test_a_system_has_one_row():
    assert len(BY_NAME) == len(rows(SYSTEMS)) > 40


@pytest.mark.parametrize("door", claims.table("doors").to_dict("records"), ids=lambda door: door["system"])
def test_a_row_says_what_the_kits_table_says(door):
    row = BY_NAME[door["system"]]
    assert door["door"] in re.split(r"; for transformers ", plain(row["name"]))
    assert row["state"] == ", ".join(filter(None, (door["state"], door["until"])))
    assert bool(door["transformers"]) == ("class" in row)


def test_a_row_that_the_kits_table_lacks_names_its_source():
    others = BY_NAME.keys() - set(claims.table("doors").system)
    assert len(others) > 10
    for name in others - WITH_CLASS.keys():
        assert "](https://" in BY_NAME[name]["name"] or plain(BY_NAME[name]["name"]).startswith("MILVLG/"), name


def test_every_checkpoint_of_the_kit_has_a_row():
    for name, known in PUBLISHED.items():
        (how,) = [row["how"] for row in BY_NAME.values() if plain(row["name"]) == known.hub_id]
        assert plain(how) == f"--checkpoint {name}"


@pytest.mark.parametrize("name", WITH_CLASS)
def test_transformers_has_the_class_where_the_page_says_so(name):
    row, version = WITH_CLASS[name], Version(installed("transformers"))
    column = {Version(PIN): PIN, Version(NEWEST): NEWEST}.get(version)
    if column is None:
        pytest.skip(f"the page says nothing of transformers {version}")
    folder = folders().get(plain(row["class"]))
    assert row[column] == ("yes" if folder else "no")
    named = claims.table("doors").set_index("system").transformers.get(name)
    assert None in (folder, named) or folder == named


@pytest.mark.parametrize("name", sorted(WITH_CLASS.keys() - set(claims.table("doors").system) - {"TinyLLaVA (1.4B)"}))
def test_names_that_the_kits_table_lacks_stand_in_the_source_of_transformers(name):
    if Version(installed("transformers")) != Version(NEWEST):
        pytest.skip(f"the page says so of transformers {NEWEST}")
    row = WITH_CLASS[name]
    files = (MODELS / folders()[plain(row["class"])]).glob("*.py")
    assert any(plain(row["name"]) in file.read_text("utf-8") for file in files)


def test_each_address_is_one_of_openais_protocol():
    table = [row for row in rows(PAGE) if "ADDRESS" in row]
    assert len(table) == 10
    for row in table:
        assert re.fullmatch(r"`https?://[\w.:/]*[^/]`", row["ADDRESS"])
        assert re.match(r"(tried|read)", row["tried or read"])
        assert f"**{row['system'].split(' (')[0]}.**" in PAGE.replace("**The kit itself.**", "**the kit itself.**")
