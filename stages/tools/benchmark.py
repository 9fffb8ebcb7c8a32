"""Measure a model on the released test set, beside those measured before.

    make benchmark MODEL=gpt-4o-mini BASE_URL=https://api.openai.com/v1    # at an endpoint
    make benchmark MODEL=models/dpo LIMIT=500    # a local folder or hub id, on a sample
    python -m stages.tools benchmark MODEL --help

Nothing is trained. Reads data/librachemqa/test.parquet, data/seeds.parquet, data/eval/metrics.json,
data/eval/verdicts.parquet if it is there (a run writes it, a clone has none) and params
random_seed, budget, connections, judge, respond, score. Writes to .cache/benchmark/NAME/ (with
--limit N to limit-N in it), or to the folder of --out: responses.parquet and verdicts.parquet, with
the columns they have in data/eval/, and metrics.json, this model's part of
data/eval/metrics.json, with `comparisons` to the others. No output of the pipeline changes.

First it prints what it will ask for and the price. Replies of endpoints come from the reply store
if it has them, answers of models in this process from .cache/answers/. The caps of `budget` hold
for each model by itself.
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
from stages.tools.measuring.benchmark_table import (
    comparisons_of,
    comparisons_table,
    rates_table,
)
from stages.tools.measuring.judging_session import (
    MeasuringSession,
    judge_responses,
    sends_requests,
)

PRICE = "--usd-per-million PROMPT COMPLETION"
SEEDS = Path("data/seeds.parquet")
VERDICTS, METRICS = Path("data/eval/verdicts.parquet"), Path("data/eval/metrics.json")


def option(key: str) -> str:
    """What the command line calls the setting `key`."""
    return "MODEL" if key == "model" else f"--{key.replace('_', '-')}"


class CommandEndpoint(Endpoint):
    """An endpoint whose settings are options of this command."""

    given_in = "the command"

    def called(self, key: str, value: str = "") -> str:
        return f'{PRICE} (with make: ARGS="{PRICE}")' if key == "usd_per_million" else option(key)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages.tools benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", help="a model's name at an endpoint; without --base-url a local folder or hub id")
    add("--base-url", help="of an OpenAI-compatible endpoint (it often ends in /v1)")
    add("--name", help="name of the row (default: MODEL)")
    add("--out", type=Path, help="folder to write to (default: .cache/benchmark/NAME)")
    add("--limit", type=int, help="about so many prompts, of whole substances (default: all)")
    add("--max-tokens", type=int, default=512, help="longest answer (default: %(default)s)")

    add = parser.add_argument_group("of an endpoint, as in params.yaml").add_argument
    add("--api-key-env", default="OPENAI_API_KEY", help="name of the variable that holds the key")
    add("--temperature", type=float, default=0.0)
    add("--concurrency", type=int, default=16)
    add("--timeout-s", type=float, default=120.0)
    add("--mode", choices=("online", "batch"), default="online")
    add(
        "--usd-per-million",
        type=float,
        nargs=2,
        metavar=("PROMPT", "COMPLETION"),
        help="price; 0 0: free",
    )

    title = "of a model in this process, as in `respond.candidates` of params.yaml"
    add = parser.add_argument_group(title).add_argument
    add("--revision", help="commit, tag or branch of a hub id")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--attention", choices=("sdpa", "eager", "flash_attention_2"), default="sdpa")
    add("--quantization", choices=("nf4",))
    add("--batch-size", type=int, default=16)
    options = parser.parse_args(arguments)
    cli.guarded("benchmark", lambda: measure(options))


def measure(options: argparse.Namespace) -> None:
    """Ask, judge, score and print.

    Raises LibraError as the stages do; after printing, if more verdicts abstain than
    judge.max_abstained allows.
    """
    import polars as pl

    from stages.core.tables import read_table, write_json, write_table
    from stages.scoring.rates import score
    from stages.scoring.rows import TEST, judged_rows
    from stages.teacher.offline_teacher import app
    from stages.tools.measuring.sample import folder_of, whole_substances

    name, candidate = named_candidate(options)
    # Spending is counted under this name, so the caps are this measurement's own. The space keeps
    # these replies out of a release (Store.rows).
    os.environ["DVC_EXP_NAME"] = f"benchmark {name}"
    respond, judge = read_params("respond"), read_params("judge")
    random_seed, caps = respond.random_seed, respond.settings("budget", BudgetParams)
    max_quarantined = respond.section("respond", RespondParams).max_quarantined
    judge_params = judge.section("judge", JudgeParams)
    score_params = read_params("score").section("score", ScoreParams)
    panel = judge.settings("connections", Connections).for_judges(judge_params.panel)

    if not SEEDS.exists():
        raise LibraError(f"{SEEDS} is not here; `dvc repro seed` makes it in seconds")
    seeds = read_table(SEEDS, ("seed_id", "status"))
    test = read_table("data/librachemqa/test.parquet", (*TEST, "prompt", "fact"))
    total = test["prompt_id"].n_unique()
    if options.limit is not None:
        test = whole_substances(test, options.limit, random_seed)
    prompts = test.select("seed_id", "prompt_id", "prompt").unique("prompt_id").sort("prompt_id")
    print(
        f"benchmark: {candidate}, {prompts.height:,} of {total:,} test prompts, "
        f"about {test['substance_id'].n_unique():,} substances"
    )
    stored = stored_verdicts(name, prompts)

    def ask(session: Session):
        requests = bare_requests(prompts["prompt"])
        answers = endpoint_answers(session, name, candidate, requests, max_quarantined, app)
        return as_responses(prompts, name, answers)

    # A rehearsal first: what will be sent, and its price. The judges' part of it rests on what a
    # model in this process said, or on what the rehearsal says in an endpoint's place.
    local = isinstance(candidate, LocalModel)
    Rehearsal.estimates = {}
    if local:
        answers = local_rows(candidate, name, prompts["prompt"].to_list(), random_seed)
        responses = as_responses(prompts, name, answers)
    else:
        responses = ask(Rehearsal("respond", random_seed))
    if sends_requests(panel):
        judge_responses(Rehearsal("judge", random_seed), responses, test, panel)
    if Rehearsal.estimates:
        show(Rehearsal.estimates, caps)
    else:
        print("nothing is sent: model and judge answer inside the process")

    tallies = {}
    if not local:
        with MeasuringSession("respond", random_seed, caps) as session:
            responses = ask(session)
            tallies |= session.tallies
    folder = options.out or folder_of(options.limit, Path(".cache/benchmark") / name)
    write_table(responses, folder / "responses.parquet", "prompt_id")
    with MeasuringSession("judge", random_seed, caps) as session:
        verdicts = judge_responses(session, responses, test, panel)
        tallies |= session.tallies
    write_table(verdicts, folder / "verdicts.parquet", ["prompt_id", "channel"])

    rows = judged_rows(pl.concat([verdicts, *stored], how="diagonal"), test, seeds)
    metrics = score(rows, score_params.bootstrap, score_params.confidence, random_seed)
    metrics["comparisons"] = comparisons_of(metrics["comparisons"], name)
    about = {"model": candidate.model_dump(), "name": name, "limit": options.limit}
    generation = {kind: tally.report() for kind, tally in tallies.items()}
    write_json({**metrics, "benchmark": about, "generation": generation}, folder / "metrics.json")

    if not stored and options.limit is None and METRICS.exists():
        metrics["candidates"] |= json.loads(METRICS.read_text(encoding="utf-8"))["candidates"]
    print(rates_table(metrics["candidates"], name))
    if stored:
        print(comparisons_table(metrics["comparisons"]))
    else:
        print(f"no paired tests: {VERDICTS} is not here; `dvc repro judge` writes it")
    print(f"benchmark: {folder} holds the responses, the verdicts and metrics.json")
    try:
        check_abstained(verdicts, judge_params.max_abstained)
    except LibraError:
        session.give_up()  # the next run asks again for what was unusable
        raise


def named_candidate(options: argparse.Namespace) -> tuple[str, Endpoint | LocalModel]:
    """The name of the row, and the model to measure.

    Raises LibraError for settings out of range, and for names that can't be a folder's.
    """
    if not options.model:
        raise LibraError(
            "which model? `make benchmark MODEL=...`, with BASE_URL=... for an endpoint"
        )
    name = options.name or re.sub(r"[^\w.-]+", "-", options.model).strip("-.")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise LibraError(
            f"`{name}` can't name a row; set --name to letters, digits, dots, dashes and "
            "underscores"
        )
    if options.limit is not None and options.limit < 1:
        raise LibraError(f"--limit must be at least 1, not {options.limit}")

    kind = LocalModel if options.base_url is None else CommandEndpoint
    values = {key: value for key, value in vars(options).items() if key in kind.model_fields}
    if values.get("usd_per_million"):
        prompt, completion = options.usd_per_million
        values["usd_per_million"] = {"prompt": prompt, "completion": completion}
    try:
        return name, check_section("benchmark", values, kind)
    except LibraError as error:
        message = re.sub(
            r"`benchmark\.([\w.]+)`",
            lambda key: f"`{option(key[1].partition('.')[0])}`",
            str(error),
        )
        raise LibraError(message.removeprefix("params.yaml: ")) from None


def stored_verdicts(name: str, prompts) -> list:
    """[the pipeline's verdicts on `prompts`], or [] if there are none.

    Raises LibraError if one of its candidates has this name.
    """
    from stages.core.tables import read_table
    from stages.judging.verdicts import COLUMNS as VERDICT_COLUMNS

    if not VERDICTS.exists():
        return []
    verdicts = read_table(VERDICTS, VERDICT_COLUMNS)
    if name in verdicts["candidate"]:
        raise LibraError(
            f"a candidate of the pipeline is called {name}; set --name (ARGS='--name ...' with "
            "make)"
        )
    return [verdicts.filter(verdicts["prompt_id"].is_in(prompts["prompt_id"].implode()))]


def local_rows(local: LocalModel, name: str, prompts: list[str], random_seed: int) -> list[tuple]:
    """(answer, reasoning, finish_reason, error) of each prompt, greedy, in this process."""
    from stages.training.determinism import deterministic

    deterministic(random_seed, offline=Path(local.model).is_dir())
    answers = local_answers(local, prompts, f"respond: {name}", option)
    return [(text, None, finish_reason, None) for text, finish_reason in answers]


def as_responses(prompts, name: str, answers: list[tuple]):
    """Answers to `prompts` (seed_id, prompt_id, prompt) as rows of responses.parquet."""
    import polars as pl

    schema = dict.fromkeys(COLUMNS[4:], pl.String)
    columns = pl.DataFrame(answers, schema=schema, orient="row")
    keys = prompts.select(pl.lit(name).alias("candidate"), pl.all())
    return pl.concat([keys, columns], how="horizontal")
