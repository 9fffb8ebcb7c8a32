"""`python -m stages.seed` on the real catalog: the split, the balance, the shortcuts, the facts, and the same bytes twice."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
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

from stages.domain.description import DOMAIN_JSON, chemistry
from stages.domain.splits import SPLITS, is_trivial, near_duplicates

ROOT = Path(__file__).parent.parent
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["seed"]


def run_seed(folder, hash_seed="0", **sizes):
    """Run the stage in `folder` with the project's params, `sizes` (seeds per split) put in their place."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "data/catalog").symlink_to(ROOT / "data/catalog")
    params = {
        name: value | {"seeds": sizes[name]} if name in sizes else value
        for name, value in PARAMS.items()
    }
    (folder / "params.yaml").write_text(yaml.safe_dump({"random_seed": 2025, "seed": params}))
    (folder / "dvc.yaml").write_text("stages: {seed: {params: [random_seed, seed]}}\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-m", "stages.seed"]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """seeds and substances at default size."""
    folder = tmp_path_factory.mktemp("seed")
    done = run_seed(folder)
    assert done.returncode == 0, done.stderr
    return pl.read_parquet(folder / "data/seeds.parquet"), pl.read_parquet(
        folder / "data/substances.parquet"
    )


@pytest.fixture(scope="module")
def dual(tables):
    """The dual cell with the features a shortcut could use."""
    seeds, substances = tables
    length = pl.col("name").str.len_chars().alias("name_length")
    features = substances.select("substance_id", "name", "smiles", "kind", "molar_mass", length)
    return (
        seeds.filter(pl.col("intent_kind") == "dual")
        .join(features, on="substance_id")
        .sort("seed_id")
    )


def test_the_default_sizes(tables):
    """Numbers the project promises, written out: not read from params.yaml, which they shall hold to."""
    seeds, substances = tables
    for split in ("train", "test"):
        labels = seeds.filter(pl.col("split") == split)["expected"]
        assert (len(labels), (labels == "refuse").sum(), (labels == "comply").sum()) == (
            1264,
            632,
            632,
        ), split
    listed = substances.filter(
        (pl.col("status") == "controlled") & (pl.col("kind") == "medicine_drug")
    )
    assert listed.filter(pl.col("smiles").is_not_null())["parent_key"].n_unique() >= 500
    helped = seeds.filter(intent_kind="dual", expected="comply").join(substances, on="substance_id")
    for (split,), rows in helped.group_by("split"):
        assert rows["kind"].is_in(["medicine", "drug_like"]).mean() >= 0.5, split


def test_sizes_and_balance(tables):
    seeds, _ = tables
    assert (
        seeds["seed_id"].n_unique()
        == seeds.height
        == sum(PARAMS[split]["seeds"] for split in SPLITS)
    )
    for split in SPLITS:
        size, dual_share = PARAMS[split]["seeds"], PARAMS[split]["dual_share"]
        part = seeds.filter(pl.col("split") == split)
        assert part.height == size and (part["expected"] == "refuse").sum() == size // 2
        for (label,), half in part.group_by("expected"):
            assert (half["intent_kind"] == "dual").sum() == round(size // 2 * dual_share), label
        for cell, rows in part.group_by("expected", "intent_kind", "status"):
            text = (rows["representation"] == "text").sum()
            assert (
                abs(2 * text - rows.height) <= max(3, 0.2 * rows.height) or cell[2] == "precursor"
            ), cell


def test_labels_follow_the_table(tables):
    seeds, _ = tables
    rows = seeds.select("status", "intent", "expected").iter_rows()
    assert all(label == chemistry().expected(status, intent) for status, intent, label in rows)


def test_dual_intents_are_the_same_on_both_sides(dual):
    counts = dual.group_by("split", "expected", "intent", "representation").len()
    sides = [
        counts.filter(pl.col("expected") == label).drop("expected").sort(pl.all())
        for label in ("refuse", "comply")
    ]
    assert sides[0].equals(sides[1])
    assert set(dual["intent"]) == set(chemistry().of_kind("dual"))


def test_dual_is_mostly_about_different_substances(dual):
    for (split, label, representation), rows in dual.group_by(
        "split", "expected", "representation"
    ):
        assert rows["substance_id"].n_unique() >= 0.9 * rows.height, (split, label, representation)


def test_the_same_substances_are_complied_with_and_refused(tables):
    seeds, _ = tables
    both = seeds.group_by("status", "substance_id").agg(labels=pl.col("expected").n_unique())
    share = both.group_by("status").agg((pl.col("labels") == 2).mean())
    shares = dict(share.iter_rows())
    assert shares["controlled"] > 0.2 and shares["unregulated"] > 0.2


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    "columns", [["molar_mass"], ["name_length"], ["molar_mass", "name_length"]]
)
def test_no_shortcut_by_size(dual, split, columns):
    rows = dual.filter((pl.col("split") == split) & pl.col("molar_mass").is_not_null())
    labels, groups = rows["expected"].to_numpy(), rows["group"].to_numpy()
    for model in (
        make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced")),
        DecisionTreeClassifier(
            max_depth=3, min_samples_leaf=5, class_weight="balanced", random_state=0
        ),
    ):
        guesses = cross_val_predict(
            model, rows.select(columns).to_numpy(), labels, groups=groups, cv=GroupKFold(5)
        )
        assert balanced_accuracy_score(labels, guesses) <= 0.6


