"""A checkpoint as GGUF files: every value, the vocabulary, the templates, and what cannot be exported."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jinja2
import numpy as np
import pytest
import torch
from forms import FORMS, QUESTION, REPLY
from forms import write as write_form
from gguf import GGUFReader, dequantize
from oracle import CONTROL, FAMILIES, LLAMA, Oracle, change_json, make_oracle, write_checkpoint
from safetensors.torch import load_file, save_file

import imp_kit
from imp_kit.checkpoints.files import is_exported
from imp_kit.checkpoints.hub import NANO_FOLDER, Snapshot
from imp_kit.checkpoints.plan import plan_folder
from imp_kit.checkpoints.tokenizer import TextTokenizer
from imp_kit.checkpoints.tokenizer_files import read_tokenizer
from imp_kit.errors import CheckpointError, SettingError
from imp_kit.llama_cpp import export as exporting
from imp_kit.llama_cpp import library
from imp_kit.llama_cpp.export import TYPES, export_gguf, model_name
from imp_kit.llama_cpp.exported import Exported
from imp_kit.llama_cpp.tensors import PLAIN
from imp_kit.llama_cpp.texts import chat_template
from imp_kit.llama_cpp.vocabulary import Kind, read_vocabulary
from imp_kit.prompts import IMAGE, SYSTEM, TEMPLATES
from imp_kit.tools.cli import main

LAYOUTS = {"imp": "old", "imp_qwen2": "new", "imp_phi3": "new"}
# The largest error of a value, as a share of the largest in its block of 32: half a step, and its scale's rounding.
STEPS = {"f32": 0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 1 / 225, "q4_0": 1 / 7.9}


def export(checkpoint, out, type="f32", **settings):
    return export_gguf(checkpoint, out, type, progress=False, **settings)


def values(file) -> dict[str, np.ndarray]:
    """The tensors of a GGUF file as float32, in the shapes of torch."""
    return {t.name: dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in GGUFReader(file).tensors}


def metadata(file) -> dict:
    return {name: field.contents() for name, field in GGUFReader(file).fields.items()}


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request, tmp_path_factory):
    """A family's oracle, its checkpoint and the files of its export."""
    root = tmp_path_factory.mktemp("gguf")
    oracle = make_oracle(3, request.param)
    folder = write_checkpoint(oracle, root / "tiny", LAYOUTS[request.param])
    return oracle, folder, export(folder, root / "out")


def expected_decoder(oracle) -> dict[str, torch.Tensor]:
    """What llama.cpp calls the tensors of transformers' classes, written down apart from the kit's own table."""
    state, prefix, found = oracle.language.state_dict(), "model.layers.", {}
    norm = "model.final_layernorm" if oracle.family == "imp" else "model.norm"
    outer = {"model.embed_tokens": "token_embd", norm: "output_norm", "lm_head": "output"}
    inner = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "self_attn.o_proj": "attn_output", "self_attn.dense": "attn_output", "self_attn.qkv_proj": "attn_qkv",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    for name, tensor in state.items():
        stem, kind = name.rsplit(".", 1)
        if "rotary" in name:
            continue
        if stem.startswith(prefix):
            index, part = stem.removeprefix(prefix).split(".", 1)
            found[f"blk.{index}.{inner[part]}.{kind}"] = tensor
        else:
            found[f"{outer[stem]}.{kind}"] = tensor
    if oracle.family == "imp_qwen2":
        return found
    for index in range(oracle.decoder["num_hidden_layers"]):  # Phi's q, k, v are one tensor in llama.cpp
        for kind in ("weight", "bias"):
            parts = [found.pop(f"blk.{index}.attn_{part}.{kind}", None) for part in "qkv"]
            if parts[0] is not None:
                found[f"blk.{index}.attn_qkv.{kind}"] = torch.cat(parts)
    if "blk.0.ffn_gate.weight" in found:  # the pin's Phi-3 is Mistral
        for index in range(oracle.decoder["num_hidden_layers"]):
            parts = [found.pop(f"blk.{index}.ffn_{part}.weight") for part in ("gate", "up")]
            found[f"blk.{index}.ffn_up.weight"] = torch.cat(parts)
    return found


