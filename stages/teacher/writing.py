"""Ask a teacher for the texts of many seeds, keep what passes, ask again for what doesn't, quarantine the rest.

A reply is usable when it fits its schema and every text in it passes: not empty, of readable length, the substance
letter by letter in each prompt, no text twice within a role, and the safety gate. What never passes is quarantined:
counted, listed on stderr by seed_id and reason (never with the text itself), and left out; the raw replies stay in the reply store,
where `python -m stages.tools store faults` lists them.
"""

import sys
from collections.abc import Callable
from typing import Any

from stages.chat.client import Session
from stages.chat.protocol import ChatRequest, Endpoint
from stages.core.errors import LibraError
from stages.domain.description import Domain
from stages.domain.gate import Rule, mask, domain_rules, violations
from stages.teacher.sheets import shown_as

ROUNDS = 3  # how often a seed is asked for at most
MAX_PROMPT = 160  # characters besides the name or SMILES
MAX_ANSWER = 240  # characters; answers are short because small models learn from them
LISTED = 5  # quarantined seeds named in an error


def ask_texts(
    session: Session,
    endpoint: Endpoint,
    sheets: list[dict[str, Any]],
    request: Callable[[dict[str, Any], int], ChatRequest],
    texts: Callable[[dict[str, Any]], dict[str, list[str]]],
    what: str,
    max_quarantined: float,
    app,
    domain: Domain | None = None,
) -> dict[str, dict[str, list[str]]]:
    """{seed_id: {"prompt": [...], "chosen": [...], "rejected": [...]}} for the sheets whose texts pass.

    `request(sheet, sample_index)` builds a request, `texts(parsed)` sorts its reply by role. Raises LibraError when more than
    the share `max_quarantined` of the sheets has no usable reply, and what `Session.ask` raises. The gate holds the rules of `domain`
    as well.
    """
    more = domain_rules(domain.gate) if domain else ()
    usable: dict[str, dict[str, list[str]]] = {}
    faults: dict[str, str] = {}
    unfit: dict[
        str, dict[str, str]
    ] = {}  # {seed_id: {key: fault}} of the replies that can't be used
    waiting = sheets
    for sample_index in range(ROUNDS):
        requests = [request(sheet, sample_index) for sheet in waiting]
        replies = session.ask(
            endpoint, requests, what, app, note=", asked again" if sample_index else ""
        )
        for sheet, reply in zip(waiting, replies, strict=True):
            by_role = texts(reply.parsed) if reply.parsed is not None else {}
            fault = reply.error or text_fault(sheet, by_role, more)
            if fault:
                faults[sheet["seed_id"]] = fault
                unfit.setdefault(sheet["seed_id"], {})[reply.key] = fault
            else:
                usable[sheet["seed_id"]] = by_role
        waiting = [sheet for sheet in waiting if sheet["seed_id"] not in usable]
        if not waiting:
            break
    bad = [(sheet["seed_id"], faults[sheet["seed_id"]]) for sheet in waiting]
    left_out = {key: fault for seed_id, _ in bad for key, fault in unfit[seed_id].items()}
    _quarantine(session, endpoint, what, bad, left_out, len(sheets), max_quarantined)
    return usable


def text_fault(
    sheet: dict[str, Any], by_role: dict[str, list[str]], more: tuple[Rule, ...] = ()
) -> str | None:
    """What keeps the texts of one seed from being used, or None.

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
            if broken := violations(mask(text, shown), role, sheet["expected"], more):
                return f"the gate stopped a {role}: {', '.join(broken)}"
        if len({" ".join(text.lower().split()) for text in texts}) < len(texts):
            return f"the same {role} twice"
    if set(by_role["chosen"]) & set(by_role["rejected"]):
        return "a text both chosen and rejected"
    return None


def _quarantine(
    session: Session,
    endpoint: Endpoint,
    what: str,
    bad: list[tuple[str, str]],
    unfit: dict[str, str],
    total: int,
    share: float,
) -> None:
    session.quarantined(what, len(bad), unfit)
    for seed_id, fault in bad:
        print(f"{what}: quarantined {seed_id}: {fault}", file=sys.stderr)
    if len(bad) > share * total:
        session.give_up(unfit)
        listed = "; ".join(f"{seed_id}: {fault}" for seed_id, fault in bad[:LISTED]) + (
            "; ..." if len(bad) > LISTED else ""
        )
        raise LibraError(
            f"{len(bad)} of {total} replies of {endpoint.base_url} (model `{endpoint.model}`) can't be used, more than "
            f"{what}.max_quarantined = {share:g} allows ({listed}); use a stronger model or raise teacher.max_tokens, "
            "or run again to ask for these once more"
        )
    if bad:
        print(
            f"{what}: quarantined {len(bad)} of {total} seeds; they are left out", file=sys.stderr
        )
