"""Split a model's output into its answer and its reasoning.

split("<think>The user wants a route.</think>I can't help with that.", None)
-> Channels(answer="I can't help with that.", reasoning="The user wants a route.")
"""

import re
from dataclasses import dataclass

# <think>, <Thinking effort="high">, </ reasoning>, <seed:think>, [THINK], ◁think▷.
# A tag in backticks, as in `<think>`, is only mentioned.
_TAG = re.compile(
    r"`</?[^`<>\n]{1,40}>`"
    r"|<\s*(?P<end>/?)\s*(?:[a-z]+:)?(?:think|thinking|thoughts?|reasoning)"
    r"(?:\s[^<>]*?)?(?P<alone>/?)>"
    r"|(?-i:\[(?P<end2>/?)THINK\])|◁(?P<end3>/?)think▷",
    re.IGNORECASE,
)
# OpenAI's harmony format: thoughts and tool calls have their own channels, the answer is `final`.
_HARMONY = re.compile(
    r"<\|channel\|>\s*(?:analysis|commentary)\b[^<|]{0,100}<\|message\|>(.*?)"
    r"(?:<\|end\|>|(?=<\|start\|>|<\|channel\|>)|\Z)",
    re.DOTALL,
)
_HARMONY_MARK = re.compile(
    r"<\|start\|>\s*assistant|<\|channel\|>\s*final|<\|(?:start|end|message|return|channel)\|>"
)


@dataclass(frozen=True)
class Channels:
    """`reasoning` is None if the model gave none."""

    answer: str
    reasoning: str | None


def split(answer: str | None, reasoning: str | None) -> Channels:
    """The answer without its thinking tags, and all reasoning: the separate field, then the tags.

    A tag that is never closed makes the rest reasoning; a closing tag that was never opened makes
    all before it reasoning (chat templates often swallow the opening tag). Tags nest.
    """
    thoughts = [reasoning] if reasoning and reasoning.strip() else []
    answers: list[str] = []
    depth, start = 0, 0
    text = _HARMONY_MARK.sub("", _HARMONY.sub(r"<think>\1</think>", answer or ""))
    for tag in _TAG.finditer(text):
        if tag[0].startswith("`"):
            continue
        piece, start = text[start : tag.start()], tag.end()
        closes = tag["end"] or tag["end2"] or tag["end3"]
        if depth:
            thoughts.append(piece)
        elif closes:
            thoughts += [*answers, piece]
            answers = []
        else:
            answers.append(piece)
        if not tag["alone"]:
            depth = max(0, depth - 1) if closes else depth + 1
    (thoughts if depth else answers).append(text[start:])
    return Channels(_joined(answers, " "), _joined(thoughts, "\n") or None)


def _joined(pieces: list[str], separator: str) -> str:
    return separator.join(piece.strip() for piece in pieces if piece.strip())
