"""The Batch API: many requests in one file, answered within a day at half the price.

    batches = Batches(wire, store, take, say)
    await batches.send(requests, budget)   # one wave: submit, wait, take what came
    await batches.fetch(requests)          # only what earlier waves bring: before asking online

Any server with `/v1/files` and `/v1/batches` will do. A batch is noted in the reply store before
the server gets it, under a mark that travels in its metadata. A killed run finds it again by the
server's id or by the mark, waits on, and pays nothing twice. What a batch brings beyond what this
run asks for is kept for the run that does.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

from stages.chat.batch_results import failure, progress_of, read_results
from stages.chat.budget import Budget, OverBudget
from stages.chat.pace import NAP
from stages.chat.store import Store
from stages.chat.wire import Stopped, Wire
from stages.core.errors import LibraError

MOST_REQUESTS = 50_000  # in one batch
MOST_BYTES = 100_000_000
TRIES = 3  # how often a request that failed inside a batch is sent
POLL_FIRST, POLL_LONGEST = 1.0, 60.0  # seconds between two looks at a batch
ALL_BATCHES = "0" * 64  # the claim for looking for open batches and submitting new ones
TOGETHER = 500  # completions kept in one go: one by one, each would wait for the disk
MARK = "libra"  # the metadata key
OVER = ("completed", "failed", "expired", "cancelled")
T = TypeVar("T")
Take = Callable[[str, dict[str, Any]], Awaitable[None]]


@dataclass
class BatchRequest:
    """A request that goes into a batch: its body, its likely cost, and how often it failed."""

    body: dict[str, Any]
    tokens: float
    usd: float
    tries: int = 0


class Open(NamedTuple):
    """A batch under way: our mark, the server's id, and the reply keys in it."""

    mark: str
    server_id: str
    keys: set[str]


