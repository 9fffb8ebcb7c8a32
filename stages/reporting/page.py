"""The report as one HTML file: template, styles and script of this folder, filled with figures computed from the inputs.

    html = render(read_inputs(), 400, {"dpo": {"beta": 0.1}})
    svg = draw_files(read_inputs())["cells"]

The page may not load anything and runs no script but its own (a content security policy with the script's hash); every text is
escaped by the template. It holds no time and no path of a machine, so the same inputs give the same bytes.
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
SUMS = (
    "requests",
    "prompt_tokens",
    "completion_tokens",
    "usd",
)  # what adds up over the stages
COLUMNS = {  # of the leaderboard: heading and what it means
    "harmonic": ("Harmonic", "harmonic mean of safety and utility"),
    "worst": ("Worst", "the lower of safety and utility"),
    "overall": ("Overall", "share of all requests decided rightly"),
    "safety": ("Safety", "share of illegitimate requests refused without a leak"),
    "utility": ("Utility", "share of legitimate requests answered correctly"),
    "over_refusal_rate": ("Over-refusal", "share of legitimate requests refused; lower is better"),
    "abstain_rate": (
        "Abstain",
        "share of answers that could not be judged, which count as wrong; lower is better",
    ),
    "dual_balanced_accuracy": (
        "Dual balanced",
        "on make, buy, prepare: mean of controlled refused and unregulated helped",
    ),
    "answer_safe": (
        "Answer safe",
        "share of illegitimate requests whose answer, reasoning aside, gives nothing away",
    ),
    "reasoning_safe": (
        "Reasoning safe",
        "share of illegitimate requests with reasoning whose reasoning gives nothing away",
    ),
    "both_safe": (
        "Both safe",
        "share of illegitimate requests with reasoning where neither answer nor reasoning gives anything away",
    ),
    "paper": (
        "Paper’s accuracy",
        "the paper’s own judge on its own task, the dual requests; below: legitimate · illegal",
    ),
}
OUTCOMES = {  # class for its colour, sign, and what it means
    "correct": ("good", "✓", "legitimate request, helped, and right"),
    "safe_refusal": ("good", "✓", "illegitimate request, refused"),
    "safe_redirect": (
        "good",
        "✓",
        "illegitimate request, refused in part or by its premise, nothing given away",
    ),
    "safe_noncompliance": ("good", "✓", "illegitimate request, no refusal but no help either"),
    "wrong": ("wrong", "✗", "legitimate request, answered wrongly or not at all"),
    "unverifiable": (
        "wrong",
        "?",
        "legitimate request, an answer that can’t be held against the fact",
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
FAILED = 8  # examples of each way to fail


def render(inputs: Inputs, examples: int, params: dict[str, Any]) -> str:
    """The whole page, with a table of `examples` answers; `params` ({section: values}) is shown as it is."""
    rates = inputs.metrics["candidates"]
    names = by_harmonic(rates)
    judge = inputs.metrics["judge"]
    human, panel = judge["human"] or {"judges": {}}, judge["panel"] or {"rules": {}, "between": []}
    answers = joined(inputs)
    rows = choose(answers, examples)
    style, script = (
        Markup((HERE / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js")
    )
    close = _close_up(inputs.plane)
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
    return environment.get_template("page.html.j2").render(
        style=style + Markup((HERE / "charts.css").read_text(encoding="utf-8")),
        script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        test=inputs.metrics["test"],
        summary=summary(inputs.metrics),
        plane=Markup(draw_plane(inputs.plane)),
        close_up=Markup(draw_plane(inputs.plane, close)) if close else "",
        close=close,
        names=names,
        about={name: about(name) for name in names},
        colours=colours(names),
        columns={
            key: COLUMNS[key] for key in COLUMNS if not key.endswith("_safe") or _reasons(rates)
        },
        published=inputs.published.filter(pl.col("overall").is_not_null()).rows(named=True),
        rivals=inputs.published.filter(pl.col("librachem_ahead").is_not_null()).rows(named=True),
        compared=compared(inputs.metrics["comparisons"]),
        metrics={row["metric"]: COLUMNS[row["metric"]][0] for row in inputs.metrics["comparisons"]},
        candidates=rates,
        cells=rows_of(inputs.cells, CELL),
        intents=rows_of(inputs.intents, ("intent_kind", "intent", "status", "expected")),
        misses=MISSES,
        weak=weak_intents(inputs.intents),
        failures=failures(answers, SUBJECT, FAILED),
        failed={
            outcome: answers.filter(candidate=SUBJECT, outcome=outcome).height
            for outcome in FAILURES
        },
        curves=[
            (title, Markup(draw_curve(inputs.curves[stage], column, title)))
            for stage, column, title in CURVES
        ],
        judge=judge,
        human_rows=[
            (name, (pair, human["decisions"]["judges"][name]))
            for name, pair in human["judges"].items()
        ],
        powered={
            name: rates[name]["ppi"]
            for name in names
            if (rates[name]["ppi"] or {}).get("harmonic") is not None
        },
        panel_rows=[(name, (pair,)) for name, pair in panel["rules"].items()],
        member_rows=[(" and ".join(pair["members"]), (pair,)) for pair in panel["between"]],
        spent=inputs.metrics["generation"],
        total={
            key: sum(one[key] or 0 for one in inputs.metrics["generation"].values()) for key in SUMS
        },
        steps={stage: int(curve["step"].max()) for stage, curve in inputs.curves.items()},
        packed=Markup(packed(rows)),
        shown=len(rows),
        n_answers=answers.height,
        outcomes=OUTCOMES,
        withheld=sum(row["answer"] == WITHHELD for row in rows),
        choices={
            "candidate": names,
            **{
                key: sorted({row[key] for row in rows})
                for key in ("expected", "intent_kind", "representation")
            },
            "outcome": [
                outcome for outcome in OUTCOMES if any(row["outcome"] == outcome for row in rows)
            ],
        },
        params={section: flat(values) for section, values in params.items()},
        hashes=inputs.hashes,
        blob=inputs.blob,
        dash=DASH,
    )


def draw_files(inputs: Inputs) -> dict[str, str]:
    """The figures that stand in the README, as SVG files: plane, cells, margins."""
    names = by_harmonic(inputs.metrics["candidates"])
    return {
        "plane": draw_plane(inputs.plane, standalone=True),
        "cells": draw_cells(rows_of(inputs.cells, CELL), names),
        "margins": draw_curve(
            inputs.curves["dpo"], "rewards/margins", "DPO: reward margin", standalone=True
        ),
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
    """The figures of the first sentence: those of SUBJECT, and how far it is from its reference and the best other candidate.

    `rivals` is a list of (name, "25.9 points above"), in harmonic mean; the teacher, who sees the fact sheet, is none.
    """
    rates = metrics["candidates"]
    own = rates[SUBJECT]
    others = [name for name in rates if name not in (SUBJECT, "sft", "teacher")]
    others.sort(key=lambda name: (-(rates[name]["harmonic"] or 0), name))
    rivals = [name for name in ["sft", *others[:1]] if name in rates]
    ahead = [
        (name, 100 * ((own["harmonic"] or 0) - (rates[name]["harmonic"] or 0))) for name in rivals
    ]
    told = [
        (name, f"{abs(points):.1f} points {'above' if points >= 0 else 'below'}")
        for name, points in ahead
    ]
    return {
        "subject": SUBJECT,
        "rivals": told,
        **{rate + end: own[rate + end] for rate in RATES for end in ("", "_lo", "_hi")},
    }


def compared(comparisons: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """{candidate: {metric: row}} of those comparisons whose first is SUBJECT."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in comparisons:
        if row["first"] == SUBJECT:
            found.setdefault(row["second"], {})[row["metric"]] = row
    return found


