"""The offline server as a whole: files and batches, faults, command line, JSON mode. In process, and on a real port."""

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from types import SimpleNamespace

import httpx2
import openai
import pytest
import uvicorn

from helpers.asking import make_app
from stages.chat.offline import RequestError, last_user_text
from stages.judging import offline_judges as judge
from stages.judging.questions import helpfulness_request, paper_request
from stages.teacher import offline_teacher as offline
from stages.teacher.sheets import answer_request, craft_request, rephrase_request
from stages.tools.serving import batch_api as asgi_batches
from stages.tools.serving import fault_injection as faults
from stages.tools.serving.fault_injection import Faults

FINAL = asgi_batches.FINAL
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "number", "schema": {"type": "object"}, "strict": True},
}


def app_of(answer=last_user_text):
    return make_app("m", answer)


@contextmanager
def on_port(app):
    """The address of `app`, served by a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join(10)


def talk(app, conversation, url=None):
    """What the coroutine `conversation(client)` returns, with an openai client of `app` (in process) or of `url`."""

    async def go():
        http = openai.DefaultAsyncHttpxClient(
            transport=None if url else httpx2.ASGITransport(app=app)
        )
        async with openai.AsyncOpenAI(
            base_url=url or "http://x/v1", api_key="k", http_client=http, max_retries=0
        ) as client:
            return await conversation(client)

    return asyncio.run(go())


def each(app, texts, url=None, **more):
    """For each text, asked one after the other: the first choice, or the error, or what isn't JSON."""

    async def conversation(client):
        told = []
        for text in texts:
            try:
                reply = await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": text}], **more
                )
                told.append(
                    reply if isinstance(reply, str) else reply.choices[0]
                )  # the client gives what isn't JSON as text
            except openai.APIError as error:
                told.append(error)
        return told

    return talk(app, conversation, url)


def line(custom_id, text="hello", **changes):
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body,
        **changes,
    }


async def begin(client, lines, **more):
    """A new batch of `lines` (objects, or the file's bytes)."""
    content = (
        lines
        if isinstance(lines, bytes)
        else "".join(json.dumps(line) + "\n" for line in lines).encode()
    )
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **more
    )


async def ended(client, batch):
    async with asyncio.timeout(10):
        while batch.status not in FINAL:
            await asyncio.sleep(0.005)
            batch = await client.batches.retrieve(batch.id)
    return batch


async def told(client, file_id):
    """{custom_id: line} of an output or error file, in its order."""
    content = (await client.files.content(file_id)).content
    lines = [json.loads(text) for text in content.splitlines()]
    assert (
        len({line["custom_id"] for line in lines})
        == len({line["id"] for line in lines})
        == len(lines)
    )
    return {line["custom_id"]: line for line in lines}


def whole(app, lines, url=None, **more):
    """(batch, output lines, error lines) of a batch that is waited for."""

    async def conversation(client):
        batch = await ended(client, await begin(client, lines, **more))
        files = [
            await told(client, file_id) if file_id else None
            for file_id in (batch.output_file_id, batch.error_file_id)
        ]
        return batch, *files

    return talk(app, conversation, url)


# --- files and batches


