"""What passes between the host and the device, counted on torch's meta device, which has no values to read.

On a GPU each read of a value waits until all work before it is done, and so does each list that is sent there. On
"meta" such a read is an error unless it is counted here, so nothing can be read unseen.
"""

from math import ceil

import pytest
import torch
from oracle import write_checkpoint
from torch import Tensor
from torch.overrides import TorchFunctionMode

from imp_kit.checkpoints.load import load_weights
from imp_kit.checkpoints.tokenizer import TextTokenizer
from imp_kit.engine import Conversation, Engine
from imp_kit.images import open_image
from imp_kit.model import generate as generation
from imp_kit.model.cuda_graph import StepGraph
from imp_kit.model.decoder import Padding
from imp_kit.model.sampling import Sampler, Sampling

BUS = "images/bus.png"
BLOCK = 3
META = torch.device("meta")
# Of the functions that work on "meta", those that read values on a GPU.
WAITS_INSIDE = ("multinomial",)


class Transfers(TorchFunctionMode):
    """Notes each read of the device's values (`read`, by name) and each tensor that is sent there (`sent`, shapes)."""

    def __init__(self):
        super().__init__()
        self.read: list[str] = []
        self.sent: list[tuple[int, ...]] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        on_device = bool(args) and isinstance(args[0], Tensor) and args[0].device == META
        if on_device and name in ("tolist", "__bool__"):
            self.read.append(name)
            return torch.full(args[0].shape, 5).tolist() if name == "tolist" else True
        if name in WAITS_INSIDE:
            self.read.append(name)
        if on_device and name in ("__getitem__", "__setitem__") and isinstance(args[1], list):
            self.sent.append((len(args[1]),))
        result = function(*args, **(kwargs or {}))
        from_host = name in ("tensor", "as_tensor") or (
            isinstance(args[0], Tensor) and not on_device if args else False
        )
        if isinstance(result, Tensor) and result.device == META and from_host:
            self.sent.append(tuple(result.shape))
        return result


@pytest.fixture(scope="module")
def tiny(oracle, tmp_path_factory):
    """A small network on "meta", and its tokenizer."""
    folder = write_checkpoint(oracle, tmp_path_factory.mktemp("transfers") / "tiny")
    model, _ = load_weights(folder, torch.device("cpu"), torch.float32)
    return model.to(META), TextTokenizer(folder)


@pytest.fixture
def engine(tiny, monkeypatch):
    monkeypatch.setattr(generation, "BLOCKS", {"meta": BLOCK})
    return Engine(*tiny, name="tiny", revision=None, dtype="fp32")


def answer(engine, turns, sampling) -> Transfers:
    with Transfers() as transfers:
        for _ in engine.stream(turns, sampling, range(len(turns))):
            pass
    return transfers


@pytest.mark.parametrize("read", [Tensor.item, Tensor.cpu, Tensor.nonzero, Tensor.numpy, int, float])
def test_a_read_that_is_not_counted_is_an_error(read):
    """The counting would else be blind to it."""
    with pytest.raises((RuntimeError, NotImplementedError, TypeError)), Transfers():
        read(torch.ones((), device=META))


def test_what_is_read_and_sent_is_counted():
    with Transfers() as transfers:
        x = torch.tensor([1, 2, 3], device=META)
        assert bool(x.sum() > 0)
        assert x.tolist() == [5, 5, 5]
        x[[0, 2]] = x[[1, 2]]
        torch.zeros(2, 5).to(META)
        torch.multinomial(torch.ones(4, device=META), 1)
    assert transfers.read == ["__bool__", "tolist", "multinomial"]
    assert transfers.sent == [(3,), (2,), (2,), (2, 5)]


