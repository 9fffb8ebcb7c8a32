"""Ask a panel of judges many things at once, each judge each different thing a single time.

    ask(session, panel, [Question("helpfulness", "How is it made?", "It is made by ...")], memo)
    -> [{"rules": {"helpful": True, "on_topic": True, "evidence": "It is made by ..."}, "words": None}]

None stands for a reply that was of no use: cut off, no JSON, not of its schema. What a judge inside this process said is read from the
memo (memo.py) where it holds it; what others said, the reply store keeps.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.judging import offline
from stages.judging.memo import Memo
from stages.judging.requests import CONDUCT, HELPFULNESS, PAPER, conduct_request, helpfulness_request, paper_request
from stages.llm.asgi import CHARACTERS_PER_TOKEN
from stages.llm.budget import price_of
from stages.llm.chat import OFFLINE, ChatRequest, Endpoint, request_body
from stages.llm.client import Session, Tally
from stages.llm.store import canonical

Opinion = dict[str, Any] | None


@dataclass(frozen=True, order=True)
class Question:
    """One thing to ask: `kind` is HELPFULNESS, CONDUCT or PAPER (which is asked without the request)."""

    kind: str
    request: str
    text: str

    def asked(self) -> ChatRequest:
        if self.kind == PAPER:
            return paper_request(self.text)
        return {HELPFULNESS: helpfulness_request, CONDUCT: conduct_request}[self.kind](self.request, self.text)


def ask(session: Session, panel: dict[str, Endpoint], questions: Sequence[Question], memo: Memo | None = None) -> list[dict[str, Opinion]]:
    """What every member of `panel` makes of each question, in order. Raises LibraError when an endpoint fails."""
    said = {name: opinions(session, endpoint, questions, f"judge: {name}", memo) for name, endpoint in panel.items()}
    return [{name: found[question] for name, found in said.items()} for question in questions]


def opinions(
    session: Session, endpoint: Endpoint, questions: Sequence[Question], what: str, memo: Memo | None = None
) -> dict[Question, Opinion]:
    """One judge's opinion on every question; None where its reply was unusable. Raises LibraError when the endpoint fails."""
    requests = {question: question.asked() for question in sorted(set(questions))}
    if memo is None or endpoint.base_url != OFFLINE:
        return _asked(session, endpoint, requests, what)[0]
    bodies = {question: request_body(endpoint, request, session.random_seed) for question, request in requests.items()}
    keys = {question: memo.key("opinion", canonical(body)) for question, body in bodies.items()}
    kept = memo.find(keys.values())
    found = {question: json.loads(kept[key]) for question, key in keys.items() if key in kept}
    new, usable = _asked(session, endpoint, {question: requests[question] for question in requests if question not in found}, what)
    memo.keep({keys[question]: content for question, content in usable.items()})
    _count(session, endpoint, what, [(bodies[question], kept[keys[question]]) for question in found])
    return found | new


def _asked(
    session: Session, endpoint: Endpoint, requests: dict[Question, ChatRequest], what: str
) -> tuple[dict[Question, Opinion], dict[Question, str]]:
    """(the opinions, the texts of the replies that are usable)."""
    replies = session.ask(endpoint, list(requests.values()), what, offline.app) if requests else []
    if unusable := sum(reply.error is not None for reply in replies):
        session.quarantined(what, unusable)
    pairs = list(zip(requests, replies, strict=True))
    said = {question: None if reply.error else reply.parsed for question, reply in pairs}
    return said, {question: reply.content for question, reply in pairs if not reply.error}


def _count(session: Session, endpoint: Endpoint, what: str, kept: list[tuple[dict[str, Any], str]]) -> None:
    """Tally (request, reply) pairs out of the memo as if they were asked for: a stage reports the same, whatever was kept."""
    if not kept:
        return
    tally = session.tallies.setdefault(what, Tally(endpoint.base_url, endpoint.model, endpoint.mode, price_of(endpoint).source))
    tally.requests += len(kept)
    tally.received += len(kept)
    for body, content in kept:
        tally.count(None, sum(_tokens(message["content"]) for message in body["messages"]), _tokens(content), 0.0)


def _tokens(text: str) -> int:
    """As the application inside this process counts them."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)
