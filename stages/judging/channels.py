"""Split what a model wrote into what it answers and what it thinks.

    split("<think>The user wants a route.</think>I can't help with that.", None)
    -> Channels(answer="I can't help with that.", reasoning="The user wants a route.")
"""

import re
from dataclasses import dataclass

_TAG = re.compile(r"<(/?)\s*(?:think|thinking|reasoning)\s*>", re.IGNORECASE)


@dataclass(frozen=True)
class Channels:
    """`reasoning` is None where the model gave none."""

    answer: str
    reasoning: str | None


def split(answer: str | None, reasoning: str | None) -> Channels:
    """The answer without its thinking tags, and all reasoning: the given field first, then what stood in the tags.

    A tag that is never closed makes the rest reasoning; a closing tag that was never opened makes all before it reasoning
    (chat templates often swallow the opening tag). Tags nest.
    """
    thought = [reasoning] if reasoning and reasoning.strip() else []
    said: list[str] = []
    depth, start = 0, 0
    text = answer or ""
    for tag in _TAG.finditer(text):
        piece, start = text[start : tag.start()], tag.end()
        if depth:
            thought.append(piece)
        elif tag[1]:
            thought += said + [piece]
            said = []
        else:
            said.append(piece)
        depth = max(0, depth - 1) if tag[1] else depth + 1
    (thought if depth else said).append(text[start:])
    kept = [piece.strip() for piece in thought if piece.strip()]
    return Channels(" ".join(piece.strip() for piece in said if piece.strip()), "\n".join(kept) or None)
