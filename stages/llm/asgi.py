"""An OpenAI-compatible chat server around one function: `make_app("my-model", answer)`.

`answer(body)` takes the request's JSON object and returns the reply's text (JSON text when a schema was asked for).
The application speaks `POST /v1/chat/completions` (whole or streamed, `n`, usage) and `GET /v1/models`; faults come in
OpenAI's shape: {"error": {"message": ..., "type": "invalid_request_error", "param": ..., "code": ...}}.
It runs in process (client.ask_all) or under any ASGI server. It keeps no state and asks for no key.
"""

import json
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

CHARACTERS_PER_TOKEN = 4  # no tokenizer here: usage and max_tokens count four characters as one token


class RequestError(Exception):
    """A request that can't be answered: becomes an error in OpenAI's shape. `param` names the key at fault."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


def make_app(model_name: str, answer: Callable[[dict[str, Any]], str]) -> Starlette:
    """The application that serves `model_name`; `answer` may raise RequestError."""

    async def completions(request: Request) -> Response:
        try:
            body = _checked(await request.body(), model_name)
            n, sampling = body.get("n") or 1, body.get("seed") or 0
            texts = [answer(body if i == 0 else {**body, "seed": sampling + i}) for i in range(n)]
        except RequestError as error:
            return _error(str(error), error.status, error.param, error.code)
        limit = (
            body.get("max_completion_tokens") or body.get("max_tokens") or len(max(texts, key=len)) + 1
        ) * CHARACTERS_PER_TOKEN
        choices = [(text[:limit], "length" if len(text) > limit else "stop") for text in texts]
        head = {
            "id": "chatcmpl-" + blake2b(json.dumps(body).encode(), digest_size=12).hexdigest(),
            "created": 0,
            "model": model_name,
        }
        usage = _usage(body, [text for text, _ in choices])
        if body.get("stream"):
            asked = (body.get("stream_options") or {}).get("include_usage")
            return StreamingResponse(_events(head, choices, usage if asked else None), media_type="text/event-stream")
        whole = [
            {"index": i, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": finish}
            for i, (text, finish) in enumerate(choices)
        ]
        return _json({**head, "object": "chat.completion", "choices": whole, "usage": usage})

    async def models(_: Request) -> Response:
        return _json({"object": "list", "data": [{"id": model_name, "object": "model", "created": 0, "owned_by": "libra"}]})

    async def http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _error(f"{error.detail}: the server knows POST /v1/chat/completions and GET /v1/models", error.status_code)

    return Starlette(
        routes=[Route("/v1/chat/completions", completions, methods=["POST"]), Route("/v1/models", models, methods=["GET"])],
        exception_handlers={HTTPException: http_error},
    )


def serve(app: Starlette, model_name: str, host: str, port: int) -> None:
    """Serve `app` until Ctrl-C."""
    import uvicorn

    print(f"serving model `{model_name}` at http://{host}:{port}/v1 (Ctrl-C stops)", flush=True)
    uvicorn.run(app, host=host, port=port, log_level="warning")


def last_user_text(body: dict[str, Any]) -> str:
    """The text of the last user message ("" when there is none); text parts are joined."""
    for message in reversed(body["messages"]):
        if message["role"] == "user":
            return _text(message.get("content"))
    return ""


def schema_name(body: dict[str, Any]) -> str | None:
    """The name of the response schema the request asks for, or None for plain chat."""
    asked = body.get("response_format") or {}
    return (asked.get("json_schema") or {}).get("name") if asked.get("type") == "json_schema" else None


def _checked(raw: bytes, model_name: str) -> dict[str, Any]:
    """The request's body with the parts this server relies on checked."""
    try:
        body = json.loads(raw)
    except ValueError:
        raise RequestError("the request's body isn't valid JSON") from None
    if not isinstance(body, dict):
        raise RequestError("the request's body must be a JSON object")
    if not isinstance(body.get("model"), str):
        raise RequestError("`model` is missing", "model")
    if body["model"] != model_name:
        message = f"the model `{body['model'][:100]}` does not exist; this server has `{model_name}`"
        raise RequestError(message, "model", 404, "model_not_found")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("`messages` must be a list of at least one message", "messages")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError(f"message {i} must be an object with a `role` and a `content`", f"messages[{i}]")
        if not isinstance(message.get("content"), str | list | None):
            raise RequestError(f"the content of message {i} must be text or a list of parts", f"messages[{i}].content")
    for key, kind, low, high in (
        ("n", int, 1, 128),
        ("max_tokens", int, 1, 10**9),
        ("max_completion_tokens", int, 1, 10**9),
        ("seed", int, -(2**63), 2**63),
        ("temperature", int | float, 0, 2),
    ):
        value = body.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high):
            raise RequestError(f"`{key}` must be a number from {low} to {high}", key)
    for key in ("response_format", "stream_options"):
        if not isinstance(body.get(key), dict | None):
            raise RequestError(f"`{key}` must be an object", key)
    if not isinstance((body.get("response_format") or {}).get("json_schema"), dict | None):
        raise RequestError("`response_format.json_schema` must be an object", "response_format.json_schema")
    return body


def _events(head: dict[str, Any], choices: list[tuple[str, str]], usage: dict[str, Any] | None) -> Iterator[str]:
    """Server-sent events: for each choice its role, its text in pieces, its end; then usage where asked for."""

    def event(choice: list[dict[str, Any]], **more: Any) -> str:
        return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': choice, **more})}\n\n"

    for i, (text, finish) in enumerate(choices):
        yield event([{"index": i, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        for start in range(0, len(text), 24):
            yield event([{"index": i, "delta": {"content": text[start : start + 24]}, "finish_reason": None}])
        yield event([{"index": i, "delta": {}, "finish_reason": finish}])
    if usage is not None:
        yield event([], usage=usage)
    yield "data: [DONE]\n\n"


def _usage(body: dict[str, Any], texts: list[str]) -> dict[str, int]:
    asked = sum(_tokens(_text(message.get("content"))) for message in body["messages"])
    told = sum(map(_tokens, texts))
    return {"prompt_tokens": asked, "completion_tokens": told, "total_tokens": asked + told}


def _tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content or ""


def _json(value: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(value, ensure_ascii=False), status, media_type="application/json")


def _error(message: str, status: int, param: str | None = None, code: str | None = None) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return _json({"error": {"message": message, "type": kind, "param": param, "code": code}}, status)
