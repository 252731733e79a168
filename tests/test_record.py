"""Runs: every answer kept, none asked twice, nothing lost when a run is killed, failures apart."""

import codecs
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from quick import quick

import imp_kit
from imp_kit.experiments.drawings import draw, sample_scene
from imp_kit.experiments.runs import Case, Subject, _answered, _key, _outcome, read, read_head, run


class Echo:
    """A model that repeats the question, and counts."""

    def __init__(self, fails=()):
        self.asked, self.fails = [], set(fails)

    def ask(self, picture, question, **settings):
        self.asked.append(question)
        if question in self.fails:
            raise ValueError(f"no answer to {question}")
        return question.upper()


def cases(count, color="red"):
    picture = Image.new("RGB", (8, 8), color)
    return [Case(f"case {i}", picture, f"question {i}", {"kind": i % 2}, {"text": str(i)}, i) for i in range(count)]


def test_every_answer_is_kept_and_none_is_asked_twice(tmp_path):
    echo = Echo()
    records = run("echo", cases(5), Subject.of(echo), tmp_path / "run", settings={"max_new_tokens": 7})
    assert [record["answer"] for record in records] == [f"QUESTION {i}" for i in range(5)]
    assert [record["sample_id"] for record in records] == [f"case {i}" for i in range(5)]
    first = records[1]
    assert (first["factors"], first["truth"], first["seed"], first["status"]) == ({"kind": 1}, {"text": "1"}, 1, "ok")
    assert first["settings"] == {"max_new_tokens": 7}
    assert first["versions"]["imp-kit"] == imp_kit.__version__
    assert len(first["picture_sha256"]) == len(first["key"]) == 64
    assert run("echo", cases(5), Subject.of(echo), tmp_path / "run", settings={"max_new_tokens": 7}) == records
    assert len(echo.asked) == 5
    run("echo", cases(7), Subject.of(echo), tmp_path / "run", settings={"max_new_tokens": 7})
    assert echo.asked[5:] == ["question 5", "question 6"]


def test_a_changed_picture_or_question_is_asked_again(tmp_path):
    echo = Echo()
    run("echo", cases(3), Subject.of(echo), tmp_path / "run")
    run("echo", cases(3, "blue"), Subject.of(echo), tmp_path / "run")
    assert len(echo.asked) == 6
    assert len(read(tmp_path / "run")) == 3


def test_whatever_can_change_an_answer_changes_its_key():
    """One pixel, one letter, the dtype, the revision, the files, a setting: each alone; and nothing else does."""
    (case,) = cases(1)
    identity = {"checkpoint": "imp", "revision": "a", "files": "b", "dtype": "fp32", "device": "cpu"}
    pixel = case.picture.copy()
    pixel.putpixel((3, 3), (255, 0, 1))
    keys = [
        _key(case, identity, {}),
        _key(replace(case, drawn=pixel), identity, {}),
        _key(replace(case, drawn=lambda: case.picture.resize((8, 9))), identity, {}),
        _key(replace(case, drawn=None), identity, {}),
        _key(replace(case, question=case.question + "?"), identity, {}),
        *(_key(case, identity | {name: "other"}, {}) for name in identity),
        _key(case, identity, {"max_new_tokens": 7}),
    ]
    assert len(set(keys)) == len(keys)
    assert _key(replace(case, id="other", factors={}, truth={}, seed=9), dict(identity), {}) == keys[0]


def test_a_run_with_a_changed_pixel_or_letter_asks_just_that_sample_again(tmp_path):
    echo, made = Echo(), cases(4)
    run("echo", made, Subject.of(echo), tmp_path / "run")
    pixel = made[1].picture.copy()
    pixel.putpixel((0, 0), (254, 0, 0))
    made[1] = replace(made[1], drawn=pixel)
    made[3] = replace(made[3], question="question 3?")
    run("echo", made, Subject.of(echo), tmp_path / "run")
    assert echo.asked[4:] == ["question 1", "question 3?"]


