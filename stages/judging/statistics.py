"""Rates with intervals that respect what belongs together: whole substances are drawn, not single answers.

    sums = cluster_sums(clusters, columns)              # (substances, counts)
    weights = draws(len(sums), 2000, random_seed=2025)  # (replicates, substances)
    interval(rate(weights @ sums), 0.95)                # (lo, hi)

Rows of one substance share its name, its label and its fate in the model, so they are no independent trials: the bootstrap draws
substances with replacement (Field & Welsh 2007, the cluster bootstrap) and takes percentiles. All candidates share the draws,
which makes their intervals comparable.
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


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where below is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0)


def interval(replicates: np.ndarray, confidence: float) -> tuple[float, float]:
    """Percentile interval of the replicates that are numbers; (nan, nan) when none is."""
    numbers = replicates[~np.isnan(replicates)]
    if numbers.size == 0:
        return float("nan"), float("nan")
    lo, hi = np.quantile(numbers, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(lo), float(hi)


def widened(rate: float, lo: float, hi: float, clusters: int, confidence: float) -> tuple[float, float]:
    """The interval of a rate of exactly 0 or 1, where no draw can differ: Clopper and Pearson's bound on `clusters` trials."""
    slack = 1 - ((1 - confidence) / 2) ** (1 / clusters) if clusters else 1.0
    if rate == 0.0:
        return 0.0, max(hi, slack)
    if rate == 1.0:
        return min(lo, 1 - slack), 1.0
    return lo, hi


def kappa(first: list[str], second: list[str]) -> float | None:
    """Cohen's kappa of two raters on the same things; None where it isn't defined: nothing rated, or all rated alike."""
    from sklearn.metrics import cohen_kappa_score

    if not first or len(set(first) | set(second)) < 2:
        return None
    return float(cohen_kappa_score(first, second))
