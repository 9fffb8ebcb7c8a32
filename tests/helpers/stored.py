"""Replies for tests of the reply store."""

import asyncio
from pathlib import Path

from stages.chat.records import ReceivedReply, reply_key
from stages.chat.store import Store

URL = "http://h/v1"
BODY = {
    "model": "m",
    "messages": [{"role": "user", "content": "How is soap made?"}],
    "temperature": 0.0,
    "seed": 7,
}
REPLY = {
    "choices": [{"message": {"content": "By saponification."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 5},
}


def received(i: int = 0) -> tuple[str, ReceivedReply]:
    """The i-th of any number of replies, with its key."""
    body = {**BODY, "seed": i}
    return reply_key(URL, body, i), ReceivedReply("craft", URL, i, body, {**REPLY, "id": str(i)})


def keep_all(store: Store, count: int) -> None:
    """Store the first `count` replies, all at once."""

    async def keep() -> None:
        async with asyncio.timeout(60):
            await asyncio.gather(*(store.keep(*received(i)) for i in range(count)))

    asyncio.run(keep())


def checkpoint(path: Path) -> None:
    """Move everything from the WAL into the store's file."""
    with Store(path) as store:
        store._connection.execute("pragma wal_checkpoint(truncate)")
