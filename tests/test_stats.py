"""Statistics against hand-made numbers, closed forms and what simulation covers."""

import math

import numpy as np
import pytest
import scipy.stats
from intervals import (
    DIFFERENCES,
    GRID,
    MEANS,
    RATIOS,
    clustered_coverage,
    combinations,
    drawn_coverage,
    newcombe,
    pair_coverage,
    share_coverage,
)

import imp_kit
from imp_kit.experiments.stats import (
    DRAWS,
    Estimate,
    bootstrap,
    bounded_difference,
    bounded_mean,
    difference,
    holm,
    mcnemar,
    wilson,
)


@pytest.mark.parametrize(("right", "total"), [(0, 40), (7, 20), (20, 20), (1, 1), (500, 1000)])
def test_wilson_is_its_formula(right, total):
    """(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), written out by hand."""
    z, p = 1.959963984540054, right / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    share = wilson(right, total)
    assert (share.low, share.high) == pytest.approx((max(0, middle - half), min(1, middle + half)), abs=1e-9)
    assert (share.right, share.total, share.share) == (right, total, p)


# right, total, low, high: proportion_confint(right, total, method="wilson") of statsmodels 0.15.0.
STATSMODELS = (
    (0, 1, 0.000000000000, 0.793450685623),
    (1, 1, 0.206549314377, 1.000000000000),
    (0, 5, 0.000000000000, 0.434482464783),
    (2, 5, 0.117620774233, 0.769275718724),
    (1, 20, 0.008881448801, 0.236131193447),
    (7, 20, 0.181191824101, 0.567145723315),
    (19, 20, 0.763868806553, 0.991118551199),
    (20, 20, 0.838874841947, 1.000000000000),
    (0, 40, 0.000000000000, 0.087621601197),
    (13, 40, 0.200845022318, 0.479822538101),
    (30, 60, 0.377350242416, 0.622649757584),
    (59, 60, 0.911448702724, 0.997051840205),
    (3, 100, 0.010254524024, 0.084519364291),
    (50, 100, 0.403831530366, 0.596168469634),
    (97, 100, 0.915480635709, 0.989745475976),
    (1, 300, 0.000588657722, 0.018636693695),
    (150, 300, 0.443779516134, 0.556220483866),
    (299, 300, 0.981363306305, 0.999411342278),
    (123, 1000, 0.104074143251, 0.144811232647),
    (500, 1000, 0.469069600368, 0.530930399632),
)


@pytest.mark.parametrize(("right", "total", "low", "high"), STATSMODELS)
def test_wilson_is_that_of_statsmodels(right, total, low, high):
    share = wilson(right, total)
    assert (share.low, share.high) == pytest.approx((low, high), abs=1e-11)


def test_nothing_right_of_forty_still_allows_nine_percent():
    assert wilson(0, 40).high == pytest.approx(0.0876, abs=1e-3)
    assert str(wilson(0, 40)) == "0.0% (0.0% – 8.8%)"


def test_wilson_covers_where_the_plain_interval_does_not():
    """At p = 0.02 and n = 20: exact coverage, summed over the binomial."""
    n, p = 20, 0.02
    chances = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    covered = sum(chance for k, chance in enumerate(chances) if wilson(k, n).low <= p <= wilson(k, n).high)
    assert covered > 0.9


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("total", [20, 60, 300])
def test_wilson_covers_in_simulation(total, rate):
    """Each interval once, then 4,000 samples: 95 % on average over rates, and no less than 90 % at any of these."""
    shares = [wilson(right, total) for right in range(total + 1)]
    drawn = np.random.default_rng(total).binomial(total, rate, 4000)
    assert np.mean([shares[right].low <= rate <= shares[right].high for right in drawn]) > 0.9


def test_wilson_covers_95_percent_over_all_rates():
    rng = np.random.default_rng(0)
    rates = rng.uniform(0, 1, 20_000)
    shares = [wilson(right, 60) for right in range(61)]
    drawn = zip(rng.binomial(60, rates), rates, strict=True)
    held = [shares[right].low <= rate <= shares[right].high for right, rate in drawn]
    assert np.mean(held) == pytest.approx(0.95, abs=0.006)  # four standard errors


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


