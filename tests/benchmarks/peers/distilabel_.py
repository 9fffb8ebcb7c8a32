"""distilabel as a contender of replies.py: a pipeline of two steps with its cache.

As in its documentation:
https://distilabel.argilla.io/latest/sections/how_to_guides/advanced/caching/

The underscore in the name keeps this file from being imported as the library.
"""

from typing import Any

import contender
from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration

TEMPLATES = {"plain": "{{ instruction }}", "edited": "Question: {{ instruction }}"}


def edited_output(self, output: str | None, input: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"generation": output and output.upper()}


def ask(job: contender.Job) -> list[str | None]:
    """The rows of the job."""
    if job.parser == "edited":
        TextGeneration.format_output = edited_output  # an edit in place: the class keeps its name
    with Pipeline(name="bench", cache_dir="distilabel") as pipeline:
        load = LoadDataFromDicts(
            data=[{"instruction": row} for row in job.rows], batch_size=job.concurrency
        )
        sampling = {"temperature": job.temperature, "max_new_tokens": 100}
        generate = TextGeneration(
            llm=OpenAILLM(
                model=job.model, base_url=job.url, api_key="none", generation_kwargs=sampling
            ),
            system_prompt=job.system,
            template=TEMPLATES[job.template],
            input_batch_size=job.concurrency,  # one batch is in flight at once
        )
        load >> generate
    return list(pipeline.run(use_cache=True)["default"]["train"]["generation"])


if __name__ == "__main__":
    job = contender.begin()
    contender.finish(job, ask(job))