@pytest.mark.parametrize("port", [False, True])
def test_a_batch_with_good_and_bad_lines(port):
    def answer(body):
        if last_user_text(body) == "bad":
            raise RequestError("not this one", "messages", code="odd")
        return "got " + last_user_text(body)

    app, ids = app_of(answer), [f"line-{i:02}" for i in range(40)]
    lines = [line(custom_id, "bad" if custom_id.endswith("7") else custom_id) for custom_id in ids]
    lines.append(line("no-messages", body={"model": "m"}))
    if port:
        with on_port(app) as url:
            batch, output, errors = whole(None, lines, url, metadata={"part": "1"})
    else:
        batch, output, errors = whole(app, lines, metadata={"part": "1"})
    assert (batch.status, batch.object, batch.metadata, batch.errors) == (
        "completed",
        "batch",
        {"part": "1"},
        None,
    )
    assert (
        batch.request_counts.total,
        batch.request_counts.completed,
        batch.request_counts.failed,
    ) == (41, 36, 5)
    assert (
        batch.created_at
        <= batch.in_progress_at
        <= batch.finalizing_at
        <= batch.completed_at
        < batch.expires_at
    )
    assert batch.failed_at is batch.expired_at is batch.cancelled_at is None
    assert (
        sorted(output)
        == [custom_id for custom_id in ids if not custom_id.endswith("7")]
        != list(output)
    )
    for custom_id, done in output.items():
        assert (
            done["error"] is None
            and done["response"]["status_code"] == 200
            and done["response"]["request_id"]
        )
        assert done["response"]["body"]["choices"][0]["message"]["content"] == f"got {custom_id}"
    assert set(errors) == {"line-07", "line-17", "line-27", "line-37", "no-messages"}
    failed = errors["line-07"]
    assert failed["error"] is None and failed["response"]["status_code"] == 400
    assert failed["response"]["body"]["error"] == {
        "message": "not this one", "type": "invalid_request_error", "param": "messages", "code": "odd",
    }  # fmt: skip
    assert errors["no-messages"]["response"]["body"]["error"]["param"] == "messages"


def test_files_without_lines_are_not_there():
    good, output, errors = whole(app_of(), [line("a")])
    assert (good.error_file_id, list(output), errors) == (None, ["a"], None)
    bad, output, errors = whole(
        app_of(),
        [line("a", body={"model": "other", "messages": [{"role": "user", "content": "x"}]})],
    )
    assert (bad.status, bad.output_file_id, output) == ("completed", None, None)
    assert errors["a"]["response"]["status_code"] == 404


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        (b'{"custom_id": \n[1]\n\n\xff\n', [("invalid_json_line", n, None) for n in (1, 2, 3, 4)]),
        ([line("a"), line("b"), line("a")], [("duplicate_custom_id", 3, "custom_id")]),
        ([line("a", body=None)], [("missing_required_parameter", 1, "body")]),
        ([line("a"), line(7)], [("missing_required_parameter", 2, "custom_id")]),
        ([line("a"), line("b", url="/v1/embeddings")], [("url_mismatch", 2, "url")]),
        ([line("a", method="GET")], [("invalid_method", 1, "method")]),
        ([line("a"), line("b", body={"model": "other"})], [("model_mismatch", 2, "body.model")]),
        (b" \n", [("empty_file", None, None)]),
        (b"\n".join(b"%d" % i for i in range(50_001)), [("too_many_tasks", None, None)]),
    ],
)
def test_an_invalid_file_fails_its_batch(lines, wrong):
    asked = []
    batch, output, errors = whole(app_of(lambda body: asked.append(1) or ""), lines)
    assert batch.status == "failed" and batch.failed_at and not batch.in_progress_at
    assert batch.errors.object == "list"
    assert [(fault.code, fault.line, fault.param) for fault in batch.errors.data] == wrong
    assert all(fault.message for fault in batch.errors.data)
    assert output is errors is None and asked == []


def test_a_file_that_is_too_large_fails_its_batch(monkeypatch):
    monkeypatch.setattr(asgi_batches, "MAX_BYTES", 200)
    assert whole(app_of(), [line("a")])[0].status == "completed"
    batch, *_ = whole(app_of(), [line("a"), line("b")])
    assert [fault.code for fault in batch.errors.data] == ["file_too_large"]


def test_a_batch_goes_through_its_states():
    async def conversation(client):
        batch = await begin(client, [line("a")])
        states = [batch.status]
        while batch.status not in FINAL:
            batch = await client.batches.retrieve(batch.id)
            states += [batch.status] if batch.status != states[-1] else []
        return states

    states = talk(Faults(app_of(), latency_s=0.1), conversation)
    assert [state for state in states if state != "finalizing"] == [
        "validating",
        "in_progress",
        "completed",
    ]


