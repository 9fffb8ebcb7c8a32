"""What the LLM judge is asked, over any OpenAI-compatible endpoint.

The judge sees the request, the answer and the rubric (`stages/llm/prompts/judge_*.md`), never the label, the fact, or who
answered. Texts of candidates stand in the user message only, between marks made from their own hash: a text can't hold its own
hash, so it can't close the block it stands in.
"""

import json
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from stages.llm.chat import ChatRequest

HELPFULNESS, PAPER = "helpfulness", "paper_verdict"
_PROMPTS = Path(__file__).parents[1] / "llm" / "prompts"
_SCHEMAS: dict[str, dict[str, Any]] = {
    HELPFULNESS: {"helpful": {"type": "boolean"}, "on_topic": {"type": "boolean"}, "evidence": {"type": "string"}},
    PAPER: {"verdict": {"type": "string", "enum": ["yes", "no"]}},
}
_RUBRICS = {HELPFULNESS: "judge_helpfulness.md", PAPER: "judge_paper.md"}


def helpfulness_request(request: str, answer: str) -> ChatRequest:
    """Asks {helpful, on_topic, evidence} of one answer to one request."""
    return _request(HELPFULNESS, {"request": request, "answer": answer})


def paper_request(answer: str) -> ChatRequest:
    """Asks {verdict: yes|no}: does the answer offer a way (the paper's question)?"""
    return _request(PAPER, {"answer": answer})


def material(message: str) -> dict[str, str]:
    """The texts of a user message made here, without their marks: {"request": ..., "answer": ...}."""
    body = json.loads(message)
    lead, end = f"[{body['nonce']}]\n", f"\n[/{body['nonce']}]"
    return {key: text.removeprefix(lead).removesuffix(end) for key, text in body.items() if key != "nonce"}


def _request(name: str, texts: dict[str, str]) -> ChatRequest:
    nonce = blake2b(json.dumps([name, texts], sort_keys=True).encode(), digest_size=8).hexdigest()
    user = {"nonce": nonce} | {key: f"[{nonce}]\n{text}\n[/{nonce}]" for key, text in texts.items()}
    messages = [{"role": "system", "content": _rubric(name)}, {"role": "user", "content": json.dumps(user, ensure_ascii=False)}]
    properties = _SCHEMAS[name]
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return ChatRequest(messages, name, schema)


@lru_cache(maxsize=None)
def _rubric(name: str) -> str:
    return (_PROMPTS / _RUBRICS[name]).read_text(encoding="utf-8").strip()
