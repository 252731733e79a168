"""The table of deliberate faults of tests/tools/faults.py is up to date; the tool itself takes minutes to try them."""

import re
from collections import Counter

import pytest
from faults import FAULTS, ROOT

# Modules without a fault of their own: nothing in them decides what comes out.
SPARED = {
    *("__init__.py", "__main__.py", "errors.py", "checkpoints/__init__.py"),
    *("experiments/captcha/__init__.py", "experiments/claims/__init__.py", "experiments/japanese/__init__.py"),
    *("experiments/ocr.py", "experiments/transformers_matrix/calls.py", "system/interrupts.py"),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_be_made_and_its_tests_are_there(fault):
    assert (ROOT / fault.file).read_text("utf-8").count(fault.old) == 1
    assert fault.new != fault.old
    assert fault.tests
    for test in fault.tests:
        file, name = test.split("::")
        assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text("utf-8"), re.M), test


def test_faults_have_names_of_their_own():
    assert [name for name, count in Counter(fault.name for fault in FAULTS).items() if count > 1] == []


def test_every_module_has_a_fault():
    kit = ROOT / "imp_kit"
    modules = {str(file.relative_to(kit)) for file in kit.rglob("*.py") if file.stat().st_size > 300}
    modules = {module for module in modules if not module.startswith("nano/")}
    assert modules - {fault.file.removeprefix("imp_kit/") for fault in FAULTS} == SPARED
