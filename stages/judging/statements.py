"""What a text states and what it only mentions: questions, denials, corrections, comparisons with other substances.

    said = Statements("Unlike water (0 °C), it melts at 84 °C, not at 95 °C.")
    said.mentions(14), said.mentions(38), said.denies(50, 55)    # (True, False, True): places of 0, 84 and 95 °C

Reads a text, writes nothing; the fact check's parts (quantities, formulas, listings) share it. Only words near a place count, so the
time it takes grows with the length of the text alone.
"""

import difflib
import re
from bisect import bisect_right
from collections.abc import Collection
from functools import lru_cache

NEAR = 160  # characters before and after a place that can deny it
FAR = 400  # characters that talk of something else reaches at most

_SENTENCE = re.compile(r"[.!?;]+[\"')\]]*(?:\s+|$)|\n+")
_CLAUSE = re.compile(
    r"[,;:|\n]|\s(?:but|and|or|whereas|while|then|so)\s|\s-\s|[.!?]\s", re.IGNORECASE
)
# From here on the text speaks of what was asked again.
_OWN = r"(?:(?:but|so|and|then|yet) )?(?:it|its|this|these|our|we|i|here|the|that is|which is|which makes)\b"
_RESTART = re.compile(
    rf"[,)]\s*(?={_OWN})|\s(?=but\b)|:\s|[;\n]|\band (?=(?:the|its) (?:free|pure|anhydrous|parent)\b)",
    re.IGNORECASE,
)
_COMMA = re.compile(r",(?!\s*(?:which|whose|with|at)\b)|\s(?=but\b)|:\s|[;\n]", re.IGNORECASE)
_FORM = (
    r"(?:hydrochloride|hydrobromide|hydroiodide|sul(?:f|ph)ate|nitrate|phosphate|tartrate|citrate|maleate|fumarate|acetate|oxalate"
    r"|sodium|potassium|calcium|salt|(?:mono|di|tri|hemi)?hydrate|isomer|enantiomer|racemate|derivative|homologue?|analogue?)"
)
# What opens talk of something else, and what ends that talk within the sentence.
_ELSEWHERE = [
    (re.compile(r"\b(?:unlike|compared? (?:with|to)|in contrast (?:to|with)|as opposed to|versus|vs)\b", re.IGNORECASE), _RESTART),
    (re.compile(rf"\b(?:whereas|while)\b(?! {_OWN})", re.IGNORECASE), _RESTART),
    (re.compile(r"\b(?:for|by|in) (?:comparison|reference|contrast)\b|\b(?:that|those) (?:of|for)\b", re.IGNORECASE), _RESTART),
    (re.compile(r"\bthan (?!expected|usual|normal|most|average|you|(?:about |roughly |around )?[~<>−+\d])", re.IGNORECASE), _COMMA),
    (re.compile(rf"\b(?:its|the|an?) (?:[\w-]+ )?{_FORM}\b(?= (?:salt|form|melts|boils|is|has|at)\b|,|:)", re.IGNORECASE), _RESTART),
    (re.compile(r"\byou (?:asked|want(?:ed)? to know|wonder)|\basked (?:whether|if|for|how|about|what)\b", re.IGNORECASE), _RESTART),
    (re.compile(r"\bwhether\b|\b(?:if|suppose|assuming) (?:it|the)\b", re.IGNORECASE), _RESTART),
    (re.compile(r"\b(?:i|we) (?:(?:had |have )?(?:first|initially|originally|previously|once) |used to )(?:thought|think|believed?|said"
                r"|guess(?:ed)?|assumed?)\b|\bat first\b|\b(?:formerly|previously|used to be)\b", re.IGNORECASE), _RESTART),
    (re.compile(r"\b(?:sources|people|websites|tables|texts|papers|books)\b[^.;]{0,30}\b(?:wrongly|incorrectly|mistakenly|erroneously"
                r"|falsely)\b", re.IGNORECASE), _RESTART),
]  # fmt: skip
# "Water melts at 0 °C, but this compound ...": a name as the subject, and then what was asked.
_NAMED = re.compile(
    r"\W*([a-z][\w,'()-]*)(?: [\w'-]+){0,3}? "
    r"(?:melts?|boils?|freezes?|solidif(?:ies|y)|flash(?:es)?|ignites?|weighs?|has|have|is|are)\b", re.IGNORECASE
)  # fmt: skip
_STARTERS = frozenset(
    ["it", "its", "it's", "this", "that", "these", "those", "the", "a", "an", "my", "i", "i'm", "i'd", "we", "you", "he", "she", "they", "some", "many", "most", "one", "sure", "certainly", "yes", "no", "of", "in", "at", "for", "as", "there", "here", "if", "and", "but", "so", "because", "also", "both", "about", "roughly", "approximately", "around", "near", "maybe", "perhaps", "possibly", "probably", "what", "which", "when", "how", "does", "melting", "boiling", "molecular", "molar", "flash", "exposure", "freezing", "formula", "relative", "workplace", "according", "literature", "reported", "values", "data", "not", "ok", "okay", "well", "hmm", "actually", "currently", "legally", "schedule", "table", "annex", "anlage", "value"]
)
_BUT_OWN = re.compile(
    r"\s(?:but|yet|though|however),? (?=(?:this|it|its|the|our)\b)", re.IGNORECASE
)
_STRONG_OWN = re.compile(
    r"\b(?:this|our|your) (?:compound|substance|chemical|material|molecule|solvent|drug|one)\b",
    re.IGNORECASE,
)
_CORRECTION = re.compile(
    r"\b(?:correction|wait|scratch that|i meant?|let me correct|on second thoughts?|my mistake|i stand corrected|oops"
    r"|sorry,? (?:it|that|i)|(?:hmm|no),? (?:sorry|actually))\b", re.IGNORECASE
)  # fmt: skip
_NOT = re.compile(
    r"\b(?:not|never|neither|nor|rather than|instead of|contrary to|wrongly|incorrectly|erroneously|mistakenly|falsely)\b"
    r"(?! (?:sure|certain|only|just|simply|known|clear|necessarily|far|too|so|merely)\b)", re.IGNORECASE
)  # fmt: skip
_CUT = re.compile(
    r"[,;:.!?]\s|\s-\s|\b(?:but|whereas|while|however|though|although|because|since)\b|\band (?=(?:it|its|the|is)\b)",
    re.IGNORECASE,
)
_REJECTED = re.compile(
    r"[^.,;]{0,12}?\s(?:is|was|are|would be|seems) (?:\w+ )?(?:incorrect|wrong|wrongly|incorrectly|false|mistaken|inaccurate|not (?:right"
    r"|correct|true|the)|an? (?:error|mistake|typo|myth))\b", re.IGNORECASE
)  # fmt: skip


