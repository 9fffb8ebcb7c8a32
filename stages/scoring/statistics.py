"""Rates, differences and agreement with intervals that respect what belongs together: whole substances are drawn, not answers.

    above, below = cluster_sums(cluster, hits, clusters), cluster_sums(cluster, ones, clusters)    # (substances, rates)
    points, drawn, clusters = resample(above, below, draws(len(above), 2000, random_seed=2025))    # drawn: (rates, replicates)
    lower, upper = bounds(points[0], drawn[0], clusters[0], levels(1, 2000, random_seed=2025)[0])
    interval(lower, upper, 0.95)                                                                   # (lo, hi)

Rows of one substance share its name, its label and its fate in the model, so they are no independent trials: the bootstrap draws
substances with replacement (Field & Welsh 2007, the cluster bootstrap) and takes percentiles. All candidates share the draws,
which makes their intervals comparable.

Where every row was decided alike, every draw is too, and the bootstrap would call a rate of 0 or 1 certain. There Clopper and
Pearson's (1934) exact bound holds, each substance one trial. What rises with several rates (their harmonic mean, minimum, mean)
is computed on every replicate of all their lower bounds, and again of all their upper ones: "melding" of confidence distributions
(Fay, Proschan & Brittain 2015, Biometrics 71:146-156, doi:10.1111/biom.12231), so that what is uncertain in one rate is in the
whole. Rates that the bootstrap moves keep how they move together; bounds at 0 and 1 vary on their own.

Differences of two candidates are taken on the same draws, so what both find hard cancels out. Human labels enter by `powered`,
prediction-powered inference.
"""

import numpy as np


def draws(clusters: int, replicates: int, random_seed: int) -> np.ndarray:
    """How often each of `clusters` is drawn in each replicate: counts, shape (replicates, clusters), rows sum to `clusters`."""
    random = np.random.Generator(np.random.PCG64(random_seed))
    picked = random.integers(0, clusters, size=(replicates, clusters))
    flat = picked + clusters * np.arange(replicates)[:, None]
    return (
        np.bincount(flat.ravel(), minlength=replicates * clusters)
        .reshape(replicates, clusters)
        .astype(np.float64)
    )


def cluster_sums(cluster: np.ndarray, columns: np.ndarray, clusters: int) -> np.ndarray:
    """`columns` (rows, k) added up by `cluster` (rows, numbers below `clusters`): shape (clusters, k)."""
    sums = np.zeros((clusters, columns.shape[1]))
    np.add.at(sums, cluster, columns)
    return sums


