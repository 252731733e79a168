"""Files of experiments on a disk that is full, or not ours: the old content or the new one, never a part."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import imp_kit
from imp_kit.experiments.files import appending, only_writer, write_whole
from imp_kit.experiments.japanese import probe as japanese
from imp_kit.experiments.runs import Case, Subject, read, run
from imp_kit.experiments.transformers_matrix import measure as loading

# A limit on the size of files, at which writing fails as on a full disk, in the middle of a file.
LIMITED = """
import resource, sys
from imp_kit.errors import ImpKitError
sys.path.insert(0, sys.argv[1])
{imports}
sys.dont_write_bytecode = True  # a compiled module that is cut off would stay so
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    {call}
except ImpKitError as error:
    print(type(error).__name__, error)
"""


def limited(limit: int, imports: str, call: str, *arguments) -> str:
    """What a process says whose files may have no more than so many bytes."""
    pytest.importorskip("resource")
    code = LIMITED.format(imports=imports, call=call)
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(limit), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("old", [None, b"what stood there before\n" * 9])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, old):
    file = tmp_path / "report.md"
    if old:
        file.write_bytes(old)
    call = ("from imp_kit.experiments.files import write_whole", "write_whole(sys.argv[3], 'new ' * 5000)")
    message = limited(10_000, *call, file)
    assert message.startswith(f"RunError {file} cannot be written (File too large). What was saved before is kept.")
    assert (file.read_bytes() if old else None) == old
    assert names(tmp_path) == (["report.md"] if old else [])
    assert limited(100_000, *call, file) == ""
    assert file.read_text() == "new " * 5000
    assert names(tmp_path) == ["report.md"]


def test_a_link_stays_a_link_and_a_new_file_has_the_rights_of_any_other(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "report.md").symlink_to(tmp_path / "disk" / "report.md")
    write_whole(tmp_path / "report.md", "half a character: \ud83d")
    assert (tmp_path / "report.md").is_symlink()
    assert (tmp_path / "disk" / "report.md").read_bytes() == b"half a character: \\ud83d"
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "disk" / "report.md").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_place_that_cannot_hold_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file" / "report.md", tmp_path / "none" / "report.md", tmp_path):
        with pytest.raises(imp_kit.RunError, match="cannot be written"):
            write_whole(place, "text")
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_at_the_end_of_a_file():
    with (
        appending(Path("/dev/full")) as append,
        pytest.raises(imp_kit.RunError, match=r"full cannot .*\(No space left on de"),
    ):
        append("text\n")


ECHO = """
from PIL import Image
from imp_kit.experiments.runs import Case, Subject, run
class Echo:
    def ask(self, picture, question, **settings):
        return question.upper()
