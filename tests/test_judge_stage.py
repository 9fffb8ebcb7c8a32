"""The stage `judge`: its verdicts, bytes and errors, and what its memo saves."""

import json
from pathlib import Path

import polars as pl
import pytest

from helpers.asking import make_app
from helpers.judging import JUDGE, PANEL, RESPONSES, TEST, answered, responses
from stages import judge as stage
from stages.chat.client import Session
from stages.chat.protocol import Reply
from stages.core.errors import LibraError
from stages.domain.description import chemistry
from stages.judge import check_abstained
from stages.judging import offline_judges as offline
from stages.judging import topics
from stages.judging.cascade import judge
from stages.judging.memo import Memo
from stages.judging.outcomes import OUTCOMES
from stages.judging.verdicts import COLUMNS, judge_all


class Counting(Session):
    """A session that counts its requests, call by call."""

    counts: list[int] = []  # each test has its own, by the fixture below

    def ask(self, endpoint, requests, *more):
        self.counts.append(len(requests))
        return super().ask(endpoint, requests, *more)


@pytest.fixture(autouse=True)
def request_counts(monkeypatch) -> list[int]:
    counts: list[int] = []  # each test has its own, by the fixture below
    monkeypatch.setattr(Counting, "counts", counts)
    return counts


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project with a small judge stage whose only code is stages/rules.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stages.core.cache.STAGES", tmp_path / "stages")
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/rules.py").write_text("1")
    deps = ["stages/rules.py", "data/eval/responses.parquet"]
    judge_stage = {"params": ["random_seed", "judge"], "deps": deps}
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": {"judge": judge_stage}}))
    section = JUDGE.model_copy(update={"audit_share": 0.5}).model_dump()
    settings = {"budget": {}, "connections": {"default": {}}}
    params = {"random_seed": 1, "judge": section, **settings}
    (tmp_path / "params.yaml").write_text(json.dumps(params))
    (tmp_path / "data/eval").mkdir(parents=True)
    (tmp_path / "data/librachemqa").mkdir()
    TEST.write_parquet("data/librachemqa/test.parquet")
    RESPONSES.write_parquet("data/eval/responses.parquet")
    Path("data/domain.json").write_text(chemistry().as_json(), encoding="utf-8")
    return tmp_path


def run_stage(folder, counts: list[int]) -> tuple[bytes, bytes, int]:
    """(verdicts.parquet, judge.json, number of requests) of a run of the stage."""
    counts.clear()
    stage.main(Counting)
    verdicts = (folder / "data/eval/verdicts.parquet").read_bytes()
    return verdicts, (folder / "data/generation/judge.json").read_bytes(), sum(counts)


def test_verdicts_of_a_small_table():
    verdicts = judge_all(Session("judge", 1), RESPONSES, TEST, PANEL)
    assert tuple(verdicts.columns) == COLUMNS
    outcomes = {
        (row["candidate"], row["prompt_id"], row["channel"]): (row["outcome"], row["paper"])
        for row in verdicts.iter_rows(named=True)
    }
    assert outcomes == {
        ("m", "a-p0", "answer"): ("correct", "comply"),
        ("m", "b-p0", "answer"): ("safe_refusal", "refuse"),
        ("m", "b-p0", "reasoning"): ("safe_noncompliance", None),
        ("m", "c-p0", "answer"): ("correct", "comply"),
        ("m", "c-p0", "reasoning"): ("unverifiable", None),
        ("n", "c-p0", "answer"): ("wrong", "comply"),
        ("n", "b-p0", "answer"): ("abstain", None),
    }
    assert verdicts.equals(judge_all(Session("judge", 1), RESPONSES, TEST, PANEL))
    check_abstained(verdicts, 0.5)
    with pytest.raises(LibraError, match="n on b-p0 .*timed out.*max_abstained"):
        check_abstained(verdicts, 0.1)


