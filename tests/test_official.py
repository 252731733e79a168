"""The model card's route: the same tokens as the kit's, and no code is run unless it was trusted at a full commit.

Where transformers is one that the route refuses, the answers are skipped and the refusals are still tested.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from first_cell import NOTEBOOKS
from remote_code import COMMIT, HUB_ID, INSTALLED, REFUSED, put, route
from test_hub import hub as web  # noqa: F401 - a fixture

import imp_kit
from imp_kit.checkpoints.hub import NANO_FOLDER
from imp_kit.tools import official

IMAGES = Path(__file__).parent.parent / "images"
BUS, ASTRONAUT = IMAGES / "bus.png", IMAGES / "astronaut.jpg"
COLORS = "What are the colors of the bus in the image?"
QUESTIONS = (
    COLORS,
    "この男は何をしていますか?",
    "What text can you see in this image? Please tell me what is written.",
)
OTHER = "89abcdef0123456789abcdef0123456789abcdef"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, offline, and a place of its own for the code that transformers copies and imports."""
    from huggingface_hub import constants
    from transformers import dynamic_module_utils

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    forget_copies()  # of a test that had another place for them
    yield tmp_path / "hub"
    forget_copies()


def forget_copies():
    """What Python has imported of the code that transformers copied."""
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


def load(checkpoint=HUB_ID, **settings):
    settings = {"revision": COMMIT, "trust_remote_code": True, "device": "cpu", **settings}
    return official.load(checkpoint, **settings)


@pytest.fixture
def payload(tmp_path):
    """Code that leaves a file behind when it is run, and that file."""
    marker = tmp_path / "ran"
    return f"import pathlib\n\npathlib.Path({str(marker)!r}).touch()\n", marker


# Answers ---------------------------------------------------------------------------------------------------


@route
@pytest.mark.slow
def test_both_routes_give_the_same_tokens(cache):
    put(cache)
    theirs, ours = load(), imp_kit.load(HUB_ID, device="cpu", dtype="fp32")
    seen = set()
    for picture in (BUS, ASTRONAUT):
        for question in QUESTIONS:
            their = theirs.ask(picture, question, max_new_tokens=40)
            our = ours.ask(picture, question, max_new_tokens=40)
            assert their.token_ids == our.token_ids
            assert (their.prompt, their.finish, their.tokens) == (our.prompt, "length", 40)
            seen.add(their.token_ids)
    assert len(seen) == 6  # neither the picture nor the question is lost on the way


@route
@pytest.mark.slow
def test_the_cell_of_notebook_01_gives_the_kits_answer(cache, capsys):
    """The code as posts about Imp have it, with the switch on; for a CPU, and for files that lie here."""
    cells = nbformat.read(NOTEBOOKS / "01_captioning.ipynb", as_version=4).cells
    (source,) = (cell.source for cell in cells if cell.id == "hub")
    here = {'"MILVLG/imp-v1-3b"': repr(str(put(cache))), '"cuda"': '"cpu"', "float16": "float32", '"auto"': "None"}
    for old, new in {"RUN_HUB_CODE = False": "RUN_HUB_CODE = True", **here}.items():
        assert source.count(old) == 1
        source = source.replace(old, new)
    imp = imp_kit.load(HUB_ID, device="cpu", dtype="fp32")
    exec(source, {"imp_kit": imp_kit, "imp": imp, "bus": BUS})
    ours, theirs = capsys.readouterr().out.partition("The kit: ")[2].split("The hub's code: ")
    assert theirs.strip() == ours.strip()
    assert len(ours.strip()) > 50


@route
def test_both_routes_stop_at_the_same_token(cache):
    put(cache)
    ids = load().ask(BUS, COLORS, max_new_tokens=40).token_ids
    stop = next(place for place in range(5, 40) if ids[place] not in ids[:place])
    put(cache, eos_token_id=[ids[stop]])
    their = load().ask(BUS, COLORS)
    our = imp_kit.load(HUB_ID, device="cpu", dtype="fp32").ask(BUS, COLORS)
    assert their.token_ids == our.token_ids == ids[:stop]
    assert (their.finish, their.tokens) == (our.finish, our.tokens) == ("stop", stop + 1)


