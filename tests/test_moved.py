"""Names of earlier versions: imports that notebooks and posts hold go on working, or say where the part is now."""

import subprocess
import sys
from importlib import import_module

import pytest

import imp_kit
from imp_kit.moved import GONE, MOVED

BUS = "images/bus.png"


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_gives_the_module_of_today(old):
    module = import_module(old)
    assert module is import_module(MOVED[old])
    assert module.__name__ == module.__spec__.name == MOVED[old]


@pytest.mark.parametrize("old", GONE)
def test_a_part_that_moved_says_where_it_is(old):
    with pytest.raises(ModuleNotFoundError, match=f"{old} is {GONE[old]} now"):
        import_module(old)
    assert import_module(GONE[old])


def test_an_old_name_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "imp_kit.doctor"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match="No module named 'imp_kit.nothing_like_it'"):
        import_module("imp_kit.nothing_like_it")


def test_names_by_which_the_kit_was_imported():
    from imp_kit.experiments.loading import read_table, save_picture
    from imp_kit.experiments.record import read

    from imp_kit.checkpoints import HUB_IDS, NANO, find
    from imp_kit.experiments.captcha import LEVELS, draw_code, sample_code

    assert find(NANO).name == NANO
    assert "imp-v1-3b" in HUB_IDS
    from imp_kit.doctor import WORKING

    from imp_kit.checkpoints import at_hand
    from imp_kit.experiments.plots import pictures

    assert all((at_hand, WORKING, pictures, LEVELS, draw_code, sample_code, read_table, save_picture, read))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        import_module("imp_kit.checkpoints").nothing  # noqa: B018


def test_a_picture_is_given_by_its_older_name():
    imp = imp_kit.load("imp-nano", device="cpu")
    answer = imp.ask(BUS, "What color is the bus?")
    assert imp.ask(picture=BUS, question="What color is the bus?") == str(answer)
    assert imp.look(picture=BUS).picture.size == imp.chat(picture=BUS).view.image.size
    with pytest.raises(TypeError, match="picture"):
        imp.look(image=BUS, picture=BUS)
    box = imp.locate(picture=BUS, phrase="the bus")
    assert box.picture is box.image


def test_an_editor_sees_the_public_names_and_no_torch_is_imported_for_it():
    code = "import sys, imp_kit; print(*dir(imp_kit)); assert 'torch' not in sys.modules"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"load", "Imp", "Answer", "Box", "Chat", "View", "bench", "doctor", "official"} <= set(names)
    assert all(name[0] != "_" or name == "__version__" for name in names)
    assert {"import_module", "sys"}.isdisjoint(names)
