"""The wire to one endpoint: an open client, retries, pace, and what an error means for the user.

async with Wire(endpoint) as wire:
    answer = await wire.complete(body)   # the server's JSON object, a chat completion

what happens                              what it means
broken connection, 408, 409, 5xx, half    tried again after 0.5 s, 1 s, 2 s ..., MAX_RETRIES times
a reply, no JSON, no chat completion
429, 503                                  tried again when its turn comes: all requests slow down (pace.py)
400, 422 about response_format            asked in JSON mode from now on, then in plain text
400 about max_tokens                      asked with max_completion_tokens from now on
any other 4xx, no credit                  LibraError: the stage stops
"""

import asyncio
import json
import logging
import os
import random
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from stages.chat.pace import NAP, Pace
from stages.chat.protocol import OFFLINE, Endpoint, is_completion
from stages.core.errors import LibraError

MAX_RETRIES = 4
MAX_REFUSALS = 12
LONGEST_PAUSE = 8.0  # seconds between two tries
REAL_KEY = 16  # characters; a shorter one (none, test) stands for no key, and a reply may hold it as a word
DEEPEST = (
    100  # levels of a server's JSON: Python's own limit depends on where it is read or written
)
COMPLETIONS = "/chat/completions"
T = TypeVar("T")
FORMS = (
    "json_schema",
    "json_object",
    "text",
)  # of structured output, from what is asked first to what every server takes


class Stopped(Exception):
    """A request that wasn't sent, or not again, because the stage is stopping."""


