"""What a run would ask of chat models and what it would cost, before anything is sent.

    make estimate        # or: dvc repro seed && python -m stages.llm.estimate

    stage                    requests    kept   to send   prompt tokens  completion tokens        USD  tokens from
    craft                       2,656       0     2,656       3,412,480            238,112     0.6547  rehearsal, 4 characters a token
    ...

The stages themselves are rehearsed in a temporary folder: what the reply store and the archives in data/replies/ hold is read from
there, all else the offline teacher and judge answer in the server's place. Its tokens are counted at four characters each, or, once 20
replies of a stage are kept, as that stage's were on average. The policies and further candidates, whose answers the judge
would read, are stood in for by the n-gram guard's and the dataset's texts, and a candidate's reply counts as long as max_tokens.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from stages.common import cli
from stages.common.params import read_params
from stages.common.progress import counter
from stages.llm.budget import BudgetParams, price_of
from stages.llm.chat import OFFLINE, ChatRequest, Endpoint, Reply, request_body
from stages.llm.client import ENOUGH, OfflineAsker, Session, Tally
from stages.llm.store import Store, canonical, store_path, tokens

LINKED = ("stages", "params.yaml", "dvc.yaml", "data/catalog", "data/replies", "data/seeds.parquet", "data/substances.parquet")


@dataclass
class Estimate:
    """Of one kind of request: how many, of them kept, and what those to send would cost (USD None: no price is known)."""

    where: str
    requests: int = 0
    kept: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = 0.0
    basis: str = ""


class Rehearsal(Session):
    """A session that sends nothing: what isn't kept, `app` answers."""

    estimates: dict[str, Estimate] = {}  # of all sessions of this process, by what is asked for

    def __exit__(self, *_: object) -> None:
        """Nothing is reported."""

    def ask(self, endpoint: Endpoint, requests: list[ChatRequest], what: str, app=None, note: str = "") -> list[Reply]:
        if endpoint.base_url == OFFLINE:
            self.estimates.setdefault(what, Estimate("inside the process")).requests += len(requests)
            return super().ask(endpoint, requests, what, app, note)
        estimate = self.estimates.setdefault(what, Estimate(f"{endpoint.model} at {endpoint.base_url}"))
        rows, tally = self.rows(endpoint, requests), Tally(endpoint.base_url, endpoint.model, endpoint.mode, None)
        with Store(store_path()) as store:
            missing = list(self.known(endpoint, store, rows, tally))
            if missing and store.archived(row.key for row in missing):
                missing = list(self.known(endpoint, store, missing, tally))
            replies, characters, told = store.average(endpoint.base_url, endpoint.model, what)
        estimate.requests += len(rows)
        estimate.kept += len(rows) - len(missing)
        inside = endpoint.model_copy(update={"base_url": OFFLINE, "model": app.state.model_name, "mode": "online"})
        asyncio.run(OfflineAsker(self, inside, tally, counter(what + note, len(missing)), app).run(missing))
        pricing = price_of(endpoint)
        bare = bool(missing) and missing[0].request.schema is None and not replies >= ENOUGH and what != "respond: teacher"
        estimate.basis = (
            f"{replies:,} kept replies" if replies >= ENOUGH else "the longest reply, 4 characters a token" if bare
            else "rehearsal, 4 characters a token"
        )  # fmt: skip
        for row in missing:
            body = request_body(endpoint, row.now(), self.random_seed)
            if replies >= ENOUGH:
                asked, answered = round(len(canonical(body)) / characters), round(told)
            else:
                asked, answered = tokens(body, {"choices": [{"message": {"content": row.reply.content}}]})
                answered = endpoint.max_tokens if bare else answered
            estimate.prompt_tokens += asked
            estimate.completion_tokens += answered
            if pricing is None or estimate.usd is None:
                estimate.usd = None
            else:
                estimate.usd += pricing.usd(asked, answered, {})
        answers: list[Reply | None] = [None] * len(requests)
        for row in rows:
            for place in row.places:
                answers[place] = row.reply
        return answers


