"""The API key is in nothing that is written, logged or printed."""

import subprocess
from pathlib import Path

import pytest

from helpers.asking import (
    KEY,
    ask_all,
    endpoint,
    make_app,
    on_port,
    start,
    texts,
)
from stages.chat import wire
from stages.chat.client import Session
from stages.chat.offline import RequestError, last_user_text
from stages.chat.store import Store
from stages.core.errors import LibraError
from stages.tools import store as store_tool


@pytest.fixture
def brisk(monkeypatch):
    monkeypatch.setattr(wire, "LONGEST_PAUSE", 0.02)


def test_the_key_is_in_nothing_that_is_written(tmp_path, monkeypatch, capfd, brisk):
    """A server that repeats the key it received, in replies and in errors."""
    monkeypatch.setenv("TEST_LLM_KEY", KEY)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_LOG", "debug")
    authorizations = []

    def answer(body):
        if last_user_text(body) == "prompt 9":
            raise RequestError(f"Incorrect API key provided: {KEY}", status=401)
        return f"your key is {KEY}"

    inner = make_app("m", answer)

    async def app(scope, receive, send):
        authorizations.append(dict(scope.get("headers") or {}).get(b"authorization"))
        await inner(scope, receive, send)

    with on_port(app) as url:
        for mode in ("online", "batch"):
            with Session("keys", 0) as session:
                session.ask(endpoint(url, mode=mode), texts(5 if mode == "online" else 8), "keys")
        with pytest.raises(LibraError) as caught:
            ask_all(endpoint(url), texts(12), "keys")
    assert f"Bearer {KEY}".encode() in authorizations, "it was sent"
    store_tool.run("export", Path("data/replies/all.parquet"))
    with Store(tmp_path / ".cache/replies.sqlite") as stored:
        assert "***" in stored.rows()[0][6]
    import polars as pl

    output = capfd.readouterr()
    written = [
        str(caught.value),
        output.out,
        output.err,
        str(pl.read_parquet("data/replies/all.parquet").to_dicts()),
    ]
    written += [
        file.read_bytes().decode("latin-1") for file in tmp_path.rglob("*") if file.is_file()
    ]
    assert len(written) > 6 and not any(KEY in text for text in written)


@pytest.mark.parametrize("mode", ["online", "batch"])
@pytest.mark.parametrize("repeats", ["a header", "a reply", "an error"])
def test_the_key_is_in_no_log_of_the_clients_own(tmp_path, monkeypatch, mode, repeats):
    """Libraries log what they send and receive; the server repeats the key."""
    monkeypatch.setenv("TEST_LOG", "DEBUG")
    authorizations = []

    def answer(body):
        if repeats == "an error" and last_user_text(body) == "prompt 3":
            raise RequestError(f"Incorrect API key provided: {KEY}", status=401)
        return f"your key is {KEY}" if repeats == "a reply" else last_user_text(body)

    inner = make_app("m", answer)

    async def app(scope, receive, send):
        async def echo(message):
            if "headers" in message and repeats == "a header":
                message = {
                    **message,
                    "headers": [
                        *message["headers"],
                        (b"x-your-key", KEY.encode()),
                        (b"x-request-id", KEY.encode()),
                    ],
                }
            await send(message)

        authorizations.append(dict(scope.get("headers") or {}).get(b"authorization"))
        await inner(scope, receive, echo)

    with on_port(app) as url:
        run = start(url, 5, tmp_path, mode, stdout=subprocess.PIPE)
        output = "".join(run.communicate(timeout=60))
    assert f"Bearer {KEY}".encode() in authorizations and "DEBUG" in output, (
        "it was sent, and the log is on"
    )
    assert run.returncode == (repeats != "a header"), output
    written = [
        file.read_bytes().decode("latin-1") for file in tmp_path.rglob("*") if file.is_file()
    ]
    assert len(written) > 1 and not [text for text in (output, *written) if KEY in text]
