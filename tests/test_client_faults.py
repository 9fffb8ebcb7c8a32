"""Faults of servers: retried, named with how to fix them, and never costing a reply."""

import socket
import ssl
import subprocess
import threading

import pytest

from helpers.asking import (
    SCHEMA,
    ask_all,
    endpoint,
    make_app,
    number,
    numbers,
    on_port,
    texts,
)
from stages.chat import wire
from stages.chat.client import Session
from stages.chat.offline import RequestError, last_user_text
from stages.chat.protocol import ChatRequest
from stages.chat.store import Store
from stages.core.errors import LibraError
from stages.tools.serving.fault_injection import Faults


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".cache" / "replies.sqlite"


@pytest.fixture
def brisk(monkeypatch):
    monkeypatch.setattr(wire, "LONGEST_PAUSE", 0.02)


def test_failing_cut_malformed_and_garbled_replies_are_requested_again(brisk, path):
    shares = {"fail_share": 0.1, "cut_share": 0.05, "malformed_share": 0.06, "garbage_share": 0.05}
    faulty = Faults(make_app("m", number), **shares, random_seed=3)
    with on_port(faulty) as url:
        replies = ask_all(endpoint(url), numbers(150), "faults")
        assert [reply.parsed for reply in replies] == [{"n": i} for i in range(150)]
        before = dict(faulty.served)
        assert ask_all(endpoint(url), numbers(150), "faults") == replies
        assert faulty.served == before and before["failed"] > 15
    with Store(path) as stored:
        good = stored.totals()[0][2] - stored.totals()[0][3]
        assert good == 150 and stored.totals()[0][3] > 3, (
            "malformed replies are kept with their fault"
        )


def test_a_reply_over_the_length_limit_is_never_kept_as_a_good_one(path):
    with on_port(Faults(make_app("m", last_user_text), length_share=1.0)) as url:
        asked = [ChatRequest([{"role": "user", "content": '{"n": 12345}'}], "number", SCHEMA)]
        (cut,) = ask_all(endpoint(url), asked, "length")
        assert cut.error == "cut off at max_tokens" and cut.parsed is None
        (plain,) = ask_all(endpoint(url), texts(1), "length")
        assert plain.error is None and plain.finish_reason == "length", (
            "a candidate's cut answer is measured as what it is"
        )
    with Store(path) as stored:
        assert stored.totals()[0][2:4] == (4, 4), "each has its fault"


def test_a_server_that_hangs_is_left_after_timeout_s(monkeypatch):
    monkeypatch.setattr(wire, "MAX_RETRIES", 1)
    hanging = Faults(make_app("m", last_user_text), hang_share=1.0)
    with (
        on_port(hanging) as url,
        pytest.raises(LibraError, match="took longer than 0.2 s, 2 times: raise timeout_s"),
    ):
        ask_all(endpoint(url, timeout_s=0.2), texts(2), "hang")


def test_half_a_reply_is_named(brisk):
    with (
        on_port(Faults(make_app("m", last_user_text), cut_share=1.0)) as url,
        pytest.raises(
            LibraError,
            match="broke the connection in the middle of a reply, 5 times: see the server's log",
        ),
    ):
        ask_all(endpoint(url), texts(2), "half")


def test_garbage_is_named(brisk):
    words = "didn't answer with JSON: is this the address of a chat API"
    with (
        on_port(Faults(make_app("m", last_user_text), garbage_share=1.0)) as url,
        pytest.raises(LibraError, match=words),
    ):
        ask_all(endpoint(url), texts(2), "garbage")


def test_an_unknown_host_is_named(brisk):
    with pytest.raises(
        LibraError,
        match="the name `no-such-host.invalid` isn't known to DNS: fix base_url or the network",
    ):
        ask_all(endpoint("http://no-such-host.invalid/v1"), texts(2), "dns")