def test_nothing_changed_hits_all_and_loads_nothing_and_each_change_misses(tmp_path, monkeypatch):
    """With a checkpoint that would have to be loaded: the pixel and the letter cost one sample, the others all."""
    settings, made = {"max_new_tokens": 3}, cases(3)
    subject = Subject.of("imp-nano", device="cpu", dtype="fp32")
    first = run("nano", made, subject, tmp_path, settings=settings)

    def loaded(*args, **settings):
        raise AssertionError("loaded")

    monkeypatch.setattr("imp_kit.imp.load", loaded)
    again = Subject.of("imp-nano", device="cpu", dtype="fp32")
    assert run("nano", made, again, tmp_path, settings=settings) == first

    def missed(made, subject):
        keys = {case.id: _key(case, subject.identity, settings) for case in made}
        return keys.keys() - _answered(tmp_path, keys)

    assert missed(made, again) == set()
    pixel = made[1].picture.copy()
    pixel.putpixel((0, 0), (254, 0, 0))
    letter = made[1].question + "s"
    for changed in (replace(made[1], drawn=pixel), replace(made[1], question=letter)):
        assert missed([made[0], changed, made[2]], again) == {"case 1"}
        with pytest.raises(AssertionError, match="loaded"):
            run("nano", [made[0], changed, made[2]], again, tmp_path, settings=settings)
    revision = replace(again, identity=again.identity | {"revision": "another commit"})
    for other, message in ((Subject.of("imp-nano", device="cpu", dtype="bf16"), "dtype"), (revision, "revision")):
        assert missed(made, other) == {"case 0", "case 1", "case 2"}
        with pytest.raises(imp_kit.RunError, match=message):
            run("nano", made, other, tmp_path, settings=settings)


def test_scores_are_written_with_answers_only(tmp_path):
    echo = Echo(fails={"question 1"})
    records = run("echo", cases(3), Subject.of(echo), tmp_path, score=lambda record: {"long": len(record["answer"])})
    assert [record.get("long") for record in records] == [10, None, 10]
    assert read(tmp_path) == records


def test_failures_stand_apart_and_are_asked_again(tmp_path):
    echo = Echo(fails={"question 1"})
    records = run("echo", cases(4), Subject.of(echo), tmp_path / "run")
    assert [record["status"] for record in records] == ["ok", "error", "ok", "ok"]
    assert records[1]["error"] == "ValueError: no answer to question 1"
    assert "answer" not in records[1]
    echo.fails = set()
    assert run("echo", cases(4), Subject.of(echo), tmp_path / "run")[1]["answer"] == "QUESTION 1"
    assert echo.asked[4:] == ["question 1"]


def test_ten_failures_in_a_row_stop_a_run(tmp_path):
    echo = Echo(fails={f"question {i}" for i in range(3, 13)})
    with pytest.raises(imp_kit.RunError, match="10 samples in a row failed"):
        run("echo", cases(30), Subject.of(echo), tmp_path / "run")
    assert sum(record["status"] == "ok" for record in read(tmp_path / "run")) == 3
    assert sum(record["status"] == "error" for record in read(tmp_path / "run")) == 10


def test_a_half_written_line_is_dropped_with_a_notice_and_asked_again(tmp_path):
    echo = Echo()
    run("echo", cases(3), Subject.of(echo), tmp_path / "run")
    file = tmp_path / "run" / "samples.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="half written"):
        records = run("echo", cases(3), Subject.of(echo), tmp_path / "run")
    assert [record["answer"] for record in records] == [f"QUESTION {i}" for i in range(3)]
    assert echo.asked[3:] == ["question 2"]
    assert len(file.read_text().splitlines()) == 3


