"""What only a GPU can show: steps that are captured for real, answers, waits and memory there."""

import threading
import warnings

import pytest
import torch
from parity import write

import imp_kit
from imp_kit.checkpoints.hub import NANO_FOLDER
from imp_kit.checkpoints.load import load_weights
from imp_kit.checkpoints.plan import plan_folder
from imp_kit.device import DTYPES, choose_dtype, gpu_dtype
from imp_kit.model.cuda_graph import StepGraph
from imp_kit.model.decoder import Padding
from imp_kit.model.generate import BLOCKS, generate
from imp_kit.model.sampling import Sampling

pytestmark = pytest.mark.gpu
BUS, DOOR = "images/bus.png", "images/door.png"
QUESTIONS = ("What color is the door?", "Describe the image in detail.", "Where is the door?", "Is there a bus?")
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def imp():
    return imp_kit.load("imp-nano", device="cuda", dtype="fp32")


@pytest.fixture(scope="module")
def on_cpu():
    return imp_kit.load("imp-nano", device="cpu", dtype="fp32")


def started(model, rows, pads, length=20, capacity=40):
    """Two caches with the same prompt, and the padding."""
    torch.manual_seed(0)
    padding = Padding(torch.tensor(pads, device=CUDA), start=9) if pads else None
    prompt = torch.randn(rows, length, model.config.decoder.hidden_size, device=CUDA, dtype=model.dtype)
    caches = [model.new_cache(capacity, rows) for _ in range(2)]
    for cache in caches:
        model.decoder(prompt, cache, padding)
    return caches, padding


@pytest.mark.parametrize("name", ["imp-nano", "qwen, shared keys", "phi3, window", "phi3, both"])
@pytest.mark.parametrize("pads", [None, [0, 3, 1]], ids=["alone", "padded"])
@torch.inference_mode()
def test_captured_steps_are_the_plain_ones(name, pads, tmp_path):
    model, _ = load_weights(NANO_FOLDER if name == "imp-nano" else write(name, tmp_path), CUDA, torch.float32)
    rows = len(pads or [0])
    (cache, other), padding = started(model, rows, pads)
    step = StepGraph.of(model, cache, padding)
    for number in range(12):
        ids = torch.randint(min(800, model.config.decoder.vocab_size), (rows,), device=CUDA)
        found = step(ids, cache)
        expected = model.decoder(model.decoder.embed_tokens(ids)[:, None], other, padding)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3, msg=lambda text, n=number: f"step {n}: {text}")
    assert step.graph is not None


@pytest.mark.parametrize("factor", [0.5, float("nan")])
@torch.inference_mode()
def test_a_graph_that_gives_something_else_is_refused_and_leaves_nothing_behind(imp, factor, monkeypatch):
    """The fault is in the kit's own step; capture and replay are CUDA's."""
    run = StepGraph.run
    monkeypatch.setattr(StepGraph, "run", lambda self: run(self) * factor)
    model = imp.model
    (cache, other), _ = started(model, 1, None)
    step = StepGraph(model, cache.buffer.tensor, None)
    ids = torch.tensor([5], device=CUDA)
    with pytest.warns(UserWarning, match="its result is not that of the plain step"):
        found = [step(ids, cache).clone() for _ in range(3)]
    assert step.graph is None
    expected = [model.decoder(model.decoder.embed_tokens(ids)[:, None], other) for _ in range(3)]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(cache.buffer.tensor[..., :20, :], other.buffer.tensor[..., :20, :], rtol=0, atol=0)


def test_a_captured_step_is_used_again_for_the_next_question(imp, monkeypatch):
    captured = []
    capture = StepGraph._capture
    monkeypatch.setattr(StepGraph, "_capture", lambda *values: captured.append(1) or capture(*values))
    imp.engine._prefix_cache.clear()
    view = imp.look(DOOR)
    first = [str(view.ask(question)) for question in QUESTIONS]
    assert len(captured) == 1
    assert [str(imp.ask(DOOR, question)) for question in QUESTIONS] == first


