"""What makes the kit fast changes no answer: packed weights, kept images, blocks, batches, graphs, 8 bits."""

import shutil
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from parity import write
from quick import quick
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

import imp_kit
from imp_kit import engine
from imp_kit import imp as assistant
from imp_kit.checkpoints import load as loading
from imp_kit.checkpoints.files import find_tensors, read_json
from imp_kit.checkpoints.hub import NANO_FOLDER, find
from imp_kit.checkpoints.load import load_weights
from imp_kit.checkpoints.plan import plan
from imp_kit.checkpoints.tokenizer import TextTokenizer
from imp_kit.model import cuda_graph as graph
from imp_kit.model import decoder as network
from imp_kit.model import generate as generation
from imp_kit.model import packed_linear
from imp_kit.model.cuda_graph import StepGraph
from imp_kit.model.decoder import Padding
from imp_kit.model.packed_linear import GeluLinear, HalfLinear, Int8Linear, PackedLinear, pack_linear, pack_model
from imp_kit.nano.training.evaluation import exam
from imp_kit.nano.training.lessons import SKILLS

BUS, DOOR = "images/bus.png", "images/door.png"
STOPS = ("the", " a", "re", ".", "picture", "s ", "no such text", "</s>")
SAME = ("text", "token_ids", "prompt", "finish", "tokens")


half = pytest.mark.skipif(
    not packed_linear._has_half_product(torch.backends.quantized.engine),
    reason="torch has no product with fp16 weights on this CPU",
)


@pytest.fixture(scope="module")
def imp():
    return imp_kit.load("imp-nano", device="cpu", dtype="fp32")


