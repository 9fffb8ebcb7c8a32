"""The chat endpoint of replies.py, which echoes requests, after a latency and up to a rate limit.

    python tests/benchmarks/fake_endpoint.py --latency 0.05                  # replies after 50 ms
    python tests/benchmarks/fake_endpoint.py --latency 0.5 --exponential     # 0.5 s is the mean
    python tests/benchmarks/fake_endpoint.py --latency 0.05 --per-second 20  # above 20/s: 429

It prints the port it listens on. POST .../chat/completions under any path is answered with the
request in words (`reply_text`), so that a row made from an older question shows. GET /counts is

    {"served": 2000, "refused": 0, "probes": 0, "first": 5021.3}

`first` is when the first request came (CLOCK_MONOTONIC, one clock for all processes); a probe is a
request without messages, which some clients send to look at the headers. DELETE /counts resets
everything, latencies included.
"""

import argparse
import asyncio
import heapq
import json
import random
import time
from collections.abc import Iterator
from typing import Any

BUCKET_SECONDS = 1.0  # what a token bucket holds, in seconds of its rate


def reply_text(path: str, model: str, temperature: float, system: str | None, user: str) -> str:
    """The reply: everything in the request, so that no two requests have the same reply."""
    return f"{path} {model} at {float(temperature)}: {system or 'no system prompt'} | {user}"


def plain(content: str | list[dict[str, str]]) -> str:
    """A message's text; some clients send it in parts."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def latencies(mean: float, exponential: bool) -> Iterator[float]:
    """How long each reply takes, by order of requests; the same for every contender."""
    dice = random.Random(7)
    while True:
        yield dice.expovariate(1 / mean) if exponential else mean


def ideal_seconds(count: int, concurrency: int, mean: float, exponential: bool) -> float:
    """How long `count` requests take if only their latencies take time.

    `concurrency` are always in flight.
    """
    durations = latencies(mean, exponential)
    ends = [0.0] * concurrency
    for _ in range(count):
        heapq.heapreplace(ends, ends[0] + next(durations))
    return max(ends)


class Counts:
    """What came in since the last DELETE /counts."""

    def __init__(self, mean: float, exponential: bool, per_second: float | None):
        self.latencies = latencies(mean, exponential)
        self.served = self.refused = self.probes = 0
        self.first: float | None = None
        self._per_second = per_second
        self._tokens = (per_second or 0) * BUCKET_SECONDS
        self._filled = time.monotonic()

    def admits(self) -> bool:
        """Whether one more request passes the rate limit."""
        if self._per_second is None:
            return True
        now = time.monotonic()
        self._tokens = min(
            self._per_second * BUCKET_SECONDS,
            self._tokens + (now - self._filled) * self._per_second,
        )
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def as_dict(self) -> dict[str, Any]:
        return {
            "served": self.served,
            "refused": self.refused,
            "probes": self.probes,
            "first": self.first,
        }


def make_app(mean: float, exponential: bool, per_second: float | None):
    """The ASGI application."""
    counts = Counts(mean, exponential, per_second)

    async def app(scope: dict[str, Any], receive, send) -> None:
        nonlocal counts
        if scope["path"] == "/counts":
            if scope["method"] == "DELETE":
                counts = Counts(mean, exponential, per_second)
            return await answer(send, 200, counts.as_dict())
        arrived, raw, more = time.monotonic(), b"", True
        while more:
            message = await receive()
            raw, more = raw + message.get("body", b""), message.get("more_body", False)
        body = json.loads(raw)
        if not body["messages"]:
            counts.probes += 1
            fault = {"message": "messages is empty", "type": "invalid_request_error"}
            return await answer(send, 400, {"error": fault})
        counts.first = counts.first or arrived
        if not counts.admits():
            counts.refused += 1
            fault = {
                "message": "Rate limit reached for requests",
                "type": "requests",
                "code": "rate_limit_exceeded",
            }
            return await answer(send, 429, {"error": fault})
        counts.served += 1
        number, latency = counts.served, next(counts.latencies)
        await asyncio.sleep(latency - (time.monotonic() - arrived))
        texts = {message["role"]: plain(message["content"]) for message in body["messages"]}
        text = reply_text(
            scope["path"],
            body["model"],
            body.get("temperature", 1.0),
            texts.get("system"),
            texts["user"],
        )
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "logprobs": None,
            "finish_reason": "stop",
        }
        usage = {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20}
        head = {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
        }
        await answer(send, 200, {**head, "choices": [choice], "usage": usage})

    async def answer(send, status: int, value: dict[str, Any]) -> None:
        raw = json.dumps(value).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(raw)).encode()),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": raw})

    return app


def main() -> None:
    import uvicorn

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latency", type=float, required=True, help="seconds")
    parser.add_argument("--exponential", action="store_true")
    parser.add_argument("--per-second", type=float)
    options = parser.parse_args()

    class Server(uvicorn.Server):
        async def startup(self, sockets=None) -> None:
            await super().startup(sockets)
            print(self.servers[0].sockets[0].getsockname()[1], flush=True)

    app = make_app(options.latency, options.exponential, options.per_second)
    Server(
        uvicorn.Config(
            app, port=0, log_level="error", access_log=False, lifespan="off", timeout_keep_alive=60
        )
    ).run()


if __name__ == "__main__":
    main()
