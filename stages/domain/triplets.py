"""Preference triplets of each seed: its prompts, chosen and rejected answers crossed evenly.

    combine(texts, seeds, per_seed=25)    # of 5 x 5 x 5 texts per seed: a Latin square

Of a seed's k x m x n grid the first cells are taken in an order in which every prompt, chosen and
rejected is used as often as any other (within one), and no (prompt, chosen) pair is repeated before
all have been used.
"""

import hashlib
import math

import polars as pl

from stages.core.errors import LibraError

ROLES = ("prompt", "chosen", "rejected")
TEXT_COLUMNS = ("seed_id", "role", "index", "text", "rejected_kind", "teacher")
SEED_COLUMNS = (
    "seed_id",
    "substance_id",
    "split",
    "expected",
    "intent",
    "intent_kind",
    "representation",
    "fact",
)
COLUMNS = (
    *SEED_COLUMNS[:-1],
    *ROLES,
    *(f"{role}_id" for role in ROLES),
    "rejected_kind",
    "teacher",
    "fact",
)


def combine(
    texts: pl.DataFrame, seeds: pl.DataFrame, per_seed: int, per_test_seed: int | None = None
) -> pl.DataFrame:
    """Triplets (columns `triplet_id` and COLUMNS) of every seed that has texts.

    `per_seed` is how many cells of a seed's grid are taken, `per_test_seed` the same for test seeds
    if it differs. `texts` has TEXT_COLUMNS, `seeds` SEED_COLUMNS.

    Raises LibraError if a seed's grid is too small, if a (seed, role, index) appears twice, or if a
    text belongs to no seed.
    """
    _check_texts(texts, seeds)
    shapes = _shapes(texts, seeds, per_seed, per_test_seed)
    _check_sizes(shapes, bool(per_test_seed))
    shape = (*ROLES, "count")
    cells = (
        _balanced(seeds.select(SEED_COLUMNS), shapes)
        .join(shapes.select("seed_id", *shape), on="seed_id")
        .join(_grid(shapes.select(shape).unique()), on=shape)
        .drop(shape)
    )

    # The i-th text of a role is cell i, also if texts before it are missing.
    numbered = texts.with_columns(
        cell=pl.col("index").rank("ordinal").over("seed_id", "role").cast(pl.Int64) - 1
    )
    for role in ROLES:
        role_texts = numbered.filter(pl.col("role") == role).select(
            "seed_id",
            pl.col("cell").alias(f"{role}_cell"),
            pl.col("text").alias(role),
            (role[0] + pl.col("index").cast(pl.String)).alias(f"{role}_tag"),
            pl.col("teacher").alias(f"{role}_teacher"),
            *([pl.col("rejected_kind")] if role == "rejected" else []),
        )
        cells = cells.join(role_texts, on=["seed_id", f"{role}_cell"])
    teachers = pl.concat_list(f"{role}_teacher" for role in ROLES)
    return cells.with_columns(
        _id(*(f"{role}_tag" for role in ROLES)).alias("triplet_id"),
        *(_id(f"{role}_tag").alias(f"{role}_id") for role in ROLES),
        teachers.list.unique().list.sort().list.join(" + ").alias("teacher"),
    ).select(pl.col("triplet_id", *COLUMNS).cast(pl.String))


def _id(*tags: str) -> pl.Expr:
    return pl.concat_str("seed_id", *tags, separator="-")


def _check_texts(texts: pl.DataFrame, seeds: pl.DataFrame) -> None:
    stray = texts.join(seeds, on="seed_id", how="anti")
    if not stray.is_empty():
        raise LibraError(
            f"data/rephrasings.parquet has texts of seed {stray['seed_id'][0]}, which isn't in "
            "data/seeds.parquet; run `dvc repro`"
        )
    key = ["seed_id", "role", "index"]
    duplicates = texts.filter(pl.struct(key).is_duplicated()).sort(key)
    if duplicates.height:
        text = " ".join(map(str, duplicates.select(key).row(0)))
        raise LibraError(
            f"data/rephrasings.parquet has two texts for {text}; run `dvc repro -f rephrase`"
        )


