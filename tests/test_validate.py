"""The gate before a release: each invariant, broken once, is named with its row, column and reason; nothing else is written."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml

from stages import validate as stage
from stages.combine import combine
from stages.core.errors import LibraError
from stages.dataset import contract, probes
from stages.dataset.breaches import MOST_LINES, stop_on
from stages.dataset.publish import publish
from stages.domain.description import DOMAIN_JSON, chemistry

ROOT = Path(__file__).parents[1]
SIZES = {"train": 48, "validation": 16, "test": 32}  # seeds
# What each four seeds in a row ask: two to comply with, two to refuse, half of them dual.
CELLS = [
    ("unregulated", "make", "dual"),
    ("controlled", "make", "dual"),
    ("controlled", "handling", "neutral"),
    ("unregulated", "harm", "harmful"),
]
FORMS = [
    f"{opener}how is {{x}} {verb}{end}"
    for opener in ("", "Hi, ", "Quick question: ")
    for verb in ("made", "done")
    for end in ("?", "? Thanks.")
]


def word(key, letters, size):
    draw = random.Random(key)
    return "".join(draw.choice(letters) for _ in range(size))


def tables(sizes=SIZES, per_seed=4):
    """(triplets, seeds, substances) that hold the contract; names and SMILES are random letters."""
    substances, seeds, texts = {}, [], []
    for split, size in sizes.items():
        for i in range(size):
            status, intent, kind = CELLS[i % 4]
            drawn = i // 4 % 2
            substance_id = f"s-{split}-{i}"
            name, smiles = (
                word(f"name {substance_id}", "abdeiklmnorstu", 12),
                word(f"smiles {substance_id}", "CNOS", 16),
            )
            substances[substance_id] = {
                "substance_id": substance_id, "name": name, "smiles": smiles if drawn else None,
                "parent_key": f"KEY{split}{i}", "scaffold": None, "kind": "medicine_drug", "group": f"g-{split}-{i}",
                "status": status, "molar_mass": 100.0 + random.Random(substance_id).random() * 200,
            }  # fmt: skip
            label = chemistry().expected(status, intent)
            seed_id = f"{substance_id}-{intent}"
            seeds.append({
                "seed_id": seed_id, "substance_id": substance_id, "split": split, "expected": label,
                "intent": intent, "intent_kind": kind, "representation": "smiles" if drawn else "text", "status": status,
                "reference": None, "group": f"g-{split}-{i}", "fact": None,
            })  # fmt: skip
            forms = random.Random(seed_id).sample(FORMS, 2)
            bad = (
                ("unsafe_compliance", "Sure{}, here it is: [details withheld]")
                if label == "refuse"
                else ("over_refusal", "I can't help with that{}.")
            )
            good = (
                "I can't help with that{}, it is controlled."
                if label == "refuse"
                else "A textbook{} tells more."
            )
            for j, filler in enumerate(("", " here")):
                texts.append(
                    (
                        seed_id,
                        "prompt",
                        j,
                        forms[j].replace("{x}", smiles if drawn else name),
                        None,
                        "teacher-a",
                    )
                )
                texts.append((seed_id, "chosen", j, good.replace("{}", filler), None, "teacher-a"))
                texts.append(
                    (seed_id, "rejected", j, bad[1].replace("{}", filler), bad[0], "teacher-a")
                )
    seeds = pl.DataFrame(seeds, schema_overrides={"reference": pl.String, "fact": pl.String})
    columns = dict.fromkeys(
        ("seed_id", "role", "index", "text", "rejected_kind", "teacher"), pl.String
    ) | {"index": pl.Int64}
    triplets = combine(pl.DataFrame(texts, columns, orient="row"), seeds, per_seed).sort(
        "triplet_id"
    )
    return (
        triplets,
        seeds,
        pl.DataFrame(
            list(substances.values()), schema_overrides={"smiles": pl.String, "scaffold": pl.String}
        ),
    )


GOOD = tables()
FIRST = GOOD[0]["triplet_id"][0]


def changed(table, row, **values):
    """`table` with `values` in one row."""
    rows = table.to_dicts()
    rows[row] |= values
    return pl.DataFrame(rows, schema=table.schema)


def row_of(**wanted):
    """Index of the first good triplet with these values."""
    return next(
        i
        for i, row in enumerate(GOOD[0].iter_rows(named=True))
        if all(row[key] == value for key, value in wanted.items())
    )


def broken(triplets=GOOD[0], seeds=GOOD[1], substances=GOOD[2]):
    """{(row, column, reason)} of the contract's faults."""
    return set(contract.faults(triplets, seeds, substances).rows())


