"""Which split a substance belongs to, so that the test set holds structures the model has never seen.

Substances are tied into one group when they share the desalted parent, a non-trivial Murcko scaffold, or are near-duplicates
as text (their names, or their SMILES): also names and codes of four letters or more that are one apart. A group never crosses a
split.
"""

import hashlib
from collections import defaultdict

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist
from rdkit import Chem

from stages.core.errors import LibraError
from stages.domain.substance import Substance

NEAR_DUPLICATE = 0.9  # Levenshtein similarity, 1 = the same text
SHORTEST_NAME = 4  # letters; three-letter codes (MES, TMB) one letter apart have nothing in common
SPLITS = ("train", "validation", "test")


def near_duplicates(texts: list[str], others: list[str] | None = None) -> list[tuple[int, int]]:
    """Pairs (i, j) of `texts[i]` and `others[j]` (of `texts` itself, i < j) with a similarity of at least NEAR_DUPLICATE.

    Similarity = 1 - edits / length of the longer text, as written.
    """
    found = cdist(
        texts,
        others or texts,
        scorer=Levenshtein.normalized_similarity,
        score_cutoff=NEAR_DUPLICATE,
        dtype=np.float32,
    )
    return [
        (int(i), int(j))
        for i, j in zip(*np.nonzero(found), strict=True)
        if others is not None or i < j
    ]


def sister_names(names: list[str], others: list[str] | None = None) -> list[tuple[int, int]]:
    """As `near_duplicates`, of names in any case; also those of at least SHORTEST_NAME letters that are one edit apart.

    2C-B and 2C-E, propane and propene: a share of so short a name says nothing.
    """
    one = [name.lower() for name in names]
    other = one if others is None else [name.lower() for name in others]
    edits = cdist(one, other, scorer=Levenshtein.distance, score_cutoff=1, dtype=np.uint8)
    found = {(int(i), int(j)) for i, j in zip(*np.nonzero(edits <= 1), strict=True)}
    found = {
        (i, j)
        for i, j in found
        if min(len(one[i]), len(other[j])) >= SHORTEST_NAME and (others is not None or i < j)
    }
    return sorted(found | set(near_duplicates(one, None if others is None else other)))


def is_trivial(scaffold_smiles: str | None) -> bool:
    """Whether a scaffold says too little to tie substances together: no ring, or one ring of at most 7 atoms."""
    if scaffold_smiles is None:
        return True
    molecule = Chem.MolFromSmiles(scaffold_smiles)  # held: its ring information dies with it
    rings = molecule.GetRingInfo().AtomRings()
    return len(rings) == 0 or (len(rings) == 1 and len(rings[0]) <= 7)


def set_groups(substances: list[Substance]) -> None:
    """Write `group` of every substance: `g-` and the slug of the group's first substance by id."""
    order = sorted(range(len(substances)), key=lambda i: substances[i].substance_id)
    root = {i: i for i in order}

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for i, j in _ties(substances):
        root[find(i)] = find(j)
    first: dict[int, str] = {}
    for i in order:
        substances[i].group = first.setdefault(find(i), f"g-{substances[i].slug}")


def _ties(substances: list[Substance]) -> list[tuple[int, int]]:
    shared = defaultdict(list)
    trivial = {s.scaffold: is_trivial(s.scaffold) for s in substances}
    for i, substance in enumerate(substances):
        if substance.parent_key:
            shared["parent", substance.parent_key].append(i)
        if not trivial[substance.scaffold]:
            shared["scaffold", substance.scaffold].append(i)
    ties = [(members[0], other) for members in shared.values() for other in members[1:]]
    ties += sister_names([s.name for s in substances])
    drawn = [i for i, s in enumerate(substances) if s.smiles]
    ties += [
        (drawn[i], drawn[j]) for i, j in near_duplicates([substances[i].smiles for i in drawn])
    ]
    return ties


def assign_splits(substances: list[Substance], shares: dict[str, float], random_seed: int) -> None:
    """Write `split` of every substance, group by group, in proportion to `shares` (a number per split).

    Largest groups first, each to the split that leaves the counts by kind, family and representation closest to
    proportion; ties fall by a hash of the group's id. Raises LibraError when a split stays empty.
    """
    groups = defaultdict(list)
    for substance in substances:
        groups[substance.group].append(substance)
    traits = sorted({trait for s in substances for trait in _traits(s)})
    column = {trait: i for i, trait in enumerate(traits)}
    counts = {group: np.zeros(len(traits)) for group in groups}
    for group, members in groups.items():
        for substance in members:
            for trait in _traits(substance):
                counts[group][column[trait]] += 1
    wanted = np.array([shares[split] for split in SPLITS], dtype=float)
    target = np.outer(wanted / wanted.sum(), sum(counts.values()))
    filled = np.zeros_like(target)

    def lot(group: str) -> str:
        return hashlib.sha256(f"{random_seed}:split:{group}".encode()).hexdigest()

    for group in sorted(groups, key=lambda g: (-len(groups[g]), lot(g))):
        # Squared overfill relative to what the split should hold: a big group goes where it disturbs least.
        costs = [
            float(
                (
                    ((filled[i] + counts[group] - target[i]) ** 2 - (filled[i] - target[i]) ** 2)
                    / (target[i] + 1)
                ).sum()
            )
            for i in range(len(SPLITS))
        ]
        best = min(range(len(SPLITS)), key=lambda i: (round(costs[i], 9), i))
        filled[best] += counts[group]
        for substance in groups[group]:
            substance.split = SPLITS[best]
    empty = [split for i, split in enumerate(SPLITS) if not filled[i].any()]
    if empty:
        raise LibraError(
            f"split {', '.join(empty)} got no substance; raise seed.{empty[0]}.substances or add to data/catalog"
        )


def _traits(substance: Substance) -> list[str]:
    """What a split's make-up is balanced on."""
    shown = "drawn" if substance.smiles else "named"
    return [f"{substance.status} {shown}", f"kind {substance.kind}"] + (
        [f"family {substance.family}"] if substance.status == "controlled" else []
    )
