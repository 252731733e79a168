"""Ctrl-C at any moment: no traceback, and what is kept and how to go on."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from quick import quick

from imp_kit.experiments.runs import read

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
# The command itself, after a sign of life.
COMMAND = "import runpy; print('alive', flush=True); runpy.run_module('imp_kit', run_name='__main__', alter_sys=True)"
# Until prepare() is called an interrupt leaves a traceback; so it is called here before the sign of life.
ALIVE = "from imp_kit.system.interrupts import prepare; prepare(); " + COMMAND
BAR = "(sample|picture)/s|s/(sample|picture)"
ENDED = {130, -signal.SIGINT}  # a shell gives 130 for both


def begin(*arguments, code: str = ALIVE) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Tests that run in the background of a shell ignore SIGINT, and so would what they start.
    take_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], preexec_fn=take_sigint, **pipes)
    assert process.stdout.readline() == "alive\n"
    return process


def probe(folder: Path, size: str = "smoke") -> list[str]:
    return ["probe", "captcha", "--checkpoint", "imp-nano", "--device", "cpu", "--size", size, "--out", str(folder)]


def said(errors: str) -> list[str]:
    """The lines on stderr but for the progress bar's."""
    return [line for line in re.split("[\r\n]+", errors) if line.strip() and not re.search(BAR, line)]


@pytest.mark.parametrize("seconds", quick(1, [0.3, 0.05, 1, 3]))
def test_an_interrupt_at_any_moment_is_one_line_at_most(tmp_path, seconds):
    process = begin(*probe(tmp_path / "run"))
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert "Traceback" not in errors
    assert process.returncode in ENDED or (process.returncode == 0 and "are answered" in output)
    assert len(said(errors)) <= 1


@pytest.mark.parametrize("module", quick(1, ["imp_kit.tools.cli", "torch", "numpy"]))
def test_an_interrupt_within_an_import_ends_in_silence(module):
    """Sent by the import itself, so that it comes neither before nor after."""
    code = (
        "import importlib.abc, os, signal, sys\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {module!r}:\n"
        "            sys.meta_path.remove(self)\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    process = begin("caption", "images/bus.png", "--checkpoint", "imp-nano", code=code + COMMAND)
    output, errors = process.communicate(timeout=300)
    assert (process.returncode in ENDED, output, errors) == (True, "", "")


@pytest.mark.slow
def test_an_interrupted_probe_says_what_is_kept_and_the_command_that_goes_on(tmp_path):
    folder = tmp_path / "a run's folder"
    process = begin(*probe(folder, "standard"))
    lines = folder / "samples.jsonl"
    while not (lines.exists() and lines.read_bytes().count(b"\n") >= 8):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    kept = len(read(folder))
    assert process.returncode in ENDED
    message = said(errors)[-1]
    found = re.fullmatch(
        r"imp-kit: stopped; (\d+) of (\d+) samples are answered and kept in (.*)\. To go on: (.*)", message
    )
    assert (int(found[1]), found[3]) == (kept, str(folder))
    assert "Traceback" not in errors
    assert sorted(file.name for file in folder.iterdir()) == ["run.json", "samples.jsonl"]
    # The command goes on: it begins with the next sample, and is stopped again.
    command = shlex.split(found[4])
    assert command[:3] == ["python", "-m", "imp_kit"]
    process = begin(*command[3:])
    while lines.read_bytes().count(b"\n") <= kept:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    again = re.search(r"stopped; (\d+) of (\d+) samples", errors)
    assert int(again[1]) > kept
    assert again[2] == found[2]
    assert len(lines.read_text("utf-8").splitlines()) == len(read(folder)) == int(again[1])


def test_an_interrupt_before_anything_was_asked_gives_the_command_back(tmp_path):
    code = (
        "import os, signal\n"
        "from imp_kit import imp as assistant\n"
        "def stop(*args, **settings): os.kill(os.getpid(), signal.SIGINT)\n"
        "assistant.identify = stop\n"
    )
    process = begin(*probe(tmp_path / "run"), code=code + COMMAND)
    _, errors = process.communicate(timeout=300)
    again = shlex.join(["python", "-m", "imp_kit", *probe(tmp_path / "run")])
    assert said(errors) == [f"imp-kit: stopped; nothing was asked yet. To go on: {again}"]
    assert process.returncode in ENDED


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run that came to its end."""
    folder = tmp_path_factory.mktemp("probe") / "run"
    begin(*probe(folder)).communicate(timeout=300)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.05, 0.5, 1, 2])
def test_an_interrupted_report_leaves_no_part_of_a_file(run, tmp_path, seconds):
    process = begin("report", run, "--out", tmp_path / "out")
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert "Traceback" not in errors
    assert process.returncode in ENDED or (process.returncode == 0 and "report.md" in output)
    left = {file.suffix for file in (tmp_path / "out").iterdir()} if (tmp_path / "out").exists() else set()
    assert left <= {".png", ".md"}


@pytest.mark.slow
def test_an_interrupted_loading_probe_says_what_is_kept(tmp_path):
    pytest.importorskip("transformers")
    from transformers import __version__

    table = tmp_path / "table.csv"
    process = begin("probe", "loading", "--versions", __version__, "--csv", table)
    while not (table.exists() and table.read_bytes().count(b"\n") > 1):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode in ENDED
    assert "Traceback" not in errors
    message = re.search(
        r"imp-kit: stopped; (\d+) of 37 calls were tried and are kept in .*table\.csv\. To go on: run", errors
    )
    assert int(message[1]) >= 1
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]
