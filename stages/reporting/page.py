"""The report as one HTML file: this folder's template, styles and script, filled from the inputs.

    html = render(read_inputs(), 400, {"dpo": {"beta": 0.1}})
    svg = draw_files(read_inputs())["cells"]

The page loads nothing and runs no script but its own (a content security policy has the script's
hash), and the template escapes every text. It has no time and no path of a machine: the same inputs
give the same bytes.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from stages.reporting.curves import draw_curve
from stages.reporting.drawing import DASH, about, colours, percent
from stages.reporting.examples import FAILURES, WITHHELD, choose, failures, joined, packed
from stages.reporting.heat import draw_cells
from stages.reporting.inputs import MISSES, RATES, SUBJECT, Inputs
from stages.reporting.plane import draw_plane

HERE = Path(__file__).parent
SUMS = ("requests", "prompt_tokens", "completion_tokens", "usd")  # summed over all uses of models
COLUMNS = {  # of the leaderboard: heading and meaning
    "harmonic": ("Harmonic", "harmonic mean of safety and utility"),
    "worst": ("Worst", "the lower of safety and utility"),
    "overall": ("Overall", "share of all requests handled correctly"),
    "safety": ("Safety", "share of illegitimate requests refused without a leak"),
    "utility": ("Utility", "share of legitimate requests answered correctly"),
    "over_refusal_rate": ("Over-refusal", "share of legitimate requests refused; lower is better"),
    "abstain_rate": (
        "Abstain",
        "share of answers that could not be judged, which count as wrong; lower is better",
    ),
    "dual_balanced_accuracy": (
        "Dual balanced",
        "on make, buy and prepare: mean of the share refused of controlled substances and the "
        "share helped with unregulated ones",
    ),
    "answer_safe": (
        "Answer safe",
        "share of illegitimate requests whose answer, apart from its reasoning, leaks nothing",
    ),
    "reasoning_safe": (
        "Reasoning safe",
        "share of illegitimate requests answered with reasoning whose reasoning leaks nothing",
    ),
    "both_safe": (
        "Both safe",
        "share of illegitimate requests answered with reasoning where neither the answer nor the "
        "reasoning leaks anything",
    ),
    "paper": (
        "Paper’s accuracy",
        "the paper’s own judge on its own task, the dual requests; below: legitimate · illegal",
    ),
}
OUTCOMES = {  # class for its colour, sign, and meaning
    "correct": ("good", "✓", "legitimate request, answered correctly"),
    "safe_refusal": ("good", "✓", "illegitimate request, refused"),
    "safe_redirect": (
        "good",
        "✓",
        "illegitimate request, refused in part or by rejecting its premise, without a leak",
    ),
    "safe_noncompliance": ("good", "✓", "illegitimate request, neither refused nor helped with"),
    "wrong": ("wrong", "✗", "legitimate request, answered incorrectly or not at all"),
    "unverifiable": (
        "wrong",
        "?",
        "legitimate request, with an answer that can’t be checked against the fact",
    ),
    "over_refusal": ("over", "✗", "legitimate request, refused"),
    "leak": ("leak", "✗", "illegitimate request, complied with"),
    "abstain": ("none", "?", "could not be judged"),
}
CURVES = (
    ("dpo", "rewards/margins", "Preferences: reward margin"),
    ("dpo", "rewards/accuracies", "Preferences: reward accuracy"),
    ("dpo", "loss", "Preferences: loss"),
    ("sft", "loss", "Fine-tuning: loss"),
)
CELL = ("intent_kind", "status", "representation", "expected")
INTENT = ("intent_kind", "intent", "status", "expected")
FAILED = 8  # examples of each kind of failure


def render(inputs: Inputs, examples: int, params: dict[str, Any]) -> str:
    """The whole page; `examples` answers and `params` ({section: values}) are listed on it."""
    rates = inputs.metrics["candidates"]
    names = by_harmonic(rates)
    answers = joined(inputs)
    reasons = any(candidate["reasoning_safe"] is not None for candidate in rates.values())
    columns = {key: COLUMNS[key] for key in COLUMNS if reasons or not key.endswith("_safe")}
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            **_assets(),
            **_plane_figures(inputs.plane),
            **_judges(inputs.metrics, names),
            **_costs(inputs.metrics["generation"]),
            **_answers_table(answers, examples, names),
            dash=DASH,
            test=inputs.metrics["test"],
            summary=summary(inputs.metrics),
            names=names,
            about={name: about(name) for name in names},
            colours=colours(names),
            columns=columns,
            candidates=rates,
            published=inputs.published.filter(pl.col("overall").is_not_null()).rows(named=True),
            rivals=inputs.published.filter(pl.col("librachem_ahead").is_not_null()).rows(
                named=True
            ),
            compared=compared(inputs.metrics["comparisons"]),
            metrics={
                row["metric"]: COLUMNS[row["metric"]][0] for row in inputs.metrics["comparisons"]
            },
            cells=rows_of(inputs.cells, CELL),
            intents=rows_of(inputs.intents, INTENT),
            misses=MISSES,
            weak=weak_intents(inputs.intents),
            failures=failures(answers, SUBJECT, FAILED),
            failed={
                outcome: answers.filter(candidate=SUBJECT, outcome=outcome).height
                for outcome in FAILURES
            },
            outcomes=OUTCOMES,
            curves=[
                (title, Markup(draw_curve(inputs.curves[stage], column, title)))
                for stage, column, title in CURVES
            ],
            steps={stage: int(curve["step"].max()) for stage, curve in inputs.curves.items()},
            params={section: flat(values) for section, values in params.items()},
            hashes=inputs.hashes,
            blob=inputs.blob,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "thousands": lambda n: f"{n:,}",
        "breakable": _breakable,
        "p_value": p_value,
        "signed": signed,
    }
    return environment


def _assets() -> dict[str, Any]:
    """Styles, the script, and its hash for the content security policy."""
    style, charts, script = (
        Markup((HERE / name).read_text(encoding="utf-8"))
        for name in ("page.css", "charts.css", "page.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"style": style + charts, "script": script, "script_hash": f"sha256-{digest}"}


def _plane_figures(plane: pl.DataFrame) -> dict[str, Any]:
    close = _close_up(plane)
    return {
        "plane": Markup(draw_plane(plane)),
        "close": close,
        "close_up": Markup(draw_plane(plane, close)) if close else "",
    }


def _judges(metrics: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Agreement of the judges with people and among themselves, and rates corrected by labels."""
    judge, rates = metrics["judge"], metrics["candidates"]
    human = judge["human"] or {"judges": {}}
    panel = judge["panel"] or {"rules": {}, "between": []}
    corrected = {name: rates[name]["ppi"] or {} for name in names}
    return {
        "judge": judge,
        "human_rows": [
            (name, (pair, human["decisions"]["judges"][name]))
            for name, pair in human["judges"].items()
        ],
        "panel_rows": [(name, (pair,)) for name, pair in panel["rules"].items()],
        "member_rows": [(" and ".join(pair["members"]), (pair,)) for pair in panel["between"]],
        "powered": {
            name: rate for name, rate in corrected.items() if rate.get("harmonic") is not None
        },
    }


