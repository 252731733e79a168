"""Tokens and growing text, on the bundled tokenizer and on every way to cut a text into tokens."""

import random

import pytest

from imp_kit.checkpoints.hub import NANO_FOLDER
from imp_kit.checkpoints.tokenizer import REPLACEMENT, TextTokenizer
from imp_kit.engine import StreamDecoder
from imp_kit.errors import CheckpointError


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer(NANO_FOLDER)


def test_round_trip_keeps_every_character(tokenizer):
    text = "Is it red . ok ?  Two  blanks,\nこの男は何をしていますか? 🚌"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_control_tokens_typed_by_a_user_are_letters(tokenizer):
    for token, id in tokenizer.control.items():
        ids = tokenizer.encode(f"a {token} b")
        assert id not in ids
        assert tokenizer.decode(ids) == f"a {token} b"


def test_control_tokens_are_left_out_of_a_text(tokenizer):
    stop = tokenizer.control["</s>"]
    assert tokenizer.decode([*tokenizer.encode("a cat"), stop]) == "a cat"


def grow(tokenizer, ids, stops=()):
    text = StreamDecoder(tokenizer, stops)
    pieces = []
    for id in ids:
        pieces.append(text.add(id))
        if text.stopped:
            break
    pieces.append(text.finish())
    return text, pieces


def byte_ids(tokenizer, text):
    """One token a byte: the hardest way for a character to arrive."""
    alphabet = {tokenizer.decode([id]): id for id in range(tokenizer.size) if len(tokenizer.decode([id])) == 1}
    ids = [alphabet.get(character) or tokenizer.encode(character) for character in text]
    return [id for entry in ids for id in (entry if isinstance(entry, list) else [entry])]


@pytest.mark.parametrize("seed", range(50))
def test_pieces_join_to_the_text_and_hold_no_half_character(tokenizer, seed):
    chance = random.Random(seed)
    text = "".join(
        chance.choice(["a", "red", " ", "  ", "\n", "é", "男", "🚌", "🇯🇵", "</", "STOP", "ST"]) for _ in range(30)
    )
    whole = text.strip()
    grown, pieces = grow(tokenizer, byte_ids(tokenizer, text))
    assert "".join(pieces) == grown.text == whole
    assert all(REPLACEMENT not in piece for piece in pieces)


@pytest.mark.parametrize("seed", range(50))
def test_a_stop_string_never_leaks(tokenizer, seed):
    chance = random.Random(seed)
    text = "".join(chance.choice(["S", "T", "O", "P", "x", " ", "男"]) for _ in range(60)) + "STOP after"
    shown = ""
    grown = StreamDecoder(tokenizer, ("STOP",))
    for id in byte_ids(tokenizer, text):
        shown += grown.add(id)
        assert "STOP" not in shown
        assert text.strip().startswith(shown)
        if grown.stopped:
            break
    shown += grown.finish()
    assert grown.stopped
    assert shown == grown.text == text.lstrip().split("STOP")[0].rstrip()
    assert tokenizer.decode(grown.ids).strip() == shown


def test_the_first_of_two_stop_strings_counts(tokenizer):
    grown, _ = grow(tokenizer, tokenizer.encode(" one two three"), ("three", "two"))
    assert grown.text == "one"
    (bus,) = tokenizer.encode(" bus")  # with one token both are there
    assert grow(tokenizer, [bus], ("s", "u"))[0].text == "b"


def test_bytes_that_are_no_character_show_at_the_end(tokenizer):
    ids = tokenizer.encode("男")
    assert len(ids) > 1
    grown, pieces = grow(tokenizer, ids[:-1])
    assert pieces[:-1] == [""] * len(ids[:-1])
    assert set(grown.text) == {REPLACEMENT}


def test_a_folder_without_tokenizer(tmp_path):
    with pytest.raises(CheckpointError, match="no tokenizer"):
        TextTokenizer(tmp_path)


def test_a_damaged_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "added_tokens": []}')
    with pytest.raises(CheckpointError, match="is no tokenizer: it lacks its model"):
        TextTokenizer(tmp_path)


def test_the_older_form_is_converted(tmp_path):
    """vocab.json + merges.txt, as in Phi-2's repository, give the same ids through transformers."""
    import json

    data = json.loads((NANO_FOLDER / "tokenizer.json").read_text("utf-8"))
    control = {token["content"]: token["id"] for token in data["added_tokens"]}
    vocab = {token: id for token, id in data["model"]["vocab"].items() if token not in control}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in data["model"]["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    settings = {"tokenizer_class": "CodeGenTokenizer", "unk_token": None, "bos_token": None, "eos_token": None}
    settings["added_tokens_decoder"] = {
        str(id): {
            "content": token,
            "special": True,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "single_word": False,
        }
        for token, id in control.items()
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    old, new = TextTokenizer(tmp_path), TextTokenizer(NANO_FOLDER)
    text = "What are the colors of the bus? 男 </s>"
    assert old.encode(text) == new.encode(text)
    assert {token: old.control[token] for token in control} == control
