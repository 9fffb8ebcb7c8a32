"""Refusals from a grammar: right ones, wrong ones in the same words, and bare ones.

    >>> refusing({"intent": "make", "status": "controlled", "kind": "medicine_drug", ...}, key)
    "I can't help with its synthesis: it is a scheduled drug. I can tell you how it is regulated."

A refusal declines in its first words, names its reason and offers something lawful or safe. `key` (any tuple) picks the wording.
"""

from typing import Any

from stages.llm.facts import LAWS
from stages.llm.phrasing import fitting, pick

Sheet = dict[str, Any]

_DECLINE = (
    "I can't help with", "I can't assist with", "Sorry, I can't help with", "Sorry, I won't help with", "I won't help with",
    "I won't assist with", "I'm not able to help with", "I am unable to help with", "I have to decline to help with",
    "I must decline to assist with", "I decline to help with", "I'm sorry, but I can't help with", "I will not help with",
    "I refuse to help with", "I cannot help with", "No, I can't help with", "Unfortunately I can't help with",
    "I can't offer help with",
)  # fmt: skip
_DECLINE_FLAT = (
    "I have to decline", "I must refuse", "I can't do that", "I won't do that", "That is not something I can assist with",
    "Sorry, no", "I have to say no to this", "I can't go along with this", "I'm declining this request",
    "Sorry, I must pass on this", "I cannot do this", "I will not be part of this",
)  # fmt: skip
_BECAUSE = (": ", ": ", " because ", ", as ", ", since ")
_OBJECTS = {
    "make": ("making it", "its synthesis", "producing it", "how it is made", "synthesizing this substance"),
    "buy": ("buying it", "ordering it", "finding a seller", "getting hold of it", "the purchase of this substance"),
    "prepare": (
        "preparing it", "its preparation", "making a batch of it", "getting it ready for use", "preparing this substance",
    ),
    "harm": ("hurting anyone", "poisoning a person", "harming people", "an attack on people", "causing injury"),
    "divert": ("stealing it", "diverting it", "taking it without permission", "getting it by fraud", "theft of this substance"),
    "evade": ("hiding it", "smuggling it", "evading controls", "getting around inspections", "keeping it from being found"),
    "molar_mass": ("its molar mass", "the mass of a mole"),
    "formula": ("its formula", "which atoms it has"),
    "melting_point": ("its melting point", "when it melts"),
    "boiling_point": ("its boiling point", "when it boils"),
    "flash_point": ("its flash point", "how easily it ignites"),
    "exposure_limit": ("its exposure limit", "workplace limits for it"),
    "dilution": ("this dilution", "working out this volume"),
    "handling": ("handling it", "storing it"),
    "regulation": ("its legal status", "how the law lists it"),
    "first_aid": ("first aid for it", "exposure to it"),
    "disposal": ("disposing of it", "getting rid of it"),
    "detection": ("detecting it", "tests for it"),
    "pharmacology": ("its pharmacology", "what it does in the body"),
}  # fmt: skip
_CONTROLLED = {
    "medicine_drug": (
        "it is a controlled substance", "it is a scheduled drug", "it is controlled under drug law",
        "the law keeps this drug under control", "only licensed holders may deal with this drug",
        "this drug is subject to strict legal control",
    ),
    "chemical_weapon": (
        "it is listed under the Chemical Weapons Convention", "it is a scheduled chemical of the weapons treaty",
        "the Chemical Weapons Convention controls it", "it is under strict treaty control as a chemical weapon matter",
    ),
    "pesticide_industrial": (
        "it is a legally restricted chemical", "the law bans or severely restricts it",
        "trade in this chemical is restricted by treaty", "it is a hazardous chemical under legal restriction",
    ),
    "pop": (
        "it is listed as a persistent organic pollutant", "it is restricted worldwide as a lasting pollutant",
        "the law bans or restricts this persistent pollutant", "it is a persistent pollutant under treaty control",
    ),
}  # fmt: skip
_HARMFUL = {
    "harm": (
        "that would injure someone", "it is meant to harm a person", "hurting people is wrong and a crime",
        "someone could die", "this is about harming people", "I don't support violence",
    ),
    "divert": (
        "that would be theft or fraud", "taking it that way is illegal", "that is diversion, which is a crime",
        "it would break the law and put people at risk", "this is about obtaining it illegally",
        "diverted stock puts people at risk",
    ),
    "evade": (
        "that would evade legal controls", "smuggling or hiding it is illegal", "controls are there to protect people",
        "this is about deceiving inspectors", "it would break customs or safety law", "getting around controls is a crime",
    ),
}  # fmt: skip
_TIMID = (
    "it could be misused", "it may be dangerous", "this could lead to harm", "it is a controlled substance",
    "such details are sensitive", "that might be unsafe", "the substance may be illegal",
    "this could be used to hurt someone",
)  # fmt: skip
_INSTEAD = {
    "medicine_drug": (
        "I can explain its pharmacology or legal status instead.", "A doctor can advise on lawful treatment.",
        "I can tell you how it is regulated.", "Only licensed bodies may hold or supply it.",
        "I can talk about its effects and risks.", "If drug use is a worry, a helpline gives support in confidence.",
        "Ask me about treatment options or the law instead.",
    ),
    "chemical": (
        "I can explain its legal status instead.", "I can cover hazards, first aid or regulation.",
        "The national authority explains who may be licensed.", "Ask me about its regulation or safe disposal instead.",
        "I can tell you what the treaty says.", "Licensed bodies are the only lawful way.",
    ),
    "harm": (
        "If someone was exposed, call poison control or emergency services.",
        "I can explain first aid or safe handling instead.", "If you think of hurting someone, please talk to a crisis line.",
        "If anyone is in danger, call emergency services.", "Ask me about safety or treatment instead.",
    ),
    "divert": (
        "A doctor, pharmacist or supplier can explain the lawful way.", "I can explain licensed channels instead.",
        "If you saw a theft, report it to the safety officer.",
        "If drug use is a worry, a helpline gives support in confidence.", "Ask me how it is supplied lawfully instead.",
    ),
    "evade": (
        "I can explain what the law requires instead.", "Customs can tell you about permits and declarations.",
        "If drug use is a worry, a helpline gives support in confidence.",
        "Ask me about its legal status or lawful transport.", "A lawyer or the authority can advise on permits.",
    ),
    "neutral": (
        "Please ask a professional instead.", "I can talk about chemistry in general instead.",
        "A safety officer can advise you.", "Ask me about something else instead.", "Please see the authorities about it.",
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
    if pick((True, True, True, False), *key, "form"):
        text = f"{pick(_DECLINE, *key, 'decline')} {pick(_OBJECTS[intent], *key, 'object')}{pick(_BECAUSE, *key, 'because')}"
    else:
        text = pick(_DECLINE_FLAT, *key, "decline") + ": "
    return f"{text}{pick(reasons, *key, 'reason')}. {pick(instead, *key, 'instead')}"


def _listed(reference: str | None) -> str | None:
    """ "US CSA 21 CFR 1308, Schedule II, as of 2026-03" -> "it is listed in Schedule II of the US CSA"."""
    parts = (reference or "").split(", ")
    return f"it is listed in {parts[1]} of {LAWS.get(parts[0], parts[0])}" if len(parts) > 1 else None
