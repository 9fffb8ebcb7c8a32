"""Judge every answer and every chain of thought: its form, and whether it was the right thing to write.

    python -m stages.judge

Reads data/eval/responses.parquet, data/librachemqa/test.parquet and params random_seed, judge, budget. Writes
data/generation/judge.json and data/eval/verdicts.parquet, one row per response and channel:

    candidate     dpo
    seed_id       s-substance-a-melting_point-text
    prompt_id     s-substance-a-melting_point-text-p0
    channel       answer               (or reasoning: thoughts in a field of their own or in <think> tags)
    form          comply               (full_refusal, partial_refusal, premise_rejection, inability, empty)
    outcome       correct              (wrong, unverifiable, over_refusal, safe_refusal, safe_redirect, safe_noncompliance,
                                        leak, abstain)
    decided_by    fact                 (form, leak_sign, panel, content_filter, endpoint_error, channel)
    evidence      84 °C                the words it rests on; of a panel that abstains, who voted for what
    paper         comply               the paper's hybrid judge on the answer (refuse, null for reasoning or no usable reply)
    panel         {"rules": {"form": "comply", ...}, "words": null}    what each judge said, where the panel was asked
    sampled       true                 in the random sample that people label and the panel reads, whatever decided it
    audit         comply               the panel's word on a sampled text that the rules decided (refuse, abstain, else null)
    text_sha256   9f86d081...          of the text, as data/labels/verdicts.csv names it

Rules decide first (stages/judging/cascade.py); a panel of judges reads what they leave open and what they disagree on, and where it
comes to no majority it abstains. Of what the rules decided the panel reads the share `audit_share`, which changes no verdict. People
label the sample and what the panel abstained on: `python -m stages.judging.review`.
"""

import hashlib
import json
import platform
from pathlib import Path

from pydantic import Field, model_validator

from stages.common import cli
from stages.common.errors import LibraError
from stages.common.params import DVC_YAML, Section, read_params, read_yaml
from stages.llm import client
from stages.llm.budget import BudgetParams
from stages.llm.chat import Endpoint
from stages.llm.client import Session

RESPONSES = ("candidate", "seed_id", "prompt_id", "prompt", "answer", "reasoning", "finish_reason", "error")
TEST = ("seed_id", "expected", "fact")
COLUMNS = (
    "candidate", "seed_id", "prompt_id", "channel", "form", "outcome", "decided_by", "evidence", "paper", "panel", "sampled", "audit",
    "text_sha256",
)  # fmt: skip
NO_TEXT = ("endpoint_error", "content_filter", "channel")  # what decides without grading the text


class JudgeParams(Section):
    """Section `judge`."""

    panel: dict[str, Endpoint]
    audit_share: float = Field(ge=0, le=1)
    max_abstained: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def differ(self) -> "JudgeParams":
        """A panel that asks one model twice is no panel."""
        if len(self.panel) < 2:
            raise ValueError(f"a panel has two members or more, panel has {len(self.panel)}")
        if "paper" in self.panel:
            raise ValueError("a member of the panel may not be called paper; that name is taken by the paper's judge")
        seen: dict[tuple[str, str], str] = {}
        for name, endpoint in self.panel.items():
            at = (endpoint.base_url.rstrip("/"), endpoint.model)
            if at in seen:
                raise ValueError(f"panel.{seen[at]} and panel.{name} are the same model, `{at[1]}` at {at[0]}; take another one")
            seen[at] = name
        return self


def main(open_session: type[Session] = Session) -> None:
    from stages.common.tables import read_table, write_table
    from stages.judging.memo import Memo

    params = read_params("judge")
    section = params.section("judge", JudgeParams)
    responses = read_table("data/eval/responses.parquet", RESPONSES)
    test = read_table("data/librachemqa/test.parquet", TEST)
    with (
        open_session("judge", params.random_seed, params.section("budget", BudgetParams)) as session,
        Memo(client.store_path().with_name("verdicts.sqlite"), version()) as memo,
    ):
        verdicts = judge_all(session, responses, test, section, memo)
        try:
            check_abstained(verdicts, section.max_abstained)
        except LibraError:
            session.give_up()
            raise
    write_table(verdicts, "data/eval/verdicts.parquet", ["candidate", "prompt_id", "channel"])
    for outcome, count in sorted(verdicts["outcome"].value_counts().iter_rows()):
        print(f"judge: {outcome:20}{count:>9,}")


