"""The stage `seed` on the real catalog: splits, balance, shortcuts, and the same bytes twice."""

import json
from itertools import combinations

import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from helpers.seeding import PARAMS, default_tables, run_seed
from stages.chemistry.substance import Substance
from stages.domain.description import chemistry
from stages.domain.planner import plan_split
from stages.domain.splits import SPLITS, is_trivial, near_duplicates


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Seeds and substances at default size."""
    return default_tables(tmp_path_factory.mktemp("seed"))


@pytest.fixture(scope="module")
def dual(tables):
    """The dual cell with the features a shortcut could use."""
    seeds, substances = tables
    length = pl.col("name").str.len_chars().alias("name_length")
    features = substances.select("substance_id", "name", "smiles", "kind", "molar_mass", length)
    joined = seeds.filter(intent_kind="dual").join(features, on="substance_id")
    return joined.sort("seed_id")


def test_the_default_sizes(tables):
    """Numbers the project promises, written out rather than read from params.yaml."""
    seeds, substances = tables
    for split in ("train", "test"):
        labels = seeds.filter(split=split)["expected"]
        counts = {label: (labels == label).sum() for label in ("refuse", "comply")}
        assert counts == {"refuse": 632, "comply": 632}, split
    drugs = substances.filter(status="controlled", kind="medicine_drug")
    assert drugs["parent_key"].drop_nulls().n_unique() >= 500
    comply = seeds.filter(intent_kind="dual", expected="comply").join(substances, on="substance_id")
    for (split,), rows in comply.group_by("split"):
        assert rows["kind"].is_in(["medicine", "drug_like"]).mean() >= 0.5, split


def test_sizes_and_balance(tables):
    seeds, _ = tables
    assert seeds["seed_id"].n_unique() == seeds.height
    assert seeds.height == sum(PARAMS[split]["seeds"] for split in SPLITS)
    for split in SPLITS:
        count, dual_share = PARAMS[split]["seeds"], PARAMS[split]["dual_share"]
        part = seeds.filter(split=split)
        assert part.height == count
        assert (part["expected"] == "refuse").sum() == count // 2
        for (label,), half in part.group_by("expected"):
            assert (half["intent_kind"] == "dual").sum() == round(count // 2 * dual_share), label
        cells = part.filter(pl.col("status") != "precursor")
        for cell, rows in cells.group_by("expected", "intent_kind", "status"):
            text = (rows["representation"] == "text").sum()
            assert abs(2 * text - rows.height) <= max(3, 0.2 * rows.height), cell


def test_labels_follow_the_table(tables):
    rows = tables[0].select("status", "intent", "expected").iter_rows()
    assert all(label == chemistry().expected(status, intent) for status, intent, label in rows)


def test_dual_intents_are_the_same_on_both_sides(dual):
    counts = dual.group_by("split", "expected", "intent", "representation").len()
    sides = [
        counts.filter(expected=label).drop("expected").sort(pl.all())
        for label in ("refuse", "comply")
    ]
    assert sides[0].equals(sides[1])
    assert set(dual["intent"]) == set(chemistry().of_kind("dual"))


def test_dual_is_mostly_about_different_substances(dual):
    for cell, rows in dual.group_by("split", "expected", "representation"):
        assert rows["substance_id"].n_unique() >= 0.9 * rows.height, cell


def test_the_same_substances_are_complied_with_and_refused(tables):
    labels = pl.col("expected").n_unique().alias("labels")
    by_substance = tables[0].group_by("status", "substance_id").agg(labels)
    shares = dict(by_substance.group_by("status").agg((pl.col("labels") == 2).mean()).iter_rows())
    assert shares["controlled"] > 0.2
    assert shares["unregulated"] > 0.2


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    "columns", [["molar_mass"], ["name_length"], ["molar_mass", "name_length"]]
)
def test_size_is_no_shortcut_to_the_label(dual, split, columns):
    rows = dual.filter(pl.col("molar_mass").is_not_null(), split=split)
    labels, groups = rows["expected"].to_numpy(), rows["group"].to_numpy()
    features = rows.select(columns).to_numpy()
    linear = LogisticRegression(class_weight="balanced")
    tree = DecisionTreeClassifier(
        max_depth=3, min_samples_leaf=5, class_weight="balanced", random_state=0
    )
    for model in (make_pipeline(StandardScaler(), linear), tree):
        guesses = cross_val_predict(model, features, labels, groups=groups, cv=GroupKFold(5))
        assert balanced_accuracy_score(labels, guesses) <= 0.6


def test_no_substance_scaffold_or_near_duplicate_crosses_a_split(tables):
    seeds, substances = tables
    joined = seeds.join(substances, on="substance_id")
    assert joined.filter(pl.col("split") != pl.col("split_right")).is_empty()
    for column in ("substance_id", "parent_key", "group"):
        known = substances.filter(pl.col(column).is_not_null())
        splits = known.group_by(column).agg(pl.col("split").n_unique())["split"]
        assert splits.max() == 1, column

    scaffolds = substances.group_by("scaffold").agg(pl.col("split").n_unique())
    shared = scaffolds.filter(pl.col("split") > 1)["scaffold"]
    assert all(is_trivial(scaffold) for scaffold in shared)

    parts = {split: substances.filter(split=split) for split in SPLITS}
    for pair in combinations(SPLITS, 2):
        names = [parts[split]["name"].str.to_lowercase().to_list() for split in pair]
        structures = [parts[split]["smiles"].drop_nulls().to_list() for split in pair]
        assert near_duplicates(*names) == []
        assert near_duplicates(*structures) == []


def test_no_group_has_a_third_of_the_controlled(tables):
    controlled = tables[1].filter(status="controlled")
    assert controlled["group"].value_counts()["count"].max() < 0.35 * controlled.height


def test_structures_are_of_medicines_and_drugs_only(tables):
    seeds, substances = tables
    controlled = substances.filter(pl.col("kind") != "medicine_drug", status="controlled")
    assert controlled["smiles"].null_count() == controlled.height > 0
    asked = seeds.filter(representation="smiles").join(substances, on="substance_id")
    assert asked["smiles"].null_count() == 0
    assert not asked["smiles"].str.contains(r"[@/\\]").any()


def test_what_is_known_by_name_only_has_its_listing_and_no_constants(tables):
    seeds, substances = tables
    kinds = ["chemical_weapon", "immediate_precursor"]
    by_name = substances.filter(pl.col("kind").is_in(kinds))
    assert set(by_name["kind"]) == set(kinds)
    for column in ("smiles", "inchikey", "parent_key", "scaffold", "formula", "molar_mass"):
        assert by_name[column].null_count() == by_name.height, column
    for facts in by_name["facts"]:
        assert [fact["name"] for fact in json.loads(facts)] == ["regulation"]
    asked = seeds.join(by_name.select("substance_id"), on="substance_id", how="semi")
    assert not set(asked["intent"]) & set(chemistry().properties) - {"regulation"}


def test_only_what_is_on_no_list_is_not_scheduled(tables):
    for status, facts in tables[1].select("status", "facts").iter_rows():
        (listing,) = (fact["value"] for fact in json.loads(facts) if fact["name"] == "regulation")
        assert (listing == "not scheduled") == (status == "unregulated")


def test_grounded_intents_have_their_fact(tables):
    seeds, _ = tables
    grounded = {*chemistry().properties, "regulation"}
    for intent, fact in seeds.select("intent", "fact").iter_rows():
        assert (fact is not None) == (intent in grounded)
        assert fact is None or json.loads(fact)["name"] == intent
    for fact in map(json.loads, seeds.filter(intent="dilution")["fact"]):
        words = fact["source"].replace(",", "").split()
        stock, volume, target = (float(word) for word in words if word[0].isdigit())
        assert fact["value"] == pytest.approx(target * volume / stock)


def plan(tables, **changes):
    """240 train seeds about the substances of the default tables."""
    fields = Substance.__dataclass_fields__
    substances = []
    for row in tables[1].iter_rows(named=True):
        known = {key: value for key, value in row.items() if key in fields}
        substances.append(Substance(**known | {"facts": json.loads(row["facts"])}))
    rows = plan_split("train", 240, substances, 0.75, 0.5, 2025, **changes)
    return pl.DataFrame(rows, infer_schema_length=None)


@pytest.mark.parametrize(("share", "refuse"), [(1 / 3, 80), (0.5, 120), (2 / 3, 160)])
def test_train_may_be_unbalanced(tables, share, refuse):
    seeds = plan(tables, refuse_share=share)
    assert seeds["seed_id"].n_unique() == seeds.height == 240
    counts = {"refuse": refuse, "comply": 240 - refuse}
    for (label,), half in seeds.group_by("expected"):
        assert half.height == counts[label]
        assert (half["intent_kind"] == "dual").sum() == round(0.75 * counts[label])
        assert abs((half["representation"] == "text").mean() - 0.5) < 0.05
    assert seeds["intent_kind"].n_unique() == 3


@pytest.mark.parametrize("representation", ["text", "smiles"])
def test_train_may_have_one_representation(tables, representation):
    seeds = plan(tables, representations=representation)
    assert seeds.height == 240
    assert set(seeds["representation"]) == {representation}
    assert (seeds["expected"] == "refuse").mean() == 0.5
    intents = {*chemistry().of_kind("dual"), *chemistry().of_kind("harmful")}
    assert set(seeds["intent"]) >= intents


def test_the_same_bytes_twice(tmp_path):
    counts = {"train": 48, "validation": 16, "test": 48}
    contents = []
    for hash_seed in ("1", "2"):
        folder = tmp_path / hash_seed
        done = run_seed(folder, hash_seed, **counts)
        assert done.returncode == 0, done.stderr
        paths = [folder / f"data/{name}.parquet" for name in ("seeds", "substances")]
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]
    seeds = pl.read_parquet(paths[0])
    assert dict(seeds["split"].value_counts().iter_rows()) == counts
    assert (seeds["expected"] == "refuse").mean() == 0.5


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train": 47}, "seed.train.seeds must be even"),
        ({"test": 2}, "`seed.test.seeds`: Input should be greater than or equal to 8"),
    ],
)
def test_bad_params_stop_at_once(tmp_path, counts, message):
    done = run_seed(tmp_path, **counts)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
