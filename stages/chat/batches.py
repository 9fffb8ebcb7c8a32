"""The Batch API: many requests in one file, answered within a day at half the price.

    await send_batch(wire, store, budget, asked, take, say)   # one wave: submit, wait, take what came
    await fetch_batches(wire, store, asked, take, say)        # only what earlier waves brought, or bring: before asking online

Any server with `/v1/files` and `/v1/batches` will do. A batch is noted in the reply store before the server hears of it, under a mark
that travels in its metadata, so a killed run finds it again by the server's id or by the mark, waits on, and pays nothing twice.
What a batch brings beyond what this run asks for is kept for the run that does; one of which nothing is asked for any more is
collected when it is done.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from stages.chat.budget import Budget, OverBudget
from stages.chat.pace import NAP
from stages.chat.protocol import is_completion
from stages.chat.store import Store
from stages.chat.wire import REAL_KEY, Stopped, Wire, filtered, is_filter, server_json
from stages.core.errors import LibraError

MOST_REQUESTS = 50_000  # in one batch
MOST_BYTES = 100_000_000
TRIES = 3  # how often a request that failed inside a batch is sent
POLL_FIRST, POLL_LONGEST = 1.0, 60.0  # seconds between two looks at a batch
ALL_BATCHES = "0" * 64  # the claim that covers looking for open batches and submitting new ones
TOGETHER = 500  # completions that are kept in one go: each alone would wait for the disk
MARK = "libra"  # the metadata key
GONE = "gone"
T = TypeVar("T")
Take = Callable[[str, dict[str, Any]], Awaitable[None]]


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
    take: Take,
    say: Callable[[str], None],
) -> None:
    """Send `asked` (by reply key) as one or more batches, or join those that hold them already, and `take` every completion.

    What failed for a reason that may pass, or did not fit the budget, is still unanswered when this returns: call it again.
    Raises LibraError when a request fails for good or TRIES times, OverBudget, and Stopped.
    """
    async with _alone(wire, store):
        asked, under_way, covered = await _brought(wire, store, asked, take)
        waiting = [key for key in asked if key not in covered]
        if waiting:
            waiting = waiting[: _room(budget, asked, len(asked) - len(waiting))]
        while waiting:
            lines, size = [], 0
            while len(lines) < min(MOST_REQUESTS, len(waiting)) and size < MOST_BYTES:
                key = waiting[len(lines)]
                body = wire.worded(asked[key].body)
                line = {
                    "custom_id": key,
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": body,
                }
                lines.append(json.dumps(line, ensure_ascii=False).encode())
                size += len(lines[-1]) + 1
            keys, waiting = waiting[: len(lines)], waiting[len(lines) :]
            under_way.append(await _submit(wire, store, keys, b"\n".join(lines) + b"\n", say))
    await _collect_all(wire, store, under_way, asked, take, say)


async def fetch_batches(
    wire: Wire, store: Store, asked: Mapping[str, Asked], take: Take, say: Callable[[str], None]
) -> None:
    """Take what batches brought of `asked` (by reply key), and wait for those under way that hold some of it: they are paid.

    Raises LibraError and Stopped.
    """
    async with _alone(wire, store):
        asked, under_way, covered = await _brought(wire, store, asked, take)
    if held := sum(key in covered for key in asked):
        mend = "cancel it at the server, and the rest is asked online"
        say(f"{held:,} requests are in a batch that is paid; it is waited for ({mend})")
    await _collect_all(wire, store, under_way, asked, take, say)


@asynccontextmanager
async def _alone(wire: Wire, store: Store) -> AsyncIterator[None]:
    """While no other run looks for batches or submits one. Raises Stopped."""
    while not store.claim(ALL_BATCHES):
        await wire.pause(0.5)
        if wire.stopping:
            raise Stopped
    try:
        yield
    finally:
        store.release(ALL_BATCHES)


async def _brought(wire: Wire, store: Store, asked: Mapping[str, Asked], take: Take):
    """Take what other runs' batches brought of `asked`. The rest of it, this endpoint's batches, and their keys."""
    kept = store.unasked(asked)
    await _take_all(take, kept)
    asked = {key: one for key, one in asked.items() if key not in kept}
    found = [
        await _found_again(wire, store, *batch) for batch in store.batches(wire.endpoint.base_url)
    ]
    under_way = [batch for batch in found if batch is not None]
    return asked, under_way, {key for _, _, keys in under_way for key in keys}


def _room(budget: Budget, asked: Mapping[str, Asked], under_way: int) -> int | None:
    """How many of `asked` fit the budget beside those `under_way`, None for all. Raises OverBudget where no one does or is."""
    count = len(asked)
    try:
        room = budget.room(
            sum(one.tokens for one in asked.values()) / count,
            sum(one.usd for one in asked.values()) / count,
        )
    except OverBudget:
        if not under_way:
            raise
        return 0  # what is under way is paid already: it comes in first, then the next wave tells
    return None if room is None else max(0, room - under_way)


async def _fetched(wire: Wire, once: Callable[[], Awaitable[T]], missing: T | None = None) -> T:
    """As `Wire.tried`, but given up at once when the stage stops: the next run fetches it."""
    task = asyncio.create_task(wire.tried(once, missing))
    try:
        while not task.done():
            if wire.stopping:
                raise Stopped
            await asyncio.wait([task], timeout=NAP)
    finally:
        task.cancel()
    return task.result()


async def _take_all(take: Take, answers: Mapping[str, dict[str, Any]]) -> None:
    waiting = list(answers.items())
    for start in range(0, len(waiting), TOGETHER):
        await asyncio.gather(*(take(*pair) for pair in waiting[start : start + TOGETHER]))


async def _submit(
    wire: Wire, store: Store, keys: list[str], lines: bytes, say
) -> tuple[str, str, set[str]]:
    client, mark = wire.client, uuid.uuid4().hex
    file = await _fetched(
        wire,
        lambda: wire.typed(client.files.create(file=("requests.jsonl", lines), purpose="batch")),
    )
    store.begin_batch(mark, wire.endpoint.base_url, keys)
    tries = 0

    async def create() -> str:
        nonlocal tries
        tries += 1
        if tries > 1 and (found := await _marked(wire, mark)) != GONE:
            return found  # the server had taken it, only its answer was lost
        metadata = {MARK: mark}
        batch = client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata=metadata,
        )
        return (await wire.typed(batch)).id

    server_id = await wire.tried(create)
    store.batch_is(mark, server_id)
    say(f"batch {server_id} of {len(keys):,} requests is submitted")
    return mark, server_id, set(keys)


async def _marked(wire: Wire, mark: str) -> str:
    """The server's id of the batch with this mark, or GONE."""
    try:
        async for batch in wire.client.batches.list(limit=100):
            if (batch.metadata or {}).get(MARK) == mark:
                return batch.id
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise wire.no_json(error) from None
    return GONE


