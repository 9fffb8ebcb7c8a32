"""A released folder is swapped in whole or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl

from stages.core.tables import ROW_GROUP


def write_split(rows: pl.LazyFrame, path: Path) -> None:
    """Write the triplets of a split as Parquet, sorted by id, a row group at a time: the same bytes on any number of threads."""
    ordered = (
        rows.select((pl.col("triplet_id") >= pl.col("triplet_id").shift()).all())
        .collect(engine="streaming")
        .item()
    )
    rows = (
        rows if ordered else rows.sort("triplet_id")
    )  # combine wrote them in order; a sort holds all in memory
    rows.sink_parquet(
        path,
        compression="zstd",
        compression_level=9,
        statistics=False,
        row_group_size=ROW_GROUP,
        maintain_order=True,
    )


def publish(write: Callable[[Path], None], folder: Path) -> None:
    """Let `write(new_folder)` fill a folder beside `folder`, then swap it in; a failure leaves `folder` as it was."""
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():  # a run was killed between the two renames below
        old.rename(folder)
    for left_over in (new, old):
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        write(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
