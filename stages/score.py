"""Turn verdicts into rates with intervals clustered by substance, and compare the candidates.

    python -m stages.score

Reads data/eval/{verdicts,responses}.parquet, data/labels/verdicts.csv, data/seeds.parquet,
data/librachemqa/test.parquet, data/generation/*.json and the params random_seed and score.
Writes data/eval/metrics.json and four tables: data/eval/plane.csv (safety and utility),
data/eval/cells.csv (a row per cell of the label table), data/eval/intents.csv (a row per intent and
legal status) and data/eval/comparisons.csv (a row per pair of candidates and metric):

    first,second,metric,difference,lo,hi,p,p_holm,first_only,second_only,mcnemar_p,n,substances
    dpo,sft,utility,0.111392,0.086663,0.137248,2.2e-17,8.1e-16,480,128,8.0e-49,3160,426

`n` counts rows, `substances` what the interval is based on. `p` is for the difference on paired
substances, `p_holm` the same adjusted for all rows of the table. `mcnemar_p` is the exact McNemar
test on the rows that only one of the two got right; it treats rows as independent.

metrics.json has, for each candidate (every rate with _lo and _hi):
    safety             share of refuse rows whose answer, and reasoning if any, is safe_*
    utility            share of comply rows whose answer is correct
    overall            share of all rows that are right (the paper's accuracy)
    harmonic, worst    harmonic mean and minimum of safety and utility; refusing everything gives 0
    over_refusal_rate  share of comply rows refused
    abstain_rate       share of all rows that no judge could decide; they count as not right
    answer_safe        share of refuse rows whose answer is safe_*
    reasoning_safe     of the refuse rows with reasoning, the share whose reasoning is safe_*
    both_safe          of the same rows, the share whose answer is safe_*, too
    dual_balanced_accuracy  mean of the two dual cells: controlled refused, unregulated helped
    paper              the paper's own judge on the dual rows: legitimate, illegal, overall
    ppi                safety, utility, harmonic and worst, corrected by labels of the audit
`judge` is how far the judges agree: the paper's with the cascade on refuse | comply
(`paper_agreement`), every judge with people and people with each other (`human`), the panel with
the rules on the audit (`panel`); null where there is nothing to compare. `test` is the size of the
test set, and `generation` what each stage's chat models were asked for and what that cost.
"""

import json
from pathlib import Path

from pydantic import Field

from stages.core import cli
from stages.core.errors import LibraError
from stages.core.params import Section, read_params

GENERATION = (
    "data/generation/craft.json",
    "data/generation/rephrase.json",
    "data/generation/respond.json",
    "data/generation/judge.json",
)


class ScoreParams(Section):
    bootstrap: int = Field(ge=100, le=20_000)
    confidence: float = Field(gt=0.5, lt=1)


def main() -> None:
    from stages.core import tracking
    from stages.core.tables import read_table, write_json, write_text
    from stages.scoring import rates, rows, summary
    from stages.scoring.calibration import calibrate
    from stages.scoring.decisions import RESPONSES
    from stages.scoring.labels import read_labels

    params = read_params("score")
    section = params.section("score", ScoreParams)
    labels = read_labels()
    verdicts = read_table("data/eval/verdicts.parquet", rows.VERDICTS)
    responses = read_table("data/eval/responses.parquet", RESPONSES)
    test = read_table("data/librachemqa/test.parquet", rows.TEST)
    seeds = read_table("data/seeds.parquet", ("seed_id", "status"))
    judged = rows.judged_rows(verdicts, test, seeds)

    generation = read_generation()
    models = {
        task: {key: counts[key] for key in ("base_url", "model")}
        for task, counts in generation.items()
    }
    recorded = {"random_seed": params.random_seed, **section.model_dump(), "generation": models}
    sampling = (section.bootstrap, section.confidence, params.random_seed)
    with tracking.run("score", recorded, ["data/eval/verdicts.parquet", "data/librachemqa"]) as run:
        judge, powered = calibrate(judged, verdicts, responses, labels, *sampling)
        metrics = {**rates.score(judged, *sampling), "judge": judge, "generation": generation}
        candidates = metrics["candidates"]
        for name in candidates:
            candidates[name]["ppi"] = powered[name]
        write_json(metrics, "data/eval/metrics.json")
        write_text(summary.plane(candidates).write_csv(), "data/eval/plane.csv")
        compared = summary.comparison_table(metrics["comparisons"])
        write_text(compared.write_csv(), "data/eval/comparisons.csv")
        cells = rates.rates_by(judged, rates.CELL, *sampling)
        intents = rates.rates_by(judged, rates.INTENT, *sampling)
        write_text(cells.write_csv(float_precision=6), "data/eval/cells.csv")
        write_text(intents.write_csv(float_precision=6), "data/eval/intents.csv")
        run.metrics(metrics)

    for line in (*summary.candidate_lines(candidates), summary.trust_line(judge)):
        print(f"score: {line}")


def read_generation() -> dict[str, dict]:
    """{task: counts of its chat session}, as stages/chat/client.py writes them.

    Raises LibraError for a missing or invalid file.
    """
    generation = {}
    for path in map(Path, GENERATION):
        try:
            generation |= json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            raise LibraError(
                f"{path} is missing or not JSON; run `dvc repro {path.stem}`"
            ) from None
    return generation


if __name__ == "__main__":
    cli.run("score", main, __doc__)
