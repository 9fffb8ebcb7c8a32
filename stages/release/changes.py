"""The rows by which two versions of the dataset differ: added, removed, changed, by split, label and kind of request.

    changes(Path("old"), Path("data/librachemqa")).classes
    # split, expected, intent_kind, before, added, removed, changed, after: (train, comply, dual, 7900, 25, 0, 3, 7925)

A row is known by its split and `triplet_id`; it changed where another column differs. Files are read one split at a time and
compared by 64-bit hashes of their cells, so that a million rows fit in little memory.
"""

from pathlib import Path
from typing import NamedTuple

import polars as pl

from stages.chem.splits import SPLITS
from stages.release.contract import COLUMNS

CLASS = ("split", "expected", "intent_kind")
COUNTS = ("before", "added", "removed", "changed", "after")
_CONTENT = [name for name in COLUMNS if name not in ("triplet_id", "split")]


class Changes(NamedTuple):
    """`classes`: a line of COUNTS (rows) for every CLASS; `columns`: rows in which a column changed, most first."""

    classes: pl.DataFrame
    columns: dict[str, int]

    def total(self, count: str) -> int:
        """Rows of one of COUNTS over all classes."""
        return self.classes[count].sum()


def changes(before: Path | None, after: Path) -> Changes:
    """What differs between the released folders `before` (None: there was none) and `after`."""
    classes, columns = [], dict.fromkeys(_CONTENT, 0)
    for split in SPLITS:
        new = _cells(after / f"{split}.parquet")
        old = new.clear() if before is None else _cells(before / f"{split}.parquet")
        joined = old.join(new, on="triplet_id", how="full", suffix="_new")
        was, is_ = pl.col("expected").is_not_null(), pl.col("expected_new").is_not_null()
        differs = {name: was & is_ & (pl.col(f"#{name}") != pl.col(f"#{name}_new")) for name in _CONTENT}
        changed = pl.any_horizontal(differs.values())
        classes.append(
            joined.group_by(
                expected=pl.coalesce("expected_new", "expected"), intent_kind=pl.coalesce("intent_kind_new", "intent_kind")
            ).agg(before=was.sum(), added=(is_ & ~was).sum(), removed=(was & ~is_).sum(), changed=changed.sum(), after=is_.sum())
            .select(pl.lit(split).alias("split"), *CLASS[1:], pl.col(COUNTS).cast(pl.Int64))
        )  # fmt: skip
        for name, count in joined.select(**{name: cell.sum() for name, cell in differs.items()}).row(0, named=True).items():
            columns[name] += count
    touched = {name: count for name, count in sorted(columns.items(), key=lambda item: -item[1]) if count}
    return Changes(pl.concat(classes).sort(pl.col("split").cast(pl.Enum(SPLITS)), *CLASS[1:]), touched)


def _cells(path: Path) -> pl.DataFrame:
    """triplet_id, expected, intent_kind of every row of a file, and `#NAME`, the hash of every other cell."""
    hashes = (pl.col(name).hash().alias(f"#{name}") for name in _CONTENT)
    return pl.scan_parquet(path).select("triplet_id", *CLASS[1:], *hashes).collect(engine="streaming")
