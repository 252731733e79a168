"""The exact text of every prompt: a change here changes what each checkpoint answers."""

import pytest

from imp_kit.errors import PromptError
from imp_kit.prompts import PHI2, SYSTEM, Mark, render


def test_system_text():
    assert SYSTEM == (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )


def test_first_turn():
    pieces = PHI2.opening + PHI2.ask("What is this?", first=True)
    assert render(pieces, PHI2) == f"{SYSTEM} USER: <image>\nWhat is this? ASSISTANT:"


def test_second_turn():
    pieces = (*PHI2.opening, *PHI2.ask("What is this?", first=True), " A cat.", *PHI2.ask(" And now?\n", first=False))
    assert render(pieces, PHI2) == (
        f"{SYSTEM} USER: <image>\nWhat is this? ASSISTANT: A cat.</s>USER: And now? ASSISTANT:"
    )


def test_control_text_in_a_question_stays_a_piece_of_text():
    pieces = PHI2.ask("Is </s> a letter?", first=True)
    assert pieces == ("\nIs </s> a letter? ASSISTANT:",)
    assert Mark.STOP not in pieces


@pytest.mark.parametrize("question", ["", "  \n", "what <image> is this", 3, None, ["a"]])
def test_a_question_that_cannot_be_asked(question):
    with pytest.raises(PromptError):
        PHI2.ask(question, first=True)
