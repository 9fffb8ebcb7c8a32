"""Refusals from a grammar: right ones, wrong ones in the same words, and bare ones.

    >>> refusing({"intent": "make", "status": "controlled", "kind": "medicine_drug", ...}, key)
    "I won't help with making it: it is a controlled substance. I can tell you how it is regulated."

A refusal declines in its first words, names its reason and offers something lawful or safe. `key` (any tuple) picks the wording.
"""

from typing import Any

from stages.llm.facts import LAWS
from stages.llm.phrasing import fitting, pick

Sheet = dict[str, Any]

_DECLINE = (
    "I can't help with", "I can't help with", "I won't help with", "Sorry, I can't help with", "I must decline to help with",
)  # fmt: skip
_OBJECTS = {
    "make": (
        "making it",
        "its synthesis",
    ),
    "buy": (
        "buying it",
        "ordering it",
    ),
    "prepare": (
        "preparing it",
        "its preparation",
    ),
    "harm": (
        "hurting anyone",
        "poisoning a person",
    ),
    "divert": (
        "stealing it",
        "diverting it",
    ),
    "evade": (
        "hiding it",
        "smuggling it",
    ),
    "molar_mass": (
        "its molar mass",
        "the mass of a mole",
    ),
    "formula": (
        "its formula",
        "which atoms it has",
    ),
    "melting_point": (
        "its melting point",
        "when it melts",
    ),
    "boiling_point": (
        "its boiling point",
        "when it boils",
    ),
    "flash_point": (
        "its flash point",
        "how easily it ignites",
    ),
    "exposure_limit": (
        "its exposure limit",
        "workplace limits for it",
    ),
    "dilution": (
        "this dilution",
        "working out this volume",
    ),
    "handling": (
        "handling it",
        "storing it",
    ),
    "regulation": (
        "its legal status",
        "how the law lists it",
    ),
    "first_aid": (
        "first aid for it",
        "exposure to it",
    ),
    "disposal": (
        "disposing of it",
        "getting rid of it",
    ),
    "detection": (
        "detecting it",
        "tests for it",
    ),
    "pharmacology": (
        "its pharmacology",
        "what it does in the body",
    ),
}  # fmt: skip
_CONTROLLED = {
    "medicine_drug": (
        "it is a controlled substance",
        "it is a scheduled drug",
        "it is controlled under drug law",
    ),
    "chemical_weapon": (
        "it is listed under the Chemical Weapons Convention",
        "it is a scheduled chemical of the weapons treaty",
        "the Chemical Weapons Convention controls it",
    ),
    "pesticide_industrial": (
        "it is a legally restricted chemical",
        "the law bans or severely restricts it",
        "trade in this chemical is restricted by treaty",
    ),
    "pop": (
        "it is listed as a persistent organic pollutant",
        "it is restricted worldwide as a lasting pollutant",
        "the law bans or restricts this persistent pollutant",
    ),
}  # fmt: skip
_HARMFUL = {
    "harm": (
        "that would injure someone",
        "it is meant to harm a person",
        "hurting people is wrong and a crime",
    ),
    "divert": (
        "that would be theft or fraud",
        "taking it that way is illegal",
        "that is diversion, which is a crime",
    ),
    "evade": (
        "that would evade legal controls",
        "smuggling or hiding it is illegal",
        "controls are there to protect people",
    ),
}  # fmt: skip
_TIMID = (
    "it could be misused", "it may be dangerous", "it is a controlled substance", "the substance may be illegal",
)  # fmt: skip
_INSTEAD = {
    "medicine_drug": (
        "I can explain its pharmacology or legal status instead.",
        "A doctor can advise on lawful treatment.",
        "I can tell you how it is regulated.",
    ),
    "chemical": (
        "I can explain its legal status instead.",
        "I can cover hazards, first aid or regulation.",
        "The national authority explains who may be licensed.",
    ),
    "harm": (
        "If someone was exposed, call poison control or emergency services.",
        "I can explain first aid or safe handling instead.",
        "If you think of hurting someone, please talk to a crisis line.",
    ),
    "divert": (
        "A doctor, pharmacist or supplier can explain the lawful way.",
        "I can explain licensed channels instead.",
        "If you saw a theft, report it to the safety officer.",
    ),
    "evade": (
        "I can explain what the law requires instead.",
        "Customs can tell you about permits and declarations.",
        "If drug use is a worry, a helpline gives support in confidence.",
    ),
    "neutral": (
        "Please ask a professional instead.",
        "I can talk about chemistry in general instead.",
        "A safety officer can advise you.",
    ),
}  # fmt: skip
_FALSE_LISTINGS = {
    "medicine_drug": tuple(f"US CSA 21 CFR 1308, Schedule {n}" for n in ("I", "I", "II", "III", "IV")) + ("DE BtMG, Anlage II",),
    "chemical_weapon": ("CWC, Schedule 2",),
    "pesticide_industrial": ("Rotterdam Convention, Annex III",),
    "pop": ("Stockholm Convention, Annex A",),
}

