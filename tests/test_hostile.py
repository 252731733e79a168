"""Checkpoints that mean harm or are badly broken: nothing of theirs runs, nothing is written, and an error says why."""

import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from oracle import change_json, make_oracle, write_checkpoint
from quick import quick
from safetensors.torch import load_file, save_file

import imp_kit
from imp_kit.checkpoints.files import TEXT_LIMIT, find_tensors, follow
from imp_kit.checkpoints.hub import NANO_FOLDER
from imp_kit.checkpoints.load import fill
from imp_kit.checkpoints.plan import plan_folder
from imp_kit.checkpoints.tokenizer import TextTokenizer
from imp_kit.errors import CheckpointError, PromptError
from imp_kit.prompts import TEMPLATES

BUS = Path(__file__).parent.parent / "images" / "bus.png"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
INDEX = "model.safetensors.index.json"
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
ONLINE = "load it by its name once more while online"
TOWER = "transformer.vision_tower.vision_tower.vision_model.encoder.layers."


def load(folder):
    return imp_kit.load(folder, device="cpu", dtype="fp32")


def tree(place):
    """Everything below a folder: what the links say, what the files hold."""
    return {
        file: os.readlink(file) if file.is_symlink() else file.read_bytes() if file.is_file() else None
        for file in place.rglob("*")
    }


@contextmanager
def untouched(place):
    """Whatever happens inside, nothing below `place` is written, changed or removed."""
    before = tree(place)
    assert before
    yield
    assert tree(place) == before


def refused(folder, *words):
    """The folder cannot be loaded, nothing beside it or in it is written, and the message has all of `words`."""
    with untouched(folder.parent), pytest.raises(CheckpointError) as caught:
        load(folder)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    return str(caught.value)


# Code -----------------------------------------------------------------------------------------------------

CODE = {  # file -> what transformers would ask of it
    "configuration_imp.py": ("ImpConfig", "AutoConfig"),
    "modeling_imp.py": ("ImpForCausalLM", "AutoModelForCausalLM"),
    "tokenization_evil.py": ("EvilTokenizer", "AutoTokenizer"),
}
IMPORT = """
import sys
from transformers.dynamic_module_utils import get_class_from_dynamic_module
for reference in sys.argv[2:]:
    get_class_from_dynamic_module(reference, sys.argv[1])
"""


@pytest.fixture
def coded(whole, tmp_path):
    """A checkpoint with Python files that leave a mark beside it once they are imported."""
    for file, (name, _) in CODE.items():
        mark = tmp_path / f"{file} ran"
        code = f"from pathlib import Path\nPath({str(mark)!r}).write_text('')\n\n\nclass {name}:\n    pass\n"
        (whole / file).write_text(code, "utf-8")
    references = {auto: f"{Path(file).stem}.{name}" for file, (name, auto) in CODE.items()}
    change_json(whole, lambda config: config.update(auto_map=references))
    settings = {
        "tokenizer_class": "EvilTokenizer",
        "auto_map": {"AutoTokenizer": [references["AutoTokenizer"], None]},
    }
    (whole / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return whole


@pytest.mark.slow
def test_code_beside_the_weights_is_never_run(coded, tmp_path):
    with untouched(tmp_path):
        answer = load(coded).ask(BUS, "a?", max_new_tokens=3)
    assert answer.tokens >= 1
    assert not list(tmp_path.glob("* ran"))
    # The same files do leave their marks when transformers is told to trust them.
    references = [f"{Path(file).stem}.{name}" for file, (name, _) in CODE.items()]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", IMPORT, str(coded), *references], env=environment, check=True)
    assert {file.name for file in tmp_path.glob("* ran")} == {f"{file} ran" for file in CODE}


def test_a_tokenizer_that_is_only_code(coded, tmp_path):
    (coded / "tokenizer.json").unlink()
    refused(coded, "no tokenizer", "tokenizer.json", str(coded))
    (coded / "vocab.json").write_text("{}", "utf-8")
    (coded / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    refused(coded, "EvilTokenizer", "Save it as tokenizer.json")
    assert not list(tmp_path.glob("* ran"))


# Pickles --------------------------------------------------------------------------------------------------


class LeavesAMark:
    """Unpickled, it writes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.write_text, (self.mark, "it ran")


def write_pickle(file, mark):
    """As torch.save writes one: a zip file with the pickle inside."""
    torch.save({"weight": LeavesAMark(mark)}, file)


def assert_the_pickle_works(file, mark):
    """Opened as torch opens what it does not take for safetensors, by the name."""
    assert not mark.exists()
    torch.load(shutil.copy(file, mark.with_name("copy.bin")), weights_only=False)
    assert mark.read_text() == "it ran"


pickles = pytest.mark.parametrize("name", ["pytorch_model.bin", "imp.pt", "imp.pth", "imp.ckpt"])


@pickles
def test_a_pickle_alone_is_refused(whole, tmp_path, name):
    (whole / "model.safetensors").unlink()
    write_pickle(whole / name, tmp_path / "mark")
    refused(whole, name, "pickle", "safetensors")
    assert_the_pickle_works(whole / name, tmp_path / "mark")


@pickles
def test_a_pickle_beside_safetensors_is_not_opened(whole, tmp_path, name):
    write_pickle(whole / name, tmp_path / "mark")
    with untouched(tmp_path):
        assert load(whole).ask(BUS, "a?", max_new_tokens=3).tokens >= 1
    assert_the_pickle_works(whole / name, tmp_path / "mark")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_by_the_name_of_safetensors(whole, tmp_path, zipped):
    file = whole / "model.safetensors"
    if zipped:
        write_pickle(file, tmp_path / "mark")
    else:
        file.write_bytes(pickle.dumps(LeavesAMark(tmp_path / "mark")))
    refused(whole, str(file), "damaged")
    assert not (tmp_path / "mark").exists()
    assert_the_pickle_works(file, tmp_path / "mark") if zipped else pickle.loads(file.read_bytes())
    assert (tmp_path / "mark").exists()


def test_a_pickle_in_the_index(sharded, tmp_path):
    write_pickle(sharded / "pytorch_model.bin", tmp_path / "mark")
    change_json(sharded, lambda index: index["weight_map"].update(extra="pytorch_model.bin"), INDEX)
    refused(sharded, "pytorch_model.bin", "damaged")
    assert_the_pickle_works(sharded / "pytorch_model.bin", tmp_path / "mark")


# Links ----------------------------------------------------------------------------------------------------


def put_in_cache(folder, cache, hub_id="MILVLG/imp-v1-3b"):
    """Lay a folder out as the hub's client does: blobs, and a snapshot of links to them."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for place in (repository / "refs", repository / "blobs", snapshot):
        place.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, repository / "blobs" / f"{number:064x}")
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / f"{number:064x}")
    return snapshot


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("relative", [True, False])
def test_a_link_out_of_the_folder_is_refused(whole, tmp_path, name, relative):
    """Even to a good file: what a checkpoint from elsewhere may read must not depend on where it was unpacked."""
    file = whole / name
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(Path("..") / "elsewhere" if relative else tmp_path / "elsewhere")
    refused(whole, str(file), str(tmp_path / "elsewhere"), "outside its folder", "a copy or a hard link")
    file.unlink()
    os.link(tmp_path / "elsewhere", file)
    load(whole)


