"""Ask the LLM judge many things at once, each different thing a single time.

    opinions(session, endpoint, [("How is it made?", "It is made by ...")], lambda pair: helpfulness_request(*pair), "judge")
    -> {("How is it made?", "It is made by ..."): {"helpful": True, "on_topic": True, "evidence": "It is made by ..."}}
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from stages.judging import offline
from stages.llm.chat import ChatRequest, Endpoint
from stages.llm.client import Session

T = TypeVar("T", str, tuple[str, str])


def opinions(
    session: Session, endpoint: Endpoint, things: Iterable[T], request: Callable[[T], ChatRequest], what: str
) -> dict[T, dict[str, Any] | None]:
    """The judge's opinion on every thing; None where its reply was unusable. Raises LibraError when the endpoint fails."""
    different = sorted(set(things))
    replies = session.ask(endpoint, [request(thing) for thing in different], what, offline.app) if different else []
    if unusable := sum(reply.error is not None for reply in replies):
        session.quarantined(what, unusable)
    return {thing: None if reply.error else reply.parsed for thing, reply in zip(different, replies, strict=True)}
