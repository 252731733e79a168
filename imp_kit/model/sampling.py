"""How the next token is chosen: the settings, checked, and the draw."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
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
            raise SettingError(f"seed is {self.seed!r}; give a whole number from 0 to {2**63 - 1}, or None.")

    def generators(self, device: torch.device, indices: Sequence[int]) -> list[torch.Generator] | None:
        """A random generator for each answer, from the seed and the answer's index; None where nothing is drawn."""
        if self.temperature == 0:
            return None
        generators = [torch.Generator(device) for _ in indices]
        for generator, index in zip(generators, indices, strict=True):
            if self.seed is None:
                generator.seed()
            elif index == 0:  # `ask` alone: what a seed gave before answers had indices
                generator.manual_seed(int(self.seed))
            else:  # numpy's way to streams that do not overlap
                (mixed,) = np.random.SeedSequence(int(self.seed), spawn_key=(index,)).generate_state(1, np.uint64)
                generator.manual_seed(int(mixed))
        return generators

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (..., vocab) -> softmax(logits / temperature), of the same shape and dtype; top_p cuts nothing yet."""
        # From the largest score down, and not below a millionth, so that no small temperature overflows.
        scores = (logits - logits.amax(dim=-1, keepdim=True)) / max(self.temperature, 1e-6)
        return torch.softmax(scores, dim=-1)

    def pick(self, logits: Tensor, generators: Sequence[torch.Generator] | None) -> Tensor:
        """Logits (batch, vocab) -> chosen ids, int64 (batch,); each row is drawn with its own generator."""
        if generators is None:
            return logits.argmax(dim=-1)
        probabilities, order = self.probabilities(logits).sort(dim=-1, descending=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        # The likeliest token stays whatever rounding does, so there is always one to draw.
        before[..., 0] = -1
        probabilities = probabilities.masked_fill(before >= self.top_p, 0.0)
        # The largest of the probabilities over exponential numbers is a draw by them, the one that torch.multinomial
        # makes; but that one also reads two values of each row, for which a GPU's work has to end first.
        numbers = torch.empty_like(probabilities)
        for row, generator in zip(numbers, generators, strict=True):
            row.exponential_(generator=generator)
        drawn = (probabilities / numbers).argmax(dim=-1, keepdim=True)
        return order.gather(-1, drawn).squeeze(-1)


class Sampler:
    """The rows of a batch, each with the Sampling, and the random numbers, by which it chooses its tokens."""

    def __init__(
        self, samplings: Sequence[Sampling], generators: Sequence[torch.Generator | None], device: torch.device
    ):
        self._samplings, self._generators, self._device = samplings, generators, device
        alike: dict[tuple[float, float], list[int]] = {}
        for row, sampling in enumerate(samplings):
            alike.setdefault((sampling.temperature, sampling.top_p), []).append(row)
        self._alike = list(alike.values())
        # On the device from the start: a list of rows would be sent there for every token.
        self._places = [torch.tensor(rows, device=device) for rows in self._alike if len(self._alike) > 1]

    @classmethod
    def of(cls, samplings: Sequence[Sampling], device: torch.device, indices: Sequence[int]) -> "Sampler":
        """Each row draws by its seed and its index; see `Sampling.generators`."""
        each = [sampling.generators(device, [index]) for sampling, index in zip(samplings, indices, strict=True)]
        return cls(samplings, [generators[0] if generators else None for generators in each], device)

    def select_rows(self, rows: Sequence[int]) -> "Sampler":
        """The sampler of these rows, whose random numbers go on."""
        return Sampler([self._samplings[row] for row in rows], [self._generators[row] for row in rows], self._device)

    def pick(self, logits: Tensor) -> Tensor:
        """Logits (batch, vocab) -> chosen ids, int64 (batch,)."""
        if len(self._alike) == 1:
            return self._pick(logits, self._alike[0])
        ids = torch.empty(len(logits), dtype=torch.long, device=logits.device)
        for rows, places in zip(
            self._alike, self._places, strict=True
        ):  # each sort of a whole vocabulary is done for all rows that need it
            ids[places] = self._pick(logits[places], rows)
        return ids

    def _pick(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """The ids of rows that are alike, from their logits."""
        generators = [generator for row in rows if (generator := self._generators[row]) is not None]
        return self._samplings[rows[0]].pick(logits, generators or None)
