"""The legal listing an answer names (schedule, annex, table, of which law) against the one on file.

    judge_listing("Schedule II", "US CSA 21 CFR 1308", "It is in Schedule II of the US CSA.")
    -> ("correct", "schedule ii")
    judge_listing("not scheduled", "absent from every list ...", "It is unscheduled.")
    -> ("correct", "unscheduled")

A listing under another law than the fact's settles nothing, unless the fact is that no law on file
lists the substance.
"""

import re
import unicodedata
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

from stages.core.patterns import compile_patterns
from stages.judging.spelling import fix_spelling
from stages.judging.statements import FAR, Statements

_NUMERALS = {"i": "1", "ii": "2", "iii": "3", "iv": "4", "v": "5", "vi": "6"}
_NUMERALS |= {"one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
_NUMERAL = r"(iii|ii|iv|vi|i|v|\d|one|two|three|four|five|[abc](?![\w']))"
_LISTED = re.compile(
    r"\b(schedule|list|annex|anlage|appendix|table)s?[\s-]*(?:no\.? ?|number )?"
    rf"{_NUMERAL}(?:[ .]?[ab])?(?!\w)(?:\s?(-|–|to|through|and|or)\s?{_NUMERAL}(?!\w))?"
)
_SHORT = re.compile(r"\bC-?(I{1,3}|IV|V)\b(?=[\s.,;:)]|$)")  # the DEA's short form

_RULES = compile_patterns(Path(__file__).with_name("listing_patterns.txt"))
_LAW = re.compile(
    "|".join(
        f"(?P<{section.removeprefix('law_')}>{rule.pattern})"
        for section, rule in _RULES.items()
        if section.startswith("law_")
    )
)
# What a translator calls the lists of this law.
_SYNONYMS = {"de": {"schedule", "annex", "anlage", "appendix"}}
_WORDS_TEXT = """
    schedule schedules scheduled unscheduled controlled annex anlage listed regulated unregulated
"""
_WORDS = frozenset(_WORDS_TEXT.split())
_DASHES = str.maketrans({"−": "-", "–": "-", "‐": "-", "‑": "-", "’": "'"})


@dataclass(frozen=True)
class _Label:
    """A listing that a text names: kind, number as "2" or "a", law if named, and the words."""

    kind: str
    number: str
    law: str | None
    written: str


def judge_listing(target: str, law: str, answer: str) -> tuple[str, str]:
    """(verdict, the words it rests on): whether `answer` says that `law` lists it as `target`.

    `law` is the fact's method.
    """
    fact_law = _law_of(law.lower())
    stated, denied, all_denied = _listings(answer)
    targets, _, unlisted = _listings(target)
    if unlisted:
        stated = [label for label in stated if label.law != "elsewhere"]
        controlled = _is_controlled(answer)
        if stated or controlled:
            return "wrong", stated[0].written if stated else controlled
        return ("correct", all_denied[0][0]) if all_denied else ("unverifiable", "")
    if not targets:
        words = " ".join(answer.lower().split())
        named = " ".join(target.lower().split()) in words
        return ("correct", target) if named else ("unverifiable", "")

    wanted = targets[0]
    stated = [label for label in stated if _may_be(label.law, fact_law)]
    denied = [label for label in denied if _may_be(label.law, fact_law)]
    right = [label.written for label in stated if _same(label, wanted, fact_law)]
    wrong = [
        label.written
        for label in stated
        if not _same(label, wanted, fact_law) and (label.kind == wanted.kind or not right)
    ]
    against = [label.written for label in denied if _same(label, wanted, fact_law)]
    against += [words for words, named in all_denied if _may_be(named, fact_law)]
    if wrong or against:
        return "wrong", (wrong or against)[0]
    return ("correct", right[0]) if right else ("unverifiable", "")


def _may_be(law: str | None, fact_law: str | None) -> bool:
    """Whether a statement about `law` (None: no law is named) can be about the fact's law."""
    if fact_law is None or law in (None, fact_law):
        return True
    return law == "un" and fact_law.startswith("un")


def _same(label: _Label, wanted: _Label, law: str | None) -> bool:
    synonyms = _SYNONYMS.get(law if label.law == law else None, ())
    return label.number == wanted.number and (label.kind == wanted.kind or label.kind in synonyms)


def _law_of(text: str, last: bool = False) -> str | None:
    """The first (or last) law named in `text`."""
    names = [match.lastgroup for match in _LAW.finditer(text)]
    return names[-1 if last else 0] if names else None


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).translate(_DASHES)
    text = re.sub(r"[*_`]+", "", text)
    text = re.sub(r"(?<=[a-z,])\n(?=[a-z])", " ", text)
    text = _SHORT.sub(r"schedule \1", text)
    text = re.sub(r"\bU\.S\.(?:A\.)?|\bUSA?\b", "usa", text).lower()
    text = re.sub(r"\bcannot\b|\bcan't\b", "can not", text)
    text = re.sub(r"n't\b", " not", text)
    text = re.sub(r"[a-z]{6,12}", lambda word: fix_spelling(word[0], _WORDS), text)
    text = re.sub(r"[^\S\n]+", " ", text)
    return re.sub(r"\b(schedule|annex|anlage|table|list)\s?[:=]", r"\1", text)


