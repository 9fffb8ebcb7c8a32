"""The reply store: every reply from a server, in `.cache/replies.sqlite` of the project folder.

    with Store(store_path()) as store:
        store.find([key])                # {key: StoredReply}
        await store.keep(key, received)  # returns once the reply is on disk

`python -m stages.tools store` shows what is in it; migrations.py has the tables.

SQLite runs in WAL mode, so that two runs can share the file. Replies are written in groups, and
each group is synced before its replies count as received. An unusable reply (cut off, not of its
schema) is stored with its `fault`: counted and readable, but never taken for a good one. One that
is to be requested again is retired: its key gets a suffix after a `#`, and it still counts as paid.
What a run has paid is added up in the same transaction that stores a reply, so that processes with
one run name share one budget.

Tables: `replies`; `used`, the keys that a run's stage uses, with a fault if it couldn't use the
reply; `batches` under way and their `batch_keys`; `unasked`, completions of a batch that nothing
has asked for yet; `paid`, a run's total, since summing 20,000 replies again at each write of
another process takes 80 ms.
"""

import asyncio
import json
import os
import sqlite3
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.chat import migrations
from stages.chat.batch_records import BatchRecords
from stages.chat.protocol import is_completion
from stages.chat.records import COLUMNS, ReceivedReply, Spent, StoredReply
from stages.core.errors import LibraError
from stages.core.folders import cache_folder

QUICK = 0.005  # seconds a transaction may block the event loop
_DAMAGED = (
    "case when json_valid(reply) then json_type(reply, '$.choices[0].message') is not 'object' "
    "else 1 end"
)


def store_path() -> Path:
    """Where the store is."""
    return cache_folder() / "replies.sqlite"


def run_name() -> str:
    """Whose spending is added up: the DVC experiment, or "" for the workspace."""
    return os.environ.get("DVC_EXP_NAME", "")


