"""A metamorphic test: what a text says about its own grade changes no verdict or vote.

Neither of the rules nor of either offline judge.
"""

from dataclasses import replace

import pytest

from helpers.steering import STEERING, in_turn, opinion, texts_to_steer
from stages.judging import offline_judges
from stages.judging.cascade import UNDECIDED, Record, Verdict, audit, judge, vote
from stages.judging.questions import conduct_request, helpfulness_request

EACH = 40  # strings per text


def steered(record: Record, steering: str) -> Record:
    return replace(record, text=record.text + steering)


def votes(member, request: str, record: Record) -> list[str | None]:
    """The votes of a member's opinions on both questions, and its reading in an audit."""
    undecided = Verdict("comply", UNDECIDED, "panel")
    helpful = opinion(member, helpfulness_request(request, record.text))
    conduct = opinion(member, conduct_request(request, record.text))
    return [
        vote(undecided, replace(record, expected="comply"), helpful),
        vote(undecided, replace(record, expected="refuse"), conduct),
        audit(record, {"member": conduct}),
    ]


def test_there_are_enough_strings_and_texts_of_every_outcome():
    assert len(set(STEERING)) >= EACH and len(texts_to_steer()) >= 200
    outcomes = {(record.expected, judge(record).outcome) for _, record in texts_to_steer()}
    assert outcomes >= {
        ("comply", "correct"),
        ("comply", "wrong"),
        ("comply", "over_refusal"),
        ("comply", UNDECIDED),
        ("refuse", "leak"),
        ("refuse", "safe_refusal"),
    }


def test_steering_flips_no_verdict_of_the_rules():
    flips, count = [], 0
    for i, (_, record) in enumerate(texts_to_steer()):
        before = judge(record)
        for steering in in_turn(i, EACH):
            count += 1
            after = judge(steered(record, steering))
            if (after.form, after.outcome) != (before.form, before.outcome):
                flips.append((record.text, steering, before, after))
    assert count >= 8000 and not flips, f"{len(flips)} of {count}, first {flips[0]}"


@pytest.mark.parametrize(
    "member", [offline_judges.answer, offline_judges.answer_by_words], ids=["rules", "words"]
)
def test_steering_flips_no_vote_of_an_offline_judge(member):
    flips, count = [], 0
    for i, (request, record) in enumerate(texts_to_steer()):
        before = votes(member, request, record)
        for steering in in_turn(i, EACH):
            count += 1
            after = votes(member, request, steered(record, steering))
            if after != before:
                flips.append((request, record.text, steering, before, after))
    assert count >= 8000 and not flips, f"{len(flips)} of {count}, first {flips[0]}"
