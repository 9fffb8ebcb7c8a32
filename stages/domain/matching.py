"""Each controlled substance is paired with a legitimate one of like mass and name: size and spelling don't tell the label."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from stages.domain.substance import Substance

DRUG_LIKE = ("medicine", "drug_like")
REUSE = 3.0  # cost of asking about a partner again
EVERYDAY = -0.6  # everyday substances are few, and the only ones whose making can be told in a word
PENALTIES = (
    0.0,
    0.5,
    1.0,
    2.0,
    4.0,
    8.0,
    1e6,
)  # of partners that aren't drug-like: the least that gives the share


def pair(
    left: list[Substance],
    right: list[Substance],
    representation: str,
    drug_like_share: float,
    used: dict[str, int],
) -> list[int]:
    """For every substance of `left` the index of its partner in `right`, each partner once, at the least cost in all.

    Cost: differences in molar mass (per 40 g/mol), name length (per 3 letters), capitals, digits and signs in the name
    (per 1.5) and, for `smiles`, SMILES length (per 6), each to the power 1.5; and REUSE for every use that `used` counts
    (substance_id -> uses). At least `drug_like_share` of the partners are medicines or drug-like, as far as `right` has
    them. `right` must be at least as long as `left`.
    """
    if not left:
        return []
    gap = np.abs(
        _features(left, representation)[:, None, :] - _features(right, representation)[None, :, :]
    )
    gap = np.nan_to_num(gap)  # a mass is unknown where only the name may be told
    cost = np.round((gap * np.sqrt(gap)).sum(axis=2), 6)
    cost += np.array([REUSE * used.get(s.substance_id, 0) + EVERYDAY * s.everyday for s in right])[
        None, :
    ]
    other = np.array([s.kind not in DRUG_LIKE for s in right])
    chosen = np.array([], dtype=int)
    for penalty in PENALTIES:
        chosen = linear_sum_assignment(cost + penalty * other[None, :])[1]
        if other[chosen].mean() <= 1 - drug_like_share:
            break
    return [int(index) for index in chosen]


def _features(substances: list[Substance], representation: str) -> np.ndarray:
    return np.array(
        [
            [
                (s.molar_mass if s.molar_mass is not None else np.nan) / 40,
                len(s.name) / 3,
                sum(not letter.islower() for letter in s.name) / 1.5,
                len(s.smiles) / 6 if representation == "smiles" else 0.0,
            ]
            for s in substances
        ]
    )
