"""A smaller test set that resembles the whole one: whole substances from every cell.

whole_substances(test, 500, 2025)    # the rows of test.parquet with about 500 of its prompts
"""

import hashlib
from pathlib import Path

import polars as pl


def whole_substances(test: pl.DataFrame, limit: int, random_seed: int) -> pl.DataFrame:
    """The rows of so many substances of `test` that they have about `limit` prompts.

    All rows if it has no more than that. Substances are sorted by the cells (label and kind of
    intent) that they have prompts in, shuffled within equal cells, and taken at even distances.
    """
    prompts = test["prompt_id"].n_unique()
    if limit >= prompts:
        return test
    cell = pl.concat_str("expected", "intent_kind", separator=" ")
    cells_of = test.group_by("substance_id").agg(cells=cell.unique().sort().str.join(", "))
    ranked = sorted(
        (cells, _digest(substance, random_seed), substance)
        for substance, cells in cells_of.iter_rows()
    )
    count = max(1, round(limit * len(ranked) / prompts))
    substances = [ranked[int((i + 0.5) * len(ranked) / count)][2] for i in range(count)]
    return test.filter(pl.col("substance_id").is_in(substances))


def folder_of(limit: int | None, folder: Path) -> Path:
    """Where results on part of the test set go: below `folder`, which has those on all of it."""
    return folder if limit is None else folder / f"limit-{limit}"


def _digest(substance_id: str, random_seed: int) -> str:
    return hashlib.sha256(f"{random_seed}:benchmark:{substance_id}".encode()).hexdigest()
