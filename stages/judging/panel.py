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

from stages.chat.budget import price_of
from stages.chat.client import Session, Tally
from stages.chat.offline import count_tokens
from stages.chat.protocol import OFFLINE, ChatRequest, Endpoint, Reply
from stages.chat.store import canonical
from stages.domain.description import Domain
from stages.judging import offline_judges as offline
from stages.judging.memo import Memo
from stages.judging.questions import (
    CONDUCT,
    HELPFULNESS,
    PAPER,
    PREFERENCE,
    conduct_request,
    helpfulness_request,
    paper_request,
    preference_request,
)  # fmt: skip

Opinion = dict[str, Any] | None


@dataclass(frozen=True, order=True)
class Question:
    """One thing to ask: `kind` is HELPFULNESS, CONDUCT, PAPER (which is asked without the request) or PREFERENCE, of `text` and, in the
    second place, the `other` answer."""

    kind: str
    request: str
    text: str
    other: str = ""

    def asked(self, domain: Domain | None) -> ChatRequest:
        if self.kind == PREFERENCE:
            return preference_request(self.request, self.text, self.other, domain)
        if self.kind == PAPER:
            return paper_request(self.text, domain)
        return {HELPFULNESS: helpfulness_request, CONDUCT: conduct_request}[self.kind](
            self.request, self.text, domain
        )


def ask(
    session: Session,
    panel: dict[str, Endpoint],
    questions: Sequence[Question],
    memo: Memo | None = None,
    domain: Domain | None = None,
) -> list[dict[str, Opinion]]:
    """What every member of `panel` makes of each question, in order. Raises LibraError when an endpoint fails.

    The questions are about `domain`; chemistry, where none is given.
    """
    said = {
        name: opinions(session, endpoint, questions, f"judge: {name}", memo, domain)
        for name, endpoint in panel.items()
    }
    return [{name: found[question] for name, found in said.items()} for question in questions]


def opinions(
    session: Session,
    endpoint: Endpoint,
    questions: Sequence[Question],
    what: str,
    memo: Memo | None = None,
    domain: Domain | None = None,
) -> dict[Question, Opinion]:
    """One judge's opinion on every question; None where its reply was unusable. Raises LibraError when the endpoint fails."""
    different = sorted(set(questions))
    if memo is None or endpoint.base_url != OFFLINE:
        return {
            question: _parsed(reply)
            for question, _, reply in _asked(session, endpoint, different, what, domain)
        }
    sampling = canonical(
        [endpoint.model, endpoint.temperature, endpoint.max_tokens, session.random_seed]
    )
    keys = {
        question: memo.key("opinion", "\0".join((sampling, *vars(question).values())))
        for question in different
    }
    kept = memo.find(keys.values())
    found = {question: json.loads(kept[key]) for question, key in keys.items() if key in kept}
    new = _asked(
        session,
        endpoint,
        [question for question in different if question not in found],
        what,
        domain,
    )
    usable = [(question, request, reply) for question, request, reply in new if not reply.error]
    memo.keep(
        {
            keys[question]: json.dumps([reply.parsed, *_counts(request, reply)])
            for question, request, reply in usable
        }
    )
    _tally(session, endpoint, what, [counts for _, *counts in found.values()])
    return {question: said for question, (said, *_) in found.items()} | {
        question: _parsed(reply) for question, _, reply in new
    }


def _asked(
    session: Session,
    endpoint: Endpoint,
    questions: list[Question],
    what: str,
    domain: Domain | None,
) -> list[tuple[Question, ChatRequest, Reply]]:
    """Each question as it was asked, and the reply."""
    requests = [question.asked(domain) for question in questions]
    replies = session.ask(endpoint, requests, what, offline.app_for(domain)) if questions else []
    if unusable := sum(reply.error is not None for reply in replies):
        session.quarantined(what, unusable)
    return list(zip(questions, requests, replies, strict=True))


def _parsed(reply: Reply) -> Opinion:
    return None if reply.error else reply.parsed


def _tally(session: Session, endpoint: Endpoint, what: str, kept: list[list[int]]) -> None:
    """Count replies out of the memo, as (prompt tokens, completion tokens), as if they were asked for: a stage reports the same,
    whatever was kept."""
    if not kept:
        return
    tally = session.tallies.setdefault(
        what, Tally(endpoint.base_url, endpoint.model, endpoint.mode, price_of(endpoint).source)
    )
    tally.requests += len(kept)
    tally.received += len(kept)
    for counts in kept:
        tally.count(None, *counts, 0.0)


def _counts(request: ChatRequest, reply: Reply) -> tuple[int, int]:
    """(prompt tokens, completion tokens), as the application inside this process counts them."""
    return sum(count_tokens(message["content"]) for message in request.messages), count_tokens(
        reply.content
    )