def test_every_value_of_the_language_model_is_there(exported):
    oracle, _, files = exported
    found, wanted = values(files[0]), expected_decoder(oracle)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(found[name], tensor.numpy(), err_msg=name)


def test_every_value_of_the_tower_is_there(exported):
    oracle, _, files = exported
    found = values(files[1])
    wanted = {f"mm.{name}": tensor for name, tensor in oracle.projector.state_dict().items()}
    parts = {
        "layer_norm1": "ln1", "layer_norm2": "ln2", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.out_proj": "attn_out", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down",
    }  # fmt: skip
    for name, tensor in oracle.siglip.state_dict().items():
        if name.startswith("embeddings."):
            stem = name.removeprefix("embeddings.").replace("embedding.", "embd.")
            wanted[f"v.{stem}"] = tensor
        elif name.startswith("encoder.layers."):
            index, part = name.removeprefix("encoder.layers.").rsplit(".", 1)[0].split(".", 1)
            if int(index) < oracle.tower["num_hidden_layers"] - 1:  # the last is not read
                wanted[f"v.blk.{index}.{parts[part]}.{name.rsplit('.', 1)[1]}"] = tensor
    wanted = {name: tensor for name, tensor in wanted.items() if "position_ids" not in name}
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(found[name], tensor.numpy(), err_msg=name)


def test_sizes_are_those_of_config_json(exported):
    oracle, folder, (decoder, tower, *_) = exported
    found, arch = metadata(decoder), {"imp": "phi2", "imp_qwen2": "qwen2", "imp_phi3": "phi3"}[oracle.family]
    sizes = oracle.decoder
    assert found["general.architecture"] == arch
    assert found[f"{arch}.context_length"] == sizes["max_position_embeddings"]
    assert found[f"{arch}.block_count"] == sizes["num_hidden_layers"]
    assert found[f"{arch}.rope.dimension_count"] == (8 if oracle.family == "imp" else 16)
    assert found[f"{arch}.rope.freq_base"] == sizes["rope_theta"]
    norm = "layer_norm_epsilon" if arch == "phi2" else "layer_norm_rms_epsilon"
    assert found[f"{arch}.attention.{norm}"] == pytest.approx(0.05)
    assert found["general.name"] == "tiny"
    control = CONTROL[oracle.family]
    assert found["tokenizer.ggml.eos_token_id"] == control[TEMPLATES[oracle.family].stop]
    assert found["tokenizer.ggml.bos_token_id"] == control["<|endoftext|>"]
    assert not found["tokenizer.ggml.add_bos_token"]
    assert "general.license" not in found, "nobody said what a stranger's checkpoint is licensed as"
    seen = metadata(tower)
    assert seen["clip.projector_type"] == "mlp"
    assert seen["clip.vision.feature_layer"] == [3], "three of the four layers, and their last as it is"
    assert seen["clip.vision.block_count"] == 3
    assert seen["clip.vision.attention.layer_norm_epsilon"] == pytest.approx(0.03)
    for both in ("imp_kit.source_sha256", "imp_kit.source"):
        assert seen[both] == found[both]
    assert found["imp_kit.source"] == folder.name


