"""Intervals and tests for the experiments: thin calls to scipy and numpy, each with the source of its formula."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from statistics import NormalDist

import numpy as np

from imp_kit.errors import SettingError
from imp_kit.system.extras import require

LEVEL = 0.95
DRAWS = 10_000
UNLIKE = 5  # clusters unlike the commonest, from which a bootstrap covers 0.9 or more (tests/tools/intervals.py)


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
    if not 0 <= right <= total or total < 1:
        raise SettingError(
            f"{right} of {total} is no proportion; count at least one, and no more right than there are."
        )
    interval = _scipy("stats").binomtest(right, total).proportion_ci(LEVEL, method="wilson")
    return Share(right, total, float(interval.low), float(interval.high))


def share_of(flags: Sequence[bool]) -> Share:
    """The share of true flags, with its interval; see `wilson`."""
    return wilson(sum(map(bool, flags)), len(flags))


def mcnemar(one: Sequence[bool], other: Sequence[bool]) -> float:
    """Two-sided p-value that two conditions, right or wrong on the same items, differ by chance.

    The exact form: a binomial test of the items on which they differ (McNemar, Psychometrika 12, 1947). 1.0 where they
    differ on none. Raises SettingError for sequences of different lengths.
    """
    _check_paired(one, other)
    only_one = sum(bool(a) and not b for a, b in zip(one, other, strict=True))
    only_other = sum(bool(b) and not a for a, b in zip(one, other, strict=True))
    if not only_one + only_other:
        return 1.0
    return float(_scipy("stats").binomtest(min(only_one, only_other), only_one + only_other, 0.5).pvalue)


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; `low` and `high` are None where there is too little for one."""

    value: float
    low: float | None
    high: float | None

    def __format__(self, spec: str) -> str:
        """Each number by `spec`, .2f if there is none, or such as .1%; with a sign, as in +.2f, for a difference."""
        spec = spec or ".2f"
        if self.low is None:
            return f"{self.value:{spec}} (no interval)"
        between = "to" if spec.startswith("+") else "–"
        return f"{self.value:{spec}} ({self.low:{spec}} {between} {self.high:{spec}})"

    def __str__(self) -> str:
        return f"{self}"


def bounded_mean(values: Sequence[float], clusters: Sequence, most: float = 1) -> Estimate:
    """The mean of values from 0 to `most` with its 95 % interval: Wilson's, with the effective number of values.

    Wilson's variance is the largest that such values can have; their own, between clusters, says how many values of the
    largest variance they are worth, at least one a cluster (Korn and Graubard, Survey Methodology 24, 1998; Franco and
    others, Journal of Survey Statistics and Methodology 7, 2019). The quantile is Student's, with the clusters' degrees
    of freedom. Zeros and ones that are a cluster each have Wilson's interval itself. Raises SettingError.
    """
    rows, sums = _by_cluster(values, clusters, 0, most)
    mean = float(rows.mean())
    number, quantile = _effective(rows, sums, mean * (1 - mean))
    half = quantile * math.sqrt(mean * (1 - mean) / number + (quantile / (2 * number)) ** 2)
    middle, scale = mean + quantile**2 / (2 * number), 1 + quantile**2 / number
    low, high = max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
    return Estimate(mean * most, low * most, high * most)


def bounded_difference(differences: Sequence[float], clusters: Sequence, most: float = 1) -> Estimate:
    """The mean of differences from -most to most between conditions on the same items, with its 95 % interval.

    For two shares, whose differences are -1, 0 and 1, it is Tango's score interval (Statistics in Medicine 17, 1998,
    pages 891-908). Other differences vary less than such, or come in clusters, and count as their effective number of
    such, as in `bounded_mean`. Raises SettingError.
    """
    rows, sums = _by_cluster(differences, clusters, -most, most)
    more, less = float(np.maximum(rows, 0).mean()), float(np.maximum(-rows, 0).mean())
    mean = more - less
    number, quantile = _effective(rows, sums, more + less - mean**2)

    def is_inside(difference: float) -> bool:
        # The likeliest share of -1 where this difference is the true one.
        b = -more - less + (2 - more + less) * difference
        share = (math.sqrt(max(0.0, b**2 + 8 * less * difference * (1 - difference))) - b) / 4
        variance = 2 * share + difference * (1 - difference)
        return number * (mean - difference) ** 2 <= quantile**2 * variance

    low, high = (_last_inside(is_inside, mean, edge) for edge in (-1.0, 1.0))
    return Estimate(mean * most, low * most, high * most)


