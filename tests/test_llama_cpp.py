"""Answers by llama.cpp against transformers' classes and the kit; skipped where llama-cpp-python is not installed.

The index has its source only: `pip install llama-cpp-python` builds it in 5 to 15 minutes.
"""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from forms import FORMS, NEXT, QUESTION, TEXTS
from forms import write as write_form
from oracle import FAMILIES, change_json, make_oracle, write_checkpoint
from PIL import Image

import imp_kit
from imp_kit.checkpoints.tokenizer import TextTokenizer
from imp_kit.engine import Conversation
from imp_kit.errors import CheckpointError, PromptError, SettingError
from imp_kit.experiments.drawings import draw, sample_scene
from imp_kit.images import to_pixels
from imp_kit.llama_cpp import engine as llama_engine
from imp_kit.llama_cpp import library
from imp_kit.llama_cpp.export import export_gguf
from imp_kit.llama_cpp.exported import Exported
from imp_kit.llama_cpp.library import LanguageModel
from imp_kit.prompts import TEMPLATES

LAYOUTS = {"imp": "old", "imp_qwen2": "new", "imp_phi3": "new"}
QUESTIONS = ("What is it?", "Is there a bus in the picture, or a picture of a bus?")
STEPS = 12
TOLERANCE = 0.01  # of scores, in their standard deviations: llama.cpp takes GELU from a table of fp16 values
DOOR = Path(__file__).parent.parent / "images" / "door.png"


@pytest.fixture(scope="module", autouse=True)
def _needs_llama_cpp():
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is built from its source, so `test` is without it")


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """A family's oracle and its checkpoint as llama.cpp has it, in fp32."""
    root = tmp_path_factory.mktemp("tiny")
    oracle = make_oracle(3, request.param)
    folder = write_checkpoint(oracle, root / "tiny", LAYOUTS[request.param])
    export_gguf(folder, root / "out", "f32", progress=False)
    return oracle, imp_kit.load(root / "out", engine="llama.cpp"), folder


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """imp-nano in two types, in a folder of an export, and by torch."""
    out = tmp_path_factory.mktemp("nano")
    for type in ("f32", "q8_0"):
        export_gguf("imp-nano", out, type, progress=False)
    imps = {type: imp_kit.load(out, engine="llama.cpp", quantize=type) for type in ("f32", "q8_0")}
    return {"kit": imp_kit.load("imp-nano", device="cpu", dtype="fp32"), **imps, "folder": out}


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(5)
    return [draw(sample_scene(rng), rng)[0] for _ in range(count)]


def prompt(oracle, imp, image, question) -> torch.Tensor:
    """The embeddings that transformers' classes make of the kit's ids and pixels."""
    before = imp.tokenizer.encode_pieces(imp.template.open(), begins=True)
    after = imp.tokenizer.encode_pieces(imp.template.ask(question, first=True))
    return oracle.embed(before, to_pixels(image, oracle.tower["image_size"]), after)


def difference(scores: torch.Tensor, expected: torch.Tensor, of: str) -> float:
    """The largest, in standard deviations of the scores; printed, for `pytest -rP`."""
    worst = ((scores - expected).abs().max() / expected.std()).item()
    print(f"{of}: scores differ by up to {worst:.6f}")
    return worst


def test_scores_are_those_of_transformers(pair):
    """But for GELU: llama.cpp looks its values up in a table of fp16, and takes its tanh form in the projector."""
    oracle, imp, _ = pair
    for image in pictures(2):
        for question in QUESTIONS:
            expected = oracle.logits(prompt(oracle, imp, image, question))[0, -1]
            turn = Conversation(imp.engine, image).ask(question)
            scores = imp.engine._next_scores(turn, turn.ids)
            assert difference(scores, expected, f"{oracle.family}, with the picture") < TOLERANCE


def test_the_decoder_alone_is_exact_to_rounding(pair):
    """With transformers' own image embeddings all that differs is the order of sums, and Phi-2's GELU."""
    oracle, imp, _ = pair
    embedded = prompt(oracle, imp, pictures(1)[0], QUESTIONS[0])[0]
    expected = oracle.logits(embedded[None])[0]
    language = imp.engine.language
    language.reserve(len(embedded))
    language.truncate(0)
    imp.engine._held = []
    scores = torch.from_numpy(language.read(embedded.numpy(), len(embedded)))
    language.truncate(0)
    assert difference(scores, expected, f"{oracle.family}, decoder alone") < (0.005 if oracle.family == "imp" else 5e-5)


