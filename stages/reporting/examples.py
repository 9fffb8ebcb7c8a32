"""Answers to read: a few of many thousands, over all candidates, cells and outcomes, and gated.

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
COLUMNS = (
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
    """One row per judged answer: COLUMNS but for `why`, and error and order.

    `reasoning` is the outcome of the reasoning, `order` a hash of the prompt's id. Raises
    LibraError when a verdict has no response or no prompt.
    """
    verdicts = inputs.verdicts
    answers = verdicts.filter(channel="answer").drop("seed_id", "channel", strict=False)
    reasoning = verdicts.filter(channel="reasoning").select(*_KEYS, reasoning="outcome")
    prompts = inputs.test.select("prompt_id", "prompt", "intent", *KIND)
    prompts = prompts.unique("prompt_id", keep="any")
    for table, on, path in (
        (inputs.responses, list(_KEYS), RESPONSES),
        (prompts, ["prompt_id"], TEST),
    ):
        unmatched = answers.join(table, on=on, how="anti").sort(_KEYS)
        if unmatched.height:
            row = unmatched.row(0, named=True)
            raise LibraError(
                f"{VERDICTS} judges {row['candidate']} on {row['prompt_id']}, which {path} lacks; "
                "run `dvc repro judge`"
            )

    order = {name: hashlib.sha256(name.encode()).hexdigest() for name in prompts["prompt_id"]}
    rows = answers.join(prompts, on="prompt_id").join(reasoning, on=_KEYS, how="left")
    rows = rows.join(inputs.responses.select(*_KEYS, "answer", "error"), on=_KEYS)
    return rows.with_columns(
        order=pl.col("prompt_id").replace_strict(order, return_dtype=pl.String)
    )


def choose(rows: pl.DataFrame, count: int) -> list[dict[str, Any]]:
    """At most `count` of the rows of `joined` as COLUMNS; `why` is the gate's reason to withhold.

    Every combination of candidate, KIND and outcome gives one row before any gives two. Which one
    depends on the hash of the prompt's id, so most prompts appear with several candidates.
    """
    rank = pl.col("order").rank("ordinal").over("candidate", *KIND, "outcome")
    rows = rows.with_columns(rank=rank).sort("rank", "order", "candidate").head(count)
    # One row of each kind and candidate, then the next: the first screens show the whole range.
    return _gated_rows(rows.sort("rank", *KIND, "order", "candidate"))


def failures(rows: pl.DataFrame, candidate: str, count: int) -> dict[str, list[dict[str, Any]]]:
    """For each of FAILURES at most `count` answers of `candidate`, or reasonings that leak.

    Every intent gives one before any gives two.
    """
    own = rows.filter(candidate=candidate)
    by_outcome = {}
    for outcome in FAILURES:
        in_reasoning = (pl.col("reasoning") == outcome).fill_null(False)
        failed = own.filter((pl.col("outcome") == outcome) | in_reasoning)
        rank = pl.col("order").rank("ordinal").over("intent")
        failed = failed.with_columns(rank=rank).sort("rank", "order").head(count)
        by_outcome[outcome] = _gated_rows(failed)
    return by_outcome


def packed(rows: list[dict[str, Any]]) -> str:
    """`rows` as JSON that is safe in a script element, with each value once.

    {"columns": {name: [distinct values]}, "rows": [[index into each column's values]]}
    """
    indices: dict[str, dict[Any, int]] = {key: {} for key in COLUMNS}
    encoded = [
        [indices[key].setdefault(row[key], len(indices[key])) for key in COLUMNS] for row in rows
    ]
    columns = {key: list(values) for key, values in indices.items()}
    text = json.dumps(
        {"columns": columns, "rows": encoded}, ensure_ascii=False, separators=(",", ":")
    )
    return text.replace("<", "\\u003c")


def _gated_rows(rows: pl.DataFrame) -> list[dict[str, Any]]:
    return [{key: row[key] for key in COLUMNS} for row in map(_gated, rows.iter_rows(named=True))]


def _gated(row: dict[str, Any]) -> dict[str, Any]:
    """`row` with its answer as the page shows it, and `why`."""
    evidence = row["evidence"] or ""
    text = "" if row["answer"] is None else " ".join(row["answer"].split())
    if row["error"]:  # not its text: an endpoint's error can name hosts
        return row | {"answer": "[the endpoint failed]", "why": None, "evidence": ""}
    if not text:
        return row | {"answer": "[empty]", "why": None, "evidence": ""}
    if faults := gate_faults(text, row["expected"]):
        return row | {"answer": WITHHELD, "why": faults[0], "evidence": ""}
    quoted = evidence in text and evidence != text
    return row | {"answer": text, "why": None, "evidence": evidence if quoted else ""}


@functools.cache
def gate_faults(text: str, expected: str) -> tuple[str, ...]:
    """Why `text` must not be shown as an answer to a request with label `expected`; empty: show it.

    It is shown if the dataset could contain it: as a chosen answer, or as a rejected one of a
    refuse-seed, which has the strictest rules. So an answer that complies where it should refuse
    is shown only if it stops at `[details withheld]`.
    """
    faults = violations(text, "chosen", expected)
    return tuple(faults) if faults and violations(text, "rejected", "refuse") else ()
