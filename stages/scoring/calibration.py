"""How far the judges can be trusted, and what that means for safety and utility.

    judge, powered = calibrate(rows, verdicts, responses, read_labels(), 2000, 0.95, 2025)
    judge["human"]["judges"]["cascade"]     # {"n": 240, "kappa": 0.951, "kappa_lo": 0.91, ...}
    powered["dpo"]                          # {"safety": 0.81, "safety_lo": 0.77, ...}

The labels of the audit, a random sample, measure the judges (agreement.py) and correct the rates
(ppi.py). Those of the queue, which the judge left undecided, are reported on their own.
"""

from collections.abc import Sequence
from typing import Any

import polars as pl

from stages.scoring.agreement import (
    Resampling,
    human_agreement,
    panel_agreement,
    paper_agreement,
)
from stages.scoring.decisions import human_decisions, judge_decisions
from stages.scoring.labels import Label
from stages.scoring.ppi import powered_rates
from stages.scoring.rates import cluster_of


def calibrate(
    rows: pl.DataFrame,
    verdicts: pl.DataFrame,
    responses: pl.DataFrame,
    labels: Sequence[Label],
    replicates: int,
    confidence: float,
    random_seed: int,
) -> tuple[dict[str, Any], dict[str, dict[str, Any] | None]]:
    """`judge` of metrics.json, and `ppi` of every candidate (None if too few labels apply to it).

    `rows` are those of `judged_rows`. A label counts for every candidate of `responses` that gave
    its text. Raises LibraError for an outcome that the labelled prompt can't have.
    """
    rows = rows.with_columns(cluster_of(rows))
    prompts = rows.select("prompt_id", "expected", "cluster").unique()
    clusters = rows["cluster"].n_unique()
    resampling = Resampling(clusters, replicates, confidence, random_seed)

    decisions, panel = judge_decisions(verdicts.join(prompts, on="prompt_id"))
    labelled = human_decisions(labels, responses, decisions)
    groups = sorted(decisions.group_by("candidate"), key=lambda group: group[0])
    by_candidate = {str(name): table for (name,), table in groups}

    judges = ["cascade", "paper", *panel]
    judge = {
        "paper_agreement": {
            name: paper_agreement(table, resampling) for name, table in by_candidate.items()
        },
        "human": human_agreement(labels, labelled, judges, resampling) if labels else None,
        "panel": panel_agreement(decisions, panel, resampling),
    }
    powered = {
        name: powered_rates(rows.filter(pl.col("candidate") == name), labelled, resampling)
        for name in by_candidate
    }
    return judge, powered
