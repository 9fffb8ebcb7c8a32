"""The legal listing an answer names (schedule, annex, table, of which law), compared with the one on file.

    judge_listing("Schedule II", "US CSA 21 CFR 1308", "It is in Schedule II of the US CSA.")    # ("correct", "schedule ii")
    judge_listing("not scheduled", "absent from every list ...", "It is unscheduled.")           # ("correct", "unscheduled")

A listing under another law than the fact's settles nothing, unless the fact is that no law on file lists it. Reads texts, writes nothing.
"""

import re
import unicodedata
from bisect import bisect_left
from dataclasses import dataclass

from stages.judging.statements import FAR, Statements, mended

_NUMERALS = {"i": "1", "ii": "2", "iii": "3", "iv": "4", "v": "5", "vi": "6"}
_NUMERALS |= {"one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
_NUMERAL = r"(iii|ii|iv|vi|i|v|\d|one|two|three|four|five|[abc](?![\w']))"
_LISTED = re.compile(
    rf"\b(schedule|list|annex|anlage|appendix|table)s?[\s-]*(?:no\.? ?|number )?{_NUMERAL}(?:[ .]?[ab])?(?!\w)"
    rf"(?:\s?(-|–|to|through|and|or)\s?{_NUMERAL}(?!\w))?"
)
_SHORT = re.compile(r"\bC-?(I{1,3}|IV|V)\b(?=[\s.,;:)]|$)")  # the DEA's short form
_LAWS = {
    "us": r"\bcsa\b|controlled substances? act|21 cfr|\bdea\b|united states|america\w*|\bfederal\w*|\busa\b|\bu\.s\.",
    "de": r"\bbtmg\b|german\w*|bet(?:ä|ae)ubungsmittel\w*",
    "cwc": r"\bcwc\b|chemical weapons? convention|\bopcw\b",
    "un1961": r"\bun 1961\b|\b1961\b|single convention",
    "un1971": r"\bun 1971\b|\b1971\b|convention on psychotropic",
    "un1988": r"\bun 1988\b|\b1988\b",
    "un": r"\bun\b|united nations",
    "stockholm": r"stockholm",
    "rotterdam": r"rotterdam",
    "eu": r"2019/1148|explosives? precursors? regulation",
    "elsewhere": r"\buk\b|united kingdom|\bbrit\w+|canad\w*|austral\w*|japan\w*|french|france|misuse of drugs|swiss|switzerland|\bindian?\b"
    r"|chin(?:a|ese)",
}  # fmt: skip
_LAW = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _LAWS.items()))
_KIN = {
    "de": {"schedule", "annex", "anlage", "appendix"}
}  # what a translator calls the lists of this law
_WORDS = frozenset(
    ["schedule", "schedules", "scheduled", "unscheduled", "controlled", "annex", "anlage", "listed", "regulated", "unregulated"]
)
_DENIED = re.compile(
    r"(?:\b(?:not|never|nor|neither|none|no|any of|unlike)\b(?: (?!as\b|because\b|since\b|so\b|but\b|sure\b|certain\b|clear\b|known\b"
    r"|without\b|and (?:is|it|was|has)\b)[\w-]+){0,6}? (?:the |us |csa |federal )*)$|^(?:rather than|instead of) "
)
_UNLISTED = re.compile(
    r"\b(?:not|never|nor|no longer)\b(?: (?!sure\b|certain\b|clear\b|known\b|only\b)[\w-]+){0,4}? (?:scheduled?|controlled|listed|regulated"
    r"|restricted|under (?:any )?(?:schedules?|control)|(?:any|a|the) (?:\w+ )?(?:schedules?|lists?))\b"
    r"|\bno (?:[\w-]+ ){0,2}(?:schedul\w+|listing|control|controls)\b"
    r"|\bnot (?:list|include|name|cover|control|schedule|regulate) (?:it|this)\b"
    r"|\bnot (?:[\w-]+ ){0,2}?(?:covered|subject|included|named|found|appear\w*)\b"
    r"(?=.{0,40}\b(?:schedul|list|control|annex|btmg|cwc|csa|convention))|\bunscheduled\b|\buncontrolled\b|\bunregulated\b"
    r"|\bnon-?(?:scheduled|controlled)\b"
    r"|\b(?:free of|exempt from|outside|without|none of the|absent from (?:the|all|any|every)) (?:\w+ )?(?:schedul\w+|controls?|lists?)\b"
)
_CONTROLLED = re.compile(
    r"\bis (?:an? )?(?!not\b)(?:\w+ly )?(?:controlled|scheduled|illegal|banned)\b"
)
_CLAUSE = re.compile(
    r"[.;!?:]\s|\n|,?\s+but\s+|,\s*(?=not\b|nor\b|rather\b)|\s+(?=rather than\b|instead of\b)"
)
_IN_GENERAL = re.compile(
    r"\s(?:drugs|substances|chemicals|medicines|compounds)? ?\b(?:are|have|include|means?|covers?|contains?|needs?)\b"
)
_FROM = re.compile(r"\b(?:from|formerly|previously|used to be|once|was)\b(?: [\w-]+){0,2} $")


@dataclass(frozen=True)
class _Label:
    """A listing that a text names: its kind, its number as "2" or "a", the law it is said of (None where none is) and the words."""

    kind: str
    number: str
    law: str | None
    written: str


