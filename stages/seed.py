"""Phase 1, data mining: choose the substances and the requests to be made about them.

Reads   data/catalog (checked): chemistry's tables, with facts computed by rdkit and looked up in the `chemicals` package, or the
        folder of another domain
Writes  data/substances.parquet, one row per substance asked about; data/seeds.parquet, one row per request to be made;
        data/domain.json, the domain's intents, label table and words, for the stages after this one
Params  random_seed; seed.domain, seed.{train,validation,test}.{seeds,substances,dual_share}, seed.train.{refuse_share,representations},
        seed.drug_like_share

    seed_id                   substance_id   split  expected  intent   intent_kind  representation  status
    chloroquine-prepare-text  s-chloroquine  test   comply    prepare  dual         text            unregulated
"""

from typing import Literal

from pydantic import Field

from stages.core import cli
from stages.core.errors import LibraError
from stages.core.params import Section, read_params


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
    """What is asked about, how many seeds each split gets and how they are spread over the label table."""

    domain: str
    train: TrainedSplitParams
    validation: SplitParams
    test: SplitParams
    drug_like_share: float = Field(ge=0.0, le=1.0)


POOL_PER_SEED = (
    0.5  # substances picked by code for each seed of train and test, so that pairs can be matched
)


def main() -> None:
    import polars as pl

    from stages.core.tables import write_table, write_text
    from stages.domain.description import CHEMISTRY, DOMAIN_JSON, read_domain
    from stages.domain.planner import plan_split
    from stages.domain.splits import SPLITS, assign_splits, set_groups
    from stages.domain.things import read_things

    params = read_params("seed")
    seed, random_seed = params.section("seed", SeedParams), params.random_seed
    splits = {split: getattr(seed, split) for split in SPLITS}
    odd = [f"seed.{split}.seeds" for split, wanted in splits.items() if wanted.seeds % 2]
    if odd:
        raise LibraError(
            f"params.yaml: {', '.join(odd)} must be even: refuse and comply share the seeds"
        )

    domain = read_domain(seed.domain)
    sizes = {
        name: min(split.seeds, domain.most_seeds.get(name, split.seeds))
        for name, split in splits.items()
    }
    substances = mined(sum(sizes.values())) if seed.domain == CHEMISTRY else read_things(domain)
    set_groups(substances)
    assign_splits(
        substances, {name: split.substances for name, split in splits.items()}, random_seed
    )

    seeds = []
    for name, split in splits.items():
        drawn = (
            {"refuse_share": split.refuse_share, "representations": split.representations}
            if name == "train"
            else {}
        )
        if sizes[name] < split.seeds:
            print(
                f"seed: {name} gets {sizes[name]} seeds, as many as the catalog of {seed.domain} is made for, not {split.seeds}"
            )
        shares = (split.dual_share, seed.drug_like_share)
        seeds += plan_split(
            name, sizes[name], substances, *shares, random_seed, **drawn, domain=domain
        )
    asked = {row["substance_id"] for row in seeds}
    rows = [s.row() for s in substances if s.substance_id in asked]
    table = pl.DataFrame(
        rows, infer_schema_length=None, schema_overrides={"molar_mass": pl.Float64}
    )
    table = table.with_columns(
        pl.col(pl.Null).cast(pl.String)
    )  # columns that a domain has no use for
    write_table(table, "data/substances.parquet", sort_by="substance_id")
    write_table(
        pl.DataFrame(seeds, infer_schema_length=None), "data/seeds.parquet", sort_by="seed_id"
    )
    write_text(domain.as_json(), DOMAIN_JSON)
    print(f"{len(seeds)} seeds about {len(rows)} {domain.card.about}")


def mined(seeds: int) -> list:
    """Chemistry's catalog, and substances picked by code for so many seeds, all with their facts."""
    from stages.chemistry.catalog import read_catalog
    from stages.chemistry.hazards import complete
    from stages.chemistry.pool import familiar_substances
    from stages.chemistry.properties import collect_facts
    from stages.core.progress import progress

    substances, excluded = read_catalog()
    controlled = [s for s in substances if s.status == "controlled"]
    substances += familiar_substances(
        controlled, substances, excluded, round(POOL_PER_SEED * seeds)
    )
    for substance in progress(substances, "facts"):
        substance.facts = collect_facts(substance)
        complete(substance)
    return substances


if __name__ == "__main__":
    cli.run("seed", main, __doc__)
