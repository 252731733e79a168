"""Chat templates and stop strings of each family: pure functions from turns to pieces of a prompt."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from imp_kit.errors import PromptError

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
CAPTION = "Describe the image."
# The second line asks for short answers, as in the data that LLaVA-1.5 was trained on.
CLASSIFY = "What is the main object in the image?\nAnswer the question using a single word or phrase."
# As in the data that LLaVA-1.5, and with it Imp, was trained on; the box is written as boxes.py says.
LOCATE = "Please provide the bounding box coordinate of the region this sentence describes: {}."
DESCRIBE_REGION = "Please provide a short description for this region: {}."


FILLERS = "\u115f\u1160\u2800\u3164\uffa0"  # letters and a symbol by their kind, blank in every font


class Control(str):
    """A piece of a prompt that is one control token, never letters; any other `str` is letters only."""


IMAGE = Control("<image>")  # where the image's features go


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: blanks, controls, what has no width, marks that belong to a letter before them."""
    return all(unicodedata.category(c) in ("Zs", "Zl", "Zp", "Cc", "Cf", "Mn") or c in FILLERS for c in text)


def check_question(question: str) -> None:
    """Raise PromptError for what cannot be asked."""
    if not isinstance(question, str):
        raise PromptError(f"A question is text, not {type(question).__name__}.")
    if is_blank(question):
        raise PromptError("The question is empty; ask something about the picture.")
    check_text("question", question)
    if IMAGE in question:
        raise PromptError(f"The question contains {IMAGE}, which marks the picture's place; the kit sets it itself.")


def check_text(name: str, text: str) -> None:
    """Raise PromptError for what UTF-8 cannot write: how Python gives bytes of a command line that are no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptError(f"The {name} {text!r:.80} holds bytes that are no text; type it in UTF-8.") from None


def check_phrase(phrase: str) -> str:
    """What to look for, without a full stop at its end. Raises PromptError where nothing is named."""
    named = phrase.strip().rstrip(".") if isinstance(phrase, str) else ""
    if is_blank(named):
        raise PromptError(f"The phrase is {phrase!r}; name what to look for, such as 'the bus'.")
    return named


def check_answers(answers: Iterable[str], name: str = "answer") -> list[str]:
    """Answers to rank, without blanks at their ends. Raises PromptError for none, an empty one or one that repeats."""
    if isinstance(answers, str) or not isinstance(answers, Iterable):
        raise PromptError(f"The {name}s are {answers!r:.80}; give a list of texts.")
    checked: list[str] = []
    for answer in answers:
        if not isinstance(answer, str):
            raise PromptError(f"Each {name} is text, not {type(answer).__name__}: {answer!r:.80}.")
        text = answer.strip()
        if is_blank(text):
            raise PromptError(f"The {name} {answer!r} is empty; leave it out, or name something.")
        check_text(name, text)
        if text in checked:
            raise PromptError(f"The {name} {text[:80]!r} is given twice; give each once.")
        checked.append(text)
    if not checked:
        raise PromptError(f"There are no {name}s; give at least one.")
    return checked


@dataclass(frozen=True)
class Template:
    """How a family writes a chat: `opening`, then a turn for each question, "{}" being the question.

    Source: the conversation templates in the training code of MILVLG/imp.
    """

    opening: str
    first: str  # follows the image
    later: str  # follows an answer, which it ends
    answer: str  # stands between a turn and its answer
    stop: str  # ends an answer
    control: tuple[str, ...]  # what of the above are control tokens, `stop` among them

    def open(self) -> tuple[str, ...]:
        """The pieces that begin every prompt, the image token last."""
        return self._cut(self.opening)

    def ask(self, question: str, first: bool) -> tuple[str, ...]:
        """The pieces of a turn: after the opening if it is the `first`, else after an answer. Raises PromptError.

        The question and the letters around it are one piece, since a tokenizer may join them.
        """
        check_question(question)
        return self._fill(self.first if first else self.later, question)

    def ask_alone(self, question: str) -> tuple[str, ...]:
        """The pieces of a prompt without an image: the opening and a first turn. Raises PromptError."""
        check_question(question)
        return self._fill(self.opening.removesuffix(IMAGE) + self.first.removeprefix("\n"), question)

    def _fill(self, text: str, question: str) -> tuple[str, ...]:
        pieces = self._cut(text)
        return tuple(p if isinstance(p, Control) else p.replace("{}", question.strip()) for p in pieces)

    def _cut(self, text: str) -> tuple[str, ...]:
        marks = {IMAGE: IMAGE, **{token: Control(token) for token in self.control}}
        parts = re.split("|".join(f"({re.escape(mark)})" for mark in marks), text)
        return tuple(marks.get(part, part) for part in parts if part)


PHI2 = Template(
    opening=f"{SYSTEM} USER: <image>",
    first="\n{} ASSISTANT:",
    later="</s>USER: {} ASSISTANT:",
    answer=" ",
    stop="</s>",
    control=("</s>",),
)
QWEN = Template(
    opening=f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<image>",
    first="\n{}<|im_end|>\n<|im_start|>assistant\n",
    later="<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    answer="",
    stop="<|im_end|>",
    control=("<|im_start|>", "<|im_end|>"),
)
PHI3 = Template(
    opening=f"<|system|>\n{SYSTEM}<|end|>\n<|user|>\n<image>",
    first="\n{}<|end|>\n<|assistant|>\n",
    later="<|end|>\n<|user|>\n{}<|end|>\n<|assistant|>\n",
    answer="",
    stop="<|end|>",
    control=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
)
TEMPLATES = {"imp": PHI2, "imp_qwen2": QWEN, "imp_phi3": PHI3}  # by model_type of config.json