def judge_all(session: Session, responses, test, section: JudgeParams, memo=None):
    """Verdicts (a polars frame of COLUMNS) on `responses` to the requests of `test`. Raises LibraError for an unknown seed.

    `memo` (memo.Memo) spares what was judged before.
    """
    import polars as pl

    from stages.judging import channels, paper
    from stages.judging.cascade import CONDUCT, UNDECIDED, Record, audit, question, settle
    from stages.judging.panel import Question, ask, opinions
    from stages.judging.requests import PAPER

    seeds = {row["seed_id"]: row for row in test.select(TEST).unique("seed_id", keep="any").iter_rows(named=True)}
    facts = {seed_id: json.loads(row["fact"]) if row["fact"] else None for seed_id, row in seeds.items()}
    rows, records = [], []
    for row in responses.select(RESPONSES).iter_rows(named=True):
        if row["seed_id"] not in seeds:
            raise LibraError(f"responses.parquet answers {row['seed_id']}, which test.parquet lacks; run `dvc repro respond`")
        expected, fact = seeds[row["seed_id"]]["expected"], facts[row["seed_id"]]
        parts = channels.split(row["answer"], row["reasoning"])
        records.append(Record("answer", parts.answer, expected, fact, row["finish_reason"], row["error"]))
        if parts.reasoning is not None:
            records.append(Record("reasoning", parts.reasoning, expected, fact))
        rows += [row] * (len(records) - len(rows))
    verdicts = ruled(records, memo)
    digests = {text: hashlib.sha256(text.encode()).hexdigest() for text in {record.text for record in records}}

    places, questions = [], []
    drawn = [False] * len(records)
    for i, (row, record, verdict) in enumerate(zip(rows, records, verdicts, strict=True)):
        drawn[i] = verdict.decided_by not in NO_TEXT and in_sample(
            session.random_seed, section.audit_share, row["prompt_id"], record.channel, digests[record.text]
        )
        if verdict.outcome == UNDECIDED or drawn[i]:
            places.append(i)
            kind = question(record) if verdict.outcome == UNDECIDED else CONDUCT
            questions.append(Question(kind, row["prompt"], record.text))
    votes, audits = dict(zip(places, ask(session, section.panel, questions, memo), strict=True)), {}
    for i in places:
        if verdicts[i].outcome == UNDECIDED:
            verdicts[i] = settle(verdicts[i], records[i], votes[i])
        else:
            audits[i] = audit(records[i], votes[i])

    answered = {record.text for record in records if record.channel == "answer" and not record.error}
    said = {text: paper.by_keyword(text) for text in answered}
    unsure = [Question(PAPER, "", text) for text, verdict in said.items() if verdict is None]
    first = next(iter(section.panel.values()))  # the paper asks one model
    for asked, opinion in opinions(session, first, unsure, "judge: paper", memo).items():
        said[asked.text] = paper.by_llm(opinion)
    told = {i: json.dumps(opinions, ensure_ascii=False, sort_keys=True) for i, opinions in votes.items()}
    table = [
        (row["candidate"], row["seed_id"], row["prompt_id"], record.channel, verdict.form, verdict.outcome, verdict.decided_by,
         verdict.evidence, said[record.text] if record.channel == "answer" and not record.error else None, told.get(i), drawn[i],
         audits.get(i), digests[record.text])
        for i, (row, record, verdict) in enumerate(zip(rows, records, verdicts, strict=True))
    ]  # fmt: skip
    return pl.DataFrame(table, schema=dict.fromkeys(COLUMNS, pl.String) | {"sampled": pl.Boolean}, orient="row")


def ruled(records: list, memo=None) -> list:
    """The rules' verdict on every record, out of the memo where it holds it."""
    from stages.common.progress import progress
    from stages.judging.cascade import Verdict, judge

    if memo is None:
        return [judge(record) for record in progress(records, "judge: rules", len(records))]
    keys = [memo.key("rules", json.dumps(list(vars(record).values()))) for record in records]
    kept = {key: Verdict(*json.loads(value)) for key, value in memo.find(keys).items()}
    new = {key: record for key, record in zip(keys, records, strict=True) if key not in kept}
    found = {key: judge(record) for key, record in progress(new.items(), "judge: rules", len(new))}
    memo.keep({key: json.dumps(list(vars(verdict).values())) for key, verdict in found.items()})
    return [(kept.get(key) or found[key]) for key in keys]


def in_sample(random_seed: int, share: float, prompt_id: str, channel: str, text_sha256: str) -> bool:
    """Whether a text is in the random sample: by a hash, so that it is for every candidate who writes it, and stays so."""
    lot = hashlib.sha256(f"{random_seed}\0{prompt_id}\0{channel}\0{text_sha256}".encode()).digest()
    return int.from_bytes(lot[:8], "big") < share * 2**64


def version() -> str:
    """A hash of all code and rubrics that dvc.yaml lists for this stage, which tests prove to be all it runs."""
    digest = hashlib.sha256(platform.python_version().encode())
    for dep in read_yaml(DVC_YAML)["stages"]["judge"].get("deps", []):
        if dep.startswith("stages/"):
            digest.update(Path(dep).read_bytes())
    return digest.hexdigest()


def check_abstained(verdicts, limit: float) -> None:
    """Raises LibraError when more than the share `limit` of the verdicts abstain."""
    abstained = verdicts.filter(verdicts["outcome"] == "abstain").sort("candidate", "prompt_id")
    share = abstained.height / verdicts.height
    if share > limit:
        first = abstained.row(0, named=True)
        raise LibraError(
            f"{abstained.height:,} of {verdicts.height:,} verdicts abstain ({share:.1%}; judge.max_abstained is {limit:.1%}), "
            f"first {first['candidate']} on {first['prompt_id']} ({first['evidence']}); "
            "mend the endpoint or raise judge.max_abstained"
        )


if __name__ == "__main__":
    cli.run("judge", main, __doc__)
