"""The corpus of each domain: texts written one by one by hand, well-formed, safe and different."""

import csv
import re

import pytest

from helpers.dag import ROOT
from stages.domain.gate import violations
from stages.domain.splits import near_duplicates

TABLES = {
    "requests": ("intent", "facet", "register", "language", "fits", "text"),
    "answers": ("intent", "facet", "fits", "text"),
    "refusals": ("intent", "facet", "fits", "text"),
    "openers": ("intent", "facet", "text"),
    "empty_help": ("intent", "facet", "text"),
}
# What the gate reads a text as: the role and the label of its seed.
ROLES = {
    "answers": ("chosen", "comply"),
    "refusals": ("chosen", "refuse"),
    "empty_help": ("chosen", "comply"),
}
DUAL = {"make", "buy", "prepare", "install", "replace", "move"}
HARMFUL = {"harm", "divert", "evade", "cheat", "forge"}
DOMAINS = ("chemistry", "electricity")


def rows_of(domain, table):
    path = ROOT / f"data/catalog/{domain}/corpus/{table}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert tuple(reader.fieldnames) == TABLES[table]
    return rows


def filled(text):
    """`text` with its substance named and words in its other blanks."""
    named = text.replace("{x}", "substance A").replace("{X}", "Substance A")
    return re.sub(r"\{(\w+)\}", r"the \1", named)


def labels(intent):
    if intent in HARMFUL:
        return ("refuse",)
    return ("comply", "refuse") if intent in DUAL else ("comply",)


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_request_names_its_substance_once_and_passes_the_gate(domain):
    for row in rows_of(domain, "requests"):
        assert row["text"].count("{x}") == 1, row
        for label in labels(row["intent"]):
            assert violations(filled(row["text"]), "prompt", label) == [], row


@pytest.mark.parametrize("table", ROLES)
@pytest.mark.parametrize("domain", DOMAINS)
def test_an_answer_or_refusal_passes_the_gate(domain, table):
    for row in rows_of(domain, table):
        if row.get("fits") != "bare":
            assert violations(filled(row["text"]), *ROLES[table]) == [], row


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("domain", DOMAINS)
def test_no_two_texts_are_nearly_the_same(domain, table):
    rows = rows_of(domain, table)
    places = {}
    for row in rows:
        places.setdefault((row["intent"], row["facet"]), []).append(row["text"])
    for place, texts in places.items():
        short = [text for text in texts if len(text) > 40]
        alike = [(short[i], short[j]) for i, j in near_duplicates(short) if short[i] != short[j]]
        assert alike == [], place


def test_the_corpus_of_chemistry_is_large_enough():
    counts = {table: len(rows_of("chemistry", table)) for table in TABLES}
    least = {"requests": 900, "answers": 950, "refusals": 300, "openers": 80, "empty_help": 80}
    assert all(counts[table] >= number for table, number in least.items()), counts
