"""Candidates: what params.yaml may name, and the answers of chat models as rows of responses.

as_candidates({"qwen": {"model": "Qwen/Qwen3-0.6B", "max_tokens": 256}}, reserved=())
-> {"qwen": LocalModel(...)}
endpoint_answers(session, "my-model", endpoint, bare_requests(["How is ethanol made?"]), 0.01, app)
-> [("It is made by fermentation.", None, "stop", None)]
"""

import re
import sys
from collections.abc import Container, Mapping
from typing import Any

from stages.chat.client import Session
from stages.chat.protocol import ChatModel, ChatRequest, Endpoint
from stages.core.errors import LibraError
from stages.core.params import check_section
from stages.local.answers import LocalModel

ANSWER = ("answer", "reasoning", "finish_reason", "error")
COLUMNS = ("candidate", "seed_id", "prompt_id", "prompt", *ANSWER)


def as_candidates(values: Any, reserved: Container[str]) -> Any:
    """Each entry of respond.candidates as a ChatModel, if it has a base_url, or a LocalModel.

    What is no mapping is returned as it is. Raises LibraError for wrong keys and values (of that
    kind alone, not of both), and for invalid or `reserved` names.
    """
    if not isinstance(values, dict):
        return values
    candidates = {}
    for name, entry in values.items():
        if name in reserved or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", str(name)):
            fault = (
                "that name is taken"
                if name in reserved
                else "use letters, digits, dots, dashes and underscores"
            )
            raise LibraError(
                f"params.yaml: respond.candidates can't have a candidate called {name}; {fault}"
            )
        kind = ChatModel if isinstance(entry, dict) and "base_url" in entry else LocalModel
        candidates[name] = check_section(f"respond.candidates.{name}", entry, kind)
    return candidates


def bare_requests(prompts) -> list[ChatRequest]:
    """Each prompt as a user would send it."""
    return [ChatRequest([{"role": "user", "content": prompt}]) for prompt in prompts]


def endpoint_answers(
    session: Session, name: str, endpoint: Endpoint, requests: list[ChatRequest], limit: float, app
) -> list[tuple]:
    """(answer, reasoning, finish_reason, error) of each request; `app` answers for `offline`.

    Raises LibraError when more than the share `limit` of the replies is unusable; all are kept.
    """
    replies = session.ask(endpoint, requests, f"respond: {name}", app)
    if faults := [reply.error for reply in replies if reply.error is not None]:
        session.quarantined(f"respond: {name}", len(faults))
        summary = (
            f"{len(faults)} of {len(replies)} replies of {endpoint} can't be used "
            f"(first: {faults[0]})"
        )
        if len(faults) > limit * len(replies):
            raise LibraError(
                f"{summary}, more than respond.max_quarantined = {limit:g} allows; raise it or the "
                f"candidate's {endpoint.called('max_tokens')}, or have them asked for again with "
                "`python -m stages.tools store retry`; all of them are kept"
            )
        print(f"respond: {summary}; the judge abstains on them", file=sys.stderr)
    return [(reply.content, reply.reasoning, reply.finish_reason, reply.error) for reply in replies]


def answers_by_endpoint(
    session: Session, teacher: Endpoint, endpoints: Mapping[str, Endpoint], limit: float, prompts
) -> dict[str, list[tuple]]:
    """The answers of `teacher`, with each seed's fact sheet in its request, and of `endpoints`.

    `prompts` is a table of seed_id, prompt_id and prompt. Raises LibraError as `endpoint_answers`.
    """
    from stages.core.tables import read_table
    from stages.domain.description import load_domain
    from stages.teacher.offline_teacher import app_for
    from stages.teacher.sheets import SEED_COLUMNS, SUBSTANCE_COLUMNS, answer_request, fact_sheets

    domain = load_domain()
    app = app_for(domain)
    seeds = read_table("data/seeds.parquet", SEED_COLUMNS)
    seeds = seeds.filter(seeds["seed_id"].is_in(prompts["seed_id"].unique().to_list()))
    substances = read_table("data/substances.parquet", SUBSTANCE_COLUMNS)
    sheets = {sheet["seed_id"]: sheet for sheet in fact_sheets(seeds, substances)}
    with_facts = [
        answer_request(sheets[seed_id], prompt, domain=domain)
        for seed_id, prompt in prompts.select("seed_id", "prompt").iter_rows()
    ]

    answers = {"teacher": endpoint_answers(session, "teacher", teacher, with_facts, limit, app)}
    for name, endpoint in endpoints.items():
        requests = bare_requests(prompts["prompt"])
        answers[name] = endpoint_answers(session, name, endpoint, requests, limit, app)
    return answers


def responses_table(prompts, answers: Mapping[str, list[tuple]]):
    """The answers of each candidate to `prompts` as rows of data/eval/responses.parquet."""
    import polars as pl

    parts = []
    for name, rows in answers.items():
        table = pl.DataFrame(rows, schema=dict.fromkeys(ANSWER, pl.String), orient="row")
        columns = prompts.select(pl.lit(name).alias("candidate"), pl.all())
        parts.append(pl.concat([columns, table], how="horizontal"))
    return pl.concat(parts).select(COLUMNS)