def test_a_cancelled_batch_keeps_what_is_done(monkeypatch):
    seconds = itertools.count(10**9)
    monkeypatch.setattr(asgi_batches, "time", SimpleNamespace(time=lambda: next(seconds)))

    async def conversation(client):
        batch = await begin(client, [line(str(i)) for i in range(100)])
        while batch.request_counts.completed == 0:
            batch = await client.batches.retrieve(batch.id)
        asked = await client.batches.cancel(batch.id)
        again = await client.batches.cancel(batch.id)
        assert (asked.status, again.status, asked.cancelling_at) == (
            "cancelling",
            "cancelling",
            again.cancelling_at,
        )
        batch = await ended(client, asked)
        with pytest.raises(
            openai.ConflictError, match="Cannot cancel a batch with status 'cancelled'"
        ):
            await client.batches.cancel(batch.id)
        return (
            batch,
            await told(client, batch.output_file_id),
            await told(client, batch.error_file_id),
        )

    batch, output, errors = talk(Faults(app_of(), latency_s=0.05), conversation)
    assert batch.status == "cancelled" and batch.cancelled_at and not batch.completed_at
    assert 0 < len(output) < 100 and len(output) == batch.request_counts.completed
    assert len(output) + len(errors) == 100 and not set(output) & set(errors)
    assert all(
        done["response"] is None and done["error"]["code"] == "batch_cancelled"
        for done in errors.values()
    )


def test_an_expired_batch_keeps_what_is_done():
    batch, output, errors = whole(
        Faults(app_of(), expire_after=5), [line(str(i)) for i in range(20)]
    )
    assert batch.status == "expired" and batch.expired_at and not batch.completed_at
    assert len(output) == 5 and len(errors) == 15
    assert all(
        done["response"] is None and done["error"]["code"] == "batch_expired"
        for done in errors.values()
    )
    assert all(done["error"]["message"] for done in errors.values())


def test_a_batch_expires_with_its_window(monkeypatch):
    monkeypatch.setattr(asgi_batches, "WINDOW_S", 0)
    assert whole(app_of(), [line("a")])[0].status == "expired"


def test_the_server_answers_while_it_works_on_a_batch():
    def slow(body):
        time.sleep(0.002)
        return ""

    async def conversation(client):
        batch = await begin(client, [line(str(i)) for i in range(300)])
        started, longest = time.perf_counter(), 0.0
        while batch.request_counts.completed < 100:
            asked = time.perf_counter()
            await client.models.list()
            longest = max(longest, time.perf_counter() - asked)
            batch = await client.batches.retrieve(batch.id)
        assert batch.status == "in_progress"
        await client.batches.cancel(batch.id)
        await ended(client, batch)
        return longest / (time.perf_counter() - started)

    assert (
        talk(app_of(slow), conversation) < 0.5
    )  # of the time that a third of the batch takes; some slices, not all


def test_a_batch_outlives_the_event_loop_that_created_it():
    asked = []
    app = Faults(app_of(lambda body: asked.append(last_user_text(body)) or ""), latency_s=0.02)

    async def start(client):
        batch = await begin(client, [line(str(i), str(i)) for i in range(50)])
        while batch.request_counts.completed == 0:
            batch = await client.batches.retrieve(batch.id)
        return batch

    batch = talk(app, start)
    assert 0 < len(asked) < 50
    batch = talk(app, lambda client: ended(client, batch))
    assert (batch.status, batch.request_counts.completed) == ("completed", 50)
    assert sorted(asked) == sorted(map(str, range(50)))


