"""The Batch API: many requests in one file, answered within a day at half the price.

    left = await send_batch(wire, store, budget, asked, take, say)   # one wave: submit, wait, take what came

Any server with `/v1/files` and `/v1/batches` will do. A batch is noted in the reply store before the server hears of it, under a mark
that travels in its metadata, so a killed run finds it again by the server's id or by the mark, waits on, and pays nothing twice.
"""

import json
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stages.common.errors import LibraError
from stages.llm.budget import Budget
from stages.llm.chat import is_completion
from stages.llm.store import Store
from stages.llm.wire import Stopped, Wire, filtered, is_filter

MOST_REQUESTS = 50_000  # in one batch
MOST_BYTES = 100_000_000
TRIES = 3  # how often a request that failed inside a batch is sent
POLL_FIRST, POLL_LONGEST = 1.0, 60.0  # seconds between two looks at a batch
ALL_BATCHES = "0" * 64  # the claim that covers looking for open batches and submitting new ones
MARK = "libra"  # the metadata key
GONE = "gone"


@dataclass
class Asked:
    """A request to go into a batch: its body, and about what it will cost."""

    body: dict[str, Any]
    tokens: float
    usd: float
    tries: int = 0


async def send_batch(
    wire: Wire,
    store: Store,
    budget: Budget,
    asked: Mapping[str, Asked],
    take: Callable[[str, dict[str, Any]], Awaitable[None]],
    say: Callable[[str], None],
) -> None:
    """Send `asked` (by reply key) as one or more batches, or join those that hold them already, and `take` every completion.

    What failed for a reason that may pass, or did not fit the budget, is still unanswered when this returns: call it again.
    Raises LibraError when a request fails for good or TRIES times, OverBudget, and Stopped.
    """
    base_url = wire.endpoint.base_url
    while not store.claim(ALL_BATCHES):  # another run is looking or submitting
        await wire.pause(0.5)
        if wire.stopping:
            raise Stopped
    try:
        under_way = [await _found_again(wire, store, *batch) for batch in store.batches(base_url) if batch[2] & asked.keys()]
        under_way = [batch for batch in under_way if batch is not None]
        covered = {key for _, _, keys in under_way for key in keys}
        waiting = [key for key in asked if key not in covered]
        room = None
        if waiting:
            count = len(waiting)
            room = budget.room(sum(asked[key].tokens for key in waiting) / count, sum(asked[key].usd for key in waiting) / count)
        waiting = waiting[:room]
        while waiting:
            lines, size = [], 0
            while len(lines) < min(MOST_REQUESTS, len(waiting)) and size < MOST_BYTES:
                key = waiting[len(lines)]
                body = wire.worded(asked[key].body)
                line = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
                lines.append(json.dumps(line, ensure_ascii=False).encode())
                size += len(lines[-1]) + 1
            keys, waiting = waiting[: len(lines)], waiting[len(lines) :]
            under_way.append(await _submit(wire, store, keys, b"\n".join(lines) + b"\n", say))
    finally:
        store.release(ALL_BATCHES)
    for mark, server_id, keys in under_way:
        await _collect(wire, store, mark, server_id, {key: asked[key] for key in keys if key in asked}, take, say)


async def _submit(wire: Wire, store: Store, keys: list[str], lines: bytes, say) -> tuple[str, str, set[str]]:
    client, mark = wire.client, uuid.uuid4().hex
    file = await wire.tried(lambda: client.files.create(file=("requests.jsonl", lines), purpose="batch"))
    store.begin_batch(mark, wire.endpoint.base_url, keys)
    batch = await wire.tried(
        lambda: client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={MARK: mark}
        )
    )
    store.batch_is(mark, batch.id)
    say(f"batch {batch.id} of {len(keys):,} requests is submitted")
    return mark, batch.id, set(keys)


