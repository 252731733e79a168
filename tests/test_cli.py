"""python -m imp_kit, as a person types it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import imp_kit
from imp_kit.images import open_image
from imp_kit.tools.cli import main

IMAGES = Path(__file__).parent.parent / "images"
BUS, DOOR = str(IMAGES / "bus.png"), str(IMAGES / "door.png")
COLORS = "What are the colors of the bus in the image?"


def shell(*arguments, typed=""):
    return subprocess.run(
        [sys.executable, "-m", "imp_kit", *arguments], input=typed, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_ask_prints_the_answer_and_nothing_else_on_stdout():
    done = shell("ask", BUS, COLORS, "--checkpoint", "imp-nano", "--device", "cpu")
    assert (done.returncode, done.stdout) == (0, "The bus is red and white.\n")
    assert "imp-nano · cpu" in done.stderr


def test_caption(capsys):
    main(["caption", BUS, "--checkpoint", "imp-nano", "--device", "cpu"])
    assert capsys.readouterr().out == f"{imp_kit.load('imp-nano', device='cpu').caption(BUS)}\n"


def test_eight_bits(capsys):
    main(["ask", BUS, COLORS, "--checkpoint", "imp-nano", "--device", "cpu", "--dtype", "fp32", "--quantize", "int8"])
    printed = capsys.readouterr()
    assert printed.out == "The bus is red and white.\n"
    assert "cpu fp32+int8" in printed.err
    with pytest.raises(SystemExit, match="2"):
        main(["ask", BUS, COLORS, "--checkpoint", "imp-nano", "--quantize", "int4"])
    assert "quantize is 'int4'; give 'int8'" in capsys.readouterr().err


@pytest.mark.slow
def test_several_pictures_are_asked_in_turn_and_one_that_fails_does_not_end_it():
    done = shell("ask", BUS, "missing.png", DOOR, COLORS, "--checkpoint", "imp-nano", "--device", "cpu")
    imp = imp_kit.load("imp-nano", device="cpu")
    assert done.returncode == 2
    assert done.stdout == f"{BUS}: {imp.ask(BUS, COLORS)}\n{DOOR}: {imp.ask(DOOR, COLORS)}\n"
    assert "imp-kit: 'missing.png': no such file" in done.stderr


def test_a_forgotten_question_is_named(capsys, monkeypatch):
    monkeypatch.setattr("imp_kit.imp.fill", None)
    for arguments, message in (
        (["ask", BUS, DOOR], "is a file where the question should be"),
        (["ask", BUS, COLORS, DOOR], "The picture comes first"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert message in capsys.readouterr().err


def test_no_arguments_show_the_help():
    done = shell()
    assert (done.returncode, done.stdout) == (0, shell("--help").stdout)


def test_json_is_a_line_for_each_picture(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["caption", BUS, "missing.png", "--checkpoint", "imp-nano", "--device", "cpu", "--json"])
    answered, failed = map(json.loads, capsys.readouterr().out.splitlines())
    expected = imp_kit.load("imp-nano", device="cpu").caption(BUS)
    assert answered.keys() == {"picture", "question", *expected.to_dict()}
    assert [answered[name] for name in ("picture", "question", "text")] == [BUS, "Describe the image.", str(expected)]
    assert failed.keys() == {"picture", "question", "error"}
    assert "missing.png" in failed["error"]


@pytest.mark.slow
def test_json_of_a_place_and_of_a_chat(capsys):
    main(["locate", BUS, "the bus", "--checkpoint", "imp-nano", "--device", "cpu", "--json"])
    box = imp_kit.load("imp-nano", device="cpu").locate(BUS, "the bus")
    message = json.loads(capsys.readouterr().out)
    assert (message["phrase"], message["fractions"], message["pixels"]) == ("the bus", [*box.fractions], [*box.pixels])
    lines = shell("chat", BUS, "--checkpoint", "imp-nano", "--json", typed="Where is the bus?\nWhat is it?\n").stdout
    asked = [json.loads(line)["question"] for line in lines.splitlines()]
    assert asked == ["Where is the bus?", "What is it?"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["ask", BUS, "Wo ist er?"],
        ["ask", BUS, COLORS],
        ["locate", BUS, "the bus"],
    ],
)
def test_quiet_prints_the_answer_and_nothing_else(command):
    done = shell(*command, "--quiet", "--device", "cpu")
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, 1, "")
    assert shell("ask", "missing.png", COLORS, "--quiet").stderr.startswith("imp-kit: 'missing.png'")


@pytest.mark.slow
def test_a_question_or_phrase_may_come_from_stdin():
    nano = ("--checkpoint", "imp-nano", "--device", "cpu", "--quiet")
    assert shell("ask", BUS, "-", *nano, typed=f"{COLORS}\n").stdout == "The bus is red and white.\n"
    assert shell("locate", BUS, "-", *nano, typed="the bus").stdout == shell("locate", BUS, "the bus", *nano).stdout
    assert "The question is empty" in shell("ask", BUS, "-", *nano).stderr


@pytest.mark.slow
def test_what_the_kit_warns_of_is_one_line():
    done = shell("ask", BUS, "Wo ist der Bus?", "--checkpoint", "imp-nano", "--device", "cpu")
    warned, _ = done.stderr.splitlines()
    assert warned == (
        "imp-kit: imp-nano learned only simple English and knows few words of this question: expect no right answer."
    )


def test_swapped_arguments_are_named_before_anything_is_loaded(capsys, monkeypatch):
    monkeypatch.setattr("imp_kit.imp.fill", None)
    for command in ("ask", "locate"):
        with pytest.raises(SystemExit, match="2"):
            main([command, "Where is the bus?", BUS])
        assert "The picture comes first" in capsys.readouterr().err


@pytest.mark.slow
def test_chat_answers_as_the_verbs_do_and_ends_with_an_empty_line():
    """A line that cannot be asked is told, and the conversation goes on."""
    typed = "Where is the bus?\nwhat is <image>?\nWhat color is it?\n\nnot asked\n"
    done = shell("chat", BUS, "--checkpoint", "imp-nano", "--device", "cpu", typed=typed)
    chat = imp_kit.load("imp-nano", device="cpu").chat(BUS)
    expected = [str(chat.say("Where is the bus?")), str(chat.say("What color is it?"))]
    assert done.returncode == 0
    assert done.stdout.splitlines() == expected
    assert "marks the picture's place" in done.stderr


@pytest.mark.slow
def test_chat_ends_with_its_input():
    done = shell("chat", BUS, "--checkpoint", "imp-nano", typed="What is this?")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)


def test_checkpoints_lists_every_name(capsys):
    from imp_kit.checkpoints.hub import HUB_IDS

    main(["checkpoints"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*HUB_IDS, "imp-nano"])


@pytest.mark.slow
def test_locate_prints_the_box_and_draws_it(tmp_path):
    drawn = tmp_path / "box.png"
    done = shell("locate", BUS, "the bus", "--checkpoint", "imp-nano", "--device", "cpu", "--draw", str(drawn))
    box = imp_kit.load("imp-nano", device="cpu").locate(BUS, "the bus")
    assert box
    assert (done.returncode, done.stdout) == (0, f"{box} (pixels {', '.join(map(str, box.pixels))})\n")
    assert np.array_equal(np.asarray(open_image(drawn)), np.asarray(box.draw()))
    assert f"imp-kit: The picture with the box is in {drawn}.\n" in done.stderr


def test_locate_says_what_was_not_found_and_draws_nothing(tmp_path):
    arguments = ["locate", BUS, "the bus", "--checkpoint", "imp-nano", "--device", "cpu", "--max-new-tokens", "1"]
    done = shell(*arguments, "--draw", str(tmp_path / "box.png"))
    assert done.returncode == 1
    assert "not found" in done.stdout
    assert done.stderr.count("No picture is written, because nothing was found.\n") == 1
    assert not (tmp_path / "box.png").exists()
    assert "No picture" not in shell(*arguments).stderr


@pytest.mark.slow
def test_a_reader_that_stops_reading_is_no_failure():
    done = subprocess.run(
        f"{sys.executable} -m imp_kit checkpoints inspect imp-nano | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("imp-nano\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["doctor", "--why", " "], "give its text"),
        (["locate", BUS, " "], "name what to look for"),
        (["locate", BUS, "the bus", "--draw", "nowhere/box.png"], "cannot be saved"),
        (["locate", BUS, "the bus", "--draw", "box.pgn"], "cannot be saved"),
        (["ask", "missing.png", "What?"], "missing.png"),
        (["ask", BUS, ""], "empty"),
        (["ask", BUS, "What?", "--checkpoint", "imp-nanno"], "imp-nano"),
        (["ask", BUS, "What?", "--dtype", "fp7"], "fp7"),
        (["ask", BUS, "What?", "--device", "tpu-9"], "tpu-9"),
        (["ask", BUS, "What?", "--top-p", "3"], "top_p"),
        (["caption", BUS, "--max-new-tokens", "-1"], "max_new_tokens"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments if {"--checkpoint", "doctor"} & {*arguments} else [*arguments, "--checkpoint", "imp-nano"])
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert message in printed.err


def test_help_imports_no_torch():
    code = "import sys; from imp_kit.tools.cli import parser; parser(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "Show Imp a picture" in shell("--help").stdout


@pytest.mark.slow
def test_bytes_that_are_no_text_are_marked_instead_of_ending_a_chat():
    arguments = [sys.executable, "-m", "imp_kit", "chat", BUS, "--checkpoint", "imp-nano"]
    done = subprocess.run(arguments, input=b"What \xff?\nWhat is this?\n", capture_output=True, check=False)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)


def test_a_closed_stdout_is_no_fault():
    command = f"{sys.executable} -m imp_kit checkpoints >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["probe captcha --size smoke --checkpoint imp-nano --out {}", "report {}"])
def test_a_file_where_a_folder_is_needed_is_told_in_one_line(capsys, tmp_path, command):
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="2"):
        main(command.format(tmp_path / "file").split())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("imp-kit: ")
    assert "file" in line


def test_a_picture_is_not_saved_in_a_format_that_can_only_be_read(capsys, tmp_path):
    with pytest.raises(SystemExit, match="2"):
        main(["locate", BUS, "the bus", "--checkpoint", "imp-nano", "--draw", str(tmp_path / "box.psd")])
    assert "cannot be saved as" in capsys.readouterr().err


def test_a_question_of_bytes_that_are_no_text_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["ask", BUS, "caf\udce9?", "--checkpoint", "imp-nano"])
    assert "bytes that are no text; type it in UTF-8" in capsys.readouterr().err


def test_a_phrase_and_a_revision_without_sense_are_told_before_anything_is_loaded(capsys, monkeypatch):
    monkeypatch.setattr("imp_kit.imp.fill", None)
    for arguments, message in (
        (["locate", BUS, " . "], "name what to look for"),
        (["ask", BUS, COLORS, "--checkpoint", "imp-nano", "--revision", "main"], "'imp-nano' comes with the kit"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert message in capsys.readouterr().err


def test_the_console_command_is_the_same_as_the_module():
    """As pip installs it, beside this Python."""
    command = shutil.which("imp-kit", path=Path(sys.executable).parent)
    done = subprocess.run([command, "checkpoints"], capture_output=True, text=True, check=True)
    assert done.stdout == shell("checkpoints").stdout
    for arguments in (["--help"], ["ask", "--help"]):
        shown = subprocess.run([command, *arguments], capture_output=True, text=True, check=True).stdout
        assert shown.startswith("usage: imp-kit ")
        assert "python -m imp_kit" not in shown
