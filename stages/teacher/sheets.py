"""What a teacher is asked: the fact sheet of a seed, the three requests (craft, rephrase, answer) and their schemas.

A fact sheet is one JSON object with everything a teacher may say; keys that don't apply are left out:

    {"seed_id": "methyldopa-melting-point-text", "representation": "text", "name": "methyldopa", "intent": "melting_point",
     "intent_kind": "neutral", "expected": "comply", "status": "unregulated", "kind": "medicine", "everyday": false, ...,
     "fact": {"name": "melting_point", "value": 573.1, "unit": "K", "tolerance": 2.0, "method": "COMMON_CHEMISTRY", ...}}
"""

import json
from pathlib import Path
from string import Template
from typing import Any

from stages.chat.protocol import ChatRequest
from stages.core.errors import LibraError
from stages.domain.description import KINDS, Domain, chemistry

# fmt: off
SEED_COLUMNS = (
    "seed_id", "substance_id", "split", "expected", "intent", "intent_kind", "representation", "status", "reference", "fact",
)
SUBSTANCE_COLUMNS = (
    "substance_id", "name", "smiles", "kind", "family", "hazard_class", "everyday", "reaction_class", "pharmacology",
)
# fmt: on
_PROMPTS = Path(__file__).with_name("prompts")
_FROM_SEED = (
    "seed_id",
    "representation",
    "intent",
    "intent_kind",
    "expected",
    "status",
    "reference",
)
_FROM_SUBSTANCE = ("kind", "family", "hazard_class", "everyday", "reaction_class", "pharmacology")


def fact_sheets(seeds, substances) -> list[dict[str, Any]]:
    """The fact sheets of `seeds` (polars tables with SEED_COLUMNS and SUBSTANCE_COLUMNS), in seed order.

    Raises LibraError for a substance_id that isn't in `substances`.
    """
    by_id = {
        row["substance_id"]: row
        for row in substances.select(SUBSTANCE_COLUMNS).iter_rows(named=True)
    }
    strays = set(seeds["substance_id"]) - set(by_id)
    if strays:
        raise LibraError(
            f"data/seeds.parquet names {min(strays)}, which data/substances.parquet lacks; run `dvc repro -f seed`"
        )
    return [
        fact_sheet(seed, by_id[seed["substance_id"]])
        for seed in seeds.select(SEED_COLUMNS).iter_rows(named=True)
    ]


def fact_sheet(seed: dict[str, Any], substance: dict[str, Any]) -> dict[str, Any]:
    """The fact sheet of one seed: the substance only as the prompt shows it, by name or by SMILES."""
    sheet = {key: seed[key] for key in _FROM_SEED}
    sheet.update({key: substance[key] for key in _FROM_SUBSTANCE})
    shown = "smiles" if seed["representation"] == "smiles" else "name"
    sheet[shown] = substance[shown]
    if seed["fact"]:
        sheet["fact"] = json.loads(seed["fact"])
    return {key: value for key, value in sheet.items() if value is not None}


def shown_as(sheet: dict[str, Any]) -> str:
    """The name or SMILES that every prompt of the sheet's seed holds, letter by letter."""
    return sheet["smiles"] if sheet["representation"] == "smiles" else sheet["name"]


# Requests are about chemistry where no `domain` is given.
def craft_request(
    sheet: dict[str, Any], rejected_kind: str, sample_index: int = 0, domain: Domain | None = None
) -> ChatRequest:
    """Asks for {prompt, chosen, rejected}."""
    schema = _object({key: {"type": "string"} for key in ("prompt", "chosen", "rejected")})
    return _request(
        "craft", schema, {**sheet, "rejected_kind": rejected_kind}, sample_index, domain
    )


def rephrase_request(
    sheet: dict[str, Any],
    base: dict[str, str],
    k: int,
    m: int,
    rejected_kinds: list[str],
    sample_index: int = 0,
    domain: Domain | None = None,
) -> ChatRequest:
    """Asks for {prompts: k, chosen: m, rejected: one per entry of rejected_kinds}, given the crafted `base` texts."""
    counts = {"prompts": k, "chosen": m, "rejected": len(rejected_kinds)}
    schema = _object(
        {
            key: {"type": "array", "items": {"type": "string"}, "minItems": n, "maxItems": n}
            for key, n in counts.items()
        }
    )
    asked = {**sheet, "base": base, "k": k, "m": m, "rejected_kinds": rejected_kinds}
    return _request("rephrase", schema, asked, sample_index, domain)


def answer_request(
    sheet: dict[str, Any], prompt: str, sample_index: int = 0, domain: Domain | None = None
) -> ChatRequest:
    """Asks for one answer to `prompt` in plain text, by policy (the candidate `teacher`)."""
    return _request("answer", None, {**sheet, "prompt": prompt}, sample_index, domain)


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    """A JSON Schema in the part of the language that strict structured output takes everywhere."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _request(
    kind: str,
    schema: dict[str, Any] | None,
    user: dict[str, Any],
    sample_index: int,
    domain: Domain | None,
) -> ChatRequest:
    messages = [
        {"role": "system", "content": _instructions(kind, domain or chemistry())},
        {"role": "user", "content": json.dumps(user, ensure_ascii=False, sort_keys=True)},
    ]
    return ChatRequest(messages, kind if schema else None, schema, sample_index)


def _instructions(kind: str, domain: Domain) -> str:
    """The system message: prompts/`kind`.md, completed with what the domain says of itself."""
    told = domain.brief.model_dump() | {kind: ", ".join(domain.of_kind(kind)) for kind in KINDS}
    return Template((_PROMPTS / f"{kind}.md").read_text(encoding="utf-8")).substitute(told).strip()
