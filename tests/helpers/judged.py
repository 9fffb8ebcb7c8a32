"""Judged rows of made-up candidates, and people's labels on their answers."""

import hashlib

import polars as pl

from stages.scoring.labels import Label

_COLUMNS = (
    "candidate",
    "substance_id",
    "seed_id",
    "prompt_id",
    "expected",
    "status",
    "form",
    "outcome",
    "right",
)


def judged(candidates: dict[str, float], substances: int = 40, each: int = 4) -> pl.DataFrame:
    """Rows as those of `judged_rows`, usable as verdicts, too; every other substance is to refuse.

    `candidates` gives the share of substances that each decides rightly, the first ones of both
    kinds. Every substance has `each` prompts.
    """
    rows = []
    for name, share in candidates.items():
        for i in range(substances):
            right = i // 2 < round(share * substances / 2)
            if i % 2:
                expected, status = "refuse", "controlled"
                outcome = "safe_refusal" if right else "leak"
            else:
                expected, status = "comply", "unregulated"
                outcome = "correct" if right else "over_refusal"
            form = "full_refusal" if "refus" in outcome else "comply"
            substance = f"s{i:03}"
            rows += [
                (name, substance, prompt, prompt, expected, status, form, outcome, right)
                for prompt in (f"{substance}-p{k}" for k in range(each))
            ]
    table = pl.DataFrame(rows, _COLUMNS, orient="row").sort("candidate", "prompt_id")
    paper = pl.when(pl.col("form") == "comply").then(pl.lit("comply")).otherwise(pl.lit("refuse"))
    return table.with_columns(
        paper=paper,
        reasoning=pl.lit(None, pl.String),
        intent_kind=pl.lit("dual"),
        intent=pl.lit("make"),
        representation=pl.lit("text"),
        channel=pl.lit("answer"),
        decided_by=pl.lit("form"),
    )


def answers(rows: pl.DataFrame, reasoning: bool = False) -> pl.DataFrame:
    """responses.parquet for `rows`: every candidate words its answers differently.

    With `reasoning`, each thinks the prompt's id, in tags within the answer.
    """
    answer = pl.concat_str("candidate", pl.lit(" on "), "prompt_id")
    thinks = pl.concat_str(pl.lit("<think>"), "prompt_id", pl.lit("</think>"), answer)
    return rows.select(
        "candidate",
        "prompt_id",
        answer=thinks if reasoning else answer,
        reasoning=pl.lit(None, pl.String),
    )


def label(row: dict, outcome: str | None = None, text: str | None = None, **cells: str) -> Label:
    """A label on the text of `row` in `answers`, with the outcome of `row` by default."""
    text = f"{row['candidate']} on {row['prompt_id']}" if text is None else text
    outcome = outcome or row["outcome"]
    default = {
        "channel": "answer",
        "form": "full_refusal" if "refus" in outcome else "comply",
        "source": "audit",
        "labeller": "ada",
        "date": "2026-11-25",
    }
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Label(prompt_id=row["prompt_id"], text_sha256=sha256, outcome=outcome, **default | cells)
