"""The wire to one endpoint: an open HTTP client, retries and pace.

    async with Wire(endpoint) as wire:
        completion = await wire.complete(body)  # the server's JSON object
        batch = await wire.tried(lambda: wire.get("/batches/batch_1"))  # None if there is none

what happens                             what is done
broken connection, 408, 409, 5xx, half   retried after 0.5 s, 1 s, 2 s ..., MAX_RETRIES times
a reply, no JSON, no chat completion
429, 503                                 retried in turn: all requests slow down (pace.py)
400, 422 about response_format           from then on JSON mode, then plain text (wording.py)
400 about max_tokens                     from then on max_completion_tokens
any other 4xx, no credit                 LibraError: the stage stops
"""

import asyncio
import json
import logging
import os
import random
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from stages.chat.failures import connection_message, status_message
from stages.chat.pace import NAP, Pace
from stages.chat.protocol import (
    OFFLINE,
    Endpoint,
    filtered,
    is_completion,
    is_filter,
    server_json,
)
from stages.chat.wording import Wording
from stages.core.errors import LibraError

MAX_RETRIES = 4
MAX_REFUSALS = 12
LONGEST_PAUSE = 8.0  # seconds between two tries
# Characters. A shorter key (none, test) stands for no key, and a reply may contain it as a word.
REAL_KEY = 16
# Headers that OpenAI's own client takes from the environment.
ACCOUNT = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
T = TypeVar("T")


class Stopped(Exception):
    """A request that wasn't sent, or not again, because the stage is stopping."""


class Broken(Exception):
    """A failure that another try may get past; its text is for the user."""


class Refused(Exception):
    """An HTTP error status, with the error object of the body."""

    def __init__(self, status: int, error: dict[str, Any], headers):
        super().__init__(status)
        self.status, self.error, self.headers = status, error, headers


