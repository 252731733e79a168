"""What an Imp gives back: the reply, and how it came about."""

import html
from dataclasses import asdict, dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Seconds:
    """Where an answer's time went; `look` is that of encoding the image, 0 for a View's later answers."""

    look: float
    prefill: float
    decode: float

    @property
    def total(self) -> float:
        return self.look + self.prefill + self.decode


@dataclass(frozen=True, eq=False)
class Answer:
    """A reply and how it came about; `str(answer)` is the text, and `answer == "a text"` compares it."""

    text: str
    token_ids: tuple[int, ...]  # without the stop token or what a stop string cut off
    prompt: str
    checkpoint: str
    revision: str | None
    device: str
    dtype: str
    finish: str  # "stop": the model or a stop string ended it; "length": max_new_tokens or the context did
    tokens: int  # generated, the stop token among them
    seconds: Seconds
    peak_memory: int | None  # bytes: of the GPU's memory, else of this process; None where the system does not say

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed: tokens after the first, which belongs to the prefill."""
        return (self.tokens - 1) / self.seconds.decode if self.seconds.decode else 0.0

    def __str__(self) -> str:
        return self.text

    def __format__(self, spec: str) -> str:
        return format(self.text, spec)

    def __eq__(self, other: object) -> bool:
        """Equal to a `str` that is its text, and to an Answer that came about in the same way."""
        if isinstance(other, str):
            return self.text == other
        return asdict(self) == asdict(other) if isinstance(other, Answer) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.text)

    def __contains__(self, text: str) -> bool:
        return text in self.text

    def to_dict(self) -> dict:
        """All fields by name, flat, for JSON or a row of a table; times are in seconds, memory in bytes."""
        values = asdict(self) | {"token_ids": list(self.token_ids)}
        return values | {f"{part}_seconds": value for part, value in values.pop("seconds").items()}

    @property
    def summary(self) -> str:
        """One line on how the answer came about."""
        return (
            f"{self.checkpoint} · {self.device} {self.dtype} · {self.tokens} tokens in {self.seconds.total:.2f} s"
            + (" · cut at the limit" if self.finish == "length" else "")
        )

    def _repr_html_(self) -> str:
        text = html.escape(self.text).replace("\n", "<br>")
        return f"<p>{text}</p><p style='color:gray;font-size:smaller'>{html.escape(self.summary)}</p>"


class TokenScore(NamedTuple):
    """A generated token, how likely it was, and the likeliest tokens in its place."""

    token: int
    log_probability: float  # before temperature and top_p, in nats
    likeliest: list[tuple[int, float]]  # tokens and their log probabilities, most probable first


class Candidate(NamedTuple):
    """One of several given answers, and how likely a checkpoint is to give it."""

    answer: str
    probability: float  # among the given answers, which make up 1
    log_likelihood: float  # of the whole answer and its end, in nats
    tokens: int  # of the answer, its end among them