def _shapes(
    texts: pl.DataFrame, seeds: pl.DataFrame, per_seed: int, per_test_seed: int | None
) -> pl.DataFrame:
    """(seed_id, split, number of texts by role, `count` of triplets) of every seed with texts."""
    sizes = texts.group_by("seed_id").agg(
        (pl.col("role") == role).sum().cast(pl.Int64).alias(role) for role in ROLES
    )
    is_test = pl.col("split") == "test"
    count = pl.when(is_test).then(per_test_seed or per_seed).otherwise(per_seed)
    return sizes.join(seeds.select("seed_id", "split", count=count.cast(pl.Int64)), on="seed_id")


def _check_sizes(shapes: pl.DataFrame, test_has_its_own: bool) -> None:
    grid = pl.col("prompt") * pl.col("chosen") * pl.col("rejected")
    small = shapes.filter(grid < pl.col("count")).sort("seed_id")
    if small.is_empty():
        return
    row = small.row(0, named=True)
    k, m, n = (row[role] for role in ROLES)
    own = test_has_its_own and row["split"] == "test"
    key = "test_triplets_per_seed" if own else "triplets_per_seed"
    raise LibraError(
        f"params.yaml: combine.{key} is {row['count']}, but seed {row['seed_id']} has {k} prompts "
        f"x {m} chosen x {n} rejected = {k * m * n} combinations (and {small.height - 1} more "
        "seeds have too few); lower it, or raise rephrase.prompts, rephrase.chosen or "
        "rephrase.rejected"
    )


def _grid(shapes: pl.DataFrame) -> pl.DataFrame:
    """The first `count` cells (prompt_cell, chosen_cell, rejected_cell) of each shape.

    Step t takes prompt t mod k and chosen t mod m, moved on by one after each lcm(k, m) steps, so
    that k*m steps meet every pair once. Rejected is t mod n, moved on by two after each n steps:
    for 5 x 5 x 5 that is a Latin square. After k*m steps all pairs return with another rejected.
    """
    k, m, n = (pl.col(role) for role in ROLES)
    turns = [
        {"lcm": math.lcm(k, m), "turn": n // math.gcd(k * m, n)}
        for k, m, n in shapes.select(ROLES).iter_rows()
    ]
    steps = (
        pl.concat([shapes, pl.DataFrame(turns)], how="horizontal")
        .with_columns(step=pl.int_ranges("count"))
        .explode("step")
    )
    t, again = pl.col("step") % (k * m), pl.col("step") // (k * m)
    return steps.select(
        *ROLES,
        "count",
        prompt_cell=t % k,
        chosen_cell=(t + t // pl.col("lcm")) % m,
        rejected_cell=(t + 2 * (t // n) + again * k * m + again // pl.col("turn")) % n,
    )


def _balanced(seeds: pl.DataFrame, shapes: pl.DataFrame) -> pl.DataFrame:
    """Seeds that have texts, less a partner of each that has none (quarantined).

    So refuse : comply stays as in `seeds`. Partners are of the same split, representation and side
    of the dual cell, in an order fixed by a digest of their ids.
    """
    cell = ["split", "representation", pl.col("intent_kind") == "dual"]
    groups = seeds.with_columns(
        cell=pl.concat_str(*cell, separator=" "),
        lost=~pl.col("seed_id").is_in(shapes["seed_id"].implode()),
        order=pl.col("seed_id").map_elements(
            lambda seed_id: hashlib.sha256(seed_id.encode()).hexdigest(), return_dtype=pl.String
        ),
    )
    lost = {
        label: (pl.col("lost") & (pl.col("expected") == label)).sum().cast(pl.Int64)
        for label in ("refuse", "comply")
    }
    surplus = groups.group_by("cell").agg(surplus=lost["refuse"] - lost["comply"])
    left = groups.filter(~pl.col("lost")).join(surplus, on="cell")
    comply = pl.col("expected") == "comply"
    excess = pl.when(comply).then(pl.col("surplus")).otherwise(-pl.col("surplus"))
    place = pl.col("order").rank("ordinal").over("cell", "expected").cast(pl.Int64)
    return left.filter(place > excess).select(seeds.columns)
