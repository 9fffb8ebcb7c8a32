"""The bare loop of replies.py: AsyncOpenAI over aiohttp, 64 workers, nothing stored.

It shows what any client can reach on this machine.
"""

import asyncio

import contender
import openai


async def ask(job: contender.Job) -> list[str]:
    """The rows of the job."""
    rows, queue = [""] * len(job.rows), iter(enumerate(job.rows))
    prompt, parse = contender.PROMPTS[job.template], contender.PARSERS[job.parser]
    http = openai.DefaultAioHttpClient(timeout=30.0)
    async with openai.AsyncOpenAI(base_url=job.url, api_key="none", http_client=http) as client:

        async def work() -> None:
            for i, row in queue:
                messages = [{"role": "user", "content": prompt(row)}]
                completion = await client.chat.completions.create(
                    model=job.model, messages=messages, temperature=job.temperature, max_tokens=100
                )
                rows[i] = parse(completion.choices[0].message.content)

        await asyncio.gather(*(work() for _ in range(job.concurrency)))
    return rows


if __name__ == "__main__":
    job = contender.begin()
    contender.finish(job, asyncio.run(ask(job)))