def test_answers_are_those_of_the_cpu(imp, on_cpu):
    """One by one, in a batch and in a chat: without any warning, so with captured steps."""
    pairs = [(image, question) for image in (DOOR, BUS) for question in QUESTIONS]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = [imp.ask(*pair) for pair in pairs]
        together = imp.ask_many(pairs, batch_size=5, progress=False)
        chat = imp.chat(DOOR)
        said = [str(chat.say(question)) for question in QUESTIONS]
    expected = [str(on_cpu.ask(*pair)) for pair in pairs]
    assert [str(answer) for answer in alone] == expected
    assert [str(answer) for answer in together] == expected
    beside = on_cpu.chat(DOOR)
    assert said == [str(beside.say(question)) for question in QUESTIONS]
    assert alone[0].device == "cuda:0"
    assert alone[0].peak_memory > imp.model.decoder.embed_tokens.weight.nbytes


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_16_and_8_bits_answer(dtype, quantize):
    imp = imp_kit.load("imp-nano", device="cuda", dtype=dtype, quantize=quantize)
    assert str(imp.ask(DOOR, "What color is the door?")) == "The door is green."
    assert len({str(imp.ask(DOOR, "Describe it.", temperature=1.0, seed=3)) for _ in range(2)}) == 1


@torch.inference_mode()
def test_the_loop_waits_once_a_block(imp):
    """As torch itself counts what waits for the GPU, after the first token and the capture."""
    model, tokens = imp.model, 4 * BLOCKS["cuda"]
    (cache, _), _ = started(model, 1, None, capacity=200)
    start = torch.randn(1, 5, model.config.decoder.hidden_size, device=CUDA)
    steps = generate(model, start, cache, Sampling(1 + BLOCKS["cuda"] + tokens), stop_ids=())
    for _ in range(1 + BLOCKS["cuda"]):
        next(steps)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = sum(1 for _ in steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(each.message) for each in caught if "synchroniz" in str(each.message)]
    assert made == tokens
    assert 1 <= len(waits) <= tokens / BLOCKS["cuda"], waits


def test_the_dtype_fits_the_gpu():
    capability = torch.cuda.get_device_capability()
    assert choose_dtype("auto", CUDA) == gpu_dtype(capability)
    assert imp_kit.load("imp-nano", device="cuda").dtype == ("bf16" if capability >= (8, 0) else "fp16")


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_the_plan_is_what_the_weights_take(dtype):
    planned = plan_folder(NANO_FOLDER).weight_bytes(CUDA, DTYPES[dtype], pack=True)
    before = torch.cuda.memory_allocated()
    imp = imp_kit.load("imp-nano", device="cuda", dtype=dtype)
    assert planned <= torch.cuda.memory_allocated() - before < 1.1 * planned + 2**21
    del imp


def test_out_of_memory_in_the_middle_of_an_answer_is_told_and_the_next_one_is_answered(imp):
    """A layer asks for more than the GPU has, after the prompt was read: the error is CUDA's own."""
    view = imp.look(DOOR)
    before = str(view.ask(QUESTIONS[0]))
    total = torch.cuda.get_device_properties(0).total_memory
    calls = []

    def fill(*_):
        calls.append(1)
        if len(calls) == 2:  # the prompt, then a step that is not captured yet
            torch.empty(2 * total, dtype=torch.uint8, device=CUDA)

    hook = imp.model.decoder.layers[1].register_forward_hook(fill)
    try:
        with pytest.raises(imp_kit.MemoryLimitError, match="This answer needs more memory than is free .CUDA out of"):
            imp.look(BUS).ask(QUESTIONS[1], max_new_tokens=700)
    finally:
        hook.remove()
    assert str(view.ask(QUESTIONS[0])) == before


def test_a_model_answers_in_another_thread(imp):
    """As a server's do: a stream and a graph belong to no thread."""
    answers = []
    expected = str(imp.ask(DOOR, QUESTIONS[0]))
    thread = threading.Thread(target=lambda: answers.append(str(imp.ask(DOOR, QUESTIONS[0]))))
    thread.start()
    thread.join()
    assert answers == [expected]


@pytest.mark.parametrize("index", [1, 2])
def test_a_gpu_that_is_not_the_first(index):
    if index >= torch.cuda.device_count():
        pytest.skip(f"needs {index + 1} GPUs")
    imp = imp_kit.load("imp-nano", device=f"cuda:{index}", dtype="fp32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert str(imp.ask(DOOR, "What color is the door?")) == "The door is green."
