"""ask_many: the same answers as ask, in order, and one bad item costs only itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from quick import quick

import imp_kit
from imp_kit import engine
from imp_kit.engine import Conversation
from imp_kit.model import generate as generation
from imp_kit.model.sampling import Sampling
from imp_kit.nano.training.evaluation import exam
from imp_kit.nano.training.lessons import SKILLS

BUS, DOOR = "images/bus.png", "images/door.png"


@pytest.fixture(scope="module")
def imp():
    return imp_kit.load("imp-nano", device="cpu", dtype="fp32")


def mixed(count):
    """Drawings, pages of text, noise and photographs with questions of every skill, the sample pictures, no picture."""
    each = -(-count // len(SKILLS))
    pairs = [(case.image, case.turns[0].question) for skill in SKILLS for case in exam(skill, "unseen", 11, each)]
    pairs += [(path, question) for path in (BUS, DOOR, None) for question in ("Describe the image.", "Where is it?")]
    order = np.random.default_rng(0).permutation(len(pairs))[-count:]
    return [pairs[index] for index in order]


@pytest.mark.parametrize("batch_size", quick(1, [8, 33]))
@pytest.mark.parametrize("count", quick(1, [36, 100]))
def test_many_answers_equal_those_of_ask(imp, count, batch_size):
    pairs = mixed(count)
    together = imp.ask_many(pairs, batch_size=batch_size, max_new_tokens=40)
    assert len(together) == len(pairs) == count
    for (picture, question), answer in zip(pairs, together, strict=True):
        alone = imp.ask(picture, question, max_new_tokens=40)
        assert answer.token_ids == alone.token_ids
        same = ("text", "prompt", "checkpoint", "revision", "device", "dtype", "finish", "tokens")
        assert [getattr(answer, name) for name in same] == [getattr(alone, name) for name in same]


def test_one_bad_item_costs_only_itself(imp, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG broken")
    pairs = [
        (BUS, "Describe the image."),
        (tmp_path / "nowhere.png", "Describe the image."),
        (BUS, " "),
        (DOOR, "Describe the image."),
        (broken, "Describe the image."),
        (DOOR, "word " * 3000),
        "no pair",
        (BUS, "What color is the bus?"),
    ]
    with pytest.warns(UserWarning, match=r"5 of 8 have no answer\. The first: .*nowhere.png"):
        answers = imp.ask_many(pairs, batch_size=3)
    kinds = [type(answer).__name__ for answer in answers]
    assert kinds == [
        "Answer",
        "ImageError",
        "PromptError",
        "Answer",
        "ImageError",
        "PromptLengthError",
        "PromptError",
        "Answer",
    ]
    for place in (0, 3, 7):
        assert str(answers[place]) == str(imp.ask(*pairs[place]))


def test_a_stop_text_ends_its_row_only(imp):
    pairs = [(BUS, "Describe the image."), (DOOR, "What color is the door?")]
    whole = [str(answer) for answer in imp.ask_many(pairs)]
    stop = whole[0].split()[2]
    assert stop not in whole[1]
    first, second = imp.ask_many(pairs, stop=stop)
    assert str(first) == whole[0].split(stop)[0].rstrip()
    assert (first.finish, str(second)) == ("stop", whole[1])


def test_drawn_answers_do_not_depend_on_the_batch(imp):
    """Each is drawn by the seed and its place in the list: alone, beside others, and where others end before it."""
    settings = {"temperature": 2.0, "seed": 5, "max_new_tokens": 25, "progress": False}
    pairs = [(BUS, "Describe the image."), (DOOR, "What color is the door?"), (BUS, "Is there a bus?")] * 3
    alone = imp.ask_many(pairs, batch_size=1, **settings)
    assert len({answer.token_ids for answer in alone[::3]}) == 3  # of one question
    assert len({answer.tokens for answer in alone}) > 2
    assert str(imp.ask(*pairs[0], temperature=2.0, seed=5, max_new_tokens=25)) == str(alone[0])
    for batch_size in (2, 4, 9):
        together = imp.ask_many(pairs, batch_size=batch_size, **settings)
        assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]


def test_the_limit_of_tokens_is_told(imp):
    (answer,) = imp.ask_many([(BUS, "Describe the image.")], max_new_tokens=2)
    assert (answer.finish, answer.tokens) == ("length", 2)


def test_conversations_in_a_batch_equal_chats(imp):
    cases = list(exam("second_turn", "trained", 5, 9))
    conversations = [[turn.question for turn in case.turns] for case in cases]
    talks = [Conversation(imp.engine, case.image) for case in cases]
    for number in range(len(conversations[0])):
        turns = [talk.ask(questions[number]) for talk, questions in zip(talks, conversations, strict=True)]
        imp.engine.answer(turns, Sampling(60), range(len(turns)))
    for case, questions, talk in zip(cases, conversations, talks, strict=True):
        answer = talk.answers[-1]
        chat = imp.chat(case.image)
        last = [chat.say(question, max_new_tokens=60) for question in questions][-1]
        assert (answer.token_ids, answer.prompt) == (last.token_ids, last.prompt)


@pytest.fixture(scope="module")
def longest(imp):
    """A blank picture, the longest question that fits beside it, and the answer of `ask`."""
    blank = Image.new("RGB", (64, 64), "white")
    for count in range(imp.model.config.decoder.max_positions, 0, -1):
        question = "x " * count + "what?"
        try:
            return blank, question, imp.ask(blank, question, max_new_tokens=30)
        except imp_kit.PromptError:
            continue
    raise AssertionError("no question fits")


@pytest.mark.parametrize("block", [1, 8], ids=["looked at singly", "in blocks, as on a GPU"])
@pytest.mark.parametrize("shorts", [0, 1, 2])
@pytest.mark.slow
def test_an_answer_at_the_end_of_the_context_equals_that_of_ask(imp, longest, shorts, block, monkeypatch):
    """One with room for few tokens ends where it would alone, also where it has to wait for short rows to end."""
    blank, question, alone = longest
    expected = str(imp.ask(BUS, "Describe the image."))
    monkeypatch.setattr(generation, "BLOCKS", {"cpu": block})
    pairs = [(blank, question), *[(BUS, "Describe the image.")] * shorts]
    beside, *others = imp.ask_many(pairs, max_new_tokens=30)
    assert (beside.token_ids, beside.finish, beside.tokens) == (alone.token_ids, alone.finish, alone.tokens)
    assert [str(answer) for answer in others] == [expected] * shorts


def test_no_position_behind_the_last_is_made_up(imp):
    """A rotation that the table lacks would be another's, without a word."""
    model = imp.model
    limit = model.config.decoder.max_positions
    cache = model.new_cache(limit + 8)
    cache.length = limit - 1
    with pytest.raises(RuntimeError, match="exceeds"), torch.inference_mode():
        model.decoder(torch.zeros(1, 5, model.config.decoder.hidden_size), cache)


