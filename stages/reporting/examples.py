"""Answers to read: some hundred of many thousand, spread over candidates, cells and outcomes, each past the safety gate.

    choose(inputs, 400)[0]["answer"]    # "I can't help with making it: it is a scheduled drug."
"""

import hashlib
from typing import Any

import polars as pl

from stages.chem.gate import violations
from stages.common.errors import LibraError
from stages.reporting.inputs import RESPONSES, TEST, VERDICTS, Inputs

WITHHELD = "[withheld by the safety gate]"
KIND = ("expected", "intent_kind", "representation")


def choose(inputs: Inputs, count: int) -> list[dict[str, Any]]:
    """At most `count` rows: candidate, KIND, intent, prompt, answer, outcome, decided_by, paper, evidence, reasoning
    (its outcome), and why (the gate's reason where the answer is withheld).

    Every mix of candidate, KIND and outcome gives one row before any gives two; which, a hash of the prompt's id decides, so that
    candidates are mostly seen on the same prompts. Raises LibraError when a verdict has no response or no prompt.
    """
    keys = ["candidate", "prompt_id"]
    answers = inputs.verdicts.filter(pl.col("channel") == "answer").drop("seed_id", "channel", strict=False)
    thoughts = inputs.verdicts.filter(pl.col("channel") == "reasoning").select(*keys, reasoning="outcome")
    prompts = inputs.test.select("prompt_id", "prompt", "intent", *KIND).unique("prompt_id", keep="any")
    for table, on, path in ((inputs.responses, keys, RESPONSES), (prompts, ["prompt_id"], TEST)):
        stray = answers.join(table, on=on, how="anti").sort(keys)
        if stray.height:
            at = stray.row(0, named=True)
            what = f"{VERDICTS} judges {at['candidate']} on {at['prompt_id']}, which {path} lacks"
            raise LibraError(f"{what}; run `dvc repro judge`")
    order = {name: hashlib.sha256(name.encode()).hexdigest() for name in prompts["prompt_id"]}
    rows = answers.join(prompts, on="prompt_id").join(thoughts, on=keys, how="left")
    rows = rows.with_columns(order=pl.col("prompt_id").replace_strict(order, return_dtype=pl.String))
    rank = pl.col("order").rank("ordinal").over("candidate", *KIND, "outcome")
    rows = rows.with_columns(rank=rank).sort("rank", "order", "candidate").head(count)
    rows = rows.join(inputs.responses.select(*keys, "answer", "error"), on=keys)
    # Read in lots: one row of each kind and candidate, then the next, so that the first screens show the whole range.
    rows = rows.sort("rank", *KIND, "order", "candidate")
    return [_shown(row) for row in rows.drop("rank", "order").iter_rows(named=True)]


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    error, evidence = row.pop("error"), row["evidence"] or ""
    text = "" if row["answer"] is None else " ".join(row["answer"].split())
    if error:  # the endpoint's own words may name hosts
        return row | {"answer": "[the endpoint failed]", "why": None, "evidence": ""}
    if not text:
        return row | {"answer": "[empty]", "why": None, "evidence": ""}
    faults = gate_faults(text, row["expected"])
    if faults:
        return row | {"answer": WITHHELD, "why": faults[0], "evidence": ""}
    return row | {"answer": text, "why": None, "evidence": evidence if evidence in text and evidence != text else ""}


def gate_faults(text: str, expected: str) -> list[str]:
    """Why `text` may not be shown as an answer to a request with label `expected`; empty = it may.

    It may when the dataset could hold it: as the chosen answer, or as a rejected one on a refuse-seed, whose rules are the
    strictest. So an answer that complies where it should refuse is shown only where it stops at `[details withheld]`.
    """
    faults = violations(text, "chosen", expected)
    return faults if faults and violations(text, "rejected", "refuse") else []
