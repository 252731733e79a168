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


@dataclass(frozen=True)
class Estimate:
    """A figure that is no proportion, with its interval."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """Each number by `spec`, .2f if there is none, or such as .1%; with a sign, as in +.2f, for a difference."""
        spec = spec or ".2f"
        between = "to" if spec.startswith("+") else "–"
        return f"{self.value:{spec}} ({self.low:{spec}} {between} {self.high:{spec}})"

    def __str__(self) -> str:
        return f"{self}"


def ratio(sums: np.ndarray) -> np.ndarray:
    """The first column's sum over the second's."""
    return sums[:, 0] / sums[:, 1]


def difference(sums: np.ndarray) -> np.ndarray:
    """What the ratio of the first two columns has more than that of the other two."""
    return ratio(sums[:, :2]) - ratio(sums[:, 2:])


def bootstrap(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence,
    statistic: Callable[[np.ndarray], np.ndarray] = ratio,
    seed: int = 0,
) -> Estimate:
    """The mean of `values` (n,), or a statistic of the sums of their columns (n, k), with its 95 % percentile interval.

    Whole clusters are drawn with replacement: items about one picture are no independent evidence (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8). For paired conditions give differences, or both
    conditions' columns in a row and `difference`. `statistic` gets the sums of many draws, a row each. 10,000 draws,
    repeatable by `seed`; draws without a value (none of something to divide by) are left out. Raises SettingError.
    """
    rows = np.asarray(values, float)
    if not len(rows) or len(rows) != len(clusters):
        raise SettingError(
            f"{len(rows)} values and {len(clusters)} clusters; give one cluster for each of some values."
        )
    if rows.ndim == 1:
        rows = np.stack([rows, np.ones_like(rows)], axis=1)
    _, owner = np.unique(np.asarray(list(clusters)), return_inverse=True)
    sums = np.zeros((owner.max() + 1, rows.shape[1]))
    np.add.at(sums, owner, rows)
    picks = np.random.default_rng(seed).integers(len(sums), size=(DRAWS, len(sums)))
    totals = np.stack([column[picks].sum(axis=1) for column in sums.T], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        value, drawn = statistic(sums.sum(axis=0, keepdims=True))[0], statistic(totals)
    if not np.isfinite(value):
        raise SettingError("The statistic has no value: there is nothing to divide by.")
    low, high = np.quantile(drawn[np.isfinite(drawn)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(low), float(high))


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
