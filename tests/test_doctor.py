"""The doctor: what it finds on this machine, in a child process as a person runs it, and how it explains errors."""

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from oracle import SO400M, Oracle, checkpoint_tensors, sizes_of
from quick import quick

from imp_kit.checkpoints.hub import DEFAULT, HUB_IDS, NANO_FOLDER
from imp_kit.checkpoints.load import load_weights
from imp_kit.checkpoints.registry import PUBLISHED
from imp_kit.errors import MemoryLimitError
from imp_kit.model.memory import out_of_memory_errors
from imp_kit.tools.doctor import OPTIONAL, SIZES, TESTED, examine, explain

ROOT = Path(__file__).parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LINE = re.compile(r"\[(OK|WARN|FAIL)\] \S|    \S")


@pytest.fixture
def doctor(tmp_path):
    """Runs the command offline, without GPU, proxy or token; `environment` changes that."""

    def run(*arguments: str, typed: str = "", **environment: str) -> subprocess.CompletedProcess:
        names = {name for name in os.environ if name.lower().endswith("_proxy") or name.startswith(("HF_", "HUGGING"))}
        base = {name: value for name, value in os.environ.items() if name not in names}
        base |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
        base |= {"CUDA_VISIBLE_DEVICES": "", "PATH": str(tmp_path / "bin")}
        command = [sys.executable, "-m", "imp_kit", "doctor", *arguments]
        done = subprocess.run(
            command, env={**base, **environment}, input=typed, capture_output=True, text=True, check=False, timeout=600
        )
        assert "Traceback" not in done.stdout + done.stderr
        return done

    return run


def line_with(done: subprocess.CompletedProcess, words: str) -> str:
    """The finding that has these words, its fix too."""
    (found,) = [finding for finding in re.split(r"\n(?=\[)", done.stdout) if words in finding]
    return found


# The examination -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_machine_without_gpu_and_hub_is_in_order(doctor, tmp_path):
    done = doctor()
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    lines = done.stdout.splitlines()
    assert all(LINE.match(line) for line in lines)
    assert lines[-1].startswith(f"[OK] imp_kit.load() chooses imp-nano, because there is no GPU here for {DEFAULT}")
    assert f"torch {torch.__version__}" in line_with(done, "no GPU: ")
    assert line_with(done, "HF_HUB_OFFLINE").startswith("[OK] ")
    assert line_with(done, f"Hub cache: {tmp_path / 'hub'}").startswith("[OK] ")
    for name in HUB_IDS:
        found = line_with(done, f"] {name}: ")
        assert f"[WARN] {name}: not downloaded, about {SIZES[name] / 1e9} GB, and cannot be downloaded now; " in found
    assert not (tmp_path / "hub").exists()


def put(cache: Path, hub_id: str, *left_out: str) -> Path:
    """imp-nano's files in a hub cache as if they were those of `hub_id`; returns the snapshot."""
    repo = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = repo / "snapshots" / COMMIT
    for folder in (snapshot, repo / "refs", repo / "blobs"):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(NANO_FOLDER.iterdir())):
        if file.name not in left_out:
            blob = repo / "blobs" / f"{number:064x}"
            shutil.copy(file, blob)
            (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / blob.name)
    return snapshot


@pytest.mark.slow
def test_what_the_hub_cache_holds(doctor, tmp_path):
    names = iter(HUB_IDS)
    complete, no_settings, no_shard, no_tokenizer, begun = ((name, HUB_IDS[name]) for name in names)
    cache = tmp_path / "hub"
    put(cache, complete[1])
    put(cache, no_settings[1], "config.json")
    shard = "model-00002-of-00002.safetensors"
    index = put(cache, no_shard[1]) / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": shard}}))
    put(cache, no_tokenizer[1], "tokenizer.json")
    blobs = cache / f"models--{begun[1].replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "0.incomplete").write_bytes(bytes(20_000_000))
    done = doctor()
    assert done.returncode == 0
    size = sum(file.stat().st_size for file in NANO_FOLDER.iterdir()) / 1e9
    assert f"complete in the hub cache, {size:.2f} GB" in line_with(done, f"[OK] {complete[0]}: ")
    assert "has no config.json" in line_with(done, f"[WARN] {no_settings[0]}: ")
    assert shard in line_with(done, f"[WARN] {no_shard[0]}: ")
    assert "tokenizer.json" in line_with(done, f"[WARN] {no_tokenizer[0]}: ")
    assert "hub cache, 0.02 GB: it has no complete file" in line_with(done, f"[WARN] {begun[0]}: ")
    assert f'\n    imp_kit.load("{begun[0]}") fetches what is missing' in line_with(done, f"] {begun[0]}: ")