def test_another_runs_folder_is_refused_with_what_differs_in_words(tmp_path):
    settings = {"max_new_tokens": 7, "temperature": 0.5}
    folder = tmp_path / "run"

    def refused(experiment, subject, **more):
        with pytest.raises(imp_kit.RunError) as caught:
            run(experiment, cases(1), Subject.of(subject), folder, **({"settings": settings} | more))
        assert re.search("[0-9a-f]{9}", str(caught.value)) is None
        start, end = f"{folder} holds another run, with another ", ". Name a new folder for this run; or, to go on"
        assert str(caught.value).startswith(start)
        return str(caught.value).removeprefix(start).partition(end)[0]

    run("echo", cases(1), Subject.of(Echo()), folder, settings=settings)
    assert refused("other", Echo()) == "experiment (echo there, other here)"
    other = refused("echo", Echo(), settings={"max_new_tokens": 8})
    assert other == "setting of max_new_tokens (7 there, 8 here), setting of temperature (0.5 there, not set here)"
    assert refused("echo", Echo(), design={"seed": 2}) == "seed (not recorded there, 2 here)"
    moved = Echo()
    moved.identity = {"files": "1234abcd" + 56 * "0", "revision": "b" * 40, "dtype": "bfloat16"}
    assert refused("echo", moved) == (
        "revision (none there, bbbbbbbb… here), state of the checkpoint's files (none there, 1234abcd… here), "
        "dtype (none there, bfloat16 here)"
    )
    head = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**head, "imp-kit": "0.0.1"}))
    assert refused("echo", Echo()) == f"version of imp-kit (0.0.1 there, {imp_kit.__version__} here)"


def test_a_run_that_never_got_a_reply_does_not_keep_its_folder(tmp_path):
    """As after a misspelled address: the same folder takes the right one."""
    folder = tmp_path / "run"

    class Absent(Echo):
        identity: ClassVar = {"endpoint": "http://127.0.0.1:9/v1"}

        def ask(self, *_, **__):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("echo", cases(1), Subject.of(Absent()), folder)
    assert read_head(folder)["endpoint"] == "http://127.0.0.1:9/v1"
    run("echo", cases(1), Subject.of(Echo()), folder)
    assert "endpoint" not in read_head(folder)
    with pytest.raises(imp_kit.RunError, match="holds another run"):
        run("echo", cases(1), Subject.of(Absent()), folder)


def test_a_run_without_an_answer_can_be_deleted_and_the_error_says_so(tmp_path):
    """As the wrong name of a model at a server leaves it; but not a folder that holds something else, too."""
    first, other = Echo(fails={"question 0"}), Echo()
    other.name = "other"
    with_answer, without = tmp_path / "with", tmp_path / "without"
    run("echo", cases(2), Subject.of(first), with_answer)
    run("echo", cases(1), Subject.of(first), without)

    def refused(folder):
        with pytest.raises(imp_kit.RunError, match="holds another run, with another checkpoint") as caught:
            run("echo", cases(1), Subject.of(other), folder)
        return str(caught.value)

    assert refused(without).endswith("that it had. No answer is in it yet, so it can be deleted.")
    assert refused(with_answer).endswith("that it had.")
    (without / "notes.txt").write_text("mine")
    assert refused(without).endswith("that it had.")


def test_a_folder_that_holds_something_else(tmp_path):
    (tmp_path / "photo.txt").write_text("mine")
    with pytest.raises(imp_kit.RunError, match=r"no run\.json"):
        run("echo", cases(1), Subject.of(Echo()), tmp_path)
    run("echo", cases(1), Subject.of(Echo()), tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(imp_kit.RunError, match="cannot be read"):
        run("echo", cases(1), Subject.of(Echo()), tmp_path / "run")


def test_a_line_that_is_no_record(tmp_path):
    run("echo", cases(2), Subject.of(Echo()), tmp_path / "run")
    file = tmp_path / "run" / "samples.jsonl"
    file.write_text("no json\n" + file.read_text())
    with pytest.raises(imp_kit.RunError, match="line 1, is no record"):
        read(tmp_path / "run")


@pytest.mark.parametrize("name", ["sample_id", "key"])
def test_a_record_whose_id_is_no_text(tmp_path, name):
    run("echo", cases(1), Subject.of(Echo()), tmp_path / "run")
    file = tmp_path / "run" / "samples.jsonl"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: ["a"]}) + "\n")
    with pytest.raises(imp_kit.RunError, match="line 1, is no record"):
        read(tmp_path / "run")


def test_samples_that_cannot_be_a_run(tmp_path):
    with pytest.raises(imp_kit.RunError, match="no samples"):
        run("echo", [], Subject.of(Echo()), tmp_path / "run")
    with pytest.raises(imp_kit.RunError, match="same id"):
        run("echo", cases(1) * 2, Subject.of(Echo()), tmp_path / "run")
    with pytest.raises(imp_kit.SettingError, match="temperature"):
        run("echo", cases(1), Subject.of(Echo()), tmp_path / "run", settings={"temperature": -1})
    assert not (tmp_path / "run").exists()


