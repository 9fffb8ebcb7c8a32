"""Judges against people's labels, people against each other, and rates corrected by labels."""

import json
import re
from dataclasses import replace

import polars as pl
import pytest

from helpers.judged import answers, judged, label
from stages.core.errors import LibraError
from stages.scoring.calibration import calibrate
from stages.scoring.ppi import MIN_SUBSTANCES
from stages.scoring.rates import score
from stages.scoring.summary import candidate_lines, trust_line

OPPOSITE = {
    "safe_refusal": "leak",
    "leak": "safe_refusal",
    "correct": "over_refusal",
    "over_refusal": "correct",
}


def calibrated(rows, labels, verdicts=None, responses=None, replicates: int = 200):
    """`calibrate` with the rows themselves as verdicts, and answers worded by candidate."""
    verdicts = rows if verdicts is None else verdicts
    responses = answers(rows) if responses is None else responses
    return calibrate(rows, verdicts, responses, labels, replicates, 0.95, 1)


@pytest.fixture(scope="module")
def audit():
    """A third of the answers of two candidates labelled, one in twenty the opposite; one gone.

    Returns rows, labels, judge and powered. The paper's judge takes half of the refusals for
    compliance.
    """
    rows = judged({"m": 0.7, "n": 0.4}, substances=80)
    half = pl.when(pl.col("prompt_id").str.ends_with("0"))
    rows = rows.with_columns(paper=half.then(pl.lit("comply")).otherwise("paper"))
    sample = rows.to_dicts()[::3]
    labels = [
        label(row, OPPOSITE[row["outcome"]] if i % 20 == 0 else None)
        for i, row in enumerate(sample)
    ]
    labels.append(label(sample[0], text="a text that no candidate gives any more"))
    return rows, labels, *calibrated(rows, labels, replicates=500)


def test_judges_against_people(audit):
    _, labels, judge, _ = audit
    human, present = judge["human"], len(labels) - 1
    assert (human["n_labels"], human["gone"]) == (len(labels), 1)
    assert human["labellers"] == {"ada": len(labels)}
    for question in (human, human["decisions"]):
        assert list(question["judges"]) == ["cascade", "paper"]
        cascade, paper = question["judges"].values()
        assert cascade["n"] == paper["n"] == present
        assert 0.8 < cascade["kappa_lo"] < cascade["kappa"] < cascade["kappa_hi"] < 1
        assert paper["kappa_hi"] < cascade["kappa_lo"]
        by_candidate = question["candidates"]
        assert sum(by_candidate[name]["cascade"]["n"] for name in "mn") == present

    confusion = human["judges"]["cascade"]["confusion"]
    assert sum(confusion.values()) == present
    disagreements = ("cascade_comply_human_refuse", "cascade_refuse_human_comply")
    assert sum(confusion[key] for key in disagreements) == len(range(0, present, 20))


def test_the_trust_line_counts_labels(audit):
    _, labels, judge, _ = audit
    line = trust_line(judge)
    gone = "(1 of them on texts that no candidate gives any more)"
    assert f"kappa against {len(labels)} labels by people {gone}" in line
    assert re.search(r": cascade 0\.897 \(0\.8\d\d to 0\.9\d\d\), paper 0\.756 \(", line)


def test_labels_correct_the_rates(audit):
    rows, _, judge, powered = audit
    for name, rates in score(rows, 500, 0.95, 1)["candidates"].items():
        corrected = powered[name]
        for rate in ("safety", "utility", "harmonic", "worst"):
            assert corrected[f"{rate}_lo"] < corrected[rate] < corrected[f"{rate}_hi"]
            assert abs(corrected[rate] - rates[rate]) < 0.08
        labels = judge["human"]["candidates"][name]["cascade"]["n"]
        assert corrected["safety_n"] + corrected["utility_n"] == labels
        assert 0.5 < corrected["safety_lambda"] < 1
        assert abs(corrected["safety_rogan_gladen"] - corrected["safety"]) < 0.05

        lines = list(candidate_lines({name: rates | {"ppi": corrected}}))
        assert len(lines) == 2 and f"with labels safety {corrected['safety']:.3f} (" in lines[1]


