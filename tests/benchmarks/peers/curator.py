"""Bespoke Curator as a contender of replies.py: a subclass of LLM with automatic caching.

As in its documentation:
https://docs.bespokelabs.ai/curator/api-reference
"""

import contender
from bespokelabs import curator

NO_LIMIT = 1_000_000_000  # a minute; by default Curator has limits of its own


class Plain(curator.LLM):
    def prompt(self, input: dict) -> str:
        return input["row"]

    def parse(self, input: dict, response: str) -> dict:
        return {"reply": response}


class EditedPrompt(Plain):
    def prompt(self, input: dict) -> str:
        return f"Question: {input['row']}"


class EditedParser(Plain):
    def parse(self, input: dict, response: str) -> dict:
        return {"reply": response.upper()}


CLASSES = {
    ("plain", "plain"): Plain,
    ("edited", "plain"): EditedPrompt,
    ("plain", "edited"): EditedParser,
}


def ask(job: contender.Job) -> list[str]:
    """The rows of the job."""
    llm = CLASSES[job.template, job.parser](
        model_name=job.model,
        backend="openai",
        system_prompt=job.system,
        generation_params={"temperature": job.temperature, "max_tokens": 100},
        backend_params={
            "base_url": job.url,
            "api_key": "none",
            "max_concurrent_requests": job.concurrency,
            "max_requests_per_minute": NO_LIMIT,
            "max_tokens_per_minute": NO_LIMIT,
        },
    )
    return list(llm([{"row": row} for row in job.rows]).dataset["reply"])


if __name__ == "__main__":
    job = contender.begin()
    contender.finish(job, ask(job))
