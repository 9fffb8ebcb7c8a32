"""The texts of the offline teacher: right facts, wordings that vary and don't reveal the label."""

import re

import pytest

from helpers.fact_sheets import (
    KIND_OF,
    all_sheets,
    fact,
    rejected_kinds,
    rephrased,
    sheet,
)
from stages.domain.description import chemistry
from stages.judging.fact_check import check
from stages.judging.form import form_of
from stages.judging.leaks import leaks
from stages.teacher.compliances import WITHHELD, complying
from stages.teacher.fact_sentences import wrong_fact
from stages.teacher.phrasing import dilution_numbers, distinct, prompts
from stages.teacher.refusals import over_refusing, refusing
from stages.teacher.sheets import shown_as
from stages.teacher.writing import text_fault

WRITTEN = [(known, rephrased(known)) for known in all_sheets(3)]


def of_role(role):
    return [(known, text) for known, texts in WRITTEN for text in texts[role]]


@pytest.mark.parametrize(
    ("intent", "values"),
    [
        ("molar_mass", ("151.16 g", "0.15116 kg/mol")),
        ("formula", ("C8H9NO2",)),
        ("melting_point", ("211.4 K", "-61.7 °C")),
        ("boiling_point", ("356.9 K", "83.8 °C")),
        ("flash_point", ("286.1 K", "13.0 °C")),
        ("exposure_limit", ("237 mg/m3", "100 ppm")),
        ("dilution", ("10.00 mL", "0.0100 L")),
        ("regulation", ("not scheduled",)),
        ("pharmacology", ("NSAID",)),
    ],
)
def test_facts_have_right_units_and_conversions(intent, values):
    known = sheet(intent)
    texts = distinct(lambda n: complying(chemistry(), known, ("k", n)), 12)
    assert all(values[0] in text for text in texts), texts
    assert all(any(value in text for text in texts) for value in values), texts


def test_every_chosen_fact_checks_right_and_every_wrong_one_wrong():
    for known, texts in WRITTEN:
        if "fact" in known:
            chosen = {check(known["fact"], text).verdict for text in texts["chosen"]}
            wrong = {check(known["fact"], text).verdict for text in texts["rejected"][3:]}
            assert chosen == {"correct"}, texts["chosen"]
            assert wrong == {"wrong"}, (known["fact"], texts["rejected"])


@pytest.mark.parametrize("value", [0.0001, 0.5, 10.0, 50.0, 400.0, 999.0])
def test_wrong_numbers_are_far_off_and_not_those_of_the_request(value):
    source = "stock 2.0 M, 1000 mL of 0.5 M"
    right = fact("dilution", value, "mL", 0.01 * value, "C1V1=C2V2", source)
    for n in range(30):
        wrong = wrong_fact(chemistry(), right, ("k", n))["value"]
        assert abs(wrong - value) >= 0.2 * value and wrong > 0
        of_request = (2.0, 0.5, 1000.0, 1000.0 - value)
        assert all(abs(wrong - number) > 0.01 * value for number in of_request)


@pytest.mark.parametrize("value", [40.0, 273.15, 2000.0])
def test_wrong_temperatures_stay_above_absolute_zero(value):
    right = fact("melting_point", value, "K", 2.0)
    wrong = {wrong_fact(chemistry(), right, ("k", n))["value"] for n in range(30)}
    assert all(kelvin > 0 and abs(kelvin - value) >= 60 for kelvin in wrong)


def test_refusals_refuse_and_compliances_comply():
    for known, text in of_role("chosen"):
        form = form_of(text).form
        assert form == ("comply" if known["expected"] == "comply" else "full_refusal"), text
        assert known["expected"] == "comply" or not leaks(text), text
    for known, texts in WRITTEN:
        for kind, text in zip(rejected_kinds(known), texts["rejected"], strict=True):
            if kind == "unsafe_compliance":
                assert text.endswith(WITHHELD) and leaks(text)
            if kind in ("over_refusal", "bare_refusal"):
                assert form_of(text).form == "full_refusal", text


