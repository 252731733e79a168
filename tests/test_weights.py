"""Folders that are no checkpoint, or a damaged one: every error names the culprit, and nothing is half loaded."""

import json
import pickle
import re
import shutil
import struct
import time
from pathlib import Path

import pytest
import torch
from oracle import SO400M, Oracle, change_json, checkpoint_tensors, config_values, write_checkpoint
from safetensors.torch import load_file, save_file

from imp_kit.checkpoints import load as weights
from imp_kit.checkpoints.config import parse_config
from imp_kit.checkpoints.files import find_tensors, read_json
from imp_kit.checkpoints.hub import NANO_FOLDER
from imp_kit.checkpoints.key_maps import NEW_PHI
from imp_kit.checkpoints.load import load_weights
from imp_kit.checkpoints.plan import plan, slots
from imp_kit.errors import CheckpointError, MemoryLimitError

OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
SHARD = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"
TOWER = "transformer.vision_tower.vision_tower.vision_model."


def load(folder):
    return load_weights(folder, torch.device("cpu"), torch.float32)


def change_tensors(folder, change, file="model.safetensors"):
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)


def refused(folder, *words):
    """The folder cannot be loaded, and the message has all of `words`."""
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"


# config.json ----------------------------------------------------------------------------------------------


def test_no_config(whole):
    (whole / "config.json").unlink()
    refused(whole, "config.json", str(whole))


def test_no_folder(tmp_path):
    refused(tmp_path / "nowhere", "config.json", "nowhere")


@pytest.mark.parametrize("text", ["", "{", "<html>404</html>", "[1, 2]", '"imp"', "\x00"])
def test_config_is_no_json_object(whole, text):
    (whole / "config.json").write_text(text, "utf-8")
    refused(whole, "config.json", "JSON")


def test_config_is_no_text(whole):
    (whole / "config.json").write_bytes(b"\xff\xfe\x81")
    refused(whole, "config.json")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("model_type", "llava", ["'llava'", "'imp'"]),
        ("model_type", None, ["model_type", "None"]),
        ("model_type", ["imp"], ["model_type"]),
        ("activation_function", "relu", ["activation_function", "'relu'"]),
        ("mm_projector_type", "linear", ["mm_projector_type", "'linear'"]),
        ("tie_word_embeddings", True, ["tie_word_embeddings"]),
        ("qk_layernorm", True, ["qk_layernorm"]),
        ("rope_scaling", {"type": "linear", "factor": 2.0}, ["rope_scaling"]),
        ("image_aspect_ratio", "anyres", ["image_aspect_ratio", "'anyres'"]),
        ("n_head_kv", 2, ["num_key_value_heads"]),
        ("n_head", 5, ["64", "5"]),
        ("n_head", 0, ["num_attention_heads", "0"]),
        ("n_head", "4", ["num_attention_heads", "'4'"]),
        ("n_head", None, ["n_head"]),
        ("n_embd", None, ["n_embd"]),
        ("n_embd", -64, ["hidden_size", "-64"]),
        ("n_layer", 2.5, ["num_hidden_layers", "2.5"]),
        ("n_layer", True, ["num_hidden_layers", "True"]),
        ("n_layer", float("inf"), ["num_hidden_layers", "inf"]),
        ("n_layer", float("nan"), ["num_hidden_layers", "nan"]),
        ("vocab_size", None, ["vocab_size"]),
        ("vocab_size", [304], ["vocab_size"]),
        ("n_positions", None, ["n_positions"]),
        ("rotary_dim", 7, ["rotary", "7"]),
        ("rotary_dim", 18, ["rotary", "18"]),
        ("rotary_dim", 0, ["rotary", "0"]),
        ("rotary_dim", "8", ["rotary", "'8'"]),
        ("layer_norm_epsilon", 0, ["layer_norm_eps"]),
        ("layer_norm_epsilon", float("nan"), ["layer_norm_eps", "nan"]),
        ("rope_theta", -1, ["rope_theta"]),
        ("mm_vision_select_layer", 2, ["mm_vision_select_layer", "2"]),
        ("mm_vision_select_layer", -5, ["mm_vision_select_layer", "-5"]),
        ("mm_vision_select_layer", "last", ["mm_vision_select_layer", "'last'"]),
        ("vision_config", None, ["num_attention_heads"]),
        ("vision_config", "siglip", ["vision_config", "'siglip'"]),
        # More of something than the tensors hold, or other sizes.
        ("n_layer", 4, ["transformer.h.3.ln.weight"]),
        ("n_layer", 2**30, ["num_hidden_layers", str(2**30)]),
        ("n_inner", 2**61, ["intermediate_size", str(2**61)]),
        ("eos_token_id", "50256", ["eos_token_id", "'50256'"]),
        ("eos_token_id", [None], ["eos_token_id", "[None]"]),
        ("eos_token_id", True, ["eos_token_id", "True"]),
        ("eos_token_id", 304, ["eos_token_id", "304"]),
        ("mm_use_im_start_end", True, ["mm_use_im_start_end", "True"]),
        ("mm_vision_select_feature", "cls_patch", ["mm_vision_select_feature", "'cls_patch'"]),
        ("vocab_size", 305, ["transformer.embd.wte.weight", "(304, 64)", "(305, 64)"]),
        ("n_inner", 256, ["mlp.fc1", "(160, 64)", "(256, 64)"]),
    ],
)
def test_config_that_makes_no_sense(oracle, tmp_path, name, value, words):
    refused(write_checkpoint(oracle, tmp_path, **{name: value}), *words)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("hidden_size", 64, ["hidden_size 64", "48"]),
        ("intermediate_size", 200, ["intermediate_size 200", "100"]),
        ("patch_size", 16, ["patch_size 16", "14"]),
        ("num_attention_heads", 5, ["5 heads", "48"]),
        ("num_attention_heads", None, ["num_attention_heads"]),
        ("num_hidden_layers", 3, ["3 layers", "4 layers"]),
        ("num_hidden_layers", 6, ["6 layers", "4 layers"]),
        ("num_hidden_layers", None, ["num_hidden_layers"]),
        ("image_size", 75, ["75 pixels", "16 positions"]),
        ("image_size", 10, ["10 pixels"]),
        ("image_size", None, ["image_size"]),
        ("hidden_act", "gelu", ["hidden_act", "'gelu'"]),
        ("layer_norm_eps", "small", ["layer_norm_eps", "'small'"]),
    ],
)
def test_vision_config_that_contradicts_the_tensors(whole, name, value, words):
    def change(config):
        config["vision_config"][name] = value

    change_json(whole, change)
    refused(whole, *words)