@route
def test_an_answer_tells_how_it_came_about(cache):
    put(cache)
    imp = load("imp-v1-3b", dtype="bf16")
    answer = imp.caption(BUS)
    assert (answer.checkpoint, answer.revision, answer.device, answer.dtype) == (HUB_ID, COMMIT, "cpu", "bf16")
    assert answer.prompt.endswith("USER: <image>\nDescribe the image. ASSISTANT:")
    assert min(answer.seconds.look, answer.seconds.prefill, answer.seconds.decode) > 0
    assert answer.tokens_per_second > 0
    assert answer.peak_memory > 50e6
    assert COMMIT in repr(imp)
    assert imp.ask(BUS, COLORS, max_new_tokens=1).tokens == 1


@pytest.mark.slow
@route
@pytest.mark.parametrize("owner", ["", "MILVLG/Imp-v1.5-3B-Phi2--"], ids=["plain", "its own repository"])
def test_a_dot_in_the_name_does_no_harm(cache, owner):
    put(cache, "MILVLG/Imp-v1.5-3B-Phi2", owner=owner)
    their = load("imp-v1.5-3b-phi2").ask(BUS, COLORS)
    our = imp_kit.load("imp-v1.5-3b-phi2", device="cpu", dtype="fp32").ask(BUS, COLORS)
    assert their.token_ids == our.token_ids


@route
def test_a_snapshot_folder_tells_its_commit(cache):
    folder = put(cache)
    assert load(folder, revision=None).ask(BUS, COLORS, max_new_tokens=3).revision == COMMIT
    with pytest.raises(imp_kit.CheckpointError, match="belongs to a hub id"):
        load(folder, revision=OTHER)


@route
def test_what_cannot_be_asked(cache):
    put(cache)
    imp = load()
    with pytest.raises(imp_kit.PromptError, match="empty"):
        imp.ask(BUS, " ")
    with pytest.raises(imp_kit.ImageError, match="no such file"):
        imp.ask(IMAGES / "buss.png", COLORS)
    with pytest.raises(imp_kit.SettingError, match="max_new_tokens is 0"):
        imp.ask(BUS, COLORS, max_new_tokens=0)


@route
@pytest.mark.usefixtures("cache")
@pytest.mark.slow
def test_a_named_commit_is_downloaded_with_its_code(web, tmp_path):  # noqa: F811
    server, _ = web
    server.files.clear()
    server.files |= {file.name: file.read_bytes() for file in put(tmp_path / "there").iterdir()}
    server.files["pytorch_model.bin"] = b"\x80pickle"
    server.revision = COMMIT
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_CACHE": str(tmp_path / "here"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }

    def run(revision: str | None) -> subprocess.CompletedProcess:
        code = (
            "from imp_kit import official\n"
            f"imp = official.load('imp-v1-3b', revision={revision!r}, trust_remote_code=True, device='cpu')\n"
            f"print(imp.ask({str(BUS)!r}, 'What is this?').revision)"
        )
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    unnamed = run(None)
    assert "holds no whole commit of it" in unnamed.stderr
    assert not (tmp_path / "here").exists()
    named = run(COMMIT)
    assert named.stdout.splitlines()[-1] == COMMIT, named.stderr
    here = {file.name for file in (tmp_path / "here").rglob("*.*")}
    assert {"modeling_imp.py", "configuration_imp.py", "model.safetensors"} <= here
    assert "pytorch_model.bin" not in here


# Refusals: the code leaves a file behind wherever it is run ------------------------------------------------


@route
def test_the_payload_would_run(cache, payload):
    """Without this, the tests below would be green for a payload that does nothing."""
    head, marker = payload
    put(cache, head=head)
    load()
    assert marker.exists()


def test_without_the_trust_flag(cache, payload):
    head, marker = payload
    put(cache, head=head)
    for trust in ({}, {"trust_remote_code": False}, {"trust_remote_code": "yes"}):
        with pytest.raises(imp_kit.SettingError, match="runs code from the hub on your machine"):
            official.load(HUB_ID, revision=COMMIT, device="cpu", **trust)
    assert not marker.exists()


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:7], COMMIT.upper(), COMMIT + "0", ""])
def test_without_a_full_commit_the_cached_one_is_named(cache, payload, revision):
    head, marker = payload
    folder = put(cache, head=head)
    with pytest.raises(imp_kit.CheckpointError, match="named in full") as caught:
        load(revision=revision)
    assert f"pass revision='{COMMIT}'" in str(caught.value)
    assert f"({folder}; code: configuration_imp.py, modeling_imp.py)" in str(caught.value)
    assert not marker.exists()


