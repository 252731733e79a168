"""The likeliest next words of an answer: against transformers' own classes, and against what the kit then writes."""

import numpy as np
import pytest
import torch
from oracle import make_oracle, write_checkpoint
from parity import SAME
from PIL import Image
from tokenizers import Tokenizer

import imp_kit
from imp_kit.prompts import SYSTEM

DOOR = imp_kit.sample("door.png")
DETAIL = "Describe the image in detail."
# layout of the tensors -> family; the whole prompt; what stands between it and an answer
FAMILIES = {
    "new": ("imp", f"{SYSTEM} USER: <image>\nWhat? ASSISTANT:", " "),
    "qwen": (
        "imp_qwen2",
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n",
        "",
    ),
    "phi3": ("imp_phi3", f"<|system|>\n{SYSTEM}<|end|>\n<|user|>\n<image>\nWhat?<|end|>\n<|assistant|>\n", ""),
}


@pytest.fixture(scope="module")
def imp():
    return imp_kit.load("imp-nano", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def view(imp):
    return imp.look(DOOR)


@pytest.mark.parametrize("seen", [True, False], ids=["image", "no image"])
@pytest.mark.parametrize("begun", ["", "The picture"])
@pytest.mark.parametrize("layout", FAMILIES)
def test_the_probabilities_are_those_of_transformers(tmp_path, layout, begun, seen):
    """Prompt, pixels and softmax are made without the kit; logits agree to 1e-4, so probabilities to that factor."""
    family, prompt, between = FAMILIES[layout]
    oracle = make_oracle(0, family)
    folder = write_checkpoint(oracle, tmp_path, layout)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    side = oracle.tower["image_size"]
    values = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    pixels = torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1).float()
    answer = encode(between + begun) if begun else []
    if seen:
        before, after = prompt.split("<image>")
        embeddings = oracle.embed(encode(before), pixels, encode(after) + answer)
    else:
        ids = torch.tensor([encode(prompt.replace("<image>\n", "")) + answer])
        embeddings = oracle.language.get_input_embeddings()(ids)
    logits = oracle.logits(embeddings)[0, -1]

    view = imp_kit.load(folder, device="cpu", dtype="fp32").look(Image.fromarray(values) if seen else None)
    for temperature in (1.0, 0.3):
        truth = torch.softmax(logits / temperature, -1)
        ids = truth.argsort(descending=True)[:8].tolist()
        ours = view.next_tokens("What?", begun=begun, temperature=temperature)
        torch.testing.assert_close(
            torch.tensor([p for _, p in ours]), truth[ids], rtol=3 * SAME / temperature, atol=1e-7
        )
        assert [text for text, _ in ours] == [tokenizer.decode([id], skip_special_tokens=False) for id in ids]


def test_step_by_step_they_give_the_greedy_answer(imp, view):
    """Each token is the first of its list, once what was written before it is given as the beginning."""
    answer = view.ask(DETAIL)
    ids = answer.token_ids
    assert len(ids) > 5
    for place in range(len(ids)):
        ((text, _),) = view.next_tokens(DETAIL, 1, imp.tokenizer.decode(ids[:place]))
        assert text == imp.tokenizer.decode([ids[place]])
    assert view.next_tokens(DETAIL, 1, answer.text)[0][0] == "</s>"


def test_all_of_them_make_up_one(imp, view):
    size = imp.model.config.decoder.vocab_size
    every = [probability for _, probability in view.next_tokens(DETAIL, size)]
    assert sum(every) == pytest.approx(1, abs=1e-5)
    assert every == sorted(every, reverse=True)
    assert view.next_tokens(DETAIL) == view.next_tokens(DETAIL, size)[:8]


def test_temperature_0_is_sure_and_a_high_one_is_not(imp, view):
    size = imp.model.config.decoder.vocab_size
    first, second = view.next_tokens(DETAIL, 2, temperature=0)
    assert (first[1], second[1]) == (1, 0)
    for _, probability in view.next_tokens(DETAIL, temperature=100):
        assert probability == pytest.approx(1 / size, rel=0.5)


def test_of_equal_scores_the_greedy_choice_is_first(tmp_path):
    """A head of one row, repeated, gives each token the same score."""
    oracle = make_oracle()
    head = oracle.language.lm_head
    head.weight.data[:] = head.weight.data[5].clone()
    torch.nn.init.zeros_(head.bias)
    imp = imp_kit.load(write_checkpoint(oracle, tmp_path, "new"), device="cpu", dtype="fp32")
    answer, listed = imp.ask(None, "What?", max_new_tokens=1), imp.look(None).next_tokens("What?")
    assert answer.token_ids == (0,)
    assert listed == [(imp.tokenizer.decode([id]), pytest.approx(1 / 304)) for id in range(8)]


def test_a_blank_before_the_beginning_does_not_count(view):
    plain = view.next_tokens(DETAIL, begun="There")
    assert plain != view.next_tokens(DETAIL)
    assert view.next_tokens(DETAIL, begun=" There") == plain
    assert view.next_tokens(DETAIL, begun=" \n") == view.next_tokens(DETAIL)


def test_they_leave_no_trace(imp, view):
    chat = imp.chat(DOOR)
    first = chat.say("Where is the door?")
    for begun in ("", "There is"):
        chat.view.next_tokens(DETAIL, begun=begun)
    second = chat.say("What color is it?")
    fresh = imp.chat(DOOR)
    assert (first.token_ids, second.token_ids) == tuple(
        fresh.say(question).token_ids for question in ("Where is the door?", "What color is it?")
    )


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"question": " "}, "PromptError", "empty"),
        ({"count": 0}, "SettingError", "^count is 0; give a whole number from 1 to 896.$"),
        ({"count": 897}, "SettingError", "^count is 897; "),
        ({"count": True}, "SettingError", "^count is True; "),
        ({"count": 2.0}, "SettingError", "^count is 2.0; "),
        ({"count": "8"}, "SettingError", "^count is '8'; "),
        ({"begun": None}, "SettingError", "^begun is None; give the text that the answer begins with.$"),
        ({"begun": ["There"]}, "SettingError", r"^begun is \['There'\]; "),
        ({"begun": "red " * 1000}, "PromptError", "and imp-nano reads 1024. Begin the answer with a shorter text.$"),
        ({"temperature": -1}, "SettingError", "^temperature is -1; "),
        ({"temperature": "hot"}, "SettingError", "^temperature is 'hot'; "),
    ],
)
def test_what_cannot_be_told(view, values, error, message):
    with pytest.raises(getattr(imp_kit, error), match=message):
        view.next_tokens(**{"question": DETAIL, **values})


def test_the_context_may_be_full(imp, view):
    """As in an answer: nothing needs to be read behind the last position."""
    limit = imp.model.config.decoder.max_positions
    length = view.prefix.length + len(imp.tokenizer.encode_pieces(imp.template.ask(DETAIL, first=True)))
    assert len(view.next_tokens(DETAIL, begun=" red" * (limit - length))) == 8
    with pytest.raises(imp_kit.PromptError, match=f"prompt {limit + 1} tokens long"):
        view.next_tokens(DETAIL, begun=" red" * (limit - length + 1))


def test_damaged_weights_are_an_error(tmp_path):
    oracle = make_oracle()
    torch.nn.init.constant_(oracle.language.lm_head.bias, float("nan"))
    imp = imp_kit.load(write_checkpoint(oracle, tmp_path, "new"), device="cpu", dtype="fp32")
    with pytest.raises(imp_kit.CheckpointError, match="scores are no numbers"):
        imp.look(None).next_tokens("What?")
