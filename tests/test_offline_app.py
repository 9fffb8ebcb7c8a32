"""The server side of the offline teacher: in process, and over a real port."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time

import openai
import pytest

from helpers.asking import ask_all, endpoint, make_app
from stages.chat.offline import last_user_text, schema_name
from stages.core.errors import LibraError


def send(app, method, path, content=b""):
    """(status, JSON) of one raw request to an application."""
    import httpx2

    async def go():
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=app), base_url="http://x"
        ) as http:
            response = await http.request(method, path, content=content)
            return response.status_code, response.json()

    return asyncio.run(go())


GOOD = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        (b"{not json", None),
        (b"[1, 2]", None),
        (b"\xff\xfe", None),
        ({"model": None}, "model"),
        ({"model": "other"}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"content": "hello"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"seed": "x"}, "seed"),
        ({"response_format": "json"}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": []}},
            "response_format.json_schema",
        ),
        ({"stream": True, "stream_options": 1}, "stream_options"),
    ],
)
def test_bad_requests_get_errors_in_openais_shape(change, param):
    content = change if isinstance(change, bytes) else json.dumps({**GOOD, **change}).encode()
    status, body = send(make_app("m", last_user_text), "POST", "/v1/chat/completions", content)
    assert status == (404 if change == {"model": "other"} else 400)
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"] == "invalid_request_error" and body["error"]["param"] == param


def test_wrong_paths_and_methods_get_errors_too():
    app = make_app("m", last_user_text)
    assert send(app, "GET", "/v2/else")[0] == 404
    assert send(app, "GET", "/v1/chat/completions")[0] == 405
    assert "POST /v1/chat/completions" in send(app, "GET", "/")[1]["error"]["message"]


def test_choices_usage_limits_and_parts():
    app = make_app(
        "m", lambda body: f"{last_user_text(body)} {body.get('seed', 0)} {schema_name(body)}"
    )
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    status, body = send(
        app,
        "POST",
        "/v1/chat/completions",
        json.dumps(
            {
                "model": "m",
                "n": 2,
                "max_tokens": 2,
                "messages": [{"role": "user", "content": parts}],
            }
        ).encode(),
    )
    assert status == 200
    assert [choice["message"]["content"] for choice in body["choices"]] == ["hello 0 ", "hello 1 "]
    assert {choice["finish_reason"] for choice in body["choices"]} == {"length"}
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}


@pytest.fixture(scope="module")
def served():
    """The offline teacher in a process of its own; yields its base_url."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "stages.tools", "serve", "teacher", "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert f"http://127.0.0.1:{port}/v1" in server.stdout.readline()
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(10)
        server.stdout.close()


SHEET = {
    "seed_id": "s-1",
    "representation": "text",
    "name": "substance A",
    "intent": "melting_point",
    "intent_kind": "neutral",
    "expected": "comply",
    "status": "unregulated",
    "kind": "medicine",
    "fact": {
        "name": "melting_point",
        "value": 356.9,
        "unit": "K",
        "tolerance": 2.0,
        "method": "CRC",
        "source": "x",
    },
}


def test_served_teacher_speaks_to_any_openai_client(served):
    with openai.OpenAI(base_url=served, api_key="any") as any_client:
        assert [model.id for model in any_client.models.list()] == ["libra-offline-teacher"]
        messages = [{"role": "user", "content": json.dumps(SHEET)}]
        whole = any_client.chat.completions.create(model="libra-offline-teacher", messages=messages)
        assert "356.9 K" in whole.choices[0].message.content and whole.usage.total_tokens > 0
        options = {"include_usage": True}
        chunks = list(
            any_client.chat.completions.create(
                model="libra-offline-teacher",
                messages=messages,
                stream=True,
                stream_options=options,
            )
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage == whole.usage and chunks[-2].choices[0].finish_reason == "stop"
        with pytest.raises(openai.NotFoundError):
            any_client.chat.completions.create(model="gpt-0", messages=messages)
        hello = any_client.chat.completions.create(
            model="libra-offline-teacher", messages=[{"role": "user", "content": "How are you?"}]
        )
        assert "fact sheet" in hello.choices[0].message.content


def test_client_gets_the_same_over_a_port_as_in_process(served):
    from stages.teacher.offline_teacher import MODEL, app
    from stages.teacher.sheets import answer_request

    requests = [answer_request(SHEET, f"prompt {i}") for i in range(20)]
    over_port = ask_all(endpoint(served, MODEL), requests, "port")
    assert over_port == ask_all(endpoint("offline", MODEL), requests, "in process", app)
    assert all("356.9 K" in reply.content for reply in over_port)
    with pytest.raises(LibraError, match="answered 404.*fix `model` or `base_url`"):
        ask_all(endpoint(served, "gpt-0"), requests, "port")
