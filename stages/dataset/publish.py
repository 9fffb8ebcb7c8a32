"""Writing a released folder: replaced as a whole or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl

from stages.core.tables import ROW_GROUP


def write_split(rows: pl.LazyFrame, path: Path) -> None:
    """Write the triplets of a split as Parquet, sorted by id.

    A row group at a time, with the same bytes on any number of threads.
    """
    # combine writes them in order; a sort would hold all of them in memory.
    in_order = (pl.col("triplet_id") >= pl.col("triplet_id").shift()).all()
    if not rows.select(in_order).collect(engine="streaming").item():
        rows = rows.sort("triplet_id")
    rows.sink_parquet(
        path,
        compression="zstd",
        compression_level=9,
        statistics=False,
        row_group_size=ROW_GROUP,
        maintain_order=True,
    )


def publish(write: Callable[[Path], object], folder: Path) -> None:
    """Let `write(new_folder)` fill a folder next to `folder`, then put it in its place.

    If `write` fails, `folder` is left as it was.
    """
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():  # an earlier run was killed between the two renames
        old.rename(folder)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)

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
