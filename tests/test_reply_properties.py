"""Properties of the reply reader: no answer raises, and JSON is read out of any wrapping."""

import json

from hypothesis import given
from hypothesis import strategies as st

from helpers.asking import SCHEMA
from stages.chat.protocol import ChatRequest, fault, is_completion, read, server_json
from stages.chat.records import canonical
from stages.chat.tokens import tokens

MESSAGES = [{"role": "user", "content": "A number?"}]
PLAIN, STRUCTURED = ChatRequest(MESSAGES), ChatRequest(MESSAGES, "number", SCHEMA)
TEXTS = st.text(st.characters(exclude_categories=()))  # lone surrogates included
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=8
)
FENCED = TEXTS.map(lambda text: f"```json\n{text}\n```")
CONTENT = JSON | FENCED | JSON.map(json.dumps) | TEXTS.map(lambda text: f"<think>{text}")
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "content": CONTENT,
        "refusal": CONTENT,
        "reasoning": CONTENT,
        "reasoning_content": CONTENT,
    },
)
COMPLETIONS = st.fixed_dictionaries(
    {
        "choices": st.tuples(
            st.fixed_dictionaries(
                {"message": MESSAGE},
                optional={
                    "finish_reason": JSON | st.sampled_from(["stop", "length", "content_filter"])
                },
            )
        ).map(list)
    },
    optional={"usage": JSON},
)


@given(JSON)
def test_any_json_is_a_completion_or_not(answer):
    assert is_completion(answer) in (True, False)


@given(COMPLETIONS)
def test_any_completion_is_read_and_writable(answer):
    assert is_completion(answer)
    for request in (PLAIN, STRUCTURED):
        reply = read(answer, request)
        for text in (reply.content, reply.reasoning, reply.finish_reason, reply.error):
            assert text is None or isinstance(text, str)
        (reply.content + (reply.reasoning or "") + (reply.finish_reason or "")).encode()
        assert fault(reply) is None or fault(reply)
        if request is STRUCTURED:
            assert (reply.parsed is None) == (reply.error is not None)
    prompt, completion = tokens({"messages": MESSAGES}, answer)
    assert prompt >= 0 and completion >= 0


@given(st.integers(), st.sampled_from(["{}", "```json\n{}\n```", "Here it is: {} Good luck!"]))
def test_json_in_a_fence_or_in_a_sentence_is_read_as_it_was(number, wrapping):
    content = wrapping.replace("{}", json.dumps({"n": number}))
    reply = read({"choices": [{"message": {"content": content}}]}, STRUCTURED)
    assert reply.parsed == {"n": number} and reply.error is None


@given(TEXTS)
def test_a_text_comes_back_but_for_lone_surrogates(text):
    reply = read({"choices": [{"message": {"content": text, "reasoning": "."}}]}, PLAIN)
    if "<think>" not in text:
        expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        assert reply.content == expected


@given(JSON)
def test_a_servers_json_is_read_as_it_was(value):
    text = json.dumps(value)
    assert canonical(server_json(text)) == canonical(json.loads(text))


@given(st.text())
def test_any_other_text_is_a_value_error(text):
    try:
        server_json(text)
    except ValueError:
        return
    json.loads(text)


@given(st.integers(min_value=100, max_value=5000))
def test_what_nests_too_deep_is_a_value_error(depth):
    try:
        server_json("[" * depth + "]" * depth)
    except ValueError as error:
        assert str(error) == "nested too deep"
    else:
        assert depth == 100
