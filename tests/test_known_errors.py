"""The table of known errors, tried on messages as they are printed.

error_messages.jsonl holds the messages: `part` "dev" and "held back" are from public trackers, at the address `source`.
Those held back had no part in the table as it was first written, which knew 39 of 46, one of them by a wrong cause, and
none of 21 unrelated ones; rows for most of the others came then. "neighbour" are other wordings of the same faults,
from the libraries' sources and from trials. `cause` is how the right row's cause begins; a message of the group
"unrelated" has none, since no row may explain it.
"""

import ast
import json
import random
import re
import time
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

import imp_kit
from imp_kit.checkpoints.hub import HUB_IDS
from imp_kit.tools.doctor import TESTED, explain, known_errors

ROOT = Path(__file__).parent.parent
MESSAGES = [json.loads(line) for line in (ROOT / "tests" / "error_messages.jsonl").read_text("utf-8").splitlines()]
KNOWN = [entry for entry in MESSAGES if entry["group"] == "known"]
UNRELATED = [entry["message"] for entry in MESSAGES if entry["group"] == "unrelated"]
CAUSES = {known.explanation.cause for known in known_errors()}
SIGNS = [(row, sign) for row, known in enumerate(known_errors()) for sign in known.signs]
# Rows that say less than another one: they stand behind it, for what it does not know.
GENERAL = (
    "This name is not in the installed transformers",
    "The checkpoint's own code uses the cache of keys and values",
    "transformers does not find the checkpoint's own code among its modules",
    "The class of the model has no generate",
    "The checkpoint's own code, which runs with trust_remote_code=True",
    "The installed transformers does not know this kind of model",
    "A package that transformers imports is broken",
    "The installed huggingface_hub is too old",
    "This is neither a folder on this machine nor a hub id",
    "This Python does not have the package",
    "pip finds no version of this package",
    "The hub, or the server of a package, cannot be reached",
    "The name of the server is not found",
    "pip cannot reach the package index",
    "Only a notice about how answers are made",
    "The system ended the program",
    "The file with weights is cut short",
    "torch 2.6 and later load only numbers",
    "Windows cannot load a library",
    "Two installed packages do not fit",
    "The package accelerate is missing",
    "The disk is full",
    "A server answered too slowly",
    "The program asked a question where nobody can answer",
    "The GPU failed in the middle of the work",
    "A library of CUDA that torch",
    "The processor is too old",
)


def first_line(entry: dict) -> str:
    return entry["message"].strip().split("\n")[0][:60]


def fitting(message: str) -> list[str]:
    """The causes of all rows that fit a message, in their order."""
    return [known.explanation.cause for known in known_errors() if known.fits(message, message)]


@pytest.mark.parametrize("entry", KNOWN, ids=first_line)
def test_a_known_message_is_explained_by_its_own_row(entry):
    assert sum(cause.startswith(entry["cause"]) for cause in CAUSES) == 1
    assert explain(entry["message"]).cause.startswith(entry["cause"])


@pytest.mark.parametrize("message", UNRELATED, ids=lambda message: message.strip().split("\n")[0][:60])
def test_an_unrelated_message_is_not_explained(message):
    assert explain(message) is None


def test_the_collection_is_as_it_says():
    assert {entry["part"] for entry in MESSAGES} == {"dev", "held back", "neighbour"}
    assert all(entry.keys() == {"message", "source", "group", "part", "cause"} for entry in MESSAGES)
    assert all(entry["source"].startswith("https://") for entry in MESSAGES if entry["part"] != "neighbour")
    assert all((entry["cause"] is None) == (entry["group"] == "unrelated") for entry in MESSAGES)
    assert len({entry["message"] for entry in MESSAGES}) == len(MESSAGES)


def test_every_row_explains_a_message():
    explained = {id(explain(entry["message"])) for entry in KNOWN}
    assert [known.explanation.cause for known in known_errors() if id(known.explanation) not in explained] == []


def test_of_two_rows_that_fit_a_message_the_second_says_less():
    doubts = {
        (entry["message"], cause)
        for entry in KNOWN
        for cause in fitting(entry["message"])
        if not cause.startswith(entry["cause"]) and not cause.startswith(GENERAL)
    }
    assert doubts == set()
    assert [words for words in GENERAL if not any(cause.startswith(words) for cause in CAUSES)] == []


def test_a_row_is_short_and_says_how_it_was_checked():
    table = json.loads((Path(imp_kit.__file__).parent / "tools" / "known_errors.json").read_text("utf-8"))
    for row in table:
        assert row.keys() <= {"signs", "cause", "fix", "checked", "near"}
        assert re.fullmatch(r"tried|read: https://\S+", row["checked"])
        assert max(len(row["cause"]), len(row["fix"])) <= 330, row["cause"]
        assert len(row["signs"]) == len(set(row["signs"])) > 0
    assert len(table) > 200


def test_a_fix_names_what_there_is():
    """Commands, names of checkpoints and versions that the fixes speak of."""
    fixes = " ".join(known.explanation.fix for known in known_errors())
    assert set(re.findall(r"imp-v1[\w.-]+\w", fixes)) == {"imp-v1.5-3b-phi2"} <= HUB_IDS.keys()
    assert set(re.findall(r"transformers==([\d.]+)", fixes)) == {TESTED["transformers"][0]}
    assert set(re.findall(r"python -m imp_kit (\w+)", fixes)) == {"checkpoints", "doctor"}


def test_no_row_takes_the_cause_of_another_for_a_message():
    wrong = {
        known.explanation.cause: found.cause
        for known in known_errors()
        if (found := explain(known.explanation.cause)) and found != known.explanation
    }
    assert wrong == {}


def docstrings(file: Path) -> str:
    tree = ast.parse(file.read_text("utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return "\n".join(filter(None, (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))))


def test_what_the_kit_writes_about_itself_is_no_error():
    texts = {name: (ROOT / name).read_text("utf-8") for name in ("README.md", "CHANGELOG.md")}
    texts |= {str(file): docstrings(file) for file in (ROOT / "imp_kit").rglob("*.py")}
    found = {name: explanation for name, text in texts.items() if (explanation := explain(text))}
    found.pop(str(ROOT / "imp_kit" / "__init__.py"))  # begins as the kit's messages do, "imp-kit: "
    assert found == {}


@pytest.mark.parametrize("length", [100_000, pytest.param(400_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("row", range(len(known_errors())), ids=lambda row: known_errors()[row].explanation.cause[:40])
def test_a_long_text_takes_no_long_time(row, length):
    """Up to 400 kB on one line, half of it what the row's signs are made of, half what nearly fits them."""
    known = known_errors()[row]
    parts = [re.sub(r"\\[a-zA-Z]|[\\^$()\[\]{}|?*+]", "", sign.pattern)[:-1] for sign in known.signs]
    shuffled = random.Random(0).choices("".join(parts) + " 1a", k=length // 2)
    text = "".join(shuffled) + (" ".join(parts) + " ") * (length // 2 // (len(" ".join(parts)) + 1))
    start = time.process_time()
    known.fits(text, text)
    assert time.process_time() - start < 0.5 * (1 + len(known.signs))


def test_the_table_is_in_the_package():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"][
        "imp_kit.tools"
    ]
    assert any(fnmatch("known_errors.json", pattern) for pattern in data)
