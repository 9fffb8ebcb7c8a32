"""The judges' questions, for any OpenAI-compatible endpoint.

A judge sees the request, the text and the rubric (`prompts/*.md`, completed with the domain's own
words), never the label, the fact, or who answered. The rubric's points, and the keys of the reply
with them, are in an order drawn by a hash of the texts, so that no position is favoured over all
texts.

Texts of candidates are in the user message only, as JSON strings, between marks made from their own
hash: a text can't contain its own hash, so it can't close the block around it. `defused` disarms
everything that could pass for a mark, a tag or a chat template's token, which some servers obey
wherever they are.
"""

import json
import re
from functools import cache
from hashlib import blake2b
from pathlib import Path
from string import Template
from typing import Any

from stages.chat.protocol import ChatRequest
from stages.domain.description import Domain, chemistry
from stages.domain.text import HIDDEN
from stages.judging.cascade import CONDUCT, HELPFULNESS
from stages.judging.outcomes import FORMS

PAPER = "paper_verdict"
PREFERENCE = "preference"
HEAD, TAIL = 8_000, 4_000  # characters of a long text's two ends that a judge is shown
_PROMPTS = Path(__file__).with_name("prompts")
_BOOLEAN, _TEXT = {"type": "boolean"}, {"type": "string"}
_SCHEMAS: dict[str, dict[str, Any]] = {
    HELPFULNESS: {"helpful": _BOOLEAN, "on_topic": _BOOLEAN, "evidence": _TEXT},
    CONDUCT: {
        "form": {"type": "string", "enum": list(FORMS)},
        "discloses": _BOOLEAN,
        "evidence": _TEXT,
    },
    PAPER: {"verdict": {"type": "string", "enum": ["yes", "no"]}},
    PREFERENCE: {
        "preferred": {"type": "string", "enum": ["first", "second", "tie"]},
        "evidence": _TEXT,
    },
}
_RUBRICS = {
    HELPFULNESS: "helpfulness.md",
    CONDUCT: "conduct.md",
    PAPER: "paper.md",
    PREFERENCE: "preference.md",
}
_OPENS = re.compile(
    r"<(?=[|/!<A-Za-z])|\[(?=\s*/?\s*(?:[0-9a-fA-F]{8,}|[A-Z_]{2,}|nonce)\s*\])|\{(?=[{%|])"
)
_POINT = re.compile(r"(?ms)^- .*?(?=^(?:- |\n)|\Z)")


# The `domain` of a request is chemistry by default.
def helpfulness_request(request: str, answer: str, domain: Domain | None = None) -> ChatRequest:
    """Asks {helpful, on_topic, evidence} of one answer to one request."""
    return _request(HELPFULNESS, {"request": request, "answer": answer}, domain)


def conduct_request(request: str, text: str, domain: Domain | None = None) -> ChatRequest:
    """Asks {form, discloses, evidence} of one answer to one request, or of its reasoning."""
    return _request(CONDUCT, {"request": request, "text": text}, domain)


def paper_request(answer: str, domain: Domain | None = None) -> ChatRequest:
    """Asks {verdict: yes|no}: does the answer offer a way (the paper's question)?"""
    return _request(PAPER, {"answer": answer}, domain)


def preference_request(
    request: str, first: str, second: str, domain: Domain | None = None
) -> ChatRequest:
    """Asks {preferred: first|second|tie, evidence} of two answers to one request."""
    return _request(PREFERENCE, {"request": request, "first": first, "second": second}, domain)


def material(message: str) -> dict[str, str]:
    """The texts of a user message made here, without their marks: {"request": ..., "answer": ...}.

    Raises ValueError, KeyError, TypeError or AttributeError for any other message.
    """
    body = json.loads(message)
    opening, closing = f"[{body['nonce']}]\n", f"\n[/{body['nonce']}]"
    return {
        key: text.removeprefix(opening).removesuffix(closing)
        for key, text in body.items()
        if key != "nonce"
    }


def defused(text: str) -> str:
    """`text` as a judge sees it.

    Hidden characters are removed, a blank follows every `<`, `[` or `{` that opens a tag or a mark,
    and a long text lacks its middle.
    """
    text = _OPENS.sub(lambda opening: f"{opening[0]} ", HIDDEN.sub("", text))
    return text if len(text) <= HEAD + TAIL else f"{text[:HEAD]}\n ... \n{text[-TAIL:]}"


def _request(name: str, texts: dict[str, str], domain: Domain | None) -> ChatRequest:
    texts = {key: defused(text) for key, text in texts.items()}
    digest = blake2b(json.dumps([name, texts], sort_keys=True).encode(), digest_size=16).hexdigest()
    nonce, lot = digest[:16], int(digest[16:], 16)
    user = {"nonce": nonce} | {key: f"[{nonce}]\n{text}\n[/{nonce}]" for key, text in texts.items()}
    properties = _SCHEMAS[name]
    turn, backwards = lot % len(properties), lot // len(properties) % 2 == 1
    system, order = _rubric(name, turn, backwards, domain or chemistry())
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": json.dumps(user, ensure_ascii=False)},
    ]
    schema = {
        "type": "object",
        "properties": {key: properties[key] for key in order},
        "required": list(order),
    }
    return ChatRequest(messages, name, schema | {"additionalProperties": False})


@cache
def _rubric(name: str, turn: int, backwards: bool, domain: Domain) -> tuple[str, tuple[str, ...]]:
    """The rubric of `domain`, its points rotated by `turn`, then perhaps reversed, and its keys.

    The keys are the reply's, in the order of the points.
    """
    text = (_PROMPTS / _RUBRICS[name]).read_text(encoding="utf-8").strip()
    text = Template(text).substitute(domain.judge.rubric.model_dump())
    keys, points = list(_SCHEMAS[name]), _POINT.findall(text)
    places = [(i + turn) % len(keys) for i in range(len(keys))]
    places = places[::-1] if backwards else places
    if points:
        start = text.index(points[0])
        end = start + len("".join(points))
        text = text[:start] + "".join(points[i] for i in places) + text[end:]
    return text, tuple(keys[i] for i in places)
