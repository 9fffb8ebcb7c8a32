"""What a run would ask of chat models and what that would cost.

    make estimate        # or: dvc repro seed && python -m stages.tools estimate

    stage        requests    kept   to send   prompt tokens  completion tokens     USD  tokens from
    craft           2,656       0     2,656       2,302,480            203,112  0.4672  rehearsal
    ...

The stages are rehearsed in a temporary folder. Replies in the reply store and in the archives of
data/replies/ are read from there; for all others the offline teacher and judge answer in the
server's place. Tokens are guessed from the texts (chat/tokens.py). Once 20 replies of a model are
kept, its own counts correct the guess; 20 of a stage also tell how much longer than the offline
teacher the model writes. The judge reads what policies and further candidates answered in the last
run, else what the n-gram guard answers. A further candidate with too few kept replies is assumed
to write max_tokens.
"""

import argparse
import asyncio
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from stages.chat.budget import BudgetParams, price_of
from stages.chat.calls import Call, Row, in_order
from stages.chat.client import Session
from stages.chat.connections import Connections
from stages.chat.in_process import ask_in_process
from stages.chat.kept import KeptReplies
from stages.chat.protocol import OFFLINE, ChatModel, ChatRequest, Endpoint, Reply
from stages.chat.sender import ENOUGH
from stages.chat.store import Store, store_path
from stages.chat.tally import Tally
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
HEADINGS = (
    *("stage", "requests", "kept", "to send", "prompt tokens", "completion tokens"),
    *("USD", "tokens from"),
)
LINE = "{:<24}{:>10}{:>10}{:>10}{:>16}{:>19}{:>11}  {}"


@dataclass
class Estimate:
    """Counts of one kind of request; tokens and USD (None: no known price) are of those to send."""

    in_process: bool  # nothing is sent
    requests: int = 0
    kept: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = 0.0
    basis: str = ""  # what the token counts rest on
    price: str = ""  # the setting that gives the endpoint a price

    @property
    def to_send(self) -> int:
        return 0 if self.in_process else self.requests - self.kept


class Rehearsal(Session):
    """A session that sends nothing: `app` answers what isn't kept."""

    estimates: dict[str, Estimate] = {}  # of all sessions of this process, by kind of request

    def __exit__(self, *_: object) -> None:
        """Writes nothing."""

    def quarantined(self, kind: str, count: int, unfit=None) -> None:
        """Notes nothing."""

    def give_up(self, unfit=None) -> None:
        """Has nothing asked again."""

    def ask(
        self, endpoint: Endpoint, requests: list[ChatRequest], kind: str, app=None, note: str = ""
    ) -> list[Reply]:
        if endpoint.base_url == OFFLINE:
            estimate = self.estimates.setdefault(kind, Estimate(in_process=True))
            estimate.requests += len(requests)
            return super().ask(endpoint, requests, kind, app, note)

        estimate = self.estimates.setdefault(kind, Estimate(in_process=False))
        call = Call(self.stage, kind, endpoint, self.random_seed, Tally.of(endpoint))
        rows = call.rows(requests)
        with Store(store_path()) as store:
            missing = KeptReplies(store, call).missing(rows)
            of_stage = store.sample(endpoint.base_url, endpoint.model, kind, SAMPLE)
            of_model = store.sample(endpoint.base_url, endpoint.model, "%", SAMPLE)
        estimate.requests += len(rows)
        estimate.kept += len(rows) - len(missing)

        in_process = endpoint.model_copy(
            update={"base_url": OFFLINE, "model": next(iter(app.models)), "mode": "online"}
        )
        rehearsed = Call(
            self.stage, kind, in_process, self.random_seed, Tally.of(in_process),
            counter(kind + note, len(missing)),
        )  # fmt: skip
        asyncio.run(ask_in_process(rehearsed, app, missing))
        self._add(estimate, call, missing, of_stage, of_model, in_process, app)
        return in_order(rows, len(requests))

    def _add(
        self,
        estimate: Estimate,
        call: Call,
        missing: list[Row],
        of_stage: list[tuple[dict, dict, int, int]],
        of_model: list[tuple[dict, dict, int, int]],
        in_process: Endpoint,
        app,
    ) -> None:
        """Add what the rehearsed rows would cost, corrected by kept replies (`Store.sample`)."""
        estimate.basis, prompt_factor, completion_factor = "rehearsal", 1.0, 1.0
        rehearsed = None
        if len(of_stage) >= ENOUGH:
            rehearsed = asyncio.run(_answers(in_process, app, [kept[0] for kept in of_stage]))
        if rehearsed is not None:
            estimate.basis = f"{len(of_stage)} of its replies"
            prompt_factor, completion_factor = _corrections(of_stage, rehearsed)
        elif len(of_model) >= ENOUGH:
            estimate.basis = f"rehearsal, {len(of_model)} replies of the model"
            texts = [text_of(kept[1]) for kept in of_model]
            prompt_factor, completion_factor = _corrections(of_model, texts)

        endpoint = call.endpoint
        pricing, estimate.price = price_of(endpoint), endpoint.called("usd_per_million")
        for row in missing:
            assert row.reply is not None
            prompt = round(prompt_factor * guess_asked(call.body(row.current())))
            completion = round(completion_factor * guess(row.reply.content))
            # A bare prompt goes to a further candidate: nobody knows how long it will answer.
            if len(row.request.messages) == 1 and rehearsed is None:
                completion, estimate.basis = endpoint.max_tokens, "the longest possible replies"
            estimate.prompt_tokens += prompt
            estimate.completion_tokens += completion
            if pricing is None or estimate.usd is None:
                estimate.usd = None
            else:
                estimate.usd += pricing.usd(prompt, completion, {})


