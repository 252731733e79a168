"""Intervals and tests for the experiments: thin calls to scipy and numpy, each with the source of its formula."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from imp_kit.errors import SettingError

LEVEL = 0.95
DRAWS = 10_000


@dataclass(frozen=True)
class Share:
    """A proportion with its interval; `low` and `high` are fractions."""

    right: int
    total: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.right / self.total

    def __str__(self) -> str:
        return f"{self.share:.1%} ({self.low:.1%} – {self.high:.1%})"


def wilson(right: int, total: int) -> Share:
    """A proportion with its 95 % interval after Wilson, Journal of the American Statistical Association 22 (1927).

    Raises SettingError where nothing was counted, or more is right than there is.
    """
    from scipy.stats import binomtest

    if not 0 <= right <= total or total < 1:
        raise SettingError(
            f"{right} of {total} is no proportion; count at least one, and no more right than there are."
        )
    interval = binomtest(right, total).proportion_ci(LEVEL, method="wilson")
    return Share(right, total, float(interval.low), float(interval.high))


def mcnemar(one: Sequence[bool], other: Sequence[bool]) -> float:
    """Two-sided p-value that two conditions, right or wrong on the same items, differ by chance.

    The exact form: a binomial test of the items on which they differ (McNemar, Psychometrika 12, 1947). 1.0 where they
    differ on none. Raises SettingError for sequences of different lengths.
    """
    from scipy.stats import binomtest

    _check_paired(one, other)
    only_one = sum(bool(a) and not b for a, b in zip(one, other, strict=True))
    only_other = sum(bool(b) and not a for a, b in zip(one, other, strict=True))
    if not only_one + only_other:
        return 1.0
    return float(binomtest(min(only_one, only_other), only_one + only_other, 0.5).pvalue)


def bootstrap(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence,
    statistic: Callable[[np.ndarray], float] = lambda rows: float(np.mean(rows)),
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of a statistic of `values` (n,) or (n, k), drawing whole clusters with replacement.

    Items about one picture are no independent evidence, so the pictures are drawn (Efron and Tibshirani, An
    Introduction to the Bootstrap, 1993, chapter 8). For paired conditions give differences, or k columns and a
    statistic of them. 10,000 draws, repeatable by `seed`. Raises SettingError.
    """
    rows = np.asarray(values, float)
    if not len(rows) or len(rows) != len(clusters):
        raise SettingError(
            f"{len(rows)} values and {len(clusters)} clusters; give one cluster for each of some values."
        )
    _, owner = np.unique(np.asarray(list(clusters)), return_inverse=True)
    members = [rows[owner == cluster] for cluster in range(owner.max() + 1)]
    picks = np.random.default_rng(seed).integers(len(members), size=(DRAWS, len(members)))
    if len(members) == len(rows):  # the same, faster: each cluster is one row
        ordered = np.concatenate(members)
        drawn = [statistic(ordered[pick]) for pick in picks]
    else:
        drawn = [statistic(np.concatenate([members[index] for index in pick])) for pick in picks]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of one family, adjusted after Holm, Scandinavian Journal of Statistics 6 (1979), in their own order."""
    p = np.asarray(p_values, float)
    if p.size and not ((p >= 0) & (p <= 1)).all():
        raise SettingError(f"p-values lie between 0 and 1, not {p_values!r}.")
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted.tolist()


def _check_paired(one: Sequence, other: Sequence) -> None:
    if len(one) != len(other):
        raise SettingError(f"{len(one)} and {len(other)} items are not pairs; give the same items in the same order.")
