"""The architecture, as the imports tell it: each room of the kit knows only the floors below."""

import ast
from pathlib import Path

import pytest

import imp_kit

ROOT = Path(imp_kit.__file__).parent
FLOORS = (  # from the ground up; rooms of one floor do not know each other
    ("errors", "interrupts", "picture_files"),
    (
        "images",
        "cpu_meter",
        "experiments.files",
        "extras",
        "experiments.markdown",
        "layouts",
        "linears",
        "machine",
        "prompts",
        "registry",
        "sampling",
        "stored",
    ),
    ("tokenizer_files", "model.config"),
    ("checkpoints", "tokens"),
    ("config_json", "model.vision", "model.decoder"),
    ("model.imp",),
    ("fitting", "model.graph"),
    ("published", "model.generate", "model.weights", "answers"),
    ("batches", "boxes", "threads"),
    ("assistant", "inspection"),
    ("official", "experiments.record"),
    ("bench", "doctor"),
    ("experiments.loading_calls",),
    ("experiments.loading", "experiments.captcha", "experiments.ocr", "nano.draw"),
    ("experiments.scores", "experiments.stats", "experiments.tokenized"),
    ("experiments.reading", "experiments.japanese"),
    ("experiments.plots",),
    ("experiments.report",),
    ("cli", "nano.outside"),
    ("__main__", "nano.text"),
    ("nano.lessons",),
    ("nano.labels",),
    ("nano.train", "nano.evaluate"),
    ("nano.card",),
    ("nano.__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


FILES = {room_of(file): file for file in ROOT.rglob("*.py") if file.name != "__init__.py"}


def imported(file: Path) -> set[str]:
    """The kit's rooms that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("imp_kit."):
            module = node.module.removeprefix("imp_kit.")
            # `from imp_kit.experiments import stats` names rooms of a folder, not things of a room.
            names |= {module} if module in FILES else {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("imp_kit.") for alias in node.names if alias.name.startswith("imp_kit.")}
    return names


def test_every_room_has_its_floor():
    assert FILES.keys() == FLOOR.keys()


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_a_room_imports_only_from_the_floors_below(room):
    assert {name for name in imported(FILES[room]) if FLOOR[name] >= FLOOR[room]} == set()


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_a_room_says_what_it_is_for(room):
    assert ast.get_docstring(ast.parse(FILES[room].read_text("utf-8")))
