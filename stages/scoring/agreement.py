"""Cohen's kappa, with intervals: judges against people, against each other, and between people.

agreement(decisions, "refusal", "paper", "cascade", resampling)
# {"n": 3160, "kappa": 0.951, "kappa_lo": 0.91, "kappa_hi": 0.98, "confusion": {...}}
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from stages.scoring import statistics
from stages.scoring.decisions import PANEL, QUESTIONS
from stages.scoring.labels import Label
from stages.scoring.rates import tidy


class Resampling:
    """The cluster draws that all intervals share, and the confidence of these."""

    def __init__(self, clusters: int, replicates: int, confidence: float, random_seed: int):
        self.weights = statistics.draws(clusters, replicates, random_seed)
        self.confidence = confidence
        # Two, because the bounds of two rates are drawn independently.
        self.levels = statistics.levels(2, replicates, random_seed)

    def interval(self, lower: np.ndarray, upper: np.ndarray) -> tuple[float | None, float | None]:
        lo, hi = statistics.interval(lower, upper, self.confidence)
        return tidy(lo), tidy(hi)


def agreement(
    table: pl.DataFrame, question: str, first: str, second: str, resampling: Resampling
) -> dict[str, Any]:
    """How far two judges agree on `question`, on the rows that both decided.

    Returns n, kappa with its interval, and confusion, {"paper_comply_human_refuse": 3, ...}.
    """
    kinds, names = QUESTIONS[question], [f"{question}.{judge}" for judge in (first, second)]
    both = table.drop_nulls(names)
    place = {kind: i for i, kind in enumerate(kinds)}
    columns = [both[name].replace_strict(place, return_dtype=pl.Int64).to_numpy() for name in names]

    clusters = resampling.weights.shape[1]
    tables = np.zeros((clusters, len(kinds), len(kinds)))
    np.add.at(tables, (both["cluster"].to_numpy(), *columns), 1)
    whole = tables.sum(axis=0)
    bounds = statistics.kappa_bounds(tables, resampling.weights, resampling.levels[0])
    lo, hi = resampling.interval(*bounds)
    return {
        "n": both.height,
        "kappa": tidy(statistics.kappa(whole)),
        "kappa_lo": lo,
        "kappa_hi": hi,
        "confusion": {
            f"{first}_{a}_{second}_{b}": int(whole[place[a], place[b]])
            for a in kinds
            for b in kinds
        },
    }


def paper_agreement(decisions: pl.DataFrame, resampling: Resampling) -> dict[str, Any]:
    """The paper's judge and the cascade on refuse | comply, of one candidate's answers."""
    result = agreement(decisions, "refusal", "paper", "cascade", resampling)
    return result | result.pop("confusion")


def panel_agreement(
    decisions: pl.DataFrame, panel: list[str], resampling: Resampling
) -> dict[str, Any] | None:
    """The panel and its members against the rules, and each two members, on the audit.

    The audit holds answers that the rules decided and the panel was asked about all the same.
    None if there are none.
    """
    audit = decisions.filter(
        pl.col("panel").is_not_null()
        & (pl.col("decided_by") != PANEL)
        & (pl.col("channel") == "answer")
    )
    if audit.is_empty():
        return None
    return {
        "n": audit.height,
        "rules": {
            judge: agreement(audit, "refusal", judge, "cascade", resampling) for judge in panel
        },
        "between": [
            {"members": list(pair), **agreement(audit, "refusal", *pair, resampling)}
            for pair in combinations(panel[1:], 2)
        ],
    }


def human_agreement(
    labels: Sequence[Label], labelled: pl.DataFrame, judges: list[str], resampling: Resampling
) -> dict[str, Any]:
    """Every judge against people, overall and by candidate, and people against each other.

    Judges are compared on the random audit only: the queue holds what our judge left undecided,
    which would flatter it. What people decided there is in `queue`, a count per outcome.
    `labelled` is `human_decisions`' table.
    """

    def judges_on(table: pl.DataFrame, question: str) -> dict[str, Any]:
        audit = table.filter(pl.col("source") == "audit")
        return {judge: agreement(audit, question, judge, "human", resampling) for judge in judges}

    # A text that several candidates gave counts once.
    once = labelled.unique("label", keep="first", maintain_order=True)
    groups = sorted(labelled.group_by("candidate"), key=lambda group: group[0])
    by_candidate = {name: table for (name,), table in groups}
    questions = {
        question: {
            "judges": judges_on(once, question),
            "candidates": {
                name: judges_on(table, question) for name, table in by_candidate.items()
            },
        }
        for question in QUESTIONS
    }

    queue = once.filter(pl.col("source") == "abstain")["human_outcome"].value_counts().iter_rows()
    labellers = [label.labeller for label in labels]
    return {
        "n_labels": len(labels),
        "gone": len(labels) - once.height,
        "queue": dict(sorted(queue)),
        "labellers": {name: labellers.count(name) for name in sorted(set(labellers))},
        "between": _between_labellers(once, resampling),
        **questions["refusal"],
        "decisions": questions["decision"],
    }


def _between_labellers(once: pl.DataFrame, resampling: Resampling) -> list[dict[str, Any]]:
    """Each two labellers on the texts that both labelled."""
    keys = ["prompt_id", "channel", "text_sha256"]
    rows = []
    for pair in combinations(sorted(once["labeller"].unique()), 2):
        first, second = (
            once.filter(pl.col("labeller") == name).select(
                *keys, "cluster", pl.col("decision.human").alias(f"decision.{place}")
            )
            for name, place in zip(pair, ("first", "second"), strict=True)
        )
        both = first.join(second.drop("cluster"), on=keys)
        if both.height:
            result = agreement(both, "decision", "first", "second", resampling)
            rows.append({"labellers": list(pair), **result})
    return rows
