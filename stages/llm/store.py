"""The reply store: every reply that was received from a server, kept in `.cache/replies.sqlite` of the project's real folder.

    with Store(store_path()) as store:
        store.find([key])            # {key: the server's JSON object}
        await store.keep(key, row)   # returns once the reply is on the disk

    python -m stages.llm.store                     # requests and tokens by stage and model
    python -m stages.llm.store export FILE.parquet # all of it as an archive
    python -m stages.llm.store import FILE.parquet # what is not there yet

A key is the SHA-256 of all that decides a reply: address, request body (model, messages with the prompt template's text, every
sampling setting, response schema) and sample index; never a time-out, a retry or how many are in flight. SQLite runs in WAL
mode, so that two runs can share the file; replies are written in groups, each group synced before its replies count as received.
"""

import argparse
import asyncio
import hashlib
import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.common import cli
from stages.common.errors import LibraError

COLUMNS = (
    "key", "stage", "base_url", "model", "sample_index", "request", "reply", "prompt_tokens", "completion_tokens", "received",
)  # fmt: skip
WAIT = 60.0  # seconds another process may hold the store
AT_ONCE = 500  # keys looked up in one query; SQLite takes at most 32,766


@dataclass(frozen=True)
class Kept:
    """A reply with what it answers. `request` and `reply` are JSON objects; the request never holds a key or a header."""

    stage: str
    base_url: str
    sample_index: int
    request: dict[str, Any]
    reply: dict[str, Any]

    def row(self, key: str) -> tuple:
        usage = self.reply.get("usage") or {}
        tokens = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
        texts = (canonical(self.request), canonical(self.reply))
        return key, self.stage, self.base_url, self.request["model"], self.sample_index, *texts, *tokens, int(time.time())


def store_path() -> Path:
    """Under `dvc exp run --queue` the working folder is a temporary copy; DVC_ROOT names the project it belongs to."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve() / ".cache" / "replies.sqlite"


def canonical(value: Any) -> str:
    """JSON with sorted keys and no blanks: one text for one value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def reply_key(base_url: str, body: dict[str, Any], sample_index: int) -> str:
    """Hex SHA-256 of what decides a reply."""
    decides = {"base_url": base_url.rstrip("/"), "body": body, "sample_index": sample_index}
    return hashlib.sha256(canonical(decides).encode()).hexdigest()


class Store:
    """An open reply store; a context manager. One that can't be read is set aside under another name, and a new one begun."""

    def __init__(self, path: Path):
        self.path = path
        self._waiting: list[tuple[tuple, asyncio.Future]] = []
        self._writer: asyncio.Task | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise LibraError(f"{path} can't be opened ({error}); free the disk or stop what holds it, then run again") from None
            aside = path.with_name(f"{path.name}.unreadable-{time.strftime('%Y%m%dT%H%M%S')}")
            for tail in ("", "-wal", "-shm"):
                if (part := Path(f"{path}{tail}")).exists():
                    part.rename(f"{aside}{tail}")
            print(f"the reply store {path} can't be read ({error}); it is kept as {aside.name}, and a new one begun", file=sys.stderr)
            self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = full")
            connection.execute(
                "create table if not exists replies (key text primary key, stage text not null, base_url text not null, "
                "model text not null, sample_index integer not null, request text not null, reply text not null, "
                "prompt_tokens integer, completion_tokens integer, received integer not null) without rowid"
            )
            found = tuple(row[1] for row in connection.execute("pragma table_info(replies)"))
            if found != COLUMNS:
                raise sqlite3.DatabaseError(f"its table has other columns: {', '.join(found)}")
            connection.execute("select count(*) from replies").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def find(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The kept replies of those `keys` that have one."""
        wanted, found = list(dict.fromkeys(keys)), {}
        for start in range(0, len(wanted), AT_ONCE):
            part = wanted[start : start + AT_ONCE]
            query = f"select key, reply from replies where key in ({', '.join('?' * len(part))})"
            found.update({key: json.loads(reply) for key, reply in self._connection.execute(query, part)})
        return found

    async def keep(self, key: str, kept: Kept) -> None:
        """Write a reply; returns when it is synced to the disk. Raises LibraError when it can't be."""
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((kept.row(key), written))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        await written

    async def _write(self) -> None:
        """One transaction for all that came in while the last one was synced."""
        while self._waiting:
            group, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self.add, [row for row, _ in group])
            except LibraError as error:
                for _, written in group:
                    written.done() or written.set_exception(error)
            else:
                for _, written in group:
                    written.done() or written.set_result(None)

    def add(self, rows: list[tuple]) -> int:
        """Write rows of COLUMNS, all or none; keys that are there already stay as they are. Returns how many are new."""
        before = self._connection.total_changes
        try:
            self._connection.execute("begin immediate")
            self._connection.executemany(f"insert or ignore into replies values ({', '.join('?' * len(COLUMNS))})", rows)
            self._connection.execute("commit")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("rollback")
            raise LibraError(
                f"{len(rows)} replies can't be kept in {self.path} ({error}); free the disk or stop what holds it, then run again: "
                "what was kept before isn't asked for again"
            ) from None
        return self._connection.total_changes - before

    def totals(self) -> list[tuple[str, str, int, int, int]]:
        """(stage, model, requests, prompt tokens, completion tokens)."""
        query = (
            "select stage, model, count(*), coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0) "
            "from replies group by stage, model order by stage, model"
        )
        return self._connection.execute(query).fetchall()

    def rows(self) -> list[tuple]:
        """All rows, by key."""
        return self._connection.execute(f"select {', '.join(COLUMNS)} from replies order by key").fetchall()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages.llm.store", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("show", "export", "import"), nargs="?", default="show")
    parser.add_argument("file", nargs="?", type=Path, help="the archive, a Parquet file")
    options = parser.parse_args()
    if (options.command == "show") == (options.file is not None):
        parser.error("export and import take a file, show takes none")
    cli.guarded("store", lambda: _command(options.command, options.file))


def _command(command: str, file: Path | None) -> None:
    import polars as pl

    from stages.common.tables import read_table, write_table

    with Store(store_path()) as store:
        if command == "export":
            table = pl.DataFrame(store.rows(), _schema(), orient="row")
            write_table(table, file, "key")
            print(f"{table.height:,} replies written to {file}")
        elif command == "import":
            table = read_table(file, COLUMNS)
            print(f"{store.add(table.select(COLUMNS).rows()):,} of {table.height:,} replies were new")
        else:
            totals = store.totals()
            print(f"{store.path}: {sum(row[2] for row in totals):,} replies")
            for stage, model, requests, asked, told in totals:
                print(f"  {stage:<24} {model:<32} {requests:>9,} requests {asked:>12,} + {told:,} tokens")


def _schema() -> dict[str, Any]:
    import polars as pl

    numbers = ("sample_index", "prompt_tokens", "completion_tokens", "received")
    return {column: pl.Int64 if column in numbers else pl.String for column in COLUMNS}


if __name__ == "__main__":
    main()
