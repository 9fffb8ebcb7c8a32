"""The faults of real servers, around an offline one: an ASGI application that wraps another.

    app = Faults(app, latency_s=0.05, rate_limit=20, fail_share=0.1)
    python -m stages.tools serve teacher --port 0 --latency 0.05 --rate-limit 20 --fail-share 0.1

Which request gets which fault is drawn from `random_seed`, the request's body and how often it
came. So the same requests fare the same in any order, alone or as lines of a batch. A line can
fail, be malformed or be cut short; other faults don't happen there, and `latency_s` passes before
every 16 lines. `app.served`, and GET /v1/served, count what came in:

    {"chat": 12, "refused": 3, "failed": 2, "files": 1, "batches": 1}

chat: answered with a completion; refused: 429; failed: all other chat requests; files and batches:
created. Lines of a batch aren't counted. Cut connections and requests that hang need a port: inside
a process there is nothing to cut, and no time-out.
"""

import argparse
import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from itertools import cycle
from typing import Any

from starlette.responses import Response

from stages.chat.offline import Choices, RequestError, Spoil
from stages.tools.serving.responses import FAULTS, SPOIL, error_response, json_response

LATENCIES = ("fixed", "exponential")
SHARES = {
    "fail": "answered with 500 or 503, in turn",
    "cut": "whose connection is cut half-way through the reply",
    "malformed": "answered with a completion whose text is no valid JSON",
    "garbage": "answered with 200 and a body that isn't JSON",
    "hang": "never answered",
    "length": "cut short: finish_reason `length` and half the text",
}
_CREATED = {"/v1/files": "files", "/v1/batches": "batches"}