@pytest.mark.parametrize("name", [INDEX, SHARDS[1]])
def test_a_link_out_of_a_folder_with_an_index(sharded, tmp_path, name):
    (sharded / name).rename(tmp_path / "elsewhere")
    (sharded / name).symlink_to(tmp_path / "elsewhere")
    refused(sharded, str(sharded / name), "outside its folder")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json"])
def test_a_link_out_of_the_folder_in_the_older_tokenizer(tmp_path, name):
    folder = tmp_path / "old"
    folder.mkdir()
    texts = {"vocab.json": "{}", "merges.txt": "", "tokenizer_config.json": "{}", "added_tokens.json": "{}"}
    for file, text in texts.items():
        (folder / file).write_text(text, "utf-8")
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=re.escape(str(folder / name)) + " is a link"):
        TextTokenizer(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_no_error_shows_the_text_of_another_file(whole, tmp_path, name):
    (tmp_path / "passwords").write_text("root:SECRET:0:0")
    (tmp_path / "hop").symlink_to("passwords")
    (whole / name).unlink()
    (whole / name).symlink_to(tmp_path / "hop")  # through a second link
    with pytest.raises(CheckpointError) as caught:
        load(whole)
    error = caught.value
    assert "passwords" in str(error)
    while error is not None:
        assert "SECRET" not in str(error)
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("target", ["../refs/main", "../../secret", "../../blobs/secret", "../../blobs/ab/secret"])
def test_a_copied_cache_reaches_no_other_file(whole, tmp_path, target):
    """Laid out as a hub cache and unpacked anywhere, a checkpoint reads blobs and nothing else."""
    snapshot = put_in_cache(whole, tmp_path / "cache")
    place = Path(os.path.normpath(snapshot.parent / target))
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("SECRET")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(place)
    error = refused(snapshot, "config.json", "outside its folder")
    assert "SECRET" not in error


def test_links_that_are_right_are_followed(whole, tmp_path, monkeypatch):
    """A folder that is a link, files inside it, the hub's cache in all its forms, folders of links into it."""
    expected = load(whole).ask(BUS, "a?", max_new_tokens=3).token_ids

    def answers(folder):
        return load(folder).ask(BUS, "a?", max_new_tokens=3).token_ids == expected

    (tmp_path / "link").symlink_to(whole)
    assert answers(tmp_path / "link")
    (whole / "weights").mkdir()
    (whole / "model.safetensors").rename(whole / "weights" / "one.safetensors")
    (whole / "model.safetensors").symlink_to(Path("weights") / "one.safetensors")
    assert answers(whole)
    # A cache on another disk, reached by a link.
    shutil.rmtree(whole / "weights")
    write_checkpoint(make_oracle(), whole)
    put_in_cache(whole, tmp_path / "disk")
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    snapshot = tmp_path / "cache" / "models--MILVLG--imp-v1-3b" / "snapshots" / COMMIT
    assert answers(snapshot)
    # Blobs that repositories share, as the hub's client stores them since its version 2.
    blob = Path(os.path.realpath(snapshot / "model.safetensors"))
    shared = tmp_path / "disk" / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    assert answers(snapshot)
    # A folder of links into this machine's cache, as older clients made for local_dir.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    mine = tmp_path / "mine"
    mine.mkdir()
    for file in snapshot.iterdir():
        (mine / file.name).symlink_to(os.path.realpath(file))
    assert answers(mine)


@pytest.mark.parametrize("moved", quick(1, ["its blobs", "the repository", "one blob", "the cache"]))
def test_a_cache_whose_parts_were_moved_to_another_disk(whole, offline, tmp_path, moved):
    """What the owner of the cache linked elsewhere loads by its name and by its path."""
    snapshot = put_in_cache(whole, offline)
    repository = snapshot.parent.parent
    part = {
        "the repository": repository,
        "its blobs": repository / "blobs",
        "one blob": Path(os.path.realpath(snapshot / "model.safetensors")),
        "the cache": offline,
    }[moved]
    (tmp_path / "disk").mkdir()
    part.rename(tmp_path / "disk" / "moved")
    part.symlink_to(tmp_path / "disk" / "moved")
    assert imp_kit.load("imp-v1-3b", device="cpu", dtype="fp32").name == "MILVLG/imp-v1-3b"
    assert load(snapshot).snapshot.revision == COMMIT
    (tmp_path / "mine").symlink_to(snapshot)  # a folder of one's own that leads there, and one whose files do
    load(tmp_path / "mine")
    (tmp_path / "files").mkdir()
    for file in snapshot.iterdir():
        (tmp_path / "files" / file.name).symlink_to(file)
    load(tmp_path / "files")


@pytest.mark.parametrize("place", ["models--a--b/blobs/deep/x", "blobs/private.txt", "other/blobs/x", "blobs/ab/x"])
def test_what_lies_in_the_cache_and_is_no_blob_is_not_read(whole, offline, place):
    target = offline / place
    target.parent.mkdir(parents=True)
    (whole / "config.json").rename(target)
    (whole / "config.json").symlink_to(target)
    refused(whole, "config.json", "outside its folder")


@pytest.mark.parametrize("moved", ["its blobs", "one blob", "by the name of a cache"])
def test_a_strangers_folder_laid_out_as_a_cache_leads_nowhere(whole, offline, tmp_path, moved):
    """The same links in a folder that is not this machine's cache: trust does not follow from names."""
    snapshot = put_in_cache(whole, tmp_path / "unpacked")
    repository = snapshot.parent.parent
    elsewhere = tmp_path / "models--somebody--secret" / "blobs"
    elsewhere.parent.mkdir()
    if moved == "its blobs":
        (repository / "blobs").rename(elsewhere)
        (repository / "blobs").symlink_to(elsewhere)
    else:
        elsewhere.mkdir()
        file = snapshot / "config.json"
        blob = Path(os.path.realpath(file)).rename(elsewhere / "secret")
        link = file if moved == "by the name of a cache" else repository / "blobs" / os.path.basename(os.readlink(file))
        link.unlink(missing_ok=True)
        link.symlink_to(blob)
    refused(snapshot, "outside its folder")


def test_a_link_out_of_the_cache_that_is_no_blob_is_refused(whole, offline, tmp_path):
    """Even in this machine's cache a snapshot's file leads to a blob or nowhere."""
    snapshot = put_in_cache(whole, offline)
    (tmp_path / "elsewhere").write_text("SECRET")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(tmp_path / "elsewhere")
    assert "SECRET" not in refused(snapshot, "config.json", "outside its folder")


@pytest.mark.parametrize("name", ["._model.safetensors", ".hidden.safetensors", "._config.json", ".DS_Store", ".git"])
def test_files_whose_names_begin_with_a_dot_are_nobodys(whole, name):
    """macOS puts a "._" file beside each on a disk of another kind."""
    before = load(whole).ask(BUS, "a?", max_new_tokens=3).token_ids
    digest = imp_kit.checkpoints.hub.find(whole).digest()
    (whole / name).write_bytes(b"\0\5\26\7no tensors")
    assert load(whole).ask(BUS, "a?", max_new_tokens=3).token_ids == before
    assert imp_kit.checkpoints.hub.find(whole).digest() == digest
    (whole / "model.safetensors").unlink()
    refused(whole, "no *.safetensors")


@pytest.mark.parametrize("config", [True, False])
def test_lora_adapters_alone(whole, config):
    (whole / "model.safetensors").rename(whole / "adapter_model.safetensors")
    (whole / "adapter_config.json").write_text('{"peft_type": "LORA"}', "utf-8")
    if not config:
        (whole / "config.json").unlink()
    refused(whole, str(whole), "LoRA adapters alone", "merge_and_unload")


def test_a_file_that_was_cut_after_its_header_was_read_is_named_as_the_reader_knows_it(whole, tmp_path):
    """Not by its blob in the hub's cache, whose name is a number."""
    snapshot = put_in_cache(whole, tmp_path)
    plan = plan_folder(snapshot)
    file = snapshot / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=re.escape(f"{file} cannot be read")):
        fill(plan, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["dangling", "loop", "folder", "pipe"])