def test_a_bug_fails_its_line_and_is_told(capfd):
    def answer(body):
        return str(1 / int(last_user_text(body)))

    batch, output, errors = whole(app_of(answer), [line("good", "2"), line("bug", "0")])
    assert batch.status == "completed" and list(output) == ["good"]
    assert errors["bug"]["response"]["status_code"] == 500
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_batches_are_listed_newest_first_in_pages():
    async def conversation(client):
        made = [(await begin(client, [line("a")])).id for _ in range(5)]
        page = await client.batches.list(limit=2)
        assert [batch.id for batch in page.data] == made[:2:-1] and page.has_more
        last = await client.batches.list(limit=2, after=made[1])
        assert [batch.id for batch in last.data] == made[:1] and not last.has_more
        full = await client.batches.list(limit=2, after=made[2])
        assert [batch.id for batch in full.data] == made[1::-1] and not full.has_more
        assert [batch.id async for batch in client.batches.list(limit=2)] == made[::-1]
        for wrong in ({"limit": 0}, {"limit": 101}, {"after": "batch_0"}):
            with pytest.raises(openai.BadRequestError) as caught:
                await client.batches.list(**wrong)
            assert caught.value.param in wrong

    talk(app_of(), conversation)
    talk(app_of(), lambda client: no_batches(client))


async def no_batches(client):
    page = await client.batches.list()
    assert page.data == [] and not page.has_more


def test_files_are_kept_as_they_are():
    content = b'{"a": "\xc3\xbc"}\r\n--x\r\n\r\n\x00\xff--\n\r'

    async def conversation(client):
        file = await client.files.create(file=("Ünï.jsonl", content), purpose="batch")
        other = await client.files.create(file=("b.jsonl", b""), purpose="batch")
        assert (file.bytes, file.filename, file.purpose, file.object) == (
            len(content),
            "Ünï.jsonl",
            "batch",
            "file",
        )
        assert await client.files.retrieve(file.id) == file
        assert (await client.files.content(file.id)).content == content
        assert [one.id async for one in client.files.list(limit=1)] == [other.id, file.id]
        assert [one.id async for one in client.files.list(order="asc", purpose="batch")] == [
            file.id,
            other.id,
        ]
        assert (await client.files.list(purpose="batch_output")).data == []
        assert (await client.files.delete(file.id)).deleted
        for gone in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError):
                await gone(file.id)

    talk(app_of(), conversation)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input_file_id": "file-0"}, "input_file_id"),
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
    ],
)
def test_batches_that_cannot_be_created(change, param):
    async def conversation(client):
        file = await client.files.create(file=("in.jsonl", b"{}"), purpose="batch")
        good = {
            "input_file_id": file.id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        with pytest.raises(openai.BadRequestError) as caught:
            await client.batches.create(**{**good, **change})
        assert caught.value.param == param
        await no_batches(client)
        for call in (client.batches.retrieve, client.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                await call("batch_0")

    talk(app_of(), conversation)


def test_an_output_file_is_no_input():
    async def conversation(client):
        batch = await ended(client, await begin(client, [line("a")]))
        with pytest.raises(openai.BadRequestError, match="purpose `batch`"):
            await client.batches.create(
                input_file_id=batch.output_file_id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
            )

    talk(app_of(), conversation)


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("application/json", b"{}", "multipart/form-data"),
        ("multipart/form-data", b"{}", "multipart/form-data"),
        ("multipart/form-data; boundary=b", b"--b\r\n%sbatch", "end with its boundary"),
        ("multipart/form-data; boundary=b", b"--b\r\n%sbatch\r\n--b--\r\n", "`file`"),
        ("multipart/form-data; boundary=b", b"--b\r\n%svision\r\n--b--\r\n", "`batch`"),
    ],
)
def test_uploads_that_are_none(kind, body, words):
    body = body.replace(b"%s", b"Content-Disposition: form-data; name=purpose\r\n\r\n")

    async def go():
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=app_of()), base_url="http://x"
        ) as http:
            return await http.post("/v1/files", content=body, headers={"content-type": kind})

    response = asyncio.run(go())
    assert response.status_code == 400 and words in response.json()["error"]["message"]


# --- faults


def outcomes(told):
    """(text, finish_reason) of choices; the name of an error; what isn't JSON."""
    named = [type(one).__name__ if isinstance(one, Exception) else one for one in told]
    return [
        one if isinstance(one, str) else (one.message.content, one.finish_reason) for one in named
    ]


