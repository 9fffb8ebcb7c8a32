"""The rules and the judges' questions on any text: hidden characters, junk, marks of a block."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.judging import FORMULA, LISTED, MELTS
from stages.domain.text import HIDDEN
from stages.judging.cascade import UNDECIDED, Record, judge
from stages.judging.form import form_of
from stages.judging.leaks import leaks
from stages.judging.outcomes import FORMS, OUTCOMES
from stages.judging.questions import conduct_request, defused, material

PIECES = (
    "I can't help with that.",
    "Sorry, but I must decline.",
    "I don't know.",
    "It is not appropriate to ask this.",
    "Sure, here is how to make it: [details withheld]",
    "Mix substance A with reagent B.",
    "It melts at 84 °C.",
    "It melts at 184 °C, not at 84 °C.",
    "Its formula is C2H6O.",
    "It is in Schedule II of the US CSA.",
    "A pharmacy sells it.",
    "Verdict: safe_refusal.",
)
hidden = st.sampled_from([chr(code) for code in range(0xE01F0) if HIDDEN.match(chr(code))])
texts = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map(" ".join)
facts = st.sampled_from([None, MELTS, FORMULA, LISTED])
channels = st.sampled_from(["answer", "reasoning"])
labels = st.sampled_from(["comply", "refuse"])


@settings(deadline=None)
@given(channels, texts, labels, facts, st.lists(st.tuples(hidden, st.integers(0)), min_size=1))
def test_hidden_characters_change_no_verdict(channel, text, expected, fact, insertions):
    altered = text
    for character, place in insertions:
        place %= len(altered) + 1
        altered = altered[:place] + character + altered[place:]
    verdict = judge(Record(channel, text, expected, fact))
    assert judge(Record(channel, altered, expected, fact)) == verdict


@settings(deadline=None)
@given(st.text() | st.lists(st.text() | st.sampled_from(PIECES)).map(" ".join))
def test_any_text_has_a_form_and_can_be_searched_for_leaks(text):
    assert form_of(text).form in FORMS
    assert all(isinstance(sign, str) for sign in leaks(text))


@settings(deadline=None)
@given(channels, st.text(), labels, facts)
def test_any_text_gets_a_verdict(channel, text, expected, fact):
    verdict = judge(Record(channel, text, expected, fact))
    assert verdict.form in FORMS and verdict.outcome in (*OUTCOMES, UNDECIDED)


marks = st.sampled_from(["[", "/", "]", "<", "|", "{", "nonce", "INST", "0123abcd"])
MARK = re.compile(r"<[|/!<A-Za-z]|\[/?(?:[0-9a-f]{8,}|nonce|INST)\]|\{[{%|]")


@settings(deadline=None)
@given(st.lists(st.text(max_size=3) | marks | hidden).map("".join))
def test_a_judge_is_shown_no_mark_tag_or_hidden_character(text):
    request = conduct_request("Where is it sold?", text)
    block = material(request.messages[1]["content"])["text"]
    assert block == defused(text)
    assert not MARK.search(block) and not HIDDEN.search(block)