def test_a_published_name_brings_its_commit_and_licence(tmp_path, monkeypatch):
    from forms import COMMIT, put_in_cache
    from huggingface_hub import constants

    form = next(form for form in FORMS if form.name == "imp-v1.5-2b-qwen1.5")
    put_in_cache(form, tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    decoder, *_ = export("imp-v1.5-2b-qwen1.5", tmp_path / "out", "f16")
    found = metadata(decoder)
    assert decoder.name == "imp-v1.5-2b-qwen1.5-F16.gguf"
    assert found["imp_kit.source_revision"] == COMMIT
    assert found["imp_kit.source"] == "MILVLG/Imp-v1.5-2B-Qwen1.5"
    assert found["general.license"] == "apache-2.0"
    assert found["tokenizer.ggml.pre"] == "qwen2"


@pytest.mark.parametrize("type", PLAIN)
def test_each_type_keeps_values_within_its_steps(type, tmp_path):
    decoder, tower, *_ = export("imp-nano", tmp_path, type)
    assert decoder.name == f"imp-nano-{type.upper()}.gguf"
    assert tower.name == f"mmproj-imp-nano-{'F32' if type == 'f32' else 'F16'}.gguf"
    stored, found = load_file(NANO_FOLDER / "model.safetensors"), values(decoder)
    matrix = stored["model.layers.2.mlp.fc2.weight"].float().numpy()
    blocks, kept = (each.reshape(-1, 32) for each in (matrix, found["blk.2.ffn_down.weight"]))
    error = np.abs(blocks - kept).max(axis=1) / np.abs(blocks).max(axis=1)
    assert error.max() <= STEPS[type]
    assert error.max() >= STEPS[type] / 8 or type == "f16", "imp-nano's own values are fp16"
    np.testing.assert_array_equal(
        found["blk.2.attn_norm.weight"], stored["model.layers.2.input_layernorm.weight"].float().numpy()
    )
    if type == "q4_0":
        kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(decoder).tensors}
        assert (kinds["output.weight"], kinds["token_embd.weight"]) == ("Q8_0", "Q4_0")


def test_pieces_make_the_same_file(exported, tmp_path, monkeypatch):
    """A large tensor passes in pieces of some rows."""
    monkeypatch.setattr("imp_kit.llama_cpp.tensors.PIECE", 7 * 64)
    again = export(exported[1], tmp_path)
    for one, other in zip(exported[2], again, strict=True):
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_vocabulary_of_every_published_form(form, tmp_path):
    folder = write_form(form, tmp_path / "form")
    tokenizer, size = TextTokenizer(folder), json.loads(
        (folder / "config.json").read_text("utf-8")
    )["vocab_size"]  # fmt: skip
    found = read_vocabulary(read_tokenizer(folder), size)
    model, splitter = {"imp": ("gpt2", "gpt-2"), "imp_qwen2": ("gpt2", "qwen2"), "imp_phi3": ("llama", "default")}[
        form.family
    ]
    assert (found.model, found.splitter, found.exact) == (model, splitter, True)
    assert len(found.tokens) == len(set(found.tokens)) == len(found.kinds) == size
    for token, id in tokenizer.control.items():
        assert found.tokens[id] == token
        assert found.kinds[id] in (Kind.CONTROL, Kind.UNKNOWN)
    assert {id for id, kind in enumerate(found.kinds) if kind == Kind.UNUSED} == set(range(tokenizer.size, size))
    assert (Kind.BYTE in found.kinds) == (found.scores is not None) == (form.family == "imp_phi3")
    assert found.blank_first == (form.family == "imp_phi3")


