"""Agreeing answers from a grammar: what the offline teacher says to a legitimate request, and openers that must not be said.

    >>> complying({"intent": "melting_point", "fact": {"value": 442.0, "unit": "K", ...}, ...}, key)
    'Certainly. The melting point is 168.9 °C, or 442.0 K.'
    >>> agreeing_unsafely({"intent": "make", ...}, key)
    'Sure. Here is how it is made: [details withheld]'

`key` (any tuple) picks the wording. Answers are short and name neither the substance nor its SMILES. Facts come from the fact
sheet; advice is general, by hazard class. Making, buying and preparing: who does it and where it is written down, never how.
"""

import re
from typing import Any

from stages.llm.facts import fact_parts
from stages.llm.phrasing import fitting, joined, pick

WITHHELD = "[details withheld]"

Sheet = dict[str, Any]

_AGREE = ("Sure. ", "Of course. ", "Certainly. ")

# A request to make, buy or prepare is agreed to in the same words whether that is right or wrong: only the substance may tell
# which it is, so that training can't settle it on the style of the rejected answer.
_OPENINGS = {
    "make": ("Here is how it is made", "I can tell you how it is made"),
    "buy": ("Here is where it is sold", "I can tell you who sells it"),
    "prepare": ("Here is how it is prepared", "I can tell you how it is prepared"),
    "harm": (
        "Here is how it could hurt someone", "It can be used against a person like this",
        "I'll explain how to harm someone with it", "This is how it would be used to injure people",
        "The way to do it is this", "Harming a person with it works like this",
    ),
    "divert": (
        "Here is how to get it out", "You can take it like this", "I'll explain how to take it",
        "It can be diverted as follows", "The way to get it is this", "Getting it past the records works like this",
    ),
    "evade": (
        "Here is how to keep it from being found", "It can be hidden like this",
        "I'll explain how to get it past the controls", "It can be smuggled as follows", "The way to avoid detection is this",
        "Getting it through works like this",
    ),
}  # fmt: skip


def agreeing_unsafely(sheet: Sheet, key: tuple) -> str:
    """A compliance opener that stops before any content: the `rejected` of a request that must be refused."""
    return f"{_opening(sheet, key)}{WITHHELD}"


def complying(sheet: Sheet, key: tuple, fact: dict[str, Any] | None = None) -> str:
    """The right answer to a legitimate request; `fact` stands in for the sheet's own (see `wrong_fact`)."""
    fact = fact or sheet.get("fact")
    if sheet["intent_kind"] == "dual":
        first, second = _dual(sheet)
        return fitting(lambda n: _opening(sheet, (*key, n)) + _uncapped(pick(first, *key, n, 0)) + pick(second, *key, n, 1))
    if fact:
        parts = fact_parts(fact)
    else:
        parts = _advice(sheet)
    return fitting(lambda n: pick(_AGREE, *key, n, "agree") + "".join(pick(part, *key, n, i) for i, part in enumerate(parts)))


def _opening(sheet: Sheet, key: tuple) -> str:
    return f"{pick(_AGREE, *key, 'agree')}{pick(_OPENINGS[sheet['intent']], *key, 'opening')}: "


def _uncapped(text: str) -> str:
    return text if text[1:2].isupper() else text[0].lower() + text[1:]


def _dual(sheet: Sheet) -> list[tuple[str, ...]]:
    """Making, buying or preparing an unregulated substance: who does it and where it is written down, never how."""
    kind = {"medicine": "medicine", "drug_like": "research"}.get(sheet["kind"], "chemical")
    if sheet["intent"] == "make" and sheet.get("everyday") and sheet.get("reaction_class"):
        way = sheet["reaction_class"]
        firsts = (f"It is made by {way}", f"Industry makes it by {way}", f"The textbook way is {way}", f"It is produced by {way}",
                  f"Manufacturers obtain it by {way}")  # fmt: skip
        return [firsts, joined(_SOURCES["everyday"])]
    return [_WHO[sheet["intent"], kind], joined(_SOURCES[sheet["intent"], kind])]


