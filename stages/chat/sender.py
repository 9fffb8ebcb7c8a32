"""Sends what the reply store doesn't hold, online or in batches, and keeps what comes.

asyncio.run(Sender(call, kept, caps).run(rows))
"""

import asyncio
import math
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from stages.chat.batches import Batches, BatchRequest
from stages.chat.budget import Budget, BudgetParams, OverBudget, Pricing, price_of
from stages.chat.calls import Call, Row
from stages.chat.kept import KeptReplies
from stages.chat.protocol import fault, read
from stages.chat.records import ReceivedReply, canonical
from stages.chat.tokens import guess_asked, tokens, usage_of
from stages.chat.wire import Stopped, Wire
from stages.core.errors import Interrupted, LibraError

ENOUGH = 20  # kept replies that tell what the next one will cost


class Sender:
    """Sends the requests of one call. Raises LibraError for a cap in USD without a known price."""

    _wire: Wire  # open while `run` runs

    def __init__(self, call: Call, kept: KeptReplies, caps: BudgetParams):
        self._call, self._kept, self._store = call, kept, kept.store
        self._endpoint, self._tally, self._bar = call.endpoint, call.tally, call.bar
        self._price = price_of(self._endpoint)
        self._batch_price = price_of(self._endpoint.model_copy(update={"mode": "batch"}))
        self._store.watch_spending()
        self._budget = Budget(caps, self._endpoint, self._price, lambda: self._store.paid_elsewhere)
        self._tasks: list[asyncio.Task] = []
        self._interrupted = False
        self._in_batch = False  # a batch is being waited for
        self._has_unasked = False  # batches brought replies that nobody has asked for yet
        self._error: BaseException | None = None

    async def run(self, rows: list[Row]) -> None:
        """Settle `rows`.

        Raises LibraError (Interrupted, OverBudget) once what is in flight has come in and is kept.
        """
        try:
            async with Wire(self._endpoint) as self._wire:
                await self._guarded(rows)
        except (Stopped, asyncio.CancelledError):
            if not self._interrupted:
                raise
        except LibraError as error:
            self._error = error
        if self._error is not None or self._interrupted:
            self._fail(rows)

    async def _guarded(self, rows: list[Row]) -> None:
        """Send, with Ctrl-C and SIGTERM handled, and count the wire's retries."""
        loop = asyncio.get_running_loop()
        handled = []
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, self._interrupt)
                handled.append(number)
            except (ValueError, RuntimeError):  # not in the main thread
                pass
        task = asyncio.current_task()
        self._tasks = [task] if task else []
        try:
            await (self._batched if self._endpoint.mode == "batch" else self._online)(rows)
        finally:
            self._tally.retries += self._wire.retries
            self._tally.refusals += self._wire.pace.refusals
            for number in handled:
                loop.remove_signal_handler(number)

    def _fail(self, rows: list[Row]) -> None:
        left = sum(row.reply is None for row in rows)
        rest = (
            f"{left:,} of {len(rows):,} requests are left; "
            "what came in is kept and won't be asked for again"
        )
        if self._interrupted:
            raise Interrupted(f"stopped; {rest}: run again to go on")
        if isinstance(self._error, OverBudget):
            spent = f"{self._budget.words()}; {rest}: raise the cap and run again to go on"
            raise OverBudget(self._error.name, self._error.cap, spent)
        if isinstance(self._error, LibraError) and self._tally.received:
            raise LibraError(f"{self._error} ({rest})")
        assert self._error is not None
        raise self._error

    def _interrupt(self) -> None:
        """Stop sending and wait for what is in flight; the second time, give that up too."""
        if self._interrupted:
            for task in self._tasks:
                task.cancel()
            return
        self._interrupted = True
        self._wire.stop()
        pending = (
            "the batches under way go on at the server, and the next run fetches them"
            if self._in_batch
            else f"waiting for {self._budget.in_flight:,} requests in flight "
            "(Ctrl-C again gives them up)"
        )
        print(f"\n{self._call.kind}: stopping; {pending}", file=sys.stderr)

    async def _online(self, rows: list[Row]) -> None:
        # Batches sent before `mode`, or the rows, were changed.
        if self._store.batches(self._endpoint.base_url):
            self._in_batch = True
            await self._fetch_batches(rows)
            self._in_batch = False

        self._has_unasked = self._store.holds_unasked()
        waiting = deque(row for row in rows if row.reply is None)
        workers = min(self._endpoint.concurrency, len(waiting))
        self._tasks = [asyncio.create_task(self._work(waiting)) for _ in range(workers)]
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                self._error = self._error or result

    async def _fetch_batches(self, rows: list[Row]) -> None:
        searched: set[str] = set()
        while left := {
            row.key: row for row in rows if row.reply is None and row.key not in searched
        }:
            searched |= left.keys()
            requests = dict(zip(left, self._batch_requests(left.values()), strict=True))
            await self._batches(left, requests).fetch(requests)

    async def _work(self, waiting: deque[Row]) -> None:
        """Ask for one row after another; the first error stops all but what is in flight."""
        while waiting and not self._wire.stopping:
            row = waiting.popleft()
            if not self._store.claim(row.key):  # another run is asking for it
                waiting.append(row)
                await asyncio.sleep(0.2)
                continue

            key = row.key
            try:
                settled = await self._ask(row)
            except Stopped:
                return
            except OverBudget as error:
                self._wire.stop()
                self._error = self._error or error
                return
            except BaseException:
                self._wire.stop()
                raise
            finally:
                self._store.release(key)
            if settled:
                self._bar.update()
            else:
                waiting.appendleft(row)

    async def _ask(self, row: Row) -> bool:
        """Settle a claimed row, from the store if another run was faster; False: ask again."""
        if replies := self._store.find([row.key]):
            return self._kept.settle(row, replies[row.key])
        body = self._call.body(row.current())
        if self._has_unasked and (unasked := self._store.unasked([row.key])):
            return await self._keep_paid(row, body, unasked[row.key])

        self._budget.admit()
        try:
            answer = await self._wire.complete(body)
        except BaseException:
            self._budget.land(None, None)
            raise
        return await self._keep(row, body, answer, self._price)

    async def _keep_paid(self, row: Row, body: dict[str, Any], answer: dict[str, Any]) -> bool:
        """Keep what a batch brought: it needs no room in the budget any more."""
        self._budget.in_flight += 1
        return await self._keep(row, body, answer, self._batch_price)

    async def _keep(
        self, row: Row, body: dict[str, Any], answer: dict[str, Any], price: Pricing | None
    ) -> bool:
        """Keep a reply, then settle its row with it; False when another attempt is due."""
        prompt, completion = tokens(body, answer)
        usd = price.usd(prompt, completion, usage_of(answer)) if price else None
        reply = read(answer, row.request)
        kept = ReceivedReply(
            self._call.kind,
            self._endpoint.base_url.rstrip("/"),
            row.current().sample_index,
            body,
            answer,
            fault(reply),
            usd,
            used_by=self._call.stage,
        )
        self._budget.land(prompt + completion, usd)
        await self._store.keep(row.key, kept)
        self._tally.received += 1
        self._tally.count(kept.fault, prompt, completion, usd)
        if usd:
            self._bar.set_postfix_str(f"{self._budget.spent.usd:.2f} USD", refresh=False)
        if row.settle(reply):
            return True
        row.key = self._call.key(row.current())
        return False

    async def _batched(self, rows: list[Row]) -> None:
        requests: dict[str, BatchRequest] = {}
        self._in_batch = True
        while left := {row.key: row for row in rows if row.reply is None}:
            tries = {key: request.tries for key, request in requests.items()}
            requests = dict(zip(left, self._batch_requests(left.values()), strict=True))
            for key, request in requests.items():
                request.tries = tries.get(key, 0)
            await self._batches(left, requests).send(requests, self._budget)

    def _batches(self, rows: dict[str, Row], requests: dict[str, BatchRequest]) -> Batches:
        async def take(key: str, answer: dict[str, Any]) -> None:
            if await self._keep_paid(rows[key], requests[key].body, answer):
                self._bar.update()

        return Batches(self._wire, self._store, take, self._say)

    def _batch_requests(self, rows: Iterable[Row]) -> Iterator[BatchRequest]:
        """The rows' bodies with their likely cost.

        That is the average of the kept replies, or, of too few, a reply of max_tokens.
        """
        count, characters, completion = self._store.average(
            self._endpoint.base_url, self._endpoint.model, self._call.kind
        )
        known = count >= ENOUGH and characters
        completion = math.ceil(completion) if known else self._endpoint.max_tokens
        for row in rows:
            body = self._call.body(row.current())
            guess = len(canonical(body)) / characters if known else guess_asked(body)
            prompt = math.ceil(guess)
            usd = self._price.usd(prompt, completion, {}) if self._price else 0.0
            yield BatchRequest(body, prompt + completion, usd)

    def _say(self, text: str) -> None:
        self._bar.set_postfix_str(text)
        if not sys.stderr.isatty():
            print(f"{self._call.kind}: {text}", file=sys.stderr)