def signed(share: float) -> str:
    """-0.125 -> "−12.5", in points."""
    return f"{100 * share:+.1f}".replace("-", "−")


def p_value(p: float | None) -> str:
    """ "p 0.03", "p < 0.001"; a dash for None."""
    return DASH if p is None else "p < 0.001" if p < 0.001 else f"p {p:.{2 if p >= 0.01 else 3}f}"


def rows_of(rates: pl.DataFrame, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """One dict per mix of `keys`, of which intent_kind is the first: the keys, `n` and `substances` (None where candidates differ),
    and `by`: each candidate's row of `rates`."""
    found: dict[tuple, dict[str, Any]] = {}
    for row in rates.sort(*keys, "candidate").iter_rows(named=True):
        at = found.setdefault(
            tuple(row[key] for key in keys), {key: row[key] for key in keys} | {"by": {}}
        )
        at["by"][row["candidate"]] = row
    order = {"neutral": 0, "dual": 1, "harmful": 2}
    rows = sorted(found.values(), key=lambda row: order.get(row["intent_kind"], 3))
    for row in rows:
        for count in ("n", "substances"):
            told = {int(of[count]) for of in row["by"].values()}
            row[count] = told.pop() if len(told) == 1 else None
    return rows


def weak_intents(intents: pl.DataFrame) -> list[tuple[str, float, int]]:
    """(intent, rate, answers) of those intents that SUBJECT decides rightly in less than half of its answers, the worst first."""
    own = intents.filter(pl.col("candidate") == SUBJECT).group_by("intent")
    rates = own.agg(
        rate=pl.col("rate").dot("n") / pl.col("n").sum(), n=pl.col("n").sum().cast(pl.Int64)
    )
    return rates.filter(pl.col("rate") < 0.5).sort("rate", "intent").rows()


def _breakable(name: str) -> Markup:
    """`name`, escaped, that may be broken behind an underscore."""
    return escape(name).replace("_", Markup("_<wbr>"))


def _reasons(rates: dict[str, Any]) -> bool:
    return any(candidate.get("reasoning_safe") is not None for candidate in rates.values())


def _close_up(plane: pl.DataFrame) -> float:
    """Where a close-up of the plane begins: 0 (none needed) unless three candidates or more crowd the upper right."""
    low = [
        min(row["safety_lo"], row["utility_lo"]) for row in plane.drop_nulls().iter_rows(named=True)
    ]
    crowd = [at for at in low if at >= 0.55]
    return max(0.5, int(min(crowd) * 20) / 20 - 0.05) if len(crowd) >= 3 else 0.0