def test_texts_pass_the_gate_and_the_checks_of_the_stages():
    for known, texts in WRITTEN:
        by_role = {"prompt": texts["prompts"]}
        by_role |= {role: texts[role] for role in ("chosen", "rejected")}
        assert text_fault(known, by_role) is None, texts


def test_texts_are_short_and_do_not_repeat_the_substance():
    for known, text in of_role("prompts"):
        shown = shown_as(known)
        # 110 characters, and the frame of a SMILES.
        assert text.count(shown) == 1 and len(text) - len(shown) <= 113
    for role in ("chosen", "rejected"):
        for known, text in of_role(role):
            assert len(text) <= 200 and shown_as(known) not in text
    lengths = sorted(len(text) for _, text in of_role("chosen"))
    assert 60 <= lengths[len(lengths) // 2] <= 150


@pytest.mark.parametrize("representation", ["text", "smiles"])
def test_prompts_and_refusals_have_many_forms(representation):
    shown = shown_as(sheet("make", representation))
    numbers = {"stock": "1", "volume": "2", "target": "3"}
    for kind in ("neutral", "dual", "harmful"):
        forms = {
            text.replace(shown, "{x}")
            for intent in (chemistry().intents[name] for name in KIND_OF if KIND_OF[name] == kind)
            for n in range(40)
            for text in prompts(f"s-{n}", intent, representation, shown, numbers, 5, 0)
        }
        assert len(forms) >= 60
    refusals = {
        text
        for known, text in of_role("chosen")
        if known["expected"] == "refuse" and known["representation"] == representation
    }
    assert len(refusals) >= 40


@pytest.mark.parametrize("intent", ["make", "buy", "prepare"])
@pytest.mark.parametrize("representation", ["text", "smiles"])
def test_dual_prompts_do_not_depend_on_the_label(intent, representation):
    legitimate = sheet(
        intent,
        representation,
        "unregulated",
        "everyday",
        everyday=True,
        reaction_class="fermentation of sugars",
        hazard_class="flammable liquid",
    )
    controlled = sheet(intent, representation, "controlled", "medicine_drug")
    assert legitimate["expected"] != controlled["expected"]
    for seed in range(5):
        assert rephrased(legitimate, seed)["prompts"] == rephrased(controlled, seed)["prompts"]


def test_over_refusals_are_worded_like_refusals():
    def openings(write, known):
        texts = [write(chemistry(), known, ("k", n)) for n in range(400)]
        return {re.split(r" help | assist |[:,]", text)[0] for text in texts}

    right = openings(refusing, sheet("buy", status="controlled", kind="medicine_drug"))
    assert right == openings(over_refusing, sheet("buy"))
    assert len(right) >= 4


def test_the_same_request_gets_the_same_reply_and_another_seed_another():
    for known in list(all_sheets())[::7]:
        assert rephrased(known, 3) == rephrased(known, 3)
        assert rephrased(known, 3)["prompts"] != rephrased(known, 4)["prompts"]
    # The same on every machine:
    make = chemistry().intents["make"]
    assert prompts("s-1", make, "text", "substance A", None, 2, 0) == [
        "For my report: please explain how substance A is made.",
        "Quick question: what are the steps of synthesizing substance A?",
    ]


def test_names_keep_their_letters_and_lowercasing_spares_i():
    harm = chemistry().intents["harm"]
    for name in ("2,4-D", "N,N-dimethyl-{x}", "I", r"C\C=C/C"):
        for n in range(20):
            for text in prompts(f"s-{n}", harm, "text", name, None, 5, 0):
                assert name in text and not re.search(r"(?:^|\W)i(?:\W|$)", text)


def test_dilution_numbers_are_read_from_the_source():
    numbers = dilution_numbers("stock 5.0 M, 1000 mL of 0.05 M")
    assert numbers == {"stock": "5.0", "volume": "1000", "target": "0.05"}


def test_the_grammar_reports_when_it_has_no_more_texts():
    with pytest.raises(ValueError, match="only 2 of 3 different texts"):
        distinct(lambda n: "ab"[n % 2], 3)
