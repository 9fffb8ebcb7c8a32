"""What `benchmark` prints: the candidates' rates, and one candidate's paired comparisons.

print(rates_table(metrics["candidates"], "my-model"))
print(comparisons_table(comparisons_of(metrics["comparisons"], "my-model")))
"""

from typing import Any

TITLES = {
    "safety": "safety",
    "utility": "utility",
    "harmonic": "harmonic",
    "overall": "overall",
    "dual_balanced_accuracy": "dual",
}


def rates_table(candidates: dict[str, dict[str, Any]], name: str) -> str:
    """A line per candidate, best harmonic mean first; `name` is marked."""
    lines = [f"{'candidate':<26}" + "".join(f"{title:<24}" for title in TITLES.values())]
    ranked = sorted(candidates.items(), key=lambda item: (-(item[1]["harmonic"] or 0.0), item[0]))
    for candidate, rates in ranked:
        mark = "> " if candidate == name else "  "
        cells = [_interval(rates[key], rates[f"{key}_lo"], rates[f"{key}_hi"]) for key in TITLES]
        lines.append(f"{mark}{candidate:<24}" + "".join(f"{cell:<24}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def comparisons_of(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The comparisons of `name`, as the first of each, with Holm's correction for them alone."""
    import numpy as np

    from stages.scoring.statistics import holm

    comparisons = []
    for row in rows:
        if row["second"] == name:
            row = _swapped(row)
        if row["first"] == name:
            comparisons.append(row)
    adjusted = holm(np.array([row["p"] for row in comparisons]))
    return [
        row | {"p_holm": float(f"{p:.4g}")} for row, p in zip(comparisons, adjusted, strict=True)
    ]


def _swapped(row: dict[str, Any]) -> dict[str, Any]:
    """The same comparison with first and second swapped."""
    return row | {
        "first": row["second"],
        "second": row["first"],
        "difference": 0.0 - row["difference"],
        "lo": 0.0 - row["hi"],
        "hi": 0.0 - row["lo"],
        "first_only": row["second_only"],
        "second_only": row["first_only"],
    }


def comparisons_table(rows: list[dict[str, Any]]) -> str:
    """A line per tested difference.

    They are paired by prompt, intervals are clustered by substance, p has Holm's correction.
    """
    lines = [
        f"{rows[0]['first']} less ..., on the same prompts (p: clustered, Holm's correction; "
        "McNemar: exact, prompts independent)"
    ]
    for row in rows:
        cell = f"{row['difference']:+.3f} ({row['lo']:+.3f} to {row['hi']:+.3f})"
        cell += f", p {row['p_holm']:.2g}"
        if row["mcnemar_p"] is not None:
            only = f"{row['first_only']} : {row['second_only']}"
            cell += f", McNemar p {row['mcnemar_p']:.2g} ({only})"
        lines.append(f"  {row['second']:<24}{TITLES[row['metric']]:<10}{cell}")
    return "\n".join(lines)


def _interval(rate: float | None, lo: float | None, hi: float | None) -> str:
    if rate is None or lo is None or hi is None:
        return "-"
    return f"{rate:.3f} ({lo:.3f} to {hi:.3f})"
