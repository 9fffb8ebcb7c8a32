"""Put many questions to a panel of judges, each distinct question once per judge.

    ask(session, panel, [Question("helpfulness", "How is it made?", "It is made by ...")], memo)
    -> [{"rules": {"helpful": True, "on_topic": True, "evidence": "It is ..."}, "words": None}]

None is an unusable reply: cut off, not JSON, or not of its schema. Opinions of judges inside this
process are cached in the memo (memo.py); those of others are in the reply store.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.chat.budget import price_of
from stages.chat.client import Session, Tally
from stages.chat.offline import count_tokens
from stages.chat.protocol import OFFLINE, ChatRequest, Endpoint, Reply
from stages.chat.records import canonical
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
)

Opinion = dict[str, Any] | None


@dataclass(frozen=True, order=True)
class Question:
    """One question of `kind` HELPFULNESS, CONDUCT, PAPER or PREFERENCE about `text`.

    PAPER is asked without the request; PREFERENCE compares `text` with the `other` answer.
    """

    kind: str
    request: str
    text: str
    other: str = ""

    def chat_request(self, domain: Domain | None) -> ChatRequest:
        if self.kind == PREFERENCE:
            return preference_request(self.request, self.text, self.other, domain)
        if self.kind == PAPER:
            return paper_request(self.text, domain)
        make = {HELPFULNESS: helpfulness_request, CONDUCT: conduct_request}[self.kind]
        return make(self.request, self.text, domain)


def ask(
    session: Session,
    panel: dict[str, Endpoint],
    questions: Sequence[Question],
    memo: Memo | None = None,
    domain: Domain | None = None,
) -> list[dict[str, Opinion]]:
    """For each question, in order, every member's opinion: {member: opinion}.

    The questions are about `domain` (default: chemistry). Raises LibraError if an endpoint fails.
    """
    by_member = {
        name: opinions(session, endpoint, questions, f"judge: {name}", memo, domain)
        for name, endpoint in panel.items()
    }
    return [
        {name: answers[question] for name, answers in by_member.items()} for question in questions
    ]


def opinions(
    session: Session,
    endpoint: Endpoint,
    questions: Sequence[Question],
    label: str,
    memo: Memo | None = None,
    domain: Domain | None = None,
) -> dict[Question, Opinion]:
    """One judge's opinion on every question; None if its reply was unusable.

    `label` names the requests in the session's report. Raises LibraError if the endpoint fails.
    """
    distinct = sorted(set(questions))
    if memo is None or endpoint.base_url != OFFLINE:
        return {
            question: _parsed(reply)
            for question, _, reply in _ask_all(session, endpoint, distinct, label, domain)
        }
    sampling = canonical(
        [endpoint.model, endpoint.temperature, endpoint.max_tokens, session.random_seed]
    )
    keys = {
        question: memo.key("opinion", sampling, *vars(question).values()) for question in distinct
    }
    stored = memo.find(keys.values())
    known = {question: json.loads(stored[key]) for question, key in keys.items() if key in stored}
    missing = [question for question in distinct if question not in known]
    replies = _ask_all(session, endpoint, missing, label, domain)
    memo.keep(
        {
            keys[question]: json.dumps([reply.parsed, *_token_counts(request, reply)])
            for question, request, reply in replies
            if not reply.error
        }
    )
    _tally(session, endpoint, label, [counts for _, *counts in known.values()])
    return {question: opinion for question, (opinion, *_) in known.items()} | {
        question: _parsed(reply) for question, _, reply in replies
    }


def _ask_all(
    session: Session,
    endpoint: Endpoint,
    questions: list[Question],
    label: str,
    domain: Domain | None,
) -> list[tuple[Question, ChatRequest, Reply]]:
    """Each question with its request and reply."""
    requests = [question.chat_request(domain) for question in questions]
    replies = session.ask(endpoint, requests, label, offline.app_for(domain)) if questions else []
    if unusable := sum(reply.error is not None for reply in replies):
        session.quarantined(label, unusable)
    return list(zip(questions, requests, replies, strict=True))


def _parsed(reply: Reply) -> Opinion:
    return None if reply.error else reply.parsed


def _tally(session: Session, endpoint: Endpoint, label: str, counts: list[list[int]]) -> None:
    """Count cached replies, (prompt tokens, completion tokens) each, as if they had been asked for.

    So a stage reports the same numbers, whatever was cached.
    """
    if not counts:
        return
    tally = session.tallies.setdefault(
        label, Tally(endpoint.base_url, endpoint.model, endpoint.mode, price_of(endpoint).source)
    )
    tally.requests += len(counts)
    tally.received += len(counts)
    for prompt_tokens, completion_tokens in counts:
        tally.count(None, prompt_tokens, completion_tokens, 0.0)


def _token_counts(request: ChatRequest, reply: Reply) -> tuple[int, int]:
    """(prompt tokens, completion tokens), as the application inside this process counts them."""
    prompt = sum(count_tokens(message["content"]) for message in request.messages)
    return prompt, count_tokens(reply.content)