class Store(BatchRecords):
    """An open reply store; a context manager. Raises LibraError if the file can't be used."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._queue: list[tuple[tuple, str, asyncio.Future]] = []
        self._writer: asyncio.Task | None = None
        self._quick = True
        self._own = self.paid_elsewhere = Spent(0, 0, 0.0)

    # Replies

    def find(self, keys: Iterable[str]) -> dict[str, StoredReply]:
        """The stored replies of those `keys` that have one. Raises LibraError for a damaged one."""
        columns = "key, reply, fault, prompt_tokens, completion_tokens, usd"
        return {
            key: StoredReply(self._parsed(key, reply), *rest)
            for key, reply, *rest in self._rows_of(f"{columns} from replies", keys)
        }

    def _parsed(self, key: str, reply: str) -> dict[str, Any]:
        try:
            if is_completion(completion := json.loads(reply)):
                return completion
        except (ValueError, RecursionError):
            pass
        raise LibraError(
            f"{self.path} holds a damaged reply ({key}): run `python -m stages.tools store retry` "
            "to retire it, and it is requested again"
        )

    async def keep(self, key: str, received: ReceivedReply) -> None:
        """Write a reply; returns once it is synced to disk. Raises LibraError if that fails."""
        written = asyncio.get_running_loop().create_future()
        self._queue.append((received.row(key), received.used_by, written))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        await written

    async def _write(self) -> None:
        """One transaction for everything that came in while the last one was synced.

        It runs on this thread as long as that is quick (most disks sync faster than a busy process
        switches threads), and on another one while the disk is slow or another process writes.
        """
        while self._queue:
            group, self._queue = self._queue, []
            rows = [row for row, _, _ in group]
            used = [(used_by, row[0]) for row, used_by, _ in group]
            start = time.perf_counter()
            try:
                if self._quick and self._begin_at_once():
                    self.add(rows, used)
                else:
                    await asyncio.to_thread(self.add, rows, used)
                self._quick = time.perf_counter() - start < QUICK
            except Exception as error:  # whatever it is, those who wait must get it
                for *_, written in group:
                    if not written.done():
                        written.set_exception(error)
            else:
                for *_, written in group:
                    if not written.done():
                        written.set_result(None)

    def _begin_at_once(self) -> bool:
        """Begin the transaction that `add` continues; False if another process is writing."""
        self._connection.execute("pragma busy_timeout = 0")
        try:
            self._connection.execute("begin immediate")
        except sqlite3.Error:
            return False
        finally:
            self._connection.execute(f"pragma busy_timeout = {1000 * migrations.WAIT:.0f}")
        return True

    def add(self, rows: list[tuple], used: Sequence[tuple[str, str]] = ()) -> int:
        """Write rows of COLUMNS and `bought`, all or none, with the (stage, key) that use them.

        Keys that are there already keep their reply. Returns how many are new.
        """
        with self._writing(f"{len(rows)} replies"):
            insert = f"insert or ignore into replies values ({', '.join('?' * (len(COLUMNS) + 1))})"
            new = [row for row in rows if self._connection.execute(insert, row).rowcount]
            self._connection.executemany(
                "delete from unasked where key = ?", [row[:1] for row in rows]
            )
            self._use(used)
            if used:
                self._pay([dict(zip((*COLUMNS, "bought"), row, strict=True)) for row in new])
        return len(new)

    def add_unpaid(self, rows: Iterable[tuple]) -> int:
        """Add rows of COLUMNS that somebody else paid for, but none that was retired here.

        Returns how many are new.
        """
        retired = "select 1 from replies where key > ? || '#' and key < ? || '$' and reply = ?"
        reply = COLUMNS.index("reply")
        return self.add(
            [(*row, 0) for row in rows if not self._read(retired, (row[0], row[0], row[reply]))]
        )

    def merge(self, other: Path) -> tuple[int, int]:
        """Add the other store's replies, what its runs used, and the batches it has under way.

        `other` has the current schema. Replies that were retired here don't come back. Returns how
        many of its replies are new, and how many it has.
        """
        execute = self._connection.execute
        execute("attach database ? as other", (str(other),))
        try:
            total = execute("select count(*) from other.replies").fetchone()[0]
            with self._writing(f"what is in {other}"):
                execute(
                    "update replies set bought = 1, usd = theirs.usd, received = theirs.received "
                    "from other.replies as theirs where theirs.key = replies.key "
                    "and theirs.reply = replies.reply and theirs.bought and not replies.bought"
                )
                new = execute(
                    "insert or ignore into replies select * from other.replies as theirs "
                    "where not exists (select 1 from main.replies as retired "
                    "where retired.key > theirs.key || '#' and retired.key < theirs.key || '$' "
                    "and retired.reply = theirs.reply)"
                ).rowcount
                execute("insert or ignore into used select * from other.used")
                execute(
                    "insert or ignore into unasked select * from other.unasked "
                    "where key not in (select key from replies)"
                )
                # A batch of which every reply is here has been collected.
                execute(
                    "insert or ignore into batches select * from other.batches where mark in "
                    "(select mark from other.batch_keys where key not in "
                    "(select key from replies union select key from unasked))"
                )
                execute(
                    "insert or ignore into batch_keys select * from other.batch_keys "
                    "where mark in (select mark from batches)"
                )
        finally:
            execute("detach database other")
        return new, total

    # What runs use and pay

    def use(self, stage: str, keys: Iterable[str], replace: bool) -> None:
        """Note that this run's `stage` uses `keys`, with `replace` in place of what it used before.

        Retired replies stay noted: they are paid.
        """
        with self._writing("the use of replies"):
            if replace:
                self._connection.execute(
                    "delete from used where run = ? and stage = ? and instr(key, '#') = 0",
                    (run_name(), stage),
                )
            self._use((stage, key) for key in keys)

    def _use(self, used: Iterable[tuple[str, str]]) -> None:
        self._connection.executemany(
            "insert or ignore into used (run, stage, key) values (?, ?, ?)",
            [(run_name(), *pair) for pair in used],
        )

    def _pay(self, replies: list[dict[str, Any]]) -> None:
        """Add replies to what this run has paid, and see what others with its name have added."""
        tokens = sum(reply["prompt_tokens"] + reply["completion_tokens"] for reply in replies)
        more = Spent(len(replies), tokens, sum(reply["usd"] or 0.0 for reply in replies))
        query = (
            "update paid set requests = requests + ?, tokens = tokens + ?, usd = usd + ? "
            "where run = ? returning requests, tokens, usd"
        )
        if total := self._connection.execute(query, (*more, run_name())).fetchall():
            self._own = self._own.plus(more)
            self.paid_elsewhere = Spent(*total[0]).plus(self._own, -1)

    def spent(self) -> Spent:
        """What this run's stages paid for replies they use or that were retired, now or earlier."""
        query = (
            "select count(*), coalesce(sum(prompt_tokens + completion_tokens), 0), "
            "coalesce(sum(usd), 0.0) from replies "
            "where bought and key in (select key from used where run = ?)"
        )
        return Spent(*self._read(query, (run_name(),))[0])

    def watch_spending(self) -> None:
        """Set `paid_elsewhere` to `spent`.

        From here on it also counts what other processes with this run's name pay.
        """
        with self._writing("what was spent"):
            self._own, self.paid_elsewhere = Spent(0, 0, 0.0), self.spent()
            self._connection.execute(
                "insert or replace into paid values (?, ?, ?, ?)",
                (run_name(), *self.paid_elsewhere),
            )

    # Replies to request again

    def note_unfit(self, stage: str, unfit: Mapping[str, str]) -> None:
        """Note {key: fault} of whole replies that this run's `stage` can't use.

        Replaces what was noted before.
        """
        with self._writing("which replies are unusable"):
            self._connection.execute(
                "update used set fault = null where run = ? and stage = ?", (run_name(), stage)
            )
            self._connection.executemany(
                "insert into used values (?, ?, ?, ?) "
                "on conflict do update set fault = excluded.fault",
                [(run_name(), stage, *pair) for pair in unfit.items()],
            )

    def retry(self, stage: str | None = None, unfit: Mapping[str, str] | None = None) -> int:
        """Retire the unusable replies of this run's `stage`, or of all. Returns how many.

        They are requested again. `unfit` are {key: fault} of replies that are whole but can't be
        used; by default those that `note_unfit` noted.
        """
        suffix = f"#{uuid.uuid4().hex}"
        execute = self._connection.execute
        query = (
            "update replies set key = key || ?, fault = coalesce(fault, ?) "
            "where instr(key, '#') = 0 and "
        )
        condition = ""
        values: tuple[str, ...] = ()
        if stage is not None:
            condition = "and key in (select key from used where run = ? and stage = ?)"
            values = (run_name(), stage)
        if unfit is None:
            unfit = dict(self._read("select key, fault from used where fault is not null"))

        with self._writing("what is to be requested again"):
            count = execute(
                f"{query} (fault is not null or {_DAMAGED}) {condition}",
                (suffix, "damaged", *values),
            ).rowcount
            for key, fault in unfit.items():
                count += execute(f"{query} key = ?", (suffix, fault, key)).rowcount
            # They were used, so they stay paid.
            execute(
                "update used set key = key || ?, fault = null "
                "where exists (select 1 from replies where replies.key = used.key || ?)",
                (suffix, suffix),
            )
        return count

    # Looking into it

    def average(self, base_url: str, model: str, stage: str) -> tuple[int, float, float]:
        """(replies, characters of request JSON per prompt token, completion tokens per reply)."""
        query = (
            "select count(*), "
            "coalesce(sum(length(request)) * 1.0 / nullif(sum(prompt_tokens), 0), 0), "
            "coalesce(avg(completion_tokens), 0) "
            "from replies where base_url = ? and model = ? and stage = ?"
        )
        return self._read(query, (base_url.rstrip("/"), model, stage))[0]

    def sample(
        self, base_url: str, model: str, stage: str, count: int
    ) -> list[tuple[dict, dict, int, int]]:
        """(request, reply, prompt tokens, completion tokens) of up to `count` replies.

        `stage` is a pattern: "%" for all stages.
        """
        query = (
            "select request, reply, prompt_tokens, completion_tokens from replies "
            f"where base_url = ? and model = ? and stage like ? and not {_DAMAGED} "
            "order by key limit ?"
        )
        rows = self._read(query, (base_url.rstrip("/"), model, stage, count))
        return [
            (json.loads(request), json.loads(reply), *counts) for request, reply, *counts in rows
        ]

    def totals(self) -> list[tuple]:
        """(stage, model, replies, unusable ones, prompt tokens, completion tokens, USD or None)."""
        query = (
            "select stage, model, count(*), count(fault), sum(prompt_tokens), "
            "sum(completion_tokens), sum(usd) from replies "
            "group by stage, model order by stage, model"
        )
        return self._read(query)

    def rows(self, used: bool = False) -> list[tuple]:
        """All rows of COLUMNS and `bought` by key; with `used` those in use, without `bought`."""
        if not used:
            return self._read(f"select {', '.join(COLUMNS)}, bought from replies order by key")
        # Measurements beside the pipeline (`benchmark NAME`, `pairwise A B`) have a space in their
        # run's name, as no experiment has.
        return self._read(
            f"select {', '.join(COLUMNS)} from replies where instr(key, '#') = 0 "
            "and key in (select key from used where instr(run, ' ') = 0) order by key"
        )

    def faults(self) -> list[tuple[str, str, str, str]]:
        """(stage, fault, key, the server's JSON) of unusable and of retired replies."""
        query = (
            "select stage, coalesce(fault, noted, 'retired') as why, key, reply from replies "
            "left join (select key, min(fault) as noted from used where fault is not null "
            "group by key) using (key) "
            "where fault is not null or noted is not null or instr(key, '#') > 0 "
            "order by stage, key"
        )
        return self._read(query)
