"""Label probes: they find a shortcut that is put into the data, and nothing in balanced data."""

import polars as pl
import pytest

from helpers.dataset_tables import GOOD, tables
from stages.dataset.probes import MIN_DUAL_SEEDS, measure, probe_faults


@pytest.fixture(scope="module")
def big():
    """(triplets, seeds, substances) with enough dual seeds for the probes to be judged."""
    return tables({"train": 800, "validation": 40, "test": 160}, per_seed=2)


def faults_of(
    triplets: pl.DataFrame, seeds: pl.DataFrame, substances: pl.DataFrame
) -> tuple[dict, pl.DataFrame]:
    """(measured, faults at the limit 0.6)"""
    measured = measure(triplets, seeds, substances)
    return measured, probe_faults(measured, triplets, substances, 0.6)


def test_balanced_tables_have_no_shortcut(big):
    measured, faults = faults_of(*big)
    assert measured["dual_seeds"] >= MIN_DUAL_SEEDS
    assert faults.is_empty(), faults.rows()
    assert measured["overall"]["status_and_intent"] == 1.0
    assert measured["overall"]["intent_only"] < 0.8


@pytest.mark.parametrize(
    ("probe", "column"),
    [
        ("molar_mass", pl.col("molar_mass") + 150),
        ("name_length", pl.col("name") + "-acetate"),
    ],
)
def test_molar_mass_or_name_length_that_predicts_the_label_is_found(big, probe, column):
    triplets, seeds, substances = big
    (name,) = column.meta.root_names()
    is_controlled = pl.col("status") == "controlled"
    shifted = substances.with_columns(pl.when(is_controlled).then(column).otherwise(name))
    _, faults = faults_of(triplets, seeds, shifted)
    assert f"probe {probe}" in faults["row"].to_list()
    if probe == "molar_mass":
        assert faults.height == 1 and "limit 0.6" in faults["reason"][0]


def test_wording_that_predicts_the_label_is_found(big):
    triplets, seeds, substances = big
    is_dual_comply = (pl.col("expected") == "comply") & (pl.col("intent_kind") == "dual")
    polite = pl.col("prompt").str.replace("^Hi, ", "Dear all, ")
    prompt = pl.when(is_dual_comply).then(polite).otherwise("prompt")
    rows = faults_of(triplets.with_columns(prompt=prompt), seeds, substances)[1]["row"].to_list()
    assert "probe prompt_wording" in rows
    assert any(row.startswith("form 'Dear all, how is {x}") for row in rows)


def test_a_small_dataset_is_measured_but_not_judged():
    measured, faults = faults_of(*GOOD)
    assert measured["dual_seeds"] == 48 and faults.is_empty()


def test_a_full_dataset_needs_many_wordings():
    full = tables({"train": 1000, "validation": 4, "test": 4}, per_seed=1)
    faults = faults_of(*full)[1].rows()
    reason = "only {} different forms; at least {} are required"
    assert ("representation text", "prompts", reason.format(12, 60)) in faults
    assert ("representation smiles", "refusals", reason.format(1, 40)) in faults
