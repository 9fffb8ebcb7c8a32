"""A chat endpoint inside this process: an ASGI application without port, key or network.

    app = OfflineApp({"my-model": answer})           # answer(body) -> the reply's text
    session.ask(endpoint, requests, "craft", app)    # chat/client.py, with base_url `offline`

It serves `POST /v1/chat/completions` alone, with errors in OpenAI's shape:

    {"error": {"message": "`model` is missing", "type": "invalid_request_error", "param": "model",
     "code": null}}

`python -m stages.tools serve` serves the same application on a port, with streaming and batches.
"""

import json
from collections.abc import Callable, Collection
from hashlib import blake2b
from typing import Any

# There is no tokenizer here: usage and max_tokens count four characters as one token.
CHARACTERS_PER_TOKEN = 4
FORMATS = ("text", "json_object", "json_schema")
NUMBERS = (  # key, type, least and largest value
    ("n", int, 1, 128),
    ("max_tokens", int, 1, 10**9),
    ("max_completion_tokens", int, 1, 10**9),
    ("seed", int, -(2**63), 2**63),
    ("temperature", int | float, 0, 2),
)

# A request body -> the reply's text (JSON if the request has a schema).
Answer = Callable[[dict[str, Any]], str]
Choices = list[tuple[str, str]]  # (text, finish_reason)
# (a request body, a function that answers it) -> the choices sent instead. Raises RequestError.
Spoil = Callable[[dict[str, Any], Callable[[], Choices]], Choices]


class RequestError(Exception):
    """A request that can't be answered, as an error in OpenAI's shape; `param` names the key."""

    def __init__(
        self, message: str, param: str | None = None, status: int = 400, code: str | None = None
    ):
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


class OfflineApp:
    """The application that serves `models`, {name: answer}. An `answer` may raise RequestError."""

    def __init__(self, models: dict[str, Answer]):
        self.models = models

    async def __call__(self, scope, receive, send) -> None:
        try:
            if (scope["method"], scope["path"]) != ("POST", "/v1/chat/completions"):
                raise RequestError(
                    "Not Found: the endpoint knows POST /v1/chat/completions", status=404
                )
            body, more = b"", True
            while more:
                message = await receive()
                body, more = body + message.get("body", b""), message.get("more_body", False)
            status, reply = 200, self.complete(json_object(body))
        except RequestError as error:
            status, reply = error.status, error_object(error)
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send(
            {"type": "http.response.body", "body": json.dumps(reply, ensure_ascii=False).encode()}
        )

    def complete(self, body: dict[str, Any], spoil: Spoil | None = None) -> dict[str, Any]:
        """The chat completion for a request body. Raises RequestError."""
        check_body(body, self.models)
        answer = self.models[body["model"]]

        def choices_of() -> Choices:
            n, seed = body.get("n") or 1, body.get("seed") or 0
            texts = [answer(body if i == 0 else {**body, "seed": seed + i}) for i in range(n)]
            limit = body.get("max_completion_tokens") or body.get("max_tokens")
            longest = limit * CHARACTERS_PER_TOKEN if limit else max(map(len, texts))
            return [(text[:longest], "length" if len(text) > longest else "stop") for text in texts]

        choices = spoil(body, choices_of) if spoil else choices_of()
        return {
            "id": "chatcmpl-" + blake2b(json.dumps(body).encode(), digest_size=12).hexdigest(),
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [
                {
                    "index": i,
                    "message": {"role": "assistant", "content": text},
                    "logprobs": None,
                    "finish_reason": finish,
                }
                for i, (text, finish) in enumerate(choices)
            ],
            "usage": usage(body, [text for text, _ in choices]),
        }


def last_user_text(body: dict[str, Any]) -> str:
    """The text of the last user message, "" without one; text parts are joined."""
    for message in reversed(body["messages"]):
        if message["role"] == "user":
            return content_text(message.get("content"))
    return ""


def schema_name(body: dict[str, Any]) -> str | None:
    """The name of the response schema the request asks for, or None for plain chat."""
    form = body.get("response_format") or {}
    if form.get("type") != "json_schema":
        return None
    return (form.get("json_schema") or {}).get("name")


def wants_json(body: dict[str, Any]) -> bool:
    """Whether the reply must be JSON, with a schema or without one (JSON mode)."""
    return (body.get("response_format") or {}).get("type") in ("json_object", "json_schema")


def json_object(raw: bytes) -> dict[str, Any]:
    """A request body as a JSON object. Raises RequestError."""
    try:
        body = json.loads(raw)
    except ValueError:
        raise RequestError("the request's body isn't valid JSON") from None
    if not isinstance(body, dict):
        raise RequestError("the request's body must be a JSON object")
    return body


def content_text(content: Any) -> str:
    """The text of a message's content: a text, or a list whose text parts are joined."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content or ""


def count_tokens(text: str) -> int:
    """Tokens of `text` as this endpoint counts them."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def usage(body: dict[str, Any], texts: list[str]) -> dict[str, int]:
    """The usage object of a request body and the texts that answer it."""
    contents = (message.get("content") for message in body["messages"])
    prompt = sum(count_tokens(content_text(content)) for content in contents)
    completion = sum(map(count_tokens, texts))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def error_object(error: RequestError) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {
        "error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}
    }


def check_body(body: dict[str, Any], models: Collection[str]) -> None:
    """Raises RequestError if a part of a request body that this endpoint relies on is invalid."""
    if not isinstance(body.get("model"), str):
        raise RequestError("`model` is missing", "model")
    if body["model"] not in models:
        served = ", ".join(f"`{name}`" for name in models)
        message = f"the model `{body['model'][:100]}` does not exist; this server has {served}"
        raise RequestError(message, "model", 404, "model_not_found")
    _check_messages(body.get("messages"))
    for key, kind, low, high in NUMBERS:
        value = body.get(key)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high
        ):
            raise RequestError(f"`{key}` must be a number from {low} to {high}", key)
    for key in ("response_format", "stream_options"):
        if not isinstance(body.get(key), dict | None):
            raise RequestError(f"`{key}` must be an object", key)
    _check_form(body.get("response_format") or {"type": "text"}, body["messages"])


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise RequestError("`messages` must be a list of at least one message", "messages")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError(
                f"message {i} must be an object with a `role` and a `content`", f"messages[{i}]"
            )
        if not isinstance(message.get("content"), str | list | None):
            raise RequestError(
                f"the content of message {i} must be text or a list of parts",
                f"messages[{i}].content",
            )


def _check_form(form: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    if form.get("type") not in FORMATS:
        raise RequestError(
            f"`response_format.type` must be one of {', '.join(FORMATS)}", "response_format.type"
        )
    if not isinstance(form.get("json_schema"), dict | None):
        raise RequestError(
            "`response_format.json_schema` must be an object", "response_format.json_schema"
        )
    # OpenAI's rule for JSON mode: without the word, models write blanks without end.
    if form["type"] == "json_object" and not any(
        "json" in content_text(message.get("content")).lower() for message in messages
    ):
        raise RequestError(
            "`messages` must hold the word `json` for a `response_format` of type `json_object`",
            "messages",
        )