def _last_inside(is_inside: Callable[[float], bool], inside: float, edge: float) -> float:
    for _ in range(60):  # halves the way as often as doubles have digits
        middle = (inside + edge) / 2
        inside, edge = (middle, edge) if is_inside(middle) else (inside, middle)
    return inside


def _by_cluster(values: Sequence[float], clusters: Sequence, least: float, most: float):
    """The values, the largest possible one as 1; and of each cluster their sum and number, a row each."""
    rows = np.asarray(values, float)
    _check_clusters(rows, clusters)
    rounding = 1e-9 * most
    if not (rows.min() >= least - rounding and rows.max() <= most + rounding):
        raise SettingError(f"The values lie between {rows.min()} and {rows.max()}, not between {least} and {most}.")
    rows = np.clip(rows, least, most) / most
    return rows, _sums(np.stack([rows, np.ones_like(rows)], axis=1), clusters)


def _effective(rows: np.ndarray, sums: np.ndarray, largest: float) -> tuple[float, float]:
    """How many values of the largest variance the values are worth, and the quantile for their interval."""
    count = len(sums)
    if count == len(rows) and np.isin(rows, (-1, 0, 1)).all() or count == 1:
        return count, NormalDist().inv_cdf((1 + LEVEL) / 2)
    rest = sums[:, 0] - rows.mean() * sums[:, 1]
    variance = count / (count - 1) * (rest**2).sum() / len(rows) ** 2
    quantile = float(_scipy("special").stdtrit(count - 1, (1 + LEVEL) / 2))
    return max(count, largest / float(variance) if variance > 0 else 0), quantile


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
    """The mean of `values` (n,), or a statistic of the sums of their columns (n, k), with its 95 % interval.

    Whole clusters are drawn with replacement: items about one picture are no independent evidence (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8). The percentiles are expanded for small numbers
    (Hesterberg, The American Statistician 69, 2015, pages 371-386). For paired conditions give both conditions' columns
    in a row and `difference`. `statistic` gets the sums of many draws, a row each. 10,000 draws, repeatable by `seed`;
    draws without a value (none of something to divide by) are left out.

    Where fewer than UNLIKE clusters are unlike the commonest, there is no interval: draws of what is nearly always the
    same say nothing of how often it is not. Means of values that cannot leave a range have better ones: `bounded_mean`.
    Raises SettingError.
    """
    rows = np.asarray(values, float)
    _check_clusters(rows, clusters)
    if rows.ndim == 1:
        rows = np.stack([rows, np.ones_like(rows)], axis=1)
    sums = _sums(rows, clusters)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(sums.sum(axis=0, keepdims=True))[0])
    if not np.isfinite(value):
        raise SettingError("The statistic has no value: there is nothing to divide by.")
    count = len(sums)
    if count - np.unique(sums, axis=0, return_counts=True)[1].max() < UNLIKE:
        return Estimate(value, None, None)
    picks = np.random.default_rng(seed).integers(count, size=(DRAWS, count))
    totals = np.stack([column[picks].sum(axis=1) for column in sums.T], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = statistic(totals)
    tail = NormalDist().cdf(math.sqrt(count / (count - 1)) * _scipy("special").stdtrit(count - 1, (1 - LEVEL) / 2))
    low, high = np.quantile(drawn[np.isfinite(drawn)], [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def _check_clusters(rows: np.ndarray, clusters: Sequence) -> None:
    if not len(rows) or len(rows) != len(clusters):
        raise SettingError(
            f"{len(rows)} values and {len(clusters)} clusters; give one cluster for each of some values."
        )


def _sums(rows: np.ndarray, clusters: Sequence) -> np.ndarray:
    """The sums of each cluster's rows, a row each."""
    _, owner = np.unique(np.asarray(list(clusters)), return_inverse=True)
    sums = np.zeros((owner.max() + 1, rows.shape[1]))
    np.add.at(sums, owner, rows)
    return sums


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


def _scipy(part: str):
    """A part of scipy, imported where it is used."""
    require("measure", "scipy", what="An interval or a test")
    return import_module(f"scipy.{part}")


def _check_paired(one: Sequence, other: Sequence) -> None:
    if len(one) != len(other):
        raise SettingError(f"{len(one)} and {len(other)} items are not pairs; give the same items in the same order.")