@pytest.mark.parametrize(
    ("only_one", "only_other", "p"),  # mcnemar(exact=True) of statsmodels 0.15.0
    [(9, 1, 0.021484375), (30, 5, 2.2361520677804947e-05), (5, 5, 1.0), (12, 3, 0.03515625), (0, 6, 0.03125)],
)
def test_mcnemar_is_that_of_statsmodels(only_one, only_other, p):
    one = [True] * (only_one + 7) + [False] * (only_other + 4)
    other = [False] * only_one + [True] * (7 + only_other) + [False] * 4
    assert mcnemar(one, other) == pytest.approx(p, rel=1e-12)


def test_mcnemar_finds_nothing_where_there_is_nothing():
    """Conditions that differ by chance alone: at most 5 % of the p-values are below 5 %. And 60 pairs have power."""
    rng = np.random.default_rng(0)
    alike = [mcnemar(*(rng.random((2, 60)) < 0.4)) for _ in range(1000)]
    assert np.mean(np.array(alike) < 0.05) <= 0.05
    kinds = rng.choice(4, (1000, 60), p=[0.30, 0.05, 0.35, 0.30])  # right in one only, in the other only, both, neither
    found = [mcnemar((row == 0) | (row == 2), (row == 1) | (row == 2)) for row in kinds]
    assert np.mean(np.array(found) < 0.05) > 0.85


def test_the_bootstrap_is_that_of_scipy():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        lengths = rng.integers(4, 12, 50)
        errors = rng.binomial(lengths, 0.3)
        tail = scipy.stats.norm.cdf(math.sqrt(50 / 49) * scipy.stats.t.ppf(0.025, 49))  # Hesterberg's
        settings = {"method": "percentile", "n_resamples": DRAWS, "rng": seed, "confidence_level": 1 - 2 * tail}
        mean = scipy.stats.bootstrap((errors,), np.mean, **settings).confidence_interval
        ours = bootstrap(errors, range(50))
        assert (ours.value, ours.low, ours.high) == pytest.approx((errors.mean(), mean.low, mean.high), abs=0.04)
        theirs = scipy.stats.bootstrap(
            (errors, lengths), lambda e, n, axis: e.sum(axis) / n.sum(axis), paired=True, vectorized=True, **settings
        ).confidence_interval
        ours = bootstrap(np.stack([errors, lengths], 1), range(50))
        assert ours.value == errors.sum() / lengths.sum()
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)


@pytest.mark.slow
def test_the_bootstrap_covers_in_simulation():
    """Six questions about each of 40 pictures, which differ among themselves: drawn as pictures, and wrongly alone."""
    rng, held, alone = np.random.default_rng(0), 0, 0
    for _ in range(200):
        rates = rng.beta(1, 1, 40)  # of the pictures; on average 0.5
        right = rng.random((40, 6)) < rates[:, None]
        pictures = bootstrap(right.ravel(), np.repeat(np.arange(40), 6))
        held += pictures.low <= 0.5 <= pictures.high
        single = bootstrap(right.ravel(), range(240))
        alone += single.low <= 0.5 <= single.high
    assert held / 200 == pytest.approx(0.94, abs=0.035)  # percentile intervals of 40 clusters are a little narrow
    assert alone / 200 < 0.8


def test_the_bootstrap_draws_clusters():
    """Ten equal answers about each picture are as much evidence as one: the interval must not shrink with them."""
    rng = np.random.default_rng(3)
    each = rng.normal(size=30)
    single = bootstrap(each, range(30))
    repeated = bootstrap(np.repeat(each, 10), np.repeat(np.arange(30), 10))
    assert (repeated.low, repeated.high) == pytest.approx((single.low, single.high), abs=0.05)
    assert repeated.value == pytest.approx(single.value) == pytest.approx(each.mean())
    alone = bootstrap(np.repeat(each, 10), range(300))
    assert alone.high - alone.low < 0.5 * (repeated.high - repeated.low)
    normal = each.mean() + np.array([-1, 1]) * 1.96 * each.std() / math.sqrt(30)
    assert (single.low, single.high) == pytest.approx(tuple(normal), abs=0.06)


