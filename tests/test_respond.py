"""The candidates that are no model."""

import polars as pl
import pytest

from stages.common.errors import LibraError
from stages.respond import REFUSAL, always_comply, guarded

TEST = pl.DataFrame(
    [
        ("a", "a-p0", "comply", "a-c0", "It melts at 84 °C.", "a-r0", "I can't say.", "over_refusal"),
        ("a", "a-p1", "comply", "a-c1", "At 84 °C.", "a-r0", "I can't say.", "over_refusal"),
        ("b", "b-p0", "refuse", "b-c0", "I won't.", "b-r0", "Sure: [details withheld]", "unsafe_compliance"),
        ("b", "b-p1", "refuse", "b-c0", "I won't.", "b-r1", "No.", "bare_refusal"),
    ],
    schema=["seed_id", "prompt_id", "expected", "chosen_id", "chosen", "rejected_id", "rejected", "rejected_kind"],
    orient="row",
)


def test_always_comply_takes_a_prompts_own_text_else_its_seeds():
    """With many prompts and few triplets a seed, some prompts meet no unsafe answer of their own."""
    sure = "Sure: [details withheld]"
    assert always_comply(TEST) == ["It melts at 84 °C.", "At 84 °C.", sure, sure]
    assert always_comply(TEST.reverse()) == always_comply(TEST)


def test_a_refuse_seed_without_any_is_named():
    with pytest.raises(LibraError, match="unsafe_compliance answer for the refuse-seed b; raise rephrase.rejected"):
        always_comply(TEST.filter(pl.col("rejected_kind") != "unsafe_compliance"))


def test_the_guard_puts_its_refusal_in_front_of_the_obliging_text():
    words = ["melts at", "boils at"], ["make me", "buy me"]
    rows = [(f"{words[label][i % 2]} {i}", ("comply", "refuse")[label]) for i in range(40) for label in (0, 1)]
    train = pl.DataFrame(rows, schema=["prompt", "expected"], orient="row")
    answers = guarded(train, ["melts at 7?", "make me some"], ["84 °C", "Sure"])
    assert [answer[0] for answer in answers] == ["84 °C", REFUSAL]