def test_phi3_is_called_so_where_llama_cpp_looks_for_its_tokens():
    """It does by the name, and crashes where the tokens are not there."""
    tokens = ["<unk>", "<s>", "</s>", "<|endoftext|>", "a"]
    assert model_name("imp-v1.5-4b-phi3", "phi3", tokens) == "imp-v1.5-4b-phi3"
    assert model_name("mine", "phi3", tokens) == "mine-phi3"
    assert model_name("My-Phi3", "phi3", tokens[1:]) == "My-phi"
    assert model_name("my-phi-3", "qwen2", tokens) == "my-phi"


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_chat_template_writes_the_kits_prompts(family):
    template = TEMPLATES[family]
    render = jinja2.Environment().from_string(chat_template(template)).render

    def user(*parts):
        return {"role": "user", "content": list(parts)}

    text, image = {"type": "text", "text": f" {QUESTION}\n"}, {"type": "media_marker", "text": str(IMAGE)}
    first = "".join((*template.open(), *template.ask(QUESTION, first=True)))
    assert render(messages=[user(image, text)]) == render(messages=[user(text, image)]) == first
    assert render(messages=[user({"type": "image"}, text)]) == first
    for marker in ("<__media__>", "<__media_oxh1YMuL__>"):  # of llama-server, in one text
        for content in (f"{marker}{QUESTION}", f"{QUESTION}\n{marker}"):
            marked = render(messages=[{"role": "user", "content": content}])
            assert marked == first.replace(IMAGE, marker)
    alone = "".join(template.ask_alone(QUESTION))
    assert render(messages=[user(text)]) == render(messages=[{"role": "user", "content": QUESTION}]) == alone
    said = {"role": "assistant", "content": REPLY}
    later = "".join((template.answer, REPLY, *template.ask("And then?", first=False)))
    asked = {"role": "user", "content": "And then?"}
    assert render(messages=[user(image, text), said, asked]) == first + later
    for content in ("Be short.", [{"type": "text", "text": "Be short."}]):
        other = render(messages=[{"role": "system", "content": content}, user(image, text)])
        assert other == first.replace(SYSTEM, "Be short.")


def test_texts_name_the_files_that_are_there(exported):
    oracle, _, (decoder, tower, modelfile, readme) = exported
    lines, text = modelfile.read_text("utf-8").splitlines(), readme.read_text("utf-8")
    assert [line for line in lines if line.startswith("FROM")] == [f"FROM ./{decoder.name}", f"FROM ./{tower.name}"]
    assert f'PARAMETER stop "{TEMPLATES[oracle.family].stop}"' in lines
    assert f"-m {decoder.name} --mmproj {tower.name}" in text
    assert "61 x 61 pixels" in text
    assert "cuts a text" not in text
    assert len(text.splitlines()) < 16


def test_a_way_to_cut_texts_that_llama_cpp_lacks_is_said(tmp_path):
    *_, readme = export("imp-nano", tmp_path)
    assert "llama.cpp does not know the way in which imp-nano cuts a text" in readme.read_text("utf-8")


def test_the_command_writes_and_says_where(tmp_path, capsys):
    main(["export", "gguf", "imp-nano", "--out", str(tmp_path / "out"), "--type", "f16"])
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'out' / 'imp-nano-F16.gguf'} (8.9 MB)" in printed
    assert str(tmp_path / "out" / "README.txt") in printed
    with pytest.raises(SystemExit, match="2"):
        main(["export", "gguf", "imp-nano", "--out", str(tmp_path / "other"), "--type", "q3"])
    assert "type is 'q3'; choose from f32, f16" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_an_export_describes_itself(exported):
    oracle, folder, (decoder, tower, *_) = exported
    found = Exported.read(decoder.parent)
    assert found.config == plan_folder(folder).model.config
    assert (found.name, found.revision, found.digest) == ("tiny", None, Snapshot("tiny", folder, None).digest())
    assert found.types() == {"f32": decoder}
    assert found.decoder(None) == found.decoder("f32") == decoder
    assert found.tower("f32") == tower
    ids = TextTokenizer(decoder.parent).encode(QUESTION)
    assert ids == TextTokenizer(folder).encode(QUESTION)
    assert is_exported(decoder.parent)
    assert not is_exported(folder)
    with pytest.raises(CheckpointError, match="was written for llama.cpp; load it with engine='llama.cpp'"):
        imp_kit.load(decoder.parent, device="cpu")
    found.check(decoder, metadata(decoder).get, tower)


# What cannot be exported ------------------------------------------------------------------------------------


def refused(error, match, checkpoint, out, type="q8_0"):
    with pytest.raises(error, match=match):
        export(checkpoint, out, type)
    assert not out.exists(), "nothing was written"


