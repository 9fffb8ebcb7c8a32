"""Batches of servers that answer oddly or hang."""

import json
import signal
import time

import pytest

from helpers.asking import (
    ask_all,
    endpoint,
    make_app,
    on_port,
    start,
    texts,
    until,
)
from stages.chat import batches, wire
from stages.chat.offline import last_user_text
from stages.tools.serving.fault_injection import Faults


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(batches, "POLL_FIRST", 0.02)
    monkeypatch.setattr(batches, "POLL_LONGEST", 0.1)
    monkeypatch.setattr(wire, "LONGEST_PAUSE", 0.02)


UNREADABLE = [b"<html>", b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}", b"[]", b"{}", b"null"]


@pytest.mark.parametrize(
    "body", UNREADABLE, ids=["html", "deep", "digits", "list", "empty", "null"]
)
@pytest.mark.parametrize("kind", [b"application/json", b"text/html"])
def test_unreadable_answers_about_files_and_batches_are_retried(kind, body):
    inner = Faults(make_app("m", last_user_text))
    calls, created = {}, []

    async def app(scope, receive, send):
        called = (scope.get("method"), scope.get("path"))
        calls[called] = calls.get(called, 0) + 1
        if scope["type"] != "http" or calls[called] > 1 or "content" in called[1]:
            return await inner(scope, receive, send)
        if called == (
            "POST",
            "/v1/batches",
        ):  # the server takes it, and only its answer is unreadable
            created.append(1)

            async def swallow(message):
                pass

            await inner(scope, receive, swallow)
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}
        )
        await send({"type": "http.response.body", "body": body})

    with on_port(app) as url:
        assert len(ask_all(endpoint(url, mode="batch"), texts(5), "batch")) == 5
    assert created and inner.served["batches"] == (2 if body == b"{}" else 1), (
        "{} is a list of no batches"
    )


@pytest.mark.parametrize(
    "result",
    [
        "[" * 100_000,
        '{"n": ' + "9" * 5000 + "}",
        '{"custom_id": []}',
        "7",
        '{"custom_id": KEY, "response": 3, "error": []}',
        '{"custom_id": KEY, "response": {"status_code": "400", "body": {"error": "no"}}, '
        '"error": "no"}',
    ],
)
def test_requests_with_unreadable_results_are_sent_again(result):
    inner, spoiled = Faults(make_app("m", last_user_text)), []

    async def app(scope, receive, send):
        if spoiled or not scope.get("path", "").endswith("/content"):
            return await inner(scope, receive, send)

        async def spoil(message):
            if body := message.get("body"):
                spoiled.append(1)
                first, rest = body.split(b"\n", 1)
                line = result.replace("KEY", json.dumps(json.loads(first)["custom_id"])).encode()
                await send({**message, "body": line + b"\n" + rest})
            else:
                head = [pair for pair in message.get("headers", []) if pair[0] != b"content-length"]
                await send({**message, "headers": head} if "headers" in message else message)

        await inner(scope, receive, spoil)

    with on_port(app) as url:
        replies = ask_all(endpoint(url, mode="batch"), texts(5), "batch")
        assert [reply.content for reply in replies] == [f"prompt {i}" for i in range(5)]
    assert spoiled and inner.served["batches"] == 2


@pytest.mark.parametrize("hung", ["/v1/files", "/v1/batches/batch_"])
def test_ctrl_c_doesnt_wait_for_a_server_that_hangs(tmp_path, hung):
    inner, waiting = make_app("m", last_user_text), []

    async def app(scope, receive, send):
        if not scope.get("path", "").startswith(hung):
            return await inner(scope, receive, send)
        waiting.append(1)
        while (await receive())["type"] != "http.disconnect":
            pass

    with on_port(app) as url:
        run = start(url, 5, tmp_path, "batch")
        until(run, lambda: waiting)
        run.send_signal(signal.SIGINT)
        output = run.communicate(timeout=30)[1]  # half of the request's timeout_s
    assert run.returncode == 130 and "Traceback" not in output, output


def test_a_second_ctrl_c_gives_up_a_batch_being_made_and_the_next_run_finds_it(tmp_path):
    served, hung = Faults(make_app("m", last_user_text)), []

    async def app(scope, receive, send):
        if (scope.get("method"), scope.get("path")) != ("POST", "/v1/batches") or hung:
            return await served(scope, receive, send)

        async def swallow(message):
            pass

        await served(scope, receive, swallow)
        hung.append(1)
        while (await receive())["type"] != "http.disconnect":
            pass

    with on_port(app) as url:
        run = start(url, 5, tmp_path, "batch")
        until(run, lambda: hung)
        run.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert run.poll() is None, "it waits to hear of the batch"
        run.send_signal(signal.SIGINT)
        output = run.communicate(timeout=30)[1]  # half of the request's timeout_s
        assert run.returncode == 130 and "Traceback" not in output, output
        run = start(url, 5, tmp_path, "batch")
        output = run.communicate(timeout=60)[1]
    assert run.returncode == 0 and served.served["batches"] == 1, output
