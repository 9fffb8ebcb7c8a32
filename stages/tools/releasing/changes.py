"""How the rows of two versions of the dataset differ: by split, label and kind of request.

    changes(Path("old"), Path("data/librachemqa")).classes
    # split, expected, intent_kind, before, added, removed, changed, after
    # train, comply,   dual,        7900,   25,    0,       3,       7925

A row is identified by its split and `triplet_id`; it has changed if any other column differs. Ids
and cells are compared by 64-bit hashes, one split at a time, so that a million rows fit in little
memory.
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
    """`classes`: rows counted by COUNTS for each CLASS; `columns`: changed rows by column."""

    classes: pl.DataFrame
    columns: dict[str, int]

    def total(self, count: str) -> int:
        """Rows of one of COUNTS over all classes."""
        return self.classes[count].sum()


def changes(before: Path | None, after: Path) -> Changes:
    """The changes from the released folder `before` (None: no earlier version) to `after`."""
    classes, columns = [], dict.fromkeys(_CONTENT, 0)
    for split in SPLITS:
        new = pl.scan_parquet(after / f"{split}.parquet")
        new_rows = _rows(new)
        if before is None:
            old, old_rows = new, new_rows.clear()
        else:
            old = pl.scan_parquet(before / f"{split}.parquet")
            old_rows = _rows(old)
        joined = old_rows.join(new_rows, on="key", how="full", coalesce=True, suffix="_new")
        del old_rows, new_rows  # a third of the peak memory

        was, is_ = pl.col("content").is_not_null(), pl.col("content_new").is_not_null()
        changed = was & is_ & (pl.col("content") != pl.col("content_new"))
        counts = {
            "before": was,
            "added": is_ & ~was,
            "removed": was & ~is_,
            "changed": changed,
            "after": is_,
        }
        classes.append(
            joined.group_by(**{name: pl.coalesce(f"{name}_new", name) for name in CLASS[1:]})
            .agg(**{name: rows.sum().cast(pl.Int64) for name, rows in counts.items()})
            .select(
                pl.lit(split).alias("split"),
                *(pl.col(name).cast(pl.String) for name in CLASS[1:]),
                *COUNTS,
            )
        )

        # Five columns at a time: all of them at once would hold every changed text.
        keys = joined.filter(changed)["key"]
        del joined
        for start in range(0, len(_CONTENT) if len(keys) else 0, 5):
            for name, count in _changed(old, new, keys, _CONTENT[start : start + 5]).items():
                columns[name] += count
    in_order = pl.concat(classes).sort(pl.col("split").cast(pl.Enum(SPLITS)), *CLASS[1:])
    most_first = sorted(columns.items(), key=lambda item: -item[1])
    return Changes(in_order, {name: count for name, count in most_first if count})


def _rows(split: pl.LazyFrame) -> pl.DataFrame:
    """Columns key (hash of triplet_id), content (hash of all other cells), expected, intent_kind.

    Reads a row group at a time.
    """
    kinds = {"expected": pl.Enum(EXPECTED), "intent_kind": pl.Enum(KINDS)}
    rows = split.select(
        _KEY,
        pl.struct(_CONTENT).hash().alias("content"),
        *(pl.col(name).cast(kind) for name, kind in kinds.items()),
    )
    count = split.select(pl.len()).collect().item()
    starts = range(0, max(count, 1), ROW_GROUP)
    return pl.concat([rows.slice(start, ROW_GROUP).collect() for start in starts])


def _changed(
    old: pl.LazyFrame, new: pl.LazyFrame, keys: pl.Series, names: Sequence[str]
) -> dict[str, int]:
    """The number of rows among `keys` in which each column of `names` differs."""
    cells = (_KEY, *(pl.col(name).hash() for name in names))
    old_cells, new_cells = (
        split.select(cells).filter(pl.col("key").is_in(keys.implode())).collect(engine="streaming")
        for split in (old, new)
    )
    both = old_cells.join(new_cells, on="key", suffix="_new")
    differs = both.select((pl.col(name) != pl.col(f"{name}_new")).sum() for name in names)
    return differs.row(0, named=True)