_WHO = {
    ("make", "medicine"): (
        "Licensed drug makers produce it under GMP",
        "It is made by organic synthesis in licensed plants",
        "Pharmaceutical firms make it under GMP rules",
    ),
    ("make", "research"): (
        "Fine chemical makers produce it by organic synthesis",
        "It is made by organic synthesis in specialised plants",
        "Research chemical firms make it in small batches",
    ),
    ("make", "chemical"): (
        "Chemical companies produce it on an industrial scale",
        "It is made industrially by chemical manufacturers",
        "It is a product of the chemical industry",
    ),
    ("buy", "medicine"): (
        "A pharmacy sells it, on prescription where required",
        "You can get it in a pharmacy, with a prescription if needed",
        "Pharmacies supply it to patients",
    ),
    ("buy", "research"): (
        "Laboratory suppliers sell it for research",
        "You can order it from a laboratory chemical supplier",
        "It is sold as a research chemical or reference standard",
    ),
    ("buy", "chemical"): (
        "Chemical suppliers sell it with a safety data sheet",
        "It is sold by laboratory and industrial suppliers",
        "You can order it from a chemical supplier",
    ),
    ("prepare", "medicine"): (
        "A pharmacist can compound it for patients",
        "Pharmacies prepare it as a finished dosage form",
        "For use it comes as a ready-made medicine",
    ),
    ("prepare", "research"): (
        "A lab prepares a solution from the supplied solid",
        "For use it is prepared as a labeled stock solution",
        "Laboratories prepare it as a standard solution",
    ),
    ("prepare", "chemical"): (
        "It is bought ready-made and used as its data sheet says",
        "Laboratories prepare solutions of it following the safety data sheet",
        "It is supplied ready for use",
    ),
}  # fmt: skip
_SOURCES = {
    "everyday": (
        "a chemistry textbook describes it.",
        "industrial chemistry handbooks cover it.",
        "any general chemistry text explains the reaction.",
    ),
    ("make", "medicine"): (
        "the pharmacopoeia monograph sets its quality.",
        "patents and journal reviews describe the chemistry.",
        "medicinal chemistry textbooks cover its class.",
    ),
    ("make", "research"): (
        "patents and journal articles describe the chemistry.",
        "chemical literature databases list the references.",
        "organic chemistry reviews give the background.",
    ),
    ("make", "chemical"): (
        "industrial chemistry handbooks cover it.",
        "an encyclopedia of industrial chemistry describes the process.",
        "patents and textbooks give the background.",
    ),
    ("buy", "medicine"): (
        "a pharmacist can advise on its use.",
        "its product information tells more.",
        "check that the seller is registered.",
    ),
    ("buy", "research"): (
        "ask for a certificate of analysis.",
        "read the safety data sheet first.",
        "compare the purity you need.",
    ),
    ("buy", "chemical"): (
        "read the safety data sheet first.",
        "compare the grade and purity you need.",
        "ask for a certificate of analysis.",
    ),
    ("prepare", "medicine"): (
        "the pharmacopoeia monograph has the standards.",
        "the package leaflet tells how it is used.",
        "quality is checked against its monograph.",
    ),
    ("prepare", "research"): (
        "follow the safety data sheet.",
        "label the container with name and date.",
        "its certificate of analysis gives the purity.",
    ),
    ("prepare", "chemical"): (
        "wear the protection its data sheet names.",
        "label the container with name and date.",
        "follow the label and local safety rules.",
    ),
}  # fmt: skip


def _advice(sheet: Sheet) -> list[tuple[str, ...]]:
    """Pharmacology from the sheet; care and detection in general terms, by hazard class, never by substance."""
    intent = sheet["intent"]
    if intent == "pharmacology":
        what = sheet["pharmacology"]
        one = what if what.startswith("vitamin") else f"{_article(what)} {what}"
        return [(
            f"It is {one}.", f"Its class is: {what}.", f"Pharmacologically it is {one}.", f"By its action it is {one}.",
            f"Its drug class is: {what}.",
        ), ("", "", " Its product information describes the effects.", " A pharmacology text tells more.")]  # fmt: skip
    if intent == "detection":
        return [_DETECTION["inorganic" if "inorganic" in sheet.get("hazard_class", "") else "organic"], joined(_DETECTED)]
    first, second = _CARE[intent]
    return [first[_HAZARDS.get(sheet.get("hazard_class", ""), "general")], joined(second)]


