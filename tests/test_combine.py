"""The triplet grid: even, complete, the same every time, and what it does with seeds that lost their texts."""

import hashlib
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
import yaml

from stages import combine as stage
from stages.combine import COLUMNS, ROLES, combine
from stages.core.errors import LibraError


def seed_table(count, kinds=("dual",)):
    """`count` seeds, by turns to comply with and to refuse."""
    labels = ["comply", "refuse"] * (count // 2 + 1)
    rows = [
        {
            "seed_id": f"s-substance-{i}-make-text", "substance_id": f"s-substance-{i}", "split": "train", "expected": labels[i],
            "intent": "make", "intent_kind": kinds[i // 2 % len(kinds)], "representation": "text", "fact": None,
        }
        for i in range(count)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema_overrides={"fact": pl.String})


def text_table(seeds, k, m, n):
    rows = [
        (
            seed_id,
            role,
            i,
            f"{role} {i} of {seed_id}",
            "over_refusal" if role == "rejected" else None,
            "teacher-a",
        )
        for seed_id in seeds["seed_id"]
        for role, size in zip(ROLES, (k, m, n), strict=True)
        for i in range(size)
    ]
    return pl.DataFrame(
        rows, schema=stage.TEXT_COLUMNS, orient="row", schema_overrides={"rejected_kind": pl.String}
    )


def spread(ids, size):
    count = Counter(ids)
    return max(count.values()) - (min(count.values()) if len(count) == size else 0)


@pytest.mark.parametrize(
    ("k", "m", "n", "count"),
    [
        (5, 5, 5, 25),
        (8, 5, 5, 25),
        (8, 5, 5, 40),
        (8, 8, 1, 25),
        (2, 2, 2, 3),
        (1, 1, 5, 1),
        (3, 4, 8, 12),
        (4, 6, 3, 7),
        (6, 6, 4, 36),
    ],
)
def test_every_text_is_used_as_often_as_the_others(k, m, n, count):
    triplets = combine(text_table(seed_table(1), k, m, n), seed_table(1), count)
    assert triplets.height == count == triplets.select("prompt_id", "chosen_id").unique().height
    for role, size in zip(ROLES, (k, m, n), strict=True):
        assert spread(triplets[f"{role}_id"], size) <= 1, role


def test_the_default_is_a_latin_square():
    triplets = combine(text_table(seed_table(1), 5, 5, 5), seed_table(1), 25)
    for pair in (
        ("prompt_id", "chosen_id"),
        ("prompt_id", "rejected_id"),
        ("chosen_id", "rejected_id"),
    ):
        assert triplets.select(pair).unique().height == 25
    assert set(Counter(triplets["rejected_id"]).values()) == {5}


@pytest.mark.parametrize(("k", "m", "n"), [(2, 3, 4), (5, 5, 5), (8, 5, 6), (3, 3, 1)])
def test_the_whole_grid_can_be_taken_and_no_more(k, m, n):
    seeds = seed_table(2)
    triplets = combine(text_table(seeds, k, m, n), seeds, k * m * n)
    assert triplets["triplet_id"].n_unique() == 2 * k * m * n
    half = combine(text_table(seeds, k, m, n), seeds, max(1, k * m * n // 2))
    pairs = Counter(zip(half["prompt_id"], half["chosen_id"], strict=True))
    assert max(pairs.values()) - min(pairs.values()) <= 1
    with pytest.raises(
        LibraError,
        match=rf"combine.triplets_per_seed is {k * m * n + 1}, but seed s-substance-0-make-text has {k} prompts",
    ):
        combine(text_table(seeds, k, m, n), seeds, k * m * n + 1)


def test_rows_carry_their_lineage():
    seeds = seed_table(2).with_columns(fact=pl.lit('{"name": "x"}'))
    triplets = combine(text_table(seeds, 5, 5, 5), seeds, 25).sort("triplet_id")
    assert triplets.columns == list(COLUMNS)
    row = triplets.row(7, named=True)
    assert row["triplet_id"] == row["seed_id"] + "".join(
        f"-{row[f'{role}_id'].rsplit('-', 1)[1]}" for role in ROLES
    )
    for role in ROLES:
        assert row[role] == f"{role} {row[f'{role}_id'][-1]} of {row['seed_id']}"
    assert (row["teacher"], row["fact"], row["rejected_kind"]) == (
        "teacher-a",
        '{"name": "x"}',
        "over_refusal",
    )


def test_a_seed_may_lack_some_texts():
    seeds = seed_table(2)
    texts = text_table(seeds, 5, 5, 5).filter(
        ~((pl.col("role") == "prompt") & (pl.col("index") == 2))
    )
    triplets = combine(texts, seeds, 10)
    assert triplets.height == 20
    assert set(triplets["prompt_id"].str.tail(2)) == {"p0", "p1", "p3", "p4"}


def test_a_quarantined_seed_takes_a_partner_of_the_other_label_with_it():
    seeds = seed_table(40, kinds=("dual", "neutral"))
    gone = [
        seeds.filter((pl.col("intent_kind") == kind) & (pl.col("expected") == "refuse"))["seed_id"][
            0
        ]
        for kind in ("dual", "neutral")
    ]
    texts = text_table(seeds, 2, 2, 2)
    left = combine(texts.filter(~pl.col("seed_id").is_in(gone)), seeds, 4).unique("seed_id")
    assert sorted(left.group_by("intent_kind", "expected").len().rows()) == [
        ("dual", "comply", 9), ("dual", "refuse", 9), ("neutral", "comply", 9), ("neutral", "refuse", 9)
    ]  # fmt: skip
    pair = [gone[0], gone[0].replace(gone[0].split("-")[2], str(int(gone[0].split("-")[2]) - 1))]
    assert (
        combine(texts.filter(~pl.col("seed_id").is_in(pair)), seeds, 4)["seed_id"].n_unique() == 38
    )


def test_texts_must_belong_to_one_seed_once():
    seeds = seed_table(2)
    texts = text_table(seeds, 2, 2, 2)
    with pytest.raises(LibraError, match="texts of seed s-substance-1-make-text, which isn't in"):
        combine(texts, seeds.head(1), 4)
    with pytest.raises(LibraError, match="two texts for s-substance-0-make-text chosen 0"):
        combine(
            pl.concat(
                [texts, texts.filter((pl.col("role") == "chosen") & (pl.col("index") == 0)).head(1)]
            ),
            seeds,
            4,
        )


def test_test_seeds_have_a_number_of_their_own():
    seeds = seed_table(4).with_columns(split=pl.Series(["train", "train", "test", "test"]))
    texts = pl.concat([text_table(seeds.head(2), 1, 1, 1), text_table(seeds.tail(2), 3, 2, 2)])
    triplets = combine(texts, seeds, 1, 6)
    assert dict(triplets["split"].value_counts().iter_rows()) == {"train": 2, "test": 12}
    alone = combine(texts.join(seeds.tail(2), on="seed_id", how="semi"), seeds.tail(2), 6)
    assert triplets.filter(split="test").sort("triplet_id").equals(alone.sort("triplet_id"))
    with pytest.raises(
        LibraError,
        match=r"combine.test_triplets_per_seed is 13, but seed s-substance-2-make-text has 3 prompts",
    ):
        combine(texts, seeds, 1, 13)
    with pytest.raises(
        LibraError,
        match=r"combine.triplets_per_seed is 2, but seed s-substance-0-make-text has 1 prompts",
    ):
        combine(texts, seeds, 2, 6)


def run_stage(folder: Path, per_seed, monkeypatch):
    monkeypatch.chdir(folder)
    Path("params.yaml").write_text(yaml.safe_dump({"combine": {"triplets_per_seed": per_seed}}))
    Path("dvc.yaml").write_text(
        yaml.safe_dump(
            {"stages": {"combine": {"cmd": "python -m stages.combine", "params": ["combine"]}}}
        )
    )
    stage.main()


def test_the_stage_writes_the_same_bytes_whatever_the_order_of_its_inputs(tmp_path, monkeypatch):
    seeds = seed_table(60)
    digests = []
    for turn in range(2):
        folder = tmp_path / str(turn)
        (folder / "data").mkdir(parents=True)
        seeds.sample(fraction=1, shuffle=True, seed=turn).write_parquet(
            folder / "data/seeds.parquet"
        )
        text_table(seeds, 5, 5, 5).sample(fraction=1, shuffle=True, seed=turn).write_parquet(
            folder / "data/rephrasings.parquet"
        )
        run_stage(folder, 25, monkeypatch)
        digests.append(hashlib.sha256(Path("data/triplets.parquet").read_bytes()).hexdigest())
        assert pl.read_parquet("data/triplets.parquet").height == 1500
    assert digests[0] == digests[1]
    with pytest.raises(LibraError, match=r"combine\.triplets_per_seed"):
        run_stage(folder, 0, monkeypatch)
    assert hashlib.sha256(Path("data/triplets.parquet").read_bytes()).hexdigest() == digests[1]
