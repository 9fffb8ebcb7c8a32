"""Tables and small files, written whole or not at all, and the same bytes for the same rows."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from stages.core.errors import LibraError

RELEASED = ("data", "librachemqa")  # the one folder that the remote in Git holds
ROW_GROUP = 1 << 15  # rows that a reader of a part of a table has to take in at least


def read_table(path: str | Path, columns: Sequence[str]) -> pl.DataFrame:
    """A Parquet table with at least `columns`. Raises LibraError that names a missing file, column, or an empty table."""
    return _read(path, columns, lambda lazy: lazy.collect())


def scan_table(path: str | Path, columns: Sequence[str]) -> pl.LazyFrame:
    """The same without reading its rows: for a table that may be larger than memory."""
    _read(path, columns, lambda lazy: lazy.head(1).collect())
    return pl.scan_parquet(path)


def _read(
    path: str | Path, columns: Sequence[str], collect: Callable[[pl.LazyFrame], pl.DataFrame]
) -> pl.DataFrame:
    path = Path(path)
    if not path.exists():
        pulled = " (or `dvc pull`)" if path.parts[:2] == RELEASED else ""
        raise LibraError(f"{path} is not here; run `dvc repro`{pulled} first")
    try:
        table = collect(pl.scan_parquet(path))
    except pl.exceptions.PolarsError as error:
        raise LibraError(
            f"{path} isn't a readable Parquet file ({str(error).splitlines()[0]}); delete it and run `dvc repro`"
        ) from None
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise LibraError(
            f"{path} lacks column {', '.join(missing)}; it has {', '.join(table.columns)}"
        )
    if table.is_empty():
        raise LibraError(f"{path} has no rows; the stage that writes it selected nothing")
    return table


def write_table(table: pl.DataFrame, path: str | Path, sort_by: str | Sequence[str]) -> None:
    """Write `table` to `path` as Parquet: sorted by id, one thread's layout, temporary name, then renamed."""
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
    """Write `value` as indented JSON with sorted keys and a final newline; NaN is refused."""
    write_text(
        json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n",
        path,
    )


def write_text(text: str, path: str | Path) -> None:
    """Write `text` as UTF-8 with Unix line ends."""
    write_atomically(
        path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n")
    )


def write_atomically(path: str | Path, write) -> None:
    """Call `write(temporary_path)` beside `path`, then rename over it; a failure leaves `path` as it was."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
