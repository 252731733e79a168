"""Names, hub ids and folders; the hub is a cache folder laid out as the hub lays it out."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import imp_kit
from imp_kit.checkpoints.hub import HUB_IDS, NANO_FOLDER, find, is_available
from imp_kit.imp import identify

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BUS = Path(__file__).parent.parent / "images" / "bus.png"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache, offline. Returns a function that puts the bundled files there under a hub id."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(hub_id: str, commit: str = COMMIT) -> Path:
        repo = tmp_path / f"models--{hub_id.replace('/', '--')}"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text(commit)
        snapshot = repo / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (repo / "blobs").mkdir()
        for number, file in enumerate(sorted(NANO_FOLDER.iterdir())):
            blob = repo / "blobs" / f"{number:064x}"
            shutil.copy(file, blob)
            (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / blob.name)
        return snapshot

    return put


@pytest.mark.parametrize(
    "name",
    ["imp-v1-3b", "IMP-V1-3B", "MILVLG/imp-v1-3b", "milvlg/Imp-v1-3b", "MILVLG/imp-v1-3b/", " imp-v1-3b "],
)
def test_names_and_hub_ids_lead_to_the_snapshot(hub, name):
    folder = hub("MILVLG/imp-v1-3b")
    snapshot = find(name)
    assert (snapshot.name, snapshot.folder, snapshot.revision) == ("MILVLG/imp-v1-3b", folder, COMMIT)


def test_a_checkpoint_in_the_cache_answers_and_tells_its_commit(hub):
    hub("MILVLG/imp-v1-3b")
    answer = imp_kit.load("imp-v1-3b", device="cpu", dtype="fp32").ask(BUS, "What is this?")
    assert (answer.checkpoint, answer.revision) == ("MILVLG/imp-v1-3b", COMMIT)
    here = imp_kit.load("imp-nano", device="cpu", dtype="fp32").ask(BUS, "What is this?")
    assert answer.token_ids == here.token_ids


def test_a_pinned_revision(hub):
    folder = hub("MILVLG/imp-v1-3b")
    assert find("imp-v1-3b", revision=COMMIT).folder == folder
    with pytest.raises(imp_kit.CheckpointError, match="at deadbeef is not on this machine"):
        find("imp-v1-3b", revision="deadbeef")


def test_a_folder_by_its_path_with_or_without_a_slash(hub, tmp_path):
    folder = hub("MILVLG/imp-v1-3b")
    assert find(folder).revision == find(f"{folder}/").revision == COMMIT
    assert find(folder).name == "MILVLG/imp-v1-3b"
    plain = tmp_path / "my-imp"
    shutil.copytree(NANO_FOLDER, plain)
    assert (find(plain).name, find(plain).revision) == ("my-imp", None)


def test_the_bundled_checkpoint():
    assert find("imp-nano").folder == NANO_FOLDER
    assert find("Imp-Nano").revision is None


@pytest.mark.parametrize("name", [*HUB_IDS, "somebody/their-imp"])
def test_offline_with_nothing_cached(hub, name):
    with pytest.raises(imp_kit.CheckpointError, match=r"hub cannot be reached.*imp-nano") as caught:
        find(name)
    assert HUB_IDS.get(name, name) in str(caught.value)


def test_whether_the_hub_has_it(hub):
    assert not is_available("MILVLG/imp-v1-3b")
    hub("MILVLG/imp-v1-3b")
    assert is_available("MILVLG/imp-v1-3b")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("imp-1.5-3b-phi", "imp-v1.5-3b-phi2"),
        ("imp-v1.5-3b", "imp-v1.5-3b-phi2"),
        ("imp-v1.5-2b", "imp-v1.5-2b-qwen1.5"),
        ("imp_v1_3b", "imp-v1-3b"),
        ("nano", "imp-nano"),
        ("gpt2", None),
        ("llava", None),
        ("./imp-v1-3b", None),
        ("/somewhere/else/imp-v1-3b", None),
        ("../imp-nano", None),
    ],
)
def test_an_unknown_name_gets_the_nearest_and_a_path_none(hub, asked, meant):
    with pytest.raises(imp_kit.CheckpointError) as message:
        find(asked)
    assert re.findall("Did you mean '(.+)'", str(message.value)) == ([meant] if meant else [])


@pytest.mark.parametrize("name", ["", "  ", None, 3, ["imp-nano"]])
def test_what_is_no_name(name):
    with pytest.raises(imp_kit.CheckpointError, match="is a name, a hub id or a folder"):
        find(name)


def test_a_file_instead_of_a_folder():
    with pytest.raises(imp_kit.CheckpointError, match="is a file; give the folder"):
        find(NANO_FOLDER / "config.json")


def test_a_folder_that_is_not_there(hub, tmp_path):
    with pytest.raises(imp_kit.CheckpointError, match="no folder"):
        find(tmp_path / "nothing" / "here")


def test_half_a_download_names_the_missing_file(hub):
    folder = hub("MILVLG/imp-v1-3b")
    (folder / "config.json").unlink()
    with pytest.raises(imp_kit.CheckpointError, match=r"has no config\.json"):
        imp_kit.load("imp-v1-3b", device="cpu")


# What a folder is called, and what is in it ---------------------------------------------------------------------


def test_every_way_to_a_folder_gives_one_identity(tmp_path, monkeypatch):
    """Relative, with dots, with a slash, by a link: one name and one digest."""
    plain = tmp_path / "here" / "my-imp"
    shutil.copytree(NANO_FOLDER, plain)
    (plain / "sub").mkdir()
    expected = identify(plain, device="cpu")
    assert expected["checkpoint"] == "my-imp"
    monkeypatch.chdir(plain)
    assert identify(".", device="cpu") == expected
    monkeypatch.chdir(plain / "sub")
    assert identify("..", device="cpu") == identify("../../my-imp/", device="cpu") == expected
    monkeypatch.chdir(tmp_path)
    for way in ("here/my-imp", "./here/my-imp/", "here/../here/my-imp", "here/my-imp/sub/.."):
        assert identify(way, device="cpu") == expected
        assert find(way).folder == plain
    (tmp_path / "deep").symlink_to(plain / "sub")  # what ".." leaves is where the link leads
    assert find("deep/..").folder == plain


def test_the_digest_is_of_the_files_that_are_loaded(tmp_path):
    plain = tmp_path / "my-imp"
    shutil.copytree(NANO_FOLDER, plain)
    digest = find(plain).digest()
    for name in ("notes.txt", "merges.txt", "vocab.json", "README.md", "evaluation.json", "other.json", "a.py"):
        (plain / name).write_text("not loaded", "utf-8")
        assert find(plain).digest() == digest, name
    for name in ("config.json", "tokenizer.json"):
        text = (plain / name).read_text("utf-8")
        (plain / name).write_text(text + "\n", "utf-8")
        assert find(plain).digest() != digest, name
        (plain / name).write_text(text, "utf-8")
    (plain / "generation_config.json").write_text("{}", "utf-8")
    assert find(plain).digest() != digest


NO_UTF8 = os.fsdecode(b"imp-\xff\xfe")


@pytest.fixture
def odd(tmp_path):
    """imp-nano in a folder whose name is no UTF-8."""
    folder = tmp_path / NO_UTF8
    try:
        shutil.copytree(NANO_FOLDER, folder)
    except OSError:
        pytest.skip("this disk takes UTF-8 only")
    return folder


def test_a_folder_whose_name_is_no_utf8(odd):
    """safetensors opens no such path; the error says so, and can itself be printed."""
    for call in (identify, imp_kit.load):
        with pytest.raises(imp_kit.CheckpointError, match="are no UTF-8.*Rename it") as caught:
            call(odd, device="cpu")
        assert str(caught.value).encode()
    assert find(odd).name == "imp-\\xff\\xfe"


@pytest.mark.parametrize(
    "command",
    [
        ["checkpoints", "inspect"],
        pytest.param(["ask", str(BUS), "a?", "--checkpoint"], marks=pytest.mark.slow),
        pytest.param(["probe"], marks=pytest.mark.slow),
    ],
)
def test_the_command_line_about_a_folder_whose_name_is_no_utf8(odd, tmp_path, command):
    if command == ["probe"]:
        command = ["probe", "captcha", "--size", "smoke", "--out", str(tmp_path / "run"), "--checkpoint"]
    done = subprocess.run([sys.executable, "-m", "imp_kit", *command, odd], capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"imp-kit: ")
    assert done.stderr.count(b"\n") == 1
    assert b"Rename it" in done.stderr


def test_a_run_in_a_folder_whose_name_is_no_utf8(tmp_path):
    from PIL import Image

    from imp_kit.experiments import runs as record

    out = tmp_path / os.fsdecode(b"run-\xff")
    case = record.Case("one", Image.new("RGB", (20, 20)), "What is this?", {}, {}, 1)
    for _ in range(2):  # and goes on
        subject = record.Subject.of("imp-nano", device="cpu")
        (done,) = record.run("trial", [case], subject, out, settings={"max_new_tokens": 2})
        assert done["status"] == "ok"


def test_an_object_whose_name_is_no_utf8(tmp_path):
    from PIL import Image

    from imp_kit.experiments import runs as record

    class Somebody:
        name = NO_UTF8

        def ask(self, picture, question, **settings):
            return NO_UTF8

    case = record.Case("one", Image.new("RGB", (20, 20)), "What is this?", {}, {}, 1)
    for _ in range(2):
        (done,) = record.run("trial", [case], record.Subject.of(Somebody()), tmp_path / "run")
        assert (done["status"], done["answer"]) == ("ok", NO_UTF8)


def test_a_run_keeps_the_whole_path_of_its_checkpoint(tmp_path, monkeypatch):
    from imp_kit.experiments import runs as record

    shutil.copytree(NANO_FOLDER, tmp_path / "my-imp")
    monkeypatch.chdir(tmp_path)
    assert record.Subject.of("my-imp", device="cpu").place == str(tmp_path / "my-imp")
    assert record.Subject.of("imp-nano", device="cpu").place == "imp-nano"
