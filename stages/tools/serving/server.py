"""An offline endpoint as a server for any OpenAI client: `server_of(OfflineApp(models))`.

To the chat completions of the application it adds streaming, `GET /v1/models`, and the files and
batches of batch_api.py. It keeps files and batches in memory and nothing else, and needs no key.
"""

import json
from collections.abc import Collection, Iterator
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from stages.chat.offline import OfflineApp, RequestError, json_object
from stages.core.errors import LibraError
from stages.tools.serving.batch_api import Batches
from stages.tools.serving.responses import SPOIL, error_response, json_response

ROUTES = "POST /v1/chat/completions, GET /v1/models, /v1/files and /v1/batches"
EVENT_CHARACTERS = 24  # of a streamed text in one event


def server_of(app: OfflineApp) -> Starlette:
    """The ASGI application that serves the models of `app`."""

    async def completions(request: Request) -> Response:
        body = json_object(await request.body())
        completion = app.complete(body, request.scope.get(SPOIL))
        if not body.get("stream"):
            return json_response(completion)
        usage = bool((body.get("stream_options") or {}).get("include_usage"))
        return StreamingResponse(_events(completion, usage), media_type="text/event-stream")

    async def models(_: Request) -> Response:
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "libra"}
            for name in app.models
        ]
        return json_response({"object": "list", "data": data})

    async def http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{error.detail}: the server knows {ROUTES}"
        return error_response(RequestError(message, status=error.status_code))

    async def request_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return error_response(error)

    return Starlette(
        routes=[
            Route("/v1/chat/completions", completions, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            *Batches(app.complete).routes(),
        ],
        exception_handlers={HTTPException: http_error, RequestError: request_error},
    )


def listen(app, models: Collection[str], host: str, port: int) -> None:
    """Serve on `host` and `port` until Ctrl-C. Raises LibraError if the port is taken.

    The port is open once the address is printed, so a client may start at that line.
    """
    import socket

    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise LibraError(
            f"can't listen on {host}, port {port} ({error.strerror}): stop what listens there or "
            "give another --port (0 picks a free one)"
        ) from None

    address = f"[{host}]" if ":" in host else host
    names = ", ".join(f"`{name}`" for name in models)
    url = f"http://{address}:{listening.getsockname()[1]}/v1"
    print(f"serving model {names} at {url} (Ctrl-C stops)", flush=True)

    # A request that is never answered (--hang-share) must not keep the server from stopping.
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        pass  # uvicorn has shut down, and passes the signal on
    finally:
        listening.close()


def _events(completion: dict[str, Any], usage: bool) -> Iterator[str]:
    """A completion as server-sent events: per choice its role, its text in pieces, and its end.

    `usage` adds the token counts.
    """
    head = {key: completion[key] for key in ("id", "created", "model")}
    head["object"] = "chat.completion.chunk"

    def event(choices: list[dict[str, Any]], **more: Any) -> str:
        return f"data: {json.dumps({**head, 'choices': choices, **more})}\n\n"

    def delta(index: int, delta: dict[str, str], finish_reason: str | None = None) -> str:
        return event([{"index": index, "delta": delta, "finish_reason": finish_reason}])

    for choice in completion["choices"]:
        index, text = choice["index"], choice["message"]["content"]
        yield delta(index, {"role": "assistant", "content": ""})
        for start in range(0, len(text), EVENT_CHARACTERS):
            yield delta(index, {"content": text[start : start + EVENT_CHARACTERS]})
        yield delta(index, {}, choice["finish_reason"])
    if usage:
        yield event([], usage=completion["usage"])
    yield "data: [DONE]\n\n"
