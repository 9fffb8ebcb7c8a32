"""Which split a thing belongs to, so that the test set holds things the model has never seen.

    set_groups(things)                                                  # writes thing.group
    assign_splits(things, {"train": 0.68, "validation": 0.05, "test": 0.27}, 2025)

Things are tied into one group by what they say of themselves (`Thing.ties`: for a substance the
desalted parent and a non-trivial Murcko scaffold) and by near-duplicate names or SMILES, including
names of four letters or more that are one edit apart. A group never crosses a split.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist
from rdkit import Chem

from stages.core.errors import LibraError
from stages.domain.thing import Thing

NEAR_DUPLICATE = 0.9  # Levenshtein similarity, 1 = identical
SHORTEST_NAME = 4  # letters; three-letter codes (MES, TMB) one letter apart have nothing in common
SPLITS = ("train", "validation", "test")


def near_duplicates(texts: list[str], others: list[str] | None = None) -> list[tuple[int, int]]:
    """Pairs (i, j) of `texts[i]` and `others[j]` with a similarity of at least NEAR_DUPLICATE.

    Without `others`: pairs within `texts`, i < j. Similarity = 1 - edits / length of the longer
    text; case counts.
    """
    similarity = cdist(
        texts,
        others or texts,
        scorer=Levenshtein.normalized_similarity,
        score_cutoff=NEAR_DUPLICATE,
        dtype=np.float32,
    )
    return [
        (int(i), int(j))
        for i, j in zip(*np.nonzero(similarity), strict=True)
        if others is not None or i < j
    ]


def sister_names(names: list[str], others: list[str] | None = None) -> list[tuple[int, int]]:
    """As `near_duplicates`, ignoring case; also names SHORTEST_NAME or longer one edit apart.

    2C-B and 2C-E, propane and propene: for names so short a relative similarity says nothing.
    """
    names = [name.lower() for name in names]
    lower_others = None if others is None else [name.lower() for name in others]
    right = names if lower_others is None else lower_others
    edits = cdist(names, right, scorer=Levenshtein.distance, score_cutoff=1, dtype=np.uint8)
    sisters = {
        (int(i), int(j))
        for i, j in zip(*np.nonzero(edits <= 1), strict=True)
        if min(len(names[i]), len(right[j])) >= SHORTEST_NAME and (others is not None or i < j)
    }
    return sorted(sisters | set(near_duplicates(names, lower_others)))


def is_trivial(scaffold_smiles: str | None) -> bool:
    """Whether a scaffold is too common to tie substances: no ring, or one of at most 7 atoms."""
    if scaffold_smiles is None:
        return True
    molecule = Chem.MolFromSmiles(scaffold_smiles)  # must outlive its ring information
    rings = molecule.GetRingInfo().AtomRings()
    return len(rings) == 0 or (len(rings) == 1 and len(rings[0]) <= 7)


def set_groups(things: Sequence[Thing]) -> None:
    """Set `group` of every thing: `g-` and the slug of the group's first thing by id."""
    order = sorted(range(len(things)), key=lambda i: things[i].substance_id)
    root = {i: i for i in order}

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for i, j in _ties(things):
        root[find(i)] = find(j)
    first: dict[int, str] = {}
    for i in order:
        things[i].group = first.setdefault(find(i), f"g-{things[i].slug}")


def assign_splits(things: Sequence[Thing], shares: Mapping[str, float], random_seed: int) -> None:
    """Set `split` of every thing, group by group, in proportion to `shares` (a number per split).

    Largest groups first, each to the split that leaves the counts by kind, family and
    representation closest to proportion; ties are broken by a hash of the group's id.

    Raises LibraError if a split stays empty.
    """
    groups = defaultdict(list)
    for thing in things:
        groups[thing.group].append(thing)
    traits = sorted({trait for thing in things for trait in _traits(thing)})
    column = {trait: i for i, trait in enumerate(traits)}
    counts = {group: np.zeros(len(traits)) for group in groups}
    for group, members in groups.items():
        for thing in members:
            for trait in _traits(thing):
                counts[group][column[trait]] += 1
    weights = np.array([shares[split] for split in SPLITS], dtype=float)
    target = np.outer(weights / weights.sum(), sum(counts.values()))
    filled = np.zeros_like(target)

    def lot(group: str | None) -> str:
        return hashlib.sha256(f"{random_seed}:split:{group}".encode()).hexdigest()

    for group in sorted(groups, key=lambda g: (-len(groups[g]), lot(g))):
        # Squared excess relative to the target: a big group goes where it disturbs least.
        before = (filled - target) ** 2
        after = (filled + counts[group] - target) ** 2
        costs = [float(row.sum()) for row in (after - before) / (target + 1)]
        best = min(range(len(SPLITS)), key=lambda i: (round(costs[i], 9), i))
        filled[best] += counts[group]
        for thing in groups[group]:
            thing.split = SPLITS[best]
    empty = [split for i, split in enumerate(SPLITS) if not filled[i].any()]
    if empty:
        raise LibraError(
            f"split {', '.join(empty)} is empty; "
            f"raise seed.{empty[0]}.substances or add to data/catalog"
        )


def _ties(things: Sequence[Thing]) -> list[tuple[int, int]]:
    """Pairs of indices that belong to one group."""
    members = defaultdict(list)
    for i, thing in enumerate(things):
        for tie in thing.ties():
            members[tie].append(i)
    ties = [(first, other) for first, *others in members.values() for other in others]
    ties += sister_names([thing.name for thing in things])
    structures = [(i, smiles) for i, t in enumerate(things) if (smiles := t.identifier("smiles"))]
    for i, j in near_duplicates([smiles for _, smiles in structures]):
        ties.append((structures[i][0], structures[j][0]))
    return ties


def _traits(thing: Thing) -> list[str]:
    """What the splits are balanced on."""
    structure = "drawn" if thing.identifier("smiles") else "named"
    traits = [f"{thing.status} {structure}", f"kind {thing.kind}"]
    return traits + ([f"family {thing.family}"] if thing.status == "controlled" else [])