class Faults:
    """`app` with faults; shares are of the chat requests that pass the rate limit.

    Raises ValueError for settings out of range.
    """

    def __init__(
        self,
        app,
        *,
        latency_s: float = 0.0,
        latency: str = "fixed",
        rate_limit: float | None = None,
        retry_after: float | None = None,
        fail_share: float = 0.0,
        cut_share: float = 0.0,
        malformed_share: float = 0.0,
        garbage_share: float = 0.0,
        hang_share: float = 0.0,
        length_share: float = 0.0,
        no_schema: bool = False,
        expire_after: int | None = None,
        random_seed: int = 0,
    ):
        shares = (fail_share, cut_share, malformed_share, garbage_share, hang_share, length_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError("the shares of faults must be from 0 to 1, and 1 at most together")
        if latency_s < 0 or latency not in LATENCIES:
            raise ValueError(f"latency must be 0 s or more, and one of {', '.join(LATENCIES)}")
        if rate_limit is not None and rate_limit <= 0:
            raise ValueError("the rate limit must be above 0 requests per second")
        self._app, self._shares = app, dict(zip(SHARES, shares, strict=True))
        self._latency_s, self._latency, self._no_schema = latency_s, latency, no_schema
        self._rate_limit, self._retry_after = rate_limit, retry_after
        self.expire_after = expire_after  # lines of a batch that are answered before it expires
        self._tokens, self._filled = max(1.0, rate_limit or 0.0), time.monotonic()
        self._random_seed, self._waits = random_seed, random.Random(random_seed)
        self._requests: Counter[bytes] = Counter()  # by digest of the body
        self._failures = cycle((500, 503))
        self.served = {"chat": 0, "refused": 0, "failed": 0, "files": 0, "batches": 0}

    async def __call__(self, scope, receive, send) -> None:
        method, path = scope.get("method"), scope.get("path")
        if (method, path) == ("POST", "/v1/chat/completions"):
            await self._chat(scope, receive, send)
        elif (method, path) == ("GET", "/v1/served"):
            await json_response(self.served)(scope, receive, send)
        elif method == "POST" and path in _CREATED:
            counting = self._counting(send, _CREATED[path], None)
            await self._app({**scope, FAULTS: self}, receive, counting)
        else:
            await self._app(scope, receive, send)

    async def _chat(self, scope, receive, send) -> None:
        if not self._passes():
            self.served["refused"] += 1
            message = f"Rate limit reached: {self._rate_limit:g} requests per second"
            error = RequestError(message, status=429, code="rate_limit_exceeded")
            headers = (
                None if self._retry_after is None else {"retry-after": f"{self._retry_after:g}"}
            )
            return await error_response(error, headers)(scope, receive, send)
        body, receive = await _body(receive)
        fault, wait = self._draw(body), self.wait()
        await asyncio.sleep(wait)
        if fault == "hang":
            self.served["failed"] += 1
            while (await receive())["type"] != "http.disconnect":
                pass
        elif fault == "garbage":
            self.served["failed"] += 1
            await Response("<html>not what you asked for</html>", media_type="text/html")(
                scope, receive, send
            )
        elif fault == "cut":
            self.served["failed"] += 1
            await self._cut(scope, receive, send)
        else:
            spoiled = {**scope, SPOIL: partial(self._spoil, fault)}
            await self._app(spoiled, receive, self._counting(send, "chat", "failed"))

    async def _cut(self, scope, receive, send) -> None:
        """The reply's head with its full content-length, and half its body.

        The server then closes the connection.
        """
        messages: list[dict[str, Any]] = []

        async def collect(message: dict[str, Any]) -> None:
            messages.append(message)

        await self._app(scope, receive, collect)
        body = b"".join(message.get("body", b"") for message in messages[1:])
        headers = [
            (name, value) for name, value in messages[0]["headers"] if name != b"content-length"
        ]
        await send(
            {**messages[0], "headers": [*headers, (b"content-length", str(len(body)).encode())]}
        )
        await send(
            {"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True}
        )

    def for_line(self, body: dict[str, Any]) -> Spoil:
        """The fault of a line of a batch, by its body."""
        return partial(self._spoil, self._draw(json.dumps(body).encode()))

    def wait(self) -> float:
        """Seconds to wait before the next reply."""
        if self._latency == "exponential" and self._latency_s:
            return self._waits.expovariate(1 / self._latency_s)
        return self._latency_s

    def _spoil(
        self, fault: str | None, body: dict[str, Any], say: Callable[[], Choices]
    ) -> Choices:
        if self._no_schema and (body.get("response_format") or {}).get("type") == "json_schema":
            raise RequestError(
                "`response_format` of type `json_schema` is not supported with this model",
                "response_format",
            )
        if fault == "fail":
            raise RequestError(
                "The server had an error while processing your request", status=next(self._failures)
            )
        if fault == "malformed":
            return [(f"Here it is: {text[: len(text) // 2]}", finish) for text, finish in say()]
        if fault == "length":
            return [(text[: len(text) // 2], "length") for text, _ in say()]
        return say()

    def _draw(self, body: bytes) -> str | None:
        if not any(self._shares.values()):
            return None
        # A line of a batch is parsed and serialised again: other bytes, but the same request.
        with contextlib.suppress(ValueError, RecursionError):
            body = json.dumps(json.loads(body), sort_keys=True).encode()
        digest = blake2b(body, digest_size=16).digest()
        self._requests[digest] += 1
        key = f"{self._random_seed} {self._requests[digest]} {digest.hex()}"
        draw = random.Random(key).random()
        for fault, share in self._shares.items():
            if draw < share:
                return fault
            draw -= share
        return None

    def _passes(self) -> bool:
        """Whether a request passes the rate limit: a token bucket that holds one second's worth."""
        if self._rate_limit is None:
            return True
        now = time.monotonic()
        self._tokens = min(
            max(1.0, self._rate_limit), self._tokens + (now - self._filled) * self._rate_limit
        )
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _counting(self, send, good: str, bad: str | None):
        """`send`, counting a reply as `good` if its status is 200, else as `bad`."""

        async def counting(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                kind = good if message["status"] == 200 else bad
                if kind is not None:
                    self.served[kind] += 1
            await send(message)

        return counting


async def _body(receive):
    """(a request's body, a `receive` that gives it once more and then what comes next)."""
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    messages = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

    async def again() -> dict[str, Any]:
        return messages.pop() if messages else await receive()

    return b"".join(parts), again


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each keyword of Faults."""
    group = parser.add_argument_group(
        "faults, to try a client with (shares are of chat requests, drawn from --random-seed)"
    )
    group.add_argument(
        "--latency",
        dest="latency_s",
        type=float,
        default=0.0,
        metavar="S",
        help="seconds before each reply",
    )
    group.add_argument(
        "--latency-kind",
        dest="latency",
        choices=LATENCIES,
        default="fixed",
        help="(default %(default)s)",
    )
    group.add_argument(
        "--rate-limit", type=float, metavar="N", help="requests per second; above it, 429"
    )
    group.add_argument(
        "--retry-after", type=float, metavar="S", help="seconds that a 429 says to wait"
    )
    for fault, effect in SHARES.items():
        group.add_argument(
            f"--{fault}-share", type=float, default=0.0, metavar="P", help=f"share {effect}"
        )
    group.add_argument(
        "--no-schema",
        action="store_true",
        help="refuse a response_format of type json_schema with 400",
    )
    group.add_argument(
        "--expire-after",
        type=int,
        metavar="N",
        help="a batch expires after N of its lines are answered",
    )
    group.add_argument(
        "--random-seed", type=int, default=0, metavar="N", help="(default %(default)s)"
    )
