"""The batches that a run has under way, as noted in the reply store.

    store.begin_batch(mark, base_url, keys)    # before the server gets it: no crash loses it
    store.set_batch_id(mark, "batch_1")
    store.end_batch(mark)                      # its replies are stored, or it is lost

What a batch brings beyond what the run still asks for is stored as `unasked`: it is paid.
"""

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from stages.chat.database import Database


class BatchRecords(Database):
    """The part of the reply store that is about batches."""

    def begin_batch(self, mark: str, base_url: str, keys: Iterable[str]) -> None:
        """Note a batch before the server gets it, so that no crash loses it.

        `mark` is our own name for it; the server's id follows.
        """
        with self._writing("a batch"):
            self._connection.execute(
                "insert into batches values (?, null, ?, ?)", (mark, base_url, int(time.time()))
            )
            self._connection.executemany(
                "insert into batch_keys values (?, ?)", [(mark, key) for key in keys]
            )

    def set_batch_id(self, mark: str, server_id: str) -> None:
        """Note the server's id of a batch."""
        with self._writing("a batch"):
            self._connection.execute("update batches set id = ? where mark = ?", (server_id, mark))

    def end_batch(self, mark: str) -> None:
        """Forget a batch: its replies are stored, or it is lost."""
        with self._writing("a batch"):
            self._connection.execute("delete from batches where mark = ?", (mark,))
            self._connection.execute("delete from batch_keys where mark = ?", (mark,))

    def batches(self, base_url: str) -> list[tuple[str, str | None, set[str]]]:
        """(mark, server's id, keys) of the batches under way."""
        batches = self._read(
            "select mark, id from batches where base_url = ? order by created, mark", (base_url,)
        )
        query = "select key from batch_keys where mark = ?"
        return [
            (mark, server_id, {key for (key,) in self._read(query, (mark,))})
            for mark, server_id in batches
        ]

    def keep_unasked(self, completions: Mapping[str, dict[str, Any]]) -> None:
        """Store a batch's completions, by key, that this run doesn't ask for: they are paid."""
        query = (
            "insert or ignore into unasked select ?1, ?2 "
            "where not exists (select 1 from replies where key = ?1)"
        )
        with self._writing(f"{len(completions)} replies"):
            self._connection.executemany(
                query, [(key, json.dumps(completion)) for key, completion in completions.items()]
            )

    def unasked(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """What `keep_unasked` stored of `keys`, until a run keeps it as its reply."""
        rows = self._rows_of("key, reply from unasked", keys)
        return {key: json.loads(reply) for key, reply in rows}

    def holds_unasked(self) -> bool:
        """Whether there are completions that nothing has asked for yet."""
        return bool(self._read("select 1 from unasked limit 1"))
