"""Faults that the offline server can have, in process and on a port."""

import json
import socket
from types import SimpleNamespace

import openai
import pytest

from helpers.asking import on_port
from helpers.openai_client import SCHEMA, app_of, each, line, outcomes, run_batch, talk
from stages.tools.serving import fault_injection
from stages.tools.serving.fault_injection import Faults


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
    texts = [str(outcome) for outcome in runs[0]]
    for mark, share in (("Internal", 0.2), ("Here it is", 0.2), ("'length'", 0.2), ("<html>", 0.1)):
        assert abs(sum(mark in text for text in texts) / 200 - share) < 0.09


def test_a_request_gets_the_same_fault_alone_and_in_a_batch():
    shares = {"malformed_share": 0.3, "length_share": 0.3}
    texts = [f"text {i} in Å" for i in range(50)]
    _, output, _ = run_batch(
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
            length = f"Content-Length: {len(body)}\r\n\r\n"
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n{length}"
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


def test_a_server_without_schemas_refuses_them():
    app = Faults(app_of(), no_schema=True)
    (error,) = each(app, ["a"], response_format=SCHEMA)
    assert (
        isinstance(error, openai.BadRequestError)
        and error.param == "response_format"
        and "json_schema" in error.message
    )
    in_json_mode = each(app, ["json"], response_format={"type": "json_object"})
    assert outcomes(in_json_mode + each(app, ["b"])) == [("json", "stop"), ("b", "stop")]
    assert app.served["failed"] == 1 and app.served["chat"] == 2


def test_the_rate_limit_refuses_what_is_too_much(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(fault_injection, "time", SimpleNamespace(monotonic=lambda: now[0]))
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
        results = each(None, ["x" * 10, *["y" * 300_000] * 3], url)
        assert talk(None, lambda client: client.models.list(), url).data[0].id == "m"
    assert outcomes(results)[1:] == ["RateLimitError"] * 3


def test_latency_is_waited_for(monkeypatch):
    fixed = Faults(None, latency_s=0.5)
    exponential = Faults(None, latency_s=0.5, latency="exponential")
    assert {fixed.wait() for _ in range(9)} == {0.5}
    waits = [exponential.wait() for _ in range(2000)]
    assert len(set(waits)) == 2000 and 0.45 < sum(waits) / 2000 < 0.55 and max(waits) > 1.5

    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(fault_injection, "asyncio", SimpleNamespace(sleep=sleep))
    each(Faults(app_of(), latency_s=0.1), "abc")
    assert slept == [0.1, 0.1, 0.1]


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
    batch, output, errors = run_batch(app, lines)
    assert batch.status == "completed" and 5 < len(errors) < 35
    assert {done["response"]["status_code"] for done in errors.values()} == {500, 503}
    choices = [done["response"]["body"]["choices"][0] for done in output.values()]
    kinds = {(choice["message"]["content"], choice["finish_reason"]) for choice in choices}
    assert kinds == {("abcdef", "stop"), ("Here it is: abc", "stop"), ("abc", "length")}
    assert app.served == {"chat": 0, "refused": 0, "failed": 0, "files": 1, "batches": 1}
    schema = {**line("a")["body"], "response_format": SCHEMA}
    _, output, errors = run_batch(
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
def test_settings_out_of_range_are_errors(wrong):
    with pytest.raises(ValueError):
        Faults(None, **wrong)
