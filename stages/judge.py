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
    decided_by    fact                 (form, leak_sign, llm_judge, content_filter, endpoint_error, channel)
    evidence      84 °C                the words it rests on
    paper         comply               the paper's hybrid judge on the answer (refuse, null for reasoning or no usable reply)

Rules decide first (stages/judging/cascade.py); an LLM reads what they leave open, and what it can't grade abstains.
"""

from pydantic import Field

from stages.common import cli
from stages.common.errors import LibraError
from stages.common.params import Section, read_params
from stages.llm.budget import BudgetParams
from stages.llm.chat import Endpoint
from stages.llm.client import Session

RESPONSES = ("candidate", "seed_id", "prompt_id", "prompt", "answer", "reasoning", "finish_reason", "error")
TEST = ("seed_id", "expected", "fact")
COLUMNS = ("candidate", "seed_id", "prompt_id", "channel", "form", "outcome", "decided_by", "evidence", "paper")


class JudgeParams(Section):
    endpoint: Endpoint
    max_abstained: float = Field(ge=0, le=1)


def main(open_session: type[Session] = Session) -> None:
    from stages.common.tables import read_table, write_table

    params = read_params("judge")
    section = params.section("judge", JudgeParams)
    responses = read_table("data/eval/responses.parquet", RESPONSES)
    test = read_table("data/librachemqa/test.parquet", TEST)
    with open_session("judge", params.random_seed, params.section("budget", BudgetParams)) as session:
        verdicts = judge_all(session, responses, test, section.endpoint)
        try:
            check_abstained(verdicts, section.max_abstained)
        except LibraError:
            session.give_up()
            raise
    write_table(verdicts, "data/eval/verdicts.parquet", ["candidate", "prompt_id", "channel"])
    for outcome, count in sorted(verdicts["outcome"].value_counts().iter_rows()):
        print(f"judge: {outcome:20}{count:>9,}")


def judge_all(session: Session, responses, test, endpoint: Endpoint):
    """Verdicts (a polars frame of COLUMNS) on `responses` to the requests of `test`. Raises LibraError for an unknown seed."""
    import json

    import polars as pl

    from stages.common.progress import progress
    from stages.judging import channels, paper
    from stages.judging.cascade import UNDECIDED, Record, judge, settle
    from stages.judging.panel import opinions
    from stages.judging.requests import helpfulness_request, paper_request

    seeds = {row["seed_id"]: row for row in test.select(TEST).unique("seed_id", keep="any").iter_rows(named=True)}
    facts = {seed_id: json.loads(row["fact"]) if row["fact"] else None for seed_id, row in seeds.items()}
    rows, records, verdicts = [], [], []
    for row in progress(responses.select(RESPONSES).iter_rows(named=True), "judge: rules", responses.height):
        if row["seed_id"] not in seeds:
            raise LibraError(f"responses.parquet answers {row['seed_id']}, which test.parquet lacks; run `dvc repro respond`")
        expected, fact = seeds[row["seed_id"]]["expected"], facts[row["seed_id"]]
        parts = channels.split(row["answer"], row["reasoning"])
        records.append(Record("answer", parts.answer, expected, fact, row["finish_reason"], row["error"]))
        if parts.reasoning is not None:
            records.append(Record("reasoning", parts.reasoning, expected, fact))
        rows += [row] * (len(records) - len(rows))
    verdicts = [judge(record) for record in records]

    pairs = {i: (rows[i]["prompt"], records[i].text) for i, verdict in enumerate(verdicts) if verdict.outcome == UNDECIDED}
    helpful = opinions(session, endpoint, pairs.values(), lambda pair: helpfulness_request(*pair), "judge: helpfulness")
    for i, pair in pairs.items():
        verdicts[i] = settle(verdicts[i], records[i], helpful[pair])

    said = {record.text: paper.by_keyword(record.text) for record in records if record.channel == "answer" and not record.error}
    unsure = [text for text, verdict in said.items() if verdict is None]
    for text, opinion in opinions(session, endpoint, unsure, paper_request, "judge: paper").items():
        said[text] = paper.by_llm(opinion)
    table = [
        (row["candidate"], row["seed_id"], row["prompt_id"], record.channel, verdict.form, verdict.outcome, verdict.decided_by,
         verdict.evidence, said[record.text] if record.channel == "answer" and not record.error else None)
        for row, record, verdict in zip(rows, records, verdicts, strict=True)
    ]  # fmt: skip
    return pl.DataFrame(table, schema=dict.fromkeys(COLUMNS, pl.String), orient="row")


def check_abstained(verdicts, limit: float) -> None:
    """Raises LibraError when more than the share `limit` of the verdicts abstain."""
    abstained = verdicts.filter(verdicts["outcome"] == "abstain").sort("candidate", "prompt_id")
    share = abstained.height / verdicts.height
    if share > limit:
        first = abstained.row(0, named=True)
        raise LibraError(
            f"{abstained.height:,} of {verdicts.height:,} verdicts abstain ({share:.1%}; judge.max_abstained is {limit:.1%}), "
            f"first {first['candidate']} on {first['prompt_id']} ({first['evidence'] or 'no usable reply'}); "
            "mend the endpoint or raise judge.max_abstained"
        )


if __name__ == "__main__":
    cli.run("judge", main, __doc__)