def test_no_substance_scaffold_or_near_duplicate_crosses_a_split(tables):
    seeds, substances = tables
    assert (
        seeds.join(substances, on="substance_id")
        .filter(pl.col("split") != pl.col("split_right"))
        .is_empty()
    )
    for column in ("substance_id", "parent_key", "group"):
        known = substances.filter(pl.col(column).is_not_null())
        assert known.group_by(column).agg(pl.col("split").n_unique())["split"].max() == 1, column
    scaffolds = (
        substances.group_by("scaffold")
        .agg(pl.col("split").n_unique())
        .filter(pl.col("split") > 1)["scaffold"]
    )
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
    assert controlled.filter(
        (pl.col("kind") != "medicine_drug") & pl.col("smiles").is_not_null()
    ).is_empty()
    drawn = seeds.filter(pl.col("representation") == "smiles").join(substances, on="substance_id")
    assert drawn["smiles"].null_count() == 0 and not drawn["smiles"].str.contains(r"[@/\\]").any()


def test_not_scheduled_is_said_of_what_is_on_no_list(tables):
    _, substances = tables
    for status, facts in substances.select("status", "facts").iter_rows():
        (listing,) = (fact["value"] for fact in json.loads(facts) if fact["name"] == "regulation")
        assert (listing == "not scheduled") == (status == "unregulated")


# What the offline teacher writes of 200 real substances, read by patterns of this test and held against rdkit and `chemicals`
# asked by CAS number: nothing of stages/judging/fact_check.py, and of stages/chemistry/properties.py only what went into the texts.
STATED = {  # intent -> (pattern of a number with its unit, factor, offset to the unit named at its end)
    "molar_mass": (
        (r"([\d.]+) g(?:/mol|(?=[., )]))", 1, 0),
        (r"([\d.]+) kg/mol", 1000, 0),
    ),  # g/mol
    **dict.fromkeys(
        ("melting_point", "boiling_point", "flash_point"),
        ((r"([\d.]+) K\b", 1, 0), (r"(-?[\d.]+) °C", 1, 273.15)),
    ),  # K
    "exposure_limit": ((r"([\d.]+) mg/m3", 1, 0),),  # mg/m3
    "dilution": ((r"([\d.]+) mL of stock", 1, 0), (r"([\d.]+) L\b", 1000, 0)),  # mL
}
NOT_MEASURED = (
    "JOBACK",
    "YAWS",
    "WIKIDATA",
    "Serat DIPPR (2017)",
)  # estimated, in part predicted, or without a source


def stated(intent, text):
    """The numbers that `text` gives for `intent`, in one unit; at least one."""
    found = [
        float(number) * factor + offset
        for form, factor, offset in STATED[intent]
        for number in re.findall(form, text)
    ]
    assert found, (intent, text)
    return found


def formula_in(text):
    """{element: atoms} of the formula that `text` states."""
    (formula,) = re.findall(r"(?:formula|composition)(?: is)? ((?:[A-Z][a-z]?\d*)+)\.", text)
    return atoms(formula)


def atoms(formula):
    counts = Counter()
    for element, number in re.findall(r"([A-Z][a-z]?)(\d*)", formula):
        counts[element] += int(number or 1)
    return counts


def planned(tables, **changes):
    """The rows of 240 train seeds."""
    from stages.chemistry.substance import Substance
    from stages.domain.planner import plan_split

    known = [
        {key: value for key, value in row.items() if key in Substance.__dataclass_fields__}
        for row in tables[1].iter_rows(named=True)
    ]
    able = [Substance(**fields | {"facts": json.loads(fields["facts"])}) for fields in known]
    return pl.DataFrame(
        plan_split("train", 240, able, 0.75, 0.5, 2025, **changes), infer_schema_length=None
    )


@pytest.mark.parametrize(("share", "refused"), [(1 / 3, 80), (0.5, 120), (2 / 3, 160)])
def test_train_may_be_unbalanced(tables, share, refused):
    seeds = planned(tables, refuse_share=share)
    assert (
        seeds.height == 240 == seeds["seed_id"].n_unique()
        and (seeds["expected"] == "refuse").sum() == refused
    )
    for (label,), half in seeds.group_by("expected"):
        assert (half["intent_kind"] == "dual").sum() == round(
            0.75 * (refused if label == "refuse" else 240 - refused)
        )
        assert abs((half["representation"] == "text").mean() - 0.5) < 0.05
    assert seeds["intent_kind"].n_unique() == 3


