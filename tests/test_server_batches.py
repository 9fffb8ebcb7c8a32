"""Files and batches of the offline server, in process and on a port."""

import asyncio
import itertools
from types import SimpleNamespace

import httpx2
import openai
import pytest

from helpers.asking import on_port
from helpers.openai_client import app_of, begin, ended, line, result_lines, run_batch, talk
from stages.chat.offline import RequestError, last_user_text
from stages.tools.serving import batch_api, batch_input
from stages.tools.serving.batch_api import FINAL
from stages.tools.serving.fault_injection import Faults


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
            batch, output, errors = run_batch(None, lines, url, metadata={"part": "1"})
    else:
        batch, output, errors = run_batch(app, lines, metadata={"part": "1"})
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
        "message": "not this one",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "odd",
    }
    assert errors["no-messages"]["response"]["body"]["error"]["param"] == "messages"


def test_a_file_without_lines_does_not_exist():
    good, output, errors = run_batch(app_of(), [line("a")])
    assert (good.error_file_id, list(output), errors) == (None, ["a"], None)
    bad, output, errors = run_batch(
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
    answered = []
    batch, output, errors = run_batch(app_of(lambda body: answered.append(1) or ""), lines)
    assert batch.status == "failed" and batch.failed_at and not batch.in_progress_at
    assert batch.errors.object == "list"
    assert [(fault.code, fault.line, fault.param) for fault in batch.errors.data] == wrong
    assert all(fault.message for fault in batch.errors.data)
    assert output is errors is None and answered == []


def test_a_file_that_is_too_large_fails_its_batch(monkeypatch):
    monkeypatch.setattr(batch_input, "MAX_BYTES", 200)
    assert run_batch(app_of(), [line("a")])[0].status == "completed"
    batch, *_ = run_batch(app_of(), [line("a"), line("b")])
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
    monkeypatch.setattr(batch_api, "time", SimpleNamespace(time=lambda: next(seconds)))

    async def conversation(client):
        batch = await begin(client, [line(str(i)) for i in range(100)])
        while batch.request_counts.completed == 0:
            batch = await client.batches.retrieve(batch.id)
        first = await client.batches.cancel(batch.id)
        second = await client.batches.cancel(batch.id)
        assert first.status == second.status == "cancelling"
        assert first.cancelling_at == second.cancelling_at
        batch = await ended(client, first)
        with pytest.raises(
            openai.ConflictError, match="Cannot cancel a batch with status 'cancelled'"
        ):
            await client.batches.cancel(batch.id)
        return (
            batch,
            await result_lines(client, batch.output_file_id),
            await result_lines(client, batch.error_file_id),
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
    batch, output, errors = run_batch(
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
    monkeypatch.setattr(batch_api, "WINDOW_S", 0)
    assert run_batch(app_of(), [line("a")])[0].status == "expired"


def test_the_server_answers_while_it_works_on_a_batch():
    async def conversation(client):
        batch = await begin(client, [line(str(i)) for i in range(300)])
        answers = 0
        while batch.request_counts.completed < 100:
            await client.models.list()
            answers += 1
            batch = await client.batches.retrieve(batch.id)
        assert batch.status == "in_progress"
        await client.batches.cancel(batch.id)
        await ended(client, batch)
        return answers

    # A third of the batch takes several slices: between any two of them, other requests are served.
    assert talk(app_of(), conversation) > 2


def test_a_batch_outlives_the_event_loop_that_created_it():
    answered = []
    app = Faults(app_of(lambda body: answered.append(last_user_text(body)) or ""), latency_s=0.02)

    async def start(client):
        batch = await begin(client, [line(str(i), str(i)) for i in range(50)])
        while batch.request_counts.completed == 0:
            batch = await client.batches.retrieve(batch.id)
        return batch

    batch = talk(app, start)
    assert 0 < len(answered) < 50
    batch = talk(app, lambda client: ended(client, batch))
    assert (batch.status, batch.request_counts.completed) == ("completed", 50)
    assert sorted(answered) == sorted(map(str, range(50)))


def test_a_bug_fails_its_line_and_is_printed(capfd):
    def answer(body):
        return str(1 / int(last_user_text(body)))

    batch, output, errors = run_batch(app_of(answer), [line("good", "2"), line("bug", "0")])
    assert batch.status == "completed" and list(output) == ["good"]
    assert errors["bug"]["response"]["status_code"] == 500
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_batches_are_listed_newest_first_in_pages():
    async def conversation(client):
        ids = [(await begin(client, [line("a")])).id for _ in range(5)]
        page = await client.batches.list(limit=2)
        assert [batch.id for batch in page.data] == ids[:2:-1] and page.has_more
        last = await client.batches.list(limit=2, after=ids[1])
        assert [batch.id for batch in last.data] == ids[:1] and not last.has_more
        full = await client.batches.list(limit=2, after=ids[2])
        assert [batch.id for batch in full.data] == ids[1::-1] and not full.has_more
        assert [batch.id async for batch in client.batches.list(limit=2)] == ids[::-1]
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
        assert [file.id async for file in client.files.list(limit=1)] == [other.id, file.id]
        assert [file.id async for file in client.files.list(order="asc", purpose="batch")] == [
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
def test_invalid_batches_are_refused(change, param):
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
def test_invalid_uploads_are_refused(kind, body, words):
    body = body.replace(b"%s", b"Content-Disposition: form-data; name=purpose\r\n\r\n")

    async def post():
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=app_of()), base_url="http://x"
        ) as http:
            return await http.post("/v1/files", content=body, headers={"content-type": kind})

    response = asyncio.run(post())
    assert response.status_code == 400 and words in response.json()["error"]["message"]
