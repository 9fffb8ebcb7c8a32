"""Ask any OpenAI-compatible endpoint many things; get each answer once, in order, and keep what was paid for.

    with Session("craft", random_seed, budget) as session:
        replies = session.ask(endpoint, requests, "craft", app)   # [Reply, ...] in the order of the requests

`base_url: offline` goes to an ASGI application inside this process, over the same protocol and the same client. Any other
endpoint is asked only for what neither the reply store (store.py) nor an archive in data/replies/ holds, many at once or in batches
(batches.py), under the caps of `budget` (budget.py). A reply that doesn't fit its schema is asked for again under another sample index, ASK_AGAIN
times. A session ends with data/generation/STAGE.json: what its replies cost and where they came from.
"""

import asyncio
import math
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from stages.chat.batches import Asked, Take, fetch_batches, send_batch
from stages.chat.budget import Budget, BudgetParams, OverBudget, Pricing, price_of
from stages.chat.protocol import OFFLINE, ChatRequest, Endpoint, Reply, fault, read, request_body
from stages.chat.store import AT_ONCE, Found, Kept, Store, canonical, reply_key, store_path
from stages.chat.tokens import guess_asked, tokens, usage_of
from stages.chat.wire import Stopped, Wire
from stages.core.errors import Interrupted, LibraError
from stages.core.progress import counter

ASK_AGAIN = 2  # how often a reply that doesn't fit its schema is asked for again
ASK_AGAIN_STRIDE = (
    1000  # ... as sample_index + 1000, + 2000: clear of the samples a caller numbers itself
)
ENOUGH = 20  # kept replies that tell what the next one will cost


@dataclass(slots=True)
class Row:
    """A request on its way: `places` are its positions in the caller's list (equal requests are asked once)."""

    request: ChatRequest
    places: list[int]
    key: str
    attempt: int = 0
    reply: Reply | None = None

    def now(self) -> ChatRequest:
        """The request with the sample index of this attempt."""
        return self.at(self.attempt)

    def at(self, attempt: int) -> ChatRequest:
        """The request with the sample index of an attempt."""
        if not attempt:
            return self.request
        return replace(
            self.request, sample_index=self.request.sample_index + attempt * ASK_AGAIN_STRIDE
        )

    def settle(self, reply: Reply) -> bool:
        """Take a reply; False when it is of no use and another attempt is due."""
        if reply.error is not None and self.request.schema is not None and self.attempt < ASK_AGAIN:
            self.attempt += 1
            return False
        self.reply = replace(reply, key=self.key)
        return True


def placed(rows: list[Row], count: int) -> list[Reply]:
    """The replies of settled rows at their places in the caller's list of `count`."""
    replies: list[Any] = [None] * count
    for row in rows:
        for place in row.places:
            replies[place] = row.reply
    return replies


@dataclass
class Tally:
    """What the replies of one kind cost; what a session reports under `generation`. `usd` is None where no price is known."""

    base_url: str
    model: str
    mode: str
    price: str | None
    requests: int = 0  # different requests the stage needs
    from_store: int = 0  # replies that were there, those out of archives included
    from_archive: int = 0
    received: int = 0  # replies that were sent for and came
    retries: int = 0  # requests sent again after a broken connection or an error of the server
    refusals: int = 0  # requests the server refused with 429 or 503
    unusable: int = 0  # replies cut off, filtered or not of their schema
    quarantined: int = 0  # rows the stage left out for want of a usable reply
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = 0.0
    wall_s: float | None = (
        None  # of what was sent for in this run; None where nothing was, or it answers inside the process
    )

    def count(
        self, reply_fault: str | None, prompt: int, completion: int, usd: float | None
    ) -> None:
        self.unusable += reply_fault is not None
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        self.usd = None if usd is None or self.usd is None else self.usd + usd

    def report(self) -> dict[str, Any]:
        return vars(self) | {"usd": None if self.usd is None else round(self.usd, 6)}


