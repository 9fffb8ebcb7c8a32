"""Further candidates: what params.yaml may name, and the answers of chat models as rows of data/eval/responses.parquet.

as_candidates({"qwen": {"model": "Qwen/Qwen3-0.6B", "max_tokens": 256}}, taken=())    # {"qwen": LocalModel(...)}
endpoint_answers(session, "my-model", endpoint, bare_requests(["How is ethanol made?"]), 0.01, app)
-> [("It is made by fermentation.", None, "stop", None)]
"""

import re
import sys
from collections.abc import Container
from typing import Any

from stages.chat.client import Session
from stages.chat.protocol import ChatRequest, Endpoint
from stages.core.errors import LibraError
from stages.core.params import check_section
from stages.local.answers import LocalModel


def as_candidates(named: Any, taken: Container[str]) -> Any:
    """Each entry of respond.candidates as what it is: one with a base_url is an endpoint. What is no mapping comes back as it is.

    Raises LibraError for wrong keys and values (named as of that kind alone, not as of both) and for names that won't do.
    """
    if not isinstance(named, dict):
        return named
    found = {}
    for name, one in named.items():
        if name in taken or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", str(name)):
            fault = (
                "that name is taken"
                if name in taken
                else "letters, digits, dots, dashes and underscores make a name"
            )
            raise LibraError(
                f"params.yaml: no candidate of respond.candidates may be called {name}; {fault}"
            )
        kind = Endpoint if isinstance(one, dict) and "base_url" in one else LocalModel
        found[name] = check_section(f"respond.candidates.{name}", one, kind)
    return found


def bare_requests(prompts) -> list[ChatRequest]:
    """Each prompt as a user would ask it."""
    return [ChatRequest([{"role": "user", "content": prompt}]) for prompt in prompts]


def endpoint_answers(
    session: Session, name: str, endpoint: Endpoint, requests: list[ChatRequest], limit: float, app
) -> list[tuple]:
    """(answer, reasoning, finish_reason, error) of each request; `app` answers where base_url is `offline`.

    Raises LibraError when more than the share `limit` of the replies is of no use; they stay kept.
    """
    replies = session.ask(endpoint, requests, f"respond: {name}", app)
    if faults := [reply.error for reply in replies if reply.error is not None]:
        session.quarantined(f"respond: {name}", len(faults))
        told_of = f"{len(faults)} of {len(replies)} replies of {endpoint} can't be used (first: {faults[0]})"
        if len(faults) > limit * len(replies):
            raise LibraError(
                f"{told_of}, more than respond.max_quarantined = {limit:g} allows; raise it or the candidate's "
                f"{endpoint.called('max_tokens')}, or have them asked for again with `python -m stages.tools store retry`; "
                "all of them are kept"
            )
        print(f"respond: {told_of}; the judge abstains on them", file=sys.stderr)
    return [(reply.content, reply.reasoning, reply.finish_reason, reply.error) for reply in replies]
