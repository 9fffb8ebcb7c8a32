"""Rates, differences and agreement with intervals that resample whole substances, not answers.

    weights = draws(len(hits), 2000, random_seed=2025)
    points, replicates, clusters = resample(hits, totals, weights)       # hits: (substances, rates)
    level = levels(1, 2000, random_seed=2025)[0]
    lower, upper = bounds(points[0], replicates[0], clusters[0], level)
    interval(lower, upper, 0.95)                                         # (lo, hi)

Answers about one substance share its name, its label and what the model learned of it, so they are
not independent trials. The cluster bootstrap draws substances with replacement (Field & Welsh 2007)
and takes percentiles. All candidates share the draws, which makes their intervals comparable.

If every row was decided alike, so is every replicate, and the bootstrap would call a rate of 0 or 1
certain. There the exact bound of Clopper and Pearson (1934) is used, each substance one trial.
Statistics that rise with several rates (their harmonic mean, minimum, mean) are computed on all
lower bounds of a replicate, and again on all upper ones: "melding" of confidence distributions
(Fay, Proschan & Brittain 2015, Biometrics 71:146-156, doi:10.1111/biom.12231). So the uncertainty
of each rate carries over. Rates that the bootstrap moves keep their correlation; bounds at 0 and 1
are drawn independently.

Two candidates are compared on the same draws, so what both find hard cancels out. Human labels
enter through `powered`, prediction-powered inference.
"""

import numpy as np


def draws(clusters: int, replicates: int, random_seed: int) -> np.ndarray:
    """How often each cluster is drawn in each replicate: counts, shape (replicates, clusters).

    Every row sums to `clusters`.
    """
    random = np.random.Generator(np.random.PCG64(random_seed))
    picks = random.integers(0, clusters, size=(replicates, clusters))
    flat = picks + clusters * np.arange(replicates)[:, None]
    counts = np.bincount(flat.ravel(), minlength=replicates * clusters)
    return counts.reshape(replicates, clusters).astype(np.float64)


def cluster_sums(cluster: np.ndarray, columns: np.ndarray, clusters: int) -> np.ndarray:
    """Sums of `columns` (rows, k) by `cluster` (rows,), numbers below `clusters`: (clusters, k)."""
    sums = np.zeros((clusters, columns.shape[1]))
    np.add.at(sums, cluster, columns)
    return sums


