"""What a run would ask of chat models and what it would cost, before anything is sent.

    make estimate        # or: dvc repro seed && python -m stages.tools estimate

    stage                    requests    kept   to send   prompt tokens  completion tokens        USD  tokens from
    craft                       2,656       0     2,656       2,302,480            203,112     0.4672  rehearsal
    ...

The stages themselves are rehearsed in a temporary folder: what the reply store and the archives in data/replies/ hold is read from
there, all else the offline teacher and judge answer in the server's place. Tokens are guessed from the texts (tokens.py). Once 20 replies
of a model are kept, its own counts correct the guess, and of a stage, also how much longer it writes than the offline teacher. The judge
reads what policies and further candidates answered in the last run, or else what the n-gram guard answers; a further candidate of which
too few replies are kept counts as long as max_tokens.
"""

import argparse
import asyncio
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from stages.chat.budget import BudgetParams, price_of
from stages.chat.client import ENOUGH, OfflineAsker, Session, Tally, placed
from stages.chat.protocol import OFFLINE, ChatRequest, Endpoint, Reply, request_body
from stages.chat.store import Store, store_path
from stages.chat.tokens import guess, guess_asked, text_of
from stages.chat.wire import Wire
from stages.core import cli
from stages.core.errors import LibraError
from stages.core.params import read_params
from stages.core.progress import counter

SAMPLE = 200  # kept replies that correct a guess
LINKED = (
    "stages",
    "params.yaml",
    "dvc.yaml",
    "data/catalog",
    "data/replies",
    "data/domain.json",
    "data/seeds.parquet",
    "data/substances.parquet",
)


@dataclass
class Estimate:
    """Of one kind of request: how many, of them kept, and what those to send would cost (USD None: no price is known)."""

    inside: bool  # the process: nothing is sent
    requests: int = 0
    kept: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = 0.0
    basis: str = ""  # what the token counts rest on
    price: str = ""  # what the endpoint's user calls its price, to set one

    @property
    def to_send(self) -> int:
        return 0 if self.inside else self.requests - self.kept


class Rehearsal(Session):
    """A session that sends nothing: what isn't kept, `app` answers."""

    estimates: dict[str, Estimate] = {}  # of all sessions of this process, by what is asked for

    def __exit__(self, *_: object) -> None:
        """Nothing is reported."""

    def quarantined(self, what: str, count: int, unfit=None) -> None:
        """Nor noted."""

    def give_up(self, unfit=None) -> None:
        """Nor put aside."""

    def ask(
        self, endpoint: Endpoint, requests: list[ChatRequest], what: str, app=None, note: str = ""
    ) -> list[Reply]:
        if endpoint.base_url == OFFLINE:
            self.estimates.setdefault(what, Estimate(inside=True)).requests += len(requests)
            return super().ask(endpoint, requests, what, app, note)
        estimate = self.estimates.setdefault(what, Estimate(inside=False))
        rows, tally = (
            self.rows(endpoint, requests),
            Tally(endpoint.base_url, endpoint.model, endpoint.mode, None),
        )
        with Store(store_path()) as store:
            missing = self.missing(endpoint, store, rows, tally)
            of_stage = store.sample(endpoint.base_url, endpoint.model, what, SAMPLE)
            of_model = store.sample(endpoint.base_url, endpoint.model, "%", SAMPLE)
        estimate.requests += len(rows)
        estimate.kept += len(rows) - len(missing)
        inside = endpoint.model_copy(
            update={"base_url": OFFLINE, "model": next(iter(app.models)), "mode": "online"}
        )
        asyncio.run(
            OfflineAsker(self, inside, tally, counter(what + note, len(missing)), app).run(missing)
        )
        estimate.basis, asking, telling = "rehearsal", 1.0, 1.0
        said = (
            asyncio.run(_said(inside, app, [request for request, *_ in of_stage]))
            if len(of_stage) >= ENOUGH
            else None
        )
        if said is not None:
            estimate.basis = f"{len(of_stage)} of its replies"
            asking, telling = _corrections(of_stage, said)
        elif len(of_model) >= ENOUGH:
            estimate.basis = f"rehearsal, {len(of_model)} replies of the model"
            asking, telling = _corrections(of_model, [text_of(reply) for _, reply, *_ in of_model])
        pricing, estimate.price = price_of(endpoint), endpoint.called("usd_per_million")
        for row in missing:
            asked = round(asking * guess_asked(request_body(endpoint, row.now(), self.random_seed)))
            answered = round(telling * guess(row.reply.content))
            if (
                len(row.request.messages) == 1 and said is None
            ):  # a further candidate: nobody knows what it will say
                answered, estimate.basis = endpoint.max_tokens, "the longest replies there may be"
            estimate.prompt_tokens += asked
            estimate.completion_tokens += answered
            if pricing is None or estimate.usd is None:
                estimate.usd = None
            else:
                estimate.usd += pricing.usd(asked, answered, {})
        return placed(rows, len(requests))


def _corrections(kept: list[tuple[dict, dict, int, int]], said: list[str]) -> tuple[float, float]:
    """(prompt tokens, completion tokens) of kept replies over what is guessed of their requests and of the texts `said`."""
    asked = sum(guess_asked(request) for request, *_ in kept)
    told = sum(map(guess, said))
    return sum(row[2] for row in kept) / asked, sum(row[3] for row in kept) / (told or 1.0)