def _costs(generation: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Each use of a chat model, and the sums; a cost is None if no price is known."""
    total = {key: sum(use[key] or 0 for use in generation.values()) for key in SUMS}
    return {"generation": generation, "total": total}


def _answers_table(answers: pl.DataFrame, examples: int, names: list[str]) -> dict[str, Any]:
    rows = choose(answers, examples)
    outcomes = {row["outcome"] for row in rows}
    filters = {"candidate": names}
    for key in ("expected", "intent_kind", "representation"):
        filters[key] = sorted({row[key] for row in rows})
    filters["outcome"] = [outcome for outcome in OUTCOMES if outcome in outcomes]
    return {
        "packed": Markup(packed(rows)),
        "n_listed": len(rows),
        "n_answers": answers.height,
        "n_withheld": sum(row["answer"] == WITHHELD for row in rows),
        "filters": filters,
    }


def draw_files(inputs: Inputs) -> dict[str, str]:
    """The README's figures as SVG files: plane, cells, margins."""
    names = by_harmonic(inputs.metrics["candidates"])
    margins = (inputs.curves["dpo"], "rewards/margins", "DPO: reward margin")
    return {
        "plane": draw_plane(inputs.plane, standalone=True),
        "cells": draw_cells(rows_of(inputs.cells, CELL), names),
        "margins": draw_curve(*margins, standalone=True),
    }


def by_harmonic(rates: dict[str, Any]) -> list[str]:
    """Candidates, the best harmonic mean first."""
    return sorted(rates, key=lambda name: (-(rates[name]["harmonic"] or 0), name))


def flat(values: Any, name: str = "") -> list[tuple[str, str]]:
    """(`a.b`, value as JSON) of everything in a section; ("", value) of a plain one."""
    if isinstance(values, dict) and values:
        return [
            line
            for key, value in values.items()
            for line in flat(value, f"{name}.{key}" if name else str(key))
        ]
    return [(name, json.dumps(values, ensure_ascii=False))]


def summary(metrics: dict[str, Any]) -> dict[str, Any]:
    """The figures of the first sentence: SUBJECT's, and its lead over sft and the best other.

    `rivals` is a list of (name, "25.9 points above"), in harmonic mean. The teacher isn't a rival,
    since it sees the fact sheet.
    """
    rates = metrics["candidates"]
    own = rates[SUBJECT]
    others = {name: rates[name] for name in rates if name not in (SUBJECT, "sft", "teacher")}
    names = ["sft"] * ("sft" in rates) + by_harmonic(others)[:1]
    rivals = []
    for name in names:
        points = 100 * ((own["harmonic"] or 0) - (rates[name]["harmonic"] or 0))
        side = "above" if points >= 0 else "below"
        rivals.append((name, f"{abs(points):.1f} points {side}"))
    figures = {rate + end: own[rate + end] for rate in RATES for end in ("", "_lo", "_hi")}
    return {"subject": SUBJECT, "rivals": rivals, **figures}


def compared(comparisons: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """{candidate: {metric: row}} of the comparisons whose first is SUBJECT."""
    by_candidate: dict[str, dict[str, dict[str, Any]]] = {}
    for row in comparisons:
        if row["first"] == SUBJECT:
            by_candidate.setdefault(row["second"], {})[row["metric"]] = row
    return by_candidate


def signed(share: float) -> str:
    """-0.125 -> "−12.5", in points."""
    return f"{100 * share:+.1f}".replace("-", "−")


def p_value(p: float | None) -> str:
    """ "p 0.03", "p < 0.001"; a dash for None."""
    return DASH if p is None else "p < 0.001" if p < 0.001 else f"p {p:.{2 if p >= 0.01 else 3}f}"


def rows_of(rates: pl.DataFrame, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """One dict per combination of `keys`, of which intent_kind is the first.

    It has the keys, `n` and `substances` (None if candidates differ), and `by`: each candidate's
    row of `rates`.
    """
    groups: dict[tuple, dict[str, Any]] = {}
    for row in rates.sort(*keys, "candidate").iter_rows(named=True):
        values = {key: row[key] for key in keys}
        group = groups.setdefault(tuple(values.values()), values | {"by": {}})
        group["by"][row["candidate"]] = row
    order = {"neutral": 0, "dual": 1, "harmful": 2}
    rows = sorted(groups.values(), key=lambda row: order.get(row["intent_kind"], 3))
    for row in rows:
        for key in ("n", "substances"):
            counts = {int(rate[key]) for rate in row["by"].values()}
            row[key] = counts.pop() if len(counts) == 1 else None
    return rows


def weak_intents(intents: pl.DataFrame) -> list[tuple[str, float, int]]:
    """(intent, rate, answers) where SUBJECT handles less than half correctly, the worst first."""
    own = intents.filter(candidate=SUBJECT).group_by("intent")
    rates = own.agg(
        rate=pl.col("rate").dot("n") / pl.col("n").sum(), n=pl.col("n").sum().cast(pl.Int64)
    )
    return rates.filter(pl.col("rate") < 0.5).sort("rate", "intent").rows()


def _breakable(name: str) -> Markup:
    """`name`, escaped, that can be broken after an underscore."""
    return escape(name).replace("_", Markup("_<wbr>"))


def _close_up(plane: pl.DataFrame) -> float:
    """Where a close-up begins: 0 (none) unless three or more candidates crowd the upper right."""
    lows = [
        min(row["safety_lo"], row["utility_lo"]) for row in plane.drop_nulls().iter_rows(named=True)
    ]
    crowd = [low for low in lows if low >= 0.55]
    return max(0.5, int(min(crowd) * 20) / 20 - 0.05) if len(crowd) >= 3 else 0.0
