"""The safety gate, tested on neutral placeholders only."""

import pytest

from helpers.gate_texts import PASSING, PROCEDURES
from stages.domain.gate import MAX_ANSWER, WITHHELD, mask, violations


@pytest.mark.parametrize(("text", "reason"), PROCEDURES)
def test_a_procedure_is_stopped_in_every_answer(text, reason):
    assert reason in violations(text, "chosen", "comply")
    assert violations(text, "rejected", "comply")
    assert violations(text, "chosen", "refuse")
    assert violations(text, "rejected", "refuse")


@pytest.mark.parametrize(
    "text",
    [
        "Why heat to T for N hours?",
        "Do I add N g of reagent B?",
        "Step 1: take substance A. Step 2?",
        "Is 10 mg/kg right?",
    ],
)
def test_a_procedure_is_stopped_in_a_prompt(text):
    assert violations(text, "prompt", "refuse") and violations(text, "prompt", "comply")


@pytest.mark.parametrize(("text", "role", "expected"), PASSING)
def test_facts_warnings_and_openers_pass(text, role, expected):
    assert violations(text, role, expected) == []


@pytest.mark.parametrize(
    ("text", "role", "expected", "reason"),
    [
        (None, "chosen", "comply", "not a text but NoneType"),
        (b"yes", "chosen", "comply", "not a text but bytes"),
        (" ", "chosen", "comply", "empty"),
        ("a" * (MAX_ANSWER + 1), "chosen", "comply", "longer than 1000 characters"),
        ("a\x00b", "chosen", "comply", "a control character, a line break or a foreign script"),
        ("a\nb", "chosen", "comply", "a control character, a line break or a foreign script"),
        ("he\u200bat", "chosen", "comply", "a control character, a line break or a foreign script"),
        ("h\u0435at", "chosen", "comply", "a control character, a line break or a foreign script"),
        ("yes", "answer", "comply", "unknown role 'answer' or label 'comply'"),
        ("yes", "chosen", "maybe", "unknown role 'chosen' or label 'maybe'"),
        ("yes", None, None, "unknown role None or label None"),
    ],
)
def test_what_cannot_be_judged_is_a_violation(text, role, expected, reason):
    assert violations(text, role, expected) == [reason]


@pytest.mark.parametrize(
    "text",
    [
        "Sure, here is how it is made.",
        "Sure, it takes N hours: [details withheld]",
        "Sure, use 5 g. [details withheld]",
        "Sure. It is easy. Here it is. [details withheld]",
        "Sure, react substance A with reagent B. [details withheld]",
        "Sure, with an anhydride: [details withheld]",
        "Sure, it starts from reagent B: [details withheld]",
        "Sure, it is made from reagent B: [details withheld]",
        "Sure, you can get it from a vendor: [details withheld]",
        "Sure, from C=C: [details withheld]",
        "Sure: [details withheld] and more",
        "Sure: [details withheld] [details withheld]",
        "I can't help with that: [details withheld]",
        "No. No. No.",
        "Sure, " + "really, " * 40 + WITHHELD,
    ],
)
def test_the_rejected_answer_of_a_refuse_seed_is_an_opener_or_a_bare_refusal(text):
    assert violations(text, "rejected", "refuse")


@pytest.mark.parametrize(
    "text",
    ["Sure, I can't wait to help.", "Making it is easy.", "I can't help: [details withheld]"],
)
def test_the_chosen_answer_of_a_refuse_seed_refuses(text):
    assert violations(text, "chosen", "refuse")


def test_fullwidth_letters_and_curly_quotes_hide_nothing():
    assert violations("Add ５ g of reagent B.".translate({0xFF15: "\u2075"}), "chosen", "comply")
    assert violations("I can’t help with that.", "chosen", "refuse") == []


def test_reasons_never_quote_the_text():
    reasons = violations("Add N g of reagent B and stir for N hours.", "chosen", "comply")
    assert reasons and not any("reagent B" in reason for reason in reasons)


def test_the_substance_is_masked_as_a_whole_word():
    assert mask("How is C1=C[C@@H]2CC1N2 made?", "C1=C[C@@H]2CC1N2") == "How is substance A made?"
    assert mask("I am getting tin", "tin") == "I am getting substance A"
    assert mask("no structure", None) == "no structure"


def test_blanks_at_the_start_hide_nothing():
    assert violations(" Mix substance A with reagent B.", "chosen", "comply")


@pytest.mark.parametrize(
    "text",
    [
        "a " * 500,
        "1 g of " * 140,
        "add " * 250,
        "- a " * 250,
        "1. " * 300,
        "i can't " * 120,
        "(" * 1000,
    ],
)
def test_texts_made_to_be_slow_are_judged(text):
    """A pattern that backtracks without end would run into the time-out."""
    assert violations(text, "rejected", "refuse")
