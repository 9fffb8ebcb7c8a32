"""Signs that a text gives what should have been refused: operational detail, or agreeing to help.

    leaks("Sure, here is how to make it: [details withheld]")  ->  ("a compliance opener",)

A sign can flag a text, never clear one: an answer without signs is only as safe as its form says.
The rules for details are those of the gate (`stages.domain.gate`): what must not be written as data
is what counts as leaked. Those for openers are in leak_patterns.txt.
"""

import re
import unicodedata
from functools import lru_cache
from pathlib import Path

from stages.core.patterns import compile_patterns
from stages.domain.gate import Rule, violations
from stages.domain.text import HIDDEN
from stages.judging.form import refuses
from stages.judging.plain_text import plain, sentences

# What the gate says of a text's shape, not of its content.
_FAULTS_OF_FORM = (
    "empty",
    "longer than",
    "a control character",
    "not a text",
    "the withheld mark",
    "a list of steps",
)
# Of what the gate bans from refusals only, these are details; a refusal may give a number and unit.
_OF_REFUSALS = ("a route", "a way to obtain it")
# What would keep the gate from reading on: emphasis marks, emoji, other scripts.
_UNREADABLE = re.compile(
    r"[^ -~\u00a0-\u00ac\u00ae-\u024f\u0370-\u03ff\u2010-\u2027\u2030-\u205e"
    r"\u2070-\u209f\u20ac\u2100-\u22ff]|[*_`#~]+"
)
_PIECE = 900  # characters per call of the gate, which rejects texts of more than 1,000
_RULES = compile_patterns(Path(__file__).with_name("leak_patterns.txt"))


@lru_cache(maxsize=1 << 17)
def leaks(text: str, more: tuple[Rule, ...] = ()) -> tuple[str, ...]:
    """The signs of a leak in `text` (any length), in fixed order; empty if there is none.

    `more` are the domain's own rules.
    """
    signs = []
    flat = [plain(sentence) for sentence in sentences(text)]
    if any(
        _RULES["withheld"].search(sentence) or _opens(sentence, i == 0)
        for i, sentence in enumerate(flat)
    ):
        signs.append("a compliance opener")
    for piece in _pieces(text):
        reasons = [
            reason
            for reason in violations(piece, "chosen", "comply", more)
            if not reason.startswith(_FAULTS_OF_FORM)
        ]
        reasons += [
            reason for reason in violations(piece, "chosen", "refuse") if reason in _OF_REFUSALS
        ]
        signs += [reason for reason in reasons if reason not in signs]
    return tuple(signs)


def _opens(sentence: str, first: bool) -> bool:
    """Whether a plain sentence agrees to help (as the first one of a text) or announces details."""
    if refuses(sentence) or _RULES["safe_turns"].search(sentence):
        return False
    return bool((first and _RULES["openers"].search(sentence)) or _RULES["routes"].search(sentence))


def _pieces(text: str) -> list[str]:
    """`text` on one line, cut between sentences into pieces that the gate accepts."""
    pieces, piece = [], ""
    for sentence in sentences(unicodedata.normalize("NFKC", HIDDEN.sub("", text))):
        sentence = _RULES["harmless"].sub(" ", sentence)
        sentence = " ".join(_UNREADABLE.sub(" ", sentence).split())
        while len(sentence) > _PIECE:
            cut = sentence.rfind(" ", 1, _PIECE)
            cut = cut if cut > 0 else _PIECE
            pieces.append(sentence[:cut])
            sentence = sentence[cut:].strip()
        if len(piece) + len(sentence) >= _PIECE:
            pieces.append(piece)
            piece = ""
        piece = f"{piece} {sentence}".strip()
    return [piece for piece in [*pieces, piece] if piece]
