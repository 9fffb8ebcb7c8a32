"""Chat with any OpenAI-compatible endpoint: many requests at once, answers in order, structured output checked.

`base_url: offline` goes to an ASGI application inside this process, over the same protocol and the same client; everything
else is a server's address (`http://127.0.0.1:8000/v1`, `https://api.openai.com/v1`), and each of its replies is kept in the reply store
(stages/llm/store.py) and never asked for again. One `ChatRequest` gets one `Reply`:

    Reply(content='{"answer": "It melts at 356.9 K."}', parsed={'answer': 'It melts at 356.9 K.'}, reasoning=None,
          finish_reason='stop', error=None)
"""

import asyncio
import json
import os
import random
import re
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field

from stages.common.errors import LibraError
from stages.common.params import Section
from stages.common.progress import counter
from stages.llm.pace import Pace
from stages.llm.store import Kept, Store, reply_key, store_path

OFFLINE = "offline"  # the base_url of what answers inside this process
MAX_RETRIES = 4  # for broken connections, 408, 409 and 5xx: after 0.5 s, 1 s, 2 s, 4 s, less up to a quarter by lot
MAX_REFUSALS = 12  # retries for 429 and 503, which slow all requests down (stages/llm/pace.py)
ASK_AGAIN = 2  # how often a reply that doesn't fit its schema is asked for again
ASK_AGAIN_STRIDE = 1000  # ... as sample_index + 1000, + 2000: clear of the samples a caller numbers itself


class Endpoint(Section):
    """Where a chat model answers and how it samples (a section of params.yaml)."""

    base_url: str = Field(pattern=r"^(offline|https?://[^\s@]+)$")
    model: str = Field(min_length=1)
    temperature: float = Field(ge=0, le=2)
    max_tokens: int = Field(ge=1)
    concurrency: int = Field(ge=1, le=1024)
    api_key_env: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    timeout_s: float = Field(gt=0)


@dataclass(frozen=True)
class ChatRequest:
    """One thing to ask. `schema` (JSON Schema) and `schema_name` go together; `sample_index` tells repeats of it apart."""

    messages: list[dict[str, Any]]
    schema_name: str | None = None
    schema: dict[str, Any] | None = None
    sample_index: int = 0


@dataclass(frozen=True)
class Reply:
    """What came back. `parsed` is the content as JSON, valid against the schema, or None; `error` says why it is of no use."""

    content: str
    parsed: dict[str, Any] | None = None
    reasoning: str | None = None
    finish_reason: str | None = None
    error: str | None = None


def ask_all(endpoint: Endpoint, requests: list[ChatRequest], what: str, app=None, random_seed: int = 0) -> list[Reply]:
    """The replies to `requests`, in their order, at most `endpoint.concurrency` in flight.

    `app` is the ASGI application that answers when base_url is `offline`. Raises LibraError when the endpoint can't be
    reached, refuses the key, model or request, or still fails after the retries; a single reply that doesn't fit its
    schema comes back with `error` set instead.
    """
    return asyncio.run(_ask_all(endpoint, requests, what, app, random_seed))


async def _ask_all(endpoint: Endpoint, requests: list[ChatRequest], what: str, app, random_seed: int) -> list[Reply]:
    replies: list[Reply | None] = [None] * len(requests)
    waiting = iter(range(len(requests)))
    bar = counter(what, len(requests))

    async def work(asker: "_Asker") -> None:
        for i in waiting:
            replies[i] = await asker.ask(requests[i])
            bar.update()

    try:
        with nullcontext() if endpoint.base_url == OFFLINE else Store(store_path()) as store:
            async with _client(endpoint, app) as client, asyncio.TaskGroup() as group:
                asker = _Asker(client, endpoint, store, what, random_seed)
                for _ in range(min(endpoint.concurrency, len(requests))):
                    group.create_task(work(asker))
    except BaseExceptionGroup as group_error:
        raise group_error.exceptions[0] from None
    finally:
        bar.close()
    if store is not None and asker.found:
        print(f"{what}: {asker.found:,} replies were in the store, {asker.sent:,} were asked for", file=sys.stderr)
    return replies