class Wire:
    """A connection to `endpoint`; an async context manager. `app` is the ASGI application behind `base_url: offline`."""

    def __init__(self, endpoint: Endpoint, app=None):
        self.endpoint = endpoint
        self.pace = Pace()
        self.retries = 0
        self._form = 0
        self._limit_key = "max_tokens"
        self._key = os.environ.get(endpoint.api_key_env, "")
        import httpx2
        import openai

        self._errors, self._http = openai, httpx2
        self._first: dict[str, Any] | None = (
            None  # of the first request: what later ones share with it
        )
        self._begun, self._written = False, asyncio.Event()
        if len(self._key) >= REAL_KEY:
            for handler in (
                logging.getLogger().handlers
            ):  # OPENAI_LOG=debug logs what a server sends, whatever it holds
                handler.addFilter(_Mask(self._key))
        self.client, self._sender = _open(endpoint, self._key, app)
        self._sender.event_hooks = {"request": [self._note]}

    async def __aenter__(self) -> "Wire":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    @property
    def stopping(self) -> bool:
        """Whether nothing more is to be sent or waited for; what is in flight still comes in."""
        return self.pace.stopping

    def stop(self) -> None:
        self.pace.stopping = True

    def worded(self, body: dict[str, Any]) -> dict[str, Any]:
        """`body` as this server takes it: what it refused before is asked for in another way."""
        body = dict(body)
        if self._limit_key != "max_tokens":
            body[self._limit_key] = body.pop("max_tokens")
        if "response_format" in body and self._form:
            if FORMS[self._form] == "text":
                del body["response_format"]
            else:
                body["response_format"] = {"type": FORMS[self._form]}
        return body

    def rewords(self, sent: dict[str, Any], status: int, fault: dict[str, Any]) -> bool:
        """Whether another wording may mend the error `fault` of the body `sent`; `worded` uses it from now on."""
        said = f"{fault.get('param')} {fault.get('message')}".lower()
        if status not in (400, 422):
            return False
        if (
            self._limit_key in sent
            and "max_completion_tokens" in said
            and self._limit_key == "max_tokens"
        ):
            self._limit_key = "max_completion_tokens"
            return True
        if (
            self._limit_key != "max_tokens"
            and "max_tokens" in sent
            and "max_completion_tokens" in said
        ):
            return True  # sent before another request found out
        form = (sent.get("response_format") or {}).get("type")
        if form and any(
            word in said
            for word in (
                "response_format",
                "json_schema",
                "json schema",
                "json_object",
                "structured",
            )
        ):
            self._form = max(self._form, FORMS.index(form) + 1)
            return True
        return False

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The chat completion for `body`. Raises LibraError for what another try can't mend, or retries didn't; Stopped."""

        async def once() -> dict[str, Any]:
            sent = self.worded(body)
            try:
                raw = await self._post(sent)
            except self._errors.APIStatusError as error:
                fault = _fault(error)
                if is_filter(fault):
                    return filtered(self.endpoint.model)
                if self.rewords(sent, error.status_code, fault):
                    return await once()
                raise
            try:
                answer = server_json(self.masked(raw.content.decode("utf-8", "replace"), REAL_KEY))
            except ValueError as error:
                raise self.no_json(error) from None
            if not is_completion(answer):
                said = answer.get("error") if isinstance(answer, dict) else None
                fault = (
                    said
                    if isinstance(said, dict)
                    else {"message": said or "its JSON is no chat completion"}
                )
                raise _Broken(self.status_words(200, fault))
            return answer

        return await self.tried(once)

    async def _post(self, body: dict[str, Any]):
        """The response to a chat completion's `body`. Raises openai's errors.

        The client writes the first request; later ones have its address and headers, and go the same way: for the client to write each of them
        takes as much CPU as all the rest.
        """
        if not self._begun:
            self._begun = True
            try:
                # The documented way around the client's typed params, which change nothing here.
                return await self.client.post(COMPLETIONS, cast_to=self._http.Response, body=body)
            finally:
                self._written.set()
        await self._written.wait()
        if self._first is None:
            return await self.client.post(COMPLETIONS, cast_to=self._http.Response, body=body)
        content = json.dumps(
            body, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        ).encode()
        request = self._http.Request(**self._first, content=content)
        try:
            response = await self._sender.send(request)
        except self._http.TimeoutException as error:
            raise self._errors.APITimeoutError(request=request) from error
        except (self._http.HTTPError, ssl.SSLError) as error:
            raise self._errors.APIConnectionError(request=request) from error
        if response.is_success:
            return response
        try:
            said = response.json()
        except (ValueError, RecursionError):
            said = response.text.strip()
        fault = said.get("error", said) if isinstance(said, dict) else said
        raise self._errors.APIStatusError(
            f"Error code: {response.status_code}", response=response, body=fault
        )

    async def _note(self, request) -> None:
        """Keep what requests for a chat completion share, as soon as the client has written the first."""
        if self._first is None and request.url.path.endswith(COMPLETIONS):
            headers = [
                (name, value)
                for name, value in request.headers.raw
                if name.lower() != b"content-length"
            ]
            self._first = {
                "method": "POST",
                "url": request.url,
                "headers": headers,
                "extensions": request.extensions,
            }
            self._written.set()

    async def typed(self, call: Awaitable[T]) -> T:
        """The API's object (it has an id) that a `call` of the client returns; to `tried`, anything else is a broken answer."""
        try:
            answer = await call
            if not isinstance(answer.id, str):
                raise TypeError("an object without an id")
        except (
            ValueError,
            RecursionError,
            AttributeError,
            TypeError,
        ) as error:  # what the client makes of other bodies
            raise self.no_json(error) from None
        return answer

    def no_json(self, why: object) -> "_Broken":
        """What to raise inside of `tried` for a body that isn't what the API says."""
        hint = "is this the address of a chat API (it often ends in /v1)?"
        return _Broken(
            f"{self.endpoint} didn't answer with JSON: {hint} ({self.masked(str(why))[:100]})"
        )

    async def tried(self, once: Callable[[], Awaitable[T]], missing: T | None = None) -> T:
        """What `once` returns, tried again as the module says; `missing`, where given, stands for a 404. Raises as `complete`."""
        broken = refused = 0
        while True:
            started = await self.pace.turn()
            if self.stopping:
                raise Stopped
            try:
                answer = await once()
            except _Broken as error:
                words, broken = str(error), broken + 1
            except self._errors.APIConnectionError as error:  # time-outs are a kind of it
                if self.endpoint.base_url == OFFLINE and error.__cause__ is not None:
                    raise error.__cause__ from None  # a bug in the application, not a connection: its traceback is wanted
                words, broken = connection_words(self.endpoint, error), broken + 1
            except self._errors.APIStatusError as error:
                status, fault = error.status_code, _fault(error)
                words = self.status_words(status, fault)
                if status == 404 and missing is not None:
                    return missing
                wait = _retry_after(error.response.headers)
                if status == 503 and wait is None:
                    self.pace.failed(started)
                    refused += 1
                elif status in (429, 503) and fault.get("code") != "insufficient_quota":
                    self.pace.refused(started, wait)
                    refused += 1
                elif status in (408, 409) or status >= 500:
                    broken += 1
                else:
                    raise LibraError(words) from None
            else:
                self.pace.served()
                return answer
            if self.endpoint.base_url == OFFLINE or broken > MAX_RETRIES or refused > MAX_REFUSALS:
                raise LibraError(words)
            self.retries += 1
            await self.pause(
                min(0.5 * 2 ** (broken + refused - 1), LONGEST_PAUSE) * random.uniform(0.75, 1.0)
            )

    async def pause(self, seconds: float) -> None:
        """Sleep, but no longer than until the stage stops."""
        while seconds > 0 and not self.stopping:
            step = min(seconds, NAP)
            await asyncio.sleep(step)
            seconds -= step

    def masked(self, text: str, shortest: int = 4) -> str:
        """`text` without the key, should a server repeat it; a key of fewer than `shortest` characters stays."""
        return text.replace(self._key, "***") if len(self._key) >= shortest else text

    def status_words(self, status: int, fault: dict[str, Any]) -> str:
        """What an HTTP error means for the user. The key is never in it."""
        variable, called = self.endpoint.api_key_env, self.endpoint.called
        said = self.masked(
            " ".join(str(fault.get("message") or fault.get("detail") or "").split())
        )[:300]
        said = f": {said}" if said else ""
        if status == 401:
            state = "holds a wrong key" if self._key else "is not set"
            return f"{self.endpoint} answered 401, not authorised: the environment variable {variable} {state}"
        if status == 403:
            return (
                f"{self.endpoint} answered 403{said}; the key in {variable} may not use this model"
            )
        if status == 404:
            mend = f"mend `{called('model')}` or `{called('base_url')}` in {self.endpoint.given_in}"
            return f"{self.endpoint} answered 404{said}; {mend}"
        if status in (400, 422):
            mend = f"mend `{called('model')}`, a sampling setting or `{called('max_tokens')}`"
            return f"{self.endpoint} refused the request with {status}{said}; {mend}"
        if status == 429:
            if fault.get("code") == "insufficient_quota":
                return f"{self.endpoint} answered 429{said}; the account of the key in {variable} is out of credit"
            mend = f"lower {called('concurrency')} or raise the account's limit"
            return f"{self.endpoint} answered 429 {MAX_REFUSALS + 1} times{said}; {mend}"
        return f"{self.endpoint} answered {status}{said}; run again when the server is well"