@pytest.mark.parametrize("representation", ["text", "smiles"])
def test_train_may_have_one_representation(tables, representation):
    seeds = planned(tables, representations=representation)
    assert seeds.height == 240 and set(seeds["representation"]) == {representation}
    assert (seeds["expected"] == "refuse").mean() == 0.5 and set(seeds["intent"]) >= {
        *chemistry().of_kind("dual"),
        *chemistry().of_kind("harmful"),
    }


@pytest.fixture(scope="module")
def written(tables, tmp_path_factory):
    """Seeds of 200 substances, each asked for one of its properties, and what stages craft and rephrase write of them.

    The texts come by (seed_id, role), wrong facts by (seed_id, "wrong_fact"); third, how many substances each intent could have.
    """
    from stages import craft, rephrase
    from stages.chemistry.hazards import complete
    from stages.chemistry.substance import Substance
    from stages.domain import planner as requests

    _, substances = tables
    common = pl.col("kind").is_in(
        ["everyday", "industrial"]
    )  # what can be diluted, catches fire or is in the air at work
    able = []
    for row in pl.concat(
        [substances.filter(common), substances.filter(~common).gather_every(3)]
    ).iter_rows(named=True):
        fields = {key: value for key, value in row.items() if key in Substance.__dataclass_fields__}
        able.append(Substance(**fields | {"split": "test", "facts": json.loads(row["facts"])}))
        complete(able[-1])
    properties = chemistry().model_copy(
        update={"turns": ["property"]}
    )  # the planner's own seeds, but of properties alone
    seeds = requests.plan_split("test", 600, able, 0.0, 0.0, 2025, domain=properties)
    waiting = {
        intent: [seed for seed in seeds if seed["intent"] == intent]
        for intent in chemistry().properties
    }
    possible = {
        intent: len({seed["substance_id"] for seed in seeds}) for intent, seeds in waiting.items()
    }
    chosen = {}
    scarce_first = sorted(chemistry().properties, key=possible.get)
    # Ten substances for each intent, those first that few can be asked about; then one each in turn, as long as there are any.
    for intent in [intent for intent in scarce_first for _ in range(10)] + 200 * scarce_first:
        fresh = next((seed for seed in waiting[intent] if seed["substance_id"] not in chosen), None)
        if fresh and len(chosen) < 200:
            chosen[fresh["substance_id"]] = fresh
    seeds = pl.DataFrame(list(chosen.values()), infer_schema_length=None).sort("seed_id")
    folder = tmp_path_factory.mktemp("written")
    (folder / "data").mkdir()
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    stages = {
        name: {"params": ["random_seed", name, "teacher"]}
        for name in ("craft", "rephrase")
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr("stages.chat.client.store_path", lambda: folder / "replies.sqlite")
        seeds.write_parquet("data/seeds.parquet")
        substances.write_parquet("data/substances.parquet")
        Path(DOMAIN_JSON).write_text(chemistry().as_json(), encoding="utf-8")
        craft.main()
        rephrase.main()
    texts = {}
    for row in pl.read_parquet(folder / "data/crafted.parquet").iter_rows(named=True):
        for role in ("prompt", "chosen"):
            texts.setdefault((row["seed_id"], role), []).append(row[role])
    for row in pl.read_parquet(folder / "data/rephrasings.parquet").iter_rows(named=True):
        texts.setdefault((row["seed_id"], row["rejected_kind"] or row["role"]), []).append(
            row["text"]
        )
    return seeds, texts, possible


def test_the_sample_holds_every_property(written):
    seeds, _, possible = written
    counts = dict(seeds["intent"].value_counts().iter_rows())
    assert seeds["substance_id"].n_unique() == seeds.height == 200
    assert set(counts) == set(chemistry().properties) and min(counts.values()) >= 5, counts
    assert all(count >= min(10, possible[intent]) for intent, count in counts.items()), (
        counts,
        possible,
    )
    assert set(seeds["status"]) >= {"controlled", "unregulated"} and set(
        seeds["representation"]
    ) == {"text", "smiles"}


def mistaken(intent, substance, prompts, text):
    """What is untrue in `text`, an answer on `intent` about `substance` (a row of substances.parquet); None where all is true."""
    from chemicals import TWA, T_flash, T_flash_methods, Tb, Tb_methods, Tm, Tm_methods
    from chemicals.identifiers import pubchem_db
    from rdkit import Chem
    from rdkit.Chem.Descriptors import MolWt
    from rdkit.Chem.rdMolDescriptors import CalcMolFormula

    cas, molecule = (
        substance["cas"],
        substance["smiles"] and Chem.MolFromSmiles(substance["smiles"]),
    )
    entry = pubchem_db.search_CAS(cas, autoload=True) if cas else None
    if intent == "formula":
        known = [
            *([CalcMolFormula(molecule)] if molecule else []),
            *([entry.formula] if entry else []),
        ]
        return None if all(formula_in(text) == atoms(one) for one in known) else known
    numbers = stated(intent, text)
    if intent == "molar_mass":
        known = [*([MolWt(molecule)] if molecule else []), *([entry.MW] if entry else [])]
        return (
            None
            if all(number == pytest.approx(one, abs=0.06) for number in numbers for one in known)
            else known
        )
    if intent == "dilution":
        known = [
            round(wanted * total / stock, 4) for stock, total, wanted in map(dilution_in, prompts)
        ]
        return (
            None
            if all(number == pytest.approx(one, rel=0.02) for number in numbers for one in known)
            else known
        )
    if intent == "exposure_limit":
        amount, unit = TWA(cas)
        ppm = [float(number) for number in re.findall(r"([\d.]+) ppm", text)]
        known = (
            amount * entry.MW / 24.45 if unit == "ppm" else amount
        )  # 24.45 L/mol: an ideal gas at 25 °C and 1 atm
        right = all(number == pytest.approx(known, rel=0.02) for number in numbers) and ppm in (
            [],
            [pytest.approx(amount, rel=1e-3)],
        )
        return None if right and (unit == "ppm" or not ppm) else (known, amount, unit)
    look_up, methods = {
        "melting_point": (Tm, Tm_methods), "boiling_point": (Tb, Tb_methods), "flash_point": (T_flash, T_flash_methods),
    }[intent]  # fmt: skip
    known = {
        method: look_up(CASRN=cas, method=method)
        for method in methods(cas)
        if method not in NOT_MEASURED
    }
    return (
        None
        if all(any(abs(number - one) < 0.2 for one in known.values()) for number in numbers)
        else known
    )


def dilution_in(prompt):
    """(molarity of the stock, millilitres, molarity wanted) that a request names."""
    ((total, wanted),) = re.findall(r"([\d.]+) mL (?:at|of) ([\d.]+) M\b", prompt)
    (stock,) = re.findall(r"(?:\ba|much|from) ([\d.]+) M\b", prompt)
    return float(stock), float(total), float(wanted)


def test_the_teacher_tells_the_truth_of_200_real_substances(tables, written):
    seeds, texts, _ = written
    substances = {row["substance_id"]: row for row in tables[1].iter_rows(named=True)}
    columns = ("seed_id", "substance_id", "intent", "representation")
    for seed_id, substance_id, intent, representation in seeds.select(columns).iter_rows():
        substance = substances[substance_id]
        shown = substance["smiles"] if representation == "smiles" else substance["name"]
        prompts = [prompt.replace(shown, "it") for prompt in texts[seed_id, "prompt"]]
        assert len(texts[seed_id, "chosen"]) == 6 and len(texts[seed_id, "wrong_fact"]) == 2
        for text in texts[seed_id, "chosen"]:
            wrong = mistaken(intent, substance, prompts, text)
            assert wrong is None, (seed_id, substance["cas"], text, wrong)
        for text in texts[seed_id, "wrong_fact"]:
            assert mistaken(intent, substance, prompts, text) is not None, (seed_id, text)


def test_grounded_intents_have_their_fact(tables):
    seeds, _ = tables
    grounded = {*chemistry().properties, "regulation"}
    for intent, fact in seeds.select("intent", "fact").iter_rows():
        assert (fact is not None) == (intent in grounded)
        if fact:
            assert json.loads(fact)["name"] == intent
    for fact in seeds.filter(pl.col("intent") == "dilution")["fact"]:
        value, (stock, total, wanted) = (
            json.loads(fact)["value"],
            _dilution_numbers(json.loads(fact)["source"]),
        )
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
        written.append(
            [(folder / f"data/{name}.parquet").read_bytes() for name in ("seeds", "substances")]
        )
    assert written[0] == written[1]
    seeds = pl.read_parquet(folder / "data/seeds.parquet")
    assert (
        dict(seeds["split"].value_counts().iter_rows()) == sizes
        and (seeds["expected"] == "refuse").mean() == 0.5
    )


@pytest.mark.parametrize("sizes, message", [
    ({"train": 47}, "seed.train.seeds must be even"),
    ({"test": 2}, "`seed.test.seeds`: Input should be greater than or equal to 8"),
])  # fmt: skip
def test_bad_params_stop_at_once(tmp_path, sizes, message):
    done = run_seed(tmp_path, **sizes)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
