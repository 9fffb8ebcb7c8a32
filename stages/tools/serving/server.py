"""An offline endpoint as a server for any OpenAI client: `server_of(app)` around a stages.chat.offline.OfflineApp.

To the chat completions of the application it adds streaming, `GET /v1/models`, and the files and batches of batch_api.py.
It keeps no state but files and batches, in memory, and asks for no key.
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


def server_of(app: OfflineApp) -> Starlette:
    """The ASGI application that serves the models of `app`."""

    async def completions(request: Request) -> Response:
        body = json_object(await request.body())
        whole = app.complete(body, request.scope.get(SPOIL))
        if body.get("stream"):
            usage = bool((body.get("stream_options") or {}).get("include_usage"))
            return StreamingResponse(_events(whole, usage), media_type="text/event-stream")
        return json_response(whole)

    async def models(_: Request) -> Response:
        listed = [
            {"id": name, "object": "model", "created": 0, "owned_by": "libra"}
            for name in app.models
        ]
        return json_response({"object": "list", "data": listed})

    async def http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = "POST /v1/chat/completions, GET /v1/models, /v1/files and /v1/batches"
        return error_response(
            RequestError(f"{error.detail}: the server knows {known}", status=error.status_code)
        )

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
    """Serve on `host` and `port`. The port is open once the address is printed: a client may start at that line."""
    import socket

    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        mend = "stop what listens there or give another --port (0 picks a free one)"
        raise LibraError(
            f"can't listen on {host}, port {port} ({error.strerror}): {mend}"
        ) from None
    shown = f"[{host}]" if ":" in host else host
    named = ", ".join(f"`{name}`" for name in models)
    print(
        f"serving model {named} at http://{shown}:{listening.getsockname()[1]}/v1 (Ctrl-C stops)",
        flush=True,
    )
    # A request that is never answered (--hang-share) must not keep the server from stopping.
    settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    try:
        uvicorn.Server(settings).run(sockets=[listening])
    except KeyboardInterrupt:
        pass  # uvicorn has shut down; it passes the signal on
    finally:
        listening.close()


def _events(whole: dict[str, Any], usage: bool) -> Iterator[str]:
    """A completion as server-sent events: for each choice its role, its text in pieces, its end; then usage where asked for."""
    head = {key: whole[key] for key in ("id", "created", "model")} | {
        "object": "chat.completion.chunk"
    }

    def event(choices: list[dict[str, Any]], **more: Any) -> str:
        return f"data: {json.dumps({**head, 'choices': choices, **more})}\n\n"

    for choice in whole["choices"]:
        i, text = choice["index"], choice["message"]["content"]
        yield event(
            [{"index": i, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
        )
        for start in range(0, len(text), 24):
            yield event(
                [
                    {
                        "index": i,
                        "delta": {"content": text[start : start + 24]},
                        "finish_reason": None,
                    }
                ]
            )
        yield event([{"index": i, "delta": {}, "finish_reason": choice["finish_reason"]}])
    if usage:
        yield event([], usage=whole["usage"])
    yield "data: [DONE]\n\n"
