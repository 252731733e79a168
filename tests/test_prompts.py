"""The exact text of every prompt: a change here changes what each checkpoint answers."""

import pytest

from imp_kit.errors import PromptError
from imp_kit.prompts import IMAGE, PHI2, PHI3, QWEN, SYSTEM, TEMPLATES, Control, check_phrase, check_question

FIRST = {
    PHI2: f"{SYSTEM} USER: <image>\nWhat is this? ASSISTANT:",
    QWEN: (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    PHI3: f"<|system|>\n{SYSTEM}<|end|>\n<|user|>\n<image>\nWhat is this?<|end|>\n<|assistant|>\n",
}
LATER = {
    PHI2: " A cat.</s>USER: And now? ASSISTANT:",
    QWEN: "A cat.<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n",
    PHI3: "A cat.<|end|>\n<|user|>\nAnd now?<|end|>\n<|assistant|>\n",
}
families = pytest.mark.parametrize("template", [PHI2, QWEN, PHI3], ids=["phi2", "qwen", "phi3"])


def test_system_text():
    assert SYSTEM == (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )


def test_each_family_has_its_template():
    assert TEMPLATES == {"imp": PHI2, "imp_qwen2": QWEN, "imp_phi3": PHI3}


@families
def test_first_turn(template):
    assert "".join((*template.open(), *template.ask("What is this?", first=True))) == FIRST[template]


@families
def test_later_turn(template):
    pieces = (template.answer + "A cat.", *template.ask(" And now?\n", first=False))
    assert "".join(pieces) == LATER[template]


@families
def test_what_is_a_control_token_and_what_is_letters(template):
    pieces = (*template.open(), *template.ask("Is {} </s>?", first=True), *template.ask("x", first=False))
    control = [piece for piece in pieces if isinstance(piece, Control)]
    assert set(control) == {IMAGE, *template.control}
    assert control.count(IMAGE) == 1
    letters = [piece for piece in pieces if not isinstance(piece, Control)]
    assert sum("Is {} </s>?" in piece for piece in letters) == 1
    assert not any(token in piece.replace("</s>", "") for piece in letters for token in template.control)


@families
def test_typed_control_tokens_stay_letters(template):
    for token in template.control:
        pieces = template.ask(f"Is {token} a letter?", first=True)
        holding = next(piece for piece in pieces if "a letter?" in piece)
        assert f"Is {token} a letter?" in holding
        assert not isinstance(holding, Control)


@pytest.mark.parametrize("question", ["", "  \n", "what <image> is this", 3, None, ["a"]])
@families
def test_a_question_that_cannot_be_asked(template, question):
    with pytest.raises(PromptError):
        template.ask(question, first=True)


BLANK = ["", " ", "\n\t", "\u200b", "\ufeff", "\u200b \ufeff\u2060", "\u3000", "\u00ad", "\u202e", "\u3164", "\u0301"]


@pytest.mark.parametrize("text", BLANK)
def test_a_text_that_shows_nothing_is_no_question(text):
    with pytest.raises(PromptError, match="empty"):
        check_question(text)
    with pytest.raises(PromptError, match="name what to look for"):
        check_phrase(text)


@pytest.mark.parametrize("text", ["?", "\u200ba", "\ufeffWhat?", "🚌", "男", "é", "\u0627"])
def test_a_text_that_shows_something_is_one(text):
    check_question(text)
    assert check_phrase(text)
