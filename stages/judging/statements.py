"""What a text states and what it only mentions: questions, denials, corrections, comparisons.

    statements = Statements("Unlike water (0 °C), it melts at 84 °C, not at 95 °C.")
    statements.mentions(14), statements.mentions(33)    # (True, False): the places of 0 and 84 °C
    statements.denies(47, 52)                           # True: 95 °C

The fact check's readers of quantities, formulas, listings and wordings share it. Only words near a
place count, so the time grows linearly with the length of the text.
"""

import re
from bisect import bisect_right
from pathlib import Path

from stages.core.patterns import compile_patterns, read_patterns

NEAR = 160  # characters before and after a place that can deny it
FAR = 400  # characters that talk of something else can reach

_SENTENCE_END = re.compile(r"[.!?;]+[\"')\]]*(?:\s+|$)|\n+")
_CLAUSE_END = re.compile(
    r"[,;:|\n]|\s(?:but|and|or|whereas|while|then|so)\s|\s-\s|[.!?]\s", re.IGNORECASE
)
_PATTERNS = Path(__file__).with_name("statement_patterns.txt")
_RULES = compile_patterns(_PATTERNS, re.IGNORECASE)
# What opens talk of something else, and what ends that talk within the sentence. Each opening is
# searched on its own, since two may overlap.
_DIGRESSIONS = [
    (re.compile(opening, re.IGNORECASE), _RULES[end])
    for section, end in (("elsewhere", "restarts"), ("compared", "commas"))
    for opening, _ in read_patterns(_PATTERNS)[section]
]
# First words of a sentence that name no other substance: "It is ...", "Melting point is ...".
_STARTERS_TEXT = """
    it its it's this that these those the a an my i i'm i'd we you he she they some many most one
    sure certainly yes no of in at for as there here if and but so because also both
    about roughly approximately around near maybe perhaps possibly probably
    what which when how does not ok okay well hmm actually currently legally
    melting boiling molecular molar flash exposure freezing formula relative workplace
    according literature reported values data value schedule table annex anlage
"""
_STARTERS = frozenset(_STARTERS_TEXT.split())


class Statements:
    """`text` cut into sentences and clauses. Places are offsets in it.

    Contractions must be written out ("does not"). `last_correction` is the place from which on the
    text corrects itself, 0 if it doesn't.
    """

    def __init__(self, text: str):
        self.text = text
        ends = list(_SENTENCE_END.finditer(text))
        self._starts = [0, *(end.end() for end in ends)]
        self._ends = [*(end.start() for end in ends), len(text)]
        self._cuts = [end.end() for end in _CLAUSE_END.finditer(text)]
        self._spans = _merged(self._digressions())
        corrections = [match.start() for match in _RULES["corrections"].finditer(text)]
        self.last_correction = corrections[-1] if corrections else 0

    def sentence(self, at: int) -> tuple[int, int]:
        """Begin and end of the sentence around `at`."""
        number = self._number(at)
        return self._starts[number], max(self._ends[number], at)

    def clause(self, at: int) -> tuple[int, int]:
        """Begin and end of the clause around `at`."""
        begin, end = self.sentence(at)
        i = bisect_right(self._cuts, at)
        after = self._cuts[i] if i < len(self._cuts) else end
        return max(begin, self._cuts[i - 1] if i else 0), min(end, after)

    def mentions(self, at: int) -> bool:
        """Whether the place is only a mention.

        That is: in a question, an echo of the request, an old belief, or about another substance.
        """
        i = bisect_right(self._spans, (at, len(self.text))) - 1
        return i >= 0 and at < self._spans[i][1]

    def denies(self, start: int, end: int) -> bool:
        """Whether the text says that what is at start:end is not so."""
        before = self.text[max(self.sentence(start)[0], start - NEAR) : start]
        before = before[max((cut.end() for cut in _RULES["cuts"].finditer(before)), default=0) :]
        near = min(end + NEAR, len(self.text))
        return bool(
            _RULES["denials"].search(before) or _RULES["rejected"].match(self.text, end, near)
        )

    def _number(self, at: int) -> int:
        """The number of the sentence around `at`, from 0."""
        return bisect_right(self._starts, at) - 1

    def _digressions(self) -> list[tuple[int, int]]:
        spans = []
        for opening, closing in _DIGRESSIONS:
            for match in opening.finditer(self.text):
                end = min(self.sentence(match.start())[1], match.end() + FAR)
                closed = closing.search(self.text, match.end(), end)
                spans.append((match.start(), closed.start() if closed else end))

        # "Water melts at 0 °C, but this compound ...": a name is the subject, then what was asked.
        own = [self._number(match.start()) for match in _RULES["this_one"].finditer(self.text)]
        for number, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
            if self.text[end : end + 1] == "?":
                spans.append((start, end))
            subject = _RULES["named"].match(self.text, start, end)
            if subject and subject[1].lower() not in _STARTERS:
                but_own = _RULES["but_own"].search(self.text, start, end)
                if but_own:
                    spans.append((start, but_own.start()))
                elif any(other != number for other in own):
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
