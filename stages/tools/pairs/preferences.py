"""Which of two answers serves a request better: what a panel's opinions, asked in both orders, come to, and how often one wins.

    pair = (seen(said, "A shop sells it.", "No."), mirrored(seen(said_of_the_other_order, "No.", "A shop sells it.")))
    vote(pair)                                   # ("win", "win") -> win; ("win", "loss"), where the order decided -> tie
    settle([vote(pair), ...])                    # the panel's verdict: win, tie, loss or abstain
    win_rate(verdicts, substances, 2000, 0.95, 2025)    # (0.62, 0.57, 0.66): of the first answer, ties as half

Win, tie and loss are told of the first answer. A reply of no use is never one of them: its member abstains on the pair.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.judging.cascade import ABSTAIN, quoted
from stages.scoring import statistics

WIN, TIE, LOSS = "win", "tie", "loss"
_SEEN = {"first": WIN, "second": LOSS, "tie": TIE}
_MIRRORED = {WIN: LOSS, LOSS: WIN, TIE: TIE, None: None}


def seen(opinion: dict[str, Any] | None, first: str, second: str) -> str | None:
    """WIN, TIE or LOSS of `first`. None: no opinion, or its evidence doesn't stand in the answer it prefers (of a tie: in either)."""
    if opinion is None:
        return None
    texts = {"first": [first], "second": [second], "tie": [first, second]}[opinion["preferred"]]
    stands = any(
        quoted(opinion["evidence"], text, needed=opinion["preferred"] != "tie") for text in texts
    )
    return _SEEN[opinion["preferred"]] if stands else None


def mirrored(outcome: str | None) -> str | None:
    """The same, told of the other answer."""
    return _MIRRORED[outcome]


def vote(both: tuple[str | None, str | None]) -> str | None:
    """A member's vote, of what it says in each order: a tie where that differs, none where one of the two is of no use."""
    if None in both:
        return None
    return both[0] if both[0] == both[1] else TIE


def settle(votes: Sequence[str | None]) -> str:
    """What more than half of all members vote for, else a tie; ABSTAIN where no more than half of them vote at all."""
    cast = Counter(vote for vote in votes if vote is not None)
    if 2 * cast.total() <= len(votes):
        return ABSTAIN
    return next((outcome for outcome, count in cast.items() if 2 * count > len(votes)), TIE)


def win_rate(
    verdicts: np.ndarray,
    substance: np.ndarray,
    replicates: int,
    confidence: float,
    random_seed: int,
) -> tuple[float, float, float]:
    """(rate, lo, hi): the share of wins, ties as half, with its interval by the cluster bootstrap over substances.

    `verdicts` and `substance`, both (pairs,), go together; where the panel abstains a pair doesn't count. NaN where none counts.
    The rate is a half and half the difference of the shares of wins and losses; where one of these is 0 or 1, its exact bound holds.
    """
    counts = verdicts != ABSTAIN
    if not counts.any():
        return float("nan"), float("nan"), float("nan")
    names, cluster = np.unique(substance[counts], return_inverse=True)
    hits = np.column_stack([verdicts[counts] == WIN, verdicts[counts] == LOSS])
    above, below = (
        statistics.cluster_sums(cluster, columns, len(names))
        for columns in (hits, np.ones_like(hits))
    )
    weights = statistics.draws(len(names), replicates, random_seed)
    (level,) = statistics.levels(1, replicates, random_seed)
    points, drawn, about = statistics.resample(above, below, weights)
    wins, losses = (
        statistics.bounds(*each, level) for each in zip(points, drawn, about, strict=True)
    )
    lo, hi = statistics.interval(
        *statistics.difference(wins, losses, level, len(names)), confidence
    )
    return float(1 + points[0] - points[1]) / 2, (1 + lo) / 2, (1 + hi) / 2