def _corrections(
    kept: list[tuple[dict, dict, int, int]], rehearsed: list[str]
) -> tuple[float, float]:
    """(prompt tokens, completion tokens) of kept replies, as multiples of the guess.

    The guess is that of their requests and of the texts `rehearsed`.
    """
    prompt = sum(guess_asked(request) for request, *_ in kept)
    completion = sum(map(guess, rehearsed))
    return sum(row[2] for row in kept) / prompt, sum(row[3] for row in kept) / (completion or 1.0)


async def _answers(endpoint: Endpoint, app, requests: list[dict]) -> list[str] | None:
    """The offline application's answers to requests that a server answered.

    None if it doesn't know the form of one.
    """
    async with Wire(endpoint, app) as wire:
        try:
            bodies = [{**request, "model": endpoint.model} for request in requests]
            return [text_of(await wire.complete(body)) for body in bodies]
        except LibraError:
            return None


def estimate() -> dict[str, Estimate]:
    """Rehearse every stage that asks, from data/seeds.parquet on.

    Reads the params and data of the current folder and changes neither.
    """
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
    from stages.domain.description import load_domain
    from stages.judging.words import TRAIN
    from stages.local import baselines, candidates
    from stages.training import data

    craft.main(Rehearsal)
    rephrase.main(Rehearsal)
    combine.main()
    triplets = read_table("data/triplets.parquet", ("split", "prompt_id"))
    test, train = (triplets.filter(pl.col("split") == split) for split in ("test", "train"))
    prompts = test.select("seed_id", "prompt_id", "prompt").unique("prompt_id").sort("prompt_id")

    params = read_params("respond")
    section = params.section("respond", respond.RespondParams)
    connections = params.settings("connections", Connections)
    answers = candidates.answers_by_endpoint(
        Rehearsal("respond", params.random_seed),
        connections.for_teacher(params.section("teacher", ChatModel)),
        connections.for_candidates(section.candidates),
        section.max_quarantined,
        prompts,
    )

    write_table(train, TRAIN, "triplet_id")  # for the guard, and another domain's offline judge
    answers |= baselines.baseline_answers(test, data.triplets("train"), prompts["prompt"].to_list())
    unknown = [
        name
        for name in section.candidates
        if name not in answers or Rehearsal.estimates[f"respond: {name}"].to_send
    ]
    for name in ("sft", "dpo", *unknown):
        # Texts of their own, since the judge reads equal ones once.
        answers[name] = _last_answers(project, name, prompts) or [
            (f"{text} ({name})", *rest) for text, *rest in answers["ngram_guard"]
        ]

    params = read_params("judge")
    section = params.section("judge", judge.JudgeParams)
    judge.judge_all(
        Rehearsal("judge", params.random_seed),
        candidates.responses_table(prompts, answers),
        test,
        params.settings("connections", Connections).for_judges(section.panel),
        section.audit_share,
        domain=load_domain(),
    )


def _last_answers(project: Path, candidate: str, prompts) -> list[tuple] | None:
    """The answers of `candidate` to `prompts` in the last run; None unless it answered all."""
    import polars as pl

    from stages.core.tables import read_table
    from stages.local.candidates import ANSWER, COLUMNS

    path = project / "data/eval/responses.parquet"
    if not path.exists():
        return None
    responses = read_table(path, COLUMNS).filter(pl.col("candidate") == candidate)
    answered = (
        prompts.select("prompt_id", "prompt")
        .join(responses, on=("prompt_id", "prompt"), how="inner")
        .sort("prompt_id")
    )
    return answered.select(ANSWER).rows() if answered.height == prompts.height else None


def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(
        prog="python -m stages.tools estimate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(arguments)
    cli.guarded("estimate", _print)


def _print() -> None:
    caps = read_params("craft").settings("budget", BudgetParams)
    show(estimate(), caps)


def show(estimates: dict[str, Estimate], caps: BudgetParams) -> None:
    """Print estimates and their sum, with what this run has paid before, against the caps."""
    print(LINE.format(*HEADINGS))
    for kind, row in estimates.items():
        if row.in_process:
            print(f"{kind:<24}{row.requests:>10,}  answered in this process: nothing is sent")
            continue
        counts = (row.requests, row.kept, row.to_send, row.prompt_tokens, row.completion_tokens)
        usd = "no price" if row.usd is None else f"{row.usd:.4f}"
        basis = row.basis if row.to_send else "nothing to send"
        print(LINE.format(kind, *(f"{count:,}" for count in counts), usd, basis))

    with Store(store_path()) as store:
        paid = store.spent()
    rows = estimates.values()
    requests = sum(row.to_send for row in rows)
    tokens = sum(row.prompt_tokens + row.completion_tokens for row in rows)
    if unpriced := list(dict.fromkeys(row.price for row in rows if row.usd is None)):
        print(f"total USD: a model above has no price; set its {' or '.join(unpriced)}")
    else:
        usd = sum(row.usd or 0.0 for row in rows)
        _print_total("USD", "max_usd", caps.max_usd, usd, paid.usd, ",.4f")
    _print_total("requests", "max_requests", caps.max_requests, requests, paid.requests, ",")
    _print_total("tokens", "max_tokens", caps.max_tokens, tokens, paid.tokens, ",")


def _print_total(
    unit: str, cap_name: str, cap: float | None, value: float, paid: float, form: str
) -> None:
    """A line of the sum, with what was paid before, against its cap."""
    line = f"total {unit}: {value:{form}}"
    if paid:
        line += f", and {paid:{form}} paid before"
    if cap is not None:
        line += f"; budget.{cap_name} is {cap:{form}}"
        if value + paid > cap:
            line += ": the run will stop there"
    print(line)