@pytest.fixture
def fresh():
    """An Imp that has looked at nothing yet."""
    return imp_kit.load("imp-nano", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def plain():
    """The same weights as torch's own linear layers."""
    model, _ = load_weights(NANO_FOLDER, torch.device("cpu"), torch.float32)
    return assistant.Imp(model, TextTokenizer(NANO_FOLDER), find("imp-nano", None), "for the tests")


def plainly(plain, picture, question, **settings):
    """One answer with nothing kept from an earlier one."""
    plain.engine._prefix_cache.clear()
    return plain.ask(picture, question, **settings)


def comparable(answer):
    return [getattr(answer, name) for name in SAME]


@pytest.mark.parametrize(("count", "rare"), [(40, 0), pytest.param(200, 20, marks=pytest.mark.slow)])
def test_random_requests(imp, plain, monkeypatch, count, rare):
    """Pictures, questions, lengths, stop strings and batch shapes by chance; blocks of tokens as on a GPU."""
    rng = np.random.default_rng(0)
    cases = [(case.image, case.turns[0].question) for skill in SKILLS for case in exam(skill, "trained", 5, 4)]
    cases += [(None, "What is a bus?"), (BUS, "What are the colors of the bus?"), (DOOR, "Describe the image.")]
    compared = ended_by_stop = 0
    while compared < count:
        pairs = [cases[i] for i in rng.integers(len(cases), size=rng.integers(1, 18))]
        if rng.random() < 0.3:  # many questions about one picture
            pairs = [(pairs[0][0], question) for _, question in pairs]
        settings = {"max_new_tokens": int(rng.integers(1, 30))}
        if rng.random() < 0.5:
            settings["stop"] = [str(text) for text in rng.choice(STOPS, rng.integers(1, 3))]
        expected = [plainly(plain, picture, question, **settings) for picture, question in pairs]
        with monkeypatch.context() as patched:
            patched.setattr(generation, "BLOCKS", {"cpu": int(rng.integers(1, 10))})
            together = imp.ask_many(pairs, batch_size=int(rng.integers(1, 9)), progress=False, **settings)
            alone = imp.ask(*pairs[0], **settings)
            stream = "".join(imp.look(pairs[0][0]).stream(pairs[0][1], **settings))
        assert [comparable(answer) for answer in together] == [comparable(answer) for answer in expected]
        assert comparable(alone) == comparable(expected[0])
        assert stream == expected[0].text
        compared += len(pairs)
        ended_by_stop += sum(answer.finish == "stop" for answer in expected)
    assert rare < ended_by_stop < compared - rare


@pytest.mark.parametrize("batch_size", quick(1, [8, 1, 5, 24]))
def test_what_is_drawn_with_a_seed_does_not_depend_on_the_batch(imp, plain, batch_size, monkeypatch):
    """Each answer has random numbers of its own, from the seed and its place in the list; an item in error has, too."""
    # This seed draws no token whose neighbor in the order is as likely to 1e-9: rounding alone would swap the two.
    settings = {"temperature": 3.0, "top_p": 0.95, "seed": 2, "max_new_tokens": 12}
    question = "Describe the image in detail."
    pairs = [(DOOR, question)] * 20 + [(None, "What is a bus?"), (BUS, " "), (BUS, question), (DOOR, "And the box?")]
    expected = plain.ask_many(pairs, batch_size=1, progress=False, **settings)
    monkeypatch.setattr(generation, "BLOCKS", {"cpu": 3})
    together = imp.ask_many(pairs, batch_size=batch_size, progress=False, **settings)
    assert [comparable(a) if isinstance(a, imp_kit.Answer) else str(a) for a in together] == [
        comparable(a) if isinstance(a, imp_kit.Answer) else str(a) for a in expected
    ]
    assert comparable(together[0]) == comparable(imp.ask(*pairs[0], **settings))
    assert len({str(answer) for answer in together[:20]}) >= 15


def test_a_chat_with_blocks_is_the_chat_without(imp, plain, monkeypatch):
    monkeypatch.setattr(generation, "BLOCKS", {"cpu": 7})
    chats = [who.chat(DOOR) for who in (imp, plain)]
    for question in ("What color is the door?", "Where is it?", "Describe the image in detail.", "And the box?"):
        one, other = (chat.say(question, stop=["box"]) for chat in chats)
        assert comparable(one) == comparable(other)


# Pictures that were looked at -------------------------------------------------------------------------------


def test_questions_about_a_picture_copy_nothing(fresh):
    view = fresh.look(DOOR)
    first = view.ask("What color is the door?")
    chat = assistant.Chat(view)
    chat.say("What color is the door?")
    chat.say("Where is it?")
    assert chat._conversation.prefix().buffer is view.prefix.buffer
    # While that chat is alive another goes on beside it, in memory of its own.
    other = assistant.Chat(view)
    assert comparable(other.say("What color is the door?")) == comparable(first)
    assert other._conversation.prefix().buffer is not view.prefix.buffer
    expected = [comparable(answer) for answer in (chat.say("And the box?"), other.say("And the box?"))]
    chats = [fresh.chat(DOOR), fresh.chat(DOOR)]
    for each in chats:
        each.say("What color is the door?")
    chats[0].say("Where is it?")
    assert [comparable(each.say("And the box?")) for each in chats] == expected


def test_streams_side_by_side_do_not_disturb_each_other(fresh):
    view = fresh.look(DOOR)
    expected = [str(view.ask(question)) for question in ("Describe the image in detail.", "What color is the door?")]
    one = view.stream("Describe the image in detail.")
    begun = next(one)
    other = "".join(view.stream("What color is the door?"))
    assert [begun + "".join(one), other] == expected


def test_a_dropped_stream_leaves_the_chat_as_it_was(fresh):
    chat = fresh.chat(DOOR)
    chat.say("What color is the door?")
    stream = chat.stream("Describe the image in detail.")
    next(stream)
    stream.close()
    del stream
    fresh.ask(DOOR, "Describe the image in detail.")  # would write over the chat's turn if it might
    beside = fresh.chat(DOOR)
    beside.say("What color is the door?")
    assert comparable(chat.say("Where is it?")) == comparable(beside.say("Where is it?"))


def test_a_picture_is_read_once(fresh, monkeypatch):
    read = []
    encode = fresh.model.encode
    monkeypatch.setattr(fresh.model, "encode", lambda pixels: read.append(len(pixels)) or encode(pixels))
    first = fresh.ask(DOOR, "What color is the door?")
    assert comparable(fresh.ask(DOOR, "What color is the door?")) == comparable(first)
    assert read == [1]
    fresh.ask(BUS, "What color is the bus?")
    assert read == [1, 1]
    other = assistant.open_image(DOOR)
    other.putpixel((300, 200), (255, 0, 255))
    other.putpixel((301, 201), (255, 0, 255))
    fresh.look(other)
    assert read == [1, 1, 1]
    fresh.ask_many([(DOOR, "What color is the door?"), (BUS, "What color is the bus?")], progress=False)
    assert read == [1, 1, 1]


def test_no_image_of_a_batch_is_read_twice_where_none_can_be_kept(fresh, monkeypatch):
    """As with a large Imp, one of whose images is more than PREFIX_CACHE_BYTES in fp32."""
    read = []
    encode = fresh.model.encode
    monkeypatch.setattr(fresh.model, "encode", lambda pixels: read.append(len(pixels)) or encode(pixels))
    monkeypatch.setattr(engine, "PREFIX_CACHE_BYTES", 0)
    pairs = [(DOOR, "What color is the door?"), (BUS, "What color is the bus?"), (None, "What is a bus?")] * 3
    together = fresh.ask_many(pairs, batch_size=9, progress=False)
    assert read == [1, 1]
    assert [comparable(answer) for answer in together] == [comparable(fresh.ask(*pair)) for pair in pairs]


def test_what_is_kept_is_bounded(fresh, monkeypatch):
    size = fresh.look(DOOR).prefix.buffer.tensor.nbytes
    monkeypatch.setattr(engine, "PREFIX_CACHE_BYTES", 2.5 * size)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(4)]
    views = [fresh.look(picture) for picture in pictures]
    kept = list(fresh.engine._prefix_cache.values())
    assert kept == [view.prefix for view in views[-2:]]
    assert comparable(views[0].ask("What is this?")) == comparable(fresh.ask(pictures[0], "What is this?"))
    kept = list(fresh.engine._prefix_cache.values())
    monkeypatch.setattr(engine, "PREFIX_CACHE_BYTES", size - 1)  # what is too large to be kept drives nothing out
    fresh.look(DOOR)
    assert list(fresh.engine._prefix_cache.values()) == kept