@dataclass(frozen=True)
class _Mask:
    """A filter of logs that takes the key out."""

    key: str

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            record.msg, record.args = record.getMessage().replace(self.key, "***"), ()
        except (TypeError, ValueError):
            pass  # a record that can't be formatted: logging says so itself
        return True


class _Broken(Exception):
    """An answer that is none; its text is for the user."""


def _fault(error) -> dict[str, Any]:
    """The error object of an openai.APIStatusError."""
    return error.body if isinstance(error.body, dict) else {"message": error.body}


def server_json(text: str) -> Any:
    """A server's JSON. Raises ValueError: it is none, a number has too many digits, or it nests deeper than DEEPEST."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    level = [value]
    for _ in range(DEEPEST):
        level = [
            part
            for one in level
            for part in (
                one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
            )
        ]
        if not level:
            return value
    raise ValueError("nested too deep")


def is_filter(fault: dict[str, Any]) -> bool:
    """Whether an error object says that a content filter stopped the request."""
    code = str(fault.get("code"))
    return "content_filter" in code or "content_policy" in code


def filtered(model: str) -> dict[str, Any]:
    """The completion that stands for a request the server's content filter stopped."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": ""},
        "finish_reason": "content_filter",
    }
    return {"object": "chat.completion", "model": model, "choices": [choice]}