def judge_listing(target: str, law: str, answer: str) -> tuple[str, str]:
    """(verdict, the words it rests on): whether `answer` says that `law` (the fact's method) lists it as `target`."""
    here = _law_of(law.lower())
    said, denied, all_denied = _listings(answer)
    wanted, _, unlisted = _listings(target)
    if unlisted:
        said = [label for label in said if label.law != "elsewhere"]
        controlled = _is_controlled(answer)
        if said or controlled:
            return "wrong", said[0].written if said else controlled
        return ("correct", all_denied[0][0]) if all_denied else ("unverifiable", "")
    if not wanted:
        words = " ".join(answer.lower().split())
        return (
            ("correct", target)
            if " ".join(target.lower().split()) in words
            else ("unverifiable", "")
        )
    label = wanted[0]
    said, denied = ([one for one in labels if _may_be(one.law, here)] for labels in (said, denied))
    right = [one.written for one in said if _same(one, label, here)]
    wrong = [
        one.written
        for one in said
        if not _same(one, label, here) and (one.kind == label.kind or not right)
    ]
    against = [one.written for one in denied if _same(one, label, here)]
    against += [words for words, of in all_denied if _may_be(of, here)]
    if wrong or against:
        return "wrong", (wrong or against)[0]
    return ("correct", right[0]) if right else ("unverifiable", "")


def _may_be(law: str | None, here: str | None) -> bool:
    """Whether what is said of `law` may be said of `here`, the fact's law; None is a law that isn't named."""
    return here is None or law in (None, here) or law == "un" and here.startswith("un")


def _same(found: _Label, wanted: _Label, law: str | None) -> bool:
    return found.number == wanted.number and (
        found.kind == wanted.kind or found.kind in _KIN.get(law if found.law == law else None, ())
    )


def _law_of(text: str, last: bool = False) -> str | None:
    """The first (or last) law named in `text`."""
    names = [found.lastgroup for found in _LAW.finditer(text)]
    return names[-1 if last else 0] if names else None


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).translate(
        str.maketrans({"−": "-", "–": "-", "‐": "-", "‑": "-", "’": "'"})
    )
    text = re.sub(r"[*_`]+", "", text)
    text = re.sub(r"(?<=[a-z,])\n(?=[a-z])", " ", text)
    text = _SHORT.sub(lambda found: f"schedule {found[1]}", text)
    text = re.sub(r"\bU\.S\.(?:A\.)?|\bUSA?\b", "usa", text).lower()
    text = re.sub(r"\bcannot\b|\bcan't\b", "can not", text)
    text = re.sub(
        r"[a-z]{6,12}", lambda word: mended(word[0], _WORDS), re.sub(r"n't\b", " not", text)
    )
    return re.sub(
        r"\b(schedule|annex|anlage|table|list)\s?[:=]", r"\1", re.sub(r"[^\S\n]+", " ", text)
    )


def _is_controlled(answer: str) -> str:
    """The words that say in general that it is controlled, or nothing."""
    text = _plain(answer)
    statements = Statements(text)
    found = next(
        (one for one in _CONTROLLED.finditer(text) if not statements.mentions(one.start())), None
    )
    return found[0] if found else ""


def _listings(answer: str) -> tuple[list[_Label], list[_Label], list[tuple[str, str | None]]]:
    """What `answer` says of listings: (those it names, those it denies, its words and the law where it denies any listing at all)."""
    text = _plain(answer) + " "
    statements = Statements(text)
    said: list[_Label] = []
    denied: list[_Label] = []
    all_denied: list[tuple[str, str | None]] = []
    places = [found.span() for found in _LISTED.finditer(text)]
    begin = 0
    for clause_end in [*(found.end() for found in _CLAUSE.finditer(text)), len(text)]:
        clause, start, begin = text[begin:clause_end], begin, clause_end
        lead = re.match(r"(?:no|yes)[,.]? (?=it|this|the)", clause)
        if lead:
            clause, start = clause[lead.end() :], start + lead.end()
        if start < statements.corrected <= clause_end:
            said, denied, all_denied = [], [], []
        labels = list(_LISTED.finditer(clause))
        denying = False
        for match in labels:
            if statements.mentions(start + match.start()):
                continue
            law = _law_near(statements, places, start + match.start(), start + match.end())
            first, last = (
                _NUMERALS.get(part, part) if part else None for part in (match[2], match[4])
            )
            label = _Label(match[1], first, law, match[0])
            if _DENIED.search(clause[max(0, match.start() - 100) : match.start()]):
                denying = True
                denied.append(label)
                if last:
                    all_denied.append((match[0], law))
            elif last and match[3] in ("-", "–", "to", "through"):
                continue  # "Schedules I to V" names none
            elif _IN_GENERAL.match(clause, match.end()) or _FROM.search(
                clause[max(0, match.start() - 40) : match.start()]
            ):
                continue
            else:
                said += [label, *([_Label(match[1], last, law, match[0])] if last else [])]
        flat = None if denying else _UNLISTED.search(clause)
        if flat and not statements.mentions(start + flat.start()):
            all_denied.append((flat[0], _law_of(clause)))
    return said, denied, all_denied


def _law_near(
    statements: Statements, places: list[tuple[int, int]], start: int, end: int
) -> str | None:
    """The law that the label at start:end is said of: named right after it, or else before it, between the labels beside it."""
    begin, stop = statements.sentence(start)
    i = bisect_left(places, (start,))
    if i and places[i - 1][1] > begin:
        begin = places[i - 1][1]
    after = statements.text[end:stop]
    if (
        i + 1 < len(places) and places[i + 1][0] < stop
    ):  # what follows an "and" belongs to the next label
        after = re.split(r"\band\b|,|\bwhile\b", statements.text[end : places[i + 1][0]])[0]
    return _law_of(after[:FAR]) or _law_of(
        statements.text[max(begin, start - FAR) : start], last=True
    )