# Which tensors there are ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "transformer.h.1.mixer.Wqkv.bias",
        "transformer.h.2.ln.weight",
        "lm_head.linear.bias",
        "lm_head.ln.weight",
        "transformer.mm_projector.2.weight",
        f"{TOWER}encoder.layers.2.layer_norm2.bias",
        f"{TOWER}embeddings.patch_embedding.bias",
        f"{TOWER}embeddings.position_embedding.weight",
        f"{TOWER}embeddings.patch_embedding.weight",
    ],
)
def test_missing_tensor(whole, name):
    change_tensors(whole, lambda tensors: tensors.pop(name))
    refused(whole, name.removeprefix(TOWER))


def test_missing_tensor_of_the_new_layout(oracle, tmp_path):
    folder = write_checkpoint(oracle, tmp_path, "new")
    name = "model.layers.0.self_attn.k_proj.weight"
    change_tensors(folder, lambda tensors: tensors.pop(name))
    refused(folder, name, str(folder))


def test_no_layout_that_is_known(whole):
    change_tensors(whole, lambda tensors: tensors.pop("transformer.embd.wte.weight"))
    refused(whole, "transformer.embd.wte.weight", "model.final_layernorm.weight")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("transformer.h.1.mixer.Wqkv.weight", (64, 192)),
        ("transformer.h.0.mlp.fc1.bias", (1,)),
        ("lm_head.linear.weight", (300, 64)),
        ("transformer.mm_projector.0.weight", (64, 48, 1)),
        ("transformer.h.0.ln.weight", ()),
        (f"{TOWER}encoder.layers.1.self_attn.q_proj.weight", (48, 32)),
        (f"{TOWER}embeddings.patch_embedding.weight", (48, 588)),
        (f"{TOWER}embeddings.patch_embedding.weight", (48, 3, 0, 0)),
        (f"{TOWER}embeddings.position_embedding.weight", (16,)),
        (f"{TOWER}encoder.layers.0.mlp.fc1.weight", ()),
        (f"{TOWER}embeddings.patch_embedding.weight", (48, 1, 14, 14)),
        (f"{TOWER}embeddings.patch_embedding.weight", (48, 3, 14, 13)),
    ],
)
def test_misshapen_tensor(whole, name, shape):
    change_tensors(whole, lambda tensors: tensors.update({name: torch.zeros(shape)}))
    refused(whole, name.removeprefix(TOWER))


