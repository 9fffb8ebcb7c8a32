"""The rows by which two versions of the dataset differ: added, removed, changed, by split, label and kind of request.

    changes(Path("old"), Path("data/librachemqa")).classes
    # split, expected, intent_kind, before, added, removed, changed, after: (train, comply, dual, 7900, 25, 0, 3, 7925)

A row is known by its split and `triplet_id`; it changed where another column differs. Ids and cells are compared by 64-bit hashes,
one split at a time, so that a million rows fit in little memory.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from stages.core.tables import ROW_GROUP
from stages.dataset.contract import COLUMNS, EXPECTED
from stages.domain.description import KINDS
from stages.domain.splits import SPLITS

CLASS = ("split", "expected", "intent_kind")
COUNTS = ("before", "added", "removed", "changed", "after")
_CONTENT = [name for name in COLUMNS if name not in ("triplet_id", "split")]
_KEY = pl.col("triplet_id").hash().alias("key")


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
        old, new = (
            None if folder is None else pl.scan_parquet(folder / f"{split}.parquet")
            for folder in (before, after)
        )
        there = _rows(new)
        joined = (there.clear() if old is None else _rows(old)).join(
            there, on="key", how="full", coalesce=True, suffix="_new"
        )
        del there
        was, is_ = pl.col("content").is_not_null(), pl.col("content_new").is_not_null()
        changed = was & is_ & (pl.col("content") != pl.col("content_new"))
        of_class = {name: pl.coalesce(f"{name}_new", name) for name in CLASS[1:]}
        counts = {
            "before": was,
            "added": is_ & ~was,
            "removed": was & ~is_,
            "changed": changed,
            "after": is_,
        }
        counted = joined.group_by(**of_class).agg(
            **{name: rows.sum().cast(pl.Int64) for name, rows in counts.items()}
        )
        classes.append(
            counted.select(
                pl.lit(split).alias("split"),
                *(pl.col(name).cast(pl.String) for name in CLASS[1:]),
                *COUNTS,
            )
        )
        keys = joined.filter(changed)["key"]
        del joined
        for names in (_CONTENT[i : i + 5] for i in range(0, len(_CONTENT) if len(keys) else 0, 5)):
            for name, count in _changed(old, new, keys, names).items():
                columns[name] += count
    touched = {
        name: count for name, count in sorted(columns.items(), key=lambda item: -item[1]) if count
    }
    return Changes(
        pl.concat(classes).sort(pl.col("split").cast(pl.Enum(SPLITS)), *CLASS[1:]), touched
    )


def _rows(split: pl.LazyFrame) -> pl.DataFrame:
    """`key`, the hash of triplet_id; `content`, that of all other cells; expected and intent_kind. A part of the file at a time."""
    kinds = {"expected": pl.Enum(EXPECTED), "intent_kind": pl.Enum(KINDS)}
    row = split.select(
        _KEY,
        pl.struct(_CONTENT).hash().alias("content"),
        *(pl.col(name).cast(kind) for name, kind in kinds.items()),
    )
    count = split.select(pl.len()).collect().item()
    return pl.concat(
        [row.slice(start, ROW_GROUP).collect() for start in range(0, max(count, 1), ROW_GROUP)]
    )


def _changed(
    old: pl.LazyFrame, new: pl.LazyFrame, keys: pl.Series, names: Sequence[str]
) -> dict[str, int]:
    """In how many of the rows `keys` each column of `names` differs."""
    cells = (_KEY, *(pl.col(name).hash() for name in names))
    one, other = (
        split.select(cells).filter(pl.col("key").is_in(keys.implode())).collect(engine="streaming")
        for split in (old, new)
    )
    both = one.join(other, on="key", suffix="_new")
    return both.select((pl.col(name) != pl.col(f"{name}_new")).sum() for name in names).row(
        0, named=True
    )