class Statements:
    """`text` cut into sentences and clauses; its contractions must be written out ("does not"). Places are offsets in it."""

    def __init__(self, text: str):
        self.text = text
        breaks = list(_SENTENCE.finditer(text))
        self._starts = [0, *(found.end() for found in breaks)]
        self._ends = [*(found.start() for found in breaks), len(text)]
        self._cuts = [found.end() for found in _CLAUSE.finditer(text)]
        self._spans = _merged(self._elsewhere())
        corrections = [found.start() for found in _CORRECTION.finditer(text)]
        self.corrected = corrections[-1] if corrections else 0

    def number(self, at: int) -> int:
        """The number of the sentence around `at`, from 0."""
        return bisect_right(self._starts, at) - 1

    def sentence(self, at: int) -> tuple[int, int]:
        """Where the sentence around `at` begins and ends."""
        number = self.number(at)
        return self._starts[number], max(self._ends[number], at)

    def clause(self, at: int) -> tuple[int, int]:
        """Where the clause around `at` begins and ends."""
        begin, end = self.sentence(at)
        i = bisect_right(self._cuts, at)
        return max(begin, self._cuts[i - 1] if i else 0), min(
            end, self._cuts[i] if i < len(self._cuts) else end
        )

    def mentions(self, at: int) -> bool:
        """Whether the place is part of a question, an echo of the request, an old belief, or talk of another substance."""
        i = bisect_right(self._spans, (at, len(self.text))) - 1
        return i >= 0 and at < self._spans[i][1]

    def denies(self, start: int, end: int) -> bool:
        """Whether what stands between `start` and `end` is said not to be so."""
        before = self.text[max(self.sentence(start)[0], start - NEAR) : start]
        before = before[max((found.end() for found in _CUT.finditer(before)), default=0) :]
        return bool(
            _NOT.search(before) or _REJECTED.match(self.text, end, min(end + NEAR, len(self.text)))
        )

    def _elsewhere(self) -> list[tuple[int, int]]:
        spans = []
        for opening, closing in _ELSEWHERE:
            for found in opening.finditer(self.text):
                end = min(self.sentence(found.start())[1], found.end() + FAR)
                closed = closing.search(self.text, found.end(), end)
                spans.append((found.start(), closed.start() if closed else end))
        strong = [self.number(found.start()) for found in _STRONG_OWN.finditer(self.text)]
        for number, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
            if self.text[end : end + 1] == "?":
                spans.append((start, end))
            named = _NAMED.match(self.text, start, end)
            if named and named[1].lower() not in _STARTERS:
                own = _BUT_OWN.search(self.text, start, end)
                if own:
                    spans.append((start, own.start()))
                elif any(other != number for other in strong):
                    spans.append((start, end))
        return spans


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


@lru_cache(maxsize=1 << 14)
def mended(word: str, known: Collection[str]) -> str:
    """The word of `known` that `word` is a slip of the pen for, or `word` itself.

    A slip is two letters swapped, or one left out or doubled; a long word may also have one or two wrong letters.
    """
    if word in known or len(word) < 4:
        return word
    for right in known:
        if word[0] == right[0] and (
            len(word) == len(right)
            and _swapped(word, right)
            or _one_left_out(word, right)
            or _doubled(word, right)
        ):
            return right
    if len(word) >= 7:
        close = difflib.get_close_matches(
            word, [right for right in known if len(right) >= 6 and right[0] == word[0]], 1, 0.8
        )
        return close[0] if close else word
    return word


def _swapped(word: str, right: str) -> bool:
    differ = [i for i in range(len(word)) if word[i] != right[i]]
    return (
        len(differ) == 2
        and differ[1] == differ[0] + 1
        and word[differ[0]] == right[differ[1]]
        and word[differ[1]] == right[differ[0]]
    )


def _one_left_out(word: str, right: str) -> bool:
    return len(right) == len(word) + 1 and any(
        right[:i] + right[i + 1 :] == word for i in range(1, len(right))
    )


def _doubled(word: str, right: str) -> bool:
    return len(word) == len(right) + 1 and any(
        word[i] == word[i - 1] and word[:i] + word[i + 1 :] == right for i in range(1, len(word))
    )
