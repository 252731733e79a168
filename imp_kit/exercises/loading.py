"""Exercises of notebook 02."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from imp_kit.exercises import exercise, expect, list_of, result_of
from imp_kit.experiments.transformers_matrix.calls import CALLS, WORKS
from imp_kit.experiments.transformers_matrix.measure import Row, read_table

NAMES = (
    *("Imp-v1.5-3B-Phi2", "Imp-v1_5-3B-Phi2", "Imp-v1-5-3B-Phi2", "Imp-v15-3B-Phi2", "Imp-v1.5-4B-Phi3"),
    *("A.1", "B.1", "a.b.c", "ab.c"),
)
OWN_CODE = tuple(call.id for call in CALLS.values() if call.group == "code")


@exercise
def missing_module(answer: Any) -> str:
    """Which module is missing when transformers 4.37.2 loads the model "someone/tiny.model" from the hub?"""
    name = str(answer).removeprefix("ModuleNotFoundError: ").removeprefix("No module named ").strip(" '\"")
    parts = name.split(".")
    expect("/" not in name, "In the name of a module there is a dot for each slash.")
    expect(parts[0] == "transformers_modules", "All of these names begin with `transformers_modules`.")
    expect(parts[1:2] == ["someone"], "The second part is the folder of the owner, `someone`.")
    expect(parts[2:3] == ["tiny"], "The next part is what stands before the dot in `tiny.model`.")
    expect(len(parts) == 3, f"Python stops at the first part that it does not find, before {''.join(parts[3:4])!r}.")
    return "there is a folder tiny.model, and none that is called tiny."


@exercise
def safe_name(function: Callable[[str], str]) -> str:
    """A function of a model's name: a name without a dot, and another one for each model."""
    models: dict[str, str] = {}
    for name in NAMES:
        safe = result_of(function, name)
        expect(isinstance(safe, str) and safe.strip(), f"For {name!r} your function returns {safe!r}: not a name.")
        expect("." not in safe, f"{name!r} becomes {safe!r}, which still has a dot.")
        expect("/" not in safe, f"{name!r} becomes {safe!r}: a slash ends the name of a folder.")
        expect(
            safe not in models,
            f"{models.get(safe)!r} and {name!r} both become {safe!r}, so one would get the code of the other.",
        )
        expect(result_of(function, name) == safe, f"For {name!r} your function returns another name each time.")
        models[safe] = name
    return f"{len(NAMES)} models, {len(models)} names, and no dot."


@exercise
def versions_that_work(function: Callable[[Sequence[Row], list[str]], Iterable[str]]) -> str:
    """A function of the table's rows and of calls: the versions in which all of these calls work."""
    rows = read_table()
    found = {}
    for way in ("model-hub", "model-snapshot"):
        for calls in ([way], ["empty-cache", way], [way, *OWN_CODE]):
            found[way] = _versions_found(function, rows, calls)
    folder = ", ".join(found["model-snapshot"])
    return f"all of Imp's code runs by its name in {len(found['model-hub'])} versions, from the folder in {folder}."


def _versions_found(function: Callable[..., Any], rows: Sequence[Row], calls: list[str]) -> list[str]:
    """What the reader's function says of some calls, in the order of the table. Raises NotYet."""
    found = list_of(function, rows, list(calls))
    failing = {row.version for row in rows if row.call in calls and row.outcome != WORKS}
    versions = list(dict.fromkeys(row.version for row in rows))
    for version in found:
        expect(version in versions, f"{str(version):.60} is no version of the table, such as {versions[0]}.")
    named = " and ".join(calls) if len(calls) < 3 else f"the {len(calls)} calls of Imp's code"
    if wrong := [version for version in versions if version in found and version in failing]:
        expect(False, f"{named}: you return {wrong[0]}, but one of them does not work there.")
    if missed := [version for version in versions if version not in found and version not in failing]:
        expect(False, f"{named}: {missed[0]} is missing.")
    return [version for version in versions if version in found]
