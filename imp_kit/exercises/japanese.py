"""Exercises of notebook 04."""

from collections.abc import Callable
from typing import Any

from imp_kit.exercises import exercise, expect, number_of, result_of
from imp_kit.experiments.japanese import probe, tokenized

SENTENCE = "魚はどこに住んでいますか?"  # "Where do fish live?"
PIECES = {
    b"What": True,
    b" man": True,
    "は".encode(): True,
    b"\x94": False,  # one byte of 男
    "の".encode() + b"\xe7": False,  # a character, and the first byte of the next
    b"\xe4\xbd": False,  # two bytes of 何
}
SEEDS = 40  # questions with yes or no; half of the true answers are yes


@exercise
def most_tokens(answer: Any) -> str:
    """Into how many tokens can a byte-level tokenizer cut the sentence at most?"""
    answer, most, characters = number_of(answer), len(SENTENCE.encode()), len(SENTENCE)
    expect(answer != characters, "That is one token a character; but a character can fall apart.")
    expect(answer != 3 * characters, "Almost. The question mark is ASCII: how many bytes has it?")
    expect(answer == most, "At most each byte is a token. Count the bytes: len(sentence.encode()).")
    cut = len(tokenized.phi2_pieces(SENTENCE))
    return (
        f"{most} bytes, so {most} tokens at most. Phi-2's tokenizer needs {cut}, since it has tokens for common kana."
    )


@exercise
def is_text(function: Callable[[bytes], bool]) -> str:
    """A function of a token's bytes: whether they are text, so whole characters."""
    for piece, whole in PIECES.items():
        found = result_of(function, piece)
        wanted = "text" if whole else "not text"
        expect(bool(found) == whole, f"{piece!r} is {wanted}; your function returned {found!r}.")
    return "the bytes of half a character cannot be decoded. A model that stops there leaves a � behind."


@exercise
def without_looking(function: Callable[[str], str]) -> str:
    """A function of a Japanese question which is right in about half of the questions with yes or no, image unseen."""
    asked = [probe.scene_cases("yes_no", seed)[1] for seed in range(SEEDS)]
    answers = [result_of(function, case.question) for case in asked]
    expect(all(isinstance(each, str) for each in answers), f"A model answers with text; yours with {answers[0]!r}.")
    right = sum(
        probe.is_right(text, "truth", case.truth["answer"], case.question)
        for text, case in zip(answers, asked, strict=True)
    )
    expect(
        right >= 0.25 * SEEDS,  # answers drawn by chance get fewer once in 3000 times
        f"It is right {right} times of {SEEDS}. What can you always say to a question with yes or no?",
    )
    return f"{right} of {SEEDS} without a picture. So a score near one half shows neither eyes nor Japanese."
