"""One call of `Session.ask`, and its distinct requests as rows, each with its attempts.

    call = Call("craft", "craft", endpoint, 2025, Tally.of(endpoint))
    rows = call.rows(requests)
    ...                              # settle every row
    replies = in_order(rows, len(requests))

A reply that doesn't fit its schema is asked for again under another sample index, ASK_AGAIN times.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from stages.chat.protocol import OFFLINE, ChatRequest, Endpoint, Reply, request_body
from stages.chat.records import reply_key
from stages.chat.tally import Tally

ASK_AGAIN = 2  # how often a reply that doesn't fit its schema is asked for again
# Attempts have sample indices + 1000, + 2000: clear of those a caller numbers itself.
ASK_AGAIN_STRIDE = 1000


@dataclass(slots=True)
class Row:
    """A distinct request; `positions` are its indices in the caller's list.

    `key` is the reply store's key of the current attempt.
    """

    request: ChatRequest
    positions: list[int]
    key: str
    attempt: int = 0
    reply: Reply | None = None

    def current(self) -> ChatRequest:
        """The request with the sample index of the current attempt."""
        return self.at(self.attempt)

    def at(self, attempt: int) -> ChatRequest:
        """The request with the sample index of `attempt`."""
        if not attempt:
            return self.request
        index = self.request.sample_index + attempt * ASK_AGAIN_STRIDE
        return replace(self.request, sample_index=index)

    def settle(self, reply: Reply) -> bool:
        """Take a reply; False when it is unusable and another attempt is due."""
        if reply.error is not None and self.request.schema is not None and self.attempt < ASK_AGAIN:
            self.attempt += 1
            return False
        self.reply = replace(reply, key=self.key)
        return True


def in_order(rows: list[Row], count: int) -> list[Reply]:
    """The replies of settled rows in the order of the caller's `count` requests."""
    replies: list[Any] = [None] * count
    for row in rows:
        for position in row.positions:
            replies[position] = row.reply
    return replies


@dataclass
class Call:
    """What `stage` asks of an endpoint in one go; `kind` names it in progress lines and records.

    `bar` is the progress bar (tqdm) of its rows, set once they are counted.
    """

    stage: str
    kind: str
    endpoint: Endpoint
    random_seed: int
    tally: Tally
    bar: Any = None

    def rows(self, requests: list[ChatRequest]) -> list[Row]:
        """A row for each distinct request, in order; in this process every request is asked."""
        rows: dict[str, Row] = {}
        for position, request in enumerate(requests):
            key = str(position) if self.endpoint.base_url == OFFLINE else self.key(request)
            if key in rows:
                rows[key].positions.append(position)
            else:
                rows[key] = Row(request, [position], key)
        return list(rows.values())

    def body(self, request: ChatRequest) -> dict[str, Any]:
        """The request body (JSON)."""
        return request_body(self.endpoint, request, self.random_seed)

    def key(self, request: ChatRequest) -> str:
        """The reply store's key of a request, however the server wants it worded (wire.py)."""
        return reply_key(self.endpoint.base_url, self.body(request), request.sample_index)

    def keys(self, rows: Iterable[Row]) -> Iterator[str]:
        """The keys of all attempts of `rows` so far: unusable replies were used, and paid, too."""
        for row in rows:
            yield from (self.key(row.at(attempt)) for attempt in range(row.attempt))
            yield row.key
