"""From responses to verdicts: the rules on every text, the panel on some, and the paper's judge beside them.

judge_all(session, responses, test, panel, audit_share=0.02)    # a polars frame of COLUMNS, as stages/judge.py describes them
"""

import hashlib
import json
from typing import TYPE_CHECKING

from stages.chat.client import Session
from stages.chat.protocol import Endpoint
from stages.core.errors import LibraError
from stages.domain.description import Domain, chemistry

if TYPE_CHECKING:
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
    "candidate", "seed_id", "prompt_id", "channel", "form", "outcome", "decided_by", "evidence", "paper", "panel", "sampled", "audit",
    "text_sha256",
)  # fmt: skip
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
    """Verdicts (a polars frame of COLUMNS) on `responses` (with columns RESPONSES) to the requests of `test` (TEST).

    `panel` are its members by name, `audit_share` the share of texts in the random sample; `memo` spares what was judged before.
    The requests are about `domain`; chemistry, where none is given.
    Raises LibraError for an unknown seed, or when a member's endpoint fails.
    """
    import polars as pl

    from stages.judging import channels, paper
    from stages.judging.cascade import CONDUCT, UNDECIDED, Record, audit, question, settle
    from stages.judging.panel import Question, ask, opinions
    from stages.judging.questions import PAPER

    domain = domain or chemistry()
    seeds = {
        row["seed_id"]: row
        for row in test.select(TEST).unique("seed_id", keep="any").iter_rows(named=True)
    }
    facts = {
        seed_id: json.loads(row["fact"]) if row["fact"] else None for seed_id, row in seeds.items()
    }
    rows, records = [], []
    for row in responses.select(RESPONSES).iter_rows(named=True):
        if row["seed_id"] not in seeds:
            raise LibraError(
                f"responses.parquet answers {row['seed_id']}, which test.parquet lacks; run `dvc repro respond`"
            )
        expected, fact = seeds[row["seed_id"]]["expected"], facts[row["seed_id"]]
        parts = channels.split(row["answer"], row["reasoning"])
        records.append(
            Record("answer", parts.answer, expected, fact, row["finish_reason"], row["error"])
        )
        if parts.reasoning is not None:
            records.append(Record("reasoning", parts.reasoning, expected, fact))
        rows += [row] * (len(records) - len(rows))
    verdicts = ruled(records, domain, memo)
    digests = {
        text: hashlib.sha256(text.encode()).hexdigest()
        for text in {record.text for record in records}
    }

    places, questions = [], []
    drawn = [False] * len(records)
    for i, (row, record, verdict) in enumerate(zip(rows, records, verdicts, strict=True)):
        drawn[i] = verdict.decided_by not in NO_TEXT and in_sample(
            session.random_seed, audit_share, row["prompt_id"], record.channel, digests[record.text]
        )
        if verdict.outcome == UNDECIDED or drawn[i]:
            places.append(i)
            kind = question(record) if verdict.outcome == UNDECIDED else CONDUCT
            questions.append(Question(kind, row["prompt"], record.text))
    votes, audits = dict(zip(places, ask(session, panel, questions, memo, domain), strict=True)), {}
    for i in places:
        if verdicts[i].outcome == UNDECIDED:
            verdicts[i] = settle(verdicts[i], records[i], votes[i])
        else:
            audits[i] = audit(records[i], votes[i])

    answered = {
        record.text for record in records if record.channel == "answer" and not record.error
    }
    said = {text: paper.by_keyword(text) for text in answered}
    unsure = [Question(PAPER, "", text) for text, verdict in said.items() if verdict is None]
    first = next(iter(panel.values()))  # the paper asks one model
    for asked, opinion in opinions(session, first, unsure, "judge: paper", memo, domain).items():
        said[asked.text] = paper.by_llm(opinion)
    told = {
        i: json.dumps(opinions, ensure_ascii=False, sort_keys=True) for i, opinions in votes.items()
    }
    table = [
        (row["candidate"], row["seed_id"], row["prompt_id"], record.channel, verdict.form, verdict.outcome, verdict.decided_by,
         verdict.evidence, said[record.text] if record.channel == "answer" and not record.error else None, told.get(i), drawn[i],
         audits.get(i), digests[record.text])
        for i, (row, record, verdict) in enumerate(zip(rows, records, verdicts, strict=True))
    ]  # fmt: skip
    return pl.DataFrame(
        table, schema=dict.fromkeys(COLUMNS, pl.String) | {"sampled": pl.Boolean}, orient="row"
    )


def ruled(records: list, domain: Domain, memo: "Memo | None" = None) -> list:
    """The rules' verdict on every record, out of the memo where it holds it."""
    from stages.core.progress import progress
    from stages.judging.cascade import Verdict, judge

    if memo is None:
        return [judge(record, domain) for record in progress(records, "judge: rules", len(records))]
    keys = [memo.key("rules", json.dumps(list(vars(record).values()))) for record in records]
    kept = {key: Verdict(*json.loads(value)) for key, value in memo.find(keys).items()}
    new = {key: record for key, record in zip(keys, records, strict=True) if key not in kept}
    found = {
        key: judge(record, domain)
        for key, record in progress(new.items(), "judge: rules", len(new))
    }
    memo.keep({key: json.dumps(list(vars(verdict).values())) for key, verdict in found.items()})
    return [(kept.get(key) or found[key]) for key in keys]


def in_sample(
    random_seed: int, share: float, prompt_id: str, channel: str, text_sha256: str
) -> bool:
    """Whether a text is in the random sample: by a hash, so that it is for every candidate who writes it, and stays so."""
    lot = hashlib.sha256(f"{random_seed}\0{prompt_id}\0{channel}\0{text_sha256}".encode()).digest()
    return int.from_bytes(lot[:8], "big") < share * 2**64
