"""python -m imp_kit, as a person types it."""

import subprocess
import sys
from pathlib import Path

import pytest

from imp_kit.cli import main

IMAGES = Path(__file__).parent.parent / "images"
BUS = str(IMAGES / "bus.png")
COLORS = "What are the colors of the bus in the image?"


def shell(*arguments, typed=""):
    return subprocess.run(
        [sys.executable, "-m", "imp_kit", *arguments], input=typed, capture_output=True, text=True, check=False
    )


def test_ask_prints_the_answer_and_nothing_else_on_stdout():
    done = shell("ask", BUS, COLORS, "--checkpoint", "imp-nano", "--device", "cpu")
    assert (done.returncode, done.stdout) == (0, "The bus is red and white.\n")
    assert "imp-nano · cpu" in done.stderr


def test_caption(capsys):
    main(["caption", BUS, "--checkpoint", "imp-nano", "--device", "cpu"])
    assert capsys.readouterr().out == "The picture shows a red and white bus.\n"


def test_chat_ends_with_an_empty_line():
    done = shell("chat", BUS, "--checkpoint", "imp-nano", typed="Where is the bus?\nWhat color is it?\n\nnot asked\n")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2
    assert "red and white" in done.stdout.splitlines()[1]


def test_chat_ends_with_its_input():
    done = shell("chat", BUS, "--checkpoint", "imp-nano", typed="What is this?")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)


def test_checkpoints_lists_every_name(capsys):
    from imp_kit.checkpoints import HUB_IDS

    main(["checkpoints"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*HUB_IDS, "imp-nano"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ask", "missing.png", "What?"], "missing.png"),
        (["ask", BUS, ""], "empty"),
        (["ask", BUS, "What?", "--checkpoint", "imp-nanno"], "imp-nano"),
        (["ask", BUS, "What?", "--dtype", "fp7"], "fp7"),
        (["ask", BUS, "What?", "--device", "tpu-9"], "tpu-9"),
        (["ask", BUS, "What?", "--top-p", "3"], "top_p"),
        (["caption", BUS, "--max-new-tokens", "-1"], "max_new_tokens"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, told, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments if "--checkpoint" in arguments else [*arguments, "--checkpoint", "imp-nano"])
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert told in printed.err


def test_help_imports_no_torch():
    code = "import sys; from imp_kit.cli import parser; parser(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "Show Imp a picture" in shell("--help").stdout
