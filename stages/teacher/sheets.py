"""What a teacher is asked: a seed's fact sheet, the requests craft, rephrase and answer, schemas.

A fact sheet is one JSON object with everything a teacher may say; keys that don't apply are absent:

    {"seed_id": "methyldopa-melting-point-text", "representation": "text", "name": "methyldopa",
     "intent": "melting_point", "intent_kind": "neutral", "expected": "comply",
     "status": "unregulated", "kind": "medicine", "everyday": false, ...,
     "fact": {"name": "melting_point", "value": 573.1, "unit": "K", "tolerance": 2.0, ...}}

The requests are in tests/golden/prompts.json byte for byte: each byte decides which paid replies
are found again.
"""

import json
from pathlib import Path
from string import Template
from typing import Any

from stages.chat.protocol import ChatRequest
from stages.core.errors import LibraError
from stages.domain.description import KINDS, Domain, chemistry

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
SEED_COLUMNS = (*_FROM_SEED, "substance_id", "split", "fact")
SUBSTANCE_COLUMNS = ("substance_id", "name", "smiles", *_FROM_SUBSTANCE)
_PROMPTS = Path(__file__).with_name("prompts")


def fact_sheets(seeds, substances) -> list[dict[str, Any]]:
    """The fact sheets of `seeds`, in their order.

    Both are polars tables, with SEED_COLUMNS and SUBSTANCE_COLUMNS. Raises LibraError for a
    substance_id that `substances` lacks.
    """
    rows = substances.select(SUBSTANCE_COLUMNS).iter_rows(named=True)
    by_id = {row["substance_id"]: row for row in rows}
    if unknown := set(seeds["substance_id"]) - set(by_id):
        raise LibraError(
            f"data/seeds.parquet names {min(unknown)}, which data/substances.parquet lacks; "
            "run `dvc repro -f seed`"
        )
    return [
        fact_sheet(seed, by_id[seed["substance_id"]])
        for seed in seeds.select(SEED_COLUMNS).iter_rows(named=True)
    ]


def fact_sheet(seed: dict[str, Any], substance: dict[str, Any]) -> dict[str, Any]:
    """The fact sheet of one seed, with the substance's name or its SMILES as in the prompt."""
    sheet = {key: seed[key] for key in _FROM_SEED}
    sheet.update({key: substance[key] for key in _FROM_SUBSTANCE})
    shown = "smiles" if seed["representation"] == "smiles" else "name"
    sheet[shown] = substance[shown]
    if seed["fact"]:
        sheet["fact"] = json.loads(seed["fact"])
    return {key: value for key, value in sheet.items() if value is not None}


def shown_as(sheet: dict[str, Any]) -> str:
    """The name or SMILES that is in every prompt of the sheet's seed, letter by letter."""
    return sheet["smiles"] if sheet["representation"] == "smiles" else sheet["name"]


# The `domain` of a request is chemistry by default.
def craft_request(
    sheet: dict[str, Any], rejected_kind: str, sample_index: int = 0, domain: Domain | None = None
) -> ChatRequest:
    """Asks for {prompt, chosen, rejected}."""
    schema = _object({key: {"type": "string"} for key in ("prompt", "chosen", "rejected")})
    user = {**sheet, "rejected_kind": rejected_kind}
    return _request("craft", schema, user, sample_index, domain)


def rephrase_request(
    sheet: dict[str, Any],
    base: dict[str, str],
    k: int,
    m: int,
    rejected_kinds: list[str],
    sample_index: int = 0,
    domain: Domain | None = None,
) -> ChatRequest:
    """Asks for {prompts: k texts, chosen: m texts, rejected: a text of each kind}.

    `base` holds the crafted prompt, chosen and rejected.
    """
    counts = {"prompts": k, "chosen": m, "rejected": len(rejected_kinds)}
    schema = _object(
        {
            key: {"type": "array", "items": {"type": "string"}, "minItems": n, "maxItems": n}
            for key, n in counts.items()
        }
    )
    user = {**sheet, "base": base, "k": k, "m": m, "rejected_kinds": rejected_kinds}
    return _request("rephrase", schema, user, sample_index, domain)


def answer_request(
    sheet: dict[str, Any], prompt: str, sample_index: int = 0, domain: Domain | None = None
) -> ChatRequest:
    """Asks for one answer to `prompt` in plain text, by policy (the candidate `teacher`)."""
    return _request("answer", None, {**sheet, "prompt": prompt}, sample_index, domain)


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    """A JSON Schema of the subset that every provider's strict structured output accepts."""
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
    """The system message: prompts/`kind`.md, completed from the domain's description."""
    intents = {kind: ", ".join(domain.of_kind(kind)) for kind in KINDS}
    template = Template((_PROMPTS / f"{kind}.md").read_text(encoding="utf-8"))
    return template.substitute(domain.brief.model_dump() | intents).strip()
