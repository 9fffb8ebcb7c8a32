"""Access to the reply store's file: reads, transactions, and claims between processes."""

import fcntl
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from stages.chat.migrations import WAIT, advice, open_database
from stages.core.errors import LibraError

LOOKUP_CHUNK = 500  # keys in one query; SQLite takes at most 32,766


class Database:
    """An open file of migrations.py; a context manager. Raises LibraError if it can't be used."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = open_database(path)
        # A connection of its own: reads don't wait while a transaction is synced.
        self._reader = sqlite3.connect(path, timeout=WAIT, isolation_level=None)
        self._claims = open(path.with_name("replies.lock"), "wb")  # noqa: SIM115 (see __exit__)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._claims.close()
        self._reader.close()
        self._connection.close()

    def claim(self, key: str) -> bool:
        """Whether this process may request `key`: no other one is at it.

        The kernel ends a claim with its process.
        """
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(key[:15], 16))
        except OSError:
            return False
        return True

    def release(self, key: str) -> None:
        """End a claim."""
        fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, int(key[:15], 16))

    def _rows_of(self, columns_from_table: str, keys: Iterable[str]) -> Iterator[tuple]:
        """The rows of `keys`."""
        distinct = list(dict.fromkeys(keys))
        for start in range(0, len(distinct), LOOKUP_CHUNK):
            chunk = distinct[start : start + LOOKUP_CHUNK]
            marks = ", ".join("?" * len(chunk))
            yield from self._read(f"select {columns_from_table} where key in ({marks})", chunk)

    def _read(self, query: str, values: Iterable[Any] = ()) -> list[tuple]:
        try:
            return self._reader.execute(query, tuple(values)).fetchall()
        except sqlite3.Error as error:
            raise LibraError(
                f"stored replies can't be read from {self.path} ({error}); {advice(error)}"
            ) from None

    @contextmanager
    def _writing(self, subject: str) -> Iterator[None]:
        """One transaction, all or nothing; `subject` is what errors say couldn't be stored."""
        try:
            if not self._connection.in_transaction:
                self._connection.execute("begin immediate")
            yield
            self._connection.execute("commit")
        except BaseException as error:
            if self._connection.in_transaction:
                self._connection.execute("rollback")
            if not isinstance(error, sqlite3.Error):
                raise
            raise LibraError(
                f"{subject} can't be stored in {self.path} ({error}); {advice(error)}. "
                "What was stored before isn't requested again"
            ) from None