async def _found_again(wire: Wire, store: Store, mark: str, server_id: str | None, keys: set[str]):
    """A noted batch with the server's id, by its mark where a kill came before the id; None (and forgotten) if there is none."""
    if server_id is None:
        server_id = await _fetched(wire, lambda: _marked(wire, mark), missing=GONE)
        if server_id == GONE:
            store.end_batch(mark)
            return None
        store.batch_is(mark, server_id)
    return mark, server_id, keys


async def _collect_all(
    wire: Wire, store: Store, under_way: list, asked: Mapping[str, Asked], take: Take, say
) -> None:
    for mark, server_id, keys in under_way:
        try:
            await _collect(wire, store, mark, server_id, keys, asked, take, say)
        except LibraError as error:
            if keys & asked.keys():
                raise
            say(
                f"batch {server_id}, of which nothing is asked for any more, is left at the server: {error}"
            )


async def _collect(
    wire: Wire,
    store: Store,
    mark: str,
    server_id: str,
    keys: set[str],
    asked: Mapping[str, Asked],
    take: Take,
    say,
) -> None:
    """Wait for a batch of `keys` and take what it brought of `asked`; the rest is kept for a run that asks for it.

    One that holds nothing of `asked` isn't waited for.
    """
    unanswered = {key: asked[key] for key in keys if key in asked}
    client, wait, began = wire.client, POLL_FIRST, time.monotonic()
    while True:
        batch = await _fetched(
            wire, lambda: wire.typed(client.batches.retrieve(server_id)), missing=GONE
        )
        if batch == GONE and not unanswered:
            return  # perhaps of another account; it may be known again to the next run
        if batch == GONE:
            say(f"batch {server_id} is unknown to the server: its requests are sent again")
            store.end_batch(mark)
            _again(wire, unanswered, "the server lost the batch")
            return
        if batch.status in ("completed", "failed", "expired", "cancelled"):
            break
        if not unanswered:
            return
        counts = batch.request_counts
        done = (
            f"{counts.completed + counts.failed:,} of {counts.total:,} done, "
            if counts and counts.total
            else ""
        )
        say(f"batch {server_id}: {batch.status}, {done}{time.monotonic() - began:.0f} s")
        await wire.pause(wait)
        if wire.stopping:
            raise Stopped
        wait = min(wait * 1.5, POLL_LONGEST)
    if batch.status == "failed":
        store.end_batch(mark)
        if not unanswered:
            return
        faults = batch.errors.data if batch.errors and batch.errors.data else []
        why = (
            wire.masked("; ".join(f"{fault.message}" for fault in faults[:3]))[:300]
            or "no reason given"
        )
        raise LibraError(f"{wire.endpoint}: batch {server_id} failed as a whole: {why}")
    fatal, sent = None, wire.worded(next(iter(unanswered.values())).body) if unanswered else {}
    answers: dict[str, dict[str, Any]] = {}
    for file_id in (batch.output_file_id, batch.error_file_id):
        if file_id is None:
            continue
        content = await _fetched(wire, lambda file_id=file_id: client.files.content(file_id))
        for line in content.content.decode("utf-8", "replace").split(
            "\n"
        ):  # splitlines would cut a text at U+2028 too
            try:
                result = server_json(wire.masked(line, REAL_KEY))
            except ValueError:
                continue  # its request stays unanswered, and is sent again
            key = result.get("custom_id") if isinstance(result, dict) else None
            if not isinstance(key, str) or key not in keys:
                continue
            answer, status, fault = _result(wire, result)
            if answer is not None:
                answers[key] = answer
            elif key not in unanswered:
                continue
            elif wire.rewords(sent, status, fault):
                unanswered[key].tries -= 1  # not the request's fault
            elif 400 <= status < 500 and status not in (408, 409, 429):
                fatal = fatal or wire.status_words(status, fault)
    await _take_all(take, {key: answer for key, answer in answers.items() if key in unanswered})
    store.keep_unasked({key: answer for key, answer in answers.items() if key not in unanswered})
    store.end_batch(mark)
    if fatal:
        raise LibraError(fatal)
    unanswered = {key: one for key, one in unanswered.items() if key not in answers}
    _again(wire, unanswered, f"batch {server_id} is {batch.status} without an answer to them")


def _result(
    wire: Wire, result: dict[str, Any]
) -> tuple[dict[str, Any] | None, int, dict[str, Any]]:
    """(the completion or None, HTTP status or 0, the error object) of a line of a batch's result."""
    response = _dict(result.get("response"))
    status, body = response.get("status_code"), response.get("body")
    status = status if type(status) is int else 0
    if status == 200 and is_completion(body):
        return body, status, {}
    fault = _dict(_dict(body).get("error")) or _dict(result.get("error"))
    return (filtered(wire.endpoint.model) if is_filter(fault) else None), status, fault


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _again(wire: Wire, unanswered: dict[str, Asked], why: str) -> None:
    """Count a try of each; raises LibraError when one has had all of its tries."""
    for asked in unanswered.values():
        asked.tries += 1
    if worn := [asked for asked in unanswered.values() if asked.tries >= TRIES]:
        raise LibraError(
            f"{wire.endpoint}: {len(worn):,} requests failed in {TRIES} batches ({why}); run again later"
        )
