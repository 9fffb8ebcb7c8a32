"""Replies that were received before: rows are settled from the reply store and the archives.

kept = KeptReplies(store, call)
missing = kept.missing(call.rows(requests))    # the rows that have to be sent
"""

from collections.abc import Iterator

from stages.chat.archives import store_from_archives
from stages.chat.calls import Call, Row
from stages.chat.database import LOOKUP_CHUNK
from stages.chat.protocol import read
from stages.chat.records import StoredReply
from stages.chat.store import Store


class KeptReplies:
    """The kept replies to the requests of one call."""

    def __init__(self, store: Store, call: Call):
        self.store, self._call = store, call

    def missing(self, rows: list[Row]) -> list[Row]:
        """Settle `rows`; returns those it can't settle, each at its first unknown attempt."""
        rows = list(self._unknown(rows))
        searched: set[str] = set()

        # An unusable reply in an archive leads on to the next attempt, which has another key.
        while unseen := {row.key for row in rows} - searched:
            self._call.tally.from_archive += store_from_archives(self.store, unseen)
            searched |= unseen
            rows = list(self._unknown(rows))
        return rows

    def settle(self, row: Row, reply: StoredReply) -> bool:
        """Settle a row with a kept reply; False when another attempt is due (row.key)."""
        tally = self._call.tally
        tally.from_store += 1
        tally.count(reply.fault, reply.prompt_tokens, reply.completion_tokens, reply.usd)
        if row.settle(read(reply.reply, row.request)):
            return True
        row.key = self._call.key(row.current())
        return False

    def _unknown(self, rows: list[Row]) -> Iterator[Row]:
        """Settle `rows` from the store alone; yields those it can't settle."""
        while rows:
            later: list[Row] = []
            for start in range(0, len(rows), LOOKUP_CHUNK):
                part = rows[start : start + LOOKUP_CHUNK]
                replies = self.store.find(row.key for row in part)
                for row in part:
                    if row.key not in replies:
                        yield row
                    elif not self.settle(row, replies[row.key]):
                        later.append(row)
            rows = later