class Wire:
    """A connection to `endpoint`; an async context manager.

    `app` is the ASGI application behind `base_url: offline`. Raises LibraError without it, and
    without the key that api.openai.com needs.
    """

    def __init__(self, endpoint: Endpoint, app=None):
        import httpx2

        self.endpoint = endpoint
        self.pace = Pace()
        self.wording = Wording()
        self.retries = 0
        self._key = os.environ.get(endpoint.api_key_env, "")
        if len(self._key) >= REAL_KEY:
            # Libraries may log what they send and receive, whatever it holds.
            for handler in logging.getLogger().handlers:
                handler.addFilter(_Mask(self._key))
        self._http = _open(endpoint, self._key, app)
        self._errors = (httpx2.HTTPError, ssl.SSLError)
        offline = endpoint.base_url == OFFLINE
        self._base_url = "http://offline/v1" if offline else endpoint.base_url.rstrip("/")

    async def __aenter__(self) -> "Wire":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    @property
    def stopping(self) -> bool:
        """Whether nothing more is sent or waited for; what is in flight still comes in."""
        return self.pace.stopping

    def stop(self) -> None:
        self.pace.stopping = True

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The chat completion for `body`.

        Raises LibraError for what retries can't or didn't get past, and Stopped.
        """
        return await self.tried(lambda: self._complete(body))

    async def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        sent = self.wording.apply(body)
        try:
            answer = self._json(await self.send("POST", "/chat/completions", sent))
        except Refused as refusal:
            if is_filter(refusal.error):
                return filtered(self.endpoint.model)
            if self.wording.adapt(sent, refusal.status, refusal.error):
                return await self._complete(body)
            raise
        if is_completion(answer):
            return answer
        error = answer.get("error") if isinstance(answer, dict) else None
        if not isinstance(error, dict):
            error = {"message": error or "its JSON isn't a chat completion"}
        raise Broken(self.status_message(200, error))

    async def call(self, path: str, body: dict[str, Any] | None = None, **kwargs) -> dict[str, Any]:
        """The API's object (it has an `id`) that a POST to `path` returns; for use inside `tried`.

        `kwargs` are httpx's (data, files). Raises as `send`, and Broken for other JSON.
        """
        answer = self._json(await self.send("POST", path, body, **kwargs))
        if not isinstance(answer, dict) or not isinstance(answer.get("id"), str):
            raise self.no_json("an object without an id")
        return answer

    async def get(self, path: str, params: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """The API's object at `path`, None for a 404; for use inside `tried`. Raises as `call`."""
        try:
            answer = self._json(await self.send("GET", path, params=params))
        except Refused as refusal:
            if refusal.status == 404:
                return None
            raise
        if not isinstance(answer, dict):
            raise self.no_json("no object")
        return answer

    async def send(self, method: str, path: str, body: dict[str, Any] | None = None, **kwargs):
        """The httpx2.Response to one request. Raises Broken and Refused."""
        if body is not None:
            text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            kwargs |= {"content": text.encode(), "headers": {"Content-Type": "application/json"}}
        request = self._http.build_request(method, self._base_url + path, **kwargs)
        try:
            response = await self._http.send(request)
        except self._errors as error:
            raise Broken(connection_message(self.endpoint, error, MAX_RETRIES + 1)) from error
        if response.is_success:
            return response

        try:
            answer = response.json()
        except (ValueError, RecursionError):
            answer = response.text.strip()
        detail = answer.get("error", answer) if isinstance(answer, dict) else answer
        detail = detail if isinstance(detail, dict) else {"message": detail}
        raise Refused(response.status_code, detail, response.headers)

    def _json(self, response) -> Any:
        text = response.content.decode("utf-8", "replace")
        try:
            return server_json(self.masked(text, REAL_KEY))
        except ValueError as error:
            raise self.no_json(error) from None

    def no_json(self, detail: object) -> Broken:
        """What to raise for a body that isn't what the API promises."""
        return Broken(
            f"{self.endpoint} didn't answer with JSON: is this the address of a chat API (it often "
            f"ends in /v1)? ({self.masked(str(detail))[:100]})"
        )

    async def tried(self, once: Callable[[], Awaitable[T]]) -> T:
        """The result of `once`, retried as the module says. Raises as `complete`."""
        broken = refused = 0
        while True:
            started = await self.pace.turn()
            if self.stopping:
                raise Stopped
            try:
                result = await once()
            except Broken as error:
                message, broken = str(error), broken + 1
            except Refused as error:
                message = self.status_message(error.status, error.error)
                wait = _retry_after(error.headers)
                if error.status == 503 and wait is None:
                    self.pace.failed(started)
                    refused += 1
                elif error.status in (429, 503) and not _out_of_credit(error.error):
                    self.pace.refused(started, wait)
                    refused += 1
                elif error.status in (408, 409) or error.status >= 500:
                    broken += 1
                else:
                    raise LibraError(message) from None
            else:
                self.pace.served()
                return result
            if self.endpoint.base_url == OFFLINE or broken > MAX_RETRIES or refused > MAX_REFUSALS:
                raise LibraError(message)
            self.retries += 1
            longest = min(0.5 * 2 ** (broken + refused - 1), LONGEST_PAUSE)
            await self.pause(longest * random.uniform(0.75, 1.0))

    async def pause(self, seconds: float) -> None:
        """Sleep, but no longer than until the stage stops."""
        while seconds > 0 and not self.stopping:
            step = min(seconds, NAP)
            await asyncio.sleep(step)
            seconds -= step

    def masked(self, text: str, shortest: int = 4) -> str:
        """`text` without the key, should a server repeat it; keys under `shortest` stay."""
        return text.replace(self._key, "***") if len(self._key) >= shortest else text

    def status_message(self, status: int, error: dict[str, Any]) -> str:
        """What an HTTP error means for the user. The key is never in it."""
        text = " ".join(str(error.get("message") or error.get("detail") or "").split())
        return status_message(
            self.endpoint,
            status,
            self.masked(text)[:300],
            has_key=bool(self._key),
            out_of_credit=_out_of_credit(error),
            tries=MAX_REFUSALS + 1,
        )


@dataclass(frozen=True)
class _Mask:
    """A logging filter that takes the key out."""

    key: str

    def filter(self, record: logging.LogRecord) -> bool:
        # A record that can't be formatted is reported by logging itself.
        with suppress(TypeError, ValueError):
            record.msg, record.args = record.getMessage().replace(self.key, "***"), ()
        return True


def _open(endpoint: Endpoint, key: str, app):
    """The HTTP client: in process over ASGI, else over aiohttp (half the CPU of httpx's own)."""
    import httpx2
    import openai

    if endpoint.base_url == OFFLINE:
        if app is None:
            raise LibraError(
                f"model `{endpoint.model}`: `base_url: offline` has no application here; "
                "give a server's address"
            )
        return openai.DefaultAsyncHttpxClient(transport=httpx2.ASGITransport(app=app))
    if not key and urlsplit(endpoint.base_url).hostname == "api.openai.com":
        raise LibraError(
            f"{endpoint} needs a key: set the environment variable {endpoint.api_key_env}"
        )
    account = {name: os.environ.get(variable) for name, variable in ACCOUNT.items()}
    headers = {name: value for name, value in account.items() if value}
    headers |= {"Authorization": f"Bearer {key or 'none'}", "Accept": "application/json"}
    return openai.DefaultAioHttpClient(timeout=endpoint.timeout_s, headers=headers)


def _out_of_credit(error: dict[str, Any]) -> bool:
    return error.get("code") == "insufficient_quota"


def _retry_after(headers) -> float | None:
    """Seconds from now, of Retry-After (a number or a date) or OpenAI's retry-after-ms."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    try:
        until = parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