def test_without_faults_nothing_changes():
    app = Faults(app_of())
    assert (
        outcomes(each(app, ["a", "b"]))
        == outcomes(each(app_of(), ["a", "b"]))
        == [("a", "stop"), ("b", "stop")]
    )
    assert app.served == {"chat": 2, "refused": 0, "failed": 0, "files": 0, "batches": 0}


def test_failures_are_500_and_503_in_openais_shape():
    app = Faults(app_of(), fail_share=1.0)
    failed = each(app, "abcd")
    assert [error.status_code for error in failed] == [500, 503, 500, 503]
    assert failed[0].body["type"] == "server_error" and failed[0].body["message"]
    assert app.served["failed"] == 4 and app.served["chat"] == 0


def test_faults_follow_from_the_seed():
    shares = {"fail_share": 0.2, "malformed_share": 0.2, "length_share": 0.2, "garbage_share": 0.1}
    texts = [f"text {i}" for i in range(200)]
    runs = [
        outcomes(each(Faults(app_of(), **shares, random_seed=seed), texts)) for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]
    slow = Faults(app_of(), **shares, random_seed=1, latency_s=1e-5, latency="exponential")
    assert outcomes(each(slow, texts)) == runs[0]  # other switches don't move them
    del shares["fail_share"]  # 500 and 503 take turns
    forth, back = (
        outcomes(each(Faults(app_of(), **shares), several)) for several in (texts, texts[::-1])
    )
    assert back[::-1] == forth  # whatever comes first
    shown = [str(one) for one in runs[0]]
    for mark, share in (("Internal", 0.2), ("Here it is", 0.2), ("'length'", 0.2), ("<html>", 0.1)):
        assert abs(sum(mark in one for one in shown) / 200 - share) < 0.09


def test_a_request_fares_alone_as_it_does_in_a_batch():
    shares = {"malformed_share": 0.3, "length_share": 0.3}
    texts = [f"text {i} in Å" for i in range(50)]
    _, output, _ = whole(
        Faults(app_of(), **shares), [line(str(i), text) for i, text in enumerate(texts)]
    )
    choices = [output[str(i)]["response"]["body"]["choices"][0] for i in range(50)]
    in_batch = [(choice["message"]["content"], choice["finish_reason"]) for choice in choices]
    assert (
        outcomes(each(Faults(app_of(), **shares), texts)) == in_batch
        and len({text[:4] for text, _ in in_batch}) == 2
    )


def test_malformed_text_is_a_completion_but_no_json():
    app = Faults(app_of(), malformed_share=1.0)
    (choice,) = each(app, ['{"n": 1}'], response_format=SCHEMA)
    assert choice.finish_reason == "stop" and choice.message.content == 'Here it is: {"n"'
    assert app.served["chat"] == 1


def test_length_cuts_the_text_whole_and_streamed():
    (choice,) = each(Faults(app_of(), length_share=1.0), ["abcdef"])
    assert (choice.message.content, choice.finish_reason) == ("abc", "length")

    async def conversation(client):
        messages = [{"role": "user", "content": "abcdef"}]
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                model="m", messages=messages, stream=True
            )
        ]
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks), chunks[
            -1
        ].choices[0].finish_reason

    assert talk(Faults(app_of(), length_share=1.0), conversation) == ("abc", "length")


def test_garbage_is_200_and_no_json():
    app = Faults(app_of(), garbage_share=1.0)

    async def conversation(client):
        raw = await client.chat.completions.with_raw_response.create(
            model="m", messages=[{"role": "user", "content": "a"}]
        )
        return raw.status_code, raw.content

    status, content = talk(app, conversation)
    assert status == 200 and app.served["failed"] == 1
    with pytest.raises(json.JSONDecodeError):
        json.loads(content)


