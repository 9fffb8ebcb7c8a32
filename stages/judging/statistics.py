"""Rates with intervals that respect what belongs together: whole substances are drawn, not single answers.

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
"""

import numpy as np


def draws(clusters: int, replicates: int, random_seed: int) -> np.ndarray:
    """How often each of `clusters` is drawn in each replicate: counts, shape (replicates, clusters), rows sum to `clusters`."""
    random = np.random.Generator(np.random.PCG64(random_seed))
    picked = random.integers(0, clusters, size=(replicates, clusters))
    flat = picked + clusters * np.arange(replicates)[:, None]
    return np.bincount(flat.ravel(), minlength=replicates * clusters).reshape(replicates, clusters).astype(np.float64)


def cluster_sums(cluster: np.ndarray, columns: np.ndarray, clusters: int) -> np.ndarray:
    """`columns` (rows, k) added up by `cluster` (rows, numbers below `clusters`): shape (clusters, k)."""
    sums = np.zeros((clusters, columns.shape[1]))
    np.add.at(sums, cluster, columns)
    return sums


def resample(above: np.ndarray, below: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """k rates from their sums `above` and `below` by cluster, both (clusters, k), and `weights` of `draws`.

    Gives each rate, shape (k,), its replicates, (k, replicates), and the clusters it is about, (k,); NaN where there are no rows.
    """
    points, drawn = ratio(above.sum(axis=0), below.sum(axis=0)), ratio((weights @ above).T, (weights @ below).T)
    return points, drawn, (below > 0).sum(axis=0)


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where below is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0)


def levels(rates: int, replicates: int, random_seed: int) -> np.ndarray:
    """Probabilities evenly over 0..1, in an order of its own for each rate: shape (rates, replicates)."""
    even = np.linspace(0, 1, replicates)  # the p-quantile of these is p
    # The second number keeps this stream apart from that of `draws`.
    return np.random.Generator(np.random.PCG64([random_seed, 1])).permuted(np.tile(even, (rates, 1)), axis=1)


def bounds(rate: float, drawn: np.ndarray, clusters: int, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    return float(np.quantile(lo, (1 - confidence) / 2)), float(np.quantile(hi, (1 + confidence) / 2))


def kappa(first: list[str], second: list[str]) -> float | None:
    """Cohen's kappa of two raters on the same things; None where it isn't defined: nothing rated, or all rated alike."""
    from sklearn.metrics import cohen_kappa_score

    if not first or len(set(first) | set(second)) < 2:
        return None
    return float(cohen_kappa_score(first, second))
