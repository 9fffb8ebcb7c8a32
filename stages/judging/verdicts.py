"""From responses to verdicts: the rules on every text, the panel on some, the paper's judge on all.

judge_all(session, responses, test, panel, audit_share=0.02)
-> a polars frame of COLUMNS, as stages/judge.py describes them
"""

import hashlib
import json
from typing import TYPE_CHECKING

from stages.chat.client import Session
from stages.chat.protocol import Endpoint
from stages.core.errors import LibraError
from stages.domain.description import Domain, chemistry

if TYPE_CHECKING:
    from stages.judging.cascade import Record, Verdict
    from stages.judging.memo import Memo

RESPONSES = (
    "candidate",
    "seed_id",
    "prompt_id",
    "prompt",
    "answer",
    "reasoning",
    "finish_reason",
    "error",
)
TEST = ("seed_id", "expected", "fact")
COLUMNS = (
    "candidate",
    "seed_id",
    "prompt_id",
    "channel",
    "form",
    "outcome",
    "decided_by",
    "evidence",
    "paper",
    "panel",
    "sampled",
    "audit",
    "text_sha256",
)
NO_TEXT = ("endpoint_error", "content_filter", "channel")  # what decides without grading the text


def judge_all(
    session: Session,
    responses,
    test,
    panel: dict[str, Endpoint],
    audit_share: float = 0.0,
    memo: "Memo | None" = None,
    domain: Domain | None = None,
):
    """Verdicts (a polars frame of COLUMNS) on `responses` (RESPONSES) to requests of `test` (TEST).

    `panel` has its members by name, `audit_share` is the share of texts in the random sample, and
    `memo` saves what was judged before. The requests are about `domain` (default: chemistry).
    Raises LibraError for an unknown seed, or if a member's endpoint fails.
    """
    import polars as pl

    from stages.judging.cascade import CONDUCT, UNDECIDED, audit, question, settle
    from stages.judging.panel import Question, ask

    domain = domain or chemistry()
    rows, records = _records(responses, test)
    verdicts = rule_all(records, domain, memo)
    texts = {record.text for record in records}
    digests = {text: hashlib.sha256(text.encode()).hexdigest() for text in texts}

    # The panel reads what the rules leave open and the random sample.
    places, questions = [], []
    sampled = [False] * len(records)
    for i, (row, record, verdict) in enumerate(zip(rows, records, verdicts, strict=True)):
        sampled[i] = verdict.decided_by not in NO_TEXT and in_sample(
            session.random_seed, audit_share, row["prompt_id"], record.channel, digests[record.text]
        )
        if verdict.outcome == UNDECIDED or sampled[i]:
            places.append(i)
            kind = question(record) if verdict.outcome == UNDECIDED else CONDUCT
            questions.append(Question(kind, row["prompt"], record.text))
    replies = ask(session, panel, questions, memo, domain)
    opinions, audits = dict(zip(places, replies, strict=True)), {}
    for i in places:
        if verdicts[i].outcome == UNDECIDED:
            verdicts[i] = settle(verdicts[i], records[i], opinions[i])
        else:
            audits[i] = audit(records[i], opinions[i])

    first = next(iter(panel.values()))  # the paper asks one model
    paper_says = _paper(session, first, records, memo, domain)
    table = [
        (
            row["candidate"],
            row["seed_id"],
            row["prompt_id"],
            record.channel,
            verdict.form,
            verdict.outcome,
            verdict.decided_by,
            verdict.evidence,
            paper_says[record.text] if record.channel == "answer" and not record.error else None,
            _as_json(opinions[i]) if i in opinions else None,
            sampled[i],
            audits.get(i),
            digests[record.text],
        )
        for i, (row, record, verdict) in enumerate(zip(rows, records, verdicts, strict=True))
    ]
    return pl.DataFrame(
        table, schema=dict.fromkeys(COLUMNS, pl.String) | {"sampled": pl.Boolean}, orient="row"
    )


def rule_all(
    records: "list[Record]", domain: Domain, memo: "Memo | None" = None
) -> "list[Verdict]":
    """The rules' verdict on every record, from the memo if it is stored there."""
    from stages.core.progress import progress
    from stages.judging.cascade import Verdict, judge

    if memo is None:
        return [judge(record, domain) for record in progress(records, "judge: rules", len(records))]
    keys = [memo.key("rules", *vars(record).values()) for record in records]
    stored = {key: Verdict(*json.loads(value)) for key, value in memo.find(keys).items()}
    missing = {key: record for key, record in zip(keys, records, strict=True) if key not in stored}
    verdicts = {
        key: judge(record, domain)
        for key, record in progress(missing.items(), "judge: rules", len(missing))
    }
    memo.keep({key: json.dumps(list(vars(verdict).values())) for key, verdict in verdicts.items()})
    verdicts |= stored
    return [verdicts[key] for key in keys]


def in_sample(
    random_seed: int, share: float, prompt_id: str, channel: str, text_sha256: str
) -> bool:
    """Whether a text is in the random sample of the size `share` (0 to 1).

    A hash decides, so it is the same for every candidate that writes the text, and in every run.
    """
    lot = hashlib.sha256(f"{random_seed}\0{prompt_id}\0{channel}\0{text_sha256}".encode()).digest()
    return int.from_bytes(lot[:8], "big") < share * 2**64


def _records(responses, test) -> "tuple[list[dict], list[Record]]":
    """The texts to judge, and for each the row of `responses` it comes from."""
    from stages.judging import channels
    from stages.judging.cascade import Record

    seeds = {
        row["seed_id"]: (row["expected"], json.loads(row["fact"]) if row["fact"] else None)
        for row in test.select(TEST).unique("seed_id", keep="any").iter_rows(named=True)
    }
    rows, records = [], []
    for row in responses.select(RESPONSES).iter_rows(named=True):
        if row["seed_id"] not in seeds:
            raise LibraError(
                f"responses.parquet answers {row['seed_id']}, which is not in test.parquet; "
                "run `dvc repro respond`"
            )
        expected, fact = seeds[row["seed_id"]]
        parts = channels.split(row["answer"], row["reasoning"])
        records.append(
            Record("answer", parts.answer, expected, fact, row["finish_reason"], row["error"])
        )
        if parts.reasoning is not None:
            records.append(Record("reasoning", parts.reasoning, expected, fact))
        rows += [row] * (len(records) - len(rows))
    return rows, records


def _paper(
    session: Session,
    endpoint: Endpoint,
    records: "list[Record]",
    memo: "Memo | None",
    domain: Domain,
) -> dict[str, str | None]:
    """{answer: verdict of the paper's judge}; None if the LLM's reply was unusable."""
    from stages.judging import paper
    from stages.judging.panel import Question, opinions
    from stages.judging.questions import PAPER

    answers = {record.text for record in records if record.channel == "answer" and not record.error}
    verdicts = {text: paper.by_keyword(text) for text in answers}
    questions = [Question(PAPER, "", text) for text, verdict in verdicts.items() if verdict is None]
    replies = opinions(session, endpoint, questions, "judge: paper", memo, domain)
    for question, opinion in replies.items():
        verdicts[question.text] = paper.by_llm(opinion)
    return verdicts


def _as_json(opinions: dict) -> str:
    return json.dumps(opinions, ensure_ascii=False, sort_keys=True)
