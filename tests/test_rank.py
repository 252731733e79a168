"""Given answers by their likelihood: against transformers' own classes, and what cannot be ranked."""

import math

import numpy as np
import pytest
import torch
from oracle import CONTROL, make_oracle, write_checkpoint
from parity import KEY_MAPS, SAME, oracle, write
from PIL import Image
from tokenizers import Tokenizer

import imp_kit
from imp_kit import engine
from imp_kit.prompts import CLASSIFY, SYSTEM

BUS, DOOR = imp_kit.sample("bus.png"), imp_kit.sample("door.png")
# family -> the whole prompt, what stands between it and an answer, and the tokens that end one
FAMILIES = {
    "imp": (f"{SYSTEM} USER: <image>\nWhat? ASSISTANT:", " ", ("</s>", "<|endoftext|>")),
    "imp_qwen2": (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n",
        "",
        ("<|im_end|>", "<|endoftext|>"),
    ),
    "imp_phi3": (
        f"<|system|>\n{SYSTEM}<|end|>\n<|user|>\n<image>\nWhat?<|end|>\n<|assistant|>\n",
        "",
        ("<|end|>", "<|endoftext|>"),
    ),
}
ANSWERS = ["a picture", "the", "a curious user asks", "no </s>", "ümlaut"]


@pytest.fixture(scope="module")
def imp():
    return imp_kit.load("imp-nano", device="cpu", dtype="fp32")


def images(side, count):
    values = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return values, [Image.fromarray(each) for each in values]


def truth_of(truth, tokenizer, values, answer):
    """The log-likelihood of an answer and its end, with prompt, pixels and sum made without the kit."""
    prompt, between, ends = FAMILIES[truth.family]

    def encode(text):
        tokenizer.encode_special_tokens = False
        return tokenizer.encode(text, add_special_tokens=False).ids

    before, after = prompt.split("<image>")
    before, after = encode(before), encode(after)
    tokenizer.encode_special_tokens = True  # control tokens in an answer are letters
    ids = tokenizer.encode(between + answer, add_special_tokens=False).ids
    if values is None:
        tokenizer.encode_special_tokens = False
        begin = encode(prompt.replace("<image>\n", ""))
        embeddings = truth.language.get_input_embeddings()(torch.tensor([begin + ids]))
    else:
        pixels = torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1).float()
        embeddings = truth.embed(before, pixels, after + ids)
    rows = truth.logits(embeddings)[0, -len(ids) - 1 :].double().log_softmax(-1)
    stops = [CONTROL[truth.family][end] for end in ends]
    return sum(rows[place, id].item() for place, id in enumerate(ids)) + rows[-1, stops].logsumexp(-1).item(), len(ids)


