"""The wire: what is retried and when, what Retry-After means, and where the key is masked."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from helpers.asking import ask_all, endpoint, make_app, on_port
from stages.chat import wire
from stages.chat.offline import RequestError, last_user_text
from stages.chat.protocol import ChatRequest
from stages.chat.wire import LONGEST_PAUSE, MAX_RETRIES, REAL_KEY, Wire, _retry_after
from stages.core.errors import LibraError

PROMPT = [ChatRequest([{"role": "user", "content": "none of the latest"}])]


def test_retry_after_is_seconds_or_a_date():
    soon = datetime.now(UTC) + timedelta(seconds=30)
    assert (
        _retry_after({"retry-after": "2.5"}) == 2.5
        and _retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    )
    assert 28 < _retry_after({"retry-after": format_datetime(soon, usegmt=True)}) <= 30
    assert 28 < _retry_after({"retry-after": f"{soon:%a, %d %b %Y %H:%M:%S} -0000"}) <= 30, (
        "without a zone it is UTC"
    )
    assert _retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert _retry_after({"retry-after": "later"}) is None and _retry_after({}) is None


@pytest.mark.parametrize("status", [408, 409, 500, 503])
def test_what_may_pass_is_retried(monkeypatch, status):
    monkeypatch.setattr(wire, "LONGEST_PAUSE", 0.02)
    requests = []

    def answer(body):
        requests.append(1)
        if len(requests) < 3:
            raise RequestError("not now", status=status)
        return "yes"

    with on_port(make_app("m", answer)) as url:
        assert ask_all(endpoint(url), PROMPT, "again")[0].content == "yes"
    assert len(requests) == 3


UNREADABLE = [
    b"<html>",
    b"[" * 100_000,
    b'{"n": ' + b"9" * 5000 + b"}",
    b'{"choices": [{"message": {"x": ' + b"[" * 150 + b"]" * 150 + b"}}]}",
]


@pytest.mark.parametrize(
    "body", UNREADABLE, ids=["no JSON", "too deep to read", "too many digits", "too deep to write"]
)
def test_json_that_cant_be_read_is_retried(monkeypatch, body):
    monkeypatch.setattr(wire, "LONGEST_PAUSE", 0.02)
    inner, bodies = make_app("m", last_user_text), [body, body]

    async def app(scope, receive, send):
        if scope["type"] != "http" or not bodies:
            return await inner(scope, receive, send)
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"application/json")],
            }
        )
        await send({"type": "http.response.body", "body": bodies.pop()})

    with on_port(app) as url:
        assert ask_all(endpoint(url), PROMPT, "odd")[0].content == "none of the latest"
        bodies[:] = [body] * 50
        with pytest.raises(
            LibraError, match="didn't answer with JSON: is this the address of a chat API"
        ):
            ask_all(endpoint(url), PROMPT, "odd", random_seed=1)


def test_the_waits_between_two_tries_grow_and_differ(monkeypatch):
    waits = []

    async def pause(self, seconds):
        waits.append(seconds)

    monkeypatch.setattr(Wire, "pause", pause)

    async def broken():
        raise wire.Broken("no")

    async def go():
        async with Wire(endpoint("http://127.0.0.1:9/v1")) as wire_:
            for _ in range(5):
                with pytest.raises(LibraError, match="no"):
                    await wire_.tried(broken)

    asyncio.run(go())
    assert len(waits) == 5 * MAX_RETRIES == len(set(waits)), "jitter: no two waits are alike"
    for i, wait in enumerate(waits):
        longest = min(0.5 * 2 ** (i % MAX_RETRIES), LONGEST_PAUSE)
        assert 0.75 * longest <= wait <= longest


@pytest.mark.parametrize("key", ["none", "test", "null", "stop", "content"])
@pytest.mark.parametrize("mode", ["online", "batch"])
def test_a_key_that_is_a_word_spoils_no_reply(monkeypatch, key, mode):
    monkeypatch.setenv("TEST_LLM_KEY", key)
    with on_port(make_app("m", last_user_text)) as url:
        reply = ask_all(endpoint(url, mode=mode), PROMPT, "words")[0]
    assert (reply.content, reply.finish_reason) == ("none of the latest", "stop")


def test_a_real_key_is_masked_in_replies_and_any_key_in_errors(monkeypatch):
    for key in ("test", "k" * REAL_KEY):
        monkeypatch.setenv("TEST_LLM_KEY", key)
        message = Wire(endpoint("http://127.0.0.1:9/v1")).status_message(
            400, {"message": f"the key {key} is odd"}
        )
        assert "the key *** is odd" in message
    with on_port(make_app("m", lambda body: json.dumps({"key": "k" * REAL_KEY}))) as url:
        assert ask_all(endpoint(url), PROMPT, "key")[0].content == '{"key": "***"}'


def served(fault: str, after: int, seen: list):
    """An application that answers `after` requests, then fails with a status or as `fault` says."""

    async def app(scope, receive, send):
        message = await receive()
        body = message.get("body", b"")
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
        seen.append(
            (
                scope["path"],
                {name: value for name, value in scope["headers"] if name != b"content-length"},
                json.loads(body),
            )
        )
        status, answer, length = (
            200,
            {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]},
            None,
        )
        if len(seen) > after:
            if fault == "hangs":
                return await asyncio.sleep(1)
            if fault == "is cut":
                length = 5000
            else:
                status, answer = (
                    int(fault),
                    {"error": {"message": "the words of the server", "code": None}},
                )
        raw = json.dumps(answer).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(length or len(raw)).encode()),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": raw})

    return app


@pytest.mark.parametrize(
    "fault", ["400", "401", "403", "404", "422", "429", "500", "503", "hangs", "is cut"]
)
def test_the_first_request_and_a_later_one_are_alike(monkeypatch, fault):
    monkeypatch.setattr(wire, "MAX_RETRIES", 0)
    monkeypatch.setattr(wire, "MAX_REFUSALS", 0)
    monkeypatch.setenv("TEST_LLM_KEY", "a key of more than sixteen letters")
    words, seen = [], []

    async def go(url, count):
        async with Wire(endpoint(url, timeout_s=0.4)) as wire_:
            body = {
                "model": "m",
                "messages": [{"role": "user", "content": "é 😀"}],
                "max_tokens": 3,
            }
            for _ in range(count - 1):
                assert (await wire_.complete(body))["choices"][0]["message"]["content"] == "yes"
            with pytest.raises(LibraError) as error:
                await wire_.complete(body)
            words.append(str(error.value).replace(url, "ADDRESS"))

    for after in (0, 2):
        seen.clear()
        with on_port(served(fault, after, seen)) as url:
            asyncio.run(go(url, after + 1))
    assert words[0] == words[1] and "ADDRESS" in words[0]
    assert len(seen) == 3 and all(request == seen[0] for request in seen), "path, headers and body"
    assert seen[0][1][b"authorization"] == b"Bearer a key of more than sixteen letters"
