"""Chat models as candidates: each prompt as a user would ask it, and the answers as rows of data/eval/responses.parquet.

    endpoint_answers(session, "my-model", endpoint, bare_requests(["How is ethanol made?"]), 0.01)
    -> [("It is made by fermentation.", None, "stop", None)]
"""

import sys

from stages.common.errors import LibraError
from stages.llm.chat import ChatRequest, Endpoint
from stages.llm.client import Session


def bare_requests(prompts) -> list[ChatRequest]:
    """Each prompt as a user would ask it."""
    return [ChatRequest([{"role": "user", "content": prompt}]) for prompt in prompts]


def endpoint_answers(session: Session, name: str, endpoint: Endpoint, requests: list[ChatRequest], limit: float) -> list[tuple]:
    """(answer, reasoning, finish_reason, error) of each request.

    Raises LibraError when more than the share `limit` of the replies is of no use; they stay kept.
    """
    from stages.llm.offline import app

    replies = session.ask(endpoint, requests, f"respond: {name}", app)
    if faults := [reply.error for reply in replies if reply.error is not None]:
        session.quarantined(f"respond: {name}", len(faults))
        told_of = f"{len(faults)} of {len(replies)} replies of {endpoint} can't be used (first: {faults[0]})"
        if len(faults) > limit * len(replies):
            raise LibraError(
                f"{told_of}, more than respond.max_quarantined = {limit:g} allows; raise it or the candidate's "
                "max_tokens, or have them asked for again with `python -m stages.llm.store retry`; all of them are kept"
            )
        print(f"respond: {told_of}; the judge abstains on them", file=sys.stderr)
    return [(reply.content, reply.reasoning, reply.finish_reason, reply.error) for reply in replies]
