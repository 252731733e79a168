"""Statistics against hand-made numbers, closed forms and what simulation covers."""

import math

import numpy as np
import pytest

import imp_kit
from imp_kit.experiments.stats import bootstrap, holm, mcnemar, wilson


@pytest.mark.parametrize(("right", "total"), [(0, 40), (7, 20), (20, 20), (1, 1), (500, 1000)])
def test_wilson_is_its_formula(right, total):
    """(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), written out by hand."""
    z, p = 1.959963984540054, right / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    share = wilson(right, total)
    assert (share.low, share.high) == pytest.approx((max(0, middle - half), min(1, middle + half)), abs=1e-9)
    assert (share.right, share.total, share.share) == (right, total, p)


def test_nothing_right_of_forty_still_allows_nine_percent():
    assert wilson(0, 40).high == pytest.approx(0.0876, abs=1e-3)
    assert str(wilson(0, 40)) == "0.0% (0.0% – 8.8%)"


def test_wilson_covers_where_the_plain_interval_does_not():
    """At p = 0.02 and n = 20: exact coverage, summed over the binomial."""
    n, p = 20, 0.02
    chances = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    covered = sum(chance for k, chance in enumerate(chances) if wilson(k, n).low <= p <= wilson(k, n).high)
    assert covered > 0.9


@pytest.mark.parametrize(("right", "total"), [(1, 0), (0, 0), (3, 2), (-1, 5)])
def test_no_proportion(right, total):
    with pytest.raises(imp_kit.SettingError, match="no proportion"):
        wilson(right, total)


def test_mcnemar_counts_only_where_they_differ():
    one, other = [True] * 9 + [False] * 1 + [True] * 50, [False] * 9 + [True] * 1 + [True] * 50
    assert mcnemar(one, other) == mcnemar(other, one) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(one[:10], other[:10]) == mcnemar(one, other)
    assert mcnemar([True, False], [True, False]) == 1.0
    with pytest.raises(imp_kit.SettingError, match="not pairs"):
        mcnemar([True], [True, False])


def test_the_bootstrap_draws_clusters():
    """Ten equal answers about each picture are as much evidence as one: the interval must not shrink with them."""
    rng = np.random.default_rng(3)
    each = rng.normal(size=30)
    single = bootstrap(each, range(30))
    repeated = bootstrap(np.repeat(each, 10), np.repeat(np.arange(30), 10))
    assert repeated == pytest.approx(single, abs=0.05)
    alone = bootstrap(np.repeat(each, 10), range(300))
    assert alone[1] - alone[0] < 0.5 * (repeated[1] - repeated[0])
    normal = each.mean() + np.array([-1, 1]) * 1.96 * each.std() / math.sqrt(30)
    assert single == pytest.approx(tuple(normal), abs=0.06)


def test_the_bootstrap_of_a_ratio_and_its_seed():
    errors, lengths = np.array([1, 0, 2, 0, 8.0]), np.array([8, 8, 8, 8, 8.0])
    rows = np.stack([errors, lengths], 1)
    low, high = bootstrap(rows, "abcde", lambda drawn: drawn[:, 0].sum() / drawn[:, 1].sum(), seed=1)
    assert 0 <= low < errors.sum() / lengths.sum() < high <= 1
    assert bootstrap(errors, "abcde", seed=2) == bootstrap(errors, "abcde", seed=2)
    for values, clusters in (([], []), ([1.0], ["a", "b"])):
        with pytest.raises(imp_kit.SettingError, match="one cluster"):
            bootstrap(values, clusters)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(imp_kit.SettingError, match="between 0 and 1"):
        holm([0.1, 1.2])
