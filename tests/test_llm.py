"""The chat client, in process: bodies, order, structured output, errors."""

import asyncio
import json
import socket

import pytest

from helpers.asking import ask_all, endpoint, make_app
from stages.chat import wire
from stages.chat.calls import ASK_AGAIN
from stages.chat.offline import RequestError, last_user_text
from stages.chat.protocol import ChatRequest, Reply
from stages.core.errors import LibraError

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}
KEY = "sk-very-secret-0123456789"


def ask(text, **more):
    return ChatRequest([{"role": "user", "content": text}], **more)


def structured(text, sample_index=0):
    return ask(text, schema_name="number", schema=SCHEMA, sample_index=sample_index)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(wire, "MAX_RETRIES", 0)
    monkeypatch.setattr(wire, "MAX_REFUSALS", 0)


def test_replies_keep_the_order_of_their_requests():
    replies = ask_all(
        endpoint(), [ask(str(i)) for i in range(50)], "order", make_app("m", last_user_text)
    )
    assert [reply.content for reply in replies] == [str(i) for i in range(50)]
    assert replies[0] == Reply("0", None, None, "stop", None)


def test_no_requests_no_replies():
    assert ask_all(endpoint(), [], "nothing", make_app("m", last_user_text)) == []


def test_at_most_so_many_in_flight():
    flying = most = 0

    async def app(scope, receive, send):
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0.002)
        await make_app("m", last_user_text)(scope, receive, send)
        flying -= 1

    ask_all(endpoint(concurrency=3), [ask(str(i)) for i in range(20)], "limit", app)
    assert most == 3


def test_the_body_holds_what_decides_the_reply():
    bodies = []
    app = make_app("m", lambda body: bodies.append(body) or '{"n": 1}')
    ask_all(endpoint(), [structured("a", sample_index=2)], "body", app, random_seed=7)
    form = {
        "type": "json_schema",
        "json_schema": {"name": "number", "schema": SCHEMA, "strict": True},
    }
    assert bodies == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "a"}],
            "temperature": 0.5,
            "max_tokens": 100,
            "seed": 700023,
            "response_format": form,
        }
    ]


def test_structured_output_is_parsed_and_checked():
    replies = ask_all(
        endpoint(),
        [structured("7"), structured("8")],
        "parse",
        make_app("m", lambda body: f'{{"n": {last_user_text(body)}}}'),
    )
    assert [reply.parsed for reply in replies] == [{"n": 7}, {"n": 8}]
    assert [reply.error for reply in replies] == [None, None]


def test_a_reply_that_does_not_fit_is_asked_again_with_another_sample():
    seeds = []

    def answer(body):
        seeds.append(body["seed"])
        return '{"n": 1}' if len(seeds) == 3 else ["no json", '{"n": "one"}'][len(seeds) - 1]

    (reply,) = ask_all(endpoint(), [structured("a")], "again", make_app("m", answer))
    assert reply.parsed == {"n": 1}
    assert len(set(seeds)) == 3


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("no json", "not JSON (Expecting value at character 0)"),
        ('{"n": "one"}', "not of the schema: $.n: 'one' is not of type 'integer'"),
        ("[1]", "not of the schema: $: [1] is not of type 'object'"),
        ("", "not JSON (Expecting value at character 0)"),
        ('{"n": ' + "1" * 500 + "}", "cut off at max_tokens"),
    ],
)
def test_a_reply_that_never_fits_comes_back_with_its_error(text, error):
    calls = []
    (reply,) = ask_all(
        endpoint(), [structured("a")], "never", make_app("m", lambda body: calls.append(1) or text)
    )
    assert reply.parsed is None
    assert reply.error.startswith(error)
    assert len(calls) == 1 + ASK_AGAIN


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"content": None, "refusal": "I can't."}, "the model refused to answer"),
        ({"content": [{"type": "text", "text": "{}"}]}, "its content is not a text but a list"),
        ({"content": '{"n": ' + "1" * 5000 + "}"}, "not JSON (a number of too many digits)"),
        ({"content": '{"a":' * 5000}, "not JSON (nested too deep)"),
        (
            {"content": '{"n": 1, "\\ud800": 1}'},
            "not of the schema: $: Additional properties are not allowed",
        ),
    ],
)
def test_what_a_schema_cant_be_read_from_is_named(message, error):
    (reply,) = ask_all(endpoint(), [structured("a")], "odd", fixed(message))
    assert reply.error.startswith(error)


def test_half_a_surrogate_pair_reaches_no_table():
    (plain,) = ask_all(
        endpoint(), [ask("a")], "half", fixed({"content": "a \ud83d b", "reasoning": "\udc00"})
    )
    assert (plain.content, plain.reasoning) == ("a \ufffd b", "\ufffd")
    text = ChatRequest([{"role": "user", "content": "a"}], "text", {"type": "object"})
    (reply,) = ask_all(endpoint(), [text], "half", fixed({"content": '{"text": "\\ud83d"}'}))
    assert reply.error == "a text with half a surrogate pair"


