"""Measure a model on the released test set, beside those measured before.

    make benchmark MODEL=gpt-4o-mini BASE_URL=https://api.openai.com/v1    # an OpenAI-compatible endpoint
    make benchmark MODEL=models/dpo LIMIT=500                              # a local folder or hub id, on a sample
    python -m stages.tools benchmark MODEL --help

Reads data/librachemqa/test.parquet, data/seeds.parquet, data/eval/metrics.json, data/eval/verdicts.parquet where it is there (a run writes
it, a clone has none) and params random_seed, budget, judge, respond, score. Writes into .cache/benchmark/NAME/ (with --limit N into
limit-N in it), or the folder of --out: responses.parquet and verdicts.parquet, columns as in data/eval/, and metrics.json, the part of
data/eval/metrics.json about this model, with `comparisons` to the others. No output of the pipeline and no dvc.lock changes.

First it says what will be asked. Replies of endpoints come from the reply store where it has them, answers of models in this process
from .cache/answers/; the caps of `budget` hold for each model by itself.
"""

import argparse
import json
import os
import re
from pathlib import Path

from stages.chat.budget import BudgetParams
from stages.chat.client import Session
from stages.chat.connections import Connections
from stages.chat.protocol import Endpoint
from stages.core import cli
from stages.core.errors import LibraError
from stages.core.params import check_section, read_params
from stages.judge import JudgeParams, check_abstained
from stages.local.answers import LocalModel, local_answers
from stages.local.candidates import COLUMNS, bare_requests, endpoint_answers
from stages.respond import RespondParams
from stages.score import ScoreParams
from stages.tools.estimate import Rehearsal, show
from stages.tools.measuring.judged import Measured, are_asked, judged

SHOWN = {
    "safety": "safety",
    "utility": "utility",
    "harmonic": "harmonic",
    "overall": "overall",
    "dual_balanced_accuracy": "dual",
}
PRICE = "--usd-per-million PROMPT COMPLETION"
SEEDS = Path("data/seeds.parquet")
VERDICTS, METRICS = Path("data/eval/verdicts.parquet"), Path("data/eval/metrics.json")


def option(key: str) -> str:
    """What this command calls the setting `key`."""
    return "MODEL" if key == "model" else f"--{key.replace('_', '-')}"


class GivenEndpoint(Endpoint):
    """An endpoint whose settings are this command's options."""

    given_in = "the command"

    def called(self, key: str, value: str = "") -> str:
        return f'{PRICE} (with make: ARGS="{PRICE}")' if key == "usd_per_million" else option(key)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages.tools benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", help="a model's name at an endpoint; without --base-url a local folder or hub id"
    )
    parser.add_argument(
        "--base-url", help="of an OpenAI-compatible endpoint (it often ends in /v1)"
    )
    parser.add_argument("--name", help="what the row is called; MODEL unless given")
    parser.add_argument(
        "--out",
        type=Path,
        help="the folder to write to; .cache/benchmark/NAME, or limit-N in it, unless given",
    )
    parser.add_argument(
        "--limit", type=int, help="about so many prompts, of whole substances; all unless given"
    )
    parser.add_argument("--max-tokens", type=int, default=512, help="longest answer")
    at_endpoint = parser.add_argument_group("of an endpoint, as in `teacher` of params.yaml")
    at_endpoint.add_argument(
        "--api-key-env",
        default="OPENAI_API_KEY",
        help="the variable that holds the key; never the key",
    )
    at_endpoint.add_argument("--temperature", type=float, default=0.0)
    at_endpoint.add_argument("--concurrency", type=int, default=16)
    at_endpoint.add_argument("--timeout-s", type=float, default=120.0)
    at_endpoint.add_argument("--mode", choices=("online", "batch"), default="online")
    at_endpoint.add_argument(
        "--usd-per-million",
        type=float,
        nargs=2,
        metavar=("PROMPT", "COMPLETION"),
        help="price; 0 0: free",
    )
    here = parser.add_argument_group(
        "of a model in this process, as in `respond.candidates` of params.yaml"
    )
    here.add_argument("--revision", help="commit, tag or branch of a hub id")
    here.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    here.add_argument("--attention", choices=("sdpa", "eager", "flash_attention_2"), default="sdpa")
    here.add_argument("--quantization", choices=("nf4",))
    here.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args(arguments)
    cli.guarded("benchmark", lambda: measure(options))


