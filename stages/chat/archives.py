"""Replies from and to files: Parquet archives, and other stores.

    store_from_archives(store, keys)          # what data/replies/*.parquet holds of `keys`
    export_archive(store, Path("all.parquet"), used=False)
    import_file(store, Path("old.sqlite"))    # (12, 20): 12 of its 20 replies were new

An archive that goes with a release (`used`) holds what somebody else paid for. An archive of the
whole store has one column more, `bought`, so that an import keeps what was paid for.
"""

import sqlite3
import tempfile
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from stages.chat.migrations import advice, open_database
from stages.chat.records import COLUMNS
from stages.chat.store import Store
from stages.core.errors import LibraError

ARCHIVES = Path("data/replies")  # archives that came with a release
SQLITE_MAGIC = b"SQLite format 3\0"


def store_from_archives(store: Store, keys: Iterable[str], folder: Path = ARCHIVES) -> int:
    """Add those of `keys` that the archives in `folder` hold, as not bought. Returns the count."""
    import polars as pl

    from stages.core.tables import read_table

    wanted = pl.Series("key", list(keys), pl.String)
    added = 0
    for file in sorted(folder.glob("*.parquet")):
        rows = read_table(file, COLUMNS).filter(pl.col("key").is_in(wanted.implode()))
        added += store.add_unpaid(rows.select(COLUMNS).iter_rows())
    return added


def export_archive(store: Store, file: Path, used: bool) -> int:
    """Write all replies to `file`, or with `used` those that a stage's last run used.

    Returns how many. Raises LibraError if there are none.
    """
    import polars as pl

    from stages.core.tables import write_table

    rows = store.rows(used)
    if not rows:
        which = "that the last run of a stage used" if used else "to export"
        raise LibraError(
            f"{store.path} holds no replies {which}, so {file} isn't written; "
            "what `offline` answers is never stored"
        )
    counts = ("sample_index", "prompt_tokens", "completion_tokens", "received", "bought")
    dtypes: dict[str, Any] = dict.fromkeys(counts, pl.Int64) | {"usd": pl.Float64}
    columns = COLUMNS if used else (*COLUMNS, "bought")
    schema = {column: dtypes.get(column, pl.String) for column in columns}
    write_table(pl.DataFrame(rows, schema, orient="row"), file, "key")
    return len(rows)


def import_file(store: Store, file: Path) -> tuple[int, int]:
    """Merge an archive or another store, of any known version, into `store`.

    What was bought stays bought, with the time it was received. A store also brings what its runs
    used and the batches under way. `file` itself isn't changed. Returns how many of its replies
    were new, and how many it has. Raises LibraError.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "replies.sqlite"
        if _is_sqlite(file):
            _copy_store(file, copy)
        else:
            _copy_archive(file, copy)
        return store.merge(copy)


def _is_sqlite(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC


def _copy_store(file: Path, copy: Path) -> None:
    """Copy the store `file` and migrate the copy."""
    try:
        with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
    except sqlite3.Error as error:
        raise LibraError(f"{file} can't be read ({error}); {advice(error)}") from None
    open_database(copy, str(file)).close()


def _copy_archive(file: Path, copy: Path) -> None:
    """Write an archive's replies into a new store."""
    import polars as pl

    from stages.core.tables import read_table

    table = read_table(file, COLUMNS)
    if "bought" not in table.columns:  # of a release, or written before archives had the column
        table = table.with_columns(bought=pl.lit(0))
    with Store(copy) as store:
        store.add(table.select(*COLUMNS, "bought").rows())
