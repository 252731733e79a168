"""What answers are worth: by examples counted by hand, and against jiwer on random strings."""

import random
import string

import jiwer
import pytest

from imp_kit.experiments import scores
from imp_kit.experiments.stats import bootstrap


def test_normalising_keeps_letters_and_digits_only():
    assert scores.normalise(' "a1-b2." ') == "A1B2"
    assert scores.normalise("ＡＢ１ﬁ") == "AB1FI"  # full width and a ligature
    assert scores.normalise("...") == ""


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ('The text reads "K7 XP".', "K7 XP"),
        ('It says "K7" and "No p today".', "K7"),
        ("It says “K7”.", "K7"),
        ("「さくら」と書いてあります。", "さくら"),
        ("The code is K7XPQ4AA, I think.", "K7XPQ4AA"),
        ("K7", "K7"),
        ("no", "no"),
        ("", ""),
    ],
)
def test_extraction(reply, read):
    assert scores.extract(reply) == read


def test_exact_is_of_the_extraction_and_strict_of_the_whole_reply():
    assert scores.is_exact('The text reads "k7xp".', "K7XP")
    assert not scores.is_exact('The text reads "k7xp".', "K7XP", strict=True)
    assert scores.is_exact("k7 xp.", "K7XP", strict=True)
    assert not scores.is_exact('The text reads "k7x".', "K7XP")
    assert scores.contains("It is K7XPQ", "7XP")
    assert not scores.contains("anything", "")


def cer(pairs):
    """As the probe has it: all edits over all true characters, so that long truths weigh more; it may exceed 1."""
    counts = [(scores.edits(read, truth), len(scores.normalise(truth))) for read, truth in pairs]
    return bootstrap(counts, range(len(pairs))).value


def test_character_errors_equal_jiwers():
    rng = random.Random(0)
    letters = string.ascii_uppercase[:6] + string.digits[:4]  # few, so that much is alike
    pairs = [["".join(rng.choices(letters, k=rng.randint(1, 12))) for _ in range(2)] for _ in range(300)]
    ours = cer(pairs)
    assert ours == pytest.approx(jiwer.cer([truth for _, truth in pairs], [read for read, _ in pairs]), abs=1e-12)
    for read, truth in pairs:
        assert scores.edits(read, truth) / len(truth) == pytest.approx(jiwer.cer(truth, read), abs=1e-12)
        counted = scores.confusion([(read, truth)])
        theirs = jiwer.process_characters(truth, read)
        assert sum(n for (t, r), n in counted.items() if t and r and t != r) == theirs.substitutions
        assert sum(n for (t, r), n in counted.items() if t and not r) == theirs.deletions
        assert sum(n for (t, r), n in counted.items() if r and not t) == theirs.insertions
        assert sum(n for (t, r), n in counted.items() if t == r) == theirs.hits


def test_character_errors_weigh_long_truths_more_and_may_exceed_one():
    assert cer([("A", "B"), ("CDEFGHIJK", "CDEFGHIJK")]) == 0.1
    assert cer([("AAAA", "B")]) == 4.0
    assert scores.edit_share("AAAA", "B") == 1.0
    assert scores.edit_share("", "") == 0.0


def test_confusion_says_what_became_what():
    assert scores.confusion([("K1X", "K7X"), ("KX", "K7X"), ("K77X", "K7X")]) == {
        ("K", "K"): 3, ("X", "X"): 3, ("7", "7"): 1, ("7", "1"): 1, ("7", ""): 1, ("", "7"): 1,
    }  # fmt: skip


@pytest.mark.parametrize(("one", "other", "share"), [("AB", "ABCD", 0.5), ("ABC", "", 1), ("", "", 0), ("ab", "AB", 0)])
def test_the_share_of_edits_is_over_the_longer_text(one, other, share):
    assert scores.edit_share(one, other) == scores.edit_share(other, one) == share


def test_positions():
    assert scores.position_accuracy("K7X", "K7X") == 1.0
    assert scores.position_accuracy("7X", "K7X") == 0.0
    assert scores.position_accuracy("K1XQ", "K7X") == pytest.approx(2 / 3)