# Batches ----------------------------------------------------------------------------------------------------


@pytest.fixture
def shapes(imp, monkeypatch):
    """(rows, positions) of all that the decoder read."""
    seen = []
    forward = imp.model.decoder.forward

    def noted(x, *rest):
        seen.append(tuple(x.shape[:2]))
        return forward(x, *rest)

    monkeypatch.setattr(imp.model.decoder, "forward", noted)
    return seen


def test_questions_about_one_picture_read_it_once_and_leave_when_answered(imp, shapes):
    questions = ["Describe the image in detail.", "What color is the door?", "Is there a bus?", "Where is the door?"]
    imp.engine._prefix_cache.clear()
    together = imp.ask_many([(DOOR, question) for question in questions], batch_size=4, progress=False)
    prefix = len(imp.tokenizer.encode_pieces(imp.template.open())) + imp.model.config.vision.num_patches
    assert [shape for shape in shapes if shape[1] >= prefix] == [(1, prefix)]
    rows = [shape[0] for shape in shapes if shape[1] == 1]
    assert rows == sorted(rows, reverse=True)
    assert rows[0] == 4
    assert rows[-1] == 1
    assert [comparable(answer) for answer in together] == [
        comparable(imp.ask(DOOR, question)) for question in questions
    ]


def test_a_batch_that_does_not_fit_is_halved(imp, shapes, monkeypatch):
    pairs = [(DOOR, "What color is the door?")] * 3 + [(BUS, "What color is the bus?")] * 5  # halves that differ
    row = imp.engine._row_bytes(20)
    monkeypatch.setattr(engine, "free_memory", lambda _: 3 * row)
    together = imp.ask_many(pairs, batch_size=8, progress=False, max_new_tokens=20)
    assert max(rows for rows, _ in shapes) == 2
    assert [comparable(answer) for answer in together] == [
        comparable(imp.ask(*pair, max_new_tokens=20)) for pair in pairs
    ]


def test_keys_and_values_that_do_not_fit_are_refused_before_they_are_made(imp, monkeypatch):
    view = imp.look(DOOR)
    monkeypatch.setattr(network, "WORTH_ASKING", 0)
    monkeypatch.setattr(network, "free_memory", lambda _: 1000)
    with pytest.raises(imp_kit.MemoryLimitError, match=r"1 x .* positions need .* GB on cpu, but 0.0 GB are free"):
        view.ask("What is this?", max_new_tokens=400)
    with pytest.warns(UserWarning, match="1 of 1 have no answer"):
        (error,) = imp.ask_many([(DOOR, "What is this?")], max_new_tokens=400, progress=False)
    assert isinstance(error, imp_kit.MemoryLimitError)


