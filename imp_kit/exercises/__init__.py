"""Exercises of the notebooks that check themselves: a module for each notebook, a function for each exercise."""

import functools
from collections.abc import Callable, Iterable
from typing import Any


class NotYet(Exception):
    """An answer that is not right; the text says why, or gives a hint."""


def expect(condition: object, hint: str) -> None:
    """Raise NotYet with `hint` where the condition does not hold."""
    if not condition:
        raise NotYet(hint)


def result_of(function: Callable[..., Any], *arguments: Any, case: str = "") -> Any:
    """What the reader's function returns. Raises NotYet where it is no function, raises, or returns nothing.

    `case` stands before the hint, such as "For [20, 3]: ".
    """
    expect(callable(function), f"The answer is a function here, not {type(function).__name__}.")
    try:
        result = function(*arguments)
    except Exception as error:
        raise NotYet(f"{case}Your function ended in {type(error).__name__}: {error}") from error
    expect(result is not ..., "Your function still returns `...`: write what it has to return there.")
    expect(result is not None, f"{case}Your function returns None: each way through it has to `return` a value.")
    return result


def list_of(function: Callable[..., Any], *arguments: Any) -> list:
    """What the reader's function returns, or yields, as a list. Raises NotYet as `result_of`, and for no list."""
    result = result_of(function, *arguments)
    expect(isinstance(result, Iterable) and not isinstance(result, str), f"Return a list, not {result!r:.60}.")
    return result_of(lambda: list(result))


def number_of(answer: Any) -> float:
    """The reader's number; also of numpy or torch, or as text. Raises NotYet for what is none."""
    try:
        return float(answer)
    except (TypeError, ValueError):
        raise NotYet(f"Give a number alone, such as 5 or 0.5, not {answer!r:.60}.") from None


def exercise(check: Callable[[Any], str]) -> Callable[[Any], None]:
    """Make a check that prints "Right: ..." or "Not yet: ..." of a function that returns why an answer is right.

    The function raises NotYet otherwise. Whatever else goes wrong with an answer, as when it is a function of the
    reader's that raises, is "Not yet", too: a notebook must run to its end.
    """

    @functools.wraps(check)
    def run(answer: Any) -> None:
        if answer is ... or answer is None:
            print("Not yet: put your answer in place of `...` and run this cell again.")
            return
        try:
            print("Right:", check(answer))
        except NotYet as hint:
            print("Not yet:", hint)
        except Exception as error:
            print(f"Not yet: with this answer the check ended in {type(error).__name__}: {error}")

    return run
