"""Split what a model wrote into what it answers and what it thinks.

split("<think>The user wants a route.</think>I can't help with that.", None)
-> Channels(answer="I can't help with that.", reasoning="The user wants a route.")
"""

import re
from dataclasses import dataclass

# <think>, <Thinking effort="high">, </ reasoning>, <seed:think>, [THINK], ◁think▷; `<think>` in backticks is only spoken of.
_TAG = re.compile(
    r"`</?[^`<>\n]{1,40}>`|<\s*(?P<end>/?)\s*(?:[a-z]+:)?(?:think|thinking|thoughts?|reasoning)(?:\s[^<>]*?)?(?P<alone>/?)>"
    r"|(?-i:\[(?P<end2>/?)THINK\])|◁(?P<end3>/?)think▷",
    re.IGNORECASE,
)
# OpenAI's harmony format: thoughts and tool talk in channels of their own, the answer in `final`.
_HARMONY = re.compile(
    r"<\|channel\|>\s*(?:analysis|commentary)\b[^<|]{0,100}<\|message\|>(.*?)(?:<\|end\|>|(?=<\|start\|>|<\|channel\|>)|\Z)",
    re.DOTALL,
)
_HARMONY_MARK = re.compile(
    r"<\|start\|>\s*assistant|<\|channel\|>\s*final|<\|(?:start|end|message|return|channel)\|>"
)


@dataclass(frozen=True)
class Channels:
    """`reasoning` is None where the model gave none."""

    answer: str
    reasoning: str | None


def split(answer: str | None, reasoning: str | None) -> Channels:
    """The answer without its thinking tags, and all reasoning: the given field first, then what stood in the tags or channels.

    A tag that is never closed makes the rest reasoning; a closing tag that was never opened makes all before it reasoning
    (chat templates often swallow the opening tag). Tags nest.
    """
    thought = [reasoning] if reasoning and reasoning.strip() else []
    said: list[str] = []
    depth, start = 0, 0
    text = _HARMONY_MARK.sub("", _HARMONY.sub(r"<think>\1</think>", answer or ""))
    for tag in _TAG.finditer(text):
        if tag[0].startswith("`"):
            continue
        piece, start = text[start : tag.start()], tag.end()
        closes = tag["end"] or tag["end2"] or tag["end3"]
        if depth:
            thought.append(piece)
        elif closes:
            thought += said + [piece]
            said = []
        else:
            said.append(piece)
        if not tag["alone"]:
            depth = max(0, depth - 1) if closes else depth + 1
    (thought if depth else said).append(text[start:])
    kept = [piece.strip() for piece in thought if piece.strip()]
    return Channels(
        " ".join(piece.strip() for piece in said if piece.strip()), "\n".join(kept) or None
    )