@pytest.mark.slow
def test_a_hub_that_does_not_answer_and_a_cache_that_cannot_be_written(doctor, tmp_path):
    with socket.socket() as closed:  # bound and not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        (tmp_path / "file").touch()
        done = doctor(HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0", HF_HUB_CACHE=str(tmp_path / "file" / "hub"))
    assert done.returncode == 1
    assert problem(done, endpoint) == "cannot be reached: the connection is refused"
    assert "HF_ENDPOINT" in line_with(done, endpoint)
    assert "\n    Set HF_HUB_CACHE to" in line_with(done, "[FAIL] Hub cache: ")
    for name in HUB_IDS:
        assert ", and cannot be downloaded now; " in line_with(done, f"[WARN] {name}: ")


def problem(done: subprocess.CompletedProcess, endpoint: str) -> str:
    """What the doctor says of the hub: one sentence without names of classes, not cut."""
    line = line_with(done, f"[WARN] {endpoint}").splitlines()[0]
    assert not re.search(r"Error|Exception|Timeout|\.\.\.|0x", line)
    return line.removeprefix(f"[WARN] {endpoint} ")


@pytest.fixture
def trusted(tmp_path):
    """A server with a certificate that it signed itself; gives its port and the certificate's file."""
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificate")
    pem = tmp_path / "cert.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*command, "-keyout", tmp_path / "key.pem", "-out", pem], check=True, capture_output=True)
    server = ThreadingHTTPServer(("localhost", 0), Hub)
    server.asked, server.status = [], None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, str(pem)
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_certificate_that_is_not_trusted(doctor, trusted):
    port, certificate = trusted
    endpoint = f"https://localhost:{port}"
    refused = doctor(HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0")
    assert problem(refused, endpoint) == "cannot be reached: its certificate is not trusted here"
    said = explain(f"ConnectError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed, {endpoint}")
    assert "SSL_CERT_FILE and REQUESTS_CA_BUNDLE" in said.fix
    done = doctor(HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0", SSL_CERT_FILE=certificate, REQUESTS_CA_BUNDLE=certificate)
    assert f"[OK] {endpoint} answers" in done.stdout


class Proxy(BaseHTTPRequestHandler):
    """Lets nobody through."""

    def do_CONNECT(self):
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_CONNECT

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("status", [403, 407])
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.slow
def test_a_proxy_that_refuses(doctor, scheme, status):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.status = status
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint, proxy = f"{scheme}://hub.invalid", f"http://127.0.0.1:{server.server_port}"
    done = doctor(HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0", HTTPS_PROXY=proxy, HTTP_PROXY=proxy)
    server.shutdown()
    server.server_close()
    assert "proxy" in problem(done, endpoint)
    assert "the proxy" in line_with(done, endpoint)


@pytest.mark.slow
def test_a_proxy_that_is_not_there(doctor):
    proxy = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    done = doctor(HF_ENDPOINT="http://hub.invalid", HF_HUB_OFFLINE="0", **proxy)
    assert "proxy" in problem(done, "http://hub.invalid")


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [("http://hub.invalid", "its name is not found"), ("localhost:9", "its address is not a whole one")],
)
@pytest.mark.slow
def test_an_address_that_leads_nowhere(doctor, endpoint, words):
    done = doctor(HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0")
    assert problem(done, endpoint) == f"cannot be reached: {words}"


@pytest.mark.slow
def test_a_secure_address_of_a_server_without_certificate(doctor, hub):
    endpoint = f"https://127.0.0.1:{hub.server_port}"
    done = doctor(HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0")
    assert problem(done, endpoint) == "cannot be reached: the secure connection cannot be made"


class Hub(BaseHTTPRequestHandler):
    """Knows imp-v1-3b, gives it to everyone without a token, and takes no token but "good"."""

    def do_GET(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.server.asked.append((self.path, token, self.headers.get("Content-Length")))
        status = self.server.status or (200 if token in ("", "good") else 401)
        content = json.dumps({"id": HUB_IDS[DEFAULT], "sha": COMMIT, "siblings": []}).encode()
        self.send_response(status)
        if status == 401:
            self.send_header("X-Error-Message", "Invalid credentials in Authorization header")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.status = [], None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_refused_token(doctor, hub):
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    done = doctor(HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0", HF_TOKEN="hf_worn_out")
    assert done.returncode == 1
    assert line_with(done, endpoint).startswith(f"[FAIL] {endpoint} refuses your token (401)")
    assert "unset HF_TOKEN" in line_with(done, endpoint)
    assert "hf_worn_out" not in done.stdout + done.stderr
    assert hub.asked == [(f"/api/models/{HUB_IDS[DEFAULT]}", "hf_worn_out", None)]


@pytest.fixture
def here(hub, tmp_path, monkeypatch):
    """Examines in this process, with the small hub; returns the finding about the hub."""
    from huggingface_hub import constants

    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)

    def look():
        findings = examine()
        assert {finding.level for finding in findings} <= {"OK", "WARN", "FAIL"}
        (found,) = [finding for finding in findings if finding.what.startswith(endpoint)]
        return found.level, found.what.removeprefix(f"{endpoint} ")

    return look


def test_a_hub_that_answers(here, hub):
    assert here() == ("OK", "answers")
    assert hub.asked[0] == (f"/api/models/{HUB_IDS[DEFAULT]}", "", None)


def test_a_token_that_the_hub_takes(here, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "good")
    assert here() == ("OK", "answers")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "refuses the request: probably a proxy or a firewall does"),
        (403, "refuses the request: probably a proxy or a firewall does"),
        (404, "does not answer as a hub does"),
        (407, "cannot be reached: the proxy wants a name and a password"),
        (429, "wants fewer requests from here"),
        (500, "has a problem of its own"),
    ],
)
def test_a_hub_that_refuses_someone_without_a_token(here, hub, status, words):
    hub.status = status
    assert here() == ("WARN", f"{words} ({status})")


def test_a_hub_that_answers_lets_download(here):
    here()
    found = [finding for finding in examine() if "not downloaded" in finding.what]
    assert found
    assert not any("cannot be downloaded" in finding.what for finding in found)


@pytest.mark.slow
def test_a_hub_that_is_silent(here, hub):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        from huggingface_hub import constants

        constants.ENDPOINT = f"http://127.0.0.1:{silent.getsockname()[1]}"  # `here` puts the right one back
        (found,) = [finding for finding in examine() if finding.what.startswith(constants.ENDPOINT)]
    assert (found.level, found.what) == ("WARN", f"{constants.ENDPOINT} cannot be reached: it does not answer in time")


def nvidia_smi(folder: Path) -> None:
    """A program in place of NVIDIA's, that prints what it prints for this query."""
    folder.mkdir()
    (folder / "nvidia-smi").write_text("#!/bin/sh\necho 'Tesla T4'\n")
    (folder / "nvidia-smi").chmod(0o755)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPU of this machine")
@pytest.mark.parametrize("hidden", [False, True])
def test_a_gpu_that_torch_cannot_use(here, tmp_path, monkeypatch, hidden):
    nvidia_smi(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    message = "Update the NVIDIA driver" if torch.version.cuda else "torch's build with CUDA"
    if hidden:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        message = "CUDA_VISIBLE_DEVICES is '' and may hide it"
    (found,) = [finding for finding in examine() if "Tesla T4" in finding.what]
    assert (found.level, message in found.fix) == ("FAIL", True)


@pytest.mark.gpu
def test_a_gpu_that_works(here):
    (found,) = [finding for finding in examine() if torch.cuda.get_device_name() in finding.what]
    assert (found.level, "GB free" in found.what) == ("OK", True)


@pytest.mark.parametrize("module", ["torch", "safetensors"])
def test_a_package_that_cannot_be_imported(doctor, tmp_path, module):
    (tmp_path / "path" / module).mkdir(parents=True)
    reason = "libcublas.so.12: cannot open shared object file: No such file or directory"
    (tmp_path / "path" / module / "__init__.py").write_text(f"raise OSError({reason!r})")
    done = doctor(PYTHONPATH=f"{tmp_path / 'path'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert done.returncode == 1
    finding = line_with(done, "cannot be imported")
    assert finding.startswith(f"[FAIL] {module} cannot be imported (OSError: {reason})")
    assert "\n    " in finding


@pytest.mark.slow
def test_versions_that_do_not_fit(doctor, tmp_path):
    pytest.importorskip("transformers")
    for name, version in (("huggingface_hub", "99.0"), ("pillow", "9.0")):
        folder = tmp_path / "path" / f"{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    done = doctor(PYTHONPATH=f"{tmp_path / 'path'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert done.returncode == 1
    assert line_with(done, "imp-kit needs pillow>=10.1, but 9.0 is installed").startswith("[FAIL] ")
    hub = line_with(done, "transformers needs huggingface")
    assert hub.startswith("[WARN] ")
    assert "but 99.0 is installed\n    pip install " in hub
    assert f"pillow 9.0 ({', '.join(TESTED['pillow'])})" in line_with(done, "[WARN] Not in a tested version")


def test_the_tested_versions_are_the_pinned_ones():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    packages = [name for name in TESTED if name != "Python"]
    assert {name: TESTED[name][0] for name in packages} == {name: pinned[name] for name in packages}
    assert f"on Python {TESTED['Python'][0]};" in (ROOT / "constraints.txt").read_text()
    assert set(OPTIONAL) < set(packages)


@pytest.mark.parametrize("name", quick(1, SIZES))
def test_the_sizes_are_those_of_the_networks(name):
    entry = PUBLISHED[name]
    with torch.device("meta"):
        tower = SO400M | {"image_size": entry.image_size}
        oracle = Oracle(entry.config["model_type"], sizes_of(entry.config), tower)
        tensors = checkpoint_tensors(oracle, entry.layout)
    assert SIZES[name] == pytest.approx(2 * sum(tensor.numel() for tensor in tensors.values()), rel=0.02)


def test_every_checkpoint_has_a_size():
    assert SIZES.keys() == HUB_IDS.keys()
    assert PUBLISHED[DEFAULT].needed_bytes == pytest.approx(7.5e9, rel=0.01)  # a T4 has more, a card of 6 GB less


# Explanations ----------------------------------------------------------------------------------------------

FULL = "OSError: [Errno 28] No space left on device\n"
OFFLINE = "OSError: We couldn't connect to 'https://huggingface.co' to load this file\n"
STRANGE = "ZeroDivisionError: division by zero\n"
TRACE = 'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n    go()\n'
CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
DURING = "\nDuring handling of the above exception, another exception occurred:\n\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TRACE + FULL + CAUSE + TRACE + OFFLINE, "disk is full"),
        (TRACE + OFFLINE + DURING + TRACE + FULL, "hub cannot be reached"),
        (TRACE + STRANGE + DURING + TRACE + FULL, "disk is full"),
        (TRACE + FULL + DURING + TRACE + STRANGE, "disk is full"),
        (TRACE + FULL + "and later\n" + TRACE + OFFLINE, "hub cannot be reached"),
        (TRACE + FULL + "and later\n" + TRACE + STRANGE + CAUSE + TRACE + OFFLINE, "hub cannot be reached"),
        # as a notebook and as pytest print them
        ("OSError                  Traceback (most recent call last)\nCell In[1], line 1\n" + FULL, "disk is full"),
        (
            "    def f():\n>       go()\nE       OSError: [Errno 28] No space left on device\n\nx.py:1: OSError",
            "disk is full",
        ),
        ((TRACE + FULL).replace("\n", "\r\n"), "disk is full"),
    ],
)
def test_the_deepest_error_of_the_last_chain_counts(text, words):
    assert words in explain(text).cause


def test_errors_of_the_kit_itself(tmp_path, monkeypatch):
    with pytest.raises(MemoryLimitError) as caught, out_of_memory_errors("Looking at a picture"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert "GPU has too little" in explain(str(caught.value)).cause
    monkeypatch.setattr("imp_kit.checkpoints.load.free_memory", lambda device: 1_000_000)
    with pytest.raises(MemoryLimitError) as caught:
        load_weights(NANO_FOLDER, torch.device("cpu"), torch.float32)
    assert "computer has too little" in explain(f"imp-kit: {caught.value}").cause


REAL = r'''
import json, os, sys, traceback
from pathlib import Path

root, nano = map(Path, sys.argv[1:])
os.environ.update(HF_HOME=str(root / "home"), HF_HUB_OFFLINE="1", HF_MODULES_CACHE=str(root / "modules"))
os.environ.pop("HF_HUB_CACHE", None)

CONFIGURATION = """
from transformers import PretrainedConfig
class ImpConfig(PretrainedConfig):
    model_type = "imp"
"""
MODELING = """
import torch
from transformers import PreTrainedModel
from .configuration_imp import ImpConfig
class ImpForCausalLM(PreTrainedModel):
    config_class = ImpConfig
    def __init__(self, config):
        super().__init__(config)
        self.head = torch.nn.Linear({width}, 2)
        self.post_init()
"""

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.utils.versions import require_version


def put(folder, width=2):
    folder.mkdir(parents=True)
    classes = {"AutoConfig": "configuration_imp.ImpConfig", "AutoModelForCausalLM": "modeling_imp.ImpForCausalLM"}
    (folder / "config.json").write_text(json.dumps({"model_type": "imp", "auto_map": classes}))
    (folder / "configuration_imp.py").write_text(CONFIGURATION)
    (folder / "modeling_imp.py").write_text(MODELING.format(width=width))
    tensors = {"head.weight": torch.zeros(2, width), "head.bias": torch.zeros(2)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)


def run(code):
    return lambda: exec(code)


COMMIT = "0123456789abcdef0123456789abcdef01234567"
dotted, wider = put(root / "Imp-v1.5-3B-Phi2"), put(root / "Imp-v1.5-4B-Phi3", 3)
repo = root / "home" / "hub" / "models--MILVLG--Imp-v1.5-3B-Phi2"
snapshot = put(repo / "snapshots" / COMMIT)
(repo / "refs").mkdir()
(repo / "refs" / "main").write_text(COMMIT)
raised = {}
for words, act in (
    ("has a dot", lambda: load(dotted)),
    ("has a dot", lambda: load("MILVLG/Imp-v1.5-3B-Phi2")),
    ("no slash at the end", lambda: load("MILVLG/Imp-v1.5-3B-Phi2/")),
    ("neither a folder", lambda: load("/nowhere/imp-v1-3b")),
    ("does not fit the weights", lambda: (load(dotted + "/"), load(wider + "/"))),
    ("none", lambda: load(snapshot)),
    ("wants your consent", lambda: AutoConfig.from_pretrained(snapshot)),
    ("no classes of its own", lambda: AutoConfig.from_pretrained(nano)),
    ("hub cannot be reached", lambda: load("MILVLG/imp-v1-3b")),
    ("hub cannot be reached", lambda: __import__("imp_kit").load("imp-v1-3b")),
    ("empty cache", lambda: DynamicCache()[0]),
    ("converts caches", lambda: DynamicCache.from_legacy_cache),
    ("converts caches", lambda: DynamicCache().to_legacy_cache),
    ("its length", lambda: DynamicCache().seen_tokens),
    ("its length", lambda: DynamicCache().get_usable_length),
    ("pad_token_id", lambda: AutoConfig.from_pretrained(snapshot, trust_remote_code=True).pad_token_id),
    ("meta_model", run("from transformers.modeling_utils import _load_state_dict_into_meta_model")),
    ("is_torch_fx", run("from transformers.utils.import_utils import is_torch_fx_available")),
    ("_set_token", lambda: transformers.PretrainedConfig._set_token_in_kwargs),
    ("'meta'", lambda: torch.empty(1, device="meta").to("cpu")),
    ("computer has too little", lambda: torch.empty(1 << 50)),
    ("torch", lambda: torch.empty(1, device="cuda")),
    ("disk is full", lambda: os.write(os.open("/dev/full", os.O_WRONLY), b"x")),
    ("another package", lambda: require_version("huggingface-hub<0.1")),
):
    try:
        act()
    except BaseException:
        raised.setdefault(words, []).append(traceback.format_exc())
print("\n" + json.dumps([transformers.__version__, raised]))
'''


@pytest.mark.slow
def test_errors_as_they_really_come(tmp_path):
    """Raised by the installed transformers, torch and hub client; which of them come depends on the version."""
    pytest.importorskip("transformers")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", REAL, str(tmp_path), str(NANO_FOLDER)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, input="", check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    version, raised = json.loads(done.stdout.splitlines()[-1])
    for words, texts in raised.items():
        for text in texts:
            found = explain(text)
            assert found, text
            assert words in found.cause, text
    always = {
        "neither a folder": 1,
        "no slash at the end": 1,
        "wants your consent": 1,
        "no classes of its own": 1,
        "hub cannot be reached": 2,
    }
    always |= {"'meta'": 1, "computer has too little": 1, "another package": 1, "torch": 1}
    always |= {"disk is full": 1} if Path("/dev/full").exists() else {}
    pinned = {"has a dot": 2, "does not fit the weights": 1, "empty cache": 1}
    newest = {"converts caches": 2, "its length": 2, "meta_model": 1, "is_torch_fx": 1, "_set_token": 1}
    expected = always | {TESTED["transformers"][0]: pinned, TESTED["transformers"][1]: newest}.get(version, {})
    assert {words: len(raised.get(words, ())) for words in expected} == expected


def test_why(doctor):
    known = doctor("--why", "OSError: [Errno 28] No space left on device")
    assert (known.returncode, known.stderr) == (0, "")
    assert known.stdout.startswith("Cause: The disk is full.\nFix: Free some disk")
    assert doctor("--why", "-", typed=TRACE + FULL).stdout == known.stdout
    unknown = doctor("--why", "-", typed=STRANGE)
    assert unknown.returncode == 1
    assert "does not know this error" in unknown.stdout
    assert "the whole traceback" in unknown.stdout


def test_an_explanation_needs_no_torch():
    code = "import sys; from imp_kit.tools.doctor import explain; explain('Killed'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_an_error_on_stdin_in_any_unicode(encoding):
    """PowerShell writes what it redirects as UTF-16."""
    text = "エラーが起きました。\nModuleNotFoundError: No module named 'transformers_modules.Imp-v1'\n"
    command = [sys.executable, "-m", "imp_kit", "doctor", "--why", "-"]
    done = subprocess.run(command, input=text.encode(encoding), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"has a dot" in done.stdout


def test_no_stdin_at_all_is_told():
    command = f"exec 0<&-; {sys.executable} -m imp_kit doctor --why -"
    done = subprocess.run(["sh", "-c", command], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 2
    assert done.stderr == "imp-kit: There is no error to explain; give its text.\n"