class Batches:
    """The batches of one endpoint.

    `take(key, completion)` keeps a completion, `say` reports progress. All methods raise LibraError
    and Stopped.
    """

    def __init__(self, wire: Wire, store: Store, take: Take, say: Callable[[str], None]):
        self._wire, self._store, self._take, self._say = wire, store, take, say

    async def send(self, requests: Mapping[str, BatchRequest], budget: Budget) -> None:
        """Send `requests` (by reply key) in batches, or join those that hold them already.

        What failed for a reason that may pass, or did not fit the budget, is unanswered when this
        returns: call it again. Raises LibraError when a request fails for good or TRIES times, and
        OverBudget.
        """
        async with self._alone():
            requests, under_way = await self._take_stored(requests)
            in_batch = set().union(*(batch.keys for batch in under_way))
            waiting = [key for key in requests if key not in in_batch]
            if waiting:
                waiting = waiting[: _room(budget, requests, len(requests) - len(waiting))]
            while waiting:
                lines = self._lines(waiting, requests)
                batch_keys, waiting = waiting[: len(lines)], waiting[len(lines) :]
                under_way.append(await self._submit(batch_keys, b"\n".join(lines) + b"\n"))
        await self._collect_all(under_way, requests)

    async def fetch(self, requests: Mapping[str, BatchRequest]) -> None:
        """Take what batches brought of `requests`; wait for those that hold some: they are paid."""
        async with self._alone():
            requests, under_way = await self._take_stored(requests)
        in_batch = set().union(*(batch.keys for batch in under_way))
        if count := sum(key in in_batch for key in requests):
            fix = "cancel it at the server to have the rest asked online"
            self._say(f"waiting for a batch with {count:,} of the requests, which is paid ({fix})")
        await self._collect_all(under_way, requests)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """While no other run looks for batches or submits one."""
        while not self._store.claim(ALL_BATCHES):
            await self._pause(0.5)
        try:
            yield
        finally:
            self._store.release(ALL_BATCHES)

    async def _pause(self, seconds: float) -> None:
        await self._wire.pause(seconds)
        if self._wire.stopping:
            raise Stopped

    async def _take_stored(
        self, requests: Mapping[str, BatchRequest]
    ) -> tuple[Mapping[str, BatchRequest], list[Open]]:
        """Take what other runs' batches brought. Returns the other requests and open batches."""
        stored = self._store.unasked(requests)
        await self._take_all(stored)
        rest = {key: request for key, request in requests.items() if key not in stored}
        noted = self._store.batches(self._wire.endpoint.base_url)
        batches = [await self._with_id(*batch) for batch in noted]
        return rest, [batch for batch in batches if batch is not None]

    async def _with_id(self, mark: str, server_id: str | None, keys: set[str]) -> Open | None:
        """A noted batch; one killed before its id was noted is found by its mark, or forgotten."""
        if server_id is None:
            server_id = await self._tried(lambda: self._marked(mark))
            if server_id is None:
                self._store.end_batch(mark)
                return None
            self._store.set_batch_id(mark, server_id)
        return Open(mark, server_id, keys)

    async def _marked(self, mark: str) -> str | None:
        """The server's id of the batch with this mark; None if it has none."""
        params: dict[str, Any] = {"limit": 100}
        while page := await self._wire.get("/batches", params):
            try:
                for batch in page["data"]:
                    if (batch.get("metadata") or {}).get(MARK) == mark:
                        return str(batch["id"])
                if not page["data"] or not page.get("has_more"):
                    return None
                params["after"] = page["data"][-1]["id"]
            except (AttributeError, KeyError, TypeError):
                raise self._wire.no_json("no list of batches") from None
        return None

    async def _tried(self, once: Callable[[], Awaitable[T]]) -> T:
        """As `Wire.tried`, but given up at once when the stage stops: the next run fetches it."""

        async def tried() -> T:
            return await self._wire.tried(once)

        task = asyncio.create_task(tried())
        try:
            while not task.done():
                if self._wire.stopping:
                    raise Stopped
                await asyncio.wait([task], timeout=NAP)
        finally:
            task.cancel()
        return task.result()

    async def _take_all(self, completions: Mapping[str, dict[str, Any]]) -> None:
        pairs = list(completions.items())
        for start in range(0, len(pairs), TOGETHER):
            await asyncio.gather(*(self._take(*pair) for pair in pairs[start : start + TOGETHER]))

    def _lines(self, keys: list[str], requests: Mapping[str, BatchRequest]) -> list[bytes]:
        """The first of `keys` as lines of a file, as many as one batch takes."""
        lines: list[bytes] = []
        size = 0
        for key in keys[:MOST_REQUESTS]:
            if size >= MOST_BYTES:
                break
            line = {
                "custom_id": key,
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": self._wire.wording.apply(requests[key].body),
            }
            lines.append(json.dumps(line, ensure_ascii=False).encode())
            size += len(lines[-1]) + 1
        return lines

    async def _submit(self, keys: list[str], content: bytes) -> Open:
        """Submit a batch of `keys` with the file `content`."""
        wire, mark = self._wire, uuid.uuid4().hex
        files = {"file": ("requests.jsonl", content)}
        file = await self._tried(
            lambda: wire.call("/files", files=files, data={"purpose": "batch"})
        )
        self._store.begin_batch(mark, wire.endpoint.base_url, keys)
        body = {
            "input_file_id": file["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {MARK: mark},
        }
        tries = 0

        async def create() -> str:
            nonlocal tries
            tries += 1
            if tries > 1 and (server_id := await self._marked(mark)) is not None:
                return server_id  # the server had taken it, only its answer was lost
            return (await wire.call("/batches", body))["id"]

        server_id = await wire.tried(create)
        self._store.set_batch_id(mark, server_id)
        self._say(f"batch {server_id} of {len(keys):,} requests is submitted")
        return Open(mark, server_id, set(keys))

    async def _collect_all(
        self, under_way: list[Open], requests: Mapping[str, BatchRequest]
    ) -> None:
        for batch in under_way:
            try:
                await self._collect(batch, requests)
            except LibraError as error:
                if batch.keys & requests.keys():
                    raise
                self._say(
                    f"batch {batch.server_id}, of which nothing is asked for any more, "
                    f"is left at the server: {error}"
                )

    async def _collect(self, batch: Open, requests: Mapping[str, BatchRequest]) -> None:
        """Wait for a batch and take its completions of `requests`; the others are kept for later.

        One that holds nothing of `requests` isn't waited for.
        """
        unanswered = {key: requests[key] for key in batch.keys if key in requests}
        server_batch = await self._wait(batch, wait=bool(unanswered))
        if server_batch is None:
            if unanswered:
                self._say(f"batch {batch.server_id} is unknown to the server: it is sent again")
                self._store.end_batch(batch.mark)
                self._count_try(unanswered, "the server lost the batch")
            return  # else perhaps of another account: the next run may know it
        status = server_batch.get("status")
        if status not in OVER:
            return
        if status == "failed":
            self._store.end_batch(batch.mark)
            if unanswered:
                reason = self._wire.masked(failure(server_batch))[:300]
                raise LibraError(
                    f"{self._wire.endpoint}: batch {batch.server_id} failed as a whole: {reason}"
                )
            return

        completions, final_error = await self._completions(server_batch, batch.keys, unanswered)
        unasked = {key: value for key, value in completions.items() if key not in unanswered}
        await self._take_all({key: completions[key] for key in unanswered if key in completions})
        self._store.keep_unasked(unasked)
        self._store.end_batch(batch.mark)
        if final_error:
            raise LibraError(final_error)
        left = {key: request for key, request in unanswered.items() if key not in completions}
        self._count_try(left, f"batch {batch.server_id} is {status} without an answer to them")

    async def _wait(self, batch: Open, wait: bool) -> dict[str, Any] | None:
        """The server's batch once it is over, or with `wait` false as it is; None if unknown."""
        start, pause = time.monotonic(), POLL_FIRST
        while True:
            server_batch = await self._tried(lambda: self._wire.get(f"/batches/{batch.server_id}"))
            if server_batch is None or server_batch.get("status") in OVER or not wait:
                return server_batch
            self._say(
                f"batch {batch.server_id}: {server_batch.get('status')}, "
                f"{progress_of(server_batch)}{time.monotonic() - start:.0f} s"
            )
            await self._pause(pause)
            pause = min(pause * 1.5, POLL_LONGEST)

    async def _completions(
        self, server_batch: dict[str, Any], keys: set[str], unanswered: dict[str, BatchRequest]
    ) -> tuple[dict[str, dict[str, Any]], str | None]:
        """The completions that a finished batch brought, and an error that sending again meets too.

        A request that is to be worded in another way gets its try back.
        """
        wire, final_error = self._wire, None
        sent = wire.wording.apply(next(iter(unanswered.values())).body) if unanswered else {}
        completions: dict[str, dict[str, Any]] = {}
        for kind in ("output_file_id", "error_file_id"):
            if (file_id := server_batch.get(kind)) is None:
                continue
            download = partial(wire.send, "GET", f"/files/{file_id}/content")
            response = await self._tried(download)
            text = response.content.decode("utf-8", "replace")
            for result in read_results(text, keys, wire):
                if result.completion is not None:
                    completions[result.key] = result.completion
                elif result.key not in unanswered:
                    continue
                elif wire.wording.adapt(sent, result.status, result.error):
                    unanswered[result.key].tries -= 1  # not the request's fault
                elif result.is_final:
                    final_error = final_error or wire.status_message(result.status, result.error)
        return completions, final_error

    def _count_try(self, unanswered: Mapping[str, BatchRequest], reason: str) -> None:
        """Count a try of each; raises LibraError when one has had all of its tries."""
        for request in unanswered.values():
            request.tries += 1
        if count := sum(request.tries >= TRIES for request in unanswered.values()):
            raise LibraError(
                f"{self._wire.endpoint}: {count:,} requests failed in {TRIES} batches ({reason}); "
                "run again later"
            )


def _room(budget: Budget, requests: Mapping[str, BatchRequest], under_way: int) -> int | None:
    """How many of `requests` fit the budget beside those `under_way`; None for all of them.

    Raises OverBudget if none fits and none is under way.
    """
    count = len(requests)
    tokens = sum(request.tokens for request in requests.values()) / count
    usd = sum(request.usd for request in requests.values()) / count
    try:
        room = budget.room(tokens, usd)
    except OverBudget:
        if not under_way:
            raise
        return 0  # those under way are paid: they come in first, then the next wave tells
    return None if room is None else max(0, room - under_way)