def test_what_is_no_file(whole, name, kind):
    file = whole / name
    file.unlink()
    if kind == "dangling":
        file.symlink_to("nothing")
    elif kind == "loop":
        file.symlink_to(name)
    elif kind == "folder":
        file.mkdir()
    else:
        os.mkfifo(file)  # to read from it would wait for ever
    with pytest.raises(CheckpointError, match=re.escape(name)):
        load(whole)


def test_a_file_that_became_a_link_after_its_header_was_read(whole, tmp_path):
    plan = plan_folder(whole)
    (whole / "model.safetensors").rename(tmp_path / "elsewhere")
    (whole / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="outside its folder"):
        fill(plan, torch.device("cpu"), torch.float32)
    (whole / "model.safetensors").unlink()
    (tmp_path / "elsewhere").rename(whole / "model.safetensors")
    assert fill(plan, torch.device("cpu"), torch.float32).decoder.norm.weight.shape == (64,)


def test_a_file_that_is_not_there_passes(tmp_path):
    assert follow(tmp_path / "nothing") == Path(os.path.realpath(tmp_path / "nothing"))


def test_the_kit_installed_as_links(tmp_path):
    """Some installers link every single file of a package into a store of their own."""
    package = NANO_FOLDER.parent.parent
    for file in package.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            link = tmp_path / "imp_kit" / file.relative_to(package)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", READ_NANO], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))