def test_tokens_are_those_of_transformers(pair):
    """Up to a step at which two tokens are closer to each other than the scores are to llama.cpp's."""
    oracle, imp, _ = pair
    compared = 0
    for image in pictures(2):
        for question in QUESTIONS:
            embedded = prompt(oracle, imp, image, question)
            for id in imp.ask(image, question, max_new_tokens=STEPS).token_ids:
                scores = oracle.logits(embedded)[0, -1]
                first, second = scores.topk(2).values
                if scores.argmax() != id:
                    assert first - second < 2 * TOLERANCE * scores.std()
                    break
                compared += 1
                word = oracle.language.get_input_embeddings()(torch.tensor([[id]]))
                embedded = torch.cat((embedded, word), dim=1)
    assert compared > 3 * STEPS


def test_flash_attention_where_it_is_exact_and_fast(pair, nano, tmp_path, monkeypatch):
    """Not in f32, nor for heads that are no multiple of what llama.cpp multiplies at once."""
    llama, _ = library.modules()
    init, seen = llama.llama_init_from_model, []

    def watched(model, params):
        seen.append(params.flash_attn_type)
        return init(model, params)

    monkeypatch.setattr(llama, "llama_init_from_model", watched)
    _, imp, folder = pair
    assert imp.model.config.decoder.head_dim % 64
    export_gguf(folder, tmp_path, "f16", progress=False)
    files = [imp.engine.language.file, Exported.read(tmp_path).decoder("f16")]
    files += [nano[type].engine.language.file for type in ("f32", "q8_0")]
    for file in files:
        library.LanguageModel(file, 1).reserve(8)
    off = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    assert [type == off for type in seen] == [True, True, True, False]


def test_torch_may_compute_in_bf16_between_two_answers(nano):
    """Both use a CPU's matrix tiles, where it has any; in one thread this would end Python."""
    imp, matrix = nano["q8_0"], torch.ones(512, 512, dtype=torch.bfloat16)
    first = imp.ask(DOOR, "Describe the image in detail.")
    torch.matmul(matrix, matrix)
    image = Image.open(DOOR).rotate(90)  # which is read anew, as many tokens at once
    imp.ask(image, "Describe the image in detail.")
    assert imp.ask(DOOR, "Describe the image in detail.").token_ids == first.token_ids


def test_after_a_stopped_answer_the_next_one_is_whole(nano, monkeypatch):
    imp, question = nano["q8_0"], "Describe the image in detail."
    expected = imp.ask(DOOR, question).token_ids
    imp.ask(None, "Hello")  # so that nothing of the picture is held
    llama = imp.engine.language._llama
    decode = llama.llama_decode

    def stopped(*values):
        decode(*values)
        raise KeyboardInterrupt

    monkeypatch.setattr(llama, "llama_decode", stopped)
    with pytest.raises(KeyboardInterrupt):
        imp.ask(DOOR, question)
    monkeypatch.setattr(llama, "llama_decode", decode)
    assert imp.ask(DOOR, question).token_ids == expected


def test_imp_nano_answers_as_by_torch(nano):
    kit, other = nano["kit"], nano["f32"]
    for image in pictures(3):
        for question in ("Describe the image.", "What color is the cup?", "How many things are there?"):
            assert other.ask(image, question).token_ids == kit.ask(image, question).token_ids
    assert other.ask(None, "What is a bus?").token_ids == kit.ask(None, "What is a bus?").token_ids
    assert repr(other) == "<Imp imp-nano: 8.3 M parameters, f32 on cpu, by llama.cpp (you asked for it)>"
    answer = nano["q8_0"].ask(DOOR, "What is it?")
    assert (answer.checkpoint, answer.dtype, answer.device) == ("imp-nano", "q8_0", "cpu, by llama.cpp")


