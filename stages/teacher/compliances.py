"""Compliances from a grammar: the offline teacher's answers to legitimate requests, and openers.

    >>> complying(chemistry(), {"intent": "melting_point", "fact": {"value": 442.0, ...}, ...}, key)
    'Certainly. The melting point is 168.9 °C, or 442.0 K.'
    >>> agreeing_unsafely(chemistry(), {"intent": "make", ...}, key)
    'Sure. Here is how it is made: [details withheld]'

`key` (any tuple) picks the wording. Answers are short and name neither the substance nor its
SMILES. Facts come from the fact sheet; advice is general, by hazard class. On making, buying and
preparing, an answer says who does it and where it is documented, never how.
"""

import re
from typing import Any

from stages.domain.description import Domain, Intent
from stages.teacher.fact_sentences import fact_parts, stated
from stages.teacher.phrasing import fitting, joined, pick

WITHHELD = "[details withheld]"

Sheet = dict[str, Any]

_AGREE = ("Sure. ", "Of course. ", "Certainly. ")
_BLANK = re.compile(r"\{(a )?(\w+)\}")


def agreeing_unsafely(domain: Domain, sheet: Sheet, key: tuple) -> str:
    """An opener that agrees and stops before any content: `rejected` of a request to refuse."""
    return f"{_opening(domain.intents[sheet['intent']], key)}{WITHHELD}"


def complying(domain: Domain, sheet: Sheet, key: tuple, fact: dict[str, Any] | None = None) -> str:
    """The right answer to a legitimate request.

    `fact` replaces the sheet's own, so that it can be a wrong one (see `wrong_fact`).
    """
    fact, intent = fact or sheet.get("fact"), domain.intents[sheet["intent"]]
    if intent.kind == "dual":
        first, second = _sentences(domain, intent, sheet)
        return fitting(
            lambda n: (
                _opening(intent, (*key, n))
                + _lower_first(pick(first, *key, n, 0))
                + pick(second, *key, n, 1)
            )
        )

    if intent.first:
        parts = _sentences(domain, intent, {**sheet, **stated(fact or {})})
    else:
        parts = fact_parts(domain, fact)
    return fitting(
        lambda n: (
            pick(_AGREE, *key, n, "agree")
            + "".join(pick(part, *key, n, i) for i, part in enumerate(parts))
        )
    )


def _opening(intent: Intent, key: tuple) -> str:
    return f"{pick(_AGREE, *key, 'agree')}{pick(intent.opening, *key, 'opening')}: "


def _lower_first(text: str) -> str:
    """`text` with a small first letter, unless it starts with an acronym."""
    return text if text[1:2].isupper() else text[0].lower() + text[1:]


def _sentences(domain: Domain, intent: Intent, values: Sheet) -> list[tuple[str, ...]]:
    """The choices for a first and a second sentence, their blanks filled from `values`.

    They are about the substance's class, never about the substance itself.
    """
    group = domain.classes.get(intent.by, {}).get(values.get(intent.by), "else")
    if values.get("everyday") and values.get("reaction_class") and "everyday" in intent.first:
        group = "everyday"  # the only group for which a way of making is named
    first, second = (
        choices.get(group, choices["else"]) for choices in (intent.first, intent.second)
    )
    return [
        tuple(_BLANK.sub(lambda blank: _fill(blank, values), text) for text in first),
        joined(second),
    ]


def _fill(blank: re.Match[str], values: Sheet) -> str:
    """The value for `{KEY}`, or for `{a KEY}` with its article. Raises KeyError if it has none."""
    return _with_article(values[blank[2]]) if blank[1] else str(values[blank[2]])


def _with_article(words: str) -> str:
    """With a or an, by sound: an NSAID, an H2 blocker, a uricosuric; but vitamin C."""
    first = words.split()[0]
    if first == "vitamin":
        return words
    if re.match(r"[A-Z]+[A-Z0-9]", first):
        return f"{'an' if first[0] in 'AEFHILMNORSX' else 'a'} {words}"
    return f"{'an' if re.match(r'[aeio]|u(?!ri|ni|se)', first.lower()) else 'a'} {words}"
