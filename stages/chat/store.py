"""The reply store: every reply that was received from a server, kept in `.cache/replies.sqlite` of the project's real folder.

    with Store(store_path()) as store:
        store.find([key])            # {key: Found(the server's JSON object, its fault or None, tokens, USD)}
        await store.keep(key, row)   # returns once the reply is on the disk

`python -m stages.tools store` looks into it.

A key is the SHA-256 of all that decides a reply: address, request body (model, messages with the prompt template's text, every
sampling setting, response schema) and sample index; never a time-out, a retry or how many are in flight. SQLite runs in WAL
mode, so that two runs can share the file; replies are written in groups, each group synced before its replies count as received.
A reply of no use (cut off, not of its schema) is kept with its `fault`: counted, to be read, never taken for a good one. One that
is to be asked for again is put aside: its key gets a mark after a `#`, and it still counts as paid. What a run has paid is added up
in the same transaction that keeps a reply, so that processes with one run name keep one budget together.
"""

import asyncio
import fcntl
import hashlib
import json
import os
import re
import sqlite3
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from stages.chat.protocol import is_completion
from stages.chat.tokens import tokens
from stages.core.errors import LibraError
from stages.core.folders import cache_folder

COLUMNS = (
    "key", "stage", "base_url", "model", "sample_index", "request", "reply", "fault", "prompt_tokens", "completion_tokens", "usd",
    "received",
)  # fmt: skip
SQLITE = b"SQLite format 3\0"  # how its files begin
ARCHIVES = "data/replies"  # Parquet files that came with a release
WAIT = 60.0  # seconds another process may hold the store
QUICK = 0.005  # seconds a transaction may stop all else in the process
AT_ONCE = 500  # keys looked up in one query; SQLite takes at most 32,766
_TABLES = """
create table if not exists replies (
  key text primary key, stage text not null, base_url text not null, model text not null, sample_index integer not null,
  request text not null, reply text not null, fault text, prompt_tokens integer not null, completion_tokens integer not null,
  usd real, received integer not null, bought integer not null
) without rowid;
create table if not exists used (
  run text not null, stage text not null, key text not null, primary key (run, stage, key)
) without rowid;
create table if not exists batches (
  mark text primary key, id text, base_url text not null, created integer not null
) without rowid;
create table if not exists batch_keys (mark text not null, key text not null, primary key (mark, key)) without rowid;
create table if not exists unasked (key text primary key, reply text not null) without rowid;
create table if not exists unfit (
  run text not null, stage text not null, key text not null, fault text not null, primary key (run, stage, key)
) without rowid;
create table if not exists paid (
  run text primary key, requests integer not null, tokens integer not null, usd real not null
) without rowid;
"""
_UNREADABLE = "case when json_valid(reply) then json_type(reply, '$.choices[0].message') is not 'object' else 1 end"


class Found(NamedTuple):
    """A kept reply: the server's JSON object, why it isn't a good one (or None), tokens, and USD (None where no price is known)."""

    reply: dict[str, Any]
    fault: str | None
    prompt_tokens: int
    completion_tokens: int
    usd: float | None


class Spent(NamedTuple):
    """What was paid for: replies, tokens of prompts and completions together, USD."""

    requests: int
    tokens: int
    usd: float

    def plus(self, other: "Spent", times: int = 1) -> "Spent":
        return Spent(*(mine + times * theirs for mine, theirs in zip(self, other, strict=True)))


class _OtherColumns(sqlite3.DatabaseError):
    """A store of another version."""


@dataclass(frozen=True)
class Kept:
    """A reply with what it answers. `request` and `reply` are JSON objects; the request never holds a key or a header."""

    stage: str
    base_url: str
    sample_index: int
    request: dict[str, Any]
    reply: dict[str, Any]
    fault: str | None = None
    usd: float | None = None  # None where no price is known
    used_by: str = ""  # the stage that asked

    def row(self, key: str) -> tuple:
        texts = (
            _storable(canonical(self.request)),
            _storable(canonical(self.reply)),
            self.fault and _storable(self.fault),
        )
        where = (self.stage, self.base_url, self.request["model"], self.sample_index)
        return (
            key,
            *where,
            *texts,
            *tokens(self.request, self.reply),
            self.usd,
            int(time.time()),
            1,
        )