def test_a_bad_certificate_is_named(brisk, tmp_path):
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "k.pem",
        "-out",
        "c.pem",
        "-days",
        "1",
    ]
    subprocess.run(
        [*command, "-subj", "/CN=localhost"], cwd=tmp_path, check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    raw, _ = listening.accept()
                except OSError:
                    return
                try:
                    context.wrap_socket(raw, server_side=True).close()
                except OSError:
                    raw.close()

        threading.Thread(target=serve, daemon=True).start()
        url = f"https://127.0.0.1:{listening.getsockname()[1]}/v1"
        with pytest.raises(
            LibraError, match=r"has no valid TLS certificate \(.*self.signed.*\): fix base_url"
        ):
            ask_all(endpoint(url), texts(1), "tls")
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_what_retries_cant_fix_stops_at_once(status):
    tried = []

    def answer(body):
        tried.append(1)
        raise RequestError("no", status=status)

    with on_port(make_app("m", answer)) as url, pytest.raises(LibraError, match=str(status)):
        ask_all(endpoint(url, concurrency=3), texts(50), "stop")
    assert len(tried) <= 3


def test_the_error_of_one_request_loses_none_of_the_others():
    def answer(body):
        if last_user_text(body) == "prompt 5":
            raise RequestError("the prompt is too long", status=400)
        return last_user_text(body)

    words = r"with 400: the prompt is too long.*\(\d\d of 50 requests are left"
    with (
        on_port(Faults(make_app("m", answer), latency_s=0.05)) as url,
        pytest.raises(LibraError, match=words),
    ):
        ask_all(endpoint(url, concurrency=8), texts(50), "one")


def test_a_server_without_schemas_is_asked_in_json_mode_then_in_plain_text():
    forms = []

    def answer(body):
        form = (body.get("response_format") or {}).get("type")
        forms.append(form)
        if form is not None and form != answer.takes:
            raise RequestError(
                f"response_format of type {form} is not supported", "response_format"
            )
        return f"Here you are:\n```json\n{number(body)}\n```" if form is None else number(body)

    with on_port(make_app("m", answer)) as url:
        answer.takes = "json_object"
        assert [
            reply.parsed for reply in ask_all(endpoint(url, concurrency=1), numbers(3), "json")
        ] == [{"n": i} for i in range(3)]
        assert forms == ["json_schema", "json_object", "json_object", "json_object"]
        forms.clear()
        answer.takes = None
        again = ask_all(endpoint(url, concurrency=1), numbers(5), "text")
        assert [reply.parsed for reply in again] == [{"n": i} for i in range(5)]
        assert forms == ["json_schema", "json_object", None, None], (
            "what was kept in JSON mode isn't asked for again"
        )


def test_a_server_that_wants_max_completion_tokens_gets_it():
    bodies = []

    def answer(body):
        bodies.append(body)
        if "max_tokens" in body:
            raise RequestError(
                "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
                "max_tokens",
            )
        return last_user_text(body)

    with on_port(make_app("m", answer)) as url:
        assert len(ask_all(endpoint(url, concurrency=1), texts(3), "limit")) == 3
    assert [("max_tokens" in body, body.get("max_completion_tokens")) for body in bodies] == [
        (True, None)
    ] + [(False, 100)] * 3


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"n": 7}\n```',
        'Sure! {"n": 7} Anything else?',
        '{"no": 1} or rather {"n": 7}',
        ' {"n": 7}\n\n',
    ],
)
def test_an_object_wrapped_in_words_is_found(text):
    (reply,) = ask_all(endpoint(), numbers(1), "wrapped", make_app("m", lambda body: text))
    assert reply.parsed == {"n": 7}


def test_a_content_filter_before_a_structured_reply_is_unusable_and_kept_as_such(path):
    def answer(body):
        raise RequestError("The response was filtered", status=400, code="content_filter")

    with on_port(make_app("m", answer)) as url:
        session = Session("filter", 0)
        (reply,) = session.ask(endpoint(url), numbers(1), "filter")
        assert (
            reply.error == "stopped by the server's content filter"
            and session.tallies["filter"].unusable == 3
        )
        (candidate,) = ask_all(endpoint(url), texts(1), "filter")
        assert candidate.error is None and candidate.finish_reason == "content_filter"
    with Store(path) as stored:
        assert stored.totals()[0][2:4] == (4, 4)
