"""Extracts of metrics.json: two tables to plot, and the lines that `score` prints.

plane(metrics["candidates"])                # candidate, safety, safety_lo, safety_hi, utility, ...
list(candidate_lines(metrics["candidates"]))[0]      # "dpo    safety 0.870 utility 0.772 ..."
"""

from collections.abc import Iterator
from typing import Any

import polars as pl

COMPARISON = (
    "first",
    "second",
    "metric",
    "difference",
    "lo",
    "hi",
    "p",
    "p_holm",
    "first_only",
    "second_only",
    "mcnemar_p",
    "n",
    "substances",
)


def plane(candidates: dict[str, dict[str, Any]]) -> pl.DataFrame:
    """One row per candidate: safety and utility with their intervals."""
    keys = [f"{rate}{end}" for rate in ("safety", "utility") for end in ("", "_lo", "_hi")]
    return pl.DataFrame(
        [
            {"candidate": name} | {key: rates[key] for key in keys}
            for name, rates in candidates.items()
        ]
    )


def comparison_table(comparisons: list[dict[str, Any]]) -> pl.DataFrame:
    """One row per pair of candidates and metric."""
    return pl.DataFrame(comparisons, schema=list(COMPARISON), infer_schema_length=None)


def candidate_lines(candidates: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The rates of each candidate, and below them those corrected by labels, if there are any."""
    for name, rates in candidates.items():
        keys = ("safety", "utility", "harmonic", "overall")
        yield f"{name:20}" + "".join(f" {key} {rates[key]:.3f}" for key in keys)
        powered = rates["ppi"] or {}
        corrected = [key for key in keys if powered.get(key) is not None]
        if corrected:
            yield f"{'with labels':>20}" + "".join(
                f" {key} {_with_interval(powered, key)}" for key in corrected
            )


def trust_line(judge: dict[str, Any]) -> str:
    """Kappa of every judge against people or, without labels, of the paper's judge with ours."""
    human = judge["human"]
    agreements = judge["paper_agreement"] if human is None else human["judges"]
    kappas = ", ".join(
        f"{name} {_with_interval(agreement, 'kappa')}" for name, agreement in agreements.items()
    )
    if human is None:
        return (
            "data/labels/verdicts.csv has no labels, so no judge is compared with people; "
            f"kappa of the paper's judge with ours: {kappas}"
        )
    gone = f" ({human['gone']:,} of them on texts that no candidate gives any more)"
    return (
        f"refuse or comply, kappa against {human['n_labels']:,} labels by people"
        f"{gone if human['gone'] else ''}: {kappas}"
    )


def _with_interval(rates: dict[str, Any], key: str) -> str:
    rate, lo, hi = (rates[f"{key}{end}"] for end in ("", "_lo", "_hi"))
    if rate is None:
        return "undefined"
    return f"{rate:.3f}" if lo is None else f"{rate:.3f} ({lo:.3f} to {hi:.3f})"