FULL = """
import resource, sys
from PIL import Image
from imp_kit.errors import RunError
from imp_kit.experiments.runs import Case, Subject, run
class Echo:
    def ask(self, picture, question, **settings):
        return question.upper()
cases = [Case(f"case {i}", Image.new("RGB", (8, 8)), f"question {i}", {}, {}, i) for i in range(8)]
sys.dont_write_bytecode = True  # a compiled module that is cut off would stay so
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    run("echo", cases, Subject.of(Echo()), sys.argv[1])
except RunError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_full_disk_stops_the_run_with_what_is_saved(tmp_path):
    """The disk is played by a limit on the size of files, at which writing fails as on a full one, within a line."""
    pytest.importorskip("resource")
    command = [sys.executable, "-c", FULL, str(tmp_path / "run"), "2500"]
    message = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "samples.jsonl cannot be written" in message
    assert "Free disk space" in message
    assert (tmp_path / "run" / "samples.jsonl").stat().st_size == 2500
    kept = len(read(tmp_path / "run"))
    assert 2 <= kept < 8
    command[-1] = "1000000"
    subprocess.run(command, check=True, capture_output=True)
    assert [record["answer"] for record in read(tmp_path / "run")] == [f"QUESTION {i}" for i in range(8)]
    assert len((tmp_path / "run" / "samples.jsonl").read_text().splitlines()) == 8


def test_a_line_cut_within_a_japanese_character(tmp_path):
    class Echo:
        def ask(self, picture, question, **settings):
            return "赤いです"

    run("echo", cases(2), Subject.of(Echo()), tmp_path / "run")
    file = tmp_path / "run" / "samples.jsonl"
    content = file.read_bytes()
    file.write_bytes(content[: content.rindex("す".encode()) + 2])
    with pytest.warns(UserWarning, match="half written"):
        assert len(run("echo", cases(2), Subject.of(Echo()), tmp_path / "run")) == 2


def test_an_answer_to_an_earlier_picture_is_not_kept_when_the_new_one_fails(tmp_path):
    run("echo", cases(2), Subject.of(Echo()), tmp_path / "run")
    records = run("echo", cases(2, "blue"), Subject.of(Echo(fails={"question 1"})), tmp_path / "run")
    assert [record["status"] for record in records] == ["ok", "error"]
    again = Echo()
    run("echo", cases(2, "blue"), Subject.of(again), tmp_path / "run")
    assert again.asked == ["question 1"]


def test_what_several_processes_wrote_is_newer_than_what_was_joined(tmp_path):
    run("echo", cases(1), Subject.of(Echo()), tmp_path / "run")
    (old,) = read(tmp_path / "run")
    (tmp_path / "run" / "samples-0.jsonl").write_text(json.dumps(old | {"key": "new", "answer": "new"}) + "\n")
    assert read(tmp_path / "run")[0]["answer"] == "new"


class Backwards(Echo):
    """A server's order: answers come in another one than the questions."""

    def ask_each(self, pairs, **settings):
        asked = list(enumerate(pairs))
        for number, (picture, question) in reversed(asked):
            yield number, self.ask(picture, question)


