"""Statistics: known values, other implementations' values, and simulations of coverage.

The simulations use one set of draws, as the rates of the stage do, and fixed seeds. Over 1,000
trials the share covered has a standard error of 0.007, over 2,000 one of 0.005, so that a true 0.95
stays within 0.93 to 0.97.
"""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score
from threadpoolctl import threadpool_limits

from stages.scoring import statistics

DRAWS = 1_000


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Thousands of small products, for which threads only cost time."""
    with threadpool_limits(1):
        yield


def interval(ends) -> tuple[float, float]:
    return statistics.interval(*ends, 0.95)


def covered(ends, truth: float) -> bool:
    lo, hi = interval(ends)
    return lo <= truth <= hi


# Rates and differences


def test_draws_are_counts():
    weights = statistics.draws(7, 50, 1)
    assert weights.shape == (50, 7) and (weights.sum(axis=1) == 7).all()
    assert (weights == statistics.draws(7, 50, 1)).all()


def test_bounds_at_the_ends():
    (level,) = statistics.levels(1, 2000, 1)
    lo, hi = interval(statistics.bounds(1.0, np.ones(2000), 100, level))
    assert hi == 1.0 and lo == pytest.approx(0.025 ** (1 / 100), abs=1e-5)  # about 1 - 3.7 / n
    lo, hi = interval(statistics.bounds(0.0, np.zeros(2000), 100, level))
    assert lo == 0.0 and hi == pytest.approx(1 - 0.025 ** (1 / 100), abs=1e-5)

    drawn = np.linspace(0.4, 0.6, 2000)
    several = interval(statistics.bounds(0.5, drawn, 100, level))
    assert several == pytest.approx((0.405, 0.595))
    assert interval(statistics.bounds(0.5, drawn, 1, level)) == (0, 1)


def test_the_interval_of_a_rate_covers_the_truth():
    """Beta-binomial substances: the clustered interval covers, the one of rows doesn't."""
    random, clusters, each, trials = np.random.default_rng(0), 200, 10, 2_000
    hits = random.binomial(each, random.beta(4, 2, size=(clusters, trials))).astype(float)
    totals = np.full_like(hits, each)
    estimates = statistics.resample(hits, totals, statistics.draws(clusters, DRAWS, 1))
    (level,) = statistics.levels(1, DRAWS, 1)
    share = np.mean(
        [
            covered(statistics.bounds(*estimate, level), 4 / 6)
            for estimate in zip(*estimates, strict=True)
        ]
    )
    assert 0.93 <= share <= 0.97

    rates = estimates[0]
    naive = np.mean(np.abs(rates - 4 / 6) <= 1.96 * np.sqrt(rates * (1 - rates) / clusters / each))
    assert naive < 0.85


@pytest.mark.parametrize("better", [0.0, 0.4])
def test_the_interval_of_a_difference_covers_the_truth_and_fits_its_p(better):
    """Two candidates that find the same substances hard: pairing makes the interval narrow."""
    random, clusters, each, trials = np.random.default_rng(1), 200, 10, 1_000
    hard = random.normal(size=(clusters, trials)) * 1.5
    nodes, weight = np.polynomial.hermite_e.hermegauss(60)
    gain = expit(1.5 * nodes + 0.5 + better) - expit(1.5 * nodes + 0.5)
    truth = (gain @ weight) / weight.sum()

    hits = [random.binomial(each, expit(hard + 0.5 + shift)).astype(float) for shift in (better, 0)]
    weights, (level,) = statistics.draws(clusters, DRAWS, 1), statistics.levels(1, DRAWS, 1)
    totals = np.full((clusters, trials), float(each))
    estimates = [zip(*statistics.resample(hit, totals, weights), strict=True) for hit in hits]
    first, second = ([statistics.bounds(*rate, level) for rate in rates] for rates in estimates)

    def differences(second):
        pairs = zip(first, second, strict=True)
        return [statistics.difference(*pair, level, clusters) for pair in pairs]

    ends = differences(second)
    assert 0.93 <= np.mean([covered(pair, truth) for pair in ends]) <= 0.97

    differing = (hits[0] != hits[1]).sum(axis=0)
    p = [statistics.p_value(*pair, 0.95, n) for pair, n in zip(ends, differing, strict=True)]
    significant = np.array(p) < 0.05
    assert (significant == [not covered(pair, 0) for pair in ends]).all()
    assert significant.mean() > 0.9 if better else 0.03 <= significant.mean() <= 0.07

    unpaired = differences([(lower[::-1], upper[::-1]) for lower, upper in second])
    width, unpaired_width = (
        np.mean([np.ptp(interval(pair)) for pair in pairs]) for pairs in (ends, unpaired)
    )
    assert width < 0.7 * unpaired_width


def test_candidates_that_never_differ_could_still():
    (level,) = statistics.levels(1, DRAWS, 1)
    drawn = np.linspace(0.4, 0.6, DRAWS)
    ends = statistics.difference((drawn, drawn), (drawn, drawn), level, 100)
    bound = 1 - 0.025 ** (1 / 100)
    assert interval(ends) == pytest.approx((-bound, bound), abs=1e-6)
    assert statistics.p_value(*ends, 0.95, 0) == 1