def _storable(text: str) -> str:
    """`text` with lone surrogates, which SQLite doesn't take, as JSON escapes: JSON reads back as what it was."""
    return re.sub("[\ud800-\udfff]", lambda lone: f"\\u{ord(lone[0]):04x}", text)


def store_path() -> Path:
    """Where the store lies."""
    return cache_folder() / "replies.sqlite"


def run_name() -> str:
    """Whose spending is counted together: the DVC experiment, or "" for the workspace."""
    return os.environ.get("DVC_EXP_NAME", "")


def canonical(value: Any) -> str:
    """JSON with sorted keys and no blanks: one text for one value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def reply_key(base_url: str, body: dict[str, Any], sample_index: int) -> str:
    """Hex SHA-256 of what decides a reply."""
    decides = {"base_url": base_url.rstrip("/"), "body": body, "sample_index": sample_index}
    return hashlib.sha256(canonical(decides).encode("utf-8", "surrogatepass")).hexdigest()


class Store:
    """An open reply store; a context manager. One that can't be read is set aside under another name, and a new one begun."""

    def __init__(self, path: Path):
        self.path = path
        self._waiting: list[tuple[tuple, str, asyncio.Future]] = []
        self._writer: asyncio.Task | None = None
        self._quick = True
        self._own = self.paid_elsewhere = Spent(0, 0, 0.0)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise LibraError(
                    f"{path} can't be opened ({error}); free the disk or stop what holds it, then run again"
                ) from None
            aside = path.with_name(f"{path.name}.unreadable-{time.strftime('%Y%m%dT%H%M%S')}")
            for tail in ("", "-wal", "-shm"):
                if (part := Path(f"{path}{tail}")).exists():
                    part.rename(f"{aside}{tail}")
            back = (
                f"; `python -m stages.tools store import {aside}` takes its replies over"
                if isinstance(error, _OtherColumns)
                else ""
            )
            what = f"the reply store {path} can't be read ({error}); it is kept as {aside.name}, and a new one begun"
            print(what + back, file=sys.stderr)
            self._connection = self._open()
        self._reader = sqlite3.connect(
            path, timeout=WAIT, isolation_level=None
        )  # doesn't wait while a group is synced
        self._claims = open(path.with_name("replies.lock"), "wb")  # noqa: SIM115 (closed by __exit__)

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=WAIT, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare(connection)
            found = tuple(row[1] for row in connection.execute("pragma table_info(replies)"))
            if found != (*COLUMNS, "bought"):
                raise _OtherColumns(f"its table has other columns: {', '.join(found)}")
            connection.execute("select count(*) from replies").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """WAL and the tables; two processes that begin a store at once get "locked" whatever the time-out, so try again."""
        until = time.monotonic() + WAIT
        while True:
            try:
                connection.execute("pragma journal_mode = wal")
                connection.execute("pragma synchronous = full")
                connection.executescript(_TABLES)
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.02)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self._claims.close()
        self._reader.close()
        self._connection.close()

    def find(self, keys: Iterable[str]) -> dict[str, Found]:
        """The kept replies of those `keys` that have one."""
        what = "key, reply, fault, prompt_tokens, completion_tokens, usd from replies"
        return {
            key: Found(self._json(key, reply), *rest) for key, reply, *rest in self._of(what, keys)
        }

    def _json(self, key: str, reply: str) -> dict[str, Any]:
        try:
            if is_completion(found := json.loads(reply)):
                return found
        except (ValueError, RecursionError):
            pass
        raise LibraError(
            f"{self.path} holds a damaged reply ({key}): `python -m stages.tools store retry` puts it aside, to be asked for again"
        )

    def _of(self, what: str, keys: Iterable[str]) -> Iterator[tuple]:
        """The rows of `what` (columns and table) for `keys`."""
        wanted = list(dict.fromkeys(keys))
        for start in range(0, len(wanted), AT_ONCE):
            part = wanted[start : start + AT_ONCE]
            yield from self._read(
                f"select {what} where key in ({', '.join('?' * len(part))})", part
            )

    def claim(self, key: str) -> bool:
        """Whether this process may ask for `key`: no other one is asking. The kernel ends a claim with its process."""
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(key[:15], 16))
        except OSError:
            return False
        return True

    def release(self, key: str) -> None:
        """End a claim."""
        fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, int(key[:15], 16))

    async def keep(self, key: str, kept: Kept) -> None:
        """Write a reply; returns when it is synced to the disk. Raises LibraError when it can't be."""
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((kept.row(key), kept.used_by, written))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        await written

    async def _write(self) -> None:
        """One transaction for all that came in while the last one was synced.

        On this thread as long as that is quick (most disks sync in less time than a busy process takes to change threads), on another one
        while the disk is slow or another process writes.
        """
        while self._waiting:
            group, self._waiting = self._waiting, []
            rows, used = (
                [row for row, _, _ in group],
                [(used_by, row[0]) for row, used_by, _ in group],
            )
            began = time.perf_counter()
            try:
                if self._quick and self._begun():
                    self.add(rows, used)
                else:
                    await asyncio.to_thread(self.add, rows, used)
                self._quick = time.perf_counter() - began < QUICK
            except Exception as error:  # whatever it is: who waits for it must hear of it
                for *_, written in group:
                    written.done() or written.set_exception(error)
            else:
                for *_, written in group:
                    written.done() or written.set_result(None)

    def _begun(self) -> bool:
        """Begin a transaction, which `add` then writes in; False when that can't be done at once."""
        self._connection.execute("pragma busy_timeout = 0")
        try:
            self._connection.execute("begin immediate")
        except sqlite3.Error:
            return False
        finally:
            self._connection.execute(f"pragma busy_timeout = {1000 * WAIT:.0f}")
        return True

    def add(self, rows: list[tuple], used: Sequence[tuple[str, str]] = ()) -> int:
        """Write rows of COLUMNS and `bought`, all or none, and that (stage, key) use them; known keys stay as they are.

        Returns how many are new.
        """
        with self._writing(f"{len(rows)} replies"):
            insert = f"insert or ignore into replies values ({', '.join('?' * (len(COLUMNS) + 1))})"
            new = [row for row in rows if self._connection.execute(insert, row).rowcount]
            self._connection.executemany(
                "delete from unasked where key = ?", [row[:1] for row in rows]
            )
            self._use(used)
            if used:
                self._pay([dict(zip(COLUMNS, row)) for row in new])
        return len(new)

    def _pay(self, replies: list[dict[str, Any]]) -> None:
        """Add replies to what this run has paid, and see what others with its name added."""
        tokens_all = sum(one["prompt_tokens"] + one["completion_tokens"] for one in replies)
        more = Spent(len(replies), tokens_all, sum(one["usd"] or 0.0 for one in replies))
        query = (
            "update paid set requests = requests + ?, tokens = tokens + ?, usd = usd + ? where run = ? "
            "returning requests, tokens, usd"
        )
        if total := self._connection.execute(query, (*more, run_name())).fetchall():
            self._own = self._own.plus(more)
            self.paid_elsewhere = Spent(*total[0]).plus(self._own, -1)

    def use(self, stage: str, keys: Iterable[str], anew: bool) -> None:
        """Note that this run's `stage` uses `keys`; `anew` drops what it used before, but for what was put aside: it is paid."""
        with self._writing("the use of replies"):
            if anew:
                self._connection.execute(
                    "delete from used where run = ? and stage = ? and instr(key, '#') = 0",
                    (run_name(), stage),
                )
            self._use((stage, key) for key in keys)

    def _use(self, used: Iterable[tuple[str, str]]) -> None:
        self._connection.executemany(
            "insert or ignore into used values (?, ?, ?)", [(run_name(), *pair) for pair in used]
        )

    def spent(self) -> Spent:
        """What this run's stages paid for the replies they use or put aside, in this try or in an earlier one."""
        query = (
            "select count(*), coalesce(sum(prompt_tokens + completion_tokens), 0), coalesce(sum(usd), 0.0) from replies "
            "where bought and key in (select key from used where run = ?)"
        )
        return Spent(*self._read(query, (run_name(),))[0])

    def reckon(self) -> None:
        """Set `paid_elsewhere` to `spent`; from here on it tells what others with this run's name pay besides this process."""
        with self._writing("what was spent"):
            self._own, self.paid_elsewhere = Spent(0, 0, 0.0), self.spent()
            self._connection.execute(
                "insert or replace into paid values (?, ?, ?, ?)",
                (run_name(), *self.paid_elsewhere),
            )

    def average(self, base_url: str, model: str, stage: str) -> tuple[int, float, float]:
        """(replies, characters of a request's JSON per prompt token, completion tokens per reply) of what is kept of a stage."""
        query = (
            "select count(*), coalesce(sum(length(request)) * 1.0 / nullif(sum(prompt_tokens), 0), 0), "
            "coalesce(avg(completion_tokens), 0) from replies where base_url = ? and model = ? and stage = ?"
        )
        return self._read(query, (base_url.rstrip("/"), model, stage))[0]

    def sample(
        self, base_url: str, model: str, stage: str, count: int
    ) -> list[tuple[dict, dict, int, int]]:
        """(request, reply, prompt tokens, completion tokens) of up to `count` replies: a stage's, or (`stage` %) of all stages."""
        query = (
            "select request, reply, prompt_tokens, completion_tokens from replies "
            f"where base_url = ? and model = ? and stage like ? and not {_UNREADABLE} order by key limit ?"
        )
        found = self._read(query, (base_url.rstrip("/"), model, stage, count))
        return [
            (json.loads(request), json.loads(reply), *counts) for request, reply, *counts in found
        ]

    def retry(self, stage: str | None = None, unfit: Mapping[str, str] | None = None) -> int:
        """Put the replies of no use aside, so that they are asked for again (of one stage of this run, or of all). How many.

        `unfit` are {key: fault} of replies that are whole but can't be used; without it, those that `note_unfit` noted.
        """
        which = (
            "" if stage is None else "and key in (select key from used where run = ? and stage = ?)"
        )
        of = () if stage is None else (run_name(), stage)
        if unfit is None:
            unfit = dict(self._read("select key, fault from unfit"))
        mark, execute = f"#{uuid.uuid4().hex}", self._connection.execute
        with self._writing("what is to be asked again"):
            query = "update replies set key = key || ?, fault = coalesce(fault, ?) where instr(key, '#') = 0"
            count = execute(
                f"{query} and (fault is not null or {_UNREADABLE}) {which}", (mark, "damaged", *of)
            ).rowcount
            count += sum(
                execute(f"{query} and key = ?", (mark, fault, key)).rowcount
                for key, fault in unfit.items()
            )
            aside = "exists (select 1 from replies where replies.key = used.key || ?)"
            self._connection.executemany(
                "delete from unfit where key = ?", [(key,) for key in unfit]
            )
            execute(
                f"update used set key = key || ? where {aside}", (mark, mark)
            )  # what was put aside stays paid
        return count

    def note_unfit(self, stage: str, unfit: Mapping[str, str]) -> None:
        """Note {key: fault} of replies that are whole but can't be used, in place of what was noted of this run's `stage`."""
        with self._writing("what can't be used"):
            self._connection.execute(
                "delete from unfit where run = ? and stage = ?", (run_name(), stage)
            )
            noted = [(run_name(), stage, *pair) for pair in unfit.items()]
            self._connection.executemany("insert into unfit values (?, ?, ?, ?)", noted)

    def archived(self, keys: Iterable[str], folder: Path = Path(ARCHIVES)) -> int:
        """Take those of `keys` that the archives in `folder` hold into the store. How many were new."""
        import polars as pl

        from stages.core.tables import read_table

        wanted, added = pl.Series("key", list(keys), pl.String), 0
        for file in sorted(folder.glob("*.parquet")):
            table = read_table(file, COLUMNS)
            added += self.take(
                table.filter(pl.col("key").is_in(wanted.implode())).select(COLUMNS).iter_rows()
            )
        return added

    def take(self, rows: Iterable[tuple]) -> int:
        """Add rows of COLUMNS out of an archive: nobody's spending. What was put aside doesn't come back. How many were new."""
        aside = "select 1 from replies where key > ? || '#' and key < ? || '$' and reply = ?"
        reply = COLUMNS.index("reply")
        return self.add(
            [(*row, 0) for row in rows if not self._read(aside, (row[0], row[0], row[reply]))]
        )

    def begin_batch(self, mark: str, base_url: str, keys: Iterable[str]) -> None:
        """Note a batch before the server is told, so that no kill loses it. `mark` is ours; the server's id follows."""
        with self._writing("a batch"):
            self._connection.execute(
                "insert into batches values (?, null, ?, ?)", (mark, base_url, int(time.time()))
            )
            self._connection.executemany(
                "insert into batch_keys values (?, ?)", [(mark, key) for key in keys]
            )

    def batch_is(self, mark: str, server_id: str) -> None:
        """Note the server's id of a batch."""
        with self._writing("a batch"):
            self._connection.execute("update batches set id = ? where mark = ?", (server_id, mark))

    def end_batch(self, mark: str) -> None:
        """Forget a batch: its replies are kept, or it is lost."""
        with self._writing("a batch"):
            self._connection.execute("delete from batches where mark = ?", (mark,))
            self._connection.execute("delete from batch_keys where mark = ?", (mark,))

    def keep_unasked(self, replies: Mapping[str, dict[str, Any]]) -> None:
        """Keep completions (by key) of a batch that this run doesn't ask for: they are paid, and one that asks takes them."""
        query = "insert or ignore into unasked select ?1, ?2 where not exists (select 1 from replies where key = ?1)"
        with self._writing(f"{len(replies)} replies"):
            self._connection.executemany(
                query, [(key, json.dumps(reply)) for key, reply in replies.items()]
            )

    def unasked(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The completions that `keep_unasked` kept of `keys`; once a run keeps one as its reply, `add` forgets it here."""
        return {key: json.loads(reply) for key, reply in self._of("key, reply from unasked", keys)}

    def holds_unasked(self) -> bool:
        """Whether `keep_unasked` kept anything that nobody has asked for yet."""
        return bool(self._read("select 1 from unasked limit 1"))

    def batches(self, base_url: str) -> list[tuple[str, str | None, set[str]]]:
        """(mark, server's id, keys) of the batches under way."""
        found = self._read(
            "select mark, id from batches where base_url = ? order by created, mark", (base_url,)
        )
        query = "select key from batch_keys where mark = ?"
        return [
            (mark, server_id, {key for (key,) in self._read(query, (mark,))})
            for mark, server_id in found
        ]

    def _read(self, query: str, values: Iterable[Any] = ()) -> list[tuple]:
        try:
            return self._reader.execute(query, tuple(values)).fetchall()
        except sqlite3.Error as error:
            raise LibraError(
                f"kept replies can't be read from {self.path} ({error}); free the disk or stop what holds it, then run again"
            ) from None

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """One transaction, whole or not at all."""
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
                f"{what} can't be kept in {self.path} ({error}); free the disk or stop what holds it, then run again: "
                "what was kept before isn't asked for again"
            ) from None

    def totals(self) -> list[tuple]:
        """(stage, model, replies, of them of no use, prompt tokens, completion tokens, USD or None)."""
        query = (
            "select stage, model, count(*), count(fault), sum(prompt_tokens), sum(completion_tokens), sum(usd) "
            "from replies group by stage, model order by stage, model"
        )
        return self._read(query)

    def rows(self, used: bool = False) -> list[tuple]:
        """All rows of COLUMNS by key, or those that any run uses now."""
        # What is measured beside the pipeline (`benchmark NAME`, `pairwise A B`) has a blank in its run's name, as no experiment has.
        only = (
            "where key in (select key from used where instr(run, ' ') = 0) and instr(key, '#') = 0"
            if used
            else ""
        )
        return self._read(f"select {', '.join(COLUMNS)} from replies {only} order by key")

    def faults(self) -> list[tuple[str, str, str, str]]:
        """(stage, fault, key, the server's JSON) of the replies of no use and of those put aside, by stage and key."""
        query = (
            "select stage, coalesce(fault, noted, 'put aside') as why, key, reply from replies "
            "left join (select key, min(fault) as noted from unfit group by key) using (key) "
            "where fault is not null or noted is not null or instr(key, '#') > 0 order by stage, key"
        )
        return self._read(query)


def taken_over(path: Path) -> list[tuple]:
    """The rows of COLUMNS of a store that was set aside, whatever its version. Raises LibraError."""
    try:
        with closing(sqlite3.connect(path)) as old:
            have = {row[1] for row in old.execute("pragma table_info(replies)")}
            if lacking := set(COLUMNS) - have - {"fault", "usd"}:
                raise LibraError(
                    f"{path} lacks column {', '.join(sorted(lacking))}: its replies can't be taken over"
                )
            columns = (column if column in have else "null" for column in COLUMNS)
            whole = "where instr(key, '#') = 0"
            return old.execute(f"select {', '.join(columns)} from replies {whole}").fetchall()
    except sqlite3.Error as error:
        raise LibraError(
            f"{path} can't be read ({error}); import an archive of its replies, where there is one"
        ) from None