def test_records_stand_in_the_order_of_the_cases_however_answers_came(tmp_path):
    """Also those of a run that went on; and those of an earlier version, which have no number, as they were."""
    for count in (3, 12):
        run("echo", cases(count), Subject.of(Backwards()), tmp_path / "run")
    file = tmp_path / "run" / "samples.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    arrived = [line["sample_id"] for line in lines]
    assert arrived == [f"case {i}" for i in (2, 1, 0, *range(11, 2, -1))]
    assert [record["sample_id"] for record in read(tmp_path / "run")] == [case.id for case in cases(12)]
    for line in lines[:3]:
        del line["number"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [record["sample_id"] for record in read(tmp_path / "run")] == [f"case {i}" for i in (2, 1, 0, *range(3, 12))]


def test_a_later_failure_replaces_no_answer_to_the_same(tmp_path):
    run("echo", cases(1), Subject.of(Echo()), tmp_path / "run")
    (answer,) = read(tmp_path / "run")
    failure = {name: value for name, value in answer.items() if name != "answer"} | {"status": "error", "error": "none"}
    (tmp_path / "run" / "samples-0.jsonl").write_text(json.dumps(failure) + "\n")
    assert read(tmp_path / "run") == [answer]


def test_an_object_can_name_what_else_changes_its_answers(tmp_path):
    echo = Echo()
    echo.identity = {"version": "1"}
    run("echo", cases(1), Subject.of(echo), tmp_path / "run")
    echo.identity = {"version": "2"}
    with pytest.raises(imp_kit.RunError, match=r"version \(1 there, 2 here\)"):
        run("echo", cases(1), Subject.of(echo), tmp_path / "run")


# Notes what it is about to ask, before it is asked.
SCRIPT = """
import sys
import numpy as np, torch
torch.set_num_threads(1)
from imp_kit.imp import Imp
from imp_kit.experiments.runs import Case, Subject, _digest, run
from imp_kit.experiments.drawings import draw, sample_scene
cases = []
for seed in range(int(sys.argv[2])):
    rng = np.random.default_rng(seed)
    picture, _ = draw(sample_scene(rng), rng)
    cases.append(Case(f"s{seed}", picture, "Describe the image.", {}, {}, seed))
ask_many = Imp.ask_many
def noted(imp, pairs, **settings):
    with open(sys.argv[1] + ".asked", "ab", buffering=0) as log:
        log.write("".join(_digest(picture) + "\\n" for picture, _ in pairs).encode())
    return ask_many(imp, pairs, **settings)
Imp.ask_many = noted
run("nano", cases, Subject.of("imp-nano", device="cpu", dtype="fp32"), sys.argv[1], batch_size=4,
    settings={"max_new_tokens": 12})
"""
BATCH = 4
SAME = ("sample_id", "prompt", "token_ids")


def essence(folder):
    return sorted([[record[name] for name in SAME] for record in read(folder)])


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    file = tmp_path_factory.mktemp("script") / "probe.py"
    file.write_text(SCRIPT)
    return file


@pytest.fixture(scope="module")
def undisturbed(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    subprocess.run([sys.executable, script, folder, "24"], check=True, stderr=subprocess.DEVNULL)
    return essence(folder)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_loses_nothing_and_asks_at_most_a_batch_again(script, undisturbed, tmp_path):
    """Killed three times with SIGKILL while it writes; then run to its end."""
    folder, log, chance = tmp_path / "killed", tmp_path / "killed.asked", random.Random(1)
    lines, kept, asked = folder / "samples.jsonl", set(), 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, script, folder, "24"], stderr=subprocess.DEVNULL)
        before, deadline = len(lines.read_bytes()) if lines.exists() else 0, time.time() + 120
        while process.poll() is None and time.time() < deadline:
            if lines.exists() and len(lines.read_bytes()) > before:
                break
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        records = [json.loads(line) for line in lines.read_text().split("\n")[:-1]]
        assert records
        assert len({record["sample_id"] for record in records}) == len(records)
        new = log.read_text().splitlines()[asked:]
        assert not kept.intersection(new), "what was on disk was asked again"
        assert len(new) - (len(records) - len(kept)) <= BATCH, "more than a batch was lost"
        kept, asked = {record["picture_sha256"] for record in records}, asked + len(new)
    subprocess.run([sys.executable, script, folder, "24"], check=True, stderr=subprocess.DEVNULL)
    assert essence(folder) == undisturbed
    assert len(lines.read_text().splitlines()) == 24
    assert not kept.intersection(log.read_text().splitlines()[asked:])
    assert len(log.read_text().splitlines()) <= 24 + 3 * BATCH