async def _said(inside: Endpoint, app, requests: list[dict]) -> list[str] | None:
    """What the offline application answers to requests that a server answered; None where one is of a form it doesn't know."""
    async with Wire(inside, app) as wire:
        try:
            return [
                text_of(await wire.complete({**request, "model": inside.model}))
                for request in requests
            ]
        except LibraError:
            return None


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
    from stages.core.tables import read_table, write_table
    from stages.domain.description import kept_domain
    from stages.judging.words import TRAIN
    from stages.training import data

    craft.main(Rehearsal)
    rephrase.main(Rehearsal)
    combine.main()
    triplets = read_table("data/triplets.parquet", ("split", "prompt_id"))
    test, train = (triplets.filter(pl.col("split") == split) for split in ("test", "train"))
    asked = test.select("seed_id", "prompt_id", "prompt").unique("prompt_id").sort("prompt_id")

    params = read_params("respond")
    section, teacher = (
        params.section("respond", respond.RespondParams),
        params.section("teacher", Endpoint),
    )
    answers = respond.asked_answers(
        Rehearsal("respond", params.random_seed), teacher, section, asked
    )
    obliging = respond.always_comply(test)
    write_table(train, TRAIN, "triplet_id")  # for the guard, and for another domain's offline judge
    guarded = respond.guarded(data.triplets("train"), asked["prompt"].to_list(), obliging)
    answers["always_comply"] = [(text, None, "stop", None) for text in obliging]
    answers["always_refuse"] = [(respond.REFUSAL, None, "stop", None)] * len(obliging)
    answers["ngram_guard"] = guarded
    unknown = [
        name
        for name in section.candidates
        if name not in answers or Rehearsal.estimates[f"respond: {name}"].to_send
    ]
    for name in ("sft", "dpo", *unknown):
        # texts of their own: the judge reads equal ones once
        answers[name] = _last_answers(project, name, asked) or [
            (f"{text} ({name})", *rest) for text, *rest in guarded
        ]
    parts = []
    for name, rows in answers.items():
        table = pl.DataFrame(
            rows, schema=dict.fromkeys(respond.COLUMNS[4:], pl.String), orient="row"
        )
        parts.append(
            pl.concat(
                [asked.select(pl.lit(name).alias("candidate"), pl.all()), table], how="horizontal"
            )
        )

    params = read_params("judge")
    section = params.section("judge", judge.JudgeParams)
    judge.judge_all(
        Rehearsal("judge", params.random_seed),
        pl.concat(parts),
        test,
        section.panel,
        section.audit_share,
        domain=kept_domain(),
    )


def _last_answers(project: Path, candidate: str, asked) -> list[tuple] | None:
    """What `candidate` answered to the prompts of `asked` in the last run; None unless it answered all of them."""
    import polars as pl

    from stages.core.tables import read_table
    from stages.respond import COLUMNS

    path = project / "data/eval/responses.parquet"
    if not path.exists():
        return None
    known = (
        read_table(path, COLUMNS)
        .filter(pl.col("candidate") == candidate)
        .drop("candidate", "seed_id")
    )
    found = (
        asked.select("prompt_id", "prompt")
        .join(known, on=("prompt_id", "prompt"), how="inner")
        .sort("prompt_id")
    )
    return found.select(COLUMNS[4:]).rows() if found.height == asked.height else None


def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(
        prog="python -m stages.tools estimate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(arguments)
    cli.guarded("estimate", _print)


def _print() -> None:
    caps = read_params("craft").section("budget", BudgetParams)
    show(estimate(), caps)


def show(found: dict[str, Estimate], caps: BudgetParams) -> None:
    """Print estimates and their sum, with what this run paid before, against the caps."""
    widths = "{:<24}{:>10}{:>10}{:>10}{:>16}{:>19}{:>11}  {}"
    print(
        widths.format(
            "stage",
            "requests",
            "kept",
            "to send",
            "prompt tokens",
            "completion tokens",
            "USD",
            "tokens from",
        )
    )
    for what, one in found.items():
        if one.inside:
            print(f"{what:<24}{one.requests:>10,}  answered inside the process: nothing is sent")
            continue
        counts = (
            f"{count:,}"
            for count in (
                one.requests,
                one.kept,
                one.to_send,
                one.prompt_tokens,
                one.completion_tokens,
            )
        )
        usd = "no price" if one.usd is None else f"{one.usd:.4f}"
        print(widths.format(what, *counts, usd, one.basis if one.to_send else "nothing to send"))
    with Store(store_path()) as store:
        paid = store.spent()
    unpriced = list(dict.fromkeys(one.price for one in found.values() if one.usd is None))
    usd = None if unpriced else sum(one.usd for one in found.values())
    requests = sum(one.to_send for one in found.values())
    tokens_all = sum(one.prompt_tokens + one.completion_tokens for one in found.values())
    if usd is None:
        print(f"total USD: a model above has no price; set its {' or '.join(unpriced)}")
    else:
        _total("USD", "max_usd", caps.max_usd, usd, paid.usd, ",.4f")
    _total("requests", "max_requests", caps.max_requests, requests, paid.requests, ",")
    _total("tokens", "max_tokens", caps.max_tokens, tokens_all, paid.tokens, ",")


def _total(unit: str, name: str, cap: float | None, value: float, paid: float, form: str) -> None:
    """A line of the sum, with what the last run's stages paid before, against its cap."""
    line = f"total {unit}: {value:{form}}" + (f", and {paid:{form}} paid before" if paid else "")
    if cap is not None:
        line += f"; budget.{name} is {cap:{form}}" + (
            ": the run will stop there" if value + paid > cap else ""
        )
    print(line)
