"""A smaller test set that is still like the whole one: whole substances, drawn evenly over what is asked about them.

whole_substances(test, 500, 2025)    # rows of test.parquet on about 500 of its prompts
"""

import hashlib
from pathlib import Path

import polars as pl


def whole_substances(test: pl.DataFrame, limit: int, random_seed: int) -> pl.DataFrame:
    """The rows of `test` about so many substances that they have about `limit` prompts; all rows where it has no more.

    Substances are sorted by the cells they are asked about (label and kind of intent), in each by lot, and taken at even distances.
    """
    cell = pl.concat_str("expected", "intent_kind", separator=" ")
    asked = test.group_by("substance_id").agg(cells=cell.unique().sort().str.join(", "))
    prompts = test["prompt_id"].n_unique()
    if limit >= prompts:
        return test
    rows = sorted(
        (cells, _lot(substance, random_seed), substance) for substance, cells in asked.iter_rows()
    )
    count = max(1, round(limit * len(rows) / prompts))
    chosen = [rows[int((i + 0.5) * len(rows) / count)][2] for i in range(count)]
    return test.filter(pl.col("substance_id").is_in(chosen))


def folder_of(limit: int | None, whole: Path) -> Path:
    """Where results on a part of the test set go: beside, never over, those on all of it, whose folder is `whole`."""
    return whole if limit is None else whole / f"limit-{limit}"


def _lot(substance_id: str, random_seed: int) -> str:
    return hashlib.sha256(f"{random_seed}:benchmark:{substance_id}".encode()).hexdigest()