# A step as a graph --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["imp-nano", "qwen, shared keys", "phi3, window", "phi3, both"])
@pytest.mark.parametrize("pads", [None, [0, 3, 1]], ids=["alone", "padded"])
@torch.inference_mode()
def test_a_step_at_fixed_addresses_is_the_plain_step(plain, pads, name, tmp_path):
    """What a GPU captures, run on the CPU: the place in the cache is a tensor, and all of the memory is looked at."""
    model = (
        plain.model
        if name == "imp-nano"
        else load_weights(write(name, tmp_path), torch.device("cpu"), torch.float32)[0]
    )
    torch.manual_seed(0)
    rows, length, steps = len(pads or [0]), 40, 12
    padding = Padding(torch.tensor(pads), start=9) if pads else None
    caches = [model.new_cache(length + steps, rows) for _ in range(2)]
    prompt = torch.randn(rows, length, model.config.decoder.hidden_size)
    for cache in caches:
        cache.buffer.tensor.zero_()
        model.decoder(prompt, cache, padding)
    step = StepGraph(model, caches[1].buffer.tensor, padding)
    step.prepare(torch.zeros(rows, dtype=torch.long), length)
    for _ in range(steps):
        ids = torch.randint(min(800, model.config.decoder.vocab_size), (rows,))
        step.ids.copy_(ids)
        expected = model.decoder(model.decoder.embed_tokens(ids)[:, None], caches[0], padding)
        torch.testing.assert_close(step.run(), expected, rtol=0, atol=2e-5)
    assert step.position.tolist() == [length + steps]
    torch.testing.assert_close(caches[1].buffer.tensor, caches[0].buffer.tensor, rtol=0, atol=2e-5)


@torch.inference_mode()
def test_a_step_is_kept_with_its_memory_and_goes_on_at_another_place(plain):
    """One memory, one step: the next question goes on at its own place, over what the last one left there."""
    model = plain.model
    cache = model.new_cache(30)
    cache.buffer.tensor.zero_()
    model.decoder(torch.randn(1, 10, model.config.decoder.hidden_size), cache)
    cache.truncate(10)
    step = StepGraph.of(model, cache.fork(25), None)
    step.prepare(torch.tensor([0]), 10)
    expected, found = [], []
    for question, first in enumerate((7, 8)):
        going, copied = cache.fork(25), cache.fork(31)
        assert (going.buffer is cache.buffer, copied.buffer is cache.buffer) == (True, False)
        assert StepGraph.of(model, going, None) is step
        assert StepGraph.of(model, copied, None) is not step
        step.position.fill_(going.length)
        for token in range(first, first + 4 - question):
            step.ids.copy_(torch.tensor([token]))
            found.append(step.run().clone())
            expected.append(model.decoder(model.decoder.embed_tokens(step.ids)[:, None], copied))
        del going
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_a_padded_step_is_never_kept(plain):
    cache, padding = plain.model.new_cache(8, 2), Padding(torch.tensor([0, 1]))
    step = StepGraph.of(plain.model, cache, padding)
    assert StepGraph.of(plain.model, cache, padding) is not step


class HalfCaptured(StepGraph):
    """A step whose capture fails after it has written into the cache."""

    def _capture(self, ids, start, plain):
        self.prepare(ids + 1, start)
        self.run()
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.mark.parametrize("kind", [StepGraph, HalfCaptured])
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@torch.inference_mode()
def test_where_no_graph_can_be_captured_the_plain_steps_go_on(plain, kind):
    model = plain.model
    cache, other = (model.new_cache(8) for _ in range(2))
    step = kind(model, cache.buffer.tensor, None)
    ids = torch.tensor([5])
    with pytest.warns(UserWarning, match="without a CUDA graph, which is slower") as warned:
        results = [step(ids, cache) for _ in range(3)]
    assert len(warned) == 1
    assert (cache.length, step.graph) == (3, None)
    expected = [model.decoder(model.decoder.embed_tokens(ids)[:, None], other) for _ in range(3)]
    assert all(map(torch.equal, results, expected))