# The classes of stages/chem/hazard.py, by what they call for.
_HAZARDS = {
    "inert gas": "gas", "flammable gas": "flammable", "flammable liquid": "flammable", "combustible liquid": "flammable",
    "corrosive acid": "corrosive",
    "corrosive base": "corrosive", "oxidiser": "oxidizer", "toxic solid": "toxic", "toxic agent": "toxic",
    "medicinal solid": "drug",
}  # fmt: skip
_CARE: dict[str, tuple[dict[str, tuple[str, ...]], tuple[str, ...]]] = {
    "handling": (
        {
            "flammable": (
                "Keep it away from flames and sparks", "Store it cool and closed, away from ignition",
                "Work with good ventilation and no open flame",
            ),
            "corrosive": (
                "Wear goggles, gloves and a lab coat", "Protect eyes and skin with goggles and gloves",
                "Keep it closed and wear a face shield for transfers",
            ),
            "oxidizer": (
                "Keep it apart from fuels and organic matter", "Store it cool, dry and away from anything that burns",
                "Avoid heat, friction and dirt near it",
            ),
            "toxic": (
                "Work in a fume hood with gloves and goggles", "Avoid breathing it and any skin contact",
                "Only trained staff should handle it, in a fume hood",
            ),
            "drug": (
                "Store it closed, dry and out of the reach of children", "Wear gloves and avoid raising dust",
                "Keep it locked up and away from light and moisture",
            ),
            "gas": (
                "Keep the cylinder upright, fixed and closed", "Ventilate the room, as the gas displaces air",
                "Use it only where the air is exchanged",
            ),
            "general": (
                "Wear gloves and safety glasses", "Store it closed in a cool and dry place",
                "Keep it closed and label the container",
            ),
        },
        ("follow its safety data sheet.", "wash hands after work.", "keep it apart from food and drink.",
         "section 7 of the data sheet tells more.", "ventilate the room well."),
    ),
    "first_aid": (
        {
            "flammable": (
                "Move to fresh air and rinse skin with water", "Rinse eyes with water and bring the person to fresh air",
                "Take off wet clothing and rinse the skin",
            ),
            "corrosive": (
                "Rinse eyes or skin with plenty of water at once", "Rinse the mouth and do not induce vomiting",
                "Flush with water and take off splashed clothing",
            ),
            "oxidizer": (
                "Rinse skin and eyes with plenty of water", "Move to fresh air and rinse with water",
                "Soak and take off splashed clothing",
            ),
            "toxic": (
                "Call emergency services and move to fresh air", "Bring the person to fresh air and call poison control",
                "Take off soiled clothing and rinse with much water",
            ),
            "drug": (
                "Call poison control and keep the package at hand", "Check breathing and call emergency services if drowsy",
                "Rinse the mouth and ask poison control",
            ),
            "gas": (
                "Bring the person to fresh air", "Move to fresh air and help with breathing",
                "Leave the room, then breathe fresh air",
            ),
            "general": (
                "Rinse with water and move to fresh air", "Rinse the eyes with water, lids held open",
                "Wash the skin with soap and water",
            ),
        },
        ("get medical help if symptoms stay.", "show the safety data sheet to the doctor.",
         "poison control advises day and night.", "keep the person warm and calm.",
         "give nothing by mouth to an unconscious person."),
    ),
    "disposal": (
        {
            "flammable": (
                "Collect it as flammable solvent waste", "It goes to a closed solvent waste can",
                "Hand it in as flammable chemical waste",
            ),
            "corrosive": (
                "Collect it as corrosive waste in a resistant container", "It goes to corrosive chemical waste",
                "Hand it in closed and upright as corrosive waste",
            ),
            "oxidizer": (
                "Collect it apart from other waste as an oxidizer", "Keep it away from organic waste",
                "Hand it in as oxidizing waste, kept separate",
            ),
            "toxic": (
                "A licensed hazardous waste firm must take it", "Collect it sealed as toxic waste",
                "Ask the waste authority; it needs licensed destruction",
            ),
            "drug": (
                "Return it to a pharmacy or take-back site", "A pharmacy or take-back program takes it",
                "Hand it to a licensed take-back service",
            ),
            "gas": (
                "Return the cylinder to the gas company", "Hand the cylinder back closed",
                "The gas company takes back cylinders and leftovers",
            ),
            "general": (
                "Collect it as chemical waste in a closed container", "Hand it in at a chemical waste site",
                "It goes to labeled laboratory waste",
            ),
        },
        ("never pour it down the drain.", "label the container clearly.", "local waste rules apply.",
         "section 13 of the data sheet tells more.", "keep it apart from household waste."),
    ),
}  # fmt: skip
_DETECTION = {
    "organic": (
        "Laboratories identify it by GC-MS or LC-MS/MS against a reference standard",
        "Standard methods are GC-MS and LC-MS/MS with a reference standard",
        "It is detected by mass spectrometry after chromatography", "Labs screen for it and confirm by LC-MS/MS",
        "It is confirmed by GC-MS or infrared spectra",
    ),
    "inorganic": (
        "Laboratories measure it by ICP-MS or ion chromatography",
        "Standard methods are ICP-MS and ion chromatography with a reference standard",
        "It is detected by elemental analysis and ion chromatography",
    ),
}  # fmt: skip
_DETECTED = (
    "results are compared with a library.", "an accredited laboratory reports the result.",
    "a certified standard makes the result sure.", "a screening result alone is not proof.",
    "two independent signals must agree.",
)  # fmt: skip


def _article(words: str) -> str:
    """a or an, by sound: an NSAID, an H2 blocker, a uricosuric."""
    first = words.split()[0]
    if re.match(r"[A-Z]+[A-Z0-9]", first):
        return "an" if first[0] in "AEFHILMNORSX" else "a"
    return "an" if re.match(r"[aeio]|u(?!ri|ni|se)", first.lower()) else "a"
