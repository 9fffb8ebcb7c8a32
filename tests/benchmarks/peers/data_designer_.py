"""NeMo Data Designer as a contender of replies.py: a seed dataset, one text column, resume on.

As in its documentation:
https://docs.nvidia.com/nemo/datadesigner/concepts/seed-datasets

The underscore in the name keeps this file from being imported as the library.
"""

import contender
import data_designer.config as dd
import pandas as pd
from data_designer.interface import DataDesigner

PROMPTS = {"plain": "{{ row }}", "edited": "Question: {{ row }}"}
PARSERS = {"plain": "{{ reply }}", "edited": "{{ reply | upper }}"}


def ask(job: contender.Job) -> list[str]:
    """The rows of the job."""
    provider = dd.ModelProvider(name="bench", endpoint=job.url, api_key="none")
    sampling = dd.ChatCompletionInferenceParams(
        temperature=job.temperature,
        max_tokens=100,
        max_parallel_requests=job.concurrency,
        timeout=30,
    )
    model = dd.ModelConfig(
        alias="bench",
        model=job.model,
        provider="bench",
        inference_parameters=sampling,
        skip_health_check=True,
    )
    columns = dd.DataDesignerConfigBuilder(model_configs=[model])
    seed = dd.DataFrameSeedSource(df=pd.DataFrame({"row": job.rows}))
    columns.with_seed_dataset(seed, sampling_strategy=dd.SamplingStrategy.ORDERED)
    columns.add_column(
        dd.LLMTextColumnConfig(
            name="reply",
            prompt=PROMPTS[job.template],
            system_prompt=job.system,
            model_alias="bench",
        )
    )
    columns.add_column(dd.ExpressionColumnConfig(name="parsed", expr=PARSERS[job.parser]))
    designer = DataDesigner(artifact_path="artifacts", model_providers=[provider])
    designer.set_run_config(dd.RunConfig(otel_metrics_port=None))
    created = designer.create(
        columns, num_records=len(job.rows), dataset_name="bench", resume=dd.ResumeMode.IF_POSSIBLE
    )
    return list(created.load_dataset()["parsed"])


if __name__ == "__main__":
    job = contender.begin()
    contender.finish(job, ask(job))