@pytest.mark.parametrize("tokens", [1, 2, 1 + 2 * BLOCK, 2 + 2 * BLOCK])
@torch.inference_mode()
def test_an_answer_is_read_once_a_block(engine, tokens):
    """The first token at once, then each block; the scores of the first are checked. Nothing is sent for a token."""
    turn = Conversation(engine, None).ask("a?")
    transfers = answer(engine, [turn], Sampling(tokens))
    assert turn.answer.tokens == tokens
    assert transfers.read == ["__bool__", "tolist"] + ["tolist"] * ceil((tokens - 1) / BLOCK)
    assert transfers.sent == [(turn.prompt_length,), (1,)]


@torch.inference_mode()
def test_a_padded_batch_is_read_once_a_block_too(engine):
    """Rows of other lengths and other settings; the places of their rows are sent once."""
    questions = ("a?", "a b c?", "b?")
    turns = [Conversation(engine, None).ask(question) for question in questions]
    settings = [Sampling(7), Sampling(7, top_p=0.5), Sampling(7)]
    transfers = answer(engine, turns, settings)
    assert transfers.read == ["__bool__"] + ["tolist"] * (1 + 6 // BLOCK)
    assert sorted(map(len, transfers.sent)) == [1] * (3 + 1 + 2)  # the questions, their padding, two kinds of rows


@torch.inference_mode()
def test_an_image_is_sent_once(engine):
    side = engine.model.config.vision.image_size
    image = open_image(BUS)
    with Transfers() as transfers:
        prefix = engine.read_prefix(image)
    assert [shape for shape in transfers.sent if len(shape) > 1] == [(1, 3, side, side)]
    assert transfers.read == []
    conversation = Conversation(engine, image, prefix)
    for question in ("a?", "b?"):
        transfers = answer(engine, [conversation.ask(question)], Sampling(4))
        assert max(map(len, transfers.sent)) == 1
    assert engine.read_prefix(image) is prefix


@pytest.mark.parametrize("pads", [None, [0, 3]], ids=["alone", "padded"])
@torch.inference_mode()
def test_a_step_to_capture_has_neither(tiny, pads):
    """A graph cannot be captured over them, and plain steps go on instead, which are slower."""
    model, _ = tiny
    rows = len(pads or [0])
    step = StepGraph(
        model, model.new_cache(30, rows).buffer.tensor, Padding(torch.tensor(pads, device=META), 4) if pads else None
    )
    step.prepare(torch.zeros(rows, dtype=torch.long, device=META), 10)
    with Transfers() as transfers:
        step.run()
    assert (transfers.read, transfers.sent) == ([], [])


def test_a_draw_has_neither():
    """torch.multinomial reads two values of each row on a GPU."""
    logits = torch.zeros(3, 50, device=META)
    with Transfers() as transfers:
        Sampling(temperature=0.7, top_p=0.9).pick(logits, [None] * 3)
    assert (transfers.read, transfers.sent) == ([], [])


def test_a_draw_is_that_of_multinomial():
    """So that an answer with a seed stays what it was."""
    logits = torch.randn(200, 1000, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(temperature=1.5, seed=3)
    generators = [torch.Generator().manual_seed(number) for number in range(200)]
    probabilities, order = sampling.probabilities(logits).sort(dim=-1, descending=True)
    expected = [
        order[row, torch.multinomial(probabilities[row], 1, generator=generator)].item()
        for row, generator in enumerate(generators)
    ]
    drawn = sampling.pick(logits, [torch.Generator().manual_seed(number) for number in range(200)])
    assert drawn.tolist() == expected
    assert len(set(expected)) > 50


@torch.inference_mode()
def test_rows_of_other_settings_keep_their_own_tokens():
    logits = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    settings = [Sampling(top_p=top_p) for top_p in (1.0, 0.5, 0.9, 0.5)]
    sampler = Sampler.of(settings, torch.device("cpu"), range(4))
    assert sampler.pick(logits).tolist() == logits.argmax(dim=-1).tolist()
    assert sampler.select_rows([3, 0]).pick(logits[[3, 0]]).tolist() == logits[[3, 0]].argmax(dim=-1).tolist()
