"""How often the reports' intervals hold the true value, and how wide they are.

    python tests/tools/intervals.py

Shares and paired shares are summed over all possible samples, other figures drawn at random. The methods that the kit
does not take stand beside those that it takes.
"""

import math
from collections.abc import Callable, Iterable
from functools import cache, lru_cache

import numpy as np
from scipy.special import gammaln
from scipy.stats import binom

from imp_kit.experiments.stats import Estimate, bootstrap, bounded_difference, bounded_mean, wilson

NUMBERS = (3, 10, 60)
SHARES = (0.0, 0.5, 0.9, 1.0)
GRID = tuple(step / 10 for step in range(11))
CORRELATIONS = (0.0, 0.5)
Interval = tuple[float, float]


def holds(interval: Interval, true: float) -> bool:
    return interval[0] - 1e-9 <= true <= interval[1] + 1e-9


# Shares, exactly -------------------------------------------------------------------------------------------


@lru_cache
def shares(total: int) -> tuple[Interval, ...]:
    return tuple((share.low, share.high) for share in (wilson(right, total) for right in range(total + 1)))


def share_coverage(total: int, rate: float) -> tuple[float, float]:
    """Coverage and mean width of Wilson's interval."""
    chances = binom.pmf(range(total + 1), total, rate)
    held = [holds(each, rate) for each in shares(total)]
    return float(chances @ held), float(chances @ [high - low for low, high in shares(total)])


# Paired shares, exactly ------------------------------------------------------------------------------------


def tables(pairs: int) -> np.ndarray:
    """All outcomes of so many pairs: right in both, in the first only, in the second only, in neither."""
    return np.array(
        [
            (both, one, other, pairs - both - one - other)
            for both in range(pairs + 1)
            for one in range(pairs + 1 - both)
            for other in range(pairs + 1 - both - one)
        ]
    )


def chances(pairs: int, one: float, other: float, correlation: float) -> np.ndarray | None:
    """The probability of each table, None where no two shares can have this correlation."""
    both = one * other + correlation * math.sqrt(one * (1 - one) * other * (1 - other))
    cells = np.array([both, one - both, other - both, 1 - one - other + both])
    if cells.min() < -1e-12:
        return None
    counts = tables(pairs)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(counts > 0, counts * np.log(np.maximum(cells, 0)), 0).sum(axis=1)
    return np.exp(gammaln(pairs + 1) - gammaln(counts + 1).sum(axis=1) + terms)


@cache
def tango(one: int, other: int, pairs: int) -> Interval:
    """The kit's, of the pairs that are right in one condition only."""
    differences = [1] * one + [-1] * other + [0] * (pairs - one - other)
    found = bounded_difference(differences, range(pairs))
    return found.low, found.high


def newcombe(both: int, one: int, other: int, neither: int) -> Interval:
    """Newcombe's method 10, "square and add" (Statistics in Medicine 17, 1998, pages 2635-2650)."""
    pairs = both + one + other + neither
    first, second = wilson(both + one, pairs), wilson(both + other, pairs)
    margins = (both + one) * (other + neither) * (both + other) * (one + neither)
    excess = both * neither - one * other
    if excess > 0:
        excess = max(excess - pairs / 2, 0)
    correlation = excess / math.sqrt(margins) if margins else 0.0

    def distance(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * correlation * a * b + b * b))

    difference = first.share - second.share
    return (
        difference - distance(first.share - first.low, second.high - second.share),
        difference + distance(first.high - first.share, second.share - second.low),
    )


@cache
def percentiles(one: int, other: int, pairs: int) -> Interval:
    """The plain bootstrap of pairs: percentiles of the difference in samples drawn from the sample."""
    cells = np.array([one, other, pairs - one - other]) / pairs
    drawn = np.random.default_rng(0).multinomial(pairs, cells, 2000)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / pairs, [0.025, 0.975])
    return float(low), float(high)


METHODS: dict[str, Callable[[int, int, int, int], Interval]] = {
    "Tango (the kit's)": lambda both, one, other, neither: tango(one, other, both + one + other + neither),
    "Newcombe 10": newcombe,
    "bootstrap": lambda both, one, other, neither: percentiles(one, other, both + one + other + neither),
}