@pytest.mark.parametrize(
    ("change", "same"), [(0.0, True), (0.01, True), (0.03, False), (float("nan"), False), (float("inf"), False)]
)
def test_what_counts_as_the_result_of_the_plain_step(change, same):
    """By the largest value; that a real graph is compared, tests on a GPU see."""
    expected = torch.tensor([[1.0, -4.0, 0.5]])
    assert graph.agrees(expected + torch.tensor([[0.0, 4 * change, 0.0]]), expected) is same


def test_training_goes_on_after_an_answer():
    """The table of rotations is made once, for inference and training alike."""
    network.rope_table.cache_clear()
    model = load_weights(NANO_FOLDER, torch.device("cpu"), torch.float32)[0]
    x = torch.randn(1, 6, model.config.decoder.hidden_size)
    with torch.inference_mode():
        expected = model.decoder(x)
    weight = model.decoder.layers[0].attention.qkv.weight.requires_grad_()
    hidden = model.decoder(x)
    hidden.sum().backward()
    assert weight.grad.abs().max() > 0
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-5)


# Weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (2, 5), (2, 70)], ids=str)
def test_packed_weights_give_the_same_products(dtype, tolerance, shape):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 2000), GeluLinear(2000, 1000), nn.Linear(1000, 40, bias=False))
    model.to(dtype).requires_grad_(False)
    x = torch.randn(*shape, 96, dtype=dtype)
    first, middle, last = model
    expected = last(F.gelu(F.linear(first(x), middle.weight, middle.bias), approximate="tanh"))
    model = nn.ModuleDict({"decoder": model})
    pack_model(model)
    model = model["decoder"]
    if torch.backends.mkldnn.is_available() and (
        dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        assert all(isinstance(layer, PackedLinear) for layer in model)
        # A small weight has two forms, for one row and for several; the second one here is not small.
        assert [layer.plain is not None for layer in model] == [dtype == torch.float32, False, dtype == torch.float32]
    torch.testing.assert_close(model(x), expected, rtol=tolerance, atol=tolerance)


def half_linear(kind=nn.Linear, columns=1000, rows=1009, **settings) -> nn.Linear:
    """A layer of more than SMALL bytes whose values a file in fp16 could hold; 1009 does not divide by 3 or 4."""
    torch.manual_seed(0)
    linear = kind(columns, rows, **settings).requires_grad_(False)
    for parameter in linear.parameters():
        parameter.copy_(parameter.half())
    return linear


@pytest.fixture
def all_large(monkeypatch):
    """Every weight of imp-nano's decoder counts as one that is worth to stay in fp16."""
    monkeypatch.setattr(packed_linear, "SMALL", 0)
    monkeypatch.setattr(packed_linear, "BLOCK", 1)


@half
@pytest.mark.parametrize("threads", [1, 3, 7])
@pytest.mark.parametrize("rows", [(), (1, 1), (8, 1), (2, 70), (0, 1)], ids=str)
@pytest.mark.parametrize(("kind", "bias"), [(nn.Linear, True), (nn.Linear, False), (GeluLinear, True)])
def test_weights_in_fp16_give_the_products_of_fp32(threads, rows, kind, bias):
    linear = half_linear(kind, bias=bias)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        layer = pack_linear("decoder.lm_head", linear)
        x = torch.randn(*rows, 2 * 1000)[..., ::2]
        found = layer(x)
    finally:
        torch.set_num_threads(before)
    assert isinstance(layer, HalfLinear)
    assert (layer.weight.shape, layer.weight.dtype) == (linear.weight.shape, torch.float16)
    assert len(layer.parts) == min(threads, 4)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), linear.double()(x.double()), rtol=1e-5, atol=1e-5)


@half
@pytest.mark.parametrize("value", [1 + 2**-11, 1e-9, 70000.0, float("inf"), float("nan")])
def test_a_value_that_fp16_does_not_hold_keeps_its_weight_in_fp32(value):
    """One of a million, as in a checkpoint that is stored in bf16 or fp32."""
    linear = half_linear(bias=False)
    linear.weight[-1, -1] = value
    layer = pack_linear("decoder.lm_head", linear)
    assert not isinstance(layer, HalfLinear)
    x = torch.zeros(1, 1, 1000)
    x[..., -1] = 1
    torch.testing.assert_close(layer(x)[0, 0, -1], torch.tensor(value), equal_nan=True, rtol=1e-6, atol=0)