def test_threads_that_ask_at_once(nano):
    """Without turns they would spoil llama.cpp's memory, or end Python."""
    imp, shown = nano["q8_0"], pictures(6)
    asked = [(picture, question) for picture in shown for question in ("Describe the image.", "What color is it?")]
    expected = [imp.ask(*each).token_ids for each in asked]
    with ThreadPoolExecutor(3) as pool:
        assert [answer.token_ids for answer in pool.map(lambda each: imp.ask(*each), asked)] == expected
        ranked = list(pool.map(lambda picture: imp.rank(picture, "What color is it?", ("red", "blue")), shown))
    assert ranked == [imp.rank(picture, "What color is it?", ("red", "blue")) for picture in shown]


def test_two_processes_that_need_the_same_files_first(tmp_path):
    """One writes them, the other waits for it."""
    code = f"""
from pathlib import Path
import imp_kit
from imp_kit.llama_cpp import engine
engine.CACHE = Path({str(tmp_path)!r}) / "cache"
print(imp_kit.load("imp-nano", engine="llama.cpp", quantize="f32").ask(None, "What is a bus?"))
"""
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    shown = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("is written for llama.cpp once" in each for each in shown) == 1


def test_chats_streams_and_batches(nano):
    kit, other = nano["kit"], nano["f32"]
    first, second = kit.chat(DOOR), other.chat(DOOR)
    for question in ("What is in the picture?", "What color is it?", "Is there a bus?"):
        assert second.say(question).token_ids == first.say(question).token_ids
    assert second.cache_bytes > 0
    view = other.look(DOOR)
    one, two = view.stream("Describe the image."), other.look(pictures(1)[0]).stream("Describe the image.")
    pieces = ["", ""]
    for _ in range(40):  # in turns, though llama.cpp's memory holds one text
        pieces[0] += next(one, "")
        pieces[1] += next(two, "")
    assert pieces[0] == kit.ask(DOOR, "Describe the image.").text
    assert pieces[1] == kit.ask(pictures(1)[0], "Describe the image.").text
    pairs = [(DOOR, "What is it?"), (None, "What is a bus?"), (DOOR, ""), (pictures(1)[0], "What is it?")]
    with pytest.warns(UserWarning, match="1 of 4 have no answer"):
        many = other.ask_many(pairs, progress=False)
    assert isinstance(many[2], PromptError)
    alone = [kit.ask(*pairs[index]).token_ids for index in (0, 1, 3)]
    assert [many[index].token_ids for index in (0, 1, 3)] == alone


def test_drawn_answers_are_those_of_the_kit(nano):
    settings = {"temperature": 0.8, "top_p": 0.9, "seed": 3, "max_new_tokens": 20}
    expected = nano["kit"].ask(DOOR, "Describe the image.", **settings)
    assert nano["f32"].ask(DOOR, "Describe the image.", **settings).token_ids == expected.token_ids
    stopped = nano["f32"].ask(DOOR, "Describe the image.", stop=" person")
    assert stopped == nano["kit"].ask(DOOR, "Describe the image.", stop=" person").text


def test_likelihoods(nano):
    kit, other = nano["kit"], nano["f32"]
    answers = ["a door", "a red bus", "a person in a blue shirt"]
    for one, two in zip(kit.rank(DOOR, "What is it?", answers), other.rank(DOOR, "What is it?", answers), strict=True):
        assert two.answer == one.answer
        assert two.log_likelihood == pytest.approx(one.log_likelihood, abs=0.05)
    assert [found[0].answer for found in other.classify(pictures(2), answers, progress=False)] == [
        found[0].answer for found in kit.classify(pictures(2), answers, progress=False)
    ]
    expected = kit.look(DOOR).next_tokens("What is it?", 3, "The picture")
    for (one, chance), (two, other_chance) in zip(
        expected, other.look(DOOR).next_tokens("What is it?", 3, "The picture"), strict=True
    ):
        assert one == two
        assert other_chance == pytest.approx(chance, abs=0.01)


@pytest.mark.parametrize("form", [form for form in FORMS if form.what.startswith("main")], ids=str)
def test_llama_cpp_reads_texts_as_the_published_tokenizers_do(form, tmp_path):
    """What a server does that gets the chat template and a question; the kit's own engine hands over tokens."""
    import llama_cpp

    folder = write_form(form, tmp_path / "form")
    change_json(folder, lambda config: config.update(sliding_window=None))
    export_gguf(folder, tmp_path / "out", "f16", progress=False)
    exported = Exported.read(tmp_path / "out")
    language = LanguageModel(exported.decoder(None), 1)
    vocabulary = llama_cpp.llama_model_get_vocab(language.model)

    def ids(text: str) -> list[int]:
        found, data = (llama_cpp.llama_token * 2000)(), text.encode()
        return found[: llama_cpp.llama_tokenize(vocabulary, data, len(data), found, 2000, False, True)]

    tokenizer, template = TextTokenizer(folder), TEMPLATES[form.family]
    for question in (QUESTION, NEXT, *TEXTS):
        asked = template.ask(question, first=True)
        assert ids("".join(asked)) == tokenizer.encode_pieces(asked)
    before = template.open()
    assert ids("".join(before[:-1])) == tokenizer.encode_pieces(before)


