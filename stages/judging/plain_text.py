"""A text as the rules read it: one sentence at a time, in lower case, without markup.

sentences("It melts. I can’t say more.")    # ["It melts.", "I can’t say more."]
plain("I can’t **help**")                   # "i cannot help"
"""

import re
import unicodedata
from functools import lru_cache

from stages.domain.text import HIDDEN

_CONTRACTIONS = [
    (re.compile(pattern), written)
    for pattern, written in (
        (r"\bcan't\b|\bcant\b|\bcan not\b", "cannot"),
        (r"\bwon't\b|\bwont\b", "will not"),
        (r"\bshan't\b", "shall not"),
        (r"n't\b", " not"),
        (r"\bdont\b", "do not"),
        (r"\bi'm\b|\bim\b", "i am"),
        (r"\bi'd\b", "i would"),
        (r"'ll\b", " will"),
        (r"'ve\b", " have"),
        (r"'re\b", " are"),
        (r"\b(it|that|this|here|there|what|who)'s\b", r"\1 is"),
    )
]
_SENTENCE_END = re.compile(r"(?<=[.!?\]])[\"')\]]*\s+|\n+|(?<=[a-z]); ")
_STUTTER = re.compile(r"\b(\w+(?: \w+)?)(?: \1\b)+")  # "I can't can't help", as tiny models write
_APOSTROPHES = str.maketrans("’‘ʼ", "'''")


@lru_cache(maxsize=1 << 16)  # the rules and both offline judges read the same sentences
def plain(text: str) -> str:
    """`text` in NFKC and lower case, contractions written out.

    Without hidden characters, emphasis marks, repeated blanks and stutter.
    """
    text = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES).lower()
    text = re.sub(r"[*_#>]+", " ", HIDDEN.sub("", text))
    for pattern, written in _CONTRACTIONS:
        text = pattern.sub(written, text)
    return _STUTTER.sub(r"\1", " ".join(text.split()))


def sentences(text: str) -> list[str]:
    """The sentences of `text` as written, without empty ones."""
    return [piece.strip() for piece in _SENTENCE_END.split(text) if piece.strip()]