@lru_cache
def pair_intervals(method: str, pairs: int) -> np.ndarray:
    return np.array([METHODS[method](*map(int, table)) for table in tables(pairs)])


def pair_coverage(method: str, pairs: int, one: float, other: float, correlation: float) -> tuple[float, float] | None:
    """Coverage and mean width of an interval of the difference between two shares of the same items."""
    weights = chances(pairs, one, other, correlation)
    if weights is None:
        return None
    low, high = pair_intervals(method, pairs).T
    held = (low - 1e-9 <= one - other) & (one - other <= high + 1e-9)
    return float(weights @ held), float(weights @ (high - low))


# Other figures, drawn --------------------------------------------------------------------------------------


def sparse(rng, rate: float, size) -> np.ndarray:
    """Values between 0 and 1, of which all but a few are 0."""
    return np.where(rng.random(size) < rate, rng.random(size), 0.0)


# Each with its true mean: what edit shares, places and repetition can look like.
MEANS = {
    "all 0": (lambda rng, n: np.zeros(n), 0.0),
    "all 1": (lambda rng, n: np.ones(n), 1.0),
    "even, 0.5": (lambda rng, n: rng.beta(2, 2, n), 0.5),
    "near 0 or 1, 0.5": (lambda rng, n: rng.beta(0.3, 0.3, n), 0.5),
    "eighths, 0.9": (lambda rng, n: rng.binomial(8, 0.9, n) / 8, 0.9),
    "eighths, 0.99": (lambda rng, n: rng.binomial(8, 0.99, n) / 8, 0.99),
    "9 of 10 are 0": (lambda rng, n: sparse(rng, 0.1, n), 0.05),
    "49 of 50 are 0": (lambda rng, n: sparse(rng, 0.02, n), 0.01),
}
DIFFERENCES = {
    "all 0": (lambda rng, n: np.zeros(n), 0.0),
    "all 1": (lambda rng, n: np.ones(n), 1.0),
    "even, none": (lambda rng, n: rng.beta(2, 2, n) - rng.beta(2, 2, n), 0.0),
    "eighths, 0.2": (lambda rng, n: (rng.binomial(8, 0.9, n) - rng.binomial(8, 0.7, n)) / 8, 0.2),
    "1 of 2 against 1 of 20": (lambda rng, n: sparse(rng, 0.5, n) - sparse(rng, 0.05, n), 0.225),
    "1 of 10 against as many": (lambda rng, n: sparse(rng, 0.1, n) - sparse(rng, 0.1, n), 0.0),
    "1 of 50 against none": (lambda rng, n: sparse(rng, 0.02, n), 0.01),
}


def misread(rng, n: int, rate: float, lost: float) -> np.ndarray:
    """Errors in codes of eight characters: each misread at a rate, and some codes lost as a whole."""
    errors = np.where(rng.random(n) < lost, 8, rng.binomial(8, rate, n))
    return np.stack([errors, np.full(n, 8)], axis=1)


def tokens(rng, n: int) -> np.ndarray:
    """Tokens and characters of answers of many lengths."""
    lengths = rng.integers(5, 60, n)
    return np.stack([lengths * (1.6 + rng.normal(0, 0.2, n)), lengths], axis=1)


RATIOS = {
    "CER 0.5": (lambda rng, n: misread(rng, n, 0.5, 0), 0.5),
    "CER 0.1": (lambda rng, n: misread(rng, n, 0.1, 0), 0.1),
    "CER 0.02": (lambda rng, n: misread(rng, n, 0.02, 0), 0.02),
    "CER 0.118, a tenth lost": (lambda rng, n: misread(rng, n, 0.02, 0.1), 0.118),
    "CER 0.95, nearly all lost": (lambda rng, n: misread(rng, n, 0.5, 0.9), 0.95),
    "tokens a character": (tokens, 1.6),
}


