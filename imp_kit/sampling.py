"""How the next token is chosen: the settings, checked, and the draw."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import TypedDict

import torch
from torch import Tensor

from imp_kit.errors import SettingError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Raises SettingError where a value makes no sense.

    temperature 0 is greedy; else softmax(logits / temperature), cut to the smallest set of tokens whose
    probabilities reach top_p (nucleus sampling, arXiv 1904.09751). `seed` makes a sampled answer repeatable.
    """

    max_new_tokens: int = 100
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self):
        for name, whole, low, high in (
            ("max_new_tokens", True, 1, float("inf")),
            ("temperature", False, 0.0, 100.0),
            ("top_p", False, 0.0, 1.0),
        ):
            value = getattr(self, name)
            # The abstract numbers include numpy's scalars, which loops in notebooks make.
            number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
            if not number or not low <= value <= high or (name == "top_p" and value == 0):
                kind = "a whole number from 1" if whole else f"a number from {low} to {high}"
                raise SettingError(f"{name} is {value!r}; give {kind}{' and above 0' if name == 'top_p' else ''}.")
            # Python's own, as a small type of numpy's would overflow.
            object.__setattr__(self, name, int(value) if whole else float(value))
        whole = isinstance(self.seed, Integral) and not isinstance(self.seed, bool)
        if self.seed is not None and not (whole and 0 <= self.seed < 2**63):
            raise SettingError(f"seed is {self.seed!r}; give a whole number from 0, or None.")

    def generator(self, device: torch.device) -> torch.Generator | None:
        """A random generator for one answer; None where nothing is drawn."""
        if self.temperature == 0:
            return None
        generator = torch.Generator(device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(int(self.seed))
        return generator

    def pick(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        """Logits (batch, vocab) -> chosen ids, int64 (batch,)."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        # From the largest score down, and not below a millionth, so that no small temperature overflows.
        scores = (logits - logits.amax(dim=-1, keepdim=True)) / max(self.temperature, 1e-6)
        probabilities, order = torch.softmax(scores, dim=-1).sort(dim=-1, descending=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        # The likeliest token stays whatever rounding does, so there is always one to draw.
        before[..., 0] = -1
        probabilities = probabilities.masked_fill(before >= self.top_p, 0.0)
        drawn = torch.multinomial(probabilities, 1, generator=generator)
        return order.gather(-1, drawn).squeeze(-1)


class Settings(TypedDict, total=False):
    """What every function that asks takes by name, for editors and type checkers; see `Sampling`."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: str | Sequence[str] | None


def named_settings(function: Callable) -> Callable:
    """Name the settings, with their defaults, in the signature that `help` shows instead of `**settings`."""
    signature = inspect.signature(function)
    defaults = {**{field.name: field.default for field in fields(Sampling)}, "stop": None}
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        *list(signature.parameters.values())[:-1],
        *(inspect.Parameter(n, keyword, default=defaults[n], annotation=Settings.__annotations__[n]) for n in defaults),
    ]
    function.__signature__ = signature.replace(parameters=parameters)
    return function


def read_settings(settings: dict) -> tuple[Sampling, tuple[str, ...]]:
    """Split a user's keyword settings into Sampling and stop strings. Raises SettingError."""
    known = [field.name for field in fields(Sampling)]
    unknown = sorted(settings.keys() - {*known, "stop"})
    if unknown:
        raise SettingError(f"Unknown setting {unknown[0]!r}; known are {', '.join([*known, 'stop'])}.")
    stop = settings.get("stop")
    stops = () if stop is None else tuple(stop) if isinstance(stop, (list, tuple)) else (stop,)
    if not all(isinstance(text, str) and text for text in stops):
        raise SettingError(f"stop is {stop!r}; give a text, or a list of texts, none of them empty.")
    return Sampling(**{name: value for name, value in settings.items() if name != "stop"}), stops