def _client(endpoint: Endpoint, app):
    """An openai client for the endpoint: in process over ASGI, else over aiohttp (half the CPU of the default transport)."""
    import httpx2
    import openai

    if endpoint.base_url == OFFLINE:
        if app is None:
            raise LibraError(f"model `{endpoint.model}`: `base_url: offline` has no application here; give a server's address")
        http = openai.DefaultAsyncHttpxClient(transport=httpx2.ASGITransport(app=app))
        return openai.AsyncOpenAI(base_url="http://offline/v1", api_key="offline", http_client=http, max_retries=0)
    key = os.environ.get(endpoint.api_key_env, "")
    if not key and urlsplit(endpoint.base_url).hostname == "api.openai.com":
        raise LibraError(f"{_at(endpoint)} needs a key: set the environment variable {endpoint.api_key_env}")
    return openai.AsyncOpenAI(
        base_url=endpoint.base_url,
        api_key=key or "none",  # local servers ask for none; the client insists on one
        http_client=openai.DefaultAioHttpClient(timeout=endpoint.timeout_s),
        timeout=endpoint.timeout_s,
        max_retries=0,  # retries are _Asker's, which knows how the other requests fare
    )


def request_body(endpoint: Endpoint, request: ChatRequest, random_seed: int) -> dict[str, Any]:
    """The JSON body sent for `request`: all that decides the reply, besides the endpoint itself."""
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": request.messages,
        "temperature": endpoint.temperature,
        "max_tokens": endpoint.max_tokens,
        "seed": random_seed * 100_003 + request.sample_index,
    }
    if request.schema is not None:
        form = {"name": request.schema_name, "schema": request.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body


class _Asker:
    """Gets one reply after another from the store, else from the endpoint; the offline one has no store."""

    def __init__(self, client, endpoint: Endpoint, store: Store | None, what: str, random_seed: int):
        self._client, self._endpoint, self._store = client, endpoint, store
        self._what, self._random_seed = what, random_seed
        self._pace = Pace()
        self.found = self.sent = 0

    async def ask(self, request: ChatRequest) -> Reply:
        """One reply; asked again with another sample when it doesn't fit the schema."""
        for attempt in range(ASK_AGAIN + 1):
            sample_index = request.sample_index + attempt * ASK_AGAIN_STRIDE
            reply = await self._one(replace(request, sample_index=sample_index))
            if reply.error is None or request.schema is None:
                break
        return reply

    async def _one(self, request: ChatRequest) -> Reply:
        body = request_body(self._endpoint, request, self._random_seed)
        if self._store is None:
            return _read(await self._send(body), request)
        key = reply_key(self._endpoint.base_url, body, request.sample_index)
        if kept := self._store.find([key]):
            self.found += 1
            return _read(kept[key], request)
        self.sent += 1
        raw = await self._send(body)
        reply = _read(raw, request)
        if reply.error is None and reply.finish_reason != "content_filter":
            await self._store.keep(key, Kept(self._what, self._endpoint.base_url, request.sample_index, body, raw))
        return reply

    async def _send(self, body: dict[str, Any]) -> Any:
        """The server's JSON object. Raises LibraError for what another try can't mend, or retries didn't."""
        import openai

        broken = refused = 0
        while True:
            started = await self._pace.turn()
            try:
                raw = await self._client.chat.completions.with_raw_response.create(**body)
                answer = json.loads(raw.content)
            except json.JSONDecodeError:
                raise LibraError(
                    f"{_at(self._endpoint)} didn't answer with JSON: is this the address of a chat API (it often ends in /v1)?"
                ) from None
            except openai.APIConnectionError as error:  # time-outs are a kind of it
                if self._endpoint.base_url == OFFLINE and error.__cause__ is not None:
                    raise error.__cause__ from None  # a bug in the application, not a connection: its traceback is wanted
                if broken >= MAX_RETRIES:
                    raise LibraError(_connection_words(self._endpoint, error)) from None
                broken += 1
            except openai.APIStatusError as error:
                if "content_filter" in str(error.code) or "content_policy" in str(error.code):
                    return {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}
                if error.status_code in (429, 503) and error.code != "insufficient_quota":
                    self._pace.refused(started, _retry_after(error.response.headers))
                    refused += 1
                elif error.status_code in (408, 409) or error.status_code >= 500:
                    broken += 1
                else:
                    raise LibraError(_status_words(self._endpoint, error)) from None
                if self._endpoint.base_url == OFFLINE or broken > MAX_RETRIES or refused > MAX_REFUSALS:
                    raise LibraError(_status_words(self._endpoint, error)) from None
            else:
                self._pace.served()
                return answer
            await asyncio.sleep(min(0.5 * 2 ** (broken + refused - 1), 8.0) * random.uniform(0.75, 1.0))


def _retry_after(headers) -> float | None:
    """Seconds of a Retry-After header (or OpenAI's retry-after-ms); None where it is missing or a date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    return None


def _connection_words(endpoint: Endpoint, error: Exception) -> str:
    """What a broken connection means for the user."""
    import httpx2
    import openai

    # The aiohttp transport calls every failed connection a ConnectTimeout: only a slow answer is a matter of timeout_s.
    if isinstance(error, openai.APITimeoutError) and not isinstance(error.__cause__, httpx2.ConnectTimeout):
        times = f"{endpoint.timeout_s:g} s, {MAX_RETRIES + 1} times"
        return f"{_at(endpoint)} took longer than {times}: raise timeout_s or lower concurrency"
    root: BaseException = error
    while root.__cause__ or root.__context__:
        root = root.__cause__ or root.__context__
    why = getattr(root, "strerror", None) or type(root).__name__
    return f"{_at(endpoint)} can't be reached ({why}): start the server or mend base_url"


def _status_words(endpoint: Endpoint, error) -> str:
    """What an HTTP error means for the user. The key is never in it; nor is what a server says about keys."""
    key = os.environ.get(endpoint.api_key_env, "")
    said = " ".join(str((error.body or {}).get("message") if isinstance(error.body, dict) else error.body or "").split())[:300]
    said = f": {said.replace(key, '***') if key else said}" if said else ""
    status = error.status_code
    if status == 401:
        state = "holds a wrong key" if key else "is not set"
        return f"{_at(endpoint)} answered 401, not authorised: the environment variable {endpoint.api_key_env} {state}"
    if status == 403:
        return f"{_at(endpoint)} answered 403{said}; the key in {endpoint.api_key_env} may not use this model"
    if status == 404:
        return f"{_at(endpoint)} answered 404{said}; mend `model` or `base_url` in params.yaml"
    if status in (400, 422):
        return (
            f"{_at(endpoint)} refused the request with {status}{said}; it may not take a sampling setting or the response schema"
        )
    if status == 429:
        if error.code == "insufficient_quota":
            return f"{_at(endpoint)} answered 429{said}; the account of the key in {endpoint.api_key_env} is out of credit"
        return f"{_at(endpoint)} answered 429 {MAX_REFUSALS + 1} times{said}; lower concurrency or raise the account's limit"
    return f"{_at(endpoint)} answered {status}{said}; run again when the server is well"


def _at(endpoint: Endpoint) -> str:
    return f"endpoint {endpoint.base_url} (model `{endpoint.model}`)"


def _read(answer: Any, request: ChatRequest) -> Reply:
    """The server's JSON object as a Reply: reasoning split off, content checked against the request's schema."""
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        content = message.get("content") or message.get("refusal") or ""
        reasoning = message.get("reasoning_content") or message.get("reasoning") or None
        finish = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        return Reply("", error="the reply is no chat completion")
    if thought := re.match(r"\s*<think>(.*?)(</think>\s*|\Z)", content, flags=re.DOTALL):
        reasoning, content = reasoning or thought[1].strip(), content[thought.end() :]
    parsed, error = None, None
    if finish == "content_filter":  # a candidate's refusal, decided by the server; no use where a schema was asked for
        error = "stopped by the server's content filter" if request.schema is not None else None
    elif request.schema is not None:
        parsed, error = _parse(content, request.schema)
        if error and finish == "length":
            error = f"cut off at max_tokens, {error}"
    elif not content and finish == "length":
        error = "cut off at max_tokens before the answer began"
    return Reply(content, parsed, reasoning, finish, error)


def _parse(content: str, schema: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    """(the content as an object valid against `schema`, None), or (None, what is wrong with it)."""
    import jsonschema

    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        return None, f"not JSON ({error.msg} at character {error.pos})"
    fault = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(value))
    if fault is None:
        return value, None
    return None, f"not of the schema: {fault.json_path}: {fault.message[:200]}"