cases = [Case(f"case {i}", Image.new("RGB", (8, 8)), f"question {i}", {}, {}, i) for i in range(3)]
"""
RUN = 'run("echo", cases, Subject.of(Echo()), sys.argv[3])'


@pytest.mark.parametrize("limit", [0, 100])
@pytest.mark.slow
def test_a_run_begins_again_after_a_disk_was_full_at_its_very_start(tmp_path, limit):
    message = limited(limit, ECHO, RUN, tmp_path / "run")
    assert f"{tmp_path / 'run' / 'run.json'} cannot be written" in message
    assert names(tmp_path / "run") == []
    assert "cannot be written" not in limited(100_000, ECHO, RUN, tmp_path / "run")
    assert len(read(tmp_path / "run")) == 3


class Echo:
    def __init__(self):
        self.asked = []

    def ask(self, picture, question, **settings):
        self.asked.append(question)
        return question.upper()


def echo_cases(count: int) -> list[Case]:
    return [Case(f"case {i}", Image.new("RGB", (8, 8)), f"question {i}", {}, {}, i) for i in range(count)]


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_damaged_head_of_a_run_is_explained_and_no_answer_is_lost(tmp_path, share):
    """As an earlier version, or a crash of the machine, could leave it."""
    run("echo", echo_cases(3), Subject.of(Echo()), tmp_path)
    whole = (tmp_path / "run.json").read_bytes()
    (tmp_path / "run.json").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(imp_kit.RunError, match="empty or damaged.*Delete this one file and run the same probe again"):
        run("echo", echo_cases(3), Subject.of(Echo()), tmp_path)
    (tmp_path / "run.json").unlink()
    echo = Echo()
    records = run("echo", echo_cases(4), Subject.of(echo), tmp_path)
    assert [record["answer"] for record in records] == [f"QUESTION {i}" for i in range(4)]
    assert echo.asked == ["question 3"]
    assert (tmp_path / "run.json").read_bytes() == whole


def test_answers_without_a_head_are_not_taken_for_another_run(tmp_path):
    run("echo", echo_cases(3), Subject.of(Echo()), tmp_path)
    (tmp_path / "run.json").unlink()
    other = Echo()
    other.identity = {"version": "2"}
    for cases, subject in ((echo_cases(2), Echo()), (echo_cases(3), other)):
        with pytest.raises(imp_kit.RunError, match=r"has no run\.json, and answers that this run does not ask for"):
            run("echo", cases, Subject.of(subject), tmp_path)
    with pytest.raises(imp_kit.RunError, match="no run.json, and answers"):
        run("echo", echo_cases(3), Subject.of(Echo()), tmp_path, settings={"max_new_tokens": 7})


def test_what_a_killed_writer_or_a_system_leaves_in_a_folder_is_no_obstacle(tmp_path):
    for name in ("run.json.0a1b2c3d.partial", ".DS_Store", "samples.jsonl"):
        (tmp_path / name).write_bytes(b"")
    assert len(run("echo", echo_cases(2), Subject.of(Echo()), tmp_path)) == 2


@pytest.mark.slow
def test_joining_the_files_of_several_processes_on_a_full_disk_loses_none(tmp_path):
    run("echo", echo_cases(3), Subject.of(Echo()), tmp_path)
    part = (tmp_path / "samples.jsonl").read_bytes()
    (tmp_path / "samples.jsonl").rename(tmp_path / "samples-0.jsonl")
    assert "samples.jsonl cannot be written" in limited(len(part) - 9, ECHO, RUN, tmp_path)
    assert names(tmp_path) == ["run.json", "samples-0.jsonl"]
    assert limited(100_000, ECHO, RUN, tmp_path) == ""
    assert (tmp_path / "samples.jsonl").read_bytes() == part
    assert names(tmp_path) == ["run.json", "samples.jsonl"]


@pytest.mark.slow
def test_a_report_and_its_pictures_stay_whole_on_a_full_disk(tmp_path):
    from planted import Planted

    from imp_kit.experiments import report

    subject = Planted(japanese.cases("smoke", 1, real=True), lambda case, rng: "はい。" * 9, 0)
    japanese.run(subject, "smoke", 1, tmp_path / "run")
    report.write([tmp_path / "run"], tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    call = ("from imp_kit.experiments.report import write", "write(sys.argv[3:4], sys.argv[4])")
    for limit in (3000, min(map(len, before.values())) - 1):
        assert "cannot be written" in limited(limit, *call, tmp_path / "run", tmp_path / "out")
        assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(imp_kit.RunError, match="file cannot be written"):
        report.write([tmp_path / "run"], tmp_path / "file")


@pytest.mark.slow
def test_a_form_for_raters_is_whole_or_not_there(tmp_path):
    """One that is there is left as it is, so that half of one would stay for good."""
    imports = "from imp_kit.experiments import japanese\nfrom planted import answered"
    call = (
        "japanese.write_form(japanese.samples(answered(japanese.cases('smoke', 1), lambda case, rng: 'はい', 0)), "
        "sys.argv[3])"
    )
    assert "ratings.csv cannot be written" in limited(200, imports, call, tmp_path / "ratings.csv")
    assert names(tmp_path) == []
    assert limited(100_000, imports, call, tmp_path / "ratings.csv") == ""
    assert (tmp_path / "ratings.csv").read_bytes().startswith(b"reply_id,question,reply,rating\r\n")


def test_the_loading_table_and_its_picture_on_a_full_disk(tmp_path):
    imports = "from pathlib import Path\nfrom imp_kit.experiments.transformers_matrix.measure import *"
    table = loading.TABLE.read_bytes()
    (tmp_path / "table.csv").write_bytes(table)
    (tmp_path / "table.png").write_bytes(b"old")
    message = limited(5000, imports, "write_table(read_table()[:300], Path(sys.argv[3]))", tmp_path / "table.csv")
    assert "table.csv cannot be written" in message
    message = limited(5000, imports, "save_plot(read_table(), sys.argv[3])", tmp_path / "table.png")
    assert "table.png cannot be written" in message
    assert (tmp_path / "table.csv").read_bytes() == table
    assert (tmp_path / "table.png").read_bytes() == b"old"
    assert names(tmp_path) == ["table.csv", "table.png"]


SLOW = """
import os, sys, time
from pathlib import Path
from PIL import Image
import imp_kit.settings  # before "ready", so that a run begins at once
from imp_kit.errors import RunError
from imp_kit.experiments.runs import Case, Subject, run
class Slow:
    def ask(self, picture, question, **settings):
        time.sleep(float(sys.argv[2]))
        while not Path(sys.argv[3]).exists():
            time.sleep(0.02)
        return f"{question} by {os.getpid()}"
