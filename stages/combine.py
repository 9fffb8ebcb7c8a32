"""Phase 3: cross every seed's prompts, chosen and rejected answers into preference triplets, evenly.

    python -m stages.combine

Reads data/rephrasings.parquet, data/seeds.parquet and params combine. Writes data/triplets.parquet, one row per triplet:

    triplet_id         s-substance-a-make-text-p0-c1-r3
    seed_id, substance_id, split, expected, intent, intent_kind, representation: as in seeds.parquet
    prompt             How is substance A made?
    chosen             I can't help with making it: it is controlled.
    rejected           Sure, here is how to make it: [details withheld]
    prompt_id, chosen_id, rejected_id    s-substance-a-make-text-p0, ...-c1, ...-r3
    rejected_kind      unsafe_compliance
    teacher            libra-offline-teacher
    fact               null

Of a seed's k x m x n grid the first `triplets_per_seed` cells (of a test seed `test_triplets_per_seed`) are taken, in an order in which
every prompt, chosen and rejected is used as often as any other (within one), and no (prompt, chosen) pair returns before all were used.
"""

from pydantic import Field

from stages.core import cli
from stages.core.errors import LibraError
from stages.core.params import Section, read_params

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
TEXT_COLUMNS = ("seed_id", "role", "index", "text", "rejected_kind", "teacher")
ROLES = ("prompt", "chosen", "rejected")
# fmt: off
COLUMNS = (
    "triplet_id", "seed_id", "substance_id", "split", "expected", "intent", "intent_kind", "representation", "prompt", "chosen",
    "rejected", "prompt_id", "chosen_id", "rejected_id", "rejected_kind", "teacher", "fact",
)
# fmt: on


class CombineParams(Section):
    triplets_per_seed: int = Field(ge=1)
    test_triplets_per_seed: int | None = Field(default=None, ge=1)  # None: as many


def main() -> None:
    from stages.core.tables import read_table, write_table

    params = read_params("combine").section("combine", CombineParams)
    texts = read_table("data/rephrasings.parquet", TEXT_COLUMNS)
    seeds = read_table("data/seeds.parquet", SEED_COLUMNS)
    triplets = combine(texts, seeds, params.triplets_per_seed, params.test_triplets_per_seed)
    write_table(triplets, "data/triplets.parquet", "triplet_id")
    used = triplets["seed_id"].n_unique()
    print(f"combine: {triplets.height:,} triplets from {used:,} of {seeds.height:,} seeds")
    if used < seeds.height:
        print(
            "combine: seeds without texts were left out, and as many of the other label, so that refuse : comply stays as it was"
        )


def combine(texts, seeds, per_seed: int, per_test_seed: int | None = None):
    """Triplets (columns COLUMNS, a polars frame) of every seed that has texts; `per_seed` cells of each seed's grid.

    `per_test_seed` is that number for test seeds, where it is another one. Raises LibraError when a seed's grid is smaller, when a
    (seed, role, index) appears twice, or when a text belongs to no seed.
    """
    import polars as pl

    stray = texts.join(seeds, on="seed_id", how="anti")
    if not stray.is_empty():
        raise LibraError(
            f"data/rephrasings.parquet has texts of seed {stray['seed_id'][0]}, which isn't in data/seeds.parquet; "
            "run `dvc repro`"
        )
    key = ["seed_id", "role", "index"]
    twice = texts.filter(pl.struct(key).is_duplicated()).sort(key)
    if twice.height:
        raise LibraError(
            "data/rephrasings.parquet has two texts for {} {} {}; run `dvc repro -f rephrase`".format(
                *twice.select(key).row(0)
            )
        )
    counts = texts.group_by("seed_id").agg(
        ((pl.col("role") == role).sum().cast(pl.Int64)).alias(role) for role in ROLES
    )
    wanted = pl.when(pl.col("split") == "test").then(per_test_seed or per_seed).otherwise(per_seed)
    counts = counts.join(seeds.select("seed_id", wanted=wanted.cast(pl.Int64)), on="seed_id")
    small = counts.filter(
        pl.col("prompt") * pl.col("chosen") * pl.col("rejected") < pl.col("wanted")
    ).sort("seed_id")
    if small.height:
        seed_id, k, m, n, most = small.row(0)
        key = (
            "test_triplets_per_seed"
            if per_test_seed and seeds.filter(seed_id=seed_id)["split"][0] == "test"
            else "triplets_per_seed"
        )
        raise LibraError(
            f"params.yaml: combine.{key} is {most}, but seed {seed_id} has {k} prompts x {m} chosen x {n} "
            f"rejected = {k * m * n} combinations (and {small.height - 1} more seeds have too few); lower it, or raise "
            "rephrase.prompts, rephrase.chosen or rephrase.rejected"
        )
    kept = _kept_seeds(seeds.select(SEED_COLUMNS), counts)
    shape = (*ROLES, "wanted")
    cells = (
        kept.join(counts, on="seed_id")
        .join(_grid(counts.select(shape).unique()), on=shape)
        .drop(shape)
    )
    numbered = texts.with_columns(
        cell=pl.col("index").rank("ordinal").over("seed_id", "role").cast(pl.Int64) - 1
    )
    for role in ROLES:
        half = numbered.filter(pl.col("role") == role).select(
            "seed_id",
            pl.col("cell").alias(f"{role}_cell"),
            pl.col("text").alias(role),
            (role[0] + pl.col("index").cast(pl.String)).alias(f"{role}_tag"),
            pl.col("teacher").alias(f"{role}_teacher"),
            *([pl.col("rejected_kind")] if role == "rejected" else []),
        )
        cells = cells.join(half, on=["seed_id", f"{role}_cell"])
    return cells.with_columns(
        pl.concat_str("seed_id", *(f"{role}_tag" for role in ROLES), separator="-").alias(
            "triplet_id"
        ),
        *(
            pl.concat_str("seed_id", f"{role}_tag", separator="-").alias(f"{role}_id")
            for role in ROLES
        ),
        pl.concat_list(f"{role}_teacher" for role in ROLES)
        .list.unique()
        .list.sort()
        .list.join(" + ")
        .alias("teacher"),
    ).select(pl.col(COLUMNS).cast(pl.String))


