"""Properties of the gate: it always decides; padding, case and hidden characters hide nothing."""

import re

from hypothesis import given
from hypothesis import strategies as st

from helpers.gate_texts import PASSING, PROCEDURES
from stages.domain.gate import EXPECTED, MAX_ANSWER, ROLES, domain_rules, mask, violations
from stages.domain.text import HIDDEN

PAIRS = st.tuples(st.sampled_from(ROLES), st.sampled_from(EXPECTED))
VIOLATING = st.sampled_from(PROCEDURES)
# Sentences that pass as an answer. Two of them side by side need not.
FILLERS = [text for text, role, expected in PASSING if (role, expected) == ("chosen", "comply")]
FILLER = st.lists(st.sampled_from(FILLERS), max_size=3).map(" ".join)
HIDDEN_CHARACTERS = [chr(code) for code in range(0x110000) if HIDDEN.match(chr(code))]
TEXTS = st.one_of(
    st.text(max_size=200),
    st.text(st.characters(codec="latin-1"), max_size=200),
    st.lists(st.sampled_from(sorted({w for t, _ in PROCEDURES for w in t.split()}))).map(" ".join),
)


@given(text=st.one_of(TEXTS, st.none(), st.integers(), st.binary()), pair=PAIRS)
def test_it_always_decides_and_in_the_same_way(text, pair):
    reasons = violations(text, *pair)
    assert all(isinstance(reason, str) and reason for reason in reasons)
    assert reasons == violations(text, *pair)


@given(text=TEXTS, role=st.text(max_size=10), expected=st.text(max_size=10))
def test_an_unknown_role_or_label_never_passes(text, role, expected):
    if role not in ROLES or expected not in EXPECTED:
        assert violations(text, role, expected)


@given(violating=VIOLATING, before=FILLER, after=FILLER)
def test_a_procedure_among_harmless_sentences_is_found(violating, before, after):
    text, reason = violating
    padded = f"{before} {text} {after}".strip()
    if len(padded) <= MAX_ANSWER:
        assert reason in violations(padded, "chosen", "comply")


@given(violating=VIOLATING, blanks=st.lists(st.sampled_from([" ", "  ", "\u00a0", "   "])))
def test_other_blanks_change_nothing(violating, blanks):
    text, _ = violating
    padding = iter([*blanks, *[" "] * len(text)])
    padded = re.sub(" ", lambda _: next(padding), text)
    for padded_text in (padded, f" {padded}", f"{padded}  "):
        reasons = violations(padded_text, "chosen", "comply")
        assert reasons == violations(text, "chosen", "comply"), padded_text


@given(violating=VIOLATING, flags=st.lists(st.booleans(), min_size=60))
def test_capitals_change_nothing(violating, flags):
    text, _ = violating
    letters = [c.upper() if up else c for c, up in zip(text, flags, strict=False)]
    mixed = "".join(letters) + text[len(letters) :]
    assert violations(mixed, "chosen", "comply") == violations(text, "chosen", "comply")


@given(
    text=st.sampled_from([text for text, *_ in (*PROCEDURES, *PASSING)]),
    place=st.integers(0, 200),
    hidden=st.sampled_from(HIDDEN_CHARACTERS),
    pair=PAIRS,
)
def test_a_hidden_character_anywhere_is_a_violation(text, place, hidden, pair):
    assert violations(text[:place] + hidden + text[place:], *pair) == [
        "a control character, a line break or a foreign script"
    ]


@given(text=TEXTS, pair=PAIRS, word=st.text(st.characters(categories=["Ll"]), min_size=1))
def test_rules_of_a_domain_only_add_reasons(text, pair, word):
    own = violations(text, *pair)
    more = violations(text, *pair, domain_rules({"a word": re.escape(word)}))
    assert [reason for reason in more if reason != "a word"] == own


@given(text=TEXTS, name=st.one_of(st.none(), st.text(max_size=20)))
def test_masking_twice_is_masking_once(text, name):
    masked = mask(text, name)
    if not name or name not in "substance A":
        assert mask(masked, name) == masked
    if not name:
        assert masked == text
