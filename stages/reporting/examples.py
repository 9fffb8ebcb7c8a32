"""Answers to read: some of many thousand, spread over candidates, cells and outcomes, each past the safety gate.

rows = joined(inputs)
choose(rows, 400)[0]["answer"]           # "I can't help with making it: it is a scheduled drug."
failures(rows, "dpo", 6)["leak"]         # answers that gave away what they should not have
packed(choose(rows, 10_000))             # JSON for the page's script: each text once
"""

import functools
import hashlib
import json
from typing import Any

import polars as pl

from stages.core.errors import LibraError
from stages.domain.gate import violations
from stages.reporting.inputs import RESPONSES, TEST, VERDICTS, Inputs

WITHHELD = "[withheld by the safety gate]"
KIND = ("expected", "intent_kind", "representation")
SHOWN = (
    "candidate",
    "prompt",
    "intent",
    *KIND,
    "answer",
    "why",
    "outcome",
    "reasoning",
    "decided_by",
    "evidence",
    "paper",
)
FAILURES = ("over_refusal", "leak")
_KEYS = ("candidate", "prompt_id")


def joined(inputs: Inputs) -> pl.DataFrame:
    """One row per judged answer: SHOWN but for `why` (reasoning is its outcome), error, and `order`, a hash of the prompt's id.

    Raises LibraError when a verdict has no response or no prompt.
    """
    answers = inputs.verdicts.filter(pl.col("channel") == "answer").drop(
        "seed_id", "channel", strict=False
    )
    thoughts = inputs.verdicts.filter(pl.col("channel") == "reasoning").select(
        *_KEYS, reasoning="outcome"
    )
    prompts = inputs.test.select("prompt_id", "prompt", "intent", *KIND).unique(
        "prompt_id", keep="any"
    )
    for table, on, path in (
        (inputs.responses, list(_KEYS), RESPONSES),
        (prompts, ["prompt_id"], TEST),
    ):
        stray = answers.join(table, on=on, how="anti").sort(_KEYS)
        if stray.height:
            at = stray.row(0, named=True)
            what = f"{VERDICTS} judges {at['candidate']} on {at['prompt_id']}, which {path} lacks"
            raise LibraError(f"{what}; run `dvc repro judge`")
    order = {name: hashlib.sha256(name.encode()).hexdigest() for name in prompts["prompt_id"]}
    rows = answers.join(prompts, on="prompt_id").join(thoughts, on=_KEYS, how="left")
    rows = rows.join(inputs.responses.select(*_KEYS, "answer", "error"), on=_KEYS)
    return rows.with_columns(
        order=pl.col("prompt_id").replace_strict(order, return_dtype=pl.String)
    )


def choose(rows: pl.DataFrame, count: int) -> list[dict[str, Any]]:
    """At most `count` of the rows of `joined`: SHOWN, with `why` (the gate's reason) where the answer is withheld.

    Every mix of candidate, KIND and outcome gives one row before any gives two; which, the hash of the prompt's id decides, so
    that candidates are mostly seen on the same prompts.
    """
    rank = pl.col("order").rank("ordinal").over("candidate", *KIND, "outcome")
    rows = rows.with_columns(rank=rank).sort("rank", "order", "candidate").head(count)
    # Read in lots: one row of each kind and candidate, then the next, so that the first screens show the whole range.
    return _shown(rows.sort("rank", *KIND, "order", "candidate"))


def failures(rows: pl.DataFrame, candidate: str, count: int) -> dict[str, list[dict[str, Any]]]:
    """For each of FAILURES at most `count` answers of `candidate` (of its reasoning, too, for a leak), every intent before any
    gives two."""
    own = rows.filter(pl.col("candidate") == candidate)
    found = {}
    for outcome in FAILURES:
        failed = own.filter(
            (pl.col("outcome") == outcome) | (pl.col("reasoning") == outcome).fill_null(False)
        )
        failed = (
            failed.with_columns(rank=pl.col("order").rank("ordinal").over("intent"))
            .sort("rank", "order")
            .head(count)
        )
        found[outcome] = _shown(failed)
    return found


def packed(rows: list[dict[str, Any]]) -> str:
    """`rows` as JSON that may stand in a script element: {"columns": {name: its values, each once}, "rows": [places in them]}."""
    places: dict[str, dict[Any, int]] = {key: {} for key in SHOWN}
    told = [[places[key].setdefault(row[key], len(places[key])) for key in SHOWN] for row in rows]
    found = {"columns": {key: list(values) for key, values in places.items()}, "rows": told}
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _shown(rows: pl.DataFrame) -> list[dict[str, Any]]:
    return [{key: row[key] for key in SHOWN} for row in map(_gated, rows.iter_rows(named=True))]


def _gated(row: dict[str, Any]) -> dict[str, Any]:
    evidence = row["evidence"] or ""
    text = "" if row["answer"] is None else " ".join(row["answer"].split())
    if row["error"]:  # the endpoint's own words may name hosts
        return row | {"answer": "[the endpoint failed]", "why": None, "evidence": ""}
    if not text:
        return row | {"answer": "[empty]", "why": None, "evidence": ""}
    faults = gate_faults(text, row["expected"])
    if faults:
        return row | {"answer": WITHHELD, "why": faults[0], "evidence": ""}
    return row | {
        "answer": text,
        "why": None,
        "evidence": evidence if evidence in text and evidence != text else "",
    }


@functools.cache
def gate_faults(text: str, expected: str) -> tuple[str, ...]:
    """Why `text` may not be shown as an answer to a request with label `expected`; empty = it may.

    It may when the dataset could hold it: as the chosen answer, or as a rejected one on a refuse-seed, whose rules are the
    strictest. So an answer that complies where it should refuse is shown only where it stops at `[details withheld]`.
    """
    faults = violations(text, "chosen", expected)
    return tuple(faults) if faults and violations(text, "rejected", "refuse") else ()