@pytest.mark.usefixtures("cache")
def test_without_a_commit_and_with_an_empty_cache():
    with pytest.raises(imp_kit.CheckpointError, match="The hub cache holds no whole commit of it"):
        load(revision=None)


def test_a_folder_that_tells_no_commit(cache, payload, tmp_path):
    head, marker = payload
    shutil.copytree(put(cache, head=head), tmp_path / "snapshots" / "mine")
    for folder in (tmp_path / "snapshots" / "mine", NANO_FOLDER, "imp-nano"):
        for revision in (None, COMMIT):
            with pytest.raises(imp_kit.CheckpointError, match="no commit tells which code"):
                load(folder, revision=revision)
    assert not marker.exists()


@pytest.mark.parametrize("version", ["4.37.2", "4.38.0", "4.39.3", "4.40.0.dev0", "4.41.2"])
def test_versions_that_are_right(version):
    official.check_version(version)


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("4.36.2", "page asks for 4.37.2"),
        ("4.37.1", "page asks for 4.37.2"),
        ("4.42.0.dev0", "are not in it"),
        ("4.57.6", "are not in it"),
        ("5.0.0rc1", "get wrong values"),
        ("5.24.0", "get wrong values"),
    ],
)
def test_versions_that_are_not(version, why):
    with pytest.raises(imp_kit.SettingError, match=why) as caught:
        official.check_version(version)
    assert f"transformers {version} is installed" in str(caught.value)
    assert "pip install transformers==4.37.2" in str(caught.value)
    assert "imp_kit.load()" in str(caught.value)


@pytest.mark.skipif(not REFUSED, reason=f"the route is right with transformers {INSTALLED}")
def test_the_installed_version_is_refused_before_code_runs(cache, payload):
    head, marker = payload
    put(cache, head=head)
    with pytest.raises(imp_kit.SettingError, match=f"transformers {INSTALLED} is installed"):
        load()
    assert not marker.exists()


def test_without_transformers(cache, monkeypatch):
    put(cache)
    # What importlib.metadata does where the package is not there, asked about one that is not.
    monkeypatch.setattr(official, "version", lambda _: importlib.metadata.version("no-such-package"))
    with pytest.raises(imp_kit.SettingError, match="needs transformers: pip install"):
        load()


@route
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: set_auto_map(folder, "google/gemma--modeling_imp.ImpForCausalLM"),
            "another repository, google/",
        ),
        (lambda folder: set_auto_map(folder, "../modeling_imp.ImpForCausalLM"), "has no code of its own"),
        (lambda folder: set_auto_map(folder, None), "has no code of its own"),
        (lambda folder: (folder / "modeling_imp.py").unlink(), r"has no modeling_imp\.py"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "only as pickles"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100), "is damaged"),
    ],
    ids=["another repository", "a path", "no code", "code not downloaded", "pickle", "damaged"],
)
def test_a_snapshot_that_does_not_fit_is_refused_before_its_code_runs(cache, payload, spoil, message):
    head, marker = payload
    spoil(put(cache, head=head))
    with pytest.raises(imp_kit.CheckpointError, match=message):
        load()
    assert not marker.exists()


def set_auto_map(folder: Path, reference: str | None) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["auto_map"]["AutoModelForCausalLM"] = reference
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


@route
def test_code_that_fails_is_told_in_one_line(cache):
    put(cache, head="raise RuntimeError('made for a test')\n")
    with pytest.raises(imp_kit.CheckpointError, match=r"does not load here \(RuntimeError: made for a test\)"):
        load()


@route
def test_a_device_and_a_dtype_that_are_not_there(cache):
    put(cache)
    with pytest.raises(imp_kit.SettingError, match="no device 'cuda:99'"):
        load(device="cuda:99")
    with pytest.raises(imp_kit.SettingError, match="dtype 'int8' is unknown"):
        load(dtype="int8")
