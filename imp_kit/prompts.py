"""Chat templates and stop strings of each family: pure functions from turns to pieces of a prompt."""

from dataclasses import dataclass
from enum import Enum

from imp_kit.errors import PromptError

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
CAPTION = "Describe the image."


class Mark(Enum):
    """Places in a prompt that are no text."""

    IMAGE = "<image>"  # the picture's features go here
    STOP = "</s>"  # the control token that ends a turn


Piece = str | Mark


@dataclass(frozen=True)
class Template:
    """How a family lays out a chat; the pieces of a whole prompt are `opening + ask(question)`.

    Source: the conversation templates of MILVLG/imp (facts checked against its training code).
    """

    opening: tuple[Piece, ...]
    before: str
    after: str
    stop: str

    def ask(self, question: str, first: bool) -> tuple[Piece, ...]:
        """The pieces that follow the opening (`first`) or an earlier answer. Raises PromptError."""
        if not isinstance(question, str):
            raise PromptError(f"A question is text, not {type(question).__name__}.")
        if not question.strip():
            raise PromptError("The question is empty; ask something about the picture.")
        if Mark.IMAGE.value in question:
            raise PromptError(
                f"The question contains {Mark.IMAGE.value}, which marks the picture's place; the kit sets it itself."
            )
        text = question.strip() + self.after
        return (f"\n{text}",) if first else (Mark.STOP, self.before + text)


PHI2 = Template(
    opening=(f"{SYSTEM} USER: ", Mark.IMAGE),
    before="USER: ",
    after=" ASSISTANT:",
    stop="</s>",
)


def render(pieces: tuple[Piece, ...], template: Template) -> str:
    """A prompt as one readable text, marks written out."""
    return "".join(
        piece if isinstance(piece, str) else template.stop if piece is Mark.STOP else piece.value for piece in pieces
    )