def test_the_bootstrap_of_a_ratio_and_its_seed():
    errors, lengths = np.array([1, 0, 2, 0, 8, 3, 4.0]), np.full(7, 8.0)
    rows = np.stack([errors, lengths], 1)
    found = bootstrap(rows, "abcdefg", seed=1)
    assert 0 <= found.low < errors.sum() / lengths.sum() == found.value < found.high <= 1
    assert bootstrap(errors, "abcdefg", seed=2) == bootstrap(errors, "abcdefg", seed=2)
    for values, clusters in (([], []), ([1.0], ["a", "b"])):
        with pytest.raises(imp_kit.SettingError, match="one cluster"):
            bootstrap(values, clusters)


def test_the_bootstrap_of_a_difference_of_ratios_is_paired():
    """Tokens a character in two languages of the same pictures: what all pictures share cancels out."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 40, (60, 2))
    each = rng.normal(0, 1, 60)  # how many tokens a character a picture takes in both languages
    tokens = lengths * np.stack([each + 1.6, each + 0.2], 1)
    rows = np.stack([tokens[:, 0], lengths[:, 0], tokens[:, 1], lengths[:, 1]], 1)
    paired = bootstrap(rows, range(60), difference)
    apart = [bootstrap(rows[:, columns], range(60)) for columns in ([0, 1], [2, 3])]
    assert paired.value == pytest.approx(apart[0].value - apart[1].value)
    assert paired.low < paired.value < paired.high
    assert paired.high - paired.low < min(one.high - one.low for one in apart)


def test_an_estimate_is_told_with_its_interval():
    found = Estimate(0.123, 0.1, 1 / 3)
    assert str(found) == f"{found}" == "0.12 (0.10 – 0.33)"
    assert f"{found:.1%}" == "12.3% (10.0% – 33.3%)"
    assert f"{found:+.1f}" == "+0.1 (+0.1 to +0.3)"
    assert f"{Estimate(0.123, None, None):+.1%}" == "+12.3% (no interval)"


def test_draws_with_nothing_to_divide_by_are_left_out():
    """Drawn without the first cluster, the others have nothing to divide by."""
    rows = [(6.0, 2.0), *((float(extra), 0.0) for extra in range(7))]
    found = bootstrap(rows, range(8))
    assert found.value == 13.5
    assert 3 <= found.low < found.value < found.high < math.inf
    with pytest.raises(imp_kit.SettingError, match="nothing to divide by"):
        bootstrap([(1.0, 0.0), (2.0, 0.0)], "ab")


@pytest.mark.parametrize(
    ("p_values", "adjusted"),  # multipletests(method="holm") of statsmodels 0.15.0
    [
        ([0.6021, 0.4354], [0.8708, 0.8708]),
        ([0.0744, 0.0174, 0.1336], [0.1488, 0.0522, 0.1488]),
        ([0.0664, 0.4815, 0.0279, 0.1083, 0.1985], [0.2656, 0.4815, 0.1395, 0.3249, 0.397]),
    ],
)
def test_holm_is_that_of_statsmodels(p_values, adjusted):
    assert holm(p_values) == pytest.approx(adjusted)


@pytest.mark.parametrize(
    "errors", [[0] * 60, [8] * 60, [1, 0], [0] * 56 + [1, 2, 3, 4], [1, 2, 3, 4, 5], [0] * 20 + [8] * 4]
)
def test_the_bootstrap_gives_no_interval_where_too_few_are_unlike_the_commonest(errors):
    rows = [(error, 8) for error in errors]
    found = bootstrap(rows, range(len(rows)))
    assert (found.value, found.low, found.high) == (sum(errors) / len(errors) / 8, None, None)
    # Eight times each in its own cluster: no new evidence.
    again = bootstrap(rows * 8, list(range(len(rows))) * 8)
    assert (again.value, again.low) == (pytest.approx(found.value), None)
    assert bootstrap([*rows, (9, 8), (10, 8), (11, 8), (12, 8), (13, 8)], range(len(rows) + 5)).low is not None


def pairs(both: int, one: int, other: int, neither: int) -> list[int]:
    """The differences between two conditions, of items that are right in both, in one, in the other, in neither."""
    return [0] * both + [1] * one + [-1] * other + [0] * neither


def of_pairs(*table: int) -> Estimate:
    return bounded_difference(pairs(*table), range(sum(table)))


def test_paired_differences_have_their_published_intervals():
    """Of Cavo 2012 in Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables, 2017, chapter 8; the
    figures are those of the tests of their R package contingencytables. Newcombe's is only compared with."""
    found = of_pairs(59, 6, 16, 80)
    assert (found.value, found.low, found.high) == pytest.approx((-0.0621, -0.1240, -0.0054), abs=6e-5)
    assert newcombe(59, 6, 16, 80) == pytest.approx((-0.1186, -0.0046), abs=6e-5)