def _is_controlled(answer: str) -> str:
    """The words that say in general that it is controlled, or nothing."""
    text = _plain(answer)
    statements = Statements(text)
    for match in _RULES["controlled"].finditer(text):
        if not statements.mentions(match.start()):
            return match[0]
    return ""


def _listings(answer: str) -> tuple[list[_Label], list[_Label], list[tuple[str, str | None]]]:
    """The listings that `answer` states, those it denies, and its denials of any listing at all.

    The last are (words, law if named).
    """
    text = _plain(answer) + " "
    statements = Statements(text)
    stated: list[_Label] = []
    denied: list[_Label] = []
    all_denied: list[tuple[str, str | None]] = []
    places = [match.span() for match in _LISTED.finditer(text)]
    begin = 0
    for clause_end in [*(end.end() for end in _RULES["clause_ends"].finditer(text)), len(text)]:
        clause, start, begin = text[begin:clause_end], begin, clause_end
        lead = re.match(r"(?:no|yes)[,.]? (?=it|this|the)", clause)
        if lead:
            clause, start = clause[lead.end() :], start + lead.end()
        if start < statements.last_correction <= clause_end:
            stated, denied, all_denied = [], [], []

        denying = False
        for match in _LISTED.finditer(clause):
            if statements.mentions(start + match.start()):
                continue
            law = _law_near(statements, places, start + match.start(), start + match.end())
            first, last = (
                _NUMERALS.get(part, part) if part else None for part in (match[2], match[4])
            )
            label = _Label(match[1], first, law, match[0])
            if _RULES["denied"].search(clause[max(0, match.start() - 100) : match.start()]):
                denying = True
                denied.append(label)
                if last:
                    all_denied.append((match[0], law))
            elif last and match[3] in ("-", "–", "to", "through"):
                continue  # "Schedules I to V" names none
            elif not _is_aside(clause, match):
                stated += [label, *([_Label(match[1], last, law, match[0])] if last else [])]

        unlisted = None if denying else _RULES["unlisted"].search(clause)
        if unlisted and not statements.mentions(start + unlisted.start()):
            all_denied.append((unlisted[0], _law_of(clause)))
    return stated, denied, all_denied


def _is_aside(clause: str, label: re.Match[str]) -> bool:
    """Whether a label is about a list in general ("Schedule II drugs are ..."), or the past."""
    before = clause[max(0, label.start() - 40) : label.start()]
    return bool(
        _RULES["in_general"].match(clause, label.end()) or _RULES["formerly"].search(before)
    )


def _law_near(
    statements: Statements, places: list[tuple[int, int]], start: int, end: int
) -> str | None:
    """The law that the label at start:end belongs to.

    It is named right after the label, or else before it, between the labels on either side.
    """
    begin, stop = statements.sentence(start)
    i = bisect_left(places, (start,))
    if i and places[i - 1][1] > begin:
        begin = places[i - 1][1]
    after = statements.text[end:stop]
    if i + 1 < len(places) and places[i + 1][0] < stop:
        # What follows an "and" belongs to the next label.
        after = re.split(r"\band\b|,|\bwhile\b", statements.text[end : places[i + 1][0]])[0]
    before = statements.text[max(begin, start - FAR) : start]
    return _law_of(after[:FAR]) or _law_of(before, last=True)
