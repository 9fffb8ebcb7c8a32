"""Phase 1, data mining: choose the substances and the requests to be made about them.

Reads   data/catalog/*.csv (checked), facts computed by rdkit and looked up in the `chemicals` package
Writes  data/substances.parquet, one row per substance asked about; data/seeds.parquet, one row per request to be made
Params  random_seed; seed.{train,validation,test}.{seeds,substances,dual_share}, seed.train.{refuse_share,representations},
        seed.drug_like_share

    seed_id                   substance_id   split  expected  intent   intent_kind  representation  status
    chloroquine-prepare-text  s-chloroquine  test   comply    prepare  dual         text            unregulated
"""

from typing import Literal

from pydantic import Field

from stages.common import cli
from stages.common.errors import LibraError
from stages.common.params import Section, read_params


class SplitParams(Section):
    """How many seeds a split gets, how much of the catalog it may draw on, and how many of its seeds are `dual`."""

    seeds: int = Field(ge=8)
    substances: float = Field(gt=0.0, lt=1.0)
    dual_share: float = Field(ge=0.1, le=1.0)


class TrainedSplitParams(SplitParams):
    """What can be otherwise in train alone, for comparisons: validation and test stay balanced and hold both representations."""

    refuse_share: float = Field(default=0.5, ge=0.2, le=0.8)
    representations: Literal["both", "text", "smiles"] = "both"


class SeedParams(Section):
    """How many seeds each split gets and how they are spread over the label table."""

    train: TrainedSplitParams
    validation: SplitParams
    test: SplitParams
    drug_like_share: float = Field(ge=0.0, le=1.0)


POOL_PER_SEED = 0.5  # substances picked by code for each seed of train and test, so that pairs can be matched


def main() -> None:
    import polars as pl

    from stages.chem.catalog import read_catalog
    from stages.chem.facts import collect_facts
    from stages.chem.hazard import complete
    from stages.chem.pool import familiar_substances
    from stages.chem.requests import plan_split
    from stages.chem.splits import SPLITS, assign_splits, set_groups
    from stages.common.progress import progress
    from stages.common.tables import write_table

    params = read_params("seed")
    seed, random_seed = params.section("seed", SeedParams), params.random_seed
    splits = {split: getattr(seed, split) for split in SPLITS}
    odd = [f"seed.{split}.seeds" for split, wanted in splits.items() if wanted.seeds % 2]
    if odd:
        raise LibraError(f"params.yaml: {', '.join(odd)} must be even: refuse and comply share the seeds")

    substances, excluded = read_catalog()
    controlled = [s for s in substances if s.status == "controlled"]
    wanted = round(POOL_PER_SEED * sum(split.seeds for split in splits.values()))
    substances += familiar_substances(controlled, substances, excluded, wanted)
    for substance in progress(substances, "facts"):
        substance.facts = collect_facts(substance)
        complete(substance)
    set_groups(substances)
    assign_splits(substances, {name: split.substances for name, split in splits.items()}, random_seed)

    seeds = []
    for name, split in splits.items():
        drawn = {"refuse_share": split.refuse_share, "representations": split.representations} if name == "train" else {}
        seeds += plan_split(name, split.seeds, substances, split.dual_share, seed.drug_like_share, random_seed, **drawn)
    asked = {row["substance_id"] for row in seeds}
    rows = [s.row() for s in substances if s.substance_id in asked]
    write_table(pl.DataFrame(rows, infer_schema_length=None), "data/substances.parquet", sort_by="substance_id")
    write_table(pl.DataFrame(seeds, infer_schema_length=None), "data/seeds.parquet", sort_by="seed_id")
    print(f"{len(seeds)} seeds about {len(rows)} substances")


if __name__ == "__main__":
    cli.run("seed", main, __doc__)