def test_unknown_types_and_missing_packages(tmp_path, monkeypatch):
    refused(SettingError, f"type is 'q4'; choose from {', '.join(TYPES)}", "imp-nano", tmp_path / "out", "q4")
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    needs = "The type q4_k_m is made by llama.cpp's own quantizer and needs llama-cpp-python: pip install"
    refused(SettingError, needs, "imp-nano", tmp_path / "out", "q4_k_m")
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(SettingError, "The export needs gguf: pip install gguf", "imp-nano", tmp_path / "out")


def test_columns_that_are_no_multiple_of_a_block(tmp_path):
    oracle = Oracle("imp_qwen2", {**LLAMA, "use_sliding_window": False, "intermediate_size": 168})
    folder = write_checkpoint(oracle, tmp_path / "tiny", "new")
    refused(CheckpointError, r"mlp\.down\.weight has 168 columns, and q8_0 holds.*blocks of 32", folder, tmp_path / "o")
    export(folder, tmp_path / "out", "f16")


def test_a_tower_of_one_width(tmp_path):
    oracle = Oracle(tower={**make_oracle().tower, "intermediate_size": 48})
    folder = write_checkpoint(oracle, tmp_path / "tiny")
    refused(CheckpointError, "48 wide inside and outside", folder, tmp_path / "out")


def test_a_window_bounds_the_context(tmp_path):
    sizes = {**FAMILIES["imp_phi3"][2], "max_position_embeddings": 1024}
    folder = write_checkpoint(Oracle("imp_phi3", {**sizes, "sliding_window": 300}), tmp_path / "far", "new")
    decoder, *_ = export(folder, tmp_path / "out")
    assert metadata(decoder)["phi3.context_length"] == 300
    change_json(folder, lambda config: config.update(sliding_window=40))
    refused(CheckpointError, "attention reaches back 40 positions", folder, tmp_path / "other")


@pytest.mark.parametrize(("value", "type", "match"), [(7e4, "f16", "70000.*type bf16"), (float("nan"), "f32", "nan")])
def test_values_that_a_type_cannot_hold(value, type, match, tmp_path):
    folder = write_checkpoint(make_oracle(), tmp_path / "tiny")
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.1.mlp.fc1.weight"][3, 4] = value
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"transformer\.h\.1\.mlp\.fc1\.weight holds {match}"):
        export(folder, tmp_path / "out", type)
    assert [file.name for file in (tmp_path / "out").iterdir()] == [f"mmproj-tiny-{type.upper()}.gguf"]


def test_nothing_of_another_checkpoint_is_replaced(tmp_path):
    held, other = tmp_path / "held", tmp_path / "other"
    held.mkdir()
    (held / "config.json").write_text("{}")
    with pytest.raises(SettingError, match="holds a checkpoint; choose a folder of its own"):
        export("imp-nano", held, "q8_0")
    assert [file.name for file in held.iterdir()] == ["config.json"]
    with pytest.raises(SettingError, match="no folder can be made"):
        export("imp-nano", held / "config.json", "q8_0")
    export("imp-nano", other, "q8_0")
    change_json(other, lambda found: found.update(digest="0" * 64, name="another"), "imp-kit.json")
    with pytest.raises(SettingError, match="holds an export of another; choose another folder"):
        export("imp-nano", other, "q8_0")


def test_too_little_disk_is_said_before(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000_000)
    monkeypatch.setattr(exporting.shutil, "disk_usage", lambda _: usage)
    refused(SettingError, r"where 10 MB are free; the export takes 13 MB", "imp-nano", tmp_path / "new" / "out")