def measure(options: argparse.Namespace) -> None:
    """Ask, judge, score and print. Raises LibraError as the stages do; behind the row where more abstain than judge.max_abstained allows."""
    from stages.core.tables import read_table, write_json, write_table
    from stages.scoring.rates import score
    from stages.scoring.rows import TEST, judged_rows
    from stages.teacher.offline_teacher import app
    from stages.tools.measuring.sample import folder_of, whole_substances

    name, candidate = named(options)
    # The name that spending is counted under: the caps are this measurement's own, and what the pipeline paid stays as it is. The blank
    # keeps these replies out of a release (Store.rows).
    os.environ["DVC_EXP_NAME"] = f"benchmark {name}"
    respond, judging, scoring = (read_params(stage) for stage in ("respond", "judge", "score"))
    random_seed, caps = respond.random_seed, respond.settings("budget", BudgetParams)
    judges, drawn = judging.section("judge", JudgeParams), scoring.section("score", ScoreParams)
    panel = judging.settings("connections", Connections).for_judges(judges.panel)

    if not SEEDS.exists():
        raise LibraError(f"{SEEDS} is not here; `dvc repro seed` makes it in seconds")
    whole = read_table("data/librachemqa/test.parquet", (*TEST, "prompt", "fact"))
    seeds = read_table(SEEDS, ("seed_id", "status"))
    test = whole if options.limit is None else whole_substances(whole, options.limit, random_seed)
    asked = test.select("seed_id", "prompt_id", "prompt").unique("prompt_id").sort("prompt_id")
    prompts, substances = asked.height, test["substance_id"].n_unique()
    print(
        f"benchmark: {candidate}, {prompts:,} of {whole['prompt_id'].n_unique():,} test prompts, about {substances:,} substances"
    )
    stored = stored_verdicts(name, asked)

    limit = respond.section("respond", RespondParams).max_quarantined
    tallies = {}

    def told(session: Session) -> list[tuple]:
        return endpoint_answers(
            session, name, candidate, bare_requests(asked["prompt"]), limit, app
        )

    Rehearsal.estimates = {}
    local = isinstance(candidate, LocalModel)
    rows = (
        in_this_process(candidate, name, asked["prompt"].to_list(), random_seed)
        if local
        else told(Rehearsal("respond", random_seed))
    )
    if are_asked(
        panel
    ):  # their part rests on what the model said, or on what the rehearsal says in its place
        judged(Rehearsal("judge", random_seed), as_responses(asked, name, rows), test, panel)
    if Rehearsal.estimates:
        show(Rehearsal.estimates, caps)
    else:
        print("nothing is sent: model and judge answer inside the process")
    if not local:
        with Measured("respond", random_seed, caps) as session:
            rows = told(session)
            tallies |= session.tallies
    responses = as_responses(asked, name, rows)
    folder = options.out or folder_of(options.limit, Path(".cache/benchmark") / name)
    write_table(responses, folder / "responses.parquet", "prompt_id")
    with Measured("judge", random_seed, caps) as session:
        verdicts = judged(session, responses, test, panel)
        tallies |= session.tallies
    write_table(verdicts, folder / "verdicts.parquet", ["prompt_id", "channel"])

    import polars as pl

    rows = judged_rows(pl.concat([verdicts, *stored], how="diagonal"), test, seeds)
    metrics = score(rows, drawn.bootstrap, drawn.confidence, random_seed)
    metrics["comparisons"] = of_one(metrics["comparisons"], name)
    about = {"model": candidate.model_dump(), "name": name, "limit": options.limit}
    generation = {what: tally.report() for what, tally in tallies.items()}
    write_json({**metrics, "benchmark": about, "generation": generation}, folder / "metrics.json")
    if not stored and options.limit is None and METRICS.exists():
        metrics["candidates"] |= json.loads(METRICS.read_text(encoding="utf-8"))["candidates"]
    print(table(metrics["candidates"], name))
    print(
        comparisons(metrics["comparisons"])
        if stored
        else f"no paired tests: {VERDICTS} is not here; `dvc repro judge` writes it"
    )
    print(f"benchmark: {folder} holds the responses, the verdicts and metrics.json")
    try:
        check_abstained(verdicts, judges.max_abstained)
    except LibraError:
        session.give_up()  # the next run asks again for what was of no use
        raise


def named(options: argparse.Namespace) -> tuple[str, Endpoint | LocalModel]:
    """What the row is called, and who is asked. Raises LibraError for settings out of range and names that make no folder."""
    if not options.model:
        raise LibraError(
            "which model? `make benchmark MODEL=...`, with BASE_URL=... for an endpoint"
        )
    name = options.name or re.sub(r"[^\w.-]+", "-", options.model).strip("-.")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise LibraError(
            f"`{name}` is no name for a row: letters, digits, dots, dashes and underscores make one; set --name"
        )
    if options.limit is not None and options.limit < 1:
        raise LibraError(f"--limit must be at least 1, not {options.limit}")
    kind = LocalModel if options.base_url is None else GivenEndpoint
    values = {key: value for key, value in vars(options).items() if key in kind.model_fields}
    if values.get("usd_per_million"):
        values["usd_per_million"] = dict(
            zip(("prompt", "completion"), options.usd_per_million, strict=True)
        )
    try:
        return name, check_section("benchmark", values, kind)
    except LibraError as error:
        told = re.sub(
            r"`benchmark\.([\w.]+)`",
            lambda key: f"`{option(key[1].partition('.')[0])}`",
            str(error),
        )
        raise LibraError(told.removeprefix("params.yaml: ")) from None


