"""The wire: what is tried again and after how long, what Retry-After says, and where the key is masked."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from asking import ask_all, endpoint, on_port

from stages.common.errors import LibraError
from stages.llm import wire
from stages.llm.asgi import RequestError, last_user_text, make_app
from stages.llm.chat import ChatRequest
from stages.llm.wire import LONGEST_PAUSE, MAX_RETRIES, REAL_KEY, Wire, _retry_after

ONE = [ChatRequest([{"role": "user", "content": "none of the latest"}])]


def test_retry_after_is_seconds_or_a_date():
    soon = datetime.now(UTC) + timedelta(seconds=30)
    assert _retry_after({"retry-after": "2.5"}) == 2.5 and _retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert 28 < _retry_after({"retry-after": format_datetime(soon, usegmt=True)}) <= 30
    assert 28 < _retry_after({"retry-after": f"{soon:%a, %d %b %Y %H:%M:%S} -0000"}) <= 30, "without a zone it is UTC"
    assert _retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert _retry_after({"retry-after": "later"}) is None and _retry_after({}) is None


@pytest.mark.parametrize("status", [408, 409, 500, 503])
def test_what_may_pass_is_tried_again(monkeypatch, status):
    monkeypatch.setattr(wire, "LONGEST_PAUSE", 0.02)
    tried = []

    def answer(body):
        tried.append(1)
        if len(tried) < 3:
            raise RequestError("not now", status=status)
        return "yes"

    with on_port(make_app("m", answer)) as url:
        assert ask_all(endpoint(url), ONE, "again")[0].content == "yes"
    assert len(tried) == 3


ODD = [b"<html>", b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}", b'{"choices": [{"message": {"x": ' + b"[" * 150 + b"]" * 150 + b"}}]}"]


@pytest.mark.parametrize("body", ODD, ids=["no JSON", "too deep to read", "too many digits", "too deep to write"])
def test_json_that_can_t_be_read_is_tried_again(monkeypatch, body):
    monkeypatch.setattr(wire, "LONGEST_PAUSE", 0.02)
    inner, odd = make_app("m", last_user_text), [body, body]

    async def app(scope, receive, send):
        if scope["type"] != "http" or not odd:
            return await inner(scope, receive, send)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": odd.pop()})

    with on_port(app) as url:
        assert ask_all(endpoint(url), ONE, "odd")[0].content == "none of the latest"
        odd[:] = [body] * 50
        with pytest.raises(LibraError, match="didn't answer with JSON: is this the address of a chat API"):
            ask_all(endpoint(url), ONE, "odd", random_seed=1)


def test_the_waits_between_two_tries_grow_and_differ(monkeypatch):
    waits = []

    async def pause(self, seconds):
        waits.append(seconds)

    monkeypatch.setattr(Wire, "pause", pause)

    async def broken():
        raise wire._Broken("no")

    async def go():
        async with Wire(endpoint("http://127.0.0.1:9/v1")) as one:
            for _ in range(5):
                with pytest.raises(LibraError, match="no"):
                    await one.tried(broken)

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
        reply = ask_all(endpoint(url, mode=mode), ONE, "words")[0]
    assert (reply.content, reply.finish_reason) == ("none of the latest", "stop")


def test_a_real_key_is_masked_in_replies_and_any_key_in_errors(monkeypatch):
    for key in ("test", "k" * REAL_KEY):
        monkeypatch.setenv("TEST_LLM_KEY", key)
        said = Wire(endpoint("http://127.0.0.1:9/v1")).status_words(400, {"message": f"the key {key} is odd"})
        assert "the key *** is odd" in said
    with on_port(make_app("m", lambda body: json.dumps({"key": "k" * REAL_KEY}))) as url:
        assert ask_all(endpoint(url), ONE, "key")[0].content == '{"key": "***"}'
