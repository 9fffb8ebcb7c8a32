"""Pairs each controlled thing with a lawful one of similar size and name.

Then neither size nor spelling tells the label in the `dual` cell.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from stages.domain.thing import Thing

REUSE = 3.0  # cost of asking about a partner again
# Extra cost of partners that aren't drug-like: the lowest that reaches the share is used.
PENALTIES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 1e6)


def pair(
    left: Sequence[Thing],
    right: Sequence[Thing],
    representation: str,
    drug_like_share: float,
    uses: Mapping[str, int],
) -> list[int]:
    """For every thing of `left` the index of its partner in `right`, each used once.

    The total cost is minimal (`scipy.optimize.linear_sum_assignment`): the differences in
    `Thing.size`, each to the power 1.5, the partner's `pairing_cost`, and REUSE for each of its
    `uses` (by substance_id). At least `drug_like_share` of the partners are drug-like, as far as
    `right` has them. `right` must be at least as long as `left`.
    """
    if not left:
        return []
    gaps = np.abs(_sizes(left, representation)[:, None] - _sizes(right, representation)[None])
    gaps = np.nan_to_num(gaps)  # unknown where only a name is public
    cost = np.round((gaps * np.sqrt(gaps)).sum(axis=2), 6)
    cost += np.array([REUSE * uses.get(s.substance_id, 0) + s.pairing_cost for s in right])
    not_drug_like = np.array([not s.is_drug_like for s in right])
    partners = np.array([], dtype=int)
    for penalty in PENALTIES:
        partners = linear_sum_assignment(cost + penalty * not_drug_like)[1]
        if not_drug_like[partners].mean() <= 1 - drug_like_share:
            break
    return [int(index) for index in partners]


def _sizes(things: Sequence[Thing], representation: str) -> np.ndarray:
    """(things, features)."""
    return np.array([thing.size(representation) for thing in things])