def resample(
    hits: np.ndarray, totals: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """k rates from their `hits` and `totals` by cluster, both (clusters, k), and `draws`' weights.

    Returns the rates, shape (k,), their replicates, (k, replicates), and the number of clusters
    each rate is based on, (k,). A rate of no rows is NaN.
    """
    points = ratio(hits.sum(axis=0), totals.sum(axis=0))
    replicates = ratio((weights @ hits).T, (weights @ totals).T)
    return points, replicates, (totals > 0).sum(axis=0)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, NaN where the denominator is 0."""
    nan = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=nan, where=np.asarray(denominator) > 0)


def levels(rates: int, replicates: int, random_seed: int) -> np.ndarray:
    """Probabilities evenly over 0..1, shuffled for each rate: shape (rates, replicates)."""
    even = np.linspace(0, 1, replicates)  # the p-quantile of these is p
    # The second number keeps this stream apart from that of `draws`.
    random = np.random.Generator(np.random.PCG64([random_seed, 1]))
    return random.permuted(np.tile(even, (rates, 1)), axis=1)


def bounds(
    rate: float, replicates: np.ndarray, clusters: int, level: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Replicates whose quantiles are the lower and the upper end of the rate's interval.

    These are `replicates`, shape (replicates,), unless the rate is exactly 0 or 1, where no
    replicate differs. There the open end follows Clopper and Pearson's bound for `clusters` trials
    at each `level`: of n successes in n the lower bound is distributed as Beta(n, 1), of none in n
    the upper one as Beta(1, n). A rate in between from a single cluster says nothing about others:
    0 to 1.
    """
    zeros, ones = np.zeros_like(replicates), np.ones_like(replicates)
    if rate in (0.0, 1.0):
        open_end = level ** (1 / clusters)
        return (open_end, ones) if rate == 1.0 else (zeros, 1 - open_end)
    return (zeros, ones) if clusters == 1 else (replicates, replicates)


def interval(lower: np.ndarray, upper: np.ndarray, confidence: float) -> tuple[float, float]:
    """Percentile interval from replicates of its lower and its upper end, NaNs left out.

    Returns (NaN, NaN) if all of either are NaN.
    """
    lo, hi = (replicates[~np.isnan(replicates)] for replicates in (lower, upper))
    if not lo.size or not hi.size:
        return float("nan"), float("nan")
    low, high = np.quantile(lo, (1 - confidence) / 2), np.quantile(hi, (1 + confidence) / 2)
    return float(low), float(high)


def difference(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    level: np.ndarray,
    clusters: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper replicates of first - second, each a pair of `bounds` on the same draws.

    `clusters` is the number both are based on. Two candidates that never differ could still do so
    on other substances: then the share of clusters that differ has Clopper and Pearson's bound.
    """
    lower, upper = first[0] - second[1], first[1] - second[0]
    if lower.any() or upper.any():
        return lower, upper
    unseen = 1 - level ** (1 / clusters)
    return -unseen, unseen


def p_value(lower: np.ndarray, upper: np.ndarray, confidence: float, differing: int) -> float:
    """Two-sided p of no difference, from the replicates of `difference`.

    It is below 1 - confidence exactly if the interval leaves out 0. The replicates are taken as
    normal between their median and the end of the interval that faces 0 (Altman & Bland 2011,
    BMJ 343:d2304). Unlike a share of replicates, such a p can be smaller than 1 / replicates, so
    Holm's correction doesn't lift it above 0.05 for lack of replicates. It is never below
    2^(1 - differing), the smallest p of a sign-flip test with that many differing clusters.
    """
    from scipy.special import ndtr, ndtri

    if not differing:
        return 1.0
    facing = lower if np.nanmedian(lower) + np.nanmedian(upper) > 0 else -upper
    median, end = np.nanquantile(facing, (0.5, (1 - confidence) / 2))
    if median <= 0:
        return 1.0
    errors = ndtri((1 + confidence) / 2) * median / (median - end) if median > end else np.inf
    return float(max(2 * ndtr(-errors), 2.0 ** (1 - differing)))


def mcnemar(first_only: int, second_only: int) -> float:
    """p of the exact McNemar test (1947), from the rows that only one of two candidates got right.

    It treats rows as independent.
    """
    # scipy.stats.binomtest gives the same but takes a second to import.
    from scipy.special import bdtr

    discordant = first_only + second_only
    return min(1.0, 2 * float(bdtr(min(first_only, second_only), discordant, 0.5)))


def holm(p: np.ndarray) -> np.ndarray:
    """p values, shape (tests,), adjusted by Holm (1979).

    The chance of any false one below 0.05 stays below 5 %.
    """
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(np.minimum(1, p[order] * np.arange(len(p), 0, -1)))
    return adjusted[np.argsort(order, kind="stable")]


def kappa(tables: np.ndarray) -> np.ndarray:
    """Cohen's kappa (1960) of confusion tables, shape (..., k, k).

    NaN where it is undefined: an empty table, or both raters gave one and the same answer to all.
    """
    total = tables.sum(axis=(-2, -1))
    observed = ratio(np.trace(tables, axis1=-2, axis2=-1), total)
    chance = ratio((tables.sum(axis=-1) * tables.sum(axis=-2)).sum(axis=-1), total**2)
    return ratio(observed - chance, 1 - chance)


def kappa_bounds(
    tables: np.ndarray, weights: np.ndarray, level: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Replicates whose quantiles are the ends of kappa's interval, each (replicates,).

    `tables` are confusion tables by cluster, (clusters, k, k). Raters who agree everywhere could
    still differ on other substances: then their agreement has Clopper and Pearson's bound.
    """
    whole = tables.sum(axis=0)
    clusters = (tables.sum(axis=(1, 2)) > 0).sum()
    if clusters < 2 or np.isnan(kappa(whole)):
        return np.full(len(weights), np.nan), np.full(len(weights), np.nan)

    replicates = kappa((weights @ tables.reshape(len(tables), -1)).reshape(-1, *whole.shape))
    if np.trace(whole) < whole.sum():
        return replicates, replicates
    chance = (whole.sum(axis=0) * whole.sum(axis=1)).sum() / whole.sum() ** 2
    return (level ** (1 / clusters) - chance) / (1 - chance), np.ones_like(level)


def powered(
    judged: np.ndarray,
    human: np.ndarray,
    cluster: np.ndarray,
    weights: np.ndarray,
    level: np.ndarray,
) -> tuple[float, float, np.ndarray, np.ndarray]:
    """A rate by prediction-powered inference, PPI++ (Angelopoulos, Duchi & Zrnic 2023, 2311.01453).

    `judged` (rows,) is the judge's decision, 0 or 1; `human` (rows,) that of people, 0..1, NaN
    where there is no label. The labelled rows must be a random sample. Returns the rate, lambda
    (the judge's weight: 0 if it doesn't predict the labels) and the rate's lower and upper
    replicates. Kinds of mistakes that the sample doesn't show have Clopper and Pearson's bound.
    """
    labelled = ~np.isnan(human)
    n, others = labelled.sum(), (~labelled).sum()
    spread = np.var(judged, ddof=1) * (1 + n / others) if others else 0.0
    tuned = 0.0
    if spread > 0:
        covariance = np.cov(human[labelled], judged[labelled], ddof=0)[0, 1]
        tuned = float(np.clip(covariance / spread, 0, 1))

    def mean(sums: np.ndarray) -> np.ndarray:
        right, judged_in, judged_out, count_in, count_out = sums.T
        rest = tuned * (ratio(judged_out, count_out) - ratio(judged_in, count_in)) if tuned else 0.0
        return np.clip(ratio(right, count_in) + rest, 0, 1)

    right = np.where(labelled, human, 0)
    columns = [right, judged * labelled, judged * ~labelled, labelled, ~labelled]
    sums = cluster_sums(cluster, np.column_stack(columns), weights.shape[1])
    rate, replicates = float(mean(sums.sum(axis=0))), mean(weights @ sums)
    clusters = int((sums[:, 3] > 0).sum())
    if not tuned:
        return rate, tuned, *bounds(rate, replicates, clusters, level)

    unseen, mistakes = 1 - level ** (1 / clusters), human[labelled] - judged[labelled]
    lower = replicates if (mistakes < 0).any() else np.maximum(replicates - unseen, 0)
    upper = replicates if (mistakes > 0).any() else np.minimum(replicates + unseen, 1)
    return rate, tuned, lower, upper


def rogan_gladen(judged: np.ndarray, human: np.ndarray) -> float:
    """The rate of `judged` corrected by the judge's sensitivity and specificity on the labels.

    Rogan & Gladen 1978; arguments as for `powered`. NaN if the labels are all alike, or if the
    judge is no better than chance.
    """
    labelled = ~np.isnan(human)
    right, decision = human[labelled], judged[labelled]
    if not 0 < right.sum() < len(right):
        return float("nan")

    sensitivity = right @ decision / right.sum()
    specificity = (1 - right) @ (1 - decision) / (1 - right).sum()
    informedness = sensitivity + specificity - 1
    if informedness <= 0:
        return float("nan")
    return float(np.clip((judged.mean() + specificity - 1) / informedness, 0, 1))