def drawn_coverage(values: Callable, true: float, interval: Callable[..., Estimate], number: int, times: int):
    """Coverage and mean width where there is an interval, and how often there is one."""
    rng = np.random.default_rng(number)
    found = [interval(values(rng, number), range(number)) for _ in range(times)]
    given = [each for each in found if each.low is not None]
    held = [holds((each.low, each.high), true) for each in given]
    widths = [each.high - each.low for each in given]
    return (*((float(np.mean(held)), float(np.mean(widths))) if given else (math.nan, math.nan)), len(given) / times)


def clustered_coverage(pictures: int, rate: float, alike: float, times: int) -> tuple[float, float]:
    """Six answers about each picture, right at rates of the pictures' own; `alike` is their correlation."""
    rng, held, widths = np.random.default_rng(pictures), [], []
    scale = 1 / alike - 1
    for _ in range(times):
        rates = rng.beta(rate * scale, (1 - rate) * scale, pictures)
        right = rng.random((pictures, 6)) < rates[:, None]
        found = bounded_mean(right.ravel(), np.repeat(np.arange(pictures), 6))
        held.append(holds((found.low, found.high), rate))
        widths.append(found.high - found.low)
    return float(np.mean(held)), float(np.mean(widths))


# ------------------------------------------------------------------------------------------------------------


def line(*cells) -> None:
    print(f"| {' | '.join(f'{cell:.3f}' if isinstance(cell, float) else str(cell) for cell in cells)} |")


def head(title: str, *cells: str) -> None:
    print(f"\n## {title}\n")
    line(*cells)
    line(*["---"] * len(cells))


def print_drawn(title: str, kinds: dict, interval: Callable[..., Estimate], times: int) -> None:
    head(title, "values", "number", "coverage", "mean width", "has an interval")
    for name, (values, true) in kinds.items():
        for number in NUMBERS:
            line(name, number, *drawn_coverage(values, true, interval, number, times))


def combinations(grid: Iterable[float]) -> list[tuple[float, float, float]]:
    return [(one, other, correlation) for one in grid for other in grid if other <= one for correlation in CORRELATIONS]


def main() -> None:
    head("A share (Wilson)", "share", "number", "coverage", "mean width")
    for rate in SHARES:
        for number in NUMBERS:
            line(rate, number, *share_coverage(number, rate))
    head("A difference between two shares of the same items", "shares", "correlation", "pairs",
         *(f"{name}: {what}" for name in METHODS for what in ("coverage", "mean width")))  # fmt: skip
    for one, other, correlation in combinations(SHARES):
        for number in NUMBERS:
            found = [pair_coverage(method, number, one, other, correlation) for method in METHODS]
            if None not in found:
                line(f"{one}, {other}", correlation, number, *(value for pair in found for value in pair))
    head("The same over all shares in steps of 0.1", "method", "pairs", "mean coverage", "least coverage", "mean width")
    for method in METHODS:
        for number in NUMBERS:
            found = [pair_coverage(method, number, *each) for each in combinations(GRID)]
            coverage, widths = zip(*filter(None, found), strict=True)
            line(method, number, float(np.mean(coverage)), min(coverage), float(np.mean(widths)))
    print_drawn("Means of values from 0 to 1", MEANS, bounded_mean, 2000)
    print_drawn("The same by the plain bootstrap", MEANS, plain, 500)
    print_drawn("Differences from -1 to 1", DIFFERENCES, bounded_difference, 1000)
    print_drawn("Ratios by the bootstrap", RATIOS, bootstrap, 500)
    head("Six answers about each picture", "share", "correlation", "pictures", "coverage", "mean width")
    for rate in (0.5, 0.9):
        for alike in (0.1, 0.5):
            for number in NUMBERS:
                line(rate, alike, number, *clustered_coverage(number, rate, alike, 1000))


def plain(values: np.ndarray, clusters: range) -> Estimate:
    """The percentile bootstrap of the mean, which the kit does not take for such values."""
    count = len(values)
    means = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), 2000) @ values / count
    return Estimate(float(values.mean()), *map(float, np.quantile(means, [0.025, 0.975])))


if __name__ == "__main__":
    main()
