"""An OpenAI-compatible chat server around one function: `make_app("my-model", answer)`, or around one for each of several models.

`answer(body)` takes the request's JSON object and returns the reply's text (JSON text when a schema was asked for).
The application speaks `POST /v1/chat/completions` (whole or streamed, `n`, usage), `GET /v1/models`, and the files and batches of
stages/llm/asgi_batches.py; errors come in OpenAI's shape:

    {"error": {"message": "`model` is missing", "type": "invalid_request_error", "param": "model", "code": null}}

It runs in process (client.ask_all) or on a port: `python -m stages.llm.offline` and `python -m stages.judging.offline` are
`serve`. It keeps no state but files and batches, in memory, and asks for no key.
"""

import argparse
import json
from collections.abc import Callable, Collection, Iterator
from hashlib import blake2b
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

CHARACTERS_PER_TOKEN = 4  # no tokenizer here: usage and max_tokens count four characters as one token
SPOIL = "libra.spoil"  # the key of an ASGI scope under which stages/llm/faults.py leaves a Spoil for the reply
FORMATS = ("text", "json_object", "json_schema")

Answer = Callable[[dict[str, Any]], str]
Choices = list[tuple[str, str]]  # (text, finish_reason)
# (the request's body, a function that answers it) to the choices sent instead; may raise RequestError, before or after answering.
Spoil = Callable[[dict[str, Any], Callable[[], Choices]], Choices]


class RequestError(Exception):
    """A request that can't be answered: becomes an error in OpenAI's shape. `param` names the key at fault."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


def make_app(model_name: str, answer: Answer, further: dict[str, Answer] | None = None) -> Starlette:
    """The application that serves `model_name`, and the models of `further`; an `answer` may raise RequestError."""
    from stages.llm.asgi_batches import Batches  # builds on this module

    served = {model_name: answer} | (further or {})

    def complete(asked: dict[str, Any], spoil: Spoil | None = None) -> dict[str, Any]:
        """The chat completion for a request's body. Raises RequestError."""
        body = _checked(asked, served)
        answer = served[body["model"]]

        def say() -> Choices:
            n, sampling = body.get("n") or 1, body.get("seed") or 0
            texts = [answer(body if i == 0 else {**body, "seed": sampling + i}) for i in range(n)]
            limit = body.get("max_completion_tokens") or body.get("max_tokens")
            most = limit * CHARACTERS_PER_TOKEN if limit else max(map(len, texts))
            return [(text[:most], "length" if len(text) > most else "stop") for text in texts]

        choices = spoil(body, say) if spoil else say()
        return {
            "id": "chatcmpl-" + blake2b(json.dumps(body).encode(), digest_size=12).hexdigest(),
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [
                {"index": i, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": finish}
                for i, (text, finish) in enumerate(choices)
            ],
            "usage": _usage(body, [text for text, _ in choices]),
        }

    async def completions(request: Request) -> Response:
        body = json_object(await request.body())
        whole = complete(body, request.scope.get(SPOIL))
        if body.get("stream"):
            usage = bool((body.get("stream_options") or {}).get("include_usage"))
            return StreamingResponse(_events(whole, usage), media_type="text/event-stream")
        return json_response(whole)

    async def models(_: Request) -> Response:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "libra"} for name in served]
        return json_response({"object": "list", "data": listed})

    async def http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = "POST /v1/chat/completions, GET /v1/models, /v1/files and /v1/batches"
        return error_response(RequestError(f"{error.detail}: the server knows {known}", status=error.status_code))

    async def request_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return error_response(error)

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", completions, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            *Batches(complete).routes(),
        ],
        exception_handlers={HTTPException: http_error, RequestError: request_error},
    )
    app.state.model_name, app.state.models = model_name, tuple(served)
    return app