def resample(
    above: np.ndarray, below: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """k rates from their sums `above` and `below` by cluster, both (clusters, k), and `weights` of `draws`.

    Gives each rate, shape (k,), its replicates, (k, replicates), and the clusters it is about, (k,); NaN where there are no rows.
    """
    points, drawn = (
        ratio(above.sum(axis=0), below.sum(axis=0)),
        ratio((weights @ above).T, (weights @ below).T),
    )
    return points, drawn, (below > 0).sum(axis=0)


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where below is 0."""
    return np.divide(
        above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0
    )


def levels(rates: int, replicates: int, random_seed: int) -> np.ndarray:
    """Probabilities evenly over 0..1, in an order of its own for each rate: shape (rates, replicates)."""
    even = np.linspace(0, 1, replicates)  # the p-quantile of these is p
    # The second number keeps this stream apart from that of `draws`.
    return np.random.Generator(np.random.PCG64([random_seed, 1])).permuted(
        np.tile(even, (rates, 1)), axis=1
    )


def bounds(
    rate: float, drawn: np.ndarray, clusters: int, level: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Replicates of a rate that its interval's lower and upper end are quantiles of: those `drawn`, shape (replicates,).

    At exactly 0 or 1 no draw differs; there the open end follows Clopper and Pearson's bound for `clusters` trials at each `level`:
    of n successes in n the lower bound is distributed as Beta(n, 1), of none in n the upper one as Beta(1, n). A rate between them
    of a single cluster says nothing of others: 0 to 1.
    """
    none, all_ = np.zeros_like(drawn), np.ones_like(drawn)
    if rate in (0.0, 1.0):
        open_end = level ** (1 / clusters)
        return (open_end, all_) if rate == 1.0 else (none, 1 - open_end)
    return (none, all_) if clusters == 1 else (drawn, drawn)


def interval(lower: np.ndarray, upper: np.ndarray, confidence: float) -> tuple[float, float]:
    """Percentile interval: from `lower`'s quantile to `upper`'s, of the replicates that are numbers; NaN when none is."""
    lo, hi = (replicates[~np.isnan(replicates)] for replicates in (lower, upper))
    if not lo.size or not hi.size:
        return float("nan"), float("nan")
    return float(np.quantile(lo, (1 - confidence) / 2)), float(
        np.quantile(hi, (1 + confidence) / 2)
    )


def difference(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    level: np.ndarray,
    clusters: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Replicates, lower and upper, of first - second; both are such pairs on the same draws, `clusters` is what they rest on.

    Two that never differ could still do so elsewhere: then the share of clusters that do has Clopper and Pearson's bound.
    """
    lower, upper = first[0] - second[1], first[1] - second[0]
    if lower.any() or upper.any():
        return lower, upper
    unseen = 1 - level ** (1 / clusters)
    return -unseen, unseen


def p_value(lower: np.ndarray, upper: np.ndarray, confidence: float, differing: int) -> float:
    """Two-sided p of no difference, of `difference`'s replicates: below 1 - confidence where their interval leaves out 0.

    It takes the replicates for normal between their median and the end of the interval that faces 0 (Altman & Bland 2011,
    BMJ 343:d2304): unlike a share of replicates it goes on beyond them, so Holm's correction can't lift it above 0.05 for want of
    replicates. It is never below 2^(1 - differing), the least p of a sign-flip test when that many clusters differ.
    """
    from scipy.special import ndtr, ndtri

    if not differing:
        return 1.0
    facing = lower if np.nanmedian(lower) + np.nanmedian(upper) > 0 else -upper
    middle, end = np.nanquantile(facing, (0.5, (1 - confidence) / 2))
    if middle <= 0:
        return 1.0
    errors = ndtri((1 + confidence) / 2) * middle / (middle - end) if middle > end else np.inf
    return float(max(2 * ndtr(-errors), 2.0 ** (1 - differing)))


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact McNemar test's p (1947), of how many rows only one of two got right; it takes rows for independent."""
    from scipy.special import (
        bdtr,
    )  # scipy.stats.binomtest gives the same, and takes a second to import

    return min(1.0, 2 * float(bdtr(min(first_only, second_only), first_only + second_only, 0.5)))


def holm(p: np.ndarray) -> np.ndarray:
    """p values, shape (tests,), adjusted so that the chance of any false one below 0.05 stays below 5 % (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(np.minimum(1, p[order] * np.arange(len(p), 0, -1)))
    return adjusted[np.argsort(order, kind="stable")]


def kappa(tables: np.ndarray) -> np.ndarray:
    """Cohen's kappa of confusion tables, shape (..., k, k); NaN where it isn't defined: nothing rated, or all rated alike."""
    total = tables.sum(axis=(-2, -1))
    alike = ratio(np.trace(tables, axis1=-2, axis2=-1), total)
    chance = ratio((tables.sum(axis=-1) * tables.sum(axis=-2)).sum(axis=-1), total**2)
    return ratio(alike - chance, 1 - chance)


def kappa_bounds(
    tables: np.ndarray, weights: np.ndarray, level: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Replicates that the ends of kappa's interval are quantiles of; `tables` are confusion tables by cluster, (clusters, k, k).

    Raters who agree everywhere could still differ elsewhere: then the share they agree on has Clopper and Pearson's bound.
    """
    whole = tables.sum(axis=0)
    clusters = (tables.sum(axis=(1, 2)) > 0).sum()
    if clusters < 2 or np.isnan(kappa(whole)):
        return np.full(len(weights), np.nan), np.full(len(weights), np.nan)
    drawn = kappa((weights @ tables.reshape(len(tables), -1)).reshape(-1, *whole.shape))
    if np.trace(whole) < whole.sum():
        return drawn, drawn
    chance = (whole.sum(axis=0) * whole.sum(axis=1)).sum() / whole.sum() ** 2
    return (level ** (1 / clusters) - chance) / (1 - chance), np.ones_like(level)


def powered(
    judged: np.ndarray,
    human: np.ndarray,
    cluster: np.ndarray,
    weights: np.ndarray,
    level: np.ndarray,
) -> tuple[float, float, np.ndarray, np.ndarray]:
    """A rate by prediction-powered inference, PPI++ (Angelopoulos, Duchi & Zrnic 2023, arXiv 2311.01453).

    `judged` (rows,) is what the judge says, 0 or 1; `human` (rows,) what people say, 0..1, NaN where nobody was asked: those who
    were asked about must be a random sample. Gives the rate, lambda (the weight of the judge: 0 where it is of no use) and the
    replicates, lower and upper, of the rate. Kinds of mistakes the sample doesn't show have Clopper and Pearson's bound.
    """
    seen = ~np.isnan(human)
    n, others = seen.sum(), (~seen).sum()
    spread = np.var(judged, ddof=1) * (1 + n / others) if others else 0.0
    tuned = (
        float(np.clip(np.cov(human[seen], judged[seen], ddof=0)[0, 1] / spread, 0, 1))
        if spread > 0
        else 0.0
    )

    def mean(sums: np.ndarray) -> np.ndarray:
        said, judged_seen, judged_unseen, asked, unasked = sums.T
        rest = tuned * (ratio(judged_unseen, unasked) - ratio(judged_seen, asked)) if tuned else 0.0
        return np.clip(ratio(said, asked) + rest, 0, 1)

    columns = np.column_stack(
        [np.where(seen, human, 0), judged * seen, judged * ~seen, seen, ~seen]
    )
    sums = cluster_sums(cluster, columns, weights.shape[1])
    rate, drawn, clusters = (
        float(mean(sums.sum(axis=0))),
        mean(weights @ sums),
        int((sums[:, 3] > 0).sum()),
    )
    if not tuned:
        return rate, tuned, *bounds(rate, drawn, clusters, level)
    unseen, mistakes = 1 - level ** (1 / clusters), human[seen] - judged[seen]
    lower = drawn if (mistakes < 0).any() else np.maximum(drawn - unseen, 0)
    upper = drawn if (mistakes > 0).any() else np.minimum(drawn + unseen, 1)
    return rate, tuned, lower, upper


def rogan_gladen(judged: np.ndarray, human: np.ndarray) -> float:
    """The rate of `judged` set right by the judge's sensitivity and specificity (Rogan & Gladen 1978), arguments as of `powered`.

    NaN where the labels show only one side, or a judge no better than chance.
    """
    seen = ~np.isnan(human)
    right, said = human[seen], judged[seen]
    if not 0 < right.sum() < len(right):
        return float("nan")
    sensitivity, specificity = (
        right @ said / right.sum(),
        (1 - right) @ (1 - said) / (1 - right).sum(),
    )
    informed = sensitivity + specificity - 1
    return (
        float(np.clip((judged.mean() + specificity - 1) / informed, 0, 1))
        if informed > 0
        else float("nan")
    )
