"""The contract of the dataset: each rule, broken once, is reported with row, column and reason."""

import json

import polars as pl
import pytest

from helpers.dataset_tables import GOOD, changed
from stages.core.errors import LibraError
from stages.dataset.contract import contract_faults
from stages.dataset.fault_tables import raise_faults
from stages.dataset.split_rules import balance_faults

FIRST = GOOD[0]["triplet_id"][0]
LAST_SUBSTANCE = GOOD[0]["substance_id"][-1]


def row_of(**values) -> int:
    """Index of the first good triplet with these values."""
    rows = GOOD[0].iter_rows(named=True)
    return next(i for i, row in enumerate(rows) if values.items() <= row.items())


def faults_in(triplets=GOOD[0], seeds=GOOD[1], substances=GOOD[2]) -> set[tuple[str, str, str]]:
    """{(row, column, reason)}"""
    return set(contract_faults(triplets, seeds, substances).rows())


def test_good_tables_have_no_faults():
    assert faults_in() == set()


@pytest.mark.parametrize(
    ("values", "column", "reason"),
    [
        ({"prompt": None}, "prompt", "null"),
        ({"chosen": ""}, "chosen", "empty"),
        ({"split": "dev"}, "split", "'dev' is none of train, validation, test"),
        ({"intent": "cook"}, "intent", "'cook' is none of"),
        ({"intent_kind": "odd"}, "intent_kind", "'odd' is none of neutral, dual, harmful"),
        ({"expected": "maybe"}, "expected", "'maybe' is none of comply, refuse"),
        ({"representation": "image"}, "representation", "'image' is none of text, smiles"),
        ({"rejected_kind": "rude"}, "rejected_kind", "'rude' is none of"),
        ({"triplet_id": GOOD[0]["triplet_id"][1]}, "triplet_id", "not unique"),
        ({"seed_id": "s-unknown"}, "seed_id", "not in seeds.parquet"),
        ({"substance_id": "s-unknown"}, "substance_id", "not in substances.parquet"),
        ({"substance_id": LAST_SUBSTANCE}, "substance_id", "differs from seeds.parquet"),
        ({"split": "train"}, "split", "differs from seeds.parquet"),
        ({"fact": "{}"}, "fact", "differs from seeds.parquet"),
        ({"prompt_id": "elsewhere-p0"}, "prompt_id", "isn't an id of this seed"),
        ({"prompt": "Another prompt."}, "prompt_id", "names more than one prompt"),
        ({"prompt": "Another prompt."}, "prompt", "doesn't contain the substance's name"),
        ({"fact": "not json"}, "fact", "not JSON"),
        ({"fact": "[1]"}, "fact", "not an object of"),
    ],
)
def test_a_wrong_value_is_reported(values, column, reason):
    triplets = changed(GOOD[0], 0, **values)
    faults = faults_in(triplets)
    reasons = [fault[2] for fault in faults if fault[:2] == (triplets["triplet_id"][0], column)]
    assert any(text.startswith(reason) for text in reasons), faults


@pytest.mark.parametrize(
    ("triplets", "column", "reason"),
    [
        (GOOD[0].drop("teacher"), "teacher", "missing"),
        (GOOD[0].with_columns(extra=pl.lit("x")), "extra", "not a column of the contract"),
        (GOOD[0].with_columns(teacher=pl.lit(1)), "teacher", "type Int32, not String"),
        (GOOD[0].with_columns(fact=pl.lit(None)), "fact", "type Null, not String"),
    ],
)
def test_a_wrong_column_is_reported(triplets, column, reason):
    assert ("all rows", column, reason) in faults_in(triplets)


def test_every_faulty_row_is_reported():
    kind = pl.when(pl.col("split") == "test").then(pl.lit("rude")).otherwise("rejected_kind")
    faults = faults_in(GOOD[0].with_columns(rejected_kind=kind))
    rows = {row for row, column, _ in faults if column == "rejected_kind"}
    assert rows >= set(GOOD[0].filter(split="test")["triplet_id"])


def test_the_label_table_decides():
    wrong = changed(GOOD[0], row_of(intent="make", expected="refuse"), expected="comply")
    reasons = [reason for _, column, reason in faults_in(wrong) if column == "expected"]
    assert any("label table" in reason for reason in reasons)

    precursors = GOOD[2].with_columns(status=pl.lit("precursor"))
    faults = faults_in(substances=precursors)
    reasons = [reason for _, column, reason in faults if column == "intent_kind"]
    assert any("doesn't go with" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("label", "kind"), [("comply", "unsafe_compliance"), ("refuse", "wrong_fact")]
)
def test_the_rejected_kind_fits_the_label(label, kind):
    row = row_of(expected=label)
    fault = (GOOD[0]["triplet_id"][row], "rejected_kind", "doesn't fit the label in `expected`")
    assert fault in faults_in(changed(GOOD[0], row, rejected_kind=kind))


def test_chosen_and_rejected_differ_by_more_than_case_and_spaces():
    text = GOOD[0]["chosen"][0]
    faults = faults_in(changed(GOOD[0], 0, rejected=f" {text.upper()}"))
    assert (FIRST, "rejected", "the same as chosen") in faults


@pytest.mark.parametrize("role", ["prompt", "chosen", "rejected"])
def test_every_text_column_passes_the_gate(role):
    text = "Heat to T for N hours."
    faults = faults_in(changed(GOOD[0], 3, **{role: text}))
    assert (GOOD[0]["triplet_id"][3], role, "gate: a heating or cooling condition") in faults
    assert not any(text in reason for _, _, reason in faults)


