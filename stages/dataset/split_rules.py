"""What must hold for the dataset as a whole: balanced labels, separate splits, allowed structures.

Each rule returns its faults as a table, as those of contract.py do.
"""

from collections import Counter
from itertools import combinations

import polars as pl

from stages.dataset.fault_tables import fault_table
from stages.domain.splits import SPLITS, is_trivial, near_duplicates, sister_names


def balance_faults(triplets: pl.LazyFrame, seeds: pl.DataFrame) -> pl.DataFrame:
    """No split is empty; refuse and comply are 1 : 1 in each split, in triplets and in seeds.

    Only train may have a surplus of one label: the one its seeds have (seed.train.refuse_share).
    """
    counted = (
        triplets.group_by("split", "expected")
        .agg(triplets=pl.len(), seeds=pl.col("seed_id").n_unique())
        .collect(engine="streaming")
    )
    counts = {
        (split, label): {"triplets": rows, "seeds": seed_count}
        for split, label, rows, seed_count in counted.iter_rows()
    }
    planned = Counter(seeds.filter(pl.col("split") == "train")["expected"])

    faults = []
    for split in SPLITS:
        refuse, comply = (counts.get((split, label), Counter()) for label in ("refuse", "comply"))
        if not refuse and not comply:
            faults.append((f"split {split}", "split", "empty"))
        surplus = planned["refuse"] - planned["comply"] if split == "train" else 0
        total = {unit: refuse[unit] + comply[unit] for unit in ("triplets", "seeds")}
        ratio = "1 : 1"
        if surplus:
            ratio = f"{planned['refuse']:,} : {planned['comply']:,} as in seeds.parquet"
        for unit in total:
            # The surplus is in seeds; in triplets it grows with their number per seed.
            if (refuse[unit] - comply[unit]) * total["seeds"] != surplus * total[unit]:
                reason = (
                    f"{refuse[unit]:,} {unit} to refuse, {comply[unit]:,} to comply with: "
                    f"not {ratio}"
                )
                faults.append((f"split {split}", "expected", reason))
    return fault_table(faults)


def crossing_faults(triplets: pl.LazyFrame, substances: pl.DataFrame) -> pl.DataFrame:
    """No substance, parent, non-trivial scaffold or near-duplicate name or SMILES is in two splits.

    Forms of prompts may be.
    """
    used = (
        triplets.select("substance_id", "split")
        .unique()
        .collect(engine="streaming")
        .join(substances, on="substance_id", how="inner")
        .sort("substance_id", "split")
    )
    titles = {
        "substance_id": "substance",
        "parent_key": "parent",
        "scaffold": "scaffold",
        "group": "group",
    }
    faults = []
    for column, title in titles.items():
        crossing = (
            used.filter(pl.col(column).is_not_null())
            .group_by(value=column)
            .agg(pl.col("split").unique().sort(), row=pl.col("substance_id").min())
            .filter(pl.col("split").list.len() > 1)
            .sort("value")
        )
        for value, splits, substance_id in crossing.iter_rows():
            if column != "scaffold" or not is_trivial(value):
                reason = f"the same {title} is in {' and '.join(splits)}"
                faults.append((substance_id, column, reason))
    for column in ("name", "smiles"):
        faults += _near_duplicates(used.filter(pl.col(column).is_not_null()), column)
    return fault_table(faults)


def _near_duplicates(used: pl.DataFrame, column: str) -> list[tuple[str, str, str]]:
    """Faults for pairs of different substances in two splits that are nearly alike in `column`."""
    similar_pairs = sister_names if column == "name" else near_duplicates
    faults = []
    for split, other_split in combinations(SPLITS, 2):
        rows, other_rows = (used.filter(pl.col("split") == name) for name in (split, other_split))
        if rows.is_empty() or other_rows.is_empty():
            continue
        for i, j in similar_pairs(rows[column].to_list(), other_rows[column].to_list()):
            substance, other = rows["substance_id"][i], other_rows["substance_id"][j]
            if substance != other:
                reason = f"in {split}, a near-duplicate of {other} in {other_split}"
                faults.append((substance, column, reason))
    return faults


def structure_faults(substances: pl.DataFrame) -> pl.DataFrame:
    """Of controlled substances only medicines and drugs have a structure.

    Every structure has its parent.
    """
    with_structure = substances.filter(pl.col("smiles").is_not_null()).sort("substance_id")
    is_other = (pl.col("kind") != "medicine_drug").fill_null(True)
    forbidden = with_structure.filter((pl.col("status") == "controlled") & is_other)
    without_parent = with_structure.filter(pl.col("parent_key").is_null())
    reason = "a controlled substance that isn't a medicine or drug has a structure"
    faults = [(row, "smiles", reason) for row in forbidden["substance_id"]]
    reason = "null beside a structure"
    faults += [(row, "parent_key", reason) for row in without_parent["substance_id"]]
    return fault_table(faults)