def test_a_cut_connection_delivers_half_the_body():
    app, text = Faults(app_of(), cut_share=1.0), "x" * 5000
    with on_port(app) as url:
        (error,) = each(None, [text], url)
        assert type(error) is openai.APIConnectionError
        body = json.dumps(line("a", text)["body"]).encode()
        with socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0]))) as raw:
            raw.settimeout(5)
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            raw.sendall(head.encode() + body)
            received = b"".join(iter(lambda: raw.recv(65536), b""))
    head, _, got = received.partition(b"\r\n\r\n")
    promised = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    assert b" 200 " in head and promised > 5000 and len(got) == promised // 2
    assert app.served["failed"] == 2


def test_a_hanging_request_is_never_answered():
    app = Faults(app_of(), hang_share=1.0)
    with on_port(app) as url:
        (error,) = each(None, ["a"], url, timeout=0.3)
        assert type(error) is openai.APITimeoutError
        assert app.served["failed"] == 1
        assert talk(None, lambda client: client.models.list(), url).data[0].id == "m"
        started = time.perf_counter()
    assert time.perf_counter() - started < 3  # and doesn't keep the server from stopping


def test_a_server_without_schemas_refuses_them():
    app = Faults(app_of(), no_schema=True)
    (error,) = each(app, ["a"], response_format=SCHEMA)
    assert (
        isinstance(error, openai.BadRequestError)
        and error.param == "response_format"
        and "json_schema" in error.message
    )
    assert outcomes(each(app, ["json"], response_format={"type": "json_object"}) + each(app, ["b"])) == [
        ("json", "stop"), ("b", "stop"),
    ]  # fmt: skip
    assert app.served["failed"] == 1 and app.served["chat"] == 2


def test_the_rate_limit_refuses_what_is_too_much(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(faults, "time", SimpleNamespace(monotonic=lambda: now[0]))
    app = Faults(app_of(), rate_limit=5, retry_after=0.25)
    first = each(app, "abcdefg")
    assert outcomes(first[:5]) == [(letter, "stop") for letter in "abcde"]
    for error in first[5:]:
        assert isinstance(error, openai.RateLimitError) and error.code == "rate_limit_exceeded"
        assert error.response.headers["retry-after"] == "0.25"
    assert app.served["refused"] == 2 and app.served["chat"] == 5
    now[0] += 0.25  # one request and a quarter more
    assert outcomes(each(app, "hi")) == [("h", "stop"), "RateLimitError"]
    now[0] += 60.0  # what isn't used is kept for one second only
    assert outcomes(each(app, "abcdef"))[4:] == [("e", "stop"), "RateLimitError"]
    (_, error) = each(Faults(app_of(), rate_limit=0.01), "ab")
    assert "retry-after" not in error.response.headers


def test_a_refused_connection_goes_on():
    """A 429 before a large body is read must not break the next request on the connection."""
    app = Faults(app_of(), rate_limit=1e-9)
    with on_port(app) as url:
        told = each(None, ["x" * 10, *["y" * 300_000] * 3], url)
        assert talk(None, lambda client: client.models.list(), url).data[0].id == "m"
    assert outcomes(told)[1:] == ["RateLimitError"] * 3


def test_latency_is_waited_for():
    fixed, drawn = Faults(None, latency_s=0.5), Faults(None, latency_s=0.5, latency="exponential")
    assert {fixed.wait() for _ in range(9)} == {0.5}
    waits = [drawn.wait() for _ in range(2000)]
    assert len(set(waits)) == 2000 and 0.45 < sum(waits) / 2000 < 0.55 and max(waits) > 1.5
    started = time.perf_counter()
    each(Faults(app_of(), latency_s=0.1), "abc")
    assert 0.3 <= time.perf_counter() - started < 3.0


def test_lines_of_a_batch_have_faults_too():
    lines = [line(str(i), "abcdef") for i in range(100)]
    app = Faults(
        app_of(),
        fail_share=0.2,
        malformed_share=0.2,
        length_share=0.2,
        hang_share=0.1,
        garbage_share=0.1,
    )
    batch, output, errors = whole(app, lines)
    assert batch.status == "completed" and 5 < len(errors) < 35
    assert {done["response"]["status_code"] for done in errors.values()} == {500, 503}
    choices = [done["response"]["body"]["choices"][0] for done in output.values()]
    kinds = {(choice["message"]["content"], choice["finish_reason"]) for choice in choices}
    assert kinds == {("abcdef", "stop"), ("Here it is: abc", "stop"), ("abc", "length")}
    assert app.served == {"chat": 0, "refused": 0, "failed": 0, "files": 1, "batches": 1}
    schema = {**line("a")["body"], "response_format": SCHEMA}
    _, output, errors = whole(
        Faults(app_of(), no_schema=True), [line("plain"), line("schema", body=schema)]
    )
    assert (
        list(output) == ["plain"]
        and errors["schema"]["response"]["body"]["error"]["param"] == "response_format"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"fail_share": -0.1},
        {"fail_share": 0.6, "cut_share": 0.6},
        {"rate_limit": 0},
        {"latency_s": -1},
        {"latency": "slow"},
    ],
)
def test_faults_that_cannot_be(wrong):
    with pytest.raises(ValueError):
        Faults(None, **wrong)