class Session:
    """All that a stage asks of chat models; a context manager that writes data/generation/STAGE.json when the stage succeeds."""

    def __init__(self, stage: str, random_seed: int, budget: BudgetParams | None = None):
        self.stage, self.random_seed, self.caps = stage, random_seed, budget or BudgetParams()
        self.tallies: dict[str, Tally] = {}
        self._begun = False  # whether the store knows that this stage starts anew

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            from stages.core.tables import write_json

            report = {what: tally.report() for what, tally in self.tallies.items()}
            write_json(report, f"data/generation/{self.stage}.json")

    def ask(
        self, endpoint: Endpoint, requests: list[ChatRequest], what: str, app=None, note: str = ""
    ) -> list[Reply]:
        """The replies to `requests`, in their order; `what` (and `note`) name the work in progress lines and records.

        `app` is the ASGI application that answers when base_url is `offline`. Raises LibraError when the endpoint can't be
        reached, refuses the key, model or request, or still fails after the retries; OverBudget at a cap; Interrupted at
        Ctrl-C. All of them keep what came in. A reply that doesn't fit its schema comes back with `error` set instead.
        """
        pricing = price_of(endpoint)
        tally = self.tallies.setdefault(
            what,
            Tally(
                endpoint.base_url,
                endpoint.model,
                endpoint.mode,
                pricing.source if pricing else None,
            ),
        )
        rows = self.rows(endpoint, requests)
        tally.requests += len(rows)
        bar = counter(what + note, len(rows))
        try:
            if endpoint.base_url == OFFLINE:
                asyncio.run(OfflineAsker(self, endpoint, tally, bar, app).run(rows))
            else:
                with Store(store_path()) as store:
                    self._from_server(endpoint, store, rows, what, tally, pricing, bar)
        finally:
            bar.close()
        return placed(rows, len(requests))

    def quarantined(self, what: str, count: int, unfit: Mapping[str, str] | None = None) -> None:
        """Note that `count` rows had no usable reply and are left out; `unfit` are {key: fault} of what came in for them."""
        self.tallies[what].quarantined += count
        if unfit is not None and self.tallies[what].base_url != OFFLINE:
            with Store(store_path()) as store:
                store.note_unfit(self.stage, unfit)

    def give_up(self, unfit: Mapping[str, str] | None = None) -> None:
        """The stage fails for want of usable replies: the next run asks once more for those of no use and for `unfit`."""
        if any(tally.base_url != OFFLINE for tally in self.tallies.values()):
            with Store(store_path()) as store:
                store.retry(self.stage, unfit or {})

    def rows(self, endpoint: Endpoint, requests: list[ChatRequest]) -> list[Row]:
        """A row for each different request, in order."""
        rows: dict[str, Row] = {}
        for i, request in enumerate(requests):
            key = str(i) if endpoint.base_url == OFFLINE else self.key(endpoint, request)
            if key in rows:
                rows[key].places.append(i)
            else:
                rows[key] = Row(request, [i], key)
        return list(rows.values())

    def key(self, endpoint: Endpoint, request: ChatRequest) -> str:
        """The reply store's key of a request: of what is asked for, however the server wants it worded (wire.py)."""
        return reply_key(
            endpoint.base_url,
            request_body(endpoint, request, self.random_seed),
            request.sample_index,
        )

    def missing(self, endpoint: Endpoint, store: Store, rows: list[Row], tally: Tally) -> list[Row]:
        """Settle `rows` from the store and the archives; those they can't settle, each at its first unknown attempt."""
        rows, looked = list(self.known(endpoint, store, rows, tally)), set()
        while (
            unseen := {row.key for row in rows} - looked
        ):  # a reply of no use in an archive leads to the next attempt's
            tally.from_archive += store.archived(unseen)
            looked |= unseen
            rows = list(self.known(endpoint, store, rows, tally))
        return rows

    def passed(self, endpoint: Endpoint, rows: Iterable[Row]) -> Iterator[str]:
        """The keys of all attempts of `rows` so far: a reply of no use was used, and paid, like the one after it."""
        for row in rows:
            yield from (self.key(endpoint, row.at(attempt)) for attempt in range(row.attempt))
            yield row.key

    def known(
        self, endpoint: Endpoint, store: Store, rows: list[Row], tally: Tally
    ) -> Iterator[Row]:
        """Settle `rows` from the store; those it can't settle come back, each at its first unknown attempt."""
        while rows:
            later: list[Row] = []
            for start in range(0, len(rows), AT_ONCE):
                part = rows[start : start + AT_ONCE]
                found = store.find(row.key for row in part)
                for row in part:
                    if row.key not in found:
                        yield row
                    elif not self.take(endpoint, row, found[row.key], tally):
                        later.append(row)
            rows = later

    def take(self, endpoint: Endpoint, row: Row, found: Found, tally: Tally) -> bool:
        """Settle a row with a kept reply; False when it needs another attempt, whose key it has then."""
        tally.from_store += 1
        tally.count(*found[1:])
        if row.settle(read(found.reply, row.request)):
            return True
        row.key = self.key(endpoint, row.now())
        return False

    def _from_server(
        self,
        endpoint: Endpoint,
        store: Store,
        rows: list[Row],
        what: str,
        tally: Tally,
        pricing: Pricing | None,
        bar,
    ) -> None:
        store.use(self.stage, (row.key for row in rows), anew=not self._begun)
        self._begun = True
        missing = self.missing(endpoint, store, rows, tally)
        store.use(self.stage, self.passed(endpoint, rows), anew=False)
        bar.update(len(rows) - len(missing))
        if missing:
            began = time.monotonic()
            sender = _Sender(self, endpoint, store, tally, pricing, bar, what)
            try:
                asyncio.run(sender.run(missing))
            finally:
                tally.wall_s = round((tally.wall_s or 0.0) + time.monotonic() - began, 3)
            store.use(
                self.stage, self.passed(endpoint, missing), anew=False
            )  # also what another run kept meanwhile
        if tally.from_store:
            print(
                f"{what}: {tally.from_store:,} replies were kept before, {tally.received:,} were asked for",
                file=sys.stderr,
            )


