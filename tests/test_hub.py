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
FILES |= {"modeling_imp.py": b"raise SystemExit('code of the hub ran')", "pytorch_model.bin": b"\x80pickle"}


class Hub(BaseHTTPRequestHandler):
    """The two routes of the hub that a download uses, for the one repository MILVLG/imp-v1-3b."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        if path == f"/api/models/MILVLG/imp-v1-3b/revision/{self.server.revision}":
            info = {"id": "MILVLG/imp-v1-3b", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
            return self.give(json.dumps(info).encode(), body)
        name = path.rsplit("/", 1)[-1]
        if path == f"/MILVLG/imp-v1-3b/resolve/{COMMIT}/{name}" and name in FILES:
            return self.give(FILES[name], body, cut=self.server.cut and name == "model.safetensors", etag=name)
        self.send_response(404)
        self.send_header("X-Error-Code", "RevisionNotFound" if "/imp-v1-3b/revision" in path else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def give(self, content: bytes, body: bool, cut: bool = False, etag: str = "x"):
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if body:
            self.wfile.write(content[start : start + 1000] if cut else content[start:])
            if cut:
                self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.cut, server.revision = [], False, "main"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_CACHE": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }

    def ask(checkpoint: str, *more: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "imp_kit", "ask", str(BUS), "What is this?", "--checkpoint", checkpoint, *more]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    yield server, ask
    server.shutdown()


def test_a_name_downloads_weights_settings_and_tokenizer_and_no_code(hub, tmp_path):
    server, ask = hub
    done = ask("imp-v1-3b")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ask("imp-nano").stdout
    got = {path.rsplit("/", 1)[-1] for path in server.asked if "/resolve/" in path}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= got
    assert not got & {"modeling_imp.py", "pytorch_model.bin"}
    assert not [file for file in tmp_path.rglob("*") if file.suffix in (".py", ".bin")]


def test_a_download_that_breaks_is_told_and_goes_on(hub):
    server, ask = hub
    server.cut = True
    broken = ask("imp-v1-3b")
    assert (broken.returncode, broken.stdout) == (2, "")
    assert "imp-kit: " in broken.stderr
    assert "Traceback" not in broken.stderr
    assert "goes on where it stopped" in broken.stderr
    server.cut = False
    assert ask("imp-v1-3b").returncode == 0


def test_a_repository_that_is_not_there(hub):
    _, ask = hub
    done = ask("MILVLG/imp-v1-3bb")
    assert done.returncode == 2
    assert "Did you mean 'MILVLG/imp-v1-3b'?" in done.stderr


def test_a_revision_that_is_not_there(hub):
    _, ask = hub
    done = ask("imp-v1-3b", "--revision", "deadbeef")
    assert done.returncode == 2
    assert "MILVLG/imp-v1-3b has no revision 'deadbeef'" in done.stderr