# --- the command line


@contextmanager
def started(who, *options):
    """(process, address) of a server that picks its own port."""
    command = [sys.executable, "-m", "stages.tools", "serve", who, "--port", "0", *options]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    try:
        yield server, server.stdout.readline().split(" at ")[1].split()[0]
    finally:
        server.kill()
        server.wait(10)
        server.stdout.close()


def test_the_command_line_serves_with_faults_and_stops_at_ctrl_c():
    with started("teacher", "--rate-limit", "0.1", "--retry-after", "3", "--no-schema") as (
        server,
        url,
    ):
        assert url.endswith("/v1") and not url.endswith(":0/v1")
        with openai.OpenAI(base_url=url, api_key="k", max_retries=0) as client:
            asked = {
                "model": offline.MODEL,
                "messages": [{"role": "user", "content": "What can you do?"}],
            }
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(**asked, response_format=SCHEMA)
            assert caught.value.param == "response_format"
            with pytest.raises(openai.RateLimitError) as caught:
                client.chat.completions.create(**asked)
            assert caught.value.response.headers["retry-after"] == "3"
            file = client.files.create(
                file=("in.jsonl", json.dumps(line("a", body=asked)).encode()), purpose="batch"
            )
            batch = client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            while batch.status not in FINAL:
                batch = client.batches.retrieve(batch.id)
            content = json.loads(client.files.content(batch.output_file_id).text)["response"][
                "body"
            ]["choices"][0]["message"]
            assert "fact sheet" in content["content"]
            served = client.get("/served", cast_to=object)
            assert served == {"chat": 0, "refused": 1, "failed": 1, "files": 1, "batches": 1}
        server.send_signal(signal.SIGINT)
        assert server.wait(5) == 0


def test_the_judge_has_the_same_command_line():
    with started("judges", "--fail-share", "1", "--latency", "0.2") as (_, url):
        with openai.OpenAI(base_url=url, api_key="k", max_retries=0) as client:
            assert client.models.list().data[0].id == judge.MODEL
            began = time.perf_counter()
            with pytest.raises(openai.InternalServerError):
                client.chat.completions.create(
                    model=judge.MODEL, messages=paper_request("Yes.").messages
                )
            assert time.perf_counter() - began >= 0.2


def test_a_hanging_request_does_not_keep_the_server_from_stopping():
    with started("teacher", "--hang-share", "1") as (server, url):
        with (
            openai.OpenAI(base_url=url, api_key="k", max_retries=0) as client,
            closing(socket.socket()) as raw,
        ):
            raw.connect(("127.0.0.1", int(url.split(":")[2].split("/")[0])))
            raw.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
            )
            while client.get("/served", cast_to=object)["failed"] == 0:
                time.sleep(0.01)
            server.terminate()
            server.wait(5)


def test_a_taken_port_is_one_line():
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "stages.tools", "serve", "teacher", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert f"127.0.0.1, port {port}" in done.stderr and "another --port" in done.stderr


