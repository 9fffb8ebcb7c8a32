"""Libra as a contender of replies.py: a session like a stage's, its store in the working folder."""

import contender

from stages.chat.client import Session
from stages.chat.protocol import ChatRequest, Endpoint


def ask(job: contender.Job) -> list[str]:
    """The rows of the job."""
    prompt, parse = contender.PROMPTS[job.template], contender.PARSERS[job.parser]
    endpoint = Endpoint(
        base_url=job.url,
        model=job.model,
        temperature=job.temperature,
        max_tokens=100,
        concurrency=job.concurrency,
        api_key_env="NONE",
        timeout_s=30.0,
    )
    system = [{"role": "system", "content": job.system}] if job.system else []
    requests = [
        ChatRequest([*system, {"role": "user", "content": prompt(row)}]) for row in job.rows
    ]
    replies = Session("bench", 0).ask(endpoint, requests, "bench")
    return [parse(reply.content) for reply in replies]


if __name__ == "__main__":
    job = contender.begin()
    contender.finish(job, ask(job))