def test_a_second_question_reads_only_itself(nano, monkeypatch):
    """Image and opening stay in llama.cpp's memory, and an image that was seen before is not looked at again."""
    imp, read = nano["q8_0"], []
    image = pictures(9)[8]
    view = imp.look(image)
    real = imp.engine.language.read
    monkeypatch.setattr(
        imp.engine.language, "read", lambda values, scored=1: read.append(len(values)) or real(values, scored)
    )
    monkeypatch.setattr(imp.engine.tower, "encode", None)
    for question in ("What is it?", "What color is the cup?"):
        read.clear()
        answer = view.ask(question)
        asked = imp.tokenizer.encode_pieces(imp.template.ask(question, first=True))
        assert sum(read) < len(asked) + answer.tokens + 1
    read.clear()
    imp.ask(None, "What is a bus?")
    view.ask("What is it?")
    assert sum(read) > 144, "another text stood in the memory"


def test_a_checkpoint_is_exported_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(llama_engine, "CACHE", tmp_path / "cache")
    folder = write_checkpoint(make_oracle(), tmp_path / "tiny")
    for said in (True, False):
        imp = imp_kit.load(folder, engine="llama.cpp")
        assert ("is written for llama.cpp once" in capsys.readouterr().out) == said
    assert imp.dtype == "q8_0"
    change_json(folder, lambda config: config.update(rope_theta=999.0))
    imp_kit.load(folder, engine="llama.cpp")
    assert len(list((tmp_path / "cache").glob("*/"))) == 2, "another checkpoint now"