def serve(app: Starlette, module: str, doc: str, port: int) -> None:
    """The command line `python -m MODULE`: serve `app` until Ctrl-C, with the faults that are asked for."""
    from stages.common import cli
    from stages.llm.faults import Faults, add_options

    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s, this machine only)")
    parser.add_argument("--port", type=int, default=port, help="port to listen on, 0 picks a free one (default %(default)s)")
    add_options(parser)
    options = vars(parser.parse_args())
    host, port = options.pop("host"), options.pop("port")
    if not 0 <= port < 65536:
        parser.error("argument --port: a port is a number from 0 to 65535")
    try:
        faulty = Faults(app, **options)
    except ValueError as error:
        parser.error(str(error))
    cli.guarded(module, lambda: _listen(faulty, app.state.models, host, port))


def _listen(app, served: Collection[str], host: str, port: int) -> None:
    """Serve on `host` and `port`. The port is open once the address is printed: a client may start at that line."""
    import socket

    import uvicorn

    from stages.common.errors import LibraError

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        mend = "stop what listens there or give another --port (0 picks a free one)"
        raise LibraError(f"can't listen on {host}, port {port} ({error.strerror}): {mend}") from None
    shown = f"[{host}]" if ":" in host else host
    print(f"serving model {_named(served)} at http://{shown}:{listening.getsockname()[1]}/v1 (Ctrl-C stops)", flush=True)
    # A request that is never answered (--hang-share) must not keep the server from stopping.
    settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    try:
        uvicorn.Server(settings).run(sockets=[listening])
    except KeyboardInterrupt:
        pass  # uvicorn has shut down; it passes the signal on
    finally:
        listening.close()


def _named(models: Collection[str]) -> str:
    return ", ".join(f"`{name}`" for name in models)


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


def wants_json(body: dict[str, Any]) -> bool:
    """Must the reply be JSON, by a schema or without one (JSON mode)?"""
    return (body.get("response_format") or {}).get("type") in ("json_object", "json_schema")


def json_object(raw: bytes) -> dict[str, Any]:
    """The JSON object that a request's body is."""
    try:
        body = json.loads(raw)
    except ValueError:
        raise RequestError("the request's body isn't valid JSON") from None
    if not isinstance(body, dict):
        raise RequestError("the request's body must be a JSON object")
    return body


def _checked(body: dict[str, Any], served: Collection[str]) -> dict[str, Any]:
    """The request's body with the parts this server relies on checked."""
    if not isinstance(body.get("model"), str):
        raise RequestError("`model` is missing", "model")
    if body["model"] not in served:
        message = f"the model `{body['model'][:100]}` does not exist; this server has {_named(served)}"
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
    form = body.get("response_format") or {"type": "text"}
    if form.get("type") not in FORMATS:
        raise RequestError(f"`response_format.type` must be one of {', '.join(FORMATS)}", "response_format.type")
    if not isinstance(form.get("json_schema"), dict | None):
        raise RequestError("`response_format.json_schema` must be an object", "response_format.json_schema")
    if form["type"] == "json_object" and not any("json" in _text(message.get("content")).lower() for message in messages):
        # OpenAI's rule for JSON mode, which a client must meet: without the word, models write blanks without end.
        raise RequestError("`messages` must hold the word `json` for a `response_format` of type `json_object`", "messages")
    return body


def _events(whole: dict[str, Any], usage: bool) -> Iterator[str]:
    """A completion as server-sent events: for each choice its role, its text in pieces, its end; then usage where asked for."""
    head = {key: whole[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}

    def event(choices: list[dict[str, Any]], **more: Any) -> str:
        return f"data: {json.dumps({**head, 'choices': choices, **more})}\n\n"

    for choice in whole["choices"]:
        i, text = choice["index"], choice["message"]["content"]
        yield event([{"index": i, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        for start in range(0, len(text), 24):
            yield event([{"index": i, "delta": {"content": text[start : start + 24]}, "finish_reason": None}])
        yield event([{"index": i, "delta": {}, "finish_reason": choice["finish_reason"]}])
    if usage:
        yield event([], usage=whole["usage"])
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


def json_response(value: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(value, ensure_ascii=False), status, headers, media_type="application/json")


def error_response(error: RequestError, headers: dict[str, str] | None = None) -> Response:
    return json_response(error_object(error), error.status, headers)


def error_object(error: RequestError) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}