def test_the_chosen_answer_of_a_refuse_seed_refuses():
    row = row_of(expected="refuse")
    faults = faults_in(changed(GOOD[0], row, chosen="Yes, it is easy."))
    assert (GOOD[0]["triplet_id"][row], "chosen", "gate: not a refusal") in faults


def test_a_property_seed_has_the_fact_of_its_intent():
    row = row_of(intent="handling")
    fact = {"name": "melting_point", "value": 300.0, "unit": "K", "tolerance": 2.0}
    fact |= {"method": "m", "source": "s"}
    reasons = [fault[2] for fault in faults_in(changed(GOOD[0], row, fact=json.dumps(fact)))]
    assert any("for another intent" in reason for reason in reasons)
    reasons = [fault[2] for fault in faults_in(changed(GOOD[0], row, intent="melting_point"))]
    assert "a property seed without a fact" in reasons


def first_seed(split: str) -> str:
    """The first seed of `split` with the label comply."""
    return GOOD[1].filter(split=split, expected="comply")["seed_id"].min()


def test_labels_are_balanced_in_every_split_and_no_split_is_empty():
    faults = faults_in(GOOD[0].filter(pl.col("seed_id") != first_seed("test")))
    for counts in ("64 triplets to refuse, 60", "16 seeds to refuse, 15"):
        assert ("split test", "expected", f"{counts} to comply with: not 1 : 1") in faults
    faults = faults_in(GOOD[0].filter(pl.col("split") != "validation"))
    assert ("split validation", "split", "empty") in faults


def test_only_train_may_have_the_surplus_of_its_seeds():
    triplets, seeds, _ = GOOD

    def reasons(lost: str, seeds: pl.DataFrame) -> list[str]:
        rest = triplets.lazy().filter(pl.col("seed_id") != lost)
        return balance_faults(rest, seeds)["reason"].to_list()

    train, validation = first_seed("train"), first_seed("validation")
    assert reasons(train, seeds.filter(pl.col("seed_id") != train)) == []
    missing = reasons(validation, seeds.filter(pl.col("seed_id") != validation))
    assert len(missing) == 2 and all(reason.endswith("not 1 : 1") for reason in missing)

    # Two seeds fewer in seeds.parquet, but only one of them in the triplets.
    two = seeds.filter(split="train", expected="comply")["seed_id"].sort()[:2]
    missing = reasons(train, seeds.filter(~pl.col("seed_id").is_in(two.implode())))
    assert len(missing) == 2 and all("as in seeds.parquet" in reason for reason in missing)


def test_nothing_crosses_a_split():
    triplets, _, substances = GOOD
    test, train = "s-test-0", "s-train-0"
    index = {name: i for i, name in enumerate(substances["substance_id"])}
    train_row = substances.row(index[train], named=True)

    def faults_with(**values) -> set[tuple[str, str, str]]:
        """Faults after `values` of the test substance changed."""
        return faults_in(substances=changed(substances, index[test], **values))

    faults = faults_with(parent_key=train_row["parent_key"])
    assert faults == {(test, "parent_key", "the same parent is in test and train")}
    faults = faults_with(group=train_row["group"])
    assert faults == {(test, "group", "the same group is in test and train")}
    faults = faults_with(name=train_row["name"][:-1].upper() + "x")
    assert (train, "name", f"in train, a near-duplicate of {test} in test") in faults

    smiles = substances["smiles"][index["s-train-4"]][:-1] + "F"
    faults = faults_in(substances=changed(substances, index["s-test-4"], smiles=smiles))
    assert ("s-train-4", "smiles", "in train, a near-duplicate of s-test-4 in test") in faults

    substance = pl.when(pl.col("substance_id") == test).then(pl.lit(train))
    moved = triplets.with_columns(substance_id=substance.otherwise("substance_id"))
    fault = (train, "substance_id", "the same substance is in test and train")
    assert fault in faults_in(moved)


@pytest.mark.parametrize(
    ("scaffold", "crosses"), [("c1ccccc1", False), ("c1ccc2[nH]c3ccccc3c2c1", True)]
)
def test_only_trivial_scaffolds_may_cross_a_split(scaffold, crosses):
    pair = pl.col("substance_id").is_in(["s-test-0", "s-train-0"])
    shared = pl.when(pair).then(pl.lit(scaffold)).otherwise("scaffold")
    faults = faults_in(substances=GOOD[2].with_columns(scaffold=shared))
    fault = ("s-test-0", "scaffold", "the same scaffold is in test and train")
    assert faults == ({fault} if crosses else set())


def test_only_medicines_and_drugs_among_controlled_substances_have_a_structure():
    rows = GOOD[2].with_row_index().filter(pl.col("smiles").is_not_null(), status="controlled")
    index, substance = rows["index"][0], rows["substance_id"][0]
    reason = "a controlled substance that isn't a medicine or drug has a structure"
    faults = faults_in(substances=changed(GOOD[2], index, kind="chemical_weapon"))
    assert faults == {(substance, "smiles", reason)}
    faults = faults_in(substances=changed(GOOD[2], index, parent_key=None))
    assert faults == {(substance, "parent_key", "null beside a structure")}


def test_a_long_list_of_rules_is_cut():
    reasons = [f"reason {i // 2}" for i in range(60)]
    faults = pl.DataFrame({"row": ["a"] * 60, "column": ["c"] * 60, "reason": reasons})
    with pytest.raises(LibraError, match=r"breaks 30 rule\(s\) in 60 place\(s\)") as error:
        raise_faults(faults, "a.parquet", "Fix it.")
    message = str(error.value)
    assert "... and 10 more rules" in message and message.endswith("Fix it.")
    assert message.count("and 1 more rows") == 20
