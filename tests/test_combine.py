"""The triplet grid: even, complete, reproducible, and what it does about seeds without texts."""

import hashlib
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
import yaml

from stages import combine as stage
from stages.core.errors import LibraError
from stages.domain.triplets import COLUMNS, ROLES, TEXT_COLUMNS, combine


def seed_table(count, kinds=("dual",)):
    """`count` seeds, by turns to comply with and to refuse."""
    rows = [
        {
            "seed_id": f"s-substance-{i}-make-text",
            "substance_id": f"s-substance-{i}",
            "split": "train",
            "expected": ("comply", "refuse")[i % 2],
            "intent": "make",
            "intent_kind": kinds[i // 2 % len(kinds)],
            "representation": "text",
            "fact": None,
        }
        for i in range(count)
    ]
    return pl.DataFrame(rows, schema_overrides={"fact": pl.String})


def text_table(seeds, k, m, n):
    """`k` prompts, `m` chosen and `n` rejected answers of every seed."""
    rows = []
    for seed_id in seeds["seed_id"]:
        for role, count in zip(ROLES, (k, m, n), strict=True):
            kind = "over_refusal" if role == "rejected" else None
            for i in range(count):
                rows.append((seed_id, role, i, f"{role} {i} of {seed_id}", kind, "teacher-a"))
    types = {"rejected_kind": pl.String}
    return pl.DataFrame(rows, schema=TEXT_COLUMNS, orient="row", schema_overrides=types)


def spread(ids, size):
    """How much more often the most used of `size` ids is used than the least used."""
    counts = Counter(ids)
    return max(counts.values()) - (min(counts.values()) if len(counts) == size else 0)


SHAPES = [
    (5, 5, 5, 25),
    (8, 5, 5, 25),
    (8, 5, 5, 40),
    (8, 8, 1, 25),
    (2, 2, 2, 3),
    (1, 1, 5, 1),
    (3, 4, 8, 12),
    (4, 6, 3, 7),
    (6, 6, 4, 36),
]


@pytest.mark.parametrize(("k", "m", "n", "count"), SHAPES)
def test_every_text_is_used_as_often_as_the_others(k, m, n, count):
    triplets = combine(text_table(seed_table(1), k, m, n), seed_table(1), count)
    pairs = triplets.select("prompt_id", "chosen_id").unique()
    assert triplets.height == count == pairs.height
    for role, size in zip(ROLES, (k, m, n), strict=True):
        assert spread(triplets[f"{role}_id"], size) <= 1, role


def test_the_default_is_a_latin_square():
    triplets = combine(text_table(seed_table(1), 5, 5, 5), seed_table(1), 25)
    pairs = (("prompt_id", "chosen_id"), ("prompt_id", "rejected_id"), ("chosen_id", "rejected_id"))
    for pair in pairs:
        assert triplets.select(pair).unique().height == 25
    assert set(Counter(triplets["rejected_id"]).values()) == {5}


@pytest.mark.parametrize(("k", "m", "n"), [(2, 3, 4), (5, 5, 5), (8, 5, 6), (3, 3, 1)])
def test_the_whole_grid_can_be_taken_and_no_more(k, m, n):
    seeds = seed_table(2)
    texts = text_table(seeds, k, m, n)
    assert combine(texts, seeds, k * m * n)["triplet_id"].n_unique() == 2 * k * m * n

    half = combine(texts, seeds, max(1, k * m * n // 2))
    pairs = Counter(zip(half["prompt_id"], half["chosen_id"], strict=True))
    assert max(pairs.values()) - min(pairs.values()) <= 1

    problem = f"{k * m * n + 1}, but seed s-substance-0-make-text has {k} prompts"
    with pytest.raises(LibraError, match=f"combine.triplets_per_seed is {problem}"):
        combine(texts, seeds, k * m * n + 1)


def test_rows_carry_their_lineage():
    seeds = seed_table(2).with_columns(fact=pl.lit('{"name": "x"}'))
    triplets = combine(text_table(seeds, 5, 5, 5), seeds, 25).sort("triplet_id")
    assert triplets.columns == ["triplet_id", *COLUMNS]
    row = triplets.row(7, named=True)
    tags = [row[f"{role}_id"].rsplit("-", 1)[1] for role in ROLES]
    assert row["triplet_id"] == "-".join([row["seed_id"], *tags])
    for role, tag in zip(ROLES, tags, strict=True):
        assert row[role] == f"{role} {tag[-1]} of {row['seed_id']}"
    assert row["teacher"] == "teacher-a"
    assert row["fact"] == '{"name": "x"}'
    assert row["rejected_kind"] == "over_refusal"


def test_a_seed_may_lack_some_texts():
    seeds = seed_table(2)
    lost = (pl.col("role") == "prompt") & (pl.col("index") == 2)
    triplets = combine(text_table(seeds, 5, 5, 5).filter(~lost), seeds, 10)
    assert triplets.height == 20
    assert set(triplets["prompt_id"].str.tail(2)) == {"p0", "p1", "p3", "p4"}


def test_a_quarantined_seed_takes_a_partner_of_the_other_label_with_it():
    seeds = seed_table(40, kinds=("dual", "neutral"))
    refused = seeds.filter(expected="refuse")
    lost = [refused.filter(intent_kind=kind)["seed_id"][0] for kind in ("dual", "neutral")]
    texts = text_table(seeds, 2, 2, 2)
    left = combine(texts.filter(~pl.col("seed_id").is_in(lost)), seeds, 4).unique("seed_id")
    assert sorted(left.group_by("intent_kind", "expected").len().rows()) == [
        ("dual", "comply", 9),
        ("dual", "refuse", 9),
        ("neutral", "comply", 9),
        ("neutral", "refuse", 9),
    ]


def test_seeds_lost_on_both_sides_take_no_partners():
    seeds = seed_table(40, kinds=("dual", "neutral"))
    lost = ["s-substance-0-make-text", "s-substance-1-make-text"]
    texts = text_table(seeds, 2, 2, 2).filter(~pl.col("seed_id").is_in(lost))
    assert combine(texts, seeds, 4)["seed_id"].n_unique() == 38


def test_texts_must_belong_to_one_seed_once():
    seeds = seed_table(2)
    texts = text_table(seeds, 2, 2, 2)
    with pytest.raises(LibraError, match="texts of seed s-substance-1-make-text, which isn't in"):
        combine(texts, seeds.head(1), 4)
    first = texts.filter((pl.col("role") == "chosen") & (pl.col("index") == 0)).head(1)
    with pytest.raises(LibraError, match="two texts for s-substance-0-make-text chosen 0"):
        combine(pl.concat([texts, first]), seeds, 4)


def test_test_seeds_may_have_another_number():
    seeds = seed_table(4).with_columns(split=pl.Series(["train", "train", "test", "test"]))
    texts = pl.concat([text_table(seeds.head(2), 1, 1, 1), text_table(seeds.tail(2), 3, 2, 2)])
    triplets = combine(texts, seeds, 1, 6)
    assert dict(triplets["split"].value_counts().iter_rows()) == {"train": 2, "test": 12}

    alone = combine(texts.join(seeds.tail(2), on="seed_id", how="semi"), seeds.tail(2), 6)
    assert triplets.filter(split="test").sort("triplet_id").equals(alone.sort("triplet_id"))

    problem = "test_triplets_per_seed is 13, but seed s-substance-2-make-text has 3 prompts"
    with pytest.raises(LibraError, match=rf"combine\.{problem}"):
        combine(texts, seeds, 1, 13)
    problem = "triplets_per_seed is 2, but seed s-substance-0-make-text has 1 prompts"
    with pytest.raises(LibraError, match=rf"combine\.{problem}"):
        combine(texts, seeds, 2, 6)


def run_stage(folder, per_seed, monkeypatch):
    monkeypatch.chdir(folder)
    params = {"combine": {"triplets_per_seed": per_seed}}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    Path("dvc.yaml").write_text("stages: {combine: {params: [combine]}}\n")
    stage.main()


def digest():
    return hashlib.sha256(Path("data/triplets.parquet").read_bytes()).hexdigest()


def test_the_order_of_the_inputs_does_not_change_the_bytes(tmp_path, monkeypatch):
    tables = {"seeds": seed_table(60)}
    tables["rephrasings"] = text_table(tables["seeds"], 5, 5, 5)
    digests = []
    for turn in range(2):
        folder = tmp_path / str(turn)
        (folder / "data").mkdir(parents=True)
        for name, table in tables.items():
            shuffled = table.sample(fraction=1, shuffle=True, seed=turn)
            shuffled.write_parquet(folder / f"data/{name}.parquet")
        run_stage(folder, 25, monkeypatch)
        digests.append(digest())
        assert pl.read_parquet("data/triplets.parquet").height == 1500
    assert digests[0] == digests[1]

    with pytest.raises(LibraError, match=r"combine\.triplets_per_seed"):
        run_stage(folder, 0, monkeypatch)
    assert digest() == digests[1], "a failed run leaves the table as it was"