@half
def test_only_large_weights_of_the_decoder_in_fp32_stay_in_fp16():
    head, narrow = "decoder.lm_head", half_linear(columns=64, rows=30000)  # FBGEMM would give it 512 columns
    assert isinstance(pack_linear(head, half_linear()), HalfLinear)
    for name, linear in (
        ("vision.head", half_linear()),
        (head, half_linear().bfloat16()),
        (head, half_linear().half()),
        (head, narrow),
        (head, half_linear(columns=960)),
    ):
        assert not isinstance(pack_linear(name, linear), HalfLinear)
    assert isinstance(pack_linear(head, half_linear(), "int8"), Int8Linear)
    turned = half_linear(rows=1000)
    turned.weight = nn.Parameter(turned.weight.T, requires_grad=False)
    x = torch.randn(1, 1000)
    torch.testing.assert_close(pack_linear(head, turned)(x), turned(x), rtol=1e-5, atol=1e-5)
    imp = imp_kit.load("imp-nano", device="cpu", dtype="fp32")
    assert not any(isinstance(module, HalfLinear) for module in imp.model.modules())


@half
def test_what_is_packed_in_fp16_can_be_neither_moved_nor_lost():
    model = nn.ModuleDict({"decoder": nn.Sequential(half_linear())})
    plain = {name: values.clone() for name, values in model.state_dict().items()}
    pack_model(model)
    x = torch.randn(2, 1000)
    before = model["decoder"](x)
    assert torch.equal(model.to("cpu").float()["decoder"](x), before)
    for change in (model.half, model.bfloat16, lambda: model.to("meta"), model.state_dict):
        with pytest.raises(NotImplementedError, match="packed for the CPU cannot be moved, saved or filled"):
            change()
    with pytest.raises(NotImplementedError, match="cannot be moved, saved or filled"):
        model.load_state_dict(plain)
    assert torch.equal(model["decoder"](x), before)


@half
@pytest.mark.slow
def test_answers_with_weights_in_fp16_are_those_of_fp32(imp, plain, all_large):
    """Each of imp-nano's layers, as if it were large; a caller's own defaults change nothing."""
    packed_linear._has_half_product.cache_clear()
    torch.set_default_dtype(torch.bfloat16)
    torch.set_default_device("meta")
    try:
        small = imp_kit.load("imp-nano", device="cpu", dtype="fp32")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    halves = [module for module in small.model.modules() if isinstance(module, HalfLinear)]
    assert len(halves) == 4 * small.model.config.decoder.num_layers + 1
    assert (small.dtype, repr(small)) == ("fp32", repr(imp))
    torch.manual_seed(0)
    x = torch.randn(2, 30, 256)
    with torch.inference_mode():
        scores = [model.decoder.logits(model.decoder(x)) for model in (small.model, plain.model)]
    # The plain fp32 scores are themselves up to 3.3e-5 from those of fp64 here, and these up to 3.0e-5.
    torch.testing.assert_close(*scores, rtol=0, atol=5e-5)
    pairs = [(case.image, case.turns[0].question) for skill in SKILLS for case in exam(skill, "trained", 7, 2)]
    answers, expected = (who.ask_many(pairs, progress=False, max_new_tokens=40) for who in (small, imp))
    assert [comparable(answer) for answer in answers] == [comparable(answer) for answer in expected]
    assert comparable(small.ask(*pairs[0])) == comparable(imp.ask(*pairs[0]))


@half
@pytest.mark.parametrize("engine", ["qnnpack", "onednn"])
def test_another_engine_of_torch_changes_no_answer(engine, imp, all_large, monkeypatch):
    """Only FBGEMM lays weights in fp16 out; what is laid out works with any engine."""
    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this torch has no {engine}")
    small = imp_kit.load("imp-nano", device="cpu", dtype="fp32")
    expected = comparable(imp.ask(BUS, "What is this?"))
    monkeypatch.setattr(torch.backends.quantized, "engine", engine)
    assert comparable(small.ask(BUS, "What is this?")) == expected
    other = imp_kit.load("imp-nano", device="cpu", dtype="fp32")
    assert not any(isinstance(module, HalfLinear) for module in other.model.modules())
    assert comparable(other.ask(BUS, "What is this?")) == expected


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("large", [False, True])
def test_the_bytes_of_weights_are_known_before_they_are_read(dtype, quantize, large, request):
    if large:
        request.getfixturevalue("all_large")
    cpu = torch.device("cpu")
    checked = plan(read_json(NANO_FOLDER / "config.json"), find_tensors(NANO_FOLDER), "imp-nano")
    for pack in (False, True):
        model, _ = load_weights(NANO_FOLDER, cpu, dtype, pack=pack, quantize=quantize)
        known = checked.weight_bytes(cpu, dtype, pack=pack, quantize=quantize)
        scales = sum(p.nbytes for name, p in model.named_parameters() if name.endswith(".scale"))
        assert known == sum(p.numel() * p.dtype.itemsize for p in model.parameters()) - scales