def fixed(message, finish="stop"):
    """An application that answers any request with one message."""

    async def app(scope, receive, send):
        body = json.dumps(
            {"choices": [{"index": 0, "message": message, "finish_reason": finish}]}
        ).encode()
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"application/json")],
            }
        )
        await send({"type": "http.response.body", "body": body})

    return app


@pytest.mark.parametrize(
    ("message", "finish", "reply"),
    [
        (
            {"content": "hi", "reasoning_content": "hm"},
            "stop",
            Reply("hi", None, "hm", "stop", None),
        ),
        ({"content": "hi", "reasoning": "hm"}, "stop", Reply("hi", None, "hm", "stop", None)),
        ({"content": "<think>\nhm\n</think>\n\nhi"}, "stop", Reply("hi", None, "hm", "stop", None)),
        (
            {"content": "<think>hm and"},
            "length",
            Reply("", None, "hm and", "length", "cut off at max_tokens before the answer began"),
        ),
        (
            {"content": None, "refusal": "I can't."},
            "stop",
            Reply("I can't.", None, None, "stop", None),
        ),
        ({"content": None}, "content_filter", Reply("", None, None, "content_filter", None)),
    ],
)
def test_reasoning_refusals_and_filters_are_read(message, finish, reply):
    assert ask_all(endpoint(), [ask("a")], "read", fixed(message, finish)) == [reply]


def test_what_is_no_chat_completion_is_no_reply():
    with pytest.raises(LibraError, match="its JSON isn't a chat completion"):
        ask_all(endpoint(), [ask("a")], "read", fixed("no message"))


def failing(status, code=None, message="what the server says"):
    def answer(body):
        raise RequestError(message, status=status, code=code)

    return make_app("m", answer)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "not authorised: the environment variable TEST_LLM_KEY holds a wrong key"),
        (403, "403: what the server says; the key in TEST_LLM_KEY has no access to this model"),
        (404, "404: what the server says; fix `model` or `base_url`"),
        (400, "refused the request with 400: what the server says"),
        (429, "lower concurrency"),
        (503, "run again when the server has recovered"),
    ],
)
def test_http_errors_name_endpoint_model_and_mend_but_never_the_key(
    monkeypatch, quick, status, words
):
    monkeypatch.setenv("TEST_LLM_KEY", KEY)
    with pytest.raises(LibraError) as caught:
        ask_all(endpoint(), [ask("a")] * 9, "error", failing(status))
    assert "endpoint offline (model `m`)" in str(caught.value)
    assert words in str(caught.value)
    with pytest.raises(LibraError) as caught:
        ask_all(
            endpoint(),
            [ask("a")],
            "error",
            failing(status, message=f"Incorrect API key provided: {KEY}"),
        )
    assert KEY not in str(caught.value)


def test_a_content_filter_is_a_reply_and_no_failure():
    assert (
        ask_all(endpoint(), [ask("a")], "filter", failing(400, "content_filter"))[0].finish_reason
        == "content_filter"
    )


def test_the_offline_model_has_one_name():
    with pytest.raises(LibraError, match="the model `gpt-0` does not exist; this server has `m`"):
        ask_all(endpoint(model="gpt-0"), [ask("a")], "name", make_app("m", last_user_text))


def test_a_bug_in_the_application_keeps_its_traceback():
    def answer(body):
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        ask_all(endpoint(), [ask("a")], "bug", make_app("m", answer))


def test_an_unreachable_server_is_named(quick):
    with socket.socket() as taken:  # bound but not listening: nobody answers here
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(
            LibraError,
            match=rf"endpoint {url} \(model `m`\) can't be reached .*: start the server or fix "
            "base_url",
        ):
            ask_all(endpoint(url), [ask("a")] * 5, "nobody", make_app("m", last_user_text))


def test_a_slow_server_is_not_called_unreachable(quick):
    with socket.socket() as slow:
        slow.bind(("127.0.0.1", 0))
        slow.listen()  # takes the connection and never answers
        with pytest.raises(LibraError, match="took longer than 0.2 s, 1 times: raise timeout_s"):
            ask_all(
                endpoint(f"http://127.0.0.1:{slow.getsockname()[1]}/v1", timeout_s=0.2),
                [ask("a")],
                "slow",
            )


def test_openai_needs_a_key_and_offline_an_application(monkeypatch):
    monkeypatch.delenv("TEST_LLM_KEY", raising=False)
    with pytest.raises(LibraError, match="needs a key: set the environment variable TEST_LLM_KEY"):
        ask_all(endpoint("https://api.openai.com/v1"), [ask("a")], "key")
    with pytest.raises(LibraError, match="give a server's address"):
        ask_all(endpoint(), [ask("a")], "no app")