cases = [Case(f"case {i}", Image.new("RGB", (8, 8)), f"question {i}", {}, {}, i) for i in range(20)]
print("ready", flush=True)
sys.stdin.readline()
try:
    run("slow", cases, Subject.of(Slow()), sys.argv[1])
except RunError as error:
    print(error)
"""


def writer(folder: Path, seconds: float, gate: Path = Path(".")) -> subprocess.Popen:
    """A process that is ready to ask twenty samples into a folder; each takes so long, and waits for `gate`."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(folder), str(seconds), str(gate)], **pipes, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen) -> str:
    said, errors = process.communicate("go\n", timeout=600)
    assert process.returncode == 0, errors
    return said


def answers(folder: Path) -> list[str]:
    lines = (folder / "samples.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["answer"] for line in lines]


def test_of_three_writers_at_once_one_writes_and_two_say_so(tmp_path):
    folder = tmp_path / "run"
    gate = tmp_path / "gate"
    processes = [writer(folder, 0, gate) for _ in range(3)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    end = time.monotonic() + 60
    while [process.poll() for process in processes].count(None) > 1 and time.monotonic() < end:
        time.sleep(0.02)
    gate.touch()
    said = [ended(process) for process in processes]
    refused = f"Another process is writing to {folder}. Wait until it has ended, or choose another folder"
    assert sum(text.startswith(refused) and text.count("\n") == 1 for text in said) == 2
    (owner,) = (p.pid for p, text in zip(processes, said, strict=True) if refused not in text)
    assert answers(folder) == [f"question {i} by {owner}" for i in range(20)]
    assert names(folder) == ["run.json", "samples.jsonl"]


@pytest.mark.slow
def test_three_writers_one_after_another_ask_nothing_twice(tmp_path):
    said = [ended(writer(tmp_path / "run", 0)) for _ in range(3)]
    assert [" s a sample, about " in text for text in said] == [True, False, False]
    assert len(answers(tmp_path / "run")) == 20


@pytest.mark.slow
def test_a_writer_that_was_killed_keeps_nobody_out(tmp_path):
    """Its lock ends with it, though its file stays; and so does one that nobody has had for days."""
    folder = tmp_path / "run"
    early, late = writer(folder, 0), writer(folder, 0)
    killed = writer(folder, 1)
    killed.stdin.write("go\n")
    killed.stdin.flush()
    while not (folder / "samples.jsonl").exists() or len(answers(folder)) < 2:
        assert killed.poll() is None
        time.sleep(0.02)
    assert ended(early).startswith("Another process is writing")
    killed.kill()
    killed.communicate()
    assert names(folder) == ["run.json", "run.lock", "samples.jsonl"]
    kept = answers(folder)
    assert "Another process" not in ended(late)
    assert answers(folder)[: len(kept)] == kept
    assert [answer.partition(" by ")[0] for answer in answers(folder)] == [f"question {i}" for i in range(20)]
    assert names(folder) == ["run.json", "samples.jsonl"]


def test_a_lock_is_free_again_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="mine"), only_writer(tmp_path / "lock", tmp_path):
            raise ValueError("mine")
    with (
        only_writer(tmp_path / "lock", "the folder"),
        pytest.raises(imp_kit.RunError, match="Another process is writing to the folder"),
        only_writer(tmp_path / "lock", "the folder"),
    ):
        pass
    assert names(tmp_path) == []


def test_one_writer_of_a_loading_table_at_a_time(tmp_path):
    table = tmp_path / "table.csv"
    busy = pytest.raises(imp_kit.RunError, match=r"Another process is writing to .*table\.csv")
    with only_writer(tmp_path / "table.csv.lock", table), busy:
        loading.measure(["4.37.2"], table)
    assert not table.exists()


def test_a_finished_run_in_a_folder_that_can_only_be_read_is_given_back(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    records = run("echo", echo_cases(2), Subject.of(Echo()), tmp_path)
    tmp_path.chmod(0o500)
    assert run("echo", echo_cases(2), Subject.of(Echo()), tmp_path) == records
    tmp_path.chmod(0o700)
