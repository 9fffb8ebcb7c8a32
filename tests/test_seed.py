"""`python -m stages.seed` on the real catalog: the split, the balance, the shortcuts, the facts, and the same bytes twice."""

import json
import os
import random
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import polars as pl
import pytest
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from stages.chem.identity import is_trivial
from stages.chem.labels import INTENTS, PROPERTY_INTENTS, expected
from stages.chem.splits import SPLITS, near_duplicates

ROOT = Path(__file__).parent.parent
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["seed"]


def run_seed(folder, hash_seed="0", **sizes):
    """Run the stage in `folder` with the project's params, `sizes` (seeds per split) put in their place."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "data/catalog").symlink_to(ROOT / "data/catalog")
    params = {name: value | {"seeds": sizes[name]} if name in sizes else value for name, value in PARAMS.items()}
    (folder / "params.yaml").write_text(yaml.safe_dump({"random_seed": 2025, "seed": params}))
    (folder / "dvc.yaml").write_text("stages: {seed: {params: [random_seed, seed]}}\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-m", "stages.seed"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """seeds and substances at default size."""
    folder = tmp_path_factory.mktemp("seed")
    done = run_seed(folder)
    assert done.returncode == 0, done.stderr
    return pl.read_parquet(folder / "data/seeds.parquet"), pl.read_parquet(folder / "data/substances.parquet")


@pytest.fixture(scope="module")
def dual(tables):
    """The dual cell with the features a shortcut could use."""
    seeds, substances = tables
    length = pl.col("name").str.len_chars().alias("name_length")
    features = substances.select("substance_id", "name", "smiles", "kind", "molar_mass", length)
    return seeds.filter(pl.col("intent_kind") == "dual").join(features, on="substance_id").sort("seed_id")


def test_sizes_and_balance(tables):
    seeds, _ = tables
    assert seeds["seed_id"].n_unique() == seeds.height == sum(PARAMS[split]["seeds"] for split in SPLITS)
    for split in SPLITS:
        size, dual_share = PARAMS[split]["seeds"], PARAMS[split]["dual_share"]
        part = seeds.filter(pl.col("split") == split)
        assert part.height == size and (part["expected"] == "refuse").sum() == size // 2
        for (label,), half in part.group_by("expected"):
            assert (half["intent_kind"] == "dual").sum() == round(size // 2 * dual_share), label
        for cell, rows in part.group_by("expected", "intent_kind", "status"):
            text = (rows["representation"] == "text").sum()
            assert abs(2 * text - rows.height) <= max(3, 0.2 * rows.height) or cell[2] == "precursor", cell


def test_labels_follow_the_table(tables):
    seeds, _ = tables
    rows = seeds.select("status", "intent", "expected").iter_rows()
    assert all(label == expected(status, intent) for status, intent, label in rows)


def test_dual_intents_are_the_same_on_both_sides(dual):
    counts = dual.group_by("split", "expected", "intent", "representation").len()
    sides = [counts.filter(pl.col("expected") == label).drop("expected").sort(pl.all()) for label in ("refuse", "comply")]
    assert sides[0].equals(sides[1])
    assert set(dual["intent"]) == set(INTENTS["dual"])


def test_dual_is_mostly_about_different_substances(dual):
    for (split, label, representation), rows in dual.group_by("split", "expected", "representation"):
        assert rows["substance_id"].n_unique() >= 0.9 * rows.height, (split, label, representation)


def test_the_same_substances_are_complied_with_and_refused(tables):
    seeds, _ = tables
    both = seeds.group_by("status", "substance_id").agg(labels=pl.col("expected").n_unique())
    share = both.group_by("status").agg((pl.col("labels") == 2).mean())
    shares = dict(share.iter_rows())
    assert shares["controlled"] > 0.2 and shares["unregulated"] > 0.2


def test_legitimate_substances_in_dual_are_mostly_drug_like(dual):
    for (split,), rows in dual.filter(pl.col("status") == "unregulated").group_by("split"):
        assert rows["kind"].is_in(["medicine", "drug_like"]).mean() >= PARAMS["drug_like_share"], split


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("columns", [["molar_mass"], ["name_length"], ["molar_mass", "name_length"]])
def test_no_shortcut_by_size(dual, split, columns):
    rows = dual.filter((pl.col("split") == split) & pl.col("molar_mass").is_not_null())
    labels, groups = rows["expected"].to_numpy(), rows["group"].to_numpy()
    for model in (
        make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced")),
        DecisionTreeClassifier(max_depth=3, min_samples_leaf=5, class_weight="balanced", random_state=0),
    ):
        guesses = cross_val_predict(model, rows.select(columns).to_numpy(), labels, groups=groups, cv=GroupKFold(5))
        assert balanced_accuracy_score(labels, guesses) <= 0.6


def test_no_substance_scaffold_or_near_duplicate_crosses_a_split(tables):
    seeds, substances = tables
    assert seeds.join(substances, on="substance_id").filter(pl.col("split") != pl.col("split_right")).is_empty()
    for column in ("substance_id", "parent_key", "group"):
        known = substances.filter(pl.col(column).is_not_null())
        assert known.group_by(column).agg(pl.col("split").n_unique())["split"].max() == 1, column
    scaffolds = substances.group_by("scaffold").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1)["scaffold"]
    assert all(is_trivial(scaffold) for scaffold in scaffolds)
    parts = {split: substances.filter(pl.col("split") == split) for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        names = [parts[split]["name"].str.to_lowercase().to_list() for split in (one, other)]
        drawn = [parts[split]["smiles"].drop_nulls().to_list() for split in (one, other)]
        assert near_duplicates(*names) == [] and near_duplicates(*drawn) == []


def test_no_group_holds_a_third_of_the_controlled(tables):
    _, substances = tables
    controlled = substances.filter(pl.col("status") == "controlled")
    assert controlled["group"].value_counts()["count"].max() < 0.35 * controlled.height


def test_structures_only_where_they_may_be(tables):
    seeds, substances = tables
    controlled = substances.filter(pl.col("status") == "controlled")
    assert controlled.filter((pl.col("kind") != "medicine_drug") & pl.col("smiles").is_not_null()).is_empty()
    drawn = seeds.filter(pl.col("representation") == "smiles").join(substances, on="substance_id")
    assert drawn["smiles"].null_count() == 0 and not drawn["smiles"].str.contains(r"[@/\\]").any()


def test_facts_of_200_substances(tables):
    from chemicals import TWA, T_flash, Tb, Tm
    from rdkit import Chem
    from rdkit.Chem.Descriptors import MolWt
    from rdkit.Chem.rdMolDescriptors import CalcMolFormula

    _, substances = tables
    look_up = {"melting_point": Tm, "boiling_point": Tb, "flash_point": T_flash}
    for row in random.Random("facts").sample(substances.rows(named=True), 200):
        facts = {fact["name"]: fact for fact in json.loads(row["facts"])}
        if row["smiles"]:
            molecule = Chem.MolFromSmiles(row["smiles"])
            assert facts["molar_mass"]["value"] == pytest.approx(MolWt(molecule), abs=0.01)
            assert facts["molar_mass"]["unit"] == "g/mol" and facts["formula"]["value"] == CalcMolFormula(molecule)
        for name in look_up.keys() & facts.keys():
            fact = facts[name]
            assert fact["unit"] == "K" and 20 < fact["value"] < 4000 and fact["method"] not in ("JOBACK", "YAWS", "WIKIDATA")
            assert fact["value"] == pytest.approx(look_up[name](CASRN=row["cas"], method=fact["method"]), abs=0.1)
        if limit := facts.get("exposure_limit"):
            amount, unit = TWA(CASRN=row["cas"])
            expected_value = amount * row["molar_mass"] / 24.45 if unit == "ppm" else amount
            assert limit["unit"] == "mg/m3" and limit["value"] == pytest.approx(expected_value, rel=0.01)
        assert (facts["regulation"]["value"] == "not scheduled") == (row["status"] == "unregulated")


def test_grounded_intents_have_their_fact(tables):
    seeds, _ = tables
    grounded = {*PROPERTY_INTENTS, "regulation"}
    for intent, fact in seeds.select("intent", "fact").iter_rows():
        assert (fact is not None) == (intent in grounded)
        if fact:
            assert json.loads(fact)["name"] == intent
    for fact in seeds.filter(pl.col("intent") == "dilution")["fact"]:
        value, (stock, total, wanted) = json.loads(fact)["value"], _dilution_numbers(json.loads(fact)["source"])
        assert value == pytest.approx(wanted * total / stock)


def _dilution_numbers(source):
    words = source.replace(",", "").split()
    return [float(word) for word in words if word[0].isdigit()]


def test_the_same_bytes_twice(tmp_path):
    sizes = {"train": 48, "validation": 16, "test": 48}
    written = []
    for hash_seed in ("1", "2"):
        folder = tmp_path / hash_seed
        done = run_seed(folder, hash_seed, **sizes)
        assert done.returncode == 0, done.stderr
        written.append([(folder / f"data/{name}.parquet").read_bytes() for name in ("seeds", "substances")])
    assert written[0] == written[1]
    seeds = pl.read_parquet(folder / "data/seeds.parquet")
    assert dict(seeds["split"].value_counts().iter_rows()) == sizes and (seeds["expected"] == "refuse").mean() == 0.5


@pytest.mark.parametrize("sizes, message", [
    ({"train": 47}, "seed.train.seeds must be even"),
    ({"test": 2}, "`seed.test.seeds`: Input should be greater than or equal to 8"),
])  # fmt: skip
def test_bad_params_stop_at_once(tmp_path, sizes, message):
    done = run_seed(tmp_path, **sizes)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
