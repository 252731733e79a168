"""Which cases of a test `make test` runs; the others are slow ones, of `make test-all`."""

from collections.abc import Iterable

import pytest


def quick(count: int, cases: Iterable) -> list:
    """The first `count` cases as they are, the others marked slow."""
    return [case if number < count else pytest.param(case, marks=pytest.mark.slow) for number, case in enumerate(cases)]
