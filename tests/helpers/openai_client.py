"""Chat completions and batches of a server under test, through an openai client."""

import asyncio
import json

import httpx2
import openai

from helpers.asking import make_app
from stages.chat.offline import last_user_text
from stages.tools.serving.batch_api import FINAL

CHAT = "/v1/chat/completions"
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "number", "schema": {"type": "object"}, "strict": True},
}


def app_of(answer=last_user_text):
    """A server whose model `m` says what `answer(body)` returns."""
    return make_app("m", answer)


def talk(app, conversation, url=None):
    """What the coroutine `conversation(client)` returns, for `app` in process or for `url`."""

    async def run():
        transport = None if url else httpx2.ASGITransport(app=app)
        http = openai.DefaultAsyncHttpxClient(transport=transport)
        async with openai.AsyncOpenAI(
            base_url=url or "http://x/v1", api_key="k", http_client=http, max_retries=0
        ) as client:
            return await conversation(client)

    return asyncio.run(run())


def each(app, texts, url=None, **options):
    """For each text, one after the other: the first choice, the error, or what isn't JSON."""

    async def conversation(client):
        results = []
        for text in texts:
            messages = [{"role": "user", "content": text}]
            try:
                reply = await client.chat.completions.create(
                    model="m", messages=messages, **options
                )
                # The client returns what isn't JSON as text.
                results.append(reply if isinstance(reply, str) else reply.choices[0])
            except openai.APIError as error:
                results.append(error)
        return results

    return talk(app, conversation, url)


def outcomes(results):
    """(text, finish_reason) of choices; the name of an error; what isn't JSON."""
    values = []
    for result in results:
        if isinstance(result, Exception):
            values.append(type(result).__name__)
        elif isinstance(result, str):
            values.append(result)
        else:
            values.append((result.message.content, result.finish_reason))
    return values


def line(custom_id, text="hello", **changes):
    """A line of a batch's input file."""
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body, **changes}


async def begin(client, lines, **options):
    """A new batch of `lines` (objects, or the file's bytes)."""
    if not isinstance(lines, bytes):
        lines = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = await client.files.create(file=("in.jsonl", lines), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h", **options
    )


async def ended(client, batch):
    """`batch` once it has ended."""
    async with asyncio.timeout(10):
        while batch.status not in FINAL:
            await asyncio.sleep(0.005)
            batch = await client.batches.retrieve(batch.id)
    return batch


async def result_lines(client, file_id):
    """{custom_id: line} of an output or error file, in its order."""
    content = (await client.files.content(file_id)).content
    lines = [json.loads(text) for text in content.splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines)
    assert len({line["id"] for line in lines}) == len(lines)
    return {line["custom_id"]: line for line in lines}


def run_batch(app, lines, url=None, **options):
    """(batch, output lines, error lines) of a batch, once it has ended."""

    async def conversation(client):
        batch = await ended(client, await begin(client, lines, **options))
        files = [
            await result_lines(client, file_id) if file_id else None
            for file_id in (batch.output_file_id, batch.error_file_id)
        ]
        return batch, *files

    return talk(app, conversation, url)