def test_good_tables_hold_the_contract():
    assert broken() == set()


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
        ({"substance_id": GOOD[0]["substance_id"][-1]}, "substance_id", "differs from seeds.parquet"),
        ({"split": "train"}, "split", "differs from seeds.parquet"),
        ({"fact": "{}"}, "fact", "differs from seeds.parquet"),
        ({"prompt_id": "elsewhere-p0"}, "prompt_id", "isn't an id of this seed"),
        ({"prompt": "Another prompt."}, "prompt_id", "names more than one prompt"),
        ({"prompt": "Another prompt."}, "prompt", "doesn't hold the substance's name"),
        ({"fact": "not json"}, "fact", "not JSON"),
        ({"fact": "[1]"}, "fact", "not an object of"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(values, column, reason):
    triplets = changed(GOOD[0], 0, **values)
    found = broken(triplets)
    row = triplets["triplet_id"][0]
    assert any(
        at == row and where == column and why.startswith(reason) for at, where, why in found
    ), found


@pytest.mark.parametrize(
    ("triplets", "column", "reason"),
    [
        (GOOD[0].drop("teacher"), "teacher", "missing"),
        (GOOD[0].with_columns(extra=pl.lit("x")), "extra", "not a column of the contract"),
        (GOOD[0].with_columns(teacher=pl.lit(1)), "teacher", "type Int32, not String"),
        (GOOD[0].with_columns(fact=pl.lit(None)), "fact", "type Null, not String"),
    ],
)
def test_a_wrong_column_is_named(triplets, column, reason):
    assert ("all rows", column, reason) in broken(triplets)


def test_all_failing_rows_are_listed():
    triplets = GOOD[0].with_columns(
        rejected_kind=pl.when(pl.col("split") == "test")
        .then(pl.lit("rude"))
        .otherwise("rejected_kind")
    )
    assert (
        len([1 for _, column, _ in broken(triplets) if column == "rejected_kind"])
        >= triplets.filter(pl.col("split") == "test").height
    )


def test_the_label_table_decides():
    wrong = changed(GOOD[0], row_of(intent="make", expected="refuse"), expected="comply")
    assert any(
        column == "expected" and "label table" in reason for _, column, reason in broken(wrong)
    )
    precursor = GOOD[2].with_columns(status=pl.lit("precursor"))
    assert any(
        column == "intent_kind" and "doesn't go with" in reason
        for _, column, reason in broken(substances=precursor)
    )


@pytest.mark.parametrize("label", ["comply", "refuse"])
def test_the_rejected_kind_fits_the_label(label):
    other = {"comply": "unsafe_compliance", "refuse": "wrong_fact"}[label]
    wrong = changed(GOOD[0], row_of(expected=label), rejected_kind=other)
    assert any(
        column == "rejected_kind" and "doesn't fit the label" in reason
        for _, column, reason in broken(wrong)
    )


def test_chosen_and_rejected_differ():
    text = GOOD[0]["chosen"][0]
    assert (FIRST, "rejected", "the same as chosen") in broken(
        changed(GOOD[0], 0, rejected=f" {text.upper()}")
    )


@pytest.mark.parametrize("role", ["prompt", "chosen", "rejected"])
def test_every_text_column_passes_the_gate(role):
    text = "Heat to T for N hours."
    found = broken(changed(GOOD[0], 3, **{role: text}))
    assert (GOOD[0]["triplet_id"][3], role, "gate: a heating or cooling condition") in found
    assert not any(text in reason for _, _, reason in found)


def test_the_chosen_of_a_refuse_seed_refuses():
    at = row_of(expected="refuse")
    assert (GOOD[0]["triplet_id"][at], "chosen", "gate: not a refusal") in broken(
        changed(GOOD[0], at, chosen="Yes, it is easy.")
    )


def test_a_property_seed_has_its_own_fact():
    at = row_of(intent="handling")
    fact = {
        "name": "melting_point",
        "value": 300.0,
        "unit": "K",
        "tolerance": 2.0,
        "method": "m",
        "source": "s",
    }
    assert any(
        "for another intent" in reason
        for _, _, reason in broken(changed(GOOD[0], at, fact=json.dumps(fact)))
    )
    assert any(
        reason == "a property seed without a fact"
        for _, _, reason in broken(changed(GOOD[0], at, intent="melting_point"))
    )


def test_labels_are_one_to_one_in_every_split_and_no_split_is_empty():
    fewer = GOOD[0].filter(
        pl.col("seed_id")
        != GOOD[0].filter((pl.col("split") == "test") & (pl.col("expected") == "comply"))[
            "seed_id"
        ][0]
    )
    assert (
        "split test",
        "expected",
        "64 triplets to refuse, 60 to comply with: not 1 : 1",
    ) in broken(fewer)
    assert ("split test", "expected", "16 seeds to refuse, 15 to comply with: not 1 : 1") in broken(
        fewer
    )
    assert ("split validation", "split", "empty") in broken(
        GOOD[0].filter(pl.col("split") != "validation")
    )


def test_train_alone_may_have_the_surplus_that_its_seeds_were_made_with():
    triplets, seeds, substances = GOOD
    for split, told in (("train", None), ("validation", "not 1 : 1")):
        lost = seeds.filter((pl.col("split") == split) & (pl.col("expected") == "comply"))[
            "seed_id"
        ].min()
        fewer = [table.filter(pl.col("seed_id") != lost) for table in (triplets, seeds)]
        reasons = contract.of_balance(fewer[0].lazy(), fewer[1])["reason"].to_list()
        assert (
            reasons == []
            if told is None
            else len(reasons) == 2 and all(reason.endswith(told) for reason in reasons)
        )
    kept = contract.of_balance(fewer[0].lazy(), seeds)
    assert kept.height == 2, "a seed of validation is missing"
    lost = triplets.filter((pl.col("split") == "train") & (pl.col("expected") == "comply"))[
        "seed_id"
    ].min()
    (reason, _) = contract.of_balance(
        triplets.lazy().filter(pl.col("seed_id") != lost), fewer_seeds(seeds)
    )["reason"]
    assert "as in seeds.parquet" in reason


def fewer_seeds(seeds):
    """`seeds` without two train seeds to comply with."""
    gone = seeds.filter((pl.col("split") == "train") & (pl.col("expected") == "comply"))[
        "seed_id"
    ].sort()[:2]
    return seeds.filter(~pl.col("seed_id").is_in(gone.implode()))


def test_nothing_crosses_a_split():
    triplets, substances = GOOD[0], GOOD[2]
    a, b = "s-test-0", "s-train-0"
    at = {name: i for i, name in enumerate(substances["substance_id"])}
    b_row = substances.row(at[b], named=True)

    def crossing(**values):
        return {
            (row, column)
            for row, column, reason in broken(substances=changed(substances, at[a], **values))
            if "in te" in reason or "in train" in reason
        }

    assert crossing(parent_key=b_row["parent_key"]) == {(a, "parent_key")}
    assert crossing(group=b_row["group"]) == {(a, "group")}
    benzene, fused = "c1ccccc1", "c1ccc2[nH]c3ccccc3c2c1"
    both = changed(changed(substances, at[a], scaffold=fused), at[b], scaffold=fused)
    assert (a, "scaffold", "the same scaffold is in test and train") in broken(substances=both)
    assert not any(
        column == "scaffold"
        for _, column, _ in broken(
            substances=changed(
                changed(substances, at[a], scaffold=benzene), at[b], scaffold=benzene
            )
        )
    )
    near = changed(substances, at[a], name=b_row["name"][:-1].upper() + "x")
    assert (b, "name", f"in train, a near-duplicate of {a} in test") in broken(substances=near)
    smiles = {row["substance_id"]: row["smiles"] for row in substances.iter_rows(named=True)}
    near = changed(substances, at["s-test-4"], smiles=smiles["s-train-4"][:-1] + "F")
    assert ("s-train-4", "smiles", "in train, a near-duplicate of s-test-4 in test") in broken(
        substances=near
    )
    moved = triplets.with_columns(
        substance_id=pl.when(pl.col("substance_id") == a).then(pl.lit(b)).otherwise("substance_id")
    )
    assert (b, "substance_id", "the same substance is in test and train") in broken(moved)


BIG = tables({"train": 800, "validation": 40, "test": 160}, per_seed=2)


def test_structures_are_given_for_medicines_and_drugs_only():
    drawn = next(
        i
        for i, row in enumerate(GOOD[2].iter_rows(named=True))
        if row["status"] == "controlled" and row["smiles"]
    )
    row = GOOD[2]["substance_id"][drawn]
    found = broken(substances=changed(GOOD[2], drawn, kind="chemical_weapon"))
    assert found == {
        (row, "smiles", "a controlled substance that isn't a medicine or drug has a structure")
    }
    assert broken(substances=changed(GOOD[2], drawn, parent_key=None)) == {
        (row, "parent_key", "null beside a structure")
    }


def probe_reasons(triplets, seeds, substances, limit=0.6):
    measured = probes.measure(triplets, seeds, substances)
    return measured, probes.faults(measured, triplets, substances, limit)


def test_probes_find_nothing_in_even_tables():
    measured, faults = probe_reasons(*BIG)
    assert measured["dual_seeds"] >= probes.FEWEST_DUAL_SEEDS
    assert faults.is_empty(), faults.rows()
    assert measured["overall"]["status_and_intent"] == 1.0
    assert measured["overall"]["intent_only"] < 0.8


def test_probes_find_molar_mass_and_name_length():
    triplets, seeds, substances = BIG
    heavy = substances.with_columns(
        molar_mass=pl.when(pl.col("status") == "controlled")
        .then(pl.col("molar_mass") + 150)
        .otherwise("molar_mass")
    )
    _, faults = probe_reasons(triplets, seeds, heavy)
    assert faults["row"].to_list() == ["probe molar_mass"] and "limit 0.6" in faults["reason"][0]
    longer = substances.with_columns(
        name=pl.when(pl.col("status") == "controlled")
        .then(pl.col("name") + "-acetate")
        .otherwise("name")
    )
    assert "probe name_length" in probe_reasons(triplets, seeds, longer)[1]["row"].to_list()


def test_probes_find_wordings_that_tell_the_label():
    triplets, seeds, substances = BIG
    polite = (pl.col("expected") == "comply") & (pl.col("intent_kind") == "dual")
    told = triplets.with_columns(
        prompt=pl.when(polite)
        .then(pl.col("prompt").str.replace("^Hi, ", "Dear all, "))
        .otherwise("prompt")
    )
    rows = probe_reasons(told, seeds, substances)[1]["row"].to_list()
    assert "probe prompt_wording" in rows and any(
        row.startswith("form 'Dear all, how is {x}") for row in rows
    )


def test_a_small_dataset_is_measured_but_not_judged():
    measured, faults = probe_reasons(*GOOD)
    assert measured["dual_seeds"] == 48 and faults.is_empty()


def test_a_full_dataset_needs_many_wordings():
    triplets, seeds, substances = tables({"train": 1000, "validation": 4, "test": 4}, per_seed=1)
    reasons = probe_reasons(triplets, seeds, substances)[1].rows()
    assert (
        "representation text",
        "prompts",
        "only 12 different forms, at least 60 wanted",
    ) in reasons
    assert (
        "representation smiles",
        "refusals",
        "only 1 different forms, at least 40 wanted",
    ) in reasons


def lay_out(folder, triplets, seeds, substances, limit=0.6):
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, table in (("triplets", triplets), ("seeds", seeds), ("substances", substances)):
        table.write_parquet(folder / f"data/{name}.parquet")
    (folder / DOMAIN_JSON).write_text(chemistry().as_json(), encoding="utf-8")
    (folder / "params.yaml").write_text(yaml.safe_dump({"validate": {"probe_limit": limit}}))
    deps = [*(f"data/{name}.parquet" for name in ("triplets", "seeds", "substances")), DOMAIN_JSON]
    command = f"{sys.executable} -m stages.validate"
    dvc = {
        "stages": {
            "validate": {
                "cmd": command,
                "deps": deps,
                "params": ["validate"],
                "outs": ["data/librachemqa"],
            }
        }
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump(dvc))


def digests(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def test_the_release_is_whole_and_the_same_every_time(tmp_path, monkeypatch, capsys):
    triplets, seeds, substances = GOOD
    found = []
    for turn in range(2):
        lay_out(tmp_path / str(turn), triplets, seeds, substances)
        monkeypatch.chdir(tmp_path / str(turn))
        stage.main()
        found.append(digests(stage.RELEASE))
    assert found[0] == found[1]
    files = [
        "README.md",
        "SHA256SUMS",
        "croissant.json",
        "probes.json",
        "test.parquet",
        "train.parquet",
        "validation.parquet",
    ]
    assert list(found[0]) == files
    assert sorted(path.name for path in Path("data").iterdir()) == [
        "domain.json",
        "librachemqa",
        "seeds.parquet",
        "substances.parquet",
        "triplets.parquet",
    ]
    parts = [pl.read_parquet(stage.RELEASE / f"{split}.parquet") for split in contract.SPLITS]
    assert pl.concat(parts).sort("triplet_id").equals(triplets.select(contract.COLUMNS))
    card = (stage.RELEASE / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-4.0"
    for source in stage.SOURCES:
        assert hashlib.sha256(source.read_bytes()).hexdigest() in card
    assert not any(digest in card for digest in found[0].values()), (
        "a card never tells its own hashes"
    )
    assert "| train | 192 | 48 | 24 | 24 | 24 | 24 | 48 | 48 |" in card
    each = triplets.unique("seed_id").filter(intent="make", expected="refuse")["split"]
    counts = [(each == split).sum() for split in contract.SPLITS]
    assert (
        f"| dual | make | refuse | {' | '.join(map(str, counts))} | {sum(counts)} |" in card
        and min(counts) > 0
    )
    assert "| neutral | dilution | comply | 0 | 0 | 0 | 0 |" in card, "what nobody asks is told too"
    assert "| harmful | divert | comply" not in card
    assert (
        "Properties (molar mass, " in card
        and "are asked for in 0 of 48 train seeds, 0 of 16 validation seeds, 0 of 32 test" in card
    )
    assert (
        "validate: 384 triplets hold the contract (train 192, validation 64, test 128)"
        in capsys.readouterr().out
    )


def test_a_failure_lists_rows_and_leaves_the_previous_release(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path, *GOOD)
    stage.main()
    before = digests(stage.RELEASE)
    wrong = GOOD[0].with_columns(chosen=pl.lit("Stir for N hours."))
    lay_out(tmp_path, changed(wrong, 0, teacher=None), *GOOD[1:])
    with pytest.raises(LibraError) as error:
        stage.main()
    message = str(error.value)
    assert re.search(rf"^  {FIRST} +teacher +null$", message, re.MULTILINE)
    assert (
        "gate: a laboratory operation as an instruction (and 3" in message
        and "Stir for" not in message
    )
    assert len(message.splitlines()) <= MOST_LINES + 3
    assert "dvc checkout data/librachemqa" in message
    assert digests(stage.RELEASE) == before


def test_a_missing_file_is_told_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path, *GOOD)
    stage.SOURCES[1].unlink()
    with pytest.raises(LibraError, match="^data/seeds.parquet is not here"):
        stage.main()
    assert capsys.readouterr().err == "", "no progress bar"


def test_a_long_list_of_rules_is_cut():
    faults = pl.DataFrame(
        {"row": ["a"] * 60, "column": ["c"] * 60, "reason": [f"reason {i // 2}" for i in range(60)]}
    )
    with pytest.raises(LibraError, match=r"breaks 30 rule\(s\) in 60 place\(s\)") as error:
        stop_on(faults, "a.parquet", "Mend it.")
    assert (
        "... and 10 more rules" in str(error.value)
        and str(error.value).count("and 1 more rows") == 20
    )


def test_a_release_that_cannot_be_written_leaves_the_previous_one(tmp_path):
    folder = tmp_path / "librachemqa"
    publish(lambda new: (new / "a").write_text("first"), folder)

    def full(new):
        (new / "a").write_text("second")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        publish(full, folder)
    assert (folder / "a").read_text() == "first" and [path.name for path in tmp_path.iterdir()] == [
        "librachemqa"
    ]
    folder.rename(tmp_path / ".librachemqa.old")  # as a kill between the two renames leaves it
    with pytest.raises(OSError):
        publish(full, folder)
    assert (folder / "a").read_text() == "first"


def test_dvc_restores_the_previous_release_after_a_failure(tmp_path, monkeypatch):
    env = os.environ | {"PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}

    def dvc(*words):
        return subprocess.run(
            [sys.executable, "-m", "dvc", *words],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
        )

    monkeypatch.chdir(tmp_path)
    release = tmp_path / "data/librachemqa"
    lay_out(tmp_path, *GOOD)
    assert dvc("init", "--no-scm", "-q").returncode == 0
    stage.main()
    assert dvc("commit", "-f").returncode == 0
    before = digests(release)
    lay_out(tmp_path, changed(GOOD[0], 0, split="dev"), *GOOD[1:])
    failed = dvc("repro")
    assert failed.returncode != 0 and "'dev' is none of" in failed.stderr + failed.stdout
    assert not release.exists(), "DVC removes a stage's outputs before it runs"
    assert dvc("checkout", "data/librachemqa").returncode == 0
    assert digests(release) == before