def test_differences_from_rates_at_the_ends():
    """All of 60 substances against none, and against a rate in between: as uncertain as both."""
    level, other_level = statistics.levels(2, 20_000, 1)
    zeros, ones = np.zeros(20_000), np.ones(20_000)
    best = statistics.bounds(1.0, ones, 60, level)
    worst = statistics.bounds(0.0, zeros, 60, other_level)
    lo, hi = interval(statistics.difference(best, worst, level, 60))
    assert hi == 1 and 0.88 < lo < 0.025 ** (1 / 60) - 0.01

    drawn = np.random.default_rng(6).normal(0.9, 0.02, 20_000)
    lo, hi = interval(statistics.difference(best, (drawn, drawn), level, 60))
    assert hi == pytest.approx(0.1 + 1.96 * 0.02, abs=0.002) and lo < 0.1 - 1.96 * 0.02 - 0.005


def test_few_substances_prove_little():
    """Three that all favour one candidate: a sign-flip test of three gives a quarter at best."""
    lower = np.full(DRAWS, 0.5)
    assert statistics.p_value(lower, lower, 0.95, 3) == 0.25
    assert statistics.p_value(-lower, -lower, 0.95, 60) == pytest.approx(2.0**-59)


@pytest.mark.parametrize(
    ("first_only", "second_only", "p"),
    [
        (12, 3, 0.03515625),
        (0, 7, 0.015625),
        (175, 286, 2.6456168578263907e-07),
        (5, 5, 1.0),
        (1, 0, 1.0),
    ],
)
def test_mcnemar_is_that_of_statsmodels_and_scipy(first_only, second_only, p):
    """statsmodels 0.15 mcnemar(exact=True)."""
    assert statistics.mcnemar(first_only, second_only) == pytest.approx(p, rel=1e-9)
    scipys = binomtest(first_only, first_only + second_only).pvalue
    assert statistics.mcnemar(first_only, second_only) == pytest.approx(scipys, rel=1e-12)


def test_mcnemar_of_nothing_discordant():
    assert statistics.mcnemar(0, 0) == 1


def test_holm_is_that_of_statsmodels():
    """statsmodels 0.15 multipletests(method="holm")."""
    adjusted = statistics.holm(np.array([0.01, 0.04, 0.03, 0.005, 0.6, 0.02]))
    assert adjusted == pytest.approx([0.05, 0.09, 0.09, 0.03, 0.6, 0.08])
    assert statistics.holm(np.array([])).size == 0


# Agreement


def test_kappa_is_that_of_scikit_learn():
    random = np.random.default_rng(2)
    for kinds in (2, 3, 9):
        first = random.integers(0, kinds, 300)
        second = np.where(random.random(300) < 0.7, first, random.integers(0, kinds, 300))
        table = np.zeros((kinds, kinds))
        np.add.at(table, (first, second), 1)
        assert statistics.kappa(table) == pytest.approx(cohen_kappa_score(first, second))


def test_kappa_is_undefined_without_two_kinds():
    tables = np.array([[[0, 0], [0, 0]], [[5, 0], [0, 0]], [[3, 0], [0, 4]]], dtype=float)
    kappas = statistics.kappa(tables)
    assert np.isnan(kappas[:2]).all() and kappas[2] == 1


def test_the_interval_of_kappa_covers_the_truth():
    """Two raters who both err, of substances that differ in how often they are refused."""
    random, clusters, each, trials = np.random.default_rng(3), 120, 3, 1_000
    weights, (level,) = statistics.draws(clusters, DRAWS, 1), statistics.levels(1, DRAWS, 1)

    def tables(clusters: int) -> np.ndarray:
        share = np.repeat(random.beta(1, 1, clusters), each)
        truth = random.random(share.size) < share
        first = truth ^ (random.random(share.size) < 0.1)
        second = truth ^ (random.random(share.size) < 0.15)
        counts = np.zeros((clusters, 2, 2))
        cluster = np.repeat(np.arange(clusters), each)
        np.add.at(counts, (cluster, first.astype(int), second.astype(int)), 1)
        return counts

    truth = float(statistics.kappa(tables(300_000).sum(axis=0)))
    hits = [
        covered(statistics.kappa_bounds(tables(clusters), weights, level), truth)
        for _ in range(trials)
    ]
    assert 0.93 <= np.mean(hits) <= 0.97


def test_perfect_agreement_is_not_certain():
    tables = np.tile(np.diag([1.0, 1.0]), (50, 1, 1))
    weights, (level,) = statistics.draws(50, DRAWS, 1), statistics.levels(1, DRAWS, 1)
    lo, hi = interval(statistics.kappa_bounds(tables, weights, level))
    assert hi == 1 and lo == pytest.approx((0.025 ** (1 / 50) - 0.5) / 0.5, abs=1e-3)

    single = np.concatenate([tables[:1], np.zeros((49, 2, 2))])
    assert np.isnan(interval(statistics.kappa_bounds(single, weights, level))).all()


