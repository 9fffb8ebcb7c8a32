"""Tokens of a request and its reply: as the server counted them, else guessed from the text.

    guess("How is 2,4-D made?")   # 9.0: three words, five pieces of the name, "?"

A word of up to nine letters is one token, a longer one has another for every three letters more;
digits go by threes; a run of signs is one and a third for each sign after the first. On this
project's requests and replies that is within 5 % of the counts of the tokenizers cl100k, o200k and
DeepSeek's, within 10 % of Anthropic's published one. Four characters per token were up to 26 % off,
on short texts.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

# Of one reply. A server that reports more doesn't count, and SQLite's sums don't overflow.
MOST_TOKENS = 10**9
# Tokens around each message, and before the reply, in the usual chat formats.
PER_MESSAGE, PER_REQUEST = 4, 3
_PIECE = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]{1,3}|[^\sA-Za-z0-9]+|\n+| {2,}")


def guess(text: str) -> float:
    """About how many tokens `text` has."""
    return sum(map(_of_piece, _PIECE.findall(text)))


def guess_asked(request: Mapping[str, Any]) -> float:
    """About how many prompt tokens a request body has; a response schema counts nothing."""
    return PER_REQUEST + sum(
        PER_MESSAGE + guess(str(message.get("content") or "")) for message in request["messages"]
    )


def tokens(request: Mapping[str, Any], reply: Mapping[str, Any]) -> tuple[int, int]:
    """(prompt tokens, completion tokens) as the server counted them, else guessed."""
    usage = usage_of(reply)
    prompt, completion = (
        counted(usage.get("prompt_tokens")),
        counted(usage.get("completion_tokens")),
    )
    if prompt is None:
        prompt = math.ceil(guess_asked(request))
    if completion is None:
        completion = math.ceil(guess(text_of(reply)))
    return prompt, completion


def text_of(reply: Mapping[str, Any]) -> str:
    """The text that the model wrote."""
    return str(reply["choices"][0]["message"].get("content") or "")


def usage_of(reply: Mapping[str, Any]) -> dict[str, Any]:
    """The server's usage object, {} if it sent none."""
    return usage if isinstance(usage := reply.get("usage"), dict) else {}


def counted(value: Any) -> int | None:
    """A server's count of tokens; None if it isn't a plausible one."""
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None


def _of_piece(piece: str) -> float:
    if piece[0].isalpha() and piece.isascii():
        return max(1.0, 1 + (len(piece) - 9) / 3)
    if piece.isalnum() or piece.isspace():
        return 1.0
    return 1 + (len(piece) - 1) / 3