def stored_in_fp32(folder, names=lambda name: True):
    """imp-nano with some tensors stored in fp32, with the same values."""
    shutil.copytree(NANO_FOLDER, folder)
    tensors = load_file(folder / "model.safetensors")
    wide = {name: values.float() if names(name) else values for name, values in tensors.items()}
    save_file(wide, folder / "model.safetensors")
    return folder


@half
def test_a_weight_that_is_stored_partly_in_fp32_counts_as_one(all_large, tmp_path):
    folder = stored_in_fp32(tmp_path / "mixed", lambda name: "layers.0.self_attn.q_proj.weight" in name)
    sizes = [
        plan(read_json(place / "config.json"), find_tensors(place), "a folder").weight_bytes(
            torch.device("cpu"), torch.float32, pack=True
        )
        for place in (folder, NANO_FOLDER)
    ]
    assert sizes[0] - sizes[1] == 2 * 3 * 256 * 256


@half
def test_a_large_model_on_a_cpu_is_fp32_where_that_fits_with_weights_in_fp16(all_large, tmp_path, monkeypatch):
    """What is chosen can also be loaded, whatever is free."""
    wide = stored_in_fp32(tmp_path / "wide")
    monkeypatch.setattr(loading, "SMALL_MODEL", 0)
    monkeypatch.setattr(loading, "bf16_is_faster", lambda: False)
    cpu = torch.device("cpu")
    checked = plan(read_json(NANO_FOLDER / "config.json"), find_tensors(NANO_FOLDER), "imp-nano")
    halved, whole = (checked.needed_bytes(cpu, torch.float32, pack=pack) for pack in (True, False))
    assert checked.needed_bytes(cpu, torch.bfloat16, pack=True) < halved < 0.8 * whole
    chosen = []
    for free in (halved - 1, halved, whole - 1, whole):
        monkeypatch.setattr(loading, "free_memory", lambda _, free=free: free)
        chosen.append([imp_kit.load(folder, device="cpu").dtype for folder in (NANO_FOLDER, wide)])
    narrow, both = ["fp32", "bf16"], ["fp32", "fp32"]
    assert chosen == [["bf16", "bf16"], narrow, narrow, both]
    monkeypatch.setattr(loading, "bf16_is_faster", lambda: True)
    assert assistant.identify(NANO_FOLDER, device="cpu")["dtype"] == "bf16"


def test_without_such_a_product_weights_stay_in_fp32(monkeypatch):
    """As on a CPU with ARM's instructions, or with a torch that lacks the operator."""
    packed_linear._has_half_product.cache_clear()
    monkeypatch.setattr(torch.ops.quantized, "linear_dynamic_fp16", Mock(side_effect=RuntimeError("no engine")))
    try:
        assert not isinstance(pack_linear("decoder.lm_head", half_linear()), HalfLinear)
    finally:
        packed_linear._has_half_product.cache_clear()


FREED = """
import gc, torch
from torch import nn
from imp_kit.model.memory import trim_heap
from imp_kit.model.packed_linear import HalfLinear

def resident():
    # of the heap alone: what is read of libraries meanwhile is the system's to drop
    return next(int(line.split()[1]) / 1e3 for line in open("/proc/self/status") if line.startswith("RssAnon:"))

torch.set_num_threads(2)
linear = nn.Linear(2560, 4096).requires_grad_(False)
HalfLinear(linear)  # what the first one sets up stays
before = resident()
for _ in range(3):
    layers = [HalfLinear(linear) for _ in range(10)]
    held = resident() - before
    layers.clear()
    gc.collect()
trim_heap()
print(held, resident() - before)
"""