def test_other_tokenizers_and_other_checkpoints(tmp_path):
    folder = write_checkpoint(make_oracle(), tmp_path / "tiny")
    files = read_tokenizer(folder)
    for kind in ("Unigram", "WordPiece"):
        data = {**files.data, "model": {**files.data["model"], "type": kind}}
        with pytest.raises(CheckpointError, match=f"is a '{kind}' tokenizer; only BPE goes into a GGUF file"):
            read_vocabulary(type(files)(**{**vars(files), "data": data}), 304)
    with pytest.raises(CheckpointError, match="has more than 299"):
        read_vocabulary(files, 299)
    change_json(folder, lambda config: config.update(model_type="llama"))
    refused(CheckpointError, "model_type is 'llama'", folder, tmp_path / "out")


def test_fillers_take_no_token_that_is_there(tmp_path):
    folder = write_checkpoint(make_oracle(), tmp_path / "tiny")
    files = read_tokenizer(folder)
    words = files.data["model"]["vocab"]
    old = next(word for word, id in words.items() if id == 280)
    words["[PAD300]"] = words.pop(old)
    assert read_vocabulary(files, 304).tokens[300] == "[[PAD300]]"


def test_a_missing_or_broken_llama_cpp_is_said(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "llama_cpp", None)
        with pytest.raises(SettingError, match="The engine llama.cpp needs llama-cpp-python: pip install"):
            imp_kit.load("imp-nano", engine="llama.cpp")
    for name in [name for name in sys.modules if name.partition(".")[0] == "llama_cpp"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "__init__.py").write_text("raise OSError('GLIBC_2.99 not found')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingError, match=r"llama-cpp-python cannot be used here \(GLIBC_2.99 not found\)"):
        library.modules()


def test_a_folder_that_is_no_whole_export(tmp_path):
    folder = write_checkpoint(make_oracle(), tmp_path / "tiny")
    decoder, tower, *_ = export(folder, tmp_path / "out")
    found = Exported.read(decoder.parent)
    with pytest.raises(SettingError, match="quantize is 'q4_0', and .*out has f32"):
        found.decoder("q4_0")
    with pytest.raises(CheckpointError, match=r"tiny-F32.gguf was not made of tiny, the checkpoint that"):
        found.check(decoder, {}.get, tower)
    made = {"imp_kit.source_sha256": found.digest}
    other = write_checkpoint(make_oracle(1), tmp_path / "other")
    _, wrong, *_ = export(other, tmp_path / "wrong")
    with pytest.raises(CheckpointError, match=r"mmproj-other-F32.gguf was not made of tiny"):
        found.check(decoder, made.get, wrong)
    wrong.write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="is no GGUF file, or a part of one"):
        found.check(decoder, made.get, wrong)
    tower.unlink()
    with pytest.raises(CheckpointError, match=r"holds no tower for pictures, mmproj-\.\.\.-F32.gguf"):
        found.tower("f32")
    decoder.unlink()
    with pytest.raises(CheckpointError, match="holds no language model in GGUF"):
        found.decoder(None)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.pop("config"),
        lambda found: found.pop("name"),
        lambda found: found["config"].pop("pad"),
        lambda found: found["config"].update(family="llama"),
        lambda found: found["config"]["decoder"].update(num_layers=10**6),
        lambda found: found["config"]["decoder"].update(more=1),
        lambda found: found["config"]["vision"].update(image_size="384"),
        lambda found: found.update(config=[]),
    ],
)
def test_descriptions_that_are_none(change, exported, tmp_path):
    shutil.copy(exported[2][0].parent / "imp-kit.json", tmp_path)
    change_json(tmp_path, change, "imp-kit.json")
    with pytest.raises(CheckpointError, match="imp-kit.json"):
        Exported.read(tmp_path)