READ_NANO = """
import imp_kit
from imp_kit.checkpoints.hub import find
from imp_kit.checkpoints.files import find_tensors, read_json
from imp_kit.checkpoints.tokenizer import TextTokenizer
folder = find("imp-nano").folder
TextTokenizer(folder), find_tensors(folder), read_json(folder / "config.json")
print(imp_kit.__file__)
"""


# The index ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        "..\\{}",
        "sub\\{}",
        "C:{}",
        "/etc/passwd",
        "{folder}/{}",
        "./{}",
        "x" * 300,
        "x" * 100_000,
        "\ud800",
        "{}\n",
        "../../{}",
    ],
)
def test_an_index_that_names_no_file_of_the_folder(sharded, place):
    place = place.format(SHARDS[1], folder=sharded)

    def change(index):
        index["weight_map"] = {name: place if file == SHARDS[1] else file for name, file in index["weight_map"].items()}

    change_json(sharded, change, INDEX)
    assert len(refused(sharded, INDEX)) < 1000


# Half a download ------------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An empty hub cache, and no way to the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", SHARDS[1]])
@pytest.mark.parametrize("left", ["nothing", "half a blob", "a link without its blob"])
def test_half_a_download_offline(sharded, offline, tmp_path, name, left):
    """The error names the file and says to go online; without that file missing the checkpoint loads."""
    snapshot = put_in_cache(sharded, offline)
    blob = Path(os.path.realpath(snapshot / name))
    if left != "a link without its blob":
        (snapshot / name).unlink()
    if left == "half a blob":
        blob.with_name(f"{blob.name}.incomplete").write_bytes(blob.read_bytes()[:100])
    whole_blob = blob.rename(tmp_path / "blob")
    with untouched(offline), pytest.raises(CheckpointError, match=re.escape(name)) as caught:
        imp_kit.load("imp-v1-3b", device="cpu", dtype="fp32")
    assert ONLINE in str(caught.value)
    whole_blob.rename(blob)
    if left != "a link without its blob":
        (snapshot / name).symlink_to(blob)
    assert imp_kit.load("imp-v1-3b", device="cpu", dtype="fp32").name == "MILVLG/imp-v1-3b"


def test_half_a_download_without_weights(whole, offline):
    snapshot = put_in_cache(whole, offline)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"no .*safetensors.*{ONLINE}"):
        imp_kit.load("imp-v1-3b", device="cpu", dtype="fp32")


# Sizes ----------------------------------------------------------------------------------------------------


def values(**changes):
    """Other values in config.json; in that of the tower, where the name begins with `vision_`."""

    def spoil(folder):
        def change(config):
            for name, value in changes.items():
                inner = name.removeprefix("vision_")
                (config if inner == name else config["vision_config"])[inner] = value

        change_json(folder, change)

    return spoil


def text(name, content):
    return lambda folder: (folder / name).write_text(content, "utf-8")


def length(name, size):
    """A file of zeros behind its own text, of which the disk keeps next to nothing."""
    return lambda folder: os.truncate(folder / name, size)


def forged(name, **changes):
    """A tensor may be called anything, and config.json may agree with it."""

    def spoil(folder):
        tensors = load_file(folder / "model.safetensors")
        save_file({**tensors, name: torch.zeros(0)}, folder / "model.safetensors")
        values(**changes)(folder)

    return spoil