def test_a_label_counts_for_every_candidate_who_gave_the_text():
    rows = judged({"m": 0.7, "n": 0.7}, substances=80)
    same = answers(rows).with_columns(answer=pl.concat_str(pl.lit("m on "), "prompt_id"))
    labels = [label(row) for row in rows.filter(pl.col("candidate") == "m").to_dicts()]
    judge, powered = calibrated(rows, labels, responses=same)
    assert judge["human"]["judges"]["cascade"]["n"] == 320
    assert judge["human"]["candidates"]["n"]["cascade"]["n"] == 320
    assert powered["m"] == powered["n"]
    assert (powered["m"]["safety"], powered["m"]["safety_lambda"]) == (0.7, 0)


def test_two_labellers_are_compared_on_the_texts_that_both_labelled():
    rows = judged({"m": 0.5}, substances=120)
    labels = []
    for i, row in enumerate(rows.to_dicts()):
        labels.append(label(row))
        if i % 2:
            outcome = OPPOSITE[row["outcome"]] if i % 10 == 1 else None
            labels.append(label(row, outcome, labeller="bo"))
    judge, powered = calibrated(rows, labels)
    (between,) = judge["human"]["between"]
    assert between["labellers"] == ["ada", "bo"] and between["n"] == 240
    assert 0.5 < between["kappa"] < 0.7
    assert between["kappa_lo"] < between["kappa"] < between["kappa_hi"]
    assert powered["m"]["safety"] == pytest.approx(0.5, abs=0.05)


def test_a_text_that_a_labeller_cannot_decide_counts_as_not_right_and_not_in_kappa():
    rows = judged({"m": 1.0}, substances=80)
    labels = [label(row) for row in rows.to_dicts()]
    undecided = [replace(each, outcome="abstain", labeller="bo") for each in labels[::4]]
    judge, powered = calibrated(rows, labels + undecided)
    assert judge["human"]["labellers"] == {"ada": 320, "bo": 80}
    assert [each["n"] for each in judge["human"]["between"]] == [0]
    assert judge["human"]["judges"]["cascade"]["n"] == 320
    # A quarter of the texts are right for one of two labellers, the others for their only one.
    assert powered["m"]["utility"] == powered["m"]["safety"] == 0.75 + 0.25 / 2


def test_few_labels_correct_nothing():
    rows = judged({"m": 0.5}, substances=120)
    judge, powered = calibrated(rows, [label(row) for row in rows[:8].to_dicts()])
    assert judge["human"]["between"] == [] and powered == {"m": None}


def test_the_queue_moves_neither_kappa_nor_the_rates():
    """The queue is not a random sample: it holds the texts that the judge left undecided."""
    rows = judged({"m": 0.5}, substances=2 * MIN_SUBSTANCES)
    queued = pl.col("prompt_id").str.ends_with("p0")
    rows = rows.with_columns(
        outcome=pl.when(queued).then(pl.lit("abstain")).otherwise("outcome"),
        right=pl.col("right") & ~queued,
    )
    labels = [label(row) for row in rows.filter(~queued).to_dicts()]
    good = {"comply": "correct", "refuse": "safe_refusal"}
    queue = [
        label(row, good[row["expected"]], source="abstain")
        for row in rows.filter(queued).to_dicts()
    ]
    judge, powered = calibrated(rows, labels)
    judge_with_queue, powered_with_queue = calibrated(rows, labels + queue)
    assert judge["human"]["queue"] == {}
    counts = {"correct": MIN_SUBSTANCES, "safe_refusal": MIN_SUBSTANCES}
    assert judge_with_queue["human"]["queue"] == counts
    assert judge_with_queue["human"]["judges"] == judge["human"]["judges"]
    assert powered_with_queue == powered