async def _found_again(wire: Wire, store: Store, mark: str, server_id: str | None, keys: set[str]):
    """A noted batch with the server's id, by its mark where a kill came before the id; None (and forgotten) if there is none."""
    if server_id is None:

        async def look() -> str:
            async for batch in wire.client.batches.list(limit=100):
                if (batch.metadata or {}).get(MARK) == mark:
                    return batch.id
            return GONE

        server_id = await wire.tried(look, missing=GONE)
        if server_id == GONE:
            store.end_batch(mark)
            return None
        store.batch_is(mark, server_id)
    return mark, server_id, keys


async def _collect(wire: Wire, store: Store, mark: str, server_id: str, asked: dict[str, Asked], take, say) -> None:
    """Wait for a batch and take what it brought."""
    client, wait, began = wire.client, POLL_FIRST, time.monotonic()
    while True:
        batch = await wire.tried(lambda: client.batches.retrieve(server_id), missing=GONE)
        if batch == GONE:
            say(f"batch {server_id} is unknown to the server: its requests are sent again")
            store.end_batch(mark)
            _again(wire, asked, "the server lost the batch")
            return
        if batch.status in ("completed", "failed", "expired", "cancelled"):
            break
        counts = batch.request_counts
        done = f"{counts.completed + counts.failed:,} of {counts.total:,} done, " if counts and counts.total else ""
        say(f"batch {server_id}: {batch.status}, {done}{time.monotonic() - began:.0f} s")
        await wire.pause(wait)
        if wire.stopping:
            raise Stopped
        wait = min(wait * 1.5, POLL_LONGEST)
    if batch.status == "failed":
        store.end_batch(mark)
        faults = batch.errors.data if batch.errors and batch.errors.data else []
        why = wire.masked("; ".join(f"{fault.message}" for fault in faults[:3]))[:300] or "no reason given"
        raise LibraError(f"{wire.endpoint}: batch {server_id} failed as a whole: {why}")
    unanswered, fatal = dict(asked), None
    sent = wire.worded(next(iter(asked.values())).body) if asked else {}
    for file_id in (batch.output_file_id, batch.error_file_id):
        if file_id is None:
            continue
        content = await wire.tried(lambda file_id=file_id: client.files.content(file_id))
        for line in content.text.splitlines():
            try:
                result = json.loads(wire.masked(line))
                key = result["custom_id"]
            except (ValueError, KeyError, TypeError):
                continue  # its request stays unanswered, and is sent again
            if key not in unanswered:
                continue
            answer, status, fault = _result(wire, result)
            if answer is not None:
                await take(key, answer)
                del unanswered[key]
            elif wire.rewords(sent, status, fault):
                unanswered[key].tries -= 1  # not the request's fault
            elif 400 <= status < 500 and status not in (408, 409, 429):
                fatal = fatal or wire.status_words(status, fault)
    store.end_batch(mark)
    if fatal:
        raise LibraError(fatal)
    _again(wire, unanswered, f"batch {server_id} is {batch.status} without an answer to them")


def _result(wire: Wire, result: dict[str, Any]) -> tuple[dict[str, Any] | None, int, dict[str, Any]]:
    """(the completion or None, HTTP status or 0, the error object) of a line of a batch's result."""
    response = result.get("response") or {}
    status, body = response.get("status_code") or 0, response.get("body")
    if status == 200 and is_completion(body):
        return body, status, {}
    fault = (body.get("error") if isinstance(body, dict) else None) or result.get("error") or {}
    return (filtered(wire.endpoint.model) if is_filter(fault) else None), status, fault


def _again(wire: Wire, unanswered: dict[str, Asked], why: str) -> None:
    """Count a try of each; raises LibraError when one has had all of its tries."""
    for asked in unanswered.values():
        asked.tries += 1
    if worn := [asked for asked in unanswered.values() if asked.tries >= TRIES]:
        raise LibraError(f"{wire.endpoint}: {len(worn):,} requests failed in {TRIES} batches ({why}); run again later")
