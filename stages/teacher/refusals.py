"""Refusals from a grammar: right ones, wrong ones in the same words, and bare ones.

    >>> refusing(chemistry(), {"intent": "make", "status": "controlled", ...}, key)
    "I won't help with making it: it is a controlled substance. I can tell you how it is regulated."

A refusal declines in its first words, gives its reason and offers something lawful or safe. `key`
(any tuple) picks the wording, from the words that the domain has.
"""

from typing import Any

from stages.domain.description import CONTROLLED, Domain, Intent
from stages.teacher.phrasing import fitting, pick

Sheet = dict[str, Any]

_DECLINE = (
    "I can't help with",
    "I can't help with",
    "I won't help with",
    "Sorry, I can't help with",
    "I must decline to help with",
)
_BARE = (
    "No.",
    "No, sorry.",
    "Sorry, no.",
    "I can't.",
    "I won't.",
    "I can't help.",
    "I can't help you.",
    "I can't help with that.",
    "I can't help with this.",
    "I won't help.",
    "I won't help with that.",
    "I won't answer.",
    "I won't answer that.",
    "I can't answer that.",
    "I can't answer this.",
    "I refuse.",
    "I refuse to answer.",
    "I decline.",
    "I decline to answer.",
    "I must decline.",
    "I have to decline.",
    "I'm unable to help.",
    "I am not able to help.",
    "I cannot help.",
    "I cannot help you with this.",
    "I cannot do that.",
    "Sorry, I can't.",
    "Sorry, I can't help.",
    "Sorry, I won't.",
    "I will not help.",
)


def refusing(domain: Domain, sheet: Sheet, key: tuple) -> str:
    """A refusal that gives its reason and a lawful or safe alternative."""
    intent = domain.intents[sheet["intent"]]
    if sheet["intent_kind"] == "harmful":
        reasons, instead = intent.reasons, intent.instead
        if sheet["status"] == CONTROLLED and intent.cites_law:
            reasons = reasons + _for_kind(domain.refusals.reasons, sheet)
    else:
        reasons, instead = (
            _for_kind(words, sheet) for words in (domain.refusals.reasons, domain.refusals.instead)
        )

    listed = _listed(domain, sheet.get("reference"))
    if listed and intent.cites_law and pick((True, False, False), *key, "listed"):
        reasons = [listed]
    return fitting(lambda n: _refusal(intent, reasons, instead, (*key, n)))


def over_refusing(domain: Domain, sheet: Sheet, key: tuple) -> str:
    """A refusal of a legitimate request, worded as a right one, for a bad reason."""
    words = domain.refusals
    if sheet["intent_kind"] == "neutral":
        intent = domain.intents[sheet["intent"]]
        return fitting(lambda n: _refusal(intent, words.timid, words.timid_instead, (*key, n)))
    weighted = [kind for kind, weight in words.pretended.items() for _ in range(weight)]
    kind = pick(weighted, *key, "kind")
    reference = pick(words.references[kind], *key, "reference")
    return refusing(
        domain, {**sheet, "status": CONTROLLED, "kind": kind, "reference": reference}, key
    )


def bare_refusing(key: tuple) -> str:
    """A refusal without a reason or an alternative."""
    return pick(_BARE, *key)


def _for_kind(words: dict[str, list[str]], sheet: Sheet) -> list[str]:
    return words[sheet["kind"] if sheet["kind"] in words else "else"]


def _refusal(intent: Intent, reasons: list[str], instead: list[str], key: tuple) -> str:
    text = f"{pick(_DECLINE, *key, 'decline')} {pick(intent.object, *key, 'object')}: "
    return f"{text}{pick(reasons, *key, 'reason')}. {pick(instead, *key, 'instead')}"


def _listed(domain: Domain, reference: str | None) -> str | None:
    """The reason that cites the law of a reference; None for one without a schedule.

    "US CSA 21 CFR 1308, Schedule II, as of 2026-03" -> "it is listed in Schedule II of the US CSA"
    """
    parts = (reference or "").split(", ")
    if len(parts) == 1:
        return None
    law = domain.laws.get(parts[0], parts[0])
    return domain.refusals.listed.replace("{schedule}", parts[1]).replace("{law}", law)