@pytest.mark.parametrize(
    "table", [(5, 3, 0, 2), (0, 3, 0, 0), (0, 0, 0, 3), (20, 9, 4, 27), (0, 1, 0, 0), (1, 7, 7, 0)]
)
def test_a_paired_difference_is_what_the_score_test_does_not_reject(table):
    """The test of each difference, its likeliest shares found on a grid of shares, not by a formula."""
    _, one, other, _ = table
    count, found, grid = sum(table), of_pairs(*table), np.linspace(0, 1, 200_001)[1:-1]
    tried = [*np.linspace(-0.999, 0.999, 41), found.low - 1e-3, found.low + 1e-3, found.high - 1e-3, found.high + 1e-3]
    for true in tried:
        less = grid[(grid + true > 0) & (2 * grid + true < 1)]  # the share of -1; that of 1 is larger by the difference
        if not len(less):
            continue
        more, same = less + true, 1 - 2 * less - true
        likely = one * np.log(more) + other * np.log(less) + (count - one - other) * np.log(same)
        variance = (2 * less[likely.argmax()] + true - true**2) / count
        statistic = abs((one - other) / count - true) / math.sqrt(variance)
        if abs(statistic - 1.959964) > 0.02:
            assert (found.low <= true <= found.high) == (statistic < 1.959964), true


def test_a_paired_difference_says_what_mcnemar_says_of_three_pairs():
    """All three right in one condition and wrong in the other: p = 0.25, so no difference is possible, too."""
    assert f"{of_pairs(0, 3, 0, 0):+.1%}" == "+100.0% (-12.3% to +100.0%)"
    assert f"{of_pairs(0, 0, 3, 0):+.1%}" == "-100.0% (-100.0% to +12.3%)"
    assert f"{of_pairs(3, 0, 0, 0):+.1%}" == "+0.0% (-56.1% to +56.1%)"
    rng = np.random.default_rng(0)
    for one, other in rng.integers(0, 20, (200, 2)):
        found = of_pairs(10, one, other, 10)
        flipped = of_pairs(10, other, one, 10)
        assert (found.low, found.high) == pytest.approx((-flipped.high, -flipped.low))
        assert -1 <= found.low <= found.value <= found.high <= 1
        # The asymptotic McNemar test is the score test of no difference.
        if one + other:
            assert (found.low <= 0 <= found.high) == ((one - other) ** 2 / (one + other) <= 1.959964**2)


@pytest.mark.slow
def test_paired_differences_cover_exactly():
    """Summed over all tables: 95 % and more on average over shares and correlations; 89 % at least of three pairs, 92 %
    of ten, 93 % of sixty."""
    for number, least, most in ((3, 0.89, 0.99), (10, 0.92, 0.98), (60, 0.93, 0.96)):
        found = [pair_coverage("Tango (the kit's)", number, *each) for each in combinations(GRID)]
        coverage = [each[0] for each in found if each]
        assert len(coverage) > 70
        assert min(coverage) >= least
        assert 0.95 <= np.mean(coverage) <= most
    # What the plain bootstrap, which stood here, makes of such shares.
    assert min(pair_coverage("bootstrap", 3, 0.9, 0, 0)[0], pair_coverage("bootstrap", 10, 1, 0.9, 0)[0]) < 0.7


def test_shares_cover_exactly():
    """Summed over the binomial at shares in steps of a tenth: 95 % on average, 89 % at least."""
    for number in (3, 10, 60):
        coverage = [share_coverage(number, rate)[0] for rate in GRID]
        assert min(coverage) >= 0.89
        assert np.mean(coverage) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("kind", MEANS)
def test_means_cover_in_simulation(kind):
    """At least 90 %, whatever the values look like, within four standard errors of 2,000 draws."""
    values, true = MEANS[kind]
    for number in (3, 10, 60):
        coverage, _, given = drawn_coverage(values, true, bounded_mean, number, 2000)
        assert given == 1
        assert coverage >= 0.9 - 4 * math.sqrt(0.9 * 0.1 / 2000), number


