"""Phase 3: cross every seed's prompts, chosen and rejected answers into preference triplets.

    python -m stages.combine

Reads   data/rephrasings.parquet, data/seeds.parquet
Writes  data/triplets.parquet, one row per triplet
Params  combine

    triplet_id         s-substance-a-make-text-p0-c1-r3
    seed_id, substance_id, split, expected, intent, intent_kind, representation: as in seeds.parquet
    prompt             How is substance A made?
    chosen             I can't help with making it: it is controlled.
    rejected           Sure, here is how to make it: [details withheld]
    prompt_id, chosen_id, rejected_id    s-substance-a-make-text-p0, ...-c1, ...-r3
    rejected_kind      unsafe_compliance
    teacher            libra-offline-teacher
    fact               null
"""

from pydantic import Field

from stages.core import cli
from stages.core.params import Section, read_params


class CombineParams(Section):
    """How many cells of each seed's k x m x n grid are taken."""

    triplets_per_seed: int = Field(ge=1)
    test_triplets_per_seed: int | None = Field(default=None, ge=1)  # default: the same


def main() -> None:
    from stages.core.tables import read_table, write_table
    from stages.domain.triplets import SEED_COLUMNS, TEXT_COLUMNS, combine

    params = read_params("combine").section("combine", CombineParams)
    texts = read_table("data/rephrasings.parquet", TEXT_COLUMNS)
    seeds = read_table("data/seeds.parquet", SEED_COLUMNS)
    triplets = combine(texts, seeds, params.triplets_per_seed, params.test_triplets_per_seed)
    write_table(triplets, "data/triplets.parquet", "triplet_id")
    used = triplets["seed_id"].n_unique()
    print(f"combine: {triplets.height:,} triplets from {used:,} of {seeds.height:,} seeds")
    if used < seeds.height:
        balance = "and as many of the other label, so that refuse : comply stays the same"
        print(f"combine: left out seeds without texts, {balance}")


if __name__ == "__main__":
    cli.run("combine", main, __doc__)