HUGE = {  # what is wrong -> how it comes about, and what the error names
    "hidden": (values(n_embd=2**30), "hidden_size is 1073741824"),
    "negative": (values(n_embd=-(2**30)), "hidden_size"),
    "vocabulary": (values(vocab_size=2**31 - 1), "(2147483647, 64)"),
    "vocabulary, more": (values(vocab_size=2**31), "vocab_size"),
    "layers": (values(n_layer=10**9), "num_hidden_layers"),
    "layers, many digits": (values(n_layer=10**400), "num_hidden_layers"),
    "layers, more digits than Python reads": (text("config.json", '{"n_layer": 1' + "0" * 5000 + "}"), "config.json"),
    "layers and a tensor of the last": (
        forged("transformer.h.999999999.ln.weight", n_layer=10**9),
        "num_hidden_layers is 1000000000",
    ),
    "MLP": (values(n_inner=2**31 - 1), "mlp.fc1"),
    "heads": (values(n_head=2**30), "attention heads"),
    "rotary": (values(rotary_dim=2**40), "rotary"),
    "eos": (values(eos_token_id=[2**40] * 10_000), "eos_token_id"),
    "1e308": (values(n_embd=1e308), "hidden_size"),
    "-1e308": (values(rope_theta=-1e308), "rope_theta"),
    "Infinity": (values(n_positions=float("inf")), "max_position_embeddings"),
    "-Infinity": (values(layer_norm_epsilon=float("-inf")), "layer_norm_eps"),
    "NaN": (values(vocab_size=float("nan")), "vocab_size"),
    "a long text": (values(vocab_size="9" * 1_000_000), "vocab_size"),
    "a long list": (values(vocab_size=[0] * 1_000_000), "vocab_size"),
    "picture": (values(vision_image_size=2**31 - 1), "2147483647 pixels"),
    "tower's width": (values(vision_hidden_size=2**30), "hidden_size 1073741824"),
    "tower's layers": (values(vision_num_hidden_layers=10**9), "num_hidden_layers"),
    "tower's layers and a tensor of the last": (
        forged(f"{TOWER}999999999.mlp.fc1.weight", vision_num_hidden_layers=10**9),
        "num_hidden_layers is 1000000000",
    ),
    "tower's heads": (values(vision_num_attention_heads=2**31 - 1), "2147483647 heads"),
    "tower's epsilon": (values(vision_layer_norm_eps=1e308), "layer_norm_eps"),
    "lists in lists": (text("config.json", "[" * 100_000), "config.json"),
    "objects in objects": (text("config.json", '{"a":' * 100_000), "config.json"),
    "lists in a value": (text("config.json", '{"model_type": ' + "[" * 900 + "]" * 900 + "}"), "model_type"),
    "a config of 200 MB": (length("config.json", 200_000_000), "200000000 bytes"),
    "index: lists in lists": (text(INDEX, "[" * 100_000), INDEX),
    "index: objects in objects": (text(INDEX, '{"weight_map":' * 100_000), INDEX),
    "index: 200 MB": (length(INDEX, 200_000_000), "200000000 bytes"),
}
TRY = """
import json, resource, sys, torch
from pathlib import Path
from imp_kit.errors import CheckpointError
from imp_kit.checkpoints.load import load_weights
results = []
for folder in sys.argv[1:]:
    try:
        load_weights(Path(folder), torch.device("cpu"), torch.float32)
        results.append("loaded")
    except CheckpointError as error:
        results.append(str(error))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = before if len(results) > 1 else peak
print(json.dumps({"results": results, "grown": peak - before}))
"""