# What cannot be loaded --------------------------------------------------------------------------------------


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    """As in a home folder that others share: what is there is used, what is not cannot be made."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(llama_engine, "CACHE", cache)
    imp_kit.load("imp-nano", engine="llama.cpp")
    monkeypatch.setattr(llama_engine, "FileLock", None)
    imp_kit.load("imp-nano", engine="llama.cpp")
    cache.rename(tmp_path / "away")
    cache.touch()
    with pytest.raises(SettingError, match="cache cannot be written .*export gguf"):
        imp_kit.load("imp-nano", engine="llama.cpp")


def test_settings_that_make_no_sense(nano, monkeypatch):
    with pytest.raises(SettingError, match="engine is 'onnx'; choose torch or llama.cpp"):
        imp_kit.load("imp-nano", engine="onnx")
    for settings in ({"dtype": "fp16"}, {"device": "cuda"}):
        with pytest.raises(SettingError, match="computes on the CPU"):
            imp_kit.load("imp-nano", engine="llama.cpp", **settings)
    with pytest.raises(SettingError, match="quantize is 'int8'; choose from f32"):
        imp_kit.load("imp-nano", engine="llama.cpp", quantize="int8")
    with pytest.raises(SettingError, match=r"quantize is \['q8_0'\], and"):
        imp_kit.load(nano["folder"], engine="llama.cpp", quantize=["q8_0"])
    with pytest.raises(SettingError, match="quantize is None, and .* has f32 and q8_0"):
        imp_kit.load(nano["folder"], engine="llama.cpp")
    with pytest.raises(SettingError, match="quantize is 'q4_0', and .* has f32 and q8_0"):
        imp_kit.load(nano["folder"], engine="llama.cpp", quantize="q4_0")


def test_files_that_do_not_belong_together(nano, tmp_path):
    folder = write_checkpoint(make_oracle(), tmp_path / "tiny")
    here = shutil.copytree(nano["folder"], tmp_path / "mixed")
    other = tmp_path / "other"
    export_gguf(folder, other, "f32", progress=False)
    shutil.copy(other / "mmproj-tiny-F32.gguf", here / "mmproj-imp-nano-F32.gguf")
    with pytest.raises(CheckpointError, match="mmproj-imp-nano-F32.gguf was not made of imp-nano"):
        imp_kit.load(here, engine="llama.cpp", quantize="f32")
    shutil.copy(other / "tiny-F32.gguf", here / "imp-nano-F32.gguf")
    with pytest.raises(CheckpointError, match="imp-nano-F32.gguf was not made of imp-nano"):
        imp_kit.load(here, engine="llama.cpp", quantize="f32")


@pytest.mark.parametrize("ends", [[99_999], [-1], ["a"], "abc"])
def test_a_description_with_ends_that_are_no_tokens(nano, tmp_path, ends):
    here = shutil.copytree(nano["folder"], tmp_path / "edited")
    file = here / "imp-kit.json"
    found = json.loads(file.read_text("utf-8"))
    found["config"]["eos_token_ids"] = ends
    file.write_text(json.dumps(found), "utf-8")
    with pytest.raises(CheckpointError, match="is no description of an export ..eos_token_ids is"):
        imp_kit.load(here, engine="llama.cpp", quantize="q8_0")


def test_damaged_files_and_unknown_architectures(nano, tmp_path):
    here = shutil.copytree(nano["folder"], tmp_path / "damaged")
    decoder = here / "imp-nano-F32.gguf"
    whole = decoder.read_bytes()
    decoder.write_bytes(whole.replace(b"phi2", b"phi9"))
    with pytest.raises(CheckpointError, match=r"cannot open .*unknown model architecture: 'phi9'.* newer than this"):
        imp_kit.load(here, engine="llama.cpp", quantize="f32")
    decoder.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="llama.cpp cannot open .*imp-nano-F32.gguf"):
        imp_kit.load(here, engine="llama.cpp", quantize="f32")
    tower = here / "mmproj-imp-nano-F16.gguf"
    tower.write_bytes(tower.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"mmproj-imp-nano-F16.gguf is no GGUF file, or a part of one"):
        imp_kit.load(here, engine="llama.cpp", quantize="q8_0")


def test_a_description_of_other_sizes(nano, tmp_path):
    here = shutil.copytree(nano["folder"], tmp_path / "described")
    file = here / "imp-kit.json"
    described = json.loads(file.read_text("utf-8"))
    described["digest"] = "0" * 64
    file.write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="was not made of imp-nano"):
        imp_kit.load(here, engine="llama.cpp", quantize="f32")
    assert Exported.read(here).config.vision.num_patches == 144


# Types of llama.cpp's own quantizer ---------------------------------------------------------------------------

# The type of a matrix whose rows are a multiple of 256, and of one whose rows are not.
MIXED = {"q6_k": ({"Q6_K"}, {"Q8_0"}), "q5_k_m": ({"Q5_K", "Q6_K"}, {"Q5_1", "Q8_0"}),
         "q4_k_m": ({"Q4_K", "Q6_K"}, {"Q5_0", "Q8_0"})}  # fmt: skip


def kinds(file: Path) -> set[str]:
    """The types of a file's matrices."""
    from gguf import GGUFReader

    return {tensor.tensor_type.name for tensor in GGUFReader(file).tensors if len(tensor.shape) > 1}


@pytest.mark.parametrize("type", MIXED)
def test_types_of_mixed_bits(type, nano, tmp_path):
    """imp-nano's rows are 256 and 1024 numbers, those of a tiny one 64 and 176: these get the nearest plain type."""
    decoder, *_ = export_gguf("imp-nano", nano["folder"], type, progress=False)
    assert decoder.name == f"imp-nano-{type.upper()}.gguf"
    assert kinds(decoder) == MIXED[type][0]
    assert not list(nano["folder"].glob("*.partial*"))
    imp = imp_kit.load(nano["folder"], engine="llama.cpp", quantize=type)
    assert imp.ask(DOOR, "What is it?").token_ids == nano["kit"].ask(DOOR, "What is it?").token_ids
    tiny, *_ = export_gguf(write_checkpoint(make_oracle(), tmp_path / "tiny"), tmp_path / "out", type, progress=False)
    assert kinds(tiny) == MIXED[type][1]
    imp_kit.load(tmp_path / "out", engine="llama.cpp").ask(DOOR, "What is it?", max_new_tokens=2)