def test_a_killed_export_leaves_no_file_under_its_name(tmp_path):
    out = tmp_path / "out"
    stuck = "import time\nfrom imp_kit.llama_cpp import tensors\ntensors._Stream.tofile = lambda *_: time.sleep(600)\n"
    code = f"{stuck}from imp_kit.tools.cli import main\nmain(['export', 'gguf', 'imp-nano', '--out', {str(out)!r}])"
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while child.poll() is None and not (out.exists() and any(out.iterdir())):
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
    child.wait()
    assert [file.name for file in out.iterdir()] == ["mmproj-imp-nano-F16.gguf.partial"]
    files = export("imp-nano", out, "q8_0")
    assert {file.name for file in out.iterdir()} == {file.name for file in files} | {"imp-kit.json", "tokenizer.json"}


# The files as other programs read them ----------------------------------------------------------------------

# The type that llama.cpp asks for; a key in another type is an error there, or passes for absent.
KEYS = {
    "STRING": r"general\.(architecture|name|type|license)|imp_kit\..*|tokenizer\.(ggml\.(model|pre)|chat_template)"
    r"|clip\.projector_type",
    "BOOL": r"tokenizer\.ggml\.add_.*|clip\.(has_vision_encoder|use_gelu)",
    "FLOAT32": r".*(epsilon|freq_base)",
    "UINT32": r"general\.file_type|tokenizer\.ggml\.(bos|eos|eot)_token_id"
    r"|.*\.(\w+_length|\w+_count|head_count_kv|vocab_size|image_size|patch_size|projection_dim)",
    "[STRING]": r"tokenizer\.ggml\.(tokens|merges)",
    "[INT32]": r"tokenizer\.ggml\.token_type|clip\.vision\.feature_layer",
    "[FLOAT32]": r"tokenizer\.ggml\.scores|clip\.vision\.image_(mean|std)",
}


def test_gguf_s_own_programs_read_the_files(exported, capsys, monkeypatch):
    """gguf-dump and gguf-hash; each key's type, the number of tensors, and where each begins."""
    from gguf.scripts import gguf_dump, gguf_hash

    for file in exported[2][:2]:
        reader = GGUFReader(file)
        fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        for name, field in fields.items():
            types = [kind.name for kind in field.types]
            kind = f"[{types[-1]}]" if types[0] == "ARRAY" else types[0]
            assert [each for each, names in KEYS.items() if re.fullmatch(names, name)] == [kind], name
        tensors = reader.tensors
        assert reader.fields["GGUF.tensor_count"].contents() == len(tensors) > 0
        assert reader.fields["GGUF.kv_count"].contents() == len(fields)
        assert reader.alignment == 32
        places = sorted((tensor.data_offset, tensor.data_offset + tensor.n_bytes) for tensor in tensors)
        assert all(start % reader.alignment == 0 for start, _ in places)
        gaps = [start - end for (_, end), (start, _) in zip(places, places[1:], strict=False)]
        assert places[0][0] == reader.data_offset
        assert all(0 <= gap < reader.alignment for gap in [*gaps, file.stat().st_size - places[-1][1]])
        monkeypatch.setattr(sys, "argv", ["gguf-dump", str(file)])
        gguf_dump.main()
        printed = capsys.readouterr().out
        assert f"Dumping {len(reader.fields)} key/value pair(s)" in printed
        assert f"Dumping {len(tensors)} tensor(s)" in printed
        gguf_hash.gguf_hash(reader, "it", True, True)
        assert re.search(r"^sha256 +[0-9a-f]{64}  it$", capsys.readouterr().out, re.M)


def ollama_commands(text: str) -> list[tuple[str, str]]:
    """The instructions of a Modelfile, by the rules of ollama's docs/modelfile.md.

    A line begins with an instruction, in any case, or with # and is a comment. What follows is its argument: the rest
    of the line, without the quotation marks around it, or all between two times three of them, over several lines.
    """
    found, known = [], {"from", "parameter", "template", "system", "adapter", "license", "message", "requires"}
    while text := text.lstrip():
        if text.startswith("#"):
            text = text.partition("\n")[2]
            continue
        name, rest = re.match(r"([A-Za-z]+)[ \t]+(.*)", text, re.DOTALL).groups()
        assert name.lower() in known, name
        name = name.lower()
        if name == "parameter":
            name, rest = re.match(r"(\w+)[ \t]+(.*)", rest, re.DOTALL).groups()
        if rest.startswith('"""'):
            value, closed, text = rest[3:].partition('"""')
            assert closed
            assert text[:1] in ("", "\n")
        else:
            value, _, text = rest.partition("\n")
            if value.startswith('"'):
                assert len(value) > 1
                assert value.endswith('"')
                value = value[1:-1]
        found.append((name, value))
    return found