def test_nothing_to_ask(imp):
    assert imp.ask_many([]) == []


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "8", True, None])
def test_a_batch_size_without_sense(imp, batch_size):
    with pytest.raises(imp_kit.SettingError, match="batch_size"):
        imp.ask_many([(BUS, "Describe the image.")], batch_size=batch_size)


def test_settings_are_checked_before_any_work(imp):
    with pytest.raises(imp_kit.SettingError, match="temperature"):
        imp.ask_many([("nowhere.png", "x")], temperature=-1)


def test_a_picture_too_long_to_be_padded_costs_only_itself(imp, monkeypatch):
    monkeypatch.setattr(imp.model, "config", replace(imp.model.config, pad=True))
    pairs = [(BUS, "What is this?"), (Image.new("RGB", (20_000, 1)), "What is this?"), (DOOR, "What is this?")]
    with pytest.warns(UserWarning, match="1 of 3 have no answer"):
        first, long, last = imp.ask_many(pairs, progress=False)
    assert "20000 x 1 picture padded to a square" in str(long)
    assert (str(first), str(last)) == tuple(str(imp.ask(*pairs[place])) for place in (0, 2))


def test_no_batch_plans_beyond_the_context(imp, monkeypatch):
    """Two questions of unlike length: the longer one may reach the limit before the shorter one does."""
    ends = []
    new = imp.model.new_cache
    monkeypatch.setattr(imp.model, "new_cache", lambda end, batch=1: ends.append(end) or new(end, batch))
    pairs = [(BUS, "What is this?"), (BUS, "What are the colors of the bus in the image?")]
    answers = imp.ask_many(pairs, progress=False, max_new_tokens=200_000)
    assert [str(answer) for answer in answers] == [str(imp.ask(*pair)) for pair in pairs]
    assert max(ends) < imp.model.config.decoder.max_positions + 50


def test_errors_keep_no_memory_alive(imp, monkeypatch, tmp_path):
    """An error's traceback holds the frames that it came through, and they hold the batch."""

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(engine, "generate", full)
    with pytest.warns(UserWarning, match="2 of 2"):
        errors = imp.ask_many([(BUS, "What is this?"), (tmp_path / "absent.png", "What?")], progress=False)
    for error in errors:
        assert isinstance(error, imp_kit.ImpKitError)
        assert (error.__traceback__, error.__context__, error.__cause__) == (None, None, None)


def test_a_batch_size_of_numpys_is_pythons_own(imp):
    pairs = [(BUS, "What is this?"), (DOOR, "What is this?")]
    alike = [[str(answer) for answer in imp.ask_many(pairs, batch_size=size)] for size in (np.int64(2), 2)]
    assert alike[0] == alike[1]