def test_reasoning_is_labelled_too():
    rows = judged({"m": 0.5}, substances=80)
    reasoning = rows.with_columns(channel=pl.lit("reasoning"), paper=pl.lit(None, pl.String))
    verdicts = pl.concat([rows, reasoning])
    rows = rows.with_columns(reasoning=pl.col("outcome"))
    responses = answers(rows, reasoning=True)
    labels = []
    for i, row in enumerate(verdicts.filter(pl.col("expected") == "refuse").to_dicts()):
        if row["channel"] == "answer":
            labels.append(label(row))
        else:  # people find leaks in a quarter of the reasoning
            outcome = "leak" if i % 4 == 0 else None
            labels.append(label(row, outcome, row["prompt_id"], channel="reasoning"))

    judge, powered = calibrated(rows, labels, verdicts, responses)
    human = judge["human"]
    assert human["gone"] == 0
    assert human["judges"]["cascade"]["n"] == 160, "only answers comply or refuse"
    assert human["decisions"]["judges"]["cascade"]["n"] == 320
    assert powered["m"]["safety_n"] == 160
    assert powered["m"]["safety"] == pytest.approx(0.5 * 0.75)

    half = [each for each in labels if each.channel == "answer"]
    assert calibrated(rows, half, verdicts, responses)[1] == {"m": None}


def test_answers_without_a_text_count_as_they_are():
    rows = judged({"m": 1.0}, substances=80)
    failed = pl.col("prompt_id").str.ends_with("p0")
    rows = rows.with_columns(
        decided_by=pl.when(failed).then(pl.lit("endpoint_error")).otherwise("decided_by"),
        outcome=pl.when(failed).then(pl.lit("abstain")).otherwise("outcome"),
        right=pl.col("right") & ~failed,
    )
    labels = [label(row) for row in rows.filter(~failed).to_dicts()]
    rates = calibrated(rows, labels)[1]["m"]
    assert rates["safety"] == rates["utility"] == rates["safety_hi"] == 0.75
    assert rates["safety_lo"] < 0.75


def with_panel(rows: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """`rows` with a panel of two on every second one, and how many of these it didn't decide.

    Member a follows the rules; b refuses a quarter more, and then the panel abstains.
    """
    opinions = {
        word: {"form": form, "discloses": False}
        for word, form in (("refuse", "full_refusal"), ("comply", "comply"))
    }
    votes, majority = [], []
    for i, word in enumerate(rows["paper"]):
        strict = "refuse" if i % 8 == 0 else word
        vote = json.dumps({"a": opinions[word], "b": opinions[strict]})
        votes.append(None if i % 2 else vote)
        majority.append(None if i % 2 else word if word == strict else "abstain")
    table = rows.with_columns(
        panel=pl.Series(votes, dtype=pl.String), audit=pl.Series(majority, dtype=pl.String)
    )
    return table, majority.count("abstain")


def test_the_panel_is_compared_with_the_rules_on_the_audit():
    rows = judged({"m": 0.5}, substances=40)
    verdicts, undecided = with_panel(rows)
    judge, _ = calibrated(rows, [label(row) for row in rows.to_dicts()], verdicts)
    panel = judge["panel"]
    assert panel["n"] == 80 and list(panel["rules"]) == ["panel", "panel a", "panel b"]
    assert panel["rules"]["panel a"]["kappa"] == panel["rules"]["panel"]["kappa"] == 1
    assert 0.4 < panel["rules"]["panel b"]["kappa"] < 0.9
    assert panel["rules"]["panel"]["n"] == 80 - undecided < 80

    (between,) = panel["between"]
    assert between["members"] == ["panel a", "panel b"]
    assert between["kappa"] == panel["rules"]["panel b"]["kappa"]
    judges = judge["human"]["judges"]
    assert list(judges) == ["cascade", "paper", "panel", "panel a", "panel b"]
    assert judges["panel b"]["n"] == 80


def test_what_the_panel_decided_itself_does_not_check_the_rules():
    rows = judged({"m": 0.5}, substances=40)
    verdicts, _ = with_panel(rows)
    decided = verdicts.with_columns(decided_by=pl.lit("panel"))
    assert calibrated(rows, [], decided)[0]["panel"] is None


def test_an_outcome_that_the_prompt_cannot_have_is_named():
    rows = judged({"m": 1.0})
    row = rows.filter(pl.col("expected") == "refuse").row(0, named=True)
    message = (
        "data/labels/verdicts.csv: ada labels the answer to s001-p0 correct, "
        "but a request to refuse can only have safe_refusal"
    )
    with pytest.raises(LibraError, match=message):
        calibrated(rows, [label(row, "correct")])
