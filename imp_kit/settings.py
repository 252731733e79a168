"""The settings that every function which asks takes by name."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from numbers import Integral
from typing import Any, TypedDict, TypeVar

from imp_kit.errors import SettingError
from imp_kit.model.sampling import Sampling


class Settings(TypedDict, total=False):
    """What every function that asks takes by name, for editors and type checkers; see `Sampling`."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: str | Sequence[str] | None


Asking = TypeVar("Asking", bound=Callable[..., Any])


def named_settings(function: Asking) -> Asking:
    """Name the settings, with their defaults, in the signature that `help` shows instead of `**settings`."""
    signature = inspect.signature(function)
    defaults = {**{field.name: field.default for field in fields(Sampling)}, "stop": None}
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        *list(signature.parameters.values())[:-1],
        *(inspect.Parameter(n, keyword, default=defaults[n], annotation=Settings.__annotations__[n]) for n in defaults),
    ]
    vars(function)["__signature__"] = signature.replace(parameters=parameters)
    return function


def read_settings(settings: Mapping[str, Any]) -> tuple[Sampling, tuple[str, ...]]:
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


def read_batch_size(batch_size: Any) -> int:
    """A batch size as an int. Raises SettingError for what is no whole number from 1."""
    if not isinstance(batch_size, Integral) or isinstance(batch_size, bool) or batch_size < 1:
        raise SettingError(f"batch_size is {batch_size!r}; give a whole number from 1.")
    return int(batch_size)