class OfflineAsker:
    """Asks an application inside this process; nothing to keep, to pay or to retry."""

    def __init__(self, session: Session, endpoint: Endpoint, tally: Tally, bar, app):
        self._session, self._endpoint, self._tally, self._bar, self._app = (
            session,
            endpoint,
            tally,
            bar,
            app,
        )

    async def run(self, rows: list[Row]) -> None:
        waiting = iter(rows)
        async with Wire(self._endpoint, self._app) as wire:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._endpoint.concurrency, len(rows))):
                        group.create_task(self._work(wire, waiting))
            except BaseExceptionGroup as error:
                raise error.exceptions[0] from None

    async def _work(self, wire: Wire, waiting: Iterator[Row]) -> None:
        for row in waiting:
            while row.reply is None:
                body = request_body(self._endpoint, row.now(), self._session.random_seed)
                answer = await wire.complete(body)
                reply = read(answer, row.request)
                self._tally.received += 1
                self._tally.count(fault(reply), *tokens(body, answer), 0.0)
                row.settle(reply)
            self._bar.update()


class _Sender:
    """Sends what the store doesn't hold, and keeps what comes."""

    def __init__(
        self,
        session: Session,
        endpoint: Endpoint,
        store: Store,
        tally: Tally,
        pricing: Pricing | None,
        bar,
        what: str,
    ):
        self._session, self._endpoint, self._store, self._tally, self._pricing = (
            session,
            endpoint,
            store,
            tally,
            pricing,
        )
        self._bar, self._what = bar, what
        self._in_batch = price_of(endpoint.model_copy(update={"mode": "batch"}))
        store.reckon()
        self._budget = Budget(session.caps, endpoint, pricing, lambda: store.paid_elsewhere)
        self._wire: Wire | None = None
        self._tasks: list[asyncio.Task] = []
        self._interrupted = False
        self._batched = False  # what is waited for is a batch
        self._unasked = False  # there are replies that batches brought and nobody asked for
        self._error: BaseException | None = None

    async def run(self, rows: list[Row]) -> None:
        """Settle `rows`. Raises LibraError (Interrupted, OverBudget); what was in flight then is waited for and kept first."""
        loop = asyncio.get_running_loop()
        caught = []
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, self._interrupt)
                caught.append(number)
            except (ValueError, RuntimeError):  # not in the main thread
                pass
        try:
            async with Wire(self._endpoint) as self._wire:
                self._tasks = [asyncio.current_task()]
                work = self._in_batches if self._endpoint.mode == "batch" else self._online
                await work(rows)
        except (Stopped, asyncio.CancelledError):
            if not self._interrupted:
                raise
        except LibraError as error:
            self._error = error
        finally:
            if self._wire is not None:
                self._tally.retries += self._wire.retries
                self._tally.refusals += self._wire.pace.refusals
            for number in caught:
                loop.remove_signal_handler(number)
        left = sum(row.reply is None for row in rows)
        if self._error is None and not self._interrupted:
            return
        rest = f"{left:,} of {len(rows):,} requests are left; what came in is kept and won't be asked for again"
        if self._interrupted:
            raise Interrupted(f"stopped; {rest}: run again to go on")
        if isinstance(self._error, OverBudget):
            words = f"{self._budget.words()}; {rest}: raise the cap and run again to go on"
            raise OverBudget(self._error.name, self._error.cap, words)
        if isinstance(self._error, LibraError) and self._tally.received:
            raise LibraError(f"{self._error} ({rest})")
        raise self._error

    def _interrupt(self) -> None:
        if self._interrupted:
            for task in self._tasks:
                task.cancel()
            return
        self._interrupted = True
        self._wire.stop()
        flying = f"{self._budget.in_flight:,} requests are in flight and waited for (Ctrl-C again gives them up)"
        if self._batched:
            flying = "the batches under way go on at the server, and the next run fetches them"
        print(f"\n{self._what}: stopping; {flying}", file=sys.stderr)

    async def _online(self, rows: list[Row]) -> None:
        if self._store.batches(
            self._endpoint.base_url
        ):  # sent before `mode` was changed, or the rows were
            self._batched, looked = True, set()
            while left := {
                row.key: row for row in rows if row.reply is None and row.key not in looked
            }:
                looked |= left.keys()
                asked = dict(zip(left, self._asked(left.values()), strict=True))
                await fetch_batches(
                    self._wire, self._store, asked, self._taker(left, asked), self._say
                )
            self._batched = False
        self._unasked = self._store.holds_unasked()
        waiting = deque(row for row in rows if row.reply is None)
        self._tasks = [
            asyncio.create_task(self._work(waiting))
            for _ in range(min(self._endpoint.concurrency, len(waiting)))
        ]
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                self._error = self._error or result

    async def _work(self, waiting: deque[Row]) -> None:
        """Ask for one row after another. The first error stops all, but lets what is in flight come in."""
        wire, store = self._wire, self._store
        while waiting and not wire.stopping:
            row = waiting.popleft()
            if not store.claim(row.key):  # another run that shares the store is asking for it
                waiting.append(row)
                await asyncio.sleep(0.2)
                continue
            key = row.key
            try:
                body = request_body(self._endpoint, row.now(), self._session.random_seed)
                if kept := store.find([key]):
                    settled = self._session.take(self._endpoint, row, kept[key], self._tally)
                elif self._unasked and (brought := store.unasked([key])):
                    settled = await self._keep_paid(row, body, brought[key])
                else:
                    self._budget.admit()
                    try:
                        answer = await wire.complete(body)
                    except BaseException:
                        self._budget.land(None, None)
                        raise
                    settled = await self._keep(row, body, answer, self._pricing)
            except Stopped:
                return
            except OverBudget as error:
                wire.stop()
                self._error = self._error or error
                return
            except BaseException:
                wire.stop()
                raise
            finally:
                store.release(key)
            if settled:
                self._bar.update()
            else:
                waiting.appendleft(row)

    async def _keep_paid(self, row: Row, body: dict[str, Any], answer: dict[str, Any]) -> bool:
        """Keep what a batch brought: it needs no room in the budget any more."""
        self._budget.in_flight += 1
        return await self._keep(row, body, answer, self._in_batch)

    async def _keep(
        self, row: Row, body: dict[str, Any], answer: dict[str, Any], pricing: Pricing | None
    ) -> bool:
        """Keep a reply, then settle its row with it; False when the row needs another attempt."""
        prompt, completion = tokens(body, answer)
        usd = pricing.usd(prompt, completion, usage_of(answer)) if pricing else None
        reply = read(answer, row.request)
        where = (self._what, self._endpoint.base_url.rstrip("/"), row.now().sample_index)
        kept = Kept(*where, body, answer, fault(reply), usd, used_by=self._session.stage)
        self._budget.land(prompt + completion, usd)
        await self._store.keep(row.key, kept)
        self._tally.received += 1
        self._tally.count(kept.fault, prompt, completion, usd)
        if usd:
            self._bar.set_postfix_str(f"{self._budget.spent.usd:.2f} USD", refresh=False)
        if row.settle(reply):
            return True
        row.key = self._session.key(self._endpoint, row.now())
        return False

    async def _in_batches(self, rows: list[Row]) -> None:
        asked: dict[str, Asked] = {}
        self._batched = True
        while left := {row.key: row for row in rows if row.reply is None}:
            tries = {key: one.tries for key, one in asked.items()}
            asked = dict(zip(left, self._asked(left.values()), strict=True))
            for key, one in asked.items():
                one.tries = tries.get(key, 0)
            await send_batch(
                self._wire, self._store, self._budget, asked, self._taker(left, asked), self._say
            )

    def _taker(self, rows: dict[str, Row], asked: dict[str, Asked]) -> Take:
        async def take(key: str, answer: dict[str, Any]) -> None:
            if await self._keep_paid(rows[key], asked[key].body, answer):
                self._bar.update()

        return take

    def _asked(self, rows: Iterable[Row]) -> Iterator[Asked]:
        """The rows' bodies with their likely cost: the average of what is kept, else of a reply as long as it may be."""
        count, characters, told = self._store.average(
            self._endpoint.base_url, self._endpoint.model, self._what
        )
        known = count >= ENOUGH and characters
        told = math.ceil(told) if known else self._endpoint.max_tokens
        for row in rows:
            body = request_body(self._endpoint, row.now(), self._session.random_seed)
            asked = math.ceil(len(canonical(body)) / characters if known else guess_asked(body))
            yield Asked(
                body, asked + told, self._pricing.usd(asked, told, {}) if self._pricing else 0.0
            )

    def _say(self, words: str) -> None:
        self._bar.set_postfix_str(words)
        if not sys.stderr.isatty():
            print(f"{self._what}: {words}", file=sys.stderr)
