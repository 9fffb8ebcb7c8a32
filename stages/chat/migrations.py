"""The reply store's SQLite file: its tables, and the numbered migrations that lead to them.

    connection = open_database(Path(".cache/replies.sqlite"))    # created or migrated as needed

`pragma user_version` is the number of migrations that a file has been through. To change the
schema, append a function to MIGRATIONS; never edit one that users may have run.

A file of an older schema is migrated in place and in one transaction: a crash leaves it as it was,
and a second process that opens it meanwhile waits. A file that can't be used (damaged, of a newer
schema, not a reply store) is left alone and raises LibraError, before anything is sent.
"""

import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from stages.chat.records import COLUMNS
from stages.chat.tokens import tokens
from stages.core.errors import LibraError

WAIT = 60.0  # seconds to wait for a process that holds the store
ADDED_COLUMNS = {"fault": None, "usd": None, "bought": 1}  # with what older rows get


def open_database(path: Path, name: str = "") -> sqlite3.Connection:
    """Open the store at `path`, at the current schema, in autocommit mode.

    `name` is the file's name in errors, by default `path`. Raises LibraError.
    """
    name = name or f"the reply store {path}"
    try:
        connection = sqlite3.connect(
            path, timeout=WAIT, isolation_level=None, check_same_thread=False
        )
        try:
            _check(connection, name)
            _enter_wal_mode(connection)
            _migrate(connection, name)
            connection.execute("select count(*) from replies").fetchone()  # walks all its pages
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise LibraError(f"{name} can't be opened ({error}); {advice(error)}") from None
    return connection


def advice(error: sqlite3.Error) -> str:
    """How to go on after an error of SQLite's."""
    if isinstance(error, sqlite3.OperationalError):
        return "free the disk or stop what holds it, then run again"
    return (
        "the file is damaged and was left as it is. Restore it from a backup; or move it away by "
        "hand (with its -wal and -shm files), after which `python -m stages.tools store import "
        "FILE` brings in what a copy or an archive holds, and the rest is paid for again"
    )


def _check(connection: sqlite3.Connection, name: str) -> None:
    """Raise LibraError unless the file is empty or a reply store of a known version."""
    version = _version(connection)
    if version > len(MIGRATIONS):
        raise LibraError(
            f"{name} has schema {version}, written by a newer Libra; this one knows up to "
            f"{len(MIGRATIONS)}. Update Libra (git pull), or move the file away to begin an empty "
            "store, which pays for its replies again"
        )

    tables = connection.execute("select name from sqlite_master where type = 'table'").fetchall()
    if not tables and version == 0:
        return
    columns = set(_columns(connection, "replies"))
    needed = {*COLUMNS, "bought"}
    missing = needed - columns - (ADDED_COLUMNS.keys() if version == 0 else set())
    unknown = columns - needed
    if not columns:
        fault = "it has no table `replies`"
    elif missing:
        fault = f"its table lacks {', '.join(sorted(missing))}"
    elif unknown:
        fault = f"its table has unknown columns: {', '.join(sorted(unknown))}"
    else:
        return
    raise LibraError(
        f"{name} isn't a reply store of any known version ({fault}); it was left as it is. Move it "
        "away by hand to begin an empty store, or use the version of Libra that wrote it"
    )


def _enter_wal_mode(connection: sqlite3.Connection) -> None:
    """Switch to WAL; SQLite reports "locked" at once if another process switches, so try again."""
    deadline = time.monotonic() + WAIT
    while True:
        try:
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = full")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _migrate(connection: sqlite3.Connection, name: str) -> None:
    if _version(connection) == len(MIGRATIONS):
        return
    connection.execute("begin immediate")
    try:
        _check(connection, name)  # again: another process may have migrated it while we waited
        for migration in MIGRATIONS[_version(connection) :]:
            migration(connection)
        connection.execute(f"pragma user_version = {len(MIGRATIONS)}")
        connection.execute("commit")
    except BaseException:
        connection.execute("rollback")
        raise


def _version(connection: sqlite3.Connection) -> int:
    return connection.execute("pragma user_version").fetchone()[0]


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in connection.execute(f"pragma table_info({table})")]


def _number_the_schema(connection: sqlite3.Connection) -> None:
    """The tables as of 2026-11-24, in an empty file or from the four layouts that came before.

    Those had no schema number: they lacked some tables, and the first one the columns `fault`,
    `usd` and `bought` too. All its replies were received from a server, so they count as bought.
    """
    columns = _columns(connection, "replies")
    complete = columns == [*COLUMNS, "bought"]
    if columns and not complete:
        connection.execute("alter table replies rename to old_replies")

    for statement in (
        """create table if not exists replies (
          key text primary key, stage text not null, base_url text not null, model text not null,
          sample_index integer not null, request text not null, reply text not null, fault text,
          prompt_tokens integer not null, completion_tokens integer not null, usd real,
          received integer not null, bought integer not null
        ) without rowid""",
        """create table if not exists used (
          run text not null, stage text not null, key text not null, primary key (run, stage, key)
        ) without rowid""",
        """create table if not exists batches (
          mark text primary key, id text, base_url text not null, created integer not null
        ) without rowid""",
        """create table if not exists batch_keys (
          mark text not null, key text not null, primary key (mark, key)
        ) without rowid""",
        """create table if not exists unasked (
          key text primary key, reply text not null
        ) without rowid""",
        """create table if not exists unfit (
          run text not null, stage text not null, key text not null, fault text not null,
          primary key (run, stage, key)
        ) without rowid""",
        """create table if not exists paid (
          run text primary key, requests integer not null, tokens integer not null,
          usd real not null
        ) without rowid""",
    ):
        connection.execute(statement)

    if columns and not complete:
        _copy_replies(connection, columns)
        connection.execute("drop table old_replies")


def _copy_replies(connection: sqlite3.Connection, columns: list[str]) -> None:
    """Copy `old_replies` into `replies`; token counts that were left open are worked out."""
    names = (*COLUMNS, "bought")
    insert = f"insert into replies values ({', '.join('?' * len(names))})"
    for values in connection.execute(f"select {', '.join(columns)} from old_replies"):
        row = ADDED_COLUMNS | dict(zip(columns, values, strict=True))
        if row["prompt_tokens"] is None or row["completion_tokens"] is None:
            row["prompt_tokens"], row["completion_tokens"] = _counts(row["request"], row["reply"])
        connection.execute(insert, [row[name] for name in names])


def _counts(request: str, reply: str) -> tuple[int, int]:
    try:
        return tokens(json.loads(request), json.loads(reply))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return 0, 0  # a damaged reply: `store retry` retires it


def _move_unfit_into_used(connection: sqlite3.Connection) -> None:
    """`unfit` had the key of `used` and one more column, so it becomes that column."""
    connection.execute("alter table used add column fault text")
    connection.execute(
        "insert into used select run, stage, key, fault from unfit where true "
        "on conflict do update set fault = excluded.fault"
    )
    connection.execute("drop table unfit")


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (
    _number_the_schema,
    _move_unfit_into_used,
)