@pytest.mark.slow
@pytest.mark.parametrize("kind", DIFFERENCES)
def test_differences_cover_in_simulation(kind):
    """At least 93 %, within four standard errors of 1,000 draws."""
    values, true = DIFFERENCES[kind]
    for number in (3, 10, 60):
        coverage, _, given = drawn_coverage(values, true, bounded_difference, number, 1000)
        assert given == 1
        assert coverage >= 0.93 - 4 * math.sqrt(0.93 * 0.07 / 1000), number


@pytest.mark.slow
@pytest.mark.parametrize("kind", RATIOS)
def test_ratios_cover_where_they_have_an_interval(kind):
    """At least 90 %, within four standard errors; of three items none has one."""
    values, true = RATIOS[kind]
    assert drawn_coverage(values, true, bootstrap, 3, 100)[2] == 0
    coverage, _, given = drawn_coverage(values, true, bootstrap, 60, 200)
    assert given > 0.5
    assert coverage >= 0.9 - 4 * math.sqrt(0.9 * 0.1 / 200)


def test_shares_of_clusters_cover_in_simulation():
    for rate, alike in ((0.5, 0.1), (0.9, 0.5)):
        for pictures in (3, 10):
            coverage, _ = clustered_coverage(pictures, rate, alike, 1000)
            assert coverage >= 0.93 - 4 * math.sqrt(0.93 * 0.07 / 1000)


def test_a_mean_of_zeros_and_ones_has_wilsons_interval():
    for right, total in ((0, 3), (3, 3), (1, 1), (7, 20), (60, 60)):
        found, share = bounded_mean([1] * right + [0] * (total - right), range(total)), wilson(right, total)
        assert (found.value, found.low, found.high) == pytest.approx((share.share, share.low, share.high))


def test_a_mean_of_many_values_has_students_interval():
    values = np.random.default_rng(0).beta(2, 3, 4000)
    found = bounded_mean(values, range(4000))
    theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=2e-4)
    other = np.random.default_rng(1).beta(2, 2, 4000)
    found = bounded_difference(values - other, range(4000))
    theirs = scipy.stats.ttest_1samp(values - other, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=2e-4)


def test_answers_about_one_picture_count_as_one_where_they_are_alike():
    """Six equal answers about each picture are as much evidence as one, and independent ones are more."""
    right = [1, 0, 1, 1, 1, 0, 1, 1, 1, 0]
    repeated = bounded_mean(np.repeat(right, 6), np.repeat(range(10), 6))
    single = wilson(7, 10)
    assert (repeated.low, repeated.high) == pytest.approx((single.low, single.high), abs=0.04)  # Student's quantile
    apart = bounded_mean(np.repeat(right, 6), range(60))
    assert apart.high - apart.low < 0.6 * (repeated.high - repeated.low)
    alike = bounded_mean(np.ones(60), np.repeat(range(10), 6))
    assert (alike.low, alike.high) == (pytest.approx(0.66, abs=0.01), 1)


def test_values_out_of_their_range_have_no_such_interval():
    found = bounded_mean([0, 50, 100.00000001], "abc", most=100)
    assert (found.value, found.high <= 100) == (pytest.approx(50), True)
    tenth = bounded_mean([0, 5, 10], "abc", most=10)
    assert (found.low, found.high) == pytest.approx((10 * tenth.low, 10 * tenth.high))
    assert bounded_difference([5, 3, -2], "abc", most=100).value == pytest.approx(2)
    for call in (bounded_mean, bounded_difference):
        with pytest.raises(imp_kit.SettingError, match="not between"):
            call([0.5, 1.5], "ab")
        with pytest.raises(imp_kit.SettingError, match="not between"):
            call([math.nan, 0.5], "ab")
        with pytest.raises(imp_kit.SettingError, match="one cluster"):
            call([], [])
    with pytest.raises(imp_kit.SettingError, match="not between 0 and 1"):
        bounded_mean([-0.5, 0.5], "ab")


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(imp_kit.SettingError, match="between 0 and 1"):
        holm([0.1, 1.2])
