"""Downloading, from a small hub of our own on this machine: what is asked for, what breaks, what goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from loopback_hub import COMMIT, serve

from imp_kit.checkpoints.hub import NANO_FOLDER

BUS = Path(__file__).parent.parent / "images" / "bus.png"
FILES = {file.name: file.read_bytes() for file in NANO_FOLDER.iterdir()}
ASK = ("ask", str(BUS), "What is this?", "--checkpoint")
FILES |= {"modeling_imp.py": b"raise SystemExit('code of the hub ran')", "pytorch_model.bin": b"\x80pickle"}


@pytest.fixture
def hub(tmp_path):
    files = dict(FILES)
    with serve({"MILVLG/imp-v1-3b": files}, tmp_path) as (server, environment):
        server.files = files

        def run(*arguments: str) -> subprocess.CompletedProcess:
            command = [sys.executable, "-m", "imp_kit", *arguments]
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

        yield server, run


def test_a_name_downloads_weights_settings_and_tokenizer_and_no_code(hub, tmp_path):
    server, run = hub
    done = run(*ASK, "imp-v1-3b")
    assert done.returncode == 0, done.stderr
    assert done.stdout == run(*ASK, "imp-nano").stdout
    got = {path.rsplit("/", 1)[-1] for path in server.asked if "/resolve/" in path}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= got
    assert not got & {"modeling_imp.py", "pytorch_model.bin"}
    assert not [file for file in tmp_path.rglob("*") if file.suffix in (".py", ".bin")]


@pytest.mark.slow
def test_only_what_is_needed_comes_and_its_size_is_told_before(hub, tmp_path):
    server, run = hub
    needless = ("tower/config.json", "tower/model.safetensors", "notes.txt", "other.json", "._config.json")
    server.files |= dict.fromkeys(needless, b"not needed")
    done = run(*ASK, "imp-v1-3b")
    assert done.returncode == 0, done.stderr
    needed = ("config.json", "model.safetensors", "tokenizer.json")
    size = sum(len(server.files[name]) for name in needed)
    assert f"MILVLG/imp-v1-3b comes from the hub: 3 files, {size / 1e9:.3g} GB." in done.stderr
    got = {path.split(f"/resolve/{COMMIT}/")[1] for path in server.asked if "/resolve/" in path}
    assert got == set(needed)
    assert "comes from the hub" not in run(*ASK, "imp-v1-3b").stderr


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}, "LoRA adapters alone"),
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "only as pickles (pytorch_model.bin)"),
        ({"config.json": b"{}"}, "holds no *.safetensors file"),
    ],
)
@pytest.mark.slow
def test_a_repository_without_a_models_weights_is_refused_before_anything_comes(hub, files, words):
    server, run = hub
    server.files.clear()
    server.files |= files
    done = run(*ASK, "imp-v1-3b")
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert not [path for path in server.asked if "/resolve/" in path]


@pytest.mark.slow
def test_a_download_that_breaks_is_told_and_goes_on(hub):
    server, run = hub
    server.cut = {"model.safetensors"}
    broken = run(*ASK, "imp-v1-3b")
    assert (broken.returncode, broken.stdout) == (2, "")
    assert "imp-kit: " in broken.stderr
    assert "Traceback" not in broken.stderr
    assert "goes on where it stopped" in broken.stderr
    server.cut = set()
    assert run(*ASK, "imp-v1-3b").returncode == 0


@pytest.mark.slow
def test_a_repository_that_is_not_there(hub):
    _, run = hub
    done = run(*ASK, "MILVLG/imp-v1-3bb")
    assert done.returncode == 2
    assert "Did you mean 'MILVLG/imp-v1-3b'?" in done.stderr


@pytest.mark.slow
def test_a_revision_that_is_not_there(hub):
    _, run = hub
    done = run(*ASK, "imp-v1-3b", "--revision", "deadbeef")
    assert done.returncode == 2
    assert "MILVLG/imp-v1-3b has no revision 'deadbeef'" in done.stderr


# Inspecting: the headers only ------------------------------------------------------------------------------


def test_inspecting_downloads_no_weights(hub, tmp_path):
    server, run = hub
    done = run("checkpoints", "inspect", "imp-v1-3b")
    assert done.returncode == 0, done.stderr
    here = run("checkpoints", "inspect", "imp-nano").stdout.splitlines()
    message = done.stdout.splitlines()
    assert message[0] == f"MILVLG/imp-v1-3b at {COMMIT}"
    assert message.pop(2).startswith("to download: 3 files, 0.0165 GB (config.json 838 bytes, ")
    assert message[1:] == here[1:]
    assert "The kit would load it." in message
    header = int.from_bytes(FILES["model.safetensors"][:8], "little")
    assert header < server.sent["model.safetensors"] <= 100_001 < len(FILES["model.safetensors"]) / 100
    names = {file.name for file in tmp_path.rglob("*") if file.is_file() or file.is_symlink()}
    assert "config.json" in names
    assert not {name for name in names if name.endswith((".safetensors", ".py", ".bin", ".incomplete"))}


@pytest.mark.slow
def test_inspecting_what_would_not_load_tells_every_fault(hub):
    server, run = hub
    config = json.loads(FILES["config.json"])
    config["vocab_size"] += 1
    server.files["config.json"] = json.dumps(config).encode()
    done = run("checkpoints", "inspect", "MILVLG/imp-v1-3b/")
    assert done.returncode == 1
    assert "The kit would refuse it: 3 missing or not fitting." in done.stdout
    faults = [line for line in done.stdout.splitlines() if "does not fit" in line]
    assert [line.split()[0] for line in faults] == ["lm_head.bias", "lm_head.weight", "model.embed_tokens.weight"]


@pytest.mark.slow
def test_inspecting_an_unknown_family_still_lists_its_tensors(hub):
    server, run = hub
    config = json.loads(FILES["config.json"]) | {"model_type": "llava"}
    server.files["config.json"] = json.dumps(config).encode()
    done = run("checkpoints", "inspect", "imp-v1-3b")
    assert done.returncode == 1
    assert "lm_head.weight" in done.stdout
    assert "The kit would refuse it: MILVLG/imp-v1-3b/config.json: model_type is 'llava'" in done.stdout


@pytest.mark.slow
def test_inspecting_pickles(hub):
    server, run = hub
    del server.files["model.safetensors"]
    done = run("checkpoints", "inspect", "imp-v1-3b")
    assert (done.returncode, done.stdout) == (2, "")
    assert "only as pickles (pytorch_model.bin)" in done.stderr
    assert "pytorch_model.bin" not in server.sent


@pytest.mark.slow
def test_inspecting_a_repository_that_is_not_there(hub):
    _, run = hub
    done = run("checkpoints", "inspect", "MILVLG/imp-v1-3bb")
    assert done.returncode == 2
    assert "Did you mean 'MILVLG/imp-v1-3b'?" in done.stderr