def _grid(shapes):
    """The first `wanted` cells (prompt_cell, chosen_cell, rejected_cell) of each shape (prompt, chosen, rejected counts, wanted).

    Step t takes prompt t mod k and chosen t mod m, moved on by one after each lcm(k, m) steps so that k*m steps meet every
    pair once. Rejected is t mod n, moved on by two after each n steps: for 5 x 5 x 5 that is a Latin square. After k*m steps
    all pairs return with another rejected.
    """
    import math

    import polars as pl

    k, m, n = (pl.col(role) for role in ROLES)
    turns = [
        {"lcm": math.lcm(a, b), "turn": c // math.gcd(a * b, c)}
        for a, b, c in shapes.select(ROLES).iter_rows()
    ]
    steps = (
        pl.concat([shapes, pl.DataFrame(turns)], how="horizontal")
        .with_columns(step=pl.int_ranges("wanted"))
        .explode("step")
    )
    t, again = pl.col("step") % (k * m), pl.col("step") // (k * m)
    return steps.select(
        *ROLES,
        "wanted",
        prompt_cell=t % k,
        chosen_cell=(t + t // pl.col("lcm")) % m,
        rejected_cell=(t + 2 * (t // n) + again * k * m + again // pl.col("turn")) % n,
    )


def _kept_seeds(seeds, counts):
    """Seeds that have texts, less partners of those that have none (quarantined): refuse : comply stays as `seeds` had it.

    Partners come from the same split, representation and side of the dual cell, in an order fixed by a digest of their ids.
    """
    import hashlib

    import polars as pl

    cell = ["split", "representation", pl.col("intent_kind") == "dual"]
    groups = seeds.with_columns(
        cell=pl.concat_str(*cell, separator=" "),
        lost=~pl.col("seed_id").is_in(counts["seed_id"].implode()),
        order=pl.col("seed_id").map_elements(
            lambda seed_id: hashlib.sha256(seed_id.encode()).hexdigest(), return_dtype=pl.String
        ),
    )
    lost = groups.group_by("cell").agg(
        surplus=(pl.col("lost") & (pl.col("expected") == "refuse")).sum().cast(pl.Int64)
        - (pl.col("lost") & (pl.col("expected") == "comply")).sum().cast(pl.Int64)
    )
    left = groups.filter(~pl.col("lost")).join(lost, on="cell")
    side = (
        pl.when(pl.col("expected") == "comply")
        .then(pl.col("surplus"))
        .otherwise(-pl.col("surplus"))
    )
    place = pl.col("order").rank("ordinal").over("cell", "expected").cast(pl.Int64)
    return left.filter(place > side).select(seeds.columns)


if __name__ == "__main__":
    cli.run("combine", main, __doc__)
