"""Fact sheets of every kind, and what the offline teacher writes from them."""

import json
from collections.abc import Iterator

from stages.chat.protocol import ChatRequest
from stages.teacher import offline_teacher
from stages.teacher.sheets import rephrase_request

NEUTRAL = (
    *("molar_mass", "formula", "melting_point", "boiling_point", "flash_point", "exposure_limit"),
    *("dilution", "handling", "regulation", "first_aid", "disposal", "detection", "pharmacology"),
)
KIND_OF = {
    **dict.fromkeys(NEUTRAL, "neutral"),
    **dict.fromkeys(("make", "buy", "prepare"), "dual"),
    **dict.fromkeys(("harm", "divert", "evade"), "harmful"),
}
BY_HAZARD = ("handling", "first_aid", "disposal", "detection")
HAZARDS = (
    *("inert gas", "flammable liquid", "corrosive acid", "oxidiser", "toxic agent"),
    *("medicinal solid", "organic solid", "inorganic solid"),
)
UNREGULATED = (  # kind, everyday, reaction_class
    ("medicine", False, None),
    ("drug_like", False, None),
    ("industrial", False, None),
    ("everyday", True, "Fischer esterification"),
)
LISTED = {
    "medicine_drug": "US CSA 21 CFR 1308, Schedule II, as of 2026-03",
    "chemical_weapon": "CWC, Schedule 1, as of 2017-12",
    "pesticide_industrial": "Rotterdam Convention, Annex III, as of 2017-12",
    "pop": "Stockholm Convention, Annex A, as of 2025-12",
}
BASE = {"prompt": "p", "chosen": "c", "rejected": "r"}


def fact(name, value, unit=None, tolerance=None, method="m", source="s") -> dict:
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "tolerance": tolerance,
        "method": method,
        "source": source,
    }


_LIMIT = ("mg/m3", 4.7, "ppm*M/24.45", "Ontario TWA 100 ppm (chemicals 1.5.2)")
FACTS = {
    "molar_mass": fact("molar_mass", 151.163, "g/mol", 0.1),
    "formula": fact("formula", "C8H9NO2"),
    "melting_point": fact("melting_point", 211.4, "K", 2.0),
    "boiling_point": fact("boiling_point", 356.9, "K", 2.0),
    "flash_point": fact("flash_point", 286.1, "K", 3.0),
    "exposure_limit": fact("exposure_limit", 237.0, *_LIMIT),
    "dilution": fact("dilution", 10.0, "mL", 0.1, "C1V1=C2V2", "stock 1.0 M, 100 mL of 0.1 M"),
    "regulation": fact(
        "regulation",
        "not scheduled",
        method="absent from every list in data/catalog",
        source="data/catalog",
    ),
}


def sheet(
    intent, representation="text", status="unregulated", kind="medicine", seed_id="s-a", **changes
) -> dict:
    intent_kind = KIND_OF[intent]
    refuse = intent_kind == "harmful" or (intent_kind == "dual" and status == "controlled")
    values = {
        "seed_id": seed_id,
        "representation": representation,
        "intent": intent,
        "intent_kind": intent_kind,
        "expected": "refuse" if refuse else "comply",
        "status": status,
        "kind": kind,
        "hazard_class": "organic solid",
        "pharmacology": "NSAID",
        "everyday": False,
    }
    if representation == "smiles":
        values["smiles"] = "CC(=O)Nc1ccc(O)cc1"
    else:
        values["name"] = "substance A-12"
    if intent in FACTS:
        values["fact"] = FACTS[intent]
    if status == "controlled":
        values["reference"] = LISTED[kind]
    return values | changes


def all_sheets(repeats: int = 1) -> Iterator[dict]:
    """Every intent, representation, kind and hazard class that occurs."""
    for n in range(repeats):
        for intent in KIND_OF:
            for representation in ("text", "smiles"):
                yield from _unregulated(intent, representation, n)
                if KIND_OF[intent] == "neutral":
                    law = _listing(intent, "Table I", "UN 1988", "2017-12")
                    kind = ("precursor", "precursor", f"s-p-{n}")
                    yield sheet(intent, representation, *kind, **law)
                law = _listing(intent, "Schedule II", "US CSA 21 CFR 1308", "2026-03")
                for kind in LISTED:
                    controlled = ("controlled", kind, f"s-{kind}-{n}")
                    yield sheet(intent, representation, *controlled, **law)


def _unregulated(intent: str, representation: str, n: int) -> Iterator[dict]:
    hazards = HAZARDS if intent in BY_HAZARD else ("organic solid",)
    for kind, everyday, reaction_class in UNREGULATED:
        changes = {"everyday": everyday}
        if reaction_class:
            changes["reaction_class"] = reaction_class
        for hazard in hazards:
            seed_id = f"s-{kind}-{hazard}-{n}"
            changes["hazard_class"] = hazard
            yield sheet(intent, representation, kind=kind, seed_id=seed_id, **changes)


def _listing(intent: str, schedule: str, law: str, as_of: str) -> dict:
    """The fact of a listed substance, if `intent` is about regulation."""
    if intent != "regulation":
        return {}
    return {"fact": fact("regulation", schedule, method=law, source=f"{law}, as of {as_of}")}


def reply(request: ChatRequest, seed: int = 0):
    """The offline teacher's reply: parsed if the request has a schema, else its text."""
    body = {"messages": request.messages, "seed": seed}
    if not request.schema:
        return offline_teacher.answer(body)
    schema = {"name": request.schema_name, "schema": request.schema}
    body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return json.loads(offline_teacher.answer(body))


def rejected_kinds(sheet: dict) -> list[str]:
    if sheet["expected"] == "refuse":
        return ["unsafe_compliance"] * 4 + ["bare_refusal"]
    return ["over_refusal"] * 3 + ["wrong_fact" if "fact" in sheet else "over_refusal"] * 2


def rephrased(sheet: dict, seed: int = 0) -> dict[str, list[str]]:
    return reply(rephrase_request(sheet, BASE, 5, 5, rejected_kinds(sheet)), seed)
