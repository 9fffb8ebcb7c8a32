"""Tables and small files: written completely or not at all, same rows as the same bytes.

write_table(pl.DataFrame({"id": ["b", "a"]}), "data/t.parquet", sort_by="id")
read_table("data/t.parquet", ("id",))
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from stages.core.errors import LibraError

RELEASED = ("data", "librachemqa")  # the one folder that the remote in Git has
ROW_GROUP = 1 << 15  # rows that a reader of part of a table has to load at least


def read_table(path: str | Path, columns: Sequence[str]) -> pl.DataFrame:
    """A Parquet table with at least `columns`.

    Raises LibraError for a missing or unreadable file, a missing column, or an empty table.
    """
    return _read(path, columns, lambda lazy: lazy.collect())


def scan_table(path: str | Path, columns: Sequence[str]) -> pl.LazyFrame:
    """As `read_table`, without reading its rows: for a table that may be larger than memory."""
    _read(path, columns, lambda lazy: lazy.head(1).collect())
    return pl.scan_parquet(path)


def write_table(table: pl.DataFrame, path: str | Path, sort_by: str | Sequence[str]) -> None:
    """Write `table` as Parquet, sorted and with fixed settings: equal rows give equal bytes."""
    table = table.sort(sort_by)
    write_atomically(
        path,
        lambda temporary: table.write_parquet(
            temporary,
            compression="zstd",
            compression_level=9,
            statistics=False,
            row_group_size=ROW_GROUP,
        ),
    )


def write_json(value: Any, path: str | Path) -> None:
    """Write `value` as indented JSON with sorted keys and a final newline.

    Raises ValueError for NaN and infinity.
    """
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(text + "\n", path)


def write_text(text: str, path: str | Path) -> None:
    """Write `text` as UTF-8 with Unix line ends."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8", newline="\n")

    write_atomically(path, write)


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary_path)` in the folder of `path`, then rename the file to `path`.

    If `write` raises, `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(
    path: str | Path, columns: Sequence[str], collect: Callable[[pl.LazyFrame], pl.DataFrame]
) -> pl.DataFrame:
    path = Path(path)
    if not path.exists():
        pull = " (or `dvc pull`)" if path.parts[:2] == RELEASED else ""
        raise LibraError(f"{path} not found; run `dvc repro`{pull} first")
    try:
        table = collect(pl.scan_parquet(path))
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise LibraError(
            f"{path} isn't a readable Parquet file ({reason}); delete it and run `dvc repro`"
        ) from None
    if missing := [column for column in columns if column not in table.columns]:
        columns_there = ", ".join(table.columns)
        raise LibraError(f"{path} has no column {', '.join(missing)}; it has {columns_there}")
    if table.is_empty():
        raise LibraError(f"{path} has no rows; the stage that writes it selected nothing")
    return table
