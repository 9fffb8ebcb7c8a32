"""The panel inside the project: an OpenAI-compatible application with two deterministic judges.

    app                    for stages.chat.client's Session.ask(endpoint, requests, "judge", app)
    python -m stages.tools serve judges --port 8001     the same for any OpenAI client

`libra-offline-judge` reads by written rules (topics.py), `libra-offline-judge-words` by words
learned from the train split (words.py). A served judge knows the domain of data/domain.json in the
current folder, otherwise chemistry. Both answer the schemas of `stages.judging.questions`; without
a schema, the question is recognised by its texts. Like any judge they see request, text and rubric
only. They are stand-ins: a panel of two models of different families is worth more.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from stages.chat.offline import Answer, OfflineApp, RequestError, last_user_text, schema_name
from stages.domain.description import Domain
from stages.judging import topics, words
from stages.judging.questions import CONDUCT, HELPFULNESS, PAPER, PREFERENCE, material

MODEL, WORDS_MODEL = "libra-offline-judge", "libra-offline-judge-words"
_KEYS = {
    HELPFULNESS: ("request", "answer"),
    CONDUCT: ("request", "text"),
    PAPER: ("answer",),
    PREFERENCE: ("request", "first", "second"),
}
Reader = Callable[..., dict[str, Any]]  # takes the texts of _KEYS and the domain


def _answering(readers: dict[str, Reader], domain: Domain | None = None) -> Answer:
    """An `answer` for OfflineApp that passes a request's texts to the reader of its question.

    It raises RequestError for other requests.
    """

    def answer(body: dict[str, Any]) -> str:
        name = schema_name(body)
        if name not in (*readers, None):
            known = ", ".join(f"`{known}`" for known in readers)
            raise RequestError(
                f"this judge answers the schemas {known}, not `{name}`", "response_format"
            )
        try:
            texts = material(last_user_text(body))
            name = name or next(name for name, keys in _KEYS.items() if set(keys) == set(texts))
            arguments = [texts[key] for key in _KEYS[name]]
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
            known = "; ".join(f"of `{known}`: {', '.join(keys)}" for known, keys in _KEYS.items())
            raise RequestError(
                f"the user message must be a JSON object with nonce and the texts {known}"
            ) from None
        return json.dumps(readers[name](*arguments, domain), ensure_ascii=False)

    return answer


def _preferring(helpfulness: Reader) -> Reader:
    """A reader that prefers the one answer that helps and is on topic, or sees a tie.

    `helpfulness` reads each answer on its own.
    """

    def preference(request: str, first: str, second: str, domain: Domain | None) -> dict[str, Any]:
        opinions = {
            "first": helpfulness(request, first, domain),
            "second": helpfulness(request, second, domain),
        }
        serving = [
            place
            for place, opinion in opinions.items()
            if opinion["helpful"] and opinion["on_topic"]
        ]
        if len(serving) != 1:
            return {"preferred": "tie", "evidence": ""}
        return {"preferred": serving[0], "evidence": opinions[serving[0]]["evidence"]}

    return preference


def _judging(member, domain: Domain | None = None) -> Answer:
    """The `answer` of a member of the panel; `member` is its module."""
    readers = {
        HELPFULNESS: member.helpfulness,
        CONDUCT: member.conduct,
        PAPER: member.paper,
        PREFERENCE: _preferring(member.helpfulness),
    }
    return _answering(readers, domain)


answer, answer_by_words = _judging(topics), _judging(words)  # on chemistry


@lru_cache(maxsize=4)
def app_for(domain: Domain | None):
    """The application whose judges know `domain` (default: chemistry).

    Raises LibraError if its words can't be learned.
    """
    words.models(domain)
    return OfflineApp({MODEL: _judging(topics, domain), WORDS_MODEL: _judging(words, domain)})


app = app_for(None)