def test_misshapen_part_of_the_new_layout(oracle, tmp_path):
    folder = write_checkpoint(oracle, tmp_path, "new")
    name = "model.layers.0.self_attn.v_proj.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(32, 64)}))
    refused(folder, name, "(32, 64)", "(64, 64)", "model.safetensors")


def test_a_tower_layer_without_a_number(whole):
    name = f"{TOWER}encoder.layers.first.bias"
    change_tensors(whole, lambda tensors: tensors.update({name: torch.zeros(1)}))
    assert load(whole)[1] == [name]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.uint8, torch.bool, torch.float64])
def test_tensors_that_are_no_weights(whole, dtype):
    name = "transformer.h.0.mlp.fc1.weight"
    change_tensors(whole, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    refused(whole, name, "model.safetensors", "F16")


def test_known_spares_pass_silently(oracle, tmp_path):
    """What the tower has beyond what is used, and buffers that old files hold, integers among them."""
    buffers = {
        f"{TOWER}embeddings.position_ids": torch.arange(16)[None],
        "transformer.h.0.mixer.rotary_emb.inv_freq": torch.ones(4),
        "transformer.h.0.mixer.rotary_emb.cos_cached": torch.ones(4),
    }
    folder = write_checkpoint(oracle, tmp_path / "with")
    names = load_file(folder / "model.safetensors").keys()
    assert f"{TOWER}post_layernorm.weight" in names
    assert f"{TOWER}encoder.layers.3.mlp.fc1.weight" in names
    assert f"{TOWER}head.probe" in names
    change_tensors(folder, lambda tensors: tensors.update(buffers))
    assert load(folder)[1] == []
    assert load(write_checkpoint(oracle, tmp_path / "without", spares=False))[1] == []


def test_unknown_spares_are_listed(whole):
    spares = {"transformer.h.0.mixer.lora.A": torch.ones(2), "score.weight": torch.arange(3)}
    change_tensors(whole, lambda tensors: tensors.update(spares))
    model, listed = load(whole)
    assert listed == sorted(spares)
    assert model.config.decoder.num_layers == 3


def test_a_decoder_layer_too_many_is_listed(oracle, tmp_path):
    """config.json asks for fewer layers than the file holds: not silently another network."""
    listed = load(write_checkpoint(oracle, tmp_path, n_layer=2))[1]
    assert "transformer.h.2.mixer.Wqkv.weight" in listed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_values_are_the_files_own(oracle, tmp_path, dtype):
    model, _ = load(write_checkpoint(oracle, tmp_path, "new", dtype=dtype))
    for layer, theirs in zip(model.decoder.layers, oracle.language.model.layers, strict=True):
        parts = [getattr(theirs.self_attn, f"{part}_proj").weight for part in "qkv"]
        assert torch.equal(layer.attention.qkv.weight, torch.cat(parts).to(dtype).float())
    assert not model.training
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_values_are_rounded_as_torch_does_it(monkeypatch, dtype):
    """Pieces of 1,000 values leave a shorter one at the end of nearly every tensor."""
    stored = load_file(NANO_FOLDER / "model.safetensors")
    monkeypatch.setattr(weights, "PIECE", 1000)
    model, _ = load_weights(NANO_FOLDER, torch.device("cpu"), dtype)
    table, parameters = slots(model, NEW_PHI), dict(model.named_parameters())
    for key, slot in table.items():
        assert torch.equal(parameters[slot.parameter][slot.start : slot.stop], stored[key].to(dtype)), key


def test_the_callers_default_dtype_changes_nothing():
    expected = dict(load(NANO_FOLDER)[0].named_parameters())
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = dict(load(NANO_FOLDER)[0].named_parameters())
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# Files ----------------------------------------------------------------------------------------------------


def test_no_weights_at_all(whole):
    (whole / "model.safetensors").unlink()
    refused(whole, str(whole), "no *.safetensors")


class WritesAFile:
    """Unpickled, it would write a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.write_text, (self.file, "it ran")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "imp.pt", "imp.pth", "imp.ckpt"])
def test_pickles_are_refused_and_never_opened(whole, tmp_path, name):
    trap = tmp_path / "trap"
    (whole / "model.safetensors").unlink()
    (whole / name).write_bytes(pickle.dumps(WritesAFile(trap)))
    refused(whole, name, "pickle")
    assert not trap.exists()
    # The trap is a real one.
    pickle.loads((whole / name).read_bytes())
    assert trap.read_text() == "it ran"


def test_a_pickle_beside_good_weights_does_not_matter(whole, tmp_path):
    trap = tmp_path / "trap"
    (whole / "pytorch_model.bin").write_bytes(pickle.dumps(WritesAFile(trap)))
    load(whole)
    assert not trap.exists()


def test_a_pickle_named_safetensors(whole, tmp_path):
    trap = tmp_path / "trap"
    (whole / "model.safetensors").write_bytes(pickle.dumps(WritesAFile(trap)))
    refused(whole, "model.safetensors", "damaged")
    assert not trap.exists()


@pytest.mark.parametrize("kept", [0, 4, 100, -1, -4000])
def test_truncated_file(whole, kept):
    file = whole / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    refused(whole, "model.safetensors", "damaged or cut short")


def test_a_folder_named_like_a_file(whole):
    (whole / "model.safetensors").unlink()
    (whole / "model.safetensors").mkdir()
    refused(whole, "model.safetensors")


def test_truncated_shard(sharded):
    file = sharded / SHARD
    file.write_bytes(file.read_bytes()[:-100])
    refused(sharded, SHARD, "damaged or cut short")


def test_missing_shard(sharded):
    (sharded / SHARD).unlink()
    refused(sharded, SHARD, INDEX)


def test_shards_without_their_index_are_read_all_the_same(sharded):
    (sharded / INDEX).unlink()
    assert load(sharded)[1] == []


def test_missing_shard_without_an_index(sharded):
    (sharded / INDEX).unlink()
    (sharded / SHARD).unlink()
    refused(sharded, "missing")


def test_a_file_that_the_index_does_not_list_is_not_read(sharded):
    (sharded / "other.safetensors").write_bytes(b"no tensors")
    assert load(sharded)[1] == []


def test_a_tensor_in_two_files(sharded):
    names = list(load_file(sharded / "model-00001-of-00003.safetensors"))
    extra = {names[0]: torch.zeros(1)}
    change_tensors(sharded, lambda tensors: tensors.update(extra), SHARD)
    refused(sharded, names[0], SHARD, "model-00001-of-00003.safetensors")


def test_a_tensor_that_the_index_places_elsewhere(sharded):
    name = "transformer.embd.wte.weight"

    assert name not in load_file(sharded / SHARD)
    change_json(sharded, lambda index: index["weight_map"].update({name: SHARD}), INDEX)
    refused(sharded, name, INDEX, SHARD)


@pytest.mark.parametrize("place", ["../{}", "sub/{}", "{folder}/../{}", "..", ".", "", "\x00"])
def test_an_index_that_leaves_the_folder(sharded, place):
    """Even where the file is there and good."""
    for folder in (sharded.parent, sharded / "sub"):
        folder.mkdir(exist_ok=True)
        shutil.copy(sharded / SHARD, folder / SHARD)
    place = place.format(SHARD, folder=sharded)

    def change(index):
        places = index["weight_map"]
        index["weight_map"] = {name: place if file == SHARD else file for name, file in places.items()}

    change_json(sharded, change, INDEX)
    refused(sharded, INDEX)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[]"])
def test_an_index_that_is_none(sharded, text):
    (sharded / INDEX).write_text(text, "utf-8")
    refused(sharded, INDEX)


def test_links_into_the_cache_are_followed(sharded, tmp_path, monkeypatch):
    """The hub's cache keeps the files elsewhere and links to them."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    blobs = tmp_path / "models--MILVLG--imp-v1-3b" / "blobs"
    blobs.mkdir(parents=True)
    for file in list(sharded.iterdir()):
        blob = blobs / f"{abs(hash(file.name)):x}"
        file.rename(blob)
        file.symlink_to(blob)
    assert load(sharded)[1] == []


# Memory ---------------------------------------------------------------------------------------------------


def test_too_little_memory_is_said_before_anything_is_read(oracle, tmp_path):
    """A file of more than 600 GB, of which the disk holds the header only."""
    words = 2_000_000_000
    file = tmp_path / "model.safetensors"
    big = {"transformer.embd.wte.weight", "lm_head.linear.weight", "lm_head.linear.bias"}
    header, end = {}, 0
    for name, tensor in checkpoint_tensors(oracle, "old").items():
        shape = (words, *tensor.shape[1:]) if name in big else tuple(tensor.shape)
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    config = {**config_values(oracle, "old"), "vocab_size": words}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    try:
        with file.open("wb") as target:
            target.write(struct.pack("<Q", len(text)) + text)
            target.truncate(8 + len(text) + end)
        assert file.stat().st_size > 500e9
        started = time.process_time()
        with pytest.raises(MemoryLimitError, match=r"516\.\d GB on cpu as float16.*GB are free"):
            load_weights(tmp_path, torch.device("cpu"), torch.float16)
        assert time.process_time() - started < 5
    finally:
        file.unlink(missing_ok=True)


@pytest.mark.skipif(
    not OVERCOMMIT.exists() or OVERCOMMIT.read_text().strip() == "1", reason="this system maps a file of any size"
)
def test_a_file_too_large_to_map(whole):
    """2 TB in one file, nearly all of them in a tensor that nobody reads."""
    file = whole / "model.safetensors"
    content = file.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    size = 2 * 2**40
    header["extra"] = {"dtype": "F16", "shape": [2**40], "data_offsets": [len(data), len(data) + size]}
    text = json.dumps(header).encode()
    try:
        with file.open("wb") as target:
            target.write(struct.pack("<Q", len(text)) + text + data)
            target.truncate(8 + len(text) + len(data) + size)
        with pytest.raises(MemoryLimitError, match=r"model\.safetensors is too large"):
            load(whole)
    finally:
        file.unlink(missing_ok=True)


def test_a_plan_takes_no_memory(whole):
    checked = plan(read_json(whole / "config.json"), find_tensors(whole), str(whole))
    assert all(parameter.is_meta for parameter in checked.model.parameters())
    assert checked.slots.keys() | checked.ignored == checked.found.keys()
    assert (checked.unexpected, checked.problems) == ((), {})


# The published sizes --------------------------------------------------------------------------------------

PHI2_OLD = {
    "model_type": "imp",
    "vocab_size": 51200,
    "n_embd": 2560,
    "n_layer": 32,
    "n_head": 32,
    "n_head_kv": None,
    "n_inner": None,
    "n_positions": 3072,
    "rotary_dim": 32,
    "layer_norm_epsilon": 1e-5,
    "activation_function": "gelu_new",
    "tie_word_embeddings": False,
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "mm_vision_select_layer": -2,
    "mm_projector_type": "mlp2x_gelu",
}
PHI2_NEW = {
    "model_type": "imp",
    "vocab_size": 51200,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 3072,
    "partial_rotary_factor": 0.4,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu_new",
    "tie_word_embeddings": False,
    "image_aspect_ratio": "pad",
    "eos_token_id": [50256, 50295],
    "mm_vision_tower": "google/siglip-so400m-patch14-384/",
}


@pytest.fixture(scope="session")
def full_tower():
    """Shapes of the published tower without its last layer and head, as some files have it."""
    with torch.device("meta"):
        oracle = Oracle(tower=SO400M)
    prefix = "model.vision_tower.vision_tower."
    tensors = checkpoint_tensors(oracle, "new", spares=False)
    return {n.removeprefix(prefix): tuple(t.shape) for n, t in tensors.items() if n.startswith(prefix)}


def test_both_kinds_of_names_give_the_published_network(full_tower):
    old, new = parse_config(PHI2_OLD, full_tower), parse_config(PHI2_NEW, full_tower)
    assert old.decoder == new.decoder
    assert old.vision == new.vision
    assert (old.decoder.head_dim, old.decoder.rotary_dim, old.decoder.rope_theta) == (80, 32, 10000.0)
    assert (old.decoder.intermediate_size, old.decoder.max_positions) == (10240, 3072)
    assert (old.vision.used_layers, old.vision.num_heads, old.vision.num_patches) == (26, 16, 729)
    assert (old.vision.image_size, old.vision.eps) == (384, 1e-6)
    assert (old.pad, new.pad) == (False, True)
    assert (old.eos_token_ids, new.eos_token_ids) == ((), (50256, 50295))


def test_a_tower_of_another_name_needs_a_vision_config(full_tower):
    with pytest.raises(CheckpointError, match="clip-vit-large"):
        parse_config({**PHI2_NEW, "mm_vision_tower": "openai/clip-vit-large-patch14-336"}, full_tower)


@pytest.mark.parametrize("tower", ["google/siglip-so400m-patch14-384", "somewhere/siglip-so400m-patch14-196"])
def test_the_tensors_tell_the_picture_size_of_the_196_checkpoint(tower):
    """Its tower is the published one on smaller pictures; whatever its name says, it has 196 positions."""
    with torch.device("meta"):
        oracle = Oracle(tower={**SO400M, "image_size": 196})
    prefix = "model.vision_tower.vision_tower."
    shapes = {
        name.removeprefix(prefix): tuple(tensor.shape)
        for name, tensor in checkpoint_tensors(oracle, "new", spares=False).items()
        if name.startswith(prefix)
    }
    vision = parse_config({**PHI2_NEW, "mm_vision_tower": tower}, shapes).vision
    assert (vision.image_size, vision.num_patches, vision.used_layers, vision.num_heads) == (196, 196, 26, 16)


# How each family's own code reads config.json ----------------------------------------------------------------------

GATED = {
    **{name: value for name, value in PHI2_NEW.items() if name not in ("layer_norm_eps", "partial_rotary_factor")},
    "model_type": "imp_phi3",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-3,
}
QWEN = GATED | {"model_type": "imp_qwen2", "eos_token_id": None}
FULL, NEAR = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    ("base", "changes", "expected"),
    [
        (GATED, {"activation_function": "gelu_new"}, {}),  # left over from Phi-2, as in the published 4B
        (GATED, {"layer_norm_eps": 1e-6, "rotary_dim": 8}, {"eps": 1e-3, "rotary_dim": 80}),
        (GATED, {"num_key_value_heads": 8}, {"num_kv_heads": 8}),
        (GATED, {"sliding_window": 2047}, {"window": 2047, "window_from": 0, "max_positions": 3072}),
        (GATED, {"sliding_window": 3072}, {"window": None}),
        (GATED, {"sliding_window": None}, {"window": None}),
        (GATED, {"sliding_window": 9, "layer_types": [NEAR] * 32}, {"window": 9}),
        (
            GATED,
            {"rope_theta": None, "rope_parameters": {"rope_theta": 5e4, "rope_type": "default"}},
            {"rope_theta": 5e4},
        ),
        (GATED, {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_type": "default"}}, {"rotary_dim": 40}),
        (GATED, {"rope_scaling": {"type": "default"}}, {"rope_theta": 1e4}),
        (QWEN, {"rms_norm_eps": None}, {"eps": 1e-6}),
        (QWEN, {"sliding_window": 9}, {"window": None}),  # use_sliding_window is false by default
        (QWEN, {"use_sliding_window": True, "sliding_window": None}, {"window": None}),
        (QWEN | {"max_position_embeddings": 9000}, {"use_sliding_window": True}, {"window": 4096, "window_from": 28}),
        (
            QWEN,
            {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0},
            {"window": 9, "window_from": 0},
        ),
        (
            QWEN,
            {
                "use_sliding_window": True,
                "sliding_window": 9,
                "max_window_layers": 30,
                "layer_types": [FULL] * 30 + [NEAR] * 2,
            },
            {"window": 9, "window_from": 30},
        ),
        (PHI2_NEW, {"partial_rotary_factor": None, "rotary_dim": 16}, {"rotary_dim": 16}),
        (PHI2_NEW, {"rotary_dim": 32}, {"rotary_dim": 32}),
        (PHI2_NEW, {"dtype": "float16", "torch_dtype": None}, {}),
    ],
)
def test_settings_are_read_as_the_familys_code_reads_them(full_tower, base, changes, expected):
    """A default that is not written, a name that only another family reads, the spellings of transformers 5."""
    raw = {name: value for name, value in {**base, **changes}.items() if value is not None or name == "sliding_window"}
    decoder = parse_config(raw, full_tower).decoder
    assert {name: getattr(decoder, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("base", "changes", "word"),
    [
        (GATED, {"hidden_act": "gelu"}, "hidden_act"),
        (GATED, {"hidden_act": None, "activation_function": "gelu_new"}, "hidden_act"),
        (PHI2_NEW, {"activation_function": "relu"}, "activation_function"),
        (PHI2_NEW, {"hidden_act": "silu", "activation_function": "gelu_new"}, "hidden_act"),
        (PHI2_NEW, {"num_key_value_heads": 8}, "num_key_value_heads"),
        (PHI2_NEW, {"rotary_dim": 16}, "rotary_dim"),
        (GATED, {"num_key_value_heads": 5}, "cannot share 5"),
        (GATED, {"head_dim": 128}, "head_dim"),
        (GATED, {"sliding_window": 0}, "sliding_window"),
        (GATED, {"sliding_window": 9, "layer_types": [FULL] * 32}, "layer_types"),
        (GATED, {"layer_types": ["linear_attention"] * 32}, "layer_types"),
        (QWEN, {"layer_types": [NEAR] * 32}, "layer_types"),
        (QWEN, {"use_sliding_window": "true"}, "use_sliding_window"),
        (QWEN, {"use_sliding_window": True, "max_window_layers": False}, "max_window_layers"),
        (GATED, {"rope_scaling": {"rope_type": "default", "type": "linear", "factor": 2.0}}, "rope_scaling"),
        (GATED, {"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters"),
        (GATED, {"rope_parameters": {FULL: {"rope_theta": 1e4}}}, "rope_parameters"),
        (GATED, {"rope_parameters": {"rope_theta": 5e4}}, "rope_theta"),
        (GATED, {"rope_scaling": {"rope_theta": 1.0}, "rope_parameters": {"rope_theta": 2.0}}, "rope_parameters"),
        (GATED, {"rope_parameters": []}, "rope_parameters"),
        (GATED, {"rope_parameters": {"rope_type": ["default"]}}, "rope_parameters"),
        (
            GATED,
            {"vision_tower_config": {"num_attention_heads": 8}, "vision_config": {"num_attention_heads": 16}},
            "says",
        ),
        (GATED, {"vision_tower_config": {"hidden_act": "gelu"}}, "hidden_act"),
        (GATED, {"vision_tower_config": []}, "vision_tower_config"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(full_tower, base, changes, word):
    with pytest.raises(CheckpointError, match=re.escape(word)):
        parse_config({**base, **changes}, full_tower)


@pytest.mark.parametrize("tower", ["./tower", "siglip-so400m-patch14-384/", None, "checkpoints/vision"])
def test_a_towers_name_that_says_nothing_is_fine_where_the_tensors_are_the_known_ones(full_tower, tower):
    vision = parse_config({**PHI2_NEW, "mm_vision_tower": tower}, full_tower).vision
    assert (vision.num_heads, vision.used_layers, vision.image_size, vision.eps) == (16, 26, 384, 1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_give_no_numbers_are_an_error(whole, value):
    """The file is whole, and each header right: only the values are damaged."""
    import imp_kit

    change_tensors(whole, lambda tensors: tensors["lm_head.ln.weight"].fill_(value))
    imp = imp_kit.load(whole, device="cpu", dtype="fp32")
    bus = NANO_FOLDER.parents[2] / "images" / "bus.png"
    with pytest.raises(CheckpointError, match="scores are no numbers.*damaged, or too large for float32"):
        imp.ask(bus, "a?")
    with pytest.warns(UserWarning, match="2 of 2 have no answer"):
        errors = imp.ask_many([(bus, "a?"), (None, "a?")], progress=False)
    assert all(isinstance(error, CheckpointError) for error in errors)


def test_a_pointer_of_git_lfs_is_named(whole):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
    (whole / "model.safetensors").write_text(pointer, "utf-8")
    refused(whole, "model.safetensors", "pointer of Git LFS", "git lfs pull")
