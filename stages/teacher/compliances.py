"""Agreeing answers from a grammar: what the offline teacher says to a legitimate request, and openers that must not be said.

    >>> complying(chemistry(), {"intent": "melting_point", "fact": {"value": 442.0, "unit": "K", ...}, ...}, key)
    'Certainly. The melting point is 168.9 °C, or 442.0 K.'
    >>> agreeing_unsafely(chemistry(), {"intent": "make", ...}, key)
    'Sure. Here is how it is made: [details withheld]'

`key` (any tuple) picks the wording. Answers are short and name neither the substance nor its SMILES. Facts come from the fact
sheet; advice is general, by hazard class. Making, buying and preparing: who does it and where it is written down, never how.
"""

import re
from typing import Any

from stages.domain.description import Domain, Intent
from stages.teacher.fact_sentences import fact_parts, stated
from stages.teacher.phrasing import fitting, joined, pick

WITHHELD = "[details withheld]"

Sheet = dict[str, Any]

_AGREE = ("Sure. ", "Of course. ", "Certainly. ")


def agreeing_unsafely(domain: Domain, sheet: Sheet, key: tuple) -> str:
    """A compliance opener that stops before any content: the `rejected` of a request that must be refused."""
    return f"{_opening(domain.intents[sheet['intent']], key)}{WITHHELD}"


def complying(domain: Domain, sheet: Sheet, key: tuple, fact: dict[str, Any] | None = None) -> str:
    """The right answer to a legitimate request; `fact` stands in for the sheet's own (see `wrong_fact`)."""
    fact, intent = fact or sheet.get("fact"), domain.intents[sheet["intent"]]
    if intent.kind == "dual":
        first, second = _told(domain, intent, sheet)
        return fitting(
            lambda n: (
                _opening(intent, (*key, n))
                + _uncapped(pick(first, *key, n, 0))
                + pick(second, *key, n, 1)
            )
        )
    parts = (
        _told(domain, intent, {**sheet, **stated(fact or {})})
        if intent.first
        else fact_parts(domain, fact)
    )
    return fitting(
        lambda n: (
            pick(_AGREE, *key, n, "agree")
            + "".join(pick(part, *key, n, i) for i, part in enumerate(parts))
        )
    )


def _opening(intent: Intent, key: tuple) -> str:
    return f"{pick(_AGREE, *key, 'agree')}{pick(intent.opening, *key, 'opening')}: "


def _uncapped(text: str) -> str:
    return text if text[1:2].isupper() else text[0].lower() + text[1:]


def _told(domain: Domain, intent: Intent, known: Sheet) -> list[tuple[str, ...]]:
    """The choices of a first and a second sentence: for the thing's class, never for the thing itself; `known` fills them in."""
    found = domain.classes.get(intent.by, {}).get(known.get(intent.by), "else")
    if known.get("everyday") and known.get("reaction_class") and "everyday" in intent.first:
        found = "everyday"  # the only class for which a way of making may be named
    first, second = (
        choices.get(found, choices["else"]) for choices in (intent.first, intent.second)
    )
    return [
        tuple(_FILLED.sub(lambda gap: _fill(gap, known), text) for text in first),
        joined(second),
    ]


_FILLED = re.compile(r"\{(a )?(\w+)\}")


def _fill(gap: re.Match[str], known: Sheet) -> str:
    """The value for `{KEY}`, or for `{a KEY}` with its article. Raises KeyError where the sheet has none."""
    return _with_article(known[gap[2]]) if gap[1] else str(known[gap[2]])


def _with_article(words: str) -> str:
    """With a or an, by sound: an NSAID, an H2 blocker, a uricosuric; but vitamin C."""
    first = words.split()[0]
    if first == "vitamin":
        return words
    if re.match(r"[A-Z]+[A-Z0-9]", first):
        return f"{'an' if first[0] in 'AEFHILMNORSX' else 'a'} {words}"
    return f"{'an' if re.match(r'[aeio]|u(?!ri|ni|se)', first.lower()) else 'a'} {words}"
