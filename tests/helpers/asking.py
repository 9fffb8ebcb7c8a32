"""What tests of the client share: one call that asks, and a server on a port of its own."""

import socket
import threading
from contextlib import contextmanager

import uvicorn

from stages.chat.client import Session
from stages.chat.offline import OfflineApp
from stages.chat.protocol import ChatRequest, Endpoint, Reply
from stages.tools.serving.server import server_of


def endpoint(base_url: str = "offline", model: str = "m", **changes) -> Endpoint:
    values = {
        "temperature": 0.5,
        "max_tokens": 100,
        "concurrency": 8,
        "api_key_env": "TEST_LLM_KEY",
        "timeout_s": 10.0,
    }
    return Endpoint(base_url=base_url, model=model, **(values | changes))


def ask_all(
    to: Endpoint,
    requests: list[ChatRequest],
    what: str,
    app=None,
    random_seed: int = 0,
    budget=None,
) -> list[Reply]:
    return Session(what, random_seed, budget).ask(to, requests, what, app)


def make_app(model: str, answer, further: dict | None = None):
    """A whole server (streaming, files, batches) whose `model` says what `answer(body)` returns."""
    return server_of(OfflineApp({model: answer} | (further or {})))


@contextmanager
def on_port(app):
    """The address of an ASGI application that a thread serves."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join(10)
