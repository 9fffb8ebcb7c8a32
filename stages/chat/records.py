"""What the reply store holds: keys, replies and what they cost.

    key = reply_key("https://api.openai.com/v1", body, sample_index=0)    # 64 hex digits

A key is the SHA-256 of everything that decides a reply: address, request body (model, messages with
the prompt template's text, every sampling setting, response schema) and sample index. Time-outs,
retries and concurrency are not part of it.
"""

import hashlib
import json
import re
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

from stages.chat.tokens import tokens

COLUMNS = (
    "key", "stage", "base_url", "model", "sample_index", "request", "reply", "fault",
    "prompt_tokens", "completion_tokens", "usd", "received",
)  # fmt: skip


class StoredReply(NamedTuple):
    """A reply from the store. `fault` says why it is unusable, None if it isn't."""

    reply: dict[str, Any]  # the server's JSON object
    fault: str | None
    prompt_tokens: int
    completion_tokens: int
    usd: float | None  # None: the price isn't known


class Spent(NamedTuple):
    """Replies paid for, their tokens (prompts and completions together), and USD."""

    requests: int
    tokens: int
    usd: float

    def plus(self, other: "Spent", times: int = 1) -> "Spent":
        """The sum of this and `times` the other."""
        return Spent(
            self.requests + times * other.requests,
            self.tokens + times * other.tokens,
            self.usd + times * other.usd,
        )


@dataclass(frozen=True)
class ReceivedReply:
    """A reply on its way into the store, with the request it answers.

    `request` and `reply` are JSON objects; the request never holds an API key or a header.
    """

    stage: str
    base_url: str
    sample_index: int
    request: dict[str, Any]
    reply: dict[str, Any]
    fault: str | None = None
    usd: float | None = None  # None: the price isn't known
    used_by: str = ""  # the stage that sent the request

    def row(self, key: str) -> tuple:
        """Values of COLUMNS and of `bought`."""
        prompt_tokens, completion_tokens = tokens(self.request, self.reply)
        return (
            key,
            self.stage,
            self.base_url,
            self.request["model"],
            self.sample_index,
            _storable(canonical(self.request)),
            _storable(canonical(self.reply)),
            self.fault and _storable(self.fault),
            prompt_tokens,
            completion_tokens,
            self.usd,
            int(time.time()),
            1,
        )


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def reply_key(base_url: str, body: dict[str, Any], sample_index: int) -> str:
    """The key of a reply: SHA-256 in hex."""
    parts = {"base_url": base_url.rstrip("/"), "body": body, "sample_index": sample_index}
    return hashlib.sha256(canonical(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _storable(text: str) -> str:
    """`text` with lone surrogates, which SQLite refuses, as the JSON escapes of the same."""
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)