def go_text(template: str, system: str, messages: list[tuple[str, str]]) -> str:
    """What Go's text/template makes of the few actions that our Modelfile uses; an unknown one fails."""
    parts = re.split(r"(\{\{.*?\}\})", template)
    body = parts[next(i for i, part in enumerate(parts) if "range" in part) + 1 : -2]
    head = parts[: parts.index("{{ range $i, $m := .Messages }}")]
    assert parts[-2:] == ["{{ end }}", ""]

    def fill(parts: list[str], index: int = 0, role: str = "", content: str = "") -> str:
        out, shown = [], [True]  # whether the text of each open `if` is shown
        for part in parts:
            action = part[2:-2].strip() if part.startswith("{{") else None
            if action is None:
                text = part
            elif action == "end":
                shown.pop()
                continue
            elif action == "if gt $i 1":
                shown.append(index > 1)
                continue
            elif named := re.fullmatch(r'(else )?if eq \$m\.Role "(\w+)"', action):
                if named[1]:
                    shown.pop()
                shown.append(role == named[2])
                continue
            else:
                text = {".System": system, "$m.Content": content}.get(action) or json.loads(action or "0")
            out += [text] if all(shown) else []
        return "".join(out)

    return fill(head) + "".join(fill(body, index, *message) for index, message in enumerate(messages))


def test_ollama_s_rules_read_the_modelfile(exported, tmp_path):
    """Two FROM: by ollama's source, server/create.go, it takes for the tower what says mmproj of itself."""
    oracle, _, (decoder, tower, modelfile, _) = exported
    commands = ollama_commands(modelfile.read_text("utf-8"))
    found = dict(commands)
    files = [modelfile.parent / value for name, value in commands if name == "from"]
    assert files == [decoder, tower]
    assert [metadata(file)["general.type"] for file in files] == ["model", "mmproj"]
    assert "clip.block_count" not in metadata(tower), "else ollama takes it for a language model"
    template = TEMPLATES[oracle.family]
    assert (found["system"], found["stop"], float(found["temperature"])) == (SYSTEM, template.stop, 0)
    arch = metadata(decoder)["general.architecture"]
    assert int(found["num_ctx"]) == metadata(decoder)[f"{arch}.context_length"]
    assert "license" not in found
    said = [("system", SYSTEM), ("user", QUESTION)]
    first = "".join((*template.open(), *template.ask(QUESTION, first=True))).replace(f"{IMAGE}\n", "")
    assert go_text(found["template"], SYSTEM, said) == first
    later = "".join((template.answer, REPLY, *template.ask("And then?", first=False)))
    assert go_text(found["template"], SYSTEM, [*said, ("assistant", REPLY), ("user", "And then?")]) == first + later


def test_the_modelfile_of_a_published_checkpoint_names_its_licence(tmp_path):
    *_, modelfile, _ = export("imp-nano", tmp_path, "q8_0")
    assert dict(ollama_commands(modelfile.read_text("utf-8")))["license"] == "apache-2.0"


def test_an_export_is_no_checkpoint(exported, tmp_path, capsys):
    folder = exported[2][0].parent
    said = "was written for llama.cpp; load it with engine='llama.cpp', or give the checkpoint"
    refused(CheckpointError, said, folder, tmp_path / "out")
    with pytest.raises(SystemExit, match="2"):
        main(["checkpoints", "inspect", str(folder)])
    assert said in capsys.readouterr().err