@pytest.mark.parametrize("seen", [True, False], ids=["image", "no image"])
@pytest.mark.parametrize("name", KEY_MAPS)
def test_likelihoods_are_those_of_transformers(tmp_path, monkeypatch, name, seen):
    """Of all answers together, of one alone and of parts; sums agree to 1e-4, as the logits do."""
    truth, folder = oracle(KEY_MAPS[name]), write(name, tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    values, (image,) = images(truth.tower["image_size"], 1)
    imp = imp_kit.load(folder, device="cpu", dtype="fp32")
    shown = image if seen else None
    expected = {answer: truth_of(truth, tokenizer, values[0] if seen else None, answer) for answer in ANSWERS}

    def compare(ranked):
        for answer, _, log_likelihood, tokens in ranked:
            assert log_likelihood == pytest.approx(expected[answer][0], abs=SAME * expected[answer][1])
            assert tokens == expected[answer][1] + 1

    ranked = imp.rank(shown, "What?", ANSWERS)
    assert [each.answer for each in ranked] == sorted(ANSWERS, key=lambda answer: -expected[answer][0])
    compare(ranked)
    compare(imp.rank(shown, "What?", ANSWERS[2:3]))
    monkeypatch.setattr(engine, "RANKED_TOKENS", 7)
    compare(imp.rank(shown, "What?", ANSWERS))


def test_probabilities_are_the_softmax_over_the_answers(imp):
    answers = ["It is a bus.", "It is a cat.", "The picture shows a green cat and two small black houses."]
    ranked = imp.rank(BUS, "What is this?", answers)
    weights = [math.exp(each.log_likelihood) for each in ranked]
    assert [each.probability for each in ranked] == pytest.approx([weight / sum(weights) for weight in weights])
    assert sum(each.probability for each in ranked) == pytest.approx(1)
    fair = imp.rank(BUS, "What is this?", answers, per_token=True)
    weights = [math.exp(each.log_likelihood / each.tokens) for each in fair]
    assert [each.probability for each in fair] == pytest.approx([weight / sum(weights) for weight in weights])
    assert {each[::2] for each in fair} == {each[::2] for each in ranked}
    long = answers[-1]  # a false one, which loses less where each token counts the same
    assert {e.answer: e.probability for e in fair}[long] > {e.answer: e.probability for e in ranked}[long]


def test_the_greedy_answer_is_the_likeliest(imp):
    said = imp.ask(DOOR, "What is this?").text
    best, _ = imp.rank(DOOR, "What is this?", ["The picture shows a house.", said])
    assert best.answer == said


def test_the_likelihood_is_that_of_the_next_tokens(imp):
    """Token by token, each by `next_tokens`, on the bundled checkpoint."""
    view, begun, total = imp.look(DOOR), "", 0.0
    for piece in [" It", " is", " a", " person", ".", "</s>"]:
        total += math.log(dict(view.next_tokens("What is this?", 896, begun))[piece])
        begun += piece
    ((_, probability, log_likelihood, tokens),) = imp.rank(DOOR, "What is this?", ["It is a person."])
    assert (probability, tokens) == (1, 6)
    assert log_likelihood == pytest.approx(total, abs=1e-3)  # without the rare end by <|endoftext|>


def test_it_leaves_no_trace(imp):
    chat = imp.chat(DOOR)
    first = chat.say("Where is the door?")
    imp.rank(DOOR, "What is this?", ["It is a person.", "It is a bus."])
    second = chat.say("What color is it?")
    fresh = imp.chat(DOOR)
    assert [first.token_ids, second.token_ids] == [
        fresh.say(question).token_ids for question in ("Where is the door?", "What color is it?")
    ]


def test_many_images_are_ranked_as_each_alone(imp, tmp_path):
    labels, shown = ["bus", "person", "cat"], [BUS, None, DOOR, Image.open(BUS)]
    for settings in ({}, {"answer": "It is a {}.", "question": "What is this?", "per_token": True}):
        template = settings.get("answer", "{}")
        single = [
            imp.rank(
                image,
                settings.get("question", CLASSIFY),
                [template.replace("{}", label) for label in labels],
                per_token=settings.get("per_token", False),
            )
            for image in shown
        ]
        for size in (1, 3, 8):
            ranked = imp.classify(shown, labels, batch_size=size, progress=False, **settings)
            assert [[template.replace("{}", each.answer) for each in row] for row in ranked] == [
                [each.answer for each in row] for row in single
            ]
            for row, alone in zip(ranked, single, strict=True):
                assert [each.log_likelihood for each in row] == pytest.approx(
                    [each.log_likelihood for each in alone], abs=SAME
                )
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.warns(UserWarning, match="^1 of 2 have no answer. The first: "):
        error, row = imp.classify([broken, DOOR], labels, progress=False)
    assert isinstance(error, imp_kit.ImageError)
    assert row[0].answer == "person"
    assert imp.classify([], labels) == []


def test_more_tokens_than_are_read_at_once(imp):
    colors = ["red", "green", "blue", "yellow", "black", "white", "orange", "purple", "brown", "gray"]
    answers = [f"The picture shows a {one} and {other} bus." for one in colors for other in colors]
    ranked = imp.rank(BUS, "Describe the image.", answers)
    assert sum(each.tokens for each in ranked) > 5 * engine.RANKED_TOKENS
    few = imp.rank(BUS, "Describe the image.", answers[40:43])
    every = {each.answer: each.log_likelihood for each in ranked}
    assert [each.log_likelihood for each in few] == pytest.approx([every[each.answer] for each in few], abs=SAME)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "^There are no answers; give at least one.$"),
        (["a bus", "\ud800"], "^The answer .* holds bytes that are no text"),
        (["a bus", " "], "^The answer ' ' is empty; "),
        (["a bus", "a cat", " a bus "], "^The answer 'a bus' is given twice; give each once.$"),
        (["a bus", 3], "^Each answer is text, not int: 3.$"),
        ("a bus", "^The answers are 'a bus'; give a list of texts.$"),
        (None, "^The answers are None; give a list of texts.$"),
        (
            ["red " * 1000],
            "^With the answer '(red ){10}' the prompt is .* and imp-nano reads 1024. Give a shorter answer.$",
        ),
    ],
)
def test_answers_that_cannot_be_ranked(imp, answers, message):
    with pytest.raises(imp_kit.PromptError, match=message):
        imp.rank(BUS, "What is this?", answers)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"labels": []}, "PromptError", "^There are no labels; give at least one.$"),
        ({"labels": ["bus", "bus"]}, "PromptError", "^The label 'bus' is given twice; "),
        ({"labels": ["bus", ""]}, "PromptError", "^The label '' is empty; "),
        ({"labels": ["red " * 1000]}, "PromptError", "Give a shorter answer.$"),
        ({"images": BUS}, "ImageError", r"^classify takes a list of images; put .* into one: \[image\].$"),
        *(({"images": wrong}, "ImageError", "^classify takes a list of images; put ") for wrong in (None, 3, b"PNG")),
        ({"images": np.zeros((8, 8, 3), "uint8")}, "ImageError", "^classify takes a list of images; put "),
        ({"answer": "It is a bus."}, "PromptError", "^answer is 'It is a bus.'; give a text with one {} where "),
        ({"answer": "{} or {}"}, "PromptError", "^answer is "),
        ({"answer": None}, "PromptError", "^answer is None; "),
        ({"question": ""}, "PromptError", "empty"),
        ({"batch_size": 0}, "SettingError", "^batch_size is 0; "),
    ],
)
def test_what_cannot_be_classified(imp, values, error, message):
    values = {"images": [BUS], "labels": ["bus", "cat"], "progress": False, **values}
    with pytest.raises(getattr(imp_kit, error), match=message):
        imp.classify(**values)


def test_swapped_arguments_and_an_empty_question_are_named(imp):
    with pytest.raises(imp_kit.PromptError, match="^The picture comes first: "):
        imp.rank("What is this?", str(BUS), ["a bus"])
    with pytest.raises(imp_kit.PromptError, match="empty"):
        imp.rank(BUS, " ", ["a bus"])


def test_damaged_weights_are_an_error(tmp_path):
    damaged = make_oracle()
    torch.nn.init.constant_(damaged.language.lm_head.bias, float("nan"))
    imp = imp_kit.load(write_checkpoint(damaged, tmp_path, "new"), device="cpu", dtype="fp32")
    with pytest.raises(imp_kit.CheckpointError, match="scores are no numbers"):
        imp.rank(None, "What?", ["a picture"])
    with pytest.warns(UserWarning, match="have no answer"):
        (error,) = imp.classify([None], ["a picture"], progress=False)
    assert isinstance(error, imp_kit.CheckpointError)