@pytest.mark.slow
def test_two_processes_make_the_same_run(script, undisturbed, tmp_path):
    pytest.importorskip("accelerate")
    folder = tmp_path / "two"
    # On a port that the system chooses, since a fixed one may be taken; by address, since a sandbox's own name may not
    # be known to it.
    place = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *place, script, folder, "24"]
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    chosen = {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": loopback}
    environment = {**os.environ, **chosen}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200)
    assert ended.returncode == 0, ended.stderr
    assert essence(folder) == undisturbed
    # Each process asked its share and nothing else.
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 24
    answered = re.findall(r"/(\d+) \[[^\]\r\n]*sample/s", ended.stderr)
    assert set(answered) == {"12"}
    assert sorted(file.name for file in folder.iterdir()) == ["run.json", "samples.jsonl"]


def test_an_answer_is_told_whole():
    imp = imp_kit.load("imp-nano", device="cpu", dtype="fp32")
    rng = np.random.default_rng(0)
    answer = imp.ask(draw(sample_scene(rng), rng)[0], "Describe the image.")
    outcome = _outcome(answer)
    assert outcome["token_ids"] == list(answer.token_ids)
    assert (outcome["prompt"], outcome["finish"], outcome["tokens"]) == (answer.prompt, answer.finish, answer.tokens)
    subject = Subject.of(imp)
    assert subject.identity == Subject.of("imp-nano", device="cpu", dtype="fp32").identity
    assert subject.get() is imp
    assert subject.place == "imp-nano"
    imp.quantize = "int8"
    assert Subject.of(imp).place is None
    assert Subject.of(imp).identity["dtype"] == "fp32+int8"
    assert Subject.of(Echo()).place is None


def test_settings_of_other_types_go_on_as_what_json_makes_of_them(tmp_path):
    settings = {"max_new_tokens": np.int64(7), "stop": ("a", "b")}
    echo = Echo()
    for _ in range(2):
        records = run("echo", cases(2), Subject.of(echo), tmp_path, settings=settings, design={"levels": (1, 2)})
    assert records[0]["settings"] == {"max_new_tokens": 7, "stop": ["a", "b"]}
    assert len(echo.asked) == 2


def test_half_a_character_in_an_answer_is_kept(tmp_path):
    class Half(Echo):
        def ask(self, picture, question, **settings):
            return super().ask(picture, question) + "\ud83d"

    half = Half()
    for _ in range(2):
        records = run("echo", cases(2), Subject.of(half), tmp_path)
    assert [record["answer"] for record in records] == ["QUESTION 0\ud83d", "QUESTION 1\ud83d"]
    assert len(half.asked) == 2


@pytest.mark.parametrize("head", ["[]", "{}", "5", "{"])
def test_a_head_that_tells_too_little_is_refused(tmp_path, head):
    (tmp_path / "run.json").write_text(head)
    with pytest.raises(imp_kit.ImpKitError, match=r"run\.json cannot be read"):
        run("echo", cases(1), Subject.of(Echo()), tmp_path)


@pytest.mark.parametrize("line", ["{}", "5", '{"sample_id": "case 0"}'])
def test_a_line_that_tells_too_little_is_refused(tmp_path, line):
    run("echo", cases(1), Subject.of(Echo()), tmp_path)
    with (tmp_path / "samples.jsonl").open("a") as out:
        out.write(f"{line}\n")
    with pytest.raises(imp_kit.ImpKitError, match="line 2, is no record"):
        read(tmp_path)


EDITORS = {
    "without the last line's end": lambda text: text[:-1],
    "blank lines": lambda text: b"\n" + text.replace(b"\n", b"\n\n \t\n"),
    "a mark at the start": lambda text: codecs.BOM_UTF8 + text,
    "a mark at the start, without the last line's end": lambda text: codecs.BOM_UTF8 + text[:-1],
    "CRLF": lambda text: text.replace(b"\n", b"\r\n"),
    "CRLF, without the last line's end": lambda text: text.replace(b"\n", b"\r\n")[:-2],
    "half of the last CRLF": lambda text: text.replace(b"\n", b"\r\n")[:-1],
    "CR": lambda text: text.replace(b"\n", b"\r"),
    "spaces at the ends of lines": lambda text: text.replace(b"\n", b"  \t\n")[:-1],
    "two files in one, the first without its last line's end": lambda text: text.replace(b"\n", b"", 1),
    "two files in one, the second with a mark": lambda text: text.replace(b"\n", b"\n" + codecs.BOM_UTF8, 1),
    "the whole twice": lambda text: text[:-1] + codecs.BOM_UTF8 + text,
}