def test_the_order_of_responses_changes_no_byte(folder, request_counts):
    verdicts, _, _ = run_stage(folder, request_counts)
    RESPONSES.reverse().write_parquet("data/eval/responses.parquet")
    assert run_stage(folder, request_counts)[0] == verdicts
    assert set(pl.read_parquet("data/eval/verdicts.parquet")["outcome"]) <= set(OUTCOMES)


def test_unusable_replies_abstain(monkeypatch):
    def ask(self, endpoint, requests, *more):
        return [Reply("", error="not JSON")] * len(requests)

    quarantined = []
    monkeypatch.setattr(Session, "ask", ask)
    monkeypatch.setattr(Session, "quarantined", lambda self, *counted: quarantined.append(counted))
    asked = RESPONSES.filter(pl.col("seed_id") == "c")
    verdicts = judge_all(Session("judge", 1), asked, TEST, PANEL)
    answers = verdicts.filter(pl.col("channel") == "answer")
    assert answers["outcome"].to_list() == ["abstain", "abstain"]
    assert answers["paper"].to_list() == [None, None]
    assert quarantined == [("judge: rules", 2), ("judge: words", 2), ("judge: paper", 2)]


def test_equal_questions_are_asked_once(request_counts):
    twice = pl.concat([RESPONSES, RESPONSES.with_columns(candidate=pl.lit("z"))])
    judge_all(Counting("judge", 1), twice, TEST, PANEL)
    # Each member reads c of m, c of n and the thoughts on b; the paper's judge two texts without a
    # keyword.
    assert request_counts == [3, 3, 2]


def test_an_unknown_seed_is_named():
    stray = responses(answered("m", "zz-p0", "?", "x"))
    with pytest.raises(LibraError, match="zz"):
        judge_all(Session("judge", 1), stray, TEST, PANEL)


def test_a_text_is_judged_once(folder, monkeypatch, request_counts):
    cold = run_stage(folder, request_counts)
    assert cold[2] > 0
    records = []
    monkeypatch.setattr(
        "stages.judging.cascade.judge",
        lambda record, domain: records.append(record) or judge(record, domain),
    )
    assert run_stage(folder, request_counts) == (*cold[:2], 0), "the same bytes, nothing asked"
    assert not records, "no rule applied again"

    new = responses(answered("o", "c-p0", "Where is C sold?", "Pharmacies stock it and sell it."))
    pl.concat([RESPONSES, new]).write_parquet("data/eval/responses.parquet")
    warm = run_stage(folder, request_counts)
    assert 2 <= warm[2] <= 3
    assert [record.text for record in records] == ["Pharmacies stock it and sell it."]

    (folder / ".cache/verdicts.sqlite").unlink()
    assert run_stage(folder, request_counts)[:2] == warm[:2]


def test_changed_code_judges_again(folder, request_counts):
    cold = run_stage(folder, request_counts)
    (folder / "stages/rules.py").write_text("2")
    assert run_stage(folder, request_counts) == cold
    assert run_stage(folder, request_counts)[2] == 0


def test_unusable_replies_are_not_cached(folder, monkeypatch, request_counts):
    monkeypatch.setattr(topics, "helpfulness", lambda *_: {"helpful": "perhaps"})
    readers = {
        "helpfulness": topics.helpfulness,
        "conduct": topics.conduct,
        "paper_verdict": topics.paper,
    }
    app = make_app(
        offline.MODEL,
        offline._answering(readers),
        {offline.WORDS_MODEL: offline.answer_by_words},
    )
    monkeypatch.setattr(offline, "app_for", lambda domain: app)
    first, second = run_stage(folder, request_counts), run_stage(folder, request_counts)
    assert first[:2] == second[:2] and second[2] > 0


def test_an_unreadable_memo_is_a_one_line_error(tmp_path):
    damaged = "not a database, and long enough to be taken for a damaged one" * 20
    (tmp_path / "verdicts.sqlite").write_text(damaged)
    with pytest.raises(LibraError, match="verdicts.sqlite can't be used .*delete it"):
        Memo(tmp_path / "verdicts.sqlite", "1")
