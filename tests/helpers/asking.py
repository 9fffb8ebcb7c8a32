"""What tests of the client share: requests, one call that asks, servers, and runs in processes."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from helpers.dag import ROOT
from stages.chat.calls import Call
from stages.chat.client import Session
from stages.chat.offline import OfflineApp, last_user_text
from stages.chat.protocol import ChatRequest, Endpoint, Price, Reply
from stages.chat.tally import Tally
from stages.tools.serving.server import server_of

KEY = "sk-planted-0123456789"
PRICE = Price(prompt=1000.0, completion=2000.0)  # USD per million tokens
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}


def endpoint(base_url: str = "offline", model: str = "m", **changes) -> Endpoint:
    values = {
        "temperature": 0.5,
        "max_tokens": 100,
        "concurrency": 8,
        "api_key_env": "TEST_LLM_KEY",
        "timeout_s": 10.0,
    }
    return Endpoint(base_url=base_url, model=model, **(values | changes))


def texts(count: int) -> list[ChatRequest]:
    """Requests for plain text; a server that answers `last_user_text` repeats the prompt."""
    return [ChatRequest([{"role": "user", "content": f"prompt {i}"}]) for i in range(count)]


def numbers(count: int) -> list[ChatRequest]:
    """Requests for JSON of SCHEMA, which a server that answers `number` gets right."""
    system = {"role": "system", "content": "Repeat the number as JSON."}
    return [
        ChatRequest([system, {"role": "user", "content": str(i)}], "number", SCHEMA)
        for i in range(count)
    ]


def number(body) -> str:
    return json.dumps({"n": int(last_user_text(body))})


def ask_all(
    to: Endpoint,
    requests: list[ChatRequest],
    kind: str,
    app=None,
    random_seed: int = 0,
    budget=None,
) -> list[Reply]:
    return Session(kind, random_seed, budget).ask(to, requests, kind, app)


def reply_keys(to: Endpoint, requests: list[ChatRequest], random_seed: int = 0) -> list[str]:
    """The reply store's keys of `requests`."""
    call = Call("run", "run", to, random_seed, Tally.of(to))
    return [call.key(request) for request in requests]


def until(run: subprocess.Popen, condition) -> None:
    """Wait for `condition()` while the process `run` goes on."""
    while not condition():
        assert run.poll() is None
        time.sleep(0.01)


def under_way(run: subprocess.Popen, served) -> None:
    """Wait until the server `served` (Faults) works on a batch of `run`, and a little more."""
    until(run, lambda: served.served["batches"])
    time.sleep(0.2)


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


RUN = """
import logging
import os
import sys
from stages.chat import client
from stages.chat.budget import BudgetParams
from stages.chat.protocol import ChatRequest, Endpoint
from stages.core import cli

def main():
    url, count, mode, stage, cap = sys.argv[1:]
    random_seed = ["run", "craft", "rephrase"].index(stage)
    to = Endpoint(
        base_url=url, model="m", temperature=0.5, max_tokens=100, concurrency=8,
        api_key_env="TEST_LLM_KEY", timeout_s=60.0, mode=mode,
    )
    prompts = [f"prompt {i}" for i in range(int(count))]
    requests = [ChatRequest([{"role": "user", "content": prompt}]) for prompt in prompts]
    with client.Session(stage, random_seed, BudgetParams(max_requests=int(cap))) as session:
        replies = session.ask(to, requests, stage)
    assert [reply.content for reply in replies] == prompts

logging.basicConfig(level=os.environ.get("TEST_LOG", "WARNING"))
client.log_run = lambda stage, tallies: None
cli.guarded("run", main)
"""


def start(
    url: str,
    count: int,
    folder: Path,
    mode: str = "online",
    stage: str = "run",
    cap: str = "9999",
    **kwargs,
) -> subprocess.Popen:
    """A process that asks for `texts(count)` in `folder`; `kwargs` are Popen's."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "DVC_ROOT": str(folder),
        "TEST_LLM_KEY": KEY,
    }
    command = [sys.executable, "-c", RUN, url, str(count), mode, stage, cap]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, **kwargs
    )