@pytest.mark.parametrize("kind", quick(6, EDITORS))
def test_what_an_editor_changes_around_records_changes_none(tmp_path, kind):
    records = run("echo", cases(4), Subject.of(Echo()), tmp_path)
    file = tmp_path / "samples.jsonl"
    file.write_bytes(EDITORS[kind](file.read_bytes()))
    assert read(tmp_path) == records
    echo = Echo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        more = run("echo", cases(6), Subject.of(echo), tmp_path)
    assert more[:4] == records
    assert echo.asked == ["question 4", "question 5"]
    assert read(tmp_path) == more
    # The next record begins on a line of its own.
    assert [json.loads(line)["sample_id"] for line in file.read_bytes().splitlines()[-2:]] == ["case 4", "case 5"]


@pytest.mark.parametrize("left", [1, 40, -1])
@pytest.mark.parametrize("before", [b"", codecs.BOM_UTF8])
def test_half_a_record_behind_a_whole_one_costs_only_itself(tmp_path, left, before):
    """Cut anywhere, also just before its last brace, and glued to the record before it."""
    run("echo", cases(3), Subject.of(Echo()), tmp_path)
    file = tmp_path / "samples.jsonl"
    first, second, third = file.read_bytes().splitlines()
    file.write_bytes(before + first + b"\n" + second + third[:left])
    assert [record["sample_id"] for record in read(tmp_path)] == ["case 0", "case 1"]
    echo = Echo()
    with pytest.warns(UserWarning, match="half written"):
        assert len(run("echo", cases(3), Subject.of(echo), tmp_path)) == 3
    assert echo.asked == ["question 2"]
    assert file.read_bytes().startswith(before + first + b"\n" + second + b"\n{")


def test_zeros_that_a_crash_left_at_the_end_are_dropped(tmp_path):
    records = run("echo", cases(2), Subject.of(Echo()), tmp_path)
    with (tmp_path / "samples.jsonl").open("ab") as out:
        out.write(bytes(4096))
    assert read(tmp_path) == records
    with pytest.warns(UserWarning, match="half written"):
        assert run("echo", cases(3), Subject.of(Echo()), tmp_path)[:2] == records
    assert (tmp_path / "samples.jsonl").read_bytes().count(0) == 0


def test_a_file_that_a_shell_made_utf_16_is_named(tmp_path):
    run("echo", cases(2), Subject.of(Echo()), tmp_path)
    file = tmp_path / "samples.jsonl"
    file.write_text(file.read_text("utf-8"), "utf-16")
    with pytest.raises(imp_kit.RunError, match=r"samples\.jsonl was saved as UTF-16; save it as UTF-8"):
        read(tmp_path)


def test_many_records_on_one_line_are_read_in_time(tmp_path):
    run("echo", cases(1), Subject.of(Echo()), tmp_path)
    (record,) = read(tmp_path)
    lines = (json.dumps(record | {"sample_id": f"case {i}", "answer": "a" * 1000}) for i in range(4000))
    (tmp_path / "samples.jsonl").write_text("\r".join(lines))
    start = time.process_time()
    assert len(read(tmp_path)) == 4000
    assert time.process_time() - start < 5


def test_a_head_that_an_editor_saved_with_a_mark(tmp_path):
    run("echo", cases(1), Subject.of(Echo()), tmp_path)
    file = tmp_path / "run.json"
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes().replace(b"\n", b"\r\n"))
    assert read_head(tmp_path)["experiment"] == "echo"


def test_a_run_says_when_other_programs_use_the_cpus(tmp_path, capfd):
    """Beside the time that it expects."""

    class Slow(Echo):
        def ask(self, picture, question, **settings):
            time.sleep(0.5)
            return super().ask(picture, question)

    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    try:
        run("echo", cases(1), Subject.of(Slow()), tmp_path / "run")
    finally:
        for program in programs:
            program.kill()
            program.wait()
    assert re.search(
        r"s a sample, about \d+ s for 1\. This machine is busy: other programs use", capfd.readouterr().out
    )