@half
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process' memory in this way")
@pytest.mark.slow
def test_the_memory_of_a_dropped_model_goes_back_to_the_system():
    """Threads laid its weights out, and what threads freed is kept by glibc until it is asked."""
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    held, left = map(float, done.stdout.split())
    assert held > 200
    assert left < held / 2  # glibc keeps the end of a thread's own heap; without being asked, it keeps nearly all


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 16, 17, 70])
def test_eight_bits_give_nearly_the_same_products(dtype, rows):
    torch.manual_seed(0)
    linear = nn.Linear(256, 300).requires_grad_(False)
    x = torch.randn(1, rows, 256)
    ours = Int8Linear(linear.to(dtype))(x.to(dtype))
    assert (ours.shape, ours.dtype) == ((1, rows, 300), dtype)
    linear = linear.float()
    # Each weight is off by half a step of its row at most.
    steps = linear.weight.abs().amax(dim=1) / 127
    bound = x.abs().sum(dim=-1, keepdim=True) * steps / 2
    rounding = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.004}[dtype]
    assert ((ours.float() - linear(x)).abs() <= bound + rounding * (1 + linear(x).abs())).all()
    if dtype == torch.float32:
        units = torch.eye(256)[None]
        weights = (Int8Linear(linear)(units) - linear.bias)[0].T
        assert ((weights - linear.weight).abs() <= steps[:, None] / 2 + 1e-6).all()
    error = (ours.float() - linear(x)).square().mean().sqrt() / linear(x).square().mean().sqrt()
    assert error < 0.01 + rounding


def test_eight_bits_come_before_gelu():
    torch.manual_seed(0)
    linear = GeluLinear(64, 32).requires_grad_(False)
    bare = nn.Linear(64, 32).requires_grad_(False)
    bare.load_state_dict(linear.state_dict())
    x = torch.randn(3, 64)
    assert torch.equal(Int8Linear(linear)(x), F.gelu(Int8Linear(bare)(x), approximate="tanh"))


def test_a_row_of_zeros_stays_zero():
    linear = nn.Linear(64, 3, bias=False).requires_grad_(False)
    linear.weight[1] = 0
    assert Int8Linear(linear)(torch.ones(1, 64))[0, 1] == 0


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 1e-3)], ids=str
)
@torch.inference_mode()
def test_every_weight_is_there_after_it_was_packed(dtype, tolerance, quantize):
    """Weights pass through one piece of memory while they load; fp16 stays plain on a CPU, but not in there."""
    where = (NANO_FOLDER, torch.device("cpu"), dtype)
    plain, laid = load_weights(*where)[0], load_weights(*where, pack=True, quantize=quantize)[0]
    torch.manual_seed(0)
    pixels, x = torch.rand(1, 3, 192, 192) * 2 - 1, torch.randn(1, 30, 256).to(dtype)
    pictures = [model.encode(pixels).float() for model in (laid, plain)]
    scores = [model.decoder.logits(model.decoder(x)) for model in (laid, plain)]
    for (found, expected), allowed in ((pictures, tolerance), (scores, (0.02 if quantize else 0) + tolerance)):
        error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert error <= allowed


def test_load_in_eight_bits(imp):
    small = imp_kit.load("imp-nano", device="cpu", dtype="fp32", quantize="int8")
    assert small.dtype == "fp32+int8"
    assert "fp32+int8" in repr(small)
    weights = [m for name, m in small.model.named_modules() if isinstance(m, Int8Linear)]
    assert len(weights) == 4 * small.model.config.decoder.num_layers + 1
    decoders = [sum(p.nbytes for p in who.model.decoder.layers.parameters()) for who in (small, imp)]
    assert decoders[0] < 0.27 * decoders[1]
    answer = small.ask(BUS, "What are the colors of the bus in the image?")
    assert str(answer) == str(imp.ask(BUS, "What are the colors of the bus in the image?"))
    assert answer.dtype == "fp32+int8"


@pytest.mark.parametrize("quantize", ["int4", "", 8, True])
def test_an_unknown_quantization_is_refused(quantize):
    with pytest.raises(imp_kit.SettingError, match=r"quantize is .*; give 'int8', or leave"):
        imp_kit.load("imp-nano", device="cpu", quantize=quantize)