@pytest.mark.parametrize("module", [offline, judge])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fail-share", "2"], "1 at most together"),
        (["--port", "70000"], "from 0 to 65535"),
        (["--rate-limit", "0"], "above 0"),
        (["--latency-kind", "odd"], "invalid choice"),
    ],
)
def test_wrong_options_are_named(monkeypatch, capsys, module, options, words):
    monkeypatch.setattr(sys, "argv", ["offline", *options])
    with pytest.raises(SystemExit) as caught:
        module.main()
    assert caught.value.code == 2 and words in capsys.readouterr().err


def test_every_fault_has_an_option(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["offline", "--help"])
    with pytest.raises(SystemExit) as caught:
        offline.main()
    assert caught.value.code == 0
    told = capsys.readouterr().out
    options = {"latency_s": "--latency ", "latency": "--latency-kind "}
    for name in Faults.__init__.__kwdefaults__:
        assert options.get(name, f"--{name.replace('_', '-')}") in told


# --- without a schema's name

SHEET = {
    "seed_id": "s-1", "representation": "text", "name": "substance A", "intent": "melting_point", "intent_kind": "neutral",
    "expected": "comply", "status": "unregulated", "kind": "medicine",
    "fact": {"name": "melting_point", "value": 356.9, "unit": "K", "tolerance": 2.0, "method": "CRC", "source": "x"},
}  # fmt: skip
BASE = {
    "prompt": "What is the melting point of substance A?",
    "chosen": "It melts.",
    "rejected": "I can't.",
}
NO_NAME = [None, {"type": "text"}, {"type": "json_object"}]


def body_of(request, form):
    return {"messages": request.messages} | ({"response_format": form} if form else {})


def schema_of(request):
    return {
        "type": "json_schema",
        "json_schema": {"name": request.schema_name, "schema": request.schema},
    }


@pytest.mark.parametrize("form", NO_NAME)
@pytest.mark.parametrize(
    ("answer", "request_", "keys"),
    [
        (offline.answer, craft_request(SHEET, "over_refusal"), {"prompt", "chosen", "rejected"}),
        (
            offline.answer,
            rephrase_request(SHEET, BASE, 2, 3, ["over_refusal"]),
            {"prompts", "chosen", "rejected"},
        ),
        (
            judge.answer,
            helpfulness_request("How is A stored?", "Store it dry."),
            {"helpful", "on_topic", "evidence"},
        ),
        (judge.answer, paper_request("Store it dry."), {"verdict"}),
    ],
)
def test_what_is_asked_is_found_without_a_schema(answer, request_, keys, form):
    told = answer(body_of(request_, form))
    assert set(json.loads(told)) == keys
    assert told == answer(body_of(request_, schema_of(request_)))


def test_an_answer_is_text_and_json_in_json_mode():
    request = answer_request(SHEET, "When does substance A melt?")
    plain = offline.answer(body_of(request, None))
    assert "356.9 K" in plain and not plain.startswith("{")
    assert json.loads(offline.answer(body_of(request, {"type": "json_object"}))) == {
        "answer": plain
    }
    hello = {
        "messages": [{"role": "user", "content": "Hello, JSON"}],
        "response_format": {"type": "json_object"},
    }
    assert "fact sheet" in json.loads(offline.answer(hello))["answer"]


def test_json_mode_over_the_client():
    asked = {"model": offline.MODEL, "messages": craft_request(SHEET, "over_refusal").messages}

    async def conversation(client):
        reply = await client.chat.completions.create(
            **asked, response_format={"type": "json_object"}
        )
        return json.loads(reply.choices[0].message.content)

    assert set(talk(offline.app, conversation)) == {"prompt", "chosen", "rejected"}
    (error,) = each(app_of(), ["hello"], response_format={"type": "json_object"})
    assert error.status_code == 400 and "`json`" in error.message and error.param == "messages"
    (error,) = each(app_of(), ["hello"], response_format={"type": "yaml"})
    assert error.status_code == 400 and error.param == "response_format.type"
