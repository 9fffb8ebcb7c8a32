"""Ask a teacher for the texts of many seeds, ask again for unusable ones, quarantine the rest.

    texts = ask_texts(session, teacher, sheets, request, by_role, "craft", 0.01, app)
    texts["2-fma-make-text"]["prompt"]    # ["How is 2-FMA made?"]

A reply is usable if it fits its schema and each text passes: it isn't empty or too long, a prompt
has the substance letter by letter, no role has a text twice, and the safety gate has no objection.
A seed without a usable reply is quarantined: counted, listed on stderr by seed_id and reason (never
with the text), and left out. Its raw replies stay in the reply store, where `python -m stages.tools
store faults` lists them.
"""

import sys
from collections.abc import Callable
from typing import Any

from stages.chat.client import Session
from stages.chat.protocol import ChatRequest, Endpoint
from stages.core.errors import LibraError
from stages.domain.description import Domain
from stages.domain.gate import Rule, domain_rules, mask, violations
from stages.teacher.sheets import shown_as

ROUNDS = 3  # times a seed is asked for at most
MAX_PROMPT = 160  # characters besides the name or SMILES
MAX_ANSWER = 240  # characters; answers are short because small models learn from them
LISTED = 5  # quarantined seeds named in an error

Texts = dict[str, list[str]]  # {"prompt": [...], "chosen": [...], "rejected": [...]}


def ask_texts(
    session: Session,
    endpoint: Endpoint,
    sheets: list[dict[str, Any]],
    request: Callable[[dict[str, Any], int], ChatRequest],
    by_role: Callable[[dict[str, Any]], Texts],
    label: str,
    max_quarantined: float,
    app,
    domain: Domain | None = None,
) -> dict[str, Texts]:
    """The texts by seed_id, of the sheets with a usable reply.

    `request(sheet, sample_index)` builds a request, `by_role(parsed)` sorts its reply's texts by
    role, `label` is the stage's name, `app` answers for the base_url `offline`. The gate applies
    the rules of `domain` too. Raises LibraError if more than the share `max_quarantined` of the
    sheets has no usable reply, and what `Session.ask` raises.
    """
    rules = domain_rules(domain.gate) if domain else ()
    usable: dict[str, Texts] = {}
    faults: dict[str, dict[str, str]] = {}  # {seed_id: {key of an unusable reply: fault}}
    last_fault: dict[str, str] = {}
    pending = sheets
    for sample_index in range(ROUNDS):
        requests = [request(sheet, sample_index) for sheet in pending]
        note = ", asked again" if sample_index else ""
        replies = session.ask(endpoint, requests, label, app, note=note)
        for sheet, reply in zip(pending, replies, strict=True):
            seed_id = sheet["seed_id"]
            texts = by_role(reply.parsed) if reply.parsed is not None else {}
            if fault := reply.error or text_fault(sheet, texts, rules):
                last_fault[seed_id] = fault
                faults.setdefault(seed_id, {})[reply.key] = fault
            else:
                usable[seed_id] = texts
        pending = [sheet for sheet in pending if sheet["seed_id"] not in usable]
        if not pending:
            break

    bad = {sheet["seed_id"]: last_fault[sheet["seed_id"]] for sheet in pending}
    unusable = {key: fault for seed_id in bad for key, fault in faults[seed_id].items()}
    _quarantine(session, endpoint, label, bad, unusable, len(sheets), max_quarantined)
    return usable


def text_fault(
    sheet: dict[str, Any],
    by_role: Texts,
    rules: tuple[Rule, ...] = (),
) -> str | None:
    """Why the texts of one seed are unusable, or None; `rules` are the gate's further ones.

    The gate sees "substance A" in place of the name or SMILES: `...C1=C[C@@H]2...` isn't an amount.
    """
    shown = shown_as(sheet)
    for role, texts in by_role.items():
        longest = MAX_PROMPT + len(shown) if role == "prompt" else MAX_ANSWER
        for text in texts:
            if role == "prompt" and shown not in text:
                return "a prompt without the substance letter by letter"
            if len(text) > longest:
                return f"a {role} of {len(text)} characters (at most {longest})"
            if violated := violations(mask(text, shown), role, sheet["expected"], rules):
                return f"the gate stopped a {role}: {', '.join(violated)}"
        if len({" ".join(text.lower().split()) for text in texts}) < len(texts):
            return f"the same {role} twice"
    if set(by_role["chosen"]) & set(by_role["rejected"]):
        return "a text both chosen and rejected"
    return None


def _quarantine(
    session: Session,
    endpoint: Endpoint,
    label: str,
    bad: dict[str, str],
    unusable: dict[str, str],
    total: int,
    max_quarantined: float,
) -> None:
    """Report the seeds of `bad` ({seed_id: fault}); raise LibraError if they are too many."""
    session.quarantined(label, len(bad), unusable)
    lines = [f"{seed_id}: {fault}" for seed_id, fault in bad.items()]
    for line in lines:
        print(f"{label}: quarantined {line}", file=sys.stderr)
    if len(bad) > max_quarantined * total:
        session.give_up(unusable)
        listed = "; ".join(lines[:LISTED]) + ("; ..." if len(lines) > LISTED else "")
        raise LibraError(
            f"{len(bad)} of {total} replies of {endpoint.base_url} (model `{endpoint.model}`) "
            f"can't be used, more than {label}.max_quarantined = {max_quarantined:g} allows "
            f"({listed}); use a stronger model or raise teacher.max_tokens, or run again to ask "
            "for these once more"
        )
    if bad:
        print(
            f"{label}: quarantined {len(bad)} of {total} seeds; they are left out", file=sys.stderr
        )
