"""Which of two answers serves a request better: votes of a panel, and a win rate with its interval.

    orders = (
        preference(opinion, "A shop sells it.", "No."),
        mirrored(preference(opinion_in_other_order, "No.", "A shop sells it.")),
    )
    vote(orders)                       # ("win", "win") -> win; ("win", "loss") -> tie
    panel_verdict([vote(orders), ...])    # win, tie, loss or abstain
    win_rate(verdicts, substances, 2000, 0.95, 2025)    # (0.62, 0.57, 0.66), ties as half

Win, tie and loss are those of the first answer. An unusable reply is none of them: its member
abstains on the pair.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.judging.cascade import ABSTAIN, quoted
from stages.scoring import statistics

WIN, TIE, LOSS = "win", "tie", "loss"
_OUTCOMES = {"first": WIN, "second": LOSS, "tie": TIE}
_MIRRORED = {WIN: LOSS, LOSS: WIN, TIE: TIE, None: None}


def preference(opinion: dict[str, Any] | None, first: str, second: str) -> str | None:
    """WIN, TIE or LOSS of `first`.

    None without an opinion, or if its evidence isn't in the preferred answer (of a tie: in either).
    """
    if opinion is None:
        return None
    preferred = opinion["preferred"]
    texts = {"first": [first], "second": [second], "tie": [first, second]}[preferred]
    if any(quoted(opinion["evidence"], text, needed=preferred != "tie") for text in texts):
        return _OUTCOMES[preferred]
    return None


def mirrored(outcome: str | None) -> str | None:
    """The outcome for the other answer."""
    return _MIRRORED[outcome]


def vote(orders: tuple[str | None, str | None]) -> str | None:
    """A member's vote from its preferences in both orders.

    TIE if they differ, None if one of them is missing.
    """
    if None in orders:
        return None
    return orders[0] if orders[0] == orders[1] else TIE


def panel_verdict(votes: Sequence[str | None]) -> str:
    """What more than half of all members vote for, else TIE; ABSTAIN if half or fewer vote."""
    counts = Counter(vote for vote in votes if vote is not None)
    if 2 * counts.total() <= len(votes):
        return ABSTAIN
    return next((outcome for outcome, count in counts.items() if 2 * count > len(votes)), TIE)


def win_rate(
    verdicts: np.ndarray,
    substance: np.ndarray,
    replicates: int,
    confidence: float,
    random_seed: int,
) -> tuple[float, float, float]:
    """(rate, lo, hi): the share of wins, ties as half, with a cluster bootstrap over substances.

    `verdicts` and `substance` have shape (pairs,). Pairs on which the panel abstained don't count;
    NaN if none counts. The rate is a half plus half the difference between the shares of wins and
    losses; a share of 0 or 1 has its exact bound.
    """
    counts = verdicts != ABSTAIN
    if not counts.any():
        return float("nan"), float("nan"), float("nan")

    names, cluster = np.unique(substance[counts], return_inverse=True)
    hits = np.column_stack([verdicts[counts] == WIN, verdicts[counts] == LOSS])
    above = statistics.cluster_sums(cluster, hits, len(names))
    below = statistics.cluster_sums(cluster, np.ones_like(hits), len(names))
    weights = statistics.draws(len(names), replicates, random_seed)
    (level,) = statistics.levels(1, replicates, random_seed)
    points, resampled, about = statistics.resample(above, below, weights)
    wins, losses = (
        statistics.bounds(*share, level) for share in zip(points, resampled, about, strict=True)
    )
    bounds = statistics.difference(wins, losses, level, len(names))
    lo, hi = statistics.interval(*bounds, confidence)
    return float(1 + points[0] - points[1]) / 2, (1 + lo) / 2, (1 + hi) / 2