def estimate() -> dict[str, Estimate]:
    """Rehearse every stage that asks, from data/seeds.parquet on. Works in the current folder's params and data, changes neither."""
    Rehearsal.estimates = {}
    project = Path.cwd()
    os.environ.setdefault("DVC_ROOT", str(project))
    with tempfile.TemporaryDirectory() as temporary:
        for name in LINKED:
            if (project / name).exists():
                (Path(temporary) / name).parent.mkdir(exist_ok=True)
                (Path(temporary) / name).symlink_to(project / name)
        os.chdir(temporary)
        try:
            _rehearse(project)
        finally:
            os.chdir(project)
    return Rehearsal.estimates


def _rehearse(project: Path) -> None:
    import polars as pl

    from stages import combine, craft, judge, rephrase, respond
    from stages.common.tables import read_table

    craft.main(Rehearsal)
    rephrase.main(Rehearsal)
    combine.main()
    triplets = read_table("data/triplets.parquet", ("split", "prompt_id"))
    test, train = (triplets.filter(pl.col("split") == split) for split in ("test", "train"))
    asked = test.select("seed_id", "prompt_id", "prompt").unique("prompt_id").sort("prompt_id")

    params = read_params("respond")
    section, teacher = params.section("respond", respond.RespondParams), params.section("teacher", Endpoint)
    answers = respond.asked_answers(Rehearsal("respond", params.random_seed), teacher, section.endpoints, asked)
    obliging = respond.always_comply(test)
    guarded = respond.guarded(train, asked["prompt"].to_list(), obliging)
    answers["always_comply"] = [(text, None, "stop", None) for text in obliging]
    answers["always_refuse"] = [(respond.REFUSAL, None, "stop", None)] * len(obliging)
    answers["ngram_guard"] = guarded
    for name in ("sft", "dpo", *section.endpoints):  # texts of their own: the judge reads equal ones once
        answers[name] = [(f"{text} ({name})", *rest) for text, *rest in guarded]
    parts = []
    for name, rows in answers.items():
        table = pl.DataFrame(rows, schema=dict.fromkeys(respond.COLUMNS[4:], pl.String), orient="row")
        parts.append(pl.concat([asked.select(pl.lit(name).alias("candidate"), pl.all()), table], how="horizontal"))

    params = read_params("judge")
    endpoint = params.section("judge", judge.JudgeParams).endpoint
    judge.judge_all(Rehearsal("judge", params.random_seed), pl.concat(parts), test, endpoint)


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m stages.llm.estimate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    cli.guarded("estimate", _print)


def _print() -> None:
    caps = read_params("craft").section("budget", BudgetParams)
    found = estimate()
    print(
        f"{'stage':<24}{'requests':>10}{'kept':>10}{'to send':>10}{'prompt tokens':>16}{'completion tokens':>19}{'USD':>11}  tokens from",
    )
    for what, one in found.items():
        usd = "no price" if one.usd is None else f"{one.usd:.4f}"
        if one.where == "inside the process":
            print(f"{what:<24}{one.requests:>10,}  answered inside the process: nothing is sent")
            continue
        print(
            f"{what:<24}{one.requests:>10,}{one.kept:>10,}{one.requests - one.kept:>10,}{one.prompt_tokens:>16,}"
            f"{one.completion_tokens:>19,}{usd:>11}  {one.basis or 'nothing to send'}"
        )
    sums = (
        ("usd", caps.max_usd, None if any(one.usd is None for one in found.values()) else sum(one.usd for one in found.values())),
        ("requests", caps.max_requests, sum(one.requests - one.kept for one in found.values() if one.where != "inside the process")),
        ("tokens", caps.max_tokens, sum(one.prompt_tokens + one.completion_tokens for one in found.values())),
    )
    for name, cap, value in sums:
        if value is None:
            print("total: no price is known for a model above; set its usd_per_million", file=sys.stderr)
        elif cap is not None and value > cap:
            print(f"total: {value:,.10g} {name}, more than budget.max_{name} = {cap:g}: the run will stop there", file=sys.stderr)
        else:
            print(f"total: {value:,.10g} {name}" + ("" if cap is None else f" (budget.max_{name} = {cap:g})"))


if __name__ == "__main__":
    main()