def stored_verdicts(name: str, asked) -> list:
    """[the pipeline's verdicts on the prompts of `asked`], or [] where they aren't here. Raises LibraError for a name that is taken."""
    from stages.core.tables import read_table
    from stages.judging.verdicts import COLUMNS as OF_VERDICTS

    if not VERDICTS.exists():
        return []
    verdicts = read_table(VERDICTS, OF_VERDICTS)
    if name in verdicts["candidate"]:
        raise LibraError(
            f"a candidate of the pipeline is called {name}; set --name (ARGS='--name ...' with make)"
        )
    return [verdicts.filter(verdicts["prompt_id"].is_in(asked["prompt_id"].implode()))]


def in_this_process(
    local: LocalModel, name: str, prompts: list[str], random_seed: int
) -> list[tuple]:
    """(answer, reasoning, finish_reason, error) of each prompt, greedy."""
    from stages.training.determinism import deterministic

    deterministic(random_seed, offline=Path(local.model).is_dir())
    written = local_answers(local, prompts, f"respond: {name}", option)
    return [(text, None, finish, None) for text, finish in written]


def as_responses(asked, name: str, rows: list[tuple]):
    """Answers to `asked` (seed_id, prompt_id, prompt) as rows of responses.parquet."""
    import polars as pl

    answers = pl.DataFrame(rows, schema=dict.fromkeys(COLUMNS[4:], pl.String), orient="row")
    return pl.concat(
        [asked.select(pl.lit(name).alias("candidate"), pl.all()), answers], how="horizontal"
    )


def of_one(comparisons: list[dict], name: str) -> list[dict]:
    """The comparisons of `name`, which stands first in each, with Holm's correction for them alone."""
    import numpy as np

    from stages.scoring.statistics import holm

    found = []
    for row in comparisons:
        if row["second"] == name:
            less = {
                key: 0.0 - row[of]
                for key, of in (("difference", "difference"), ("lo", "hi"), ("hi", "lo"))
            }
            row |= less | {
                "first": name,
                "second": row["first"],
                "first_only": row["second_only"],
                "second_only": row["first_only"],
            }
        if row["first"] == name:
            found.append(row)
    adjusted = holm(np.array([row["p"] for row in found]))
    return [row | {"p_holm": float(f"{p:.4g}")} for row, p in zip(found, adjusted, strict=True)]


def table(candidates: dict[str, dict], name: str) -> str:
    """A line for each candidate, best harmonic mean first; `name` is marked."""
    lines = ["{:<26}".format("candidate") + "".join(f"{title:<24}" for title in SHOWN.values())]
    for one, rates in sorted(
        candidates.items(), key=lambda item: (-(item[1]["harmonic"] or 0.0), item[0])
    ):
        cells = [interval(rates[key], rates[f"{key}_lo"], rates[f"{key}_hi"]) for key in SHOWN]
        lines.append(
            f"{'> ' if one == name else '  '}{one:<24}" + "".join(f"{cell:<24}" for cell in cells)
        )
    return "\n".join(line.rstrip() for line in lines)


def comparisons(rows: list[dict]) -> str:
    """A line for each difference that was tested: paired by prompt, intervals clustered by substance, p after Holm's correction."""
    lines = [
        f"{rows[0]['first']} less ..., on the same prompts (p: clustered, Holm's correction; McNemar: exact, prompts independent)"
    ]
    for row in rows:
        mcnemar = (
            ""
            if row["mcnemar_p"] is None
            else f", McNemar p {row['mcnemar_p']:.2g} ({row['first_only']} : {row['second_only']})"
        )
        told = f"{row['difference']:+.3f} ({row['lo']:+.3f} to {row['hi']:+.3f}), p {row['p_holm']:.2g}{mcnemar}"
        lines.append(f"  {row['second']:<24}{SHOWN[row['metric']]:<10}{told}")
    return "\n".join(lines)


def interval(rate: float | None, lo: float | None, hi: float | None) -> str:
    return "-" if rate is None or lo is None or hi is None else f"{rate:.3f} ({lo:.3f} to {hi:.3f})"
