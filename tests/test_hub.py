"""Downloading, from a small hub of our own on this machine: what is asked for, what breaks, what goes on."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from imp_kit.checkpoints import NANO_FOLDER

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BUS = Path(__file__).parent.parent / "images" / "bus.png"
FILES = {file.name: file.read_bytes() for file in NANO_FOLDER.iterdir()}
ASK = ("ask", str(BUS), "What is this?", "--checkpoint")
FILES |= {"modeling_imp.py": b"raise SystemExit('code of the hub ran')", "pytorch_model.bin": b"\x80pickle"}


class Hub(BaseHTTPRequestHandler):
    """The routes of the hub that a download and an inspection use, for the one repository MILVLG/imp-v1-3b."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        if path in ("/api/models/MILVLG/imp-v1-3b", f"/api/models/MILVLG/imp-v1-3b/revision/{self.server.revision}"):
            siblings = [{"rfilename": name} for name in self.server.files]
            return self.give(json.dumps({"id": "MILVLG/imp-v1-3b", "sha": COMMIT, "siblings": siblings}).encode(), body)
        if path == f"/api/models/MILVLG/imp-v1-3b/tree/{COMMIT}":  # what the hub's client asks for since its version 2
            files = self.server.files.items()
            tree = [{"type": "file", "path": name, "size": len(data), "oid": name} for name, data in files]
            return self.give(json.dumps(tree).encode(), body)
        name = path.rsplit("/", 1)[-1]
        if path == f"/MILVLG/imp-v1-3b/resolve/{COMMIT}/{name}":
            if name in self.server.files:
                cut = self.server.cut and name == "model.safetensors"
                return self.give(self.server.files[name], body, cut, etag=name)
            return self.refuse("EntryNotFound")
        self.refuse("RevisionNotFound" if "/imp-v1-3b/revision" in path else "RepoNotFound")

    def refuse(self, code: str):
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def give(self, content: bytes, body: bool, cut: bool = False, etag: str = "x"):
        wanted = self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            content = content[int(first) : int(last) + 1 if last else None]
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.server.sent[etag] = self.server.sent.get(etag, 0) + len(content)
            self.wfile.write(content[:1000] if cut else content)
            if cut:
                self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.sent, server.files, server.cut, server.revision = [], {}, dict(FILES), False, "main"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_CACHE": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "imp_kit", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    yield server, run
    server.shutdown()


def test_a_name_downloads_weights_settings_and_tokenizer_and_no_code(hub, tmp_path):
    server, run = hub
    done = run(*ASK, "imp-v1-3b")
    assert done.returncode == 0, done.stderr
    assert done.stdout == run(*ASK, "imp-nano").stdout
    got = {path.rsplit("/", 1)[-1] for path in server.asked if "/resolve/" in path}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= got
    assert not got & {"modeling_imp.py", "pytorch_model.bin"}
    assert not [file for file in tmp_path.rglob("*") if file.suffix in (".py", ".bin")]


def test_a_download_that_breaks_is_told_and_goes_on(hub):
    server, run = hub
    server.cut = True
    broken = run(*ASK, "imp-v1-3b")
    assert (broken.returncode, broken.stdout) == (2, "")
    assert "imp-kit: " in broken.stderr
    assert "Traceback" not in broken.stderr
    assert "goes on where it stopped" in broken.stderr
    server.cut = False
    assert run(*ASK, "imp-v1-3b").returncode == 0


def test_a_repository_that_is_not_there(hub):
    _, run = hub
    done = run(*ASK, "MILVLG/imp-v1-3bb")
    assert done.returncode == 2
    assert "Did you mean 'MILVLG/imp-v1-3b'?" in done.stderr


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
    told = done.stdout.splitlines()
    assert told[0] == f"MILVLG/imp-v1-3b at {COMMIT}"
    assert told[1:] == here[1:]
    assert "The kit would load it." in told
    header = int.from_bytes(FILES["model.safetensors"][:8], "little")
    assert header < server.sent["model.safetensors"] <= 100_001 < len(FILES["model.safetensors"]) / 100
    names = {file.name for file in tmp_path.rglob("*") if file.is_file() or file.is_symlink()}
    assert "config.json" in names
    assert not {name for name in names if name.endswith((".safetensors", ".py", ".bin", ".incomplete"))}


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


def test_inspecting_an_unknown_family_still_lists_its_tensors(hub):
    server, run = hub
    config = json.loads(FILES["config.json"]) | {"model_type": "llava"}
    server.files["config.json"] = json.dumps(config).encode()
    done = run("checkpoints", "inspect", "imp-v1-3b")
    assert done.returncode == 1
    assert "lm_head.weight" in done.stdout
    assert "The kit would refuse it: MILVLG/imp-v1-3b/config.json: model_type is 'llava'" in done.stdout


def test_inspecting_pickles(hub):
    server, run = hub
    del server.files["model.safetensors"]
    done = run("checkpoints", "inspect", "imp-v1-3b")
    assert (done.returncode, done.stdout) == (2, "")
    assert "only as pickles (pytorch_model.bin)" in done.stderr
    assert "pytorch_model.bin" not in server.sent


def test_inspecting_a_repository_that_is_not_there(hub):
    _, run = hub
    done = run("checkpoints", "inspect", "MILVLG/imp-v1-3bb")
    assert done.returncode == 2
    assert "Did you mean 'MILVLG/imp-v1-3b'?" in done.stderr