CAPTION = "The picture contains 8 characters."


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ('The text reads "K7XPQ4AA".', "code"),
        (f'The text reads "K7XPQ4AA" and "{CAPTION}".', "both"),
        (f'The text in the image reads "{CAPTION}"', "caption only"),
        ('It reads "The picture contains 6 characters."', "caption only"),  # one character of 29 is another
        ("There is no text.", "neither"),
        ("The", "neither"),
        ("", "neither"),
    ],
)
def test_outcomes(reply, message):
    assert scores.outcome(reply, "K7XPQ4AA", CAPTION) == message


def test_invented_text():
    assert scores.is_invented('The text reads "HELLO".')
    assert not scores.is_invented("There is no text in the picture.")
    assert not scores.is_invented("I cannot read it.")
    assert not scores.is_invented("There isn’t any text in the image.")
    assert not scores.is_invented("The image does not contain a word.")
    assert not scores.is_invented("A picture without text.")
    assert not scores.is_invented("The image shows a plain white background.")
    assert not scores.is_invented("I only know drawings.")
    assert scores.is_invented('The text reads "DO NOT ENTER".')
    assert scores.is_invented("The text is HELLO.")
    assert scores.is_invented("K7XP")
    assert not scores.is_invented("...")


def test_the_chance_level_of_a_known_case():
    """One-digit truths: a reply with every digit always has them, one with two of ten has another one's in 1 of 9."""
    digits = list(string.digits)
    assert scores.chance_level(["0123456789"] * 10, digits) == 1.0
    assert scores.chance_level([f"{d}" for d in digits], digits) == 0.0
    replies = [f"{d}{(int(d) + 1) % 10}" for d in digits]
    assert scores.chance_level(replies, digits) == pytest.approx(1 / 9)
    assert scores.chance_level(["one"], ["1"]) == 0.0


@pytest.mark.parametrize(
    ("text", "japanese"),
    [
        ("バスは赤いです。", True),
        ("The bus is red.", False),
        ("赤", False),  # Chinese would look the same
        ("公共汽车是红色的。", False),
        ("It is 赤 (red)", False),
        ("赤いbus", False),
        ("コーヒー", True),
        ("", False),
        ("123", False),
    ],
)
def test_japanese_is_told_from_others(text, japanese):
    assert scores.is_japanese(text) is japanese


def test_a_bare_answer_that_was_accepted_beforehand_is_japanese():
    assert scores.is_japanese("赤", ["赤", "青"])
    assert scores.is_japanese("赤。", ["赤"])
    assert not scores.is_japanese("紅", ["赤"])


def test_garbling():
    assert scores.replacements("赤い\ufffd") == (1, 0)
    assert scores.replacements("赤\ufffdい\ufffd\ufffd") == (2, 1)
    assert scores.replacements("赤い") == (0, 0)
    assert scores.repetition("abcdefgh") == 0.0
    assert scores.repetition("abababababab") == pytest.approx(1 - 2 / 9)
    assert scores.repetition("abc") == 0.0


def test_chrf_is_sacrebleus():
    from sacrebleu.metrics import CHRF

    replies, references = ["赤いバスです。", "猫"], [["赤いバスです。", "バスは赤いです。"], ["猫です。"]]
    ours, signature = scores.chrf(replies, references)
    theirs = CHRF().corpus_score(replies, [["赤いバスです。", "猫です。"], ["バスは赤いです。", "猫です。"]])
    assert ours == theirs.score
    assert "nc:6" in signature
    assert scores.chrf(["赤"], [["赤"]])[0] == 100


def test_chrf_of_each_reply_is_that_of_its_nearest_reference():
    replies = ["赤いバスです。", "猫", "", "何"]
    references = [
        ["赤いバスです。", "バスは赤いです。"],
        ["猫です。", "犬です。"],
        ["はい。", "はい、猫です。"],
        ["一", "二"],
    ]
    each = scores.chrf_each(replies, references)
    assert each[0] == 100
    assert each[1] == max(scores.chrf(["猫"], [[one]])[0] for one in references[1]) > 0
    assert each[2:] == [0, 0]