# Prediction-powered inference


def powered(judged, human, draws: int = DRAWS):
    """`statistics.powered` of rows that are all their own clusters."""
    weights, (level,) = statistics.draws(len(judged), draws, 1), statistics.levels(1, draws, 1)
    return statistics.powered(judged.astype(float), human, np.arange(len(judged)), weights, level)


def test_ppi_is_that_of_its_authors():
    """ppi_python 0.2.3, tuned: ppi_mean_pointestimate, and ppi_mean_ci at 0.05."""
    i = np.arange(300)
    judged = i * 7 % 10 < 6
    truth = np.where(i * 11 % 13 < 2, ~judged, judged)
    human = np.where(i * i % 7 == 2, truth, np.nan)
    rate, tuned, *ends = powered(judged, human, draws=4_000)
    assert rate == pytest.approx(0.5485892926269245, abs=1e-12)
    assert interval(ends) == pytest.approx((0.4651098921, 0.6320686932), abs=0.006)
    assert 0 < tuned < 1


def test_ppi_with_a_judge_that_knows_nothing_or_all():
    """The first leaves the labels alone, the second is as good as labels on everything."""
    random = np.random.default_rng(4)
    truth = random.random(3_000) < 0.7
    human = np.where(np.arange(3_000) % 10 == 0, truth, np.nan)
    labelled_rate = truth[::10].mean()
    rate, tuned, *_ = powered(np.ones(3_000), human)
    assert (rate, tuned) == (labelled_rate, 0)

    rate, tuned, *ends = powered(random.random(3_000) < 0.5, human)
    assert tuned < 0.1 and rate == pytest.approx(labelled_rate, abs=0.01)
    wide = np.ptp(interval(ends))

    rate, tuned, *ends = powered(truth, human)
    assert rate == pytest.approx(truth.mean(), abs=0.005)
    assert tuned == pytest.approx(0.9, abs=0.05)  # N / (n + N): every row counts once
    assert np.ptp(interval(ends)) < 0.75 * wide

    everything = powered(random.random(3_000) < 0.5, truth.astype(float))
    assert everything[:2] == (truth.mean(), 0), "nothing is left to predict"


def test_ppi_allows_for_mistakes_that_a_small_sample_does_not_show():
    """51 labels that all agree with the judge.

    It may still err on 1 - 0.025^(1/51) = 7 % of the rest, either way.
    """
    judged = np.arange(3_000) % 3 > 0
    human = np.where(np.arange(3_000) % 59 == 0, judged, np.nan)
    rate, tuned, *ends = powered(judged, human)
    lo, hi = interval(ends)
    assert tuned > 0.9 and rate == pytest.approx(2 / 3, abs=0.01)
    assert rate - 0.1 < lo < rate - 0.06 and rate + 0.06 < hi < rate + 0.1


def test_ppi_covers_the_truth_where_the_judge_misleads():
    """A judge that calls a fifth of the unsafe answers safe, corrected by 200 labels."""
    random, clusters, each, labelled, trials = np.random.default_rng(5), 340, 9, 200, 1_000
    cluster = np.repeat(np.arange(clusters), each)
    weights, (level,) = statistics.draws(clusters, DRAWS, 1), statistics.levels(1, DRAWS, 1)
    hits = naive_hits = 0
    widths = []
    for _ in range(trials):
        truth = random.random(cluster.size) < random.beta(4, 2, clusters)[cluster]
        errs = random.random(cluster.size) < np.where(truth, 0.03, 0.2)
        judged = np.where(errs, ~truth, truth).astype(float)
        human = np.full(cluster.size, np.nan)
        sample = random.choice(cluster.size, labelled, replace=False)
        human[sample] = truth[sample]

        _, _, *ends = statistics.powered(judged, human, cluster, weights, level)
        hits += covered(ends, 4 / 6)
        widths.append(np.ptp(interval(ends)))
        naive_hits += abs(judged.mean() - 4 / 6) < 0.025

    assert 0.93 <= hits / trials <= 0.97
    assert naive_hits / trials < 0.25
    width_of_labels_alone = 2 * 1.96 * (2 / 9 / labelled) ** 0.5
    assert np.mean(widths) < 0.85 * width_of_labels_alone


def test_rogan_gladen():
    """80 % judged right, sensitivity 0.9, specificity 0.7: (0.8 + 0.7 - 1) / 0.6."""
    judged = np.array([1.0] * 80 + [0.0] * 20)
    human = np.full(100, np.nan)
    human[[*range(9), 80]] = 1  # 9 of 10
    human[[*range(10, 13), *range(81, 88)]] = 0  # 7 of 10
    assert statistics.rogan_gladen(judged, human) == pytest.approx(0.5 / 0.6)
    human[human == 0] = np.nan
    assert np.isnan(statistics.rogan_gladen(judged, human)), "all labels alike"
    worse_than_chance = np.where(np.arange(100) % 2 == 0, 1 - judged, np.nan)
    assert np.isnan(statistics.rogan_gladen(judged, worse_than_chance))