def _open(endpoint: Endpoint, key: str, app):
    """(openai client, its HTTP client) for the endpoint: in process over ASGI, else aiohttp (half the CPU of the default transport)."""
    import httpx2
    import openai

    if endpoint.base_url == OFFLINE:
        if app is None:
            raise LibraError(
                f"model `{endpoint.model}`: `base_url: offline` has no application here; give a server's address"
            )
        http = openai.DefaultAsyncHttpxClient(transport=httpx2.ASGITransport(app=app))
        return openai.AsyncOpenAI(
            base_url="http://offline/v1", api_key="offline", http_client=http, max_retries=0
        ), http
    if not key and urlsplit(endpoint.base_url).hostname == "api.openai.com":
        raise LibraError(
            f"{endpoint} needs a key: set the environment variable {endpoint.api_key_env}"
        )
    http = openai.DefaultAioHttpClient(timeout=endpoint.timeout_s)
    client = openai.AsyncOpenAI(
        base_url=endpoint.base_url,
        api_key=key or "none",  # local servers ask for none; the client insists on one
        http_client=http,
        timeout=endpoint.timeout_s,
        max_retries=0,  # retries are made here, where the other requests are known
    )
    return client, http


def _retry_after(headers) -> float | None:
    """Seconds from now of a Retry-After header, a number or a date (or OpenAI's retry-after-ms); None where there is none."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    try:
        until = parsedate_to_datetime(headers["retry-after"])
        return max(
            0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        )
    except (KeyError, ValueError):
        return None


def connection_words(endpoint: Endpoint, error: Exception) -> str:
    """What a broken connection means for the user."""
    import httpx2
    import openai

    called = endpoint.called
    # The aiohttp transport calls every failed connection a ConnectTimeout: only a slow answer is a matter of timeout_s.
    if isinstance(error, openai.APITimeoutError) and not isinstance(
        error.__cause__, httpx2.ConnectTimeout
    ):
        times = f"{endpoint.timeout_s:g} s, {MAX_RETRIES + 1} times"
        return f"{endpoint} took longer than {times}: raise {called('timeout_s')} or lower {called('concurrency')}"
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ or causes[-1].__context__:
        causes.append(causes[-1].__cause__ or causes[-1].__context__)
    kinds = {type(cause).__name__ for cause in causes}
    root = causes[-1]
    if any("Certificate" in kind or "SSL" in kind for kind in kinds):
        why = (
            getattr(root, "verify_message", None)
            or getattr(root, "reason", None)
            or type(root).__name__
        )
        mend = f"mend {called('base_url')}, or the server's certificate (SSL_CERT_FILE)"
        return f"{endpoint} has no good TLS certificate ({why}): {mend}"
    if any("DNS" in kind for kind in kinds) or type(root).__name__ == "gaierror":
        host = urlsplit(endpoint.base_url).hostname
        return f"{endpoint}: the name `{host}` isn't known to DNS: mend {called('base_url')} or the network"
    if kinds & {
        "RemoteProtocolError",
        "ReadError",
        "ClientPayloadError",
        "ServerDisconnectedError",
        "ContentLengthError",
    }:
        return f"{endpoint} broke the connection in the middle of a reply, {MAX_RETRIES + 1} times: see the server's log"
    why = getattr(root, "strerror", None) or type(root).__name__
    return f"{endpoint} can't be reached ({why}): start the server or mend {called('base_url')}"
