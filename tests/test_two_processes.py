"""Two processes at once, as two notebooks of one user: from one folder, one hub cache, one download."""

import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from loopback_hub import COMMIT, Hub
from test_hub import ASK, BUS, hub  # noqa: F401 - the fixture

from imp_kit.checkpoints.hub import NANO_FOLDER

QUESTION = "What are the colors of the bus in the image?"
# Loads when it is told to, so that both are ready first; then each checkpoint once.
LOAD = """
import json, sys, imp_kit.imp
print("ready", flush=True)
sys.stdin.readline()
for name in sys.argv[3:]:
    answer = imp_kit.load(name, device="cpu", dtype="fp32").ask(*sys.argv[1:3])
    print(json.dumps([answer.text, answer.token_ids, answer.checkpoint]))
"""


def put_in_cache(cache):
    """The bundled files as the hub's client lays them out."""
    repository = cache / "models--MILVLG--imp-v1-3b"
    snapshot = repository / "snapshots" / COMMIT
    for place in (repository / "refs", repository / "blobs", snapshot):
        place.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for file in NANO_FOLDER.iterdir():
        shutil.copy(file, repository / "blobs" / file.name)
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / file.name)


@pytest.mark.slow
def test_two_processes_load_at_once(tmp_path):
    put_in_cache(tmp_path)
    folder = shutil.copytree(NANO_FOLDER, tmp_path / "folder")
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOAD, str(BUS), QUESTION, "imp-v1-3b", str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    files = sorted(tmp_path.rglob("*"))
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as other:
        assert one.stdout.readline() == other.stdout.readline() == "ready\n"
        for process in (one, other):
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [[json.loads(line) for line in process.communicate()[0].splitlines()] for process in (one, other)]
    assert (one.returncode, other.returncode) == (0, 0)
    assert answers[0] == answers[1]
    texts, ids, names = zip(*answers[0], strict=True)
    assert texts == ("The bus is red and white.",) * 2
    assert ids[0] == ids[1]
    assert names == ("MILVLG/imp-v1-3b", "folder")
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.slow
def test_two_processes_download_at_once(request, tmp_path):
    """Both have asked the hub what there is before either gets an answer; then both go for the same files."""
    server, run = request.getfixturevalue("hub")
    together = threading.Barrier(2, timeout=600)
    first = [True, True]

    class Together(Hub):
        def answer(self, body: bool):
            if "/revision/" in self.path and first:
                first.pop()
                together.wait()
            super().answer(body)

    server.RequestHandlerClass = Together
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: run(*ASK, "imp-v1-3b"), range(2))
    assert not together.broken
    assert not first
    for done in (one, other):
        assert done.returncode == 0, done.stderr
    assert one.stdout == other.stdout != ""
    snapshot = tmp_path / "models--MILVLG--imp-v1-3b" / "snapshots" / COMMIT
    for file in snapshot.iterdir():
        assert file.read_bytes() == server.files[file.name]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in snapshot.iterdir()}
    assert not list(tmp_path.rglob("*.incomplete"))
