"""Ask the LLM judge many things at once, each different thing a single time.

    opinions(endpoint, [("How is it made?", "It is made by ...")], lambda pair: helpfulness_request(*pair), "judge", 2025)
    -> {("How is it made?", "It is made by ..."): {"helpful": True, "on_topic": True, "evidence": "It is made by ..."}}
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from stages.judging import offline
from stages.llm.client import ChatRequest, Endpoint, ask_all

T = TypeVar("T", str, tuple[str, str])


def opinions(
    endpoint: Endpoint, things: Iterable[T], request: Callable[[T], ChatRequest], what: str, random_seed: int
) -> dict[T, dict[str, Any] | None]:
    """The judge's opinion on every thing; None where its reply was unusable. Raises LibraError when the endpoint fails."""
    different = sorted(set(things))
    replies = ask_all(endpoint, [request(thing) for thing in different], what, offline.app, random_seed) if different else []
    return {thing: None if reply.error else reply.parsed for thing, reply in zip(different, replies, strict=True)}