@pytest.fixture(scope="module")
def tried(oracle, tmp_path_factory):
    """What loading each of HUGE tells, and how far memory grew, in a child that loads a good checkpoint first."""
    place = tmp_path_factory.mktemp("huge")
    good = write_checkpoint(oracle, place / "good")
    folders = []
    for name, (spoil, _) in HUGE.items():
        folders.append(place / str(len(folders)))
        if "index" in name:
            write_checkpoint(oracle, folders[-1], shards=3)
        else:
            shutil.copytree(good, folders[-1])
        spoil(folders[-1])
    command = [sys.executable, "-c", TRY, str(good), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    shutil.rmtree(place)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["results"].pop(0) == "loaded"
    return dict(zip(HUGE, result["results"], strict=True)), result["grown"]


@pytest.mark.parametrize("name", HUGE)
def test_what_is_huge_or_mad_is_refused(tried, name):
    message = tried[0][name]
    assert HUGE[name][1] in message
    assert len(message) < 1000


def test_what_is_huge_takes_no_memory(tried):
    """100 MB are room for reading the small files; the large ones are 200 MB. Linux counts in KB, macOS in bytes."""
    assert tried[1] < 100_000 * (1024 if sys.platform == "darwin" else 1)


def test_a_huge_or_endlessly_nested_tokenizer(whole):
    file = whole / "tokenizer.json"
    for text in ("[" * 100_000, '{"model":' * 100_000):
        file.write_text(text, "utf-8")
        refused(whole, "tokenizer.json", "cannot be read as JSON")
    with file.open("wb") as stream:
        stream.truncate(TEXT_LIMIT + 1)
    refused(whole, "tokenizer.json", f"{TEXT_LIMIT + 1} bytes")


# Headers of safetensors files -----------------------------------------------------------------------------


def tensor(start, end, shape=(2,), dtype="F16"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def write_tensors(folder, header, size=8, length=None):
    """A safetensors file with this header, JSON or text, and `size` bytes of data."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    length = struct.pack("<Q", len(text) if length is None else length)
    (folder / "model.safetensors").write_bytes(length + text + b"\1" * size)


GOOD = {"a": tensor(0, 4), "b": tensor(4, 8)}
TWICE = '{"a": %s, "b": %s, %s: %s}'


@pytest.mark.parametrize(
    ("header", "word"),
    [
        # By one name twice: with the same bytes, with others, the second spelled with an escape, without any bytes.
        (TWICE % (json.dumps(GOOD["a"]), json.dumps(GOOD["b"]), '"a"', json.dumps(GOOD["a"])), "a 2 times"),
        (TWICE % (json.dumps(GOOD["a"]), json.dumps(GOOD["b"]), '"\\u0061"', json.dumps(GOOD["a"])), "a 2 times"),
        (TWICE % (json.dumps(tensor(0, 4)), json.dumps(tensor(4, 8)), '"a"', json.dumps(tensor(4, 8))), "damaged"),
        (
            TWICE
            % (json.dumps(tensor(0, 0, (0,))), json.dumps(tensor(0, 8, (4,))), '"a"', json.dumps(tensor(0, 0, (0,)))),
            "a 2 times",
        ),
        ('{"a": {"dtype": "F16", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', "damaged"),
        # Two in one place, wholly and in part; a hole between them, before them and behind them.
        ({"a": tensor(0, 8, (4,)), "b": tensor(0, 8, (4,))}, "damaged"),
        ({"a": tensor(0, 8, (4,)), "b": tensor(4, 8)}, "damaged"),
        ({"a": tensor(0, 2, (1,)), "b": tensor(4, 8)}, "damaged"),
        ({"a": tensor(4, 8)}, "damaged"),
        ({"a": tensor(0, 4)}, "damaged"),
        # Beyond the file, backwards, negative, and not what the shape says.
        ({"a": tensor(0, 16, (8,))}, "damaged"),
        ({"a": tensor(2**63, 2**63 + 8, (4,))}, "damaged"),
        ({"a": tensor(8, 0, (4,))}, "damaged"),
        ({"a": tensor(-8, 0, (4,))}, "damaged"),
        ({"a": tensor(0, 8, (5,))}, "damaged"),
        ({"a": tensor(0, 8, (2**62, 2**62))}, "damaged"),
        ({"a": tensor(0, 8, (-4,))}, "damaged"),
        ({"a": tensor(0, 8, (4.0,))}, "damaged"),
        ({"a": tensor(0, 8, (4,), "F17")}, "damaged"),
        # No header of tensors at all.
        ("[]", "damaged"),
        ("null", "damaged"),
        ("", "damaged"),
        ("[" * 100_000, "damaged"),
        ('{"__metadata__": {"format": 1}}', "damaged"),
        # Names that would take over a terminal when they are printed, or fill it.
        ({"\x1b[2J": tensor(0, 8, (4,))}, "no tensor's name"),
        ({"a\nb": tensor(0, 8, (4,))}, "no tensor's name"),
        ({"\u202ea": tensor(0, 8, (4,))}, "no tensor's name"),
        ({"": tensor(0, 8, (4,))}, "no tensor's name"),
        ({f"{TOWER}{'9' * 5000}.bias": tensor(0, 8, (4,))}, "no tensor's name"),
    ],
)
def test_a_header_that_lies(tmp_path, header, word):
    write_tensors(tmp_path, GOOD)
    assert find_tensors(tmp_path).keys() == {"a", "b"}
    write_tensors(tmp_path, header)
    with pytest.raises(CheckpointError, match=word) as caught:
        find_tensors(tmp_path)
    assert str(tmp_path / "model.safetensors") in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("length", [0, 1, 1000, TEXT_LIMIT, TEXT_LIMIT + 1, 100_000_001, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_header_of_another_length(tmp_path, length):
    write_tensors(tmp_path, GOOD, length=length)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or cut short"):
        find_tensors(tmp_path)


def test_a_header_that_is_too_long_is_not_read(tmp_path):
    """The file is as long as its header claims, so that nothing else would refuse it."""
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write((TEXT_LIMIT + 1).to_bytes(8, "little"))
        stream.truncate(TEXT_LIMIT + 100)
    with pytest.raises(CheckpointError, match=f"a header of {TEXT_LIMIT + 1} bytes"):
        find_tensors(tmp_path)


def test_tensors_without_values(whole):
    """Fine where nobody needs them, refused where config.json calls for values."""
    tensors = load_file(whole / "model.safetensors")
    save_file({**tensors, "extra": torch.zeros(0, 5)}, whole / "model.safetensors")
    with pytest.warns(UserWarning, match="extra"):
        load(whole)
    save_file({**tensors, "lm_head.ln.weight": torch.zeros(0)}, whole / "model.safetensors")
    refused(whole, "lm_head.ln.weight", "(0,)", "(64,)")


# Tokenizers -----------------------------------------------------------------------------------------------


def mark(id, content, **changes):
    """An added token as tokenizer.json has it."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": id, "content": content, **flags, **changes}


def phi2_tokenizer(base):
    return base


def qwen_tokenizer(base):
    """Byte-level BPE behind NFC."""
    tokens = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    base["normalizer"] = {"type": "NFC"}
    base["added_tokens"] = [mark(297 + place, token) for place, token in enumerate(tokens)]
    return base


def phi3_tokenizer(base):
    """LLaMA's BPE of characters, with bytes for all others, blanks as a letter, and tokens that swallow blanks."""
    plain = [*("<unk>", "<s>", "</s>"), *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a"]
    tokens = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
    vocabulary = {token: id for id, token in enumerate(plain)}
    base["added_tokens"] = [mark(id, token) for id, token in enumerate(plain[:3])]
    base["added_tokens"] += [mark(len(plain) + place, token, rstrip=True) for place, token in enumerate(tokens)]
    base["model"] |= {"vocab": vocabulary, "merges": ["▁ a"], "unk_token": "<unk>", "byte_fallback": True}
    blank = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    base["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, blank]}
    base["pre_tokenizer"] = None
    letters = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    decoders = [letters, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]
    base["decoder"] = {"type": "Sequence", "decoders": decoders}
    return base


TOKENIZERS = {"imp": phi2_tokenizer, "imp_qwen2": qwen_tokenizer, "imp_phi3": phi3_tokenizer}
families = pytest.mark.parametrize("family", TOKENIZERS)
TYPED = (
    *("</s>", "<|im_end|>", "<|end|>", "<|im_start|>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>"),
    *("<s>", "<unk>", "<0x0A>", "[PAD]"),
)
# Letters that look like the others, or vanish: full width, zero width, soft hyphen, fraction slash, small, variation.
DISGUISES = (
    lambda token: "".join(chr(ord(letter) + 0xFEE0) for letter in token),
    lambda token: token.replace("<", "<\u200b"),
    lambda token: "\u200d".join(token),
    lambda token: token.replace("|", "|\u00ad").replace("/", "\u2044"),
    lambda token: token.replace("<", "\ufe64").replace(">", "\ufe65"),
    lambda token: token.replace("s", "\u017f"),
    lambda token: token + "\ufe0f",
    str.upper,
)
VANISH = {"type": "Replace", "pattern": {"Regex": "[\u200b\u200d\u00ad\ufe0f]"}, "content": ""}
NORMALIZERS = {
    "its own": [],
    "NFKC": [{"type": "NFKC"}],
    "NFKC, nothing invisible, small letters": [VANISH, {"type": "NFKC"}, {"type": "Lowercase"}],
}


def write_family_tokenizer(folder, family, change=lambda base: None):
    """The tiny checkpoint's tokenizer.json made into one of the family's own kind; then `change` has its way."""
    base = TOKENIZERS[family](json.loads((folder / "tokenizer.json").read_text("utf-8")))
    change(base)
    (folder / "tokenizer.json").write_text(json.dumps(base), "utf-8")
    return TextTokenizer(folder)


def control_ids(tokenizer, pieces):
    known = set(tokenizer.control.values())
    return [id for id in tokenizer.encode_pieces(pieces) if id in known]


@families
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("normalized", [True, False])
def test_no_question_holds_a_control_token(whole, family, normalizer, normalized):
    """Typed, disguised, doubled, alone: the prompt has its own control tokens and no other, and the letters stay."""

    def change(base):
        own = [base["normalizer"]] if base["normalizer"] else []
        base["normalizer"] = {"type": "Sequence", "normalizers": [*NORMALIZERS[normalizer], *own]}
        for token in base["added_tokens"]:
            token["normalized"] = normalized

    tokenizer = write_family_tokenizer(whole, family, change)
    template = TEMPLATES[family]
    assert set(template.control) <= tokenizer.control.keys()
    for first in (True, False):
        expected = control_ids(tokenizer, template.ask("a?", first))
        assert expected or (family, first) == ("imp", True)
        for token in TYPED:
            for text in (token, *(disguise(token) for disguise in DISGUISES)):
                for question in (text, f"a {text} a", f"a{text}{text}\n{text}", text.join("a?")):
                    assert control_ids(tokenizer, template.ask(question, first)) == expected, question
    if normalizer == "its own":
        for token in TYPED:
            assert tokenizer.decode(tokenizer.encode(f"a {token} a")) == f"a {token} a"


@families
def test_a_question_of_control_tokens_is_answered_and_a_picture_mark_refused(tmp_path, family):
    layout = "old" if family == "imp" else "new"
    folder = write_checkpoint(make_oracle(0, family), tmp_path / "tiny", layout, max_position_embeddings=2048)
    if family == "imp":
        change_json(folder, lambda config: config.update(n_positions=2048))
    tokenizer = write_family_tokenizer(folder, family)
    change_json(folder, lambda config: config.update(eos_token_id=tokenizer.control["<|endoftext|>"]))
    chat = load(folder).chat(BUS)
    for token in TYPED:
        answer = chat.say(f"a {token} a", max_new_tokens=2)
        assert f"a {token} a" in answer.prompt
        for question in ("<image>", f"a <image> {token}"):
            with pytest.raises(PromptError, match="picture's place"):
                chat.say(question)
    assert len(chat.turns) == len(TYPED)


def nano_tokenizer(folder, change):
    """imp-nano's tokenizer.json, changed."""
    base = json.loads((NANO_FOLDER / "tokenizer.json").read_text("utf-8"))
    change(base)
    (folder / "tokenizer.json").write_text(json.dumps(base), "utf-8")
    return TextTokenizer(folder)


def outcome(folder, change, text):
    """A text encoded and decoded by a changed tokenizer, or that the kit refused it."""
    try:
        tokenizer = nano_tokenizer(folder, change)
        return tokenizer.decode(tokenizer.encode(text))
    except CheckpointError:
        return "refused"


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("special", [True, False])
def test_an_added_word_does_not_take_the_place_of_its_letters(tmp_path, normalized, special):
    """What a question says is read as the words that the checkpoint was trained on."""
    word, id = "zebra", TextTokenizer(NANO_FOLDER).size
    flags = {"normalized": normalized, "special": special}
    hijacked = nano_tokenizer(tmp_path, lambda base: base["added_tokens"].append(mark(id, word, **flags)))
    assert hijacked.control[word] == id
    text = "What is this zebra? zebra"
    assert hijacked.encode(text) == TextTokenizer(NANO_FOLDER).encode(text)


def hijack_an_ordinary_word(base):
    base["added_tokens"].append(mark(base["model"]["vocab"]["What"], "What", special=False))


def hijack_a_letter(base):
    base["added_tokens"].append(mark(base["model"]["vocab"]["A"], "A"))


def spell_the_stop_token(base):
    """Merges that make the stop token's own id out of its letters."""
    vocabulary, merges = base["model"]["vocab"], base["model"]["merges"]
    pair = list if isinstance(merges[0], list) else " ".join
    vocabulary |= {token["content"]: token["id"] for token in base["added_tokens"]}
    vocabulary |= {"</": len(vocabulary), "</s": len(vocabulary) + 1}
    merges[:0] = [pair(parts) for parts in (("<", "/"), ("</", "s"), ("</s", ">"))]
    # Nothing is split off beforehand, so that the letters can meet.
    base["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def a_vocabulary_of_words(base):
    """Every entry is a word, the stop token, too."""
    base["model"] = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "</s>": 2}, "unk_token": "a"}
    base["pre_tokenizer"], base["added_tokens"] = {"type": "WhitespaceSplit"}, [mark(2, "</s>")]


@pytest.mark.parametrize(
    ("change", "token"),
    [
        (hijack_an_ordinary_word, "What"),
        (hijack_a_letter, "A"),
        (spell_the_stop_token, "</s>"),
        (a_vocabulary_of_words, "</s>"),
    ],
)
def test_letters_that_make_a_control_token_are_refused(tmp_path, change, token):
    with pytest.raises(CheckpointError, match="out of plain letters") as caught:
        nano_tokenizer(tmp_path, change)
    assert repr(token) in str(caught.value)


def test_letters_that_make_a_control_token_only_among_others(tmp_path):
    """A byte-level word's own spelling, Ġ for a blank, as an added token: seen no sooner than in a text."""
    vocabulary = json.loads((NANO_FOLDER / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    hijacked = nano_tokenizer(
        tmp_path, lambda base: base["added_tokens"].append(mark(vocabulary["Ġthe"], "Ġthe", special=False))
    )
    assert hijacked.encode("Where is a bus?")
    with pytest.raises(CheckpointError, match="out of plain letters"):
        hijacked.encode("Where is the bus?")


def test_a_vocabulary_that_ignores_its_merges_forges_nothing(tmp_path):
    """tokenizers since 0.19 then takes a whole word from the vocabulary; older ones do not know the switch."""

    def change(base):
        base["model"]["vocab"] |= {token["content"]: token["id"] for token in base["added_tokens"]}
        base["model"]["ignore_merges"] = True
        base["pre_tokenizer"] = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        }

    assert outcome(tmp_path, change, "</s>") in ("</s>", "refused")


@pytest.mark.parametrize(
    ("part", "value"),
    [
        # Each of these makes some version of tokenizers panic in Rust or raise a plain Exception.
        ("normalizer", {"type": "Prepend", "prepend": ""}),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        ("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": "x"}),
        ("decoder", {"type": "Strip", "content": "a", "start": 100, "stop": 100}),
        ("model", {"type": "BPE", "vocab": {}, "merges": []}),
        ("model", {"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "zz"}),
        ("model", {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]}),
        ("model", {"type": "WordLevel", "vocab": {}, "unk_token": "x"}),
        ("added_tokens", None),
        ("added_tokens", [None]),
        ("added_tokens", [{"content": 3}]),
        ("added_tokens", [mark(-1, "</s>")]),
        ("added_tokens", [mark(2**40, "</s>")]),
        ("added_tokens", [mark(3, "</s>")]),
    ],
)
def test_a_broken_tokenizer_never_raises_anything_else(tmp_path, part, value):
    def change(base):
        base[part] = value
        if part == "model":
            base["added_tokens"] = []

    results = [outcome(tmp_path, change, text) for text in ("a", "b a, 男 🚌")]
    assert "refused" in results or part in ("normalizer", "decoder")


# Names that a user types ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x" * 5000, f"a/{'b' * 5000}", "~nobody-of-this-name/imp", "a\0b", "\ud800"])
def test_a_name_that_no_file_can_have(offline, name):
    with pytest.raises(CheckpointError, match="no folder"):
        load(name)