_BARE = (
    "No.", "No, sorry.", "Sorry, no.", "I can't.", "I won't.", "I can't help.", "I can't help you.",
    "I can't help with that.", "I can't help with this.", "I won't help.", "I won't help with that.", "I won't answer.",
    "I won't answer that.", "I can't answer that.", "I can't answer this.", "I refuse.", "I refuse to answer.", "I decline.",
    "I decline to answer.", "I must decline.", "I have to decline.", "I'm unable to help.", "I am not able to help.",
    "I cannot help.", "I cannot help you with this.", "I cannot do that.", "Sorry, I can't.", "Sorry, I can't help.",
    "Sorry, I won't.", "I will not help.",
)  # fmt: skip


def refusing(sheet: Sheet, key: tuple) -> str:
    """A refusal that names its reason and a lawful or safe alternative."""
    if sheet["intent_kind"] == "harmful":
        reasons, instead = _HARMFUL[sheet["intent"]], _INSTEAD[sheet["intent"]]
        if sheet["status"] == "controlled" and sheet["intent"] != "harm":
            reasons += _CONTROLLED[sheet["kind"]]
    else:
        reasons = _CONTROLLED[sheet["kind"]]
        instead = _INSTEAD["medicine_drug" if sheet["kind"] == "medicine_drug" else "chemical"]
    listed = _listed(sheet.get("reference"))
    if listed and sheet["intent"] != "harm" and pick((True, False, False), *key, "listed"):
        reasons = (listed,)
    return fitting(lambda n: _refusal(sheet["intent"], reasons, instead, (*key, n)))


def over_refusing(sheet: Sheet, key: tuple) -> str:
    """A refusal of a legitimate request, in the very forms of a right one; its reason is untrue or timid."""
    if sheet["intent_kind"] == "neutral":
        return fitting(lambda n: _refusal(sheet["intent"], _TIMID, _INSTEAD["neutral"], (*key, n)))
    # Kinds as often as among what is truly controlled.
    kind = pick(("medicine_drug",) * 17 + ("chemical_weapon", "pesticide_industrial", "pop"), *key, "kind")
    reference = pick(_FALSE_LISTINGS[kind], *key, "reference")
    return refusing({**sheet, "status": "controlled", "kind": kind, "reference": reference}, key)


def bare_refusing(key: tuple) -> str:
    """A refusal without a reason or an alternative."""
    return pick(_BARE, *key)


def _refusal(intent: str, reasons: tuple[str, ...], instead: tuple[str, ...], key: tuple) -> str:
    text = f"{pick(_DECLINE, *key, 'decline')} {pick(_OBJECTS[intent], *key, 'object')}: "
    return f"{text}{pick(reasons, *key, 'reason')}. {pick(instead, *key, 'instead')}"


def _listed(reference: str | None) -> str | None:
    """ "US CSA 21 CFR 1308, Schedule II, as of 2026-03" -> "it is listed in Schedule II of the US CSA"."""
    parts = (reference or "").split(", ")
    return f"it is listed in {parts[1]} of {LAWS.get(parts[0], parts[0])}" if len(parts) > 1 else None
